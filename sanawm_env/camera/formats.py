"""Trajectories in files of other programs, as they are written there. `trajectory.load_trajectory` converts them to
c2w.

    colmap          colmap.github.io/format.html: images and cameras, text or binary; w2c, quaternions w x y z
    nerfstudio      docs.nerf.studio/quickstart/data_conventions.html: transforms.json, also NeRF's and instant-ngp's;
                    c2w, OpenGL axes
    tum             cvg.cit.tum.de/data/datasets/rgbd-dataset/file_formats: time, position, quaternion x y z w; c2w
    kitti           cvlibs.net/datasets/kitti/eval_odometry.php: the 12 numbers of (3, 4), row by row; c2w
    realestate10k   google.github.io/realestate10k/download.html: a URL, then microseconds, fx fy cx cy as parts of
                    width and height, two of distortion, the 12 numbers of (3, 4); w2c
    numpy           .npz with c2w, w2c, extrinsic or extrinsics (w2c, as VGGT writes them) or data (c2w, ViPE's),
                    or .npy

Files may come from anywhere: sizes and counts have limits, and nothing is unpickled. What is wrong is a ValueError that
begins with "it" or names the line.
"""

import logging
import math
import os
import re
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from scipy.spatial.transform import Rotation

from sanawm_env.system.arrays import load_arrays
from sanawm_env.system.files import brief, open_file, read_json, read_text, reason

MAX_POSES = 1_000_000  # 17 hours at 16 a second
MAX_TEXT_BYTES = 256 * 2**20
MAX_JSON_BYTES = 64 * 2**20
MAX_MODEL_BYTES = 16 * 2**30  # of COLMAP's images, which hold all points seen in them; these are passed over
MAX_NUMBER = 1e30  # of any number in a file: its square is a number still
FPS_RANGE = (1e-9, 1e9)
MAX_PIXELS_OF_INTRINSICS = 1e9
QUATERNION_TOLERANCE = 1e-2  # of their length: three decimals are usual in text
_HEAD_BYTES, _LINE_BYTES, _NAME_BYTES, _MOST_PIXELS = 65_536, 2**26, 4096, 1_000_000
_POSE_ARRAYS = {"c2w": "c2w", "w2c": "w2c", "extrinsic": "w2c", "extrinsics": "w2c", "data": "c2w"}
_MODEL_FOLDERS = ("", "sparse/0", "sparse", "colmap/sparse/0")


@dataclass(frozen=True, eq=False)
class WrittenPoses:
    """What a file holds.

    Attributes:
        format: name of the format.
        matrices: (F, 4, 4) float64, NaN where a pose is lost.
        poses: "c2w" or "w2c".
        axes: see `trajectory.AXES`.
        intrinsics: (F, 3, 3) float64, or None.
        size: (width, height) of the images of the intrinsics; None where the file does not say.
        fps: poses a second; None where the file does not say.
        where: (F,) growing, the place of each pose in an even sequence; None for 0, 1, 2, ...
        first: time of the first pose on the file's clock: seconds of time stamps, or frames by the numbers in names of
            images; None where it has no clock.
        step: what lies between two places on that clock.
    """

    format: str
    matrices: np.ndarray
    poses: str = "c2w"
    axes: str = "opencv"
    intrinsics: np.ndarray | None = None
    size: tuple[float, float] | None = None
    fps: float | None = None
    where: np.ndarray | None = None
    first: float | None = None
    step: float = 1.0


def read_poses(path: Path, format: str | None = None, clip: str | None = None) -> WrittenPoses:
    """Read a file or folder.

    Args:
        path: the file or folder.
        format: its format; None to recognise it by content.
        clip: of the images of several clips, those whose names begin with this.

    Raises:
        ValueError: in one sentence that names the file.
        OSError: as the system says.
    """
    try:
        format = format or _detect(path)
        # what it raises names the file already
        arrays = load_arrays(path, _ARRAYS) if format == "numpy" and not path.is_dir() else None
    except ValueError as error:
        raise _named(path, error) from error
    try:
        return _from_arrays(arrays) if arrays is not None else _READERS[format](path, clip)
    except (ValueError, OverflowError) as error:
        raise _named(path, error) from error


def _named(path: Path, error: Exception) -> ValueError:
    said = reason(error, 400)
    return ValueError(said if said.startswith(str(path)) else f"{path} cannot be read as a trajectory: {said}")


def is_pose_folder(path: Path) -> bool:
    """Whether a folder holds a COLMAP model, transforms.json or trajectory.npz."""
    try:
        return path.is_dir() and bool(_detect(path))
    except ValueError:
        return False


def _detect(path: Path) -> str:
    """The format of a file or folder."""
    if path.is_dir():
        if _model_folder(path) is not None:
            return "colmap"
        if (path / "transforms.json").exists():
            return "nerfstudio"
        if (path / "trajectory.npz").exists():
            return "numpy"
        raise ValueError(
            "it is a folder without images.bin, images.txt (COLMAP), transforms.json (nerfstudio) or trajectory.npz"
        )
    with open_file(path) as file:
        head = file.read(_HEAD_BYTES)
    if path.name in ("images.bin", "cameras.bin", "images.txt", "cameras.txt"):
        return "colmap"
    if head[:1] in (b"\x93", b"\x80", b"") or head.startswith(b"PK") or b"\0" in head:
        return "numpy"  # which says what else it may be
    text = head.decode("utf-8-sig", "replace").lstrip()
    if text[:1] in ("{", "["):
        return "nerfstudio"
    lines = (line.split() for line in text.splitlines())
    words = next((line for line in lines if line and not line[0].startswith("#")), [])
    if len(words) == 19 or (len(words) == 1 and "://" in words[0]):
        return "realestate10k"
    if len(words) >= 10 and all(map(_is_number, words[:9])) and not _is_number(words[9]):
        return "colmap"
    if len(words) in (8, 12):
        return "tum" if len(words) == 8 else "kitti"
    raise ValueError(
        "it is text of an unknown format; known are lines of 8 numbers (TUM), 12 (KITTI) or 19 (RealEstate10K), "
        "COLMAP's images.txt, and transforms.json"
    )


# --- lines of numbers ---


def _read_tum(path: Path, clip: str | None) -> WrittenPoses:
    rows = _table(read_text(path, MAX_TEXT_BYTES), 8)
    return WrittenPoses("tum", _from_quaternions(rows[:, 4:], rows[:, 1:4]), **_rate(rows[:, 0]))


def _read_kitti(path: Path, clip: str | None) -> WrittenPoses:
    return WrittenPoses("kitti", four_by_four(_table(read_text(path, MAX_TEXT_BYTES), 12).reshape(-1, 3, 4)))


def _read_realestate10k(path: Path, clip: str | None) -> WrittenPoses:
    first, _, rest = read_text(path, MAX_TEXT_BYTES).partition("\n")
    rows = _table(rest if "://" in first else f"{first}\n{rest}", 19, first=1 + ("://" in first))
    if np.any(rows[:, 5:7] != 0):
        _warn(path, "the distortion of its camera is left out")
    matrices = four_by_four(rows[:, 7:].reshape(-1, 3, 4))
    intrinsics = _matrices(rows[:, 1:5])
    return WrittenPoses("realestate10k", matrices, "w2c", intrinsics=intrinsics, size=(1, 1), **_rate(rows[:, 0] / 1e6))


def _table(text: str, columns: int, first: int = 1) -> np.ndarray:
    """Numbers (F, columns) of the lines that are neither empty nor comments. first: number of the first line."""
    rows: list[list[float]] = []
    for number, line in enumerate(text.split("\n"), start=first):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        if len(words) != columns:
            raise ValueError(f"line {number} holds {len(words)} numbers, where this format has {columns}")
        if len(rows) == MAX_POSES:
            raise ValueError(f"it holds more than {MAX_POSES:,} poses")
        rows.append([_number(word, f"line {number}") for word in words])
    if not rows:
        raise ValueError("it holds no poses")
    return np.array(rows)


def _number(word: str, place: str) -> float:
    if not _is_number(word):
        raise ValueError(f"{place} holds {brief(word)}, which is not a number")
    return _bounded(float(word), place)


def _bounded(value: float, place: str) -> float:
    """ValueError for an infinite number, or one that cannot be reckoned with; NaN is a lost pose."""
    if abs(value) > MAX_NUMBER:
        raise ValueError(f"{place} holds {value:g}, which is too large")
    return value


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return "_" not in word


def _rate(seconds: np.ndarray) -> dict[str, Any]:
    """fps, where, first and step of `WrittenPoses` by time stamps (F,)."""
    steps = np.diff(seconds)
    if len(steps) == 0:
        return {}
    if not (steps > 0).all():
        raise ValueError(f"the time stamp of pose {int(np.argmin(steps > 0)) + 1} is not after the one before it")
    usual = float(np.median(steps))
    if steps.max() < 1.5 * usual:  # without gaps the whole tells more than the middle
        usual = float((seconds[-1] - seconds[0]) / len(steps))
    if not FPS_RANGE[0] <= 1 / usual <= FPS_RANGE[1]:
        raise ValueError(f"its time stamps lie {usual:.3g} s apart")
    return {"fps": 1 / usual, "where": (seconds - seconds[0]) / usual, "first": float(seconds[0]), "step": usual}


# --- transforms.json ---


def _read_nerfstudio(path: Path, clip: str | None) -> WrittenPoses:
    whole = read_json(path / "transforms.json" if path.is_dir() else path, MAX_JSON_BYTES)
    frames = whole.get("frames")
    if not isinstance(frames, list) or not frames or not all(isinstance(frame, dict) for frame in frames):
        raise ValueError("it has no list of frames")
    if len(frames) > MAX_POSES:
        raise ValueError(f"it holds more than {MAX_POSES:,} poses")
    names = [str(frame.get("file_path", "")) for frame in frames]
    order = sorted(_of_clip(names, clip), key=lambda i: _natural(names[i]))
    shared = {key: value for key, value in whole.items() if key != "frames"}
    matrices, intrinsics, sizes = [], [], set()
    for i in order:
        matrices.append(_json_matrix(frames[i].get("transform_matrix"), i))
        given, size = _json_intrinsics(shared | frames[i], i)
        intrinsics.append(given)
        sizes.add(size)
    known = len(sizes) == 1 and all(each is not None for each in intrinsics)
    if any(shared.get(key) for key in ("k1", "k2", "k3", "p1", "p2")) and known:
        _warn(path, "the distortion of its camera is left out")
    return WrittenPoses(
        "nerfstudio", four_by_four(np.array(matrices)), "c2w", "opengl",
        np.array(intrinsics) if known else None, sizes.pop() if known else None, **_counted([names[i] for i in order]),
    )  # fmt: skip


def _json_matrix(rows: Any, frame: int) -> list[list[float]]:
    if (
        not isinstance(rows, list)
        or len(rows) not in (3, 4)
        or not all(isinstance(r, list) and len(r) == 4 for r in rows)
    ):
        raise ValueError(f"frame {frame} has no transform_matrix of 4 rows of 4 numbers")
    return [[_json_number(value, f"the transform_matrix of frame {frame}") for value in row] for row in rows][:3]


def _json_intrinsics(fields: dict[str, Any], frame: int) -> tuple[np.ndarray | None, tuple[float, float] | None]:
    """The 3x3 matrix and the size of its image: pixels, or a square of side 1 where only an angle is given."""
    if "FISHEYE" in str(fields.get("camera_model", "")).upper() or fields.get("is_fisheye"):
        return None, None
    names = ("fl_x", "fl_y", "cx", "cy", "w", "h", "camera_angle_x", "camera_angle_y")
    given = {
        name: _json_number(fields[name], f"{name} of frame {frame}") for name in names if fields.get(name) is not None
    }
    width, height = given.get("w", 1.0), given.get("h", 1.0)
    if ("w" in given) != ("h" in given) or not (0 < width <= _MOST_PIXELS and 0 < height <= _MOST_PIXELS):
        raise ValueError(f"w and h of frame {frame} must be a width and a height in pixels")
    if "fl_x" in given:
        if "w" not in given and not ("cx" in given and "cy" in given):
            return None, None
        fx = given["fl_x"]
    elif 0 < given.get("camera_angle_x", 0) < math.pi:
        fx = width / 2 / math.tan(given["camera_angle_x"] / 2)
    else:
        return None, None
    fy = given.get("fl_y", fx)
    if "fl_y" not in given and "fl_x" not in given and 0 < given.get("camera_angle_y", 0) < math.pi:
        fy = height / 2 / math.tan(given["camera_angle_y"] / 2)
    vector = np.array([fx, fy, given.get("cx", width / 2), given.get("cy", height / 2)])
    size = None if "fl_x" in given and "w" not in given else (width, height)
    return _matrices(vector[None])[0], size


def _json_number(value: Any, place: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{place} holds {brief(value)}, which is not a number")
    try:
        return _bounded(float(value), place)
    except OverflowError:
        raise ValueError(f"{place} holds {brief(value)}, which is too large") from None


# --- COLMAP ---


class _Model(NamedTuple):
    """A camera model. straight: whether its image is a pinhole's, once distortion is left out; None for exactly."""

    number: int
    parameters: int
    focals: int
    straight: bool | None


_MODELS = {
    "SIMPLE_PINHOLE": _Model(0, 3, 1, None), "PINHOLE": _Model(1, 4, 2, None), "SIMPLE_RADIAL": _Model(2, 4, 1, True),
    "RADIAL": _Model(3, 5, 1, True), "OPENCV": _Model(4, 8, 2, True), "OPENCV_FISHEYE": _Model(5, 8, 2, False),
    "FULL_OPENCV": _Model(6, 12, 2, True), "FOV": _Model(7, 5, 2, False),
    "SIMPLE_RADIAL_FISHEYE": _Model(8, 4, 1, False), "RADIAL_FISHEYE": _Model(9, 5, 1, False),
    "THIN_PRISM_FISHEYE": _Model(10, 12, 2, False),
    "RAD_TAN_THIN_PRISM_FISHEYE": _Model(11, 16, 2, False), "SIMPLE_DIVISION": _Model(12, 4, 1, True),
    "DIVISION": _Model(13, 5, 2, True), "SIMPLE_FISHEYE": _Model(14, 3, 1, False), "FISHEYE": _Model(15, 4, 2, False),
    "EUCM": _Model(16, 6, 2, False), "EQUIRECTANGULAR": _Model(17, 2, 0, False),
}  # fmt: skip
_NAMES = {model.number: name for name, model in _MODELS.items()}


class _Camera(NamedTuple):
    model: str
    size: tuple[int, int]
    parameters: tuple[float, ...]


class _Image(NamedTuple):
    name: str
    numbers: tuple[float, ...]  # w x y z of the quaternion, then the translation
    camera: int


def _model_folder(path: Path) -> Path | None:
    """The folder of a COLMAP model: this one, or a usual place within it."""
    folders = [path / name for name in _MODEL_FOLDERS]
    return next((f for f in folders if (f / "images.bin").exists() or (f / "images.txt").exists()), None)


def _read_colmap(path: Path, clip: str | None) -> WrittenPoses:
    folder = _model_folder(path) if path.is_dir() else path.parent
    if folder is None:
        raise ValueError("it is a folder without images.bin or images.txt")
    binary = path.suffix == ".bin" if path.is_file() else (folder / "images.bin").exists()
    suffix = ".bin" if binary else ".txt"
    file = path if path.is_file() and not path.name.startswith("cameras.") else folder / f"images{suffix}"
    with open_file(file, MAX_MODEL_BYTES) as opened:
        images = list((_binary_images if binary else _text_images)(opened))
    if not images:
        raise ValueError("it holds no poses")
    images = [images[i] for i in _of_clip([image.name for image in images], clip)]
    images.sort(key=lambda image: _natural(image.name))
    numbers = np.array([image.numbers for image in images])
    if (np.abs(numbers) > MAX_NUMBER).any():  # NaN is a lost pose
        raise ValueError(f"pose {int(np.argmax((np.abs(numbers) > MAX_NUMBER).any(1)))} holds numbers too large")
    matrices = _from_quaternions(numbers[:, [1, 2, 3, 0]], numbers[:, 4:])
    cameras: dict[int, _Camera] = {}
    if (file := folder / f"cameras{suffix}").exists():
        with open_file(file, MAX_TEXT_BYTES) as opened:
            cameras = dict((_binary_cameras if binary else _text_cameras)(opened))
    intrinsics, size = _colmap_intrinsics(path, [cameras.get(image.camera) for image in images])
    counted = _counted([image.name for image in images])
    return WrittenPoses("colmap", matrices, "w2c", "opencv", intrinsics, size, **counted)


def _colmap_intrinsics(
    path: Path, cameras: list[_Camera | None]
) -> tuple[np.ndarray | None, tuple[float, float] | None]:
    """Matrices (F, 3, 3) and the size of their images; None where there is no pinhole, or there are several sizes."""
    known = [camera for camera in cameras if camera is not None]
    if len(known) < len(cameras):
        return None, None
    models = sorted({camera.model for camera in known})
    bent = [model for model in models if _MODELS[model].straight is False]
    if bent:
        _warn(path, f"{', '.join(bent)} cameras are no pinholes, their intrinsics are left out: undistort the images")
        return None, None
    if len({camera.size for camera in known}) > 1:
        _warn(path, "its cameras have images of several sizes, so that their intrinsics are left out")
        return None, None
    if any(
        _MODELS[camera.model].straight and any(camera.parameters[_MODELS[camera.model].focals + 2 :])
        for camera in known
    ):
        _warn(path, f"the distortion of its cameras ({', '.join(models)}) is left out: undistort the images")
    vectors = np.array([_pinhole(camera) for camera in known])
    return _matrices(vectors), known[0].size


def _pinhole(camera: _Camera) -> tuple[float, ...]:
    """fx, fy, cx, cy."""
    focals = _MODELS[camera.model].focals
    return (camera.parameters[0], *camera.parameters[focals - 1 : focals + 2])


def _check_camera(model: str, width: int, height: int, parameters: Sequence[float]) -> _Camera:
    if not (1 <= width <= _MOST_PIXELS and 1 <= height <= _MOST_PIXELS):
        raise ValueError(
            f"its cameras have an image of {width} x {height} pixels, where 1 to {_MOST_PIXELS:,} are accepted"
        )
    if not np.isfinite(parameters).all():
        raise ValueError("its cameras hold numbers that are not finite")
    return _Camera(model, (width, height), tuple(parameters))


def _text_lines(file: BinaryIO, name: str) -> Iterator[tuple[int, str]]:
    """Lines with their numbers, without comments."""
    for number in range(1, 2**62):
        line = file.readline(_LINE_BYTES)
        if not line:
            return
        if len(line) == _LINE_BYTES:
            raise ValueError(f"line {number} of {name} is longer than any of COLMAP's")
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
        except UnicodeDecodeError:
            raise ValueError(f"line {number} of {name} is not text in UTF-8") from None
        if not text.startswith("#"):
            yield number, text


def _text_images(file: BinaryIO) -> Iterator[_Image]:
    """Two lines an image: the pose, then the points seen in it, three numbers each, or an empty line."""
    lines = _text_lines(file, "images.txt")
    for number, line in islice(((n, text) for n, text in lines if text.strip()), MAX_POSES):
        words = line.split(maxsplit=9)
        if len(words) < 10:
            raise ValueError(f"line {number} of images.txt holds {len(words)} fields, where an image has 10")
        numbers = tuple(_number(word, f"line {number} of images.txt") for word in words[1:8])
        camera = _number(words[8], f"line {number} of images.txt")
        number, points = next(lines, (number + 1, ""))
        if len(points.split()) % 3:
            raise ValueError(
                f"line {number} of images.txt holds no points: each image has two lines, the second may be empty"
            )
        yield _Image(words[9].strip(), numbers, int(camera) if math.isfinite(camera) else -1)


def _text_cameras(file: BinaryIO) -> Iterator[tuple[int, _Camera]]:
    for number, line in islice(_text_lines(file, "cameras.txt"), MAX_POSES):
        words = line.split()
        if not words:
            continue
        place = f"line {number} of cameras.txt"
        model = _MODELS.get(words[1]) if len(words) > 1 else None
        if model is None or len(words) != 4 + model.parameters:
            raise ValueError(f"{place} must hold a camera: number, known model, width, height, parameters")
        given = [_number(word, place) for word in (words[0], *words[2:])]
        if not np.isfinite(given).all():
            raise ValueError(f"{place} holds numbers that are not finite")
        yield int(given[0]), _check_camera(words[1], int(given[1]), int(given[2]), given[3:])


def _binary_images(file: BinaryIO) -> Iterator[_Image]:
    """A count; then for each image its number, seven doubles, the camera's number, the name, and points of 24 bytes."""
    size = os.fstat(file.fileno()).st_size
    count = _counted_in(file, "images.bin", least=73)
    for _ in range(count):
        _, *numbers, camera = _unpack(file, "images.bin", "<I7dI")
        name = bytearray()
        while (byte := file.read(1)) not in (b"\0", b""):
            name += byte
            if len(name) > _NAME_BYTES:
                raise ValueError("images.bin holds a name of an image that does not end")
        (points,) = _unpack(file, "images.bin", "<Q")
        if points * 24 > size - file.tell():
            raise ValueError("images.bin ends in the middle of an image")
        file.seek(points * 24, os.SEEK_CUR)
        yield _Image(name.decode("utf-8", "replace"), tuple(numbers), camera)
    if file.tell() != size:
        raise ValueError(f"images.bin holds more than the {count} images that it promises")


def _binary_cameras(file: BinaryIO) -> Iterator[tuple[int, _Camera]]:
    for _ in range(_counted_in(file, "cameras.bin", least=24)):
        number, model, width, height = _unpack(file, "cameras.bin", "<IiQQ")
        if model not in _NAMES:
            raise ValueError(f"cameras.bin holds a camera of the unknown model {model}")
        parameters = _unpack(file, "cameras.bin", f"<{_MODELS[_NAMES[model]].parameters}d")
        yield number, _check_camera(_NAMES[model], width, height, parameters)


def _counted_in(file: BinaryIO, name: str, least: int) -> int:
    """The count that a binary file begins with. Raises ValueError where the file has no room for so many entries of
    `least` bytes."""
    (count,), size = _unpack(file, name, "<Q"), os.fstat(file.fileno()).st_size
    if count > MAX_POSES or count * least > size:
        raise ValueError(f"{name} promises {count:,} entries and holds {size:,} bytes")
    return count


def _unpack(file: BinaryIO, name: str, layout: str) -> tuple[Any, ...]:
    data = file.read(struct.calcsize(layout))
    if len(data) < struct.calcsize(layout):
        raise ValueError(f"{name} is cut off")
    return struct.unpack(layout, data)


# --- arrays ---

_ARRAYS = (*_POSE_ARRAYS, "intrinsics", "intrinsic", "fps", "inds")


def _read_episode(path: Path, clip: str | None) -> WrittenPoses:
    return _from_arrays(load_arrays(path / "trajectory.npz", _ARRAYS))


def _from_arrays(arrays: dict[str, np.ndarray]) -> WrittenPoses:
    names = [name for name in _POSE_ARRAYS if name in arrays]
    if not names:
        raise ValueError("it has no array named c2w, w2c, extrinsic, extrinsics or data")
    matrices = arrays[names[0]].astype(np.float64)
    if matrices.ndim == 4 and len(matrices) == 1:  # a batch of one, as VGGT has it
        matrices = matrices[0]
    if matrices.ndim != 3 or matrices.shape[1:] not in ((3, 4), (4, 4)) or not 0 < len(matrices) <= MAX_POSES:
        raise ValueError(
            f"a trajectory must have the shape (frames, 4, 4) or (frames, 3, 4) with at least one frame, and at most "
            f"{MAX_POSES:,}, got {matrices.shape}"
        )
    intrinsics = next((arrays[name] for name in ("intrinsics", "intrinsic") if name in arrays), None)
    if intrinsics is not None:
        intrinsics = intrinsics.astype(np.float64)
        intrinsics = intrinsics[0] if intrinsics.ndim == 4 and len(intrinsics) == 1 else intrinsics
        if intrinsics.shape != (len(matrices), 3, 3):
            raise ValueError(f"intrinsics in it must have the shape ({len(matrices)}, 3, 3), got {intrinsics.shape}")
        _check_intrinsics(intrinsics.reshape(-1, 9), intrinsics[:, (0, 1), (0, 1)])
    fps, where, first = arrays.get("fps"), None, None
    if fps is not None and not (fps.size == 1 and FPS_RANGE[0] <= fps.item() <= FPS_RANGE[1]):
        raise ValueError(f"fps in it must be one positive number, got {reason(fps)}")
    if names[0] == "data" and "inds" in arrays:
        where = arrays["inds"].astype(np.float64).ravel()
        if len(where) != len(matrices) or not (np.isfinite(where).all() and (np.diff(where) > 0).all()):
            raise ValueError(f"inds in it must be {len(matrices)} numbers of frames that grow")
        first = float(where[0])
        where = where - where[0]
    kind = _POSE_ARRAYS[names[0]]
    return WrittenPoses(
        "numpy",
        four_by_four(matrices),
        kind,
        intrinsics=intrinsics,
        fps=None if fps is None else float(fps.item()),
        where=where,
        first=first,
    )


# --- shared ---


def four_by_four(matrices: np.ndarray) -> np.ndarray:
    """Poses (F, 4, 4) of (F, 3, 4) or (F, 4, 4).

    Raises:
        ValueError: where translations are in the last row.
    """
    if matrices.shape[1] == 4:
        if matrices[:, 3, :3].any() and not matrices[:, :3, 3].any():
            raise ValueError("its translations are in the last rows: transpose its matrices")
        return matrices
    bottom = np.broadcast_to(np.array([[[0.0, 0.0, 0.0, 1.0]]]), (len(matrices), 1, 4))
    return np.concatenate((matrices, bottom), axis=1)


def _from_quaternions(xyzw: np.ndarray, translations: np.ndarray) -> np.ndarray:
    """Poses (F, 4, 4), NaN where a number is; ValueError for quaternions that are not of length 1."""
    length = np.linalg.norm(xyzw, axis=1)
    wrong = np.abs(length - 1) > QUATERNION_TOLERANCE
    if wrong.any():
        first = int(np.argmax(wrong))
        raise ValueError(f"the quaternion of pose {first} must have the length 1, got {length[first]:.3g}")
    whole = ~(np.isnan(xyzw).any(1) | np.isnan(translations).any(1))
    result = np.full((len(xyzw), 4, 4), np.nan)
    result[whole] = np.eye(4)
    result[whole, :3, :3] = Rotation.from_quat(xyzw[whole]).as_matrix() if whole.any() else 0
    result[whole, :3, 3] = translations[whole]
    return result


def _matrices(vectors: np.ndarray) -> np.ndarray:
    """3x3 matrices (F, 3, 3) of fx, fy, cx, cy (F, 4); ValueError unless focal lengths are positive."""
    _check_intrinsics(vectors, vectors[:, :2])
    result = np.zeros((len(vectors), 3, 3))
    result[:, (0, 1, 0, 1), (0, 1, 2, 2)] = vectors
    result[:, 2, 2] = 1
    return result


def _check_intrinsics(numbers: np.ndarray, focals: np.ndarray) -> None:
    if not (np.abs(numbers) <= MAX_PIXELS_OF_INTRINSICS).all() or (focals <= 1 / MAX_PIXELS_OF_INTRINSICS).any():
        raise ValueError("its intrinsics must be finite, with positive focal lengths")


def _natural(name: str) -> tuple:
    """A key that sorts names as people count: frame_2 before frame_10."""
    parts = re.split(r"([0-9]+)", name)
    numbers = [(len(digits.lstrip("0")), digits.lstrip("0")) for digits in parts[1::2]]
    return ([*map(tuple, zip(parts[::2], [*numbers, (0, "")], strict=True))], name)


def _of_clip(names: Sequence[str], clip: str | None) -> list[int]:
    """Which images belong to a clip: CLIP/00001.jpg, CLIP_00001.jpg, CLIP/frame_00001.png; all of them for None.
    Raises ValueError where there are none."""
    if clip is None:
        return list(range(len(names)))
    pattern = re.compile(
        rf"(?:^|.*[/\\]){re.escape(clip)}(?:\.[0-9A-Za-z]+)?[^0-9A-Za-z]+(?:[A-Za-z]+[^0-9A-Za-z]*)?[0-9]+\.\w+"
    )
    found = [i for i, name in enumerate(names) if pattern.fullmatch(name)]
    if not found:
        raise ValueError(
            f"it holds no images of {clip}, whose names would be like {clip}/00001.jpg or {clip}_00001.jpg"
        )
    return found


def _counted(names: Sequence[str]) -> dict[str, Any]:
    """`where`, `first` and `step` of `WrittenPoses` from the numbers in sorted names of images, so that an image
    without a pose leaves a gap; {} for names that do not count frames. They count from 0 where there is a 0, else
    from 1, as FFmpeg does."""
    parts = [re.split(r"([0-9]+)", name) for name in names]
    if any(len(part) < 3 or len(part[-2]) > 15 for part in parts) or len({(*p[:-2], p[-1]) for p in parts}) > 1:
        return {}
    numbers = np.array([int(part[-2]) for part in parts])
    steps = np.diff(numbers)
    if len(steps) == 0 or (steps <= 0).any():
        return {}
    step = int(np.gcd.reduce(steps))
    where = (numbers - numbers[0]) // step
    if where[-1] >= 2 * len(where):
        return {}
    return {"where": where.astype(np.float64), "first": float(max(0, numbers[0] - 1)), "step": float(step)}


def _warn(path: Path, said: str) -> None:
    logging.getLogger(__name__).warning("%s: %s.", path, said)


_READERS: dict[str, Callable[[Path, str | None], WrittenPoses]] = {
    "colmap": _read_colmap, "nerfstudio": _read_nerfstudio, "tum": _read_tum, "kitti": _read_kitti,
    "realestate10k": _read_realestate10k, "numpy": _read_episode,
}  # fmt: skip
FORMATS = tuple(_READERS)
