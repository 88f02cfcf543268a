"""RLlib: the batched environment for `gym_env_vectorize_mode="vector_entry_point"`.

    from ray.rllib.algorithms.ppo import PPOConfig
    from sanawm_env.integrations import rllib

    config = (
        PPOConfig()
        .environment(rllib.register(), env_config={"id": "SanaWM/Explore-v0", "world": "nano"})
        .env_runners(num_envs_per_env_runner=16, gym_env_vectorize_mode="vector_entry_point")
    )

ray[rllib] 2.60 pins gymnasium 1.2.2, which is in our range: pip install sanawm-env "ray[rllib]" gymnasium==1.2.2. The
tests run it on the gymnasium of `constraints.txt`, which pip takes where what RLlib needs is named without its pin (as
in the extra [dev]).

RLlib's networks take no dict and no uint8, so frames come alone and as float32 in [0, 1]; they have default filters
for frames of 42 x 42, 64 x 64, 84 x 84 and 96 x 96, so frames are 84 x 84 unless `obs_size` says otherwise (other
sizes need `conv_filters`); and its runners reset in the next step.

Nothing here imports ray before `register` is called.
"""

from collections.abc import Mapping
from typing import Any

import gymnasium as gym
from gymnasium.vector import AutoresetMode, VectorEnv

import sanawm_env  # noqa: F401  registers the ids, in every worker
from sanawm_env.envs.wrappers import ScalePixels, VectorScalePixels


def register(name: str = "sanawm") -> str:
    """Make `create` known to RLlib under this name, and return it. ImportError without ray."""
    try:
        from ray.tune import register_env
    except ImportError as error:
        raise ImportError(f'RLlib is missing: pip install "ray[rllib]" gymnasium==1.2.2 ({error}).') from error
    register_env(name, create)
    return name


def create(context: Mapping[str, Any]) -> gym.Env | VectorEnv:
    """The environment of an `env_config`: its "id" (SanaWM/Explore-v0) and the arguments of `SanaWMEnv`, "obs_mode"
    being "rgb" and "obs_size" (84, 84) by default. RLlib adds "num_envs" where it wants a batch."""
    settings: dict[str, Any] = {"id": "SanaWM/Explore-v0", "obs_mode": "rgb", "obs_size": (84, 84)} | dict(context)
    if settings.get("num_envs") is None:
        return ScalePixels(gym.make(**settings))
    return VectorScalePixels(gym.make_vec(**settings, autoreset_mode=AutoresetMode.NEXT_STEP))
