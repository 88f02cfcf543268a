"""The command `sanawm`: roll out, measure, train and serve worlds from the shell.

Each command is a frozen dataclass with a `run` method, in a module of its own; tyro makes its options. Heavy imports
are inside `run`, so that `sanawm --help` answers at once. A user's mistake is one sentence, with exit status 2.
"""

import ctypes
import logging
import os
import sys
from contextlib import suppress
from io import TextIOWrapper
from typing import Annotated, Any, Union, cast

import tyro

from sanawm_env.cli.bench import Bench
from sanawm_env.cli.collect import Collect
from sanawm_env.cli.compare import Compare
from sanawm_env.cli.dataset import DatasetTools
from sanawm_env.cli.doctor import Doctor
from sanawm_env.cli.encode_prompts import EncodePrompts
from sanawm_env.cli.evaluate import Evaluate
from sanawm_env.cli.fetch import Fetch
from sanawm_env.cli.output import console
from sanawm_env.cli.play import Play
from sanawm_env.cli.precision import Precision
from sanawm_env.cli.render import Render
from sanawm_env.cli.replay import Replay
from sanawm_env.cli.rollout import Rollout
from sanawm_env.cli.score import ScoreClips
from sanawm_env.cli.serve import Serve
from sanawm_env.cli.study import Study
from sanawm_env.cli.train import Train
from sanawm_env.cli.trajectory import LookAtTrajectory
from sanawm_env.system.terminal import ending_in_a_sentence

COMMANDS = {
    "rollout": Rollout,
    "render": Render,
    "play": Play,
    "serve": Serve,
    "evaluate": Evaluate,
    "study": Study,
    "compare": Compare,
    "bench": Bench,
    "collect": Collect,
    "replay": Replay,
    "dataset": DatasetTools,
    "trajectory": LookAtTrajectory,
    "score": ScoreClips,
    "fetch": Fetch,
    "encode-prompts": EncodePrompts,
    "doctor": Doctor,
    "precision": Precision,
    "train": Train,
}
Command = Union[tuple(Annotated[kind, tyro.conf.subcommand(name)] for name, kind in COMMANDS.items())]  # noqa: UP007

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h


def main(args: list[str] | None = None) -> None:
    """Entry point of the command `sanawm`.

    The exit status is 0 when the work is done, 2 where the user or the machine has to change something, 130 after
    Ctrl-C and 143 after SIGTERM; after both, finished work stays.

    Args:
        args: of the command; None for those of the process.
    """
    about = "Step, fork and restore a learned world."
    _quiet_libraries()
    keep_memory()
    _print_any_name()
    with ending_in_a_sentence("sanawm", console):
        command: Any = tyro.cli(cast(Any, Command), prog="sanawm", args=args, description=about)
        command.run()


def _print_any_name() -> None:
    """Show file names that are no text in the terminal's encoding with escapes."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError, ValueError, OSError):  # streams that others have put there
            cast(TextIOWrapper, stream).reconfigure(errors="backslashreplace")


def _quiet_libraries() -> None:
    """Silence notices of libraries about themselves; errors still show."""
    for name in ("torchao", "torch.utils._pytree"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for name in ("DIFFUSERS_VERBOSITY", "TRANSFORMERS_VERBOSITY"):
        os.environ.setdefault(name, "error")


def keep_memory() -> None:
    """Make glibc keep freed memory instead of returning it to the system page by page, which takes a third of a small
    network's step. Other C libraries are left alone.
    """
    if sys.platform == "linux":
        with suppress(AttributeError, OSError):
            mallopt = ctypes.CDLL("libc.so.6").mallopt
            mallopt(M_MMAP_THRESHOLD, 2**25)  # the most it takes
            mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
