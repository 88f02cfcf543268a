"""PPO from pixels, three seeds, against a random policy and one that always walks forward.

    python benchmarks/ppo_explore.py                      # half an hour on one core; goes on where it was stopped
    python benchmarks/ppo_explore.py --task imagenav      # the same for a goal that has to be seen

explore: SanaWM/Explore-v0, eight steps, pictures alone. Its reward counts viewpoints and asks nothing of the picture,
so the table also has the best action to repeat: PPO should find it, and cannot do better by looking.
imagenav: SanaWM/ImageNav-v0, the goal one step away, two steps to get there. Which way it lies is to be seen in the
pictures alone. A quarter of the start spots is never trained on, and the policies are compared there.

Episodes of evaluation have seeds that no training draws from. The 95 % intervals are of the mean over three seeds
(Student's t), for PPO three trainings, for the others three draws of episodes.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import console, header, interval, numbers_file, parser, plot, plot_file, show, write
from sanawm_env.agents.train_ppo import TrainPPO, make_envs, train_ppo

from sanawm_env import World
from sanawm_env.camera.presets import WALKING_TURNS

SEEDS, EPISODES = (0, 1, 2), 32  # trainings, and episodes of evaluation for each
HELD_OUT = 10**6  # seeds of evaluation episodes begin here
RUNS = Path("runs")
STARTS = tuple(map(Path, World.load("nano").starts))

Policy = Callable[[Any], np.ndarray]  # of what is seen


@dataclass(frozen=True)
class Experiment:
    """settings: of the trainings, all but seed and folder. scenes: start spots of evaluation; () for all. repeated: the
    policies that repeat one action, by name."""

    settings: TrainPPO
    scenes: tuple[Path, ...]
    repeated: dict[str, str]

    def training(self, seed: int) -> TrainPPO:
        return replace(self.settings, seed=seed, out=RUNS / f"ppo_{self.settings.task}" / f"seed_{seed}")

    def run(self) -> dict[str, dict]:
        """A row of the table for every policy."""
        count = self.settings.num_envs
        policies: dict[str, Callable[[int], Policy]] = {"random": lambda seed: random(seed, count)}
        for name, keys in self.repeated.items():
            policies[name] = lambda seed, keys=keys: lambda obs: np.full(count, WALKING_TURNS.index(keys))
        policies["PPO"] = lambda seed: self.trained(seed)
        return {
            name: summary([self.evaluate(policy(seed), seed) for seed in SEEDS]) for name, policy in policies.items()
        }

    def trained(self, seed: int) -> Policy:
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
        values = [means[measure] for means in seeds]
        mean, half = map(float, interval(values))
        rows[measure] = {"mean": mean, "low": mean - half, "high": mean + half, "seeds": values}
    return rows


def draw(rows: dict[str, dict], curves: list[list[dict[str, float]]], file: Path) -> None:
    with plot(file) as axes:
        for seed, points in zip(SEEDS, curves, strict=True):
            axes.plot([p["steps"] for p in points], [p["return"] for p in points], label=f"PPO, seed {seed}")
        others = [policy for policy in rows if policy != "PPO"]
        for policy, style in zip(others, (":", "--", "-."), strict=False):
            axes.axhline(rows[policy]["return"]["mean"], color="grey", linestyle=style, label=policy)
        axes.set(xlabel="environment steps", ylabel="mean return of the last 100 episodes")
        axes.legend(frameon=False, fontsize=8)


FORMATS = {
    "return": ("{mean:.2f}", "{low:.2f} to {high:.2f}"),
    "success": ("{mean:.0%}", "{low:.0%} to {high:.0%}"),
}


def main() -> None:
    options = parser(__doc__, quick=False)
    options.add_argument("--task", choices=EXPERIMENTS, default="explore")
    options = options.parse_args()
    torch.set_num_threads(1)
    experiment, name = EXPERIMENTS[options.task], f"ppo_{options.task}"
    policies = experiment.run()
    measures = policies["PPO"]
    rows = [
        [policy, *(text.format(**row[measure]) for measure in measures for text in FORMATS[measure])]
        for policy, row in policies.items()
    ]
    show(name, ["policy", *(column for measure in measures for column in (measure, "95 % interval"))], rows)
    curves = [json.loads((experiment.training(seed).out / "progress.json").read_text()) for seed in SEEDS]
    numbers = {
        "episodes_per_seed": EPISODES,
        "settings": asdict(experiment.settings) | {"scenes": len(experiment.settings.scenes or STARTS)},
        "policies": policies,
        "curves": curves,
    }
    file = numbers_file(options, name)
    write(file, header() | numbers)
    draw(policies, curves, plot_file(file))


if __name__ == "__main__":
    main()
