"""Scripted cameras: named paths to move an environment along, or to collect clips with.

A camera is a frozen dataclass. Its method `poses(frames)` returns camera-to-world matrices (frames, 4, 4), float64,
relative to frame 0, in OpenCV axes (right, down, forward) and metres, 16 per second by default. `parse` makes a camera
from text such as "orbit:radius=2,degrees=90", and `actions` turns a path into the actions of an environment.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Annotated, Any, ClassVar, cast

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from scipy.interpolate import CubicSpline
from scipy.spatial.transform import RigidTransform, Rotation, Slerp

from sanawm_env.camera.dsl import FPS, MAX_FRAMES
from sanawm_env.camera.trajectory import check_trajectory
from sanawm_env.envs.env import SanaWMEnv
from sanawm_env.simulation.controllers import Twist
from sanawm_env.system.files import brief, check_count
from sanawm_env.system.settings import check_fields
from sanawm_env.world.state import MAX_SEED

WALK, TURN = 0.6, 12.0  # metres and degrees per second: what cameras are bounded to, well within what worlds know
Length = Annotated[float, Field(gt=0)]
Speed = Annotated[float, Field(ge=-WALK, le=WALK)]
Rate = Annotated[float, Field(ge=-TURN, le=TURN)]


class Camera(ABC):
    """The base class of scripted cameras. A subclass is a frozen dataclass that implements `path`.

    Parameters are checked when a camera is made: speeds may be negative, a seed may be 0, everything else must be above
    zero.

    Raises:
        ValueError: for a parameter that is not finite, a size that is not above zero, a speed above `WALK` metres per
            second, or a turn rate above `TURN` degrees per second.
    """

    __dataclass_fields__: ClassVar[dict[str, Any]]  # subclasses are dataclasses

    def poses(self, frames: int, fps: float = FPS) -> NDArray:
        """The path as matrices.

        Args:
            frames: how many poses, at least 1.
            fps: poses per second.

        Returns:
            (frames, 4, 4) float64 camera-to-world matrices; the first one is the identity.

        Raises:
            ValueError: for a number of frames below 1.
        """
        frames = check_count("The number of frames of a path", frames, 1, MAX_FRAMES)
        positions, rotations = self.path(np.arange(frames) / fps)
        c2w = np.tile(np.eye(4), (frames, 1, 1))
        c2w[:, :3, :3], c2w[:, :3, 3] = rotations.as_matrix(), positions
        return np.linalg.inv(c2w[0]) @ c2w

    @abstractmethod
    def path(self, seconds: NDArray) -> tuple[NDArray, Rotation]:
        """Where the camera is at given times.

        Args:
            seconds: (F,) ascending times.

        Returns:
            Positions (F, 3) in metres, and F rotations from camera to world.
        """

    def __post_init__(self):
        check_fields(self)


def _headings(degrees: NDArray) -> Rotation:
    """Turns to the right, about the axis that points down."""
    return Rotation.from_rotvec(np.outer(np.radians(degrees), [0, 1, 0]))


def _there_and_back(distance: NDArray, length: float) -> NDArray:
    """0 to `length` and back again, as the distance walked grows; mirrored for a negative one."""
    return np.sign(distance) * (length - np.abs(np.abs(distance) % (2 * length) - length))


@dataclass(frozen=True)
class Dolly(Camera):
    """Moves straight ahead at a constant speed.

    Attributes:
        speed: metres per second; negative values move back.
    """

    speed: Speed = 0.4

    def path(self, seconds):
        return np.outer(self.speed * seconds, [0, 0, 1]), _headings(0 * seconds)


@dataclass(frozen=True)
class Orbit(Camera):
    """Moves back and forth on a circular arc around a point ahead, which stays in the centre of the frame.

    Attributes:
        radius: distance of that point, metres.
        degrees: length of the arc.
        speed: metres per second along the arc; the camera turns by at most `TURN` degrees per second.
    """

    radius: Length = 1.5
    degrees: Length = 60.0
    speed: Speed = 0.3

    def path(self, seconds):
        rate = np.clip(np.degrees(self.speed / self.radius), -TURN, TURN)
        angle = _there_and_back(rate * seconds, self.degrees)
        turn = np.radians(angle)
        around = np.stack((-np.sin(turn), 0 * turn, 1 - np.cos(turn)), axis=-1)
        return self.radius * around, _headings(angle)


@dataclass(frozen=True)
class LookAround(Camera):
    """Stays in place and turns to the right and back, again and again.

    Attributes:
        degrees: largest angle.
        rate: degrees per second; negative values begin to the left.
    """

    degrees: Length = 90.0
    rate: Rate = 10.0

    def path(self, seconds):
        return np.zeros((len(seconds), 3)), _headings(_there_and_back(self.rate * seconds, self.degrees))


@dataclass(frozen=True)
class ThereAndBack(Camera):
    """Moves ahead and back on one line without turning, so that views repeat: for measures of loop closure.

    Attributes:
        distance: metres.
        speed: metres per second; negative values begin backwards.
    """

    distance: Length = 1.0
    speed: Speed = 0.4

    def path(self, seconds):
        walked = _there_and_back(self.speed * seconds, self.distance)
        return np.outer(walked, [0, 0, 1]), _headings(0 * seconds)


@dataclass(frozen=True)
class LawnMower(Camera):
    """Moves along parallel rows, looking ahead: sideways along a row, then forward to the next one.

    Attributes:
        length: metres of a row.
        step: metres from one row to the next.
        speed: metres per second.
    """

    length: Length = 1.2
    step: Length = 0.4
    speed: Speed = 0.4

    def path(self, seconds):
        number, along = np.divmod(self.speed * seconds, self.length + self.step)
        across = np.minimum(along, self.length)
        x = np.where(number % 2 == 0, across, self.length - across)
        z = self.step * number + np.maximum(along - self.length, 0)
        return np.stack((x, 0 * x, z), axis=-1), _headings(0 * seconds)


@dataclass(frozen=True)
class RandomWalk(Camera):
    """Moves forward with smooth random turns.

    Attributes:
        seed: of the turns; each seed gives one path.
        speed: metres per second.
        turn: bound of the random turn rates, degrees per second, between which a cubic spline interpolates.
    """

    seed: Annotated[int, Field(ge=0, le=MAX_SEED)] = 0
    speed: Speed = 0.4
    turn: Rate = 8.0

    def path(self, seconds):
        rng, knots = np.random.default_rng(self.seed), np.arange(0, seconds[-1] + 3, 1.5)
        turns = CubicSpline(knots, rng.uniform(-1, 1, len(knots)) * self.turn)
        apart = np.diff(seconds)
        heading = np.concatenate(([0], np.cumsum(np.clip(turns(seconds[1:]), -TURN, TURN) * apart)))
        ahead = np.radians(heading)
        steps = np.stack((np.sin(ahead), 0 * ahead, np.cos(ahead)), axis=-1)[:-1] * (self.speed * apart[:, None])
        return np.concatenate((np.zeros((1, 3)), np.cumsum(steps, axis=0))), _headings(heading)


@dataclass(frozen=True, eq=False)
class Spline(Camera):
    """Moves through key poses, and stays at the last one. Cubic splines interpolate positions, spherical linear
    interpolation the rotations.

    Attributes:
        keys: (K, 4, 4) camera-to-world matrices, K >= 2.
        seconds: from each key to the next.

    Raises:
        ValueError: from `poses`, for keys that are not rigid poses, or so far apart that the camera would exceed `WALK`
            or `TURN`.
    """

    keys: Any
    seconds: Length = 3.0

    def path(self, seconds):
        keys = np.asarray(self.keys, float)
        if keys.ndim != 3 or keys.shape[1:] != (4, 4) or len(keys) < 2:
            raise ValueError(f"A spline goes through two key poses (K, 4, 4) or more, got the shape {keys.shape}.")
        rotations = Rotation.from_matrix(check_trajectory(keys)[:, :3, :3])
        times = self.seconds * np.arange(len(keys))
        positions, turns = CubicSpline(times, keys[:, :3, 3], bc_type="clamped"), Slerp(times, rotations)
        everywhere = np.linspace(0, times[-1], 100 * len(keys))  # its peaks, whichever frames are asked for
        _bounded(np.linalg.norm(positions(everywhere, 1), axis=1).max(), WALK)
        _bounded(np.degrees((rotations[:-1].inv() * rotations[1:]).magnitude().max()) / self.seconds, TURN)
        at = np.minimum(seconds, times[-1])
        return positions(at), turns(at)


CAMERAS: dict[str, type[Camera]] = {
    "dolly": Dolly, "orbit": Orbit, "look-around": LookAround, "there-and-back": ThereAndBack,
    "lawn-mower": LawnMower, "random-walk": RandomWalk,
}  # fmt: skip
"""Cameras that `parse` makes from text, by name."""


def parse(text: str) -> Camera:
    """Make a camera from text.

    Args:
        text: "name" or "name:parameter=number,...", where the name is a key of `CAMERAS`.

    Raises:
        TypeError: for anything but text.
        ValueError: for an unknown name or parameter, or a value that the camera does not take.
    """
    if not isinstance(text, str):
        raise TypeError(f'A camera is given as text, such as "orbit:radius=2", got {brief(text)}.')
    name, _, rest = text.partition(":")
    if name not in CAMERAS:
        raise ValueError(f"There is no camera {brief(name)}: give {', '.join(CAMERAS)}.")
    kinds = {field.name: type(field.default) for field in fields(CAMERAS[name])}
    given = {}
    for part in filter(None, rest.split(",")):
        key, equals, value = part.partition("=")
        if key not in kinds or not equals:
            raise ValueError(f"The camera {name} takes {', '.join(kinds)} as name=number, got {brief(part)}.")
        if key in given:
            raise ValueError(f"The camera {name} takes {key} once, got {brief(text)}.")
        try:
            given[key] = kinds[key](value)
        except ValueError:
            whole = "a whole number" if kinds[key] is int else "a number"
            raise ValueError(f"{key} of the camera {name} must be {whole}, got {brief(value)}.") from None
    return CAMERAS[name](**given)


def actions(poses: NDArray, env: SanaWMEnv) -> Iterator[NDArray]:
    """The actions that move an environment along a path, one per chunk.

    In the action mode "poses" an action is the poses themselves. In "twist" it is the constant twist that ends the
    chunk where the path does, as a share of the speed preset and clipped to [-1, 1]; axes that the preset does not move
    stay 0. Poses at the end that do not fill a chunk are left out.

    Args:
        poses: (F, 4, 4) camera-to-world matrices; the first one is frame 0.
        env: an environment with action mode "poses" or "twist".

    Yields:
        Arrays (chunk_frames, 4, 4) for "poses", or (6,) float32 for "twist".

    Raises:
        ValueError: for another action mode.
    """
    size = env.world.config.chunk_frames
    chunks = [poses[i - 1 : i + size] for i in range(1, len(poses) - size + 1, size)]
    if env.action_mode == "poses":
        yield from (chunk[1:] for chunk in chunks)
    elif env.action_mode == "twist":
        full = cast(Twist, env.controller).speed.scale(np.ones(6))
        for chunk in chunks:
            moved = RigidTransform.from_matrix(np.linalg.inv(chunk[0]) @ chunk[-1]).as_exp_coords()
            twist = np.roll(moved, 3) / (size / env.world.config.fps)
            share = np.divide(twist, full, out=np.zeros(6), where=full > 0)
            yield np.clip(share, -1, 1).astype(np.float32)
    else:
        raise ValueError(f'A camera needs the action_mode "poses" or "twist", got {env.action_mode!r}.')


def _bounded(value: float, most: float) -> None:
    """ValueError for a speed or turn rate above its bound."""
    if abs(value) > most + 1e-9:
        raise ValueError(f"A camera moves at most {WALK:g} m/s and turns at most {TURN:g} degrees/s, got {value:g}.")
