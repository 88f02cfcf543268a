"""What a pass leaves out because it is known before, or nobody reads it. All of it is here, none in the blocks.

Two shortcuts are taken by every form of the operators but the reference, which computes everything. Counted at full
size (5 passes of 20 blocks, 300 text tokens), measured on the nano world (2 passes of 4 blocks, one text token;
float32, one thread of an EPYC), a step takes longer

    without `next_state`          by 0.6 % at full size, by 7 % in nano (4 % of it for queries that nobody reads)
    without `fold_single_token`   by nothing at full size, by 5 % in nano
"""

from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from sanawm_env.engines.sanawm.network.context import BlockConditions, Context
from sanawm_env.engines.sanawm.network.layers import gate, modulate
from sanawm_env.engines.sanawm.network.mixers import WindowMixer
from sanawm_env.engines.sanawm.network.state import BlockState, NetworkState, WindowState
from sanawm_env.kernels.dispatch import Kernels
from sanawm_env.kernels.inputs import RayTransform

if TYPE_CHECKING:
    from sanawm_env.engines.sanawm.network.model import Block, SanaWM


def fold_single_token(
    blocks: "Iterable[Block]", conditions: tuple[BlockConditions, ...], text: Tensor, kernels: Kernels
) -> tuple[BlockConditions, ...]:
    """The conditions of blocks, with the cross-attention's result in `added` where the text (B, L, C) is one token:
    every query gives it all its attention, so the same row (B, 1, C) is added to every token."""

    def folded(block: "Block", given: BlockConditions) -> BlockConditions:
        _, v = block.cross_attn.kv_linear(text).chunk(2, dim=-1)
        read = block.cross_attn.proj(v)
        return BlockConditions(read if given.added is None else given.added + read, None)

    if kernels.name == "reference" or text.shape[1] != 1:
        return conditions
    return tuple(map(folded, blocks, conditions))


def next_state(model: "SanaWM", latents: Tensor, context: Context, state: NetworkState | None) -> NetworkState:
    """The state after a pass over final latents (B, c, T, H, W) at noise level 0: that of `model(latents, zeros,
    context, state, save=True)`, without the prediction, and without those parts of the last block that no state
    holds."""
    clean = torch.zeros(len(latents), device=latents.device)
    if context.kernels.name == "reference":
        return model(latents, clean, context, state, save=True)[1]
    x, _, modulation = model.embed(latents, clean, context)
    given = list(zip(model.blocks, context.conditions, model.block_states(state), strict=True))
    states = []
    for block, conditions, before in given[:-1]:
        x, after = block(x, modulation, conditions, context, before, save=True)
        states.append(after)
    block, conditions, before = given[-1]
    return NetworkState((*states, _last_state(block, x, modulation, conditions, context, before)))


def _last_state(
    block: "Block",
    x: Tensor,
    modulation: Tensor,
    conditions: BlockConditions,
    context: Context,
    state: BlockState | None,
) -> BlockState:
    """The state that `block(...)` leaves: after the mixer only the tokens of the last frame go on, up to the FFN's
    tail."""
    last, s = _last_frame(context), context.grid.tokens
    shift_a, scale_a, gate_a, shift_f, scale_f, _ = block.modulations(modulation)
    y = modulate(x, shift_a, scale_a)
    if isinstance(block.attn, WindowMixer):
        q, page = block.attn.page(y, context)
        past = cast(WindowState, state.mixer).pages if state is not None else ()
        mixed, mixer_state = block.attn.read(y[:, -s:], q[:, -s:], past, page, last), block.attn.keep(past, page)
    else:
        mixed, mixer_state = block.attn(y, context, state and state.mixer, save=True)
    x = x[:, -s:] + gate(mixed[:, -s:], gate_a[:, -1:])
    if conditions.added is not None:
        x = x + conditions.added[:, -s:]
    if conditions.text is not None:
        x = x + block.cross_attn(x, conditions.text, context.text_bias, context.kernels)
    r = block.mlp.spatial(modulate(x, shift_f[:, -1:], scale_f[:, -1:]), last.grid, context.kernels)
    return BlockState(mixer_state, r[:, -1])


def _last_frame(context: Context) -> Context:
    """What mixers read for the tokens of the last frame."""
    s, rays = context.grid.tokens, context.rays
    if rays is not None:
        rays = RayTransform(rays.p[:, -s:], rays.p_inv[:, -s:], rays.phase[:, :, -s:])
    grid = replace(context.grid, frames=1, chunk_starts=(0,))
    return replace(context, grid=grid, phase=context.phase[:, :, -s:], rays=rays)
