"""Agents on the tiny world: scripted cameras, planners, Go-Explore."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from sanawm_env.agents import cameras
from sanawm_env.agents.cameras import CAMERAS, TURN, WALK, Spline, parse
from sanawm_env.agents.go_explore import GoExplore
from sanawm_env.agents.planners import CEM, MPPI, ImageGoal, PointGoal, RandomShooting, imagined

from sanawm_env import SanaWMEnv
from sanawm_env.camera.trajectory import check_trajectory
from sanawm_env.simulation.tasks import Explore
from sanawm_env.world import tree
from tests.worlds import picture, with_starts, write_tiny_world

PLANNERS = [
    RandomShooting(horizon=2, candidates=24, batch=10),
    CEM(horizon=2, candidates=12, iterations=2, elites=3, batch=10),
    MPPI(horizon=2, candidates=12, iterations=2, batch=10),
]
GOAL = PointGoal(np.array([0.3, 0, 1.0]))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> str:
    return with_starts(write_tiny_world(tmp_path_factory.mktemp("worlds") / "tiny"))


@pytest.fixture
def env(tiny) -> SanaWMEnv:
    env = SanaWMEnv(tiny, scenes=picture())
    env.reset(seed=0)
    return env


# --- cameras ---


@pytest.mark.parametrize("camera", [kind() for kind in CAMERAS.values()], ids=list(CAMERAS))
def test_a_camera_is_rigid_starts_at_frame_0_and_keeps_the_speed(camera):
    poses = camera.poses(240)
    assert np.allclose(poses[0], np.eye(4))
    assert check_trajectory(poses).shape == (240, 4, 4)
    assert np.linalg.norm(np.diff(poses[:, :3, 3], axis=0), axis=1).max() * 16 <= WALK + 1e-6
    apart = np.swapaxes(poses[:-1, :3, :3], 1, 2) @ poses[1:, :3, :3]
    turned = np.degrees(np.arccos(np.clip((np.trace(apart, axis1=1, axis2=2) - 1) / 2, -1, 1)))
    assert turned.max() * 16 <= TURN + 1e-3
    assert np.abs(poses - np.eye(4)).max() > 0.1
    assert camera.poses(1).shape == (1, 4, 4)


def test_an_orbit_looks_at_its_middle():
    poses = cameras.Orbit(radius=2.0, degrees=40.0).poses(300)
    middle = np.array([0, 0, 2.0])
    to_middle = middle - poses[:, :3, 3]
    assert np.allclose(np.linalg.norm(to_middle, axis=1), 2)
    assert np.allclose(to_middle / 2, poses[:, :3, 2])


def test_there_and_back_closes_the_loop():
    poses = cameras.ThereAndBack(distance=1.0, speed=0.5).poses(4 * 16 + 1)
    assert np.allclose(poses[-1], poses[0], atol=1e-9)
    assert poses[2 * 16, 2, 3] == pytest.approx(1)


def test_a_negative_speed_goes_the_other_way():
    right, left = (cameras.Orbit(speed=speed).poses(60) for speed in (0.3, -0.3))
    assert np.allclose(right[:, 0, 3], -left[:, 0, 3]) and right[-1, 0, 3] < 0 < left[-1, 0, 3]
    assert cameras.ThereAndBack(speed=-0.4).poses(30)[-1, 2, 3] < 0


def test_a_spline_goes_through_its_keys():
    keys = np.stack([np.eye(4), cameras.Orbit().poses(40)[-1], cameras.Dolly().poses(60)[-1]])
    poses = Spline(keys, seconds=4.0).poses(145)
    assert np.allclose(poses[[0, 64, 128]], keys)
    assert np.allclose(poses[144], keys[2])
    assert np.linalg.norm(np.diff(poses[:, :3, 3], axis=0), axis=1).max() * 16 <= WALK


def test_a_spline_that_would_race_is_refused():
    far, turned = np.stack([np.eye(4)] * 2), np.stack([np.eye(4), cameras.LookAround().poses(60)[-1]])
    far[1, 2, 3] = 10
    for keys in (far, turned):
        with pytest.raises(ValueError, match=r"A camera moves at most 0\.6 m/s and turns at most 12 degrees/s"):
            Spline(keys, seconds=1.0).poses(5)


@pytest.mark.parametrize("mode", ["poses", "twist"])
def test_a_camera_drives_an_environment(tiny, mode):
    env, path = SanaWMEnv(tiny, action_mode=mode), cameras.RandomWalk(seed=3).poses(1 + 3 * 24)
    env.reset(seed=0)
    for i, action in enumerate(cameras.actions(path, env)):
        *_, info = env.step(action)
        assert np.abs(info["c2w"][-1] - path[24 * (i + 1)]).max() < (1e-6 if mode == "poses" else 0.02)
    assert i == 2


def test_a_camera_drives_an_environment_that_cannot_roll(tiny):
    env, path = SanaWMEnv(tiny, speed="gentle"), cameras.Dolly(speed=0.3).poses(25)
    (action,) = cameras.actions(path, env)
    env.reset(seed=0)
    *_, info = env.step(action)
    assert np.allclose(info["c2w"][-1], path[-1], atol=1e-6)


def test_cameras_have_names():
    assert parse("orbit:radius=2,degrees=90") == cameras.Orbit(radius=2.0, degrees=90.0)
    assert parse("random-walk:seed=4") == cameras.RandomWalk(seed=4)
    assert parse("dolly") == cameras.Dolly()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("circle", "There is no camera 'circle': give dolly, orbit"),
        ("orbit:size=2", "The camera orbit takes radius, degrees, speed as name=number, got 'size=2'"),
        ("orbit:radius", "got 'radius'"),
        ("orbit:radius=wide", "radius of the camera orbit must be a number, got 'wide'"),
        ("orbit:radius=nan", "radius must be a finite number, got nan"),
        ("orbit:radius=1,radius=2", "The camera orbit takes radius once"),
        ("random-walk:seed=1.5", "seed of the camera random-walk must be a whole number, got '1.5'"),
        ("orbit:radius=-1", "radius must be above 0, got -1"),
        ("dolly:speed=9", "speed must be at most 0.6, got 9.0"),
        ("random-walk:seed=-1", "seed must be at least 0, got -1"),
    ],
)
def test_a_camera_that_cannot_be_is_named(text, says):
    with pytest.raises(ValueError, match=says):
        parse(text)


@pytest.mark.parametrize("text", [5, None, ["orbit"]])
def test_a_camera_is_text(text):
    with pytest.raises(TypeError, match="A camera is given as text"):
        cameras.parse(text)


def test_bad_paths_are_named(env):
    with pytest.raises(ValueError, match=r"The number of frames of a path must be a whole number from 1 to .*, got 0"):
        cameras.Dolly().poses(0)
    with pytest.raises(ValueError, match=r"two key poses \(K, 4, 4\) or more"):
        Spline(np.eye(4)[None]).poses(5)
    with pytest.raises(ValueError, match="pose 0 of the trajectory is not a rigid pose"):
        Spline(np.stack([2 * np.eye(4) - np.diag([0, 0, 0, 1])] * 2)).poses(5)
    with pytest.raises(ValueError, match='A camera needs the action_mode "poses" or "twist", got \'keys\''):
        next(cameras.actions(cameras.Dolly().poses(30), SanaWMEnv(env.world, action_mode="keys")))


# --- planners ---


@pytest.mark.slow
@pytest.mark.parametrize("planner", PLANNERS, ids=lambda p: type(p).__name__)
def test_a_plan_is_a_function_of_the_moment_and_the_seed(env, planner):
    before = [t.clone() for t in tree.leaves(env.state.slots)]
    plan, again = (planner.plan(env.simulator, env.episode, GOAL, np.random.default_rng(1)) for _ in range(2))
    assert plan.actions.shape == (2, 6) and plan.actions.dtype == np.float32
    assert np.array_equal(plan.actions, again.actions) and plan.score == again.score
    assert not plan.actions[:, [1, 3, 5]].any() and np.abs(plan.actions).max() <= 1
    assert all(map(torch.equal, tree.leaves(env.state.slots), before))
    assert env.info["chunk"] == 0


@pytest.mark.slow
@pytest.mark.parametrize("planner", PLANNERS, ids=lambda p: type(p).__name__)
def test_planning_again_and_again_reaches_a_point(env, planner):
    rng, plan, away = np.random.default_rng(0), None, []
    for _ in range(3):
        action, plan = planner.act(env, GOAL, rng, plan)
        *_, info = env.step(action)
        away.append(np.linalg.norm(info["c2w"][-1, :3, 3] - GOAL.point))
    assert min(away) < 0.4 < np.linalg.norm(GOAL.point)


@pytest.mark.slow
def test_the_elite_beat_random_futures_at_equal_budget(env):
    planners = RandomShooting(horizon=2, candidates=80), CEM(horizon=2, candidates=20, iterations=4, elites=4)
    shooting, cem = (
        [p.plan(env.simulator, env.episode, GOAL, np.random.default_rng(s)).score for s in range(6)] for p in planners
    )
    assert np.mean(cem) > np.mean(shooting)


def test_small_batches_bound_memory_and_give_the_same_plan(env):
    seen = []

    def objective(frames, c2w):
        seen.append(len(frames))
        return GOAL(frames, c2w)

    plans = [
        RandomShooting(horizon=2, candidates=7, batch=batch).plan(
            env.simulator, env.episode, objective, np.random.default_rng(0)
        )
        for batch in (7, 3)
    ]
    assert seen == [7, 3, 3, 1]
    assert np.array_equal(plans[0].actions, plans[1].actions)
    assert plans[0].scores == pytest.approx(plans[1].scores)


def test_a_future_is_what_stepping_there_shows(env):
    actions = np.random.default_rng(0).uniform(-1, 1, (3, 2, 6)).astype(np.float32)
    frames, c2w = imagined(env.simulator, env.episode, actions)
    assert frames.shape[:2] == c2w.shape[:2] == (3, 48)
    for action in actions[1]:
        *_, info = env.step(action)
    assert np.array_equal(info["c2w"], c2w[1, 24:])
    assert (frames[1, 24:].int() - torch.tensor(env.clip.frames).int()).abs().max() <= 1


def test_an_image_goal_prefers_the_walk_that_led_to_the_picture(env):
    actions = np.random.default_rng(3).uniform(-1, 1, (6, 2, 6)).astype(np.float32)
    frames, c2w = imagined(env.simulator, env.episode, actions)
    scores = ImageGoal(frames[4, -1])(frames, c2w)
    assert scores.argmax() == 4
    assert scores[4] == pytest.approx(1 - 0.005)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: CEM(horizon=0), "horizon must be at least 1, got 0"),
        (lambda: CEM(iterations=0), "iterations must be at least 1, got 0"),
        (lambda: CEM(candidates="64"), "candidates must be a whole number, got '64'"),
        (lambda: CEM(std=np.nan), "std must be a finite number, got nan"),
        (lambda: CEM(axes=5), "axes must be a list, got 5"),
        (lambda: CEM(axes="024"), "axes must be a list, got '024'"),
        (lambda: ImageGoal(np.zeros((4, 4, 3), np.uint8), scales=(0,)), r"scales\[0\] must be at least 1, got 0"),
        (lambda: PointGoal(None), "A point goal is three finite numbers, metres, got None"),
        (lambda: PointGoal(["a", "b", "c"]), "A point goal is three finite numbers"),
        (lambda: PointGoal(np.zeros(3), hurry="0"), "hurry must be a number, got '0'"),
        (lambda: CEM(candidates=4), "elites must be among the 4 candidates, got 8"),
        (lambda: MPPI(temperature=0.0), "temperature must be above 0, got 0.0"),
        (lambda: MPPI(axes=(7,)), r"axes\[0\] must be at most 5, got 7"),
        (lambda: MPPI(axes=(0, 0)), "each once"),
        (lambda: ImageGoal(np.zeros((4, 4))), r"An image goal is an image \(H, W, 3\), got the shape \(4, 4\)"),
        (lambda: PointGoal(np.array([0, np.nan, 1])), "A point goal is three finite numbers"),
        (lambda: GoExplore(walk=0), "walk must be at least 1, got 0"),
        (lambda: GoExplore(capacity="500"), "capacity must be a whole number, got '500'"),
    ],
)
def test_a_planner_that_cannot_be_is_named(make, says):
    with pytest.raises(ValueError, match=says):
        make()


@pytest.mark.parametrize("given", [None, "goal.png", [[0]]])
def test_an_image_goal_is_a_picture(given):
    with pytest.raises(TypeError, match="An image goal is a tensor or an array"):
        ImageGoal(given)


def test_planners_need_a_world_to_imagine_in():
    with pytest.raises(TypeError, match="Planners predict in a SanaWMEnv, got CartPoleEnv"):
        PLANNERS[0].act(gym.make("CartPole-v1"), GOAL, np.random.default_rng(0))


@pytest.mark.parametrize("scores", [3.0, [1.0], [np.nan] * 4])
def test_an_objective_that_does_not_score_each_future_is_named(env, scores):
    planner = RandomShooting(horizon=1, candidates=4)
    with pytest.raises(ValueError, match="An objective must return 4 finite scores, one per future, got"):
        planner.plan(env.simulator, env.episode, lambda frames, c2w: scores, np.random.default_rng(0))


@pytest.mark.parametrize(
    ("objective", "rng", "says"),
    [
        (None, np.random.default_rng(0), "An objective is a function of frames and poses, or a PointGoal, got None"),
        (GOAL, 0, r"rng must be a numpy Generator, as of np.random.default_rng\(0\), got 0"),
    ],
)
def test_a_planner_takes_an_objective_and_a_generator(env, objective, rng, says):
    for planner in PLANNERS:
        with pytest.raises(TypeError, match=says):
            planner.act(env, objective, rng)


def test_a_warm_start_is_of_the_same_planner(env):
    short = CEM(horizon=2, candidates=4, elites=2).plan(env.simulator, env.episode, GOAL, np.random.default_rng(0))
    with pytest.raises(ValueError, match="go on with a plan of the same planner"):
        CEM(horizon=3, candidates=4, elites=2).plan(
            env.simulator, env.episode, GOAL, np.random.default_rng(0), previous=short
        )


def test_planners_act_in_a_wrapped_environment(tiny):
    env = gym.make("SanaWM/PointNav-v0", world=tiny)
    env.reset(seed=0)
    action, _ = RandomShooting(horizon=1, candidates=2).act(env, GOAL, np.random.default_rng(0))
    assert env.action_space.contains(action)


def test_planners_plan_twists(tiny):
    env = SanaWMEnv(tiny, action_mode="discrete")
    env.reset(seed=0)
    with pytest.raises(ValueError, match='make the environment with action_mode="twist", got the controller Keys'):
        PLANNERS[0].plan(env.simulator, env.episode, GOAL, np.random.default_rng(0))


# --- Go-Explore ---


def explore(tiny, **settings):
    env = SanaWMEnv(tiny, scenes=picture(), max_episode_chunks=50)
    env.reset(seed=0)
    return GoExplore(**settings).run(env.simulator, env.episode, 4, 48, seed=0)


def test_go_explore_keeps_an_episode_of_every_cell_it_stood_in(tiny):
    coverage, archive = explore(tiny)
    assert coverage.shape == (12,) and (np.diff(coverage) >= 0).all()
    assert coverage[-1] >= len(archive.episodes) > 8
    assert tree.nbytes(tuple(archive.episodes.values())) < sum(each.nbytes for each in archive.episodes.values())
    env = SanaWMEnv(tiny)
    for cell, there in list(archive.episodes.items())[:3]:
        env.episode = there
        assert tuple(Explore().cells(env.info["c2w"][-1:])[0]) == cell


@pytest.mark.slow
def test_without_returns_the_budget_is_the_same(tiny):
    assert explore(tiny, returns=False)[0].shape == explore(tiny)[0].shape
    assert np.array_equal(explore(tiny)[0], explore(tiny)[0])


@pytest.mark.slow
def test_the_archive_is_bounded(tiny):
    assert len(explore(tiny, capacity=5)[1].episodes) == 5


def test_go_explore_says_what_it_counts(env):
    with pytest.raises(ValueError, match=r"The budget of steps must be a whole number from 1 to .*, got 0"):
        GoExplore().run(env.simulator, env.episode, 2, 0, seed=0)
    with pytest.raises(ValueError, match=r"The number of episodes at a time must be a whole number .*, got 0"):
        GoExplore().run(env.simulator, env.episode, 0, 4, seed=0)
