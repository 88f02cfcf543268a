"""Poses and intrinsics to the tensors the network reads: the ray map, the Plücker groups and the UCPE matrices.

Formulas: SANA-WM (arXiv 2605.15178), as written down in the camera reference, sections 4.3 and 5, and the DiT
reference, section 7.1. Axes are OpenCV (x right, y down, z forward), poses are camera-to-world in metres.

Everything is a sum of elementwise products, never a matrix product. So the value of a frame does not depend on how many
frames are computed with it, nor on the batch, and conditions built chunk by chunk equal those of the whole trajectory
bit for bit.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch import Tensor

Array = Tensor | np.ndarray

_EPS = 1e-6


@dataclass(frozen=True)
class ChunkConditions:
    """What the network knows about the camera of `T` latents; float32, any leading batch axes.

    Attributes:
        raymap: (..., T, 20): row-major 4x4 pose relative to frame 0 (16), then fx, fy, cx, cy in latent-grid units,
            both at the last frame of the latent's group.
        plucker: (..., 8 * 6 = 48, T, h, w): for each frame of the latent's group the ray's unit direction (3) and
            moment (3).
    """

    raymap: Tensor
    plucker: Tensor


def rigid_inverse(pose: Tensor) -> Tensor:
    """Inverse `[R^T | -R^T t]` of rigid transforms (..., 4, 4), in the same dtype. It is wrong for other matrices."""
    inverse = torch.zeros_like(pose)
    inverse[..., :3, :3] = pose[..., :3, :3].mT
    inverse[..., :3, 3] = -_apply(pose[..., :3, :3].mT, pose[..., :3, 3])
    inverse[..., 3, 3] = 1
    return inverse


def relative_poses(c2w: Array, origin: Array) -> Tensor:
    """Poses seen from another camera, `origin^-1 c2w`.

    Args:
        c2w: (..., F, 4, 4).
        origin: (..., 4, 4).

    Returns:
        (..., F, 4, 4) float32.
    """
    from_world, c2w = rigid_inverse(_float32(origin))[..., None, :, :], _float32(c2w)
    return _sum(from_world[..., :, i, None] * c2w[..., i, None, :] for i in range(4))


def raymap_rows(c2w: Array, intrinsics: Array, origin: Array | None = None, *, stride: int = 8) -> Tensor:
    """Ray map of a whole trajectory. Row k holds the pose and intrinsics of frame `stride * k`.

    Args:
        c2w: (..., F, 4, 4).
        intrinsics: (..., F, 4) or (4,), in latent-grid units.
        origin: (..., 4, 4), pose of frame 0; None for the first pose.
        stride: frames of a latent.

    Returns:
        (..., T, 20) float32, T = (F - 1) // stride + 1.

    Raises:
        ValueError: for other shapes.
    """
    relative, intrinsics = _whole_trajectory(c2w, intrinsics, origin)
    return _rows(relative[..., ::stride, :, :], intrinsics[..., ::stride, :])


def plucker_groups(
    c2w: Array, intrinsics: Array, origin: Array | None = None, *, height: int, width: int, stride: int = 8
) -> Tensor:
    """Plücker groups of a whole trajectory.

    Latent 0 takes the frames 0..stride-1, latent k the frames stride*(k-1)+1..stride*k; past the end the last frame is
    repeated. Channel 6 s + c is component c of (direction, moment) at the group's frame s.

    Args:
        c2w, intrinsics, origin, stride: as `raymap_rows`.
        height, width: of the latent grid.

    Returns:
        (..., 6 * stride, T, height, width) float32.

    Raises:
        ValueError: for other shapes.
    """
    relative, intrinsics = _whole_trajectory(c2w, intrinsics, origin)
    frames = relative.shape[-3]
    latents = (frames - 1) // stride + 1
    later = 1 + torch.arange(stride * (latents - 1)).reshape(latents - 1, stride)
    groups = torch.cat([torch.arange(stride)[None], later]).clamp(max=frames - 1)
    return _grouped(plucker_rays(relative, intrinsics, height, width), groups)


def chunk_conditions(
    origin: Array,
    poses: Array,
    intrinsics: Array,
    height: int,
    width: int,
    *,
    first: bool,
    stride: int = 8,
) -> ChunkConditions:
    """Conditions of one chunk: bit for bit the slice of the whole trajectory's `raymap_rows` and `plucker_groups`.

    Args:
        origin: (..., 4, 4), pose of the episode's frame 0, in the same world as `poses`.
        poses: (..., n, 4, 4), the chunk's new poses, n a positive multiple of `stride` (24 in the released model).
        intrinsics: (4,) for a constant camera, else (..., n, 4), or (..., n + 1, 4) with frame 0 in front when `first`;
            in latent-grid units.
        height, width: of the latent grid.
        first: the episode's first chunk also covers frame 0, so it has n / stride + 1 latents; later ones have n /
            stride.
        stride: frames of a latent.

    Raises:
        ValueError: for other shapes.
    """
    origin, poses = _float32(origin), _float32(poses)
    if poses.ndim < 3 or poses.shape[-2:] != (4, 4) or poses.shape[-3] == 0 or poses.shape[-3] % stride:
        raise ValueError(
            f"a chunk needs poses (n, 4, 4) with n a positive multiple of {stride}, got {tuple(poses.shape)}"
        )
    if first:
        poses = torch.cat([origin.expand(*poses.shape[:-3], 4, 4)[..., None, :, :], poses], dim=-3)
        return ChunkConditions(
            raymap_rows(poses, intrinsics, origin, stride=stride),
            plucker_groups(poses, intrinsics, origin, height=height, width=width, stride=stride),
        )
    relative = relative_poses(poses, origin)
    intrinsics = _per_frame(intrinsics, relative)
    groups = torch.arange(poses.shape[-3]).reshape(-1, stride)
    last = slice(stride - 1, None, stride)
    return ChunkConditions(
        _rows(relative[..., last, :, :], intrinsics[..., last, :]),
        _grouped(plucker_rays(relative, intrinsics, height, width), groups),
    )


def plucker_rays(c2w: Tensor, intrinsics: Tensor, height: int, width: int) -> Tensor:
    """Plücker coordinates of every pixel's ray: unit direction d, then moment `t x d`. Rays are cast at integer
    coordinates.

    Args:
        c2w: (..., 4, 4).
        intrinsics: (..., 4) in units of this grid, in the same dtype.
        height, width: of the grid.

    Returns:
        (..., height, width, 6).
    """
    direction = _normalize(_apply(c2w[..., None, None, :3, :3], _camera_rays(intrinsics, height, width)))
    centre = c2w[..., None, None, :3, 3].expand_as(direction)
    return torch.cat([direction, torch.linalg.cross(centre, direction)], dim=-1)


def ray_from_world(camera_conditions: Tensor, height: int, width: int) -> Tensor:
    """UCPE matrices: world to the frame of each token's ray. That frame has z along the ray, x along (camera y) x z,
    and its origin in the camera. `rigid_inverse` gives world <- ray.

    Args:
        camera_conditions: (..., T, 20) as `ChunkConditions.raymap`.
        height, width: of the latent grid.

    Returns:
        (..., T, height, width, 4, 4) in the same dtype.
    """
    c2w = camera_conditions[..., :16].unflatten(-1, (4, 4))[..., None, None, :, :]
    rotation, centre = c2w[..., :3, :3], c2w[..., :3, 3]
    z = _normalize(_apply(rotation, _camera_rays(camera_conditions[..., 16:], height, width)))
    x = _normalize(torch.linalg.cross(rotation[..., :, 1].expand_as(z), z))
    y = _normalize(torch.linalg.cross(z, x))
    axes = torch.stack([x, y, z], dim=-2)
    matrix = axes.new_zeros(*axes.shape[:-2], 4, 4)
    matrix[..., :3, :3] = axes
    matrix[..., :3, 3] = -_apply(axes, centre.expand_as(z))
    matrix[..., 3, 3] = 1
    return matrix


def _camera_rays(intrinsics: Tensor, height: int, width: int) -> Tensor:
    """Unit ray directions in camera coordinates (..., height, width, 3)."""
    fx, fy, cx, cy = intrinsics[..., None, None, :].unbind(-1)
    y = torch.arange(height, dtype=intrinsics.dtype, device=intrinsics.device)[:, None]
    x = torch.arange(width, dtype=intrinsics.dtype, device=intrinsics.device)
    x, y = torch.broadcast_tensors((x - cx) / fx, (y - cy) / fy)
    return _normalize(torch.stack([x, y, torch.ones_like(x)], dim=-1))


def _apply(matrix: Tensor, vector: Tensor) -> Tensor:
    """Product of (..., 3, 3) and (..., 3) without a reduction whose order could depend on the batch."""
    return _sum(matrix[..., :, i] * vector[..., i : i + 1] for i in range(3))


def _sum(terms: Iterable[Tensor]) -> Tensor:
    """Their sum, in order; there is at least one."""
    return cast(Tensor, sum(terms))


def _normalize(vector: Tensor) -> Tensor:
    x, y, z = vector.unbind(-1)
    return vector / (x * x + y * y + z * z).sqrt().clamp(min=_EPS)[..., None]


def _rows(relative: Tensor, intrinsics: Tensor) -> Tensor:
    return torch.cat([relative.flatten(-2), intrinsics], dim=-1)


def _grouped(rays: Tensor, groups: Tensor) -> Tensor:
    """Rays (..., F, h, w, 6) and frame indices (T, s) to (..., s * 6, T, h, w)."""
    grouped = rays[..., groups.to(rays.device), :, :, :]  # (..., T, s, h, w, 6)
    return grouped.movedim((-4, -1), (-5, -4)).flatten(-5, -4).contiguous()


def _whole_trajectory(c2w: Array, intrinsics: Array, origin: Array | None) -> tuple[Tensor, Tensor]:
    """Relative poses with frame 0 the exact identity, and intrinsics per frame; both float32."""
    c2w = _float32(c2w)
    if c2w.ndim < 3 or c2w.shape[-2:] != (4, 4) or c2w.shape[-3] == 0:
        raise ValueError(f"a trajectory needs at least one pose, shape (F, 4, 4), got {tuple(c2w.shape)}")
    relative = relative_poses(c2w, c2w[..., 0, :, :] if origin is None else origin)
    # R^T R is the identity only up to rounding, and the network was trained with the exact one.
    relative[..., 0, :, :] = torch.eye(4, device=relative.device)
    return relative, _per_frame(intrinsics, relative)


def _per_frame(intrinsics: Array, poses: Tensor) -> Tensor:
    intrinsics, frames = _float32(intrinsics).to(poses.device), poses.shape[-3]
    if intrinsics.shape[-1:] != (4,) or (intrinsics.ndim > 1 and intrinsics.shape[-2] != frames):
        raise ValueError(f"intrinsics must be (4,) or ({frames}, 4) for {frames} frames, got {tuple(intrinsics.shape)}")
    return intrinsics.expand(*poses.shape[:-2], 4)


def _float32(array: Array) -> Tensor:
    return torch.as_tensor(array).to(torch.float32)
