"""Learning in nano and acting in the truth: planar policies, how two images are compared, what is measured."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from rich.console import Console

pytest.importorskip("stable_baselines3")
from sanawm_env.agents.compare import KNOWN, anchors_of, draw_setups, simulators
from sanawm_env.agents.train_ppo import Shifts, TrainPPO, make_envs, train_ppo

from sanawm_env import World
from sanawm_env.simulation.tasks import PointNav
from tests.golden_files import benchmark
from tests.test_env import write_world

SIZE = {"height": 36, "width": 54, "supersample": 1}


@pytest.fixture(scope="module")
def learn() -> dict:
    return benchmark("learn")


@pytest.fixture(scope="module")
def meter() -> dict:
    return benchmark("drift_meter")


@pytest.mark.slow
def test_a_planar_policy_moves_sideways_forwards_and_turns(tmp_path):
    small = {"num_envs": 2, "n_steps": 4, "batch_size": 4, "n_epochs": 1, "steps": 8, "obs_size": (36, 36)}
    small |= {"max_episode_chunks": 2}
    world, plain = write_world(tmp_path / "world"), Console(quiet=True)
    run = TrainPPO(world=world, task="imagenav", goal_chunks=1, action_mode="planar", out=tmp_path / "run", **small)
    model = train_ppo(run, plain)
    assert model.action_space.shape == (3,) and model.num_timesteps == 8
    entry = json.loads((run.out / "progress.json").read_text())[-1]
    assert 0 <= entry["success"] <= 1
    envs = make_envs(run)
    envs.seed(0)
    envs.reset()
    envs.step(np.array([[0.5, 1, 0], [0, 0, 1]]))
    there = [episode.slot.c2w for episode in envs.unwrapped.batch.get_attr("episode")]
    assert np.allclose(there[0], [[1, 0, 0, 0.6], [0, 1, 0, 0], [0, 0, 1, 1.2], [0, 0, 0, 1]])
    assert np.allclose(there[1][:3, 3], 0) and there[1][0, 2] > 0.4  # to the right
    assert run.actions(np.array([0.5, 1, 0])).tolist() == [0.5, 0, 1, 0, 0, 0]


@pytest.mark.parametrize("moved", [-6, 0, 4])
def test_where_a_picture_has_moved_is_where_its_features_correlate(moved):
    torch.manual_seed(0)
    wide = torch.rand(1, 3, 36, 54 + 40)
    one, other = wide[..., 20:74], wide[..., 20 - moved : 74 - moved]  # what was at x is at x + moved
    alike = Shifts()(one, other).reshape(-1, 2, 3)
    assert len(alike) == 25 and (alike[:, :, 1].argmax(0) == 12 + moved // 2).all()


@pytest.mark.slow
def test_the_straight_way_reaches_every_point_and_walls_stop_some(learn, tmp_path):
    predicted = World.load(write_world(tmp_path / "world"))
    free, walled = (World.load("rooms", collisions=stop, height=40, width=48, supersample=1) for stop in (False, True))
    acting, stopped = (simulators(predicted, truth, PointNav(chunks=2), 4)[1] for truth in (free, walled))
    setups = draw_setups(stopped, anchors_of("rooms:test", predicted.config, free.config, 4), chunks=2)
    experiment = learn["EXPERIMENTS"]["pointnav"]
    assert experiment.act(acting, setups, learn["straight"]) == [True] * 4
    assert sum(experiment.act(acting, setups, learn["steady"](0.2))) < 4
    wall = [replace(setup, goal_c2w=at(0, 0, 6)) for setup in setups]
    assert not any(experiment.act(stopped, wall, learn["straight"]))


def at(x, y, z):
    pose = np.eye(4)
    pose[:3, 3] = x, y, z
    return pose


def test_the_table_holds_rates_of_seeds_and_the_best_of_the_steady(learn):
    seeds = [
        {"PPO": {"truth": [True, won]}, "steady 0.2": {"truth": [False, won]}, "steady 0.4": {"truth": [True] * 2}}
        for won in (True, False)
    ]
    rows = learn["EXPERIMENTS"]["imagenav"].table({KNOWN: seeds})
    assert list(rows) == ["PPO", "steady"]
    cell = rows["PPO"]["known, truth"]
    assert cell["mean"] == 0.75 and cell["seeds"] == [1.0, 0.5] and cell["high"] == 1
    assert rows["steady"]["known, truth"]["mean"] == 1


@pytest.mark.slow
def test_correlations_have_intervals_over_walks(meter):
    rng = np.random.default_rng(0)
    error = rng.normal(size=(30, 4))
    alike, other = (meter["correlation"](m, error, 200) for m in (np.exp(error), rng.normal(size=(30, 4))))
    assert np.isclose(alike["spearman"]["r"], 1) and 0.5 < alike["pearson"]["r"] < 0.95
    assert other["spearman"]["low"] < 0 < other["spearman"]["high"]
    tied = np.repeat(rng.normal(size=(30, 1)), 4, axis=1)  # four chunks of a walk that say the same are one
    noisy = tied + 2 * np.repeat(rng.normal(size=(30, 1)), 4, axis=1)
    wide, narrow = (meter["correlation"](tied[:, :n], noisy[:, :n], 400) for n in (4, 1))
    spans = [found["pearson"]["high"] - found["pearson"]["low"] for found in (wide, narrow)]
    assert np.isclose(*spans)


@pytest.mark.slow
def test_a_prediction_that_is_the_truth_has_no_error(meter):
    """So that frames are compared at equal poses."""
    found = meter["walk"](World.load("rooms", height=18, width=27), "rooms:test", range(1), 2)
    assert found["chunk"]["psnr_loss"] == [[-100.0] * 2] and found["walk"]["psnr_loss"] == [[-100.0]]
    assert found["chunk"]["drift"] == found["chunk"]["true_drift"] and np.allclose(found["chunk"]["ssim_loss"], 0)
    assert found["chunk"]["age"] == [[1, 2]]


@pytest.mark.slow
def test_the_benchmark_goes_on_where_it_was_stopped(learn, tmp_path, monkeypatch):
    """Trainings in both worlds and episodes in all, at toy sizes; what is done is not done again."""
    experiment = replace(learn["toy"](learn["EXPERIMENTS"]["pointnav"]), runs=tmp_path, seeds=(0, 1))
    assert learn["run"]({"pointnav": experiment}, ["rooms"]) is None
    done = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("checkpoint_*/policy.zip")}
    numbers = learn["run"]({"pointnav": experiment}, learn["LEARNERS"])
    assert len(done) == 2 and all(path.stat().st_mtime_ns == when for path, when in done.items())
    policies = numbers["pointnav"]["policies"]
    asked = {"known, predicted", "known, truth", "known, truth, walls", "rooms:test, truth, walls"}
    assert set(policies["PPO, learned in nano"]) == asked and set(policies["random"]) == asked - {"known, predicted"}
    assert policies["straight for the goal"]["known, truth"]["mean"] == 1
    monkeypatch.setattr(learn["Experiment"], "evaluate", lambda *_: pytest.fail("evaluated twice"))
    assert learn["run"]({"pointnav": experiment}, learn["LEARNERS"]) == numbers
    learn["draw"]({"pointnav": numbers["pointnav"]}, tmp_path / "curves.png")
