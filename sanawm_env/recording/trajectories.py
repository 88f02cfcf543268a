"""Trajectories written as other programs read them, with the frames of their video beside; docs/trajectories.md says
how each is meant. `camera.trajectory.load_trajectory` reads all of them back."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.spatial.transform import Rotation

from sanawm_env.camera.trajectory import AXES, Trajectory, inverse
from sanawm_env.recording.video import iterate_video
from sanawm_env.system.saving import replacing_folder, write_text

FORMATS = ("colmap", "nerfstudio", "tum")
IMAGES = "images"


def export_trajectory(trajectory: Trajectory, out: Path, format: str, video: Path | None = None) -> list[Path]:
    """Write a trajectory; the files and folders that were.

    colmap: a new folder with sparse/0 (text; points3D.txt is empty, for `colmap point_triangulator`) and, given the
    video of its frames, images. nerfstudio: a new folder with transforms.json and, again, images. tum: one file, in
    seconds from 0. Raises ValueError where it lacks what the format needs (a rate for tum, intrinsics and the size of
    the images for the others) or the video has another number of frames, FileExistsError for a taken folder.
    """
    if format not in FORMATS:
        raise ValueError(f"A trajectory is written as {', '.join(FORMATS)}, got {format!r}.")
    if format == "tum":
        write_text(out, _tum(trajectory))
        return [out]
    intrinsics, size = _pictures(trajectory, video)
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


def _pictures(trajectory: Trajectory, video: Path | None) -> tuple[np.ndarray, tuple[int, int]]:
    """Intrinsics (F, 3, 3) and the size of the images in pixels; ValueError where they are not known."""
    size = trajectory.size
    if video is not None:
        count = 0
        for frame in iterate_video(video):
            count, size = count + 1, (frame.shape[1], frame.shape[0])
        if count != len(trajectory.c2w):
            raise ValueError(f"{video} has {count} frames for {len(trajectory.c2w)} poses: they must be as many.")
    if size is None or size == (1, 1):
        raise ValueError("The size of its images is not known: give the folder of an episode, with its video.")
    intrinsics = trajectory.intrinsics_for(*map(int, size))
    if intrinsics is None:
        raise ValueError("It has no intrinsics of its images, which this format needs: write it as tum instead.")
    return intrinsics, (int(size[0]), int(size[1]))


def _names(count: int) -> Iterator[str]:
    return (f"frame_{i:06d}.png" for i in range(count))


def _numbers(values: np.ndarray) -> str:
    return " ".join(repr(float(value)) for value in values)


def _tum(trajectory: Trajectory) -> str:
    if trajectory.fps is None:
        raise ValueError("It does not say how many poses a second it has, which tum needs: give --trajectory-fps.")
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
    """What is in a transforms.json: OpenGL axes; the intrinsics once where they are constant, else in every frame."""
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
