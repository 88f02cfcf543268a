"""A world model that somebody else brings: examples/own_engine.py, registered by hand and as an installed package."""

import json
import os
import re
import runpy
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from sanawm_env.camera.twist import hold
from sanawm_env.world.config import WorldConfig
from sanawm_env.world.engine import Chunk, Engine, _registered, register_engine
from sanawm_env.world.state import WorldState
from sanawm_env.world.world import World
from tests.worlds import picture

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "examples" / "own_engine.py"
TURN = np.array([0, 0, 0, 0, 0.4, 0])


@pytest.fixture(scope="module")
def example():
    """What the example defines; its world is known meanwhile."""
    yield SimpleNamespace(**runpy.run_path(str(EXAMPLE)))
    del _registered["panorama"]


@pytest.fixture(scope="module")
def world(example) -> World:
    return World.load("panorama")


def test_it_is_short_enough_to_read():
    assert len(EXAMPLE.read_text().splitlines()) < 100


def test_the_page_about_it_names_what_there_is():
    page = (ROOT / "docs" / "own_engine.md").read_text()
    table = page[page.index("| part |") : page.index("**Found by name.**")]
    named = set(re.findall(r"`(\w+)[`(]", "".join(line.split(" | ")[0] for line in table.splitlines())))
    assert {"advance", "encode", "outline"} <= named <= {*vars(Engine), *Engine.__annotations__, "Chunk"}


def test_a_camera_that_stays_sees_the_photograph(world):
    state = world.begin(world.scene(picture()))
    _, clip = world.advance(state, np.tile(np.eye(4), (16, 1, 1)))
    assert np.abs(clip.frames[0, -1].numpy().astype(int) - state.slots[0].scene.image).max() <= 1


def test_what_it_turns_to_comes_to_the_middle_and_beside_the_photograph_is_its_mean(example):
    photo, lens = torch.rand(9, 15, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([12.0, 12, 7.5, 4.5])
    for pixels in (-5, 0, 6):
        turn = hold(np.eye(4), TURN / 0.4 * np.arctan(pixels / 12), 16)[-1:, :3, :3]
        seen = example.look(photo, lens, torch.tensor(turn).float())
        assert torch.allclose(seen[0, 4, 7], photo[4, 7 + pixels], atol=1e-3)
    back = example.look(photo, lens, torch.diag(torch.tensor([-1.0, 1, -1]))[None])
    assert torch.allclose(back, photo.mean((0, 1)).expand_as(back))


def test_its_memory_is_saved_held_to_its_outline_and_decides_what_follows(world, tmp_path):
    dark = np.full((40, 60, 3), 40, np.uint8)
    dark[:, 30:] = 250
    state, _ = world.advance(world.begin(world.scene(dark)), hold(np.eye(4), TURN, 16))
    state.save(tmp_path / "state.safetensors")
    read = WorldState.load(tmp_path / "state.safetensors", world)
    assert torch.equal(read.slots[0].memory.gain, state.slots[0].memory.gain) and read.slots[0].memory.gain != 1
    path = hold(state.slots[0].c2w, TURN, 16)
    assert torch.equal(world.advance(read, path)[1].frames, world.advance(state, path)[1].frames)


@pytest.fixture
def plain():
    """An engine of a dozen lines: frames of one colour."""

    @dataclass(frozen=True, kw_only=True)
    class Config(WorldConfig):
        name: str = "plain"
        engine: str = "plain"
        height: int = 8
        width: int = 12
        chunk_frames: int = 16

    class Plain(Engine):
        config_type, needs_files, capabilities, colour = Config, False, frozenset({"images"}), 1

        @classmethod
        def load(cls, folder, config, device, options):
            engine = cls()
            engine.config, engine.device = config, device
            return engine

        def encode(self, image, prompt, anchor):
            return None

        def advance(self, slots, memory, poses):
            return Chunk(torch.full((len(slots), 16, 8, 12, 3), self.colour, dtype=torch.uint8), None)

    yield Plain
    _registered.pop("plain", None)


def test_an_engine_that_is_registered_anew_is_the_one_that_runs(plain):
    """As in a notebook, where a cell is run again."""
    shown = []
    for engine in (plain, type("Plain", (plain,), {"colour": 2})):
        register_engine("plain", engine)
        world = World.load("plain")
        state = world.begin(world.scene(np.zeros((8, 12, 3), np.uint8)))
        shown.append(world.advance(state, np.tile(np.eye(4), (16, 1, 1)))[1].frames.unique().tolist())
    assert shown == [[1], [2]]


@pytest.mark.parametrize(
    ("given", "error", "says"),
    [
        ({"config_type": WorldConfig}, TypeError, "has no files: name, engine, height, width of WorldConfig need def"),
        ({"config_type": dict}, TypeError, "config_type of the engine 'plain' must be a dataclass from WorldConfig"),
        ({"options_type": dict}, TypeError, "options_type of the engine 'plain' must be a dataclass from LoadOptions"),
    ],
)
def test_what_an_engine_lacks_is_said(plain, given, error, says):
    with pytest.raises(error, match=says):
        register_engine("plain", type("Plain", (plain,), given))
        World.load("plain")


@pytest.mark.parametrize(
    ("made", "says"),
    [
        (None, "must return a Chunk, got None"),
        (
            Chunk(np.zeros((1, 16, 8, 12, 3), np.uint8), None),
            "must be a torch.uint8 tensor .1, 16, 8, 12, 3., got ndarr",
        ),
        (Chunk(torch.zeros(1, 16, 8, 12, 3), None), r"got torch.float32 \(1, 16, 8, 12, 3\)"),
        (Chunk(torch.zeros(1, 15, 8, 12, 3, dtype=torch.uint8), None), r"got torch.uint8 \(1, 15, 8, 12, 3\)"),
        (
            Chunk(torch.zeros(1, 16, 8, 12, 3, dtype=torch.uint8), None, c2w=torch.zeros(1, 15, 4, 4)),
            "c2w of the engine plain must be a torch.float64 tensor",
        ),
    ],
)
def test_a_chunk_that_is_none_is_no_step(plain, made, says):
    register_engine("plain", type("Plain", (plain,), {"advance": lambda *_: made}))
    world = World.load("plain")
    state = world.begin(world.scene(np.zeros((8, 12, 3), np.uint8)))
    with pytest.raises(TypeError, match=says):
        world.advance(state, np.tile(np.eye(4), (16, 1, 1)))


def test_an_engine_is_named_as_its_configuration_says(plain):
    register_engine("other", plain)
    try:
        with pytest.raises(ValueError, match="The engine 'other' says it is 'plain': register it under that name"):
            World.load("other")
    finally:
        _registered.pop("other")
    for text in ("os", ":", "os:", "a b:c"):
        with pytest.raises(ValueError, match="An engine is a class, or text such as"):
            register_engine("other", text)


INSTALLED = """
import json, sys
import gymnasium as gym
import numpy as np
from sanawm_env import Snapshot
from sanawm_env.viewer.session import Session
from sanawm_env.world.world import World

left, right = (np.array([0, 0, 0, 0, turn, 0], np.float32) for turn in (-1, 1))
env = gym.make("sanawm_env:SanaWM/Explore-v0", world="panorama", scenes="photo.png", obs_mode="rgb")
env.reset(seed=0)
env.step(left)
env.unwrapped.snapshot().save("here.safetensors")
seen = env.step(right)[0]
other = gym.make("sanawm_env:SanaWM/Explore-v0", world="panorama", scenes="photo.png", obs_mode="rgb").unwrapped
other.restore(Snapshot.load("here.safetensors", World.load("panorama")))
restored = other.step(right)[0]

envs = gym.make_vec("sanawm_env:SanaWM/Explore-v0", 3, world="panorama", scenes="photo.png", obs_mode="rgb")
envs.reset(seed=0)
envs.step(np.stack([left] * 3))
envs.fork(0)
forks = envs.step(np.stack([right, right, left]))[0]

session = Session(World.load("panorama"))
session.begin("photo.png")
node = session.drive("d-16")
session.save("session")
again = Session(World.load("panorama"))
again.open("session")
opened = np.array_equal(again.frames(node.id), session.frames(node.id))
session.close()
again.close()
print(json.dumps({
    "imported": "own_world" in sys.modules,
    "shape": seen.shape,
    "restored": np.array_equal(seen, restored),
    "forked": [np.array_equal(forks[0], one) for one in (seen, forks[1], forks[2])],
    "opened": opened,
}))
"""


@pytest.mark.slow
def test_an_installed_package_is_found_by_the_name_of_its_world(tmp_path):
    """Nothing imports it but its entry point."""
    site, work = tmp_path / "site", tmp_path / "work"
    info = site / "own_world-1.0.dist-info"
    info.mkdir(parents=True)
    work.mkdir()
    (site / "own_world.py").write_text(EXAMPLE.read_text().replace('register_engine("panorama", PanoramaEngine)', ""))
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: own-world\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[sanawm_env.engines]\npanorama = own_world:PanoramaEngine\n")
    Image.fromarray(picture()).save(work / "photo.png")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join((str(site), str(ROOT)))}
    done = subprocess.run(
        [sys.executable, "-c", INSTALLED], cwd=work, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "imported": True, "shape": [144, 256, 3], "restored": True, "forked": [True, True, False], "opened": True,
    }  # fmt: skip
