"""`sanawm train`: train a nano world."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from sanawm_env.cli.arguments import TrajectoryReading
from sanawm_env.cli.output import console, say

if TYPE_CHECKING:
    from sanawm_env.training.clips import Footage

MAX_PROCESSES, SHOWN = 1024, 20
OF_CLIPS = ("held_out", "fov_deg", "poses_from")


@dataclass(frozen=True, kw_only=True)
class Train(TrajectoryReading):
    """Train a nano world: codec, clips, depth, network, and an evaluation. The same command continues after an
    interruption.
    """

    out: Path = Path("runs/train")
    """Folder for all files; the trained world is its folder world."""
    config: Path | None = None
    """Recipe, such as the recipe.json of an earlier run; settings that it leaves out are those of the shipped world."""
    quick: bool = False
    """Train a tiny world in a few minutes, to try the command."""
    data: Path | None = None
    """Folder of your own clips to train on: videos, each with a file of poses beside it (docs/own_footage.md).
    The options for trajectories apply to these files."""
    poses_from: Literal["files", "colmap"] = "files"
    """Source of the clips' poses: files beside them, or COLMAP (needs the extra "poses").
    COLMAP estimates them from the images, and they are kept in the folder poses of --out. It cannot tell the scale;
    --metres-per-unit is then the camera's average speed in m/s."""
    held_out: Path | None = None
    """Folder of clips that are not trained on, for the evaluation."""
    fov_deg: float | None = None
    """Horizontal field of view of the clips' upright frames, 1 to 179 degrees;
    None for the intrinsics of their poses."""
    steps: int | None = None
    """Training steps of the network; None for those of the recipe. A finished run can be extended."""
    processes: int = 2
    """Training processes of one thread each, 1 to 1024, each with its own batch."""
    device: str = "cpu"
    """Device of torch, such as cpu or cuda.
    On an H100 the training takes about six minutes, with a process per core."""

    def run(self) -> None:
        """Train the world, and print its folder.

        Raises:
            ValueError: for options that do not go together, or clips that cannot be used.
            OSError: for files that do not exist, or a folder that cannot be written.
        """
        from sanawm_env.cli.machine import machine_name
        from sanawm_env.recording.rollout import check_writable
        from sanawm_env.system.files import check_count
        from sanawm_env.system.saving import check_outside
        from sanawm_env.training.recipe import CLIPS, NETWORK, ON_GPU, OWN, QUICK, SHIPPED, WORLD, Recipe, run
        from sanawm_env.world.world import usable_device

        device = usable_device(self.device)
        check_count("--processes", self.processes, 1, MAX_PROCESSES)
        recipe = QUICK if self.quick else OWN if self.data is not None else SHIPPED
        if device.type == "cuda" and recipe is SHIPPED:
            recipe = ON_GPU
        if self.config is not None:
            if self.quick:
                raise ValueError("--quick is a recipe of its own: leave out --quick or --config.")
            recipe = Recipe.load(self.config)
        if self.steps is not None:
            recipe = replace(recipe, train=replace(recipe.train, steps=self.steps))
        footage = held_out = None
        of_clips = [each for each in fields(Train) if each.name in (*OF_CLIPS, *TrajectoryReading.__annotations__)]
        given = [each.name for each in of_clips if getattr(self, each.name) != each.default]
        if self.data is None and given:
            flags = ", ".join(f"--{name.replace('_', '-')}" for name in given)
            raise ValueError(f"Without --data these options have no effect, {flags}: give --data, or leave them out.")
        if self.data is not None:
            if self.held_out is not None and self.held_out.resolve().is_relative_to(self.data.resolve()):
                raise ValueError(f"{self.held_out} is in {self.data}, which is trained on: give another folder.")
            for folder in (self.data, *([self.held_out] if self.held_out is not None else [])):
                check_outside(self.out, folder)
                for name in (CLIPS, NETWORK, WORLD):
                    check_outside(folder, self.out / name)
            footage = self._footage(self.data, recipe.clips.chunks)
            held_out = None if self.held_out is None else self._footage(self.held_out, recipe.clips.chunks, True)
        check_writable(self.out)
        machine, processes = machine_name(device), self.processes
        world = run(
            recipe, self.out, footage=footage, held_out=held_out, processes=processes, device=str(device),
            machine=machine, console=console,
        )  # fmt: skip
        say(f"world {world} (try: sanawm rollout --world {world} --actions w-48)")

    def _footage(self, data: Path, chunks: int, all_long: bool = False) -> "Callable[[], Iterable[Footage]]":
        """A function that reads the clips of a folder, after a check of all of them, which prints what was found and
        what looks wrong. all_long: whether a clip that is shorter than a training piece is an error; otherwise only all
        of them are.

        Raises ValueError where a clip cannot be used, after a sentence for each.
        """
        from sanawm_env.cli.footage import find_clips, plan, poses_beside
        from sanawm_env.system.files import check_number
        from sanawm_env.training.clips import CHUNK
        from sanawm_env.training.nano import NANO_SMALL

        if self.fov_deg is not None:
            check_number("--fov-deg", self.fov_deg, 1, 179)
        videos, size = find_clips(data), 1 + CHUNK * chunks
        if self.poses_from == "colmap":
            from sanawm_env.cli.poses import poses_by_colmap

            poses_of = poses_by_colmap(self.out / "poses", self.metres_per_unit, self.fov_deg)
        else:
            poses_of = poses_beside(data, self)
        clips, problems = plan(videos, poses_of, self.fov_deg)
        short = [clip for clip in clips if len(clip.shown) < size]
        seconds = (size - 1) / NANO_SMALL.fps
        if all_long or len(short) == len(clips):
            problems += [f"{clip.video} is shorter than the {seconds:g} s of {chunks} chunks." for clip in short]
        elif short:
            say(f"! {len(short)} of {len(clips)} clips are shorter than {seconds:g} s: they are not used.")
        self._say_each(problems, "red")
        if problems:
            raise ValueError(
                f"{len(problems)} of {len(videos)} clips in {data} cannot be used, as listed above: correct them, or "
                "move them away."
            )
        self._say_each([f"{clip.video}: {warning}" for clip in clips for warning in clip.warnings], "yellow")
        lasts = sum(len(clip.shown) for clip in clips) / NANO_SMALL.fps
        say(f"{len(clips)} clips in {data}: {lasts:.0f} s with poses")
        return lambda: (clip.read() for clip in clips)

    @staticmethod
    def _say_each(sentences: list[str], style: str) -> None:
        for sentence in sentences[:SHOWN]:
            say(f"! {sentence}", style=style)
        if len(sentences) > SHOWN:
            say(f"! and {len(sentences) - SHOWN} more", style=style)
