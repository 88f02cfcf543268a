"""A world: an image becomes a scene, a scene begins an episode, an episode advances chunk by chunk.

    world = World.load("nano")
    state = world.begin(world.scene("photo.jpg"), seed=0)
    state, clip = world.advance(state, poses)  # poses (24, 4, 4), camera-to-world relative to frame 0

`advance` is a pure function: it writes to none of its arguments, so earlier states stay valid.
"""

import hashlib
import weakref
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import wraps
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sanawm_env.camera.trajectory import check_trajectory
from sanawm_env.system.files import brief, check_prompt, reason, visible
from sanawm_env.world import tree
from sanawm_env.world.anchor import Anchor
from sanawm_env.world.config import WorldConfig
from sanawm_env.world.engine import Chunk, Engine, LoadOptions, engine_type, make_options
from sanawm_env.world.folders import CONFIG, config_at, files_of, find_world, read_manifest
from sanawm_env.world.images import ImageSource, fit_image, load_image, read_anchor
from sanawm_env.world.intrinsics import Intrinsics, choose_intrinsics
from sanawm_env.world.isolation import isolated, run_isolated
from sanawm_env.world.state import Scene, Slot, WorldState, check_seed
from sanawm_env.world.threads import Lock

SCENES_KEPT, WORLDS_KEPT = 64, 8
AS_CONFIGURED = LoadOptions()


@dataclass(frozen=True, eq=False)
class Clip:
    """The frames of one `advance`.

    Attributes:
        frames: (B, F, H, W, 3) uint8, on the world's device. F is the frames of a chunk, 24.
        c2w: (B, F, 4, 4) float64, the camera-to-world poses of the frames: the requested ones, or those at which the
            world stopped the camera.
        latents: (B, c, T, h, w), the new latent frames; None in worlds without latents.
        batch_rows: for each slot its row in the batch it ran in, and the size of that batch. Episodes whose memories
            have different shapes (one that has just begun, say) run in different batches. Frames are equal bit for bit
            where weights, state, poses and this pair are.
    """

    frames: Tensor
    c2w: np.ndarray
    latents: Tensor | None
    batch_rows: tuple[tuple[int, int], ...]

    def __getitem__(self, i: int) -> "Clip":
        """The clip of slot i, with a leading axis of 1; nothing is copied."""
        row = slice(i, i + 1)
        latents = None if self.latents is None else self.latents[row]
        return Clip(self.frames[row], self.c2w[row], latents, self.batch_rows[row])


def _at_work(method: Callable) -> Callable:
    """Run a method that calls the engine, out of reach of the caller's settings of torch."""

    @wraps(method)
    def call(self: "World", *args: Any, **kwargs: Any) -> Any:
        _check_process(self.engine.device)
        return run_isolated(lambda: method(self, *args, **kwargs), self.options.threads)

    return call


class World:
    """A loaded world model. `World.load` makes one; a process loads equal weights once.

    Any thread may call it, and so may a forked process, unless the world computes on a GPU (RuntimeError). Results are
    those of a single thread, bit for bit. Torch's process-wide settings (default dtype and device, autocast, gradients,
    flags, threads) neither change a world's numbers nor are changed by them.

    Attributes:
        config: the `WorldConfig`: size of frames, frames of a chunk, field of view, workspace.
        device: where weights and states are.
        mode: which stages make the frames, as text.
        options: what it was loaded with.
        weights_hash: SHA-256 of all that decides its numbers. States of another hash are refused.
        starts: paths of its own start images.
    """

    def __init__(
        self, engine: Engine, weights_hash: str, starts: Sequence[Path] = (), options: LoadOptions = AS_CONFIGURED
    ):
        self._engine: Engine | None = engine
        self.config, self.device, self.mode = engine.config, engine.device, engine.describe()
        self.options = options
        self.weights_hash = weights_hash
        self.starts = tuple(starts)
        self._scenes: dict[str, Scene] = {}
        self._lock = Lock()

    @staticmethod
    def load(name: str | PathLike = "nano", device: str | torch.device = "cpu", **options: Any) -> "World":
        """Load a world. A process has one world for each name or folder, device and options. A folder whose files have
        changed is another world.

        Args:
            name: a shipped or fetched world, an engine without files, or a folder with `config.json` and weights.
            device: a name such as "cpu" or "cuda:0".
            **options: fields of the engine's `options_type`: threads, and for SANA-WM precision, refiner and others
                (see `SanaLoadOptions`).

        Raises:
            ValueError: for an unknown name (the message lists the known ones), files that do not fit, or a device that
                cannot be used.
            TypeError: for options that the engine does not take.
            FileNotFoundError: for missing weights.
        """
        source = find_world(name)
        config = config_at(source)
        wanted = make_options(engine_type(config.engine).options_type, config.name, options)
        return _loaded(source, config, usable_device(device), wanted)

    def unload(self) -> None:
        """Free the memory of the weights. All holders of this world lose it: its methods raise RuntimeError. States and
        snapshots stay valid for the same world, loaded again."""
        with _register.held():
            for worlds in (_kept, _worlds):
                for key in [key for key, world in worlds.items() if world is self]:
                    del worlds[key]
        with self._lock.held():
            self._scenes.clear()
        if (engine := self._engine) is not None:
            self._engine = None
            engine.unload()
            if self.device.type == "cuda":
                del engine
                torch.cuda.empty_cache()

    def __deepcopy__(self, memo: dict) -> "World":
        """Itself: a world is weights and pure functions, there is nothing to copy."""
        return self

    @property
    def engine(self) -> Engine:
        """The model. RuntimeError after `unload`."""
        if self._engine is None:
            raise RuntimeError("This world was unloaded: load it again with World.load.")
        return self._engine

    def scene(
        self,
        image: ImageSource,
        prompt: str = "",
        intrinsics: Intrinsics = None,
        anchor: Anchor | None = None,
        fov_deg: float | None = None,
    ) -> Scene:
        """Encode a start image. Equal content is encoded once.

        Args:
            image: a path, a PIL image or a uint8 array (H, W, 3); resized and centre-cropped to the world's frames.
            prompt: text, for worlds with a text encoder; blanks and newlines around it are ignored.
            intrinsics: (4,) fx, fy, cx, cy or (3, 3), in pixels of the image as given; or an estimator, a function of
                the upright PIL image that returns them; None for the world's own.
            anchor: pose of the image in a place the world knows; None to read it from a PNG that has one, as the
                shipped start images do.
            fov_deg: horizontal field of view of the world's frames in degrees, in place of intrinsics.

        Raises:
            FileNotFoundError: where there is no image.
            TypeError: for arguments of another type.
            ValueError: for an image, prompt, intrinsics or anchor that the world cannot take.
        """
        if anchor is None and isinstance(image, str | PathLike):
            anchor = read_anchor(image)
            anchor = anchor if anchor is not None and self.config.knows(anchor.place) else None
        if anchor is not None and not isinstance(anchor, Anchor):
            raise TypeError(f"anchor must be an Anchor, a place and the pose in it, got {type(anchor).__name__}.")
        if anchor is not None and not self.config.knows(anchor.place):
            name, places = self.config.name, self.config.known_places
            raise ValueError(f"The {name} world does not know the place {brief(anchor.place)}; it knows {places}.")
        if anchor is None and "images" not in self.engine.capabilities:
            raise ValueError(
                f"The {self.config.name} world begins at an anchor: give a PNG that holds one, or "
                f"anchor=Anchor(place, c2w), of {self.config.known_places}."
            )
        prompt = check_prompt(prompt)
        loaded = load_image(image)
        chosen, source = choose_intrinsics(loaded, self.config, intrinsics, fov_deg)
        frame = self._start_image(fit_image(loaded, self.config.height, self.config.width), chosen, anchor)
        key = _scene_key(frame, chosen, prompt, anchor)
        with self._lock.held():
            scene = self._scenes.get(key)
        if scene is None:
            conditions = self._encode(frame, prompt, anchor)
            scene = Scene(key, self.weights_hash, frame, chosen, conditions, anchor, source, prompt)
            with self._lock.held():
                scene = self._scenes.setdefault(key, scene)
                while len(self._scenes) > SCENES_KEPT:
                    self._scenes.pop(next(iter(self._scenes)))
        # how the intrinsics became known is not content: the same numbers are the same scene
        return scene if scene.intrinsics_source == source else replace(scene, intrinsics_source=source)

    @_at_work
    def _start_image(self, image: np.ndarray, intrinsics: np.ndarray, anchor: Anchor | None) -> np.ndarray:
        return self.engine.start_image(image, intrinsics, anchor)

    @_at_work
    def _encode(self, image: np.ndarray, prompt: str, anchor: Anchor | None) -> Any:
        return self.engine.encode(image, prompt, anchor)

    @_at_work
    def begin(
        self, scene: Scene | Sequence[Scene], seed: int | list[int] | tuple[int, ...] | np.ndarray = 0
    ) -> WorldState:
        """The state before the first chunk: the start image at the identity pose.

        Args:
            scene: one scene or several.
            seed: of the noise: one number (slot i gets seed + i), or one for each scene.

        Raises:
            TypeError: for what is not a scene or a seed.
            ValueError: for a scene of another world, a seed outside 0..2^63-1, or unequal numbers of scenes and
                seeds.
        """
        scenes = [scene] if isinstance(scene, Scene) else list(scene)
        for s in scenes:
            if not isinstance(s, Scene):
                raise TypeError(f"begin takes scenes, got {type(s).__name__}: make one with world.scene(image).")
            if s.weights_hash != self.weights_hash:
                raise ValueError("This scene was encoded by another world: make it with this world's scene().")
        if isinstance(seed, list | tuple | np.ndarray):
            seeds = list(seed)
        else:
            seeds = [check_seed(seed) + i for i in range(len(scenes))]
        if not scenes or len(seeds) != len(scenes):
            raise ValueError(f"begin needs scenes and one seed for each, got {len(scenes)} and {len(seeds)}.")
        slots = tuple(
            Slot(
                scene=s,
                seed=check_seed(number),
                chunk=0,
                c2w=np.eye(4),
                frame=torch.tensor(s.image, device=self.device),
                latents=self.engine.start_latents(s.conditions),
            )
            for s, number in zip(scenes, seeds, strict=True)
        )
        return WorldState(slots, self.config.engine, self.weights_hash)

    @_at_work
    def advance(self, state: WorldState, poses: np.ndarray) -> tuple[WorldState, Clip]:
        """Predict the next chunk of every episode.

        Args:
            state: a state of this world with B slots; not written to.
            poses: (B, F, 4, 4), or (F, 4, 4) for a single episode: camera-to-world in OpenCV axes, metres, relative to
                the episode's frame 0. F is `config.chunk_frames`, 24.

        Returns:
            The next state, and the `Clip` of the new frames.

        Raises:
            ValueError: for poses of another shape or that are not rigid, a state of other weights, or an episode that
                is as long as the world can go without `reanchor`; before any work.
            TypeError: for what is not a state; before any work.
        """
        self.check_state(state)
        poses = self._check_poses(poses, len(state))
        self._check_horizon(state)
        batches: dict[Any, list[int]] = {}  # of slots whose memories have one layout
        for i, slot in enumerate(state.slots):
            batches.setdefault((slot.first, tree.layout(slot.memory)), []).append(i)
        ran: dict[
            int, tuple[Chunk, int, Any]
        ] = {}  # of each slot the chunk, its row, and the memory of the batch before
        for batch in batches.values():
            members = [state.slots[i] for i in batch]
            memory = _batched([slot.memory for slot in members])
            chunk = self._checked(self.engine.advance(members, memory, torch.from_numpy(poses[batch])), len(batch))
            if chunk.c2w is not None:
                poses[batch] = chunk.c2w.cpu().numpy()
            ran.update({i: (chunk, row, memory) for row, i in enumerate(batch)})
        poses.setflags(write=False)  # states and clips share it
        slots = tuple(_after(slot, poses[i, -1], *ran[i]) for i, slot in enumerate(state.slots))
        own = [ran[i][:2] for i in range(len(slots))]
        frames, latents = own[0][0].frames, own[0][0].latents
        if len(batches) > 1:
            frames = torch.stack([chunk.frames[row] for chunk, row in own])
            shown = [slot.latents for slot in slots if slot.latents is not None]  # of all or of none
            latents = torch.cat(shown) if shown else None
        clip = Clip(frames, poses, latents, tuple((row, len(chunk.frames)) for chunk, row in own))
        return replace(state, slots=slots), clip

    @_at_work
    def with_prompt(self, state: WorldState, prompt: str | Sequence[str]) -> WorldState:
        """The same state with another prompt from the next chunk on. Start images, memories, poses and noise stay.
        Before the first chunk this is the state that begins with that prompt.

        Args:
            state: a state of this world.
            prompt: one for all episodes, or one for each.

        Raises:
            TypeError: for a prompt that is not text.
            ValueError: for another number of prompts, or a prompt the world cannot encode.
        """
        self.check_state(state)
        prompts = [prompt] * len(state) if isinstance(prompt, str) else prompt
        if not isinstance(prompts, Sequence) or not all(isinstance(text, str) for text in prompts):
            raise TypeError(f"A prompt must be a string, or one string for each episode, got {brief(prompt)}.")
        if len(prompts) != len(state):
            raise ValueError(
                f"with_prompt takes one prompt, or one for each of {len(state)} episodes, got {len(prompts)}."
            )
        prompts = [check_prompt(text) for text in prompts]
        slots = tuple(self._prompted(slot, text) for slot, text in zip(state.slots, prompts, strict=True))
        return replace(state, slots=slots)

    def _prompted(self, slot: Slot, prompt: str) -> Slot:
        old = slot.scene
        if prompt == old.prompt:
            return slot
        conditions = tree.map_tensors(lambda t: t.to(slot.frame.device), self.engine.with_prompt(old, prompt))
        key = _scene_key(old.image, old.intrinsics, prompt, old.anchor)
        scene = replace(old, key=key, conditions=conditions, prompt=prompt)
        memory = None if slot.memory is None else self.engine.with_conditions(slot.memory, conditions)
        latents = self.engine.start_latents(conditions) if slot.first else slot.latents
        return replace(slot, scene=scene, memory=memory, latents=latents)

    def without_caches(self, state: WorldState) -> WorldState:
        """The same state without caches that can be computed again (the decoder's, 0.6 GB at 720p). The next
        `advance` computes them, and its frames are the same, bit for bit. Raises as `check_state`."""
        self.check_state(state)
        return replace(
            state,
            slots=tuple(
                slot if slot.memory is None else replace(slot, memory=self.engine.without_caches(slot.memory))
                for slot in state.slots
            ),
        )

    @_at_work
    def reanchor(self, state: WorldState) -> WorldState:
        """The same state as the start of a new segment: the last frame becomes the start image, and the recurrent
        memory is dropped. Poses stay relative to the episode's first frame. This is how episodes continue beyond the
        length that the model was validated to (`WorldConfig.horizon_chunks`). Raises as `check_state`."""
        self.check_state(state)
        return replace(state, slots=tuple(self._reanchored(slot) for slot in state.slots))

    def _reanchored(self, slot: Slot) -> Slot:
        if slot.first:
            return slot
        old = slot.scene
        anchor = old.anchor
        if anchor is not None:  # the pose of the new frame 0 in the place
            anchor = Anchor(anchor.place, anchor.c2w @ np.linalg.inv(slot.origin) @ slot.c2w)
        image = self.engine.start_image(slot.frame.cpu().numpy(), old.intrinsics, anchor)
        key = _content_key(old.key.encode(), image.tobytes(), slot.c2w.tobytes())
        conditions = self.engine.encode(image, old.prompt, anchor)
        scene = replace(old, key=key, image=image, conditions=conditions, anchor=anchor)
        return replace(
            slot,
            scene=scene,
            latents=self.engine.start_latents(conditions),
            memory=None,
            origin=slot.c2w,
            start=slot.chunk,
        )

    def _check_horizon(self, state: WorldState) -> None:
        longest = self.config.longest_segment
        if any(slot.chunk - slot.start >= longest for slot in state.slots):
            raise ValueError(
                f"An episode has run {longest} chunks without a break, as long as one can in the {self.config.name} "
                "world: go on with world.reanchor(state)."
            )

    def check_state(self, state: WorldState) -> None:
        """Check that a state belongs to this world.

        Raises:
            ValueError: for a state of other weights.
            TypeError: for anything but a `WorldState`.
        """
        if not isinstance(state, WorldState):
            raise TypeError(f"A world advances a WorldState, got {type(state).__name__}; make one with world.begin.")
        if (state.engine, state.weights_hash) != (self.config.engine, self.weights_hash):
            *others, last = self.options.decisive or ("",)
            same = f", with the same {', '.join(others)} and {last}" if last else ""
            raise ValueError(
                f"This state belongs to other weights ({state.engine} {state.weights_hash[:12]}) than this world "
                f"({self.config.engine} {self.weights_hash[:12]}): load the world it was made with{same}."
            )

    def _checked(self, chunk: Any, batch: int) -> Chunk:
        """What the engine returned; TypeError for anything but a `Chunk` of frames as the configuration says."""
        c, n = self.config, self.config.chunk_frames
        wanted = (batch, n, c.height, c.width, 3)
        if not isinstance(chunk, Chunk):
            raise TypeError(f"The engine {c.engine} must return a Chunk, got {brief(chunk)}.")
        for name, shape, dtype in (("frames", wanted, torch.uint8), ("c2w", (batch, n, 4, 4), torch.float64)):
            tensor = getattr(chunk, name)
            if name == "c2w" and tensor is None:
                continue
            if not isinstance(tensor, Tensor) or tensor.shape != shape or tensor.dtype is not dtype:
                got = f"{tensor.dtype} {tuple(tensor.shape)}" if isinstance(tensor, Tensor) else brief(tensor)
                raise TypeError(f"{name} of the engine {c.engine} must be a {dtype} tensor {shape}, got {got}.")
        return chunk

    def _check_poses(self, poses: np.ndarray, batch: int) -> np.ndarray:
        poses, n = np.asarray(poses), self.config.chunk_frames
        if poses.ndim == 3 and batch == 1:
            poses = poses[None]
        if poses.shape != (batch, n, 4, 4):
            single = f"({n}, 4, 4) or " if batch == 1 else ""
            raise ValueError(f"poses must have the shape {single}({batch}, {n}, 4, 4), got {poses.shape}.")
        return check_trajectory(poses.reshape(-1, 4, 4)).reshape(poses.shape)


_worlds: "weakref.WeakValueDictionary[Any, World]" = weakref.WeakValueDictionary()
_kept: OrderedDict[Any, World] = OrderedDict()
_loading: dict[Any, Lock] = {}
_register = Lock()


def _loaded(source: Path | WorldConfig, config: WorldConfig, device: torch.device, options: LoadOptions) -> World:
    """The one world of these files. The last `WORLDS_KEPT` are kept in memory. Other worlds can be loaded at the
    same time."""
    kind = engine_type(config.engine)  # another one where somebody has registered the name anew
    key = source, kind, device, options, () if isinstance(source, WorldConfig) else files_of(source)
    with _register.held():
        lock = _loading.setdefault(key, Lock())
    with lock.held():
        with _register.held():
            world = _worlds.get(key)
        if world is None:
            _check_process(device)
            world = run_isolated(lambda: _load(source, config, device, options), options.threads)
        with _register.held():
            _worlds[key] = _kept[key] = world
            _kept.move_to_end(key)
            while len(_kept) > WORLDS_KEPT:
                _kept.popitem(last=False)
            _loading.pop(key, None)
    return world


def _check_process(device: torch.device) -> None:
    if device.type == "cuda" and torch.cuda._is_in_bad_fork():
        raise RuntimeError(
            f"A world on {device} cannot be used in a process that was forked from one that used CUDA: start processes "
            'with "spawn" (multiprocessing.get_context("spawn"), or make_vec(..., vector_kwargs={"context": "spawn"})).'
        )


def _load(source: Path | WorldConfig, config: WorldConfig, device: torch.device, options: LoadOptions) -> World:
    folder = source if isinstance(source, Path) else None
    # what modules are filled with before their weights are read is not drawn from the caller's generators
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        engine = engine_type(config.engine).load(folder, config, device, options)
    digest = hashlib.sha256()
    if folder is None:
        digest.update(config.to_json().encode())
        starts = engine.starts()
    else:
        recorded = (
            read_manifest(folder).get("sha256") or ""
        )  # official weights are hashed once, when they are converted
        for path in (folder / CONFIG, *(() if recorded else visible(folder, "*.safetensors"))):
            digest.update(path.name.encode())
            digest.update(path.read_bytes())
        digest.update(recorded.encode())
        starts = visible(folder, "starts/*.png")
    digest.update(engine.identity())
    return World(engine, digest.hexdigest(), starts, options)


@isolated
def usable_device(device: str | torch.device) -> torch.device:
    """The device ("cuda" becomes "cuda:0").

    Raises:
        TypeError: for anything but the name of a device.
        ValueError: for a device that cannot be used.
    """
    if isinstance(device, bool) or not isinstance(device, str | int | torch.device):
        raise TypeError(f'device must be a name such as "cpu" or "cuda:0", got {brief(device)}.')
    try:
        usable = torch.empty(0, device=device).device
        if usable.type == "meta":
            raise RuntimeError("it holds shapes and no values")
        return usable
    except (RuntimeError, AssertionError, TypeError, ValueError) as error:
        said = reason(str(error).partition("\n")[0])
        raise ValueError(f"The device {brief(str(device))} cannot be used here: {said}") from error


def _scene_key(frame: np.ndarray, intrinsics: np.ndarray, prompt: str, anchor: Anchor | None) -> str:
    place = b"" if anchor is None else anchor.to_json().encode()
    return _content_key(frame.tobytes(), intrinsics.tobytes(), prompt.encode(), place)


def _content_key(*parts: bytes) -> str:
    return hashlib.sha256(b"\0".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()


def _batched(memories: list[Any]) -> Any:
    """Memories of equal layout as one, with a leading axis; a single one is itself."""
    return tree.map_tensors(lambda *t: torch.cat(t), *memories) if len(memories) > 1 else memories[0]


def _after(slot: Slot, c2w: np.ndarray, chunk: Chunk, row: int, batch_before: Any) -> Slot:
    """A slot after its chunk, in storage of its own."""
    return replace(
        slot,
        chunk=slot.chunk + 1,
        c2w=c2w,
        frame=chunk.frames[row, -1].clone(),
        latents=None if chunk.latents is None else chunk.latents[row : row + 1].clone(),
        memory=_own_row(chunk.memory, row, batch_before, slot.memory),
    )


def _own_row(memory: Any, row: int, batch_before: Any, before: Any) -> Any:
    """One slot's part of a batched memory, in storage of its own, so that a kept slot does not keep its neighbours
    alive. What the step only passed on (pages that stay in the window) is shared with the slot's memory before."""
    passed_on = {id(t): old for t, old in zip(tree.leaves(batch_before), tree.leaves(before), strict=True)}

    def own(t: Tensor) -> Tensor:
        if id(t) in passed_on:
            return passed_on[id(t)]
        part = t[row : row + 1]
        return part if part.untyped_storage().nbytes() == part.nbytes else part.clone()

    return tree.map_tensors(own, memory)
