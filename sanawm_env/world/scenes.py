"""Endless sets of start images, which an engine draws by number, such as "rooms:train" and "rooms:test"."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from sanawm_env.camera.intrinsics import intrinsics_from_fov
from sanawm_env.system.files import brief
from sanawm_env.world.anchor import Anchor
from sanawm_env.world.config import WorldConfig
from sanawm_env.world.engine import engine_type, known_engines


class Start(NamedTuple):
    """A start image.

    Attributes:
        image: (H, W, 3) uint8, of the size of the world's frames.
        anchor: where it was taken; None where the world does not know the place.
    """

    image: np.ndarray
    anchor: Anchor | None


@dataclass(frozen=True)
class DrawnScenes:
    """A set of start images, as a sequence of `count` members. Sets of different splits have nothing in common (Cobbe
    et al. 2020, Procgen).

    Attributes:
        engine: name of the engine that draws them.
        split: name of the set.
        count: number of members, more than are ever drawn.
    """

    engine: str
    split: str
    count: int

    @classmethod
    def named(cls, text: str) -> "DrawnScenes | None":
        """The set of a name such as "rooms:train"; None for text that does not begin with an engine's name and a colon.

        Raises:
            ValueError: for an unknown set of an engine. The message lists its sets.
        """
        engine, colon, split = text.partition(":")
        if not colon or engine not in known_engines():
            return None
        splits = engine_type(engine).splits
        if split not in splits:
            names = ", ".join(f"{engine}:{name}" for name in splits) or "none"
            raise ValueError(f"There are no start images {brief(text)}; of the engine {engine} there are {names}.")
        return cls(engine, split, splits[split])

    def __str__(self) -> str:
        return f"{self.engine}:{self.split}"

    def __len__(self) -> int:
        return self.count

    def start(self, number: int, config: WorldConfig) -> Start:
        """Member `number` for a world. It depends on the split and the number alone."""
        intrinsics = intrinsics_from_fov(config.horizontal_fov, config.width, config.height)
        kind = engine_type(self.engine)
        image, anchor = kind.draw_start(self.split, number, config.height, config.width, intrinsics.astype(np.float64))
        return Start(image, anchor if config.knows(anchor.place) else None)
