"""Write a world of the official sizes with random weights, to see what a step costs without the real ones.

    python docs/full_size.py runs/full_size      # 8 GB on disk, 16 GB of memory while it is made
    sanawm bench --world runs/full_size --device cuda --batches 1,4 --json docs/benchmarks/full_size.json

`--tiny` writes toy sizes, for a trial of both commands on any machine. Pictures of random weights are noise.
"""

import argparse
from pathlib import Path

import torch
from safetensors.torch import save_file

from sanawm_env.network.config import SanaWMConfig
from sanawm_env.network.model import SanaWM
from sanawm_env.training.initial import initialise
from sanawm_env.world.prompts import Prompts
from sanawm_env.world.weights import world_config

TINY = SanaWMConfig(latent_channels=8, hidden_size=64, num_heads=4, head_dim=16, depth=4, caption_channels=32)
TINY_CODEC = {
    "latent_channels": 8, "block_out_channels": (8, 16, 32, 64), "decoder_block_out_channels": (8, 16, 32),
    "layers_per_block": (1, 1, 1, 1, 1), "decoder_layers_per_block": (1, 1, 1, 1),
}  # fmt: skip


def write_world(folder: Path, network: SanaWMConfig, codec: dict, height: int, width: int) -> None:
    """A streaming world: network, codec, one prompt and config.json."""
    from diffusers import AutoencoderKLLTX2Video

    folder.mkdir(parents=True, exist_ok=True)
    model = SanaWM(network)
    initialise(model, torch.Generator().manual_seed(0))
    weights = {name: t.bfloat16().contiguous() for name, t in model.state_dict().items() if name != "pos_embed"}
    save_file(weights, folder / "network.safetensors")
    del model, weights
    vae = AutoencoderKLLTX2Video(**codec, encoder_causal=True, decoder_causal=True)
    torch.nn.Module.to(vae, torch.bfloat16).save_pretrained(folder / "codec")
    features = torch.randn(1, network.text_len, network.caption_channels, dtype=torch.bfloat16)
    Prompts(folder, "streaming").cache.put(features, torch.ones(1, network.text_len), "")
    (folder / "config.json").write_text(world_config("streaming", network, height, width).to_json() + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args()
    if options.tiny:
        write_world(options.folder, TINY, TINY_CODEC, 64, 96)
    else:
        write_world(options.folder, SanaWMConfig(), {}, 704, 1280)
    print(options.folder)
