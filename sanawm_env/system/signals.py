"""Being asked to stop: SIGTERM (kill, docker stop, Slurm, systemd) and SIGHUP (a closed terminal) are as Ctrl-C."""

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
    """Calls `stop` with the number of the first signal that asks this process to stop, in the main thread; a later one
    ends the process at once, as if nothing handled it, unless `at_once` is False. Signals that are ignored (`nohup`)
    stay so, and in any other thread than the main one nothing is changed. Handlers of before come back at the end."""
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
    """In this block a signal that asks to stop raises KeyboardInterrupt, with its number."""

    def stop(number: int) -> None:
        raise KeyboardInterrupt(number)

    with on_stop(stop):
        yield


@contextmanager
def postponed() -> Generator[None]:
    """What is asked in this block happens after it: for what must not be left half done, and is short."""
    asked: list[int] = []
    try:
        with on_stop(asked.append):
            yield
    finally:
        if asked:
            signal.raise_signal(asked[0])


def of_a_pool() -> None:
    """For a process that works for another one, at its start: it leaves signals to that one, which a terminal and
    `docker stop` tell too, and ends with it, however that ends."""
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
    """What a shell expects of a process that a signal has ended: 130 after Ctrl-C, 143 after SIGTERM."""
    return 128 + (interrupt.args[0] if interrupt.args else signal.SIGINT)
