"""Reduced precision: which layers change, what they weigh, how far the output moves."""

import pytest
import torch
from torch import nn

from sanawm_env.engines.sanawm.network.config import SanaWMConfig
from sanawm_env.engines.sanawm.network.model import SanaWM
from sanawm_env.engines.sanawm.network.precision import PRECISIONS, quantize, quantized_layers
from sanawm_env.training.initial import initialise

pytest.importorskip("torchao")
CONFIG = SanaWMConfig(
    latent_channels=6, hidden_size=64, depth=4, num_heads=4, head_dim=16, caption_channels=16, text_len=4, input_size=1
)


def network():
    model = SanaWM(CONFIG)
    initialise(model, torch.Generator().manual_seed(0))
    return model.eval().requires_grad_(False)


def reduced(model):
    """Names of layers whose weights are no plain tensors any more."""
    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    layers = {name: m for name, m in model.named_modules() if isinstance(m, kinds)}
    return {name for name, m in layers.items() if type(m.weight.data) is not torch.Tensor}


def stored(tensor):
    return sum(getattr(tensor, n).nbytes for n in tensor.__tensor_flatten__()[0])


@pytest.mark.parametrize("precision", ["fp8", "nvfp4"])
def test_exactly_the_listed_layers_change(precision):
    model = quantize(network(), precision)
    names = reduced(model)
    assert names == set(quantized_layers(model))
    assert len(names) == 8 * CONFIG.depth
    excluded = (
        "beta_proj",
        "gate_proj",
        "_cam",
        "plucker",
        "embedder",
        "t_block",
        "final_layer",
        "depth_conv",
        ".t_conv",
    )
    assert not [name for name in names if any(part in name for part in excluded)]
    assert {p.dtype for p in model.parameters()} <= {torch.bfloat16}


def test_layers_whose_sizes_are_no_multiples_of_16_stay_as_they_are():
    model = network()
    model.blocks[0].attn.output_gate = nn.Linear(64, 72)
    assert "blocks.0.attn.output_gate" not in quantized_layers(model)
    assert "blocks.0.attn.output_gate" not in reduced(quantize(model, "nvfp4"))


@pytest.mark.parametrize(
    ("precision", "bytes_per_value", "error"), [("fp8", (1.0, 1.01), 0.05), ("nvfp4", (0.56, 0.57), 0.2)]
)
def test_what_a_layer_weighs_and_how_far_it_moves(precision, bytes_per_value, error):
    config = SanaWMConfig(
        latent_channels=4, hidden_size=512, depth=1, num_heads=4, head_dim=128, caption_channels=16, input_size=1
    )
    model = SanaWM(config)
    layer = model.blocks[0].attn.proj
    torch.nn.init.normal_(layer.weight, std=0.02, generator=torch.Generator().manual_seed(0))
    x = torch.randn(16, 512, generator=torch.Generator().manual_seed(1), dtype=torch.bfloat16)
    expected = nn.functional.linear(x, layer.weight.bfloat16(), layer.bias.bfloat16()).float()
    layer = quantize(model, precision).blocks[0].attn.proj
    low, high = bytes_per_value
    assert low <= stored(layer.weight.data) / layer.weight.numel() <= high
    moved = (layer(x).float() - expected).norm() / expected.norm()
    assert 0 < moved < error


def test_the_pointwise_convolutions_become_linear_layers_and_still_convolve():
    model = quantize(network(), "fp8")
    assert isinstance(model.blocks[0].mlp.point_conv.conv, nn.Linear)
    assert isinstance(model.blocks[0].mlp.depth_conv.conv, nn.Conv2d)


def test_dynamic_kinds_say_what_they_need_and_change_nothing():
    model = network()
    for precision in ("fp8-dynamic", "nvfp4-dynamic"):
        with pytest.raises(ValueError, match="needs a GPU"):
            quantize(model, precision)
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_an_unknown_precision_names_the_known_ones():
    with pytest.raises(ValueError, match="nvfp4"):
        quantize(network(), "int3")
    assert "bf16" in PRECISIONS
