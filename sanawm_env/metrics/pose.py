"""Camera errors RotErr, TransErr and CamMC between a commanded and an estimated trajectory.

SANA-WM-Bench, as written down in the camera reference, section 7.2. Poses are camera-to-world (N, 4, 4); the estimate
is aligned by one similarity, its rotation from the orientations alone. The errors cannot see a global scale or a
mirrored translation: look at `Alignment.scale` as well.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Alignment:
    """The similarity from the ground truth's world to the estimate's: rotation (3, 3), scale, translation (3,)."""

    rotation: np.ndarray
    scale: float
    translation: np.ndarray


@dataclass(frozen=True)
class PoseErrors:
    """Means over `frames` poses: rotation in degrees, translation in ground-truth units, Frobenius norm of [R|t]."""

    rot_err_deg: float
    trans_err: float
    cam_mc: float
    scale: float
    frames: int


def relative(poses: np.ndarray) -> np.ndarray:
    """Poses (N, 4, 4) as float64 seen from the first one."""
    poses = np.asarray(poses, np.float64)
    return np.linalg.solve(poses[0], poses)


def align(truth: np.ndarray, estimate: np.ndarray) -> Alignment:
    """Fit the similarity between two trajectories of the same length (N, 4, 4)."""
    r_truth, c_truth = _split(truth)
    r_estimate, c_estimate = _split(estimate)
    u, _, vt = np.linalg.svd((r_truth @ r_estimate.mT).mean(0))
    a, b = -c_estimate, -(r_estimate @ r_truth.mT @ c_truth[..., None])[..., 0]
    a_mean, b_mean = a.mean(0), b.mean(0)
    scale = 1.0
    if len(a) > 1:
        scale = ((a - a_mean) * (b - b_mean)).mean() / max(((a - a_mean) ** 2).mean(), 1e-9)
    return Alignment(vt.T @ u.T, float(scale), b_mean - scale * a_mean)


def apply(alignment: Alignment, estimate: np.ndarray) -> np.ndarray:
    """The estimate (N, 4, 4) brought into the ground truth's world, float64."""
    rotation, centre = _split(estimate)
    aligned = np.tile(np.eye(4), (len(rotation), 1, 1))
    aligned[:, :3, :3] = alignment.rotation.T @ rotation
    aligned[:, :3, 3] = (alignment.scale * centre - alignment.translation) @ alignment.rotation
    return aligned


def pose_errors(truth: np.ndarray, estimate: np.ndarray) -> PoseErrors:
    """Errors of an estimate against the ground truth, both (N, 4, 4) and already relative; aligned here.

    Raises ValueError for other or different shapes.
    """
    truth, estimate = np.asarray(truth, np.float64), np.asarray(estimate, np.float64)
    if truth.shape != estimate.shape or truth.ndim != 3 or truth.shape[1:] != (4, 4) or len(truth) == 0:
        raise ValueError(f"two trajectories of one shape (N, 4, 4) are compared, got {truth.shape}, {estimate.shape}")
    alignment = align(truth, estimate)
    aligned = apply(alignment, estimate)
    cosine = ((truth[:, :3, :3] * aligned[:, :3, :3]).sum((1, 2)) - 1) / 2
    difference = truth[:, :3] - aligned[:, :3]
    return PoseErrors(
        rot_err_deg=float(np.degrees(np.arccos(np.clip(cosine, -1, 1))).mean()),
        trans_err=float(np.linalg.norm(difference[..., 3], axis=-1).mean()),
        cam_mc=float(np.linalg.norm(difference, axis=(1, 2)).mean()),
        scale=alignment.scale,
        frames=len(truth),
    )


def evaluate(truth: np.ndarray, estimate: np.ndarray, interval: int = 4, skip_first_frame: bool = False) -> PoseErrors:
    """Errors of a whole video: `truth` (F, 4, 4) at every frame, `estimate` (n, 4, 4) at every `interval`-th frame.

    Both are cut to the common length. `skip_first_frame` drops the first sample (a refined video does not have it).
    ValueError where no frame is left.
    """
    start = int(skip_first_frame)
    truth, estimate = np.asarray(truth)[::interval][start:], np.asarray(estimate)[start:]
    frames = min(len(truth), len(estimate))
    if frames == 0:
        raise ValueError("no sampled frame is left to compare")
    return pose_errors(relative(truth[:frames]), relative(estimate[:frames]))


def _split(poses: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return poses[:, :3, :3], poses[:, :3, 3]
