"""The nano world's codec: principal components of patches of 8 x S x S x 3 pixel values (frames, rows, columns and
colours; S is 8 or 16), fitted in closed form.

Latent frame 0 holds the first frame (repeated eight times), latent frame k >= 1 holds frames 8k-7..8k, so any run of
latents decodes on its own, without a state. The strides and the measured quality are those of shared/reference/nano.md,
section 1. Coordinates are partly whitened (times lambda^(-1/4)), so that weak components stay visible to the network
without drowning the strong ones. Their overall standard deviation is 4, not 1: unit noise then takes up little of a
narrow network (measured: 2.5 dB after 50 steps of training).
"""

from pathlib import Path

import scipy.linalg
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sanawm_env.engines.sanawm.codec.state import LTX2State
from sanawm_env.system.files import brief, explaining

TIME_STRIDE, SPACE_STRIDE = 8, 8
LATENT_STD = 4.0
PATCH = TIME_STRIDE * SPACE_STRIDE * SPACE_STRIDE * 3  # values per patch: time, row, column, colour
LARGEST_STRIDE = 32


class PatchPCACodec(nn.Module):
    """Frames <-> latents by a linear map: latent = scale * coordinate. A patch has P = 8 x S x S x 3 values, 1536 at
    the spatial stride S = 8; pixels count 0..1 here. Components are stored in half precision, and float32 in memory.
    `.to(device)` moves it like any module.

    Attributes:
        mean: (P,).
        components: (C, P), orthonormal rows.
        scale: (C,).
    """

    mean: Tensor
    components: Tensor
    scale: Tensor

    def __init__(self, channels: int = 64, stride: int = SPACE_STRIDE):
        super().__init__()
        self.stride = stride
        self.register_buffer("mean", torch.zeros(_values(stride)))
        self.register_buffer("components", torch.zeros(channels, _values(stride)))
        self.register_buffer("scale", torch.ones(channels))

    @property
    def channels(self) -> int:
        return self.scale.shape[0]

    @property
    def module(self) -> nn.Module:
        return self

    @property
    def pixel_weights(self) -> Tensor:
        """(C,) weights of mean 1 under which squared latent error is proportional to squared pixel error."""
        weights = self.scale.double() ** -2
        return (weights / weights.mean()).float()

    @staticmethod
    def fit(patches: Tensor, channels: int = 64, device: str = "cpu") -> "PatchPCACodec":
        """Fit a codec of the strongest principal components.

        Args:
            patches: (N, P), uint8 or float in 0..1; N > channels.
            channels: of the latents.
            device: that computes the covariance; the codec is on the CPU.

        Raises:
            ValueError: for another shape.
        """
        stride = _stride(patches.shape[-1]) if patches.ndim == 2 else None
        if stride is None or len(patches) <= channels:
            sizes = f"{PATCH} or another 24 S S values"
            raise ValueError(f"patches must be (N, {sizes}) with N > {channels}, got {tuple(patches.shape)}.")
        size = _values(stride)
        total, square = (torch.zeros(*n, dtype=torch.float64, device=device) for n in ((size,), (size, size)))
        for block in patches.split(4096):
            block = _unit(block.to(device)).double() - 0.5  # near the mean, so that subtracting it below loses nothing
            total += block.sum(0)
            square += block.T @ block
        mean = total / len(patches)
        covariance = (square / len(patches) - torch.outer(mean, mean)).cpu().numpy()
        found = scipy.linalg.eigh(covariance, subset_by_index=(size - channels, size - 1))  # the strongest come last
        values, vectors = (torch.from_numpy(array).flip(-1) for array in found)
        values = values.clamp_min(1e-12)
        codec = PatchPCACodec(channels, stride)
        codec.mean.copy_(mean + 0.5)
        codec.components.copy_(vectors.T)
        # the variance of scale_i * coordinate_i is scale_i^2 * lambda_i; the common factor makes its mean LATENT_STD^2
        codec.scale.copy_(LATENT_STD * values**-0.25 / values.sqrt().mean().sqrt())
        return codec

    @torch.no_grad()
    def encode(self, frames: Tensor) -> Tensor:
        """Encode frames.

        Args:
            frames: (B, 1 + 8 n, H, W, 3), uint8 or float in 0..1.

        Returns:
            (B, C, 1 + n, H / S, W / S) float32.

        Raises:
            ValueError: for another shape.
        """
        latents = (_unit(to_patches(frames, self.stride)) - self.mean) @ self.components.T * self.scale
        return latents.permute(0, 4, 1, 2, 3).contiguous()

    @torch.no_grad()
    def decode(self, latents: Tensor, first: bool) -> Tensor:
        """Decode latents, on their device.

        Args:
            latents: (B, C, T, h, w), of any floating dtype.
            first: whether latent frame 0 opens the clip, and so stands for one frame.

        Returns:
            (B, F, H, W, 3) uint8, F = 8 T, or 1 + 8 (T - 1) with `first`.

        Raises:
            ValueError: for latents of another shape.
        """
        if latents.ndim != 5 or latents.shape[1] != self.channels:
            raise ValueError(f"latents must be (B, {self.channels}, T, h, w), got {tuple(latents.shape)}.")
        (b, _, t, h, w), side = latents.shape, self.stride
        coordinates = latents.permute(0, 2, 3, 4, 1).float() / self.scale
        patches = (coordinates @ self.components + self.mean).view(b, t, h, w, 8, side, side, 3)
        frames = patches.permute(0, 1, 4, 2, 5, 3, 6, 7).reshape(b, 8 * t, side * h, side * w, 3)
        if first:
            frames = torch.cat([frames[:, :8].mean(1, keepdim=True), frames[:, 8:]], 1)
        return frames.mul_(255).round_().clamp_(0, 255).to(torch.uint8)

    def decode_chunk(self, latents: Tensor, state: LTX2State | None, *, first: bool) -> tuple[Tensor, None]:
        """`decode`, and None: there is no state."""
        return self.decode(latents, first), None

    def outline(self, height: int, width: int, frames: int, dtype: torch.dtype) -> None:
        """None: there is no state."""

    def save(self, path: str | Path) -> None:
        """Write the state dict as safetensors, components in half precision. Raises OSError where it cannot be
        written."""
        tensors = {key: value.detach().cpu().contiguous() for key, value in self.state_dict().items()}
        save_file(tensors | {"components": tensors["components"].half()}, path)

    @staticmethod
    def load(path: str | Path) -> "PatchPCACodec":
        """Read a codec.

        Raises:
            FileNotFoundError: where there is no file.
            ValueError: for a file that holds something else.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(f"No codec at {path}; fit one with PatchPCACodec.fit and save it there.")
        with explaining(f"{path} cannot be read as a codec", (SafetensorError, OSError)):
            tensors = load_file(path)
        stride = _stride(tensors["mean"].numel()) if set(tensors) == {"mean", "components", "scale"} else None
        if stride is None:
            sizes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
            raise ValueError(
                f"{path} is no PatchPCACodec, mean (24 S S,), components and scale: it holds {brief(sizes)}."
            )
        codec = PatchPCACodec(len(tensors["scale"]), stride)
        codec.load_state_dict(tensors)
        return codec


def to_patches(frames: Tensor, stride: int = SPACE_STRIDE) -> Tensor:
    """Patches of a clip, with the first frame repeated.

    Args:
        frames: (B, 1 + 8 n, H, W, 3).
        stride: S.

    Returns:
        (B, 1 + n, H / S, W / S, 24 S S), same dtype.

    Raises:
        ValueError: for another shape.
    """
    shape, s = frames.shape, stride
    if frames.ndim != 5 or shape[4] != 3 or shape[1] % TIME_STRIDE != 1 or shape[2] % s or shape[3] % s:
        raise ValueError(f"frames must be (B, 1 + 8 n, {s} h, {s} w, 3), got {tuple(frames.shape)}.")
    return cut(torch.cat([frames[:, :1].expand(-1, 7, -1, -1, -1), frames], 1), s)


def cut(frames: Tensor, stride: int) -> Tensor:
    """Patches (B, n, H / S, W / S, 24 S S) of frames (B, 8 n, H, W, 3) that do not open a clip, same dtype."""
    b, f, height, width, _ = frames.shape
    patches = frames.reshape(b, f // 8, 8, height // stride, stride, width // stride, stride, 3)
    return patches.permute(0, 1, 3, 5, 2, 4, 6, 7).reshape(b, f // 8, height // stride, width // stride, -1)


def _values(stride: int) -> int:
    return TIME_STRIDE * stride * stride * 3


def _stride(values: int) -> int | None:
    """The spatial stride at which a patch has so many values; None where there is none."""
    return next((s for s in range(1, LARGEST_STRIDE + 1) if _values(s) == values), None)


def _unit(pixels: Tensor) -> Tensor:
    return pixels.float() / 255 if pixels.dtype == torch.uint8 else pixels.float()
