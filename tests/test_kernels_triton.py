"""The Triton kernels against the reference in float64: on the GPU where there is one, else in the interpreter."""

import json
import os
import subprocess
import sys
from dataclasses import fields, is_dataclass, replace

import pytest
import torch
from sanawm_env.kernels import reference
from sanawm_env.kernels.dispatch import choose
from sanawm_env.kernels.inputs import GDNState, Grid
from sanawm_env.kernels.slots import Slots
from torch import Tensor

from sanawm_env.world import tree
from tests.golden_files import ROOT
from tests.interpreter import patched_once  # noqa: F401
from tests.kernel_inputs import frames_of, random_operands

pytest.importorskip("triton", reason="no triton here: its kernels are not tested")
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
needs_gpu = pytest.mark.skipif(DEVICE.type != "cuda", reason="NOT RUN: needs a CUDA device")


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


@pytest.fixture
def ops():
    return choose(DEVICE, torch.float32, "triton")


def double(t):
    return t.to(torch.complex128) if t.is_complex() else t.double() if t.is_floating_point() else t


def on_device(operands):
    return tree.map_tensors(lambda t: t.to(DEVICE), operands)


def exact(inputs, state):
    """The reference's results in float64."""
    return reference.gdn(*tree.map_tensors(double, (inputs, state)), save=True)


def error(got, expected):
    """Largest difference relative to the largest value, over all tensors of two trees."""
    if isinstance(expected, Tensor):
        assert got.shape == expected.shape
        got, expected = double(got), double(expected)
        return ((got - expected).abs().max() / expected.abs().max()).item()
    if isinstance(expected, tuple):
        return max(error(g, e) for g, e in zip(got, expected, strict=True))
    if is_dataclass(expected):
        return max(error(getattr(got, f.name), getattr(expected, f.name)) for f in fields(expected))
    assert got is None and expected is None
    return 0.0


CASES = [  # small: the interpreter takes milliseconds for every program
    # batch, heads, D, grid, camera, state
    (1, 2, 24, Grid(3, 3, 5), True, False),
    (2, 1, 32, Grid(3, 4, 6), True, True),
    (1, 1, 48, Grid(4, 5, 7), True, True),
    (1, 1, 64, Grid(3, 8, 12), False, True),
    (1, 1, 64, Grid(4, 8, 12), True, False),
    (1, 1, 112, Grid(3, 5, 7), True, True),
    (1, 1, 16, Grid(1, 4, 4), True, True),
    (1, 1, 16, Grid(1, 17, 17), True, True),  # enough tokens for sums in two halves
]


@pytest.mark.slow
@pytest.mark.parametrize("batch, heads, size, grid, camera, state", CASES)
def test_gdn_equals_the_reference(ops, batch, heads, size, grid, camera, state):
    operands = on_device(random_operands(batch, heads, size, grid, torch.float32, 1, camera, state))
    assert error(ops.gdn(*operands, save=True), exact(*operands)) < 2e-6


@pytest.mark.slow
def test_gdn_of_a_longer_or_shorter_key_convolution(ops):
    for taps in (2, 6):
        operands = on_device(random_operands(1, 1, 16, Grid(3, 3, 4), torch.float32, taps=taps))
        assert error(ops.gdn(*operands, save=True), exact(*operands)) < 2e-6


@pytest.mark.slow
def test_gdn_of_bfloat16_projections(ops):
    operands = on_device(random_operands(1, 2, 32, Grid(3, 4, 6), torch.bfloat16))
    got, expected = ops.gdn(*operands, save=True), reference.gdn(*operands, save=True)
    assert got[0].dtype == torch.bfloat16
    assert got[2].kv.dtype == torch.float32
    assert error(got, expected) < 3e-2
    assert torch.equal(got[2].key_tail, expected[2].key_tail)


@pytest.mark.slow
def test_chunks_that_hand_over_the_state_equal_the_whole(ops):
    inputs, _ = on_device(random_operands(1, 2, 24, Grid(7, 3, 4, (0, 4)), torch.float32, state=False))
    whole = exact(inputs, None)
    first = ops.gdn(frames_of(inputs, 0, 4), None, save=True)
    second = ops.gdn(frames_of(inputs, 4, 7), first[2], save=True)
    got = tuple(torch.cat((a, b), dim=1) for a, b in zip(first[:2], second[:2], strict=True))
    assert error((*got, second[2]), whole) < 2e-6


def test_calls_of_several_chunks_go_by_the_reference(ops):
    operands = on_device(random_operands(1, 1, 16, Grid(5, 2, 3, (0, 2)), torch.float32))
    assert error(ops.gdn(*operands, save=True), exact(*operands)) < 1e-5


@pytest.mark.slow
def test_a_row_of_a_batch_is_bit_for_bit_what_it_is_alone(ops):
    operands = on_device(random_operands(3, 1, 32, Grid(2, 3, 5), torch.float32))
    together = ops.gdn(*operands, save=True)
    alone = ops.gdn(*tree.map_tensors(lambda t: t[2:3] if len(t) == 3 else t, operands), save=True)
    for a, b in zip(together[:2], alone[:2], strict=True):
        assert torch.equal(a[2:3], b)
    for f in fields(GDNState):
        assert torch.equal(getattr(together[2], f.name)[2:3], getattr(alone[2], f.name)), f.name


def pool_of(state, slots):
    """A pool with other numbers in every slot, and the batch's states in the first ones."""

    def pool(t):
        filled = torch.randn(slots, *t.shape[1:], device=t.device).to(t.dtype)
        filled[: len(t)] = t
        return filled

    return tree.map_tensors(pool, state)


@pytest.mark.slow
def test_states_are_read_and_written_by_slot_number(ops):
    from sanawm_env.kernels.triton_gdn import gdn_slots

    inputs, state = on_device(random_operands(3, 2, 16, Grid(2, 2, 3), torch.float32))
    shuffled = tree.map_tensors(lambda t: t[[1, 0, 2]], state)  # row 0 goes on from the state of row 1, and so on
    expected = exact(inputs, shuffled)
    pool = pool_of(state, 8)
    before = tree.map_tensors(torch.clone, pool)
    slots = Slots(src=torch.tensor([1, 0, 2], device=DEVICE), dst=torch.tensor([6, 4, -1], device=DEVICE))
    reads = gdn_slots(inputs, pool, pool, slots)
    assert error((reads[0], reads[1]), expected[:2]) < 2e-6
    for f in fields(GDNState):
        now, old, new = (getattr(x, f.name) for x in (pool, before, expected[2]))
        assert error(now[[6, 4]], new[:2]) < 2e-6, f.name
        untouched = [0, 1, 2, 3, 5, 7]
        assert torch.equal(now[untouched], old[untouched]), f.name


@pytest.mark.slow
def test_a_row_without_a_slot_starts_from_nothing(ops):
    from sanawm_env.kernels.triton_gdn import gdn_slots

    inputs, state = on_device(random_operands(2, 1, 16, Grid(3, 2, 3), torch.float32))
    fresh = exact(inputs, None)
    pool = pool_of(state, 4)
    slots = Slots(src=torch.tensor([-1, 0], device=DEVICE), dst=torch.tensor([2, 3], device=DEVICE))
    reads = gdn_slots(inputs, pool, pool, slots)
    assert error(reads[0][:1], fresh[0][:1]) < 2e-6
    assert error(pool.kv[2], fresh[2].kv[0]) < 2e-6


@pytest.mark.slow
def test_nothing_that_was_given_is_written_to(ops):
    operands = on_device(random_operands(2, 1, 16, Grid(2, 2, 3), torch.float32))
    before = [t.clone() for t in tree.leaves(operands)]
    ops.gdn(*operands, save=True)
    ops.gdn(*operands, save=False)
    assert all(torch.equal(a, b) for a, b in zip(before, tree.leaves(operands), strict=True))


def test_gradients_are_refused(ops):
    operands = on_device(random_operands(1, 1, 16, Grid(3, 2, 2), torch.float32))
    operands[0].main.q_norm.requires_grad_()
    with torch.enable_grad(), pytest.raises(RuntimeError, match=r"forward only: train with backend \"reference\""):
        ops.gdn(*operands, save=True)


def walk(chunks, grid, size, heads, dtype):
    """Inputs of chunks whose keys and values drift slowly, as a camera's do."""
    first, other = (random_operands(1, heads, size, grid, dtype, seed, state=False)[0] for seed in (0, 1))

    def mixed(i):
        def mix(name):
            a, b, angle = getattr(first.main, name), getattr(other.main, name), torch.tensor(0.1 * i)
            return (angle.cos() * a.double() + angle.sin() * b.double()).to(dtype)

        return replace(first.main, q=mix("q"), k=mix("k"), v=mix("v"))

    decay = torch.full_like(first.decay, 0.993)  # its value at initialisation: a memory of 150 frames
    for i in range(chunks):
        yield on_device(replace(first, main=mixed(i), camera=None, rays=None, decay=decay))


def drift(gdn, chunks, grid, size, heads, dtype, **options):
    """Relative error of the state in the Frobenius norm after every chunk, both sides carrying their own state."""
    state = true = None
    for inputs in walk(chunks, grid, size, heads, dtype):
        state = gdn(inputs, state, save=True, **options)[2]
        true = exact(inputs, true)[2]
        yield ((state.kv.double() - true.kv).norm() / true.kv.norm()).item()


@pytest.mark.slow
def test_the_error_does_not_grow_over_120_frames(ops):
    errors = list(drift(ops.gdn, 40, Grid(3, 2, 4), 16, 1, torch.float32))
    assert errors[-1] < 5e-7
    assert max(errors) < 10 * errors[0] + 5e-7


@needs_gpu
@pytest.mark.parametrize("precision, bound", [("fp32", 3e-6), ("tf32", 4e-5), ("bf16", 3e-3)])
def test_the_error_over_120_frames_at_full_size(ops, precision, bound):
    """kernels.md section 4: no growth where P is kept apart from the identity."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    errors = list(drift(ops.gdn, 40, Grid(3, 22, 40), 112, 4, dtype, precision=precision))
    assert max(errors) < bound


@needs_gpu
@pytest.mark.parametrize("dtype, bound", [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_gdn_at_full_size(ops, dtype, bound):
    operands = on_device(random_operands(2, 20, 112, Grid(3, 22, 40), dtype))
    assert error(ops.gdn(*operands, save=True), exact(*operands)) < bound


@pytest.mark.slow
@pytest.mark.parametrize(
    "batch, grid, channels", [(2, Grid(3, 4, 6), 40), (1, Grid(1, 22, 40), 24), (1, Grid(1, 13, 9), 70),
                              (3, Grid(1, 1, 1), 3)]
)  # fmt: skip
def test_depthwise_glu_equals_the_reference(ops, batch, grid, channels):
    g = torch.Generator().manual_seed(0)
    shapes = (batch, grid.frames * grid.tokens, 2 * channels), (2 * channels, 1, 3, 3), (2 * channels,)
    given = [torch.randn(shape, generator=g).to(DEVICE) for shape in shapes]
    expected = reference.depthwise_glu(*(t.double() for t in given), grid)
    assert error(ops.depthwise_glu(*given, grid), expected) < 1e-6


def window(batch, heads, size, lengths):
    g = torch.Generator().manual_seed(0)
    pages = [tuple(torch.randn(2, batch, n, heads, size, generator=g).transpose(2, 3).to(DEVICE)) for n in lengths]
    q = torch.randn(batch, heads, 12, size, generator=g).to(DEVICE)
    k, v = torch.randn(2, batch, heads, 12, size, generator=g).to(DEVICE)
    return q, pages, k, v


@pytest.mark.parametrize("lengths", [(), (16,), (16, 12), (70, 12, 12)])
def test_attention_over_pages_equals_the_reference(ops, lengths):
    q, pages, k, v = window(2, 3, 24, lengths)
    expected = reference.attend(q.double(), tree.map_tensors(torch.Tensor.double, (*pages, (k, v))), Grid(3, 2, 2))
    assert error(ops.attend(q, [*pages, (k, v)], Grid(3, 2, 2)), expected) < 2e-6


def test_pages_are_read_by_number(ops):
    from sanawm_env.kernels.triton_window import attend_pages

    q, pages, k, v = window(3, 2, 24, (16, 12))
    order = torch.tensor([2, 2, 0], device=DEVICE)
    chosen = [(a[order].double(), b[order].double()) for a, b in pages]
    expected = reference.attend(q.double(), [*chosen, (k.double(), v.double())], Grid(3, 2, 2))
    numbered = [*((*page, order) for page in pages), (k, v, torch.arange(3, device=DEVICE))]
    assert error(attend_pages(q, numbered), expected) < 2e-6


@pytest.mark.slow
def test_the_kernels_compile_for_an_h100():
    """Without one: no launch may ask for more shared memory than it has, or spill registers to speak of."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.compile_kernels", "bfloat16"],
        cwd=ROOT, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    kernels = json.loads(done.stdout)
    assert set(kernels) == {"_prep", "_gram", "_scan", "_readout", "_depthwise_glu", "_fill_window"}
    for name, usage in kernels.items():
        assert usage["shared"] <= 227 * 1024, name
        assert usage["stack"] <= 256, name  # bytes a thread; Triton 3.6.0 needs 128, 3.7.1 takes 256
        assert usage["wide_loads"], name
    assert all(kernels[name]["matrix_products"] for name in ("_gram", "_scan", "_readout"))
