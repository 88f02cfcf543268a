"""`sanawm play`: the live viewer, with what it needs for recording, drivers and other worlds."""

import itertools
import re
import time
import webbrowser
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import tyro

from sanawm_env.cli.arguments import LoadedWorld, Start, listed
from sanawm_env.cli.output import say
from sanawm_env.system.addresses import is_loopback
from sanawm_env.system.files import brief, check_choice, check_count, check_number, explaining, read_json

if TYPE_CHECKING:
    from sanawm_env.cli.drivers import PolicyDriver
    from sanawm_env.recording.episode import EpisodeWriter
    from sanawm_env.simulation.episode import Snapshot
    from sanawm_env.viewer.page import Services
    from sanawm_env.viewer.playback import Driver
    from sanawm_env.viewer.session import Film, Session

VIDEO_WIDTH = 512  # pixels that a video has at least
MOST = {"horizon": 32, "candidates": 1024}  # of a planner that somebody waits for
MOST_METRES = 1e6
MAX_SETTINGS_BYTES = 2**20
FORMS = "a camera, explore, image:NODE, point:X,Z or policy:FOLDER"


@dataclass(frozen=True, kw_only=True)
class Play(Start, LoadedWorld):
    """Walk through a world in the browser: move, go back, branch, record."""

    session: Path | None = None
    """Saved session to continue, instead of an image."""
    driver: str | None = None
    """What moves the camera at first; None for the keys.
    A camera ("orbit:radius=2,degrees=60"), explore, image:NODE, point:X,Z (metres) or policy:FOLDER."""
    port: int = 8123
    """Port to listen on; 0 for a free one."""
    host: str = "127.0.0.1"
    """Address to listen on; any other than this machine's own lets others move the camera."""
    allow_host: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Host name by which browsers reach the page through a proxy, such as hub.example.org. May be given several times;
    requests to other names are refused."""
    no_browser: bool = False
    """Do not open a browser, for remote machines."""
    memory_limit_gb: float = 4.0
    """Memory in GB for snapshots on the device; older ones move to the host's memory and then to disk."""
    out: Path = Path("runs/play")
    """Folder for recordings and saved sessions; made if missing."""

    def run(self) -> None:
        """Load the world, open the page, and wait for Ctrl-C.

        Raises:
            ValueError: for options out of range, and as the session and the driver.
            OSError: for a folder that cannot be written, or a port in use.
            ImportError: without websockets.
        """
        from sanawm_env.system.packages import needing

        with needing("The viewer needs websockets", "viewer"):
            from sanawm_env.viewer.page import Page
        from sanawm_env.recording.rollout import check_writable

        check_writable(self.out)
        check_number("--memory-limit-gb", self.memory_limit_gb, 1e-6, 1e6)
        check_count("--port", self.port, 0, 65535)
        for name in self.allow_host:
            if not re.fullmatch(r"[\w.-]+", name):
                raise ValueError(f"--allow-host takes a host name such as hub.example.org, got {brief(name)}.")
        with ExitStack() as stack:
            session = self.begin(self.world)
            stack.callback(session.close)
            driver = None if self.driver is None else make_driver(self.driver, session)
            page = Page(session, self.services(), self.host, self.port, self.allow_host)
            stack.callback(page.close)
            page.player.stage(driver)
            if not is_loopback(self.host):
                say(
                    f"Whoever reaches {self.host} can drive this session, upload images and write files to "
                    f"{self.out}. A tunnel is safer: ssh -L {page.port}:localhost:{page.port} this-machine",
                    style="yellow",
                )
            say(f"{page.url}  (Ctrl-C ends it)")
            if not self.no_browser:
                webbrowser.open(page.url)
            while True:  # not for ever at once: a Ctrl-C that comes just before a wait begins would be slept through
                time.sleep(1)

    def begin(self, name: str) -> "Session":
        """A session in a world: at its first scene or, in the world that was asked for, where the options say."""
        from sanawm_env.viewer.session import GB, Session
        from sanawm_env.world.world import World

        asked = name == self.world
        world = self.load() if asked else World.load(name, self.device)  # with options of its own
        session = Session(world, self.memory_limit_gb * GB, seed=self.seed, name=name)
        try:
            if asked and self.session is not None:
                session.open(self.session)
            elif asked and self.image is not None:
                session.begin(self.image, self.prompt, self.fov_deg, self.seed)
            elif world.starts:
                session.begin(self.usual(world.starts), self.prompt if asked else "", self.fov_deg, self.seed)
        except BaseException:
            session.close()
            raise
        return session

    def services(self) -> "Services":
        """What a page may ask for. Files are written to the folder `out`."""
        from sanawm_env.agents.cameras import CAMERAS
        from sanawm_env.viewer.page import Services
        from sanawm_env.world.folders import known_worlds

        return Services(
            record=lambda film, kind: record(film, kind, self.out),
            driver=make_driver,
            drivers=("explore", *CAMERAS),
            sessions=self.out / "sessions",
            session=self.begin,
            worlds=sorted({self.world, "streaming", *known_worlds()}),
        )


# --- writing branches down ---


def record(film: "Film", kind: str, out: Path) -> Path:
    """Write a branch to a folder.

    Args:
        film: the branch.
        kind: "mp4" for a video, or "episode" for a folder of `recording.episode`.
        out: the folder.

    Returns:
        The new file or folder.

    Raises:
        ValueError: for another kind, or a branch that is no episode.
        OSError: for a folder that cannot be written.
    """
    from sanawm_env.recording.episode import Step
    from sanawm_env.recording.rollout import check_writable
    from sanawm_env.recording.video import VideoWriter

    check_choice("kind of a recording", kind, ("mp4", "episode"))
    check_writable(out)
    last, suffix = film.nodes[-1].id, ".mp4" if kind == "mp4" else ""
    names = (
        f"{kind if not suffix else 'branch'}_{last}{again}{suffix}"
        for again in itertools.chain([""], (f"_{i}" for i in itertools.count(2)))
    )
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


def episode_writer(film: "Film", path: Path, upscale: int) -> "EpisodeWriter":
    """The writer of a branch as an episode that can be repeated; its actions are the poses.

    Raises:
        ValueError: for a branch without a chunk, or that was predicted with several seeds.
    """
    from sanawm_env.envs.env import SanaWMEnv
    from sanawm_env.recording.episode import EpisodeWriter

    seeds = {node.seed for node in film.nodes}
    if len(seeds) > 1:
        raise ValueError("This branch was predicted with several seeds, and an episode has one: record it as mp4.")
    if len(film.nodes) < 2:
        raise ValueError("An episode has at least one chunk: move the camera before you record it.")
    world = film.session.world
    env = SanaWMEnv(world, action_mode="poses", max_episode_chunks=len(film.nodes) - 1, horizon="reanchor")
    env.episode = film.session.snapshot(film.nodes[0].id).episode
    usual = asdict(type(world.options)())
    options = {name: value for name, value in asdict(world.options).items() if value != usual[name]}
    config = replace(env.config, world=film.session.name, world_options=options)
    meta = {"title": f"{film.session.name} · {film.nodes[-1].title}", "moves": [node.title for node in film.nodes[1:]]}
    return EpisodeWriter(path, env, config, film.nodes[0].seed, meta, upscale=upscale)


# --- drivers ---


def make_driver(text: str, session: "Session") -> "Driver":
    """Make a driver from text.

    Args:
        text: a camera of `agents.cameras`, such as "orbit:radius=2,degrees=60"; "explore", a planner that looks for new
            views; "image:NODE" and "point:X,Z", planners that go to the view of a node or to a position in metres; or
            "policy:FOLDER", a training of `agents.train_ppo`. Planners take settings, as in
            "explore:horizon=3,candidates=16".
        session: to drive in.

    Raises:
        ValueError: for anything else.
        OSError: for a policy that cannot be read.
    """
    import numpy as np

    from sanawm_env.agents import cameras
    from sanawm_env.agents.planners import CEM, ImageGoal, PointGoal, RandomShooting
    from sanawm_env.cli.drivers import ARRIVED_METRES, CameraDriver, PlannerDriver, Unseen, near
    from sanawm_env.simulation.controllers import make_controller

    name, _, rest = text.strip().partition(":")
    if name in cameras.CAMERAS:
        return CameraDriver(text, cameras.parse(text), session.frames_per_chunk, session.fps)
    if name == "policy" and rest:
        return policy(Path(rest), session)
    values: list[str] = []
    settings: dict[str, Any] = {}
    for part in filter(None, rest.split(",")):
        key, equals, value = part.partition("=")
        if not equals:
            values.append(part)
        elif key not in MOST or key in settings:
            raise ValueError(f"A planner takes horizon and candidates, each once, not {brief(part)}.")
        else:
            (number,) = listed(int, value, f"{key} of a planner must be a number")
            settings[key] = check_count(f"{key} of a planner", number, 1, MOST[key])
    config = session.world.config
    controller = make_controller("twist", config, None, "hold", config.workspace)
    simulator = replace(session.simulator, controller=controller)
    if name == "explore" and not values:
        settings = {"horizon": 2, "candidates": 8, "batch": 8, **settings}
        planner = RandomShooting(**settings)
        return PlannerDriver(text, planner, simulator, Unseen(session), lambda snapshot: False)
    elites = min(3, settings.get("candidates", 3))
    settings = {"horizon": 2, "candidates": 12, "iterations": 2, "elites": elites, **settings}
    planner = CEM(**settings)
    if name == "image" and len(values) == 1:
        node = session.tree[listed(int, values[0], "The node to go back to must be a number")[0]]
        goal = ImageGoal(session.snapshot(node.id).slot.frame, step_frames=config.chunk_frames)
        return PlannerDriver(text, planner, simulator, goal, lambda snapshot: near(snapshot.slot.c2w, node.c2w[-1]))
    if name == "point" and len(values) == 2:
        numbers = listed(float, ",".join(values), "A place to go to must be a number")
        x, z = (check_number("A place to go to, in metres,", n, -MOST_METRES, MOST_METRES) for n in numbers)
        point = np.array([x, 0.0, z])
        goal = PointGoal(point, step_frames=config.chunk_frames)

        def arrived(snapshot: "Snapshot") -> bool:
            return bool(np.linalg.norm(snapshot.slot.c2w[:3, 3] - point) < ARRIVED_METRES)

        return PlannerDriver(text, planner, simulator, goal, arrived)
    raise ValueError(f"There is no driver {brief(text)}: give {FORMS}; cameras are {', '.join(cameras.CAMERAS)}.")


def policy(folder: Path, session: "Session") -> "PolicyDriver":
    """A driver that acts as a trained policy. Its weights are read, and nothing is unpickled.

    Args:
        folder: of the training.
        session: to drive in.

    Raises:
        FileNotFoundError: for a folder without a training.
        ValueError: for files that cannot be read, or a policy that needs a goal.
        ImportError: without Stable-Baselines3.
    """
    from sanawm_env.agents.policy_file import read_weights
    from sanawm_env.agents.train_ppo import TrainPPO, fresh, make_envs
    from sanawm_env.cli.drivers import PolicyDriver
    from sanawm_env.envs.env import SanaWMEnv
    from sanawm_env.system.settings import read

    settings_file, policy_file = folder / "settings.json", folder / "policy.zip"
    if not settings_file.exists() or not policy_file.exists():
        raise FileNotFoundError(f"There is no training in {folder}: it is a folder with settings.json and policy.zip.")
    with explaining(f"{settings_file} does not describe a training"):
        kept = read_json(settings_file, MAX_SETTINGS_BYTES)
        settings = read(TrainPPO, kept | {"num_envs": 1, "device": str(session.world.device)})
    if settings.obs_mode == "dict":
        raise ValueError(f"The policy in {folder} needs a goal, and the viewer has none: train one with obs_mode rgb.")
    model = fresh(settings, make_envs(settings))
    # torch has a RuntimeError for other shapes
    with explaining(f"{policy_file} is not the policy of these settings", (ValueError, RuntimeError)):
        model.policy.load_state_dict(read_weights(policy_file, session.world.device))
    env = SanaWMEnv(
        session.world,
        obs_mode=cast(str, settings.obs_mode),
        action_mode=settings.config.action_mode,
        obs_size=settings.obs_size,
    )
    return PolicyDriver(
        f"policy:{folder}",
        lambda seen: settings.actions(model.predict(seen, deterministic=True)[0]),
        env,
        session.frames_per_chunk,
    )
