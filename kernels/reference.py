"""The operators of SANA-WM in plain torch. Every faster form is compared with them, and gradients go through them.

The frame-wise gated delta rule (self-attention of the GDN blocks) comes first.

All S tokens of one latent frame enter a matrix state `M` (D x Dv) at once, per batch item and head. With keys `K_t` (S
x D), values `V_t` (S x Dv), a write gate `beta` per token and one decay `g_t` per frame:

    M_t = (I - K_t^T diag(beta_t) K_t) (g_t M_{t-1}) + K_t^T diag(beta_t) V_t

It is computed in its residual form, `M_t = Mg + K_t^T (beta_t * (V_t - K_t Mg))` with `Mg = g_t M_{t-1}`: no D x D Gram
matrix is built, and nothing is lost to rounding `I - P`.

Inside a chunk every frame also sees the later frames: a second state `R` runs backwards over the chunk from zero,
excludes the frame that reads it, and is never kept. The read-out is `q_t (M_t + R_t)`.

The normaliser of the main branch is the same rule with values of one and unrotated keys; the camera branch is the rule
alone. Every function is pure, works in the dtype it is given (float64 included) and is differentiable.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from sanawm_env.kernels.inputs import Branch, GDNInputs, GDNState, Grid, RayTransform
from torch import Tensor


def frame_update(state: Tensor | None, k: Tensor, v: Tensor, beta: Tensor, decay: Tensor) -> Tensor:
    """State after one frame.

    Args:
        state: (B, h, D, Dv) before the frame, or None for zeros.
        k: (B, h, S, D) keys.
        v: (B, h, S, Dv) values.
        beta: (B, h, S) write gate per token.
        decay: (B, h) of the frame.

    Returns:
        (B, h, D, Dv), a new tensor.
    """
    if state is None:
        return k.mT @ (beta[..., None] * v)
    kept = decay[..., None, None] * state
    return kept + k.mT @ (beta[..., None] * (v - k @ kept))


def forward_states(k: Tensor, v: Tensor, beta: Tensor, decay: Tensor, initial: Tensor | None = None) -> list[Tensor]:
    """The states M_0 .. M_{T-1}, each including its own frame. The next chunk starts from the last one.

    Args:
        k: (B, h, T, S, D).
        v: (B, h, T, S, Dv).
        beta: (B, h, T, S).
        decay: (B, h, T).
        initial: (B, h, D, Dv) state of the chunk before, or None.
    """
    states, state = [], initial
    for frame in _frames(k, v, beta, decay):
        state = frame_update(state, *frame)
        states.append(state)
    return states


def reverse_states(
    k: Tensor, v: Tensor, beta: Tensor, decay: Tensor, chunk_starts: tuple[int, ...] = (0,)
) -> list[Tensor | None]:
    """The states R_0 .. R_{T-1} of the later frames of the same chunk, own frame excluded; None where there are none.

    Args:
        k, v, beta, decay: as in `forward_states`.
        chunk_starts: first frame of every chunk, when k covers several.
    """
    frames = _frames(k, v, beta, decay)
    states: list[Tensor | None] = [None] * len(frames)
    for t in range(len(frames) - 1, 0, -1):
        if t not in chunk_starts:
            states[t - 1] = frame_update(states[t], *frames[t])
    return states


def _frames(*tensors: Tensor) -> list[tuple[Tensor, ...]]:
    """The tensors (B, h, T, ...) frame by frame."""
    return list(zip(*(t.unbind(2) for t in tensors), strict=True))


def frame_gated_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    decay: Tensor,
    initial: Tensor | None = None,
    chunk_starts: tuple[int, ...] = (0,),
) -> tuple[Tensor, Tensor]:
    """Read-out of every token, and the state for the next chunk.

    Args:
        q, k: (B, h, T, S, D).
        v: (B, h, T, S, Dv).
        beta: (B, h, T, S).
        decay: (B, h, T).
        initial: (B, h, D, Dv), or None.
        chunk_starts: first frame of every chunk, (0,) for one chunk.

    Returns:
        Read-out (B, h, T, S, Dv), and the forward state (B, h, D, Dv) after the last frame.
    """
    forward = forward_states(k, v, beta, decay, initial)
    reverse = reverse_states(k, v, beta, decay, chunk_starts)
    merged = [m if r is None else m + r for m, r in zip(forward, reverse, strict=True)]
    return q @ torch.stack(merged, dim=2), forward[-1]


# --- the whole operator of a GDN block: two branches from raw projections to read-out ---

NORM_EPS = 1e-5
DENOMINATOR_EPS = 1e-8


def gdn(inputs: GDNInputs, state: GDNState | None, save: bool) -> tuple[Tensor, Tensor | None, GDNState | None]:
    """Both branches of a GDN block, between its input projections and its output projections (dit.md 5, 7.3).

    Args:
        inputs: of this call.
        state: of the chunk before, None for the first. It is only read.
        save: whether to return the next state.

    Returns:
        Read-outs (B, N, C) of the main and the camera branch, float32 or wider, and the next state or None.
    """
    beta, decay, grid = inputs.beta, inputs.decay, inputs.grid
    q, k, v, key_tail = features(inputs.main, beta.shape[1], grid, state and state.key_tail)
    read, kv, z = main_branch(q, k, v, beta, decay, inputs.phase, grid, state)
    camera_read = camera_kv = camera_tail = None
    if inputs.camera is not None and inputs.rays is not None:
        q, k, v, camera_tail = features(inputs.camera, beta.shape[1], grid, state and state.camera_key_tail)
        camera_read, camera_kv = camera_branch(q, k, v, beta, decay, inputs.rays, grid, state)
        camera_read = merge_heads(camera_read)
    return merge_heads(read), camera_read, GDNState(kv, z, key_tail, camera_kv, camera_tail) if save else None


def features(branch: Branch, heads: int, grid: Grid, tail: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Features of one branch: keys convolved over time, q and k normed over all channels and rectified, keys times (D
    S)^-1/2 (dit.md 5.1).

    Args:
        branch: raw projections.
        heads: h.
        grid: of the call.
        tail: of the key convolution, or None.

    Returns:
        q, k, v (B, h, N, D), float32 or wider, and the next tail.
    """
    k, tail = key_conv(branch.k, branch.conv, grid, tail)
    q = split_heads(rms_norm(branch.q, branch.q_norm, NORM_EPS), heads).relu()
    k = split_heads(rms_norm(k, branch.k_norm, NORM_EPS), heads).relu()
    return wide(q), wide(k) * (q.shape[-1] * grid.tokens) ** -0.5, wide(split_heads(branch.v, heads)), tail


def main_branch(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, decay: Tensor, phase: Tensor, grid: Grid, state: GDNState | None
) -> tuple[Tensor, Tensor, Tensor]:
    """The main branch.

    Args:
        q, k, v: (B, h, N, D) features.
        beta, decay, phase, grid: see `GDNInputs`.
        state: of the chunk before, or None.

    Returns:
        The read-out (B, h, N, D), and the states kv and z.
    """
    turned = (by_frame(rotate(x, phase), grid) for x in (q, k))
    plain = [by_frame(x, grid) for x in (q, k, torch.ones_like(k[..., :1]))]
    numerator, kv = frame_gated_delta_rule(
        *turned, by_frame(v, grid), beta, decay, state and state.kv, grid.chunk_starts
    )
    denominator, z = frame_gated_delta_rule(*plain, beta, decay, state and state.z, grid.chunk_starts)
    return (numerator / (denominator + DENOMINATOR_EPS)).flatten(2, 3), kv, z


def camera_branch(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, decay: Tensor, rays: RayTransform, grid: Grid, state: GDNState | None
) -> tuple[Tensor, Tensor]:
    """As `main_branch`, with ray transforms, without a normaliser, and with a write gate discounted by how much the
    transform stretches the keys of a frame. Returns the read-out in ray coordinates, and the state."""
    moved = to_world(k, rays)
    stretch = moved.square().sum(-1).clamp(min=1e-12) / k.square().sum(-1).clamp(min=1e-12)
    discount = by_frame(stretch, grid).mean(-1, keepdim=True).clamp(min=1)
    inputs = (by_frame(x, grid) for x in (query_world(q, rays), moved, to_world(v, rays)))
    read, kv = frame_gated_delta_rule(*inputs, beta / discount, decay, state and state.camera_kv, grid.chunk_starts)
    return to_ray(read.flatten(2, 3), rays), kv


# --- its parts ---


def key_conv(u: Tensor, weight: Tensor, grid: Grid, tail: Tensor | None) -> tuple[Tensor, Tensor]:
    """Depthwise temporal convolution of keys: causal across chunks, symmetric inside one (dit.md 5.2).

    y[t] = w_last u[t] + sum_j w_{last-j} (u[t-j] + u+[t+j]), where u+ is u inside the chunk of t and zero past it.

    Args:
        u: (B, N, C).
        weight: (C, 1, K).
        grid: of the call.
        tail: (B, K-1, S, C) inputs before it, None for zeros.

    Returns:
        y (B, N, C), and the next tail.
    """
    past = weight.shape[-1] - 1
    frames = u.unflatten(1, (grid.frames, grid.tokens))
    if tail is None:
        tail = frames.new_zeros(frames.shape[0], past, *frames.shape[2:])
    history = torch.cat((tail, frames), dim=1)
    # with zeros past the chunk's end, causal taps and their mirror image are one symmetric convolution
    kernel = torch.cat((weight, weight[..., :-1].flip(-1)), dim=-1)[..., None]
    end = torch.zeros_like(history[:, :past])
    out = []
    for a, b in pairwise((*grid.chunk_starts, grid.frames)):
        padded = torch.cat((history[:, a : b + past], end), dim=1)
        # (B, C, T, S) as a channels-last view of the tokens: no copy
        out.append(F.conv2d(padded.permute(0, 3, 1, 2), kernel, groups=u.shape[-1]).permute(0, 2, 3, 1))
    return torch.cat(out, dim=1).flatten(1, 2), history[:, history.shape[1] - past :]


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """w * x / sqrt(mean(x^2) + eps) over the last axis, in float32 or wider, returned in the input's dtype."""
    x32 = wide(x)
    return (x32 * torch.rsqrt(x32.square().mean(-1, keepdim=True) + eps) * weight).to(x.dtype)


def rotate(x: Tensor, phase: Tensor) -> Tensor:
    """Turn the channel pairs (2j, 2j+1) of x (..., D) by complex phases (..., D/2); the conjugate turns back."""
    pairs = torch.view_as_complex(wide(x).unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * phase).flatten(-2).to(x.dtype)


def query_world(q: Tensor, rays: RayTransform) -> Tensor:
    """q' = P^T q of queries (B, h, N, D) (dit.md 7.2)."""
    return _ray_transform(q, rays.p.mT, rays.phase)


def to_world(x: Tensor, rays: RayTransform) -> Tensor:
    """k' = P^-1 k of keys, v' = P^-1 v of values (B, h, N, D)."""
    return _ray_transform(x, rays.p_inv, rays.phase)


def to_ray(o: Tensor, rays: RayTransform) -> Tensor:
    """o = P o' of what is read in the world, (B, h, N, D)."""
    return _ray_transform(o, rays.p, rays.phase.conj())


def _ray_transform(x: Tensor, matrix: Tensor, phase: Tensor) -> Tensor:
    """Groups of four channels of the first half of x (B, h, N, D) times a 4x4 matrix per token, the rest rotated."""
    groups, rotary = x.chunk(2, dim=-1)
    moved = torch.einsum("bhngj,bnij->bhngi", groups.unflatten(-1, (-1, 4)), matrix.to(x.dtype)).flatten(-2)
    return torch.cat((moved, rotate(rotary, phase)), dim=-1)


# --- the other two operators that have faster forms ---


def depthwise_glu(x: Tensor, weight: Tensor, bias: Tensor, grid: Grid) -> Tensor:
    """The middle of the FFN (dit.md 9): SiLU, depthwise 3x3 over the rows and columns of each frame, then a * SiLU(g).

    Args:
        x: (B, N, 2F) channels, a before g.
        weight: (2F, 1, 3, 3).
        bias: (2F,).
        grid: of the call.

    Returns:
        (B, N, F).
    """
    # (B*T, 2F, H, W) as a channels-last view of the tokens: no copy
    image = F.silu(x).view(-1, grid.height, grid.width, x.shape[-1]).permute(0, 3, 1, 2)
    a, g = F.conv2d(image, weight, bias, padding=1, groups=x.shape[-1]).permute(0, 2, 3, 1).chunk(2, dim=-1)
    return (a * F.silu(g)).reshape(*x.shape[:2], -1)


def attend(q: Tensor, pages: Sequence[tuple[Tensor, Tensor]], grid: Grid) -> Tensor:
    """Softmax attention with scale D^-1/2. Several chunks in one call see each other only backwards.

    Args:
        q: (B, h, N, D) queries.
        pages: keys and values (B, h, N_i, D) of past chunks, oldest first, then those of this call.
        grid: of the call.

    Returns:
        (B, h, N, D).
    """
    k, v = pages[-1] if len(pages) == 1 else (torch.cat(part, dim=2) for part in zip(*pages, strict=True))
    mask = chunk_mask(grid, k.shape[2] - q.shape[2], q.device) if len(grid.chunk_starts) > 1 else None
    if mask is None and q.requires_grad and q.dtype == torch.bfloat16 and q.device.type == "cpu":
        # training on a CPU: torch's fused attention is three times as slow there as its parts
        with torch.autocast("cpu", enabled=False):  # which would take the softmax in float32
            return ((q * q.shape[-1] ** -0.5) @ k.mT).softmax(-1) @ v
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def chunk_mask(grid: Grid, past: int, device: torch.device) -> Tensor:
    """(N, past + N), true where a token may look: at all `past` tokens, at its own chunk and at those before it."""
    chunk = torch.tensor([grid.chunk_of(t) for t in range(grid.frames)], device=device)
    chunk = chunk.repeat_interleave(grid.tokens)
    return F.pad(chunk[:, None] >= chunk[None, :], (past, 0), value=True)


def wide(x: Tensor) -> Tensor:
    """x in float32, or as it is in float64."""
    return x if x.dtype == torch.float64 else x.float()


def by_frame(x: Tensor, grid: Grid) -> Tensor:
    """(B, h, T*S, ...) to (B, h, T, S, ...), a view where it can be."""
    return x.unflatten(2, (grid.frames, grid.tokens))


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(B, N, h*D) to (B, h, N, D), a view."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """(B, h, N, D) to (B, N, h*D)."""
    return x.transpose(1, 2).flatten(2)
