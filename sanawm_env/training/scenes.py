"""Start images in the places that a world knows."""

from pathlib import Path

from sanawm_env.training.truth import draw_walk
from sanawm_env.world.anchor import Anchor
from sanawm_env.world.config import WorldConfig
from sanawm_env.world.images import save_start


def sample_starts(config: WorldConfig, count: int, seed: int, folder: Path) -> list[Path]:
    """Write start images as PNGs, each with the pose where it was taken. No training or evaluation uses these poses.
    The same seed gives the same files.

    Args:
        config: of the world.
        count: how many.
        seed: of the poses.
        folder: where to; made if missing.

    Returns:
        Their paths.

    Raises:
        ValueError: for a world without known places.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for index in range(count):
        walk, path = draw_walk(config, seed, index, 1, role="collect"), folder / f"sample-{seed}-{index:05d}.png"
        if not path.exists():
            save_start(walk.first_frame(config), Anchor(walk.place.name, walk.c2w[0]), path)
        paths.append(path)
    return paths
