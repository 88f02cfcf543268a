"""What a trajectory does, and which parts of it look like a wrong convention. `sanawm trajectory` shows it.

Speeds are compared with those the model was driven with (camera reference, section 8.3): STANDARD is usual, and beyond
STRESS nothing is known.
"""

from dataclasses import dataclass

import numpy as np
from scipy.spatial.transform import Rotation

from sanawm_env.camera.presets import STANDARD, STRESS, Workspace, distance
from sanawm_env.camera.trajectory import AXES, Trajectory, inverse, relative_to_first

WALK = 0.6  # m/s, between the mean speeds of the walks that were trained on
_NEARLY_ALL, _JUMP = 0.9, 10


@dataclass(frozen=True)
class Inspection:
    """What a trajectory does.

    Attributes:
        frames: number of poses.
        fps: poses a second.
        seconds: from the first pose to the last.
        metres: length of the path.
        farthest: largest distance from the start, metres.
        top_speed: of the fastest step, m/s.
        top_turn: of the fastest step, degrees/s.
        warnings: one sentence each, with the option that corrects it.
    """

    frames: int
    fps: float
    seconds: float
    metres: float
    farthest: float
    top_speed: float
    top_turn: float
    warnings: tuple[str, ...]


def inspect(trajectory: Trajectory, fps: float) -> Inspection:
    """Inspect a trajectory.

    Args:
        trajectory: to inspect.
        fps: poses a second, where the trajectory does not say.
    """
    rate, c2w = trajectory.fps or fps, trajectory.c2w
    lengths, turns = _steps(c2w)
    speeds, turns = lengths * rate, turns * rate
    usual = float(np.median(speeds[moving])) if (moving := _moving(lengths)).any() else 0.0
    farthest = distance(relative_to_first(c2w))
    warnings = [
        *_backwards(trajectory), *_upside_down(trajectory), *_jumps(trajectory),
        *_fast(trajectory, speeds, turns, usual, rate),
    ]  # fmt: skip
    if farthest > Workspace().hard_distance and usual <= 8:
        warnings.append(
            f"It goes {farthest:.3g} m from its start, where worlds end at {Workspace().hard_distance:g} m: cut it, or "
            "give --metres-per-unit."
        )
    return Inspection(
        frames=len(c2w), fps=rate, seconds=(len(c2w) - 1) / rate, metres=float(lengths.sum()), farthest=farthest,
        top_speed=float(speeds.max(initial=0)), top_turn=float(turns.max(initial=0)), warnings=tuple(warnings),
    )  # fmt: skip


def _steps(c2w: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Length and turn in degrees of each step (F - 1,)."""
    motion = inverse(c2w[:-1]) @ c2w[1:]
    turns = np.degrees(Rotation.from_matrix(motion[:, :3, :3]).magnitude()) if len(motion) else np.zeros(0)
    return np.linalg.norm(motion[:, :3, 3], axis=1), turns


def _moving(lengths: np.ndarray) -> np.ndarray:
    """Which steps (F - 1,) are not noise around a standstill."""
    return lengths > 0.1 * np.percentile(lengths, 90) if len(lengths) and lengths.max() > 1e-9 else lengths > np.inf


def _ahead(c2w: np.ndarray) -> np.ndarray:
    """Cosine between motion and viewing direction of each moving step."""
    motion = inverse(c2w[:-1]) @ c2w[1:]
    lengths = np.linalg.norm(motion[:, :3, 3], axis=1)
    moving = _moving(lengths)
    return motion[moving, 2, 3] / lengths[moving]


def _otherwise(trajectory: Trajectory, axes: str, poses: str) -> np.ndarray:
    """The poses, if the file had been read with these axes and this direction."""
    c2w = trajectory.c2w.copy()
    c2w[:, :3, :3] = c2w[:, :3, :3] @ AXES[trajectory.axes].T
    c2w = c2w if poses == trajectory.poses else inverse(c2w)
    c2w[:, :3, :3] = c2w[:, :3, :3] @ AXES[axes]
    return c2w


def _mends(trajectory: Trajectory) -> list[str]:
    """Single options with which the camera would look where it goes, the best first."""
    other = "w2c" if trajectory.poses == "c2w" else "c2w"
    trials = [
        (f"--axes {axes}", axes, trajectory.poses) for axes in ("opencv", "opengl", "ros") if axes != trajectory.axes
    ]
    trials.append((f"--poses {other}", trajectory.axes, other))
    shares = {flag: float(np.mean(_ahead(_otherwise(trajectory, axes, poses)) > 0.5)) for flag, axes, poses in trials}
    good = [flag for flag in sorted(shares, key=lambda flag: -shares[flag]) if shares[flag] > _NEARLY_ALL]
    return [flag for flag in good if shares[flag] > shares[good[0]] - 0.02]


def _backwards(trajectory: Trajectory) -> list[str]:
    ahead = _ahead(trajectory.c2w)
    if len(ahead) < 4 or (share := float(np.mean(ahead < -0.5))) <= _NEARLY_ALL:
        return []
    mend = " or ".join(_mends(trajectory)) or "--axes or --poses"
    return [f"It moves backwards against its view in {share:.0%} of its steps: if that was not meant, give {mend}."]


def _upside_down(trajectory: Trajectory) -> list[str]:
    """A warning for cameras upside down. Worlds have z up (ROS, Unreal, many NeRFs), y up (OpenGL) or y down
    (OpenCV, and all that begin at the identity). COLMAP's worlds have no fixed orientation."""
    if trajectory.source == "colmap" or len(trajectory.c2w) < 2:
        return []
    up = -trajectory.c2w[:, :3, 1].mean(0)
    ahead = _ahead(trajectory.c2w)
    goes_ahead = len(ahead) > 0 and float(np.mean(ahead > 0.5)) > 0.5
    below = up[2] < -0.7
    if not (below or (trajectory.axes == "opencv" and up[1] > 0.7 and not goes_ahead)):
        return []
    other = "opencv" if trajectory.axes == "opengl" else "opengl"
    return [f"Up is down: its cameras hang upside down in their world; if that was not meant, give --axes {other}."]


def _jumps(trajectory: Trajectory) -> list[str]:
    lengths, turns = _steps(trajectory.c2w)
    moving = _moving(lengths)
    if not moving.any():
        return []
    usual = np.median(lengths[lengths > 1e-9])
    jumps = np.flatnonzero((lengths > _JUMP * usual) | (turns > 45)) + 1
    if len(jumps) == 0 or len(jumps) > len(lengths) / 4:  # so many are no jumps but how it goes
        return []
    named = ", ".join(map(str, jumps[:8])) + ", ..." * (len(jumps) > 8)
    mend = "cut the file there, or write NaN for poses that were lost and give --fill"
    other = "w2c" if trajectory.poses == "c2w" else "c2w"
    there, _ = _steps(_otherwise(trajectory, trajectory.axes, other))
    if there.max() < lengths.max() / _JUMP:
        mend = f"give --poses {other}, with which it does not"
    return [f"It jumps at pose {named} ({lengths.max():.3g} m in a step, {usual:.3g} is usual): {mend}."]


def _fast(trajectory: Trajectory, speeds: np.ndarray, turns: np.ndarray, usual: float, rate: float) -> list[str]:
    """Warnings about speeds. The fastest twentieth is left out, because it may be jumps."""
    found = []
    said = f"it is taken for {rate:g} poses a second" + (
        " by its own word" if trajectory.fps else ", as it says nothing"
    )
    unit = trajectory.metres_per_unit * WALK / usual if usual else 1.0
    if usual > 8 or 0 < usual < 0.02:
        found.append(
            f"It moves at {usual:.3g} m/s, a scale other than metres: --metres-per-unit {unit:.2g} makes it a walk of "
            f"{WALK:g} m/s."
        )
    elif len(speeds) and (fast := np.percentile(speeds, 95)) > STRESS.planar:
        found.append(
            f"It moves at {fast:.3g} m/s, faster than the {STRESS.planar:g} m/s that models know: give "
            f"--metres-per-unit or --trajectory-fps ({said})."
        )
    if len(turns) and (fast := np.percentile(turns, 95)) > STRESS.turn_deg:
        found.append(
            f"It turns by {fast:.3g} degrees a second, faster than the {STRESS.turn_deg:g} that models know: give "
            f"--trajectory-fps ({said})."
        )
    return found


def against_the_trained(value: float, usual: float, most: float, unit: str) -> str:
    """A speed compared with those of the model, as text."""
    place = "within what it is driven with" if value <= usual else "within what it knows" if value <= most else "faster"
    return f"{value:.3g} {unit} ({place}; {usual:g} is usual, {most:g} the most)"


def speeds_text(found: Inspection) -> tuple[str, str]:
    """Two lines: the largest speed and turn, compared with the model's."""
    return (
        against_the_trained(found.top_speed, STANDARD.planar, STRESS.planar, "m/s"),
        against_the_trained(found.top_turn, STANDARD.turn_deg, STRESS.turn_deg, "degrees/s"),
    )
