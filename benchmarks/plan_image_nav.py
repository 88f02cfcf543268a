"""CEM on SanaWM/ImageNav-v0, by pictures alone, from start spots that no training has seen, against random policies.

    python benchmarks/plan_image_nav.py                 # 15 minutes on one core; goes on where it was stopped
    python benchmarks/plan_image_nav.py --share 1/2     # every second episode alone, beside 0/2 on another core

The goal is a picture that the world imagines at the end of a hidden walk of three steps. The planner sees that picture
and what it imagines, no pose: 64 futures of three steps for every decision. An episode succeeds when the camera
stands within 0.35 m and 20 degrees of the hidden pose, within six steps. Success rates have 95 % Wilson intervals.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from harness import console, header, kept, numbers_file, parser, plot, plot_file, show, write
from rich.progress import track
from sanawm_env.agents.planners import CEM, PLANAR, ImageGoal
from scipy.stats import binomtest

from sanawm_env import SanaWMEnv, SanaWMVectorEnv, World
from sanawm_env.training.truth import draw_walk
from sanawm_env.world.anchor import Anchor
from sanawm_env.world.images import save_start

EPISODES, STEPS, SEED = 24, 6, 2029
PLANNER = CEM(horizon=3, candidates=32, iterations=2, elites=5)
RUN = Path("runs/plan_image_nav")
Draw = Callable[[SanaWMEnv, np.random.Generator], np.ndarray]


def held_out_starts(world: World, count: int) -> list[Path]:
    """Start pictures of held-out spots in the known places, rendered, with their anchors inside."""
    folder = RUN / "starts"
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for i in range(count):
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
    return {
        "success": bool(over[0]),
        "steps": info["chunk"],
        "distance_before": float(away),
        "distance": float(info["distance"]),
        "angle": float(info["angle"]),
    }


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


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--share", default="0/1", help="i/n: every n-th episode from the i-th, and no table")
    options = options.parse_args()
    first, step = map(int, options.share.split("/"))
    torch.set_num_threads(1)
    world, count = World.load("nano"), 2 if options.quick else EPISODES
    starts = held_out_starts(world, count)
    env = SanaWMEnv(world, task="imagenav", scenes=starts, max_episode_chunks=STEPS)
    episodes = [
        kept(RUN / f"{i:02}.json", partial(planned, env, i))
        for i in track(range(first, count, step), "planning", console=console)
    ]
    if step > 1:
        return
    policies = {
        "CEM, 64 imagined futures a decision": rate(sum(e["success"] for e in episodes), count),
        "random, planar twists": rate(*random_successes(starts, uniform(PLANAR))),
        "random, whole action space": rate(*random_successes(starts, uniform(tuple(range(6))))),
        "random, as hidden walks are drawn": rate(*random_successes(starts, walk)),
    }
    rows = [
        [name, f"{row['rate']:.0%}", f"{row['low']:.0%} to {row['high']:.0%}", str(row["episodes"])]
        for name, row in policies.items()
    ]
    show("SanaWM/ImageNav-v0, held-out spots", ["policy", "success", "95 % interval", "episodes"], rows)
    numbers = {"planner": vars(PLANNER), "policies": policies, "episodes": episodes}
    file = numbers_file(options, "plan_image_nav")
    write(file, header() | numbers)
    draw(episodes[:8], plot_file(file))


def draw(episodes: list[dict], file: Path) -> None:
    """Start, goal and end of episodes, the first ones."""
    with plot(file, 3, len(episodes), size=(1.5 * len(episodes), 3.4)) as axes:
        for column, episode in enumerate(episodes):
            for row, picture in enumerate(np.load(RUN / f"{column:02}.npy")):
                axes[row, column].imshow(picture)
                axes[row, column].set(xticks=[], yticks=[])
            axes[2, column].set_xlabel(f"{episode['distance']:.2f} m, {episode['angle']:.0f}°", fontsize=8)
        for row, name in enumerate(("start", "goal", "end")):
            axes[row, 0].set_ylabel(name)


if __name__ == "__main__":
    main()
