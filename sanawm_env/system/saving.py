"""Atomic writing: results appear whole or not at all, and writers do not disturb each other.

    with replacing("numbers.json") as part: part.write_text(...)                one file
    with replacing_folder("runs/session") as part: ...                          a folder, made inside `part`
    with replacing_files("runs/rollout", ("video.mp4", "meta.json")) as part: ...   a set of files

Files are written in a work folder beside the target (`numbers.json.part`) and moved to the target by renaming. The work
folder is locked while its writer runs, so a second writer takes another one (`numbers.json.2.part`) or, with `alone`,
is refused before it begins. The next writer of a target removes what a killed process has left. Links are never
followed when something is removed. Nothing is synchronised with the disk: a kill loses nothing, a power cut may.

A target that is a link is written where it leads, as `open` does, and keeps its permissions. A target that is not a
regular file (a folder, FIFO, device) is refused. Errors of the system keep their type and errno, and say "cannot write
PATH: reason".
"""

import ctypes
import errno
import glob
import hashlib
import itertools
import os
import shutil
import stat
import sys
import tempfile
import uuid
from collections.abc import Iterable, Sequence
from contextlib import ExitStack, suppress
from functools import cache
from pathlib import Path
from typing import Self

from filelock import FileLock, Timeout

PART = ".part"
_LOCK, _OLD, _MODE = ".sanawm-lock", ".sanawm-old", ".sanawm-mode"
_NUMBERS = range(1, 17)  # of the work folders that the next writer looks for
_MOST_NAME = 255 - len(f".{uuid.uuid4().hex}{PART}")  # bytes
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # of fcntl.h, stdio.h


class _Saving:
    """Context manager of a work folder.

    Args:
        target: what is replaced.
        alone: refuse a second writer.
    """

    _folder = False

    def __init__(self, target: str | os.PathLike, *, alone: bool = False):
        self.target = Path(target)
        self._alone = alone
        self._work: _Work | None = None

    def __enter__(self) -> Path:
        """Where to write. Raises BlockingIOError for a second writer, and what the system says of the target."""
        try:
            check_target(self.target, folder=self._folder)
            self._place = Path(os.path.realpath(self.target)) if self.target.is_symlink() else self.target.absolute()
            if self._folder:
                self._place.parent.mkdir(parents=True, exist_ok=True)
            self._work = _Work(self._place, self._alone)
            self._part = self._work.folder
            return self._begin()
        except BaseException as error:
            self.discard()
            if isinstance(error, OSError):
                raise self.said(error) from error
            raise

    def __exit__(self, exception_type, error, _) -> None:
        try:
            if exception_type is None and self._work is not None:
                self._finish()
            elif isinstance(error, OSError) and (said := self.said(error)) is not error:
                raise said from error
        except OSError as error:
            raise self.said(error) from error
        finally:
            self.discard()

    def discard(self) -> None:
        """Remove the work folder, if it is still there."""
        work, self._work = self._work, None
        if work is not None:
            work.remove()

    def _begin(self) -> Path:
        return self._part / self._place.name

    def _finish(self) -> None:
        raise NotImplementedError

    def said(self, error: OSError) -> OSError:
        """The error as a sentence that names the target. Errors about other paths stay as they are."""
        ours = self._work is None or str(self._work.folder) in str(error)
        if str(error).startswith("cannot write ") and (self._work is None or not ours):
            return error
        raw = error.errno is not None and error.filename is None
        if not (ours or raw or type(self) is replacing):
            return error
        reason = error.strerror or (os.strerror(error.errno) if error.errno else error)
        return with_sentence(error, f"cannot write {self.target}: {reason}")


class replacing(_Saving):
    """`with replacing(path) as part`: write to `part`, which replaces `path` if the block ends without an error.

    Args:
        target: the path.
        alone: refuse a second writer.

    Raises:
        OSError: where it cannot be written; BlockingIOError for a second writer.
    """

    def _finish(self) -> None:
        part = self._begin()
        check_target(self.target)
        like = self._place
        if not like.exists():
            like = self._part / _MODE
            like.touch()  # with the mode of any new file; some libraries make theirs private
        mode = stat.S_IMODE(like.stat().st_mode)
        if stat.S_IMODE(part.stat().st_mode) != mode:
            part.chmod(mode)
        os.replace(part, self._place)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write a text file in UTF-8. Raises as `replacing`."""
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8")


class replacing_folder(_Saving):
    """`with replacing_folder(folder) as part`: fill the folder `part`, which replaces `folder` and all that is in it.

    Args:
        target: the folder.
        alone: refuse a second writer.
        anew: refuse to replace a folder that is not empty.

    Raises:
        FileExistsError: with `anew`, for a folder that is not empty.
        OSError: where it cannot be written; BlockingIOError for a second writer.
    """

    _folder = True

    def __init__(self, target: str | os.PathLike, *, alone: bool = False, anew: bool = False):
        super().__init__(target, alone=alone)
        self._anew = anew

    def _begin(self) -> Path:
        if self._anew and self._place.exists() and any(self._place.iterdir()):
            raise self._occupied()
        part = super()._begin()
        part.mkdir()
        return part

    def _occupied(self) -> FileExistsError:
        return FileExistsError(f"cannot write {self.target}: it exists already, give another place or remove it")

    def _finish(self) -> None:
        part = self._part / self._place.name
        if not self._anew:
            return _exchange(part, self._place, self._part / _OLD)
        try:
            os.rename(part, self._place)
        except OSError as error:
            if self._place.is_dir() and any(self._place.iterdir()):
                raise self._occupied() from error
            raise


class replacing_files(_Saving):
    """`with replacing_files(folder, names) as part`: write files to the folder `part`, which replace all files of these
    names in `folder` together. Other files stay. One writer at a time.

    Args:
        folder: of the files.
        names: of the files. The last one says that the others are whole: it is removed first and written last.

    Raises:
        OSError: where it cannot be written; BlockingIOError for a second writer.
    """

    def __init__(self, folder: str | os.PathLike, names: Sequence[str]):
        super().__init__(Path(folder) / names[0], alone=True)
        self._target_folder, self._names = Path(folder), names
        self._absolute = self._target_folder.absolute()  # the caller may go to another folder meanwhile

    def _begin(self) -> Path:
        for name in self._names:
            check_target(self._target_folder / name)
        return self._part

    def _finish(self) -> None:
        new, old, place = self._part, self._part / _OLD, self._absolute
        old.mkdir()
        with ExitStack() as undo:
            for names, source, target in ((reversed(self._names), place, old), (self._names, new, place)):
                for name in names:
                    if os.path.lexists(source / name):
                        os.replace(source / name, target / name)
                        undo.callback(os.replace, target / name, source / name)
            undo.pop_all()


class only_writer:
    """`with only_writer(folder)`: no other process or thread writes to the folder within the block.

    Args:
        folder: the folder.
        name: of the lock file in it; parts of the work that do not disturb each other use different names.
        stays: whether the lock file stays there afterwards.

    Raises:
        BlockingIOError: where another one writes.
        OSError: where the lock file cannot be made.
    """

    def __init__(self, folder: str | os.PathLike, name: str = "lock", *, stays: bool = True):
        self._folder, self._name, self._stays, self._lock = Path(folder), name, stays, None
        self._absolute = self._folder.absolute()

    def __enter__(self) -> None:
        path = self._absolute / self._name
        try:
            self._lock = _acquire(path)
        except Timeout:
            raise BlockingIOError(f"cannot write to {self._folder}: another process does, wait for it or give another "
                                  "folder") from None  # fmt: skip
        except NotImplementedError:
            pass  # this disk has no locks
        except OSError as error:
            raise with_sentence(
                error, f"cannot write {self._folder / self._name}: {error.strerror or error}"
            ) from error

    def __exit__(self, *exception) -> None:
        lock, self._lock = self._lock, None
        if lock is not None:
            if not self._stays:
                remove(self._absolute / self._name)
            lock.release()


class Scratch:
    """A temporary folder of this process, `folder`; also a context manager. Making one removes folders of the same
    prefix that killed processes have left.

    Args:
        prefix: of the folder's name.
        parent: where to make it; None for the system's temporary folder.
    """

    def __init__(self, prefix: str, parent: str | os.PathLike | None = None):
        self.folder = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
        self._held, self._process = None, os.getpid()
        with suppress(NotImplementedError, OSError):
            self._held = _acquire(self.folder / _LOCK)
        for other in self.folder.parent.glob(f"{glob.escape(prefix)}*"):
            with suppress(NotImplementedError, OSError):  # somebody else's, or in use
                if other != self.folder and not other.is_symlink() and (other / _LOCK).exists():
                    held = _acquire(other / _LOCK)
                    remove(other)
                    held.release()

    def __enter__(self) -> Path:
        return self.folder

    def __exit__(self, *exception) -> None:
        if os.getpid() != self._process:  # a fork: the folder is not its own
            return
        remove(self.folder)
        if self._held is not None:
            self._held.release()


def check_apart(outputs: Iterable[str | os.PathLike], inputs: Iterable[str | os.PathLike | None]) -> None:
    """Raise ValueError where an output would replace an input, under whatever names."""
    inputs = [path for path in inputs if path is not None and os.path.exists(path)]
    for output in outputs:
        for path in inputs:
            if os.path.exists(output) and os.path.samefile(output, path):
                raise ValueError(f"cannot write {output}: it is the input {path} itself, give another place")


def check_outside(output: str | os.PathLike, folder: str | os.PathLike) -> None:
    """Raise ValueError where an output is the folder that is read, or lies in it."""
    inside = Path(os.path.realpath(output))
    for place in (inside, *inside.parents):
        if place.exists() and os.path.exists(folder) and place.samefile(folder):
            raise ValueError(f"cannot write {output}: it lies in {folder}, which is read, give a place outside of it")


def check_target(path: str | os.PathLike, *, folder: bool = False) -> None:
    """Check that a path can be replaced.

    Args:
        path: the target.
        folder: whether it is to be a folder.

    Raises:
        IsADirectoryError, NotADirectoryError, OSError: where something else is in its place.
    """
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise with_sentence(error, f"cannot write {path}: {error.strerror}") from error
    if folder and not stat.S_ISDIR(mode):
        raise NotADirectoryError(f"cannot write {path}: a file stands where a folder is needed")
    if not folder and stat.S_ISDIR(mode):
        raise IsADirectoryError(f"cannot write {path}: a folder of that name is in the way")
    if not folder and not stat.S_ISREG(mode):
        raise OSError(f"cannot write {path}: a device, pipe or socket is no place for results, give a file")


def remove(path: Path) -> None:
    """Remove a file, a link, or a folder with all that is in it, as far as possible."""
    with suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink()


def is_part(path: Path) -> bool:
    """Whether a path lies in a work folder."""
    return any(part.endswith(PART) for part in path.parts)


class _Work:
    """The work folder of one writer."""

    def __init__(self, target: Path, alone: bool):
        for number in itertools.count(1):
            self.folder = _work_folder(target, str(number))
            try:
                if self._take():
                    break
            except Timeout:
                if alone:
                    raise BlockingIOError(
                        f"cannot write {target}: another process writes there, wait for it or give another place"
                    ) from None
            except NotImplementedError:  # this disk has no locks: a name that nobody else has
                remove(self.folder)
                self.folder, self._held = _work_folder(target, uuid.uuid4().hex), None
                self.folder.mkdir()
                return
        _clear(self.folder)
        for number in _NUMBERS:
            other = _work_folder(target, str(number))
            if other != self.folder and _is_work(other):
                with suppress(OSError, NotImplementedError):
                    self._of(other).remove()

    @classmethod
    def _of(cls, folder: Path) -> Self:
        """The work folder of a writer that has ended. Raises Timeout where it is in use."""
        work = cls.__new__(cls)
        work.folder = folder
        if not work._take():
            raise Timeout(str(folder))
        return work

    def _take(self) -> bool:
        """Make and lock the folder. False where something else has its name. Raises Timeout where it is in use."""
        for _ in range(100):  # another writer may remove it while we look
            with suppress(FileExistsError):
                self.folder.mkdir()
            if not _is_work(self.folder):
                if os.path.lexists(self.folder):
                    return False
                continue
            try:
                self._held = _acquire(self.folder / _LOCK)
            except FileNotFoundError:
                continue
            except PermissionError:  # that of another user
                raise Timeout(str(self.folder)) from None
            if (self.folder / _LOCK).exists():
                return True
            self._held.release()
        raise Timeout(str(self.folder))

    def remove(self) -> None:
        """Remove the folder, then release its lock."""
        with suppress(OSError):
            _clear(self.folder)
            (self.folder / _LOCK).unlink(missing_ok=True)
            self.folder.rmdir()
        if self._held is not None:
            self._held.release()


def _clear(folder: Path) -> None:
    for path in folder.iterdir():
        if path.name != _LOCK:
            remove(path)


def _acquire(path: Path) -> FileLock:
    """Lock a file, made if missing, without waiting. Another thread may release it. Raises Timeout where it is
    locked, and NotImplementedError on a disk without locks."""
    lock = FileLock(path, timeout=0, thread_local=False)
    try:
        lock.acquire()
    except OSError as error:
        if error.errno in (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP):
            raise NotImplementedError from error
        raise
    return lock


def _work_folder(target: Path, number: str) -> Path:
    name = target.name
    if len(os.fsencode(name)) > _MOST_NAME:
        name = hashlib.sha256(os.fsencode(name)).hexdigest()
    return target.with_name(f"{name}{PART}" if number == "1" else f"{name}.{number}{PART}")


def _is_work(folder: Path) -> bool:
    """Whether a path is a work folder, or an empty folder that was to become one; a link is not."""
    try:
        if not stat.S_ISDIR(folder.lstat().st_mode):
            return False
        return os.path.lexists(folder / _LOCK) or not any(folder.iterdir())
    except OSError:
        return False


def _exchange(new: Path, place: Path, aside: Path) -> None:
    """Make `new` the folder `place`, and move what was there into the work folder; in one step, where the system
    can."""
    for _ in range(100):  # another writer may be as far
        try:
            return os.rename(new, place)  # to nothing, or to an empty folder
        except OSError:
            if not place.is_dir():
                raise
        if _swap(new, place):
            return None
        with suppress(FileNotFoundError):
            os.rename(place, aside)
            try:
                return os.rename(new, place)
            except OSError:
                with suppress(OSError):
                    os.rename(aside, place)
    raise BlockingIOError(f"cannot write {place}: other processes write there all the time")


def _swap(a: Path, b: Path) -> bool:
    """Exchange the names of two paths in one step. False where the system cannot."""
    exchange = _renameat2()
    paths = os.fsencode(a), os.fsencode(b)
    return exchange is not None and not exchange(_AT_FDCWD, paths[0], _AT_FDCWD, paths[1], _RENAME_EXCHANGE)


@cache
def _renameat2():
    if sys.platform != "linux":
        return None
    return getattr(ctypes.CDLL(None), "renameat2", None)


def with_sentence(error: OSError, sentence: str) -> OSError:
    """An error of the same type and errno with another message."""
    kind = type(error) if type(error).__module__ == "builtins" else OSError
    said = kind(sentence)
    said.errno = error.errno
    return said
