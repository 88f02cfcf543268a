"""What a world promises, once more on the Triton kernels: on the GPU where there is one, else in the interpreter, which
takes a second a chunk: there several tests look at one walk.

On a GPU the same tests run again with every chunk replayed as a CUDA graph, and those of tests/test_world.py too.
"""

import dataclasses

import numpy as np
import pytest
import torch

from sanawm_env.engines.sanawm.engine import SanaEngine
from sanawm_env.engines.sanawm.graphs import Graphs
from sanawm_env.world import tree
from sanawm_env.world.state import stack
from sanawm_env.world.world import World
from tests.interpreter import patched_once  # noqa: F401
from tests.test_world import FORWARD, STILL, TURN, content
from tests.worlds import TINY, drive, picture, write_tiny_world

pytestmark = pytest.mark.slow

pytest.importorskip("triton", reason="no triton here: worlds are not tested on its kernels")
GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"
if GPU:
    from tests.test_world import (  # noqa: F401
        start,
        test_a_slot_taken_from_a_batch_does_not_keep_its_neighbours_alive,
        test_advance_changes_no_input,
        test_advance_changes_no_input_in_mixed_batches_either,
        test_branches_share_what_they_have_in_common,
        test_forks_diverge_with_other_actions_and_with_another_seed,
        test_fresh_and_running_slots_advance_together,
        test_indexing_stacking_and_reseeding_copy_nothing,
    )

# the interpreter takes milliseconds for every program of every launch: one head, six tokens, one denoising pass
FAST = dataclasses.replace(
    TINY,
    network=dataclasses.replace(TINY.network, hidden_size=16, num_heads=1),
    height=16,
    width=24,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny_world(tmp_path_factory.mktemp("worlds") / "triton", config=FAST)


@pytest.fixture(scope="module", params=[False, True] if GPU else [False], ids=lambda on: "graphs" if on else "launches")
def world(folder, request):
    return World.load(folder, DEVICE, backend="triton", graphs=request.param)


def test_the_world_says_which_kernels_it_uses(folder, world):
    assert (world.engine.kernels.name, world.engine.kernels.why) == ("triton", "asked for")
    if not GPU:
        assert (World.load(folder).engine.kernels.name, World.load(folder).engine.kernels.why) == ("cpu", "a CPU")


WALK = FORWARD, TURN, STILL


@pytest.fixture(scope="module")
def walk(world):
    """The states of a walk, the first one begun, what was in each when it was made, and its clips."""
    states, contents, clips = [world.begin(world.scene(picture()), seed=5)], [], []
    for twist in WALK:
        contents.append(content(states[-1]))
        after, (clip,) = drive(world, states[-1], twist)
        states.append(after)
        clips.append(clip)
    return states, contents, clips


@pytest.fixture(scope="module")
def plain(folder):
    return World.load(folder, backend="reference")


def assert_alike(clip, expected, row=0):
    """One row of a clip, and a clip of one."""
    assert torch.allclose(clip.latents[row].cpu(), expected.latents[0].cpu(), atol=1e-4)
    assert (clip.frames[row].cpu().int() - expected.frames[0].cpu().int()).abs().max() <= 1


def test_frames_are_those_of_the_reference(plain, walk):
    state = plain.begin(plain.scene(picture()), seed=5)
    for twist, clip in zip(WALK, walk[2], strict=True):
        state, (expected,) = drive(plain, state, twist)
        assert_alike(clip, expected)


def test_a_restored_moment_has_the_same_future(world, walk):
    states, _, clips = walk
    back, (clip,) = drive(world, states[1], WALK[1])
    assert torch.equal(clip.frames, clips[1].frames)
    assert all(map(torch.equal, tree.leaves(back.slots), tree.leaves(states[2].slots)))


def test_fresh_and_running_slots_advance_together_and_change_no_state(world, plain, walk):
    states, contents, clips = walk
    after, (clip,) = drive(world, stack([states[2], states[0]]), FORWARD)
    assert [slot.chunk for slot in after.slots] == [3, 1]
    begun = plain.begin(plain.scene(picture()), seed=5)
    _, (*_, expected) = drive(plain, begun, FORWARD, TURN, FORWARD)
    assert_alike(clip, expected, row=0)
    assert_alike(clip, clips[0], row=1)
    assert [content(state) for state in states[:-1]] == contents


def test_memory_does_not_grow(world, walk):
    states, *_ = walk
    pages = [state.slots[0].memory.network.blocks[1].mixer.pages for state in states[1:]]
    assert len({first.k.data_ptr() for first, *_ in pages}) == 1  # the first chunk's page, in every window
    assert states[-1].nbytes == states[-2].nbytes
    state = states[-1]
    for _ in range(40 if GPU else 0):
        state, _ = drive(world, state, TURN)
        assert state.nbytes == states[-1].nbytes


def test_graphs_need_a_gpu(folder):
    if not GPU:
        with pytest.raises(ValueError, match="graphs=True needs a CUDA device, this is cpu"):
            World.load(folder, graphs=True)


def test_an_unknown_backend_is_refused(folder):
    with pytest.raises(ValueError, match="backend must be one of reference, cpu, triton, or None to choose"):
        World.load(folder, backend="fast")


class Recorded:
    """Records a call as a CUDA graph does, without a GPU: replays work at fixed addresses."""

    def __init__(self):
        self.calls = 0

    def __call__(self, call):
        self.calls += 1
        results = call()

        def replay():
            for fixed, fresh in zip(tree.leaves(results), tree.leaves(call()), strict=True):
                fixed.copy_(fresh)

        return replay, results


@pytest.fixture
def recorded(folder):
    """A world whose chunks are recorded, the same without, and the recorder."""
    plain = World.load(folder)
    old = plain.engine
    engine = SanaEngine(old.config, old.network, old.codec, old.device)
    record = Recorded()
    engine._chunk = Graphs(engine._imagine, record)
    return World(engine, plain.weights_hash), plain, record


def test_recorded_chunks_are_the_same_and_keep_states_values(recorded):
    world, plain, _ = recorded
    begun = plain.begin([plain.scene(picture(i)) for i in range(3)], seed=2)
    fast = slow = stack([begun[0], drive(plain, begun[1:], FORWARD)[0]])
    kept = []
    for twist in (FORWARD, TURN, STILL, TURN):
        fast, (clip,) = drive(world, fast, twist)
        slow, (expected,) = drive(plain, slow, twist)
        assert torch.equal(clip.frames, expected.frames)
        kept.append((fast, [t.clone() for t in tree.leaves(fast.slots)]))
    for state, before in kept:
        assert all(map(torch.equal, tree.leaves(state.slots), before))
    assert all(map(torch.equal, tree.leaves(fast.slots), tree.leaves(slow.slots)))
    assert fast.nbytes == slow.nbytes  # pages that are only passed on are shared as before


def test_a_layout_is_recorded_once(recorded):
    world, plain, record = recorded
    state = plain.begin(plain.scene(picture()), seed=0)
    drive(world, state, FORWARD, TURN, STILL, TURN, FORWARD)
    # a first chunk, one that sees a page, one that sees two
    assert record.calls == 3
    drive(world, state.reseed(4), TURN, TURN, TURN, TURN)
    assert record.calls == 3


def test_what_a_function_passes_on_is_the_argument_itself():
    graphs = Graphs(lambda constant, x, y: (x, y + constant), Recorded())
    for i in range(3):
        x, y = torch.full((2,), i), torch.full((3,), 10 * i)
        passed, made = graphs(1, x, y)
        assert passed is x
        assert np.array_equal(made, y + 1)
