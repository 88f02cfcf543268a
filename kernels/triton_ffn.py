"""The middle of the FFN as one Triton kernel, forward only: SiLU, depthwise 3x3, GLU (kernels.md 3)."""

import torch
import triton
import triton.language as tl
from sanawm_env.kernels.inputs import Grid
from torch import Tensor


@triton.jit
def _depthwise_glu(
    x, weight, bias, out,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr, F: tl.constexpr,
    ROWS: tl.constexpr, BW: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """SiLU, depthwise 3x3 and GLU of images (n, HEIGHT, WIDTH, 2F), weight (9, 2F): out (n, HEIGHT, WIDTH, F).

    Program: (channel tile, strip of ROWS x BW pixels, image). It walks down the strip and lets every row that it loads
    add to the three output rows that see it: nothing is stored in between.
    """
    STRIPS: tl.constexpr = (WIDTH + BW - 1) // BW
    c = tl.program_id(0) * BC + tl.arange(0, BC)
    top = tl.program_id(1) // STRIPS * ROWS
    column = tl.program_id(1) % STRIPS * BW + tl.arange(0, BW)
    image = tl.program_id(2).to(tl.int64) * HEIGHT * WIDTH
    real = c < F
    taps_a, taps_g = _taps(weight, c, real, 2 * F), _taps(weight, c + F, real, 2 * F)
    bias_a = tl.load(bias + c, real, 0.0).to(tl.float32)[None, :] + tl.zeros((BW, BC), tl.float32)
    bias_g = tl.load(bias + F + c, real, 0.0).to(tl.float32)[None, :] + tl.zeros((BW, BC), tl.float32)
    above_a, above_g, here_a, here_g = bias_a, bias_g, bias_a, bias_g
    for i in range(0, ROWS + 2):
        row = top - 1 + i
        below_a, below_g = bias_a, bias_g
        for dx in tl.static_range(0, 3):
            near = column + dx - 1
            pixel = row * WIDTH + near
            seen = (pixel >= 0) & (pixel < HEIGHT * WIDTH) & (near >= 0) & (near < WIDTH)
            at = (image + pixel)[:, None] * (2 * F) + c[None, :]
            seen = seen[:, None] & real[None, :]
            a = tl.load(x + at, seen, 0.0).to(tl.float32)
            g = tl.load(x + at + F, seen, 0.0).to(tl.float32)
            a, g = a * tl.sigmoid(a), g * tl.sigmoid(g)
            above_a, above_g = above_a + a * taps_a[6 + dx], above_g + g * taps_g[6 + dx]
            here_a, here_g = here_a + a * taps_a[3 + dx], here_g + g * taps_g[3 + dx]
            below_a, below_g = below_a + a * taps_a[dx], below_g + g * taps_g[dx]
        # the row above has now met all three rows that it sees
        pixel = (row - 1) * WIDTH + column
        done = (pixel >= top * WIDTH) & (pixel < HEIGHT * WIDTH) & (column < WIDTH)
        at = (image + pixel)[:, None] * F + c[None, :]
        value = above_a * above_g * tl.sigmoid(above_g)
        tl.store(out + at, value.to(out.dtype.element_ty), done[:, None] & real[None, :])
        above_a, above_g, here_a, here_g = here_a, here_g, below_a, below_g


@triton.jit
def _taps(weight, c, real, CHANNELS: tl.constexpr):
    """The nine taps of channels c, from (9, CHANNELS), each (1, len(c)) float32."""
    return (
        tl.load(weight + c, real, 0.0).to(tl.float32)[None, :],
        tl.load(weight + CHANNELS + c, real, 0.0).to(tl.float32)[None, :],
        tl.load(weight + 2 * CHANNELS + c, real, 0.0).to(tl.float32)[None, :],
        tl.load(weight + 3 * CHANNELS + c, real, 0.0).to(tl.float32)[None, :],
        tl.load(weight + 4 * CHANNELS + c, real, 0.0).to(tl.float32)[None, :],
        tl.load(weight + 5 * CHANNELS + c, real, 0.0).to(tl.float32)[None, :],
        tl.load(weight + 6 * CHANNELS + c, real, 0.0).to(tl.float32)[None, :],
        tl.load(weight + 7 * CHANNELS + c, real, 0.0).to(tl.float32)[None, :],
        tl.load(weight + 8 * CHANNELS + c, real, 0.0).to(tl.float32)[None, :],
    )


def depthwise_glu(x: Tensor, weight: Tensor, bias: Tensor, grid: Grid) -> Tensor:
    """As `reference.depthwise_glu`: one pass over memory."""
    batch, tokens, channels = x.shape
    out = torch.empty(batch, tokens, channels // 2, dtype=x.dtype, device=x.device)
    rows, width, wide = min(11, grid.height), 8, 64
    strips = triton.cdiv(grid.height, rows) * triton.cdiv(grid.width, width)
    _depthwise_glu[(triton.cdiv(channels // 2, wide), strips, batch * grid.frames)](
        x.contiguous(), weight.flatten(1).t().contiguous(), bias, out,
        HEIGHT=grid.height, WIDTH=grid.width, F=channels // 2, ROWS=rows, BW=width, BC=wide,
    )  # fmt: skip
    return out
