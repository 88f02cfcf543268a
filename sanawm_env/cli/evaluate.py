"""`sanawm evaluate`: compare a nano world with the ray-traced truth."""

from dataclasses import dataclass
from pathlib import Path

from sanawm_env.cli.arguments import Walks, listed
from sanawm_env.cli.output import check_places, console, say, write_numbers


@dataclass(frozen=True, kw_only=True)
class Evaluate(Walks):
    """Compare a nano world with the ray-traced truth, on random walks drawn from a seed."""

    out: Path = Path("runs/evaluate")
    """Folder for truth_vs_predicted.png."""
    timesteps: str | None = None
    """Noise levels of the sampler, such as "1000,700"; None for the world's own."""
    unknown_scenes: int = 0
    """Number of further walks, without anchors, in layouts that the world does not know;
    their results are shown apart."""

    def run(self) -> None:
        from sanawm_env.training.evaluate import evaluate, print_table, save_sheet

        sheet = self.out / "truth_vs_predicted.png"
        check_places(sheet, self.json, world=self.world)
        report = evaluate(
            self.world,
            self.scenes,
            self.seed,
            self.chunks,
            timesteps=listed(float, self.timesteps, "--timesteps takes numbers such as 1000,700")
            if self.timesteps
            else None,
            unknown_scenes=self.unknown_scenes,
            role=self.role,
        )
        print_table(report, console)
        save_sheet(report, sheet)
        say(f"sheet {sheet}")
        write_numbers(self.json, report.to_json())
