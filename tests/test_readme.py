"""The README: its code runs, its pictures and files are there."""

import inspect
import re
import shlex
import tomllib

import gymnasium as gym
import pytest
import tyro
from gymnasium.utils import seeding

from sanawm_env import SanaWMEnv
from sanawm_env.cli import Command
from tests.golden_files import ROOT

README = (ROOT / "README.md").read_text()


@pytest.mark.slow
def test_the_python_blocks_run_one_after_the_other(monkeypatch):
    drawn = seeding.np_random  # actions come from spaces that nobody has seeded: here they are the same each time
    monkeypatch.setattr(seeding, "np_random", lambda seed=None: drawn(0 if seed is None else seed))
    blocks = re.findall(r"```python\n(.*?)```", README, re.S)
    assert len(blocks) == 6
    names = {}
    exec("\n".join(blocks), names)
    assert names["obs"]["rgb"].shape == (128, 192, 3)
    assert names["obs"]["goal"].shape == (3,)
    assert names["plan"].actions.shape == (2, 6)
    assert names["frames"].shape == (24, 128, 192, 3)
    assert names["clip"].frames.shape == (1, 24, 128, 192, 3)
    assert names["clips"].frames.shape == (8, 24, 128, 192, 3)
    assert len(names["futures"]) == 2
    assert names["envs"].num_envs == 8


def test_linked_files_exist():
    links = re.findall(r"\]\(([^)#:]+)\)", README)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_the_shipped_world_is_small():
    weights = (ROOT / "sanawm_env" / "assets" / "nano").glob("*.safetensors")
    assert sum(path.stat().st_size for path in weights) < 20e6


def test_its_commands_are_commands_of_sanawm():
    blocks = "\n".join(re.findall(r"```bash\n(.*?)```", README, re.S)).splitlines()
    inline = re.findall(r"`(sanawm [a-z][^`]*)`", README)
    commands = [line for line in blocks if line.startswith("sanawm ")] + [
        " ".join(line.split()) for line in inline if " -" in line
    ]
    assert len(commands) > 20
    for line in commands:
        tyro.cli(Command, args=shlex.split(line, comments=True)[1:])  # SystemExit for what is none


def test_its_extras_are_there():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = {name for names in re.findall(r"(?:sanawm-env|\.)\[([a-z,]+)\]\"", README) for name in names.split(",")}
    assert {"viewer", "data", "official", "gpu"} <= named <= set(extras)


def test_its_ids_and_keywords_are_those_of_the_environment():
    ids = {name for name in gym.registry if name.startswith("SanaWM/")}
    assert set(re.findall(r"SanaWM/[A-Za-z]+-v\d", README)) == ids
    table = README[README.index("| keyword | values |") : README.index("Actions may be arrays")]
    named = set(re.findall(r"`([a-z_]+)`", "".join(line.split(" | ")[0] for line in table.splitlines())))
    others = next(line for line in table.splitlines() if line.startswith("| others"))
    named |= set(re.findall(r"`([a-z_]+)`", others))
    assert {"obs_mode", "task", "horizon"} <= named <= set(inspect.signature(SanaWMEnv).parameters)
