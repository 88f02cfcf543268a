"""Packages of extras, which may not be installed."""

from collections.abc import Generator
from contextlib import contextmanager


@contextmanager
def needing(what: str, extra: str) -> Generator[None]:
    """A block that imports packages of an extra.

    Args:
        what: begins the error, such as "Drawing needs matplotlib".
        extra: that brings the packages.

    Raises:
        ImportError: where one is missing; it says how to install the extra.
    """
    try:
        yield
    except ImportError as error:
        raise ImportError(f'{what}: pip install "sanawm-env[{extra}]" ({error}).') from error
