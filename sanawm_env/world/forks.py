"""What a forked process lacks: the threads that OpenMP gave to the thread that it began with.

That thread would wait for them for ever as soon as torch shares work out, so torch works alone there until told
otherwise. Nothing here imports torch: `import sanawm_env` puts this to work.
"""

import os
import sys
import threading

_first_thread: int | None = None


def lacks_threads() -> bool:
    """Whether this is the thread that a forked process began with, torch having been there before."""
    return threading.get_ident() == _first_thread


def _in_child() -> None:
    global _first_thread
    torch = sys.modules.get("torch")
    if hasattr(torch, "set_num_threads"):  # else it is not there, or not yet whole
        _first_thread = threading.get_ident()
        torch.set_num_threads(1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
