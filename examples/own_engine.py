"""A world model of one's own: a camera that turns inside any photograph, and an exposure that follows what it sees.

python examples/own_engine.py photo.jpg         # leaves runs/panorama.png; docs/own_engine.md explains each part
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import gymnasium as gym
import numpy as np
import torch
from PIL import Image

from sanawm_env.world.config import WorldConfig
from sanawm_env.world.engine import Chunk, Engine, register_engine


@dataclass(frozen=True, kw_only=True)
class PanoramaConfig(WorldConfig):
    name: str = "panorama"
    engine: str = "panorama"
    height: int = 144
    width: int = 256
    chunk_frames: int = 16
    adapts: float = 0.1  # how much of the way to its aim the exposure goes in a frame


@dataclass(frozen=True, eq=False)
class Exposure:
    """What an episode remembers from chunk to chunk. gain: (B,) float32, what brightness is multiplied by."""

    gain: torch.Tensor


class PanoramaEngine(Engine):
    config_type = PanoramaConfig
    state_types = (Exposure,)
    needs_files = False
    capabilities = frozenset({"images"})

    def __init__(self, config: PanoramaConfig, device: torch.device):
        self.config, self.device = config, device

    @classmethod
    def load(cls, folder, config, device, options):
        return cls(config, device)

    def encode(self, image, prompt, anchor):
        self.check_prompt(prompt)

    def outline(self, scene, chunks):
        return None, None if chunks == 0 else Exposure(torch.empty(1, device="meta"))

    def advance(self, slots, memory, poses):
        gains = torch.ones(len(slots)) if memory is None else memory.gain.cpu()
        rows = []
        for slot, path, gain in zip(slots, poses[..., :3, :3], gains, strict=True):
            picture, intrinsics = torch.tensor(slot.scene.image) / 255, torch.tensor(slot.scene.intrinsics).float()
            seen = look(picture, intrinsics, (torch.tensor(slot.origin[:3, :3]).T @ path).float())
            for frame in seen:
                gain = gain + self.config.adapts * (picture.mean() / frame.mean().clamp(min=0.05) - gain)
                frame *= gain
            rows.append(((255 * seen.clamp(max=1)).round().to(torch.uint8), gain))
        frames, gains = (torch.stack(parts).to(self.device) for parts in zip(*rows, strict=True))
        return Chunk(frames, Exposure(gains))


def look(picture: torch.Tensor, intrinsics: torch.Tensor, turns: torch.Tensor) -> torch.Tensor:
    """What a camera sees (F, H, W, 3) that turns by (F, 3, 3) in a picture (H, W, 3), and its mean colour beside it:
    homographies K R K^-1 (Hartley and Zisserman, "Multiple View Geometry"). intrinsics: (4,), in pixels."""
    v, u = torch.meshgrid(*(torch.arange(n) + 0.5 for n in picture.shape[:2]), indexing="ij")
    rays = torch.cat(((torch.stack((u, v), -1) - intrinsics[2:]) / intrinsics[:2], torch.ones(*u.shape, 1)), -1)
    rays = torch.einsum("fij,hwj->fhwi", turns, rays)
    at = 2 * (intrinsics[:2] * rays[..., :2] / rays[..., 2:] + intrinsics[2:]) / torch.tensor(picture.shape[1::-1]) - 1
    at[rays[..., 2] <= 0] = 2  # behind the camera there is none
    mean = picture.mean((0, 1))
    shifted = (picture - mean).permute(2, 0, 1).expand(len(turns), -1, -1, -1)
    return torch.nn.functional.grid_sample(shifted, at, align_corners=False).permute(0, 2, 3, 1) + mean


register_engine("panorama", PanoramaEngine)


def main(photo: str | Path = Path(__file__).parents[1] / "docs" / "photographs" / "palace.jpg") -> None:
    env = gym.make("sanawm_env:SanaWM/Walk-v0", world="panorama", scenes=photo).unwrapped
    env.reset(seed=0)
    here, shown = env.snapshot(), [env.scene.image]
    for turn in (-1, 1):  # two futures of one moment
        env.restore(here)
        env.step(np.array([0, 0, 0, 0, turn, 0], np.float32))
        shown.append(env.clip.frames[-1])
    Path("runs").mkdir(exist_ok=True)
    Image.fromarray(np.concatenate(shown, axis=1)).save("runs/panorama.png")
    print("runs/panorama.png: the photograph, then what is seen to its left and to its right")


if __name__ == "__main__":
    main(*sys.argv[1:])
