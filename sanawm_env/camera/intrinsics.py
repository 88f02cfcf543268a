"""Pinhole intrinsics in every accepted form, and how cropping and the latent grid change them.

Intrinsics are (..., 4) float32 `fx, fy, cx, cy`, in pixels of the image they belong to, unless a function says
latent-grid units. Camera reference, section 4.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from PIL import Image

FOV_LIMITS_DEG = (25.0, 120.0)  # the cameras the model was shown; both angles lie strictly inside


def fit_intrinsics(intrinsics: np.ndarray, frames: int) -> np.ndarray:
    """Intrinsics of each frame.

    Args:
        intrinsics: (4,), (3, 3), (n, 4) or (n, 3, 3). A single camera is repeated, a longer sequence cut, a shorter one
            interpolated linearly. (4, 4) means four vectors; the skew of a matrix is ignored.
        frames: how many.

    Returns:
        (frames, 4) float32.

    Raises:
        ValueError: for another shape, values that are not finite, or a focal length that is not positive.
    """
    vectors = _vectors(np.asarray(intrinsics))
    if not np.isfinite(vectors).all() or (vectors[:, :2] <= 0).any():
        raise ValueError("intrinsics must be finite, with positive focal lengths fx and fy")
    if len(vectors) == 1:
        vectors = np.repeat(vectors, frames, axis=0)
    elif len(vectors) < frames:
        here, there = np.linspace(0, 1, frames), np.linspace(0, 1, len(vectors))
        vectors = np.stack([np.interp(here, there, column) for column in vectors.T], axis=1)
    return vectors[:frames].astype(np.float32)


def centred_intrinsics(horizontal_fov_deg: float, width: int, height: int) -> np.ndarray:
    """Intrinsics of a centred camera with square pixels, at any angle.

    Args:
        horizontal_fov_deg: horizontal field of view in degrees.
        width, height: of the image, in pixels.

    Returns:
        (4,) float64 fx, fy, cx, cy.
    """
    focal = width / 2 / math.tan(math.radians(horizontal_fov_deg) / 2)
    return np.array([focal, focal, width / 2, height / 2])


def intrinsics_from_fov(horizontal_fov_deg: float, width: int, height: int) -> np.ndarray:
    """Intrinsics of a centred camera with square pixels, at an angle that the model knows.

    Args:
        horizontal_fov_deg: horizontal field of view in degrees.
        width, height: of the image, in pixels.

    Returns:
        (4,) float32 fx, fy, cx, cy.

    Raises:
        ValueError: unless the horizontal and the resulting vertical field of view lie between 25 and 120 degrees.
    """
    if not 0 < horizontal_fov_deg < 180:
        raise ValueError(f"a field of view lies between 0 and 180 degrees, got {horizontal_fov_deg}")
    intrinsics = centred_intrinsics(horizontal_fov_deg, width, height)
    check_field_of_view(intrinsics, width, height)
    return intrinsics.astype(np.float32)


def check_field_of_view(intrinsics: np.ndarray, width: int, height: int) -> None:
    """Raise ValueError unless both fields of view of intrinsics (4,) in an image of this size lie between 25 and 120
    degrees."""
    for name, size, focal in zip(("horizontal", "vertical"), (width, height), intrinsics, strict=False):
        angle = round(math.degrees(2 * math.atan2(size / 2, float(focal))), 6)
        if not FOV_LIMITS_DEG[0] < angle < FOV_LIMITS_DEG[1]:
            raise ValueError(f"the {name} field of view is {angle:.1f} degrees; it must lie inside {FOV_LIMITS_DEG}")


def intrinsics_matrix(intrinsics: np.ndarray) -> np.ndarray:
    """3x3 matrices (..., 3, 3) of vectors (..., 4), same dtype."""
    matrix = np.zeros((*intrinsics.shape[:-1], 3, 3), intrinsics.dtype)
    matrix[..., (0, 1, 0, 1), (0, 1, 2, 2)] = intrinsics
    matrix[..., 2, 2] = 1
    return matrix


# A thin strip would fill the memory when it is resized to cover the target. Above this size only the window that is
# kept is computed: the same taps, but Pillow may run its two passes in the other order and round differently between.
MAX_RESIZED_PIXELS = 2**26


@dataclass(frozen=True)
class CropGeometry:
    """How a source image covers a target: resized to `resized`, then cut at `offset`.

    Attributes:
        source: (width, height) in pixels.
        resized: (width, height).
        offset: (left, top).
        target: (width, height).
    """

    source: tuple[int, int]
    resized: tuple[int, int]
    offset: tuple[int, int]
    target: tuple[int, int]

    def apply(self, intrinsics: np.ndarray) -> np.ndarray:
        """Intrinsics (..., 4) in source pixels as float32 in target pixels. There are no half-pixel terms."""
        (left, top), (sx, sy) = self.offset, (new / old for new, old in zip(self.resized, self.source, strict=True))
        scale, shift = np.array([sx, sy, sx, sy], np.float32), np.array([0, 0, left, top], np.float32)
        return np.asarray(intrinsics, np.float32) * scale - shift


def crop_geometry(width: int, height: int, target_width: int, target_height: int) -> CropGeometry:
    """The smallest resize that keeps the aspect ratio and covers the target, cropped about the centre.

    Args:
        width, height: of the source, in pixels.
        target_width, target_height: of the target.

    Raises:
        ValueError: for sizes below 1.
    """
    if min(width, height, target_width, target_height) < 1:
        raise ValueError(f"sizes must be positive, got {width}x{height} to {target_width}x{target_height}")
    scale = max(target_height / height, target_width / width)
    resized = max(target_width, round(width * scale)), max(target_height, round(height * scale))
    offset = (resized[0] - target_width) // 2, (resized[1] - target_height) // 2
    return CropGeometry((width, height), resized, offset, (target_width, target_height))


def resize_and_center_crop(image: "Image.Image", target_height: int, target_width: int) -> "Image.Image":
    """The image at the target size, by Lanczos resize and the centre crop of `crop_geometry`. Raises ValueError
    likewise."""
    from PIL import Image

    geometry = crop_geometry(*image.size, target_width, target_height)
    left, top, right, bottom = *geometry.offset, geometry.offset[0] + target_width, geometry.offset[1] + target_height
    if math.prod(geometry.resized) <= MAX_RESIZED_PIXELS:
        return image.resize(geometry.resized, Image.Resampling.LANCZOS).crop((left, top, right, bottom))
    (sx, sy) = (old / new for new, old in zip(geometry.resized, geometry.source, strict=True))
    window = left * sx, top * sy, min(right * sx, image.width), min(bottom * sy, image.height)
    return image.resize((target_width, target_height), Image.Resampling.LANCZOS, box=window)


def to_latent_units(intrinsics: np.ndarray, stride: float = 32) -> np.ndarray:
    """Intrinsics in latent-grid units. Rays are cast at integer grid coordinates, so a centred camera keeps the
    half-cell offset that the model was trained with.

    Args:
        intrinsics: (..., 4) in target pixels.
        stride: spatial stride of the codec.

    Returns:
        (..., 4) float32.
    """
    return np.asarray(intrinsics, np.float32) / np.float32(stride)


def _vectors(array: np.ndarray) -> np.ndarray:
    """Any accepted form as (n, 4) float64. Raises ValueError."""
    if array.dtype.kind in "fiu" and array.size:
        if array.shape in ((4,), (3, 3)):
            array = array[None]
        if array.ndim == 2 and array.shape[1] == 4:
            return array.astype(np.float64)
        if array.ndim == 3 and array.shape[1:] == (3, 3):
            return array[:, (0, 1, 0, 1), (0, 1, 2, 2)].astype(np.float64)
    raise ValueError(
        f"intrinsics must be numbers of shape (4,), (3, 3), (n, 4) or (n, 3, 3), got {array.dtype} {array.shape}"
    )
