"""Files and values of unknown origin. Only regular files are read, and only up to a size; values are shown in errors up
to a length.

Nothing here imports torch, so reading files does not wait for it. ValueErrors of functions that read a file begin with
"it": the caller says which file, and what it should have been.
"""

import codecs
import hashlib
import io
import json
import math
import os
import reprlib
import shutil
import stat
from collections.abc import Collection, Generator, Mapping
from contextlib import contextmanager
from numbers import Integral, Real
from pathlib import Path
from typing import Any

MAX_PIXELS = 89_478_485
"""Larger images and video frames are refused as decompression bombs (Pillow's own limit; 8000x8000 is 64
million pixels)."""
MAX_JSON_DEPTH, MAX_DIGITS = 100, 300  # whole numbers of more digits are no floats
MAX_LETTERS = 20_000
"""Of a prompt; encoders read some 300 words of one."""
_KINDS = {
    stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}  # fmt: skip


# --- files ---


def check_file(path: str | os.PathLike, most_bytes: int | None = None) -> Path:
    """The path of a regular file (links are followed), for libraries that open it themselves. Nothing is opened.

    Args:
        path: of the file.
        most_bytes: largest size; None for any.

    Raises:
        FileNotFoundError, OSError: as the system says.
        ValueError: for folders, pipes, sockets, devices and larger files.
    """
    path = Path(path)
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise ValueError(f"it is {_KINDS.get(stat.S_IFMT(found.st_mode), 'something else')}, not a file")
    if most_bytes is not None and found.st_size > most_bytes:
        raise ValueError(_too_large(most_bytes))
    return path


def open_file(path: str | os.PathLike, most_bytes: int | None = None) -> io.BufferedReader:
    """Open a regular file to read its bytes. Raises as `check_file`, before pipes and devices are opened."""
    return open(check_file(path, most_bytes), "rb")


def read_bytes(path: str | os.PathLike, most_bytes: int) -> bytes:
    """All bytes of a regular file. Raises as `check_file`."""
    with open_file(path, most_bytes) as file:
        data = file.read(most_bytes + 1)
    if len(data) > most_bytes:  # it has grown
        raise ValueError(_too_large(most_bytes))
    return data


def read_text(path: str | os.PathLike, most_bytes: int) -> str:
    r"""Text in UTF-8, with or without a byte order mark, with "\n" at the ends of lines.

    Raises:
        ValueError: for other encodings; else as `check_file`.
    """
    data = read_bytes(path, most_bytes)
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise ValueError("it is text in UTF-16: save it as UTF-8")
    try:
        return data.removeprefix(codecs.BOM_UTF8).decode("utf-8").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"it is not text in UTF-8 (byte {error.start})") from error


def read_json(path: str | os.PathLike, most_bytes: int) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        ValueError: for anything but an object; else as `read_text` and `parse_json`.
    """
    value = parse_json(read_text(path, most_bytes))
    if not isinstance(value, dict):
        raise ValueError("it is not a JSON object")
    return value


def parse_json(text: str) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: for anything else, or nesting over a hundred deep.
    """
    try:
        value = json.loads(text, parse_int=_whole)
    except ValueError as error:
        raise ValueError(f"it is not JSON ({error})") from error
    except RecursionError:
        raise ValueError("its JSON is nested too deeply") from None
    level, depth = [value], 0
    while level := [v for v in level if isinstance(v, dict | list)]:
        depth += 1
        if depth > MAX_JSON_DEPTH:
            raise ValueError("its JSON is nested too deeply")
        level = [inner for v in level for inner in (v.values() if isinstance(v, dict) else v)]
    return value


def _whole(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"a number in it is too large: it has {len(digits):,} digits")
    return int(digits)


def file_sha256(path: Path) -> str:
    """SHA-256 of a regular file. Raises as `check_file`."""
    with open_file(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def visible(folder: str | os.PathLike, pattern: str) -> list[Path]:
    """Paths in a folder that match a pattern of `Path.glob`, sorted, without hidden ones, such as the `._photo.jpg`
    of macOS."""
    folder = Path(folder)
    found = folder.glob(pattern)
    return sorted(p for p in found if not any(part.startswith(".") for part in p.relative_to(folder).parts))


def disk_usage(folder: Path) -> Any:
    """As `shutil.disk_usage`, of the disk of a folder that may not be there yet."""
    folder = folder.absolute()
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder)


def link(source: Path, target: Path) -> None:
    """Give a file a second name: a hard link, or a copy where links are not possible."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _too_large(most_bytes: int) -> str:
    return f"it is larger than {most_bytes / 2**20:.3g} MB"


# --- values ---


def check_count(name: str, value: Any, least: int, most: int) -> int:
    """A whole number from `least` to `most` as a Python int.

    Raises:
        ValueError: for anything else, bools, fractions and text included. It begins with `name`.
    """
    if isinstance(value, Integral) and not isinstance(value, bool) and least <= value <= most:
        return int(value)
    raise ValueError(f"{name} must be a whole number from {least:,} to {most:,}, got {brief(value)}.")


def check_number(name: str, value: Any, least: float = -math.inf, most: float = math.inf) -> float:
    """A finite number from `least` to `most` as a Python float.

    Raises:
        ValueError: for anything else, bools and text included. It begins with `name`.
    """
    if isinstance(value, Real) and not isinstance(value, bool):
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if math.isfinite(number) and least <= number <= most:
            return number
    bounds = "" if math.isinf(least) and math.isinf(most) else f" of at least {least:g}"
    if math.isfinite(most):
        bounds = f" from {least:g} to {most:g}" if math.isfinite(least) else f" of at most {most:g}"
    raise ValueError(f"{name} must be a finite number{bounds}, got {brief(value)}.")


def check_choice(name: str, value: Any, known: Collection[str], *, also: str = "") -> str:
    """The value, which must be one of the known texts; ValueError with the name and the value for anything else. also:
    said after them, such as " or a Task"."""
    if isinstance(value, str) and value in known:
        return value
    raise ValueError(f"{name} must be one of {', '.join(known)}{also}, got {brief(value)}.")


def check_flag(name: str, value: Any) -> bool:
    """The value, which must be True or False; ValueError with the name and the value for anything else."""
    if isinstance(value, bool):
        return value
    raise ValueError(f"{name} must be true or false, got {brief(value)}.")


def brief(value: Any, most: int = 80) -> str:
    """The repr of a value, cut to `most` characters, for error messages. Large values are never written out in full."""
    text = _BRIEF.repr(value)
    return text if len(text) <= most else f"{text[: most - 1]}…"


def reason(error: Any, most: int = 200) -> str:
    """The text of an error in one line without a full stop, cut to `most` characters, for use within a sentence."""
    text = " ".join(str(error).split()).rstrip(".")
    return text if len(text) <= most else f"{text[: most - 1]}…"


@contextmanager
def explaining(what: str, kinds: type[Exception] | tuple[type[Exception], ...] = ValueError) -> Generator[None]:
    """Errors of these kinds within the block become a ValueError, "what: their own sentence."."""
    try:
        yield
    except kinds as error:
        raise ValueError(f"{what}: {reason(error, 400)}.") from error


def as_text(name: str) -> str:
    """A name of a file in letters that every encoding of Unicode has: bytes that are no text are escaped."""
    return name.encode("utf-8", "backslashreplace").decode()


def one_line(text: str) -> str:
    """Any text as fonts can draw it: names of files may hold line breaks, and bytes that are no text."""
    return " ".join(as_text(text).split())


class _Brief(reprlib.Repr):
    def __init__(self):
        super().__init__()
        self.maxlevel = 3
        self.maxtuple = self.maxlist = self.maxdict = self.maxset = self.maxfrozenset = self.maxarray = 6
        self.maxstring = self.maxother = 78

    def repr1(self, x: Any, level: int) -> str:
        if isinstance(x, int) and x.bit_length() > 256:  # Python refuses to write out very long ones
            return f"a number of some {int(x.bit_length() * math.log10(2)) + 1} digits"
        if isinstance(x, bytes | bytearray):
            return repr(bytes(x[:24])) + "..." * (len(x) > 24)
        if isinstance(shape := getattr(x, "shape", None), tuple) and shape:
            return f"{type(x).__name__} of shape {tuple(shape)}"
        for kind, write in ((Mapping, self.repr_dict), (tuple, self.repr_tuple), (list, self.repr_list)):
            if isinstance(x, kind):
                return write(x, level)
        return super().repr1(x, level)


_BRIEF = _Brief()


def check_prompt(prompt: Any) -> str:
    """A prompt without the blanks around it.

    Raises:
        TypeError: for anything but text.
        ValueError: for over `MAX_LETTERS` characters, a NUL, or broken Unicode.
    """
    if not isinstance(prompt, str):
        raise TypeError(f"A prompt must be a string, got {brief(prompt)}.")
    prompt = prompt.strip()
    if len(prompt) > MAX_LETTERS:
        raise ValueError(f"A prompt must have at most {MAX_LETTERS:,} letters, got {len(prompt):,}.")
    if "\0" in prompt or any("\ud800" <= letter <= "\udfff" for letter in prompt):
        raise ValueError(f"A prompt must be text, without NUL or broken Unicode, got {brief(prompt)}.")
    return prompt
