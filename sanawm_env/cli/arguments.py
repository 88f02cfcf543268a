"""Arguments that several commands take, in groups, each with what is checked and made of it.

tyro makes an option of every field. Nothing here imports torch before a method needs it: `--help` answers at once.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from sanawm_env.cli.output import say

if TYPE_CHECKING:
    import numpy as np

    from sanawm_env.camera.trajectory import Trajectory
    from sanawm_env.world.config import WorldConfig
    from sanawm_env.world.world import World

MOST_FRAMES = 150_000  # the meta.json of an episode holds their poses, and is read up to a size
FIRST = "court_10"  # of nano's start images the one from which most can be seen
TrajectoryFormat = Literal["colmap", "nerfstudio", "tum", "kitti", "realestate10k", "numpy"]
TrajectoryAxes = Literal["opencv", "opengl", "unreal", "ros"]
TrajectoryPoses = Literal["c2w", "w2c"]
Bits = Literal["bf16", "fp8", "nvfp4", "fp8-dynamic", "nvfp4-dynamic"]


def listed(kind: type, text: str, expected: str) -> tuple:
    """Numbers of a kind from a list with commas; ValueError that begins with what was expected."""
    try:
        return tuple(kind(number) for number in text.split(","))
    except ValueError:
        raise ValueError(f"{expected}, got {text!r}.") from None


@dataclass(frozen=True, kw_only=True)
class WorldOnDevice:
    """Which world, and where it runs."""

    world: str = "nano"
    """Name or folder of the world."""
    device: str = "cpu"


@dataclass(frozen=True, kw_only=True)
class LoadedWorld(WorldOnDevice):
    """Which world, and how it is loaded."""

    text_encoder: bool = False
    """Load the text encoder for prompts that are not in the world's cache."""
    precision: Bits | None = None
    """Of the network; None as the world is configured."""
    refiner: bool = False
    """Run the second stage on every chunk."""
    refiner_precision: Bits | None = None
    """Of the second stage; None as it is."""
    offload: bool = False
    """Keep codec, refiner and text encoder in the host's memory while they are not in use."""
    offload_parts: str | None = None
    """Only these instead: some of codec, refiner, text, such as "codec,text"."""
    timesteps: str | None = None
    """Another list of noise levels, such as "1000,967,908,764", for weights that were trained to it."""
    flow_shift: float | None = None
    """Make the list with another shift instead; with --timesteps, which are shifted already, it is noted."""

    @property
    def load_options(self) -> dict[str, Any]:
        """The keywords of `World.load` that were given; ValueError for a list that is none."""
        names = ("text_encoder", "precision", "refiner", "refiner_precision", "offload", "flow_shift")
        given = {name: getattr(self, name) for name in names if getattr(self, name) not in (None, False)}
        if self.offload_parts is not None:
            given["offload"] = self.offload_parts
        if self.timesteps is not None:
            given["timesteps"] = listed(float, self.timesteps, "--timesteps takes numbers such as 1000,967,908,764")
        return given

    def load(self) -> "World":
        """The world, loaded as told."""
        from sanawm_env.world.world import World

        return World.load(self.world, self.device, **self.load_options)


@dataclass(frozen=True, kw_only=True)
class Start:
    """Where an episode starts."""

    image: Path | None = None
    """Start image, any format; None takes one of the world's own."""
    prompt: str = ""
    """What the scene is, for worlds with text; encode it first (sanawm encode-prompts) or give --text-encoder."""
    fov_deg: float | None = None
    """Horizontal field of view of the image in degrees; None for the world's own."""
    seed: int = 0

    def usual(self, starts: Sequence[Path]) -> int:
        """Index, among a world's own start images, of the one that is taken where none is given."""
        return next((i for i, path in enumerate(starts) if path.stem == FIRST), 0)


@dataclass(frozen=True, kw_only=True)
class TrajectoryReading:
    """How the file of a trajectory is to be understood, where its format does not say so, or says otherwise."""

    trajectory_format: TrajectoryFormat | None = None
    """Of the file; None tells it by the content."""
    axes: TrajectoryAxes | None = None
    """Of the file's cameras: right down forward, right up back, forward right up, or forward left up; None for the
    format's own, which is opengl for transforms.json and opencv for others."""
    poses: TrajectoryPoses | None = None
    """Camera-to-world or world-to-camera; None for the format's own."""
    metres_per_unit: float = 1.0
    """Of its positions, such as 0.01 for centimetres."""
    trajectory_fps: float | None = None
    """Poses a second, whatever the file says; None for what it says, or the world's rate."""
    fill: bool = False
    """Interpolate lost (NaN) poses, up to 16 in a row."""

    def read_trajectory(self, path: Path, clip: str | None = None) -> "Trajectory":
        """Errors as `load_trajectory`. clip: see there."""
        from sanawm_env.camera.trajectory import load_trajectory

        return load_trajectory(
            path,
            format=self.trajectory_format,
            axes=self.axes,
            poses=self.poses,
            metres_per_unit=self.metres_per_unit,
            fps=self.trajectory_fps,
            fill=self.fill,
            clip=clip,
        )


@dataclass(frozen=True, kw_only=True)
class CameraPath(TrajectoryReading):
    """Where the camera goes, given in one of three ways."""

    actions: str | None = None
    """Camera script of held keys, such as "w-48,dw-24,none-24" (keys wasdijkl, frames at 16 per second)."""
    trajectory: Path | None = None
    """Camera path instead: a file or folder of COLMAP, nerfstudio, TUM, KITTI, RealEstate10K, .npz or .npy (see
    docs/trajectories.md, and `sanawm trajectory`), taken relative to its first pose."""
    twist: str | None = None
    """Constant velocity instead: vx,vy,vz,wx,wy,wz in m/s and rad/s about the camera's axes (right, down, forward)."""
    chunks: int = 4
    """How many chunks of 24 frames a twist is held."""

    @cached_property
    def given_trajectory(self) -> "Trajectory":
        """That of --trajectory, read once: what its file lacks is said once."""
        return self.read_trajectory(cast(Path, self.trajectory))

    @property
    def path_text(self) -> str:
        """The path as it was given."""
        return str(self.actions or self.trajectory or self.twist)

    def camera_path(self, config: "WorldConfig") -> "np.ndarray":
        """Poses (F, 4, 4) float64 relative to the first; ValueError unless exactly one kind of path is given.

        Keys and twists stay within the world's pitch limit, a trajectory is followed as it is.
        """
        import numpy as np

        from sanawm_env.agents.scripts import followed
        from sanawm_env.camera.dsl import actions_to_c2w, parse_actions
        from sanawm_env.camera.twist import hold

        given = [name for name in ("actions", "trajectory", "twist") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"Give one of --actions, --trajectory and --twist, not {len(given)} of them.")
        if self.actions is not None:
            _check_length(1 + sum(frames for _, frames in parse_actions(self.actions)), config)
            limit = config.workspace.pitch_limit_deg
            return actions_to_c2w(self.actions, pitch_limit_deg=limit, fps=config.fps).astype(np.float64)
        if self.trajectory is not None:
            poses = followed(self.given_trajectory, config.fps, self.trajectory)
            _check_length(len(poses), config)
            return poses
        if self.chunks < 1:
            raise ValueError(f"--chunks must be at least 1, got {self.chunks}.")
        _check_length(1 + config.chunk_frames * self.chunks, config)
        twist = np.array(listed(float, cast(str, self.twist), "--twist takes six numbers vx,vy,vz,wx,wy,wz"))
        poses = hold(np.eye(4), twist, config.chunk_frames * self.chunks, config.fps)
        return np.concatenate((np.eye(4)[None], config.workspace.confine(np.eye(4), poses)))


def _check_length(frames: int, config: "WorldConfig") -> None:
    """ValueError for a path that no episode can hold, before it is worked out."""
    if frames > MOST_FRAMES:
        hours = [f"{count / config.fps / 3600:.3g} hours" for count in (frames, MOST_FRAMES)]
        raise ValueError(
            f"The camera path has {frames} frames ({hours[0]}), an episode holds {MOST_FRAMES} ({hours[1]}): make "
            "several, or a shorter one."
        )


@dataclass(frozen=True, kw_only=True)
class Clip(CameraPath, Start):
    """A start, a path from it, and the folder that what is seen on the way goes to."""

    intrinsics: Path | None = None
    """.npy with fx, fy, cx, cy or a 3x3 matrix, in pixels of the image, instead of a field of view."""
    out: Path
    """Folder for the results; made if missing, checked before the work."""

    def read_intrinsics(self, image: Any) -> "np.ndarray | None":
        """Those of --intrinsics; without, and without --fov-deg, those of the trajectory's first image, where the
        image is like it, which is said; None otherwise."""
        from sanawm_env.system.arrays import load_array
        from sanawm_env.world.images import load_image

        if self.intrinsics is not None:
            return load_array(self.intrinsics)
        if self.trajectory is None or self.fov_deg is not None:
            return None
        if self.given_trajectory.intrinsics is None:
            return None
        found = self.given_trajectory.intrinsics_for(*load_image(image).size)
        if found is None:
            say(f"The intrinsics in {self.trajectory} are of other images than {image}, and are left out.")
            return None
        say(f"Intrinsics: those of the first pose in {self.trajectory} (--fov-deg sets others).")
        return found[0]

    def check_apart(self, names: Iterable[str], image: Any) -> None:
        """ValueError where a file of these names in `out` would replace the image or another one that is read."""
        from sanawm_env.system.saving import check_apart

        check_apart([self.out / name for name in names], [image, self.trajectory, self.intrinsics])


@dataclass(frozen=True, kw_only=True)
class Numbers:
    """A file for what is measured."""

    json: Path | None = None
    """Where to write the numbers."""


@dataclass(frozen=True, kw_only=True)
class Measurement(Numbers):
    """What of a nano world is measured, on places and paths drawn from a seed."""

    world: str = "nano"
    scenes: int = 24
    seed: int = 0
    chunks: int = 8


@dataclass(frozen=True, kw_only=True)
class Walks(Measurement):
    """The same, of walks that are kept apart."""

    role: Literal["evaluate", "validation"] = "evaluate"
    """Which walks: those kept for the record, or those that decisions may look at."""
