"""Self-attention of the two kinds of block, each with a main branch and a camera branch (dit.md 5, 6, 7).

The branches are added, gated once and projected. A GDN block remembers through a matrix per head that the frame-wise
gated delta rule updates (`sanawm_env.kernels`). A softmax block attends to the keys and values of a window of chunks.
The camera branch moves queries, keys and values into world coordinates with the 4x4 matrix of each token's viewing ray,
so that only relative ray poses matter.
"""

from dataclasses import replace
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sanawm_env.engines.sanawm.network.config import SanaWMConfig
from sanawm_env.engines.sanawm.network.context import Context
from sanawm_env.engines.sanawm.network.layers import KeyConv, RMSNorm, project
from sanawm_env.engines.sanawm.network.state import WindowState, push_page
from sanawm_env.kernels.dispatch import Kernels
from sanawm_env.kernels.inputs import Branch, GDNInputs, GDNState, Grid, Page
from sanawm_env.kernels.reference import merge_heads, query_world, rotate, split_heads, to_ray, to_world


class Mixer(nn.Module):
    """What both kinds of block share: projections, norms, gate. Softmax blocks have the gate parameters of the GDN
    blocks too, unused, because the official state dict has them."""

    def __init__(self, config: SanaWMConfig):
        super().__init__()
        dim = config.hidden_size
        self.heads = dim // config.head_dim
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.proj = nn.Linear(dim, dim)
        self.q_norm = RMSNorm(dim, eps=1e-5)
        self.k_norm = RMSNorm(dim, eps=1e-5)
        self.beta_proj = nn.Linear(dim, self.heads)
        self.gate_proj = nn.Linear(dim, self.heads)
        self.A_log = nn.Parameter(torch.zeros(self.heads))
        self.dt_bias = nn.Parameter(torch.zeros(self.heads))
        self.output_gate = nn.Linear(dim, dim)
        self.register_buffer("recall_gate", torch.zeros(1))
        self.q_proj_cam = nn.Linear(dim, dim)
        self.k_proj_cam = nn.Linear(dim, dim)
        self.v_proj_cam = nn.Linear(dim, dim)
        self.out_proj_cam = nn.Linear(dim, dim)
        self.q_norm_cam = RMSNorm(dim, eps=1e-5)
        self.k_norm_cam = RMSNorm(dim, eps=1e-5)

    def finish(self, x: Tensor, main: Tensor, camera: Tensor | None, kernels: Kernels) -> Tensor:
        """Add the read-outs of the branches, gate, and project.

        Args:
            x: (B, N, C), the input.
            main: (B, N, C).
            camera: (B, N, C), or None.
            kernels: the operators.

        Returns:
            (B, N, C).
        """
        o = main.to(x.dtype)
        if camera is not None:
            o = o + project(self.out_proj_cam, camera.to(x.dtype), kernels)
        gate = F.silu(project(self.output_gate, x, kernels).float())
        return project(self.proj, (o.float() * gate).to(x.dtype), kernels)


class GDNMixer(Mixer):
    """Gated delta rule over frames (dit.md 5, 7.3)."""

    def __init__(self, config: SanaWMConfig):
        super().__init__(config)
        self.conv_k = KeyConv(config.hidden_size, config.conv_kernel_size)
        self.conv_k_cam = KeyConv(config.hidden_size, config.conv_kernel_size)

    def gates(self, x: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
        """Write gate per token (B, h, T, S) and decay per frame (B, h, T), float32."""
        frames = x.unflatten(1, (grid.frames, grid.tokens))
        beta = torch.sigmoid(self.beta_proj(frames)).permute(0, 3, 1, 2).float()
        rate = F.softplus((self.gate_proj(frames.mean(2)) + self.dt_bias).float())
        return beta, torch.exp(-self.A_log.float().exp() * rate).transpose(1, 2)

    def forward(
        self, x: Tensor, context: Context, state: GDNState | None, save: bool
    ) -> tuple[Tensor, GDNState | None]:
        """Mix tokens.

        Args:
            x: (B, N, C), modulated tokens.
            context: of this chunk.
            state: of the chunk before, or None.
            save: whether to return the next state.

        Returns:
            The output (B, N, C), and the next state or None.
        """
        grid, rays, kernels = context.grid, context.rays, context.kernels
        beta, decay = self.gates(x, grid)
        qkv = project(self.qkv, x, kernels).chunk(3, dim=-1)
        main = Branch(*qkv, self.conv_k.weight, self.q_norm.weight, self.k_norm.weight)
        camera = None
        if rays is not None:
            qkv = (project(layer, x, kernels) for layer in (self.q_proj_cam, self.k_proj_cam, self.v_proj_cam))
            camera = Branch(*qkv, self.conv_k_cam.weight, self.q_norm_cam.weight, self.k_norm_cam.weight)
        inputs = GDNInputs(main, camera, beta, decay, context.phase, rays, grid)
        main_read, camera_read, state = kernels.gdn(inputs, state, save)  # (B, N, C) each
        return self.finish(x, main_read, camera_read, kernels), state


class WindowMixer(Mixer):
    """Softmax attention over the current chunk and a window of past ones (dit.md 6, 7.3)."""

    def __init__(self, config: SanaWMConfig):
        super().__init__(config)
        self.window, self.sink = config.window, config.sink

    def forward(
        self, x: Tensor, context: Context, state: WindowState | None, save: bool
    ) -> tuple[Tensor, WindowState | None]:
        """Mix tokens. Arguments and results as `GDNMixer.forward`."""
        past = state.pages if state is not None else ()
        q, page = self.page(x, context)
        out = self.read(x, q, past, page, context)
        return out, self.keep(past, page) if save else None

    def page(self, x: Tensor, context: Context) -> tuple[Tensor, Page]:
        """The main branch's projected queries (B, N, C), which share a projection with its keys and values, and the
        page of both branches, of tokens x (B, N, C)."""
        rays, kernels = context.rays, context.kernels
        q, k, v = project(self.qkv, x, kernels).chunk(3, dim=-1)
        k, v = rotate(split_heads(self.k_norm(k), self.heads), context.phase), split_heads(v, self.heads)
        if rays is None:
            return q, Page(k, v)
        camera_k = split_heads(self.k_norm_cam(project(self.k_proj_cam, x, kernels)), self.heads)
        camera_v = split_heads(project(self.v_proj_cam, x, kernels), self.heads)
        return q, Page(k, v, to_world(camera_k, rays), to_world(camera_v, rays))

    def read(self, x: Tensor, q: Tensor, past: tuple[Page, ...], page: Page, context: Context) -> Tensor:
        """The output of tokens that attend to past pages and the current one.

        Args:
            x: (B, n, C). n is N, or less with the part of the context that belongs to these tokens.
            q: (B, n, C), projected queries.
            past: pages of past chunks.
            page: of this chunk.
            context: of these tokens.

        Returns:
            (B, n, C).
        """
        grid, rays, kernels, pages = context.grid, context.rays, context.kernels, (*past, page)
        q = rotate(split_heads(self.q_norm(q), self.heads), context.phase)
        main = merge_heads(kernels.attend(q, [(p.k, p.v) for p in pages], grid))
        if rays is None:
            return self.finish(x, main, None, kernels)
        q = query_world(split_heads(self.q_norm_cam(project(self.q_proj_cam, x, kernels)), self.heads), rays)
        camera_pages = [(cast(Tensor, p.camera_k), cast(Tensor, p.camera_v)) for p in pages]
        camera = to_ray(kernels.attend(q, camera_pages, grid), rays)
        return self.finish(x, main, merge_heads(camera), kernels)

    def keep(self, past: tuple[Page, ...], page: Page) -> WindowState:
        """The state after a chunk: the pages that the next one sees."""
        # v is a view of the fused projection: a page must not keep q and k of the chunk alive
        return WindowState(push_page(past, replace(page, v=page.v.contiguous()), self.window, self.sink))
