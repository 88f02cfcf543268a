"""Write a clip to a folder: video.mp4, trajectory.npz, contact_sheet.png and meta.json. `episode` adds what is needed
to repeat it.

The keys of trajectory.npz are those of SANA-WM-Bench (camera reference, section 7.1); `camera.trajectory` reads it.
Frame 0, the start image, is in the video: n chunks give F = 24 n + 1 frames, and c2w[f] is the pose of frame f.
"""

import hashlib
import json
import os
import platform
import shutil
import tempfile
from collections.abc import Mapping
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, Self

import numpy as np

from sanawm_env.camera.trajectory import load_trajectory as load_trajectory
from sanawm_env.recording.sheet import contact_sheet, evenly_spaced
from sanawm_env.recording.video import VideoWriter
from sanawm_env.system.files import file_sha256
from sanawm_env.system.saving import check_target, remove, replacing_files, with_sentence, write_text
from sanawm_env.world.thumbnails import thumbnail

VIDEO, TRAJECTORY, SHEET, META = "video.mp4", "trajectory.npz", "contact_sheet.png", "meta.json"

_MIN_FREE_BYTES = 64 * 2**20
_THUMBNAIL_WIDTH, _MOST_THUMBNAILS = 320, 64
_SHEET_COLUMNS, _SHEET_ROWS = 5, 3


class RolloutWriter:
    """A context manager that takes frames and poses, and writes the files of a clip to `out_dir`.

    The constructor checks that the folder can be written, so that a rollout fails before the work. Poses and a few
    thumbnails are in memory, however long the rollout. Leaving the block for any reason, Ctrl-C included, finishes the
    files with the frames appended so far. Until then they are in the folder `video.mp4.part` in `out_dir`. The files of
    an earlier rollout are replaced together, and stay where that fails. Without frames, nothing is written.

    meta.json gets fps, num_frames, interrupted, versions, the settings of the video, the SHA-256 of all frames as they
    were given (`frames_sha256`) and those of the files (`files`).

    Args:
        out_dir: the folder, made if missing.
        fps: frames per second.
        meta: further entries for meta.json; `writer.meta` may be extended until the block ends. Its "title" heads the
            contact sheet.
        sheet: whether to draw the contact sheet.
        video: settings of `VideoWriter`.

    Raises:
        NotADirectoryError: where `out_dir` is a file.
        IsADirectoryError: where one of the files is a folder.
        PermissionError: for a folder that must not be written.
        OSError: for example when the disk is full.
        ValueError: for settings of the video out of range.
        BlockingIOError: on entering, while another writer writes to the folder.
    """

    names: tuple[str, ...] = (VIDEO, TRAJECTORY, SHEET, META)
    hashed: tuple[str, ...] = (VIDEO, TRAJECTORY)

    def __init__(
        self,
        out_dir: str | os.PathLike,
        fps: float = 16,
        meta: Mapping[str, Any] | None = None,
        *,
        sheet: bool = True,
        **video: Any,
    ):
        self.out_dir = Path(out_dir)
        self._absolute = self.out_dir.absolute()
        self.fps = fps
        self.meta = dict(meta or {}) | {"video": video}
        check_writable(self.out_dir, self.names)
        self._sheet, self._upscale, self._how = sheet, video.get("upscale", 1), video
        self._saving, self._part = replacing_files(self.out_dir, self.names), None
        self._video = VideoWriter(self.out_dir / VIDEO, fps=fps, **video)
        self._hash = hashlib.sha256()
        self._c2w: list[np.ndarray] = []
        self._intrinsics: list[np.ndarray] = []
        self._thumbnails = _Thumbnails()

    @property
    def num_frames(self) -> int:
        """Frames in the video so far."""
        return self._video.num_frames

    def __enter__(self) -> Self:
        self._begin()
        return self

    def _begin(self) -> None:
        if self._part is None:
            self._part = self._saving.__enter__()
            self._video = VideoWriter(self._part / VIDEO, fps=self.fps, **self._how)

    def append(self, frames: np.ndarray, c2w: np.ndarray, intrinsics: np.ndarray) -> None:
        """Add N frames: first the start image (N = 1), then clip after clip (N = 24).

        Args:
            frames: (N, H, W, 3) uint8.
            c2w: (N, 4, 4) camera-to-world matrices.
            intrinsics: (3, 3) or (N, 3, 3) matrices in pixels of the frames. The file has them in pixels of the video,
                which is `upscale` times as large.

        Raises:
            ValueError: for other shapes.
            OSError: where the video cannot be written.
        """
        frames, c2w, intrinsics = np.asarray(frames), np.asarray(c2w), np.asarray(intrinsics)
        count = len(frames) if frames.ndim else 0
        if c2w.shape != (count, 4, 4):
            raise ValueError(f"{count} frames need c2w ({count}, 4, 4), got {c2w.shape}")
        if intrinsics.shape not in ((3, 3), (count, 3, 3)):
            raise ValueError(f"{count} frames need intrinsics (3, 3) or ({count}, 3, 3), got {intrinsics.shape}")
        self._begin()
        # Poses first: if Ctrl-C falls into the encoding, there is a pose for every frame in the video.
        self._c2w.append(c2w.copy())
        self._intrinsics.append(np.broadcast_to(intrinsics, (count, 3, 3)).copy())
        first = self._video.num_frames
        try:
            self._video.append(frames)
        except ValueError:
            self._c2w.pop(), self._intrinsics.pop()
            raise
        except OSError as error:
            raise self._saving.said(error) from error
        finally:
            written = frames[: self._video.num_frames - first]
            self._hash.update(np.ascontiguousarray(written).data)
            self._thumbnails.add(first, written)

    def glance(self, most: int = _MOST_THUMBNAILS) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Evenly spaced frames so far, the last one included.

        Args:
            most: the largest number of frames.

        Returns:
            Indices (K,), frames (K, h, w, 3) uint8 at most 320 pixels wide, and their c2w (K, 4, 4).

        Raises:
            ValueError: before the first frame.
        """
        indices, frames = self._thumbnails.pick(most)
        return indices, frames, self._poses()[indices]

    def _poses(self) -> np.ndarray:
        return np.concatenate(self._c2w)[: self.num_frames]

    def close(self) -> None:
        """Finish the files, as leaving the block does."""
        self.__exit__(None, None, None)

    def abandon(self) -> None:
        """Delete the folder."""
        self._video.discard()
        self._saving.discard()
        remove(self._absolute)

    def __exit__(self, exception_type, *_) -> None:
        try:
            self._video.close()
            if self._part is not None and self.num_frames:
                self._write(self._part, interrupted=exception_type is not None)
                self._saving.__exit__(None, None, None)
        except OSError as error:
            raise self._saving.said(error) from error
        finally:
            self._saving.discard()

    def _write(self, folder: Path, interrupted: bool) -> None:
        """Write all files but the video."""
        c2w, intrinsics = self._poses(), np.concatenate(self._intrinsics)[: self.num_frames]
        intrinsics[:, :2] *= self._upscale  # pixels of the video
        np.savez_compressed(
            folder / TRAJECTORY, c2w=c2w, intrinsics=intrinsics, fps=self.fps, num_frames=self.num_frames
        )
        facts = self.meta | {
            "fps": self.fps,
            "num_frames": self.num_frames,
            "interrupted": interrupted,
            "frames_sha256": self._hash.hexdigest(),
            "files": {name: file_sha256(folder / name) for name in self.hashed},
            "versions": versions(),
        }
        write_text(folder / META, to_json(facts))
        if not self._sheet:
            return
        indices, thumbnails = self._thumbnails.pick(_SHEET_COLUMNS * _SHEET_ROWS)
        contact_sheet(
            thumbnails,
            folder / SHEET,
            columns=_SHEET_COLUMNS,
            rows=_SHEET_ROWS,
            c2w=c2w,
            indices=indices,
            fps=self.fps,
            title=str(self.meta.get("title", "")),
        )


@cache
def versions() -> dict[str, str]:
    """Versions of what decides the bytes of a rollout; nothing is imported."""
    return {
        "sanawm_env": metadata.version("sanawm-env"),
        "torch": metadata.version("torch"),
        "numpy": np.__version__,
        "av": metadata.version("av"),
        "python": platform.python_version(),
    }


class _Thumbnails:
    """Evenly spaced small copies of a stream of unknown length, its last frame included."""

    def __init__(self):
        self._stride = 1
        self._kept: list[tuple[int, np.ndarray]] = []
        self._last: tuple[int, np.ndarray] | None = None

    def add(self, first: int, frames: np.ndarray) -> None:
        for index, frame in enumerate(frames, start=first):
            if index % self._stride == 0:
                self._kept.append((index, thumbnail(frame, _THUMBNAIL_WIDTH)))
            if len(self._kept) > _MOST_THUMBNAILS:  # too many: keep every second from now on
                self._stride *= 2
                self._kept = [(kept, image) for kept, image in self._kept if kept % self._stride == 0]
        if len(frames):
            self._last = (first + len(frames) - 1, thumbnail(frames[-1], _THUMBNAIL_WIDTH))

    def pick(self, most: int) -> tuple[np.ndarray, np.ndarray]:
        """At most `most` of them: indices (K,) and frames (K, h, w, 3)."""
        kept = self._kept
        if self._last is not None and kept[-1][0] != self._last[0]:
            kept = [*kept, self._last]
        chosen = [kept[place] for place in evenly_spaced(len(kept), most)]
        return np.array([index for index, _ in chosen]), np.stack([image for _, image in chosen])


def check_writable(out_dir: Path, names: tuple[str, ...] = ()) -> None:
    """Make a folder, and check that it can be written and has at least 64 MB free, so that a command fails before its
    work.

    Args:
        out_dir: the folder.
        names: files in it that will be written.

    Raises:
        NotADirectoryError: where the folder is a file.
        IsADirectoryError: where one of the files is a folder.
        PermissionError: for a folder that must not be written.
        OSError: for a full disk, or a file of these names that is no regular file.
    """
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out_dir) as probe:
            probe.write(b"\0" * 4096)
    except (FileExistsError, NotADirectoryError):
        raise NotADirectoryError(f"cannot write to {out_dir}: a file stands where a folder is needed") from None
    except OSError as error:
        said = f"cannot write to {out_dir}: {error.strerror or error}, choose another folder"
        raise with_sentence(error, said) from None
    for name in names:
        check_target(out_dir / name)
    if shutil.disk_usage(out_dir).free < _MIN_FREE_BYTES:
        raise OSError(f"cannot write to {out_dir}: less than {_MIN_FREE_BYTES >> 20} MB are free on its disk")


def to_json(facts: Mapping[str, Any]) -> str:
    """JSON with one line per entry, so that long lists do not make it unreadable. Values other than JSON's are written
    as lists (NumPy arrays) or text.
    """
    lines = [f"  {json.dumps(str(name))}: {json.dumps(value, default=_plain)}" for name, value in facts.items()]
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _plain(value) -> object:
    """JSON for what callers put into meta besides plain values: NumPy numbers and arrays, paths, anything's text."""
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else str(value)
