"""What no picture of a state shows is drawn at random, the rest stays as it is predicted."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import sanawm_env
from sanawm_env.engines.rooms.raycast import intrinsics
from sanawm_env.engines.sanawm.codec.patch_pca import PatchPCACodec
from sanawm_env.engines.sanawm.reprojection import Reprojection
from sanawm_env.engines.sanawm.unseen import CODE, REACH, UnseenSampler
from sanawm_env.training import unseen
from sanawm_env.training.clips import ClipsConfig, generate
from sanawm_env.training.truth import draw_walk, pooled_psnr
from sanawm_env.training.unseen import UnseenConfig, energy_score, train_unseen
from sanawm_env.world.world import World
from tests.test_reprojection import KNOWING
from tests.worlds import TINY, drive, picture, terminated_at, write_tiny_world

NANO = Path(sanawm_env.__file__).parent / "assets" / "nano"
TURN = (0, 0, 0, 0, 0.5, 0)
DRAWING = replace(KNOWING, unseen=True)


@pytest.fixture(scope="module")
def sampler(codec):
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        model = UnseenSampler(codec, 3)
        torch.nn.init.normal_(model.out.weight)
    return model.requires_grad_(False)


@pytest.fixture(scope="module")
def codec():
    return PatchPCACodec.load(NANO / "codec.safetensors")


@pytest.fixture(scope="module")
def folder(tmp_path_factory, sampler):
    folder = write_tiny_world(tmp_path_factory.mktemp("drawing"), config=DRAWING)
    save_file(Reprojection().state_dict(), folder / "reprojection.safetensors")
    save_file(sampler.state_dict(), folder / "unseen.safetensors")
    return folder


def latents(codec):
    """Of a start image and a chunk of mild noise: (1, 256, 4, 8, 12)."""
    shown = np.random.default_rng(0).integers(90, 160, (1, 25, 128, 192, 3), dtype=np.uint8)
    return codec.encode(torch.from_numpy(shown))


def test_only_what_is_new_is_drawn_and_the_start_image_never(sampler, codec):
    given, code = latents(codec), torch.randn(1, CODE, generator=torch.Generator().manual_seed(1))
    share = torch.zeros(1, 4, 8, 12)
    assert torch.equal(sampler(given, share, code), given)
    share[:, :, :, 9:] = 1
    drawn = sampler(given, share, code)
    assert torch.equal(drawn[:, :, 0], given[:, :, 0])
    # colours are smooth between cells: those next to new ones move too, those further away do not
    torch.testing.assert_close(drawn[..., :8], given[..., :8], atol=1e-5, rtol=0)
    moved = sampler.colours(drawn - given)[:, :, 1:] - sampler.offset
    assert 0.02 < moved[..., 10:].abs().max() <= REACH
    assert not torch.equal(sampler(given, share, -code), drawn)
    half = sampler(given, share, code, temperature=0.5)
    torch.testing.assert_close(half - given, (drawn - given) / 2, atol=1e-4, rtol=1e-4)


def test_colours_are_those_of_the_pixels(sampler, codec):
    given = latents(codec)[:, :, 1:]
    shown = codec.decode(given, first=False)[0].float() / 255
    pooled = shown.unflatten(0, (3, 8)).unflatten(2, (8, 16)).unflatten(4, (12, 16)).mean((1, 3, 5))
    # pixels of frames are rounded and cut off at black and white, which latents are not
    torch.testing.assert_close(sampler.colours(given)[0].permute(1, 2, 3, 0), pooled, atol=0.02, rtol=0)


def test_the_energy_score_is_least_for_samples_that_are_spread_as_the_truth_is():
    """Of samples without spread, with too little, with the right one and with too much."""
    generator = torch.Generator().manual_seed(0)
    truth, share = torch.randn(400, 3, 1, 1, 1, generator=generator), torch.ones(400, 1, 1, 1)
    noise = torch.randn(4, 400, 3, 1, 1, 1, generator=generator)
    scores = [energy_score(noise * spread, truth, share).mean().item() for spread in (0.0, 0.5, 1.0, 2.0)]
    assert scores[2] == min(scores) and scores[2] < 0.9 * scores[0]


def test_a_world_that_draws_forks_batches_and_is_saved_like_any_other(folder, tmp_path):
    world = World.load(folder)
    begun = world.begin([world.scene(picture(i)) for i in range(2)], seed=3)
    after, clips = drive(world, begun, TURN, TURN)
    after.save(tmp_path / "state.safetensors")
    again = type(after).load(tmp_path / "state.safetensors", world)
    _, (one,) = drive(world, after, TURN)
    for other in (after, again):
        assert torch.equal(drive(world, other, TURN)[1][0].frames, one.frames)
    alone = drive(world, after[1], TURN)[1][0].frames.int()
    assert (alone - one.frames[1:].int()).abs().max() <= 2
    other_seed = drive(world, world.begin([world.scene(picture(i)) for i in range(2)], seed=4), TURN, TURN)[1]
    assert not torch.equal(other_seed[0].frames, clips[0].frames)


def test_the_temperature_is_part_of_a_worlds_identity_and_without_any_seeds_agree_on_what_is_drawn(folder):
    world, mean = World.load(folder), World.load(folder, temperature=0)
    assert World.load(folder, temperature=1).weights_hash == world.weights_hash != mean.weights_hash
    begun = mean.begin(mean.scene(picture()), seed=3)
    codes = []
    mean.engine.unseen.register_forward_hook(lambda _, given, made: codes.append(torch.equal(given[0], made)))
    drive(mean, begun, TURN)
    assert codes == [True]


def test_worlds_that_cannot_draw_are_refused(folder, tmp_path):
    with pytest.raises(ValueError, match="unseen needs reprojection"):
        replace(DRAWING, reprojection=False)
    with pytest.raises(ValueError, match="true or false"):
        replace(DRAWING, unseen=1)
    with pytest.raises(ValueError, match="has no temperature"):
        World.load(write_tiny_world(tmp_path / "plain", config=TINY), temperature=0.5)
    for file in folder.iterdir():
        if file.name != "unseen.safetensors":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(FileNotFoundError, match=r"unseen\.safetensors"):
        World.load(tmp_path)


def test_two_seeds_of_nano_agree_where_the_first_frame_shows_the_room_and_differ_elsewhere():
    """The camera turns right for three seconds: the left half of the first frames is in the start image, the right half
    of the last is not."""
    world = World.load("nano")
    walk = draw_walk(world.config, 0, 0, 2, known=False, role="validation")
    scene = world.scene(walk.first_frame(world.config), intrinsics=intrinsics(world.config.height, world.config.width))
    pair = []
    for seed in (0, 1):
        _, clips = drive(world, world.begin(scene, seed=seed), TURN, TURN)
        pair.append(torch.cat([clip.frames[0] for clip in clips]).numpy())
    middle = world.config.width // 2
    assert pooled_psnr(*(frames[:6, :, :middle] for frames in pair)) > 45
    assert pooled_psnr(*(frames[-6:, :, middle:] for frames in pair)) < 28


@pytest.mark.slow
def test_training_leaves_a_sampler_and_goes_on_where_it_stopped(folder, tmp_path):
    world = World.load(folder)
    fitted = world.engine.codec
    config = ClipsConfig(clips=2, chunks=2, height=24, width=32, unknown_fraction=1.0, shard_clips=2)
    with pytest.raises(ValueError, match="no images"):
        generate(tmp_path / "bare", fitted, replace(config, clips=1))
        train_unseen(UnseenConfig(steps=1), world, tmp_path / "bare", tmp_path / "out")
    clips = tmp_path / "clips"
    generate(clips, fitted, replace(config, pictures=True))
    short = UnseenConfig(steps=4, batch_size=2)
    train_unseen(short, world, clips, tmp_path / "whole")

    with terminated_at(unseen, "energy_score", 2), pytest.raises(KeyboardInterrupt):
        train_unseen(short, world, clips, tmp_path / "parts")
    train_unseen(short, world, clips, tmp_path / "parts")
    whole, parts = (load_file(tmp_path / name / "unseen.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
