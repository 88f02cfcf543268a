"""Sessions on disk, so that another server with the same folder can continue them.

A session is a folder with a file for each episode and a record: the numbers of its episodes, its last request and the
reply to it. The episodes are written first, then the record, atomically, and only then the reply is sent. So whatever a
client was told is on disk. Only steps may be left out (`every`): a client repeats them from the last kept episode
(`remote.Past`).
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

from sanawm_env.recording.rollout import check_writable
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
    """What is kept of a session besides its episodes.

    Attributes:
        hello: the settings that the session began with.
        last: number of the last request.
        made: number of the last episode.
        episodes: numbers of all episodes on disk.
        owner: id of the server that wrote the record.
    """

    hello: Mapping[str, Any]
    last: int
    made: int
    episodes: tuple[int, ...]
    owner: str


@dataclass(frozen=True)
class Keep:
    """A folder of sessions.

    Attributes:
        folder: shared by servers that replace each other; made if missing.
        every: keep every n-th step of a session, 1 to 100.
        owner: id of this server.

    Raises:
        ValueError: for an `every` out of range.
        OSError: for a folder that cannot be written.
    """

    folder: Path
    every: int = 1
    owner: str = field(default_factory=lambda: f"{os.getpid()}-{secrets.token_hex(8)}")

    def __post_init__(self):
        check_count("every", self.every, 1, MOST_STEPS)
        check_writable(self.folder)

    def read(self, name: str) -> tuple[Record, bytes] | None:
        """The record of a session and its last reply; None where there is no readable record."""
        if not re.fullmatch(r"[\w-]{10,40}", name):
            return None
        with suppress(OSError, ValueError, TypeError):
            data = unpack(read_bytes(self.folder / name / RECORD, MAX_RECORD_BYTES))
            reply = data.pop("reply", None)
            if isinstance(reply, np.ndarray):
                return read(Record, data), reply.tobytes()
        return None

    def write(self, name: str, record: Record, reply: bytes, new: Mapping[int, Snapshot], take: bool = False) -> None:
        """Write a session and its new episodes, and delete the files of episodes that it no longer has.

        Args:
            name: of the session.
            record: what to write besides episodes.
            reply: the reply to the last request.
            new: episodes to write, by number.
            take: take the session over from another server. Without it, nothing is written where another server owns
                it.

        Raises:
            OSError: where the folder cannot be written.
        """
        if not take and (known := self.read(name)) is not None and known[0].owner != self.owner:
            return
        folder = self.folder / name
        folder.mkdir(parents=True, exist_ok=True)
        for number, snapshot in new.items():
            snapshot.save(self.file(name, number))
        data = {each: getattr(record, each) for each in Record.__dataclass_fields__}
        with replacing(folder / RECORD) as part:
            Path(part).write_bytes(pack({**data, "reply": np.frombuffer(reply, np.uint8)}))
        self._tidy(folder, {f"{number}.safetensors" for number in record.episodes} | {RECORD})

    def file(self, name: str, number: int) -> Path:
        """Path of an episode."""
        return self.folder / name / f"{number}.safetensors"

    def remove(self, name: str) -> None:
        """Delete a session, unless another server owns it."""
        kept = self.read(name)
        if kept is not None and kept[0].owner == self.owner:
            shutil.rmtree(self.folder / name, ignore_errors=True)

    def sweep(self, seconds: float, but: Collection[str]) -> None:
        """Delete sessions that no server has used for some time.

        Args:
            seconds: age of a record after which its session is deleted.
            but: names of this server's sessions. Their records are touched, so that no other server deletes them.
        """
        with suppress(OSError):
            for folder in list(self.folder.iterdir()):
                self._look_at(folder, seconds, folder.name in but)

    def _look_at(self, folder: Path, seconds: float, ours: bool) -> None:
        with suppress(OSError):
            if ours:
                os.utime(folder / RECORD)
            elif time.time() - (folder / RECORD).stat().st_mtime > seconds and self.read(folder.name) is not None:
                shutil.rmtree(folder, ignore_errors=True)  # a record in it: nobody else's folder

    def _tidy(self, folder: Path, names: Collection[str]) -> None:
        for path in folder.iterdir():
            if path.name not in names and path.suffix == ".safetensors":
                path.unlink(missing_ok=True)
