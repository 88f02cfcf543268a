"""What a world needs from a model: the `Engine` protocol, and the registry of engines.

An engine is installed with an entry point of the group `sanawm_env.engines`, or registered in Python:

    register_engine("panorama", PanoramaEngine)
    World.load("panorama")  # by its own name, without files; or a folder whose config.json names it

No module here or above knows an engine by name.
"""

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Annotated, Any, ClassVar, NamedTuple, Protocol

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from sanawm_env.system.files import brief, explaining, read_json
from sanawm_env.system.settings import check_fields, read
from sanawm_env.world.anchor import Anchor
from sanawm_env.world.config import MAX_BYTES, WorldConfig
from sanawm_env.world.state import Scene, Slot
from sanawm_env.world.threads import MAX_THREADS

GROUP = "sanawm_env.engines"
CAPABILITIES = ("prompts", "images", "exact", "obstacles")


@dataclass(frozen=True, kw_only=True)
class LoadOptions:
    """How a world is loaded, besides its files. Engines extend it.

    Attributes:
        threads: CPU threads of the world's computations, which may decide the last bits of its frames; None for 1. What
            the calling program or OMP_NUM_THREADS say does not matter.

    Raises:
        ValueError: for values that do not fit their annotations.
    """

    threads: Annotated[int, Field(ge=1, le=MAX_THREADS)] | None = None

    decisive: ClassVar[tuple[str, ...]] = ()
    """Names of options that decide the numbers beyond their last bits. Another value makes another world."""

    def __post_init__(self):
        check_fields(self)


class Chunk(NamedTuple):
    """What an engine makes of one chunk of B episodes.

    Attributes:
        frames: (B, F, H, W, 3) uint8, F of the configuration's `chunk_frames`.
        memory: what the engine needs for the next chunk: a tree (`world.tree`) whose tensors have a leading axis B.
        latents: (B, c, T, h, w) of this chunk; None for engines without latents.
        c2w: (B, F, 4, 4) float64, the poses that the frames show; None where these are the requested ones.
    """

    frames: Tensor
    memory: Any
    latents: Tensor | None = None
    c2w: Tensor | None = None


class Engine(Protocol):
    """A world model as pure functions: no argument is written to, nothing is remembered between calls.

    Subclass it for the defaults. Any thread may call it. It is never called with gradients, nor under the caller's
    settings of torch.
    """

    config_type: ClassVar[type[WorldConfig]] = WorldConfig
    options_type: ClassVar[type[LoadOptions]] = LoadOptions
    state_types: ClassVar[tuple[type, ...]] = ()
    """Frozen dataclasses in its conditions and its memory, so that saved states can be read."""

    needs_files: ClassVar[bool] = True
    """Whether its worlds are folders. If not, the configuration's defaults make one world, with the engine's name."""
    elsewhere: ClassVar[Mapping[str, str]] = {}
    """Known worlds that may not be on this machine, and what an error says of each ("is not here yet: run ...")."""

    splits: ClassVar[Mapping[str, int]] = {}
    """Endless sets of start images of `draw_start`, and the number of images in each."""

    config: Any
    """Of `config_type`."""
    device: torch.device
    capabilities: frozenset[str]
    """Some of `CAPABILITIES`. "prompts": it encodes prompts. "images": it begins from images without an anchor.
    "exact": its frames are exact. "obstacles": it may stop a camera on its way (`Chunk.c2w`)."""

    @classmethod
    def load(cls, folder: Path | None, config: Any, device: torch.device, options: Any) -> "Engine":
        """Load a world.

        Args:
            folder: of the world; None for an engine without files.
            config: of `config_type`.
            device: of weights and states.
            options: of `options_type`.

        Raises:
            FileNotFoundError: for missing files, in one sentence.
            ValueError: for files that do not fit, in one sentence.
        """
        ...

    @classmethod
    def draw_start(
        cls, split: str, number: int, height: int, width: int, intrinsics: np.ndarray
    ) -> tuple[np.ndarray, Anchor]:
        """A start image of an endless set, for worlds of any engine.

        Args:
            split: name of the set.
            number: of the image.
            height, width: of the image.
            intrinsics: (4,) fx, fy, cx, cy in its pixels.

        Returns:
            The image (H, W, 3) uint8 and its anchor.

        Raises:
            ValueError: for an engine without such sets.
        """
        raise ValueError(f"{cls.__name__} draws no start images.")

    def encode(self, image: np.ndarray, prompt: str, anchor: Anchor | None) -> Any:
        """What the engine needs to know of a start, as a tree.

        Args:
            image: (H, W, 3) uint8, frame 0.
            prompt: stripped of blanks around it.
            anchor: pose of the image in a known place, or None.

        Raises:
            ValueError: for a start that the engine cannot begin from.
        """
        ...

    def advance(self, slots: Sequence[Slot], memory: Any, poses: Tensor) -> Chunk:
        """Predict the next chunk of B episodes of equal layout.

        Args:
            slots: the B episodes.
            memory: of the episodes, with a leading axis B; None where the chunk opens a segment, as `slots[0].first`
                says of all of them.
            poses: (B, F, 4, 4) float64 camera-to-world, relative to frame 0 of the episode (`slot.origin` is the pose
                of the segment's frame 0).
        """
        ...

    def check_prompt(self, prompt: str) -> None:
        """Raise ValueError for a prompt that `encode` cannot take, where that is known at once."""
        if prompt and "prompts" not in self.capabilities:
            raise ValueError(f"The {self.config.name} world has no text encoder; leave the prompt empty.")

    def start_image(self, image: np.ndarray, intrinsics: np.ndarray, anchor: Anchor | None) -> np.ndarray:
        """Frame 0 of an episode.

        Args:
            image: (H, W, 3) uint8, fitted to the world's frames.
            intrinsics: (4,) in its pixels.
            anchor: pose of the image in a known place, or None.

        Returns:
            (H, W, 3) uint8.

        Raises:
            ValueError: for a start that the engine cannot begin from.
        """
        return image

    def start_latents(self, conditions: Any) -> Tensor | None:
        """Latents (1, c, 1, h, w) of frame 0; None for engines without latents."""
        return None

    def starts(self) -> Sequence[Path]:
        """Paths of the start images of an engine without files."""
        return ()

    def with_prompt(self, scene: Scene, prompt: str) -> Any:
        """The conditions of a scene with another prompt."""
        return self.encode(scene.image, prompt, scene.anchor)

    def with_conditions(self, memory: Any, conditions: Any) -> Any:
        """The memory of one episode under other conditions (another prompt)."""
        return memory

    def without_caches(self, memory: Any) -> Any:
        """The memory of one episode without what can be computed again from the rest, to the same frames."""
        return memory

    def outline(self, scene: Scene, chunks: int) -> tuple[Any, Any]:
        """Layout of conditions and memory, with which saved states are checked.

        Args:
            scene: the scene.
            chunks: chunks of the segment so far.

        Returns:
            Conditions of the scene, and memory after these chunks (None after 0), with tensors on the meta device.
            `...` stands for anything.
        """
        return ..., None if chunks == 0 else ...

    def describe(self) -> str:
        """Which stages make the frames, such as "streaming+refiner"."""
        return self.config.name

    def identity(self) -> bytes:
        """Bytes that stand for all that decides the numbers besides files and configuration. A world's hash includes
        them."""
        return b""

    def unload(self) -> None:
        """Free what can be freed while states still exist."""
        return None


# --- the registry ---

_registered: dict[str, type[Engine] | str] = {}


def register_engine(name: str, engine: type[Engine] | str) -> None:
    """Register an engine. Worlds whose configuration names it are run by it.

    Args:
        name: of the engine.
        engine: a class, or "module:Class".

    Raises:
        ValueError: for an empty name, or text of another form.
        TypeError: for a class without the methods of `Engine`.
    """
    if not isinstance(name, str) or not name:
        raise ValueError(f"The name of an engine must be non-empty text, got {brief(name)}.")
    if not isinstance(engine, str):
        _check_engine(name, engine)
    elif not re.fullmatch(r"[\w.]+:\w+", engine):
        raise ValueError(f'An engine is a class, or text such as "module:Class", got {brief(engine)}.')
    _registered[name] = engine


def known_engines() -> list[str]:
    """Names of the installed and registered engines."""
    return sorted({*_registered, *_installed(tuple(sys.path))})


@cache
def _installed(path: tuple[str, ...]) -> dict[str, EntryPoint]:
    """Engines of the packages in the folders `path`, the first of each name. Cached, because every installed package
    is read."""
    return {entry.name: entry for entry in reversed(tuple(entry_points(group=GROUP)))}


def engine_type(name: str) -> type[Engine]:
    """The class of an engine.

    Args:
        name: of the engine.

    Raises:
        ValueError: for an unknown name (the message lists the known ones), or an engine that cannot be imported.
        TypeError: for a class without the methods of `Engine`.
    """
    found: Any = _registered.get(name)
    with explaining(f"The engine {brief(name)} cannot be imported", (ImportError, AttributeError)):
        if isinstance(found, str):
            module, _, attribute = found.partition(":")
            found = getattr(import_module(module), attribute)
        elif found is None:
            entry = _installed(tuple(sys.path)).get(name)
            if entry is None:
                raise ValueError(f"There is no engine {brief(name)}; known engines are {', '.join(known_engines())}.")
            found = entry.load()
    return _check_engine(name, found)


def _check_engine(name: str, engine: Any) -> type[Engine]:
    missing = [part for part in ("load", "encode", "advance") if not callable(getattr(engine, part, None))]
    if not isinstance(engine, type) or missing:
        lacks = f"it has no {', '.join(missing)}" if isinstance(engine, type) else f"got {brief(engine)}"
        raise TypeError(f"The engine {brief(name)} must be a class as world.engine.Engine describes: {lacks}.")
    for part, base in (("config_type", WorldConfig), ("options_type", LoadOptions)):
        kind = getattr(engine, part, base)
        if not isinstance(kind, type) or not issubclass(kind, base):
            raise TypeError(f"{part} of the engine {brief(name)} must be a dataclass from {base.__name__}.")
    return engine


def read_config(path: Path) -> WorldConfig:
    """Read a `config.json`, as the type that its engine declares.

    Raises:
        ValueError: for a file that is no configuration, or names an unknown engine.
    """
    said = f"{path} is not the configuration of a world"
    with explaining(said, (KeyError, TypeError, ValueError)):
        data = read_json(path, MAX_BYTES)
        engine = data["engine"]
        if not isinstance(engine, str):
            raise ValueError(f"engine must be text, got {brief(engine)}")
    with explaining(f"{path.parent} needs an engine that is not here"):
        kind = engine_type(engine).config_type
    with explaining(said, (TypeError, ValueError)):
        return read(kind, data)


def make_options(kind: type[LoadOptions], world: str, given: Mapping[str, Any]) -> LoadOptions:
    """Load options of an engine.

    Args:
        kind: the engine's `options_type`.
        world: name in the error.
        given: the options.

    Raises:
        TypeError: for options that the engine does not take.
        ValueError: for values out of range.
    """
    known = [field.name for field in fields(kind)]
    if unknown := [option for option in given if option not in known]:
        raise TypeError(f"The world {world} is loaded with the options {', '.join(known)}, not {', '.join(unknown)}.")
    return kind(**given)
