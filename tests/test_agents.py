"""Agents on the tiny world."""

import numpy as np
import pytest
from sanawm_env.agents.shooting import random_shooting

from sanawm_env.world.state import stack
from sanawm_env.world.world import World
from tests.worlds import picture, write_tiny_world


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return World.load(write_tiny_world(tmp_path_factory.mktemp("worlds") / "tiny"))


def test_random_shooting_returns_the_best_of_its_futures(world):
    state = world.begin(world.scene(picture()))

    def forward(frames, c2w):
        return c2w[:, -1, 2, 3]

    plan = random_shooting(world, state, forward, np.random.default_rng(0), candidates=5, horizon=2)
    assert plan.frames.shape == (5, 48, 24, 32, 3)
    assert plan.actions.shape == (2, 6)
    assert plan.scores.max() > plan.scores.mean()
    again = random_shooting(world, state, forward, np.random.default_rng(0), candidates=5, horizon=2)
    assert np.array_equal(plan.frames, again.frames)


def test_random_shooting_refuses_batches_and_empty_searches(world):
    state = world.begin(world.scene(picture()))
    for bad, kwargs in ((stack([state, state]), {}), (state, {"candidates": 0}), (state, {"horizon": 0})):
        with pytest.raises(ValueError, match="random_shooting needs"):
            random_shooting(world, bad, lambda f, c: c[:, 0, 0, 0], np.random.default_rng(0), **kwargs)
