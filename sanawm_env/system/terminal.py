"""Output of commands: paths and users' words are shown as they are, never read as rich's markup."""

import re
from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.table import Table


def literal_console(**options) -> Console:
    """A console that shows `[b]` and `:bomb:` as text.

    Args:
        **options: of rich's `Console`.
    """
    return Console(markup=False, emoji=False, highlight=False, **options)


def table(*columns: str, rows: Iterable[Iterable[object]], **options: Any) -> Table:
    """A table of these columns. rows: of each row what its cells say. options: of rich's `Table`."""
    made = Table(*columns, **options)
    for row in rows:
        made.add_row(*map(str, row))
    return made


def out_of_memory(error: BaseException) -> str:
    """Why memory could not be allocated, in one line; "" for an error of another kind. Torch raises RuntimeError."""
    text = (str(error).strip() or "no memory left").splitlines()[0]
    said = re.search(r"(allocate|not enough|out of) memory|bad_alloc", text, re.IGNORECASE)
    return text if isinstance(error, MemoryError) or said else ""
