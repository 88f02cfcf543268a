"""What a world needs from a model, and the engine that runs SanaWM networks.

Another world model is plugged in by giving a factory a name in `ENGINES`; nano and streaming are the same engine with
different weights.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from sanawm_env.codec.ltx2 import LTX2Codec
from sanawm_env.codec.patch_pca import PatchPCACodec
from sanawm_env.kernels.dispatch import check_backend, choose
from sanawm_env.kernels.inputs import Grid
from sanawm_env.network.model import SanaWM
from sanawm_env.network.place_map import PlaceMap
from sanawm_env.network.precision import PRECISIONS, quantize
from sanawm_env.network.state import NetworkState
from sanawm_env.network.state import outline as network_outline
from sanawm_env.refiner.runner import Refiner
from sanawm_env.world import tree
from sanawm_env.world.anchor import Anchor
from sanawm_env.world.conditions import camera_inputs, place_token
from sanawm_env.world.config import WorldConfig
from sanawm_env.world.files import brief, check_count, check_number, reason
from sanawm_env.world.graphs import CudaRecorder, Graphs
from sanawm_env.world.offload import at_hand, check_offload, work_blockwise
from sanawm_env.world.prompts import PromptFeatures, Prompts
from sanawm_env.world.sampler import MAX_SHIFT, check_timesteps, sample_chunk
from sanawm_env.world.state import Display, Scene, Slot
from sanawm_env.world.threads import MAX_THREADS, Lock


@dataclass(frozen=True)
class LoadOptions:
    """How a world is loaded, beside its files.

    Attributes:
        precision: of the network, one of `sanawm_env.network.precision.PRECISIONS`; None as the world is configured.
        refiner: run the second stage on every chunk before it is decoded. refiner_precision: likewise for it.
        offload: parts that wait in the host's memory while they are not in use: "codec", "refiner" (whose blocks come
            to the device one at a time, with their keys and values), "text" (likewise), some of them as a list or as
            "codec,text"; True for all.
        text_encoder: encode prompts that are not in the world's cache, loading the encoder for it.
        softcap: read prompts that were encoded with soft-capped attention scores (`GemmaEncoder.load`).
        backend: form of the network's operators, one of `sanawm_env.kernels.dispatch.BACKENDS`; None for what suits the
            device. graphs: replay chunks as CUDA graphs.
        timesteps: noise levels as the network sees them, such as (1000, 967, 908, 764), instead of the world's own: for
            weights that were trained to others. flow_shift: makes a list of as many steps as the world has; given with
            timesteps, these stand as they are (a list is shifted already), and the shift is noted.
        threads: that it computes with on the CPU, which decides the last bits of its frames: 1 (None), whatever the
            calling program or OMP_NUM_THREADS say. 2 are faster where cores are idle, more rarely help nano.
    """

    precision: str | None = None
    refiner: bool = False
    refiner_precision: str | None = None
    offload: tuple[str, ...] | Sequence[str] | str | bool = ()
    text_encoder: bool = False
    softcap: bool = False
    backend: str | None = None
    graphs: bool = False
    timesteps: tuple[float, ...] | None = None
    flow_shift: float | None = None
    threads: int | None = None

    def __post_init__(self):
        object.__setattr__(self, "offload", check_offload(self.offload))
        if self.timesteps is not None:
            object.__setattr__(self, "timesteps", check_timesteps(self.timesteps))
        if self.flow_shift is not None:
            object.__setattr__(self, "flow_shift", check_number("flow_shift", self.flow_shift, 1, MAX_SHIFT))
        if self.threads is not None:
            object.__setattr__(self, "threads", check_count("threads", self.threads, 1, MAX_THREADS))
        if self.backend is not None:
            check_backend(self.backend)
        for name in ("precision", "refiner_precision"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, str) or value not in PRECISIONS):
                raise ValueError(f"{name} must be one of {', '.join(PRECISIONS)}, got {brief(value)}.")
        for name in ("refiner", "text_encoder", "softcap", "graphs"):
            if not isinstance(value := getattr(self, name), bool):
                raise TypeError(f"{name} must be True or False, got {brief(value)}.")


class Engine(Protocol):
    """A world model as pure functions: no argument is written to, nothing is remembered between calls."""

    config: WorldConfig
    device: torch.device

    def encode(self, image: np.ndarray) -> Tensor:
        """Latent (1, c, 1, h, w) of a picture (H, W, 3) uint8."""

    def encode_prompt(self, prompt: str, anchor: Anchor | None) -> PromptFeatures:
        """ValueError for a prompt the model cannot take."""

    def imagine(self, slots: Sequence[Slot], memory: Any, poses: Tensor) -> tuple[Tensor, Any]:
        """The next chunk of episodes of equal layout under poses (B, 24, 4, 4) float64, from their memory (a tree of
        tensors with leading axis B, None in a first chunk): latents (B, c, T, h, w), the start image's among them in a
        first chunk, and the next memory."""

    def decode(self, slots: Sequence[Slot], latents: Tensor, display: Any) -> tuple[Tensor, Any]:
        """Frames (B, 24, H, W, 3) uint8 of the latents of one chunk, and what the next chunk's decoding needs; display
        is what the last one left (a tree with leading axis B), None in a first chunk."""

    def outline(self, scene: Scene, chunks: int) -> tuple[Any, Any]:
        """Memory and display of an episode after so many chunks of a segment, one at least, with tensors on the meta
        device in place of its own (`...` for what may be anything): what saved ones are held to."""


class SanaEngine:
    """SanaWM network, few-step sampler, codec and, where asked for, prompts and refiner."""

    def __init__(
        self,
        config: WorldConfig,
        network: SanaWM,
        codec: PatchPCACodec | LTX2Codec,
        device: torch.device,
        *,
        place_map: PlaceMap | None = None,
        prompts: Prompts | None = None,
        refiner: Refiner | None = None,
        offload: Sequence[str] = (),
        graphs: bool = False,
    ):
        if codec.channels != config.network.latent_channels:
            raise ValueError(
                f"The {config.name} world has a codec of {codec.channels} channels and a network of "
                f"{config.network.latent_channels}: use the pair that was trained together."
            )
        if graphs and device.type != "cuda":
            raise ValueError(f"graphs=True needs a CUDA device, this is {device}: leave it out.")
        guided = config.sampler.guidance_scale > 1
        if guided and prompts is None:
            raise ValueError(f"The {config.name} world asks for guidance but has no prompts: set guidance_scale to 1.")
        self.config = config
        self.device = device
        self.network = network.to(device).eval().requires_grad_(False)
        with torch.no_grad():  # which says that the fast forms will do, and raises where one cannot run
            self.kernels = choose(device, network.final_layer.linear.weight.dtype, network.backend)
        self._chunk = Graphs(self._imagine, CudaRecorder(device)) if graphs else self._imagine
        self._one_at_a_time = graphs or (self.kernels.name == "triton" and device.type != "cuda")
        self.place_map = None if place_map is None else place_map.requires_grad_(False)
        self.codec, self.refiner, self.prompts = codec, refiner, prompts
        self.offload = tuple(offload)
        self._lock = Lock()  # parts that come to the device and go, graphs and Triton's interpreter serve one at a time
        self.negative = prompts.features("", device, negative=True) if guided else None
        if "codec" not in offload:
            codec.to(device)
        if refiner is not None and "refiner" in offload:
            work_blockwise(refiner.transformer, device)
            refiner.keys_wait(device)
        elif refiner is not None:
            refiner.to(device)

    @classmethod
    def load(cls, folder: Path, config: WorldConfig, device: torch.device, options: LoadOptions) -> "SanaEngine":
        """From the files of a world folder; FileNotFoundError or ValueError in one sentence."""
        dtype, place_map = getattr(torch, config.dtype), None
        with _weights(folder / "network.safetensors") as weights:
            with torch.device("meta"):
                network = SanaWM(config.network, options.backend)
            network.load_weights({name: tensor.to(dtype) for name, tensor in weights.items()}, assign=True)
            network.to(dtype)
        if config.places:
            with _weights(folder / "places.safetensors") as weights:
                place_map = PlaceMap(config.places)
                place_map.load_state_dict(weights)
        if options.precision is not None:
            network = quantize(network.to(device), options.precision)
        if config.codec == "patch_pca":
            codec = PatchPCACodec.load(folder / "codec.safetensors")
        else:
            codec = LTX2Codec.load(folder / "codec", dtype=dtype, causal=config.codec == "ltx2")
        prompts = refiner = None
        if not config.places and config.network.text_len > 1:
            prompts = Prompts(
                folder,
                config.name,
                softcap=options.softcap,
                load_encoders=options.text_encoder,
                refiner=options.refiner,
                offload="text" in options.offload,
            )
        if options.refiner:
            if prompts is None:
                raise ValueError(f"The {config.name} world has no refiner: load it with refiner=False.")
            refiner = Refiner.load(folder / "refiner", dtype=dtype)
            if options.refiner_precision is not None:
                quantize(refiner.transformer, options.refiner_precision, "refiner")
        return cls(
            config, network, codec, device,
            place_map=place_map, prompts=prompts, refiner=refiner, offload=options.offload,
            graphs=options.graphs,
        )  # fmt: skip

    def encode(self, image: np.ndarray) -> Tensor:
        with self._at_work("codec"):
            return self.codec.encode(torch.tensor(image, device=self.device)[None, None])

    def encode_prompt(self, prompt: str, anchor: Anchor | None) -> PromptFeatures:
        if self.prompts is not None:
            return self.prompts.features(prompt, self.device)
        if prompt:
            raise ValueError(f"The {self.config.name} world has no text encoder; leave the prompt empty.")
        place = None if anchor is None else anchor.place
        token = place_token(self.config.places, place, self.config.network.caption_channels)[None]
        return PromptFeatures(token.to(self.device))

    def outline(self, scene: Scene, chunks: int) -> tuple[Any, Any]:
        config, n = self.config, self.config.latents_per_chunk
        height, width, dtype = config.latent_height, config.latent_width, self.network.final_layer.linear.weight.dtype
        memory = network_outline(config.network, height * width, (1 + n, *[n] * (chunks - 1)), dtype)
        codec = refiner = None
        if isinstance(self.codec, LTX2Codec):
            codec = self.codec.outline(height, width, 1 + n * chunks, dtype)
        if self.refiner is not None:
            refiner = self.refiner.outline(height * width, chunks, *scene.refiner_text)
        return memory if self.negative is None else (memory, memory), Display(codec, refiner)

    @torch.no_grad()
    def imagine(self, slots: Sequence[Slot], memory: Any, poses: Tensor) -> tuple[Tensor, Any]:
        """With guidance the memory is the pair (unconditional, conditional)."""
        config, device, first = self.config, self.device, slots[0].first
        scenes = [slot.scene for slot in slots]
        identity, known = np.eye(4), list(config.places)
        anchors = np.stack([identity if s.anchor is None else s.anchor.c2w for s in scenes])
        camera, plucker = camera_inputs(
            config,
            self.place_map,
            torch.tensor(np.stack([slot.origin for slot in slots])),
            poses,
            torch.tensor(np.stack([s.intrinsics for s in scenes])),
            torch.tensor(anchors),
            torch.tensor([-1 if s.anchor is None else known.index(s.anchor.place) for s in scenes]),
            first=first,
        )
        n = config.latents_per_chunk
        grid = Grid(n + first, config.latent_height, config.latent_width)
        frame_index = torch.tensor([0 if first else n * (s.chunk - s.start) + 1 for s in slots], device=device)
        text, masks = torch.cat([s.text for s in scenes]), [s.text_mask for s in scenes]
        text_mask = None if masks[0] is None else torch.cat(masks)
        camera, plucker = camera.to(device), plucker.to(device)
        if self.negative is not None:
            text = torch.cat((self.negative.text.expand_as(text), text))
            text_mask = torch.cat((self.negative.text_mask.expand_as(text_mask), text_mask))
            frame_index, camera, plucker = (torch.cat((t, t)) for t in (frame_index, camera, plucker))
            memory = None if first else tree.map_tensors(lambda u, c: torch.cat((u, c)), *memory)
        shape = (config.network.latent_channels, *grid[:3])
        noise = torch.stack([chunk_noise(slot.seed, slot.chunk, shape) for slot in slots])
        noise = noise.to(device, self.network.final_layer.linear.weight.dtype)
        image_latent = torch.cat([s.image_latent for s in scenes]).to(noise.dtype) if first else None
        with self._lock.held() if self._one_at_a_time else nullcontext():
            latents, state = self._chunk(
                grid, frame_index, text, text_mask, camera, plucker, noise, image_latent, memory
            )
        if self.negative is None:
            return latents, state
        halves = [tree.map_tensors(lambda t, i=i: t.chunk(2)[i], state) for i in range(2)]
        return latents, tuple(halves)

    def _imagine(
        self,
        grid: Grid,
        frame_index: Tensor,
        text: Tensor,
        text_mask: Tensor | None,
        camera: Tensor,
        plucker: Tensor,
        noise: Tensor,
        image_latent: Tensor | None,
        memory: NetworkState | None,
    ) -> tuple[Tensor, NetworkState]:
        """All the network's work of one chunk, a function of tensors alone."""
        context = self.network.prepare(
            grid, frame_index, text=text, text_mask=text_mask, camera=camera, plucker=plucker
        )
        return sample_chunk(self.network, noise, context, memory, self.config.sampler, image_latent)

    @torch.no_grad()
    def decode(self, slots: Sequence[Slot], latents: Tensor, display: Display | None) -> tuple[Tensor, Display]:
        first = slots[0].first
        refined = None
        if self.refiner is not None:
            with self._at_work("refiner"):
                latents, refined = self._refine(slots, latents, None if first else display.refiner)
        with self._at_work("codec"):
            decoded = None if first else display.codec
            frames, decoded = self.codec.decode_chunk(latents, decoded, first=first)
        return frames[:, 1:] if first else frames, Display(decoded, refined)

    def _refine(self, slots: Sequence[Slot], latents: Tensor, state: Any) -> tuple[Tensor, Any]:
        """The chunk after the second stage; the start image's latent passes through it (codec_text_refiner.md c.3)."""
        sink, block = latents[:, :, :-3], latents[:, :, -3:]
        if state is None:
            texts, masks = zip(*(slot.scene.refiner_text for slot in slots), strict=True)
            state = self.refiner.start(sink, torch.cat(texts), torch.cat(masks))
        # another stream of noise than stage 1 draws for the same chunk
        noise = torch.stack([chunk_noise(slot.seed, slot.chunk, tuple(block.shape[1:]), stage=2) for slot in slots])
        block, state = self.refiner.refine(block, state, noise.to(block.device))
        return torch.cat((sink, block), dim=2), state

    @contextmanager
    def _at_work(self, part: str) -> Iterator[None]:
        """While a part is in use: one that waits elsewhere is used by one thread at a time, and the codec is on the
        engine's device for it."""
        if part not in self.offload:
            yield
            return
        with self._lock.held(), at_hand(codec_module(self.codec), self.device) if part == "codec" else nullcontext():
            yield


def codec_module(codec: PatchPCACodec | LTX2Codec) -> nn.Module:
    """The module that holds a codec's weights."""
    return codec.vae if isinstance(codec, LTX2Codec) else codec


@contextmanager
def _weights(path: Path) -> Iterator[dict[str, Tensor]]:
    """The tensors of a file, to be loaded within; FileNotFoundError or ValueError in one sentence."""
    if not path.is_file():
        raise FileNotFoundError(f"The world in {path.parent} has no {path.name}; train or download it again.")
    try:
        yield load_file(path)
    except (SafetensorError, RuntimeError) as error:
        raise ValueError(f"{path} does not fit the configuration beside it: {reason(error)}.") from error


def chunk_noise(seed: int, chunk: int, shape: tuple[int, ...], stage: int = 1) -> Tensor:
    """Unit normal noise of one chunk of one episode: a function of (seed, chunk, stage) alone, whatever the device, the
    batch or the past, drawn on the CPU in float32."""
    entropy = [seed, chunk] if stage == 1 else [seed, chunk, stage]
    mixed = int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0])
    generator = torch.Generator("cpu").manual_seed(mixed)
    return torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu")


ENGINES: dict[str, Callable[[Path, WorldConfig, torch.device, LoadOptions], Engine]] = {"sanawm": SanaEngine.load}
