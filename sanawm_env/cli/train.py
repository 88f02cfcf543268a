"""`sanawm train`: a nano world of one's own."""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from sanawm_env.cli.output import console, say

MAX_PROCESSES = 1024


@dataclass(frozen=True)
class Train:
    """Make a nano world: codec, clips, depth, network, then a look at it. Goes on where it was stopped, at any kill."""

    out: Path = Path("runs/train")
    """Folder for everything; the finished world is in its folder `world`."""
    config: Path | None = None
    """A recipe, such as the recipe.json that a run leaves; what it leaves out is as shipped."""
    quick: bool = False
    """A tiny world in a few minutes: the same chain, for trying it out."""
    data: Path | None = None
    """Folder of one's own clips (video.mp4 and trajectory.npz each, as rollouts leave them) to learn from instead."""
    steps: int | None = None
    """Length of the training; a run can be made longer later."""
    processes: int = 2
    """Training processes of one thread each, each with a batch of its own."""
    device: str = "cpu"
    """On a CUDA device the training takes about six minutes of an H100: give it a process per core."""

    def run(self) -> None:
        from sanawm_env.cli.footage import check_clips, clip_folders, read_clip
        from sanawm_env.cli.machine import machine_name
        from sanawm_env.recording.rollout import check_writable
        from sanawm_env.training.recipe import CLIPS, NETWORK, ON_GPU, QUICK, SHIPPED, WORLD, Recipe, run
        from sanawm_env.world.files import check_count
        from sanawm_env.world.saving import check_outside
        from sanawm_env.world.world import usable_device

        device = usable_device(self.device)
        check_count("--processes", self.processes, 1, MAX_PROCESSES)
        recipe = QUICK if self.quick else Recipe() if self.data is not None else SHIPPED
        if device.type == "cuda" and recipe is SHIPPED:
            recipe = ON_GPU
        if self.config is not None:
            if self.quick:
                raise ValueError("--quick is a recipe of its own: leave out --quick or --config.")
            recipe = Recipe.load(self.config)
        if self.steps is not None:
            recipe = replace(recipe, train=replace(recipe.train, steps=self.steps))
        footage = None
        if self.data is not None:
            check_outside(self.out, self.data)
            for name in (CLIPS, NETWORK, WORLD):
                check_outside(self.data, self.out / name)
            folders = clip_folders(self.data)
            check_clips(folders)
            footage = partial(map, read_clip, folders)
        check_writable(self.out)
        machine, processes = machine_name(device), self.processes
        world = run(
            recipe, self.out, footage=footage, processes=processes, device=str(device), machine=machine, console=console
        )
        say(f"world {world} (try: sanawm rollout --world {world} --actions w-48)")
