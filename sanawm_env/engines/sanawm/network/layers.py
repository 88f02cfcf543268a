"""The small parts of the network: norms, embedders, key convolution, cross-attention, FFN (dit.md 2, 3, 5.2, 9).

Tokens are (B, N, C) in the order frame, row, column; `sanawm_env.kernels.inputs.Grid` says how N splits.
"""

import math
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sanawm_env.kernels.dispatch import Kernels
from sanawm_env.kernels.inputs import Grid
from sanawm_env.kernels.reference import merge_heads, rms_norm, split_heads


class RMSNorm(nn.Module):
    """The weight of `sanawm_env.kernels.reference.rms_norm`."""

    def __init__(self, dim: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., dim). Returns the same shape and dtype."""
        return rms_norm(x, self.weight, self.eps)


def layer_norm(x: Tensor) -> Tensor:
    """LayerNorm of x (..., C) without parameters, eps 1e-6."""
    return F.layer_norm(x, x.shape[-1:], eps=1e-6)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """LayerNorm, then scale and shift of each latent frame: x (B, T*S, C), shift and scale (B, T, C)."""
    frames = layer_norm(x).unflatten(1, (shift.shape[1], -1))
    return torch.addcmul(shift[:, :, None], frames, 1 + scale[:, :, None]).flatten(1, 2)


def gate(x: Tensor, scale: Tensor) -> Tensor:
    """x (B, T*S, C) times one row per latent frame, scale (B, T, C)."""
    return (x.unflatten(1, (scale.shape[1], -1)) * scale[:, :, None]).flatten(1, 2)


def project(layer: nn.Linear | nn.Conv2d, x: Tensor, kernels: Kernels) -> Tensor:
    """x (..., in) through a linear layer, or through a kernel-1 convolution, which is one on tokens."""
    if isinstance(layer, nn.Linear):
        # torch's own form as the module it is, which hooks see
        return layer(x) if kernels.linear is F.linear else kernels.linear(x, layer.weight, layer.bias)
    return kernels.linear(x, layer.weight.flatten(1), layer.bias)


class VoxelEmbed(nn.Module):
    """Latents to tokens: a Conv3d of kernel 1, stored as one, applied as a linear."""

    def __init__(self, channels: int, dim: int):
        super().__init__()
        self.proj = nn.Conv3d(channels, dim, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, c, T, H, W). Returns (B, T*H*W, C)."""
        return F.linear(x.flatten(2).mT, self.proj.weight.flatten(1), self.proj.bias)


class TimestepEmbedder(nn.Module):
    """Sinusoids of t in 0..1000 (256 features, cosines first), then Linear, SiLU, Linear (dit.md 2.1)."""

    features = 256

    def __init__(self, dim: int):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(self.features, dim), nn.SiLU(), nn.Linear(dim, dim))

    def sinusoid(self, timesteps: Tensor) -> Tensor:
        """timesteps (...) to features (..., 256), float32."""
        half = self.features // 2
        k = torch.arange(half, dtype=torch.float32, device=timesteps.device)
        angles = timesteps.float()[..., None] * torch.exp(-math.log(10000.0) * k / half)
        return torch.cat((angles.cos(), angles.sin()), dim=-1)

    def forward(self, timesteps: Tensor) -> Tensor:
        """timesteps: (...). Returns (..., C)."""
        return self.mlp(self.sinusoid(timesteps).to(cast(Tensor, self.mlp[0].weight).dtype))


class CaptionProjection(nn.Module):
    """Linear, tanh-GELU, Linear."""

    def __init__(self, channels: int, dim: int):
        super().__init__()
        self.fc1 = nn.Linear(channels, dim)
        self.fc2 = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., channels). Returns (..., C)."""
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class CaptionEmbedder(nn.Module):
    """Text features to the network's width. `y_embedding` is in the official state dict, and inert."""

    def __init__(self, channels: int, dim: int, text_len: int):
        super().__init__()
        self.y_proj = CaptionProjection(channels, dim)
        self.register_buffer("y_embedding", torch.zeros(text_len, channels))

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, L, caption_channels). Returns (B, L, C)."""
        return self.y_proj(x)


class KeyConv(nn.Module):
    """Taps (C, 1, K) of the temporal key convolution (`sanawm_env.kernels.reference.key_conv`)."""

    def __init__(self, dim: int, taps: int):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(dim, 1, taps))


class CrossAttention(nn.Module):
    """Attention from tokens to text; keys and values depend on the text alone and are made once (`keys_values`)."""

    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.q_linear = nn.Linear(dim, dim)
        self.kv_linear = nn.Linear(dim, 2 * dim)
        self.proj = nn.Linear(dim, dim)
        self.q_norm = RMSNorm(dim, eps=1e-6)
        self.k_norm = RMSNorm(dim, eps=1e-6)

    def keys_values(self, text: Tensor) -> tuple[Tensor, Tensor]:
        """text (B, L, C) to keys and values (B, h, L, C/h)."""
        k, v = self.kv_linear(text).chunk(2, dim=-1)
        return split_heads(self.k_norm(k), self.num_heads), split_heads(v, self.num_heads)

    def forward(self, x: Tensor, keys_values: tuple[Tensor, Tensor], bias: Tensor | None, kernels: Kernels) -> Tensor:
        """x: (B, N, C); keys_values: of `keys_values`; bias: (B, 1, 1, L) added to the scores, or None. Returns
        (B, N, C)."""
        q = split_heads(self.q_norm(project(self.q_linear, x, kernels)), self.num_heads)
        read = merge_heads(F.scaled_dot_product_attention(q, *keys_values, attn_mask=bias))
        return project(self.proj, read, kernels)


class ConvFFN(nn.Module):
    """Gated convolutional FFN with a cached temporal convolution (dit.md 9). Weights are stored as convolutions; the
    kernel-1 ones and the temporal one run as linears on tokens."""

    def __init__(self, dim: int, ratio: float):
        super().__init__()
        hidden = int(dim * ratio)
        self.inverted_conv = _Wrapped(nn.Conv2d(dim, 2 * hidden, 1))
        self.depth_conv = _Wrapped(nn.Conv2d(2 * hidden, 2 * hidden, 3, padding=1, groups=2 * hidden))
        self.point_conv = _Wrapped(nn.Conv2d(hidden, dim, 1, bias=False))
        self.t_conv = nn.Conv2d(dim, dim, (3, 1), padding=(1, 0), bias=False)

    def spatial(self, x: Tensor, grid: Grid, kernels: Kernels) -> Tensor:
        """Everything before the temporal convolution: x (B, T*S, C) to r (B, T, S, C)."""
        depth = self.depth_conv.conv
        bias = cast(Tensor, depth.bias)
        u = kernels.depthwise_glu(project(self.inverted_conv.conv, x, kernels), depth.weight, bias, grid)
        return project(self.point_conv.conv, u, kernels).unflatten(1, (grid.frames, grid.tokens))

    def forward(self, x: Tensor, grid: Grid, tail: Tensor | None, kernels: Kernels) -> tuple[Tensor, Tensor]:
        """x: (B, T*S, C); tail: (B, S, C) r of the frame before, None for zeros. Returns the output (B, T*S, C) and the
        next tail (B, S, C)."""
        r = self.spatial(x, grid, kernels)  # (B, T, S, C)
        if tail is None:
            tail = torch.zeros_like(r[:, 0])
        before = torch.cat((tail[:, None], r[:, :-1]), dim=1)
        after = torch.cat((r[:, 1:], torch.zeros_like(r[:, :1])), dim=1)
        if len(grid.chunk_starts) > 1:
            same = [grid.chunk_of(t + 1) == grid.chunk_of(t) for t in range(grid.frames)]
            after = after * after.new_tensor(same)[:, None, None]
        # the three taps as one linear: [before, r, after] against the concatenated tap matrices
        taps = self.t_conv.weight[..., 0].permute(0, 2, 1).flatten(1)
        out = r + kernels.linear(torch.cat((before, r, after), dim=-1), taps)
        return out.flatten(1, 2), r[:, -1]


class _Wrapped(nn.Module):
    """Gives a convolution the name it has in the official state dict (`*.conv.weight`)."""

    def __init__(self, conv: nn.Conv2d):
        super().__init__()
        self.conv = conv


class FinalLayer(nn.Module):
    """Modulated LayerNorm and the projection to latent channels; the modulation uses the timestep embedding itself."""

    def __init__(self, dim: int, channels: int):
        super().__init__()
        self.linear = nn.Linear(dim, channels)
        self.scale_shift_table = nn.Parameter(torch.zeros(2, dim))

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """x: (B, T*S, C), embedding: (B, T, C). Returns (B, T*S, channels)."""
        shift, scale = (self.scale_shift_table + embedding[:, :, None]).unbind(2)
        return self.linear(modulate(x, shift, scale))
