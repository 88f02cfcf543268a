"""The rooms world: the ray-traced truth behind the interface of every world."""

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from sanawm_env.agents.planners import CEM, PointGoal

from sanawm_env import SanaWMEnv, Snapshot
from sanawm_env.camera.twist import hold
from sanawm_env.cli import main
from sanawm_env.engines.rooms import places
from sanawm_env.engines.rooms.engine import RoomsConfig, save_start_in
from sanawm_env.engines.rooms.places import PLACES, ROLES, is_place, place, room_seed
from sanawm_env.engines.rooms.raycast import intrinsics, render
from sanawm_env.engines.rooms.walks import CLEARANCE, clearance, held_clear
from sanawm_env.envs.config import EnvConfig
from sanawm_env.recording.dataset import Dataset, validate
from sanawm_env.recording.episode import RecordedEpisode, differences
from sanawm_env.viewer.session import Session
from sanawm_env.world.anchor import Anchor
from sanawm_env.world.images import read_anchor
from sanawm_env.world.scenes import DrawnScenes
from sanawm_env.world.state import WorldState, stack
from sanawm_env.world.world import World
from tests.test_playback import Stage

SIZE = {"height": 24, "width": 36}
SPLITS = ("train", "test")
FORWARD = np.array([0, 0, 1, 0, 0.3, 0], np.float32)
SMALL = RoomsConfig(**SIZE)
ANYTHING = np.zeros((4, 4, 3), np.uint8)
TASKS = ("Explore", "PointNav", "ImageNav", "FollowPath", "Walk")


@pytest.fixture(scope="module")
def world() -> World:
    return World.load("rooms", **SIZE)


@pytest.fixture(scope="module")
def solid() -> World:
    return World.load("rooms", **SIZE, collisions=True)


def make(task="Explore", **settings):
    return gym.make(f"sanawm_env:SanaWM/{task}-v0", world="rooms", **SIZE, **settings)


def at(place: str, x: float, y: float, z: float) -> Anchor:
    c2w = np.eye(4)
    c2w[:3, 3] = x, y, z
    return Anchor(place, c2w)


def ahead(metres: float, frames: int = 24) -> np.ndarray:
    """A straight way forward, in even steps."""
    poses = np.tile(np.eye(4), (frames, 1, 1))
    poses[:, 2, 3] = np.linspace(0, metres, frames + 1)[1:]
    return poses


# --- pictures ---


@pytest.mark.slow
def test_every_picture_is_the_renderers_at_any_size():
    world = World.load("rooms", height=30, width=50, supersample=3)
    scene = world.scene(world.starts[0], fov_deg=90)
    state, first = world.advance(world.begin(scene), ahead(0.5))
    state, second = world.advance(state, path := hold(state.slots[0].c2w, FORWARD))
    anchor = read_anchor(world.starts[0])
    cameras = anchor.c2w @ np.concatenate((np.eye(4)[None], ahead(0.5), path))
    truth = render(place(anchor.place), cameras, scene.intrinsics, 30, 50, 3, depth=False)[0]
    assert np.array_equal(np.concatenate((scene.image[None], first.frames[0], second.frames[0])), truth)
    assert np.array_equal(second.c2w[0], path)


def test_frame_0_is_what_the_anchor_sees_whatever_the_picture_is(world):
    anchor = at("court", 1, -1.5, -1)
    given = [world.scene(image, anchor=anchor) for image in (ANYTHING, np.full((90, 50, 3), 255, np.uint8))]
    assert given[0] is given[1]
    truth = render(place("court"), anchor.c2w[None], given[0].intrinsics, 24, 36, depth=False)[0]
    assert np.array_equal(given[0].image, truth[0])


def test_a_new_start_from_the_last_frame_shows_that_frame(world):
    state, _ = world.advance(world.begin([world.scene(path) for path in world.starts[:2]]), np.stack([ahead(0.7)] * 2))
    again = world.reanchor(state)
    for before, after in zip(state.slots, again.slots, strict=True):
        assert np.array_equal(after.scene.image, before.frame)
    path = np.stack([hold(slot.c2w, FORWARD) for slot in state.slots])
    (_, went_on), (_, anew) = world.advance(state, path), world.advance(again, path)
    assert (went_on.frames != anew.frames).float().mean() < 1e-3  # rounding of poses may turn a ray


@pytest.mark.slow
@pytest.mark.parametrize("where", [(0, -1, -20), (3, 5, 0), (2.4, -0.5, 2.4), (4.2, -1, 0), (1e3, 0, 0), (0, 0, 9e8)])
def test_there_is_a_picture_wherever_the_camera_is(where):
    """Outside, inside furniture, in a wall: whole numbers of the atlas, and no warning of NumPy."""
    pose = at("gallery", *where).c2w
    with np.errstate(all="raise", under="ignore"):
        frames, depth = render(place("gallery"), pose[None], intrinsics(24, 36), 24, 36)
    assert ((depth > 0) | np.isnan(depth)).all() and not np.isnan(depth).any()
    assert (frames[0, 0, 0] == 128).all() or np.isfinite(depth[0, 0, 0])


def test_a_wall_is_no_obstacle_to_sight_from_outside_and_furniture_none_from_inside():
    here, lens = place("gallery"), intrinsics(24, 36)
    outside, inside = at("gallery", -2.1, -1.5, -4).c2w, at("gallery", -2.1, -1.5, -2.59).c2w
    depth = [render(here, pose[None], lens, 24, 36)[1][0, 12, 18] for pose in (outside, inside)]
    assert depth == pytest.approx([6.6, 5.19], abs=1e-3)  # both see the far wall
    shelves = at("gallery", 2.4, -0.5, 2.4).c2w
    assert render(here, shelves[None], lens, 24, 36)[1][0, 12, 18] == pytest.approx(0.2, abs=1e-3)  # the wall behind


# --- places ---


@pytest.mark.slow
def test_rooms_by_number_are_endless_and_those_of_test_are_for_nothing_else():
    assert all(map(is_place, (*PLACES, "train/0", "test/0", "train/123", "test/999999999999")))
    nowhere = "attic", "", "train", "train/", "train/-1", "train/01", "train/1 ", "test/1000000000000", "collect/1"
    assert not any(map(is_place, (*nowhere, "evaluate/1", "train/\u0663")))
    spans = sorted((room_seed(role, 0), room_seed(role, 2**40 - 1)) for role in ROLES)
    assert all(a[1] < b[0] for a, b in pairwise(spans))
    train, test = place("train/3"), place("test/3")
    assert (train.name, test.name) == ("train/3", "test/3") and train is place("train/3")
    assert not np.array_equal(train.half[0], test.half[0])


def test_an_endless_room_begins_from_a_picture_that_carries_its_anchor(world, tmp_path):
    save_start_in("test/5", tmp_path / "room.png", seed=2)
    scene = world.scene(tmp_path / "room.png")
    assert scene.anchor.place == "test/5"
    assert clearance(place("test/5"), scene.anchor.c2w[:3, 3]) >= 0.7
    with pytest.raises(ValueError, match=r"Unknown place 'test/x': known are gallery, corridor, court, and furnished"):
        save_start_in("test/x", tmp_path / "none.png")


def test_it_ships_starts_in_every_place_and_in_rooms_of_train(world):
    names = [read_anchor(path).place for path in world.starts]
    assert set(PLACES) < set(names)
    assert sum(name.startswith("train/") for name in names) == len(set(names) - set(PLACES)) > 2


# --- collisions ---


def test_without_collisions_a_camera_goes_through_walls(world):
    _, clip = world.advance(world.begin(world.scene(ANYTHING, anchor=at("court", 0, -1.5, -3))), ahead(9))
    assert np.array_equal(clip.c2w[0], ahead(9))


def test_a_camera_that_is_stopped_says_where_it_is_and_goes_on_from_there(solid):
    start = at("gallery", 2.0, -1.5, 0.5)
    state, clip = solid.advance(solid.begin(solid.scene(ANYTHING, anchor=start)), ahead(4))
    reached = clip.c2w[0, :, 2, 3]
    assert (np.diff(reached) > -1e-9).all() and reached[-1] == pytest.approx(reached[-6]) and reached[-1] < 2
    cameras = start.c2w @ clip.c2w[0]
    assert min(clearance(place("gallery"), p) for p in cameras[:, :3, 3]) >= CLEARANCE - 1e-9
    lens = state.slots[0].scene.intrinsics
    assert np.array_equal(clip.frames[0], render(place("gallery"), cameras, lens, 24, 36, depth=False)[0])
    assert np.array_equal(state.slots[0].c2w, clip.c2w[0, -1]) and not state.slots[0].c2w.flags.writeable
    back = np.tile(state.slots[0].c2w, (24, 1, 1))
    back[:, 2, 3] -= np.linspace(0, 0.5, 25)[1:]
    _, clip = solid.advance(state, back)
    assert np.array_equal(clip.c2w[0], back)


def test_a_camera_turns_where_it_stands_and_a_free_one_goes_where_it_is_asked(solid):
    scene = solid.scene(ANYTHING, anchor=at("gallery", 2.0, -1.5, 2.6 - CLEARANCE - 0.01))
    turning = hold(np.eye(4), FORWARD)
    _, clip = solid.advance(solid.begin([scene, solid.scene(solid.starts[0])]), np.stack([turning, ahead(0.2)]))
    assert np.allclose(clip.c2w[0, :, :3, :3], turning[:, :3, :3], atol=1e-12)
    assert np.linalg.norm(clip.c2w[0, -1, :3, 3]) < 0.1 < np.linalg.norm(turning[-1, :3, 3])
    assert np.array_equal(clip.c2w[1], ahead(0.2))


def test_no_step_is_long_enough_to_pass_and_whoever_is_too_near_may_leave():
    here = place("gallery")
    across = np.array([[2.0, -1.5, 0.8]])  # the partition between the rooms is in between
    assert np.array_equal(across + held_clear(here, np.array([-2.0, -1.5, 2.0]), across), [[-2.0, -1.5, 2.0]])
    beside = np.array([4.15, -1.5, 1.5])
    away, nearer = beside - np.array([[0.1, 0, 0]]), beside + np.array([[0.02, 0, 0]])
    assert not held_clear(here, beside, away).any()
    assert np.allclose(nearer + held_clear(here, beside, nearer), beside)
    assert held_clear(here, beside, np.array([[1e100, 0, 0]]))[0, 0] == -1e100
    for height in (-0.1, -2.7):  # floor and ceiling
        assert held_clear(here, np.array([2.0, -1.5, 1.2]), np.array([[2.0, height, 1.2]])).any()


def test_an_environment_tells_where_the_camera_was_stopped():
    env = make("Walk", collisions=True, max_episode_chunks=20)
    env.reset(seed=0, options={"scene": ANYTHING, "anchor": at("corridor", -2.85, -1.5, 3.0)})
    for _ in range(5):
        obs, *_, info = env.step(np.array([1, 0, 0, 0, 0, 0], np.float32))
    assert obs["pose"][0] == np.float32(info["c2w"][-1, 0, 3]) < 1.15 - CLEARANCE + 1e-6
    assert np.array_equal(env.unwrapped.clip.c2w, info["c2w"])


# --- everything that works with a world works with this one ---


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_every_task_runs_and_passes_gymnasiums_check(task):
    env = make(task, max_episode_chunks=2)
    check_env(env.unwrapped, skip_render_check=True)
    env.reset(seed=1)
    *_, truncated, info = env.step(FORWARD)
    assert not truncated and info["chunk"] == 1
    *_, truncated, _ = env.step(FORWARD)
    assert truncated


@pytest.mark.parametrize("mode", ["dict", "rgb", "stack", "chunk"])
def test_every_observation_but_latents_can_be_asked_for(mode):
    env = make(obs_mode=mode)
    obs, _ = env.reset(seed=0)
    assert obs in env.observation_space and env.step(FORWARD)[0] in env.observation_space


@pytest.mark.parametrize(
    ("settings", "error", "says"),
    [
        ({"obs_mode": "latent"}, ValueError, 'The rooms world has no latents: choose another obs_mode than "latent"'),
        ({"height": 0}, ValueError, "height must be at least 1, got 0"),
        ({"supersample": 9}, ValueError, "supersample must be at most 8, got 9"),
        ({"width": "wide"}, ValueError, "width must be a whole number"),
        ({"height": 4000, "width": 4000}, ValueError, "A frame has at most 33,554,432 rays, got 4000 x 4000 pixels"),
        ({"collisions": 1}, ValueError, "collisions must be true or false, got 1"),
        ({"refiner": True}, TypeError, "unexpected keyword argument 'refiner'"),
    ],
)
def test_what_cannot_be_asked_of_it_is_a_sentence(settings, error, says):
    with pytest.raises(error, match=says) as caught:
        SanaWMEnv(**{"world": "rooms", **settings})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({}, "The rooms world begins at an anchor: give a PNG that holds one, or anchor="),
        ({"anchor": at("attic", 0, -1, 0)}, "does not know the place 'attic'"),
        ({"anchor": at("court", 0, -1, 0), "prompt": "a garden"}, "has no text encoder; leave the prompt empty"),
    ],
)
def test_a_start_that_it_cannot_have_is_a_sentence(world, given, says):
    with pytest.raises(ValueError, match=says) as caught:
        world.scene(ANYTHING, **given)
    assert "\n" not in str(caught.value)


def test_what_decides_its_pictures_decides_its_hash(world, solid):
    others = [{}, {"height": 25}, {"supersample": 1}, {"threads": 2}]
    hashes = [World.load("rooms", **{**SIZE, **changes}).weights_hash for changes in others]
    assert world.weights_hash == hashes[0] == hashes[3]
    assert len({*hashes, solid.weights_hash}) == 4
    with pytest.raises(ValueError, match="places must be some of gallery"):
        replace(RoomsConfig(), places={"attic": (0, 0, 0, 1, 1, 1)})


def test_its_configuration_in_a_folder_is_a_world_too(tmp_path):
    (tmp_path / "config.json").write_text(
        replace(RoomsConfig(), name="short", chunk_frames=8, height=16, width=20).to_json()
    )
    world = World.load(tmp_path)
    scene = world.scene(ANYTHING, anchor=at("court", 0, -1.5, -3))
    _, clip = world.advance(world.begin(scene), ahead(0.3, 8))
    assert clip.frames.shape == (1, 8, 16, 20, 3) and clip.latents is None


def test_a_batch_is_its_episodes_one_by_one(world):
    paths = np.stack([hold(np.eye(4), FORWARD * turn) for turn in (1, -1, 0.5)])
    states = [world.begin(world.scene(world.starts[i]), seed=i) for i in (0, 20, 50)]
    states[0], _ = world.advance(states[0], paths[0])  # which has gone on already
    state, clip = world.advance(stack(states), paths)
    for i, (alone, path) in enumerate(zip(states, paths, strict=True)):
        after, one = world.advance(alone, path)
        assert torch.equal(clip.frames[i], one.frames[0])
        assert np.array_equal(state.slots[i].c2w, after.slots[0].c2w)


@pytest.mark.slow
def test_threads_get_what_one_gets_bit_for_bit(world):
    """Baking included: four threads ask for the same new rooms at once."""
    places._furnished_room.cache_clear()

    def frames(number: int) -> torch.Tensor:
        scene = world.scene(ANYTHING, anchor=at(f"test/{number}", 0, -1.5, 0))
        return world.advance(world.begin(scene), ahead(0.5))[1].frames

    numbers = [71, 72, 71, 72]
    with ThreadPoolExecutor(4) as pool:
        many = list(pool.map(frames, numbers))
    places._furnished_room.cache_clear()
    assert all(torch.equal(a, frames(number)) for a, number in zip(many, numbers, strict=True))


@pytest.mark.parametrize("vectorization", ["sync", "async", "vector_entry_point"])
def test_vector_environments_show_what_a_single_one_does(vectorization):
    single = make(obs_mode="rgb")
    first, _ = single.reset(seed=5)
    second = single.step(FORWARD)[0]
    envs = gym.make_vec("sanawm_env:SanaWM/Explore-v0", 2, vectorization, world="rooms", obs_mode="rgb", **SIZE)
    seen, _ = envs.reset(seed=[5, 6])
    assert np.array_equal(seen[0], first)
    assert np.array_equal(envs.step(np.stack([FORWARD] * 2))[0][0], second)
    envs.close()


def test_snapshots_go_to_files_and_back_and_forks_go_their_ways(tmp_path):
    env = make("ImageNav").unwrapped
    env.reset(seed=3)
    env.step(FORWARD)
    here = env.snapshot()
    here.save(tmp_path / "here.safetensors")
    seen = env.step(FORWARD)[0]
    read = Snapshot.load(tmp_path / "here.safetensors", env.world)
    other = make("ImageNav").unwrapped
    other.restore(read)
    assert all(np.array_equal(seen[name], value) for name, value in other.step(FORWARD)[0].items())
    envs = gym.make_vec("sanawm_env:SanaWM/ImageNav-v0", 3, world="rooms", **SIZE)
    envs.reset(seed=3)
    envs.fork(0)
    rgb = envs.step(np.stack([FORWARD, FORWARD, -FORWARD]))[0]["rgb"]
    assert np.array_equal(rgb[0], rgb[1]) and not np.array_equal(rgb[0], rgb[2])


def test_a_state_without_an_anchor_or_of_another_size_is_not_read(world, tmp_path):
    state = world.begin(world.scene(world.starts[0]))
    slot = state.slots[0]
    adrift = replace(state, slots=(replace(slot, scene=replace(slot.scene, anchor=None)),))
    adrift.save(tmp_path / "adrift.safetensors")
    with pytest.raises(ValueError, match=r"does not hold a complete state: .*has no anchor"):
        WorldState.load(tmp_path / "adrift.safetensors", world)
    state.save(tmp_path / "state.safetensors")
    assert torch.equal(WorldState.load(tmp_path / "state.safetensors", world).slots[0].frame, slot.frame)
    with pytest.raises(ValueError, match="belongs to other weights"):
        WorldState.load(tmp_path / "state.safetensors", World.load("rooms", height=25, width=36))


@pytest.mark.slow
def test_a_rollout_by_the_command_comes_out_the_same_again(tmp_path):
    main(["rollout", "--world", "rooms", "--actions", "w-12,wd-12", "--out", str(tmp_path / "walk")])
    episode = RecordedEpisode.open(tmp_path / "walk")
    assert len(episode.trajectory().c2w) == len(episode.frames()) == 25
    list(episode.replay(tmp_path / "again"))
    assert differences(episode, RecordedEpisode.open(tmp_path / "again")) == []


@pytest.mark.slow
def test_a_collection_of_a_yaml_file_is_whole(tmp_path):
    save_start_in("train/9", tmp_path / "room.png")
    settings = {"world": "rooms", "cameras": ["w-24"], "chunks": 1, "env": {**SIZE, "collisions": True}}
    settings["scenes"] = ["room.png", {"sample": 1, "seed": 0}]
    (tmp_path / "rooms.yaml").write_text(json.dumps(settings))  # which is YAML
    main(["collect", str(tmp_path / "rooms.yaml"), "--out", str(tmp_path / "out")])
    dataset = Dataset.open(tmp_path / "out")
    assert len(list(dataset.rows())) == 2
    assert all(not problems for _, problems in validate(dataset))


def test_a_session_of_the_viewer_is_driven_saved_and_opened(world, tmp_path):
    session = Session(world, seed=1)
    session.begin(0)
    node = session.drive("w-24")
    session.save(tmp_path / "session")
    again = Session(world)
    again.open(tmp_path / "session")
    assert np.array_equal(again.frames(node.id), session.frames(node.id))
    assert again.drive("d-24").c2w.shape == (24, 4, 4)
    for each in (session, again):
        each.close()


def test_the_player_drives_it_and_a_new_key_begins_with_any_frame(world):
    stage = Stage(world, cost=0.05)
    stage.press(frozenset("w"))
    stage.after(0.7)
    stage.press(frozenset("d"))
    stage.after(0.5)
    first, second = stage.titles[0].split(",")
    assert first.startswith("w-") and second.startswith("d-")
    assert int(first[2:]) % 8  # no latents to wait for
    stage.player.close()
    stage.session.close()


def test_a_planner_finds_the_better_of_two_ways():
    env = make("Walk")
    env.reset(seed=0)
    cem = CEM(horizon=1, candidates=2, iterations=1, elites=1)
    _, plan = cem.act(env, PointGoal(np.array([0, 0, 1.0])), np.random.default_rng(0))
    assert plan.score == max(plan.scores)


def test_keys_go_on_from_where_the_camera_was_stopped(solid):
    env = SanaWMEnv(solid, action_mode="discrete", task="none", max_episode_chunks=20)
    env.reset(seed=0, options={"scene": ANYTHING, "anchor": at("gallery", 2.0, -1.5, 0.5)})
    forward = env.get_keys_to_action()[("w",)]
    for _ in range(6):
        env.step(forward)
    stopped = env.info["c2w"][-1]
    assert np.allclose(env.info["c2w"][0, :3, 3], stopped[:3, 3])  # it has stood there for a chunk
    env.step(env.get_keys_to_action()[("s",)])
    back = np.linalg.norm(env.info["c2w"][:, :3, 3] - stopped[:3, 3], axis=1)
    assert 0 < back[0] < 0.1 and (np.diff(back) > 0).all()


@pytest.mark.slow
def test_goals_behind_walls_are_not_set(solid):
    """A hidden walk is stopped as the camera is, so where it ends can be reached."""
    env = SanaWMEnv(solid, task="pointnav")
    for seed in range(8):
        _, info = env.reset(seed=seed)
        anchor = env.scene.anchor
        goal = (anchor.c2w @ info["goal_c2w"])[:3, 3]
        assert clearance(place(anchor.place), goal) >= CLEARANCE - 1e-6


# --- scenes without end ---


@pytest.mark.slow
@pytest.mark.parametrize("world", ["rooms", "nano"])
def test_every_episode_begins_in_another_room(world):
    """For worlds that know where it was taken and for those that have the picture alone."""
    size = SIZE if world == "rooms" else {}
    env = SanaWMEnv(world, scenes="rooms:test", max_episode_chunks=2, **size)
    keys, places = set(), []
    for seed in (0, 1, 0):
        env.reset(seed=seed)
        keys.add(env.scene.key)
        places.append(env.scene.anchor and env.scene.anchor.place)
    assert len(keys) == 2
    assert places[0] == places[2] and all((place is None) == (world == "nano") for place in places)
    assert world == "nano" or all(place.startswith("test/") for place in places)
    env.reset(options={"scene": 7})
    again = env.scene.key
    env.reset(options={"scene": 7})
    assert env.scene.key == again


@pytest.mark.slow
def test_the_splits_share_no_room():
    rooms = {split: [DrawnScenes.named(f"rooms:{split}").start(i, SMALL) for i in range(3)] for split in SPLITS}
    pictures = [start.image.tobytes() for starts in rooms.values() for start in starts]
    assert len(set(pictures)) == 6
    with pytest.raises(ValueError, match=r"no start images 'rooms:val'; of the engine rooms there are rooms:train, r"):
        SanaWMEnv("rooms", scenes="rooms:val")
    with pytest.raises(ValueError, match="come with their own cameras: leave fov_deg out"):
        SanaWMEnv("rooms", scenes="rooms:train", **SIZE).reset(options={"fov_deg": 60})


@pytest.mark.slow
def test_vector_environments_and_configurations_take_them():
    envs = gym.make_vec("sanawm_env:SanaWM/Explore-v0", num_envs=3, world="rooms", scenes="rooms:train", **SIZE)
    envs.reset(seed=0)
    assert len({env.scene.key for env in envs.envs}) == 3
    config = EnvConfig(world="rooms", scenes="rooms:train", world_options=SIZE)
    assert EnvConfig.from_plain(config.to_plain()) == config
