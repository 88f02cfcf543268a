"""Fewer bits per weight, by torchao (codec_text_refiner.md section (d)).

Weight-only kinds store weights in 8 or 4 bits and compute in bfloat16: they save memory on any hardware. Dynamic kinds
also round activations and compute in the low format, which needs a GPU that supports it.
"""

import math
from collections.abc import Callable
from typing import Any, Literal, TypeVar, cast

import torch
from torch import Tensor, nn

from sanawm_env.system.files import check_choice
from sanawm_env.system.packages import needing

M = TypeVar("M", bound=nn.Module)

PRECISIONS = ("bf16", "fp8", "nvfp4", "fp8-dynamic", "nvfp4-dynamic")
CAPABILITY = {"fp8-dynamic": (8, 9), "nvfp4-dynamic": (10, 0)}
"""CUDA compute capability that a dynamic kind needs."""

LAYERS = {
    "network": (
        "attn.qkv", "attn.proj", "attn.output_gate", "cross_attn.q_linear", "cross_attn.kv_linear", "cross_attn.proj",
        "mlp.inverted_conv.conv", "mlp.point_conv.conv",
    ),
    "refiner": (
        *(f"{attention}.{name}" for attention in ("attn1", "attn2") for name in ("to_q", "to_k", "to_v", "to_out.0")),
        "ff.net.0.proj", "ff.net.2",
    ),
}  # fmt: skip
BLOCKS = {"network": "blocks", "refiner": "transformer_blocks"}


def quantized_layers(module: nn.Module, part: Literal["network", "refiner"] = "network") -> list[str]:
    """Names of the layers that `quantize` changes: those of section d.2 whose both sizes are multiples of 16 (a
    token-wise mixer has none)."""
    names = []
    for i, block in enumerate(getattr(module, BLOCKS[part])):
        inner = dict(block.named_modules())
        for inside in filter(inner.__contains__, LAYERS[part]):
            rows, columns = inner[inside].weight.shape[:2]
            if rows % 16 == 0 and columns % 16 == 0:
                names.append(f"{BLOCKS[part]}.{i}.{inside}")
    return names


def quantize(module: M, precision: str, part: Literal["network", "refiner"] = "network") -> M:
    """Change a module's weights to a precision, in place; everything else becomes bfloat16.

    Args:
        module: network or refiner.
        precision: one of `PRECISIONS`.
        part: which of the two it is.

    Returns:
        The module.

    Raises:
        ValueError: for another name, or where the hardware cannot run a dynamic kind. Nothing has changed then.
        ImportError: without torchao. Nothing has changed then.
    """
    check_choice("precision", precision, PRECISIONS)
    if precision in CAPABILITY:
        _check_hardware(precision, next(module.parameters()).device)
    if precision == "bf16":
        return module.to(torch.bfloat16)
    quantize_, config = _torchao(precision)
    names = set(quantized_layers(module, part))
    module.to(torch.bfloat16)
    for name in names:
        layer = module.get_submodule(name)
        if isinstance(layer, nn.Conv2d):  # kernel 1: the same weights as a linear layer
            module.set_submodule(name, _as_linear(layer))
    quantize_(module, config, filter_fn=lambda _, name: name in names)
    # torchao skips what it cannot do without a word
    if left := [n for n in names if type(module.get_submodule(n).weight.data) is torch.Tensor]:
        raise RuntimeError(f"torchao left {len(left)} layers as they were, {left[0]} among them.")
    return module


def weight_bytes(module: nn.Module, precision: str | None, part: Literal["network", "refiner"] = "network") -> int:
    """Bytes of a module's parameters and buffers in a precision, from their shapes alone.

    float8 stores a byte per value and a float32 scale per row; NVFP4 half a byte, a byte of scale per 16 values (rows
    padded to 128, scales of a row to 4) and one float32 (section d.2).

    Args:
        module: may be on the meta device, and stays as it is.
        precision: one of `PRECISIONS`; None: as they are.
        part: network or refiner.
    """
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    if precision is None:
        return sum(t.nbytes for t in tensors.values())
    total = sum(2 * t.numel() if t.is_floating_point() else t.nbytes for t in tensors.values())
    if precision == "bf16":
        return total
    for name in quantized_layers(module, part):
        rows, columns = cast(Tensor, module.get_submodule(name).weight).shape[:2]
        total -= 2 * rows * columns
        if precision.startswith("fp8"):
            total += rows * columns + 4 * rows
        else:
            total += rows * columns // 2 + 128 * math.ceil(rows / 128) * 4 * math.ceil(columns / 64) + 4
    return total


def _as_linear(conv: nn.Conv2d) -> nn.Linear:
    with torch.device("meta"):
        linear = nn.Linear(conv.in_channels, conv.out_channels, bias=conv.bias is not None)
    linear.weight = nn.Parameter(conv.weight.detach().flatten(1), requires_grad=False)
    linear.bias = cast(nn.Parameter, conv.bias)  # or None
    return linear


def _check_hardware(precision: str, device: torch.device) -> None:
    needed = CAPABILITY[precision]
    have = torch.cuda.get_device_capability(device) if device.type == "cuda" else None
    if have is None or have < needed:
        here = f"the {device.type}" if have is None else f"compute capability {have[0]}.{have[1]}"
        plain = precision.removesuffix("-dynamic")
        raise ValueError(
            f"precision {precision!r} needs a GPU of compute capability {needed[0]}.{needed[1]}, this is {here}: "
            f"use {plain!r}, which keeps only the weights in that format."
        )


def _torchao(precision: str) -> tuple[Callable, Any]:
    with needing("Reduced precision needs torchao 0.18", "official"):
        from torchao.quantization import (
            Float8DynamicActivationFloat8WeightConfig,
            Float8WeightOnlyConfig,
            PerRow,
        )
        from torchao.quantization.quant_api import quantize_

        if precision.startswith("fp8"):
            dynamic = precision.endswith("dynamic")
            config = (
                Float8DynamicActivationFloat8WeightConfig(granularity=PerRow()) if dynamic else Float8WeightOnlyConfig()
            )
            return quantize_, config
        from torchao.prototype.mx_formats import NVFP4DynamicActivationNVFP4WeightConfig, NVFP4WeightOnlyConfig
    return quantize_, NVFP4DynamicActivationNVFP4WeightConfig() if precision.endswith(
        "dynamic"
    ) else NVFP4WeightOnlyConfig()
