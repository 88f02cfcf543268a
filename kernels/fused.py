"""The operators as Triton kernels. Importing this imports triton, so `dispatch.choose` does it on demand."""

from sanawm_env.kernels.triton_ffn import depthwise_glu
from sanawm_env.kernels.triton_gdn import INTERPRETED, gdn
from sanawm_env.kernels.triton_window import attend

__all__ = ["INTERPRETED", "attend", "depthwise_glu", "gdn"]
