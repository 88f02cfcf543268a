"""One's own clips, as rollouts leave them, brought into the nano world's shape to learn from."""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from sanawm_env.camera.trajectory import Trajectory, load_trajectory, relative_to_first
from sanawm_env.recording.dataset import PARTIAL
from sanawm_env.recording.rollout import TRAJECTORY, VIDEO
from sanawm_env.recording.video import check_square, frame_times, iterate_video, open_video, read_video
from sanawm_env.training.clips import Footage
from sanawm_env.training.nano import NANO_SMALL
from sanawm_env.world.files import reason
from sanawm_env.world.images import fit_image
from sanawm_env.world.intrinsics import choose_intrinsics
from sanawm_env.world.saving import is_part


def clip_folders(data: Path) -> list[Path]:
    """Folders under `data`, itself included, that hold a video and its trajectory; FileNotFoundError without any."""
    folders = sorted(path.parent for path in data.rglob(TRAJECTORY))
    whole = [folder for folder in folders if folder.suffix != PARTIAL and not is_part(folder)]
    found = [folder for folder in whole if (folder / VIDEO).exists()]
    if not found:
        raise FileNotFoundError(f"No clips in {data}: a clip is a folder with {VIDEO} and {TRAJECTORY}.")
    return found


def read_clip(folder: Path) -> Footage:
    """A rollout's folder as footage: fitted to the nano world's picture, 16 frames a second (of a faster clip those
    nearest in time, with their poses), poses relative to its first frame.

    Raises ValueError where video and trajectory do not belong together, intrinsics are missing, or a clip is slower.
    """
    trajectory, intrinsics, shown = _look_at(folder)
    frames = read_video(folder / VIDEO)
    if len(frames) != len(trajectory.c2w):
        raise ValueError(f"{folder} has {len(frames)} frames and {len(trajectory.c2w)} poses: they must be as many.")
    fitted = [fit_image(Image.fromarray(frames[i]), NANO_SMALL.height, NANO_SMALL.width) for i in shown]
    return Footage(np.stack(fitted), relative_to_first(trajectory.c2w[shown]), intrinsics)


def check_clips(folders: Sequence[Path]) -> None:
    """ValueError that names those that cannot be learned from, before the work."""
    bad = []
    for folder in folders:
        try:
            _look_at(folder)
        except (ValueError, OSError) as error:
            bad.append(reason(error))
    if bad:
        named = "; ".join(bad[:3]) + "; ..." * (len(bad) > 3)
        raise ValueError(f"{len(bad)} of {len(folders)} clips cannot be learned from: {named}.")


def _look_at(folder: Path) -> tuple[Trajectory, np.ndarray, np.ndarray]:
    """Of a clip: its trajectory, the intrinsics (4,) of the nano world's picture, and which frames are shown 16 times a
    second. Errors as `read_clip`."""
    times, trajectory = frame_times(folder / VIDEO), load_trajectory(folder / TRAJECTORY)
    with open_video(folder / VIDEO) as (_, stream):
        try:
            check_square(stream)
        except ValueError as error:
            raise ValueError(f"{folder / VIDEO} cannot be learned from: {error}.") from error
    if len(times) != len(trajectory.c2w):
        raise ValueError(f"{folder} has {len(times)} frames and {len(trajectory.c2w)} poses: they must be as many.")
    if trajectory.intrinsics is None:
        raise ValueError(f"{folder / TRAJECTORY} has no intrinsics: add the array (F, 3, 3), in pixels of the video.")
    first = Image.fromarray(next(iterate_video(folder / VIDEO)))
    intrinsics, _ = choose_intrinsics(first, NANO_SMALL, trajectory.intrinsics[0], None)
    rate = (len(times) - 1) / times[-1] if times[-1] > 0 else NANO_SMALL.fps
    if trajectory.fps is not None and abs(rate / trajectory.fps - 1) > 0.02:
        said = f"{rate:.3g} frames and {trajectory.fps:.3g} poses a second"
        raise ValueError(f"{folder} has {said}: they must be as many.")
    if rate < 0.98 * NANO_SMALL.fps:
        raise ValueError(f"{folder} has {rate:.3g} frames a second: record {NANO_SMALL.fps} or more.")
    wanted = np.arange(int(times[-1] * NANO_SMALL.fps + 1e-3) + 1) / NANO_SMALL.fps
    if np.abs(times - np.arange(len(times)) / NANO_SMALL.fps).max() < 1e-3:
        return trajectory, intrinsics, np.arange(len(times))
    logging.getLogger(__name__).warning(
        "%s has %.3g frames a second: %d of its %d are taken, %d a second.",
        folder,
        rate,
        len(wanted),
        len(times),
        NANO_SMALL.fps,
    )
    after = np.searchsorted(times, wanted).clip(1, len(times) - 1)
    return trajectory, intrinsics, after - (wanted - times[after - 1] < times[after] - wanted)
