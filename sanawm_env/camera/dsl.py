"""Keyboard control: strings such as `"w-24,wd-12,none-8"` and held keys to camera poses.

Grammar, velocity filter and pose integration follow the camera reference, section 2. One frame lasts 1/16 s, or 1 /
`KeyDynamics.fps`. Keys move on the horizontal plane (no roll, no climbing): w/s forward and back, l/j strafe right and
left, d/a turn right and left, i/k look up and down. All arithmetic is float64. The camera of frame 0 is assumed level.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Annotated

import numpy as np
from pydantic import Field

from sanawm_env.system.files import MAX_DIGITS, brief
from sanawm_env.system.settings import check_fields

FPS = 16
TAU_PRESS, TAU_COAST = 0.45, 1.0  # seconds
MOST_SPEED = 1000.0  # metres or radians a second
Speed = Annotated[float, Field(ge=-MOST_SPEED, le=MOST_SPEED)]
MAX_FRAMES = 1_000_000  # of one action string, 17 hours

# key -> (component of the velocity, sign); components are forward, strafe right, yaw right, pitch up
_EFFECT = {"w": (0, 1), "s": (0, -1), "l": (1, 1), "j": (1, -1), "d": (2, 1), "a": (2, -1), "i": (3, 1), "k": (3, -1)}


@dataclass(frozen=True)
class KeyDynamics:
    """How keys move the camera.

    Attributes:
        translation_speed: metres per frame at full speed.
        rotation_speed_deg: degrees per frame at full speed.
        pitch_limit_deg: largest pitch, up and down.
        smooth: whether velocities are filtered.
        fps: frames a second.

    Raises:
        ValueError: for numbers that are not finite, or out of range.
    """

    translation_speed: float = 0.025
    rotation_speed_deg: float = 0.6
    pitch_limit_deg: Annotated[float, Field(ge=0)] = 60.0
    smooth: bool = True
    fps: Annotated[float, Field(gt=0)] = FPS

    def __post_init__(self):
        check_fields(self)


@dataclass(frozen=True, eq=False)
class KeyState:
    """The state of keyboard control between two frames.

    Attributes:
        pose: (4, 4) float64 camera-to-world.
        pitch: radians, up positive.
        velocity: per frame: forward, strafe right, yaw right, pitch up.
        held: keys of the last frame.
    """

    pose: np.ndarray = field(default_factory=lambda: np.eye(4))
    pitch: Annotated[float, Field(ge=-math.pi / 2, le=math.pi / 2)] = 0.0
    velocity: tuple[Speed, Speed, Speed, Speed] = (0.0, 0.0, 0.0, 0.0)
    held: frozenset[str] = frozenset()

    def at(self, c2w: np.ndarray) -> "KeyState":
        """The state at another pose (4, 4), where the world has stopped the camera."""
        return self if np.allclose(self.pose, c2w, atol=1e-6) else replace(self, pose=c2w)

    def step(self, keys: Iterable[str], dynamics: KeyDynamics = KeyDynamics()) -> "KeyState":
        """The state one frame later.

        Args:
            keys: held keys.
            dynamics: speeds.

        Raises:
            ValueError: for an unknown key.
        """
        held = _checked(keys)
        velocity = _next_velocity(self.velocity, self.held, held, dynamics)
        pose, pitch = _integrate(self.pose, self.pitch, velocity, math.radians(dynamics.pitch_limit_deg))
        return replace(self, pose=pose, pitch=pitch, velocity=velocity, held=held)


def hold_keys(
    state: KeyState, keys: Iterable[str], frames: int = 24, dynamics: KeyDynamics = KeyDynamics()
) -> tuple[KeyState, np.ndarray]:
    """Hold keys for some frames.

    Args:
        state: before the first frame.
        keys: any of wasdijkl, or none.
        frames: how many.
        dynamics: speeds.

    Returns:
        The state after the last frame, and poses (frames, 4, 4) float64.

    Raises:
        ValueError: for an unknown key.
    """
    held, poses = _checked(keys), np.empty((frames, 4, 4))
    for frame in range(frames):
        state = state.step(held, dynamics)
        poses[frame] = state.pose
    return state, poses


def parse_actions(action: str) -> list[tuple[frozenset[str], int]]:
    """Segments of an action string such as `"w-24,wd-12,none-8"`.

    Args:
        action: segments separated by commas, each `keys-frames` with keys out of wasdijkl, or `none`, or nothing.
            Blanks and case do not matter.

    Returns:
        Keys and number of frames of each segment.

    Raises:
        ValueError: which names the first wrong segment.
    """
    text = "".join(action.replace("\uff0c", ",").split())
    if not text:
        raise ValueError("the action string is empty: write segments like 'w-24,none-8'")
    return [_parse_segment(segment) for segment in text.split(",")]


def actions_to_c2w(
    action: str,
    translation_speed: float = KeyDynamics.translation_speed,
    rotation_speed_deg: float = KeyDynamics.rotation_speed_deg,
    pitch_limit_deg: float = KeyDynamics.pitch_limit_deg,
    smooth: bool = KeyDynamics.smooth,
    fps: float = FPS,
) -> np.ndarray:
    """Poses of an action string of N frames. Holding the same keys step by step gives the same poses, bit for bit.

    Args:
        action: see `parse_actions`.
        translation_speed: metres per 1/16 s.
        rotation_speed_deg: degrees per 1/16 s.
        pitch_limit_deg: largest pitch, up and down.
        smooth: whether velocities are filtered.
        fps: frames a second.

    Returns:
        (N + 1, 4, 4) float32; the first is the identity.

    Raises:
        ValueError: as `parse_actions`, and for over a million frames.
    """
    segments = parse_actions(action)
    if sum(frames for _, frames in segments) > MAX_FRAMES:
        raise ValueError(f"the action string asks for more than {MAX_FRAMES:,} frames: split it into shorter ones")
    slower = FPS / fps
    dynamics = KeyDynamics(translation_speed * slower, rotation_speed_deg * slower, pitch_limit_deg, smooth, fps)
    state, poses = KeyState(), [np.eye(4)[None]]
    for keys, frames in segments:
        state, held = hold_keys(state, keys, frames, dynamics)
        poses.append(held)
    return np.concatenate(poses).astype(np.float32)


def _parse_segment(segment: str) -> tuple[frozenset[str], int]:
    keys, dash, duration = segment.rpartition("-")
    if not dash:
        raise ValueError(f"malformed segment {brief(segment)}: write keys, '-' and a number of frames, like 'w-24'")
    # superscripts count as digits but are no decimals; Python refuses thousands of digits
    if not duration.isdecimal() or len(duration) > MAX_DIGITS or int(duration) == 0:
        raise ValueError(
            f"bad duration {brief(duration)} in segment {brief(segment)}: write a whole number of frames above zero"
        )
    keys = keys.lower()
    return (frozenset() if keys == "none" else _checked(keys)), int(duration)


def _checked(keys: Iterable[str]) -> frozenset[str]:
    held = frozenset(keys)
    if not held <= _EFFECT.keys():
        unknown = "".join(sorted(map(str, held - _EFFECT.keys())))
        raise ValueError(
            f"unknown key {brief(unknown)}: the keys are {''.join(_EFFECT)}, or 'none' in an action string"
        )
    return held


def _next_velocity(
    velocity: tuple[float, ...], previous: frozenset[str], held: frozenset[str], dynamics: KeyDynamics
) -> tuple[float, ...]:
    """The velocity one frame later. A newly pressed key sets all components to their targets; otherwise they
    approach them exponentially."""
    direction = [0, 0, 0, 0]
    for key in held:
        component, sign = _EFFECT[key]
        direction[component] += sign
    rotation = math.radians(dynamics.rotation_speed_deg)
    speeds = (dynamics.translation_speed, dynamics.translation_speed, rotation, rotation)
    target = tuple(speed * sign for speed, sign in zip(speeds, direction, strict=True))
    if not dynamics.smooth or held - previous:
        return target
    return tuple(u + _gain(goal, dynamics.fps) * (goal - u) for u, goal in zip(velocity, target, strict=True))


def _gain(target: float, fps: float) -> float:
    return 1.0 - math.exp(-1.0 / fps / (TAU_PRESS if abs(target) > 1e-12 else TAU_COAST))


def _integrate(
    pose: np.ndarray, pitch: float, velocity: tuple[float, ...], pitch_limit: float
) -> tuple[np.ndarray, float]:
    """Yaw about the vertical of frame 0, pitch about the camera's x, then walk along the new heading."""
    forward, strafe, yaw, pitch_up = velocity
    new_pitch = min(max(pitch + pitch_up, -pitch_limit), pitch_limit)
    rotation = _rot_y(yaw) @ pose[:3, :3] @ _rot_x(new_pitch - pitch)
    new_pose = np.eye(4)
    new_pose[:3, :3] = rotation
    new_pose[:3, 3] = pose[:3, 3] + forward * _level(rotation[:, 2]) + strafe * _level(rotation[:, 0])
    return new_pose, new_pitch


def _level(axis: np.ndarray) -> np.ndarray:
    """The axis projected on the horizontal plane and brought to unit length."""
    flat = axis * (1.0, 0.0, 1.0)
    length = np.linalg.norm(flat)
    return flat / (length + 1e-6) if length > 0 else flat


def _rot_x(angle: float) -> np.ndarray:
    c, s = math.cos(angle), math.sin(angle)
    return np.array([[1.0, 0.0, 0.0], [0.0, c, -s], [0.0, s, c]])


def _rot_y(angle: float) -> np.ndarray:
    c, s = math.cos(angle), math.sin(angle)
    return np.array([[c, 0.0, s], [0.0, 1.0, 0.0], [-s, 0.0, c]])
