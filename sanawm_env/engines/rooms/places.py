"""The places of the rooms world, which nano learns: two connected rooms, a corridor around a corner, a court under open
sky.

They are the narrow, calm world of shared/reference/nano.md, section 4: three fixed places in one consistent style, and
endlessly many furnished rooms in the same style. Everything is a box: `raycast` renders it, `baking` paints and lights
it, `walks` moves a camera through it. Place frame: origin at the middle of the floor, y down, the floor at y = 0.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from typing import Any

import numpy as np

from sanawm_env.engines.rooms.baking import Box, Canvas, Lights, bake, tint
from sanawm_env.engines.rooms.raycast import Place
from sanawm_env.system.files import brief

CEILING = 2.8  # metres, of rooms
_LAYOUT_NAMESPACE = 0x9ACE  # keeps layout seeds apart from every other use of the same integers

WHITE, TRIM, WOOD, LEAF = (232, 227, 216), (246, 243, 236), (168, 122, 84), (104, 138, 92)


ROLES = {"train": 1, "validation": 2, "evaluate": 3, "collect": 4, "test": 5}
"""What furnished rooms are for: part of their seeds, so that no two roles share one."""
ROOMS_KEPT = 16  # some 2 MB each
_ROOM = re.compile("(train|test)/(0|[1-9][0-9]{0,11})")

# width, height, depth of each place's outermost box, metres
PLACES = {"gallery": (8.4, CEILING, 5.2), "corridor": (8.0, CEILING, 8.0), "court": (8.6, 5.4, 8.6)}
PLACE_NAMES = f'{", ".join(PLACES)}, and furnished rooms "train/N" and "test/N", N from 0'


def bounds(name: str) -> tuple[float, float, float, float, float, float]:
    """Lower and upper corner of a fixed place, (x, y, z, x, y, z)."""
    width, height, depth = PLACES[name]
    return -width / 2, -height, -depth / 2, width / 2, 0.0, depth / 2


def is_place(name: str) -> bool:
    """Whether there is a place of that name: one of PLACES, or a furnished room "train/N" or "test/N", N from 0 to
    10^12 - 1."""
    return name in PLACES or _ROOM.fullmatch(name) is not None


def place(name: str) -> Place:
    """A place by name. The last `ROOMS_KEPT` rooms are cached.

    Args:
        name: see `is_place`. Rooms of "test" were never used in training, validation or evaluation of nano, and none of
            them is in "train".

    Raises:
        ValueError: for an unknown name.
    """
    if not is_place(name):
        raise ValueError(f"Unknown place {brief(name)}: known are {PLACE_NAMES}.")
    return _fixed_place(name) if name in PLACES else _furnished_room(name)


@lru_cache(ROOMS_KEPT)
def _furnished_room(name: str) -> Place:
    role, number = name.split("/")
    return replace(random_place(room_seed(role, int(number))), name=name)


def room_seed(role: str, number: int) -> int:
    """The seed for `random_place` of a room. Each role has 2^40 seeds of its own."""
    return ROLES[role] << 40 | number


@cache
def _fixed_place(name: str) -> Place:
    return {"gallery": _gallery, "corridor": _corridor, "court": _court}[name]()


# ---------------------------------------------------------------------------------------------------------- the places


def _gallery() -> Place:
    """A white room with paintings and a blue living room, joined by a doorway."""
    room, wall = PLACES["gallery"], (126, 150, 176)
    width = room[0]

    def partition(canvas: Canvas, axis: int, positive: bool) -> None:
        if axis == 0:
            canvas.colour[:] = wall if positive else WHITE
            _trim(canvas)
        elif axis == 2:
            canvas.colour[:] = TRIM

    furniture = (
        Box((0.16, CEILING, 1.7), (0, 0, -1.75), WHITE, partition),
        Box((0.16, CEILING, 1.7), (0, 0, 1.75), WHITE, partition),
        Box((0.16, 0.6, 1.8), (0, 2.2, 0), TRIM),
        # west: two plinths and a bench; east: a sofa, a low table, shelves, a plant
        Box((0.46, 1.0, 0.46), (-3.1, 0, 1.5), (218, 210, 198)),
        Box((0.28, 0.36, 0.28), (-3.1, 1.0, 1.5), (206, 120, 74)),
        Box((1.5, 0.42, 0.5), (-2.1, 0, -0.2), WOOD),
        Box((0.8, 0.42, 1.9), (3.6, 0, -0.4), (206, 132, 92)),
        Box((0.24, 0.85, 1.9), (4.05, 0, -0.4), (190, 116, 80)),
        Box((0.6, 0.38, 1.0), (2.3, 0, -0.5), (232, 214, 176)),
        Box((1.3, 1.9, 0.34), (2.4, 0, 2.4), (112, 86, 68), _shelves),
        Box((0.36, 0.4, 0.36), (0.6, 0, -2.2), (214, 176, 110)),
        Box((0.58, 0.8, 0.58), (0.6, 0.4, -2.2), LEAF),
    )

    shell = _shell(room, WHITE)
    for face in (4, 5):  # south and north walls run through both rooms
        shell[face].rectangle(width / 2, 0.1, width, CEILING, wall)
    shell[1].colour[:] = wall
    for face in (0, 1, 4, 5):
        _trim(shell[face])
    _decorate(
        shell,
        (
            (5, _picture, 2.2, 1.9, 1.15, (58, 98, 136), (226, 168, 88)),
            (0, _picture, 1.5, 1.0, 1.1, (176, 84, 66), (238, 214, 170)),
            (0, _picture, 3.7, 1.0, 1.1, (92, 128, 102), (232, 196, 112)),
            (4, _window, 1.9, (196, 222, 240)),
            (4, _window, 6.4, (196, 222, 240)),
            (1, _door, 4.3, (226, 216, 196)),
        ),
    )
    west, east = (0, (190, 150, 110), (172, 132, 94)), (width / 2, (158, 124, 98), (142, 110, 86))
    _floor_planks(shell[3], west, east)
    lamps = ((-2.1, -2.45, 0.0), (2.2, -2.45, 0.2))
    return bake("gallery", room, furniture, shell, Lights(lamps, (196, 222, 240)))


def _corridor() -> Place:
    """A corridor that turns a corner, with doors along its walls and a window at either end."""
    room = PLACES["corridor"]
    side, wide, wall, dado = room[0], 2.3, (230, 214, 186), (150, 96, 78)
    block = side - wide

    def inner(canvas: Canvas, axis: int, positive: bool) -> None:
        if axis == 1:
            return
        _dado(canvas, dado)
        _door(canvas, 1.5 if axis == 0 else 4.1, (92, 118, 110))
        _picture(canvas, 3.8 if axis == 0 else 1.7, 1.1, 0.8, (206, 150, 84), (84, 104, 128))

    furniture = (
        Box((block, CEILING, block), (side / 2 - block / 2, 0, side / 2 - block / 2), wall, inner),
        Box((1.2, 0.8, 0.42), (0.6, 0, -3.77), (112, 86, 68), _cupboard),
        Box((0.24, 0.42, 0.24), (0.3, 0.8, -3.77), (232, 206, 150)),
        Box((0.4, 0.45, 1.5), (-3.78, 0, 1.0), WOOD),
        Box((0.4, 0.42, 0.4), (-3.6, 0, -3.6), (200, 116, 76)),
        Box((0.62, 0.9, 0.62), (-3.6, 0.42, -3.6), LEAF),
        Box((0.34, 1.25, 0.34), (3.7, 0, -2.0), (198, 186, 168)),
        Box((0.3, 0.3, 0.3), (3.7, 1.25, -2.0), (84, 124, 140)),
    )

    shell = _shell(room, wall)
    for face in (0, 1, 4, 5):
        _dado(shell[face], dado)
    _decorate(
        shell,
        (
            (5, _window, 1.15, (244, 220, 186)),
            (1, _window, 1.15, (244, 220, 186)),
            (0, _door, 2.6, (92, 118, 110)),
            (0, _door, 6.3, (176, 84, 66)),
            (4, _door, 6.5, (92, 118, 110)),
            (4, _picture, 3.0, 1.5, 0.9, (86, 116, 150), (238, 220, 180)),
        ),
    )
    floor = shell[3]
    floor.colour[:] = (186, 160, 128)
    runner, border = (138, 62, 56), (226, 190, 130)
    for inset, colour in ((0.5, border), (0.62, runner)):
        floor.rectangle(inset, inset, wide - inset, side - 0.3, colour)
        floor.rectangle(inset, inset, side - 0.3, wide - inset, colour)
    lamps = ((-2.85, -2.45, 2.0), (-2.85, -2.45, -2.85), (2.0, -2.45, -2.85))
    return bake("corridor", room, furniture, shell, Lights(lamps, (244, 220, 186)))


def _court() -> Place:
    """A court with a fountain, pillars, a tree and a bench; above its walls there is only sky."""
    room, walls = PLACES["court"], 3.0
    side, height, _ = room
    plaster, stone = (226, 190, 146), (206, 196, 180)
    furniture = (
        Box((1.7, 0.46, 1.7), (0.3, 0, 0.4), stone, _basin),
        Box((0.34, 1.2, 0.34), (0.3, 0.46, 0.4), stone),
        Box((0.8, 0.14, 0.8), (0.3, 1.66, 0.4), stone),
        *(Box((0.34, 2.4, 0.34), (x, 0, 3.1), stone) for x in (-2.6, -0.2, 2.2)),
        Box((5.6, 0.36, 0.5), (-0.2, 2.4, 3.1), (214, 204, 188)),
        Box((0.26, 1.3, 0.26), (-2.7, 0, -2.4), (116, 86, 64)),
        Box((1.6, 1.3, 1.6), (-2.7, 1.3, -2.4), LEAF, _foliage, 0.4),
        Box((1.7, 0.44, 0.5), (2.6, 0, -3.4), WOOD),
        Box((0.5, 0.8, 2.6), (3.9, 0, 1.6), (92, 124, 86), _foliage),
        Box((0.5, 0.52, 0.5), (-3.7, 0, 1.9), (196, 112, 72)),
        Box((0.6, 0.5, 0.6), (-3.7, 0.52, 1.9), (186, 84, 104)),
    )

    shell = _shell(room, plaster)
    horizon, zenith = np.array((226, 234, 236)), np.array((126, 172, 214))
    for face in (0, 1, 4, 5):
        canvas, top = shell[face], height - walls
        sky = canvas.v < top
        fade = np.clip(1 - canvas.v / top, 0, 1)[..., None]
        canvas.colour[sky] = ((1 - fade) * horizon + fade * zenith)[sky]
        canvas.glowing[sky] = True
        canvas.rectangle(0, top, side, top + 0.22, (178, 98, 72))  # the edge of the roof
        canvas.rectangle(0, height - 0.5, side, height, tint(plaster, 0.78))
    shell[2].colour[:], shell[2].glowing[:] = zenith, True
    for face, colour, windows, door in (
        (0, (92, 128, 140), (1.6, 6.6), 4.1), (1, (150, 84, 70), (2.2, 4.6, 7.0), None),
        (4, (104, 130, 92), (1.5, 4.2), 6.8), (5, (92, 128, 140), (2.6, 6.0), None),
    ):  # fmt: skip
        for u in windows:
            _shutters(shell[face], u, height - 2.25, colour)
        if door is not None:
            _door(shell[face], door, colour)
    _floor_slabs(shell[3], 1.075, (206, 190, 166), (182, 162, 138))
    sun = Lights((), ambient=0.72, sun=(0.55, -1.0, -0.45), wall_height=walls)
    return bake("court", room, furniture, shell, sun)


# ------------------------------------------------------------------------------------------------------- unknown rooms


@dataclass(frozen=True)
class _Style:
    """sRGB colours (0..255) and patterns of a room."""

    wall: tuple
    accent: tuple
    floor: tuple
    floor_second: tuple
    floor_kind: str  # checker, planks or rug
    furniture: tuple  # six colours
    art: tuple  # two colours
    sky: tuple


_STYLES = (
    _Style(
        wall=WHITE, accent=(196, 116, 90), floor=(196, 188, 176), floor_second=(158, 152, 146), floor_kind="checker",
        furniture=((70, 100, 128), (222, 172, 88), (118, 138, 104), (156, 88, 76), (104, 92, 84), (214, 204, 190)),
        art=((58, 98, 136), (226, 168, 88)), sky=(196, 222, 240),
    ),
    _Style(
        wall=(230, 214, 186), accent=(122, 150, 126), floor=(178, 134, 94), floor_second=(158, 114, 78),
        floor_kind="planks",
        furniture=((200, 112, 80), (82, 122, 126), (228, 200, 132), (112, 86, 68), (232, 222, 206), (98, 126, 88)),
        art=((176, 84, 66), (238, 214, 170)), sky=(214, 232, 226),
    ),
    _Style(
        wall=(196, 204, 214), accent=(86, 106, 146), floor=(136, 128, 140), floor_second=(198, 164, 140),
        floor_kind="rug",
        furniture=((202, 138, 130), (228, 188, 112), (108, 92, 120), (88, 134, 146), (84, 84, 100), (220, 212, 212)),
        art=((86, 116, 150), (238, 220, 180)), sky=(240, 212, 188),
    ),
)  # fmt: skip


def random_place(seed: int) -> Place:
    """An unknown room in the same style; size, colours and furniture are drawn from `seed` (a non-negative int)."""
    rng = np.random.default_rng([_LAYOUT_NAMESPACE, 1, seed])
    styles = [_STYLES[i] for i in rng.permutation(len(_STYLES))]

    def shade(colour: tuple) -> tuple:
        return tuple(np.clip(np.array(colour) * rng.uniform(0.85, 1.1) + rng.uniform(-14, 14, 3), 20, 252))

    colours = [shade(colour) for style in styles for colour in style.furniture]
    style = _Style(
        wall=shade(styles[0].wall), accent=shade(styles[1].accent), floor=shade(styles[2].floor),
        floor_second=shade(styles[2].floor_second), floor_kind=styles[2].floor_kind,
        furniture=tuple(colours[i] for i in rng.permutation(len(colours))[:6]),
        art=tuple(shade(c) for c in styles[1].art), sky=styles[0].sky,
    )  # fmt: skip
    room = (rng.uniform(4.6, 8.0), CEILING, rng.uniform(4.6, 8.0))
    furniture = _furnish(room, _pieces(style.furniture), rng)
    shell = _shell(room, style.wall)
    accent = rng.integers(4)
    landmarks: dict[str, tuple[Callable[..., None], tuple]] = {
        "door": (_door, (style.furniture[3],)),
        "window": (_window, (style.sky,)),
        "picture": (_picture, (1.4, 1.0, *style.art)),
    }
    for wall, landmark in enumerate(rng.permutation(("door", "window", "picture", "dado"))):
        canvas = shell[(0, 1, 4, 5)[wall]]
        if wall == accent:
            canvas.colour[:] = style.accent
        middle = canvas.width * rng.uniform(0.35, 0.65)
        if landmark == "dado":
            _dado(canvas, tint(style.accent, 0.8 if wall == accent else 1.0))
        else:
            _trim(canvas)
            paint, how = landmarks[landmark]
            paint(canvas, middle, *how)
    if style.floor_kind == "planks":
        _floor_planks(shell[3], (0, style.floor, style.floor_second))
    elif style.floor_kind == "checker":
        _floor_slabs(shell[3], 1.0, style.floor, style.floor_second)
    else:
        u, v = room[0] * rng.uniform(0.4, 0.6), room[2] * rng.uniform(0.4, 0.6)
        shell[3].colour[:] = style.floor
        for reach, colour in ((1.0, style.floor_second), (0.88, tint(style.floor, 0.7)), (0.8, style.floor_second)):
            shell[3].rectangle(u - 1.6 * reach, v - 1.2 * reach, u + 1.6 * reach, v + 1.2 * reach, colour)
    lamps = ((0.12 * room[0] * rng.uniform(-1, 1), -CEILING + 0.35, 0.12 * room[2] * rng.uniform(-1, 1)),)
    return bake("unknown", room, furniture, shell, Lights(lamps, style.sky))


def _pieces(colours: tuple) -> list[tuple[bool, float, list]]:
    """Furniture: (stands at a wall, radius, boxes). A box: size (w, h, d), offset (x, bottom, z), colour, paint."""
    a, b, c, d, e, f = colours
    return [
        (True, 1.05, [((1.9, 0.42, 0.8), (0, 0, 0.1), a, None), ((1.9, 0.82, 0.22), (0, 0, -0.41), a, None)]),
        (True, 0.75, [((1.25, 1.9, 0.36), (0, 0, 0), d, _shelves)]),
        (True, 0.8, [((1.4, 0.78, 0.46), (0, 0, 0), e, _cupboard)]),
        (False, 0.6, [((0.95, 0.4, 0.6), (0, 0, 0), f, None)]),
        (False, 0.4, [((0.44, 1.0, 0.44), (0, 0, 0), f, None), ((0.3, 0.32, 0.3), (0, 1.0, 0), b, None)]),
        (False, 0.42, [((0.55, 0.44, 0.55), (0, 0, 0), c, None)]),
        (True, 0.4, [((0.36, 0.4, 0.36), (0, 0, 0), b, None), ((0.56, 0.75, 0.56), (0, 0.4, 0), LEAF, None)]),
    ]


def _furnish(size: tuple[float, float, float], pieces: list, rng: np.random.Generator) -> list[Box]:
    """The pieces, placed where there is room for them; others are left out."""
    room, boxes = np.array(size), []
    taken: list[tuple[np.ndarray, float]] = []
    walls = [int(w) for w in rng.permutation(4)]
    for at_wall, radius, parts in pieces:
        for _ in range(200):
            if at_wall:
                side = walls[0]
                depth = max(part[0][2] / 2 - part[1][2] for part in parts)
                along = rng.uniform(-1, 1) * (room[0 if side < 2 else 2] / 2 - radius - 0.1)
                away = room[2 if side < 2 else 0] / 2 - depth - 0.12
                position = np.array([(along, -away), (along, away), (-away, along), (away, along)][side])
                heading = (0.0, np.pi, np.pi / 2, -np.pi / 2)[side] + rng.uniform(-0.08, 0.08)
            else:
                position = rng.uniform(-1, 1, 2) * (room[[0, 2]] / 2 - 1.3)
                heading = rng.uniform(-np.pi, np.pi)
            if all(np.hypot(*(position - other)) > radius + reach + 0.25 for other, reach in taken):
                break
            walls = walls[1:] + walls[:1]
        else:
            continue
        walls = walls[1:] + walls[:1]
        taken.append((position, radius))
        turned = np.array([[np.cos(heading), np.sin(heading)], [-np.sin(heading), np.cos(heading)]])
        for size, (x, bottom, z), colour, paint in parts:
            across, along = position + turned @ (x, z)
            boxes.append(Box(size, (across, bottom, along), colour, paint, heading))
    return boxes


# ------------------------------------------------------------------------------------------------------------ painting


def _shell(room: tuple[float, float, float], wall: tuple) -> dict[int, Canvas]:
    """The six bare faces of a room: walls, a pale ceiling, a floor to be painted."""
    width, height, depth = room
    sizes = {0: (depth, height), 1: (depth, height), 2: (width, depth), 3: (width, depth)}
    sizes |= {4: (width, height), 5: (width, height)}
    return {face: Canvas(*size, (244, 240, 232) if face == 2 else wall) for face, size in sizes.items()}


def _decorate(
    shell: dict[int, Canvas], decorations: Sequence[tuple[int, Callable[..., None], *tuple[Any, ...]]]
) -> None:
    """Paint on faces. decorations: the face, what paints on its canvas, and the arguments of that."""
    for face, paint, *how in decorations:
        paint(shell[face], *how)


def _trim(canvas: Canvas) -> None:
    canvas.rectangle(0, 0, canvas.width, 0.1, TRIM)
    canvas.rectangle(0, canvas.height - 0.1, canvas.width, canvas.height, TRIM)


def _dado(canvas: Canvas, colour: tuple) -> None:
    """A wall whose lower part has another colour, under a rail."""
    canvas.rectangle(0, canvas.height - 1.05, canvas.width, canvas.height, colour)
    canvas.rectangle(0, canvas.height - 1.13, canvas.width, canvas.height - 1.05, TRIM)
    _trim(canvas)


def _door(canvas: Canvas, middle: float, colour: tuple) -> None:
    foot = canvas.height
    canvas.rectangle(middle - 0.58, foot - 2.22, middle + 0.58, foot, TRIM)
    canvas.rectangle(middle - 0.47, foot - 2.11, middle + 0.47, foot, colour)
    for top, bottom in ((1.95, 1.25), (1.05, 0.25)):
        canvas.rectangle(middle - 0.3, foot - top, middle + 0.3, foot - bottom, tint(colour, 0.86))
    canvas.disc(middle + 0.38, foot - 1.08, 0.055, (236, 206, 120))


def _window(canvas: Canvas, middle: float, sky: tuple) -> None:
    reach, top, bottom = 0.85, 0.55, 1.85
    canvas.rectangle(middle - reach - 0.1, top - 0.1, middle + reach + 0.1, bottom + 0.12, TRIM)
    canvas.rectangle(middle - reach, top, middle + reach, bottom, sky, glowing=True)
    pane = canvas.glowing & (np.abs(canvas.u - middle) <= reach)
    fade = np.clip((canvas.v - top) / (bottom - top), 0, 1)[..., None]
    canvas.colour[pane] = ((1 - fade) * np.array(sky) + fade * np.array((252, 246, 234)))[pane]
    hills = pane & (canvas.v > 1.52 + 0.12 * np.sin(2.6 * (canvas.u - middle)))
    canvas.colour[hills] = 0.55 * np.array(sky) + 0.45 * np.array((110, 140, 110))
    canvas.rectangle(middle - 0.04, top, middle + 0.04, bottom, TRIM)
    canvas.panes.append((middle - reach, top, middle + reach, bottom))


def _picture(canvas: Canvas, middle: float, width: float, height: float, first: tuple, second: tuple) -> None:
    """A framed painting of a hill and a sun, hung at eye level."""
    left, right, top = middle - width / 2, middle + width / 2, canvas.height - 1.6 - height / 2
    canvas.rectangle(left - 0.07, top - 0.07, right + 0.07, top + height + 0.07, (84, 76, 70))
    canvas.rectangle(left, top, right, top + height, second)
    canvas.disc(middle - width / 6, top + 0.38 * height, 0.22 * height, tint(second, 1.12))
    canvas.rectangle(left, top + 0.58 * height, right, top + height, first)
    canvas.rectangle(middle + 0.1 * width, top + 0.35 * height, middle + 0.3 * width, top + 0.58 * height, first)


def _shutters(canvas: Canvas, middle: float, top: float, colour: tuple) -> None:
    canvas.rectangle(middle - 0.86, top - 0.05, middle + 0.86, top + 1.15, tint(colour, 1.0))
    canvas.rectangle(middle - 0.42, top - 0.1, middle + 0.42, top + 1.2, TRIM)
    canvas.rectangle(middle - 0.34, top, middle + 0.34, top + 1.1, (96, 116, 132))
    canvas.rectangle(middle - 0.03, top, middle + 0.03, top + 1.1, TRIM)


def _floor_planks(canvas: Canvas, *parts: tuple) -> None:
    """Planks of two shades; each part (first u, colour, second colour) reaches to where the next begins."""
    mix = (np.sin(7.1 * np.floor(canvas.u / 0.45)) * 0.5 + 0.5)[..., None]
    for begin, first, second in parts:
        planks = canvas.u >= begin
        canvas.colour[planks] = (mix * np.array(first) + (1 - mix) * np.array(second))[planks]


def _floor_slabs(canvas: Canvas, size: float, first: tuple, second: tuple) -> None:
    """Square slabs of two colours in turn."""
    odd = (np.floor(canvas.u / size) + np.floor(canvas.v / size)) % 2 == 1
    canvas.colour[:] = np.where(odd[..., None], second, first)


def _shelves(canvas: Canvas, axis: int, positive: bool) -> None:
    if axis != 2:
        return
    colour = tuple(canvas.colour[0, 0])
    spines = ((196, 116, 92), (216, 182, 116), (104, 134, 146), (214, 206, 190), (120, 138, 112), (152, 106, 116))
    for row in range(4):
        top = 0.07 + row * 0.46
        canvas.rectangle(0.07, top, canvas.width - 0.07, top + 0.39, tint(colour, 0.6))
        for i, u in enumerate(np.arange(0.1, canvas.width - 0.3, 0.2)):
            if (i + 2 * row) % 5:
                canvas.rectangle(u, top + 0.1, u + 0.2, top + 0.39, spines[(5 * row + 2 * i) % 6])


def _cupboard(canvas: Canvas, axis: int, positive: bool) -> None:
    if axis == 2:
        colour, half = tuple(canvas.colour[0, 0]), canvas.width / 2
        for u in (0.06, half + 0.03):
            canvas.rectangle(u, 0.1, u + half - 0.09, canvas.height - 0.1, tint(colour, 1.25))


def _basin(canvas: Canvas, axis: int, positive: bool) -> None:
    if axis == 1:
        canvas.rectangle(0.18, 0.18, canvas.width - 0.18, canvas.height - 0.18, (112, 166, 178))


def _foliage(canvas: Canvas, axis: int, positive: bool) -> None:
    mottled = np.sin(9 * canvas.u + 2.0 * np.sin(5 * canvas.v)) * np.sin(8 * canvas.v + 1.5 * np.sin(6 * canvas.u))
    canvas.colour *= 1 + 0.12 * mottled[..., None]
