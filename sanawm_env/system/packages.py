"""Packages of extras, which may not be installed."""

from collections.abc import Generator
from contextlib import contextmanager


@contextmanager
def needing(what: str, extra: str) -> Generator[None]:
    """A block that imports packages of an extra; their ImportError says first what needs them, such as "Drawing needs
    matplotlib", and then how they are installed."""
    try:
        yield
    except ImportError as error:
        raise ImportError(f'{what}: pip install "sanawm-env[{extra}]" ({error}).') from error
