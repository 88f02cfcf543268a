"""Record every frame of an episode as a video. Gymnasium's RecordVideo keeps one frame per step, which is 1 in 24."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, SupportsFloat

import gymnasium as gym
from gymnasium.utils import RecordConstructorArgs

from sanawm_env.envs.env import SanaWMEnv
from sanawm_env.recording.rollout import check_writable
from sanawm_env.recording.video import VideoWriter


class RecordChunks(gym.Wrapper, RecordConstructorArgs):
    """A wrapper that writes an MP4 per episode: the start image and the 24 frames of every step, at full size.

    A video appears when its episode ends, at the next reset, or on `close`. After `env.unwrapped.restore` the video
    continues with the steps from there; after the end of an episode these begin a new video.

    Args:
        env: a `SanaWMEnv`, or a wrapper around one.
        folder: where videos are written, made if missing: episode-0000.mp4 and so on. Files with these names are
            replaced.
        episode_trigger: takes the number of an episode, from 0, and returns whether to record it; None records all.
        crf: see `VideoWriter`.
        upscale: see `VideoWriter`.

    Raises:
        TypeError: for an environment of another kind.
        NotADirectoryError: where `folder` is a file.
        ValueError: for a crf or upscale out of range.
        OSError: where `folder` cannot be made; from `step` and `close`, where a video cannot be written.
    """

    def __init__(
        self,
        env: gym.Env,
        folder: str | os.PathLike,
        episode_trigger: Callable[[int], bool] | None = None,
        *,
        crf: int = 18,
        upscale: int = 1,
    ):
        RecordConstructorArgs.__init__(self, folder=folder, episode_trigger=episode_trigger, crf=crf, upscale=upscale)
        super().__init__(env)
        base = env.unwrapped
        if not isinstance(base, SanaWMEnv):
            raise TypeError(f"RecordChunks takes a SanaWMEnv or a wrapper around one, got {type(base).__name__}.")
        self._base = base
        self.folder, self.episode = Path(folder), -1
        check_writable(self.folder)
        self._wanted = episode_trigger or (lambda episode: True)
        self._how = {"fps": env.metadata["render_fps"], "crf": crf, "upscale": upscale}
        VideoWriter(self._path(0), **self._how)  # its errors come now and not with the first frame
        self._video: VideoWriter | None = None
        self._over = True  # whether the next frames are of another video

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        obs, info = self.env.reset(seed=seed, options=options)
        self._begin()
        if self._video is not None:
            self._video.append(self._base.clip.frames[-1:])
        return obs, info

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        obs, reward, terminated, truncated, info = self.env.step(action)
        if self._video is None and self._over:
            self._begin()
        if self._video is not None:
            self._video.append(self._base.clip.frames)
        if terminated or truncated:
            self._end()
        return obs, reward, terminated, truncated, info

    def close(self) -> None:
        self._end()
        self.env.close()

    def _path(self, episode: int) -> Path:
        return self.folder / f"episode-{episode:04d}.mp4"

    def _begin(self) -> None:
        self._end()
        self.episode += 1
        self._over = False
        if self._wanted(self.episode):
            self._video = VideoWriter(self._path(self.episode), **self._how)

    def _end(self) -> None:
        if self._video is not None:
            self._video.close()
        self._video, self._over = None, True
