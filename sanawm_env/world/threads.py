"""How many threads a world computes with, and locks that work in forked processes.

The number of threads decides the last bits of sums (measured: products of a few rows, which MKL splits). So it is the
world's own, whatever `torch.set_num_threads` or OMP_NUM_THREADS say: `LoadOptions.threads`, or that of
`with_torch_threads` where an episode is repeated.
"""

import os
import threading
import weakref
from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

from sanawm_env.system.files import check_count

MAX_THREADS = 512
"""More than any machine has cores; a process that asks for very many is ended by the system, without a word."""
THREADS = 1
"""What a world computes with where nothing else is asked for: right for many processes, forks and busy machines."""
_asked: ContextVar[int | None] = ContextVar("threads that a world computes with", default=None)


def world_threads(loaded: int | None = None) -> int:
    """Threads that a world computes with now.

    Args:
        loaded: its `LoadOptions.threads`.
    """
    return _asked.get() or loaded or THREADS


@contextmanager
def with_torch_threads(count: int | None) -> Generator[None]:
    """Set the number of threads of torch and of all worlds within a block.

    Args:
        count: 1 to `MAX_THREADS`; None changes nothing.

    Raises:
        ValueError: for another count.
    """
    if count is None:
        yield
        return
    count, before = check_count("How many threads torch works with", count, 1, MAX_THREADS), torch.get_num_threads()
    asked = _asked.set(count)
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
        _asked.reset(asked)


class Lock:
    """A re-entrant lock that is open in a forked child, where the thread that held it does not exist."""

    def __init__(self):
        self._renew()
        _locks.add(self)

    def _renew(self) -> None:
        self._lock = threading.RLock()

    @contextmanager
    def held(self) -> Generator[None]:
        """Hold the lock within a `with` block."""
        with self._lock:  # the same one to the end, whatever is renewed meanwhile
            yield


_locks: "weakref.WeakSet[Lock]" = weakref.WeakSet()


def _renew_locks() -> None:
    for lock in _locks:
        lock._renew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_locks)
