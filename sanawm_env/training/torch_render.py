"""The renderer of `engines.rooms.raycast` in torch, for clips that a GPU makes: many frames of one place at once.

Rays, boxes and look-ups are the same, in the same precision. The last bits differ, and with them now and then a texel
at a border. Cameras must be inside the room, as those of walks are.
"""

import numpy as np
import torch
from torch import Tensor

from sanawm_env.engines.rooms.raycast import TEXEL, Place, turn

CORNERS = np.array([[i >> 2 & 1, i >> 1 & 1, i & 1] for i in range(8)]) * 2.0 - 1
RAYS = 2**24  # that are followed together, so that memory is bounded


def render(
    place: Place,
    c2w: np.ndarray,
    intrinsics: np.ndarray,
    height: int,
    width: int,
    supersample: int,
    device: torch.device,
) -> Tensor:
    """Render frames.

    Args:
        place: to render.
        c2w: (F, 4, 4), in the place's frame.
        intrinsics: (4,), pixels.
        height, width: of frames.
        supersample: rays along each side of a pixel.
        device: that renders.

    Returns:
        (F, height, width, 3) uint8 on the device.
    """
    rows, columns = height * supersample, width * supersample
    packed = torch.from_numpy(place.atlas.view(np.int32).copy()).to(device)
    shown, together = [], max(1, RAYS // (rows * columns))
    for first in range(0, len(c2w), together):
        texel = trace(place, c2w[first : first + together], intrinsics * supersample, rows, columns, device)[1]
        colours = packed[texel]
        parts = torch.stack([colours >> shift & 0xFF for shift in (0, 8, 16)], dim=-1)
        blocks = parts.unflatten(1, (height, supersample)).unflatten(3, (width, supersample))
        count = supersample * supersample
        shown.append(((blocks.sum((2, 4)) + count // 2) // count).to(torch.uint8))
    return torch.cat(shown)


def depth(
    place: Place, c2w: np.ndarray, intrinsics: np.ndarray, height: int, width: int, device: torch.device
) -> Tensor:  # fmt: skip
    """Depth through the centres of pixels: (F, height, width) float32, metres along z. Arguments as `render`."""
    return trace(place, c2w, intrinsics, height, width, device)[0]


def trace(
    place: Place, c2w: np.ndarray, intrinsics: np.ndarray, height: int, width: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """z-depth (F, height, width) float32 and atlas index, int32, where the rays of cameras end. Arguments as
    `render`."""

    def put(array: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array, np.float32)).to(device)

    turns = turn(place.yaw)  # (N, 3, 3)
    origins = np.einsum("fni,nij->nfj", c2w[:, None, :3, 3] - place.centre, turns)
    towards = np.einsum("nji,fjk->nfik", turns, c2w[:, :3, :3])
    x = put((np.arange(width) + 0.5 - intrinsics[2]) / intrinsics[0])
    y = put((np.arange(height) + 0.5 - intrinsics[3]) / intrinsics[1])[:, None]
    stride, start = (
        torch.from_numpy(part.astype(np.int64)).to(device) for part in (place.face_stride, place.face_start)
    )
    reach_of = torch.zeros(len(c2w), height, width, device=device)
    texel = torch.zeros(len(c2w), height, width, dtype=torch.int64, device=device)
    for box in range(len(place.half)):
        seen = np.arange(len(c2w))
        if box:
            seen = _in_sight(place.half[box], origins[box], towards[box], intrinsics, height, width)
        if not len(seen):
            continue
        toward, origin = put(towards[box][seen]), put(origins[box][seen])[:, :, None, None]
        rays = [toward[:, i, :1, None] * x + toward[:, i, 1:2, None] * y + toward[:, i, 2:, None] for i in range(3)]
        rays = [torch.where(ray == 0, 1e-9, ray) for ray in rays]
        half, side = place.half[box].tolist(), []
        for i, ray in enumerate(rays):
            inverse = 1 / ray
            middle, extent = -origin[:, i] * inverse, inverse.abs() * half[i]
            side.append((middle - extent, middle + extent))
        leave = torch.minimum(torch.minimum(side[0][1], side[1][1]), side[2][1])
        met = [pair[1 if box == 0 else 0] for pair in side]
        # the room is left where a ray ends; furniture is met where it enters, and only before what is there already
        reach = leave if box == 0 else torch.maximum(torch.maximum(met[0], met[1]), met[2])
        shift = put((origins[box][seen] + place.half[box]) / TEXEL + 1)[:, :, None, None]
        at = [ray * (reach * (1 / TEXEL)) + shift[:, i] for i, ray in enumerate(rays)]
        is_x, is_y = reach == met[0], reach == met[1]
        u, v = torch.where(is_x, at[2], at[0]).long(), torch.where(is_y, at[2], at[1]).long()
        outward = torch.where(is_x, rays[0], torch.where(is_y, rays[1], rays[2])) > 0
        face = torch.where(is_x, 0, torch.where(is_y, 2, 4)) + (outward if box == 0 else ~outward).long()
        index = stride[box][face] * v + u + start[box][face]
        if box == 0:
            reach_of, texel = reach, index
            continue
        frames = torch.from_numpy(seen).to(device)
        hit = (reach < leave) & (reach > 0) & (reach < reach_of[frames])
        reach_of[frames] = torch.where(hit, reach, reach_of[frames])
        texel[frames] = torch.where(hit, index, texel[frames])
    return reach_of, texel


def _in_sight(
    half: np.ndarray, origins: np.ndarray, towards: np.ndarray, intrinsics: np.ndarray, height: int, width: int
) -> np.ndarray:
    """The cameras, at origins (F, 3) with axes towards (F, 3, 3) in a box's own frame, that may see the box: not all
    of its corners are behind them, or beyond the same side of the image."""
    corners = (CORNERS * half - origins[:, None]) @ towards  # (F, 8, 3), camera axes
    x, y, z = intrinsics[0] * corners[..., 0], intrinsics[1] * corners[..., 1], corners[..., 2]
    beyond = (
        z < 0.05,
        x < -intrinsics[2] * z,
        y < -intrinsics[3] * z,
        x > (width - intrinsics[2]) * z,
        y > (height - intrinsics[3]) * z,
    )
    return np.flatnonzero(~np.any([part.all(1) for part in beyond], axis=0))
