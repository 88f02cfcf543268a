"""Configurations of nano worlds, and the folder that `World.load` reads."""

import shutil
from dataclasses import replace
from pathlib import Path

from sanawm_env.camera.presets import Workspace
from sanawm_env.engines.rooms.places import PLACES, bounds, place
from sanawm_env.engines.rooms.raycast import HEIGHT, WIDTH, intrinsics, render
from sanawm_env.engines.rooms.walks import sample_start
from sanawm_env.engines.sanawm.conditions import PLUCKER_CHANNELS
from sanawm_env.engines.sanawm.config import SanaWorldConfig
from sanawm_env.engines.sanawm.network.config import SanaWMConfig
from sanawm_env.engines.sanawm.network.place_map import PLACE_CHANNELS
from sanawm_env.engines.sanawm.reprojection import reprojection_channels
from sanawm_env.engines.sanawm.sampler import SamplerConfig
from sanawm_env.system.files import visible
from sanawm_env.system.saving import replacing, write_text
from sanawm_env.training.clips import random_stream
from sanawm_env.world.anchor import Anchor
from sanawm_env.world.images import save_start

NANO_SMALL = SanaWorldConfig(
    name="nano",
    network=SanaWMConfig(
        latent_channels=96,
        hidden_size=192,
        depth=4,
        num_heads=3,
        head_dim=64,
        caption_channels=len(PLACES) + 1,
        text_len=1,
        plucker_channels=PLUCKER_CHANNELS + PLACE_CHANNELS,
        softmax_every_n=2,
        input_size=1,
        prediction_type="v_prediction",
    ),
    sampler=SamplerConfig(timesteps=(1000,)),
    height=HEIGHT,
    width=WIDTH,
    spatial_stride=8,
    workspace=Workspace(pitch_limit_deg=40, soft_distance=4, hard_distance=8),  # rooms of 5 to 8 metres
    places={name: bounds(name) for name in PLACES},
)
"""Half the picture, without a first guess: what one's own clips and `--quick` train."""
NANO = replace(
    NANO_SMALL,
    network=replace(
        NANO_SMALL.network,
        latent_channels=256,
        plucker_channels=NANO_SMALL.network.plucker_channels + reprojection_channels(256),
        window=3,
    ),
    height=2 * HEIGHT,
    width=2 * WIDTH,
    spatial_stride=16,
    reprojection=True,
    unseen=True,
    temperature=0.4,
)
"""The shipped world: twice the picture at the same number of tokens, a first guess at what the camera will see, and
more than one future where nothing was seen."""
STARTS_PER_PLACE = 16


def export_world(config: SanaWorldConfig, run: Path, codec: Path, out: Path, starts: Path | None = None) -> None:
    """Write a world's folder: `config.json`, weights, codec and start images.

    Args:
        config: of the world.
        run: folder with the weights.
        codec: file of the codec.
        out: where to.
        starts: folder of more start images, or None. Start images of the world's places hold their anchors.
    """
    (out / "starts").mkdir(parents=True, exist_ok=True)
    write_text(out / "config.json", config.to_json() + "\n")
    has = {"network": True, "places": config.places, "reprojection": config.reprojection, "unseen": config.unseen}
    parts = [part for part, there in has.items() if there]
    for source in (*(run / f"{part}.safetensors" for part in parts), codec):
        if source.resolve() != (out / source.name).resolve():
            with replacing(out / source.name) as part:
                shutil.copyfile(source, part)
    for picture in visible(starts, "*.png") if starts is not None else ():
        with replacing(out / "starts" / picture.name) as part:
            shutil.copyfile(picture, part)
    for p, name in enumerate(config.places):
        for i in range(STARTS_PER_PLACE):
            here = place(name)
            c2w = sample_start(here, random_stream("train", 10_000 + p, i))
            size = config.height, config.width
            frames, _ = render(here, c2w[None], intrinsics(*size), *size, depth=False)
            save_start(frames[0], Anchor(name, c2w), out / "starts" / f"{name}_{i + 1:02d}.png")
