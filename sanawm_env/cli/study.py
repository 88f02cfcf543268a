"""`sanawm study`: probe a nano world."""

from dataclasses import dataclass
from pathlib import Path

from sanawm_env.cli.arguments import Walks
from sanawm_env.cli.output import check_places, console, say, write_numbers


@dataclass(frozen=True, kw_only=True)
class Study(Walks):
    """Probe a nano world for some minutes: poses estimated from frames, loop closure, a long walk, two seeds, numbers
    of denoising steps.
    """

    scenes: int = 16
    """Number of walks."""
    out: Path = Path("runs/study")
    """Folder for drift.png."""

    def run(self) -> None:
        from sanawm_env.metrics.figures import figure_class
        from sanawm_env.training.study import plot_drift, print_findings, study

        curves = self.out / "drift.png"
        check_places(curves, self.json, world=self.world)
        figure_class()  # what the end needs is looked for before the work
        findings = study(self.world, self.scenes, self.seed, self.chunks, self.role)
        print_findings(findings, console)
        plot_drift(findings, curves)
        say(f"curves {curves}")
        write_numbers(self.json, findings.to_json())
