"""What one chunk leaves behind for the next, as values: frozen dataclasses of tensors that nothing ever edits.

Sizes: B batch, h heads, D head width, C = h * D, S tokens per latent frame, N tokens of a chunk. Sources: dit.md 6, 11.
"""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, eq=False)
class GDNState:
    """State of a gated-delta-rule block.

    kv: (B, h, D, D) key x value, float32. z: (B, h, D, 1) normaliser, float32.
    camera_kv: (B, h, D, D) float32, None where the network ran without cameras.
    key_tail, camera_key_tail: (B, K-1, S, C), the last inputs of the temporal key convolutions (K taps).
    """

    kv: Tensor
    z: Tensor
    key_tail: Tensor
    camera_kv: Tensor | None = None
    camera_key_tail: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Page:
    """Keys and values (B, h, N, D) that one chunk leaves in a softmax block; keys keep their absolute rotation."""

    k: Tensor
    v: Tensor
    camera_k: Tensor | None = None
    camera_v: Tensor | None = None


@dataclass(frozen=True, eq=False)
class WindowState:
    """State of a softmax block: the pages of the chunks it still sees, oldest first."""

    pages: tuple[Page, ...]


@dataclass(frozen=True, eq=False)
class BlockState:
    """State of one block. ffn_tail: (B, S, C), the FFN's spatial output of the chunk's last frame."""

    mixer: GDNState | WindowState
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
