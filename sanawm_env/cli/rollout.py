"""`sanawm rollout`: predict an episode from a start image and a camera path."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sanawm_env.cli.arguments import Clip, LoadedWorld
from sanawm_env.cli.output import progress, say


@dataclass(frozen=True, kw_only=True)
class Rollout(Clip, LoadedWorld):
    """Predict what a camera sees on a path from a start image, and write it as an episode: video.mp4, trajectory.npz,
    actions.npz, start.png, meta.json and contact_sheet.png.
    """

    horizon: Literal["stop", "reanchor"] = "stop"
    """For paths beyond the length that the world is validated to. stop refuses them;
    reanchor takes the last frame as a new start image there."""
    out: Path = Path("runs/rollout")
    """Folder for the results; made if missing."""

    def run(self) -> None:
        """Predict one episode; everything is checked before the work.

        Raises:
            ValueError: for a path that leaves the workspace or is too long, a world without start images, and as the
                environment.
            TypeError: as the environment.
            OSError: for files that do not exist, or a folder that cannot be written.
        """
        from sanawm_env.camera.trajectory import whole_chunks
        from sanawm_env.envs.env import SanaWMEnv
        from sanawm_env.recording.episode import EpisodeWriter, Step, begin

        world = self.load()
        name, n = world.config.name, world.config.chunk_frames
        poses = whole_chunks(self.camera_path(world.config), n)
        chunks, limit = len(poses) // n, world.config.workspace.hard_distance
        if world.config.workspace.beyond_hard_distance(poses):
            raise ValueError(f"The camera path leaves the workspace of {name}: stay within {limit:g} m of the start.")
        if self.horizon == "stop" and chunks > world.config.horizon_chunks:
            raise ValueError(
                f"The camera path takes {chunks} chunks, {name} is validated to {world.config.horizon_chunks}: "
                "shorten it, or go on from the last frame with --horizon reanchor."
            )
        if self.image is None and not world.starts:
            raise ValueError(f"The {name} world ships no start images; give one with --image.")
        image = self.image or world.starts[self.usual(world.starts)]
        self.check_apart(EpisodeWriter.names, image)
        intrinsics = self.read_intrinsics(image)
        env = SanaWMEnv(
            self.world,
            scenes=[image],
            device=self.device,
            action_mode="poses",
            horizon=self.horizon,
            max_episode_chunks=chunks,
            **self.load_options,
        )
        begin(env, image, self.seed, prompt=self.prompt, intrinsics=intrinsics, fov_deg=self.fov_deg)
        facts = {
            "title": f"{name} · {self.path_text}",
            "camera": self.path_text,
            "source": str(Path(image).absolute()),
            "intrinsics_source": env.scene.intrinsics_source,
        }
        upscale = max(1, 512 // world.config.width)
        seconds = 0.0
        with (
            EpisodeWriter(self.out, env, env.config, self.seed, facts, upscale=upscale) as writer,
            progress("predicting", "chunks") as bar,
        ):
            for chunk in bar.track(poses.reshape(-1, n, 4, 4)):
                begun = time.perf_counter()
                _, reward, *_ = env.step(chunk)
                seconds += time.perf_counter() - begun
                writer.add(Step.of(env, chunk, reward))
        for file in EpisodeWriter.names:
            say(self.out / file)
        say(f"{chunks / seconds:.1f} env steps/s, {chunks * n / seconds:.0f} frames/s")
