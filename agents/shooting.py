"""Random shooting: imagine many futures from one moment in one batch, and act as the best of them did.

The oldest planner there is (Rao 2009, random shooting MPC). With states that are values, the fork costs nothing.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from sanawm_env.envs.actions import steering
from sanawm_env.world.state import WorldState, stack
from sanawm_env.world.world import World

Objective = Callable[[np.ndarray, np.ndarray], np.ndarray]


@dataclass(frozen=True, eq=False)
class Plan:
    """actions: (horizon, 6) of the best future, twists in [-1, 1] as the environment takes them. scores: (candidates,).
    frames: (candidates, horizon * 24, H, W, 3) uint8, what each future showed."""

    actions: np.ndarray
    scores: np.ndarray
    frames: np.ndarray


def random_shooting(
    world: World,
    state: WorldState,
    objective: Objective,
    rng: np.random.Generator,
    candidates: int = 8,
    horizon: int = 2,
) -> Plan:
    """Imagine `candidates` random futures of `horizon` chunks from `state` and keep the best.

    Args:
        state: of one episode; it is not changed.
        objective: (frames (candidates, F, H, W, 3) uint8, c2w (candidates, F, 4, 4)) -> scores (candidates,); more is
            better.

    Raises ValueError unless the state is of one episode and the numbers are positive.
    """
    if len(state) != 1 or candidates < 1 or horizon < 1:
        raise ValueError(
            f"random_shooting needs the state of one episode and positive numbers, got {len(state)} episodes, "
            f"candidates {candidates}, horizon {horizon}."
        )
    steer = steering("twist", world.config, world.config.speed, "hold", world.config.workspace)
    actions = rng.uniform(-1, 1, (candidates, horizon, 6))
    futures, frames, c2w = stack([state] * candidates), [], []
    for step in range(horizon):
        starts = [slot.c2w for slot in futures.slots]
        poses = np.stack([steer.move(None, start, a)[1] for start, a in zip(starts, actions[:, step], strict=True)])
        futures, clip = world.advance(futures, poses)
        frames.append(clip.frames.cpu().numpy())
        c2w.append(clip.c2w)
    frames = np.concatenate(frames, axis=1)
    scores = np.asarray(objective(frames, np.concatenate(c2w, axis=1)))
    return Plan(actions[scores.argmax()], scores, frames)
