"""The frame rule against flash-linear-attention (fla), which takes tokens one by one (kernels.md 2).

The two agree for frames of one token, for frames turned into tokens with orthonormal keys, and where fla's chunk kernel
is given one frame per chunk; they differ for frames of several tokens. fla's naive rule is plain torch. Its kernels run
on a CUDA device or in Triton's interpreter, which tests/conftest.py turns on where there is none.
"""

import operator
import os
import sys

import pytest
import torch
import torch.nn.functional as F
from sanawm_env.kernels.inputs import Grid
from sanawm_env.kernels.reference import forward_states, frame_gated_delta_rule, key_conv

from tests.interpreter import patched_once  # noqa: F401

pytestmark = pytest.mark.slow  # the libraries that it compares with take seconds to import

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
EXACT = 1e-6 if DEVICE == "cpu" else 5e-3  # a GPU multiplies matrices and convolves in tf32

needs_kernels = pytest.mark.skipif(
    DEVICE == "cpu" and not INTERPRETED,
    reason="NOT RUN: fla's kernels need a CUDA device, or TRITON_INTERPRET=1 set before Python starts",
)


def let_fla_run(monkeypatch):
    """Skip without fla, and help Triton's interpreter over what it stumbles on in fla's kernels; they stay as they are.

    The tuner asks for a driver: the first configuration will do. triton 3.6 makes an index of an array, which NumPy 2.4
    refuses. Loop indices have no `to`.
    """
    pytest.importorskip("fla", reason='NOT RUN: fla is missing, pip install "sanawm-env[gpu]"', exc_type=ImportError)
    if not INTERPRETED:
        return
    from triton import language as tl
    from triton.runtime import autotuner, interpreter

    class LoopIndex(int):
        def to(self, dtype):
            return self

    def loop(*bounds):
        return map(LoopIndex, range(*map(operator.index, bounds)))

    prepare = interpreter._patch_lang

    def prepare_more(fn):
        scope = prepare(fn)
        scope.set_attr(tl.tensor, "__index__", lambda self: self.handle.data.item())
        scope.set_attr(sys.modules[fn.__module__], "range", loop)
        return scope

    def run_first(self, *args, **kwargs):
        return self.fn.run(*args, **kwargs, **self.configs[0].all_kwargs())

    monkeypatch.setattr(interpreter, "_patch_lang", prepare_more)
    monkeypatch.setattr(autotuner.Autotuner, "run", run_first)


@pytest.fixture(autouse=True)
def fla(monkeypatch):
    let_fla_run(monkeypatch)


def random_frames(b=2, h=3, t=4, s=5, d=16, dv=8):
    """q, k, v, beta, decay and a state, float32, with keys as the model's: rectified, times (D S)^-1/2."""
    g = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=g)

    q, k = normal(2, b, h, t, s, d).relu().unbind(0)
    gates = normal(b, h, t, s).sigmoid(), (normal(b, h, t) + 2).sigmoid()
    return q, k * (d * s) ** -0.5, normal(b, h, t, s, dv), *gates, normal(b, h, d, dv)


def token_rule(q, k, v, beta, decay, initial=None):
    """fla's naive rule over the tokens of frames in their order, the first of a frame decaying the state.

    Arguments as in `frame_gated_delta_rule`. Returns what every token reads, (B, h, T, S, Dv), and the last state.
    """
    from fla.ops.gated_delta_rule.naive import naive_recurrent_gated_delta_rule

    gate = torch.zeros_like(beta)
    gate[..., 0] = decay.log()
    tokens = (x.flatten(2, 3).transpose(1, 2) for x in (q, k, v, beta, gate))
    read, state = naive_recurrent_gated_delta_rule(*tokens, scale=1.0, initial_state=initial, output_final_state=True)
    return read.transpose(1, 2).unflatten(2, k.shape[2:4]), state


def eigen_tokens(k, v, beta):
    """D tokens with orthonormal keys that do to a state what the S tokens of each frame do together: with
    K^T diag(beta) K = U diag(l) U^T and A = K^T diag(beta) V, keys u_i, write gates l_i and values u_i^T A / l_i."""
    k, v, beta = k.double(), v.double(), beta.double()
    weighted = (beta[..., None] * k).mT
    gate, keys = torch.linalg.eigh(weighted @ k)
    found = gate > 1e-12 * gate[..., -1:]  # a frame of few tokens has fewer than D
    values = (keys.mT @ (weighted @ v)) / gate.clamp(min=1e-30)[..., None]
    return keys.mT.float(), (values * found[..., None]).float(), (gate * found).float()


def difference(a, b):
    return ((a - b).norm() / b.norm()).item()


# --- where they agree ---


@pytest.mark.parametrize("seeded", [False, True])
@pytest.mark.parametrize("sizes", [{"t": 7}, {"b": 1, "h": 2, "t": 20, "d": 32, "dv": 32}])
def test_frames_of_one_token_equal_the_token_rule(sizes, seeded):
    *frames, state = random_frames(s=1, **sizes)
    state = state if seeded else None
    each_its_own_chunk = tuple(range(sizes["t"]))
    read, last = frame_gated_delta_rule(*frames, initial=state, chunk_starts=each_its_own_chunk)
    expected, expected_last = token_rule(*frames, initial=state)
    assert difference(read, expected) < 1e-6
    assert difference(last, expected_last) < 1e-6


def test_later_frames_of_a_chunk_are_the_token_rule_run_backwards():
    q, k, v, beta, decay, state = random_frames(s=1, t=7)
    read, _ = frame_gated_delta_rule(q, k, v, beta, decay, initial=state)
    forward, _ = token_rule(q, k, v, beta, decay, initial=state)
    # a frame reads the backward state before it enters it itself
    earlier = torch.cat((torch.zeros_like(q[:, :, :1]), q[:, :, :-1]), dim=2)
    backward, _ = token_rule(*(x.flip(2) for x in (earlier, k, v, beta, decay)))
    later = torch.cat((backward.flip(2)[:, :, 1:], torch.zeros_like(read[:, :, :1])), dim=2)
    assert difference(read, forward + later) < 1e-6
    assert difference(read, forward) > 0.1


@pytest.mark.parametrize("s", [5, 40])
@pytest.mark.parametrize("d", [16, 24, 32])
def test_a_frame_equals_its_eigen_tokens(s, d):
    _, k, v, beta, decay, state = random_frames(s=s, d=d, dv=d)
    frames = forward_states(k, v, beta, decay, state)[-1]
    keys, values, gate = eigen_tokens(k, v, beta)
    _, tokens = token_rule(torch.zeros_like(keys), keys, values, gate, decay, state)
    assert difference(tokens, frames) < 5e-7


@needs_kernels
@pytest.mark.parametrize(("s", "d", "dv"), [(24, 32, 32), (60, 48, 16), (64, 80, 32)])
def test_a_frame_equals_one_chunk_of_the_chunk_kernel(s, d, dv):
    """fla's kernel computes 2^g h + k^T (u - w h) per chunk of 64 tokens: kernels.md 2, construction 3."""
    from fla.ops.common.chunk_delta_h import chunk_gated_delta_rule_fwd_h

    _, k, v, beta, decay, state = (x.to(DEVICE) for x in random_frames(s=s, d=d, dv=dv))

    def chunks(x):
        return F.pad(x, (0, 0, 0, 64 - s)).flatten(2, 3).transpose(1, 2).contiguous()

    erase, write = (decay[..., None] * beta)[..., None] * k, beta[..., None] * v
    gate = decay.log2().repeat_interleave(64, dim=2).transpose(1, 2).contiguous()
    before, _, last = chunk_gated_delta_rule_fwd_h(
        chunks(k), chunks(erase), chunks(write), gate, initial_state=state, output_final_state=True
    )
    expected = forward_states(k, v, beta, decay, state)
    assert difference(last, expected[-1]) < EXACT
    assert difference(before[:, 1:], torch.stack(expected[:-1], dim=1)) < EXACT


@needs_kernels
def test_the_key_convolution_equals_two_short_convolutions():
    from fla.modules import ShortConvolution

    grid, channels = Grid(4, 2, 3), 20
    torch.manual_seed(0)
    conv = ShortConvolution(channels, 4, activation=None).to(DEVICE)
    u = torch.randn(2, grid.frames * grid.tokens, channels, device=DEVICE)
    over_time = u.unflatten(1, (grid.frames, grid.tokens)).transpose(1, 2).flatten(0, 1)
    with torch.no_grad():
        expected, _ = key_conv(u, conv.weight, grid, None)
        (past, _), (future, _) = conv(over_time), conv(over_time.flip(1))
        centre = conv.weight[:, 0, -1] * over_time
    found = past + future.flip(1) - centre
    assert difference(found.unflatten(0, (2, grid.tokens)).transpose(1, 2).flatten(1, 2), expected) < EXACT


# --- where they differ ---


@pytest.mark.parametrize("s", [5, 40])
def test_frames_of_several_tokens_are_another_rule(s):
    *frames, state = random_frames(s=s)
    _, last = frame_gated_delta_rule(*frames, initial=state)
    _, tokens = token_rule(*frames, initial=state)
    assert 0.005 < difference(tokens, last) < 0.2


def test_only_the_token_rule_depends_on_the_order_of_tokens():
    q, k, v, beta, decay, state = random_frames()
    order = torch.tensor([3, 0, 4, 1, 2])
    shuffled = [x[:, :, :, order] for x in (q, k, v, beta)]
    (_, frames), (_, tokens) = (rule(q, k, v, beta, decay, state) for rule in (frame_gated_delta_rule, token_rule))
    assert difference(frame_gated_delta_rule(*shuffled, decay, state)[1], frames) < 1e-6
    assert difference(token_rule(*shuffled, decay, state)[1], tokens) > 0.002
