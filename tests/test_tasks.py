"""Tasks: bounded rewards, goals that can be reached, policies that reach them and one that does not."""

import copy
import warnings

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env, data_equivalence

from sanawm_env import SanaWMEnv, Snapshot
from sanawm_env.camera.presets import STANDARD
from sanawm_env.camera.twist import hold
from sanawm_env.simulation.tasks import Explore, FollowPath, ImageNav, PointNav, Task, likeness
from tests.worlds import with_starts, write_tiny_world

NAMES = ("explore", "pointnav", "imagenav", "followpath")
IDS = {"explore": "Explore", "pointnav": "PointNav", "imagenav": "ImageNav", "followpath": "FollowPath"}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> str:
    return with_starts(write_tiny_world(tmp_path_factory.mktemp("worlds") / "tiny"))


def episode(env, policy, seed, options=None):
    """Rewards, the last info, whether it terminated."""
    obs, info = env.reset(seed=seed, options=options)
    rewards, over = [], (False, False)
    while not any(over):
        obs, reward, *over, info = env.step(policy(env, obs, info))
        rewards.append(reward)
    return rewards, info, over[0]


def random_policy(env, obs, info):
    return env.action_space.sample()


def to_point(env, obs, info, point=None):
    """Turn to the goal and walk there."""
    x, _, z = obs["goal"] if point is None else point
    seconds, ahead = 1.5, np.hypot(x, z)
    turn = np.arctan2(x, z)
    speed = env.controller.speed.scale(np.ones(6))
    forward = ahead * np.cos(turn / 2) if abs(turn) < 1 else 0
    return np.clip([0, 0, forward / seconds / speed[2], 0, turn / seconds / speed[4], 0], -1, 1)


def turn_in_place(env, obs, info):
    return np.array([0, 0, 0.3, 0, 1.0, 0])


def stand_still(env, obs, info):
    return np.zeros(6)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_gymnasium_finds_nothing_to_warn_of(tiny, name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(gym.make(f"SanaWM/{IDS[name]}-v0", world=tiny).unwrapped, skip_render_check=True)


@pytest.mark.parametrize("name", NAMES)
def test_an_episode_is_a_function_of_its_seed_and_its_actions(tiny, name):
    first, second = (SanaWMEnv(tiny, task=name) for _ in range(2))
    assert data_equivalence(first.reset(seed=3), second.reset(seed=3))
    first.action_space.seed(0)
    for _ in range(3):
        action = first.action_space.sample()
        assert data_equivalence(first.step(action), second.step(action))
    assert not data_equivalence(first.reset()[1], second.reset(seed=9)[1])


@pytest.mark.slow
@pytest.mark.parametrize(
    "task",
    [Explore(), PointNav(), PointNav(shaped=False), FollowPath(), *(ImageNav(reward=r) for r in ("pose", "image"))],
    ids=str,
)
def test_rewards_stay_within_the_bounds_that_are_stated(tiny, task):
    env = SanaWMEnv(tiny, task=task, max_episode_chunks=6)
    low, high = task.reward_range
    rewards = [r for seed in range(8) for r in episode(env, random_policy, seed)[0]]
    assert low <= min(rewards) <= max(rewards) <= high
    assert len(set(rewards)) > 1 or task == PointNav(shaped=False)


def test_without_a_task_nothing_is_rewarded_and_nothing_ends(tiny):
    rewards, info, terminated = episode(SanaWMEnv(tiny, max_episode_chunks=3), random_policy, 0)
    assert (rewards, terminated) == ([0.0, 0.0, 0.0], False)
    assert "is_success" not in info


# --- policies ---


@pytest.mark.slow
def test_exploring_pays_for_new_views_alone(tiny):
    env = SanaWMEnv(tiny, task="explore", max_episode_chunks=8)
    rewards, info, _ = episode(env, turn_in_place, 0)
    assert sum(rewards) == info["cells"] - 1
    assert sum(episode(env, stand_still, 0)[0]) == 0
    back_and_forth = iter([(0, 0, v, 0, 0, 0) for v in (1, -1) * 4])
    again = episode(env, lambda *_: np.array(next(back_and_forth)), 0)[0]
    assert again[0] > 0 and sum(again[2:]) <= 1  # what was seen pays no more
    assert sum(rewards) > sum(again)


@pytest.mark.slow
def test_a_scripted_policy_reaches_the_points_that_a_random_one_misses(tiny):
    env = SanaWMEnv(tiny, task="pointnav")
    reached = [episode(env, to_point, seed) for seed in range(12)]
    assert sum(terminated for *_, terminated in reached) >= 11
    assert all(info["is_success"] == terminated for _, info, terminated in reached)
    assert all(info["distance"] <= 0.35 for _, info, terminated in reached if terminated)
    assert sum(episode(env, random_policy, seed)[2] for seed in range(12)) <= 3


def test_coming_closer_is_what_pays(tiny):
    env = SanaWMEnv(tiny, task="pointnav")
    _, start = env.reset(seed=1)
    rewards, info, terminated = episode(env, to_point, 1)
    assert sum(rewards) == pytest.approx(start["distance"] - info["distance"] + terminated)


class Replay:
    """The hidden walk itself: what is optimal where the goal is its end."""

    def __init__(self, env, seed, chunks):
        twin = SanaWMEnv(env.world, task="none")
        twin.reset(seed=seed)
        for _ in range(100):  # as the task draws it
            self.actions = list(env.controller.sample_walk_actions(twin.np_random, chunks))
            if np.linalg.norm(env.simulator.follow(twin.episode, np.stack(self.actions))[-1, :3, 3]) >= 0.7:
                break

    def __call__(self, env, obs, info):
        return self.actions.pop(0) if self.actions else np.zeros(6)


@pytest.mark.slow
def test_the_hidden_walk_finds_the_picture_and_a_random_one_does_not(tiny):
    for reward in ("pose", "image", "success"):
        env = SanaWMEnv(tiny, task="imagenav", task_options={"reward": reward})
        for seed in range(3):
            rewards, info, terminated = episode(env, Replay(env, seed, 3), seed)
            assert terminated and info["is_success"] and len(rewards) <= 3
            assert info["distance"] <= 0.35 and info["angle"] <= 20
            assert rewards[-1] >= 1
    assert sum(episode(env, random_policy, seed)[2] for seed in range(8)) <= 2


def test_the_goal_picture_is_what_the_world_shows_there(tiny):
    env = SanaWMEnv(tiny, task=ImageNav(radius=1e-9, angle=1e-9))
    obs, _ = env.reset(seed=2)
    replay = Replay(env, 2, 3)
    for _ in range(3):
        last, *_, info = env.step(replay(env, obs, {}))
    assert info["likeness"] == 1
    assert np.array_equal(last["rgb"], obs["goal_rgb"])


def test_an_image_reward_sees_pictures_alone(tiny):
    env = SanaWMEnv(tiny, task=ImageNav(reward="image", radius=1e-9))
    env.reset(seed=2)
    *_, info = env.step(np.array([0, 0, 1, 0, 0.5, 0]))
    assert env.restore(env.snapshot())[1]["likeness"] == info["likeness"]
    reward = env.step(np.zeros(6))[1]
    assert reward == pytest.approx(env.info["likeness"] - info["likeness"])


def along_the_path(env, obs, info):
    return to_point(env, obs, info, obs["waypoints"][2])


@pytest.mark.slow
def test_a_path_can_be_followed_to_its_end(tiny):
    env = SanaWMEnv(tiny, task="followpath", task_options={"width": 0.6})
    ends = [episode(env, along_the_path, seed) for seed in range(8)]
    assert sum(terminated for *_, terminated in ends) >= 7
    assert all(sum(r) == pytest.approx(1) for r, _, terminated in ends if terminated)
    assert sum(episode(env, random_policy, seed)[2] for seed in range(8)) <= 2


def test_poses_of_the_path_itself_cover_all_of_it(tiny):
    env = SanaWMEnv(tiny, task="followpath", action_mode="poses")
    env.reset(seed=0)
    path, total, chunk, terminated = env.snapshot().task_state.c2w, 0.0, 0, False
    while not terminated:
        _, reward, terminated, _, info = env.step(path[24 * chunk : 24 * chunk + 24])
        total, chunk = total + reward, chunk + 1
    assert total == pytest.approx(1) and info["deviation"] < 1e-6


def test_leaving_the_path_covers_nothing(tiny):
    path = hold(np.eye(4), STANDARD.scale(np.array([0, 0, 1, 0, 0, 0])), 48)
    env = SanaWMEnv(tiny, task="followpath")
    env.reset(seed=0, options={"task": {"path": path}})
    sideways = [env.step(np.array([1, 0, 0, 0, 0, 0]))[1] for _ in range(3)]
    assert sum(sideways) < 0.3


# --- curricula, goals and rewards of one's own ---


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pointnav", "imagenav"])
def test_options_make_goals_nearer(tiny, name):
    env = SanaWMEnv(tiny, task=name)
    near, far = ([env.reset(seed=s, options={"task": {"chunks": n}})[1]["distance"] for s in range(6)] for n in (1, 6))
    assert np.mean(near) < np.mean(far)


def test_a_goal_can_be_given(tiny):
    env, goal = SanaWMEnv(tiny, task="pointnav"), np.eye(4)
    goal[:3, 3] = 0.4, 0, 1.2
    obs, info = env.reset(seed=0, options={"task": {"goal": goal}})
    assert obs["goal"] == pytest.approx([0.4, 0, 1.2])
    assert info["distance"] == pytest.approx(np.hypot(0.4, 1.2))
    for task in ({"goal_c2w": info["goal_c2w"]}, {"goal": obs["goal"]}):
        again, _ = env.reset(seed=5, options={"task": task})
        assert again["goal"] == pytest.approx(obs["goal"])


def test_a_reward_of_ones_own_sees_the_batch(tiny):
    seen = []

    def brightness(transition):
        seen.append(transition)
        return transition.frames[:, -1].float().mean((1, 2, 3)).cpu().numpy()

    envs = gym.make_vec("SanaWM/PointNav-v0", num_envs=3, world=tiny, reward_fn=brightness)
    envs.reset(seed=0)
    actions = envs.action_space.sample()
    _, rewards, *_ = envs.step(actions)
    (transition,) = seen
    assert rewards == pytest.approx([env.clip.frames[-1].mean() for env in envs.envs], abs=1e-3)
    assert transition.frames.shape[:2] == transition.c2w.shape[:2] == (3, 24)
    assert np.array_equal(transition.actions, actions)
    assert transition.before[1].slot.chunk + 1 == transition.after[1].slot.chunk


class Brightest(Task):
    """Walk until the picture has become bright, and count the steps."""

    state_type = tuple

    def reset(self, episodes, rngs, simulator, options):
        return [(0, np.zeros(2))] * len(episodes)

    def info(self, moment):
        return {"steps": moment.task_state[0]}

    def evaluate(self, transition):
        from sanawm_env.simulation.tasks import Verdict

        states = [(moment.task_state[0] + 1, moment.task_state[1]) for moment in transition.before]
        bright = np.array([float(m.slot.frame.float().mean()) for m in transition.after])
        return Verdict(bright, bright > 1e9, states)


def test_a_task_of_ones_own_travels_in_snapshots_and_files(tiny, tmp_path):
    env = SanaWMEnv(tiny, task=Brightest())
    env.reset(seed=0)
    env.step(np.zeros(6))
    env.snapshot().save(tmp_path / "moment")
    env.step(np.zeros(6))
    assert env.info["steps"] == 2
    _, info = env.restore(Snapshot.load(tmp_path / "moment", env.world))
    assert info["steps"] == 1


@pytest.mark.parametrize("name", NAMES)
def test_a_snapshot_knows_its_goal(tiny, name, tmp_path):
    env = SanaWMEnv(tiny, task=name)
    env.reset(seed=0)
    action = np.array([0, 0, 0.5, 0, 0.3, 0])
    seen = env.step(action)
    env.snapshot().save(tmp_path / "moment")
    here, fork = env.snapshot(), copy.deepcopy(env)
    ahead = env.step(action)
    env.reset(seed=1)
    assert data_equivalence(env.restore(here), (seen[0], seen[4]))
    assert data_equivalence(env.step(action), ahead)
    assert data_equivalence(fork.step(action), ahead)
    env.restore(Snapshot.load(tmp_path / "moment", env.world))
    assert data_equivalence(env.step(action), ahead)


def test_a_terminated_episode_stays_over_after_a_restore(tiny):
    env = SanaWMEnv(tiny, task=PointNav(radius=100.0))
    env.reset(seed=0)
    assert env.step(np.zeros(6))[2]
    over = env.snapshot()
    env.reset(seed=1)
    env.restore(over)
    assert env.ended == (True, False)
    with pytest.raises(gym.error.ResetNeeded):
        env.step(np.zeros(6))


def test_likeness_orders_pictures(tiny):
    env = SanaWMEnv(tiny)
    env.reset(seed=0)
    frame = env.state.slots[0].frame
    assert likeness(frame, frame) == 1
    assert likeness(frame, 255 - frame) < likeness(frame, frame // 2 + 64) < 1
    assert likeness(frame * 0, frame * 0 + 255) == 0


# --- bad input ---


FAR = np.eye(4)
FAR[2, 3] = 1e4


@pytest.mark.parametrize(
    ("name", "options", "error", "says"),
    [
        ("pointnav", {"goal": FAR}, ValueError, "A goal must lie within the workspace"),
        ("pointnav", {"goal": np.ones((4, 4))}, ValueError, "rotation|rigid|last row|trajectory"),
        ("pointnav", {"goal": np.eye(3)}, ValueError, "4"),
        ("pointnav", {"goal": [10**400, 0, 0]}, TypeError, "A goal must be an array of numbers"),
        ("pointnav", {"goal": "there"}, TypeError, "A goal must be an array of numbers, got 'there'"),
        ("pointnav", {"goal_c2w": np.zeros(3)}, ValueError, r"A goal must be a camera-to-world pose \(4, 4\)"),
        ("pointnav", {"goal": [0, np.nan, 1]}, ValueError, "not finite"),
        ("pointnav", {"goal": np.zeros(3), "goal_c2w": np.eye(4)}, ValueError, "Give one goal"),
        ("followpath", {"path": [["a"]]}, TypeError, "A path must be an array of numbers"),
        ("pointnav", {"chunks": 99}, ValueError, "A goal 99 steps away cannot be reached in an episode of 10"),
        ("pointnav", {"chunks": 0}, ValueError, "chunks of a task must be a whole number from 1 to .*, got 0"),
        ("imagenav", {"goal": np.eye(4)}, ValueError, "takes the options chunks, not goal"),
        ("followpath", {"path": np.stack([np.eye(4), FAR])}, ValueError, "must lie within the workspace"),
        ("followpath", {"path": np.eye(4)[None]}, ValueError, "A path needs at least two poses, got 1"),
        ("explore", {"chunks": 1}, ValueError, "This task takes no options, not chunks"),
        ("pointnav", "near", TypeError, r'options\["task"\] must be a mapping, got str'),
    ],
)
def test_impossible_goals_are_refused_and_change_nothing(tiny, name, options, error, says):
    env = SanaWMEnv(tiny, task=name)
    env.reset(seed=0)
    before, rng = env.snapshot(), copy.deepcopy(env.np_random)
    with pytest.raises(error, match=says):
        env.reset(seed=5, options={"task": options})
    assert env.snapshot().state is before.state
    assert env.np_random.integers(1 << 30) == rng.integers(1 << 30)


@pytest.mark.parametrize(
    ("settings", "error", "says"),
    [
        ({"task": "chess"}, ValueError, "task must be one of none, explore, pointnav, imagenav, followpath or a Task"),
        ({"task": "pointnav", "task_options": {"speed": 1}}, TypeError, "does not take these task_options"),
        ({"task": PointNav(), "task_options": {"radius": 1}}, TypeError, "task_options are for a task given by name"),
        ({"task": "imagenav", "task_options": {"reward": "fame"}}, ValueError, "reward must be"),
        *(
            ({"task": task, "task_options": {name: value}}, ValueError, f"{name} must be")
            for task, name, values in (
                ("explore", "cell", (0, np.nan, -1, "0.5", True, 1e-300)),
                ("explore", "sector", (0, 1e9, "30")),
                ("pointnav", "radius", (np.nan, np.inf, 0, -1, "1")),
                ("pointnav", "chunks", (0, -2, 1.5, "3", True)),
                ("pointnav", "shaped", ("no", 2)),
                ("imagenav", "angle", (-1, np.nan)),
                ("imagenav", "radius", (0,)),
                ("followpath", "width", (0, None)),
                ("followpath", "chunks", (0, 10**30)),
            )
            for value in values
        ),
        ({"reward_fn": 3}, TypeError, "reward_fn must be a function of a Transition, got int"),
    ],
)
def test_wrong_task_settings_are_named(tiny, settings, error, says):
    with pytest.raises(error, match=says):
        SanaWMEnv(tiny, **settings)


@pytest.mark.parametrize("returned", [np.nan, [1.0, 2.0], "good"])
def test_a_reward_function_must_return_one_finite_number_each(tiny, returned):
    env = SanaWMEnv(tiny, reward_fn=lambda transition: returned if returned == "good" else np.atleast_1d(returned))
    env.reset(seed=0)
    before = env.state
    with pytest.raises(ValueError, match="reward_fn must return 1 finite numbers"):
        env.step(np.zeros(6))
    assert env.state is before
