"""Arrays and trajectories that others wrote: read as what they say, refused in a sentence, never unpickled."""

import io
import logging
import os
import pickle
import struct
import zipfile

import numpy as np
import pytest
from sanawm_env.agents.scripts import read_path, read_script
from scipy.spatial.transform import Rotation

from sanawm_env.camera.trajectory import load_trajectory
from sanawm_env.system.arrays import load_array, load_arrays


def poses(count, fps=16.0, speed=0.6, turn=0.2):
    """A walk: metres and radians a second."""
    seconds = np.arange(count) / fps
    c2w = np.tile(np.eye(4), (count, 1, 1))
    c2w[:, :3, :3] = Rotation.from_rotvec(np.outer(turn * seconds, [0, 1, 0])).as_matrix()
    c2w[:, 2, 3] = speed * seconds
    return c2w


def test_arrays_are_read_from_npy_files(tmp_path):
    np.save(tmp_path / "good.npy", poses(9))
    assert np.array_equal(load_array(tmp_path / "good.npy"), poses(9))


def test_unreadable_npy_files_are_refused_in_one_sentence(tmp_path):
    np.save(tmp_path / "pickle.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    (tmp_path / "text.npy").write_text("not an array")
    (tmp_path / "empty.npy").write_bytes(b"")
    np.savez(tmp_path / "archive.npy.npz", c2w=poses(9))
    for name in ("pickle.npy", "text.npy", "empty.npy", "archive.npy.npz"):
        with pytest.raises(ValueError, match=name) as caught:
            load_array(tmp_path / name)
        assert "\n" not in str(caught.value)
    with pytest.raises(FileNotFoundError, match="no file"):
        load_array(tmp_path / "missing.npy")


# ---- rates


@pytest.mark.parametrize(("fps", "count"), [(30, 91), (60, 181), (8, 25), (24.0, 73), (29.97, 91)])
def test_a_path_of_another_rate_becomes_the_same_walk_at_16_a_second(tmp_path, caplog, fps, count):
    np.savez(tmp_path / "p.npz", c2w=poses(count, fps), fps=fps)
    with caplog.at_level(logging.WARNING):
        path = read_path(tmp_path / "p.npz")
    (said,) = [record.getMessage() for record in caplog.records]
    assert f"{fps:g} poses per second" in said and "16 per second" in said
    seconds = (count - 1) / fps
    assert abs((len(path) - 1) / 16 - seconds) < 1 / 16
    np.testing.assert_allclose(path[:-1], poses(len(path) - 1), atol=1e-9)  # a straight line, turned evenly
    np.testing.assert_allclose(path[-1], poses(count, fps)[-1], atol=1e-9)


def test_a_path_at_16_a_second_is_taken_bit_for_bit(tmp_path, caplog):
    for fps in ({"fps": 16}, {"fps": np.array([16.0])}, {}):
        np.savez(tmp_path / "p.npz", c2w=poses(49), **fps)
        assert np.array_equal(load_trajectory(tmp_path / "p.npz").at(16).c2w, poses(49))
        np.testing.assert_allclose(read_path(tmp_path / "p.npz"), poses(49), atol=1e-12)
    assert not caplog.records


def test_intrinsics_come_along(tmp_path):
    matrices = np.tile(np.diag([50.0, 50.0, 1.0]), (91, 1, 1))
    matrices[:, 0, 0] += np.arange(91)
    np.savez(tmp_path / "p.npz", c2w=poses(91, 30), intrinsics=matrices, fps=30)
    taken = load_trajectory(tmp_path / "p.npz").at(16)
    assert taken.fps == 16 and taken.intrinsics.shape == (49, 3, 3)
    np.testing.assert_allclose(taken.intrinsics[:, 0, 0], 50 + np.arange(49) * 30 / 16)


@pytest.mark.parametrize("fps", [0, -16, np.nan, np.inf, np.array([30, 16]), "sixteen", np.array(None)])
def test_a_rate_that_is_none_is_refused(tmp_path, fps):
    np.savez(tmp_path / "p.npz", c2w=poses(5), fps=fps)
    with pytest.raises(ValueError, match=r"p\.npz"):
        load_trajectory(tmp_path / "p.npz")


def test_a_rate_that_would_take_for_ever_is_refused(tmp_path):
    np.savez(tmp_path / "p.npz", c2w=poses(5), fps=1e-9)
    with pytest.raises(ValueError, match="over 1,000,000 poses"):
        read_path(tmp_path / "p.npz")


# ---- files of others

TEXTS = {
    "transforms.json": '{"frames": []}',
    "poses.csv": "x,y,z\n0,0,1\n",
    "poses.npy": "not an array",
    "poses.npz": "not an archive",
    "bom.txt": "\ufeff1 0 0 0\n",
}


@pytest.mark.parametrize("name", TEXTS)
def test_text_that_is_no_trajectory_is_not_called_a_pickle(tmp_path, name):
    (tmp_path / name).write_text(TEXTS[name], encoding="utf-8")
    for read in (lambda: read_path(tmp_path / name), lambda: read_script(name, tmp_path, 60)):
        with pytest.raises(
            ValueError, match=r"cannot be read as a trajectory: it (is text of an unknown|has no list)"
        ) as caught:
            read()
        assert "pickle" not in str(caught.value) and "\n" not in str(caught.value)


class Touch:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def bad_files(folder):
    """Files that hold no arrays of plain numbers, and what is said of them."""
    whole = io.BytesIO()
    np.savez_compressed(whole, c2w=poses(49))
    whole = whole.getvalue()
    encrypted = bytearray(whole)
    encrypted[encrypted.rfind(b"PK\x01\x02") + 8] |= 1
    unknown = bytearray(whole)
    unknown[unknown.rfind(b"PK\x01\x02") + 10] = 77
    damaged = bytearray(whole)
    damaged[len(whole) // 2] ^= 0xFF
    objects = io.BytesIO()
    np.savez(objects, c2w=np.array([Touch(folder / "run")], dtype=object))
    claims = io.BytesIO()
    header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000, 4, 4), }"
    npy = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + bytes(128)
    with zipfile.ZipFile(claims, "w") as archive:
        archive.writestr("c2w.npy", npy)
    words = io.BytesIO()
    np.savez(words, c2w=np.array(["a", "b"]))
    return {
        "empty": (b"", "empty"), "cut off": (whole[:-30], ""), "half": (whole[: len(whole) // 2], ""),
        "encrypted": (bytes(encrypted), "encrypted"), "unknown method": (bytes(unknown), ""),
        "damaged": (bytes(damaged), ""),
        "a pickle": (pickle.dumps(Touch(folder / "run")), "pickle, which is never opened"),
        "objects": (objects.getvalue(), "Python objects"), "words": (words.getvalue(), "not plain numbers"),
        "claims": (claims.getvalue(), "its header says shape"), "npy that claims": (npy, "its header says shape"),
        "negative": (npy.replace(b"1000000000", b"-100000000"), "its header says shape"),
        "no header": (b"\x93NUMPY\x01\x00\xff\xff" + b"(" * 9000, ""), "png": (b"\x89PNG\0\0", "neither"),
    }  # fmt: skip


def test_what_holds_no_numbers_is_refused_in_a_sentence_and_runs_nothing(tmp_path):
    for name, (data, says) in bad_files(tmp_path).items():
        path = tmp_path / f"{name}.npz"
        path.write_bytes(data)
        with pytest.raises(ValueError, match=says or "cannot") as caught:
            load_trajectory(path)
        said = str(caught.value)
        assert "cannot be read as arrays" in said and "allow_pickle" not in said, name
        assert "\n" not in said and len(said) < 500, name
    assert not (tmp_path / "run").exists()


def test_arrays_that_are_not_asked_for_do_not_matter(tmp_path):
    np.savez(tmp_path / "a.npz", c2w=poses(3), other=np.array([{}], dtype=object))
    assert list(load_arrays(tmp_path / "a.npz", ["c2w", "fps"])) == ["c2w"]


def test_special_files_are_no_trajectories(tmp_path):
    os.mkfifo(tmp_path / "pipe.npz")
    (tmp_path / "endless.npz").symlink_to("/dev/zero")
    for name, says in (("pipe.npz", "a pipe"), ("endless.npz", "a device"), (".", "a folder")):
        for read in (load_trajectory, load_array):
            with pytest.raises(ValueError, match=says):
                read(tmp_path / name)
