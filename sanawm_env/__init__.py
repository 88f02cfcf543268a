"""sanawm-env: a Gymnasium environment whose physics is a learned world model.

Importing this registers `SanaWM/Explore-v0`, `PointNav`, `ImageNav`, `FollowPath`, `Walk` (no task), `ExplorePixels`
(for tools that take nothing but an id) and `Remote` (environments of a server). It loads neither torch nor weights:
`EnvConfig`, `SanaWMEnv`, `SanaWMVectorEnv`, `Simulator`, `Snapshot` and `World` are imported at their first use.
"""

import importlib
from typing import Any

import gymnasium

from sanawm_env.world import forks as _forks  # noqa: F401  from now on torch works in forked processes

__version__ = "0.2.0"

_LAZY = {
    "EnvConfig": "sanawm_env.envs.config",
    "SanaWMEnv": "sanawm_env.envs.env",
    "SanaWMVectorEnv": "sanawm_env.envs.vector",
    "Simulator": "sanawm_env.simulation.simulator",
    "Snapshot": "sanawm_env.simulation.episode",
    "World": "sanawm_env.world.world",
}
__all__ = ["EnvConfig", "SanaWMEnv", "SanaWMVectorEnv", "Simulator", "Snapshot", "World", "__version__"]

_SETTINGS: dict[str, dict[str, Any]] = {
    name: {"task": name.lower()} for name in ("Explore", "PointNav", "ImageNav", "FollowPath")
}
_SETTINGS["Walk"] = {"task": "none"}
# a frame alone and a number alone, of the size that the filters of most libraries are made for
_SETTINGS["ExplorePixels"] = {"task": "explore", "obs_mode": "rgb", "obs_size": (84, 84), "action_mode": "discrete"}
for _name, _kwargs in _SETTINGS.items():
    gymnasium.register(
        f"SanaWM/{_name}-v0",
        entry_point="sanawm_env.envs.env:SanaWMEnv",
        vector_entry_point="sanawm_env.envs.vector:SanaWMVectorEnv",
        kwargs=_kwargs,
    )
gymnasium.register(
    "SanaWM/Remote-v0",
    entry_point="sanawm_env.serving.remote:RemoteEnv",
    vector_entry_point="sanawm_env.serving.remote:RemoteVectorEnv",
)


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
