"""A batched simulator: episodes in, episodes out.

    simulator = Simulator(world, make_controller("twist", world.config), PointNav(), Limits(world.config.workspace))
    episodes = simulator.reset([scene] * 8, seeds=range(8))
    episodes, transition = simulator.step(episodes, actions)
    futures = [episodes[0]] * 64  # a fork copies nothing

A simulator has no state of its own: equal arguments give equal results. Gymnasium's classes, planners, the viewer,
recording and collecting call it.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Annotated, Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field

from sanawm_env.camera.presets import Workspace
from sanawm_env.simulation.controllers import Controller
from sanawm_env.simulation.episode import Episode
from sanawm_env.simulation.tasks import Task, Transition, Verdict
from sanawm_env.system.files import brief, check_choice
from sanawm_env.system.settings import check_fields
from sanawm_env.world.state import Scene, WorldState, stack
from sanawm_env.world.world import Clip, World

MOST_CHUNKS = 2**62


class EpisodeOver(ValueError):
    """A step was asked of an episode that has ended."""


@dataclass(frozen=True)
class Limits:
    """What ends an episode besides its task.

    Attributes:
        workspace: an episode is truncated when the camera leaves its hard distance.
        max_episode_chunks: steps until truncation.
        horizon: at the length that the world was validated to (`WorldConfig.horizon_chunks`), "stop" truncates and
            "reanchor" goes on from the last frame as a new start image.

    Raises:
        ValueError: for an unknown horizon, or steps that are no whole number above zero.
    """

    workspace: Workspace
    max_episode_chunks: Annotated[int, Field(ge=1, le=MOST_CHUNKS)] = MOST_CHUNKS
    horizon: str = "stop"

    def __post_init__(self):
        check_fields(self)
        check_choice("horizon", self.horizon, ("stop", "reanchor"))


@dataclass(frozen=True, eq=False)
class Planned:
    """An action before anything is predicted.

    Attributes:
        state: the world state the step starts from.
        controller_state: of the controller, after the action.
        poses: (F, 4, 4) float64.
        action: the action as an array.
    """

    state: WorldState
    controller_state: Any
    poses: NDArray
    action: NDArray


@dataclass(frozen=True)
class Simulator:
    """World, controller, task and limits.

    Attributes:
        world: a loaded `World`.
        controller: what actions mean.
        task: rewards and terminations.
        limits: truncation.
        reward_fn: takes a `Transition` of B episodes and returns B rewards in place of the task's; None for the
            task's.
    """

    world: World
    controller: Controller
    task: Task
    limits: Limits
    reward_fn: Callable[[Transition], Any] | None = None

    def reset(
        self,
        scenes: Sequence[Scene],
        seeds: Sequence[int],
        rngs: Sequence[np.random.Generator] | None = None,
        task_options: Mapping[str, Any] | None = None,
    ) -> list[Episode]:
        """Begin episodes at start images. Nothing is predicted, except goals that the task predicts.

        Args:
            scenes: one for each episode, from `World.scene`.
            seeds: of each episode's noise.
            rngs: generators of what the task draws; None for generators seeded with `seeds`.
            task_options: what the task reads (a goal, a distance).

        Raises:
            ValueError: as `World.begin`, and for options that the task does not take.
            TypeError: likewise.
        """
        states = list(self.world.begin(list(scenes), list(seeds)))
        episodes = [Episode(state, self.controller.start()) for state in states]
        if rngs is None:
            rngs = [np.random.default_rng(state.slots[0].seed) for state in states]
        task_states = self.task.reset(episodes, rngs, self, {} if task_options is None else task_options)
        return [replace(e, task_state=task_state) for e, task_state in zip(episodes, task_states, strict=True)]

    def step(
        self,
        episodes: Sequence[Episode],
        actions: Sequence[Any],
        one_by_one: bool = False,
        numbers: Sequence[int] | None = None,
    ) -> tuple[list[Episode], Transition]:
        """Predict the next chunk of every episode, and let the task judge it.

        Args:
            episodes: of this simulator; not changed.
            actions: one for each episode, as `controller.space` has them.
            one_by_one: step in batches of one, for results that do not depend on the size of the batch.
            numbers: how errors name the episodes; None for their places in the list.

        Returns:
            The episodes after the step, and the `Transition`.

        Raises:
            EpisodeOver: for an episode that has ended.
            ValueError: for what is not an action, or rewards of `reward_fn` that are not B finite numbers.
            TypeError: for what is not an action.
        """
        planned = []
        names = range(len(episodes)) if numbers is None else numbers
        for number, episode, action in zip(names, episodes, actions, strict=True):
            try:
                planned.append(self.plan(episode, action))
            except (ValueError, TypeError) as error:
                if len(episodes) == 1 and numbers is None:
                    raise
                raise type(error)(f"Slot {number}: {error}") from None
        after, clip = self._advance(episodes, planned, one_by_one)
        transition = Transition(episodes, after, np.stack([plan.action for plan in planned]), clip.frames, clip.c2w)
        verdict = self.task.evaluate(transition)
        rewards = self._rewards(transition, verdict)
        after = [
            replace(episode, task_state=state, terminated=bool(ended))
            for episode, state, ended in zip(after, verdict.states, verdict.terminated, strict=True)
        ]
        terminated = np.array([episode.terminated for episode in after])
        truncated = np.array([self.truncated(episode) for episode in after])
        return after, replace(transition, after=after, rewards=rewards, terminated=terminated, truncated=truncated)

    def imagine(self, episodes: Sequence[Episode], actions: Sequence[Any]) -> tuple[list[Episode], Clip]:
        """Predict one action of every episode in one batch. Task and limits are ignored, and task states stay as they
        are. Planners use it.

        Args:
            episodes: B of them.
            actions: one for each.

        Returns:
            The episodes after the actions, and the clip of B rows.
        """
        moves = [
            self.controller.move(episode.controller_state, episode.slot.c2w, action)
            for episode, action in zip(episodes, actions, strict=True)
        ]
        planned = [Planned(episode.state, *move, np.empty(0)) for episode, move in zip(episodes, moves, strict=True)]
        return self._advance(episodes, planned)

    def follow(self, episode: Episode, actions: NDArray) -> NDArray:
        """Poses of a sequence of actions. Nothing is predicted, unless obstacles of the world may stop the camera.

        Args:
            episode: where the sequence begins.
            actions: (chunks, ...), one action for each chunk.

        Returns:
            (chunks * F, 4, 4) float64 camera-to-world.
        """
        if "obstacles" in self.world.engine.capabilities:
            return self._walk(episode, actions)
        state, c2w, path = episode.controller_state, episode.slot.c2w, []
        for action in actions:
            state, poses = self.controller.move(state, c2w, action)
            c2w = poses[-1]
            path.append(poses)
        return np.concatenate(path)

    def _walk(self, episode: Episode, actions: NDArray) -> NDArray:
        path = []
        for action in actions:
            (episode,), clip = self.imagine([episode], [action])
            path.append(clip.c2w[0])
        return np.concatenate(path)

    def plan(self, episode: Episode, action: Any) -> Planned:
        """Poses and controller state of an action, before anything is predicted. Raises as `step`."""
        self.check_open(episode)
        action = self.controller.read(action)
        controller_state, poses = self.controller.move(episode.controller_state, episode.slot.c2w, action)
        state = episode.state
        if self.limits.horizon == "reanchor" and self._at_horizon(episode):
            state = self.world.reanchor(state)
        return Planned(state, controller_state, poses, action)

    def ended(self, episode: Episode) -> bool:
        """Whether an episode is terminated or truncated."""
        return episode.terminated or self.truncated(episode)

    def check_open(self, episode: Episode) -> None:
        """Raise EpisodeOver for an episode that has ended."""
        if self.ended(episode):
            raise EpisodeOver("The episode is over: call reset (or restore a snapshot) before the next step.")

    def truncated(self, episode: Episode) -> bool:
        """Whether an episode has reached its limits."""
        over = episode.slot.chunk >= self.limits.max_episode_chunks
        return over or self.out_of_workspace(episode) or self.out_of_horizon(episode)

    def out_of_workspace(self, episode: Episode) -> bool:
        """Whether the last step left the workspace's hard distance."""
        return episode.clip is not None and self.limits.workspace.beyond_hard_distance(episode.c2w)

    def out_of_horizon(self, episode: Episode) -> bool:
        """Whether an episode has reached the horizon, where it stops there."""
        return self.limits.horizon == "stop" and self._at_horizon(episode)

    def info(self, episode: Episode) -> dict[str, Any]:
        """The `info` of an episode: numbers and arrays, see `SanaWMEnv`."""
        slot = episode.slot
        return {
            "c2w": episode.poses(self.world.config.chunk_frames).copy(),
            "chunk": slot.chunk,
            "scene": int(slot.scene.key[:15], 16),
            "seed": slot.seed,
            "out_of_workspace": self.out_of_workspace(episode),
            "out_of_horizon": self.out_of_horizon(episode),
            "segment_start": slot.start,
            "intrinsics": slot.scene.intrinsics.copy(),
            **self.task.info(episode),
        }

    def check(self, episode: Episode) -> None:
        """Check that an episode can continue here.

        Raises:
            ValueError: for an episode of other weights or another task.
            TypeError: for a state that is no `WorldState`.
        """
        self.world.check_state(episode.state)
        if type(episode.task_state) is not self.task.state_type:
            raise ValueError(
                f"This snapshot is not of the task {type(self.task).__name__}: restore it into an environment with "
                "the task it was taken in."
            )
        self.task.check(episode)

    def _at_horizon(self, episode: Episode) -> bool:
        return episode.slot.chunk - episode.slot.start >= self.world.config.horizon_chunks

    def _advance(
        self, episodes: Sequence[Episode], planned: Sequence[Planned], one_by_one: bool = False
    ) -> tuple[list[Episode], Clip]:
        if one_by_one and len(planned) > 1:
            parts = [self._advance([e], [plan]) for e, plan in zip(episodes, planned, strict=True)]
            clips = [clip for _, clip in parts]
            return [episode for (episode,), _ in parts], join(clips)
        state, clip = self.world.advance(stack(plan.state for plan in planned), np.stack([p.poses for p in planned]))
        after = [
            Episode(state[i], plan.controller_state, before.task_state, clip, i)
            for i, (before, plan) in enumerate(zip(episodes, planned, strict=True))
        ]
        return after, clip

    def _rewards(self, transition: Transition, verdict: Verdict) -> NDArray:
        if self.reward_fn is None:
            return np.asarray(verdict.rewards, np.float64)
        returned = self.reward_fn(transition)
        with suppress(TypeError, ValueError):
            rewards = np.asarray(returned, np.float64)
            if rewards.shape == (len(transition.after),) and np.isfinite(rewards).all():
                return rewards
        raise ValueError(
            f"reward_fn must return {len(transition.after)} finite numbers, one for each episode, got "
            f"{brief(returned)}."
        )


def join(clips: Sequence[Clip]) -> Clip:
    """One clip from several, along the batch axis. Frames are copied."""
    frames, c2w = torch.cat([clip.frames for clip in clips]), np.concatenate([clip.c2w for clip in clips])
    latents = [clip.latents for clip in clips if clip.latents is not None]  # of all or of none
    rows = tuple(row for clip in clips for row in clip.batch_rows)
    return Clip(frames, c2w, torch.cat(latents) if latents else None, rows)
