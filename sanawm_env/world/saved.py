"""What a saved moment must be to go on in a world: numbers in their ranges, tensors of the shapes and dtypes that this
world leaves itself. Files are held to it when they are read, and nothing else is."""

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from sanawm_env.camera.intrinsics import fit_intrinsics
from sanawm_env.camera.trajectory import check_trajectory
from sanawm_env.world import tree
from sanawm_env.world.files import brief, check_count, check_number, reason

if TYPE_CHECKING:
    from sanawm_env.world.state import Scene, Slot
    from sanawm_env.world.world import Clip, World

MOST_METRES = 1e6  # from the start, where float32 still tells decimetres apart
MOST_CHUNKS = 2**53
MAX_SEED = 2**63 - 1
MAX_BATCH = 4096
FLOATS = (torch.float32, torch.bfloat16, torch.float16)


def check_slot(slot: "Slot", world: "World", path: str) -> None:
    """ValueError that says which part of a saved episode, from `path` on, does not fit this world."""
    config = world.config
    _check_scene(slot.scene, world, f"{path}.scene")
    check_count(f"{path}.seed", slot.seed, 0, MAX_SEED)
    check_count(f"{path}.chunk", slot.chunk, 0, MOST_CHUNKS)
    check_count(f"{path}.start", slot.start, max(0, slot.chunk - world.longest_segment), slot.chunk)
    for name in ("c2w", "origin"):
        check_poses(getattr(slot, name), (), f"{path}.{name}")
    tree.check_tensor(slot.frame, (config.height, config.width, 3), (torch.uint8,), f"{path}.frame")
    frames = 1 if slot.first else config.latents_per_chunk
    tree.check_tensor(slot.latents, _latents(world, frames), FLOATS, f"{path}.latents")
    if slot.first:
        memory = display = None
    else:
        memory, display = world.engine.outline(slot.scene, slot.chunk - slot.start)
        codec = getattr(slot.display, "codec", None)
        if getattr(display, "codec", None) is not None and codec is not None and codec.tails is None:
            display = replace(display, codec=replace(display.codec, tails=None))  # to be made again
    tree.check_layout(slot.memory, memory, f"{path}.memory")
    tree.check_layout(slot.display, display, f"{path}.display")


def check_clip(clip: "Clip", world: "World", path: str) -> None:
    """ValueError unless it is a saved clip of one episode of this world."""
    config = world.config
    n = config.chunk_frames
    tree.check_tensor(clip.frames, (1, n, config.height, config.width, 3), (torch.uint8,), f"{path}.frames")
    tree.check_tensor(clip.latents, _latents(world, config.latents_per_chunk), FLOATS, f"{path}.latents")
    check_poses(clip.c2w, (1, n), f"{path}.c2w")
    if len(clip.lanes) != 1:
        raise ValueError(f"{path}.lanes must be of one episode, got {brief(clip.lanes)}")
    row, size = clip.lanes[0]
    check_count(f"{path}.lanes.size", size, 1, MAX_BATCH)
    check_count(f"{path}.lanes.row", row, 0, size - 1)


def check_poses(c2w: Any, shape: tuple[int, ...], path: str) -> None:
    """ValueError unless it is a float64 array of rigid poses (*shape, 4, 4), none of them out of the world."""
    check_array(c2w, (*shape, 4, 4), np.float64, path)
    try:
        check_trajectory(c2w.reshape(-1, 4, 4))
    except ValueError as error:
        raise ValueError(f"{path} is no camera: {reason(error)}") from None
    if np.abs(c2w[..., :3, 3]).max() > MOST_METRES:
        raise ValueError(f"{path} lies over {MOST_METRES:g} m away")


def check_array(array: Any, shape: tuple[int, ...], dtype: type, path: str) -> None:
    """ValueError unless it is an array of that shape and dtype."""
    if not isinstance(array, np.ndarray) or array.shape != shape or array.dtype != dtype:
        got = f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else brief(array)
        raise ValueError(f"{path} must be an array of {np.dtype(dtype)} {shape}, got {got}")


def _check_scene(scene: "Scene", world: "World", path: str) -> None:
    config = world.config
    if scene.weights_hash != world.weights_hash:
        raise ValueError(f"{path} was encoded by other weights")
    if not re.fullmatch("[0-9a-f]{64}", scene.key):
        raise ValueError(f"{path}.key is {brief(scene.key)}")
    check_array(scene.image, (config.height, config.width, 3), np.uint8, f"{path}.image")
    check_array(scene.intrinsics, (4,), np.float64, f"{path}.intrinsics")
    for value in scene.intrinsics:
        check_number(f"{path}.intrinsics", float(value), -MOST_METRES, MOST_METRES)
    fit_intrinsics(scene.intrinsics, 1)
    tree.check_tensor(scene.image_latent, _latents(world, 1), FLOATS, f"{path}.image_latent")
    length = config.network.text_len
    tree.check_tensor(scene.text, (1, length, config.network.caption_channels), FLOATS, f"{path}.text")
    prompts = getattr(world.engine, "prompts", scene.text_mask)  # engines of others know for themselves
    if (scene.text_mask is None) != (prompts is None):
        raise ValueError(f"{path}.text_mask is {'missing' if scene.text_mask is None else 'for worlds with text'}")
    if scene.text_mask is not None:
        tree.check_tensor(scene.text_mask, (1, length), (torch.int64,), f"{path}.text_mask")
    if (scene.refiner_text is None) != (not world.options.refiner):
        raise ValueError(f"{path}.refiner_text does not go with a world loaded with refiner={world.options.refiner}")
    if scene.refiner_text is not None:
        text, mask = scene.refiner_text
        if text.ndim != 3 or text.shape[0] != 1:
            raise ValueError(f"{path}.refiner_text must be (1, L, C), got {tuple(text.shape)}")
        tree.check_tensor(text, tuple(text.shape), FLOATS, f"{path}.refiner_text")
        tree.check_tensor(mask, tuple(text.shape[:2]), (torch.int64,), f"{path}.refiner_text mask")
    if scene.anchor is not None:
        if scene.anchor.place not in config.places:
            raise ValueError(f"{path}.anchor is of the place {brief(scene.anchor.place)}, which is not known here")
        check_poses(scene.anchor.c2w, (), f"{path}.anchor")


def _latents(world: "World", frames: int) -> tuple[int, ...]:
    config = world.config
    return 1, config.network.latent_channels, frames, config.latent_height, config.latent_width
