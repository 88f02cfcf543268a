"""Painting the faces of boxes, and baking all light into one texture atlas.

All light is diffuse, so it is computed once per place: lamps, windows, sun and sky, and ambient light that is dimmed
where surfaces are close. A frame is then a look-up (`raycast`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from sanawm_env.engines.rooms.raycast import TEXEL, UV_AXES, Place, turn
from sanawm_env.world.threads import with_torch_threads

_LUMEL = 0.08  # metres per cell of the light maps
NOTHING = np.array([0x808080], np.uint32)


class Canvas:
    """Colours of one face on a texel grid. Positions are in metres from the face's first corner, v downwards on walls.

    Attributes:
        panes: rectangles (u0, v0, u1, v1) that let in light.
    """

    def __init__(self, width: float, height: float, colour: tuple):
        self.width, self.height = width, height
        shape = (int(np.ceil(height / TEXEL)), int(np.ceil(width / TEXEL)))
        self.colour = np.empty((*shape, 3), np.float32)
        self.colour[:] = colour
        self.glowing = np.zeros(shape, bool)  # shown as painted, whatever light falls on it
        self.panes: list[tuple[float, float, float, float]] = []
        v, u = np.indices(shape, np.float32)
        self.u, self.v = (u + 0.5) * TEXEL, (v + 0.5) * TEXEL

    def rectangle(self, u0: float, v0: float, u1: float, v1: float, colour: tuple, glowing: bool = False) -> None:
        """Fill a rectangle."""
        part = (
            slice(max(0, round(v0 / TEXEL)), max(0, round(v1 / TEXEL))),
            slice(max(0, round(u0 / TEXEL)), max(0, round(u1 / TEXEL))),
        )
        self.colour[part], self.glowing[part] = colour, glowing

    def disc(self, u: float, v: float, radius: float, colour: tuple, glowing: bool = False) -> None:
        """Fill a disc."""
        inside = (self.u - u) ** 2 + (self.v - v) ** 2 < radius**2
        self.colour[inside], self.glowing[inside] = colour, glowing


def tint(colour: tuple, factor: float) -> tuple:
    """A colour, times a factor, within 0 to 255."""
    return tuple(np.clip(np.array(colour, float) * factor, 0, 255))


@dataclass(frozen=True)
class Lights:
    """The light of a place.

    Attributes:
        lamps: positions.
        sky: colour of the light through panes.
        ambient: light on surfaces that face free space.
        sun: direction towards it, or None.
        wall_height: metres up to which the outer walls cast shadows.
    """

    lamps: tuple[tuple[float, float, float], ...] = ()
    sky: tuple = (200, 220, 240)
    ambient: float = 0.62
    sun: tuple[float, float, float] | None = None
    wall_height: float = 0.0


class Box(NamedTuple):
    """A box of a place.

    Attributes:
        size: (w, h, d), metres.
        at: (x, height above the floor, z) of its foot.
        colour: sRGB.
        paint: called with each face's canvas, its axis, and whether it is on the positive side.
        yaw: rotation about the vertical, radians.
    """

    size: Sequence[float]
    at: Sequence[float]
    colour: tuple
    paint: Callable[[Canvas, int, bool], None] | None = None
    yaw: float = 0.0


def bake(name: str, room: Sequence[float], furniture: Sequence[Box], shell: dict[int, Canvas], lights: Lights) -> Place:
    """Paint and light every face, and lay all textures one after the other in the atlas.

    Args:
        name: of the place.
        room: its width, height and depth, metres.
        furniture: the boxes in it.
        shell: the six painted faces of the room, by 2 * axis + (1 on the positive side). Lamps are painted on its
            ceiling.
        lights: of the place.
    """
    for x, _, z in lights.lamps:
        shell[2].disc(x + room[0] / 2, z + room[2] / 2, 0.32, (255, 248, 226), glowing=True)
    boxes = [Box(room, (0, 0, 0), (0, 0, 0)), *furniture]
    centre = np.array([(box.at[0], -box.at[1] - box.size[1] / 2, box.at[2]) for box in boxes], float)
    half, yaw = np.array([box.size for box in boxes], float) / 2, np.array([box.yaw for box in boxes], float)
    canvases = {(0, face): shell[face] for face in range(6)}
    for number, box in enumerate(furniture, 1):
        for face in range(6):
            axis, positive = face // 2, face % 2 == 1
            u, v = UV_AXES[axis]
            colour = tint(box.colour, 1.06) if axis == 1 else box.colour
            canvas = canvases[number, face] = Canvas(2 * half[number, u], 2 * half[number, v], colour)
            if box.paint is not None:
                box.paint(canvas, axis, positive)

    grids = {key: _lumels(centre, half, yaw, *key) for key in canvases}
    points = np.concatenate([p.reshape(-1, 3) for p, _ in grids.values()])
    normals = np.concatenate([np.broadcast_to(n, (p.size // 3, 3)) for p, n in grids.values()])
    scene = (centre, half, yaw), _panes(shell, half[0]), lights
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
    return Place(name, centre, half, yaw, np.concatenate([*textures, NOTHING]), start, stride)


def _lumels(centre, half, yaw, box: int, face: int) -> tuple[np.ndarray, np.ndarray]:
    """Light-map points (rows, columns, 3) of a face, a hair off it, and its normal (3,), in the place frame."""
    axis, sign = face // 2, 1.0 if face % 2 else -1.0
    u, v = UV_AXES[axis]
    columns, rows = (max(2, int(np.ceil(2 * half[box, i] / _LUMEL))) for i in (u, v))
    points = np.empty((rows, columns, 3))
    points[..., axis] = sign * half[box, axis]
    points[..., u] = ((np.arange(columns) + 0.5) / columns * 2 - 1) * half[box, u]
    points[..., v] = (((np.arange(rows) + 0.5) / rows * 2 - 1) * half[box, v])[:, None]
    normal = np.zeros(3)
    normal[axis] = -sign if box == 0 else sign  # the room is seen from inside
    rotation = turn(yaw[box])
    normal = rotation @ normal
    return points @ rotation.T + centre[box] + 0.004 * normal, normal


def _panes(shell: dict[int, Canvas], half: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Every pane in the walls: nine points on it (9, 3), and its inward normal (3,)."""
    found = []
    for face in (0, 1, 4, 5):
        axis, sign = face // 2, 1.0 if face % 2 else -1.0
        across = UV_AXES[axis][0]
        normal = np.zeros(3)
        normal[axis] = -sign
        for u0, v0, u1, v1 in shell[face].panes:
            points = np.zeros((3, 3, 3))
            points[..., axis] = sign * (half[axis] - 0.02)
            points[..., across] = np.linspace(u0, u1, 7)[1::2] - half[across]
            points[..., 1] = np.linspace(v0, v1, 7)[1::2, None] - 2 * half[1]
            found.append((points.reshape(9, 3), normal))
    return found


def _obstruction(points, directions, centre, half, yaw, indices) -> np.ndarray:
    """Distance (in lengths of `directions`) to the first box among `indices`; inf where free. (N, 3), (D|N, D, 3)."""
    nearest = np.full((len(points), directions.shape[-2]), np.inf, np.float32)
    for box in indices:
        rotation = turn(yaw[box])
        origin = ((points - centre[box]) @ rotation).astype(np.float32)
        ray = (directions @ rotation).astype(np.float32) + np.float32(1e-9)
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


def _light(points, normals, boxes, panes, lights: Lights) -> np.ndarray:
    """Irradiance (N, 3), linear."""
    centre, half, yaw = boxes
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
    light += lights.ambient * openness[:, None] ** 1.3 * np.array([1.0, 0.985, 0.96])
    # a lamp: 3 x 3 points of a half-metre panel, weaker than inverse-square with distance
    for lamp in lights.lamps:
        panel = np.stack(np.meshgrid([-0.3, 0, 0.3], [0.0], [-0.3, 0, 0.3], indexing="ij"), -1).reshape(-1, 3) + lamp
        to_lamp = panel[None] - points[:, None]
        distance = np.linalg.norm(to_lamp, axis=-1)
        facing = np.maximum((to_lamp * normals[:, None]).sum(-1) / distance, 0)
        free = _obstruction(points, to_lamp, centre, half, yaw, furniture) > 1
        shining = (free * facing / (1 + (distance / 2.4) ** 2)).mean(1)
        light += 0.85 * shining[:, None] * np.array([1.0, 0.95, 0.86])
    # a window: a wide, cool source
    for panel, inward in panes:
        to_pane = panel[None] - points[:, None]
        distance = np.linalg.norm(to_pane, axis=-1) + 0.3
        facing = np.maximum((to_pane * normals[:, None]).sum(-1), 0) * np.maximum(-(to_pane @ inward), 0) / distance**2
        free = _obstruction(points, to_pane, centre, half, yaw, furniture) > 1
        sky = np.array(lights.sky) / np.max(lights.sky)
        light += 1.1 * (free * facing / (1 + (distance / 1.6) ** 2)).mean(1)[:, None] * sky
    if lights.sun is not None:
        shifts = np.array([(0, 0, 0), (0.07, 0, 0), (-0.07, 0, 0), (0, 0, 0.07), (0, 0, -0.07)])  # soft shadow borders
        suns = np.array(lights.sun) / np.linalg.norm(lights.sun) + shifts
        free = np.isinf(_obstruction(points, suns, centre, half, yaw, furniture))
        away = _obstruction(points, suns, centre, half, yaw, (0,))
        free &= points[:, 1, None] + away * suns[:, 1] < -lights.wall_height  # leaves the room above its walls
        light += 0.55 * (free * np.maximum(normals @ suns.T, 0)).mean(1)[:, None] * np.array([1.0, 0.94, 0.82])
    return light


def _develop(canvas: Canvas, light: np.ndarray) -> np.ndarray:
    """Colours under `light`, tone-mapped and packed into uint32. One texel of margin protects look-ups at the rim."""
    rows, columns = canvas.glowing.shape
    coarse = torch.from_numpy(light.astype(np.float32)).permute(2, 0, 1)[None]
    with with_torch_threads(1):  # their number decides the last bits
        grown = torch.nn.functional.interpolate(coarse, (rows, columns), mode="bilinear")[0].permute(1, 2, 0).numpy()
    radiance = (canvas.colour / 255) ** 2.2 * grown * 1.12
    shoulder = np.where(radiance > 0.6, 0.6 + 0.4 * np.tanh((radiance - 0.6) / 0.4), radiance)  # roll highlights off
    shown = np.where(canvas.glowing[..., None], canvas.colour, 255 * shoulder ** (1 / 2.2))
    shown = np.pad(np.clip(np.rint(shown), 0, 255).astype(np.uint32), ((1, 1), (1, 1), (0, 0)), mode="edge")
    return shown[..., 0] | shown[..., 1] << np.uint32(8) | shown[..., 2] << np.uint32(16)
