"""Softmax attention over a window of pages: a Triton kernel lays the pages out, the attention is torch's."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from sanawm_env.kernels import reference
from sanawm_env.kernels.inputs import Grid
from sanawm_env.kernels.slots import each_its_own
from torch import Tensor


@triton.jit
def _fill_window(
    k, v, slots, keys, values, k_b, k_h, k_n, v_b, v_h, v_n, start,
    H: tl.constexpr, N: tl.constexpr, TOTAL: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, BS: tl.constexpr,
):  # fmt: skip
    """Rows `start` to `start + N` of a window (B, h, TOTAL, D) from page `slots[b]` of a pool of keys and values
    (slots, h, N, D). Program: token tile, (batch, head)."""
    n = tl.program_id(0) * BS + tl.arange(0, BS)
    batch, head = tl.program_id(1) // H, tl.program_id(1) % H
    c = tl.arange(0, DP)
    inside = (n < N)[:, None] & (c < D)[None, :]
    page = tl.load(slots + batch)
    to = ((batch * H + head).to(tl.int64) * TOTAL + start + n)[:, None] * D + c[None, :]
    x = tl.load(k + page * k_b + head * k_h + n[:, None] * k_n + c[None, :], inside, 0.0)
    tl.store(keys + to, x, inside)
    x = tl.load(v + page * v_b + head * v_h + n[:, None] * v_n + c[None, :], inside, 0.0)
    tl.store(values + to, x, inside)


def attend(q: Tensor, pages: Sequence[tuple[Tensor, Tensor]], grid: Grid) -> Tensor:
    """As `reference.attend`: a kernel lays the pages out once, and torch attends to them."""
    if len(grid.chunk_starts) > 1 or len(pages) == 1:
        return reference.attend(q, pages, grid)
    rows = each_its_own(q.shape[0], q.device)
    return attend_pages(q, [(*page, rows) for page in pages])


def attend_pages(q: Tensor, pages: Sequence[tuple[Tensor, Tensor, Tensor]]) -> Tensor:
    """Softmax attention to pages by number.

    Args:
        q: (B, h, N, D).
        pages: pools of keys and values (slots, h, N_i, D) with the (B,) int64 page of each row, oldest first.

    Returns:
        (B, h, N, D).
    """
    batch, heads, _, size = q.shape
    total = sum(key.shape[2] for key, _, _ in pages)
    keys, values = torch.empty(2, batch, heads, total, size, dtype=q.dtype, device=q.device)
    start = 0
    for key, value, slots in pages:
        key, value = (t if t.stride(-1) == 1 else t.contiguous() for t in (key, value))
        count = key.shape[2]
        _fill_window[(triton.cdiv(count, 64), batch * heads)](
            key, value, slots, keys, values, *key.stride()[:3], *value.stride()[:3], start,
            H=heads, N=count, TOTAL=total, D=size, DP=triton.next_power_of_2(size), BS=64,
        )  # fmt: skip
        start += count
    return F.scaled_dot_product_attention(q, keys, values)
