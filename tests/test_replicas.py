"""Two servers on Ray Serve, and the one that has a client's session is killed: the client goes on, bit for bit."""

import os
import signal
import socket

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import data_equivalence

from sanawm_env import EnvConfig
from tests.worlds import with_starts, write_tiny_world

pytestmark = pytest.mark.slow

replicas = pytest.importorskip(
    "sanawm_env.serving.replicas", reason="the extra [replicas] is not installed", exc_type=ImportError
)
from sanawm_env.serving.keep import Keep  # noqa: E402  needs the extra
from sanawm_env.serving.limits import ServerLimits  # noqa: E402


def test_a_killed_replicas_sessions_go_on_with_another(tmp_path):
    tiny = with_starts(write_tiny_world(tmp_path / "tiny"))
    config, keep = EnvConfig(world=tiny, task="pointnav", max_episode_chunks=8), Keep(tmp_path / "keep", every=2)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with replicas.replicas(config, ServerLimits(), keep, 2, "127.0.0.1", port) as url:
        remote = gym.make("SanaWM/Remote-v0", url=url, batching="own", patience=300)
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
