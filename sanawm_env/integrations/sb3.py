"""Stable-Baselines3: a `VecEnv` around the batched environment.

    envs = SB3VecEnv("SanaWM/Explore-v0", num_envs=16, world="nano", obs_size=(36, 54))
    PPO("MultiInputPolicy", envs).learn(20_000)

It behaves as `DummyVecEnv`, which would step episodes one by one; `SubprocVecEnv` would load the weights once per
process.
"""

import warnings
from collections.abc import Sequence
from typing import Any, cast

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import AutoresetMode

from sanawm_env.envs.env import SanaWMEnv
from sanawm_env.envs.observations import Observation
from sanawm_env.envs.vector import SanaWMVectorEnv
from sanawm_env.system.packages import needing

with needing("Stable-Baselines3 is missing", "rl"):
    from stable_baselines3.common.vec_env import VecEnv
    from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices


class SB3VecEnv(VecEnv):
    """A `VecEnv` that steps all slots in one forward pass.

    Episodes that end are reset in the same step: `infos[i]["terminal_observation"]` is the last observation, and
    `infos[i]["TimeLimit.truncated"]` is True where the episode was truncated and not terminated. `seed` and
    `set_options` apply to the next `reset`. `env_method` calls the single environments, such as
    `env_method("snapshot")` or `env_method("restore", snapshot, indices=[0])`; the last observation that an algorithm
    has is out of date then.

    SB3's networks take "rgb", "stack" and the frames of "dict" as images. Chunks and latents need a features extractor
    of your own.

    Args:
        envs: the id of an environment, such as "SanaWM/Explore-v0", or a `SanaWMVectorEnv` with autoreset_mode
            "SameStep".
        num_envs: number of slots, for an id.
        settings: keywords of `SanaWMVectorEnv`, for an id.

    Attributes:
        batch: the `SanaWMVectorEnv`.

    Raises:
        TypeError: for anything else, functions that make environments among them, and for settings beside a
            `SanaWMVectorEnv`.
        ValueError: for a `SanaWMVectorEnv` with another autoreset mode.
    """

    def __init__(self, envs: str | SanaWMVectorEnv, num_envs: int | None = None, **settings: Any):
        if "n_envs" in settings:
            raise TypeError("SB3VecEnv got an unexpected keyword argument 'n_envs': it is called num_envs here.")
        if isinstance(envs, str):
            num_envs = 1 if num_envs is None else num_envs
            made = gym.make_vec(envs, num_envs=num_envs, autoreset_mode=AutoresetMode.SAME_STEP, **settings)
            envs = cast(SanaWMVectorEnv, made)
        elif num_envs is not None or settings:
            raise TypeError(
                "num_envs and settings are for an environment given by its id: a SanaWMVectorEnv has its own."
            )
        elif not isinstance(envs, SanaWMVectorEnv):
            raise TypeError(
                "SB3VecEnv steps one batch and takes an id or a SanaWMVectorEnv, not functions or single environments "
                f"(got {type(envs).__name__}). In place of make_vec_env(id, n_envs=4, vec_env_cls=SB3VecEnv): "
                "VecMonitor(SB3VecEnv(id, num_envs=4))."
            )
        if envs.autoreset_mode != AutoresetMode.SAME_STEP:
            raise ValueError(
                "Stable-Baselines3 resets an episode in the step that ends it: make the environment with "
                f'autoreset_mode="SameStep", not {envs.autoreset_mode.value!r}.'
            )
        self.batch = envs
        super().__init__(envs.num_envs, envs.single_observation_space, envs.single_action_space)
        self.metadata = envs.metadata
        self._each = False  # whether every slot has options of its own

    @property
    def spec(self) -> EnvSpec | None:
        """The spec of the environment's id, for monitor files; None for a batch that was not made by id."""
        return self.batch.spec

    def set_options(self, options: Sequence[dict[str, Any]] | dict[str, Any] | None = None) -> None:
        """Set the options of the next reset.

        Args:
            options: one dict for all slots (a seed in it counts up from slot to slot), or one for each slot.

        Raises:
            ValueError: for another number of dicts.
        """
        if not isinstance(options, dict | None) and len(options) != self.num_envs:
            raise ValueError(
                f"set_options takes one dict, or one for each of the {self.num_envs} slots, got {len(options)}."
            )
        super().set_options(options if isinstance(options, dict | None) else list(options))
        self._each = not isinstance(options, dict | None)

    def reset(self) -> Observation:
        obs, infos = self.batch.reset(seed=self._seeds, options=self._options if self._each else self._options[0])
        self.reset_infos = self._listed(infos)
        self._reset_seeds()
        self.set_options()
        return obs

    def step_async(self, actions: np.ndarray) -> None:
        """Keep the actions for `step_wait`."""
        self.actions = actions

    def step_wait(self) -> tuple[Observation, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        """Step all slots in one batch."""
        obs, rewards, terminated, truncated, infos = self.batch.step(self.actions)
        done, listed = terminated | truncated, self._listed(infos)
        if done.any():
            final = self._listed(infos["final_info"])
        for i in np.flatnonzero(done):
            self.reset_infos[i] = listed[i]
            listed[i] = final[i] | {"terminal_observation": infos["final_obs"][i]}
        for info, ended, cut in zip(listed, terminated, truncated, strict=True):
            info["TimeLimit.truncated"] = bool(cut and not ended)
        return obs, rewards.astype(np.float32), done, listed

    def close(self) -> None:
        self.batch.close()

    def get_images(self) -> Sequence[np.ndarray | None]:
        """The rendered image of every slot; None for each, and a warning, for another render mode than "rgb_array"."""
        if self.render_mode != "rgb_array":
            warnings.warn(f'Images need render_mode="rgb_array", not {self.render_mode!r}.', stacklevel=2)
            return [None] * self.num_envs
        return self.batch.render() or ()

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        return [getattr(env, attr_name) for env in self._chosen(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        for env in self._chosen(indices):
            setattr(env, attr_name, value)

    def env_method(self, method_name: str, *args: Any, indices: VecEnvIndices = None, **kwargs: Any) -> list[Any]:
        """The results of a method of the single environments."""
        return [getattr(env, method_name)(*args, **kwargs) for env in self._chosen(indices)]

    def env_is_wrapped(self, wrapper_class: type[gym.Wrapper], indices: VecEnvIndices = None) -> list[bool]:
        """False for every slot: single environments have no wrappers."""
        return [False for _ in self._chosen(indices)]

    def _chosen(self, indices: VecEnvIndices) -> list[SanaWMEnv]:
        return [self.batch.envs[i] for i in self._get_indices(indices)]

    def _listed(self, infos: dict[str, Any]) -> list[dict[str, Any]]:
        """An info per slot, with the keys that it has."""
        names = [name for name in infos if not name.startswith(("_", "final_"))]
        return [{name: infos[name][i] for name in names if infos[f"_{name}"][i]} for i in range(self.num_envs)]
