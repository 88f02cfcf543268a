"""Turn a dataset into tar shards for `webdataset`: one sample per episode, whole.

    python examples/webdataset.py DATASET OUT

A sample's key is its shard and folder; its parts are mp4, trajectory.npz, actions.npz and json (the meta). To read:
`webdataset.WebDataset("OUT/episodes-{000000..000007}.tar", shardshuffle=False).decode()`; mp4 stays bytes, for PyAV.
"""

import sys
import tarfile
from pathlib import Path

from sanawm_env.recording.dataset import Dataset
from sanawm_env.system.saving import replacing

PARTS = {"video.mp4": "mp4", "trajectory.npz": "trajectory.npz", "actions.npz": "actions.npz", "meta.json": "json"}
EPISODES = 100  # per tar


def main(folder: str, out: str) -> None:
    dataset = Dataset.open(folder)
    rows = dataset.finished()
    Path(out).mkdir(parents=True, exist_ok=True)
    for number in range(0, len(rows), EPISODES):
        tar = Path(out) / f"episodes-{number // EPISODES:06d}.tar"
        with replacing(tar) as part, tarfile.open(part, "w") as archive:
            for row in rows[number : number + EPISODES]:
                for name, extension in PARTS.items():
                    archive.add(dataset.folder / row.episode / name, f"{row.episode.replace('/', '-')}.{extension}")
        print(tar)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("python examples/webdataset.py DATASET OUT")
    main(*sys.argv[1:])
