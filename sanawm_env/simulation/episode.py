"""An episode as a value: everything that its future and its last transition depend on.

A step takes an `Episode` and returns the next one, so keeping, restoring and forking only set references. A tree of
episodes shares what its branches have in common. A `Snapshot` is an episode with what an environment adds; it can be
saved to a file.
"""

import os
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from sanawm_env.camera.dsl import MOST_SPEED, KeyState
from sanawm_env.camera.presets import KEY_ORDER
from sanawm_env.system.files import brief, check_choice, check_count, explaining
from sanawm_env.system.settings import check_fields
from sanawm_env.world import tree
from sanawm_env.world.saved import check_array, check_clip, check_poses
from sanawm_env.world.state import Slot, WorldState, load_state
from sanawm_env.world.tree import check_tensor
from sanawm_env.world.world import Clip, World


class HostClip(NamedTuple):
    """A clip in NumPy: frames (24, H, W, 3) uint8 and c2w (24, 4, 4) float64 camera-to-world, both read-only."""

    frames: np.ndarray
    c2w: np.ndarray


@dataclass(frozen=True, eq=False)
class GoalState:
    """The state of a task with a goal.

    Attributes:
        c2w: (4, 4) float64, the pose to reach.
        image: (H, W, 3) uint8 tensor, the goal image; None for tasks without one.
    """

    c2w: np.ndarray
    image: Tensor | None = None


@dataclass(frozen=True, eq=False)
class PathState:
    """The state of a task with a path.

    Attributes:
        c2w: (F, 4, 4) float64, the path.
        reached: index of the last pose reached.
    """

    c2w: np.ndarray
    reached: int = 0


@dataclass(frozen=True, eq=False)
class Episode:
    """One episode at a chunk border.

    Attributes:
        state: of the world, with one slot.
        controller_state: of the controller (held keys and speeds, or the previous twist).
        task_state: of the task.
        clip: of the last step, None after a reset. Episodes that step together share a clip.
        clip_row: the row of this episode in the clip.
        terminated: whether the task has ended it.
    """

    state: WorldState
    controller_state: KeyState | np.ndarray | None = None
    task_state: Any = None
    clip: Clip | None = None
    clip_row: int = 0
    terminated: bool = False

    @property
    def slot(self) -> Slot:
        """The world's part: scene, seed, chunk, pose and last frame."""
        return self.state.slots[0]

    @property
    def nbytes(self) -> int:
        """Bytes of tensor memory that this episode refers to, shared ones included."""
        return tree.nbytes((self.state.slots, self.clip, self.task_state))

    @property
    def device(self) -> torch.device:
        """Where its tensors are."""
        return self.state.device

    @property
    def frames(self) -> Tensor:
        """(F, H, W, 3) uint8 of the last step, on the world's device; after a reset (1, H, W, 3), the start image."""
        return self.slot.frame[None] if self.clip is None else self.clip.frames[self.clip_row]

    @property
    def c2w(self) -> np.ndarray:
        """(F, 4, 4) float64 of the last step, relative to frame 0; after a reset (1, 4, 4), the identity."""
        return self.slot.c2w[None] if self.clip is None else self.clip.c2w[self.clip_row]

    @property
    def batch_row(self) -> tuple[int, int]:
        """Row of the last step in the batch it was computed in, and the size of that batch; (0, 1) after a reset."""
        return (0, 1) if self.clip is None else self.clip.batch_rows[self.clip_row]

    def to(self, device: str | torch.device) -> Self:
        """The same episode with its tensors on another device; itself if they are there."""
        if self.device == torch.device(device):
            return self
        own = self.with_own_clip()
        clip, task_state = tree.map_tensors(lambda t: t.to(device), (own.clip, own.task_state))
        return replace(own, state=own.state.to(device), clip=clip, task_state=task_state)

    def reseed(self, seed: int) -> Self:
        """The same episode with other noise: that of `seed` from the next chunk on."""
        return replace(self, state=self.state.reseed(seed))

    def with_own_clip(self) -> Self:
        """The same episode with a clip in storage of its own, so that it does not keep the clip of a batch alive."""
        if self.clip is None:
            return self
        clip = self.clip[self.clip_row]
        if clip.frames.untyped_storage().nbytes() == clip.frames.nbytes:
            return self if len(self.clip.frames) == 1 else replace(self, clip=clip, clip_row=0)
        latents = None if clip.latents is None else clip.latents.clone()
        return replace(self, clip=replace(clip, frames=clip.frames.clone(), latents=latents), clip_row=0)

    def poses(self, frames: int) -> np.ndarray:
        """Poses of the last step, read-only.

        Args:
            frames: frames of a chunk.

        Returns:
            (frames, 4, 4) float64; after a reset the start's pose, repeated.
        """
        return np.broadcast_to(self.slot.c2w, (frames, 4, 4)) if self.clip is None else self.c2w

    def host_clip(self, frames: int) -> HostClip:
        """The last step in NumPy; after a reset the start image and its pose, repeated.

        Args:
            frames: frames of a chunk.
        """
        if self.clip is None:
            shown = np.broadcast_to(self.slot.frame.cpu().numpy(), (frames, *self.slot.frame.shape))
        else:
            shown = self.frames.cpu().numpy()
        clip = HostClip(shown, self.poses(frames).view())
        for array in clip:
            array.setflags(write=False)
        return clip


@dataclass(frozen=True, eq=False)
class Snapshot(Episode):
    """An episode as `SanaWMEnv.snapshot` returns it.

    Attributes:
        action_mode: of the controller whose state it holds.
        rng: the environment's random generator as JSON; None to leave the generator alone on `restore`.
    """

    action_mode: str = "twist"
    rng: str | None = None

    @classmethod
    def of(cls, episode: Episode, action_mode: str, rng: str | None = None) -> Self:
        """A snapshot of an episode.

        Args:
            episode: to keep.
            action_mode: of the controller whose state it holds.
            rng: the environment's generator as JSON; None for none.
        """
        kept = {field.name: getattr(episode, field.name) for field in fields(Episode)}
        return cls(**kept, action_mode=action_mode, rng=rng)

    @property
    def episode(self) -> Episode:
        """The episode without what the snapshot adds."""
        return Episode(**{field.name: getattr(self, field.name) for field in fields(Episode)})

    def save(self, path: str | os.PathLike) -> None:
        """Write a safetensors file with a JSON header. It appears whole or not at all.

        Args:
            path: of the file.

        Raises:
            OSError: where it cannot be written.
        """
        own = self.with_own_clip()
        kept = {name: getattr(own, name) for name in _SAVED}
        self.state.save(path, tuple(kept.items()))

    @classmethod
    def load(cls, path: str | os.PathLike, world: World, *task_states: type) -> "Snapshot":
        """Read a file that `save` wrote.

        Args:
            path: the file.
            world: the world whose weights the snapshot belongs to.
            *task_states: dataclasses of states of your own task.

        Raises:
            FileNotFoundError: where there is no file.
            ValueError: for a truncated or foreign file, another schema, or other weights.
            TypeError: for what is not a world.
        """
        if not isinstance(world, World):
            raise TypeError(f"A snapshot is loaded for a World (World.load, or env.world), got {brief(world)}.")
        state, extra = load_state(path, world, Clip, KeyState, GoalState, PathState, *task_states)
        pairs = [pair for pair in extra if isinstance(pair, tuple) and len(pair) == 2] if type(extra) is tuple else []
        if [name for name, _ in pairs] != list(_SAVED) or len(pairs) != len(extra) or len(state) != 1:
            raise ValueError(
                f"{path} holds a world state, not an environment's snapshot: read it with WorldState.load."
            )
        snapshot = cls(state, **dict(pairs))
        with explaining(f"{path} does not hold a complete snapshot"):
            snapshot._check(world)
        return snapshot

    def _check(self, world: World) -> None:
        """Raise ValueError for anything besides the state that could not have been saved in this world."""
        check_fields(self)
        if self.clip is not None:
            check_clip(self.clip, world, "clip")
        kinds = {"keys": KeyState, "discrete": KeyState, "twist": np.ndarray, "poses": type(None)}
        check_choice("action_mode", self.action_mode, kinds)
        if isinstance(self.controller_state, KeyState):
            check_keys(self.controller_state, "controller_state")
        elif self.controller_state is not None:
            check_array(self.controller_state, (6,), np.float64, "controller_state")
            if not (np.abs(self.controller_state) <= MOST_SPEED).all():
                raise ValueError(f"controller_state must be velocities up to {MOST_SPEED:g} m/s or rad/s")
        if not isinstance(self.controller_state, kinds[self.action_mode]):
            raise ValueError(f"controller_state does not belong to the action mode {self.action_mode}")
        if isinstance(self.task_state, GoalState):
            check_poses(self.task_state.c2w, (), "task_state.c2w")
            if self.task_state.image is not None:
                check_tensor(self.task_state.image, tuple(self.slot.frame.shape), (torch.uint8,), "task_state.image")
        if isinstance(self.task_state, PathState):
            check_poses(self.task_state.c2w, (max(2, len(np.atleast_1d(self.task_state.c2w))),), "task_state.c2w")
            check_count("task_state.reached", self.task_state.reached, 0, len(self.task_state.c2w) - 1)


_SAVED = ("clip", "action_mode", "controller_state", "rng", "task_state", "terminated")


def check_keys(keys: KeyState, path: str) -> None:
    """Raise ValueError for a state of the keys that no held keys lead to.

    Args:
        keys: the state.
        path: its name in the error.
    """
    check_poses(keys.pose, (), f"{path}.pose")
    if not keys.held <= set(KEY_ORDER):
        raise ValueError(f"{path}.held must be keys of {KEY_ORDER}, got {brief(keys.held)}")
