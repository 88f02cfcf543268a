"""Sizes of one SanaWM network."""

from dataclasses import dataclass

from sanawm_env.system.files import check_choice, check_count, check_number

SIZES = (
    ("latent_channels", 1, 4096), ("hidden_size", 1, 65536), ("depth", 1, 256), ("num_heads", 1, 1024),
    ("head_dim", 1, 1024), ("caption_channels", 1, 65536), ("text_len", 1, 65536), ("plucker_channels", 1, 4096),
    ("softmax_every_n", 1, 1024), ("conv_kernel_size", 1, 64), ("input_size", 1, 1024), ("window", -1, 1024),
)  # fmt: skip
"""Whole numbers of a configuration, and what each may be: anything larger is a slip, and would size memory."""


@dataclass(frozen=True)
class SanaWMConfig:
    """Everything that decides the shapes of the network. The defaults are the official 2.6 B streaming model.

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

    latent_channels: int = 128
    hidden_size: int = 2240
    depth: int = 20
    num_heads: int = 20
    head_dim: int = 112
    mlp_ratio: int | float = 3
    caption_channels: int = 2304
    text_len: int = 300
    plucker_channels: int = 48
    softmax_every_n: int = 4
    conv_kernel_size: int = 4
    input_size: int = 22
    window: int = 2
    sink: bool = True
    prediction_type: str = "flow_prediction"
    mixer: str = "frame"

    def __post_init__(self):
        for name, least, most in SIZES:
            check_count(name, getattr(self, name), least, most)
        ratio = check_number("mlp_ratio", self.mlp_ratio, 1e-9, 64)
        if int(self.hidden_size * ratio) < 1:
            raise ValueError(f"mlp_ratio {ratio} leaves the FFN of {self.hidden_size} channels none.")
        if not self.window:
            raise ValueError("window must be -1 for all chunks, or at least 1, got 0.")
        if self.hidden_size % self.head_dim or self.hidden_size % self.num_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} must be a multiple of head_dim {self.head_dim} "
                f"and of num_heads {self.num_heads}."
            )
        if self.head_dim % 8:
            raise ValueError(f"head_dim must be a multiple of 8, got {self.head_dim}.")
        check_choice("prediction_type", self.prediction_type, ("flow_prediction", "v_prediction"))
        check_choice("mixer", self.mixer, ("frame", "token"))

    def is_softmax(self, block: int) -> bool:
        """Whether block `block` (0-based) is a softmax block."""
        return (block + 1) % self.softmax_every_n == 0
