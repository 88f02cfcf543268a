"""Scripted cameras: paths with a name, to drive an environment or to collect clips with.

A camera is a frozen dataclass; `poses(frames)` is its path, (frames, 4, 4) camera-to-world relative to frame 0 (the
identity), OpenCV axes (right, down, forward), metres, at 16 frames per second. `actions(poses, env)` turns a path into
an environment's actions, and `parse("orbit:radius=2,degrees=90")` makes a camera from text.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any, ClassVar, cast

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import CubicSpline
from scipy.spatial.transform import RigidTransform, Rotation, Slerp

from sanawm_env.camera.dsl import FPS, MAX_FRAMES
from sanawm_env.camera.trajectory import check_trajectory
from sanawm_env.envs.env import SanaWMEnv
from sanawm_env.simulation.controllers import Twist
from sanawm_env.system.files import brief, check_count, check_number
from sanawm_env.world.state import MAX_SEED

WALK, TURN = 0.6, 12.0  # metres and degrees per second: what cameras are bounded to, well within what worlds know
SPEEDS = {"speed": WALK, "rate": TURN, "turn": TURN}  # parameters that may be negative or zero, and their bounds


class Camera(ABC):
    """A path. Subclasses say where the camera is (F, 3) and how it turns after `seconds` (F,).

    Raises ValueError in one sentence for a parameter that is not finite, a size that is not above zero, or a speed
    above `WALK` or `TURN`.
    """

    __dataclass_fields__: ClassVar[dict[str, Any]]  # subclasses are dataclasses

    def poses(self, frames: int, fps: float = FPS) -> NDArray:
        """(frames, 4, 4) float64 c2w, `fps` a second, the first one the identity. ValueError for fewer than one."""
        frames = check_count("The number of frames of a path", frames, 1, MAX_FRAMES)
        positions, rotations = self.path(np.arange(frames) / fps)
        c2w = np.tile(np.eye(4), (frames, 1, 1))
        c2w[:, :3, :3], c2w[:, :3, 3] = rotations.as_matrix(), positions
        return np.linalg.inv(c2w[0]) @ c2w

    @abstractmethod
    def path(self, seconds: NDArray) -> tuple[NDArray, Rotation]:
        """Positions (F, 3) and rotations (F) after so many seconds."""

    def __post_init__(self):
        for field in fields(self):
            name, value = field.name, getattr(self, field.name)
            if field.type is int:
                check_count(f"{name} of a camera", value, 0, MAX_SEED)
            elif field.type is not float:
                continue
            check_number(f"{name} of a camera", value)
            if name in SPEEDS:
                _bounded(value, SPEEDS[name])
            elif value < 0 or (value == 0 and name != "seed"):
                raise ValueError(f"{name} of a camera must be above zero, got {value:g}.")


def _headings(degrees: NDArray) -> Rotation:
    """Turns to the right, about the axis that points down."""
    return Rotation.from_rotvec(np.outer(np.radians(degrees), [0, 1, 0]))


def _there_and_back(distance: NDArray, length: float) -> NDArray:
    """0 to `length` and back again, as the distance walked grows; mirrored for a negative one."""
    return np.sign(distance) * (length - np.abs(np.abs(distance) % (2 * length) - length))


@dataclass(frozen=True)
class Dolly(Camera):
    """Straight on (negative: back), metres per second."""

    speed: float = 0.4

    def path(self, seconds):
        return np.outer(self.speed * seconds, [0, 0, 1]), _headings(0 * seconds)


@dataclass(frozen=True)
class Orbit(Camera):
    """On an arc of `degrees` there and back around a point `radius` metres ahead, which stays in the middle."""

    radius: float = 1.5
    degrees: float = 60.0
    speed: float = 0.3

    def path(self, seconds):
        rate = np.clip(np.degrees(self.speed / self.radius), -TURN, TURN)
        angle = _there_and_back(rate * seconds, self.degrees)
        turn = np.radians(angle)
        around = np.stack((-np.sin(turn), 0 * turn, 1 - np.cos(turn)), axis=-1)
        return self.radius * around, _headings(angle)


@dataclass(frozen=True)
class LookAround(Camera):
    """On the spot: `degrees` to the right, back, and so on."""

    degrees: float = 90.0
    rate: float = 10.0

    def path(self, seconds):
        return np.zeros((len(seconds), 3)), _headings(_there_and_back(self.rate * seconds, self.degrees))


@dataclass(frozen=True)
class ThereAndBack(Camera):
    """`distance` metres on and back on the same line, looking ahead all the time: what loops are measured with."""

    distance: float = 1.0
    speed: float = 0.4

    def path(self, seconds):
        walked = _there_and_back(self.speed * seconds, self.distance)
        return np.outer(walked, [0, 0, 1]), _headings(0 * seconds)


@dataclass(frozen=True)
class LawnMower(Camera):
    """Rows of `length` metres sideways, `step` metres apart and forwards, looking ahead."""

    length: float = 1.2
    step: float = 0.4
    speed: float = 0.4

    def path(self, seconds):
        number, along = np.divmod(self.speed * seconds, self.length + self.step)
        across = np.minimum(along, self.length)
        x = np.where(number % 2 == 0, across, self.length - across)
        z = self.step * number + np.maximum(along - self.length, 0)
        return np.stack((x, 0 * x, z), axis=-1), _headings(0 * seconds)


@dataclass(frozen=True)
class RandomWalk(Camera):
    """Smooth random turns while walking on; another seed is another walk."""

    seed: int = 0
    speed: float = 0.4
    turn: float = 8.0

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
    """Through key poses (K, 4, 4), `seconds` from each to the next, then standing at the last.

    ValueError for keys that are not rigid poses, or that lie too far apart for that time.
    """

    keys: NDArray
    seconds: float = 3.0

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
"""By name, for those whose parameters are numbers."""


def parse(text: str) -> Camera:
    """A camera from "name" or "name:parameter=number,...". ValueError in one sentence for anything else."""
    if not isinstance(text, str):
        raise TypeError(f'A camera is given as text, such as "orbit:radius=2", got {brief(text)}.')
    name, _, rest = text.partition(":")
    if name not in CAMERAS:
        raise ValueError(f"There is no camera {brief(name)}: cameras are {', '.join(CAMERAS)}.")
    kinds: dict[str, Any] = {field.name: field.type for field in fields(CAMERAS[name])}
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
    """Actions that take an environment along a path (F, 4, 4) whose first pose is frame 0, chunk by chunk.

    In the mode "poses" the poses themselves; in "twist" the constant twist that ends each chunk where the path does,
    clipped to the speed preset (one that cannot roll does not). A last chunk that the path does not fill is left out.
    ValueError for other modes.
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
        raise ValueError(f'Cameras drive the action modes "poses" and "twist", not {env.action_mode!r}.')


def _bounded(value: float, most: float) -> None:
    """ValueError for a speed above what worlds know."""
    if abs(value) > most + 1e-9:
        raise ValueError(f"A camera moves at most {WALK:g} m/s and turns at most {TURN:g} degrees/s, got {value:g}.")
