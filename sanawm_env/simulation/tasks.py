"""Tasks: rewards, goals and terminations.

A task is a value. Its state within an episode (cells seen, a goal) is part of the episode, so snapshots and forks
include it. Everything is batched: lists of episodes, arrays of rewards.

Positions are metres in the episode's world frame: the axes of the camera at frame 0, OpenCV (right, down, forward).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from pydantic import Field
from scipy.spatial.transform import Rotation
from torch import Tensor

from sanawm_env.camera.presets import Workspace
from sanawm_env.camera.trajectory import check_trajectory
from sanawm_env.simulation.episode import Episode, GoalState, PathState
from sanawm_env.system.files import brief, check_choice, check_count
from sanawm_env.system.settings import check_fields
from sanawm_env.world.images import resize_frames

if TYPE_CHECKING:
    from sanawm_env.simulation.simulator import Simulator

MOST_CHUNKS = 2**31 - 1
Chunks = Annotated[int, Field(ge=1, le=MOST_CHUNKS)]
Size = Annotated[float, Field(ge=1e-9)]
GOAL_CHUNKS, PATH_CHUNKS = 3, 5  # how far hidden goals are and how long hidden paths, in steps


@dataclass(frozen=True, eq=False)
class Transition:
    """One step of B episodes.

    Attributes:
        before: the episodes before the step.
        after: the episodes after it. While a task evaluates, their task states are those before the step.
        actions: (B, ...), as the action space has them.
        frames: (B, F, H, W, 3) uint8, on the world's device.
        c2w: (B, F, 4, 4) float64, the pose of each frame relative to frame 0.
        rewards: (B,) float64; empty while a task evaluates.
        terminated: (B,) bool; empty while a task evaluates.
        truncated: (B,) bool; empty while a task evaluates.
    """

    before: Sequence[Episode]
    after: Sequence[Episode]
    actions: NDArray
    frames: Tensor
    c2w: NDArray
    rewards: NDArray = field(default_factory=lambda: np.zeros(0))
    terminated: NDArray = field(default_factory=lambda: np.zeros(0, bool))
    truncated: NDArray = field(default_factory=lambda: np.zeros(0, bool))


class Verdict(NamedTuple):
    """A task's judgement of a transition.

    Attributes:
        rewards: (B,) float.
        terminated: (B,) bool.
        states: the next task state of each episode.
    """

    rewards: NDArray
    terminated: NDArray
    states: Sequence[Any]


class Task:
    """No task: reward 0.0, never terminated. The base class of tasks.

    States are trees of tuples, arrays, tensors, numbers and frozen dataclasses. Pass dataclasses of your own to
    `Snapshot.load`.

    Attributes:
        state_type: type of its states.
        goal_size: numbers of a goal in the observation mode "goal"; 0 for none.
    """

    state_type: ClassVar[type] = type(None)  # of what it remembers
    goal_size: ClassVar[int] = 0  # numbers of a goal in the observation mode "goal"; 0: it has none there

    @property
    def reward_range(self) -> tuple[float, float]:
        """Least and greatest reward of a step. A subclass may set it as an attribute."""
        return (0.0, 0.0)

    def spaces(self, size: tuple[int, int], workspace: Workspace) -> dict[str, spaces.Space]:
        """Entries that the task adds to a "dict" observation.

        Args:
            size: (height, width) of observed frames.
            workspace: where the camera may go.
        """
        return {}

    def reset(
        self,
        episodes: Sequence[Episode],
        rngs: Sequence[np.random.Generator],
        simulator: "Simulator",
        options: Mapping[str, Any],
    ) -> list[Any]:
        """Task states at the start of episodes.

        Args:
            episodes: B episodes at their start.
            rngs: a generator for each.
            simulator: to look at limits, to follow actions, and to predict.
            options: `options["task"]` of reset.

        Raises:
            ValueError: for options the task does not take, before anything has happened.
            TypeError: likewise.
        """
        _only(options, ())
        return [None] * len(episodes)

    def observe(self, episodes: Sequence[Episode], size: tuple[int, int]) -> dict[str, NDArray]:
        """Values of the entries of `spaces`, each with a leading batch axis."""
        return {}

    def goals(self, episodes: Sequence[Episode]) -> tuple[NDArray, NDArray]:
        """Achieved and desired goals, (B, goal_size) float32 each.

        Raises:
            NotImplementedError: for a task without goals.
        """
        raise NotImplementedError(
            f"The task {type(self).__name__} has no goals to compare: use PointNav, or define goals and reached."
        )

    def reached(self, achieved: NDArray, desired: NDArray) -> NDArray:
        """Which goals are reached.

        Args:
            achieved: (..., goal_size).
            desired: (..., goal_size).

        Returns:
            (...) bool.

        Raises:
            NotImplementedError: for a task without goals.
        """
        raise NotImplementedError(
            f"The task {type(self).__name__} has no goals to compare: use PointNav, or define goals and reached."
        )

    def check(self, episode: Episode) -> None:
        """Raise ValueError where the task state of an episode, perhaps one from a file, is not of this task."""

    def info(self, episode: Episode) -> dict[str, Any]:
        """Entries that the task adds to `info`."""
        return {}

    def evaluate(self, transition: Transition) -> Verdict:
        """Judge one step of B episodes."""
        n = len(transition.after)
        states = [episode.task_state for episode in transition.before]
        return Verdict(np.zeros(n), np.zeros(n, bool), states)


# --- exploring ---


@dataclass(frozen=True)
class Explore(Task):
    """See new viewpoints. The reward of a step is the number of viewpoint cells that its 24 frames enter for the first
    time in the episode, so the return is the number of cells seen.

    `info` has cells, their number so far.

    Attributes:
        cell: size in metres along x and z.
        sector: degrees of heading.

    Raises:
        ValueError: for sizes out of range.
    """

    cell: Annotated[float, Field(ge=0.001)] = 0.5
    sector: Annotated[float, Field(ge=0.1, le=360)] = 30.0
    reward_range = (0.0, 24.0)
    state_type = np.ndarray

    def __post_init__(self):
        check_fields(self)

    def cells(self, c2w: NDArray) -> NDArray:
        """Viewpoint cells of poses.

        Args:
            c2w: (F, 4, 4).

        Returns:
            (F, 3) int64: x, z, heading.
        """
        heading = np.degrees(np.arctan2(c2w[:, 0, 2], c2w[:, 2, 2])) % 360
        floor = np.floor(c2w[:, [0, 2], 3] / self.cell + 0.5)
        sectors = round(360 / self.sector)
        return np.column_stack((floor, np.round(heading / self.sector) % sectors)).astype(np.int64)

    def reset(
        self,
        episodes: Sequence[Episode],
        rngs: Sequence[np.random.Generator],
        simulator: "Simulator",
        options: Mapping[str, Any],
    ) -> list[Any]:
        _only(options, ())
        return [self.cells(episode.slot.c2w[None]) for episode in episodes]

    def check(self, episode: Episode) -> None:
        cells = episode.task_state
        if cells.ndim != 2 or cells.shape[1] != 3 or cells.dtype != np.int64:
            raise ValueError(f"The cells of an episode must be (N, 3) int64, got {cells.dtype} {cells.shape}.")

    def info(self, episode: Episode) -> dict[str, Any]:
        return {"cells": len(episode.task_state)}

    def evaluate(self, transition: Transition) -> Verdict:
        seen = [episode.task_state for episode in transition.before]
        entered = [self.cells(c2w) for c2w in transition.c2w]
        states = [np.unique(np.concatenate(pair), axis=0) for pair in zip(seen, entered, strict=True)]
        rewards = np.array([len(after) - len(before) for before, after in zip(seen, states, strict=True)], float)
        return Verdict(rewards, np.zeros(len(states), bool), states)


# --- going somewhere ---


@dataclass(frozen=True)
class PointNav(Task):
    """Go to a point. An episode terminates within `radius` metres of it.

    The goal is where a hidden walk ends, so it can be reached. Walks that end within two radii of their start are drawn
    again. The reward is the metres that a step came closer (at most `MOST_METRES`), and 1 for arriving. Observations in
    the mode "dict" gain `goal` (3,), the point in the camera's axes. `info` has goal_c2w (4, 4), distance in metres,
    and is_success.

    `options={"task": {"goal_c2w": c2w}}` of reset sets a pose, `{"goal": point}` a point, `{"chunks": n}` the length of
    the walk.

    Attributes:
        chunks: steps of the hidden walk; None for 3, or as many as an episode has.
        radius: metres.
        shaped: False for a reward of 1 for arriving, else 0.

    Raises:
        ValueError: for values of another type, or outside their range.
    """

    chunks: Chunks | None = None
    radius: Size = 0.35
    shaped: bool = True
    state_type = GoalState
    goal_size = 3

    def __post_init__(self):
        check_fields(self)

    @property
    def reward_range(self) -> tuple[float, float]:
        return (-MOST_METRES, MOST_METRES + 1) if self.shaped else (0.0, 1.0)

    def spaces(self, size: tuple[int, int], workspace: Workspace) -> dict[str, spaces.Space]:
        reach = np.float32(4 * workspace.hard_distance)
        return {"goal": spaces.Box(-reach, reach, (3,), np.float32)}

    def reset(
        self,
        episodes: Sequence[Episode],
        rngs: Sequence[np.random.Generator],
        simulator: "Simulator",
        options: Mapping[str, Any],
    ) -> list[Any]:
        _only(options, ("goal", "goal_c2w", "chunks"))
        return [GoalState(c2w) for c2w in _goals(episodes, rngs, simulator, options, self.chunks, 2 * self.radius)[0]]

    def observe(self, episodes: Sequence[Episode], size: tuple[int, int]) -> dict[str, NDArray]:
        return {
            "goal": np.stack([_seen_from(m.slot.c2w, m.task_state.c2w[:3, 3]) for m in episodes]).astype(np.float32)
        }

    def goals(self, episodes: Sequence[Episode]) -> tuple[NDArray, NDArray]:
        """Positions of cameras and of goals, (B, 3) float32 each, metres in the episode's world frame."""
        pairs = [(e.slot.c2w[:3, 3], e.task_state.c2w[:3, 3]) for e in episodes]
        achieved, desired = np.moveaxis(np.array(pairs, np.float32), 1, 0)
        return achieved, desired

    def reached(self, achieved: NDArray, desired: NDArray) -> NDArray:
        return np.linalg.norm(np.subtract(achieved, desired, dtype=np.float64), axis=-1) <= self.radius

    def info(self, episode: Episode) -> dict[str, Any]:
        away = self.distance(episode)
        return {"goal_c2w": episode.task_state.c2w.copy(), "distance": away, "is_success": self.arrived(episode)}

    def distance(self, episode: Episode) -> float:
        """Metres from the camera to the goal."""
        return float(np.linalg.norm(episode.slot.c2w[:3, 3] - episode.task_state.c2w[:3, 3]))

    def arrived(self, episode: Episode) -> bool:
        """Whether the camera is at the goal."""
        return self.distance(episode) <= self.radius

    def evaluate(self, transition: Transition) -> Verdict:
        there = np.array([self.arrived(episode) for episode in transition.after])
        rewards = there.astype(float)
        if self.dense:
            pairs = zip(transition.before, transition.after, strict=True)
            most = self.reward_range[1] - 1
            rewards += np.clip([self.potential(after) - self.potential(before) for before, after in pairs], -most, most)
        return Verdict(rewards, there, [episode.task_state for episode in transition.before])

    @property
    def dense(self) -> bool:
        """Whether a step is rewarded for its gain in `potential`, besides arriving."""
        return self.reward_range != (0.0, 1.0)

    def potential(self, episode: Episode) -> float:
        """Minus the distance to the goal. A dense reward is the potential's difference over a step (Ng et al. 1999)."""
        return -self.distance(episode)


@dataclass(frozen=True)
class ImageNav(PointNav):
    """Find the pose of a goal image. The world predicts the image, at the end of a hidden walk.

    An episode terminates within `radius` metres and `angle` degrees of that pose. Observations in the mode "dict" gain
    `goal_rgb`, the image. `info` has what PointNav's has, and angle in degrees and likeness. `options["task"]` takes
    chunks.

    Attributes:
        angle: degrees.
        reward: "pose": as PointNav, on metres plus `RADIAN_METRES` times radians. "image": the gain in `likeness` of
            the last frame and the goal image. "success": only arriving counts. Arriving adds 1.

    Raises:
        ValueError: for values of another type, or outside their range.
    """

    angle: Size = 20.0
    reward: Literal["pose", "image", "success"] = "pose"
    goal_size = 0

    @property
    def reward_range(self) -> tuple[float, float]:
        if self.reward == "pose":
            return -MOST_METRES - 1, MOST_METRES + 2
        return (-1.0, 2.0) if self.reward == "image" else (0.0, 1.0)

    def spaces(self, size: tuple[int, int], workspace: Workspace) -> dict[str, spaces.Space]:
        return {"goal_rgb": spaces.Box(0, 255, (*size, 3), np.uint8)}

    def reset(
        self,
        episodes: Sequence[Episode],
        rngs: Sequence[np.random.Generator],
        simulator: "Simulator",
        options: Mapping[str, Any],
    ) -> list[Any]:
        _only(options, ("chunks",))
        goals, walks = _goals(episodes, rngs, simulator, options, self.chunks, 2 * self.radius)
        now = list(episodes)
        for step in range(len(walks[0])):
            now = simulator.imagine(now, [walk[step] for walk in walks])[0]
        return [GoalState(c2w, episode.slot.frame) for c2w, episode in zip(goals, now, strict=True)]

    def observe(self, episodes: Sequence[Episode], size: tuple[int, int]) -> dict[str, NDArray]:
        images = [resize_frames(episode.task_state.image[None], *size) for episode in episodes]
        return {"goal_rgb": torch.cat(images).cpu().numpy()}

    def check(self, episode: Episode) -> None:
        if episode.task_state.image is None:
            raise ValueError(
                "The goal of this episode has no image: restore it into an environment of the task it was saved in."
            )

    def info(self, episode: Episode) -> dict[str, Any]:
        angle = self.turned(episode)
        return super().info(episode) | {
            "angle": angle,
            "likeness": likeness(episode.slot.frame, episode.task_state.image),
        }

    def turned(self, episode: Episode) -> float:
        """Degrees between the camera's rotation and the goal's."""
        apart = episode.slot.c2w[:3, :3].T @ episode.task_state.c2w[:3, :3]
        return float(np.degrees(Rotation.from_matrix(apart).magnitude()))

    def arrived(self, episode: Episode) -> bool:
        return super().arrived(episode) and self.turned(episode) <= self.angle

    def potential(self, episode: Episode) -> float:
        if self.reward == "image":
            return likeness(episode.slot.frame, episode.task_state.image)
        return super().potential(episode) - RADIAN_METRES * np.radians(self.turned(episode))


@dataclass(frozen=True)
class FollowPath(Task):
    """Follow a path, that of a hidden walk.

    Every frame of a step may advance by up to `LOOK_AHEAD` poses along the path while it is within `width` metres of
    them. The reward is the share of the path that a step covers, so the return is at most 1. An episode terminates at
    the end of the path. Observations in the mode "dict" gain `waypoints` (4, 3): the path 6, 12, 18 and 24 poses ahead,
    in the camera's axes. `info` has covered (share), deviation (metres from the path), and is_success.

    `options={"task": {"path": c2w}}` of reset sets poses (F, 4, 4), `{"chunks": n}` the length of the walk.

    Attributes:
        chunks: steps of the hidden walk; None for 5, or as many as an episode has.
        width: metres.

    Raises:
        ValueError: for values of another type, or outside their range.
    """

    chunks: Chunks | None = None
    width: Size = 0.35
    reward_range = (0.0, 1.0)
    state_type = PathState

    def __post_init__(self):
        check_fields(self)

    def spaces(self, size: tuple[int, int], workspace: Workspace) -> dict[str, spaces.Space]:
        reach = np.float32(4 * workspace.hard_distance)
        return {"waypoints": spaces.Box(-reach, reach, (4, 3), np.float32)}

    def reset(
        self,
        episodes: Sequence[Episode],
        rngs: Sequence[np.random.Generator],
        simulator: "Simulator",
        options: Mapping[str, Any],
    ) -> list[Any]:
        _only(options, ("path", "chunks"))
        if "path" in options:
            path = check_trajectory(_array(options["path"], "A path"))
            if len(path) < 2:
                raise ValueError(f"A path needs at least two poses, got {len(path)}.")
            _within(path, simulator.limits.workspace)
            return [PathState(path) for _ in episodes]
        chunks = _chunks(options, self.chunks, PATH_CHUNKS, simulator)
        return [PathState(_walk(m, rng, simulator, chunks)[1]) for m, rng in zip(episodes, rngs, strict=True)]

    def observe(self, episodes: Sequence[Episode], size: tuple[int, int]) -> dict[str, NDArray]:
        ahead = []
        for episode in episodes:
            at = np.minimum(episode.task_state.reached + np.array([6, 12, 18, 24]), len(episode.task_state.c2w) - 1)
            ahead.append([_seen_from(episode.slot.c2w, point) for point in episode.task_state.c2w[at, :3, 3]])
        return {"waypoints": np.array(ahead, np.float32)}

    def info(self, episode: Episode) -> dict[str, Any]:
        covered, path = self.covered(episode.task_state), episode.task_state.c2w[:, :3, 3]
        deviation = float(np.linalg.norm(path - episode.slot.c2w[:3, 3], axis=1).min())
        return {"covered": covered, "deviation": deviation, "is_success": covered == 1}

    def evaluate(self, transition: Transition) -> Verdict:
        states = [self._follow(m.task_state, c2w) for m, c2w in zip(transition.before, transition.c2w, strict=True)]
        before = [episode.task_state for episode in transition.before]
        rewards = [self.covered(b) - self.covered(a) for a, b in zip(before, states, strict=True)]
        return Verdict(np.array(rewards), np.array([self.covered(state) == 1 for state in states]), states)

    def covered(self, state: PathState) -> float:
        """The covered share of the path, 0 to 1."""
        return state.reached / (len(state.c2w) - 1)

    def _follow(self, state: PathState, c2w: NDArray) -> PathState:
        path, reached = state.c2w[:, :3, 3], state.reached
        for position in c2w[:, :3, 3]:
            near = np.linalg.norm(path[reached : reached + LOOK_AHEAD + 1] - position, axis=1) <= self.width
            reached += int(np.flatnonzero(near).max(initial=0))
        return replace(state, reached=reached)


MOST_METRES = 2.0  # that a step may count as
RADIAN_METRES = 0.5
LOOK_AHEAD = 3
TASKS = {"none": Task, "explore": Explore, "pointnav": PointNav, "imagenav": ImageNav, "followpath": FollowPath}


def make_task(task: "str | Task", options: Mapping[str, Any] | None = None) -> Task:
    """Make a task by name.

    Args:
        task: a name, "none", "explore", "pointnav", "imagenav" or "followpath"; or a task, which is returned.
        options: settings of the named task, the fields of its class.

    Raises:
        ValueError: for an unknown name or a value out of range.
        TypeError: for unknown settings, or settings beside a task.
    """
    if isinstance(task, Task):
        if options:
            raise TypeError("task_options are for a task given by name: give a Task its settings when you make it.")
        return task
    task = check_choice("task", task, TASKS, also=" or a Task")
    if not isinstance(options, Mapping | None):
        raise TypeError(f"task_options must be a mapping, got {type(options).__name__}.")
    kind, options = TASKS[task], options or {}
    known = [each.name for each in fields(kind)] if is_dataclass(kind) else []
    if unknown := [str(name) for name in options if name not in known]:
        takes = f"it takes {', '.join(known)}" if known else "it takes none"
        raise TypeError(f"The task {task!r} does not take these task_options: {', '.join(unknown)}; {takes}.")
    return kind(**options)


def likeness(frame: Tensor, goal: Tensor) -> float:
    """Likeness of two images: 1 minus the root of their mean squared difference at a quarter of the size, which ignores
    shifts of a pixel or two.

    Args:
        frame: (H, W, 3) uint8.
        goal: (H, W, 3) uint8.

    Returns:
        1 for equal images, 0 for black against white.
    """
    return float(likenesses(frame[None], goal, 4)[0])


def likenesses(frames: Tensor, goal: Tensor, smaller: int) -> Tensor:
    """`likeness` of many images to one.

    Args:
        frames: (n, H, W, 3) uint8.
        goal: (H, W, 3) uint8.
        smaller: images are compared at 1 / `smaller` of their size.

    Returns:
        (n,) float32.
    """
    size = max(1, goal.shape[0] // smaller), max(1, goal.shape[1] // smaller)
    a, b = (resize_frames(images, *size).float() for images in (frames, goal[None]))
    return 1 - (a - b).square().mean((1, 2, 3)).sqrt() / 255


def _seen_from(c2w: NDArray, point: NDArray) -> NDArray:
    """A point (3,) in the axes of the camera."""
    return c2w[:3, :3].T @ (point - c2w[:3, 3])


def _goals(
    episodes: Sequence[Episode],
    rngs: Sequence[np.random.Generator],
    simulator: "Simulator",
    options: Mapping[str, Any],
    chunks: int | None,
    away: float,
) -> tuple[list[NDArray], list[NDArray]]:
    """Goal poses, given or at the end of hidden walks of at least `away` metres, and the actions that lead there."""
    if "goal" in options and "goal_c2w" in options:
        raise ValueError("Give one goal, either a point (goal) or a pose (goal_c2w), not both.")
    if given := [options[name] for name in ("goal", "goal_c2w") if name in options]:
        goal = _goal(given[0], point="goal" in options)
        _within(goal[None], simulator.limits.workspace)
        return [goal] * len(episodes), [np.zeros((0,))] * len(episodes)
    chunks = _chunks(options, chunks, GOAL_CHUNKS, simulator)
    walks = [_walk(episode, rng, simulator, chunks, away) for episode, rng in zip(episodes, rngs, strict=True)]
    return [path[-1] for _, path in walks], [actions for actions, _ in walks]


def _goal(given: Any, point: bool) -> NDArray:
    """The pose (4, 4) of a goal that was given as a pose or as a point (3,)."""
    array = _array(given, "A goal")
    if point and array.shape == (3,):
        goal = np.eye(4)
        goal[:3, 3] = array
        return check_trajectory(goal[None])[0]
    if array.shape != (4, 4):
        raise ValueError(f"A goal must be a camera-to-world pose (4, 4) or a point (3,), got the shape {array.shape}.")
    return check_trajectory(array[None])[0]


def _array(given: Any, what: str) -> NDArray:
    try:
        return np.asarray(given, float)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        raise TypeError(f"{what} must be an array of numbers, got {brief(given)}.") from None


def _walk(
    episode: Episode, rng: np.random.Generator, simulator: "Simulator", chunks: int, away: float = 0.0
) -> tuple[NDArray, NDArray]:
    """Actions and poses of a walk that stays within the workspace's soft distance and, where possible, ends at least
    `away` metres from its start."""
    for _ in range(100):
        actions = simulator.controller.sample_walk_actions(rng, chunks)
        path = simulator.follow(episode, actions)
        if (
            not simulator.limits.workspace.beyond_soft_distance(path)
            and np.linalg.norm(path[-1, :3, 3] - episode.slot.c2w[:3, 3]) >= away
        ):
            break
    return actions, path


def _chunks(options: Mapping[str, Any], own: int | None, default: int, simulator: "Simulator") -> int:
    """Steps of a hidden walk: those of the options, of the task, or the default within the length of an episode."""
    chunks = options.get("chunks", own)
    if chunks is None:
        return min(default, simulator.limits.max_episode_chunks)
    chunks = check_count("chunks of a task", chunks, 1, MOST_CHUNKS)
    if chunks > simulator.limits.max_episode_chunks:
        raise ValueError(
            f"A goal {chunks} steps away cannot be reached in an episode of {simulator.limits.max_episode_chunks}: "
            "ask for fewer chunks, or make the environment with a larger max_episode_chunks."
        )
    return chunks


def _within(poses: NDArray, workspace: Workspace) -> None:
    if workspace.beyond_hard_distance(poses):
        raise ValueError(
            f"A goal must lie within the workspace, {workspace.hard_distance:g} m around frame 0: this one cannot be "
            "reached."
        )


def _only(options: Mapping[str, Any], known: Sequence[str]) -> None:
    if unknown := [str(name) for name in options if name not in known]:
        takes = f"takes the options {', '.join(known)}" if known else "takes no options"
        raise ValueError(f"This task {takes}, not {', '.join(unknown)}.")
