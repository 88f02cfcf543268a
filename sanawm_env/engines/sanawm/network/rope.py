"""Rotary position embedding over (frame, row, column), dit.md section 4.

Channels (2j, 2j+1) of a head form one complex number that turns by an angle. The angles of one token are the
concatenation of a time part, a row part and a column part; the camera branch takes the leading angles of each part.
Angles are computed in float64.
"""

import torch
from torch import Tensor


def axis_pairs(dim: int) -> tuple[int, int, int]:
    """Rotation pairs of the time, row and column parts of a table for `dim` channels: rows and columns get
    dim // 6 each, time the rest."""
    space = dim // 6
    return dim // 2 - 2 * space, space, space


def rope_angles(head_dim: int, frames: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Angles of the main table and of the camera table.

    Args:
        head_dim: channels of a head, D.
        frames: (..., T) absolute latent frame indices.
        height, width: latent grid.

    Returns:
        main (..., T*height*width, D/2) and camera (..., T*height*width, D/4), float64, tokens in the order frame, row,
        column.
    """
    positions = (frames, torch.arange(height, device=frames.device), torch.arange(width, device=frames.device))
    lead, t = frames.shape[:-1], frames.shape[-1]
    main, camera = [], []
    for axis, (pairs, kept) in enumerate(zip(axis_pairs(head_dim), axis_pairs(head_dim // 2), strict=True)):
        omega = 10000.0 ** (-torch.arange(pairs, dtype=torch.float64, device=frames.device) / pairs)
        part = positions[axis].double()[..., None] * omega
        shape = [*lead, t, 1, 1, pairs] if axis == 0 else [height, 1, pairs] if axis == 1 else [width, pairs]
        part = part.view(shape).expand(*lead, t, height, width, pairs)
        main.append(part)
        camera.append(part[..., :kept])
    return torch.cat(main, -1).flatten(-4, -2), torch.cat(camera, -1).flatten(-4, -2)


def phases(angles: Tensor) -> Tensor:
    """e^{i angle}, complex of the angles' precision."""
    return torch.polar(torch.ones_like(angles), angles)
