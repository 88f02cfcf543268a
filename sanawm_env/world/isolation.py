"""A world's numbers are its own: the caller's settings of torch neither reach it nor are changed by it.

Default dtype and device, autocast, gradients and inference mode, deterministic and precision flags, denormal numbers
and the number of threads are torch's defaults while a world works (the threads: see `threads.py`), and the caller's
again afterwards. Results are plain tensors, in whatever mode they were asked for.

Some of these settings belong to the thread, some to the whole process. A call that finds the latter as they should be
runs beside others like it; one that must change them waits until it is alone.

In a forked process, the thread that came from the parent has lost the threads that OpenMP gave it there, and would wait
for them for ever. So a call with several threads runs in a new thread there.
"""

import contextvars
import os
import sys
import threading
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial, wraps
from typing import Any, ParamSpec, TypeVar

import torch
from torch.overrides import _pop_mode, _push_mode
from torch.utils._device import DeviceContext

from sanawm_env.world.forks import lacks_threads
from sanawm_env.world.threads import world_threads

P = ParamSpec("P")
R = TypeVar("R")
_here = threading.local()


def isolated(function: Callable[P, R]) -> Callable[P, R]:
    """The same function, out of reach of the caller's settings of torch."""

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        return run_isolated(lambda: function(*args, **kwargs))

    return call


def run_isolated(function: Callable[[], R], threads: int | None = None) -> R:
    """Call a function as `isolated` does.

    Args:
        function: without arguments.
        threads: that the world was loaded with; None for the default.

    Returns:
        The function's result.
    """
    if getattr(_here, "inside", False):
        return function()
    count = world_threads(threads)
    if count > 1 and lacks_threads():
        context = contextvars.copy_context()
        return _own_thread().submit(lambda: context.run(run_isolated, function, threads)).result()
    with _process.plain(), _plain_thread(count):
        return function()


Setting = tuple[Callable[[], Any], Callable[[Any], Any], tuple]
"""How to read and to write a setting that numbers depend on, and its values that will do; the first one is written."""


def _make_plain(*settings: Setting) -> ExitStack:
    """Set torch's defaults where they differ. Closing the result sets the former values."""
    with ExitStack() as undo:
        for read, write, good in settings:
            value = read()
            if value not in good:
                write(good[0])
                undo.callback(write, value)
        return undo.pop_all()


# --- what belongs to the thread ---


@contextmanager
def _plain_thread(threads: int) -> Generator[None]:
    """Torch's default settings of this thread, and a number of threads, within a block."""
    with _make_plain(*_OF_THREAD, (torch.get_num_threads, torch.set_num_threads, (threads,))) as undo:
        undo.callback(_set_modes, _lift_default_device())
        undo.callback(setattr, _here, "inside", False)
        _here.inside = True
        with torch.inference_mode(False), torch.no_grad():
            yield


_two = 2.0  # a name, so that Python does not divide when it compiles


_OF_THREAD: list[Setting] = [
    *(
        (partial(torch.is_autocast_enabled, device), partial(torch.set_autocast_enabled, device), (False,))
        for device in ("cpu", "cuda")
    ),
    (lambda: sys.float_info.min / _two == 0.0, torch.set_flush_denormal, (False,)),
]


def _lift_default_device() -> list:
    """Remove the default device of `torch.set_default_device` and `with torch.device`. Returns this thread's function
    modes as they were."""
    modes = _set_modes([])
    _set_modes([mode for mode in modes if not isinstance(mode, DeviceContext)])
    return modes


def _set_modes(modes: list) -> list:
    """Set this thread's function modes, outermost first. Returns the modes before."""
    before = [_pop_mode() for _ in range(torch._C._len_torch_function_stack())][::-1]
    for mode in modes:
        _push_mode(mode)
    return before


# --- what belongs to the process ---


def _matmul_precision() -> str:
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:  # set through both of torch's interfaces: `_precision` sees it
        return "highest"


def _precision(backend: str, operation: str) -> tuple[Callable[[], str], Callable[[str], Any]]:
    return (
        lambda: torch._C._get_fp32_precision_getter(backend, operation),
        lambda value: torch._C._set_fp32_precision_setter(backend, operation, value),
    )


_cuda, _c = torch.backends.cuda, torch._C
_OF_PROCESS: list[Setting] = [
    (torch.get_default_dtype, torch.set_default_dtype, (torch.float32,)),
    (torch.get_deterministic_debug_mode, torch.set_deterministic_debug_mode, (0,)),
    (_c._get_mkldnn_enabled, _c._set_mkldnn_enabled, (True,)),
    (_c._get_mkldnn_deterministic, _c._set_mkldnn_deterministic, (False,)),
    (_c._get_nnpack_enabled, _c._set_nnpack_enabled, (True,)),
    (_c._get_cudnn_enabled, _c._set_cudnn_enabled, (True,)),
    (_c._get_cudnn_benchmark, _c._set_cudnn_benchmark, (False,)),
    (_c._get_cudnn_deterministic, _c._set_cudnn_deterministic, (False,)),
    (_cuda.flash_sdp_enabled, _cuda.enable_flash_sdp, (True,)),  # on a CPU too
    (_cuda.mem_efficient_sdp_enabled, _cuda.enable_mem_efficient_sdp, (True,)),
    (_cuda.math_sdp_enabled, _cuda.enable_math_sdp, (True,)),
    (_cuda.cudnn_sdp_enabled, _cuda.enable_cudnn_sdp, (True,)),
    (_matmul_precision, torch.set_float32_matmul_precision, ("highest",)),
]
if hasattr(_c, "_get_fp32_precision_getter"):  # torch 2.9's own names for precisions; what inherits comes last
    _OF_PROCESS += [
        (*_precision("generic", "all"), ("none",)),
        (*_precision("mkldnn", "all"), ("none", "ieee")),
        (*_precision("cuda", "all"), ("none",)),
        *((*_precision("mkldnn", operation), ("ieee", "none")) for operation in ("matmul", "conv", "rnn")),
        (*_precision("cuda", "matmul"), ("ieee", "none")),
        *((*_precision("cuda", operation), ("tf32",)) for operation in ("conv", "rnn")),
    ]
else:
    _OF_PROCESS.append((_c._get_cudnn_allow_tf32, _c._set_cudnn_allow_tf32, (True,)))


class _Process:
    """Settings of the process, and how many calls rely on them."""

    def __init__(self):
        self.changed = threading.Condition()
        self.inside, self.alone = 0, False

    @contextmanager
    def plain(self) -> Generator[None]:
        """Torch's default settings within a block."""
        with self.changed:
            self.changed.wait_for(lambda: not self.alone and (_is_plain() or not self.inside))
            alone, before = not _is_plain(), _make_plain(*_OF_PROCESS)
            self.inside, self.alone = self.inside + 1, alone
        try:
            yield
        finally:
            with self.changed:
                before.close()
                self.inside, self.alone = self.inside - 1, False
                self.changed.notify_all()


def _is_plain() -> bool:
    return all(read() in good for read, _, good in _OF_PROCESS)


# --- forked processes ---

_process = _Process()
_executor: ThreadPoolExecutor | None = None


def _own_thread() -> ThreadPoolExecutor:
    """A thread that was started in this process."""
    global _executor
    if _executor is None:
        _executor = ThreadPoolExecutor(1, "sanawm_env")
    return _executor


def _in_child() -> None:
    global _process, _executor
    _process, _executor = _Process(), None  # whoever was at work in the parent is not there
    _here.inside = False


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
