"""Checks of a saved state: tensors of the shapes and dtypes that this world makes. Files are checked when they are
read, types and ranges of single values by their annotations (`tree.restore`)."""

import re
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from sanawm_env.camera.intrinsics import fit_intrinsics
from sanawm_env.camera.trajectory import check_trajectory
from sanawm_env.system.files import brief, check_count, check_number, explaining
from sanawm_env.world import tree

if TYPE_CHECKING:
    from sanawm_env.world.state import Scene, Slot
    from sanawm_env.world.world import Clip, World

MOST_METRES = 1e6  # from the start, where float32 still tells decimetres apart
MOST_CHUNKS = 2**53
MAX_SEED = 2**63 - 1
MAX_BATCH = 4096
FLOATS = (torch.float32, torch.bfloat16, torch.float16)


def check_slot(slot: "Slot", world: "World", path: str) -> None:
    """Check a saved episode.

    Args:
        slot: the episode.
        world: that it is read for.
        path: its name in the error.

    Raises:
        ValueError: which says what part does not fit this world.
    """
    config = world.config
    _check_scene(slot.scene, world, f"{path}.scene")
    check_count(f"{path}.start", slot.start, max(0, slot.chunk - config.longest_segment), slot.chunk)
    for name in ("c2w", "origin"):
        check_poses(getattr(slot, name), (), f"{path}.{name}")
    tree.check_tensor(slot.frame, (config.height, config.width, 3), (torch.uint8,), f"{path}.frame")
    _check_latents(slot.latents, world, slot.first, f"{path}.latents")
    conditions, memory = world.engine.outline(slot.scene, slot.chunk - slot.start)
    tree.check_layout(slot.scene.conditions, conditions, f"{path}.scene.conditions")
    try:
        tree.check_layout(slot.memory, memory, f"{path}.memory")
    except ValueError:
        if memory is None or memory is ...:
            raise
        # saved without what can be made again
        tree.check_layout(slot.memory, world.engine.without_caches(memory), f"{path}.memory")


def check_clip(clip: "Clip", world: "World", path: str) -> None:
    """Raise ValueError, which names `path`, unless it is a saved clip of one episode of this world."""
    config = world.config
    n = config.chunk_frames
    tree.check_tensor(clip.frames, (1, n, config.height, config.width, 3), (torch.uint8,), f"{path}.frames")
    _check_latents(clip.latents, world, False, f"{path}.latents")
    check_poses(clip.c2w, (1, n), f"{path}.c2w")
    if len(clip.batch_rows) != 1:
        raise ValueError(f"{path}.batch_rows must be of one episode, got {brief(clip.batch_rows)}")
    row, size = clip.batch_rows[0]
    check_count(f"{path}.batch_rows.size", size, 1, MAX_BATCH)
    check_count(f"{path}.batch_rows.row", row, 0, size - 1)


def check_poses(c2w: Any, shape: tuple[int, ...], path: str) -> None:
    """Raise ValueError, which names `path`, unless it is a float64 array of rigid poses (*shape, 4, 4) within 1000
    km."""
    check_array(c2w, (*shape, 4, 4), np.float64, path)
    with explaining(f"{path} must hold rigid poses"):
        check_trajectory(c2w.reshape(-1, 4, 4))
    if np.abs(c2w[..., :3, 3]).max() > MOST_METRES:
        raise ValueError(f"{path} must lie within {MOST_METRES:g} m of the start")


def check_array(array: Any, shape: tuple[int, ...], dtype: type, path: str) -> None:
    """Raise ValueError, which names `path`, unless it is an array of that shape and dtype."""
    if not isinstance(array, np.ndarray) or array.shape != shape or array.dtype != dtype:
        got = f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else brief(array)
        raise ValueError(f"{path} must be an array of {np.dtype(dtype)} {shape}, got {got}")


def _check_scene(scene: "Scene", world: "World", path: str) -> None:
    config = world.config
    if scene.weights_hash != world.weights_hash:
        raise ValueError(f"{path} was encoded by other weights")
    if not re.fullmatch("[0-9a-f]{64}", scene.key):
        raise ValueError(f"{path}.key must be 64 hexadecimal digits, got {brief(scene.key)}")
    check_array(scene.image, (config.height, config.width, 3), np.uint8, f"{path}.image")
    check_array(scene.intrinsics, (4,), np.float64, f"{path}.intrinsics")
    for value in scene.intrinsics:
        check_number(f"{path}.intrinsics", float(value), -MOST_METRES, MOST_METRES)
    fit_intrinsics(scene.intrinsics, 1)
    if scene.anchor is not None:
        if not config.knows(scene.anchor.place):
            raise ValueError(
                f"{path}.anchor is of the place {brief(scene.anchor.place)}, which this world does not know"
            )
        check_poses(scene.anchor.c2w, (), f"{path}.anchor")


def _check_latents(latents: Any, world: "World", first: bool, path: str) -> None:
    shape = world.config.latent_shape
    if shape is not None:
        channels, frames, *size = shape
        tree.check_tensor(latents, (1, channels, 1 if first else frames, *size), FLOATS, path)
    elif latents is not None:
        raise ValueError(f"{path} must be None, got {brief(latents)}")
