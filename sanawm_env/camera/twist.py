"""Continuous control: a body twist held over a chunk, integrated exactly on SE(3).

A twist is (v_x, v_y, v_z, w_x, w_y, w_z): metres per second along and radians per second about the camera's own axes
(x right, y down, z forward; w_x looks up, w_y turns right, w_z rolls clockwise). Camera reference, section 8.2.
"""

from itertools import accumulate

import numpy as np
from numpy.typing import ArrayLike
from scipy.spatial.transform import RigidTransform

from sanawm_env.camera.dsl import FPS
from sanawm_env.camera.trajectory import orthonormalize
from sanawm_env.system.files import brief

FASTEST = 1e6  # m/s and rad/s


def exp_se3(xi: np.ndarray) -> np.ndarray:
    """Rigid motions (..., 4, 4) float64 of exponential coordinates (..., 6), translation first."""
    return RigidTransform.from_exp_coords(np.roll(xi, 3, axis=-1)).as_matrix()


def hold(start: np.ndarray, twist: ArrayLike, frames: int = 24, fps: float = FPS) -> np.ndarray:
    """Poses after 1, 2, ... frames of a constant twist. Each is one exponential from the start, so errors do not
    accumulate.

    Args:
        start: (4, 4); orthonormalised if it is not quite a rotation.
        twist: (6,) in m/s and rad/s.
        frames: how many.
        fps: frames a second.

    Returns:
        (frames, 4, 4) float64.

    Raises:
        ValueError: for a twist that is not six finite numbers.
    """
    seconds = np.arange(1, frames + 1)[:, None] / fps
    return orthonormalize(start) @ exp_se3(seconds * check_twist(twist))


def ramp(
    start: np.ndarray,
    twist: np.ndarray,
    previous_twist: np.ndarray,
    frames: int = 24,
    ramp_frames: int = 8,
    fps: float = FPS,
) -> np.ndarray:
    """As `hold`, but the twist changes linearly from `previous_twist` to `twist` over the first `ramp_frames`
    frames."""
    previous_twist, twist = check_twist(previous_twist), check_twist(twist)
    progress = np.minimum(1, np.arange(1, frames + 1) / ramp_frames)[:, None]
    increments = exp_se3((previous_twist + (twist - previous_twist) * progress) / fps)
    return np.stack([*accumulate(increments, np.matmul, initial=orthonormalize(start))][1:])


def check_twist(twist: ArrayLike) -> np.ndarray:
    """The twist as (6,) float64.

    Raises:
        ValueError: unless it is six finite numbers up to `FASTEST`.
    """
    try:
        twist = np.asarray(twist, dtype=np.float64)
    except OverflowError:
        twist = np.full(6, np.inf)
    if twist.shape != (6,) or not (np.abs(twist) <= FASTEST).all():
        said = f"a twist is six finite numbers of at most {FASTEST:g} (v_x, v_y, v_z, w_x, w_y, w_z)"
        raise ValueError(f"{said}, got {twist.tolist() if twist.size <= 12 else brief(twist)}")
    return twist
