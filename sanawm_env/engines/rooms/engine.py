"""The truth that nano was trained on, as a world: every frame is ray-traced from the camera's pose.

    world = World.load("rooms", height=240, width=320)
    scene = world.scene(world.starts[0])  # a PNG with its anchor
    save_start_in("test/7", "room.png"); scene = world.scene("room.png")  # one of endlessly many furnished rooms

A camera passes through walls and furniture, as SANA-WM's do (`raycast.render` says what it sees inside them), unless
the world is loaded with `collisions=True`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from os import PathLike
from pathlib import Path
from typing import Annotated, ClassVar, cast

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from sanawm_env.camera.intrinsics import intrinsics_from_fov
from sanawm_env.camera.presets import Workspace
from sanawm_env.engines.rooms.places import PLACE_NAMES, PLACES, bounds, is_place, place
from sanawm_env.engines.rooms.raycast import render
from sanawm_env.engines.rooms.walks import held_clear, sample_start
from sanawm_env.system.files import brief, check_count
from sanawm_env.world.anchor import Anchor
from sanawm_env.world.config import BoundingBox, WorldConfig
from sanawm_env.world.engine import Chunk, Engine, LoadOptions
from sanawm_env.world.folders import SHIPPED
from sanawm_env.world.images import save_start
from sanawm_env.world.state import Scene, Slot

REVISION = 1  # of the renderer: another one where its frames are others
MOST_RAYS = 2**25  # of a frame: 4K with 2 x 2 rays a pixel, which takes some 0.7 GB while it is made


@dataclass(frozen=True, kw_only=True)
class RoomsConfig(WorldConfig):
    """Like nano's configuration, with larger frames.

    Attributes:
        chunk_frames: frames of a step. The other attributes are those of `WorldConfig`.
    """

    name: str = "rooms"
    engine: str = "rooms"
    height: int = 128
    width: int = 192
    chunk_frames: int = 24
    workspace: Workspace = field(default=Workspace(pitch_limit_deg=40, soft_distance=4, hard_distance=8))
    places: Mapping[str, BoundingBox] = field(
        default_factory=lambda: {name: bounds(name) for name in PLACES}, hash=False
    )

    def __post_init__(self):
        super().__post_init__()
        check_count("chunk_frames", self.chunk_frames, 1, 1000)
        if unknown := [name for name in self.places if not is_place(name)]:
            raise ValueError(f"places must be some of {PLACE_NAMES}, got {brief(unknown[0])}")

    @property
    def known_places(self) -> str:
        return PLACE_NAMES

    def knows(self, place: str) -> bool:
        return is_place(place)


@dataclass(frozen=True, kw_only=True)
class RoomsLoadOptions(LoadOptions):
    """How the world is loaded.

    Attributes:
        height, width: of frames, in pixels; None as the world is configured.
        supersample: rays along each side of a pixel. A frame has at most `MOST_RAYS` rays.
        collisions: whether a camera is stopped 0.35 m before obstacles: it turns as asked, and does not take steps that
            lead nearer (`walks.held_clear`). The poses of clips and states are the true ones.

    Raises:
        ValueError: for values out of range.
    """

    height: Annotated[int, Field(ge=1, le=4096)] | None = None
    width: Annotated[int, Field(ge=1, le=4096)] | None = None
    supersample: Annotated[int, Field(ge=1, le=8)] = 2
    collisions: bool = False


class RoomsEngine(Engine):
    """The renderer. An episode has no memory: its frames follow from its anchor and its poses."""

    config_type = RoomsConfig
    options_type = RoomsLoadOptions
    needs_files = False
    splits: ClassVar[Mapping[str, int]] = {"train": 10**12, "test": 10**12}

    def __init__(self, config: RoomsConfig, device: torch.device, options: RoomsLoadOptions):
        height, width = options.height or config.height, options.width or config.width
        if height * width * options.supersample**2 > MOST_RAYS:
            raise ValueError(
                f"A frame has at most {MOST_RAYS:,} rays, got {height} x {width} pixels of {options.supersample**2}: "
                "make it smaller, or supersample less."
            )
        self.config, self.device, self.options = replace(config, height=height, width=width), device, options
        self.capabilities = frozenset({"exact"} | ({"obstacles"} if options.collisions else set()))

    @classmethod
    def load(
        cls, folder: Path | None, config: RoomsConfig, device: torch.device, options: RoomsLoadOptions
    ) -> "RoomsEngine":
        return cls(config, device, options)

    def identity(self) -> bytes:
        options = self.options
        decides = (REVISION, self.config.height, self.config.width, options.supersample, options.collisions)
        return repr(decides).encode()

    @classmethod
    def draw_start(
        cls, split: str, number: int, height: int, width: int, intrinsics: np.ndarray
    ) -> tuple[np.ndarray, Anchor]:
        name = f"{split}/{number}"
        here = place(name)
        c2w = sample_start(here, np.random.default_rng(number))
        return render(here, c2w[None], intrinsics, height, width, depth=False)[0][0], Anchor(name, c2w)

    def starts(self) -> Sequence[Path]:
        return sorted(path for world in ("nano", "rooms") for path in (SHIPPED / world / "starts").glob("*.png"))

    def start_image(self, image: np.ndarray, intrinsics: np.ndarray, anchor: Anchor | None) -> np.ndarray:
        """What the camera sees at the anchor, whatever the given image is."""
        anchor = cast(Anchor, anchor)  # `World.scene` asks for one
        return self._see(anchor.place, anchor.c2w[None], intrinsics)[0]

    def encode(self, image: np.ndarray, prompt: str, anchor: Anchor | None) -> None:
        self.check_prompt(prompt)

    def outline(self, scene: Scene, chunks: int) -> tuple[None, None]:
        if scene.anchor is None:
            raise ValueError("its scene has no anchor")
        return None, None

    def advance(self, slots: Sequence[Slot], memory: None, poses: Tensor) -> Chunk:
        c2w, frames = poses.numpy().copy(), []
        for slot, path in zip(slots, c2w, strict=True):
            anchor = cast(Anchor, slot.scene.anchor)  # which `World.scene` has asked for
            to_place = anchor.c2w @ np.linalg.inv(slot.origin)
            if self.options.collisions:
                held = held_clear(place(anchor.place), (to_place @ slot.c2w)[:3, 3], (to_place @ path)[:, :3, 3])
                path[:, :3, 3] += held @ to_place[:3, :3]
            frames.append(self._see(anchor.place, to_place @ path, slot.scene.intrinsics))
        shown = torch.from_numpy(c2w) if self.options.collisions else None
        return Chunk(torch.from_numpy(np.stack(frames)).to(self.device), None, c2w=shown)

    def _see(self, name: str, c2w: np.ndarray, intrinsics: np.ndarray) -> np.ndarray:
        """Frames (F, H, W, 3) uint8 from c2w (F, 4, 4) in the place."""
        size = self.config.height, self.config.width
        return render(place(name), c2w, intrinsics, *size, self.options.supersample, depth=False)[0]


def save_start_in(name: str, path: str | PathLike, seed: int = 0, height: int = 64, width: int = 96) -> None:
    """Write a start image, a PNG with its anchor, from a clear spot in a place.

    Args:
        name: of the place.
        path: ends in .png.
        seed: of the spot.
        height, width: of the image.

    Raises:
        ValueError: for an unknown place, or another suffix.
        OSError: where it cannot be written.
    """
    here = place(name)
    c2w = sample_start(here, np.random.default_rng(seed))
    intrinsics = intrinsics_from_fov(RoomsConfig.horizontal_fov, width, height)
    save_start(render(here, c2w[None], intrinsics, height, width, depth=False)[0][0], Anchor(name, c2w), path)
