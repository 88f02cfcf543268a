"""Camera poses from pixels, by photometric alignment in a place whose geometry is known.

A frame's pose is the one at which other images look most like it: direct alignment (Lucas and Kanade 1981), found by
Gauss-Newton steps on a body twist, from coarse to fine. In places that a world knows, these images are renderings of
the place. Elsewhere they are the first frame and earlier ones of the same video, at the poses found for them, moved
with the depth of the place (direct visual odometry, Steinbruecker et al. 2011): a prediction may show walls there that
the room does not have, and they still tell where the camera is.

The search begins from the poses before, extrapolated at constant velocity, so the estimator never sees the commanded
path. Errors of single pixels saturate (Geman and McClure), because predicted frames may be wrong in places.
"""

from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch import Tensor

from sanawm_env.camera.twist import hold
from sanawm_env.engines.rooms.places import place as known_place
from sanawm_env.engines.rooms.raycast import Place, intrinsics, render
from sanawm_env.training.truth import enlargement, shrink
from sanawm_env.training.warps import unprojected
from sanawm_env.world.anchor import Anchor
from sanawm_env.world.threads import with_torch_threads

AGO = 1, 4, 12  # how many frames before are moved to a frame, besides the first
BLURS = (8.0, 4.0, 4.0, 2.0, 2.0, 1.0, 1.0, 0.6)  # pixels, one Gauss-Newton step each
STEP = np.array([0.03, 0.03, 0.03, 0.012, 0.012, 0.012])  # metres and radians, of the numerical Jacobian
LONGEST = np.array([0.15, 0.15, 0.15, 0.06, 0.06, 0.06])  # of one Gauss-Newton step
NEAREST_WALL = 0.1  # metres, more than STEP
NEAREST, HIDDEN = 0.05, 1.05  # metres from the camera; depth over that of the surface in front of which a point is seen
SATURATION = 24.0  # grey levels


@dataclass(frozen=True, eq=False)
class Reference:
    """A frame whose pose is known.

    Attributes:
        colours: (3, H, W) float32, 0..255.
        points: (H W, 3) float32, where in the place its pixels lie.
    """

    colours: Tensor
    points: Tensor

    @classmethod
    def of(cls, place: Place, frame: np.ndarray, pose: np.ndarray) -> "Reference":
        """Of a frame (H, W, 3) uint8 of a place, seen from a pose (4, 4)."""
        size = frame.shape[:2]
        points = unprojected(_depth(place, pose, size)[None], pose[None], intrinsics(*size))[0]
        return cls(_planes(frame), torch.from_numpy(points).float().flatten(0, 1))


def track(place: Place, frames: np.ndarray, start: np.ndarray, known: bool) -> np.ndarray:
    """Estimate the poses of frames.

    Args:
        place: whose geometry they have.
        frames: (n, H, W, 3) uint8; multiples of 64 x 96 are shrunk to it, because the search reaches so many pixels.
        start: (4, 4), the pose of the frame before them, which shows the place as it is, in the place frame.
        known: whether all frames should show the place as it is: they are aligned with renderings of it, so that errors
            do not add up. Otherwise with the first frame and each other.

    Returns:
        (n, 4, 4) in the place frame.
    """
    frames = shrink(frames, enlargement(*frames.shape[1:3]))
    poses, references = [start, start], []
    if not known:
        references.append(Reference.of(place, _rendered(place, start[None], frames.shape[1:3])[0], start))
    with with_torch_threads(1):  # more wait for each other, in pieces as small as these
        for frame in frames:
            ahead = poses[-1] @ np.linalg.inv(poses[-2]) @ poses[-1]
            earlier = [references[-ago] for ago in AGO if ago < len(references)]
            poses.append(locate(place, frame, ahead, references[:1] + earlier))
            if not known:
                references.append(Reference.of(place, frame, poses[-1]))
    return np.stack(poses[2:])


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
    return np.concatenate((anchor.c2w[None], track(known_place(anchor.place), frames[1:], anchor.c2w, known=True)))


def locate(place: Place, frame: np.ndarray, guess: np.ndarray, references: list[Reference]) -> np.ndarray:
    """The pose (4, 4) near `guess` at which references, or renderings of `place` where there are none, look most like a
    frame (H, W, 3) uint8 of it."""
    wanted, pose = _planes(frame)[None], _within(place, guess)
    if references:
        colours, points = (torch.stack([getattr(r, name) for r in references]) for name in ("colours", "points"))
    for blur in BLURS:
        around = np.stack([_moved(pose, step) for step in (*np.diag(STEP), *-np.diag(STEP), 0 * STEP)])
        if references:
            target = _blurred(colours, blur).flatten(2).transpose(0, 1)
            shown, counts = _seen_from(place, _blurred(wanted, blur)[0], around, points)
        else:
            target, counts = _blurred(wanted, blur)[0], torch.ones(1)
            shown = _blurred(_planes(_rendered(place, around, frame.shape[:2])), blur)
        error = target - shown[-1]
        weight = ((SATURATION**2 / (SATURATION**2 + error.square())).square() * counts).flatten()
        slopes = (shown[:6] - shown[6:12]).flatten(1) / torch.from_numpy(2 * STEP).float()[:, None]
        normal = (slopes * weight) @ slopes.T
        normal += 1e-4 * torch.diag(normal.diagonal()) + 1e-6 * torch.eye(6)
        step = torch.linalg.solve(normal.double(), ((slopes * weight) @ error.flatten()).double()).numpy()
        pose = _within(place, _moved(pose, step / max(1.0, np.abs(step / LONGEST).max())))
    return pose


def _seen_from(place: Place, planes: Tensor, poses: np.ndarray, points: Tensor) -> tuple[Tensor, Tensor]:
    """What a frame (3, H, W) shows of points (R, N, 3) if it was taken from poses (P, 4, 4): (P, 3, R, N), and which of
    them all poses see and nothing hides from the last (R, N)."""
    size = planes.shape[-2], planes.shape[-1]
    at, seen, ahead = _project(points, poses, size)
    surface = _look(torch.from_numpy(_depth(place, poses[-1], size))[None].float(), at[-1:])[0, 0]
    return _look(planes, at), seen.all(0) & (ahead[-1] <= HIDDEN * surface)


def _project(points: Tensor, poses: np.ndarray, size: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """Where points (R, N, 3) lie in images seen from poses (P, 4, 4): (P, R, N, 2) from -1 to 1 across the image,
    whether they lie in it (P, R, N), and their depth (P, R, N), metres."""
    (height, width), (fx, fy, cx, cy) = size, intrinsics(*size)
    into = torch.from_numpy(np.linalg.inv(poses)).float()
    x, y, ahead = torch.einsum("pij,rnj->iprn", into[:, :3, :3], points) + into[:, :3, 3].T[..., None, None]
    near = ahead.clamp(min=NEAREST)
    at = torch.stack(((fx * x / near + cx) * 2 / width - 1, (fy * y / near + cy) * 2 / height - 1), dim=-1)
    return at, (ahead > NEAREST) & (at.abs() <= 1).all(-1), ahead


def _look(planes: Tensor, at: Tensor) -> Tensor:
    """Values (P, c, R, N) of planes (c, H, W) at (P, R, N, 2)."""
    planes = planes.expand(len(at), -1, -1, -1)
    return torch.nn.functional.grid_sample(planes, at, padding_mode="border", align_corners=False)


def _rendered(place: Place, poses: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(P, H, W, 3) uint8."""
    return render(place, poses, intrinsics(*size), *size, depth=False)[0]


def _depth(place: Place, pose: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(H, W), metres along z."""
    return cast(np.ndarray, render(place, pose[None], intrinsics(*size), *size, supersample=1)[1])[0]


def _within(place: Place, pose: np.ndarray) -> np.ndarray:
    """The pose, moved back into the room where it has left it: the renderer knows nothing outside."""
    pose = pose.copy()
    reach = place.half[0] - NEAREST_WALL
    pose[:3, 3] = np.clip(pose[:3, 3], place.centre[0] - reach, place.centre[0] + reach)
    return pose


def _moved(pose: np.ndarray, twist: np.ndarray) -> np.ndarray:
    """The pose after a body twist (6,) held for one second."""
    return hold(pose, twist, 16)[-1]


def _planes(frames: np.ndarray) -> Tensor:
    """(..., 3, H, W) of (..., H, W, 3)."""
    return torch.from_numpy(frames).movedim(-1, -3).float()


def _blurred(planes: Tensor, sigma: float) -> Tensor:
    """Gaussian blur of (n, 3, H, W)."""
    reach = int(2.5 * sigma)
    x = torch.arange(-reach, reach + 1, dtype=torch.float32)
    kernel = torch.exp(-x.square() / (2 * sigma**2))
    kernel = (kernel / kernel.sum()).expand(3, 1, -1)
    padded = torch.nn.functional.pad(planes, (reach,) * 4, mode="replicate")
    across = torch.nn.functional.conv2d(padded, kernel[:, :, None], groups=3)
    return torch.nn.functional.conv2d(across, kernel[..., None], groups=3)
