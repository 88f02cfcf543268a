"""The pictures of nano in docs, from its held-out walks: `python benchmarks/pictures.py`.

gallery.png: rendered above predicted frames on eight walks. photographs.png: three photographs of other places, turned
away from by 1.5 seconds of yaw, beside the rotation homography, which is right wherever the photograph reaches.
"""

from pathlib import Path

import numpy as np
from harness import DOCS, parser
from held_out import SEED
from PIL import Image, ImageDraw, ImageFont

from sanawm_env import World
from sanawm_env.camera.twist import hold
from sanawm_env.training.evaluate import evaluate, save_sheet
from sanawm_env.training.warps import rotation_homographies, warp

SHOWN = (5, 11, 17, 23)  # frames of the chunk
YAW = 0.3  # rad/s
SCALE, GAP = 1, 4


def photographs(world: World, path: Path) -> None:
    size = world.config.width * SCALE, world.config.height * SCALE
    pictures = sorted((DOCS / "photographs").glob("*.jpg"))
    sheet = Image.new("RGB", ((1 + len(SHOWN)) * (size[0] + GAP), 24 + 2 * len(pictures) * (size[1] + GAP)), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    for column, text in enumerate(("start", *(f"{(f + 1) / world.config.fps:.2f} s" for f in SHOWN))):
        pen.text((column * (size[0] + GAP) + 4, 3), text, "black", font=font)
    for row, picture in enumerate(pictures):
        scene = world.scene(picture)
        poses = hold(np.eye(4), (0, 0, 0, 0, YAW, 0))
        _, clip = world.advance(world.begin(scene, seed=0), poses)
        turned = warp(scene.image, rotation_homographies(poses, scene.intrinsics))
        for line, (name, frames) in enumerate((("predicted", clip.frames[0].numpy()), ("homography", turned))):
            y = 24 + (2 * row + line) * (size[1] + GAP)
            for column, frame in enumerate((scene.image, *frames[list(SHOWN)])):
                shown = Image.fromarray(frame).resize(size, Image.Resampling.BICUBIC)
                sheet.paste(shown, (column * (size[0] + GAP), y))
            pen.text((6, y + 4), name, "white", font=font, stroke_width=2, stroke_fill="black")
    sheet.save(path)


if __name__ == "__main__":
    options = parser(__doc__, quick=False, json=False)
    options.add_argument("world", nargs="?", default="nano")
    nano = World.load(options.parse_args().world)
    photographs(nano, DOCS / "photographs.png")
    save_sheet(evaluate(nano, 8, SEED, ablations=False, examples=8), DOCS / "gallery.png", scale=1)
