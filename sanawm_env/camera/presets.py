"""Speed presets, workspace limits, and tables of discrete actions. Camera reference, sections 8.3 and 8.4."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import Field
from scipy.spatial.transform import Rotation

from sanawm_env.camera.trajectory import inverse
from sanawm_env.system.files import brief
from sanawm_env.system.settings import check_fields

Positive = Annotated[float, Field(gt=0, le=1e12, allow_inf_nan=False)]
KEY_ORDER = "wsadikjl"
SINGLE_KEYS = ("", *KEY_ORDER)
WALKING_TURNS = (*SINGLE_KEYS, "wa", "wd", "wi", "wk", "sa", "sd")


@dataclass(frozen=True)
class SpeedPreset:
    """Speeds of a full action.

    Attributes:
        planar: m/s, forward and sideways.
        vertical: m/s, up and down.
        turn_deg: degrees/s of turns and looking up and down.
        roll_deg: degrees/s.
    """

    planar: float
    vertical: float
    turn_deg: float
    roll_deg: float

    def scale(self, action: np.ndarray) -> np.ndarray:
        """Twists of actions.

        Args:
            action: (..., 6) in [-1, 1]; values outside are clipped.

        Returns:
            (..., 6) float64 in m/s and rad/s.

        Raises:
            ValueError: for another last axis, or values that are not finite.
        """
        action = np.asarray(action, dtype=np.float64)
        if action.shape[-1:] != (6,) or not np.isfinite(action).all():
            raise ValueError(f"an action is six finite numbers in [-1, 1], got {brief(action.tolist())}")
        turn, roll = math.radians(self.turn_deg), math.radians(self.roll_deg)
        return np.clip(action, -1, 1) * (self.planar, self.vertical, self.planar, turn, turn, roll)


GENTLE = SpeedPreset(planar=0.4, vertical=0.2, turn_deg=9.6, roll_deg=0.0)
STANDARD = SpeedPreset(planar=0.8, vertical=0.4, turn_deg=19.2, roll_deg=4.8)
STRESS = SpeedPreset(planar=1.6, vertical=0.8, turn_deg=38.4, roll_deg=9.6)
PRESETS = {"gentle": GENTLE, "standard": STANDARD, "stress": STRESS}


@dataclass(frozen=True)
class Workspace:
    """Where a world's camera may go, relative to its frame 0 (assumed level).

    Attributes:
        pitch_limit_deg: largest pitch up and down, see `limit_pitch`.
        soft_distance: metres from the start; beyond it a warning is logged.
        hard_distance: metres from the start; beyond it episodes are truncated and poses refused.
        fov_fraction: share of the horizontal field of view that a camera may turn within a chunk, so that chunks
            overlap.

    Raises:
        ValueError: for anything but finite numbers above zero.
    """

    pitch_limit_deg: Positive = 60.0
    soft_distance: Positive = 16.0
    hard_distance: Positive = 64.0
    fov_fraction: Positive = 0.5

    def __post_init__(self):
        check_fields(self)

    def confine(self, start: np.ndarray, poses: np.ndarray) -> np.ndarray:
        """The poses (F, 4, 4) that follow `start` (4, 4), within the pitch limit."""
        return limit_pitch(start, poses, math.radians(self.pitch_limit_deg))

    def limit_rotation(self, twist: np.ndarray, seconds: float, horizontal_fov_deg: float) -> np.ndarray:
        """Slow the rotation of a twist, axis kept, to `fov_fraction` of the field of view.

        Args:
            twist: (6,) in m/s and rad/s.
            seconds: of the chunk.
            horizontal_fov_deg: of the camera.

        Returns:
            (6,).
        """
        most, angle = math.radians(self.fov_fraction * horizontal_fov_deg), np.linalg.norm(twist[3:]) * seconds
        return twist if angle <= most else np.concatenate([twist[:3], twist[3:] * (most / angle)])

    def beyond_hard_distance(self, poses: np.ndarray) -> bool:
        """Whether any of the poses (F, 4, 4) relative to frame 0 lies beyond the hard distance."""
        return bool(distance(poses) > self.hard_distance)

    def beyond_soft_distance(self, poses: np.ndarray) -> bool:
        """Whether any of the poses (F, 4, 4) relative to frame 0 lies beyond the soft distance."""
        return bool(distance(poses) > self.soft_distance)


def distance(poses: np.ndarray) -> float:
    """Largest distance of poses (F, 4, 4) from the origin, metres."""
    return float(np.linalg.norm(poses[..., :3, 3], axis=-1).max())


def pitch_of(poses: np.ndarray) -> np.ndarray:
    """Pitch (...,) in radians of poses (..., 4, 4): elevation of the viewing direction above the horizon of frame 0."""
    x, y, z = np.moveaxis(poses[..., :3, 2], -1, 0)
    return np.arctan2(-y, np.hypot(x, z))


def limit_pitch(start: np.ndarray, poses: np.ndarray, limit: float) -> np.ndarray:
    """Keep the pitch of poses inside +-`limit`.

    Frames before the first one outside are returned as they are. From there on the same body-frame increments are
    applied one by one, and the view is turned back to the limit about the horizontal axis at right angles to it.
    Heading, roll and the increment's translation stay. A camera that starts outside may not go further out. One frame
    must turn less than from the limit to the zenith.

    Args:
        start: (4, 4), the pose before.
        poses: (F, 4, 4).
        limit: radians.

    Returns:
        (F, 4, 4).
    """
    limit = max(limit, abs(float(pitch_of(start))))
    outside = np.abs(pitch_of(poses)) > limit
    if not outside.any():
        return poses
    first = int(np.argmax(outside))
    before = np.concatenate([start[None], poses[:-1]])
    limited, pose = poses.copy(), before[first]
    for frame in range(first, len(poses)):
        pose = _turn_back(pose @ inverse(before[frame]) @ poses[frame], limit)
        limited[frame] = pose
    return limited


def _turn_back(pose: np.ndarray, limit: float) -> np.ndarray:
    """The pose with the view turned, in its vertical plane, to the nearest pitch inside +-`limit`."""
    pitch = float(pitch_of(pose))
    excess = pitch - min(max(pitch, -limit), limit)
    if excess == 0:
        return pose
    x, _, z = pose[:3, 2]
    axis = np.array([z, 0.0, -x]) / math.hypot(x, z)  # horizontal, to the right of the view: positive turns look up
    pose = pose.copy()
    pose[:3, :3] = Rotation.from_rotvec(-excess * axis).as_matrix() @ pose[:3, :3]
    return pose


def multi_binary(keys: Iterable[str]) -> np.ndarray:
    """Held keys as a vector (8,) int8 in the order w s a d i k j l."""
    held = frozenset(keys)
    return np.array([key in held for key in KEY_ORDER], np.int8)


def held_keys(action: np.ndarray) -> frozenset[str]:
    """Keys of a `MultiBinary(8)` action (8,).

    Raises:
        ValueError: for anything but eight zeros and ones.
    """
    action = np.asarray(action)
    if action.shape != (8,) or not np.isin(action, (0, 1)).all():
        raise ValueError(f"a key action is eight zeros and ones in the order {KEY_ORDER}, got {brief(action.tolist())}")
    return frozenset(key for key, down in zip(KEY_ORDER, action, strict=True) if down)
