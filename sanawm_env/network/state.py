"""What one chunk leaves behind for the next, as values: frozen dataclasses of tensors that nothing ever edits.

Sizes: B batch, h heads, D head width, C = h * D, S tokens per latent frame, N tokens of a chunk. Sources: dit.md 6, 11.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from sanawm_env.kernels.inputs import GDNState, Page

if TYPE_CHECKING:
    from sanawm_env.network.ablation import TokenState


@dataclass(frozen=True, eq=False)
class WindowState:
    """State of a softmax block: the pages of the chunks it still sees, oldest first."""

    pages: tuple[Page, ...]


@dataclass(frozen=True, eq=False)
class BlockState:
    """State of one block. ffn_tail: (B, S, C), the FFN's spatial output of the chunk's last frame."""

    mixer: "GDNState | TokenState | WindowState"
    ffn_tail: Tensor


@dataclass(frozen=True, eq=False)
class NetworkState:
    """State of the whole network after a chunk."""

    blocks: tuple[BlockState, ...]


def push_page(pages: tuple[Page, ...], page: Page, window: int, sink: bool) -> tuple[Page, ...]:
    """Pages visible to the next chunk: all (window -1), the last `window`, or the first and the last `window - 1`."""
    pages = (*pages, page)
    if window < 0 or len(pages) <= window:
        return pages
    return (pages[0], *pages[len(pages) - window + 1 :]) if sink else pages[len(pages) - window :]
