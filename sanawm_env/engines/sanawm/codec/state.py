"""What the LTX-2 decoder carries from one latent frame to the next, as a value."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, eq=False)
class LTX2State:
    """The decoder after some latent frames.

    history: (B, c, n, h, w) the last normalised latents, as many as the decoder sees back (`LTX2Codec.replay_frames`)
        or all there were. tails: of every convolution, in the order of the module tree, its last two input frames
        (B, C, 2, H, W); None to have them made again from `history` when frames are next asked for.
    """

    history: Tensor
    tails: tuple[Tensor, ...] | None
