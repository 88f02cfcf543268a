"""The token-wise ablation: fla's layer in the place of the frame rule, with its state a value like every other."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from sanawm_env.engines.sanawm.network.ablation import TokenMixer, TokenState
from sanawm_env.engines.sanawm.network.config import SanaWMConfig
from sanawm_env.engines.sanawm.network.mixers import GDNMixer, WindowMixer
from sanawm_env.engines.sanawm.network.model import SanaWM
from sanawm_env.training.initial import NETWORK, untrained
from sanawm_env.world import tree
from sanawm_env.world.engine import read_config
from sanawm_env.world.state import WorldState
from sanawm_env.world.world import World
from tests.interpreter import patched_once  # noqa: F401
from tests.test_kernels_fla import DEVICE, EXACT, difference, let_fla_run, needs_kernels
from tests.worlds import TINY, drive, picture, write_tiny_world

pytestmark = pytest.mark.slow  # the libraries that it compares with take seconds to import

TOKENS = replace(TINY, network=replace(TINY.network, mixer="token"))
WIDTH, HEADS, TAPS = TINY.network.hidden_size, 2, 4


@pytest.fixture
def fla(monkeypatch):
    let_fla_run(monkeypatch)


@pytest.fixture
def mixer(fla):
    torch.manual_seed(0)
    return TokenMixer(TOKENS.network).to(DEVICE).eval()


def tokens(n, seed=0):
    return torch.randn(2, n, WIDTH, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


@torch.no_grad()
def run(mixer, x, state=None, save=True):
    return mixer(x, None, state, save)


def copy_of(state):
    return tree.map_tensors(torch.clone, state)


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(tree.leaves(a), tree.leaves(b), strict=True))


# --- configuration and building ---


def test_a_mixer_of_another_name_is_refused():
    with pytest.raises(ValueError, match=r"""^mixer must be 'frame' or 'token', got 'both'\.$"""):
        SanaWMConfig(mixer="both")


def test_configurations_without_the_key_are_of_the_frame_rule(tmp_path):
    data = json.loads(TOKENS.to_json())
    (tmp_path / "token.json").write_text(json.dumps(data))
    assert read_config(tmp_path / "token.json") == TOKENS
    del data["network"]["mixer"]
    (tmp_path / "frame.json").write_text(json.dumps(data))
    assert read_config(tmp_path / "frame.json").network == TINY.network


def test_the_layer_has_the_heads_and_the_state_size_of_the_frame_rule(mixer):
    shapes = {name: tuple(weight.shape) for name, weight in mixer.layer.state_dict().items()}
    square, gate, conv = (WIDTH, WIDTH), (HEADS, WIDTH), (WIDTH, 1, TAPS)
    assert shapes == {
        **{f"{name}_proj.weight": square for name in "qkvgo"},
        **{f"{name}_proj.weight": gate for name in "ab"},
        **{f"{name}_conv1d.weight": conv for name in "qkv"},
        "A_log": (HEADS,),
        "dt_bias": (HEADS,),
        "o_norm.weight": (TOKENS.network.head_dim,),
    }


def test_only_the_gdn_blocks_change(fla):
    frame, token = ([type(block.attn) for block in SanaWM(config.network).blocks] for config in (TINY, TOKENS))
    assert frame == [GDNMixer, WindowMixer]
    assert token == [TokenMixer, WindowMixer]


def test_a_seed_gives_one_untrained_network(fla):
    """fla's layer draws its own weights from torch's global generator: nothing of that stays."""
    one, two = (untrained(TOKENS, torch.Generator().manual_seed(3))[NETWORK].state_dict() for _ in range(2))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert all(weight.isfinite().all() for weight in one.values())


def test_untrained_layers_remember_for_about_a_hundred_frames(fla):
    layer = untrained(TOKENS, torch.Generator().manual_seed(3))[NETWORK].blocks[0].attn.layer
    kept = torch.exp(-layer.A_log.exp() * torch.nn.functional.softplus(layer.dt_bias))  # by a token, its input aside
    assert all(0.3 < share < 0.4 for share in kept ** (100 * 96))  # e^-1


# --- what it computes ---


@pytest.mark.slow
@needs_kernels
@pytest.mark.parametrize("first", [9, 17])
def test_two_chunks_with_the_state_handed_over_equal_one(mixer, first):
    """The second chunk may be a single token, for which the layer edits its caches in place."""
    x = tokens(18)
    whole, last = run(mixer, x)
    one, between = run(mixer, x[:, :first])
    kept = copy_of(between)
    two, end = run(mixer, x[:, first:], between)
    assert difference(torch.cat((one, two), 1), whole) < EXACT
    assert difference(end.recurrent, last.recurrent) < EXACT
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(end.conv, last.conv, strict=True))
    assert same(between, kept)
    alone, _ = run(mixer, x[:, first:])
    assert difference(alone, two) > 0.01


@pytest.mark.slow
@needs_kernels
def test_a_pass_that_saves_nothing_writes_nothing(mixer):
    _, state = run(mixer, tokens(6))
    kept = copy_of(state)
    for n in (1, 12):
        out, none = run(mixer, tokens(n, seed=1), state, save=False)
        assert none is None and same(state, kept)
        saved, _ = run(mixer, tokens(n, seed=1), state)
        assert difference(out, saved) < 1e-6


@pytest.mark.slow
@needs_kernels
def test_a_token_sees_those_before_it_alone(mixer):
    x = tokens(12)
    changed = x.clone()
    changed[:, 7] += 1
    moved = (run(mixer, x)[0] - run(mixer, changed)[0]).abs().amax((0, 2)) > 1e-6
    assert moved.tolist() == [False] * 7 + [True] * 5


@pytest.mark.slow
@needs_kernels
def test_the_kernel_for_long_calls_equals_the_one_for_short_calls(mixer):
    """More than 64 tokens, or gradients, go through fla's chunk kernels."""
    x = tokens(72)[:1]
    whole, last = run(mixer, x)
    one, state = run(mixer, x[:, :36])
    two, end = run(mixer, x[:, 36:], state)
    assert difference(whole, torch.cat((one, two), 1)) < EXACT
    assert difference(last.recurrent, end.recurrent) < EXACT


@pytest.mark.slow
@needs_kernels
def test_gradients_reach_every_weight_and_the_chunk_before(mixer):
    mixer.train()
    x = tokens(8).requires_grad_()
    _, state = mixer(x, None, None, True)
    out, _ = mixer(tokens(8, seed=1), None, state, True)
    out.square().sum().backward()
    assert x.grad.abs().amax((0, 2)).min() > 0
    assert all(weight.grad.abs().max() > 0 for weight in mixer.parameters())


def test_without_a_device_for_its_kernels_it_says_so(mixer, monkeypatch):
    if DEVICE == "cuda":
        mixer.cpu()
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ValueError, match=r'^mixer "token" needs a CUDA device, this is cpu\.$'):
        mixer(tokens(3).cpu(), None, None, False)


# --- in a world ---


@pytest.fixture
def world(fla, tmp_path):
    """Of six tokens a frame: the interpreter takes them one by one."""
    config = replace(TOKENS, network=replace(TOKENS.network, hidden_size=16, num_heads=1), height=16, width=24)
    return World.load(write_tiny_world(tmp_path / "tokens", config=config), device=DEVICE)


@pytest.mark.slow
@needs_kernels
def test_a_world_steps_forks_and_keeps_its_state_in_a_file(world, tmp_path):
    walk = [0.0, 0.0, 0.02, 0.0, 0.01, 0.0]
    begun = world.begin(world.scene(picture()), seed=0)
    state, _ = drive(world, begun, walk)
    block = state.slots[0].memory.network.blocks[0].mixer
    assert isinstance(block, TokenState) and block.recurrent.shape == (1, 1, 16, 16)
    kept = copy_of(state.slots)
    _, (clip,) = drive(world, state, walk)
    state.save(tmp_path / "state.safetensors")
    _, (again,) = drive(world, WorldState.load(tmp_path / "state.safetensors", world), walk)
    assert same(state.slots, kept)
    assert np.array_equal(clip.frames, again.frames)
