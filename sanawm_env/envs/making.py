"""Arguments and specs as `gymnasium.make` handles them."""

import dataclasses
import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from typing import Any

import numpy as np
from gymnasium.envs.registration import EnvSpec

from sanawm_env.camera.presets import Workspace
from sanawm_env.system.files import brief
from sanawm_env.system.settings import nearest
from sanawm_env.world.engine import engine_type
from sanawm_env.world.folders import config_of
from sanawm_env.world.world import World

NEAREST = {"max_episode_steps": "max_episode_chunks"}  # what Gymnasium calls it, and what it is called here


def load_options(world: str | os.PathLike | World) -> tuple[str, ...]:
    """Names of the options that load a world.

    Args:
        world: a name, a folder, or a loaded world.

    Raises:
        TypeError: for a world of another type.
        ValueError: as `World.load`.
    """
    if not isinstance(world, World | str | os.PathLike):
        raise TypeError(f"world must be a name, a folder or a loaded World, got {brief(world)}.")
    loaded = isinstance(world, World)
    kind = type(world.options) if loaded else engine_type(config_of(world).engine).options_type
    return tuple(field.name for field in dataclasses.fields(kind))


def keywords(function: Callable) -> tuple[str, ...]:
    """Names of the keywords that a function takes."""
    variable = inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD
    parameters = inspect.signature(function).parameters.values()
    return tuple(p.name for p in parameters if p.kind not in variable and p.name != "self")


def check_keywords(owner: str, given: Mapping[str, Any], known: Sequence[str], of_world: Sequence[str] = ()) -> None:
    """Refuse unknown keywords, in Python's own words, because libraries look for them. The message adds the nearest
    name and what is accepted.

    Args:
        owner: name of the function in the message.
        given: the keywords.
        known: names that are accepted.
        of_world: names of options that load the world.

    Raises:
        TypeError: for an unknown keyword.
    """
    for name in given:
        if name in known or name in of_world:
            continue
        near = NEAREST.get(name)
        meant = f" (did you mean {near}?)" if near in known else nearest(name, (*known, *of_world))
        loads = f", and to load its world {', '.join(of_world)}" if of_world else ""
        raise TypeError(
            f"{owner}() got an unexpected keyword argument {str(name)!r}{meant}: it takes {', '.join(known)}{loads}."
        )


def described(spec: EnvSpec | None, steps: int) -> EnvSpec | None:
    """The spec with plain values in place of paths, enumerations and workspaces, so that it can be written as JSON.

    Args:
        spec: of `gymnasium.make`, or None.
        steps: of an episode, which becomes `max_episode_steps`, where wrappers look for it.
    """
    if spec is None:
        return None
    return dataclasses.replace(spec, kwargs=plain(spec.kwargs), max_episode_steps=steps)


def plain(value: Any) -> Any:
    """A keyword with plain values in place of paths, enumerations, workspaces and NumPy numbers."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, np.generic) or (isinstance(value, np.ndarray) and value.ndim == 1):  # others are images
        return value.tolist()
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Workspace):
        return dataclasses.asdict(value)
    if type(value) is dict:
        return {name: plain(inner) for name, inner in value.items()}
    if type(value) in (list, tuple):
        return type(value)(plain(inner) for inner in value)
    return value
