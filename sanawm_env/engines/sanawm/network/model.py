"""SanaWM: the video transformer that imagines one chunk of latents under a camera (dit.md 1, 2, 10).

    context = model.prepare(grid, frame_index, text=..., text_mask=..., camera=..., plucker=...)   # once per chunk
    velocity, _ = model(latents, timesteps, context, state)                                        # denoising passes
    _, state = model(clean_latents, zeros, context, state, save=True, predict=False)               # the clean pass

`prepare` holds everything that does not depend on the latents; the forward pass never writes to a tensor it was
given, and a state comes out only where one is asked for. Parameter names and shapes are those of the official
checkpoint at every size.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from sanawm_env.camera.rays import ray_from_world, rigid_inverse
from sanawm_env.engines.sanawm.network.ablation import TokenMixer
from sanawm_env.engines.sanawm.network.config import SanaWMConfig
from sanawm_env.engines.sanawm.network.layers import (
    CaptionEmbedder,
    ConvFFN,
    CrossAttention,
    FinalLayer,
    RMSNorm,
    TimestepEmbedder,
    VoxelEmbed,
    gate,
    modulate,
    project,
)
from sanawm_env.engines.sanawm.network.mixers import GDNMixer, WindowMixer
from sanawm_env.engines.sanawm.network.rope import phases, rope_angles
from sanawm_env.engines.sanawm.network.state import BlockState, NetworkState
from sanawm_env.kernels.dispatch import Kernels, choose
from sanawm_env.kernels.inputs import Grid, RayTransform


@dataclass(frozen=True, eq=False)
class Context:
    """What one chunk's passes share.

    kernels: the operators. phase: (B, 1, N, D/2) rotary table. rays: None without cameras.
    added: per block what it adds to every token whatever the latents are, (B, N, C) or (B, 1, C): the ray conditions,
        and the cross-attention where `text` is None.
    text: per block the keys and values of the text; None where it is a single token, which leaves nothing to weigh.
    text_bias: (B, 1, 1, L) of the text's mask.
    """

    kernels: Kernels
    grid: Grid
    phase: Tensor
    rays: RayTransform | None
    added: tuple[Tensor, ...] | None
    text: tuple[tuple[Tensor, Tensor], ...] | None
    text_bias: Tensor | None

    def last_frame(self) -> "Context":
        """The part that tokens of the last frame read."""
        s = self.grid.tokens
        return replace(
            self,
            grid=replace(self.grid, frames=1, chunk_starts=(0,)),
            phase=self.phase[:, :, -s:],
            rays=self.rays and RayTransform(self.rays.p[:, -s:], self.rays.p_inv[:, -s:], self.rays.phase[:, :, -s:]),
            added=self.added and tuple(rows[:, -s:] for rows in self.added),
        )


class Block(nn.Module):
    """Self-attention, ray conditions, cross-attention, FFN."""

    def __init__(self, config: SanaWMConfig, index: int):
        super().__init__()
        dim = config.hidden_size
        self.scale_shift_table = nn.Parameter(torch.zeros(6, dim))
        self.plucker_proj = nn.Linear(dim, dim)
        recurrent = TokenMixer if config.mixer == "token" else GDNMixer
        self.attn = (WindowMixer if config.is_softmax(index) else recurrent)(config)
        self.cross_attn = CrossAttention(dim, config.num_heads)
        self.mlp = ConvFFN(dim, config.mlp_ratio)

    def forward(
        self,
        x: Tensor,
        modulation: Tensor,
        context: Context,
        index: int,
        state: BlockState | None,
        save: bool,
        last: Context | None = None,
    ) -> tuple[Tensor | None, BlockState | None]:
        """x: (B, N, C); modulation: (B, T, 6, C). Returns x after the block and, if `save`, the block's next state.

        last: `context.last_frame()` where the state is all that is wanted: the output is None then, and after the mixer
        only the tokens of the last frame go on, up to the FFN's tail.
        """
        shift_a, scale_a, gate_a, shift_f, scale_f, gate_f = (self.scale_shift_table + modulation).unbind(2)
        given = modulate(x, shift_a, scale_a), context, state and state.mixer, save
        if last is None:
            mixed, mixer_state = self.attn(*given)
        else:
            mixed, mixer_state = self.attn(*given, last) if isinstance(self.attn, WindowMixer) else self.attn(*given)
            context, x, mixed = last, x[:, -last.grid.tokens :], mixed[:, -last.grid.tokens :]
            gate_a, shift_f, scale_f = gate_a[:, -1:], shift_f[:, -1:], scale_f[:, -1:]
        x = x + gate(mixed, gate_a)
        if context.added is not None:
            x = x + context.added[index]
        if context.text is not None:
            x = x + self.cross_attn(x, context.text[index], context.text_bias, context.kernels)
        given = modulate(x, shift_f, scale_f), context.grid
        if last is not None:
            return None, BlockState(mixer_state, self.mlp.spatial(*given, context.kernels)[:, -1])
        out, ffn_tail = self.mlp(*given, state and state.ffn_tail, context.kernels)
        x = x + gate(out, gate_f)
        return x, BlockState(mixer_state, ffn_tail) if save else None


class SanaWM(nn.Module):
    """The network at any size. `backend` forces one form of the operators (`sanawm_env.kernels.dispatch`).

    Raises ValueError from `prepare` and `forward` where shapes contradict the configuration or each other.
    """

    def __init__(self, config: SanaWMConfig, backend: str | None = None):
        super().__init__()
        self.config = config
        self.backend = backend
        dim = config.hidden_size
        self.x_embedder = VoxelEmbed(config.latent_channels, dim)
        self.plucker_embedder = VoxelEmbed(config.plucker_channels, dim)
        self.raymap_embedder = VoxelEmbed(3, dim)  # in the official checkpoint, never used
        self.t_embedder = TimestepEmbedder(dim)
        self.t_block = nn.Sequential(nn.SiLU(), nn.Linear(dim, 6 * dim))
        self.y_embedder = CaptionEmbedder(config.caption_channels, dim, config.text_len)
        self.attention_y_norm = RMSNorm(dim, eps=1e-5)
        self.register_buffer("pos_embed", torch.zeros(1, config.input_size**2, dim))  # unused likewise
        self.blocks = nn.ModuleList(Block(config, i) for i in range(config.depth))
        self.final_layer = FinalLayer(dim, config.latent_channels)

    def load_weights(self, weights: dict[str, Tensor], assign: bool = False) -> None:
        """Load a state dict strictly, but for the unused position buffer, which checkpoints may leave out.

        assign: take the tensors themselves in place of the module's, which may be on the meta device.
        Raises RuntimeError (torch's own) that lists missing, unexpected and misshapen entries.
        """
        unused = torch.zeros(self.pos_embed.shape, dtype=self.x_embedder.proj.weight.dtype, device="cpu")
        self.load_state_dict({"pos_embed": unused, **weights}, assign=assign)

    def prepare(
        self,
        grid: Grid,
        frame_index: Tensor,
        *,
        text: Tensor,
        text_mask: Tensor | None = None,
        camera: Tensor | None = None,
        plucker: Tensor | None = None,
    ) -> Context:
        """Everything about a chunk that does not depend on its latents.

        Args:
            grid: latent frames, rows and columns of the chunk.
            frame_index: (B,) absolute index of the chunk's first latent frame.
            text: (B, L, caption_channels) text features. text_mask: (B, L), 1 = valid, or None.
            camera: (B, T, 20) rows of 16 c2w entries relative to pixel frame 0 and fx, fy, cx, cy in latent-grid
                units, or None to run without the camera branch.
            plucker: (B, plucker_channels, T, H, W), or None.
        """
        batch, weight = frame_index.shape[0], self.x_embedder.proj.weight
        _expect("text", text, (batch, None, self.config.caption_channels))
        frames = frame_index[:, None] + torch.arange(grid.frames, device=frame_index.device)
        main, cam = rope_angles(self.config.head_dim, frames, grid.height, grid.width)
        kernels = choose(weight.device, weight.dtype, self.backend)
        rays = added = bias = None
        if camera is not None:
            _expect("camera", camera, (batch, grid.frames, 20))
            p = ray_from_world(camera, grid.height, grid.width).flatten(1, 3)
            rays = RayTransform(p, rigid_inverse(p), _table(cam, weight.dtype))
        if plucker is not None:
            _expect("plucker", plucker, (batch, self.config.plucker_channels, *grid.shape))
            embedded = self.plucker_embedder(plucker.to(weight.dtype))
            added = tuple(project(block.plucker_proj, embedded, kernels) for block in self.blocks)
        if text_mask is not None:
            _expect("text_mask", text_mask, text.shape[:2])
            bias = ((1 - text_mask.to(weight.dtype)) * -10000.0)[:, None, None]
        tokens = self.attention_y_norm(self.y_embedder(text.to(weight.dtype)))
        if kernels.skips_unread and tokens.shape[1] == 1:
            keys_values, read = None, [block.cross_attn.of_one_token(tokens) for block in self.blocks]
            added = tuple(read if added is None else (a + b for a, b in zip(added, read, strict=True)))
        else:
            keys_values = tuple(block.cross_attn.keys_values(tokens) for block in self.blocks)
        return Context(kernels, grid, _table(main, weight.dtype), rays, added, keys_values, bias)

    def forward(
        self,
        latents: Tensor,
        timesteps: Tensor,
        context: Context,
        state: NetworkState | None = None,
        save: bool = False,
        predict: bool = True,
    ) -> tuple[Tensor | None, NetworkState | None]:
        """One pass over one chunk.

        Args:
            latents: (B, c, T, H, W).
            timesteps: (B, T) in 0..1000, one per latent frame, or (B,) for all of them; truncated to integers.
            context: of this chunk, from `prepare`.
            state: left by the chunk before, None for the first. Read only.
            save: return the state for the next chunk too.
            predict: whether the prediction is read. Where it is not, the operators that skip what nobody reads leave
                it out, and all of the last block that no state holds.

        Returns: the prediction (B, c, T, H, W) (see `SanaWMConfig.prediction_type`), None where it is left out, and
        the next state or None.
        """
        grid = context.grid
        batch = context.phase.shape[0]
        _expect("latents", latents, (batch, self.config.latent_channels, *grid.shape))
        timesteps = timesteps.reshape(batch, -1).long().expand(batch, grid.frames)
        embedding = self.t_embedder(timesteps)
        modulation = self.t_block(embedding).unflatten(-1, (6, -1))
        x = self.x_embedder(latents)
        predict = predict or not context.kernels.skips_unread
        states = []
        for i, block in enumerate(self.blocks):
            last = None if predict or i + 1 < len(self.blocks) else context.last_frame()
            x, block_state = block(x, modulation, context, i, state and state.blocks[i], save, last)
            states.append(block_state)
        out = self.final_layer(x, embedding).mT.unflatten(-1, grid.shape) if predict else None
        return out, NetworkState(tuple(states)) if save else None


def _table(angles: Tensor, dtype: torch.dtype) -> Tensor:
    """(B, N, pairs) angles in float64 to phases broadcast over heads, complex64 or wider."""
    return phases(angles).to(torch.complex128 if dtype == torch.float64 else torch.complex64)[:, None]


def _expect(name: str, tensor: Tensor, shape: tuple[int | None, ...]) -> None:
    fits = tensor.ndim == len(shape) and all(s in (None, n) for s, n in zip(shape, tensor.shape, strict=True))
    if not fits:
        wanted = tuple("any" if s is None else s for s in shape)
        raise ValueError(f"{name} must have shape {wanted}, got {tuple(tensor.shape)}.")
