"""Small copies of frames."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def thumbnail(frame: NDArray, width: int = 96) -> NDArray:
    """A copy of a frame (H, W, 3) uint8 that is at most `width` pixels wide."""
    height, full = frame.shape[:2]
    if full <= width:
        return frame.copy()
    size = (width, max(1, round(height * width / full)))
    return np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.LANCZOS, reducing_gap=2))
