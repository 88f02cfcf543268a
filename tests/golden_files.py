"""Where the test vectors are: `SANAWM_GOLDEN`, by default `tests/golden`."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SHIPPED = ROOT / "tests" / "golden"


def golden(room: str) -> Path:
    """Folder of one room's vectors (`camera`, `dit`); the module is skipped where another folder holds none of them."""
    folder = Path(os.environ.get("SANAWM_GOLDEN", SHIPPED)) / room
    if "SANAWM_GOLDEN" in os.environ and not folder.exists():
        pytest.skip(f"SANAWM_GOLDEN has no {room} vectors", allow_module_level=True)
    return folder
