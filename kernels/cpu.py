"""The operators on a CPU, forward only, with torch's own operations put together for speed."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from sanawm_env.kernels import reference
from sanawm_env.kernels.inputs import Grid
from sanawm_env.kernels.reference import depthwise_glu, gdn
from torch import Tensor

__all__ = ["attend", "depthwise_glu", "gdn", "linear"]

ONEDNN = torch.backends.mkldnn.is_available() and torch.backends.cpu.get_cpu_capability() == "AVX512"
SCORES = 2**20  # of one block of queries, so that memory does not grow with the square of the tokens


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear`. In float32 torch calls MKL, which leaves AVX-512 unused on AMD's processors and is half as fast there
    as oneDNN, which torch takes for other types; so the operator that its compiler calls is called here."""
    plain = type(weight) in (Tensor, torch.nn.Parameter)  # and not quantised
    if ONEDNN and plain and x.dtype == weight.dtype == torch.float32 and x.device.type == "cpu":
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return F.linear(x, weight, bias)


def attend(q: Tensor, past: Sequence[tuple[Tensor, Tensor]], k: Tensor, v: Tensor, grid: Grid) -> Tensor:
    """Head by head, as two linears around a softmax."""
    if len(grid.chunk_starts) > 1:
        return reference.attend(q, past, k, v, grid)
    keys, values = [*(page[0] for page in past), k], [*(page[1] for page in past), v]
    out = torch.empty_like(q)
    q = q * q.shape[-1] ** -0.5
    rows = max(1, SCORES // sum(page.shape[2] for page in keys))
    for b in range(q.shape[0]):
        for h in range(q.shape[1]):
            k, v = (torch.cat([page[b, h] for page in pages]) for pages in (keys, values))
            for a in range(0, q.shape[2], rows):
                weights = linear(q[b, h, a : a + rows], k).softmax(-1)
                out[b, h, a : a + rows] = linear(weights, v.mT)
    return out
