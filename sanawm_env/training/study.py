"""All probes of a world, their tables and curves, and the effect of the number of denoising steps.

findings = study("nano", scenes=16, seed=0)
print_findings(findings)
plot_drift(findings, "drift.png")
"""

import json
import time
from dataclasses import asdict, dataclass
from os import PathLike
from typing import cast

import numpy as np
from rich.console import Console

from sanawm_env.metrics.figures import figure_class
from sanawm_env.system.saving import replacing
from sanawm_env.system.terminal import literal_console, table
from sanawm_env.training.evaluate import evaluate, with_timesteps
from sanawm_env.training.probes import (
    CameraErrors,
    Closure,
    Drift,
    Seeds,
    camera_errors,
    drift,
    loop_closure,
    roll,
    seeds,
)
from sanawm_env.training.truth import draw_walk
from sanawm_env.world.world import World

STEPS = (1, 2, 4, 8, 20)
DRIFTS = {
    "brightness": "brightness", "contrast": "contrast", "gradient": "gradient", "kv_norm": "state norm",
    "camera_kv_norm": "camera state norm",
}  # fmt: skip
"""Measures of `Drift`, and what a table calls them."""


@dataclass(frozen=True)
class Steps:
    """Scores with a number of denoising steps, evenly spaced from 1000, before the clean pass.

    Attributes:
        timesteps: of the steps.
        known: pooled PSNR of all chunks in known places, dB.
        unknown: the same in unknown layouts.
        ssim: in known places.
        sharpness: in known places.
        seconds: per chunk at batch 1.
    """

    timesteps: tuple[float, ...]
    known: float
    unknown: float
    ssim: float
    sharpness: float
    seconds: float


@dataclass(frozen=True)
class Findings:
    """What `study` measured; see `probes` for the parts."""

    world: str
    weights_hash: str
    seed: int
    role: str
    camera: CameraErrors
    closure: tuple[Closure, ...]
    drift: tuple[Drift, ...]
    seeds: Seeds
    steps: tuple[Steps, ...]

    def to_json(self) -> str:
        """The findings as JSON."""
        return json.dumps(asdict(self), indent=1)


def study(
    world: World | str | PathLike, scenes: int = 16, seed: int = 0, chunks: int = 8, role: str = "evaluate"
) -> Findings:
    """Run every probe.

    Args:
        world: to study.
        scenes: number of walks (drift: half as many, five times as long).
        seed: of the walks.
        chunks: of a walk.
        role: see `clips.random_stream`.

    Raises:
        ValueError: as `evaluate`.
    """
    world = world if isinstance(world, World) else World.load(world)
    steps = tuple(step_list(world, n, scenes, seed, chunks, role) for n in STEPS)  # first: it checks the arguments
    return Findings(
        world=world.config.name, weights_hash=world.weights_hash, seed=seed, role=role,
        camera=camera_errors(world, scenes, seed, chunks, role),
        closure=loop_closure(world, scenes, seed, chunks // 2, role),
        drift=drift(world, max(1, scenes // 2), seed, 5 * chunks, role=role),
        seeds=seeds(world, max(1, scenes // 2), seed, chunks, role=role),
        steps=steps,
    )  # fmt: skip


def step_list(world: World, count: int, scenes: int, seed: int, chunks: int, role: str = "evaluate") -> Steps:
    """Scores of a world with `count` denoising steps."""
    timesteps = tuple(float(t) for t in np.linspace(1000, 0, count + 1)[:-1].round())
    report = evaluate(
        world, scenes, seed, chunks,
        timesteps=timesteps, unknown_scenes=scenes, ablations=False, stride=8, examples=0, role=role,
    )  # fmt: skip
    walk = draw_walk(world.config, seed, 0, 1 + chunks * world.config.chunk_frames, role=role)
    stepped, began = with_timesteps(world, timesteps), time.perf_counter()
    roll(stepped, [walk], [walk.c2w])
    unknown = np.mean([10 ** (-cast(float, c.psnr) / 10) for c in report.unknown or ()])
    return Steps(
        timesteps=timesteps,
        known=report.psnr,
        unknown=float(-10 * np.log10(unknown)),
        ssim=float(np.mean([c.ssim for c in report.chunks])),
        sharpness=report.sharpness,
        seconds=(time.perf_counter() - began) / chunks,
    )


def print_findings(findings: Findings, console: Console | None = None) -> None:
    """Print the tables with rich."""
    console = console or literal_console()
    camera = [(name, getattr(findings.camera, name)) for name in ("predicted", "truth", "frozen")]
    errors, pair = ("rot_err_deg", "trans_err", "cam_mc"), findings.seeds
    poses = [
        (f"{name}, mean (median)", *(f"{found[k]:.3f} ({found[k + '_median']:.3f})" for k in errors))
        for name, found in camera
    ]
    loops = [
        (f"{loop.chunks} chunks", f"{loop.psnr:.2f}", f"{loop.ssim:.3f}", f"{loop.codec_psnr:.2f}")
        for loop in findings.closure
    ]
    long = [
        (row.chunk, f"{row.psnr:.2f}", *(f"{getattr(row, name):.3f}" for name in DRIFTS))
        for row in findings.drift
        if row.chunk in (1, 2, 4, 8, 16, 24, 32, 40)
    ]
    two = [
        ("against each other", *("equal" if x is None else f"{x:.1f}" for x in (pair.visible, pair.unseen))),
        ("against the truth", f"{pair.truth_visible:.1f}", f"{pair.truth_unseen:.1f}"),
    ]
    steps = [
        (len(s.timesteps), f"{s.known:.2f}", f"{s.unknown:.2f}", f"{s.ssim:.3f}", f"{s.sharpness:.2f}",
         f"{s.seconds:.3f}")
        for s in findings.steps
    ]  # fmt: skip
    console.print(
        table("camera from pixels", "RotErr, degrees", "TransErr, m", "CamMC", rows=poses, title_justify="left"),
        table("out and back", "PSNR, dB", "SSIM", "codec, dB", rows=loops),
        table("chunk", "PSNR, dB", *DRIFTS.values(), rows=long),
        table("two seeds", "visible, dB", "unseen, dB", rows=two),
        table("denoising steps", "known, dB", "unknown, dB", "SSIM", "sharpness", "s per chunk", rows=steps),
    )
    console.print(f"the same seed gives the same bytes: {'yes' if pair.repeatable else 'NO'}")


def plot_drift(findings: Findings, path: str | PathLike) -> None:
    """Draw how frames and the recurrent state drift on a long walk, as PNG. Raises ImportError without matplotlib."""
    chunks = [row.chunk for row in findings.drift]
    figure = figure_class()((12, 3), layout="constrained")
    axes = figure.subplots(1, 3)
    for panel, names, title in (
        (axes[0], ("psnr",), "PSNR against the truth, dB"),
        (axes[1], ("brightness", "contrast", "gradient"), "of the pictures, over the truth's"),
        (axes[2], ("kv_norm", "camera_kv_norm"), "norm of the recurrent state"),
    ):
        for name in names:
            panel.plot(chunks, [getattr(row, name) for row in findings.drift], label=name.replace("_", " "))
        panel.set(xlabel="chunk", title=title)
        panel.grid(alpha=0.3)
        if len(names) > 1:
            panel.legend()
    with replacing(path) as part:
        figure.savefig(part, dpi=110)
