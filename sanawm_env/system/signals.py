"""Signals that ask a process to stop: SIGTERM (kill, docker stop, Slurm, systemd) and SIGHUP (a closed terminal)
work like Ctrl-C."""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager

STOPS = (signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else []))
ONE_WISH = 1.0  # seconds: `timeout` and others send a signal twice, to a process and to its group


@contextmanager
def on_stop(stop: Callable[[int], None], *, at_once: bool = True) -> Generator[None]:
    """Handle signals that ask this process to stop, within a block in the main thread. In another thread nothing is
    changed. Ignored signals (`nohup`) stay ignored, and former handlers are set again at the end.

    Args:
        stop: called once, with the number of the first signal.
        at_once: whether a later signal ends the process at once, as if nothing handled it.
    """
    asked = 0.0

    def handle(number: int, _) -> None:
        nonlocal asked
        now = time.monotonic()
        if not asked:
            asked = now
            stop(number)
        elif at_once and now - asked > ONE_WISH:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    before = {}
    if threading.current_thread() is threading.main_thread():
        for number in STOPS:
            if signal.getsignal(number) not in (signal.SIG_IGN, None, handle):
                before[number] = signal.signal(number, handle)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def interrupting() -> Generator[None]:
    """Within the block, a signal that asks to stop raises KeyboardInterrupt with its number."""

    def stop(number: int) -> None:
        raise KeyboardInterrupt(number)

    with on_stop(stop):
        yield


@contextmanager
def postponed() -> Generator[None]:
    """Handle a signal that arrives within the block after it, for short work that must not stay half done."""
    asked: list[int] = []
    try:
        with on_stop(asked.append):
            yield
    finally:
        if asked:
            signal.raise_signal(asked[0])


def of_a_pool() -> None:
    """Call this first in a worker process. It ignores signals, which the terminal and `docker stop` send to the
    parent too, and ends with the parent."""
    for number in STOPS:
        signal.signal(number, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    if parent is None:
        return

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def exit_status(interrupt: KeyboardInterrupt) -> int:
    """The exit status that a shell expects after a signal: 130 after Ctrl-C, 143 after SIGTERM."""
    return 128 + (interrupt.args[0] if interrupt.args else signal.SIGINT)
