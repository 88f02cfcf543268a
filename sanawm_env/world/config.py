"""What every world states about itself: size and rate of frames, field of view, and where the camera may go.

Engines extend the configuration. `config.json` in a world's folder holds it, and its field `engine` names the engine
that reads it.
"""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated

from pydantic import Field

from sanawm_env.camera.presets import PRESETS, Workspace
from sanawm_env.system.files import MAX_PIXELS, brief, check_choice
from sanawm_env.system.settings import check_fields

MAX_BYTES = 2**20  # of a config.json
Side = Annotated[int, Field(ge=1, le=16384)]
Metres = Annotated[float, Field(ge=-1000, le=1000)]
BoundingBox = tuple[Metres, Metres, Metres, Metres, Metres, Metres]
ENDLESS = 2**53


@dataclass(frozen=True, kw_only=True)
class WorldConfig:
    """Size and rate of frames, field of view and workspace of a world.

    Attributes:
        name: what the world is called in files and messages.
        engine: name of the engine that runs it.
        height, width: of frames, in pixels.
        fps: frames a second.
        horizontal_fov: degrees, of the intrinsics assumed where none are given.
        speed: speed preset of `sanawm_env.camera.presets` that suits the world.
        workspace: where the camera may go, relative to frame 0.
        places: places that start images can be anchored to, with the bounding box of each: lower and upper corner (x,
            y, z, x, y, z), metres. Empty for worlds without places.
        horizon_chunks: number of chunks that the world was validated to.

    Raises:
        ValueError: for values of another type, or out of range.
    """

    name: str
    engine: str
    height: Side
    width: Side
    fps: Annotated[int, Field(ge=1, le=1000)] = 16
    horizontal_fov: Annotated[float, Field(ge=1, le=179)] = 70.0
    speed: str = "standard"
    workspace: Workspace = field(default=Workspace())
    places: Mapping[str, BoundingBox] = field(default_factory=dict, hash=False)
    horizon_chunks: Annotated[int, Field(ge=1, le=2**31 - 1)] = 40

    def __post_init__(self):
        check_fields(self)
        for name in ("name", "engine"):
            if not 0 < len(getattr(self, name)) <= 200:
                raise ValueError(f"{name} must be text of 1 to 200 characters, got {brief(getattr(self, name))}")
        if self.height * self.width > MAX_PIXELS:
            raise ValueError(f"a frame must have at most {MAX_PIXELS:,} pixels, got {self.height} x {self.width}")
        check_choice("speed", self.speed, PRESETS)
        for name, box in self.places.items():
            if any(high <= low for low, high in zip(box, box[3:], strict=False)):
                raise ValueError(f"the bounding box of the place {brief(name)} must be lower, then upper corner")

    @property
    def chunk_frames(self) -> int:
        """Frames of a chunk, which is one step."""
        raise NotImplementedError(f"{type(self).__name__} needs a field chunk_frames: the frames of a chunk.")

    @property
    def latent_shape(self) -> tuple[int, int, int, int] | None:
        """Channels, frames, height and width of a chunk's latents; None for worlds without latents."""
        return None

    @property
    def longest_segment(self) -> int:
        """Chunks that an episode can run before it has to continue from its last frame (`World.reanchor`)."""
        return ENDLESS

    @property
    def known_places(self) -> str:
        """Names of the places, for messages."""
        return ", ".join(self.places) or "none"

    def knows(self, place: str) -> bool:
        """Whether a start image can be anchored to this place."""
        return place in self.places

    def to_json(self) -> str:
        """The content of `config.json`."""
        return json.dumps(dataclasses.asdict(self), indent=1)
