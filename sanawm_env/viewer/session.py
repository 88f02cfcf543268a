"""A session of the viewer, without a page: one world, and the tree of everything that was done in it.

    session = Session(World.load("nano"))
    start = session.begin(0)  # the first shipped start image
    node = session.drive("w-24")  # a chunk: 24 frames, 1.5 s
    session.drive("d-24")
    session.restore(node.id)  # back, at no cost: states are values
    session.drive("a-24")  # another branch

The frames of a node are in its snapshot, in memory or on disk. So branches are compared, recorded and saved as they
were seen, and nothing is predicted twice.
"""

import hashlib
import io
import tempfile
import threading
import weakref
from collections.abc import Collection, Generator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from sanawm_env.camera.dsl import KeyState
from sanawm_env.metrics.image import psnr
from sanawm_env.simulation.episode import Episode, Snapshot
from sanawm_env.simulation.simulator import Limits, Simulator
from sanawm_env.simulation.tasks import Task
from sanawm_env.system.saving import Scratch, remove, replacing
from sanawm_env.viewer import files
from sanawm_env.viewer.moves import Controllers, Parts, as_parts
from sanawm_env.viewer.store import Memory, Store
from sanawm_env.viewer.tree import Node, Tree
from sanawm_env.world.images import ImageSource
from sanawm_env.world.state import MAX_SEED, Scene, check_seed
from sanawm_env.world.thumbnails import thumbnail
from sanawm_env.world.world import World

GB = 10**9
MAX_UPLOAD_BYTES = 16 * 2**20
UPLOAD_FORMATS = {"PNG": ".png", "JPEG": ".jpg", "WEBP": ".webp"}
MAX_NAME = 80


@dataclass(frozen=True, eq=False)
class Film:
    """A branch, for recording: its start and the chunks after it.

    Attributes:
        session: whose branch it is.
        start: the scene it began in.
        nodes: from the start to the last one.
        fps: frames a second.
    """

    session: "Session"
    start: Scene
    nodes: tuple[Node, ...]
    fps: int

    def chunks(self) -> Iterator[NDArray]:
        """Frames (24, H, W, 3) uint8 of each node but the first."""
        return (self.session.frames(node.id) for node in self.nodes[1:])


@dataclass(frozen=True, eq=False)
class Comparison:
    """Two branches side by side, after their last common node.

    Attributes:
        common: that node; None if they have none.
        left: the end of the left branch.
        right: the end of the right branch.
        frames: (F, H, 2 W, 3) uint8; the shorter branch repeats its last frame.
        psnr: (F,) dB between the two.
    """

    common: Node | None
    left: Node
    right: Node
    frames: NDArray
    psnr: NDArray


class Session:
    """A world and the tree of what was done in it. Any thread may call every method.

    Every method raises ValueError or TypeError for a wrong argument, MemoryError where the device is full, and OSError
    where the disk is full; then nothing has changed. `close()` deletes the folder of snapshots, and so does the end of
    the process.

    Args:
        world: a loaded world.
        memory_limit: bytes of snapshots that stay in the world's memory. Older ones that are not pinned move to the
            host's memory, if the world is elsewhere, and from there (same limit) to disk. They are read back when
            needed.
        folder: for snapshots on disk; None for a temporary one.
        speed: name of a speed preset; None for the world's own.
        seed: of the seeds that are drawn.
        name: name or folder by which `World.load` found the world.
    """

    def __init__(
        self,
        world: World,
        memory_limit: float = 4 * GB,
        folder: str | PathLike | None = None,
        speed: str | None = None,
        seed: int = 0,
        name: str | None = None,
    ):
        self.name = name or world.config.name
        self.world, self.controllers = world, Controllers.of(world.config, speed)
        self.frames_per_chunk, self.fps = world.config.chunk_frames, world.config.fps
        # a session has no end: it goes on from the last frame where a world's horizon ends
        limits = Limits(world.config.workspace, horizon="reanchor")
        self.simulator = Simulator(world, self.controllers.poses, Task(), limits)
        scratch = Scratch("sanawm-play-", folder)
        self.folder, self.close = scratch.folder, weakref.finalize(self, scratch.__exit__)
        self._store = Store(world, self.folder, memory_limit)
        self._tree, self._lock = Tree(), threading.RLock()
        self._rng = np.random.default_rng(check_seed(seed))
        self._prompts: dict[int, str] = {}  # of nodes that are driven on from under another one than theirs

    # --- what there is ---

    @property
    def tree(self) -> Tree:
        """All nodes, as a value."""
        return self._tree

    @property
    def current(self) -> Node:
        """The current node. ValueError before the first scene."""
        if self._tree.current < 0:
            raise ValueError("There is no scene yet: begin one.")
        return self._tree[self._tree.current]

    @property
    def memory(self) -> Memory:
        """Bytes and numbers of snapshots on the device, on the host and on disk."""
        with self._lock:
            return self._store.memory

    @property
    def scenes(self) -> tuple[Path, ...]:
        """Start images of the world."""
        return self.world.starts

    def snapshot(self, node: int) -> Snapshot:
        """The episode after a node, read back if it was moved to disk."""
        with self._lock:
            return self._snapshot(self._tree[node].id)

    def frames(self, node: int) -> NDArray:
        """(24, H, W, 3) uint8 frames of a node, read-only; (1, H, W, 3) of a start."""
        with self._lock:
            count = len(self._tree[node].c2w)
            frames = self._snapshot(node).host_clip(count).frames
            self._trim(self._tree)
            return frames

    # --- going on and back ---

    def begin(
        self,
        image: ImageSource | int | bytes = 0,
        prompt: str = "",
        fov_deg: float | None = None,
        seed: int | None = None,
        name: str | None = None,
    ) -> Node:
        """Begin a scene; its start becomes the current node.

        Args:
            image: index of a start image, a path, an array, or the bytes of a PNG, JPEG or WebP file of at most 16
                MB.
            prompt: for worlds with text.
            fov_deg: horizontal field of view of the world's frames in degrees; None for the world's own.
            seed: of the noise; None to draw one.
            name: of the scene; None for the file's.

        Raises:
            ValueError: for an unknown index, an image that cannot be read or is too large, and as `World.scene`.
            TypeError: as `World.scene`.
            FileNotFoundError: where there is no file.
        """
        with self._lock, self._drawn_for_good():
            label = name or (Path(image).stem if isinstance(image, str | PathLike) else "an image")
            if isinstance(image, bytes):
                image = self._keep_upload(image)
            elif isinstance(image, int):
                if not 0 <= image < len(self.scenes):
                    raise ValueError(f"There is no scene {image}: scenes are 0 to {len(self.scenes) - 1}.")
                image = self.scenes[image]
                label = name or image.stem
            seed = self._draw() if seed is None else check_seed(seed)
            scene = self.world.scene(image, prompt=prompt, fov_deg=fov_deg)
            (episode,) = self.simulator.reset([scene], [seed])
            return self._add(episode, None, label[:MAX_NAME], (), None)

    def drive(self, move: str | ArrayLike | Parts, at: int | None = None, seed: int | None = None) -> Node:
        """Predict the chunk after a node; it becomes the current node.

        Args:
            move: keys held for 24 frames in all ("w-24", "w-10,wd-14"), a body twist (6,) in [-1, 1], poses (24, 4, 4)
                relative to the start, or parts (`moves`).
            at: the node; None for the current one.
            seed: of the noise from here on; None for the node's.
        """
        with self._lock:
            parent = self.current if at is None else self._tree[at]
            episode, parts, keys = self._imagine(parent, move, seed, self._prompts.get(parent.id))
            return self._add(episode, parent, parent.scene, parts, keys)

    def revise(self, node: int, move: str | ArrayLike | Parts) -> Node:
        """Predict another chunk in place of a node: from the node before it, with the same noise and another move.

        Args:
            node: without a name, a pin and children.
            move: as in `drive`.

        Raises:
            ValueError: for other nodes.
        """
        with self._lock:
            old = self._tree[node]
            if old.parent is None or not self.plain(node):
                raise ValueError(
                    f"Node {node} cannot be revised: it is a start, has a name or a pin, or other nodes follow it."
                )
            prompt = self._snapshot(node).slot.scene.prompt
            episode, parts, keys = self._imagine(self._tree[old.parent], move, old.seed, prompt)
            ahead = self._prompts.get(node)
            new = self._add(episode, self._tree[old.parent], old.scene, parts, keys, instead_of=old)
            if ahead is not None:
                self._prompts[new.id] = ahead
            return new

    def plain(self, node: int) -> bool:
        """Whether a node has no name, no pin and no children."""
        found = self._tree[node]
        return not (found.name or found.pinned or self._tree.children(node))

    def set_prompt(self, prompt: str, at: int | None = None) -> None:
        """Use another prompt for chunks after a node.

        Args:
            prompt: the text.
            at: the node; None for the current one.
        """
        with self._lock:
            node = self.current if at is None else self._tree[at]
            state = self.world.with_prompt(self._snapshot(node.id).state, prompt)
            self._prompts[node.id] = state.slots[0].scene.prompt

    def prompt(self, node: int) -> str:
        """The prompt of chunks after a node."""
        with self._lock:
            return self._prompts.get(node, self._snapshot(node).slot.scene.prompt)

    def restore(self, node: int) -> Node:
        """Make a node the current one. Its state is the same bit for bit, and so is its future under the same moves."""
        with self._lock:
            found = self._tree[node]
            self._snapshot(node)
            self._become(replace(self._tree, current=node))
            return found

    def reseed(self, node: int, seed: int | None = None) -> Node:
        """Predict the chunk of a node again, from the node before it, with the same move and other noise. The new node
        is a sibling and becomes the current one.

        Args:
            node: the node.
            seed: of the noise; None to draw one.

        Raises:
            ValueError: for a start image, which is not predicted.
        """
        with self._lock, self._drawn_for_good():
            found = self._tree[node]
            if found.parent is None:
                raise ValueError(f"Node {node} is a start image, which is not predicted: reseed a chunk after it.")
            parent, prompt = self._tree[found.parent], self._snapshot(node).slot.scene.prompt
            seed = self._draw() if seed is None else check_seed(seed)
            episode, parts, keys = self._imagine(parent, found.parts, seed, prompt)
            return self._add(episode, parent, parent.scene, parts, keys)

    # --- looking after the tree ---

    def rename(self, node: int, name: str) -> Node:
        """Name a node.

        Args:
            node: the node.
            name: at most 80 characters; "" removes the name.

        Raises:
            ValueError: for a longer name.
        """
        if not isinstance(name, str) or len(name) > MAX_NAME:
            raise ValueError(f"A name must be text of at most {MAX_NAME} characters.")
        with self._lock:
            return self._change(replace(self._tree[node], name=" ".join(name.split())))

    def pin(self, node: int, pinned: bool = True) -> Node:
        """Pin a node: it cannot be deleted, and stays in the world's memory."""
        with self._lock:
            return self._change(replace(self._tree[node], pinned=bool(pinned)))

    def delete(self, node: int) -> list[int]:
        """Delete a node and its descendants. The current node moves to one that remains.

        Returns:
            The numbers of the deleted nodes.

        Raises:
            ValueError: where one of them is pinned, or where no node would remain.
        """
        with self._lock:
            gone = [below.id for below in self._tree.below(node)]
            pinned = [i for i in gone if self._tree[i].pinned]
            if pinned:
                raise ValueError(f"Node {pinned[0]} on this branch is pinned: unpin it before you delete the branch.")
            left = [i for i in self._tree.nodes if i not in gone]
            if not left:
                raise ValueError("This is the only scene: begin another one before you delete it.")
            current, parent = self._tree.current, self._tree[node].parent
            if current in gone:
                current = left[-1] if parent is None else parent
                self._snapshot(current)
            self._become(self._tree.without(gone, current), gone)
            return gone

    def compare(self, left: int, right: int, most_chunks: int | None = None) -> Comparison:
        """Compare the branches that end in two nodes, side by side from where they part.

        Args:
            left: a node.
            right: another one.
            most_chunks: of each branch; None for all.
        """
        tree = self._tree
        lines = [tree.line(node) for node in (left, right)]
        common = [a for a, b in zip(*lines, strict=False) if a.id == b.id]
        parted = [line[len(common) :][:most_chunks] or line[-1:] for line in lines]
        films = [np.concatenate([self.frames(node.id) for node in line]) for line in parted]
        length = max(map(len, films))
        sides = [np.concatenate([film, np.repeat(film[-1:], length - len(film), axis=0)]) for film in films]
        likeness = np.array([psnr(a, b) for a, b in zip(*sides, strict=True)])
        ends = (line[-1] for line in lines)
        return Comparison(common[-1] if common else None, *ends, np.concatenate(sides, axis=2), likeness)

    def film(self, node: int) -> Film:
        """The branch that ends in a node, from its start image."""
        with self._lock:
            line = tuple(self._tree.line(node))
            return Film(self, self._snapshot(line[0].id).slot.scene, line, self.fps)

    # --- files ---

    def save(self, folder: str | PathLike) -> Path:
        """Write the session to a folder: session.json, arrays.safetensors and a safetensors file for each node. It
        appears whole or not at all, and replaces an older session.

        Args:
            folder: where to.

        Returns:
            The folder.

        Raises:
            ValueError: before the first scene.
            FileExistsError: for a folder that holds something else.
            OSError: where it cannot be written.
        """
        with self._lock:
            tree, snapshots = self._tree, self._store.view()
        if not tree.nodes:
            raise ValueError("There is nothing to save yet: begin a scene.")
        return files.save(Path(folder), tree, snapshots, self.world)

    def open(self, folder: str | PathLike) -> Node:
        """Continue a saved session in place of this one. Every file is verified first; snapshots are read when they are
        needed.

        Args:
            folder: of the session.

        Returns:
            The current node.

        Raises:
            FileNotFoundError: where there is no session.
            ValueError: for damaged files, or a session of another world.
        """
        with self._lock:
            tree, snapshots = files.read(Path(folder), self.world)
            fresh = Path(tempfile.mkdtemp(prefix="opened-", dir=self.folder))
            try:
                store = files.adopt(snapshots, Store(self.world, fresh, self._store.limit))
                store.get(tree.current)
            except BaseException:
                remove(fresh)
                raise
            older, before = self._store, self._tree
            self._tree, self._store, self._prompts = tree, store, {}
            for node in before.nodes:
                older.drop(node)
            return self.current

    # --- inside ---

    def _imagine(
        self, parent: Node, move: str | ArrayLike | Parts, seed: int | None, prompt: str | None
    ) -> tuple[Episode, Parts, KeyState | None]:
        parts = as_parts(move, self.frames_per_chunk)
        poses, keys = self.controllers.move(parts, parent.c2w[-1], parent.controller_state)
        seed = None if seed is None else check_seed(seed)
        before = self._snapshot(parent.id).episode
        for attempt in range(2):
            try:
                state = before.state if seed is None else before.state.reseed(seed)
                if prompt is not None:
                    state = self.world.with_prompt(state, prompt)
                (episode,), _ = self.simulator.step([replace(before, state=state)], [poses])
                return episode, parts, keys
            except torch.OutOfMemoryError as error:
                if attempt:
                    raise MemoryError(
                        f"{self.world.device} is out of memory: delete branches, or start with a lower memory limit."
                    ) from error
                self._store.trim({parent.id}, limit=0)
        raise AssertionError("unreachable")

    def _add(
        self,
        episode: Episode,
        parent: Node | None,
        scene: str,
        parts: Parts,
        keys: KeyState | None,
        instead_of: Node | None = None,
    ) -> Node:
        """Add a node, or replace one. Where the disk is full, OSError is raised and nothing has changed."""
        tree = self._tree
        if parent is None or instead_of is None:
            straight_on = parent is not None and not tree.children(parent.id)
            branch = parent.branch if straight_on else tree.next_branch
        else:
            tree, branch = tree.without([instead_of.id], parent.id), instead_of.branch
        c2w = episode.c2w.copy()
        c2w.setflags(write=False)
        node = Node(
            tree.next_id, None if parent is None else parent.id, branch, scene, episode.slot.chunk, episode.slot.seed,
            c2w, thumbnail(episode.slot.frame.cpu().numpy()), parts, keys,
        )  # fmt: skip
        self._store.put(node.id, Snapshot.of(episode, "poses"))
        try:
            self._become(tree.add(node), set() if instead_of is None else {instead_of.id})
        except BaseException:
            self._store.drop(node.id)
            raise
        return node

    def _become(self, tree: Tree, gone: Collection[int] = ()) -> None:
        """Set another tree, after the memory limit holds for it. The snapshots `gone` are dropped."""
        try:
            self._trim(tree, gone)
        except OSError:
            with suppress(OSError):
                self._trim(self._tree)  # what was brought back for it may go again
            raise
        self._tree = tree
        for node in gone:
            self._store.drop(node)
            self._prompts.pop(node, None)

    def _change(self, node: Node) -> Node:
        self._tree = self._tree.change(node)
        return node

    def _snapshot(self, node: int) -> Snapshot:
        try:
            return self._store.get(node)
        except torch.OutOfMemoryError:
            self._store.trim({self._tree.current}, limit=0)
            return self._store.get(node)

    def _trim(self, tree: Tree, gone: Collection[int] = ()) -> None:
        self._store.trim({tree.current, *gone} | {node.id for node in tree.nodes.values() if node.pinned})

    @contextmanager
    def _drawn_for_good(self) -> Generator[None]:
        """Within the block, the generator of seeds is set back after an error."""
        before = self._rng.bit_generator.state
        try:
            yield
        except BaseException:
            self._rng.bit_generator.state = before
            raise

    def _draw(self) -> int:
        return int(self._rng.integers(MAX_SEED))

    def _keep_upload(self, data: bytes) -> Path:
        """Write an uploaded image to a file, so that it is read like any other, with its anchor."""
        if len(data) > MAX_UPLOAD_BYTES:
            raise ValueError(
                f"The image takes {len(data) / 2**20:.1f} MB, {MAX_UPLOAD_BYTES >> 20} are accepted: make it smaller."
            )
        try:
            with Image.open(io.BytesIO(data), formats=list(UPLOAD_FORMATS)) as image:
                suffix = UPLOAD_FORMATS[image.format or ""]
        except Image.DecompressionBombError as error:
            raise ValueError("The image has too many pixels: make it smaller.") from error
        except Exception as error:  # decoders raise many types for damaged files
            raise ValueError("This file is not a PNG, JPEG or WebP image: drop one of these.") from error
        path = self.folder / f"{hashlib.sha256(data).hexdigest()}{suffix}"
        with replacing(path) as part:
            part.write_bytes(data)
        return path
