"""Trajectories given as poses: checked, brought to another rate, made relative, and cut into frames and chunks.

Camera reference, sections 1, 3 and 6. Poses are camera-to-world (..., 4, 4), OpenCV axes, metres.
"""

import math

import numpy as np
from scipy.spatial.transform import Rotation, Slerp

MAX_POSES = 1_000_000  # 17 hours at 16 a second
ROTATION_TOLERANCE = 1e-3  # float32 trajectories that were integrated for a minute stay well inside


def check_trajectory(c2w: np.ndarray) -> np.ndarray:
    """The trajectory (F, 4, 4) as float64, F >= 1; frame 0 need not be the identity.

    Raises TypeError for anything but numbers, ValueError for another shape, values that are not finite, a bottom row
    that is not (0, 0, 0, 1), or a rotation that is not orthonormal with determinant +1.
    """
    c2w = np.asarray(c2w)
    if c2w.dtype.kind not in "fiu":
        raise TypeError(f"a trajectory must hold real numbers, got dtype {c2w.dtype}")
    if c2w.ndim != 3 or c2w.shape[1:] != (4, 4) or len(c2w) == 0:
        raise ValueError(f"a trajectory must have the shape (frames, 4, 4) with at least one frame, got {c2w.shape}")
    c2w = c2w.astype(np.float64)
    _require(np.all(np.isfinite(c2w), axis=(1, 2)), "holds values that are not finite")
    _require(np.abs(c2w[:, 3] - (0, 0, 0, 1)).max(1) <= 1e-5, "has a bottom row that is not (0, 0, 0, 1)")
    error = np.abs(_gram(c2w) - np.eye(3)).max((1, 2))
    _require(error <= ROTATION_TOLERANCE, "is not a rigid pose: its 3x3 part is not orthonormal")
    _require(np.linalg.det(c2w[:, :3, :3]) > 0, "is mirrored: its 3x3 part must have determinant +1")
    return c2w


def inverse(c2w: np.ndarray) -> np.ndarray:
    """Rigid inverse `[R^T | -R^T t]` of poses (..., 4, 4), same dtype."""
    result = np.zeros_like(c2w)
    result[..., :3, :3] = np.swapaxes(c2w[..., :3, :3], -1, -2)
    result[..., :3, 3] = -(result[..., :3, :3] @ c2w[..., :3, 3, None])[..., 0]
    result[..., 3, 3] = 1
    return result


def relative_to_first(c2w: np.ndarray) -> np.ndarray:
    """Poses (F, 4, 4) seen from the first camera: the first is the exact identity."""
    relative = inverse(c2w[0]) @ c2w
    relative[0] = np.eye(4)
    return relative


def resample(c2w: np.ndarray, fps: float, target: float) -> tuple[np.ndarray, np.ndarray]:
    """The same movement at another rate: poses (F, 4, 4) that follow each other `fps` times a second become poses
    (G, 4, 4) at `target` a second, and where each lies among the given ones (G,), between 0 and F - 1.

    Positions are interpolated linearly, rotations along the shortest way. The first and the last pose are kept; the
    last step may be a shorter one. Raises ValueError for what would be more than `MAX_POSES`.
    """
    steps = (len(c2w) - 1) * target / fps
    if not 0 <= steps < MAX_POSES:
        raise ValueError(
            f"{len(c2w)} poses at {fps:g} a second last for {(len(c2w) - 1) / fps:.3g} s, which are over {MAX_POSES:,} "
            f"poses at {target:g} a second"
        )
    where = np.minimum(np.arange(math.ceil(steps - 1e-6) + 1) * fps / target, len(c2w) - 1)
    if len(c2w) == 1:
        return c2w, where
    here = np.arange(len(c2w))
    result = np.tile(np.eye(4), (len(where), 1, 1))
    result[:, :3, :3] = Slerp(here, Rotation.from_matrix(c2w[:, :3, :3]))(where).as_matrix()
    result[:, :3, 3] = np.stack([np.interp(where, here, column) for column in c2w[:, :3, 3].T], axis=-1)
    return result, where


def whole_chunks(c2w: np.ndarray, n: int) -> np.ndarray:
    """The poses after the first, the last one repeated until they fill whole chunks of n frames. ValueError for a
    single pose, which is no movement."""
    if len(c2w) < 2:
        raise ValueError("The camera path has a single pose; give at least one frame of movement.")
    poses = c2w[1:]
    return np.concatenate((poses, np.repeat(poses[-1:], -len(poses) % n, axis=0)))


def orthonormalize(c2w: np.ndarray) -> np.ndarray:
    """The pose (4, 4) with the nearest rotation; left untouched, bit for bit, while it is one within 1e-12."""
    if np.abs(_gram(c2w) - np.eye(3)).max() <= 1e-12:
        return c2w
    u, _, vt = np.linalg.svd(c2w[:3, :3])
    result = np.array(c2w, dtype=np.float64)
    result[:3, :3] = u @ vt
    return result


def snap_frames(frames: int, stride: int, upper_bound: int | None = None) -> int:
    """The nearest length `stride * m + 1` (ties up, the lower neighbour if above `upper_bound`), at least 1."""
    if frames < 1:
        return 1
    lower = (frames - 1) // stride * stride + 1
    if lower == frames:
        return frames
    upper = lower + stride
    nearest = upper if upper - frames <= frames - lower else lower
    return lower if upper_bound is not None and nearest > upper_bound else nearest


def chunk_boundaries(latents: int, chunk: int = 3) -> list[int]:
    """Where chunks of latents begin and end, `[0, ..., latents]`; the remainder goes to the first chunk.

    Fewer latents than one chunk make no chunk: `[0]`.
    """
    return [0, *range(chunk + latents % chunk, latents + 1, chunk)] if latents >= chunk else [0]


def _gram(c2w: np.ndarray) -> np.ndarray:
    rotation = c2w[..., :3, :3]
    return np.swapaxes(rotation, -1, -2) @ rotation


def _require(good: np.ndarray, problem: str) -> None:
    """Name the first pose that is not good."""
    if not good.all():
        raise ValueError(f"pose {int(np.argmin(good))} of the trajectory {problem}")
