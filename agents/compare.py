"""Compare how policies rank in a predicted world and in a rendered world (the truth), on the same episodes.

Episodes are set up once, in the truth, and begin alike in both worlds:

    predicted = World.load("nano")
    truth = load_truth("rooms", predicted, walls=True)
    predicting, acting = simulators(predicted, truth, ImageNav())
    setups = draw_setups(acting, anchors_of("rooms:test", predicted.config, truth.config, count=32))
    episodes, same = begin(predicting, setups), begin(acting, setups)          # lists of `Episode`
    print(compare(predicting, acting, setups, SETTINGS["image-nav"].policies).every.r)

`env.restore(Snapshot.of(episode, env.action_mode), reseed=setup.seed)` puts such an episode into a Gymnasium
environment.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from sanawm_env.agents.compare_numbers import Comparison, compared
from sanawm_env.agents.compare_policies import Policy, View, image_nav_policies, point_nav_policies, turned

from sanawm_env.envs.making import load_options
from sanawm_env.simulation.controllers import Twist, make_controller
from sanawm_env.simulation.episode import Episode, GoalState
from sanawm_env.simulation.simulator import Limits, Simulator
from sanawm_env.simulation.tasks import ImageNav, PointNav, Task
from sanawm_env.system.files import brief, check_count, read_json, reason
from sanawm_env.system.saving import write_text
from sanawm_env.training.truth import draw_walk
from sanawm_env.world.anchor import Anchor
from sanawm_env.world.config import WorldConfig
from sanawm_env.world.scenes import DrawnScenes
from sanawm_env.world.world import Clip, World

KNOWN = "known"
MOST_EPISODES = 10**6
BATCH = 16  # episodes that step together: bounds the memory
KEPT = 4  # episodes of a policy that are kept in one file
MAX_BYTES = 2**28  # of what is kept of a policy


@dataclass(frozen=True, eq=False)
class Setup:
    """The start and goal of one episode, the same in every world.

    Attributes:
        anchor: pose of the start image. The truth begins there; the predicted world is given the anchor if it knows the
            place.
        image: (H, W, 3) uint8, the start image, rendered by the truth.
        intrinsics: (4,) fx, fy, cx, cy in pixels of the image.
        goal_c2w: (4, 4) float64 pose to reach, relative to frame 0.
        goal_image: (H, W, 3) uint8, the frame rendered at the goal.
        seed: of the predicted world's noise, and of what a policy draws.
    """

    anchor: Anchor
    image: NDArray
    intrinsics: NDArray
    goal_c2w: NDArray
    goal_image: NDArray
    seed: int


@dataclass(frozen=True)
class Setting:
    """A task to compare policies on.

    Attributes:
        task: `PointNav` or `ImageNav`.
        chunks: how many steps away the goals are.
        policies: the policies that are compared.
    """

    task: PointNav
    chunks: int
    policies: tuple[Policy, ...]


SETTINGS = {
    "image-nav": Setting(ImageNav(), 3, image_nav_policies()),
    "point-nav": Setting(PointNav(), 6, point_nav_policies()),
}


def load_truth(name: str | PathLike, predicted: World, walls: bool, small: bool = False) -> World:
    """Load a rendered world for a comparison. Frames have the size of the predicted world's, and walls stop the camera,
    as far as the world has options for these.

    Args:
        name: name or folder of the rendered world.
        predicted: the predicted world.
        walls: whether walls stop the camera.
        small: whether frames are tiny (8 x 12), for policies that do not look at them.

    Raises:
        ValueError: for a world that is not exact, and as `World.load`.
        TypeError: as `World.load`.
    """
    height, width = (8, 12) if small else (predicted.config.height, predicted.config.width)
    wanted: dict[str, Any] = {"height": height, "width": width, "collisions": walls}
    takes = load_options(name)
    truth = World.load(name, **{option: value for option, value in wanted.items() if option in takes})
    if "exact" not in truth.engine.capabilities:
        raise ValueError(
            f'The world {truth.config.name} is predicted: compare with one that is rendered, such as "rooms".'
        )
    return truth


def simulators(predicted: World, truth: World, task: Task, steps: int = 6) -> tuple[Simulator, Simulator]:
    """A simulator of each world. The same twist leads to the same poses in both, apart from walls.

    Args:
        predicted: the predicted world.
        truth: the rendered world.
        task: of both simulators.
        steps: the most steps of an episode.

    Returns:
        The simulators of the predicted and of the rendered world.

    Raises:
        ValueError: for worlds with frames of another size, another chunk length or another frame rate.
    """
    made = []
    own = predicted.config
    for name in ("height", "width", "chunk_frames", "fps"):
        if getattr(truth.config, name) != getattr(own, name):
            raise ValueError(
                f"Worlds are compared at equal {name}, got {getattr(own, name)} in {own.name} and "
                f"{getattr(truth.config, name)} in {truth.config.name}: load the rendered world with the value of "
                "the other."
            )
    for world in (predicted, truth):
        controller = make_controller("twist", world.config, speed=own.speed, workspace=own.workspace)
        made.append(Simulator(world, controller, task, Limits(own.workspace, steps)))
    return made[0], made[1]


def check_scenes(scenes: str) -> DrawnScenes | None:
    """The set of furnished rooms with this name; None for "known".

    Raises:
        ValueError: for another name.
    """
    drawn = DrawnScenes.named(scenes) if isinstance(scenes, str) else None
    if drawn is None and scenes != KNOWN:
        raise ValueError(f'scenes must be "{KNOWN}" or a set such as "rooms:test", got {brief(scenes)}.')
    return drawn


def anchors_of(scenes: str, predicted: WorldConfig, truth: WorldConfig, count: int, seed: int = 0) -> list[Anchor]:
    """The places where episodes begin.

    Args:
        scenes: "known" for positions in the places that the predicted world knows, apart from its training walks; or a
            set of furnished rooms that the truth can render, such as "rooms:test", with another room for each episode.
        predicted: config of the predicted world.
        truth: config of the rendered world.
        count: how many episodes.
        seed: of the positions or rooms.

    Raises:
        ValueError: for other scenes, a count below 1, a world without known places, or a truth that does not know the
            set.
    """
    count, drawn = check_count("The number of episodes", count, 1, MOST_EPISODES), check_scenes(scenes)
    if drawn is None:
        walks = [draw_walk(predicted, seed, i, 1) for i in range(count)]
        return [Anchor(walk.place.name, walk.c2w[0]) for walk in walks]
    numbers = np.random.default_rng(seed).integers(len(drawn), size=count)
    anchors = [drawn.start(int(number), truth).anchor for number in numbers]
    known = [anchor for anchor in anchors if anchor is not None]
    if len(known) < count:
        raise ValueError(
            f"The {truth.name} world does not know the places of {drawn}: give a rendered world that does."
        )
    return known


def draw_setups(
    truth: Simulator,
    anchors: Sequence[Anchor],
    seed: int = 0,
    chunks: int | None = None,
    unseen: World | None = None,
) -> list[Setup]:
    """Draw a goal for each start: the end of a hidden random walk.

    Args:
        truth: a simulator of a world that knows the places. If it was loaded with `collisions=True`, no walk leads
            through a wall, and every goal can be reached.
        anchors: the starts.
        seed: of the walks; setup i is a function of its anchor, `seed` and i.
        chunks: steps of a walk; None for the task's own choice.
        unseen: the same world with smaller frames, in which walks take less time.

    Raises:
        ValueError: as `World.scene` and `Simulator.reset`.
    """
    world, blank = truth.world, np.zeros((truth.world.config.height, truth.world.config.width, 3), np.uint8)
    walking = replace(truth, world=world if unseen is None else unseen, task=PointNav(chunks=chunks))
    setups = []
    for i, anchor in enumerate(anchors):
        scene = world.scene(blank, anchor=anchor)  # the truth shows what is there, whatever frame it is given
        number = int(np.random.default_rng([seed, i]).integers(2**62))
        goal = walking.reset([walking.world.scene(blank, anchor=anchor)], [number])[0].task_state.c2w
        there = world.scene(blank, anchor=Anchor(anchor.place, anchor.c2w @ goal))
        setups.append(Setup(anchor, scene.image, scene.intrinsics, goal, there.image, number))
    return setups


def begin(simulator: Simulator, setups: Sequence[Setup], looked_at: bool = True) -> list[Episode]:
    """Begin episodes in the world of a simulator. Nothing is predicted yet.

    The start image is the rendered one in every world. A world that does not know the place, as the predicted one in
    furnished rooms, begins from the image alone.

    Args:
        simulator: its controller must be of twists.
        setups: from `draw_setups`.
        looked_at: whether frames matter; False allows frames of another size.

    Raises:
        ValueError: for a world whose frames have another size than the setups'.
    """
    world, size = simulator.world, (simulator.world.config.height, simulator.world.config.width)
    scenes = []
    for setup in setups:
        if looked_at and setup.image.shape[:2] != size:
            raise ValueError(
                f"These episodes have frames of {setup.image.shape[:2]} pixels, the {world.config.name} world of "
                f"{size}: set them up in a truth of that size."
            )
        anchor = setup.anchor if world.config.knows(setup.anchor.place) else None
        scenes.append(world.scene(setup.image, anchor=anchor, intrinsics=setup.intrinsics))
    states = world.begin(scenes, [setup.seed for setup in setups])
    return [
        Episode(state, simulator.controller.start(), GoalState(s.goal_c2w, torch.tensor(s.goal_image).to(world.device)))
        for state, s in zip(states, setups, strict=True)
    ]


# --- running ---


class Outcome(NamedTuple):
    """The result of one episode.

    Attributes:
        success: see `run`.
        steps: steps taken.
        distance: metres to the goal at the end.
        angle: degrees to the goal's rotation at the end.
    """

    success: bool
    steps: int
    distance: float
    angle: float


def run(simulator: Simulator, setups: Sequence[Setup], policy: Policy) -> list[Outcome]:
    """Run a policy on all episodes, in batches.

    The task says whether the camera is at the goal, from the poses of this world. A policy that stops succeeds if it
    stops at the goal (Anderson et al. 2018, arXiv 1807.06757). A policy that never stops succeeds as soon as it
    arrives.

    Args:
        simulator: its task is `PointNav` or `ImageNav`.
        setups: the episodes.
        policy: what acts.

    Returns:
        An `Outcome` for each setup.

    Raises:
        ValueError: as `begin`.
    """
    task, looks = cast(PointNav, simulator.task), policy.acts_on == "images"
    episodes, memories = begin(simulator, setups, looks), [None] * len(setups)
    rngs, going, success = [policy.rng(setup.seed) for setup in setups], list(range(len(setups))), set()
    while going:
        asked = {}
        for i in going:
            action, memories[i] = policy.decide(_view(simulator, episodes[i], setups[i]), memories[i], rngs[i])
            if action is not None:
                asked[i] = action
            elif task.arrived(episodes[i]):
                success.add(i)
        after = _moved(simulator, [episodes[i] for i in asked], list(asked.values()), looks)
        episodes = [dict(zip(asked, after, strict=True)).get(i, episode) for i, episode in enumerate(episodes)]
        success |= {i for i in asked if not policy.stops and task.arrived(episodes[i])}
        going = [i for i in asked if i not in success and not simulator.truncated(episodes[i])]
    return [outcome_of(episode, i in success) for i, episode in enumerate(episodes)]


def outcome_of(episode: Episode, success: bool) -> Outcome:
    """The outcome of an episode that has ended."""
    slot, goal = episode.slot, episode.task_state.c2w
    distance = float(np.linalg.norm(slot.c2w[:3, 3] - goal[:3, 3]))
    return Outcome(success, slot.chunk, distance, turned(slot.c2w, goal))


def _view(simulator: Simulator, episode: Episode, setup: Setup) -> View:
    goal = np.linalg.inv(episode.slot.c2w) @ setup.goal_c2w
    return View(episode.frames, setup.intrinsics, episode.task_state.image, goal, cast(Twist, simulator.controller))


def _moved(simulator: Simulator, episodes: list[Episode], actions: list[NDArray], looks: bool) -> list[Episode]:
    """The episodes after a step. Where frames do not matter and no wall stops a camera, poses follow from the actions,
    and nothing is predicted.
    """
    if not episodes:
        return []
    if looks or "obstacles" in simulator.world.engine.capabilities:
        parts = [range(first, min(first + BATCH, len(episodes))) for first in range(0, len(episodes), BATCH)]
        done = [simulator.imagine([episodes[i] for i in part], [actions[i] for i in part])[0] for part in parts]
        return [episode.with_own_clip() for part in done for episode in part]
    moved = []
    for episode, action in zip(episodes, actions, strict=True):
        planned = simulator.plan(episode, action)
        slot = replace(episode.slot, c2w=planned.poses[-1], chunk=episode.slot.chunk + 1)
        unseen = Clip(torch.empty(1, 0, *episode.slot.frame.shape), planned.poses[None], None, ((0, 1),))
        state = replace(episode.state, slots=(slot,))
        moved.append(replace(episode, state=state, controller_state=planned.controller_state, clip=unseen))
    return moved


# --- comparing ---


def compare(
    predicted: Simulator,
    truth: Simulator,
    setups: Sequence[Setup],
    policies: Sequence[Policy],
    *,
    unseen: World | None = None,
    title: str = "",
    keep: Path | None = None,
    progress: Callable[[str], None] | None = None,
) -> Comparison:
    """Run policies in both worlds on the same setups, and compare their success.

    Args:
        predicted: simulator of the predicted world.
        truth: simulator of the rendered world.
        setups: from `draw_setups`.
        policies: with different names.
        unseen: the rendered world with smaller frames, for policies that do not look at them.
        title: of the comparison.
        keep: folder where outcomes are kept, so that the same call continues after an interruption; None keeps nothing.
        progress: called with a sentence after each policy in each world.

    Raises:
        ValueError: for no policies, no setups, two policies with one name, or a file in `keep` that cannot be read.
    """
    if not policies or not setups:
        raise ValueError(
            f"A comparison needs at least one policy and one episode, got {len(policies)} and {len(setups)}."
        )
    names = [policy.name for policy in policies]
    if len(set(names)) < len(names):
        raise ValueError(f"Policies must have different names, got {brief(names)}.")
    found: dict[str, list[list[bool]]] = {"predicted": [], "truth": []}
    quick = truth if unseen is None else replace(truth, world=unseen)
    for policy in policies:
        for where, simulator in (("predicted", predicted), ("truth", truth if policy.acts_on == "images" else quick)):
            outcomes = kept(keep, simulator, setups, policy)
            found[where].append([outcome.success for outcome in outcomes])
            if progress is not None:
                progress(f"{policy.name} in {simulator.world.config.name}")
    return compared(title, names, [policy.acts_on for policy in policies], found["predicted"], found["truth"])


def kept(folder: Path | None, simulator: Simulator, setups: Sequence[Setup], policy: Policy) -> list[Outcome]:
    """As `run`, but with a folder it reads outcomes that an earlier call has kept there, and keeps new ones, `KEPT`
    episodes per file. The name of a file is a hash of everything that decides its outcomes.

    Raises:
        ValueError: as `run`, and for a file that cannot be read.
    """
    if folder is None:
        return run(simulator, setups, policy)
    parts = [setups[first : first + KEPT] for first in range(0, len(setups), KEPT)]
    return [outcome for part in parts for outcome in _kept(folder, simulator, part, policy)]


def _kept(folder: Path, simulator: Simulator, setups: Sequence[Setup], policy: Policy) -> list[Outcome]:
    goals = [(s.seed, s.anchor.to_json(), s.goal_c2w.tolist()) for s in setups]
    decides = (simulator.world.weights_hash, repr(simulator.task), repr(simulator.limits), repr(policy), goals)
    file = folder / f"{hashlib.sha256(repr(decides).encode()).hexdigest()[:24]}.json"
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        outcomes = [outcome._asdict() for outcome in run(simulator, setups, policy)]
        world = simulator.world.config.name
        write_text(file, json.dumps({"policy": policy.name, "world": world, "outcomes": outcomes}))
    try:
        return [Outcome(**outcome) for outcome in read_json(file, MAX_BYTES)["outcomes"]]
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"{file} cannot be read as the outcomes of a policy: {reason(error)}. Delete it to run the policy again."
        ) from error


def choose(policies: Sequence[Policy], names: Sequence[str]) -> tuple[Policy, ...]:
    """The policies with these names, in this order; all of them for no names.

    Raises:
        ValueError: for a name that no policy has.
    """
    known = {policy.name: policy for policy in policies}
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"There is no policy {brief(unknown[0])}; there are {', '.join(known)}.")
    return tuple(known[name] for name in names or known)
