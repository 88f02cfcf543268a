"""An overview of a dataset: a contact sheet of some episodes, and all camera paths from above."""

from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sanawm_env.metrics.figures import draw_path, figure_class
from sanawm_env.recording.dataset import Dataset, Row, leave_out
from sanawm_env.recording.episode import RecordedEpisode
from sanawm_env.recording.rollout import VIDEO
from sanawm_env.recording.sheet import contact_sheet, evenly_spaced
from sanawm_env.recording.video import iterate_video
from sanawm_env.system.files import one_line
from sanawm_env.system.saving import replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHEET, PATHS = "preview.png", "trajectories.png"
COLUMNS, ROWS = 5, 8  # frames of an episode, episodes
LEGEND = 20  # cameras that are told apart


def preview(dataset: Dataset, out: Path) -> tuple[list[Path], int]:
    """Write preview.png and trajectories.png to the folder `out`. Damaged episodes are left out, which is logged.

    Returns:
        The paths of both files, and the number of damaged episodes that were found.

    Raises:
        ValueError: for a dataset without undamaged episodes.
        ImportError: without matplotlib.
    """
    figure = figure_class()((8, 6), layout="constrained")
    rows = dataset.finished()
    if not rows:
        raise ValueError(f"The dataset {dataset.folder} has no finished episodes: collect some first.")
    shown = [rows[i] for i in evenly_spaced(len(rows), ROWS)]
    frames, labels, damaged = [], [], set()
    for row in shown:
        indices = set(evenly_spaced(row.frames, COLUMNS))
        try:
            video = iterate_video(dataset.folder / row.episode / VIDEO)
            taken = [frame for i, frame in enumerate(islice(video, row.frames)) if i in indices]
            if len(taken) != len(indices):
                raise ValueError(f"its video has fewer frames than {row.frames}")
        except (OSError, ValueError) as error:
            leave_out(row, error)
            damaged.add(row.episode)
            continue
        frames += taken
        labels += [f"{_short(row.camera)}  ·  {i / dataset.header['fps']:.1f} s" for i in sorted(indices)]
    if not frames:
        raise ValueError(f"No episode in {dataset.folder} can be shown: see `sanawm dataset validate`.")
    title = f"{dataset.folder.name}: {len(rows)} episodes, {sum(row.frames for row in rows)} frames"
    contact_sheet(np.stack(frames), out / SHEET, columns=COLUMNS, rows=ROWS, labels=labels, title=title)
    damaged |= _draw_paths(figure, dataset, rows, out / PATHS)
    return [out / SHEET, out / PATHS], len(damaged)


def _draw_paths(figure: "Figure", dataset: Dataset, rows: list[Row], path: Path) -> set[str]:
    """Write the camera paths, and return the episodes that are not among them."""
    from matplotlib import colormaps

    names, damaged = list(dict.fromkeys(row.camera for row in rows)), set()
    colours = colormaps["tab20" if len(names) > 10 else "tab10"]
    axes = figure.add_subplot(aspect="equal", xlabel="right, m", ylabel="forward, m")
    for row in rows:
        try:
            c2w = RecordedEpisode.open(dataset.folder / row.episode).trajectory().c2w
        except (OSError, ValueError) as error:
            leave_out(row, error)
            damaged.add(row.episode)
            continue
        index = names.index(row.camera)
        draw_path(axes, c2w, colours(index % colours.N))
    lines = [axes.plot([], [], color=colours(index % colours.N))[0] for index in range(len(names[:LEGEND]))]
    axes.set_title(f"Camera paths of {len(rows)} episodes from above, from their first frame", fontsize=11)
    numbers = [str(index) for index in range(len(lines))]
    legend = figure.legend(lines, numbers, loc="outside right upper", fontsize=8, frameon=False)
    for text, name in zip(legend.get_texts(), names, strict=False):
        text.set(text=_short(name), parse_math=False)  # as it is: matplotlib leaves out "_x" and reads "$x$"
    with replacing(path) as part:
        figure.savefig(part, dpi=110)
    return damaged


def _short(name: str, most: int = 30) -> str:
    name = one_line(name)
    return name if len(name) <= most else f"{name[: most - 1]}…"
