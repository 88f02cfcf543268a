"""How much memory a world takes, from shapes alone. Its start and steps run on torch's meta device, where tensors
have sizes and no contents, and what is alive is counted."""

import dataclasses
import math
import weakref
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cache
from importlib import import_module
from pathlib import Path
from types import MethodType, SimpleNamespace
from typing import Any, cast
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sanawm_env.camera.intrinsics import intrinsics_from_fov
from sanawm_env.engines.sanawm.codec.ltx2 import LTX2Codec
from sanawm_env.engines.sanawm.codec.patch_pca import PatchPCACodec
from sanawm_env.engines.sanawm.codec.state import Codec
from sanawm_env.engines.sanawm.config import SanaWorldConfig
from sanawm_env.engines.sanawm.engine import SanaEngine, SanaLoadOptions
from sanawm_env.engines.sanawm.network.config import SanaWMConfig
from sanawm_env.engines.sanawm.network.model import SanaWM
from sanawm_env.engines.sanawm.network.place_map import PlaceMap
from sanawm_env.engines.sanawm.network.precision import weight_bytes
from sanawm_env.engines.sanawm.offload import blocks_of
from sanawm_env.engines.sanawm.prompts import PromptFeatures
from sanawm_env.engines.sanawm.refiner.runner import Refiner
from sanawm_env.engines.sanawm.reprojection import Reprojection
from sanawm_env.engines.sanawm.sampler import SamplerConfig
from sanawm_env.engines.sanawm.unseen import UnseenSampler
from sanawm_env.kernels import cpu, reference
from sanawm_env.world import tree
from sanawm_env.world.state import Scene
from sanawm_env.world.world import World

META_DEVICE = torch.device("meta")
REFINER_TEXT_LEN = 1024  # codec_text_refiner.md c.2
GEMMA3_12B = {
    "hidden_size": 3840, "intermediate_size": 15360, "num_hidden_layers": 48, "num_attention_heads": 16,
    "num_key_value_heads": 8, "head_dim": 256, "vocab_size": 262208,
}  # fmt: skip
MOST_CHUNKS, SETTLED = 16, 1.002  # every window is full, or a step adds no more than this
FULL = 6  # chunks until the windows that have a limit are full, the refiner's last


@dataclass(frozen=True)
class MemoryPrediction:
    """Bytes on the device that runs a world.

    Attributes:
        weights: of every part.
        working: by part, the most that is alive besides weights while it works.
        between: what stays between two steps besides weights (states and the last clip).
        waiting: by part that waits in the host's memory, its bytes on the device (at other times, while it works): none
            and all of it, or all but the blocks and one block more.
    """

    weights: dict[str, int]
    working: dict[str, int]
    between: int
    waiting: dict[str, tuple[int, int]]

    @property
    def peak(self) -> int:
        """The most bytes that are alive at any time."""

        def on_device(name: str, size: int, works: bool) -> int:
            return self.waiting.get(name, (size, size))[works]

        return max(
            self.working.get(part, 0) + sum(on_device(name, size, name == part) for name, size in self.weights.items())
            for part in self.weights
        )


def predict_memory(
    config: SanaWorldConfig, folder: Path | None = None, options: SanaLoadOptions | None = None, batch: int = 1
) -> MemoryPrediction:
    """Memory of encoding start images and stepping episodes, without snapshots. Tensors are counted, and the workspaces
    of convolutions; CUDA's context, other workspaces and fragmentation are not. Where the attention window has no
    limit, memory grows with every chunk; then this is the last of `config.horizon_chunks`.

    Args:
        config: of the world.
        folder: of the world, whose codec and refiner may have sizes of their own; missing parts have the official
            sizes.
        options: that it is loaded with.
        batch: number of episodes.

    Raises:
        ImportError: where a part needs a library that is not installed.
    """
    options = options or SanaLoadOptions()
    if options.precision is not None:
        config = replace(config, dtype="bfloat16")
    network, codec, refiner = _outline(config, folder, options.refiner)
    weights = {"network": weight_bytes(network, options.precision), "codec": weight_bytes(codec.module, None)}
    if config.reprojection:
        weights["reprojection"] = weight_bytes(_reprojection(), None)
    if config.unseen:
        weights["unseen"] = weight_bytes(_unseen(config, codec), None)
    waiting = {"codec": (0, weights["codec"])}
    if refiner is not None:
        weights["refiner"] = weight_bytes(refiner.transformer, options.refiner_precision, "refiner")
        waiting["refiner"] = _blockwise(refiner.transformer, weights["refiner"])
    waiting = {name: there for name, there in waiting.items() if name in options.offload}
    rehearsed = _rehearse(config, folder, options.refiner, batch)["refiner" in waiting]
    working, between = dict(rehearsed.working), rehearsed.between
    if options.text_encoder and config.codec != "patch_pca":
        # loaded for a prompt and let go again, one encoder at a time
        encoders = [_encoder(folder), _refiner_encoder(folder)] if options.refiner else [_encoder(folder)]
        sizes = [weight_bytes(encoder, None) for encoder in encoders]
        one_by_one = [_blockwise(encoder, size)[1] for encoder, size in zip(encoders, sizes, strict=True)]
        at_work = max(one_by_one if "text" in options.offload else sizes)
        weights["text"], waiting["text"], working["text"] = max(sizes), (0, at_work), between
    return MemoryPrediction(weights, working, between, waiting)


def _blockwise(module: nn.Module, size: int) -> tuple[int, int]:
    """Bytes on the device of a module whose blocks wait: always, and while it works. Only blocks are ever quantised."""
    plain = [weight_bytes(block, None) for block in blocks_of(module)]
    outside = weight_bytes(module, None) - sum(plain)
    return outside, outside + math.ceil((size - outside) * max(plain) / sum(plain))


@cache
def _encoder(folder: Path | None) -> nn.Module:
    """The prompt encoder on the meta device: of a folder, or gemma-2-2b's, whose sizes are the library's own."""
    from transformers import AutoConfig, AutoModel, Gemma2Config

    text = _part(folder, "text")
    with META_DEVICE:
        return AutoModel.from_config(Gemma2Config() if text is None else AutoConfig.from_pretrained(text)).bfloat16()


@cache
def _refiner_encoder(folder: Path | None) -> nn.Module:
    """The refiner's encoder and connectors on the meta device: of a folder, or Gemma-3-12b and LTX-2's own."""
    from diffusers.pipelines.ltx2.connectors import LTX2TextConnectors
    from transformers import AutoConfig, Gemma3Config, Gemma3ForConditionalGeneration

    text, connectors = _part(folder, "refiner/text"), _part(folder, "refiner/connectors")
    config = Gemma3Config(text_config=GEMMA3_12B) if text is None else AutoConfig.from_pretrained(text)
    with META_DEVICE:
        encoder = Gemma3ForConditionalGeneration(config)
        settings: Any = {} if connectors is None else LTX2TextConnectors.load_config(connectors)
        connected = cast(nn.Module, LTX2TextConnectors.from_config(settings))
        both = nn.ModuleDict({"encoder": encoder, "connectors": connected})
    return both.bfloat16()


@cache
def _rehearse(
    config: SanaWorldConfig, folder: Path | None, refiner: bool, batch: int
) -> tuple[MemoryPrediction, MemoryPrediction]:
    """Predictions without weights: of a world with everything on the device, and of one whose refiner's keys and values
    are in the host's memory."""
    run = _Rehearsal(config, *_outline(config, folder, refiner))
    grows = config.network.window < 0
    between, most = [], []  # of every chunk, the first's with what comes before it
    with fused_attention(), run.live as live, live.repeating(run.blocks):
        world = World(run, "")
        state = world.begin([run.scene() for _ in range(batch)])
        poses = np.broadcast_to(np.eye(4), (batch, config.chunk_frames, 4, 4))
        for _ in range(FULL if grows else MOST_CHUNKS):
            state, clip = world.advance(state, poses)  # the clip before lives until the new one is there
            between.append((live.now, live.now - live.apart))
            most.append((Counter(live.most), Counter(live.most_here)))
            live.most.clear()
            live.most_here.clear()
            if not grows and len(between) > 1 and between[-1][0] <= between[-2][0] * SETTLED:
                break
    del state, clip
    left = config.horizon_chunks - len(between) if grows else 0
    everything, here = (_at_the_end([chunk[i] for chunk in most], [now[i] for now in between], left) for i in range(2))
    if run.refiner is not None:  # a layer's keys and values come to the device while it works
        layer = (everything.between - here.between) // len(run.refiner.transformer.transformer_blocks)
        here = replace(here, working=here.working | {"refiner": here.working["refiner"] + layer})
    return everything, here


def _at_the_end(most: list[Counter[str]], between: list[int], left: int) -> MemoryPrediction:
    """The chunks so far, and `left` more that each add what the last one has added."""
    working = {
        part: max(max(chunk[part] for chunk in most), last + left * (last - most[-2][part]))
        for part, last in most[-1].items()
    }
    return MemoryPrediction({}, working, between[-1] + left * (between[-1] - between[-2]), {})


def _outline(config: SanaWorldConfig, folder: Path | None, refiner: bool) -> tuple[SanaWM, Codec, Refiner | None]:
    """Network, codec and refiner on the meta device."""
    dtype = getattr(torch, config.dtype)
    if config.codec == "patch_pca":
        with META_DEVICE:
            codec: Codec = PatchPCACodec(config.network.latent_channels, config.spatial_stride)
    else:
        codec = _codec(_part(folder, "codec"), dtype, config.codec == "ltx2")
    return _network(config.network, dtype), codec, _refiner(_part(folder, "refiner"), dtype) if refiner else None


@cache
def _network(config: SanaWMConfig, dtype: torch.dtype) -> SanaWM:
    with META_DEVICE:
        # the forms in torch that run without gradients: reference forms would take more than any device does
        return SanaWM(config, "cpu").to(dtype)


@cache
def _reprojection() -> Reprojection:
    with META_DEVICE:
        return Reprojection()


def _unseen(config: SanaWorldConfig, codec: Codec) -> UnseenSampler:
    with META_DEVICE:
        return UnseenSampler(cast(PatchPCACodec, codec), config.latents_per_chunk)


_codec, _refiner = cache(LTX2Codec.on_meta), cache(Refiner.on_meta)


def _part(folder: Path | None, name: str) -> Path | None:
    return folder / name if folder is not None and (folder / name).exists() else None


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of tensors on the meta device while it is entered.

    A network does the same to tensors of the same shapes many times, and torch computes shapes in Python. So results
    are reused where everything they depend on is alike, and so are those of whole blocks (`repeating`).

    Args:
        weights: modules whose tensors are counted apart.

    Attributes:
        now: bytes that are alive.
        apart: of these, those that could be elsewhere.
        stage: what is going on, set from outside.
        most: by stage, the most bytes alive.
        most_here: the same without those that could be elsewhere.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled here, and asking every time takes as long as the counting

    def __init__(self, weights: Sequence[nn.Module] = ()):
        super().__init__()
        # torch does when it works out its first shape, and what goes wrong within would hold on to what is alive then
        import_module("torch._dynamo")
        self.now, self.apart, self.stage = 0, 0, "network"
        self.most: Counter[str] = Counter()
        self.most_here: Counter[str] = Counter()
        tensors = (t for module in weights for t in (*module.parameters(), *module.buffers()))
        self._known = {t.untyped_storage()._cdata for t in tensors}
        self._elsewhere: set[int] = set()
        self._made, self._effects = learned()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = self._run(func, args, kwargs or {})
        for leaf in (out,) if isinstance(out, Tensor) else tree_leaves(out):
            if isinstance(leaf, Tensor) and leaf.is_meta:
                self._count(leaf.untyped_storage())
        workspace = convolution_workspace(args[0], args[1], out) if func in CONVOLUTIONS else 0
        self.most[self.stage] = max(self.most[self.stage], self.now + workspace)
        self.most_here[self.stage] = max(self.most_here[self.stage], self.now - self.apart + workspace)
        return out

    def _run(self, func: Any, args: Any, kwargs: Any) -> Any:
        if not _makes_new(func):
            return func(*args, **kwargs)  # torch is quick with views, and with what is written in place
        key = func, _outline_of(args), _outline_of(kwargs)
        if key in self._made:
            shape, strides, dtype = self._made[key]
            return torch.empty_strided(shape, strides, dtype=dtype, device=META_DEVICE)
        out = func(*args, **kwargs)
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if isinstance(out, Tensor) and all(t.is_meta for t in (out, *given)) and _is_new(out, given):
            self._made[key] = out.shape, out.stride(), out.dtype
        return out

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self._known:
            self._known.add(key)
            weakref.finalize(storage, self._freed, key, size)
            self.now += size

    def elsewhere(self, tensor: Tensor) -> Tensor:
        """The tensor, counted as one that could be elsewhere."""
        storage = tensor.untyped_storage()
        if storage._cdata not in self._elsewhere:
            self._elsewhere.add(storage._cdata)
            self.apart += storage.nbytes()
        return tensor

    def _freed(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size
        if key in self._elsewhere:
            self._elsewhere.discard(key)
            self.apart -= size

    @contextmanager
    def repeating(self, blocks: Iterable[nn.Module]) -> Generator[None]:
        """Within the block, each of these modules runs once for alike calls: modules built alike, with tensors of the
        same shapes. After that its effect on memory is repeated: the most that was alive, above what was alive when it
        began, and the tensors it leaves.

        This is exact for functions of shapes: what a module is given stays alive while it works, as in every call of a
        module. It may write to objects that it is given, where they hold None.
        """
        forwards = [(block, self._repeated(block)) for block in blocks]
        with ExitStack() as undo:
            for block, forward in forwards:
                undo.enter_context(mock.patch.object(block, "forward", forward))
            yield

    def _repeated(self, block: nn.Module) -> Callable[..., Any]:
        work, built = block.forward, _built(block)

        def forward(*args: Any, **kwargs: Any) -> Any:
            key = built, _outline_of(args), _outline_of(kwargs)
            holders = [x for x in (*args, *kwargs.values()) if _has_fields(x) and not dataclasses.is_dataclass(x)]
            empty = [(holder, name) for holder in holders for name, value in vars(holder).items() if value is None]
            if key not in self._effects:
                most, most_here, now, here = self.most, self.most_here, self.now, self.now - self.apart
                given = [t.untyped_storage()._cdata for t in _tensors((args, kwargs))]
                before, self.most, self.most_here = set(self._known), Counter(), Counter()
                out = work(*args, **kwargs)
                rises = [(stage, value - now, self.most_here[stage] - here) for stage, value in self.most.items()]
                self.most, self.most_here = most, most_here
                self._rise(rises, now, here)
                left = out, tuple(getattr(*place) for place in empty)
                self._effects[key] = rises, self._recipe(left, given, before)
                return out
            rises, recipe = self._effects[key]
            if recipe is None:
                return work(*args, **kwargs)
            self._rise(rises, self.now, self.now - self.apart)
            out, filled = self._follow(recipe, (args, kwargs))
            for place, value in zip(empty, filled, strict=True):
                setattr(*place, value)
            return out

        return forward

    def _rise(self, rises: list[tuple[str, int, int]], now: int, here: int) -> None:
        for stage, more, more_here in rises:
            self.most[stage] = max(self.most[stage], now + more)
            self.most_here[stage] = max(self.most_here[stage], here + more_here)

    def _recipe(self, left: Any, given: list[int], before: set[int]) -> "_Recipe | None":
        """How to leave the same tensors again; None where that is not only new tensors and views of given ones.
        given, before: storages of those, and all that were known."""
        tensors = list(tree.leaves(left))
        if len(tensors) != len(list(_tensors(left))) or any(t.is_conj() or not t.is_meta for t in tensors):
            return None
        storages = {storage._cdata: storage for storage in (t.untyped_storage() for t in tensors)}
        new = {key: storage for key, storage in storages.items() if key not in given}
        if before & new.keys():
            return None
        places = {key: i for i, key in enumerate(new)} | {key: -1 - i for i, key in enumerate(given)}
        keys = [t.untyped_storage()._cdata for t in tensors]
        parts = [
            (places[key], t.dtype, t.storage_offset(), t.shape, t.stride(), key in self._elsewhere and key in new)
            for key, t in zip(keys, tensors, strict=True)
        ]
        with no_dispatch():
            nothing = torch.empty(0, device=META_DEVICE)
        return _Recipe([storage.nbytes() for storage in new.values()], parts, tree.map_tensors(lambda _: nothing, left))

    def _follow(self, recipe: "_Recipe", given: Any) -> Any:
        old = list(_tensors(given)) if any(part[0] < 0 for part in recipe.parts) else []
        parts = iter(recipe.parts)

        def make(_: Tensor) -> Tensor:
            place, dtype, *look, apart = next(parts)
            storage = new[place] if place >= 0 else old[-1 - place].untyped_storage()
            made = torch.empty(0, dtype=dtype, device=META_DEVICE).set_(storage, *look)
            return self.elsewhere(made) if apart else made

        with no_dispatch():
            new = [torch.empty(n, dtype=torch.uint8, device=META_DEVICE).untyped_storage() for n in recipe.storages]
            for storage in new:
                self._count(storage)
            return tree.map_tensors(make, recipe.left)


def forget() -> None:
    """Forget all reused results."""
    _rehearse.cache_clear()
    learned.cache_clear()


@cache
def learned() -> tuple[dict[Any, Any], dict[Any, Any]]:
    """Results of operators (shape, strides and dtype) and effects of modules (see
    `LiveBytes.repeating`), by all that they depend on."""
    return {}, {}


@dataclass(frozen=True)
class _Recipe:
    """What a module leaves: bytes of new storages; of every tensor the index of its storage (of given tensors from
    -1 down), its view of it and whether it could be elsewhere; and the tree that they are in."""

    storages: list[int]
    parts: list[tuple]
    left: Any


_PLAIN = type("Plain", (), {}).__basicsize__  # of objects that are nothing but their fields


def _built(x: Any) -> Any:
    """A key that is equal for modules (and what they hold) that do the same to tensors of the same shapes. Whatever
    is not known to be alike counts as different."""
    if isinstance(x, Tensor):
        return _outline_of(x)
    if isinstance(x, dict):
        return tuple((name, _built(value)) for name, value in x.items())
    if isinstance(x, list | tuple):
        return tuple(map(_built, x))
    if isinstance(x, nn.Module) or (type(x).__basicsize__ == _PLAIN and type(x).__hash__ is object.__hash__):
        return type(x), _built(vars(x))
    if isinstance(x, set):
        return frozenset(x)
    return type(x), x if type(x).__hash__ else object()


def _has_fields(x: Any) -> bool:
    return hasattr(x, "__dict__") and not isinstance(x, Tensor | type) and not callable(x)


def _tensors(x: Any) -> Iterator[Tensor]:
    """All tensors that something given holds."""
    if isinstance(x, Tensor):
        yield x
    elif isinstance(x, dict):
        yield from _tensors(tuple(x.values()))
    elif isinstance(x, list | tuple):
        for item in x:
            yield from _tensors(item)
    elif _has_fields(x):
        yield from _tensors(vars(x))


CONVOLUTIONS = {torch.ops.aten.convolution.default}


def convolution_workspace(given: Tensor, weight: Tensor, out: Tensor) -> int:
    """Bytes of a convolution besides its result: libraries copy input and weight to another layout, and then the
    output back. This is an upper bound, because it depends on the processor and its library which copies are needed."""
    return max(given.nbytes + weight.nbytes, out.nbytes)


@cache
def _makes_new(func: Any) -> bool:
    """Whether an operator says that it returns neither views of its arguments nor the arguments."""
    return all(returned.alias_info is None for returned in func._schema.returns)


def _is_new(tensor: Tensor, given: Sequence[Tensor]) -> bool:
    """Whether a result is a plain tensor of its own."""
    storage = tensor.untyped_storage()._cdata
    return not tensor.is_conj() and all(t.untyped_storage()._cdata != storage for t in given)


def _outline_of(x: Any) -> Any:
    """What the shape of a result depends on, in arguments of an operator: a key."""
    if isinstance(x, Tensor):
        return x.shape, x.stride(), x.dtype, x.is_conj(), x.device
    if isinstance(x, dict):
        return tuple((name, _outline_of(value)) for name, value in x.items())
    if isinstance(x, list | tuple):
        return tuple(map(_outline_of, x))
    if _has_fields(x):
        return type(x), _outline_of(vars(x))
    if isinstance(x, MethodType):
        return x.__func__, type(x.__self__)  # of what counts, which is another one in every rehearsal
    return type(x), x


@contextmanager
def fused_attention() -> Generator[None]:
    """Within the block, attention takes no memory besides its result, as in the fused kernels, which keep no matrix
    of scores; on the meta device torch would make one. The CPU's own form works head by head in a thousand small
    calls; there the pages are laid out at once, as on a GPU."""

    def attention(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> Tensor:
        return query.new_empty(*query.shape[:-1], value.shape[-1])

    with (
        mock.patch.object(F, "scaled_dot_product_attention", attention),
        mock.patch.object(cpu, "attend", reference.attend),
    ):
        yield


class _Rehearsal(SanaEngine):
    """The engine on the meta device. live: to be entered around its work."""

    def __init__(self, config: SanaWorldConfig, network: SanaWM, codec: Codec, refiner: Refiner | None):
        # how many steps a chunk takes does not matter to what is alive, nor to the refiner
        if refiner is not None:
            refiner = Refiner(refiner.transformer, replace(refiner.config, sigmas=(refiner.config.sigmas[0], 0.0)))
        sampler = SamplerConfig(config.sampler.timesteps[:1], config.sampler.guidance_scale)
        self.config, self.refiner = config, refiner  # what _features asks for
        prompts: Any = SimpleNamespace(features=self._features)
        super().__init__(
            replace(config, sampler=sampler), network, codec, META_DEVICE,
            # conditions are made in the host's memory
            place_map=PlaceMap(config.places) if config.places else None, prompts=prompts, refiner=refiner,
            reprojection=_reprojection() if config.reprojection else None,
            unseen=_unseen(config, codec) if config.unseen else None,
        )  # fmt: skip
        stages = [network, refiner.transformer] if refiner else [network]
        parts = [part for part in (self.reprojection, self.unseen) if part is not None]
        self.live = LiveBytes([*stages, codec.module, *parts])
        self.blocks = [block for stage in stages for block in blocks_of(stage)]
        if refiner is not None:
            refiner.keep = self.live.elsewhere

    def scene(self) -> Scene:
        """A start image of its own for every call."""
        config = self.config
        image = np.zeros((config.height, config.width, 3), np.uint8)
        intrinsics = intrinsics_from_fov(config.horizontal_fov, config.width, config.height).astype(np.float64)
        return Scene("", "", image, intrinsics, self.encode(image, "", None))

    def _features(self, prompt: str, device: torch.device, negative: bool = False) -> PromptFeatures:
        def empty(length: int, width: int) -> tuple[Tensor, Tensor]:
            mask = torch.empty(1, length, dtype=torch.int64, device=device)
            return torch.empty(1, length, width, dtype=torch.bfloat16, device=device), mask

        network = self.config.network
        words = empty(network.text_len, network.caption_channels)
        if self.refiner is None:
            return PromptFeatures(*words)
        return PromptFeatures(*words, empty(REFINER_TEXT_LEN, self.refiner.transformer.config.caption_channels))

    @contextmanager
    def _at_work(self, part: str) -> Generator[None]:
        self.live.stage = part
        try:
            yield
        finally:
            self.live.stage = "network"
