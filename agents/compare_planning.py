"""Plan in a predicted world, act in the truth: an agent sees rendered frames and its odometry, and predicts what
follows.

    outcome = plan_and_act(acting, setups[0], predicting, CEM(horizon=3, candidates=32), "fresh")

At each decision the planner predicts its futures in the model, from what is believed of the world now, and the first
action is done in the truth. What is believed is made of the last belief, the step's true poses and its last true frame,
in one of the ways of `BELIEFS`. With the truth itself as the model, this is the upper limit of such a planner.
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
from sanawm_env.system.files import brief

Belief = Callable[[Simulator, Episode, Episode], Episode]
"""(model, what was believed before the step, the true episode after it) -> what is believed now."""


def fresh(model: Simulator, before: Episode, seen: Episode) -> Episode:
    """A new start from the true frame, without memory; in a place that the model knows it knows where that is."""
    slot = replace(before.slot, frame=_frame(model, seen), c2w=seen.slot.c2w, chunk=seen.slot.chunk)
    state = model.world.reanchor(replace(before.state, slots=(slot,)))
    return Episode(state, seen.controller_state, before.task_state)


def kept(model: Simulator, before: Episode, seen: Episode) -> Episode:
    """The model's own state, taken along the true poses; its last frame becomes the true one. What a model remembers
    of its predictions stays; one whose next frames are made of the last one is set right by it."""
    state, _ = model.world.advance(before.state, seen.c2w)
    slot = replace(state.slots[0], frame=_frame(model, seen))
    return Episode(replace(state, slots=(slot,)), seen.controller_state, before.task_state)


def _frame(model: Simulator, seen: Episode) -> torch.Tensor:
    return seen.slot.frame.to(model.world.device)


BELIEFS: dict[str, Belief] = {"fresh": fresh, "kept": kept}


def plan_and_act(
    truth: Simulator, setup: Setup, model: Simulator, planner: Planner, belief: str, first: Plan | None = None
) -> Outcome:
    """One episode of ImageNav in the truth, planned in the model by the goal image alone. It succeeds as soon as
    the camera is at the goal, as the task says of true poses.

    belief: "fresh" or "kept". first: what `first_plan` gives, where it is known: it is the same for every belief.
    Raises ValueError for another belief, and as `begin` and the planner.
    """
    if belief not in BELIEFS:
        raise ValueError(f"belief must be {' or '.join(BELIEFS)}, got {brief(belief)}.")
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
    """The plan at the start of an episode, where nothing has been done yet."""
    return planner.plan(model, begin(model, [setup])[0], _objective(model, setup), _rng(setup, 0))


def _objective(model: Simulator, setup: Setup) -> ImageGoal:
    return ImageGoal(setup.goal_image, step_frames=model.world.config.chunk_frames)


def _rng(setup: Setup, stream: int) -> np.random.Generator:
    return np.random.default_rng([setup.seed, stream])
