"""The GDN operator as Triton kernels, forward only (kernels.md 4).

A block takes four launches, each for both branches at once (the program id says which):

    prep     token tiles            temporal key convolution; 1 / RMS of q and k over all channels; next key tails
    gram     (batch, head, frame)   P = k~^T B k~ and A = k~^T B v, and for the normaliser k^T B k and k^T B 1
    scan     (batch, head), columns M <- g (M - P M) + A forwards from the state and backwards from zero, merged
    readout  (batch, head, frame)   q~ (M + R), divided (main branch) or turned back into the ray (camera branch)

Norm, ReLU, rotation and ray matrices are applied in registers wherever q, k and v are loaded. What is one number for a
whole frame and head is folded in after the gram: the key scale s = (D S)^-1/2 (s^2 on P, s on A) and the camera
branch's discount of beta. `I - P` is never stored: rounding the identity would eat the state's memory.

States live in pools (slots, h, D, D), float32: the scan reads slot `src[b]` and writes slot `dst[b]`, -1 for none
(zeros are read, nothing is written), so that the same launches serve any episode. Sums run in a fixed order and tiles
do not depend on the batch: a row of a batch is bit for bit what it is alone.
"""

from dataclasses import replace
from typing import Literal

import torch
import triton
import triton.language as tl
from sanawm_env.kernels import reference
from sanawm_env.kernels.inputs import Branch, GDNInputs, GDNState
from sanawm_env.kernels.reference import DENOMINATOR_EPS, NORM_EPS
from sanawm_env.kernels.slots import Slots, each_its_own, nowhere
from torch import Tensor
from triton.runtime.interpreter import InterpretedFunction

Precision = Literal["fp32", "tf32", "bf16"]
PREP_TOKENS, PREP_CHANNELS = 8, 128
GRAM_TOKENS, READ_TOKENS, SCAN_COLUMNS = 32, 64, 32
SPLIT_ABOVE = 256  # tokens of a frame from which its gram is summed in two halves, to fill the machine at batch 1


# --- device functions ---


@triton.jit
def _dot(a, b, MODE: tl.constexpr):
    """a @ b with float32 sums; operands in float32 ("fp32"), tf32, or bfloat16. Interpreted, operands stay float32:
    the interpreter multiplies the bit patterns of bfloat16."""
    if MODE == "bf16":
        return tl.dot(a.to(tl.bfloat16), b.to(tl.bfloat16))
    elif MODE == "tf32":
        return tl.dot(a, b, input_precision="tf32")
    else:
        return tl.dot(a, b, input_precision="tf32x3")


@triton.jit
def _quarters(x, ROWS: tl.constexpr, GROUPS: tl.constexpr):
    """The four channels of every group of x (ROWS, 4 GROUPS), each (ROWS, GROUPS)."""
    even, odd = tl.split(tl.reshape(x, (ROWS, GROUPS, 2, 2)))
    x0, x2 = tl.split(even)
    x1, x3 = tl.split(odd)
    return x0, x1, x2, x3


@triton.jit
def _turned(
    x, rows, valid, rays, matrix, phase, PAIRS, RAYS: tl.constexpr, TRANSPOSED: tl.constexpr, SIGN: tl.constexpr,
    ROWS: tl.constexpr, GROUPS: tl.constexpr,
):  # fmt: skip
    """x (ROWS, 4 GROUPS) with its first `rays` groups of four times the 4x4 matrix of its row, the rest turned pair by
    pair by the row's phases (SIGN -1 turns back). rows: which token each row is; PAIRS: phases of a token; RAYS: at
    most so many groups have matrices, 0 compiles them out."""
    x0, x1, x2, x3 = _quarters(x, ROWS, GROUPS)
    g = tl.arange(0, GROUPS)[None, :]
    rotary = valid[:, None] & (g >= rays) & (2 * (g - rays) < PAIRS)
    at = phase + rows[:, None] * (2 * PAIRS) + 4 * (g - rays)
    cos_a, sin_a = tl.load(at, rotary, 0.0), SIGN * tl.load(at + 1, rotary, 0.0)
    cos_b, sin_b = tl.load(at + 2, rotary, 0.0), SIGN * tl.load(at + 3, rotary, 0.0)
    y0, y1 = x0 * cos_a - x1 * sin_a, x0 * sin_a + x1 * cos_a
    y2, y3 = x2 * cos_b - x3 * sin_b, x2 * sin_b + x3 * cos_b
    if RAYS > 0:
        in_ray = g < rays
        m = matrix + rows[:, None] * 16
        on = valid[:, None]
        if TRANSPOSED:
            y0 = tl.where(in_ray, _row(m, 0, 4, x0, x1, x2, x3, on), y0)
            y1 = tl.where(in_ray, _row(m, 1, 4, x0, x1, x2, x3, on), y1)
            y2 = tl.where(in_ray, _row(m, 2, 4, x0, x1, x2, x3, on), y2)
            y3 = tl.where(in_ray, _row(m, 3, 4, x0, x1, x2, x3, on), y3)
        else:
            y0 = tl.where(in_ray, _row(m, 0, 1, x0, x1, x2, x3, on), y0)
            y1 = tl.where(in_ray, _row(m, 4, 1, x0, x1, x2, x3, on), y1)
            y2 = tl.where(in_ray, _row(m, 8, 1, x0, x1, x2, x3, on), y2)
            y3 = tl.where(in_ray, _row(m, 12, 1, x0, x1, x2, x3, on), y3)
    return tl.reshape(tl.join(tl.join(y0, y2), tl.join(y1, y3)), (ROWS, 4 * GROUPS))


@triton.jit
def _row(m, first, STEP: tl.constexpr, x0, x1, x2, x3, on):
    """One row of a matrix times the quarters."""
    y = tl.load(m + first, on, 0.0) * x0 + tl.load(m + first + STEP, on, 0.0) * x1
    return y + tl.load(m + first + 2 * STEP, on, 0.0) * x2 + tl.load(m + first + 3 * STEP, on, 0.0) * x3


@triton.jit
def _features(x, at, inverse_rms, weight, rows, valid, channel, real):
    """ReLU(norm(x)) of a token tile of one head: (ROWS, DP) float32."""
    tile = tl.load(x + at, valid[:, None] & real[None, :], 0.0).to(tl.float32)
    scale = tl.load(inverse_rms + rows, valid, 0.0)
    w = tl.load(weight + channel, real, 0.0).to(tl.float32)
    return tl.maximum(tile * scale[:, None] * w[None, :], 0.0)


# --- kernels ---


@triton.jit
def _prep(
    q0, q1, k0, k1, q_row0, q_row1, k_row0, k_row1, conv0, conv1, tails0, tails1, src, dst, new_tails0, new_tails1,
    keys, q_scale, k_scale, eps,
    T: tl.constexpr, S: tl.constexpr, C: tl.constexpr, TAPS: tl.constexpr, BATCH: tl.constexpr,
    BS: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Keys convolved over time (2, B, T, S, C), 1 / RMS over channels of q and of the keys (2, B, T, S), next tails.

    Program: (token tile of one frame, batch, branch). q, k: rows of their own stride. tails: pools
    (slots, TAPS-1, S, C).
    """
    PAST: tl.constexpr = TAPS - 1  # offsets into pools are negative where a row has no slot
    tile, batch, branch = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    t = tile // tl.cdiv(S, BS)
    s = (tile % tl.cdiv(S, BS)) * BS + tl.arange(0, BS)
    valid = s < S
    if branch == 0:
        q, k, q_row, k_row, conv, tails, new_tails = q0, k0, q_row0, k_row0, conv0, tails0, new_tails0
    else:
        q, k, q_row, k_row, conv, tails, new_tails = q1, k1, q_row1, k_row1, conv1, tails1, new_tails1
    slot, new_slot = tl.load(src + batch), tl.load(dst + batch)
    first = batch.to(tl.int64) * T * S
    n = t * S + s
    q_squares, k_squares = tl.zeros((BS,), tl.float32), tl.zeros((BS,), tl.float32)
    for c0 in range(0, C, BC):
        c = c0 + tl.arange(0, BC)
        inside = valid[:, None] & (c < C)[None, :]
        own = tl.load(k + (first + n)[:, None] * k_row + c[None, :], inside, 0.0)
        y = own.to(tl.float32) * tl.load(conv + c * TAPS + PAST, c < C, 0.0).to(tl.float32)[None, :]
        for j in tl.static_range(1, TAPS):
            w = tl.load(conv + c * TAPS + PAST - j, c < C, 0.0).to(tl.float32)[None, :]
            earlier, later = (n >= j * S)[:, None], (n < (T - j) * S)[:, None]
            before = tl.load(k + (first + n - j * S)[:, None] * k_row + c[None, :], inside & earlier, 0.0)
            old = ((slot * PAST + PAST + t - j) * S + s)[:, None] * C + c[None, :]
            before += tl.load(tails + old, inside & (n < j * S)[:, None] & (old >= 0), 0.0)
            after = tl.load(k + (first + n + j * S)[:, None] * k_row + c[None, :], inside & later, 0.0)
            y += w * (before.to(tl.float32) + after.to(tl.float32))
        out = (branch * BATCH * T * S + first + n)[:, None] * C + c[None, :]
        tl.store(keys + out, y.to(keys.dtype.element_ty), inside)
        k_squares += tl.sum(y * y, 1)
        x = tl.load(q + (first + n)[:, None] * q_row + c[None, :], inside, 0.0).to(tl.float32)
        q_squares += tl.sum(x * x, 1)
        if new_slot >= 0:
            place = t + PAST - T  # of this frame among the last PAST ones
            if place >= 0:
                tl.store(new_tails + ((new_slot * PAST + place) * S + s)[:, None] * C + c[None, :], own, inside)
            if t == 0:  # a chunk shorter than the tail keeps the end of the tail before
                for i in tl.static_range(T, PAST):
                    at = ((slot * PAST + i) * S + s)[:, None] * C + c[None, :]
                    kept = tl.load(tails + at, inside & (at >= 0), 0.0)
                    at = ((new_slot * PAST + i - T) * S + s)[:, None] * C + c[None, :]
                    tl.store(new_tails + at, kept, inside)
    row = branch * BATCH * T * S + first + n
    tl.store(q_scale + row, 1.0 / tl.sqrt(q_squares / C + eps), valid)
    tl.store(k_scale + row, 1.0 / tl.sqrt(k_squares / C + eps), valid)


@triton.jit
def _gram(
    keys, k_scale, v0, v1, v_row0, v_row1, k_norm0, k_norm1, beta, phase0, phase1, p_inv,
    beta_b, beta_h, beta_t, beta_s, key_scale,
    grams, writes, z_writes, stretches,
    T: tl.constexpr, S: tl.constexpr, H: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, BATCH: tl.constexpr,
    BS: tl.constexpr, SPLITS: tl.constexpr, RAYS: tl.constexpr, MODE: tl.constexpr,
):  # fmt: skip
    """Sums over the tokens of one frame and head, without the key scale.

    grams (3, SPLITS, B*h*T, D, D): P of the main branch, of its normaliser, of the camera branch.
    writes (2, SPLITS, B*h*T, D, D): A of the main and the camera branch. z_writes (SPLITS, B*h*T, D): k^T B 1.
    stretches (SPLITS, B*h*T): sum over tokens of |k'|^2 / |k|^2 of the camera branch.
    Program: (batch, head, frame), split, role (0 main, 1 normaliser, 2 camera).
    """
    ROWS: tl.constexpr = BATCH * H * T
    cell, split, role = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    t, head, batch = cell % T, cell // T % H, cell // (T * H)
    channel = tl.arange(0, DP)
    real = channel < D
    C: tl.constexpr = H * D
    branch = role // 2
    if branch == 0:
        v, v_row, k_norm, phase = v0, v_row0, k_norm0, phase0
    else:
        v, v_row, k_norm, phase = v1, v_row1, k_norm1, phase1
    rays = branch * RAYS
    pairs = D // 2 - branch * (D // 4)
    first = batch.to(tl.int64) * T * S + t * S
    k_first = branch * BATCH * T * S + first
    gram, write = tl.zeros((DP, DP), tl.float32), tl.zeros((DP, DP), tl.float32)
    z_write, stretch = tl.zeros((DP,), tl.float32), tl.zeros((BS,), tl.float32)
    SHARE: tl.constexpr = (S + SPLITS - 1) // SPLITS
    for s0 in range(0, SHARE, BS):
        s = split * SHARE + s0 + tl.arange(0, BS)
        valid = (s < S) & (s < (split + 1) * SHARE)
        at = (k_first + s)[:, None] * C + head * D + channel[None, :]
        k = _features(keys, at, k_scale + k_first, k_norm + head * D, s, valid, channel, real)
        b = tl.load(beta + batch * beta_b + head * beta_h + t * beta_t + s * beta_s, valid, 0.0)
        if role == 1:
            gram += _dot(tl.trans(k * b[:, None]), k, MODE)
            z_write += tl.sum(k * b[:, None], 0)
        else:
            rows = first + s
            squares = tl.sum(k * k, 1)
            k = _turned(k, rows, valid, rays, p_inv, phase, pairs, RAYS, False, 1, BS, DP // 4)
            x = tl.load(
                v + rows[:, None] * v_row + head * D + channel[None, :], valid[:, None] & real[None, :], 0.0
            ).to(tl.float32)
            if branch == 1:
                x = _turned(x, rows, valid, rays, p_inv, phase, pairs, RAYS, False, 1, BS, DP // 4)
                FLOOR: tl.constexpr = 1e-12
                unit = key_scale * key_scale
                ratio = tl.maximum(tl.sum(k * k, 1) * unit, FLOOR) / tl.maximum(squares * unit, FLOOR)
                stretch += tl.where(valid, ratio, 0.0)
            weighted = tl.trans(k * b[:, None])
            gram += _dot(weighted, k, MODE)
            write += _dot(weighted, x, MODE)
    square = channel[:, None] * D + channel[None, :]
    within = real[:, None] & real[None, :]
    part = (split * ROWS + cell).to(tl.int64)
    tl.store(grams + (role * SPLITS * ROWS + part) * D * D + square, gram, within)
    if role == 1:
        tl.store(z_writes + part * D + channel, z_write, real)
    else:
        tl.store(writes + (branch * SPLITS * ROWS + part) * D * D + square, write, within)
    if role == 2:
        tl.store(stretches + part, tl.sum(stretch, 0))


@triton.jit
def _sum_of_parts(x, at, mask, PART, SPLITS: tl.constexpr):
    total = tl.load(x + at, mask, 0.0)
    for i in tl.static_range(1, SPLITS):
        total += tl.load(x + i * PART + at, mask, 0.0)
    return total


@triton.jit
def _frame(
    grams, writes, stretches, cell, branch, key_scale, square, within, slab, inside,
    S: tl.constexpr, D: tl.constexpr, ROWS: tl.constexpr, SPLITS: tl.constexpr,
):  # fmt: skip
    """P and the columns of A of one frame, with key scale and, in the camera branch, the discount of beta."""
    cell = cell.to(tl.int64)
    stretch = _sum_of_parts(stretches, cell, branch == 1, ROWS, SPLITS) / S
    scale = key_scale / tl.maximum(stretch, 1.0)
    p = _sum_of_parts(grams, (2 * branch * SPLITS * ROWS + cell) * D * D + square, within, ROWS * D * D, SPLITS)
    a = _sum_of_parts(writes, (branch * SPLITS * ROWS + cell) * D * D + slab, inside, ROWS * D * D, SPLITS)
    return p * (scale * key_scale), a * scale


@triton.jit
def _normaliser_frame(
    grams, z_writes, cell, key_scale, channel, square, within,
    D: tl.constexpr, ROWS: tl.constexpr, SPLITS: tl.constexpr,
):  # fmt: skip
    """k^T B k and k^T B 1 of one frame, with the key scale."""
    cell = cell.to(tl.int64)
    p = _sum_of_parts(grams, (SPLITS * ROWS + cell) * D * D + square, within, ROWS * D * D, SPLITS)
    b = _sum_of_parts(z_writes, cell * D + channel, channel < D, ROWS * D, SPLITS)
    return p * (key_scale * key_scale), b * key_scale


@triton.jit
def _scan(
    grams, writes, z_writes, stretches, decay, decay_b, decay_h, decay_t, key_scale,
    kv, camera_kv, z, src, dst, new_kv, new_camera_kv, new_z, merged, z_merged,
    T: tl.constexpr, S: tl.constexpr, H: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, BATCH: tl.constexpr,
    BN: tl.constexpr, SPLITS: tl.constexpr, MODE: tl.constexpr,
):  # fmt: skip
    """M_t + R_t of every frame (2, B*h*T, D, D), z_t + y_t (B*h*T, D), and the states after the last frame.

    The columns of a state are independent. Program: (batch, head), tile of BN columns, branch; the programs of the main
    branch's first tile hold the normaliser too.
    """
    ROWS: tl.constexpr = BATCH * H * T
    pair, tile, branch = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    head, batch = pair % H, pair // H
    channel = tl.arange(0, DP)
    column = tile * BN + tl.arange(0, BN)
    square = channel[:, None] * D + channel[None, :]
    within = (channel < D)[:, None] & (channel < D)[None, :]
    slab = channel[:, None] * D + column[None, :]
    inside = (channel < D)[:, None] & (column < D)[None, :]
    slot, new_slot = tl.load(src + batch), tl.load(dst + batch)
    if branch == 0:
        pool, new_pool = kv, new_kv
    else:
        pool, new_pool = camera_kv, new_camera_kv
    place = (slot * H + head) * D * D + slab
    m = tl.load(pool + place, inside & (place >= 0), 0.0)  # offsets below zero: no slot
    r = tl.zeros((DP, BN), tl.float32)
    normaliser = (branch == 0) & (tile == 0)
    z_place = (slot * H + head) * D + channel
    z_state = tl.load(z + z_place, (channel < D) & (z_place >= 0), 0.0)
    y_state = tl.zeros((DP,), tl.float32)
    for back in range(0, T):  # R_t waits in `merged` for M_t, y_t likewise
        t = T - 1 - back
        cell = pair * T + t
        g = tl.load(decay + batch * decay_b + head * decay_h + t * decay_t)
        p, a = _frame(
            grams, writes, stretches, cell, branch, key_scale, square, within, slab, inside, S, D, ROWS, SPLITS
        )
        tl.store(merged + (branch * ROWS + cell).to(tl.int64) * D * D + slab, r, inside)
        kept = g * r
        r = kept - _dot(p, kept, MODE) + a
        if normaliser:
            pz, bz = _normaliser_frame(grams, z_writes, cell, key_scale, channel, square, within, D, ROWS, SPLITS)
            tl.store(z_merged + cell * D + channel, y_state, channel < D)
            kept_z = g * y_state
            y_state = kept_z - tl.sum(pz * kept_z[None, :], 1) + bz
    tl.debug_barrier()
    for t in range(0, T):
        cell = pair * T + t
        g = tl.load(decay + batch * decay_b + head * decay_h + t * decay_t)
        p, a = _frame(
            grams, writes, stretches, cell, branch, key_scale, square, within, slab, inside, S, D, ROWS, SPLITS
        )
        kept = g * m
        m = kept - _dot(p, kept, MODE) + a
        waiting = merged + (branch * ROWS + cell).to(tl.int64) * D * D + slab
        tl.store(waiting, m + tl.load(waiting, inside, 0.0), inside)
        if normaliser:
            pz, bz = _normaliser_frame(grams, z_writes, cell, key_scale, channel, square, within, D, ROWS, SPLITS)
            kept_z = g * z_state
            z_state = kept_z - tl.sum(pz * kept_z[None, :], 1) + bz
            waiting_z = z_merged + cell * D + channel
            tl.store(waiting_z, z_state + tl.load(waiting_z, channel < D, 0.0), channel < D)
    if new_slot >= 0:
        tl.store(new_pool + (new_slot * H + head) * D * D + slab, m, inside)
        if normaliser:
            tl.store(new_z + (new_slot * H + head) * D + channel, z_state, channel < D)


@triton.jit
def _readout(
    q0, q1, q_row0, q_row1, q_scale, q_norm0, q_norm1, phase0, phase1, p, merged, z_merged, out, eps,
    T: tl.constexpr, S: tl.constexpr, H: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, BATCH: tl.constexpr,
    BS: tl.constexpr, RAYS: tl.constexpr, MODE: tl.constexpr,
):  # fmt: skip
    """What every token reads: out (2, B, T*S, h*D). Program: (batch, head, frame), token tile, branch."""
    ROWS: tl.constexpr = BATCH * H * T
    C: tl.constexpr = H * D
    cell, tile, branch = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    t, head, batch = cell % T, cell // T % H, cell // (T * H)
    channel = tl.arange(0, DP)
    real = channel < D
    if branch == 0:
        q, q_row, q_norm, phase = q0, q_row0, q_norm0, phase0
    else:
        q, q_row, q_norm, phase = q1, q_row1, q_norm1, phase1
    rays = branch * RAYS
    pairs = D // 2 - branch * (D // 4)
    first = batch.to(tl.int64) * T * S + t * S
    s = tile * BS + tl.arange(0, BS)
    valid = s < S
    rows = first + s
    at = rows[:, None] * q_row + head * D + channel[None, :]
    x = _features(q, at, q_scale + branch * BATCH * T * S + first, q_norm + head * D, s, valid, channel, real)
    turned = _turned(x, rows, valid, rays, p, phase, pairs, RAYS, True, 1, BS, DP // 4)
    square = channel[:, None] * D + channel[None, :]
    state = tl.load(merged + (branch * ROWS + cell).to(tl.int64) * D * D + square, real[:, None] & real[None, :], 0.0)
    read = _dot(turned, state, MODE)
    if branch == 0:
        z = tl.load(z_merged + cell * D + channel, real, 0.0)
        read = read / (tl.sum(x * z[None, :], 1) + eps)[:, None]
    else:
        read = _turned(read, rows, valid, rays, p, phase, pairs, RAYS, False, -1, BS, DP // 4)
    at = (branch * BATCH * T * S + rows)[:, None] * C + head * D + channel[None, :]
    tl.store(out + at, read.to(out.dtype.element_ty), valid[:, None] & real[None, :])


# --- the operator ---

INTERPRETED = isinstance(_prep, InterpretedFunction)
"""Whether kernels run in Triton's interpreter, on CPU tensors (TRITON_INTERPRET=1 when Python started)."""


def gdn(
    inputs: GDNInputs, state: GDNState | None, save: bool, precision: Precision | None = None
) -> tuple[Tensor, Tensor | None, GDNState | None]:
    """As `reference.gdn`; read-outs have the dtype of the projections. Several chunks in one call go through the
    reference.

    Args:
        inputs, state, save: as `reference.gdn`.
        precision: of the matrix products' operands; sums are always float32. None: "fp32" for float32 projections; for
            lower ones gram and readout in "bf16" and the scan in "tf32" (kernels.md 4: the error does not grow then).

    Raises:
        RuntimeError: where a gradient is asked for.
    """
    if len(inputs.grid.chunk_starts) > 1:
        return reference.gdn(inputs, state, save)
    batch, device = len(inputs.beta), inputs.main.q.device
    rows, none = each_its_own(batch, device), nowhere(batch, device)
    new = _empty_state(inputs) if save else None
    slots = Slots(none if state is None else rows, rows if save else none)
    reads = gdn_slots(inputs, state, new, slots, precision)
    return reads[0], None if inputs.camera is None else reads[1], new


def gdn_slots(
    inputs: GDNInputs,
    pool: GDNState | None,
    new_pool: GDNState | None,
    slots: Slots,
    precision: Precision | None = None,
) -> Tensor:
    """The operator on pools of states. No other slot is touched.

    Args:
        inputs: of B rows.
        pool: states to read; row b reads slot `slots.src[b]`.
        new_pool: states to write; row b writes slot `slots.dst[b]`. It may be the same pool, but no slot may be read
            and written in one call.
        slots: of each row.
        precision: as `gdn`.

    Returns:
        The read-outs (1 or 2, B, N, C), main before camera.

    Raises:
        RuntimeError: where gradients are asked for.
        ValueError: for a pool that is not contiguous.
    """
    main, camera, beta, decay, rays = inputs.main, inputs.camera, inputs.beta, inputs.decay, inputs.rays
    gradients = (main, camera, pool) if torch.is_grad_enabled() else ()
    if any(t is not None and t.requires_grad for x in gradients if x is not None for t in vars(x).values()):
        raise RuntimeError('The Triton operators are forward only: train with backend "reference".')
    q = main.q
    batch, heads, frames, tokens = beta.shape
    channels, taps = q.shape[-1], main.conv.shape[-1]
    size, branches = channels // heads, 1 if camera is None else 2
    second = main if camera is None else camera
    main, second = _rowwise(main), _rowwise(second)
    if new_pool is not None and not all(t.is_contiguous() for t in _fields(new_pool)):
        raise ValueError("The pool that states are written to must be contiguous: make it with torch.empty.")
    missing = decay, decay, decay, q, q  # a pool that is missing is never touched: any tensors stand for it
    old = missing if pool is None else [t.contiguous() for t in _fields(pool)]
    new = missing if new_pool is None else _fields(new_pool)
    padded = triton.next_power_of_2(size)
    splits = 2 if tokens > SPLIT_ABOVE else 1
    gram_mode, scan_mode = (precision, precision) if precision else _modes(q.dtype)
    if INTERPRETED:  # which has no tf32 and gets bfloat16 products wrong
        gram_mode = scan_mode = "fp32"
    key_scale = (size * tokens) ** -0.5
    ray_groups = 0 if camera is None else size // 8
    angles = torch.view_as_real(inputs.phase).contiguous()
    camera_angles, p, p_inv = angles, angles, angles
    if rays is not None:
        turns = torch.view_as_real(rays.phase), rays.p.float(), rays.p_inv.float()
        camera_angles, p, p_inv = (t.contiguous() for t in turns)
    cells = batch * heads * frames
    wide = dict(dtype=torch.float32, device=q.device)

    keys = torch.empty(branches, batch, frames, tokens, channels, dtype=q.dtype, device=q.device)
    q_scale, k_scale = torch.empty(2, branches, batch, frames, tokens, **wide)
    sizes = dict(T=frames, S=tokens, BATCH=batch)
    _prep[(frames * triton.cdiv(tokens, PREP_TOKENS), batch, branches)](
        main.q, second.q, main.k, second.k, main.q.stride(1), second.q.stride(1), main.k.stride(1), second.k.stride(1),
        main.conv, second.conv, old[3], old[4], slots.src, slots.dst, new[3], new[4], keys, q_scale, k_scale, NORM_EPS,
        C=channels, TAPS=taps, BS=PREP_TOKENS, BC=PREP_CHANNELS, **sizes,
    )  # fmt: skip

    sizes |= dict(H=heads, D=size, DP=padded)
    grams = torch.empty(1 + branches, splits, cells, size, size, **wide)
    writes = torch.empty(branches, splits, cells, size, size, **wide)
    z_writes, stretches = torch.empty(splits, cells, size, **wide), torch.empty(splits, cells, **wide)
    _gram[(cells, splits, 1 + branches)](
        keys, k_scale, main.v, second.v, main.v.stride(1), second.v.stride(1), main.k_norm, second.k_norm, beta,
        angles, camera_angles, p_inv, *beta.stride(), key_scale, grams, writes, z_writes, stretches,
        BS=GRAM_TOKENS, SPLITS=splits, RAYS=ray_groups, MODE=gram_mode, num_warps=8, **sizes,
    )  # fmt: skip

    merged, z_merged = torch.empty(branches, cells, size, size, **wide), torch.empty(cells, size, **wide)
    columns = min(SCAN_COLUMNS, padded)
    _scan[(batch * heads, triton.cdiv(size, columns), branches)](
        grams, writes, z_writes, stretches, decay, *decay.stride(), key_scale, old[0], old[1], old[2],
        slots.src, slots.dst, new[0], new[1], new[2], merged, z_merged,
        BN=columns, SPLITS=splits, MODE=scan_mode, num_warps=8, num_stages=1, **sizes,
    )  # fmt: skip

    out = torch.empty(branches, batch, frames * tokens, channels, dtype=q.dtype, device=q.device)
    _readout[(cells, triton.cdiv(tokens, READ_TOKENS), branches)](
        main.q, second.q, main.q.stride(1), second.q.stride(1), q_scale, main.q_norm, second.q_norm,
        angles, camera_angles, p, merged, z_merged, out, DENOMINATOR_EPS,
        BS=READ_TOKENS, RAYS=ray_groups, MODE=gram_mode, num_warps=8, **sizes,
    )  # fmt: skip
    return out


def _modes(dtype: torch.dtype) -> tuple[Precision, Precision]:
    """Operands of gram and readout, and of the scan."""
    return ("fp32", "fp32") if dtype == torch.float32 else ("bf16", "tf32")


def _rowwise(branch: Branch) -> Branch:
    """Tensors that the kernels can walk: rows at one stride whatever the batch, channels side by side."""

    def rows(x: Tensor) -> Tensor:
        return x if x.stride(2) == 1 and x.stride(0) == x.shape[1] * x.stride(1) else x.contiguous()

    return replace(branch, q=rows(branch.q), k=rows(branch.k), v=rows(branch.v))


def _empty_state(inputs: GDNInputs) -> GDNState:
    """The next state of each row, to be written."""
    main, (batch, heads, _, tokens) = inputs.main, inputs.beta.shape
    wide, channels = dict(dtype=torch.float32, device=main.q.device), main.q.shape[-1]
    size = channels // heads

    def tail() -> Tensor:
        return main.k.new_empty(batch, main.conv.shape[-1] - 1, tokens, channels)

    kv, z = torch.empty(batch, heads, size, size, **wide), torch.empty(batch, heads, size, 1, **wide)
    if inputs.camera is None:
        return GDNState(kv, z, tail())
    return GDNState(kv, z, tail(), torch.empty_like(kv), tail())


def _fields(pool: GDNState) -> tuple[Tensor, ...]:
    """kv, camera_kv, z, key_tail, camera_key_tail; what a state without a camera lacks is never touched."""
    camera_kv = pool.kv if pool.camera_kv is None else pool.camera_kv
    camera_tail = pool.key_tail if pool.camera_key_tail is None else pool.camera_key_tail
    return pool.kv, camera_kv, pool.z, pool.key_tail, camera_tail
