"""`sanawm rollout`: from an image and a camera script to a video."""

import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from sanawm_env.agents.scripts import read_path
from sanawm_env.camera.dsl import actions_to_c2w, parse_actions
from sanawm_env.camera.trajectory import whole_chunks
from sanawm_env.camera.twist import hold
from sanawm_env.envs.env import SanaWMEnv
from sanawm_env.recording.arrays import load_array
from sanawm_env.recording.episode import EpisodeWriter, Step, begin
from sanawm_env.world.config import WorldConfig
from sanawm_env.world.saving import check_apart
from sanawm_env.world.world import World

if TYPE_CHECKING:
    from sanawm_env.cli import CameraPath, Rollout

MOST_FRAMES = 150_000  # the meta.json of an episode holds their poses, and is read up to a size


def rollout(options: "Rollout", console: Console) -> None:
    """Drive one episode along the path the options describe; the folder and the path are checked before the work.

    Raises ValueError, TypeError or OSError in one sentence.
    """
    world = World.load(options.world, options.device, **options.load_options)
    name, n = world.config.name, world.config.chunk_frames
    poses = whole_chunks(camera_path(options, world.config), n)
    limit = world.config.workspace.hard_distance
    if world.config.workspace.beyond_hard_distance(poses):
        raise ValueError(f"The camera path leaves the workspace of {name}: stay within {limit:g} m of the start.")
    longest = world.config.horizon_chunks
    if options.horizon == "stop" and len(poses) > longest * n:
        raise ValueError(
            f"The camera path takes {len(poses) // n} chunks, {name} was found good for {longest}: shorten it, or go "
            "on from the last frame with --horizon reanchor."
        )
    intrinsics = None if options.intrinsics is None else load_array(options.intrinsics)
    image = options.image if options.image is not None else (world.starts[0] if world.starts else None)
    if image is None:
        raise ValueError(f"The {name} world ships no start images; give one with --image.")
    check_apart([options.out / name for name in EpisodeWriter.names], [image, options.trajectory, options.intrinsics])
    env = SanaWMEnv(
        options.world, scenes=[image], device=options.device, action_mode="poses", horizon=options.horizon,
        max_episode_chunks=len(poses) // n, **options.load_options,
    )  # fmt: skip
    begin(env, image, options.seed, prompt=options.prompt, intrinsics=intrinsics, fov_deg=options.fov_deg)
    script = str(options.actions or options.trajectory or options.twist)
    facts = {
        "title": f"{name} · {script}",
        "camera": script,
        "source": str(Path(image).absolute()),
        "intrinsics_source": env.scene.intrinsics_source,
    }
    columns = (TextColumn("imagining"), BarColumn(), MofNCompleteColumn(), TextColumn("chunks"), TimeRemainingColumn())
    upscale = max(1, 512 // world.config.width)
    with EpisodeWriter(options.out, env, options.seed, facts, upscale=upscale) as writer:
        seconds, done = 0.0, 0
        with Progress(*columns, console=console) as progress:
            for chunk in progress.track(poses.reshape(-1, n, 4, 4)):
                begun = time.perf_counter()
                _, reward, *_ = env.step(chunk)
                seconds += time.perf_counter() - begun
                done += 1
                writer.add(Step.of(env, chunk, reward))
    for file in EpisodeWriter.names:
        console.print(options.out / file, soft_wrap=True)
    console.print(f"{done / seconds:.1f} env steps/s, {done * n / seconds:.0f} frames/s")


def camera_path(options: "CameraPath", config: WorldConfig) -> np.ndarray:
    """Poses (F, 4, 4) float64 relative to the first; ValueError unless exactly one kind of path is given.

    Keys and twists stay within the world's pitch limit, a trajectory is followed as it is.
    """
    given = [name for name in ("actions", "trajectory", "twist") if getattr(options, name) is not None]
    if len(given) != 1:
        raise ValueError(f"Give one of --actions, --trajectory and --twist, not {len(given)} of them.")
    if options.actions is not None:
        _check_length(1 + sum(frames for _, frames in parse_actions(options.actions)), config)
        limit = config.workspace.pitch_limit_deg
        return actions_to_c2w(options.actions, pitch_limit_deg=limit, fps=config.fps).astype(np.float64)
    if options.trajectory is not None:
        poses = read_path(options.trajectory, config.fps)
        _check_length(len(poses), config)
        return poses
    if options.chunks < 1:
        raise ValueError(f"--chunks must be at least 1, got {options.chunks}.")
    _check_length(1 + config.chunk_frames * options.chunks, config)
    try:
        twist = np.array([float(number) for number in options.twist.split(",")])
    except ValueError:
        raise ValueError(f"--twist takes six numbers vx,vy,vz,wx,wy,wz, got {options.twist!r}.") from None
    poses = hold(np.eye(4), twist, config.chunk_frames * options.chunks, config.fps)
    return np.concatenate((np.eye(4)[None], config.workspace.confine(np.eye(4), poses)))


def _check_length(frames: int, config: WorldConfig) -> None:
    """ValueError for a path that no episode can hold, before it is worked out."""
    if frames > MOST_FRAMES:
        hours = [f"{count / config.fps / 3600:.3g} hours" for count in (frames, MOST_FRAMES)]
        raise ValueError(
            f"The camera path has {frames} frames ({hours[0]}), an episode holds {MOST_FRAMES} ({hours[1]}): make "
            "several, or a shorter one."
        )
