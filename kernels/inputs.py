"""What the operators are given, as values: the grid of a call, ray geometry, one branch's projections, what is kept.

Sizes: B batch, h heads, D head width, C = h * D, T latent frames, S tokens per frame, N = T * S. Tokens are in the
order frame, row, column. Sources: dit.md 5, 6, 7, 11.
"""

from dataclasses import dataclass
from typing import final

from torch import Tensor


@dataclass(frozen=True)
class Grid:
    """Latent frames x rows x columns of one call, and the first frame of every chunk in it.

    Several chunks in one call make a chunk-causal pass: a frame sees its own chunk and the past.
    """

    frames: int
    height: int
    width: int
    chunk_starts: tuple[int, ...] = (0,)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(T, H, W)."""
        return self.frames, self.height, self.width

    @property
    def tokens(self) -> int:
        """Tokens per latent frame, S."""
        return self.height * self.width

    def chunk_of(self, frame: int) -> int:
        """Index of the chunk that holds `frame`; frames past the end belong to none (-1)."""
        if frame >= self.frames:
            return -1
        return sum(frame >= start for start in self.chunk_starts) - 1


@dataclass(frozen=True, eq=False)
class RayTransform:
    """The camera geometry of one chunk: ray <- world matrices `p` and their inverses (B, N, 4, 4), and the rotary
    phases (B, 1, N, D/4), complex, of the second half of each head."""

    p: Tensor
    p_inv: Tensor
    phase: Tensor


@dataclass(frozen=True, eq=False)
class Branch:
    """Raw projections of one branch and the weights that make features of them.

    q, k, v: (B, N, C), before convolution, norm and activation; views of a fused projection will do.
    conv: (C, 1, K) taps of the temporal key convolution. q_norm, k_norm: (C,) weights of norms over all channels.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    conv: Tensor
    q_norm: Tensor
    k_norm: Tensor


@dataclass(frozen=True, eq=False)
class GDNInputs:
    """What a GDN block computes from the tokens of one call before the operator runs.

    main, camera: raw projections of the two branches; the camera branch comes with its `rays`, or both are None.
    beta: (B, h, T, S) write gate per token, float32 or wider. decay: (B, h, T) per frame, likewise.
    phase: (B, 1, N, D/2) rotary phases of the main branch, complex.
    """

    main: Branch
    camera: Branch | None
    beta: Tensor
    decay: Tensor
    phase: Tensor
    rays: RayTransform | None
    grid: Grid


@final
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
