"""Sizes of one SanaWM network."""

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from sanawm_env.system.settings import check_fields


@dataclass(frozen=True)
class SanaWMConfig:
    """Everything that decides the shapes of the network. The defaults are the official 2.6 B streaming model. Anything
    larger than the annotations allow is a slip, and would size memory.

    Attributes:
        latent_channels: channels of a latent, in and out.
        hidden_size: token width; a multiple of `head_dim`.
        depth: number of blocks. Block i is softmax where (i + 1) % softmax_every_n == 0, else gated delta rule (GDN).
        num_heads: heads of the cross-attention.
        head_dim: width of a self-attention head, a multiple of 8 (half of it is groups of four for the ray matrices).
        mlp_ratio: FFN width after the gate over hidden_size.
        caption_channels, text_len: width and number of the text tokens.
        plucker_channels: channels of the per-latent ray conditions: 48 (8 pixel frames x direction and moment), plus
            whatever a configuration appends.
        softmax_every_n: every n-th block is a softmax block.
        conv_kernel_size: taps of the temporal key convolution.
        input_size: size of the unused `pos_embed` buffer of the official state dict.
        window: chunks of keys and values that a softmax block keeps (-1: all).
        sink: keep the first chunk for ever as one of them.
        prediction_type: what the output means, in the words of diffusers: "flow_prediction" (noise - data) or
            "v_prediction" (Salimans and Ho 2022, on the noisy latents scaled to unit variance), which is minus the data
            at full noise and never asks the network to copy its noise.
        mixer: what the GDN blocks are: "frame", the gated delta rule over frames, or "token", its token-wise ablation
            (`sanawm_env.engines.sanawm.network.ablation`).
    """

    latent_channels: Annotated[int, Field(ge=1, le=4096)] = 128
    hidden_size: Annotated[int, Field(ge=1, le=65536)] = 2240
    depth: Annotated[int, Field(ge=1, le=256)] = 20
    num_heads: Annotated[int, Field(ge=1, le=1024)] = 20
    head_dim: Annotated[int, Field(ge=1, le=1024)] = 112
    mlp_ratio: Annotated[int | float, Field(ge=1e-9, le=64)] = 3
    caption_channels: Annotated[int, Field(ge=1, le=65536)] = 2304
    text_len: Annotated[int, Field(ge=1, le=65536)] = 300
    plucker_channels: Annotated[int, Field(ge=1, le=4096)] = 48
    softmax_every_n: Annotated[int, Field(ge=1, le=1024)] = 4
    conv_kernel_size: Annotated[int, Field(ge=1, le=64)] = 4
    input_size: Annotated[int, Field(ge=1, le=1024)] = 22
    window: Annotated[int, Field(ge=-1, le=1024)] = 2
    sink: bool = True
    prediction_type: Literal["flow_prediction", "v_prediction"] = "flow_prediction"
    mixer: Literal["frame", "token"] = "frame"

    def __post_init__(self):
        check_fields(self)
        if int(self.hidden_size * self.mlp_ratio) < 1:
            raise ValueError(f"mlp_ratio {self.mlp_ratio} leaves the FFN of {self.hidden_size} channels none.")
        if not self.window:
            raise ValueError("window must be -1 for all chunks, or at least 1, got 0.")
        if self.hidden_size % self.head_dim or self.hidden_size % self.num_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} must be a multiple of head_dim {self.head_dim} "
                f"and of num_heads {self.num_heads}."
            )
        if self.head_dim % 8:
            raise ValueError(f"head_dim must be a multiple of 8, got {self.head_dim}.")

    def is_softmax(self, block: int) -> bool:
        """Whether block `block` (0-based) is a softmax block."""
        return (block + 1) % self.softmax_every_n == 0
