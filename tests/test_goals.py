"""The observation mode "goal": what Gymnasium-Robotics' GoalEnv promises, and what hindsight replay needs."""

import runpy
import warnings
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from scipy.spatial.transform import Rotation

from sanawm_env import SanaWMEnv, SanaWMVectorEnv
from tests.test_env import write_world

SPARSE = {"task": "pointnav", "task_options": {"chunks": 1, "shaped": False}, "obs_mode": "goal"}
FORWARD = np.array([0, 0, 1, 0, 0, 0], np.float32)
EXAMPLE = Path(__file__).parents[1] / "examples" / "her.py"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> str:
    return write_world(tmp_path_factory.mktemp("worlds") / "tiny")


@pytest.mark.slow
def test_gymnasium_finds_nothing_to_warn_of(tiny):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(gym.make("SanaWM/PointNav-v0", world=tiny, obs_mode="goal", task_options={"shaped": False}).unwrapped)


def test_goals_are_positions_and_the_reward_compares_them(tiny):
    env = SanaWMEnv(tiny, max_episode_chunks=3, **SPARSE)
    goal = np.array([0.0, 0.0, 2.4])
    obs, info = env.reset(seed=0, options={"task": {"goal": goal}})
    assert set(env.observation_space) == {"achieved_goal", "desired_goal", "observation", "rgb"}
    ends = []
    for _ in range(3):
        obs, reward, terminated, _, info = env.step(FORWARD)
        assert env.observation_space.contains(obs)
        assert np.allclose(obs["achieved_goal"], info["c2w"][-1, :3, 3], atol=1e-6)
        assert np.array_equal(obs["observation"][:3], obs["achieved_goal"]) and np.allclose(obs["desired_goal"], goal)
        assert reward == env.compute_reward(obs["achieved_goal"], obs["desired_goal"], info)
        assert terminated == env.compute_terminated(obs["achieved_goal"], obs["desired_goal"], info)
        ends.append((reward, terminated))
        if terminated:
            break
    assert ends == [(0.0, False), (1.0, True)]  # 1.2 m a step


def test_rewards_of_many_goals_come_at_once(tiny):
    env = SanaWMEnv(tiny, **SPARSE)
    achieved, desired = np.zeros((4, 3), np.float32), np.zeros((4, 3), np.float32)
    desired[:, 2] = 0.1, 0.34, 0.36, -0.2
    rewards = env.compute_reward(achieved, desired, [{}] * 4)
    assert rewards.dtype == np.float64 and rewards.tolist() == [1, 1, 0, 1]
    assert env.compute_reward(achieved[:, None], desired[None]).shape == (4, 4)


@pytest.mark.parametrize(
    "settings",
    [
        {"task": "explore"}, {"task": "none"}, {"task": "pointnav"},
        {"task": "imagenav", "task_options": {"reward": "success"}},
    ],
)  # fmt: skip
def test_other_tasks_say_what_the_mode_needs(tiny, settings):
    with pytest.raises(ValueError, match=r'obs_mode "goal" needs .*task_options=\{"shaped": False\}'):
        SanaWMEnv(tiny, obs_mode="goal", **settings)
    assert not hasattr(SanaWMEnv(tiny, **settings), "compute_reward")


def test_a_batch_shows_goals_as_single_environments_do(tiny):
    envs = SanaWMVectorEnv(2, world=tiny, batch_invariant=True, **SPARSE)
    single = SanaWMEnv(tiny, **SPARSE)
    for batch, one in ((envs.reset(seed=3), single.reset(seed=3)), (envs.step([FORWARD] * 2), single.step(FORWARD))):
        assert all(np.array_equal(batch[0][name][0], part) for name, part in one[0].items())


@pytest.mark.slow
def test_hindsight_trains_on_what_it_relabels(tiny):
    """A few episodes, in which hardly a goal is reached, hold many rewards when the goals are replaced."""
    pytest.importorskip("stable_baselines3")
    example = runpy.run_path(str(EXAMPLE))
    envs = example["environments"](tiny, 2, task_options={"chunks": 3, "shaped": False, "radius": 0.01})
    model = example["learner"](envs)
    before = [p.clone() for p in model.policy.parameters()]
    model.learn(32)
    drawn = model.replay_buffer.sample(64)
    assert model.replay_buffer.rewards[: model.replay_buffer.pos].mean() < 0.1 < float(drawn.rewards.mean()) < 1
    same = (drawn.next_observations["achieved_goal"] - drawn.observations["desired_goal"]).norm(dim=1) <= 0.01
    assert torch.equal(same, drawn.rewards[:, 0] == 1)
    assert not all(torch.equal(p, q) for p, q in zip(before, model.policy.parameters(), strict=True))


def test_the_examples_policy_sees_the_goal_in_the_cameras_axes(tiny):
    pytest.importorskip("stable_baselines3")
    env = SanaWMEnv(tiny, **SPARSE)
    turned, point = Rotation.from_euler("xyz", [0.2, -0.9, 0.1]), np.array([0.5, -0.2, 1.5])
    at = np.array([0.3, 0.1, -0.4])
    seen = {
        "observation": np.concatenate([at, turned.as_quat(canonical=True)]),
        "achieved_goal": at,
        "desired_goal": at + turned.apply(point),
    }
    ahead = runpy.run_path(str(EXAMPLE))["GoalAhead"](env.observation_space)
    found = ahead({name: torch.tensor(part)[None].float() for name, part in seen.items()})
    assert np.allclose(found[0], point, atol=1e-5)
