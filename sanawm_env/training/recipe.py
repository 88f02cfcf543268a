"""The whole way to a nano world, from one recipe: codec, clips, network, and the world measured on validation walks.

    run(Recipe(), Path("runs/train"))

Each stage leaves its files in the folder and is skipped when they are there, and inside a stage work goes on where it
was stopped, so the same call finishes what a killed one began. Beside the weights stands `training.json`: recipe, hash
of the data, time, machine, numbers.
"""

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from rich.console import Console

from sanawm_env.camera.trajectory import relative_to_first
from sanawm_env.engines.sanawm.codec.patch_pca import PATCH, PatchPCACodec, to_patches
from sanawm_env.engines.sanawm.conditions import PLUCKER_CHANNELS
from sanawm_env.engines.sanawm.network.config import SanaWMConfig
from sanawm_env.metrics.figures import figure_class
from sanawm_env.training.clips import ClipsConfig, Footage, generate, load, sample_frames_for_codec, store
from sanawm_env.training.evaluate import Example, draw_sheet, evaluate, print_table, save_sheet
from sanawm_env.training.nano import NANO, export_world
from sanawm_env.training.network import MAX_SEED, TrainConfig, train_network
from sanawm_env.training.probes import linear_codec
from sanawm_env.world.files import check_count, read_json, reason
from sanawm_env.world.reading import read
from sanawm_env.world.saving import only_writer, replacing, write_text
from sanawm_env.world.terminal import literal_console
from sanawm_env.world.world import World

CODEC, CLIPS, NETWORK, WORLD = "codec.safetensors", "clips", "network", "world"
MAX_RECIPE_BYTES = 2**20
MAX_NETWORK = 1e10  # numbers in the blocks of a network that is trained here
RECIPE, RECORD, SHEET = "recipe.json", "training.json", "truth_vs_dream.png"


@dataclass(frozen=True)
class CodecConfig:
    """The codec is fitted on `clips` walks of one chunk."""

    clips: int = 300
    channels: int = 96
    seed: int = 0

    def __post_init__(self):
        for name, least, most in (("clips", 1, 10_000), ("channels", 1, PATCH), ("seed", 0, MAX_SEED)):
            check_count(name, getattr(self, name), least, most)


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a run. The network's sizes; its channels in and out follow the codec and the places."""

    network: SanaWMConfig = field(default=NANO.network)
    codec: CodecConfig = field(default=CodecConfig())
    clips: ClipsConfig = field(default=ClipsConfig())
    train: TrainConfig = field(default=TrainConfig())
    validation_scenes: int = 16

    def __post_init__(self):
        check_count("validation_scenes", self.validation_scenes, 1, 10_000)
        size = self.network.depth * self.network.hidden_size**2 * (8 + 3 * self.network.mlp_ratio)
        if size > MAX_NETWORK:
            raise ValueError(f"a network of some {size:.2g} numbers is too large: lower depth or hidden_size")

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1)

    @classmethod
    def load(cls, path: Path) -> "Recipe":
        """Read what `to_json` wrote, or a part of it; FileNotFoundError or ValueError in one sentence."""
        if not path.exists():
            raise FileNotFoundError(f"There is no recipe {path}; a run leaves its own as {RECIPE}.")
        whole = asdict(cls())
        try:
            given = read_json(path, MAX_RECIPE_BYTES)
            parts = {
                k: whole[k] | v if isinstance(v, dict) and isinstance(whole.get(k), dict) else v
                for k, v in given.items()
            }
            return read(cls, parts)
        except ValueError as error:
            raise ValueError(f"{path} is not a recipe: {reason(error)}.") from error


QUICK = Recipe(
    network=replace(NANO.network, hidden_size=64, num_heads=1, depth=2),
    codec=CodecConfig(clips=20),
    clips=ClipsConfig(clips=80, chunks=3, shard_clips=10),
    train=TrainConfig(steps=400, batch_size=4, warmup=20, single_chunk_steps=200, max_chunks=3),
    validation_scenes=2,
)


def run(
    recipe: Recipe,
    out: Path,
    *,
    footage: Callable[[], Iterable[Footage]] | None = None,
    processes: int = 1,
    device: str = "cpu",
    machine: str = "",
    console: Console | None = None,
) -> Path:
    """Make a world in `out / "world"` and return that folder.

    footage: gives one's own clips, at the nano world's picture size, instead of walks through the places; the world
        then knows no places, and is not measured against a renderer.
    processes, device: see `train_network`; each process takes a batch of its own. machine: its name, for the record.

    Raises ValueError when `out` holds a run of another recipe; BlockingIOError while another process trains there;
    KeyboardInterrupt after Ctrl-C or SIGTERM, with everything kept.
    """
    figure_class()  # what the end needs is looked for before the work
    out.mkdir(parents=True, exist_ok=True)
    with only_writer(out):
        return _run(recipe, out, footage, processes, device, machine, console or literal_console())


def _run(
    recipe: Recipe, out: Path, footage: Callable[[], Iterable[Footage]] | None, processes: int, device: str,
    machine: str, console: Console,
) -> Path:  # fmt: skip
    _keep_recipe(recipe, out / RECIPE)
    if not (out / CODEC).exists():
        with console.status("fitting the codec"):
            fitted = PatchPCACodec.fit(_patches(recipe.codec, footage), recipe.codec.channels)
        with replacing(out / CODEC) as part:
            fitted.save(part)
    codec = PatchPCACodec.load(out / CODEC)
    if footage is None:
        generate(out / CLIPS, codec, recipe.clips, workers=processes)
    elif not (out / CLIPS).exists():
        store(out / CLIPS, codec, footage(), recipe.clips)

    network = replace(recipe.network, latent_channels=recipe.codec.channels)
    config = replace(NANO, network=network)
    if footage is not None:
        network = replace(network, caption_channels=1, plucker_channels=PLUCKER_CHANNELS)
        config = replace(NANO, name=out.name, network=network, places={})
    trainers = processes if device == "cpu" else 1  # a GPU is fullest with one
    seconds = train_network(config, recipe.train, codec, out / CLIPS, out / NETWORK, processes=trainers, device=device)

    export_world(config, out / NETWORK, out / CODEC, out / WORLD)
    record = {
        "recipe": asdict(recipe), "data": data_hash(out / CLIPS), "training_seconds": round(seconds),
        "machine": machine, "processes": trainers, "device": device, "torch": torch.__version__,
    }  # fmt: skip
    if footage is None:
        report = evaluate(out / WORLD, recipe.validation_scenes, role="validation")
        print_table(report, console)
        save_sheet(report, out / SHEET)
        record["validation"] = json.loads(report.to_json())
    else:
        draw_sheet("footage and dream", _dreams(World.load(out / WORLD), load(out / CLIPS)), out / SHEET)
    write_text(out / WORLD / RECORD, json.dumps(record, indent=1) + "\n")
    return out / WORLD


def _keep_recipe(recipe: Recipe, path: Path) -> None:
    """Write the recipe, or check that the one there is the same but for its length."""
    if path.exists():
        kept = Recipe.load(path)
        longer = replace(
            recipe, train=replace(recipe.train, steps=kept.train.steps),
            clips=replace(recipe.clips, clips=kept.clips.clips), validation_scenes=kept.validation_scenes,
        )  # fmt: skip
        if longer != kept:
            raise ValueError(f"{path.parent} holds a run of another recipe (see {path.name}): use another folder.")
        if recipe == kept:
            return  # it may be what was given, and say less
    write_text(path, recipe.to_json() + "\n")


def _patches(config: CodecConfig, footage: Callable[[], Iterable[Footage]] | None) -> torch.Tensor:
    if footage is None:
        return sample_frames_for_codec(config.clips, config.seed)
    patches = []
    for clip, _ in zip(footage(), range(config.clips), strict=False):
        whole = 1 + (len(clip.frames) - 1) // 8 * 8
        patches.append(to_patches(torch.from_numpy(clip.frames[:whole])[None]).flatten(0, 3))
    return torch.cat(patches)


def _dreams(world: World, clips: dict[str, torch.Tensor], count: int = 4) -> list[Example]:
    """The first pieces of the footage, as the codec shows them, beside what the world makes of their first pictures."""
    examples, codec, size = [], linear_codec(world), world.config.chunk_frames
    for latents, c2w, lens in zip(clips["latents"][:count], clips["c2w"].numpy(), clips["intrinsics"], strict=False):
        frames = codec.decode(latents[None].float(), first=True)[0].numpy()
        c2w = relative_to_first(c2w.astype(np.float64))
        state = world.begin(world.scene(frames[0], intrinsics=lens.numpy()), seed=0)
        chunks, dream = range(size, len(frames), size), []
        for end in chunks:
            state, clip = world.advance(state, c2w[end - size + 1 : end + 1])
            dream.append(clip.frames[0, -1].numpy())
        numbers = tuple(end // size for end in chunks)
        examples.append(Example(len(examples), "footage", frames[0], numbers, frames[list(chunks)], np.stack(dream)))
    return examples


def data_hash(clips: Path) -> str:
    """SHA-256 over the shards."""
    digest = hashlib.sha256()
    for path in sorted(clips.glob("shard_*.safetensors")):
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
