"""Observations: a frame and the pose, several frames, or latents."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation
from torch import Tensor

from sanawm_env.camera.presets import Workspace
from sanawm_env.simulation.episode import Episode
from sanawm_env.simulation.tasks import Task
from sanawm_env.system.files import brief, check_choice, check_count
from sanawm_env.world.config import WorldConfig
from sanawm_env.world.images import resize_frames

OBS_MODES = ("dict", "rgb", "stack", "chunk", "latent", "goal")
STACKED = 4
LATENT_BOUND = 100.0
LARGEST = (144, 256)
MOST_PIXELS = 4096  # of a side

Observation = NDArray | dict[str, NDArray]


@dataclass(frozen=True)
class Observer:
    """One observation mode of a world. A call takes B episodes and returns arrays of its own with a leading axis B.
    Frames are resized to `size` (h, w) on the device, then copied.

    - dict: rgb, the last frame (h, w, 3) uint8; pose (7,) float32, translation in metres and unit quaternion x, y, z, w
      (w >= 0) of the last frame's camera-to-world pose relative to frame 0; and the task's entries.
    - rgb: the last frame.
    - stack: 4 frames evenly spaced over the chunk, the last among them, oldest first, in the channels (h, w, 12)
      uint8.
    - chunk: all frames (24, h, w, 3) uint8.
    - latent: the last chunk's latents (c, 3, h', w') float32, clipped to +-100.
    - goal: Gymnasium-Robotics' GoalEnv, of a task whose reward is that of its goal (PointNav with shaped=False):
      observation, the pose (7,) as above; achieved_goal and desired_goal (3,) float32, positions of camera and goal in
      metres in the axes of frame 0; rgb, the last frame.

    After a reset the start image (its latent) stands for every frame (latent) of the chunk.
    """

    mode: str
    config: WorldConfig
    size: tuple[int, int]
    workspace: Workspace
    task: Task

    @property
    def space(self) -> spaces.Space:
        """The observation space."""
        h, w = self.size
        if self.mode == "latent":
            return spaces.Box(-LATENT_BOUND, LATENT_BOUND, self.config.latent_shape, np.float32)
        if self.mode in ("dict", "goal"):
            pose, image = spaces.Box(-self._pose_bound, self._pose_bound), _pixels(h, w, 3)
            if self.mode == "dict":
                parts = [("rgb", image), ("pose", pose), *self.task.spaces(self.size, self.workspace).items()]
            else:
                goal = spaces.Box(-self._pose_bound[:3], self._pose_bound[:3])
                parts = [("observation", pose), ("achieved_goal", goal), ("desired_goal", goal), ("rgb", image)]
            return spaces.Dict(parts)
        shapes = {"rgb": (h, w, 3), "stack": (h, w, 3 * STACKED), "chunk": (self.config.chunk_frames, h, w, 3)}
        return _pixels(*shapes[self.mode])

    def __call__(self, episodes: Sequence[Episode]) -> Observation:
        if self.mode == "latent":
            return _host(torch.cat([self._latents(cast(Tensor, now.slot.latents)) for now in episodes]))
        if self.mode in ("dict", "goal"):
            poses, frames = np.stack([self._pose(now.slot.c2w) for now in episodes]), self._frames(episodes, 1)[:, 0]
            if self.mode == "dict":
                return {"rgb": frames, "pose": poses} | self.task.observe(episodes, self.size)
            bound = self._pose_bound[:3]
            achieved, desired = (np.clip(goals, -bound, bound) for goals in self.task.goals(episodes))
            return {"observation": poses, "achieved_goal": achieved, "desired_goal": desired, "rgb": frames}
        if self.mode == "rgb":
            return self._frames(episodes, 1)[:, 0]
        if self.mode == "chunk":
            return self._frames(episodes, self.config.chunk_frames)
        return np.concatenate(np.moveaxis(self._frames(episodes, STACKED), 1, 0), axis=-1)

    def one(self, episode: Episode) -> Observation:
        """The observation of one episode, without the leading axis."""
        seen = self([episode])
        return {name: value[0] for name, value in seen.items()} if isinstance(seen, dict) else seen[0]

    @property
    def _pose_bound(self) -> NDArray:
        # Twice the distance allowed, because a last step may end beyond it.
        return np.array([2 * self.workspace.hard_distance] * 3 + [1] * 4, np.float32)

    def _frames(self, episodes: Sequence[Episode], count: int) -> NDArray:
        """(B, count, h, w, 3): evenly spaced frames that end with the last; after a reset the start image, repeated."""
        step = self.config.chunk_frames // count
        shown = [
            now.slot.frame[None].expand(count, -1, -1, -1)
            if now.clip is None or count == 1
            else now.frames[step - 1 :: step]
            for now in episodes
        ]
        if count == 1:
            return _host(resize_frames(torch.cat(shown), *self.size)[:, None])
        return _host(torch.stack([resize_frames(frames, *self.size) for frames in shown]))  # small before together

    def _pose(self, c2w: NDArray) -> NDArray:
        quaternion = Rotation.from_matrix(c2w[:3, :3]).as_quat(canonical=True)
        pose = np.concatenate([c2w[:3, 3], quaternion]).astype(np.float32)
        return np.clip(pose, -self._pose_bound, self._pose_bound)

    def _latents(self, latents: Tensor) -> Tensor:
        n = cast(tuple[int, ...], self.config.latent_shape)[1]
        whole = latents.expand(-1, -1, n, -1, -1) if latents.shape[2] == 1 else latents
        return whole.float().clamp(-LATENT_BOUND, LATENT_BOUND)


def check_size(size: Any) -> tuple[int, int]:
    """The size (height, width) of observed frames as Python ints; ValueError for anything else."""
    given = size.tolist() if isinstance(size, np.ndarray) else size
    if not isinstance(given, tuple | list) or len(given) != 2:
        raise ValueError(f"obs_size must be two whole numbers (height, width), got {brief(size)}.")
    h, w = (check_count("obs_size (height, width)", n, 1, MOST_PIXELS) for n in given)
    return h, w


def observer(
    mode: str, config: WorldConfig, size: tuple[int, int] | None, workspace: Workspace, task: Task
) -> Observer:
    """Make the observer of an observation mode.

    Args:
        mode: name of the mode.
        config: of the world.
        size: (height, width) of observed frames; None for the world's own, at most 144 x 256.
        workspace: where the camera may go.
        task: of the environment.

    Raises:
        ValueError: for an unknown mode, a task that does not go with "goal", "latent" in a world without latents, or a
            size out of range.
    """
    check_choice("obs_mode", mode, OBS_MODES)
    if mode == "goal" and (not task.goal_size or task.reward_range != (0.0, 1.0)):
        raise ValueError(
            'obs_mode "goal" needs a task whose reward is that a position is reached: task="pointnav" with '
            'task_options={"shaped": False}.'
        )
    if mode == "latent" and config.latent_shape is None:
        raise ValueError(f'The {config.name} world has no latents: choose another obs_mode than "latent".')
    if size is None:
        size = (min(config.height, LARGEST[0]), min(config.width, LARGEST[1]))
    return Observer(mode, config, check_size(size), workspace, task)


def _pixels(*shape: int) -> spaces.Box:
    return spaces.Box(0, 255, shape, np.uint8)


def _host(tensor: Tensor) -> NDArray:
    """A NumPy copy: writing into an observation must not reach the state."""
    return tensor.cpu().numpy().copy()
