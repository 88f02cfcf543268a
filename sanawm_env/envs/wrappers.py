"""Wrappers: pixels as floats, and snapshots that include the counters of other wrappers.

`sanawm_env.recording.chunks.RecordChunks` records all frames of an episode as a video.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, SupportsFloat, cast

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.utils import RecordConstructorArgs
from gymnasium.vector import VectorEnv, VectorWrapper
from gymnasium.vector.utils import batch_space
from gymnasium.wrappers import (
    Autoreset,
    DelayObservation,
    FrameStackObservation,
    NormalizeReward,
    OrderEnforcing,
    PassiveEnvChecker,
    RecordEpisodeStatistics,
    StickyAction,
    TimeAwareObservation,
    TimeLimit,
)

from sanawm_env.envs.env import SanaWMEnv
from sanawm_env.envs.observations import Observation
from sanawm_env.simulation.episode import Snapshot

# --- pixels ---


class ScalePixels(gym.ObservationWrapper, RecordConstructorArgs):
    """Frames as float32 in [0, 1] instead of uint8; other entries stay as they are.

    Args:
        env: the environment.
    """

    def __init__(self, env: gym.Env):
        RecordConstructorArgs.__init__(self)
        super().__init__(env)
        self.observation_space = _scaled_space(env.observation_space)

    def observation(self, observation: Observation) -> Observation:
        return _scaled(observation)


class VectorScalePixels(VectorWrapper):
    """`ScalePixels` of a vector environment, in every autoreset mode: `infos["final_obs"]` is scaled too.

    Args:
        env: the vector environment.
    """

    def __init__(self, env: VectorEnv):
        super().__init__(env)
        self.autoreset_mode = env.metadata.get("autoreset_mode")  # TorchRL looks for it here
        self.single_observation_space = _scaled_space(env.single_observation_space)
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        given: Any = seed  # of Gymnasium's type one number, of ours one for each slot too
        observations, infos = self.env.reset(seed=given, options=options)
        return _scaled(observations), infos

    def step(self, actions: Any) -> tuple[Observation, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        observations, *judged, infos = self.env.step(actions)
        if "final_obs" in infos:
            final = np.empty(self.num_envs, object)
            for i in np.flatnonzero(infos["_final_obs"]):
                final[i] = _scaled(infos["final_obs"][i])
            infos = infos | {"final_obs": final}
        return _scaled(observations), *judged, infos


def _scaled(observation: Observation) -> Observation:
    if isinstance(observation, dict):
        return {name: cast(np.ndarray, _scaled(part)) for name, part in observation.items()}
    return observation.astype(np.float32) / 255 if observation.dtype == np.uint8 else observation


def _scaled_space(space: spaces.Space) -> spaces.Space:
    if isinstance(space, spaces.Dict):
        return spaces.Dict({name: _scaled_space(part) for name, part in space.items()})
    return spaces.Box(0, 1, space.shape, np.float32) if space.dtype == np.uint8 else space


# --- snapshots through wrappers ---

# What Gymnasium's wrappers remember of an episode. What they remember beyond it (running means) is not put back.
EPISODE: dict[type[gym.Wrapper], tuple[str, ...]] = {
    Autoreset: ("autoreset",),
    DelayObservation: ("observation_queue",),
    FrameStackObservation: ("obs_queue", "padding_value"),
    NormalizeReward: ("discounted_reward",),
    OrderEnforcing: ("_has_reset",),
    PassiveEnvChecker: ("_previous_data", "checked_data_reuse"),
    RecordEpisodeStatistics: ("episode_returns", "episode_lengths", "episode_start_time"),
    StickyAction: ("last_action", "is_sticky_actions", "num_repeats", "repeats_taken"),
    TimeAwareObservation: ("timesteps",),
    TimeLimit: ("_elapsed_steps",),
}


@dataclass(frozen=True, eq=False)
class WrappedSnapshot:
    """A snapshot of an environment with its wrappers.

    Attributes:
        inner: the environment's own.
        outer: type and attributes of each wrapper with a state, from the outermost inwards.
        seen: the observation and info of the step or reset.
    """

    inner: Snapshot
    outer: tuple[tuple[type, dict[str, Any]], ...]
    seen: tuple[Observation, dict[str, Any]]


class Snapshottable(gym.Wrapper, RecordConstructorArgs):
    """The outermost wrapper: `snapshot` and `restore` that include the state of the wrappers inside it.

    `env.unwrapped.restore` restores the episode, but not the steps that a TimeLimit has counted, nor the older frames
    of a FrameStackObservation. This wrapper restores them too, and `restore` returns what the wrappers made of the
    observation.

    Args:
        env: a wrapped `SanaWMEnv`.
        keep: attributes of your own wrappers to keep, {MyWrapper: ("count",)}.

    Raises:
        TypeError: around anything but a `SanaWMEnv`.
    """

    def __init__(self, env: gym.Env, keep: Mapping[type[gym.Wrapper], Sequence[str]] | None = None):
        RecordConstructorArgs.__init__(self, keep=keep)
        super().__init__(env)
        base = env.unwrapped
        if not isinstance(base, SanaWMEnv):
            raise TypeError(f"Snapshottable takes a wrapped SanaWMEnv, got {type(base).__name__}.")
        self._base = base
        self._kept = EPISODE | dict(keep or {})
        self._seen: tuple[Observation, dict[str, Any]] | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        obs, info = self.env.reset(seed=seed, options=options)
        self._seen = copy.deepcopy((obs, info))
        return obs, info

    def step(self, action: Any) -> tuple[Observation, SupportsFloat, bool, bool, dict[str, Any]]:
        obs, reward, terminated, truncated, info = self.env.step(action)
        self._seen = copy.deepcopy((obs, info))
        return obs, reward, terminated, truncated, info

    def snapshot(self, device: str | None = None) -> WrappedSnapshot:
        """The episode with the state of the wrappers.

        Args:
            device: to move the snapshot to; None to leave it.

        Raises:
            ResetNeeded: before the first reset.
            ValueError: for a device that cannot be used.
        """
        inner = self._base.snapshot(device)
        outer = tuple(
            (type(wrapper), {name: copy.deepcopy(getattr(wrapper, name)) for name in names if hasattr(wrapper, name)})
            for wrapper, names in self._memories()
        )
        return WrappedSnapshot(inner, outer, cast(tuple[Observation, dict[str, Any]], self._seen))

    def restore(self, snapshot: WrappedSnapshot, reseed: int | None = None) -> tuple[Observation, dict[str, Any]]:
        """Return to a snapshot, wrappers included. Nothing has changed after an error.

        Args:
            snapshot: from `snapshot`.
            reseed: as in `SanaWMEnv.restore`.

        Returns:
            The observation and info that the step or reset returned.

        Raises:
            TypeError: for anything but a `WrappedSnapshot`.
            ValueError: for a snapshot of other wrappers; else as `SanaWMEnv.restore`.
        """
        if not isinstance(snapshot, WrappedSnapshot):
            raise TypeError(
                f"restore takes a WrappedSnapshot, got {type(snapshot).__name__}: take one with snapshot() here."
            )
        memories = list(self._memories())
        there, here = [kind.__name__ for kind, _ in snapshot.outer], [type(wrapper).__name__ for wrapper, _ in memories]
        if there != here:
            raise ValueError(
                f"This snapshot is of the wrappers {there}, the environment has {here}: restore it into an environment "
                "with the same wrappers."
            )
        _, now = self._base.restore(snapshot.inner, reseed)
        for (wrapper, _), (_, remembered) in zip(memories, snapshot.outer, strict=True):
            vars(wrapper).update(copy.deepcopy(remembered))
        obs, info = copy.deepcopy(snapshot.seen)
        self._seen = obs, info | now
        return copy.deepcopy(self._seen)

    def _memories(self) -> Iterator[tuple[gym.Wrapper, list[str]]]:
        """The wrappers with a state, from the outermost inwards, and the names of its attributes."""
        env = self.env
        while isinstance(env, gym.Wrapper):
            names = [name for kind, own in self._kept.items() if isinstance(env, kind) for name in own]
            if names:
                yield env, names
            env = env.env
