"""Messages between a server and its clients: one map of plain values and arrays in each.

A message is the length of its head in four bytes (big endian), the head in msgpack, and the bytes of all its arrays in
the order in which the head names them. So large data is never parsed, and a small message cannot become a large value.
In the head an array is an extension with dtype, shape, encoding and number of bytes. Nothing is unpickled.

Images (uint8, channels last) are sent raw, as PNG (lossless) or as JPEG (lossy). Clients send raw arrays only.
"""

import io
from collections.abc import Mapping
from typing import Any, Literal

import msgpack
import numpy as np
from PIL import Image

from sanawm_env.system.files import MAX_PIXELS, brief, reason

VERSION = 1
MAX_HEAD_BYTES = 2**20
MAX_DEPTH = 32
Encoding = Literal["raw", "png", "jpeg"]
JPEG_QUALITY = 90
_ARRAY = 1  # msgpack's code of our extension
_LENGTH = 4
_MOST_ROWS = 65500  # of an image, in both formats
_DTYPES = {
    np.dtype(name).str: np.dtype(name)
    for name in ("bool", "uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "float16",
                 "float32", "float64")
}  # fmt: skip


def pack(message: Mapping[str, Any], images: Encoding = "raw") -> bytes:
    """Write a message.

    Args:
        message: plain values, and arrays of bools, integers or floats.
        images: encoding of its images.

    Raises:
        TypeError: for values of other types.
        ValueError: for a head over 1 MiB.
    """
    blobs: list[bytes] = []

    def extension(value: Any) -> Any:
        if isinstance(value, tuple):
            return list(value)
        if isinstance(value, np.ndarray | np.generic) and value.dtype.str in _DTYPES:
            encoding, data = _encoded(value, images)
            blobs.append(data)
            return msgpack.ExtType(_ARRAY, msgpack.packb([value.dtype.str, list(value.shape), encoding, len(data)]))
        raise TypeError(f"Messages hold plain values and arrays of numbers, got {brief(value)}.")

    head = msgpack.packb(message, default=extension, strict_types=True)
    if len(head) > MAX_HEAD_BYTES:
        raise ValueError(
            f"The head of a message must have at most {MAX_HEAD_BYTES:,} bytes, got {len(head):,}: ask for less."
        )
    return b"".join((len(head).to_bytes(_LENGTH, "big"), head, *blobs))


def unpack(message: bytes, images: bool = False, most: int = MAX_HEAD_BYTES) -> dict[str, Any]:
    """Read a message. Its arrays are copies.

    Args:
        message: what `pack` returned.
        images: whether PNG and JPEG are decoded.
        most: largest accepted head in bytes.

    Raises:
        ValueError: in one sentence, for anything else.
    """
    length = int.from_bytes(message[:_LENGTH], "big")
    begin = _LENGTH + length
    if length > most or len(message) < begin:
        raise ValueError("This is no message: its head is cut off or too long.")
    rest = memoryview(message)[begin:]

    def extension(code: int, data: bytes) -> Any:
        nonlocal rest
        if code != _ARRAY:
            raise ValueError(f"it holds an unknown extension {code}")
        dtype, shape, encoding, size = _head_of(data)
        if size > len(rest):
            raise ValueError("an array in it is cut off")
        blob, rest = rest[:size], rest[size:]
        if encoding == "raw" or encoding == "scalar":
            if _bytes(dtype, shape) != size:
                raise ValueError(f"an array {dtype} {brief(shape)} in it cannot have {size} bytes")
            array = np.frombuffer(blob, dtype).reshape(shape).copy()
            return array[()] if encoding == "scalar" else array
        if not images:
            raise ValueError("images in it must be raw")
        return _decoded(blob, shape)

    try:
        value = msgpack.unpackb(message[_LENGTH:begin], ext_hook=extension, strict_map_key=True)
    except (ValueError, TypeError, OverflowError, RecursionError) as error:  # msgpack's own are ValueErrors
        raise ValueError(f"This is no message: {reason(error) or type(error).__name__}.") from error
    if not isinstance(value, dict) or len(rest) or _deep(value):
        raise ValueError("This is no message: a message is one map, at most 32 deep, and its arrays.")
    return value


def _head_of(data: bytes) -> tuple[np.dtype, tuple[int, ...], str, int]:
    """Dtype, shape, encoding and number of bytes of an array. Raises ValueError."""
    head = msgpack.unpackb(data)
    if type(head) is list and len(head) == 4:
        dtype, shape, encoding, size = head
        known = isinstance(dtype, str) and dtype in _DTYPES and encoding in ("raw", "scalar", "png", "jpeg")
        whole = type(shape) is list and len(shape) <= 8 and all(type(n) is int and 0 <= n < 2**31 for n in shape)
        if known and whole and type(size) is int and size >= 0 and (encoding != "scalar" or not shape):
            return _DTYPES[dtype], tuple(shape), encoding, size
    raise ValueError(f"it holds {brief(head)} in place of an array")


def _bytes(dtype: np.dtype, shape: tuple[int, ...]) -> int:
    count = dtype.itemsize
    for n in shape:
        count *= n
    return count


def _deep(value: Any) -> bool:
    level, depth = [value], 0
    while level:
        depth += 1
        if depth > MAX_DEPTH:
            return True
        inner = [v for v in level if isinstance(v, dict | list)]
        level = [each for v in inner for each in (v.values() if isinstance(v, dict) else v)]
    return False


# --- images ---


def _encoded(array: np.ndarray | np.generic, images: Encoding) -> tuple[str, bytes]:
    if isinstance(array, np.generic):
        return "scalar", array.tobytes()
    if images == "raw" or not _is_images(array):
        return "raw", array.tobytes()
    file = io.BytesIO()
    if images == "png":
        Image.fromarray(_tall(array)).save(file, "PNG", compress_level=1)
    else:
        Image.fromarray(_tall(array)).save(file, "JPEG", quality=JPEG_QUALITY)
    return images, file.getvalue()


def _is_images(array: np.ndarray) -> bool:
    """Whether an array is (..., H, W, 3k) uint8 and small enough for one image file."""
    if array.dtype != np.uint8 or array.ndim < 3 or not array.size or array.shape[-1] % 3:
        return False
    return array.size // (3 * array.shape[-2]) <= _MOST_ROWS and array.size // 3 <= MAX_PIXELS


def _tall(array: np.ndarray) -> np.ndarray:
    """Images (..., H, W, 3k), k of them in the channels, as one image (N * k * H, W, 3) with all of them one below the
    other."""
    h, w, channels = array.shape[-3:]
    apart = array.reshape(-1, h, w, channels // 3, 3)
    return np.ascontiguousarray(np.moveaxis(apart, 3, 1).reshape(-1, w, 3))


def _decoded(blob: memoryview, shape: tuple[int, ...]) -> np.ndarray:
    """The inverse of `_tall`. Raises ValueError for an image of another shape."""
    outline = np.broadcast_to(np.uint8(0), shape)
    if not _is_images(outline):
        raise ValueError(f"an array {brief(shape)} in it is no image")
    h, w, channels = shape[-3:]
    k = channels // 3
    try:
        with Image.open(io.BytesIO(blob), formats=("PNG", "JPEG")) as image:
            if image.size != (w, outline.size // (3 * w)) or image.mode != "RGB":
                raise ValueError(f"an image in it has {image.size} pixels, its array the shape {brief(shape)}")
            tall = np.array(image)  # writeable
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"an image in it cannot be read ({reason(error)})") from error
    return np.ascontiguousarray(np.moveaxis(tall.reshape(-1, k, h, w, 3), 1, 3).reshape(shape))
