"""Where the snapshots of a session lie: on the world's device, and under a limit in the host's memory or on disk.

A snapshot never changes, so a file that was written once stays good: bringing the snapshot back and letting it go again
writes nothing. What comes back is bit for bit what went.
"""

from collections import Counter, OrderedDict
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from sanawm_env.simulation.episode import Snapshot
from sanawm_env.world import tree
from sanawm_env.world.world import World


@dataclass(frozen=True)
class Memory:
    """Bytes that snapshots take on the device, in the host's memory (of worlds on another device) and on disk, the
    limit of the first two, and how many snapshots lie in each place."""

    device: int
    host: int
    disk: int
    limit: int
    on_device: int
    on_host: int
    on_disk: int


class _Used:
    """Snapshots in one memory, the least recently used first, and the bytes they keep alive; what they share counts
    once."""

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
    """Snapshots by the number of their node. Not thread-safe: a `Session` looks after that.

    folder: for snapshots on disk. limit: bytes that may lie on the device, and in the host's memory where that is
    another place, before `trim` moves the least recently used ones.
    """

    def __init__(self, world: World, folder: Path, limit: float):
        if not limit > 0:
            raise ValueError(f"The memory limit must be above zero bytes, got {limit}.")
        self.world, self.folder, self.limit = world, folder, int(limit)
        self._device, self._host = _Used(), _Used()
        self._files: dict[int, Path] = {}
        self._sizes: dict[int, int] = {}

    def put(self, node: int, snapshot: Snapshot) -> None:
        """Keep a snapshot of the world's device."""
        self._device.put(node, snapshot)

    def adopt(self, node: int, file: Path) -> None:
        """Keep a snapshot that lies in a file, which is the store's from now on: it may delete it."""
        self._files[node], self._sizes[node] = file, file.stat().st_size

    def get(self, node: int) -> Snapshot:
        """The snapshot, on the world's device again. KeyError for one that was never put; OSError or ValueError where
        its file was taken away or damaged."""
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
        """Forget one."""
        for used in (self._device, self._host):
            if node in used.snapshots:
                used.pop(node)
        if node in self._files:
            with suppress(OSError):
                self._files.pop(node).unlink()

    def trim(self, keep: Collection[int], limit: int | None = None) -> None:
        """Move snapshots, the least recently used first and none of `keep`, until the limit holds. OSError where it
        cannot, because the disk takes no more; nothing is lost then."""
        limit = self.limit if limit is None else limit
        elsewhere = self.world.device.type != "cpu"
        self._lighten(self._device, keep, limit, self._to_host if elsewhere else self._to_disk)
        self._lighten(self._host, keep, self.limit, self._to_disk)

    def view(self) -> dict[int, Snapshot | Path]:
        """Every snapshot, wherever it is, or the file in which it lies."""
        return {**self._device.snapshots, **self._host.snapshots, **self._files}

    @property
    def memory(self) -> Memory:
        near, host = self._device.snapshots, self._host.snapshots
        away = [node for node in self._files if node not in near and node not in host]
        disk = sum(self._sizes[node] for node in away)
        sizes = self._device.nbytes, self._host.nbytes, disk
        return Memory(*sizes, self.limit, len(near), len(host), len(away))

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
    """Bytes of each storage that a snapshot keeps alive, by its address."""
    storages = (t.untyped_storage() for t in tree.leaves((snapshot.state.slots, snapshot.clip, snapshot.task_state)))
    return {storage.data_ptr(): storage.nbytes() for storage in storages}
