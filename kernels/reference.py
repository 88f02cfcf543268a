"""The frame-wise gated delta rule in plain torch (SANA-WM, self-attention of the GDN blocks).

All S tokens of one latent frame enter a matrix state `M` (D x Dv) at once, per batch item and head. With keys
`K_t` (S x D), values `V_t` (S x Dv), a write gate `beta` per token and one decay `g_t` per frame:

    M_t = (I - K_t^T diag(beta_t) K_t) (g_t M_{t-1}) + K_t^T diag(beta_t) V_t

which is computed in its residual form, `M_t = Mg + K_t^T (beta_t * (V_t - K_t Mg))` with `Mg = g_t M_{t-1}`: no
D x D Gram matrix is built, and nothing is lost to rounding `I - P`.

Inside a chunk every frame also sees the later frames: a second state `R` runs backwards over the chunk from zero,
excludes the frame that reads it, and is never kept. The read-out is `q_t (M_t + R_t)`.

The normaliser of the main branch is the same rule with values of one and unrotated keys; the camera branch is the
rule alone. Every function is pure, works in the dtype it is given (float64 included) and is differentiable.
"""

import torch
from torch import Tensor


def frame_update(state: Tensor | None, k: Tensor, v: Tensor, beta: Tensor, decay: Tensor) -> Tensor:
    """State after one frame.

    Args:
        state: (B, h, D, Dv) before the frame, or None for zeros.
        k: (B, h, S, D) keys. v: (B, h, S, Dv) values.
        beta: (B, h, S) write gate per token. decay: (B, h) of the frame.

    Returns: (B, h, D, Dv), a new tensor.
    """
    if state is None:
        return k.mT @ (beta[..., None] * v)
    kept = decay[..., None, None] * state
    return kept + k.mT @ (beta[..., None] * (v - k @ kept))


def forward_states(k: Tensor, v: Tensor, beta: Tensor, decay: Tensor, initial: Tensor | None = None) -> list[Tensor]:
    """The states M_0 .. M_{T-1}, each including its own frame; the last one is what the next chunk starts from.

    Args:
        k: (B, h, T, S, D). v: (B, h, T, S, Dv). beta: (B, h, T, S). decay: (B, h, T).
        initial: (B, h, D, Dv) state left by the previous chunk, or None.
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

    Arguments as in `forward_states`; `chunk_starts` holds the first frame of every chunk when k covers several.
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
    """Read-out of every token and the state for the next chunk.

    Args:
        q, k: (B, h, T, S, D). v: (B, h, T, S, Dv). beta: (B, h, T, S). decay: (B, h, T).
        initial: (B, h, D, Dv) or None. chunk_starts: first frame of every chunk, (0,) for one chunk.

    Returns: read-out (B, h, T, S, Dv) and the forward state (B, h, D, Dv) after the last frame.
    """
    forward = forward_states(k, v, beta, decay, initial)
    reverse = reverse_states(k, v, beta, decay, chunk_starts)
    merged = [m if r is None else m + r for m, r in zip(forward, reverse, strict=True)]
    return q @ torch.stack(merged, dim=2), forward[-1]
