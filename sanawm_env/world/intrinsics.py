"""The intrinsics of a start image: given, estimated, a field of view, or the world's own."""

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike
from PIL.Image import Image

from sanawm_env.camera.intrinsics import check_field_of_view, crop_geometry, fit_intrinsics, intrinsics_from_fov
from sanawm_env.world.config import WorldConfig

Intrinsics = ArrayLike | Callable[[Image], ArrayLike] | None


def choose_intrinsics(
    picture: Image, config: WorldConfig, intrinsics: Intrinsics, fov_deg: float | None
) -> tuple[np.ndarray, str]:
    """Intrinsics (4,) float64 in pixels of the world's picture, and where they come from: "given", "estimated", "fov"
    or "default".

    picture: upright, as it was given. intrinsics: (4,) fx, fy, cx, cy or (3, 3) in its pixels, or an estimator, a
    function of it that returns them. fov_deg: horizontal, of the world's picture. Raises ValueError for both, for other
    shapes, and for a field of view that the model was not shown (codec_text_refiner.md section (f)).
    """
    if intrinsics is not None and fov_deg is not None:
        raise ValueError("Give intrinsics or fov_deg, not both.")
    if intrinsics is None:
        degrees = config.horizontal_fov if fov_deg is None else fov_deg
        own = intrinsics_from_fov(degrees, config.width, config.height)
        return own.astype(np.float64), "default" if fov_deg is None else "fov"
    source = "estimated" if callable(intrinsics) else "given"
    given = np.asarray(intrinsics(picture) if callable(intrinsics) else intrinsics)
    if given.shape not in ((4,), (3, 3)):
        raise ValueError(f"intrinsics must be (4,) fx, fy, cx, cy or a (3, 3) matrix, got {given.shape}.")
    crop = crop_geometry(picture.width, picture.height, config.width, config.height)
    chosen = crop.apply(fit_intrinsics(given, 1)[0])
    check_field_of_view(chosen, config.width, config.height)
    return chosen.astype(np.float64), source
