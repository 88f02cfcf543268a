"""Weights that wait in the host's memory: a part is on the device while it works, or one block of it at a time.

Weights that wait are only copied to the device and freed there, so nothing is copied back. The numbers are the same.
"""

from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from sanawm_env.system.files import brief

OFFLOADABLE = ("codec", "refiner", "text")
"""Parts that can wait: the codec as a whole; the refiner's transformer and the text encoders block by block."""


def check_offload(offload: Any) -> tuple[str, ...]:
    """The parts that wait, in order.

    Args:
        offload: True for all, False for none, or names in a list or separated by commas.

    Raises:
        TypeError: for another type.
        ValueError: for an unknown name.
    """
    if isinstance(offload, bool):
        return OFFLOADABLE if offload else ()
    names: Any = offload.split(",") if isinstance(offload, str) else offload
    said = f"offload must be True, False or some of {', '.join(OFFLOADABLE)}"
    if not isinstance(names, Sequence) or not all(isinstance(name, str) for name in names):
        raise TypeError(f"{said}, got {brief(offload)}.")
    names = [name.strip() for name in names if name.strip()]
    if unknown := [name for name in names if name not in OFFLOADABLE]:
        raise ValueError(f"{said}, got {brief(', '.join(unknown))}.")
    return tuple(name for name in OFFLOADABLE if name in names)


@contextmanager
def at_hand(module: nn.Module, device: torch.device) -> Generator[None]:
    """A module is on the device within the block."""
    waiting = _replace(module.modules(), device)
    try:
        yield
    finally:
        _put_back(waiting)


def work_blockwise(module: nn.Module, device: torch.device) -> None:
    """From now on every block of the module waits where it is, and is on the device while it works; everything else
    moves there for good."""
    blocks = blocks_of(module)
    inside = {id(inner) for block in blocks for inner in block.modules()}
    _replace((inner for inner in module.modules() if id(inner) not in inside), device)
    for block in blocks:
        waiting: list[tuple[dict, str, Any]] = []

        def bring(block: nn.Module, _: Any, waiting: list = waiting) -> None:
            waiting.extend(_replace(block.modules(), device))

        def let_go(*_: Any, waiting: list = waiting) -> None:
            _put_back(waiting)
            waiting.clear()

        block.register_forward_pre_hook(bring)
        block.register_forward_hook(let_go, always_call=True)


def blocks_of(module: nn.Module) -> list[nn.Module]:
    """The blocks that a module runs one after the other: the items of its outermost lists of modules."""
    found: list[nn.Module] = []
    for child in module.children():
        found += child if isinstance(child, nn.ModuleList) else blocks_of(child)
    return found


def _replace(modules: Iterable[nn.Module], device: torch.device) -> list[tuple[dict, str, Any]]:
    """Replace parameters and buffers that are elsewhere by copies on the device; returns what to put back. A tensor
    with several places gets one copy."""
    copies: dict[int, Any] = {}
    before: list[tuple[dict, str, Any]] = []
    for module in modules:
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is None or tensor.device == device:
                    continue
                if id(tensor) not in copies:
                    copy = tensor.detach().to(device, non_blocking=True)
                    copies[id(tensor)] = (
                        nn.Parameter(copy, requires_grad=False) if isinstance(tensor, nn.Parameter) else copy
                    )
                before.append((tensors, name, tensor))
                tensors[name] = copies[id(tensor)]
    return before


def _put_back(before: Iterable[tuple[dict, str, Any]]) -> None:
    for tensors, name, tensor in before:
        tensors[name] = tensor
