"""The README: its code runs, its tables are the committed numbers, its pictures and files are there."""

import re
import runpy

from gymnasium.utils import seeding

from tests.golden_files import ROOT

README = (ROOT / "README.md").read_text()


def test_the_python_blocks_run_one_after_the_other(monkeypatch):
    drawn = seeding.np_random  # actions come from spaces that nobody has seeded: here they are the same each time
    monkeypatch.setattr(seeding, "np_random", lambda seed=None: drawn(0 if seed is None else seed))
    blocks = re.findall(r"```python\n(.*?)```", README, re.S)
    assert len(blocks) == 5
    names = {}
    exec("\n".join(blocks), names)
    assert names["obs"]["rgb"].shape == (64, 96, 3)
    assert names["obs"]["goal"].shape == (3,)
    assert names["plan"].actions.shape == (2, 6)
    assert names["frames"].shape == (24, 64, 96, 3)
    assert names["clip"].frames.shape == (1, 24, 64, 96, 3)
    assert names["clips"].frames.shape == (8, 24, 64, 96, 3)
    assert len(names["futures"]) == 8
    assert names["envs"].num_envs == 8


def test_the_tables_are_the_committed_numbers():
    tables = runpy.run_path(str(ROOT / "docs" / "tables.py"))
    for name in ("readme", "nano", "precision", "collect"):
        text = README if name == "readme" else (ROOT / "docs" / f"{name}.md").read_text()
        made = tables[f"{name}_tables"]()
        assert made
        for table in made:
            assert table in text


def test_linked_files_exist():
    links = re.findall(r"\]\(([^)#:]+)\)", README)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_the_shipped_world_is_small():
    weights = (ROOT / "sanawm_env" / "assets" / "nano").glob("*.safetensors")
    assert sum(path.stat().st_size for path in weights) < 15e6
