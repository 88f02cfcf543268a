"""The intrinsics of a start image: given, estimated, a field of view, what its EXIF tells, or the world's own."""

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
    picture: Image, config: WorldConfig, intrinsics: Intrinsics, fov_deg: float | None
) -> tuple[np.ndarray, str]:
    """Intrinsics (4,) float64 in pixels of the world's frames, and where they come from: "given", "estimated", "fov",
    "exif" or "default". EXIF counts where nothing is given; where it tells of a field of view that the model was not
    shown, that is logged, and the default taken.

    image: upright, as it was given. intrinsics: (4,) fx, fy, cx, cy or (3, 3) in its pixels, or an estimator, a
    function of it that returns them. fov_deg: horizontal, of the world's frames. Raises ValueError for both, for other
    shapes, and for a field of view that the model was not shown (codec_text_refiner.md section (f)).
    """
    if intrinsics is not None and fov_deg is not None:
        raise ValueError("Give intrinsics or fov_deg, not both.")
    crop = crop_geometry(picture.width, picture.height, config.width, config.height)
    if intrinsics is None and fov_deg is None and (focal := exif_focal(picture)) is not None:
        told = crop.apply(np.array([focal, focal, picture.width / 2, picture.height / 2]))
        try:
            check_field_of_view(told, config.width, config.height)
            return told.astype(np.float64), "exif"
        except ValueError as error:
            logging.getLogger(__name__).warning(
                "By the EXIF of the start image %s: the world's own %g degrees are taken (fov_deg sets others).",
                error,
                config.horizontal_fov,
            )
    if intrinsics is None:
        degrees = config.horizontal_fov if fov_deg is None else fov_deg
        own = intrinsics_from_fov(degrees, config.width, config.height)
        return own.astype(np.float64), "default" if fov_deg is None else "fov"
    source = "estimated" if callable(intrinsics) else "given"
    given = np.asarray(intrinsics(picture) if callable(intrinsics) else intrinsics)
    if given.shape not in ((4,), (3, 3)):
        raise ValueError(f"intrinsics must be (4,) fx, fy, cx, cy or a (3, 3) matrix, got {given.shape}.")
    chosen = crop.apply(fit_intrinsics(given, 1)[0])
    check_field_of_view(chosen, config.width, config.height)
    return chosen.astype(np.float64), source


def exif_focal(picture: Image) -> float | None:
    """The focal length in pixels that an image's EXIF tells by its 35-mm equivalent; None where it tells none. Of a
    image that was cut out of a larger one it is wrong, and nothing says so."""
    with suppress(Exception):  # EXIF is damaged in as many ways as there are cameras
        millimetres = float(picture.getexif().get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.FocalLengthIn35mmFilm])
        if 0 < millimetres < 10_000:  # 0 is "not known"
            return millimetres * math.hypot(*picture.size) / FILM_DIAGONAL
    return None
