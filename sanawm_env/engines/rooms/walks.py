"""Where a camera may stand in a place, and how it moves: the walks of training and evaluation."""

import numpy as np
from scipy.spatial.transform import Rotation

from sanawm_env.camera.dsl import FPS, TAU_PRESS, KeyDynamics, KeyState, hold_keys
from sanawm_env.camera.twist import hold
from sanawm_env.engines.rooms.raycast import Place, intrinsics, trace, turn

CHUNK = 24  # frames
CLEARANCE, START_CLEARANCE = 0.35, 0.7  # metres between the camera and walls or furniture: on a path, at its start
SWEEP = 0.1  # metres along an axis between the spots of a step that are looked at
START_DEPTH = 2.0  # metres, median of what a start sees
EYE_LOW, EYE_HIGH = 0.5, 2.3  # metres above the floor
PITCH_LIMIT, ROLL_LIMIT = np.deg2rad(40.0), np.deg2rad(25.0)

_KEY_HABITS = {"wwws": 0.6, "jl": 0.25, "ad": 0.5, "ik": 0.25}  # one key of each group, and how often


def clearance(place: Place, position: np.ndarray) -> float:
    """Distance in metres from `position` (3,) to the nearest wall or piece of furniture; negative inside one."""
    walls = (place.half[0] - np.abs(position - place.centre[0]))[[0, 2]].min()
    c, s = np.cos(place.yaw[1:]), np.sin(place.yaw[1:])
    x, y, z = (position - place.centre[1:]).T
    outside = np.abs(np.stack([c * x - s * z, y, s * x + c * z], -1)) - place.half[1:]
    gaps = np.linalg.norm(np.maximum(outside, 0), axis=-1) + np.minimum(outside.max(-1), 0)
    return float(min(walls, gaps.min(initial=np.inf)))


def held_clear(place: Place, start: np.ndarray, path: np.ndarray) -> np.ndarray:
    """How far obstacles hold a camera back. A step that leads nearer than 0.35 m to anything, floor and ceiling
    included, is not taken, nor one that leads even nearer where the camera is that near already. Each step is as long
    as requested, so a held camera goes on from where it is.

    Args:
        place: with the obstacles.
        start: (3,), where the camera is.
        path: (F, 3), requested positions.

    Returns:
        (F, 3), metres from the actual position to the requested one.
    """

    def gap(position: np.ndarray) -> float:
        height = place.half[0, 1] - abs(position[1] - place.centre[0, 1])
        return min(clearance(place, position), height)

    behind, here = np.zeros_like(path), start
    stays = np.zeros(3)
    for f, asked in enumerate(path):
        target = asked + stays
        least = min(CLEARANCE, gap(here))
        parts = int(min(np.abs(target - here).max() / SWEEP, 1000))  # a step may be long enough to cross furniture
        if gap(target) < least or any(gap(p) < least for p in np.linspace(here, target, parts + 1, endpoint=False)[1:]):
            stays = here - asked
        else:
            here = target
        behind[f] = stays
    return behind


def sample_start(place: Place, rng: np.random.Generator) -> np.ndarray:
    """A level camera pose with a random heading, 0.7 m clear of everything, with a median depth of at least 2 m.

    Args:
        place: to start in.
        rng: that it is drawn from.

    Returns:
        (4, 4) float64.

    Raises:
        RuntimeError: for a place without such a pose.
    """
    for _ in range(1000):
        reach = place.half[0, [0, 2]] - START_CLEARANCE
        x, z = rng.uniform(-reach, reach)
        eye = rng.uniform(1.4, 1.6)
        # clear of furniture at every height below the eye, so that a start never hovers over a table
        if min(clearance(place, np.array([x, -h, z])) for h in (0.2, 0.7, 1.2, eye)) < START_CLEARANCE:
            continue
        pose = np.eye(4)
        pose[:3, :3], pose[:3, 3] = turn(rng.uniform(-np.pi, np.pi)), (x, -eye, z)
        if np.median(trace(place, pose, intrinsics(16, 24), 16, 24)[0]) >= START_DEPTH:
            return pose
    raise RuntimeError(f"Found no start in the place {place.name!r}: it is too crowded.")


def sample_path(place: Place, start: np.ndarray, rng: np.random.Generator, num_frames: int) -> np.ndarray:
    """A walk through a place. A third of the walks each: held keys (camera.md 2), held keys with vertical motion and
    roll, one body twist per chunk of 24 frames (camera.md 8.2). A step that would come closer than 0.35 m to anything
    is not taken (the turn is).

    Args:
        place: to walk in.
        start: (4, 4), the first pose, which should be level.
        rng: that it is drawn from.
        num_frames: of the walk.

    Returns:
        (num_frames, 4, 4) float64.
    """
    kind = rng.integers(3)
    for _ in range(4):  # prefer walks that seldom run against things
        free = _twist_walk(start, rng, num_frames) if kind == 2 else _key_walk(start, rng, num_frames)
        if kind == 1:
            free = _enliven(free, rng)
        path, blocked = free.copy(), 0
        for f in range(1, num_frames):
            target = path[f - 1, :3, 3] + free[f, :3, 3] - free[f - 1, :3, 3]
            allowed = EYE_LOW <= -target[1] <= EYE_HIGH and clearance(place, target) >= CLEARANCE
            path[f, :3, 3] = target if allowed else path[f - 1, :3, 3]
            blocked += not allowed
        if blocked <= num_frames // 8:
            break
    return path


def _key_walk(start: np.ndarray, rng: np.random.Generator, num_frames: int) -> np.ndarray:
    """Random keys held for 12 to 48 frames each, at 0.6 to 1.8 times the official speed."""
    speed = rng.uniform(0.6, 1.8)
    dynamics = KeyDynamics(0.025 * speed, 0.6 * speed, np.rad2deg(PITCH_LIMIT))
    state, walked, count = KeyState(pose=start), [start[None]], 1
    while count < num_frames:
        keys = {rng.choice(list(pair)) for pair, often in _KEY_HABITS.items() if rng.random() < often}
        frames = min(int(rng.integers(12, 49)), num_frames - count)
        state, poses = hold_keys(state, keys if rng.random() > 0.15 else (), frames, dynamics)
        walked.append(poses)
        count += frames
    return np.concatenate(walked)


def _enliven(path: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The same walk with smooth rising, sinking and rolling added."""
    wanted, rate = np.zeros((len(path), 2)), np.zeros((len(path), 2))  # per frame: metres down, radians clockwise
    f = 1
    while f < len(path):
        length = rng.integers(12, 49)
        wanted[f : f + length] = rng.uniform(0.5, 1.8) * rng.integers(-1, 2, 2) * (0.0125, np.deg2rad(0.15))
        f += length
    for f in range(1, len(path)):
        rate[f] = rate[f - 1] + (wanted[f] - rate[f - 1]) * (1 - np.exp(-1 / (FPS * TAU_PRESS)))
    sink, roll = np.cumsum(rate, 0).T
    lively = path.copy()
    rolling = np.outer(np.clip(roll, -ROLL_LIMIT, ROLL_LIMIT), (0, 0, 1))
    lively[:, :3, :3] = path[:, :3, :3] @ Rotation.from_rotvec(rolling).as_matrix()
    lively[:, 1, 3] += sink
    return lively


def _twist_walk(start: np.ndarray, rng: np.random.Generator, num_frames: int) -> np.ndarray:
    """One random body twist per chunk within the standard bounds of camera.md 8.3, as agents act."""
    bounds = np.array([0.8, 0.4, 0.8, *np.deg2rad([19.2, 19.2, 4.8])])
    walked, count = [start[None]], 1
    while count < num_frames:
        frames = min(CHUNK, num_frames - count)
        still = rng.random() < 0.12
        for _ in range(20):
            poses = hold(walked[-1][-1], bounds * rng.uniform(-1, 1, 6) * (rng.random(6) < 0.7) * (not still), frames)
            steep, lean = np.arcsin(np.clip(poses[:, 1, [2, 0]], -1, 1)).T
            if np.abs(steep).max() <= PITCH_LIMIT and np.abs(lean).max() <= ROLL_LIMIT:
                break
        else:
            poses = hold(walked[-1][-1], np.zeros(6), frames)
        walked.append(poses)
        count += frames
    return np.concatenate(walked)
