"""Whether a clip stays consistent and closes loops, judged without ground truth. Quality gates use it."""

import numpy as np

from sanawm_env.metrics.image import psnr

NEAR, ALIKE = 0.12, 5.0  # metres and degrees within which a camera has come back
LEFT, TURNED = 0.3, 15.0  # metres or degrees by which it must have been away in between


def drift(frames: np.ndarray) -> float:
    """How far the look of a clip has drifted, in doublings: the largest |log2| of brightness, contrast and sharpness of
    its last quarter over those of its first frame. 1 means doubled or halved. Clips that fade to grey or blur have much
    more, and so does a camera that ends in front of a wall.

    Args:
        frames: (K, H, W, 3) uint8, in order.
    """
    grey = np.concatenate((frames[:1], frames[-max(1, len(frames) // 4) :])).mean(-1, dtype=np.float32)
    looks = np.stack([grey.mean((1, 2)), grey.std((1, 2)), _sharpness(grey)]) + 1.0  # so that black and flat count
    return float(np.abs(np.log2(looks[:, 1:].mean(1) / looks[:, 0])).max())


def loop_closure(frames: np.ndarray, c2w: np.ndarray) -> float | None:
    """Mean PSNR in dB between frames at which the camera has returned and the first ones there. "Returned" is within
    0.12 m and 5 degrees, after it was 0.3 m or 15 degrees away.

    Args:
        frames: (K, H, W, 3) uint8, in order.
        c2w: (K, 4, 4), the pose of each.

    Returns:
        None where the camera never returns.
    """
    scores = []
    for late in range(len(c2w)):
        metres = np.linalg.norm(c2w[:late, :3, 3] - c2w[late, :3, 3], axis=1)
        cosine = (np.einsum("nij,ij->n", c2w[:late, :3, :3], c2w[late, :3, :3]) - 1) / 2
        degrees = np.degrees(np.arccos(np.clip(cosine, -1, 1)))
        away = np.flatnonzero((metres > LEFT) | (degrees > TURNED))
        if not len(away):
            continue
        back = np.flatnonzero((metres[: away[-1]] < NEAR) & (degrees[: away[-1]] < ALIKE))
        if len(back):
            scores.append(psnr(frames[back[0]], frames[late]))
    return float(np.mean(scores)) if scores else None


def _sharpness(grey: np.ndarray) -> np.ndarray:
    """Mean gradient magnitude (K,) of images (K, H, W)."""
    across, down = np.diff(grey, axis=2)[:, :-1], np.diff(grey, axis=1)[:, :, :-1]
    return np.hypot(across, down).mean((1, 2))
