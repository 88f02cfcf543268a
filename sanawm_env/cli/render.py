"""`sanawm render`: a whole clip by the bidirectional model, which diffusers runs. It cannot be stepped."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sanawm_env.cli.arguments import Clip
from sanawm_env.cli.output import progress, say

MOST_STEPS = 1000  # of the schedule that the model was trained with


@dataclass(frozen=True, kw_only=True)
class Render(Clip):
    """Render a whole clip offline with the bidirectional model, by diffusers' SanaWMPipeline. Writes video.mp4,
    trajectory.npz, contact_sheet.png and meta.json.
    """

    image: Path = field()
    """Start image, in any format that Pillow reads."""
    prompt: str = ""
    """Text of the scene."""
    fov_deg: float | None = None
    """Horizontal field of view of the frames in degrees; None for the image's EXIF data or 90."""
    pipeline: Path | None = None
    """Folder in diffusers' layout; None for that of sanawm fetch bidirectional."""
    steps: int = 60
    """Denoising steps, 1 to 1000."""
    guidance_scale: float = 5.0
    """Scale of classifier-free guidance."""
    negative_prompt: str = ""
    """Text of what the clip should not show."""
    height: int = 704
    """Height of frames in pixels."""
    width: int = 1280
    """Width of frames in pixels."""
    device: str = "cpu"
    """Device of torch, such as cpu or cuda."""
    offload: bool = False
    """Keep only the part that works on the GPU, and the others in the host's memory."""
    out: Path = Path("runs/render")
    """Folder for the results; made if missing."""

    def run(self) -> None:
        """Render; everything is checked before the work.

        Raises:
            ValueError: for options out of range, and for files that cannot be read.
            OSError: for files that do not exist, or a folder that cannot be written.
            ImportError: without diffusers.
        """
        import numpy as np
        import torch
        from PIL import Image

        from sanawm_env.camera.intrinsics import intrinsics_matrix
        from sanawm_env.camera.trajectory import whole_chunks
        from sanawm_env.engines.sanawm.bidirectional import check_layout, load_pipeline
        from sanawm_env.engines.sanawm.fetch import check_picture_size, official_folder, world_config
        from sanawm_env.engines.sanawm.network.config import SanaWMConfig
        from sanawm_env.recording.rollout import RolloutWriter
        from sanawm_env.world.images import fit_image, load_image
        from sanawm_env.world.intrinsics import choose_intrinsics

        if not 1 <= self.steps <= MOST_STEPS:
            raise ValueError(f"--steps must be at least 1 and at most {MOST_STEPS}, got {self.steps}.")
        check_picture_size(self.height, self.width)
        config = world_config("bidirectional", SanaWMConfig(), self.height, self.width)
        path = whole_chunks(self.camera_path(config), config.temporal_stride)
        poses = np.concatenate((np.eye(4)[None], path))
        picture = load_image(self.image)
        intrinsics, source = choose_intrinsics(picture, config, self.read_intrinsics(self.image), self.fov_deg)
        self.check_apart(RolloutWriter.names, self.image)
        folder = self.pipeline or official_folder("bidirectional") / "pipeline"
        meta = {
            "title": f"bidirectional · {self.path_text}",
            "world": str(folder),
            "mode": "bidirectional",
            "prompt": self.prompt,
            "negative_prompt": self.negative_prompt,
            "steps": self.steps,
            "guidance_scale": self.guidance_scale,
            "seed": self.seed,
            "image": str(self.image),
            "actions": {"actions": self.actions, "trajectory": self.trajectory, "twist": self.twist},
            "intrinsics": intrinsics,
            "intrinsics_source": source,
        }
        if check_layout(folder):
            say("The refiner beside this pipeline is not run: this is its first stage.")
        with RolloutWriter(self.out, config.fps, meta, upscale=max(1, 512 // config.width)) as writer:
            pipeline = load_pipeline(folder, self.device, self.offload)
            with progress("rendering", "steps") as bar:
                task = bar.add_task("", total=self.steps)

                def advance(pipeline: Any, step: int, timestep: Any, tensors: dict) -> dict:
                    bar.advance(task)
                    return tensors

                # the frame is cut here, so that it and its intrinsics are those every other world would use
                clip = pipeline(
                    image=Image.fromarray(fit_image(picture, config.height, config.width)),
                    prompt=self.prompt,
                    negative_prompt=self.negative_prompt,
                    c2w=poses,
                    intrinsics=intrinsics,
                    height=config.height,
                    width=config.width,
                    num_frames=len(poses),
                    fps=config.fps,
                    num_inference_steps=self.steps,
                    guidance_scale=self.guidance_scale,
                    generator=torch.Generator().manual_seed(self.seed),
                    callback_on_step_end=advance,
                )
            frames = np.rint(np.asarray(clip.frames) * 255).astype(np.uint8)
            writer.append(frames, poses, intrinsics_matrix(intrinsics))
        for name in RolloutWriter.names:
            say(self.out / name)
