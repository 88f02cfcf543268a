"""What every codec does, and what the LTX-2 decoder keeps from one latent frame to the next, as a value."""

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn


@dataclass(frozen=True, eq=False)
class LTX2State:
    """The decoder after some latent frames.

    history: (B, c, n, h, w) the last normalised latents, as many as the decoder sees back (`LTX2Codec.replay_frames`)
        or all there were. tails: of every convolution, in the order of the module tree, its last two input frames
        (B, C, 2, H, W); None to have them made again from `history` when frames are next asked for.
    """

    history: Tensor
    tails: tuple[Tensor, ...] | None


class Codec(Protocol):
    """Frames <-> latents, chunk by chunk, as a function: nothing is remembered between calls."""

    @property
    def channels(self) -> int:
        """Of a latent."""
        ...

    @property
    def module(self) -> nn.Module:
        """That holds the weights."""
        ...

    def to(self, device: torch.device, /) -> Any:
        """Itself, moved."""
        ...

    def encode(self, frames: Tensor) -> Tensor:
        """Latents (B, c, 1 + n, h, w) of frames (B, 1 + 8 n, H, W, 3) uint8; ValueError for other shapes."""
        ...

    def decode_chunk(self, latents: Tensor, state: LTX2State | None, *, first: bool) -> tuple[Tensor, LTX2State | None]:
        """Frames (B, F, H, W, 3) uint8 of the next latents (B, c, T, h, w) of a stream, and its next state; None for a
        codec without. first: whether they open the stream."""
        ...

    def outline(self, height: int, width: int, frames: int, dtype: torch.dtype) -> LTX2State | None:
        """What the state after so many latent frames (h, w) of a dtype looks like, as tensors on the meta device."""
        ...
