"""What an action means: each mode turns an action into the 24 camera poses of the next chunk.

A mode is a value with an action `space`, a `start()` (what steering carries from step to step, at the beginning) and
`move(carry, c2w, action) -> (carry, poses)`: c2w (4, 4) is the pose reached and poses (F, 4, 4) float64 follow it.
`move` raises ValueError or TypeError in one sentence for what is not an action, and changes nothing it was given.
`stroll(rng, chunks)` makes actions of a walk from frame 0, forwards with turns: where hidden goals lie.
Camera reference, section 8.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import ArrayLike

from sanawm_env.camera import twist
from sanawm_env.camera.dsl import FPS, KeyDynamics, KeyState, hold_keys
from sanawm_env.camera.presets import (
    PRESETS,
    STANDARD,
    WALKING_TURNS,
    SpeedPreset,
    Workspace,
    distance,
    held_keys,
    multi_binary,
)
from sanawm_env.camera.trajectory import check_trajectory
from sanawm_env.world.config import WorldConfig

ACTION_MODES = ("twist", "keys", "discrete", "poses")
SMOOTHINGS = ("hold", "ramp")
STROLL_LOW, STROLL_HIGH = (-0.4, 0.1, -1.0), (0.4, 0.8, 1.0)  # sideways, forwards, turn; of what is fastest


@dataclass(frozen=True)
class Twist:
    """Body twist (6,) in [-1, 1], scaled by the speed preset; values outside are clipped.

    (v_x, v_y, v_z, w_x, w_y, w_z): right, down, forward; look up, turn right, roll clockwise. Held for the chunk, or
    reached from the previous twist within 8 frames (`ramp`). The pitch stays inside the workspace's limit, and a turn
    is slowed, axis kept, so that consecutive chunks overlap.
    """

    speed: SpeedPreset
    workspace: Workspace
    frames: int
    fps: int
    horizontal_fov: float
    ramp: bool = False

    @property
    def space(self) -> spaces.Box:
        return spaces.Box(-1, 1, (6,), np.float32)

    def start(self) -> np.ndarray:
        return np.zeros(6)

    def move(self, previous: np.ndarray, c2w: np.ndarray, action: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
        wanted = self.speed.scale(_numbers(action, (6,), "a twist action is six finite numbers in [-1, 1]"))
        wanted = self.workspace.limit_rotation(wanted, self.frames / self.fps, self.horizontal_fov)
        if self.ramp:
            poses = twist.ramp(c2w, wanted, previous, self.frames, fps=self.fps)
        else:
            poses = twist.hold(c2w, wanted, self.frames, fps=self.fps)
        return wanted, self.workspace.confine(c2w, poses)

    def stroll(self, rng: np.random.Generator, chunks: int) -> np.ndarray:
        actions = np.zeros((chunks, 6), np.float32)
        actions[:, [0, 2, 4]] = rng.uniform(STROLL_LOW, STROLL_HIGH, (chunks, 3))
        return actions


@dataclass(frozen=True)
class Keys:
    """Keys held for the chunk, with the velocity model of the action strings: the same keys give the same poses.

    Without a `table`, `MultiBinary(8)` in the order w s a d i k j l; with one, `Discrete`: an index into its key sets.
    """

    dynamics: KeyDynamics
    frames: int
    table: tuple[str, ...] | None = None

    @property
    def space(self) -> spaces.MultiBinary | spaces.Discrete:
        return spaces.MultiBinary(8) if self.table is None else spaces.Discrete(len(self.table))

    def start(self) -> KeyState:
        return KeyState()

    def move(self, state: KeyState, c2w: np.ndarray, action: ArrayLike) -> tuple[KeyState, np.ndarray]:
        return hold_keys(state, self._held(action), self.frames, self.dynamics)

    def stroll(self, rng: np.random.Generator, chunks: int) -> np.ndarray:
        held = rng.choice(["w", "wa", "wd", "a", "d"], chunks)
        if self.table is None:
            return np.stack([multi_binary(keys) for keys in held])
        index = {frozenset(keys): i for i, keys in enumerate(self.table)}
        return np.array([index[frozenset(keys)] for keys in held])

    def for_keyboard(self) -> dict[tuple[str, ...], Any]:
        """Actions by the keys to press for them, as `gymnasium.utils.play` wants them."""
        table = self.table or WALKING_TURNS
        return {tuple(keys): multi_binary(keys) if self.table is None else i for i, keys in enumerate(table) if keys}

    def _held(self, action: ArrayLike) -> frozenset[str]:
        if self.table is None:
            return held_keys(_numbers(action, (8,), "a key action is eight zeros and ones, the keys w s a d i k j l"))
        says = f"a discrete action is a whole number from 0 to {len(self.table) - 1}"
        index = _numbers(action, (), says)
        if index.dtype.kind not in "iu":
            raise TypeError(f"{says}, got {action!r}.")
        if not 0 <= index < len(self.table):
            raise ValueError(f"{says}, got {action!r}.")
        return frozenset(self.table[int(index)])


@dataclass(frozen=True)
class Poses:
    """The chunk's poses themselves: camera-to-world relative to the episode's frame 0, each a rigid transform.

    They need not follow the pose reached before: whoever sends poses answers for their continuity and their pitch.
    """

    workspace: Workspace
    frames: int

    @property
    def space(self) -> "PoseSpace":
        return PoseSpace(self.frames, self.workspace.hard_distance)

    def start(self) -> None:
        return None

    def move(self, carry: None, c2w: np.ndarray, action: ArrayLike) -> tuple[None, np.ndarray]:
        shape = (self.frames, 4, 4)
        poses = check_trajectory(_numbers(action, shape, f"a pose action is {shape} camera-to-world matrices"))
        if self.workspace.too_far(poses):
            limit, reached = self.workspace.hard_distance, distance(poses)
            raise ValueError(f"poses must stay within {limit:g} m of frame 0, got one {reached:.1f} m away.")
        return None, poses

    def stroll(self, rng: np.random.Generator, chunks: int) -> np.ndarray:
        path = [np.eye(4)[None]]
        for sideways, forward, turn in rng.uniform(STROLL_LOW, STROLL_HIGH, (chunks, 3)):
            motion = STANDARD.scale(np.array([sideways, 0, forward, 0, turn, 0]))
            path.append(twist.hold(path[-1][-1], motion, self.frames))
        return np.stack(path[1:])


class PoseSpace(spaces.Box):
    """Rigid camera-to-world poses (frames, 4, 4) float32 within `reach` metres of frame 0.

    A sample is a smooth path that sets out from frame 0. (A batch of this space, as vector environments make one, is a
    plain Box: its samples are not poses.)
    """

    def __init__(self, frames: int, reach: float, seed: int | np.random.Generator | None = None):
        high = np.ones((frames, 4, 4), np.float32)
        high[:, :3, 3] = reach
        super().__init__(-high, high, dtype=np.float32, seed=seed)

    def sample(self, mask: None = None, probability: None = None) -> np.ndarray:
        motion = STANDARD.scale(self.np_random.uniform(-1, 1, 6))
        return twist.hold(np.eye(4), motion, self.shape[0]).astype(np.float32)

    def contains(self, x: Any) -> bool:
        if not isinstance(x, np.ndarray) or not super().contains(x):
            return False
        try:
            check_trajectory(x)
        except ValueError:
            return False
        return True


def steering(
    mode: str, config: WorldConfig, speed: str | None, smoothing: str, workspace: Workspace
) -> Twist | Keys | Poses:
    """The mode of that name for a world; ValueError naming what is accepted."""
    speed = config.speed if speed is None else speed
    for what, value, known in (
        ("action_mode", mode, ACTION_MODES), ("speed", speed, PRESETS), ("smoothing", smoothing, SMOOTHINGS)
    ):  # fmt: skip
        if value not in known:
            raise ValueError(f"{what} must be one of {', '.join(known)}, got {value!r}.")
    preset, frames = PRESETS[speed], config.chunk_frames
    if mode == "twist":
        return Twist(preset, workspace, frames, config.fps, config.horizontal_fov, smoothing == "ramp")
    if mode == "poses":
        return Poses(workspace, frames)
    dynamics = KeyDynamics(preset.planar / FPS, preset.turn_deg / FPS, workspace.pitch_limit_deg)
    return Keys(dynamics, frames, WALKING_TURNS if mode == "discrete" else None)


def _numbers(action: ArrayLike, shape: tuple[int, ...], says: str) -> np.ndarray:
    """The action as an array of finite numbers of that shape; `says` begins the sentence of the error."""
    try:
        array = np.asarray(action)
    except ValueError:
        raise ValueError(f"{says}, got lists of unequal length.") from None
    if array.dtype.kind not in "fiub":
        raise TypeError(f"{says}, got {type(action).__name__} of dtype {array.dtype}.")
    if array.shape != shape:
        raise ValueError(f"{says}, got the shape {array.shape}.")
    if not np.isfinite(array).all():
        raise ValueError(f"{says}, got values that are not finite.")
    return array
