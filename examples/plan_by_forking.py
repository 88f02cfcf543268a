"""Plan in imagination: fork one state into 16 futures, keep what turns farthest right, act, plan again.

python examples/plan_by_forking.py
"""

import numpy as np
from sanawm_env.agents.planners import CEM

from sanawm_env import SanaWMEnv


def rightness(frames, c2w: np.ndarray) -> np.ndarray:
    """Heading of each future's last frame to the right of the first, in degrees."""
    forward = c2w[:, -1, :3, 2]
    return np.degrees(np.arctan2(forward[:, 0], forward[:, 2]))


def main() -> None:
    env, rng, plan = SanaWMEnv("nano"), np.random.default_rng(0), None
    planner = CEM(horizon=1, candidates=8, iterations=2, elites=2)
    env.reset(seed=0)
    for _ in range(2):
        action, plan = planner.act(env, rightness, rng, plan)
        *_, info = env.step(action)
        here = rightness(None, info["c2w"][None])[0]
        print(f"the best of 16 futures ends {plan.score:.0f} degrees to the right; one step on: {here:.0f} degrees")


if __name__ == "__main__":
    main()
