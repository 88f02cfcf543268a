"""The operators on a CPU, forward only: torch's own operations, arranged for the speed of one core.

They make fewer and larger calls, in the layout that the next call needs, with the faster of torch's libraries. The
docstrings say what each form does differently. Results agree with the reference up to rounding.
"""

from collections.abc import Callable, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from sanawm_env.kernels import reference
from sanawm_env.kernels.inputs import Branch, GDNInputs, GDNState, Grid
from sanawm_env.kernels.reference import DENOMINATOR_EPS, NORM_EPS, wide
from torch import Tensor

ONEDNN = (
    torch.backends.mkldnn.is_available()
    and torch.backends.cpu.get_cpu_capability() == "AVX512"
    and hasattr(torch.ops.mkldnn, "_linear_pointwise")  # torch's own, and not promised to stay
)
ONEDNN_FROM = 2**20  # multiplications from which on it wins over its longer call
PARTS_FROM = 2**16  # scores of a head, likewise for attention in parts
SCORES = 2**20  # of a head that are held at once: memory does not grow with the square of the tokens
IMAGE = 2**19  # numbers of the FFN's image that are held at once: they fit the cache and are not fresh memory each time


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear`.

    In float32 torch uses MKL, which leaves AVX-512 unused on AMD's processors and takes twice the time of oneDNN there.
    torch uses oneDNN for other dtypes only, so this calls the operator that its compiler emits.

    Args:
        x: (..., in).
        weight: (out, in).
        bias: (out,), or None.

    Returns:
        (..., out).
    """
    if (
        ONEDNN
        and x.dtype == weight.dtype == torch.float32
        and x.device.type == "cpu"
        and x.numel() * weight.shape[0] >= ONEDNN_FROM
    ):
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return F.linear(x, weight, bias)


def gdn(inputs: GDNInputs, state: GDNState | None, save: bool) -> tuple[Tensor, Tensor | None, GDNState | None]:
    """As `reference.gdn`: the matrix products of both branches and all frames are computed together (`_states`), and
    the normaliser uses vectors."""
    camera, rays, grid = inputs.camera, inputs.rays, inputs.grid
    beta, decay, phase = inputs.beta, inputs.decay, inputs.phase
    if len(grid.chunk_starts) > 1:
        return reference.gdn(inputs, state, save)
    plain_q, plain_k, v, key_tail = _features(inputs.main, beta.shape[1], grid, state and state.key_tail, save)
    b, n, heads, d = v.shape
    shape = (1 if camera is None else 2, b, heads, n, d)
    queries, keys, values = (plain_q.new_empty(shape) for _ in range(3))
    _rotate(plain_q, phase, queries[0])
    _rotate(plain_k, phase, keys[0])
    values[0] = v.transpose(1, 2)
    betas, initial, camera_tail = beta[None], state and state.kv[None], None
    if camera is not None and rays is not None:
        q, k, v, camera_tail = _features(camera, heads, grid, state and state.camera_key_tail, save)
        _ray_transform(q, rays.p.mT, rays.phase, queries[1])
        _ray_transform(k, rays.p_inv, rays.phase, keys[1])
        _ray_transform(v, rays.p_inv, rays.phase, values[1])
        betas = torch.stack((beta, beta / _stretch(k, keys[1], grid).clamp_(min=1)))
        initial = state and torch.stack((state.kv, cast(Tensor, state.camera_kv)))
    states, kv = _states(keys, values, betas, decay, initial)
    read = (queries.unflatten(3, (grid.frames, grid.tokens)) @ states).flatten(3, 4).transpose(2, 3)
    denominator, z = _normaliser(plain_q, plain_k, beta, decay, state and state.z)
    out, camera_out = torch.div(read[0], denominator.add_(DENOMINATOR_EPS)).flatten(2), None
    if camera is not None and rays is not None:
        camera_out = torch.empty_like(q)
        _ray_transform(read[1], rays.p, rays.phase.conj(), camera_out.transpose(1, 2))
        camera_out = camera_out.flatten(2)
    if not save or key_tail is None:
        return out, camera_out, None
    camera_kv = None if camera is None else kv[1]
    return out, camera_out, GDNState(kv[0], z, key_tail, camera_kv, camera_tail)


def _features(
    branch: Branch, heads: int, grid: Grid, tail: Tensor | None, save: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """`reference.features` as (B, N, h, D), and the next tail if `save`."""
    k, tail = _key_conv(branch.k, branch.conv, grid, tail, save)
    gain = (k.shape[-1] // heads * grid.tokens) ** -0.5
    q, k = _norm_relu(wide(branch.q), branch.q_norm), _norm_relu(k, branch.k_norm, gain)
    return *(x.unflatten(-1, (heads, -1)) for x in (q, k, wide(branch.v))), tail


def _norm_relu(x: Tensor, weight: Tensor, gain: float = 1) -> Tensor:
    square = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_()
    return (x * square.div_(x.shape[-1]).add_(NORM_EPS).rsqrt_().mul_(gain)).mul_(weight).relu_()


def _key_conv(u: Tensor, weight: Tensor, grid: Grid, tail: Tensor | None, save: bool) -> tuple[Tensor, Tensor | None]:
    """`reference.key_conv` as a sum over the distance between frames; the next tail if `save`."""
    taps = wide(weight[:, 0].mT.contiguous().flip(0))  # (K, C), by distance
    frames = u.unflatten(1, (grid.frames, grid.tokens))
    past, x = len(taps) - 1, wide(frames)
    y = x * taps[0]
    for distance in range(1, past + 1):
        if distance < grid.frames:
            y[:, distance:].addcmul_(x[:, :-distance], taps[distance])
            y[:, :-distance].addcmul_(x[:, distance:], taps[distance])
        if tail is not None:
            reached = min(distance, grid.frames)
            from_tail = tail[:, past - distance : past - distance + reached]
            y[:, :reached].addcmul_(from_tail, taps[distance])
    if save:
        if tail is None:
            tail = frames.new_zeros(u.shape[0], past, *frames.shape[2:])
        tail = torch.cat((tail[:, grid.frames :], frames[:, max(0, grid.frames - past) :]), dim=1)
    return y.flatten(1, 2), tail


def _rotate(x: Tensor, phase: Tensor, out: Tensor) -> None:
    """`reference.rotate` of x (B, N, h, D) to out (B, h, N, D)."""
    pairs = (torch.view_as_complex(t.unflatten(-1, (-1, 2))) for t in (x.transpose(1, 2), out))
    torch.mul(next(pairs), phase, out=next(pairs))


def _ray_transform(x: Tensor, matrix: Tensor, phase: Tensor, out: Tensor) -> None:
    """The ray transforms of `reference` of x (B, N, h, D) to out (B, h, N, D)."""
    b, n, h, d = x.shape
    half = d // 2
    groups = x[..., :half].reshape(b * n, h * half // 4, 4)
    # MKL is faster where the right-hand matrices are the transposed ones
    moved = groups @ matrix.to(x.dtype).flatten(0, 1).contiguous().mT
    out[..., :half] = moved.view(b, n, h, half).transpose(1, 2)
    _rotate(x[..., half:], phase, out[..., half:])


def _stretch(k: Tensor, moved: Tensor, grid: Grid) -> Tensor:
    """How much a transform of keys (B, N, h, D) to (B, h, N, D) stretches their squares in each frame: (B, h, T, 1)."""
    before = torch.linalg.vector_norm(k, dim=-1).clamp_(min=1e-6).transpose(1, 2)
    after = torch.linalg.vector_norm(moved, dim=-1).clamp_(min=1e-6)
    return (after / before).square_().unflatten(-1, (grid.frames, grid.tokens)).mean(-1, keepdim=True)


def _states(k: Tensor, v: Tensor, beta: Tensor, decay: Tensor, initial: Tensor | None) -> tuple[Tensor, Tensor]:
    """The gated delta rule by Gram matrices: `M_t = g M - P_t g M + A_t` with `P_t = K^T beta K`, `A_t = K^T beta V`,
    which come from two products. Only D x D matrices go from frame to frame.

    Args:
        k, v: (R, B, h, N, D) of R branches.
        beta: (R, B, h, T, S).
        decay: (B, h, T).
        initial: (R, B, h, D, D), or None.

    Returns:
        What each frame reads, the sum of forward and reverse states (R, B, h, T, D, D), and the last forward state.
    """
    k, v = (x.view(*beta.shape, -1).flatten(0, 2) for x in (k, v))
    weighted = (k * beta.reshape(*k.shape[:-1], 1)).mT
    gram, new = weighted @ k, weighted @ v
    decay = decay.expand(len(beta), *decay.shape).reshape(-1, beta.shape[3], 1, 1)

    def update(state: Tensor | None, t: int) -> Tensor:
        if state is None:
            return new[:, t]
        kept = state * decay[:, t]
        return torch.baddbmm(kept, gram[:, t], kept, alpha=-1).add_(new[:, t])

    states, last = _scan(update, beta.shape[3], None if initial is None else initial.flatten(0, 2))
    return torch.stack(states, dim=1).unflatten(0, beta.shape[:3]), last.unflatten(0, beta.shape[:3])


def _normaliser(q: Tensor, k: Tensor, beta: Tensor, decay: Tensor, initial: Tensor | None) -> tuple[Tensor, Tensor]:
    """The denominator (B, N, h, 1) of unrotated q, k (B, N, h, D), and the last forward state (B, h, D, 1)."""
    q, k = (x.unflatten(1, beta.shape[2:]) for x in (q, k))  # (B, T, S, h, D)
    weighted = k * beta.permute(0, 2, 3, 1)[..., None]
    new = weighted.sum(2, keepdim=True)
    decay = decay.mT[:, :, None, :, None]

    def update(state: Tensor | None, t: int) -> Tensor:
        if state is None:
            return new[:, t]
        kept = state * decay[:, t]
        read = (k[:, t] * kept).sum(-1, keepdim=True)
        return kept + new[:, t] - (weighted[:, t] * read).sum(1, keepdim=True)

    states, last = _scan(update, beta.shape[2], None if initial is None else initial.permute(0, 3, 1, 2))
    denominator = (q * torch.stack(states, dim=1)).sum(-1, keepdim=True)
    return denominator.flatten(1, 2), last.permute(0, 2, 3, 1).contiguous()


def _scan(
    update: Callable[[Tensor | None, int], Tensor], frames: int, initial: Tensor | None
) -> tuple[list[Tensor], Tensor]:
    """What each frame reads, the sum of its forward and reverse states, and the last forward state. `update` takes
    the state before a frame and the frame."""
    states: list[Tensor] = []
    state = initial
    for t in range(frames):
        state = update(state, t)
        states.append(state)
    last, state = states[-1], None
    for t in range(frames - 1, 0, -1):
        state = update(state, t)
        states[t - 1] = states[t - 1] + state
    return states, last


def depthwise_glu(x: Tensor, weight: Tensor, bias: Tensor, grid: Grid) -> Tensor:
    """As `reference.depthwise_glu`, a few frames at a time."""
    channels = x.shape[-1]
    frames = x.view(-1, grid.height, grid.width, channels)
    out = x.new_empty(*frames.shape[:3], channels // 2)
    step = max(1, IMAGE // frames[0].numel())
    for part, result in zip(frames.split(step), out.split(step), strict=True):
        image = F.silu(part).permute(0, 3, 1, 2)
        a, g = F.conv2d(image, weight, bias, padding=1, groups=channels).permute(0, 2, 3, 1).chunk(2, dim=-1)
        torch.mul(a, F.silu(g), out=result)
    return out.view(*x.shape[:2], -1)


def attend(q: Tensor, pages: Sequence[tuple[Tensor, Tensor]], grid: Grid) -> Tensor:
    """As `reference.attend`, as two linear maps around a softmax, head by head: torch's fused attention uses MKL
    (see `linear`), and in bfloat16 it takes three times as long as its parts."""
    length = sum(k.shape[2] for k, _ in pages)
    if not ONEDNN or q.shape[2] * length < PARTS_FROM or len(grid.chunk_starts) > 1:
        return reference.attend(q, pages, grid)
    out = torch.empty_like(q)
    q = q * q.shape[-1] ** -0.5
    rows = max(1, SCORES // length)
    for b in range(q.shape[0]):
        for h in range(q.shape[1]):
            k, v = (torch.cat([part[b, h] for part in parts]) for parts in zip(*pages, strict=True))
            for i in range(0, q.shape[2], rows):
                weights = linear(q[b, h, i : i + rows], k).softmax(-1)
                out[b, h, i : i + rows] = linear(weights, v.mT)
    return out
