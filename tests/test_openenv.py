"""The OpenEnv example, by openenv-core's own client: sessions side by side, and a fork from one into the other."""

import base64
import io
import json
import sys
import threading
import urllib.request
from contextlib import contextmanager

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import data_equivalence
from PIL import Image

from sanawm_env import SanaWMEnv
from sanawm_env.camera.presets import multi_binary
from tests.golden_files import ROOT
from tests.worlds import with_starts, write_tiny_world

pytestmark = pytest.mark.slow

uvicorn = pytest.importorskip("uvicorn", reason="the extra [serve] is not installed")
pytest.importorskip("openenv.core.env_server", reason="openenv-core is not installed", exc_type=ImportError)
GenericEnvClient = pytest.importorskip("openenv.core.generic_client").GenericEnvClient


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> str:
    return with_starts(write_tiny_world(tmp_path_factory.mktemp("worlds") / "tiny"))


@contextmanager
def served(tiny, actions):
    """The address of the example's application."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SANAWM_WORLD", tiny)
        patch.setenv("SANAWM_ACTIONS", actions)
        patch.syspath_prepend(ROOT / "examples" / "openenv")
        import app

        del sys.modules["app"]  # another one may have other settings

    server, ready = uvicorn.Server(uvicorn.Config(app.app, port=0, log_level="error")), threading.Event()
    startup = server.startup

    async def started(sockets=None):
        await startup(sockets)
        ready.set()

    server.startup = started
    thread = threading.Thread(target=server.run)
    thread.start()
    ready.wait()
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join()
    assert not app.service.worker.alive


@pytest.fixture(scope="module")
def url(tiny):
    with served(tiny, "keys") as address:
        yield address


def picture(result, name="image"):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(result.observation[name]))))


def test_its_client_sees_what_the_environment_shows_and_forks(url, tiny):
    env = SanaWMEnv(tiny, task="imagenav", action_mode="keys")
    with GenericEnvClient(base_url=url).sync() as one, GenericEnvClient(base_url=url).sync() as two:
        begun, (obs, _) = one.reset(seed=3), env.reset(seed=3)
        assert (picture(begun) == obs["rgb"]).all() and (picture(begun, "goal") == obs["goal_rgb"]).all()
        assert one.state()["step_count"] == 0
        for keys in ("s", "sd"):
            result, (obs, reward, *_, info) = one.step({"keys": keys}), env.step(multi_binary(keys))
            assert (picture(result) == obs["rgb"]).all() and result.reward == reward and not result.done
            assert result.observation["pose"] == obs["pose"].tolist()
            assert result.observation["info"]["distance"] == info["distance"]
        here = one.step({"kind": "snapshot"}).observation["snapshot"]
        two.reset(seed=9)
        forked = two.step({"kind": "restore", "snapshot": here})
        assert (picture(forked) == obs["rgb"]).all()
        assert (picture(two.step({"keys": "a"})) == picture(one.step({"keys": "a"}))).all()
        assert (picture(two.step({"kind": "restore", "snapshot": here, "seed": 5})) == obs["rgb"]).all()
        assert (picture(two.step({"keys": "a"})) != picture(one.step({"kind": "snapshot"}))).any()
        for wrong in ({"keys": "xyz"}, {"kind": "restore", "snapshot": "gone"}, {"kind": "shutdown"}):
            with pytest.raises(RuntimeError):
                one.step(wrong)
        while not one.step({"keys": ""}).done:
            pass
        with pytest.raises(RuntimeError, match="over"):
            one.step({"keys": "w"})
        assert not one.reset().done


def test_it_is_what_its_own_validator_wants(url):
    from openenv.cli._validation import validate_running_environment

    report = validate_running_environment(url, timeout_s=120)
    assert report["passed"], report["criteria"]
    schema = json.load(urllib.request.urlopen(url + "/schema"))
    assert schema["action"]["properties"]["kind"]["enum"] == ["step", "snapshot", "restore"]
    assert {"image", "goal", "pose", "info", "reward", "done"} <= set(schema["observation"]["properties"])
    assert json.load(urllib.request.urlopen(url + "/health"))["status"] == "healthy"


def test_clients_of_our_own_come_in_beside_its(url, tiny):
    remote = gym.make("SanaWM/Remote-v0", url=url.replace("http", "ws") + "/sanawm/ws", batching="own")
    local = SanaWMEnv(tiny, task="imagenav", action_mode="keys")
    with GenericEnvClient(base_url=url).sync() as other:
        other.reset(seed=1)
        for env in (remote, local):
            env.reset(seed=0)
        other.step({"keys": "w"})
        assert data_equivalence(remote.step(multi_binary("wa")), local.step(multi_binary("wa")), exact=True)
    remote.close()


def test_actions_may_be_twists(tiny):
    env = SanaWMEnv(tiny, task="imagenav", action_mode="twist")
    with served(tiny, "twist") as address, GenericEnvClient(base_url=address).sync() as client:
        client.reset(seed=0)
        env.reset(seed=0)
        twist = [0, 0, 0.5, 0, -0.2, 0]
        assert (picture(client.step({"twist": twist})) == env.step(twist)[0]["rgb"]).all()
        for wrong in ({"keys": "w"}, {"twist": [1, 2]}, {"twist": [0] * 7}, {}):
            with pytest.raises(RuntimeError):
                client.step(wrong)
