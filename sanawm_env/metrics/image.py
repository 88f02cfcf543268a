"""Likeness of two images.

PSNR, and SSIM with the benchmark's own window (11x11 box, mirrored border, all pixels), from the camera reference,
section 7.3. SSIMs of libraries weight by a Gaussian or cut the border, and give other numbers.
"""

import numpy as np
from scipy.ndimage import uniform_filter


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB.

    Args:
        a: (H, W, C), values 0..255.
        b: the same shape.

    Returns:
        100 for equal images.

    Raises:
        ValueError: for other or different shapes.
    """
    a, b = _pair(a, b)
    error = np.mean((a - b) ** 2)
    return 100.0 if error < 1e-10 else float(10 * np.log10(255**2 / error))


def ssim(a: np.ndarray, b: np.ndarray, window: int = 11) -> float:
    """Structural similarity, mean over pixels and channels.

    Args:
        a: (H, W, C), values 0..255.
        b: the same shape.
        window: side of the box, pixels.

    Raises:
        ValueError: for other or different shapes.
    """
    a, b = _pair(a, b)
    mean_a, mean_b = _box(a, window), _box(b, window)
    var_a, var_b = _box(a * a, window) - mean_a**2, _box(b * b, window) - mean_b**2
    covariance = _box(a * b, window) - mean_a * mean_b
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    structure = (2 * covariance + c2) / (var_a + var_b + c2)
    return float((luminance * structure).mean())


def _pair(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if a.shape != b.shape or a.ndim != 3:
        raise ValueError(f"images must have one shape (H, W, C), got {a.shape} and {b.shape}")
    return a, b


def _box(image: np.ndarray, window: int) -> np.ndarray:
    return uniform_filter(image, (window, window, 1), mode="reflect")
