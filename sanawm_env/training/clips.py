"""Training data of the nano world: walks through places, rendered, encoded and kept in shards.

A shard is a safetensors file whose content depends only on (seed, role, shard number) and the settings in its header,
so a generation that was killed goes on where it stopped. Roles keep the random streams of training, validation and
evaluation apart by construction: the role is part of every seed, also of the seeds of unknown layouts.
"""

import hashlib
import json
from pathlib import Path

import numpy as np
import torch
from rich.progress import Progress
from safetensors import safe_open
from torch import Tensor

from sanawm_env.codec.patch_pca import PatchPCACodec, to_patches
from sanawm_env.training.places import CHUNK, PLACES, intrinsics, place, random_place, render, sample_path, sample_start
from sanawm_env.world.state import save_whole

ROLES = {"train": 1, "validation": 2, "evaluate": 3}


def random_stream(role: str, seed: int, index: int) -> np.random.Generator:
    """The generator of item `index` under (role, seed); different roles never share a stream."""
    if role not in ROLES:
        raise ValueError(f"Unknown role {role!r}; use one of {', '.join(ROLES)}.")
    return np.random.default_rng([ROLES[role], seed, index])


def sample_clip(role: str, rng: np.random.Generator, num_frames: int, unknown_fraction: float):
    """One walk: frames (F, 64, 96, 3) uint8, c2w (F, 4, 4) float64 in the place frame, index in PLACES or -1."""
    if rng.random() < unknown_fraction:
        index, here = -1, random_place(ROLES[role] << 40 | int(rng.integers(1 << 40)))
    else:
        index = int(rng.integers(len(PLACES)))
        here = place(PLACES[index])
    c2w = sample_path(here, sample_start(here, rng), rng, num_frames)
    return render(here, c2w, intrinsics(), depth=False)[0], c2w, index


def generate(
    out: Path | str,
    codec: PatchPCACodec | None,
    clips: int,
    chunks: int = 4,
    seed: int = 0,
    role: str = "train",
    unknown_fraction: float = 0.12,
    shard_clips: int = 60,
) -> None:
    """Write `clips` clips of 1 + 24 chunks frames to the folder `out`, in shards that are either absent or complete.

    A shard holds latents (N, C, 1 + 3 chunks, 8, 12) float16 (or, without a codec, frames (N, F, 64, 96, 3) uint8),
    c2w (N, F, 4, 4) float32 in the place frame, metres, and place (N,) int64, index in PLACES, -1 for an unknown
    layout. Existing shards are skipped; ValueError when they were made with other settings.
    """
    out = Path(out)
    settings = {
        "chunks": chunks, "seed": seed, "role": role, "unknown_fraction": unknown_fraction, "shard_clips": shard_clips,
        "codec": "none" if codec is None else codec_hash(codec),
    }  # fmt: skip
    header = {"settings": json.dumps(settings)}
    random_stream(role, seed, 0)  # a wrong role must not leave a folder behind
    out.mkdir(parents=True, exist_ok=True)
    for path in _shards(out)[:1]:
        with safe_open(path, "pt") as file:
            if file.metadata() != header:
                raise ValueError(f"{out} holds clips made with {file.metadata()}, not {header}; use another folder.")
    with Progress() as progress:
        task = progress.add_task(f"clips for {role}", total=clips)
        for shard, first in enumerate(range(0, clips, shard_clips)):
            path, count = out / f"shard_{shard:05d}.safetensors", min(shard_clips, clips - first)
            if path.exists() and _clips_in(path) >= count:
                progress.advance(task, count)
                continue
            rng = random_stream(role, seed, shard)
            pieces = []
            for _ in range(count):
                frames, c2w, index = sample_clip(role, rng, 1 + CHUNK * chunks, unknown_fraction)
                pieces.append((_stored(codec, frames), torch.from_numpy(c2w).float(), torch.tensor(index)))
                progress.advance(task)
            content, c2w, index = (torch.stack(column) for column in zip(*pieces, strict=True))
            save_whole({"latents" if codec else "frames": content, "c2w": c2w, "place": index}, path, header)


def codec_hash(codec: PatchPCACodec) -> str:
    """What tells codecs apart: latents of one mean nothing to another."""
    parts = (codec.mean, codec.components.half(), codec.scale)
    return hashlib.sha256(b"".join(part.cpu().numpy().tobytes() for part in parts)).hexdigest()[:16]


def made_with(folder: Path | str) -> dict:
    """The settings that the shards of `folder` were generated with; FileNotFoundError where there are none."""
    with safe_open(_shards_or_raise(folder)[0], "pt") as file:
        return json.loads(file.metadata()["settings"])


def _clips_in(path: Path) -> int:
    with safe_open(path, "pt") as file:
        return file.get_slice("place").get_shape()[0]


def _stored(codec: PatchPCACodec | None, frames: np.ndarray) -> Tensor:
    pixels = torch.from_numpy(frames)
    return pixels if codec is None else codec.encode(pixels[None])[0].half()


def _shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("shard_*.safetensors"))


def _shards_or_raise(folder: Path | str) -> list[Path]:
    paths = _shards(Path(folder))
    if not paths:
        raise FileNotFoundError(f"No shards in {folder}; make some with `sanawm train clips`.")
    return paths


def load(folder: Path | str) -> dict[str, Tensor]:
    """All complete shards of `folder`, stacked: latents (or frames), c2w, place; see `generate`."""
    parts = []
    for path in _shards_or_raise(folder):
        with safe_open(path, "pt") as file:
            parts.append({key: file.get_tensor(key) for key in file.keys()})  # noqa: SIM118
    return {key: torch.cat([part[key] for part in parts]) for key in parts[0]}


def sample_frames_for_codec(clips: int = 200, seed: int = 0, role: str = "train", num_frames: int = 25) -> Tensor:
    """Patches (N, 1536) uint8 of `clips` short walks, a tenth of them in unknown layouts, to fit the codec on."""
    patches = []
    for index in range(clips):
        frames = sample_clip(role, random_stream(role, seed, index), num_frames, 0.1)[0]
        patches.append(to_patches(torch.from_numpy(frames)[None]).flatten(0, 3))
    return torch.cat(patches)
