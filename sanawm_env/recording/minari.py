"""A dataset as a Minari dataset, for offline reinforcement learning: a picture and a pose per step, not 24 frames.

An observation is a Dict: rgb (H, W, 3) uint8, the start image and then the last frame of each chunk, decoded from the
video; pose (7,) float32 relative to frame 0, position in metres and quaternion x, y, z, w. Actions, rewards,
terminations and truncations are the environment's own, one per step.
"""

import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec

from sanawm_env.camera.presets import WALKING_TURNS
from sanawm_env.recording.dataset import Dataset, Row
from sanawm_env.recording.episode import Episode
from sanawm_env.recording.exports import Look, appearing, camera_path, check_vacant, pose_vectors, survey
from sanawm_env.recording.rollout import VIDEO
from sanawm_env.recording.video import iterate_video


def export_minari(
    dataset: Dataset, dataset_id: str, out: str | os.PathLike, *, data_format: str = "hdf5", jpeg: bool = False
) -> Iterator[Row]:
    """Write all finished episodes of a dataset to the Minari dataset `dataset_id`, such as "sanawm/nano-v0", under
    `out`; the rows of episodes as they are written.

    Nothing is written elsewhere: `minari.load_dataset(dataset_id)` finds it with MINARI_DATASETS_PATH set to `out`,
    `minari.MinariDataset(out / dataset_id / "data")` without. Its folder has another name until the iterator has come
    to its end. One episode's pictures are held at a time. data_format: "hdf5", "arrow" or "parquet". jpeg: pictures
    lose what JPEG loses, and take a tenth; else they are kept as decoded.
    Actions are in the dtype of the action space, and twists cut to it, as the environment takes them. If one setting
    of the environment made all episodes, `recover_environment()` makes it.

    Raises, at once: ImportError without Minari, ValueError for an id that is none or an unknown format, for no episodes
    or ones whose videos differ, FileExistsError where the dataset is already. While it runs: FileNotFoundError or
    ValueError for an episode whose files are gone or do not agree, OSError for a full disk.
    """
    minari = _minari()
    known = minari.dataset._storages.get_storage_keys()
    if data_format not in known:
        raise ValueError(f"data_format must be one of {', '.join(known)}, got {data_format!r}.")
    try:
        minari.dataset.minari_dataset.parse_dataset_id(dataset_id)
    except (ValueError, TypeError):
        raise ValueError(
            f'An id of a Minari dataset is like "sanawm/nano-v0", with a version at the end, got {dataset_id!r}.'
        ) from None
    rows, look = survey(dataset)
    folder = Path(out) / dataset_id
    check_vacant(folder)
    return _export(dataset, rows, look, folder, dataset_id, {"data_format": data_format, "jpeg_encoding": jpeg})


def _export(
    dataset: Dataset, rows: list[Row], look: Look, folder: Path, dataset_id: str, options: dict[str, Any]
) -> Iterator[Row]:
    minari = _minari()
    with appearing(folder) as partial:
        storage = minari.dataset.minari_storage.MinariStorage.new(
            partial / "data",
            observation_space=observation_space(look.height, look.width),
            action_space=action_space(dataset),
            env_spec=_environment(dataset),
            **options,
        )
        storage.update_metadata(
            {
                "dataset_id": dataset_id,
                "minari_version": minari.__version__,
                "description": f"Episodes imagined by the world {dataset.header.get('world')} (sanawm-env).",
            }
        )
        for number, row in enumerate(rows):
            episode = Episode.open(dataset.folder / row.episode)
            storage.update_episodes([_buffer(episode, storage.action_space)])
            facts = {name: str(episode.meta.get(name, "")) for name in ("id", "camera", "source", "prompt")}
            storage.update_episode_metadata([{f"sanawm_{name}": fact for name, fact in facts.items()}], [number])
            yield row
    for parent in folder.relative_to(folder.parents[dataset_id.count("/")]).parents[:-1]:
        space = folder.parents[dataset_id.count("/")] / parent / minari.namespace.NAMESPACE_METADATA_FILENAME
        if not space.exists():
            space.write_text("{}", encoding="utf-8")


def observation_space(height: int, width: int) -> spaces.Dict:
    """Of every dataset that is exported; height and width of the video."""
    bound = np.array([np.inf] * 3 + [1] * 4, np.float32)
    picture = spaces.Box(0, 255, (height, width, 3), np.uint8)
    return spaces.Dict(rgb=picture, pose=spaces.Box(-bound, bound, dtype=np.float32))


def action_space(dataset: Dataset) -> spaces.Space:
    """Of the environment a dataset was collected in, by its action mode. ValueError for one that is not known."""
    mode, frames = dataset.header["action_mode"], dataset.header["chunk_frames"]
    if mode == "twist":
        return spaces.Box(-1, 1, (6,), np.float32)
    if mode == "keys":
        return spaces.MultiBinary(8)
    if mode == "discrete":
        return spaces.Discrete(len(WALKING_TURNS))
    if mode == "poses":
        return spaces.Box(-np.inf, np.inf, (frames, 4, 4), np.float32)
    raise ValueError(f"{dataset.folder} has the unknown action_mode {mode!r}.")


def _buffer(episode: Episode, space: spaces.Space) -> Any:
    """The episode as Minari's EpisodeBuffer."""
    from minari.data_collector.episode_buffer import EpisodeBuffer

    path, arrays = camera_path(episode), episode.arrays()
    stride, rest = divmod(len(path.c2w) - 1, episode.chunks)
    actions = arrays["actions"].astype(space.dtype)
    if isinstance(space, spaces.Box):
        actions = actions.clip(space.low, space.high)
    frames = list(islice(iterate_video(episode.folder / VIDEO), 0, None, stride or 1))
    if rest or len(frames) != episode.chunks + 1 or actions.shape[1:] != space.shape:
        raise ValueError(
            f"{episode.folder} has {len(path.c2w)} poses, {len(frames)} pictures of steps and actions "
            f"{arrays['actions'].shape}: they do not go together, or with actions of shape {space.shape}."
        )
    return EpisodeBuffer(
        seed=episode.meta["seed"],
        observations={"rgb": np.stack(frames), "pose": pose_vectors(path.c2w[::stride])},
        actions=actions,
        rewards=arrays["rewards"],
        terminations=arrays["terminated"],
        truncations=arrays["truncated"],
    )


def _environment(dataset: Dataset) -> EnvSpec | None:
    """How gymnasium makes the environment of all episodes; None if they are not of one."""
    first = None
    for episode in dataset.episodes():
        made = {"world": episode.meta["world"], **episode.meta["env"]}
        if first not in (None, made):
            return None
        first = made
    return EnvSpec("SanaWM/Explore-v0", entry_point="sanawm_env.envs.env:SanaWMEnv", kwargs=first)


def _minari() -> ModuleType:
    try:
        import h5py  # noqa: F401
        import minari
        import minari.dataset._storages
        import minari.namespace
    except ImportError as error:
        raise ImportError(f'Exporting to Minari needs it: pip install "sanawm-env[data]" ({error}).') from error
    return minari
