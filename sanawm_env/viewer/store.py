"""Where the moments of a session lie: on the world's device, and under a limit in the host's memory or on disk.

A moment never changes, so a file that was written once stays good: bringing the moment back and letting it go again
writes nothing. What comes back is bit for bit what went.
"""

from collections import Counter, OrderedDict
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from sanawm_env.envs.snapshot import Snapshot
from sanawm_env.world import tree
from sanawm_env.world.world import World


@dataclass(frozen=True)
class Memory:
    """Bytes that moments take on the device, in the host's memory (of worlds on another device) and on disk, the limit
    of the first two, and how many moments lie in each place."""

    device: int
    host: int
    disk: int
    limit: int
    on_device: int
    on_host: int
    on_disk: int


class Shelf:
    """Moments in one memory, the least recently used first, and the bytes they keep alive; what they share counts
    once."""

    def __init__(self):
        self.moments: OrderedDict[int, Snapshot] = OrderedDict()
        self.nbytes = 0
        self._uses: Counter[int] = Counter()  # by address of the storage

    def put(self, node: int, moment: Snapshot) -> None:
        self.moments[node] = moment
        for address, size in _storages(moment).items():
            self.nbytes += 0 if self._uses[address] else size
            self._uses[address] += 1

    def pop(self, node: int) -> None:
        for address, size in _storages(self.moments.pop(node)).items():
            self._uses[address] -= 1
            if not self._uses[address]:
                del self._uses[address]
                self.nbytes -= size


class Store:
    """Moments by the number of their node. Not thread-safe: a `Session` looks after that.

    folder: for moments on disk. limit: bytes that may lie on the device, and in the host's memory where that is another
    place, before `trim` moves the least recently used ones.
    """

    def __init__(self, world: World, folder: Path, limit: int):
        if not limit > 0:
            raise ValueError(f"The memory limit must be above zero bytes, got {limit}.")
        self.world, self.folder, self.limit = world, folder, int(limit)
        self._device, self._host = Shelf(), Shelf()
        self._files: dict[int, Path] = {}
        self._sizes: dict[int, int] = {}

    def put(self, node: int, moment: Snapshot) -> None:
        """Keep a moment of the world's device."""
        self._device.put(node, moment)

    def adopt(self, node: int, file: Path) -> None:
        """Keep a moment that lies in a file, which is the store's from now on: it may delete it."""
        self._files[node], self._sizes[node] = file, file.stat().st_size

    def get(self, node: int) -> Snapshot:
        """The moment, on the world's device again. KeyError for one that was never put; OSError or ValueError where its
        file was taken away or damaged."""
        if node in self._device.moments:
            self._device.moments.move_to_end(node)
            return self._device.moments[node]
        if node in self._host.moments:
            moment = self._host.moments[node].to(self.world.device)
            self._host.pop(node)
        else:
            moment = Snapshot.load(self._files[node], self.world)
        self._device.put(node, moment)
        return moment

    def drop(self, node: int) -> None:
        """Forget a moment."""
        for shelf in (self._device, self._host):
            if node in shelf.moments:
                shelf.pop(node)
        if node in self._files:
            with suppress(OSError):
                self._files.pop(node).unlink()

    def trim(self, keep: Collection[int], limit: int | None = None) -> None:
        """Move moments, the least recently used first and none of `keep`, until the limit holds. OSError where it
        cannot, because the disk takes no more; nothing is lost then."""
        limit = self.limit if limit is None else limit
        far = self.world.device.type != "cpu"
        self._lighten(self._device, keep, limit, self._to_host if far else self._to_disk)
        self._lighten(self._host, keep, self.limit, self._to_disk)

    def view(self) -> dict[int, Snapshot | Path]:
        """Every moment, wherever it is, or the file in which it lies."""
        return {**self._device.moments, **self._host.moments, **self._files}

    @property
    def memory(self) -> Memory:
        near, host = self._device.moments, self._host.moments
        away = [node for node in self._files if node not in near and node not in host]
        disk = sum(self._sizes[node] for node in away)
        sizes = self._device.nbytes, self._host.nbytes, disk
        return Memory(*sizes, self.limit, len(near), len(host), len(away))

    def _lighten(self, shelf: Shelf, keep: Collection[int], limit: int, move: Callable[[int, Snapshot], None]) -> None:
        full = None
        for node in [node for node in shelf.moments if node not in keep]:
            if shelf.nbytes <= limit:
                return
            try:
                move(node, shelf.moments[node])
            except OSError as error:  # others may be on disk already
                full = error
            else:
                shelf.pop(node)
        if full is not None and shelf.nbytes > limit:
            raise full

    def _to_host(self, node: int, moment: Snapshot) -> None:
        self._host.put(node, moment.to("cpu"))

    def _to_disk(self, node: int, moment: Snapshot) -> None:
        if node not in self._files:
            path = self.folder / f"{node}.safetensors"
            moment.save(path)
            self.adopt(node, path)


def _storages(moment: Snapshot) -> dict[int, int]:
    """Bytes of each storage that a moment keeps alive, by its address."""
    storages = (t.untyped_storage() for t in tree.leaves((moment.state.slots, moment.clip, moment.task)))
    return {storage.data_ptr(): storage.nbytes() for storage in storages}
