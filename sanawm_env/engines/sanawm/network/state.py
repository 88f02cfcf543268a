"""What one chunk leaves for the next, as values: frozen dataclasses of tensors that are never edited.

Sizes: B batch, h heads, D head width, C = h * D, S tokens per latent frame, N tokens of a chunk. Sources: dit.md 6, 11.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from sanawm_env.engines.sanawm.network.ablation import TokenState
from sanawm_env.engines.sanawm.network.config import SanaWMConfig
from sanawm_env.kernels.inputs import GDNState, Page

P = TypeVar("P")


@dataclass(frozen=True, eq=False)
class WindowState:
    """State of a softmax block.

    Attributes:
        pages: of the chunks it still sees, oldest first.
    """

    pages: tuple[Page, ...]


@dataclass(frozen=True, eq=False)
class BlockState:
    """State of one block.

    Attributes:
        mixer: of the self-attention.
        ffn_tail: (B, S, C), the FFN's spatial output of the chunk's last frame.
    """

    mixer: GDNState | TokenState | WindowState
    ffn_tail: Tensor


@dataclass(frozen=True, eq=False)
class NetworkState:
    """State of the whole network after a chunk."""

    blocks: tuple[BlockState, ...]


def outline(config: SanaWMConfig, tokens: int, chunks: Sequence[int], dtype: torch.dtype) -> NetworkState:
    """The state of one episode with cameras, on the meta device.

    Args:
        config: of the network.
        tokens: of a latent frame, S.
        chunks: latent frames of each chunk so far, at least one.
        dtype: of the weights.
    """
    size, wide = config.head_dim, config.hidden_size
    heads, taps = wide // size, config.conv_kernel_size
    pages: tuple[int, ...] = ()
    for frames in chunks:
        pages = push_page(pages, frames, config.window, config.sink)
    with torch.device("meta"):
        kv, z = torch.empty(1, heads, size, size), torch.empty(1, heads, size, 1)
        ffn_tail, key_tail = (torch.empty(*shape, tokens, wide, dtype=dtype) for shape in ((1,), (1, taps - 1)))
        window = WindowState(
            tuple(Page(*[torch.empty(1, heads, frames * tokens, size, dtype=dtype)] * 4) for frames in pages)
        )
    recurrent: Any = GDNState(kv, z, key_tail, kv, key_tail) if config.mixer == "frame" else ...
    return NetworkState(
        tuple(BlockState(window if config.is_softmax(i) else recurrent, ffn_tail) for i in range(config.depth))
    )


def push_page(pages: tuple[P, ...], page: P, window: int, sink: bool) -> tuple[P, ...]:
    """Pages visible to the next chunk: all (window -1), the last `window`, or the first and the last `window - 1`."""
    pages = (*pages, page)
    if window < 0 or len(pages) <= window:
        return pages
    return (pages[0], *pages[len(pages) - window + 1 :]) if sink else pages[len(pages) - window :]
