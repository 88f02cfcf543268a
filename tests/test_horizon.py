"""Beyond the validated length: stop, or go on from the last frame in the same world frame."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from sanawm_env.camera.twist import hold
from sanawm_env.envs.env import SanaWMEnv
from sanawm_env.world.world import World
from tests.worlds import TINY, drive, picture, write_tiny_world

FORWARD = np.array([0, 0, 0.5, 0, 0, 0])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny_world(tmp_path_factory.mktemp("short"), config=replace(TINY, name="short", horizon_chunks=2))


def test_stop_truncates_at_the_horizon_and_says_so(folder):
    env = SanaWMEnv(folder, scenes=[picture()], max_episode_chunks=10)
    env.reset(seed=0)
    *_, truncated, info = env.step(np.zeros(6))
    assert not truncated and not info["out_of_horizon"]
    *_, truncated, info = env.step(np.zeros(6))
    assert truncated and info["out_of_horizon"]


def test_reanchor_goes_on_in_the_same_world_frame(folder):
    env = SanaWMEnv(folder, scenes=[picture()], max_episode_chunks=5, horizon="reanchor", action_mode="poses")
    env.reset(seed=0)
    here, starts = np.eye(4), []
    for _ in range(5):
        poses = hold(here, FORWARD)
        *_, truncated, info = env.step(poses)
        np.testing.assert_array_equal(info["c2w"], poses)
        starts.append(info["segment_start"])
        here = poses[-1]
    assert starts == [0, 0, 2, 2, 4]
    assert truncated and not info["out_of_horizon"]


def test_a_segment_is_what_begins_at_its_last_frame(folder):
    world = World.load(folder)
    state, _ = drive(world, world.begin(world.scene(picture()), seed=3), FORWARD, FORWARD)
    anew = world.reanchor(state)
    slot = anew.slots[0]
    assert slot.memory is None and slot.first and slot.chunk == 2
    np.testing.assert_array_equal(slot.scene.image, state.slots[0].frame.numpy())
    poses = hold(slot.c2w, FORWARD)
    _, continued = world.advance(anew, poses)
    # the same as an episode that starts at that picture, under poses relative to it and the same noise
    start = world.begin(slot.scene, seed=3)
    start = replace(start, slots=(replace(start.slots[0], chunk=2, start=2),))
    _, alone = world.advance(start, np.linalg.inv(slot.c2w) @ poses)
    torch.testing.assert_close(continued.latents, alone.latents, atol=1e-4, rtol=1e-4)


def test_reanchoring_changes_no_state_it_was_given_and_can_be_undone(folder):
    env = SanaWMEnv(folder, scenes=[picture()], max_episode_chunks=5, horizon="reanchor")
    env.reset(seed=0)
    for _ in range(2):
        env.step(np.full(6, 0.3))
    here = env.snapshot()
    env.step(np.full(6, 0.3))
    expected = env.clip.frames.copy()
    env.restore(here)
    assert env.state.slots[0].memory is not None
    env.step(np.full(6, 0.3))
    np.testing.assert_array_equal(env.clip.frames, expected)


def test_the_rotary_end_is_a_sentence(folder):
    world = World.load(folder)
    state, _ = drive(world, world.begin(world.scene(picture())), FORWARD)
    far = replace(state, slots=(replace(state.slots[0], chunk=341),))
    with pytest.raises(ValueError, match="reanchor"):
        world.advance(far, hold(np.eye(4), FORWARD))


def test_an_unknown_policy_is_refused(folder):
    with pytest.raises(ValueError, match="one of stop, reanchor"):
        SanaWMEnv(folder, horizon="loop")
    with pytest.raises(ValueError, match="one of tails, latents"):
        SanaWMEnv(folder, snapshots="all")


def test_the_lens_is_given_assumed_or_estimated(folder):
    world = World.load(folder)
    given = world.scene(picture(), intrinsics=np.array([40.0, 40, 25, 20]))
    estimated = world.scene(picture(), intrinsics=lambda image: [40.0, 40, image.width / 2, image.height / 2])
    wide = world.scene(picture(), fov_deg=100)
    assert [s.intrinsics_source for s in (given, estimated, wide, world.scene(picture()))] == [
        "given", "estimated", "fov", "default",
    ]  # fmt: skip
    np.testing.assert_array_equal(given.intrinsics, estimated.intrinsics)
    assert wide.intrinsics[0] == pytest.approx(16 / np.tan(np.radians(50)), rel=1e-5)
    with pytest.raises(ValueError, match="field of view"):
        world.scene(picture(), fov_deg=121)
    for source in (np.array([5.0, 5, 25, 20]), lambda image: [400.0, 400, 25, 20]):
        with pytest.raises(ValueError, match="field of view"):
            world.scene(picture(), intrinsics=source)
    with pytest.raises(ValueError, match="not both"):
        world.scene(picture(), intrinsics=np.ones(4), fov_deg=90)
