"""Poses to what the network reads for one chunk: ray map, Plücker groups, features of the place, place token."""

from collections.abc import Iterable

import torch
from torch import Tensor

from sanawm_env.camera.rays import chunk_conditions
from sanawm_env.engines.sanawm.config import SanaWorldConfig
from sanawm_env.engines.sanawm.network.place_map import PlaceMap

PLUCKER_CHANNELS = 48


def camera_inputs(
    config: SanaWorldConfig, place_map: PlaceMap | None, origin: Tensor, poses: Tensor, intrinsics: Tensor,
    anchor: Tensor, place: Tensor, *, first: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Conditions of one chunk of B episodes.

    Args:
        config: of the world.
        place_map: of a world that knows places, or None.
        origin: (B, 4, 4) poses of frame 0.
        poses: (B, n, 4, 4) the chunk's poses in the same world frames.
        intrinsics: (B, 4) fx, fy, cx, cy in pixels of the world's frames.
        anchor: (B, 4, 4) poses of frame 0 in the place.
        place: (B,) index in `config.places`, -1 where it is unknown.
        first: whether this is the episodes' first chunk, which also covers frame 0.

    Returns:
        camera (B, T, 20) and plucker (B, C, T, h, w), float32.
    """
    h, w, stride = config.latent_height, config.latent_width, config.temporal_stride
    in_cells = (intrinsics / config.spatial_stride).float()[:, None]
    per_frame = in_cells.expand(-1, poses.shape[1] + first, 4)
    conditions = chunk_conditions(origin, poses, per_frame, h, w, first=first, stride=stride)
    plucker = conditions.plucker
    if place_map is not None:
        frames = torch.cat((origin[:, None], poses), dim=1) if first else poses
        in_place = (anchor @ torch.linalg.inv(origin))[:, None] @ frames
        known = place_map(in_place.float(), in_cells[:, 0], place, h, w, first=first, stride=stride)
        plucker = torch.cat((plucker, known), dim=1)
    return conditions.raymap, plucker


def place_token(places: Iterable[str], place: str | None, channels: int) -> Tensor:
    """Text feature of a world whose prompt is a place: one-hot, with the last channel for "unknown".

    Args:
        places: names of all places.
        place: name of the place, or None.
        channels: of the feature.

    Returns:
        (1, channels).
    """
    token = torch.zeros(1, channels, dtype=torch.float32)
    token[0, channels - 1 if place is None else list(places).index(place)] = 1
    return token
