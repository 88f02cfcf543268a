"""Write camera trajectories in the formats of other programs, with the frames of their video; see docs/trajectories.md.
`camera.trajectory.load_trajectory` reads all of them.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.spatial.transform import Rotation

from sanawm_env.camera.trajectory import AXES, Trajectory, inverse
from sanawm_env.recording.video import iterate_video
from sanawm_env.system.files import brief
from sanawm_env.system.saving import replacing_folder, write_text

FORMATS = ("colmap", "nerfstudio", "tum")
IMAGES = "images"


def export_trajectory(trajectory: Trajectory, out: Path, format: str, video: Path | None = None) -> list[Path]:
    """Write a trajectory.

    Args:
        trajectory: to write.
        out: a new folder; for "tum" a file.
        format: "colmap" for sparse/0 in text (its points3D.txt is empty, for `colmap point_triangulator`), "nerfstudio"
            for transforms.json, "tum" for one file with times from 0.
        video: the video of its frames, which are written to the folder images beside; not for "tum".

    Returns:
        The files and folders that were written.

    Raises:
        ValueError: for another format; for a trajectory without what the format needs ("tum": a rate; others:
            intrinsics and the size of the images); for a video with another number of frames, or that cannot be read.
        FileExistsError: where the folder exists.
        OSError: where it cannot be written.
    """
    if format not in FORMATS:
        raise ValueError(f"A trajectory is written as {', '.join(FORMATS)}, got {brief(format)}.")
    if format == "tum":
        write_text(out, _tum(trajectory))
        return [out]
    intrinsics, size = _images_of(trajectory, video)
    with replacing_folder(out, alone=True, anew=True) as part:
        if format == "colmap":
            (part / "sparse/0").mkdir(parents=True)
            for name, text in _colmap(trajectory.c2w, intrinsics, size).items():
                (part / "sparse/0" / name).write_text(text, encoding="utf-8")
        else:
            text = json.dumps(_nerfstudio(trajectory.c2w, intrinsics, size), indent=1)
            (part / "transforms.json").write_text(text, encoding="utf-8")
        if video is not None:
            (part / IMAGES).mkdir()
            for name, frame in zip(_names(len(trajectory.c2w)), iterate_video(video), strict=True):
                Image.fromarray(frame).save(part / IMAGES / name, compress_level=1)
    return [out / ("sparse/0" if format == "colmap" else "transforms.json"), *([out / IMAGES] if video else [])]


def _images_of(trajectory: Trajectory, video: Path | None) -> tuple[np.ndarray, tuple[int, int]]:
    """Intrinsics (F, 3, 3), and width and height of the images in pixels. ValueError where they are not known."""
    size = trajectory.size
    if video is not None:
        count = 0
        for frame in iterate_video(video):
            count, size = count + 1, (frame.shape[1], frame.shape[0])
        if count != len(trajectory.c2w):
            raise ValueError(f"{video} has {count} frames for {len(trajectory.c2w)} poses: the numbers must be equal.")
    if size is None or size == (1, 1):
        raise ValueError(
            "The size of the trajectory's images is not known: give the folder of an episode, with its video."
        )
    intrinsics = trajectory.intrinsics_for(*map(int, size))
    if intrinsics is None:
        raise ValueError("The trajectory has no intrinsics, which this format needs: write it as tum instead.")
    return intrinsics, (int(size[0]), int(size[1]))


def _names(count: int) -> Iterator[str]:
    return (f"frame_{i:06d}.png" for i in range(count))


def _numbers(values: np.ndarray) -> str:
    return " ".join(repr(float(value)) for value in values)


def _tum(trajectory: Trajectory) -> str:
    if trajectory.fps is None:
        raise ValueError("The trajectory has no number of poses per second, which tum needs: give --trajectory-fps.")
    xyzw = Rotation.from_matrix(trajectory.c2w[:, :3, :3]).as_quat()
    rows = np.column_stack((np.arange(len(xyzw)) / trajectory.fps, trajectory.c2w[:, :3, 3], xyzw))
    return "# seconds x y z qx qy qz qw (camera-to-world, OpenCV axes, metres)\n" + "".join(
        f"{_numbers(row)}\n" for row in rows
    )


def _colmap(c2w: np.ndarray, intrinsics: np.ndarray, size: tuple[int, int]) -> dict[str, str]:
    """The files of a model in text: a camera for each set of intrinsics, an image for each pose."""
    distinct, of = np.unique(intrinsics[:, (0, 1, 0, 1), (0, 1, 2, 2)], axis=0, return_inverse=True)
    w2c = inverse(c2w)
    wxyz = Rotation.from_matrix(w2c[:, :3, :3]).as_quat()[:, [3, 0, 1, 2]]
    cameras = [f"{i} PINHOLE {size[0]} {size[1]} {_numbers(each)}\n" for i, each in enumerate(distinct, start=1)]
    images = [
        f"{i + 1} {_numbers(wxyz[i])} {_numbers(w2c[i, :3, 3])} {int(of.ravel()[i]) + 1} {name}\n\n"
        for i, name in enumerate(_names(len(c2w)))
    ]
    return {
        "cameras.txt": "# CAMERA_ID, MODEL, WIDTH, HEIGHT, PARAMS[]\n" + "".join(cameras),
        "images.txt": "# IMAGE_ID, QW, QX, QY, QZ, TX, TY, TZ, CAMERA_ID, NAME\n# POINTS2D[] as (X, Y, POINT3D_ID)\n"
        + "".join(images),
        "points3D.txt": "# POINT3D_ID, X, Y, Z, R, G, B, ERROR, TRACK[] as (IMAGE_ID, POINT2D_IDX)\n",
    }


def _nerfstudio(c2w: np.ndarray, intrinsics: np.ndarray, size: tuple[int, int]) -> dict:
    """The contents of a transforms.json: OpenGL axes; constant intrinsics once, others in every frame."""
    poses = c2w.copy()
    poses[:, :3, :3] = poses[:, :3, :3] @ AXES["opengl"].T
    fields = [
        dict(zip(("fl_x", "fl_y", "cx", "cy"), map(float, vector), strict=True))
        for vector in intrinsics[:, (0, 1, 0, 1), (0, 1, 2, 2)]
    ]
    same = all(each == fields[0] for each in fields)
    frames = [
        {"file_path": f"{IMAGES}/{name}", **({} if same else each), "transform_matrix": pose.tolist()}
        for name, each, pose in zip(_names(len(c2w)), fields, poses, strict=True)
    ]
    return {"camera_model": "OPENCV", "w": size[0], "h": size[1], **(fields[0] if same else {}), "frames": frames}
