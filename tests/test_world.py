"""The state is a value: what `World` and `WorldState` promise, held on a tiny world with random weights."""

import dataclasses
import gc
import hashlib
import json
import weakref

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from sanawm_env.camera.twist import hold
from sanawm_env.engines.sanawm.codec.patch_pca import PatchPCACodec
from sanawm_env.engines.sanawm.sampler import SamplerConfig
from sanawm_env.world import tree
from sanawm_env.world.anchor import Anchor
from sanawm_env.world.engine import Engine
from sanawm_env.world.folders import known_worlds
from sanawm_env.world.state import WorldState, stack
from sanawm_env.world.world import World
from tests.worlds import TINY, drive, picture, write_tiny_world

FORWARD, TURN, STILL = (0, 0, 0.5, 0, 0, 0), (0.1, 0, 0.2, 0, 0.3, 0), (0,) * 6


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> World:
    """Of two steps; other tests are content with one."""
    config = dataclasses.replace(TINY, sampler=SamplerConfig(timesteps=(1000, 600)))
    return World.load(write_tiny_world(tmp_path_factory.mktemp("worlds") / "tiny", config=config))


@pytest.fixture(scope="module")
def other_world(tmp_path_factory) -> World:
    return World.load(write_tiny_world(tmp_path_factory.mktemp("worlds") / "other", seed=1))


@pytest.fixture(scope="module")
def start(world) -> WorldState:
    return world.begin(world.scene(picture()), seed=5)


def content(state: WorldState) -> list[str]:
    """A hash of every tensor's and pose's bytes."""
    arrays = [t.cpu().contiguous().numpy() for t in tree.leaves(state.slots)] + [slot.c2w for slot in state.slots]
    return [hashlib.sha256(a.tobytes()).hexdigest() for a in arrays]


def pointers(state: WorldState) -> list[int]:
    return [t.data_ptr() for t in tree.leaves(state.slots)]


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.equal(a, b)


def test_advance_changes_no_input_in_mixed_batches_either(world, start):
    running, _ = drive(world, start, FORWARD, TURN)
    state = stack([running, start, running.reseed(2)])
    for _ in range(2):
        before = content(state)
        after, _ = drive(world, state, TURN)
        assert content(state) == before
        state = after


def test_a_clip_cannot_be_used_to_edit_the_state(world, start):
    _, (clip,) = drive(world, start, FORWARD)
    with pytest.raises(ValueError, match="read-only"):
        clip.c2w[:] = 0


def test_advance_changes_no_input(world, start):
    state = start
    for twist in (FORWARD, TURN, TURN, FORWARD):
        before, poses = content(state), hold(state.slots[0].c2w, np.array(twist, float))
        given_poses = poses.copy()
        after, _ = world.advance(state, poses)
        assert content(state) == before
        assert np.array_equal(poses, given_poses)
        assert after is not state
        state = after


def test_a_clip_has_the_frames_and_poses_of_one_chunk(world, start):
    state, (clip, later) = drive(world, start, FORWARD, TURN)
    assert clip.frames.shape == (1, 24, TINY.height, TINY.width, 3)
    assert clip.frames.dtype == torch.uint8
    assert clip.c2w.shape == (1, 24, 4, 4)
    assert clip.latents.shape == later.latents.shape == (1, 6, 3, 3, 4)
    assert same(later.frames[0, -1], state.slots[0].frame)
    assert np.array_equal(later.c2w[0, -1], state.slots[0].c2w)
    assert state.slots[0].chunk == 2


@pytest.mark.slow
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(st.integers(0, 30), st.sampled_from([FORWARD, TURN, STILL])), min_size=1, max_size=8),
    st.integers(0, 3),
)
def test_any_branching_replays_bit_for_bit(world, start, moves, seed):
    """Each move restores any earlier state and drives on; driving again from there shows the same frames."""
    kept = [start.reseed(seed)]
    for which, twist in moves:
        source = kept[which % len(kept)]
        state, (clip,) = drive(world, source, twist)
        again, (replay,) = drive(world, source, twist)
        assert same(clip.frames, replay.frames)
        assert same(clip.latents, replay.latents)
        assert content(again) == content(state)
        kept.append(state)


def test_forks_diverge_with_other_actions_and_with_another_seed(world, start):
    state, _ = drive(world, start, FORWARD)
    _, (ahead,) = drive(world, state, FORWARD)
    _, (turned,) = drive(world, state, TURN)
    _, (reseeded,) = drive(world, state.reseed(99), FORWARD)
    assert not same(ahead.frames, turned.frames)
    assert not same(ahead.frames, reseeded.frames)
    assert state.reseed(99).slots[0].memory is state.slots[0].memory


def test_indexing_stacking_and_reseeding_copy_nothing(world, start):
    state, _ = drive(world, start, FORWARD, TURN)
    many = stack([state, start, state])
    assert pointers(many) == pointers(state) + pointers(start) + pointers(state)
    assert pointers(many[0]) == pointers(state)
    assert pointers(many[1:]) == pointers(start) + pointers(state)
    assert [pointers(s) for s in many] == [pointers(state), pointers(start), pointers(state)]
    assert many.nbytes == stack([state, start]).nbytes  # what slots share counts once
    assert pointers(state.to("cpu")) == pointers(state)


def test_fresh_and_running_slots_advance_together(world, start):
    running, _ = drive(world, start, FORWARD, TURN, TURN)
    fresh = world.begin(world.scene(picture(1)), seed=8)
    together = stack([running, fresh, running.reseed(3)])
    after, (clip,) = drive(world, together, TURN)
    assert clip.batch_rows == ((0, 2), (0, 1), (1, 2))
    assert [slot.chunk for slot in after.slots] == [4, 1, 4]
    for i, single in enumerate(together):
        alone, (own,) = drive(world, single, TURN)
        assert torch.allclose(clip.latents[i], own.latents[0], atol=1e-4)
        assert (clip.frames[i].int() - own.frames[0].int()).abs().max() <= 1
        assert alone.slots[0].chunk == after.slots[i].chunk


def test_a_slot_taken_from_a_batch_does_not_keep_its_neighbours_alive(world, start):
    alone, _ = drive(world, start, FORWARD, TURN, TURN)
    batch, _ = drive(world, stack([start] * 4), FORWARD, TURN, TURN)
    assert batch[2].nbytes == alone.nbytes


def test_branches_share_what_they_have_in_common(world, start):
    """The first chunk's page stays in the window for ever: it is one tensor, however deep the tree."""
    state, _ = drive(world, start, FORWARD)
    page = state.slots[0].memory.network.blocks[1].mixer.pages[0]
    for twist in (TURN, FORWARD, STILL):
        state, _ = drive(world, state, twist)
        assert state.slots[0].memory.network.blocks[1].mixer.pages[0].k.data_ptr() == page.k.data_ptr()


@pytest.mark.slow
def test_memory_is_flat_over_100_chunks(world, start):
    def live() -> int:
        gc.collect()
        return sum(issubclass(type(o), torch.Tensor) for o in gc.get_objects())

    state, _ = drive(world, start, *[STILL] * 4)
    size, count = state.nbytes, live()
    for _ in range(100):
        state, _ = drive(world, state, TURN)
        assert state.nbytes == size
    assert live() <= count + 5


def test_save_and_load_round_trip_bit_for_bit(world, start, tmp_path):
    state, _ = drive(world, stack([start, start.reseed(1)]), FORWARD, TURN)
    mixed = stack([state, start])
    mixed.save(tmp_path / "state.safetensors")
    loaded = WorldState.load(tmp_path / "state.safetensors", world)
    assert content(loaded) == content(mixed)
    assert [(s.seed, s.chunk) for s in loaded.slots] == [(s.seed, s.chunk) for s in mixed.slots]
    poses = np.stack([hold(slot.c2w, np.array(TURN, float)) for slot in mixed.slots])
    assert same(world.advance(loaded, poses)[1].frames, world.advance(mixed, poses)[1].frames)


def test_an_anchor_survives_the_file(tmp_path):
    nano = World.load("nano")
    state = nano.begin(nano.scene(nano.starts[0]))
    state.save(tmp_path / "s")
    anchor = WorldState.load(tmp_path / "s", nano).slots[0].scene.anchor
    assert isinstance(anchor, Anchor)
    assert anchor.place == state.slots[0].scene.anchor.place
    assert np.array_equal(anchor.c2w, state.slots[0].scene.anchor.c2w)


def rewritten(path, **changes):
    """The same file with other header entries."""
    with safe_open(path, "pt") as file:
        header = json.loads(file.metadata()["sanawm_state"]) | changes
    save_file(load_file(path), path, {"sanawm_state": json.dumps(header)})
    return path


def test_bad_state_files_get_one_clear_error(world, other_world, start, tmp_path):
    state, _ = drive(world, start, FORWARD)
    path = tmp_path / "state.safetensors"

    def fresh():
        state.save(path)
        return path

    with pytest.raises(FileNotFoundError, match="no state at"):
        WorldState.load(tmp_path / "missing", world)
    data = fresh().read_bytes()
    for cut in (0, 7, 100, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:cut])
        with pytest.raises(ValueError, match="not a saved state, or was cut off"):
            WorldState.load(path, world)
    save_file({"weight": torch.zeros(3)}, path)
    with pytest.raises(ValueError, match="not a saved state"):
        WorldState.load(path, world)
    with pytest.raises(ValueError, match="other weights"):
        WorldState.load(fresh(), other_world)
    with pytest.raises(ValueError, match="schema 99"):
        WorldState.load(rewritten(fresh(), schema=99), world)
    with pytest.raises(ValueError, match="complete state"):
        WorldState.load(rewritten(fresh(), slots=[{"type": "Popen", "fields": {}}]), world)


def test_a_state_that_cannot_be_written_leaves_nothing(world, start, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="cannot write"):
        start.save(tmp_path / "file" / "state")
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match="cannot write"):
        start.save(tmp_path / "folder")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder"]


def test_states_of_another_world_are_refused(world, other_world, start):
    foreign = other_world.begin(other_world.scene(picture()))
    with pytest.raises(ValueError, match="other weights"):
        world.advance(foreign, np.tile(np.eye(4), (24, 1, 1)))
    with pytest.raises(ValueError, match="different worlds"):
        stack([start, foreign])
    with pytest.raises(ValueError, match="at least one"):
        stack([])
    with pytest.raises(ValueError, match="another world"):
        world.begin(foreign.slots[0].scene)
    with pytest.raises(TypeError, match="begin takes scenes"):
        world.begin("photo.jpg")
    with pytest.raises(TypeError, match="WorldState"):
        world.advance("state", np.tile(np.eye(4), (24, 1, 1)))


@pytest.mark.parametrize(
    "spoil, message",
    [
        (lambda p: p[:23], "shape"),
        (lambda p: np.where(np.arange(24)[:, None, None] == 3, np.nan, p), "pose 3"),
        (lambda p: p * 2, "bottom row"),
        (lambda p: p @ np.diag([1.0, 1, -1, 1]), "mirrored"),
        (lambda p: p.astype(complex), "real numbers"),
    ],
)
def test_bad_poses_are_refused_before_any_work(world, start, spoil, message):
    calls = []
    engine = world.engine

    class Watching(Engine):
        config, device = engine.config, engine.device

        def advance(self, *args):
            calls.append(args)

    watched = World(Watching(), world.weights_hash)
    with pytest.raises((ValueError, TypeError), match=message):
        watched.advance(start, spoil(np.tile(np.eye(4), (24, 1, 1))))
    assert calls == []


def test_an_unknown_world_names_the_known_ones():
    assert "nano" in known_worlds()
    with pytest.raises(ValueError, match=r"Unknown world 'nanoo'; the known worlds are .*nano"):
        World.load("nanoo")


@pytest.mark.slow
def test_damaged_worlds_say_what_is_wrong(tmp_path):
    folder = write_tiny_world(tmp_path / "a")
    (folder / "network.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"no network\.safetensors"):
        World.load(folder)
    folder = write_tiny_world(tmp_path / "b")
    (folder / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="not the configuration of a world"):
        World.load(folder)
    folder = write_tiny_world(tmp_path / "c")
    save_file({"x": torch.zeros(1)}, folder / "network.safetensors")
    with pytest.raises(ValueError, match="does not fit the configuration"):
        World.load(folder)
    folder = write_tiny_world(tmp_path / "d")
    (folder / "codec.safetensors").write_bytes(b"cut off")
    with pytest.raises(ValueError, match="cannot be read as a codec"):
        World.load(folder)
    folder = write_tiny_world(tmp_path / "e")
    PatchPCACodec(5).save(folder / "codec.safetensors")
    with pytest.raises(ValueError, match="5 channels"):
        World.load(folder)
    guided = dataclasses.replace(TINY, sampler=SamplerConfig(guidance_scale=2.0))
    with pytest.raises(ValueError, match="guidance"):
        World.load(write_tiny_world(tmp_path / "f", config=guided))


@pytest.mark.parametrize("device", ["cuda:99", "teapot"])
def test_a_device_that_is_not_there_is_named(device):
    with pytest.raises(ValueError, match=f"'{device}' cannot be used"):
        World.load("nano", device)


OPTIONS = {
    "precision": (5, [], "fp3", True), "refiner_precision": (5, {}), "backend": (3, [], "cuda!"),
    "refiner": ("yes", 1, None), "graphs": ("no", 0), "text_encoder": ("off",), "softcap": (1.0, []),
    "offload": (3, None, [1], "everything"), "timesteps": (5, "1000", [2, 3], [True]), "flow_shift": ("8", 0, True),
    "temperature": ("1", -0.5, True, float("nan")),
    "threads": (0, 1.5, "2", True, 10**6), "device": (None, True, 1.5, [], {}, "teapot", ""),
}  # fmt: skip


@pytest.mark.parametrize("name", OPTIONS)
def test_load_options_of_the_wrong_kind_are_named(name):
    for value in OPTIONS[name]:
        with pytest.raises((ValueError, TypeError), match=name) as refused:
            World.load("nano", **{name: value})
        assert "\n" not in str(refused.value) and len(str(refused.value)) < 300, value


def test_weights_are_loaded_once_per_process():
    assert World.load("nano") is World.load("nano", "cpu")


def test_a_scene_is_encoded_once_and_keyed_by_content(world):
    first, again = world.scene(picture(3)), world.scene(picture(3).copy())
    assert first is again
    assert world.scene(picture(4)).key != first.key
    assert world.scene(picture(3), intrinsics=np.array([40.0, 40, 25, 20])).key != first.key
    with pytest.raises(ValueError, match="no text encoder"):
        world.scene(picture(3), prompt="a forest")
    with pytest.raises(ValueError, match="does not know the place"):
        world.scene(picture(3), anchor=Anchor("atlantis", np.eye(4)))
    with pytest.raises(ValueError, match="positive focal"):
        world.scene(picture(3), intrinsics=np.array([-1.0, 40, 25, 20]))
    with pytest.raises(ValueError, match="intrinsics must be"):
        world.scene(picture(3), intrinsics=np.ones(5))


@pytest.mark.parametrize("seed, error", [(-1, ValueError), (2**63, ValueError), (1.5, TypeError), (True, TypeError)])
def test_bad_seeds_are_refused(world, start, seed, error):
    with pytest.raises(error, match="seed"):
        world.begin(start.slots[0].scene, seed=[seed])
    with pytest.raises(error, match="seed"):
        start.reseed(seed)


@pytest.mark.parametrize("name", [None, 3, b"nano"])
def test_a_world_is_a_name_or_a_folder(name):
    with pytest.raises(TypeError, match="world must be a name or a folder, got"):
        World.load(name)


@pytest.mark.slow
def test_an_unloaded_world_says_so_and_its_states_go_on_in_the_same_world_loaded_again(tmp_path):
    folder = write_tiny_world(tmp_path / "w")
    world = World.load(folder)
    state, _ = drive(world, world.begin(world.scene(picture())), FORWARD)
    weights = weakref.ref(world.engine.network)
    world.unload()
    world.unload()  # twice is once
    gc.collect()
    assert weights() is None
    for call in (lambda: world.advance(state, np.eye(4)), lambda: world.scene(picture()), lambda: world.engine):
        with pytest.raises(RuntimeError, match=r"was unloaded: load it again with World\.load"):
            call()
    again = World.load(folder)
    assert again is not world
    drive(again, state, FORWARD)
