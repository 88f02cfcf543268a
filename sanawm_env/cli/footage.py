"""Your own clips, with camera poses in any format that is read, as training data for a nano world.

A clip is planned before it is decoded: which of its frames are taken, 16 per second, and the pose of each. A function
from a video to a `Trajectory` says where poses come from; `poses_beside` finds files.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from sanawm_env.camera.formats import is_pose_folder
from sanawm_env.camera.inspection import inspect
from sanawm_env.camera.intrinsics import centred_intrinsics, intrinsics_matrix
from sanawm_env.camera.trajectory import Trajectory, relative_to_first
from sanawm_env.cli.arguments import TrajectoryReading
from sanawm_env.recording.dataset import finished
from sanawm_env.recording.rollout import TRAJECTORY, VIDEO
from sanawm_env.recording.video import check_square, frame_times, iterate_video, open_video
from sanawm_env.system.files import explaining, reason, visible
from sanawm_env.training.clips import Footage
from sanawm_env.training.nano import NANO_SMALL
from sanawm_env.world.images import fit_image
from sanawm_env.world.intrinsics import choose_intrinsics

VIDEOS = (".mp4", ".mov", ".m4v")
POSES = (".txt", ".tum", ".kitti", ".npz", ".npy", ".json")
SLACK = 0.03  # seconds that a frame may lie before the first pose or after the last
PosesOf = Callable[[Path], Trajectory]
"""From a clip's video to the path of its camera, whose poses are placed by `frames_at`."""


@dataclass(frozen=True, eq=False)
class Clip:
    """The plan of a clip.

    Attributes:
        video: file.
        shown: (N,) numbers of the frames to take, 16 per second.
        c2w: (N, 4, 4) float64 poses of these frames, relative to the first, in metres.
        intrinsics: (4,) fx, fy, cx, cy in pixels of the nano world's frames.
        seconds: length of the video.
        warnings: a sentence for each thing that looks wrong.
    """

    video: Path
    shown: np.ndarray
    c2w: np.ndarray
    intrinsics: np.ndarray
    seconds: float
    warnings: tuple[str, ...]

    def read(self) -> Footage:
        """Decode the frames, upright and fitted to the nano world's size.

        Raises:
            ValueError: for a video that cannot be decoded.
        """
        wanted, again = np.unique(self.shown, return_inverse=True)  # slow passages show a frame twice
        frames = iterate_video(self.video, set(wanted.tolist()))
        fitted = [fit_image(Image.fromarray(frame), NANO_SMALL.height, NANO_SMALL.width) for frame in frames]
        if len(fitted) < len(wanted):
            raise ValueError(f"{self.video} cannot be read as a video: it holds fewer frames than its index says.")
        return Footage(np.stack(fitted)[again], self.c2w, self.intrinsics)


def find_clips(data: Path) -> list[Path]:
    """Videos in a folder and below it. In the folder of a rollout, its video.mp4 alone.

    Raises:
        FileNotFoundError: for a folder without videos.
    """
    clips = [
        p
        for p in finished(data, VIDEOS)
        if p.name == VIDEO or not ((p.parent / VIDEO).exists() and (p.parent / TRAJECTORY).exists())
    ]
    if not clips:
        raise FileNotFoundError(
            f"No clips in {data}: a clip is a video ({', '.join(VIDEOS)}) with its poses beside (docs/own_footage.md)."
        )
    return clips


def plan(clips: Sequence[Path], poses_of: PosesOf, fov_deg: float | None = None) -> tuple[list[Clip], list[str]]:
    """Plan clips.

    Args:
        clips: video files.
        poses_of: finds the poses of a video.
        fov_deg: see `plan_clip`.

    Returns:
        The plans, and a sentence for each clip that cannot be used.
    """
    planned, problems = [], []
    for video in clips:
        try:
            planned.append(plan_clip(video, poses_of, fov_deg))
        except (ValueError, OSError) as error:
            problems.append(reason(error, 400))
    return planned, problems


def plan_clip(video: Path, poses_of: PosesOf, fov_deg: float | None = None) -> Clip:
    """Plan a clip. Only its first frame is decoded.

    Args:
        video: file.
        poses_of: finds its poses.
        fov_deg: horizontal field of view of its upright frames, in degrees; None for the intrinsics of its poses.

    Raises:
        ValueError: where video and poses do not match, intrinsics are not known, or the clip has fewer than 16 frames
            per second. The sentence names the file.
        OSError: for files that cannot be read.
    """
    times = frame_times(video)
    with open_video(video) as (_, stream), explaining(f"{video} cannot be used"):
        check_square(stream)
    first = Image.fromarray(next(iterate_video(video)))
    trajectory = poses_of(video)
    try:
        intrinsics, _ = choose_intrinsics(first, NANO_SMALL, _intrinsics(trajectory, first, fov_deg), None)
        places = frames_at(trajectory, times)
        shown = _sixteen_a_second(times, places, len(trajectory.c2w))
    except ValueError as error:
        said = reason(error, 400)
        raise ValueError(f"{video} {said[0].lower()}{said[1:]}") from error
    last = len(trajectory.c2w) - 1
    path = trajectory.between(places[shown].clip(0, last))
    # speeds are those of the path, not of frames that lie unevenly
    seconds = times[shown[0]] + np.arange(len(shown)) / NANO_SMALL.fps
    even = trajectory.between(np.interp(seconds, times, places).clip(0, last))
    warnings = list(inspect(replace(even, fps=NANO_SMALL.fps), NANO_SMALL.fps).warnings)
    covered = len(shown) / NANO_SMALL.fps
    if covered < 0.9 * times[-1]:
        warnings.append(f"Its poses cover {covered:.3g} of its {times[-1]:.3g} s: the rest is not used.")
    return Clip(video, shown, relative_to_first(path.c2w), intrinsics, float(times[-1]), tuple(warnings))


def poses_beside(data: Path, reading: TrajectoryReading) -> PosesOf:
    """A function that reads the file of poses beside a video.

    That is the file or folder with the video's name (walk.mp4: walk.txt, walk.npz, walk.json, walk/...), or else what
    its folder or `data` holds for all videos: a COLMAP model, transforms.json, trajectory.npz. From a model of several
    clips it takes the images that are named after the video.

    Args:
        data: folder of the clips.
        reading: how trajectories are read.

    Raises:
        FileNotFoundError: for a folder without videos; from the function, for a video without poses.
        ValueError: from the function, for several files of poses, and as `load_trajectory`.
    """
    clips = find_clips(data)

    def read(video: Path) -> Trajectory:
        beside = [p for p in visible(video.parent, "*") if p.stem == video.stem and p.suffix.lower() in POSES]
        folder = video.with_suffix("")
        found = [*beside, *([folder] if is_pose_folder(folder) else [])]
        if len(found) > 1:
            raise ValueError(
                f"{video} has several files of poses beside it, {' and '.join(p.name for p in found)}: keep one."
            )
        if found:
            return reading.read_trajectory(found[0])
        for folder in dict.fromkeys((video.parent, data)):
            if is_pose_folder(folder):
                alone = sum(clip.is_relative_to(folder) for clip in clips) == 1
                return reading.read_trajectory(folder, None if alone else video.stem)
        raise FileNotFoundError(
            f"{video} has no poses: put a file of them beside it, called {video.stem}.txt, .npz or .json, or a COLMAP "
            "model or transforms.json into its folder."
        )

    return read


def frames_at(trajectory: Trajectory, times: np.ndarray) -> np.ndarray:
    """The place of each frame of a video among the poses: 0 at the first pose, 1.5 between the second and third one,
    negative before the first.

    Times of the poses count if they are on the video's clock: time stamps from its beginning, or numbers of images that
    count its frames (at `trajectory.fps`, if that is given). Otherwise the first pose belongs to the first frame, and
    there must be one pose per frame, or the poses must last as long as the video.

    Args:
        trajectory: the poses.
        times: (F,) of the frames, in seconds from the first.

    Returns:
        (F,) float64.

    Raises:
        ValueError: for poses that do not match the video.
    """
    frames, count, fps, first = len(times), len(trajectory.c2w), trajectory.fps, trajectory.first
    if first is None and count == frames:
        rate = (frames - 1) / times[-1] if times[-1] > 0 else NANO_SMALL.fps
        if fps is not None and abs(rate / fps - 1) > 0.02:
            raise ValueError(f"has {rate:.3g} frames and {fps:.3g} poses per second: the rates must be equal.")
        return np.arange(frames, dtype=np.float64)
    if fps is None:
        begin, step = first or 0.0, trajectory.step
        if first is None or begin + step * (count - 1) > frames - 1:
            raise ValueError(
                f"has {frames} frames and {count} poses: the numbers must be equal, or give --trajectory-fps."
            )
        return (np.arange(frames) - begin) / step
    last = times[-1] * fps
    begin = 0.0 if first is None else first / trajectory.step
    if first is not None and begin >= 0 and begin + count - 1 <= last + 0.5 + SLACK * fps:
        return times * fps - begin
    if abs(count - 1 - last) > max(1.5 + SLACK * fps, 0.02 * last):
        raise ValueError(
            f"lasts {times[-1]:.4g} s, and its {count} poses, {fps:.4g} per second, last {(count - 1) / fps:.4g} s: "
            "cut one, or give --trajectory-fps."
        )
    return times * fps


def _sixteen_a_second(times: np.ndarray, places: np.ndarray, count: int) -> np.ndarray:
    """Numbers of the frames that are nearest in time to 0, 1/16, 2/16, ... seconds from the first one with a pose."""
    spread = (places[-1] - places[0]) / times[-1] if times[-1] > 0 else 0.0  # poses a second
    inside = np.flatnonzero((places >= -SLACK * spread - 1e-9) & (places <= count - 1 + SLACK * spread + 1e-9))
    if len(inside) < 2:
        raise ValueError("has fewer than two frames with a pose.")
    begin, end = times[inside[0]], times[inside[-1]]
    rate = (len(inside) - 1) / (end - begin)
    if rate < 0.98 * NANO_SMALL.fps:
        raise ValueError(f"has {rate:.3g} frames per second: record {NANO_SMALL.fps} or more.")
    wanted = begin + np.arange(int((end - begin) * NANO_SMALL.fps + 1e-3) + 1) / NANO_SMALL.fps
    after = np.searchsorted(times[inside], wanted - 1e-9).clip(1, len(inside) - 1)
    before = after - 1
    nearer = wanted - times[inside[before]] <= times[inside[after]] - wanted
    return inside[np.where(nearer, before, after)]


def _intrinsics(trajectory: Trajectory, first: Image.Image, fov_deg: float | None) -> np.ndarray:
    """Intrinsics (3, 3) in pixels of the clip's frames."""
    width, height = first.size
    if fov_deg is not None:
        return intrinsics_matrix(centred_intrinsics(fov_deg, width, height))
    if trajectory.intrinsics is None:
        raise ValueError(
            "has poses without intrinsics: give --fov-deg, the horizontal field of view of its upright frames."
        )
    found = trajectory.intrinsics_for(width, height)
    if found is None:
        size = trajectory.size or (2 * trajectory.intrinsics[0, 0, 2], 2 * trajectory.intrinsics[0, 1, 2])
        raise ValueError(
            f"has upright frames of {width} x {height} pixels, and its intrinsics are for {size[0]:.4g} x "
            f"{size[1]:.4g}: estimate the poses from upright frames, or give --fov-deg."
        )
    return found[0]
