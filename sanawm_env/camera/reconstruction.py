"""Camera paths from images alone, by COLMAP's incremental reconstruction (Schönberger and Frahm 2016), with pycolmap
from the extra `poses`.

Images have no scale, so a path comes in a unit of its own. COLMAP needs parallax and texture: it cannot place a camera
that only turns, or sees blank walls.

It runs in a process of its own, because pycolmap takes over SIGTERM when it is imported, ends the process on some
errors, and cannot be interrupted.
"""

import json
import math
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from sanawm_env.camera.trajectory import Trajectory, inverse, relative_to_first, resampled
from sanawm_env.system.files import brief, check_count, check_number
from sanawm_env.system.saving import Scratch

MISSING = 'Poses from images need pycolmap: pip install "sanawm-env[poses]".'
SHORTER_SIDE = 256  # pixels; smaller images are enlarged, which makes errors smaller at 240 x 320 too
OVERLAP = 15  # images after each that it is matched with
LOST = 4  # images in a row without a pose that are interpolated
LEAST = 3  # images of a reconstruction
TRIES = 3  # with other seeds: what the first pair of images suggests is wrong now and then
ENOUGH = 0.8  # of all images: with fewer of them COLMAP's own thresholds are lowered
# For paths of a few seconds in a room, which have less parallax than photographs for a model do
LOWERED = {"init_min_tri_angle": 4.0, "init_min_num_inliers": 30, "init_max_forward_motion": 1.0,
           "abs_pose_min_num_inliers": 15}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Reconstruction:
    """Poses of images.

    Attributes:
        c2w: (n, 4, 4) float64, NaN where an image was not placed, in a unit and a world frame of its own.
        intrinsics: (3, 3), the given or the estimated ones.
        points: number of points of the scene.
    """

    c2w: np.ndarray
    intrinsics: np.ndarray
    points: int

    @property
    def placed(self) -> np.ndarray:
        """(n,) bool: which images have a pose."""
        return np.asarray(np.isfinite(self.c2w).all((1, 2)))


def check_installed() -> None:
    """Raise ImportError where pycolmap is not installed. It is not imported."""
    if find_spec("pycolmap") is None:
        raise ImportError(MISSING)


def reconstruct(
    frames: Iterable[np.ndarray], intrinsics: np.ndarray | None = None, *, seed: int = 0, threads: int = 1
) -> Reconstruction:
    """Camera poses of consecutive images. Of several disconnected models the largest counts. Where no two images match,
    nothing is placed.

    Args:
        frames: (H, W, 3) uint8, in order.
        intrinsics: (3, 3), in pixels; None estimates one focal length for all, with the principal point in the middle.
        seed: of what COLMAP draws.
        threads: with one, the same images and seed give the same poses.

    Raises:
        ImportError: without pycolmap.
        ValueError: for images of different sizes, intrinsics of another shape, or where COLMAP fails.
    """
    from PIL import Image

    check_installed()
    check_count("seed", seed, 0, 2**31 - 1)
    check_count("threads", threads, 1, 1024)
    if intrinsics is not None:
        intrinsics = np.asarray(intrinsics, np.float64)
        if intrinsics.shape != (3, 3) or not np.isfinite(intrinsics).all():
            raise ValueError(f"intrinsics must be finite numbers (3, 3), got the shape {intrinsics.shape}")
    with Scratch("sanawm-poses-") as folder:
        count, shape = 0, None
        (folder / "images").mkdir()
        for count, frame in enumerate(frames, start=1):
            frame = np.asarray(frame)
            alike = frame.ndim == 3 and frame.shape == (shape or (*frame.shape[:2], 3))
            if frame.dtype != np.uint8 or not alike:
                raise ValueError(f"images must be uint8 (H, W, 3) of one size, got {frame.dtype} {frame.shape}")
            shape = frame.shape
            times = math.ceil(SHORTER_SIDE / min(shape[:2]))
            image = Image.fromarray(frame)
            if times > 1:
                image = image.resize((shape[1] * times, shape[0] * times), Image.Resampling.BICUBIC)
            image.save(folder / "images" / f"{count - 1:06d}.png", compress_level=1)
        if shape is None or count < 2:
            raise ValueError(f"a reconstruction needs at least two images, got {count}")
        pinhole = None if intrinsics is None else (times * intrinsics[(0, 1, 0, 1), (0, 1, 2, 2)]).tolist()
        (folder / "task.json").write_text(json.dumps({"pinhole": pinhole, "seed": seed, "threads": threads}))
        done = subprocess.run(
            [sys.executable, "-m", "sanawm_env.camera.reconstruction", str(folder)],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=False,
        )  # fmt: skip
        if done.returncode or not (folder / "found.json").exists():
            said = [line for line in done.stderr.decode(errors="replace").splitlines() if line.strip()]
            raise ValueError(f"COLMAP failed ({brief(said[-1]) if said else done.returncode})")
        found = json.loads((folder / "found.json").read_text())
    c2w = np.full((count, 4, 4), np.nan)
    for index, w2c in found["w2c"].items():
        c2w[int(index)] = inverse(np.array([*w2c, [0, 0, 0, 1]], np.float64))
    if intrinsics is None:
        fx, fy, cx, cy = (value / times for value in found["pinhole"])
        intrinsics = np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])
    return Reconstruction(c2w, intrinsics, found["points"])


def estimate_trajectory(
    frames: Iterable[np.ndarray],
    intrinsics: np.ndarray | None = None,
    *,
    fps: float | None = None,
    every: int = 4,
    metres_per_unit: float = 1.0,
    seed: int = 0,
    threads: int = 1,
) -> Trajectory:
    """The trajectory of a video, with a pose for each frame from `first` on.

    Images tell no metres. The path's unit is the mean distance that the camera moves in a second (in a frame without
    `fps`), so `metres_per_unit` is the assumed mean speed in m/s. Up to `LOST` images in a row that COLMAP did not
    place are interpolated; where it lost more, the longest part counts.

    Args:
        frames: (H, W, 3) uint8, in order.
        intrinsics, seed, threads: as `reconstruct`.
        fps: frames a second.
        every: place every n-th frame, and interpolate the others.
        metres_per_unit: assumed mean speed.

    Raises:
        ImportError: as `reconstruct`.
        ValueError: as `reconstruct`, and where fewer than three images are placed, or the camera does not move.
    """
    every = check_count("every", every, 1, 1000)
    metres_per_unit = check_number("metres_per_unit", metres_per_unit, 1e-12, 1e12)
    shape: list[tuple[int, ...]] = []

    def taken() -> Iterator[np.ndarray]:
        for i, frame in enumerate(frames):
            if i % every == 0:
                shape[:] = [frame.shape]
                yield frame

    found = reconstruct(taken(), intrinsics, seed=seed, threads=threads)
    at = np.flatnonzero(found.placed)
    at = max(np.split(at, np.flatnonzero(np.diff(at) > LOST + 1) + 1), key=len)
    if len(at) < LEAST:
        raise ValueError(
            f"COLMAP placed {len(at)} of {len(found.c2w)} images: it needs texture, and a camera that moves"
        )
    c2w = relative_to_first(found.c2w[at])
    rate = fps or 1.0
    speed = np.linalg.norm(np.diff(c2w[:, :3, 3], axis=0), axis=1).sum() / (at[-1] - at[0]) / every * rate
    if speed == 0:
        raise ValueError("COLMAP found a camera that does not move: give images of one that does")
    c2w[:, :3, 3] *= metres_per_unit / speed
    placed = Trajectory(
        c2w, np.broadcast_to(found.intrinsics, (len(at), 3, 3)), fps, "colmap", size=(shape[0][1], shape[0][0]),
        metres_per_unit=metres_per_unit, first=float(at[0] * every / rate), step=1 / rate,
    )  # fmt: skip
    return resampled(placed, at * float(every), np.arange(at[0] * every, at[-1] * every + 1, dtype=np.float64))


def _work(folder: Path) -> None:
    """In the other process: reconstruct images/*.png as task.json says, and write found.json."""
    import pycolmap

    pycolmap.logging.minloglevel = 2
    task = json.loads((folder / "task.json").read_text())
    pinhole, threads, cpu = task["pinhole"], task["threads"], pycolmap.Device.cpu
    database, images = folder / "database.db", folder / "images"
    reader = pycolmap.ImageReaderOptions()
    reader.camera_model = "PINHOLE" if pinhole else "SIMPLE_PINHOLE"
    if pinhole:
        reader.camera_params = ",".join(map(str, pinhole))
    extraction, matching = pycolmap.FeatureExtractionOptions(), pycolmap.FeatureMatchingOptions()
    pairing, verification = pycolmap.SequentialPairingOptions(), pycolmap.TwoViewGeometryOptions()
    extraction.num_threads = matching.num_threads = pairing.num_threads = threads
    pairing.overlap, verification.ransac.random_seed = OVERLAP, task["seed"]
    pycolmap.set_random_seed(task["seed"])
    pycolmap.extract_features(
        database, images, camera_mode=pycolmap.CameraMode.SINGLE, reader_options=reader, extraction_options=extraction,
        device=cpu,
    )  # fmt: skip
    pycolmap.match_sequential(
        database, matching_options=matching, pairing_options=pairing, verification_options=verification, device=cpu
    )
    most, total = None, len(list(images.iterdir()))
    for number, lowered in enumerate([{}] * TRIES + [LOWERED]):
        if number >= TRIES and most is not None and most.num_reg_images() >= ENOUGH * total:
            break
        options = pycolmap.IncrementalPipelineOptions()
        options.num_threads, options.random_seed, options.min_model_size = threads, task["seed"] + number, LEAST
        options.ba_refine_focal_length = options.mapper.abs_pose_refine_focal_length = not pinhole
        options.ba_refine_extra_params = options.mapper.abs_pose_refine_extra_params = False
        for name, value in lowered.items():
            setattr(options.mapper, name, value)
        out = folder / f"models{number}"
        out.mkdir()
        models = pycolmap.incremental_mapping(database, images, out, options=options)
        most = max([*models.values(), *([most] if most is not None else [])], key=_goodness, default=None)
    found: dict[str, Any] = {"w2c": {}, "points": 0, "pinhole": pinhole or [math.nan] * 4}
    if most is not None:
        placed = [image for image in most.images.values() if image.has_pose]
        found["w2c"] = {int(Path(image.name).stem): image.cam_from_world().matrix().tolist() for image in placed}
        found["points"] = most.num_points3D()
        camera = next(iter(most.cameras.values()))
        found["pinhole"] = np.array(camera.calibration_matrix())[(0, 1, 0, 1), (0, 1, 2, 2)].tolist()
    (folder / "found.json").write_text(json.dumps(found))


def _goodness(model: Any) -> tuple[int, float]:
    """Number of placed images, then mean track length: a wrong path tears tracks apart."""
    return model.num_reg_images(), model.compute_mean_track_length()


if __name__ == "__main__":
    _work(Path(sys.argv[1]))
