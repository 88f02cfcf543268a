"""How SANA-WM-Bench turns raw scores and frame lists into its tables. Camera reference, sections 7.2 and 7.3."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sanawm_env.metrics.image import psnr, ssim
from sanawm_env.system.files import brief

# dimension -> (lowest, highest raw value, weight); the first group is quality, the second semantics
QUALITY = {
    "subject_consistency": (0.1462, 1.0, 1.0),
    "background_consistency": (0.2615, 1.0, 1.0),
    "temporal_flickering": (0.6293, 1.0, 1.0),
    "motion_smoothness": (0.7060, 0.9975, 1.0),
    "aesthetic_quality": (0.0, 1.0, 1.0),
    "imaging_quality": (0.0, 1.0, 1.0),
    "dynamic_degree": (0.0, 1.0, 0.5),
}
SEMANTIC = {"overall_consistency": (0.0, 1.0, 1.0), "temporal_style": (0.0, 1.0, 1.0)}


@dataclass(frozen=True)
class VBenchScore:
    """VBench scores in 0..1.

    Attributes:
        normalized: by dimension.
        quality: weighted mean; times 100 it is the tables' "Overall".
        semantic: weighted mean.
        total: (4 quality + semantic) / 5, a diagnostic.
    """

    normalized: dict[str, float]
    quality: float
    semantic: float
    total: float


def vbench_score(raw: Mapping[str, float]) -> VBenchScore:
    """Normalise and average raw VBench dimensions. Missing ones do not count; an empty group scores 0.

    Args:
        raw: values by dimension.

    Raises:
        ValueError: for a dimension that the benchmark does not have.
    """
    ranges = QUALITY | SEMANTIC
    if unknown := sorted(raw.keys() - ranges.keys()):
        raise ValueError(f"unknown VBench dimensions {brief(unknown)}: the benchmark has {list(ranges)}")
    normalized = {}
    for name, value in raw.items():
        low, high, _ = ranges[name]
        normalized[name] = min(max((value - low) / (high - low), 0.0), 1.0)
    quality, semantic = _weighted_mean(normalized, QUALITY), _weighted_mean(normalized, SEMANTIC)
    return VBenchScore(normalized, quality, semantic, (4 * quality + semantic) / 5)


def temporal_windows(frames: int, seconds: float = 10, fps: float = 16, shortest: int = 16) -> list[tuple[int, int]]:
    """Windows [start, stop) in which a video's quality is scored. The remainder is left out, and so are windows
    below `shortest` frames."""
    length = int(seconds * fps)
    windows = [(i * length, min((i + 1) * length, frames)) for i in range(max(1, frames // length))]
    return [(start, stop) for start, stop in windows if stop - start >= shortest]


def remap_frame(frame: int, reference_fps: float, video_fps: float, video_frames: int) -> int:
    """The video frame at the time of a reference frame, clamped to the video. Rates within 0.1 count as equal."""
    if abs(video_fps - reference_fps) > 0.1:
        frame = round(frame / reference_fps * video_fps)
    return min(max(frame, 0), video_frames - 1)


def rotation_errors_deg(rows: Mapping[str, Mapping]) -> dict[str, float]:
    """`RotErr` of each row in degrees. Rows marked "rad", and unmarked ones up to pi, are in radians."""
    return {name: math.degrees(row["RotErr"]) if _in_radians(row) else row["RotErr"] for name, row in rows.items()}


@dataclass(frozen=True)
class Revisit:
    """Mean likeness of frames at which a video returns to the same place.

    Attributes:
        psnr: dB.
        ssim: 0 to 1.
        pairs: of frames.
    """

    psnr: float
    ssim: float
    pairs: int


def revisit(
    frames: Sequence[np.ndarray], pairs: Sequence[Mapping], fps: float = 16, reference_fps: float = 16, most: int = 5
) -> Revisit:
    """Likeness of the `most` pairs with the smallest `quality_score`.

    Args:
        frames: the video, (H, W, C) values 0..255.
        pairs: each with `frame_a` and `frame_b`, counted at the reference rate, and `quality_score`. Pairs that fall on
            one frame of the video are skipped.
        fps: of the video.
        reference_fps: of the pairs.
        most: pairs to score.

    Returns:
        Means; nan where no pair is left.
    """
    best = sorted(pairs, key=lambda pair: pair["quality_score"])[:most]
    ends = [(pair["frame_a"], pair["frame_b"]) for pair in best]
    ends = [[remap_frame(frame, reference_fps, fps, len(frames)) for frame in pair] for pair in ends]
    scores = [(psnr(frames[a], frames[b]), ssim(frames[a], frames[b])) for a, b in ends if a != b]
    if not scores:
        return Revisit(math.nan, math.nan, 0)
    return Revisit(*map(float, np.mean(scores, axis=0)), len(scores))


def _weighted_mean(scores: Mapping[str, float], group: Mapping[str, tuple[float, float, float]]) -> float:
    weights = {name: weight for name, (_, _, weight) in group.items() if name in scores}
    return sum(scores[name] * weight for name, weight in weights.items()) / sum(weights.values()) if weights else 0.0


def _in_radians(row: Mapping) -> bool:
    unit = row.get("RotErr_unit")
    return unit == "rad" or (unit is None and row["RotErr"] <= math.pi)
