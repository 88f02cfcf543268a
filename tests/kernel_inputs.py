"""Random arguments of the operators in `sanawm_env.kernels`, for tests that compare their forms."""

from dataclasses import replace

import torch
from sanawm_env.kernels.inputs import Branch, GDNInputs, GDNState, Grid, RayTransform
from torch import Tensor

from sanawm_env.camera.rays import ray_from_world, rigid_inverse
from sanawm_env.engines.sanawm.network.rope import phases, rope_angles

GRID = Grid(3, 3, 5)


def random_operands(
    b: int = 2,
    heads: int = 3,
    d: int = 24,
    grid: Grid = GRID,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
    camera: bool = True,
    state: bool = True,
    taps: int = 4,
) -> tuple[GDNInputs, GDNState | None]:
    """Inputs and state of `reference.gdn`, as a block hands them over.

    Projections, taps and norm weights are of `dtype`; gates, geometry and states float32 at least. As in the network,
    the main branch's q, k, v are views of one fused projection, and rays come from camera poses.
    """
    g = torch.Generator().manual_seed(seed)
    wide = torch.promote_types(dtype, torch.float32)
    c, n = heads * d, grid.frames * grid.tokens

    def normal(*shape: int, of: torch.dtype = dtype) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64).to(of)

    def branch(q: Tensor, k: Tensor, v: Tensor) -> Branch:
        return Branch(q, k, v, normal(c, 1, taps), 1 + normal(c) / 4, 1 + normal(c) / 4)

    first = grid.frames * torch.arange(b)
    main_phase, camera_phase = (t[:, None] for t in phase_tables(d, grid, first, wide))
    inputs = GDNInputs(
        main=branch(*normal(b, n, 3 * c).chunk(3, dim=-1)),
        camera=branch(*(normal(b, n, c) for _ in range(3))) if camera else None,
        beta=normal(b, heads, grid.frames, grid.tokens, of=wide).sigmoid(),
        decay=normal(b, heads, grid.frames, of=wide).sigmoid(),
        phase=main_phase,
        rays=ray_transform(b, grid, camera_phase, g) if camera else None,
        grid=grid,
    )
    if not state:
        return inputs, None
    return inputs, GDNState(
        normal(b, heads, d, d, of=wide),
        normal(b, heads, d, 1, of=wide).abs(),  # keys are rectified, so no normaliser is negative
        normal(b, taps - 1, grid.tokens, c),
        normal(b, heads, d, d, of=wide) if camera else None,
        normal(b, taps - 1, grid.tokens, c) if camera else None,
    )


def frames_of(inputs: GDNInputs, a: int, b: int) -> GDNInputs:
    """The frames a to b, as one chunk."""
    tokens = slice(a * inputs.grid.tokens, b * inputs.grid.tokens)

    def branch(x: Branch) -> Branch:
        return replace(x, q=x.q[:, tokens], k=x.k[:, tokens], v=x.v[:, tokens])

    rays = inputs.rays
    return GDNInputs(
        branch(inputs.main), branch(inputs.camera), inputs.beta[:, :, a:b], inputs.decay[:, :, a:b],
        inputs.phase[:, :, tokens],
        RayTransform(rays.p[:, tokens], rays.p_inv[:, tokens], rays.phase[:, :, tokens]),
        replace(inputs.grid, frames=b - a, chunk_starts=(0,)),
    )  # fmt: skip


def phase_tables(d: int, grid: Grid, first: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Rotary phases (B, N, D/2) and (B, N, D/4) of the main and the camera branch; first: (B,) frame indices."""
    angles = rope_angles(d, first[:, None] + torch.arange(grid.frames), grid.height, grid.width)
    kind = torch.complex128 if dtype == torch.float64 else torch.complex64
    return tuple(phases(a).to(kind) for a in angles)


def ray_transform(b: int, grid: Grid, phase: Tensor, generator: torch.Generator) -> RayTransform:
    """Of `camera_rows`, in the precision of `phase`."""
    p = ray_from_world(camera_rows(b, grid, generator), grid.height, grid.width).flatten(1, 3)
    return RayTransform(p.to(phase.real.dtype), rigid_inverse(p).to(phase.real.dtype), phase)


def camera_rows(b: int, grid: Grid, generator: torch.Generator) -> Tensor:
    """(B, T, 20) float64 ray map of cameras that look anywhere, a metre or so from the origin."""
    rotation, _ = torch.linalg.qr(torch.randn(b, grid.frames, 3, 3, generator=generator, dtype=torch.float64))
    c2w = torch.eye(4, dtype=torch.float64).repeat(b, grid.frames, 1, 1)
    c2w[..., :3, :3] = rotation * rotation.det()[..., None, None]  # no reflections
    c2w[..., :3, 3] = torch.randn(b, grid.frames, 3, generator=generator, dtype=torch.float64)
    lens = torch.tensor([grid.width, grid.width, grid.width / 2, grid.height / 2], dtype=torch.float64)
    return torch.cat((c2w.flatten(2), lens.expand(b, grid.frames, 4)), dim=-1)
