"""`sanawm dataset`: show, check, merge and draw datasets, and export them to other formats."""

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
    """Show the contents of a dataset."""

    dataset: tyro.conf.Positional[Path]
    """Folder of the dataset."""

    def run(self) -> None:
        from sanawm_env.recording.dataset import Dataset, totals

        dataset = Dataset.open(self.dataset)
        rows, header = dataset.rows(), dataset.header
        sums = totals(rows)
        cameras = Counter(row.camera for row in rows if row.episode)
        reasons = Counter(row.reason.split(" is ")[0] for row in rows if not row.episode)
        facts = [
            ("world", f"{header.get('mode')}, weights {header['weights_hash'][:12]}"),
            ("frames", f"{header['height']} x {header['width']} pixels, {header['fps']} per second"),
            ("actions", header["action_mode"]),
            ("shards", len(dataset.shards)),
            ("episodes", sums["episodes"]),
            ("length", f"{sums['frames']} frames, {sums['frames'] / header['fps'] / 3600:.2f} hours"),
            ("on disk", megabytes(sums["bytes"])),
            ("scenes", len({row.scene for row in rows if row.episode})),
            *(("camera", f"{camera}: {count}") for camera, count in cameras.most_common()),
            *(("rejected", f"{reason} out of bounds: {count}") for reason, count in reasons.most_common()),
        ]
        console.print(table("what", "value", rows=facts))


@dataclass(frozen=True)
class DatasetValidate:
    """Check every episode: files, hashes, lengths, and the videos to their ends."""

    dataset: tyro.conf.Positional[Path]
    """Folder of the dataset."""
    quick: bool = False
    """Do not decode the videos."""

    def run(self) -> None:
        """Print what is wrong. ValueError if anything is."""
        from sanawm_env.recording.dataset import Dataset, validate

        dataset, bad = Dataset.open(self.dataset), 0
        total = len([row for row in dataset.rows() if row.episode])
        with progress("checking", "episodes", transient=True) as bar:
            for name, problems in bar.track(validate(dataset, thorough=not self.quick), total=total):
                bad += bool(problems)
                for problem in problems:
                    say(f"{name}: {problem}")
        if bad:
            raise ValueError(
                f"{bad} of {total} episodes in {self.dataset} have problems, listed above: restore their files."
            )
        console.print(f"{total} episodes are good.")


@dataclass(frozen=True)
class DatasetMerge:
    """Merge datasets. An episode that is in several is copied once. Files are hard-linked where possible."""

    datasets: tyro.conf.Positional[tuple[Path, ...]]
    """Folders of the datasets."""
    out: Path
    """New folder, or a merged dataset to extend."""

    def run(self) -> None:
        """Merge. Raises as `merge`, and ValueError at the end for damaged episodes, which are left out."""
        from sanawm_env.recording.dataset import Dataset, merge

        given = {row.id for source in self.datasets for row in Dataset.open(source).rows()}
        copied = 0
        with progress("merging", "episodes", transient=True) as bar:
            for row in bar.track(merge(self.datasets, self.out), total=len(given)):
                copied += bool(row.episode)
        merged = Dataset.open(self.out)
        held, known = len(merged.finished()), {row.id for row in merged.rows()}
        say(f"{copied} episodes were added to {self.out}, which holds {held}.")
        _say_left_out(len(given - known), *self.datasets)


@dataclass(frozen=True)
class DatasetPreview:
    """Draw a contact sheet of some episodes, and all camera paths from above."""

    dataset: tyro.conf.Positional[Path]
    """Folder of the dataset."""
    out: Path | None = None
    """Folder for preview.png and trajectories.png; None for the dataset's."""

    def run(self) -> None:
        """Draw. Raises as `preview`, and ValueError at the end for damaged episodes, which are left out."""
        from sanawm_env.recording.dataset import Dataset
        from sanawm_env.recording.preview import preview
        from sanawm_env.recording.rollout import check_writable

        dataset = Dataset.open(self.dataset)
        out = self.out or self.dataset
        check_writable(out)
        with console.status("drawing"):
            files, damaged = preview(dataset, out)
        for file in files:
            say(file)
        _say_left_out(damaged, self.dataset)


@dataclass(frozen=True)
class DatasetExport:
    """Export a dataset to LeRobot v3.0, or to Minari (one frame and pose per step)."""

    dataset: tyro.conf.Positional[Path]
    """Folder of the dataset."""
    out: Path
    """LeRobot: new folder of the dataset. Minari: folder of all Minari datasets (MINARI_DATASETS_PATH)."""
    format: Literal["lerobot", "minari"] = "lerobot"
    """Format of the export."""
    id: str | None = None
    """Id of the Minari dataset, such as "sanawm/nano-v0"; required for it."""

    def run(self) -> None:
        """Export; Ctrl-C leaves nothing behind.

        Raises:
            ValueError: for an id that is missing or not wanted; at the end for damaged episodes, which are left out;
                and as `export_lerobot` and `export_minari`.
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
    """ValueError, which ends the command after its work, if episodes were left out."""
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
    """Show, check, merge and draw datasets, and export them to other formats."""

    command: tyro.conf.OmitSubcommandPrefixes[DatasetCommand]

    def run(self) -> None:
        self.command.run()
