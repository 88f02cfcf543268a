"""Controllers, one for each action mode. A controller turns an action into the camera poses of the next chunk.

A controller is a value with an action `space`; `start()`, its state at the beginning of an episode; `read(action)`, the
action as an array of the space's shape (lists, numbers and tensors are accepted too); and `move(state, c2w, action) ->
(state, poses)`, where c2w (4, 4) is the current pose and poses (F, 4, 4) float64 follow it. Both raise ValueError or
TypeError for a wrong action, and change none of their arguments. `sample_walk_actions(rng, chunks)` draws actions of a
walk from frame 0, forwards with turns, for hidden goals. Camera reference, section 8.
"""

import math
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector.utils import batch_space
from numpy.typing import ArrayLike

from sanawm_env.camera import twist
from sanawm_env.camera.dsl import KeyDynamics, KeyState, hold_keys
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
from sanawm_env.system.files import brief, check_choice
from sanawm_env.world.config import WorldConfig

ACTION_MODES = ("twist", "keys", "discrete", "poses")
SMOOTHINGS = ("hold", "ramp")
WALK_LOW, WALK_HIGH = (-0.4, 0.1, -1.0), (0.4, 0.8, 1.0)  # sideways, forwards, turn; of what is fastest


class Controller(Protocol):
    """The protocol of controllers, which the module describes."""

    @property
    def space(self) -> spaces.Space: ...

    def start(self) -> Any: ...

    def read(self, action: Any) -> np.ndarray: ...

    def move(self, state: Any, c2w: np.ndarray, action: Any) -> tuple[Any, np.ndarray]: ...

    def sample_walk_actions(self, rng: np.random.Generator, chunks: int) -> np.ndarray: ...


@dataclass(frozen=True)
class Twist(Controller):
    """Body twist (6,) in [-1, 1], scaled by the speed preset; values outside are clipped.

    (v_x, v_y, v_z, w_x, w_y, w_z): right, down, forward; look up, turn right, roll clockwise. Held for the chunk, or
    reached from the previous twist within 8 frames (`ramp`). The pitch stays inside the workspace's limit. A turn is
    slowed, axis kept, so that consecutive chunks overlap.

    Attributes:
        speed: m/s and degrees/s of a full action.
        workspace: where the camera may go.
        frames: of a chunk.
        fps: frames a second.
        horizontal_fov: degrees.
        ramp: whether to reach the twist within 8 frames.
    """

    speed: SpeedPreset
    workspace: Workspace
    frames: int
    fps: int
    horizontal_fov: float
    ramp: bool = False

    @property
    def space(self) -> spaces.Box:
        """Box(6) in [-1, 1]."""
        return spaces.Box(-1, 1, (6,), np.float32)

    def start(self) -> np.ndarray:
        """No motion."""
        return np.zeros(6)

    def read(self, action: ArrayLike) -> np.ndarray:
        """The twist as an array (6,). ValueError or TypeError for anything but six finite numbers."""
        return _numbers(action, (6,), "a twist action is six finite numbers in [-1, 1]")

    def move(self, state: np.ndarray, c2w: np.ndarray, action: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
        """The twist in m/s and rad/s, and the poses (F, 4, 4) float64 after c2w (4, 4). Raises as `read`."""
        wanted = self.speed.scale(self.read(action))
        wanted = self.workspace.limit_rotation(wanted, self.frames / self.fps, self.horizontal_fov)
        if self.ramp:
            poses = twist.ramp(c2w, wanted, state, self.frames, fps=self.fps)
        else:
            poses = twist.hold(c2w, wanted, self.frames, fps=self.fps)
        return wanted, self.workspace.confine(c2w, poses)

    def sample_walk_actions(self, rng: np.random.Generator, chunks: int) -> np.ndarray:
        """Actions (chunks, 6) float32: sideways, forwards and turn."""
        actions = np.zeros((chunks, 6), np.float32)
        actions[:, [0, 2, 4]] = rng.uniform(WALK_LOW, WALK_HIGH, (chunks, 3))
        return actions


@dataclass(frozen=True)
class Keys(Controller):
    """Keys held for the chunk, with the velocity model of action strings: the same keys give the same poses.

    Without a table the space is `MultiBinary(8)` in the order w s a d i k j l, or 0 for no key, as Gymnasium's `play`
    sends it. With a table it is `Discrete`, an index into the key sets.

    Attributes:
        dynamics: speeds of the keys.
        frames: of a chunk.
        table: key sets by index, or None.
    """

    dynamics: KeyDynamics
    frames: int
    table: tuple[str, ...] | None = None

    @property
    def space(self) -> spaces.MultiBinary | spaces.Discrete:
        """MultiBinary(8), or Discrete with a table."""
        return spaces.MultiBinary(8) if self.table is None else spaces.Discrete(len(self.table))

    def start(self) -> KeyState:
        """No key held, no speed."""
        return KeyState()

    def read(self, action: ArrayLike) -> np.ndarray:
        """The keys as an array (8,), or the index. ValueError or TypeError for anything else."""
        if self.table is None:
            says = "a key action is eight zeros and ones, the keys w s a d i k j l"
            if isinstance(action, int | np.integer) and action == 0:
                return multi_binary("")
            keys = _numbers(action, (8,), says)
            if not np.isin(keys, (0, 1)).all():
                raise ValueError(f"{says}, got {keys.tolist()}.")
            return keys
        says = f"a discrete action is a whole number from 0 to {len(self.table) - 1}"
        index = _numbers(action, (), says)
        if index.dtype.kind not in "iu":
            raise TypeError(f"{says}, got {brief(action)}.")
        if not 0 <= index < len(self.table):
            raise ValueError(f"{says}, got {brief(action)}.")
        return index

    def move(self, state: KeyState, c2w: np.ndarray, action: ArrayLike) -> tuple[KeyState, np.ndarray]:
        """The state of the keys, and the poses (F, 4, 4) float64 after c2w (4, 4). Raises as `read`."""
        action = self.read(action)
        held = held_keys(action) if self.table is None else frozenset(self.table[int(action)])
        return hold_keys(state.at(c2w), held, self.frames, self.dynamics)

    def sample_walk_actions(self, rng: np.random.Generator, chunks: int) -> np.ndarray:
        """Actions of forward keys and turns, (chunks, 8) or (chunks,)."""
        held = rng.choice(["w", "wa", "wd", "a", "d"], chunks)
        if self.table is None:
            return np.stack([multi_binary(keys) for keys in held])
        index = {frozenset(keys): i for i, keys in enumerate(self.table)}
        return np.array([index[frozenset(keys)] for keys in held])

    def for_keyboard(self) -> dict[tuple[str, ...], Any]:
        """Actions by the keys to press, as `gymnasium.utils.play` takes them."""
        table = self.table or WALKING_TURNS
        return {tuple(keys): multi_binary(keys) if self.table is None else i for i, keys in enumerate(table) if keys}


@dataclass(frozen=True)
class Poses(Controller):
    """The poses of the chunk: camera-to-world relative to the episode's frame 0, rigid transforms.

    They need not follow the pose reached before: continuity and pitch are the caller's.

    Attributes:
        workspace: where the camera may go.
        frames: of a chunk.
        fps: frames a second.
    """

    workspace: Workspace
    frames: int
    fps: float

    @property
    def space(self) -> "PoseSpace":
        """Rigid poses (F, 4, 4) within the workspace."""
        return PoseSpace(self.frames, self.workspace.hard_distance)

    def start(self) -> None:
        """No state."""
        return None

    def read(self, action: ArrayLike) -> np.ndarray:
        """The poses as an array (F, 4, 4). ValueError or TypeError for another shape or values that are not finite."""
        shape = (self.frames, 4, 4)
        return _numbers(action, shape, f"a pose action is {shape} camera-to-world matrices")

    def move(self, state: None, c2w: np.ndarray, action: ArrayLike) -> tuple[None, np.ndarray]:
        """The poses, checked. ValueError where one is not rigid, or outside the workspace."""
        poses = check_trajectory(self.read(action))
        if self.workspace.beyond_hard_distance(poses):
            limit, reached = self.workspace.hard_distance, distance(poses)
            raise ValueError(f"poses must stay within {limit:g} m of frame 0, got one {reached:.1f} m away.")
        return None, poses

    def sample_walk_actions(self, rng: np.random.Generator, chunks: int) -> np.ndarray:
        """Poses (chunks, F, 4, 4) float64 of a walk."""
        path = [np.eye(4)[None]]
        for sideways, forward, turn in rng.uniform(WALK_LOW, WALK_HIGH, (chunks, 3)):
            motion = STANDARD.scale(np.array([sideways, 0, forward, 0, turn, 0]))
            path.append(twist.hold(path[-1][-1], motion, self.frames, fps=self.fps))
        return np.stack(path[1:])


class PoseSpace(spaces.Box):
    """Rigid camera-to-world poses (frames, 4, 4) float32 within `reach` metres of frame 0. A sample is a smooth path
    from frame 0.

    Args:
        frames: poses of a chunk.
        reach: metres.
        seed: of the space's generator.
        lead: axes before those of the poses, where several are batched.
    """

    def __init__(
        self,
        frames: int,
        reach: float,
        seed: int | np.random.Generator | None = None,
        lead: tuple[int, ...] = (),
    ):
        high = np.ones((*lead, frames, 4, 4), np.float32)
        high[..., :3, 3] = reach
        self.frames, self.reach, self.lead = frames, reach, lead
        super().__init__(-high, high, dtype=np.float32, seed=seed)

    def sample(self, mask: None = None, probability: None = None) -> np.ndarray:
        """A smooth path from frame 0."""
        paths = [self._path() for _ in range(math.prod(self.lead))]
        return np.reshape(paths, self.shape).astype(np.float32)

    def contains(self, x: Any) -> bool:
        """Whether all poses are rigid and within reach."""
        if not isinstance(x, np.ndarray) or not super().contains(x):
            return False
        poses = x.reshape(-1, 4, 4)
        try:
            check_trajectory(poses)
        except ValueError:
            return False
        return distance(poses) <= self.reach

    def _path(self) -> np.ndarray:
        motion = STANDARD.scale(self.np_random.uniform(-1, 1, 6))
        path = twist.hold(np.eye(4), motion, self.frames)
        if distance(path) > self.reach:  # a position grows with the speed
            motion[:3] *= 0.99 * self.reach / distance(path)
            path = twist.hold(np.eye(4), motion, self.frames)
        return path


@batch_space.register(PoseSpace)
def _batch_poses(space: PoseSpace, n: int = 1) -> PoseSpace:
    return PoseSpace(space.frames, space.reach, deepcopy(space.np_random), (n, *space.lead))


def make_controller(
    mode: str,
    config: WorldConfig,
    speed: str | None = None,
    smoothing: str = "hold",
    workspace: Workspace | None = None,
) -> Controller:
    """Make the controller of an action mode.

    Args:
        mode: "twist", "keys", "discrete" or "poses".
        config: of the world.
        speed: name of a speed preset; None for the world's own.
        smoothing: of twists, "hold" or "ramp".
        workspace: where the camera may go; None for the world's own.

    Raises:
        ValueError: for an unknown mode, speed or smoothing.
    """
    speed = config.speed if speed is None else speed
    workspace = config.workspace if workspace is None else workspace
    check_choice("action_mode", mode, ACTION_MODES)
    check_choice("speed", speed, PRESETS)
    check_choice("smoothing", smoothing, SMOOTHINGS)
    preset, frames = PRESETS[speed], config.chunk_frames
    if mode == "twist":
        return Twist(preset, workspace, frames, config.fps, config.horizontal_fov, smoothing == "ramp")
    if mode == "poses":
        return Poses(workspace, frames, config.fps)
    speeds = preset.planar / config.fps, preset.turn_deg / config.fps
    dynamics = KeyDynamics(*speeds, workspace.pitch_limit_deg, fps=config.fps)
    return Keys(dynamics, frames, WALKING_TURNS if mode == "discrete" else None)


def host(action: Any) -> Any:
    """A tensor on any device as a NumPy array; anything else unchanged.

    Raises:
        TypeError: for a tensor without values, or one that requires a gradient, because a step is not differentiable.
    """
    if not isinstance(action, torch.Tensor):
        return action
    if action.requires_grad:
        raise TypeError("This action requires a gradient, which a step does not propagate: pass action.detach().")
    try:
        action = action.cpu().resolve_conj().resolve_neg()
        return (action.float() if action.dtype is torch.bfloat16 else action).numpy()
    except (RuntimeError, TypeError) as error:
        raise TypeError(
            f"This tensor on {action.device} cannot be read as an action: {str(error).splitlines()[0]}"
        ) from error


def _numbers(action: Any, shape: tuple[int, ...], says: str) -> np.ndarray:
    """An action as an array of finite numbers of a shape; an array of one number counts as a number. `says` begins
    the error."""
    action = host(action)
    try:
        array = np.asarray(action)
    except (RuntimeError, TypeError, ValueError) as error:
        ragged = isinstance(error, ValueError)
        kind = ValueError if ragged else TypeError
        raise kind(f"{says}, got {'lists of unequal length' if ragged else brief(action)}.") from None
    if array.dtype.kind not in "fiub":
        raise TypeError(f"{says}, got {type(action).__name__} of dtype {array.dtype}.")
    if shape == () and array.shape == (1,):
        array = array[0]
    if array.shape != shape:
        raise ValueError(f"{says}, got the shape {array.shape}.")
    if not np.isfinite(array).all():
        raise ValueError(f"{says}, got values that are not finite.")
    return array
