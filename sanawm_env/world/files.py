"""Files that somebody else may have written or changed: how large they may be, what they hash to, other names for one.

Nothing here imports torch, so that who only reads files does not wait for it.
"""

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

MAX_PIXELS = 89_478_485
"""Larger pictures, of images and of videos, are refused as decompression bombs (Pillow's own limit; 8000x8000 is 64
million pixels)."""


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_json(path: Path, most_bytes: int) -> dict[str, Any]:
    """A JSON object of at most so many bytes; ValueError for anything else, OSError for what cannot be read."""
    if path.stat().st_size > most_bytes:
        raise ValueError(f"it is larger than {most_bytes >> 20} MB")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"it is not JSON ({error})") from error
    if not isinstance(value, dict):
        raise ValueError("it is not a JSON object")
    return value


def link(source: Path, target: Path) -> None:
    """The same file under another name: a hard link, or a copy where there can be none."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
