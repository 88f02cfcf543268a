"""What exports to the formats of others share: a folder that is there whole or not at all, poses as vectors, looks at
videos before the work."""

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.spatial.transform import Rotation

from sanawm_env.recording.arrays import Trajectory
from sanawm_env.recording.dataset import PARTIAL, Dataset, Row
from sanawm_env.recording.episode import Episode
from sanawm_env.recording.rollout import VIDEO, check_writable
from sanawm_env.recording.video import open_video

_SPARE_BYTES = 16 * 2**20


class Look(NamedTuple):
    """What a video says of itself: pixels, frames per second, codec, pixel format."""

    height: int
    width: int
    fps: Fraction
    codec: str
    pix_fmt: str

    @classmethod
    def of(cls, path: Path) -> "Look":
        """Raises as `open_video`."""
        with open_video(path) as stream:
            codec = stream.codec_context
            return cls(stream.height, stream.width, stream.average_rate, codec.name, codec.pix_fmt)

    def __str__(self) -> str:
        return f"{self.width} x {self.height} pixels at {float(self.fps):g} fps ({self.codec}, {self.pix_fmt})"


def survey(dataset: Dataset) -> tuple[list[Row], Look]:
    """The rows of all finished episodes and how each of their videos looks.

    Raises ValueError for a dataset without episodes or with videos that do not look alike, and what a missing or broken
    meta.json or video raises.
    """
    rows = dataset.finished()
    if not rows:
        raise ValueError(f"The dataset {dataset.folder} has no finished episodes to export.")
    first = Look.of(dataset.folder / rows[0].episode / VIDEO)
    for row in rows:
        look = Look.of(Episode.open(dataset.folder / row.episode).folder / VIDEO)
        if look != first:
            raise ValueError(
                f"The episodes of {dataset.folder} cannot go into one export: the video of {row.episode} has {look}, "
                f"the one of {rows[0].episode} {first}."
            )
    return rows, first


def camera_path(episode: Episode) -> tuple[Trajectory, int]:
    """The trajectory of an episode, with a pose and a lens for every frame, and the number of frames of a chunk.

    Raises ValueError unless the frames are the start image and equal chunks, one for each step.
    """
    path, frames, chunks = episode.trajectory(), episode.meta["num_frames"], episode.chunks
    if path.intrinsics is None or len(path.c2w) != frames:
        lenses = 0 if path.intrinsics is None else len(path.intrinsics)
        raise ValueError(f"{episode.folder} has {len(path.c2w)} poses and {lenses} lenses for {frames} frames.")
    if not chunks or frames <= chunks or (frames - 1) % chunks:
        raise ValueError(f"{episode.folder} has {frames} frames, which are not the start and {chunks} equal chunks.")
    return path, (frames - 1) // chunks


def pose_vectors(c2w: np.ndarray) -> np.ndarray:
    """Poses (F, 4, 4) as the environment's `pose` observation has them: (F, 7) float32, position in metres and unit
    quaternion x, y, z, w with w >= 0."""
    quaternions = Rotation.from_matrix(c2w[:, :3, :3]).as_quat(canonical=True)
    return np.concatenate((c2w[:, :3, 3], quaternions), axis=-1).astype(np.float32)


def check_vacant(out: Path) -> None:
    """Raises FileExistsError unless an export can begin at `out`, and what a place that cannot be written raises."""
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise FileExistsError(f"{out} exists already: give another place for the export, or remove it.")
    check_writable(out.parent)


def check_room(folder: Path, nbytes: int) -> None:
    """Raises OSError unless so many bytes, and some, are free on the disk of a folder: HDF5 does not survive a full
    one."""
    if shutil.disk_usage(folder).free < nbytes + _SPARE_BYTES:
        raise OSError(errno.ENOSPC, "No space left on device")


@contextmanager
def appearing(out: Path) -> Iterator[Path]:
    """`with appearing(out) as folder`: what was made in `folder` becomes `out`; on any exception it goes away."""
    partial = out.with_name(out.name + PARTIAL)
    shutil.rmtree(partial, ignore_errors=True)  # of an export that was killed
    partial.mkdir(parents=True)
    try:
        yield partial
        if out.is_dir():
            out.rmdir()  # or say that something has come into it meanwhile
        partial.rename(out)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise OSError(f"The disk of {out} is full: make room and export again.") from error
        raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
