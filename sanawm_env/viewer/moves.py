"""Moves: how a chunk is driven, as parts that together last a chunk.

A part holds keys ("w-10,wd-14" in the grammar of action strings) or a body twist for some frames, or follows poses. A
chunk can be cut at any frame and continued in another way, which is how a key that is pressed in the middle of a chunk
is answered at once.
"""

from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sanawm_env.camera import twist
from sanawm_env.camera.dsl import KeyState, hold_keys, parse_actions
from sanawm_env.camera.presets import KEY_ORDER, Workspace, pitch_of
from sanawm_env.simulation.controllers import Keys, Poses, Twist, make_controller
from sanawm_env.world.config import WorldConfig


@dataclass(frozen=True)
class Held:
    """Keys (of wasdijkl, or none) held for some frames.

    Attributes:
        keys: the keys.
        frames: how many.
    """

    keys: frozenset[str]
    frames: int

    @property
    def text(self) -> str:
        """The part as an action string, such as "w-24"."""
        return f"{''.join(key for key in KEY_ORDER if key in self.keys) or 'none'}-{self.frames}"


@dataclass(frozen=True)
class Pushed:
    """A body twist held for some frames.

    Attributes:
        twist: six numbers in [-1, 1], as an environment takes them.
        frames: how many.
    """

    twist: tuple[float, ...]
    frames: int

    @property
    def text(self) -> str:
        return f"twist-{self.frames}"


@dataclass(frozen=True, eq=False)
class Followed:
    """Poses that are followed as they are.

    Attributes:
        c2w: (F, 4, 4) camera-to-world, relative to the scene's frame 0.
    """

    c2w: NDArray

    @property
    def frames(self) -> int:
        return len(self.c2w)

    @property
    def text(self) -> str:
        return f"path-{self.frames}"


Part = Held | Pushed | Followed
Parts = tuple[Part, ...]


def as_parts(move: str | ArrayLike | Parts, frames: int) -> Parts:
    """A move as parts.

    Args:
        move: an action string, a twist (6,) in [-1, 1], poses (frames, 4, 4), or parts.
        frames: that the move must last.

    Raises:
        ValueError: for another length or shape.
        TypeError: for another type.
    """
    if isinstance(move, str):
        parts: Parts = tuple(Held(keys, length) for keys, length in parse_actions(move))
    elif isinstance(move, tuple) and move and all(isinstance(part, Part) for part in move):
        parts = cast(Parts, move)
    else:
        array = np.asarray(move)
        if array.dtype.kind not in "fiu":
            raise TypeError(f"A move must be an action string, a twist, poses or parts, got {type(move).__name__}.")
        if array.shape == (6,):
            parts = (Pushed(tuple(array.astype(float).tolist()), frames),)
        elif array.shape == (frames, 4, 4):
            parts = (Followed(array.astype(np.float64)),)
        else:
            raise ValueError(f"A move must be six numbers or poses ({frames}, 4, 4), got the shape {array.shape}.")
    total = sum(part.frames for part in parts)
    if total != frames:
        raise ValueError(f"A move must last {frames} frames, got {total}: write for example 'w-{frames}'.")
    return parts


def cut(parts: Parts, frames: int) -> Parts:
    """The first `frames` frames of parts."""
    kept = []
    for part in parts:
        own = max(0, min(frames, part.frames))
        frames -= own
        if own:
            kept.append(Followed(part.c2w[:own]) if isinstance(part, Followed) else replace(part, frames=own))
    return tuple(kept)


def text(parts: Parts) -> str:
    """Parts as text, such as "w-10,wd-14"."""
    return ",".join(part.text for part in parts)


@dataclass(frozen=True)
class Controllers:
    """The controllers of a world, which define speeds and limits of parts.

    Attributes:
        keys: of held keys.
        twist: of twists.
        poses: of poses.
    """

    keys: Keys
    twist: Twist
    poses: Poses

    @classmethod
    def of(cls, config: WorldConfig, speed: str | None = None) -> "Controllers":
        """The controllers of a world.

        Args:
            config: of the world.
            speed: name of a speed preset; None for the world's own.

        Raises:
            ValueError: for an unknown preset.
        """

        made: Any = (make_controller(mode, config, speed) for mode in ("keys", "twist", "poses"))
        return cls(*made)

    @property
    def workspace(self) -> Workspace:
        """Where the camera may go."""
        return self.poses.workspace

    def move(self, parts: Parts, c2w: NDArray, keys: KeyState | None) -> tuple[NDArray, KeyState | None]:
        """Poses of parts.

        Args:
            parts: of the chunk.
            c2w: (4, 4), the pose before.
            keys: the state of held keys, or None.

        Returns:
            Poses (F, 4, 4), and the state of held keys (None after other parts).

        Raises:
            ValueError: for poses that are not rigid or too far away, and a wrong twist.
            TypeError: for a twist of another type.
        """
        path = []
        for part in parts:
            if isinstance(part, Held):
                state = keys if keys is not None else KeyState(c2w, float(pitch_of(c2w)))
                state = state.at(c2w)
                keys, poses = hold_keys(state, part.keys, part.frames, self.keys.dynamics)
            elif isinstance(part, Pushed):
                keys, poses = None, self._push(part, c2w)
            else:
                keys, poses = None, part.c2w
            c2w = poses[-1]
            path.append(poses)
        _, checked = self.poses.move(None, c2w, np.concatenate(path))
        return checked, keys

    def _push(self, part: Pushed, c2w: NDArray) -> NDArray:
        wanted, _ = self.twist.move(self.twist.start(), c2w, part.twist)
        return self.workspace.confine(c2w, twist.hold(c2w, wanted, part.frames, fps=self.twist.fps))
