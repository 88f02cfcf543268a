"""A hub that holds tiny random weights in exactly the official layout: folders, file names, key names, file kinds."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sanawm_env.network.config import SanaWMConfig
from sanawm_env.network.model import SanaWM
from sanawm_env.world.weights import fetch

OWNER = "Efficient-Large-Model"
NETWORK = SanaWMConfig(
    latent_channels=4,
    hidden_size=32,
    depth=4,
    num_heads=2,
    head_dim=16,
    caption_channels=32,
    text_len=300,
    input_size=2,
)
VAE = {
    "latent_channels": 4, "block_out_channels": (8, 16, 32, 64), "decoder_block_out_channels": (8, 16, 32),
    "layers_per_block": (1, 1, 1, 1, 1), "decoder_layers_per_block": (1, 1, 1, 1), "encoder_causal": True,
    "decoder_causal": True, "scaling_factor": 1.0, "encoder_spatial_padding_mode": "zeros",
    "decoder_spatial_padding_mode": "reflect", "spatial_compression_ratio": 32, "temporal_compression_ratio": 8,
}  # fmt: skip
REFINER = {
    "in_channels": 4, "out_channels": 4, "num_attention_heads": 2, "attention_head_dim": 12,
    "cross_attention_dim": 24, "num_layers": 2, "caption_channels": 32, "audio_in_channels": 4,
    "audio_out_channels": 4, "audio_num_attention_heads": 2, "audio_attention_head_dim": 8,
    "audio_cross_attention_dim": 16,
}  # fmt: skip


def network_weights(seed: int = 0) -> dict[str, torch.Tensor]:
    """A state dict as in the official file: every entry, random and not trivial."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(t.shape, generator=generator) * (0.2 if t.ndim > 1 else 0.5)
        for name, t in SanaWM(NETWORK).state_dict().items()
    }


def write_hub(folder: Path, seed: int = 0) -> Path:
    """Write owner/repository/... below `folder` and return it."""
    from diffusers import AutoencoderKLLTX2Video, SanaWMLTX2RefinerTransformer3DModel

    torch.manual_seed(seed)
    streaming = folder / OWNER / "SANA-WM_streaming"
    (streaming / "sana_dit").mkdir(parents=True)
    weights = network_weights(seed)
    critic = {"model.x_embedder.proj.bias": torch.zeros(3)}
    torch.save(
        {"generator": {f"model.{k}": v for k, v in weights.items()}, "critic": critic, "step": 7},
        streaming / "sana_dit" / "model.pt",
    )
    AutoencoderKLLTX2Video(**VAE).save_pretrained(streaming / "ltx2_causal_vae")
    SanaWMLTX2RefinerTransformer3DModel(**REFINER).save_pretrained(streaming / "refiner_diffusers" / "transformer")
    write_gemma3(streaming)

    causal = folder / OWNER / "SANA-WM_chunk_causal" / "dit"
    causal.mkdir(parents=True)
    save_file(weights, causal / "sana_wm_chunk_causal_1600m_720p.safetensors")
    write_gemma2(folder / OWNER / "gemma-2-2b-it")
    write_pipeline(folder / OWNER / "SANA-WM_bidirectional-diffusers")
    return folder


@contextmanager
def fetched(home: Path, worlds: Mapping[str, Sequence[str]]) -> Iterator[Path]:
    """`home` as $SANAWM_HOME, with these parts of these worlds fetched from such a hub, at 64 x 96 pixels."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SANAWM_HOME", str(home))
        hub = write_hub(home / "hub")
        for name, parts in worlds.items():
            fetch(name, parts, source=hub, height=64, width=96)
        yield home


def write_pipeline(folder: Path) -> None:
    """diffusers' own layout of the bidirectional model."""
    from diffusers import (
        AutoencoderKLLTX2Video,
        FlowMatchEulerDiscreteScheduler,
        SanaWMPipeline,
        SanaWMTransformer3DModel,
    )
    from transformers import Gemma2Config, Gemma2ForCausalLM

    transformer = SanaWMTransformer3DModel(
        in_channels=4, num_layers=4, hidden_size=32, num_attention_heads=2, linear_head_dim=16, caption_channels=32,
        chunk_plucker_post_attn_blocks=4,
    )  # fmt: skip
    SanaWMPipeline(
        tokenizer=tokenizer(),
        text_encoder=Gemma2ForCausalLM(Gemma2Config(**TEXT, query_pre_attn_scalar=16)),
        vae=AutoencoderKLLTX2Video(**VAE),
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=8.0),
    ).save_pretrained(folder)


def tokenizer():
    """Words of a small alphabet, with Gemma's special tokens."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    letters = [chr(c) for c in range(32, 127)] + ["\n"]
    vocabulary = {token: i for i, token in enumerate(["<pad>", "<eos>", "<bos>", "<unk>", *letters])}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    raw.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 2)])
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>", unk_token="<unk>"
    )


TEXT = {
    "vocab_size": 128, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 16, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2,
}  # fmt: skip


def write_gemma2(folder: Path) -> None:
    from transformers import Gemma2Config, Gemma2ForCausalLM

    Gemma2ForCausalLM(Gemma2Config(**TEXT, query_pre_attn_scalar=16)).save_pretrained(folder)
    tokenizer().save_pretrained(folder)


def write_gemma3(streaming: Path) -> None:
    """The refiner's text encoder and connectors."""
    from diffusers.pipelines.ltx2.connectors import LTX2TextConnectors
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration, Gemma3TextConfig, SiglipVisionConfig

    text = Gemma3TextConfig(**TEXT, query_pre_attn_scalar=16)
    vision = SiglipVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14
    )
    config = Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4)
    Gemma3ForConditionalGeneration(config).save_pretrained(streaming / "gemma3_12b")
    tokenizer().save_pretrained(streaming / "gemma3_12b")
    LTX2TextConnectors(
        caption_channels=TEXT["hidden_size"],
        text_proj_in_factor=TEXT["num_hidden_layers"] + 1,
        video_connector_num_attention_heads=2,
        video_connector_attention_head_dim=16,
        video_connector_num_layers=1,
        video_connector_num_learnable_registers=16,
        audio_connector_num_attention_heads=2,
        audio_connector_attention_head_dim=16,
        audio_connector_num_layers=1,
        audio_connector_num_learnable_registers=16,
        connector_rope_base_seq_len=1024,
        rope_theta=10000.0,
        rope_double_precision=True,
        causal_temporal_positioning=False,
    ).save_pretrained(streaming / "refiner_diffusers" / "connectors")
