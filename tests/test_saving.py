"""Results are written whole or not at all, by one writer or several, and what a kill leaves goes away."""

import ast
import errno
import multiprocessing
import os
import re
import stat
import threading
from pathlib import Path

import pytest

from sanawm_env.system import saving
from sanawm_env.system.saving import only_writer, replacing, replacing_files, replacing_folder
from tests.syntax import parse


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def killed(target, write):
    """What a process leaves that is killed while it writes."""

    def child():
        write(target)
        os._exit(9)

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join()


def half(target):
    replacing(target).__enter__().write_text("half")


def half_folder(target):
    (replacing_folder(target).__enter__() / "a").write_text("half")


def test_a_file_appears_at_the_end_and_alone(tmp_path):
    with replacing(tmp_path / "x.json") as part:
        part.write_text("whole")
        assert part.name == "x.json"  # libraries look at suffixes
        assert not (tmp_path / "x.json").exists()
    assert (tmp_path / "x.json").read_text() == "whole"
    assert names(tmp_path) == ["x.json"]


@pytest.mark.parametrize("error", [RuntimeError("no"), KeyboardInterrupt()])
def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path, error):
    (tmp_path / "x").write_text("old")
    with pytest.raises(type(error)), replacing(tmp_path / "x") as part:
        part.write_text("half")
        raise error
    assert (tmp_path / "x").read_text() == "old" and names(tmp_path) == ["x"]


def test_errors_of_the_disk_are_one_sentence_and_keep_their_type(tmp_path):
    with (
        pytest.raises(OSError, match=r"^cannot write .*/x: No space left on device$") as caught,
        replacing(tmp_path / "x"),
    ):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert caught.value.errno == errno.ENOSPC
    with (
        pytest.raises(FileNotFoundError, match=r"^cannot write .*/none/x: No such file"),
        replacing(tmp_path / "none/x"),
    ):
        pass
    with pytest.raises(OSError, match=r"^cannot write .*: File name too long$"), replacing(tmp_path / ("x" * 256)):
        pass
    with pytest.raises(OSError, match=r"^cannot write .*: Not a directory$"):
        (tmp_path / "file").touch()
        with replacing(tmp_path / "file/x"):
            pass


def test_errors_about_other_places_stay_what_they_are(tmp_path):
    with pytest.raises(FileNotFoundError, match="elsewhere"), replacing_folder(tmp_path / "x"):
        (tmp_path / "elsewhere").read_text()
    with (
        pytest.raises(OSError, match=r"^cannot write .*/x: No space left on device$"),
        replacing_folder(tmp_path / "x") as part,
        replacing(part / "inside"),
    ):
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_name_as_long_as_the_disk_takes_is_written(tmp_path):
    for name in ("x" * 255, "ä" * 127):
        with replacing(tmp_path / name) as part:
            part.touch()
        with replacing(tmp_path / name) as part, replacing(tmp_path / name) as other:
            part.touch(), other.touch()
    assert len(names(tmp_path)) == 2


@pytest.mark.parametrize("name", ["12:30", "-x", "[b]x", "a\nb", "%03d.mp4", "$x$", "x.part", "\udcff", " "])
def test_names_are_taken_as_they_are(tmp_path, name):
    with replacing(tmp_path / name) as part:
        part.write_text("x")
    with replacing_folder(tmp_path / f"{name}d") as part:
        (part / "x").touch()
    assert names(tmp_path) == sorted([name, f"{name}d"])


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_a_new_file_has_the_mode_that_open_gives_and_an_old_one_keeps_its_own(tmp_path, umask):
    before = os.umask(umask)
    try:
        for name in ("new", "old"):
            with replacing(tmp_path / name) as part:
                os.close(os.open(part, os.O_CREAT, 0o600))  # as libraries do that make a temporary file
            if name == "new":
                assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o666 & ~umask
        (tmp_path / "old").chmod(0o640)
        with replacing(tmp_path / "old") as part:
            part.touch()
        assert stat.S_IMODE((tmp_path / "old").stat().st_mode) == 0o640
    finally:
        os.umask(before)


def test_a_link_is_written_where_it_leads(tmp_path):
    (tmp_path / "far").mkdir()
    (tmp_path / "link").symlink_to("far/x")
    for text in ("first", "second"):
        with replacing(tmp_path / "link") as part:
            part.write_text(text)
        assert (tmp_path / "far/x").read_text() == text
    assert (tmp_path / "link").is_symlink() and names(tmp_path / "far") == ["x"]


def test_what_is_no_regular_file_is_never_replaced(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "folder").mkdir()
    (tmp_path / "to_device").symlink_to("/dev/null")
    (tmp_path / "file").touch()
    for name in ("fifo", "folder", "to_device"):
        with (
            pytest.raises(OSError, match=r"^cannot write .*(no place for results|in the way)"),
            replacing(tmp_path / name),
        ):
            pytest.fail("refused too late")
        with pytest.raises(OSError, match="cannot write"), replacing_files(tmp_path, ("video", name)):
            pytest.fail("refused too late")
    with pytest.raises(NotADirectoryError), replacing_folder(tmp_path / "file"):
        pytest.fail("refused too late")
    with pytest.raises(OSError, match="no place"), replacing(tmp_path / "later") as part:
        part.touch()
        os.mkfifo(tmp_path / "later")
    assert names(tmp_path) == ["fifo", "file", "folder", "later", "to_device"]


def test_a_writer_that_is_just_beginning_is_left_alone(tmp_path, monkeypatch):
    """Its folder is there and its lock is not yet: who clears up after others has looked a moment too early."""
    other = saving._work_folder(tmp_path / "x", "2")
    looks = []

    def is_work(folder):
        if folder == other:
            looks.append(folder)
            return len(looks) == 1
        return original(folder)

    original = saving._is_work
    other.mkdir()
    (other / "x").write_text("being written")
    monkeypatch.setattr(saving, "_is_work", is_work)
    with replacing(tmp_path / "x") as part:
        part.write_text("mine")
    assert len(looks) == 2
    assert (other / "x").read_text() == "being written" and (tmp_path / "x").read_text() == "mine"


def test_threads_and_processes_that_save_to_one_place_each_write_a_whole_one(tmp_path):
    both = threading.Barrier(4)
    errors = []

    def write(text):
        try:
            for _ in range(5):
                with replacing(tmp_path / "x") as part:
                    part.write_text(text)
                    both.wait()  # all write at once
                with replacing_folder(tmp_path / "d") as part:
                    for name in "ab":
                        (part / name).write_text(text)
                    both.wait()
                both.wait()
                assert (tmp_path / "d/a").read_text() == (tmp_path / "d/b").read_text()
        except BaseException as error:
            errors.append(error)
            both.abort()

    threads = [threading.Thread(target=write, args=(text,)) for text in "1234"]
    [thread.start() for thread in threads], [thread.join() for thread in threads]
    assert not errors
    assert (tmp_path / "x").read_text() in "1234" and names(tmp_path) == ["d", "x"]


def test_a_second_writer_is_refused_where_one_is_all_that_makes_sense(tmp_path):
    with replacing_files(tmp_path, ("video", "meta")) as part:
        (part / "video").touch()
        with (
            pytest.raises(BlockingIOError, match="another process writes there"),
            replacing_files(tmp_path, ("video", "meta")),
        ):
            pytest.fail("refused too late")
    with only_writer(tmp_path), pytest.raises(BlockingIOError, match="another process does"), only_writer(tmp_path):
        pytest.fail("refused too late")
    with only_writer(tmp_path):
        pass
    assert (tmp_path / "video").exists()


@pytest.mark.parametrize("write", [half, half_folder])
def test_what_a_kill_leaves_goes_away_with_the_next_save(tmp_path, write):
    target = tmp_path / "x"
    killed(target, write)
    assert names(tmp_path) == ["x.part"]
    with replacing(tmp_path / "other") as part:
        part.touch()
    assert "x.part" in names(tmp_path)  # it is nobody else's business
    with replacing(target) as part:
        assert names(part.parent) == [".sanawm-lock"]
        killed(target, write)  # beside a live one
        assert names(tmp_path) == ["other", "x.2.part", "x.part"]
        part.write_text("x")
    with replacing(target) as part:
        assert names(tmp_path) == ["other", "x", "x.part"]
        part.write_text("x")
    assert names(tmp_path) == ["other", "x"]


def test_cleaning_removes_nothing_that_is_not_ours(tmp_path):
    """Not through links, and not what only has such a name."""
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis/.sanawm-lock").touch()
    (tmp_path / "thesis/text").write_text("three years")
    (tmp_path / "x.part").symlink_to("thesis")
    (tmp_path / "x.2.part").mkdir()
    (tmp_path / "x.2.part/notes").write_text("mine")
    (tmp_path / "x.3.part").write_text("mine")
    for _ in range(2):
        with replacing(tmp_path / "x") as part:
            part.touch()
    assert (tmp_path / "thesis/text").read_text() == "three years" and (tmp_path / "x.part").is_symlink()
    assert names(tmp_path / "x.2.part") == ["notes"] and (tmp_path / "x.3.part").read_text() == "mine"
    killed(tmp_path / "y", lambda target: (replacing(target).__enter__().parent / "l").symlink_to(tmp_path / "thesis"))
    with replacing(tmp_path / "y") as part:
        part.touch()
    assert (tmp_path / "thesis/text").read_text() == "three years"


def test_a_folder_is_replaced_with_all_that_is_in_it(tmp_path):
    for text in ("old", "new"):
        with replacing_folder(tmp_path / "d") as part:
            (part / text).touch()
        assert names(tmp_path / "d") == [text]
    with pytest.raises(RuntimeError), replacing_folder(tmp_path / "d") as part:
        raise RuntimeError
    assert names(tmp_path / "d") == ["new"] and names(tmp_path) == ["d"]


def test_a_folder_is_replaced_where_the_system_cannot_swap_names(tmp_path, monkeypatch):
    monkeypatch.setattr("sanawm_env.system.saving._renameat2", lambda: None)
    test_a_folder_is_replaced_with_all_that_is_in_it(tmp_path)


def test_a_folder_that_must_be_new_is_never_replaced(tmp_path):
    (tmp_path / "d").mkdir()
    with replacing_folder(tmp_path / "d", anew=True) as part:
        (part / "a").touch()
    assert names(tmp_path / "d") == ["a"]
    with pytest.raises(FileExistsError, match="exists already"), replacing_folder(tmp_path / "d", anew=True):
        pytest.fail("refused too late")
    with (
        pytest.raises(FileExistsError, match="exists already"),
        replacing_folder(tmp_path / "new/e", anew=True) as part,
    ):
        (tmp_path / "new/e").mkdir()
        (tmp_path / "new/e/theirs").touch()
    assert names(tmp_path / "new/e") == ["theirs"] and names(tmp_path / "new") == ["e"]


def test_what_was_begun_in_one_folder_ends_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("out").mkdir()
    with only_writer("out", stays=False), replacing_files("out", ("a", "b")) as part, replacing("c") as single:
        monkeypatch.chdir("/")
        (part / "a").write_text("a")
        single.write_text("c")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a", "c", "out"]


def test_a_set_of_files_is_replaced_as_one(tmp_path, monkeypatch):
    three = ("video", "sheet", "meta")

    def write(text, some=three):
        with replacing_files(tmp_path, three) as part:
            for name in some:
                (part / name).write_text(text)

    (tmp_path / "notes").write_text("mine")
    write("old")
    write("new", ("video", "meta"))  # an old sheet does not stay beside another video
    assert {name: (tmp_path / name).read_text() for name in names(tmp_path)} == {
        "notes": "mine", "video": "new", "meta": "new",
    }  # fmt: skip
    real, seen = os.replace, []

    def refuse(source, target):
        seen.append((tmp_path / "meta").exists())
        if target == tmp_path / "meta" and str(source).endswith(".part/meta"):
            raise OSError(errno.EIO, "Input/output error")
        real(source, target)

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(OSError, match="Input/output error"):
        write("newer")
    assert (tmp_path / "video").read_text() == (tmp_path / "meta").read_text() == "new"
    assert names(tmp_path) == ["meta", "notes", "video"]
    assert seen[0] and not any(seen[1:4])  # while files change, nothing says that they are whole


def test_a_disk_without_locks_is_written_too(tmp_path, monkeypatch):
    def refuse(self):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("filelock.FileLock.acquire", lambda self, *_, **__: refuse(self))
    for _ in range(2):
        with replacing(tmp_path / "x") as part, only_writer(tmp_path):
            part.write_text("x")
        with replacing_folder(tmp_path / "d") as part:
            (part / "a").touch()
    assert names(tmp_path / "d") == ["a"] and not list(tmp_path.glob("*.part"))


# ---- whoever writes results, writes them so

ROOT = Path(__file__).parents[1]
WRITES = {
    "write_text", "write_bytes", "savez", "savez_compressed", "savefig", "save", "save_file", "copyfile", "copytree",
    "write_table", "ParquetWriter", "dump", "tofile", "rename", "replace", "TarWriter", "ShardWriter",
}  # fmt: skip
HELPERS = {"replacing", "replacing_folder", "replacing_files", "appearing"}
ALLOWED = {
    ("system/saving.py", "_finish"): "the helper itself",
    ("system/saving.py", "move"): "the helper itself",
    ("system/saving.py", "_exchange"): "the helper itself",
    ("engines/sanawm/codec/patch_pca.py", "save"): "the room below the helper's; who calls it wraps it",
    ("system/files.py", "link"): "another name for a file, in a folder that is being made",
    ("engines/sanawm/hub.py", "download"): "a download goes on where it stopped, under a lock",
    ("viewer/session.py", "save"): "a session saves itself with the helper",
    ("viewer/page.py", "*"): "pictures into memory",
    ("viewer/files.py", "*"): "moments into a folder that is being made",
    ("viewer/store.py", "_to_disk"): "a snapshot saves itself with the helper",
    ("simulation/episode.py", "save"): "a state saves itself with the helper",
    ("recording/lerobot.py", "*"): "files of an export, in a folder that is being made",
    ("recording/episode.py", "_write"): "in the folder of a RolloutWriter",
    ("recording/rollout.py", "_write"): "in the folder of a RolloutWriter",
    ("recording/dataset.py", "accept"): "an episode that is whole gets its name",
    ("recording/dataset.py", "note"): "a line is appended, and a torn one is read over",
    ("examples/time_travel.py", "main"): "an example is read more than it is run",
    ("examples/own_engine.py", "main"): "an example is read more than it is run",
    ("recording/video.py", "_open"): "into the part of a `replacing`",
    ("serving/service.py", ""): "a snapshot saves itself with the helper",
    ("camera/reconstruction.py", "*"): "in a temporary folder that two processes share",
    ("serving/keep.py", "write"): "a snapshot saves itself with the helper",
    ("serving/wire.py", "_encoded"): "pictures into memory",
    ("examples/vlm_walk.py", "picture"): "a picture into memory",
    ("examples/openenv/app.py", "png"): "a picture into memory",
}  # fmt: skip


def bare_writes(path):
    """(function, line) of what writes files outside of a `with` of the helpers."""

    def name_of(call):
        function = call.func
        return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")

    def opens_to_write(call):
        modes = [a.value for a in call.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
        return name_of(call) == "open" and any(re.fullmatch(r"[wax]b?\+?", mode) for mode in modes)

    def writes(call):
        if name_of(call) not in WRITES or (isinstance(call.func, ast.Name) and name_of(call) in ("write_text", "save")):
            return False  # those are the helper, and a local function
        owner = getattr(getattr(call.func, "value", None), "id", "")
        if name_of(call) in ("replace", "dump", "rename"):  # of texts, dataclasses and trees, too
            return owner in ("os", "json", "path", "part", "partial")
        return True

    def walk(node, function, safe):
        if isinstance(node, ast.FunctionDef):
            function = node.name
        if isinstance(node, ast.With):
            safe = safe or any(
                isinstance(c, ast.Call) and name_of(c) in HELPERS
                for item in node.items for c in ast.walk(item.context_expr)
            )  # fmt: skip
        if isinstance(node, ast.Call) and not safe and (opens_to_write(node) or writes(node)):
            yield function, node.lineno
        for child in ast.iter_child_nodes(node):
            yield from walk(child, function, safe)

    yield from walk(parse(path.read_text()), "", False)


@pytest.mark.slow
def test_every_result_is_written_by_the_one_helper():
    found = []
    for folder in (ROOT / "sanawm_env", ROOT / "agents", ROOT / "examples"):
        for path in folder.rglob("*.py"):
            name = str(path.relative_to(folder if folder.name == "sanawm_env" else ROOT))
            for function, line in bare_writes(path):
                if (name, function) not in ALLOWED and (name, "*") not in ALLOWED:
                    found.append(f"{name}:{line} in {function}")
    assert found == []


def test_the_search_for_bare_writes_finds_them(tmp_path):
    (tmp_path / "a.py").write_text(
        "def f():\n    p.write_text('')\n    open(p, 'w')\n    p.open('ab')\n    np.savez(p)\n    os.replace(p, q)\n"
        "    with replacing(p) as q:\n        q.write_text('')\n    open(p)\n    text.replace('a', 'b')\n"
    )
    assert list(bare_writes(tmp_path / "a.py")) == [("f", line) for line in (2, 3, 4, 5, 6)]
