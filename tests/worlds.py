"""Worlds for tests: the shipped one, and tiny ones with random weights that take milliseconds a chunk."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch.profiler import ProfilerActivity, profile

from sanawm_env.camera.twist import hold
from sanawm_env.codec.patch_pca import PatchPCACodec
from sanawm_env.network.config import SanaWMConfig
from sanawm_env.network.model import SanaWM
from sanawm_env.training.initial import initialise
from sanawm_env.world.config import WorldConfig
from sanawm_env.world.sampler import SamplerConfig
from sanawm_env.world.world import World

TINY = WorldConfig(
    name="tiny",
    network=SanaWMConfig(
        latent_channels=6,
        hidden_size=32,
        depth=2,
        num_heads=2,
        head_dim=16,
        caption_channels=3,
        text_len=1,
        softmax_every_n=2,
        input_size=1,
    ),
    sampler=SamplerConfig(timesteps=(1000, 600)),
    height=24,
    width=32,
    spatial_stride=8,
)


def write_tiny_world(folder: Path, seed: int = 0, config: WorldConfig = TINY) -> Path:
    """A folder that `World.load` reads; other seeds give other weights."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(seed)
    network = SanaWM(config.network)
    initialise(network, generator)
    torch.nn.init.normal_(network.final_layer.linear.weight, std=0.5, generator=generator)
    save_file(network.state_dict(), folder / "network.safetensors")
    patches = torch.rand(64, 8 * 8 * 8 * 3, generator=generator)
    PatchPCACodec.fit(patches, config.network.latent_channels).save(folder / "codec.safetensors")
    (folder / "config.json").write_text(config.to_json())
    return folder


def with_starts(folder: Path) -> str:
    """The folder of a world, once three start images are in it."""
    (folder / "starts").mkdir()
    for i in range(3):
        Image.fromarray(picture(i)).save(folder / "starts" / f"{i}.png")
    return str(folder)


def picture(seed: int = 0) -> np.ndarray:
    """A start image (40, 50, 3) uint8."""
    return np.random.default_rng(seed).integers(0, 256, (40, 50, 3), dtype=np.uint8)


def drive(world: World, state, *twists):
    """Hold one twist per chunk in every slot: the last state and the clips."""
    clips = []
    for twist in twists:
        poses = np.stack([hold(slot.c2w, np.asarray(twist, float)) for slot in state.slots])
        state, clip = world.advance(state, poses)
        clips.append(clip)
    return state, clips


def allocated(call) -> int:
    """The most bytes that torch's allocator had handed out on the CPU, by its own account, while `call` ran."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    return max(np.cumsum([event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]))
