"""Export a dataset as a LeRobotDataset v3.0, the format of the library `lerobot`.

    meta/info.json                                        features, counts, patterns of file names
    meta/stats.json, meta/tasks.parquet                   of the whole dataset
    meta/episodes/chunk-000/file-000.parquet              a row per episode: where its rows and frames are, statistics
    data/chunk-000/file-000.parquet                       a row per frame
    videos/observation.images.camera/chunk-000/...mp4     the frames of many episodes
    README.md                                             a dataset card; it names the rows for `datasets.load_dataset`

A row is a frame f, and an episode has F = 24 n + 1 frames: frame 0 is the start image, frame 24 k ends step k.

    observation.images.camera   the frame
    observation.state           (7,) camera-to-world pose relative to frame 0: x y z in metres, quaternion x y z w
    action                      (6,) body twist, m/s and rad/s, from frame f to f + 1; zero in the last row
    next.reward                 of step k in row 24 k - 1, whose action completes it; zero elsewhere
    next.done                   true in the last row
    sanawm.c2w                  (16,) the pose as a matrix, row by row
    sanawm.intrinsics           (4,) fx fy cx cy in pixels of the video
    sanawm.chunk_index          0 for the start image, k for the frames of step k

Axes are OpenCV's: x right, y down, z forward. The task of an episode is its prompt, or its camera script if it has
none.

Videos are joined by copying packets, without encoding. Written from the format's description and the behaviour of
lerobot 0.6.1 (benchmarks/lerobot_readback.py reads an export with it); lerobot itself is not needed.
"""

import json
import os
from collections.abc import Generator, Mapping
from contextlib import AbstractContextManager, ExitStack
from fractions import Fraction
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import av
import numpy as np
from av.container import OutputContainer

from sanawm_env.recording.dataset import Dataset, Row, leave_out
from sanawm_env.recording.episode import RecordedEpisode
from sanawm_env.recording.exports import (
    Look,
    camera_path,
    check_some,
    check_vacant,
    pose_vectors,
    survey,
)
from sanawm_env.recording.rollout import VIDEO
from sanawm_env.recording.video import iterate_video, open_video, rate_of
from sanawm_env.system.packages import needing
from sanawm_env.system.saving import replacing_folder

if TYPE_CHECKING:
    import pyarrow

CODEBASE_VERSION = "v3.0"
CAMERA = "observation.images.camera"
QUANTILES = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}
FILE = "chunk-{chunk_index:03d}/file-{file_index:03d}"
DATA, VIDEOS = f"data/{FILE}.parquet", f"videos/{{video_key}}/{FILE}.mp4"
TASKS, EPISODES = "meta/tasks.parquet", f"meta/episodes/{FILE}.parquet"
CARD = "README.md"
MB = 2**20
_EPISODES_AT_ONCE = 100  # rows of meta/episodes that are written together
_AXES = ("x", "y", "z")
Stats = dict[str, np.ndarray]


class Column(NamedTuple):
    """A column of the data files.

    Attributes:
        dtype: name of NumPy's dtype.
        names: of its components; None for a single number.
    """

    dtype: str
    names: tuple[str, ...] | None = None

    @property
    def width(self) -> int:
        """Numbers per row."""
        return len(self.names) if self.names else 1

    @property
    def feature(self) -> dict[str, Any]:
        """The column as info.json describes it."""
        return {"dtype": self.dtype, "shape": [self.width], "names": list(self.names) if self.names else None}


COLUMNS = {
    "observation.state": Column("float32", (*_AXES, *(f"q{axis}" for axis in (*_AXES, "w")))),
    "action": Column("float32", (*(f"v{axis}" for axis in _AXES), *(f"w{axis}" for axis in _AXES))),
    "next.reward": Column("float32"),
    "next.done": Column("bool"),
    "sanawm.c2w": Column("float32", tuple(f"m{row}{column}" for row in range(4) for column in range(4))),
    "sanawm.intrinsics": Column("float32", ("fx", "fy", "cx", "cy")),
    "sanawm.chunk_index": Column("int64"),
    "timestamp": Column("float32"),
    "frame_index": Column("int64"),
    "episode_index": Column("int64"),
    "index": Column("int64"),
    "task_index": Column("int64"),
}


def export_lerobot(
    dataset: Dataset,
    out: str | os.PathLike,
    *,
    data_file_mb: float = 100,
    video_file_mb: float = 200,
    files_per_chunk: int = 1000,
) -> Generator[Row]:
    """Write all finished episodes of a dataset to the new folder `out`.

    Checks are made by the call itself, the work by the iterator that it returns. Until the iterator ends, files are in
    the folder `out.part`. One episode and one of its frames are in memory at a time. Damaged episodes are left out,
    which is logged.

    Args:
        dataset: to export.
        out: a new or empty folder.
        data_file_mb: size in MB at which another data file is begun; one episode always fits.
        video_file_mb: the same for videos.
        files_per_chunk: files in a folder.

    Yields:
        The row of each episode after it is written.

    Raises:
        ImportError: without pyarrow.
        FileExistsError: where `out` has contents.
        ValueError: for settings that are not above zero, a dataset without undamaged episodes, videos of different
            formats, or a frame rate that is no whole number.
        OSError: for example when the disk is full.
    """
    with needing("Exporting to LeRobot needs pyarrow", "data"):
        import pyarrow.parquet  # noqa: F401
    if not min(data_file_mb, video_file_mb) > 0 or files_per_chunk < 1:
        raise ValueError(
            "data_file_mb, video_file_mb and files_per_chunk must be above zero, got "
            f"{data_file_mb}, {video_file_mb} and {files_per_chunk}."
        )
    rows, look = survey(dataset)
    if look.fps.denominator != 1:
        raise ValueError(
            f"LeRobot needs a whole number of frames per second, {dataset.folder} has {float(look.fps):g}."
        )
    out = Path(out)
    check_vacant(out, dataset)
    limits = {
        "chunks_size": files_per_chunk,
        "data_files_size_in_mb": data_file_mb,
        "video_files_size_in_mb": video_file_mb,
    }
    return _export(dataset, rows, look, out, limits)


def _export(dataset: Dataset, rows: list[Row], look: Look, out: Path, limits: dict[str, Any]) -> Generator[Row]:
    import pyarrow

    with replacing_folder(out, alone=True, anew=True) as folder:
        tasks: dict[str, int] = {}
        totals: dict[str, Stats] = {}
        described: list[dict[str, Any]] = []
        number = first = 0
        per_folder = limits["chunks_size"]
        with ExitStack() as files:
            data = files.enter_context(_Tables(folder, DATA, limits["data_files_size_in_mb"] * MB, per_folder))
            meta = files.enter_context(_Tables(folder, EPISODES, limits["data_files_size_in_mb"] * MB, per_folder))
            videos = files.enter_context(_Videos(folder, limits["video_files_size_in_mb"] * MB, per_folder))
            for row in rows:
                try:  # to read all of it before any of it is written
                    episode = RecordedEpisode.open(dataset.folder / row.episode)
                    task = episode.meta["prompt"] or str(episode.meta.get("camera", ""))
                    columns = _columns(episode, number, first, tasks.get(task, len(tasks)), int(look.fps))
                    frames = len(columns["index"])
                    stats = {CAMERA: image_stats(episode, frames)}
                except (OSError, ValueError) as error:
                    leave_out(row, error)
                    continue
                tasks.setdefault(task, len(tasks))
                place = data.write(_table(columns))
                shown = videos.write(episode.folder / VIDEO, frames)
                stats |= {name: vector_stats(values) for name, values in columns.items()}
                totals = {name: pool(totals[name], new) if totals else new for name, new in stats.items()}
                facts: dict[str, Any] = {"episode_index": number, "tasks": [task], "length": frames}
                facts |= place.named("data") | {"dataset_from_index": first, "dataset_to_index": first + frames} | shown
                facts |= {f"stats/{name}/{key}": x for name, values in stats.items() for key, x in values.items()}
                described.append(_listed(facts))
                if len(described) == _EPISODES_AT_ONCE:
                    meta.write(pyarrow.Table.from_pylist(described), "meta/episodes")
                    described = []
                number, first = number + 1, first + frames
                yield row
            check_some(dataset, range(number))
            if described:
                meta.write(pyarrow.Table.from_pylist(described), "meta/episodes")
        _write_tasks(folder / TASKS, list(tasks))
        stats = {name: _listed(stats) for name, stats in totals.items()}
        counts = {"total_episodes": number, "total_frames": first, "total_tasks": len(tasks)}
        for name, facts in (("stats", stats), ("info", _info(look, counts, limits))):
            (folder / f"meta/{name}.json").write_text(json.dumps(facts, indent=4) + "\n", encoding="utf-8")
        (folder / CARD).write_text(_card(dataset, look, counts), encoding="utf-8")


# ---- what a row holds


def _columns(episode: RecordedEpisode, number: int, first: int, task: int, fps: int) -> dict[str, np.ndarray]:
    """The data rows of an episode, (F,) or (F, width) each."""
    (c2w, intrinsics, chunk), arrays = camera_path(episode), episode.arrays()
    frames = len(c2w)
    frame = np.arange(frames)
    reward = np.zeros(frames)
    reward[chunk - 1 : -1 : chunk] = arrays["rewards"]
    columns = {
        "observation.state": pose_vectors(c2w),
        "action": arrays["twists"],
        "next.reward": reward,
        "next.done": frame == frames - 1,
        "sanawm.c2w": c2w.reshape(frames, 16),
        "sanawm.intrinsics": intrinsics[:, (0, 1, 0, 1), (0, 1, 2, 2)],
        "sanawm.chunk_index": -(-frame // chunk),
        "timestamp": frame / fps,
        "frame_index": frame,
        "episode_index": np.full(frames, number),
        "index": first + frame,
        "task_index": np.full(frames, task),
    }
    return {name: np.asarray(columns[name], column.dtype) for name, column in COLUMNS.items()}


def vector_stats(values: np.ndarray) -> Stats:
    """Statistics over the rows of (F,) or (F, width): "min", "max", "mean", "std" and quantiles, (width,) float64 each,
    and "count" (1,).
    """
    values = values.reshape(len(values), -1).astype(np.float64)
    stats = {"min": values.min(0), "max": values.max(0), "mean": values.mean(0), "std": values.std(0)}
    quantiles = np.quantile(values, list(QUANTILES.values()), axis=0)
    return stats | {"count": np.array([len(values)])} | dict(zip(QUANTILES, quantiles, strict=True))


def image_stats(episode: RecordedEpisode, frames: int) -> Stats:
    """Statistics of the colours of a video, (3, 1, 1) each, from 0 (black) to 1 (white), over evenly spaced frames.

    The number of frames and the stride of pixels are lerobot's. Colours are counted, so that one frame is in memory at
    a time.

    Args:
        episode: its video is decoded.
        frames: the number of frames that it must have.

    Raises:
        ValueError: for a video with another number of frames, or that cannot be decoded.
    """
    most = max(min(frames, 100), min(int(frames**0.75), 10_000))
    chosen = set(np.linspace(0, frames - 1, most).round().astype(int).tolist())
    counts, shown = np.zeros((3, 256), np.int64), 0
    for index, frame in enumerate(iterate_video(episode.folder / VIDEO)):
        shown += 1
        if index in chosen:
            stride = max(1, max(frame.shape[:2]) // 150) if max(frame.shape[:2]) >= 300 else 1
            sample = frame[::stride, ::stride]
            counts += [np.bincount(sample[..., channel].ravel(), minlength=256) for channel in range(3)]
    if shown != frames:
        raise ValueError(f"The video of {episode.folder} has {shown} frames, not {frames}.")
    level, total = np.arange(256) / 255, counts.sum(1)
    mean = counts @ level / total
    below = np.cumsum(counts, axis=1)
    stats = {
        "min": level[(counts > 0).argmax(1)],
        "max": level[255 - (counts[:, ::-1] > 0).argmax(1)],
        "mean": mean,
        "std": np.sqrt((counts * (level - mean[:, None]) ** 2).sum(1) / total),
        **{name: level[(below >= share * total[:, None]).argmax(1)] for name, share in QUANTILES.items()},
    }
    return {name: value.reshape(3, 1, 1) for name, value in stats.items()} | {"count": np.array([len(chosen)])}


def pool(a: Stats, b: Stats) -> Stats:
    """Statistics of two sets of rows together. Quantiles become means weighted by the counts, as in lerobot."""
    count = a["count"] + b["count"]
    share = b["count"] / count
    pooled = {name: a[name] + share * (b[name] - a[name]) for name in ("mean", *QUANTILES)}
    variance = (1 - share) * a["std"] ** 2 + share * b["std"] ** 2 + share * (1 - share) * (b["mean"] - a["mean"]) ** 2
    extremes = {"min": np.minimum(a["min"], b["min"]), "max": np.maximum(a["max"], b["max"])}
    return extremes | pooled | {"std": np.sqrt(variance), "count": count}


# ---- files


class _Place(NamedTuple):
    """The folder and the file in it, both numbered."""

    chunk: int
    file: int

    def path(self, folder: Path, pattern: str) -> Path:
        """Its path; the folder is made."""
        path = folder / pattern.format(video_key=CAMERA, chunk_index=self.chunk, file_index=self.file)
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def named(self, prefix: str) -> dict[str, int]:
        """As the rows of meta/episodes have it."""
        return {f"{prefix}/chunk_index": self.chunk, f"{prefix}/file_index": self.file}


class _Tables(AbstractContextManager):
    """A context manager that writes Parquet files of at most `most_bytes`, with a row group per table."""

    def __init__(self, folder: Path, pattern: str, most_bytes: float, per_folder: int):
        self._folder, self._pattern, self._most, self._per_folder = folder, pattern, most_bytes, per_folder
        self._out: tuple[FileIO, pyarrow.parquet.ParquetWriter] | None = None
        self._number = -1

    def __exit__(self, *exception) -> None:
        out, self._out = self._out, None
        if out is not None:
            file, writer = out
            with file:
                writer.close()

    def write(self, table: "pyarrow.Table", label: str = "") -> _Place:
        """Append a table, and return its place. label: prefix of two columns that are added for the place."""
        import pyarrow
        from pyarrow import parquet

        out = self._out
        full = out is None or os.fstat(out[0].fileno()).st_size + table.nbytes > self._most
        place = _Place(*divmod(self._number + full, self._per_folder))
        if label:
            for name, value in place.named(label).items():
                table = table.append_column(name, pyarrow.array([value] * len(table), pyarrow.int64()))
        if out is None or full:
            self.__exit__()
            self._number += 1
            file = place.path(self._folder, self._pattern).open("wb", buffering=0)  # Arrow takes no name but in UTF-8
            out = self._out = file, parquet.ParquetWriter(file, table.schema)
        out[1].write_table(table)
        return place


class _Videos(AbstractContextManager):
    """A context manager that joins the videos of episodes into videos of at most `most_bytes`."""

    def __init__(self, folder: Path, most_bytes: float, per_folder: int):
        self._folder, self._most, self._per_folder = folder, most_bytes, per_folder
        self._out: tuple[OutputContainer, av.VideoStream] | None = None
        self._header: bytes | None = None
        self._number, self._bytes, self._frames = -1, 0, 0

    def __exit__(self, *exception) -> None:
        if self._out is not None:
            self._out[0].close()

    def write(self, path: Path, frames: int) -> dict[str, Any]:
        """Append a video of so many frames, and return its place and times as meta/episodes names them."""
        size = path.stat().st_size
        with open_video(path) as (source, stream):
            # what decoders read once at the front of a file: where it differs, packets cannot follow on each other
            header = stream.codec_context.extradata
            if self._out is None or self._bytes + size > self._most or header != self._header:
                self._out = self._begin(stream)
            container, joined = self._out
            rate = rate_of(path, stream)
            shift = round(Fraction(self._frames) / rate / cast(Fraction, stream.time_base)) - (stream.start_time or 0)
            for packet in source.demux(stream):
                if packet.dts is None:
                    continue  # the mark of the end
                packet.pts, packet.dts, packet.stream = cast(int, packet.pts) + shift, packet.dts + shift, joined
                container.mux(packet)
        start, self._frames, self._bytes = self._frames, self._frames + frames, self._bytes + size
        times = {"from_timestamp": float(start / rate), "to_timestamp": float(self._frames / rate)}
        place = _Place(*divmod(self._number, self._per_folder)).named(f"videos/{CAMERA}")
        return place | {f"videos/{CAMERA}/{name}": value for name, value in times.items()}

    def _begin(self, like: av.VideoStream) -> tuple[OutputContainer, av.VideoStream]:
        self.__exit__()
        self._number, self._bytes, self._frames = self._number + 1, 0, 0
        path = _Place(*divmod(self._number, self._per_folder)).path(self._folder, VIDEOS)
        container = av.open(f"file:{path}", "w", format="mp4", options={"movflags": "+faststart"})
        joined = container.add_stream_from_template(like)
        joined.time_base = like.time_base
        self._header = like.codec_context.extradata
        return container, joined


def _table(columns: Mapping[str, np.ndarray]) -> "pyarrow.Table":
    import pyarrow

    arrays = {}
    for name, values in columns.items():
        flat = pyarrow.array(values.ravel())
        width = COLUMNS[name].width
        arrays[name] = flat if width == 1 else pyarrow.FixedSizeListArray.from_arrays(flat, width)
    return pyarrow.table(arrays)


def _write_tasks(path: Path, tasks: list[str]) -> None:
    """Write the texts of tasks in the order of their numbers, as the index of a table for pandas."""
    import pyarrow
    from pyarrow import parquet

    kinds = {"task_index": "int64", "task": "object"}
    columns = [{"name": name, "field_name": name, "pandas_type": "unicode" if kind == "object" else kind,
                "numpy_type": kind, "metadata": None} for name, kind in kinds.items()]  # fmt: skip
    pandas = {"index_columns": ["task"], "column_indexes": [], "columns": columns, "pandas_version": "2.0.0"}
    table = pyarrow.table({"task_index": np.arange(len(tasks), dtype=np.int64), "task": tasks})
    with path.open("wb") as file:
        parquet.write_table(table.replace_schema_metadata({"pandas": json.dumps(pandas)}), file)


def _info(look: Look, counts: dict[str, int], limits: dict[str, Any]) -> dict[str, Any]:
    video = {
        "video.height": look.height,
        "video.width": look.width,
        "video.codec": look.codec,
        "video.pix_fmt": look.pix_fmt,
        "video.fps": int(look.fps),
        "video.channels": 3,
        "has_audio": False,
        "is_depth_map": False,
    }
    camera = {
        "dtype": "video",
        "shape": [look.height, look.width, 3],
        "names": ["height", "width", "channels"],
        "info": video,
    }
    return {
        "codebase_version": CODEBASE_VERSION,
        "robot_type": "sanawm_camera",
        **counts,
        **limits,
        "fps": int(look.fps),
        "splits": {"train": f"0:{counts['total_episodes']}"},
        "data_path": DATA,
        "video_path": VIDEOS,
        "features": {CAMERA: camera} | {name: column.feature for name, column in COLUMNS.items()},
    }


def _card(dataset: Dataset, look: Look, counts: dict[str, int]) -> str:
    """A dataset card for hubs. Without `configs`, `datasets` would also take the tables of meta/ for rows."""
    world = json.dumps({name: dataset.header.get(name) for name in ("world", "weights_hash")})
    return f"""---
license: unknown
task_categories:
- robotics
tags:
- LeRobot
- sanawm-env
configs:
- config_name: default
  data_files:
  - split: train
    path: data/**/*.parquet
---

# Walks predicted by a world model

{counts["total_episodes"]} episodes, {counts["total_frames"]} frames: {look}. A LeRobotDataset {CODEBASE_VERSION}
written by sanawm-env. No licence was chosen for it: name yours above before you share it. The frames were made by:

    {world}

A row is a frame; `meta/info.json` has the features. `action` is the body twist to the next frame in m/s and rad/s,
`observation.state` the camera-to-world pose relative to frame 0 (metres; quaternion x y z w), axes OpenCV's. The
images are in `videos/{CAMERA}`.

    LeRobotDataset("name", root="this folder")          # lerobot: rows with their images
    datasets.load_dataset("this folder")                # datasets: the rows alone
"""


def _listed(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in values.items()}
