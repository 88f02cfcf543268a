"""Where in a known place a ray is: the channels that an anchored world appends to its Plücker conditions.

A world made of a few fixed places (nano.md section 4) knows furniture that was never in view only if it is told where
the camera stands in the place. Each latent's rays are described twice, at the first and at the last frame of its
group, by the camera centre, the ray's direction, its azimuth and elevation, and the points at a few depths along it,
lifted by sines and cosines (Fourier features, Tancik et al. 2020). Place axes are OpenCV axes in metres.
"""

import math

import torch
from torch import Tensor

from sanawm_env.camera.rays import plucker_rays

DEPTHS = (1.0, 2.0, 3.0, 4.5)
CENTRE_PERIODS = (8.0, 4.0, 2.0, 1.0)
POINT_PERIODS = (8.0, 4.0, 2.0)
ANGLE_MULTIPLES = (1, 2, 4, 8)
EXIT_PERIODS = (16.0, 8.0, 4.0, 2.0, 1.0, 0.5)
NEAREST_EXIT = 0.1  # metres
RAY_CHANNELS = (
    3 * (2 * len(CENTRE_PERIODS) + 1) + 4 * len(ANGLE_MULTIPLES) + 6 * len(DEPTHS) * len(POINT_PERIODS)
    + 6 * len(EXIT_PERIODS) + 1
)  # fmt: skip
ANCHOR_CHANNELS = 2 * RAY_CHANNELS


def anchor_channels(
    c2w: Tensor, intrinsics: Tensor, bounds: Tensor, height: int, width: int, *, first: bool, stride: int = 8
) -> Tensor:
    """Anchor channels of one chunk.

    Args:
        c2w: (..., n, 4, 4) poses in the place's frame, float32; in the first chunk frame 0 stands in front (n + 1).
        intrinsics: (4,) fx, fy, cx, cy in latent-grid units.
        bounds: (..., 2, 3) lower and upper corner of the place's bounding box, metres.
        first: the first chunk's latent 0 is frame 0 alone; every other latent covers `stride` frames.

    Returns: (..., ANCHOR_CHANNELS, T, height, width), float32.
    """
    frames = torch.arange(c2w.shape[-3])
    if first:
        ends = torch.cat((frames[:1], frames[stride::stride])), torch.cat((frames[:1], frames[1::stride]))
    else:
        ends = frames[stride - 1 :: stride], frames[::stride]
    # patch centres, unlike the network's own rays: half a cell further
    centred = intrinsics - intrinsics.new_tensor([0, 0, 0.5, 0.5])
    parts = [_lift(c2w[..., end, :, :], centred, bounds, height, width) for end in ends]
    return torch.cat(parts, dim=-1).movedim(-1, -4)


def _lift(c2w: Tensor, intrinsics: Tensor, bounds: Tensor, height: int, width: int) -> Tensor:
    """(..., T, 4, 4) to (..., T, height, width, RAY_CHANNELS)."""
    direction = plucker_rays(c2w, intrinsics.expand(*c2w.shape[:-2], 4), height, width)[..., :3]
    centre = c2w[..., None, None, :3, 3].expand_as(direction)
    azimuth = torch.atan2(direction[..., 0], direction[..., 2])
    elevation = torch.asin(direction[..., 1].clamp(-1, 1))
    angles = torch.stack((azimuth, elevation), dim=-1)
    parts = [direction, _waves(centre, [2 * math.pi / p for p in CENTRE_PERIODS]), _waves(angles, ANGLE_MULTIPLES)]
    parts += [_waves(centre + depth * direction, [2 * math.pi / p for p in POINT_PERIODS]) for depth in DEPTHS]
    low, high = (corner[..., None, None, None, :] for corner in bounds.unbind(-2))
    ahead = torch.where(direction.abs() < 1e-6, 1e-6, direction)
    distance = torch.where(ahead > 0, high - centre, low - centre).div(ahead).amin(-1, keepdim=True)
    distance = distance.clamp(min=NEAREST_EXIT)  # a camera outside the box sees its surroundings close by
    parts += [_waves(centre + distance * direction, [2 * math.pi / p for p in EXIT_PERIODS]), distance.log()]
    return torch.cat(parts, dim=-1)


def _waves(x: Tensor, frequencies: list[float] | tuple[int, ...]) -> Tensor:
    angles = (x[..., None] * x.new_tensor(frequencies)).flatten(-2)
    return torch.cat((angles.sin(), angles.cos()), dim=-1)
