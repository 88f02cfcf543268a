"""`sanawm render`: a whole clip by the bidirectional model, which diffusers runs; it cannot be stepped."""

from contextlib import nullcontext
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import nn

from sanawm_env.camera.intrinsics import intrinsics_matrix
from sanawm_env.camera.trajectory import whole_chunks
from sanawm_env.cli.rollout import camera_path
from sanawm_env.engines.sanawm.codec.ltx2 import TILE_FRAMES, TILE_STRIDE
from sanawm_env.engines.sanawm.fetch import check_picture_size, official_folder, world_config
from sanawm_env.engines.sanawm.memory import META_DEVICE, LiveBytes, MemoryPrediction, fused_attention
from sanawm_env.engines.sanawm.network.config import SanaWMConfig
from sanawm_env.engines.sanawm.network.precision import weight_bytes
from sanawm_env.recording.arrays import load_array
from sanawm_env.recording.rollout import RolloutWriter
from sanawm_env.world.files import brief, read_json
from sanawm_env.world.images import fit_image, load_image
from sanawm_env.world.lens import fit_lens
from sanawm_env.world.saving import check_apart

if TYPE_CHECKING:
    from sanawm_env.cli import Render

MOST_STEPS = 1000  # of the schedule that the model was trained with
INDEX, PIPELINE, REFINER = "model_index.json", "SanaWMPipeline", "SanaWMLTX2Refiner"
PARTS = ("tokenizer", "text_encoder", "vae", "transformer", "scheduler")


def render(options: "Render", console: Console) -> None:
    """Render one clip along the path the options describe; everything given is checked before the work.

    Raises ValueError, OSError or ImportError in one sentence.
    """
    if not 1 <= options.steps <= MOST_STEPS:
        raise ValueError(f"--steps must be at least 1 and at most {MOST_STEPS}, got {options.steps}.")
    check_picture_size(options.height, options.width)
    config = world_config("bidirectional", SanaWMConfig(), options.height, options.width)
    path = whole_chunks(camera_path(options, config), config.temporal_stride)
    poses = np.concatenate((np.eye(4)[None], path))
    picture = load_image(options.image)
    intrinsics = None if options.intrinsics is None else load_array(options.intrinsics)
    lens, source = fit_lens(picture, config, intrinsics, options.fov_deg)
    outputs = [options.out / name for name in RolloutWriter.names]
    check_apart(outputs, [options.image, options.trajectory, options.intrinsics])
    folder = options.pipeline or official_folder("bidirectional") / "pipeline"
    meta = {
        "title": f"bidirectional · {options.actions or options.trajectory or options.twist}",
        "world": str(folder),
        "mode": "bidirectional",
        "prompt": options.prompt,
        "negative_prompt": options.negative_prompt,
        "steps": options.steps,
        "guidance_scale": options.guidance_scale,
        "seed": options.seed,
        "image": str(options.image),
        "actions": {"actions": options.actions, "trajectory": options.trajectory, "twist": options.twist},
        "intrinsics": lens,
        "intrinsics_source": source,
    }
    if check_layout(folder):
        console.print("The refiner beside this pipeline is not run: this is its first stage.")
    with RolloutWriter(options.out, config.fps, meta, upscale=max(1, 512 // config.width)) as writer:
        pipeline = load_pipeline(folder, options.device, options.offload)
        columns = (TextColumn("rendering"), BarColumn(), MofNCompleteColumn(), TextColumn("steps"))
        with Progress(*columns, TimeRemainingColumn(), console=console) as progress:
            task = progress.add_task("", total=options.steps)

            def advance(pipeline: Any, step: int, timestep: Any, tensors: dict) -> dict:
                progress.advance(task)
                return tensors

            # the picture is cut here, so that lens and picture are the ones every other world would use
            clip = pipeline(
                image=Image.fromarray(fit_image(picture, config.height, config.width)),
                prompt=options.prompt,
                negative_prompt=options.negative_prompt,
                c2w=poses,
                intrinsics=lens,
                height=config.height,
                width=config.width,
                num_frames=len(poses),
                fps=config.fps,
                num_inference_steps=options.steps,
                guidance_scale=options.guidance_scale,
                generator=torch.Generator().manual_seed(options.seed),
                callback_on_step_end=advance,
            )
        frames = np.rint(np.asarray(clip.frames) * 255).astype(np.uint8)
        writer.append(frames, poses, intrinsics_matrix(lens))
    for file in outputs:
        console.print(file, soft_wrap=True)


def load_pipeline(folder: Path, device: str, offload: bool) -> Any:
    """diffusers' `SanaWMPipeline` from a folder in its layout, its codec tiled as upstream's; its dtypes are `dtypes`.

    The folder may hold the five parts alone or a refiner too, which is not run. Raises FileNotFoundError naming the
    command to run, ValueError for files that do not fit, for a refiner without a pipeline, or for a device that is not
    there, ImportError without diffusers.
    """
    check_layout(folder)
    if offload and device == "cpu":
        raise ValueError("--offload needs a GPU: give --device cuda, or leave it out.")
    try:
        from diffusers import SanaWMPipeline
    except ImportError as error:
        raise ImportError(f'Rendering needs diffusers 0.42: pip install "sanawm-env[official]" ({error}).') from error
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
    try:
        if offload:
            pipeline.enable_model_cpu_offload(device=device)
            return pipeline
        return pipeline.to(device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"The device {device!r} cannot be used here: {str(error).splitlines()[0]}") from error


def check_layout(folder: Path) -> bool:
    """Whether a folder in diffusers' layout holds a refiner beside the pipeline's five parts.

    Raises FileNotFoundError naming the command to run, or ValueError in one sentence for what is not such a folder.
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
    """Of the parts: the codec in float32, as upstream runs it; the others in bfloat16, which the network refuses on a
    CPU (float32 there)."""
    return {"default": torch.float32 if device == "cpu" else torch.bfloat16, "vae": torch.float32}


def tile(vae: nn.Module) -> None:
    """Have the codec work as upstream's does: in tiles of 512 pixels and 96 frames, going on every 448 and 64."""
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
    """What rendering a clip of so many frames takes with guidance, from shapes alone: of the pipeline in a folder, or
    of the official one."""
    prediction = _rehearse(folder, height, width, frames, dtype, vae_dtype)
    return replace(prediction, waiting={n: (0, s) for n, s in prediction.weights.items()}) if offload else prediction


@cache
def _rehearse(
    folder: Path | None, height: int, width: int, frames: int, dtype: torch.dtype, vae_dtype: torch.dtype
) -> MemoryPrediction:
    """The prediction with every part on the device."""
    try:
        from diffusers import AutoencoderKLLTX2Video, SanaWMPipeline, SanaWMTransformer3DModel
        from transformers import Gemma2Config, Gemma2ForCausalLM
    except ImportError as error:
        raise ImportError(f'Rendering needs diffusers 0.42: pip install "sanawm-env[official]" ({error}).') from error

    vae_config: dict = {"spatial_compression_ratio": 32, "temporal_compression_ratio": 8}
    transformer_config: dict = {}
    text_config = Gemma2Config()  # whose defaults are gemma-2-2b's
    if folder is not None:
        vae_config = AutoencoderKLLTX2Video.load_config(folder / "vae")
        transformer_config = SanaWMTransformer3DModel.load_config(folder / "transformer")
        text_config = Gemma2Config.from_pretrained(folder / "text_encoder")
    with META_DEVICE:
        transformer = SanaWMTransformer3DModel.from_config(transformer_config)
        vae = AutoencoderKLLTX2Video.from_config(vae_config)
        text_encoder = Gemma2ForCausalLM(text_config)
    modules = {"text": text_encoder, "network": transformer, "codec": vae}
    for module in modules.values():
        nn.Module.to(module, vae_dtype if module is vae else dtype)  # the library's own warns
    weights = {part: weight_bytes(module, None) for part, module in modules.items()}
    tile(vae)
    pipeline = SanaWMPipeline(None, None, vae, transformer, None)
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
    """Latents of a clip, for which the network has run once, guided, on inputs without meaning."""
    lens = np.tile(np.float32([width / 2, width / 2, width / 2, height / 2]), (frames, 1))
    poses = np.tile(np.eye(4, dtype=np.float32), (frames, 1, 1))
    camera = pipeline._build_camera_kwargs(poses, lens, (height, width), device=device, dtype=dtype, do_cfg=True)
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
    """The frames of latents."""
    return pipeline.video_processor.postprocess_video(pipeline._decode_latents(latents), output_type="pt")
