"""All that a nano world is held to, measured in one go, at its own size and shrunk to 64 x 96.

    numbers = measure("runs/train/world", Path("runs/bars"), scenes=16)
    print_bars(numbers)

Each part leaves its numbers in a file of the folder and is skipped when it is there for the same weights, walks and
seeds, so a measurement that was stopped goes on. `BARS` says what is demanded; what is missed is printed as well.

- "known", "unknown": walks in the world's places, and in rooms it has never seen, without an anchor. PSNR is pooled per
  chunk over every fourth frame, of all pixels, of those that the first frame shows and of others; plane: the first
  frame warped as a plane 3.3 m away. sharpness: gradients over those of the truth. codec: reconstruction of chunk 1.
- "closure": rooms it has never seen, out for half of the chunks and back on the same path: the way back against the
  world's own pictures of the way out, and the last frame against the first.
- "camera": poses recovered from the pixels of such rooms (`align.track`), medians over walks of the mean errors.
- "seeds": two seeds against each other in such rooms, on pixels that the first frame shows and others; also with other
  step lists.
- "two_sample": a small network learns to tell crops of rendered frames from crops of predicted ones on half the walks;
  its accuracy on the other half (Lopez-Paz and Oquab 2017, classifier two-sample tests): 0.5 where it cannot. Of the
  world as it is, with other step lists, and of the codec's reconstruction of the same frames.
- "cost": core-seconds of a chunk, bytes of weights and of a state.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import track as progress
from rich.table import Table
from torch import Tensor, nn

from sanawm_env.camera.trajectory import relative_to_first
from sanawm_env.engines.rooms.raycast import HEIGHT, WIDTH, intrinsics, render
from sanawm_env.engines.sanawm.engine import SanaEngine
from sanawm_env.metrics.pose import evaluate as pose_errors
from sanawm_env.system.files import check_count, read_json
from sanawm_env.system.saving import write_text
from sanawm_env.system.terminal import literal_console
from sanawm_env.training.align import track
from sanawm_env.training.evaluate import with_timesteps
from sanawm_env.training.probes import POSE_INTERVAL, TRACKED, linear_codec, roll
from sanawm_env.training.truth import Walk, decibels, draw_walk, gradient, known_places, pooled_psnr, shrink
from sanawm_env.training.warps import plane_homographies, visible_in_first, warp
from sanawm_env.world.folders import world_folder
from sanawm_env.world.state import check_seed
from sanawm_env.world.world import World

STRIDE = 4  # frames between those that are measured
TOGETHER = 4  # walks in a batch
OTHER_STEPS = ((1000.0, 750.0, 500.0, 250.0),)
CROPS, LEARNING_STEPS = 8, 300  # of the two-sample test: crops of a frame, steps of its network
MAX_NUMBERS_BYTES = 2**24

BARS: tuple[tuple[str, str, str, float], ...] = (
    ("known places, chunk 1, 64 x 96", "known.small.psnr.0", ">=", 25),
    ("known places, chunk 4, 64 x 96", "known.small.psnr.3", ">=", 25),
    ("known places, chunk 8, 64 x 96", "known.small.psnr.7", ">=", 24),
    ("known places, sharpness, at least", "known.full.sharpness", ">=", 0.85),
    ("known places, sharpness, at most", "known.full.sharpness", "<=", 1.1),
    ("codec, known places", "known.full.codec", ">=", 29),
    ("unknown rooms, chunk 1, over the plane", "unknown.small.over_plane.0", ">=", 0.5),
    ("unknown rooms, chunk 4, over the plane", "unknown.small.over_plane.3", ">=", 3),
    ("unknown rooms, chunk 8, over the plane", "unknown.small.over_plane.7", ">=", 3),
    ("unknown rooms, chunk 8, 64 x 96", "unknown.small.psnr.7", ">=", 20),
    ("unknown rooms, sharpness", "unknown.full.sharpness", ">=", 0.75),
    ("unknown rooms, out and back", "closure.way_back", ">=", 22),
    ("unknown rooms, rotation from pixels, degrees", "camera.predicted.rot_err_deg", "<=", 3),
    ("unknown rooms, place from pixels, m", "camera.predicted.trans_err", "<=", 0.2),
    ("two seeds, unseen", "seeds.unseen", "<=", 28),
    ("two seeds, seen", "seeds.visible", ">=", 32),
    ("seconds of a chunk on one core", "cost.seconds", "<=", 0.25),
    ("weights, MB", "cost.weights_mb", "<=", 20),
    ("state, MB", "cost.state_mb", "<=", 10),
)
"""What is demanded: said in words, where it stands in the numbers, and the bound."""


def measure(
    world: World | str | PathLike,
    out: Path,
    scenes: int = 16,
    seed: int = 0,
    chunks: int = 8,
    *,
    role: str = "test",
    parts: Sequence[str] | None = None,
) -> dict[str, Any]:
    """All numbers, which are also written to `out / "bars.json"`.

    Args:
        scenes: walks in known places, and as many in unknown rooms, each of `chunks` chunks.
        role: "test" for the record, "validation" for decisions; see `truth`.
        parts: some of them only.

    Raises ValueError or TypeError in one sentence, before any work.
    """
    for name, value, least in (("scenes", scenes, 2), ("chunks", chunks, 2)):
        check_count(name, value, least, 10_000)
    seed, names = check_seed(seed), tuple(PARTS) if parts is None else tuple(parts)
    if unknown := [name for name in names if name not in PARTS]:
        raise ValueError(f"{unknown[0]!r} is no part of the measurement: it has {', '.join(PARTS)}.")
    loaded = world if isinstance(world, World) else World.load(world)
    known_places(loaded.config)
    if loaded.config.height * WIDTH != loaded.config.width * HEIGHT or loaded.config.height % HEIGHT:
        raise ValueError(f"The pictures of {loaded.config.name} must be whole multiples of {HEIGHT} x {WIDTH}.")
    out.mkdir(parents=True, exist_ok=True)
    made_with = {
        "world": loaded.config.name, "weights_hash": loaded.weights_hash, "scenes": scenes, "seed": seed,
        "chunks": chunks, "role": role,
    }  # fmt: skip
    source = None if isinstance(world, World) else world_folder(world)
    numbers: dict[str, Any] = {"made_with": made_with}
    for name in names:
        file = out / f"{name}.json"
        if file.exists() and (kept := read_json(file, MAX_NUMBERS_BYTES)).get("made_with") == made_with:
            numbers[name] = kept["numbers"]
            continue
        numbers[name] = PARTS[name](_Task(loaded, scenes, seed, chunks, role, source))
        write_text(file, json.dumps({"made_with": made_with, "numbers": numbers[name]}, indent=1) + "\n")
    numbers["bars"] = judge(numbers)
    write_text(out / "bars.json", json.dumps(numbers, indent=1) + "\n")
    return numbers


def judge(numbers: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Each bar with the value it is held against, None where that was not measured, and whether it is met."""
    judged = []
    for said, where, sign, bound in BARS:
        value: Any = numbers
        for key in where.split("."):
            entries = value if isinstance(value, Mapping) else dict(enumerate(value or ()))
            value = entries.get(int(key) if key.isdigit() else key)
        met = None if value is None else value >= bound if sign == ">=" else value <= bound
        judged.append({"bar": said, "value": value, "bound": f"{sign} {bound}", "met": met})
    return judged


def print_bars(numbers: Mapping[str, Any], console: Console | None = None) -> None:
    """The bars as a table, and how well predictions are told from renderings."""
    table = Table("bar", "value", "demanded", "met", title_justify="left")
    for bar in numbers["bars"]:
        value, met = bar["value"], bar["met"]
        cells = "–" if value is None else f"{value:.2f}", bar["bound"], {None: "–", True: "yes", False: "no"}[met]
        table.add_row(bar["bar"], *cells)
    console = console or literal_console()
    console.print(table)
    if "two_sample" in numbers:
        accuracies = Table("told from renderings", "accuracy", title_justify="left")
        for name, accuracy in numbers["two_sample"].items():
            accuracies.add_row(name, f"{accuracy:.2f}")
        console.print(accuracies)


class _Task:
    """What every part is given: the world, and which walks."""

    def __init__(self, world: World, scenes: int, seed: int, chunks: int, role: str, folder: Path | None):
        self.world, self.scenes, self.seed, self.chunks, self.role = world, scenes, seed, chunks, role
        self.folder, self.config = folder, world.config
        self.size = world.config.height, world.config.width
        self.times = world.config.height // HEIGHT

    def walks(self, known: bool = False, chunks: int | None = None) -> list[Walk]:
        frames = 1 + (chunks or self.chunks) * self.config.chunk_frames
        return [draw_walk(self.config, self.seed, i, frames, known, self.role) for i in range(self.scenes)]

    def groups(self, walks: list[Walk], said: str) -> Any:
        found = [walks[i : i + TOGETHER] for i in range(0, len(walks), TOGETHER)]
        return progress(found, said, transient=True)

    def render(self, walk: Walk, c2w: np.ndarray) -> np.ndarray:
        return render(walk.place, c2w, intrinsics(*self.size), *self.size, depth=False)[0]

    def visible(self, walk: Walk, chosen: np.ndarray) -> np.ndarray:
        """(n, 64, 96) bool: which pixels of frames `chosen` the first frame shows."""
        small, relative = (HEIGHT, WIDTH), relative_to_first(walk.c2w)
        c2w = walk.c2w[np.concatenate(([0], chosen))]
        depth = render(walk.place, c2w, intrinsics(*small), *small, supersample=1)[1]
        assert depth is not None
        return visible_in_first(depth[1:], depth[0], relative[chosen], intrinsics(*small))


# ------------------------------------------------------------------------------------------------------------ the parts


def _along_walks(task: _Task, known: bool) -> dict[str, Any]:
    n, sums = task.config.chunk_frames, {"full": np.zeros((task.chunks, 3)), "small": np.zeros((task.chunks, 7))}
    slopes, coded = {"full": np.zeros(2), "small": np.zeros(2)}, np.zeros(2)
    codec = linear_codec(task.world)
    for group in task.groups(task.walks(known), "known places" if known else "unknown rooms"):
        predictions = roll(task.world, group, [walk.c2w for walk in group])
        for walk, predicted in zip(group, predictions, strict=True):
            chosen = np.arange(STRIDE, len(walk.c2w), STRIDE)
            first = task.render(walk, walk.c2w[: n + 1])
            shown = codec.decode(codec.encode(torch.from_numpy(first)[None].to(task.world.device)), first=True)
            coded += np.square(shown[0, 1:].cpu().numpy() - first[1:].astype(np.float64)).sum(), first[1:].size
            real, made = task.render(walk, walk.c2w[chosen]), predicted[chosen - 1]
            relative, seen = relative_to_first(walk.c2w)[chosen], task.visible(walk, chosen)
            for name, times in (("full", 1), ("small", task.times)):
                truth, guess, start = (shrink(part, times) for part in (real, made, first[0]))
                pinhole = intrinsics(*truth.shape[1:3])
                plane = warp(start, plane_homographies(relative, pinhole))
                error, other = (np.square(part.astype(np.int32) - truth) for part in (guess, plane))
                rows = [error.sum((1, 2, 3)), other.sum((1, 2, 3)), np.full(len(chosen), truth[0].size)]
                if name == "small":
                    for mask in (seen, ~seen):
                        rows += [(error.sum(-1) * mask).sum((1, 2)), 3 * mask.sum((1, 2))]
                sums[name] += np.stack(rows, axis=-1).reshape(task.chunks, n // STRIDE, -1).sum(1)
                slopes[name] += gradient(guess), gradient(truth)
    found: dict[str, Any] = {}
    for name, total in sums.items():
        psnr, plane = _decibels(total[:, 0], total[:, 2]), _decibels(total[:, 1], total[:, 2])
        over = 10 * np.log10(total[:, 1].clip(min=1) / total[:, 0].clip(min=1))
        found[name] = {
            "psnr": psnr, "plane": plane, "over_plane": over.tolist(),
            "sharpness": float(slopes[name][0] / slopes[name][1]),
        }  # fmt: skip
    small = sums["small"]
    found["small"] |= {"visible": _decibels(small[:, 3], small[:, 4]), "unseen": _decibels(small[:, 5], small[:, 6])}
    found["full"]["codec"] = _decibels(coded[:1], coded[1:])[0]
    return found


def _closure(task: _Task) -> dict[str, float]:
    n = task.config.chunk_frames * (task.chunks // 2)
    ways, lasts = [], []
    for group in task.groups(task.walks(chunks=task.chunks // 2), "out and back"):
        paths = [np.concatenate((walk.c2w, walk.c2w[:-1][::-1])) for walk in group]
        for walk, predicted in zip(group, roll(task.world, group, paths), strict=True):
            small, first = shrink(predicted, task.times), shrink(walk.first_frame(task.config), task.times)
            # frame n of the way out is where the way back begins; its first frame again is the start image
            ways.append((small[n:-1], small[: n - 1][::-1]))
            lasts.append((small[-1], first))
    back, out = (np.stack(part)[:, STRIDE - 1 :: STRIDE] for part in zip(*ways, strict=True))
    return {"way_back": pooled_psnr(back, out), "last_to_first": pooled_psnr(*map(np.stack, zip(*lasts, strict=True)))}


def _camera(task: _Task) -> dict[str, Any]:
    found: dict[str, list] = {"predicted": [], "truth": [], "still": []}
    small = HEIGHT, WIDTH
    for group in task.groups(task.walks(chunks=min(task.chunks, 4)), "poses from pixels"):
        for walk, predicted in zip(group, roll(task.world, group, [walk.c2w for walk in group]), strict=True):
            sampled = walk.c2w[::TRACKED]
            made = predicted[TRACKED - 1 :: TRACKED]
            real = render(walk.place, sampled[1:], intrinsics(*small), *small, depth=False)[0]
            for name, poses in (
                ("predicted", track(walk.place, made, walk.c2w[0], known=False)),
                ("truth", track(walk.place, real, walk.c2w[0], known=False)),
                ("still", np.repeat(sampled[:1], len(sampled) - 1, axis=0)),
            ):
                compared = np.concatenate((sampled[:1], poses))[:: POSE_INTERVAL // TRACKED]
                found[name].append(pose_errors(walk.c2w, compared, POSE_INTERVAL))
    return {
        name: {field: float(np.median([getattr(e, field) for e in errors])) for field in ("rot_err_deg", "trans_err")}
        for name, errors in found.items()
    }


def _other_steps(world: World) -> dict[str, World]:
    """The same weights behind other step lists, by name; none where there is no such list."""
    if not isinstance(world.engine, SanaEngine):
        return {}
    return {_named(other): other for other in (with_timesteps(world, steps) for steps in OTHER_STEPS)}


def _named(world: World) -> str:
    return "predicted, timesteps " + " ".join(f"{t:g}" for t in world.config.sampler.timesteps)


def _seeds(task: _Task) -> dict[str, Any]:
    others = {name: _two_seeds(task, world) for name, world in _other_steps(task.world).items()}
    return {**_two_seeds(task, task.world), "other_steps": others}


def _two_seeds(task: _Task, world: World) -> dict[str, float | None]:
    sums = np.zeros((2, 2))
    for group in task.groups(task.walks(), "two seeds"):
        paths = [walk.c2w for walk in group]
        one = roll(world, group, paths)
        two = roll(world, [replace(walk, seed=walk.seed ^ 1) for walk in group], paths)
        for walk, a, b in zip(group, one, two, strict=True):
            chosen = np.arange(STRIDE, len(walk.c2w), STRIDE)
            pair = (shrink(part[chosen - 1], task.times).astype(np.int32) for part in (a, b))
            error, seen = np.square(np.subtract(*pair)).sum(-1), task.visible(walk, chosen)
            sums += [[error[seen].sum(), 3 * seen.sum()], [error[~seen].sum(), 3 * (~seen).sum()]]
    return dict(zip(("visible", "unseen"), _decibels(sums[:, 0], sums[:, 1]), strict=True))


def _two_sample(task: _Task) -> dict[str, float]:
    n, walks = task.config.chunk_frames, task.walks()
    last = np.arange(n * (task.chunks - 1), n * task.chunks + 1)  # of the last chunk, and the frame before it
    chosen = last[1:][STRIDE - 1 :: STRIDE]
    real, coded = [], []
    codec = linear_codec(task.world)
    for walk in progress(walks, "rendering", transient=True):
        frames = task.render(walk, walk.c2w[last])
        shown = codec.decode(codec.encode(torch.from_numpy(frames)[None].to(task.world.device)), first=True)[0]
        real.append(frames[chosen - last[0]])
        coded.append(shown.cpu().numpy()[chosen - last[0]])
    accuracies = {"the codec's reconstruction": told_apart(np.stack(real), np.stack(coded))}
    for name, world in {_named(task.world): task.world, **_other_steps(task.world)}.items():
        made = []
        for group in task.groups(walks, "predicting"):
            made += [predicted[chosen - 1] for predicted in roll(world, group, [walk.c2w for walk in group])]
        accuracies[name] = told_apart(np.stack(real), np.stack(made))
    return accuracies


def told_apart(real: np.ndarray, made: np.ndarray, seed: int = 0) -> float:
    """Accuracy with which a small network tells crops of pictures (N, n, H, W, 3) uint8 apart on walks N / 2 onwards,
    having learned it on those before."""
    generator = torch.Generator().manual_seed(seed)
    side = 3 * real.shape[2] // 8

    def crops(pictures: np.ndarray) -> Tensor:
        flat = torch.from_numpy(pictures).flatten(0, 1).permute(0, 3, 1, 2).float() / 127.5 - 1
        rows, columns = (
            torch.randint(size - side + 1, (len(flat), CROPS), generator=generator) for size in flat.shape[2:]
        )
        return torch.stack([
            picture[:, r : r + side, c : c + side]
            for picture, *places in zip(flat, rows.tolist(), columns.tolist(), strict=True)
            for r, c in zip(*places, strict=True)
        ])  # fmt: skip

    half = len(real) // 2
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        layers: list[nn.Module] = []
        for width, wider, stride in ((3, 32, 1), (32, 48, 2), (48, 64, 2)):
            layers += [nn.Conv2d(width, wider, 3, stride, padding=1), nn.BatchNorm2d(wider), nn.ReLU()]
        network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 1))
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=0.05)
    parts = [(crops(a), crops(b)) for a, b in ((real[:half], made[:half]), (real[half:], made[half:]))]
    learned = parts[0]
    with torch.enable_grad():
        for _ in range(LEARNING_STEPS):
            picked = [part[torch.randint(len(part), (32,), generator=generator)] for part in learned]
            said = network(torch.cat(picked))[:, 0]
            wanted = torch.cat((torch.ones(32), torch.zeros(32)))
            loss = F.binary_cross_entropy_with_logits(said, wanted)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    network.eval()
    with torch.no_grad():
        right = [(network(parts[1][0]) > 0).float().mean(), (network(parts[1][1]) <= 0).float().mean()]
    return float(sum(right) / 2)


def _cost(task: _Task) -> dict[str, float]:
    walk = task.walks(True)[0]
    scene = task.world.scene(walk.first_frame(task.config), intrinsics=intrinsics(*task.size))
    state, n, seconds = task.world.begin(scene, seed=0), task.config.chunk_frames, []
    poses = relative_to_first(walk.c2w)[1:]
    for first in range(0, len(poses), n):
        began = time.process_time()
        state, _ = task.world.advance(state, poses[first : first + n])
        seconds.append(time.process_time() - began)
    found = {"seconds": float(np.median(seconds)), "state_mb": state.nbytes / 1e6}
    if task.folder is not None:
        found["weights_mb"] = sum(file.stat().st_size for file in task.folder.glob("*.safetensors")) / 1e6
    return found


PARTS: dict[str, Callable[[_Task], dict[str, Any]]] = {
    "known": lambda task: _along_walks(task, True),
    "unknown": lambda task: _along_walks(task, False),
    "closure": _closure,
    "seeds": _seeds,
    "cost": _cost,
    "two_sample": _two_sample,
    "camera": _camera,
}


def _decibels(errors: np.ndarray, counts: np.ndarray) -> list[float | None]:
    """Pooled PSNR of sums of squared errors over as many values; None for none, 100 for no error."""
    pairs = zip(errors.tolist(), counts.tolist(), strict=True)
    return [decibels(error, count) if count else None for error, count in pairs]
