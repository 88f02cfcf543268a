"""Camera errors RotErr, TransErr and CamMC between a commanded and an estimated trajectory.

SANA-WM-Bench, as written down in the camera reference, section 7.2. Poses are camera-to-world (N, 4, 4). The estimate
is aligned by one similarity, whose rotation comes from the orientations alone. The errors cannot see a global scale or
a mirrored translation: look at `Alignment.scale` too.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Alignment:
    """The similarity from the ground truth's world to the estimate's.

    Attributes:
        rotation: (3, 3).
        scale: a number.
        translation: (3,).
    """

    rotation: np.ndarray
    scale: float
    translation: np.ndarray


@dataclass(frozen=True)
class PoseErrors:
    """Means over poses.

    Attributes:
        rot_err_deg: rotation error in degrees.
        trans_err: translation error in units of the ground truth.
        cam_mc: Frobenius norm of the difference of [R|t].
        scale: of the alignment.
        frames: number of poses.
    """

    rot_err_deg: float
    trans_err: float
    cam_mc: float
    scale: float
    frames: int


def relative(poses: np.ndarray) -> np.ndarray:
    """Poses (N, 4, 4) as float64, seen from the first one."""
    poses = np.asarray(poses, np.float64)
    return np.linalg.solve(poses[0], poses)


def align(truth: np.ndarray, estimate: np.ndarray) -> Alignment:
    """Fit the similarity between two trajectories (N, 4, 4) of the same length."""
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
    """The estimate (N, 4, 4) in the ground truth's world, float64."""
    rotation, centre = _split(estimate)
    aligned = np.tile(np.eye(4), (len(rotation), 1, 1))
    aligned[:, :3, :3] = alignment.rotation.T @ rotation
    aligned[:, :3, 3] = (alignment.scale * centre - alignment.translation) @ alignment.rotation
    return aligned


def pose_errors(truth: np.ndarray, estimate: np.ndarray) -> PoseErrors:
    """Errors of an estimate, which is aligned first.

    Args:
        truth: (N, 4, 4), relative to its first pose.
        estimate: (N, 4, 4), likewise.

    Raises:
        ValueError: for other or different shapes.
    """
    truth, estimate = np.asarray(truth, np.float64), np.asarray(estimate, np.float64)
    if truth.shape != estimate.shape or truth.ndim != 3 or truth.shape[1:] != (4, 4) or len(truth) == 0:
        raise ValueError(f"trajectories must have one shape (N, 4, 4), got {truth.shape} and {estimate.shape}")
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
    """Errors of a whole video. Both trajectories are cut to the common length.

    Args:
        truth: (F, 4, 4), at every frame.
        estimate: (n, 4, 4), at every `interval`-th frame.
        interval: frames between estimated poses.
        skip_first_frame: leave out the first sample, which a refined video does not have.

    Raises:
        ValueError: where no frame is left.
    """
    start = int(skip_first_frame)
    truth, estimate = np.asarray(truth)[::interval][start:], np.asarray(estimate)[start:]
    frames = min(len(truth), len(estimate))
    if frames == 0:
        raise ValueError("no frame is left to compare: give an estimate of at least one sampled frame")
    return pose_errors(relative(truth[:frames]), relative(estimate[:frames]))


def _split(poses: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return poses[:, :3, :3], poses[:, :3, 3]
