"""Score clips: does the camera follow its path, does the look stay, do frames match the ground truth?

An estimator recovers the camera from the frames, and its path is compared with the commanded one, as in SANA-WM-Bench
(`metrics.pose`; camera reference, 7.2). No estimator is exact. So the same path is rendered by the world "rooms", whose
frames are exact, and what the estimator gets wrong there is its own error: the error of a clip is meaningful where it
is larger. The path of a clip in a place that rooms knows is rendered in that place, which also gives PSNR and SSIM. Any
other path is rendered in a furnished room, scaled down to fit; its errors are given in the units of the clip.

    from sanawm_env.recording.scores import score
    report = score("runs/data", "runs/score")
"""

import csv
import hashlib
import importlib
import io
import json
import math
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sanawm_env.camera import reconstruction
from sanawm_env.camera.intrinsics import intrinsics_matrix
from sanawm_env.metrics.benchmark import revisit
from sanawm_env.metrics.figures import figure_class, literal
from sanawm_env.metrics.image import psnr, ssim
from sanawm_env.metrics.lasting import drift, loop_closure
from sanawm_env.metrics.pose import align, apply, pose_errors
from sanawm_env.recording.rollout import META, check_writable
from sanawm_env.recording.score_clips import TRUTH, Clip, Sampled, find_clips
from sanawm_env.recording.video import frame_times, read_video
from sanawm_env.system.files import as_text, brief, check_count, file_sha256, read_json, reason, visible
from sanawm_env.system.saving import only_writer, replacing, write_text
from sanawm_env.system.settings import differences, read
from sanawm_env.world.anchor import Anchor
from sanawm_env.world.scenes import DrawnScenes
from sanawm_env.world.world import World

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Estimator = Callable[[np.ndarray, np.ndarray | None, Anchor | None], np.ndarray]
"""A function that estimates a camera path. It takes consecutive frames (n, H, W, 3) uint8, intrinsics (n, 3, 3) in
pixels of the frames or None, and the anchor of the first frame or None. It returns c2w (n, 4, 4) in any unit and world
frame, NaN for frames without a pose, or raises ValueError with the reason why it found nothing."""

NUMBERS, TABLE, PICTURE, BENCH_TABLE = "scores.json", "scores.csv", "scores.png", "sana_wm_bench.md"
ENOUGH = 0.5  # of the frames that are looked at: a camera that was found in fewer is not followed
HARDLY_BETTER = 0.5  # of the CamMC of standing still
FARTHEST = 1.0  # metres from the start of a path in a furnished room
PATHS_SHOWN = 6
POSES_IN_FOLDERS = (".txt", ".bin", ".json", ".npz")
MAX_BYTES = 2**28
WHO = {
    "clip": "the clips",
    "rendered": "rendered: the estimator's own error",
    "still": "a camera that stands still",
}


@dataclass(frozen=True)
class Measures:
    """Measures of the frames of a clip.

    Attributes:
        placed: share of the sampled frames whose pose was found. The errors are of these; they are None for a share
            below `ENOUGH`.
        rot_err_deg: rotation error in degrees.
        trans_err: translation error in units of the path.
        cam_mc: Frobenius norm of the difference of [R|t].
        scale: of the similarity that aligns the estimate with the path.
        drift: in doublings, see `metrics.lasting`.
        loop_psnr: dB, see `metrics.lasting`; None where the camera does not return.
    """

    placed: float = 0.0
    rot_err_deg: float | None = None
    trans_err: float | None = None
    cam_mc: float | None = None
    scale: float | None = None
    drift: float | None = None
    loop_psnr: float | None = None


@dataclass(frozen=True)
class Score:
    """The scores of one clip.

    Attributes:
        name: of the clip.
        split: the group that it is averaged in.
        inputs: hash of the files that the scores were computed from.
        frames: of the video.
        sampled: frames that were measured.
        clip: of the clip's frames.
        rendered: of frames that rooms rendered along the same path; None where that was not done.
        rendered_in: the place where they were rendered.
        still: the errors of a camera that never moves.
        psnr: mean against the ground truth, dB; None without ground truth.
        ssim: mean against the ground truth.
        revisit: mean PSNR and SSIM of SANA-WM-Bench's revisits, and the number of pairs; None without pairs.
        asked: (n, 2) x and z of the commanded path, where the camera was found.
        found: (n, 2) x and z of the estimated path, aligned.
        note: why no path was found; "" otherwise.
        reason: why the clip was rejected; "" otherwise.
    """

    name: str
    split: str
    inputs: str = ""
    frames: int = 0
    sampled: int = 0
    clip: Measures = field(default_factory=Measures)
    rendered: Measures | None = None
    rendered_in: str = ""
    still: Measures | None = None
    psnr: float | None = None
    ssim: float | None = None
    revisit: tuple[float, float, int] | None = None
    asked: tuple[tuple[float, float], ...] = ()
    found: tuple[tuple[float, float], ...] = ()
    note: str = ""
    reason: str = ""


@dataclass(frozen=True)
class Settings:
    """What decides the scores of given clips.

    Attributes:
        estimator: its name, or "none".
        interval: every how many frames one is sampled; 4 in SANA-WM-Bench.
        rendered: the most clips per split whose path is rendered.

    Raises:
        ValueError: for numbers out of range.
    """

    estimator: str = "colmap"
    interval: int = 4
    rendered: int = 8

    def __post_init__(self):
        check_count("interval", self.interval, 1, 1000)
        check_count("rendered", self.rendered, 0, 10**9)


@dataclass(frozen=True)
class Report:
    """The scores of clips.

    Attributes:
        settings: of the scores.
        scores: in order of the clips.
    """

    settings: Settings
    scores: tuple[Score, ...]

    def splits(self) -> dict[str, dict[str, Any]]:
        """For each split, the number of clips, of rejected ones, and means. Of the measures in `WHO`, "of" is how many
        clips have them, and "followed" for how many of these the camera was found.
        """
        return {split: _means([s for s in self.scores if s.split == split]) for split in _names(self.scores)}

    def warnings(self) -> list[str]:
        """A sentence for each split whose camera errors say little: those in which the estimator's CamMC on rendered
        frames is more than `HARDLY_BETTER` times that of a camera that stands still.
        """
        found = []
        for split, means in self.splits().items():
            own, still = (means[who]["cam_mc"] for who in ("rendered", "still"))
            if own is not None and still is not None and own > HARDLY_BETTER * still:
                found.append(
                    f"{split}: in rendered images the estimator's CamMC is {own:.2f}, that of a camera that stands "
                    f"still {still:.2f}: its errors say little about these clips."
                )
        return found

    def to_json(self) -> str:
        """JSON with a line for each clip."""
        rows = ",\n".join(json.dumps(asdict(score)) for score in self.scores)
        settings, splits = json.dumps(asdict(self.settings)), json.dumps(self.splits(), indent=1)
        return f'{{"settings": {settings},\n"splits": {splits},\n"clips": [\n{rows}\n]}}\n'

    def to_csv(self) -> str:
        """CSV with a line for each clip; measures are columns such as clip_drift and rendered_drift."""
        text = io.StringIO()
        lines = [_flat(score) for score in self.scores]
        writer = csv.DictWriter(text, list(dict.fromkeys(name for line in lines for name in line)), lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)
        return text.getvalue()

    def bench_table(self) -> str:
        """A Markdown table with the columns of SANA-WM-Bench's tables 2 and 8 that are measured here."""
        lines = ["| split | scenes | R | T | CMC | PSNR | SSIM | R, T, CMC of the estimator on rendered paths |",
                 "|---|---|---|---|---|---|---|---|"]  # fmt: skip
        for split, means in self.splits().items():
            pairs = [s.revisit for s in self.scores if s.split == split and s.revisit and s.revisit[2]]
            count = sum(pair[2] for pair in pairs)
            back = [sum(pair[i] * pair[2] for pair in pairs) / count if count else None for i in (0, 1)]
            cells = [as_text(split), f"{means['clip']['followed']} of {means['clips']}", *_errors(means["clip"]),
                     told(back[0], 2), told(back[1], 3), " / ".join(_errors(means["rendered"]))]  # fmt: skip
            lines.append(f"| {' | '.join(cells)} |")
        return "\n".join(lines) + "\n"


def score(
    folder: str | Path,
    out: str | Path,
    *,
    estimator: str | Estimator = "colmap",
    interval: int = 4,
    rendered: int = 8,
    bench: str | Path | None = None,
    progress: Callable[[Score, int, int], None] | None = None,
) -> Report:
    """Score the clips in a folder, and write scores.json, scores.csv and scores.png to `out`.

    scores.json is written after every clip, so the same call continues after an interruption; on Ctrl-C all files are
    written for the clips so far. Clips that cannot be read, and those for which an estimator fails, are rejected, each
    with its reason.

    Args:
        folder: of clips, see `score_clips`.
        out: folder of the results, made if missing.
        estimator: "colmap", "none", "module:function" or an `Estimator`.
        interval: see `Settings`.
        rendered: see `Settings`.
        bench: folder of SANA-WM-Bench, if the videos were made for its paths; then sana_wm_bench.md is written too.
        progress: called after each clip with its score, the number of scores so far and the number of clips.

    Raises:
        FileNotFoundError: for a folder without clips.
        ImportError: without matplotlib, or for an estimator that cannot be imported.
        TypeError: for an estimator that is neither text nor a function.
        ValueError: for an unknown estimator, settings out of range, a damaged dataset or benchmark, or a scores.json
            that cannot be read or has scores of other settings.
        BlockingIOError: while another process scores into `out`.
        OSError: where `out` cannot be written.
    """
    out = Path(out)
    figure_class()  # before the work
    find, name = find_estimator(estimator)
    settings = Settings(name, interval, rendered)
    clips = find_clips(Path(folder), None if bench is None else Path(bench))
    check_writable(out, (NUMBERS, TABLE, PICTURE, BENCH_TABLE))
    with only_writer(out, f"{NUMBERS}.lock", stays=False):
        return _write(clips, settings, find, out, bench is not None, progress or (lambda *_: None))


def _write(
    clips: Sequence[Clip],
    settings: Settings,
    find: Estimator | None,
    out: Path,
    bench: bool,
    progress: Callable[[Score, int, int], None],
) -> Report:
    before = _kept(out / NUMBERS, settings)
    done: list[Score] = []
    try:
        for made in _scores(clips, settings, find, before):
            done.append(made)
            last = len(done) == len(clips)
            if before.pop((made.name, made.inputs), None) is None or last:
                rest = () if last else before.values()  # what an earlier run has measured is not lost if this one ends
                write_text(out / NUMBERS, Report(settings, (*done, *rest)).to_json())
            progress(made, len(done), len(clips))
    finally:
        if done:
            report = Report(settings, tuple(done))
            write_text(out / TABLE, report.to_csv())
            if bench:
                write_text(out / BENCH_TABLE, report.bench_table())
            draw(report, out / PICTURE)
    return report


def find_estimator(estimator: str | Estimator) -> tuple[Estimator | None, str]:
    """The function of an estimator (None for "none"), and its name.

    Raises:
        ImportError: for "colmap" without pycolmap, or a module that cannot be imported.
        TypeError: for anything but text or a function.
        ValueError: for an unknown name.
    """
    if not isinstance(estimator, str):
        if not callable(estimator):
            raise TypeError(f"An estimator is a name or a function, got {brief(estimator)}.")
        kind = type(estimator)
        names = [getattr(estimator, f"__{part}__", getattr(kind, f"__{part}__")) for part in ("module", "qualname")]
        return estimator, ":".join(names)
    if estimator == "none":
        return None, estimator
    if estimator == "colmap":
        reconstruction.check_installed()
        return colmap, estimator
    module, colon, name = estimator.partition(":")
    if not colon or not all(part.isidentifier() for part in module.split(".")):
        raise ValueError(f"An estimator is colmap, none, or a function as module:function, got {brief(estimator)}.")
    try:
        found = getattr(importlib.import_module(module), name, None)
    except ImportError as error:
        raise ImportError(f"The module of the estimator {brief(estimator)} cannot be imported: {error}.") from error
    if not callable(found):
        raise ValueError(f"There is no function {brief(name)} in the module {module}.")
    return found, estimator


def colmap(frames: np.ndarray, intrinsics: np.ndarray | None, anchor: Anchor | None) -> np.ndarray:
    """The `Estimator` that calls COLMAP, see `camera.reconstruction`."""
    return reconstruction.reconstruct(frames, None if intrinsics is None else intrinsics[0]).c2w


# --- one clip ---


def _scores(
    clips: Sequence[Clip], settings: Settings, find: Estimator | None, before: dict[tuple[str, str], Score]
) -> Iterator[Score]:
    seen: dict[str, int] = {}
    for clip in clips:
        seen[clip.split] = seen.get(clip.split, 0) + 1
        try:
            inputs = _inputs(clip)
            kept = before.get((clip.name, inputs))
            yield kept or replace(_score(clip, settings, find, seen[clip.split] <= settings.rendered), inputs=inputs)
        except (OSError, ValueError) as error:
            yield Score(clip.name, clip.split, reason=reason(error))
        except MemoryError as error:
            yield Score(clip.name, clip.split, reason=f"it takes more memory than there is: {reason(error)}")


def _inputs(clip: Clip) -> str:
    files = [clip.video, clip.video.with_name(TRUTH), clip.video.with_name(META), clip.trajectory]
    if clip.trajectory.is_dir():
        files += [path for path in visible(clip.trajectory, "**/*") if path.suffix in POSES_IN_FOLDERS]
    told = "".join(file_sha256(file) for file in files if file.is_file()) + repr(clip.pairs)
    return hashlib.sha256(told.encode()).hexdigest()[:16]


def _kept(path: Path, settings: Settings) -> dict[tuple[str, str], Score]:
    """The scores of an earlier run with the same settings, by name and inputs."""
    if not path.exists():
        return {}
    try:
        written = read_json(path, MAX_BYTES)
        other = differences(asdict(read(Settings, written["settings"])), asdict(settings))
        scores = [read(Score, row) for row in written["clips"]]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} cannot be read as the scores of an earlier run ({reason(error)}): use another folder."
        ) from error
    if other:
        raise ValueError(f"{path} has scores of other settings ({other}): use another folder, or delete it.")
    return {(score.name, score.inputs): score for score in scores if not score.reason}


def _score(clip: Clip, settings: Settings, find: Estimator | None, render: bool) -> Score:
    given = clip.read(settings.interval)
    measures, found, note = _measured(given.frames, given.c2w, given.intrinsics, given.anchor, find)
    made = Score(clip.name, clip.split, "", given.total, len(given.frames), measures, note=note)
    placed = np.ones(len(given.c2w), bool) if found is None else _placed(found)
    if found is not None:
        asked = given.c2w[placed]
        above = apply(align(asked, found[placed]), found[placed])[:, (0, 2), 3].tolist()
        made = replace(made, asked=_pairs(asked[:, (0, 2), 3]), found=_pairs(above))
    made = replace(made, still=_errors_of(given.c2w, np.where(placed[:, None, None], np.eye(4), np.nan)))
    truth = given.truth
    if render:
        true, c2w, intrinsics, anchor = rendered(given, clip.name)
        own, _, _ = _measured(true, c2w, intrinsics, anchor, find)
        made = replace(made, rendered=own, rendered_in=anchor.place)
        truth = true if truth is None and given.anchor is not None and anchor.place == given.anchor.place else truth
    if truth is not None and truth.shape == given.frames.shape:
        pairs = list(zip(truth, given.frames, strict=True))[1:]  # the first is the start image
        likeness = [float(np.mean([of(*pair) for pair in pairs])) for of in (psnr, ssim)]
        made = replace(made, psnr=likeness[0], ssim=likeness[1])
    if clip.pairs:
        times = frame_times(clip.video)
        back = revisit(list(read_video(clip.video)), clip.pairs, fps=(len(times) - 1) / times[-1])
        made = replace(made, revisit=(back.psnr, back.ssim, back.pairs) if back.pairs else None)
    return made


def _measured(
    frames: np.ndarray, c2w: np.ndarray, intrinsics: np.ndarray | None, anchor: Anchor | None, find: Estimator | None
) -> tuple[Measures, np.ndarray | None, str]:
    """Measures of frames that were commanded to be at c2w, the estimated poses (None for too few), and why there are
    none.
    """
    lasting = Measures(drift=drift(frames), loop_psnr=loop_closure(frames, c2w))
    if find is None:
        return lasting, None, ""
    try:
        found = np.asarray(find(frames, intrinsics, anchor), np.float64)
    except ValueError as error:
        return lasting, None, reason(error)
    except Exception as error:  # of somebody's function: of this clip alone
        raise ValueError(f"the estimator failed: {type(error).__name__} {reason(error)}") from error
    if found.shape != c2w.shape:
        raise ValueError(f"The estimator must return poses of shape {c2w.shape}, it returned {found.shape}.")
    measures = replace(_errors_of(c2w, found), drift=lasting.drift, loop_psnr=lasting.loop_psnr)
    if measures.rot_err_deg is None:
        return measures, None, f"its camera was found in {measures.placed:.0%} of the frames"
    return measures, found, ""


def _errors_of(c2w: np.ndarray, found: np.ndarray) -> Measures:
    """The errors of the poses that are not NaN, if there are enough of them."""
    placed = _placed(found)
    share = float(placed.mean())
    if share < ENOUGH or placed.sum() < 3:
        return Measures(share)
    c2w, found = c2w[placed], found[placed]
    errors = pose_errors(np.linalg.solve(c2w[0], c2w), np.linalg.solve(found[0], found))
    return Measures(share, errors.rot_err_deg, errors.trans_err, errors.cam_mc, errors.scale)


def _placed(c2w: np.ndarray) -> np.ndarray:
    """Which poses (n, 4, 4) are not NaN, (n,)."""
    return np.asarray(np.isfinite(c2w).all((1, 2)))


def rendered(given: Sampled, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, Anchor]:
    """Render the path of a clip in the world "rooms".

    The place is the clip's own, if rooms knows it. Otherwise it is a furnished room of the test set, drawn by the
    clip's name; walls stop the camera, and the path is scaled down to stay within `FARTHEST` metres of its start.

    Args:
        given: the clip.
        name: of the clip.

    Returns:
        Frames (n, H, W, 3) uint8; the poses (n, 4, 4) that they show, in units of the clip; intrinsics (n, 3, 3); and
            the
        anchor of the first frame.
    """
    count, height, width = given.frames.shape[:3]
    matrix = None if given.intrinsics is None else given.intrinsics[0]
    own = given.anchor is not None and World.load("rooms").config.knows(given.anchor.place)
    world = World.load("rooms", height=height, width=width, collisions=not own)
    shrunk, anchor = 1.0, given.anchor
    if anchor is None or not own:
        number = zlib.crc32(name.encode()) % 10**6
        anchor = DrawnScenes("rooms", "test", 10**6).start(number, world.config).anchor
        shrunk = min(1.0, FARTHEST / max(1e-9, float(np.linalg.norm(given.c2w[:, :3, 3], axis=1).max())))
    assert anchor is not None
    path = given.c2w.copy()
    path[:, :3, 3] *= shrunk
    scene = world.scene(given.frames[0], intrinsics=matrix, anchor=anchor)
    state, n = world.begin(scene), world.config.chunk_frames
    frames, poses = [scene.image[None]], [path[:1]]
    rest = np.concatenate([path[1:], np.repeat(path[-1:], -(count - 1) % n, axis=0)])
    for chunk in rest.reshape(-1, n, 4, 4):
        state, clip = world.advance(state, chunk)
        frames.append(clip.frames[0].cpu().numpy())
        poses.append(clip.c2w[0])
    shown = np.concatenate(poses)[:count].copy()
    shown[:, :3, 3] /= shrunk
    matrices = np.broadcast_to(intrinsics_matrix(scene.intrinsics), (count, 3, 3))
    return np.concatenate(frames)[:count], shown, matrices, anchor


# --- many ---


def _names(scores: Iterable[Score]) -> list[str]:
    return list(dict.fromkeys(score.split for score in scores))


def _means(scores: Sequence[Score]) -> dict[str, Any]:
    whole = [score for score in scores if not score.reason]
    means: dict[str, Any] = {"clips": len(scores), "rejected": len(scores) - len(whole)}
    for who in WHO:
        of = [m for score in whole if (m := getattr(score, who)) is not None]
        means[who] = {"of": len(of), "followed": sum(m.rot_err_deg is not None for m in of)}
        means[who] |= {f.name: mean([getattr(m, f.name) for m in of]) for f in fields(Measures)}
    return means | {name: mean([getattr(score, name) for score in whole]) for name in ("psnr", "ssim")}


def mean(values: Iterable[float | None]) -> float | None:
    """The mean of the values that are not None; None without any."""
    there = [value for value in values if value is not None]
    return float(np.mean(there)) if there else None


def told(value: float | None, digits: int) -> str:
    """A number as text with so many digits after the point; "-" for None, NaN and infinity."""
    return "-" if value is None or not math.isfinite(value) else f"{value:.{digits}f}"


def _errors(measures: dict[str, Any]) -> list[str]:
    return [told(measures[name], digits) for name, digits in (("rot_err_deg", 2), ("trans_err", 3), ("cam_mc", 3))]


def _pairs(points: Iterable[Iterable[float]]) -> tuple[tuple[float, float], ...]:
    return tuple((round(float(x), 4), round(float(z), 4)) for x, z in points)


def _flat(score: Score) -> dict[str, Any]:
    line = {name: value for name, value in asdict(score).items() if name not in (*WHO, "asked", "found", "revisit")}
    line |= {name: as_text(line[name]) for name in ("name", "split", "note", "reason")}
    for who in WHO:
        measures = getattr(score, who) or Measures()
        line |= {f"{who}_{name}": value for name, value in asdict(measures).items()}
    return line


def draw(report: Report, path: Path) -> None:
    """Write a PNG: the errors of every clip by split, beside those on rendered frames and of a camera that stands
    still; and some paths from above.

    Raises:
        ImportError: without matplotlib.
        OSError: where it cannot be written.
    """
    shown = [score for score in report.scores if score.found][:PATHS_SHOWN]
    figure = figure_class()(figsize=(11, 3.6 + 2.2 * bool(shown)), layout="constrained")
    rows = figure.subfigures(2, 1, height_ratios=(3.6, 2.2), squeeze=False)[:, 0] if shown else [figure]
    panels = rows[0].subplots(1, 3)
    for axes, (name, label) in zip(
        panels,
        (("rot_err_deg", "RotErr, degrees"), ("trans_err", "TransErr"), ("drift", "drift, doublings")),
        strict=True,
    ):
        _dots(axes, report, name, label)
    if panels[0].lines:
        panels[0].legend(fontsize=7, loc="best")
    if shown:
        for axes, score in zip(rows[1].subplots(1, PATHS_SHOWN, squeeze=False)[0], [*shown, *[None] * 6], strict=False):
            _paths(axes, score)
    with replacing(path) as part:
        figure.savefig(part, dpi=110, format="png")


def _dots(axes: "Axes", report: Report, name: str, label: str) -> None:
    splits = _names(report.scores)
    for i, (who, text) in enumerate(WHO.items()):
        points = [
            (splits.index(score.split) + (i - 1) * 0.22, value)
            for score in report.scores
            if (m := getattr(score, who)) is not None and (value := getattr(m, name)) is not None
        ]
        if points:
            axes.plot(*zip(*points, strict=True), "o", color=f"C{i}", alpha=0.6, markersize=4, label=text)
    axes.set_xticks(range(len(splits)), [literal(split, 24) for split in splits], fontsize=8)
    axes.set(title=label, xlim=(-0.6, len(splits) - 0.4))
    axes.title.set_fontsize(10)
    axes.set_yscale("symlog", linthresh=0.1 if name != "trans_err" else 0.01)
    axes.set_ylim(bottom=0)
    axes.grid(color="0.92")


def _paths(axes: "Axes", score: Score | None) -> None:
    if score is None:
        axes.set_axis_off()
        return
    axes.plot(*zip(*score.asked, strict=True), color="0.6", linewidth=2, label="asked for")
    axes.plot(*zip(*score.found, strict=True), color="C0", linewidth=1, label="found")
    axes.set_aspect("equal", "datalim")
    axes.set_title(literal(score.name, 24), fontsize=7)
    axes.tick_params(labelsize=6)
    axes.legend(fontsize=6, frameon=False)
