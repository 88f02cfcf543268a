"""Plan in imagination: eight random futures from one moment in one batch, and the one that turns farthest right wins.

    python examples/plan_by_forking.py
"""

import numpy as np
from sanawm_env.agents.shooting import random_shooting

from sanawm_env import World


def rightness(frames: np.ndarray, c2w: np.ndarray) -> np.ndarray:
    """Heading of the last frame to the right of the first, in degrees."""
    forward = c2w[:, -1, :3, 2]
    return np.degrees(np.arctan2(forward[:, 0], forward[:, 2]))


def main() -> None:
    world = World.load("nano")
    state = world.begin(world.scene(world.starts[0]), seed=0)
    plan = random_shooting(world, state, rightness, np.random.default_rng(0), candidates=8, horizon=2)
    print("futures turned by", np.round(plan.scores).astype(int), "degrees; best actions (v | w, in [-1, 1]):")
    print(np.round(plan.actions, 2))


if __name__ == "__main__":
    main()
