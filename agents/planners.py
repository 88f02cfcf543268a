"""Planners: fork an episode into many futures, predict them in batches, and act as in the best one.

Random shooting (Rao 2009), the cross-entropy method (Rubinstein and Kroese 2004) and MPPI (Williams et al. 2017) for
model-predictive control. `act` plans from the environment's episode and returns the first action of the plan. Forking
copies nothing, because states are values.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, cast

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from sanawm_env.envs.env import SanaWMEnv
from sanawm_env.simulation.controllers import Twist
from sanawm_env.simulation.episode import Episode
from sanawm_env.simulation.simulator import Simulator
from sanawm_env.simulation.tasks import likenesses
from sanawm_env.system.files import brief
from sanawm_env.system.settings import check_fields

Objective = Callable[[Tensor, NDArray], NDArray]
"""A function (frames (n, F, H, W, 3) uint8 on the world's device, c2w (n, F, 4, 4)) -> scores (n,); higher is better. F
is 24 times the horizon: step h ends with frame 24 h - 1."""

PLANAR = (0, 2, 4)  # of a twist: sideways, forwards, turn
STEP_FRAMES = 24  # of the worlds that there are
Count = Annotated[int, Field(ge=1, le=1 << 20)]
Positive = Annotated[float, Field(gt=0)]


@dataclass(frozen=True, eq=False)
class Plan:
    """A planner's result.

    Attributes:
        actions: (horizon, 6) twists in [-1, 1].
        scores: (candidates,) of the futures of the last iteration.
        score: of the best future seen.
        mean: (horizon, axes) of the distribution, to continue from.
        std: (horizon, axes) of the distribution.
    """

    actions: NDArray
    scores: NDArray
    score: float
    mean: NDArray
    std: NDArray


@dataclass(frozen=True, kw_only=True)
class Planner(ABC):
    """The base class of planners.

    Attributes:
        horizon: steps of a future.
        candidates: futures per iteration.
        axes: which of the six numbers of a twist are planned; the others stay 0.
        batch: futures that are predicted together; bounds the memory.

    Raises:
        ValueError: for values of another type, or outside their range.
    """

    horizon: Count = 3
    candidates: Count = 64
    axes: Sequence[Annotated[int, Field(ge=0, le=5)]] = PLANAR
    batch: Count = 32

    def __post_init__(self):
        check_fields(self)
        if not 0 < len(set(self.axes)) == len(self.axes):
            raise ValueError(f"axes of a planner are numbers of a twist, 0 to 5, each once, got {brief(self.axes)}.")

    @abstractmethod
    def plan(
        self,
        simulator: Simulator,
        episode: Episode,
        objective: Objective,
        rng: np.random.Generator,
        previous: Plan | None = None,
    ) -> Plan:
        """The best plan from an episode.

        Args:
            simulator: its controller must be of twists.
            episode: of the simulator; not changed.
            objective: scores of futures.
            rng: of the candidates.
            previous: the plan of the step before; the search starts from its mean, shifted by one step.

        Raises:
            ValueError: for another controller, an episode of another world or task, or an objective that does not
                return one finite number for each future.
            TypeError: for an objective or rng of another type.
        """

    def act(
        self, env: SanaWMEnv, objective: Objective, rng: np.random.Generator, previous: Plan | None = None
    ) -> tuple[NDArray, Plan]:
        """The first action of a plan from the environment's episode, and the plan. The environment does not change.

        Args:
            env: a `SanaWMEnv` with action_mode "twist", or a wrapper around one.
            objective: scores of futures, such as a `PointGoal`.
            rng: a NumPy generator.
            previous: the plan of the step before.

        Returns:
            A twist (6,) float32 in [-1, 1], and the `Plan`.

        Raises:
            ValueError: as `plan`.
            TypeError: as `plan`, and for an environment of another kind.
        """
        inner = getattr(env, "unwrapped", env)
        if not isinstance(inner, SanaWMEnv):
            raise TypeError(f"Planners predict in a SanaWMEnv, got {type(inner).__name__}.")
        plan = self.plan(inner.simulator, inner.episode, objective, rng, previous)
        return plan.actions[0], plan

    def twists(self, actions: NDArray) -> NDArray:
        """Planned axes (..., horizon, axes) as twists (..., horizon, 6) float32 in [-1, 1]."""
        out = np.zeros((*actions.shape[:-1], 6), np.float32)
        out[..., list(self.axes)] = np.clip(actions, -1, 1)
        return out

    def scores(self, simulator: Simulator, episode: Episode, actions: NDArray, objective: Objective) -> NDArray:
        """Predict futures and score them.

        Args:
            simulator: of the episode.
            episode: where the futures begin; not changed.
            actions: (n, horizon, axes).
            objective: of the scores.

        Returns:
            Scores (n,) float64.

        Raises:
            ValueError: for an objective that does not return one finite number for each future.
        """
        found = []
        for part in np.split(self.twists(actions), range(self.batch, len(actions), self.batch)):
            scores = np.asarray(objective(*imagined(simulator, episode, part)), np.float64)
            if scores.shape != (len(part),) or not np.isfinite(scores).all():
                raise ValueError(
                    f"An objective must return {len(part)} finite scores, one per future, got {brief(scores.tolist())}."
                )
            found.append(scores)
        return np.concatenate(found)

    def _check(self, simulator: Simulator, episode: Episode, objective: Objective, rng: np.random.Generator) -> None:
        """TypeError or ValueError for what cannot be planned with."""
        if not isinstance(simulator.controller, Twist):
            raise ValueError(
                'Planners plan twists: make the environment with action_mode="twist", got the controller '
                f"{type(simulator.controller).__name__}."
            )
        if not callable(objective):
            raise TypeError(f"An objective is a function of frames and poses, or a PointGoal, got {brief(objective)}.")
        if not isinstance(rng, np.random.Generator):
            raise TypeError(f"rng must be a numpy Generator, as of np.random.default_rng(0), got {brief(rng)}.")
        simulator.check(episode)

    def _prior(self, previous: Plan | None, std: float, warm_std: float) -> tuple[NDArray, NDArray]:
        """Mean and std (horizon, axes) to begin with: around standing still, or closer around the previous plan's mean,
        one step on."""
        mean = np.zeros((self.horizon, len(self.axes)))
        if previous is not None:
            if previous.mean.shape != mean.shape:
                raise ValueError(
                    f"The previous plan has {previous.mean.shape} steps and axes, this planner {mean.shape}: "
                    "go on with a plan of the same planner."
                )
            mean[:-1], std = previous.mean[1:], warm_std
        return mean, np.full_like(mean, std)


@dataclass(frozen=True, kw_only=True)
class RandomShooting(Planner):
    """Predicts random futures, uniform in [-1, 1], and keeps the best one."""

    def plan(self, simulator, episode, objective, rng, previous=None):
        self._check(simulator, episode, objective, rng)
        actions = rng.uniform(-1, 1, (self.candidates, self.horizon, len(self.axes)))  # (N, H, A)
        scores = self.scores(simulator, episode, actions, objective)  # (N,)
        best = actions[scores.argmax()]
        return Plan(self.twists(best), scores, float(scores.max()), best, np.zeros_like(best))


@dataclass(frozen=True, kw_only=True)
class CEM(Planner):
    """The cross-entropy method: fit a Gaussian to the elite, sample from it, repeat (de Boer et al. 2005, algorithm 3.3
    without smoothing). From the second iteration on, and with a previous plan, one candidate is the mean itself. The
    result is the best future seen.

    Attributes:
        iterations: how often the Gaussian is fitted.
        elites: futures that the Gaussian is fitted to.
        std: of the first distribution.
        warm_std: of the first distribution with a previous plan.
        min_std: lower bound of the fit, the noise of Szita and Lorincz 2006.

    Raises:
        ValueError: for more elites than candidates, and as `Planner`.
    """

    iterations: Count = 2
    elites: Count = 8
    std: Positive = 0.7
    warm_std: Positive = 0.4
    min_std: Positive = 0.05

    def __post_init__(self):
        super().__post_init__()
        if self.elites > self.candidates:
            raise ValueError(f"elites must be among the {self.candidates} candidates, got {self.elites}.")

    def plan(self, simulator, episode, objective, rng, previous=None):
        self._check(simulator, episode, objective, rng)
        mean, std = self._prior(previous, self.std, self.warm_std)  # (H, A)
        best, score = mean, -np.inf
        for i in range(self.iterations):
            noise = rng.standard_normal((self.candidates, *mean.shape))
            actions = np.clip(mean + std * noise, -1, 1)  # (N, H, A)
            if i or previous is not None:
                actions[0] = mean
            scores = self.scores(simulator, episode, actions, objective)  # (N,)
            elite = actions[np.argsort(-scores)[: self.elites]]  # (E, H, A)
            mean, std = elite.mean(0), np.maximum(elite.std(0), self.min_std)
            if scores.max() > score:
                best, score = actions[scores.argmax()], float(scores.max())
        return Plan(self.twists(best), scores, score, best, std)


@dataclass(frozen=True, kw_only=True)
class MPPI(Planner):
    """Model-predictive path integral control: move the mean by the noise of the futures, weighted by the exponential of
    their scores (Williams et al. 2017, algorithm 2; a score is minus its cost).

    Attributes:
        iterations: updates in one step; one in the paper.
        temperature: lambda.
        std: of the noise, on every axis.
        control_cost: gamma of the term gamma u' v / std^2 that is subtracted from a score.
    """

    iterations: Count = 2
    temperature: Positive = 0.02
    std: Positive = 0.5
    control_cost: Annotated[float, Field(ge=0)] = 0.0

    def plan(self, simulator, episode, objective, rng, previous=None):
        self._check(simulator, episode, objective, rng)
        mean, std = self._prior(previous, self.std, self.std)  # (H, A)
        score = -np.inf
        for _ in range(self.iterations):
            noise = std * rng.standard_normal((self.candidates, *mean.shape))  # (N, H, A)
            actions = mean + noise
            scores = self.scores(simulator, episode, actions, objective)  # (N,), of the actions clipped to [-1, 1]
            costs = -scores + self.control_cost * (mean * actions / std**2).sum((1, 2))
            weights = np.exp((costs.min() - costs) / self.temperature)
            mean = mean + np.einsum("n,nha->ha", weights / weights.sum(), noise)
            score = max(score, float(scores.max()))
        return Plan(self.twists(mean), scores, score, np.clip(mean, -1, 1), std)


def imagined(simulator: Simulator, episode: Episode, actions: NDArray) -> tuple[Tensor, NDArray]:
    """Predict futures of one episode: one fork, and one batched step for each step of the horizon.

    Args:
        simulator: of the episode.
        episode: where the futures begin; not changed.
        actions: (n, horizon, ...).

    Returns:
        Frames (n, horizon * F, H, W, 3) uint8 on the world's device, and c2w (n, horizon * F, 4, 4) float64, where F is
            the
        frames of a step.
    """
    now, frames, c2w = [episode] * len(actions), [], []
    for step in range(actions.shape[1]):
        now, clip = simulator.imagine(now, list(actions[:, step]))
        frames.append(clip.frames)
        c2w.append(clip.c2w)
    return torch.cat(frames, dim=1), np.concatenate(c2w, axis=1)


@dataclass(frozen=True, eq=False)
class ImageGoal:
    """An objective: likeness to a goal image. The score of a future is that of its most alike last frame of a step.
    Frames are compared at several sizes: large ones distinguish near views, small ones distant views.

    Attributes:
        goal: (H, W, 3) uint8, tensor or array.
        scales: factors by which images are reduced.
        hurry: subtracted from the score for each step.
        step_frames: frames of a step (`WorldConfig.chunk_frames`).

    Raises:
        TypeError: for a goal that is neither tensor nor array.
        ValueError: for a goal of another shape, or values outside their range.
    """

    goal: Tensor | NDArray
    scales: Annotated[Sequence[Count], Field(min_length=1)] = (2, 4, 8)
    hurry: float = 0.005
    step_frames: Count = STEP_FRAMES

    def __post_init__(self):
        if not isinstance(self.goal, Tensor | np.ndarray):
            raise TypeError(f"An image goal is a tensor or an array (H, W, 3), got {brief(self.goal)}.")
        if self.goal.ndim != 3 or self.goal.shape[-1] != 3:
            raise ValueError(f"An image goal is an image (H, W, 3), got the shape {tuple(self.goal.shape)}.")
        check_fields(self)

    def __call__(self, frames: Tensor, c2w: NDArray) -> NDArray:
        ends = frames[:, self.step_frames - 1 :: self.step_frames]  # (n, horizon, H, W, 3)
        goal = torch.as_tensor(self.goal)
        alike = (likenesses(ends.flatten(0, 1), goal.to(ends.device), scale).cpu() for scale in self.scales)
        total = cast(Tensor, sum(alike))
        later = self.hurry * np.arange(ends.shape[1])
        return (total.unflatten(0, ends.shape[:2]).numpy() / len(self.scales) - later).max(axis=1)


@dataclass(frozen=True, eq=False)
class PointGoal:
    """An objective: minus the least distance to a point, in metres, over the ends of steps.

    Attributes:
        point: (3,), metres in the episode's world frame.
        hurry: metres added for each step.
        step_frames: frames of a step (`WorldConfig.chunk_frames`).

    Raises:
        ValueError: for anything but three finite numbers, or values outside their range.
    """

    point: NDArray | Sequence[float]
    hurry: float = 0.05
    step_frames: Count = STEP_FRAMES

    def __post_init__(self):
        point = np.asarray(self.point) if isinstance(self.point, np.ndarray | list | tuple) else np.empty(0)
        if point.shape != (3,) or point.dtype.kind not in "fiu" or not np.isfinite(point).all():
            raise ValueError(f"A point goal is three finite numbers, metres, got {brief(self.point)}.")
        check_fields(self)

    def __call__(self, frames: Tensor, c2w: NDArray) -> NDArray:
        away = np.linalg.norm(c2w[:, self.step_frames - 1 :: self.step_frames, :3, 3] - self.point, axis=-1)
        return -(away + self.hurry * np.arange(away.shape[1])).min(axis=1)
