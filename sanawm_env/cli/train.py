"""`sanawm train`: the recipe from the command line, and one's own footage brought into the nano world's shape."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console

from sanawm_env.camera.trajectory import relative_to_first
from sanawm_env.cli.machine import machine_name
from sanawm_env.recording.arrays import load_trajectory
from sanawm_env.recording.dataset import PARTIAL
from sanawm_env.recording.rollout import TRAJECTORY, VIDEO, check_writable
from sanawm_env.recording.video import read_video
from sanawm_env.training.clips import Footage
from sanawm_env.training.nano import NANO
from sanawm_env.training.recipe import CLIPS, NETWORK, QUICK, WORLD, Recipe, run
from sanawm_env.world.images import fit_image
from sanawm_env.world.lens import fit_lens
from sanawm_env.world.saving import check_outside, is_part
from sanawm_env.world.world import usable_device


def train(options, console: Console) -> None:
    device = usable_device(options.device)
    if options.processes < 1:
        raise ValueError(f"--processes must be at least 1, got {options.processes}.")
    recipe = QUICK if options.quick else Recipe()
    if options.config is not None:
        if options.quick:
            raise ValueError("--quick is a recipe of its own: leave out --quick or --config.")
        recipe = Recipe.load(options.config)
    if options.steps is not None:
        recipe = replace(recipe, train=replace(recipe.train, steps=options.steps))
    footage = None
    if options.data is not None:
        check_outside(options.out, options.data)
        for name in (CLIPS, NETWORK, WORLD):
            check_outside(options.data, options.out / name)
        footage = partial(map, read_clip, clip_folders(options.data))
    check_writable(options.out)
    world = run(
        recipe, options.out, footage=footage, processes=options.processes, device=str(device),
        machine=machine_name(device), console=console,
    )  # fmt: skip
    console.print(f"world {world} (try: sanawm rollout --world {world} --actions w-48)", soft_wrap=True)


def clip_folders(data: Path) -> list[Path]:
    """Folders under `data`, itself included, that hold a video and its trajectory; FileNotFoundError without any."""
    folders = sorted(path.parent for path in data.rglob(TRAJECTORY))
    whole = [folder for folder in folders if folder.suffix != PARTIAL and not is_part(folder)]
    found = [folder for folder in whole if (folder / VIDEO).exists()]
    if not found:
        raise FileNotFoundError(f"No clips in {data}: a clip is a folder with {VIDEO} and {TRAJECTORY}.")
    return found


def read_clip(folder: Path) -> Footage:
    """A rollout's folder as footage: fitted to the nano world's picture, poses relative to its first frame.

    Raises ValueError where video and trajectory do not belong together, or the lens is missing.
    """
    frames, trajectory = read_video(folder / VIDEO), load_trajectory(folder / TRAJECTORY)
    if len(frames) != len(trajectory.c2w):
        raise ValueError(f"{folder} has {len(frames)} frames and {len(trajectory.c2w)} poses: they must be as many.")
    if trajectory.intrinsics is None:
        raise ValueError(f"{folder / TRAJECTORY} has no intrinsics: add the array (F, 3, 3), in pixels of the video.")
    lens, _ = fit_lens(Image.fromarray(frames[0]), NANO, trajectory.intrinsics[0], None)
    fitted = [fit_image(Image.fromarray(frame), NANO.height, NANO.width) for frame in frames]
    return Footage(np.stack(fitted), relative_to_first(trajectory.c2w), lens)
