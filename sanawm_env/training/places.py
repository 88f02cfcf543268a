"""The places the nano world learns: furnished box rooms, their pictures, and walks through them.

The narrow, calm world of shared/reference/nano.md section 4: three fixed places in one consistent style and, in the
same style, endlessly many unknown layouts. All light is diffuse, so it is baked once per place into one texture atlas
(lamp, window light, soft shadows, ambient occlusion); a picture is then ray-box intersections and one look-up per ray.

Conventions (camera.md section 1): c2w in OpenCV axes (x right, y down, z forward), metres. Place frame: origin at the
middle of the floor, y down, floor at y = 0, ceiling at y = -2.8.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from scipy.spatial.transform import Rotation

from sanawm_env.camera.dsl import FPS, TAU_PRESS, KeyDynamics, KeyState, hold_keys
from sanawm_env.camera.twist import hold

HEIGHT, WIDTH, CHUNK = 64, 96, 24  # pixels, frames
FIELD_OF_VIEW = 70.0  # degrees, horizontal
CEILING = 2.8
CLEARANCE, START_CLEARANCE = 0.35, 0.7  # metres between the camera and walls or furniture: on a path, at its start
EYE_LOW, EYE_HIGH = 0.5, 2.3  # metres above the floor
PITCH_LIMIT, ROLL_LIMIT = np.deg2rad(40.0), np.deg2rad(25.0)

_KEY_HABITS = {"wwws": 0.6, "jl": 0.25, "ad": 0.5, "ik": 0.25}  # one key of each group, and how often
_TEXEL = 0.02  # metres per texel of the atlas
_LUMEL = 0.08  # metres per cell of the light maps
_UV_AXES = ((2, 1), (0, 2), (0, 1))  # axes a face normal to x, y, z is textured along
_CORNERS = np.array([[i >> 2 & 1, i >> 1 & 1, i & 1] for i in range(8)]) * 2.0 - 1
_LAYOUT_NAMESPACE = 0x9ACE  # keeps layout seeds apart from every other use of the same integers


@dataclass(frozen=True)
class Place:
    """One furnished room. The first box is the room itself (seen from inside), the others are its furniture.

    name: one of PLACES, or "unknown".
    centre, half: (N, 3) float64, box centres and half sizes, metres, place frame.
    yaw: (N,) float64, rotation of each box about the vertical, radians.
    atlas: (A,) uint32, baked colours 0x00BBGGRR of all faces, one after the other, rows first.
    face_start, face_stride: (N, 6) int32, where the texture of face 2 * axis + (1 on the positive side) lies.
    """

    name: str
    centre: np.ndarray
    half: np.ndarray
    yaw: np.ndarray
    atlas: np.ndarray
    face_start: np.ndarray
    face_stride: np.ndarray


def intrinsics(height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """The fixed lens: (4,) float64 [fx, fy, cx, cy] in pixels for pictures of height x width."""
    focal = width / 2 / np.tan(np.deg2rad(FIELD_OF_VIEW) / 2)
    return np.array([focal, focal, width / 2, height / 2])


# ---------------------------------------------------------------------------------------------------- style and layout


@dataclass(frozen=True)
class _Style:
    """sRGB colours (0..255) and patterns of a room."""

    wall: tuple
    accent: tuple
    trim: tuple
    floor: tuple
    floor_second: tuple
    floor_kind: str  # checker, planks or carpet
    furniture: tuple  # six colours
    art: tuple  # three colours
    sky: tuple


_STYLES = {
    "gallery": _Style(
        wall=(226, 222, 212), accent=(196, 104, 78), trim=(246, 243, 236), floor=(196, 188, 176),
        floor_second=(142, 138, 134), floor_kind="checker",
        furniture=((52, 86, 118), (226, 168, 62), (112, 134, 96), (150, 70, 62), (84, 74, 70), (214, 204, 190)),
        art=((238, 228, 206), (38, 74, 110), (222, 140, 62)), sky=(196, 222, 240),
    ),
    "studio": _Style(
        wall=(232, 220, 196), accent=(112, 146, 118), trim=(250, 244, 232), floor=(178, 128, 84),
        floor_second=(156, 106, 68), floor_kind="planks",
        furniture=((206, 96, 62), (62, 112, 116), (232, 200, 120), (102, 74, 56), (236, 226, 210), (88, 120, 74)),
        art=((244, 222, 190), (186, 76, 58), (60, 92, 86)), sky=(214, 232, 226),
    ),
    "lounge": _Style(
        wall=(192, 202, 214), accent=(62, 84, 128), trim=(236, 238, 242), floor=(116, 108, 124),
        floor_second=(198, 160, 132), floor_kind="carpet",
        furniture=((206, 132, 126), (232, 188, 96), (92, 72, 106), (72, 126, 140), (60, 60, 80), (222, 214, 214)),
        art=((226, 216, 226), (232, 150, 96), (66, 62, 112)), sky=(244, 206, 176),
    ),
}  # fmt: skip
PLACES = tuple(_STYLES)
_PLACE_SEEDS = {"gallery": 0, "studio": 1, "lounge": 2}


def place(name: str) -> Place:
    """The fixed place called `name`, one of PLACES; ValueError for any other name."""
    if name not in PLACES:
        raise ValueError(f"Unknown place {name!r}; the nano world has {', '.join(PLACES)}.")
    return _fixed_place(name)


@cache
def _fixed_place(name: str) -> Place:
    return _furnish(name, _STYLES[name], np.random.default_rng([_LAYOUT_NAMESPACE, 0, _PLACE_SEEDS[name]]))


def random_place(seed: int) -> Place:
    """An unknown layout in the same style: room, colours and furniture all drawn from `seed` (a non-negative int)."""
    rng = np.random.default_rng([_LAYOUT_NAMESPACE, 1, seed])
    styles = [_STYLES[name] for name in rng.permutation(PLACES)]

    def shade(colour: tuple) -> tuple:
        return tuple(np.clip(np.array(colour) * rng.uniform(0.85, 1.1) + rng.uniform(-14, 14, 3), 20, 252))

    colours = [shade(colour) for style in styles for colour in style.furniture]
    style = _Style(
        wall=shade(styles[0].wall), accent=shade(styles[1].accent), trim=styles[0].trim,
        floor=shade(styles[2].floor), floor_second=shade(styles[2].floor_second), floor_kind=styles[2].floor_kind,
        furniture=tuple(colours[i] for i in rng.permutation(len(colours))[:6]),
        art=tuple(shade(c) for c in styles[1].art), sky=styles[0].sky,
    )  # fmt: skip
    return _furnish("unknown", style, rng)


def _pieces(colours: tuple) -> list[tuple[bool, float, list]]:
    """Furniture: (stands at a wall, radius, boxes). A box: size (w, h, d), offset (x, bottom, z), colour, pattern."""
    a, b, c, d, e, f = colours
    leaf = (96, 138, 84)
    return [
        (True, 1.05, [((1.9, 0.42, 0.8), (0, 0, 0.1), a, ""), ((1.9, 0.82, 0.22), (0, 0, -0.41), a, "")]),
        (True, 0.75, [((1.25, 1.9, 0.36), (0, 0, 0), d, "shelves")]),
        (True, 0.8, [((1.4, 0.78, 0.46), (0, 0, 0), e, "doors")]),
        (False, 0.6, [((0.95, 0.4, 0.6), (0, 0, 0), f, "")]),
        (False, 0.4, [((0.44, 1.0, 0.44), (0, 0, 0), f, ""), ((0.3, 0.32, 0.3), (0, 1.0, 0), b, "")]),
        (False, 0.42, [((0.55, 0.44, 0.55), (0, 0, 0), c, "")]),
        (True, 0.4, [((0.36, 0.4, 0.36), (0, 0, 0), b, ""), ((0.56, 0.75, 0.56), (0, 0.4, 0), leaf, "")]),
    ]


def _furnish(name: str, style: _Style, rng: np.random.Generator) -> Place:
    """Draw a room's size, landmarks and furniture, then bake its light."""
    size = np.array([rng.uniform(5.0, 8.0), CEILING, rng.uniform(5.0, 8.0)])
    centre, half, yaw = [[0, -CEILING / 2, 0]], [size / 2], [0.0]
    looks: list[tuple] = [(None, "room")]
    taken: list[tuple[np.ndarray, float]] = []
    walls = [int(w) for w in rng.permutation(4)]
    for at_wall, radius, boxes in _pieces(style.furniture):
        for _ in range(200):
            if at_wall:
                side = walls[0]
                depth = max(box[0][2] / 2 - box[1][2] for box in boxes)
                along = rng.uniform(-1, 1) * (size[0 if side < 2 else 2] / 2 - radius - 0.1)
                away = size[2 if side < 2 else 0] / 2 - depth - 0.12
                position = np.array([(along, -away), (along, away), (-away, along), (away, along)][side])
                heading = (0.0, np.pi, np.pi / 2, -np.pi / 2)[side] + rng.uniform(-0.08, 0.08)
            else:
                position = rng.uniform(-1, 1, 2) * (size[[0, 2]] / 2 - 1.3)
                heading = rng.uniform(-np.pi, np.pi)
            if all(np.hypot(*(position - other)) > radius + reach + 0.25 for other, reach in taken):
                break
            walls = walls[1:] + walls[:1]
        else:
            continue  # no room left for this piece
        walls = walls[1:] + walls[:1]
        taken.append((position, radius))
        turn = np.array([[np.cos(heading), np.sin(heading)], [-np.sin(heading), np.cos(heading)]])
        for box_size, (x, bottom, z), colour, pattern in boxes:
            cx, cz = position + turn @ (x, z)
            centre.append([cx, -bottom - box_size[1] / 2, cz])
            half.append(np.array(box_size) / 2)
            yaw.append(heading)
            looks.append((colour, pattern))
    return _bake(name, style, np.array(centre, float), np.array(half, float), np.array(yaw, float), looks, rng)


# ------------------------------------------------------------------------------------------------- painting and baking


class _Canvas:
    """Colours of one face on a texel grid; positions in metres from the face's first corner, v downwards on walls."""

    def __init__(self, width: float, height: float, colour: tuple):
        self.width, self.height = width, height
        shape = (int(np.ceil(height / _TEXEL)), int(np.ceil(width / _TEXEL)))
        self.colour = np.empty((*shape, 3), np.float32)
        self.colour[:] = colour
        self.glowing = np.zeros(shape, bool)  # shown as painted, whatever light falls on it
        v, u = np.indices(shape, np.float32)
        self.u, self.v = (u + 0.5) * _TEXEL, (v + 0.5) * _TEXEL

    def rectangle(self, u0: float, v0: float, u1: float, v1: float, colour: tuple, glowing: bool = False) -> None:
        part = slice(max(0, round(v0 / _TEXEL)), max(0, round(v1 / _TEXEL))), slice(
            max(0, round(u0 / _TEXEL)), max(0, round(u1 / _TEXEL))
        )
        self.colour[part], self.glowing[part] = colour, glowing

    def disc(self, u: float, v: float, radius: float, colour: tuple, glowing: bool = False) -> None:
        inside = (self.u - u) ** 2 + (self.v - v) ** 2 < radius**2
        self.colour[inside], self.glowing[inside] = colour, glowing


def _tint(colour: tuple, factor: float) -> tuple:
    return tuple(np.clip(np.array(colour, float) * factor, 0, 255))


def _paint_floor(style: _Style, width: float, depth: float, rng: np.random.Generator) -> _Canvas:
    canvas = _Canvas(width, depth, style.floor)
    if style.floor_kind == "checker":
        odd = (np.floor(canvas.u / 1.0) + np.floor(canvas.v / 1.0)) % 2 == 1
        canvas.colour[odd] = style.floor_second
    elif style.floor_kind == "planks":
        mix = rng.uniform(0, 1, 64)[(canvas.u / 0.45).astype(int)][..., None]
        canvas.colour[:] = mix * np.array(style.floor) + (1 - mix) * np.array(style.floor_second)
    else:  # a carpet with a large rug
        u, v = width * rng.uniform(0.4, 0.6), depth * rng.uniform(0.4, 0.6)
        for reach, colour in ((1.0, style.floor_second), (0.88, _tint(style.floor, 0.7)), (0.8, style.floor_second)):
            canvas.rectangle(u - 1.6 * reach, v - 1.2 * reach, u + 1.6 * reach, v + 1.2 * reach, colour)
    return canvas


def _paint_wall(style: _Style, landmark: str, accent: bool, width: float, rng: np.random.Generator) -> _Canvas:
    canvas = _Canvas(width, CEILING, style.accent if accent else style.wall)
    middle = width * rng.uniform(0.35, 0.65)
    if landmark == "band":
        canvas.rectangle(0, 1.75, width, CEILING, _tint(style.accent, 0.8 if accent else 1.0))
        canvas.rectangle(0, 1.67, width, 1.75, style.trim)
    canvas.rectangle(0, CEILING - 0.1, width, CEILING, style.trim)
    if landmark == "door":
        canvas.rectangle(middle - 0.58, 0.58, middle + 0.58, CEILING, style.trim)
        canvas.rectangle(middle - 0.47, 0.69, middle + 0.47, CEILING, style.furniture[3])
        for top, bottom in ((0.85, 1.55), (1.75, 2.55)):
            canvas.rectangle(middle - 0.3, top, middle + 0.3, bottom, _tint(style.furniture[3], 0.8))
        canvas.disc(middle + 0.38, 1.72, 0.055, (236, 206, 120))
    elif landmark == "window":
        reach, top, bottom = 0.95, 0.55, 1.85
        canvas.rectangle(middle - reach - 0.1, top - 0.1, middle + reach + 0.1, bottom + 0.12, style.trim)
        canvas.rectangle(middle - reach, top, middle + reach, bottom, style.sky, glowing=True)
        pane = canvas.glowing
        fade = np.clip((canvas.v - top) / (bottom - top), 0, 1)[..., None]
        canvas.colour[pane] = ((1 - fade) * np.array(style.sky) + fade * np.array((252, 246, 234)))[pane]
        hills = pane & (canvas.v > 1.52 + 0.12 * np.sin(2.6 * (canvas.u - middle)))
        canvas.colour[hills] = 0.55 * np.array(style.sky) + 0.45 * np.array((110, 140, 110))
        canvas.rectangle(middle - 0.04, top, middle + 0.04, bottom, style.trim)
    elif landmark == "poster":
        paper, first, second = style.art
        canvas.rectangle(middle - 0.72, 0.62, middle + 0.72, 1.72, (58, 52, 50))
        canvas.rectangle(middle - 0.65, 0.69, middle + 0.65, 1.65, paper)
        canvas.disc(middle - 0.2, 1.05, 0.25, second)
        canvas.rectangle(middle - 0.65, 1.3, middle + 0.65, 1.65, first)
        canvas.rectangle(middle + 0.2, 0.85, middle + 0.45, 1.3, first)
    return canvas


def _paint_box(size: np.ndarray, axis: int, positive: bool, colour: tuple, pattern: str) -> _Canvas:
    u, v = _UV_AXES[axis]
    canvas = _Canvas(size[u], size[v], _tint(colour, 1.06) if axis == 1 else colour)
    if axis == 2 and positive and pattern == "shelves":
        spines = ((206, 110, 84), (224, 186, 110), (92, 128, 142), (222, 214, 196), (112, 134, 104), (150, 96, 110))
        for row in range(4):
            v0 = 0.07 + row * 0.46
            canvas.rectangle(0.07, v0, size[0] - 0.07, v0 + 0.39, _tint(colour, 0.45))
            for i, u0 in enumerate(np.arange(0.1, size[0] - 0.3, 0.2)):
                if (i + 2 * row) % 5:
                    canvas.rectangle(u0, v0 + 0.1, u0 + 0.2, v0 + 0.39, spines[(5 * row + 2 * i) % 6])
    elif axis == 2 and positive and pattern == "doors":
        for u0 in (0.06, size[0] / 2 + 0.03):
            canvas.rectangle(u0, 0.1, u0 + size[0] / 2 - 0.09, size[1] - 0.1, _tint(colour, 1.35))
    return canvas


def _bake(name, style, centre, half, yaw, looks, rng) -> Place:
    """Paint every face, light it, and lay all textures one after the other in the atlas."""
    size = 2 * half[0]
    landmarks = [("door", "window", "poster", "band")[i] for i in rng.permutation(4)]
    accent = rng.integers(4)
    lamp = np.array([0.12 * size[0] * rng.uniform(-1, 1), -CEILING + 0.35, 0.12 * size[2] * rng.uniform(-1, 1)])
    canvases: dict[tuple[int, int], _Canvas] = {}
    for wall, face in enumerate((0, 1, 4, 5)):
        width = size[2] if face < 2 else size[0]
        canvases[0, face] = _paint_wall(style, landmarks[wall], wall == accent, width, rng)
    canvases[0, 2] = _Canvas(size[0], size[2], (244, 240, 232))
    canvases[0, 2].disc(*(lamp + half[0])[[0, 2]], 0.32, (255, 248, 226), glowing=True)
    canvases[0, 3] = _paint_floor(style, size[0], size[2], rng)
    for box in range(1, len(yaw)):
        for face in range(6):
            canvases[box, face] = _paint_box(2 * half[box], face // 2, face % 2 == 1, *looks[box])

    grids = {key: _lumels(centre, half, yaw, *key) for key in canvases}
    points = np.concatenate([p.reshape(-1, 3) for p, _ in grids.values()])
    normals = np.concatenate([np.broadcast_to(n, (p.size // 3, 3)) for p, n in grids.values()])
    scene = centre, half, yaw, lamp, _window_points(canvases, half), style
    blocks = [slice(i, i + 1024) for i in range(0, len(points), 1024)]  # small enough for the processor's cache
    light = np.concatenate([_light(points[block], normals[block], *scene) for block in blocks])

    start = np.zeros((len(yaw), 6), np.int32)
    stride = np.ones((len(yaw), 6), np.int32)
    textures, offset, read = [], 0, 0
    for (box, face), canvas in canvases.items():
        rows, columns = grids[box, face][0].shape[:2]
        here = light[read : read + rows * columns].reshape(rows, columns, 3)
        read += rows * columns
        texture = _develop(canvas, here)
        start[box, face], stride[box, face] = offset, texture.shape[1]
        textures.append(texture.ravel())
        offset += texture.size
    return Place(name, centre, half, yaw, np.concatenate(textures), start, stride)


def _lumels(centre, half, yaw, box: int, face: int) -> tuple[np.ndarray, np.ndarray]:
    """Light-map points (rows, columns, 3) of a face, a hair off it, and its normal (3,), in the place frame."""
    axis, sign = face // 2, 1.0 if face % 2 else -1.0
    u, v = _UV_AXES[axis]
    columns, rows = (max(2, int(np.ceil(2 * half[box, i] / _LUMEL))) for i in (u, v))
    points = np.empty((rows, columns, 3))
    points[..., axis] = sign * half[box, axis]
    points[..., u] = ((np.arange(columns) + 0.5) / columns * 2 - 1) * half[box, u]
    points[..., v] = (((np.arange(rows) + 0.5) / rows * 2 - 1) * half[box, v])[:, None]
    normal = np.zeros(3)
    normal[axis] = -sign if box == 0 else sign  # the room is seen from inside
    turn = _turn(yaw[box])
    normal = turn @ normal
    return points @ turn.T + centre[box] + 0.004 * normal, normal


def _turn(yaw: np.ndarray | float) -> np.ndarray:
    """Rotation (..., 3, 3) about the vertical; positive turns a camera to the right."""
    matrix = np.zeros((*np.shape(yaw), 3, 3))
    matrix[..., 0, 0] = matrix[..., 2, 2] = np.cos(yaw)
    matrix[..., 0, 2], matrix[..., 2, 0] = np.sin(yaw), -np.sin(yaw)
    matrix[..., 1, 1] = 1
    return matrix


def _window_points(canvases, half) -> np.ndarray:
    """Nine points on the window pane and its inward normal: (10, 3), the normal last."""
    for (box, face), canvas in canvases.items():
        if box == 0 and face not in (2, 3) and canvas.glowing.any():  # the lamp glows too, on the ceiling
            axis, sign = face // 2, 1.0 if face % 2 else -1.0
            u, v = (np.quantile(w[canvas.glowing], (0.15, 0.5, 0.85)) for w in (canvas.u, canvas.v))
            points = np.zeros((3, 3, 3))
            points[..., axis] = sign * (half[0, axis] - 0.02)
            points[..., _UV_AXES[axis][0]] = u - half[0, _UV_AXES[axis][0]]
            points[..., 1] = v[:, None] - CEILING
            normal = np.zeros((1, 3))
            normal[0, axis] = -sign
            return np.concatenate([points.reshape(9, 3), normal])
    raise AssertionError("every room has a window")


def _obstruction(points, directions, centre, half, yaw, indices) -> np.ndarray:
    """Distance (in lengths of `directions`) to the first box among `indices`; inf where free. (N, 3), (D|N, D, 3)."""
    nearest = np.full((len(points), directions.shape[-2]), np.inf, np.float32)
    for box in indices:
        turn = _turn(yaw[box])
        origin = ((points - centre[box]) @ turn).astype(np.float32)
        ray = (directions @ turn).astype(np.float32) + np.float32(1e-9)
        near = np.float32(-np.inf)
        far = np.float32(np.inf)
        for axis in range(3):
            inverse = 1 / ray[..., axis]
            middle, extent = -origin[:, axis, None] * inverse, np.float32(half[box, axis]) * np.abs(inverse)
            near, far = np.maximum(near, middle - extent), np.minimum(far, middle + extent)
        # from inside the room the far side is what the ray meets
        hit = far if box == 0 else np.where((near < far) & (far > 0), np.maximum(near, 0), np.inf)
        nearest = np.minimum(nearest, hit)
    return nearest


def _light(points, normals, centre, half, yaw, lamp, window, style) -> np.ndarray:
    """Irradiance (N, 3), linear: a soft lamp, the window, and ambient light dimmed where surfaces stand close."""
    furniture = range(1, len(yaw))
    light = np.zeros((len(points), 3))
    # ambient: 40 directions spread evenly over the sphere, folded onto each point's hemisphere and weighted by cosine
    i = np.arange(40) + 0.5
    polar, azimuth = np.arccos(1 - 2 * i / 40), np.pi * (1 + 5**0.5) * i
    sphere = np.stack([np.cos(azimuth) * np.sin(polar), np.cos(polar), np.sin(azimuth) * np.sin(polar)], -1)
    cosine = normals @ sphere.T
    weight = np.maximum(cosine, 0)
    reach = _obstruction(points, sphere, centre, half, yaw, range(len(yaw)))
    closed = np.exp(-np.clip(reach, 0, 50) / 0.45)
    openness = np.clip(1 - (weight * closed).sum(1) / weight.sum(1), 0, 1)
    light += 0.62 * openness[:, None] ** 1.3 * np.array([1.0, 0.985, 0.96])
    # the lamp: 3 x 3 points of a half-metre panel, weaker than inverse-square with distance
    panel = np.stack(np.meshgrid([-0.3, 0, 0.3], [0.0], [-0.3, 0, 0.3], indexing="ij"), -1).reshape(-1, 3) + lamp
    to_lamp = panel[None] - points[:, None]
    distance = np.linalg.norm(to_lamp, axis=-1)
    facing = np.maximum((to_lamp * normals[:, None]).sum(-1) / distance, 0)
    free = _obstruction(points, to_lamp, centre, half, yaw, furniture) > 1
    light += 0.85 * (free * facing / (1 + (distance / 2.4) ** 2)).mean(1)[:, None] * np.array([1.0, 0.95, 0.86])
    # the window: a wide, cool source
    panel, inward = window[:9], window[9]
    to_pane = panel[None] - points[:, None]
    distance = np.linalg.norm(to_pane, axis=-1) + 0.3
    facing = np.maximum((to_pane * normals[:, None]).sum(-1), 0) * np.maximum(-(to_pane @ inward), 0) / distance**2
    free = _obstruction(points, to_pane, centre, half, yaw, furniture) > 1
    sky = np.array(style.sky) / np.max(style.sky)
    return light + 1.1 * (free * facing / (1 + (distance / 1.6) ** 2)).mean(1)[:, None] * sky


def _develop(canvas: _Canvas, light: np.ndarray) -> np.ndarray:
    """Colours under `light`, tone-mapped and packed into uint32; one texel of margin guards look-ups at the rim."""
    rows, columns = canvas.glowing.shape
    grown = torch.nn.functional.interpolate(
        torch.from_numpy(light.astype(np.float32)).permute(2, 0, 1)[None], (rows, columns), mode="bilinear"
    )[0].permute(1, 2, 0).numpy()  # fmt: skip
    radiance = (canvas.colour / 255) ** 2.2 * grown * 1.12
    shoulder = np.where(radiance > 0.6, 0.6 + 0.4 * np.tanh((radiance - 0.6) / 0.4), radiance)  # roll highlights off
    shown = np.where(canvas.glowing[..., None], canvas.colour, 255 * shoulder ** (1 / 2.2))
    shown = np.pad(np.clip(np.rint(shown), 0, 255).astype(np.uint32), ((1, 1), (1, 1), (0, 0)), mode="edge")
    return shown[..., 0] | shown[..., 1] << np.uint32(8) | shown[..., 2] << np.uint32(16)


# ------------------------------------------------------------------------------------------------------------ pictures


def render(
    place: Place,
    c2w: np.ndarray,
    intrinsics: np.ndarray,
    height: int = HEIGHT,
    width: int = WIDTH,
    supersample: int = 2,
    depth: bool = True,
) -> tuple[np.ndarray, np.ndarray | None]:
    """What cameras at `c2w` (F, 4, 4), metres, place frame, see through `intrinsics` (4,) or (F, 4), in pixels.

    Returns frames (F, height, width, 3) uint8, averaged over supersample x supersample rays per pixel, and depth
    (F, height, width) float32, metres along the camera's z axis through pixel centres; None when `depth` is
    false, which saves a third of the time. Cameras must be inside the room and outside the furniture. ValueError for
    other shapes.
    """
    c2w, intrinsics = np.asarray(c2w, np.float64), np.asarray(intrinsics, np.float64)
    if c2w.ndim != 3 or c2w.shape[1:] != (4, 4):
        raise ValueError(f"c2w must be (F, 4, 4), not {c2w.shape}; pass c2w[None] for one camera.")
    if intrinsics.shape not in ((4,), (len(c2w), 4)):
        raise ValueError(f"intrinsics must be (4,) or ({len(c2w)}, 4) [fx, fy, cx, cy], not {intrinsics.shape}.")
    lenses = np.broadcast_to(intrinsics, (len(c2w), 4))
    frames = np.empty((len(c2w), height, width, 3), np.uint8)
    distances = np.empty((len(c2w), height, width), np.float32) if depth else None
    for f, (pose, lens) in enumerate(zip(c2w, lenses, strict=True)):
        texel = _trace(place, pose, lens * supersample, height * supersample, width * supersample)[1]
        if depth:  # its rays pass through pixel centres, where supersampled ones do not
            distances[f] = _trace(place, pose, lens, height, width)[0]
        frames[f] = _average(place.atlas.take(texel), supersample)
    return frames, distances


def _average(packed: np.ndarray, block: int) -> np.ndarray:
    """Mean over block x block pixels of packed colours (H, W) uint32, as (H / block, W / block, 3) uint8."""
    rows, columns = packed.shape[0] // block, packed.shape[1] // block
    sums = np.zeros((rows, columns, 4), np.uint16)
    odd, even = packed >> np.uint32(8) & np.uint32(0xFF00FF), packed & np.uint32(0xFF00FF)  # two 16-bit lanes each
    for lanes, channels in ((even, (0, 2)), (odd, (1, 3))):
        total = sum(lanes[i::block, j::block] for i in range(block) for j in range(block))
        sums[..., channels] = np.ascontiguousarray(total).view(np.uint16).reshape(rows, columns, 2)
    return ((sums[..., :3] + block * block // 2) // (block * block)).astype(np.uint8)


def _trace(place: Place, pose: np.ndarray, lens: np.ndarray, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """z-depth (H, W) float32 and atlas index (H, W) int32 where the rays through pixel centres end."""
    x = (np.arange(width) + 0.5 - lens[2]) / lens[0]
    y = (np.arange(height) + 0.5 - lens[3]) / lens[1]
    # rays are not normalised: their camera z is 1, so the ray parameter is the z-depth itself
    rotation, position = pose[:3, :3], pose[:3, 3]
    turns = _turn(place.yaw)
    origins, towards = ((position - place.centre)[:, None] @ turns)[:, 0], turns.swapaxes(1, 2) @ rotation
    # the room first, then the furniture before it
    parts = _footprints(place.half[1:], origins[1:], towards[1:], lens, height, width)
    depth = np.empty((height, width), np.float32)
    texel = np.empty((height, width), np.int32)
    for box, rows, columns in [(0, slice(0, height), slice(0, width)), *((box + 1, *part) for box, *part in parts)]:
        origin, toward = origins[box], towards[box]
        across, down = toward[:, :1] * x[columns] + toward[:, 2:], toward[:, 1:2] * y[rows]
        rays = across.astype(np.float32)[:, None, :] + down.astype(np.float32)[:, :, None]  # (3, rows, columns)
        np.copyto(rays, np.float32(1e-9), where=rays == 0)
        inverse = np.reciprocal(rays)
        middle = inverse * -origin.astype(np.float32)[:, None, None]
        extent = np.abs(inverse) * place.half[box].astype(np.float32)[:, None, None]
        sides = far = middle + extent
        reach = leave = np.minimum(np.minimum(far[0], far[1]), far[2])
        if box:  # furniture is met where a ray enters, and only before what is already there
            sides = middle - extent
            reach = np.maximum(np.maximum(sides[0], sides[1]), sides[2])
            hit = np.flatnonzero((reach < leave) & (reach > 0) & (reach < depth[rows, columns]))
            if not hit.size:
                continue
            rays, sides, reach = (part.reshape(-1, leave.size)[:, hit] for part in (rays, sides, reach))
            reach = reach[0]
        scale = np.float32(1 / _TEXEL)
        # position on the box in texels from its first corner, past the one-texel margin
        shift = ((origin + place.half[box]) / _TEXEL + 1).astype(np.float32)
        at = rays * (reach * scale) + shift.reshape(3, *[1] * reach.ndim)
        is_x, is_y = reach == sides[0], reach == sides[1]
        u, v = np.where(is_x, at[2], at[0]).astype(np.int32), np.where(is_y, at[2], at[1]).astype(np.int32)
        outward = np.where(is_x, rays[0], np.where(is_y, rays[1], rays[2])) > 0
        # the room is left through the side a ray points to, furniture is entered through the other
        face = np.where(is_x, 0, np.where(is_y, 2, 4)) + (outward if box == 0 else ~outward)
        index = place.face_stride[box].take(face) * v + u + place.face_start[box].take(face)
        if box == 0:
            depth[:], texel[:] = reach, index
        else:
            row, column = np.divmod(hit, columns.stop - columns.start)
            seen = (row + rows.start) * width + column + columns.start
            depth.ravel()[seen], texel.ravel()[seen] = reach, index
    return depth, texel


def _footprints(half, origins, towards, lens, height: int, width: int) -> list[tuple[int, slice, slice]]:
    """(box, rows, columns) of the part of the picture each box in sight can cover; poses in each box's own frame."""
    corners = (_CORNERS * half[:, None] - origins[:, None]) @ towards  # (N, 8, 3), camera axes
    x, y, z = lens[0] * corners[..., 0], lens[1] * corners[..., 1], corners[..., 2]
    left, top, right, bottom = -lens[2] * z, -lens[3] * z, (width - lens[2]) * z, (height - lens[3]) * z
    hidden = (z < 0.05).all(1) | (x < left).all(1) | (x > right).all(1) | (y < top).all(1) | (y > bottom).all(1)
    z = np.maximum(z, 0.05)
    u, v = x / z + lens[2], y / z + lens[3]
    # a box that reaches behind the camera has no outline: its corners ahead bound nothing
    whole = (corners[..., 2] < 0.05).any(1)
    low = np.where(whole[:, None], 0, np.floor(np.stack([v.min(1), u.min(1)], -1))).clip(0, (height, width)).astype(int)
    high = np.where(whole[:, None], (height, width), np.ceil(np.stack([v.max(1), u.max(1)], -1)) + 1)
    high = high.clip(0, (height, width)).astype(int)
    return [
        (box, slice(low[box, 0], high[box, 0]), slice(low[box, 1], high[box, 1]))
        for box in np.flatnonzero(~hidden & (low < high).all(1))
    ]


# --------------------------------------------------------------------------------------------------- starts and walks


def clearance(place: Place, position: np.ndarray) -> float:
    """Distance in metres from `position` (3,) to the nearest wall or piece of furniture; negative inside one."""
    walls = (place.half[0] - np.abs(position - place.centre[0]))[[0, 2]].min()
    c, s = np.cos(place.yaw[1:]), np.sin(place.yaw[1:])
    x, y, z = (position - place.centre[1:]).T
    outside = np.abs(np.stack([c * x - s * z, y, s * x + c * z], -1)) - place.half[1:]
    gaps = np.linalg.norm(np.maximum(outside, 0), axis=-1) + np.minimum(outside.max(-1), 0)
    return float(min(walls, gaps.min(initial=np.inf)))


def sample_start(place: Place, rng: np.random.Generator) -> np.ndarray:
    """A level camera (4, 4) float64 that faces inward, 0.7 m clear of everything, median depth at least 1.5 m."""
    for _ in range(1000):
        reach = place.half[0, [0, 2]] - START_CLEARANCE
        x, z = rng.uniform(-reach, reach)
        eye = rng.uniform(1.4, 1.6)
        # clear of furniture at every height below the eye, so that a start never hovers over a table
        if min(clearance(place, np.array([x, -h, z])) for h in (0.2, 0.7, 1.2, eye)) < START_CLEARANCE:
            continue
        aim = rng.uniform(-0.5, 0.5, 2) * place.half[0, [0, 2]]
        yaw = np.arctan2(aim[0] - x, aim[1] - z) + rng.normal(0, 0.35)
        pose = np.eye(4)
        pose[:3, :3], pose[:3, 3] = _turn(yaw), (x, -eye, z)
        inward = -np.array([x, z]) @ pose[[0, 2], 2]
        if inward < 0 and np.hypot(x, z) > 1.0:
            continue
        if np.median(_trace(place, pose, intrinsics(16, 24), 16, 24)[0]) >= 1.5:
            return pose
    raise RuntimeError(f"Found no start in the place {place.name!r}: it is too crowded.")


def sample_path(place: Place, start: np.ndarray, rng: np.random.Generator, num_frames: int) -> np.ndarray:
    """A walk (num_frames, 4, 4) float64 through the place, first pose = `start` (4, 4), which should be level.

    A third each: held keys (camera.md 2), held keys with vertical motion and roll, one body twist per chunk of 24
    frames (camera.md 8.2). A step that would come closer than 0.35 m to anything is not taken (the turn is).
    """
    kind = rng.integers(3)
    for _ in range(4):  # prefer walks that seldom run against things
        free = _twist_walk(start, rng, num_frames) if kind == 2 else _key_walk(start, rng, num_frames)
        if kind == 1:
            free = _enliven(free, rng)
        path, blocked = free.copy(), 0
        for f in range(1, num_frames):
            target = path[f - 1, :3, 3] + free[f, :3, 3] - free[f - 1, :3, 3]
            allowed = EYE_LOW <= -target[1] <= EYE_HIGH and clearance(place, target) >= CLEARANCE
            path[f, :3, 3] = target if allowed else path[f - 1, :3, 3]
            blocked += not allowed
        if blocked <= num_frames // 8:
            break
    return path


def _key_walk(start: np.ndarray, rng: np.random.Generator, num_frames: int) -> np.ndarray:
    """Random keys held for 12 to 48 frames each, at 0.6 to 1.8 times the official speed."""
    speed = rng.uniform(0.6, 1.8)
    dynamics = KeyDynamics(0.025 * speed, 0.6 * speed, np.rad2deg(PITCH_LIMIT))
    state, walked, count = KeyState(pose=start), [start[None]], 1
    while count < num_frames:
        keys = {rng.choice(list(pair)) for pair, often in _KEY_HABITS.items() if rng.random() < often}
        frames = min(int(rng.integers(12, 49)), num_frames - count)
        state, poses = hold_keys(state, keys if rng.random() > 0.15 else (), frames, dynamics)
        walked.append(poses)
        count += frames
    return np.concatenate(walked)


def _enliven(path: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The same walk with smooth rising, sinking and rolling on top."""
    wanted, rate = np.zeros((len(path), 2)), np.zeros((len(path), 2))  # per frame: metres down, radians clockwise
    f = 1
    while f < len(path):
        length = rng.integers(12, 49)
        wanted[f : f + length] = rng.uniform(0.5, 1.8) * rng.integers(-1, 2, 2) * (0.0125, np.deg2rad(0.15))
        f += length
    for f in range(1, len(path)):
        rate[f] = rate[f - 1] + (wanted[f] - rate[f - 1]) * (1 - np.exp(-1 / (FPS * TAU_PRESS)))
    sink, roll = np.cumsum(rate, 0).T
    lively = path.copy()
    rolling = np.outer(np.clip(roll, -ROLL_LIMIT, ROLL_LIMIT), (0, 0, 1))
    lively[:, :3, :3] = path[:, :3, :3] @ Rotation.from_rotvec(rolling).as_matrix()
    lively[:, 1, 3] += sink
    return lively


def _twist_walk(start: np.ndarray, rng: np.random.Generator, num_frames: int) -> np.ndarray:
    """One random body twist per chunk within the standard bounds of camera.md 8.3, as agents act."""
    bounds = np.array([0.8, 0.4, 0.8, *np.deg2rad([19.2, 19.2, 4.8])])
    walked, count = [start[None]], 1
    while count < num_frames:
        frames = min(CHUNK, num_frames - count)
        still = rng.random() < 0.12
        for _ in range(20):
            poses = hold(walked[-1][-1], bounds * rng.uniform(-1, 1, 6) * (rng.random(6) < 0.7) * (not still), frames)
            steep, lean = np.arcsin(np.clip(poses[:, 1, [2, 0]], -1, 1)).T
            if np.abs(steep).max() <= PITCH_LIMIT and np.abs(lean).max() <= ROLL_LIMIT:
                break
        else:
            poses = hold(walked[-1][-1], np.zeros(6), frames)
        walked.append(poses)
        count += frames
    return np.concatenate(walked)
