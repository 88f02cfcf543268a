"""A session in a folder. It is written whole or not at all, and everything in it is checked when it is read.

session.json          all that is not numbers: schema, weights, nodes, and the SHA-256 of every other file
arrays.safetensors    poses, thumbnails and states of held keys, of all nodes
ID.safetensors        the episode after each node, as `Snapshot.save` writes it
"""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from sanawm_env.camera.dsl import KeyState
from sanawm_env.camera.trajectory import check_trajectory
from sanawm_env.simulation.episode import Snapshot, check_keys
from sanawm_env.system.files import brief, check_count, explaining, file_sha256, link, read_json
from sanawm_env.system.saving import replacing_folder, write_text
from sanawm_env.viewer.moves import Followed, Held, Pushed
from sanawm_env.viewer.store import Store
from sanawm_env.viewer.tree import Node, Tree
from sanawm_env.world import tree as plain
from sanawm_env.world.saved import MAX_SEED, MOST_CHUNKS
from sanawm_env.world.state import save_whole
from sanawm_env.world.world import World

SCHEMA = 2
HEADER, ARRAYS = "session.json", "arrays.safetensors"
MAX_HEADER_BYTES = 64 * 2**20
_TYPES = {t.__name__: t for t in (Node, Held, Pushed, Followed, KeyState)}


def save(folder: Path, tree: Tree, snapshots: Mapping[int, Snapshot | Path], world: World) -> Path:
    """Write a session; see `Session.save`.

    Args:
        folder: where to.
        tree: its nodes.
        snapshots: of each node, or the files they are in.
        world: of the session.

    Returns:
        The folder.

    Raises:
        FileExistsError: for a folder that holds something else.
        OSError: where it cannot be written.
    """
    if folder.exists() and not (folder / HEADER).is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} exists and holds no session: choose another name.")
    with replacing_folder(folder) as part:
        tensors: dict[str, Tensor] = {}
        header = {
            "schema": SCHEMA,
            "world": world.config.name,
            "weights_hash": world.weights_hash,
            "current": tree.current,
            "next_id": tree.next_id,
            "next_branch": tree.next_branch,
            "nodes": plain.dump(tuple(tree.nodes.values()), tensors, "nodes"),
        }
        save_whole(tensors, part / ARRAYS)
        for node in tree.nodes:
            snapshot, path = snapshots[node], _snapshot_file(part, node)
            snapshot.save(path) if isinstance(snapshot, Snapshot) else link(snapshot, path)
        header["sha256"] = {path.name: file_sha256(path) for path in sorted(part.iterdir())}
        write_text(part / HEADER, json.dumps(header) + "\n")
    return folder


def read(folder: Path, world: World) -> tuple[Tree, dict[int, Path]]:
    """Read a session; see `Session.open`.

    Args:
        folder: of the session.
        world: that it was made with.

    Returns:
        The tree, and the file of each snapshot.

    Raises:
        FileNotFoundError: where there is no session.
        ValueError: for another schema, other weights, or damaged files.
    """
    path = folder / HEADER
    if not path.is_file():
        raise FileNotFoundError(f"There is no session in {folder}: a session is a folder with a {HEADER}.")
    with explaining(f"{path} does not describe a session", (OSError, ValueError)):
        header = read_json(path, MAX_HEADER_BYTES)
    if header.get("schema") != SCHEMA:
        raise ValueError(
            f"{folder} has schema {brief(header.get('schema'))}, this version reads {SCHEMA}: save it again with this "
            "version."
        )
    if header.get("weights_hash") != world.weights_hash:
        theirs = f"{brief(header.get('world'))}, {str(header.get('weights_hash'))[:12]}"
        raise ValueError(
            f"{folder} was made by other weights ({theirs}) than this world's ({world.config.name}, "
            f"{world.weights_hash[:12]}): open it with the world it was made with."
        )
    with explaining(
        f"{folder} is not a complete session",
        (AttributeError, KeyError, OSError, SafetensorError, TypeError, ValueError),
    ):
        sums = dict(header["sha256"])
        for name, expected in sums.items():
            if Path(name).name != name or not (folder / name).is_file():
                raise ValueError(f"{name} is missing")
            if file_sha256(folder / name) != expected:
                raise ValueError(f"{name} is damaged or was cut off")
        if ARRAYS not in sums:
            raise ValueError(f"{ARRAYS} is missing")
        tree = _tree(header, load_file(folder / ARRAYS), world.config.chunk_frames)
        snapshots = {node: _snapshot_file(folder, node) for node in tree.nodes}
        if missing := [file.name for file in snapshots.values() if file.name not in sums]:
            raise ValueError(f"{missing[0]} is missing")
    return tree, snapshots


def adopt(snapshots: Mapping[int, Path], store: Store) -> Store:
    """Give snapshots in foreign files to a store, under file names of its own, so that the foreign files may be
    deleted."""
    for node, path in snapshots.items():
        own = _snapshot_file(store.folder, node)
        link(path, own)
        store.adopt(node, own)
    return store


def _tree(header: dict, tensors: Mapping[str, Tensor], frames: int) -> Tree:
    """The tree that a header describes. Raises ValueError, TypeError or KeyError where it is damaged."""
    nodes = plain.restore(header["nodes"], tensors, _TYPES)
    tree = Tree({node.id: node for node in nodes}, header["current"], header["next_id"], header["next_branch"])
    for node in nodes:
        if not isinstance(node, Node) or type(node.id) is not int or node.id >= tree.next_id:
            raise ValueError("its nodes are damaged")
        if node.parent is not None and not (node.parent in tree.nodes and node.parent < node.id):
            raise ValueError(f"node {node.id} has no parent")
        if node.branch >= tree.next_branch or node.c2w.shape != (1 if node.parent is None else frames, 4, 4):
            raise ValueError(f"node {node.id} does not fit this world")
        check_trajectory(node.c2w)
        check_count(f"chunk of node {node.id}", node.chunk, 0, MOST_CHUNKS)
        check_count(f"seed of node {node.id}", node.seed, 0, MAX_SEED)
        if node.controller_state is not None:
            check_keys(node.controller_state, f"controller_state of node {node.id}")
        if node.thumbnail.dtype != np.uint8 or node.thumbnail.ndim != 3 or node.thumbnail.shape[2] != 3:
            raise ValueError(f"node {node.id} has no thumbnail")
    tree[tree.current]
    return tree


def _snapshot_file(folder: Path, node: int) -> Path:
    return folder / f"{node}.safetensors"
