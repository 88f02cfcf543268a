"""Policies compared in nano and in the truth: the same episodes in both, and what is made of their results."""

import json
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pytest
import torch
from sanawm_env.agents import compare as module
from sanawm_env.agents.compare import SETTINGS, anchors_of, begin, choose, compare, draw_setups, run, simulators
from sanawm_env.agents.compare_numbers import (
    Agreement,
    compared,
    mean_gap,
    over_episodes,
    pearson,
    pearson_of_policies,
    rank_violation,
    rate,
)
from sanawm_env.agents.compare_planning import BELIEFS, first_plan, plan_and_act
from sanawm_env.agents.compare_policies import STRIDE, Drawn, Expert, Policy, Registration, Servo, turned
from sanawm_env.agents.planners import CEM

from sanawm_env import SanaWMEnv, Snapshot
from sanawm_env.camera.twist import hold
from sanawm_env.cli import main
from sanawm_env.cli.compare import told
from sanawm_env.simulation.tasks import ImageNav, PointNav
from sanawm_env.world.anchor import Anchor
from sanawm_env.world.folders import config_of
from sanawm_env.world.world import World
from tests.worlds import TINY, write_tiny_world

SIZE = {"height": TINY.height, "width": TINY.width, "supersample": 1}


@pytest.fixture(scope="module")
def predicted_folder(tmp_path_factory):
    return write_tiny_world(tmp_path_factory.mktemp("tiny") / "world")


@pytest.fixture(scope="module")
def predicted(predicted_folder):
    return World.load(predicted_folder)


@pytest.fixture(scope="module")
def truth():
    return World.load("rooms", collisions=True, **SIZE)


@pytest.fixture(scope="module")
def setups(predicted, truth):
    anchors = anchors_of("rooms:test", predicted.config, truth.config, count=3)
    return draw_setups(simulators(predicted, truth, ImageNav())[1], anchors)


@pytest.mark.slow
def test_an_episode_begins_alike_in_the_predicted_world_and_in_the_truth(predicted, truth, setups):
    pair = simulators(predicted, truth, ImageNav())
    for one, other, setup in zip(*(begin(simulator, setups) for simulator in pair), setups, strict=True):
        for episode in (one, other):
            assert np.array_equal(episode.slot.frame, setup.image)
            assert np.array_equal(episode.task_state.image, setup.goal_image)
            assert np.array_equal(episode.task_state.c2w, setup.goal_c2w)
            assert np.array_equal(episode.slot.scene.intrinsics, setup.intrinsics)
            assert episode.slot.seed == setup.seed
        assert one.slot.scene.anchor is None and other.slot.scene.anchor is not None
        assert np.linalg.norm(setup.goal_c2w[:3, 3]) >= 0.7
    assert len({setup.anchor.place for setup in setups}) == 3


def test_the_goal_picture_is_what_the_truth_shows_at_the_goal(setups):
    free, setup = World.load("rooms", **SIZE), setups[0]
    state = free.begin(free.scene(setup.image, anchor=setup.anchor))
    _, clip = free.advance(state, np.repeat(setup.goal_c2w[None], 24, 0))
    assert np.array_equal(clip.frames[0, -1], setup.goal_image)


def test_the_same_twists_lead_to_the_same_poses_in_both(predicted, setups):
    free = World.load("rooms", **SIZE)
    actions = np.random.default_rng(0).uniform(-1, 1, (len(setups), 6))
    moved = [s.step(begin(s, setups), list(actions))[1].c2w for s in simulators(predicted, free, PointNav())]
    assert np.array_equal(*moved)


@pytest.mark.slow
def test_setups_follow_from_scenes_and_seed(predicted, truth, setups):
    pair, small = simulators(predicted, truth, ImageNav()), World.load("rooms", collisions=True, height=8, width=12)
    again = draw_setups(pair[1], anchors_of("rooms:test", predicted.config, truth.config, count=3), unseen=small)
    other = draw_setups(pair[1], anchors_of("rooms:test", predicted.config, truth.config, count=1, seed=1), seed=1)
    assert [setup.seed for setup in again] == [setup.seed for setup in setups]
    assert all(np.array_equal(a.goal_image, b.goal_image) for a, b in zip(again, setups, strict=True))
    assert other[0].anchor.place != setups[0].anchor.place and other[0].seed != setups[0].seed


@pytest.mark.slow
def test_known_episodes_begin_where_the_predicted_world_knows_the_place(truth):
    nano = config_of("nano")
    assert {anchor.place for anchor in anchors_of("known", nano, truth.config, 3, seed=1)} <= set(nano.places)


def test_a_gymnasium_environment_goes_there(predicted, setups):
    env = SanaWMEnv(predicted, task="imagenav", max_episode_chunks=6)
    (episode,) = begin(env.simulator, setups[:1])
    obs, info = env.restore(Snapshot.of(episode, env.action_mode), reseed=setups[0].seed)
    assert np.array_equal(obs["rgb"], setups[0].image) and np.array_equal(obs["goal_rgb"], setups[0].goal_image)
    assert info["seed"] == setups[0].seed and np.array_equal(info["goal_c2w"], setups[0].goal_c2w)


@pytest.mark.parametrize("scenes", ["unknown", 3, None, "rooms:train2"])
def test_other_scenes_are_refused_in_a_sentence(predicted, truth, scenes):
    with pytest.raises(ValueError, match=r"scenes must be|no start images"):
        anchors_of(scenes, predicted.config, truth.config, 1)


def test_a_predicted_world_is_no_truth(predicted, predicted_folder):
    with pytest.raises(ValueError, match="is predicted: compare with one that is rendered"):
        module.load_truth(predicted_folder, predicted, walls=True)


def test_worlds_that_differ_in_size_are_refused_in_a_sentence(predicted, setups):
    large = World.load("rooms", height=32, width=48)
    with pytest.raises(ValueError, match="equal height, got 24 in tiny and 32 in rooms"):
        simulators(predicted, large, PointNav())
    with pytest.raises(ValueError, match=r"frames of \(24, 32\) pixels, the rooms world of \(32, 48\)"):
        begin(simulators(large, large, PointNav())[0], setups)


@dataclass(frozen=True, kw_only=True)
class Seeing(Policy):
    """Does as another one, and has pictures made."""

    inner: Policy
    acts_on = "images"

    def decide(self, view, memory, rng):
        return self.inner.decide(view, memory, rng)

    act = decide


@dataclass(frozen=True, kw_only=True)
class Stops(Policy):
    """Stands still, and says after so many steps that it has arrived."""

    after: int
    stops = True
    acts_on = "nothing"

    def act(self, view, memory, rng):
        steps = memory or 0
        return (None if steps >= self.after else np.zeros(6, np.float32)), steps + 1


# --- numbers ---


def test_rank_violation_is_what_hand_and_paper_say():
    """The prediction ranks the first two of three policies the wrong way (0.2 apart in truth): (0.2 + 0.2 + 0) / 3."""
    assert rank_violation([0.6, 0.5, 0.9], [0.3, 0.5, 0.8]) == pytest.approx(0.4 / 3)
    assert rank_violation([0.1, 0.2, 0.3], [0.4, 0.5, 0.6]) == 0
    assert rank_violation([0, 1], [1, 0]) == 1
    assert rank_violation([0.5, 0.5], [0.2, 0.6]) == pytest.approx(0.2)  # a tie hides what is apart


def test_rates_have_wilsons_interval():
    """8 of 10: the centre is (0.8 + z^2 / 20) / (1 + z^2 / 10), half the width z / (1 + z^2 / 10) *
    sqrt(0.016 + z^2 / 400), z = 1.95996."""
    assert rate([True] * 8 + [False] * 2) == pytest.approx((0.8, 0.490162, 0.943318), abs=1e-6)
    assert rate([False] * 4)[:2] == (0, 0)


def test_correlation_has_fishers_interval():
    """r = 0.8 of five: tanh(atanh(0.8) -+ 1.95996 / sqrt(2))."""
    predicted, truth = [1, 2, 3, 4, 5], [2, 1, 4, 3, 5]
    half = 1.959964 / np.sqrt(2)
    expected = (0.8, np.tanh(np.arctanh(0.8) - half), np.tanh(np.arctanh(0.8) + half))
    assert pearson_of_policies(predicted, truth) == pytest.approx(expected, abs=1e-6)
    assert np.isnan(pearson([1, 1, 1], [0, 1, 2])) and np.isnan(pearson([1], [1]))


def test_a_bootstrap_draws_the_same_episodes_for_all():
    """Where each episode's gap is the same, no draw of episodes changes the mean gap; where they differ, it does."""
    gap = partial(over_episodes, mean_gap)
    easy = np.arange(20) % 2 == 0
    assert gap(np.stack([easy, ~easy]), np.stack([easy, ~easy])) == (0, 0, 0)
    value, low, high = gap(np.stack([easy]), np.zeros((1, 20), bool))
    assert value == 0.5 and 0.2 < low < 0.4 and 0.6 < high < 0.8


def test_a_comparison_tells_those_that_act_on_images_apart():
    predicted = [[1, 1, 1, 1], [1, 1, 0, 0], [0, 0, 0, 1]]
    truth = [[1, 1, 1, 1], [1, 0, 0, 0], [0, 0, 0, 0]]
    found = compared("title", "abc", ["odometry", "images", "images"], predicted, truth)
    assert found.every.policies == 3 and found.images.policies == 2
    assert found.every.gap.value == pytest.approx(0.5 / 3) and found.images.gap.value == pytest.approx(0.25)
    assert [row.gap for row in found.rows] == [0, 0.25, 0.25]
    assert found.images.r.value == pytest.approx(1)
    plain = json.loads(json.dumps(found.to_plain(), allow_nan=False))
    assert plain["those that act on images"]["r"] == [pytest.approx(1), None, None]
    assert compared("", "a", ["nothing"], predicted[:1], truth[:1]).images is None
    assert told(found.images) == "r 1.00, violation 0.00 (0.00 to 0.25), gap 0.25 (0.00 to 0.50)"
    assert "r 1.00 (" in told(Agreement.of(*[np.eye(5, 8).cumsum(0) > 0] * 2))


# --- policies ---


@pytest.mark.slow
@pytest.mark.parametrize("velocity", [(0, 0, 0.3, 0, 0, 0), (0.2, 0, 0.1, 0, 0.087, 0), (0, 0, 0, 0, 0.14, 0)])
def test_a_registration_finds_the_way_between_two_pictures(velocity):
    """Where a wall is as far ahead as it assumes: to some 0.2 m and 4 degrees, what half a step is known to."""
    free, level = World.load("rooms", height=64, width=96, supersample=1), np.eye(4)
    level[:3, 3] = (1.5, -1.5, 0.1)  # the gallery's wall is 2.5 m ahead
    scene = free.scene(np.zeros((64, 96, 3), np.uint8), anchor=Anchor("gallery", level))
    moved = hold(np.eye(4), velocity)[-1]
    _, clip = free.advance(free.begin(scene), np.repeat(moved[None], 24, 0))
    reads, lens = Registration(), tuple((scene.intrinsics / 96).tolist())
    old, new = reads.small(torch.stack([torch.tensor(scene.image), clip.frames[0, -1]]), np.random.default_rng(0))
    found, left = reads(old, new, STRIDE, lens)
    assert np.linalg.norm(found[:3, 3] - moved[:3, 3]) < 0.25
    assert turned(found, moved) < 5 and left < 0.4
    same, nothing = reads(old, old, STRIDE, lens)
    assert np.allclose(same, np.eye(4)) and nothing == 0


def test_policies_are_graded_committed_and_told_apart():
    for setting in SETTINGS.values():
        names = [policy.name for policy in setting.policies]
        assert len(set(names)) == len(names) >= 12
        assert {policy.acts_on for policy in setting.policies} == {"nothing", "odometry", "images"}
        assert sum(policy.acts_on == "images" for policy in setting.policies) >= 5


@pytest.mark.slow
def test_an_expert_arrives_and_errors_keep_it_from_it(predicted, truth):
    free = World.load("rooms", **SIZE)
    simulator = simulators(predicted, free, ImageNav())[1]
    anchors = anchors_of("rooms:test", predicted.config, free.config, count=1)
    setups = [replace(setup, seed=i) for setup in draw_setups(simulator, anchors) for i in range(40)]
    shares = [
        np.mean([outcome.success for outcome in run(simulator, setups, Expert(name="e", errors=errors))])
        for errors in (0, 0.75, 1)
    ]
    assert shares[0] == 1 > shares[1] > shares[2]


@pytest.mark.slow
def test_what_does_not_look_needs_no_pictures(predicted, setups):
    """Poses, success and steps are those of a run that makes every picture."""
    free = World.load("rooms", **SIZE)
    for simulator in simulators(predicted, free, PointNav()):
        for policy in (Drawn(name="random"), Expert(name="expert", errors=0.5, heading=False)):
            unseen = run(simulator, setups, policy)
            seen = run(simulator, setups, Seeing(name=policy.name, inner=policy))
            assert unseen == seen


def test_who_stops_succeeds_only_where_it_says_so(predicted, setups):
    free = World.load("rooms", **SIZE)
    simulator = simulators(predicted, free, ImageNav())[1]
    at_once, never = Stops(name="stops", after=0), Stops(name="never", after=99)
    here = [replace(setup, goal_c2w=np.eye(4)) for setup in setups]
    assert [outcome[:2] for outcome in run(simulator, here, at_once)] == [(True, 0)] * 3
    assert [outcome[:2] for outcome in run(simulator, setups, at_once)] == [(False, 0)] * 3
    assert [outcome[:2] for outcome in run(simulator, here, never)] == [(False, 6)] * 3


# --- comparing ---


@pytest.mark.slow
def test_a_comparison_goes_on_where_it_was_stopped(predicted, truth, setups, tmp_path, monkeypatch):
    pair = simulators(predicted, truth, ImageNav(), steps=2)
    policies = [Drawn(name="random"), Servo(name="servo")]
    whole = compare(*pair, setups, policies)
    done = []

    def stop(text):
        done.append(text)
        if len(done) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compare(*pair, setups, policies, keep=tmp_path, progress=stop)
    assert len(list(tmp_path.glob("*.json"))) == 2
    ran, real = [], run
    monkeypatch.setattr(
        module, "run", lambda simulator, s, policy: ran.append(policy.name) or real(simulator, s, policy)
    )
    assert compare(*pair, setups, policies, keep=tmp_path).rows == whole.rows
    assert ran == ["servo", "servo"]
    compare(*pair, setups[:2], policies[:1], keep=tmp_path)  # other episodes are another run
    assert ran == ["servo", "servo", "random", "random"]
    broken = next(tmp_path.glob("*.json"))
    broken.write_text('{"outcomes": [{"success": 1}]}')
    with pytest.raises(ValueError, match=r"cannot be read as the outcomes of a policy: .* Delete it"):
        compare(*pair, setups, policies, keep=tmp_path)
        compare(*pair, setups[:2], policies[:1], keep=tmp_path)


@pytest.mark.slow
def test_small_pictures_do_for_who_does_not_look(predicted, truth, setups):
    small = World.load("rooms", collisions=True, height=8, width=12)
    pair, policies = (
        simulators(predicted, truth, PointNav()),
        [Drawn(name="random"), Drawn(name="walk", low=(0, 0.5, 0))],
    )
    assert compare(*pair, setups, policies, unseen=small).rows == compare(*pair, setups, policies).rows


def test_what_cannot_be_compared_is_said_in_a_sentence(predicted, truth, setups):
    pair, walk = simulators(predicted, truth, PointNav()), Drawn(name="walk")
    with pytest.raises(ValueError, match="at least one policy and one episode, got 0 and 3"):
        compare(*pair, setups, [])
    with pytest.raises(ValueError, match=r"different names, got .*walk"):
        compare(*pair, setups, [walk, walk])
    with pytest.raises(ValueError, match="no policy 'run'; there are walk"):
        choose([walk], ["run"])
    assert choose([walk], []) == (walk,)


@pytest.mark.slow
def test_the_command_leaves_numbers_and_a_picture(predicted_folder, tmp_path, capsys):
    options = ["compare", str(predicted_folder), "rooms", "--scenes", "rooms:test", "--episodes", "2", "--steps", "1"]
    options += ["--task", "point-nav", "--policies", "walk", "visual odometry, 0% errors", "--out", str(tmp_path)]
    main(options)
    said = capsys.readouterr().out
    found = json.loads((tmp_path / "point-nav-rooms-test.json").read_text())
    assert [comparison["episodes"] for comparison in found] == [2, 2]
    assert "walls stop" in found[1]["title"] and "walls stop" in said and "visual odometry" in said
    assert (tmp_path / "point-nav-rooms-test.png").read_bytes().startswith(b"\x89PNG")
    assert len(list((tmp_path / "runs").glob("*.json"))) == 6  # two in the predicted world, two in each truth
    with pytest.raises(SystemExit) as ended:
        main([*options[:-4], "dreamer", "--out", str(tmp_path)])
    assert ended.value.code == 2


# --- planning ---


@pytest.mark.parametrize("belief", ["fresh", "kept"])
def test_an_agent_plans_in_the_predicted_world_and_acts_in_the_truth(predicted, truth, setups, belief):
    acting, predicting = (simulators(predicted, truth, ImageNav(), steps=2)[i] for i in (1, 0))
    planner = CEM(horizon=1, candidates=4, iterations=1, elites=2)
    outcome = plan_and_act(acting, setups[0], predicting, planner, belief)
    again = plan_and_act(acting, setups[0], predicting, planner, belief, first_plan(setups[0], predicting, planner))
    assert outcome == again and 1 <= outcome.steps <= 2
    with pytest.raises(ValueError, match="belief must be one of fresh, kept, got 'new'"):
        plan_and_act(acting, setups[0], predicting, planner, "new")


@pytest.mark.parametrize("belief", ["fresh", "kept"])
def test_what_is_believed_has_the_true_pose_and_the_true_picture(predicted, truth, setups, belief):
    acting, predicting = (simulators(predicted, truth, ImageNav())[i] for i in (1, 0))
    (there,), (here,) = begin(acting, setups[:1]), begin(predicting, setups[:1])
    for twist in ([0, 0, 1, 0, 0.5, 0], [0, 0, 1, 0, -1, 0]):  # into a wall, perhaps
        (there,), _ = acting.imagine([there], [twist])
        here = BELIEFS[belief](predicting, here, there)
        assert np.array_equal(here.slot.c2w, there.slot.c2w) and torch.equal(here.slot.frame, there.slot.frame)
        assert here.slot.chunk == there.slot.chunk
        assert (here.slot.memory is None) == (belief == "fresh")
        predicting.check(here)
    if belief == "fresh":
        assert np.array_equal(here.slot.scene.image, there.slot.frame)


@pytest.mark.slow
def test_the_truth_as_its_own_model_finds_what_is_near(predicted, setups):
    """One step away: with so many futures the best is at the goal."""
    free = World.load("rooms", **SIZE)
    simulator, setup = simulators(predicted, free, ImageNav())[1], setups[0]
    (start,) = begin(simulator, [setup])
    (end,), _ = simulator.imagine([start], [[0.3, 0, 0.5, 0, 0.5, 0]])
    near = replace(setup, goal_c2w=end.slot.c2w, goal_image=end.slot.frame.numpy())
    planner = CEM(horizon=1, candidates=32, iterations=2, elites=5)
    assert plan_and_act(simulator, near, simulator, planner, "kept")[:2] == (True, 1)
