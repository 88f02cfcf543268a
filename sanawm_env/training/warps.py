"""What can be known from the first frame alone: its warps to later cameras, and which pixels it has seen.

Textbook two-view geometry (Hartley and Zisserman, Multiple View Geometry, chapter 13). Poses are camera-to-world
relative to frame 0, OpenCV axes, metres; intrinsics are (4,) fx, fy, cx, cy in pixels, with pixel centres at whole +
0.5.
"""

import numpy as np
import torch

from sanawm_env.camera.intrinsics import intrinsics_matrix

PLANE_DEPTH = 3.3  # metres; the strong baseline of nano.md section 3
NEAREST_PLANE = 0.1  # metres; a plane that the camera has reached is pushed along in front of it
DEPTH_TOLERANCE = 0.05  # relative


def rotation_homographies(c2w: np.ndarray, intrinsics: np.ndarray) -> np.ndarray:
    """Homographies from pixels of cameras to pixels of frame 0, with everything infinitely far away.

    Args:
        c2w: (F, 4, 4).
        intrinsics: (4,).

    Returns:
        (F, 3, 3).
    """
    camera = intrinsics_matrix(np.asarray(intrinsics, np.float64))
    return camera @ c2w[:, :3, :3] @ np.linalg.inv(camera)


def plane_homographies(c2w: np.ndarray, intrinsics: np.ndarray, depth: float = PLANE_DEPTH) -> np.ndarray:
    """As `rotation_homographies`, with everything on the plane z = `depth` of frame 0."""
    camera = intrinsics_matrix(np.asarray(intrinsics, np.float64))
    rotation, centre = c2w[:, :3, :3], c2w[:, :3, 3]
    # the ray r meets the plane at centre + s R r with s = ahead / (R r)_z; multiplied by (R r)_z that is linear in r
    ahead = np.maximum(depth - centre[:, 2], NEAREST_PLANE)[:, None, None]
    return camera @ (ahead * rotation + centre[:, :, None] * rotation[:, 2:3]) @ np.linalg.inv(camera)


def warp(image: np.ndarray, homographies: np.ndarray) -> np.ndarray:
    """An image warped by homographies, bilinear. Pixels outside take the colour of its border.

    Args:
        image: (H, W, 3) uint8.
        homographies: (F, 3, 3), from pixels of the result to pixels of the image.

    Returns:
        (F, H, W, 3) uint8.
    """
    height, width = image.shape[:2]
    points = _pixel_centres(height, width) @ homographies[:, None].swapaxes(-1, -2)
    middle, ahead = (width / 2, height / 2), points[..., 2:]
    # a ray that points away from frame 0's view leaves the picture on the side it leans to
    offset = (points[..., :2] - middle * ahead) / np.maximum(ahead, 1e-6)
    grid = torch.from_numpy(offset / middle).float()
    pixels = torch.tensor(image).permute(2, 0, 1).float().expand(len(grid), -1, -1, -1)
    warped = torch.nn.functional.grid_sample(pixels, grid, padding_mode="border", align_corners=False)
    return warped.round().to(torch.uint8).permute(0, 2, 3, 1).numpy()


def unprojected(depth: np.ndarray, c2w: np.ndarray, intrinsics: np.ndarray) -> np.ndarray:
    """The points that pixels show.

    Args:
        depth: (F, H, W), metres along z.
        c2w: (F, 4, 4).
        intrinsics: (4,).

    Returns:
        (F, H, W, 3).
    """
    fx, fy, cx, cy = intrinsics
    rays = (_pixel_centres(*depth.shape[1:]) - (cx, cy, 0)) / (fx, fy, 1)
    return (depth[..., None] * rays) @ c2w[:, None, :3, :3].swapaxes(-1, -2) + c2w[:, None, None, :3, 3]


def visible_in_first(depth: np.ndarray, first_depth: np.ndarray, c2w: np.ndarray, intrinsics: np.ndarray) -> np.ndarray:
    """Which pixels show points that frame 0 sees. A point is seen if it projects into frame 0 and is not farther away
    than the farthest of the four pixels around it there, within 5 %.

    Args:
        depth: (F, H, W), metres along z.
        first_depth: (H, W), of frame 0.
        c2w: (F, 4, 4).
        intrinsics: (4,).

    Returns:
        (F, H, W) bool.
    """
    height, width = first_depth.shape
    fx, fy, cx, cy = intrinsics
    x, y, z = np.moveaxis(unprojected(depth, c2w, intrinsics), -1, 0)
    ahead = np.maximum(z, 1e-6)
    u, v = fx * x / ahead + cx, fy * y / ahead + cy
    inside = (z > 1e-6) & (u >= 0) & (u <= width) & (v >= 0) & (v <= height)
    column = np.floor(np.clip(u - 0.5, 0, width - 1)).astype(int)
    row = np.floor(np.clip(v - 0.5, 0, height - 1)).astype(int)
    right, below = np.minimum(column + 1, width - 1), np.minimum(row + 1, height - 1)
    around = [first_depth[r, c] for r in (row, below) for c in (column, right)]
    return inside & (z <= (1 + DEPTH_TOLERANCE) * np.max(around, axis=0))


def _pixel_centres(height: int, width: int) -> np.ndarray:
    """(H, W, 3) homogeneous pixel coordinates."""
    v, u = np.indices((height, width)) + 0.5
    return np.stack((u, v, np.ones_like(u)), axis=-1)
