"""`sanawm trajectory`: show how a trajectory file is understood, or write it in another format."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import tyro

from sanawm_env.cli.arguments import TrajectoryReading
from sanawm_env.cli.output import say

if TYPE_CHECKING:
    from sanawm_env.camera.trajectory import Trajectory


@dataclass(frozen=True, kw_only=True)
class LookAtTrajectory(TrajectoryReading):
    """Show how a trajectory is understood: format, length, speeds beside those that the models were trained for, the
    path from above, and warnings, with the option that corrects them, where it looks like another convention. Or write
    it in another format.
    """

    file: tyro.conf.Positional[Path]
    """File or folder: COLMAP, nerfstudio, TUM, KITTI, RealEstate10K, .npz, .npy, or an episode."""
    fps: float = 16.0
    """Poses per second, for a file that does not say it."""
    plot: Path = Path("runs/trajectory.png")
    """PNG file for the path from above."""
    export: Path | None = None
    """New folder (for tum: file) to write the trajectory to, with the frames of an episode; None shows it instead."""
    format: Literal["colmap", "nerfstudio", "tum"] = "colmap"
    """Format of --export."""

    def run(self) -> None:
        """Show or write the trajectory.

        Raises:
            ValueError: for a file that cannot be read as a trajectory, and as `export_trajectory`.
            OSError: for files that do not exist, or cannot be written.
        """
        from sanawm_env.system.files import check_number
        from sanawm_env.system.saving import check_apart

        check_number("--fps", self.fps, 1e-3, 1e6)
        if self.export is None:
            check_apart([self.plot], [self.file, *self.file.glob("*"), *self.file.glob("sparse/**/*")])
        trajectory = self.read_trajectory(self.file)
        if self.export is not None:
            self._export(trajectory, self.export)
        else:
            self._show(trajectory)

    def _export(self, trajectory: "Trajectory", out: Path) -> None:
        from sanawm_env.recording.rollout import VIDEO, check_writable
        from sanawm_env.recording.trajectories import export_trajectory
        from sanawm_env.system.saving import check_apart, check_outside

        if self.file.is_dir():  # which would be read as what is exported to it
            check_outside(out, self.file)
        check_apart([out], [self.file])
        check_writable(out.parent)
        video = self.file / VIDEO if (self.file / VIDEO).exists() else None
        for path in export_trajectory(trajectory, out, self.format, video):
            say(path)

    def _show(self, trajectory: "Trajectory") -> None:
        from sanawm_env.camera.inspection import inspect, speeds_text

        found = inspect(trajectory, self.fps)
        speed, turn = speeds_text(found)
        rate = f"{found.fps:g} per second" + ("" if trajectory.fps else ", as the file does not say (--trajectory-fps)")
        for name, text in (
            ("format", f"{trajectory.source}, {trajectory.poses}, {trajectory.axes} axes"),
            ("frames", f"{found.frames}, {rate}: {found.seconds:.3g} s"),
            ("path", f"{found.metres:.3g} m, at most {found.farthest:.3g} m from the start"),
            ("top speed", speed),
            ("top turn", turn),
            ("intrinsics", _intrinsics(trajectory)),
        ):
            say(f"{name:<10}  {text}")
        for warning in found.warnings:
            say(f"! {warning}", style="yellow")
        try:
            self._draw(trajectory)
        except ImportError as error:
            say(error)
        else:
            say(self.plot)

    def _draw(self, trajectory: "Trajectory") -> None:
        from sanawm_env.camera.trajectory import relative_to_first
        from sanawm_env.metrics.figures import draw_path, figure_class
        from sanawm_env.recording.rollout import check_writable
        from sanawm_env.system.saving import replacing

        figure = figure_class()((8, 6), layout="constrained")
        check_writable(self.plot.parent, (self.plot.name,))
        axes = figure.add_subplot(aspect="equal", xlabel="right, m", ylabel="forward, m")
        draw_path(axes, relative_to_first(trajectory.c2w), "C0", arrows=12)
        axes.set_title("From above, seen from its first pose", fontsize=11)
        with replacing(self.plot) as part:
            figure.savefig(part, dpi=110, format="png")


def _intrinsics(trajectory: "Trajectory") -> str:
    import math

    if trajectory.intrinsics is None:
        return "none"
    fx, cx = trajectory.intrinsics[0, 0, 0], trajectory.intrinsics[0, 0, 2]
    width = trajectory.size[0] if trajectory.size else 2 * cx
    angle = math.degrees(2 * math.atan2(width / 2, fx))
    size = f", images of {trajectory.size[0]:g} x {trajectory.size[1]:g} pixels" if trajectory.size else ""
    return f"{angle:.1f} degrees horizontally{size}"
