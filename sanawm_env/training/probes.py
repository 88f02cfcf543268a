"""What frames alone do not say: does a world obey the camera, come back, stay itself, predict more than one future?

Each probe is a function of a world of known places and a seed; walks are those of `evaluate`, drawn from the stream
("evaluate", seed, i) unless another role is named, so nothing here was ever trained on.
"""

from dataclasses import dataclass, replace
from typing import cast

import numpy as np
import torch
from rich.progress import track as progress

from sanawm_env.camera.trajectory import relative_to_first
from sanawm_env.engines.rooms.raycast import intrinsics, render
from sanawm_env.engines.sanawm.codec.patch_pca import PatchPCACodec
from sanawm_env.engines.sanawm.engine import SanaEngine, SanaMemory
from sanawm_env.engines.sanawm.network.ablation import TokenState
from sanawm_env.engines.sanawm.network.state import GDNState, NetworkState, WindowState
from sanawm_env.metrics.image import ssim
from sanawm_env.metrics.pose import PoseErrors
from sanawm_env.metrics.pose import evaluate as pose_errors
from sanawm_env.training.align import track
from sanawm_env.training.truth import Walk, decibels, draw_walk, enlargement, gradient, pooled_psnr
from sanawm_env.training.warps import visible_in_first
from sanawm_env.world.anchor import Anchor
from sanawm_env.world.state import WorldState
from sanawm_env.world.world import World

POSE_INTERVAL = 4  # frames, as in SANA-WM-Bench
TRACKED = 2  # frames from one estimate to the next: every fourth alone loses fast turns


# ----------------------------------------------------------------------------------------------- following the camera


@dataclass(frozen=True)
class CameraErrors:
    """Means over scenes of RotErr (degrees), TransErr (metres) and CamMC, camera.md 7.2, and medians beside them.

    predicted: of predicted frames. truth: of rendered frames, the estimator's own error. frozen: of a camera that
    never moves.
    """

    predicted: dict[str, float]
    truth: dict[str, float]
    frozen: dict[str, float]
    scenes: int


def camera_errors(world: World, scenes: int, seed: int, chunks: int, role: str = "evaluate") -> CameraErrors:
    """Recover the camera of the generated frames from their pixels (`align.track`, at 64 x 96) and compare every fourth
    pose."""
    found: dict[str, list[PoseErrors]] = {"predicted": [], "truth": [], "frozen": []}
    height, width = world.config.height, world.config.width
    times = enlargement(height, width)
    size = height // times, width // times
    for i in progress(range(scenes), "poses from pixels", transient=True):
        walk = draw_walk(world.config, seed, i, 1 + chunks * world.config.chunk_frames, role=role)
        sampled = walk.c2w[::TRACKED]
        real, _ = render(walk.place, sampled[1:], intrinsics(*size), *size, depth=False)
        made = roll(world, [walk], [walk.c2w])[0][TRACKED - 1 :: TRACKED]
        frozen = np.repeat(sampled[:1], len(sampled), axis=0)
        for name, poses in (
            ("predicted", track(walk.place, made, walk.c2w[0], walk.known)),
            ("truth", track(walk.place, real, walk.c2w[0], walk.known)),
            ("frozen", frozen[1:]),
        ):
            compared = np.concatenate((sampled[:1], poses))[:: POSE_INTERVAL // TRACKED]
            found[name].append(pose_errors(walk.c2w, compared, POSE_INTERVAL))
    return CameraErrors(**{name: _summary(errors) for name, errors in found.items()}, scenes=scenes)


def _summary(errors: list[PoseErrors]) -> dict[str, float]:
    summary = {}
    for field in ("rot_err_deg", "trans_err", "cam_mc", "scale"):
        values = [getattr(e, field) for e in errors]
        summary |= {field: float(np.mean(values)), f"{field}_median": float(np.median(values))}
    return summary


# --------------------------------------------------------------------------------------------------- coming back, drift


@dataclass(frozen=True)
class Closure:
    """Out for `chunks`, and the same way back: likeness of the last frame to the first, in predicted frames and, as its
    upper bound, of the codec's reconstruction of the first."""

    chunks: int
    psnr: float
    ssim: float
    codec_psnr: float


def linear_codec(world: World) -> PatchPCACodec:
    """The codec of a world of ours."""
    return cast(PatchPCACodec, cast(SanaEngine, world.engine).codec)


def loop_closure(world: World, scenes: int, seed: int, longest: int = 4, role: str = "evaluate") -> tuple[Closure, ...]:
    """Walks out and back on the same path, for several lengths: the last frame against the first."""
    results = []
    size = world.config.chunk_frames
    walks = [draw_walk(world.config, seed, i, 1 + longest * size, role=role) for i in range(scenes)]
    firsts = [walk.first_frame(world.config) for walk in walks]
    codec = linear_codec(world)
    for chunks in progress(range(1, longest + 1), "out and back", transient=True):
        paths = [np.concatenate((w.c2w[: chunks * size + 1], w.c2w[: chunks * size][::-1])) for w in walks]
        lasts = [frames[-1] for frames in roll(world, walks, paths)]
        coded = [codec.decode(codec.encode(torch.from_numpy(f)[None, None]), first=True)[0, 0].numpy() for f in firsts]
        results.append(
            Closure(
                2 * chunks,
                pooled_psnr(np.stack(lasts), np.stack(firsts)),
                float(np.mean([ssim(a, b) for a, b in zip(lasts, firsts, strict=True)])),
                pooled_psnr(np.stack(coded), np.stack(firsts)),
            )
        )
    return tuple(results)


@dataclass(frozen=True)
class Drift:
    """One chunk of a long walk, over all scenes: PSNR; brightness, contrast and gradient over those of the truth;
    norms of the recurrent states (mean over blocks, heads and scenes)."""

    chunk: int
    psnr: float
    brightness: float
    contrast: float
    gradient: float
    kv_norm: float
    camera_kv_norm: float


def drift(
    world: World, scenes: int, seed: int, chunks: int = 40, stride: int = 8, role: str = "evaluate"
) -> tuple[Drift, ...]:
    """Walks of `chunks` chunks, looked at every `stride` frames."""
    config, results = world.config, []
    size = config.height, config.width
    n = config.chunk_frames
    walks = [draw_walk(config, seed, i, 1 + chunks * n, role=role) for i in range(scenes)]
    state = _begin(world, walks)
    poses = np.stack([relative_to_first(walk.c2w) for walk in walks])
    for j in progress(range(chunks), "a long walk", transient=True):
        part = slice(1 + j * n, 1 + (j + 1) * n)
        state, clip = world.advance(state, poses[:, part])
        made = clip.frames[:, stride - 1 :: stride].cpu().numpy()
        real = np.stack(
            [
                render(w.place, w.c2w[part][stride - 1 :: stride], intrinsics(*size), *size, depth=False)[0]
                for w in walks
            ]
        )
        kv, camera = _norms(state)
        results.append(
            Drift(
                j + 1, pooled_psnr(made, real), float(made.mean() / real.mean()),
                float(made.std(axis=(2, 3)).mean() / real.std(axis=(2, 3)).mean()), gradient(made) / gradient(real),
                kv, camera,
            )
        )  # fmt: skip
    return tuple(results)


def _norms(state: WorldState) -> tuple[float, float]:
    kv, camera = [], []
    for slot in state.slots:
        for block in slot.memory.network.blocks if slot.memory is not None else ():
            if isinstance(block.mixer, GDNState):
                kv.append(block.mixer.kv.norm(dim=(-2, -1)).mean().item())
                camera.append(block.mixer.camera_kv.norm(dim=(-2, -1)).mean().item())
    return (float(np.mean(kv)), float(np.mean(camera))) if kv else (0.0, 0.0)


# ------------------------------------------------------------------------------------------- determinism and diversity


@dataclass(frozen=True)
class Seeds:
    """Two episodes that differ by nothing, and two that differ by their seed alone.

    repeatable: the same seed gave the same bytes. visible, unseen: PSNR between two seeds, over pixels that the first
    frame shows and others (None where the two are equal). truth_visible, truth_unseen: of either against the truth.
    """

    repeatable: bool
    visible: float | None
    unseen: float | None
    truth_visible: float | None
    truth_unseen: float | None


def seeds(world: World, scenes: int, seed: int, chunks: int, stride: int = 8, role: str = "evaluate") -> Seeds:
    """Two rollouts of one seed, and one of another: whether the first two are equal, and how the others differ."""
    config = world.config
    size = config.height, config.width
    repeatable, sums = True, np.zeros((3, 2, 2))
    for i in progress(range(scenes), "two seeds", transient=True):
        walk = draw_walk(config, seed, i, 1 + chunks * config.chunk_frames, role=role)
        other = replace(walk, seed=walk.seed ^ 1)
        one, again, two = (roll(world, [w], [walk.c2w])[0] for w in (walk, walk, other))
        repeatable = repeatable and one.tobytes() == again.tobytes()
        poses = walk.c2w[1:][stride - 1 :: stride]
        real, distances = render(walk.place, np.concatenate((walk.c2w[:1], poses)), intrinsics(*size), *size)
        depth = cast(np.ndarray, distances)
        relative = relative_to_first(walk.c2w)[1:][stride - 1 :: stride]
        seen = visible_in_first(depth[1:], depth[0], relative, intrinsics(*size))
        one, two = one[stride - 1 :: stride].astype(float), two[stride - 1 :: stride].astype(float)
        for row, error in enumerate(((one - two) ** 2, (one - real[1:]) ** 2, (two - real[1:]) ** 2)):
            for column, mask in enumerate((seen, ~seen)):
                sums[row, column] += error[mask].sum(), 3 * mask.sum()

    apart = (*sums[0], *(sums[1] + sums[2]))  # of each other and of the truth, visible and unseen
    return Seeds(repeatable, *(decibels(error, count) if error else None for error, count in apart))


# ------------------------------------------------------------------------------------------------ forgetting on purpose


def without_recurrence(state: WorldState) -> WorldState:
    """The state with every recurrent GDN matrix at zero; windows and convolution tails stay."""

    def forget(mixer: GDNState | TokenState | WindowState) -> GDNState | TokenState | WindowState:
        if isinstance(mixer, TokenState):
            return replace(mixer, recurrent=torch.zeros_like(mixer.recurrent))
        if not isinstance(mixer, GDNState):
            return mixer
        camera = None if mixer.camera_kv is None else torch.zeros_like(mixer.camera_kv)
        return replace(mixer, kv=torch.zeros_like(mixer.kv), z=torch.zeros_like(mixer.z), camera_kv=camera)

    return _edited(state, forget)


def without_window(state: WorldState) -> WorldState:
    """The state with the pages of every softmax block gone; recurrent matrices and convolution tails stay."""
    return _edited(state, lambda mixer: replace(mixer, pages=()) if isinstance(mixer, WindowState) else mixer)


def _edited(state: WorldState, edit) -> WorldState:
    def edited(memory: SanaMemory | None) -> SanaMemory | None:
        if memory is None:
            return None
        network = cast(NetworkState, memory.network)  # of a world without guidance
        blocks = tuple(replace(block, mixer=edit(block.mixer)) for block in network.blocks)
        return replace(memory, network=replace(network, blocks=blocks))

    return replace(state, slots=tuple(replace(slot, memory=edited(slot.memory)) for slot in state.slots))


# ------------------------------------------------------------------------------------------------------------- driving


def _begin(world: World, walks: list[Walk]) -> WorldState:
    scenes = [
        world.scene(
            walk.first_frame(world.config),
            intrinsics=intrinsics(world.config.height, world.config.width),
            anchor=Anchor(walk.place.name, walk.c2w[0]) if walk.known else None,
        )
        for walk in walks
    ]
    return world.begin(scenes, [walk.seed for walk in walks])


def roll(world: World, walks: list[Walk], paths: list[np.ndarray]) -> list[np.ndarray]:
    """All frames (24 n, H, W, 3) that the world shows from the start of each walk along a path (1 + 24 n, 4, 4)."""
    state, size, seen = _begin(world, walks), world.config.chunk_frames, []
    poses = np.stack([relative_to_first(path) for path in paths])[:, 1:]
    for first in range(0, poses.shape[1], size):
        state, clip = world.advance(state, poses[:, first : first + size])
        seen.append(clip.frames.cpu().numpy())
    return list(np.concatenate(seen, axis=1))
