"""Files of strangers: only regular ones are read, only so much of them, and messages stay short whatever they hold."""

import json
import os
import socket

import numpy as np
import pytest

from sanawm_env.system.files import (
    brief,
    check_count,
    check_file,
    check_number,
    parse_json,
    read_bytes,
    read_json,
    read_text,
    visible,
)


def special_files(folder):
    """Path and kind of everything that is not a file of bytes."""
    os.mkfifo(folder / "pipe")
    (folder / "zero").symlink_to("/dev/zero")
    (folder / "link").symlink_to(folder / "pipe")
    (folder / "folder").mkdir()
    found = {"pipe": "a pipe", "zero": "a device", "link": "a pipe", "folder": "a folder"}
    here = os.getcwd()
    try:
        os.chdir(folder)  # the name of a socket has at most 108 bytes
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind("socket")
    finally:
        os.chdir(here)
    return {folder / name: kind for name, kind in (found | {"socket": "a socket"}).items()}


@pytest.mark.parametrize("read", [check_file, read_bytes, read_text, read_json])
def test_what_is_not_a_regular_file_is_refused_at_once(tmp_path, read):
    for path, kind in special_files(tmp_path).items():
        with pytest.raises(ValueError, match=f"it is {kind}, not a file"):
            read(path, 100)
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "nowhere", 100)


@pytest.mark.parametrize("read", [check_file, read_bytes, read_text, read_json])
def test_a_file_of_the_most_bytes_is_read_and_no_larger_one(tmp_path, read):
    path = tmp_path / "a.json"
    path.write_text('{"a": 1}')
    read(path, 8)
    with pytest.raises(ValueError, match="it is larger"):
        read(path, 7)


def test_hidden_files_and_those_in_hidden_folders_are_not_seen(tmp_path):
    """macOS puts a `._x` beside every x on a foreign disk; the folder itself may be hidden."""
    folder = tmp_path / ".mine"
    (folder / ".trash").mkdir(parents=True)
    for name in ("b.mp4", "a.mp4", "._a.mp4", ".trash/c.mp4"):
        (folder / name).touch()
    assert [path.name for path in visible(folder, "**/*")] == ["a.mp4", "b.mp4"]


def test_links_to_files_are_followed(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    assert read_bytes(tmp_path / "b", 3) == b"abc"


@pytest.mark.parametrize(
    "data", ["schön\nzwei\n".encode(), "schön\nzwei\n".encode("utf-8-sig"), "schön\r\nzwei\r\n".encode("utf-8-sig")]
)
def test_text_is_the_same_from_every_editor(tmp_path, data):
    (tmp_path / "a.txt").write_bytes(data)
    assert read_text(tmp_path / "a.txt", 100) == "schön\nzwei\n"


@pytest.mark.parametrize(("data", "says"), [("schön".encode("utf-16"), "UTF-16"), ("schön".encode("latin-1"), "UTF-8")])
def test_text_in_other_encodings_is_refused(tmp_path, data, says):
    (tmp_path / "a.txt").write_bytes(data)
    with pytest.raises(ValueError, match=says):
        read_text(tmp_path / "a.txt", 100)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        "[" * 200 + "]" * 200,
        '{"a":' * 150 + "1" + "}" * 150,
        "nothing",
        '{"a": 1',
        "9" * 5000,
        "-" + "9" * 400,
    ],
)
def test_what_is_not_json_to_be_read_is_a_value_error(tmp_path, text):
    with pytest.raises(ValueError, match="JSON"):
        parse_json(text)
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ValueError, match="JSON"):
        read_json(tmp_path / "a.json", 2**20)


def test_json_comes_back(tmp_path):
    value = {"a": [1, 2.5, None, {"b": "c"}]}
    (tmp_path / "a.json").write_text(json.dumps(value), encoding="utf-8-sig")
    assert read_json(tmp_path / "a.json", 100) == value
    (tmp_path / "a.json").write_text("[1]")
    with pytest.raises(ValueError, match="not a JSON object"):
        read_json(tmp_path / "a.json", 100)


def test_the_short_form_of_a_value_is_short_and_soon_there():
    bomb = ["x"] * 9
    for _ in range(60):  # 9 ** 61 items
        bomb = [bomb] * 9
    loop = {}
    loop["loop"] = loop
    for value in (bomb, {"a": bomb}, loop, 10**6000, "x" * 10**6, b"x" * 10**6, np.zeros((1000, 1000)), {bytes(99): 1}):
        assert len(brief(value)) <= 80
    for value in (3, 2.5, "text", True, None, (1, 2), [1], {"a": 1}, {1, 2}):
        assert brief(value) == repr(value)


@pytest.mark.parametrize(
    "value", [0, 9, True, 2.0, "3", float("nan"), None, [3], np.float32(3), pytest.param(10**6000, id="huge")]
)
def test_what_is_not_a_count_is_refused_in_a_short_sentence(value):
    with pytest.raises(ValueError, match=r"^batch must be a whole number from 1 to 8, got .{1,80}$"):
        check_count("batch", value, 1, 8)


def test_counts_and_numbers_come_back_as_pythons_own():
    assert check_count("batch", np.int64(8), 1, 8) == 8 and type(check_count("batch", np.int64(8), 1, 8)) is int
    assert check_number("fov", np.float32(0.5)) == 0.5 and type(check_number("fov", 3)) is float


@pytest.mark.parametrize(
    "value", [-1, 3, True, "1", float("nan"), float("inf"), None, np.zeros(1), pytest.param(10**6000, id="huge")]
)
def test_what_is_not_a_number_in_bounds_is_refused_in_a_short_sentence(value):
    with pytest.raises(ValueError, match=r"^fov must be a finite number from 0 to 2, got .{1,80}$"):
        check_number("fov", value, 0, 2)
