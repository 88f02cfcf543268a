"""The nano world's places: pictures, depth, starts, walks, and clips that can be resumed."""

import dataclasses

import numpy as np
import pytest
import torch

from sanawm_env.engines.rooms import places, walks
from sanawm_env.engines.rooms.places import PLACES, bounds, place, random_place
from sanawm_env.engines.rooms.raycast import intrinsics, render
from sanawm_env.engines.rooms.walks import clearance, sample_path, sample_start
from sanawm_env.engines.sanawm.codec.patch_pca import PatchPCACodec
from sanawm_env.training import clips
from tests.golden_files import ROOT

CODEC = PatchPCACodec.load(ROOT / "sanawm_env" / "assets" / "nano" / "codec.safetensors")


def rng(seed=0):
    return np.random.default_rng(seed)


@pytest.mark.parametrize("name", PLACES)
def test_depth_agrees_with_walls_and_furniture(name):
    """Unprojecting the depth lands every pixel on the surface of the room or of a piece of furniture."""
    here = place(name)
    start = sample_start(here, rng(1))
    lens = intrinsics()
    depth = render(here, start[None], lens)[1][0].astype(float)
    u, v = np.meshgrid(np.arange(96) + 0.5, np.arange(64) + 0.5)
    points = np.stack([(u - lens[2]) / lens[0], (v - lens[3]) / lens[1], np.ones_like(u)], -1) * depth[..., None]
    world = points.reshape(-1, 3) @ start[:3, :3].T + start[:3, 3]
    room = np.abs((here.half[0] - np.abs(world - here.centre[0])).min(-1))
    gaps = [room]
    for centre, half, yaw in zip(here.centre[1:], here.half[1:], here.yaw[1:], strict=True):
        local = (world - centre) @ np.array([[np.cos(yaw), 0, np.sin(yaw)], [0, 1, 0], [-np.sin(yaw), 0, np.cos(yaw)]])
        outside = np.abs(local) - half
        gaps.append(np.abs(np.linalg.norm(np.maximum(outside, 0), axis=-1) + np.minimum(outside.max(-1), 0)))
    assert np.min(gaps, 0).max() < 1e-3


def test_depth_straight_at_a_wall_is_the_distance_everywhere():
    here = place("gallery")
    pose = np.eye(4)
    pose[:3, 3] = (0, -2.2, here.half[0, 2] - 0.4)  # z-depth, not distance along the ray
    depth = render(here, pose[None], intrinsics())[1]
    assert np.allclose(depth, 0.4, atol=1e-5)


def test_turning_right_moves_the_picture_left():
    here, lens = place("court"), intrinsics()
    start = sample_start(here, rng(2))
    angle = np.arctan(8 / lens[0])  # eight pixels at the middle of the picture
    turned = start.copy()
    c, s = np.cos(angle), np.sin(angle)
    turned[:3, :3] = np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]]) @ start[:3, :3]
    before, after = render(here, np.stack([start, turned]), lens)[0].astype(float)
    middle = slice(44, 52)
    moved = np.abs(after[:, middle] - before[:, 52:60]).mean()
    assert moved < 0.5 * np.abs(after[:, middle] - before[:, middle]).mean()
    assert moved < np.abs(after[:, middle] - before[:, 36:44]).mean()


def test_supersampling_keeps_the_mean_and_softens_edges():
    here = place("gallery")
    start = sample_start(here, rng(3))[None]
    rough, fine = (render(here, start, intrinsics(), supersample=n)[0].astype(float) for n in (1, 3))
    assert abs(rough.mean() - fine.mean()) < 2
    assert np.abs(np.diff(fine, axis=2)).max() < np.abs(np.diff(rough, axis=2)).max() + 1
    assert len(np.unique(fine.reshape(-1, 3), axis=0)) > len(np.unique(rough.reshape(-1, 3), axis=0))


@pytest.mark.slow
def test_a_place_is_the_same_every_time_and_unlike_the_others():
    starts = {name: sample_start(place(name), rng(4)) for name in PLACES}
    views = {render(place(name), start[None], intrinsics())[0].tobytes() for name, start in starts.items()}
    assert len(views) == len(PLACES)
    first = next(iter(PLACES))
    again = places._fixed_place.__wrapped__(first)  # built anew, past the cache
    assert np.array_equal(again.atlas, place(first).atlas) and np.array_equal(again.centre, place(first).centre)


@pytest.mark.slow
def test_unknown_layouts_differ_by_seed_only():
    one, same, other = random_place(7), random_place(7), random_place(8)
    assert np.array_equal(one.atlas, same.atlas)
    assert one.name == "unknown" and not np.array_equal(one.half[0], other.half[0])


@pytest.mark.parametrize("name", PLACES)
def test_starts_are_level_clear_and_see_space(name):
    here, random = place(name), rng(5)
    for _ in range(10):
        start = sample_start(here, random)
        assert np.allclose(start[:3, 1], (0, 1, 0)) and np.allclose(start[:3, :3] @ start[:3, :3].T, np.eye(3))
        assert clearance(here, start[:3, 3]) >= walks.START_CLEARANCE
        assert np.median(render(here, start[None], intrinsics())[1]) > 1.8


def test_walks_keep_their_distance_height_and_pitch():
    random, kinds = rng(6), set()
    for i in range(15):
        here = place(list(PLACES)[i % 3])
        start = sample_start(here, random)
        path = sample_path(here, start, random, 97)
        assert path.shape == (97, 4, 4) and np.array_equal(path[0], start)
        assert np.allclose(path[:, :3, :3] @ path[:, :3, :3].transpose(0, 2, 1), np.eye(3), atol=1e-6)
        assert min(clearance(here, p) for p in path[:, :3, 3]) >= walks.CLEARANCE
        height = -path[:, 1, 3]
        assert (height >= walks.EYE_LOW).all() and (height <= walks.EYE_HIGH).all()
        assert np.abs(np.arcsin(path[:, 1, 2])).max() <= walks.PITCH_LIMIT + 1e-6
        step = np.linalg.norm(np.diff(path[:, :3, 3], axis=0), axis=-1)
        assert step.max() < 0.1
        kinds.add((np.ptp(height) > 1e-6, np.abs(path[:, 1, 0]).max() > 1e-6))
    assert len(kinds) > 1  # level walks and lively ones


def test_wrong_shapes_and_names_are_refused_in_one_sentence():
    with pytest.raises(ValueError, match="c2w must be"):
        render(place("gallery"), np.eye(4), intrinsics())
    with pytest.raises(ValueError, match="intrinsics must be"):
        render(place("gallery"), np.eye(4)[None], np.eye(3))
    with pytest.raises(ValueError, match="gallery"):
        place("attic")
    with pytest.raises(ValueError, match="role"):
        clips.random_stream("exam", 0, 0)


def test_roles_never_share_a_random_stream():
    draws = [clips.random_stream(role, seed, i).random() for role in clips.ROLES for seed in range(3) for i in range(3)]
    assert len(set(draws)) == len(draws)


def test_bounds_hold_every_place():
    for name in PLACES:
        low, high = np.reshape(bounds(name), (2, 3))
        here = place(name)
        assert np.allclose(here.centre[0] - here.half[0], low) and np.allclose(here.centre[0] + here.half[0], high)


@pytest.mark.slow
def test_a_killed_generation_goes_on_to_the_same_clips(tmp_path, monkeypatch):
    config = clips.ClipsConfig(clips=3, chunks=1, seed=3, unknown_fraction=0.0, shard_clips=1)
    clips.generate(tmp_path / "whole", CODEC, config)
    whole = clips.load(tmp_path / "whole")
    channels = CODEC.channels
    assert whole["latents"].shape == (3, channels, 4, 4, 6) and whole["images"].shape == (3, 1, channels, 4, 6)
    assert torch.equal(whole["images"][:, 0], whole["latents"][:, :, 0])
    assert whole["c2w"].shape == (3, 25, 4, 4) and whole["intrinsics"].shape == (3, 4)
    assert whole["c2w"].dtype == torch.float32 and set(whole["place"].tolist()) <= {0, 1, 2}

    rendered = []

    def stop_at_the_third(*args, **kwargs):
        if len(rendered) == 2:
            raise KeyboardInterrupt
        rendered.append(args)
        return render(*args, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(clips, "render", stop_at_the_third)
        clips.generate(tmp_path / "halved", CODEC, config)
    assert len(clips.load(tmp_path / "halved")["place"]) == 2
    clips.generate(tmp_path / "halved", CODEC, config, workers=2)
    resumed = clips.load(tmp_path / "halved")
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)
    with pytest.raises(ValueError, match="seed is 3 there, 4 here"):
        clips.generate(tmp_path / "halved", CODEC, dataclasses.replace(config, seed=4))


def test_pictures_within_a_walk_are_start_images_too(tmp_path):
    clips.generate(tmp_path, CODEC, clips.ClipsConfig(clips=1, chunks=2, seed=3, unknown_fraction=0.0))
    frames, *_ = clips.sample_clip("train", clips.random_stream("train", 3, 0), 49, 0.0)
    alone = CODEC.encode(torch.from_numpy(frames[24])[None, None])[0, :, 0]
    torch.testing.assert_close(clips.load(tmp_path)["images"][0, 1].float(), alone, atol=0.01, rtol=1e-3)


def test_loading_an_empty_folder_says_what_to_do(tmp_path):
    with pytest.raises(FileNotFoundError, match="sanawm train"):
        clips.load(tmp_path)
