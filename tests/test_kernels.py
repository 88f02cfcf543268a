"""The gated delta rule of the reference in float64, rounding over many frames, and which form is chosen."""

import pytest
import torch
from sanawm_env.kernels import dispatch
from sanawm_env.kernels.reference import forward_states, frame_gated_delta_rule, frame_update

from tests import rounding


def random_inputs(b=2, h=3, t=7, s=5, d=8, dv=4, seed=0):
    g = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    k = normal(b, h, t, s, d).relu() / (d * s) ** 0.5
    return normal(b, h, t, s, d), k, normal(b, h, t, s, dv), normal(b, h, t, s).sigmoid(), normal(b, h, t).sigmoid()


def test_residual_form_equals_the_gram_form():
    _, k, v, beta, decay = random_inputs(t=1)
    state = torch.randn(2, 3, 8, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    k, v, beta, decay = k[:, :, 0], v[:, :, 0], beta[:, :, 0], decay[:, :, 0]
    weighted = beta[..., None] * k
    gram = weighted.mT @ k
    expected = decay[..., None, None] * (state - gram @ state) + weighted.mT @ v
    torch.testing.assert_close(frame_update(state, k, v, beta, decay), expected, rtol=1e-12, atol=1e-12)


def test_several_chunks_in_one_call_equal_handing_over_the_state():
    q, k, v, beta, decay = random_inputs()
    starts = (0, 3, 5)
    whole, final = frame_gated_delta_rule(q, k, v, beta, decay, chunk_starts=starts)
    state, parts = None, []
    for a, b in zip(starts, (3, 5, 7), strict=True):
        part, state = frame_gated_delta_rule(*(x[:, :, a:b] for x in (q, k, v, beta, decay)), initial=state)
        parts.append(part)
    torch.testing.assert_close(torch.cat(parts, dim=2), whole, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(state, final, rtol=1e-12, atol=1e-12)


def test_a_frame_sees_later_frames_of_its_chunk_only():
    q, k, v, beta, decay = random_inputs()
    changed = v.clone()
    changed[:, :, 4] += 1
    read, _ = frame_gated_delta_rule(q, k, v, beta, decay, chunk_starts=(0, 3, 5))
    other, _ = frame_gated_delta_rule(q, k, changed, beta, decay, chunk_starts=(0, 3, 5))
    moved = (read - other).abs().amax((0, 1, 3, 4)) > 1e-9
    assert moved.tolist() == [False, False, False, True, True, True, True]


def test_decay_one_and_no_gate_leave_the_state_alone():
    _, k, v, _, _ = random_inputs(t=2)
    zero, one = torch.zeros(2, 3, 2, 5, dtype=torch.float64), torch.ones(2, 3, 2, dtype=torch.float64)
    state = torch.randn(2, 3, 8, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    assert torch.equal(forward_states(k, v, zero, one, state)[-1], state)


@pytest.mark.parametrize("initial", [False, True])
def test_gradients_are_right(initial):
    inputs = [x.requires_grad_() for x in random_inputs(b=1, h=1, t=3, s=2, d=3, dv=2)]
    state = torch.ones(1, 1, 3, 2, dtype=torch.float64, requires_grad=True) if initial else None
    assert torch.autograd.gradcheck(lambda *x: frame_gated_delta_rule(*x, initial=state), inputs)


@pytest.mark.slow
@pytest.mark.parametrize(
    "scheme, bounds",  # after 3, 30 and 120 frames, the table of kernels.md 4 at the full model's size
    [("fp32", (2e-7, 3e-7, 5e-7)), ("tf32", (3e-4, 3e-4, 3e-4)), ("bf16", (1.5e-3, 1.5e-3, 1.5e-3))],
)
def test_rounded_operands_do_not_let_the_error_grow(scheme, bounds):
    errors = rounding.growth(rounding.SCHEMES[scheme])
    assert all(errors[n - 1] < bound for n, bound in zip((3, 30, 120), bounds, strict=True))


@pytest.mark.slow
def test_a_rounded_identity_would():
    errors = rounding.growth(rounding.SCHEMES["bf16, I - P stored"])
    assert errors[119] > 20 * errors[2]


def test_rounding_is_that_of_bfloat16():
    x = torch.randn(10000, generator=torch.Generator().manual_seed(0))
    assert torch.equal(rounding.rounded(x, "bf16"), x.bfloat16().float())
    assert ((rounding.rounded(x, "tf32") - x).abs() <= x.abs() * 2**-11).all()


CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    "device, dtype, name, why",
    [
        (CPU, torch.float32, "cpu", "a CPU"),
        (CPU, torch.bfloat16, "cpu", "a CPU"),
        (CPU, torch.float64, "reference", "torch.float64 on cpu"),
        (torch.device("meta"), torch.float32, "reference", "torch.float32 on meta"),
    ],
)
def test_the_operators_suit_the_device_and_say_why(device, dtype, name, why):
    with torch.no_grad():
        chosen = dispatch.choose(device, dtype)
    assert (chosen.name, chosen.why) == (name, why)


def test_gradients_go_through_the_reference():
    assert dispatch.choose(CPU, torch.float32).name == "reference"
    assert dispatch.choose(CPU, torch.float32).why == "gradients are on"


def test_a_gpu_gets_triton_where_it_is_installed(monkeypatch):
    with torch.no_grad():
        monkeypatch.setattr(dispatch, "find_spec", lambda name: None)
        chosen = dispatch.choose(CUDA, torch.bfloat16)
        assert (chosen.name, chosen.why) == ("reference", "triton is not installed")
        with pytest.raises(ImportError, match=r'needs the package triton: pip install "sanawm-env\[gpu\]"'):
            dispatch.choose(CUDA, torch.bfloat16, "triton")


@pytest.mark.parametrize("backend", dispatch.BACKENDS)
def test_a_backend_can_be_forced(backend):
    if backend == "triton":
        pytest.importorskip("triton")
    chosen = dispatch.choose(CPU, torch.float32, backend)
    assert (chosen.name, chosen.why) == (backend, "asked for")


def test_a_backend_that_cannot_run_says_so(monkeypatch):
    with pytest.raises(ValueError, match="backend must be one of reference, cpu, triton, or None"):
        dispatch.choose(CPU, torch.float32, "fast")
    with pytest.raises(ValueError, match='backend "cpu" cannot run on cuda: use "triton" or "reference" there'):
        dispatch.choose(CUDA, torch.float32, "cpu")
    pytest.importorskip("triton")
    from sanawm_env.kernels import fused

    monkeypatch.setattr(fused, "INTERPRETED", False)
    with pytest.raises(ValueError, match='backend "triton" needs a CUDA device, this is cpu: use "cpu"'):
        dispatch.choose(CPU, torch.float32, "triton")
