"""The state of a world as a value, and its file.

A `WorldState` is a tuple of slots, one per episode. A slot holds everything that the future of its episode depends on:
scene, seed, number of chunks, pose, last frame, recurrent state. States are never edited, so keeping, restoring and
branching copy nothing: `state[i]` and `stack` only rearrange references.
"""

import json
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import torch
from pydantic import Field
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sanawm_env.system.files import brief, check_file, explaining, parse_json
from sanawm_env.system.saving import replacing
from sanawm_env.world import tree
from sanawm_env.world.anchor import Anchor
from sanawm_env.world.isolation import isolated
from sanawm_env.world.saved import MAX_SEED, MOST_CHUNKS, check_slot

if TYPE_CHECKING:
    from sanawm_env.world.world import World

SCHEMA = 4


@dataclass(frozen=True, eq=False)
class Scene:
    """A start image, encoded once.

    Attributes:
        key: content hash of image, intrinsics, prompt and anchor.
        weights_hash: of the world that encoded it.
        image: (H, W, 3) uint8, frame 0.
        intrinsics: (4,) float64 fx, fy, cx, cy in pixels of `image`.
        conditions: what the engine made of image, prompt and anchor, a tree.
        anchor: pose of frame 0 in a known place, or None.
        intrinsics_source: "given", "fov", "estimated", "exif" or "default".
        prompt: the text.
    """

    key: str
    weights_hash: str
    image: np.ndarray
    intrinsics: np.ndarray
    conditions: Any
    anchor: Anchor | None = None
    intrinsics_source: str = "default"
    prompt: str = ""


@dataclass(frozen=True, eq=False)
class Slot:
    """One episode at a chunk border.

    Attributes:
        scene: where it began.
        seed: of its noise.
        chunk: number of chunks so far.
        c2w: (4, 4) float64 pose of the last frame relative to frame 0.
        frame: (H, W, 3) uint8, the last frame.
        latents: (1, c, T, h, w) of the last chunk, of frame 0 alone before the first; None in worlds without latents.
        memory: what the engine passes from chunk to chunk (tensors with a leading axis of 1); None before a segment's
            first chunk.
        origin: (4, 4) pose, relative to frame 0, at which this segment began: the identity, until `World.reanchor`.
        start: chunk at which this segment began: 0, until `World.reanchor`.
    """

    scene: Scene
    seed: Annotated[int, Field(ge=0, le=MAX_SEED)]
    chunk: Annotated[int, Field(ge=0, le=MOST_CHUNKS)]
    c2w: np.ndarray
    frame: Tensor
    latents: Tensor | None = None
    memory: Any = None
    origin: np.ndarray = field(default_factory=lambda: np.eye(4))
    start: int = 0

    @property
    def first(self) -> bool:
        """Whether the next chunk opens a segment, and so includes frame 0."""
        return self.chunk == self.start


@dataclass(frozen=True, eq=False)
class WorldState:
    """A batch of episodes.

    Attributes:
        slots: one for each episode.
        engine: name of the engine of its world.
        weights_hash: of its world.
    """

    slots: tuple[Slot, ...]
    engine: str
    weights_hash: str

    def __len__(self) -> int:
        return len(self.slots)

    def __getitem__(self, index: int | slice) -> "WorldState":
        """The state of one episode, or of several; nothing is copied."""
        return replace(self, slots=self.slots[index] if isinstance(index, slice) else (self.slots[index],))

    def __iter__(self) -> Iterator["WorldState"]:
        return (replace(self, slots=(slot,)) for slot in self.slots)

    @property
    def nbytes(self) -> int:
        """Bytes of tensor memory that this state refers to; what its slots share counts once."""
        return tree.nbytes(self.slots)

    @property
    def device(self) -> torch.device:
        """Where its tensors are."""
        return self.slots[0].frame.device

    @isolated
    def to(self, device: str | torch.device) -> "WorldState":
        """The same state with its tensors on another device. Tensors that are there already are shared."""
        return replace(self, slots=tree.map_tensors(lambda t: t.to(device), self.slots))

    def reseed(self, seed: int) -> "WorldState":
        """The same state with other noise: slot i draws from seed + i from the next chunk on. Raises TypeError or
        ValueError for a wrong seed."""
        seed = check_seed(seed)
        return replace(self, slots=tuple(replace(slot, seed=seed + i) for i, slot in enumerate(self.slots)))

    @isolated
    def save(self, path: str | os.PathLike, extra: Any = None) -> None:
        """Write a safetensors file with a JSON header. It appears whole or not at all.

        Args:
            path: of the file.
            extra: a tree of tensors and plain values to keep beside the state; `load_state` returns it.

        Raises:
            OSError: where it cannot be written.
        """
        tensors: dict[str, Tensor] = {}
        header = {
            "schema": SCHEMA,
            "engine": self.engine,
            "weights_hash": self.weights_hash,
            "slots": tree.dump(self.slots, tensors, "slots"),
            "extra": tree.dump(extra, tensors, "extra"),
        }
        save_whole(tensors, path, {"sanawm_state": json.dumps(header)})

    @classmethod
    def load(cls, path: str | os.PathLike, world: "World") -> "WorldState":
        """Read a state that `save` wrote.

        Args:
            path: of the file.
            world: that the state belongs to.

        Raises:
            FileNotFoundError: where there is no file.
            ValueError: for a truncated or foreign file, another schema, or other weights.
            TypeError: for a path or world of another type.
        """
        return load_state(path, world)[0]


@isolated
def load_state(path: str | os.PathLike, world: "World", *extra_types: type) -> tuple[WorldState, Any]:
    """Read a state, and what was saved as `extra`. Raises as `WorldState.load`.

    Args:
        path: of the file.
        world: that the state belongs to.
        *extra_types: dataclasses in `extra`. Without any, `extra` is not read.

    Returns:
        The state, and `extra` or None.
    """
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"path must be the path of a file, got {brief(path)}.")
    path = Path(path)
    if not hasattr(world, "check_state"):
        raise TypeError(f"world must be a World, got {type(world).__name__}: give World.load(name).")
    if not path.exists():
        raise FileNotFoundError(f"There is no state at {path}.")
    try:
        with safe_open(check_file(path), "pt") as file:
            header = dict(parse_json((file.metadata() or {})["sanawm_state"]))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, KeyError, OSError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} is not a saved state, or was cut off: save one with WorldState.save or Snapshot.save."
        ) from error
    if header.get("schema") != SCHEMA:
        raise ValueError(
            f"{path} has schema {brief(header.get('schema'))}, this version reads {SCHEMA}: save it anew with this "
            "version."
        )
    types = {t.__name__: t for t in (Scene, Slot, Anchor, *world.engine.state_types, *extra_types)}
    with explaining(f"{path} cannot be read here"):
        for name in ("engine", "weights_hash"):
            if not isinstance(header.get(name), str):
                raise ValueError(f"{name} must be text, got {brief(header.get(name))}")
        state = WorldState((), header["engine"], header["weights_hash"])
        world.check_state(state)  # first: other weights have other shapes
    with explaining(f"{path} does not hold a complete state", (ValueError, RecursionError)):
        slots = tree.restore(header.get("slots"), tensors, types, "slots")
        if not isinstance(slots, tuple) or not slots or not all(isinstance(slot, Slot) for slot in slots):
            raise ValueError("slots must be episodes")
        for i, slot in enumerate(slots):
            check_slot(slot, world, f"slots.{i}")
        state = replace(state, slots=slots)
        extra = tree.restore(header.get("extra"), tensors, types, "extra") if extra_types else None
    return state.to(world.device), tree.map_tensors(lambda t: t.to(world.device), extra)


def save_whole(tensors: dict[str, Tensor], path: str | os.PathLike, metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file, which appears whole or not at all.

    Args:
        tensors: by name.
        path: of the file.
        metadata: of the header.

    Raises:
        OSError: where it cannot be written.
    """
    with replacing(path) as part:
        try:
            save_file(tensors, part, metadata)
        except SafetensorError as error:
            number = re.search(r"os error (\d+)", str(error))  # the library's own type hides the system's error
            raise OSError(*([int(number[1]), os.strerror(int(number[1]))] if number else [str(error)])) from error


def stack(states: Iterable[WorldState]) -> WorldState:
    """One state of all episodes of several states; nothing is copied.

    Raises:
        ValueError: for no state, or states of different worlds.
    """
    states = list(states)
    if not states:
        raise ValueError("stack needs at least one state.")
    if len({(s.engine, s.weights_hash) for s in states}) > 1:
        raise ValueError("States of different worlds cannot be stacked: give states of one world.")
    return replace(states[0], slots=tuple(slot for s in states for slot in s.slots))


def check_seed(seed: int) -> int:
    """A seed as a Python int.

    Raises:
        TypeError: for anything but a whole number.
        ValueError: outside 0..2^63-1.
    """
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer):
        raise TypeError(f"A seed must be a whole number, got {brief(seed)}.")
    if not 0 <= seed <= MAX_SEED:
        raise ValueError(f"A seed must lie in 0..2^63-1, got {brief(int(seed))}.")
    return int(seed)
