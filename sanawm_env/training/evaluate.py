"""How good a world of known places is: measured against the renderer on walks that training never saw.

    report = evaluate("nano", scenes=24, seed=0, chunks=8)
    print_table(report)
    save_sheet(report, "truth_vs_predicted.png")

Scene i is a start and a walk in one of the world's places, drawn from the stream (role, seed, i); the world gets
the rendered first frame, its anchor and the poses of the walk. Every `stride`-th frame is measured (4 by default, as in
nano.md). What the numbers mean:

- PSNR is pooled: one mean squared error over all pixels of all measured frames, then decibels (100 for no error). A
  pixel is "visible" if its 3-D point is seen in the first frame, else "unseen"; None where there is no such pixel.
- `ssim` is the mean of `sanawm_env.metrics.image.ssim` (11 x 11 box) over the frames.
- Baselines know the first frame only: it is held, turned (rotation homography), or warped as a plane 3.3 m away.
  `codec` is the reconstruction of the truth, the most the world can reach.
- `swapped_camera_psnr`: scene i driven along the walk of scene i + 1, against the truth of scene i. A world that uses
  its camera is much worse then than in `psnr`. None for a single scene.
- `sign_agreement`, `retrieval9`: from every start, one chunk for each of nine commands (a key held, or none). The
  generated chunk is compared with the renderings of all nine commands by mean squared error: retrieval counts how
  often its own command is the nearest; agreement, over the eight moving ones, how often it is nearer than the
  opposite command.
- `memory`: PSNR from chunk 4 on, when the path is longer than the attention window, with all memory ("kept") and with
  parts of it taken away before every chunk: the recurrent GDN matrices ("no recurrence"), the pages of the attention
  ("no window"), and both ("neither"). None for walks of fewer chunks. `unknown_memory`: the same in layouts that the
  world does not know, where it has nothing else to go by.
- `sharpness`: mean gradient magnitude of the generated luminance over that of the truth. Noise raises it too.
"""

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from os import PathLike
from typing import cast

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from sanawm_env.camera.dsl import KeyState, hold_keys
from sanawm_env.camera.trajectory import relative_to_first
from sanawm_env.engines.rooms.raycast import intrinsics, render
from sanawm_env.engines.sanawm.engine import SanaEngine
from sanawm_env.metrics.image import psnr, ssim
from sanawm_env.system.files import check_count
from sanawm_env.system.saving import replacing
from sanawm_env.system.terminal import literal_console
from sanawm_env.training.probes import linear_codec, without_recurrence, without_window
from sanawm_env.training.truth import Walk, decibels, draw_walk, gradient, known_places
from sanawm_env.training.warps import plane_homographies, rotation_homographies, visible_in_first, warp
from sanawm_env.world.anchor import Anchor
from sanawm_env.world.state import Scene, WorldState, check_seed, stack
from sanawm_env.world.world import World

MOST_WALKS, MOST_CHUNKS = 1_000_000, 10_000
BASELINES = ("hold", "rotation_homography", "plane_warp")
# keys of the camera's action strings; a command and its opposite stand side by side, "still" is the last
COMMANDS = {
    "forward": "w", "back": "s", "strafe right": "l", "strafe left": "j",
    "yaw right": "d", "yaw left": "a", "pitch up": "i", "pitch down": "k", "still": "",
}  # fmt: skip
SHEET_COLUMNS = 8
BEYOND_WINDOW = 4  # the first chunk that the attention window (first and last chunk) does not reach back from
FORGETTING: dict[str, Callable[[WorldState], WorldState]] = {
    "no recurrence": without_recurrence,
    "no window": without_window,
    "neither": lambda state: without_window(without_recurrence(state)),
}


# ---------------------------------------------------------------------------------------------------------- the report


@dataclass(frozen=True)
class Scores:
    """Pooled PSNR in dB; None where there are no such pixels."""

    psnr: float | None
    psnr_visible: float | None
    psnr_unseen: float | None


@dataclass(frozen=True)
class ChunkScores(Scores):
    """One chunk over all scenes. codec: pooled PSNR over all pixels."""

    ssim: float
    baselines: dict[str, Scores]
    codec: float


@dataclass(frozen=True, eq=False)
class Example:
    """One scene at the ends of some chunks, for the sheet: pictures uint8, `chunks` counted from 1."""

    scene: int
    place: str
    start: np.ndarray
    chunks: tuple[int, ...]
    truth: np.ndarray
    predicted: np.ndarray


@dataclass(frozen=True)
class Report:
    """What `evaluate` measured; see the module docstring. None: not measured, or nothing to measure it on."""

    chunks: tuple[ChunkScores, ...]
    swapped_camera_psnr: float | None
    sign_agreement: float | None
    retrieval9: float | None
    memory: dict[str, float] | None
    sharpness: float
    psnr: float
    visible_fraction: tuple[float, ...]
    world: str
    weights_hash: str
    timesteps: tuple[float, ...]
    scenes: int
    seed: int
    stride: int
    unknown: tuple[ChunkScores, ...] | None = None
    unknown_memory: dict[str, float] | None = None
    examples: tuple[Example, ...] = field(default=(), repr=False, compare=False)

    def to_json(self) -> str:
        """All numbers; `chunks` is a list with one object per chunk."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "examples"}
        return json.dumps(values, default=asdict, indent=1)


# --------------------------------------------------------------------------------------------------------- measurement


def evaluate(
    world: World | str | PathLike,
    scenes: int = 24,
    seed: int = 0,
    chunks: int = 8,
    *,
    stride: int = 4,
    timesteps: tuple[float, ...] | None = None,
    unknown_scenes: int = 0,
    ablations: bool = True,
    batch: int = 8,
    examples: int = 4,
    role: str = "evaluate",
) -> Report:
    """Measure a world on `scenes` walks of `chunks` chunks each.

    Args:
        world: a loaded world, or what `World.load` takes. It must know places of `engines.rooms`.
        stride: measure the frames stride, 2 stride, ... of each chunk.
        timesteps: another step list for the sampler; None for the world's own.
        unknown_scenes: also measure that many walks in layouts the world does not know, without anchors (`unknown`).
        ablations: whether to measure swapped cameras, commands and zeroed states, two thirds of the time.
        role: of the walks, see `truth`. batch: scenes that advance together. examples: scenes kept for `save_sheet`.

    Raises ValueError or TypeError in one sentence, before any work.
    """
    for name, value, least, most in (
        ("scenes", scenes, 1, MOST_WALKS), ("chunks", chunks, 1, MOST_CHUNKS), ("stride", stride, 1, MOST_CHUNKS),
        ("batch", batch, 1, MOST_WALKS), ("unknown_scenes", unknown_scenes, 0, MOST_WALKS),
        ("examples", examples, 0, MOST_WALKS),
    ):  # fmt: skip
        check_count(name, value, least, most)
    seed = check_seed(seed)
    world = world if isinstance(world, World) else World.load(world)
    config = world.config
    if stride > config.chunk_frames:
        raise ValueError(f"stride must be at most the {config.chunk_frames} frames of a chunk, got {stride}.")
    known_places(config)
    if timesteps is not None:
        world = with_timesteps(world, timesteps)

    frames = 1 + chunks * config.chunk_frames
    known, unknown, shown = _Sums(), _Sums(), []
    with Progress(transient=True) as progress:
        forgetting = FORGETTING if ablations and chunks >= BEYOND_WINDOW else {}
        steps = (scenes + unknown_scenes) * (2 + len(forgetting)) * chunks
        steps += ablations * scenes * (chunks + len(COMMANDS))
        task = progress.add_task(f"evaluating {config.name}", total=steps)
        study = _Study(world, stride, lambda count: progress.advance(task, count))
        walks = [draw_walk(config, seed, i, frames, known=True, role=role) for i in range(scenes)]
        for group in _groups(scenes, batch):
            truths = study.render([walks[i] for i in group])
            predicted = study.predict(truths, [t.c2w for t in truths])
            known.add(study.compare(truths, predicted))
            shown += [_example(i, t, d) for i, t, d in zip(group, truths, predicted, strict=True) if i < examples]
            if ablations:
                others = [relative_to_first(walks[(i + 1) % scenes].c2w) for i in group]
                known.add({"swapped": _errors(truths, study.predict(truths, others))})
                known.add({"commands": cast(np.ndarray, sum(study.follow_commands(t) for t in truths))})
            known.add(study.forget(truths, forgetting))
        for group in _groups(unknown_scenes, batch):
            truths = study.render([draw_walk(config, seed, i, frames, known=False, role=role) for i in group])
            unknown.add(study.compare(truths, study.predict(truths, [t.c2w for t in truths])))
            unknown.add(study.forget(truths, forgetting))

    agreed, moving, found, asked = known.get("commands", np.ones(4))
    return Report(
        chunks=_chunk_scores(known),
        swapped_camera_psnr=_psnr(known["swapped"]) if ablations and scenes > 1 else None,
        sign_agreement=float(agreed / moving) if ablations else None,
        retrieval9=float(found / asked) if ablations else None,
        memory=_memory(known, forgetting),
        sharpness=float(known["gradient"][0] / known["gradient"][1]),
        psnr=cast(float, _psnr(known["predicted"])),
        visible_fraction=tuple((known["predicted"][:, 0, 1] / known["predicted"][:, :, 1].sum(1)).tolist()),
        world=config.name,
        weights_hash=world.weights_hash,
        timesteps=world.config.sampler.timesteps,
        scenes=int(scenes),
        seed=seed,
        stride=int(stride),
        unknown=_chunk_scores(unknown) if unknown_scenes else None,
        unknown_memory=_memory(unknown, forgetting) if unknown_scenes else None,
        examples=tuple(shown),
    )


def _memory(sums: "_Sums", forgetting: Collection[str]) -> dict[str, float] | None:
    names = {"kept": "predicted"} | {name: name for name in forgetting}
    if not forgetting:
        return None
    return {k: cast(float, _psnr(sums[name][BEYOND_WINDOW - 1 :])) for k, name in names.items()}


def _groups(total: int, size: int) -> list[range]:
    return [range(first, min(first + size, total)) for first in range(0, total, size)]


def with_timesteps(world: World, timesteps: tuple[float, ...]) -> World:
    """The same weights behind another step list; ValueError if it does not decrease within 1000..1."""
    engine = world.engine
    if not isinstance(engine, SanaEngine):
        raise ValueError(f"The {world.config.name} world has no step list to change; leave timesteps out.")
    sampler = replace(engine.config.sampler, timesteps=tuple(timesteps))
    other = SanaEngine(
        replace(engine.config, sampler=sampler), engine.network, engine.codec, engine.device,
        place_map=engine.place_map, reprojection=engine.reprojection, unseen=engine.unseen,
    )  # fmt: skip
    return World(other, world.weights_hash, world.starts)


# ------------------------------------------------------------------------------------------------------- walks, truths


@dataclass(frozen=True, eq=False)
class _Truth:
    """A rendered walk of C chunks, n frames of each measured.

    c2w: (F, 4, 4) relative to frame 0. measured, codec: (C, n, H, W, 3) uint8, truth and its reconstruction; poses:
    (C, n, 4, 4), those of the measured frames. visible: (C, n, H, W) bool.
    """

    walk: Walk
    scene: Scene
    c2w: np.ndarray
    measured: np.ndarray
    codec: np.ndarray
    poses: np.ndarray
    visible: np.ndarray


class _Sums(dict):
    """Arrays added up by name."""

    def add(self, more: dict[str, np.ndarray]) -> None:
        for name, value in more.items():
            self[name] = self.get(name, 0) + value


@dataclass(frozen=True, eq=False)
class _Study:
    """One world, looked at every `stride` frames; `tick` is told how many scene-chunks are done."""

    world: World
    stride: int
    tick: Callable[[int], None]

    def render(self, walks: list[Walk]) -> list[_Truth]:
        return [self._render(walk) for walk in walks]

    def _render(self, walk: Walk) -> _Truth:
        config = self.world.config
        size = config.height, config.width
        pinhole, c2w = intrinsics(*size), relative_to_first(walk.c2w)
        frames, _ = render(walk.place, walk.c2w, pinhole, *size, depth=False)
        codec = linear_codec(self.world)
        coded = codec.decode(codec.encode(torch.from_numpy(frames)[None].to(self.world.device)), first=True)[0]
        chosen = np.arange(1, len(c2w)).reshape(-1, config.chunk_frames)[:, self.stride - 1 :: self.stride]
        # pictures are not needed beside the depth: one ray per pixel will do
        places = walk.c2w[np.concatenate(([0], chosen.ravel()))]
        depth = cast(np.ndarray, render(walk.place, places, pinhole, *size, supersample=1, depth=True)[1])
        visible = visible_in_first(depth[1:], depth[0], c2w[chosen.ravel()], pinhole).reshape(*chosen.shape, *size)
        anchor = Anchor(walk.place.name, walk.c2w[0]) if walk.known else None
        scene = self.world.scene(frames[0], intrinsics=pinhole, anchor=anchor)
        self.tick(len(chosen))
        return _Truth(walk, scene, c2w, frames[chosen], coded.cpu().numpy()[chosen], c2w[chosen], visible)

    def predict(
        self, truths: list[_Truth], paths: list[np.ndarray], edit: Callable[[WorldState], WorldState] = lambda s: s
    ) -> np.ndarray:
        """What the world shows on the way of each path (F, 4, 4): (B, C, n, H, W, 3); `edit` acts before each chunk."""
        state = self.world.begin([t.scene for t in truths], [t.walk.seed for t in truths])
        size = self.world.config.chunk_frames
        poses, seen = np.stack(paths)[:, 1:], []
        for first in range(0, poses.shape[1], size):
            state, clip = self.world.advance(edit(state), poses[:, first : first + size])
            seen.append(clip.frames[:, self.stride - 1 :: self.stride].cpu().numpy())
            self.tick(len(truths))
        return np.stack(seen, axis=1)

    def forget(self, truths: list[_Truth], forgetting: Mapping[str, Callable]) -> dict[str, np.ndarray]:
        """Errors with a part of the memory taken away before every chunk."""
        paths = [t.c2w for t in truths]
        return {name: _errors(truths, self.predict(truths, paths, edit)) for name, edit in forgetting.items()}

    def compare(self, truths: list[_Truth], predicted: np.ndarray) -> dict[str, np.ndarray]:
        """Sums over the scenes, per chunk: errors of the world, the baselines and the codec; SSIM and its count (C, 2);
        gradients (2,) of predicted and rendered frames."""
        guesses = [_baselines(t) for t in truths]
        real = np.stack([t.measured for t in truths])
        pairs = zip(real.reshape(-1, *real.shape[3:]), predicted.reshape(-1, *real.shape[3:]), strict=True)
        similar = np.reshape([ssim(*pair) for pair in pairs], real.shape[:3])
        return {
            "predicted": _errors(truths, predicted),
            "codec": _errors(truths, [t.codec for t in truths]),
            **{name: _errors(truths, [g[name] for g in guesses]) for name in BASELINES},
            "ssim": np.stack((similar.sum((0, 2)), np.full(similar.shape[1], similar[:, 0].size)), axis=-1),
            "gradient": np.array([gradient(predicted), gradient(real)]),
        }

    def follow_commands(self, truth: _Truth) -> np.ndarray:
        """(4,) counts: moving commands told from their opposites, all moving, commands retrieved, all commands."""
        config, walk = self.world.config, truth.walk
        size = config.height, config.width
        poses = np.stack([hold_keys(KeyState(), keys, config.chunk_frames)[1] for keys in COMMANDS.values()])
        # a start is level and 0.7 m clear of everything: keys (at most 0.6 m in a chunk) cannot leave the room from it
        sampled = walk.c2w[0] @ poses[:, self.stride - 1 :: self.stride]
        real = np.stack([render(walk.place, path, intrinsics(*size), *size, depth=False)[0] for path in sampled])
        begun = stack([self.world.begin(truth.scene, walk.seed)] * len(COMMANDS))
        _, clip = self.world.advance(begun, poses)
        made = clip.frames[:, self.stride - 1 :: self.stride].cpu().numpy()
        error = np.stack([np.square(real.astype(np.int32) - clip).mean((1, 2, 3, 4)) for clip in made])
        moving = np.arange(len(COMMANDS) - 1)
        agreed = error[moving, moving] < error[moving, moving ^ 1]
        self.tick(len(COMMANDS))
        return np.array([agreed.sum(), len(moving), (error.argmin(1) == np.arange(len(error))).sum(), len(error)])


def _baselines(truth: _Truth) -> dict[str, np.ndarray]:
    """The warps of the first frame, (C, n, H, W, 3) each."""
    image, pinhole = truth.scene.image, intrinsics(*truth.scene.image.shape[:2])
    poses = truth.poses.reshape(-1, 4, 4)
    return {
        "hold": np.broadcast_to(image, truth.measured.shape),
        "rotation_homography": warp(image, rotation_homographies(poses, pinhole)).reshape(truth.measured.shape),
        "plane_warp": warp(image, plane_homographies(poses, pinhole)).reshape(truth.measured.shape),
    }


def _errors(truths: list[_Truth], shown: np.ndarray | list[np.ndarray]) -> np.ndarray:
    """(C, 2, 2): per chunk, of visible and of unseen pixels, the sum of squared errors and how many values it is of."""
    totals = []
    for truth, frames in zip(truths, shown, strict=True):
        error = np.square(frames.astype(np.int32) - truth.measured).sum(-1)
        masks = np.stack((truth.visible, ~truth.visible), axis=1)  # (C, 2, n, H, W)
        sums = (error[:, None] * masks).sum((2, 3, 4))
        totals.append(np.stack((sums, 3 * masks.sum((2, 3, 4))), axis=-1))
    return np.sum(totals, axis=0)


def _psnr(errors: np.ndarray) -> float | None:
    """Pooled over errors (..., 2): sums and counts."""
    total, count = errors.reshape(-1, 2).sum(0)
    return decibels(total, count) if count else None


def _scores(errors: np.ndarray) -> Scores:
    """Of errors (2, 2): visible, unseen."""
    return Scores(_psnr(errors), _psnr(errors[0]), _psnr(errors[1]))


def _chunk_scores(sums: _Sums) -> tuple[ChunkScores, ...]:
    return tuple(
        ChunkScores(
            **vars(_scores(errors)),
            ssim=float(similar / count),
            baselines={name: _scores(sums[name][j]) for name in BASELINES},
            codec=cast(float, _psnr(sums["codec"][j])),
        )
        for j, (errors, (similar, count)) in enumerate(zip(sums["predicted"], sums["ssim"], strict=True))
    )


# ------------------------------------------------------------------------------------------------------------- showing


def print_table(report: Report, console: Console | None = None) -> None:
    """Print the report's tables with rich."""
    console = console or literal_console()
    console.print(_chunk_table(
        f"{report.world}, {report.scenes} walks of seed {report.seed}, timesteps "
        f"{' '.join(f'{t:g}' for t in report.timesteps)}: pooled PSNR in dB",
        report.chunks,
    ))  # fmt: skip
    if report.unknown:
        console.print(_chunk_table("layouts that the world does not know, without anchors", report.unknown))
    table = Table("over all chunks", "", title_justify="left")
    memories = (("known", report.memory or {}), ("unknown", report.unknown_memory or {}))
    for label, value, unit in (
        ("PSNR", report.psnr, "dB"),
        ("PSNR with another scene's camera", report.swapped_camera_psnr, "dB"),
        *(
            (f"{where} from chunk {BEYOND_WINDOW}, memory: {name}", value, "dB")
            for where, memory in memories
            for name, value in memory.items()
        ),
        ("commanded direction, not the opposite", report.sign_agreement, ""),
        ("right one of nine commands retrieved", report.retrieval9, ""),
        ("sharpness, of truth", report.sharpness, ""),
    ):
        table.add_row(label, _number(value, 3 if not unit else 2) + f" {unit}")
    console.print(table)


def _number(value: float | None, digits: int = 2) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _chunk_table(title: str, chunks: tuple[ChunkScores, ...]) -> Table:
    table = Table(title=title, title_justify="left")
    for name in ("chunk", "all", "visible", "unseen", "SSIM", "hold", "rotation", "plane", "codec"):
        table.add_column(name, justify="right", no_wrap=True)
    for number, c in enumerate(chunks, 1):
        others = c.psnr_visible, c.psnr_unseen, c.ssim, *(c.baselines[name].psnr for name in BASELINES), c.codec
        table.add_row(str(number), Text(_number(c.psnr), "bold"), *map(_number, others))
    return table


def _example(number: int, truth: _Truth, predicted: np.ndarray) -> Example:
    """Last frames of at most SHEET_COLUMNS chunks, evenly spread."""
    chunks = np.linspace(0, len(predicted) - 1, min(len(predicted), SHEET_COLUMNS)).round().astype(int)
    return Example(
        scene=number,
        place=truth.walk.place.name,
        start=truth.scene.image,
        chunks=tuple((chunks + 1).tolist()),
        truth=truth.measured[chunks, -1],
        predicted=predicted[chunks, -1],
    )


def save_sheet(report: Report, path: str | PathLike, scale: int = 2) -> None:
    """Write a PNG of rendered above predicted frames: two rows an example, a column a chunk, enlarged `scale` times.

    Raises ValueError for a report without examples, OSError where the file cannot be written.
    """
    if not report.examples:
        raise ValueError("This report holds no examples to show; evaluate with examples=1 or more.")
    title = f"{report.world}: rendered and predicted, {report.scenes} walks of seed {report.seed}"
    draw_sheet(title, report.examples, path, scale)


def draw_sheet(title: str, examples: Sequence[Example], path: str | PathLike, scale: int = 2) -> None:
    """Write a PNG of examples that have equally many chunks; see `save_sheet`."""
    height, width = (scale * side for side in examples[0].start.shape[:2])
    columns = len(examples[0].chunks)
    margin, gap, label, block_gap, head = 24, 4, 22, 22, 34
    block = 2 * height + gap + label
    left = margin + width + 84
    rows = len(examples) * (block + block_gap) - block_gap
    size = left + columns * (width + gap) - gap + margin, 2 * margin + head + label + rows
    sheet = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(sheet)
    ink, faint = (38, 42, 48), (128, 134, 142)

    def write(x: float, y: float, text: str, size: int = 13, colour: tuple = ink, anchor: str = "la") -> None:
        pen.text((x, y), text, colour, font=ImageFont.load_default(size), anchor=anchor)

    def paste(picture: np.ndarray, x: int, y: int) -> None:
        sheet.paste(Image.fromarray(picture).resize((width, height), Image.Resampling.BICUBIC), (x, y))

    write(margin, margin, title, 18)
    top = margin + head
    for column, chunk in enumerate(examples[0].chunks):
        write(left + column * (width + gap) + width / 2, top, f"end of chunk {chunk}", colour=faint, anchor="ma")
    top += label
    for row, example in enumerate(examples):
        y = top + row * (block + block_gap)
        paste(example.start, margin, y + (height + gap) // 2)
        write(margin, y + (height + gap) // 2 - 18, f"walk {example.scene + 1}, {example.place}")
        write(margin, y + (height + gap) // 2 + height + 4, "start image", colour=faint)
        write(left - 10, y + height / 2, "truth", anchor="rm")
        write(left - 10, y + gap + 1.5 * height, "predicted", anchor="rm")
        for column, (truth, predicted) in enumerate(zip(example.truth, example.predicted, strict=True)):
            x = left + column * (width + gap)
            paste(truth, x, y)
            paste(predicted, x, y + height + gap)
            write(
                x + width / 2, y + 2 * height + gap + 4, f"{psnr(truth, predicted):.1f} dB", colour=faint, anchor="ma"
            )
    with replacing(path) as part:
        sheet.save(part, format="PNG")
