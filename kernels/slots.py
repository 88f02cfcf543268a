"""Slots: which state of a pool each row of a batch reads and writes.

A pool is a tensor with a leading axis of slots. Kernels read the numbers of slots on the device, so one captured launch
serves any episodes that share a batch.
"""

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Slots:
    """Which slots of a pool each row of a batch reads and writes.

    Attributes:
        src: (B,) int64 on the device, -1 for none.
        dst: likewise.
    """

    src: Tensor
    dst: Tensor


@lru_cache(maxsize=64)
def each_its_own(batch: int, device: torch.device) -> Tensor:
    """Row b uses slot b. The tensor is shared and must not be written to."""
    return torch.arange(batch, device=device)


@lru_cache(maxsize=64)
def nowhere(batch: int, device: torch.device) -> Tensor:
    """No row uses a slot."""
    return torch.full((batch,), -1, device=device)
