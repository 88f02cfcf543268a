"""The house stands: rooms import only downward, `import sanawm_env` is light, and the wheel holds what it should."""

import ast
import json
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from functools import cache
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.syntax import parse

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

# The table of rooms: a room imports from lower floors; from its own floor only itself.
FLOORS = {
    "__main__": 8, "benchmarks": 8,
    "cli": 7, "examples": 7,
    "agents": 6, "serving": 6,
    "recording": 5, "viewer": 5, "integrations": 5,
    "envs": 4,
    "simulation": 3, "engines": 3,
    "world": 2,
    "camera": 1, "kernels": 1, "metrics": 1,
    "system": 0,
}  # fmt: skip
ENVIRONMENT_LIBRARIES = {"gymnasium", "stable_baselines3", "ray", "torchrl"}
ENGINES = {"sanawm_env.engines"}
# What a room must know nothing of, besides the rooms above it.
UNKNOWN = {
    "agents": ENGINES,
    "serving": ENGINES | {"torch"},
    "recording": ENGINES | {"torch"},
    "viewer": ENGINES,
    "integrations": ENGINES,
    "envs": ENGINES | {"torch.nn"},
    "simulation": ENGINES | ENVIRONMENT_LIBRARIES - {"gymnasium"},
    "engines": ENVIRONMENT_LIBRARIES,
    "world": ENVIRONMENT_LIBRARIES,
    "camera": ENVIRONMENT_LIBRARIES | {"safetensors", "huggingface_hub"},
    "kernels": ENVIRONMENT_LIBRARIES | {"safetensors", "huggingface_hub"},
    "metrics": ENVIRONMENT_LIBRARIES | {"safetensors", "huggingface_hub"},
    "system": ENVIRONMENT_LIBRARIES | {"torch", "huggingface_hub"},
    "training": ENVIRONMENT_LIBRARIES | {"websockets"},
}
# Parts of engines that know nothing of where weights come from.
for _part in ("network", "codec"):
    UNKNOWN[f"engines.sanawm.{_part}"] = ENVIRONMENT_LIBRARIES | {"huggingface_hub"}


def modules():
    """(dotted name, path) of every module; the folders kernels/ and agents/ are packages inside sanawm_env."""
    for folder in ("sanawm_env", "kernels", "agents", "examples", "benchmarks"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = list(path.relative_to(ROOT).with_suffix("").parts)
            if folder in ("kernels", "agents"):
                parts.insert(0, "sanawm_env")
            yield ".".join(parts), path


MODULES = dict(modules())


def imports(name, source):
    """Dotted names of all that the module imports, wherever in it, with its line: `from a import b` gives a.b."""
    package = name.split(".")[:-1]
    for node in ast.walk(parse(source)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*base, *([node.module] if node.module else [])])
            yield from ((f"{base}.{alias.name}", node.lineno) for alias in node.names)


def room(name):
    """The room of a module of ours; None for other libraries. `sanawm_env` itself registers ids, so it is `envs`."""
    parts = name.split(".")
    if parts[0] in ("examples", "benchmarks"):
        return parts[0]
    if parts[0] != "sanawm_env":
        return None
    inner = parts[1] if len(parts) > 1 else ""
    return inner if inner in FLOORS or inner == "training" else "envs"


def may_import(importer, imported):
    if importer == imported:
        return True
    if importer == "training":  # how the nano world is made
        return FLOORS[imported] <= 3
    if imported == "training":
        return FLOORS[importer] >= 6
    return FLOORS[imported] < FLOORS[importer]


def offences(name, source):
    """What this module imports against the table, one line each."""
    here = room(name)
    for imported, line in imports(name, source):
        there = room(imported)
        if there is not None and not may_import(here, there):
            yield f"{name}:{line} imports {imported}: {here} must not know {there}"
        of_spaces = ".spaces" in f"{imported}." or imported == "gymnasium.vector.utils.batch_space"
        if here == "simulation" and imported.startswith("gymnasium") and not of_spaces:
            yield f"{name}:{line} imports {imported}: simulation knows Gymnasium's spaces alone"
        engine = ".".join(name.split(".")[1:4])  # and its part
        other = engine.split(".")[1:2]
        if here == there == "engines" and other and imported.split(".")[2:3] not in ([], other):
            yield f"{name}:{line} imports {imported}: engines do not know each other"
        for unknown in {*UNKNOWN.get(here, ()), *UNKNOWN.get(engine, ())}:
            if f"{imported}.".startswith(f"{unknown}."):
                yield f"{name}:{line} imports {imported}: {here} must know nothing of {unknown}"


@pytest.mark.parametrize("name", [name for name in MODULES if name != "sanawm_env.__init__"])
def test_rooms_import_only_downward(name):
    assert list(offences(name, MODULES[name].read_text())) == []


def test_every_room_stands_on_a_floor():
    inside = {name.split(".")[1] for name in MODULES if name.startswith("sanawm_env.")}
    assert inside - set(FLOORS) - {"training", "__init__"} == set()


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("sanawm_env.camera.x", "from sanawm_env.world import World"),
        ("sanawm_env.camera.x", "def f():\n    import sanawm_env.metrics.pose"),
        ("sanawm_env.engines.sanawm.network.x", "from ....envs import y"),
        ("sanawm_env.engines.sanawm.network.x", "import huggingface_hub"),
        ("sanawm_env.engines.rooms.x", "from sanawm_env.engines.sanawm import engine"),
        ("sanawm_env.world.x", "from sanawm_env.engines.sanawm.engine import SanaEngine"),
        ("sanawm_env.world.x", "import gymnasium.spaces as s"),
        ("sanawm_env.world.x", "import sanawm_env"),
        ("sanawm_env.world.x", "from sanawm_env.training import clips"),
        ("sanawm_env.envs.x", "from torch import nn"),
        ("sanawm_env.simulation.x", "from sanawm_env.envs.env import SanaWMEnv"),
        ("sanawm_env.simulation.x", "from gymnasium import Env"),
        ("sanawm_env.envs.x", "from sanawm_env.engines import sanawm"),
        ("sanawm_env.recording.x", "import torch"),
        ("sanawm_env.training.x", "from sanawm_env.recording.sheet import contact_sheet"),
        ("sanawm_env.training.x", "import gymnasium"),
        ("sanawm_env.agents.x", "from sanawm_env.engines.sanawm.network.model import SanaWM"),
    ],
)
def test_an_import_against_the_table_is_noticed(name, source):
    assert len(list(offences(name, source))) == 1


def test_the_package_itself_only_registers():
    """Environments, and what torch needs to hear when the process forks."""
    for name, line in imports("sanawm_env.__init__", (ROOT / "sanawm_env/__init__.py").read_text()):
        top = name.split(".")[0]
        own = name.startswith("sanawm_env.envs.") or name == "sanawm_env.world.forks"
        allowed = top in sys.stdlib_module_names or top == "gymnasium" or own
        assert allowed, f"sanawm_env/__init__.py:{line} imports {name}"


def run_python(code, *flags, cwd):
    done = subprocess.run([sys.executable, *flags, "-c", code], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_importing_the_package_is_light(tmp_path):
    heavy = {
        "torch",
        "fla",
        "triton",
        "matplotlib",
        "PIL",
        "av",
        "scipy",
        "diffusers",
        "pydantic",
        "transformers",
        "websockets",
    }
    loaded = run_python(
        "import sys, json, sanawm_env; print(json.dumps(sorted({m.split('.')[0] for m in sys.modules})))", cwd=tmp_path
    )
    assert "sanawm_env" in loaded
    assert heavy & set(loaded) == set()


@pytest.mark.slow
def test_videos_and_trajectories_are_read_without_torch(tmp_path):
    loaded = run_python(
        "import sys, json, sanawm_env.recording.rollout\nprint(json.dumps(sorted(sys.modules)))", cwd=tmp_path
    )
    assert "sanawm_env.recording.video" in loaded
    assert "torch" not in loaded


@pytest.fixture(scope="module")
def fresh(tmp_path_factory):
    """What a process has loaded once networks, worlds and exporters are imported, and what it can do without triton and
    fla."""
    code = """
import json, sys
from dataclasses import replace
import torch
from sanawm_env.kernels.dispatch import choose
from sanawm_env.kernels.inputs import Grid
from sanawm_env.engines.sanawm.network.config import SanaWMConfig
from sanawm_env.engines.sanawm.network.model import SanaWM
import sanawm_env.engines.sanawm.engine, sanawm_env.world.world
import sanawm_env.recording.lerobot, sanawm_env.recording.minari

loaded = sorted({name.split(".")[0] for name in sys.modules})
sys.modules["triton"] = sys.modules["fla"] = None  # importing them raises ImportError

def refusal(call):
    try:
        call()
    except ImportError as error:
        return str(error)

cpu = torch.device("cpu")
config = SanaWMConfig(latent_channels=4, hidden_size=32, depth=2, num_heads=2, head_dim=16, caption_channels=8,
                      text_len=2, softmax_every_n=2, input_size=1)
model, grid = SanaWM(config), Grid(3, 2, 2)
with torch.no_grad():
    context = model.prepare(grid, torch.zeros(1, dtype=torch.int64), text=torch.zeros(1, 2, 8))
    out, state = model(torch.ones(1, 4, *grid.shape), torch.zeros(1), context, save=True)
    chosen = choose(cpu, torch.float32).name
ablation = replace(config, mixer="token")
refusals = [refusal(call) for call in (lambda: choose(cpu, torch.float32, "triton"), lambda: SanaWM(ablation))]
print(json.dumps([loaded, [chosen, list(out.shape), bool(out.isfinite().all()), len(state.blocks), *refusals]]))
"""
    return run_python(code, cwd=tmp_path_factory.mktemp("fresh"))


@pytest.mark.slow
def test_networks_worlds_and_exporters_load_no_extra(fresh):
    loaded, _ = fresh
    assert "torch" in loaded
    assert {"triton", "fla", "pyarrow", "minari", "h5py", "lerobot"} & set(loaded) == set()


@pytest.mark.slow
def test_without_triton_and_fla_only_what_needs_them_is_missing(fresh):
    _, (chosen, shape, finite, blocks, *refusals) = fresh
    assert (chosen, shape, finite, blocks) == ("cpu", [1, 4, 3, 2, 2], True, 2)
    for refusal, what in zip(refusals, ('backend "triton"', 'mixer "token"'), strict=True):
        assert re.fullmatch(what + r' needs the package [\w-]+: pip install "sanawm-env\[gpu\]" \(Linux\)\.', refusal)


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """An empty folder into which the wheel, built from a copy of the tree, has been installed."""
    copy, wheels, target = (tmp_path_factory.mktemp(name) for name in ("tree", "wheels", "target"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    for folder in ("sanawm_env", "kernels", "agents"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    pip(["wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", wheels, copy], cwd=wheels)
    (wheel,) = wheels.glob("*.whl")
    pip(["install", "--no-deps", "--no-index", "--no-compile", "--target", target, wheel], cwd=wheels)
    return target


def pip(arguments, cwd):
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *map(str, arguments)]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_the_wheel_installs_every_module_and_asset(installed):
    expected = {Path(*name.split(".")).with_suffix(".py") for name in MODULES if name.startswith("sanawm_env.")}
    assets = ROOT / "sanawm_env" / "assets"
    expected |= {path.relative_to(ROOT) for path in assets.rglob("*") if path.is_file() and path.suffix != ".pyc"}
    expected |= {path.relative_to(ROOT) for path in (ROOT / "sanawm_env" / "viewer" / "web").iterdir()}
    files = {path.relative_to(installed) for path in installed.rglob("*") if path.is_file()}
    expected.add(Path("sanawm_env", "py.typed"))
    assert expected - files == set()
    assert any(path.parts[:2] == ("sanawm_env", "assets") for path in expected)


@pytest.mark.slow
def test_the_wheel_takes_no_name_but_its_own(installed):
    names = {path.name for path in installed.iterdir() if not path.name.endswith(".dist-info")}
    assert names == {"sanawm_env", "bin"}


@pytest.mark.slow
def test_the_installed_wheel_imports_without_the_repository(installed):
    # -S keeps the editable install's .pth file out, -I the working folder and PYTHONPATH.
    code = f"""
import importlib.util, json, sys
sys.path.insert(0, {str(installed)!r})
foreign = [name for name in ("kernels", "agents") if importlib.util.find_spec(name)]
sys.path.append({sysconfig.get_paths()["purelib"]!r})
import sanawm_env, sanawm_env.kernels, sanawm_env.agents
print(json.dumps([foreign, sanawm_env.__file__, sanawm_env.kernels.__file__, sanawm_env.agents.__file__]))
"""
    foreign, *files = run_python(code, "-I", "-S", cwd=installed)
    assert foreign == []
    assert all(Path(file).is_relative_to(installed) for file in files)


def test_nothing_that_is_printed_is_read_as_markup():
    """Paths and users' words go to consoles that take them as they are: there is one way to make one."""
    for name, path in MODULES.items():
        source = path.read_text()
        if name != "sanawm_env.system.terminal":
            assert not re.search(r"(?<![\w.])Console\(", source), f"{name} makes a console: use literal_console"
            assert "rich.markup" not in source, f"{name} writes or escapes markup, which no console reads"


@pytest.fixture(scope="module")
def core():
    """Distributions that `pip install sanawm-env` brings, those that its requirements require included."""
    found, wanted = set(), list(map(Requirement, PROJECT["dependencies"]))
    while wanted:
        requirement = wanted.pop()
        name = canonicalize_name(requirement.name)
        if name not in found:
            found.add(name)
            asked = map(Requirement, metadata.requires(name) or [])
            wanted += [r for r in asked if r.marker is None or r.marker.evaluate({"extra": ""})]
    return found


OWNERS = cache(metadata.packages_distributions)  # a look at every file of every distribution


def distributions(top):
    """Of whom a top-level name is, here."""
    return {canonicalize_name(name) for name in OWNERS().get(top, [])}


# Modules that import a library of an extra as they are imported: their users asked for it.
OF_EXTRAS = {
    "sanawm_env.agents.collect_ray": "ray",
    "sanawm_env.agents.train_ppo": "stable_baselines3",
    "sanawm_env.integrations.sb3": "stable_baselines3",
    "sanawm_env.kernels.triton_ffn": "triton",
    "sanawm_env.kernels.triton_gdn": "triton",
    "sanawm_env.kernels.triton_window": "triton",
    "sanawm_env.serving.app": "fastapi",
    "sanawm_env.serving.connection": "websockets",
    "sanawm_env.serving.metrics": "prometheus_client",
    "sanawm_env.serving.replicas": "ray",
    "sanawm_env.serving.server": "uvicorn",
    "sanawm_env.serving.wire": "msgpack",
    "sanawm_env.viewer.page": "websockets",
}


def imported_at_once(tree):
    """Top-level names that a module imports as it is imported, types apart."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.split(".")[0]
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from imported_at_once(node)


@pytest.mark.slow
def test_the_core_requires_what_it_imports_and_nothing_else(core):
    own = {canonicalize_name(Requirement(r).name) for r in PROJECT["dependencies"]}
    used = set()
    for name, path in MODULES.items():
        if not name.startswith("sanawm_env."):
            continue
        for top in set(imported_at_once(parse(path.read_text()))) - sys.stdlib_module_names - {"sanawm_env"}:
            if OF_EXTRAS.get(name) != top:
                assert distributions(top) & own, f"{name} imports {top}, which the core does not require"
        used.update(*(distributions(imported.split(".")[0]) for imported, _ in imports(name, path.read_text())))
    assert own <= used, f"nothing imports {own - used}"


@pytest.mark.slow
def test_the_core_alone_does_what_is_promised_of_it(core, tmp_path):
    """In a process that can import nothing but what `pip install sanawm-env` brings."""
    missing = [top for top in OWNERS() if not distributions(top) & (core | {"sanawm-env"})]
    assert {"matplotlib", "diffusers", "websockets", "ray"} <= set(missing)
    code = f"""
import contextlib, io, json, sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {missing!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Missing())
import gymnasium as gym
import sanawm_env
from sanawm_env.cli import main

def said(*command):
    err = io.StringIO()
    with contextlib.redirect_stderr(err), contextlib.redirect_stdout(io.StringIO()):
        try:
            main(list(command))
        except SystemExit as end:
            return [end.code, " ".join(err.getvalue().split())]
    return [0, ""]

envs = gym.make_vec("SanaWM/Explore-v0", num_envs=2, world="nano")
envs.reset(seed=0)
frames = envs.step(envs.action_space.sample())[0]["rgb"].shape
print(json.dumps([
    list(frames),
    said("rollout", "--actions", "w-24", "--out", "walk"),
    said("doctor", "--memory-gb", "8"),
    said("play", "--no-browser"),
    said("train", "--quick", "--out", "train"),
    said("fetch", "streaming", "--yes"),
    said("study", "--out", "study"),
]))
"""
    frames, rollout, doctor, play, train, fetch, study = run_python(code, cwd=tmp_path)
    assert frames == [2, 128, 192, 3]
    assert rollout == doctor == [0, ""]
    assert (tmp_path / "walk" / "video.mp4").is_file()
    for (status, sentence), extra in ((play, "viewer"), (train, "plots"), (study, "plots"), (fetch, "official")):
        assert status == 2 and f'pip install "sanawm-env[{extra}]"' in sentence, sentence
