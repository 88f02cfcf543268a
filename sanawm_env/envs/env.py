"""`SanaWM/Explore-v0`: walk through a world that a network imagines. No goal, reward 0.0.

env = gymnasium.make("SanaWM/Explore-v0", world="nano")
obs, info = env.reset(seed=0)
obs, reward, terminated, truncated, info = env.step(env.action_space.sample())     # 24 frames, 1.5 s
here = env.unwrapped.snapshot()                  # copies nothing
obs, info = env.unwrapped.restore(here)          # nor does this
"""

import copy
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.error import ResetNeeded

from sanawm_env.camera.presets import Workspace
from sanawm_env.envs.actions import Keys, steering
from sanawm_env.envs.observations import Observation, observer
from sanawm_env.envs.snapshot import HostClip, Snapshot
from sanawm_env.world.images import ImageSource
from sanawm_env.world.state import MAX_SEED, Scene, WorldState, check_seed
from sanawm_env.world.weights import known_worlds
from sanawm_env.world.world import World

RENDER_MODES = ("rgb_array", "rgb_array_list")
RESET_OPTIONS = ("scene", "prompt", "intrinsics", "fov_deg", "seed")
HORIZONS = ("stop", "reanchor")
SNAPSHOTS = ("tails", "latents")
IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif"}


class SanaWMEnv(gym.Env):
    """One learned world behind the Gymnasium interface; a step is one chunk: 24 frames, 1.5 s of camera time.

    Args (plain values, so that ids, specs and workers carry them; loaded objects only by direct construction):
        world: name of a world or a folder that holds one; or a loaded `World` (then `device` is that world's).
        scenes: start images: a path, a folder of images, or a list of paths; None for the world's own.
        obs_mode: "dict", "rgb", "stack", "chunk" or "latent", see `observations.Observer`.
        action_mode: "twist", "keys", "discrete" or "poses", see `actions`.
        max_episode_chunks: steps until `truncated`. The environment counts itself: add no TimeLimit, it would not be
            restored with a snapshot.
        device: of the world's weights and states. Weights are loaded once per process and device.
        speed: preset of `sanawm_env.camera.presets`; None for the world's own.
        smoothing: "hold" a twist from the first frame on, or "ramp" to it within 8 frames.
        obs_size: (height, width) of observed pictures; None for the world's own, at most 144 x 256.
        render_mode: None, "rgb_array" (the last frame) or "rgb_array_list" (all frames of the last step, the start
            image after a reset). Gymnasium's RecordVideo keeps one frame per step of either: record `clip.frames`.
        workspace: limits, the keywords of `camera.presets.Workspace` as a dict; None for the world's own. Beyond the
            soft distance a warning is logged.
        horizon: what happens when an episode reaches the length its world was validated to (`horizon_chunks` of the
            world, 40: one minute; the official model's positions end at 341). "stop" truncates; "reanchor" goes on
            from the last frame as a new start image, in the same world frame, without the recurrent memory.
        snapshots: "tails" keeps the decoder's caches in a snapshot; "latents" leaves them out (0.6 GB at 720p) and
            replays the last latents after a restore. The frames are the same. Nano has none.
        world_options: how the world is loaded: precision, refiner, refiner_precision, offload, text_encoder, see
            `sanawm_env.world.engine.LoadOptions`.

    Actions outside the box are clipped; anything that is not an action raises ValueError or TypeError and changes
    nothing. An episode never terminates. It is truncated after `max_episode_chunks` steps, when the camera has left
    the workspace (`info["out_of_workspace"]`) or at the horizon (`info["out_of_horizon"]`).

    `info` of reset and step: c2w (24, 4, 4) float64, the camera-to-world pose of each frame relative to frame 0 (after
    a reset the identity, repeated); chunk, steps so far; scene, content hash of the start; seed of the episode's noise;
    out_of_workspace; out_of_horizon; segment_start, the chunk after which the last re-anchoring took place (0: none);
    intrinsics (4,) float64, fx, fy, cx, cy in pixels of the world's picture, and intrinsics_source; mode, which world
    and which stages made the frames.

    An episode is a function of its start image, its seed and its actions. `copy.deepcopy` forks it and shares the
    weights; pickling carries the state and loads the weights anew.
    """

    metadata = {"render_modes": list(RENDER_MODES), "render_fps": 16}  # noqa: RUF012

    def __init__(
        self,
        world: str | os.PathLike | World = "nano",
        scenes: ImageSource | Sequence[ImageSource] | None = None,
        obs_mode: str = "dict",
        action_mode: str = "twist",
        max_episode_chunks: int = 10,
        device: str = "cpu",
        speed: str | None = None,
        smoothing: str = "hold",
        obs_size: tuple[int, int] | None = None,
        render_mode: str | None = None,
        workspace: Mapping[str, float] | Workspace | None = None,
        horizon: str = "stop",
        snapshots: str = "tails",
        **world_options: Any,
    ):
        for name, value, known in (("horizon", horizon, HORIZONS), ("snapshots", snapshots, SNAPSHOTS)):
            if value not in known:
                raise ValueError(f"{name} must be {' or '.join(map(repr, known))}, got {value!r}.")
        if render_mode is not None and render_mode not in RENDER_MODES:
            raise ValueError(f"render_mode must be None, {' or '.join(RENDER_MODES)}, got {render_mode!r}.")
        if not isinstance(max_episode_chunks, int | np.integer) or max_episode_chunks < 1:
            raise ValueError(f"max_episode_chunks must be a whole number above zero, got {max_episode_chunks!r}.")
        if isinstance(world, World) and world_options:
            raise TypeError(f"A loaded World takes no {', '.join(world_options)}: load it with them.")
        self.world = world if isinstance(world, World) else World.load(world, device, **world_options)
        self.horizon, self.snapshots = horizon, snapshots
        if workspace is None:
            workspace = self.world.config.workspace
        self.workspace = workspace if isinstance(workspace, Workspace) else Workspace(**workspace)
        self.max_episode_chunks = int(max_episode_chunks)
        self.obs_mode, self.action_mode, self.render_mode = obs_mode, action_mode, render_mode
        config = self.world.config
        self.metadata = type(self).metadata | {"render_fps": config.fps}
        self._scenes = _start_images(scenes, self.world)
        self._source = world if isinstance(world, str | os.PathLike) else None
        self._steering = steering(action_mode, config, speed, smoothing, self.workspace)
        self._observe = observer(obs_mode, config, obs_size, self.workspace)
        self.action_space = self._steering.space
        self.observation_space = self._observe.space
        self._now: Snapshot | None = None

    def reset(
        self, *, seed: int | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Begin an episode at a start image; nothing is imagined yet.

        seed: of the generator that draws scenes and episode seeds from now on.
        options: scene, an image (path, PIL, uint8 array) or the index of one of the environment's; prompt and
            intrinsics or fov_deg as `World.scene` takes them; seed, of this episode's noise. What is not given is
            drawn.
        Raises ValueError for an unknown option, FileNotFoundError, TypeError or ValueError for an image.
        """
        options = dict(options or {})
        if unknown := [str(name) for name in options if name not in RESET_OPTIONS]:
            raise ValueError(f"Reset takes the options {', '.join(RESET_OPTIONS)}, not {', '.join(unknown)}.")
        given = None if options.get("seed") is None else check_seed(options["seed"])
        scene = None if options.get("scene") is None else self._scene(options["scene"], options)
        if scene is None and not self._scenes:
            name = self.world.config.name
            raise ValueError(f'The {name} world ships no start images: give scenes=, or options["scene"].')
        kept = copy.deepcopy(self._np_random), self._np_random_seed
        super().reset(seed=seed)
        # Both are always drawn, so that what one episode is given does not change the next.
        drawn_scene, drawn = self.np_random.integers(max(1, len(self._scenes))), self.np_random.integers(MAX_SEED)
        try:
            scene = self._scene(drawn_scene, options) if scene is None else scene
        except Exception:
            self._np_random, self._np_random_seed = kept  # a failed reset changes nothing
            raise
        state = self.world.begin(scene, int(drawn) if given is None else given)
        self._now = Snapshot(state, None, self.action_mode, self._steering.start())
        return self._observe(self._now), self._info(self._now)

    def step(self, action: Any) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Imagine the next chunk under `action`; reward 0.0, never terminated.

        Raises ValueError or TypeError for what is not an action of the action space (values outside a twist's box are
        clipped), gymnasium's ResetNeeded before the first reset and after the end; the state is then unchanged.
        """
        now = self._moment("step")
        if self._ended(now):
            raise ResetNeeded("The episode is over: call reset (or restore a snapshot) before the next step.")
        carry, poses = self._steering.move(now.carry, now.slot.c2w, action)
        state = now.state
        if self.horizon == "reanchor" and self._at_horizon(now):
            state = self.world.reanchor(state)
        state, clip = self.world.advance(state, poses)
        self._now = now = Snapshot(state, clip, self.action_mode, carry)
        if self.workspace.far(clip.c2w[0]):
            metres = self.workspace.soft_distance
            gym.logger.warn(f"The camera is over {metres:g} m from its start: expect poor pictures.")
        return self._observe(now), 0.0, False, self._ended(now), self._info(now)

    def render(self) -> np.ndarray | list[np.ndarray] | None:
        """The last frame (H, W, 3) uint8 or the list of the last step's frames, by `render_mode`; at full size."""
        now = self._moment("render")
        if self.render_mode is None:
            gym.logger.warn('render() needs a render_mode: make the environment with render_mode="rgb_array".')
            return None
        if self.render_mode == "rgb_array" or now.clip is None:
            frame = now.slot.frame.cpu().numpy().copy()
            return frame if self.render_mode == "rgb_array" else [frame]
        return list(self.clip.frames.copy())

    @property
    def clip(self) -> HostClip:
        """What the last step showed: frames (24, H, W, 3) uint8 and c2w (24, 4, 4), read-only, at full size.

        Copied from the device when asked for. Right after a reset the start image, repeated. ResetNeeded before.
        """
        return self._moment("look at the clip").host_clip(self.world.config.chunk_frames)

    @property
    def state(self) -> WorldState:
        """The world's state, a value. ResetNeeded before the first reset."""
        return self._moment("ask for the state").state

    def snapshot(self, device: str | None = None) -> Snapshot:
        """This moment as a value; copies no tensor unless it goes to another device. ResetNeeded before a reset."""
        rng = json.dumps(self.np_random.bit_generator.state)
        now = replace(self._moment("take a snapshot"), rng=rng)
        if self.snapshots == "latents":
            now = replace(now, state=now.state.without_tails())
        return now if device is None else now.to(device)

    def restore(self, snapshot: Snapshot, reseed: int | None = None) -> tuple[Observation, dict[str, Any]]:
        """Go to the moment of `snapshot`: what the step or reset that led there returned, and the same future.

        reseed: an episode seed for another future. A snapshot without `rng` (see `clone_state`) gets a drawn one.
        Raises TypeError for anything but a snapshot, ValueError for one of another world or action mode.
        """
        if not isinstance(snapshot, Snapshot):
            raise TypeError(f"restore takes a Snapshot, got {type(snapshot).__name__}: take one with snapshot().")
        self.world.check_state(snapshot.state)
        if snapshot.action_mode != self.action_mode:
            raise ValueError(
                f"This snapshot was taken in action_mode {snapshot.action_mode!r}, "
                f"the environment steers by {self.action_mode!r}: restore it into one of the same mode."
            )
        reseed = None if reseed is None else check_seed(reseed)
        if snapshot.rng is not None:
            self.np_random.bit_generator.state = json.loads(snapshot.rng)
        elif reseed is None:
            reseed = int(self.np_random.integers(MAX_SEED))
        now = snapshot.to(self.world.device)
        self._now = now if reseed is None else replace(now, state=now.state.reseed(reseed))
        return self._observe(self._now), self._info(self._now)

    def clone_state(self, include_rng: bool = True) -> Snapshot:
        """`snapshot` under ALE's name. Without the generator, each restore continues with new noise."""
        now = self.snapshot()
        return now if include_rng else replace(now, rng=None)

    def restore_state(self, state: Snapshot) -> tuple[Observation, dict[str, Any]]:
        """`restore` under ALE's name."""
        return self.restore(state)

    def get_keys_to_action(self) -> dict[tuple[str, ...], Any]:
        """Keys to actions for `gymnasium.utils.play`; ValueError unless the action mode has keys."""
        if not isinstance(self._steering, Keys):
            raise ValueError(f'action_mode {self.action_mode!r} has no keys: use "discrete" or "keys" to play.')
        return self._steering.for_keyboard()

    def __copy__(self):
        raise TypeError("A shallow copy of an environment would share its episode: fork it with copy.deepcopy.")

    def __deepcopy__(self, memo: dict[int, Any]) -> "SanaWMEnv":
        memo |= {id(value): value for value in (self.world, self._now, self._scenes)}
        fork = memo[id(self)] = object.__new__(type(self))
        fork.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return fork

    def __getstate__(self) -> dict[str, Any]:
        now = None if self._now is None else self._now.to("cpu")
        world = _address(self._source, self.world), str(self.world.device), asdict(self.world.options)
        return self.__dict__ | {"world": world, "_now": now}

    def __setstate__(self, attributes: dict[str, Any]) -> None:
        self.__dict__.update(attributes)
        self._source, device, options = attributes["world"]
        self.world = World.load(self._source, device, **options)
        if self._now is not None:
            self.world.check_state(self._now.state)
            self._now = self._now.to(self.world.device)

    def _moment(self, what: str) -> Snapshot:
        if self._now is None:
            raise ResetNeeded(f"There is no episode yet: call reset before you {what}.")
        return self._now

    def _scene(self, image: ImageSource | int, options: Mapping[str, Any]) -> Scene:
        if isinstance(image, int | np.integer) and not isinstance(image, bool):
            if not 0 <= image < len(self._scenes):
                raise ValueError(f"There is no scene {image}: scenes are 0 to {len(self._scenes) - 1}.")
            image = self._scenes[image]
        lens = {name: options.get(name) for name in ("intrinsics", "fov_deg")}
        return self.world.scene(image, prompt=options.get("prompt") or "", **lens)

    def _ended(self, now: Snapshot) -> bool:
        return now.slot.chunk >= self.max_episode_chunks or self._outside(now) or self._out_of_horizon(now)

    def _at_horizon(self, now: Snapshot) -> bool:
        return now.slot.chunk - now.slot.start >= self.world.config.horizon_chunks

    def _out_of_horizon(self, now: Snapshot) -> bool:
        return self.horizon == "stop" and self._at_horizon(now)

    def _outside(self, now: Snapshot) -> bool:
        return now.clip is not None and self.workspace.too_far(now.clip.c2w[0])

    def _info(self, now: Snapshot) -> dict[str, Any]:
        return {
            "c2w": now.host_clip(self.world.config.chunk_frames).c2w.copy(),
            "chunk": now.slot.chunk,
            "scene": now.slot.scene.key,
            "seed": now.slot.seed,
            "out_of_workspace": self._outside(now),
            "out_of_horizon": self._out_of_horizon(now),
            "segment_start": now.slot.start,
            "intrinsics": now.slot.scene.intrinsics.copy(),
            "intrinsics_source": now.slot.scene.intrinsics_source,
            "mode": self.world.mode,
        }


def _address(source: str | os.PathLike | None, world: World) -> str:
    """Name or absolute folder to load a world from elsewhere; TypeError for one that was made in no such way."""
    if source is not None:
        return str(source) if source in known_worlds() else os.path.abspath(source)
    name = world.config.name
    if name in known_worlds() and World.load(name).weights_hash == world.weights_hash:
        return name
    raise TypeError("An environment around a loaded World cannot be pickled: give a name or folder.")


def _start_images(scenes: ImageSource | Sequence[ImageSource] | None, world: World) -> list[ImageSource]:
    """Start images as a list; FileNotFoundError or ValueError for paths that are not there."""
    if scenes is None:
        return list(world.starts)
    if isinstance(scenes, str | os.PathLike) and Path(scenes).is_dir():
        images = sorted(path for path in Path(scenes).iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
        if not images:
            raise ValueError(f"The folder {scenes} holds no images: give a folder of PNG, JPEG or WebP files.")
        return images
    images = list(scenes) if isinstance(scenes, list | tuple) else [scenes]
    if not images:
        raise ValueError("scenes is an empty list: give at least one image, or None for the world's own.")
    for image in images:
        if isinstance(image, str | os.PathLike) and not Path(image).is_file():
            raise FileNotFoundError(f"There is no start image at {image}.")
    # absolute, so that a pickled environment finds them from another folder
    return [Path(image).absolute() if isinstance(image, str | os.PathLike) else image for image in images]
