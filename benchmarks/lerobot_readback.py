"""Read a LeRobot export back with lerobot itself, and hold every value against the dataset it was made from.

lerobot pins what sanawm-env does not (Python 3.12, an older torch's torchvision), so it lives in an environment of its
own; nothing of sanawm-env is imported here:

    python3.12 -m venv lerobot && . lerobot/bin/activate
    pip install torch==2.13.0 && pip install --no-deps lerobot==0.6.1 torchvision
    pip install "datasets>=4.8,<5" "pandas<3" pyarrow "av>=15,<16" jsonlines huggingface_hub draccus safetensors \\
        gymnasium tqdm termcolor einops deepdiff pillow pyyaml
    python benchmarks/lerobot_readback.py EXPORT DATASET          # writes results/lerobot_readback.json

EXPORT is what `export_lerobot` made of the native DATASET. The recorded result is of two shards, and of limits so small
that rows and frames lie in several files and folders:

    sanawm collect benchmarks/lerobot_readback.yaml --out runs/native --part 0/2
    sanawm collect benchmarks/lerobot_readback.yaml --out runs/native --part 1/2
    python -c "from sanawm_env.recording.dataset import Dataset; \\
        from sanawm_env.recording.lerobot import export_lerobot; \\
        list(export_lerobot(Dataset.open('runs/native'), 'runs/lerobot', \\
                            data_file_mb=0.02, video_file_mb=0.12, files_per_chunk=2))"

Stops at the first thing that is not as it should be; every number written was measured.
"""

import argparse
import atexit
import json
import os
import platform
import shutil
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

# before lerobot's imports: ask no hub, leave the user's caches alone
os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HOME": tempfile.mkdtemp(prefix="lerobot_readback_")}

import av
import numpy as np
import torch
from lerobot.datasets.aggregate import aggregate_datasets
from lerobot.datasets.compute_stats import aggregate_stats, get_feature_stats, sample_indices
from lerobot.datasets.io_utils import load_nested_dataset
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from torch.utils.data import DataLoader

atexit.register(shutil.rmtree, os.environ["HF_HOME"], ignore_errors=True)

LIBRARIES = ("lerobot", "datasets", "torch", "av", "pyarrow", "numpy")
CAMERA, BACKEND = "observation.images.camera", "pyav"
NUMBERS = Path(__file__).parent / "results" / "lerobot_readback.json"

# What statistics of pictures may differ by, of 255: the FFmpeg 7 of lerobot's PyAV makes RGB by BT.601 whatever the
# file says, FFmpeg 8 does as it says (BT.709). The YUV frames are the same.
LEVELS = 16


def native(dataset: Path) -> list[dict]:
    """What the files of each episode say, in the order of the manifests."""
    episodes = []
    for manifest in sorted(dataset.glob("shard-*/manifest.jsonl")):
        for row in map(json.loads, manifest.read_text().splitlines()):
            if row["episode"]:
                folder = manifest.parent / row["episode"]
                with av.open(str(folder / "video.mp4")) as video:
                    frames = np.stack([frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)])
                arrays = dict(np.load(folder / "actions.npz")) | dict(np.load(folder / "trajectory.npz"))
                episodes.append({"frames": frames, "meta": json.loads((folder / "meta.json").read_text()), **arrays})
    return episodes


def expected(episode: dict, frame: int) -> dict[str, Any]:
    """The columns of one row, from the native files."""
    count, steps = len(episode["frames"]), len(episode["actions"])
    chunk = (count - 1) // steps
    k = episode["intrinsics"][frame]
    done = divmod(frame + 1, chunk)  # the action of this row takes the camera to the next frame
    return {
        "action": episode["twists"][frame] if frame < count - 1 else np.zeros(6),
        "sanawm.c2w": episode["c2w"][frame].ravel(),
        "sanawm.intrinsics": np.array([k[0, 0], k[1, 1], k[0, 2], k[1, 2]]),
        "sanawm.chunk_index": np.ceil(frame / chunk),
        "next.reward": 0 if done[1] or not done[0] else episode["rewards"][done[0] - 1],
        "next.done": frame == count - 1,
        "timestamp": frame / episode["fps"],
        "frame_index": frame,
    }


def rotation(q: np.ndarray) -> np.ndarray:
    """Matrix of a quaternion x y z w, written out so as not to trust the writer's library."""
    x, y, z, w = q
    return np.array([
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ])  # fmt: skip


def picture(item: torch.Tensor) -> np.ndarray:
    """(..., 3, H, W) in [0, 1] as (..., H, W, 3) uint8."""
    return np.moveaxis((item.numpy() * 255).round().astype(np.uint8), -3, -1)


def check(true: bool, what: str) -> None:
    if not true:
        raise SystemExit(f"not as it should be: {what}")


def check_rows(data: LeRobotDataset, episodes: list[dict]) -> dict[str, float]:
    """Every frame and every column of every episode; the largest differences."""
    worst = {"frame": 0, "column": 0.0, "pose": 0.0}
    index = 0
    for number, episode in enumerate(episodes):
        text = episode["meta"]["prompt"] or episode["meta"].get("camera", "")
        for frame, pixels in enumerate(episode["frames"]):
            item = data[index]
            where = f"episode {number}, frame {frame}"
            check(item["episode_index"] == number and item["index"] == index, where)
            check(item["task"] == text, f"task of {where}: {item['task']!r}")
            difference = int(np.abs(picture(item[CAMERA]).astype(int) - pixels).max())
            check(difference == 0, f"pixels of {where}, off by {difference}")
            for name, value in expected(episode, frame).items():
                off = float(np.abs(np.asarray(item[name].numpy(), float) - value).max())
                check(off <= 1e-5 * (1 + np.abs(value).max()), f"{name} of {where}, off by {off}")
                worst["column"] = max(worst["column"], off)
            state = item["observation.state"].double().numpy()
            off = np.abs(np.column_stack((rotation(state[3:]), state[:3])) - episode["c2w"][frame][:3]).max()
            check(off < 1e-5 and state[6] >= 0, f"observation.state of {where}, off by {off}")
            worst["pose"] = max(worst["pose"], float(off))
            index += 1
    check(index == len(data) == data.num_frames, "the number of frames")
    return worst


def check_windows(root: Path, episodes: list[dict], fps: float) -> int:
    """Frames and actions around every frame, which stay inside their episode and say where they had to."""
    offsets = (-2, -1, 0, 1, 24)
    deltas = {name: [offset / fps for offset in offsets] for name in (CAMERA, "action", "next.reward")}
    data = LeRobotDataset("local/export", root=root, video_backend=BACKEND, delta_timestamps=deltas)
    index = 0
    for episode in episodes:
        count = len(episode["frames"])
        for frame in range(count):
            item, wanted = data[index], np.array(offsets) + frame
            inside = np.clip(wanted, 0, count - 1)
            check((picture(item[CAMERA]) == episode["frames"][inside]).all(), f"the window of row {index}")
            check(np.allclose(item["action"], episode["twists"][inside], atol=1e-6), f"the actions of row {index}")
            for name in deltas:
                check((item[f"{name}_is_pad"].numpy() == (wanted != inside)).all(), f"{name}_is_pad of row {index}")
            index += 1
    return index


def check_one_episode(root: Path, episodes: list[dict]) -> int:
    """`episodes=[k]` for each k gives that episode."""
    for number, episode in enumerate(episodes):
        data = LeRobotDataset("local/export", root=root, video_backend=BACKEND, episodes=[number])
        check(data.num_episodes == 1 and len(data) == len(episode["frames"]), f"episodes=[{number}]")
        for frame in (0, len(data) - 1):
            check((picture(data[frame][CAMERA]) == episode["frames"][frame]).all(), f"frame {frame} of [{number}]")
    return len(episodes)


def check_loader(data: LeRobotDataset, episodes: list[dict]) -> int:
    """A shuffled pass of torch's DataLoader in two worker processes sees every frame once."""
    seen, total = [], torch.zeros(6, dtype=torch.float64)
    for batch in DataLoader(data, batch_size=16, shuffle=True, num_workers=2):
        check(batch[CAMERA].shape[1:] == (3, *episodes[0]["frames"].shape[1:3]), "the shape of a batch")
        seen += batch["index"].tolist()
        total += batch["action"].double().sum(0)
    check(sorted(seen) == list(range(len(data))), "the rows of a DataLoader pass")
    check(np.allclose(total, sum(e["twists"].sum(0) for e in episodes), atol=1e-3), "the actions of a DataLoader pass")
    return len(seen)


def check_stats(data: LeRobotDataset, root: Path, episodes: list[dict]) -> dict[str, float]:
    """stats.json against lerobot's aggregate of the episodes' own, and those against lerobot's of what it reads.

    lerobot's quantiles come from histograms of 5000 bins; the largest differences, as shares of what a value spans.
    """
    table = load_nested_dataset(root / "meta/episodes").with_format("numpy")
    stats = [
        {
            name: {key: np.atleast_1d(np.array(row[f"stats/{name}/{key}"].tolist())) for key in data.meta.stats[name]}
            for name in data.features
        }
        for row in table
    ]
    worst = {"aggregate": 0.0, "moments": 0.0, "quantiles": 0.0}
    for name, values in aggregate_stats(stats).items():
        check(values.keys() == data.meta.stats[name].keys(), f"the stats of {name}")
        for key, value in values.items():
            off = float(np.abs(value - data.meta.stats[name][key]).max())
            check(off <= 1e-7 * (1 + np.abs(value).max()), f"{key} of {name} in stats.json, off by {off}")
            worst["aggregate"] = max(worst["aggregate"], off)
    for number, episode in enumerate(episodes):
        rows = data.hf_dataset.with_format("numpy").filter(lambda e, n=number: e == n, input_columns="episode_index")
        for name in data.features:
            if name == CAMERA:
                chosen = sample_indices(len(episode["frames"]))
                sample = np.moveaxis(episode["frames"][chosen], -1, 1)
                reference = get_feature_stats(sample, axis=(0, 2, 3), keepdims=True)
                reference = {k: v if k == "count" else v[0] / 255 for k, v in reference.items()}
            else:
                values = np.asarray(rows[name])
                values = values if values.dtype == bool else values.astype(np.float64)
                reference = get_feature_stats(values, axis=0, keepdims=values.ndim == 1)
            span = np.maximum(reference["max"] - reference["min"], 1e-3)
            for key, value in reference.items():
                ours = stats[number][name][key]
                check(ours.shape == value.shape, f"the shape of {key} of {name}: {ours.shape}, not {value.shape}")
                off = np.abs(ours - value)
                if key == "count":
                    kind, off, limit = "moments", off, 0
                elif name == CAMERA:
                    kind, off, limit = f"picture_{key}_of_255", off * 255, LEVELS
                elif key in ("min", "max", "mean", "std"):
                    kind, off, limit = "moments", off / span, 1e-5
                else:
                    kind, off, limit = "quantiles", off / span, neighbours(rows[name])
                    if limit > 0.1:
                        continue  # rewards, mostly zero: two fair definitions of a quantile lie worlds apart
                off = float(off.max())
                check(off <= limit, f"{key} of {name} in episode {number}, off by {off:.3g} ({kind})")
                worst[kind] = max(worst.get(kind, 0.0), off)
    return worst


def neighbours(column) -> float:
    """The largest step between neighbouring values of a column, as a share of its span, and some of lerobot's bins: how
    far two fair definitions of a quantile may lie apart."""
    values = np.sort(np.asarray(column, float).reshape(len(column), -1), axis=0)
    return 1e-3 + float((np.diff(values, axis=0) / np.maximum(np.ptp(values, axis=0), 1e-3)).max())


def check_aggregate(root: Path, frames: int) -> int:
    """lerobot's own tools take it: two copies merged by `aggregate_datasets` read as one dataset."""
    with tempfile.TemporaryDirectory() as folder:
        merged = Path(folder) / "merged"
        aggregate_datasets(["local/export"] * 2, "local/merged", roots=[root] * 2, aggr_root=merged)
        data = LeRobotDataset("local/merged", root=merged, video_backend=BACKEND)
        check(len(data) == 2 * frames, "the length of two merged copies")
        for index in range(frames):
            pair = data[index], data[frames + index]
            check(torch.equal(pair[0][CAMERA], pair[1][CAMERA]), f"row {index} of two merged copies")
        return len(data)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("export", type=Path)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--json", type=Path, default=NUMBERS)
    options = parser.parse_args()

    root, episodes = options.export, native(options.dataset)
    lengths = [len(episode["frames"]) for episode in episodes]
    data = LeRobotDataset("local/export", root=root, video_backend=BACKEND)
    check(data.num_episodes == len(episodes) and data.fps == episodes[0]["fps"], "the number of episodes, the fps")
    check([row["length"] for row in data.meta.episodes] == lengths, "the lengths of episodes")
    ends = np.cumsum(lengths)
    check([row["dataset_to_index"] for row in data.meta.episodes] == ends.tolist(), "the ends of episodes")
    report = {
        "episodes": len(episodes),
        "frames": int(ends[-1]),
        "lengths": lengths,
        "data_files": len(list(root.glob("data/*/*.parquet"))),
        "video_files": len(list(root.glob("videos/*/*/*.mp4"))),
        "features": sorted(data.features),
        "largest_difference": check_rows(data, episodes),
        "windows_checked": check_windows(root, episodes, data.fps),
        "single_episodes_checked": check_one_episode(root, episodes),
        "rows_of_a_dataloader_pass": check_loader(data, episodes),
        "largest_difference_of_stats": check_stats(data, root, episodes),
        "rows_of_two_copies_merged_by_lerobot": check_aggregate(root, len(data)),
        "codebase_version": data.meta.info.codebase_version,
        "versions": {name: metadata.version(name) for name in LIBRARIES}
        | {"python": platform.python_version(), "sanawm_env": episodes[0]["meta"]["versions"]["sanawm_env"]},
        "decoder": BACKEND,
    }
    options.json.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
