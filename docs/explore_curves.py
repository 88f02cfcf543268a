"""Go-Explore with snapshots against the same explorer without: viewpoint cells seen at equal step budget.

    python docs/explore_curves.py         # some minutes on one core; finished runs are kept

Writes docs/benchmarks/explore_curves.json and docs/explore_curves.png: mean and 95 % interval (Student's t) over seeds.
"""

import json
from hashlib import sha256
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from sanawm_env.agents.go_explore import GoExplore
from scipy import stats

from sanawm_env import SanaWMEnv
from sanawm_env.cli.machine import machine_name
from sanawm_env.world.world import World

SLOTS, BUDGET, SEEDS, EPISODE = 16, 800, 5, 10
WAYS = {"with snapshots": GoExplore(walk=3), "from the start each time": GoExplore(returns=False)}
SETTINGS = repr((SLOTS, BUDGET, EPISODE, WAYS))  # runs of other settings are kept apart
DOCS, RUN = Path(__file__).parent, Path("runs/explore_curves") / sha256(SETTINGS.encode()).hexdigest()[:8]


def run(name: str, seed: int) -> dict:
    """Coverage after every batched step, and the archive's size; kept in a file."""
    file = RUN / f"{name.replace(' ', '_')}_{seed}.json"
    if not file.exists():
        starts = World.load("nano").starts
        env = SanaWMEnv("nano", scenes=starts[seed * 9 % len(starts)], max_episode_chunks=EPISODE)
        env.reset(seed=seed)
        coverage, archive = WAYS[name].run(env.simulator, env.episode, SLOTS, BUDGET, seed)
        numbers = {"coverage": coverage.tolist(), "moments": len(archive.episodes), "bytes": archive.nbytes}
        file.write_text(json.dumps(numbers))
    return json.loads(file.read_text())


def main() -> None:
    torch.set_num_threads(1)
    RUN.mkdir(parents=True, exist_ok=True)
    console, steps = Console(), SLOTS * np.arange(1, BUDGET // SLOTS + 1)
    jobs = [(name, seed) for seed in range(SEEDS) for name in WAYS]
    results = {job: run(*job) for job in track(jobs, "exploring", console=console)}
    table = Table("explorer", "cells", "95 % interval", "archive, MB", title=f"after {BUDGET} steps, {SEEDS} seeds")
    figure, axes = plt.subplots(figsize=(6, 3.5), layout="constrained")
    report = {"machine": machine_name(torch.device("cpu")), "settings": SETTINGS, "seeds": SEEDS,
              "steps": steps.tolist(), "explorers": {}}  # fmt: skip
    for name in WAYS:
        curves = np.array([results[name, seed]["coverage"] for seed in range(SEEDS)])
        mean, half = curves.mean(0), stats.t.ppf(0.975, SEEDS - 1) * stats.sem(curves)
        size = np.mean([results[name, seed]["bytes"] for seed in range(SEEDS)])
        axes.plot(steps, mean, label=name)
        axes.fill_between(steps, mean - half, mean + half, alpha=0.2)
        interval = f"{mean[-1] - half[-1]:.0f} to {mean[-1] + half[-1]:.0f}"
        table.add_row(name, f"{mean[-1]:.0f}", interval, f"{size / 1e6:.0f}")
        moments = [results[name, seed]["moments"] for seed in range(SEEDS)]
        report["explorers"][name] = {"mean": mean.tolist(), "half": half.tolist(), "curves": curves.tolist(),
                                     "archive_bytes": size, "archive_moments": moments}  # fmt: skip
    axes.set(xlabel="environment steps", ylabel="viewpoint cells seen")
    axes.legend(frameon=False)
    figure.savefig(DOCS / "explore_curves.png", dpi=120)
    (DOCS / "benchmarks" / "explore_curves.json").write_text(json.dumps(report, indent=1) + "\n")
    console.print(table)


if __name__ == "__main__":
    main()
