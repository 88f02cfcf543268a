"""Camera poses for clips without any: COLMAP estimates them from the images once, and they are kept in files."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from sanawm_env.camera.intrinsics import centred_intrinsics, intrinsics_matrix
from sanawm_env.camera.reconstruction import check_installed, estimate_trajectory
from sanawm_env.camera.trajectory import Trajectory, load_trajectory
from sanawm_env.cli.footage import PosesOf
from sanawm_env.cli.output import console, say
from sanawm_env.recording.rollout import check_writable
from sanawm_env.recording.video import frame_times, iterate_video
from sanawm_env.system.files import explaining, file_sha256
from sanawm_env.system.saving import replacing

PICTURES_A_SECOND = 5  # that are placed; frames between them are interpolated


def poses_by_colmap(folder: Path, metres_per_unit: float = 1.0, fov_deg: float | None = None) -> PosesOf:
    """A function that estimates the camera path of a video, or reads the file of an earlier estimate.

    Args:
        folder: of the files, which `sanawm trajectory` reads too.
        metres_per_unit: metres that the camera moves per second on average, because images do not tell the scale.
        fov_deg: horizontal field of view of upright images, in degrees; None lets COLMAP estimate the focal length.

    Raises:
        ImportError: without pycolmap.
        OSError: for a folder that cannot be written.
        ValueError: from the function, for a video whose camera COLMAP does not find.
    """
    check_installed()
    check_writable(folder)
    say(
        f"COLMAP cannot tell the scale: every camera is taken to move {metres_per_unit:g} m per second on average "
        "(--metres-per-unit)."
    )

    def find(video: Path) -> Trajectory:
        angle = "" if fov_deg is None else f"_{fov_deg:g}"
        kept = folder / f"{video.stem[:40]}_{file_sha256(video)[:12]}{angle}.npz"
        if not kept.exists():
            looking = console.status(f"estimating the camera path of {video}")
            with looking, explaining(f"{video} cannot be used"):
                found = _found(video, fov_deg)
            first = round(found.first or 0)
            inds = np.arange(first, first + len(found.c2w))
            with replacing(kept) as part, part.open("wb") as file:
                np.savez(file, data=found.c2w, inds=inds, intrinsics=np.asarray(found.intrinsics))
        return load_trajectory(kept, metres_per_unit=metres_per_unit)

    return find


def _found(video: Path, fov_deg: float | None) -> Trajectory:
    """The path in units per second; `first` in frames. Errors as `estimate_trajectory`."""
    times = frame_times(video)
    rate = (len(times) - 1) / times[-1] if len(times) > 1 else 1.0
    intrinsics = None
    if fov_deg is not None:
        height, width = next(iterate_video(video)).shape[:2]
        intrinsics = intrinsics_matrix(centred_intrinsics(fov_deg, width, height))
    every = max(1, round(rate / PICTURES_A_SECOND))
    found = estimate_trajectory(iterate_video(video), intrinsics, fps=rate, every=every)
    return replace(found, first=(found.first or 0) * rate)
