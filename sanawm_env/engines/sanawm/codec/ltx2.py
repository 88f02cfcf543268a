"""The official codec: LTX-2's causal video VAE, decoded as a stream.

The network is diffusers' `AutoencoderKLLTX2Video`, which decodes whole clips only. Two small subclasses give its
decoder a memory between calls, which belongs to the call (`_Stream`) and not to the modules. One latent frame is
decoded per call, so it does not matter how latents are cut into chunks. Formulas and sizes: codec_text_refiner.md
section (a).

The bidirectional model's decoder is not causal: a frame depends on the latents after it, which an episode does not have
yet. Its frames are then the last ones of a clip that ends here, decoded in one piece with as many latents before them
as the official pipeline decodes in one piece (a tile of 96 frames).
"""

import inspect
import math
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from sanawm_env.engines.sanawm.codec.state import LTX2State
from sanawm_env.system.files import explaining
from sanawm_env.system.packages import needing

TIME_STRIDE, SPACE_STRIDE, CHUNK = 8, 32, 3
TILE_FRAMES, TILE_STRIDE = 96, 64
"""Frames that the official pipeline of whole clips decodes at a time, and from where to where it goes on."""


class LTX2Codec:
    """Frames <-> latents of diffusers' `AutoencoderKLLTX2Video`. Use `LTX2Codec.load`.

    Args:
        vae: the model. A causal decoder is changed so that only this class may call it.
        causal: whether its decoder is.
    """

    def __init__(self, vae: nn.Module, causal: bool = True):
        library = _library()
        self.vae: Any = vae.eval().requires_grad_(False)  # whose parts have no types
        self.causal = causal
        self._convs: list[Any] = []
        self._upsamplers: list[Any] = []
        for module in self.vae.decoder.modules() if causal else ():
            if type(module) is library.conv:
                module.__class__ = library.streaming_conv
                module.index = len(self._convs)
                self._convs.append(module)
            elif type(module) is library.upsampler:
                module.__class__ = library.streaming_upsampler
                self._upsamplers.append(module)

    @staticmethod
    def load(
        folder: str | Path,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.bfloat16,
        causal: bool = True,
    ) -> "LTX2Codec":
        """Load a codec.

        Args:
            folder: in diffusers' layout.
            device: of the weights.
            dtype: of the weights.
            causal: whether its decoder was trained to be, whatever its config says.

        Raises:
            FileNotFoundError: where a file is missing.
            ValueError: for files that do not fit.
            ImportError: without diffusers.
        """
        folder, weights = Path(folder), "diffusion_pytorch_model.safetensors"
        for name in ("config.json", weights):
            if not (folder / name).is_file():
                raise FileNotFoundError(f"The codec in {folder} has no {name}; get it with: sanawm fetch streaming.")
        said = f"{folder} does not hold a codec that fits its config.json"
        kinds = OSError, ValueError, TypeError, RuntimeError
        with explaining(said, kinds), explaining(f"{weights} is damaged", SafetensorError):
            vae = _on_meta(folder, causal)
            vae.load_state_dict(load_file(folder / weights), strict=True, assign=True)
        return LTX2Codec(nn.Module.to(vae, device, dtype), causal)

    @staticmethod
    def on_meta(folder: Path | None = None, dtype: torch.dtype = torch.bfloat16, causal: bool = True) -> "LTX2Codec":
        """A codec without weights, on the meta device: of a folder, or LTX-2's own."""
        return LTX2Codec(nn.Module.to(_on_meta(folder, causal), dtype), causal)

    def to(self, device: str | torch.device) -> "LTX2Codec":
        """Move the codec, and return it."""
        self.vae.to(device)
        return self

    @property
    def module(self) -> nn.Module:
        return self.vae

    @property
    def channels(self) -> int:
        return self.vae.config.latent_channels

    @property
    def replay_frames(self) -> int:
        """How many latent frames the decoder depends on: decoding these again gives its caches again, bit for bit.
        For a decoder that is not causal, how many are decoded again with every chunk."""
        if not self.causal:
            return TILE_FRAMES // TIME_STRIDE - CHUNK + 1
        config = self.vae.config  # which lists the blocks from the pixels inwards
        return receptive_frames(config.decoder_layers_per_block[::-1], config.decoder_spatio_temporal_scaling[::-1])

    def outline(self, height: int, width: int, frames: int, dtype: torch.dtype) -> LTX2State:
        """The state after `frames` latent frames (h, w) of a dtype, on the meta device."""
        tails, rows, columns, scale = [], height, width, (1, 1)
        with torch.device("meta"):
            history = torch.empty(1, self.channels, min(frames, self.replay_frames), height, width, dtype=dtype)
            for module in self.vae.decoder.modules():
                if module in self._upsamplers:  # whose own convolution comes before it makes the picture larger
                    scale = module.stride[1:]
                elif module in self._convs:
                    shape = (1, module.in_channels, module.kernel_size[0] - 1, rows, columns)
                    tails.append(torch.empty(shape, dtype=self.vae.dtype))
                    rows, columns, scale = rows * scale[0], columns * scale[1], (1, 1)
        return LTX2State(history, tuple(tails) if self.causal else None)

    @torch.no_grad()
    def encode(self, frames: Tensor) -> Tensor:
        """Encode frames. The latents are normalised, and the posterior's mode, never a sample.

        Args:
            frames: (B, 1 + 8 n, H, W, 3) uint8.

        Returns:
            (B, c, 1 + n, H / 32, W / 32).

        Raises:
            ValueError: for other shapes.
        """
        stride = SPACE_STRIDE
        f, height, width, colours = frames.shape[1:] if frames.ndim == 5 else (0, 1, 1, 0)
        if frames.dtype != torch.uint8 or colours != 3 or f % TIME_STRIDE != 1 or height % stride or width % stride:
            raise ValueError(
                f"frames must be (B, 1 + 8 n, {stride} h, {stride} w, 3) uint8, "
                f"got {tuple(frames.shape)} {frames.dtype}."
            )
        video = frames.to(self.vae.device).permute(0, 4, 1, 2, 3).float() / 255 * 2 - 1
        return self.encode_video(video)

    @torch.no_grad()
    def encode_video(self, video: Tensor) -> Tensor:
        """As `encode`, of video (B, 3, F, H, W) in -1..1."""
        raw = self.vae.encode(video.to(self.vae.dtype)).latent_dist.mode()
        mean, std, scale = self._statistics()
        return (raw - mean) * scale / std

    @torch.no_grad()
    def decode_chunk(self, latents: Tensor, state: LTX2State | None, *, first: bool) -> tuple[Tensor, LTX2State]:
        """Decode the next latents of a stream. Bytes are made in float32 and truncated, as in the official streaming
        pipeline but for its bfloat16 (section a.3).

        Args:
            latents: (B, c, T, h, w), normalised.
            state: of the stream so far; None for the first.
            first: whether they open the stream.

        Returns:
            Frames (B, F, H, W, 3) uint8 with F = 8 T, or 8 T - 7 for the first, and the next state.

        Raises:
            ValueError: for another shape, or a state of other streams.
        """
        video, state = self.decode_video(latents, state, first=first)
        # (x + 1) * 127.5, clamped and truncated
        pixels = video.float().add_(1).mul_(127.5).clamp_(0, 255).to(torch.uint8)
        return pixels.permute(0, 2, 3, 4, 1).contiguous(), state

    @torch.no_grad()
    def decode_video(self, latents: Tensor, state: LTX2State | None, *, first: bool) -> tuple[Tensor, LTX2State]:
        """As `decode_chunk`, but the frames are (B, 3, F, H, W) in about -1..1, in the codec's dtype. Raises
        ValueError likewise."""
        if latents.ndim != 5 or latents.shape[1] != self.channels or not latents.shape[2]:
            raise ValueError(f"latents must be (B, {self.channels}, T, h, w), got {tuple(latents.shape)}.")
        if first != (state is None):
            raise ValueError("The first latents of a stream come without a decoder state, all others with one.")
        if state is not None and state.history.shape[0] != latents.shape[0]:
            raise ValueError(f"The decoder state holds {state.history.shape[0]} streams, got {latents.shape[0]}.")
        if not self.causal:
            past = latents[:, :, :0] if state is None else state.history
            history = torch.cat((past, latents), dim=2)
            video = self.vae.decoder(self._raw(history), None, causal=False)
            new = TIME_STRIDE * latents.shape[2] - (TIME_STRIDE - 1) * first
            return video[:, :, -new:], LTX2State(history[:, :, -self.replay_frames :].clone(), None)
        stream = _Stream([None] * len(self._convs))
        history = latents if state is None else torch.cat((state.history, latents), dim=2)
        if state is not None and state.tails is None:
            list(self._frames(state.history, stream))  # makes the caches again
        elif state is not None and state.tails is not None:
            if len(state.tails) != len(self._convs):
                raise ValueError(
                    f"The decoder state has {len(state.tails)} tails, this codec needs {len(self._convs)}."
                )
            stream.tails[:] = state.tails
        video = torch.cat(list(self._frames(latents, stream)), dim=2)
        tails = cast(tuple[Tensor, ...], tuple(stream.tails))  # every convolution has seen frames now
        return video, LTX2State(history[:, :, -self.replay_frames :].clone(), tails)

    def _frames(self, latents: Tensor, stream: "_Stream") -> Iterator[Tensor]:
        """The decoder's output for one latent frame of a stream after the other."""
        for frame in self._raw(latents).split(1, dim=2):
            token = _stream.set(stream)
            try:
                decoded = self.vae.decoder(frame, None, causal=True)
            finally:
                _stream.reset(token)
            yield decoded

    def _raw(self, latents: Tensor) -> Tensor:
        """Latents as the decoder takes them, from normalised ones."""
        mean, std, scale = self._statistics()
        return (latents.to(mean.device, mean.dtype) * std / scale + mean).to(self.vae.dtype)

    def _statistics(self) -> tuple[Tensor, Tensor, float]:
        """Mean and standard deviation (1, c, 1, 1, 1) in the codec's dtype, and the scaling factor."""
        vae = self.vae
        mean, std = (t.view(1, -1, 1, 1, 1) for t in (vae.latents_mean, vae.latents_std))
        return mean, std, vae.config.scaling_factor


@dataclass
class _Stream:
    """What the decoder's convolutions remember of a stream while it is decoded.

    Attributes:
        tails: the last two input frames of each convolution; None before its first.
        skip: leading input frames that the next convolution leaves out.
    """

    tails: list[Tensor | None]
    skip: int = 0


_stream: ContextVar[_Stream] = ContextVar("the stream that is being decoded")


def receptive_frames(layers: Sequence[int], scaling: Sequence[bool]) -> int:
    """How many latent frames the decoder depends on: every convolution adds two frames at its own rate (section a.5).

    Args:
        layers: residual blocks (of two convolutions) in the middle and after each upsampler.
        scaling: whether that upsampler, one convolution at the rate before it, doubles the rate.
    """
    rate, back = 1, 2.0 * (1 + 2 * layers[0])  # conv_in and the middle
    for blocks, doubles in zip(layers[1:], scaling, strict=True):
        if doubles:
            back += 2 / rate
            rate *= 2
        back += 2 * 2 * blocks / rate
    return math.ceil(back + 2 / rate)  # conv_out


def _on_meta(folder: Path | None, causal: bool) -> nn.Module:
    """diffusers' model on the meta device, with the sizes of a folder's config.json, or of the class defaults, which
    are LTX-2's."""
    library = _library()
    settings: dict[str, Any] = {"encoder_causal": True} if folder is None else library.vae.load_config(folder)
    settings = {**settings, "decoder_causal": causal}
    # upstream names the list in the order of its decoder blocks reversed (section a.1)
    upsample_type = settings.pop("decoder_upsample_type", None)
    if upsample_type is not None:
        settings["upsample_type"] = tuple(reversed(upsample_type))
    settings.pop("gradient_checkpointing", None)
    with torch.device("meta"):
        return library.vae.from_config(settings)


@cache
def _library() -> SimpleNamespace:
    """diffusers' classes and their streaming subclasses. Raises ImportError where diffusers is missing or has
    changed."""
    with needing("The codec needs diffusers 0.42", "official"):
        from diffusers import AutoencoderKLLTX2Video
        from diffusers.models.autoencoders.autoencoder_kl_ltx2 import LTX2VideoCausalConv3d, LTX2VideoUpsampler3d
    if list(inspect.signature(LTX2VideoCausalConv3d.forward).parameters) != ["self", "hidden_states", "causal"]:
        raise ImportError(
            'This diffusers has another LTX-2 codec: pip install "sanawm-env[official]" brings one that fits.'
        )

    class StreamingConv(LTX2VideoCausalConv3d):
        """The convolution with the past it would have seen.

        Where input frames are left out, the output repeats its first frame for them, to be dropped by whoever asked.
        """

        index: int
        """Of its tail in a stream."""

        def forward(self, hidden_states: Tensor, causal: bool = True) -> Tensor:
            stream = _stream.get()
            skip, stream.skip = stream.skip, 0
            x, tail = hidden_states[:, :, skip:], stream.tails[self.index]
            past = self.kernel_size[0] - 1
            tail = x[:, :, :1].expand(-1, -1, past, -1, -1) if tail is None else tail
            x = torch.cat((tail, x), dim=2)
            stream.tails[self.index] = x[:, :, x.shape[2] - past :].clone()
            out = self.conv(x)
            return torch.cat((out[:, :, :1], out), dim=2) if skip else out

    class StreamingUpsampler(LTX2VideoUpsampler3d):
        """The upsampler, whose parent drops the first output frame of every call: only a stream's first call should.

        Later calls hand it one frame too many, which pays for what it drops.
        """

        def forward(self, hidden_states: Tensor, causal: bool = True) -> Tensor:
            stream = _stream.get()
            if stream.tails[cast(StreamingConv, self.conv).index] is None or self.stride[0] == 1:
                return super().forward(hidden_states, causal=causal)
            stream.skip = 1  # for its own convolution, the only one it calls
            out = super().forward(torch.cat((hidden_states[:, :, :1], hidden_states), dim=2), causal=causal)
            return out[:, :, 1:]

    return SimpleNamespace(
        vae=AutoencoderKLLTX2Video,
        conv=LTX2VideoCausalConv3d,
        upsampler=LTX2VideoUpsampler3d,
        streaming_conv=StreamingConv,
        streaming_upsampler=StreamingUpsampler,
    )
