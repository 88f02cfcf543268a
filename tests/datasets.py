"""Small datasets for tests: episodes of a tiny random world, written as a collector writes them."""

import json
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from sanawm_env.envs.env import SanaWMEnv
from sanawm_env.recording.dataset import Dataset, Shard
from sanawm_env.recording.episode import EpisodeWriter, RecordedEpisode, Step, begin
from sanawm_env.recording.rollout import META
from tests.worlds import TINY, picture, write_tiny_world

SMALL = replace(TINY, height=32, width=48)  # both at least 32: Minari takes smaller arrays for no pictures


def small_world(folder: Path) -> Path:
    """The folder of a tiny random world whose pictures are 32 x 48."""
    return write_tiny_world(folder, config=SMALL)


def collect(folder: Path, world: Path, chunks: Sequence[int] = (2, 1, 3), **settings: Any) -> Dataset:
    """A dataset of episodes with so many chunks each, whose rewards tell episode and step."""
    settings = {"world": str(world), "action_mode": "twist", "max_episode_chunks": 3} | settings
    env = SanaWMEnv(**settings)
    header = {name: getattr(env.world.config, name) for name in ("fps", "height", "width", "chunk_frames")}
    header |= {"weights_hash": env.world.weights_hash} | {name: settings[name] for name in ("world", "action_mode")}
    dataset = Dataset.create(folder, header)
    env.action_space.seed(0)
    with Shard(dataset) as shard:
        for number, count in enumerate(chunks):
            begin(env, picture(number), seed=number)
            facts = {"id": f"job-{number}", "camera": f"script {number % 2}"}
            video = {"sheet": False, "keyframes": 2}
            with EpisodeWriter(shard.begin(), env, env.config, number, facts, **video) as writer:
                for step in range(count):
                    action = env.action_space.sample()
                    env.step(action)
                    writer.add(Step.of(env, action, 10 * number + step + 1))
            shard.note(shard.accept(writer.out_dir))
    return dataset


def say(episode: RecordedEpisode, **facts: Any) -> None:
    """Write other facts into the meta.json of an episode."""
    (episode.folder / META).write_text(json.dumps(episode.meta | facts))


def rewards(number: int, count: int) -> np.ndarray:
    """What the steps of the episode of that number were paid in `collect`."""
    return 10.0 * number + np.arange(1, count + 1)


def write_wide(path: Path, frames: np.ndarray) -> None:
    """A video at 16 frames a second that is to be shown wider than it is, by 4:3."""
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=16)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt, stream.codec_context.sample_aspect_ratio = "yuv420p", Fraction(4, 3)
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame)))
        container.mux(stream.encode(None))
