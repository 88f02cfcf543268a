"""The environment: a Gymnasium class around a `Simulator`.

env = gymnasium.make("SanaWM/Explore-v0", world="nano")
obs, info = env.reset(seed=0)
obs, reward, terminated, truncated, info = env.step(env.action_space.sample())  # 24 frames, 1.5 s
here = env.unwrapped.snapshot()  # copies nothing
obs, info = env.unwrapped.restore(here)  # nor does this
"""

import copy
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, cast

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec
from gymnasium.error import ResetNeeded
from gymnasium.utils import seeding
from numpy.typing import ArrayLike
from PIL import Image

from sanawm_env.camera.presets import Workspace
from sanawm_env.envs.config import RENDER_MODES, EnvConfig
from sanawm_env.envs.making import check_keywords, described, keywords, load_options
from sanawm_env.envs.observations import Observation, observer
from sanawm_env.simulation.controllers import Controller, Keys, make_controller
from sanawm_env.simulation.episode import Episode, HostClip, Snapshot
from sanawm_env.simulation.simulator import EpisodeOver, Limits, Simulator
from sanawm_env.simulation.tasks import Task, Transition, make_task
from sanawm_env.system.files import brief, check_number, check_prompt
from sanawm_env.world.folders import known_worlds, world_address
from sanawm_env.world.images import ImageSource, images_in
from sanawm_env.world.scenes import DrawnScenes
from sanawm_env.world.state import MAX_SEED, Scene, WorldState, check_seed
from sanawm_env.world.world import World, usable_device

RESET_OPTIONS = ("scene", "prompt", "intrinsics", "fov_deg", "anchor", "seed", "task")
MARKS = ("lerobot_new_rollout", "minari_autoseed")  # that LeRobot's rollout and Minari's collector hand on; no matter
BIT_GENERATORS = {kind.__name__: kind for kind in (np.random.PCG64, np.random.PCG64DXSM, np.random.MT19937,
                                                   np.random.Philox, np.random.SFC64)}  # fmt: skip


class SanaWMEnv(gym.Env):
    """A learned world behind the Gymnasium interface. A step is one chunk: 24 frames, 1.5 s of camera time.

    An episode is a function of its start image, its seed and its actions. It terminates when its task says so. It is
    truncated after `max_episode_chunks` steps, when the camera has left the workspace (`info["out_of_workspace"]`), or
    at the horizon (`info["out_of_horizon"]`). `copy.deepcopy` forks an episode and shares the weights; pickling stores
    the state and loads the weights again.

    `info` of reset and step holds numbers and arrays, which every wrapper can pass on: c2w (24, 4, 4) float64, the
    camera-to-world pose of each frame relative to frame 0 (after a reset the identity, repeated); chunk, the number of
    steps; scene, the first 60 bits of the start's content hash; seed of the episode's noise; out_of_workspace;
    out_of_horizon; segment_start, the chunk after which the last re-anchoring took place (0: none); intrinsics (4,)
    float64, fx, fy, cx, cy in pixels of the world's frames; and the task's entries. Text is in attributes: the whole
    hash, the prompt and the source of the intrinsics in `scene`, the stages that make the frames in `world.mode`, and
    all arguments but `reward_fn` in `config`.

    Names, paths and numbers as arguments can be written in ids, specs and files; loaded objects (a `World`, a `Task`)
    only work by direct construction.

    Args:
        world: name of a world, or a folder that holds one; or a loaded `World` (then `device` is that world's).
        scenes: start images: a path, a folder of images, or a list of paths; None for the world's own. "rooms:train"
            and "rooms:test" are endless sets of furnished rooms, a different one in each episode; no room is in both.
        obs_mode: "dict", "rgb", "stack", "chunk", "latent" or "goal", see `observations.Observer`.
        action_mode: "twist", "keys", "discrete" or "poses", see `simulation.controllers`.
        max_episode_chunks: steps until `truncated`. A snapshot holds the count. A TimeLimit around the environment
            (`max_episode_steps` of `gymnasium.make`) can only make episodes shorter; `wrappers.Snapshottable` restores
            its count.
        device: of the world's weights and states. Weights are loaded once per process and device.
        speed: preset of `sanawm_env.camera.presets`; None for the world's own.
        smoothing: "hold" a twist from the first frame on, or "ramp" to it within 8 frames.
        obs_size: (height, width) of observed frames; None for the world's own, at most 144 x 256.
        render_mode: None, "rgb_array" (the last frame) or "rgb_array_list" (all frames of the last step, the start
            image after a reset). Gymnasium's RecordVideo keeps one frame per step of either: record `clip.frames`.
        workspace: limits, the arguments of `camera.presets.Workspace` as a dict; None for the world's own. Beyond the
            soft distance a warning is logged, once.
        horizon: what happens when an episode reaches the length its world was validated to (`horizon_chunks` of the
            world, 40: one minute; the official model's positions end at 341). "stop" truncates; "reanchor" goes on from
            the last frame as a new start image, in the same world frame, without the recurrent memory.
        snapshots: "tails" keeps the decoder's caches in a snapshot; "latents" leaves them out (0.6 GB at 720p) and
            decodes the last latents again after a restore. The frames are the same. Nano has none.
        task: "none", "explore", "pointnav", "imagenav", "followpath" or a `tasks.Task`.
        task_options: settings of a task given by name, the fields of its class.
        reward_fn: takes a `tasks.Transition` of B episodes and returns B rewards in place of the task's.
        **world_options: how the world is loaded: precision, refiner, refiner_precision, offload, text_encoder, see
            `sanawm_env.engines.sanawm.engine.SanaLoadOptions`; other engines have options of their own.

    Raises:
        TypeError: for an unknown argument (the message lists the known ones), and for values of another type.
        ValueError: for values outside their range.
        FileNotFoundError: for missing weights or start images.
    """

    metadata = {"render_modes": list(RENDER_MODES), "render_fps": 16}  # noqa: RUF012

    def __init__(
        self,
        world: str | os.PathLike | World = EnvConfig.world,
        scenes: ImageSource | Sequence[ImageSource] | None = EnvConfig.scenes,
        obs_mode: str = EnvConfig.obs_mode,
        action_mode: str = EnvConfig.action_mode,
        max_episode_chunks: int = EnvConfig.max_episode_chunks,
        device: str = EnvConfig.device,
        speed: str | None = EnvConfig.speed,
        smoothing: str = EnvConfig.smoothing,
        obs_size: tuple[int, int] | None = EnvConfig.obs_size,
        render_mode: str | None = EnvConfig.render_mode,
        workspace: Mapping[str, float] | Workspace | None = EnvConfig.workspace,
        horizon: str = EnvConfig.horizon,
        snapshots: str = EnvConfig.snapshots,
        task: str | Task = EnvConfig.task,
        task_options: Mapping[str, Any] | None = EnvConfig.task_options,
        reward_fn: Callable[[Transition], Any] | None = None,
        **world_options: Any,
    ):
        check_keywords("SanaWMEnv.__init__", world_options, KEYWORDS, load_options(world))
        given = locals()
        self.config = config = EnvConfig(**{name: given[name] for name in SETTINGS})
        _check_reward_fn(reward_fn)  # before a world is loaded, which takes a while
        if not isinstance(world, World):
            world = World.load(world, device, **world_options)
        workspace = config.workspace or world.config.workspace
        controller = make_controller(action_mode, world.config, speed, smoothing, workspace)
        limits, task = Limits(workspace, max_episode_chunks, horizon), make_task(task, task_options)
        self.simulator = Simulator(world, controller, task, limits, reward_fn)
        self.render_mode = render_mode
        self.metadata = type(self).metadata | {"render_fps": world.config.fps}
        self._scenes = _start_images(scenes, world)
        self._observe = observer(obs_mode, world.config, obs_size, workspace, task)
        self.action_space = controller.space
        self.observation_space = self._observe.space
        self._episode: Episode | None = None
        self._spec: EnvSpec | None = None
        self._warned = False

    def reset(
        self, *, seed: int | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Begin an episode at a start image. Nothing is predicted yet, except goals.

        Args:
            seed: of the generator that draws scenes and episode seeds from now on; None to go on with the generator.
            options: scene, an image (path, PIL, uint8 array) or the index of a start image; prompt, intrinsics or
                fov_deg, and anchor, as `World.scene` takes them; seed, of this episode's noise; task, a mapping that
                the task reads (a goal, a distance). What is not given is drawn.

        Raises:
            ValueError: for an unknown option, a negative seed, or an image that cannot be used.
            TypeError: for a seed that is no whole number, or an option of another type.
            FileNotFoundError: for a missing image.

        The environment is unchanged after an error.
        """
        (move,) = begun(self.simulator, [self], [seed], options)
        seen = move.seen
        move.go()
        return seen

    def step(self, action: Any) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Predict the next chunk under an action; the task judges it.

        Args:
            action: of the action space. Values outside a twist's box are clipped.

        Returns:
            Observation, reward, terminated, truncated, info.

        Raises:
            ValueError: for what is not an action.
            TypeError: for what is not an action.
            ResetNeeded: before the first reset, and after the end of an episode.

        The environment is unchanged after an error.
        """
        (after,), transition = stepped(self.simulator, [self], [action])
        move = Move(self, after)
        obs, info = move.seen
        move.go()
        return obs, float(transition.rewards[0]), bool(transition.terminated[0]), bool(transition.truncated[0]), info

    def render(self) -> np.ndarray | list[np.ndarray] | None:  # ty: ignore[incompatible-method-override]  Gymnasium's is of any type
        """The last frame (H, W, 3) uint8, or the list of the last step's frames, by `render_mode`; at full size."""
        now = self._now("render")
        if self.render_mode is None:
            gym.logger.warn('render() needs a render_mode: make the environment with render_mode="rgb_array".')
            return None
        if self.render_mode == "rgb_array" or now.clip is None:
            frame = now.slot.frame.cpu().numpy().copy()
            return frame if self.render_mode == "rgb_array" else [frame]
        return list(self.clip.frames.copy())

    @property
    def clip(self) -> HostClip:
        """The last step: frames (24, H, W, 3) uint8 and c2w (24, 4, 4) float64, read-only, at full size. Copied from
        the device at each access. After a reset the start image, repeated. ResetNeeded before the first reset."""
        return self._now("look at the clip").host_clip(self.world.config.chunk_frames)

    @property
    def world(self) -> World:
        """The loaded world."""
        return self.simulator.world

    @property
    def controller(self) -> Controller:
        """What actions mean."""
        return self.simulator.controller

    @property
    def workspace(self) -> Workspace:
        """Where the camera may go."""
        return self.simulator.limits.workspace

    @property
    def horizon(self) -> str:
        """What happens at the horizon, "stop" or "reanchor", as it was made."""
        return self.simulator.limits.horizon

    @property
    def task(self) -> Task:
        """The task. May be set to a task with the same observations and states."""
        return self.simulator.task

    @task.setter
    def task(self, task: Task) -> None:
        """What episodes are for. May be set, to a task with the same observations and states."""
        self.simulator = replace(self.simulator, task=make_task(task))
        self.config = replace(self.config, task=task, task_options=None)
        self._observe = replace(self._observe, task=task)

    @property
    def reward_fn(self) -> Callable[[Transition], Any] | None:
        """What replaces the task's rewards. May be set."""
        return self.simulator.reward_fn

    @reward_fn.setter
    def reward_fn(self, function: Callable[[Transition], Any] | None) -> None:
        self.simulator = replace(self.simulator, reward_fn=_check_reward_fn(function))

    @property
    def obs_mode(self) -> str:
        """The observation mode, see `observations.Observer`."""
        return self.config.obs_mode

    @property
    def action_mode(self) -> str:
        """The action mode, see `simulation.controllers`."""
        return self.config.action_mode

    @property
    def max_episode_chunks(self) -> int:
        """Steps until an episode is truncated. May be set, to a whole number above zero."""
        return self.simulator.limits.max_episode_chunks

    @max_episode_chunks.setter
    def max_episode_chunks(self, chunks: int) -> None:
        limits = replace(self.simulator.limits, max_episode_chunks=chunks)
        self.config = replace(self.config, max_episode_chunks=chunks)
        self.simulator = replace(self.simulator, limits=limits)

    @property
    def spec(self) -> EnvSpec | None:
        """How `gymnasium.make` made it, in plain values, with the length of an episode as `max_episode_steps`."""
        return self._spec

    @spec.setter
    def spec(self, spec: EnvSpec | None) -> None:
        self._spec = described(spec, self.max_episode_chunks)

    @property
    def scene(self) -> Scene:
        """The start of this episode: image, content hash (key), prompt, intrinsics and their source. ResetNeeded before
        the first reset."""
        return self._now("ask for its scene").slot.scene

    @property
    def state(self) -> WorldState:
        """The world's state, a value. ResetNeeded before the first reset."""
        return self._now("ask for the state").state

    def set_prompt(self, prompt: str) -> None:
        """Use another prompt from the next step on. Nothing else changes.

        Args:
            prompt: the text.

        Raises:
            TypeError: for anything but a string.
            ValueError: for a prompt that the world cannot take.
            ResetNeeded: before the first reset.
        """
        self._episode = self.prompted(prompt)

    def prompted(self, prompt: str) -> Episode:
        """The episode with another prompt from the next step on; raises as `set_prompt`."""
        now = self._now("set its prompt")
        if not isinstance(prompt, str):
            raise TypeError(f"A prompt must be a string, got {brief(prompt)}.")
        return replace(now, state=self.world.with_prompt(now.state, prompt))

    def snapshot(self, device: str | None = None) -> Snapshot:
        """The episode as a value. Tensors are copied only to another device, and the frames of an episode that was
        stepped in a batch (so that it does not keep the batch alive).

        Args:
            device: to move the snapshot to; None to leave it.

        Raises:
            ResetNeeded: before the first reset.
            ValueError: for a device that cannot be used.
        """
        now = self._now("take a snapshot").with_own_clip()
        if self.config.snapshots == "latents":
            now = replace(now, state=self.world.without_caches(now.state))
        rng = json.dumps(self.np_random.bit_generator.state, default=np.ndarray.tolist)
        snapshot = Snapshot.of(now, self.action_mode, rng)
        return snapshot if device is None else snapshot.to(usable_device(device))

    def restore(self, snapshot: Snapshot, reseed: int | None = None) -> tuple[Observation, dict[str, Any]]:
        """Return to a snapshot: the observation and info that the step or reset that led there returned. The same
        actions have the same future.

        Args:
            snapshot: from `snapshot`, or `Snapshot.load`.
            reseed: an episode seed for another future; None for the same one. A snapshot without a generator (see
                `clone_state`) gets a drawn seed.

        Raises:
            TypeError: for anything but a snapshot.
            ValueError: for a snapshot of another world, task or action mode.
        """
        move = self.restored(snapshot, reseed)
        seen = move.seen
        move.go()
        return seen

    def check_snapshot(self, snapshot: Snapshot) -> None:
        """Raise what `restore` raises."""
        if not isinstance(snapshot, Snapshot):
            raise TypeError(f"restore takes a Snapshot, got {type(snapshot).__name__}: take one with snapshot().")
        self.world.check_state(snapshot.state)
        if snapshot.action_mode != self.action_mode:
            raise ValueError(
                f"This snapshot was taken in action_mode {snapshot.action_mode!r}, "
                f"the environment has {self.action_mode!r}: restore it into one of the same mode."
            )
        self.simulator.check(snapshot)

    def restored(self, snapshot: Snapshot, reseed: int | None = None) -> "Move":
        """What `restore` would do, as a `Move` that has not been made. Raises as `restore`."""
        self.check_snapshot(snapshot)
        rng = None
        if snapshot.rng is not None:
            rng = read_generator(snapshot.rng)
        elif reseed is None:
            rng = copy.deepcopy(self.np_random)
            reseed = int(rng.integers(MAX_SEED))
        now = snapshot.episode.to(self.world.device)
        return Move(self, now if reseed is None else now.reseed(reseed), rng)

    @property
    def compute_reward(self) -> Callable[..., Any]:
        """The reward of goals, in the observation mode "goal".

        `compute_reward(achieved_goal, desired_goal, info=None)` takes goals (..., 3) and is 1.0 where a goal is
        reached, else 0.0: a float for one goal, an array (...) for many. This is the reward of a step, and of any goal
        that hindsight replay puts in its place. `info` is ignored.

        Raises:
            AttributeError: in other modes, because Stable-Baselines3 takes an environment with this attribute for one
                with goals.
        """
        reached = self.compute_terminated
        return lambda achieved_goal, desired_goal, info=None: reached(achieved_goal, desired_goal, info) * 1.0

    @property
    def compute_terminated(self) -> Callable[..., Any]:
        """Whether goals are reached, in the observation mode "goal".

        `compute_terminated(achieved_goal, desired_goal, info=None)` takes goals (..., 3) and returns a bool or an array
        (...). A reached goal ends an episode.

        Raises:
            AttributeError: in other modes.
        """
        if self.config.obs_mode != "goal":
            raise AttributeError('compute_reward and compute_terminated need obs_mode "goal".')
        return self._reached

    def _reached(self, achieved_goal: ArrayLike, desired_goal: ArrayLike, info: Any = None) -> Any:
        reached = self.task.reached(np.asarray(achieved_goal), np.asarray(desired_goal))
        return bool(reached) if np.ndim(reached) == 0 else reached

    @property
    def _max_episode_steps(self) -> int:
        """`max_episode_chunks` by the name of Gymnasium's TimeLimit, where LeRobot and others look for it."""
        return self.max_episode_chunks

    @property
    def fresh(self) -> bool:
        """Whether it has never been reset."""
        return self._episode is None

    @property
    def ended(self) -> tuple[bool, bool]:
        """Whether the episode is terminated, and whether it is truncated."""
        return Move(self, self._now("ask whether it has ended")).ended

    @property
    def episode(self) -> Episode:
        """The current episode, without the generator; `snapshot` returns one to keep. May be set to an episode of this
        world, controller and task.

        Raises:
            ResetNeeded: before the first reset.
            ValueError: for an episode that does not fit.
        """
        return self._now("look at it")

    @episode.setter
    def episode(self, episode: Episode) -> None:
        """The episode now, without the generator; `snapshot` returns one to keep. ResetNeeded before the first reset.
        May be set, to an episode of this world, controller and task (ValueError for others)."""
        self.simulator.check(episode)
        self._episode = episode

    @property
    def batch_row(self) -> tuple[int, int]:
        """Row of the last step in the batch it was computed in, and the size of that batch; (0, 1) after a reset."""
        return self._now("ask for its batch row").batch_row

    def observe(self, episodes: Sequence[Episode]) -> Observation:
        """Observations of episodes of this kind of environment, with a leading batch axis."""
        return self._observe(episodes)

    @property
    def observation(self) -> Observation:
        """The current observation."""
        return self._observe.one(self._now("observe"))

    @property
    def info(self) -> dict[str, Any]:
        """The current info."""
        return self.simulator.info(self._now("ask for its info"))

    def clone_state(self, include_rng: bool = True) -> Snapshot:
        """`snapshot` under ALE's name.

        Args:
            include_rng: without the generator, each restore continues with new noise.
        """
        now = self.snapshot()
        return now if include_rng else replace(now, rng=None)

    def restore_state(self, state: Snapshot) -> tuple[Observation, dict[str, Any]]:
        """`restore` under ALE's name."""
        return self.restore(state)

    def get_keys_to_action(self) -> dict[tuple[str, ...], Any]:
        """Actions by keys, for `gymnasium.utils.play`.

        Raises:
            ValueError: unless the action mode is "discrete" or "keys".
        """
        if not isinstance(self.controller, Keys):
            raise ValueError(f'action_mode {self.action_mode!r} has no keys: use "discrete" or "keys" to play.')
        return self.controller.for_keyboard()

    def sibling(self) -> "SanaWMEnv":
        """Another environment with the same settings and simulator, without an episode and a generator."""
        other = object.__new__(type(self))
        other.__dict__.update(vars(self) | {"_episode": None, "_np_random": None, "_np_random_seed": None})
        other.action_space = copy.deepcopy(self.action_space)  # it has a generator of its own
        other.observation_space = copy.deepcopy(self.observation_space)
        return other

    def __copy__(self):
        raise TypeError("A shallow copy of an environment would share its episode: fork it with copy.deepcopy.")

    def __deepcopy__(self, memo: dict[int, Any]) -> "SanaWMEnv":
        memo |= {id(value): value for value in (self.config, self.simulator, self._episode, self._scenes)}
        fork = memo[id(self)] = object.__new__(type(self))
        fork.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return fork

    def __getstate__(self) -> dict[str, Any]:
        episode = None if self._episode is None else self._episode.to("cpu")
        simulator = {name: value for name, value in vars(self.simulator).items() if name != "world"}
        config = _by_name(self.config, self.world)
        return self.__dict__ | {"config": config, "simulator": simulator, "_episode": episode}

    def __setstate__(self, attributes: dict[str, Any]) -> None:
        self.__dict__.update(attributes)
        world = World.load(cast(str, self.config.world), self.config.device, **self.config.world_options)
        self.simulator = Simulator(world, **attributes["simulator"])
        if self._episode is not None:
            world.check_state(self._episode.state)
            self._episode = self._episode.to(world.device)

    def _now(self, what: str) -> Episode:
        if self._episode is None:
            raise ResetNeeded(f"There is no episode yet: call reset before you {what}.")
        return self._episode

    def _choose(self, options: Mapping[str, Any], rng: np.random.Generator) -> tuple[Scene, int]:
        """Scene and episode seed. Both are always drawn, so that the options of one episode do not change the next
        one."""
        scene = options.get("scene")
        if scene is None and not self._scenes:
            name = self.world.config.name
            raise ValueError(f'The {name} world ships no start images: give scenes=, or options["scene"].')
        drawn, seed = int(rng.integers(max(1, len(self._scenes)))), int(rng.integers(MAX_SEED))
        return self._scene(drawn if scene is None else scene, options), seed

    def _scene(self, image: ImageSource | int, options: Mapping[str, Any]) -> Scene:
        if isinstance(image, int | np.integer) and not isinstance(image, bool):
            number, scenes = int(image), self._scenes
            if not 0 <= number < len(scenes):
                raise ValueError(f"There is no scene {image}: scenes are 0 to {len(scenes) - 1}.")
            if isinstance(scenes, DrawnScenes):
                return self._drawn_scene(scenes, number, options)
            image = scenes[number]
        prompt = check_start(options)
        given = {name: options.get(name) for name in ("intrinsics", "fov_deg", "anchor")}
        return self.world.scene(cast(ImageSource, image), prompt=prompt, **given)

    def _drawn_scene(self, scenes: DrawnScenes, number: int, options: Mapping[str, Any]) -> Scene:
        if given := [name for name in ("intrinsics", "fov_deg", "anchor") if options.get(name) is not None]:
            raise ValueError(f"Scenes of {scenes} come with their own cameras: leave {', '.join(given)} out.")
        start = scenes.start(number, self.world.config)
        return self._scene(start.image, {**options, "anchor": start.anchor})


def check_start(options: Mapping[str, Any]) -> str:
    """The prompt of the options of a reset. TypeError or ValueError for one, or an angle, that cannot be."""
    prompt = "" if options.get("prompt") is None else options["prompt"]
    if not isinstance(prompt, str):
        raise TypeError(f'options["prompt"] must be text, got {type(prompt).__name__}.')
    if options.get("fov_deg") is not None:
        check_number('options["fov_deg"]', options["fov_deg"])
    return check_prompt(prompt)


KEYWORDS = keywords(SanaWMEnv.__init__)
SETTINGS = tuple(each.name for each in fields(EnvConfig))


@dataclass(frozen=True, eq=False)
class Move:
    """The next episode of an environment, computed before it is set, so that an error leaves the environment unchanged.

    Attributes:
        env: the environment.
        episode: the episode it will have.
        rng: the state of its generator then; None for no change.
        rng_seed: the seed the generator was made from, if it was.
    """

    env: SanaWMEnv
    episode: Episode
    rng: np.random.Generator | None = None
    rng_seed: int | None = None

    @property
    def info(self) -> dict[str, Any]:
        """The info of the episode."""
        return self.env.simulator.info(self.episode)

    @property
    def ended(self) -> tuple[bool, bool]:
        """Whether the episode is terminated, and whether it is truncated."""
        return self.episode.terminated, self.env.simulator.truncated(self.episode)

    @property
    def seen(self) -> tuple[Observation, dict[str, Any]]:
        """Observation and info of the episode."""
        return self.env._observe.one(self.episode), self.info

    def go(self) -> None:
        """Set the episode and the generator."""
        if self.rng_seed is not None:
            self.env._np_random, self.env._np_random_seed = self.rng, self.rng_seed
        elif self.rng is not None:
            own = self.env.np_random
            if type(own.bit_generator) is type(self.rng.bit_generator):
                own.bit_generator.state = self.rng.bit_generator.state
            else:
                self.env.np_random = self.rng
        self.env._episode = self.episode


def begun(
    simulator: Simulator,
    envs: Sequence[SanaWMEnv],
    seeds: Sequence[int | None],
    options: Mapping[str, Any] | None = None,
) -> list[Move]:
    """Begin an episode in several environments around one simulator, without setting it. Goals are predicted in one
    batch.

    Args:
        simulator: of the environments.
        envs: the environments.
        seeds: of `reset`, one for each.
        options: of `reset`, for all.

    Returns:
        A `Move` for each environment.

    Raises:
        ValueError: as `SanaWMEnv.reset`.
        TypeError: likewise.
        FileNotFoundError: likewise.
    """
    if not envs:
        return []
    options = reset_options(options)
    if unknown := [str(name) for name in options if name not in RESET_OPTIONS]:
        raise ValueError(f"Reset takes the options {', '.join(RESET_OPTIONS)}, not {', '.join(unknown)}.")
    task_options = {} if options.get("task") is None else options["task"]
    if not isinstance(task_options, Mapping):
        raise TypeError(f'options["task"] must be a mapping, got {type(task_options).__name__}.')
    given = None if options.get("seed") is None else check_seed(options["seed"])
    generators = [
        (copy.deepcopy(env.np_random), None) if seed is None else seeding.np_random(_reset_seed(seed))
        for env, seed in zip(envs, seeds, strict=True)
    ]
    rngs = [rng for rng, _ in generators]
    chosen = [env._choose(options, rng) for env, rng in zip(envs, rngs, strict=True)]
    episode_seeds = [seed if given is None else given + i for i, (_, seed) in enumerate(chosen)]
    episodes = simulator.reset([scene for scene, _ in chosen], episode_seeds, rngs, task_options)
    return [Move(env, episode, rng, seed) for env, episode, (rng, seed) in zip(envs, episodes, generators, strict=True)]


def stepped(
    simulator: Simulator,
    envs: Sequence[SanaWMEnv],
    actions: Sequence[Any],
    one_by_one: bool = False,
    numbers: Sequence[int] | None = None,
) -> tuple[list[Episode], Transition]:
    """Step several environments around one simulator, without setting their episodes.

    Args:
        simulator: of the environments.
        envs: the environments.
        actions: one for each.
        one_by_one: step in batches of one.
        numbers: how errors name the environments; None for a single one without a name.

    Returns:
        The episodes after the step, and the `Transition`.

    Raises:
        ResetNeeded: before a reset, and after the end of an episode.
        ValueError, TypeError: as `Simulator.step`.
    """
    for number, env in zip(range(len(envs)) if numbers is None else numbers, envs, strict=True):
        try:
            env.simulator.check_open(env._now("step"))  # by its own limits
        except (EpisodeOver, ResetNeeded) as error:
            raise ResetNeeded(str(error) if numbers is None else f"Slot {number}: {error}") from None
    after, transition = simulator.step([env.episode for env in envs], actions, one_by_one, numbers)
    for env, episode in zip(envs, after, strict=True):
        if env.workspace.beyond_soft_distance(episode.c2w) and not env._warned:
            env._warned = True
            metres = env.workspace.soft_distance
            gym.logger.warn(f"The camera is over {metres:g} m from its start: expect poor frames.")
    return after, transition


def reset_options(options: Mapping[str, Any] | None) -> dict[str, Any]:
    """A copy of the options of a reset, without entries that other libraries add.

    Raises:
        TypeError: for anything but a mapping or None.
    """
    if not isinstance(options, Mapping | None):
        raise TypeError(f"The options of a reset must be a mapping, got {type(options).__name__}.")
    return {name: value for name, value in (options or {}).items() if name not in MARKS}


def _reset_seed(seed: int) -> int:
    """A seed of `reset` as a Python int of any size. Raises TypeError or ValueError."""
    if isinstance(seed, bool | np.bool_) or not isinstance(seed, int | np.integer):
        raise TypeError(f"The seed of a reset must be a whole number or None, got {brief(seed)}.")
    if seed < 0:
        raise ValueError(f"The seed of a reset must not be negative, got {brief(int(seed))}.")
    return int(seed)


def read_generator(state: str) -> np.random.Generator:
    """The random generator that a snapshot holds as JSON.

    Raises:
        ValueError: for anything else.
    """
    try:
        state = json.loads(state)
        bits = BIT_GENERATORS[state["bit_generator"]]()
        bits.state = state
        return np.random.Generator(bits)
    except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise ValueError("rng of this snapshot is not the state of a random generator: take a new snapshot.") from error


def _check_reward_fn(function: Any) -> Any:
    if function is not None and not callable(function):
        raise TypeError(f"reward_fn must be a function of a Transition, got {type(function).__name__}.")
    return function


def _by_name(config: EnvConfig, world: World) -> EnvConfig:
    """The config with a name or absolute folder to load its world from. Raises TypeError for a World without either."""
    if not isinstance(config.world, World):
        return replace(config, world=world_address(config.world))
    name = world.config.name
    if name in known_worlds() and World.load(name).weights_hash == world.weights_hash:
        return replace(config, world=name, device=str(world.device), world_options=asdict(world.options))
    raise TypeError("An environment around a loaded World cannot be pickled: give a name or folder.")


def _start_images(
    scenes: ImageSource | Sequence[ImageSource] | None, world: World
) -> Sequence[ImageSource] | DrawnScenes:
    """Start images as a list, or a set of them without end. Raises FileNotFoundError, TypeError or ValueError."""
    if scenes is None:
        return list(world.starts)
    if isinstance(scenes, str) and not Path(scenes).exists() and (drawn := DrawnScenes.named(scenes)) is not None:
        return drawn
    if isinstance(scenes, str | os.PathLike) and scenes != "" and Path(scenes).is_dir():
        return [*images_in(Path(scenes).absolute())]
    images = list(scenes) if isinstance(scenes, list | tuple) else [scenes]
    if not images or (isinstance(scenes, str) and not scenes):
        raise ValueError("scenes is empty: give at least one image, or None for the world's own.")
    for image in images:
        if isinstance(image, str | os.PathLike):
            if Path(image).is_dir():
                raise ValueError(f"{image} is a folder: scenes are one folder of images, or a list of images.")
            if not Path(image).is_file():
                raise FileNotFoundError(f"There is no start image at {image}.")
        elif not isinstance(image, np.ndarray | Image.Image):
            raise TypeError(
                "scenes must be an image (a path, a PIL image or a uint8 array), a folder of images or a list of "
                f"images, got {brief(image)}."
            )
    # absolute, so that a pickled environment finds them from another folder
    return [Path(image).absolute() if isinstance(image, str | os.PathLike) else image for image in images]
