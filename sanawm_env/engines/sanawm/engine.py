"""The engine that runs SANA-WM networks: nano, streaming and chunk-causal are this one with different weights."""

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, cast, final

import numpy as np
import torch
from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from sanawm_env.engines.sanawm.codec.ltx2 import LTX2Codec
from sanawm_env.engines.sanawm.codec.patch_pca import PatchPCACodec
from sanawm_env.engines.sanawm.codec.state import Codec, LTX2State
from sanawm_env.engines.sanawm.conditions import camera_inputs, place_token
from sanawm_env.engines.sanawm.config import MAX_TEMPERATURE, SanaWorldConfig
from sanawm_env.engines.sanawm.graphs import CudaRecorder, Graphs
from sanawm_env.engines.sanawm.network.ablation import TokenState
from sanawm_env.engines.sanawm.network.model import SanaWM
from sanawm_env.engines.sanawm.network.place_map import PlaceMap
from sanawm_env.engines.sanawm.network.precision import PRECISIONS, quantize
from sanawm_env.engines.sanawm.network.state import BlockState, GDNState, NetworkState, Page, WindowState
from sanawm_env.engines.sanawm.network.state import outline as network_outline
from sanawm_env.engines.sanawm.official import OFFICIAL, OFFLINE
from sanawm_env.engines.sanawm.offload import at_hand, check_offload, work_blockwise
from sanawm_env.engines.sanawm.prompts import PromptFeatures, Prompts
from sanawm_env.engines.sanawm.refiner.runner import Refiner
from sanawm_env.engines.sanawm.refiner.state import RefinerState
from sanawm_env.engines.sanawm.reprojection import Guess, Reprojection
from sanawm_env.engines.sanawm.sampler import MAX_SHIFT, check_timesteps, sample_chunk
from sanawm_env.engines.sanawm.unseen import CODE, UnseenSampler
from sanawm_env.kernels.dispatch import check_backend, choose
from sanawm_env.kernels.inputs import Grid
from sanawm_env.system.files import check_choice, reason
from sanawm_env.world import tree
from sanawm_env.world.anchor import Anchor
from sanawm_env.world.engine import Chunk, Engine, LoadOptions
from sanawm_env.world.saved import FLOATS
from sanawm_env.world.state import Scene, Slot
from sanawm_env.world.threads import Lock


@dataclass(frozen=True, kw_only=True)
class SanaLoadOptions(LoadOptions):
    """How a world is loaded, beside its files.

    Attributes, besides threads, which decide the last bits of its frames (2 are faster where cores are idle, more
    rarely help nano):
        precision: of the network, one of `network.precision.PRECISIONS`; None as the world is configured.
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
        temperature: of what is drawn where no picture shows anything, 0 for the mean; None as the world is configured.
    """

    precision: str | None = None
    refiner: bool = False
    refiner_precision: str | None = None
    offload: tuple[str, ...] = ()
    text_encoder: bool = False
    softcap: bool = False
    backend: str | None = None
    graphs: bool = False
    timesteps: tuple[float, ...] | None = None
    flow_shift: Annotated[float, Field(ge=1, le=MAX_SHIFT)] | None = None
    temperature: Annotated[float, Field(ge=0, le=MAX_TEMPERATURE)] | None = None

    decisive = ("precision", "refiner", "refiner_precision", "timesteps", "flow_shift", "temperature")

    def __post_init__(self):
        object.__setattr__(self, "offload", check_offload(self.offload))
        if self.timesteps is not None:
            object.__setattr__(self, "timesteps", check_timesteps(self.timesteps))
        if self.backend is not None:
            check_backend(self.backend)
        for name in ("precision", "refiner_precision"):
            if (value := getattr(self, name)) is not None:
                check_choice(name, value, PRECISIONS)
        super().__post_init__()


@dataclass(frozen=True, eq=False)
class SanaConditions:
    """What the network reads of a start. image_latent: (1, c, 1, h, w). text: (1, L, caption_channels); text_mask:
    (1, L) or None. refiner_text: features (1, L, C) and mask (1, L) for the refiner, None without one."""

    image_latent: Tensor
    text: Tensor
    text_mask: Tensor | None = None
    refiner_text: tuple[Tensor, Tensor] | None = None


@final
@dataclass(frozen=True, eq=False)
class SanaMemory:
    """What episodes keep from chunk to chunk. network: with guidance the pair (unconditional, conditional). decoder,
    refiner: of worlds that have such stages with a state."""

    network: NetworkState | tuple[NetworkState, NetworkState]
    decoder: LTX2State | None = None
    refiner: RefinerState | None = None


@dataclass(frozen=True, eq=False)
class ChunkInputs:
    """What the network's work on a chunk depends on; with guidance B is twice the episodes, unconditional first.

    frame_index: (B,) of the chunk's first latent frame. text: (B, L, C), its mask (B, L) or None. camera: (B, T, 20),
    plucker: (B, C, T, h, w). noise: (episodes, c, T, h, w). image_latent: (episodes, c, 1, h, w) where the chunk opens
    a segment. guess: mean and spread of a guess, unseen: shares and codes of an `UnseenSampler`, of worlds that have
    one. memory: what the chunk before left.
    """

    frame_index: Tensor
    text: Tensor
    text_mask: Tensor | None
    camera: Tensor
    plucker: Tensor
    noise: Tensor
    image_latent: Tensor | None
    guess: tuple[Tensor, Tensor] | None
    unseen: tuple[Tensor, Tensor] | None
    memory: NetworkState | None


class SanaEngine(Engine):
    """SanaWM network, few-step sampler, codec and, where asked for, prompts and refiner."""

    config_type = SanaWorldConfig
    options_type = SanaLoadOptions
    state_types = (
        SanaConditions, SanaMemory, NetworkState, BlockState, GDNState, TokenState, WindowState, Page, LTX2State,
        RefinerState,
    )  # fmt: skip
    elsewhere: ClassVar[Mapping[str, str]] = {
        **{name: f"is not on this machine yet: run `sanawm fetch {name}`" for name in OFFICIAL if name not in OFFLINE},
        **{name: "makes whole clips and cannot be stepped: use `sanawm render`" for name in OFFLINE},
    }

    def __init__(
        self,
        config: SanaWorldConfig,
        network: SanaWM,
        codec: Codec,
        device: torch.device,
        *,
        place_map: PlaceMap | None = None,
        reprojection: Reprojection | None = None,
        unseen: UnseenSampler | None = None,
        prompts: Prompts | None = None,
        refiner: Refiner | None = None,
        offload: Sequence[str] = (),
        graphs: bool = False,
        identity: bytes = b"",
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
        self.reprojection = None if reprojection is None else reprojection.to(device).eval().requires_grad_(False)
        self.unseen = None if unseen is None else unseen.to(device).eval().requires_grad_(False)
        self.codec, self.refiner, self.prompts = codec, refiner, prompts
        can = {"images": True, "prompts": prompts is not None}
        self.capabilities = frozenset(name for name, there in can.items() if there)
        self.offload, self._identity = tuple(offload), identity
        self._lock = Lock()  # parts that come to the device and go, graphs and Triton's interpreter serve one at a time
        self.negative = prompts.features("", device, negative=True) if guided and prompts else None
        if "codec" not in offload:
            codec.to(device)
        if refiner is not None and "refiner" in offload:
            work_blockwise(refiner.transformer, device)
            refiner.keys_wait(device)
        elif refiner is not None:
            refiner.to(device)

    @classmethod
    def load(
        cls, folder: Path | None, config: SanaWorldConfig, device: torch.device, options: SanaLoadOptions
    ) -> "SanaEngine":
        """From the files of a world folder; FileNotFoundError or ValueError in one sentence."""
        folder = cast(Path, folder)  # as `needs_files` says
        dtype, place_map, reprojection, unseen = getattr(torch, config.dtype), None, None, None
        as_trained, as_configured = config.sampler, config.temperature
        config = replace(config, sampler=as_trained.with_steps(options.timesteps, options.flow_shift))
        if options.temperature is not None:
            if not config.unseen:
                raise ValueError(f"The {config.name} world has no temperature: leave it out.")
            config = replace(config, temperature=options.temperature)
        with _weights(folder / "network.safetensors") as weights:
            with torch.device("meta"):
                network = SanaWM(config.network, options.backend)
            network.load_weights({name: tensor.to(dtype) for name, tensor in weights.items()}, assign=True)
            network.to(dtype)
        if config.places:
            with _weights(folder / "places.safetensors") as weights:
                place_map = PlaceMap(config.places)
                place_map.load_state_dict(weights)
        if config.reprojection:
            with _weights(folder / "reprojection.safetensors") as weights:
                reprojection = Reprojection()
                reprojection.load_state_dict(weights)
        if options.precision is not None:
            network = quantize(network.to(device), options.precision)
        if config.codec == "patch_pca":
            codec: Codec = PatchPCACodec.load(folder / "codec.safetensors")
        else:
            codec = LTX2Codec.load(folder / "codec", dtype=dtype, causal=config.codec == "ltx2")
        if config.unseen:
            with _weights(folder / "unseen.safetensors") as weights:
                unseen = UnseenSampler(cast(PatchPCACodec, codec), config.latents_per_chunk)
                unseen.load_state_dict(weights)
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
        # what changes the numbers belongs to the weights; where parts wait and how prompts are found does not
        changes: tuple = (options.precision, options.refiner, options.refiner_precision)
        identity = repr(changes) if any(changes) else ""
        if config.sampler.timesteps != as_trained.timesteps:
            identity += repr(tuple(map(float, config.sampler.timesteps)))
        if config.temperature != as_configured:
            identity += f"temperature {config.temperature}"
        return cls(
            config, network, codec, device,
            place_map=place_map, reprojection=reprojection, unseen=unseen, prompts=prompts, refiner=refiner,
            offload=options.offload, graphs=options.graphs, identity=identity.encode(),
        )  # fmt: skip

    def describe(self) -> str:
        return self.config.name + "+refiner" * (self.refiner is not None)

    def identity(self) -> bytes:
        return self._identity

    def encode(self, image: np.ndarray, prompt: str, anchor: Anchor | None) -> SanaConditions:
        words = self.encode_prompt(prompt, anchor)
        return SanaConditions(self.encode_image(image), words.text, words.text_mask, words.refiner)

    def encode_image(self, image: np.ndarray) -> Tensor:
        """Latent (1, c, 1, h, w) of a picture (H, W, 3) uint8."""
        with self._at_work("codec"):
            return self.codec.encode(torch.tensor(image, device=self.device)[None, None])

    def check_prompt(self, prompt: str) -> None:
        if self.prompts is None or not self.prompts.load_encoders:
            self.encode_prompt(prompt, None)

    def start_latents(self, conditions: SanaConditions) -> Tensor:
        return conditions.image_latent

    def encode_prompt(self, prompt: str, anchor: Anchor | None) -> PromptFeatures:
        """ValueError for a prompt the model cannot take."""
        if self.prompts is not None:
            return self.prompts.features(prompt, self.device)
        super().check_prompt(prompt)
        place = None if anchor is None else anchor.place
        token = place_token(self.config.places, place, self.config.network.caption_channels)[None]
        return PromptFeatures(token.to(self.device))

    def advance(self, slots: Sequence[Slot], memory: SanaMemory | None, poses: Tensor) -> Chunk:
        latents, network = self.imagine(slots, None if memory is None else memory.network, poses)
        frames, decoder, refiner = self.decode(slots, latents, memory)
        new = latents[:, :, int(slots[0].first) :]
        return Chunk(frames, SanaMemory(network, decoder, refiner), new)

    def with_prompt(self, scene: Scene, prompt: str) -> SanaConditions:
        """The picture stays encoded."""
        words = self.encode_prompt(prompt, scene.anchor)
        return replace(scene.conditions, text=words.text, text_mask=words.text_mask, refiner_text=words.refiner)

    def with_conditions(self, memory: SanaMemory, conditions: SanaConditions) -> SanaMemory:
        if memory.refiner is None or conditions.refiner_text is None:
            return memory
        text, mask = conditions.refiner_text
        before = memory.refiner
        return replace(memory, refiner=replace(before, text=text.to(before.text), text_mask=mask.to(before.text_mask)))

    def without_caches(self, memory: SanaMemory) -> SanaMemory:
        """The last latents stand for the decoder's tails and are replayed."""
        return memory if memory.decoder is None else replace(memory, decoder=replace(memory.decoder, tails=None))

    def outline(self, scene: Scene, chunks: int) -> tuple[SanaConditions, SanaMemory | None]:
        config, n, given = self.config, self.config.latents_per_chunk, scene.conditions
        height, width, dtype = config.latent_height, config.latent_width, self.network.final_layer.linear.weight.dtype
        net = config.network
        with torch.device("meta"):
            masked = self.prompts is not None
            conditions = SanaConditions(
                torch.empty(1, net.latent_channels, 1, height, width, dtype=_float(given, "image_latent")),
                torch.empty(1, net.text_len, net.caption_channels, dtype=_float(given, "text")),
                torch.empty(1, net.text_len, dtype=torch.int64) if masked else None,
                None if self.refiner is None else _refiner_outline(given),
            )
        if chunks == 0:
            return conditions, None
        memory: Any = network_outline(net, height * width, (1 + n, *[n] * (chunks - 1)), dtype)
        decoder, refiner = self.codec.outline(height, width, 1 + n * chunks, dtype), None
        if self.refiner is not None and conditions.refiner_text is not None:
            refiner = self.refiner.outline(height * width, chunks, *conditions.refiner_text)
        return conditions, SanaMemory(memory if self.negative is None else (memory, memory), decoder, refiner)

    @torch.no_grad()
    def imagine(self, slots: Sequence[Slot], memory: Any, poses: Tensor) -> tuple[Tensor, Any]:
        """Latents (B, c, T, h, w) of the next chunk, the start image's among them where it opens a segment, and the
        network's next state; with guidance that is the pair (unconditional, conditional)."""
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
        given = [s.conditions for s in scenes]
        text, masks = torch.cat([c.text for c in given]), [c.text_mask for c in given]
        text_mask = None if masks[0] is None else torch.cat(masks)
        camera, plucker = camera.to(device), plucker.to(device)
        guess = unseen = None
        if self.reprojection is not None:
            guess = self._reproject(self.reprojection, slots, poses)
            plucker = torch.cat((plucker, guess.channels), dim=1)
            if self.unseen is not None:
                codes = torch.stack([chunk_noise(slot.seed, slot.chunk, (CODE,), stage=3) for slot in slots])
                unseen = guess.unseen, codes.to(device)
        if self.negative is not None:
            text = torch.cat((self.negative.text.expand_as(text), text))
            if text_mask is not None and self.negative.text_mask is not None:
                text_mask = torch.cat((self.negative.text_mask.expand_as(text_mask), text_mask))
            frame_index, camera, plucker = (torch.cat((t, t)) for t in (frame_index, camera, plucker))
            memory = None if first else tree.map_tensors(lambda u, c: torch.cat((u, c)), *memory)
        shape = (config.network.latent_channels, *grid.shape)
        noise = torch.stack([chunk_noise(slot.seed, slot.chunk, shape) for slot in slots])
        noise = noise.to(device, self.network.final_layer.linear.weight.dtype)
        image_latent = torch.cat([c.image_latent for c in given]).to(noise.dtype) if first else None
        with self._lock.held() if self._one_at_a_time else nullcontext():
            latents, state = self._chunk(
                grid,
                ChunkInputs(
                    frame_index, text, text_mask, camera, plucker, noise, image_latent,
                    None if guess is None else (guess.mean, guess.spread), unseen, memory,
                ),
            )  # fmt: skip
        if self.negative is None:
            return latents, state
        halves = [tree.map_tensors(lambda t, i=i: t.chunk(2)[i], state) for i in range(2)]
        return latents, tuple(halves)

    def _imagine(self, grid: Grid, given: ChunkInputs) -> tuple[Tensor, NetworkState]:
        """All the network's work of one chunk, a function of tensors alone."""
        context = self.network.prepare(
            grid, given.frame_index, text=given.text, text_mask=given.text_mask, camera=given.camera,
            plucker=given.plucker,
        )  # fmt: skip
        finish = None
        if self.unseen is not None and given.unseen is not None:
            share, code = given.unseen
            finish = partial(self.unseen, unseen=share, code=code, temperature=self.config.temperature)
        return sample_chunk(
            self.network, given.noise, context, given.memory, self.config.sampler, given.image_latent, given.guess,
            finish,
        )  # fmt: skip

    def _reproject(self, reprojection: Reprojection, slots: Sequence[Slot], poses: Tensor) -> Guess:
        """What the pictures of the slots say of their next chunk. One slot after the other: the rays of one stay in the
        processor's caches, those of sixteen do not, and a guess does not depend on who else is in the batch."""
        guesses = []
        for slot, path in zip(slots, poses.to(self.device), strict=True):
            given = slot.scene.image, slot.origin, slot.c2w, slot.scene.intrinsics
            image, origin, before, intrinsics = (torch.tensor(part, device=self.device)[None] for part in given)
            known = torch.tensor([slot.scene.anchor is not None], device=self.device)
            last = None if slot.first else slot.frame[None]
            guesses.append(reprojection(self.codec, image, last, origin, before, path[None], intrinsics, known))
        return Guess(*(torch.cat([getattr(guess, part.name) for guess in guesses]) for part in fields(Guess)))

    @torch.no_grad()
    def decode(
        self, slots: Sequence[Slot], latents: Tensor, memory: SanaMemory | None
    ) -> tuple[Tensor, LTX2State | None, RefinerState | None]:
        """Frames (B, 24, H, W, 3) uint8 of the latents of one chunk, and the next states of decoder and refiner."""
        first, refined = slots[0].first, None
        before = None if first else memory
        if self.refiner is not None:
            with self._at_work("refiner"):
                latents, refined = self._refine(self.refiner, slots, latents, before and before.refiner)
        with self._at_work("codec"):
            frames, decoded = self.codec.decode_chunk(latents, before and before.decoder, first=first)
        return frames[:, 1:] if first else frames, decoded, refined

    def _refine(
        self, refiner: Refiner, slots: Sequence[Slot], latents: Tensor, state: RefinerState | None
    ) -> tuple[Tensor, RefinerState]:
        """The chunk after the second stage; the start image's latent passes through it (codec_text_refiner.md c.3)."""
        sink, block = latents[:, :, :-3], latents[:, :, -3:]
        if state is None:
            texts, masks = zip(*(slot.scene.conditions.refiner_text for slot in slots), strict=True)
            state = refiner.start(sink, torch.cat(texts), torch.cat(masks))
        # another stream of noise than stage 1 draws for the same chunk
        noise = torch.stack([chunk_noise(slot.seed, slot.chunk, tuple(block.shape[1:]), stage=2) for slot in slots])
        block, state = refiner.refine(block, state, noise.to(block.device))
        return torch.cat((sink, block), dim=2), state

    @contextmanager
    def _at_work(self, part: str) -> Generator[None]:
        """While a part is in use: one that waits elsewhere is used by one thread at a time, and the codec is on the
        engine's device for it."""
        if part not in self.offload:
            yield
            return
        with self._lock.held(), at_hand(self.codec.module, self.device) if part == "codec" else nullcontext():
            yield


@contextmanager
def _weights(path: Path) -> Generator[dict[str, Tensor]]:
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


def _float(given: Any, name: str) -> torch.dtype:
    """The dtype of a saved tensor where it is one of numbers with a fraction, float32 otherwise."""
    dtype = getattr(getattr(given, name, None), "dtype", None)
    return dtype if dtype in FLOATS else torch.float32


def _refiner_outline(given: Any) -> Any:
    """Of saved features for the refiner, whose length and width depend on the encoder."""
    pair = getattr(given, "refiner_text", None)
    text = pair[0] if isinstance(pair, tuple) and len(pair) == 2 else None
    if not isinstance(text, Tensor) or text.ndim != 3:
        return torch.empty(1, 1, 1), torch.empty(1, 1, dtype=torch.int64)
    dtype = text.dtype if text.dtype in FLOATS else torch.float32
    return torch.empty(1, *text.shape[1:], dtype=dtype), torch.empty(1, text.shape[1], dtype=torch.int64)
