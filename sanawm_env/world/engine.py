"""What a world needs from a model: the `Engine` protocol, and the registry of engines.

An engine is installed with an entry point of the group `sanawm_env.engines`, or registered by hand:

    register_engine("panorama", PanoramaEngine)
    World.load("panorama")              # without files, by its own name; or a folder whose config.json names it

Nothing here or above knows an engine by name.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from sanawm_env.system.files import brief, check_count, explaining, read_json
from sanawm_env.system.settings import read
from sanawm_env.world.anchor import Anchor
from sanawm_env.world.config import MAX_BYTES, WorldConfig
from sanawm_env.world.state import Scene, Slot
from sanawm_env.world.threads import MAX_THREADS

GROUP = "sanawm_env.engines"
CAPABILITIES = ("prompts", "images", "exact", "obstacles")


@dataclass(frozen=True, kw_only=True)
class LoadOptions:
    """How a world is loaded, beside its files; engines extend it.

    Attributes:
        threads: that it computes with on the CPU, which may decide the last bits of its frames: 1 (None), whatever the
            calling program or OMP_NUM_THREADS say.
    """

    threads: int | None = None

    decisive: ClassVar[tuple[str, ...]] = ()
    """Names of those that decide the numbers beyond their last bits: other ones are another world."""

    def __post_init__(self):
        if self.threads is not None:
            object.__setattr__(self, "threads", check_count("threads", self.threads, 1, MAX_THREADS))


class Chunk(NamedTuple):
    """What an engine makes of one chunk of B episodes.

    frames: (B, F, H, W, 3) uint8, F of the configuration's `chunk_frames`. memory: what the engine needs for the next
    chunk, a tree (`world.tree`) whose tensors have a leading axis B. latents: (B, c, T, h, w), of the chunk alone; None
    for engines that have none. c2w: (B, F, 4, 4) float64, the poses that are really shown, where an engine does not
    take the camera wherever it was asked to; None for those asked for.
    """

    frames: Tensor
    memory: Any
    latents: Tensor | None = None
    c2w: Tensor | None = None


class Engine(Protocol):
    """A world model as pure functions: no argument is written to, nothing is remembered between calls.

    Subclass it for the defaults. Any thread may call it; it is never called with gradients, nor under what the caller
    has set in torch.
    """

    config_type: ClassVar[type[WorldConfig]] = WorldConfig
    options_type: ClassVar[type[LoadOptions]] = LoadOptions
    state_types: ClassVar[tuple[type, ...]] = ()
    """Frozen dataclasses that its conditions and its memory are made of, so that its files can be read back."""

    needs_files: ClassVar[bool] = True
    """Whether its worlds are folders. Without, the configuration's defaults make one, which has the engine's name."""
    elsewhere: ClassVar[Mapping[str, str]] = {}
    """Worlds that are known and not on this machine, and what to say of each, as in "is not here yet: run ..."."""

    splits: ClassVar[Mapping[str, int]] = {}
    """Endless sets of start images that `draw_start` draws from, and how many are in each."""

    config: Any
    """Of `config_type`."""
    device: torch.device
    capabilities: frozenset[str]
    """Some of `CAPABILITIES`: prompts can be encoded, images without an anchor can be begun
    from, frames are exact, cameras may be stopped on their way (`Chunk.c2w`)."""

    @classmethod
    def load(cls, folder: Path | None, config: Any, device: torch.device, options: Any) -> "Engine":
        """From the files of a world's folder; None for a world without. FileNotFoundError or ValueError in one
        sentence."""
        ...

    @classmethod
    def draw_start(
        cls, split: str, number: int, height: int, width: int, intrinsics: np.ndarray
    ) -> tuple[np.ndarray, Anchor]:
        """Start image `number` of a set: an image (H, W, 3) uint8 through intrinsics (4,) in its pixels, and its
        anchor. For worlds of any engine. ValueError for an engine that draws none."""
        raise ValueError(f"{cls.__name__} draws no start images.")

    def encode(self, image: np.ndarray, prompt: str, anchor: Anchor | None) -> Any:
        """What the engine needs of a start, a tree: of the image (H, W, 3) uint8, the prompt, which is stripped, and
        the anchor. ValueError for what it cannot begin from."""
        ...

    def advance(self, slots: Sequence[Slot], memory: Any, poses: Tensor) -> Chunk:
        """The next chunk of B episodes of equal layout.

        slots: the episodes. memory: theirs, with a leading axis B; None where the chunk opens a segment, as
        `slots[0].first` says of all of them. poses: (B, F, 4, 4) float64 camera-to-world, relative to frame 0 of the
        episode (`slot.origin` is the pose of the segment's).
        """
        ...

    def check_prompt(self, prompt: str) -> None:
        """ValueError for a prompt that `encode` cannot take, if it can be told at once."""
        if prompt and "prompts" not in self.capabilities:
            raise ValueError(f"The {self.config.name} world has no text encoder; leave the prompt empty.")

    def start_image(self, image: np.ndarray, intrinsics: np.ndarray, anchor: Anchor | None) -> np.ndarray:
        """Frame 0 (H, W, 3) uint8 of an episode that starts at an image, fitted to the world's frames, with intrinsics
        (4,) in its pixels. ValueError for one that the engine cannot start from."""
        return image

    def start_latents(self, conditions: Any) -> Tensor | None:
        """Latents (1, c, 1, h, w) of frame 0."""
        return None

    def starts(self) -> Sequence[Path]:
        """Start images that come with the engine, for worlds without files."""
        return ()

    def with_prompt(self, scene: Scene, prompt: str) -> Any:
        """The conditions of a scene with another prompt."""
        return self.encode(scene.image, prompt, scene.anchor)

    def with_conditions(self, memory: Any, conditions: Any) -> Any:
        """The memory of one episode once other conditions (another prompt) hold."""
        return memory

    def without_caches(self, memory: Any) -> Any:
        """The memory of one episode without what can be made again from the rest of it, to the same frames."""
        return memory

    def outline(self, scene: Scene, chunks: int) -> tuple[Any, Any]:
        """Conditions of a scene, and memory of an episode after so many chunks of a segment (None after 0): as they
        are, with tensors on the meta device in place of its own, and `...` for what may be anything. What saved states
        are held to."""
        return ..., None if chunks == 0 else ...

    def describe(self) -> str:
        """Which stages make the frames, as in "streaming+refiner"."""
        return self.config.name

    def identity(self) -> bytes:
        """What decides the numbers besides the files and the configuration; a world's hash is of it."""
        return b""

    def unload(self) -> None:
        """Give back what can be given back while states are still held."""
        return None


# --- the registry ---

_registered: dict[str, type[Engine] | str] = {}


def register_engine(name: str, engine: type[Engine] | str) -> None:
    """Have worlds whose configuration names the engine `name` run by it: a class, or "module:Class".

    Raises TypeError for anything else, ValueError for an empty name.
    """
    if not isinstance(name, str) or not name:
        raise ValueError(f"The name of an engine must be a text, got {brief(name)}.")
    if not isinstance(engine, str):
        _check_engine(name, engine)
    _registered[name] = engine


def known_engines() -> list[str]:
    """Names of the engines that are installed or registered."""
    return sorted({*_registered, *_installed(tuple(sys.path))})


@cache
def _installed(path: tuple[str, ...]) -> dict[str, EntryPoint]:
    """Engines of the packages in the folders `path`, the first of each name; looked for once in a process, as every
    package that is installed has to be read."""
    return {entry.name: entry for entry in reversed(tuple(entry_points(group=GROUP)))}


def engine_type(name: str) -> type[Engine]:
    """The engine of that name; ValueError naming the known ones, or saying why it cannot be imported."""
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
    return engine


def read_config(path: Path) -> WorldConfig:
    """The configuration in a `config.json`, of the type that its engine declares; ValueError in one sentence."""
    said = f"{path} is not the configuration of a world"
    with explaining(said, (KeyError, TypeError, ValueError)):
        data = read_json(path, MAX_BYTES)
        engine = data["engine"]
        if not isinstance(engine, str):
            raise ValueError(f"engine must be a text, got {brief(engine)}")
    with explaining(f"{path.parent} needs an engine that is not here"):
        kind = engine_type(engine).config_type
    with explaining(said, (TypeError, ValueError)):
        return read(kind, data)


def make_options(kind: type[LoadOptions], world: str, given: Mapping[str, Any]) -> LoadOptions:
    """Load options of an engine; TypeError for those it does not take, and what the options themselves raise."""
    known = [field.name for field in fields(kind)]
    if unknown := [option for option in given if option not in known]:
        raise TypeError(f"The world {world} is loaded with the options {', '.join(known)}, not {', '.join(unknown)}.")
    return kind(**given)
