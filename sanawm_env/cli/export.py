"""`sanawm dataset export`: a dataset in the formats of others."""

from contextlib import closing
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import Progress, TextColumn

from sanawm_env.cli.dataset import COLUMNS, say_left_out
from sanawm_env.recording.dataset import Dataset
from sanawm_env.recording.lerobot import export_lerobot
from sanawm_env.recording.minari import export_minari

if TYPE_CHECKING:
    from sanawm_env.cli import DatasetExport


def export(options: "DatasetExport", console: Console) -> None:
    """Write what the options name; Ctrl-C leaves nothing behind.

    Raises as `export_lerobot` and `export_minari`, ValueError for an id that is missing or not wanted, and, once the
    others are written, for damaged episodes.
    """
    dataset = Dataset.open(options.dataset)
    if options.format == "lerobot":
        if options.id is not None:
            raise ValueError("--id is for Minari: a LeRobot dataset gets its name where it is published.")
        place, rows = options.out, export_lerobot(dataset, options.out)
    elif options.id is None:
        raise ValueError('--format minari needs --id, such as "sanawm/nano-v0".')
    else:
        place, rows = options.out / options.id, export_minari(dataset, options.id, options.out)
    total, done, frames = len(dataset.finished()), 0, 0
    with closing(rows), Progress(TextColumn("exporting"), *COLUMNS, console=console, transient=True) as progress:
        for row in progress.track(rows, total=total):
            done, frames = done + 1, frames + row.frames
    console.print(f"{frames} frames in {place}", soft_wrap=True)
    if options.format == "minari":
        load = f'MINARI_DATASETS_PATH={options.out}, then minari.load_dataset("{options.id}")'
        console.print(load, soft_wrap=True)
    say_left_out(total - done, options.dataset)
