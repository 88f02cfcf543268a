"""A saved moment is read as what it was, or refused in a sentence: whatever one changes in it, nothing breaks later."""

import copy
import json
import os

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from sanawm_env.envs.env import SanaWMEnv
from sanawm_env.simulation.episode import Snapshot
from sanawm_env.world import tree
from sanawm_env.world.state import WorldState
from sanawm_env.world.world import World
from tests.standin_hub import fetched
from tests.worlds import picture, with_starts, write_tiny_world

KINDS = {
    "keys": {"action_mode": "keys", "task": "imagenav"},
    "twist": {"action_mode": "twist", "task": "explore"},
    "poses": {"action_mode": "poses", "task": "followpath"},
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return with_starts(write_tiny_world(tmp_path_factory.mktemp("worlds") / "tiny"))


@pytest.fixture(scope="module", params=KINDS)
def saved(request, tiny, tmp_path_factory):
    """An environment, the header and the tensors of its snapshot after two steps."""
    env = SanaWMEnv(tiny, max_episode_chunks=100, **KINDS[request.param])
    env.reset(seed=0)
    for _ in range(2):
        env.step(env.action_space.sample())
    path = tmp_path_factory.mktemp("saved") / "s"
    env.snapshot().save(path)
    with safe_open(path, "pt") as file:
        header = json.loads(file.metadata()["sanawm_state"])
        return env, path, header, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def places(value, path=()):
    """The way to every value in a header that is not made of others."""
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from places(inner, (*path, key))
            yield (*path, key)
    else:
        yield path


def changed(header, path, value):
    other = copy.deepcopy(header)
    at = other
    for key in path[:-1]:
        at = at[key]
    if value is REMOVED:
        del at[path[-1]]
    else:
        at[path[-1]] = value
    return other


REMOVED = object()
VALUES = [
    REMOVED, None, True, -1, 2.5, 10**18, 10**30, float("nan"), "no", "x" * 10**5, [], [1], {}, {"tensor": "no"},
    {"set": [1]}, {"type": "Slot", "fields": {}}, {"type": "no", "fields": {}}, {"tensor": "slots.0.frame"},
    {"array": "slots.0.c2w"},
]  # fmt: skip
TENSORS = {
    "of another dtype": lambda t: t.to(torch.float64 if t.dtype != torch.float64 else torch.float32),
    "of halves": lambda t: t.to(torch.float16),
    "with a row more": lambda t: torch.cat((t, t[:1])),
    "with an axis more": lambda t: t[None],
    "of nothing": lambda t: t[:0],
    "of one number": lambda t: torch.zeros((), dtype=t.dtype),
    "shorter": lambda t: t[..., :-1].contiguous(),
    "not finite": lambda t: t * torch.nan if t.is_floating_point() else t.flip(0),
    "huge": lambda t: t + 1e30 if t.is_floating_point() else t,
}


def holds(env, path, header, tensors):
    """Whether the changed snapshot is refused in a sentence, or goes on; what has come of it otherwise."""
    save_file(tensors, path, {"sanawm_state": json.dumps(header)})
    try:
        snapshot = Snapshot.load(path, env.world)
    except ValueError as error:
        assert "\n" not in str(error) and len(str(error)) < 600
        return "refused"
    try:
        env.restore(snapshot)
    except ValueError as error:
        assert len(str(error)) < 600
        return "refused"
    if not any(env.ended):
        env.step(np.tile(np.eye(4), (24, 1, 1)) if env.action_mode == "poses" else env.action_space.sample())
    return "goes on"


@pytest.mark.slow
def test_every_changed_value_is_refused_or_goes_on(saved, tmp_path):
    env, _, header, tensors = saved
    rng, found = np.random.default_rng(0), {"refused": 0, "goes on": 0}
    for path in places(header):
        for i in rng.choice(len(VALUES), 2, replace=False):
            found[holds(env, tmp_path / "s", changed(header, path, VALUES[i]), tensors)] += 1
    assert found["refused"] > 3 * found["goes on"]  # of most things there is one that fits


@pytest.mark.slow
def test_every_changed_tensor_is_refused_or_goes_on(saved, tmp_path):
    env, _, header, tensors = saved
    for name, tensor in tensors.items():
        for kind, change in TENSORS.items():
            try:
                other = change(tensor)
            except (RuntimeError, IndexError):
                continue  # a number has no rows
            if torch.equal(other, tensor) and other.dtype == tensor.dtype and other.shape == tensor.shape:
                continue
            came = holds(env, tmp_path / "s", header, tensors | {name: other})
            longer = name.startswith("extra.4")  # what tasks remember has no length of its own
            own = other.dtype == tensor.dtype and (other.shape == tensor.shape or longer)
            halves = kind == "of halves" and ("latent" in name or "text" in name)  # of any precision
            assert came == "refused" or own or halves, (name, kind)


@pytest.mark.parametrize("bare", [0, 1])
def test_a_moment_comes_back_bit_for_bit(saved, tmp_path, bare):
    """After a reset there is no clip, no memory and nothing carried."""
    env, path, _, _ = saved
    if bare:
        env.reset(seed=3)
        path = tmp_path / "s"
        env.snapshot().save(path)
    snapshot = Snapshot.load(path, env.world)
    snapshot.save(tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == path.read_bytes()


def test_old_files_that_say_less_are_read(saved, tmp_path):
    """Schema 3 began without `origin` and `start`."""
    env, _, header, tensors = saved
    older = copy.deepcopy(header)
    for name in ("origin", "start"):
        del older["slots"][0]["fields"][name]
    assert holds(env, tmp_path / "s", older, tensors) == "goes on"


def test_nested_headers_and_special_files_are_refused(saved, tmp_path):
    env, _, header, tensors = saved
    deep = json.loads("[" * 90 + "]" * 90)
    for other in (changed(header, ("slots",), deep), changed(header, ("extra",), deep)):
        assert holds(env, tmp_path / "s", other, tensors) == "refused"
    for text in ("[" * 100_000, '{"schema": 3}', "[]", "3"):
        save_file({}, tmp_path / "s", {"sanawm_state": text})
        with pytest.raises(ValueError, match="s"):
            Snapshot.load(tmp_path / "s", env.world)
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "endless").symlink_to("/dev/zero")
    for name in ("pipe", "endless", "."):
        with pytest.raises(ValueError, match="not a saved state"):
            WorldState.load(tmp_path / name, env.world)
    with pytest.raises(TypeError, match=r"World\.load"):
        WorldState.load(tmp_path / "s", "nano")


@pytest.fixture(scope="module")
def official(tmp_path_factory):
    """Stand-ins of both official worlds, the streaming one with its refiner."""
    parts = ("dit", "codec", "text")
    with fetched(tmp_path_factory.mktemp("hub"), {"streaming": (*parts, "refiner"), "chunk-causal": parts}):
        yield (
            World.load("streaming", text_encoder=True, refiner=True),
            World.load("chunk-causal", text_encoder=True, timesteps=[1000, 500]),  # of its sixty
        )


@pytest.mark.slow
def test_the_outline_is_what_a_world_leaves(official, tiny, tmp_path):
    for world in (*official, World.load(tiny), World.load("nano")):
        state = world.begin(world.scene(picture()), seed=0)
        for chunk in range(1, 5):
            state, _ = world.advance(state, np.tile(np.eye(4), (24, 1, 1)))
            slot = state.slots[0]
            conditions, memory = world.engine.outline(slot.scene, chunk)
            tree.check_layout(slot.scene.conditions, conditions)
            tree.check_layout(slot.memory, memory)
        for kept in (state, world.without_caches(state)):
            kept.save(tmp_path / "s")
            again = WorldState.load(tmp_path / "s", world)
            assert all(map(torch.equal, tree.leaves(again.slots), tree.leaves(kept.slots)))
