"""`sanawm rollout`: from an image and a camera script to a video."""

import time
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from sanawm_env.agents.scripts import read_path
from sanawm_env.camera.dsl import actions_to_c2w
from sanawm_env.camera.intrinsics import intrinsics_matrix
from sanawm_env.camera.trajectory import load_npy, whole_chunks
from sanawm_env.camera.twist import hold
from sanawm_env.envs.env import SanaWMEnv
from sanawm_env.recording.rollout import META, SHEET, TRAJECTORY, VIDEO, RolloutWriter
from sanawm_env.world.config import WorldConfig
from sanawm_env.world.world import World

if TYPE_CHECKING:
    from sanawm_env.cli import CameraPath, Rollout


def rollout(options: "Rollout", console: Console) -> None:
    """Drive one episode along the path the options describe; the folder and the path are checked before the work.

    Raises ValueError, TypeError or OSError in one sentence.
    """
    world = World.load(
        options.world,
        options.device,
        precision=options.precision,
        refiner=options.refiner,
        offload=options.offload,
        text_encoder=options.text_encoder,
    )
    name, n = world.config.name, world.config.chunk_frames
    poses = whole_chunks(camera_path(options, world.config), n)
    limit = world.config.workspace.hard_distance
    if world.config.workspace.too_far(poses):
        raise ValueError(f"The camera path leaves the workspace of {name}: stay within {limit:g} m of the start.")
    longest = world.config.horizon_chunks
    if options.horizon == "stop" and len(poses) > longest * n:
        raise ValueError(
            f"The camera path takes {len(poses) // n} chunks, {name} was found good for {longest}: shorten it, or go "
            "on from the last frame with --horizon reanchor."
        )
    intrinsics = None if options.intrinsics is None else load_npy(options.intrinsics)
    image = options.image if options.image is not None else (world.starts[0] if world.starts else None)
    if image is None:
        raise ValueError(f"The {name} world ships no start images; give one with --image.")
    env = SanaWMEnv(
        world, scenes=[image], action_mode="poses", max_episode_chunks=len(poses) // n, horizon=options.horizon
    )
    start = {"scene": image, "prompt": options.prompt, "intrinsics": intrinsics, "fov_deg": options.fov_deg}
    env.reset(options={**start, "seed": options.seed})
    scene = env.state.slots[0].scene
    lens = intrinsics_matrix(scene.intrinsics)
    meta = {
        "title": f"{name} · {options.actions or options.trajectory or options.twist or ''}",
        "world": options.world,
        "weights_hash": world.weights_hash,
        "mode": world.mode,
        "prompt": options.prompt,
        "seed": options.seed,
        "image": str(image),
        "scene": scene.key,
        "actions": {"actions": options.actions, "trajectory": options.trajectory, "twist": options.twist},
        "intrinsics": scene.intrinsics,
        "anchor": None if scene.anchor is None else {"place": scene.anchor.place, "c2w": scene.anchor.c2w},
    }
    columns = (TextColumn("imagining"), BarColumn(), MofNCompleteColumn(), TextColumn("chunks"), TimeRemainingColumn())
    upscale = max(1, 512 // world.config.width)
    with RolloutWriter(options.out, world.config.fps, meta, upscale=upscale) as writer:
        writer.append(scene.image[None], np.eye(4)[None], lens)
        seconds, done = 0.0, 0
        try:
            with Progress(*columns, console=console) as progress:
                for chunk in progress.track(poses.reshape(-1, n, 4, 4)):
                    begin = time.perf_counter()
                    env.step(chunk)
                    seconds += time.perf_counter() - begin
                    done += 1
                    writer.append(env.clip.frames, env.clip.c2w, lens)
        finally:
            writer.meta["chunks"] = done
    for file in (VIDEO, TRAJECTORY, SHEET, META):
        console.print(options.out / file, highlight=False, soft_wrap=True)
    console.print(f"{done / seconds:.1f} env steps/s, {done * n / seconds:.0f} frames/s")


def camera_path(options: "CameraPath", config: WorldConfig) -> np.ndarray:
    """Poses (F, 4, 4) float64 relative to the first; ValueError unless exactly one kind of path is given.

    Keys and twists stay within the world's pitch limit, a trajectory is followed as it is.
    """
    given = [name for name in ("actions", "trajectory", "twist") if getattr(options, name) is not None]
    if len(given) != 1:
        raise ValueError(f"Give one of --actions, --trajectory and --twist, not {len(given)} of them.")
    if options.actions is not None:
        limit = config.workspace.pitch_limit_deg
        return actions_to_c2w(options.actions, pitch_limit_deg=limit).astype(np.float64)
    if options.trajectory is not None:
        return read_path(options.trajectory)
    if options.chunks < 1:
        raise ValueError(f"--chunks must be at least 1, got {options.chunks}.")
    try:
        twist = np.array([float(number) for number in options.twist.split(",")])
    except ValueError:
        raise ValueError(f"--twist takes six numbers vx,vy,vz,wx,wy,wz, got {options.twist!r}.") from None
    poses = hold(np.eye(4), twist, config.chunk_frames * options.chunks, config.fps)
    return np.concatenate((np.eye(4)[None], config.workspace.confine(np.eye(4), poses)))
