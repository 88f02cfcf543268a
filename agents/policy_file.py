"""Read policy files of Stable-Baselines3 that may come from somebody else: sizes are checked first, and nothing is
unpickled.
"""

import io
import os
import pickle
import zipfile
from typing import Any

import torch

from sanawm_env.system.files import check_file, reason

MAX_BYTES = 256 * 2**20


def read_weights(
    path: str | os.PathLike, device: str | torch.device = "cpu", member: str = "policy.pth"
) -> dict[str, Any]:
    """Read a state dict from a policy archive.

    Args:
        path: a zip file of Stable-Baselines3.
        device: of the tensors.
        member: the file inside the archive.

    Raises:
        FileNotFoundError: where there is no file.
        OSError: where the system does not read it.
        ValueError: for anything but an archive of tensors of at most `MAX_BYTES`. The sentence begins with "it", so
            that the caller names the file.
    """
    try:
        found = torch.load(_unpacked(path, member), map_location=device, weights_only=True)
    except (OSError, MemoryError):
        raise
    except Exception as error:  # archives and weights that are damaged raise many types
        pickled = isinstance(error, pickle.UnpicklingError)
        said = reason(error) or "it ends before its weights do"
        raise ValueError("what lies in it is pickled" if pickled else said) from error
    if not isinstance(found, dict):
        raise ValueError("it holds no state dict")
    return found


def _unpacked(path: str | os.PathLike, member: str) -> io.BytesIO:
    """A member of the archive. ValueError for what is no archive or too large."""
    with zipfile.ZipFile(check_file(path, MAX_BYTES)) as archive:
        if member not in archive.NameToInfo:
            raise ValueError(f"it has no {member}")
        found = archive.getinfo(member)
        if found.flag_bits & 1:
            raise ValueError("it is encrypted")
        if found.file_size > MAX_BYTES:
            raise ValueError(f"its weights take more than {MAX_BYTES >> 20} MB")
        weights = io.BytesIO(archive.read(found))
    if zipfile.is_zipfile(weights):  # torch's own archive, which may be packed again
        with zipfile.ZipFile(weights) as inner:
            if sum(part.file_size for part in inner.infolist()) > MAX_BYTES:
                raise ValueError(f"its weights take more than {MAX_BYTES >> 20} MB")
    weights.seek(0)
    return weights
