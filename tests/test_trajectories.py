"""Trajectories in the formats of others: read as what their programs mean, refused in a sentence, never half."""

import json
import logging
import math
import struct
from typing import get_args

import numpy as np
import pytest
from sanawm_env.agents.collection import Collection, plan
from sanawm_env.agents.scripts import Given, read_script
from scipy.spatial.transform import Rotation

from sanawm_env.camera.formats import FORMATS, _of_clip
from sanawm_env.camera.inspection import inspect
from sanawm_env.camera.trajectory import AXES, MAX_GAP, Trajectory, inverse, load_trajectory, relative_to_first
from sanawm_env.cli import arguments, main
from sanawm_env.recording.trajectories import export_trajectory
from sanawm_env.recording.video import VideoWriter
from sanawm_env.world.images import load_image

LENS = (500.0, 510.0, 320.0, 240.0)  # of pictures of 640 x 480
OPENGL = np.diag([1.0, -1, -1])


def walk(count=40, fps=16.0):
    """OpenCV c2w: forwards along a curve, looking a little up and down, not from the origin."""
    seconds = np.arange(count) / fps
    c2w = np.tile(np.eye(4), (count, 1, 1))
    angles = np.stack([0.1 * np.sin(seconds), 0.4 * seconds, 0.05 * seconds], axis=1)
    c2w[:, :3, :3] = Rotation.from_rotvec(angles).as_matrix()
    c2w[:, :3, 3] = np.stack([1 + 0.3 * seconds**2, 0.1 * np.sin(seconds), 2 + 0.6 * seconds], axis=1)
    return c2w


def lines(rows):
    return "".join(" ".join(map(repr, map(float, row))) + "\n" for row in rows)


def quaternions(c2w, order="xyzw"):
    xyzw = Rotation.from_matrix(c2w[:, :3, :3]).as_quat()
    return xyzw if order == "xyzw" else xyzw[:, [3, 0, 1, 2]]


def names(count):
    return [f"frame_{i}.png" for i in range(count)]  # not padded: as text, frame_10 comes before frame_2


def write_tum(path, c2w, fps=16.0):
    times = 1e5 + np.arange(len(c2w)) / fps
    path.write_text("# time x y z qx qy qz qw\n" + lines(np.column_stack([times, c2w[:, :3, 3], quaternions(c2w)])))


def write_kitti(path, c2w):
    path.write_text(lines(c2w[:, :3].reshape(-1, 12)))


def write_realestate10k(path, c2w, fps=16.0):
    fx, fy, cx, cy = LENS
    lens = np.tile([fx / 640, fy / 480, cx / 640, cy / 480, 0, 0], (len(c2w), 1))
    rows = np.column_stack([np.arange(len(c2w)) * 1e6 / fps, lens, inverse(c2w)[:, :3].reshape(-1, 12)])
    path.write_text("https://www.youtube.com/watch?v=0\n" + lines(rows))


def write_nerfstudio(path, c2w, lens=None):
    gl = c2w.copy()
    gl[:, :3, :3] = gl[:, :3, :3] @ OPENGL
    frames = [
        {"file_path": f"images/{name}", "transform_matrix": pose.tolist()}
        for name, pose in zip(names(len(c2w)), gl, strict=True)
    ]
    if lens is None:
        lens = dict(zip(("fl_x", "fl_y", "cx", "cy", "w", "h"), (*LENS, 640, 480), strict=True))
    path.write_text(json.dumps({**lens, "frames": sorted(frames, key=lambda f: f["file_path"])}))


def colmap_rows(c2w):
    w2c = inverse(c2w)
    return sorted(zip(names(len(c2w)), quaternions(w2c, "wxyz"), w2c[:, :3, 3], strict=True))


def write_colmap_text(folder, c2w, model="PINHOLE", parameters=LENS):
    folder.mkdir(parents=True)
    rows = [
        f"{i + 1} {lines([[*q, *t]]).strip()} 1 {name}\n{'1.5 2.5 -1 3 4 7' if i % 2 else ''}\n"
        for i, (name, q, t) in enumerate(colmap_rows(c2w))
    ]
    (folder / "images.txt").write_text("# Image list with two lines of data per image:\n" + "".join(rows))
    numbers = " ".join(map(str, parameters))
    (folder / "cameras.txt").write_text(f"# Camera list\n1 {model} 640 480 {numbers}\n")


def write_colmap_binary(folder, c2w, model=1, parameters=LENS):
    folder.mkdir(parents=True)
    data = struct.pack("<Q", len(c2w))
    for i, (name, q, t) in enumerate(colmap_rows(c2w)):
        points = b"".join(struct.pack("<ddQ", 1.5, 2.5, 2**64 - 1) for _ in range(i % 3))
        data += struct.pack("<I7dI", i + 1, *q, *t, 1) + name.encode() + b"\0" + struct.pack("<Q", i % 3) + points
    (folder / "images.bin").write_bytes(data)
    data = struct.pack("<QIiQQ", 1, 1, model, 640, 480) + struct.pack(f"<{len(parameters)}d", *parameters)
    (folder / "cameras.bin").write_bytes(data)


WRITERS = {
    "tum": write_tum,
    "kitti": write_kitti,
    "realestate10k": write_realestate10k,
    "nerfstudio": write_nerfstudio,
    "colmap text": write_colmap_text,
    "colmap binary": write_colmap_binary,
    "npy": lambda path, c2w: np.save(open(path, "wb"), c2w[:, :3]),  # noqa: SIM115
    "c2w": lambda path, c2w: np.savez(open(path, "wb"), c2w=c2w),  # noqa: SIM115
    "w2c": lambda path, c2w: np.savez(open(path, "wb"), w2c=inverse(c2w)),  # noqa: SIM115
    "vggt": lambda path, c2w: np.savez(open(path, "wb"), extrinsic=inverse(c2w)[None, :, :3]),  # noqa: SIM115
    "extrinsics": lambda path, c2w: np.savez(open(path, "wb"), extrinsics=inverse(c2w)[:, :3]),  # noqa: SIM115
    "vipe": lambda path, c2w: np.savez(open(path, "wb"), data=c2w, inds=np.arange(len(c2w))),  # noqa: SIM115
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_gives_the_walk_that_was_written(tmp_path, name):
    path = tmp_path / "some.where"  # told by content, not by its name
    WRITERS[name](path, walk())
    read = load_trajectory(path)
    np.testing.assert_allclose(read.c2w, walk(), atol=1e-9)
    assert read.c2w.dtype == np.float64
    assert read.source == (name if name in FORMATS else "colmap" if "colmap" in name else "numpy")
    assert read.fps == (pytest.approx(16) if name in ("tum", "realestate10k") else None)
    assert load_trajectory(path, format=read.source).source == read.source


@pytest.mark.parametrize("name", ["colmap text", "colmap binary", "nerfstudio", "realestate10k"])
def test_intrinsics_are_brought_to_the_picture(tmp_path, name):
    WRITERS[name](tmp_path / "a", walk())
    read = load_trajectory(tmp_path / "a")
    assert read.intrinsics.shape == (40, 3, 3)
    for width, scale in ((640, 1), (1280, 2)):
        matrix = read.intrinsics_for(width, width * 3 // 4)[0]
        np.testing.assert_allclose(matrix[(0, 1, 0, 1), (0, 1, 2, 2)], np.array(LENS) * scale)
        assert matrix[2].tolist() == [0, 0, 1]
    if name != "realestate10k":  # which is of no size in pixels
        assert read.intrinsics_for(640, 640) is None


def test_an_angle_is_a_lens(tmp_path):
    write_nerfstudio(tmp_path / "t.json", walk(), {"camera_angle_x": 0.69})
    matrix = load_trajectory(tmp_path / "t.json").intrinsics_for(800, 800)[0]
    assert matrix[0, 0] == matrix[1, 1] == pytest.approx(400 / math.tan(0.345))
    assert matrix[0, 2] == 400


def test_distorted_lenses_are_said_and_fisheyes_left_out(tmp_path, caplog):
    write_colmap_text(tmp_path / "a", walk(), "SIMPLE_RADIAL", (500, 320, 240, 0.03))
    write_colmap_binary(tmp_path / "b", walk(), 2, (500.0, 320, 240, 0.0))
    write_colmap_binary(tmp_path / "c", walk(), 5, (*LENS, 0.1, 0.0, 0.0, 0.0))
    assert load_trajectory(tmp_path / "a").intrinsics[0, 1, 1] == 500
    assert "distortion of its cameras (SIMPLE_RADIAL) is left out" in caplog.text
    caplog.clear()
    assert load_trajectory(tmp_path / "b").intrinsics is not None and not caplog.records
    assert load_trajectory(tmp_path / "c").intrinsics is None
    assert "OPENCV_FISHEYE cameras are no pinholes" in caplog.text


def test_a_model_is_found_where_its_program_leaves_it_and_by_its_files(tmp_path):
    write_colmap_binary(tmp_path / "project/sparse/0", walk())
    write_nerfstudio(tmp_path / "transforms.json", walk())
    for path in ("project", "project/sparse/0", "project/sparse/0/images.bin", ".", "transforms.json"):
        np.testing.assert_allclose(load_trajectory(tmp_path / path).c2w, walk(), atol=1e-9)
    (tmp_path / "project/sparse/0/cameras.bin").unlink()
    assert load_trajectory(tmp_path / "project").intrinsics is None


# ---- conventions


@pytest.mark.parametrize("axes", AXES)
@pytest.mark.parametrize("poses", ["c2w", "w2c"])
def test_axes_and_the_direction_of_poses_can_be_told(tmp_path, axes, poses):
    given = walk()
    if axes == "unreal":  # y to the right in a left-handed world: of ours, x forward, y left, z up, its mirror image
        given[:, :3, :3] = given[:, :3, :3] @ AXES["ros"].T
        mirror = np.diag([1.0, -1, 1, 1])
        given = mirror @ given @ mirror
    else:
        given[:, :3, :3] = given[:, :3, :3] @ AXES[axes].T
    given[:, :3, 3] *= 100
    np.save(tmp_path / "p.npy", inverse(given) if poses == "w2c" else given)
    read = load_trajectory(tmp_path / "p.npy", axes=axes, poses=poses, metres_per_unit=0.01)
    expected = walk() if axes != "unreal" else np.diag([1.0, -1, 1, 1]) @ np.diag([1.0, -1, 1, 1]) @ walk()
    np.testing.assert_allclose(read.c2w, expected, atol=1e-9)
    assert (read.axes, read.poses) == (axes, poses)


def test_axes_are_those_that_their_programs_have():
    """Columns: where right, down and forward lie in each."""
    assert AXES["opengl"].T.tolist() == [[1, 0, 0], [0, -1, 0], [0, 0, -1]]  # right, up, backward
    assert AXES["ros"].T.tolist() == [[0, -1, 0], [0, 0, -1], [1, 0, 0]]  # forward, left, up
    assert all(np.linalg.det(axes) == pytest.approx(1) for axes in AXES.values())


def test_an_unreal_camera_that_walks_ahead_and_turns_right_does_so_here(tmp_path):
    """Unreal: x forward, y right, z up, centimetres, yaw clockwise from above."""
    yaw = np.radians(np.linspace(0, 30, 25))
    poses = np.tile(np.eye(4), (25, 1, 1))
    poses[:, 0, 0] = poses[:, 1, 1] = np.cos(yaw)
    poses[:, 1, 0], poses[:, 0, 1] = np.sin(yaw), -np.sin(yaw)
    poses[:, 0, 3] = np.linspace(0, 100, 25)
    np.save(tmp_path / "p.npy", poses)
    last = relative_to_first(load_trajectory(tmp_path / "p.npy", axes="unreal", metres_per_unit=0.01).c2w)[-1]
    np.testing.assert_allclose(last[:3, 3], [0, 0, 1], atol=1e-9)
    np.testing.assert_allclose(last[:3, 2], [0.5, 0, math.sqrt(0.75)], atol=1e-9)


# ---- rates and gaps


def test_gaps_in_time_and_in_the_numbers_of_pictures_are_interpolated(tmp_path, caplog):
    kept = np.delete(np.arange(40), [7, 20, 21])
    whole = walk()
    write_tum(tmp_path / "a.txt", whole)
    rows = (tmp_path / "a.txt").read_text().splitlines(keepends=True)
    (tmp_path / "a.txt").write_text("".join(rows[:1] + [rows[1 + i] for i in kept]))
    write_nerfstudio(tmp_path / "b.json", whole)
    data = json.loads((tmp_path / "b.json").read_text())
    data["frames"] = [f for f in data["frames"] if int(f["file_path"][13:-4]) in kept]
    (tmp_path / "b.json").write_text(json.dumps(data))
    for name in ("a.txt", "b.json"):
        caplog.clear()
        read = load_trajectory(tmp_path / name)
        assert "its 37 poses are brought to 40" in caplog.text
        np.testing.assert_allclose(read.c2w[kept], whole[kept], atol=1e-6)
        np.testing.assert_allclose(read.c2w, whole, atol=1e-3)
    assert read.intrinsics.shape == (40, 3, 3)


def test_positions_follow_a_curve_between_poses(tmp_path):
    """At a third of the rate a spline misses a circle by micrometres, a chain of straight lines by millimetres."""
    seconds = np.arange(61) / 5
    c2w = np.tile(np.eye(4), (61, 1, 1))
    c2w[:, 0, 3], c2w[:, 2, 3] = np.sin(seconds / 2), 1 - np.cos(seconds / 2)
    np.savez(tmp_path / "c.npz", c2w=c2w, fps=5)
    at = load_trajectory(tmp_path / "c.npz").at(16)
    seconds = np.arange(len(at.c2w) - 1) / 16
    expected = np.stack([np.sin(seconds / 2), 1 - np.cos(seconds / 2)], axis=1)
    assert np.abs(at.c2w[:-1, [0, 2], 3] - expected).max() < 2e-5


def test_a_rate_can_be_told(tmp_path):
    write_tum(tmp_path / "a.txt", walk(), fps=1)  # numbers of frames in place of seconds
    assert load_trajectory(tmp_path / "a.txt").fps == pytest.approx(1)
    assert load_trajectory(tmp_path / "a.txt", fps=30).fps == 30
    np.savez(tmp_path / "b.npz", c2w=walk(), fps=16)
    assert load_trajectory(tmp_path / "b.npz", fps=8).fps == 8


def test_lost_poses_are_named_and_filled_if_asked_to(tmp_path):
    c2w = walk()
    c2w[[3, 10, 11, 39]] = np.nan
    np.save(tmp_path / "p.npy", c2w)
    with pytest.raises(ValueError, match=r"poses 3, 10, 11, 39 are lost .*--fill"):
        load_trajectory(tmp_path / "p.npy")
    read = load_trajectory(tmp_path / "p.npy", fill=True)
    np.testing.assert_allclose(read.c2w, walk(39), atol=1e-3)  # the one at the end is left out
    c2w[12 : 12 + MAX_GAP] = np.nan
    np.save(tmp_path / "p.npy", c2w)
    with pytest.raises(ValueError, match=r"over 16 of them in a row: cut the file there"):
        load_trajectory(tmp_path / "p.npy", fill=True)
    np.save(tmp_path / "p.npy", c2w * np.nan)
    with pytest.raises(ValueError, match="all of its 40 poses are lost"):
        load_trajectory(tmp_path / "p.npy", fill=True)


# ---- what is no trajectory


def spoiled(text, old, new):
    assert old in text
    return text.replace(old, new, 1)


def bad_texts(folder):
    """name -> (text, what is said) for each text format."""
    found = {}
    for name, write in (("tum", write_tum), ("kitti", write_kitti), ("realestate10k", write_realestate10k)):
        write(folder / "x", walk(3))
        text = (folder / "x").read_text()
        last = text.rstrip().rpartition(" ")[0]
        found[f"{name} cut off"] = (last, "line [0-9] holds [0-9]+ numbers, where this format has")
        head, _, _ = text.rpartition(" ")
        found[f"{name} words"] = (f"{head} abc\n", "line [0-9] holds 'abc', which is not a number")
        found[f"{name} infinite"] = (f"{head} inf\n", "line [0-9] holds inf, which is too large")
        found[f"{name} empty"] = (text.splitlines()[0] + "\n" if name == "realestate10k" else "# none\n", "no")
    write_kitti(folder / "x", np.diag([-1.0, 1, 1, 1]) @ walk(3))
    found["kitti mirrored"] = ((folder / "x").read_text(), "pose 0 of the trajectory is mirrored")
    write_kitti(folder / "x", np.diag([2.0, 2, 2, 1]) @ walk(3))
    found["kitti scaled"] = ((folder / "x").read_text(), "not orthonormal")
    found["tum long quaternion"] = ("0 0 0 0 0 0 0 1\n1 0 0 0 0 0 0 2\n", "pose 1 must have the length 1, got 2")
    found["tum backwards"] = ("1 0 0 0 0 0 0 1\n0 0 0 0 0 0 0 1\n", "time stamp of pose 1 is not after")
    found["tum aeons"] = (
        "0 0 0 0 0 0 0 1\n1 0 0 0 0 0 0 1\n2 0 0 0 0 0 0 1\n1e9 0 0 0 0 0 0 1\n",
        "its 4 poses are far apart: brought to an even rate they would be",
    )
    for number, (about, row) in enumerate(
        {
            "time": "1e308 0 0 0 0 0 0 1", "endless time": "inf 0 0 0 0 0 0 1", "place": "1 1e308 0 0 0 0 0 1",
            "endless place": "1 -inf 0 0 0 0 0 1", "quaternion": "1 0 0 0 1e200 0 0 1",
        }.items()
    ):  # fmt: skip
        found[f"tum {about} {number}"] = (f"0 0 0 0 0 0 0 1\n{row}\n", "line 2 holds .*, which is too large")
    found["tum far"] = ("0 0 0 0 0 0 0 1\n1 1e20 0 0 0 0 0 1\n", "pose 1 of the trajectory holds values beyond 1e")
    found["tum no time"] = ("0 0 0 0 0 0 0 1\n1e-320 0 0 0 0 0 0 1\n", "time stamps lie .* s apart")
    found["underscores"] = ("0 0 0 0 0 0 0 1_0\n", "not a number")
    write_nerfstudio(folder / "x", walk(3))
    text = (folder / "x").read_text()
    found["json cut off"] = (text[:-20], "it is not JSON")
    found["json without poses"] = (spoiled(text, "transform_matrix", "matrix"), "frame 0 has no transform_matrix")
    found["json words"] = (spoiled(text, "[[", '[["1.0", 0, 0, 0], ['), "no transform_matrix|not a number")
    found["json number"] = (spoiled(text, '"w": 640', '"w": 1e9'), "a width and a height")
    found["json huge"] = (spoiled(text, '"w": 640', '"w": 1' + "0" * 400), "too large")
    found["json focal"] = (spoiled(text, '"fl_x": 500.0', '"fl_x": -1'), "positive focal lengths")
    found["json deep"] = ('{"a": ' + "[" * 500 + "]" * 500 + "}", "nested too deeply")
    found["json frames"] = ('{"frames": {"a": 1}}', "no list of frames")
    return found


@pytest.mark.filterwarnings("error")
def test_bad_text_is_refused_in_a_sentence(tmp_path):
    for name, (text, says) in bad_texts(tmp_path).items():
        path = tmp_path / "bad.txt"
        path.write_text(text)
        with pytest.raises(ValueError, match=says) as caught:
            load_trajectory(path)
        said = str(caught.value)
        assert said.startswith(str(path)) and "\n" not in said and len(said) < 500, name


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        (" 1 frame_0.png", " 1", "holds 9 fields, where an image has 10"),
        (" 1 frame_0.png", " one frame_0.png", "holds 'one', which is not a number"),
        ("\n\n", "\n", "holds no points"),
        ("1.5 2.5 -1", "1.5 2.5", "holds no points"),
    ],
)
def test_bad_text_of_colmap_is_refused(tmp_path, old, new, says):
    write_colmap_text(tmp_path / "m", walk(4))
    file = tmp_path / "m" / "images.txt"
    file.write_text(spoiled(file.read_text(), old, new))
    with pytest.raises(ValueError, match=f"line [0-9] of images.txt {says}"):
        load_trajectory(tmp_path / "m")


@pytest.mark.parametrize("text", ["1 PINHOLE 640 480 1 2 3", "1 EYE 640 480 1", "1", "1 PINHOLE 640 480 1 2 3 x"])
def test_a_bad_camera_of_colmap_is_refused(tmp_path, text):
    write_colmap_text(tmp_path / "m", walk(4))
    (tmp_path / "m" / "cameras.txt").write_text(text)
    with pytest.raises(ValueError, match=r"line 1 of cameras.txt"):
        load_trajectory(tmp_path / "m")


@pytest.mark.slow
def test_a_binary_model_that_is_cut_off_or_lies_is_refused(tmp_path):
    write_colmap_binary(tmp_path / "m", walk(4))
    file, cameras = tmp_path / "m" / "images.bin", tmp_path / "m" / "cameras.bin"
    whole, lenses = file.read_bytes(), cameras.read_bytes()
    for size in range(0, len(whole), 3):
        file.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"images.bin (is cut off|ends in the middle|promises)"):
            load_trajectory(tmp_path / "m")
    points = whole.index(b"\0", 8 + 64 + 4) + 1
    for data, says in (
        (struct.pack("<Q", 2**63) + whole[8:], "promises 9,223,372,036,854,775,808 entries"),
        (struct.pack("<Q", 10**6) + whole[8:], "promises 1,000,000 entries"),
        (whole[:points] + struct.pack("<Q", 2**62) + whole[points + 8 :], "ends in the middle"),
        (whole + b"\0", "more than the 4 images"),
        (struct.pack("<Q", 0), "no poses"),
        (struct.pack("<Q", 1) + struct.pack("<I7dI", 1, 1, 0, 0, 0, 0, 0, 0, 1) + b"a" * 9999, "does not end"),
    ):
        file.write_bytes(data)
        with pytest.raises(ValueError, match=says):
            load_trajectory(tmp_path / "m")
    file.write_bytes(whole)
    for size in range(len(lenses)):
        cameras.write_bytes(lenses[:size])
        with pytest.raises(ValueError, match=r"cameras.bin (is cut off|promises)"):
            load_trajectory(tmp_path / "m")
    cameras.write_bytes(lenses[:12] + struct.pack("<i", 99) + lenses[16:])
    with pytest.raises(ValueError, match="unknown model 99"):
        load_trajectory(tmp_path / "m")
    cameras.write_bytes(lenses[:16] + struct.pack("<Q", 2**60) + lenses[24:])
    with pytest.raises(ValueError, match="have an image of"):
        load_trajectory(tmp_path / "m")


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"other": np.zeros(3)}, "no array named c2w, w2c, extrinsic"),
        ({"c2w": walk().mT}, "translations are in the last rows"),
        ({"c2w": np.diag([1.0, 1, -1, 1]) @ walk()}, "mirrored"),
        ({"c2w": walk()[:, :2]}, "shape"),
        ({"data": walk(), "inds": np.arange(39)}, "inds in it must be 40 numbers"),
        ({"data": walk(), "inds": np.zeros(40)}, "inds in it must be 40 numbers"),
        ({"extrinsic": walk()[None, :, :3], "intrinsic": np.eye(3)[None, None]}, "intrinsics in it must have"),
        ({"c2w": walk(), "intrinsics": np.zeros((40, 3, 3))}, "positive focal lengths"),
        ({"c2w": walk(), "intrinsics": np.full((40, 3, 3), 1e308)}, "positive focal lengths"),
        ({"c2w": walk(), "fps": 1e-300}, "fps in it must be one positive number"),
        ({"c2w": walk() * 1e160}, "holds values beyond"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_bad_arrays_are_refused(tmp_path, fields, says):
    np.savez(tmp_path / "t.npz", **fields)
    with pytest.raises(ValueError, match=says):
        load_trajectory(tmp_path / "t.npz")


def test_a_folder_in_place_of_an_episodes_poses_is_refused(tmp_path):
    (tmp_path / "trajectory.npz").mkdir()
    with pytest.raises(ValueError, match="it is a folder, not a file"):
        load_trajectory(tmp_path)


def test_names_that_hardly_belong_to_a_clip_are_told_at_once():
    with pytest.raises(ValueError, match="no images of a"):
        _of_clip(["a." + "_" * 200_000 + "!", "a/" * 100_000], "a")  # in minutes, where a suffix may have underscores


@pytest.mark.parametrize(
    ("keyword", "says"),
    [
        ({"format": "euroc"}, "one of colmap"),
        ({"axes": "blender"}, "one of opencv, opengl, ros, unreal"),
        ({"poses": "both"}, "one of c2w, w2c"),
        ({"metres_per_unit": 0}, "metres_per_unit must be"),
        ({"metres_per_unit": "1"}, "metres_per_unit must be"),
        ({"fps": math.nan}, "fps of a trajectory must be"),
        ({"format": "tum"}, "cannot be read as a trajectory"),
    ],
)
def test_a_keyword_that_is_none_is_refused(tmp_path, keyword, says):
    np.save(tmp_path / "p.npy", walk())
    with pytest.raises(ValueError, match=says):
        load_trajectory(tmp_path / "p.npy", **keyword)
    with pytest.raises(FileNotFoundError):
        load_trajectory(tmp_path / "none")


# ---- who reads them


@pytest.mark.slow
def test_a_collection_follows_a_trajectory_as_it_is_told_to(tmp_path):
    gl = walk()
    gl[:, :3, :3] = gl[:, :3, :3] @ OPENGL
    np.save(tmp_path / "gl.npy", gl)
    write_colmap_text(tmp_path / "model", walk())
    cameras = [{"trajectory": "gl.npy", "axes": "opengl", "fps": 16}, "model"]
    jobs = plan(Collection(cameras=cameras, folder=tmp_path, scenes=[{"sample": 1}]), tmp_path).jobs
    for job in jobs:
        np.testing.assert_allclose(job.script.c2w, relative_to_first(walk()), atol=1e-9)
    for camera in ({"trajectory": "gl.npy", "axis": "opengl"}, {"axes": "opengl"}):
        with pytest.raises(ValueError, match="A camera is text, or a mapping with trajectory and any of format, axes"):
            plan(Collection(cameras=[camera], folder=tmp_path), tmp_path)
    assert isinstance(read_script("model", tmp_path, 60), Given)


def test_the_options_offer_what_can_be_read():
    assert set(get_args(arguments.TrajectoryFormat)) == set(FORMATS)
    assert set(get_args(arguments.TrajectoryAxes)) == set(AXES)


def test_nothing_is_said_of_a_file_that_is_as_it_should_be(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        for name, write in WRITERS.items():
            write(tmp_path / name, walk())
            load_trajectory(tmp_path / name)
    assert not caplog.records


# ---- what looks wrong


def straight(count=60, speed=0.6):
    """A walk straight ahead at 16 poses a second, with a little turning."""
    c2w = walk(count)
    c2w[:, :3, :3] = Rotation.from_rotvec(np.outer(np.linspace(0, 0.5, count), [0, 1, 0])).as_matrix()
    c2w[0, :3, 3] = 0
    for i in range(1, count):
        c2w[i, :3, 3] = c2w[i - 1, :3, 3] + c2w[i, :3, 2] * speed / 16
    return c2w


def warnings_of(path, fps=16.0, **reading):
    return inspect(load_trajectory(path, **reading), fps).warnings


def test_a_walk_gives_no_warning_and_is_measured(tmp_path):
    for name, write in WRITERS.items():
        write(tmp_path / name, straight())
        assert warnings_of(tmp_path / name) == (), name
    np.save(tmp_path / "p.npy", straight())
    found = inspect(load_trajectory(tmp_path / "p.npy"), 16)
    assert (found.frames, found.fps, found.seconds) == (60, 16, 59 / 16)
    assert found.metres == pytest.approx(0.6 * 59 / 16) and found.top_speed == pytest.approx(0.6)
    assert found.top_turn == pytest.approx(math.degrees(0.5 / 59) * 16)


def test_the_option_that_is_offered_mends_a_wrong_convention(tmp_path):
    gl = straight()
    gl[:, :3, :3] = gl[:, :3, :3] @ OPENGL
    for name, poses, option, reading in (
        ("gl", gl, "--axes opengl", {"axes": "opengl"}),
        ("w2c", inverse(straight()), "--poses w2c", {"poses": "w2c"}),
    ):
        np.save(tmp_path / f"{name}.npy", poses)
        (said,) = (w for w in warnings_of(tmp_path / f"{name}.npy") if "backwards" in w)
        assert option in said and "100%" in said
        assert not [w for w in warnings_of(tmp_path / f"{name}.npy", **reading) if "backwards" in w]


def test_upside_down_worlds_are_said(tmp_path):
    world = straight()
    z_up = np.eye(4)
    z_up[:3, :3] = [[1, 0, 0], [0, 0, 1], [0, -1, 0]]  # OpenCV's down to -z
    np.save(tmp_path / "right.npy", z_up @ world)
    assert warnings_of(tmp_path / "right.npy") == ()
    np.save(tmp_path / "wrong.npy", np.diag([1.0, -1, -1, 1]) @ z_up @ world)
    assert any("Up is down" in warning for warning in warnings_of(tmp_path / "wrong.npy"))


def test_jumps_and_speeds_are_said_with_what_mends_them(tmp_path):
    c2w = straight()
    c2w[30:, 0, 3] += 5
    np.save(tmp_path / "jump.npy", c2w)
    assert "jumps at pose 30 (5" in " ".join(warnings_of(tmp_path / "jump.npy"))
    far = straight()
    far[:, :3, 3] *= 100
    np.save(tmp_path / "cm.npy", far)
    (said,) = warnings_of(tmp_path / "cm.npy")
    assert "scale other than metres: --metres-per-unit 0.01 makes" in said
    assert warnings_of(tmp_path / "cm.npy", metres_per_unit=0.01) == ()
    assert "--metres-per-unit 0.01 makes" in warnings_of(tmp_path / "cm.npy", metres_per_unit=100)[0]  # of the file
    fast = " ".join(warnings_of(tmp_path / "jump.npy", fps=160))
    assert "turns by" in fast and "moves at 6 m/s" in fast and "--trajectory-fps" in fast


@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_shortest_are_measured_too(tmp_path, count):
    np.save(tmp_path / "p.npy", straight()[:count])
    assert inspect(load_trajectory(tmp_path / "p.npy"), 16).warnings == ()
    np.save(tmp_path / "p.npy", np.tile(np.eye(4), (count, 1, 1)))
    assert inspect(load_trajectory(tmp_path / "p.npy"), 16).top_speed == 0


@pytest.mark.slow
def test_the_command_shows_what_it_understood_and_draws_it(tmp_path, capsys):
    write_colmap_binary(tmp_path / "m", straight())
    main(["trajectory", str(tmp_path / "m"), "--plot", str(tmp_path / "p.png"), "--trajectory-fps", "16"])
    said = capsys.readouterr().out
    for part in (
        "colmap, w2c, opencv axes",
        "60, 16 per second: 3.69 s",
        "2.21 m",
        "0.6 m/s (within",
        "65.2 degrees horizontally",
    ):
        assert part in said
    assert "!" not in said
    assert load_image(tmp_path / "p.png").size[0] > 500
    with pytest.raises(SystemExit) as ended:
        main(["trajectory", str(tmp_path / "none")])
    assert ended.value.code == 2


# ---- written for others


def episode(folder, c2w):
    folder.mkdir()
    with VideoWriter(folder / "video.mp4", fps=16, crf=0) as video:
        video.append(np.full((len(c2w), 48, 64, 3), 90, np.uint8))
    matrices = np.tile([[50.0, 0, 32], [0, 51, 24], [0, 0, 1]], (len(c2w), 1, 1))
    np.savez(folder / "trajectory.npz", c2w=c2w, intrinsics=matrices, fps=16)
    return folder


@pytest.mark.parametrize("form", ["colmap", "tum", "nerfstudio"])
def test_what_is_exported_of_an_episode_reads_back(tmp_path, form, capsys):
    given = load_trajectory(episode(tmp_path / "e", walk(9)))
    main(["trajectory", str(tmp_path / "e"), "--export", str(tmp_path / "out"), "--format", form])
    read = load_trajectory(tmp_path / "out")
    assert read.source == form
    np.testing.assert_allclose(read.c2w, given.c2w, atol=1e-12)
    if form == "tum":
        assert read.fps == pytest.approx(16)
    else:
        np.testing.assert_array_equal(read.intrinsics, given.intrinsics)
        assert read.size == (64, 48)
        pictures = sorted((tmp_path / "out" / "images").iterdir())
        assert len(pictures) == 9 and load_image(pictures[8]).size == (64, 48)
        assert "images" in capsys.readouterr().out
        with pytest.raises(SystemExit):
            main(["trajectory", str(tmp_path / "e"), "--export", str(tmp_path / "out"), "--format", form])


@pytest.mark.parametrize("form", ["colmap", "nerfstudio"])
def test_a_lens_that_zooms_is_exported_pose_by_pose(tmp_path, form):
    matrices = np.tile([[50.0, 0, 32], [0, 50, 24], [0, 0, 1]], (9, 1, 1))
    matrices[:, 0, 0] += np.arange(9) // 3
    export_trajectory(Trajectory(walk(9), matrices, size=(64, 48)), tmp_path / "out", form)
    np.testing.assert_array_equal(load_trajectory(tmp_path / "out").intrinsics, matrices)


@pytest.mark.parametrize(
    ("trajectory", "form", "says"),
    [
        (Trajectory(walk(9)), "tum", "give --trajectory-fps"),
        (Trajectory(walk(9)), "colmap", "size of the trajectory's images is not known"),
        (Trajectory(walk(9), size=(64, 48)), "nerfstudio", "no intrinsics"),
        (Trajectory(walk(9), fps=16), "kitti", "is written as"),
    ],
)
def test_what_a_format_lacks_is_said_and_nothing_is_left(tmp_path, trajectory, form, says):
    with pytest.raises(ValueError, match=says):
        export_trajectory(trajectory, tmp_path / "out", form)
    assert not (tmp_path / "out").exists()


def test_a_video_of_another_length_is_refused(tmp_path):
    folder = episode(tmp_path / "e", walk(9))
    with pytest.raises(ValueError, match="has 9 frames for 8 poses"):
        export_trajectory(Trajectory(walk(8), fps=16), tmp_path / "out", "colmap", folder / "video.mp4")
    assert not (tmp_path / "out").exists()


def test_pycolmap_reads_what_is_exported_and_is_read(tmp_path):
    """Where it is installed; it is no dependency, at 135 MB."""
    pycolmap = pytest.importorskip("pycolmap")
    episode(tmp_path / "e", walk(9))
    main(["trajectory", str(tmp_path / "e"), "--export", str(tmp_path / "out"), "--format", "colmap"])
    model = pycolmap.Reconstruction(str(tmp_path / "out/sparse/0"))
    poses = {image.name: image.cam_from_world().matrix() for image in model.images.values()}
    np.testing.assert_allclose(np.stack([poses[name] for name in sorted(poses)]), inverse(walk(9))[:, :3], atol=1e-9)
    for name, write in (("bin", model.write_binary), ("txt", model.write_text)):
        (tmp_path / name).mkdir()
        write(str(tmp_path / name))
        np.testing.assert_allclose(load_trajectory(tmp_path / name).c2w, walk(9), atol=1e-9)
