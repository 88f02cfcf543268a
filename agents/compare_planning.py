"""Plan in a predicted world and act in a rendered one (the truth). The agent sees rendered frames and its odometry.

    outcome = plan_and_act(acting, setups[0], predicting, CEM(horizon=3, candidates=32), "fresh")

At each decision the planner predicts futures in the model, from the agent's belief about the world, and the first
action of the best plan is done in the truth. The next belief is made of the last one, the true poses of the step and
its last true frame, in one of the ways of `BELIEFS`. With the rendered world as the model, this is the upper limit of
such a planner.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import cast

import numpy as np
import torch
from sanawm_env.agents.compare import Outcome, Setup, begin, outcome_of
from sanawm_env.agents.planners import ImageGoal, Plan, Planner

from sanawm_env.simulation.episode import Episode
from sanawm_env.simulation.simulator import Simulator
from sanawm_env.simulation.tasks import PointNav
from sanawm_env.system.files import check_choice

Belief = Callable[[Simulator, Episode, Episode], Episode]
"""A function (model, belief before the step, true episode after it) -> belief after the step. Beliefs are episodes of
the model."""


def fresh(model: Simulator, before: Episode, seen: Episode) -> Episode:
    """A new start from the true frame, without memory. In a place that the model knows, the start has its anchor."""
    slot = replace(before.slot, frame=_frame(model, seen), c2w=seen.slot.c2w, chunk=seen.slot.chunk)
    state = model.world.reanchor(replace(before.state, slots=(slot,)))
    return Episode(state, seen.controller_state, before.task_state)


def kept(model: Simulator, before: Episode, seen: Episode) -> Episode:
    """The model's own state, advanced along the true poses; its last frame is replaced by the true one. Other memory of
    predicted frames stays.
    """
    state, _ = model.world.advance(before.state, seen.c2w)
    slot = replace(state.slots[0], frame=_frame(model, seen))
    return Episode(replace(state, slots=(slot,)), seen.controller_state, before.task_state)


def _frame(model: Simulator, seen: Episode) -> torch.Tensor:
    return seen.slot.frame.to(model.world.device)


BELIEFS: dict[str, Belief] = {"fresh": fresh, "kept": kept}


def plan_and_act(
    truth: Simulator, setup: Setup, model: Simulator, planner: Planner, belief: str, first: Plan | None = None
) -> Outcome:
    """Run one episode of ImageNav in the truth, planned in the model with the goal image alone. The episode succeeds as
    soon as the task finds the true pose at the goal.

    Args:
        truth: simulator of the rendered world; its task is `ImageNav`.
        setup: the episode.
        model: simulator of the world that the planner predicts in.
        planner: what plans.
        belief: "fresh" or "kept".
        first: the result of `first_plan`, if it is known; it is the same for every belief.

    Raises:
        ValueError: for another belief, and as `begin` and the planner.
    """
    check_choice("belief", belief, BELIEFS)
    task, rng = cast(PointNav, truth.task), _rng(setup, 1)
    plan = first_plan(setup, model, planner) if first is None else first
    (there,), (here,) = begin(truth, [setup]), begin(model, [setup])
    while True:
        (there,), _ = truth.imagine([there], [plan.actions[0]])
        if task.arrived(there) or truth.truncated(there):
            return outcome_of(there, task.arrived(there))
        here = BELIEFS[belief](model, here, there)
        plan = planner.plan(model, here, _objective(model, setup), rng, plan)


def first_plan(setup: Setup, model: Simulator, planner: Planner) -> Plan:
    """The plan at the start of an episode.

    Raises:
        ValueError: as `begin` and the planner.
    """
    return planner.plan(model, begin(model, [setup])[0], _objective(model, setup), _rng(setup, 0))


def _objective(model: Simulator, setup: Setup) -> ImageGoal:
    return ImageGoal(setup.goal_image, step_frames=model.world.config.chunk_frames)


def _rng(setup: Setup, stream: int) -> np.random.Generator:
    return np.random.default_rng([setup.seed, stream])
