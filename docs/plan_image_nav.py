"""CEM on SanaWM/ImageNav-v0, by pictures alone, from start spots that no training has seen, against random policies.

    python docs/plan_image_nav.py                 # 15 minutes on one core; goes on where it was stopped
    python docs/plan_image_nav.py 1 2             # every second episode alone, beside `0 2` on another core

The goal is a picture that the world imagines at the end of a hidden walk of three steps. The planner sees that picture
and what it imagines, no pose: 64 futures of three steps for every decision. An episode succeeds when the camera
stands within 0.35 m and 20 degrees of the hidden pose, within six steps. Success rates have 95 % Wilson intervals.
Writes docs/benchmarks/plan_image_nav.json and docs/plan_image_nav.png.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from matplotlib import pyplot as plt
from rich.console import Console
from rich.progress import track
from rich.table import Table
from sanawm_env.agents.planners import CEM, PLANAR, ImageGoal
from scipy.stats import binomtest

from sanawm_env import SanaWMEnv, SanaWMVectorEnv
from sanawm_env.cli.machine import machine_name
from sanawm_env.training.truth import draw_walk
from sanawm_env.world.anchor import Anchor
from sanawm_env.world.images import save_start
from sanawm_env.world.world import World

EPISODES, STEPS, SEED = 24, 6, 2029
PLANNER = CEM(horizon=3, candidates=32, iterations=2, elites=5)
DOCS, RUN = Path(__file__).parent, Path("runs/plan_image_nav")
Draw = Callable[[SanaWMEnv, np.random.Generator], np.ndarray]


def held_out_starts(world: World) -> list[Path]:
    """Start pictures of held-out spots in the known places, rendered, with their anchors inside."""
    folder = RUN / "starts"
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for i in range(EPISODES):
        paths.append(folder / f"{i:02}.png")
        if not paths[-1].exists():
            walk = draw_walk(world.config, SEED, i, 1)
            save_start(walk.first_frame(world.config), Anchor(walk.place.name, walk.c2w[0]), paths[-1])
    return paths


def planned(env: SanaWMEnv, index: int) -> dict:
    """One episode of the planner: what it needed, and the pictures at its start, its goal and its end."""
    rng, previous, over = np.random.default_rng(index), None, (False, False)
    obs, info = env.reset(seed=SEED + index, options={"scene": index})
    goal, away = env.snapshot().task.image, info["distance"]
    pictures = [obs["rgb"], obs["goal_rgb"]]
    while not any(over):
        action, previous = PLANNER.act(env, ImageGoal(goal), rng, previous)
        obs, _, *over, info = env.step(action)
    np.save(RUN / f"{index:02}.npy", np.stack([*pictures, obs["rgb"]]))
    return {"success": over[0], "steps": info["chunk"], "distance_before": away, "distance": info["distance"],
            "angle": info["angle"]}  # fmt: skip


def uniform(axes: tuple[int, ...]) -> Draw:
    """Uniform actions on some axes of the twist."""

    def draw(env: SanaWMEnv, rng: np.random.Generator) -> np.ndarray:
        action = np.zeros(6, np.float32)
        action[list(axes)] = rng.uniform(-1, 1, len(axes))
        return action

    return draw


def walk(env: SanaWMEnv, rng: np.random.Generator) -> np.ndarray:
    """As the hidden walks are drawn, forwards with turns: the strongest policy that does not look."""
    return env.controller.sample_walk_actions(rng, 1)[0]


def random_successes(starts: list[Path], draw: Draw, rounds: int = 4) -> tuple[int, int]:
    """Successes and episodes of a policy that does not look, from the same spots."""
    rng, successes = np.random.default_rng(SEED), 0
    envs = SanaWMVectorEnv(
        len(starts), world="nano", task="imagenav", scenes=starts, max_episode_chunks=STEPS, obs_mode="latent"
    )
    for first in range(rounds):
        envs.reset(seed=SEED + 1000 * (first + 1))
        going = np.ones(len(starts), bool)
        for _ in range(STEPS):
            _, _, terminated, truncated, _ = envs.step(np.stack([draw(env, rng) for env in envs.envs]))
            successes += int((terminated & going).sum())
            going &= ~(terminated | truncated)
    return successes, rounds * len(starts)


def rate(successes: int, episodes: int) -> dict:
    low, high = binomtest(successes, episodes).proportion_ci(method="wilson")
    return {"rate": successes / episodes, "low": low, "high": high, "episodes": episodes}


def main(first: int = 0, step: int = 1) -> None:
    console, world = Console(), World.load("nano")
    torch.set_num_threads(1)
    starts = held_out_starts(world)
    env = SanaWMEnv(world, task="imagenav", scenes=starts, max_episode_chunks=STEPS)
    files = [RUN / f"{i:02}.json" for i in range(EPISODES)]
    for i in track(range(first, EPISODES, step), "planning", console=console):
        if not files[i].exists():
            files[i].write_text(json.dumps(planned(env, i)))
    if step > 1:
        return
    episodes = [json.loads(file.read_text()) for file in files]
    rows = {
        "CEM, 64 imagined futures a decision": rate(sum(e["success"] for e in episodes), EPISODES),
        "random, planar twists": rate(*random_successes(starts, uniform(PLANAR))),
        "random, whole action space": rate(*random_successes(starts, uniform(tuple(range(6))))),
        "random, as hidden walks are drawn": rate(*random_successes(starts, walk)),
    }
    table = Table("policy", "success", "95 % interval", "episodes", title="SanaWM/ImageNav-v0, held-out spots")
    for name, row in rows.items():
        table.add_row(name, f"{row['rate']:.0%}", f"{row['low']:.0%} to {row['high']:.0%}", str(row["episodes"]))
    console.print(table)
    report = {"machine": machine_name(world.device), "planner": vars(PLANNER), "policies": rows, "episodes": episodes}
    (DOCS / "benchmarks" / "plan_image_nav.json").write_text(json.dumps(report, indent=1, default=float) + "\n")
    plot(episodes)


def plot(episodes: list[dict], count: int = 8) -> None:
    """Start, goal and end of the first episodes."""
    figure, axes = plt.subplots(3, count, figsize=(1.5 * count, 3.4), layout="constrained")
    for column, episode in enumerate(episodes[:count]):
        for row, picture in enumerate(np.load(RUN / f"{column:02}.npy")):
            axes[row, column].imshow(picture)
            axes[row, column].set(xticks=[], yticks=[])
        axes[2, column].set_xlabel(f"{episode['distance']:.2f} m, {episode['angle']:.0f}°", fontsize=8)
    for row, name in enumerate(("start", "goal", "end")):
        axes[row, 0].set_ylabel(name)
    figure.savefig(DOCS / "plan_image_nav.png", dpi=110)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
