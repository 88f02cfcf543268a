"""PPO from pixels, three seeds, against a random policy and one that always walks forward.

    python docs/ppo_explore.py                      # half an hour on one core; goes on where it was stopped
    python docs/ppo_explore.py --task imagenav      # the same for a goal that has to be seen

explore: SanaWM/Explore-v0, eight steps, pictures alone. Its reward counts viewpoints and asks nothing of the picture,
so the table also has the best action to repeat: PPO should find it, and cannot do better by looking.
imagenav: SanaWM/ImageNav-v0, the goal one step away, two steps to get there. Which way it lies is to be seen in the
pictures alone. A quarter of the start spots is never trained on, and the policies are compared there.

Episodes of evaluation have seeds that no training draws from. The 95 % intervals are of the mean over three seeds
(Student's t), for PPO three trainings, for the others three draws of episodes. Writes docs/benchmarks/ppo_TASK.json
and docs/ppo_TASK.png.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import matplotlib.pyplot as plt
import numpy as np
import torch
import tyro
from rich.console import Console
from rich.table import Table
from sanawm_env.agents.train_ppo import TrainPPO, make_envs, train_ppo
from scipy import stats

from sanawm_env import World
from sanawm_env.camera.presets import WALKING_TURNS
from sanawm_env.cli.machine import machine_name

SEEDS, EPISODES = (0, 1, 2), 32  # trainings, and episodes of evaluation for each
HELD_OUT = 10**6  # seeds of evaluation episodes begin here
DOCS, RUNS = Path(__file__).parent, Path("runs")
STARTS = tuple(map(Path, World.load("nano").starts))

Policy = Callable[[np.ndarray | dict[str, np.ndarray]], np.ndarray]


@dataclass(frozen=True)
class Experiment:
    """settings: of the trainings, all but seed and folder. scenes: start spots of evaluation; () for all. repeated: the
    policies that repeat one action, by name."""

    settings: TrainPPO
    scenes: tuple[Path, ...]
    repeated: dict[str, str]

    def training(self, seed: int) -> TrainPPO:
        return replace(self.settings, seed=seed, out=RUNS / f"ppo_{self.settings.task}" / f"seed_{seed}")

    def run(self, console: Console) -> dict[str, dict]:
        """A row of the table for every policy."""
        count = self.settings.num_envs
        policies: dict[str, Callable[[int], Policy]] = {"random": lambda seed: random(seed, count)}
        for name, keys in self.repeated.items():
            policies[name] = lambda seed, keys=keys: lambda obs: np.full(count, WALKING_TURNS.index(keys))
        policies["PPO"] = lambda seed: self.trained(seed, console)
        return {
            name: summary([self.evaluate(policy(seed), seed) for seed in SEEDS]) for name, policy in policies.items()
        }

    def trained(self, seed: int, console: Console) -> Policy:
        model = train_ppo(self.training(seed), console)
        return lambda obs: model.predict(obs, deterministic=True)[0]

    def evaluate(self, policy: Policy, seed: int) -> dict[str, float]:
        """Means over the held-out episodes of a seed: return and, of a task with goals, success."""
        envs = make_envs(replace(self.settings, scenes=self.scenes))
        returns, successes = [], []
        for first in range(0, EPISODES, envs.num_envs):
            envs.seed(HELD_OUT + seed * EPISODES + first)
            obs, going = envs.reset(), np.ones(envs.num_envs, bool)
            total, reached = np.zeros(envs.num_envs), np.zeros(envs.num_envs, bool)
            while going.any():
                obs, rewards, done, infos = envs.step(policy(obs))
                total += rewards * going
                reached |= going & [info.get("is_success", False) for info in infos]
                going &= ~done
            returns.extend(total)
            successes.extend(reached)
        means = {"return": float(np.mean(returns))}
        return means if self.settings.task == "explore" else means | {"success": float(np.mean(successes))}


EXPERIMENTS = {
    "explore": Experiment(
        TrainPPO(task="explore", steps=6_500), (), {"always forward": "w", "always forward, turning right": "wd"}
    ),
    "imagenav": Experiment(
        TrainPPO(
            task="imagenav",
            goal_chunks=1,
            max_episode_chunks=2,
            gamma=0.9,
            steps=8_000,
            scenes=tuple(spot for i, spot in enumerate(STARTS) if i % 4),
        ),
        STARTS[::4],
        {"always forward": "w", "stay": ""},
    ),
}


def random(seed: int, count: int) -> Policy:
    rng = np.random.default_rng(seed)
    return lambda obs: rng.integers(len(WALKING_TURNS), size=count)


def summary(seeds: list[dict[str, float]]) -> dict[str, dict]:
    """Of every measure: the means of the seeds, their mean and its 95 % interval."""
    rows = {}
    for measure in seeds[0]:
        values = np.array([means[measure] for means in seeds])
        half = float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values))
        mean = float(values.mean())
        rows[measure] = {"mean": mean, "low": mean - half, "high": mean + half, "seeds": values.tolist()}
    return rows


def plot(rows: dict[str, dict], curves: list[list[dict[str, float]]], path: Path) -> None:
    figure, axes = plt.subplots(figsize=(6, 3.5), layout="constrained")
    for seed, points in zip(SEEDS, curves, strict=True):
        axes.plot([p["steps"] for p in points], [p["return"] for p in points], label=f"PPO, seed {seed}")
    others = [policy for policy in rows if policy != "PPO"]
    for policy, style in zip(others, (":", "--", "-."), strict=False):
        axes.axhline(rows[policy]["return"]["mean"], color="grey", linestyle=style, label=policy)
    axes.set(xlabel="environment steps", ylabel="mean return of the last 100 episodes")
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=120)


def main(task: Literal["explore", "imagenav"] = "explore") -> None:
    torch.set_num_threads(1)
    console, experiment = Console(), EXPERIMENTS[task]
    rows = experiment.run(console)
    table = Table("policy", "return", "95 % interval", *(("success", "95 % interval") if task == "imagenav" else ()))
    for policy, row in rows.items():
        cells = []
        for measure, (mean, interval) in FORMATS.items():
            cells += [mean.format(**row[measure]), interval.format(**row[measure])] if measure in row else []
        table.add_row(policy, *cells)
    console.print(table)
    curves = [json.loads((experiment.training(seed).out / "progress.json").read_text()) for seed in SEEDS]
    report = {
        "machine": machine_name(torch.device("cpu")),
        "episodes_per_seed": EPISODES,
        "settings": asdict(experiment.settings) | {"scenes": len(experiment.settings.scenes or STARTS)},
        "policies": rows,
        "curves": curves,
    }
    (DOCS / "benchmarks" / f"ppo_{task}.json").write_text(json.dumps(report, indent=1, default=str) + "\n")
    plot(rows, curves, DOCS / f"ppo_{task}.png")


FORMATS = {
    "return": ("{mean:.2f}", "{low:.2f} to {high:.2f}"),
    "success": ("{mean:.0%}", "{low:.0%} to {high:.0%}"),
}

if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
