"""Start images: from whatever a user has to the exact frame the network reads.

Any image file, PIL image or uint8 array becomes RGB (`load_image`) and then fills the frame by the resize-and-crop rule
of the camera spec, section 4.2 (`fit_image`), so that the intrinsics transformed by the same rule stay true.
A PNG may hold the pose where it was taken (`save_start`, `read_anchor`) as the text chunk `sanawm:anchor`.

Colour habits are those of diffusers' `load_image`: the EXIF orientation is applied, then everything becomes RGB and an
alpha channel is dropped, not blended with a background colour. EXIF that cannot be read keeps no image from being
read, as in browsers. 16-bit grey is scaled to 8 bits; of an animation the first image counts.
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
from sanawm_env.system.files import MAX_PIXELS, check_file, explaining
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

    source: path of an image file, a PIL image, or a uint8 array (H, W), (H, W, 3) or (H, W, 4).
    Raises FileNotFoundError for a missing file, ValueError for anything that is not a readable image of at most
    `MAX_PIXELS` pixels (text, a folder, a truncated file, another dtype or shape), TypeError for other sources.
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
    """The image files of a folder, in the order of their names, told by their suffixes: all that Pillow reads, with the
    plugins that are registered. Hidden files, such as the `._photo.jpg` that macOS leaves, are none.

    Raises ValueError without any.
    """
    folder, suffixes = Path(folder), image_suffixes()
    images = sorted(p for p in folder.iterdir() if p.suffix.lower() in suffixes and not p.name.startswith("."))
    if not images:
        raise ValueError(f"The folder {folder} holds no images: give a folder of PNG, JPEG, WebP or AVIF files.")
    return images


def image_suffixes() -> set[str]:
    """Suffixes (".png", ...) of the formats that Pillow reads and that are images by their media type."""
    suffixes = Image.registered_extensions().items()
    return {suffix for suffix, kind in suffixes if _is_read(kind) and Image.MIME.get(kind, "").startswith("image/")}


def _is_read(kind: str) -> bool:
    return kind in Image.OPEN or kind == "MPO"  # several JPEGs in one file: opened as JPEG


def fit_image(image: ImageSource, height: int, width: int) -> np.ndarray:
    """The image scaled (Lanczos) until it covers the frame, its centre cut out: uint8 (height, width, 3).

    Camera spec section 4.2. Accepts and raises what `load_image` does.
    """
    return np.asarray(resize_and_center_crop(load_image(image), height, width))


def resize_frames(frames: Tensor, height: int, width: int) -> Tensor:
    """Frames (F, H, W, 3) uint8 at another size (F, height, width, 3), bilinear and antialiased, on their device."""
    if frames.shape[1:3] == (height, width):
        return frames
    channels_first = frames.permute(0, 3, 1, 2).float()
    resized = torch.nn.functional.interpolate(channels_first, (height, width), mode="bilinear", antialias=True)
    return resized.round_().clamp_(0, 255).to(torch.uint8).permute(0, 2, 3, 1)


def read_anchor(path: str | PathLike) -> Anchor | None:
    """The anchor a PNG holds, None when there is none (any other image).

    Raises FileNotFoundError or ValueError as `load_image` does, and ValueError for a chunk that is not an anchor.
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
    """Write a start image as PNG, with the pose where it was taken if an anchor is given. optimize: small and slow.

    Raises ValueError for a name that does not end in .png (no other format keeps the anchor).
    """
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise ValueError(f"a start image is saved as .png, got {path.name!r}")
    chunks = PngImagePlugin.PngInfo()
    if anchor is not None:
        chunks.add_text(ANCHOR_CHUNK, anchor.to_json())
    picture = load_image(image)
    with replacing(path) as part:
        picture.save(part, format="PNG", pnginfo=chunks, optimize=optimize)


def _open(path: Path) -> Image.Image:
    """The opened file, header read, pixels not yet."""
    if not path.exists():
        raise FileNotFoundError(f"there is no image at {path}")
    with explaining(f"{path} is no image"):
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
        raise ValueError(f"{path} cannot be read as an image (PNG, JPEG, WebP and whatever Pillow reads)") from error


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    if image.width * image.height > MAX_PIXELS:
        raise ValueError(_too_large(name))
    if image.width * image.height == 0:
        raise ValueError(f"{name} has no pixels")
    if image.mode == "F":
        raise ValueError(f"{name} holds floating-point pixels, which say not what is white: convert it to 8 bits")
    try:
        _load_pixels(image)
        upright = _upright(image)
        if upright.mode == "I" or upright.mode.startswith("I;16"):
            upright = _grey16_to_grey8(upright)
        return upright.convert("RGB")
    except MemoryError:
        raise
    except Exception as error:  # decoders raise many types for damaged files
        raise ValueError(f"{name} cannot be read as an image, it may be truncated: {error}") from error


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
