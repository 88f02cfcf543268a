"""What the measuring scripts of this folder share: options, medians, intervals; numbers, tables and plots go out.

The scripts run from a checkout, as `python benchmarks/NAME.py`; they are not installed. Each prints a table and writes
its numbers, with machine, versions and date, to results/NAME.json (another file with `--json`), from where `tables.py`
fills the pages; a plot that a page shows goes to docs/NAME.png. `--quick` tries a script out in a fraction of its time:
its files go to runs/quick, so that nothing published is replaced.
"""

import json
import platform
import time
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from datetime import date
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from rich.table import Table

from sanawm_env.cli.machine import machine_name
from sanawm_env.metrics.figures import figure_class
from sanawm_env.system.saving import replacing, write_text
from sanawm_env.system.terminal import literal_console

ROOT = Path(__file__).parents[1]
RESULTS, DOCS = ROOT / "benchmarks" / "results", ROOT / "docs"
console = literal_console()


# --- options ---


def parser(about: str, quick: bool = True, json: bool = True) -> ArgumentParser:
    """The options of all scripts. about: a script's docstring. quick: whether it can be tried out. json: whether its
    numbers go to one file."""
    made = ArgumentParser(description=about, formatter_class=RawDescriptionHelpFormatter)
    if json:
        made.add_argument("--json", type=Path, help="file for the numbers, instead of the one that fills the pages")
    if quick:
        made.add_argument("--quick", action="store_true", help="toy sizes, to try it out; files go to runs/quick")
    return made


def numbers_file(options: Namespace, name: str) -> Path:
    """Where a run's numbers go, which is also printed; the folder is made."""
    folder = ROOT / "runs" / "quick" if getattr(options, "quick", False) else RESULTS
    file = options.json or folder / f"{name}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    console.print(f"numbers go to {file}", soft_wrap=True)
    return file


def plot_file(numbers: Path) -> Path:
    """Where the plot of numbers goes: to docs, or beside those that are not for the pages."""
    return (DOCS / numbers.name if numbers.parent == RESULTS else numbers).with_suffix(".png")


# --- measuring ---


def seconds(call: Callable[[], object]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def medians(calls: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median seconds of each call. They take turns, so that whatever else the machine does meets all of them."""
    rounds = [[seconds(call) for call in calls.values()] for _ in range(repeats)]
    return dict(zip(calls, map(median, zip(*rounds, strict=True)), strict=True))


def interval(values: ArrayLike) -> tuple[NDArray, NDArray]:
    """Mean over the first axis and the half width of its 95 % interval (Student's t)."""
    values = np.asarray(values)
    from scipy import stats  # slow to import, and not every script needs it

    return values.mean(axis=0), stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)


def kept(file: Path, call: Callable[[], Any]) -> Any:
    """What a long call gives, as JSON; from its file where an earlier run got so far."""
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text(file, json.dumps(call()))
    return json.loads(file.read_text())


# --- telling ---


def header(device: str | torch.device = "cpu") -> dict[str, Any]:
    """Where, with what and when something was measured."""
    libraries = {name: metadata.version(name) for name in ("sanawm-env", "torch", "numpy")}
    return {
        "machine": machine_name(torch.device(device)),
        "threads": torch.get_num_threads(),
        "versions": {"python": platform.python_version(), **libraries},
        "date": str(date.today()),
    }


def write(file: Path, numbers: dict[str, Any], indent: int | None = 1) -> None:
    """Whole or not at all."""
    write_text(file, json.dumps(numbers, indent=indent, default=_plain) + "\n")


def _plain(value: Any) -> Any:
    """numpy's numbers and arrays as Python's, anything else as text."""
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else str(value)


def show(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    table = Table(*columns, title=title)
    for row in rows:
        table.add_row(*row)
    console.print(table)


@contextmanager
def plot(file: Path, rows: int = 1, columns: int = 1, size: tuple[float, float] = (6, 3.5)) -> Generator[Any]:
    """Axes, or an array of them, to draw on; then the PNG."""
    figure = figure_class()(figsize=size, layout="constrained")
    yield figure.subplots(rows, columns)
    with replacing(file) as part:
        figure.savefig(part, dpi=120, format="png")
