"""Camera trajectories: read, checked, resampled, made relative, and cut into chunks.

Camera reference, sections 1, 3 and 6. Poses are camera-to-world (..., 4, 4), OpenCV axes, metres. docs/trajectories.md
lists the files that are read; `formats` reads them.
"""

import logging
import math
import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from scipy.spatial.transform import Rotation, Slerp

from sanawm_env.camera.formats import FORMATS, FPS_RANGE, MAX_POSES, WrittenPoses, read_poses
from sanawm_env.system.files import check_choice, check_number, explaining

AXES = {
    "opencv": np.eye(3),
    "opengl": np.diag([1.0, -1.0, -1.0]),
    "ros": np.array([[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]]),
    "unreal": np.array([[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]]),
}
"""OpenCV's axes (right, down, forward: the columns) in those of a file's cameras. opengl: right, up, backward. ros
(REP 103, a body): forward, left, up. unreal: forward, right, up, which is left-handed: its y is turned round first."""
MAX_GAP = 16  # lost poses in a row that are interpolated, if they are to be: a second at 16
MOST_INVENTED = 100  # poses for each that a file has: over that its gaps are not interpolated
FARTHEST = 1e9  # metres; no single precision that is left there tells one step from the next
ROTATION_TOLERANCE = 1e-3  # float32 trajectories that were integrated for a minute stay well inside


def check_trajectory(c2w: np.ndarray) -> np.ndarray:
    """A trajectory (F, 4, 4) as float64, F >= 1; frame 0 need not be the identity.

    Raises:
        TypeError: for anything but numbers.
        ValueError: for another shape, values that are not finite or beyond `FARTHEST`, a bottom row that is not
            (0, 0, 0, 1), or a rotation that is not orthonormal with determinant +1. The message names the pose.
    """
    c2w = np.asarray(c2w)
    if c2w.dtype.kind not in "fiu":
        raise TypeError(f"a trajectory must hold real numbers, got dtype {c2w.dtype}")
    if c2w.ndim != 3 or c2w.shape[1:] != (4, 4) or len(c2w) == 0:
        raise ValueError(f"a trajectory must have the shape (frames, 4, 4) with at least one frame, got {c2w.shape}")
    c2w = c2w.astype(np.float64)
    _require(np.all(np.isfinite(c2w), axis=(1, 2)), "holds values that are not finite")
    _require(np.abs(c2w).max((1, 2)) <= FARTHEST, f"holds values beyond {FARTHEST:g}")
    _require(np.abs(c2w[:, 3] - (0, 0, 0, 1)).max(1) <= 1e-5, "has a bottom row that is not (0, 0, 0, 1)")
    error = np.abs(_gram(c2w) - np.eye(3)).max((1, 2))
    _require(error <= ROTATION_TOLERANCE, "is not a rigid pose: its 3x3 part is not orthonormal")
    _require(np.linalg.det(c2w[:, :3, :3]) > 0, "is mirrored: its 3x3 part must have determinant +1")
    return c2w


def inverse(c2w: np.ndarray) -> np.ndarray:
    """Rigid inverse `[R^T | -R^T t]` of poses (..., 4, 4); same dtype."""
    result = np.zeros_like(c2w)
    result[..., :3, :3] = np.swapaxes(c2w[..., :3, :3], -1, -2)
    result[..., :3, 3] = -(result[..., :3, :3] @ c2w[..., :3, 3, None])[..., 0]
    result[..., 3, 3] = 1
    return result


def relative_to_first(c2w: np.ndarray) -> np.ndarray:
    """Poses (F, 4, 4) relative to the first camera; the first is exactly the identity."""
    relative = inverse(c2w[0]) @ c2w
    relative[0] = np.eye(4)
    return relative


@dataclass(frozen=True, eq=False)
class Trajectory:
    """A camera path.

    Attributes:
        c2w: (F, 4, 4) float64, camera-to-world, OpenCV axes, metres.
        intrinsics: (F, 3, 3) float64 in pixels of images of `size`; None where the file has none.
        fps: poses a second; None where the file does not say.
        source: format of the file.
        axes: camera axes of the file, a name in `AXES`.
        poses: "c2w" or "w2c", of the file.
        size: (width, height) of the images of `intrinsics`; None where the file does not say.
        metres_per_unit: of positions in the file.
        first: when its first pose was taken, on the clock that the file keeps: seconds of time stamps, or frames by the
            numbers of images; None where it keeps none.
        step: what lies between two poses on that clock.
    """

    c2w: np.ndarray
    intrinsics: np.ndarray | None = None
    fps: float | None = None
    source: str = ""
    axes: str = "opencv"
    poses: str = "c2w"
    size: tuple[float, float] | None = None
    metres_per_unit: float = 1.0
    first: float | None = None
    step: float = 1.0

    def at(self, fps: float) -> "Trajectory":
        """The same movement at `fps` poses a second, from the first pose to the last. A trajectory with that rate, or
        without one, is returned itself.

        Raises:
            ValueError: where this makes over a million poses.
        """
        if self.fps is None or math.isclose(self.fps, fps, rel_tol=1e-6):
            return self
        steps = (len(self.c2w) - 1) * fps / self.fps
        if not 0 <= steps < MAX_POSES:
            raise ValueError(
                f"{len(self.c2w)} poses at {self.fps:g} a second last for {(len(self.c2w) - 1) / self.fps:.3g} s, "
                f"which are over {MAX_POSES:,} poses at {fps:g} a second"
            )
        there = np.minimum(np.arange(math.ceil(steps - 1e-6) + 1) * self.fps / fps, len(self.c2w) - 1)
        return replace(self.between(there), fps=float(fps), first=self.first, step=self.step * self.fps / fps)

    def between(self, places: np.ndarray) -> "Trajectory":
        """Poses at places among its own.

        Args:
            places: (N,), where its own poses lie at 0, 1, ..., F - 1. Places within a thousandth of whole numbers give
                its own poses; others are interpolated, positions by a cubic spline, rotations along the shortest way.

        Returns:
            A trajectory without a rate.
        """
        nearest = np.round(places).astype(int)
        if np.abs(places - nearest).max(initial=0) < 1e-3:
            own = None if self.intrinsics is None else self.intrinsics[nearest]
            return replace(self, c2w=self.c2w[nearest], intrinsics=own, fps=None, first=None)
        return replace(resampled(self, np.arange(len(self.c2w)), places), fps=None, first=None)

    def intrinsics_for(self, width: int, height: int) -> np.ndarray | None:
        """Intrinsics in pixels of images of another size.

        Args:
            width, height: of the images.

        Returns:
            (F, 3, 3), or None where there are none, or where they belong to another aspect ratio (without `size`: to
            another size, by their principal point).
        """
        if self.intrinsics is None:
            return None
        own = self.size or (2 * self.intrinsics[0, 0, 2], 2 * self.intrinsics[0, 1, 2])
        scale = np.array([width / own[0], height / own[1]]) if min(own) > 0 else np.array([np.inf, np.inf])
        if self.size is None:
            return self.intrinsics if np.abs(np.log(scale)).max() < 0.2 else None
        if self.size != (1, 1) and abs(scale[0] / scale[1] - 1) > 0.02:
            return None
        return self.intrinsics * np.array([*scale, 1.0])[:, None]


def load_trajectory(
    path: str | os.PathLike,
    *,
    format: str | None = None,
    axes: str | None = None,
    poses: str | None = None,
    metres_per_unit: float = 1.0,
    fps: float | None = None,
    fill: bool = False,
    clip: str | None = None,
) -> Trajectory:
    """Read a camera trajectory from a file or folder: OpenCV camera-to-world, metres, at an even rate.

    Uneven time stamps, and gaps in the numbers of images' names, are interpolated to an even rate, which is logged.
    Rotations must be orthonormal within `ROTATION_TOLERANCE`, with determinant +1. Nothing is unpickled.

    Args:
        path: a file or folder in a format of `formats.FORMATS`.
        format: the format; None to recognise it by content.
        axes: camera axes of the file, a name in `AXES`; None for the format's own (opengl for transforms.json, opencv
            for others).
        poses: "c2w" or "w2c"; None for the format's own.
        metres_per_unit: of positions in the file.
        fps: poses a second, whatever the file says.
        fill: interpolate up to `MAX_GAP` lost (NaN) poses in a row, and leave out those at both ends.
        clip: of the images of several clips (COLMAP, nerfstudio), those whose names begin with this.

    Raises:
        FileNotFoundError: where there is no file.
        ValueError: for a file that cannot be read as a trajectory (the message says why), or an unknown argument
            value.
    """
    for name, value, known in (("format", format, FORMATS), ("axes", axes, AXES), ("poses", poses, ("c2w", "w2c"))):
        if value is not None:
            check_choice(f"{name} of a trajectory", value, known)
    metres_per_unit = check_number("metres_per_unit", metres_per_unit, 1e-12, 1e12)
    fps = None if fps is None else check_number("fps of a trajectory", fps, *FPS_RANGE)
    if not (path := Path(path)).exists():
        raise FileNotFoundError(f"there is no file at {path}")
    written = read_poses(path, format, clip)
    axes, poses = axes or written.axes, poses or written.poses
    with explaining(f"{path} cannot be read as a trajectory"):
        begin, where, whole = _whole(written, fill)
        c2w = _to_c2w(written.matrices, whole, axes, poses, metres_per_unit)
        intrinsics = None if written.intrinsics is None else written.intrinsics[whole]
        rate = written.fps if fps is None else fps
        first = None if written.first is None else written.first + begin * written.step
        read = Trajectory(
            c2w, intrinsics, rate, written.format, axes, poses, written.size, metres_per_unit, first, written.step
        )
        if len(c2w) < 2 or np.abs(np.diff(where) - 1).max() <= 0.1:
            return read
        if where[-1] >= min(MAX_POSES, MOST_INVENTED * len(c2w)):
            raise ValueError(
                f"its {len(c2w)} poses are far apart: brought to an even rate they would be {where[-1] + 1:,.0f}"
            )
    even = resampled(read, where, np.minimum(np.arange(math.ceil(where[-1] - 1e-6) + 1), where[-1]))
    logging.getLogger(__name__).warning(
        "%s has gaps or an uneven rate: its %d poses are brought to %d.", path, len(c2w), len(even.c2w)
    )
    return even


def _whole(written: WrittenPoses, fill: bool) -> tuple[float, np.ndarray, np.ndarray]:
    """Place of the first valid pose, places of all valid poses counted from it, and which poses (F,) are valid.
    Raises ValueError where poses are lost and may or can not be filled."""
    lost = np.asarray(np.isnan(written.matrices).any((1, 2)))
    where = np.arange(len(lost), dtype=np.float64) if written.where is None else written.where
    if lost.any():
        first = ", ".join(map(str, np.flatnonzero(lost)[:8])) + ", ..." * int(lost.sum() > 8)
        named = f"poses {first} are lost ({lost.sum()} of {len(lost)} are not finite)"
        if lost.all():
            raise ValueError(f"all of its {len(lost)} poses are lost: they are not finite")
        runs = np.diff(np.flatnonzero(~lost)) - 1
        if (runs > MAX_GAP).any():
            raise ValueError(f"{named}, over {MAX_GAP} of them in a row: cut the file there")
        if not fill:
            raise ValueError(f"{named}: --fill (fill=True) interpolates them, up to {MAX_GAP} in a row")
    where = where[~lost]
    return float(where[0]), where - where[0], ~lost


def _to_c2w(matrices: np.ndarray, whole: np.ndarray, axes: str, poses: str, metres_per_unit: float) -> np.ndarray:
    """Checked poses (F, 4, 4), OpenCV c2w in metres, of the valid ones. Errors count poses as the file does."""
    c2w = check_trajectory(np.where(whole[:, None, None], matrices, np.eye(4)))[whole]
    if axes == "unreal":
        mirror = np.diag([1.0, -1, 1, 1])
        c2w = mirror @ c2w @ mirror
    if poses == "w2c":
        c2w = inverse(c2w)
    if axes != "opencv":
        c2w[:, :3, :3] = c2w[:, :3, :3] @ AXES[axes]
    c2w[:, :3, 3] *= metres_per_unit
    _require(np.abs(c2w[:, :3, 3]).max(1) <= FARTHEST, f"lies over {FARTHEST:g} m from the origin")
    return c2w


def resampled(given: Trajectory, here: np.ndarray, there: np.ndarray) -> Trajectory:
    """A trajectory at other places: positions by a cubic spline, rotations along the shortest way, intrinsics linearly.

    Args:
        given: the trajectory.
        here: (F,) growing, the places of its poses.
        there: (N,) growing, the new places.
    """
    from scipy.interpolate import CubicSpline  # takes a tenth of a second to import

    if len(here) == 1:
        return given
    c2w = np.tile(np.eye(4), (len(there), 1, 1))
    c2w[:, :3, :3] = Slerp(here, Rotation.from_matrix(given.c2w[:, :3, :3]))(there).as_matrix()
    c2w[:, :3, 3] = CubicSpline(here, given.c2w[:, :3, 3])(there)
    intrinsics = given.intrinsics
    if intrinsics is not None:
        columns = intrinsics.reshape(-1, 9).T
        intrinsics = np.stack([np.interp(there, here, column) for column in columns], axis=-1).reshape(-1, 3, 3)
    return replace(given, c2w=c2w, intrinsics=intrinsics)


def whole_chunks(c2w: np.ndarray, n: int) -> np.ndarray:
    """The poses after the first, with the last one repeated to fill chunks.

    Args:
        c2w: (F, 4, 4).
        n: poses of a chunk.

    Returns:
        (chunks * n, 4, 4).

    Raises:
        ValueError: for a single pose.
    """
    if len(c2w) < 2:
        raise ValueError("The camera path has a single pose: give at least one frame of movement.")
    poses = c2w[1:]
    return np.concatenate((poses, np.repeat(poses[-1:], -len(poses) % n, axis=0)))


def orthonormalize(c2w: np.ndarray) -> np.ndarray:
    """The pose (4, 4) with the nearest rotation; unchanged, bit for bit, if it is a rotation within 1e-12."""
    if np.abs(_gram(c2w) - np.eye(3)).max() <= 1e-12:
        return c2w
    u, _, vt = np.linalg.svd(c2w[:3, :3])
    result = np.array(c2w, dtype=np.float64)
    result[:3, :3] = u @ vt
    return result


def snap_frames(frames: int, stride: int, upper_bound: int | None = None) -> int:
    """The nearest length `stride * m + 1`, at least 1. Ties go up; above `upper_bound` the lower neighbour is taken."""
    if frames < 1:
        return 1
    lower = (frames - 1) // stride * stride + 1
    if lower == frames:
        return frames
    upper = lower + stride
    nearest = upper if upper - frames <= frames - lower else lower
    return lower if upper_bound is not None and nearest > upper_bound else nearest


def chunk_boundaries(latents: int, chunk: int = 3) -> list[int]:
    """Boundaries `[0, ..., latents]` of chunks of latents. The first chunk takes the remainder. Fewer latents than
    one chunk make no chunk: `[0]`."""
    return [0, *range(chunk + latents % chunk, latents + 1, chunk)] if latents >= chunk else [0]


def _gram(c2w: np.ndarray) -> np.ndarray:
    rotation = c2w[..., :3, :3]
    return np.swapaxes(rotation, -1, -2) @ rotation


def _require(good: np.ndarray, problem: str) -> None:
    """Raise ValueError, which names the first pose that is not good."""
    if not good.all():
        raise ValueError(f"pose {int(np.argmin(good))} of the trajectory {problem}")
