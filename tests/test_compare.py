"""Policies compared in a dream and in the truth: the same episodes in both, and what is made of their results."""

import numpy as np
import pytest
from sanawm_env.agents.compare import anchors_of, begin, draw_setups, simulators

from sanawm_env import SanaWMEnv, Snapshot
from sanawm_env.simulation.tasks import ImageNav, PointNav
from sanawm_env.world.folders import config_of
from sanawm_env.world.world import World
from tests.worlds import TINY, write_tiny_world

SIZE = {"height": TINY.height, "width": TINY.width, "supersample": 1}


@pytest.fixture(scope="module")
def dream(tmp_path_factory):
    return World.load(write_tiny_world(tmp_path_factory.mktemp("tiny") / "world"))


@pytest.fixture(scope="module")
def truth():
    return World.load("rooms", collisions=True, **SIZE)


@pytest.fixture(scope="module")
def setups(dream, truth):
    anchors = anchors_of("rooms:test", dream.config, truth.config, count=3)
    return draw_setups(simulators(dream, truth, ImageNav())[1], anchors)


def test_an_episode_begins_alike_in_the_dream_and_in_the_truth(dream, truth, setups):
    pair = simulators(dream, truth, ImageNav())
    for one, other, setup in zip(*(begin(simulator, setups) for simulator in pair), setups, strict=True):
        for episode in (one, other):
            assert np.array_equal(episode.slot.frame, setup.image)
            assert np.array_equal(episode.task_state.image, setup.goal_image)
            assert np.array_equal(episode.task_state.c2w, setup.goal_c2w)
            assert np.array_equal(episode.slot.scene.intrinsics, setup.intrinsics)
            assert episode.slot.seed == setup.seed
        assert one.slot.scene.anchor is None and other.slot.scene.anchor is not None
        assert np.linalg.norm(setup.goal_c2w[:3, 3]) >= 0.7
    assert len({setup.anchor.place for setup in setups}) == 3


def test_the_goal_picture_is_what_the_truth_shows_at_the_goal(setups):
    free, setup = World.load("rooms", **SIZE), setups[0]
    state = free.begin(free.scene(setup.image, anchor=setup.anchor))
    _, clip = free.advance(state, np.repeat(setup.goal_c2w[None], 24, 0))
    assert np.array_equal(clip.frames[0, -1], setup.goal_image)


def test_the_same_twists_lead_to_the_same_poses_in_both(dream, setups):
    free = World.load("rooms", **SIZE)
    actions = np.random.default_rng(0).uniform(-1, 1, (len(setups), 6))
    moved = [s.step(begin(s, setups), list(actions))[1].c2w for s in simulators(dream, free, PointNav())]
    assert np.array_equal(*moved)


def test_setups_follow_from_scenes_and_seed(dream, truth, setups):
    pair = simulators(dream, truth, ImageNav())
    again = draw_setups(pair[1], anchors_of("rooms:test", dream.config, truth.config, count=3))
    other = draw_setups(pair[1], anchors_of("rooms:test", dream.config, truth.config, count=1, seed=1), seed=1)
    assert [setup.seed for setup in again] == [setup.seed for setup in setups]
    assert all(np.array_equal(a.goal_image, b.goal_image) for a, b in zip(again, setups, strict=True))
    assert other[0].anchor.place != setups[0].anchor.place and other[0].seed != setups[0].seed


@pytest.mark.slow
def test_known_episodes_begin_where_the_dream_knows_the_place(truth):
    nano = config_of("nano")
    assert {anchor.place for anchor in anchors_of("known", nano, truth.config, 3, seed=1)} <= set(nano.places)


def test_a_gymnasium_environment_goes_there(dream, setups):
    env = SanaWMEnv(dream, task="imagenav", max_episode_chunks=6)
    (episode,) = begin(env.simulator, setups[:1])
    obs, info = env.restore(Snapshot.of(episode, env.action_mode), reseed=setups[0].seed)
    assert np.array_equal(obs["rgb"], setups[0].image) and np.array_equal(obs["goal_rgb"], setups[0].goal_image)
    assert info["seed"] == setups[0].seed and np.array_equal(info["goal_c2w"], setups[0].goal_c2w)


@pytest.mark.parametrize("scenes", ["unknown", 3, None, "rooms:train2"])
def test_other_scenes_are_refused_in_a_sentence(dream, truth, scenes):
    with pytest.raises(ValueError, match=r"scenes must be|no start images"):
        anchors_of(scenes, dream.config, truth.config, 1)


def test_worlds_that_differ_in_size_are_refused_in_a_sentence(dream, setups):
    large = World.load("rooms", height=32, width=48)
    with pytest.raises(ValueError, match="equal height, got 24 in tiny and 32 in rooms"):
        simulators(dream, large, PointNav())
    with pytest.raises(ValueError, match=r"pictures of \(24, 32\) pixels, the rooms world of \(32, 48\)"):
        begin(simulators(large, large, PointNav())[0], setups)
