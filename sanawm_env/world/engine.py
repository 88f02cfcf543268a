"""What a world needs from a model, and the engine that runs SanaWM networks.

Another world model is plugged in by giving a factory a name in `ENGINES`; nano and streaming are the same engine with
different weights.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from sanawm_env.codec.patch_pca import PatchPCACodec
from sanawm_env.network.layers import Grid
from sanawm_env.network.model import SanaWM
from sanawm_env.network.state import NetworkState
from sanawm_env.world.anchor import Anchor
from sanawm_env.world.conditions import camera_inputs, place_token
from sanawm_env.world.config import WorldConfig
from sanawm_env.world.sampler import sample_chunk
from sanawm_env.world.state import Slot


class Engine(Protocol):
    """A world model as pure functions: no argument is written to, nothing is remembered between calls."""

    config: WorldConfig
    device: torch.device

    def encode(self, image: np.ndarray) -> Tensor:
        """Latent (1, c, 1, h, w) of a picture (H, W, 3) uint8."""

    def encode_prompt(self, prompt: str, anchor: Anchor | None) -> tuple[Tensor, Tensor | None]:
        """Text features (1, L, channels) and mask (1, L). ValueError for a prompt the model cannot take."""

    def imagine(self, slots: Sequence[Slot], memory: Any, poses: Tensor) -> tuple[Tensor, Any]:
        """The next chunk of episodes of equal layout under poses (B, 24, 4, 4) float64, from their memory (a tree of
        tensors with leading axis B, None in a first chunk): latents (B, c, T, h, w), the start image's among them in a
        first chunk, and the next memory."""

    def decode(self, latents: Tensor, first: bool) -> Tensor:
        """Frames (B, 24, H, W, 3) uint8 of the latents of one chunk."""


class SanaEngine:
    """SanaWM network, few-step sampler and codec."""

    def __init__(self, config: WorldConfig, network: SanaWM, codec: PatchPCACodec, device: torch.device):
        if config.sampler.guidance_scale != 1:
            raise ValueError(f"The {config.name} world asks for guidance, which this engine does not run: set it to 1.")
        if codec.channels != config.network.latent_channels:
            raise ValueError(
                f"The {config.name} world has a codec of {codec.channels} channels and a network of "
                f"{config.network.latent_channels}: use the pair that was trained together."
            )
        self.config = config
        self.device = device
        self.network = network.to(device).eval().requires_grad_(False)
        self.codec = codec.to(device)

    @classmethod
    def load(cls, folder: Path, config: WorldConfig, device: torch.device) -> "SanaEngine":
        """From `network.safetensors` and `codec.safetensors`; FileNotFoundError or ValueError in one sentence."""
        weights = folder / "network.safetensors"
        if not weights.is_file():
            raise FileNotFoundError(f"The world in {folder} has no {weights.name}; train or download it again.")
        network = SanaWM(config.network)
        try:
            network.load_weights(load_file(weights))
        except (SafetensorError, RuntimeError) as error:
            raise ValueError(f"{weights} does not fit the configuration beside it: {error}") from error
        return cls(config, network, PatchPCACodec.load(folder / "codec.safetensors"), device)

    def encode(self, image: np.ndarray) -> Tensor:
        return self.codec.encode(torch.tensor(image, device=self.device)[None, None])

    def encode_prompt(self, prompt: str, anchor: Anchor | None) -> tuple[Tensor, Tensor | None]:
        if prompt:
            raise ValueError(f"The {self.config.name} world has no text encoder; leave the prompt empty.")
        place = None if anchor is None else anchor.place
        return place_token(self.config.places, place, self.config.network.caption_channels)[None].to(self.device), None

    @torch.inference_mode()
    def imagine(
        self, slots: Sequence[Slot], memory: NetworkState | None, poses: Tensor
    ) -> tuple[Tensor, NetworkState]:
        config, device, first = self.config, self.device, slots[0].chunk == 0
        scenes = [slot.scene for slot in slots]
        identity = np.eye(4)
        anchors = np.stack([identity if s.anchor is None else s.anchor.c2w for s in scenes])
        camera, plucker = camera_inputs(
            config,
            torch.eye(4, dtype=torch.float64).expand(len(slots), 4, 4),
            poses,
            torch.tensor(np.stack([s.intrinsics for s in scenes])),
            torch.tensor(anchors),
            torch.tensor([s.anchor is not None for s in scenes]),
            first=first,
        )
        n = config.latents_per_chunk
        grid = Grid(n + first, config.latent_height, config.latent_width)
        masks = [s.text_mask for s in scenes]
        context = self.network.prepare(
            grid,
            torch.tensor([0 if first else n * slot.chunk + 1 for slot in slots], device=device),
            text=torch.cat([s.text for s in scenes]),
            text_mask=None if masks[0] is None else torch.cat(masks),
            camera=camera.to(device),
            plucker=plucker.to(device),
        )
        shape = (config.network.latent_channels, *grid[:3])
        noise = torch.stack([chunk_noise(slot.seed, slot.chunk, shape) for slot in slots]).to(device)
        image_latent = torch.cat([s.image_latent for s in scenes]) if first else None
        return sample_chunk(self.network, noise, context, memory, config.sampler, image_latent)

    def decode(self, latents: Tensor, first: bool) -> Tensor:
        frames = self.codec.decode(latents, first=first)
        return frames[:, 1:] if first else frames


def chunk_noise(seed: int, chunk: int, shape: tuple[int, ...]) -> Tensor:
    """Unit normal noise of one chunk of one episode: a function of (seed, chunk) alone, whatever the device, the batch
    or the past, drawn on the CPU in float32."""
    mixed = int(np.random.SeedSequence([seed, chunk]).generate_state(1, np.uint64)[0])
    return torch.randn(shape, generator=torch.Generator().manual_seed(mixed))


ENGINES: dict[str, Callable[[Path, WorldConfig, torch.device], Engine]] = {"sanawm": SanaEngine.load}
