"""Training of the nano world's network: streaming flow matching on encoded walks, then on its own predictions.

Each step goes through a batch of clips chunk by chunk, as the sampler will. A noisy pass predicts the chunk's latents
from the state, and a clean pass writes the next state. The clean pass reads the true latents or, with a probability
that rises over the run, the model's own prediction (self forcing, Huang et al. 2025), so that the network sees its own
errors. Most samples start from pure noise, because the sampler does. The loss is the error of the v-prediction, with
channels weighted so that it counts pixels. Recipe: nano.md, section 3.
"""

import json
import os
import shutil
import time
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated, cast

import torch
from pydantic import Field
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors.torch import load_file
from torch import Tensor

from sanawm_env.camera.trajectory import chunk_boundaries
from sanawm_env.engines.rooms.walks import CHUNK
from sanawm_env.engines.sanawm.codec.patch_pca import LATENT_STD, PatchPCACodec
from sanawm_env.engines.sanawm.conditions import camera_inputs, place_token
from sanawm_env.engines.sanawm.config import SanaWorldConfig
from sanawm_env.engines.sanawm.network.context import Context
from sanawm_env.engines.sanawm.network.model import SanaWM
from sanawm_env.engines.sanawm.network.place_map import PlaceMap
from sanawm_env.engines.sanawm.reprojection import Guess, Reprojection
from sanawm_env.engines.sanawm.sampler import data_from_v, v_target
from sanawm_env.kernels.inputs import Grid
from sanawm_env.metrics.figures import figure_class
from sanawm_env.system.files import file_sha256
from sanawm_env.system.saving import Scratch, replacing
from sanawm_env.system.settings import check_fields, differences
from sanawm_env.system.signals import on_stop
from sanawm_env.training.clips import MAX_SEED as MAX_SEED
from sanawm_env.training.clips import Seed, Share, check_codec, load
from sanawm_env.training.initial import begun_from, parts_of, untrained
from sanawm_env.world.state import save_whole

CHECKPOINT_EVERY, CHECKPOINT_SECONDS = 100, 240  # whichever comes first
# glibc's allocator in the processes that train: giving large blocks back and taking them anew costs a tenth of the time
KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": "8589934592", "MALLOC_TRIM_THRESHOLD_": "17179869184"}
STEADY = "checkpoint_steady.pt"  # before the learning rate fell: where a longer run goes on


@dataclass(frozen=True)
class TrainConfig:
    """One training run. The learning rate warms up, stays, and falls linearly to zero over the last `decay` of the run
    (Hu et al. 2024, MiniCPM), so a run can be made longer: `steps` is not part of its identity.

    After `single_chunk_steps`, every other step goes through 2 to `max_chunks` chunks, with as many clips in the batch
    as cost no more than three single chunks.

    Raises:
        ValueError: for values out of range.
    """

    steps: Annotated[int, Field(ge=1, le=10**8)] = 5200
    minutes: Annotated[float, Field(ge=0, le=10**6)] = (
        0.0  # that the run may take at most, in one process; 0 for as long as its steps take
    )
    batch_size: Annotated[int, Field(ge=1, le=4096)] = 6  # single chunks, in each process
    learning_rate: Annotated[float, Field(ge=0, le=10)] = 2e-3
    weight_decay: Annotated[float, Field(ge=0, le=10)] = 0.01
    place_rate: Annotated[float, Field(ge=0, le=1000)] = 4.0  # learning rate of the place map over that of the network
    warmup: Annotated[int, Field(ge=1, le=10**8)] = 100
    decay: Annotated[float, Field(ge=1e-6, le=1)] = 0.2
    ema: Share = 0.998
    pure_noise: Share = 0.8  # of the samples start from noise alone, where the sampler does
    single_chunk_steps: Annotated[int, Field(ge=0, le=10**8)] = 700
    max_chunks: Annotated[int, Field(ge=1, le=1000)] = 6
    self_forcing: Share = 0.8  # final probability of the model's own output as context, after `forcing_ramp` more steps
    forcing_ramp: Annotated[int, Field(ge=1, le=10**8)] = 1000
    context_noise: Share = 0.1
    anchor_dropout: Share = 0.2
    bf16: bool = True  # products in bfloat16, weights and sums in float32
    seed: Seed = 0

    def __post_init__(self):
        check_fields(self)


def chunk_context(
    model: SanaWM,
    place_map: PlaceMap | None,
    config: SanaWorldConfig,
    clips: dict[str, Tensor],
    chunk: int,
    last: Tensor | None,
    reprojection: tuple[Reprojection, PatchPCACodec] | None,
) -> tuple[Context, Guess | None]:
    """What the network reads of a chunk of clips, and the first guess at it.

    Args:
        model: the network.
        place_map: of a world that knows places, or None.
        config: of the world.
        clips: c2w (B, F, 4, 4), intrinsics (B, 4), place (B,) and text (B, L, C); with `reprojection` also pictures (B,
            H, W, 3), the frames 0. All on the network's device.
        chunk: its number.
        last: (B, H, W, 3) uint8, the frames before it; None in the first.
        reprojection: the depth network and the codec, or None.
    """
    c2w, intrinsics, place, n = clips["c2w"], clips["intrinsics"], clips["place"], config.latents_per_chunk
    first, before = chunk == 0, CHUNK * chunk
    poses, guess = c2w[:, before + 1 : before + 1 + CHUNK], None
    camera, plucker = camera_inputs(config, place_map, c2w[:, 0], poses, intrinsics, c2w[:, 0], place, first=first)
    if reprojection is not None:
        seen_from = c2w[:, 0], c2w[:, before], poses, intrinsics
        guess = reprojection[0](reprojection[1], clips["pictures"], last, *seen_from, place >= 0)
        plucker = torch.cat((plucker, guess.channels), dim=1)
    grid = Grid(n + first, config.latent_height, config.latent_width)
    index = torch.full_like(place, 0 if first else 1 + n * chunk)
    return model.prepare(grid, index, text=clips["text"], camera=camera, plucker=plucker), guess


def clip_loss(
    model: SanaWM,
    place_map: PlaceMap | None,
    config: SanaWorldConfig,
    train: TrainConfig,
    batch: dict[str, Tensor],
    pixel_weights: Tensor,
    chunks: int,
    self_forcing: float,
    generator: torch.Generator,
    reprojection: tuple[Reprojection, PatchPCACodec] | None = None,
) -> Tensor:
    """Mean loss of a batch of clips; see the module docstring.

    Args:
        model: the network.
        place_map: of a world that knows places, or None.
        config: of the world.
        train: of the run.
        batch: latents (B, c, T, h, w), c2w (B, F, 4, 4) and intrinsics (B, 4), float32; place (B,) int64; with
            `reprojection` also pictures (B, H, W, 3) uint8, the frames 0.
        pixel_weights: of the channels.
        chunks: to go through.
        self_forcing: probability that the clean pass reads the prediction.
        generator: on the device of the weights.
        reprojection: the depth network and the codec, or None.

    Returns:
        A scalar.
    """

    device = pixel_weights.device

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, device=device)

    def normal(x: Tensor) -> Tensor:
        return torch.randn(x.shape, generator=generator, device=device)

    batch = {name: tensor.to(device) for name, tensor in batch.items()}
    latents = batch["latents"]
    size = len(latents)
    place = torch.where(uniform(size) >= train.anchor_dropout, batch["place"], -1)
    known = list(config.places)
    names = [known[p] if p >= 0 else None for p in place.tolist()]
    text = torch.stack([place_token(config.places, name, config.network.caption_channels) for name in names]).to(device)
    shown = {**batch, "place": place, "text": text}
    state, losses, last = None, [], None
    boundaries = chunk_boundaries(1 + config.latents_per_chunk * chunks, config.latents_per_chunk)
    for j, (a, b) in enumerate(pairwise(boundaries)):
        first, mean, spread = j == 0, 0.0, 1.0
        context, guess = chunk_context(model, place_map, config, shown, j, last, reprojection)
        if guess is not None:
            mean, spread = guess.mean.float(), guess.spread
        truth = latents[:, :, a:b]
        target = (truth - mean) / spread  # what the network predicts
        pure = uniform(size) < train.pure_noise
        sigma = torch.where(pure, 1.0, uniform(size).clamp(min=0.02))
        levels = sigma[:, None].repeat(1, b - a)
        if first:
            levels[:, 0] = 0
        mix = levels[:, None, :, None, None]
        noise = normal(target)
        noisy = (1 - mix) * target + mix * noise
        v = model(noisy, levels * 1000, context, state)[0].float()
        error = ((v - v_target(target, noise, mix)) * spread / LATENT_STD).square().mean((3, 4))
        losses.append(((error * pixel_weights[:, None]).mean(1) * (levels > 0)).sum() / (levels > 0).sum())
        if j + 1 < chunks:
            own = (pure & (uniform(size) < self_forcing))[:, None, None, None, None] & (mix > 0)
            spoilt = truth + train.context_noise * LATENT_STD * uniform(size, 1, 1, 1, 1) * normal(target) * (mix > 0)
            clean = torch.where(own, mean + spread * data_from_v(noisy, v.detach(), mix), spoilt)
            if reprojection is not None:
                last = reprojection[1].decode(clean[:, :, -1:], first=False)[:, -1]
            _, state = model(clean, torch.zeros(size, device=device), context, state, save=True)
    return torch.stack(losses).mean()


def train_network(
    config: SanaWorldConfig,
    train: TrainConfig,
    codec: PatchPCACodec,
    data: Path,
    out: Path,
    *,
    processes: int = 1,
    device: str = "cpu",
    begin_from: Path | None = None,
    reprojection: Path | None = None,
) -> float:
    """Train a network, and leave its weights (EMA, float16) and `loss.png` in `out`. It continues from
    `out/checkpoint.pt`.

    Ctrl-C and SIGTERM finish the step, save a checkpoint and raise KeyboardInterrupt. The samples of a step depend on
    the seed, the step and the number of processes alone.

    Args:
        config: of the world.
        train: of the run.
        codec: of the clips.
        data: folder of the clips.
        out: folder of the run.
        processes: on a CPU, processes of one thread each take a batch of their own and average gradients. One per core
            is faster than threads for a network this small.
        device: of the weights.
        begin_from: folder of a world to begin from (`initial.begun_from`); None for new weights.
        reprojection: weights of `engines.sanawm.reprojection`, for a world that has it. They are not trained here.

    Returns:
        Seconds of training, over all calls.

    Raises:
        FileNotFoundError: without clips.
        ValueError: for clips of another codec, or a checkpoint of another run.
        ImportError: without matplotlib.
    """
    figure_class()  # what the end needs is looked for before the work
    if train.minutes and processes > 1:
        raise ValueError("A run that is given minutes takes one process: leave out minutes, or set processes to 1.")
    settings = check_codec(data, codec)
    out.mkdir(parents=True, exist_ok=True)
    parts = {  # neither the length nor the folder: both may be others later
        "train": {**asdict(train), "steps": None, "minutes": None}, "world": {**asdict(config), "name": None},
        "clips": settings,
    }  # fmt: skip
    if begin_from is not None:
        parts["begin_from"] = file_sha256(begin_from / "network.safetensors")
    identity = json.dumps({**parts, "processes": processes}, sort_keys=True)
    saved = read_checkpoint(out / "checkpoint.pt", identity)
    if saved is not None and saved["step"] >= train.steps:
        return saved["seconds"]
    steady = read_checkpoint(out / STEADY, identity)
    if saved is not None and steady is not None and steady["step"] < saved["step"] <= _falls_from(train):
        _copy(out / STEADY, out / "checkpoint.pt")  # a run made longer: its learning rate should not fall yet
    job = config, train, codec, data, out, identity, torch.device(device), begin_from, reprojection
    if processes == 1:
        _train(0, 1, "", job)
        return cast(dict, read_checkpoint(out / "checkpoint.pt", identity))["seconds"]
    os.environ.update(KEEP_MEMORY)
    stopped: list[int] = []
    with Scratch("sanawm-train-") as folder, on_stop(stopped.append):
        workers = torch.multiprocessing.spawn(_train, (processes, f"file://{folder}/meet", job), processes, join=False)
        told = False
        try:
            while not workers.join(timeout=1):
                if stopped and not told:
                    told = True
                    for process in workers.processes:
                        process.terminate()
        except torch.multiprocessing.ProcessExitedException as error:
            if not stopped:  # one that had not begun its first step ends at once
                raise ChildProcessError(
                    f"A training process has died ({error}): run the same command again to continue."
                ) from error
    if stopped:
        raise KeyboardInterrupt(stopped[0])
    return cast(dict, read_checkpoint(out / "checkpoint.pt", identity))["seconds"]


def _falls_from(train: TrainConfig) -> int:
    """The step from which the learning rate falls."""
    return round((1 - train.decay) * train.steps)


def _copy(source: Path, target: Path) -> None:
    with replacing(target) as part:
        shutil.copyfile(source, part)


def read_checkpoint(path: Path, identity: str) -> dict | None:
    """A checkpoint, or None where there is none.

    Args:
        path: of the checkpoint.
        identity: settings of the run, as JSON, which the checkpoint holds too.

    Raises:
        ValueError: for a checkpoint of another run.
    """
    if not path.exists():
        return None
    saved = torch.load(path, weights_only=True)
    if saved["identity"] != identity:
        other = differences(json.loads(saved["identity"]), json.loads(identity))
        raise ValueError(f"{path} belongs to another run: {other}. Use another folder.")
    return saved


def _train(rank: int, processes: int, meeting: str, job: tuple) -> None:
    """The work of one process. All processes take the same steps; the first one writes the files."""
    config, train, codec, data, out, identity, device, begin_from, reprojection = job
    if device.type == "cpu":
        torch.set_num_threads(1)
    if processes > 1:
        torch.distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=processes)
    clips = load(data)
    if device.type != "cpu":
        clips = {name: tensor.to(device) for name, tensor in clips.items()}
    model = untrained(config, torch.Generator().manual_seed(train.seed))
    if begin_from is not None:
        begun_from(model, begin_from, None if config.places else codec)
    model, codec, pictures = model.to(device), codec.to(device), None
    if config.reprojection:
        pictures = Reprojection()
        pictures.load_state_dict(load_file(reprojection))
        pictures = pictures.to(device).eval().requires_grad_(False), codec
    average = {name: p.detach().clone() for name, p in model.named_parameters()}
    groups = [
        {"params": list(part.parameters()), "rate": rate * train.learning_rate, "weight_decay": decay}
        for part, rate, decay in zip(parts_of(model), (1.0, train.place_rate), (train.weight_decay, 0.0), strict=True)
        if part is not None
    ]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98), fused=True)
    step, history, seconds = 0, [], 0.0
    saved = read_checkpoint(out / "checkpoint.pt", identity)
    if saved is not None:
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        average = {name: value.to(device) for name, value in saved["average"].items()}
        step, history, seconds = saved["step"], saved["history"], saved["seconds"]
    began = time.monotonic() - seconds

    def save() -> None:
        if rank:
            return
        parts = {
            "model": model.state_dict(), "optimizer": optimizer.state_dict(), "average": average,
            "step": step, "history": history, "seconds": time.monotonic() - began, "identity": identity,
        }  # fmt: skip
        with replacing(out / "checkpoint.pt") as part:
            try:
                torch.save(parts, part)
            except RuntimeError as error:  # which is what torch makes of a full disk
                raise OSError(str(error).splitlines()[0]) from error
        weights = {name: value.half().cpu().contiguous() for name, value in (model.state_dict() | average).items()}
        if config.reprojection:
            _copy(reprojection, out / "reprojection.safetensors")
        for part in model:
            prefix = part + "."
            own = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
            save_whole(own, out / f"{part}.safetensors")
        _plot(history, out / "loss.png")

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    stopped: list[int] = []
    at_once = processes == 1
    with on_stop(stopped.append, at_once=at_once), Progress(*columns, disable=rank > 0) as progress:
        task = progress.add_task("training", total=train.steps, completed=step)
        agreed, kept_at = False, time.monotonic()
        every = CHECKPOINT_EVERY if device.type == "cpu" else 10 * CHECKPOINT_EVERY
        while step < train.steps and not agreed:
            parts = model, optimizer, config, train, clips, codec, pictures
            elapsed = (time.monotonic() - began) / (60 * train.minutes) if train.minutes else 0.0
            if elapsed >= 1:
                break
            loss, agreed = _step(*parts, step, rank, processes, stopped, elapsed)
            decay = min(train.ema, (step + 1) / (step + 10))
            for name, parameter in model.named_parameters():
                average[name].lerp_(parameter.detach(), 1 - decay)
            history.append(loss)
            step += 1
            recent = sum(history[-100:]) / len(history[-100:])
            progress.update(task, completed=step, description=f"loss {recent:.4f}")
            if step == _falls_from(train):
                save()
                if rank == 0:
                    _copy(out / "checkpoint.pt", out / STEADY)
            elif step % every == 0 or time.monotonic() - kept_at > CHECKPOINT_SECONDS:
                save()
                kept_at = time.monotonic()
                if rank == 0:
                    progress.console.print(f"step {step} loss {recent:.4f}")
        save()
    if processes > 1:
        torch.distributed.destroy_process_group()
    elif agreed:
        raise KeyboardInterrupt(*stopped[:1])


def _step(
    model: torch.nn.ModuleDict, optimizer: torch.optim.Optimizer, config: SanaWorldConfig, train: TrainConfig,
    clips: dict[str, Tensor], codec: PatchPCACodec, reprojection: tuple[Reprojection, PatchPCACodec] | None,
    step: int, rank: int, processes: int, stopped: list, elapsed: float = 0.0,
) -> tuple[float, bool]:  # fmt: skip
    """One step: the loss, and whether any process was asked to stop before it. elapsed: share of the given minutes
    that is over."""
    generator = torch.Generator().manual_seed(train.seed * 1_000_003 + step * processes + rank)
    falling = (1 - max(step / train.steps, elapsed)) / train.decay
    for group in optimizer.param_groups:
        group["lr"] = group["rate"] * min(1.0, (step + 1) / train.warmup, falling)
    available = (clips["latents"].shape[2] - 1) // config.latents_per_chunk
    chunks, size = 1, train.batch_size
    if step >= train.single_chunk_steps and step % 2:
        longest = min(train.max_chunks, available)
        chunks = 2 + step // 2 % (longest - 1) if longest > 1 else 1
        size = max(2, round(3 * size / (2 * chunks - 1)))
    batch = draw(clips, size, chunks, config, generator)
    if clips["latents"].device.type != "cpu":  # numbers for large batches are drawn where they are needed
        generator = torch.Generator(clips["latents"].device).manual_seed(generator.initial_seed())
    self_forcing = train.self_forcing * min(1.0, max(0, step - train.single_chunk_steps) / train.forcing_ramp)
    weights = codec.pixel_weights
    with torch.autocast(weights.device.type, torch.bfloat16, enabled=train.bf16):
        loss = clip_loss(*parts_of(model), config, train, batch, weights, chunks, self_forcing, generator, reprojection)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    stop = bool(stopped)
    if processes > 1:
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        # the wish to stop travels with the gradients, so that all processes stop after the same step
        flat = torch.cat([g.flatten() for g in gradients] + [gradients[0].new_tensor([float(stop)])]) / processes
        torch.distributed.all_reduce(flat)
        stop = flat[-1].item() > 0
        for own, mean in zip(gradients, flat[:-1].split([g.numel() for g in gradients]), strict=True):
            own.copy_(mean.view_as(own))
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return loss.item(), stop


def draw(
    clips: dict[str, Tensor], size: int, chunks: int, config: SanaWorldConfig, generator: torch.Generator
) -> dict[str, Tensor]:
    """A batch of pieces of clips, each beginning at any chunk of any walk.

    Args:
        clips: see `clips.generate`.
        size: of the batch.
        chunks: of a piece.
        config: of the world.
        generator: that draws.
    """
    available = (clips["latents"].shape[2] - 1) // config.latents_per_chunk
    walks = torch.randint(len(clips["place"]), (size,), generator=generator)
    begins = torch.randint(available - chunks + 1, (size,), generator=generator).tolist()
    latents, c2w = [], []
    for walk, begin in zip(walks.tolist(), begins, strict=True):
        a, b = (1 + config.latents_per_chunk * chunk for chunk in (begin, begin + chunks))
        latents.append(torch.cat((clips["images"][walk, begin, :, None], clips["latents"][walk, :, a:b]), dim=1))
        c2w.append(clips["c2w"][walk, CHUNK * begin : CHUNK * (begin + chunks) + 1])
    still = {name: clips[name][walks] for name in ("intrinsics", "place")}
    if config.reprojection:
        still["pictures"] = clips["pictures"][walks, torch.tensor(begins)]
    return {"latents": torch.stack(latents).float(), "c2w": torch.stack(c2w), **still}


def _plot(history: list[float], path: Path) -> None:
    window = max(1, len(history) // 200)
    smooth = [sum(history[i : i + window]) / window for i in range(0, len(history) - window + 1, window)]
    figure = figure_class()((6, 3), layout="constrained")
    axes = figure.add_subplot()
    axes.semilogy([window * (i + 1) for i in range(len(smooth))], smooth)
    axes.set(xlabel="step", ylabel="loss", title="nano network")
    with replacing(path) as part:
        figure.savefig(part, dpi=120)
