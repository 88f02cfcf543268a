"""Scripts: what moves the camera of an episode that is collected. They are made from text, files or functions.

- `orbit:radius=2,degrees=90`: a scripted camera of `cameras`.
- `w-48,dw-24`: held keys.
- `paths/loop.npz`: a trajectory in any format of docs/trajectories.md.
- `walk`: a random walk in the environment's own actions, drawn from the job's seed.
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
from sanawm_env.system.files import brief
from sanawm_env.world.config import WorldConfig

CHUNKS = 8  # 12 seconds


class Script(ABC):
    """Moves the camera of one episode.

    Attributes:
        name: of the script, in manifests.
        key: text that is different for every script.
    """

    if TYPE_CHECKING:  # an attribute, or a field of a frozen dataclass

        @property
        def name(self) -> str: ...

    @property
    def key(self) -> str:
        """Text that is different for every script; part of the ids of jobs."""
        return self.name

    def length(self, chunks: int | None, config: WorldConfig) -> int:
        """Chunks of an episode.

        Args:
            chunks: how many are asked for; None for all of a script that ends, or `CHUNKS` of one that does not.
            config: of the world.

        Returns:
            At most `chunks`; fewer if the script ends before.
        """
        return CHUNKS if chunks is None else chunks

    def path(self, chunks: int, seed: int, config: WorldConfig) -> NDArray | None:
        """The poses (1 + chunks * chunk_frames, 4, 4) of the script relative to the first; None if they are not known
        beforehand.
        """
        return None

    @abstractmethod
    def actions(self, env: SanaWMEnv, chunks: int, seed: int) -> Iterator[Any]:
        """The actions of the script.

        Args:
            env: an environment that has just been reset.
            chunks: of the episode.
            seed: for scripts that draw random numbers.

        Yields:
            Actions; each one is taken by the environment before the next is asked for.
        """


class PathScript(Script):
    """A script with known poses, for the action modes "poses" and "twist"."""

    @abstractmethod
    def path(self, chunks: int, seed: int, config: WorldConfig) -> NDArray:
        """The poses (1 + chunks * chunk_frames, 4, 4) of the script, relative to the first."""

    def actions(self, env: SanaWMEnv, chunks: int, seed: int) -> Iterator[Any]:
        return cameras.actions(self.path(chunks, seed, env.world.config), env)


@dataclass(frozen=True)
class Filmed(PathScript):
    """A scripted camera.

    Attributes:
        name: the text that it was made from.
        camera: the camera.
        seeded: whether the job's seed replaces the camera's.
    """

    name: str
    camera: cameras.Camera
    seeded: bool = False

    def path(self, chunks: int, seed: int, config: WorldConfig) -> NDArray:
        camera = replace(self.camera, seed=seed) if self.seeded else self.camera
        return camera.poses(1 + chunks * config.chunk_frames, config.fps)


@dataclass(frozen=True, eq=False)
class Given(PathScript):
    """A path of given poses. The last pose is repeated to fill the last chunk.

    Attributes:
        name: of the file.
        c2w: (F, 4, 4) relative to the first pose, which is frame 0.
    """

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
    """Random actions of a walk: forward, with turns."""

    name: str = "walk"

    def actions(self, env: SanaWMEnv, chunks: int, seed: int) -> Iterator[Any]:
        return iter(env.controller.sample_walk_actions(np.random.default_rng(seed), chunks))


@dataclass(frozen=True)
class Policy(Script):
    """A function that yields actions.

    Attributes:
        name: of the script.
        function: takes the environment and a random generator, and yields actions. When it is asked for the next
            action, the environment has taken the last one.
    """

    name: str
    function: Callable[[SanaWMEnv, np.random.Generator], Iterator[Any]]

    def actions(self, env: SanaWMEnv, chunks: int, seed: int) -> Iterator[Any]:
        return self.function(env, np.random.default_rng(seed))


def read_script(text: str, folder: Path, pitch_limit_deg: float, fps: float = FPS) -> Script:
    """Make a script from text, see the module's docstring.

    Args:
        text: name of a camera, keys, or a file.
        folder: where files are looked up.
        pitch_limit_deg: bound of looking up and down by keys.
        fps: poses per second of the world.

    Raises:
        ValueError: for text that is no script, and as `load_trajectory`.
        FileNotFoundError: as `load_trajectory`.
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
            f"There is no camera {brief(text)}: give {known}, the file of a trajectory, or keys such as "
            f'"w-48,dw-24" ({error}).'
        ) from None


def read_path(path: Path, fps: float = FPS) -> NDArray:
    """Read a trajectory file as poses (F, 4, 4) float64 relative to the first, `fps` per second.

    Raises:
        FileNotFoundError: as `load_trajectory`.
        ValueError: likewise.
    """
    return followed(load_trajectory(path), fps, path)


def followed(given: Trajectory, fps: float, name: Any) -> NDArray:
    """The poses of a trajectory (F, 4, 4) float64 relative to the first, resampled to `fps` per second if it has
    another rate, which is logged.

    Args:
        given: the trajectory.
        fps: poses per second.
        name: of the file, for the log.
    """
    taken = given.at(fps)
    if taken is not given:
        logging.getLogger(__name__).warning(
            "%s has %g poses per second: its %d are resampled to %d, %g per second.",
            name, given.fps, len(given.c2w), len(taken.c2w), fps,
        )  # fmt: skip
    return relative_to_first(np.stack([orthonormalize(pose) for pose in taken.c2w]))
