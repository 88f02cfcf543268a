"""Frames of box worlds: ray-box intersections, and one look-up per ray in an atlas of baked colours.

Conventions (camera.md, section 1): c2w in OpenCV axes (x right, y down, z forward), metres. Place frame: origin at the
middle of the floor, y down, the floor at y = 0.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from sanawm_env.camera.intrinsics import centred_intrinsics

HEIGHT, WIDTH = 64, 96  # pixels
FIELD_OF_VIEW = 70.0  # degrees, horizontal
TEXEL = 0.02  # metres per texel of the atlas
FARTHEST = 1000.0  # metres; float32 rays still meet the texel they should
BAND = 2**15  # rays that are followed together
UV_AXES = ((2, 1), (0, 2), (0, 1))  # axes a face normal to x, y, z is textured along
_CORNERS = np.array([[i >> 2 & 1, i >> 1 & 1, i & 1] for i in range(8)]) * 2.0 - 1


@dataclass(frozen=True)
class Place:
    """One furnished room. The first box is the room itself (seen from inside), the others are its furniture.

    Attributes:
        name: as `places.place` knows it, or "unknown".
        centre: (N, 3) float64, box centres, metres, place frame.
        half: (N, 3) float64, half sizes.
        yaw: (N,) float64, rotation of each box about the vertical, radians.
        atlas: (A,) uint32, baked colours 0x00BBGGRR of all faces, one after the other, rows first; the last is the
            colour of rays that miss the room.
        face_start, face_stride: (N, 6) int32, where the texture of face 2 * axis + (1 on the positive side) is.
    """

    name: str
    centre: np.ndarray
    half: np.ndarray
    yaw: np.ndarray
    atlas: np.ndarray
    face_start: np.ndarray
    face_stride: np.ndarray


def intrinsics(height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """The fixed intrinsics of frames of height x width: (4,) float64 fx, fy, cx, cy in pixels."""
    return centred_intrinsics(FIELD_OF_VIEW, width, height)


def turn(yaw: np.ndarray | float) -> np.ndarray:
    """Rotation (..., 3, 3) about the vertical; positive turns a camera to the right."""
    matrix = np.zeros((*np.shape(yaw), 3, 3))
    matrix[..., 0, 0] = matrix[..., 2, 2] = np.cos(yaw)
    matrix[..., 0, 2], matrix[..., 2, 0] = np.sin(yaw), -np.sin(yaw)
    matrix[..., 1, 1] = 1
    return matrix


def render(
    place: Place,
    c2w: np.ndarray,
    intrinsics: np.ndarray,
    height: int = HEIGHT,
    width: int = WIDTH,
    supersample: int = 2,
    depth: bool = True,
) -> tuple[np.ndarray, np.ndarray | None]:
    """Render what cameras see.

    Faces are seen from their fronts only. From inside a piece of furniture the room is seen as if that piece were not
    there. From outside the room its inner sides beyond the nearest wall are seen, and grey (depth inf) beside them.
    More than `FARTHEST` metres along an axis from the middle of the place everything is grey.

    Args:
        place: to render.
        c2w: (F, 4, 4), metres, place frame.
        intrinsics: (4,) or (F, 4), in pixels.
        height, width: of frames.
        supersample: rays along each side of a pixel, whose colours are averaged.
        depth: whether to compute depth; without it a third of the time is saved.

    Returns:
        Frames (F, height, width, 3) uint8, and depth (F, height, width) float32, metres along the camera's z axis
        through pixel centres, or None.

    Raises:
        ValueError: for other shapes.
    """
    c2w, intrinsics = np.asarray(c2w, np.float64), np.asarray(intrinsics, np.float64)
    if c2w.ndim != 3 or c2w.shape[1:] != (4, 4):
        raise ValueError(f"c2w must be (F, 4, 4), got {c2w.shape}: pass c2w[None] for one camera.")
    if intrinsics.shape not in ((4,), (len(c2w), 4)):
        raise ValueError(f"intrinsics must be (4,) or ({len(c2w)}, 4) [fx, fy, cx, cy], got {intrinsics.shape}.")
    per_frame = np.broadcast_to(intrinsics, (len(c2w), 4))
    frames = np.empty((len(c2w), height, width, 3), np.uint8)
    distances = np.empty((len(c2w), height, width), np.float32) if depth else None
    for f, (pose, pinhole) in enumerate(zip(c2w, per_frame, strict=True)):
        texel = trace(place, pose, pinhole * supersample, height * supersample, width * supersample)[1]
        if distances is not None:  # its rays pass through pixel centres, where supersampled ones do not
            distances[f] = trace(place, pose, pinhole, height, width)[0]
        frames[f] = _average(place.atlas.take(texel), supersample)
    return frames, distances


def _average(packed: np.ndarray, block: int) -> np.ndarray:
    """Mean over block x block pixels of packed colours (H, W) uint32, as (H / block, W / block, 3) uint8."""
    rows, columns = packed.shape[0] // block, packed.shape[1] // block
    sums = np.zeros((rows, columns, 4), np.uint16)
    odd, even = packed >> np.uint32(8) & np.uint32(0xFF00FF), packed & np.uint32(0xFF00FF)  # two 16-bit halves each
    for lanes, channels in ((even, (0, 2)), (odd, (1, 3))):
        total = sum(lanes[i::block, j::block] for i in range(block) for j in range(block))
        sums[..., channels] = np.ascontiguousarray(total).view(np.uint16).reshape(rows, columns, 2)
    return ((sums[..., :3] + block * block // 2) // (block * block)).astype(np.uint8)


def trace(
    place: Place, pose: np.ndarray, intrinsics: np.ndarray, height: int, width: int
) -> tuple[np.ndarray, np.ndarray]:
    """Where the rays through pixel centres end: z-depth (H, W) float32, and atlas index (H, W) int32."""
    x = (np.arange(width) + 0.5 - intrinsics[2]) / intrinsics[0]
    y = (np.arange(height) + 0.5 - intrinsics[3]) / intrinsics[1]
    # rays are not normalised: their camera z is 1, so the ray parameter is the z-depth itself
    rotation, position = pose[:3, :3], pose[:3, 3]
    turns = turn(place.yaw)
    origins, towards = ((position - place.centre)[:, None] @ turns)[:, 0], turns.swapaxes(1, 2) @ rotation
    depth = np.full((height, width), np.inf, np.float32)
    texel = np.full((height, width), -1, np.int32)
    if np.abs(position).max() > FARTHEST:
        return depth, texel
    outside = (np.abs(origins[0]) > place.half[0] - 1e-4).any()  # or so near to a wall that rounding decides
    # the room first, then the furniture before it
    parts = _footprints(place.half[1:], origins[1:], towards[1:], intrinsics, height, width)
    parts = [(0, slice(0, height), slice(0, width)), *((box + 1, rows, columns) for box, rows, columns in parts)]
    for box, rows, columns in _in_bands(parts):
        origin, toward = origins[box], towards[box]
        across, down = toward[:, :1] * x[columns] + toward[:, 2:], toward[:, 1:2] * y[rows]
        rays = across.astype(np.float32)[:, None, :] + down.astype(np.float32)[:, :, None]  # (3, rows, columns)
        np.copyto(rays, np.float32(1e-9), where=rays == 0)
        inverse = np.reciprocal(rays)
        middle = inverse * -origin.astype(np.float32)[:, None, None]
        extent = np.abs(inverse) * place.half[box].astype(np.float32)[:, None, None]
        sides = far = middle + extent
        reach = leave = np.minimum(np.minimum(far[0], far[1]), far[2])
        if box == 0 and outside:
            missed = (leave <= (middle - extent).max(0)) | (leave <= 0)
            reach = np.where(missed, np.float32(0), leave)
        elif box:  # furniture is met where a ray enters, and only before what is already there
            sides = middle - extent
            reach = np.maximum(np.maximum(sides[0], sides[1]), sides[2])
            hit = np.flatnonzero((reach < leave) & (reach > 0) & (reach < depth[rows, columns]))
            if not hit.size:
                continue
            rays, sides, reach = (part.reshape(-1, leave.size)[:, hit] for part in (rays, sides, reach))
            reach = reach[0]
        scale = np.float32(1 / TEXEL)
        # position on the box in texels from its first corner, past the one-texel margin
        shift = ((origin + place.half[box]) / TEXEL + 1).astype(np.float32)
        at = rays * (reach * scale) + shift.reshape(3, *[1] * reach.ndim)
        is_x, is_y = reach == sides[0], reach == sides[1]
        u, v = np.where(is_x, at[2], at[0]).astype(np.int32), np.where(is_y, at[2], at[1]).astype(np.int32)
        outward = np.where(is_x, rays[0], np.where(is_y, rays[1], rays[2])) > 0
        # the room is left through the side a ray points to, furniture is entered through the other
        face = np.where(is_x, 0, np.where(is_y, 2, 4)) + (outward if box == 0 else ~outward)
        index = place.face_stride[box].take(face) * v + u + place.face_start[box].take(face)
        if box == 0:
            depth[rows], texel[rows] = reach, index
            if outside:
                depth[rows][missed], texel[rows][missed] = np.inf, -1
        else:
            row, column = np.divmod(hit, columns.stop - columns.start)
            seen = (row + rows.start) * width + column + columns.start
            depth.ravel()[seen], texel.ravel()[seen] = reach, index
    return depth, texel


def _in_bands(parts: list[tuple[int, slice, slice]]) -> Iterator[tuple[int, slice, slice]]:
    """The same parts of the frame in bands of few rows, whose rays stay in the processor's cache."""
    for box, rows, columns in parts:
        size = max(1, BAND // (columns.stop - columns.start))
        for row in range(rows.start, rows.stop, size):
            yield box, slice(row, min(row + size, rows.stop)), columns


def _footprints(half, origins, towards, intrinsics, height: int, width: int) -> list[tuple[int, slice, slice]]:
    """(box, rows, columns) of the part of the frame each box in sight can cover; poses in each box's own frame."""
    corners = (_CORNERS * half[:, None] - origins[:, None]) @ towards  # (N, 8, 3), camera axes
    x, y, z = intrinsics[0] * corners[..., 0], intrinsics[1] * corners[..., 1], corners[..., 2]
    left, top, right, bottom = (
        -intrinsics[2] * z,
        -intrinsics[3] * z,
        (width - intrinsics[2]) * z,
        (height - intrinsics[3]) * z,
    )
    hidden = (z < 0.05).all(1) | (x < left).all(1) | (x > right).all(1) | (y < top).all(1) | (y > bottom).all(1)
    z = np.maximum(z, 0.05)
    u, v = x / z + intrinsics[2], y / z + intrinsics[3]
    # a box that reaches behind the camera has no outline: its corners ahead bound nothing
    whole = (corners[..., 2] < 0.05).any(1)
    low = np.where(whole[:, None], 0, np.floor(np.stack([v.min(1), u.min(1)], -1))).clip(0, (height, width)).astype(int)
    high = np.where(whole[:, None], (height, width), np.ceil(np.stack([v.max(1), u.max(1)], -1)) + 1)
    high = high.clip(0, (height, width)).astype(int)
    return [
        (box, slice(low[box, 0], high[box, 0]), slice(low[box, 1], high[box, 1]))
        for box in np.flatnonzero(~hidden & (low < high).all(1))
    ]
