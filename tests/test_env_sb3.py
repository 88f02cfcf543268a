"""Stable-Baselines3 accepts the environment in every mode; what it warns of is listed here, with the reason."""

import warnings
from dataclasses import replace

import gymnasium as gym
import pytest

from tests.worlds import TINY, picture, write_tiny_world

pytest.importorskip("stable_baselines3")
from stable_baselines3 import PPO
from stable_baselines3.common.env_checker import check_env

# These modes are for readers with their own networks: SB3's default policies want vectors and images.
EXPECTED = {
    ("chunk", "twist"): ["unconventional shape"],  # a video (24, h, w, 3)
    ("latent", "twist"): ["unconventional shape"],  # latents (c, 3, h', w')
    ("dict", "poses"): ["symmetric and normalized Box action space"],  # metres and matrices are not in [-1, 1]
}
MODES = [(obs, "twist") for obs in ("dict", "rgb", "stack", "chunk", "latent")]
MODES += [("dict", action) for action in ("keys", "discrete", "poses")]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> dict:
    """A world with pictures of 40 x 48; SB3 wants 36 x 36 at least."""
    folder = write_tiny_world(tmp_path_factory.mktemp("worlds") / "tiny", config=replace(TINY, height=40, width=48))
    return {"world": str(folder), "scenes": picture()}


@pytest.mark.parametrize(("obs_mode", "action_mode"), MODES)
def test_stable_baselines_finds_nothing_unexpected(tiny, obs_mode, action_mode):
    env = gym.make("SanaWM/Explore-v0", obs_mode=obs_mode, action_mode=action_mode, **tiny)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        check_env(env.unwrapped)
    expected = EXPECTED.get((obs_mode, action_mode), [])
    assert len(caught) == len(expected), [str(w.message) for w in caught]
    for warning, text in zip(caught, expected, strict=True):
        assert text in str(warning.message)


@pytest.mark.parametrize(("obs_mode", "policy"), [("dict", "MultiInputPolicy"), ("rgb", "CnnPolicy")])
def test_a_policy_learns_on_it(tiny, obs_mode, policy):
    env = gym.make("SanaWM/Explore-v0", obs_mode=obs_mode, max_episode_chunks=3, **tiny)
    model = PPO(policy, env, n_steps=8, batch_size=8, n_epochs=1, device="cpu", seed=0)
    before = [p.clone() for p in model.policy.parameters()]
    model.learn(8)
    action, _ = model.predict(env.reset(seed=0)[0])
    assert env.action_space.contains(action)
    assert not all(p.equal(q) for p, q in zip(before, model.policy.parameters(), strict=True))
