"""RLlib: the batched environment for `gym_env_vectorize_mode="vector_entry_point"`.

    from ray.rllib.algorithms.ppo import PPOConfig
    from sanawm_env.integrations import rllib

    config = (
        PPOConfig()
        .environment(rllib.register(), env_config={"id": "SanaWM/Explore-v0", "world": "nano"})
        .env_runners(num_envs_per_env_runner=16, gym_env_vectorize_mode="vector_entry_point")
    )

`pip install "ray[rllib]"` installs gymnasium 1.2.2, which this package accepts. RLlib also runs with gymnasium 1.4.0:
the extra [dev] installs RLlib's requirements without that pin, and the tests use it.

Frames are float32 in [0, 1], because RLlib's networks take neither dicts nor uint8, and 84 x 84 pixels, because RLlib
has default filters for frames of 42, 64, 84 and 96 pixels per side; another `obs_size` needs `conv_filters`. RLlib's
runners reset in the next step.

ray is not imported before `register` is called.
"""

from collections.abc import Mapping
from typing import Any

import gymnasium as gym
from gymnasium.vector import AutoresetMode, VectorEnv

import sanawm_env  # noqa: F401  registers the ids, in every worker
from sanawm_env.envs.wrappers import ScalePixels, VectorScalePixels


def register(name: str = "sanawm") -> str:
    """Register `create` with RLlib under a name, and return the name.

    Raises:
        ImportError: without ray.
    """
    try:
        from ray.tune import register_env
    except ImportError as error:
        raise ImportError(f'RLlib is missing: pip install "ray[rllib]" gymnasium==1.2.2 ({error}).') from error
    register_env(name, create)
    return name


def create(context: Mapping[str, Any]) -> gym.Env | VectorEnv:
    """Make the environment of an `env_config`.

    Args:
        context: "id" (SanaWM/Explore-v0 by default) and keywords of `SanaWMEnv`; the defaults of "obs_mode" and
            "obs_size" are "rgb" and (84, 84). RLlib adds "num_envs" where it wants a batch.

    Raises:
        ValueError: as `SanaWMEnv`.
        gymnasium.error.Error: for an unknown id.
    """
    settings: dict[str, Any] = {"id": "SanaWM/Explore-v0", "obs_mode": "rgb", "obs_size": (84, 84)} | dict(context)
    if settings.get("num_envs") is None:
        return ScalePixels(gym.make(**settings))
    return VectorScalePixels(gym.make_vec(**settings, autoreset_mode=AutoresetMode.NEXT_STEP))
