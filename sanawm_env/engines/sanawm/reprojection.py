"""Pictures that an episode knows, moved to where the camera goes: a first guess at a chunk, and how far to trust it.

Two pictures are in every state: the image its segment began with and its last frame. A small network reads the depth of
each from its pixels; every ray of a new frame is then followed until it passes behind a surface that the picture shows
(as relief mapping does, Policarpo et al. 2005), and takes the colour it meets: from the start image where that shows
the place, else from the last frame. Other video models with a camera hold such pictures as a cache of points (Ren et
al. 2025, GEN3C); SANA-WM has none, and its official weights do without.

The guess enters twice: as channels behind the ray conditions, and as what the sampler starts from, so that the network
predicts the difference between the chunk and the guess (`Guess`).
"""

from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sanawm_env.engines.sanawm.codec.patch_pca import LATENT_STD, TIME_STRIDE, PatchPCACodec, cut

CELLS = 8  # rows and columns of the depth map per latent cell
NEAREST = 0.35  # metres, of what a ray can meet
RAYS = 2  # every ray follows this many columns and rows of the depth map
STEPS = 24  # of a ray, evenly spaced in the square root of inverse depth
OUTSIDE = 1e6  # how far in front of its surface a ray outside the picture is said to be
KEY_FRAMES = 4  # rays of every fourth frame are followed, those between move evenly
GUESS_PARTS = 5 * 4  # channels behind a guess's latents: in 2 x 2 parts of a cell what is covered, trusted, and near
TRUST_PARTS = slice(8, 12)  # of these
# how far a guess is trusted, the rest is predicted: where the start image shows the place, half as far after so many
# metres; where the last frame alone does, which was predicted itself
START_TRUST, START_REACH, LAST_TRUST = 0.98, 15.0, 0.6
# in a place that the world knows, of which its map knows more than a last frame shows
KNOWN_TRUST, KNOWN_REACH = 0.95, 0.4


@dataclass(frozen=True, eq=False)
class Guess:
    """What reprojection says of one chunk: latents x = mean + spread * r, where r is what the network predicts.

    channels: (B, C, T, h, w) behind the ray conditions. mean: (B, c, T, h, w). spread: (B, 1, T, h, w) in 0..1. unseen:
    (B, T, h, w), the share of each cell that no picture shows, 0 in places that the world knows.
    """

    channels: Tensor
    mean: Tensor
    spread: Tensor
    unseen: Tensor


def reprojection_channels(latent_channels: int) -> int:
    """Channels that a guess adds to the ray conditions: its latents, what is covered, and how near that is."""
    return latent_channels + GUESS_PARTS


class DepthNet(nn.Module):
    """Inverse depth along z (B, h, w), 1 / m, of pictures (B, 3, h, w) in 0..1; intrinsics (B, 4) in pixels of them."""

    def __init__(self, width: int = 24):
        super().__init__()
        a, b, c = width, 2 * width, 4 * width
        self.enter = nn.Conv2d(5, a, 4, stride=2, padding=1)
        self.down = nn.ModuleList(_Step(i, o, 2) for i, o in ((a, b), (b, c)))
        self.levels = nn.ModuleList(
            nn.Sequential(*(_Residual(n, dilation) for dilation in dilations))
            for n, dilations in ((a, (1,)), (b, (1, 2)), (c, (1, 2, 4, 1)))
        )
        self.whole = nn.Linear(c, c)
        self.up = nn.ModuleList(_Step(i, o, 1) for i, o in ((c + b, b), (b + a, a)))
        self.out = _Step(a, 4, 1)
        nn.init.normal_(self.out.conv.weight, std=0.01)
        nn.init.constant_(cast(Tensor, self.out.conv.bias), -1.1)  # three metres

    def forward(self, pictures: Tensor, intrinsics: Tensor) -> Tensor:
        height, width = pictures.shape[-2:]
        across = (torch.arange(width, device=intrinsics.device) + 0.5 - intrinsics[:, 2:3]) / intrinsics[:, 0:1]
        down = (torch.arange(height, device=intrinsics.device) + 0.5 - intrinsics[:, 3:4]) / intrinsics[:, 1:2]
        rays = torch.stack((across[:, None].expand(-1, height, -1), down[:, :, None].expand(-1, -1, width)), dim=1)
        x = self.levels[0](self.enter(torch.cat((4 * pictures - 2, 2 * rays.to(pictures)), dim=1)))
        kept = []
        for step, level in zip(self.down, self.levels[1:], strict=True):
            kept.append(x)
            x = level(step(x))
        x = x + self.whole(F.silu(x).mean((2, 3)))[:, :, None, None]
        for step, skip in zip(self.up, reversed(kept), strict=True):
            x = F.interpolate(x, size=skip.shape[-2:], mode="bilinear", align_corners=False)
            x = step(torch.cat((x, skip), dim=1))
        return F.pixel_shuffle(self.out(x), 2)[:, 0].float().clamp(-5, 2).exp()


class _Step(nn.Module):
    """Group norm, SiLU, convolution."""

    def __init__(self, into: int, out: int, stride: int, dilation: int = 1):
        super().__init__()
        self.norm = nn.GroupNorm(8, into)
        size, padding = (4, 1) if stride == 2 else (3, dilation)
        self.conv = nn.Conv2d(into, out, size, stride=stride, padding=padding, dilation=dilation)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.silu(self.norm(x)))


class _Residual(nn.Module):
    def __init__(self, width: int, dilation: int = 1):
        super().__init__()
        self.first, self.second = _Step(width, width, 1, dilation), _Step(width, width, 1)
        nn.init.zeros_(self.second.conv.weight)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(self.first(x))


class Reprojection(nn.Module):
    """Guesses at chunks from the pictures of a state. `depth` is all it learns, and is trained apart."""

    def __init__(self):
        super().__init__()
        self.depth = DepthNet()

    @torch.no_grad()
    def forward(
        self,
        codec: PatchPCACodec,
        start: Tensor,
        last: Tensor | None,
        origin: Tensor,
        before: Tensor,
        poses: Tensor,
        intrinsics: Tensor,
        known: Tensor,
        inverse_depth: Tensor | None = None,
    ) -> Guess:
        """The guess at one chunk.

        Args:
            start: (B, H, W, 3) uint8, the pictures that segments began with, seen from `origin` (B, 4, 4).
            last: (B, H, W, 3) uint8, the last frames, seen from `before` (B, 4, 4); None in a segment's first chunk,
                where they are the start images.
            poses: (B, n, 4, 4) of the chunk's frames; all in the same world frames, metres.
            intrinsics: (B, 4) fx, fy, cx, cy in pixels of the pictures.
            known: (B,) bool, episodes in a place that the world knows.
            inverse_depth: (B, h, w) or, with `last`, (2 B, h, w), start images first; None to read it off the pictures.
        """
        pictures, cameras = start, origin
        if last is not None:
            pictures, cameras = torch.cat((start, last)), torch.cat((origin, before))
            poses, intrinsics = torch.cat((poses, poses)), torch.cat((intrinsics, intrinsics))
        colours = pictures.permute(0, 3, 1, 2).float() / 255
        if inverse_depth is None:
            half = F.avg_pool2d(colours, codec.stride // CELLS)
            inverse_depth = self.depth(half, intrinsics / (codec.stride // CELLS))
        after = before if last is None else torch.cat((before, before))
        path = torch.cat((after[:, None], poses), dim=1)
        with torch.autocast("cuda" if colours.is_cuda else "cpu", enabled=False):
            moved, seen, near = _follow(inverse_depth, cameras, path, intrinsics, (start.shape[1], start.shape[2]))
        moved, seen, near = (part.unflatten(0, (-1, len(start))) for part in (moved, seen, near))  # (1 or 2, B, ...)
        shown = _colours(colours.unflatten(0, moved.shape[:2]), moved, seen[0])
        if last is None:
            seen, near = (torch.cat((part, part)) for part in (seen, near))
        # how far to trust each pixel: the start image less, the further the camera has gone from it
        middle = poses[: len(start), TIME_STRIDE // 2 :: TIME_STRIDE, :3, 3]
        gone = (middle - origin[:, None, :3, 3]).float().norm(dim=-1)
        place = known[:, None]
        trust = torch.where(
            place, KNOWN_TRUST / (1 + gone / KNOWN_REACH), START_TRUST / (1 + gone / START_REACH)
        )  # (B, T)
        trust = trust.repeat_interleave(TIME_STRIDE, dim=1)[..., None, None]
        trust = torch.where(seen[0], trust, LAST_TRUST * (seen[1] & ~place[..., None, None]))
        latents = _encode(codec, shown)
        t, h, w = latents.shape[2:]
        # what is covered, and how near it is, in 2 x 2 parts of every cell
        parts = torch.stack((seen[0].float(), seen[1].float(), trust), dim=1)  # (B, 3, n, H, W)
        parts = F.adaptive_avg_pool3d(parts, (t, 2 * h, 2 * w))
        trusted = F.avg_pool3d(parts[:, 2:], (1, 2, 2))
        unseen = F.avg_pool2d(1 - parts[:, :2].amax(1), 2).masked_fill(known[:, None, None, None], 0)
        mean = trusted * latents
        key = near[:, :, TIME_STRIDE // KEY_FRAMES - 1 :: TIME_STRIDE // KEY_FRAMES].movedim(1, 0)
        parts = torch.cat((parts, F.adaptive_avg_pool2d(key.flatten(1, 2), (2 * h, 2 * w)).unflatten(1, (2, t))), dim=1)
        parts = parts.unflatten(4, (w, 2)).unflatten(3, (h, 2)).permute(0, 1, 4, 6, 2, 3, 5).flatten(1, 3)
        guess = Guess(torch.cat((mean / LATENT_STD, parts), dim=1), mean, 1 - trusted, unseen)
        return guess if last is not None else _with_start(guess)


def _with_start(guess: Guess) -> Guess:
    """The same with the latent of the start image in front, which nobody predicts."""
    mean, spread = F.pad(guess.mean, (0, 0, 0, 0, 1, 0)), F.pad(guess.spread, (0, 0, 0, 0, 1, 0), value=1.0)
    channels, unseen = (F.pad(part, (0, 0, 0, 0, 1, 0)) for part in (guess.channels, guess.unseen))
    return Guess(channels, mean, spread, unseen)


def _encode(codec: PatchPCACodec, frames: Tensor) -> Tensor:
    """Latents (B, c, T, h, w) of frames (B, 8 T, H, W, 3) in 0..1 that do not open a clip."""
    coordinates = F.linear(cut(frames, codec.stride), codec.components, -(codec.components @ codec.mean))
    return (coordinates * codec.scale).permute(0, 4, 1, 2, 3)


def _follow(
    inverse_depth: Tensor, cameras: Tensor, path: Tensor, intrinsics: Tensor, size: tuple[int, int]
) -> tuple[Tensor, Tensor, Tensor]:
    """Where frames on a path look in one picture each.

    inverse_depth: (N, h, w) of pictures of size (H, W), seen from cameras (N, 4, 4). path: (N, 1 + n, 4, 4), the frame
    before and n more. intrinsics: (N, 4) in pixels of the picture.

    Returns how far across and down every pixel of the n frames has moved in the picture (N, n, 2, H, W), which goes
    from -1 to 1, whether it is seen there (N, n, H, W) bool, and the inverse depth (N, n / 4, h / 2, w / 2) of what is
    met in every fourth frame, 0 where nothing is.
    """
    (h, w), (height, width) = inverse_depth.shape[1:], size
    relative = (torch.linalg.inv(cameras.double())[:, None] @ path[:, ::KEY_FRAMES].double()).float()
    fx, fy, cx, cy = (
        (2 * intrinsics / intrinsics.new_tensor([width, height, width, height])).float().T[:, :, None, None, None]
    )
    cx, cy = cx - 1, cy - 1  # from -1 to 1 across the picture
    v, u = ((torch.arange(size, device=path.device) + 0.5) * 2 / size - 1 for size in (h // RAYS, w // RAYS))
    rays = torch.stack(torch.broadcast_tensors((u - cx) / fx, (v[:, None] - cy) / fy, torch.ones_like(fx)), dim=2)
    turned = [sum(relative[..., i, k, None, None] * rays[:, :, k] for k in range(3)) for i in range(3)]  # (N, k, h, w)
    move = relative[..., :3, 3, None, None].unbind(2)
    (x, y, z), (dx, dy, dz) = (
        (fx * a[0] + cx * a[2], fy * a[1] + cy * a[2], a[2]) for a in (turned, move)
    )  # as the picture counts
    surface = inverse_depth[:, None].float()

    def meet(q: Tensor | float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Of points at inverse depths q: where they lie in the picture (..., 2), and whether they do; how far they are
        from it, and its surface there, as inverse depths."""
        ahead = z + q * dz
        inverse = ahead.clamp(min=1e-4).reciprocal_()
        at = torch.stack(((x + q * dx).mul_(inverse), (y + q * dy).mul_(inverse)), dim=-1)
        inside = (at.abs() <= 1).all(-1) & (ahead > 1e-4)
        found = F.grid_sample(surface, at.flatten(1, 2), padding_mode="border", align_corners=False).view(z.shape)
        return at, inside, inverse.mul_(q), found

    hit = torch.full_like(z, -1.0)
    before = None
    for q in (torch.linspace(1, 0, STEPS + 1) ** 2 / NEAREST).tolist():
        _, inside, own, found = meet(q)
        gap = (found - own).masked_fill_(~inside, -OUTSIDE)  # positive behind the surface
        if before is not None:
            last_q, last_gap, last_own, last_found = before
            # a ray that slips behind an edge has not met anything
            crosses = (found - last_found).abs_() <= torch.add((own - last_own).abs_(), found, alpha=0.25)
            crosses &= (hit < 0) & (gap > 0) & (last_gap <= 0)
            share = last_gap / (last_gap - gap)
            hit = torch.where(crosses, share.mul_(q - last_q).add_(last_q), hit)
        before = q, gap, own, found
    at, inside, own, found = meet(hit.clamp(min=0))
    seen = (hit >= 0) & inside & ((found - own).abs() <= 0.1 * found + 0.02)
    near = torch.where(seen, hit, 0.0)

    # larger, and the frames between the key frames: how far each pixel has moved in the picture
    moved = at.clamp(-1, 1) - torch.stack(torch.broadcast_tensors(u, v[:, None]), dim=-1)
    packed = torch.stack((*moved.unbind(-1), seen.to(moved.dtype)), dim=2)  # (N, k, 3, h, w)
    packed = F.interpolate(packed.flatten(0, 1), size=size, mode="bilinear", align_corners=False)
    packed = packed.unflatten(0, (len(path), -1))
    share = torch.arange(1, KEY_FRAMES + 1, device=path.device)[:, None, None, None] / KEY_FRAMES
    packed = torch.lerp(packed[:, :-1, None], packed[:, 1:, None], share).flatten(1, 2)
    return packed[:, :, :2], packed[:, :, 2] > 0.9, near[:, 1:]


def _colours(pictures: Tensor, moved: Tensor, first: Tensor) -> Tensor:
    """Colours (B, n, H, W, 3) of pictures (1 or 2, B, 3, H, W) where pixels have moved to (1 or 2, B, n, 2, H, W): in
    the first picture where `first` (B, n, H, W) says so, else in the last; beyond its border what is at the border."""
    height, width = pictures.shape[-2:]
    v, u = ((torch.arange(size, device=moved.device) + 0.5) * 2 / size - 1 for size in (height, width))
    moved = torch.where(first[:, :, None], moved[0], moved[-1])
    across, down = moved[:, :, 0] + u, moved[:, :, 1] + v[:, None]
    if len(pictures) == 2:  # one above the other, so that every pixel is looked up once
        down = (down.clamp_(1 / height - 1, 1 - 1 / height) + 1 - 2 * first.to(down.dtype)) / 2
    grid = torch.stack((across, down), dim=-1)
    pictures = pictures.movedim(0, 2).flatten(2, 3)
    shown = F.grid_sample(pictures, grid.flatten(1, 2), padding_mode="border", align_corners=False)
    return shown.unflatten(2, grid.shape[1:3]).movedim(1, -1)
