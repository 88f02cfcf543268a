"""Time as a tree of nodes, a value: a node is a chunk that was driven, or the start of a scene.

Neither nodes nor trees are ever edited. Whoever holds one can read it while the session goes on.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from numpy.typing import NDArray

from sanawm_env.camera.dsl import KeyState
from sanawm_env.viewer.moves import Parts, text


@dataclass(frozen=True, eq=False)
class Node:
    """A chunk of 24 frames, or a start image.

    id: its number; numbers are not used twice. parent: the node it was driven from, None for a start. branch: number of
    the line it lies on: a first child goes on with its parent's. scene: name of the start image. chunk: chunks since
    the start. seed: of the noise it was predicted with. c2w: (F, 4, 4) poses of its frames relative to the start's.
    thumbnail: (h, w, 3) uint8 of its last frame. parts: how it was driven. controller_state: of the keys held at its
    end.
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
    """All nodes by their numbers, and which one is the present. next_id, next_branch: not used yet."""

    nodes: Mapping[int, Node] = field(default_factory=dict)
    current: int = -1
    next_id: int = 0
    next_branch: int = 0

    def __getitem__(self, node: int) -> Node:
        """The node of that number; ValueError for one that is not there (any more)."""
        if node not in self.nodes:
            raise ValueError(f"There is no node {node}: it was deleted, or never was.")
        return self.nodes[node]

    def children(self, node: int) -> list[Node]:
        """The nodes that were driven from a node."""
        return [child for child in self.nodes.values() if child.parent == node]

    def line(self, node: int) -> list[Node]:
        """The nodes from the start to this one, in order."""
        line = [self[node]]
        while line[-1].parent is not None:
            line.append(self[line[-1].parent])
        return line[::-1]

    def below(self, node: int) -> list[Node]:
        """This node and everything that was driven from it."""
        found, waiting = [], [self[node]]
        while waiting:
            found.append(waiting.pop())
            waiting += self.children(found[-1].id)
        return found

    def add(self, node: Node) -> "Tree":
        """With a new node, which becomes the present."""
        return Tree(
            {**self.nodes, node.id: node}, node.id, max(self.next_id, node.id + 1),
            max(self.next_branch, node.branch + 1),
        )  # fmt: skip

    def change(self, node: Node) -> "Tree":
        """With another node in place of the one of its number."""
        return replace(self, nodes={**self.nodes, node.id: node})

    def without(self, gone: Iterable[int], current: int) -> "Tree":
        """Without some nodes, with another present."""
        gone = set(gone)
        return replace(self, nodes={i: n for i, n in self.nodes.items() if i not in gone}, current=current)
