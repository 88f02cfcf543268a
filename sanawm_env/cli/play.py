"""`sanawm play`: the live viewer, with what the other rooms can do on its stage."""

import ipaddress
import itertools
import re
import threading
import time
import webbrowser
from collections.abc import Callable
from concurrent.futures import CancelledError
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console

from sanawm_env.agents import cameras
from sanawm_env.agents.planners import CEM, ImageGoal, Objective, Plan, Planner, PointGoal, RandomShooting
from sanawm_env.agents.policy_file import read_weights
from sanawm_env.camera.presets import held_keys
from sanawm_env.camera.trajectory import orthonormalize
from sanawm_env.envs.env import SanaWMEnv
from sanawm_env.recording.episode import EpisodeWriter, Step
from sanawm_env.recording.rollout import check_writable
from sanawm_env.recording.video import VideoWriter
from sanawm_env.simulation.controllers import make_controller
from sanawm_env.simulation.episode import Snapshot
from sanawm_env.simulation.simulator import Simulator
from sanawm_env.viewer.page import Backstage, Page
from sanawm_env.viewer.playback import Decision, Driver, Imagined
from sanawm_env.viewer.session import GB, Film, Session
from sanawm_env.world.files import brief, check_count, check_number, read_json, reason
from sanawm_env.world.folders import known_worlds
from sanawm_env.world.reading import read
from sanawm_env.world.thumbnails import thumbnail
from sanawm_env.world.world import World

if TYPE_CHECKING:
    from sanawm_env.cli import Play

VIDEO_WIDTH = 512  # pixels that a video has at least
FUTURES = 12  # drawn of those a planner has imagined
ARRIVED_METRES, ARRIVED_DEGREES = 0.35, 20.0
MOST = {"horizon": 32, "candidates": 1024}  # of a planner that somebody waits for
FAR = 1e6  # metres
MAX_SETTINGS_BYTES = 2**20
FORMS = "a camera, explore, image:NODE, point:X,Z or policy:FOLDER"


def play(options: "Play", console: Console) -> None:
    """Load, open the page, wait for Ctrl-C. Raises ValueError, TypeError or OSError in one sentence."""
    check_writable(options.out)
    if not options.memory_limit_gb > 0:
        raise ValueError(f"--memory-limit-gb must be above zero, got {options.memory_limit_gb}.")
    if not 0 <= options.port <= 65535:
        raise ValueError(f"--port must be from 0 (a free one) to 65535, got {options.port}.")
    for name in options.allow_host:
        if not re.fullmatch(r"[\w.-]+", name):
            raise ValueError(f"--allow-host takes a host name such as hub.example.org, got {brief(name)}.")
    session = begin(options.world, options)
    try:
        driver = None if options.driver is None else make_driver(options.driver, session)
        page = Page(session, backstage(options), options.host, options.port, options.allow_host)
    except BaseException:
        session.close()
        raise
    try:
        page.player.stage(driver)
        if not is_loopback(options.host):
            console.print(
                f"Whoever reaches {options.host} can drive this session, upload images and write files to "
                f"{options.out}. A tunnel is safer: ssh -L {page.port}:localhost:{page.port} this-machine",
                style="yellow", soft_wrap=True,
            )  # fmt: skip
        console.print(f"{page.url}  (Ctrl-C ends it)", highlight=False, soft_wrap=True)
        if not options.no_browser:
            webbrowser.open(page.url)
        while True:  # not for ever at once: a Ctrl-C that comes just before a wait begins would be slept through
            time.sleep(1)
    finally:
        page.close()


def begin(name: str, options: "Play") -> Session:
    """A session in a world, at its first scene or, for the world that was asked for, where the options say."""
    asked = name == options.world
    world = World.load(name, options.device, **(options.load_options if asked else {}))  # others have their own
    session = Session(world, options.memory_limit_gb * GB, seed=options.seed, name=name)
    try:
        if asked and options.session is not None:
            session.open(options.session)
        elif asked and options.image is not None:
            session.begin(options.image, options.prompt, options.fov_deg, options.seed)
        elif world.starts:
            session.begin(0, options.prompt if asked else "", options.fov_deg, options.seed)
    except BaseException:
        session.close()
        raise
    return session


def backstage(options: "Play") -> Backstage:
    """What a page may ask for; files go to the folder `options.out`."""
    return Backstage(
        record=lambda film, kind: record(film, kind, options.out),
        driver=make_driver,
        drivers=("explore", *cameras.CAMERAS),
        sessions=options.out / "sessions",
        session=lambda name: begin(name, options),
        worlds=sorted({options.world, "streaming", *known_worlds()}),
    )


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches that address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


# --- writing branches down ---


def record(film: Film, kind: str, out: Path) -> Path:
    """Write a branch to `out`: as "mp4", or as "episode", a folder of `recording.episode`. Errors of those."""
    if kind not in ("mp4", "episode"):
        raise ValueError(f'A branch is recorded as "mp4" or "episode", not {kind!r}.')
    check_writable(out)
    last, suffix = film.nodes[-1].id, ".mp4" if kind == "mp4" else ""
    names = (f"{kind if not suffix else 'branch'}_{last}{again}{suffix}" for again in _again())
    path = next(out / name for name in names if not (out / name).exists())
    upscale = max(1, VIDEO_WIDTH // film.start.image.shape[1])
    if kind == "mp4":
        with VideoWriter(path, fps=film.fps, upscale=upscale) as video:
            video.append(film.start.image[None])
            for frames in film.chunks():
                video.append(frames)
        return path
    with episode_writer(film, path, upscale) as writer:
        for node, frames in zip(film.nodes[1:], film.chunks(), strict=True):
            now, ended = film.session.snapshot(node.id), node is film.nodes[-1]
            prompt = now.slot.scene.prompt
            writer.add(Step(frames, node.c2w, node.c2w, 0.0, False, ended, now.batch_row, prompt))
    return path


def episode_writer(film: Film, path: Path, upscale: int) -> EpisodeWriter:
    """For a branch as an episode that can be imagined again: its actions are the poses. ValueError for one that cannot,
    because other noise was drawn on the way, or that has no chunk."""
    seeds = {node.seed for node in film.nodes}
    if len(seeds) > 1:
        raise ValueError("This branch was dreamt again on its way, and an episode has one seed: record it as mp4.")
    if len(film.nodes) < 2:
        raise ValueError("An episode has at least one chunk: drive on before you record it.")
    world = film.session.world
    env = SanaWMEnv(world, action_mode="poses", max_episode_chunks=len(film.nodes) - 1, horizon="reanchor")
    env.episode = film.session.snapshot(film.nodes[0].id).episode
    usual = asdict(type(world.options)())
    options = {name: value for name, value in asdict(world.options).items() if value != usual[name]}
    config = replace(env.config, world=film.session.name, world_options=options)
    meta = {"title": f"{film.session.name} · {film.nodes[-1].title}", "moves": [node.title for node in film.nodes[1:]]}
    return EpisodeWriter(path, env, film.nodes[0].seed, meta, config, upscale=upscale)


def _again():
    yield ""
    yield from (f"_{i}" for i in itertools.count(2))


# --- drivers ---


def make_driver(text: str, session: Session) -> Driver:
    """Who drives, by text: "orbit:radius=2,degrees=60" or another camera of `agents.cameras`; "explore" (a planner that
    goes where it has not been), "image:NODE" and "point:X,Z" (planners to what a node shows, to a place), all three
    with settings such as "explore:horizon=3,candidates=16"; "policy:FOLDER", a training of `agents.train_ppo`.

    ValueError or OSError in one sentence for anything else.
    """
    name, _, rest = text.strip().partition(":")
    if name in cameras.CAMERAS:
        return CameraDriver(text, cameras.parse(text), session.frames_per_chunk, session.fps)
    if name == "policy" and rest:
        return policy(Path(rest), session)
    values, settings = [], {}
    for part in filter(None, rest.split(",")):
        key, equals, value = part.partition("=")
        if not equals:
            values.append(part)
        elif key not in MOST or key in settings:
            raise ValueError(f"A planner takes horizon and candidates, each once, not {brief(part)}.")
        else:
            settings[key] = check_count(f"{key} of a planner", _number(int, value, f"{key} of a planner"), 1, MOST[key])
    config = session.world.config
    controller = make_controller("twist", config, None, "hold", config.workspace)
    simulator = replace(session.simulator, controller=controller)
    if name == "explore" and not values:
        planner = RandomShooting(**{"horizon": 2, "candidates": 8, "batch": 8, **settings})
        return PlannerDriver(text, planner, simulator, Unseen(session), lambda snapshot: False)
    elites = min(3, settings.get("candidates", 3))
    planner = CEM(**{"horizon": 2, "candidates": 12, "iterations": 2, "elites": elites, **settings})
    if name == "image" and len(values) == 1:
        node = session.tree[_number(int, values[0], "The node to go back to")]
        goal = ImageGoal(session.snapshot(node.id).slot.frame, step_frames=config.chunk_frames)
        return PlannerDriver(text, planner, simulator, goal, lambda there: _near(there.slot.c2w, node.c2w[-1]))
    if name == "point" and len(values) == 2:
        what = "A place to go to"
        x, z = (check_number(f"{what}, in metres,", _number(float, value, what), -FAR, FAR) for value in values)
        point = np.array([x, 0.0, z])
        return PlannerDriver(
            text, planner, simulator, PointGoal(point, step_frames=config.chunk_frames),
            lambda there: bool(np.linalg.norm(there.slot.c2w[:3, 3] - point) < ARRIVED_METRES),
        )  # fmt: skip
    raise ValueError(f"There is no driver {brief(text)}: it is {FORMS}; cameras are {', '.join(cameras.CAMERAS)}.")


@dataclass
class CameraDriver:
    """Follows a scripted path from wherever it is put."""

    name: str
    camera: cameras.Camera
    frames: int
    fps: float
    done: int = 0

    def __call__(self, snapshot: Snapshot) -> Decision:
        path = self.camera.poses(self.done + self.frames + 1, self.fps)[self.done :]
        self.done += self.frames
        return Decision(orthonormalize(snapshot.slot.c2w) @ np.linalg.inv(path[0]) @ path[1:])


@dataclass
class PlannerDriver:
    """Imagines futures, does the first step of the best, imagines again."""

    name: str
    planner: Planner
    simulator: Simulator
    objective: Objective
    arrived: Callable[[Snapshot], bool]
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))
    previous: Plan | None = None
    given_up: threading.Event = field(default_factory=threading.Event)

    def give_up(self) -> None:
        self.given_up.set()

    def __call__(self, snapshot: Snapshot) -> Decision:
        if self.arrived(snapshot):
            return Decision(None)
        here = replace(snapshot.episode, controller_state=self.simulator.controller.start())
        seen: list[tuple[float, Imagined]] = []

        def watched(frames: torch.Tensor, c2w: NDArray) -> NDArray:
            if self.given_up.is_set():
                raise CancelledError("Nobody waits for this any more.")
            scores = self.objective(frames, c2w)
            ends = map(thumbnail, frames[:, -1].cpu().numpy())
            seen.extend(zip(scores, map(Imagined, c2w, ends), strict=True))
            return scores

        self.previous = self.planner.plan(self.simulator, here, watched, self.rng, self.previous)
        last = seen[-self.planner.candidates :]  # of the last iteration
        best = sorted(last, key=lambda scored: -scored[0])[:FUTURES]
        return Decision(self.previous.actions[0], tuple(future for _, future in best))


@dataclass(frozen=True, eq=False)
class Unseen:
    """How far futures lead from all views that a session has had: metres, and half a metre for looking back."""

    session: Session

    def __call__(self, frames: torch.Tensor, c2w: NDArray) -> NDArray:
        had = np.stack([node.c2w[-1] for node in self.session.tree.nodes.values()])  # (N, 4, 4)
        step = self.session.frames_per_chunk
        ends = c2w[:, step - 1 :: step, None]  # (n, horizon, 1, 4, 4)
        away = np.linalg.norm(ends[..., :3, 3] - had[:, :3, 3], axis=-1)
        turned = 0.25 * (1 - (ends[..., :3, 2] * had[:, :3, 2]).sum(-1))
        return (away + turned).min(axis=-1).mean(axis=-1)


@dataclass
class PolicyDriver:
    """Does what a trained policy would do, by the pictures alone."""

    name: str
    predict: Callable[[Any], Any]
    env: SanaWMEnv
    frames: int

    def __call__(self, snapshot: Snapshot) -> Decision:
        self.env.episode = replace(snapshot.episode, controller_state=self.env.controller.start())
        action = self.predict(self.env.observation)
        if self.env.action_mode == "twist":
            return Decision(action)
        held = self.env.controller.table[int(action)] if self.env.action_mode == "discrete" else held_keys(action)
        return Decision(f"{''.join(held) or 'none'}-{self.frames}")


def policy(folder: Path, session: Session) -> PolicyDriver:
    """The policy in the folder of a training. Its weights are read, nothing in it is unpickled.

    Raises FileNotFoundError for no training, ValueError for one that needs a goal, ImportError without
    Stable-Baselines3.
    """
    from sanawm_env.agents.train_ppo import TrainPPO, fresh, make_envs

    settings_file, policy_file = folder / "settings.json", folder / "policy.zip"
    if not settings_file.exists() or not policy_file.exists():
        raise FileNotFoundError(f"There is no training in {folder}: it is a folder with settings.json and policy.zip.")
    try:
        kept = read_json(settings_file, MAX_SETTINGS_BYTES)
        settings = read(TrainPPO, kept | {"num_envs": 1, "device": str(session.world.device)})
    except ValueError as error:
        raise ValueError(f"{settings_file} does not describe a training: {reason(error)}.") from error
    if settings.obs_mode == "dict":
        raise ValueError(f"The policy in {folder} looks for a goal, and none is set here: train one with obs_mode rgb.")
    model = fresh(settings, make_envs(settings))
    try:
        model.policy.load_state_dict(read_weights(policy_file, session.world.device))
    except (ValueError, RuntimeError) as error:  # torch has the latter for other shapes
        raise ValueError(f"{policy_file} is not the policy of these settings: {reason(error)}.") from error
    env = SanaWMEnv(
        session.world, obs_mode=settings.obs_mode, action_mode=settings.action_mode, obs_size=settings.obs_size
    )
    return PolicyDriver(
        f"policy:{folder}", lambda seen: model.predict(seen, deterministic=True)[0], env, session.frames_per_chunk
    )


def _near(here: NDArray, there: NDArray) -> bool:
    """Whether two poses (4, 4) are within 0.35 m and 20 degrees of each other."""
    turn = np.degrees(np.arccos(np.clip((np.trace(here[:3, :3].T @ there[:3, :3]) - 1) / 2, -1, 1)))
    return bool(np.linalg.norm(here[:3, 3] - there[:3, 3]) < ARRIVED_METRES and turn < ARRIVED_DEGREES)


def _number(kind: type, text: str, what: str) -> Any:
    try:
        return kind(text)
    except ValueError:
        raise ValueError(f"{what} must be a number, got {brief(text)}.") from None
