"""Contact sheets: evenly spaced frames, and the camera path from above."""

import colorsys
import os
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from sanawm_env.system.files import one_line
from sanawm_env.system.saving import replacing

_PAPER, _INK, _FAINT = (255, 255, 255), (38, 42, 48), (138, 144, 152)
_MARGIN, _GAP, _CAPTION, _TITLE = 20, 8, 20, 34
_CELL_WIDTH = 224
_SUPERSAMPLING = 4


def contact_sheet(
    frames: np.ndarray,
    path: str | os.PathLike,
    *,
    columns: int = 5,
    rows: int = 3,
    labels: Sequence[str] | None = None,
    c2w: np.ndarray | None = None,
    indices: Sequence[int] | np.ndarray | None = None,
    fps: float = 16,
    title: str = "",
) -> None:
    """Write a PNG with at most `columns` x `rows` evenly spaced frames, first and last included.

    Args:
        frames: (F, H, W, 3) uint8.
        path: of the PNG.
        columns: the most frames in a row.
        rows: the most rows.
        labels: F texts; None for each frame's index and time.
        c2w: (P, 4, 4) camera path, drawn from above in the axes of frame 0, to the right of the frames. Its colours
            follow time, and a dot beside a frame's label has the colour of its time. None draws none.
        indices: (F,) the index of each frame in the rollout and in c2w; None for 0 to F - 1.
        fps: frames per second, for labels.
        title: above the frames.

    Raises:
        ValueError: for other shapes.
        OSError: where the file cannot be written.
    """
    frames = np.asarray(frames)
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3 or 0 in frames.shape:
        raise ValueError(f"frames must be uint8 (F, H, W, 3) with F >= 1, got {frames.dtype} {frames.shape}")
    if columns < 1 or rows < 1:
        raise ValueError(f"a contact sheet needs at least one column and one row, got {columns} x {rows}")
    stands = np.arange(len(frames)) if indices is None else np.asarray(indices)
    if labels is None:
        labels = [f"{index}  ·  {index / fps:.2f} s" for index in stands]
    title, labels = one_line(title), [one_line(label) for label in labels]
    if len(labels) != len(frames) or len(stands) != len(frames):
        raise ValueError(f"{len(frames)} frames need as many labels and indices, got {len(labels)} and {len(stands)}")
    if c2w is not None:
        c2w = np.asarray(c2w, dtype=np.float64)
        if c2w.ndim != 3 or c2w.shape[1:] != (4, 4) or len(c2w) <= stands.max() or not np.isfinite(c2w).all():
            raise ValueError(f"c2w must be finite (P, 4, 4) with a pose for every index shown, got {c2w.shape}")

    shown = evenly_spaced(len(frames), columns * rows)
    columns = min(columns, len(shown))
    rows = -(-len(shown) // columns)
    cell_height = max(1, round(_CELL_WIDTH * frames.shape[1] / frames.shape[2]))
    grid_width = columns * (_CELL_WIDTH + _GAP) - _GAP
    grid_height = rows * (cell_height + _CAPTION + _GAP) - _GAP
    top = _MARGIN + (_TITLE if title else 0)
    plot = 0 if c2w is None else max(_CELL_WIDTH, min(grid_height - _CAPTION, round(2.4 * _CELL_WIDTH)))

    width = _MARGIN + grid_width + _MARGIN + (plot + _MARGIN if plot else 0)
    sheet = Image.new("RGB", (width, top + max(grid_height, plot) + _MARGIN), _PAPER)
    pen = ImageDraw.Draw(sheet)
    if title:
        pen.text((_MARGIN, _MARGIN - 4), title, _INK, font=_fitting_font(title, 18, width - 2 * _MARGIN))
    last = max(1, (len(c2w) if c2w is not None else stands.max() + 1) - 1)
    for cell, frame in enumerate(shown):
        row, column = divmod(cell, columns)
        x, y = _MARGIN + column * (_CELL_WIDTH + _GAP), top + row * (cell_height + _CAPTION + _GAP)
        picture = Image.fromarray(frames[frame]).resize((_CELL_WIDTH, cell_height), Image.Resampling.BICUBIC)
        sheet.paste(picture, (x, y))
        caption = x
        if c2w is not None:
            sheet.paste(_dot(_time_colour(stands[frame] / last)), (x, y + cell_height + 7))
            caption += 13
        room = x + _CELL_WIDTH - caption
        font = _fitting_font(labels[frame], 12, room)
        pen.text((caption, y + cell_height + 3), labels[frame], _INK, font=font)
    if c2w is not None:
        sheet.paste(_path_plot(c2w, stands[shown], plot), (_MARGIN + grid_width + _MARGIN, top))
    with replacing(path) as part:
        sheet.save(part, format="PNG", compress_level=4)  # a tenth of the time that 9 takes, 7 % larger


def evenly_spaced(total: int, most: int) -> np.ndarray:
    """At most `most` of the indices 0 to total - 1, evenly spaced, first and last included (the first one if most is
    1).
    """
    return np.linspace(0, total - 1, min(total, most)).round().astype(int)


def _path_plot(c2w: np.ndarray, marked: np.ndarray, size: int) -> Image.Image:
    """The path from above in a square. Frame 0 looks up the page; marked poses have their viewing direction."""
    to_first = np.linalg.inv(c2w[0])
    ground = (to_first @ c2w)[:, [0, 2]]  # rows x and z: (P, 2, 4)
    points, forward = ground[:, :, 3], ground[:, :, 2]
    low, high = points.min(axis=0), points.max(axis=0)
    centre, span = (low + high) / 2, max(float((high - low).max()), 0.5)
    big = size * _SUPERSAMPLING
    scale = 0.72 * big / span

    def place(xz):
        return tuple(big / 2 + (np.asarray(xz) - centre) * scale * (1, -1))

    image = Image.new("RGB", (big, big), (246, 247, 249))
    pen = ImageDraw.Draw(image)
    unit = _round_length(span / 3)
    for step in range(-12, 13):
        x, y = place((np.round(centre / unit) + step) * unit)
        pen.line([(x, 0), (x, big)], fill=(228, 231, 235), width=_SUPERSAMPLING)
        pen.line([(0, y), (big, y)], fill=(228, 231, 235), width=_SUPERSAMPLING)
    last = max(1, len(points) - 1)
    for index in marked:
        colour, centre_px = _time_colour(index / last), np.array(place(points[index]))
        look = forward[index] * (1, -1) * 22 * _SUPERSAMPLING
        side = np.array([-look[1], look[0]]) * 0.45
        wedge = [tuple(centre_px), tuple(centre_px + look + side), tuple(centre_px + look - side)]
        pen.polygon(wedge, fill=tuple(channel // 4 + 185 for channel in colour))
    for step in range(len(points) - 1):
        ends = [place(points[step]), place(points[step + 1])]
        pen.line(ends, fill=_time_colour(step / last), width=3 * _SUPERSAMPLING)
    for index in marked:
        centre_px, radius = np.array(place(points[index])), 3.5 * _SUPERSAMPLING
        pen.ellipse([*(centre_px - radius), *(centre_px + radius)], fill=_time_colour(index / last))
    image = image.resize((size, size), Image.Resampling.LANCZOS)
    pen, font = ImageDraw.Draw(image), ImageFont.load_default(11)
    travelled = np.linalg.norm(np.diff(c2w[:, :3, 3], axis=0), axis=1).sum()
    pen.text((8, 6), f"camera path from above, {travelled:.2f} m", _INK, font=font)
    bar = unit * scale / _SUPERSAMPLING
    pen.line([(8, size - 10), (8 + bar, size - 10)], fill=_FAINT, width=2)
    pen.text((8, size - 26), f"{unit:g} m", _FAINT, font=font)
    return image


def _round_length(length: float) -> float:
    """The largest of 1, 2, 5 times a power of ten that is not above `length`."""
    power = 10.0 ** np.floor(np.log10(length))
    return max(step for step in (1, 2, 5) if step * power <= length * (1 + 1e-9)) * power


def _time_colour(fraction: float) -> tuple[int, int, int]:
    """Blue at the start, through violet, to orange at the end."""
    hue = (0.58 + 0.48 * float(fraction)) % 1.0
    red, green, blue = (round(255 * channel) for channel in colorsys.hsv_to_rgb(hue, 0.72, 0.86))
    return red, green, blue


def _dot(colour: tuple[int, int, int], size: int = 9) -> Image.Image:
    big = size * _SUPERSAMPLING
    dot = Image.new("RGB", (big, big), _PAPER)
    ImageDraw.Draw(dot).ellipse([0, 0, dot.width - 1, dot.height - 1], fill=colour)
    return dot.resize((size, size), Image.Resampling.LANCZOS)


def _fitting_font(text: str, size: int, room: float) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """The default font at `size`, smaller if the text would not fit."""
    font = ImageFont.load_default(size)
    length = font.getlength(text)
    return font if length <= room else ImageFont.load_default(max(6, size * room / length))
