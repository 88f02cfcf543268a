"""The README and what stands beside it: short, its code runs, its links, commands and pictures are there."""

import inspect
import re
import shlex
import tomllib

import gymnasium as gym
import numpy as np
import pytest
import tyro
import yaml
from gymnasium.utils import seeding
from PIL import Image

import sanawm_env
from sanawm_env import SanaWMEnv
from sanawm_env.cli import Command
from tests.golden_files import ROOT

README = (ROOT / "README.md").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
IDS = {name for name in gym.registry if name.startswith("SanaWM/")}
PAGES = [README, *(path.read_text() for path in (ROOT / "docs").rglob("*.md"))]


def test_it_fits_on_three_screens():
    assert len(README) < 6000
    assert len(README.splitlines()) < 120
    above = README[: README.index("```python")]
    assert "docs/media/fork.webp" in above
    assert "|" not in above  # no table before the first lines of Python


@pytest.mark.slow
def test_the_python_blocks_run_one_after_the_other(monkeypatch):
    drawn = seeding.np_random  # actions come from spaces that nobody has seeded: here they are the same each time
    monkeypatch.setattr(seeding, "np_random", lambda seed=None: drawn(0 if seed is None else seed))
    walk, back = re.findall(r"```python\n(.*?)```", README, re.S)
    assert len(walk.strip().splitlines()) <= 11  # ten lines and an empty one
    assert len(back.strip().splitlines()) == 5
    names = {}
    exec(walk, names)
    seen = names["obs"]
    assert seen["rgb"].shape == (128, 192, 3)
    assert seen["pose"].shape == (7,)
    assert names["frames"].shape == (24, 128, 192, 3)
    assert names["seen"] > 0
    exec(back, names)
    assert names["obs"] is not seen
    assert all(np.array_equal(names["obs"][key], seen[key]) for key in seen)


def test_linked_files_exist():
    for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md"):
        links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", (ROOT / name).read_text())
        assert [link for link in links if not (ROOT / link).exists()] == []
    assert README.count("](docs/") > 12


def test_the_shipped_world_is_small():
    weights = (ROOT / "sanawm_env" / "assets" / "nano").glob("*.safetensors")
    total = sum(path.stat().st_size for path in weights)
    assert total < 20e6
    assert f" {total / 1e6:.0f} MB world" in README


def test_its_commands_are_commands_of_sanawm():
    blocks = "\n".join(re.findall(r"```bash\n(.*?)```", README, re.S)).splitlines()
    commands = [line for line in blocks if line.startswith("sanawm ")]
    assert len(commands) > 1
    for line in commands:
        tyro.cli(Command, args=shlex.split(line, comments=True)[1:])  # SystemExit for what is none


def test_extras_that_pages_name_are_there():
    extras = set(PROJECT["optional-dependencies"])
    named = {
        name
        for page in PAGES
        for names in re.findall(r"(?:sanawm-env|\.)\[([a-z,]+)\]\"", page)
        for name in names.split(",")
    }
    assert {"viewer", "official", "gpu", "rl"} <= named <= extras
    listed = README[README.index("Other extras:") : README.index("## Ten lines")]
    assert set(re.findall(r"`([a-z]+)`", listed)) <= extras


def test_ids_and_arguments_on_the_page_of_environments_are_those_of_the_environment():
    page = (ROOT / "docs" / "environments" / "index.md").read_text()
    assert set(re.findall(r"SanaWM/[A-Za-z]+-v\d", page)) == IDS
    assert {name for text in PAGES for name in re.findall(r"SanaWM/[A-Za-z]+-v\d", text)} == IDS
    table = page[page.index("| argument | values |") : page.index("All but `reward_fn`")]
    named = set(re.findall(r"`([a-z_]+)`", "".join(line.split(" | ")[0] for line in table.splitlines())))
    assert {"obs_mode", "task", "horizon"} <= named <= set(inspect.signature(SanaWMEnv).parameters)


# --- pictures ---


def test_every_id_has_an_animation_and_all_are_small():
    folder = ROOT / "docs" / "media"
    animations = {path.stem: path for path in folder.glob("*.webp")}
    assert set(animations) >= {name.replace("/", "-") for name in IDS} | {"fork", "play"}
    for name, path in animations.items():
        assert path.stat().st_size < (300e3 if name.startswith("SanaWM") else 3e6), name
        with Image.open(path) as picture:
            assert picture.n_frames > 48, name
            assert picture.width * 2 == picture.height * 3 or name == "play", name  # nano's aspect


# --- what the project says of itself ---


def test_one_version_everywhere():
    version = PROJECT["version"]
    assert sanawm_env.__version__ == version
    assert re.search(r"^## \[([0-9.]+)\]", (ROOT / "CHANGELOG.md").read_text(), re.M)[1] == version
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == version


def test_the_changelog_keeps_its_form():
    text = (ROOT / "CHANGELOG.md").read_text()
    headings = re.findall(r"^## (.*)$", text, re.M)
    releases = [heading for heading in headings if heading != "[Unreleased]"]
    dates = [re.fullmatch(r"\[\d+\.\d+\.\d+\] - (\d{4}-\d{2}-\d{2})", release)[1] for release in releases]
    assert dates == sorted(dates, reverse=True)
    kinds = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
    assert set(re.findall(r"^### (.*)$", text, re.M)) <= kinds


def test_the_citation_has_what_its_schema_requires():
    """Of the Citation File Format 1.2.0: required keys, those that it knows, and their kinds."""
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= set(cited)
    known = {"abstract", "authors", "cff-version", "date-released", "keywords", "license", "message", "title", "type"}
    assert set(cited) <= known | {"version", "url", "repository-code", "references", "identifiers"}
    assert (cited["cff-version"], cited["type"], cited["license"]) == ("1.2.0", "software", PROJECT["license"])
    assert all(set(author) <= {"name", "given-names", "family-names", "orcid"} for author in cited["authors"])
    assert str(cited["date-released"]) == re.search(r"- (\d.*)$", (ROOT / "CHANGELOG.md").read_text(), re.M)[1]


@pytest.mark.parametrize(
    "path", sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("[!c]*.yml")), ids=lambda path: path.stem
)
def test_issue_templates_are_forms(path):
    form = yaml.safe_load(path.read_text())
    assert {"name", "description", "body"} <= set(form)
    fields = [field for field in form["body"] if field["type"] != "markdown"]
    assert len({field["id"] for field in fields}) == len(fields) > 0
    for field in fields:
        assert field["type"] in ("textarea", "input", "dropdown", "checkboxes")
        assert field["attributes"]["label"]
        assert (field["type"] == "dropdown") == ("options" in field["attributes"])


def test_the_commands_of_contributing_are_targets_of_make():
    named = set(re.findall(r"make ([a-z]+)", (ROOT / "CONTRIBUTING.md").read_text()))
    targets = set(re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.M)[1].split())
    assert {"setup", "test", "wheel"} <= named <= targets
