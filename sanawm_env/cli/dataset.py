"""`sanawm dataset`: what is in a dataset, whether it is whole, datasets brought together, and pictures of one."""

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from sanawm_env.cli.show import megabytes
from sanawm_env.recording.dataset import Dataset, merge, totals, validate
from sanawm_env.recording.preview import preview
from sanawm_env.recording.rollout import check_writable

if TYPE_CHECKING:
    from sanawm_env.cli import DatasetInfo, DatasetMerge, DatasetPreview, DatasetValidate

COLUMNS = (BarColumn(), MofNCompleteColumn(), TextColumn("episodes"), TimeRemainingColumn())


def info(options: "DatasetInfo", console: Console) -> None:
    """Print what a dataset holds."""
    dataset = Dataset.open(options.dataset)
    rows, header = dataset.rows(), dataset.header
    sums = totals(rows)
    table = Table("what", "value")
    table.add_row("world", f"{header.get('mode')}, weights {header['weights_hash'][:12]}")
    table.add_row("pictures", f"{header['height']} x {header['width']}, {header['fps']} a second")
    table.add_row("actions", str(header["action_mode"]))
    table.add_row("shards", str(len(dataset.shards)))
    table.add_row("episodes", str(sums["episodes"]))
    table.add_row("frames", f"{sums['frames']}, {sums['frames'] / header['fps'] / 3600:.2f} hours")
    table.add_row("on disk", megabytes(sums["bytes"]))
    table.add_row("scenes", str(len({row.scene for row in rows if row.episode})))
    for camera, count in Counter(row.camera for row in rows if row.episode).most_common():
        table.add_row("camera", f"{camera}: {count}")
    for reason, count in Counter(row.reason.split(" is ")[0] for row in rows if not row.episode).most_common():
        table.add_row("rejected", f"{reason} out of bounds: {count}")
    console.print(table)


def check(options: "DatasetValidate", console: Console) -> None:
    """Look at every episode. Raises ValueError if any is not as it should be."""
    dataset, bad = Dataset.open(options.dataset), 0
    total = len([row for row in dataset.rows() if row.episode])
    with Progress(TextColumn("looking"), *COLUMNS, console=console, transient=True) as progress:
        for name, problems in progress.track(validate(dataset, thorough=not options.quick), total=total):
            bad += bool(problems)
            for problem in problems:
                progress.console.print(f"{name}: {problem}", soft_wrap=True)
    if bad:
        raise ValueError(f"{bad} of {total} episodes in {options.dataset} are not as they should be.")
    console.print(f"{total} episodes are whole.")


def bring_together(options: "DatasetMerge", console: Console) -> None:
    """Merge datasets. Raises as `merge`, and ValueError for damaged episodes, once the others are there."""
    given = {row.id for source in options.datasets for row in Dataset.open(source).rows()}
    copied = 0
    with Progress(TextColumn("merging"), *COLUMNS, console=console, transient=True) as progress:
        for row in progress.track(merge(options.datasets, options.out), total=len(given)):
            copied += bool(row.episode)
    merged = Dataset.open(options.out)
    held, known = len(merged.finished()), {row.id for row in merged.rows()}
    console.print(f"{copied} episodes came to {options.out}, which holds {held}.", soft_wrap=True)
    say_left_out(len(given - known), *options.datasets)


def say_left_out(count: int, *datasets: Path) -> None:
    """Raises ValueError, with which the command ends after its work, where so many episodes were left out of it."""
    if count:
        named = ", ".join(map(str, datasets))
        raise ValueError(f"Damaged episodes of {named} were left out ({count}): see `sanawm dataset validate`.")


def look(options: "DatasetPreview", console: Console) -> None:
    """Draw the preview. Raises as `preview`, and ValueError for damaged episodes, once it is drawn."""
    dataset = Dataset.open(options.dataset)
    out = options.out or options.dataset
    check_writable(out)
    with console.status("drawing"):
        pictures, damaged = preview(dataset, out)
    for picture in pictures:
        console.print(picture, soft_wrap=True)
    say_left_out(damaged, options.dataset)
