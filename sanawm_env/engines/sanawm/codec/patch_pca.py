"""The nano world's codec: principal components of 8 x 8 x 8 x 3 pixel patches, fitted in closed form.

Latent frame 0 holds the first picture (repeated eight times), latent frame k >= 1 holds frames 8k-7..8k, so any run of
latents decodes on its own and there is no state to carry. The strides and the measured quality are those of
shared/reference/nano.md section 1. Coordinates are partly whitened (times lambda^(-1/4)) so that weak components stay
visible to the network without drowning the strong ones. Their standard deviation overall is 4, not 1: unit noise then
takes up little of a narrow network (measured: 2.5 dB after 50 steps of training).
"""

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

TIME_STRIDE, SPACE_STRIDE = 8, 8
LATENT_STD = 4.0
PATCH = TIME_STRIDE * SPACE_STRIDE * SPACE_STRIDE * 3  # values per patch: time, row, column, colour


class PatchPCACodec(nn.Module):
    """Frames <-> latents by a linear map.

    Buffers: mean (1536,), components (C, 1536) with orthonormal rows, scale (C,): latent = scale * coordinate. Pixels
    count 0..1 here. Stored with half-precision components, float32 in memory; `.to(device)` moves it as any module.
    """

    mean: Tensor
    components: Tensor
    scale: Tensor

    def __init__(self, channels: int = 64):
        super().__init__()
        self.register_buffer("mean", torch.zeros(PATCH))
        self.register_buffer("components", torch.zeros(channels, PATCH))
        self.register_buffer("scale", torch.ones(channels))

    @property
    def channels(self) -> int:
        return self.scale.shape[0]

    @property
    def pixel_weights(self) -> Tensor:
        """(C,) weights of mean 1 under which squared latent error is proportional to squared pixel error."""
        weights = self.scale.double() ** -2
        return (weights / weights.mean()).float()

    @staticmethod
    def fit(patches: Tensor, channels: int = 64) -> "PatchPCACodec":
        """Codec of the `channels` strongest principal components of `patches` (N, 1536), uint8 or float in 0..1."""
        if patches.ndim != 2 or patches.shape[1] != PATCH or len(patches) <= channels:
            raise ValueError(f"patches must be (N, {PATCH}) with N > {channels}, not {tuple(patches.shape)}.")
        total, square = torch.zeros(PATCH, dtype=torch.float64), torch.zeros(PATCH, PATCH, dtype=torch.float64)
        for block in patches.split(4096):
            block = _unit(block).double() - 0.5  # near the mean, so that subtracting it below loses nothing
            total += block.sum(0)
            square += block.T @ block
        mean = total / len(patches)
        values, vectors = torch.linalg.eigh(square / len(patches) - torch.outer(mean, mean))
        values, vectors = values.flip(0)[:channels].clamp_min(1e-12), vectors.flip(1)[:, :channels].T
        codec = PatchPCACodec(channels)
        codec.mean.copy_(mean + 0.5)
        codec.components.copy_(vectors)
        # the variance of scale_i * coordinate_i is scale_i^2 * lambda_i; the common factor makes its mean LATENT_STD^2
        codec.scale.copy_(LATENT_STD * values**-0.25 / values.sqrt().mean().sqrt())
        return codec

    @torch.no_grad()
    def encode(self, frames: Tensor) -> Tensor:
        """Latents (B, C, 1 + n, H / 8, W / 8) float32 of frames (B, 1 + 8 n, H, W, 3), uint8 or float in 0..1."""
        latents = (_unit(to_patches(frames)) - self.mean) @ self.components.T * self.scale
        return latents.permute(0, 4, 1, 2, 3).contiguous()

    @torch.no_grad()
    def decode(self, latents: Tensor, first: bool) -> Tensor:
        """Frames (B, F, H, W, 3) uint8 of latents (B, C, T, h, w), of any floating dtype, on their device.

        first: whether latent frame 0 opens the clip, and so stands for one picture; F = 1 + 8 (T - 1), else F = 8 T.
        """
        if latents.ndim != 5 or latents.shape[1] != self.channels:
            raise ValueError(f"latents must be (B, {self.channels}, T, h, w), not {tuple(latents.shape)}.")
        b, _, t, h, w = latents.shape
        coordinates = latents.permute(0, 2, 3, 4, 1).float() / self.scale
        patches = (coordinates @ self.components + self.mean).view(b, t, h, w, 8, 8, 8, 3)
        frames = patches.permute(0, 1, 4, 2, 5, 3, 6, 7).reshape(b, 8 * t, 8 * h, 8 * w, 3)
        if first:
            frames = torch.cat([frames[:, :8].mean(1, keepdim=True), frames[:, 8:]], 1)
        return frames.mul_(255).round_().clamp_(0, 255).to(torch.uint8)

    def decode_chunk(self, latents: Tensor, state: None, *, first: bool) -> tuple[Tensor, None]:
        """`decode`, and what the next chunk's decoding needs: nothing."""
        return self.decode(latents, first), state

    def save(self, path: str | Path) -> None:
        """Write the state dict as safetensors, components in half precision."""
        tensors = {key: value.detach().cpu().contiguous() for key, value in self.state_dict().items()}
        save_file(tensors | {"components": tensors["components"].half()}, path)

    @staticmethod
    def load(path: str | Path) -> "PatchPCACodec":
        """The codec stored at `path`; FileNotFoundError, or ValueError when the file holds something else."""
        if not Path(path).is_file():
            raise FileNotFoundError(f"No codec at {path}; fit one with PatchPCACodec.fit and save it there.")
        try:
            tensors = load_file(path)
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{path} cannot be read as a codec: {error}.") from error
        if set(tensors) != {"mean", "components", "scale"}:
            raise ValueError(f"{path} is no PatchPCACodec: it holds {sorted(tensors)}, not components, mean, scale.")
        codec = PatchPCACodec(len(tensors["scale"]))
        codec.load_state_dict(tensors)
        return codec


def to_patches(frames: Tensor) -> Tensor:
    """Patches (B, 1 + n, H / 8, W / 8, 1536) of frames (B, 1 + 8 n, H, W, 3), same dtype, first frame repeated."""
    shape = frames.shape
    if frames.ndim != 5 or shape[4] != 3 or shape[1] % TIME_STRIDE != 1 or shape[2] % 8 or shape[3] % 8:
        raise ValueError(f"frames must be (B, 1 + 8 n, 8 h, 8 w, 3), not {tuple(frames.shape)}.")
    frames = torch.cat([frames[:, :1].expand(-1, 7, -1, -1, -1), frames], 1)
    b, f, height, width, _ = frames.shape
    patches = frames.reshape(b, f // 8, 8, height // 8, 8, width // 8, 8, 3).permute(0, 1, 3, 5, 2, 4, 6, 7)
    return patches.reshape(b, f // 8, height // 8, width // 8, PATCH)


def _unit(pixels: Tensor) -> Tensor:
    return pixels.float() / 255 if pixels.dtype == torch.uint8 else pixels.float()
