"""Which form of the operators runs: chosen by device and dtype, or forced by name.

    kernels = choose(device, dtype)  # kernels.name says which one it is, kernels.why says why
    kernels.gdn(inputs, state, save); kernels.depthwise_glu(...); kernels.attend(...)  # signatures: reference.py

Only the form "triton" imports triton.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from sanawm_env.kernels import cpu, reference
from sanawm_env.kernels.inputs import GDNInputs, GDNState, Grid
from torch import Tensor

from sanawm_env.system.files import brief

BACKENDS = ("reference", "cpu", "triton")
OPERATORS = ("gdn", "depthwise_glu", "attend")


@dataclass(frozen=True)
class Kernels:
    """One form of the operators. Signatures and meaning are those of `reference.py`.

    Attributes:
        name: one of `BACKENDS`.
        why: half a sentence on why it was chosen.
        gdn: see `reference.gdn`.
        depthwise_glu: see `reference.depthwise_glu`.
        attend: see `reference.attend`.
        linear: `torch.nn.functional.linear`, or a faster form of it.
    """

    name: str
    why: str
    gdn: Callable[[GDNInputs, GDNState | None, bool], tuple[Tensor, Tensor | None, GDNState | None]]
    depthwise_glu: Callable[[Tensor, Tensor, Tensor, Grid], Tensor]
    attend: Callable[[Tensor, Sequence[tuple[Tensor, Tensor]], Grid], Tensor]
    linear: Callable[..., Tensor] = F.linear


def choose(device: torch.device, dtype: torch.dtype, backend: str | None = None) -> Kernels:
    """The form that suits a device and dtype.

    The default is "reference" while gradients are on (the others are forward only) and where nothing faster exists
    (float64, other devices), "cpu" on a CPU, and "triton" on a CUDA device if triton is installed.

    Args:
        device: of the tensors.
        dtype: of the weights.
        backend: name of the form; None for the default.

    Raises:
        ValueError: for another name, and for a form that cannot run on the device.
        ImportError: for "triton" where it is not installed.
    """
    if backend is None:
        backend, why = _suitable(device, dtype)
    else:
        check_backend(backend)
        why = "asked for"
    if backend == "reference":
        ops = reference
    elif backend == "cpu":
        if device.type not in ("cpu", "meta"):
            raise ValueError(f'backend "cpu" cannot run on {device}: use "triton" or "reference" there.')
        ops = cpu
    else:
        ops = _triton(device)
        if device.type == "cuda":
            ops = SimpleNamespace(**{name: _on(device, getattr(ops, name)) for name in OPERATORS})
    linear = cpu.linear if backend == "cpu" else F.linear
    return Kernels(backend, why, ops.gdn, ops.depthwise_glu, ops.attend, linear)


def check_backend(backend: str) -> None:
    """Raise ValueError unless it is one of `BACKENDS`."""
    if not isinstance(backend, str) or backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, or None to choose, got {brief(backend)}.")


def _on(device: torch.device, operator: Callable) -> Callable:
    """The operator with its launches on a device: Triton launches on the current device, wherever the tensors are."""

    def run(*args, **kwargs):
        with torch.cuda.device(device):
            return operator(*args, **kwargs)

    return run


def _suitable(device: torch.device, dtype: torch.dtype) -> tuple[str, str]:
    if torch.is_grad_enabled():
        return "reference", "gradients are on"
    if device.type == "cuda" and dtype != torch.float64:
        if find_spec("triton") is not None:
            return "triton", "a CUDA device"
        return "reference", "triton is not installed"
    if device.type == "cpu" and dtype != torch.float64:
        return "cpu", "a CPU"
    return "reference", f"{dtype} on {device.type}"


def _triton(device: torch.device):
    if find_spec("triton") is None:
        raise ImportError('backend "triton" needs the package triton: pip install "sanawm-env[gpu]" (Linux).')
    from sanawm_env.kernels import fused

    if device.type != "cuda" and not fused.INTERPRETED:
        raise ValueError(
            f'backend "triton" needs a CUDA device, this is {device}: use "cpu" or "reference", or set '
            "TRITON_INTERPRET=1 before Python starts to run its kernels in Triton's interpreter."
        )
    return fused
