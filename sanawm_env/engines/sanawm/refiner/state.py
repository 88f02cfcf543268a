"""What one refined block leaves for the next, as a value."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, eq=False)
class RefinerState:
    """A stream of refined blocks at a block's border.

    Attributes:
        sink: per layer, keys (before rotation) and values (B, S, C) of the start image's latent frame.
        history: per layer, keys (rotated) and values (B, history_frames * S, C) of the newest refined frames; () at
            first.
        history_frames: how many those are.
        next_frame: absolute latent frame at which the next block begins.
        text: (B, L, C), of the prompt, shared by all states of an episode.
        text_mask: (B, L).
    """

    sink: tuple[tuple[Tensor, Tensor], ...]
    history: tuple[tuple[Tensor, Tensor], ...]
    history_frames: int
    next_frame: int
    text: Tensor
    text_mask: Tensor
