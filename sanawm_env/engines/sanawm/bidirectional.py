"""The bidirectional model, which makes a whole clip at once and cannot be stepped: diffusers' pipeline from a
folder, and its memory."""

from contextlib import nullcontext
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, cast
from unittest import mock

import numpy as np
import torch
from torch import nn

from sanawm_env.engines.sanawm.codec.ltx2 import TILE_FRAMES, TILE_STRIDE
from sanawm_env.engines.sanawm.memory import META_DEVICE, LiveBytes, MemoryPrediction, fused_attention
from sanawm_env.engines.sanawm.network.precision import weight_bytes
from sanawm_env.system.files import brief, read_json
from sanawm_env.system.packages import needing
from sanawm_env.world.world import usable_device

INDEX, PIPELINE, REFINER = "model_index.json", "SanaWMPipeline", "SanaWMLTX2Refiner"
PARTS = ("tokenizer", "text_encoder", "vae", "transformer", "scheduler")


def load_pipeline(folder: Path, device: str, offload: bool) -> Any:
    """Load diffusers' `SanaWMPipeline`, with its codec tiled as upstream's, in `dtypes`.

    Args:
        folder: in diffusers' layout, with the five parts alone or with a refiner, which is not run.
        device: of the parts.
        offload: keep parts in the host's memory while they are not used.

    Raises:
        FileNotFoundError: which names the command that fetches it.
        ValueError: for files that do not fit, a refiner without a pipeline, or a device that cannot be used.
        ImportError: without diffusers.
    """
    check_layout(folder)
    if offload and device == "cpu":
        raise ValueError("--offload needs a GPU: give --device cuda, or leave it out.")
    usable_device(device)
    with needing("Rendering needs diffusers 0.42", "official"):
        from diffusers import SanaWMPipeline
    try:
        pipeline = SanaWMPipeline.from_pretrained(
            folder,
            dtype=dtypes(device),
            local_files_only=True,
            use_safetensors=True,
        )
    except (OSError, ValueError, TypeError, RuntimeError, AttributeError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"The pipeline in {folder} cannot be loaded ({reason}): fetch it again.") from error
    pipeline.set_progress_bar_config(disable=True)
    tile(pipeline.vae)
    if offload:
        pipeline.enable_model_cpu_offload(device=device)
        return pipeline
    return pipeline.to(device)


def check_layout(folder: Path) -> bool:
    """Whether a folder in diffusers' layout holds a refiner besides the pipeline's five parts.

    Raises:
        FileNotFoundError: which names the command that fetches it.
        ValueError: for another folder.
    """
    if not (folder / INDEX).is_file():
        raise FileNotFoundError(f"There is no pipeline in {folder}: run `sanawm fetch bidirectional`.")
    try:
        index = read_json(folder / INDEX, 2**20)
    except (OSError, ValueError) as error:
        raise ValueError(f"The pipeline in {folder} cannot be loaded ({INDEX}: {error}): fetch it again.") from error
    kind = index.get("_class_name")
    if kind == REFINER:
        raise ValueError(
            f"{folder} is the refiner, split off from its pipeline: give the pipeline's own folder (without -refiner); "
            "`sanawm render` runs the first stage alone."
        )
    if kind != PIPELINE:
        raise ValueError(f"{folder} holds {brief(kind)}, not a {PIPELINE}: run `sanawm fetch bidirectional`.")
    if missing := [part for part in PARTS if part not in index or not (folder / part).is_dir()]:
        raise ValueError(f"The pipeline in {folder} lacks {', '.join(missing)}: run `sanawm fetch bidirectional`.")
    return "refiner" in index


def dtypes(device: str) -> dict[str, torch.dtype]:
    """Dtype of each part: the codec in float32, as upstream runs it, the others in bfloat16, or in float32 on a CPU,
    where the network refuses bfloat16."""
    return {"default": torch.float32 if device == "cpu" else torch.bfloat16, "vae": torch.float32}


def tile(vae: Any) -> None:
    """Set the codec's tiles as upstream's: 512 pixels and 96 frames, one every 448 and 64."""
    vae.enable_tiling(tile_sample_min_num_frames=TILE_FRAMES, tile_sample_stride_num_frames=TILE_STRIDE)
    vae.use_framewise_encoding = vae.use_framewise_decoding = True


def predict_render_memory(
    folder: Path | None,
    height: int = 704,
    width: int = 1280,
    frames: int = 161,
    offload: bool = False,
    dtype: torch.dtype = torch.bfloat16,
    vae_dtype: torch.dtype = torch.float32,
) -> MemoryPrediction:
    """Memory of rendering a clip with guidance, from shapes alone.

    Args:
        folder: of the pipeline; None for the official one.
        height, width: of frames.
        frames: of the clip.
        offload: as `load_pipeline`.
        dtype: of all parts but the codec.
        vae_dtype: of the codec.
    """
    prediction = _rehearse(folder, height, width, frames, dtype, vae_dtype)
    return replace(prediction, waiting={n: (0, s) for n, s in prediction.weights.items()}) if offload else prediction


@cache
def _rehearse(
    folder: Path | None, height: int, width: int, frames: int, dtype: torch.dtype, vae_dtype: torch.dtype
) -> MemoryPrediction:
    """The prediction with every part on the device."""
    with needing("Rendering needs diffusers 0.42", "official"):
        from diffusers import AutoencoderKLLTX2Video, SanaWMPipeline, SanaWMTransformer3DModel
        from transformers import Gemma2Config, Gemma2ForCausalLM

    vae_config: Any = {"spatial_compression_ratio": 32, "temporal_compression_ratio": 8}
    transformer_config: Any = {}
    text_config = Gemma2Config()  # whose defaults are gemma-2-2b's
    if folder is not None:
        vae_config = AutoencoderKLLTX2Video.load_config(folder / "vae")
        transformer_config = SanaWMTransformer3DModel.load_config(folder / "transformer")
        text_config = Gemma2Config.from_pretrained(folder / "text_encoder")
    with META_DEVICE:
        transformer: Any = SanaWMTransformer3DModel.from_config(cast(dict, transformer_config))
        vae: Any = AutoencoderKLLTX2Video.from_config(cast(dict, vae_config))
        text_encoder = Gemma2ForCausalLM(text_config)
    modules: dict[str, nn.Module] = {"text": text_encoder, "network": transformer, "codec": vae}
    for module in modules.values():
        nn.Module.to(module, vae_dtype if module is vae else dtype)  # the library's own warns
    weights = {part: weight_bytes(module, None) for part, module in modules.items()}
    tile(vae)
    left_out: Any = None
    pipeline = SanaWMPipeline(left_out, left_out, vae, transformer, left_out)
    live = LiveBytes([transformer, vae])
    # autocast knows no meta device, and the network only ever switches it off
    no_autocast = mock.patch.object(torch, "autocast", lambda *_, **__: nullcontext())
    with no_autocast, fused_attention(), live, live.repeating([*transformer.blocks, vae.decoder]):
        latents = one_step(pipeline, height, width, frames, META_DEVICE, dtype)
        live.stage = "codec"
        show(pipeline, latents)
    return MemoryPrediction(weights, dict(live.most), live.now, {})


@torch.no_grad()
def one_step(
    pipeline: Any, height: int, width: int, frames: int, device: torch.device, dtype: torch.dtype
) -> torch.Tensor:
    """Latents of a clip after one guided pass of the network on meaningless inputs."""
    intrinsics = np.tile(np.array([width / 2, width / 2, width / 2, height / 2], np.float32), (frames, 1))
    poses = np.tile(np.eye(4, dtype=np.float32), (frames, 1, 1))
    camera = pipeline._build_camera_kwargs(poses, intrinsics, (height, width), device=device, dtype=dtype, do_cfg=True)
    config, steps = pipeline.transformer.config, (frames - 1) // 8 + 1
    latents = torch.zeros(1, config.in_channels, steps, height // 32, width // 32, dtype=dtype, device=device)
    pipeline.transformer(
        torch.cat((latents, latents)),
        torch.zeros(2, 1, steps, device=device),
        torch.zeros(2, 1, 300, config.caption_channels, dtype=dtype, device=device),
        mask=torch.ones(2, 300, dtype=torch.int64, device=device),
        data_info={"img_hw": torch.zeros(1, 2, device=device)},
        **camera,
    )
    return latents


@torch.no_grad()
def show(pipeline: Any, latents: torch.Tensor) -> torch.Tensor:
    """Decode latents to frames."""
    return pipeline.video_processor.postprocess_video(pipeline._decode_latents(latents), output_type="pt")
