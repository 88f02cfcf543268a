"""Export a dataset as a Minari dataset, for offline reinforcement learning: one frame and pose per step, not 24.

An observation is a Dict: rgb (H, W, 3) uint8, the start image and then the last frame of each chunk, decoded from the
video; pose (7,) float32 relative to frame 0, position in metres and quaternion x, y, z, w. Actions, rewards,
terminations and truncations are the environment's, one per step.
"""

import errno
import os
import shutil
from collections.abc import Generator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, cast

import numpy as np
from gymnasium import registry, spaces
from gymnasium.envs.registration import EnvSpec

import sanawm_env  # noqa: F401  registers the ids
from sanawm_env.camera.presets import WALKING_TURNS
from sanawm_env.envs.config import EnvConfig
from sanawm_env.envs.observations import Observer
from sanawm_env.recording.dataset import Dataset, Row, leave_out
from sanawm_env.recording.episode import RecordedEpisode
from sanawm_env.recording.exports import (
    Look,
    camera_path,
    check_some,
    check_vacant,
    pose_vectors,
    survey,
)
from sanawm_env.recording.rollout import VIDEO
from sanawm_env.recording.video import iterate_video
from sanawm_env.simulation.tasks import Task
from sanawm_env.system.files import brief, check_choice
from sanawm_env.system.packages import needing
from sanawm_env.system.saving import replacing_folder, write_text
from sanawm_env.world.folders import config_of

_SPARE_BYTES = 16 * 2**20  # left on the disk


def export_minari(dataset: Dataset, dataset_id: str, out: str | os.PathLike, *, jpeg: bool = False) -> Generator[Row]:
    """Write all finished episodes of a dataset to a Minari dataset.

    Checks are made by the call itself, the work by the iterator that it returns. The dataset is the folder
    `out / dataset_id`, which has another name until the iterator ends. `minari.load_dataset(dataset_id)` finds it if
    MINARI_DATASETS_PATH is `out`; `minari.MinariDataset(out / dataset_id / "data")` reads it without.

    Actions have the dtype of the action space, and twists are clipped to it, as the environment does. If all episodes
    are of one environment (their lengths may differ), `recover_environment()` makes it, with observations of this kind
    and size; its id is that of its task. Goals are not part of the dataset. The frames of one episode are in memory at
    a time. Damaged episodes are left out, which is logged.

    Args:
        dataset: to export.
        dataset_id: such as "sanawm/nano-v0".
        out: folder of Minari datasets.
        jpeg: whether frames are stored as JPEG: smaller, and not quite as decoded.

    Yields:
        The row of each episode after it is written.

    Raises:
        ImportError: without Minari.
        ValueError: for another form of id, an unknown action mode, a dataset without undamaged episodes, or videos of
            different formats.
        FileExistsError: where the Minari dataset exists.
        OSError: for example when the disk is full.
    """
    with needing("Exporting to Minari needs minari and h5py", "data"):
        import h5py  # noqa: F401
        import minari  # noqa: F401
        from minari.dataset.minari_dataset import parse_dataset_id

    try:
        parse_dataset_id(dataset_id)
    except (ValueError, TypeError):
        raise ValueError(
            f'The id of a Minari dataset must be like "sanawm/nano-v0", with a version, got {brief(dataset_id)}.'
        ) from None
    rows, look = survey(dataset)
    check_vacant(Path(out) / dataset_id, dataset)
    return _export(dataset, rows, look, Path(out).absolute(), dataset_id, jpeg)  # Minari joins relative ones twice


def _export(dataset: Dataset, rows: list[Row], look: Look, out: Path, dataset_id: str, jpeg: bool) -> Generator[Row]:
    from minari import __version__
    from minari.dataset.minari_storage import MinariStorage
    from minari.namespace import NAMESPACE_METADATA_FILENAME

    made, number = _config(dataset, rows), 0
    observed, actions = _observed(made, look), action_space(dataset)
    with replacing_folder(out / dataset_id, alone=True, anew=True) as folder:
        storage = MinariStorage.new(
            folder / "data",
            observation_space=observed,
            action_space=actions,
            env_spec=_environment(made, look),
            jpeg_encoding=jpeg,
        )
        about = f"Episodes predicted by the world {dataset.header.get('world')} (sanawm-env)."
        storage.update_metadata({"dataset_id": dataset_id, "minari_version": __version__, "description": about})
        for row in rows:
            try:
                episode = RecordedEpisode.open(dataset.folder / row.episode)
                buffer = _buffer(episode, cast(spaces.Box, observed["pose"]), actions)
            except (OSError, ValueError) as error:
                leave_out(row, error)
                continue
            # HDF5 does not survive a full disk
            if shutil.disk_usage(folder).free < buffer.observations["rgb"].nbytes + _SPARE_BYTES:
                raise OSError(errno.ENOSPC, "No space left on device")
            storage.update_episodes([buffer])
            facts = {f"sanawm_{name}": str(episode.meta.get(name, "")) for name in ("id", "camera", "source", "prompt")}
            storage.update_episode_metadata([facts], [number])
            number += 1
            yield row
        check_some(dataset, range(number))
    for namespace in list(Path(dataset_id).parents)[:-1]:  # Minari's listings look only into folders that hold this
        about = out / namespace / NAMESPACE_METADATA_FILENAME
        if not about.exists():
            write_text(about, "{}")


def observation_space(height: int, width: int) -> spaces.Dict:
    """The observation space of a dataset whose environment is not known; positions are unbounded.

    Args:
        height: of the video, in pixels.
        width: of the video, in pixels.
    """
    bound = np.array([np.inf] * 3 + [1] * 4, np.float32)
    picture = spaces.Box(0, 255, (height, width, 3), np.uint8)
    return spaces.Dict(rgb=picture, pose=spaces.Box(-bound, bound, dtype=np.float32))


def action_space(dataset: Dataset) -> spaces.Space:
    """The action space of a dataset, by its action mode.

    Raises:
        ValueError: for an unknown action mode.
    """
    mode, frames = dataset.header["action_mode"], dataset.header["chunk_frames"]
    known = {
        "twist": spaces.Box(-1, 1, (6,), np.float32),
        "keys": spaces.MultiBinary(8),
        "discrete": spaces.Discrete(len(WALKING_TURNS)),
        "poses": spaces.Box(-np.inf, np.inf, (frames, 4, 4), np.float32),
    }
    return known[check_choice(f"action_mode of {dataset.folder}", mode, known)]


def _buffer(episode: RecordedEpisode, poses: spaces.Box, space: spaces.Space) -> Any:
    """The episode as Minari's EpisodeBuffer."""
    from minari.data_collector.episode_buffer import EpisodeBuffer

    (c2w, _, chunk), arrays = camera_path(episode), episode.arrays()
    actions = arrays["actions"].astype(space.dtype)
    if actions.shape[1:] != space.shape:
        raise ValueError(f"{episode.folder} has actions of shape {actions.shape[1:]}, its space has {space.shape}.")
    if isinstance(space, spaces.Box):
        actions = actions.clip(space.low, space.high)
    frames = list(islice(iterate_video(episode.folder / VIDEO), 0, None, chunk))
    if len(frames) != episode.chunks + 1:
        raise ValueError(f"The video of {episode.folder} shows the end of {len(frames) - 1} of {episode.chunks} steps.")
    columns: dict[str, Any] = {  # Minari names lists, and takes arrays
        "observations": {"rgb": np.stack(frames), "pose": pose_vectors(c2w[::chunk]).clip(poses.low, poses.high)},
        "actions": actions,
        "rewards": arrays["rewards"],
        "terminations": arrays["terminated"],
        "truncations": arrays["truncated"],
        "infos": {},  # without, Minari 0.5.4 cannot print the episode
    }
    return EpisodeBuffer(seed=episode.meta["seed"], **columns)


def _config(dataset: Dataset, rows: list[Row]) -> EnvConfig | None:
    """The config of the environment of all episodes, as long as the longest; None if there are several."""
    try:
        configs = [RecordedEpisode.open(dataset.folder / row.episode).config for row in rows]
    except ValueError:
        return None
    longest = max(config.max_episode_chunks for config in configs)  # collectors fit it to the camera's path
    shared, *others = (replace(config, max_episode_chunks=longest, device=EnvConfig.device) for config in configs)
    return None if any(config != shared for config in others) else shared


def _environment(config: EnvConfig | None, look: Look) -> EnvSpec | None:
    """The spec of the environment, with observations like those of the dataset."""
    if config is None:
        return None
    ids = [spec for spec in registry.values() if spec.namespace == "SanaWM" and spec.kwargs == {"task": config.task}]
    config = replace(config, obs_mode="dict", obs_size=(look.height, look.width))
    return replace(ids[0], kwargs=config.to_plain()) if ids else None


def _observed(made: EnvConfig | None, look: Look) -> spaces.Dict:
    """The observation space of the environment without its goal; unbounded where its world is not on this machine."""
    boundless = observation_space(look.height, look.width)
    if made is None:
        return boundless
    try:
        config = config_of(cast(str, made.world))
    except (OSError, ValueError):
        return boundless
    size, workspace = (look.height, look.width), made.workspace or config.workspace
    return cast(spaces.Dict, Observer("dict", config, size, workspace, Task()).space)
