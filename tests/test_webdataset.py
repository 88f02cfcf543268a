"""The example that makes tar shards, read back with webdataset."""

import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import webdataset

from sanawm_env.recording.video import read_video
from tests.datasets import collect, rewards, small_world

EXAMPLE = Path(__file__).parents[1] / "examples" / "webdataset.py"
CHUNKS = (1, 2, 1)


@pytest.fixture(scope="module")
def native(tmp_path_factory):
    folder = tmp_path_factory.mktemp("webdataset")
    return collect(folder / "native", small_world(folder / "world"), CHUNKS)


def test_the_example_makes_shards_that_webdataset_reads(native, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [str(EXAMPLE), str(native.folder), str(tmp_path / "out")])
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    (tar,) = (tmp_path / "out").iterdir()
    assert capsys.readouterr().out == f"{tar}\n"
    samples = list(webdataset.WebDataset(str(tar), shardshuffle=False).decode())
    assert [sample["__key__"] for sample in samples] == [f"shard-0000-episode-0000{i}" for i in range(3)]
    for number, (sample, episode) in enumerate(zip(samples, native.episodes(), strict=True)):
        assert sample["json"] == episode.meta
        np.testing.assert_array_equal(sample["actions.npz"]["rewards"], rewards(number, CHUNKS[number]))
        np.testing.assert_array_equal(sample["trajectory.npz"]["c2w"], episode.trajectory().c2w)
        assert (read_video_bytes(sample["mp4"], tmp_path) == episode.frames()).all()


def read_video_bytes(data, folder):
    path = folder / "sample.mp4"
    path.write_bytes(data)
    return read_video(path)


def test_shards_hold_so_many_episodes(native, tmp_path):
    example = runpy.run_path(str(EXAMPLE))
    example["main"].__globals__["EPISODES"] = 2
    example["main"](str(native.folder), str(tmp_path))
    counts = [sum(1 for _ in webdataset.WebDataset(str(tar), shardshuffle=False)) for tar in sorted(tmp_path.iterdir())]
    assert counts == [2, 1]


def test_without_arguments_the_example_says_what_it_wants(monkeypatch):
    monkeypatch.setattr(sys, "argv", [str(EXAMPLE)])
    with pytest.raises(SystemExit, match="DATASET OUT"):
        runpy.run_path(str(EXAMPLE), run_name="__main__")
