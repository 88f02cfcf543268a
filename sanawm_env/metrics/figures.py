"""Drawings are matplotlib's, an extra: what was measured becomes a PNG without a display and without global state."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def figure_class() -> "type[Figure]":
    """matplotlib's Figure; ImportError in one sentence where it is missing."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(f'Drawing needs matplotlib: pip install "sanawm-env[plots]" ({error}).') from error
    return Figure
