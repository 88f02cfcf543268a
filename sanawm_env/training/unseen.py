"""Training of the network of `engines.sanawm.unseen`, which draws what no picture of a state shows.

The world predicts every chunk of clips from what truly came before it. What is new in a chunk could be otherwise, so
several codes are drawn for it, and their samples are scored together by the energy score (Gneiting and Raftery 2007,
section 4.2): the mean distance to the truth, less half the mean distance between two samples. Its expectation is least
where samples are distributed as the truth is; without the second part all samples would be alike.
"""

import copy
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from itertools import combinations, pairwise
from pathlib import Path
from typing import Annotated, cast

import torch
from pydantic import Field
from rich.progress import track
from torch import Tensor

from sanawm_env.camera.trajectory import chunk_boundaries
from sanawm_env.engines.sanawm.conditions import place_token
from sanawm_env.engines.sanawm.engine import SanaEngine
from sanawm_env.engines.sanawm.network.shortcuts import next_state
from sanawm_env.engines.sanawm.reprojection import Reprojection
from sanawm_env.engines.sanawm.sampler import sample_chunk
from sanawm_env.engines.sanawm.unseen import CODE, UnseenSampler
from sanawm_env.system.settings import check_fields
from sanawm_env.training.clips import Seed, check_codec, load
from sanawm_env.training.network import chunk_context
from sanawm_env.training.probes import linear_codec
from sanawm_env.training.steps import train_steps
from sanawm_env.world.world import World

WEIGHTS = "unseen.safetensors"
TOGETHER = 4  # clips that are predicted at once
LEAST_NEW = 0.02  # of a chunk's cells, for it to be trained on
ALMOST_NONE = 1e-5  # of squared colours, added before the square root, whose slope has no bound at nothing


@dataclass(frozen=True)
class UnseenConfig:
    """One training of the sampler.

    Attributes:
        steps: of the run.
        batch_size: chunks of a step.
        codes: samples of each chunk that are scored together.
        learning_rate: at its highest.
        seed: of the run.

    Raises:
        ValueError: for values out of range.
    """

    steps: Annotated[int, Field(ge=1, le=10**8)] = 5000
    batch_size: Annotated[int, Field(ge=1, le=4096)] = 8
    codes: Annotated[int, Field(ge=2, le=64)] = 3
    learning_rate: Annotated[float, Field(ge=0, le=10)] = 1e-3
    seed: Seed = 0

    def __post_init__(self):
        check_fields(self)


def energy_score(samples: Tensor, truth: Tensor, share: Tensor) -> Tensor:
    """The energy score of samples, of every cell and frame alone and of all together, summed.

    Args:
        samples: (K, B, c, t, h, w), K at least 2, colours of 0..1.
        truth: (B, c, t, h, w).
        share: (B, t, h, w), how much each cell counts.

    Returns:
        (B,).
    """

    def distance(error: Tensor) -> Tensor:
        squares = error.square().sum(-4)
        cells = ((squares + ALMOST_NONE).sqrt() * share).sum((-3, -2, -1)) / 16
        return cells + ((squares * share).sum((-3, -2, -1)) + ALMOST_NONE).sqrt()

    pairs = torch.stack([distance(a - b) for a, b in combinations(samples, 2)])
    return distance(samples - truth).mean(0) - pairs.mean(0) / 2


def train_unseen(config: UnseenConfig, world: World, data: Path, out: Path) -> float:
    """Train the sampler, and leave `unseen.safetensors` in `out`. It continues from the checkpoint there that was made
    with the same weights of the world.

    Ctrl-C and SIGTERM finish the step, save a checkpoint and raise KeyboardInterrupt.

    Args:
        config: of the run.
        world: with reprojection. The sampler is trained on its device.
        data: folder of clips of its codec, made with `pictures`.
        out: folder of the run.

    Returns:
        Seconds of training, over all calls.

    Raises:
        ValueError: for clips of another codec, without images or with nothing new in them, or a checkpoint of another
            run.
    """
    codec = linear_codec(world)
    settings = check_codec(data, codec, pictures=True)
    identity = json.dumps({**asdict(config), "steps": None, "codec": settings["codec"]}, sort_keys=True)
    out.mkdir(parents=True, exist_ok=True)
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(config.seed)
        model = UnseenSampler(codec, cast(SanaEngine, world.engine).config.latents_per_chunk).to(world.device)

    def prepare() -> Callable[[torch.Generator], Tensor]:
        return partial(_score, model, predicted_chunks(world, load(data), model.colours), config)

    checkpoint = out / f"unseen_{world.weights_hash[:12]}.pt"
    return train_steps("unseen", model, prepare, config, checkpoint, out / WEIGHTS, identity, str(world.device))


def _score(model: UnseenSampler, chunks: dict[str, Tensor], config: UnseenConfig, generator: torch.Generator) -> Tensor:
    """Energy score of samples of a batch of chunks, for each new cell."""
    device = generator.device
    chosen = torch.randint(len(chunks["unseen"]), (config.batch_size,), generator=generator, device=device)
    predicted, truth, share = (chunks[name][chosen].float() for name in ("predicted", "truth", "unseen"))
    if torch.rand((), generator=generator, device=device) < 0.5:
        predicted, truth, share = (part.flip(-1) for part in (predicted, truth, share))
    codes = torch.randn(config.codes, len(chosen), CODE, generator=generator, device=device)
    samples = predicted + model.differences(predicted, share, codes)
    return energy_score(samples, truth, share).sum() / share.sum()


@torch.no_grad()
def predicted_chunks(world: World, clips: dict[str, Tensor], colours: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    """What a world predicts of chunks of clips from what came before them, of those that show something new.

    Args:
        world: with reprojection.
        clips: see `clips.generate`; those in random rooms are taken, where nothing is known of a place.
        colours: of latents, see `UnseenSampler.colours`.

    Returns:
        Colours "predicted" and "truth" (N, 3, t, h, w) and "unseen" (N, t, h, w), float16, on the world's device.

    Raises:
        ValueError: where no chunk shows anything new.
    """
    found: dict[str, list[Tensor]] = {"predicted": [], "truth": [], "unseen": []}
    unknown = (clips["place"] < 0).nonzero()[:, 0]
    groups = unknown.split(TOGETHER) if len(unknown) else ()
    for group in track(groups, "predicting clips", transient=True):
        names = "latents", "c2w", "intrinsics", "place", "pictures"
        for *latents, share in _along(world, {name: clips[name][group].to(world.device) for name in names}):
            shown = share.mean((1, 2, 3)) > LEAST_NEW
            for name, part in zip(found, (*map(colours, latents), share), strict=True):
                found[name].append(part[shown].half())
    if not sum(map(len, found["unseen"])):
        raise ValueError("None of the clips shows anything new in a random room: make more of them.")
    return {name: torch.cat(parts) for name, parts in found.items()}


def _along(world: World, clips: dict[str, Tensor]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Predicted latents, true ones and the share that is new, of one chunk of clips after the other."""
    engine, codec, device = cast(SanaEngine, world.engine), linear_codec(world), world.device
    config, reprojection = engine.config, (cast(Reprojection, engine.reprojection), codec)
    place_map = None if engine.place_map is None else copy.deepcopy(engine.place_map).to(device)  # it is in the host's
    latents = clips["latents"].float()
    text = place_token(config.places, None, config.network.caption_channels).to(device).expand(len(latents), -1, -1)
    shown = {**clips, "text": text, "pictures": clips["pictures"][:, 0]}
    generator = torch.Generator(device).manual_seed(0)
    state = last = None
    for j, (a, b) in enumerate(pairwise(chunk_boundaries(latents.shape[2], config.latents_per_chunk))):
        first, truth = j == 0, latents[:, :, a:b]
        context, guess = chunk_context(engine.network, place_map, config, shown, j, last, reprojection)
        assert guess is not None
        noise = torch.randn(truth.shape, generator=generator, device=device)
        start = truth[:, :, :1] if first else None
        predicted, _ = sample_chunk(
            engine.network, noise, context, state, config.sampler, start, (guess.mean, guess.spread)
        )
        state = next_state(engine.network, truth, context, state)
        last = codec.decode(truth[:, :, -1:], first=False)[:, -1]
        new = slice(int(first), None)
        yield predicted[:, :, new], truth[:, :, new], guess.unseen[:, new]
