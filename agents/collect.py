"""Datasets by the hour: scenes x scripted cameras x seeds become episodes, in batches, and any kill loses little.

    collect(Collection(scenes=("starts",), cameras=("orbit:radius=1.5", "w-48,dw-48"), seeds=2), "runs/orbits")

Every episode is a job with an id that says all that decides it, so the same call goes on where it was stopped and never
does a job twice. While the world imagines the next step, a thread encodes the last one.
"""

import hashlib
import itertools
import json
import os
import tempfile
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
import yaml
from filelock import FileLock, Timeout
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from sanawm_env.agents.cameras import RandomWalk
from sanawm_env.agents.scripts import Given, PathScript, Script, read_path, read_script

from sanawm_env.camera.dsl import FPS
from sanawm_env.envs.env import SanaWMEnv, images_in, step_together
from sanawm_env.metrics.lasting import drift, loop_closure
from sanawm_env.recording.dataset import Dataset, Row, Shard, clean
from sanawm_env.recording.episode import EpisodeWriter, Step, begin
from sanawm_env.recording.rollout import RolloutWriter, file_sha256, load_trajectory
from sanawm_env.training.scenes import sample_starts
from sanawm_env.world.images import fit_image
from sanawm_env.world.threads import torch_threads, with_torch_threads
from sanawm_env.world.weights import world_address
from sanawm_env.world.world import World

MAX_CONFIG_BYTES = 2**20
SPLITS = {"simple_60s": "benchmark_v2_smooth_60s", "hard_60s": "benchmark_v2_hard_60s"}
GATES = {"drift": "at most", "closure": "at least"}
KEYFRAMES = 2  # so that training code can jump to any frame
STARTS = "starts"  # of the world; also the folder of sampled ones
CLAIM = "collect{}.lock"


@dataclass(frozen=True)
class Start:
    """Where an episode begins. image: a file. intrinsics: fx, fy, cx, cy in its pixels; or fov_deg."""

    image: Path
    prompt: str = ""
    intrinsics: tuple[float, ...] | None = None
    fov_deg: float | None = None


@dataclass(frozen=True, kw_only=True)
class Collection:
    """What is collected: every scene with every camera and every seed.

    world, device: as `gym.make` takes them. env: further keywords of `SanaWMEnv` (task, horizon, speed and so on).
    scenes: "starts" (the world's own), image files, folders of them, {"image": ..., "prompt": ..., "fov_deg": ...}, or
        {"sample": 8, "seed": 0}, start images drawn in the places that the nano world knows.
    cameras: see `scripts`; or a `Script`, for instance a `Policy` of one's own.
    bench: {"root": folder of SANA-WM-Bench, "split": "simple_60s" or "hard_60s"}: scenes with a camera each, besides or
        instead of the others (which are the world's own starts and "orbit" where nothing is said at all).
    seeds: how many, 0 and up, or which. chunks: of an episode, 24 frames each; None: all of a path, 8 of cameras that
        have no end.
    action_mode: "poses" follows cameras exactly; "twist" holds for each chunk the twist that ends it where they do.
    batch: episodes that are imagined together. threads: that torch works with; None: as many as it would take, but one
        core is left for encoding. crf: quality of the videos, lower is better and larger.
    gates: {"drift": most, "closure": least} of `metrics.lasting`; what is out of bounds is thrown away and noted.
    folder: where relative files are looked for.

    Raises ValueError or TypeError in one sentence for anything else.
    """

    world: str = "nano"
    device: str = "cpu"
    scenes: Sequence[Any] | None = None
    cameras: Sequence[str | Script] | None = None
    bench: Mapping[str, str] | None = None
    seeds: int | Sequence[int] = 1
    chunks: int | None = None
    action_mode: str = "poses"
    env: Mapping[str, Any] = field(default_factory=dict)
    batch: int = 4
    threads: int | None = None
    crf: int = 16
    gates: Mapping[str, float] = field(default_factory=dict)
    folder: Path = Path()

    def __post_init__(self):
        for name, default in (("scenes", [STARTS]), ("cameras", ["orbit"])):
            if getattr(self, name) is None:
                object.__setattr__(self, name, default if self.bench is None else [])
        for name in ("batch", "chunks", "threads"):
            value = getattr(self, name)
            if not (name != "batch" and value is None) and not (_whole(value) and value > 0):
                raise ValueError(f"{name} of a collection must be a whole number above zero, got {value!r}.")
        if not (_whole(self.crf) and 0 <= self.crf <= 51):
            raise ValueError(f"crf of a collection must be a whole number from 0 to 51, got {self.crf!r}.")
        seeds = range(self.seeds) if _whole(self.seeds) else self.seeds
        if not isinstance(seeds, Sequence) or isinstance(seeds, str) or not all(_whole(s) and s >= 0 for s in seeds):
            raise ValueError(f"seeds of a collection are how many or a list of whole numbers, got {self.seeds!r}.")
        for name, kind in (("scenes", Sequence), ("cameras", Sequence), ("gates", Mapping), ("env", Mapping)):
            value = getattr(self, name)
            if not isinstance(value, kind) or isinstance(value, str):
                raise TypeError(f"{name} of a collection must be a {kind.__name__.lower()}, got {value!r}.")
        for name, bound in self.gates.items():
            if name not in GATES or isinstance(bound, bool) or not isinstance(bound, int | float):
                raise ValueError(f"gates are {' and '.join(GATES)} with a number each, got {name}: {bound!r}.")
        if reserved := [name for name in self.env if name in ("world", "device", "scenes", "action_mode")]:
            raise ValueError(f"{reserved[0]} is said beside env, not in it.")

    @classmethod
    def load(cls, path: str | os.PathLike) -> "Collection":
        """Read a YAML file; what it leaves out is the default, files in it lie relative to it.

        Raises FileNotFoundError, ValueError or TypeError in one sentence.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"There is no file {path}: `sanawm collect` takes a YAML file, see the README.")
        known = [f.name for f in fields(cls) if f.name != "folder"]
        try:
            if path.stat().st_size > MAX_CONFIG_BYTES:
                raise ValueError(f"it is larger than {MAX_CONFIG_BYTES >> 20} MB")
            given = yaml.safe_load(path.read_text(encoding="utf-8"))
            if not isinstance(given, dict):
                raise ValueError("it is not a list of settings, name: value")
            if unknown := [str(name) for name in given if name not in known]:
                raise ValueError(f"there is no setting {unknown[0]!r}, settings are {', '.join(known)}")
            return cls(**given, folder=path.parent)
        except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
            reason = " ".join(str(error).split()).rstrip(".")
            raise ValueError(f"{path} does not describe a collection: {reason}.") from error

    @property
    def settings(self) -> dict[str, Any]:
        """Keywords that make its environments, but for their length."""
        return {"world": world_address(self.world), "device": self.device, "action_mode": self.action_mode, **self.env}


@dataclass(frozen=True, eq=False)
class Job:
    """An episode to be made. id: of all that decides it. draw: what a script that draws is seeded with, of the seed and
    the start image, so that two scenes do not see the same walk."""

    id: str
    start: Start
    script: Script
    seed: int
    draw: int
    chunks: int


@dataclass(frozen=True, eq=False)
class Plan:
    """The episodes of a collection, in order, checked; header: what their dataset says of them all."""

    collection: Collection
    world: World
    jobs: tuple[Job, ...]
    header: Mapping[str, Any]


def plan(collection: Collection, out: str | os.PathLike) -> Plan:
    """All episodes of a collection, checked as far as can be before one is imagined: images are there, paths stay
    within the workspace and the horizon, the environment can be made. out: where sampled start images are put.

    Raises FileNotFoundError, ValueError or TypeError in one sentence.
    """
    settings = collection.settings
    env = SanaWMEnv(**settings)
    world, config = env.world, env.world.config
    limit = config.workspace.pitch_limit_deg
    scripts = [
        script if isinstance(script, Script) else read_script(str(script), collection.folder, limit)
        for script in collection.cameras
    ]
    pairs = list(itertools.product(_starts(collection, world, Path(out)), scripts)) + _bench(collection)
    seeds = range(collection.seeds) if isinstance(collection.seeds, int) else collection.seeds
    if not pairs or not seeds:
        raise ValueError("There is nothing to collect: give at least one scene, one camera and one seed.")
    decided = {name: value for name, value in settings.items() if name != "device"} | {"weights": world.weights_hash}
    jobs, hashes = {}, {}
    for (start, script), seed in itertools.product(pairs, seeds):
        chunks = script.length(collection.chunks, config)
        if start.image not in hashes:
            hashes[start.image] = file_sha256(start.image)
        draw = int(hashlib.sha256(f"{seed} {hashes[start.image]}".encode()).hexdigest()[:8], 16)
        _check_path(script, chunks, draw, env)
        parts = [decided, hashes[start.image], start.prompt, start.intrinsics, start.fov_deg, script.key, seed, chunks]
        digest = hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:20]
        jobs[digest] = Job(digest, start, script, seed, draw, chunks)  # what is listed twice is one job
    header = {
        "world": collection.world, "weights_hash": world.weights_hash, "mode": world.mode, "fps": config.fps,
        "height": config.height, "width": config.width, "chunk_frames": config.chunk_frames,
        "action_mode": collection.action_mode, "env": dict(collection.env), "crf": collection.crf,
    }  # fmt: skip
    return Plan(collection, world, tuple(jobs.values()), header)


def collect(
    collection: Collection | str | os.PathLike,
    out: str | os.PathLike,
    *,
    console: Console | None = None,
    part: tuple[int, int] = (0, 1),
    run: "Runner | None" = None,
) -> Dataset:
    """Make all episodes of a collection that are not in the folder `out` yet, and return the dataset there.

    part: (i, n), every n-th job from the i-th, for many machines that share a disk. run: who does the jobs: `here`,
    this process, or a `collect_ray.Cluster`.
    Raises ValueError or TypeError for what cannot be collected, or a folder that holds something else; BlockingIOError
    while another process collects the same part there; OSError when the disk is full: what is finished can be read.
    """
    if not isinstance(collection, Collection):
        collection = Collection.load(collection)
    console = console or Console(stderr=True)
    planned = plan(collection, out)
    dataset = Dataset.create(out, planned.header)
    index, parts = part
    claim = CLAIM.format("" if parts == 1 else f"-{index}-of-{parts}")
    try:
        with FileLock(dataset.folder / claim, timeout=0):
            clean(dataset)
            mine = planned.jobs[index::parts]
            jobs = pending(mine, dataset)
            with closing((run or here)(collection, jobs, dataset)) as events:
                _follow(mine, jobs, events, planned.world.config.chunk_frames, console)
            clean(dataset)
    except Timeout:
        raise BlockingIOError(f"Another process collects into {out}: wait for it, or give another folder.") from None
    except OSError as error:
        done = len(dataset.finished())
        raise OSError(f"{error}. {done} episodes in {out} are finished and whole; the same command goes on.") from error
    return dataset


def pending(jobs: Sequence[Job], dataset: Dataset) -> list[Job]:
    """The jobs that a dataset has neither done nor rejected."""
    done = {row.id for row in dataset.rows()}
    return [job for job in jobs if job.id not in done]


Event = Row | int
"""An episode that is finished or rejected, or so many steps that were taken meanwhile."""
Runner = Callable[[Collection, Sequence[Job], Dataset], Generator[Event, None, None]]


def here(collection: Collection, jobs: Sequence[Job], dataset: Dataset) -> Generator[Event, None, None]:
    """Do jobs in this process."""
    if not jobs:
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = collection.threads or max(1, min(torch_threads(), cores - 1))
    with with_torch_threads(threads), Shard(dataset) as shard:
        yield from work(collection, jobs, shard)


def work(collection: Collection, jobs: Sequence[Job], shard: Shard) -> Generator[Event, None, None]:
    """Do jobs into a shard. What is unfinished when this is left, in any way, goes away."""
    waiting, running, rows = deque(jobs), [], SimpleQueue()
    unfinished: list[_Run] = []
    background = _Background(2 * collection.batch)
    try:
        while waiting or running:
            while waiting and len(running) < collection.batch:
                running.append(_Run(collection, waiting.popleft(), shard))
                unfinished.append(running[-1])
            asked = [(run, action) for run in running if (action := run.next_action()) is not None]
            rewards = step_together([r.env for r, _ in asked], [a for _, a in asked], slots=range(len(asked)))
            for (run, action), reward in zip(asked, rewards, strict=True):
                background.submit(run.writer.add, Step.of(run.env, action, reward))
            for run in [run for run in running if run.over]:
                running.remove(run)
                background.submit(run.finish, shard, rows, unfinished)
            yield len(asked)
            yield from _all(rows)
        background.wait()
        yield from _all(rows)
    finally:
        background.stop()
        for run in unfinished:
            run.writer.abandon()


class _Run:
    """A job under way."""

    def __init__(self, collection: Collection, job: Job, shard: Shard):
        settings, start = collection.settings | {"max_episode_chunks": job.chunks}, job.start
        self.env = SanaWMEnv(**settings)
        lens = None if start.intrinsics is None else np.array(start.intrinsics)
        begin(self.env, start.image, job.seed, prompt=start.prompt, intrinsics=lens, fov_deg=start.fov_deg)
        facts = {"id": job.id, "camera": job.script.name, "source": str(start.image)}
        how = {"sheet": False, "crf": collection.crf, "keyframes": KEYFRAMES}
        self.writer = EpisodeWriter(shard.begin(), self.env, settings, job.seed, facts, **how)
        self.actions, self.gates = job.script.actions(self.env, job.chunks, job.draw), collection.gates
        self.over = False

    def next_action(self) -> Any:
        """The script's next action; None, and over, where it has none."""
        action = None if any(self.env.ended) else next(self.actions, None)
        self.over = action is None
        return action

    def finish(self, shard: Shard, rows: "SimpleQueue[Row]", unfinished: "list[_Run]") -> None:
        """Close the episode, judge it, and put it where it belongs."""
        if not self.writer.chunks:
            raise ValueError(f"The script {self.writer.meta['camera']} gave no action: an episode has at least one.")
        self.writer.close()
        measures = measure(self.writer)
        reason = judge(measures, self.gates)
        done = shard.reject(self.writer.out_dir, reason) if reason else shard.accept(self.writer.out_dir)
        unfinished.remove(self)
        row = replace(done, measures=measures)
        shard.note(row)
        rows.put(row)


def measure(writer: EpisodeWriter) -> dict[str, float | None]:
    """What the gates look at, on evenly spaced frames of an episode."""
    _, frames, c2w = writer.glance()
    return {"drift": drift(frames), "closure": loop_closure(frames, c2w)}


def judge(measures: Mapping[str, float | None], gates: Mapping[str, float]) -> str:
    """Why an episode is not wanted; "" if it is. What could not be measured is not held against it."""
    for name, bound in gates.items():
        value = measures[name]
        if value is not None and (value > bound if GATES[name] == "at most" else value < bound):
            return f"{name} is {value:.3g}, it must be {GATES[name]} {bound:g}"
    return ""


class _Background:
    """One thread that does what it is given, in order, and at most `limit` things behind."""

    def __init__(self, limit: int):
        self._limit, self._pending = limit, deque[Future]()
        self._pool = ThreadPoolExecutor(1)

    def submit(self, function: Callable, *arguments: Any) -> None:
        """Put something in the queue. Raises what something before has raised."""
        while self._pending and (len(self._pending) >= self._limit or self._pending[0].done()):
            self._pending.popleft().result()
        self._pending.append(self._pool.submit(function, *arguments))

    def wait(self) -> None:
        """Until all is done."""
        while self._pending:
            self._pending.popleft().result()

    def stop(self) -> None:
        """Leave undone what has not begun."""
        self._pool.shutdown(cancel_futures=True)


def estimate(planned: Plan, dataset: Dataset | None) -> dict[str, float]:
    """What the jobs of a plan come to: episodes, of these done, chunks, frames, hours of video; and bytes of those that
    are not done, by the mean of those that are or, without any, of a start image that is moved about and encoded."""
    config, done = planned.world.config, [] if dataset is None else dataset.finished()
    left = planned.jobs if dataset is None else pending(planned.jobs, dataset)
    frames = [sum(1 + job.chunks * config.chunk_frames for job in jobs) for jobs in (planned.jobs, left)]
    rate = sum(row.bytes for row in done) / sum(row.frames for row in done) if done else _trial_rate(planned)
    return {
        "episodes": len(planned.jobs), "done": len(planned.jobs) - len(left),
        "chunks": sum(job.chunks for job in planned.jobs), "frames": frames[0],
        "hours": frames[0] / config.fps / 3600, "bytes": frames[1] * rate,
    }  # fmt: skip


def _trial_rate(planned: Plan) -> float:
    """Bytes a frame of a second's clip whose picture moves by a 48th of its width each frame, written for a try."""
    config, poses = planned.world.config, RandomWalk().poses(FPS)
    image = fit_image(planned.jobs[0].start.image, config.height, config.width)
    frames = np.stack([np.roll(image, i * config.width // 48, axis=1) for i in range(FPS)])
    with tempfile.TemporaryDirectory() as folder:
        trial = RolloutWriter(folder, config.fps, sheet=False, crf=planned.collection.crf, keyframes=KEYFRAMES)
        with trial as writer:
            writer.append(frames, poses, np.eye(3))
        return sum(path.stat().st_size for path in Path(folder).iterdir()) / FPS


def _follow(
    mine: Sequence[Job], jobs: Sequence[Job], events: Iterator[Event], frames: int, console: Console
) -> None:
    """Show how far it is until it is done. frames: of a step."""
    chunks, before = {job.id: job.chunks for job in jobs}, len(mine) - len(jobs)
    total, steps, kept, rejected, begun = sum(chunks.values()), 0, 0, 0, time.monotonic()
    columns = (
        TextColumn("collecting"), BarColumn(), TextColumn("{task.fields[state]}"), TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("", total=total, state=f"{before}/{len(mine)} episodes", rate="")
        for event in events:
            if isinstance(event, Row):
                kept, rejected = kept + bool(event.episode), rejected + (not event.episode)
                total -= chunks[event.id] - event.chunks  # of what ended early
                if event.reason:
                    said = f"rejected {event.camera} from {Path(event.source).name}: {event.reason}"
                    progress.console.print(said, highlight=False, markup=False, soft_wrap=True)
            else:
                steps += event
            state = f"{before + kept + rejected}/{len(mine)} episodes" + f", {rejected} rejected" * bool(rejected)
            rate = f"{frames * steps / max(1e-9, time.monotonic() - begun):.0f} frames/s"
            progress.update(task, completed=steps, total=total, state=state, rate=rate)


def _starts(collection: Collection, world: World, out: Path) -> list[Start]:
    """The scenes of a collection, one by one."""
    starts: list[Start] = []
    for scene in collection.scenes:
        if isinstance(scene, Mapping) and "sample" in scene:
            given = {"sample": 1, "seed": 0} | dict(scene)
            if given.keys() != {"sample", "seed"} or not all(_whole(v) and v >= 0 for v in given.values()):
                raise ValueError(f"Scenes are sampled by {{sample: how many, seed: 0}}, got {dict(scene)}.")
            starts += map(Start, sample_starts(world.config, given["sample"], given["seed"], out / STARTS))
        elif isinstance(scene, Mapping):
            known = ("image", "prompt", "intrinsics", "fov_deg")
            if "image" not in scene or set(scene) - set(known):
                raise ValueError(f"A scene is an image with {', '.join(known[1:])}, got {dict(scene)}.")
            lens = scene.get("intrinsics")
            start = Start(
                collection.folder / str(scene["image"]), str(scene.get("prompt") or ""),
                None if lens is None else tuple(map(float, lens)), scene.get("fov_deg"),
            )  # fmt: skip
            starts.append(start)
        elif scene == STARTS:
            if not world.starts:
                raise ValueError(f"The {world.config.name} world ships no start images: name some under scenes.")
            starts += map(Start, world.starts)
        else:
            path = collection.folder / str(scene)
            starts += map(Start, images_in(path) if path.is_dir() else [path])
    for start in starts:
        if not start.image.is_file():
            raise FileNotFoundError(f"There is no start image at {start.image}.")
    return starts


def _bench(collection: Collection) -> list[tuple[Start, Script]]:
    """Scenes of SANA-WM-Bench, each with its camera (camera.md 7.1)."""
    if collection.bench is None:
        return []
    given = dict(collection.bench)
    if given.keys() != {"root", "split"} or given["split"] not in SPLITS:
        raise ValueError(f"bench takes root, a folder, and split, {' or '.join(SPLITS)}; got {given}.")
    root = collection.folder / str(given["root"])
    manifest = root / SPLITS[given["split"]] / "run_manifest.jsonl"
    if not manifest.is_file():
        raise FileNotFoundError(f"There is no {manifest}: root is the folder of SANA-WM-Bench.")
    pairs = []
    for number, line in enumerate(filter(str.strip, manifest.read_text(encoding="utf-8").splitlines()), start=1):
        try:
            row = json.loads(line)
            image, camera = (_inside(root, row[name]) for name in ("image_path", "camera_path"))
            prompt = str(row.get("prompt") or "")
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"Line {number} of {manifest} is not a scene of the benchmark: {error}.") from error
        lens = load_trajectory(camera).intrinsics
        start = Start(image, prompt, None if lens is None else tuple(lens[0][[0, 1, 0, 1], [0, 1, 2, 2]]))
        if not image.is_file():
            raise FileNotFoundError(f"There is no start image at {image}.")
        pairs.append((start, Given(str(row["camera_path"]), read_path(camera))))
    return pairs


def _inside(root: Path, name: Any) -> Path:
    """A file under a folder; ValueError for a name that leads out of it."""
    path = root / str(name)
    if not path.resolve().is_relative_to(root.resolve()):
        raise ValueError(f"{name!r} leads out of {root}")
    return path


def _check_path(script: Script, chunks: int, seed: int, env: SanaWMEnv) -> None:
    """ValueError where a script cannot be followed in an environment of this kind."""
    config = env.world.config
    if chunks > config.horizon_chunks and env.horizon == "stop":
        raise ValueError(
            f"{script.name} takes {chunks} chunks, {config.name} was found good for {config.horizon_chunks}: set fewer "
            "chunks, or env: {horizon: reanchor}."
        )
    if isinstance(script, PathScript):
        if env.action_mode not in ("poses", "twist"):
            raise ValueError(f'{script.name} drives the action modes "poses" and "twist", not {env.action_mode!r}.')
        if env.workspace.too_far(script.path(chunks, seed, config)):
            metres = env.workspace.hard_distance
            raise ValueError(f"{script.name} leaves the workspace: cameras stay within {metres:g} m of the start.")


def _all(rows: "SimpleQueue[Row]") -> Iterator[Row]:
    while not rows.empty():
        yield rows.get()


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
