"""What every world states about itself: size and rate of frames, field of view, and where the camera may go.

Engines extend the configuration. `config.json` in a world's folder holds it, and its field `engine` names the engine
that reads it.
"""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from sanawm_env.camera.presets import PRESETS, Workspace
from sanawm_env.system.files import MAX_PIXELS, brief, check_choice, check_count, check_number

MAX_BYTES = 2**20  # of a config.json
SIZES = {"height": 16384, "width": 16384, "fps": 1000, "horizon_chunks": 2**31 - 1}
"""Whole numbers of a configuration, each at least 1, and the most it may be."""
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
    height: int
    width: int
    fps: int = 16
    horizontal_fov: float = 70.0
    speed: str = "standard"
    workspace: Workspace = field(default=Workspace())
    places: Mapping[str, tuple[float, ...]] = field(default_factory=dict, hash=False)
    horizon_chunks: int = 40

    def __post_init__(self):
        for name in ("name", "engine"):
            value = getattr(self, name)
            if not isinstance(value, str) or not 0 < len(value) <= 200:
                raise ValueError(f"{name} must be text of 1 to 200 characters, got {brief(value)}")
        for name, most in SIZES.items():
            check_count(name, getattr(self, name), 1, most)
        if self.height * self.width > MAX_PIXELS:
            raise ValueError(f"a frame must have at most {MAX_PIXELS:,} pixels, got {self.height} x {self.width}")
        check_number("horizontal_fov", self.horizontal_fov, 1, 179)
        check_choice("speed", self.speed, PRESETS)
        for name, box in self.places.items():
            if len(box) != 6:
                raise ValueError(f"the bounding box of the place {brief(name)} must be six numbers, got {brief(box)}")
            for i, value in enumerate(box):
                check_number(f"the bounding box of the place {brief(name)}", value, -1000, 1000)
                if i > 2 and value <= box[i - 3]:
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
