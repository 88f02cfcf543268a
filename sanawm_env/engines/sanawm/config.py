"""What defines a SANA-WM world, as plain values. `config.json` beside its weights holds exactly this."""

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from sanawm_env.engines.sanawm.network.config import SanaWMConfig
from sanawm_env.engines.sanawm.sampler import SamplerConfig
from sanawm_env.system.files import check_choice
from sanawm_env.world.config import WorldConfig

CODEC_STRIDE = 8  # frames per latent
CODECS = ("patch_pca", "ltx2", "ltx2_bidirectional")
MAX_TEMPERATURE = 10
MAX_LATENT_FRAMES = 1024  # length of the official rotary table (dit.md 4)


@dataclass(frozen=True, kw_only=True)
class SanaWorldConfig(WorldConfig):
    """A world's configuration with its network and its sampler.

    The official model was validated to 40 chunks, one minute (camera.md 7.4); its rotary positions end at latent frame
    1024.

    Attributes:
        network: sizes of the network.
        sampler: of the world.
        spatial_stride, temporal_stride: pixels and frames per latent.
        latents_per_chunk: 3, so that a chunk has 24 frames.
        codec: "patch_pca" (`codec.safetensors`), or LTX-2's of the folder `codec/`, which keeps a state between chunks:
            "ltx2", whose decoder is causal, or "ltx2_bidirectional", whose decoder is not.
        dtype: of the network's weights and latents, "float32" or "bfloat16".
        reprojection: whether frames of the state are moved to the new cameras as a first guess
            (`engines.sanawm.reprojection`, weights in `reprojection.safetensors`), which SANA-WM does not do.
        unseen: whether what these frames do not show is drawn at random (`engines.sanawm.unseen`, weights in
            `unseen.safetensors`), which SANA-WM does not do either.
        temperature: of what is drawn, 1 as varied as it was trained to be, 0 for the mean. The other attributes are
            those of every world.

    Raises:
        ValueError: for values out of range, or that do not go together.
    """

    engine: str = "sanawm"
    height: int = 704
    width: int = 1280
    network: SanaWMConfig
    sampler: SamplerConfig
    spatial_stride: Annotated[int, Field(ge=1, le=1024)] = 32
    temporal_stride: int = CODEC_STRIDE
    latents_per_chunk: Annotated[int, Field(ge=1, le=341)] = 3
    codec: str = "patch_pca"
    dtype: str = "float32"
    reprojection: bool = False
    unseen: bool = False
    temperature: Annotated[float, Field(ge=0, le=MAX_TEMPERATURE)] = 1.0

    def __post_init__(self):
        super().__post_init__()
        for name, stride in (("height", self.spatial_stride), ("width", self.spatial_stride)):
            if getattr(self, name) % stride:
                raise ValueError(f"{name} must be a multiple of spatial_stride {stride}, got {getattr(self, name)}")
        check_choice("codec", self.codec, CODECS)
        if self.temporal_stride != CODEC_STRIDE:
            raise ValueError(f"temporal_stride must be {CODEC_STRIDE}, as in every codec, got {self.temporal_stride}")
        check_choice("dtype", self.dtype, ("float32", "bfloat16"))
        if self.reprojection and (self.codec != "patch_pca" or self.spatial_stride % 8):
            raise ValueError("reprojection needs the codec patch_pca and a spatial_stride that is a multiple of 8")
        if self.unseen and not self.reprojection:
            raise ValueError("unseen needs reprojection, which says what is new")

    @property
    def chunk_frames(self) -> int:
        return self.latents_per_chunk * self.temporal_stride

    @property
    def latent_shape(self) -> tuple[int, int, int, int]:
        return self.network.latent_channels, self.latents_per_chunk, self.latent_height, self.latent_width

    @property
    def longest_segment(self) -> int:
        return (MAX_LATENT_FRAMES - 1) // self.latents_per_chunk

    @property
    def latent_height(self) -> int:
        """Rows of latents."""
        return self.height // self.spatial_stride

    @property
    def latent_width(self) -> int:
        """Columns of latents."""
        return self.width // self.spatial_stride
