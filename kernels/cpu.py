"""The operators on a CPU, forward only: the reference's, for now."""

from sanawm_env.kernels.reference import attend, depthwise_glu, gdn

__all__ = ["attend", "depthwise_glu", "gdn"]
