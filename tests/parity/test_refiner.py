"""The refiner block by block against diffusers' pipeline over the whole clip, on a tiny random transformer."""

import pytest
import torch

from sanawm_env.engines.sanawm.refiner.runner import Refiner, RefinerConfig, without_audio
from sanawm_env.world import tree

diffusers = pytest.importorskip("diffusers")

BATCH, CHANNELS, HEIGHT, WIDTH, TEXT = 1, 4, 2, 3, 5
TINY = {
    "in_channels": CHANNELS, "out_channels": CHANNELS, "num_attention_heads": 2, "attention_head_dim": 12,
    "cross_attention_dim": 24, "num_layers": 2, "caption_channels": 24, "audio_in_channels": 4,
    "audio_out_channels": 4, "audio_num_attention_heads": 2, "audio_attention_head_dim": 8,
    "audio_cross_attention_dim": 16,
}  # fmt: skip


def transformer(rope_type="interleaved"):
    torch.manual_seed(0)
    model = diffusers.SanaWMLTX2RefinerTransformer3DModel(**TINY, rope_type=rope_type)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


def clip(frames):
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(BATCH, CHANNELS, frames, HEIGHT, WIDTH, generator=generator)
    text = torch.randn(BATCH, TEXT, TINY["caption_channels"], generator=generator)
    return latents, text, torch.tensor([[1, 1, 1, 0, 0]])


def by_pipeline(model, latents, text, mask, kv_max_frames):
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=1.0)
    pipeline = diffusers.SanaWMLTX2Refiner(model, None, None, None, scheduler)
    pipeline._encode_prompt = lambda *_, **__: (text, mask)
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(7)
    return pipeline(latents, "", fps=16.0, kv_max_frames=kv_max_frames, generator=generator, output_type="latent")


def by_blocks(refiner, latents, text, mask):
    state = refiner.start(latents[:, :, :1], text, mask)
    generator, out, states = torch.Generator().manual_seed(7), [latents[:, :, :1]], [state]
    for block in latents[:, :, 1:].split(3, dim=2):
        refined, state = refiner.refine(block, state, torch.randn(block.shape, generator=generator))
        out.append(refined)
        states.append(state)
    return out, states


@pytest.mark.slow
@pytest.mark.parametrize("rope_type", ["interleaved", "split"])
@pytest.mark.parametrize("kv_max_frames", [11, 5])
def test_every_block_equals_the_pipeline_over_the_whole_clip(kv_max_frames, rope_type):
    model = transformer(rope_type)
    latents, text, mask = clip(1 + 3 * 6)  # the window slides in both cases
    expected = by_pipeline(model, latents, text, mask, kv_max_frames)
    blocks, states = by_blocks(Refiner(model, RefinerConfig(kv_max_frames=kv_max_frames)), latents, text, mask)
    assert states[-1].history_frames == kv_max_frames - 1
    for k, block in enumerate(blocks[1:]):
        torch.testing.assert_close(block, expected[:, :, 1 + 3 * k : 4 + 3 * k], atol=1e-5, rtol=1e-5)
    assert (blocks[1] - latents[:, :, 1:4]).abs().max() > 0.1


def test_the_audio_branches_are_never_run():
    latents, text, mask = clip(7)
    full, _ = by_blocks(Refiner(transformer()), latents, text, mask)
    video, _ = by_blocks(Refiner(without_audio(transformer())), latents, text, mask)
    assert all(map(torch.equal, full, video))
    names = [name for name, _ in without_audio(transformer()).named_parameters()]
    assert names and not [name for name in names if "audio" in name]


def test_a_forked_state_goes_on_bit_for_bit_and_is_not_written_to():
    refiner = Refiner(transformer(), RefinerConfig(kv_max_frames=5))
    latents, text, mask = clip(13)
    _, states = by_blocks(refiner, latents, text, mask)
    kept = [t.clone() for t in tree.leaves(states[2])]
    noise = torch.randn(latents[:, :, 7:10].shape, generator=torch.Generator().manual_seed(3))
    a, after_a = refiner.refine(latents[:, :, 7:10], states[2], noise)
    b, after_b = refiner.refine(latents[:, :, 7:10], states[2], noise)
    assert torch.equal(a, b)
    assert all(map(torch.equal, tree.leaves(after_a), tree.leaves(after_b)))
    assert all(map(torch.equal, tree.leaves(states[2]), kept))


def test_a_saved_transformer_loads_without_audio_and_strictly(tmp_path):
    model = transformer()
    model.save_pretrained(tmp_path / "transformer")
    latents, text, mask = clip(7)
    loaded = Refiner.load(tmp_path, dtype=torch.float32)
    expected, _ = by_blocks(Refiner(model), latents, text, mask)
    got, _ = by_blocks(loaded, latents, text, mask)
    assert all(map(torch.equal, got, expected))
    (tmp_path / "transformer" / "diffusion_pytorch_model.safetensors").write_bytes(b"\0" * 64)
    with pytest.raises(ValueError, match="damaged"):
        Refiner.load(tmp_path)
    with pytest.raises(FileNotFoundError, match="sanawm fetch"):
        Refiner.load(tmp_path / "nowhere")


def test_bad_input_is_a_sentence():
    refiner = Refiner(transformer())
    latents, text, mask = clip(7)
    state = refiner.start(latents[:, :, :1], text, mask)
    with pytest.raises(ValueError, match="block and noise"):
        refiner.refine(latents[:, :, 1:3], state, latents[:, :, 1:3])
    with pytest.raises(ValueError, match="sink_latent"):
        refiner.start(latents, text, mask)
    with pytest.raises(ValueError, match="kv_max_frames"):
        RefinerConfig(kv_max_frames=2)
