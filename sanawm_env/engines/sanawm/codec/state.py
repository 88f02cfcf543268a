"""What every codec does, and the state of the LTX-2 decoder between latent frames, as a value."""

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn


@dataclass(frozen=True, eq=False)
class LTX2State:
    """The decoder after some latent frames.

    Attributes:
        history: (B, c, n, h, w), the last normalised latents: as many as the decoder depends on
            (`LTX2Codec.replay_frames`), or all there were.
        tails: of every convolution, in the order of the module tree, its last two input frames (B, C, 2, H, W); None to
            compute them again from `history` when frames are next decoded.
    """

    history: Tensor
    tails: tuple[Tensor, ...] | None


class Codec(Protocol):
    """Frames <-> latents, chunk by chunk, as a function: nothing is remembered between calls."""

    @property
    def channels(self) -> int:
        """Channels of a latent."""
        ...

    @property
    def module(self) -> nn.Module:
        """The module that holds the weights."""
        ...

    def to(self, device: torch.device, /) -> Any:
        """Move the codec, and return it."""
        ...

    def encode(self, frames: Tensor) -> Tensor:
        """Latents (B, c, 1 + n, h, w) of frames (B, 1 + 8 n, H, W, 3) uint8. Raises ValueError for other shapes."""
        ...

    def decode_chunk(self, latents: Tensor, state: LTX2State | None, *, first: bool) -> tuple[Tensor, LTX2State | None]:
        """Decode the next latents of a stream.

        Args:
            latents: (B, c, T, h, w).
            state: of the stream so far, or None.
            first: whether they open the stream.

        Returns:
            Frames (B, F, H, W, 3) uint8, and the next state; None for a codec without states.
        """
        ...

    def outline(self, height: int, width: int, frames: int, dtype: torch.dtype) -> LTX2State | None:
        """The state after `frames` latent frames (h, w) of a dtype, on the meta device."""
        ...
