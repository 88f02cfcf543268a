"""The token-wise ablation: GDN blocks whose state takes tokens in one by one (`SanaWMConfig.mixer = "token"`).

The frame rule writes all tokens of a frame at once and lets a chunk see its own later frames. Here every token sees
only those before it, in the order frame, row, column: the gated delta rule of Yang et al. 2024 (arXiv 2412.06464), as
the layer of flash-linear-attention (fla) that language models are built from. It has the heads and the state size of
the frame rule's main branch.

fla is optional and takes seconds to import: it is loaded where a network is built with this mixer. Its kernels need a
CUDA device, or Triton's interpreter (for tests: it takes help, `tests/test_kernels_fla.py`).
"""

import os
from dataclasses import dataclass

from torch import Tensor, nn

from sanawm_env.engines.sanawm.network.config import SanaWMConfig
from sanawm_env.engines.sanawm.network.context import Context


@dataclass(frozen=True, eq=False)
class TokenState:
    """State of a token-wise block.

    Attributes:
        recurrent: (B, h, D, D) value x key, float32.
        conv: of q, k and v each, the last K inputs (B, C, K) of the temporal convolution (K taps).
    """

    recurrent: Tensor
    conv: tuple[Tensor, Tensor, Tensor]


class TokenMixer(nn.Module):
    """fla's `GatedDeltaNet` in the place of `GDNMixer`. The camera enters through the ray (Plücker) conditions alone:
    there is no camera branch and no rotary position. A call may cover several chunks, because it is causal.

    Raises:
        ImportError: where fla is not installed.
    """

    def __init__(self, config: SanaWMConfig):
        super().__init__()
        layer, _ = _fla()
        self.layer = layer(
            hidden_size=config.hidden_size,
            head_dim=config.head_dim,
            num_heads=config.hidden_size // config.head_dim,
            expand_v=1,
            conv_size=config.conv_kernel_size,
            layer_idx=0,  # of a cache that holds this layer alone
        )

    @property
    def proj(self) -> nn.Linear:
        """The projection to the residual stream, by the name it has in the other mixers."""
        return self.layer.o_proj

    def forward(
        self, x: Tensor, context: Context, state: TokenState | None, save: bool
    ) -> tuple[Tensor, TokenState | None]:
        """Mix tokens.

        Args:
            x: (B, N, C), modulated tokens.
            context: of this chunk.
            state: of the chunk before, or None.
            save: whether to return the next state.

        Returns:
            The output (B, N, C), and the next state or None.

        Raises:
            ValueError: where the kernels cannot run.
        """
        runs_on = ("cuda", "cpu") if os.environ.get("TRITON_INTERPRET") == "1" else ("cuda",)
        if x.device.type not in runs_on:
            raise ValueError(f'mixer "token" needs a CUDA device, this is {x.device}.')
        _, cache_type = _fla()
        cache = cache_type()
        if state is not None:
            # copies: where a call brings one token, the layer edits the caches of its convolutions in place
            cache.update(recurrent_state=state.recurrent, conv_state=tuple(tail.clone() for tail in state.conv))
        out, *_ = self.layer(x, past_key_values=cache, use_cache=save)
        if not save:
            return out, None
        return out, TokenState(cache[0]["recurrent_state"], tuple(cache[0]["conv_state"]))


def _fla() -> tuple[type, type]:
    """The layer and the cache that it reads and writes."""
    try:
        from fla.layers import GatedDeltaNet
        from fla.models.utils import Cache
    except ImportError as error:
        raise ImportError(
            'mixer "token" needs the package flash-linear-attention: pip install "sanawm-env[gpu]" (Linux).'
        ) from error
    return GatedDeltaNet, Cache
