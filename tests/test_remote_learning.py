"""Stable-Baselines3 and TorchRL train through a server as they train on an environment here; RLlib in test_ray.py."""

import gymnasium as gym
import pytest

pytest.importorskip("sanawm_env.serving.server", reason="the extra [serve] is not installed", exc_type=ImportError)

from sanawm_env import EnvConfig
from sanawm_env.serving.server import Server
from sanawm_env.serving.service import Service
from tests.worlds import with_starts, write_tiny_world

pytestmark = pytest.mark.slow

BATCH = {"id": "SanaWM/Remote-v0", "num_envs": 2, "vectorization_mode": "vector_entry_point", "obs_size": (36, 48)}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> str:
    return with_starts(write_tiny_world(tmp_path_factory.mktemp("worlds") / "tiny"))


@pytest.fixture(scope="module")
def served(tiny):
    with Server(Service(EnvConfig(world=tiny, task="pointnav", max_episode_chunks=3))) as server:
        yield server


@pytest.fixture
def taken(served):
    """How many steps the server has taken since the test began."""
    steps = served.service.metrics.steps._value
    before = steps.get()
    return lambda: steps.get() - before


def test_stable_baselines3_trains_through_the_wire(served, taken):
    stable_baselines3 = pytest.importorskip("stable_baselines3", reason="the extra [rl] is not installed")
    from sanawm_env.integrations.sb3 import SB3VecEnv

    envs = SB3VecEnv(gym.make_vec(**BATCH, url=served.url, autoreset_mode="SameStep"))
    model = stable_baselines3.PPO("MultiInputPolicy", envs, n_steps=4, batch_size=8, n_epochs=1)
    before = [p.clone() for p in model.policy.parameters()]
    model.learn(16)
    assert model.num_timesteps == taken() == 16
    assert any((a != b).any() for a, b in zip(before, model.policy.parameters(), strict=True))
    envs.close()


def test_torchrl_trains_through_the_wire(served, taken):
    """Its collector, its advantages, and a step of PPO on them."""
    pytest.importorskip("torchrl", reason="torchrl is not installed")
    import torch
    from tensordict.nn import NormalParamExtractor, TensorDictModule, TensorDictSequential
    from torch import nn
    from torchrl.collectors import Collector
    from torchrl.envs import GymWrapper
    from torchrl.modules import ProbabilisticActor, TanhNormal
    from torchrl.objectives import ClipPPOLoss
    from torchrl.objectives.value import GAE

    env = GymWrapper(gym.make_vec(**BATCH, url=served.url, autoreset_mode="Disabled"))
    look = TensorDictModule(nn.Linear(3, 8), ["goal"], ["seen"])
    mean = TensorDictModule(nn.Sequential(nn.Linear(8, 12), NormalParamExtractor()), ["seen"], ["loc", "scale"])
    actor = ProbabilisticActor(
        TensorDictSequential(look, mean), in_keys=["loc", "scale"], distribution_class=TanhNormal, return_log_prob=True
    )
    critic = TensorDictModule(nn.Linear(3, 1), ["goal"], ["state_value"])
    advantage, loss = GAE(gamma=0.9, lmbda=0.9, value_network=critic), ClipPPOLoss(actor, critic)
    optimizer = torch.optim.Adam(loss.parameters(), lr=1e-2)
    before = [p.clone() for p in actor.parameters()]
    collector = Collector(env, actor, frames_per_batch=8, total_frames=16)
    for walk in collector:
        assert walk.batch_size == (2, 4) and walk["rgb"].dtype == torch.uint8
        assert walk["next", "truncated"].any()
        terms = loss(advantage(walk))
        optimizer.zero_grad()
        sum(terms[name] for name in ("loss_objective", "loss_critic", "loss_entropy")).backward()
        optimizer.step()
    collector.shutdown()
    assert taken() >= 16
    assert all((a != b).any() for a, b in zip(before, actor.parameters(), strict=True))
