"""Environments that live on a server: `gym.make("SanaWM/Remote-v0", url="ws://...")`.

A client's `Simulator` asks the server instead of a local world, and its episodes are numbers of episodes on the server.
Spaces, seeds, autoreset, snapshots and errors are those of `SanaWMEnv` and `SanaWMVectorEnv`, because the code is the
same.
"""

import json
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, cast

import numpy as np
from gymnasium import spaces

from sanawm_env.envs.config import EnvConfig
from sanawm_env.envs.env import SanaWMEnv, check_start, read_generator
from sanawm_env.envs.observations import Observation, check_size, observer
from sanawm_env.envs.vector import SanaWMVectorEnv
from sanawm_env.serving.connection import Connection, EpisodeLost, Handle, SessionLost
from sanawm_env.serving.protocol import PIECE, ServedConfig
from sanawm_env.serving.wire import Encoding
from sanawm_env.serving.worker import Batching
from sanawm_env.simulation.controllers import make_controller
from sanawm_env.simulation.episode import HostClip
from sanawm_env.simulation.simulator import Limits, Simulator
from sanawm_env.simulation.tasks import make_task
from sanawm_env.system.files import brief, check_choice, explaining, open_file, reason
from sanawm_env.system.saving import replacing
from sanawm_env.world.anchor import Anchor
from sanawm_env.world.images import load_image, read_anchor
from sanawm_env.world.saved import check_array, check_poses
from sanawm_env.world.state import Scene, check_seed

MAX_INFO = 64  # entries
ELSEWHERE = "A remote environment cannot look ahead without a step: step forks of it, or plan on the server's machine."
BATCHINGS = ("shared", "own", "one by one")


@dataclass(frozen=True)
class RemoteWorld:
    """What a client knows of the server's world. The names are those of `World`.

    Attributes:
        config: of the world.
        mode: which stages make the frames.
        weights_hash: of the weights.
        starts: number of start images on the server.
        device: "cpu", where frames arrive.
    """

    config: ServedConfig
    mode: str
    weights_hash: str
    starts: int
    device: str = "cpu"


@dataclass(frozen=True, eq=False)
class Past:
    """A step that the server has not kept on disk. It is repeated if the server loses the episodes.

    Attributes:
        before: the episodes before the step.
        asked: the other fields of the request.
        after: handles of the episodes after it, as weak references.
    """

    before: Sequence["RemoteEpisode"]
    asked: Mapping[str, Any]
    after: "list[weakref.ref[Handle]]"


@dataclass(frozen=True, eq=False)
class RemoteEpisode:
    """An episode on the server.

    Attributes:
        simulator: the client of the server.
        handle: its number on the server.
        seen: its last observation.
        info: its last info.
        terminated: whether the task has ended it.
        batch_row: row of the last step in the batch it was computed in, and the size of that batch.
        past: the step that led here; None where the server keeps this episode in memory only, or on disk.
    """

    simulator: "RemoteSimulator"
    handle: Handle
    seen: Observation
    info: Mapping[str, Any]
    terminated: bool
    batch_row: tuple[int, int]
    past: Past | None = None

    @property
    def chunk(self) -> int:
        """Steps since the reset."""
        return self.info["chunk"]

    @property
    def c2w(self) -> np.ndarray:
        """(F, 4, 4) float64 of the last step, relative to frame 0; after a reset the identity, repeated."""
        return self.info["c2w"]

    @cached_property
    def frames(self) -> np.ndarray:
        """(F, H, W, 3) uint8 of the last step, read-only; after a reset the start image, repeated. Fetched on first
        use."""
        config = self.simulator.world.config
        frames = self.simulator.ask_of("frames", self)["frames"]
        _check(check_array, frames, (config.chunk_frames, config.height, config.width, 3), np.uint8, "frames")
        frames.setflags(write=False)
        return frames

    @property
    def episode(self) -> "RemoteEpisode":
        """The episode without what a snapshot adds."""
        return RemoteEpisode(**{each.name: getattr(self, each.name) for each in fields(RemoteEpisode)})

    def host_clip(self, frames: int) -> HostClip:
        """Frames and poses of the last step."""
        c2w = self.c2w.view()
        c2w.setflags(write=False)
        return HostClip(self.frames, c2w)

    def to(self, device: Any) -> "RemoteEpisode":
        """The episode itself: its tensors stay on the server."""
        return self

    def reseed(self, seed: int) -> "RemoteEpisode":
        """The same episode with the noise of `seed` from the next chunk on. Raises as `Connection.ask`."""
        return self.simulator.told(self.simulator.ask_all("reseed", [self], seeds=[check_seed(seed)]), 1)[0]

    def prompted(self, prompt: str) -> "RemoteEpisode":
        """The same episode with another prompt from the next chunk on. Raises as `Connection.ask`."""
        return self.simulator.told(self.simulator.ask_all("prompt", [self], prompts=[prompt]), 1)[0]


@dataclass(frozen=True, eq=False)
class RemoteSnapshot(RemoteEpisode):
    """An episode as `RemoteEnv.snapshot` returns it. The server keeps the episode until the last reference to it is
    gone.

    Attributes:
        rng: the environment's random generator as JSON; None to leave the generator alone on `restore`.
    """

    rng: str | None = None

    def save(self, path: str | PathLike) -> None:
        """Write the file that `Snapshot.save` would write on the server. `Snapshot.load` and `RemoteEnv.load` read it.
        It appears whole or not at all.

        Raises:
            OSError: where it cannot be written.
            RuntimeError: where the server does not send all of it.
            ConnectionError: as `Connection.ask`.
        """
        ask = self.simulator.ask
        size = self.simulator.ask_of("save", self, rng=self.rng)["bytes"]
        if type(size) is not int:
            raise RuntimeError("The server's reply cannot be read: it must say how many bytes the file has.")
        with replacing(path) as part, Path(part).open("wb") as file:
            while file.tell() < size:
                data = ask("read", offset=file.tell())["data"]
                if not isinstance(data, np.ndarray) or not data.size:
                    raise RuntimeError("The server's file was cut off: save the snapshot again.")
                file.write(data.tobytes())


class Outcome(NamedTuple):
    """What `SanaWMEnv` reads of a transition.

    Attributes:
        rewards: (B,) float64.
        terminated: (B,) bool.
        truncated: (B,) bool.
    """

    rewards: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray


@dataclass(frozen=True)
class RemoteSimulator(Simulator):
    """A simulator that asks a server.

    Attributes:
        connection: to the server.
        space: of one observation.
        batching: see `worker.Step`.
    """

    connection: Connection = None  # ty: ignore[invalid-assignment]  dataclasses want a default after one
    space: spaces.Space = None  # ty: ignore[invalid-assignment]
    batching: Batching = "shared"

    def ask(self, op: str, **asked: Any) -> dict[str, Any]:
        """See `Connection.ask`."""
        return self.connection.ask(op, **asked)

    def ask_all(self, op: str, episodes: Sequence[Any], **asked: Any) -> dict[str, Any]:
        """Ask about several episodes. Episodes that the server has lost since they were last kept are computed again
        first.

        Args:
            op: name of the operation.
            episodes: of this session.
            **asked: other fields of the request.

        Returns:
            The reply.

        Raises:
            EpisodeLost: where an episode cannot be computed again; else as `Connection.ask` and `number`.
        """
        try:
            return self.ask(op, episodes=[self.number(episode) for episode in episodes], **asked)
        except EpisodeLost:
            self._make_again(episodes)
            return self.ask(op, episodes=[self.number(episode) for episode in episodes], **asked)

    def ask_of(self, op: str, episode: Any, **asked: Any) -> dict[str, Any]:
        """As `ask_all`, about one episode."""
        try:
            return self.ask(op, episode=self.number(episode), **asked)
        except EpisodeLost:
            self._make_again([episode])
            return self.ask(op, episode=self.number(episode), **asked)

    def _make_again(self, episodes: Sequence[RemoteEpisode]) -> None:
        """Repeat the steps that led to episodes which the server has lost."""
        pasts = {id(episode.past): episode.past for episode in episodes if episode.past is not None}
        if not pasts:
            raise EpisodeLost("The server has lost an episode that it had kept: reset, or load a saved snapshot.")
        for past in pasts.values():
            reply = self.ask_all("step", past.before, **past.asked)
            for handle, again in zip(past.after, self.told(reply, len(past.before)), strict=True):
                if (known := handle()) is not None:
                    known.swap(again.handle)

    def number(self, episode: Any) -> int:
        """Number of an episode on the server.

        Raises:
            TypeError: for anything but a remote episode.
            ValueError: for an episode of another connection.
            SessionLost: for an episode of an earlier session.
        """
        if not isinstance(episode, RemoteEpisode):
            raise TypeError(
                f"A remote environment takes its own snapshots, got {brief(episode)}: use snapshot or load."
            )
        if episode.handle.connection is not self.connection:
            raise ValueError("This episode is another environment's: save its snapshot, and load the file here.")
        if episode.handle.session != self.connection.session:
            raise SessionLost("The server has forgotten this episode: reset, or load a saved snapshot.")
        return episode.handle.number

    def told(self, reply: Mapping[str, Any], count: int) -> list[RemoteEpisode]:
        """The `count` episodes in a reply. Raises RuntimeError for a reply that does not fit."""
        return _check(self._told, reply, count)

    def _told(self, reply: Mapping[str, Any], count: int) -> list[RemoteEpisode]:
        numbers, infos, ended, rows, obs = (reply[name] for name in ("episodes", "infos", "terminated", "rows", "obs"))
        if any(type(each) is not list or len(each) != count for each in (numbers, infos, ended, rows)):
            raise ValueError(f"it does not describe {count} episodes")
        _check_observation(self.space, obs, count)
        made = []
        for i, (number, info, over, row) in enumerate(zip(numbers, infos, ended, rows, strict=True)):
            if type(number) is not int or type(over) is not bool or type(row) is not list or len(row) != 2:
                raise ValueError(f"episode {i} is incomplete")
            _check_info(info, self.world.config.chunk_frames)
            seen = {name: each[i] for name, each in obs.items()} if isinstance(obs, dict) else obs[i]
            made.append(RemoteEpisode(self, Handle(self.connection, number), seen, info, over, (row[0], row[1])))
        return made

    def reset(
        self,
        scenes: Sequence[Any],
        seeds: Sequence[int],
        rngs: Sequence[np.random.Generator] | None = None,
        task_options: Mapping[str, Any] | None = None,
    ) -> list[RemoteEpisode]:  # ty: ignore[incompatible-method-override]  episodes there
        """As `Simulator.reset`, with scenes as maps (`protocol.SceneAsked`)."""
        rngs = [np.random.default_rng(seed) for seed in seeds] if rngs is None else rngs
        reply = self.ask(
            "reset",
            scenes=list(scenes),
            seeds=[check_seed(seed) for seed in seeds],
            rngs=[json.dumps(rng.bit_generator.state, default=np.ndarray.tolist) for rng in rngs],
            max_episode_chunks=self.limits.max_episode_chunks,
            task=dict(task_options or {}),
        )
        after, states = self.told(reply, len(seeds)), reply.get("rngs")
        if type(states) is not list or len(states) != len(rngs):
            raise RuntimeError("The server's reply cannot be read: it must hold a generator for each episode.")
        for rng, state in zip(rngs, states, strict=True):
            rng.bit_generator.state = _check(read_generator, state).bit_generator.state
        return after

    def step(
        self,
        episodes: Sequence[Any],
        actions: Sequence[Any],
        one_by_one: bool = False,
        numbers: Sequence[int] | None = None,
    ) -> tuple[list[RemoteEpisode], Outcome]:  # ty: ignore[incompatible-method-override]
        """As `Simulator.step`; the transition has only rewards and ends."""
        read, names = [], range(len(episodes)) if numbers is None else numbers
        for number, episode, action in zip(names, episodes, actions, strict=True):
            try:
                self.check_open(episode)
                read.append(self.controller.read(action))
            except (ValueError, TypeError) as error:
                if len(episodes) == 1 and numbers is None:
                    raise
                raise type(error)(f"Slot {number}: {error}") from None
        asked = {
            "actions": np.stack(read),
            "batching": "one by one" if one_by_one else self.batching,
            "numbers": None if numbers is None else [int(number) for number in numbers],
        }
        reply = self.ask_all("step", episodes, **asked)
        after, rewards = self.told(reply, len(episodes)), reply.get("rewards", np.empty(0))
        if reply.get("kept") is False:
            past = Past(episodes, asked, [weakref.ref(episode.handle) for episode in after])
            after = [replace(episode, past=past) for episode in after]
        _check(check_array, rewards, (len(after),), np.float64, "rewards")
        truncated = np.array([self.truncated(episode) for episode in after])
        return after, Outcome(rewards, np.array([episode.terminated for episode in after]), truncated)

    def truncated(self, episode: Any) -> bool:
        over = episode.chunk >= self.limits.max_episode_chunks
        return over or episode.info["out_of_workspace"] or episode.info["out_of_horizon"]

    def info(self, episode: Any) -> dict[str, Any]:
        return {name: value.copy() if isinstance(value, np.ndarray) else value for name, value in episode.info.items()}

    def check(self, episode: Any) -> None:
        self.number(episode)

    def imagine(self, episodes: Any, actions: Any) -> NoReturn:
        raise TypeError(ELSEWHERE)

    def follow(self, episode: Any, actions: Any) -> NoReturn:
        raise TypeError(ELSEWHERE)

    def plan(self, episode: Any, action: Any) -> NoReturn:
        raise TypeError(ELSEWHERE)


@dataclass(frozen=True)
class _Seen:
    """Observations of remote episodes, as copies of what the server sent."""

    space: spaces.Space

    def __call__(self, episodes: Sequence[RemoteEpisode]) -> Observation:
        first = episodes[0].seen
        if isinstance(first, dict):
            return {name: np.stack([cast(dict, e.seen)[name] for e in episodes]) for name in first}
        return np.stack([cast(np.ndarray, e.seen) for e in episodes])

    def one(self, episode: RemoteEpisode) -> Observation:
        seen = episode.seen
        return {name: value.copy() for name, value in seen.items()} if isinstance(seen, dict) else seen.copy()


class RemoteEnv(SanaWMEnv):
    """An environment on a server (`sanawm serve`), used like a local one. World, task and actions are the server's.

    A snapshot refers to an episode on the server, which the server keeps as long as the snapshot exists. `save` writes
    a snapshot to a local file, `load` sends one. After a lost connection the environment goes on where it was. A
    restarted server has forgotten it (`SessionLost`: reset, or load a saved snapshot), unless the server keeps sessions
    on disk. `close` ends the session.

    Args:
        url: of the server, such as ws://127.0.0.1:8765.
        token: of the server; None for the value of SANAWM_TOKEN.
        obs_mode, obs_size, max_episode_chunks, render_mode: as `SanaWMEnv`; None for the server's own.
        encoding: how frames are sent: "raw", "png" (smaller, the same bits) or "jpeg" (smaller still, lossy).
        batching: "shared": a step runs in one batch with whoever steps at the same time. "own": in a batch of its own,
            so that frames are bit for bit those of a local environment. "one by one": each environment of a batch
            alone.
        patience: seconds that a request waits for a server that cannot be reached.

    Raises:
        ConnectionError, PermissionError, RuntimeError: as `Connection`.
        ValueError, TypeError: as `Connection` and `SanaWMEnv`.
    """

    simulator: RemoteSimulator

    def __init__(
        self,
        url: str,
        token: str | None = None,
        obs_mode: str | None = None,
        obs_size: tuple[int, int] | None = None,
        max_episode_chunks: int | None = None,
        render_mode: str | None = None,
        encoding: Encoding = "raw",
        batching: Batching = "shared",
        patience: float = 60.0,
    ):
        check_choice("batching", batching, BATCHINGS)
        asked = {"obs_mode": obs_mode, "obs_size": None if obs_size is None else check_size(obs_size)}
        connection = Connection(url, token, patience, encoding=encoding, **asked)
        welcome = connection.welcome
        config = EnvConfig.from_plain(welcome.env)
        given = {"obs_mode": obs_mode, "obs_size": obs_size, "max_episode_chunks": max_episode_chunks}
        given = {name: value for name, value in given.items() if value is not None}
        self.config = config = replace(config, world=welcome.world.name, render_mode=render_mode, **given)
        world = RemoteWorld(welcome.world, welcome.mode, welcome.weights_hash, welcome.starts)
        workspace = config.workspace or world.config.workspace
        controller = make_controller(config.action_mode, world.config, config.speed, config.smoothing, workspace)
        limits = Limits(workspace, config.max_episode_chunks, config.horizon)
        task = make_task(config.task, config.task_options)
        space = observer(config.obs_mode, world.config, config.obs_size, workspace, task).space
        self.simulator = RemoteSimulator(
            cast(Any, world), controller, task, limits, connection=connection, space=space, batching=batching
        )
        self.render_mode = render_mode
        self.metadata = type(self).metadata | {"render_fps": world.config.fps}
        self._scenes = range(world.starts)
        self._observe = _Seen(space)
        self.action_space, self.observation_space = controller.space, space
        self._episode, self._spec, self._warned = None, None, False

    def close(self) -> None:
        """End the session, and with it everything that the server keeps for this environment and its forks."""
        self.simulator.connection.close()

    def snapshot(self, device: str | None = None) -> RemoteSnapshot:  # ty: ignore[incompatible-method-override]
        """The episode as a value; nothing is sent.

        Args:
            device: None; the tensors stay on the server.

        Raises:
            ValueError: for a device.
            ResetNeeded: before the first reset.
        """
        if device is not None:
            raise ValueError(
                "A snapshot of a remote environment stays on the server: leave device out, or save it and read the "
                "file with Snapshot.load."
            )
        now = cast(RemoteEpisode, self._now("take a snapshot"))
        kept = {each.name: getattr(now, each.name) for each in fields(RemoteEpisode)}
        return RemoteSnapshot(**kept, rng=json.dumps(self.np_random.bit_generator.state, default=np.ndarray.tolist))

    def load(self, path: str | PathLike) -> RemoteSnapshot:
        """Send a saved snapshot to the server.

        Args:
            path: a file that `RemoteSnapshot.save` or `Snapshot.save` wrote.

        Returns:
            The snapshot, for `restore`.

        Raises:
            FileNotFoundError: where there is no file.
            ValueError: for a file that is no snapshot, or one of other weights or another task.
        """
        ask, sent = self.simulator.ask, 0
        piece = min(PIECE, int(self.simulator.connection.most_bytes // 2))
        with explaining(f"{path} cannot be sent"), open_file(path) as file:
            while data := file.read(piece):
                ask("write", offset=sent, data=np.frombuffer(data, np.uint8))
                sent += len(data)
        reply = ask("load")
        (now,), rng = self.simulator.told(reply, 1), reply.get("rng")
        if not isinstance(rng, str | None):
            raise RuntimeError("The server's reply cannot be read: its generator must be text.")
        return RemoteSnapshot(**{each.name: getattr(now, each.name) for each in fields(RemoteEpisode)}, rng=rng)

    def check_snapshot(self, snapshot: Any) -> None:
        if not isinstance(snapshot, RemoteSnapshot):
            raise TypeError(
                f"restore takes a snapshot of this environment, got {type(snapshot).__name__}: one from a file is "
                "sent with load()."
            )
        self.simulator.check(cast(Any, snapshot))

    def prompted(self, prompt: str) -> Any:
        now = cast(RemoteEpisode, self._now("set its prompt"))
        if not isinstance(prompt, str):
            raise TypeError(f"A prompt must be a string, got {brief(prompt)}.")
        return now.prompted(prompt)

    def render(self) -> np.ndarray | list[np.ndarray] | None:
        now = cast(RemoteEpisode, self._now("render"))
        if self.render_mode is None:
            return super().render()
        if self.render_mode == "rgb_array" or now.chunk == 0:
            frame = now.frames[-1].copy()
            return frame if self.render_mode == "rgb_array" else [frame]
        return list(now.frames.copy())

    @property
    def latents(self) -> np.ndarray:
        """(c, T, h, w) float32 of the last chunk; after a reset, of frame 0 alone. ValueError where there are none."""
        latents = self.simulator.ask_of("latents", self._now("ask for latents"))["latents"]
        if not isinstance(latents, np.ndarray) or latents.ndim != 4 or latents.dtype != np.float32:
            raise RuntimeError("The server's reply cannot be read: latents must be an array (c, T, h, w) float32.")
        return latents

    @property
    def scene(self) -> Scene:
        """As `SanaWMEnv.scene`, without the conditions, which stay on the server."""
        told = self.simulator.ask_of("scene", self._now("ask for its scene"))
        return _check(_scene, told, self.world)

    @property
    def state(self) -> NoReturn:
        raise AttributeError("The state of a remote environment stays on its server; snapshot() refers to it.")

    @property
    def task(self) -> Any:
        return self.simulator.task

    @task.setter
    def task(self, task: Any) -> NoReturn:
        raise TypeError("The task of a remote environment is the server's: choose it with sanawm serve --env.")

    @property
    def reward_fn(self) -> None:
        return None

    @reward_fn.setter
    def reward_fn(self, function: Any) -> NoReturn:
        raise TypeError("Rewards of a remote environment are the server's: put a wrapper around it.")

    def _scene(self, image: Any, options: Mapping[str, Any]) -> dict[str, Any]:  # ty: ignore[incompatible-method-override]
        """A scene as the fields of a request. Images are read here; no path is sent."""
        prompt = check_start(options)
        anchor, fov_deg, intrinsics = (options.get(name) for name in ("anchor", "fov_deg", "intrinsics"))
        asked: dict[str, Any] = {"prompt": prompt, "fov_deg": None if fov_deg is None else float(fov_deg)}
        if isinstance(image, int | np.integer) and not isinstance(image, bool):
            if not 0 <= image < len(self._scenes):
                raise ValueError(f"There is no scene {image}: scenes are 0 to {len(self._scenes) - 1}.")
            asked["number"] = int(image)
        else:
            asked["image"] = np.asarray(load_image(image))
            if anchor is None and isinstance(image, str | PathLike):
                anchor = read_anchor(image)
                anchor = anchor if anchor is not None and self.world.config.knows(anchor.place) else None
        if callable(intrinsics):
            raise TypeError(
                "intrinsics of a remote environment must be numbers: call the estimator, and give its result."
            )
        if anchor is not None and not isinstance(anchor, Anchor):
            raise TypeError(f"anchor must be an Anchor, a place and the pose in it, got {type(anchor).__name__}.")
        if anchor is not None:
            asked |= {"place": anchor.place, "c2w": anchor.c2w}
        if intrinsics is not None:
            asked["intrinsics"] = np.asarray(intrinsics, np.float64)
        return asked

    def __getstate__(self) -> NoReturn:
        raise TypeError("A remote environment is a connection, which cannot be pickled: make another with its url.")


class RemoteVectorEnv(SanaWMVectorEnv):
    """`num_envs` environments of a server over one connection, stepped by one request.

    Takes the settings of `RemoteEnv`, and the others of `SanaWMVectorEnv`.
    """

    slot_type = RemoteEnv

    def close_extras(self, **kwargs: Any) -> None:
        """End the session on the server."""
        self.envs[0].close()


# --- what a server says, checked ---


def _check(function: Any, *arguments: Any) -> Any:
    """The result of a function that reads a reply; its errors become a RuntimeError."""
    try:
        return function(*arguments)
    except (ValueError, TypeError, KeyError) as error:
        raise RuntimeError(f"The server's reply cannot be read: {reason(error)}.") from error


def _check_observation(space: spaces.Space, obs: Any, count: int) -> None:
    if isinstance(space, spaces.Dict):
        if not isinstance(obs, dict) or obs.keys() != space.keys():
            raise ValueError(f"an observation must hold {', '.join(space)}")
        for name, part in space.items():
            _check_observation(part, obs[name], count)
        return
    box = cast(spaces.Box, space)
    check_array(obs, (count, *box.shape), cast(Any, box.dtype), "an observation")
    if box.dtype != np.uint8 and not ((obs >= box.low) & (obs <= box.high)).all():  # NaN is neither
        raise ValueError("an observation is not in its space")


def _check_info(info: Any, frames: int) -> None:
    if not isinstance(info, dict) or len(info) > MAX_INFO:
        raise ValueError(f"an info must be a map of at most {MAX_INFO} entries")
    for name, value in info.items():
        if not isinstance(value, bool | int | float | np.ndarray | np.generic):
            raise ValueError(f"{brief(name)} of an info is neither a number nor an array")
    for name, kind in (("chunk", int), ("seed", int), ("out_of_workspace", bool), ("out_of_horizon", bool)):
        if type(info.get(name)) is not kind:
            raise ValueError(f"{name} of an info must be {kind.__name__}, got {brief(info.get(name))}")
    check_poses(info.get("c2w"), (frames,), "c2w of an info")


def _scene(told: Mapping[str, Any], world: RemoteWorld) -> Scene:
    key, source, prompt, anchor = (told[name] for name in ("key", "intrinsics_source", "prompt", "anchor"))
    if not all(isinstance(text, str) for text in (key, source, prompt)) or not isinstance(anchor, dict | None):
        raise ValueError("a scene must have a key, a prompt and the source of its intrinsics as text")
    check_array(told["image"], (world.config.height, world.config.width, 3), np.uint8, "image")
    check_array(told["intrinsics"], (4,), np.float64, "intrinsics")
    place = None if anchor is None else Anchor(anchor["place"], anchor["c2w"])
    return Scene(key, world.weights_hash, told["image"], told["intrinsics"], None, place, source, prompt)
