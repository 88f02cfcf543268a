"""What `sanawm score` says of nano's predictions, and what its estimators are worth where every picture is true.

    python benchmarks/score.py        # about ten minutes of one core; clips that are done are kept

1. Own export: clips of the true rooms are written as `sanawm trajectory --export` writes them, reconstructed by COLMAP
from the exported pictures alone (240 x 320), and compared with the exported poses.
2. Predicted clips: paths with sideways movement, which nano predicts in its three places, scored by COLMAP; with
--alignment also by alignment with the known place, which takes twice as long again. docs/score.png is of the last.
"""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import DOCS, console, header, kept, numbers_file, parser, show, write
from PIL import Image
from rich.progress import track

from sanawm_env import World
from sanawm_env.camera.dsl import actions_to_c2w
from sanawm_env.camera.intrinsics import intrinsics_matrix
from sanawm_env.camera.reconstruction import reconstruct
from sanawm_env.camera.trajectory import load_trajectory, relative_to_first
from sanawm_env.envs.env import SanaWMEnv
from sanawm_env.metrics.pose import pose_errors
from sanawm_env.recording.episode import EpisodeWriter, Step, begin
from sanawm_env.recording.rollout import TRAJECTORY, VIDEO, RolloutWriter
from sanawm_env.recording.scores import PICTURE, score
from sanawm_env.recording.trajectories import export_trajectory
from sanawm_env.training.align import estimator as alignment

STARTS = ("gallery_01", "corridor_01", "court_01")
PATHS = {"sideways": "l-36,j-36", "arc": "dj-48,w-24"}
SIZE = (240, 320)
EVERY = 4
WORK = Path("runs/score_bench")


def reconstructed(folder: Path, start: str, path: str) -> dict[str, Any]:
    """One clip of the true rooms, exported and reconstructed from the exported pictures."""
    world = World.load("rooms", height=SIZE[0], width=SIZE[1])
    scene = world.scene(next(p for p in world.starts if p.stem == start))
    state, lens = world.begin(scene), intrinsics_matrix(scene.intrinsics)
    with RolloutWriter(folder / "clip", sheet=False) as writer:
        writer.append(scene.image[None], np.eye(4)[None], lens)
        for poses in actions_to_c2w(PATHS[path]).astype(np.float64)[1:].reshape(-1, 24, 4, 4):
            state, clip = world.advance(state, poses)
            writer.append(clip.frames[0].numpy(), clip.c2w[0], lens)
    if not (folder / "colmap").exists():
        given = load_trajectory(folder / "clip" / TRAJECTORY)
        export_trajectory(given, folder / "colmap", "colmap", folder / "clip" / VIDEO)
    said = load_trajectory(folder / "colmap")
    pictures = sorted((folder / "colmap/images").glob("*.png"))[::EVERY]
    assert said.intrinsics is not None
    found = reconstruct([np.asarray(Image.open(picture)) for picture in pictures], said.intrinsics[0])
    c2w = relative_to_first(said.c2w[::EVERY])
    length = float(np.linalg.norm(np.diff(c2w[:, :3, 3], axis=0), axis=1).sum())
    row: dict[str, Any] = {"clip": f"{start}, {path}", "pictures": len(pictures), "placed": int(found.placed.sum()),
                           "points": found.points, "metres": length}  # fmt: skip
    if found.placed.sum() >= 3:
        errors = pose_errors(relative_to_first(c2w[found.placed]), relative_to_first(found.c2w[found.placed]))
        row |= {"rot_err_deg": errors.rot_err_deg, "trans_err": errors.trans_err}
    return row


def predict(folder: Path, start: str, path: str) -> None:
    """An episode of nano."""
    if folder.exists():
        return
    env = SanaWMEnv("nano", action_mode="poses", max_episode_chunks=10)
    begin(env, next(p for p in env.world.starts if p.stem == start), 0)
    limit = env.world.config.workspace.pitch_limit_deg
    poses = actions_to_c2w(PATHS[path], pitch_limit_deg=limit).astype(np.float64)[1:]
    with EpisodeWriter(folder, env, env.config, 0, sheet=False) as writer:
        for chunk in poses.reshape(-1, 24, 4, 4):
            _, reward, *_ = env.step(chunk)
            writer.add(Step.of(env, chunk, reward))


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--alignment", action="store_true", help="score the predicted clips by alignment too")
    options = made.parse_args()
    torch.set_num_threads(1)
    starts, paths = (STARTS[:1], list(PATHS)[:1]) if options.quick else (STARTS, list(PATHS))
    clips = [(start, path) for start in starts for path in paths]
    data = WORK / "predictions"
    for start, path in track(clips, "predicting", console=console):
        predict(data / f"{start}_{path}", start, path)
    scores = {}
    file = numbers_file(options, "score")
    for name, estimator in (("colmap", "colmap"), *([("alignment", alignment)] if options.alignment else [])):
        out = WORK / f"scores_{name}"
        scores[name] = score(data, out, estimator=estimator, interval=EVERY).splits()
        if not options.quick:
            (DOCS / "score.png").write_bytes((out / PICTURE).read_bytes())
    exports = [
        kept(WORK / f"{start}_{path}.json", partial(reconstructed, WORK / f"{start}_{path}", start, path))
        for start, path in track(clips, "reconstructing", console=console)
    ]
    write(file, header() | {"exports": exports, "scores": scores})
    show(
        "own exports, reconstructed by COLMAP",
        ["clip", "placed", "points", "RotErr", "TransErr, m", "path, m"],
        [[row["clip"], f"{row['placed']} of {row['pictures']}", str(row["points"]),
          *(f"{row[key]:.3f}" if key in row else "-" for key in ("rot_err_deg", "trans_err")), f"{row['metres']:.2f}"]
         for row in exports],
    )  # fmt: skip


if __name__ == "__main__":
    main()
