"""Slots: which state of a pool each row of a batch reads and writes.

A pool is a tensor with a leading axis of slots. Kernels take numbers of slots from the device, so one captured launch
serves whichever episodes share a batch.
"""

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Slots:
    """Which slots of a pool each row of a batch reads and writes: (B,) int64 on the device, -1 for none."""

    src: Tensor
    dst: Tensor


@lru_cache(maxsize=64)
def each_its_own(batch: int, device: torch.device) -> Tensor:
    """Row b is slot b. Shared: never written to."""
    return torch.arange(batch, device=device)


@lru_cache(maxsize=64)
def nowhere(batch: int, device: torch.device) -> Tensor:
    """No slot at all."""
    return torch.full((batch,), -1, device=device)
