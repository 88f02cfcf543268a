"""Camera poses from pixels, by photometric alignment against a scene whose geometry is known.

Direct image alignment (Lucas and Kanade 1981; on SE(3) as in Baker and Matthews 2004): the pose at which the rendered
image is nearest to the given one, found by Gauss-Newton steps on a body twist, from coarse to fine. The search for a
frame starts from the estimates before it, extrapolated at constant velocity, so the estimator never sees the commanded
path. Errors of single pixels saturate (Geman and McClure), because predicted frames may be wrong in places. What the
first frame does not show could look otherwise in a prediction, so it counts for a tenth: there the place says little of
where the camera is.
"""

from typing import cast

import numpy as np
import torch

from sanawm_env.camera.twist import hold
from sanawm_env.engines.rooms.places import place as known_place
from sanawm_env.engines.rooms.raycast import Place, intrinsics, render
from sanawm_env.training.warps import visible_in_first
from sanawm_env.world.anchor import Anchor

BLURS = (8.0, 4.0, 4.0, 2.0, 2.0, 1.0, 1.0, 0.6)  # pixels, one Gauss-Newton step each
STEP = np.array([0.03, 0.03, 0.03, 0.012, 0.012, 0.012])  # metres and radians, of the numerical Jacobian
LONGEST = np.array([0.15, 0.15, 0.15, 0.06, 0.06, 0.06])  # of one Gauss-Newton step
NEAREST_WALL = 0.1  # metres, more than STEP
SATURATION = 24.0  # grey levels
UNSEEN_WEIGHT = 0.1  # of pixels that the first frame does not show


def track(place: Place, frames: np.ndarray, start: np.ndarray) -> np.ndarray:
    """Estimate the poses of frames.

    Args:
        place: that they show.
        frames: (n, H, W, 3) uint8.
        start: (4, 4), the pose of the frame before them, in the place frame.

    Returns:
        (n, 4, 4) in the place frame.
    """
    size = frames.shape[1:3]
    _, depth = render(place, start[None], intrinsics(*size), *size, supersample=1)
    poses, pose, before = [], start, start
    for frame in frames:
        ahead = pose @ np.linalg.inv(before) @ pose
        before, pose = pose, locate(place, frame, ahead, start, cast(np.ndarray, depth)[0])
        poses.append(pose)
    return np.stack(poses)


def estimator(frames: np.ndarray, given: np.ndarray | None, anchor: Anchor | None) -> np.ndarray:
    """`track` as an estimator of `recording.scores`, in known places.

    Args:
        frames: (n, H, W, 3) uint8.
        given: (n, 3, 3), intrinsics, or None.
        anchor: pose of the first frame.

    Returns:
        c2w (n, 4, 4).

    Raises:
        ValueError: without an anchor, and for other intrinsics than nano's.
    """
    size = frames.shape[1:3]
    if anchor is None:
        raise ValueError("alignment needs clips of a known place, with an anchor")
    if given is not None and np.abs(given[:, (0, 1, 0, 1), (0, 1, 2, 2)] / intrinsics(*size) - 1).max() > 0.01:
        raise ValueError("alignment needs clips with nano's intrinsics, 70 degrees across")
    return np.concatenate((anchor.c2w[None], track(known_place(anchor.place), frames[1:], anchor.c2w)))


def locate(place: Place, frame: np.ndarray, guess: np.ndarray, start: np.ndarray, depth: np.ndarray) -> np.ndarray:
    """The pose (4, 4) near `guess` from which `place` looks most like a frame (H, W, 3) uint8. start, depth: (4, 4) and
    (H, W), metres, of the first frame."""
    size = frame.shape[:2]
    wanted, pose = _planes(frame[None]), _within(place, guess)
    for blur in BLURS:
        around = np.stack([_moved(pose, step) for step in (*np.diag(STEP), *-np.diag(STEP), 0 * STEP)])
        views = _blurred(_planes(render(place, around, intrinsics(*size), *size, depth=False)[0]), blur)
        error = _blurred(wanted, blur) - views[12:]
        weight = (SATURATION**2 / (SATURATION**2 + error.square())).square() * _weights(place, pose, start, depth)
        error, weight = error.flatten(), weight.flatten()
        slopes = ((views[:6] - views[6:12]) / torch.from_numpy(2 * STEP).float()[:, None, None, None]).flatten(1)
        normal = (slopes * weight) @ slopes.T
        normal += 1e-4 * torch.diag(normal.diagonal()) + 1e-6 * torch.eye(6)
        step = torch.linalg.solve(normal.double(), ((slopes * weight) @ error).double()).numpy()
        pose = _within(place, _moved(pose, step / max(1.0, np.abs(step / LONGEST).max())))
    return pose


def _weights(place: Place, pose: np.ndarray, start: np.ndarray, depth: np.ndarray) -> torch.Tensor:
    """(H, W), 1 for pixels at a pose that the first frame shows."""
    pinhole = intrinsics(*depth.shape)
    _, here = render(place, pose[None], pinhole, *depth.shape, supersample=1)
    seen = visible_in_first(cast(np.ndarray, here), depth, (np.linalg.inv(start) @ pose)[None], pinhole)[0]
    return torch.from_numpy(np.where(seen, 1.0, UNSEEN_WEIGHT)).float()


def _within(place: Place, pose: np.ndarray) -> np.ndarray:
    """The pose, moved back into the room where it has left it: the renderer knows nothing outside."""
    pose = pose.copy()
    reach = place.half[0] - NEAREST_WALL
    pose[:3, 3] = np.clip(pose[:3, 3], place.centre[0] - reach, place.centre[0] + reach)
    return pose


def _moved(pose: np.ndarray, twist: np.ndarray) -> np.ndarray:
    """The pose after a body twist (6,) held for one second."""
    return hold(pose, twist, 16)[-1]


def _planes(frames: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(frames).permute(0, 3, 1, 2).float()


def _blurred(planes: torch.Tensor, sigma: float) -> torch.Tensor:
    """Gaussian blur of (n, 3, H, W)."""
    reach = int(2.5 * sigma)
    x = torch.arange(-reach, reach + 1, dtype=torch.float32)
    kernel = torch.exp(-x.square() / (2 * sigma**2))
    kernel = (kernel / kernel.sum()).expand(3, 1, -1)
    padded = torch.nn.functional.pad(planes, (reach,) * 4, mode="replicate")
    across = torch.nn.functional.conv2d(padded, kernel[:, :, None], groups=3)
    return torch.nn.functional.conv2d(across, kernel[..., None], groups=3)
