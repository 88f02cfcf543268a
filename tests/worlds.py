"""Worlds for tests: the shipped one, and tiny ones with random weights that take milliseconds a chunk."""

import signal
import weakref
from contextlib import contextmanager
from functools import partial
from itertools import count
from pathlib import Path
from types import ModuleType
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sanawm_env.camera.twist import hold
from sanawm_env.engines.sanawm.codec.patch_pca import LATENT_STD, PatchPCACodec
from sanawm_env.engines.sanawm.config import SanaWorldConfig
from sanawm_env.engines.sanawm.network.config import SanaWMConfig
from sanawm_env.engines.sanawm.network.model import SanaWM
from sanawm_env.engines.sanawm.sampler import SamplerConfig
from sanawm_env.training.evaluate import evaluate
from sanawm_env.training.initial import initialise
from sanawm_env.world.world import World

TINY = SanaWorldConfig(
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
    sampler=SamplerConfig(timesteps=(1000,)),
    height=24,
    width=32,
    spatial_stride=8,
)


def write_tiny_world(folder: Path, seed: int = 0, config: SanaWorldConfig = TINY) -> Path:
    """A folder that `World.load` reads; other seeds give other weights."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(seed)
    network = SanaWM(config.network)
    initialise(network, generator)
    torch.nn.init.normal_(network.final_layer.linear.weight, std=0.5, generator=generator)
    save_file(network.state_dict(), folder / "network.safetensors")
    patches = torch.rand(64, 8 * 8 * 8 * 3, generator=generator)
    codec_of(patches, config.network.latent_channels).save(folder / "codec.safetensors")
    (folder / "config.json").write_text(config.to_json())
    return folder


def codec_of(patches: torch.Tensor, channels: int) -> PatchPCACodec:
    """What `PatchPCACodec.fit` gives, up to signs. Of few patches (N, P) the singular values take no time; it looks for
    the eigenvectors of all P values' covariance, which takes most of a second."""
    codec, mean = PatchPCACodec(channels), patches.mean(0)
    _, values, rows = torch.linalg.svd(patches - mean, full_matrices=False)
    deviations = values[:channels] / len(patches) ** 0.5
    codec.mean.copy_(mean)
    codec.components.copy_(rows[:channels])
    codec.scale.copy_(LATENT_STD * deviations**-0.5 / deviations.mean().sqrt())
    return codec


def with_starts(folder: Path) -> str:
    """The folder of a world, once three start images are in it."""
    (folder / "starts").mkdir()
    for i in range(3):
        Image.fromarray(picture(i)).save(folder / "starts" / f"{i}.png")
    return str(folder)


def evaluated_briefly(patch: pytest.MonkeyPatch) -> None:
    """Recipes evaluate their world on two chunks, not eight, which take longer than a toy's training: what is measured
    is the business of test_evaluate."""
    patch.setattr("sanawm_env.training.recipe.evaluate", partial(evaluate, chunks=2))


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


def alive(call) -> int:
    """The most bytes of new tensors that were alive after any of torch's operators while `call` ran, on whatever
    device. What an operator takes while it works and gives back is not in it: that is the business of the processor
    and its libraries."""
    with _Alive() as mode:
        call()
    return mode.most


class _Alive(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.now = self.most = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        given = {_storage(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)}
        out = func(*args, **kwargs)
        new = {_storage(leaf): leaf for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor)}
        for storage, tensor in new.items():
            if storage not in given:
                self.now += tensor.untyped_storage().nbytes()
                weakref.finalize(tensor.untyped_storage(), self._freed, tensor.untyped_storage().nbytes())
        self.most = max(self.most, self.now)
        return out

    def _freed(self, size):
        self.now -= size


def _storage(tensor) -> int:
    return tensor.untyped_storage()._cdata


@contextmanager
def terminated_at(module: ModuleType, name: str, call: int):
    """Within the block, the process is asked to stop when a function of a module is called for the `call`-th time."""
    function, calls = getattr(module, name), count(1)

    def called(*given):
        if next(calls) == call:
            signal.raise_signal(signal.SIGTERM)
        return function(*given)

    with mock.patch.object(module, name, called):
        yield
