"""Go-Explore with snapshots against the same explorer without: viewpoint cells seen at equal step budget.

    python benchmarks/explore_curves.py         # some minutes on one core; finished runs are kept

Mean and 95 % interval (Student's t) over seeds.
"""

from functools import partial
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch
from harness import console, header, interval, kept, numbers_file, parser, plot, plot_file, show, write
from rich.progress import track
from sanawm_env.agents.go_explore import GoExplore

from sanawm_env import SanaWMEnv, World

SLOTS, EPISODE = 16, 10
WAYS = {"with snapshots": GoExplore(walk=3), "from the start each time": GoExplore(returns=False)}


def run(name: str, seed: int, budget: int) -> dict:
    """Coverage after every batched step, and the archive's size."""
    starts = World.load("nano").starts
    env = SanaWMEnv("nano", scenes=starts[seed * 9 % len(starts)], max_episode_chunks=EPISODE)
    env.reset(seed=seed)
    coverage, archive = WAYS[name].run(env.simulator, env.episode, SLOTS, budget, seed)
    return {"coverage": coverage.tolist(), "snapshots": len(archive.episodes), "bytes": archive.nbytes}


def main() -> None:
    options = parser(__doc__).parse_args()
    torch.set_num_threads(1)
    budget, seeds = (64, 2) if options.quick else (800, 5)
    settings = repr((SLOTS, budget, EPISODE, WAYS))  # runs of other settings are kept apart
    folder = Path("runs/explore_curves") / sha256(settings.encode()).hexdigest()[:8]
    jobs = [(name, seed) for seed in range(seeds) for name in WAYS]
    runs = {
        (name, seed): kept(folder / f"{name.replace(' ', '_')}_{seed}.json", partial(run, name, seed, budget))
        for name, seed in track(jobs, "exploring", console=console)
    }
    file = numbers_file(options, "explore_curves")
    steps, rows, explorers = SLOTS * np.arange(1, budget // SLOTS + 1), [], {}
    with plot(plot_file(file)) as axes:
        for name in WAYS:
            curves, counts, sizes = (
                np.array([runs[name, seed][what] for seed in range(seeds)])
                for what in ("coverage", "snapshots", "bytes")
            )
            mean, half = interval(curves)
            axes.plot(steps, mean, label=name)
            axes.fill_between(steps, mean - half, mean + half, alpha=0.2)
            ends = f"{mean[-1] - half[-1]:.0f} to {mean[-1] + half[-1]:.0f}"
            rows.append([name, f"{mean[-1]:.0f}", ends, f"{sizes.mean() / 1e6:.0f}"])
            explorers[name] = {
                "mean": mean,
                "half": half,
                "curves": curves,
                "archive_bytes": sizes.mean(),
                "archive_snapshots": counts,
            }
        axes.set(xlabel="environment steps", ylabel="viewpoint cells seen")
        axes.legend(frameon=False)
    show(f"after {budget} steps, {seeds} seeds", ["explorer", "cells", "95 % interval", "archive, MB"], rows)
    numbers = {"settings": settings, "seeds": seeds, "steps": steps, "explorers": explorers}
    write(file, header() | numbers)


if __name__ == "__main__":
    main()
