"""The whole state of an environment as a value: everything that its future and its last return depend on.

An environment holds exactly one of these and replaces it at each step, so taking a snapshot and restoring one only set
a reference. Nothing is copied, and a tree of snapshots shares what its branches have in common.
"""

import os
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sanawm_env.camera.dsl import KeyState
from sanawm_env.camera.presets import KEY_ORDER
from sanawm_env.world import tree
from sanawm_env.world.files import brief, check_count, check_number, reason
from sanawm_env.world.saved import check_array, check_clip, check_poses
from sanawm_env.world.state import Slot, WorldState, load_state
from sanawm_env.world.tree import check_tensor
from sanawm_env.world.world import Clip, World

MOST_SPEED = 1000.0  # metres or radians a second


class HostClip(NamedTuple):
    """A clip in NumPy: frames (24, H, W, 3) uint8 and c2w (24, 4, 4) float64 camera-to-world, both read-only."""

    frames: np.ndarray
    c2w: np.ndarray


@dataclass(frozen=True, eq=False)
class GoalState:
    """What a task with a goal remembers. c2w: (4, 4) pose to reach. image: (H, W, 3) uint8 tensor of what is seen
    there, or None."""

    c2w: np.ndarray
    image: Tensor | None = None


@dataclass(frozen=True, eq=False)
class PathState:
    """What following a path remembers. c2w: (F, 4, 4) poses. reached: index of the furthest one so far."""

    c2w: np.ndarray
    reached: int = 0


@dataclass(frozen=True, eq=False)
class Snapshot:
    """A moment of one environment, to be put back by `SanaWMEnv.restore`.

    state: of the one episode. clip: what the last step showed, None after a reset. action_mode and carry: how the
    camera is steered and what that carries from step to step (held keys and speeds, or the previous twist).
    rng: the environment's random generator as JSON, None to leave the generator of whoever restores alone.
    task: what the task remembers of the episode (`tasks.Task`). terminated: whether it has ended the episode.
    """

    state: WorldState
    clip: Clip | None
    action_mode: str
    carry: KeyState | np.ndarray | None = None
    rng: str | None = None
    task: Any = None
    terminated: bool = False

    @property
    def slot(self) -> Slot:
        """The episode."""
        return self.state.slots[0]

    @property
    def nbytes(self) -> int:
        """Bytes of tensor memory this snapshot keeps alive, shared ones included."""
        return tree.nbytes((self.state.slots, self.clip, self.task))

    @property
    def device(self) -> torch.device:
        return self.state.device

    def to(self, device: str | torch.device) -> "Snapshot":
        """The same moment with its tensors on another device; itself where it is there already."""
        if self.device == torch.device(device):
            return self
        clip, task = tree.map_tensors(lambda t: t.to(device), (self.clip, self.task))
        return replace(self, state=self.state.to(device), clip=clip, task=task)

    def alone(self) -> "Snapshot":
        """The same moment with a clip in storage of its own: a kept one must not keep a batch of them alive."""
        if self.clip is None or self.clip.frames.untyped_storage().nbytes() == self.clip.frames.nbytes:
            return self
        return replace(self, clip=tree.map_tensors(lambda t: t.clone(), self.clip))

    def poses(self, frames: int) -> np.ndarray:
        """(frames, 4, 4) pose of each frame of the last step; right after a reset the start's, repeated. Read-only."""
        return np.broadcast_to(self.slot.c2w, (frames, 4, 4)) if self.clip is None else self.clip.c2w[0]

    def host_clip(self, frames: int) -> HostClip:
        """The last `frames` frames in NumPy; right after a reset the start image and its pose, repeated."""
        if self.clip is None:
            shown = np.broadcast_to(self.slot.frame.cpu().numpy(), (frames, *self.slot.frame.shape))
        else:
            shown = self.clip.frames[0].cpu().numpy()
        clip = HostClip(shown, self.poses(frames).view())
        for array in clip:
            array.setflags(write=False)
        return clip

    def save(self, path: str | os.PathLike) -> None:
        """Write a safetensors file with a JSON header; it appears whole or not at all. OSError where it cannot be."""
        self.state.save(path, (self.clip, self.action_mode, self.carry, self.rng, self.task, self.terminated))

    @classmethod
    def load(cls, path: str | os.PathLike, world: World, *task_states: type) -> "Snapshot":
        """Read a snapshot that `save` wrote, for `world`. task_states: dataclasses of a task of one's own.

        Raises FileNotFoundError, or ValueError in one sentence for a truncated or foreign file, another schema or
        other weights.
        """
        if not isinstance(world, World):
            raise TypeError(f"A snapshot is loaded for a World (World.load, or env.world), got {brief(world)}.")
        state, extra = load_state(path, world, Clip, KeyState, GoalState, PathState, *task_states)
        if not isinstance(extra, tuple) or len(extra) != 6 or len(state) != 1:
            raise ValueError(f"{path} holds a world state but no environment's snapshot: read it with WorldState.load.")
        snapshot = cls(state, *extra)
        try:
            snapshot._check(world)
        except ValueError as error:
            raise ValueError(f"{path} does not hold a complete snapshot: {reason(error)}.") from error
        return snapshot

    def _check(self, world: World) -> None:
        """ValueError that says what beside the state could not have been saved in this world."""
        if self.clip is not None:
            if not isinstance(self.clip, Clip):
                raise ValueError(f"clip is {brief(self.clip)}")
            check_clip(self.clip, world, "clip")
        carries = {"keys": KeyState, "discrete": KeyState, "twist": np.ndarray, "poses": type(None)}
        if not isinstance(self.action_mode, str) or self.action_mode not in carries:
            raise ValueError(f"action_mode is {brief(self.action_mode)}")
        if not isinstance(self.terminated, bool):
            raise ValueError(f"terminated is {brief(self.terminated)}")
        if not isinstance(self.rng, str | None):
            raise ValueError(f"rng is {brief(self.rng)}")
        if isinstance(self.carry, KeyState):
            check_keys(self.carry, "carry")
        elif self.carry is not None:
            check_array(self.carry, (6,), np.float64, "carry")
            if not (np.abs(self.carry) <= MOST_SPEED).all():
                raise ValueError("carry is not a velocity")
        if not isinstance(self.carry, carries[self.action_mode]):
            raise ValueError(f"carry does not go with the action mode {self.action_mode}")
        if isinstance(self.task, GoalState):
            check_poses(self.task.c2w, (), "task.c2w")
            if self.task.image is not None:
                check_tensor(self.task.image, tuple(self.slot.frame.shape), (torch.uint8,), "task.image")
        if isinstance(self.task, PathState):
            check_poses(self.task.c2w, (max(2, len(np.atleast_1d(self.task.c2w))),), "task.c2w")
            check_count("task.reached", self.task.reached, 0, len(self.task.c2w) - 1)


def check_keys(keys: KeyState, path: str) -> None:
    """ValueError unless what keys carry on could have come of holding some."""
    check_poses(keys.pose, (), f"{path}.pose")
    check_number(f"{path}.pitch", keys.pitch, -np.pi / 2, np.pi / 2)
    for number in keys.velocity:
        check_number(f"{path}.velocity", number, -MOST_SPEED, MOST_SPEED)
    if not keys.held <= set(KEY_ORDER):
        raise ValueError(f"{path}.held are not keys, got {brief(keys.held)}")
