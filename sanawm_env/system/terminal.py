"""Output of commands: paths and users' words are shown as they are, never read as rich's markup."""

import re
import sys
from collections.abc import Generator, Iterable
from contextlib import contextmanager, suppress
from typing import Any

from rich.console import Console
from rich.table import Table

from sanawm_env.system.files import brief
from sanawm_env.system.signals import exit_status, interrupting

MOST_LETTERS = 3000


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


@contextmanager
def ending_in_a_sentence(program: str, console: Console, stopped: str = "Stopped.") -> Generator[None]:
    """Within the block, what a user can mend ends the program with a sentence and exit status 2, and a signal that asks
    to stop with `stopped` and the status that a shell expects.

    Args:
        program: how the sentence begins, on stderr.
        console: where `stopped` is said.
        stopped: a sentence.
    """
    with interrupting():
        try:
            yield
            return
        except KeyboardInterrupt as interrupt:
            with suppress(OSError):  # after SIGHUP there is no terminal
                console.print(stopped, soft_wrap=True)
            sys.exit(exit_status(interrupt))
        except (ValueError, TypeError, OSError, ImportError) as error:
            sentence = sentence_of(error)
        except (MemoryError, RuntimeError) as error:
            if not (reason := out_of_memory(error)):
                raise
            sentence = f"the memory of this machine is full ({reason}): ask for less at once, or free some"
        with suppress(OSError):
            literal_console(stderr=True).print(f"{program}: {sentence}", style="red", soft_wrap=True)
        sys.exit(2)


def sentence_of(error: Exception) -> str:
    """What an error says, without the numbers of the system, and never longer than a screen."""
    sentence = str(error)
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        name = str(error.filename)
        sentence = f"{name if len(name) < 300 else brief(name)}: {error.strerror}"
    return sentence if len(sentence) <= MOST_LETTERS else f"{sentence[:MOST_LETTERS]}…"


def out_of_memory(error: BaseException) -> str:
    """Why memory could not be allocated, in one line; "" for an error of another kind. Torch raises RuntimeError."""
    text = (str(error).strip() or "no memory left").splitlines()[0]
    said = re.search(r"(allocate|not enough|out of) memory|bad_alloc", text, re.IGNORECASE)
    return text if isinstance(error, MemoryError) or said else ""
