"""Training of the depth network of `engines.sanawm.reprojection`: the renderer knows the depth of every image.

Images are given as they are, mirrored, recoloured, and as predicted frames look: through the codec, with noise in the
latents, and blurred. The loss is that of the logarithm and of its differences between neighbours (Eigen and Fergus 2015
add gradients), so that borders are sharp, and an image whose scale cannot be known still teaches its shape.
"""

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from sanawm_env.engines.sanawm.codec.patch_pca import LATENT_STD, PatchPCACodec
from sanawm_env.engines.sanawm.reprojection import CELLS, Reprojection
from sanawm_env.system.files import check_count, check_number
from sanawm_env.system.saving import replacing
from sanawm_env.system.settings import differences
from sanawm_env.system.signals import on_stop
from sanawm_env.training.clips import codec_hash, load, made_with
from sanawm_env.world.state import save_whole

CHECKPOINT, WEIGHTS = "depth_checkpoint.pt", "reprojection.safetensors"
CHECKPOINT_EVERY = 200


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

    steps: int = 4000
    batch_size: int = 16
    learning_rate: float = 2e-3
    dreamt: float = 0.5
    seed: int = 0

    def __post_init__(self):
        check_count("steps", self.steps, 1, 10**8)
        check_count("batch_size", self.batch_size, 1, 4096)
        check_count("seed", self.seed, 0, 2**40)
        check_number("learning_rate", self.learning_rate, 0, 10)
        check_number("dreamt", self.dreamt, 0, 1)


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


def train_depth(
    config: DepthConfig,
    codec: PatchPCACodec,
    data: Path,
    out: Path,
    *,
    views: Path | None = None,
    device: str = "cpu",
    bf16: bool = True,
) -> float:
    """Train the depth network, and leave `reprojection.safetensors` in `out`. It continues from the checkpoint there.

    Ctrl-C and SIGTERM finish the step, save a checkpoint and raise KeyboardInterrupt.

    Args:
        config: of the run.
        codec: of the clips.
        data: folder of clips, made with `pictures`.
        out: folder of the run.
        views: folder of single views (`clips.generate_views`), or None.
        device: of the weights.
        bf16: whether to compute in bfloat16.

    Returns:
        Seconds of training, over all calls.

    Raises:
        ValueError: for clips of another codec or without images, or a checkpoint of another run.
    """
    settings = made_with(data)
    if settings["codec"] != codec_hash(codec):
        raise ValueError(f"The clips in {data} were encoded with another codec: use that one, or make them again.")
    if not settings.get("pictures"):
        raise ValueError(f"The clips in {data} hold no images: make them with pictures=True.")
    out.mkdir(parents=True, exist_ok=True)
    identity = json.dumps({**asdict(config), "steps": None, "codec": settings["codec"]}, sort_keys=True)
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(config.seed)
        model = Reprojection().to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, weight_decay=0.01, betas=(0.9, 0.98))
    average = {name: p.detach().clone() for name, p in model.named_parameters()}
    step, seconds, recent = 0, 0.0, None
    if (out / CHECKPOINT).exists():
        saved = torch.load(out / CHECKPOINT, weights_only=True)
        if saved["identity"] != identity:
            other = differences(json.loads(saved["identity"]), json.loads(identity))
            raise ValueError(f"{out / CHECKPOINT} belongs to another run: {other}. Use another folder.")
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        average = {name: value.to(device) for name, value in saved["average"].items()}
        step, seconds = saved["step"], saved["seconds"]
        if step >= config.steps:
            return seconds
    shown = {name: tensor.to(device) for name, tensor in _pictures(data, views).items()}
    codec, began = codec.to(device), time.monotonic() - seconds

    def save() -> None:
        parts = {
            "model": model.state_dict(), "optimizer": optimizer.state_dict(), "average": average, "step": step,
            "seconds": time.monotonic() - began, "identity": identity,
        }  # fmt: skip
        with replacing(out / CHECKPOINT) as part:
            torch.save(parts, part)
        save_whole({name: value.half().cpu().contiguous() for name, value in average.items()}, out / WEIGHTS)

    stopped: list[int] = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with on_stop(stopped.append), Progress(*columns) as progress:
        task = progress.add_task("depth", total=config.steps, completed=step)
        while step < config.steps and not stopped:
            generator = torch.Generator(device).manual_seed(config.seed * 1_000_003 + step)
            pictures, depth, intrinsics = draw_pictures(shown, codec, config, generator)
            rate = min(1.0, (step + 1) / 100, 3 * (config.steps - step) / config.steps)
            for group in optimizer.param_groups:
                group["lr"] = rate * config.learning_rate
            with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=bf16):
                found = model.depth(pictures, intrinsics)
            loss = depth_loss(found, depth)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            decay = min(0.998, (step + 1) / (step + 10))
            for name, parameter in model.named_parameters():
                average[name].lerp_(parameter.detach(), 1 - decay)
            step += 1
            recent = loss.item() if recent is None else 0.98 * recent + 0.02 * loss.item()
            progress.update(task, completed=step, description=f"depth loss {recent:.4f}")
            if step % CHECKPOINT_EVERY == 0:
                save()
                progress.console.print(f"depth step {step} loss {recent:.4f}")
        save()
    if stopped:
        raise KeyboardInterrupt(stopped[0])
    return time.monotonic() - began


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
    device = generator.device

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, device=device)

    size = config.batch_size
    chosen = torch.randint(len(shown["depth"]), (size,), generator=generator, device=device)
    depth, intrinsics = shown["depth"][chosen].float(), shown["intrinsics"][chosen].float()
    pictures = shown["pictures"][chosen]
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
    return pictures, torch.where(mirrored[:, None, None], depth.flip(-1), depth), intrinsics
