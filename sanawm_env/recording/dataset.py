"""A dataset: a folder of episodes in shards, with one manifest row per episode.

    dataset.json                        what all episodes share: world, hash of its weights, settings, frame size
    shard-0000/manifest.jsonl           a row per episode, finished or rejected
    shard-0000/episode-00000/           an episode, see `episode`

Each writer makes a shard of its own, so that any number of processes and machines can write to one dataset. An
episode has a temporary name (`episode-00000.partial`) until it is whole.
"""

import json
import logging
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

from pydantic import Field

from sanawm_env.recording.episode import FILES, EpisodeWriter, RecordedEpisode
from sanawm_env.recording.rollout import VIDEO, check_writable, to_json
from sanawm_env.recording.video import MAX_UPSCALE, check_square, iterate_video, open_video
from sanawm_env.system.files import (
    brief,
    check_count,
    explaining,
    file_sha256,
    link,
    parse_json,
    read_json,
    read_text,
    reason,
    visible,
)
from sanawm_env.system.saving import check_outside, is_part, only_writer, remove, write_text
from sanawm_env.system.settings import differences, read
from sanawm_env.world.saved import MAX_SEED

DATASET, MANIFEST, SHARDS, PARTIAL = "dataset.json", "manifest.jsonl", "shard-*", ".partial"
SCHEMA = 1
MAX_HEADER_BYTES, MAX_ROW_BYTES, MAX_MANIFEST_BYTES = 2**20, 2**20, 2**30
Natural = Annotated[int, Field(ge=0, le=MAX_SEED)]
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Header:
    """What `dataset.json` must hold besides its schema. It is equal in all datasets that are merged. The file may hold
    more.

    Attributes:
        weights_hash: of the world.
        fps: frames per second.
        height: of frames, in pixels, before any upscaling of the video.
        width: likewise.
        chunk_frames: frames of a step.
        action_mode: of the environment.
    """

    weights_hash: str
    fps: Annotated[float, Field(ge=0.01, le=1000)]
    height: Annotated[int, Field(ge=1, le=10**6)]
    width: Annotated[int, Field(ge=1, le=10**6)]
    chunk_frames: Annotated[int, Field(ge=1, le=10**6)]
    action_mode: str


_WHOLE = tuple(field.name for field in fields(Header))


@dataclass(frozen=True)
class Row:
    """A row of the manifest.

    Attributes:
        id: of the episode's job: a hash of everything that decides the episode.
        episode: its folder, relative to the dataset; "" for a rejected one.
        camera: name of the script.
        source: path of the start image, as it was given.
        scene: hash of the start image's contents.
        seed: of the episode.
        chunks: steps.
        frames: frames of the video, the start image included.
        bytes: size on disk.
        measures: what the quality gates measured; None for what could not be measured.
        reason: why the episode was rejected; "" otherwise.
    """

    id: str
    episode: str = ""
    camera: str = ""
    source: str = ""
    scene: str = ""
    seed: Natural = 0
    chunks: Natural = 0
    frames: Natural = 0
    bytes: Natural = 0
    measures: Mapping[str, float | None] = field(default_factory=dict)
    reason: str = ""

    @classmethod
    def of(cls, episode: RecordedEpisode, name: str) -> "Row":
        """The row of a finished episode, from its meta.json."""
        meta = episode.meta
        size = sum(path.stat().st_size for path in episode.folder.iterdir())
        identity, camera, source, scene = (str(meta.get(key, "")) for key in ("id", "camera", "source", "scene"))
        return cls(
            id=identity, camera=camera, source=source, scene=scene,
            episode=name, seed=meta["seed"], chunks=episode.chunks, frames=meta["num_frames"], bytes=size,
        )  # fmt: skip


@dataclass(frozen=True, eq=False)
class Dataset:
    """A dataset on disk.

    Attributes:
        folder: of the dataset.
        header: contents of `dataset.json`.
    """

    folder: Path
    header: dict[str, Any]

    @classmethod
    def create(cls, folder: str | os.PathLike, header: Mapping[str, Any]) -> "Dataset":
        """The dataset in a folder; a new one if there is none.

        Raises:
            ValueError: where the folder has a dataset with another header.
            OSError: where the folder cannot be written.
        """
        folder, header = Path(folder), json.loads(to_json({"schema": SCHEMA, **header}))
        check_writable(folder)
        if not (folder / DATASET).exists():
            write_text(folder / DATASET, to_json(header))
        made = cls.open(folder)
        if other := differences(made.header, header):
            raise ValueError(f"{folder} was collected with other settings: {other}. Use another folder.")
        return made

    @classmethod
    def open(cls, folder: str | os.PathLike) -> "Dataset":
        """The dataset in a folder.

        Raises:
            FileNotFoundError: where there is no `dataset.json`.
            ValueError: for a `dataset.json` that is damaged or of another schema.
        """
        folder = Path(folder)
        path = folder / DATASET
        if not path.exists():
            raise FileNotFoundError(f"There is no dataset in {folder}: `sanawm collect` makes one, with a {DATASET}.")
        with explaining(f"{path} does not describe a dataset"):
            header = read_json(path, MAX_HEADER_BYTES)
            if header.get("schema") != SCHEMA:
                raise ValueError(f"it has schema {brief(header.get('schema'))}, this version reads {SCHEMA}")
            read(Header, header, others=True)
        return cls(folder, header)

    @property
    def shards(self) -> list[Path]:
        """Folders of the shards, sorted. Links to shards elsewhere are read, and never written."""
        return sorted(path for path in self.folder.glob(SHARDS) if path.is_dir())

    def rows(self) -> list[Row]:
        """All rows, in order. An episode that a killed writer finished without a row gets one.

        Raises:
            ValueError: for a manifest that is damaged, or names a folder outside its shard.
        """
        return [row for shard in self.shards for row in _shard_rows(shard)]

    def finished(self) -> list[Row]:
        """The rows of finished episodes, one per id. Raises as `rows`."""
        first: dict[str, Row] = {}
        for row in self.rows():
            if row.episode:
                first.setdefault(row.id, row)
        return list(first.values())

    def episodes(self) -> Iterator[RecordedEpisode]:
        """The finished episodes, one per id. Raises as `rows` and `RecordedEpisode.open`."""
        return (RecordedEpisode.open(self.folder / row.episode) for row in self.finished())


class Shard:
    """A context manager: the folder that one writer puts its episodes into. A shard that stays empty is removed.

    Args:
        dataset: gets the new shard.
    """

    def __init__(self, dataset: Dataset):
        number = 0
        while True:
            self.folder = dataset.folder / f"shard-{number:04d}"
            try:
                self.folder.mkdir()  # one writer gets it, whoever else tries
                break
            except FileExistsError:
                number += 1
        self._lock = only_writer(self.folder)
        self._episodes = 0

    def __enter__(self) -> "Shard":
        self._lock.__enter__()
        return self

    def __exit__(self, *exception) -> None:
        _remove_partials(self.folder)
        self._lock.__exit__(*exception)
        if not (self.folder / MANIFEST).exists():
            remove(self.folder)

    def begin(self) -> Path:
        """The folder for the next episode, which does not exist yet."""
        self._episodes += 1
        return self.folder / f"episode-{self._episodes - 1:05d}{PARTIAL}"

    def accept(self, partial: Path) -> Row:
        """Give the finished episode in a folder of `begin` its final name, and return its row."""
        final = partial.with_name(partial.name.removesuffix(PARTIAL))
        os.rename(partial, final)
        return Row.of(RecordedEpisode.open(final), f"{self.folder.name}/{final.name}")

    def reject(self, partial: Path, reason: str) -> Row:
        """Delete the episode in a folder of `begin`, and return a row that says why."""
        row = replace(Row.of(RecordedEpisode.open(partial), ""), bytes=0, reason=reason)
        remove(partial)
        return row

    def note(self, row: Row) -> None:
        """Append a row to the manifest."""
        line = json.dumps(asdict(replace(row, episode=PurePosixPath(row.episode).name))) + "\n"
        with (self.folder / MANIFEST).open("a", encoding="utf-8") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())


def clean(dataset: Dataset) -> None:
    """Remove the unfinished episodes of killed writers. Shards of running writers and links are left alone."""
    for shard in dataset.shards:
        if not shard.is_symlink() and _unfinished(shard):
            with suppress(BlockingIOError), only_writer(shard):
                _remove_partials(shard)


def finished(folder: Path, suffixes: Collection[str]) -> list[Path]:
    """Files of these suffixes in a folder and below it, sorted, without hidden ones and those that are being written or
    were when their writer was killed."""
    found = [path for path in visible(folder, "**/*") if path.suffix.lower() in suffixes]
    inside = ((path, path.relative_to(folder)) for path in found)
    return [p for p, at in inside if not is_part(at) and not any(part.endswith(PARTIAL) for part in at.parts)]


def _remove_partials(shard: Path) -> None:
    for partial in _unfinished(shard):
        remove(partial)


def _unfinished(shard: Path) -> list[Path]:
    """The folders of unfinished episodes; nothing else with such a name."""
    found = shard.glob(f"episode-*{PARTIAL}")
    return [path for path in found if path.is_dir() and not path.is_symlink()]


def merge(sources: Sequence[str | os.PathLike], out: str | os.PathLike) -> Iterator[Row]:
    """Merge datasets into the folder `out`. Episodes that are there already, by their ids, are not copied again, so a
    merge that was interrupted continues.

    Files are hard-linked where possible and copied otherwise. Damaged episodes are left out, which is logged.

    Args:
        sources: folders of datasets.
        out: a new folder, or a merged dataset to extend.

    Yields:
        The row of each episode after it was copied, or noted as rejected.

    Raises:
        FileNotFoundError: for a folder without a dataset, before anything is written.
        ValueError: for no datasets, for datasets that differ in `Header`, or for `out` within one of them, before
            anything is written.
        BlockingIOError: while another process merges into `out`.
    """
    datasets = [Dataset.open(source) for source in sources]
    if not datasets:
        raise ValueError("Give at least one dataset to merge.")
    for dataset in datasets:
        check_outside(out, dataset.folder)
    lead, held = datasets[0], [Dataset.open(out)] if (Path(out) / DATASET).exists() else []
    for other in (*datasets[1:], *held):
        for name in _WHOLE:
            if other.header[name] != lead.header[name]:
                raise ValueError(
                    f"{other.folder} cannot be merged with {lead.folder}: its {name} is {brief(other.header[name])}, "
                    f"not {brief(lead.header[name])}."
                )
    pairs = [(dataset, row) for dataset in datasets for row in dataset.rows()]
    check_writable(Path(out))
    target = held[0] if held else Dataset.create(out, lead.header)
    with only_writer(target.folder, "merge.lock"):
        yield from _merge(target, pairs)


def _merge(target: Dataset, pairs: list[tuple[Dataset, Row]]) -> Iterator[Row]:
    clean(target)
    known = {row.id for row in target.rows()}
    with Shard(target) as shard:
        for dataset, row in pairs:
            if row.id in known:
                continue
            if row.episode:
                try:
                    _check_readable(RecordedEpisode.open(dataset.folder / row.episode))
                except (OSError, ValueError) as error:
                    leave_out(row, error)
                    continue
                partial = shard.begin()
                partial.mkdir()
                for name in FILES:
                    link(dataset.folder / row.episode / name, partial / name)
                accepted = shard.accept(partial)
                row = replace(row, episode=accepted.episode)
            known.add(row.id)
            shard.note(row)
            yield row


def leave_out(row: Row, error: Exception) -> None:
    """Log that a damaged episode is left out."""
    _log.warning("%s is left out: %s.", row.episode, reason(error))


def validate(dataset: Dataset, thorough: bool = True) -> Iterator[tuple[str, list[str]]]:
    """Check every episode.

    Args:
        dataset: to check.
        thorough: whether videos are decoded to the end.

    Yields:
        The episode's folder, and a list of sentences about what is wrong with it; an empty one if it is good.

    Raises:
        ValueError: for manifests that cannot be read.
    """
    seen: dict[str, str] = {}
    for row in dataset.rows():
        if not row.episode:
            continue
        problems = []
        if row.id in seen:
            problems.append(f"it is the same episode as {seen[row.id]}")
        seen[row.id] = row.episode
        try:
            problems += _problems(dataset, row, thorough)
        except (OSError, ValueError) as error:
            problems.append(str(error))
        yield row.episode, problems


def _problems(dataset: Dataset, row: Row, thorough: bool) -> Iterator[str]:
    episode = RecordedEpisode.open(dataset.folder / row.episode)
    meta, frames = episode.meta, episode.meta["num_frames"]
    missing = [name for name in FILES if not (episode.folder / name).is_file()]
    if missing:
        yield f"it has no {', '.join(missing)}"
        return
    if meta["weights_hash"] != dataset.header["weights_hash"]:
        yield "it was predicted by other weights than the rest"
    for name, says in asdict(Row.of(episode, row.episode)).items():
        if name not in ("measures", "reason") and says != getattr(row, name):
            yield f"its {name} is {brief(says)}, the manifest says {brief(getattr(row, name))}"
    if meta["fps"] != dataset.header["fps"]:
        yield f"it has {meta['fps']} frames a second, the dataset {brief(dataset.header['fps'])}"
    hashes = meta.get("files")
    for name in EpisodeWriter.hashed:
        if not isinstance(hashes, dict) or file_sha256(episode.folder / name) != hashes.get(name):
            yield f"{name} has changed since it was written"
    if frames != 1 + episode.chunks * dataset.header["chunk_frames"]:
        yield f"{frames} frames are not the start and {episode.chunks} chunks"
    trajectory = episode.trajectory()
    if len(trajectory.c2w) != frames:
        yield f"its trajectory has {len(trajectory.c2w)} poses for {frames} frames"
    if trajectory.fps not in (None, meta["fps"]):
        yield f"its trajectory has {trajectory.fps:g} poses a second for {meta['fps']:g} frames"
    with open_video(episode.folder / VIDEO) as (_, stream):
        times = (meta.get("video") or {}).get("upscale", 1)
        check_count("upscale of its video", times, 1, MAX_UPSCALE)
        sides = [(side * times + 1) // 2 * 2 for side in (dataset.header["height"], dataset.header["width"])]
        if [stream.height, stream.width] != sides:  # which are even
            yield f"its video has {stream.height} x {stream.width} pixels, not {sides[0]} x {sides[1]}"
        try:
            check_square(stream)
        except ValueError as error:
            yield f"{VIDEO}: {error}"
        rate = stream.average_rate
        if rate is None or abs(float(rate) - meta["fps"]) > 0.01:
            yield f"its video has {'no rate' if rate is None else f'{float(rate):g} frames a second'}"
    episode.arrays()
    if thorough:
        shown = sum(1 for _ in iterate_video(episode.folder / VIDEO))
        if shown != frames:
            yield f"its video has {shown} frames, not {frames}"


def _shard_rows(shard: Path) -> Iterator[Row]:
    noted = set()
    manifest = shard / MANIFEST
    with explaining(f"{manifest} cannot be read"):
        *lines, rest = read_text(manifest, MAX_MANIFEST_BYTES).split("\n") if manifest.exists() else [""]
    for number, line in enumerate([*lines, rest] if rest else lines, start=1):
        try:
            row = read(Row, parse_json(line[:MAX_ROW_BYTES]), others=True)
        except ValueError as error:
            if number > len(lines):
                break  # its writer was killed while it wrote: the episode, if there is one, is found below
            raise ValueError(
                f"Line {number} of {manifest} is not a row of a manifest ({reason(error)}): restore or remove the line."
            ) from error
        if row.episode and (not _is_name(row.episode) or (shard / row.episode).is_symlink()):
            named = brief(row.episode)
            raise ValueError(
                f"Line {number} of {manifest} names {named}, which is not a folder of its shard: correct or remove "
                "the line."
            )
        noted.add(row.episode)
        yield replace(row, episode=row.episode and f"{shard.name}/{row.episode}")
    for folder in sorted(shard.glob("episode-*")):
        if folder.suffix != PARTIAL and folder.name not in noted and folder.is_dir() and not folder.is_symlink():
            name = f"{shard.name}/{folder.name}"
            try:
                yield Row.of(RecordedEpisode.open(folder), name)
            except (OSError, ValueError):
                yield Row(id=name, episode=name)  # damaged, as whoever opens it will find


def _is_name(text: Any) -> bool:
    """Whether a text names a folder in the same folder."""
    return isinstance(text, str) and text not in ("", ".", "..") and not set(text) & set("/\\\0")


def _check_readable(episode: RecordedEpisode) -> None:
    """FileNotFoundError or ValueError unless all files of an episode are there, can be read, and are no links. The
    video is not decoded.
    """
    for name in FILES:
        path = episode.folder / name
        if path.is_symlink():
            raise ValueError(f"{path} is a link to elsewhere: put the file itself there")
        if not path.is_file():
            raise FileNotFoundError(f"it has no {name}")
    episode.trajectory(), episode.arrays()
    with open_video(episode.folder / VIDEO):
        pass


def totals(rows: Iterable[Row]) -> dict[str, int]:
    """Sums over rows: "episodes", "rejected", "chunks", "frames" and "bytes"."""
    rows = list(rows)
    kept = [row for row in rows if row.episode]
    sums = {name: sum(getattr(row, name) for row in kept) for name in ("chunks", "frames", "bytes")}
    return {"episodes": len(kept), "rejected": len(rows) - len(kept), **sums}
