"""Arrays in files that somebody else may have written: `.npz` and `.npy`, plain numbers, never unpickled, and nothing
is made that the file does not hold."""

import io
import math
import os
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from sanawm_env.camera.trajectory import check_trajectory, resample
from sanawm_env.world.files import check_file, read_bytes, reason

MAX_ARRAY_BYTES = 256 * 2**20  # a minute of poses is 0.2 MB
_NPY, _ZIP, _PICKLE = b"\x93NUMPY", b"PK", b"\x80"
_HEADER_BYTES = 10_000  # NumPy's own limit


@dataclass(frozen=True, eq=False)
class Trajectory:
    """A camera path. c2w: (F, 4, 4) float64. intrinsics: (F, 3, 3) float64 in pixels, or None. fps: poses a second,
    None if the file does not say."""

    c2w: np.ndarray
    intrinsics: np.ndarray | None = None
    fps: float | None = None

    def at(self, fps: float) -> "Trajectory":
        """The same movement in so many poses a second, from the first pose to the last; itself where it says nothing
        else. ValueError for what would be over a million poses."""
        if self.fps is None or math.isclose(self.fps, fps, rel_tol=1e-6):
            return self
        c2w, where = resample(self.c2w, self.fps, fps)
        intrinsics = self.intrinsics
        if intrinsics is not None:
            columns = intrinsics.reshape(len(intrinsics), 9).T
            intrinsics = np.stack([np.interp(where, np.arange(len(intrinsics)), column) for column in columns], axis=-1)
            intrinsics = intrinsics.reshape(-1, 3, 3)
        return replace(self, c2w=c2w, intrinsics=intrinsics, fps=float(fps))


def load_arrays(path: str | os.PathLike, names: Iterable[str]) -> dict[str, np.ndarray]:
    """Those of the named arrays that an `.npz` holds; a `.npy` is the first name's. Plain numbers only.

    Never unpickles. Raises FileNotFoundError for a missing file, ValueError for anything else, or more than
    `MAX_ARRAY_BYTES`.
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
            if any(member.flag_bits & 1 for member in found.values()):
                raise ValueError("it is encrypted")
            size = sum(member.file_size for member in found.values())
            if size > MAX_ARRAY_BYTES:
                raise ValueError(f"it takes {size / 2**20:.3g} MB, more than {MAX_ARRAY_BYTES / 2**20:.3g}")
            return {name: _array(archive.read(member)) for name, member in found.items()}
    except PermissionError:
        raise
    except Exception as error:  # what reads archives raises many types for damaged ones
        raise ValueError(f"{path} cannot be read as arrays (.npz or .npy, plain numbers): {reason(error)}") from error


def load_array(path: str | os.PathLike) -> np.ndarray:
    """The one array of a `.npy`, never unpickling. Raises FileNotFoundError; ValueError for anything else."""
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"there is no file {str(path)!r}; give the path of a .npy file")
    try:
        with open(check_file(path, MAX_ARRAY_BYTES), "rb") as file:
            if file.read(2) == _ZIP:
                raise ValueError("it is an archive of several arrays")
        return load_arrays(path, ["array"])["array"]
    except ValueError as error:
        raise ValueError(
            f"{str(path)!r} cannot be read as a .npy file of numbers ({error}): save the one array with numpy.save"
        ) from error


def load_trajectory(path: str | os.PathLike) -> Trajectory:
    """Read a `trajectory.npz`, an npz of SANA-WM-Bench, or a `.npy` holding c2w (F, 4, 4); poses are checked.

    Never unpickles. Raises FileNotFoundError for a missing file, ValueError for any content that is not a trajectory,
    text of other programs among it.
    """
    fields = load_arrays(path, ("c2w", "intrinsics", "fps"))
    if "c2w" not in fields:
        raise ValueError(f"the trajectory {path} has no array named c2w")
    fields = {key: value.astype(np.float64) for key, value in fields.items()}
    try:
        c2w = check_trajectory(fields["c2w"])
    except ValueError as error:
        raise ValueError(f"{path} cannot be read as a trajectory: {error}") from error
    intrinsics, fps = fields.get("intrinsics"), fields.get("fps")
    if intrinsics is not None and (intrinsics.shape != (len(c2w), 3, 3) or not np.isfinite(intrinsics).all()):
        raise ValueError(f"intrinsics in {path} must be finite ({len(c2w)}, 3, 3), got {intrinsics.shape}")
    if fps is not None and not (fps.size == 1 and 0 < fps.item() < np.inf):
        raise ValueError(f"fps in {path} must be one positive number, got {reason(fps)}")
    return Trajectory(c2w, intrinsics, None if fps is None else fps.item())


def _array(data: bytes) -> np.ndarray:
    """The array of a whole `.npy`; ValueError unless its header promises numbers, and as many as there are."""
    file = io.BytesIO(data)
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0), (3, 0)):
        raise ValueError(f"its format {version} is not known")
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file, max_header_size=_HEADER_BYTES)
    if dtype.kind not in "fiub":
        raise ValueError(f"it holds {'Python objects' if dtype.hasobject else dtype.name}, not plain numbers")
    if any(size < 0 for size in shape) or math.prod(shape) * dtype.itemsize != len(data) - file.tell():
        raise ValueError(f"it promises an array of shape {reason(shape)} and holds {len(data) - file.tell()} bytes")
    return np.load(io.BytesIO(data), allow_pickle=False)


def _foreign(data: bytes) -> str:
    """What a file is that holds no arrays."""
    if not data:
        return "it is empty"
    if data.startswith(_PICKLE):
        return "it is a pickle, which is never opened: save the numbers with numpy.savez"
    if b"\0" in data[:4096]:
        return "it is neither"
    return "it is text: convert its poses with numpy.savez(path, c2w=array of shape (F, 4, 4), fps=poses a second)"
