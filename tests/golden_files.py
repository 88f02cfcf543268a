"""Where the test vectors are: `SANAWM_GOLDEN`, by default `tests/golden`; and scripts of the repository."""

import os
import runpy
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
SHIPPED = ROOT / "tests" / "golden"


def golden(room: str) -> Path:
    """Folder of one room's vectors (`camera`, `dit`); the module is skipped where another folder holds none of them."""
    folder = Path(os.environ.get("SANAWM_GOLDEN", SHIPPED)) / room
    if "SANAWM_GOLDEN" in os.environ and not folder.exists():
        pytest.skip(f"SANAWM_GOLDEN has no {room} vectors", allow_module_level=True)
    return folder


def benchmark(name: str) -> dict[str, Any]:
    """What a script of benchmarks/ defines; it imports its neighbours by name, as when it is run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "benchmarks")
        return runpy.run_path(str(ROOT / "benchmarks" / f"{name}.py"))
