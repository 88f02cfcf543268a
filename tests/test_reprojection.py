"""Pictures of the state, moved to where the camera goes."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import sanawm_env
from sanawm_env.camera.dsl import KeyState, hold_keys
from sanawm_env.engines.rooms.places import random_place, room_seed
from sanawm_env.engines.rooms.raycast import intrinsics, render
from sanawm_env.engines.rooms.walks import sample_start
from sanawm_env.engines.sanawm.codec.patch_pca import PatchPCACodec, cut
from sanawm_env.engines.sanawm.reprojection import LAST_TRUST, START_TRUST, Reprojection, reprojection_channels
from sanawm_env.engines.sanawm.sampler import SamplerConfig, sample_chunk
from sanawm_env.training.clips import ClipsConfig, Footage, random_stream, store
from sanawm_env.training.depth import DepthConfig, depth_loss, draw_pictures, photometric_loss, train_depth
from sanawm_env.world.world import World
from tests.worlds import TINY, drive, picture, terminated_at, write_tiny_world

HEIGHT, WIDTH = 64, 96
KNOWING = replace(
    TINY, reprojection=True, network=replace(TINY.network, plucker_channels=48 + reprojection_channels(6))
)


@pytest.fixture(scope="module")
def codec():
    """Everything is kept: patches of half as many pixels, so that all of them can be."""
    whole = PatchPCACodec(8 * 8 * 8 * 3)
    whole.components.copy_(torch.eye(8 * 8 * 8 * 3))
    return whole


@pytest.fixture(scope="module")
def seen():
    """A room, a level start in it, and its first picture with the inverse depth (1, h, w)."""
    here = random_place(room_seed("validation", 7))
    start = sample_start(here, random_stream("validation", 7, 0))
    frames, depth = render(here, start[None], intrinsics(HEIGHT, WIDTH), HEIGHT, WIDTH)
    return here, start, torch.from_numpy(frames), 1 / torch.from_numpy(depth)


def guess(codec, seen, path, last=None, before=None, **more):
    """Path relative to the start."""
    _, _, frames, inverse = seen
    pinhole = torch.from_numpy(intrinsics(HEIGHT, WIDTH))[None]
    origin = torch.eye(4, dtype=torch.float64)[None]
    if last is not None:
        inverse = torch.cat((inverse, more.pop("also")))
    return Reprojection()(
        codec,
        frames,
        last,
        origin,
        origin if before is None else before,
        torch.from_numpy(path)[None],
        pinhole,
        torch.tensor([more.pop("known", False)]),
        inverse,
    )


def held(keys):
    return hold_keys(KeyState(), keys, 24)[1]


def shown(codec, made):
    """The pictures guessed at, as far as they are trusted made whole again."""
    trust = 1 - made.spread[:, :, -3:]
    return codec.decode(made.mean[:, :, -3:] / trust.clamp(min=0.01), first=False)[0].numpy()


def covered(made):
    """(24, 64, 96) bool: patches that are trusted all over."""
    trust = 1 - made.spread[0, 0, -3:]
    whole = trust > 0.999 * trust.amax((1, 2), keepdim=True)
    return whole.numpy().repeat(8, 0).repeat(8, 1).repeat(8, 2)


def test_a_still_camera_keeps_its_picture(codec, seen):
    made = guess(codec, seen, held(""))
    assert np.abs(shown(codec, made).astype(int) - seen[2].numpy()).max() <= 1
    assert made.mean.shape == (1, 1536, 4, 8, 12) and made.spread.shape == (1, 1, 4, 8, 12)
    assert made.channels.shape == (1, reprojection_channels(1536), 4, 8, 12)
    # the start image's own latent is given: nothing is guessed of it
    assert not made.mean[:, :, 0].any() and (made.spread[:, :, 0] == 1).all()


@pytest.mark.parametrize("keys", ["w", "s", "l", "d", "wa", "k"])
def test_with_the_true_depth_a_picture_moves_as_the_room_does(codec, seen, keys):
    here, start, first, _ = seen
    path = held(keys)
    made = guess(codec, seen, path)
    real, _ = render(here, start @ path, intrinsics(HEIGHT, WIDTH), HEIGHT, WIDTH, depth=False)
    # whole patches that are covered, and the same of the picture that did not move
    where = covered(made)
    assert where.mean() > 0.4
    error = np.square(shown(codec, made).astype(float) - real)[where].mean()
    still = np.square(first[0].numpy().astype(float) - real)[where].mean()
    assert 10 * np.log10(255**2 / error) > 27
    assert error < still / 4


def test_what_is_out_of_sight_is_not_covered(codec, seen):
    path = np.stack([np.eye(4)] * 24)
    path[:, :3, :3] = np.diag([-1, 1, -1])  # the other way round
    made = guess(codec, seen, path)
    assert (made.spread == 1).all() and not made.mean.any() and not made.channels.any()


def test_what_only_the_last_frame_shows_comes_from_it(codec, seen):
    here, start, _, _ = seen
    path = held("d")
    after = np.concatenate((path, path[-1] @ held("d")))
    last, depth = render(here, (start @ path)[-1:], intrinsics(HEIGHT, WIDTH), HEIGHT, WIDTH)
    alone = guess(codec, seen, after[24:], before=torch.from_numpy(path[-1:]))
    both, known = (
        guess(
            codec, seen, after[24:], torch.from_numpy(last), torch.from_numpy(path[-1:]),
            also=1 / torch.from_numpy(depth), known=flag,
        )
        for flag in (False, True)
    )  # fmt: skip
    assert both.mean.shape[2] == 3
    assert both.spread.mean() < alone.spread[:, :, 1:].mean() - 0.05
    real, _ = render(here, start @ after[24:], intrinsics(HEIGHT, WIDTH), HEIGHT, WIDTH, depth=False)
    trust = (1 - both.spread[0, 0]).numpy()
    dreamt = (np.abs(trust - LAST_TRUST) < 1e-4).repeat(8, 0).repeat(8, 1).repeat(8, 2)  # by the last frame alone
    assert dreamt.mean() > 0.05
    assert (known.spread[0, 0].numpy() == 1).repeat(8, 0).repeat(8, 1).repeat(8, 2)[dreamt].all()  # its map knows more
    assert 10 * np.log10(255**2 / np.square(shown(codec, both).astype(float) - real)[dreamt].mean()) > 27


def test_the_start_image_is_trusted_less_from_further_away(codec, seen):
    near, far = (guess(codec, seen, held("")), guess(codec, seen, held("w")))
    assert near.spread[:, :, 1:].max() == pytest.approx(1 - START_TRUST, abs=1e-5)
    assert (1 - far.spread[0, 0, 1:]).amax((1, 2)).diff().max() < 0


def test_in_a_place_that_is_known_the_guess_is_trusted_less(codec, seen):
    trusted, known = (guess(codec, seen, held("w"), known=flag) for flag in (False, True))
    assert (known.spread >= trusted.spread).all() and (known.spread > trusted.spread).any() and (known.spread < 1).any()


def test_the_sampler_dreams_what_is_left_of_a_guess():
    """Latents are mean + spread x what is dreamt without a guess: the guess itself where the spread is 0."""

    class Still:
        config = replace(TINY.network, prediction_type="flow_prediction")

        def __call__(self, latents, *_, **__):
            return latents * 0.5, None

    noise = torch.randn(1, 6, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    mean, spread = torch.full_like(noise, 3.0), torch.tensor([0.0, 0.25, 1.0]).view(1, 1, 3, 1, 1)
    given = noise, SimpleNamespace(kernels=SimpleNamespace(name="reference")), None
    plain, _ = sample_chunk(Still(), *given, SamplerConfig(timesteps=(1000, 500)))
    made, _ = sample_chunk(Still(), *given, SamplerConfig(timesteps=(1000, 500)), guess=(mean, spread))
    torch.testing.assert_close(made, mean + spread * plain)
    assert torch.equal(made[:, :, 0], mean[:, :, 0])


# ----------------------------------------------------------------------------------------------------------- the world


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = write_tiny_world(tmp_path_factory.mktemp("knowing"), config=KNOWING)
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        save_file(Reprojection().state_dict(), folder / "reprojection.safetensors")
    return folder


@pytest.fixture(scope="module")
def world(folder):
    return World.load(folder)


TURN, GO = (0, 0, 0, 0, 0.3, 0), (0, 0, 0.4, 0, 0, 0)


def test_a_world_that_reprojects_forks_batches_and_is_saved_like_any_other(world, tmp_path):
    begun = world.begin([world.scene(picture(i)) for i in range(2)], seed=3)
    after, clips = drive(world, begun, TURN, GO)
    assert clips[1].frames.shape == (2, 24, 24, 32, 3)
    after.save(tmp_path / "state.safetensors")
    again = type(after).load(tmp_path / "state.safetensors", world)
    _, (one,) = drive(world, after, GO)
    for other in (after, again):
        assert torch.equal(drive(world, other, GO)[1][0].frames, one.frames)
    alone = drive(world, after[1], GO)[1][0].frames.int()
    assert (alone - one.frames[1:].int()).abs().max() <= 2


def test_the_last_frame_is_read_from_the_state(world):
    """Another last frame, all else equal, is another next chunk."""
    state = drive(world, world.begin(world.scene(picture()), seed=0), TURN)[0]
    edited = replace(state, slots=(replace(state.slots[0], frame=255 - state.slots[0].frame),))
    _, (one,) = drive(world, state, GO)
    _, (two,) = drive(world, edited, GO)
    assert not torch.equal(one.frames, two.frames)


def test_a_world_without_its_depth_network_says_so(folder, tmp_path):
    for file in folder.iterdir():
        if file.name != "reprojection.safetensors":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(FileNotFoundError, match=r"reprojection\.safetensors"):
        World.load(tmp_path)


def test_a_configuration_that_cannot_reproject_is_refused():
    with pytest.raises(ValueError, match="codec patch_pca"):
        replace(KNOWING, codec="ltx2")
    with pytest.raises(ValueError, match="true or false"):
        replace(KNOWING, reprojection=1)
    with pytest.raises(ValueError, match="multiple of 8"):
        replace(KNOWING, spatial_stride=4)


# ------------------------------------------------------------------------------------------------------------ training


def views_of(seen):
    """What `clips.load` gives of views, of one picture."""
    pinhole = torch.from_numpy(intrinsics(HEIGHT, WIDTH)).float()[None]
    return {"pictures": seen[2], "depth": 1 / seen[3], "intrinsics": pinhole}


def test_pictures_and_depth_are_mirrored_together(seen, codec):
    views = views_of(seen)
    pictures, depth, pinhole = draw_pictures(views, codec, DepthConfig(dreamt=0), torch.Generator().manual_seed(0))
    assert pictures.shape == (16, 3, HEIGHT, WIDTH) and pinhole.shape == (16, 4)
    mirrored = torch.tensor([not torch.equal(d, views["depth"][0]) for d in depth])
    assert 0 < mirrored.sum() < 16
    grey, flat = pictures.mean(1), views["pictures"].float().mean(-1) / 255
    for picture_, flipped in zip(grey, mirrored.tolist(), strict=True):
        likeness = [torch.corrcoef(torch.stack((picture_.flatten(), f.flatten())))[0, 1] for f in (flat, flat.flip(-1))]
        assert likeness[flipped] > likeness[not flipped]


def test_the_depth_loss_is_least_at_the_truth(seen):
    inverse = seen[3]
    at = [depth_loss(inverse * factor, 1 / inverse) for factor in (0.8, 1.0, 1.25)]
    assert at[1] < 1e-6 < min(at[0], at[2])


def test_the_photometric_loss_is_least_at_the_true_depth(seen):
    here, start, frames, inverse = seen
    others = start @ hold_keys(KeyState(), {"d", "l"}, 8)[1][[1, 4, 7]]
    real, _ = render(here, others, intrinsics(HEIGHT, WIDTH), HEIGHT, WIDTH, depth=False)
    relative = torch.from_numpy(np.linalg.inv(others) @ start).float()[:, None]
    image, shown = (torch.as_tensor(f).movedim(-1, 1).float() / 255 for f in (frames, real))
    pinhole = torch.from_numpy(intrinsics(HEIGHT, WIDTH)).float()[None]
    at = [photometric_loss(inverse * f, image, shown[:, None], relative, pinhole).item() for f in (0.7, 1.0, 1.4)]
    assert at[1] < 0.9 * min(at[0], at[2])


def test_depth_is_learned_from_footage_that_has_poses_alone(seen, tmp_path):
    """At a learning rate of 0 the weights are those it begins from; else the step has moved them."""
    here, start = seen[:2]
    c2w = start @ np.concatenate((np.eye(4)[None], hold_keys(KeyState(), {"w"}, 24)[1]))
    pinhole = intrinsics(HEIGHT, WIDTH)
    frames, _ = render(here, c2w, pinhole, HEIGHT, WIDTH, depth=False)
    fitted = PatchPCACodec.fit(cut(torch.from_numpy(frames[1:])[None] / 255, 8).flatten(0, -2), 4)
    config = ClipsConfig(chunks=1, pictures=True)
    store(tmp_path / "clips", fitted, [Footage(frames, c2w, pinhole)], config)
    begin = Path(sanawm_env.__file__).parent / "assets" / "nano" / "reprojection.safetensors"
    before = load_file(begin)
    for rate in (0.0, 1e-3):
        short = DepthConfig(steps=1, batch_size=2, learning_rate=rate)
        train_depth(short, fitted, tmp_path / "clips", tmp_path / f"{rate}", begin_from=begin)
        after = load_file(tmp_path / f"{rate}" / "reprojection.safetensors")
        assert all(torch.equal(before[name], after[name]) for name in before) == (rate == 0)


@pytest.mark.slow
def test_training_of_depth_goes_on_where_it_stopped(tmp_path):
    from sanawm_env.training import depth
    from sanawm_env.training.clips import ClipsConfig, ViewsConfig, generate, generate_views, sample_frames_for_codec

    fitted = PatchPCACodec.fit(sample_frames_for_codec(4), 16)
    with pytest.raises(ValueError, match="no images"):
        generate(tmp_path / "bare", fitted, ClipsConfig(clips=1, chunks=1))
        train_depth(DepthConfig(steps=1), fitted, tmp_path / "bare", tmp_path / "out")
    generate(tmp_path / "clips", fitted, ClipsConfig(clips=2, chunks=1, pictures=True))
    short = DepthConfig(steps=4, batch_size=2)
    generate_views(tmp_path / "views", ViewsConfig(rooms=2, views=2, shard_rooms=1, height=HEIGHT, width=WIDTH))
    train_depth(short, fitted, tmp_path / "clips", tmp_path / "whole", views=tmp_path / "views")

    with terminated_at(depth, "draw_pictures", 2), pytest.raises(KeyboardInterrupt):
        train_depth(short, fitted, tmp_path / "clips", tmp_path / "parts", views=tmp_path / "views")
    train_depth(short, fitted, tmp_path / "clips", tmp_path / "parts", views=tmp_path / "views")
    whole, parts = (load_file(Path(tmp_path / name / "reprojection.safetensors")) for name in ("whole", "parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


@pytest.mark.slow
def test_views_that_are_there_are_kept_and_more_follow(tmp_path):
    from sanawm_env.training.clips import ViewsConfig, generate_views, load, made_with

    config = ViewsConfig(rooms=1, views=2, shard_rooms=1, height=HEIGHT, width=WIDTH)
    generate_views(tmp_path, config)
    written = (tmp_path / "shard_00000.safetensors").stat().st_mtime_ns
    generate_views(tmp_path, replace(config, rooms=2))
    assert (tmp_path / "shard_00000.safetensors").stat().st_mtime_ns == written
    views = load(tmp_path)
    assert views["pictures"].shape == (4, HEIGHT, WIDTH, 3) and views["depth"].shape == (4, HEIGHT, WIDTH)
    assert (views["depth"] > 0.2).all() and made_with(tmp_path)["role"] == "train"
    assert len({picture.numpy().tobytes() for picture in views["pictures"]}) == 4
    with pytest.raises(ValueError, match="made with"):
        generate_views(tmp_path, replace(config, views=3))
    with pytest.raises(ValueError, match="views must be"):
        ViewsConfig(views=0)
