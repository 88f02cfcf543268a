"""Inputs of the operators as values: the grid of a call, ray geometry, the projections of one branch, and states.

Sizes: B batch, h heads, D head width, C = h * D, T latent frames, S tokens per frame, N = T * S. Tokens are in the
order frame, row, column. Sources: dit.md 5, 6, 7, 11.
"""

from dataclasses import dataclass
from typing import final

from torch import Tensor


@dataclass(frozen=True)
class Grid:
    """Latent frames x rows x columns of one call. Several chunks in one call make a chunk-causal pass: a frame sees its
    own chunk and the past.

    Attributes:
        frames: T.
        height: rows.
        width: columns.
        chunk_starts: first frame of every chunk.
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
        """Index of the chunk that holds a frame; -1 past the end."""
        if frame >= self.frames:
            return -1
        return sum(frame >= start for start in self.chunk_starts) - 1


@dataclass(frozen=True, eq=False)
class RayTransform:
    """The camera geometry of one chunk.

    Attributes:
        p: (B, N, 4, 4), ray <- world.
        p_inv: (B, N, 4, 4), their inverses.
        phase: (B, 1, N, D/4), complex rotary phases of the second half of each head.
    """

    p: Tensor
    p_inv: Tensor
    phase: Tensor


@dataclass(frozen=True, eq=False)
class Branch:
    """Raw projections of one branch, and the weights that make features of them.

    Attributes:
        q, k, v: (B, N, C), before convolution, norm and activation; they may be views of a fused projection.
        conv: (C, 1, K) taps of the temporal key convolution.
        q_norm, k_norm: (C,) weights of norms over all channels.
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

    Attributes:
        main: raw projections of the main branch.
        camera: of the camera branch; None together with `rays`.
        beta: (B, h, T, S) write gate per token, float32 or wider.
        decay: (B, h, T) per frame, float32 or wider.
        phase: (B, 1, N, D/2) rotary phases of the main branch, complex.
        rays: geometry of the camera branch.
        grid: of the call.
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

    Attributes:
        kv: (B, h, D, D) key x value, float32.
        z: (B, h, D, 1) normaliser, float32.
        key_tail: (B, K-1, S, C), the last inputs of the temporal key convolution (K taps).
        camera_kv: (B, h, D, D) float32; None where the network ran without cameras.
        camera_key_tail: as `key_tail`.
    """

    kv: Tensor
    z: Tensor
    key_tail: Tensor
    camera_kv: Tensor | None = None
    camera_key_tail: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Page:
    """Keys and values that one chunk leaves in a softmax block. Keys keep their absolute rotation.

    Attributes:
        k, v: (B, h, N, D).
        camera_k, camera_v: of the camera branch, or None.
    """

    k: Tensor
    v: Tensor
    camera_k: Tensor | None = None
    camera_v: Tensor | None = None
