"""Groups of options that several commands share, each with its checks.

tyro makes an option of every field. torch is imported inside methods only, so that `--help` answers at once.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from sanawm_env.cli.output import say
from sanawm_env.system.files import brief

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
    """Numbers from a comma-separated list.

    Args:
        kind: int or float.
        text: the list.
        expected: begins the message of the error.

    Raises:
        ValueError: for text that is no such list.
    """
    try:
        return tuple(kind(number) for number in text.split(","))
    except ValueError:
        raise ValueError(f"{expected}, got {brief(text)}.") from None


@dataclass(frozen=True, kw_only=True)
class WorldOnDevice:
    """A world and its device."""

    world: str = "nano"
    """Name or folder of the world."""
    device: str = "cpu"
    """Device of torch, such as cpu, cuda or cuda:1."""


@dataclass(frozen=True, kw_only=True)
class LoadedWorld(WorldOnDevice):
    """A world, its device and how it is loaded."""

    text_encoder: bool = False
    """Load the text encoder, for prompts that are not in the world's cache."""
    precision: Bits | None = None
    """Number format of the network's weights; None for that of the world's config."""
    refiner: bool = False
    """Run the refiner (SANA-WM's second stage) on every chunk."""
    refiner_precision: Bits | None = None
    """Number format of the refiner's weights; None for that of its files."""
    offload: bool = False
    """Keep codec, refiner and text encoder in the host's memory while they are not in use."""
    offload_parts: str | None = None
    """Keep only these there: a comma-separated list of codec, refiner and text, such as "codec,text"."""
    timesteps: str | None = None
    """Noise levels of the sampler, such as "1000,967,908,764", for weights trained for them; None for the world's."""
    flow_shift: float | None = None
    """Shift of the noise schedule, which gives other noise levels; beside --timesteps it is only recorded."""
    temperature: float | None = None
    """How varied is what no image shows, 0 for the mean of what could be there; None for the world's."""

    @property
    def load_options(self) -> dict[str, Any]:
        """The keywords of `World.load` that were given. ValueError for --timesteps that are no list of numbers."""
        names = ("text_encoder", "precision", "refiner", "refiner_precision", "offload", "flow_shift", "temperature")
        given = {name: getattr(self, name) for name in names if getattr(self, name) not in (None, False)}
        if self.offload_parts is not None:
            given["offload"] = self.offload_parts
        if self.timesteps is not None:
            given["timesteps"] = listed(float, self.timesteps, "--timesteps takes numbers such as 1000,967,908,764")
        return given

    def load(self) -> "World":
        """Load the world. Raises as `World.load` and `load_options`."""
        from sanawm_env.world.world import World

        return World.load(self.world, self.device, **self.load_options)


@dataclass(frozen=True, kw_only=True)
class Start:
    """The start of an episode."""

    image: Path | None = None
    """Start image, in any format that Pillow reads; None for one of the world's own."""
    prompt: str = ""
    """Text of the scene, for worlds with prompts. Encode it first (sanawm encode-prompts), or give --text-encoder."""
    fov_deg: float | None = None
    """Horizontal field of view of the world's frames in degrees; None for the image's EXIF data or the world's own."""
    seed: int = 0
    """Seed of the noise, from 0."""

    def usual(self, starts: Sequence[Path]) -> int:
        """The index, in a world's own start images, of the one that is taken by default."""
        return next((i for i, path in enumerate(starts) if path.stem == FIRST), 0)


@dataclass(frozen=True, kw_only=True)
class TrajectoryReading:
    """How a trajectory file is read."""

    trajectory_format: TrajectoryFormat | None = None
    """Format of the file; None recognises it by the contents."""
    axes: TrajectoryAxes | None = None
    """Axes x, y, z of the file's cameras; None for the format's own (transforms.json: opengl, others: opencv).
    opencv: right, down, forward; opengl: right, up, back; unreal: forward, right, up; ros: forward, left, up."""
    poses: TrajectoryPoses | None = None
    """Whether poses are camera-to-world or world-to-camera; None for the format's own."""
    metres_per_unit: float = 1.0
    """Metres per unit of the file's positions, such as 0.01 for centimetres."""
    trajectory_fps: float | None = None
    """Poses per second of the file; None for what the file says, or else the world's rate."""
    fill: bool = False
    """Interpolate lost (NaN) poses, up to 16 in a row."""

    def read_trajectory(self, path: Path, clip: str | None = None) -> "Trajectory":
        """Read a trajectory with these options. Raises as `load_trajectory`.

        Args:
            path: of the file.
            clip: see `load_trajectory`.
        """
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
    """A camera path, given as keys, a trajectory or a twist."""

    actions: str | None = None
    """Camera path as held keys and their frames (16 per second), such as "w-48,dw-24,none-24". w, s: forward, back;
    a, d: turn left, right; i, k: look up, down; j, l: move left, right."""
    trajectory: Path | None = None
    """Camera path as a file or folder: COLMAP, nerfstudio, TUM, KITTI, RealEstate10K, .npz or .npy.
    It begins at the start image. See docs/trajectories.md, and sanawm trajectory, which shows a file."""
    twist: str | None = None
    """Camera path as a constant velocity vx,vy,vz,wx,wy,wz.
    Metres and radians per second, along and about the camera's axes: right, down, forward."""
    chunks: int = 4
    """Length of a --twist in chunks of 24 frames."""

    @cached_property
    def given_trajectory(self) -> "Trajectory":
        """The trajectory of --trajectory, read once, so that warnings about it are logged once."""
        return self.read_trajectory(cast(Path, self.trajectory))

    @property
    def path_text(self) -> str:
        """The camera path as it was given."""
        return str(self.actions or self.trajectory or self.twist)

    def camera_path(self, config: "WorldConfig") -> "np.ndarray":
        """The poses (F, 4, 4) float64 relative to the first. Keys and twists stay within the world's pitch limit; a
        trajectory is followed as it is.

        Raises:
            ValueError: unless exactly one path is given, and for one that cannot be read or is too long.
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
    """ValueError for a path that is too long for an episode, before it is computed."""
    if frames > MOST_FRAMES:
        hours = [f"{count / config.fps / 3600:.3g} hours" for count in (frames, MOST_FRAMES)]
        raise ValueError(
            f"The camera path has {frames} frames ({hours[0]}), an episode holds {MOST_FRAMES} ({hours[1]}): "
            "shorten it, or split it."
        )


@dataclass(frozen=True, kw_only=True)
class Clip(CameraPath, Start):
    """A start, a camera path and an output folder."""

    intrinsics: Path | None = None
    """File .npy with fx, fy, cx, cy or a 3 x 3 matrix, in pixels of the image, instead of a field of view."""
    out: Path
    """Folder for the results; made if missing."""

    def read_intrinsics(self, image: Any) -> "np.ndarray | None":
        """The intrinsics of the start image: those of --intrinsics; without these and --fov-deg, those of the
        trajectory's first image, if the image has its proportions; None otherwise.

        Raises:
            ValueError: for files that cannot be read.
        """
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
            say(f"The intrinsics in {self.trajectory} are for images of other proportions than {image}: not used.")
            return None
        say(f"Intrinsics: those of the first pose in {self.trajectory} (--fov-deg or --intrinsics gives others).")
        return found[0]

    def check_apart(self, names: Iterable[str], image: Any) -> None:
        """ValueError if a file with one of these names in `out` would replace the image, or another input."""
        from sanawm_env.system.saving import check_apart

        check_apart([self.out / name for name in names], [image, self.trajectory, self.intrinsics])


@dataclass(frozen=True, kw_only=True)
class Numbers:
    """A file for the results."""

    json: Path | None = None
    """JSON file for the results; None writes none."""


@dataclass(frozen=True, kw_only=True)
class Measurement(Numbers):
    """A measurement of a nano world on random walks."""

    world: str = "nano"
    """Name or folder of a nano world."""
    scenes: int = 24
    """Number of walks."""
    seed: int = 0
    """Seed of walks and noise."""
    chunks: int = 8
    """Length of a walk in chunks of 24 frames."""


@dataclass(frozen=True, kw_only=True)
class Walks(Measurement):
    """A measurement on held-out walks."""

    role: Literal["evaluate", "validation"] = "evaluate"
    """Which held-out walks: those for reported results, or those for decisions during development."""
