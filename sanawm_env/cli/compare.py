"""`sanawm compare`: how policies rank in a predicted and in a rendered world."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import tyro
from rich.table import Table

from sanawm_env.cli.output import check_places, console, progress, say, write_numbers

if TYPE_CHECKING:
    from sanawm_env.agents.compare_numbers import Agreement, Comparison


@dataclass(frozen=True, kw_only=True)
class Compare:
    """Run policies of graded skill in a predicted and in a rendered world, from the same starts to the same goals.
    Shows success rates in both, their gap, correlation and rank violation. The same command continues after an
    interruption.
    """

    world: tyro.conf.Positional[str] = "nano"
    """Name or folder of the predicted world."""
    truth: tyro.conf.Positional[str] = "rooms"
    """Name or folder of the rendered world (the truth)."""
    task: Literal["image-nav", "point-nav"] = "image-nav"
    """Task: reach a goal image, or a goal position."""
    scenes: str = "known"
    """Where episodes begin: known, or a set of furnished rooms such as rooms:test.
    Known places are in the training data of nano; furnished rooms of a test set are not."""
    episodes: int = 24
    """Number of episodes per policy and world."""
    steps: int = 6
    """Largest number of steps of an episode."""
    policies: tuple[str, ...] = ()
    """Names of the policies to run; all if none are given."""
    seed: int = 0
    """Seed of starts and goals."""
    out: Path = Path("runs/compare")
    """Folder for the numbers, a plot, and the outcomes of each policy."""

    def run(self) -> None:
        """Compare with walls that let the camera pass and with walls that stop it, where the rendered world has that
        option. Raises as `agents.compare`.
        """
        from sanawm_env.agents.compare import (
            SETTINGS,
            anchors_of,
            check_scenes,
            choose,
            compare,
            draw_setups,
            load_truth,
            simulators,
        )
        from sanawm_env.agents.compare_numbers import scatter
        from sanawm_env.metrics.figures import figure_class
        from sanawm_env.system.saving import replacing
        from sanawm_env.world.state import check_seed
        from sanawm_env.world.world import World

        check_seed(self.seed)
        check_scenes(self.scenes)
        setting, name = SETTINGS[self.task], f"{self.task}-{self.scenes.replace(':', '-')}"
        policies = choose(setting.policies, self.policies)
        numbers, picture = self.out / f"{name}.json", self.out / f"{name}.png"
        check_places(numbers, picture, world=self.world)
        figure = figure_class()(figsize=(9, 4.6), layout="constrained")
        predicted = World.load(self.world)
        truths = {
            load_truth(self.truth, predicted, walls): walls for walls in (False, True)
        }  # one, where it cannot stop
        solid = simulators(predicted, load_truth(self.truth, predicted, True), setting.task, self.steps)[1]
        anchors = anchors_of(self.scenes, predicted.config, solid.world.config, self.episodes, self.seed)
        found = []
        with progress("comparing", "runs of a policy") as bar:
            at = bar.add_task("", total=2 * len(policies) * len(truths))
            unseen = load_truth(self.truth, predicted, True, small=True)
            setups = draw_setups(solid, anchors, self.seed, min(setting.chunks, self.steps), unseen)
            for truth, walls in truths.items():
                found.append(
                    compare(
                        *simulators(predicted, truth, setting.task, self.steps),
                        setups,
                        policies,
                        unseen=load_truth(self.truth, predicted, walls, small=True),
                        title=f"{self.task}, {self.scenes}, walls {'stop' if walls else 'let pass'}",
                        keep=self.out / "runs",
                        progress=lambda _: bar.advance(at),
                    )
                )
        for axes, comparison in zip(figure.subplots(1, len(found), squeeze=False)[0], found, strict=True):
            show(comparison)
            scatter(axes, comparison)
            axes.legend(title="acts on", fontsize=8)
        with replacing(picture) as part:
            figure.savefig(part, dpi=120, format="png")
        say(f"plot {picture}")
        write_numbers(numbers, json.dumps([comparison.to_plain() for comparison in found], indent=1))


def show(comparison: "Comparison") -> None:
    """Print a row for each policy, then how far the worlds agree."""
    table = Table(
        "policy", "acts on", "predicted", "truth", "gap", title=f"{comparison.title}, {comparison.episodes} episodes"
    )
    for row in comparison.rows:
        table.add_row(row.name, row.acts_on, percent(row.predicted), percent(row.truth), f"{100 * row.gap:+.0f}")
    console.print(table)
    for who, agreement in (("all policies", comparison.every), ("those that act on images", comparison.images)):
        if agreement is not None:
            say(f"{who} ({agreement.policies}): {told(agreement)}")


def percent(estimate: tuple[float, float, float]) -> str:
    """An estimate in percent, such as "42 (24 to 61)"."""
    value, low, high = (round(100 * number) for number in estimate)
    return f"{value} ({low} to {high})"


def told(agreement: "Agreement") -> str:
    """An agreement as text, with 95 % intervals."""
    parts = []
    for name in ("r", "violation", "gap"):
        value, low, high = getattr(agreement, name)
        interval = f" ({low:.2f} to {high:.2f})" if low <= high else ""  # NaN is neither
        parts.append(f"{name} {value:.2f}{interval}")
    return ", ".join(parts)
