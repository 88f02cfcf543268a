"""`sanawm score`: score clips, beside the error of the measure itself."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro
from rich.table import Table

from sanawm_env.cli.output import console, progress, say

if TYPE_CHECKING:
    from sanawm_env.recording.scores import Report, Score


@dataclass(frozen=True, kw_only=True)
class ScoreClips:
    """Score the clips of a dataset, or any videos with their trajectories: camera errors by an estimator, beside the
    estimator's own error on rendered frames; drift; loop closure; likeness to the ground truth. The same command
    continues after an interruption.
    """

    dataset: tyro.conf.Positional[Path]
    """Dataset, episode, or folder of videos with their trajectories (docs/score.md)."""
    out: Path = Path("runs/score")
    """Folder for scores.json, scores.csv and scores.png."""
    estimator: str = "colmap"
    """How the camera is estimated: colmap (the extra "poses"), alignment, none, or your function as module:function.
    alignment compares with the known place, for clips with nano's intrinsics that begin in a place of rooms."""
    interval: int = 4
    """Every how many frames one is sampled, 1 to 1000."""
    rendered: int = 8
    """Largest number of clips per split whose path is also rendered, for the estimator's own error, PSNR and SSIM."""
    bench: Path | None = None
    """Folder of SANA-WM-Bench, if the videos were made for its paths."""

    def run(self) -> None:
        """Score the clips, and print a table.

        Raises:
            ValueError: at the end, for rejected clips; and as `score`.
            ImportError: as `score`.
            OSError: as `score`.
        """
        from sanawm_env.recording.scores import Report, Settings, find_estimator, score

        estimator: Any = self.estimator
        if estimator == "alignment":
            from sanawm_env.training.align import estimator
        done: list[Score] = []
        with progress("scoring", "clips", transient=True) as bar:
            task = bar.add_task("", total=None)

            def tell(made: "Score", count: int, total: int) -> None:
                done.append(made)
                bar.update(task, completed=count, total=total)
                if made.reason:
                    bar.console.print(f"{made.name} is rejected: {made.reason}", soft_wrap=True)

            try:
                score(
                    self.dataset, self.out, estimator=estimator, interval=self.interval, rendered=self.rendered,
                    bench=self.bench, progress=tell,
                )  # fmt: skip
            finally:
                if done:
                    bar.stop()
                    settings = Settings(find_estimator(estimator)[1], self.interval, self.rendered)
                    self._show(Report(settings, tuple(done)))
        if rejected := sum(bool(score.reason) for score in done):
            raise ValueError(f"{rejected} of {len(done)} clips were rejected: {self.out / 'scores.json'} says why.")

    def _show(self, report: "Report") -> None:
        from sanawm_env.recording.scores import BENCH_TABLE, NUMBERS, PICTURE, TABLE, WHO, told

        columns = ["split", "frames of", "camera found in", "RotErr °", "TransErr", "CamMC"]
        columns += ["drift", "loop dB", "PSNR dB", "SSIM"]
        table = Table(*columns, title=f"{len(report.scores)} clips, estimator: {report.settings.estimator}")
        for split, means in report.splits().items():
            for who, label in WHO.items():
                of = means[who]
                if not of["of"] or (who == "still" and of["followed"] == 0):
                    continue
                likeness = [told(means["psnr"], 1), told(means["ssim"], 3)] if who == "clip" else ["", ""]
                table.add_row(
                    split if who == "clip" else "", label, f"{of['followed']} of {of['of']}" if who != "still" else "",
                    told(of["rot_err_deg"], 2), told(of["trans_err"], 3), told(of["cam_mc"], 3),
                    *([told(of["drift"], 2), told(of["loop_psnr"], 1)] if who != "still" else ["", ""]), *likeness,
                )  # fmt: skip
        console.print(table)
        for warning in report.warnings():
            say(f"! {warning}", style="yellow")
        for name in (NUMBERS, TABLE, PICTURE, *([BENCH_TABLE] if self.bench else [])):
            if (self.out / name).exists():
                say(self.out / name)
