"""What drives an episode when nobody does: scripts, from text, files or functions.

orbit:radius=2,degrees=90      a scripted camera of `cameras`
w-48,dw-24                     held keys
paths/loop.npz                 a trajectory in any format of docs/trajectories.md, followed as it is
walk                           a random walk in the environment's own actions, drawn from the job's seed
"""

import hashlib
import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from sanawm_env.agents import cameras

from sanawm_env.camera.dsl import FPS, actions_to_c2w
from sanawm_env.camera.trajectory import Trajectory, load_trajectory, orthonormalize, relative_to_first, whole_chunks
from sanawm_env.envs.env import SanaWMEnv
from sanawm_env.world.config import WorldConfig

CHUNKS = 8  # 12 seconds


class Script(ABC):
    """Drives one episode. name: how manifests call it. key: what tells it from any other script."""

    if TYPE_CHECKING:  # an attribute, or a field of a frozen dataclass

        @property
        def name(self) -> str: ...

    @property
    def key(self) -> str:
        """What tells a script from others, in the ids of jobs."""
        return self.name

    def length(self, chunks: int | None, config: WorldConfig) -> int:
        """Chunks of an episode, where `chunks` are asked for: at most so many, fewer if the script ends before. None:
        all of a script that ends, `CHUNKS` of others."""
        return CHUNKS if chunks is None else chunks

    def path(self, chunks: int, seed: int, config: WorldConfig) -> NDArray | None:
        """Poses (1 + 24 chunks, 4, 4) relative to the first, where they are known beforehand."""
        return None

    @abstractmethod
    def actions(self, env: SanaWMEnv, chunks: int, seed: int) -> Iterator[Any]:
        """Actions of an environment that has just been reset; each is asked for after the step of the one before."""


class PathScript(Script):
    """A script whose poses are known beforehand; it drives the action modes "poses" and "twist"."""

    @abstractmethod
    def path(self, chunks: int, seed: int, config: WorldConfig) -> NDArray:
        """As of any script, and never None."""

    def actions(self, env: SanaWMEnv, chunks: int, seed: int) -> Iterator[Any]:
        return cameras.actions(self.path(chunks, seed, env.world.config), env)


@dataclass(frozen=True)
class Filmed(PathScript):
    """A scripted camera. seeded: its own seed is the job's."""

    name: str
    camera: cameras.Camera
    seeded: bool = False

    def path(self, chunks: int, seed: int, config: WorldConfig) -> NDArray:
        camera = replace(self.camera, seed=seed) if self.seeded else self.camera
        return camera.poses(1 + chunks * config.chunk_frames, config.fps)


@dataclass(frozen=True, eq=False)
class Given(PathScript):
    """Poses (F, 4, 4) relative to the first, which is left out of the chunks; the last one is repeated to fill one."""

    name: str
    c2w: NDArray

    @property
    def key(self) -> str:
        return f"{self.name} {hashlib.sha256(self.c2w.tobytes()).hexdigest()}"

    def length(self, chunks: int | None, config: WorldConfig) -> int:
        whole = len(whole_chunks(self.c2w, config.chunk_frames)) // config.chunk_frames
        return whole if chunks is None else min(chunks, whole)

    def path(self, chunks: int, seed: int, config: WorldConfig) -> NDArray:
        poses = whole_chunks(self.c2w, config.chunk_frames)[: chunks * config.chunk_frames]
        return np.concatenate((self.c2w[:1], poses))


@dataclass(frozen=True)
class WalkActions(Script):
    """Random actions of a walk: forwards, with turns."""

    name: str = "walk"

    def actions(self, env: SanaWMEnv, chunks: int, seed: int) -> Iterator[Any]:
        return iter(env.controller.sample_walk_actions(np.random.default_rng(seed), chunks))


@dataclass(frozen=True)
class Policy(Script):
    """A function of one's own: given the environment and a generator of random numbers, it yields actions; each time it
    is asked for one, the environment stands where the last one has led."""

    name: str
    function: Callable[[SanaWMEnv, np.random.Generator], Iterator[Any]]

    def actions(self, env: SanaWMEnv, chunks: int, seed: int) -> Iterator[Any]:
        return self.function(env, np.random.default_rng(seed))


def read_script(text: str, folder: Path, pitch_limit_deg: float, fps: float = FPS) -> Script:
    """The script of a text, see above; files are looked for in `folder`. pitch_limit_deg: of looking up by keys. fps:
    of the world.

    Raises FileNotFoundError or ValueError in one sentence.
    """
    name = text.partition(":")[0]
    if name == WalkActions.name:
        return WalkActions()
    if name in cameras.CAMERAS:
        camera = cameras.parse(text)
        seeded = "seed" in [field.name for field in fields(camera)] and "seed=" not in text
        return Filmed(text, camera, seeded)
    if Path(text).suffix.lower() in (".npz", ".npy") or (Path(text).suffix and (folder / text).is_file()):
        return Given(text, read_path(folder / text, fps))
    try:
        return Given(text, actions_to_c2w(text, pitch_limit_deg=pitch_limit_deg, fps=fps).astype(np.float64))
    except ValueError as error:
        if os.path.isdir(folder / text):  # of COLMAP, say
            return Given(text, read_path(folder / text, fps))
        known = ", ".join((*cameras.CAMERAS, WalkActions.name))
        raise ValueError(
            f"There is no camera {text!r}: give {known}, the file of a trajectory, or keys such as "
            f'"w-48,dw-24" ({error}).'
        ) from None


def read_path(path: Path, fps: float = FPS) -> NDArray:
    """Poses (F, 4, 4) float64 of a trajectory file, relative to the first, `fps` a second. Errors of
    `load_trajectory`."""
    return followed(load_trajectory(path), fps, path)


def followed(given: Trajectory, fps: float, name: Any) -> NDArray:
    """Poses (F, 4, 4) float64 of a trajectory, relative to the first, `fps` a second: one that says another rate is
    brought to it, and that is logged. name: of the file."""
    taken = given.at(fps)
    if taken is not given:
        logging.getLogger(__name__).warning(
            "%s has %g poses a second: its %d are brought to %d, %g a second.",
            name, given.fps, len(given.c2w), len(taken.c2w), fps,
        )  # fmt: skip
    return relative_to_first(np.stack([orthonormalize(pose) for pose in taken.c2w]))
