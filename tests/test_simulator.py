"""The simulator: episodes are values, whoever steps them, and a step copies no clip."""

import copy
import dataclasses

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sanawm_env import SanaWMEnv, Simulator
from sanawm_env.simulation.controllers import make_controller
from sanawm_env.simulation.simulator import EpisodeOver, Limits
from sanawm_env.simulation.tasks import Explore, PointNav, Task
from sanawm_env.world.engine import Chunk, Engine
from sanawm_env.world.world import World
from tests.worlds import TINY, picture, with_starts, write_tiny_world

EXPLORE = Explore()
FORWARD, TURN = np.array([0, 0, 0.5, 0, 0, 0]), np.array([0, 0, 0.2, 0, 0.6, 0])


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> str:
    return with_starts(write_tiny_world(tmp_path_factory.mktemp("worlds") / "tiny"))


@pytest.fixture(scope="module")
def world(tiny):
    return World.load(tiny)


def simulator(world, task=EXPLORE, **limits) -> Simulator:
    config = world.config
    controller = make_controller("twist", config, None, "hold", config.workspace)
    return Simulator(world, controller, task, Limits(config.workspace, **limits))


def frames(episodes):
    return [episode.frames.numpy() for episode in episodes]


def test_a_step_changes_nothing_it_was_given(world):
    sim = simulator(world)
    start = sim.reset([world.scene(picture())], [3])
    before = copy.deepcopy(vars(start[0]))
    once, first = sim.step(start, [FORWARD])
    again, second = sim.step(start, [FORWARD])
    assert np.array_equal(frames(once), frames(again)) and first.rewards == second.rewards
    assert (
        start[0].clip is None and start[0].slot.chunk == 0 and np.array_equal(before["task_state"], start[0].task_state)
    )
    with pytest.raises(dataclasses.FrozenInstanceError):
        start[0].terminated = True


def test_the_environment_is_a_shell_around_it(tiny, world):
    env = SanaWMEnv(tiny, scenes=picture(), task="pointnav")
    env.reset(seed=5)
    episodes, sim = [env.episode], env.simulator
    for action in (FORWARD, TURN):
        _, reward, terminated, truncated, info = env.step(action)
        episodes, transition = sim.step(episodes, [action])
        assert (transition.rewards[0], transition.terminated[0], transition.truncated[0]) == (
            reward, terminated, truncated,
        )  # fmt: skip
        assert np.array_equal(episodes[0].frames.numpy(), env.clip.frames)
        assert sim.info(episodes[0])["distance"] == info["distance"]


def test_a_fork_is_a_list(world):
    sim = simulator(world)
    (start,) = sim.reset([world.scene(picture())], [0])
    (here,), _ = sim.step([start], [FORWARD])
    futures, transition = sim.step([here] * 3, [FORWARD, TURN, -TURN])
    assert transition.frames.shape[:2] == (3, 24)
    assert len({future.frames.numpy().tobytes() for future in futures}) == 3
    assert [future.batch_row for future in futures] == [(0, 3), (1, 3), (2, 3)]
    reseeded, _ = sim.step([here, here.reseed(9)], [TURN, TURN])
    assert not np.array_equal(*frames(reseeded))


def test_any_list_of_episodes_is_a_batch(world):
    """Some have just begun, some have walked: each gets what it gets alone, one by one to the bit."""
    sim = simulator(world)
    new, old = sim.reset([world.scene(picture(i)) for i in range(2)], [1, 2])
    (old,), _ = sim.step([old], [TURN])
    alone = [sim.step([episode], [FORWARD])[0][0] for episode in (new, old)]
    together, _ = sim.step([new, old], [FORWARD, FORWARD], one_by_one=True)
    assert all(map(np.array_equal, frames(alone), frames(together)))
    batched, _ = sim.step([new, old], [FORWARD, FORWARD])
    assert all(np.abs(a.astype(int) - b).max() <= 1 for a, b in zip(frames(alone), frames(batched), strict=True))


def test_limits_and_bad_actions_are_told_before_any_work(world, monkeypatch):
    sim = simulator(world, max_episode_chunks=1)
    start = sim.reset([world.scene(picture())] * 2, [0, 1])
    over, transition = sim.step(start, [FORWARD, TURN])
    assert transition.truncated.all() and not transition.terminated.any()
    monkeypatch.setattr(World, "advance", lambda *_: pytest.fail("nothing may be imagined"))
    with pytest.raises(EpisodeOver, match="Slot 0: The episode is over"):
        sim.step(over, [FORWARD, TURN])
    with pytest.raises(ValueError, match="Slot 1: a twist action is six finite numbers"):
        sim.step(start, [FORWARD, [0, 1]])
    with pytest.raises(ValueError, match="horizon must be one of stop, reanchor, got 'never'"):
        Limits(world.config.workspace, horizon="never")


def test_looking_ahead_asks_neither_task_nor_limits(world):
    class Angry(Task):
        def evaluate(self, transition):
            raise AssertionError("Nobody asked.")

    sim = simulator(world, task=Angry(), max_episode_chunks=1)
    now = sim.reset([world.scene(picture())] * 2, [0, 0])
    for _ in range(2):
        now, clip = sim.imagine(now, [FORWARD, TURN])
        assert clip.frames.shape == (2, 24, 24, 32, 3)
    assert np.allclose(sim.follow(now[0], [FORWARD])[-1], sim.imagine(now, [FORWARD] * 2)[0][0].slot.c2w)


def test_the_task_may_be_another(world):
    (start,) = simulator(world).reset([world.scene(picture())], [0])
    with pytest.raises(ValueError, match="not of the task PointNav"):
        simulator(world, task=PointNav()).check(start)


class Copies(TorchDispatchMode):
    """The largest tensor that was copied."""

    most = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if str(func).split(".")[1] in ("cat", "clone", "stack", "copy_", "index", "_to_copy"):
            sizes = [leaf.nbytes for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor)]
            self.most = max(self.most, *sizes, 0)
        return out


class Grey(Engine):
    """Grey pictures at once; what copies is the rest."""

    config, device, capabilities = TINY, torch.device("cpu"), frozenset({"images"})

    def encode(self, image, prompt, anchor):
        return None

    def advance(self, slots, memory, poses):
        shape = (len(slots), 24, self.config.height, self.config.width, 3)
        return Chunk(torch.full(shape, 128, dtype=torch.uint8), None)


@pytest.mark.slow
def test_a_step_of_many_copies_no_clip():
    """What is copied is as large as the last frames, 1 in 24; a reset beside it changes nothing."""
    world = World(Grey(), "grey")
    sim = simulator(world)
    episodes = sim.reset([world.scene(picture())] * 4, range(4))
    episodes, transition = sim.step(episodes, [FORWARD] * 4)
    with Copies() as copies:
        episodes, transition = sim.step(episodes, [FORWARD] * 4)
    assert 0 < copies.most <= transition.frames.nbytes / 24
    assert transition.after[3].frames.data_ptr() == transition.frames[3].data_ptr()
