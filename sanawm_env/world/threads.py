"""How many threads torch works with, which decides the last bits of sums: what repeats an episode needs the same."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


def torch_threads() -> int:
    """As things stand."""
    return torch.get_num_threads()


@contextmanager
def with_torch_threads(count: int | None) -> Iterator[None]:
    """So many within the block; None changes nothing. ValueError unless it is a whole number above zero."""
    before = torch.get_num_threads()
    if count is not None and (isinstance(count, bool) or not isinstance(count, int) or count < 1):
        raise ValueError(f"torch works with at least one thread, got {count!r}.")
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
