"""Find the clips that `scores` measures: videos with the camera paths that they were made for.

    a dataset        its finished episodes
    other folders    videos, each with its trajectory: `trajectory.npz` beside a `video.mp4`, as rollouts leave them;
                     NAME.npz, .npy, .txt, .json or a folder NAME beside NAME.mp4; a COLMAP model (sparse) or
                     transforms.json in the folder of a single video
    SANA-WM-Bench    videos SPLIT/ID.mp4, and the benchmark's folder with their paths (camera reference, 7.1)

`truth.mp4` beside a video shows what it should show, frame by frame.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sanawm_env.camera.trajectory import load_trajectory
from sanawm_env.recording.dataset import DATASET, Dataset, finished
from sanawm_env.recording.episode import MAX_META_BYTES
from sanawm_env.recording.rollout import META, TRAJECTORY, VIDEO
from sanawm_env.recording.video import MAX_DECODED_BYTES, MAX_UPSCALE, frame_times, iterate_video
from sanawm_env.system.files import check_count, read_json
from sanawm_env.world.anchor import Anchor

TRUTH = "truth.mp4"
VIDEOS = (".mp4", ".mov", ".m4v")
POSES = (".npz", ".npy", ".txt", ".json")
BENCH = {"simple_60s": "benchmark_v2_smooth_60s", "hard_60s": "benchmark_v2_hard_60s"}
"""Splits of SANA-WM-Bench, and their folders."""
BENCH_POSES, BENCH_PAIRS, BENCH_METHOD = "sanawm_export_v2", "scene_trajectories_v2.json", "method_info.json"
MAX_BENCH_BYTES = 2**28


@dataclass(frozen=True, eq=False)
class Clip:
    """A video and its camera path.

    Attributes:
        name: of the clip.
        split: the group that it is averaged in.
        video: file.
        trajectory: file or folder.
        bench: whether it is of SANA-WM-Bench: then frames without a pose, and poses without a frame, are left out.
        skip_first: whether the first sample is left out, because the refiner does not return frame 0.
        pairs: pairs of frames at which the benchmark's camera returns to a view.
    """

    name: str
    split: str
    video: Path
    trajectory: Path
    bench: bool = False
    skip_first: bool = False
    pairs: tuple[Mapping[str, Any], ...] = ()

    def read(self, interval: int) -> "Sampled":
        """Read every `interval`-th frame with its pose.

        Raises:
            ValueError: for a video or path that is damaged, too short or too long, or where they have different
                lengths.
            OSError: for files that cannot be read.
        """
        meta = self._meta()
        path, count = load_trajectory(self.trajectory), len(frame_times(self.video))
        if len(path.c2w) != count and not self.bench:
            raise ValueError(f"{self.video} has {count} frames and {len(path.c2w)} poses: the numbers must be equal.")
        upscale = _upscale(meta)
        first = interval if self.skip_first else 0
        frames = _every(self.video, interval, upscale, range(first, min(count, len(path.c2w))))
        if len(frames) < 3:
            raise ValueError(
                f"{self.video} has {count} frames, of which {len(frames)} are sampled: at least 3 are needed, sample "
                "more of them (--interval)."
            )
        height, width = (upscale * side for side in frames.shape[1:3])
        c2w = path.c2w[first::interval][: len(frames)]
        intrinsics = path.intrinsics_for(width, height)
        if intrinsics is not None:
            intrinsics = intrinsics[first::interval][: len(frames)] / np.array([[upscale, upscale, 1.0]]).T
        truth = self.video.with_name(TRUTH)
        return Sampled(
            np.linalg.solve(c2w[0], c2w), frames, intrinsics, _anchor(meta, c2w[0]), count,
            _every(truth, interval, upscale, range(count)) if truth.exists() and not self.bench else None,
        )  # fmt: skip

    def _meta(self) -> dict[str, Any]:
        """What an episode says of itself; nothing where the video is no episode's."""
        path = self.video.with_name(META)
        return read_json(path, MAX_META_BYTES) if self.video.name == VIDEO and path.exists() else {}


@dataclass(frozen=True, eq=False)
class Sampled:
    """Sampled frames of a clip, and what is known about them.

    Attributes:
        c2w: (n, 4, 4) float64, relative to the first sample.
        frames: (n, H, W, 3) uint8, in the world's size.
        intrinsics: (n, 3, 3) in pixels of the frames; None where they are not known.
        anchor: of the first sample; None where the place is not known.
        total: frames of the video.
        truth: (n, H, W, 3) uint8 frames of `truth.mp4`; None without it.
    """

    c2w: np.ndarray
    frames: np.ndarray
    intrinsics: np.ndarray | None
    anchor: Anchor | None
    total: int
    truth: np.ndarray | None


def find_clips(folder: Path, bench: Path | None = None) -> list[Clip]:
    """Find the clips in a folder, see the module's docstring.

    Args:
        folder: of a dataset or of videos.
        bench: folder of SANA-WM-Bench, if the videos were made for its paths.

    Raises:
        FileNotFoundError: for no folder, or a folder without clips.
        ValueError: for a damaged dataset or benchmark.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder {folder}.")
    if bench is not None:
        found = [clip for split in BENCH for clip in _bench_clips(folder, Path(bench), split)]
    elif (folder / DATASET).exists():
        names = [row.episode for row in Dataset.open(folder).finished()]
        found = [_episode(folder / name, name) for name in names]
    else:
        found = [clip for video in _videos(folder) if (clip := _with_path(folder, video)) is not None]
    if not found:
        wanted = f"SPLIT/ID.mp4, SPLIT one of {', '.join(BENCH)}" if bench else f"{VIDEO} with {TRAJECTORY} beside it"
        raise FileNotFoundError(f"No clips with a path in {folder}: a clip is {wanted} (see docs/score.md).")
    return found


def _videos(folder: Path) -> list[Path]:
    """Videos in a folder and below it, sorted; ground truth and unfinished episodes are left out."""
    return [video for video in finished(folder, VIDEOS) if video.name != TRUTH]


def _episode(folder: Path, name: str, split: str = "no place") -> Clip:
    """A clip of this package. Its split is its place; `train/7` and the like are `train`."""
    try:
        place = str((read_json(folder / META, MAX_META_BYTES).get("anchor") or {}).get("place", ""))
    except (OSError, ValueError, AttributeError):
        place = ""  # the clip is rejected when it is read, and its row says why
    return Clip(name, place.partition("/")[0] or split, folder / VIDEO, folder / TRAJECTORY)


def _with_path(folder: Path, video: Path) -> Clip | None:
    """A video that has a trajectory, in the split that its first folder names; None for a video without one."""
    own = video.name == VIDEO and (video.parent / TRAJECTORY).exists()
    inside = (video.parent if own else video.with_suffix("")).relative_to(folder)
    name, split = str(inside) if inside.parts else folder.name, inside.parts[0] if len(inside.parts) > 1 else "all"
    if own:
        return _episode(video.parent, name, split)
    beside = [p for p in (*map(video.with_suffix, POSES), video.with_suffix("")) if p.exists()]
    if not beside and sum(p.suffix.lower() in VIDEOS for p in video.parent.iterdir()) == 1:
        beside = [p for p in (video.parent / "transforms.json", video.parent / "sparse") if p.exists()]
    return Clip(name, split, video, beside[0]) if beside else None


def _bench_clips(folder: Path, bench: Path, split: str) -> Iterator[Clip]:
    """Clips of a split: folder/SPLIT/ID.mp4 or folder/SPLIT/ID/video.mp4, whose paths are `BENCH_POSES`/ID.npz."""
    poses, pairs = bench / BENCH[split] / BENCH_POSES, bench / BENCH[split] / BENCH_PAIRS
    returns = _returns(pairs) if pairs.exists() else {}
    for video in _videos(folder):
        if split in video.relative_to(folder.parent).parts:
            name = video.parent.name if video.name == VIDEO else video.stem
            refined = any(_is_refined(above / BENCH_METHOD) for above in list(video.parents)[:3])
            yield Clip(f"{split}/{name}", split, video, poses / f"{name}.npz", True, refined, returns.get(name, ()))


def _is_refined(path: Path) -> bool:
    return path.exists() and bool(read_json(path, MAX_META_BYTES).get("refiner"))


def _returns(path: Path) -> dict[str, tuple[Mapping[str, Any], ...]]:
    """Pairs of frames by scene. ValueError for another file."""
    try:
        scenes = read_json(path, MAX_BENCH_BYTES).get("scenes")
        return {
            str(scene["scene_id"]): tuple(_pair(pair) for pair in scene["evaluation_pairs"]) for scene in scenes or ()
        }
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise ValueError(
            f"{path} must hold scenes with evaluation_pairs of frame_a, frame_b, quality_score."
        ) from error


def _pair(pair: Mapping[str, Any]) -> dict[str, Any]:
    score = float(pair["quality_score"])
    return {"frame_a": int(pair["frame_a"]), "frame_b": int(pair["frame_b"]), "quality_score": score}


def _upscale(meta: Mapping[str, Any]) -> int:
    video = meta.get("video", {})
    times = video.get("upscale", 1) if isinstance(video, Mapping) else None
    return check_count(f"upscale in its {META}", times, 1, MAX_UPSCALE)


def _anchor(meta: Mapping[str, Any], first: np.ndarray) -> Anchor | None:
    """The anchor of the first sample, whose pose `first` (4, 4) is relative to that of the start image; None without
    one.
    """
    if meta.get("anchor") is None:
        return None
    anchor = Anchor.from_json(json.dumps(meta["anchor"]))
    return Anchor(anchor.place, anchor.c2w @ first)


def _every(video: Path, interval: int, upscale: int, numbers: range) -> np.ndarray:
    """Every `interval`-th of the frames with these numbers, (n, H, W, 3) uint8, in the size before upscaling."""
    taken: list[np.ndarray] = []
    for number, frame in enumerate(iterate_video(video)):
        if number in numbers and (number - numbers.start) % interval == 0:
            taken.append(_shrunk(frame, upscale))
            if len(taken) * taken[0].nbytes > MAX_DECODED_BYTES:
                raise ValueError(f"{video} is too long: sample fewer of its frames (--interval).")
    return np.stack(taken) if taken else np.zeros((0, 1, 1, 3), np.uint8)


def _shrunk(frame: np.ndarray, times: int) -> np.ndarray:
    """Reduce a frame: the mean of each square of `times` x `times` pixels."""
    if times == 1:
        return frame
    height, width = (side // times for side in frame.shape[:2])
    squares = frame[: height * times, : width * times].reshape(height, times, width, times, 3)
    return np.rint(squares.mean((1, 3))).astype(np.uint8)
