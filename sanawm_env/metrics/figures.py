"""Figures by matplotlib, an extra, drawn to PNG without a screen and without global state."""

from typing import TYPE_CHECKING

import numpy as np

from sanawm_env.system.files import one_line
from sanawm_env.system.packages import needing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def figure_class() -> "type[Figure]":
    """matplotlib's Figure. Raises ImportError where matplotlib is missing."""
    with needing("Drawing needs matplotlib", "plots"):
        from matplotlib.figure import Figure
    return Figure


def literal(text: str, most: int = 60) -> str:
    """Somebody's text, or its last letters, as matplotlib is to be given it: drawn as it is, in one line. Dollars would
    make it a formula."""
    text = one_line(text)
    return (text if len(text) <= most else f"…{text[1 - most :]}").replace("$", r"\$")


def draw_path(axes: "Axes", c2w: np.ndarray, colour: object, arrows: int = 1) -> None:
    """Draw a camera path from above: a line, a dot at the start, and arrows along the view.

    Args:
        axes: matplotlib's.
        c2w: (F, 4, 4).
        colour: of the line.
        arrows: how many, one of them at the end.
    """
    axes.plot(c2w[:, 0, 3], c2w[:, 2, 3], color=colour, linewidth=1.2, alpha=0.7)
    extent = float(np.ptp(c2w[:, [0, 2], 3], axis=0).max())
    length = 0.12 if arrows == 1 else max(extent, 1e-3) * 0.06
    for index in np.linspace(len(c2w) - 1, 0, arrows, endpoint=arrows > 1).round().astype(int):
        (x, z), (ahead_x, ahead_z) = c2w[index, [0, 2], 3], c2w[index, [0, 2], 2] * length
        axes.annotate("", (x + ahead_x, z + ahead_z), (x, z), arrowprops={"arrowstyle": "->", "color": colour})
    axes.plot(c2w[0, 0, 3], c2w[0, 2, 3], "o", color="0.2", markersize=5)
    axes.grid(color="0.92")
