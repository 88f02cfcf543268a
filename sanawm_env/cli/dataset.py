"""`sanawm dataset`: what is in a dataset, whether it is whole, several merged, previews, other formats."""

from collections import Counter
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from sanawm_env.cli.output import console, megabytes, progress, say
from sanawm_env.system.terminal import table


@dataclass(frozen=True)
class DatasetInfo:
    """What is in a dataset."""

    dataset: tyro.conf.Positional[Path]

    def run(self) -> None:
        from sanawm_env.recording.dataset import Dataset, totals

        dataset = Dataset.open(self.dataset)
        rows, header = dataset.rows(), dataset.header
        sums = totals(rows)
        cameras = Counter(row.camera for row in rows if row.episode)
        reasons = Counter(row.reason.split(" is ")[0] for row in rows if not row.episode)
        facts = [
            ("world", f"{header.get('mode')}, weights {header['weights_hash'][:12]}"),
            ("pictures", f"{header['height']} x {header['width']}, {header['fps']} a second"),
            ("actions", header["action_mode"]),
            ("shards", len(dataset.shards)),
            ("episodes", sums["episodes"]),
            ("frames", f"{sums['frames']}, {sums['frames'] / header['fps'] / 3600:.2f} hours"),
            ("on disk", megabytes(sums["bytes"])),
            ("scenes", len({row.scene for row in rows if row.episode})),
            *(("camera", f"{camera}: {count}") for camera, count in cameras.most_common()),
            *(("rejected", f"{reason} out of bounds: {count}") for reason, count in reasons.most_common()),
        ]
        console.print(table("what", "value", rows=facts))


@dataclass(frozen=True)
class DatasetValidate:
    """Look at every episode: files, hashes, lengths, videos decoded to the end."""

    dataset: tyro.conf.Positional[Path]
    quick: bool = False
    """Do not decode the videos."""

    def run(self) -> None:
        """Raises ValueError if any episode is not as it should be."""
        from sanawm_env.recording.dataset import Dataset, validate

        dataset, bad = Dataset.open(self.dataset), 0
        total = len([row for row in dataset.rows() if row.episode])
        with progress("looking", "episodes", transient=True) as bar:
            for name, problems in bar.track(validate(dataset, thorough=not self.quick), total=total):
                bad += bool(problems)
                for problem in problems:
                    say(f"{name}: {problem}")
        if bad:
            raise ValueError(f"{bad} of {total} episodes in {self.dataset} are not as they should be.")
        console.print(f"{total} episodes are whole.")


@dataclass(frozen=True)
class DatasetMerge:
    """Bring datasets together; an episode that is in several is taken once. Files are linked where the disk can."""

    datasets: tyro.conf.Positional[tuple[Path, ...]]
    out: Path
    """Folder of the new dataset, or of one that grows."""

    def run(self) -> None:
        """Raises as `merge`, and ValueError for damaged episodes, once the others are there."""
        from sanawm_env.recording.dataset import Dataset, merge

        given = {row.id for source in self.datasets for row in Dataset.open(source).rows()}
        copied = 0
        with progress("merging", "episodes", transient=True) as bar:
            for row in bar.track(merge(self.datasets, self.out), total=len(given)):
                copied += bool(row.episode)
        merged = Dataset.open(self.out)
        held, known = len(merged.finished()), {row.id for row in merged.rows()}
        say(f"{copied} episodes came to {self.out}, which holds {held}.")
        _say_left_out(len(given - known), *self.datasets)


@dataclass(frozen=True)
class DatasetPreview:
    """Draw a sheet of some episodes, and all camera paths from above."""

    dataset: tyro.conf.Positional[Path]
    out: Path | None = None
    """Folder for preview.png and trajectories.png; None: the dataset's."""

    def run(self) -> None:
        """Raises as `preview`, and ValueError for damaged episodes, once it is drawn."""
        from sanawm_env.recording.dataset import Dataset
        from sanawm_env.recording.preview import preview
        from sanawm_env.recording.rollout import check_writable

        dataset = Dataset.open(self.dataset)
        out = self.out or self.dataset
        check_writable(out)
        with console.status("drawing"):
            pictures, damaged = preview(dataset, out)
        for picture in pictures:
            say(picture)
        _say_left_out(damaged, self.dataset)


@dataclass(frozen=True)
class DatasetExport:
    """Write a dataset in a format of others: LeRobot v3.0, or Minari (a frame and a pose per step)."""

    dataset: tyro.conf.Positional[Path]
    out: Path
    """New folder of the LeRobot dataset; for Minari the folder its datasets lie in (MINARI_DATASETS_PATH)."""
    format: Literal["lerobot", "minari"] = "lerobot"
    id: str | None = None
    """Name of the Minari dataset, such as "sanawm/nano-v0"."""

    def run(self) -> None:
        """Ctrl-C leaves nothing behind.

        Raises as `export_lerobot` and `export_minari`, ValueError for an id that is missing or not wanted, and, once
        the others are written, for damaged episodes.
        """
        from sanawm_env.recording.dataset import Dataset
        from sanawm_env.recording.lerobot import export_lerobot
        from sanawm_env.recording.minari import export_minari

        dataset = Dataset.open(self.dataset)
        if self.format == "lerobot":
            if self.id is not None:
                raise ValueError("--id is for Minari: a LeRobot dataset gets its name where it is published.")
            place, rows = self.out, export_lerobot(dataset, self.out)
        elif self.id is None:
            raise ValueError('--format minari needs --id, such as "sanawm/nano-v0".')
        else:
            place, rows = self.out / self.id, export_minari(dataset, self.id, self.out)
        total, done, frames = len(dataset.finished()), 0, 0
        with closing(rows), progress("exporting", "episodes", transient=True) as bar:
            for row in bar.track(rows, total=total):
                done, frames = done + 1, frames + row.frames
        say(f"{frames} frames in {place}")
        if self.format == "minari":
            say(f'MINARI_DATASETS_PATH={self.out}, then minari.load_dataset("{self.id}")')
        _say_left_out(total - done, self.dataset)


def _say_left_out(count: int, *datasets: Path) -> None:
    """Raises ValueError, with which the command ends after its work, where so many episodes were left out of it."""
    if count:
        named = ", ".join(map(str, datasets))
        raise ValueError(f"Damaged episodes of {named} were left out ({count}): see `sanawm dataset validate`.")


DatasetCommand = (
    Annotated[DatasetInfo, tyro.conf.subcommand("info")]
    | Annotated[DatasetValidate, tyro.conf.subcommand("validate")]
    | Annotated[DatasetMerge, tyro.conf.subcommand("merge")]
    | Annotated[DatasetPreview, tyro.conf.subcommand("preview")]
    | Annotated[DatasetExport, tyro.conf.subcommand("export")]
)


@dataclass(frozen=True)
class DatasetTools:
    """Datasets: what is in one, whether it is whole, several merged, previews, other formats."""

    command: tyro.conf.OmitSubcommandPrefixes[DatasetCommand]

    def run(self) -> None:
        self.command.run()
