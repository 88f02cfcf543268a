"""Training data of the nano world: walks through places, rendered, encoded and stored in shards.

A shard is a safetensors file whose content depends only on (seed, role, shard number) and the settings in its header,
so a killed generation continues where it stopped. Roles separate the random streams of training, validation and
evaluation: the role is part of every seed, also of the seeds of unknown layouts.
"""

import hashlib
import json
import multiprocessing
from collections.abc import Callable, Collection, Generator, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field
from rich.progress import Progress
from safetensors import safe_open
from scipy.spatial.transform import Rotation
from torch import Tensor

from sanawm_env.engines.rooms.places import PLACES, ROLES, place, random_place, room_seed
from sanawm_env.engines.rooms.raycast import HEIGHT, WIDTH, Place, intrinsics, render
from sanawm_env.engines.rooms.walks import (
    CHUNK,
    CLEARANCE,
    EYE_HIGH,
    EYE_LOW,
    PITCH_LIMIT,
    ROLL_LIMIT,
    clearance,
    sample_path,
    sample_start,
)  # fmt: skip
from sanawm_env.engines.sanawm.codec.patch_pca import SPACE_STRIDE, PatchPCACodec, to_patches
from sanawm_env.engines.sanawm.reprojection import CELLS
from sanawm_env.system.files import check_choice, visible
from sanawm_env.system.saving import replacing_folder
from sanawm_env.system.settings import check_fields, differences
from sanawm_env.system.signals import of_a_pool
from sanawm_env.training import torch_render
from sanawm_env.world.images import save_start
from sanawm_env.world.state import save_whole

MAX_SHARD_CHUNKS, MAX_SEED = 20_000, 2**40  # what is drawn from a seed fits 63 bits
STARTS, MOST_STARTS = "starts", 16  # of one's own clips, pictures to start from

Side = Annotated[int, Field(ge=1, le=4096)]
Seed = Annotated[int, Field(ge=0, le=MAX_SEED)]
Share = Annotated[float, Field(ge=0, le=1)]


def random_stream(role: str, seed: int, index: int) -> np.random.Generator:
    """The generator of an item. Different roles never share a stream.

    Args:
        role: "train", "validation" or "evaluate".
        seed: of the data.
        index: of the item.

    Raises:
        ValueError: for an unknown role.
    """
    check_choice("role", role, ROLES)
    return np.random.default_rng([ROLES[role], seed, index])


def sample_clip(
    role: str,
    rng: np.random.Generator,
    num_frames: int,
    unknown_fraction: float,
    size: tuple[int, int] = (HEIGHT, WIDTH),
) -> tuple[np.ndarray, np.ndarray, int]:
    """A rendered `sample_walk`: frames (F, H, W, 3) uint8 of `size` (H, W), poses (F, 4, 4), index of the place."""
    here, c2w, index = sample_walk(role, rng, num_frames, unknown_fraction)
    return render(here, c2w, intrinsics(*size), *size, depth=False)[0], c2w, index


def sample_walk(
    role: str, rng: np.random.Generator, num_frames: int, unknown_fraction: float
) -> tuple[Place, np.ndarray, int]:
    """A walk.

    Args:
        role: see `random_stream`.
        rng: that it is drawn from.
        num_frames: F.
        unknown_fraction: probability of a random room in place of a known place.

    Returns:
        The place, c2w (F, 4, 4) float64 in its frame, and its index in PLACES, -1 for a random room.
    """
    if rng.random() < unknown_fraction:
        index, here = -1, random_place(room_seed(role, int(rng.integers(1 << 40))))
    else:
        index = int(rng.integers(len(PLACES)))
        here = place(list(PLACES)[index])
    return here, sample_path(here, sample_start(here, rng), rng, num_frames), index


@dataclass(frozen=True)
class ClipsConfig:
    """Which clips are rendered.

    Attributes:
        clips: number of walks.
        chunks: of each; a walk has 1 + 24 chunks frames.
        unknown_fraction: share of walks in random rooms.
        shard_clips: walks in a shard.
        seed: of the walks.
        height, width: of frames, in pixels.
        pictures: whether to store the frame before each chunk with its depth, for worlds that reproject frames.

    Raises:
        ValueError: for values out of range.
    """

    clips: Annotated[int, Field(ge=1, le=10**7)] = 4000
    chunks: Annotated[int, Field(ge=1, le=1000)] = 8
    unknown_fraction: Share = 0.4
    shard_clips: Annotated[int, Field(ge=1, le=10**5)] = 50
    seed: Seed = 0
    height: Side = HEIGHT
    width: Side = WIDTH
    pictures: bool = False

    def __post_init__(self):
        check_fields(self)
        if self.shard_clips * self.chunks > MAX_SHARD_CHUNKS:  # a shard is held in memory
            raise ValueError(f"shard_clips times chunks must be at most {MAX_SHARD_CHUNKS:,}")


def generate(
    out: Path | str,
    codec: PatchPCACodec,
    config: ClipsConfig,
    role: str = "train",
    workers: int = 1,
    device: str = "cpu",
) -> None:
    """Write walks to a folder, in shards that are either absent or complete. Existing shards are skipped.

    A shard holds latents (N, C, 1 + 3 chunks, h, w) float16; images (N, chunks, C, h, w) float16, the latents of the
    frame before each chunk, encoded as a start image; c2w (N, F, 4, 4) float32 in the place frame, metres; intrinsics
    (N, 4) float32, pixels; and place (N,) int64, index in PLACES, -1 for a random room. With `pictures` it also holds
    those frames (N, chunks, H, W, 3) uint8 and their depth (N, chunks, 8 h, 8 w) float16, metres along z.

    Args:
        out: the folder.
        codec: that encodes.
        config: of the clips.
        role: see `random_stream`.
        workers: processes.
        device: that renders and encodes. On another device than "cpu" the workers only furnish rooms and walk.

    Raises:
        ValueError: where the folder holds clips of other settings.
    """
    out = Path(out)
    random_stream(role, config.seed, 0)  # a wrong role must not leave a folder behind
    out.mkdir(parents=True, exist_ok=True)
    header = _header(out, config, {"role": role, "codec": codec_hash(codec)}, "clips")
    jobs = []
    for shard, first in enumerate(range(0, config.clips, config.shard_clips)):
        path, count = out / f"shard_{shard:05d}.safetensors", min(config.shard_clips, config.clips - first)
        if not (path.exists() and _clips_in(path) >= count):
            jobs.append((path, shard, count, role, config, codec, header))
    with Progress() as progress:
        task = progress.add_task(f"clips for {role}", total=sum(job[2] for job in jobs))
        if workers == 1 or device == "cpu":
            with closing(_worked(_make_shard, [(*job, device) for job in jobs], workers)) as made:
                for _, count in made:
                    progress.advance(task, count)
            return
        with closing(_worked(_walks, [job[1:5] for job in jobs], workers)) as drawn:
            for i, walks in drawn:
                progress.advance(task, _make_shard(*jobs[i], device, walks))


def _header(out: Path, config: "ClipsConfig | ViewsConfig", more: dict[str, Any], count: str) -> dict[str, str]:
    """Of shards: all settings but how many there are, as more of them can follow; ValueError for shards of others."""
    settings = {name: value for name, value in asdict(config).items() if name != count} | more
    if _shards(out) and (kept := made_with(out)) != settings:
        raise ValueError(f"{out} was made with other settings: {differences(kept, settings)}. Use another folder.")
    return {"settings": json.dumps(settings)}


def _worked(function: Callable[..., Any], jobs: Sequence[tuple], workers: int) -> Generator[tuple[int, Any]]:
    """Number and result of each job, as jobs finish, from `workers` processes. Closing it waits for those under way
    and begins no others."""
    if workers == 1:
        yield from ((i, function(*job)) for i, job in enumerate(jobs))
        return
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _begin_worker) as pool:
        numbers = {pool.submit(function, *job): i for i, job in enumerate(jobs)}
        try:
            for done in as_completed(numbers):
                yield numbers.pop(done), done.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


@dataclass(frozen=True)
class ViewsConfig:
    """Single images with depth: a depth network needs more of them than walks show.

    Attributes:
        rooms: number of random rooms.
        views: of each room, half of them from where walks begin, the others from anywhere that walks lead to.
        shard_rooms: rooms in a shard.
        seed: of the rooms.
        height, width: of the images, in pixels.
        stride: pixels of a latent cell.

    Raises:
        ValueError: for values out of range.
    """

    rooms: Annotated[int, Field(ge=1, le=10**7)] = 2000
    views: Annotated[int, Field(ge=1, le=1000)] = 16
    shard_rooms: Annotated[int, Field(ge=1, le=10**4)] = 25
    seed: Seed = 0
    height: Side = HEIGHT
    width: Side = WIDTH
    stride: int = SPACE_STRIDE  # of the codec

    def __post_init__(self):
        check_fields(self)


def generate_views(out: Path | str, config: ViewsConfig, role: str = "train", workers: int = 1) -> None:
    """Write views to a folder, in shards that are either absent or complete. Existing shards are skipped.

    A shard holds pictures (N, H, W, 3) uint8, their depth (N, 8 h, 8 w) float16, metres along z, of h x w latent cells,
    and intrinsics (N, 4) float32, pixels.

    Args:
        out: the folder.
        config: of the views.
        role: see `random_stream`.
        workers: processes.

    Raises:
        ValueError: where the folder holds views of other settings.
    """
    out = Path(out)
    random_stream(role, config.seed, 0)
    out.mkdir(parents=True, exist_ok=True)
    header = _header(out, config, {"role": role}, "rooms")
    shards = -(-config.rooms // config.shard_rooms)
    paths = [out / f"shard_{shard:05d}.safetensors" for shard in range(shards)]
    jobs = [(path, shard, role, config, header) for shard, path in enumerate(paths) if not path.exists()]
    with Progress() as progress:
        task = progress.add_task(f"views for {role}", total=len(jobs) * config.shard_rooms * config.views)
        with closing(_worked(_make_views, jobs, workers)) as made:
            for _, count in made:
                progress.advance(task, count)


def _make_views(path: Path, shard: int, role: str, config: ViewsConfig, header: dict) -> int:
    rng, size = random_stream(role, config.seed, shard), (config.height, config.width)
    cells = CELLS * config.height // config.stride, CELLS * config.width // config.stride
    pinhole, pictures, depths = intrinsics(*size), [], []
    for _ in range(config.shard_rooms):
        here = random_place(room_seed(role, int(rng.integers(1 << 40))))
        c2w = np.stack([sample_start(here, rng) if i % 2 == 0 else _anywhere(here, rng) for i in range(config.views)])
        pictures.append(render(here, c2w, pinhole, *size, depth=False)[0])
        depths.append(render(here, c2w, intrinsics(*cells), *cells, supersample=1)[1])
    pictures, depths = np.concatenate(pictures), np.concatenate(depths).astype(np.float16)
    pinholes = torch.from_numpy(pinhole).float().repeat(len(pictures), 1)
    parts = {"pictures": torch.from_numpy(pictures), "depth": torch.from_numpy(depths), "intrinsics": pinholes}
    save_whole(parts, path, header)
    return len(pictures)


def _anywhere(place: Place, rng: np.random.Generator) -> np.ndarray:
    """A camera (4, 4) float64 with a position and rotation as on walks, which begin level."""
    while True:
        reach = place.half[0, [0, 2]] - CLEARANCE
        x, z = rng.uniform(-reach, reach)
        eye = np.clip(rng.normal(1.5, 0.3), EYE_LOW, EYE_HIGH)
        if clearance(place, np.array([x, -eye, z])) >= CLEARANCE:
            break
    pitch, roll = np.clip(rng.normal(0, (0.25, 0.1)), (-PITCH_LIMIT, -ROLL_LIMIT), (PITCH_LIMIT, ROLL_LIMIT))
    pose = np.eye(4)
    pose[:3, :3] = Rotation.from_euler("YXZ", (rng.uniform(-np.pi, np.pi), pitch, roll)).as_matrix()
    pose[:3, 3] = x, -eye, z
    return pose


def _begin_worker() -> None:
    torch.set_num_threads(1)
    of_a_pool()


@dataclass(frozen=True, eq=False)
class Footage:
    """A clip of your own.

    Attributes:
        frames: (F, 64, 96, 3) uint8, 16 a second.
        c2w: (F, 4, 4), metres.
        intrinsics: (4,) fx, fy, cx, cy in pixels.
    """

    frames: np.ndarray
    c2w: np.ndarray
    intrinsics: np.ndarray


def store(out: Path | str, codec: PatchPCACodec, footage: Iterable[Footage], config: ClipsConfig) -> None:
    """Cut footage into pieces of 1 + 24 chunks frames and write them as shards like those of `generate`, together or
    not at all. The first frames of some clips go to the folder `starts`.

    Args:
        out: the folder.
        codec: that encodes.
        footage: the clips.
        config: chunks of a piece, seed, and whether to store the frame before each chunk; its depth is not known.

    Raises:
        ValueError: where no clip is long enough.
    """
    out, size = Path(out), 1 + CHUNK * config.chunks
    pieces, starts = [], []
    for clip in footage:
        if len(starts) < MOST_STARTS:
            starts.append(clip.frames[0])
        for first in range(0, len(clip.frames) - size + 1, size - 1):
            part = slice(first, first + size)
            c2w, pinhole = torch.from_numpy(clip.c2w[part]).float(), torch.from_numpy(clip.intrinsics).float()
            frames = torch.from_numpy(clip.frames[part])
            piece = _piece(codec, frames, c2w, pinhole, -1)
            if config.pictures:
                piece["pictures"] = frames[:-1:CHUNK].clone()
            pieces.append(piece)
    if not pieces:
        raise ValueError(f"No clip has the {size} frames of {config.chunks} chunks: record longer ones, or set chunks.")
    header = {"settings": json.dumps({"footage": len(pieces), **asdict(config), "codec": codec_hash(codec)})}
    with replacing_folder(out, anew=True) as part:
        for shard, first in enumerate(range(0, len(pieces), config.shard_clips)):
            _write(pieces[first : first + config.shard_clips], part / f"shard_{shard:05d}.safetensors", header)
        (part / STARTS).mkdir()
        for number, picture in enumerate(starts, start=1):
            save_start(picture, None, part / STARTS / f"clip_{number:02d}.png")


def _piece(codec: PatchPCACodec, frames: Tensor, c2w: Tensor, intrinsics: Tensor, place: int) -> dict[str, Tensor]:
    latents, images = encode(codec, frames)
    return {"latents": latents, "images": images, "c2w": c2w, "intrinsics": intrinsics, "place": torch.tensor(place)}


def _write(pieces: list[dict[str, Tensor]], path: Path, header: dict) -> None:
    save_whole({name: torch.stack([piece[name] for piece in pieces]) for name in pieces[0]}, path, header)


def _walks(shard: int, count: int, role: str, config: ClipsConfig) -> list[tuple[Place, np.ndarray, int]]:
    """The walks of one shard, which depend on the arguments alone."""
    rng, frames = random_stream(role, config.seed, shard), 1 + CHUNK * config.chunks
    return [sample_walk(role, rng, frames, config.unknown_fraction) for _ in range(count)]


def _make_shard(
    path: Path, shard: int, count: int, role: str, config: ClipsConfig, codec: PatchPCACodec, header: dict,
    device: str = "cpu", walks: list[tuple[Place, np.ndarray, int]] | None = None,
) -> int:  # fmt: skip
    """Render and encode the walks of a shard, and write it. Returns their number."""
    size, pieces = (config.height, config.width), []
    cells = CELLS * config.height // codec.stride, CELLS * config.width // codec.stride
    pinhole, codec = intrinsics(*size), codec.to(device)
    for here, c2w, index in _walks(shard, count, role, config) if walks is None else walks:
        begins = c2w[:-1:CHUNK]
        if device == "cpu":
            frames = torch.from_numpy(render(here, c2w, pinhole, *size, depth=False)[0])
            depth = render(here, begins, intrinsics(*cells), *cells, supersample=1)[1] if config.pictures else None
        else:
            frames = torch_render.render(here, c2w, pinhole, *size, 2, torch.device(device))
            depth = torch_render.depth(here, begins, intrinsics(*cells), *cells, torch.device(device)).cpu().numpy()
        piece = _piece(codec, frames, torch.from_numpy(c2w).float(), torch.from_numpy(pinhole).float(), index)
        if config.pictures:
            piece |= {"pictures": frames[:-1:CHUNK].cpu().clone(), "depth": torch.from_numpy(depth).half()}
        pieces.append(piece)
    _write(pieces, path, header)
    return count


def encode(codec: PatchPCACodec, frames: Tensor) -> tuple[Tensor, Tensor]:
    """Encode a clip.

    Args:
        codec: on its device.
        frames: (1 + 24 chunks, H, W, 3) uint8 on the codec's device.

    Returns:
        Latents (C, 1 + 3 chunks, h, w), and latents (chunks, C, h, w) of the frames 0, 24, ... as start images; both
        float16, on the CPU.
    """
    images = codec.encode(frames[:-1:CHUNK, None])[:, :, 0]
    return codec.encode(frames[None])[0].half().cpu(), images.half().cpu()


def codec_hash(codec: PatchPCACodec) -> str:
    """A hash that tells codecs apart: the latents of one codec mean nothing to another."""
    parts = (codec.mean, codec.components.half(), codec.scale)
    return hashlib.sha256(b"".join(part.cpu().numpy().tobytes() for part in parts)).hexdigest()[:16]


def made_with(folder: Path | str) -> dict:
    """The settings that the shards of a folder were made with.

    Raises:
        FileNotFoundError: where there are no shards.
    """
    with safe_open(_shards_or_raise(folder)[0], "pt") as file:
        return json.loads(file.metadata()["settings"])


def check_codec(folder: Path, codec: PatchPCACodec, pictures: bool = False) -> dict:
    """Settings of the clips of a folder.

    Args:
        folder: of the clips.
        codec: that they must be encoded with.
        pictures: whether they must hold images.

    Raises:
        FileNotFoundError: where there are no shards.
        ValueError: for clips of another codec, or without the images.
    """
    settings = made_with(folder)
    if settings["codec"] != codec_hash(codec):
        raise ValueError(f"The clips in {folder} were encoded with another codec: use that one, or make them again.")
    if pictures and not settings.get("pictures"):
        raise ValueError(f"The clips in {folder} hold no images: make them with pictures=True.")
    return settings


def _clips_in(path: Path) -> int:
    with safe_open(path, "pt") as file:
        return file.get_slice("place").get_shape()[0]


def _shards(folder: Path) -> list[Path]:
    return visible(folder, "shard_*.safetensors")


def _shards_or_raise(folder: Path | str) -> list[Path]:
    paths = _shards(Path(folder))
    if not paths:
        raise FileNotFoundError(f"No shards in {folder}: make some with `sanawm train`.")
    return paths


def load(folder: Path | str, names: Collection[str] | None = None) -> dict[str, Tensor]:
    """All complete shards of a folder, stacked; see `generate`.

    Args:
        folder: of the shards.
        names: tensors to read; None for all.

    Raises:
        FileNotFoundError: where there are no shards.
    """
    parts = []
    for path in _shards_or_raise(folder):
        with safe_open(path, "pt") as file:
            parts.append({key: file.get_tensor(key) for key in file.keys() if names is None or key in names})  # noqa: SIM118
    return {key: torch.cat([part[key] for part in parts]) for key in parts[0]}


def patches_of(role: str, seed: int, index: int, frames: int, stride: int, size: tuple, unknown: float) -> Tensor:
    """Patches (N, 24 stride stride) uint8 of a walk, to fit the codec on."""
    shown = sample_clip(role, random_stream(role, seed, index), frames, unknown, size)[0]
    return to_patches(torch.from_numpy(shown)[None], stride).flatten(0, 3)


def sample_frames_for_codec(
    clips: int = 300, seed: int = 0, role: str = "train", num_frames: int = 25, stride: int = SPACE_STRIDE,
    size: tuple[int, int] = (HEIGHT, WIDTH), unknown_fraction: float = 0.2, workers: int = 1,
) -> Tensor:  # fmt: skip
    """Patches of short walks, to fit the codec on.

    Args:
        clips: number of walks.
        seed, role: see `random_stream`.
        num_frames: of a walk.
        stride: pixels of a patch's side.
        size: (height, width) of frames.
        unknown_fraction: share of walks in random rooms.
        workers: processes.

    Returns:
        (N, 24 stride stride) uint8.
    """
    jobs = [(role, seed, index, num_frames, stride, size, unknown_fraction) for index in range(clips)]
    with closing(_worked(patches_of, jobs, workers)) as made:
        patches = dict(made)
    return torch.cat([patches[index] for index in range(clips)])
