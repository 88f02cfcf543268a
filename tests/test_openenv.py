"""The OpenEnv example, by openenv-core's own client: sessions side by side, and a fork from one into the other."""

import base64
import io
import sys
import threading

import numpy as np
import pytest
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


@pytest.fixture(scope="module")
def url(tiny):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SANAWM_WORLD", tiny)
        patch.syspath_prepend(ROOT / "examples" / "openenv")
        import app

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
    app.service.close()
    del sys.modules["app"]


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
