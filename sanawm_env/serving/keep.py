"""Sessions on disk, so that another server with the same folder goes on with them when one is killed.

A session is a folder: a file for each episode, and a record of which there are, of the last request and of its reply.
It is written before the reply is sent, episodes first and the record whole or not at all, so what a client was told is
there. Only steps may be left out (`every`): a client takes those again, from what was kept (`remote.Past`).
"""

import os
import re
import secrets
import shutil
import time
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sanawm_env.serving.wire import pack, unpack
from sanawm_env.simulation.episode import Snapshot
from sanawm_env.system.files import check_count, read_bytes
from sanawm_env.system.saving import replacing
from sanawm_env.system.settings import read

RECORD = "session"
MAX_RECORD_BYTES = 2**30
MOST_STEPS = 100  # that a client takes again


@dataclass(frozen=True, kw_only=True)
class Record:
    """What is known of a session besides its episodes. hello: how it began. last: number of the last request. made: of
    the last episode. episodes: numbers of those that there are. owner: who wrote it."""

    hello: Mapping[str, Any]
    last: int
    made: int
    episodes: tuple[int, ...]
    owner: str


@dataclass(frozen=True)
class Keep:
    """folder: of all sessions, shared by servers that go on for one another; made if missing. every: of so many steps
    of a session one is kept. ValueError for an `every` that is no number above zero."""

    folder: Path
    every: int = 1
    owner: str = field(default_factory=lambda: f"{os.getpid()}-{secrets.token_hex(8)}")

    def __post_init__(self):
        check_count("every", self.every, 1, MOST_STEPS)
        self.folder.mkdir(parents=True, exist_ok=True)

    def read(self, name: str) -> tuple[Record, bytes] | None:
        """The record of a session and its last reply; None where there is none that can be read."""
        if not re.fullmatch(r"[\w-]{10,40}", name):
            return None
        with suppress(OSError, ValueError, TypeError):
            data = unpack(read_bytes(self.folder / name / RECORD, MAX_RECORD_BYTES))
            reply = data.pop("reply")
            return read(Record, data), reply.tobytes()
        return None

    def write(self, name: str, record: Record, reply: bytes, new: Mapping[int, Snapshot], take: bool = False) -> None:
        """Keep a session with its new episodes; files of those that it no longer has are removed. Nothing is written
        where another server has gone on with it, unless it is to be taken from that one."""
        if not take and (known := self.read(name)) is not None and known[0].owner != self.owner:
            return
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        for number, snapshot in new.items():
            snapshot.save(self.file(name, number))
        data = {each: getattr(record, each) for each in Record.__dataclass_fields__}
        with replacing(folder / RECORD) as part:
            Path(part).write_bytes(pack({**data, "reply": np.frombuffer(reply, np.uint8)}))
        self._tidy(folder, {f"{number}.safetensors" for number in record.episodes} | {RECORD})

    def file(self, name: str, number: int) -> Path:
        """Of an episode."""
        return self.folder / name / f"{number}.safetensors"

    def remove(self, name: str) -> None:
        """Forget a session, unless another server has gone on with it."""
        kept = self.read(name)
        if kept is not None and kept[0].owner == self.owner:
            shutil.rmtree(self.folder / name, ignore_errors=True)

    def sweep(self, seconds: float, but: Collection[str]) -> None:
        """Forget sessions of servers that are no longer there: of no word for so long. but: those that this one has,
        whose records are marked, so that no other server forgets them."""
        for folder in self.folder.iterdir():
            with suppress(OSError):
                if folder.name in but:
                    os.utime(folder / RECORD)
                elif time.time() - (folder / RECORD).stat().st_mtime > seconds:
                    shutil.rmtree(folder, ignore_errors=True)

    def _tidy(self, folder: Path, names: Collection[str]) -> None:
        for path in folder.iterdir():
            if path.name not in names and path.suffix == ".safetensors":
                path.unlink(missing_ok=True)
