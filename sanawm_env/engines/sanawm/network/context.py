"""What the passes over one chunk share: everything that does not depend on the latents (`SanaWM.prepare` makes it).

Sizes: B batch, N tokens of the chunk, C width, h heads of the cross-attention, L text tokens.
"""

from dataclasses import dataclass

from torch import Tensor

from sanawm_env.kernels.dispatch import Kernels
from sanawm_env.kernels.inputs import Grid, RayTransform


@dataclass(frozen=True, eq=False)
class BlockConditions:
    """What one block reads besides its tokens.

    Attributes:
        added: (B, N, C) or (B, 1, C), the projected ray conditions, added to the tokens; None without.
        text: keys and values (B, h, L, C/h) of the cross-attention; None where nothing is left to attend to
            (`shortcuts.fold_single_token`).
    """

    added: Tensor | None
    text: tuple[Tensor, Tensor] | None


@dataclass(frozen=True, eq=False)
class Context:
    """What one chunk's passes share.

    Attributes:
        kernels: the operators.
        grid: of the chunk.
        phase: (B, 1, N, D/2) rotary phases, complex, of heads of width D.
        rays: the camera branches' geometry, None without cameras.
        text_bias: (B, 1, 1, L), added to the scores of the text, None without a mask.
        conditions: of every block.
    """

    kernels: Kernels
    grid: Grid
    phase: Tensor
    rays: RayTransform | None
    text_bias: Tensor | None
    conditions: tuple[BlockConditions, ...]
