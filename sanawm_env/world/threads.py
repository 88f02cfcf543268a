"""How many threads torch works with, which decides the last bits of sums: what repeats an episode needs the same."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from sanawm_env.world.files import check_count

MAX_THREADS = 512
"""More than any machine has cores; a process that asks for very many is ended by the system, without a word."""


def torch_threads() -> int:
    """As things stand."""
    return torch.get_num_threads()


@contextmanager
def with_torch_threads(count: int | None) -> Iterator[None]:
    """So many within the block; None changes nothing. ValueError unless it is a number from 1 to `MAX_THREADS`."""
    before = torch.get_num_threads()
    if count is not None:
        count = check_count("How many threads torch works with", count, 1, MAX_THREADS)
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
