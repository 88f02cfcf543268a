"""The walks that worlds are evaluated on, and measures of images that every study uses.

Walk i of (role, seed) is a start and a path in one of the world's places, or in a layout that it does not know. The
role is part of every random stream (`clips.random_stream`), so walks of different roles have nothing in common: "train"
is trained on, "validation" serves decisions, "evaluate" is used once, for the record.
"""

from dataclasses import dataclass

import numpy as np

from sanawm_env.engines.rooms.places import PLACES, place, random_place, room_seed
from sanawm_env.engines.rooms.raycast import HEIGHT, WIDTH, Place, intrinsics, render
from sanawm_env.engines.rooms.walks import sample_path, sample_start
from sanawm_env.training.clips import random_stream
from sanawm_env.world.config import WorldConfig


@dataclass(frozen=True, eq=False)
class Walk:
    """A walk.

    Attributes:
        place: where it is.
        c2w: (F, 4, 4) in the place's frame.
        seed: of the episode's noise.
        known: whether the world knows the place.
    """

    place: Place
    c2w: np.ndarray
    seed: int
    known: bool

    def first_frame(self, config: WorldConfig) -> np.ndarray:
        """Frame 0 (H, W, 3) uint8, rendered."""
        size = config.height, config.width
        return render(self.place, self.c2w[:1], intrinsics(*size), *size, depth=False)[0][0]


def known_places(config: WorldConfig) -> list[str]:
    """Names of the places of a world that can be rendered.

    Raises:
        ValueError: where there are none.
    """
    names = [name for name in PLACES if name in config.places]
    if not names:
        raise ValueError(f"The {config.name} world knows none of the places that can be rendered: {', '.join(PLACES)}.")
    return names


def draw_walk(
    config: WorldConfig, seed: int, index: int, frames: int, known: bool = True, role: str = "evaluate"
) -> Walk:
    """Walk `index` of (role, seed), `frames` frames long."""
    rng = random_stream(role, seed, index)
    episode, layout = int(rng.integers(1 << 62)), int(rng.integers(1 << 40))
    here = place(str(rng.choice(known_places(config)))) if known else random_place(room_seed(role, layout))
    return Walk(here, sample_path(here, sample_start(here, rng), rng, frames), episode, known)


def pooled_psnr(a: np.ndarray, b: np.ndarray) -> float:
    """One mean squared error over all values 0..255, then decibels; 100 for none."""
    return decibels(np.square(a.astype(np.int32) - b).mean())


def decibels(error: float, count: float = 1) -> float:
    """PSNR of a sum of squared errors over so many values 0..255, or of their mean; 100 for no error."""
    return 100.0 if error == 0 else float(10 * np.log10(255**2 * count / error))


def gradient(frames: np.ndarray) -> float:
    """Sum of gradient magnitudes of the luminance (mean of the channels) of images (..., H, W, 3)."""
    grey = frames.mean(-1, dtype=np.float32)
    across, down = np.diff(grey, axis=-1)[..., :-1, :], np.diff(grey, axis=-2)[..., :-1]
    return float(np.hypot(across, down).sum(dtype=np.float64))


def shrink(frames: np.ndarray, times: int) -> np.ndarray:
    """Means over times x times pixels of images (..., H, W, 3), uint8."""
    *lead, height, width, _ = frames.shape
    cut = frames.reshape(*lead, height // times, times, width // times, times, 3)
    return cut.mean((-4, -2)).round().astype(np.uint8)


def enlargement(height: int, width: int) -> int:
    """How many times 64 x 96 an image is, 1 where that is no whole number."""
    return 1 if height % HEIGHT or width % WIDTH or height * WIDTH != width * HEIGHT else height // HEIGHT
