"""SanaWM: the video transformer that predicts one chunk of latents under a camera path (dit.md 1, 2, 10).

    context = model.prepare(grid, frame_index, text=..., text_mask=..., camera=..., plucker=...)  # once per chunk
    velocity, _ = model(latents, timesteps, context, state)  # denoising passes
    _, state = model(clean_latents, zeros, context, state, save=True)  # the clean pass

`prepare` makes everything that does not depend on the latents. The forward pass never writes to its arguments, and
returns a state only where one is asked for. Parameter names and shapes are those of the official checkpoint at every
size. `shortcuts.py` has what fast passes leave out, and the clean pass for its state alone.

Sizes in comments: B batch, T latent frames, N = T * H * W tokens, C width, c latent channels, L text tokens.
"""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from sanawm_env.camera.rays import ray_from_world, rigid_inverse
from sanawm_env.engines.sanawm.network import shortcuts
from sanawm_env.engines.sanawm.network.ablation import TokenMixer
from sanawm_env.engines.sanawm.network.config import SanaWMConfig
from sanawm_env.engines.sanawm.network.context import BlockConditions, Context
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


class Block(nn.Module):
    """Self-attention, ray conditions, cross-attention, FFN (dit.md 3)."""

    def __init__(self, config: SanaWMConfig, index: int):
        super().__init__()
        dim = config.hidden_size
        self.scale_shift_table = nn.Parameter(torch.zeros(6, dim))
        self.plucker_proj = nn.Linear(dim, dim)
        recurrent = TokenMixer if config.mixer == "token" else GDNMixer
        self.attn = (WindowMixer if config.is_softmax(index) else recurrent)(config)
        self.cross_attn = CrossAttention(dim, config.num_heads)
        self.mlp = ConvFFN(dim, config.mlp_ratio)

    def conditions(self, plucker: Tensor | None, text: Tensor, kernels: Kernels) -> BlockConditions:
        """Conditions of the block, from embedded ray conditions (B, N, C) or None, and text (B, L, C)."""
        added = None if plucker is None else project(self.plucker_proj, plucker, kernels)
        return BlockConditions(added, self.cross_attn.keys_values(text))

    def modulations(self, modulation: Tensor) -> tuple[Tensor, ...]:
        """Shift, scale and gate of the self-attention, then of the FFN, each (B, T, C), from (B, T, 6, C)."""
        return (self.scale_shift_table + modulation).unbind(2)

    def forward(
        self,
        x: Tensor,
        modulation: Tensor,
        conditions: BlockConditions,
        context: Context,
        state: BlockState | None,
        save: bool,
    ) -> tuple[Tensor, BlockState | None]:
        """Run the block.

        Args:
            x: (B, N, C).
            modulation: (B, T, 6, C).
            conditions: of the block.
            context: of this chunk.
            state: of the chunk before, or None.
            save: whether to return the next state.

        Returns:
            x after the block, and its next state or None.
        """
        shift_a, scale_a, gate_a, shift_f, scale_f, gate_f = self.modulations(modulation)
        mixed, mixer_state = self.attn(modulate(x, shift_a, scale_a), context, state and state.mixer, save)
        x = x + gate(mixed, gate_a)
        if conditions.added is not None:
            x = x + conditions.added
        if conditions.text is not None:
            x = x + self.cross_attn(x, conditions.text, context.text_bias, context.kernels)
        fed, ffn_tail = self.mlp(modulate(x, shift_f, scale_f), context.grid, state and state.ffn_tail, context.kernels)
        x = x + gate(fed, gate_f)
        return x, BlockState(mixer_state, ffn_tail) if save else None


class SanaWM(nn.Module):
    """The network at any size. `prepare` and `forward` raise ValueError where shapes contradict the configuration or
    each other.

    Args:
        config: sizes.
        backend: form of the operators (`sanawm_env.kernels.dispatch`); None for what suits the device.
    """

    pos_embed: Tensor

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
        self.blocks = cast(Sequence[Block], nn.ModuleList(Block(config, i) for i in range(config.depth)))
        self.final_layer = FinalLayer(dim, config.latent_channels)

    def load_weights(self, weights: dict[str, Tensor], assign: bool = False) -> None:
        """Load a state dict strictly, except for the unused position buffer, which checkpoints may leave out.

        Args:
            weights: the state dict.
            assign: use the tensors themselves in place of the module's, which may be on the meta device.

        Raises:
            RuntimeError: torch's own, which lists missing, unexpected and misshapen entries.
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
            text: (B, L, caption_channels) text features.
            text_mask: (B, L), 1 = valid, or None.
            camera: (B, T, 20) rows of 16 c2w entries relative to pixel frame 0 and fx, fy, cx, cy in latent-grid units,
                or None to run without the camera branch.
            plucker: (B, plucker_channels, T, H, W), or None.

        Raises:
            ValueError: for other shapes.
        """
        batch, weight = frame_index.shape[0], self.x_embedder.proj.weight
        kernels = choose(weight.device, weight.dtype, self.backend)
        _expect("text", text, (batch, None, self.config.caption_channels))
        frames = frame_index[:, None] + torch.arange(grid.frames, device=frame_index.device)  # (B, T)
        main_angles, camera_angles = rope_angles(self.config.head_dim, frames, grid.height, grid.width)
        rays = text_bias = embedded = None
        if camera is not None:
            _expect("camera", camera, (batch, grid.frames, 20))
            p = ray_from_world(camera, grid.height, grid.width).flatten(1, 3)  # (B, N, 4, 4)
            rays = RayTransform(p, rigid_inverse(p), _phases(camera_angles, weight.dtype))
        if plucker is not None:
            _expect("plucker", plucker, (batch, self.config.plucker_channels, *grid.shape))
            embedded = self.plucker_embedder(plucker.to(weight.dtype))  # (B, N, C)
        if text_mask is not None:
            _expect("text_mask", text_mask, text.shape[:2])
            text_bias = ((1 - text_mask.to(weight.dtype)) * -10000.0)[:, None, None]  # (B, 1, 1, L)
        tokens = self.attention_y_norm(self.y_embedder(text.to(weight.dtype)))  # (B, L, C)
        conditions = tuple(block.conditions(embedded, tokens, kernels) for block in self.blocks)
        conditions = shortcuts.fold_single_token(self.blocks, conditions, tokens, kernels)
        return Context(kernels, grid, _phases(main_angles, weight.dtype), rays, text_bias, conditions)

    def forward(
        self,
        latents: Tensor,
        timesteps: Tensor,
        context: Context,
        state: NetworkState | None = None,
        save: bool = False,
    ) -> tuple[Tensor, NetworkState | None]:
        """One pass over one chunk.

        Args:
            latents: (B, c, T, H, W).
            timesteps: (B, T) in 0..1000, one per latent frame, or (B,) for all of them; truncated to integers.
            context: of this chunk, from `prepare`.
            state: of the chunk before, None for the first. It is only read.
            save: whether to return the state for the next chunk.

        Returns:
            The prediction (B, c, T, H, W) (see `SanaWMConfig.prediction_type`), and the next state or None.

        Raises:
            ValueError: for other shapes.
        """
        x, embedding, modulation = self.embed(latents, timesteps, context)
        states = []
        for block, conditions, before in zip(self.blocks, context.conditions, self.block_states(state), strict=True):
            x, after = block(x, modulation, conditions, context, before, save)  # (B, N, C)
            states.append(after)
        prediction = self.final_layer(x, embedding).mT.unflatten(-1, context.grid.shape)  # (B, c, T, H, W)
        return prediction, NetworkState(tuple(states)) if save else None

    def embed(self, latents: Tensor, timesteps: Tensor, context: Context) -> tuple[Tensor, Tensor, Tensor]:
        """The inputs of the blocks, from arguments as in `forward`: tokens (B, N, C), the embedding of the noise
        levels (B, T, C), and the modulation that blocks share (B, T, 6, C)."""
        grid, batch = context.grid, context.phase.shape[0]
        _expect("latents", latents, (batch, self.config.latent_channels, *grid.shape))
        embedding = self.t_embedder(timesteps.reshape(batch, -1).long().expand(batch, grid.frames))
        return self.x_embedder(latents), embedding, self.t_block(embedding).unflatten(-1, (6, -1))

    def block_states(self, state: NetworkState | None) -> tuple[BlockState | None, ...]:
        """The state of every block; None before the first chunk."""
        return (None,) * len(self.blocks) if state is None else state.blocks


def _phases(angles: Tensor, dtype: torch.dtype) -> Tensor:
    """(B, N, pairs) angles in float64 to phases (B, 1, N, pairs), complex64, or wider for weights in float64."""
    return phases(angles).to(torch.complex128 if dtype == torch.float64 else torch.complex64)[:, None]


def _expect(name: str, tensor: Tensor, shape: tuple[int | None, ...]) -> None:
    fits = tensor.ndim == len(shape) and all(s in (None, n) for s, n in zip(shape, tensor.shape, strict=True))
    if not fits:
        wanted = tuple("any" if s is None else s for s in shape)
        raise ValueError(f"{name} must have shape {wanted}, got {tuple(tensor.shape)}.")
