"""What runs on Ray, on one Ray with two cores, which takes ten seconds to start: replicas of a server, of which the one
that has a client's session is killed, and the client goes on, bit for bit; collecting, where a killed worker loses no
episode and doubles none; and RLlib, which trains through a server as it trains on an environment here."""

import os
import re
import signal
import socket
import threading
import time
from functools import partial
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import psutil
import pytest
from gymnasium.utils.env_checker import data_equivalence
from sanawm_env.agents.collect import collect
from sanawm_env.agents.collection import Collection
from sanawm_env.agents.scripts import Policy

from sanawm_env import EnvConfig, SanaWMVectorEnv
from sanawm_env.cli import main
from sanawm_env.integrations import rllib
from sanawm_env.recording.dataset import Dataset
from tests.golden_files import ROOT
from tests.test_cli import refused
from tests.test_collect import QUIET, small, whole  # noqa: F401
from tests.test_episode import world  # noqa: F401
from tests.test_remote_learning import served, taken, tiny  # noqa: F401

pytestmark = pytest.mark.slow

replicas = pytest.importorskip(
    "sanawm_env.serving.replicas", reason="the extra [replicas] is not installed", exc_type=ImportError
)
collect_ray = pytest.importorskip("sanawm_env.agents.collect_ray", reason="ray is not installed", exc_type=ImportError)
from sanawm_env.serving.keep import Keep  # noqa: E402  needs the extra
from sanawm_env.serving.limits import ServerLimits  # noqa: E402
from sanawm_env.serving.remote import RemoteVectorEnv  # noqa: E402

ray = collect_ray.ray


@pytest.fixture(scope="module")
def deployed(tiny, tmp_path_factory):  # noqa: F811
    """Two replicas, on a Ray that they start and end."""
    config, keep = (
        EnvConfig(world=tiny, task="pointnav", max_episode_chunks=8),
        Keep(tmp_path_factory.mktemp("keep"), every=2),
    )
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.MonkeyPatch.context() as patches:
        patches.setattr(ray, "init", partial(ray.init, num_cpus=2))
        patches.setenv("RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", "300")  # of 5 s, which a busy machine is slower than
        with replicas.replicas(config, ServerLimits(), keep, 2, "127.0.0.1", port) as url:
            yield SimpleNamespace(config=config, keep=keep, url=url)
    assert not ray.is_initialized()


@pytest.fixture(scope="module")
def cluster(deployed):
    """The same Ray, for others."""
    assert ray.cluster_resources()["CPU"] == 2


def test_a_killed_replicas_sessions_go_on_with_another(deployed):
    keep, config = deployed.keep, deployed.config
    remote = gym.make("SanaWM/Remote-v0", url=deployed.url, batching="own", patience=300)
    local = gym.make("SanaWM/PointNav-v0", **config.keywords)
    assert data_equivalence(remote.reset(seed=0), local.reset(seed=0), exact=True)

    def step():
        action = np.full(6, 0.1)
        assert data_equivalence(remote.step(action), local.step(action), exact=True)

    session = remote.unwrapped.simulator.connection.session
    for _ in range(3):
        step()
    here, there = remote.unwrapped.snapshot(), local.unwrapped.snapshot()
    owner = keep.read(session)[0].owner
    os.kill(int(owner.partition("-")[0]), signal.SIGKILL)
    for _ in range(3):
        step()
    assert keep.read(session)[0].owner != owner
    remote.unwrapped.restore(here)
    local.unwrapped.restore(there)
    step()
    remote.close()


def workers() -> list[psutil.Process]:
    return [p for p in psutil.process_iter(["cmdline"]) if (p.info["cmdline"] or [""])[0].startswith("ray::Collector")]


def test_a_killed_worker_is_replaced_and_its_jobs_are_done(cluster, small, tmp_path):  # noqa: F811
    out, killed = tmp_path / "d", []

    def kill() -> None:
        while sum(1 for _ in out.glob("shard-*/episode-?????")) < 4:
            time.sleep(0.01)
        killed.append(next(p for p in workers() if p.cmdline()[0] == "ray::Collector.work"))
        os.kill(killed[0].pid, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    collection = small(seeds=5, chunks=4)
    dataset = collect(collection, out, console=QUIET, run=collect_ray.Cluster(workers=2))
    killer.join()
    assert killed
    assert len(whole(out)) == len(dataset.finished()) == 30
    assert len(dataset.shards) == 3  # two workers and a replacement
    again = collect(collection, out, console=QUIET, run=collect_ray.Cluster(workers=2))
    assert len(again.rows()) == 30


def test_what_a_job_raises_is_raised_here(cluster, small, tmp_path):  # noqa: F811
    wrong = Policy("wrong", lambda env, rng: iter([[1.0, 2.0]]))
    collection = small(cameras=["walk", wrong], action_mode="twist")
    with pytest.raises(ValueError, match="six finite numbers"):
        collect(collection, tmp_path / "d", console=QUIET, run=collect_ray.Cluster(workers=1))
    whole(tmp_path / "d")


def test_workers_and_gpus_that_are_not_there_are_refused(cluster, small, tmp_path, capsys):  # noqa: F811
    (tmp_path / "c.yaml").write_text("chunks: 1\nscenes: [{sample: 1}]")
    assert "at least one worker" in refused(
        capsys, "collect", tmp_path / "c.yaml", "--out", tmp_path / "d", "--ray", "--workers", 0
    )
    with pytest.raises(ValueError, match="no GPU"):
        list(collect_ray.Cluster()(Collection(device="cuda"), [], Dataset(tmp_path, {})))


def test_the_command_collects_on_ray(cluster, tmp_path, capsys):
    (tmp_path / "c.yaml").write_text("chunks: 1\nscenes: [{sample: 2}]\nbatch: 1")
    main(["collect", str(tmp_path / "c.yaml"), "--out", str(tmp_path / "d"), "--ray"])
    assert "2 episodes" in capsys.readouterr().out
    assert len(whole(tmp_path / "d")) == 2


@pytest.fixture(scope="module")
def ppo():
    reason = "ray[rllib] is not installed"
    return pytest.importorskip("ray.rllib.algorithms.ppo", reason=reason, exc_type=ImportError).PPOConfig


@pytest.mark.parametrize("remote", [False, True], ids=["here", "through the wire"])
def test_rllib_trains(ppo, cluster, tiny, served, taken, remote):  # noqa: F811
    there = {"id": "SanaWM/Remote-v0", "url": served.url}
    config = (
        ppo()
        .environment(rllib.register(), env_config={"max_episode_chunks": 3, **(there if remote else {"world": tiny})})
        .env_runners(
            num_env_runners=0,
            num_envs_per_env_runner=2,
            gym_env_vectorize_mode="vector_entry_point",
            rollout_fragment_length=8,
        )
        .training(train_batch_size_per_learner=16, minibatch_size=16, num_epochs=1)
        .rl_module(model_config={"head_fcnet_hiddens": [16]})  # and the filters that it has for pictures of 84 x 84
    )
    algorithm = config.build_algo()
    assert isinstance(algorithm.env_runner.env.unwrapped, RemoteVectorEnv if remote else SanaWMVectorEnv)
    before = algorithm.get_module().state_dict()
    before = {name: value.clone() for name, value in before.items()}
    results = [algorithm.train()["env_runners"] for _ in range(2)]
    assert any((value != before[name]).any() for name, value in algorithm.get_module().state_dict().items())
    algorithm.stop()
    assert results[-1]["num_env_steps_sampled_lifetime"] >= 32
    assert results[-1]["num_episodes"] > 0
    assert (taken() >= 32) == remote


def test_the_settings_on_the_page_are_rllibs(ppo):
    code = "\n".join(re.findall(r"^```python\n(.*?)^```", (ROOT / "docs" / "many_gpus.md").read_text(), re.S | re.M))
    made: dict = {}
    exec(code, made)
    for name, environments in (("config", 64), ("remote", 64)):
        config = made[name]
        config.validate()
        assert config.num_env_runners * config.num_envs_per_env_runner == environments
