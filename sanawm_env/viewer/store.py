"""The snapshots of a session: on the world's device, and under a limit in the host's memory or on disk.

A snapshot never changes, so its file stays valid: reading it back and dropping it again writes nothing. What is read
back is bit for bit what was stored.
"""

from collections import Counter, OrderedDict
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from sanawm_env.simulation.episode import Snapshot
from sanawm_env.system.files import brief
from sanawm_env.world import tree
from sanawm_env.world.world import World


@dataclass(frozen=True)
class Memory:
    """Memory of snapshots.

    Attributes:
        device: bytes on the device.
        host: bytes in the host's memory, of worlds on another device.
        disk: bytes on disk.
        limit: of the first two, each.
        on_device, on_disk: number of snapshots.
    """

    device: int
    host: int
    disk: int
    limit: int
    on_device: int
    on_disk: int


class _Used:
    """Snapshots in one memory, the least recently used first, and their bytes; shared storage counts once."""

    def __init__(self):
        self.snapshots: OrderedDict[int, Snapshot] = OrderedDict()
        self.nbytes = 0
        self._uses: Counter[int] = Counter()  # by address of the storage

    def put(self, node: int, snapshot: Snapshot) -> None:
        self.snapshots[node] = snapshot
        for address, size in _storages(snapshot).items():
            self.nbytes += 0 if self._uses[address] else size
            self._uses[address] += 1

    def pop(self, node: int) -> None:
        for address, size in _storages(self.snapshots.pop(node)).items():
            self._uses[address] -= 1
            if not self._uses[address]:
                del self._uses[address]
                self.nbytes -= size


class Store:
    """Snapshots by the number of their node. Not thread-safe: `Session` has the lock.

    Args:
        world: of the snapshots.
        folder: for snapshots on disk.
        limit: bytes on the device, and again in the host's memory where that is another place, above which `trim` moves
            the least recently used ones.

    Raises:
        ValueError: for a limit that is not above zero.
    """

    def __init__(self, world: World, folder: Path, limit: float):
        if not limit > 0:
            raise ValueError(f"The memory limit must be above zero bytes, got {brief(limit)}.")
        self.world, self.folder, self.limit = world, folder, int(limit)
        self._device, self._host = _Used(), _Used()
        self._files: dict[int, Path] = {}
        self._sizes: dict[int, int] = {}

    def put(self, node: int, snapshot: Snapshot) -> None:
        """Store a snapshot on the world's device."""
        self._device.put(node, snapshot)

    def adopt(self, node: int, file: Path) -> None:
        """Store a snapshot in a file, which the store may delete."""
        self._files[node], self._sizes[node] = file, file.stat().st_size

    def get(self, node: int) -> Snapshot:
        """A snapshot, on the world's device.

        Raises:
            KeyError: for an unknown node.
            OSError, ValueError: where its file is missing or damaged.
        """
        if node in self._device.snapshots:
            self._device.snapshots.move_to_end(node)
            return self._device.snapshots[node]
        if node in self._host.snapshots:
            snapshot = self._host.snapshots[node].to(self.world.device)
            self._host.pop(node)
        else:
            snapshot = Snapshot.load(self._files[node], self.world)
        self._device.put(node, snapshot)
        return snapshot

    def drop(self, node: int) -> None:
        """Delete a snapshot."""
        for used in (self._device, self._host):
            if node in used.snapshots:
                used.pop(node)
        if node in self._files:
            with suppress(OSError):
                self._files.pop(node).unlink()

    def trim(self, keep: Collection[int], limit: int | None = None) -> None:
        """Move snapshots, the least recently used first, until the limit holds.

        Args:
            keep: nodes that stay.
            limit: bytes; None for the store's.

        Raises:
            OSError: where the disk is full; nothing is lost then.
        """
        limit = self.limit if limit is None else limit
        elsewhere = self.world.device.type != "cpu"
        self._lighten(self._device, keep, limit, self._to_host if elsewhere else self._to_disk)
        self._lighten(self._host, keep, self.limit, self._to_disk)

    def view(self) -> dict[int, Snapshot | Path]:
        """Every snapshot, or its file."""
        return {**self._device.snapshots, **self._host.snapshots, **self._files}

    @property
    def memory(self) -> Memory:
        """Bytes and numbers of snapshots in each place."""
        near, host = self._device.snapshots, self._host.snapshots
        away = [self._sizes[node] for node in self._files if node not in near and node not in host]
        return Memory(self._device.nbytes, self._host.nbytes, sum(away), self.limit, len(near), len(away))

    def _lighten(self, used: _Used, keep: Collection[int], limit: int, move: Callable[[int, Snapshot], None]) -> None:
        full = None
        for node in [node for node in used.snapshots if node not in keep]:
            if used.nbytes <= limit:
                return
            try:
                move(node, used.snapshots[node])
            except OSError as error:  # others may be on disk already
                full = error
            else:
                used.pop(node)
        if full is not None and used.nbytes > limit:
            raise full

    def _to_host(self, node: int, snapshot: Snapshot) -> None:
        self._host.put(node, snapshot.to("cpu"))

    def _to_disk(self, node: int, snapshot: Snapshot) -> None:
        if node not in self._files:
            path = self.folder / f"{node}.safetensors"
            snapshot.save(path)
            self.adopt(node, path)


def _storages(snapshot: Snapshot) -> dict[int, int]:
    """Bytes of each storage of a snapshot, by address."""
    storages = (t.untyped_storage() for t in tree.leaves((snapshot.state.slots, snapshot.clip, snapshot.task_state)))
    return {storage.data_ptr(): storage.nbytes() for storage in storages}
