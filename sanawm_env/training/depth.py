"""Training of the depth network of `engines.sanawm.reprojection`.

The renderer knows the depth of every image. Of footage nobody does, but its poses are known: the depth is right that
moves a frame onto the frames before and after it (Zhou et al. 2017; the loss is that of Godard et al. 2019, with the
known poses in place of a network for them, so that depths are metres). See `photometric_loss`.

Images are given as they are, mirrored, recoloured, and as predicted frames look: through the codec, with noise in the
latents, and blurred. The loss is that of the logarithm and of its differences between neighbours (Eigen and Fergus 2015
add gradients), so that borders are sharp, and an image whose scale cannot be known still teaches its shape.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from safetensors.torch import load_file
from torch import Tensor

from sanawm_env.engines.sanawm.codec.patch_pca import LATENT_STD, PatchPCACodec
from sanawm_env.engines.sanawm.reprojection import CELLS, Reprojection
from sanawm_env.system.files import file_sha256
from sanawm_env.system.settings import check_fields
from sanawm_env.training.clips import Seed, Share, check_codec, load
from sanawm_env.training.steps import train_steps

CHECKPOINT, WEIGHTS = "depth_checkpoint.pt", "reprojection.safetensors"
MOST_PIECES = 256  # of footage, whose frames are held in memory: 0.9 GB
OTHERS, NEAREST_OTHER, FARTHEST_OTHER = 4, 2, 16  # frames that one is moved onto, so many frames before or after it


@dataclass(frozen=True)
class DepthConfig:
    """One training of the depth network.

    Attributes:
        steps: of the run.
        batch_size: images of a step.
        learning_rate: at its highest.
        dreamt: share of the images that look like predicted frames.
        seed: of the run.

    Raises:
        ValueError: for values out of range.
    """

    steps: Annotated[int, Field(ge=1, le=10**8)] = 4000
    batch_size: Annotated[int, Field(ge=1, le=4096)] = 16
    learning_rate: Annotated[float, Field(ge=0, le=10)] = 2e-3
    dreamt: Share = 0.5
    seed: Seed = 0

    def __post_init__(self):
        check_fields(self)


def depth_loss(found: Tensor, depth: Tensor) -> Tensor:
    """Error of the logarithm of depth, and of its slopes.

    Args:
        found: (B, h, w), predicted inverse depths.
        depth: (B, h, w), metres.

    Returns:
        A scalar.
    """
    error = found.log() + depth.float().clamp(min=0.2).log()
    loss = error.abs().mean()
    for step in (1, 2, 4):
        across, down = error[..., step:] - error[..., :-step], error[:, step:] - error[:, :-step]
        loss = loss + 0.1 * (across.abs().mean() + down.abs().mean())
    return loss


def photometric_loss(found: Tensor, image: Tensor, others: Tensor, relative: Tensor, intrinsics: Tensor) -> Tensor:
    """How unlike an image is what others show at its depth (Godard et al. 2019, sections 3.1 and 3.2).

    Of each pixel the other frame that is most alike counts, because it is hidden in some. Depth is to be smooth where
    the image is.

    Args:
        found: (B, h, w), predicted inverse depths of the image, 1 / m.
        image: (B, 3, h, w) in 0..1.
        others: (S, B, 3, h, w), frames of the same scene.
        relative: (S, B, 4, 4), from the camera of the image to those of the others, metres.
        intrinsics: (B, 4) in pixels.

    Returns:
        A scalar.
    """
    height, width = image.shape[-2:]
    fx, fy, cx, cy = intrinsics.T[:, :, None, None]
    down, across = (torch.arange(n, device=image.device) + 0.5 for n in (height, width))
    x, y = (across - cx) / fx, (down[:, None] - cy) / fy
    rays = torch.stack(torch.broadcast_tensors(x, y, torch.ones_like(x)), dim=1)
    errors = []
    for other, motion in zip(others, relative, strict=True):
        moved = torch.einsum("bij,bjhw->bihw", motion[:, :3, :3], rays) + found[:, None] * motion[:, :3, 3, None, None]
        ahead = moved[:, 2].clamp(min=1e-3)
        u = (moved[:, 0] / ahead * fx + cx) * 2 / width - 1
        v = (moved[:, 1] / ahead * fy + cy) * 2 / height - 1
        shown = F.grid_sample(other, torch.stack((u, v), dim=-1), padding_mode="border", align_corners=False)
        inside = (moved[:, 2] > 1e-2) & (u.abs() <= 1) & (v.abs() <= 1)
        error = 0.85 * _dissimilarity(shown, image) + 0.15 * (shown - image).abs().mean(1)
        errors.append(error.masked_fill(~inside, torch.inf))
    least = torch.stack(errors).amin(0)
    seen = least.isfinite()
    loss = torch.where(seen, least, 0.0).sum() / seen.sum().clamp(min=1)
    relief = found / found.mean((1, 2), keepdim=True)
    for axis in (-1, -2):
        edges = image.diff(dim=axis).abs().mean(1)
        loss = loss + 0.02 * (relief.diff(dim=axis).abs() * torch.exp(-10 * edges)).mean()
    return loss


def _dissimilarity(a: Tensor, b: Tensor) -> Tensor:
    """(1 - SSIM) / 2 of images (B, 3, h, w) in 0..1, in windows of 3 x 3: (B, h, w)."""

    def mean(x: Tensor) -> Tensor:
        return F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), 3, stride=1)

    of_a, of_b = mean(a), mean(b)
    spread = mean(a * a) - of_a.square() + mean(b * b) - of_b.square()
    together = mean(a * b) - of_a * of_b
    ssim = (2 * of_a * of_b + 1e-4) * (2 * together + 9e-4)
    ssim = ssim / ((of_a.square() + of_b.square() + 1e-4) * (spread + 9e-4))
    return ((1 - ssim) / 2).clamp(0, 1).mean(1)


def train_depth(
    config: DepthConfig,
    codec: PatchPCACodec,
    data: Path,
    out: Path,
    *,
    views: Path | None = None,
    begin_from: Path | None = None,
    device: str = "cpu",
    bf16: bool = True,
) -> float:
    """Train the depth network, and leave `reprojection.safetensors` in `out`. It continues from the checkpoint there.

    Ctrl-C and SIGTERM finish the step, save a checkpoint and raise KeyboardInterrupt.

    Args:
        config: of the run.
        codec: of the clips.
        data: folder of clips, made with `pictures`; of footage, it is trained on poses in place of depth.
        out: folder of the run.
        views: folder of single views (`clips.generate_views`), or None.
        begin_from: weights to begin from, None to begin anew.
        device: of the weights.
        bf16: whether to compute in bfloat16.

    Returns:
        Seconds of training, over all calls.

    Raises:
        ValueError: for clips of another codec or without images, or a checkpoint of another run.
    """
    settings = check_codec(data, codec, pictures=True)
    identity = {**asdict(config), "steps": None, "codec": settings["codec"]}
    if begin_from is not None:
        identity["begin_from"] = file_sha256(begin_from)
    identity = json.dumps(identity, sort_keys=True)
    out.mkdir(parents=True, exist_ok=True)
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(config.seed)
        model = Reprojection()
    if begin_from is not None:
        model.load_state_dict({name: value.float() for name, value in load_file(begin_from).items()})
    model = model.to(device)

    def prepare() -> Callable[[torch.Generator], Tensor]:
        footage, moved = "footage" in settings, codec.to(device)
        shown = _footage(data, moved, config.seed) if footage else _pictures(data, views)
        shown = {name: tensor.to(device) for name, tensor in shown.items()}
        error = torch.autocast(torch.device(device).type, torch.bfloat16, enabled=bf16)(
            _footage_error if footage else _depth_error
        )
        return partial(error, model, shown, moved, config)

    return train_steps("depth", model, prepare, config, out / CHECKPOINT, out / WEIGHTS, identity, device)


def _pictures(data: Path, views: Path | None) -> dict[str, Tensor]:
    """Images (N, H, W, 3) uint8 of clips and views, their depth (N, h, w) and intrinsics (N, 4)."""
    clips = load(data, ("pictures", "depth", "intrinsics"))
    intrinsics = clips.pop("intrinsics").repeat_interleave(clips["depth"].shape[1], 0)
    shown = {name: tensor.flatten(0, 1) for name, tensor in clips.items()} | {"intrinsics": intrinsics}
    if views is None:
        return shown
    more = load(views, tuple(shown))
    if any(more[name].shape[1:] != tensor.shape[1:] for name, tensor in shown.items()):
        raise ValueError(f"The views in {views} have another size than the clips in {data}: make them again.")
    return {name: torch.cat((tensor, more[name])) for name, tensor in shown.items()}


def _footage(data: Path, codec: PatchPCACodec, seed: int) -> dict[str, Tensor]:
    """Frames (N, F, H, W, 3) uint8 of footage, decoded; c2w (N, F, 4, 4) float64 and intrinsics (N, 4)."""
    clips = load(data, ("latents", "c2w", "intrinsics"))
    pieces = torch.randperm(len(clips["c2w"]), generator=torch.Generator().manual_seed(seed))[:MOST_PIECES]
    latents = clips.pop("latents")
    frames = [codec.decode(latents[i, None].to(codec.mean), first=True)[0].cpu() for i in pieces.tolist()]
    return {
        "frames": torch.stack(frames),
        "c2w": clips["c2w"][pieces].double(),
        "intrinsics": clips["intrinsics"][pieces],
    }


def _depth_error(
    model: Reprojection, shown: dict[str, Tensor], codec: PatchPCACodec, config: DepthConfig, generator: torch.Generator
) -> Tensor:
    """`depth_loss` of a batch of `_pictures`."""
    pictures, depth, intrinsics = draw_pictures(shown, codec, config, generator)
    return depth_loss(model.depth(pictures, intrinsics), depth)


def _footage_error(
    model: Reprojection, shown: dict[str, Tensor], codec: PatchPCACodec, config: DepthConfig, generator: torch.Generator
) -> Tensor:
    """`photometric_loss` of a batch of `_footage`."""
    device, size, frames = generator.device, config.batch_size, shown["frames"]
    piece = torch.randint(len(frames), (size,), generator=generator, device=device)
    frame = torch.randint(frames.shape[1], (size,), generator=generator, device=device)
    reach = NEAREST_OTHER, FARTHEST_OTHER + 1
    shift = torch.randint(*reach, (OTHERS, size), generator=generator, device=device)
    shift[::2] *= -1
    other = frame + shift
    other = torch.where((other < 0) | (other >= frames.shape[1]), frame - shift, other)
    intrinsics = shown["intrinsics"][piece].float()
    image, mirrored, pinhole = varied(frames[piece, frame], intrinsics, codec, config, generator)
    found = model.depth(image, pinhole)
    found = torch.where(mirrored, found.flip(-1), found)
    c2w = shown["c2w"]
    relative = (torch.linalg.inv(c2w[piece, other]) @ c2w[piece, frame]).float()
    pool = codec.stride // CELLS

    def small(images: Tensor) -> Tensor:
        return F.avg_pool2d(images.movedim(-1, -3).flatten(0, -4).float() / 255, pool)

    others = small(frames[piece, other]).unflatten(0, other.shape)
    with torch.autocast(device.type, enabled=False):
        return photometric_loss(found, small(frames[piece, frame]), others, relative, intrinsics / pool)


def draw_pictures(
    shown: dict[str, Tensor], codec: PatchPCACodec, config: DepthConfig, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """A batch, on one device.

    Args:
        shown: what `_pictures` returned.
        codec: through which images are made to look predicted.
        config: of the run.
        generator: that draws.

    Returns:
        Images (B, 3, h, w) in 0..1, depth (B, h, w), and intrinsics (B, 4) in their pixels.
    """
    chosen = torch.randint(len(shown["depth"]), (config.batch_size,), generator=generator, device=generator.device)
    depth, intrinsics = shown["depth"][chosen].float(), shown["intrinsics"][chosen].float()
    pictures, mirrored, intrinsics = varied(shown["pictures"][chosen], intrinsics, codec, config, generator)
    return pictures, torch.where(mirrored, depth.flip(-1), depth), intrinsics


def varied(
    pictures: Tensor, intrinsics: Tensor, codec: PatchPCACodec, config: DepthConfig, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Images as the depth network is given them: as they are or as predicted frames look, recoloured, mirrored.

    Args:
        pictures: (B, H, W, 3) uint8.
        intrinsics: (B, 4) in their pixels.
        codec: through which images are made to look predicted.
        config: of the run.
        generator: that draws.

    Returns:
        Images (B, 3, h, w) in 0..1, which of them are mirrored (B, 1, 1) bool, and intrinsics (B, 4) in their pixels.
    """
    device = generator.device

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, device=device)

    size = len(pictures)
    dreamt = uniform(size) < config.dreamt
    dreams = pictures[dreamt]
    pictures = pictures.permute(0, 3, 1, 2).float() / 255
    if dreamt.any():
        latents = codec.encode(dreams[:, None])
        noise = torch.randn(latents.shape, generator=generator, device=device) * LATENT_STD
        latents = latents + uniform(len(latents), 1, 1, 1, 1) * noise
        pictures[dreamt] = codec.decode(latents, first=True)[:, 0].permute(0, 3, 1, 2).float() / 255
    pictures = F.avg_pool2d(pictures, codec.stride // CELLS)
    intrinsics = intrinsics / (codec.stride // CELLS)
    soft = F.avg_pool2d(F.pad(pictures, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    pictures = torch.lerp(pictures, soft, uniform(size, 1, 1, 1) * dreamt[:, None, None, None])
    pictures = (pictures * (0.85 + 0.3 * uniform(size, 3, 1, 1)) + 0.1 * (uniform(size, 1, 1, 1) - 0.5)).clamp(0, 1)
    mirrored = uniform(size) < 0.5
    intrinsics[:, 2] = torch.where(mirrored, pictures.shape[-1] - intrinsics[:, 2], intrinsics[:, 2])
    pictures = torch.where(mirrored[:, None, None, None], pictures.flip(-1), pictures)
    return pictures, mirrored[:, None, None], intrinsics
