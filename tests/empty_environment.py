"""The wheel in empty environments, as a new user has it: `python -m tests.empty_environment [PYTHON ...]`.

Builds the wheel. Then, for each Python (all of 3.11 to 3.13 that are on PATH or pyenv's, if none is named), a new venv
in a temporary folder gets it by `pip install`, with all it requires. In an empty folder there the README's Python runs,
and `sanawm rollout` leaves a video. `--light` leaves torch out, where only builds of it for a GPU could be had, which
take gigabytes; then the package is imported, its ids are registered, its modules are compiled and pip resolves it.
"""

import re
import shutil
import subprocess
import sys
import tempfile
from argparse import ArgumentParser
from pathlib import Path

from packaging.requirements import Requirement

from tests.golden_files import ROOT
from tests.test_house import PROJECT

VERSIONS = ("3.11", "3.12", "3.13")
LIGHT = """
import compileall, sys, gymnasium, sanawm_env
ids = [name for name in gymnasium.registry if name.startswith("SanaWM/")]
assert len(ids) == 7, ids
assert "torch" not in sys.modules
assert compileall.compile_dir(sanawm_env.__path__[0], quiet=1)
"""


def pythons() -> list[Path]:
    """The newest of each version."""
    found = []
    for version in VERSIONS:
        kept = sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python"))
        if python := kept[-1] if kept else shutil.which(f"python{version}"):
            found.append(Path(python))
    return found


def run(*command: str | Path, cwd: Path) -> None:
    """RuntimeError with the last of what a command said, where it fails."""
    done = subprocess.run(list(map(str, command)), cwd=cwd, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))[:200]}\n{(done.stdout + done.stderr)[-2000:]}")


def built(folder: Path) -> Path:
    """The wheel of a copy of the tree."""
    tree = folder / "tree"
    tree.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    for name in ("sanawm_env", "kernels", "agents"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    run(sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", folder, tree, cwd=folder)
    (wheel,) = folder.glob("*.whl")
    return wheel


def check(python: Path, wheel: Path, folder: Path, light: bool) -> None:
    """Install and try the wheel with a Python. RuntimeError where something fails."""
    run(python, "-m", "venv", "env", cwd=folder)
    inside, empty = folder / "env" / "bin", folder / "empty"
    empty.mkdir()
    pip = (inside / "python", "-m", "pip", "install", "--quiet", "--no-compile", "-c", ROOT / "constraints.txt")
    if light:
        rest = [text for text in PROJECT["dependencies"] if Requirement(text).name != "torch"]
        run(*pip, *rest, cwd=empty)
        run(*pip, "--no-deps", wheel, cwd=empty)
        run(*pip, "--dry-run", wheel, cwd=empty)
        run(inside / "python", "-c", LIGHT, cwd=empty)
        return
    run(*pip, wheel, cwd=empty)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    run(inside / "python", "-c", "\n".join(blocks), cwd=empty)
    run(inside / "sanawm", "rollout", "--actions", "w-24", "--out", "walk", cwd=empty)
    if not (empty / "walk" / "video.mp4").exists():
        raise RuntimeError("sanawm rollout left no video.mp4")


def main() -> None:
    options = ArgumentParser(description=__doc__)
    options.add_argument("pythons", nargs="*", type=Path)
    options.add_argument("--light", action="store_true", help="without torch")
    given = options.parse_args()
    failed = False
    with tempfile.TemporaryDirectory() as name:
        wheel = built(Path(name))
        for python in given.pythons or pythons():
            with tempfile.TemporaryDirectory() as folder:
                try:
                    check(python, wheel, Path(folder), given.light)
                    what = "installs and is imported, torch left out" if given.light else "installs and runs"
                    print(f"{python}: {wheel.name} {what}", flush=True)
                except RuntimeError as error:
                    failed = True
                    print(f"{python}: {error}", flush=True)
    sys.exit(failed)


if __name__ == "__main__":
    main()
