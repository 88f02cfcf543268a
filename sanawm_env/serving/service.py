"""What a server does for its clients, on whatever port: sessions, their episodes, and answers to requests.

A session holds a client's episodes by number. It outlives a lost connection, and is deleted after `idle_minutes`
without a request. All of this runs in the thread of the event loop, except for the worker's steps and the packing of
replies.
"""

import asyncio
import json
import logging
import math
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
from gymnasium import spaces

from sanawm_env.envs.config import EnvConfig
from sanawm_env.envs.env import SanaWMEnv, read_generator
from sanawm_env.envs.observations import Observer, observer
from sanawm_env.serving.keep import Keep, Record
from sanawm_env.serving.limits import GB, MB, ServerLimits
from sanawm_env.serving.metrics import Metrics
from sanawm_env.serving.protocol import (
    IDLE,
    PIECE,
    Hello,
    Nothing,
    OfEpisode,
    Piece,
    Prompt,
    Reseed,
    Reset,
    Save,
    SceneAsked,
    ServedConfig,
    StepAsked,
)
from sanawm_env.serving.wire import VERSION, pack, unpack
from sanawm_env.serving.worker import Step, Worker
from sanawm_env.simulation.episode import Episode, Snapshot
from sanawm_env.simulation.simulator import MOST_CHUNKS
from sanawm_env.system.files import brief, check_count, explaining, reason
from sanawm_env.system.saving import Scratch
from sanawm_env.system.settings import read
from sanawm_env.world import tree
from sanawm_env.world.anchor import Anchor
from sanawm_env.world.state import Scene, check_seed

SAID = (ValueError, TypeError, FileNotFoundError)  # errors that are the client's to read
MOST_REPLY_BYTES = 2**28  # of observations in one reply
REPLIES = 8  # that are made ready at once, so that a large one holds no other up
MOST_HEAD_BYTES, BYTES_OF_EPISODE = 2**16, 2**11  # of a request's head: without its episodes, and for each
NUMBERS = 2**32  # of episodes, that a server may give within a session
HIDDEN = ("world", "scenes", "device", "world_options")  # of the environment: names of files, which are the server's
log = logging.getLogger(__name__)
_worked = time.thread_time  # seconds of the event loop's own work


class Refused(Exception):
    """A limit does not allow a request.

    Args:
        limit: its name, one of `metrics.REFUSALS`.
        sentence: the message.
    """

    def __init__(self, limit: str, sentence: str):
        super().__init__(sentence)
        self.limit = limit


class SessionLost(Exception):
    """A session that this server does not have."""


class EpisodeLost(Exception):
    """An episode that is not in its session: the client dropped it, or it was made after the session was last kept on
    disk."""


class Session:
    """What the server holds for one client.

    Attributes:
        id: its name.
        hello: the client's settings.
        look: makes observations.
        episodes: by number.
        bytes: of tensor memory that the episodes refer to, shared memory counted once.
        used: time of the last request.
        closing: closes its connection with a code; None without a connection.
    """

    def __init__(self, hello: Hello, look: Observer, folder: Path, now: float, name: str = ""):
        self.hello, self.look, self.folder, self.id = hello, look, folder, name or secrets.token_urlsafe(16)
        self.episodes: dict[int, Episode] = {}
        self.bytes = 0
        space = cast(Any, look.space)
        parts = space.values() if isinstance(space, spaces.Dict) else [space]
        self.obs_bytes = sum(math.prod(part.shape) * part.dtype.itemsize for part in parts)
        self.used = now
        self.closing: Callable[[int], Awaitable[None]] | None = None
        self.last = -1  # number of the last request
        self.reply: asyncio.Future[bytes] | None = None
        self.reply_bytes = 0  # which are kept for who asks again
        self.waits = False  # whether the last request waits for the one before it
        self.reading = 0.0  # seconds of work that it took to read
        self.steps = 0
        self.made = 0  # number of the last episode
        self.kept: set[int] = set()  # numbers of episodes that are on disk
        self._storages: dict[int, list[int]] = {}  # by address: how many tensors are in it, its bytes

    @property
    def held(self) -> int:
        """Bytes of its episodes and its last reply."""
        return self.bytes + self.reply_bytes

    @property
    def file(self) -> Path:
        """Path of the file that `save`, `read`, `write` and `load` use."""
        return self.folder / f"{self.id}.safetensors"

    def add(self, episode: Episode) -> int:
        """Store an episode under a new number, which is returned."""
        self.made += 1
        self.put(self.made, episode)
        return self.made

    def put(self, number: int, episode: Episode) -> None:
        """Store an episode under a number."""
        self.episodes[number] = episode
        for storage in _storages(episode):
            known = self._storages.setdefault(storage.data_ptr(), [0, storage.nbytes()])
            known[0] += 1
            if known[0] == 1:
                self.bytes += known[1]

    def drop(self, number: int) -> None:
        """Forget an episode; an unknown number is ignored."""
        episode = self.episodes.pop(number, None)
        if episode is None:
            return
        for storage in _storages(episode):
            known = self._storages[storage.data_ptr()]
            known[0] -= 1
            if not known[0]:
                self.bytes -= known[1]
                del self._storages[storage.data_ptr()]

    def get(self, numbers: Sequence[int]) -> list[Episode]:
        """The episodes of these numbers. Raises EpisodeLost for an unknown number."""
        for number in numbers:
            if number not in self.episodes:
                raise EpisodeLost(f"There is no episode {brief(number)} in this session.")
        return [self.episodes[number] for number in numbers]


def _storages(episode: Episode) -> list[Any]:
    kept = tree.leaves((episode.state.slots, episode.clip, episode.task_state))
    return [tensor.untyped_storage() for tensor in kept]


class Service:
    """An environment for many clients.

    Args:
        config: of the environment, with names and plain values only.
        limits: of the server.
        keep: folder of sessions on disk, which other services with the same folder can continue; None keeps none.
        clock: seconds.

    Raises:
        TypeError: for a config that holds objects; else as `SanaWMEnv`.
        ValueError: for limits out of range; else as `SanaWMEnv`.
    """

    def __init__(
        self,
        config: EnvConfig,
        limits: ServerLimits | None = None,
        keep: Keep | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        plain = config.to_plain()
        self.plain = {name: value for name, value in plain.items() if name not in HIDDEN}
        self.limits, self.keep, self.clock = limits or ServerLimits(), keep, clock
        self.limits.check()
        self.env = SanaWMEnv(**config.keywords)
        own = self.env.simulator
        self.simulator = replace(own, limits=replace(own.limits, max_episode_chunks=MOST_CHUNKS))  # clients count
        self.sessions: dict[str, Session] = {}
        self.metrics = Metrics()
        self.metrics.watch("sessions", "Sessions that are kept", lambda: len(self.sessions))
        self.metrics.watch("connections", "Clients that are connected", lambda: len(self._connected()))
        self.metrics.watch("episodes", "Episodes that are kept", lambda: sum(len(s.episodes) for s in self._all()))
        self.metrics.watch(
            "state_bytes", "Bytes of their states and last replies", lambda: sum(s.held for s in self._all())
        )
        self.worker = Worker(self.simulator, self.limits.batch, self._batched)
        self.metrics.watch("waiting", "Requests that wait for the world", lambda: self.worker.waiting)
        self._pool = ThreadPoolExecutor(REPLIES, "replies")
        self._most_head = MOST_HEAD_BYTES + BYTES_OF_EPISODE * self.limits.batch
        self._scratch = Scratch("sanawm-serve-")
        self._ops: dict[str, tuple[Any, Callable[..., Awaitable[dict[str, Any]]], tuple[str, ...]]] = {
            "reset": (Reset, self._reset, ("scenes", "task")),
            "step": (StepAsked, self._step, ("actions",)),
            "reseed": (Reseed, self._reseed, ()),
            "prompt": (Prompt, self._prompt, ()),
            "frames": (OfEpisode, self._frames, ()),
            "latents": (OfEpisode, self._latents, ()),
            "scene": (OfEpisode, self._scene, ()),
            "save": (Save, self._save, ()),
            "read": (Piece, self._read, ()),
            "write": (Piece, self._write, ("data",)),
            "load": (Nothing, self._load, ()),
            "drop": (Nothing, self._drop, ()),
        }  # what is read into a dataclass, who answers, and what may hold arrays

    def close(self) -> None:
        """Stop the worker and delete all sessions in memory."""
        self.worker.close()
        self._pool.shutdown(cancel_futures=True)
        self.sessions.clear()
        self._scratch.__exit__()

    # --- sessions ---

    async def welcome(self, message: bytes) -> tuple[Session, bytes]:
        """Answer a hello.

        Args:
            message: the first message of a connection.

        Returns:
            The session, new or continued, and the reply.

        Raises:
            Refused: where there is no room for another session.
            SessionLost: for an unknown session.
            ValueError: for anything but a hello of this version.
        """
        said = unpack(message)
        if said.pop("op", None) != "hello":
            raise ValueError("The first message must be a hello.")
        with explaining("This is no hello"):
            hello = read(Hello, said)
        if hello.version != VERSION:
            raise ValueError(
                f"This server speaks version {VERSION} of the protocol, not {brief(hello.version)}: install the same "
                "version of sanawm-env on both sides."
            )
        session = await self._known(hello.session) if hello.session else self._new(hello)
        config, limits = self.env.world.config, self.limits
        answer = {
            "version": VERSION,
            "session": session.id,
            "env": self.plain,
            "world": ServedConfig.plain(config),
            "mode": self.env.world.mode,
            "starts": len(self.env._scenes),
            "lost_after": 60.0 * limits.idle_minutes,
            "weights_hash": self.env.world.weights_hash,
            "limits": {each.name: float(getattr(limits, each.name)) for each in fields(limits)},
        }
        return session, pack(answer)

    async def _known(self, name: str) -> Session:
        session = self.sessions.get(name)
        if self.keep is not None and (kept := await self._aside(self.keep.read, name)) is not None:
            record, reply = kept
            if session is None or record.owner != self.keep.owner:  # it was elsewhere meanwhile
                try:
                    session = await self._take_over(name, record, reply)
                except ValueError as error:  # kept by a server of another version or environment
                    log.warning("Session %s cannot be continued: %s", name, error)
                    session = None
        if session is None:
            raise SessionLost(
                f"The server does not know this session: it was closed, was idle for {self.limits.idle_minutes:g} "
                "minutes, or belonged to a server that has ended. Reset, or load a saved snapshot."
            )
        self.metrics.resumed.inc()
        session.used = self.clock()
        return session

    async def _take_over(self, name: str, record: Record, reply: bytes) -> Session:
        """Continue a session that another server kept on disk."""
        if name in self.sessions:
            self._forget(self.sessions[name])
        episodes = await self._aside(self._read_kept, name, record.episodes)
        session = self._new(read(Hello, record.hello), name)
        for number, episode in episodes.items():
            session.put(number, episode)
            session.kept.add(number)
        session.last = record.last
        session.made = (record.made // NUMBERS + 1) * NUMBERS  # none that the other server may have given
        session.reply = asyncio.get_running_loop().create_future()
        session.reply.set_result(reply)
        await self._aside(self._write_kept, session, record.last, reply, True)
        self.metrics.taken_over.inc()
        return session

    def _new(self, hello: Hello, name: str = "") -> Session:
        """A session without episodes. Raises Refused where there is no room for one."""
        config, simulator = self.env.config, self.simulator
        mode, size = hello.obs_mode or config.obs_mode, hello.obs_size or config.obs_size
        look = observer(mode, self.env.world.config, size, simulator.limits.workspace, simulator.task)
        if len(self.sessions) >= self.limits.sessions:
            alone = [session for session in self._all() if session.closing is None]
            if not alone:
                raise Refused(
                    "sessions",
                    f"The server has {self.limits.sessions} sessions, and takes no more (--sessions): try again later.",
                )
            self.end(min(alone, key=lambda session: session.used))
        session = Session(hello, look, self._scratch.folder, self.clock(), name)
        self.sessions[session.id] = session
        return session

    def end(self, session: Session) -> None:
        """Delete a session, in memory and on disk."""
        self._forget(session)
        if self.keep is not None:
            self.keep.remove(session.id)

    def _forget(self, session: Session) -> None:
        self.sessions.pop(session.id, None)
        session.file.unlink(missing_ok=True)
        session.episodes.clear()

    async def sweep(self) -> None:
        """Delete sessions that were idle for too long, and close their connections."""
        now = self.clock()
        for session in self._all():
            working = session.reply is not None and not session.reply.done()
            if now - session.used > 60 * self.limits.idle_minutes and not working:
                self.metrics.refused.labels("idle").inc()
                self.end(session)
                if session.closing is not None:
                    await session.closing(IDLE)
        if self.keep is not None:  # of servers that are gone, and nobody has gone on with
            await self._aside(self.keep.sweep, 120 * self.limits.idle_minutes, set(self.sessions))

    def _all(self) -> list[Session]:
        return list(self.sessions.values())

    def _connected(self) -> list[Session]:
        return [session for session in self._all() if session.closing is not None]

    # --- answers ---

    async def answer(self, session: Session, message: bytes) -> bytes:
        """Answer a request. If the caller is cancelled, the request is still done, and its reply kept for a repetition.

        Args:
            session: of the client.
            message: the request.

        Returns:
            The reply.

        Raises:
            ValueError: for a message that is no request.
        """
        began = _worked()
        request = unpack(message, most=self._most_head)
        session.reading = _worked() - began
        number = request.pop("n", None)
        if type(number) is not int or number < session.last or not isinstance(request.get("op"), str):
            raise ValueError("This is no request: it needs an op, and a number n that is not below the last one.")
        session.used = self.clock()
        if number > session.last or session.reply is None:
            if session.waits:
                raise ValueError("A request waits already for the one before it.")
            before = session.reply
            session.last = number
            session.reply = asyncio.ensure_future(self._do(session, number, request, before))
        reply = await asyncio.shield(session.reply)
        session.used = self.clock()
        return reply

    async def _do(self, session: Session, number: int, request: dict, before: "asyncio.Future | None") -> bytes:
        if before is not None:
            session.waits = True
            await asyncio.wait([before])
            session.waits = False
        op, told = request.pop("op"), {}
        try:
            function, asked, rest = self._asked(session, op, request)
            told = await function(session, asked, **rest)
            self.metrics.requests.labels(op).inc()
            if self.keep is not None and "episodes" in told:
                session.steps += op == "step"
                told["kept"] = op != "step" or session.steps % self.keep.every == 0
            reply = await self._aside(pack, {"n": number, **told}, session.hello.encoding)
            session.reply_bytes = len(reply)
            if told.get("kept"):
                session.kept.update(told["episodes"])
                await self._aside(self._write_kept, session, number, reply)
            return reply
        except Exception as error:
            for each in told.get("episodes", ()):  # which nobody is told of
                session.drop(each)
            if isinstance(error, Refused):
                self.metrics.refused.labels(error.limit).inc()
            elif not isinstance(error, (EpisodeLost, *SAID)):
                log.exception("A request failed: %s", op)
                error = RuntimeError(f"The server failed: {reason(error)}.")
            return self.failure(error, number)

    def _asked(self, session: Session, op: str, request: dict) -> tuple[Callable, Any, dict[str, Any]]:
        """The function that answers a request, its fields, and its arrays. Dropped episodes are forgotten first."""
        began = _worked()
        try:
            dropped = request.pop("drop", [])
            if type(dropped) is not list or any(type(each) is not int for each in dropped):
                raise ValueError("drop must be a list of whole numbers.")
            for each in dropped:
                session.drop(each)
            if op not in self._ops:
                raise ValueError(f"There is no request {brief(op)}; requests are {', '.join(self._ops)}.")
            kind, function, others = self._ops[op]
            if missing := [name for name in others if name not in request]:
                raise ValueError(f"The request {op} needs {', '.join(missing)}.")
            rest = {name: request.pop(name) for name in others}
            with explaining(f"This is no request {op}"):
                return function, read(kind, request), rest
        finally:
            session.reading += _worked() - began

    def failure(self, error: Exception, number: int | None = None) -> bytes:
        """A reply that holds an error.

        Args:
            error: the error.
            number: of the request, if it had one.
        """
        known = (Refused, SessionLost, EpisodeLost, *SAID)
        kind = next((each.__name__ for each in known if isinstance(error, each)), "RuntimeError")
        self.metrics.errors.labels(kind).inc()
        return pack({"n": number, "error": {"type": kind, "says": str(error)[:2000]}})

    async def _reset(self, session: Session, asked: Reset, scenes: Any, task: Any) -> dict[str, Any]:
        self._check_room(session, len(asked.seeds))
        if type(scenes) is not list or not len(scenes) == len(asked.seeds) == len(asked.rngs):
            raise ValueError("A reset needs a scene, a seed and a generator for each episode.")
        if not isinstance(task, Mapping):
            raise TypeError('options["task"] must be a mapping.')
        chunks, most = task.get("chunks"), self.limits.goal_chunks
        if isinstance(chunks, int | np.integer) and chunks > most:
            raise Refused(
                "goal", f"A goal may be at most {most} steps away here, got {brief(int(chunks))}: ask for fewer chunks."
            )
        limits = replace(self.simulator.limits, max_episode_chunks=asked.max_episode_chunks)
        simulator = replace(self.simulator, limits=limits)  # tasks look how far a goal may be
        rngs, seeds = [read_generator(text) for text in asked.rngs], [check_seed(seed) for seed in asked.seeds]

        def begin() -> list[Episode]:
            return simulator.reset([self._begin(scene) for scene in scenes], seeds, rngs, task)

        after = await asyncio.wrap_future(self.worker.call(begin))
        states = [json.dumps(rng.bit_generator.state, default=np.ndarray.tolist) for rng in rngs]
        return await self._told(session, after, rngs=states)

    def _begin(self, scene: Any) -> Scene:
        """The scene that a client asked for: one of the server's, or an image; never a path."""
        if not isinstance(scene, dict):
            raise ValueError(f"A scene must be a map, got {brief(scene)}.")
        arrays = {name: scene.pop(name, None) for name in ("image", "intrinsics", "c2w")}
        asked = read(SceneAsked, scene)
        if any(not isinstance(array, np.ndarray | None) for array in arrays.values()):
            raise ValueError("Image, intrinsics and c2w of a scene must be arrays.")
        anchor = None if asked.place is None else Anchor(asked.place, arrays["c2w"])
        options = {"prompt": asked.prompt, "fov_deg": asked.fov_deg, "anchor": anchor}
        image = arrays["image"] if asked.number is None else asked.number
        return self.env._scene(image, options | {"intrinsics": arrays["intrinsics"]})

    async def _step(self, session: Session, asked: StepAsked, actions: Any) -> dict[str, Any]:
        self._check_room(session, len(asked.episodes))
        episodes = session.get(asked.episodes)
        if not isinstance(actions, np.ndarray) or actions.shape[:1] != (len(episodes),):
            raise ValueError("A step needs an action for each episode, in one array.")
        if asked.numbers is not None and len(asked.numbers) != len(episodes):
            raise ValueError("numbers of a step must be one for each episode, or None.")
        step = Step(session.id, episodes, list(actions), asked.batching, asked.numbers)
        result = await asyncio.wrap_future(self.worker.step(step))
        self.metrics.steps.inc(len(episodes))
        self.metrics.seconds.labels("waited").observe(result.waited)
        times = {"waited": result.waited, "took": result.took, "batch": result.batch}
        return await self._told(session, result.after, rewards=result.rewards, times=times)

    async def _reseed(self, session: Session, asked: Reseed) -> dict[str, Any]:
        self._check_room(session, len(asked.episodes))
        pairs = _pairs(session.get(asked.episodes), asked.seeds)
        return await self._told(session, [episode.reseed(seed) for episode, seed in pairs])

    async def _prompt(self, session: Session, asked: Prompt) -> dict[str, Any]:
        self._check_room(session, len(asked.episodes))
        world, pairs = self.env.world, _pairs(session.get(asked.episodes), asked.prompts)

        def prompted() -> list[Episode]:
            return [replace(episode, state=world.with_prompt(episode.state, text)) for episode, text in pairs]

        return await self._told(session, await asyncio.wrap_future(self.worker.call(prompted)))

    async def _told(self, session: Session, after: Sequence[Episode], **more: Any) -> dict[str, Any]:
        """Store new episodes, and the reply that tells the client of them."""
        began = self.clock()

        def tell() -> tuple[list[Episode], Any, list[dict[str, Any]]]:
            own = [episode.with_own_clip() for episode in after]  # none keeps the frames of others alive
            return own, session.look(own), [self.simulator.info(episode) for episode in own]

        own, obs, infos = await self._aside(tell)
        self.metrics.seconds.labels("observed").observe(self.clock() - began)
        return {
            "episodes": [session.add(episode) for episode in own],
            "obs": obs,
            "infos": infos,
            "terminated": [episode.terminated for episode in own],
            "rows": [list(episode.batch_row) for episode in own],
            **more,
        }

    async def _frames(self, session: Session, asked: OfEpisode) -> dict[str, Any]:
        (episode,) = session.get([asked.episode])
        clip = await self._aside(lambda: episode.host_clip(self.env.world.config.chunk_frames))
        return {"frames": clip.frames}

    async def _latents(self, session: Session, asked: OfEpisode) -> dict[str, Any]:
        (episode,) = session.get([asked.episode])
        latents = episode.slot.latents
        if latents is None:
            raise ValueError(f"The {self.env.world.config.name} world has no latents.")
        return {"latents": await self._aside(lambda: latents[0].float().cpu().numpy())}

    async def _scene(self, session: Session, asked: OfEpisode) -> dict[str, Any]:
        (episode,) = session.get([asked.episode])
        scene = episode.slot.scene
        told = {name: getattr(scene, name) for name in ("key", "image", "intrinsics", "intrinsics_source", "prompt")}
        anchor = None if scene.anchor is None else {"place": scene.anchor.place, "c2w": scene.anchor.c2w}
        return told | {"anchor": anchor}

    async def _save(self, session: Session, asked: Save) -> dict[str, Any]:
        (episode,) = session.get([asked.episode])
        snapshot = Snapshot.of(episode, self.env.action_mode, asked.rng)
        await self._aside(lambda: snapshot.save(session.file))
        return {"bytes": session.file.stat().st_size}

    async def _read(self, session: Session, asked: Piece) -> dict[str, Any]:
        if not session.file.exists():
            raise ValueError("There is no file in this session: save a snapshot first.")
        check_count("offset", asked.offset, 0, 2**62)

        def piece() -> np.ndarray:
            with session.file.open("rb") as file:
                file.seek(asked.offset)
                return np.frombuffer(file.read(PIECE), np.uint8)

        return {"data": await self._aside(piece)}

    async def _write(self, session: Session, asked: Piece, data: Any) -> dict[str, Any]:
        if not isinstance(data, np.ndarray) or data.ndim != 1 or data.dtype != np.uint8:
            raise ValueError("data of a write must be a uint8 array (n,).")
        most = self.limits.state_gb * GB / self.limits.sessions
        if asked.offset + len(data) > most:
            raise Refused("state", f"A file may have at most {most / MB:,.0f} MB, the session's share of --state-gb.")

        def write() -> None:
            size = session.file.stat().st_size if session.file.exists() else 0
            if asked.offset not in (0, size):
                raise ValueError(f"Pieces of a file must be sent in order: offset must be 0 or {size}.")
            with session.file.open("ab" if asked.offset else "wb") as file:
                file.write(data.tobytes())

        await self._aside(write)
        return {}

    async def _load(self, session: Session, asked: Nothing) -> dict[str, Any]:
        self._check_room(session, 1)
        try:
            snapshot = await asyncio.wrap_future(self.worker.call(lambda: self._load_file(session.file)))
        except (ValueError, TypeError, FileNotFoundError) as error:  # the name is of no use to a client
            raise type(error)(str(error).replace(str(session.file), "The file that was sent")) from error
        session.file.unlink(missing_ok=True)
        return await self._told(session, [snapshot.episode], rng=snapshot.rng)

    async def _drop(self, session: Session, asked: Nothing) -> dict[str, Any]:
        return {}

    async def _aside(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._pool, function, *arguments)

    def _write_kept(self, session: Session, last: int, reply: bytes, take: bool = False) -> None:
        """Write a session to disk as it is after request `last`."""
        assert self.keep is not None
        kept = session.kept & session.episodes.keys()
        new = [number for number in kept if not self.keep.file(session.id, number).exists()]
        snapshots = {number: Snapshot.of(session.episodes[number], self.env.action_mode) for number in new}
        hello = {each.name: getattr(session.hello, each.name) for each in fields(Hello)}
        record = Record(hello=hello, last=last, made=session.made, episodes=tuple(sorted(kept)), owner=self.keep.owner)
        self.keep.write(session.id, record, reply, snapshots, take)
        session.kept = kept

    def _read_kept(self, name: str, numbers: Sequence[int]) -> dict[int, Episode]:
        """The episodes of a session on disk; those without a file were dropped, unreadable ones are lost."""
        assert self.keep is not None
        files = {number: self.keep.file(name, number) for number in numbers}
        read = {}
        for number, file in files.items():
            try:
                if file.exists():
                    read[number] = self._load_file(file).episode
            except (ValueError, TypeError, OSError) as error:
                log.warning("Episode %d of session %s is lost: %s", number, name, error)
        return read

    def _load_file(self, file: Path) -> Snapshot:
        kind = self.simulator.task.state_type
        snapshot = Snapshot.load(file, self.env.world, *([kind] if is_dataclass(kind) else []))
        self.env.check_snapshot(snapshot)
        return snapshot

    def _check_room(self, session: Session, more: int) -> None:
        """Raise Refused where the session has no room for `more` episodes."""
        limits = self.limits
        if more > limits.batch:
            raise Refused("batch", f"A request may have at most {limits.batch} episodes (--batch), got {more}.")
        if more < 1:
            raise ValueError("A request needs at least one episode.")
        if more * session.obs_bytes > MOST_REPLY_BYTES:
            raise Refused(
                "message",
                f"{more} observations of {session.obs_bytes / MB:,.1f} MB do not fit into a reply "
                f"({MOST_REPLY_BYTES / MB:,.0f} MB): step fewer episodes, or choose a smaller obs_size.",
            )
        if len(session.episodes) + more > limits.episodes:
            raise Refused(
                "episodes",
                f"A session keeps at most {limits.episodes} episodes: delete snapshots that you do not need.",
            )
        most = limits.state_gb * GB
        if sum(each.held for each in self._all()) > most and session.held > most / limits.sessions:
            raise Refused(
                "state",
                f"The episodes of all clients take over {limits.state_gb:g} GB, and yours {session.held / MB:,.0f} MB, "
                "which is more than an equal share: delete snapshots that you do not need, or choose a smaller "
                "obs_size.",
            )

    def _batched(self, episodes: int, took: float) -> None:
        self.metrics.batch.observe(episodes)
        self.metrics.seconds.labels("batch").observe(took)


def _pairs(episodes: Sequence[Episode], values: Sequence[Any]) -> list[tuple[Episode, Any]]:
    if len(values) != len(episodes):
        raise ValueError(f"A request needs one value for each of its {len(episodes)} episodes, got {len(values)}.")
    return list(zip(episodes, values, strict=True))
