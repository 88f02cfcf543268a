"""Time as a tree of nodes, which is a value. A node is a chunk that was driven, or the start of a scene.

Nodes and trees are never edited, so they can be read while the session goes on.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from numpy.typing import NDArray

from sanawm_env.camera.dsl import KeyState
from sanawm_env.system.files import brief
from sanawm_env.viewer.moves import Parts, text


@dataclass(frozen=True, eq=False)
class Node:
    """A chunk of 24 frames, or a start image.

    Attributes:
        id: its number, never used twice.
        parent: the node before it; None for a start.
        branch: number of its branch. A first child is on its parent's branch.
        scene: name of the start image.
        chunk: number of chunks since the start.
        seed: of the noise it was predicted with.
        c2w: (F, 4, 4) poses of its frames, relative to the start's.
        thumbnail: (h, w, 3) uint8 of its last frame.
        parts: how it was driven.
        controller_state: of the keys held at its end.
        name: that a viewer gave it.
        pinned: whether it cannot be deleted.
    """

    id: int
    parent: int | None
    branch: int
    scene: str
    chunk: int
    seed: int
    c2w: NDArray
    thumbnail: NDArray
    parts: Parts = ()
    controller_state: KeyState | None = None
    name: str = ""
    pinned: bool = False

    @property
    def title(self) -> str:
        """Its name, or how it was driven."""
        return self.name or text(self.parts) or self.scene


@dataclass(frozen=True, eq=False)
class Tree:
    """All nodes, and the current one.

    Attributes:
        nodes: by number.
        current: number of the current node; -1 without nodes.
        next_id: the next free number.
        next_branch: the next free branch.
    """

    nodes: Mapping[int, Node] = field(default_factory=dict)
    current: int = -1
    next_id: int = 0
    next_branch: int = 0

    def __getitem__(self, node: int) -> Node:
        """The node of that number. Raises ValueError for an unknown number."""
        if node not in self.nodes:
            raise ValueError(f"There is no node {brief(node)}: it was deleted, or never existed.")
        return self.nodes[node]

    def children(self, node: int) -> list[Node]:
        """The nodes directly after a node."""
        return [child for child in self.nodes.values() if child.parent == node]

    def line(self, node: int) -> list[Node]:
        """The nodes from the start to this one, in order."""
        line = [self[node]]
        while line[-1].parent is not None:
            line.append(self[line[-1].parent])
        return line[::-1]

    def below(self, node: int) -> list[Node]:
        """This node and all its descendants."""
        found, waiting = [], [self[node]]
        while waiting:
            found.append(waiting.pop())
            waiting += self.children(found[-1].id)
        return found

    def add(self, node: Node) -> "Tree":
        """The tree with a new node, which becomes the current one."""
        return Tree(
            {**self.nodes, node.id: node}, node.id, max(self.next_id, node.id + 1),
            max(self.next_branch, node.branch + 1),
        )  # fmt: skip

    def change(self, node: Node) -> "Tree":
        """The tree with another node in place of that of the same number."""
        return replace(self, nodes={**self.nodes, node.id: node})

    def without(self, gone: Iterable[int], current: int) -> "Tree":
        """The tree without some nodes, and with another current node."""
        gone = set(gone)
        return replace(self, nodes={i: n for i, n in self.nodes.items() if i not in gone}, current=current)
