"""One block of latents through the refiner: LTX-2's video transformer over a sliding window of keys and values.

The transformer, its rotary embedding and its cache container are diffusers'. This is the loop for one block at a time,
with the window as a value (codec_text_refiner.md section c.3).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sanawm_env.engines.sanawm.refiner.state import RefinerState
from sanawm_env.system.files import explaining, visible
from sanawm_env.system.packages import needing

AUDIO_PREFIXES = (
    "audio_",
    "av_cross_",
    "cross_attn_rope",
    "cross_attn_audio_rope",
    "video_to_audio_",
    "audio_to_video_",
)


@dataclass(frozen=True)
class RefinerConfig:
    """How blocks are refined.

    Attributes:
        sigmas: noise levels of the steps, the last one 0.
        block: latent frames refined at a time.
        kv_max_frames: latent frames of keys and values that a block sees besides itself, the start image's included.
        fps: of the video.

    Raises:
        ValueError: for values out of range.
    """

    sigmas: tuple[float, ...] = (0.909375, 0.725, 0.421875, 0.0)
    block: int = 3
    kv_max_frames: int = 11
    fps: float = 16.0

    def __post_init__(self):
        if self.kv_max_frames < 1 + self.block:
            raise ValueError(f"kv_max_frames must be at least {1 + self.block}, got {self.kv_max_frames}.")
        if self.sigmas[-1] != 0 or any(a <= b for a, b in pairwise((1.0, *self.sigmas))):
            raise ValueError(f"sigmas must fall strictly from below 1 to 0, got {self.sigmas}.")


OFFICIAL = RefinerConfig()


class Refiner:
    """Refines a stream block by block. Use `Refiner.load`.

    Args:
        transformer: diffusers' `SanaWMLTX2RefinerTransformer3DModel`; its audio branches are never run.
        config: of the refinement.
    """

    def __init__(self, transformer: nn.Module, config: RefinerConfig = OFFICIAL):
        self.transformer: Any = transformer.eval().requires_grad_(False)  # whose parts have no types
        self.config = config
        self.keep: Callable[[Tensor], Tensor] = _same
        self.bring: Callable[[Tensor], Tensor] = _same

    @staticmethod
    def load(
        folder: str | Path,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.bfloat16,
        config: RefinerConfig = OFFICIAL,
    ) -> "Refiner":
        """Load a refiner without its audio branches (5.8 of 18.9 B parameters).

        Args:
            folder: with `transformer` in diffusers' layout.
            device: of the weights.
            dtype: of the weights.
            config: of the refinement.

        Raises:
            FileNotFoundError: which names the command that fetches it.
            ValueError: for files that do not fit.
            ImportError: without diffusers.
        """
        folder = Path(folder) / "transformer"
        if not (folder / "config.json").is_file():
            raise FileNotFoundError(f"There is no refiner in {folder}: run `sanawm fetch streaming --parts refiner`.")
        with explaining(
            f"{folder} does not hold a refiner that fits its config.json",
            (OSError, ValueError, TypeError, RuntimeError),
        ):
            transformer = _on_meta(folder)
            weights = {
                name: tensor.to(dtype)
                for path in visible(folder, "*.safetensors")
                for name, tensor in _read(path)
                if not _is_audio(name)
            }
            transformer.load_state_dict(weights, strict=True, assign=True)
        if left := [name for name, t in (*transformer.named_parameters(), *transformer.named_buffers()) if t.is_meta]:
            raise ValueError(f"{folder} leaves {', '.join(left)} of the refiner without values.")
        return Refiner(transformer.to(device), config)

    @staticmethod
    def on_meta(
        folder: Path | None = None, dtype: torch.dtype = torch.bfloat16, config: RefinerConfig = OFFICIAL
    ) -> "Refiner":
        """A refiner without weights, on the meta device: of a folder, or LTX-2's own."""
        outline = _on_meta(None if folder is None else Path(folder) / "transformer")
        return Refiner(nn.Module.to(outline, dtype), config)

    def to(self, device: str | torch.device) -> "Refiner":
        """Move the refiner, and return it."""
        self.transformer.to(device)
        return self

    def keys_wait(self, device: torch.device) -> None:
        """From now on keys and values of states (7.6 GB at 720p) are in the host's memory, and those of one layer
        are on the device while it works."""
        self.keep, self.bring = (lambda t: t.to("cpu")), (lambda t: t.to(device))

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of its weights."""
        return next(self.transformer.parameters()).dtype

    def outline(self, tokens: int, blocks: int, text: Tensor, text_mask: Tensor) -> RefinerState:
        """The state of one episode after some blocks, on the meta device.

        Args:
            tokens: of a latent frame.
            blocks: so far.
            text, text_mask: of its prompt.
        """
        config, layers = self.transformer.config, len(self.transformer.transformer_blocks)
        frames = min(blocks * self.config.block, self.config.kv_max_frames - 1)
        with torch.device("meta"):
            wide = config.num_attention_heads * config.attention_head_dim
            sink, history = (torch.empty(1, count * tokens, wide, dtype=self.dtype) for count in (1, frames))
            words = torch.empty(text.shape, dtype=self.dtype), torch.empty(text_mask.shape, dtype=text_mask.dtype)
        sinks, histories = ((sink, sink),) * layers, ((history, history),) * layers
        return RefinerState(sinks, histories, frames, 1 + blocks * self.config.block, *words)

    @torch.no_grad()
    def start(self, sink_latent: Tensor, text: Tensor, text_mask: Tensor) -> RefinerState:
        """The state before the first block.

        Args:
            sink_latent: (B, c, 1, h, w), the normalised latent of the start image.
            text: (B, L, C).
            text_mask: (B, L).

        Raises:
            ValueError: for another shape.
        """
        if sink_latent.ndim != 5 or sink_latent.shape[2] != 1:
            raise ValueError(f"sink_latent must be (B, c, 1, h, w), got {tuple(sink_latent.shape)}.")
        text = text.to(sink_latent.device, self.dtype)
        cache = self._cache()
        latent = sink_latent.to(self.dtype)
        self._forward(latent, 0.0, 0, text, text_mask, cache, "capture_pre_rope")
        sink = tuple(layer.get_captured_pre_rope() for layer in _layers(cache))
        return RefinerState(sink, (), 0, 1, text, text_mask)

    @torch.no_grad()
    def refine(self, block: Tensor, state: RefinerState, noise: Tensor) -> tuple[Tensor, RefinerState]:
        """Refine a block. No argument is written to.

        Args:
            block: (B, c, 3, h, w), normalised stage-1 latents of the next latent frames.
            state: of the blocks before.
            noise: (B, c, 3, h, w), unit normal.

        Returns:
            The refined block, and the next state.

        Raises:
            ValueError: for other shapes.
        """
        config, dtype = self.config, self.dtype
        if block.ndim != 5 or block.shape[2] != config.block or noise.shape != block.shape:
            raise ValueError(
                f"block and noise must be (B, c, {config.block}, h, w), "
                f"got {tuple(block.shape)} and {tuple(noise.shape)}."
            )
        if block.shape[0] != state.text.shape[0]:
            raise ValueError(f"The refiner state holds {state.text.shape[0]} episodes, the block {block.shape[0]}.")
        cache = self._window(state, block)
        start, top = state.next_frame, config.sigmas[0]
        x = ((1 - top) * block.to(dtype).float() + top * noise.to(dtype).float()).to(dtype)
        for sigma, below in pairwise(config.sigmas):
            velocity = self._forward(x, sigma, start, state.text, state.text_mask, cache, "inject")
            data = (x.float() - sigma * velocity.float()).to(dtype).float()
            keep = below / sigma
            x = (keep * x.float() + (1 - keep) * data).to(dtype)
        self._forward(x, 0.0, start, state.text, state.text_mask, cache, "inject_and_capture_post_rope")
        frames = min(state.history_frames + config.block, config.kv_max_frames - 1)
        tokens = frames * block.shape[3] * block.shape[4]
        history = []
        for i, layer in enumerate(_layers(cache)):
            new = layer.get_captured_post_rope()
            old = state.history[i] if state.history else (t[:, :0] for t in new)
            old = (self.keep(t) for t in old)
            both = (torch.cat((a, b), dim=1)[:, -tokens:].clone() for a, b in zip(old, new, strict=True))
            keys, values = map(self.keep, both)
            history.append((keys, values))
        after = RefinerState(state.sink, tuple(history), frames, start + config.block, state.text, state.text_mask)
        return x.to(block.dtype), after

    def _window(self, state: RefinerState, block: Tensor):
        """The library's cache container, filled from the state. The start image slides to just before the history."""
        cache = self._cache()
        for i, layer in enumerate(_layers(cache)):
            layer.store_sink(*state.sink[i])
            if state.history:
                layer.store_history(*state.history[i])
        cache.sink_pe = self._rotary(block, state.next_frame - state.history_frames - 1, 1)
        return cache

    def _cache(self):
        """The library's cache container, empty."""
        layers = len(self.transformer.transformer_blocks)
        cache = _library()[1](layers)
        cache.layer_caches = [_library()[2](self.keep, self.bring) for _ in range(layers)]
        return cache

    def _rotary(self, latents: Tensor, frame: int, frames: int) -> tuple[Tensor, Tensor]:
        return self.transformer.build_rotary_emb_for_absolute_positions(
            batch_size=latents.shape[0],
            frame_positions=list(range(frame, frame + frames)),
            height=latents.shape[3],
            width=latents.shape[4],
            device=latents.device,
            fps=float(self.config.fps),
        )

    def _forward(
        self, latents: Tensor, sigma: float, frame: int, text: Tensor, text_mask: Tensor, cache, mode: str
    ) -> Tensor:
        """Velocity (B, c, T, h, w) of latents whose first frame has the absolute index `frame`."""
        tokens = latents.flatten(2).mT.contiguous()  # (B, T h w, c): patches are single latents
        level = sigma * float(self.transformer.config.timestep_scale_multiplier)
        out = self.transformer(
            hidden_states=tokens,
            encoder_hidden_states=text,
            timestep=torch.full(tokens.shape[:2], level, dtype=torch.float32, device=tokens.device),
            video_rotary_emb=self._rotary(latents, frame, latents.shape[2]),
            encoder_attention_mask=text_mask,
            kv_cache=cache,
            kv_cache_mode=mode,
            return_dict=False,
        )[0]
        return out.mT.unflatten(2, latents.shape[2:])


def _on_meta(folder: Path | None) -> nn.Module:
    """diffusers' model without audio, with the sizes of a folder's config.json, or of the class defaults, which are
    LTX-2's."""
    model = _library()[0]
    with torch.device("meta"):
        return without_audio(model.from_config({} if folder is None else model.load_config(folder)))


def without_audio(transformer: Any) -> nn.Module:
    """Replace the audio branches of the transformer, which the refiner never runs, by nothing; in place."""
    for parent in (transformer, *transformer.transformer_blocks):
        for name, _ in list(parent.named_children()):
            if _is_audio(name):
                setattr(parent, name, nn.Identity())
        for name, _ in list(parent.named_parameters(recurse=False)):
            if _is_audio(name):
                parent.register_parameter(name, None)
    return transformer


def _is_audio(name: str) -> bool:
    parts = name.split(".")
    own = parts[2] if parts[0] == "transformer_blocks" and len(parts) > 2 else parts[0]
    return own.startswith(AUDIO_PREFIXES) or own == "scale_shift_table_a2v_ca_video"


def _layers(cache):
    return [cache.get(i) for i in range(len(cache))]


def _read(path: Path):
    from safetensors import SafetensorError, safe_open

    with explaining(f"{path.name} is damaged", SafetensorError), safe_open(path, "pt") as file:
        for name in file.keys():  # noqa: SIM118
            yield name, file.get_tensor(name)


def _same(tensor: Tensor) -> Tensor:
    return tensor


@cache
def _library():
    """diffusers' transformer, its cache container, and that of one layer, whose keys and values may be elsewhere.
    Raises ImportError where they are missing."""
    with needing("The refiner needs diffusers 0.42", "official"):
        from diffusers import SanaWMLTX2RefinerTransformer3DModel
        from diffusers.models.transformers.transformer_sana_wm_refiner import (
            SanaWMRefinerKVCache,
            SanaWMRefinerKVLayerCache,
        )

    class Layer(SanaWMRefinerKVLayerCache):
        """keep, bring: see `Refiner`."""

        def __init__(self, keep: Callable[[Tensor], Tensor], bring: Callable[[Tensor], Tensor]):
            super().__init__()
            self.keep, self.bring = keep, bring

        def get_sink(self):
            found = super().get_sink()
            return found and tuple(map(self.bring, found))

        def get_history(self):
            found = super().get_history()
            return found and tuple(map(self.bring, found))

        def store_captured_pre_rope(self, key: Tensor, value: Tensor) -> None:
            super().store_captured_pre_rope(self.keep(key), self.keep(value))

        def store_captured_post_rope(self, key: Tensor, value: Tensor) -> None:
            super().store_captured_post_rope(self.keep(key), self.keep(value))

    return SanaWMLTX2RefinerTransformer3DModel, SanaWMRefinerKVCache, Layer
