"""The official codec against vectors of the upstream streaming decoder (golden/vae)."""

import functools
import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from sanawm_env.engines.sanawm.codec.ltx2 import LTX2Codec, receptive_frames
from sanawm_env.engines.sanawm.codec.state import LTX2State
from tests.golden_files import golden

pytest.importorskip("diffusers")
GOLDEN = golden("vae")
MANIFEST = json.loads((GOLDEN / "manifest.json").read_text())


@pytest.fixture(scope="module")
def codec():
    return LTX2Codec.load(GOLDEN, dtype=torch.float32)


@pytest.fixture(scope="module")
def vectors():
    names = ("encode_vectors", "decode_whole", "decode_stream", "decoder_cache")
    return {key: value for name in names for key, value in load_file(GOLDEN / f"{name}.safetensors").items()}


def stream(codec, latents, chunks, state=None):
    """Videos of successive chunks and the states after them."""
    videos, states = [], []
    for part in latents.split(chunks, dim=2):
        video, state = codec.decode_video(part, state, first=state is None)
        videos.append(video)
        states.append(state)
    return videos, states


def many(codec, frames, batch=1):
    shape = (batch, codec.channels, frames, 2, 2)
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("clip", ["image", "video"])
def test_encoding_equals_upstream(codec, vectors, clip):
    torch.testing.assert_close(codec.encode_video(vectors[clip]), vectors[f"{clip}_latent_norm"], atol=1e-6, rtol=1e-5)


def test_whole_decode_equals_upstream(vectors):
    diffusers = pytest.importorskip("diffusers")
    vae = diffusers.AutoencoderKLLTX2Video.from_pretrained(GOLDEN, decoder_causal=True)
    with torch.no_grad():
        torch.testing.assert_close(vae.decode(vectors["z_raw"]).sample, vectors["whole"], atol=1e-5, rtol=0)


@pytest.mark.slow
def test_streaming_decode_equals_upstream_chunk_by_chunk(codec, vectors):
    videos, states = stream(codec, vectors["z_norm"], MANIFEST["chunks"])
    convs = [slot["index"] for slot in MANIFEST["slots"] if slot["kind"] == "conv"]
    names = [name for name, m in codec.vae.named_modules() if any(m is conv for conv in codec._convs)]
    for k, (video, state) in enumerate(zip(videos, states, strict=True)):
        torch.testing.assert_close(video, vectors[f"chunk{k}"], atol=1e-5, rtol=0)
        tails = dict(zip(names, state.tails, strict=True))
        for index in convs:
            expected = vectors[f"after_chunk{k}.slot{index:02d}"]
            tail = tails[MANIFEST["slots"][index]["module"]]
            assert torch.equal(tail[:, :, -expected.shape[2] :], expected)


def test_streaming_equals_the_whole(codec, vectors):
    videos, _ = stream(codec, vectors["z_norm"], MANIFEST["chunks"])
    torch.testing.assert_close(torch.cat(videos, 2), vectors["whole"], atol=5e-5, rtol=0)


def test_how_latents_are_cut_does_not_matter(codec, vectors):
    one, _ = stream(codec, vectors["z_norm"], MANIFEST["chunks"])
    other, _ = stream(codec, vectors["z_norm"], 1)
    assert torch.equal(torch.cat(one, 2), torch.cat(other, 2))


def test_the_past_matters(codec, vectors):
    first, later = vectors["z_norm"].split(MANIFEST["chunks"], dim=2)
    _, state = codec.decode_video(first, None, first=True)
    emptied = LTX2State(state.history, tuple(torch.zeros_like(tail) for tail in state.tails))
    expected, _ = codec.decode_video(later, state, first=False)
    forgotten, _ = codec.decode_video(later, emptied, first=False)
    assert (expected - forgotten).abs().max() > 0.1


@pytest.fixture(scope="module")
def played(codec):
    """Of so many latents beyond those that are replayed: latents, two more than were played, and the state."""

    @functools.cache
    def played(beyond):
        latents = many(codec, codec.replay_frames + beyond + 2)
        _, (*_, state) = stream(codec, latents[:, :, :-2], 4)
        return latents, state

    return played


@pytest.mark.slow
@pytest.mark.parametrize("beyond", [-3, 3])
def test_replaying_the_history_gives_the_same_frames_bit_for_bit(codec, played, beyond):
    latents, state = played(beyond)
    assert state.history.shape[2] == min(codec.replay_frames, latents.shape[2] - 2)
    kept, after_kept = codec.decode_video(latents[:, :, -2:], state, first=False)
    light = LTX2State(state.history, None)
    replayed, after_replayed = codec.decode_video(latents[:, :, -2:], light, first=False)
    assert torch.equal(kept, replayed)
    assert all(map(torch.equal, after_kept.tails, after_replayed.tails))


@pytest.mark.slow
def test_one_latent_less_is_too_short_a_history(codec, played):
    latents, state = played(3)
    expected, _ = codec.decode_video(latents[:, :, -2:], state, first=False)
    half = LTX2State(state.history[:, :, codec.replay_frames // 2 :], None)
    assert not torch.equal(codec.decode_video(latents[:, :, -2:], half, first=False)[0], expected)


@pytest.mark.slow
def test_decoding_writes_to_nothing_it_was_given_and_can_be_repeated(codec):
    latents = many(codec, 5)
    _, state = codec.decode_video(latents[:, :, :2], None, first=True)
    copies = [tail.clone() for tail in state.tails]
    a, _ = codec.decode_video(latents[:, :, 2:], state, first=False)
    b, _ = codec.decode_video(latents[:, :, 2:], state, first=False)
    assert torch.equal(a, b)
    assert all(map(torch.equal, state.tails, copies))


@pytest.mark.slow
def test_a_batch_is_its_episodes(codec):
    latents = many(codec, 3, batch=2)
    together, _ = codec.decode_video(latents, None, first=True)
    alone, _ = codec.decode_video(latents[1:], None, first=True)
    torch.testing.assert_close(together[1:], alone, atol=1e-5, rtol=0)


def test_frames_are_bytes_in_float32_truncated(codec):
    latents = many(codec, 2)
    frames, state = codec.decode_chunk(latents, None, first=True)
    assert frames.shape == (1, 9, 64, 64, 3)
    video, _ = codec.decode_video(latents, None, first=True)
    expected = ((video + 1) * 127.5).clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 4, 1)
    assert torch.equal(frames, expected)
    assert codec.decode_chunk(latents, state, first=False)[0].shape == (1, 16, 64, 64, 3)
    assert codec.encode(frames).shape == (1, codec.channels, 2, 2, 2)


def test_the_official_decoder_sees_back_44_latents():
    assert receptive_frames((5, 5, 5, 5), (True, True, True)) == 44


def test_bad_input_is_a_sentence(codec):
    with pytest.raises(ValueError, match="latents must be"):
        codec.decode_chunk(torch.zeros(1, codec.channels + 1, 1, 2, 2), None, first=True)
    with pytest.raises(ValueError, match="without a decoder state"):
        codec.decode_chunk(many(codec, 1), None, first=False)
    with pytest.raises(ValueError, match="uint8"):
        codec.encode(torch.zeros(1, 2, 64, 64, 3, dtype=torch.uint8))


def test_files_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="sanawm fetch"):
        LTX2Codec.load(tmp_path)
    (tmp_path / "config.json").write_bytes((GOLDEN / "config.json").read_bytes())
    weights = load_file(GOLDEN / "diffusion_pytorch_model.safetensors")
    missing = sorted(weights)[0]
    save_file({k: v for k, v in weights.items() if k != missing}, tmp_path / "diffusion_pytorch_model.safetensors")
    with pytest.raises(ValueError, match=missing):
        LTX2Codec.load(tmp_path)
    (tmp_path / "diffusion_pytorch_model.safetensors").write_bytes(b"\0" * 100)
    with pytest.raises(ValueError, match="damaged"):
        LTX2Codec.load(tmp_path)
