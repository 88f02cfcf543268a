"""The intrinsics of a start image: given, estimated, from a field of view, from EXIF, or the world's own."""

import logging
import math
from collections.abc import Callable
from contextlib import suppress

import numpy as np
from numpy.typing import ArrayLike
from PIL import ExifTags
from PIL.Image import Image

from sanawm_env.camera.intrinsics import check_field_of_view, crop_geometry, fit_intrinsics, intrinsics_from_fov
from sanawm_env.world.config import WorldConfig

FILM_DIAGONAL = math.hypot(36, 24)
"""Millimetres of 35-mm film, whose diagonal the equivalent focal lengths of cameras refer to (CIPA DCG-001)."""
Intrinsics = ArrayLike | Callable[[Image], ArrayLike] | None


def choose_intrinsics(
    image: Image, config: WorldConfig, intrinsics: Intrinsics, fov_deg: float | None
) -> tuple[np.ndarray, str]:
    """Intrinsics in pixels of the world's frames, and their source. EXIF counts where nothing is given. If its field of
    view is outside what the model was trained on, a warning is logged and the world's own is used
    (codec_text_refiner.md, section (f)).

    Args:
        image: upright, at its own size.
        config: of the world.
        intrinsics: (4,) fx, fy, cx, cy or (3, 3) in pixels of the image; or an estimator, a function of the image that
            returns them; or None.
        fov_deg: horizontal field of view of the world's frames in degrees, or None.

    Returns:
        (4,) float64, and "given", "estimated", "fov", "exif" or "default".

    Raises:
        ValueError: for intrinsics and fov_deg together, for other shapes, and for a field of view outside what the
            model was trained on.
    """
    if intrinsics is not None and fov_deg is not None:
        raise ValueError("Give either intrinsics or fov_deg, not both.")
    crop = crop_geometry(image.width, image.height, config.width, config.height)
    if intrinsics is None and fov_deg is None and (focal := exif_focal(image)) is not None:
        told = crop.apply(np.array([focal, focal, image.width / 2, image.height / 2]))
        try:
            check_field_of_view(told, config.width, config.height)
            return told.astype(np.float64), "exif"
        except ValueError as error:
            logging.getLogger(__name__).warning(
                "By the EXIF of the start image, %s: the world's own %g degrees are used; fov_deg sets others.",
                error,
                config.horizontal_fov,
            )
    if intrinsics is None:
        degrees = config.horizontal_fov if fov_deg is None else fov_deg
        own = intrinsics_from_fov(degrees, config.width, config.height)
        return own.astype(np.float64), "default" if fov_deg is None else "fov"
    source = "estimated" if callable(intrinsics) else "given"
    given = np.asarray(intrinsics(image) if callable(intrinsics) else intrinsics)
    if given.shape not in ((4,), (3, 3)):
        raise ValueError(f"intrinsics must be (4,) fx, fy, cx, cy or a (3, 3) matrix, got {given.shape}.")
    chosen = crop.apply(fit_intrinsics(given, 1)[0])
    check_field_of_view(chosen, config.width, config.height)
    return chosen.astype(np.float64), source


def exif_focal(image: Image) -> float | None:
    """Focal length in pixels from the 35-mm equivalent in EXIF (CIPA DCG-001); None where there is none. For an
    image that was cut out of a larger one it is wrong, which cannot be seen."""
    with suppress(Exception):  # EXIF is damaged in as many ways as there are cameras
        millimetres = float(image.getexif().get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.FocalLengthIn35mmFilm])
        if 0 < millimetres < 10_000:  # 0 is "not known"
            return millimetres * math.hypot(*image.size) / FILM_DIAGONAL
    return None
