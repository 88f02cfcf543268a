"""Output of commands: lines, progress bars, sizes and JSON files."""

from pathlib import Path
from typing import TYPE_CHECKING

from sanawm_env.system.terminal import literal_console

if TYPE_CHECKING:
    from rich.progress import Progress

console = literal_console()


def say(text: object, **options) -> None:
    """Print a line without wrapping it, so that paths stay whole. options: of rich's `Console.print`."""
    console.print(text, soft_wrap=True, **options)


def progress(verb: str, unit: str, **options) -> "Progress":
    """A progress bar with a count and the remaining time.

    Args:
        verb: what is being done, such as "exporting".
        unit: what is counted, such as "episodes".
        options: of rich's `Progress`.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn(verb), BarColumn(), MofNCompleteColumn(), TextColumn(unit), TimeRemainingColumn())
    return Progress(*columns, console=console, **options)


def megabytes(count: float) -> str:
    """A number of bytes in MB or, from a thousand MB on, in GB."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def check_places(*files: Path | None, world: str | None) -> None:
    """Check that files can be written; their folders are made.

    Args:
        files: to be written; None is skipped.
        world: name or folder of a world whose files must not be replaced; None for none.

    Raises:
        ValueError: for a file of the world.
        OSError: as `check_writable`.
    """
    from sanawm_env.recording.rollout import check_writable
    from sanawm_env.system.saving import check_apart
    from sanawm_env.world.folders import find_world

    places = [file for file in files if file is not None]
    if world is not None:
        found = find_world(world)
        check_apart(places, found.rglob("*") if isinstance(found, Path) else ())
    for file in places:
        check_writable(file.parent, (file.name,))


def write_numbers(file: Path | None, text: str) -> None:
    """Write JSON, whole or not at all, and print the path; nothing for None."""
    from sanawm_env.system.saving import write_text

    if file is not None:
        write_text(file, text + "\n")
        say(f"numbers {file}")
