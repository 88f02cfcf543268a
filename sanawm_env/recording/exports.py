"""Helpers that exports to other formats share: checks before the work, and poses as vectors."""

from collections.abc import Sized
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from sanawm_env.recording.dataset import Dataset, Row, leave_out
from sanawm_env.recording.episode import RecordedEpisode
from sanawm_env.recording.rollout import VIDEO, check_writable
from sanawm_env.recording.video import open_video, rate_of
from sanawm_env.system.saving import check_outside


class Look(NamedTuple):
    """The format of a video.

    Attributes:
        height: of frames, in pixels.
        width: likewise.
        fps: frames per second.
        codec: name of the codec.
        pix_fmt: pixel format.
    """

    height: int
    width: int
    fps: Fraction
    codec: str
    pix_fmt: str | None

    @classmethod
    def of(cls, path: Path) -> "Look":
        """The format of a video file. Raises as `open_video`, and ValueError for a video without a frame rate."""
        with open_video(path) as (_, stream):
            codec = stream.codec_context
            return cls(stream.height, stream.width, rate_of(path, stream), codec.name, codec.pix_fmt)

    def __str__(self) -> str:
        return f"{self.width} x {self.height} pixels at {float(self.fps):g} fps ({self.codec}, {self.pix_fmt})"


def survey(dataset: Dataset) -> tuple[list[Row], Look]:
    """The finished episodes of a dataset, and the format that their videos share. Damaged episodes are left out, which
    is logged.

    Raises:
        ValueError: for a dataset without undamaged episodes, or with videos of several formats.
    """
    rows = dataset.finished()
    if not rows:
        raise ValueError(f"The dataset {dataset.folder} has no finished episodes to export.")
    looks: list[tuple[Row, Look]] = []
    for row in rows:
        try:
            looks.append((row, Look.of(RecordedEpisode.open(dataset.folder / row.episode).folder / VIDEO)))
        except (OSError, ValueError) as error:
            leave_out(row, error)
    check_some(dataset, looks)
    lead, first = looks[0]
    for row, look in looks:
        if look != first:
            raise ValueError(
                f"The episodes of {dataset.folder} cannot go into one export: the video of {row.episode} has {look}, "
                f"the one of {lead.episode} {first}."
            )
    return [row for row, _ in looks], first


def check_some(dataset: Dataset, whole: Sized) -> None:
    """ValueError if no episode of a dataset is undamaged."""
    if not whole:
        raise ValueError(f"No episode of {dataset.folder} can be exported: see `sanawm dataset validate`.")


def camera_path(episode: RecordedEpisode) -> tuple[NDArray, NDArray, int]:
    """Poses (F, 4, 4) and intrinsics (F, 3, 3) of all frames of an episode, and the number of frames of a chunk.

    Raises:
        ValueError: for an episode without them, or whose frames are not the start image and equal chunks.
    """
    path, frames, chunks = episode.trajectory(), episode.meta["num_frames"], episode.chunks
    if path.intrinsics is None or len(path.c2w) != frames:
        matrices = 0 if path.intrinsics is None else len(path.intrinsics)
        raise ValueError(f"{episode.folder} has {len(path.c2w)} poses and {matrices} intrinsics for {frames} frames.")
    if not chunks or frames <= chunks or (frames - 1) % chunks:
        raise ValueError(f"{episode.folder} has {frames} frames, which are not the start and {chunks} equal chunks.")
    return path.c2w, path.intrinsics, (frames - 1) // chunks


def pose_vectors(c2w: np.ndarray) -> np.ndarray:
    """Poses (F, 4, 4) as the environment's `pose` observation: (F, 7) float32, position in metres and unit quaternion
    x, y, z, w with w >= 0.
    """
    quaternions = Rotation.from_matrix(c2w[:, :3, :3]).as_quat(canonical=True)
    return np.concatenate((c2w[:, :3, 3], quaternions), axis=-1).astype(np.float32)


def check_vacant(out: Path, dataset: Dataset) -> None:
    """Check the place of an export before the work.

    Raises:
        FileExistsError: where `out` exists and is not an empty folder.
        ValueError: for a place inside the dataset.
        OSError: for a place that cannot be written.
    """
    check_outside(out, dataset.folder)
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise FileExistsError(f"{out} exists already: give another place for the export, or remove it.")
    check_writable(out.parent)
