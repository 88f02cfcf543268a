"""The arguments of an environment as one value, and as plain values for files and specs.

config = EnvConfig(world="nano", task="explore", max_episode_chunks=20)
env = SanaWMEnv(**config.keywords)  # env.config == config
EnvConfig.from_plain(json.loads(json.dumps(config.to_plain()))) == config
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

from sanawm_env.camera.presets import Workspace
from sanawm_env.envs.making import check_keywords, keywords, plain
from sanawm_env.simulation.simulator import Limits
from sanawm_env.simulation.tasks import Task, make_task
from sanawm_env.system.files import brief, check_choice
from sanawm_env.system.settings import read
from sanawm_env.world.images import ImageSource
from sanawm_env.world.world import World

RENDER_MODES = ("rgb_array", "rgb_array_list")
SNAPSHOTS = ("tails", "latents")


@dataclass(frozen=True, kw_only=True)
class EnvConfig:
    """The arguments of `SanaWMEnv`, which explains them, and their defaults.

    Attributes:
        world_options: arguments that load the world, by name. The other attributes are those of `SanaWMEnv`.

    Raises:
        ValueError: for values that can be refused without loading the world.
        TypeError: likewise.
    """

    world: str | os.PathLike | World = "nano"
    scenes: ImageSource | Sequence[ImageSource] | None = None
    obs_mode: str = "dict"
    action_mode: str = "twist"
    max_episode_chunks: int = 10
    device: str = "cpu"
    speed: str | None = None
    smoothing: str = "hold"
    obs_size: tuple[int, int] | None = None
    render_mode: str | None = None
    workspace: Workspace | None = None
    horizon: str = "stop"
    snapshots: str = "tails"
    task: str | Task = "none"
    task_options: Mapping[str, Any] | None = None
    world_options: Mapping[str, Any] = field(default_factory=dict)

    __pydantic_config__: ClassVar = {"arbitrary_types_allowed": True}  # worlds, tasks and images

    def __post_init__(self):
        check_choice("snapshots", self.snapshots, SNAPSHOTS)
        if self.render_mode is not None:
            check_choice("render_mode", self.render_mode, RENDER_MODES, also=", or None")
        if isinstance(self.world, World) and self.world_options:
            raise TypeError(f"A loaded World takes no {', '.join(self.world_options)}: load it with them.")
        make_task(self.task, self.task_options)
        Limits(Workspace(), self.max_episode_chunks, self.horizon)
        object.__setattr__(self, "workspace", _workspace(self.workspace))
        object.__setattr__(self, "task_options", dict(self.task_options or {}) or None)
        object.__setattr__(self, "world_options", dict(self.world_options))

    @property
    def keywords(self) -> dict[str, Any]:
        """The arguments of `SanaWMEnv` and `gymnasium.make`, options of the world included."""
        names = [each.name for each in fields(self) if each.name != "world_options"]
        return {name: getattr(self, name) for name in names} | dict(self.world_options)

    def to_plain(self) -> dict[str, Any]:
        """The arguments as JSON and YAML hold them, without None and empty values.

        Raises:
            TypeError: for a world, a task or an image that is an object: a file needs a name or path.
        """
        values = {name: plain(value) for name, value in self.keywords.items()}
        for name, value in values.items():
            try:
                json.dumps(value)
            except (TypeError, ValueError):
                said = f"{name} cannot be written to a file, got {brief(value)}: give a name or path."
                raise TypeError(said) from None
        return {name: value for name, value in values.items() if value not in (None, {})}

    @classmethod
    def from_plain(cls, data: Mapping[str, Any]) -> "EnvConfig":
        """The config of what `to_plain` returned, or of a part of it. A name that is no argument is an option of the
        world, which checks it.

        Raises:
            ValueError: for values that do not fit.
            TypeError: likewise.
        """
        if not isinstance(data, Mapping):
            raise ValueError(f"The settings of an environment must be a mapping, got {brief(data)}.")
        own = {each.name for each in fields(cls)} - {"world_options"}
        given = {name: plain(value) for name, value in data.items()}
        options = {name: value for name, value in given.items() if name not in own}
        return read(cls, {name: given[name] for name in given if name in own} | {"world_options": options})


def _workspace(settings: Mapping[str, float] | Workspace | None) -> Workspace | None:
    if isinstance(settings, Workspace | None):
        return settings
    if not isinstance(settings, Mapping):
        raise TypeError(f"workspace must be a mapping of its limits, got {type(settings).__name__}.")
    check_keywords("Workspace.__init__", settings, keywords(Workspace.__init__))
    return Workspace(**settings)
