"""The small parts of the network: norms, embedders, key convolution, cross-attention, FFN (dit.md 2, 3, 5.2, 9).

Tokens are (B, N, C) in the order frame, row, column; `Grid` says how N splits.
"""

import math
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Grid(NamedTuple):
    """Latent frames x rows x columns of one call, and the first frame of every chunk in it.

    Several chunks in one call make a chunk-causal pass: a frame sees its own chunk and the past.
    """

    frames: int
    height: int
    width: int
    chunk_starts: tuple[int, ...] = (0,)

    @property
    def tokens(self) -> int:
        """Tokens per latent frame, S."""
        return self.height * self.width

    def chunk_of(self, frame: int) -> int:
        """Index of the chunk that holds `frame`; frames past the end belong to none (-1)."""
        if frame >= self.frames:
            return -1
        return sum(frame >= start for start in self.chunk_starts) - 1


class RMSNorm(nn.Module):
    """w * x / sqrt(mean(x^2) + eps) over the last axis, in float32 or wider, returned in the input's dtype."""

    def __init__(self, dim: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        wide = x if x.dtype == torch.float64 else x.float()
        return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps) * self.weight).to(x.dtype)


def layer_norm(x: Tensor) -> Tensor:
    """LayerNorm without parameters, eps 1e-6."""
    return F.layer_norm(x, x.shape[-1:], eps=1e-6)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """LayerNorm, then scale and shift of each latent frame: x (B, T*S, C), shift and scale (B, T, C)."""
    frames = layer_norm(x).unflatten(1, (shift.shape[1], -1))
    return torch.addcmul(shift[:, :, None], frames, 1 + scale[:, :, None]).flatten(1, 2)


def gate(x: Tensor, scale: Tensor) -> Tensor:
    """x (B, T*S, C) times one row per latent frame, scale (B, T, C)."""
    return (x.unflatten(1, (scale.shape[1], -1)) * scale[:, :, None]).flatten(1, 2)


class VoxelEmbed(nn.Module):
    """Latent grid (B, c, T, H, W) to tokens (B, T*H*W, C): a Conv3d of kernel 1, stored as one, applied as a linear."""

    def __init__(self, channels: int, dim: int):
        super().__init__()
        self.proj = nn.Conv3d(channels, dim, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
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
        return self.mlp(self.sinusoid(timesteps).to(self.mlp[0].weight.dtype))


class CaptionProjection(nn.Module):
    """Linear, tanh-GELU, Linear."""

    def __init__(self, channels: int, dim: int):
        super().__init__()
        self.fc1 = nn.Linear(channels, dim)
        self.fc2 = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class CaptionEmbedder(nn.Module):
    """Text features (B, L, caption_channels) to (B, L, C). `y_embedding` is in the official state dict, and inert."""

    def __init__(self, channels: int, dim: int, text_len: int):
        super().__init__()
        self.y_proj = CaptionProjection(channels, dim)
        self.register_buffer("y_embedding", torch.zeros(text_len, channels))

    def forward(self, x: Tensor) -> Tensor:
        return self.y_proj(x)


class KeyConv(nn.Module):
    """Depthwise temporal convolution of keys: causal across chunks, symmetric inside one (dit.md 5.2).

    y[t] = w_last u[t] + sum_j w_{last-j} (u[t-j] + u+[t+j]), where u+ is u inside the chunk of t and zero past it.
    """

    def __init__(self, dim: int, taps: int):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(dim, 1, taps))

    def forward(self, u: Tensor, grid: Grid, tail: Tensor | None) -> tuple[Tensor, Tensor]:
        """u: (B, T*S, C); tail: (B, taps-1, S, C) inputs before it, None for zeros. Returns y and the next tail."""
        past = self.weight.shape[-1] - 1
        frames = u.unflatten(1, (grid.frames, grid.tokens))
        if tail is None:
            tail = frames.new_zeros(frames.shape[0], past, *frames.shape[2:])
        history = torch.cat((tail, frames), dim=1)
        # with zeros past the chunk's end, causal taps and their mirror image are one symmetric convolution
        kernel = torch.cat((self.weight, self.weight[..., :-1].flip(-1)), dim=-1)[..., None]
        end = torch.zeros_like(history[:, :past])
        out = []
        for a, b in pairwise((*grid.chunk_starts, grid.frames)):
            padded = torch.cat((history[:, a : b + past], end), dim=1)
            # (B, C, T, S) as a channels-last view of the tokens: no copy
            out.append(F.conv2d(padded.permute(0, 3, 1, 2), kernel, groups=u.shape[-1]).permute(0, 2, 3, 1))
        return torch.cat(out, dim=1).flatten(1, 2), history[:, history.shape[1] - past :]


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

    def forward(self, x: Tensor, keys_values: tuple[Tensor, Tensor], bias: Tensor | None) -> Tensor:
        """x: (B, N, C); bias: (B, 1, 1, L) added to the scores, or None."""
        q = split_heads(self.q_norm(self.q_linear(x)), self.num_heads)
        return self.proj(merge_heads(F.scaled_dot_product_attention(q, *keys_values, attn_mask=bias)))


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

    def spatial(self, x: Tensor, grid: Grid) -> Tensor:
        """Everything before the temporal convolution: x (B, T*S, C) to r (B, T, S, C)."""
        u = F.silu(_pointwise(self.inverted_conv.conv, x))
        # (B*T, C', H, W) as a channels-last view of the tokens: no copy
        image = u.view(-1, grid.height, grid.width, u.shape[-1]).permute(0, 3, 1, 2)
        a, g = self.depth_conv.conv(image).permute(0, 2, 3, 1).chunk(2, dim=-1)
        r = _pointwise(self.point_conv.conv, a * F.silu(g))
        return r.reshape(x.shape[0], grid.frames, grid.tokens, -1)

    def forward(self, x: Tensor, grid: Grid, tail: Tensor | None) -> tuple[Tensor, Tensor]:
        """x: (B, T*S, C); tail: (B, S, C) r of the frame before, None for zeros. Returns output and next tail."""
        r = self.spatial(x, grid)
        if tail is None:
            tail = torch.zeros_like(r[:, 0])
        before = torch.cat((tail[:, None], r[:, :-1]), dim=1)
        after = torch.cat((r[:, 1:], torch.zeros_like(r[:, :1])), dim=1)
        if len(grid.chunk_starts) > 1:
            same = [grid.chunk_of(t + 1) == grid.chunk_of(t) for t in range(grid.frames)]
            after = after * after.new_tensor(same)[:, None, None]
        # the three taps as one linear: [before, r, after] against the concatenated tap matrices
        taps = self.t_conv.weight[..., 0].permute(0, 2, 1).flatten(1)
        out = r + F.linear(torch.cat((before, r, after), dim=-1), taps)
        return out.flatten(1, 2), r[:, -1]


def _pointwise(layer: nn.Conv2d | nn.Linear, x: Tensor) -> Tensor:
    """A kernel-1 convolution on tokens; `precision.quantize` has put the linear layer it is in its place."""
    return layer(x) if isinstance(layer, nn.Linear) else F.linear(x, layer.weight.flatten(1), layer.bias)


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


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(B, N, h*D) to (B, h, N, D), a view."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """(B, h, N, D) to (B, N, h*D)."""
    return x.transpose(1, 2).flatten(2)
