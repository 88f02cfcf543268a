"""Initial weights of the nano world: at step 0 the network already shows what was seen in the direction of each ray.

nano.md, section 1, asks for such a start: attention to rotation-aligned neighbours was the largest single gain in early
learning.
"""

import math
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from sanawm_env.engines.sanawm.codec.patch_pca import LATENT_STD, PatchPCACodec
from sanawm_env.engines.sanawm.conditions import PLUCKER_CHANNELS
from sanawm_env.engines.sanawm.config import SanaWorldConfig
from sanawm_env.engines.sanawm.network.ablation import TokenMixer
from sanawm_env.engines.sanawm.network.mixers import GDNMixer, WindowMixer
from sanawm_env.engines.sanawm.network.model import SanaWM
from sanawm_env.engines.sanawm.network.place_map import PlaceMap
from sanawm_env.engines.sanawm.reprojection import GUESS_PARTS, TRUST_PARTS, reprojection_channels
from sanawm_env.system.files import explaining

NETWORK, PLACES = "network", "places"
STARTS_SMALL = ("attn.proj.weight", "attn.layer.o_proj.weight", "point_conv.conv.weight", "t_conv.weight")


def untrained(config: SanaWorldConfig, generator: torch.Generator) -> torch.nn.ModuleDict:
    """The network of a world and, where it knows places, its place map, by the names of their files."""
    network = SanaWM(config.network)
    initialise(network, generator)
    parts = torch.nn.ModuleDict({NETWORK: network})
    if config.places:
        parts[PLACES] = places = PlaceMap(config.places)
        torch.nn.init.normal_(places.cells, std=0.1, generator=generator)
    return parts


def begun_from(parts: torch.nn.ModuleDict, folder: Path, codec: PatchPCACodec | None = None) -> None:
    """Load the network and the place map of a world.

    Args:
        parts: to load into.
        folder: of the world.
        codec: of a world of your own clips, which is another codec; the network is transferred to it (`_carried_over`).
            None for the codec of the world.

    Raises:
        ValueError: where sizes differ.
    """
    for name, part in parts.items():
        weights = {k: v.float() for k, v in load_file(folder / f"{name}.safetensors").items()}
        if codec is not None:
            channels = cast(SanaWM, part).config.plucker_channels
            weights = _carried_over(weights, PatchPCACodec.load(folder / "codec.safetensors"), codec, channels)
        with explaining(f"A network of these sizes cannot go on from {folder}", RuntimeError):
            part.load_weights(weights) if isinstance(part, SanaWM) else part.load_state_dict(weights)


def _carried_over(
    weights: dict[str, Tensor], own: PatchPCACodec, other: PatchPCACodec, channels: int
) -> dict[str, Tensor]:
    """Weights that do with latents of the codec `other` what the given ones do with latents of the codec `own`.

    Both codecs are linear, so between their latents there is an affine map, by way of the pixels of a patch, enlarged
    or reduced. The first layer is composed with the map to `own`, the last one with the map back, and so is the layer
    behind the channels of a first guess, which a network of fewer `channels` beside the latents does without. The
    channels of places are left out; of the texts that of an unknown place remains.
    """
    there, there_bias = _between(other, own)
    back, back_bias = _between(own, other)
    changed = dict(weights)
    enter, leave = "x_embedder.proj", "final_layer.linear"
    into = weights[f"{enter}.weight"].flatten(1)
    changed[f"{enter}.weight"] = (into @ there.T)[..., None, None, None]
    changed[f"{enter}.bias"] = weights[f"{enter}.bias"] + into @ there_bias
    # at full noise, where the sampler begins, the v-prediction is minus the data
    changed[f"{leave}.weight"] = back.T @ weights[f"{leave}.weight"]
    changed[f"{leave}.bias"] = weights[f"{leave}.bias"] @ back - back_bias
    name = "plucker_embedder.proj.weight"
    guess, parts = weights[name][:, -reprojection_channels(len(own.scale)) :].split((len(own.scale), GUESS_PARTS), 1)
    shift = guess.flatten(1) @ there_bias / LATENT_STD  # of guesses that are trusted: trust is a mean of four parts
    parts = parts.clone()
    parts[:, TRUST_PARTS] += shift[:, None, None, None, None] / 4
    guess = (guess.flatten(1) @ there.T)[..., None, None, None]
    changed[name] = torch.cat((weights[name][:, :PLUCKER_CHANNELS], guess, parts), dim=1)[:, :channels]
    for name in ("y_embedder.y_embedding", "y_embedder.y_proj.fc1.weight"):
        changed[name] = weights[name][:, -1:]
    return {name: value.contiguous() for name, value in changed.items()}


def _between(one: PatchPCACodec, other: PatchPCACodec) -> tuple[Tensor, Tensor]:
    """Matrix (C, D) and offset (D,) from latents of one codec to those of another: x @ matrix + offset."""

    def resized(patches: Tensor) -> Tensor:
        """Of patches (N, P) at the one's stride, those at the other's."""
        pictures = patches.reshape(-1, one.stride, one.stride, 3).movedim(3, 1)  # a patch is 8 frames of them
        size = (other.stride, other.stride)
        if other.stride < one.stride:
            pictures = F.adaptive_avg_pool2d(pictures, size)
        else:
            pictures = F.interpolate(pictures, size, mode="bilinear", align_corners=False)
        return pictures.movedim(1, 3).reshape(len(patches), -1)

    matrix = resized(one.components / one.scale[:, None]) @ other.components.T * other.scale
    offset = (resized(one.mean[None])[0] - other.mean) @ other.components.T * other.scale
    return matrix, offset


def parts_of(model: torch.nn.ModuleDict) -> tuple[SanaWM, PlaceMap | None]:
    """The network of a trained module, and its place map or None."""
    return cast(SanaWM, model[NETWORK]), cast(PlaceMap | None, dict(model.items()).get(PLACES))


def initialise(model: SanaWM, generator: torch.Generator) -> None:
    """Set every weight of a network.

    Linear layers are scaled by fan-in; residual branches and output start small. GDN blocks start with a memory of
    about a hundred frames, and with a key convolution that passes the current frame (token-wise ones:
    `_remember_tokens`). The camera branch of the softmax blocks holds the geometry (`_look_along_the_ray`), and the
    first of them copies what it finds to the output (`_copy_path`).
    """
    for name, parameter in model.named_parameters():
        if name.endswith(("norm.weight", "norm_cam.weight")):
            continue
        if parameter.ndim > 1 and "table" not in name:
            fan_in = parameter[0].numel()
            small = 0.1 if name.endswith(STARTS_SMALL) else 1.0
            torch.nn.init.normal_(parameter, std=small * fan_in**-0.5, generator=generator)
        else:
            torch.nn.init.zeros_(parameter)
    with torch.no_grad():
        model.x_embedder.proj.weight.div_(LATENT_STD)
        cast(torch.nn.Linear, model.t_block[1]).weight.mul_(0.1)
        for block in model.blocks:
            block.scale_shift_table[2] = block.scale_shift_table[5] = 1.0
            if isinstance(block.attn, TokenMixer):
                _remember_tokens(block.attn)
                continue
            block.attn.output_gate.bias.fill_(1.0)
            block.attn.output_gate.weight.mul_(0.1)
            block.attn.dt_bias.fill_(math.log(math.expm1(0.01)))
            if isinstance(block.attn, GDNMixer):
                block.attn.conv_k.weight[..., -1] = block.attn.conv_k_cam.weight[..., -1] = 1.0
        noisy = _noise_channel(model)
        softmax = [block.attn for block in model.blocks if isinstance(block.attn, WindowMixer)]
        for mixer in softmax:
            _look_along_the_ray(mixer, noisy)
        if softmax:
            _copy_path(model, softmax[0])


def _remember_tokens(mixer: TokenMixer) -> None:
    """A memory as long as that of the frame rule, though every token decays it: a frame of the nano world is 96
    tokens."""
    layer: Any = mixer.layer  # fla's, whose parts have no types
    layer.dt_bias.fill_(math.log(math.expm1(0.01 / 96)))
    for conv in (layer.q_conv1d, layer.k_conv1d, layer.v_conv1d):
        conv.weight[..., -1] = 1.0


def _writers(model: SanaWM) -> list[torch.Tensor]:
    """The matrices that add to the residual stream after the latents, one row per channel."""
    parts = ("plucker_proj", "attn.proj", "cross_attn.proj", "mlp.point_conv.conv", "mlp.t_conv")
    return [cast(torch.Tensor, block.get_submodule(part).weight) for block in model.blocks for part in parts]


def _noise_channel(model: SanaWM) -> int:
    """Reserve the last residual channel: the modulation shifts it to 1 in noisy frames; in clean ones it stays 0."""
    channel = model.config.hidden_size - 1
    timesteps = torch.cat((torch.zeros(1), torch.linspace(50, 1000, 40)))
    features = torch.nn.functional.silu(model.t_embedder(timesteps))
    wanted = (timesteps > 0).float()[:, None]
    ridge = 1e-3 * torch.eye(features.shape[1])
    row = torch.linalg.solve(features.T @ features + ridge, features.T @ wanted)[:, 0]
    modulation = cast(torch.nn.Linear, model.t_block[1])
    modulation.weight[channel] = row  # the first of the six modulation rows: the shift before self-attention
    for writer in _writers(model):
        writer.sub_(writer.mean(0))  # LayerNorm would spread a common offset into the channel
        writer[channel] = 0
    return channel


def _look_along_the_ray(mixer: WindowMixer, noisy: int) -> None:
    """Queries and keys are one constant vector along the viewing ray: after the ray transform their product is the
    cosine between two rays in the world. Noisy tokens count less: a component that no query reads takes up their
    norm. A neighbouring cell has a cosine of 0.995, so nothing else may disturb the keys at the start."""
    sharpness = torch.linspace(6.0, 12.0, mixer.heads)
    for proj, norm in ((mixer.q_proj_cam, mixer.q_norm_cam), (mixer.k_proj_cam, mixer.k_norm_cam)):
        proj.weight.zero_()
        head = proj.bias.unflatten(0, (mixer.heads, -1))
        half = head.shape[1] // 2
        head[:, 2:half:4] = 1.0  # z of every group of four
        norm.weight.unflatten(0, (mixer.heads, -1))[:, :half] = sharpness[:, None]
    mixer.k_proj_cam.weight.unflatten(0, (mixer.heads, -1))[:, half, noisy] = 2.0


def _copy_path(model: SanaWM, mixer: WindowMixer) -> None:
    """Latents enter the first channels. The camera branch of `mixer` copies the strongest of them, in the x, y, z of
    its groups, to the channels behind, and the output reads them there (minus the data is the v-prediction at full
    noise). Nothing is done where the network is too narrow."""
    latents, width = model.config.latent_channels, model.config.hidden_size
    half = model.config.head_dim // 2
    seats = torch.arange(width).view(mixer.heads, -1)[:, :half].unflatten(1, (-1, 4))[..., :3].flatten()
    count = min(len(seats), latents, width - latents - 3)
    if count <= 0:
        return
    seats, source, target = seats[:count], torch.arange(count), latents + torch.arange(count)
    for writer in _writers(model):
        writer[: latents + count] *= 0.1
    model.x_embedder.proj.weight.zero_()
    model.x_embedder.proj.weight.flatten(1)[torch.arange(latents), torch.arange(latents)] = 1 / LATENT_STD
    # two large constants make LayerNorm nearly linear, so that contrast survives the copy
    cast(torch.Tensor, model.x_embedder.proj.bias)[width - 3 : width - 1] = torch.tensor([8.0, -8.0])
    mixer.v_proj_cam.weight[seats] = 0
    mixer.v_proj_cam.weight[seats, source] = 1.0
    mixer.out_proj_cam.weight[target] = 0
    mixer.out_proj_cam.weight[target, seats] = 1.0
    mixer.qkv.weight[2 * width + target] = 0  # the main branch's values would be added there
    mixer.proj.weight[target] = 0
    mixer.proj.weight[target, target] = 1.4  # undoes the output gate, SiLU(1) = 0.73
    model.final_layer.linear.weight.mul_(0.1)
    model.final_layer.linear.weight[source, target] = -1.5 * LATENT_STD
