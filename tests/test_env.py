"""The environment keeps Gymnasium's promises and its own: seeded, forkable, restorable, and clear about bad input."""

import copy
import importlib.metadata
import itertools
import json
import pickle
import warnings
from dataclasses import replace
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env, data_equivalence
from gymnasium.vector.utils import batch_space
from gymnasium.wrappers import NumpyToTorch, TimeAwareObservation
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file, save_file

import sanawm_env
from sanawm_env import SanaWMEnv, Snapshot, World
from sanawm_env.camera.dsl import KeyDynamics, actions_to_c2w
from sanawm_env.camera.presets import KEY_ORDER, PRESETS, WALKING_TURNS, Workspace, multi_binary, pitch_of
from sanawm_env.camera.twist import hold, ramp
from sanawm_env.envs.env import RENDER_MODES
from sanawm_env.envs.observations import OBS_MODES
from sanawm_env.simulation.controllers import ACTION_MODES
from sanawm_env.simulation.tasks import TASKS
from sanawm_env.world import tree
from sanawm_env.world.folders import shipped_worlds
from tests.worlds import TINY, picture, with_starts, write_tiny_world

ID = "SanaWM/Explore-v0"
SEEN = [mode for mode in OBS_MODES if mode != "goal"]  # which needs a task: test_goals.py
MODES = [(obs, "twist") for obs in SEEN] + [("dict", action) for action in ACTION_MODES if action != "twist"]
TURN, FORWARD = np.array([0, 0, 0.3, 0, 0.8, 0], np.float32), np.array([0, 0, 1, 0, 0, 0], np.float32)


def write_world(folder, seed=0):
    """A tiny world with three start images; 40 x 48, the least that image policies take."""
    return with_starts(write_tiny_world(folder, seed, replace(TINY, height=40, width=48)))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> str:
    return write_world(tmp_path_factory.mktemp("worlds") / "tiny")


@pytest.fixture(scope="module")
def other(tmp_path_factory) -> str:
    return write_world(tmp_path_factory.mktemp("worlds") / "other", seed=1)


@pytest.fixture
def env(tiny) -> SanaWMEnv:
    return SanaWMEnv(tiny)


def same(a, b) -> bool:
    return data_equivalence(a, b, exact=True)


def actions_for(env, count, seed=0):
    env.action_space.seed(seed)
    return [env.action_space.sample() for _ in range(count)]


# ---- the package and the id


def test_the_package_gives_its_main_names_lazily():
    assert {"World", "Snapshot", "SanaWMEnv", "EnvConfig"} <= set(dir(sanawm_env))
    assert sanawm_env.__version__ == importlib.metadata.version("sanawm-env")
    with pytest.raises(AttributeError, match="no attribute 'Worlds'"):
        _ = sanawm_env.Worlds


def test_the_id_is_a_string_that_travels_as_json(tiny):
    env = gym.make(f"sanawm_env:{ID}", world=tiny, obs_mode="rgb", action_mode="discrete")
    assert env.spec.max_episode_steps == 10
    twin = gym.make(EnvSpec.from_json(env.spec.to_json()))
    assert twin.unwrapped.observation_space == env.unwrapped.observation_space
    assert twin.unwrapped.action_space == env.unwrapped.action_space


def test_a_spec_with_paths_travels_as_json(tiny):
    settings = {"world": Path(tiny), "scenes": [Path(tiny) / "starts" / "0.png"], "workspace": Workspace()}
    settings["scenes"] = sorted((Path(tiny) / "starts").iterdir())[:1]
    env = gym.make(ID, **settings, obs_size=np.array([8, 8]), max_episode_chunks=np.int64(4))
    assert f"id={ID}" in env.spec.pprint(disable_print=True, print_all=True)
    twin, again = gym.make(EnvSpec.from_json(env.spec.to_json())), gym.make(env.spec)
    assert same(twin.reset(seed=1), env.reset(seed=1))
    assert twin.spec.kwargs == again.spec.kwargs == env.spec.kwargs
    assert copy.deepcopy(env).spec == pickle.loads(pickle.dumps(env)).spec == env.spec


@pytest.mark.parametrize(
    ("keyword", "meant"), [("frameskip", ""), ("obsmode", "obs_mode"), ("max_episode_steps", "max_episode_chunks")]
)
def test_an_unknown_keyword_is_named_in_pythons_words_and_then_the_right_one(keyword, meant):
    says = f"unexpected keyword argument '{keyword}'" + (rf" \(did you mean {meant}\?\)" if meant else "")
    direct, single, vector = (lambda: SanaWMEnv(**{keyword: 4})), gym.make, gym.make_vec
    with pytest.raises(TypeError, match=rf"^SanaWMEnv.__init__\(\) got an {says}: it takes world, scenes, .*precision"):
        direct()
    for make in (single, vector) if keyword != "max_episode_steps" else ():
        with pytest.raises(TypeError, match=rf"__init__\(\) got an {says}: it takes .*max_episode_chunks"):
            make(ID, **{keyword: 4})


def test_wrappers_find_how_long_an_episode_is(tiny):
    env = TimeAwareObservation(gym.make(ID, world=tiny, max_episode_chunks=2), flatten=False, normalize_time=True)
    times = [env.reset(seed=0)[0]["time"]]
    for truncated in (False, True):
        obs, _, _, cut, _ = env.step(TURN)
        times.append(obs["time"])
        assert cut is truncated
    assert np.array_equal(times, [[0], [0.5], [1]])
    shorter = gym.make(ID, world=tiny, max_episode_steps=1)
    shorter.reset(seed=0)
    assert shorter.step(TURN)[3] is True
    assert shorter.spec.max_episode_steps == 1


@pytest.mark.slow
def test_what_info_says_is_numbers_that_wrappers_carry(tiny):
    for task in TASKS:
        env = SanaWMEnv(tiny, task=task)
        (obs, info), stepped = env.reset(seed=0), env.step(TURN)
        for each in (info, stepped[-1]):
            values = [np.asarray(value) for value in each.values()]
            assert {value.dtype.kind for value in values} <= set("biuf")
            assert not each.keys() & obs.keys()  # one name, one meaning
        twin = NumpyToTorch(SanaWMEnv(tiny, task=task))
        carried = (twin.reset(seed=0), twin.step(torch.tensor(TURN)))
        assert all(isinstance(value, torch.Tensor) for value in carried[1][4].values())
        assert np.array_equal(carried[1][4]["c2w"], stepped[4]["c2w"])
    assert env.scene.key.startswith(f"{info['scene']:015x}")
    assert (env.scene.intrinsics_source, env.world.mode) == ("default", "tiny")


@pytest.mark.slow
def test_an_id_alone_gives_pixels_and_a_number():
    env = gym.make("SanaWM/ExplorePixels-v0")
    assert env.observation_space == spaces.Box(0, 255, (84, 84, 3), np.uint8)
    assert env.action_space == spaces.Discrete(15)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(env.unwrapped, skip_render_check=True)


@pytest.mark.slow
def test_every_shipped_world_runs():
    for name in (*shipped_worlds(), "rooms"):
        env = gym.make(ID, world=name, render_mode="rgb_array")
        first, _ = env.reset(seed=0)
        obs, reward, terminated, truncated, info = env.step(env.action_space.sample())
        assert env.observation_space.contains(obs)
        assert 0 <= reward <= 24
        assert (terminated, truncated) == (False, False)
        assert env.unwrapped.clip.frames.shape[1:] == env.render().shape
        assert not np.array_equal(first["rgb"], obs["rgb"])
        assert info["c2w"].shape == (24, 4, 4)


def test_weights_are_loaded_once_per_process(tiny):
    assert SanaWMEnv(tiny).world is SanaWMEnv(tiny).world is World.load(tiny)


@pytest.mark.slow
def test_a_spawned_worker_knows_the_id(tiny):
    def factory():
        return gym.make(f"sanawm_env:{ID}", world=tiny, obs_mode="rgb")

    envs = gym.vector.AsyncVectorEnv([factory], context="spawn")
    try:
        obs, _ = envs.reset(seed=3)
        stepped = envs.step(np.stack([TURN]))
    finally:
        envs.close()
    env = factory()
    assert np.array_equal(obs[0], env.reset(seed=3)[0])
    assert np.array_equal(stepped[0][0], env.step(TURN)[0])
    assert np.array_equal(stepped[4]["c2w"][0], env.unwrapped.clip.c2w)


# ---- Gymnasium's checker and promises, in every mode


@pytest.mark.parametrize(("obs_mode", "action_mode"), MODES)
def test_gymnasium_finds_nothing_to_warn_of(tiny, obs_mode, action_mode):
    env = gym.make(ID, world=tiny, obs_mode=obs_mode, action_mode=action_mode)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(env.unwrapped)


@pytest.mark.parametrize(("obs_mode", "action_mode"), MODES)
def test_two_environments_walk_alike(tiny, obs_mode, action_mode):
    one, two = (SanaWMEnv(tiny, obs_mode=obs_mode, action_mode=action_mode, max_episode_chunks=3) for _ in "ab")
    assert same(one.reset(seed=7), two.reset(seed=7))
    for action in actions_for(one, 3):
        assert one.action_space.contains(action)
        first, second = one.step(action), two.step(action)
        assert one.observation_space.contains(first[0])
        assert same(first, second)
    assert same(one.reset(), two.reset())  # the next episode too


def test_another_seed_is_another_episode(tiny):
    env = SanaWMEnv(tiny, obs_mode="latent")
    episodes = [env.reset(seed=seed)[1] for seed in range(6)]
    assert len({info["seed"] for info in episodes}) == 6
    assert len({info["scene"] for info in episodes}) > 1


def test_the_episode_seed_alone_changes_what_is_imagined(tiny):
    env, seen = SanaWMEnv(tiny, obs_mode="latent"), []
    for seed in (1, 2, 1):
        env.reset(seed=0, options={"scene": 0, "seed": seed})
        seen.append(env.step(TURN)[0])
    assert np.array_equal(seen[0], seen[2])
    assert not np.array_equal(seen[0], seen[1])


def test_options_do_not_shift_the_episodes_after(env):
    env.reset(seed=0)
    _, expected = env.reset()
    env.reset(seed=0, options={"scene": 1, "seed": 5})
    _, info = env.reset()
    assert (info["scene"], info["seed"]) == (expected["scene"], expected["seed"])


def test_the_environment_truncates_itself(tiny):
    env = gym.make(ID, world=tiny, max_episode_chunks=2)
    env.reset(seed=0)
    ends = [env.step(TURN)[3] for _ in range(2)]
    assert ends == [False, True]
    assert all(type(end) is bool for end in ends)
    assert env.unwrapped.clip.frames.shape[0] == 24  # what the end showed stays there to look at


def test_an_episode_ends_where_the_workspace_does(tiny):
    env = SanaWMEnv(tiny, workspace=Workspace(hard_distance=2.0), max_episode_chunks=9)
    _, info = env.reset(seed=0)
    assert info["out_of_workspace"] is False
    reached = []
    while not reached or reached[-1] is False:
        obs, _, _, truncated, info = env.step(FORWARD)
        assert truncated is info["out_of_workspace"]
        reached.append(truncated)
    assert reached == [False, True]  # 1.2 m a step at the standard speed
    assert env.observation_space.contains(obs)
    with pytest.raises(ResetNeeded, match="over"):
        env.step(FORWARD)


def test_the_camera_never_looks_past_the_pitch_limit(env):
    env.reset(seed=0)
    poses = np.concatenate([env.step(np.array([0, 0, 0, 1, 0, 0]))[4]["c2w"] for _ in range(4)])
    assert np.isclose(np.degrees(pitch_of(poses)).max(), 60, atol=1e-6)


# ---- what is observed and shown


def test_every_observation_shows_the_same_clip(tiny):
    envs = {mode: SanaWMEnv(tiny, obs_mode=mode) for mode in SEEN}
    for act in (lambda env: env.reset(seed=0), lambda env: env.step(TURN), lambda env: env.step(FORWARD)):
        obs = {mode: act(env)[0] for mode, env in envs.items()}
        frames = envs["rgb"].clip.frames
        assert frames.shape == (24, 40, 48, 3)
        assert np.array_equal(obs["chunk"], frames)
        assert np.array_equal(obs["rgb"], frames[-1])
        assert np.array_equal(obs["dict"]["rgb"], frames[-1])
        assert np.array_equal(obs["stack"], np.concatenate(frames[[5, 11, 17, 23]], axis=-1))
        latents = envs["latent"].state.slots[0].latents[0].numpy()
        assert np.array_equal(obs["latent"], np.broadcast_to(latents, (6, 3, 5, 6)))
    assert not np.array_equal(frames[0], frames[-1])


def test_a_reset_shows_the_start_image(env):
    obs, info = env.reset(seed=0)
    start = env.state.slots[0].scene.image
    assert np.array_equal(obs["rgb"], start)
    assert (env.clip.frames == start).all()
    assert np.array_equal(info["c2w"], np.tile(np.eye(4), (24, 1, 1)))
    assert np.array_equal(obs["pose"], [0, 0, 0, 0, 0, 0, 1])


def test_the_observed_pose_is_the_last_cameras(env):
    env.reset(seed=0)
    for _ in range(5):
        obs, _, _, _, info = env.step(np.array([0.5, 0, 0.5, 0, 1, 0.5]))
    rotation = torch.tensor(info["c2w"][-1, :3, :3])
    x, y, z, w = obs["pose"][3:]
    assert np.allclose(obs["pose"][:3], info["c2w"][-1, :3, 3], atol=1e-6)
    assert w >= 0
    assert np.isclose(4 * w * w, 1 + float(rotation.trace()), atol=1e-5)
    skew = [rotation[2, 1] - rotation[1, 2], rotation[0, 2] - rotation[2, 0], rotation[1, 0] - rotation[0, 1]]
    assert np.allclose(4 * w * np.array([x, y, z]), skew, atol=1e-5)


def test_pictures_are_observed_at_the_size_asked_for(tiny):
    for mode, shape in (("rgb", (20, 24, 3)), ("stack", (20, 24, 12)), ("chunk", (24, 20, 24, 3))):
        env = SanaWMEnv(tiny, obs_mode=mode, obs_size=[20, 24])
        env.reset(seed=0)
        obs = env.step(TURN)[0]
        assert env.observation_space.contains(obs)
        assert obs.shape == shape
        assert env.clip.frames.shape == (24, 40, 48, 3)
    small = obs[-1].astype(float)  # each pixel near the mean of the 2 x 2 it stands for
    mean = env.clip.frames[-1].reshape(20, 2, 24, 2, 3).mean((1, 3))
    assert np.abs(small - mean).mean() < np.abs(mean - mean.mean()).mean()


@pytest.mark.parametrize("render_mode", RENDER_MODES)
def test_rendering_is_native_and_at_full_size(tiny, render_mode):
    env = gym.make(ID, world=tiny, render_mode=render_mode, obs_size=(8, 8))
    assert env.metadata["render_fps"] == 16
    env.reset(seed=0)
    start = env.unwrapped.state.slots[0].scene.image
    rendered = [env.render(), env.step(TURN) and env.render()]
    frames = env.unwrapped.clip.frames
    if render_mode == "rgb_array":
        assert np.array_equal(rendered, [start, frames[-1]])
    else:
        assert np.array_equal(rendered[0], [start])
        assert isinstance(rendered[1], list)
        assert np.array_equal(rendered[1], frames)


def test_rendering_without_a_mode_warns(env):
    env.reset(seed=0)
    with pytest.warns(UserWarning, match="render_mode"):
        assert env.render() is None


def test_metadata_is_each_environments_own(tiny):
    one = SanaWMEnv(tiny)
    one.metadata["render_fps"] = 1
    assert SanaWMEnv(tiny).metadata["render_fps"] == 16


@pytest.mark.slow
def test_writing_into_what_is_returned_does_not_reach_the_state(tiny):
    for mode in SEEN:
        one, two = (SanaWMEnv(tiny, obs_mode=mode, render_mode="rgb_array_list") for _ in "ab")
        one.reset(seed=0), two.reset(seed=0)
        for action in actions_for(one, 2):
            obs, *_, info = one.step(action)
            for array in (*(obs.values() if isinstance(obs, dict) else [obs]), info["c2w"], *one.render()):
                array[...] = 0
            assert same(one.restore(one.snapshot()), (two.step(action)[0], two.restore(two.snapshot())[1]))
        for array in one.clip:
            with pytest.raises(ValueError, match="read-only"):
                array[...] = 0


# ---- actions


def test_a_twist_moves_the_camera_as_the_preset_says(tiny):
    for speed, preset in PRESETS.items():
        env = SanaWMEnv(tiny, speed=speed)
        env.reset(seed=0)
        poses = env.step(TURN)[4]["c2w"]
        slowed = env.workspace.limit_rotation(preset.scale(TURN), 1.5, env.world.config.horizontal_fov)
        assert np.array_equal(poses, hold(np.eye(4), slowed))
        assert np.array_equal(slowed, preset.scale(TURN)) == (speed != "stress")  # half the view in a chunk at most


def test_a_ramp_leads_from_twist_to_twist(tiny):
    env = SanaWMEnv(tiny, smoothing="ramp", speed="gentle")
    env.reset(seed=0)
    first = env.step(TURN)[4]["c2w"]
    second = env.step(FORWARD)[4]["c2w"]
    turn, forward = PRESETS["gentle"].scale(TURN), PRESETS["gentle"].scale(FORWARD)
    assert np.array_equal(first, ramp(np.eye(4), turn, np.zeros(6)))
    assert np.array_equal(second, ramp(first[-1], forward, turn))


def test_a_twist_outside_the_box_is_clipped(tiny):
    one, two = SanaWMEnv(tiny), SanaWMEnv(tiny)
    one.reset(seed=0), two.reset(seed=0)
    assert same(one.step(np.array([0, 0, 9.0, 0, -9, 0])), two.step(np.array([0, 0, 1.0, 0, -1, 0])))


@pytest.mark.slow
@pytest.mark.parametrize("speed", PRESETS)
def test_keys_equal_the_action_string(tiny, speed):
    held = ["w", "wd", "wd", "", "wki", "sl", "i", "i", "i", "i", "aj"]
    keys, discrete = (SanaWMEnv(tiny, action_mode=m, speed=speed, max_episode_chunks=20) for m in ("keys", "discrete"))
    keys.reset(seed=0)
    stepped = np.concatenate([keys.step(multi_binary(pressed))[4]["c2w"] for pressed in held])
    dynamics = KeyDynamics(PRESETS[speed].planar / 16, PRESETS[speed].turn_deg / 16)
    string = ",".join(f"{pressed or 'none'}-24" for pressed in held)
    expected = actions_to_c2w(string, dynamics.translation_speed, dynamics.rotation_speed_deg)
    assert np.array_equal(stepped.astype(np.float32), expected[1:])
    keys.reset(seed=0), discrete.reset(seed=0)
    for index in (1, 10, 0, 14):
        assert same(discrete.step(np.int64(index)), keys.step(multi_binary(WALKING_TURNS[index])))


def test_the_gentle_keys_are_the_default_action_string(tiny):
    env = SanaWMEnv(tiny, action_mode="keys", speed="gentle")
    env.reset(seed=0)
    poses = np.concatenate([env.step(multi_binary(keys))[4]["c2w"] for keys in ("w", "dw", "")])
    assert np.array_equal(poses.astype(np.float32), actions_to_c2w("w-24,dw-24,none-24")[1:])


def test_poses_are_taken_as_they_are(tiny):
    env, twist = SanaWMEnv(tiny, action_mode="poses", obs_mode="chunk"), SanaWMEnv(tiny, obs_mode="chunk")
    env.reset(seed=0), twist.reset(seed=0)
    for action in (TURN, FORWARD):
        expected = twist.step(action)
        assert same(env.step(expected[4]["c2w"])[0], expected[0])


def test_samples_of_the_pose_space_are_poses(tiny):
    space = SanaWMEnv(tiny, action_mode="poses").action_space
    space.seed(1)
    one = space.sample()
    assert space.contains(one)
    assert not space.contains(one * 0.5)
    assert not space.contains(np.where(np.eye(4) > 0, one, np.float32(np.nan)))
    assert not space.contains(one[:5])
    assert not space.contains(one.tolist())
    space.seed(1)
    assert np.array_equal(space.sample(), one)
    assert not np.array_equal(space.sample(), one)


def test_samples_of_a_batch_of_pose_spaces_are_poses_that_a_step_takes(tiny):
    env = SanaWMEnv(tiny, action_mode="poses", workspace={"hard_distance": 0.2})
    batch = batch_space(env.action_space, 3)
    batch.seed(0)
    paths = batch.sample()
    assert paths.shape == batch.shape == (3, 24, 4, 4) and batch.contains(paths)
    assert not batch.contains(paths * 0.5)
    assert not np.array_equal(paths[0], paths[1])
    for path in [*paths, env.action_space.sample()]:
        assert env.action_space.contains(path)
        env.reset(seed=0)
        env.step(path)
    far = paths[0].copy()
    far[:, :3, 3] = 0.15  # inside the box, outside the sphere
    assert not env.action_space.contains(far)


ALIKE = {
    "twist": [TURN, TURN.tolist(), torch.tensor(TURN), TURN.astype(float)],
    "keys": [multi_binary("wd"), multi_binary("wd") > 0, torch.tensor(multi_binary("wd")), [1, 0, 0, 1, 0, 0, 0, 0]],
    "discrete": [3, np.int64(3), np.uint8(3), np.array(3), np.array([3]), [3], torch.tensor(3), torch.tensor([3])],
    "poses": [hold(np.eye(4), np.zeros(6)), torch.tensor(hold(np.eye(4), np.zeros(6)))],
}


@pytest.mark.parametrize("action_mode", ACTION_MODES)
def test_an_action_may_be_an_array_a_list_a_number_or_a_tensor(tiny, action_mode):
    seen = []
    env = SanaWMEnv(tiny, action_mode=action_mode, reward_fn=lambda t: seen.append(t.actions.shape) or np.zeros(1))
    steps = [env.reset(seed=0) and env.step(action) for action in ALIKE[action_mode]]
    assert all(same(step, steps[0]) for step in steps)
    assert set(seen) == {(1, *env.action_space.shape)}


def test_half_precision_is_an_action_too(tiny):
    env = SanaWMEnv(tiny)
    for dtype in (torch.float16, torch.bfloat16):
        env.reset(seed=0)
        assert np.array_equal(env.step(torch.full((6,), 0.5, dtype=dtype))[4]["c2w"], env.clip.c2w)


def test_no_key_is_an_action(tiny):
    """`gymnasium.utils.play` steps with 0 while no key is down."""
    for action_mode in ("keys", "discrete"):
        env, other = (SanaWMEnv(tiny, action_mode=action_mode) for _ in "ab")
        env.reset(seed=0), other.reset(seed=0)
        assert same(env.step(0), other.step(np.zeros(8, np.int8) if action_mode == "keys" else 0))
        assert np.array_equal(env.clip.c2w[-1], np.eye(4))


def test_the_keyboard_table_plays(tiny):
    discrete, keys = SanaWMEnv(tiny, action_mode="discrete"), SanaWMEnv(tiny, action_mode="keys")
    assert discrete.get_keys_to_action()[("w", "a")] == WALKING_TURNS.index("wa")
    assert set(discrete.get_keys_to_action()) == set(keys.get_keys_to_action())
    assert all(keys.action_space.contains(action) for action in keys.get_keys_to_action().values())
    with pytest.raises(ValueError, match="no keys"):
        SanaWMEnv(tiny).get_keys_to_action()


# ---- snapshots


def moment(env):
    """All that must not change when something is refused."""
    return env._episode, json.dumps(env.np_random.bit_generator.state)


@pytest.mark.parametrize(("obs_mode", "action_mode"), MODES)
def test_restore_gives_what_led_there_and_the_same_future(tiny, obs_mode, action_mode):
    env = SanaWMEnv(tiny, obs_mode=obs_mode, action_mode=action_mode, smoothing="ramp", max_episode_chunks=3)
    a, b, c = actions_for(env, 3)
    led = [env.reset(seed=0)]
    snapshots = [env.snapshot()]
    for action in (a, b, c):
        obs, *_, info = env.step(action)
        led.append((obs, info))
        snapshots.append(env.snapshot())
    following = env.reset()
    for i in (0, 3, 1, 2, 0):
        assert same(env.restore(snapshots[i]), led[i])
        for action, expected in zip((a, b, c)[i:], led[i + 1 :], strict=True):
            obs, _, _, truncated, info = env.step(action)
            assert same((obs, info), expected)
        assert truncated or i == 3
        with pytest.raises(ResetNeeded):  # the end is restored with the rest
            env.step(a)
        assert same(env.reset(), following)  # and so is the generator


def test_snapshot_and_restore_copy_nothing(env):
    env.reset(seed=0)
    env.step(TURN)
    before = [t.data_ptr() for t in tree.leaves(env.state.slots)]
    snap = env.snapshot()
    env.step(TURN)
    env.restore(snap)
    assert [t.data_ptr() for t in tree.leaves(env.state.slots)] == before
    assert env.state is snap.state
    assert snap.to(snap.device) is snap
    assert snap.nbytes >= snap.state.nbytes > 0


def test_reseed_is_another_future_of_the_same_moment(tiny):
    env = SanaWMEnv(tiny, obs_mode="latent")
    env.reset(seed=0)
    obs, *_ = env.step(TURN)
    snap, futures = env.snapshot(), []
    for seed in (None, 1, 2, 1):
        assert np.array_equal(env.restore(snap, reseed=seed)[0], obs)
        futures.append(env.step(TURN)[0])
    assert np.array_equal(futures[1], futures[3])
    assert all(not np.array_equal(a, b) for a, b in itertools.combinations(futures[:3], 2))


def test_the_names_of_ale_work(tiny):
    env = SanaWMEnv(tiny, obs_mode="latent")
    obs, _ = env.reset(seed=0)
    for include_rng in (True, False):
        state = env.clone_state(include_rng=include_rng)
        futures = []
        for _ in range(2):
            assert np.array_equal(env.restore_state(state)[0], obs)
            futures.append(env.step(TURN)[0])
        assert np.array_equal(*futures) is include_rng
        env.restore(state)


@pytest.mark.slow
def test_a_snapshot_is_a_file(tiny, tmp_path):
    for action_mode in ACTION_MODES:
        env = SanaWMEnv(tiny, obs_mode="chunk", action_mode=action_mode, smoothing="ramp")
        env.reset(seed=0)
        a, b = actions_for(env, 2)
        for name in ("start", "later"):
            obs = env.restore(env.snapshot())[0] if name == "start" else env.step(a)[0]
            env.snapshot().save(tmp_path / name)
            future, episode = env.step(b), env.reset()
            fresh = SanaWMEnv(tiny, obs_mode="chunk", action_mode=action_mode, smoothing="ramp")
            assert np.array_equal(fresh.restore(Snapshot.load(tmp_path / name, fresh.world))[0], obs)
            assert same(fresh.step(b), future)
            assert same(fresh.reset(), episode)
            env.restore(Snapshot.load(tmp_path / name, env.world))


def test_a_snapshot_is_loaded_for_a_world(env, tmp_path):
    env.reset(seed=0)
    env.snapshot().save(tmp_path / "moment")
    with pytest.raises(TypeError, match=r"loaded for a World .*, got 'nano'"):
        Snapshot.load(tmp_path / "moment", "nano")
    with pytest.raises(TypeError, match=r"path must be the path of a file, got None"):
        Snapshot.load(None, env.world)


def test_a_file_that_is_no_snapshot_of_this_world_is_refused(tiny, other, env, tmp_path):
    env.reset(seed=0)
    env.step(TURN)
    good, bad = tmp_path / "good", tmp_path / "bad"
    env.snapshot().save(good)
    world = env.world
    with pytest.raises(FileNotFoundError, match="no state at"):
        Snapshot.load(tmp_path / "missing", world)
    for content in (good.read_bytes()[:-100], good.read_bytes()[:50], b"", b"not a snapshot"):
        bad.write_bytes(content)
        with pytest.raises(ValueError, match="not a saved state, or was cut off"):
            Snapshot.load(bad, world)
    save_file(load_file(good), bad)
    with pytest.raises(ValueError, match="not a saved state"):
        Snapshot.load(bad, world)
    with pytest.raises(ValueError, match="other weights"):
        Snapshot.load(good, World.load(other))
    env.state.save(bad)
    with pytest.raises(ValueError, match="not an environment's snapshot"):
        Snapshot.load(bad, world)
    with pytest.raises(OSError, match="cannot write"):
        env.snapshot().save(tmp_path / "no" / "folder")


def test_a_snapshot_from_elsewhere_is_refused(tiny, other, env):
    foreign, keys = SanaWMEnv(other), SanaWMEnv(tiny, action_mode="keys")
    env.reset(seed=0), foreign.reset(seed=0), keys.reset(seed=0)
    before, snap = moment(env), env.snapshot()
    for argument, error, says in (
        (foreign.snapshot(), ValueError, "other weights"),
        (keys.snapshot(), ValueError, "action_mode 'keys'"),
        (env.state, TypeError, "takes a Snapshot"),
        (None, TypeError, "takes a Snapshot"),
    ):
        with pytest.raises(error, match=says):
            env.restore(argument)
        assert moment(env) == before
    for seed, error in ((-1, ValueError), (0.5, TypeError)):
        with pytest.raises(error, match="seed"):
            env.restore(snap, reseed=seed)
        assert moment(env) == before


def test_a_snapshot_goes_to_an_environment_that_was_never_reset(tiny, env):
    led = env.reset(seed=0)
    fresh = SanaWMEnv(tiny)
    assert same(fresh.restore(env.snapshot()), led)
    assert same(fresh.step(TURN), env.step(TURN))


@pytest.mark.slow
@settings(max_examples=6, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 99), st.sampled_from([0, 1, 2])), min_size=3, max_size=10))
def test_any_order_of_branching_gives_the_same_frames(tiny, program):
    """Moments are named by the actions that led there; each visit must show the same, whatever came in between."""
    env = SanaWMEnv(tiny, action_mode="discrete", max_episode_chunks=99)
    env.reset(seed=0)
    kept = {(): (env.snapshot(), env.clip.frames.copy())}
    for choice, key in program:
        path = sorted(kept)[choice % len(kept)]
        env.restore(kept[path][0])
        assert np.array_equal(env.clip.frames, kept[path][1])
        env.step(key)
        path += (key,)
        if path in kept:
            assert np.array_equal(env.clip.frames, kept[path][1])
        kept[path] = env.snapshot(), env.clip.frames.copy()
    straight = SanaWMEnv(tiny, action_mode="discrete", max_episode_chunks=99)
    deepest = max(kept, key=len)
    straight.reset(seed=0)
    for key in deepest:
        straight.step(key)
    assert np.array_equal(straight.clip.frames, kept[deepest][1])


# ---- copies


def test_deepcopy_is_a_fork_that_shares_weights(tiny):
    for make in (lambda: SanaWMEnv(tiny), lambda: gym.make(ID, world=tiny)):
        env = make()
        env.reset(seed=0)
        env.action_space.seed(0)
        env.step(TURN)
        here = env.unwrapped.snapshot()
        fork, twin = copy.deepcopy(env), copy.deepcopy(env)
        assert fork.unwrapped.world is env.unwrapped.world
        assert fork.unwrapped.state is env.unwrapped.state
        assert np.array_equal(env.action_space.sample(), fork.action_space.sample())
        stepped = env.step(TURN)
        assert not same(fork.step(FORWARD)[0], stepped[0])
        assert same(twin.step(TURN), stepped)
        assert env.unwrapped.state is not here.state
        assert same(twin.reset(), env.reset())


def test_a_fork_before_the_first_reset_is_fresh(env):
    fork = copy.deepcopy(env)
    assert same(fork.reset(seed=0), env.reset(seed=0))


def test_a_shallow_copy_is_refused(env):
    with pytest.raises(TypeError, match="deepcopy"):
        copy.copy(env)


def test_pickling_carries_the_state(tiny):
    env = gym.make(ID, world=tiny, action_mode="keys", max_episode_chunks=4)
    assert same(pickle.loads(pickle.dumps(env)).reset(seed=0), env.reset(seed=0))
    env.step(multi_binary("w"))
    twin = pickle.loads(pickle.dumps(env))
    assert twin.unwrapped.world is env.unwrapped.world  # by name, so from the process's own
    for keys in ("d", ""):
        assert same(twin.step(multi_binary(keys)), env.step(multi_binary(keys)))
    assert same(twin.reset(), env.reset())


def test_a_loaded_world_can_be_given_but_travels_only_by_name(tiny):
    world = World.load(tiny)
    env = SanaWMEnv(world)
    assert env.world is world
    env.reset(seed=0)
    assert copy.deepcopy(env).world is world
    with pytest.raises(TypeError, match="name or folder"):
        pickle.dumps(env)
    shipped = SanaWMEnv(World.load("nano"))
    assert pickle.loads(pickle.dumps(shipped)).world is shipped.world


# ---- scenes and options


def test_scenes_may_be_a_path_a_folder_a_list_or_pictures(tiny, tmp_path):
    for name in ("b.jpg", "a.png"):
        Image.fromarray(picture(5)).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    image = Image.open(tmp_path / "a.png")
    for scenes, count in (
        (tmp_path, 2), (str(tmp_path), 2), (str(tmp_path / "a.png"), 1), ([tmp_path / "a.png"] * 3, 3),
        (picture(5), 1), (image, 1), (None, 3),
    ):  # fmt: skip
        env = SanaWMEnv(tiny, scenes=scenes)
        env.reset(seed=0, options={"scene": count - 1})
        with pytest.raises(ValueError, match="scenes are 0 to"):
            env.reset(options={"scene": count})
    env = SanaWMEnv(tiny)
    keys = {env.reset(options={"scene": scene})[1]["scene"] for scene in (tmp_path / "a.png", image, picture(5))}
    assert len(keys) == 1


def test_scenes_of_a_relative_folder_stay_where_they_are(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("images").mkdir()
    Image.fromarray(picture(5)).save("images/a.png")
    env = SanaWMEnv(tiny, scenes="images")
    monkeypatch.chdir("/")  # as Hydra does
    env.reset(seed=0)


def test_intrinsics_change_the_view(tiny):
    env, seen = SanaWMEnv(tiny, obs_mode="latent"), []
    for fx in (20, 80):
        env.reset(options={"scene": 0, "seed": 0, "intrinsics": np.array([fx, fx, 25, 20.0])})
        seen.append(env.step(TURN)[0])
    assert not np.array_equal(*seen)


@pytest.mark.slow
def test_a_world_without_start_images_asks_for_one(tmp_path):
    env = SanaWMEnv(str(write_tiny_world(tmp_path / "bare")))
    with pytest.raises(ValueError, match="give scenes="):
        env.reset(seed=0)
    env.reset(seed=0, options={"scene": picture()})


# ---- bad input: one clear sentence, the right type, nothing changed


@pytest.mark.parametrize(
    ("kwargs", "error", "says"),
    [
        ({"world": "atlantis"}, ValueError, "known worlds are .*nano"),
        ({"scenes": "missing.png"}, FileNotFoundError, "missing.png"),
        ({"scenes": []}, ValueError, "empty"),
        ({"obs_mode": "smell"}, ValueError, "obs_mode must be one of dict, rgb, stack, chunk, latent, goal"),
        ({"action_mode": "jump"}, ValueError, "action_mode must be one of twist, keys, discrete, poses"),
        ({"speed": "warp"}, ValueError, "speed must be one of gentle, standard, stress"),
        ({"smoothing": "silk"}, ValueError, "smoothing must be one of hold, ramp"),
        ({"obs_size": (0, 5)}, ValueError, "obs_size"),
        ({"obs_size": (5,)}, ValueError, "obs_size"),
        ({"obs_size": 64}, ValueError, "obs_size"),
        ({"max_episode_chunks": 0}, ValueError, "max_episode_chunks"),
        ({"max_episode_chunks": 1.5}, ValueError, "max_episode_chunks"),
        ({"max_episode_chunks": "5"}, ValueError, "max_episode_chunks must be a whole number, got '5'"),
        ({"max_episode_chunks": True}, ValueError, "max_episode_chunks"),
        ({"obs_size": (10**6, 10**6)}, ValueError, r"obs_size \(height, width\) .*from 1 to 4,096, got 1000000"),
        ({"obs_size": ("64", "96")}, ValueError, "obs_size"),
        ({"speed": ["gentle"]}, ValueError, "speed must be one of"),
        ({"task": ["explore"]}, ValueError, "task must be one of"),
        ({"task": "explore", "task_options": 5}, TypeError, "task_options must be a mapping, got int"),
        ({"world": 5}, TypeError, "world must be a name, a folder or a loaded World, got 5"),
        ({"scenes": ""}, ValueError, "scenes is empty"),
        ({"device": 3.5}, TypeError, "device"),
        (
            {"workspace": {"hard_distance": 10**400}},
            ValueError,
            "hard_distance must be a number, got a n",
        ),
        ({"scenes": 5}, TypeError, "scenes must be an image .*, got 5"),
        ({"scenes": [None]}, TypeError, "scenes must be an image"),
        ({"scenes": ["."]}, ValueError, "is a folder"),
        ({"workspace": 5}, TypeError, "workspace must be a mapping"),
        ({"workspace": {"hard_dist": 5}}, TypeError, "argument 'hard_dist' .did you mean hard_distance"),
        ({"workspace": {"hard_distance": "5"}}, ValueError, "hard_distance must be a number, got '5'"),
        ({"workspace": {"hard_distance": np.nan}}, ValueError, "hard_distance must be a finite number, got nan"),
        ({"render_mode": "human"}, ValueError, "render_mode"),
    ],
)
def test_a_wrong_setting_is_named(tiny, kwargs, error, says):
    with pytest.raises(error, match=says):
        SanaWMEnv(**{"world": tiny, **kwargs})


def test_an_empty_folder_of_scenes_is_named(tiny, tmp_path):
    with pytest.raises(ValueError, match="holds no images"):
        SanaWMEnv(tiny, scenes=tmp_path)


IDENTITY = np.tile(np.eye(4), (24, 1, 1))
BAD_ACTIONS = {
    "twist": [
        (np.full(6, np.nan), ValueError), (np.array([0, 0, np.inf, 0, 0, 0]), ValueError), (np.zeros(5), ValueError),
        (np.zeros((1, 6)), ValueError), (0.0, ValueError), ([[1, 2], [3]], ValueError), (None, TypeError),
        ("forward", TypeError), (np.zeros(6, complex), TypeError), ([None] * 6, TypeError), ({}, TypeError),
        (torch.zeros(6, device="meta"), TypeError), (torch.zeros(6, requires_grad=True), TypeError),
        (torch.full((6,), torch.nan), ValueError),
    ],
    "keys": [
        (np.full(8, 2), ValueError), (np.full(8, 0.5), ValueError), (np.zeros(7), ValueError), ("w", TypeError),
        (np.full(8, np.nan), ValueError), (None, TypeError), (list(KEY_ORDER), TypeError),
    ],
    "discrete": [
        (15, ValueError), (-1, ValueError), (1.0, TypeError), (np.nan, ValueError), (np.array([1, 2]), ValueError),
        (None, TypeError), ("w", TypeError), (True, TypeError),
    ],
    "poses": [
        (IDENTITY * np.nan, ValueError), (IDENTITY[:23], ValueError), (IDENTITY * 2, ValueError), (None, TypeError),
        (np.array([1, 1, -1, 1]) * IDENTITY, ValueError), (IDENTITY.astype(str), TypeError),
        (IDENTITY + 65 * np.eye(4)[0][:, None] * np.eye(4)[3], ValueError),
    ],
}  # fmt: skip


@pytest.mark.parametrize("action_mode", ACTION_MODES)
def test_what_is_not_an_action_is_refused_and_changes_nothing(tiny, action_mode):
    env = gym.make(ID, world=tiny, action_mode=action_mode)
    env.reset(seed=0)
    before = moment(env.unwrapped)
    for action, error in BAD_ACTIONS[action_mode]:
        with pytest.raises(error) as caught:
            env.step(action)
        assert "\n" not in str(caught.value).strip()
        assert moment(env.unwrapped) == before
    env.step(env.action_space.sample())


def test_nothing_works_before_the_first_reset(env):
    for attempt in (
        lambda: env.step(TURN), env.render, env.snapshot, env.clone_state, lambda: env.clip, lambda: env.state
    ):  # fmt: skip
        with pytest.raises(ResetNeeded, match="call reset before"):
            attempt()


def test_a_step_after_the_end_is_refused(tiny):
    env = SanaWMEnv(tiny, max_episode_chunks=1)
    env.reset(seed=0)
    env.step(TURN)
    before = moment(env)
    with pytest.raises(ResetNeeded, match="over"):
        env.step(TURN)
    assert moment(env) == before
    env.reset()
    env.step(TURN)


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"sceen": 1}, ValueError, "scene, prompt, intrinsics, fov_deg, anchor, seed, task, not sceen"),
        ({"scene": "missing.png"}, FileNotFoundError, "missing.png"),
        ({"scene": 3}, ValueError, "scenes are 0 to 2"),
        ({"scene": -1}, ValueError, "scenes are 0 to 2"),
        ({"scene": 0.5}, TypeError, "image"),
        ({"scene": np.zeros((4, 4))}, ValueError, "uint8"),
        ({"scene": 0, "prompt": "a castle"}, ValueError, "prompt"),
        ({"scene": 0, "intrinsics": [1, 2]}, ValueError, "intrinsics"),
        ({"seed": -1}, ValueError, "seed"),
        ({"seed": "1"}, TypeError, "seed"),
        ({"fov_deg": "60"}, ValueError, "fov_deg.* must be a finite number, got '60'"),
        ({"prompt": 5}, TypeError, 'options\\["prompt"\\] must be text, got int'),
        (5, TypeError, "options of a reset must be a mapping, got int"),
    ],
)
def test_a_wrong_reset_option_changes_nothing(env, options, error, says):
    env.reset(seed=0)
    before = moment(env)
    with pytest.raises(error, match=says):
        env.reset(seed=1, options=options)
    assert moment(env) == before


@pytest.mark.parametrize(
    ("seed", "error"), [(-1, ValueError), (1.0, TypeError), ("1", TypeError), (True, TypeError), ([1], TypeError)]
)
def test_a_wrong_seed_changes_nothing(env, seed, error):
    env.reset(seed=0)
    before = moment(env)
    with pytest.raises(error, match="The seed of a reset must"):
        env.reset(seed=seed)
    assert moment(env) == before


def test_numpys_whole_numbers_are_seeds(env):
    assert same(env.reset(seed=np.int64(7)), env.reset(seed=7))
    env.reset(seed=10**30)
    assert env.np_random_seed == 10**30


@pytest.mark.parametrize("failure", [KeyboardInterrupt, RuntimeError, UserWarning])
def test_whatever_stops_a_step_leaves_the_moment(tiny, failure):
    def stop(transition):
        raise failure

    env = SanaWMEnv(tiny, reward_fn=stop)
    env.reset(seed=0)
    before = moment(env)
    with pytest.raises(failure):
        env.step(TURN)
    assert moment(env) == before


def test_a_generator_of_ones_own_goes_on_in_snapshots(tiny):
    env, own = SanaWMEnv(tiny), np.random.Generator(np.random.MT19937(3))
    env.np_random = own
    env.reset()
    assert env.np_random is own
    here = env.snapshot()
    following = env.reset()
    env.restore(here)
    assert same(env.reset(), following)
    other = SanaWMEnv(tiny)
    other.restore(here)
    assert same(other.reset(), following)
    with pytest.raises(ValueError, match="not the state of a random generator"):
        other.restore(replace(here, rng='{"bit_generator": "seed"}'))


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "meta", 5.0])
def test_a_device_that_is_not_there_is_named(env, device):
    env.reset(seed=0)
    with pytest.raises((ValueError, TypeError), match="device"):
        env.snapshot(device)


def test_an_unreadable_start_image_is_named(tiny, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"not an image")
    env = SanaWMEnv(tiny, scenes=tmp_path)
    env.reset(options={"scene": picture()})
    before, generator = env._episode, env.np_random.bit_generator.state
    with pytest.raises(ValueError, match=r"broken\.png cannot be read as an image"):
        env.reset(seed=0)
    assert env._episode is before
    assert env.np_random.bit_generator.state == generator
