"""Start images: from any image to the frame that the network reads.

Any image file, PIL image or uint8 array becomes RGB (`load_image`) and then fills the frame by the resize-and-crop rule
of the camera spec, section 4.2 (`fit_image`). Intrinsics are transformed by the same rule. A PNG may hold the pose
where it was taken in the text chunk `sanawm:anchor` (`save_start`, `read_anchor`).

As in diffusers' `load_image`, the EXIF orientation is applied, then everything becomes RGB, and an alpha channel is
dropped, not blended with a background. EXIF that cannot be read is ignored, as in browsers. 16-bit grey is scaled to 8
bits. Of an animation the first image counts.
"""

import warnings
from contextlib import suppress
from os import PathLike
from pathlib import Path

import numpy as np
import torch
from PIL import ExifTags, Image, PngImagePlugin
from torch import Tensor

from sanawm_env.camera.intrinsics import resize_and_center_crop
from sanawm_env.system.files import MAX_PIXELS, brief, check_file, explaining, reason, visible
from sanawm_env.system.saving import replacing
from sanawm_env.world.anchor import Anchor

ANCHOR_CHUNK = "sanawm:anchor"
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip
"""What makes an image upright, by the orientation that its EXIF tells."""
ImageSource = str | PathLike | Image.Image | np.ndarray


def load_image(source: ImageSource) -> Image.Image:
    """An upright RGB image.

    Args:
        source: path of an image file, a PIL image, or a uint8 array (H, W), (H, W, 3) or (H, W, 4).

    Raises:
        FileNotFoundError: for a missing file.
        ValueError: for anything that is not a readable image of at most `MAX_PIXELS` pixels (text, a folder, a
            truncated file, another dtype or shape).
        TypeError: for other sources.
    """
    if isinstance(source, Image.Image):
        return _to_rgb(source, "the given image")
    if isinstance(source, np.ndarray):
        return _to_rgb(_from_array(source), "the given array")
    if isinstance(source, str | PathLike):
        with _open(Path(source)) as image:
            return _to_rgb(image, str(source))
    raise TypeError(f"an image must be a path, a PIL image or a uint8 array, got {type(source).__name__}")


def images_in(folder: str | PathLike) -> list[Path]:
    """Image files of a folder in the order of their names, recognised by the suffixes that Pillow reads. Hidden files,
    such as the `._photo.jpg` of macOS, are left out.

    Raises:
        ValueError: for a folder without images.
    """
    folder, suffixes = Path(folder), image_suffixes()
    images = [path for path in visible(folder, "*") if path.suffix.lower() in suffixes]
    if not images:
        raise ValueError(f"The folder {folder} holds no images: give a folder of PNG, JPEG, WebP or AVIF files.")
    return images


def image_suffixes() -> set[str]:
    """Suffixes (".png", ...) of the image formats that Pillow reads."""
    suffixes = Image.registered_extensions().items()
    read = {*Image.OPEN, "MPO"}  # several JPEGs in one file: opened as JPEG
    return {suffix for suffix, kind in suffixes if kind in read and Image.MIME.get(kind, "").startswith("image/")}


def fit_image(image: ImageSource, height: int, width: int) -> np.ndarray:
    """Scale an image (Lanczos) until it covers the frame, and cut out its centre. Camera spec, section 4.2.

    Args:
        image: what `load_image` takes.
        height, width: of the frame.

    Returns:
        (height, width, 3) uint8.

    Raises:
        FileNotFoundError, ValueError, TypeError: as `load_image`.
    """
    return np.asarray(resize_and_center_crop(load_image(image), height, width))


def resize_frames(frames: Tensor, height: int, width: int) -> Tensor:
    """Resize frames, bilinear and antialiased, on their device.

    Args:
        frames: (F, H, W, 3) uint8.
        height, width: the new size.

    Returns:
        (F, height, width, 3) uint8.
    """
    if frames.shape[1:3] == (height, width):
        return frames
    channels_first = frames.permute(0, 3, 1, 2).float()
    resized = torch.nn.functional.interpolate(channels_first, (height, width), mode="bilinear", antialias=True)
    return resized.round_().clamp_(0, 255).to(torch.uint8).permute(0, 2, 3, 1)


def read_anchor(path: str | PathLike) -> Anchor | None:
    """The anchor in a PNG; None for any other image.

    Raises:
        FileNotFoundError: for a missing file.
        ValueError: for a file that is no image, and for a chunk that is no anchor.
    """
    with _open(Path(path)) as image:
        if not isinstance(image, PngImagePlugin.PngImageFile):
            return None
        with explaining(f"{path} cannot be read as an image", Exception):  # decoders raise many types for damaged files
            text = image.text.get(ANCHOR_CHUNK)
    if text is None:
        return None
    try:
        return Anchor.from_json(text)
    except ValueError as error:
        raise ValueError(f"the {ANCHOR_CHUNK} text of {path} is {error}") from error


def save_start(image: ImageSource, anchor: Anchor | None, path: str | PathLike, optimize: bool = True) -> None:
    """Write a start image as PNG.

    Args:
        image: what `load_image` takes.
        anchor: the pose where it was taken, or None.
        path: ends in .png: no other format keeps the anchor.
        optimize: write a smaller file, slowly.

    Raises:
        ValueError: for another suffix; else as `load_image`.
        OSError: where it cannot be written.
    """
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise ValueError(f"a start image must be saved as .png, got {brief(path.name)}")
    chunks = PngImagePlugin.PngInfo()
    if anchor is not None:
        chunks.add_text(ANCHOR_CHUNK, anchor.to_json())
    loaded = load_image(image)
    with replacing(path) as part:
        loaded.save(part, format="PNG", pnginfo=chunks, optimize=optimize)


def _open(path: Path) -> Image.Image:
    """The opened file; its header is read, its pixels are not."""
    if not path.exists():
        raise FileNotFoundError(f"there is no image at {path}")
    with explaining(f"{path} cannot be read as an image"):
        check_file(path)
    try:
        with warnings.catch_warnings():
            # Pillow warns between one and two times its limit; `_to_rgb` refuses there already.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            return Image.open(path)
    except Image.DecompressionBombError as error:
        raise ValueError(_too_large(str(path))) from error
    except (PermissionError, MemoryError):
        raise
    except Exception as error:  # decoders raise many types for damaged files
        raise ValueError(
            f"{path} cannot be read as an image: give a PNG, JPEG, WebP or another format that Pillow reads"
        ) from error


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    if image.width * image.height > MAX_PIXELS:
        raise ValueError(_too_large(name))
    if image.width * image.height == 0:
        raise ValueError(f"{name} has no pixels")
    if image.mode == "F":
        raise ValueError(f"{name} has floating-point pixels, whose white is unknown: convert it to 8 bits")
    try:
        _load_pixels(image)
        upright = _upright(image)
        if upright.mode == "I" or upright.mode.startswith("I;16"):
            upright = _grey16_to_grey8(upright)
        return upright.convert("RGB")
    except MemoryError:
        raise
    except Exception as error:  # decoders raise many types for damaged files
        raise ValueError(f"{name} cannot be read as an image, it may be truncated: {reason(error)}") from error


def _load_pixels(image: Image.Image) -> None:
    try:
        image.load()
    except Exception:
        if getattr(image, "tile", ["none"]):  # what has been decoded has none left: its EXIF is what is broken
            raise


def _upright(image: Image.Image) -> Image.Image:
    with suppress(Exception):  # EXIF is damaged in as many ways as there are cameras
        return image.transpose(_UPRIGHT[image.getexif()[ExifTags.Base.Orientation]])
    return image


def _grey16_to_grey8(image: Image.Image) -> Image.Image:
    # Pillow's own conversion clips in some versions and shifts in others.
    levels = np.clip(np.asarray(image).astype(np.int64), 0, 65535)
    return Image.fromarray(((levels + 128) // 257).astype(np.uint8))


def _from_array(array: np.ndarray) -> Image.Image:
    if array.dtype != np.uint8:
        raise ValueError(f"an image array must be uint8 with values 0 to 255, got {array.dtype}")
    if array.ndim != 2 and not (array.ndim == 3 and array.shape[2] in (3, 4)):
        raise ValueError(f"an image array must have shape (H, W), (H, W, 3) or (H, W, 4), got {array.shape}")
    if array.size == 0:
        raise ValueError(f"an image array must have pixels, got shape {array.shape}")
    return Image.fromarray(np.ascontiguousarray(array))


def _too_large(name: str) -> str:
    return f"{name} has more than {MAX_PIXELS:,} pixels, which is refused as a decompression bomb: make it smaller"
