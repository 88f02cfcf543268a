"""The documentation site: it builds strictly, its reference is complete, its code, commands and tables are true."""

import ast
import importlib
import inspect
import itertools
import re
import shlex
import zlib
from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from functools import cache
from pathlib import Path

import gymnasium as gym
import pytest
import tyro
from gymnasium import spaces

from sanawm_env import SanaWMEnv
from sanawm_env.cli import Command
from sanawm_env.world import folders
from tests.golden_files import ROOT, benchmark
from tests.syntax import parse
from tests.worlds import TINY, with_starts, write_tiny_world

DOCS = ROOT / "docs"
PAGES = {str(path.relative_to(DOCS)): path.read_text() for path in sorted(DOCS.rglob("*.md"))}
SUBPACKAGES = {"agents": ROOT / "agents", "kernels": ROOT / "kernels"}


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The site, built with warnings as errors, without what takes half the time: the words of its search, and laying
    out signatures, each by a process of its own."""
    pytest.importorskip("mkdocs", reason="the site needs the extra [docs]")
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    folder = tmp_path_factory.mktemp("site")
    config = load_config(str(ROOT / "mkdocs.yml"), site_dir=str(folder), strict=True)
    config.plugins["material/search"].config.enabled = False
    config.plugins["mkdocstrings"].config.handlers["python"]["options"]["separate_signature"] = False
    config.plugins.on_startup(command="build", dirty=False)
    build(config)  # Abort where there is a warning
    return folder


@cache
def trees() -> dict[str, ast.Module]:
    """The syntax tree of every module, by its dotted name."""
    found = {}
    for folder in (ROOT / "sanawm_env", *SUBPACKAGES.values()):
        package = folder.name if folder.name == "sanawm_env" else f"sanawm_env.{folder.name}"
        for path in folder.rglob("*.py"):
            parts = [*package.split("."), *path.relative_to(folder).with_suffix("").parts]
            found[".".join(part for part in parts if part != "__init__")] = parse(path.read_text())
    return found


def public_names() -> set[str]:
    """Modules, and documented classes and functions without an underscore, methods included."""
    public = {name: tree for name, tree in trees().items() if name not in ("sanawm_env", "sanawm_env.__main__")}
    return set(public) | {f"{module}.{name}" for module, tree in public.items() for name in documented(tree)}


def documented(tree: ast.Module | ast.ClassDef) -> set[str]:
    found = set()
    for node in tree.body:
        if not isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) or node.name.startswith("_"):
            continue
        if ast.get_docstring(node):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{inner}" for inner in documented(node)}
    return found


BAD_INPUT = {"ValueError", "TypeError", "FileNotFoundError", "OSError"}


def raised(node: ast.AST) -> set[str]:
    """Errors that the body raises, functions within it apart."""
    found = {ast.unparse(node.exc.func)} if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) else set()
    inner = (each for each in ast.iter_child_nodes(node) if not isinstance(each, ast.FunctionDef | ast.Lambda))
    return found.union(*map(raised, inner))


def public(tree: ast.Module | ast.ClassDef) -> Iterator[tuple[str, ast.ClassDef | ast.FunctionDef, str]]:
    """Name, node and docstring of what has no underscore in it; that of a method with that of its class."""
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith("_"):
            yield node.name, node, ast.get_docstring(node) or ""
            if isinstance(node, ast.ClassDef):
                own = ast.get_docstring(node) or ""
                yield from (
                    (f"{node.name}.{name}", each, text and f"{text}\n{own}") for name, each, text in public(node)
                )


@pytest.mark.slow
def test_public_names_have_docstrings_that_tell_their_errors():
    """A method that overrides another is documented there. Errors are those that a function raises itself, of bad
    input: RuntimeErrors tell of broken machines and servers."""
    entries = [
        (f"{module}.{name}", node, text) for module, tree in trees().items() for name, node, text in public(tree)
    ]
    described = {name.rsplit(".", 1)[1] for name, node, text in entries if text}
    assert [name for name, node, text in entries if not text and name.rsplit(".", 1)[1] not in described] == []
    silent = []
    for name, node, text in entries:
        told = {error for error in BAD_INPUT if error in text} or re.search("[Rr]aise|errors", text)
        if text and isinstance(node, ast.FunctionDef) and raised(node) & BAD_INPUT and not told:
            silent.append(name)
    assert silent == []


@pytest.mark.slow
def test_every_public_name_is_in_the_reference(site):
    inventory = zlib.decompress((site / "objects.inv").read_bytes().split(b"\n", 4)[4]).decode()
    listed = {line.split(" ", 1)[0] for line in inventory.splitlines()}
    names = public_names()
    assert len(names) > 800
    assert sorted(names - listed - {"sanawm_env.engines"}) == []  # a folder of packages, with nothing of its own


@pytest.mark.slow
def test_pages_load_nothing_from_the_network(site):
    for page in site.rglob("*.html"):
        loaded = re.findall(r"<(?:script|link|img|iframe)[^>]*(?:src|href)=\"?(?:https?:)?//[^>]*>", page.read_text())
        assert [tag for tag in loaded if 'rel="canonical"' not in tag] == [], page


def test_every_page_is_in_the_navigation():
    listed = set(re.findall(r"[\w/.-]+\.md", (ROOT / "mkdocs.yml").read_text().partition("\nnav:\n")[2]))
    assert set(PAGES) - listed == {"photographs/CREDITS.md"}  # which the model card links to


OUT = (
    r"\b(moments?|carr(y|ies|ied)|strolls?|lanes?|lens(es)?|worth|backstage|shelf|display|steers?|dream(s|t|ed|ing)?)\b"
)
FRAMES = r"\b(pictures?|dream(s|t|ed|ing)?|imagin(e|es|ed|ing))\b"  # which are frames or images, and predicted ones


@pytest.mark.slow
def test_pages_and_docstrings_use_the_words_of_the_field():
    """Names that were given up; docs/reference has some in its quotations."""
    pages = {name: text for name, text in PAGES.items() if not name.startswith("reference/")}
    assert {name: found[0] for name, text in pages.items() if (found := re.search(OUT, text, re.I))} == {}
    texts = {name: ast.get_docstring(tree) or "" for name, tree in trees().items()}
    texts |= {f"{m}.{name}": text for m, tree in trees().items() for name, _, text in public(tree)}
    found = {name: match[0] for name, text in texts.items() if (match := re.search(OUT, text, re.I))}
    allowed = {  # Plücker's rays have a moment; a key of recipes keeps its name
        "moment": ("sanawm_env.camera.rays.", "sanawm_env.engines.sanawm.network.config."),
        "dreamt": ("sanawm_env.training.depth.",),
    }
    assert {name: word for name, word in found.items() if not name.startswith(allowed.get(word, ()))} == {}
    rooms = {name: text for name, text in texts.items() if name.split(".")[1:2] not in (["engines"], ["training"])}
    found = {name: match[0] for name, text in rooms.items() if (match := re.search(FRAMES, text, re.I))}
    assert found == {}


def test_the_tables_are_the_committed_numbers():
    tables = benchmark("tables")
    for name, made in tables["PAGES"].items():
        for table in made():
            assert table in (DOCS / f"{name}.md").read_text()


@pytest.mark.parametrize("name", PAGES)
def test_python_blocks_are_python(name):
    for block in re.findall(r"^```python\n(.*?)^```", PAGES[name], re.S | re.M):
        parse(block)


RUN = [
    name
    for name in PAGES
    if "```python\n" in PAGES[name] and name not in ("many_gpus.md", "own_engine.md", "serve.md", "trajectories.md")
]


@pytest.fixture(scope="module")
def toy_nano(tmp_path_factory) -> Path:
    """A folder of shipped worlds with a nano that takes milliseconds a step."""
    importlib.import_module(
        "sanawm_env.engines.rooms.engine"
    )  # which keeps the folder that it finds when it is imported
    shipped = tmp_path_factory.mktemp("assets")
    with_starts(write_tiny_world(shipped / "nano", config=replace(TINY, name="nano")))
    return shipped


@pytest.mark.slow
@pytest.mark.parametrize("name", RUN)
def test_python_blocks_run_one_after_the_other(name, toy_nano, monkeypatch, tmp_path):
    monkeypatch.setattr(folders, "SHIPPED", toy_nano)
    monkeypatch.chdir(tmp_path)
    exec("\n".join(re.findall(r"^```python\n(.*?)^```", PAGES[name], re.S | re.M)), {})


IDS = sorted(name for name in gym.registry if name.startswith("SanaWM/"))


def test_every_environment_has_a_page():
    assert {f"environments/{name.removeprefix('SanaWM/')}.md" for name in IDS} | {"environments/index.md"} == {
        name for name in PAGES if name.startswith("environments/")
    }
    assert set(re.findall(r"\[(SanaWM/[A-Za-z]+-v\d)\]", PAGES["environments/index.md"])) == set(IDS)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in IDS if "Remote" not in name])
def test_the_page_of_an_environment_says_its_spaces_rewards_and_settings(name):
    page, env = PAGES[f"environments/{name.removeprefix('SanaWM/')}.md"], gym.make(name, world="nano")
    task, rows = env.unwrapped.task, dict(re.findall(r"^\| ([^|]+) \| (.*?) \|$", page, re.M))
    assert rows["action space"] == f"`{env.action_space}`"
    if isinstance(env.observation_space, spaces.Dict):
        shown = {
            key.strip("`"): cell.split(" | ")[0].strip("`") for key, cell in rows.items() if cell.startswith("`Box")
        }
        assert {key: shown.get(key) for key in env.observation_space} == {
            k: str(s) for k, s in env.observation_space.items()
        }
    else:
        assert rows["observation space"] == f"`{env.observation_space}`"
    assert rows["reward of a step"] == "[{:g}, {:g}]".format(*task.reward_range)
    assert int(rows["steps of an episode"]) == env.spec.max_episode_steps
    settings = {field.name for field in fields(task)} if is_dataclass(task) else set()
    block = re.search(r"`task_options` takes:\n\n(.*?)\n\n", page, re.S)
    assert set(re.findall(r"^\| `(\w+)` \|", block[1] if block else "", re.M)) == settings
    info = re.search(r"## Info\n\n(.*?)\n\n", page, re.S)
    env.reset(seed=0, options={"task": {"chunks": 1}} if "Nav" in name else None)
    assert set(re.findall(r"^\| `(\w+)` \|", info[1] if info else "", re.M)) == set(task.info(env.unwrapped.episode))


def test_the_page_of_environments_says_their_arguments():
    page = PAGES["environments/index.md"]
    table = page[page.index("| argument | values | default |") : page.index("All but `reward_fn`")]
    named = set(re.findall(r"`([a-z_]+)`", "".join(line.split(" | ")[0] for line in table.splitlines())))
    assert named == set(inspect.signature(SanaWMEnv).parameters) - {"world_options"}
    common = page[page.index("## Info") : page.index("## Checks")]
    assert {"c2w", "chunk", "segment_start"} <= set(re.findall(r"`([a-z_0-9]+)`", common))


@pytest.mark.slow
def test_commands_in_blocks_are_commands_of_sanawm():
    blocks = [block for text in PAGES.values() for block in re.findall(r"^```bash\n(.*?)^```", text, re.S | re.M)]
    commands = {line for block in blocks for line in block.splitlines() if line.startswith("sanawm ")}
    assert len(commands) > 20
    for line in commands:
        tyro.cli(Command, args=shlex.split(line, comments=True)[1:])  # SystemExit for what is none


def test_commands_in_sentences_have_these_options(capsys):
    @cache
    def options(*names):
        with pytest.raises(SystemExit) as end:
            tyro.cli(Command, args=[*names, "--help"])
        assert end.value.code == 0, names
        return set(re.findall(r"--?[a-z][a-z-]*", capsys.readouterr().out))

    found = [line for text in PAGES.values() for line in re.findall(r"`(sanawm [a-z][^`]*)`", text)]
    assert len(found) > 15
    for line in found:
        words = line.split()[1:]
        names = list(itertools.takewhile(re.compile(r"[a-z-]+").fullmatch, words))[: 2 if words[0] == "dataset" else 1]
        assert {word for word in words if re.match("--?[a-z]", word)} <= options(*names), line


def sentences() -> str:
    """Every text in the sources of the package, a line each, with … for what is put in."""
    found = []
    for tree in trees().values():
        for node in ast.walk(tree):
            if isinstance(node, ast.JoinedStr):
                found.append("".join(p.value if isinstance(p, ast.Constant) else "…" for p in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return "\n".join(found)


@pytest.mark.slow
def test_troubleshooting_is_by_sentences_that_errors_show():
    headings = re.findall(r"^### (.*)$", PAGES["troubleshooting.md"], re.M)
    assert len(headings) > 40
    shown = sentences()
    assert [heading for heading in headings if heading not in shown] == []
