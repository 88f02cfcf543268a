"""Does what works in the dream work in the truth? The same episodes, begun in a world model and in the world it models.

An episode is set up once, in the truth, and begun alike in every world:

    dream = World.load("nano")
    truth = World.load("rooms", height=dream.config.height, width=dream.config.width, collisions=True)
    dreaming, acting = simulators(dream, truth, ImageNav())
    setups = draw_setups(acting, anchors_of("rooms:test", dream.config, truth.config, count=32))
    episodes, same = begin(dreaming, setups), begin(acting, setups)          # lists of `Episode`

`env.restore(Snapshot.of(episode, env.action_mode), reseed=setup.seed)` takes a Gymnasium environment there.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from sanawm_env.simulation.controllers import make_controller
from sanawm_env.simulation.episode import Episode, GoalState
from sanawm_env.simulation.simulator import Limits, Simulator
from sanawm_env.simulation.tasks import ImageNav, Task
from sanawm_env.training.truth import draw_walk
from sanawm_env.world.anchor import Anchor
from sanawm_env.world.config import WorldConfig
from sanawm_env.world.files import brief, check_count
from sanawm_env.world.scenes import DrawnScenes
from sanawm_env.world.world import World

KNOWN = "known"
MOST_EPISODES = 10**6


@dataclass(frozen=True, eq=False)
class Setup:
    """How one episode begins, the same in every world.

    anchor: where the start picture was taken; the truth begins there, a dream is told it where it knows the place.
    image: (H, W, 3) uint8, what the truth shows there. intrinsics: (4,) of the pictures, in pixels.
    goal_c2w: (4, 4) float64 pose to reach, relative to frame 0. goal_image: (H, W, 3) uint8, its picture.
    seed: of the dream's noise, and of what a policy draws.
    """

    anchor: Anchor
    image: NDArray
    intrinsics: NDArray
    goal_c2w: NDArray
    goal_image: NDArray
    seed: int


def simulators(dream: World, truth: World, task: Task, steps: int = 6) -> tuple[Simulator, Simulator]:
    """One of each world in which the same twist leads to the same poses and an episode has `steps` steps at most.

    Raises ValueError for worlds whose steps or pictures differ."""
    made = []
    own = dream.config
    for name in ("height", "width", "chunk_frames", "fps"):
        if getattr(truth.config, name) != getattr(own, name):
            raise ValueError(
                f"Worlds are compared at equal {name}, got {getattr(own, name)} in {own.name} and "
                f"{getattr(truth.config, name)} in {truth.config.name}: load the truth with that of the other."
            )
    for world in (dream, truth):
        controller = make_controller("twist", world.config, speed=own.speed, workspace=own.workspace)
        made.append(Simulator(world, controller, task, Limits(own.workspace, steps)))
    return made[0], made[1]


def anchors_of(scenes: str, dream: WorldConfig, truth: WorldConfig, count: int, seed: int = 0) -> list[Anchor]:
    """Where `count` episodes begin: "known", spots in the places that the dream knows where no training has stood; or
    a set of furnished rooms that the truth can show, such as "rooms:test", another room for each.

    Raises ValueError for other scenes, or a world without known places."""
    count = check_count("The number of episodes", count, 1, MOST_EPISODES)
    if scenes == KNOWN:
        walks = [draw_walk(dream, seed, i, 1) for i in range(count)]
        return [Anchor(walk.place.name, walk.c2w[0]) for walk in walks]
    drawn = DrawnScenes.named(scenes) if isinstance(scenes, str) else None
    if drawn is None:
        raise ValueError(f'scenes must be "{KNOWN}" or a set such as "rooms:test", got {brief(scenes)}.')
    numbers = np.random.default_rng(seed).integers(len(drawn), size=count)
    anchors = [drawn.start(int(number), truth).anchor for number in numbers]
    if None in anchors:
        raise ValueError(f"The {truth.name} world does not know the places of {drawn}: give a truth that does.")
    return anchors


def draw_setups(truth: Simulator, anchors: Sequence[Anchor], seed: int = 0, chunks: int | None = None) -> list[Setup]:
    """Episodes from these anchors, each with a goal where a hidden walk of so many steps ends (None: as `ImageNav`).

    truth: of a world that knows the places; loaded with `collisions=True`, no walk leads through a wall, so every goal
    can be reached. Episode i is a function of its anchor, `seed` and i. Raises as `World.scene` and `Simulator.reset`.
    """
    world, drawn = truth.world, replace(truth, task=ImageNav(chunks=chunks))
    setups = []
    for i, anchor in enumerate(anchors):
        blank = np.zeros((world.config.height, world.config.width, 3), np.uint8)  # the truth shows what is there
        scene = world.scene(blank, anchor=anchor)
        number = int(np.random.default_rng([seed, i]).integers(2**62))
        goal = drawn.reset([scene], [number])[0].task_state
        setups.append(Setup(anchor, scene.image, scene.intrinsics, goal.c2w, goal.image.cpu().numpy(), number))
    return setups


def begin(simulator: Simulator, setups: Sequence[Setup]) -> list[Episode]:
    """The episodes in the simulator's world, nothing imagined yet: the same start picture, pose, goal and noise.

    The start picture is the truth's, also in a dream; the place is known only to worlds that know it, so in furnished
    rooms a dream begins from the picture alone. Raises ValueError where the world has another size of picture.
    """
    world, size = simulator.world, (simulator.world.config.height, simulator.world.config.width)
    scenes = []
    for setup in setups:
        if setup.image.shape[:2] != size:
            raise ValueError(
                f"These episodes have pictures of {setup.image.shape[:2]} pixels, the {world.config.name} world of "
                f"{size}: set them up in a truth of that size."
            )
        anchor = setup.anchor if world.config.knows(setup.anchor.place) else None
        scenes.append(world.scene(setup.image, anchor=anchor, intrinsics=setup.intrinsics))
    states = world.begin(scenes, [setup.seed for setup in setups])
    return [
        Episode(state, simulator.controller.start(), GoalState(s.goal_c2w, torch.tensor(s.goal_image).to(world.device)))
        for state, s in zip(states, setups, strict=True)
    ]
