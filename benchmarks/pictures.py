"""The pictures of nano in docs, from its held-out walks: `python benchmarks/pictures.py`.

gallery.png: rendered above predicted frames on eight walks. photographs.png: three photographs of other places, turned
away from by 1.5 seconds of yaw, beside the rotation homography, which is right wherever the photograph reaches.
futures.png: two walks in rooms that nano does not know, rendered and with three seeds.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
from harness import DOCS, parser
from held_out import SEED
from PIL import Image, ImageDraw, ImageFont

from sanawm_env import World
from sanawm_env.camera.twist import hold
from sanawm_env.engines.rooms.raycast import intrinsics, render
from sanawm_env.training.evaluate import evaluate, save_sheet
from sanawm_env.training.probes import roll
from sanawm_env.training.truth import draw_walk
from sanawm_env.training.warps import rotation_homographies, warp

SHOWN = (5, 11, 17, 23)  # frames of the chunk
YAW = 0.3  # rad/s
GAP = 4  # pixels
WALKS, SEEDS, CHUNKS = (0, 1), (0, 1, 2), 5  # of futures.png


def sheet(titles: list[str], rows: list[tuple[str, np.ndarray]], path: Path) -> None:
    """Draw rows of frames (n, H, W, 3) with their names, under the titles of the columns."""
    height, width = rows[0][1].shape[1:3]
    drawn = Image.new("RGB", (len(titles) * (width + GAP), 24 + len(rows) * (height + GAP)), "white")
    pen, font = ImageDraw.Draw(drawn), ImageFont.load_default(14)
    for column, title in enumerate(titles):
        pen.text((column * (width + GAP) + 4, 3), title, "black", font=font)
    for row, (name, frames) in enumerate(rows):
        y = 24 + row * (height + GAP)
        for column, frame in enumerate(frames):
            drawn.paste(Image.fromarray(frame), (column * (width + GAP), y))
        pen.text((6, y + 4), name, "white", font=font, stroke_width=2, stroke_fill="black")
    drawn.save(path)


def photographs(world: World, path: Path) -> None:
    rows = []
    for picture in sorted((DOCS / "photographs").glob("*.jpg")):
        scene = world.scene(picture)
        poses = hold(np.eye(4), (0, 0, 0, 0, YAW, 0))
        _, clip = world.advance(world.begin(scene, seed=0), poses)
        turned = warp(scene.image, rotation_homographies(poses, scene.intrinsics))
        for name, frames in (("predicted", clip.frames[0].numpy()), ("homography", turned)):
            rows.append((name, np.stack((scene.image, *frames[list(SHOWN)]))))
    sheet(["start", *(f"{(f + 1) / world.config.fps:.2f} s" for f in SHOWN)], rows, path)


def futures(world: World, path: Path) -> None:
    size, n, rows = (world.config.height, world.config.width), world.config.chunk_frames, []
    for index in WALKS:
        walk = draw_walk(world.config, SEED, index, 1 + n * CHUNKS, known=False)
        shown = np.arange(0, 1 + n * CHUNKS, n)
        real, _ = render(walk.place, walk.c2w[shown], intrinsics(*size), *size, depth=False)
        rows.append(("rendered", real))
        for seed in SEEDS:
            made = roll(world, [replace(walk, seed=seed)], [walk.c2w])[0]
            rows.append((f"seed {seed}", np.stack((real[0], *made[shown[1:] - 1]))))
    sheet(["start", *(f"chunk {i + 1}" for i in range(CHUNKS))], rows, path)


if __name__ == "__main__":
    options = parser(__doc__, quick=False, json=False)
    options.add_argument("world", nargs="?", default="nano")
    nano = World.load(options.parse_args().world)
    photographs(nano, DOCS / "photographs.png")
    futures(nano, DOCS / "futures.png")
    save_sheet(evaluate(nano, 8, SEED, ablations=False, examples=8), DOCS / "gallery.png", scale=1)
