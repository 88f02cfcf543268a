"""The closed-form codec of the nano world."""

from pathlib import Path

import pytest
import torch

from sanawm_env.engines.sanawm.codec.patch_pca import LATENT_STD, PATCH, PatchPCACodec, to_patches

SHIPPED = Path(__file__).parents[1] / "sanawm_env" / "assets" / "nano" / "codec.safetensors"


def clip(seed=0, batch=2, frames=17, height=16, width=24):
    """Smooth moving colours, uint8."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(batch, 3, 4, 3, 4, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, (frames, height, width), mode="trilinear")
    return (smooth * 255).round().to(torch.uint8).permute(0, 2, 3, 4, 1)


@pytest.fixture(scope="module")
def codec():
    patches = torch.cat([to_patches(clip(seed, batch=8)).flatten(0, 3) for seed in range(1, 9)])
    return PatchPCACodec.fit(patches, 32)


def psnr(a, b):
    return 10 * torch.log10(255**2 / (a.float() - b.float()).square().mean())


def test_shapes_follow_the_strides(codec):
    latents = codec.encode(clip())
    assert latents.shape == (2, 32, 3, 2, 3) and latents.dtype == torch.float32
    assert codec.decode(latents, first=True).shape == (2, 17, 16, 24, 3)
    assert codec.decode(latents[:, :, 1:], first=False).shape == (2, 16, 16, 24, 3)
    assert codec.decode(latents, first=True).dtype == torch.uint8


def test_a_clip_comes_back(codec):
    frames = clip()
    assert psnr(codec.decode(codec.encode(frames), True), frames) > 27


def test_patches_may_have_another_size(tmp_path):
    patches = torch.cat([to_patches(clip(seed, 8), 4).flatten(0, 3) for seed in range(1, 9)])
    fitted = PatchPCACodec.fit(patches, 24)
    latents = fitted.encode(clip())
    assert latents.shape == (2, 24, 3, 4, 6) and fitted.stride == 4
    assert psnr(fitted.decode(latents, True), clip()) > 27
    assert torch.equal(fitted.decode(latents, True)[:, 1:], fitted.decode(latents[:, :, 1:], False))
    fitted.save(tmp_path / "codec.safetensors")
    assert PatchPCACodec.load(tmp_path / "codec.safetensors").stride == 4


def test_more_components_reconstruct_better(codec):
    errors = []
    for n in (2, 8, 32):
        short = PatchPCACodec(n)
        short.load_state_dict({k: v if k == "mean" else v[:n] for k, v in codec.state_dict().items()})
        errors.append((short.decode(short.encode(clip()), True).float() - clip().float()).square().mean())
    assert errors[0] > errors[1] > errors[2]


def test_the_first_latent_knows_the_first_frame_only_and_later_ones_their_eight(codec):
    frames = clip()
    latents = codec.encode(frames)
    changed = frames.clone()
    changed[:, 9:] = 255 - changed[:, 9:]
    moved = (codec.encode(changed) - latents).abs().amax((0, 1, 3, 4)) > 1e-4
    assert moved.tolist() == [False, False, True]
    assert torch.allclose(codec.encode(frames[:, :1]), latents[:, :, :1], atol=1e-5)


def test_chunks_decode_as_the_whole_does(codec):
    latents = codec.encode(clip())
    whole = codec.decode(latents, True)
    pieces = [codec.decode(latents[:, :, :1], True)] + [codec.decode(latents[:, :, k : k + 1], False) for k in (1, 2)]
    assert (torch.cat(pieces, 1).int() - whole.int()).abs().max() <= 1  # another batch shape may round otherwise


def test_latents_have_the_stated_deviation_overall_and_whitening_is_partial(codec):
    patches = torch.cat([to_patches(clip(seed, batch=8)).flatten(0, 3) for seed in range(1, 9)]).float() / 255
    latents = (patches - codec.mean) @ codec.components.T * codec.scale
    variance = latents.var(0, unbiased=False)
    assert abs(variance.mean() / LATENT_STD**2 - 1) < 1e-2 and latents.mean(0).abs().max() < LATENT_STD * 1e-2
    assert torch.allclose(variance * codec.scale**2, (variance * codec.scale**2)[0].expand(32), rtol=0.05)


def test_pixel_weights_turn_latent_error_into_pixel_error(codec):
    latents = codec.encode(clip())
    noise = 0.01 * torch.randn(latents.shape, generator=torch.Generator().manual_seed(0))
    coordinates = noise.movedim(1, -1) / codec.scale
    pixel_error = (coordinates @ codec.components).square().sum()
    weights = codec.pixel_weights
    weighted = (noise.square() * weights.view(1, -1, 1, 1, 1)).sum() * (codec.scale.double() ** -2).mean()
    assert abs(weights.mean() - 1) < 1e-5
    assert torch.allclose(pixel_error.double(), weighted, rtol=1e-4)


def test_decoding_takes_half_precision_latents_and_saturates(codec):
    latents = codec.encode(clip())
    exact = codec.decode(latents, True)
    for dtype in (torch.float16, torch.bfloat16):
        assert (codec.decode(latents.to(dtype), True).float() - exact.float()).abs().mean() < 2
    blown = codec.decode(latents * 1e4, True)
    assert ((blown == 0) | (blown == 255)).float().mean() > 0.95  # clamped, not wrapped around
    assert (blown == 0).any() and (blown == 255).any()


def test_saved_codecs_come_back_small_and_the_same(codec, tmp_path):
    codec.save(tmp_path / "codec.safetensors")
    again = PatchPCACodec.load(tmp_path / "codec.safetensors")
    assert again.components.dtype == torch.float32 and again.channels == 32
    assert torch.equal(again.scale, codec.scale) and torch.allclose(again.components, codec.components, atol=1e-3)
    assert (tmp_path / "codec.safetensors").stat().st_size < 2 * 32 * PATCH + 4 * PATCH + 1024
    again.save(tmp_path / "twice.safetensors")
    twice = PatchPCACodec.load(tmp_path / "twice.safetensors")
    assert torch.equal(again.components, twice.components)


@pytest.mark.slow
def test_the_shipped_codec_reconstructs_a_held_out_walk():
    from sanawm_env.training import clips

    codec = PatchPCACodec.load(SHIPPED)
    stream = clips.random_stream("validation", 0, 0)
    frames = torch.from_numpy(clips.sample_clip("validation", stream, 49, 0.0, size=(128, 192))[0])[None]
    assert psnr(codec.decode(codec.encode(frames), True), frames) > 26


def test_bad_input_is_refused_in_one_sentence(codec, tmp_path):
    with pytest.raises(ValueError, match=r"1 \+ 8 n"):
        codec.encode(clip(frames=16))
    with pytest.raises(ValueError, match="latents must be"):
        codec.decode(torch.zeros(1, 31, 1, 2, 3), True)
    with pytest.raises(ValueError, match="patches must be"):
        PatchPCACodec.fit(torch.zeros(10, PATCH), 64)
    with pytest.raises(ValueError, match="patches must be"):
        PatchPCACodec.fit(torch.zeros(100, PATCH + 1), 4)
    with pytest.raises(FileNotFoundError, match="fit one"):
        PatchPCACodec.load(tmp_path / "none.safetensors")
