"""Clips that a GPU would make, made by the same code on the CPU."""

import numpy as np
import pytest
import torch

from sanawm_env.engines.rooms.raycast import intrinsics
from sanawm_env.engines.rooms.raycast import render as rendered
from sanawm_env.engines.sanawm.codec.patch_pca import PatchPCACodec
from sanawm_env.training import torch_render
from sanawm_env.training.clips import ClipsConfig, generate, load
from sanawm_env.training.nano import NANO_SMALL
from sanawm_env.training.truth import draw_walk
from tests.golden_files import ROOT

CPU = torch.device("cpu")


@pytest.mark.parametrize("known", [True, False])
def test_torch_shows_what_the_renderer_shows(known, monkeypatch):
    monkeypatch.setattr(torch_render, "RAYS", 3 * 64 * 96 * 4)  # a few frames at a time
    walk = draw_walk(NANO_SMALL, 3, 1, 9, known=known, role="validation")
    frames, depth = rendered(walk.place, walk.c2w, intrinsics(), 64, 96)
    shown = torch_render.render(walk.place, walk.c2w, intrinsics(), 64, 96, 2, CPU).numpy()
    assert shown.dtype == np.uint8 and (shown != frames).mean() < 1e-3
    assert np.abs(torch_render.depth(walk.place, walk.c2w, intrinsics(), 64, 96, CPU).numpy() - depth).max() < 1e-3


@pytest.mark.slow
def test_clips_made_on_a_device_are_the_clips_of_the_processor(tmp_path):
    """ "cpu:0" is a device like any other here: workers walk, it renders and encodes."""
    codec = PatchPCACodec.load(ROOT / "sanawm_env" / "assets" / "nano" / "codec.safetensors")
    config = ClipsConfig(clips=3, chunks=1, shard_clips=2, seed=4, pictures=True, unknown_fraction=0.5)
    generate(tmp_path / "numpy", codec, config)
    generate(tmp_path / "torch", codec, config, workers=2, device="cpu:0")
    one, two = load(tmp_path / "numpy"), load(tmp_path / "torch")
    assert one.keys() == two.keys() and torch.equal(one["c2w"], two["c2w"]) and torch.equal(one["place"], two["place"])
    for name in ("latents", "images", "pictures", "depth"):
        torch.testing.assert_close(one[name].float(), two[name].float(), atol=0.5, rtol=0.01)
