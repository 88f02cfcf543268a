"""The whole way to a nano world, from one recipe: codec, clips, network, and the evaluation of the world on validation
walks.

    run(Recipe(), Path("runs/train"))

Each stage leaves its files in the folder and is skipped when they are there, and each stage continues where it was
stopped. So the same call finishes what a killed one began. `training.json` beside the weights holds recipe, hash of the
data, time, machine and numbers.
"""

import hashlib
import json
import math
import shutil
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from rich.console import Console

from sanawm_env.camera.trajectory import relative_to_first
from sanawm_env.engines.rooms.walks import CHUNK
from sanawm_env.engines.sanawm.codec.patch_pca import LARGEST_STRIDE, PATCH, SPACE_STRIDE, PatchPCACodec, to_patches
from sanawm_env.engines.sanawm.conditions import PLUCKER_CHANNELS
from sanawm_env.engines.sanawm.network.config import SanaWMConfig
from sanawm_env.engines.sanawm.reprojection import reprojection_channels
from sanawm_env.metrics.figures import figure_class
from sanawm_env.system.files import check_count, check_number, explaining, file_sha256, read_json
from sanawm_env.system.saving import only_writer, replacing, write_text
from sanawm_env.system.settings import differences, read
from sanawm_env.system.terminal import literal_console
from sanawm_env.training.clips import (
    STARTS,
    ClipsConfig,
    Footage,
    ViewsConfig,
    generate,
    generate_views,
    load,
    sample_frames_for_codec,
    store,
)
from sanawm_env.training.depth import WEIGHTS, DepthConfig, train_depth
from sanawm_env.training.evaluate import Example, draw_sheet, evaluate, print_table, save_sheet
from sanawm_env.training.footage import measure, print_footage
from sanawm_env.training.nano import NANO, NANO_SMALL, export_world
from sanawm_env.training.network import MAX_SEED, TrainConfig, train_network
from sanawm_env.training.probes import linear_codec
from sanawm_env.training.unseen import UnseenConfig, train_unseen
from sanawm_env.world.folders import world_folder
from sanawm_env.world.world import World

CODEC, CLIPS, VIEWS = "codec.safetensors", "clips", "views"
DEPTH, NETWORK, WORLD = "depth", "network", "world"
MAX_RECIPE_BYTES = 2**20
MAX_NETWORK = 1e10  # numbers in the blocks of a network that is trained here
SIZE = NANO_SMALL.height, NANO_SMALL.width
RECIPE, RECORD, SHEET = "recipe.json", "training.json", "truth_vs_predicted.png"


@dataclass(frozen=True)
class CodecConfig:
    """How the codec is fitted.

    Attributes:
        clips: walks of one chunk to fit it on.
        channels: of its latents.
        stride: pixels of a patch's side.
        unknown_fraction: share of walks in random rooms.
        seed: of the walks.

    Raises:
        ValueError: for values out of range.
    """

    clips: int = 300
    channels: int = 96
    stride: int = SPACE_STRIDE
    unknown_fraction: float = 0.2
    seed: int = 0

    def __post_init__(self):
        for name, least, most in (
            ("clips", 1, 10_000), ("channels", 1, PATCH), ("stride", 1, LARGEST_STRIDE), ("seed", 0, MAX_SEED)
        ):  # fmt: skip
            check_count(name, getattr(self, name), least, most)
        check_number("unknown_fraction", self.unknown_fraction, 0, 1)


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a run.

    Attributes:
        network: sizes of the network; its channels in and out follow the codec and the places.
        codec: how the codec is fitted.
        clips: training data.
        train: training of the network.
        views: single images for the depth network; None for none.
        depth: training of the depth network, of a world that reprojects frames; None for a world that does not.
        unseen: training of what draws the unseen, of a world that reprojects frames; None for one that does not draw.
        from_shipped: whether the network begins from the shipped world's, with its codec unless footage is given. The
            sizes must be equal.
        validation_scenes: walks that the world is evaluated on.

    Raises:
        ValueError: for settings that do not go together, or out of range.
    """

    network: SanaWMConfig = field(default=NANO_SMALL.network)
    codec: CodecConfig = field(default=CodecConfig())
    clips: ClipsConfig = field(default=ClipsConfig())
    train: TrainConfig = field(default=TrainConfig())
    views: ViewsConfig | None = None
    depth: DepthConfig | None = None
    unseen: UnseenConfig | None = None
    from_shipped: bool = False
    validation_scenes: int = 16

    def __post_init__(self):
        check_count("validation_scenes", self.validation_scenes, 1, 10_000)
        if self.depth is not None and not self.clips.pictures:
            raise ValueError("depth is learned from images: set clips.pictures to true")
        if self.views is not None and self.depth is None:
            raise ValueError("views are for learning depth: give the recipe depth too, or no views")
        if self.unseen is not None and self.depth is None:
            raise ValueError("what is unseen is known from depth: give the recipe depth too, or no unseen")
        for side in (self.clips.height, self.clips.width):
            if side % self.codec.stride:
                raise ValueError(
                    f"height and width must be multiples of the codec's stride {self.codec.stride}, got {side}"
                )
        size = self.network.depth * self.network.hidden_size**2 * (8 + 3 * self.network.mlp_ratio)
        if size > MAX_NETWORK:
            raise ValueError(f"a network of some {size:.2g} numbers is too large: lower depth or hidden_size")

    def to_json(self) -> str:
        """The recipe as JSON."""
        return json.dumps(asdict(self), indent=1)

    @classmethod
    def load(cls, path: Path) -> "Recipe":
        """Read what `to_json` wrote, or a part of it.

        Raises:
            FileNotFoundError: where there is no file.
            ValueError: for a file that is no recipe.
        """
        if not path.exists():
            raise FileNotFoundError(f"There is no recipe {path}; a run leaves its own as {RECIPE}.")
        whole = asdict(cls())
        with explaining(f"{path} is not a recipe"):
            given = read_json(path, MAX_RECIPE_BYTES)
            parts = {
                k: whole[k] | v if isinstance(v, dict) and isinstance(whole.get(k), dict) else v
                for k, v in given.items()
            }
            return read(cls, parts)


QUICK = Recipe(
    network=replace(NANO_SMALL.network, hidden_size=64, num_heads=1, depth=2),
    codec=CodecConfig(clips=20),
    clips=ClipsConfig(clips=80, chunks=3, shard_clips=10),
    train=TrainConfig(steps=400, batch_size=4, warmup=20, single_chunk_steps=200, max_chunks=3),
    validation_scenes=2,
)


SHIPPED = Recipe(
    network=NANO.network,
    codec=CodecConfig(clips=220, channels=256, stride=NANO.spatial_stride, unknown_fraction=0.5),
    clips=ClipsConfig(
        clips=4000, unknown_fraction=0.65, shard_clips=20, seed=2, height=NANO.height, width=NANO.width, pictures=True
    ),
    train=TrainConfig(steps=5200, learning_rate=1.2e-3, warmup=40, pure_noise=0.85, single_chunk_steps=100, seed=2),
    views=ViewsConfig(rooms=2000, seed=3),
    depth=DepthConfig(steps=12_000, batch_size=8),
    unseen=UnseenConfig(),
    from_shipped=True,
)
"""On from the shipped world on a CPU: a day of one core."""
OWN = Recipe(
    clips=ClipsConfig(pictures=True),
    depth=DepthConfig(steps=1500, batch_size=8, learning_rate=1e-3),
    train=TrainConfig(
        steps=2000, learning_rate=1.2e-3, warmup=40, pure_noise=0.85, single_chunk_steps=100, forcing_ramp=500
    ),
    from_shipped=True,
)
"""Of one's own clips: on from the shipped world's networks, with a codec that is fitted on the clips."""
ON_GPU = replace(
    SHIPPED,
    clips=replace(SHIPPED.clips, clips=1600, shard_clips=8),
    train=replace(SHIPPED.train, steps=100_000, minutes=2.5, batch_size=192, warmup=100, learning_rate=2e-3),
    views=ViewsConfig(rooms=1000, seed=3),
    depth=DepthConfig(steps=1500, batch_size=128),
    unseen=UnseenConfig(steps=1000, batch_size=64),
    validation_scenes=4,
)
"""The same in six minutes of an H100 with 16 cores beside it (an estimate: clips 80 s, views 25 s, depth 40 s,
network 150 s, unseen 30 s)."""


def run(
    recipe: Recipe,
    out: Path,
    *,
    footage: Callable[[], Iterable[Footage]] | None = None,
    held_out: Callable[[], Iterable[Footage]] | None = None,
    processes: int = 1,
    device: str = "cpu",
    machine: str = "",
    console: Console | None = None,
) -> Path:
    """Make a world in `out / "world"`.

    Args:
        recipe: of the run.
        out: folder of the run.
        footage: returns clips of your own, at the nano world's size, in place of walks. The world then knows no places,
            takes its field of view from the clips, and is not compared with a renderer.
        held_out: returns clips that are not trained on, to evaluate the world on.
        processes, device: see `train_network`; each process takes a batch of its own.
        machine: its name, for the record.
        console: for progress.

    Returns:
        The folder of the world.

    Raises:
        ValueError: where `out` holds a run of another recipe, or the recipe does not fit the footage.
        BlockingIOError: while another process trains there.
        KeyboardInterrupt: after Ctrl-C or SIGTERM; everything is kept.
    """
    figure_class()  # what the end needs is looked for before the work
    if footage is not None and (recipe.views is not None or (recipe.clips.height, recipe.clips.width) != SIZE):
        raise ValueError("Your own clips have 64 x 96 pixels and no views: train on them with the default recipe.")
    out.mkdir(parents=True, exist_ok=True)
    with only_writer(out):
        return _run(recipe, out, footage, held_out, processes, device, machine, console or literal_console())


def _run(
    recipe: Recipe, out: Path, footage: Callable[[], Iterable[Footage]] | None,
    held_out: Callable[[], Iterable[Footage]] | None, processes: int, device: str, machine: str, console: Console,
) -> Path:  # fmt: skip
    _keep_recipe(recipe, out / RECIPE)
    if recipe.from_shipped and footage is None and not (out / CODEC).exists():
        with replacing(out / CODEC) as part:
            shutil.copyfile(world_folder("nano") / CODEC, part)
    if not (out / CODEC).exists():
        with console.status("fitting the codec"):
            fitted = PatchPCACodec.fit(_patches(recipe, footage, processes), recipe.codec.channels, device)
        with replacing(out / CODEC) as part:
            fitted.save(part)
    codec = PatchPCACodec.load(out / CODEC)
    if footage is None:
        generate(out / CLIPS, codec, recipe.clips, workers=processes, device=device)
    elif not (out / CLIPS).exists():
        store(out / CLIPS, codec, footage(), recipe.clips)

    channels, name, places = NANO_SMALL.network.plucker_channels, NANO_SMALL.name, NANO_SMALL.places
    network = replace(recipe.network, latent_channels=recipe.codec.channels)
    if footage is not None:
        channels, name, places = PLUCKER_CHANNELS, out.name, {}
        network = replace(network, caption_channels=1)
    if recipe.depth is not None:
        channels += reprojection_channels(recipe.codec.channels)
    config = replace(
        NANO_SMALL, name=name, network=replace(network, plucker_channels=channels), places=places,
        height=recipe.clips.height, width=recipe.clips.width, spatial_stride=recipe.codec.stride,
        reprojection=recipe.depth is not None,
    )  # fmt: skip
    if footage is not None:
        own = load(out / CLIPS, ["intrinsics"])["intrinsics"][:, 0].median().item()
        fov = math.degrees(2 * math.atan(config.width / 2 / own))
        reach = replace(config.workspace, soft_distance=16, hard_distance=64)  # its clips may lead anywhere
        config = replace(config, horizontal_fov=round(fov, 3), workspace=reach)
    trainers = processes if device == "cpu" and not recipe.train.minutes else 1  # a GPU is fullest with one
    if recipe.views is not None:
        size = {"height": recipe.clips.height, "width": recipe.clips.width, "stride": recipe.codec.stride}
        generate_views(out / VIEWS, replace(recipe.views, **size), workers=processes)
    if recipe.depth is not None:
        views = None if recipe.views is None else out / VIEWS
        begin_from = world_folder("nano") / WEIGHTS if footage is not None and recipe.from_shipped else None
        train_depth(
            recipe.depth, codec, out / CLIPS, out / DEPTH, views=views, begin_from=begin_from, device=device
        )  # fmt: skip
    seconds = train_network(
        config, recipe.train, codec.cpu(), out / CLIPS, out / NETWORK, processes=trainers, device=device,
        begin_from=world_folder("nano") if recipe.from_shipped else None,
        reprojection=out / DEPTH / WEIGHTS if recipe.depth is not None else None,
    )  # fmt: skip

    exported = {"run": out / NETWORK, "codec": out / CODEC, "out": out / WORLD, "starts": out / CLIPS / STARTS}
    export_world(config, **exported)
    if recipe.unseen is not None:
        train_unseen(recipe.unseen, World.load(out / WORLD, device=device), out / CLIPS, out / NETWORK)
        export_world(replace(config, unseen=True, temperature=NANO.temperature), **exported)
    record = {
        "recipe": asdict(recipe), "data": data_hash(out / CLIPS), "training_seconds": round(seconds),
        "machine": machine, "processes": trainers, "device": device, "torch": torch.__version__,
    }  # fmt: skip
    if footage is None:
        report = evaluate(World.load(out / WORLD, device=device), recipe.validation_scenes, role="validation")
        print_table(report, console)
        save_sheet(report, out / SHEET)
        record["validation"] = json.loads(report.to_json())
    elif held_out is not None:
        found = measure(World.load(out / WORLD), list(held_out()), recipe.clips.chunks)
        print_footage(found, console)
        draw_sheet("held-out clips: true above, predicted below", found.examples, out / SHEET)
        record["validation"] = found.to_plain()
    else:
        draw_sheet(
            "footage above, predicted below", _predicted(World.load(out / WORLD), load(out / CLIPS)), out / SHEET
        )
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
            other = differences(asdict(kept), asdict(longer))
            raise ValueError(f"{path.parent} holds a run of another recipe: {other}. Use another folder.")
        if recipe == kept:
            return  # it may be what was given, and say less
    write_text(path, recipe.to_json() + "\n")


def _patches(recipe: Recipe, footage: Callable[[], Iterable[Footage]] | None, processes: int) -> torch.Tensor:
    config, size = recipe.codec, (recipe.clips.height, recipe.clips.width)
    if footage is None:
        return sample_frames_for_codec(
            config.clips, config.seed, stride=config.stride, size=size, unknown_fraction=config.unknown_fraction,
            workers=processes,
        )  # fmt: skip
    patches, piece = [], CHUNK * recipe.clips.chunks
    for clip in footage():
        for first in range(0, len(clip.frames) - CHUNK, piece):  # a chunk of each piece
            frames = torch.from_numpy(clip.frames[first : first + 1 + CHUNK])
            patches.append(to_patches(frames[None], config.stride).flatten(0, 3))
        if len(patches) >= config.clips:
            break
    return torch.cat(patches)


def _predicted(world: World, clips: dict[str, torch.Tensor], count: int = 4) -> list[Example]:
    """The first pieces of the footage, as the codec shows them, and what the world predicts from their first frames."""
    examples, codec, size = [], linear_codec(world), world.config.chunk_frames
    for latents, c2w, pinhole in zip(clips["latents"][:count], clips["c2w"].numpy(), clips["intrinsics"], strict=False):
        frames = codec.decode(latents[None].float(), first=True)[0].numpy()
        c2w = relative_to_first(c2w.astype(np.float64))
        state = world.begin(world.scene(frames[0], intrinsics=pinhole.numpy()), seed=0)
        chunks, predicted = range(size, len(frames), size), []
        for end in chunks:
            state, clip = world.advance(state, c2w[end - size + 1 : end + 1])
            predicted.append(clip.frames[0, -1].numpy())
        numbers = tuple(end // size for end in chunks)
        examples.append(
            Example(len(examples), "footage", frames[0], numbers, frames[list(chunks)], np.stack(predicted))
        )
    return examples


def data_hash(clips: Path) -> str:
    """SHA-256 over the shards."""
    digest = hashlib.sha256()
    for path in sorted(clips.glob("shard_*.safetensors")):
        digest.update(bytes.fromhex(file_sha256(path)))
    return digest.hexdigest()
