"""What `sanawm score` says of nano's dreams, and what its estimators are worth where every picture is true.

    python benchmarks/score.py        # about ten minutes of one core; clips that are done are kept

1. Own export: clips of the true rooms are written as `sanawm trajectory --export` writes them, reconstructed by COLMAP
from the exported pictures alone, and compared with the exported poses; at two sizes of the picture.
2. Dreams: paths with sideways movement, dreamt by nano in its three places and scored by COLMAP, and by alignment with
the known place. The picture of the second is docs/score.png.
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
SIZES = {"240 x 320": (240, 320), "480 x 640": (480, 640)}
EVERY = 4


def reconstructed(start: str, path: str, size: tuple[int, int]) -> dict[str, Any]:
    """One clip of the true rooms, exported and reconstructed from the exported pictures."""
    folder = Path("runs/score_bench") / f"{start}_{path}_{size[0]}"
    world = World.load("rooms", height=size[0], width=size[1])
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


def dream(folder: Path, start: str, path: str) -> None:
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
    options = parser(__doc__).parse_args()
    torch.set_num_threads(1)
    starts, paths, sizes = STARTS, list(PATHS), dict(SIZES)
    if options.quick:
        starts, paths, sizes = STARTS[:1], paths[:1], {"240 x 320": (240, 320)}
    clips = [(start, path) for start in starts for path in paths]
    exports: dict[str, list[dict[str, Any]]] = {}
    for name, size in sizes.items():
        files = {clip: Path("runs/score_bench") / f"{clip[0]}_{clip[1]}_{size[0]}.json" for clip in clips}
        exports[name] = [
            kept(file, partial(reconstructed, *clip, size))
            for clip, file in track(files.items(), f"reconstructing {name}", console=console)
        ]
    data = Path("runs/score_bench/dreams")
    for start, path in track(clips, "dreaming", console=console):
        dream(data / f"{start}_{path}", start, path)
    scores = {}
    file = numbers_file(options, "score")
    for name, estimator in (("colmap", "colmap"), ("alignment", alignment)):
        out = Path("runs/score_bench") / f"scores_{name}"
        scores[name] = score(data, out, estimator=estimator, interval=EVERY).splits()
        console.print(f"{name} done")
        if name == "alignment" and not options.quick:
            (DOCS / "score.png").write_bytes((out / PICTURE).read_bytes())
    write(file, header() | {"exports": exports, "scores": scores})
    show(
        "own exports, reconstructed by COLMAP",
        ["picture", "clip", "placed", "points", "RotErr", "TransErr, m", "path, m"],
        [[name, row["clip"], f"{row['placed']} of {row['pictures']}", str(row["points"]),
          *(f"{row[key]:.3f}" if key in row else "-" for key in ("rot_err_deg", "trans_err")), f"{row['metres']:.2f}"]
         for name, rows in exports.items() for row in rows],
    )  # fmt: skip


if __name__ == "__main__":
    main()
