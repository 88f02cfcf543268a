"""The demo overlay of a trajectory: walking keys and two look knobs, computed from the poses.

It is cosmetic (camera reference, section 6.2): the A/D tiles mean strafing, not the turning of the action strings, so
it is no source of action labels.
"""

from dataclasses import dataclass

import numpy as np
from scipy.spatial.transform import Rotation

from sanawm_env.camera.trajectory import inverse

_SMOOTHING = 0.35


@dataclass(frozen=True, eq=False)
class Overlay:
    """What the overlay shows in each frame.

    Attributes:
        keys: F subsets of "WASD", in that order.
        yaw: (F,) in [-1, 1].
        pitch: (F,) in [-1, 1].
    """

    keys: list[str]
    yaw: np.ndarray
    pitch: np.ndarray


def overlay(c2w: np.ndarray) -> Overlay:
    """The overlay of poses. The last frame repeats the one before it.

    Args:
        c2w: (F, 4, 4), F >= 2.

    Raises:
        ValueError: for fewer poses.
    """
    c2w = np.asarray(c2w, np.float64)
    if len(c2w) < 2:
        raise ValueError(f"an overlay needs two poses or more, got {len(c2w)}")
    motion = inverse(c2w[:-1]) @ c2w[1:]
    strafe, forward = motion[:, 0, 3], motion[:, 2, 3]
    lit = {
        "W": forward > _threshold(forward),
        "A": -strafe > _threshold(strafe),
        "S": -forward > _threshold(forward),
        "D": strafe > _threshold(strafe),
    }
    keys = ["".join(key for key, on in lit.items() if on[frame]) for frame in range(len(motion))]
    yaw, pitch, _ = Rotation.from_matrix(motion[:, :3, :3]).as_euler("YXZ").T
    return Overlay([*keys, keys[-1]], _knob(yaw), _knob(pitch))


def _threshold(displacement: np.ndarray) -> float:
    return max(0.005, 0.3 * np.percentile(np.abs(displacement), 95))


def _knob(angle: np.ndarray) -> np.ndarray:
    target = np.clip(angle / max(np.radians(0.5), np.percentile(np.abs(angle), 95)), -1, 1)
    knob, value = [], 0.0
    for goal in target:
        value += _SMOOTHING * (goal - value)
        knob.append(value)
    return np.array([*knob, value])
