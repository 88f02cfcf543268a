"""Evaluation of a world on clips of your own: it gets the first frame and the camera, and predicts the rest.

PSNR is pooled over all pixels of the compared frames, as in `evaluate`. Baselines know only the first frame: it is
held, turned (rotation homography), or warped as a plane 3.3 m away. `codec` is the reconstruction of the clip, the best
that the world can reach, and sharpness the gradients of predicted frames over those of the clip. Which pixels were seen
before is unknown, because your own clips have no depth.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sanawm_env.camera.trajectory import relative_to_first
from sanawm_env.metrics.image import ssim
from sanawm_env.training.clips import Footage
from sanawm_env.training.evaluate import Example
from sanawm_env.training.probes import linear_codec
from sanawm_env.training.truth import decibels, gradient
from sanawm_env.training.warps import plane_homographies, rotation_homographies, warp
from sanawm_env.world.world import World

STRIDE = 4  # frames, from one that is measured to the next


@dataclass(frozen=True)
class FootageScores:
    """Scores of one chunk over all clips.

    Attributes:
        psnr: pooled, dB, as are the next four.
        hold: of the first frame.
        rotation_homography: of the first frame, turned.
        plane_warp: of the first frame, warped as a plane.
        codec: of the reconstruction.
        ssim: mean.
        sharpness: gradients over those of the clip.
    """

    psnr: float
    hold: float
    rotation_homography: float
    plane_warp: float
    codec: float
    ssim: float
    sharpness: float


@dataclass(frozen=True)
class FootageReport:
    """What `measure` found.

    Attributes:
        chunks: scores of each chunk.
        psnr: pooled over all chunks, dB.
        swapped_camera_psnr: the same, each clip driven along the next one's path; None for a single clip.
        clips: number of clips.
        examples: for a sheet.
    """

    chunks: tuple[FootageScores, ...]
    psnr: float
    swapped_camera_psnr: float | None
    clips: int
    examples: tuple[Example, ...] = field(default=(), repr=False, compare=False)

    def to_plain(self) -> dict[str, Any]:
        """All numbers, for JSON."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "examples"}
        return values | {"chunks": [asdict(chunk) for chunk in self.chunks]}


def measure(world: World, clips: Sequence[Footage], chunks: int = 8, seed: int = 0, examples: int = 4) -> FootageReport:
    """Evaluate a world on the first chunks of clips, at every fourth frame.

    Args:
        world: to evaluate.
        clips: as large as its frames.
        chunks: of each clip.
        seed: of the noise.
        examples: to keep for a sheet.

    Raises:
        ValueError: for a clip that is too short.
    """
    size = world.config.chunk_frames
    if short := [i for i, clip in enumerate(clips) if len(clip.frames) < 1 + chunks * size]:
        raise ValueError(f"Clip {short[0]} is shorter than the {1 + chunks * size} frames of {chunks} chunks.")
    names = ("psnr", "hold", "rotation_homography", "plane_warp", "codec", "swapped")
    errors = {name: np.zeros(chunks) for name in names}
    similar, sharp, count, shown = np.zeros(chunks), np.zeros((2, chunks)), 0, []
    codec, chosen = linear_codec(world), np.arange(1, 1 + chunks * size).reshape(chunks, size)[:, STRIDE - 1 :: STRIDE]
    paths = [relative_to_first(clip.c2w[: 1 + chunks * size].astype(np.float64)) for clip in clips]
    for number, clip in enumerate(clips):
        frames, path = clip.frames[: 1 + chunks * size], paths[number]
        truth, poses = frames[chosen], path[chosen.ravel()]
        coded = codec.decode(codec.encode(torch.from_numpy(frames)[None].to(world.device)), first=True)[0].cpu().numpy()
        guesses = {
            "psnr": predict(world, clip, path, seed)[:, STRIDE - 1 :: STRIDE],
            "hold": np.broadcast_to(frames[0], truth.shape),
            "rotation_homography": warp(frames[0], rotation_homographies(poses, clip.intrinsics)).reshape(truth.shape),
            "plane_warp": warp(frames[0], plane_homographies(poses, clip.intrinsics)).reshape(truth.shape),
            "codec": coded[chosen],
        }
        if len(clips) > 1:
            guesses["swapped"] = predict(world, clip, paths[(number + 1) % len(clips)], seed)[:, STRIDE - 1 :: STRIDE]
        for name, guess in guesses.items():
            errors[name] += np.square(guess.astype(np.int32) - truth).mean((1, 2, 3, 4))
        pairs = zip(truth.reshape(-1, *truth.shape[2:]), guesses["psnr"].reshape(-1, *truth.shape[2:]), strict=True)
        similar += np.reshape([ssim(*pair) for pair in pairs], truth.shape[:2]).mean(1)
        sharp += [[gradient(chunk) for chunk in part] for part in (guesses["psnr"], truth)]
        count += 1
        if number < examples:
            ends = tuple(range(1, chunks + 1))
            shown.append(Example(number, "held-out clip", frames[0], ends, truth[:, -1], guesses["psnr"][:, -1]))
    pooled = {name: [round(decibels(error / count), 3) for error in total] for name, total in errors.items()}
    rows = [
        FootageScores(
            *(pooled[name][j] for name in names[:5]),
            ssim=round(float(similar[j] / count), 4),
            sharpness=round(float(sharp[0, j] / sharp[1, j]), 4),
        )
        for j in range(chunks)
    ]
    swapped = round(decibels(errors["swapped"].mean() / count), 3) if count > 1 else None
    whole = round(decibels(errors["psnr"].mean() / count), 3)
    return FootageReport(tuple(rows), whole, swapped, count, tuple(shown))


def predict(world: World, clip: Footage, path: np.ndarray, seed: int = 0) -> np.ndarray:
    """What a world predicts from a clip's first frame.

    Args:
        world: that predicts.
        clip: whose first frame and intrinsics are given.
        path: (1 + 24 C, 4, 4), camera poses.
        seed: of the noise.

    Returns:
        (C, 24, H, W, 3) uint8.
    """
    state = world.begin(world.scene(clip.frames[0], intrinsics=clip.intrinsics), seed=seed)
    size, seen = world.config.chunk_frames, []
    for first in range(1, len(path), size):
        state, shown = world.advance(state, path[first : first + size])
        seen.append(shown.frames[0].cpu().numpy())
    return np.stack(seen)


def print_footage(report: FootageReport, console: Console) -> None:
    """Print a report, a row for each chunk."""
    title = f"{report.clips} held-out clips: pooled PSNR in dB, {report.psnr:.2f} over all chunks"
    if report.swapped_camera_psnr is not None:
        title += f", {report.swapped_camera_psnr:.2f} along another clip's path"
    table = Table(title=title, title_justify="left")
    for name in ("chunk", "predicted", "hold", "rotation", "plane", "codec", "SSIM", "sharpness"):
        table.add_column(name, justify="right", no_wrap=True)
    for number, c in enumerate(report.chunks, start=1):
        others = (c.hold, c.rotation_homography, c.plane_warp, c.codec, c.ssim, c.sharpness)
        table.add_row(str(number), Text(f"{c.psnr:.2f}", "bold"), *(f"{value:.2f}" for value in others))
    console.print(table)
