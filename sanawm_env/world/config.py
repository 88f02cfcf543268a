"""What defines a world, as plain values: `config.json` beside its weights holds exactly this."""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from sanawm_env.camera.presets import PRESETS, Workspace
from sanawm_env.network.config import SanaWMConfig
from sanawm_env.world.files import MAX_PIXELS, brief, check_count, check_number, read_json, reason
from sanawm_env.world.sampler import SamplerConfig

MAX_BYTES = 2**20
SIZES = {
    "height": 16384, "width": 16384, "spatial_stride": 1024, "temporal_stride": 1024, "latents_per_chunk": 341,
    "fps": 1000, "horizon_chunks": 2**31 - 1,
}  # fmt: skip
"""Whole numbers of a configuration, each at least 1, and the most it may be."""
CODECS = ("patch_pca", "ltx2", "ltx2_bidirectional")


@dataclass(frozen=True)
class WorldConfig:
    """Picture, strides and time of a world, its network and its sampler.

    Attributes:
        name: what the world is called in files and messages.
        engine: name of the engine that runs it (`sanawm_env.world.engine.ENGINES`).
        height, width: picture in pixels. spatial_stride, temporal_stride: pixels and frames per latent.
        latents_per_chunk: 3, so that a chunk is 24 frames. fps: 16.
        horizontal_fov: degrees, the lens assumed where none is given.
        speed: speed preset of `sanawm_env.camera.presets` that suits the world.
        workspace: where the camera may go, relative to frame 0.
        places: places the world was trained in and can be anchored to, and of each the lower and the upper corner of
            its bounding box (x, y, z, x, y, z), metres; empty for worlds without.
        codec: "patch_pca" (`codec.safetensors`), or LTX-2's of the folder `codec/`, which carries state between chunks:
            "ltx2", whose decoder is causal, or "ltx2_bidirectional", whose decoder is not.
        dtype: of the network's weights and latents, "float32" or "bfloat16".
        horizon_chunks: how far the world was found good. The official model: 40 chunks, one minute, the longest that
            was validated (camera.md 7.4); its rotary positions end at latent frame 1024.
    """

    name: str
    network: SanaWMConfig
    sampler: SamplerConfig
    engine: str = "sanawm"
    height: int = 704
    width: int = 1280
    spatial_stride: int = 32
    temporal_stride: int = 8
    latents_per_chunk: int = 3
    fps: int = 16
    horizontal_fov: float = 70.0
    speed: str = "standard"
    workspace: Workspace = field(default=Workspace())
    places: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    codec: str = "patch_pca"
    dtype: str = "float32"
    horizon_chunks: int = 40

    def __post_init__(self):
        for name in ("name", "engine", "speed"):
            value = getattr(self, name)
            if not isinstance(value, str) or not 0 < len(value) <= 200:
                raise ValueError(f"{name} must be a text of 1 to 200 characters, got {brief(value)}")
        for name, most in SIZES.items():
            check_count(name, getattr(self, name), 1, most)
        for name, stride in (("height", self.spatial_stride), ("width", self.spatial_stride)):
            if getattr(self, name) % stride:
                raise ValueError(f"{name} must be a multiple of spatial_stride {stride}, got {getattr(self, name)}")
        if self.height * self.width > MAX_PIXELS:
            raise ValueError(f"a picture must have at most {MAX_PIXELS:,} pixels, got {self.height} x {self.width}")
        check_number("horizontal_fov", self.horizontal_fov, 1, 179)
        if self.speed not in PRESETS:
            raise ValueError(f"speed must be {' or '.join(PRESETS)}, got {brief(self.speed)}")
        if not isinstance(self.network, SanaWMConfig) or not isinstance(self.sampler, SamplerConfig):
            raise ValueError("network and sampler must be a SanaWMConfig and a SamplerConfig")
        if self.codec not in CODECS:
            raise ValueError(f"codec must be {' or '.join(CODECS)}, got {self.codec!r}")
        if self.dtype not in ("float32", "bfloat16"):
            raise ValueError(f'dtype must be "float32" or "bfloat16", got {self.dtype!r}')
        for name, box in self.places.items():
            if len(box) != 6:
                raise ValueError(f"the bounding box of the place {brief(name)} must be six numbers, got {brief(box)}")
            for i, value in enumerate(box):
                check_number(f"the bounding box of the place {brief(name)}", value, -1000, 1000)
                if i > 2 and value <= box[i - 3]:
                    raise ValueError(f"the bounding box of the place {brief(name)} must be lower, then upper corner")

    def __hash__(self) -> int:  # the generated one cannot take a mapping
        return hash(self.to_json())

    @property
    def chunk_frames(self) -> int:
        """Pixel frames per chunk."""
        return self.latents_per_chunk * self.temporal_stride

    @property
    def latent_height(self) -> int:
        return self.height // self.spatial_stride

    @property
    def latent_width(self) -> int:
        return self.width // self.spatial_stride

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=1)

    @classmethod
    def load(cls, path: Path) -> "WorldConfig":
        """Read `config.json`; ValueError in one sentence where it is not one."""
        try:
            data = read_json(path, MAX_BYTES)
            data["network"] = SanaWMConfig(**data["network"])
            sampler = data["sampler"]
            data["sampler"] = SamplerConfig(**{**sampler, "timesteps": tuple(sampler["timesteps"])})
            data["workspace"] = Workspace(**data["workspace"])
            data["places"] = {name: tuple(box) for name, box in data["places"].items()}
            return cls(**data)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is not the configuration of a world: {reason(error)}.") from error
