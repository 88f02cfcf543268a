"""The operators' CPU form against the reference, and what the network leaves out where nobody reads it."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from sanawm_env.kernels import cpu, reference
from sanawm_env.kernels.dispatch import choose
from sanawm_env.kernels.inputs import Grid

from sanawm_env.camera.twist import hold
from sanawm_env.engines.sanawm.network.context import BlockConditions
from sanawm_env.engines.sanawm.network.model import SanaWM
from sanawm_env.engines.sanawm.network.shortcuts import fold_single_token, next_state
from sanawm_env.training.initial import initialise
from sanawm_env.world import tree
from sanawm_env.world.world import World
from tests.kernel_inputs import camera_rows, frames_of, random_operands
from tests.worlds import TINY

ROUNDING = {torch.float64: 1e-13, torch.float32: 1e-5, torch.bfloat16: 2e-2}
DTYPES = list(ROUNDING)


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


def difference(a, b) -> float:
    """The largest of two trees of tensors, relative to the largest value of each tensor."""
    pairs = list(zip(tree.leaves(a), tree.leaves(b), strict=True))
    assert all(x.shape == y.shape and x.dtype == y.dtype and x.isfinite().all() for x, y in pairs)
    return max(((x - y).abs().max() / y.abs().max()).item() if not torch.equal(x, y) else 0 for x, y in pairs)


def normal(*shape, dtype=torch.float32, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


# --- operators ---


@pytest.mark.parametrize("camera", [True, False], ids=["camera", "no camera"])
@pytest.mark.parametrize("state", [True, False], ids=["later chunk", "first chunk"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("d", [24, 32, 48, 64, 112])
def test_gdn(d, dtype, state, camera):
    for b, grid in ((1, Grid(3, 3, 5)), (2, Grid(4, 1, 7)), (3, Grid(1, 3, 3)), (1, Grid(5, 2, 2))):
        given = random_operands(b, 3, d, grid, dtype, seed=d, camera=camera, state=state)
        assert difference(cpu.gdn(*given, save=True), reference.gdn(*given, save=True)) < ROUNDING[dtype]


@pytest.mark.parametrize("taps", [1, 2, 5])
def test_gdn_with_another_number_of_taps(taps):
    for state in (True, False):
        given = random_operands(state=state, taps=taps)
        assert difference(cpu.gdn(*given, save=True), reference.gdn(*given, save=True)) < 1e-13


def test_gdn_chunk_by_chunk_equals_the_whole():
    starts, end = (0, 4, 7), 10
    inputs, state = random_operands(grid=Grid(end, 3, 3, starts))
    expected, reads = reference.gdn(inputs, state, save=True), []
    # several chunks at once are left to the reference
    assert difference(cpu.gdn(inputs, state, save=True), expected) == 0
    for a, b in zip(starts, (*starts[1:], end), strict=True):
        *read, state = cpu.gdn(frames_of(inputs, a, b), state, save=True)
        reads.append(read)
    whole = tuple(torch.cat(branch, dim=1) for branch in zip(*reads, strict=True))
    assert difference((*whole, state), expected) < 1e-13


def test_gdn_without_saving_is_the_same_read_out():
    given = random_operands()
    *reads, state = cpu.gdn(*given, save=False)
    assert state is None
    assert difference(tuple(reads), cpu.gdn(*given, save=True)[:2]) == 0


def test_a_batch_equals_its_slots():
    given = random_operands(b=3, dtype=torch.float32)
    together = cpu.gdn(*given, save=True)
    for i in range(3):
        # norms and taps have no batch axis
        alone = cpu.gdn(*tree.map_tensors(lambda t, i=i: t[i : i + 1] if len(t) == 3 else t, given), save=True)
        assert difference(alone, tree.map_tensors(lambda t, i=i: t[i : i + 1], together)) < 1e-5


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("at_once", [1, cpu.IMAGE])
def test_depthwise_glu(dtype, at_once, monkeypatch):
    monkeypatch.setattr(cpu, "IMAGE", at_once)
    for b, grid in ((1, Grid(3, 8, 12)), (3, Grid(4, 3, 5))):
        x, weight, bias = normal(b, grid.frames * grid.tokens, 96), normal(96, 1, 3, 3), normal(96)
        given = (t.to(dtype) for t in (x, weight, bias))
        x, *rest = given
        assert difference(cpu.depthwise_glu(x, *rest, grid), reference.depthwise_glu(x, *rest, grid)) < ROUNDING[dtype]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("at_once", [1000, cpu.SCORES])
@pytest.mark.parametrize("d", [24, 32, 48, 64, 112])
def test_attend(d, dtype, at_once, monkeypatch):
    monkeypatch.setattr(cpu, "SCORES", at_once)
    monkeypatch.setattr(cpu, "PARTS_FROM", 0)
    monkeypatch.setattr(cpu, "ONEDNN_FROM", 0)
    monkeypatch.setattr(cpu, "ONEDNN", True)  # where there is none, `linear` is torch's own
    if dtype == torch.float32 and not torch.backends.mkldnn.is_available():
        pytest.skip("torch was built without oneDNN")
    grid, n = Grid(3, 3, 5), 45
    for b, lengths in ((1, (60, 45)), (2, ())):
        # views, as in the network
        q, k, v = (normal(b, n, 3, d, dtype=dtype, seed=s).transpose(1, 2) for s in range(3))
        past = [(normal(b, 3, m, d, dtype=dtype, seed=m), normal(b, 3, m, d, dtype=dtype, seed=-m)) for m in lengths]
        pages = [*past, (k, v)]
        expected = reference.attend(q.double(), [(k.double(), v.double()) for k, v in pages], grid).to(dtype)
        assert difference(cpu.attend(q, pages, grid), expected) < ROUNDING[dtype]


def test_attend_of_the_last_frame_alone():
    grid = Grid(3, 8, 12)
    q, k, v = (normal(2, 3, 288, 64, seed=s) for s in range(3))
    pages = [(normal(2, 3, 384, 64, seed=3), normal(2, 3, 384, 64, seed=4)), (k, v)]
    last = cpu.attend(q[:, :, -96:], pages, Grid(1, 8, 12))
    assert difference(last, reference.attend(q, pages, grid)[:, :, -96:]) < 1e-5


def test_attend_over_several_chunks():
    grid, (q, k, v) = Grid(4, 3, 3, (0, 2)), (normal(1, 2, 36, 16, seed=s) for s in range(3))
    pages = [(k, v), (k, v)]
    assert difference(cpu.attend(q, pages, grid), reference.attend(q, pages, grid)) == 0


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("least", [0, cpu.ONEDNN_FROM])
def test_linear(dtype, least, monkeypatch):
    monkeypatch.setattr(cpu, "ONEDNN_FROM", least)
    for rows, inside, out in ((7, 24, 40), (1, 3, 5), (288, 192, 192)):
        x, weight, bias = (normal(*shape, dtype=dtype) for shape in ((2, rows, inside), (out, inside), (out,)))
        for w in (weight, weight.mT.contiguous().mT):
            for b in (bias, None):
                expected = torch.nn.functional.linear(x.double(), w.double(), None if b is None else b.double())
                assert difference(cpu.linear(x, w, b), expected.to(dtype)) < ROUNDING[dtype]
                assert difference(cpu.linear(x[:, 1:], w, b), cpu.linear(x, w, b)[:, 1:]) < ROUNDING[dtype]


def test_no_operator_writes_to_what_it_was_given():
    given = random_operands(dtype=torch.float32)
    grid = Grid(3, 8, 12)
    x, weight, bias = normal(2, 288, 96), normal(96, 1, 3, 3), normal(96)
    q, k, v = (normal(2, 3, 288, 64, seed=s) for s in range(3))
    everything = (*given, x, weight, bias, q, k, v)
    before = [t.clone() for t in tree.leaves(everything)]
    cpu.gdn(*given, save=True)
    cpu.gdn(given[0], None, save=True)
    cpu.depthwise_glu(x, weight, bias, grid)
    cpu.attend(q, [(k, v), (k, v)], grid)
    cpu.linear(x, normal(96, 96))
    assert all(torch.equal(a, b) for a, b in zip(before, tree.leaves(everything), strict=True))


def test_operators_know_shapes_without_values():
    def shapes(operators, move):
        grid, x, q = Grid(3, 8, 12), move(normal(1, 288, 96)), move(normal(1, 3, 288, 64))
        out = (
            operators.gdn(*tree.map_tensors(move, random_operands(dtype=torch.float32)), save=True),
            operators.depthwise_glu(x, move(normal(96, 1, 3, 3)), move(normal(96)), grid),
            operators.attend(q, [(q, q), (q, q)], grid),
        )
        return [(t.shape, t.dtype) for t in tree.leaves(out)]

    assert shapes(cpu, lambda t: t.to("meta")) == shapes(reference, lambda t: t)


# --- the network ---


def network(backend, **changes):
    model = SanaWM(replace(TINY.network, **changes), backend)
    initialise(model, torch.Generator().manual_seed(0))
    for parameter in model.parameters():  # nothing starts at zero, so that every part has its effect
        parameter.add_(0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    return model.eval()


def chunk(model, b=2, frames=3, first=1, tokens=1, mask=False, seed=0):
    """Context and latents of one chunk."""
    grid, generator, config = Grid(frames, 3, 4), torch.Generator().manual_seed(seed), model.config
    text = torch.randn(b, tokens, config.caption_channels, generator=generator)
    context = model.prepare(
        grid, torch.full((b,), first),
        text=text, text_mask=torch.ones(b, tokens) if mask else None,
        camera=camera_rows(b, grid, generator).float(),
        plucker=torch.randn(b, config.plucker_channels, *grid.shape, generator=generator),
    )  # fmt: skip
    return context, torch.randn(b, config.latent_channels, *grid.shape, generator=generator)


@pytest.mark.parametrize("depth", [2, 3], ids=["softmax last", "GDN last"])
def test_the_state_of_a_clean_pass_is_the_same_without_what_nobody_reads(depth):
    model = network("cpu", depth=depth)
    assert model.config.is_softmax(depth - 1) == (depth == 2)
    state, predictions = None, []
    for i, frames in enumerate((4, 3, 3)):
        context, latents = chunk(model, frames=frames, first=4 * i, seed=i)
        out, full = model(latents, torch.zeros(2), context, state, save=True)
        with model.final_layer.register_forward_hook(lambda *call: predictions.append(call)):
            state = next_state(model, latents, context, state)
        assert out.shape == latents.shape and not predictions
        assert difference(state, full) < 1e-6


def test_the_reference_leaves_nothing_out():
    model = network("reference")
    context, latents = chunk(model)
    assert all(conditions.text is not None for conditions in context.conditions)
    out, state = model(latents, torch.zeros(2), context, save=True)
    passes = []
    with model.register_forward_hook(lambda _, given, result: passes.append(result)):
        alone = next_state(model, latents, context, None)
    assert difference(tuple(passes), ((out, state),)) == 0 and difference(alone, state) == 0


@pytest.mark.parametrize("mask", [False, True])
def test_a_single_token_of_text_adds_the_same_to_every_x(mask):
    model = network("reference")
    context, _ = chunk(model, mask=mask)
    text = model.attention_y_norm(model.y_embedder(normal(2, 1, model.config.caption_channels)))
    layer, x, rays = model.blocks[0].cross_attn, normal(2, 36, 32), normal(2, 36, 32, seed=1)
    keys_values = layer.keys_values(text)
    read = layer(x, keys_values, context.text_bias, context.kernels)
    for added, expected in ((None, read), (rays, rays + read)):
        given = (BlockConditions(added, keys_values),)
        (folded,) = fold_single_token(model.blocks[:1], given, text, choose(x.device, x.dtype, "cpu"))
        assert folded.text is None and difference(folded.added.expand_as(x), expected) < 1e-6


@pytest.mark.parametrize("tokens", [1, 5])
@pytest.mark.parametrize("mask", [False, True])
def test_network(tokens, mask):
    fast, plain, states, outs = network("cpu"), network("reference"), [None, None], [None, None]
    for i, frames in enumerate((4, 3, 3)):
        for j, model in enumerate((fast, plain)):
            context, latents = chunk(model, frames=frames, first=4 * i, tokens=tokens, mask=mask, seed=i)
            outs[j], states[j] = model(latents, torch.full((2,), 300.0), context, states[j], save=True)
        assert difference((outs[0], states[0]), (outs[1], states[1])) < 1e-4


@pytest.mark.slow
def test_the_nano_world():
    """Each chunk from the same state: what a chunk begins with has 8 bits a pixel, which may round either way."""
    world = World.load("nano")
    model = world.engine.network
    before = model.backend
    state = world.begin([world.scene(start) for start in world.starts[::16]], seed=3)
    try:
        for _ in range(3):
            poses = np.stack([hold(slot.c2w, np.array([0.1, 0, 0.4, 0, 0.2, 0])) for slot in state.slots])
            made = {}
            for model.backend in ("cpu", "reference"):
                after, clip = world.advance(state, poses)
                made[model.backend] = (clip.latents, *(slot.memory for slot in after.slots))
            assert difference(made["cpu"], made["reference"]) < 1e-4
            state = after
    finally:
        model.backend = before


@pytest.mark.slow
def test_a_nano_world_in_bfloat16_keeps_its_states_in_float32():
    world = World.load("nano", precision="bf16")
    state = world.begin(world.scene(world.starts[0]))
    state, _ = world.advance(state, hold(state.slots[0].c2w, np.array([0.1, 0, 0.4, 0, 0.2, 0])))
    recurrent = state.slots[0].memory.network.blocks[0].mixer
    assert {t.dtype for t in (recurrent.kv, recurrent.z, recurrent.camera_kv)} == {torch.float32}
