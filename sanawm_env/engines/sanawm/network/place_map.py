"""What a world remembers of its places: learned features in grids over each place, looked up along viewing rays.

The nano world is told where in a known place a start image was taken (nano.md, section 4). Instead of lifting rays by
sines and cosines, the channels appended to the Plücker conditions are read from a table that is trained with the
network, linear between cells, as grid encodings do (Müller et al. 2022, Instant NGP): on the faces of the place's
bounding box where rays leave it, and in its volume at some depths on the way.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sanawm_env.camera.rays import plucker_rays

VOLUME_CELL, FACE_CELL = 0.25, 0.1  # metres
FEATURES = 12
DEPTHS = (0.5, 0.8, 1.15, 1.55, 2.0, 2.5, 3.1, 3.8, 4.6, 5.6)  # metres along the ray
QUARTERS = ((-0.25, -0.25), (-0.25, 0.25), (0.25, -0.25), (0.25, 0.25))  # of a patch, where rays to the faces pass
PLACE_CHANNELS = 2 * (7 + FEATURES * (len(QUARTERS) + len(DEPTHS)))
NEAREST_EXIT = 0.1  # metres


class PlaceMap(nn.Module):
    """Features of `places` (name: lower and upper corner of the bounding box, metres).

    `cells` (N, FEATURES) holds one grid after the other: the volumes of all places, then six faces of each, in the
    order low x, high x, low y, ...
    """

    low: Tensor
    high: Tensor
    counts: Tensor
    starts: Tensor

    def __init__(self, places: Mapping[str, tuple[float, ...]]):
        super().__init__()
        volumes = torch.tensor(list(places.values())).view(-1, 2, 3)
        faces = volumes.repeat_interleave(6, dim=0)
        across = torch.arange(len(faces)) % 6 // 2  # the axis a face is normal to
        cells = torch.cat((torch.full((len(volumes), 3), VOLUME_CELL), torch.full((len(faces), 3), FACE_CELL)))
        boxes = torch.cat((volumes, faces))
        counts = ((boxes[:, 1] - boxes[:, 0]) / cells).round().long() + 1
        counts[len(volumes) + torch.arange(len(faces)), across] = 1
        totals = counts.prod(-1)
        for name, value in (
            ("low", boxes[:, 0]), ("high", boxes[:, 1]), ("counts", counts), ("starts", totals.cumsum(0) - totals)
        ):  # fmt: skip
            self.register_buffer(name, value, persistent=False)
        self.cells = nn.Parameter(torch.zeros(int(totals.sum()), FEATURES))

    def forward(
        self, c2w: Tensor, intrinsics: Tensor, place: Tensor, height: int, width: int, *, first: bool, stride: int = 8
    ) -> Tensor:
        """Channels of one chunk.

        Args:
            c2w: (B, n, 4, 4) poses in the place's frame, float32; in the first chunk frame 0 is in front (n + 1).
            intrinsics: (B, 4) fx, fy, cx, cy in latent-grid units.
            place: (B,) index of the place, -1 where it is unknown: all its channels are 0.
            height, width: of the latent grid.
            first: the first chunk's latent 0 is frame 0 alone; every other latent covers `stride` frames.
            stride: frames of a latent.

        Returns:
            (B, PLACE_CHANNELS, T, height, width), float32: of the last and the first frame of each latent.
        """
        if first:
            ends = c2w[:, ::stride], torch.cat((c2w[:, :1], c2w[:, 1::stride]), dim=1)
        else:
            ends = c2w[:, stride - 1 :: stride], c2w[:, ::stride]
        frames = torch.stack(ends, dim=1)  # (B, 2, T, 4, 4)
        grid = place.clamp(min=0)[:, None, None, None, None].expand(*frames.shape[:3], height, width)
        points, grids = [], []
        for down, across in (*QUARTERS, (0.0, 0.0)):
            # patch centres, unlike the network's own rays: half a cell further
            shifted = intrinsics - intrinsics.new_tensor([0, 0, 0.5 + across, 0.5 + down])
            shifted = shifted[:, None, None].expand(*frames.shape[:3], 4)
            direction = plucker_rays(frames, shifted, height, width)[..., :3]
            centre = frames[..., None, None, :3, 3].expand_as(direction)
            distance, face = self._exit(centre, direction, grid)
            points.append(centre + distance * direction)
            grids.append(face)
        points[-1:] = [centre + depth * direction for depth in DEPTHS]
        grids[-1:] = [grid] * len(DEPTHS)
        found = self._look_up(torch.stack(points, dim=-2), torch.stack(grids, dim=-1)).flatten(-2)
        out = torch.cat((centre / 4, direction, distance.log(), found), dim=-1)  # (B, 2, T, h, w, c)
        out = out * (place >= 0)[:, None, None, None, None, None]
        return out.movedim((1, 5), (1, 2)).flatten(1, 2)

    def _exit(self, centre: Tensor, direction: Tensor, grid: Tensor) -> tuple[Tensor, Tensor]:
        """Distance (..., 1) at which rays leave the box, and the grid (...) of the face they leave it through; a camera
        outside the box sees its surroundings close by."""
        ahead = torch.where(direction.abs() < 1e-6, 1e-6, direction)
        distance, axis = torch.where(ahead > 0, self.high[grid] - centre, self.low[grid] - centre).div(ahead).min(-1)
        upper = (ahead > 0).gather(-1, axis[..., None])[..., 0]
        face = len(self.low) // 7 + 6 * grid + 2 * axis + upper
        return distance.clamp(min=NEAREST_EXIT)[..., None], face

    def _look_up(self, points: Tensor, grid: Tensor) -> Tensor:
        """Features (..., FEATURES) at points (..., 3) of grids (...); 0 outside them."""
        low, high, counts = self.low[grid], self.high[grid], self.counts[grid]
        share = (points - low) / (high - low)
        inside = ((share > -0.01) & (share < 1.01)).all(-1)
        at = share.clamp(0, 1) * (counts - 1)
        corner = at.floor().long()
        share = at - corner
        offsets = torch.tensor([[i >> 2 & 1, i >> 1 & 1, i & 1] for i in range(8)], device=points.device)
        corners = (corner[..., None, :] + offsets).minimum((counts - 1)[..., None, :])
        weights = torch.where(offsets.bool(), share[..., None, :], 1 - share[..., None, :]).prod(-1)
        index = corners[..., 0] * counts[..., None, 1] + corners[..., 1]
        index = index * counts[..., None, 2] + corners[..., 2] + self.starts[grid][..., None]
        weights = weights * inside[..., None]
        found = F.embedding_bag(
            index.flatten(0, -2), self.cells, per_sample_weights=weights.flatten(0, -2).to(self.cells.dtype), mode="sum"
        )
        return found.view(*points.shape[:-1], -1)
