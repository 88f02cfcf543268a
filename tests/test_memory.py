"""Predictions of memory from shapes, against the tensors that are alive while the same work is done."""

import json
import shutil
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch

from sanawm_env.engines.sanawm import memory
from sanawm_env.engines.sanawm.engine import SanaLoadOptions
from sanawm_env.engines.sanawm.fetch import world_config
from sanawm_env.engines.sanawm.memory import predict_memory
from sanawm_env.engines.sanawm.network.config import SanaWMConfig
from sanawm_env.engines.sanawm.network.precision import weight_bytes
from sanawm_env.engines.sanawm.official import OFFICIAL
from sanawm_env.engines.sanawm.offload import work_blockwise
from sanawm_env.engines.sanawm.refiner.runner import Refiner
from sanawm_env.world import tree
from sanawm_env.world.folders import world_folder
from sanawm_env.world.world import World
from tests.standin_hub import fetched
from tests.worlds import alive, picture

pytestmark = pytest.mark.slow  # worlds are fetched from a hub that is written first

STILL = np.broadcast_to(np.eye(4), (24, 4, 4))


@pytest.fixture(scope="module", autouse=True)
def home(tmp_path_factory):
    worlds = {"streaming": ("dit", "codec", "text", "refiner"), "chunk-causal": ("dit", "codec", "text")}
    with fetched(tmp_path_factory.mktemp("home"), worlds) as home, pytest.MonkeyPatch.context() as patch:
        # what convolutions take besides is each processor's business: not measured, so not predicted here either
        patch.setattr(memory, "convolution_workspace", lambda *_: 0)
        memory.forget()
        yield home
    memory.forget()


def measured(world, chunks, batch=1):
    """(most alive besides weights, what stays) while start images are encoded and episodes run."""
    pictures = [world.starts[i] if world.starts else picture(i) for i in range(batch)]
    if world.engine.prompts is not None:
        world.engine.encode_prompt("", None)  # into the cache
    stays = 0

    def run():
        nonlocal stays
        state = world.begin([world.scene(p) for p in pictures])
        for _ in range(chunks):
            state, clip = world.advance(state, np.broadcast_to(STILL, (batch, *STILL.shape)))
        stays = state.nbytes + clip.frames.nbytes + clip.latents.nbytes

    return alive(run), stays


def predicted(world, batch=1, **options):
    folder = world_folder(world.config.name)
    return predict_memory(world.config, folder, SanaLoadOptions(**options), batch)


@pytest.mark.parametrize(("name", "batch"), [("nano", 1), ("streaming", 1), ("streaming", 3)])
def test_a_prediction_is_what_is_alive_while_a_world_works(name, batch):
    world = World.load(name, text_encoder=True)
    most, stays = measured(world, 5, batch)
    prediction = predicted(world, batch)
    assert max(prediction.working.values()) == pytest.approx(most, rel=0.005)
    assert prediction.between == pytest.approx(stays, rel=0.02)
    assert prediction.peak == sum(prediction.weights.values()) + max(prediction.working.values())


def test_a_refiner_counts_with_its_window():
    world = World.load("streaming", text_encoder=True, refiner=True)
    most, stays = measured(world, 6)
    prediction = predicted(world, refiner=True)
    assert max(prediction.working.values()) == pytest.approx(most, rel=0.005)
    assert prediction.between == pytest.approx(stays, rel=0.02)
    transformer = world.engine.refiner.transformer
    assert prediction.weights["refiner"] == sum(t.nbytes for t in (*transformer.parameters(), *transformer.buffers()))


def test_without_a_limit_of_the_window_the_last_chunk_is_predicted(home):
    """The teacher with few steps and a near horizon."""
    folder = home / "near"
    shutil.copytree(world_folder("chunk-causal"), folder)
    config = json.loads((folder / "config.json").read_text())
    config["horizon_chunks"], config["sampler"]["timesteps"] = 9, [1000, 500]
    (folder / "config.json").write_text(json.dumps(config))
    world = World.load(folder, text_encoder=True)
    most, stays = measured(world, 9)
    prediction = predict_memory(world.config, folder)
    assert max(prediction.working.values()) == pytest.approx(most, rel=0.005)
    assert prediction.between == pytest.approx(stays, rel=0.05)  # the negative prompt's features stay too
    assert predict_memory(replace(world.config, horizon_chunks=20), folder).peak > prediction.peak


@pytest.mark.parametrize("precision", ["bf16", "fp8", "nvfp4"])
def test_weights_in_fewer_bits(precision):
    """At a size at which the scales' padding does not rule."""
    from sanawm_env.engines.sanawm.network.model import SanaWM
    from sanawm_env.engines.sanawm.network.precision import quantize

    pytest.importorskip("torchao")
    model = SanaWM(SanaWMConfig(latent_channels=4, hidden_size=192, depth=4, num_heads=4, head_dim=48, text_len=4))
    expected = weight_bytes(model, precision)
    quantize(model, precision)
    tensors = [*model.parameters(), *model.buffers()]
    stored = [getattr(t, n) for t in tensors if hasattr(t, "__tensor_flatten__") for n in t.__tensor_flatten__()[0]]
    plain = [t for t in tensors if not hasattr(t, "__tensor_flatten__")]
    assert expected == pytest.approx(sum(t.nbytes for t in (*stored, *plain)), rel=0.01)


def test_offloaded_parts_count_while_they_work():
    world = World.load("streaming", text_encoder=True)
    plain, offloaded = (predicted(world, refiner=True, offload=offload) for offload in (False, True))
    weights, working = offloaded.weights, offloaded.working
    always, at_work = offloaded.waiting["refiner"]
    assert offloaded.peak == max(
        weights["network"] + always + working["network"],
        weights["network"] + at_work + working["refiner"],
        weights["network"] + always + weights["codec"] + working["codec"],
    )
    assert always < at_work < weights["refiner"]
    assert offloaded.peak < plain.peak
    alone, working = predicted(world, refiner=True, offload="codec"), plain.working
    assert alone.peak == weights["network"] + weights["refiner"] + max(
        working["network"], working["refiner"], weights["codec"] + working["codec"]
    )


def test_what_of_a_refiner_is_on_the_device_while_its_blocks_wait_is_counted():
    """On the meta device, where the weights that are there are those that would be on a GPU."""
    world = World.load("streaming", text_encoder=True)
    always, at_work = predicted(world, refiner=True, offload="refiner").waiting["refiner"]
    transformer = Refiner.load(world_folder("streaming") / "refiner").transformer
    seen = []

    def there(*_):
        tensors = (*transformer.parameters(), *transformer.buffers())
        seen.append(sum(t.nbytes for t in {id(t): t for t in tensors if t.is_meta}.values()))

    work_blockwise(transformer, torch.device("meta"))
    there()
    for block in transformer.transformer_blocks:
        block.norm1.register_forward_pre_hook(there)
    refiner, meta = Refiner(transformer), {"device": "meta", "dtype": torch.bfloat16}
    refiner.start(torch.empty(1, 4, 1, 2, 3, **meta), torch.empty(1, 8, 32, **meta), torch.ones(1, 8, device="meta"))
    assert seen[0] == always
    assert seen[1:] == [at_work] * len(transformer.transformer_blocks)


def test_keys_and_values_that_wait_are_not_on_the_device():
    world = World.load("streaming", text_encoder=True, refiner=True)
    state, sizes = world.begin(world.scene(picture())), []
    for _ in range(5):
        state, _ = world.advance(state, STILL)
        refined = state.slots[0].memory.refiner
        sizes.append(tree.nbytes((refined.sink, refined.history)))
    plain, away = (predicted(world, refiner=True, offload=offload) for offload in ((), "refiner"))
    keys = plain.between - away.between
    assert keys in sizes  # after as many chunks as are rehearsed until nothing seems to grow
    # those of the state before and of the one that is made, but for a layer's that work
    layers = len(refined.sink)
    assert 2 * keys > plain.working["codec"] - away.working["codec"] >= keys
    assert plain.working["refiner"] - away.working["refiner"] >= keys * (1 - 1 / layers)


def test_encoders_count_where_prompts_are_encoded_on_the_spot():
    world = World.load("streaming", text_encoder=True)
    plain = predicted(world, refiner=True)
    here, away = (predicted(world, refiner=True, text_encoder=True, offload=o) for o in ((), "text"))
    assert "text" not in plain.weights and here.weights["text"] == away.weights["text"] > 0
    assert away.waiting["text"][1] < here.waiting["text"][1] == here.weights["text"]
    config = world_config("streaming", SanaWMConfig(), 704, 1280)
    official = predict_memory(config, options=SanaLoadOptions(text_encoder=True))
    assert official.weights["text"] == pytest.approx(OFFICIAL["streaming"]["text"].gigabytes * 1e9, rel=0.02)
    # with the connectors; the encoder alone lies on the hub in 24 GB
    assert memory.weight_bytes(memory._refiner_encoder(None)["encoder"], None) == pytest.approx(24e9, rel=0.03)


def test_the_official_sizes_add_up():
    """dit.md 14: 1,015,840,000 bytes of state, 5.32 GB of weights; codec_text_refiner.md a.5, d.2."""
    config = world_config("streaming", SanaWMConfig(), 704, 1280)
    prediction = predict_memory(config)
    clip, tails = 24 * 704 * 1280 * 3, 2 * 297_594_880
    assert prediction.between == pytest.approx(1_015_840_000 + tails + clip, rel=0.01)
    assert prediction.weights["network"] == pytest.approx(5.32e9, rel=0.01)
    assert prediction.weights["codec"] == pytest.approx(2.44e9, rel=0.01)
    for precision, size in (("fp8", 3.52e9), ("nvfp4", 2.73e9)):
        fewer = predict_memory(config, options=SanaLoadOptions(precision=precision))
        assert fewer.weights["network"] == pytest.approx(size, rel=0.01)
        assert fewer.peak - prediction.peak == fewer.weights["network"] - prediction.weights["network"]


def test_counting_leaves_nothing_behind():
    """Meta tensors outside are not touched, attention is as it was, and what a world holds is real."""
    world, attention = World.load("nano"), torch.nn.functional.scaled_dot_product_attention
    memory.forget()
    predicted(world)
    assert torch.nn.functional.scaled_dot_product_attention is attention
    state = world.begin(world.scene(world.starts[0]))
    assert all(not t.is_meta for t in tree.leaves(state.slots))
    assert torch.empty(3, device="meta").nbytes == 12


def test_remembered_shapes_are_those_that_torch_works_out(monkeypatch):
    """A rehearsal in which nothing is remembered, every operator and every block run anew, gives the same numbers."""
    config = World.load("nano").config
    network, sampler = replace(config.network, depth=2), replace(config.sampler, timesteps=(1000.0,))
    shallow = replace(config, network=network, sampler=sampler)

    def both():
        refined = predicted(World.load("streaming", refiner=True), refiner=True)
        return predict_memory(shallow, world_folder("nano")), refined

    remembered = both()
    memory.forget()
    monkeypatch.setattr(memory.LiveBytes, "_run", lambda self, func, args, kwargs: func(*args, **kwargs))
    monkeypatch.setattr(memory.LiveBytes, "repeating", lambda self, blocks: nullcontext())
    try:
        worked_out = both()
    finally:
        memory.forget()
    assert remembered == worked_out
