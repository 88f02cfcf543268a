"""The description of a dataset to collect, and its list of jobs, checked before any work.

`plan(Collection(scenes=["starts"], cameras=["orbit", "w-48,dw-48"], seeds=2), "runs/orbits").jobs` lists the jobs.
"""

import hashlib
import itertools
import json
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
from pydantic import Field
from sanawm_env.agents.cameras import RandomWalk
from sanawm_env.agents.scripts import Given, PathScript, Script, followed, read_path, read_script
from sanawm_env.agents.settings_file import read_yaml

from sanawm_env.camera.dsl import FPS
from sanawm_env.camera.trajectory import load_trajectory
from sanawm_env.envs.config import EnvConfig
from sanawm_env.envs.env import SanaWMEnv
from sanawm_env.envs.making import plain
from sanawm_env.recording.dataset import Dataset
from sanawm_env.recording.episode import MAX_COMPANY
from sanawm_env.recording.rollout import RolloutWriter
from sanawm_env.system.files import (
    brief,
    check_count,
    check_prompt,
    explaining,
    file_sha256,
    parse_json,
    read_text,
    reason,
)
from sanawm_env.system.saving import Scratch
from sanawm_env.system.settings import check_fields, read
from sanawm_env.training.scenes import sample_starts
from sanawm_env.world.config import WorldConfig
from sanawm_env.world.folders import world_address
from sanawm_env.world.images import fit_image, images_in, load_image, read_anchor
from sanawm_env.world.intrinsics import choose_intrinsics
from sanawm_env.world.saved import MAX_SEED
from sanawm_env.world.threads import MAX_THREADS
from sanawm_env.world.world import World

MAX_CHUNKS = 4096  # of an episode, 1.7 hours
MAX_JOBS, MAX_SAMPLES = 1_000_000, 10_000
MAX_MANIFEST_BYTES = 64 * 2**20
SPLITS = {"simple_60s": "benchmark_v2_smooth_60s", "hard_60s": "benchmark_v2_hard_60s"}
GATES = {"drift": "at most", "closure": "at least"}
KEYFRAMES = 2  # so that training code can jump to any frame
STARTS = "starts"  # of the world; also the folder of sampled ones
Finite = Annotated[float, Field(allow_inf_nan=False)]


@dataclass(frozen=True)
class Start:
    """The start of an episode.

    Attributes:
        image: file of the start image.
        prompt: text of the scene; "" for none.
        intrinsics: fx, fy, cx, cy in pixels of the image; None for `fov_deg`.
        fov_deg: horizontal field of view of the world's frames in degrees; None for EXIF data or the world's own.
    """

    image: Path
    prompt: str = ""
    intrinsics: tuple[Finite, Finite, Finite, Finite] | None = None
    fov_deg: Annotated[float, Field(ge=0, le=180)] | None = None


@dataclass(frozen=True, kw_only=True)
class Collection:
    """What to collect: one episode of every scene with every camera and every seed.

    Attributes:
        world: name or folder, as `gym.make` takes it.
        device: of the world, "cpu" or "cuda".
        scenes: a list of "starts" (the world's own start images), image files, folders of images, mappings
            {"image": ..., "prompt": ..., "fov_deg": ..., "intrinsics": ...}, or {"sample": 8, "seed": 0}: start images
            drawn in the places that the nano world knows. None for "starts", or for none where `bench` is given.
        cameras: a list of texts (see `agents.scripts`), mappings {"trajectory": file, "axes": ...} with keywords of
            `camera.trajectory.load_trajectory`, or `Script` objects such as a `Policy`. None for "orbit", or for none
            where `bench` is given.
        bench: {"root": folder of SANA-WM-Bench, "split": "simple_60s" or "hard_60s"}: adds the scenes of the benchmark,
            each with its own camera.
        seeds: a list of seeds, or how many of them, counted from 0.
        chunks: length of an episode in chunks of 24 frames. None for the whole of a path, and 8 for cameras without an
            end.
        action_mode: "poses" follows a camera exactly; "twist" holds, for each chunk, the twist that ends where the
            camera does.
        env: further keywords of `SanaWMEnv`, such as task, horizon or speed.
        batch: how many episodes are predicted together.
        threads: of torch; None as the world was loaded.
        crf: x264 quality of the videos, 0 (lossless) to 51.
        gates: {"drift": largest, "closure": smallest} of `metrics.lasting`. An episode out of bounds is deleted, and
            its row in the manifest says why.
        folder: the folder that relative paths start from.

    Raises:
        ValueError: for values out of range, unknown gates, or keywords in `env` that have an attribute of their own.
        TypeError: for values of the wrong type.
    """

    world: str = "nano"
    device: str = "cpu"
    scenes: Sequence[str | Path | Mapping[str, Any]] | None = None
    cameras: Sequence[str | Mapping[str, Any] | Script] | None = None
    bench: Mapping[str, Any] | None = None
    seeds: Annotated[int, Field(ge=0, le=MAX_JOBS)] | Sequence[Annotated[int, Field(ge=0, le=MAX_SEED)]] = 1
    chunks: Annotated[int, Field(ge=1, le=MAX_CHUNKS)] | None = None
    action_mode: str = "poses"
    env: Mapping[str, Any] = field(default_factory=dict)
    batch: Annotated[int, Field(ge=1, le=MAX_COMPANY)] = 4
    threads: Annotated[int, Field(ge=1, le=MAX_THREADS)] | None = None
    crf: Annotated[int, Field(ge=0, le=51)] = 16
    gates: Mapping[str, Annotated[float, Field(ge=0)]] = field(default_factory=dict)
    folder: Path = Path()

    __pydantic_config__: ClassVar = {"arbitrary_types_allowed": True}  # scripts

    def __post_init__(self):
        for name, default in (("scenes", [STARTS]), ("cameras", ["orbit"])):
            if getattr(self, name) is None:
                object.__setattr__(self, name, default if self.bench is None else [])
        check_fields(self)
        if unknown := [name for name in self.gates if name not in GATES]:
            raise ValueError(f"gates are {' and '.join(GATES)} with a number each, got {brief(unknown[0])}.")
        if reserved := [name for name in self.env if name in ("world", "device", "scenes", "action_mode")]:
            raise ValueError(f"{reserved[0]} must not be in env of a collection: give it as a setting beside env.")

    @classmethod
    def load(cls, path: str | os.PathLike) -> "Collection":
        """Read a collection from a YAML file. Settings that the file leaves out have their defaults; relative paths
        start from the file's folder.

        Raises:
            FileNotFoundError: where there is no such file.
            ValueError: for a file that does not describe a collection.
        """
        path = Path(path)
        if not path.exists():
            raise FileNotFoundError(
                f"There is no file {path}: a collection is a YAML file such as examples/collect.yaml."
            )
        with explaining(f"{path} does not describe a collection", (ValueError, TypeError)):
            if "folder" in (given := read_yaml(path)):
                raise ValueError("there is no setting 'folder' in a file: relative paths start from the file's folder")
            return replace(read(cls, given), folder=path.parent)

    @cached_property
    def config(self) -> EnvConfig:
        """Settings of the environments, apart from their length."""
        beside = {"world": world_address(self.world), "device": self.device, "action_mode": self.action_mode}
        return EnvConfig.from_plain({**beside, **self.env})


@dataclass(frozen=True, eq=False)
class Job:
    """An episode to make.

    Attributes:
        id: hash of everything that decides the episode.
        start: where it begins.
        script: what moves the camera.
        seed: of the noise and of the task.
        draw: seed for scripts that draw random numbers, made from `seed` and the start image, so that two scenes do not
            get the same walk.
        chunks: length.
    """

    id: str
    start: Start
    script: Script
    seed: int
    draw: int
    chunks: int


@dataclass(frozen=True, eq=False)
class CollectionPlan:
    """The checked episodes of a collection.

    Attributes:
        collection: the description.
        world: the loaded world.
        jobs: in order.
        header: what `dataset.json` says of all episodes.
        unreadable: start images that exist but cannot be used, and why; their jobs will be rejected.
    """

    collection: Collection
    world: World
    jobs: tuple[Job, ...]
    header: Mapping[str, Any]
    unreadable: Mapping[Path, str]


def plan(collection: Collection, out: str | os.PathLike) -> CollectionPlan:
    """List the episodes of a collection. Before anything is predicted it checks that images exist and can be read,
    prompts are known, paths stay within the workspace and the horizon, and the environment can be made.

    Args:
        collection: what to collect.
        out: folder where sampled start images are written.

    Raises:
        FileNotFoundError: for images, trajectories or a benchmark that do not exist.
        ValueError: for anything else that cannot be collected.
        TypeError: for scenes of the wrong type.
    """
    env = SanaWMEnv(**collection.config.keywords)
    world, config = env.world, env.world.config
    scripts = [_script(camera, collection.folder, config) for camera in collection.cameras or ()]
    pairs = list(itertools.product(_starts(collection, world, Path(out)), scripts)) + _bench(collection, config.fps)
    seeds = range(collection.seeds) if isinstance(collection.seeds, int) else collection.seeds
    if not pairs or not seeds:
        raise ValueError("There is nothing to collect: give at least one scene, one camera and one seed.")
    check_count("What a collection comes to, scenes x cameras x seeds,", len(pairs) * len(seeds), 1, MAX_JOBS)
    starts = list(dict.fromkeys(start for start, _ in pairs))
    unreadable = _unreadable(starts, world)
    if len(unreadable) == len({start.image for start in starts}):
        raise ValueError(f"No start image can be read: {next(iter(unreadable.values()))}.")
    decided = {"world": collection.config.world, "action_mode": collection.action_mode, **collection.env}
    decided["weights"] = world.weights_hash
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
    return CollectionPlan(collection, world, tuple(jobs.values()), header, unreadable)


def pending(jobs: Sequence[Job], dataset: Dataset) -> list[Job]:
    """The jobs that a dataset has neither finished nor rejected."""
    done = {row.id for row in dataset.rows()}
    return [job for job in jobs if job.id not in done]


def estimate(planned: CollectionPlan, dataset: Dataset | None) -> dict[str, float]:
    """What a plan amounts to.

    Args:
        planned: the plan.
        dataset: the dataset that it continues; None for a new one.

    Returns:
        "episodes", "done" (of these), "chunks", "frames" and "hours" of the whole plan, and "bytes" still to be
            written.
        Bytes per frame are the mean of finished episodes or, without any, those of a trial clip.
    """
    config, done = planned.world.config, [] if dataset is None else dataset.finished()
    left = planned.jobs if dataset is None else pending(planned.jobs, dataset)
    frames = [sum(1 + job.chunks * config.chunk_frames for job in jobs) for jobs in (planned.jobs, left)]
    rate = sum(row.bytes for row in done) / sum(row.frames for row in done) if done else _trial_rate(planned)
    return {
        "episodes": len(planned.jobs), "done": len(planned.jobs) - len(left),
        "chunks": sum(job.chunks for job in planned.jobs), "frames": frames[0],
        "hours": frames[0] / config.fps / 3600, "bytes": frames[1] * rate,
    }  # fmt: skip


def _trial_rate(planned: CollectionPlan) -> float:
    """Bytes per frame of a trial clip: one second of a start image that moves by 1/48 of its width per frame."""
    config, poses = planned.world.config, RandomWalk().poses(FPS)
    good = next(job.start.image for job in planned.jobs if job.start.image not in planned.unreadable)
    image = fit_image(good, config.height, config.width)
    frames = np.stack([np.roll(image, i * config.width // 48, axis=1) for i in range(FPS)])
    with Scratch("sanawm-plan-") as folder:
        trial = RolloutWriter(folder, config.fps, sheet=False, crf=planned.collection.crf, keyframes=KEYFRAMES)
        with trial as writer:
            writer.append(frames, poses, np.eye(3))
        return sum(path.stat().st_size for path in folder.iterdir()) / FPS


def _script(camera: str | Mapping[str, Any] | Script, folder: Path, config: WorldConfig) -> Script:
    """The script of a camera of a collection. Errors as `read_script` and `load_trajectory`."""
    if isinstance(camera, Script):
        return camera
    if not isinstance(camera, Mapping):
        return read_script(str(camera), folder, config.workspace.pitch_limit_deg, config.fps)
    known = ("trajectory", "format", "axes", "poses", "metres_per_unit", "fps", "fill")
    if not isinstance(camera.get("trajectory"), str) or set(camera) - set(known):
        raise ValueError(
            f"A camera is text, or a mapping with trajectory and any of {', '.join(known[1:])}; got {brief(camera)}."
        )
    reading = {name: value for name, value in camera.items() if name != "trajectory"}
    path = folder / camera["trajectory"]
    return Given(camera["trajectory"], followed(load_trajectory(path, **reading), config.fps, path))


def _starts(collection: Collection, world: World, out: Path) -> list[Start]:
    """The starts of a collection."""
    starts: list[Start] = []
    for scene in collection.scenes or ():
        if isinstance(scene, Mapping) and "sample" in scene:
            given = {"sample": 1, "seed": 0} | dict(scene)
            if given.keys() != {"sample", "seed"}:
                raise ValueError(f"Sampled scenes are {{sample: their number, seed: a seed}}, got {brief(scene)}.")
            check_count("sample, the number of sampled scenes,", given["sample"], 0, MAX_SAMPLES)
            check_count("seed of sampled scenes", given["seed"], 0, MAX_SEED)
            starts += map(Start, sample_starts(world.config, given["sample"], given["seed"], out / STARTS))
        elif isinstance(scene, Mapping):
            with explaining("A scene is a mapping with image and any of prompt, intrinsics and fov_deg"):
                start = read(Start, {name: value for name, value in plain(dict(scene)).items() if value is not None})
            starts.append(replace(start, image=collection.folder / start.image))
        elif scene == STARTS:
            if not world.starts:
                raise ValueError(f"The {world.config.name} world ships no start images: give some under scenes.")
            starts += map(Start, world.starts)
        else:
            path = collection.folder / str(scene)
            if path.is_dir() and out.exists() and path.samefile(out):
                raise ValueError(f"{out} is the folder of the scenes {scene}: collect into another folder.")
            starts += map(Start, images_in(path) if path.is_dir() else [path])
    for start in starts:
        if not start.image.is_file():
            raise FileNotFoundError(f"There is no start image at {start.image}.")
    return starts


def _unreadable(starts: Sequence[Start], world: World) -> dict[Path, str]:
    """Start images that no episode can begin from, and why. ValueError for a prompt that the world does not know: that
    is no fault of an image.
    """
    for start in starts:
        check_prompt(start.prompt)
    for prompt in dict.fromkeys(start.prompt for start in starts):
        world.engine.check_prompt(prompt.strip())

    def look(start: Start) -> str:
        try:
            read_anchor(start.image)
            intrinsics = None if start.intrinsics is None else np.array(start.intrinsics)
            choose_intrinsics(load_image(start.image), world.config, intrinsics, start.fov_deg)
        except (ValueError, OSError) as error:
            return reason(error)
        return ""

    with ThreadPoolExecutor() as pool:
        said = dict(zip((start.image for start in starts), pool.map(look, starts), strict=True))
    return {image: why for image, why in said.items() if why}


def _bench(collection: Collection, fps: float) -> list[tuple[Start, Script]]:
    """Scenes of SANA-WM-Bench, each with its camera (camera.md 7.1)."""
    if collection.bench is None:
        return []
    given = dict(collection.bench)
    if given.keys() != {"root", "split"} or given["split"] not in list(SPLITS):
        raise ValueError(f"bench takes root, a folder, and split, {' or '.join(SPLITS)}; got {brief(given)}.")
    root = collection.folder / str(given["root"])
    manifest = root / SPLITS[given["split"]] / "run_manifest.jsonl"
    if not manifest.exists():
        raise FileNotFoundError(f"There is no {manifest}: root is the folder of SANA-WM-Bench.")
    with explaining(f"{manifest} cannot be read"):
        lines = read_text(manifest, MAX_MANIFEST_BYTES).split("\n")
    pairs, bad = [], []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = parse_json(line)
            image, camera = (_inside(root, row[name]) for name in ("image_path", "camera_path"))
            intrinsics = load_trajectory(camera).intrinsics
            start = Start(image, str(row.get("prompt") or ""), None if intrinsics is None else _vector(intrinsics[0]))
            if not image.is_file():
                raise FileNotFoundError(f"There is no start image at {image}")
            pairs.append((start, Given(str(row["camera_path"]), read_path(camera, fps))))
        except (KeyError, TypeError, ValueError, AttributeError, OSError) as error:
            said = f"it has no {error}" if isinstance(error, KeyError) else reason(error)
            bad.append((f"line {number}: {said}", error))
    if bad:
        named = "; ".join(text for text, _ in bad[:3]) + "; ..." * (len(bad) > 3)
        missing = all(isinstance(error, FileNotFoundError) for _, error in bad)
        raise (FileNotFoundError if missing else ValueError)(
            f"{len(bad)} of {len(bad) + len(pairs)} lines of {manifest} are not scenes of the benchmark: {named}."
        ) from bad[0][1]
    return pairs


def _vector(matrix: np.ndarray) -> tuple[float, float, float, float]:
    return tuple(matrix[[0, 1, 0, 1], [0, 1, 2, 2]])


def _inside(root: Path, name: Any) -> Path:
    """A file under a folder. ValueError for a name that leads out of it."""
    path = root / str(name)
    if not path.resolve().is_relative_to(root.resolve()):
        raise ValueError(f"{name!r} leads out of {root}")
    return path


def _check_path(script: Script, chunks: int, seed: int, env: SanaWMEnv) -> None:
    """ValueError where a script cannot be followed in an environment of this kind."""
    config = env.world.config
    if chunks > config.horizon_chunks and env.horizon == "stop":
        raise ValueError(
            f"{script.name} takes {chunks} chunks, {config.name} is validated to {config.horizon_chunks}: set fewer "
            "chunks, or env: {horizon: reanchor}."
        )
    if isinstance(script, PathScript):
        if env.action_mode not in ("poses", "twist"):
            raise ValueError(f'{script.name} needs the action_mode "poses" or "twist", got {env.action_mode!r}.')
        if env.workspace.beyond_hard_distance(script.path(chunks, seed, config)):
            metres = env.workspace.hard_distance
            raise ValueError(f"{script.name} leaves the workspace: cameras stay within {metres:g} m of the start.")
