"""Where the test vectors are: `SANAWM_GOLDEN`, by default `tests/golden`."""

import os
from pathlib import Path

ROOT = Path(__file__).parents[1]


def golden(room: str) -> Path:
    """Folder of one room's vectors (`camera`, `dit`)."""
    return Path(os.environ.get("SANAWM_GOLDEN", Path(__file__).parent / "golden")) / room
