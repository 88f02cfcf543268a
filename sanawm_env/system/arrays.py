"""Arrays in files of unknown origin: `.npz` and `.npy` with plain numbers. They are never unpickled, and never take
more memory than the file holds."""

import io
import math
import os
import zipfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from sanawm_env.system.files import check_file, read_bytes, reason

MAX_ARRAY_BYTES = 256 * 2**20  # a minute of poses is 0.2 MB
_NPY, _ZIP, _PICKLE = b"\x93NUMPY", b"PK", b"\x80"
_HEADER_BYTES = 10_000  # NumPy's own limit


def load_arrays(path: str | os.PathLike, names: Iterable[str]) -> dict[str, np.ndarray]:
    """Read arrays of plain numbers. Never unpickles.

    Args:
        path: an `.npz`, or a `.npy`, whose array gets the first name.
        names: arrays to read, as far as the file holds them.

    Raises:
        FileNotFoundError: for a missing file.
        ValueError: for anything else, or more than `MAX_ARRAY_BYTES`.
    """
    path, names = Path(path), list(names)
    if not path.exists():
        raise FileNotFoundError(f"there is no file at {path}")
    try:
        data = read_bytes(path, MAX_ARRAY_BYTES)
        if data.startswith(_NPY):
            return {names[0]: _array(data)}
        if not data.startswith(_ZIP):
            raise ValueError(_foreign(data))
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            found = {name: archive.getinfo(f"{name}.npy") for name in names if f"{name}.npy" in archive.NameToInfo}
            size = sum(member.file_size for member in found.values())
            if size > MAX_ARRAY_BYTES:
                raise ValueError(
                    f"its arrays take {size / 2**20:.3g} MB, of which at most {MAX_ARRAY_BYTES / 2**20:.3g} are read"
                )
            return {name: _array(archive.read(member)) for name, member in found.items()}
    except PermissionError:
        raise
    except Exception as error:  # what reads archives raises many types for damaged ones
        raise ValueError(f"{path} cannot be read as arrays (.npz or .npy, plain numbers): {reason(error)}") from error


def load_array(path: str | os.PathLike) -> np.ndarray:
    """Read the array of a `.npy`. Never unpickles.

    Raises:
        FileNotFoundError: for a missing file.
        ValueError: for anything else.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"there is no file at {path}: give the path of a .npy file")
    try:
        with open(check_file(path, MAX_ARRAY_BYTES), "rb") as file:
            if file.read(2) == _ZIP:
                raise ValueError("it is an archive of several arrays")
        return load_arrays(path, ["array"])["array"]
    except ValueError as error:
        raise ValueError(
            f"{path} cannot be read as a .npy file of numbers ({error}): save the one array with numpy.save"
        ) from error


def _array(data: bytes) -> np.ndarray:
    """The array of a whole `.npy`. Raises ValueError unless it holds as many numbers as its header says."""
    file = io.BytesIO(data)
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file, max_header_size=_HEADER_BYTES)
    if dtype.kind not in "fiub":
        raise ValueError(f"it holds {'Python objects' if dtype.hasobject else dtype.name}, not plain numbers")
    if any(size < 0 for size in shape) or math.prod(shape) * dtype.itemsize != len(data) - file.tell():
        raise ValueError(f"its header says shape {reason(shape)}, and it holds {len(data) - file.tell()} bytes")
    return np.load(io.BytesIO(data), allow_pickle=False)


def _foreign(data: bytes) -> str:
    """Why a file holds no arrays."""
    if not data:
        return "it is empty"
    if data.startswith(_PICKLE):
        return "it is a pickle, which is never opened: save the numbers with numpy.savez"
    if b"\0" in data[:4096]:
        return "it is neither"
    return "it is text"
