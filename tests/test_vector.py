"""Many episodes in one batch: Gymnasium's promises of vector environments, and that a slot is a single environment."""

import copy
import dataclasses
import gc
import pickle

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.envs.registration import EnvSpec
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import data_equivalence
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers.vector import DictInfoToList, NumpyToTorch

import sanawm_env
from sanawm_env import SanaWMEnv, SanaWMVectorEnv, Snapshot
from sanawm_env.world import world as world_module
from tests.worlds import with_starts, write_tiny_world

TASKS = ("Explore", "PointNav", "ImageNav", "FollowPath")
MODES = ("NextStep", "SameStep", "Disabled")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> str:
    return with_starts(write_tiny_world(tmp_path_factory.mktemp("worlds") / "tiny"))


def make(tiny, n=3, **settings) -> SanaWMVectorEnv:
    return SanaWMVectorEnv(n, world=tiny, task="explore", **settings)


def actions_for(envs, steps, seed=0):
    rng = np.random.default_rng(seed)
    return rng.uniform(-1, 1, (steps, envs.num_envs, 6)).astype(np.float32)


def rows(obs, i):
    return {name: value[i] for name, value in obs.items()}


def walk(envs, actions):
    return [envs.step(action) for action in actions]


def close(a, b):
    """Equal to rounding, which may turn a pixel by one."""
    return all(np.allclose(a[k], b[k], atol=1 if a[k].dtype == np.uint8 else 1e-5) for k in a)


# --- the interface ---


@pytest.mark.parametrize("task", TASKS)
def test_make_vec_gives_the_batched_environment(tiny, task):
    envs = gym.make_vec(f"SanaWM/{task}-v0", num_envs=2, world=tiny)
    assert isinstance(envs, sanawm_env.SanaWMVectorEnv)
    assert envs.metadata["autoreset_mode"] is envs.autoreset_mode is AutoresetMode.NEXT_STEP
    obs, _ = envs.reset(seed=0)
    assert envs.observation_space.contains(obs)
    obs, rewards, terminated, truncated, infos = envs.step(envs.action_space.sample())
    assert envs.observation_space.contains(obs)
    assert rewards.dtype == np.float64 and terminated.dtype == truncated.dtype == np.bool_
    assert rewards.shape == terminated.shape == truncated.shape == (2,)
    assert infos["c2w"].shape == (2, 24, 4, 4) and infos["_c2w"].all()
    envs.close()


def test_metadata_is_each_instances_own(tiny):
    one, other = make(tiny, 1), make(tiny, 1, autoreset_mode="SameStep")
    assert one.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
    assert other.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    assert "autoreset_mode" not in SanaWMVectorEnv.metadata


def test_a_step_is_one_forward_pass(tiny, monkeypatch):
    envs, calls = make(tiny, 4), []
    envs.reset(seed=0)
    advance = world_module.World.advance

    def counted(self, state, poses):
        calls.append(len(state))
        return advance(self, state, poses)

    monkeypatch.setattr(world_module.World, "advance", counted)
    envs.step(envs.action_space.sample())
    assert calls == [4]


@pytest.mark.parametrize("obs_mode", ["dict", "rgb", "stack", "chunk", "latent"])
def test_every_observation_is_batched(tiny, obs_mode):
    envs, single = make(tiny, 2, obs_mode=obs_mode), SanaWMEnv(tiny, obs_mode=obs_mode)
    assert envs.single_observation_space == single.observation_space
    assert envs.observation_space.contains(envs.reset(seed=0)[0])
    assert envs.observation_space.contains(envs.step(envs.action_space.sample())[0])


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("batch_invariant", [False, True])
def test_a_slot_is_the_single_environment_of_its_seed(tiny, task, batch_invariant):
    settings = {"world": tiny, "task": task.lower(), "max_episode_chunks": 3}
    envs = SanaWMVectorEnv(3, batch_invariant=batch_invariant, **settings)
    alike = data_equivalence if batch_invariant else close
    obs, _ = envs.reset(seed=7)
    singles = [SanaWMEnv(**settings) for _ in range(3)]
    for i, single in enumerate(singles):
        assert alike(rows(obs, i), single.reset(seed=7 + i)[0])
    for action in actions_for(envs, 2):
        obs, rewards, terminated, truncated, infos = envs.step(action)
        for i, single in enumerate(singles):
            own, reward, over, cut, info = single.step(action[i])
            assert alike(rows(obs, i), own)
            assert rewards[i] == pytest.approx(reward, abs=0 if batch_invariant else 1e-2)
            assert (terminated[i], truncated[i]) == (over, cut)
            assert np.array_equal(infos["c2w"][i], info["c2w"])


def test_whole_chunks_stay_on_the_device(tiny, monkeypatch):
    envs = make(tiny)
    monkeypatch.setattr(Snapshot, "host_clip", None)  # what brings 24 full frames over
    envs.reset(seed=0)
    envs.step(envs.action_space.sample())
    envs.fork(0)


# --- ends of episodes ---


def staggered(envs):
    """Slots that are 2, 1 and 0 steps into their episodes."""
    envs.reset(seed=0)
    for left in (2, 1):
        envs.step(np.zeros((3, 6), np.float32))
        fresh = SanaWMVectorEnv(3, world=envs.world, task="explore", max_episode_chunks=3)
        fresh.reset(seed=50)
        envs.restore(fresh.snapshot(list(range(3 - left, 3))), list(range(3 - left, 3)))


def test_next_step_resets_the_finished_slot_alone(tiny):
    envs = make(tiny, max_episode_chunks=3)
    staggered(envs)
    still = np.zeros((3, 6), np.float32)
    *_, truncated, infos = envs.step(still)
    assert (truncated.tolist(), infos["chunk"].tolist()) == ([True, False, False], [3, 2, 1])
    _, rewards, _, truncated, infos = envs.step(still)
    assert (truncated.tolist(), infos["chunk"].tolist()) == ([False, True, False], [0, 3, 2])
    assert rewards[0] == 0
    assert infos["seed"][0] != infos["seed"][1]


def test_same_step_gives_the_end_and_the_beginning(tiny):
    envs, other = (make(tiny, max_episode_chunks=3, autoreset_mode=mode) for mode in ("SameStep", "Disabled"))
    for each in (envs, other):
        staggered(each)
    action = actions_for(envs, 1)[0]
    _, _, _, truncated, infos = envs.step(action)
    ends, *_ = other.step(action)
    assert truncated.tolist() == [True, False, False]
    assert infos["_final_obs"].tolist() == [True, False, False]
    assert data_equivalence(infos["final_obs"][0], rows(ends, 0))
    assert infos["final_info"]["chunk"][0] == 3
    assert infos["chunk"].tolist() == [0, 2, 1]
    kept = infos["final_obs"][0]["rgb"].copy()
    walk(envs, actions_for(envs, 3))
    assert np.array_equal(kept, infos["final_obs"][0]["rgb"])  # a copy: nothing writes into it


def test_disabled_waits_for_the_mask(tiny):
    envs = make(tiny, max_episode_chunks=3, autoreset_mode="Disabled")
    staggered(envs)
    action = np.zeros((3, 6), np.float32)
    *_, truncated, infos = envs.step(action)
    with pytest.raises(ResetNeeded, match="Slot 0: The episode is over"):
        envs.step(action)
    obs, infos = envs.reset(options={"reset_mask": truncated})
    assert infos["chunk"][0] == 0 and infos["_chunk"].tolist() == [True, False, False]
    assert envs.observation_space.contains(obs)
    assert envs.step(action)[4]["chunk"].tolist() == [1, 3, 2]


def test_termination_resets_too(tiny):
    envs = SanaWMVectorEnv(2, world=tiny, task="pointnav", task_options={"radius": 100.0})
    envs.reset(seed=0)
    _, _, terminated, truncated, _ = envs.step(envs.action_space.sample())
    assert terminated.all() and not truncated.any()
    assert envs.step(envs.action_space.sample())[4]["chunk"].tolist() == [0, 0]


# --- the habits of Gymnasium's own vector environments ---


def test_slots_are_reached_as_in_gymnasiums_own(tiny):
    own = SyncVectorEnv([lambda: gym.make("SanaWM/Explore-v0", world=tiny)] * 2)
    envs = gym.make_vec("SanaWM/Explore-v0", num_envs=2, world=tiny)
    for each in (own, envs):
        each.reset(seed=3)
    assert envs.np_random_seed == own.np_random_seed == (3, 4)
    assert [r.bit_generator.state for r in envs.np_random] == [r.bit_generator.state for r in own.np_random]
    assert envs.get_attr("max_episode_chunks") == own.get_attr("max_episode_chunks") == (10, 10)
    assert data_equivalence(envs.call("clone_state")[1].poses(24), own.call("clone_state")[1].poses(24))
    for each in (own, envs):
        each.set_attr("max_episode_chunks", [1, 2])
        with pytest.raises(ValueError, match="equal to the number of environments"):
            each.set_attr("max_episode_chunks", [1, 2, 3])
        with pytest.raises(AttributeError):
            each.get_attr("smell")
        assert each.step(np.zeros((2, 6), np.float32))[3].tolist() == [True, False]
        each.close(), each.close()
        assert each.closed


def test_a_wrong_attribute_changes_no_slot(tiny):
    envs = make(tiny)
    with pytest.raises(ValueError, match="max_episode_chunks must be at least 1, got -1"):
        envs.set_attr("max_episode_chunks", [5, 6, -1])
    with pytest.raises(ValueError, match="All slots share their reward_fn"):
        envs.set_attr("reward_fn", [None, None, len])
    with pytest.raises(AttributeError, match="obs_mode"):
        envs.set_attr("obs_mode", "rgb")
    assert envs.get_attr("max_episode_chunks") == (10, 10, 10)
    assert envs.get_attr("obs_mode") == ("dict", "dict", "dict")


def test_generators_can_be_set(tiny):
    envs = make(tiny)
    for given in (np.random.default_rng(1), [np.random.default_rng(i) for i in range(3)]):
        envs.np_random = given
        assert envs.np_random_seed == (-1, -1, -1)
        assert len(set(envs.reset()[1]["seed"])) == 3


@pytest.mark.parametrize("mode", MODES)
def test_a_length_in_gymnasiums_name(tiny, mode):
    envs = gym.make_vec("SanaWM/PointNav-v0", num_envs=2, world=tiny, max_episode_steps=2, autoreset_mode=mode)
    assert envs.spec.max_episode_steps == envs.get_attr("spec")[1].max_episode_steps == 2
    twin = gym.make_vec(EnvSpec.from_json(envs.spec.to_json()))
    assert (twin.autoreset_mode, twin.num_envs) == (envs.autoreset_mode, 2)
    for each in (envs, twin):
        each.reset(seed=0)
        ends = [each.step(np.zeros((2, 6), np.float32))[3].tolist() for _ in range(2)]
        assert ends == [[False, False], [True, True]]
    assert gym.make(envs.get_attr("spec")[0]).unwrapped.max_episode_chunks == 2
    lengths = {"max_episode_steps": 20, "max_episode_chunks": 3}
    assert SanaWMVectorEnv(world=tiny, **lengths).get_attr("max_episode_chunks") == (3,)
    assert SanaWMVectorEnv(world=tiny, max_episode_steps=20).get_attr("max_episode_chunks") == (20,)
    assert SanaWMVectorEnv(world=tiny, max_episode_steps=-1).get_attr("max_episode_chunks") == (10,)


@pytest.mark.parametrize("task", TASKS)
def test_infos_are_numbers_that_vector_wrappers_carry(tiny, task):
    settings = {"num_envs": 2, "world": tiny, "max_episode_steps": 1}
    plain = gym.make_vec(f"SanaWM/{task}-v0", **settings)
    envs = NumpyToTorch(gym.make_vec(f"SanaWM/{task}-v0", **settings))
    assert torch.equal(envs.reset(seed=0)[1]["c2w"], torch.tensor(plain.reset(seed=0)[1]["c2w"]))
    infos = envs.step(torch.zeros(2, 6))[4]
    assert all(isinstance(value, torch.Tensor) for value in infos.values())
    assert ("is_success" in infos) == (task != "Explore")
    same_step = gym.make_vec(f"SanaWM/{task}-v0", **settings, autoreset_mode="SameStep")
    same_step.reset(seed=0)
    final = same_step.step(np.zeros((2, 6), np.float32))[4]["final_info"]
    assert {value.dtype.kind for value in final.values()} <= set("biuf")
    listed = DictInfoToList(gym.make_vec(f"SanaWM/{task}-v0", **settings))
    assert listed.reset(seed=0)[1][1]["seed"] == plain.reset(seed=0)[1]["seed"][1]


def test_batches_of_poses_are_sampled_and_stepped(tiny):
    envs = gym.make_vec("SanaWM/Explore-v0", num_envs=2, world=tiny, action_mode="poses")
    envs.reset(seed=0)
    actions = envs.action_space.sample()
    assert np.allclose(envs.step(actions)[4]["c2w"], actions, atol=1e-6)


def test_tensors_are_actions_of_a_batch(tiny):
    envs, twin = make(tiny, 2), make(tiny, 2)
    actions = actions_for(envs, 1)[0]
    for each in (envs, twin):
        each.reset(seed=0)
    stepped = envs.step(torch.tensor(actions))
    assert data_equivalence(stepped, twin.step(actions))
    discrete = make(tiny, 2, action_mode="discrete")
    discrete.reset(seed=0)
    discrete.step(np.array([[3], [4]]))


# --- snapshots and forks ---


def test_restored_slots_have_the_same_future(tiny):
    envs = make(tiny, batch_invariant=True)
    envs.reset(seed=0)
    first, second = actions_for(envs, 2)
    envs.step(first)
    here = envs.snapshot()
    ahead = envs.step(second)
    envs.step(first)
    shown, _ = envs.restore([here[2], here[0]], [2, 0])
    assert envs.observation_space.contains(shown)
    again = envs.step(second)
    for i in (0, 2):
        assert data_equivalence(rows(again[0], i), rows(ahead[0], i))
        assert again[1][i] == ahead[1][i]
    assert not data_equivalence(rows(again[0], 1), rows(ahead[0], 1))


def test_a_snapshot_moves_between_slots_and_single_environments(tiny):
    envs, single = make(tiny), SanaWMEnv(tiny, task="explore")
    single.reset(seed=4)
    single.step(np.full(6, 0.5))
    envs.reset(seed=0)
    obs, infos = envs.restore([single.snapshot()], [1])
    assert close(rows(obs, 1), single.observation)
    assert infos["cells"][1] == single.info["cells"]
    back, _ = single.restore(envs.snapshot([0])[0])
    assert close(rows(obs, 0), back)


def test_a_fork_is_many_futures_of_one_moment(tiny):
    envs = make(tiny, 4)
    envs.reset(seed=0)
    walk(envs, actions_for(envs, 2))
    here = envs.snapshot([1])[0]
    obs, infos = envs.fork(1)
    assert all(data_equivalence(rows(obs, i), rows(obs, 1)) for i in range(4))
    assert infos["_chunk"].tolist() == [True, False, True, True]
    assert all(envs.envs[i].state.slots[0].memory is here.state.slots[0].memory for i in range(4))
    same = np.repeat(actions_for(envs, 1)[0][:1], 4, axis=0)
    futures = envs.step(same)[0]
    assert all(close(rows(futures, i), rows(futures, 0)) for i in range(4))
    envs.restore([here] * 4)
    assert not close(rows(envs.step(-same)[0], 0), rows(futures, 0))


def test_a_fork_can_have_other_noise(tiny):
    envs = make(tiny, 3)
    envs.reset(seed=0)
    _, infos = envs.fork(0, [1, 2], reseed=[5, 6])
    assert infos["seed"].tolist() == [0, 5, 6]
    futures = envs.step(np.zeros((3, 6), np.float32))[0]
    assert not close(rows(futures, 1), rows(futures, 2))


def pickled(envs):
    return pickle.loads(pickle.dumps(envs))


@pytest.mark.parametrize("copied", [copy.deepcopy, pickled])
def test_a_copy_is_a_fork_of_all_slots(tiny, copied):
    envs = make(tiny)
    envs.reset(seed=0)
    walk(envs, actions_for(envs, 2))
    twin, action = copied(envs), actions_for(envs, 1, seed=1)[0]
    assert twin.world is envs.world
    assert data_equivalence(twin.step(action)[:4], envs.step(action)[:4])


def test_a_kept_snapshot_does_not_keep_its_neighbours_alive(tiny):
    envs, alone = make(tiny, 4), make(tiny, 1)
    sizes = []
    for each in (envs, alone):
        each.reset(seed=0)
        walk(each, actions_for(each, 3))
        sizes.append(each.snapshot([0])[0].nbytes)
    assert sizes[0] == sizes[1]


@pytest.mark.slow
def test_memory_is_flat(tiny):
    envs = make(tiny, 2, max_episode_chunks=3)
    envs.reset(seed=0)
    walk(envs, actions_for(envs, 9))

    def live():
        gc.collect()
        return len(gc.get_objects())

    before = live()
    walk(envs, actions_for(envs, 16))
    assert live() < before + 500


# --- bad input ---


@pytest.mark.parametrize(
    ("spoil", "error", "says"),
    [
        (lambda a: np.where(np.arange(3)[:, None] == 1, np.nan, a), ValueError, "Slot 1: .*not finite"),
        (lambda a: a[:2], ValueError, "step takes 3 actions, one for each slot, got 2"),
        (lambda a: torch.tensor(a, requires_grad=True), TypeError, r"a gradient, .* pass action\.detach\(\)"),
        (lambda a: 7, TypeError, "step takes a batch of 3 actions, got 7"),
        (lambda a: a[:, :5], ValueError, "Slot 0: a twist action is six"),
    ],
)
def test_a_bad_action_names_its_slot_and_no_slot_moves(tiny, spoil, error, says):
    envs = make(tiny)
    envs.reset(seed=0)
    good = actions_for(envs, 1)[0]
    before = [env.snapshot().state.slots[0] for env in envs.envs]
    with pytest.raises(error, match=says):
        envs.step(spoil(good))
    assert all(env.state.slots[0] is slot for env, slot in zip(envs.envs, before, strict=True))
    assert envs.step(good)[4]["chunk"].tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda e: e.restore(e.snapshot([0]), [3]), ValueError, "There is no slot 3: slots are 0 to 2"),
        (lambda e: e.restore(e.snapshot([0, 1]), [1, 1]), ValueError, "must be different"),
        (lambda e: e.restore(e.snapshot([0]), [1, 2]), ValueError, "a snapshot for each slot, got 1 snapshots for 2"),
        (lambda e: e.restore(["here"], [1]), TypeError, "restore takes a Snapshot, got str"),
        (lambda e: e.fork(-1), ValueError, "There is no slot -1"),
        (lambda e: e.fork(0, [1, 1]), ValueError, "must be different"),
        (lambda e: e.fork(0, [1], reseed=[1, 2]), ValueError, "a snapshot and a seed for each slot"),
        (lambda e: e.snapshot([True]), ValueError, "There is no slot True"),
        (lambda e: e.reset(seed=[1, 2]), ValueError, "one for each of 3 slots, got 2"),
        (lambda e: e.reset(options={"reset_mask": [True] * 3}), TypeError, "must be a NumPy array of bools"),
        (lambda e: e.reset(options={"reset_mask": np.zeros(3, bool)}), ValueError, "and select a slot"),
        (lambda e: e.reset(options={"reset_mask": np.ones(2, bool)}), ValueError, r"the shape \(3,\)"),
        (lambda e: e.reset(options={"sceen": 1}), ValueError, "not sceen"),
        (lambda e: e.reset(options=5), TypeError, "options of a reset must be a mapping"),
        (lambda e: e.fork(0, [1, 2], reseed=[5, -1]), ValueError, "A seed must lie"),
        (lambda e: e.fork(0, [1, 2], reseed=[5, 2**63]), ValueError, "A seed must lie"),
        (lambda e: e.fork(0, [1, 2], reseed=5), TypeError, "reseed takes a seed for each slot, got 5"),
        (lambda e: e.fork(0, 1), TypeError, "slots are given in a list, got 1"),
        (lambda e: e.restore(e.snapshot([2, 1, 0]), None, [1, 2, 1.5]), TypeError, "A seed must be a whole number"),
        (lambda e: e.restore([*e.snapshot([2, 1]), None]), TypeError, "restore takes a Snapshot, got NoneType"),
        (lambda e: e.restore([*e.snapshot([2, 1]), spoilt(e)]), ValueError, "state of a random generator"),
        (lambda e: e.restore(e.snapshot()[0]), TypeError, "restore takes a list of snapshots"),
        (lambda e: e.reset(seed=[1, 2, -3]), ValueError, "The seed of a reset must not be negative"),
        (lambda e: e.reset(seed=[1, 2, 3.0]), TypeError, "The seed of a reset must be a whole number"),
        (lambda e: e.reset(seed=-2), ValueError, "The seed of a reset must not be negative"),
        (lambda e: e.reset(seed=1.5), TypeError, "reset takes one seed or one for each slot, got 1.5"),
        (lambda e: e.reset(seed="012"), TypeError, "reset takes one seed or one for each slot"),
        (lambda e: e.reset(seed=True), TypeError, "reset takes one seed or one for each slot"),
        (lambda e: e.reset(seed=[1, 2, 3], options={"scene": "no.png"}), FileNotFoundError, "no.png"),
    ],
)
def test_bad_slots_are_named_and_change_nothing(tiny, call, error, says):
    envs = make(tiny)
    envs.reset(seed=0)
    before = [env.state.slots[0] for env in envs.envs]
    with pytest.raises(error, match=says):
        call(envs)
    assert all(env.state.slots[0] is slot for env, slot in zip(envs.envs, before, strict=True))


def spoilt(envs):
    return dataclasses.replace(envs.snapshot([0])[0], rng="[]")


@pytest.mark.parametrize("mode", ["NextStep", "SameStep"])
def test_a_reset_that_fails_in_a_step_leaves_every_slot(tiny, mode, monkeypatch):
    envs = make(tiny, max_episode_chunks=3, autoreset_mode=mode)
    staggered(envs)
    action = np.zeros((3, 6), np.float32)
    if mode == "NextStep":
        envs.step(action)
    before = [(env.episode, env.np_random.bit_generator.state) for env in envs.envs]
    with monkeypatch.context() as patched:
        patched.setattr(SanaWMEnv, "_scene", lambda *_: (_ for _ in ()).throw(OSError("the disk is gone")))
        with pytest.raises(OSError, match="the disk is gone"):
            envs.step(action)
    assert [(env.episode, env.np_random.bit_generator.state) for env in envs.envs] == before
    assert envs.step(action)[4]["chunk"].tolist() == ([0, 3, 2] if mode == "NextStep" else [0, 2, 1])


def test_a_slot_in_the_middle_of_its_reset_is_not_forked_from_nor_into(tiny):
    envs = make(tiny, max_episode_chunks=1)
    envs.reset(seed=0)
    running = envs.snapshot([1])[0]
    envs.step(np.zeros((3, 6), np.float32))
    with pytest.raises(ValueError, match="Slot 0 is waiting for its reset"):
        envs.fork(0)
    envs.restore([running], [0])  # which calls its reset off
    with pytest.raises(ValueError, match="Slot 2 is waiting for its reset: step once more"):
        envs.fork(0, [2])
    assert envs.step(np.zeros((3, 6), np.float32))[4]["chunk"].tolist() == [1, 0, 0]


def test_without_autoreset_ended_slots_take_a_fork(tiny):
    envs = make(tiny, max_episode_chunks=1, autoreset_mode="Disabled")
    envs.reset(seed=0)
    running = envs.snapshot([1])[0]
    envs.step(np.zeros((3, 6), np.float32))
    envs.restore([running], [0])
    envs.fork(0)
    assert envs.step(np.zeros((3, 6), np.float32))[4]["chunk"].tolist() == [1, 1, 1]


def test_a_snapshot_of_another_task_is_refused(tiny):
    envs, other = make(tiny), SanaWMEnv(tiny, task="pointnav")
    envs.reset(seed=0)
    other.reset(seed=0)
    with pytest.raises(ValueError, match="This snapshot is not of the task Explore"):
        envs.restore([other.snapshot()], [0])


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"num_envs": 0}, "num_envs must be a whole number from 1 to 65,536, got 0"),
        ({"num_envs": 2, "autoreset_mode": "later"}, "autoreset_mode must be one of 'NextStep', 'SameStep'"),
        ({"batch_invariant": "no"}, "batch_invariant must be True or False, got 'no'"),
        ({"max_episode_steps": 0}, "max_episode_steps must be a whole number"),
        ({"num_envs": 2, "obs_mode": "sound"}, "obs_mode must be one of"),
    ],
)
def test_wrong_settings_are_named(tiny, settings, says):
    with pytest.raises(ValueError, match=says):
        SanaWMVectorEnv(world=tiny, **settings)


def test_nothing_works_before_the_first_reset(tiny):
    envs = make(tiny)
    for call in (lambda: envs.step(np.zeros((3, 6))), envs.snapshot, lambda: envs.fork(0)):
        with pytest.raises(ResetNeeded):
            call()
    with pytest.raises(ResetNeeded, match="The first reset must be of all slots"):
        envs.reset(options={"reset_mask": np.array([True, False, False])})
