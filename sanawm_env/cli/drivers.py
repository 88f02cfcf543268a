"""Drivers of the live viewer besides a person: scripted cameras, planners and policies."""

import threading
from collections.abc import Callable
from concurrent.futures import CancelledError
from dataclasses import dataclass, field, replace
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from sanawm_env.agents.cameras import Camera
from sanawm_env.agents.compare_policies import turned
from sanawm_env.agents.planners import Objective, Plan, Planner
from sanawm_env.camera.presets import held_keys
from sanawm_env.camera.trajectory import orthonormalize
from sanawm_env.envs.env import SanaWMEnv
from sanawm_env.simulation.controllers import Keys
from sanawm_env.simulation.episode import Snapshot
from sanawm_env.simulation.simulator import Simulator
from sanawm_env.viewer.playback import Decision, Imagined
from sanawm_env.viewer.session import Session
from sanawm_env.world.thumbnails import thumbnail

FUTURES = 12  # drawn of those a planner has predicted
ARRIVED_METRES, ARRIVED_DEGREES = 0.35, 20.0


@dataclass
class CameraDriver:
    """Follows a scripted camera from where it begins to drive.

    Attributes:
        name: as it was asked for.
        camera: the path.
        frames: of a chunk.
        fps: frames per second.
        done: frames of the path that were followed.
    """

    name: str
    camera: Camera
    frames: int
    fps: float
    done: int = 0

    def __call__(self, snapshot: Snapshot) -> Decision:
        path = self.camera.poses(self.done + self.frames + 1, self.fps)[self.done :]
        self.done += self.frames
        return Decision(orthonormalize(snapshot.slot.c2w) @ np.linalg.inv(path[0]) @ path[1:])


@dataclass
class PlannerDriver:
    """Predicts futures, takes the first step of the best one, and predicts again.

    Attributes:
        name: as it was asked for.
        planner: of the futures.
        simulator: of twists.
        objective: scores of futures.
        arrived: whether a snapshot is at the goal.
        rng: of the planner.
        previous: the last plan.
        given_up: set by `give_up`.
    """

    name: str
    planner: Planner
    simulator: Simulator
    objective: Objective
    arrived: Callable[[Snapshot], bool]
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))
    previous: Plan | None = None
    given_up: threading.Event = field(default_factory=threading.Event)

    def give_up(self) -> None:
        """Stop planning."""
        self.given_up.set()

    def __call__(self, snapshot: Snapshot) -> Decision:
        if self.arrived(snapshot):
            return Decision(None)
        here = replace(snapshot.episode, controller_state=self.simulator.controller.start())
        seen: list[tuple[float, Imagined]] = []

        def watched(frames: torch.Tensor, c2w: NDArray) -> NDArray:
            if self.given_up.is_set():
                raise CancelledError("Nobody waits for this any more.")
            scores = self.objective(frames, c2w)
            ends = map(thumbnail, frames[:, -1].cpu().numpy())
            seen.extend(zip(scores, map(Imagined, c2w, ends), strict=True))
            return scores

        self.previous = self.planner.plan(self.simulator, here, watched, self.rng, self.previous)
        last = seen[-self.planner.candidates :]  # of the last iteration
        best = sorted(last, key=lambda scored: -scored[0])[:FUTURES]
        return Decision(self.previous.actions[0], tuple(future for _, future in best))


@dataclass(frozen=True, eq=False)
class Unseen:
    """An objective: the distance of futures from all views of a session, in metres, plus half a metre for a view in the
    opposite direction.
    """

    session: Session

    def __call__(self, frames: torch.Tensor, c2w: NDArray) -> NDArray:
        had = np.stack([node.c2w[-1] for node in self.session.tree.nodes.values()])  # (N, 4, 4)
        step = self.session.frames_per_chunk
        ends = c2w[:, step - 1 :: step, None]  # (n, horizon, 1, 4, 4)
        away = np.linalg.norm(ends[..., :3, 3] - had[:, :3, 3], axis=-1)
        turned = 0.25 * (1 - (ends[..., :3, 2] * had[:, :3, 2]).sum(-1))
        return (away + turned).min(axis=-1).mean(axis=-1)


@dataclass
class PolicyDriver:
    """Acts as a trained policy, which sees frames alone.

    Attributes:
        name: as it was asked for.
        predict: maps an observation to an action.
        env: whose observation is taken.
        frames: of a chunk.
    """

    name: str
    predict: Callable[[Any], Any]
    env: SanaWMEnv
    frames: int

    def __call__(self, snapshot: Snapshot) -> Decision:
        self.env.episode = replace(snapshot.episode, controller_state=self.env.controller.start())
        action = self.predict(self.env.observation)
        if self.env.action_mode == "twist":
            return Decision(action)
        table = cast(Keys, self.env.controller).table
        held = held_keys(action) if table is None else table[int(action)]
        return Decision(f"{''.join(held) or 'none'}-{self.frames}")


def near(here: NDArray, there: NDArray) -> bool:
    """Whether two poses (4, 4) are within 0.35 m and 20 degrees of each other."""
    return bool(np.linalg.norm(here[:3, 3] - there[:3, 3]) < ARRIVED_METRES and turned(here, there) < ARRIVED_DEGREES)
