"""Does drift predict failure? The measure of change that needs no truth, against the error that does.

    python benchmarks/drift_meter.py            # a minute or two of one core; walks that are done are kept

`metrics.lasting.drift` says how far the look of a walk has moved from its start image. Here the truth is known, so the
same walks are predicted and rendered, 24 of eight chunks, in places that nano knows and in rooms that nobody
has trained on. Error is what is missing in dB (PSNR, pooled over every fourth frame) and in SSIM, at equal poses. What
else could be told without a truth stands beside: how many chunks have passed, how far the camera is from its start. And
the drift of the truth itself along the same path, which is no fault of the prediction.

Correlations are Spearman's and Pearson's. Chunks of a walk are not independent, so that 95 % intervals are percentiles
over 2,000 draws of whole walks.
"""

from collections.abc import Callable
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import console, header, kept, numbers_file, parser, plot, plot_file, show, write
from numpy.typing import NDArray
from rich.progress import track
from sanawm_env.agents.compare import anchors_of
from scipy import stats

from sanawm_env import World
from sanawm_env.camera.intrinsics import intrinsics_from_fov
from sanawm_env.camera.trajectory import relative_to_first
from sanawm_env.engines.rooms.places import place
from sanawm_env.engines.rooms.raycast import render
from sanawm_env.engines.rooms.walks import sample_path
from sanawm_env.metrics.image import ssim
from sanawm_env.metrics.lasting import drift
from sanawm_env.training.truth import pooled_psnr
from sanawm_env.world.state import stack

WALKS, CHUNKS, BATCH, STRIDE, SEED = 24, 8, 8, 4, 2030
PLACES = ("known", "rooms:test")
METERS = {
    "drift": "drift", "age": "chunks passed", "away": "metres from the start", "true_drift": "drift of the truth",
}  # fmt: skip
ERRORS = {"psnr_loss": "PSNR lost", "ssim_loss": "SSIM lost"}
DRAWS = 2000

Values = dict[str, NDArray]  # of each measure, (walks, chunks) or (walks, 1)


def walk(world: World, where: str, numbers: range, chunks: int) -> dict[str, dict[str, list]]:
    """Every measure of these walks, predicted in one batch: (walks, chunks) of chunks, and (walks, 1) of wholes."""
    config = world.config
    size, frames = (config.height, config.width), config.chunk_frames
    anchors = [anchors_of(where, config, World.load("rooms").config, 1, SEED + i)[0] for i in numbers]
    scenes, paths, real = [], [], []
    for i, anchor in zip(numbers, anchors, strict=True):
        rng, here = np.random.default_rng([SEED, i]), place(anchor.place)
        path = sample_path(here, anchor.c2w, rng, 1 + chunks * frames)
        seen = np.concatenate([path[:1], path[STRIDE::STRIDE]])
        shown = render(here, seen, intrinsics_from_fov(config.horizontal_fov, *size[::-1]), *size, depth=False)[0]
        known = anchor if config.knows(anchor.place) else None
        scenes.append(world.scene(shown[0], anchor=known))
        paths.append(relative_to_first(path))
        real.append(shown)
    poses, true = np.stack(paths), np.stack(real)
    state, made = stack(world.begin([scene], [i]) for scene, i in zip(scenes, numbers, strict=True)), [true[:, :1]]
    for chunk in range(chunks):
        state, clip = world.advance(state, poses[:, 1 + chunk * frames : 1 + (chunk + 1) * frames])
        made.append(clip.frames[:, STRIDE - 1 :: STRIDE].cpu().numpy())
    predicted, ends, n = np.concatenate(made, axis=1), poses[:, frames::frames, :3, 3], frames // STRIDE
    parts = [slice(1 + chunk * n, 1 + (chunk + 1) * n) for chunk in range(chunks)]
    away = np.linalg.norm(ends, axis=-1)
    single = measures(predicted, true, parts) | {
        "age": np.tile(np.arange(1, chunks + 1.0), (len(away), 1)),
        "away": away,
    }
    whole = measures(predicted, true, [slice(1, None)]) | {"away": away[:, -1:]}
    return {kind: {name: v.tolist() for name, v in of.items()} for kind, of in (("chunk", single), ("walk", whole))}


def measures(predicted: NDArray, true: NDArray, parts: list[slice]) -> Values:
    """Drift of both, and errors, of these parts of walks (walks, frames, H, W, 3); drift is from the start image on."""

    def each(measure: Callable[[NDArray, NDArray], float]) -> NDArray:
        return np.array([[measure(d[part], t[part]) for part in parts] for d, t in zip(predicted, true, strict=True)])

    def drifts(frames: NDArray) -> NDArray:
        return np.array([[drift(np.concatenate([own[:1], own[part]])) for part in parts] for own in frames])

    return {
        "drift": drifts(predicted),
        "true_drift": drifts(true),
        "psnr_loss": -each(pooled_psnr),
        "ssim_loss": 1 - each(lambda d, t: float(np.mean([ssim(a, b) for a, b in zip(d, t, strict=True)]))),
    }


def correlation(meter: NDArray, error: NDArray, draws: int = DRAWS) -> dict[str, dict[str, float]]:
    """Spearman's and Pearson's of two measures (walks, n), with intervals over draws of walks."""
    rng, found = np.random.default_rng(0), {}
    chosen = [np.arange(len(meter)), *(rng.integers(len(meter), size=len(meter)) for _ in range(draws))]
    for name, ranked in (("spearman", True), ("pearson", False)):
        values = []
        for rows in chosen:
            pair = [stats.rankdata(of[rows]) if ranked else of[rows].ravel() for of in (meter, error)]
            values.append(float(np.corrcoef(pair[0], pair[1])[0, 1]))
        low, high = np.nanpercentile(values[1:], [2.5, 97.5])  # nothing, where a draw has one value
        found[name] = {"r": values[0], "low": float(low), "high": float(high)}
    return found


def correlations(values: dict[str, dict[str, Values]]) -> list[dict[str, Any]]:
    """A row for each place, kind (chunk or walk), meter and error."""
    return [
        {"place": where, "of": kind, "meter": meter, "error": error}
        | correlation(np.array(of[meter]), np.array(of[error]))
        for where, kinds in values.items()
        for kind, of in kinds.items()
        for error in ERRORS
        for meter in METERS
        if meter in of
    ]


def draw(values: dict[str, dict[str, Values]], file: Path) -> None:
    """Error over drift, a dot for every chunk."""
    with plot(file, 1, len(values), size=(4.2 * len(values), 3.4)) as axes:
        for panel, (where, kinds) in zip(axes, values.items(), strict=True):
            of = {name: np.array(value) for name, value in kinds["chunk"].items()}
            dots = panel.scatter(of["drift"], -of["psnr_loss"], c=of["age"], s=9, cmap="viridis")
            panel.set(title=where, xlabel="drift, doublings")
        axes[0].set_ylabel("PSNR of the chunk against the truth, dB")
        axes[0].figure.colorbar(dots, ax=axes[-1], label="chunk")


def main() -> None:
    options = parser(__doc__).parse_args()
    torch.set_num_threads(1)
    world, count, chunks = World.load("nano"), *((4, 2) if options.quick else (WALKS, CHUNKS))
    folder = (
        Path("runs/drift_meter") / f"{world.weights_hash[:8]}_{sha256(repr((chunks, SEED)).encode()).hexdigest()[:8]}"
    )
    values: dict[str, dict[str, Values]] = {}
    for where in PLACES:
        batches = []
        for first in track(range(0, count, BATCH), f"walks, {where}", console=console):
            numbers = range(first, min(first + BATCH, count))
            file = folder / f"{where.replace(':', '_')}_{numbers.start}_{numbers.stop}.json"
            batches.append(kept(file, partial(walk, world, where, numbers, chunks)))
        values[where] = {
            kind: {name: np.concatenate([b[kind][name] for b in batches]) for name in of}
            for kind, of in batches[0].items()
        }
    rows = correlations(values)
    file = numbers_file(options, "drift_meter")
    text = "{r:.2f} ({low:.2f} to {high:.2f})"
    show(
        f"{count} walks of {chunks} chunks in each place",
        ["place", "of each", "meter", "error", "Spearman", "Pearson"],
        [[row["place"], row["of"], METERS[row["meter"]], ERRORS[row["error"]],
          *(text.format(**row[kind]) for kind in ("spearman", "pearson"))] for row in rows],
    )  # fmt: skip
    means = {where: {name: v.mean(axis=0) for name, v in kinds["chunk"].items()} for where, kinds in values.items()}
    write(file, header() | {"walks": count, "chunks": chunks, "correlations": rows, "means": means})
    draw(values, plot_file(file))


if __name__ == "__main__":
    main()
