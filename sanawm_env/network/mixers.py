"""Self-attention of the two kinds of block, each with a main branch and a camera branch (dit.md 5, 6, 7).

The branches are added, gated once and projected. A GDN block remembers through a matrix per head that the frame-wise
gated delta rule updates (`sanawm_env.kernels`); a softmax block attends to the keys and values of a window of chunks.
The camera branch moves queries, keys and values into world coordinates with the 4x4 matrix of each token's viewing
ray, so that only relative ray poses matter.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sanawm_env.kernels.reference import frame_gated_delta_rule
from sanawm_env.network.config import SanaWMConfig
from sanawm_env.network.layers import Grid, KeyConv, RMSNorm, merge_heads, split_heads
from sanawm_env.network.rope import rotate
from sanawm_env.network.state import GDNState, Page, WindowState, push_page

DENOMINATOR_EPS = 1e-8


@dataclass(frozen=True, eq=False)
class RayTransform:
    """The camera geometry of one chunk: ray <- world matrices `p` and their inverses (B, N, 4, 4), and the rotary
    phases (B, 1, N, D/4) of the second half of each head. Its methods are the rows of the table in dit.md 7.2."""

    p: Tensor
    p_inv: Tensor
    phase: Tensor

    def q(self, x: Tensor) -> Tensor:
        """q' = P^T q."""
        return _transform(x, self.p.mT, self.phase)

    def kv(self, x: Tensor) -> Tensor:
        """k' = P^-1 k, v' = P^-1 v."""
        return _transform(x, self.p_inv, self.phase)

    def out(self, x: Tensor) -> Tensor:
        """o = P o'."""
        return _transform(x, self.p, self.phase.conj())


def _transform(x: Tensor, matrix: Tensor, phase: Tensor) -> Tensor:
    """Groups of four channels of the first half of x (B, h, N, D) times a 4x4 matrix per token, the rest rotated."""
    rays, rotary = x.chunk(2, dim=-1)
    moved = torch.einsum("bhngj,bnij->bhngi", rays.unflatten(-1, (-1, 4)), matrix.to(x.dtype)).flatten(-2)
    return torch.cat((moved, rotate(rotary, phase)), dim=-1)


class Mixer(nn.Module):
    """What both kinds of block share: projections, norms, gate. Softmax blocks carry the gate parameters of the GDN
    blocks too, unused, because the official state dict has them."""

    def __init__(self, config: SanaWMConfig):
        super().__init__()
        dim = config.hidden_size
        self.heads = dim // config.head_dim
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.proj = nn.Linear(dim, dim)
        self.q_norm = RMSNorm(dim, eps=1e-5)
        self.k_norm = RMSNorm(dim, eps=1e-5)
        self.beta_proj = nn.Linear(dim, self.heads)
        self.gate_proj = nn.Linear(dim, self.heads)
        self.A_log = nn.Parameter(torch.zeros(self.heads))
        self.dt_bias = nn.Parameter(torch.zeros(self.heads))
        self.output_gate = nn.Linear(dim, dim)
        self.register_buffer("recall_gate", torch.zeros(1))
        self.q_proj_cam = nn.Linear(dim, dim)
        self.k_proj_cam = nn.Linear(dim, dim)
        self.v_proj_cam = nn.Linear(dim, dim)
        self.out_proj_cam = nn.Linear(dim, dim)
        self.q_norm_cam = RMSNorm(dim, eps=1e-5)
        self.k_norm_cam = RMSNorm(dim, eps=1e-5)

    def finish(self, x: Tensor, main: Tensor, camera: Tensor | None) -> Tensor:
        """Add the branches (B, h, N, D), gate by the input x (B, N, C), project."""
        o = merge_heads(main).to(x.dtype)
        if camera is not None:
            o = o + self.out_proj_cam(merge_heads(camera).to(x.dtype))
        return self.proj((o.float() * F.silu(self.output_gate(x).float())).to(x.dtype))


class GDNMixer(Mixer):
    """Gated delta rule over frames (dit.md 5, 7.3)."""

    def __init__(self, config: SanaWMConfig):
        super().__init__(config)
        self.conv_k = KeyConv(config.hidden_size, config.conv_kernel_size)
        self.conv_k_cam = KeyConv(config.hidden_size, config.conv_kernel_size)

    def gates(self, x: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
        """Write gate per token (B, h, T, S) and decay per frame (B, h, T), float32."""
        frames = x.unflatten(1, (grid.frames, grid.tokens))
        beta = torch.sigmoid(self.beta_proj(frames)).permute(0, 3, 1, 2).float()
        rate = F.softplus((self.gate_proj(frames.mean(2)) + self.dt_bias).float())
        return beta, torch.exp(-self.A_log.float().exp() * rate).transpose(1, 2)

    def features(self, x: Tensor, norm: RMSNorm) -> Tensor:
        """Norm over all channels, heads, ReLU: (B, N, C) to (B, h, N, D), float32."""
        return F.relu(split_heads(norm(x), self.heads)).float()

    def main_branch(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        beta: Tensor,
        decay: Tensor,
        phase: Tensor,
        grid: Grid,
        state: GDNState | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """q, k, v: (B, h, N, D) features, k scaled. Returns the read-out (B, h, N, D) and the states kv and z."""
        turned = (by_frame(rotate(x, phase), grid) for x in (q, k))
        plain = [by_frame(x, grid) for x in (q, k, torch.ones_like(k[..., :1]))]
        numerator, kv = frame_gated_delta_rule(
            *turned, by_frame(v, grid), beta, decay, state and state.kv, grid.chunk_starts
        )
        denominator, z = frame_gated_delta_rule(*plain, beta, decay, state and state.z, grid.chunk_starts)
        return (numerator / (denominator + DENOMINATOR_EPS)).flatten(2, 3), kv, z

    def camera_branch(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        beta: Tensor,
        decay: Tensor,
        rays: RayTransform,
        grid: Grid,
        state: GDNState | None,
    ) -> tuple[Tensor, Tensor]:
        """As `main_branch`, with ray transforms, no normaliser, and a write gate discounted by how much the transform
        stretches the keys of a frame. Returns the read-out in ray coordinates and the state."""
        moved = rays.kv(k)
        stretch = moved.square().sum(-1).clamp(min=1e-12) / k.square().sum(-1).clamp(min=1e-12)
        discount = by_frame(stretch, grid).mean(-1, keepdim=True).clamp(min=1)
        inputs = (by_frame(x, grid) for x in (rays.q(q), moved, rays.kv(v)))
        read, kv = frame_gated_delta_rule(
            *inputs, beta / discount, decay, state and state.camera_kv, grid.chunk_starts
        )
        return rays.out(read.flatten(2, 3)), kv

    def forward(
        self, x: Tensor, grid: Grid, phase: Tensor, rays: RayTransform | None, state: GDNState | None, save: bool
    ) -> tuple[Tensor, GDNState | None]:
        """x: (B, N, C) modulated tokens. Returns the output (B, N, C) and, if `save`, the next state."""
        beta, decay = self.gates(x, grid)
        key_scale = (x.shape[-1] // self.heads * grid.tokens) ** -0.5
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        k, key_tail = self.conv_k(k, grid, state and state.key_tail)
        main, kv, z = self.main_branch(
            self.features(q, self.q_norm), self.features(k, self.k_norm) * key_scale,
            split_heads(v, self.heads).float(), beta, decay, phase, grid, state,
        )  # fmt: skip
        camera = camera_kv = camera_key_tail = None
        if rays is not None:
            k, camera_key_tail = self.conv_k_cam(self.k_proj_cam(x), grid, state and state.camera_key_tail)
            camera, camera_kv = self.camera_branch(
                self.features(self.q_proj_cam(x), self.q_norm_cam), self.features(k, self.k_norm_cam) * key_scale,
                split_heads(self.v_proj_cam(x), self.heads).float(), beta, decay, rays, grid, state,
            )  # fmt: skip
        out = self.finish(x, main, camera)
        return out, GDNState(kv, z, key_tail, camera_kv, camera_key_tail) if save else None


class WindowMixer(Mixer):
    """Softmax attention over the current chunk and a window of past ones (dit.md 6, 7.3)."""

    def __init__(self, config: SanaWMConfig):
        super().__init__(config)
        self.window, self.sink = config.window, config.sink

    def forward(
        self, x: Tensor, grid: Grid, phase: Tensor, rays: RayTransform | None, state: WindowState | None, save: bool
    ) -> tuple[Tensor, WindowState | None]:
        """x: (B, N, C) modulated tokens. Returns the output (B, N, C) and, if `save`, the next state."""
        pages = state.pages if state is not None else ()
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        q = rotate(split_heads(self.q_norm(q), self.heads), phase)
        k = rotate(split_heads(self.k_norm(k), self.heads), phase)
        v = split_heads(v, self.heads)
        main = attend(q, [(p.k, p.v) for p in pages], k, v, grid)
        camera = camera_k = camera_v = None
        if rays is not None:
            camera_q = rays.q(split_heads(self.q_norm_cam(self.q_proj_cam(x)), self.heads))
            camera_k = rays.kv(split_heads(self.k_norm_cam(self.k_proj_cam(x)), self.heads))
            camera_v = rays.kv(split_heads(self.v_proj_cam(x), self.heads))
            camera = rays.out(attend(camera_q, [(p.camera_k, p.camera_v) for p in pages], camera_k, camera_v, grid))
        out = self.finish(x, main, camera)
        if not save:
            return out, None
        # v is a view of the fused projection: a page must not keep q and k of the chunk alive
        pages = push_page(pages, Page(k, v.contiguous(), camera_k, camera_v), self.window, self.sink)
        return out, WindowState(pages)


def by_frame(x: Tensor, grid: Grid) -> Tensor:
    """(B, h, T*S, ...) to (B, h, T, S, ...), a view where it can be."""
    return x.unflatten(2, (grid.frames, grid.tokens))


def attend(q: Tensor, past: list[tuple[Tensor, Tensor]], k: Tensor, v: Tensor, grid: Grid) -> Tensor:
    """Softmax attention of q (B, h, N, D) to past pages and to the current k, v; scale D^-1/2. Several chunks in one
    call see each other only backwards."""
    mask = None
    if len(grid.chunk_starts) > 1:
        chunk = torch.tensor([grid.chunk_of(t) for t in range(grid.frames)], device=q.device)
        chunk = chunk.repeat_interleave(grid.tokens)
        mask = chunk[:, None] >= chunk[None, :]
        if past:
            mask = F.pad(mask, (sum(page[0].shape[2] for page in past), 0), value=True)
    if past:
        k = torch.cat([page[0] for page in past] + [k], dim=2)
        v = torch.cat([page[1] for page in past] + [v], dim=2)
    if mask is None and q.requires_grad and q.dtype == torch.bfloat16 and q.device.type == "cpu":
        # training on a CPU: torch's fused attention is three times as slow there as its parts
        with torch.autocast("cpu", enabled=False):  # which would take the softmax in float32
            return ((q * q.shape[-1] ** -0.5) @ k.mT).softmax(-1) @ v
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
