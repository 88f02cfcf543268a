"""Datasets as LeRobotDatasets: the layout, every value, files that fill up, and nothing half written.

That lerobot itself reads them is tried where lerobot is: benchmarks/lerobot_readback.py.
"""

import errno
import json
import os
import re
import shutil
import sys
import tracemalloc
from pathlib import Path

import av
import numpy as np
import pyarrow.parquet as parquet
import pytest
import yaml
from rich.progress import Progress
from scipy.spatial.transform import Rotation

from sanawm_env.cli.dataset import DatasetExport
from sanawm_env.recording import lerobot
from sanawm_env.recording.dataset import Dataset, merge
from sanawm_env.recording.episode import RecordedEpisode
from sanawm_env.recording.exports import pose_vectors
from sanawm_env.recording.lerobot import CAMERA, COLUMNS, export_lerobot, pool, vector_stats
from sanawm_env.recording.video import VideoWriter, read_video
from sanawm_env.system.saving import replacing_folder
from tests.datasets import collect, rewards, say, small_world

CHUNKS = (2, 1, 3)
FRAMES = [25 + 24 * (n - 1) for n in CHUNKS]
LIMITS = {"data_file_mb": 0.006, "video_file_mb": 0.045, "files_per_chunk": 2}  # about one episode to a file
NUMBERS = Path(__file__).parents[1] / "benchmarks" / "results" / "lerobot_readback.json"


@pytest.fixture(scope="module")
def native(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lerobot")
    dataset = collect(folder / "native", small_world(folder / "world"), CHUNKS)
    say(list(dataset.episodes())[2], prompt="a hall")
    return dataset


@pytest.fixture(scope="module")
def whole(native, tmp_path_factory):
    """An export in few files."""
    out = tmp_path_factory.mktemp("whole") / "export"
    assert [row.episode for row in export_lerobot(native, out)] == [row.episode for row in native.finished()]
    return out


@pytest.fixture(scope="module")
def split(native, tmp_path_factory):
    """The same in many."""
    out = tmp_path_factory.mktemp("split") / "export"
    list(export_lerobot(native, out, **LIMITS))
    return out


@pytest.fixture
def copy(native, tmp_path):
    """The native dataset, for tests that spoil it."""
    shutil.copytree(native.folder, tmp_path / "native")
    return Dataset.open(tmp_path / "native")


def info(root):
    return json.loads((root / "meta/info.json").read_text())


def table(root, kind):
    """The rows of all Parquet files of a kind, in order."""
    return [row for path in sorted((root / kind).glob("*/*.parquet")) for row in parquet.read_table(path).to_pylist()]


def column(root, name):
    return np.array([row[name] for row in table(root, "data")])


def each(native, values):
    """Values of all rows, episode by episode."""
    return zip(native.episodes(), np.split(values, np.cumsum(FRAMES)[:-1]), strict=True)


# ---- layout


def test_info_says_what_is_there(native, whole):
    facts = info(whole)
    assert facts["codebase_version"] == "v3.0"
    assert [facts[f"total_{name}"] for name in ("episodes", "frames", "tasks")] == [3, sum(FRAMES), 3]
    assert (facts["fps"], facts["splits"]) == (native.header["fps"], {"train": "0:3"})
    assert facts["features"][CAMERA]["shape"] == [native.header["height"], native.header["width"], 3]
    assert facts["features"][CAMERA]["info"]["video.codec"] == "h264"
    data = parquet.read_table(whole / facts["data_path"].format(chunk_index=0, file_index=0))
    assert set(facts["features"]) == {CAMERA, *data.column_names}
    for name, feature in facts["features"].items():
        if name == CAMERA:
            continue
        kind = data.schema.field(name).type
        (width,) = feature["shape"]
        assert len(feature["names"] or [None]) == width
        assert str(kind if width == 1 else kind.value_type).replace("float", "float32") == feature["dtype"]
        assert width == 1 or kind.list_size == width


def test_files_are_named_as_info_says_and_nothing_else_is_there(whole):
    names = {path.relative_to(whole).as_posix() for path in whole.rglob("*") if path.is_file()}
    assert names == {
        "README.md",
        "meta/info.json",
        "meta/stats.json",
        "meta/tasks.parquet",
        "meta/episodes/chunk-000/file-000.parquet",
        "data/chunk-000/file-000.parquet",
        f"videos/{CAMERA}/chunk-000/file-000.mp4",
    }


def test_a_card_names_the_rows_and_nothing_of_meta(native, split):
    """`datasets.load_dataset(folder)` reads the patterns of `configs`; without, it mixes the tables."""
    _, front, text = (split / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    card = yaml.safe_load(front)
    assert "LeRobot" in card["tags"] and card["license"] == "unknown"
    ((config,),) = [card["configs"]]
    assert config["config_name"] == "default"
    ((rows,),) = [config["data_files"]]
    assert rows["split"] == "train"
    named = sorted(path.relative_to(split).as_posix() for path in split.glob(rows["path"]))
    files = [path.relative_to(split).as_posix() for path in split.rglob("*.parquet")]
    assert named == sorted(name for name in files if name.startswith("data/")) and 1 < len(named) < len(files)
    assert f"{sum(FRAMES)} frames" in text and json.dumps(native.header["world"]) in text


def test_datasets_reads_the_rows(whole, tmp_path):
    datasets = pytest.importorskip("datasets", reason="NOT TESTED HERE: datasets is not among our dependencies")
    rows = datasets.load_dataset(str(whole), cache_dir=str(tmp_path))["train"]
    assert len(rows) == sum(FRAMES) and set(rows.column_names) == set(COLUMNS)


def test_tasks_are_prompts_or_else_scripts(native, whole):
    tasks = parquet.read_table(whole / "meta/tasks.parquet")
    assert tasks.to_pydict() == {"task_index": [0, 1, 2], "task": ["script 0", "script 1", "a hall"]}
    assert json.loads(tasks.schema.metadata[b"pandas"])["index_columns"] == ["task"]


# ---- values


def test_rows_hold_the_episodes(native, whole):
    assert (column(whole, "index") == np.arange(sum(FRAMES))).all()
    for name, wanted in {
        "episode_index": lambda episode, number, frames: np.full(frames, number),
        "frame_index": lambda episode, number, frames: np.arange(frames),
        "timestamp": lambda episode, number, frames: np.arange(frames) / 16,
        "action": lambda episode, number, frames: episode.arrays()["twists"],
        "sanawm.c2w": lambda episode, number, frames: episode.trajectory().c2w.reshape(-1, 16),
        "sanawm.chunk_index": lambda episode, number, frames: np.r_[0, np.repeat(range(1, episode.chunks + 1), 24)],
        "next.done": lambda episode, number, frames: np.arange(frames) == frames - 1,
    }.items():
        for number, (episode, values) in enumerate(each(native, column(whole, name))):
            expected = wanted(episode, number, len(values))
            np.testing.assert_allclose(values, expected, atol=1e-6, err_msg=name)


def test_a_reward_sits_where_its_step_is_completed(native, whole):
    for number, (_, values) in enumerate(each(native, column(whole, "next.reward"))):
        places = np.flatnonzero(values)
        assert places.tolist() == [24 * k - 1 for k in range(1, CHUNKS[number] + 1)]
        np.testing.assert_allclose(values[places], rewards(number, CHUNKS[number]))


def test_the_action_of_a_row_takes_its_pose_to_the_next(whole):
    """Through the state's own quaternion, so that the order of its components is tried as well."""
    states, actions, done = (column(whole, name) for name in ("observation.state", "action", "next.done"))
    turns = Rotation.from_quat(states[:, 3:])
    turned = (turns[:-1].inv() * turns[1:]).as_rotvec() * 16
    inside = ~done[:-1]
    assert np.abs(turned).max() > 0.1
    np.testing.assert_allclose(turned[inside], actions[:-1][inside, 3:], atol=1e-4)
    assert (actions[done] == 0).all()


def test_quaternions_are_the_ones_with_w_above_zero():
    turns = Rotation.from_rotvec(np.radians(np.arange(0, 360, 10))[:, None] * [0, 1, 0])
    c2w = np.tile(np.eye(4), (36, 1, 1))
    c2w[:, :3, :3], c2w[:, :3, 3] = turns.as_matrix(), np.arange(108).reshape(36, 3)
    vectors = pose_vectors(c2w)
    assert (vectors[:, 6] >= 0).all()
    assert (Rotation.from_quat(vectors[:, 3:]) * turns.inv()).magnitude().max() < 1e-6
    assert (vectors[:, :3] == c2w[:, :3, 3]).all()


def test_intrinsics_are_in_pixels_of_the_video(native, whole):
    for episode, values in each(native, column(whole, "sanawm.intrinsics")):
        lens = episode.trajectory().intrinsics[0]
        np.testing.assert_allclose(values, np.tile([lens[0, 0], lens[1, 1], lens[0, 2], lens[1, 2]], (len(values), 1)))
        np.testing.assert_allclose(values[0, 2:], [native.header["width"] / 2, native.header["height"] / 2])


@pytest.mark.slow
@pytest.mark.parametrize("export", ["whole", "split"])
def test_frames_are_where_the_episodes_say(native, export, request):
    root = request.getfixturevalue(export)
    for row, episode in zip(table(root, "meta/episodes"), native.episodes(), strict=True):
        place = {"video_key": CAMERA} | {n: row[f"videos/{CAMERA}/{n}"] for n in ("chunk_index", "file_index")}
        first, last = (round(row[f"videos/{CAMERA}/{end}_timestamp"] * 16) for end in ("from", "to"))
        joined = read_video(root / info(root)["video_path"].format(**place))
        assert last - first == row["length"]
        assert (joined[first:last] == episode.frames()).all()


def test_joined_videos_run_evenly_from_keyframe_to_keyframe(whole):
    (path,) = whole.glob("videos/*/*/*.mp4")
    with av.open(str(path)) as video:
        packets = [packet for packet in video.demux(video=0) if packet.dts is not None]
        times = [packet.pts * packet.time_base for packet in packets]
        assert times == [frame / video.streams.video[0].average_rate for frame in range(sum(FRAMES))]
    keys = np.flatnonzero([packet.is_keyframe for packet in packets])
    assert {0, *np.cumsum(FRAMES)[:-1]} <= set(keys)
    assert np.diff(keys).max() <= 2


def test_episodes_say_where_their_rows_lie(split):
    rows = table(split, "meta/episodes")
    assert [row["dataset_to_index"] for row in rows] == np.cumsum(FRAMES).tolist()
    for row in rows:
        path = split / info(split)["data_path"].format(
            chunk_index=row["data/chunk_index"], file_index=row["data/file_index"]
        )
        there = [
            found["index"]
            for found in parquet.read_table(path).to_pylist()
            if found["episode_index"] == row["episode_index"]
        ]
        assert there == list(range(row["dataset_from_index"], row["dataset_to_index"]))


# ---- files that fill up


def test_full_files_and_folders_are_followed_by_new_ones(split):
    videos = sorted(path.relative_to(split / f"videos/{CAMERA}").as_posix() for path in split.rglob("*.mp4"))
    assert videos == ["chunk-000/file-000.mp4", "chunk-000/file-001.mp4", "chunk-001/file-000.mp4"]
    data = sorted(path.relative_to(split / "data").as_posix() for path in (split / "data").rglob("*.parquet"))
    assert data == ["chunk-000/file-000.parquet", "chunk-000/file-001.parquet", "chunk-001/file-000.parquet"]
    facts = info(split)
    assert [facts[name] for name in ("data_files_size_in_mb", "video_files_size_in_mb", "chunks_size")] == [
        *LIMITS.values()
    ]


def test_how_files_are_split_changes_no_row(whole, split):
    assert table(whole, "data") == table(split, "data")


def test_many_episodes_are_noted_some_at_a_time(native, whole, tmp_path, monkeypatch):
    monkeypatch.setattr(lerobot, "_EPISODES_AT_ONCE", 2)
    list(export_lerobot(native, tmp_path / "out"))
    assert parquet.ParquetFile(tmp_path / "out/meta/episodes/chunk-000/file-000.parquet").num_row_groups == 2
    assert table(tmp_path / "out", "meta/episodes") == table(whole, "meta/episodes")


def test_rows_of_episodes_say_in_which_file_they_are(native, tmp_path, monkeypatch):
    monkeypatch.setattr(lerobot, "_EPISODES_AT_ONCE", 1)
    list(export_lerobot(native, tmp_path / "out", **LIMITS))
    files = sorted((tmp_path / "out/meta/episodes").rglob("*.parquet"))
    assert len(files) == 3
    for number, path in enumerate(files):
        (row,) = parquet.read_table(path).to_pylist()
        place = [row[f"meta/episodes/{name}_index"] for name in ("chunk", "file")]
        assert [row["episode_index"], *place] == [number, *divmod(number, 2)]
        assert path == tmp_path / "out" / lerobot.EPISODES.format(chunk_index=place[0], file_index=place[1])


@pytest.mark.slow
def test_videos_of_other_settings_begin_a_file_of_their_own(copy, tmp_path):
    """Their packets cannot be decoded after the header of the first ones."""
    video = copy.folder / copy.finished()[1].episode / "video.mp4"
    frames = read_video(video)
    with VideoWriter(video, fps=16, crf=30) as writer:  # with frames that depend on later ones
        writer.append(frames)
    frames = read_video(video)
    list(export_lerobot(copy, tmp_path / "out"))
    shown = [read_video(path) for path in sorted((tmp_path / "out").rglob("*.mp4"))]
    assert [len(video) for video in shown] == FRAMES
    assert (shown[1] == frames).all()


# ---- statistics


def test_statistics_of_columns_are_those_of_their_values(whole):
    stats = json.loads((whole / "meta/stats.json").read_text())
    assert set(stats) == {CAMERA, *COLUMNS}
    for name in COLUMNS:
        values = column(whole, name).reshape(sum(FRAMES), -1).astype(float)
        for key, wanted in {
            "min": values.min(0),
            "max": values.max(0),
            "mean": values.mean(0),
            "std": values.std(0),
        }.items():
            np.testing.assert_allclose(stats[name][key], wanted, atol=1e-5, err_msg=f"{key} of {name}")
        assert stats[name]["count"] == [sum(FRAMES)]
    for row, values in zip(
        table(whole, "meta/episodes"), np.split(column(whole, "action"), np.cumsum(FRAMES)[:-1]), strict=True
    ):
        for key, share in lerobot.QUANTILES.items():
            np.testing.assert_allclose(row[f"stats/action/{key}"], np.quantile(values, share, axis=0), atol=1e-6)


@pytest.mark.slow
def test_statistics_of_pictures_are_those_of_their_colours(native, whole):
    for row, episode in zip(table(whole, "meta/episodes"), native.episodes(), strict=True):
        colours = episode.frames().reshape(-1, 3) / 255
        stats = {
            name.split("/")[-1]: np.array(value) for name, value in row.items() if name.startswith(f"stats/{CAMERA}")
        }
        assert stats.pop("count").tolist() == [len(episode.frames())]
        for key, value in stats.items():
            assert value.shape == (3, 1, 1)
            share = lerobot.QUANTILES.get(key)
            wanted = (
                getattr(colours, key)(0) if share is None else np.quantile(colours, share, 0, method="inverted_cdf")
            )
            np.testing.assert_allclose(value.ravel(), wanted, atol=1e-9, err_msg=key)


@pytest.mark.slow
def test_long_episodes_and_large_pictures_are_sampled(tmp_path):
    """Of 1000 frames, half of them black, some are looked at; and every second column of those, half of them black."""
    frames = np.zeros((1000, 2, 300, 3), np.uint8)
    frames[::2] = 255
    frames[:, :, 2::4] = 0
    with VideoWriter(tmp_path / "video.mp4", crf=0) as video:
        video.append(frames)
    stats = lerobot.image_stats(RecordedEpisode(tmp_path, {}), 1000)
    assert stats["count"] == [int(1000**0.75)]
    np.testing.assert_allclose(stats["mean"], 0.25, atol=0.03)


@pytest.mark.slow
def test_memory_is_flat_however_long_an_episode_is(tmp_path):
    peaks = []
    for frames in (100, 800):
        folder = tmp_path / str(frames)
        folder.mkdir()
        with VideoWriter(folder / "video.mp4", keyframes=2) as video:
            for _ in range(frames):
                video.append(np.zeros((1, 96, 160, 3), np.uint8))
        tracemalloc.start()
        lerobot.image_stats(RecordedEpisode(folder, {}), frames)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + 3 * 96 * 160 * 3


def test_pooled_statistics_are_those_of_all_rows():
    values = np.random.default_rng(0).normal(size=(50, 3)) * [1, 10, 0]
    parts = [vector_stats(part) for part in np.split(values, [7, 30])]
    pooled, whole = pool(pool(*parts[:2]), parts[2]), vector_stats(values)
    assert pooled.keys() == whole.keys()
    for key in ("min", "max", "mean", "std", "count"):
        np.testing.assert_allclose(pooled[key], whole[key], atol=1e-12, err_msg=key)
    counts = [part["count"] for part in parts]
    np.testing.assert_allclose(pooled["q50"], np.average([p["q50"] for p in parts], axis=0, weights=np.ravel(counts)))


# ---- refusals, and nothing half written


@pytest.mark.parametrize("spoil", ["file", "folder"])
def test_what_is_there_is_not_written_over(native, tmp_path, spoil):
    out = tmp_path / "out"
    kept = out
    if spoil == "folder":
        out.mkdir()
        kept = out / "kept"
    kept.write_text("mine")
    with pytest.raises(FileExistsError, match="exists already"):
        export_lerobot(native, out)
    assert kept.read_text() == "mine"
    assert len(list(tmp_path.iterdir())) == 1


def test_an_empty_folder_may_be_filled(native, tmp_path):
    (tmp_path / "out").mkdir()
    list(export_lerobot(native, tmp_path / "out"))
    assert info(tmp_path / "out")["total_episodes"] == 3


@pytest.mark.parametrize("limits", [{"data_file_mb": 0}, {"video_file_mb": -1}, {"files_per_chunk": 0}])
def test_limits_are_above_zero(native, tmp_path, limits):
    with pytest.raises(ValueError, match="must be above zero"):
        export_lerobot(native, tmp_path / "out", **limits)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("other", [{"upscale": 2}, {"fps": 8}])
def test_videos_that_do_not_look_alike_are_refused(copy, tmp_path, other):
    row = copy.finished()[1]
    frames = read_video(copy.folder / row.episode / "video.mp4")
    with VideoWriter(copy.folder / row.episode / "video.mp4", **other) as video:
        video.append(frames)
    with pytest.raises(ValueError, match=f"cannot go into one export: the video of {row.episode} has"):
        export_lerobot(copy, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["native"]


def test_an_empty_dataset_is_refused(native, tmp_path):
    header = {name: value for name, value in native.header.items() if name != "schema"}
    with pytest.raises(ValueError, match="no finished episodes"):
        export_lerobot(Dataset.create(tmp_path / "none", header), tmp_path / "out")


@pytest.mark.parametrize("content", [b"", b"ffconcat version 1.0\nfile other.mp4\n", b"#EXTM3U\nother.mp4\n"])
def test_a_video_that_is_none_is_left_out(copy, tmp_path, caplog, content):
    rows = copy.finished()
    (copy.folder / rows[2].episode / "video.mp4").write_bytes(content)
    assert list(export_lerobot(copy, tmp_path / "out")) == rows[:2]
    assert f"{rows[2].episode} is left out" in caplog.text and "cannot be read as a video" in caplog.text


def test_videos_with_enormous_pictures_leave_nothing_to_export(native, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("sanawm_env.recording.video.MAX_PIXELS", 1000)
    with pytest.raises(ValueError, match=r"No episode of .* can be exported"):
        export_lerobot(native, tmp_path / "out")
    assert caplog.text.count("is refused: its frames have 48 x 32 pixels") == len(CHUNKS)


def fewer_frames(folder):
    frames = read_video(folder / "video.mp4")
    with VideoWriter(folder / "video.mp4", keyframes=2) as video:
        video.append(frames[:-1])


def fewer_poses(folder):
    rewrite(folder, "trajectory.npz", lambda a: a.update(c2w=a["c2w"][1:], intrinsics=a["intrinsics"][1:]))


def rewrite(folder, name, change):
    with np.load(folder / name) as arrays:
        arrays = dict(arrays)
    change(arrays)
    np.savez(folder / name, **arrays)


SPOILT = {
    "a video too short": (fewer_frames, "has 48 frames, not 49"),
    "no trajectory": (lambda folder: (folder / "trajectory.npz").unlink(), "no file at"),
    "poses too few": (fewer_poses, "48 poses and 48 intrinsics for 49 frames"),
    "no intrinsics": (lambda folder: rewrite(folder, "trajectory.npz", lambda a: a.pop("intrinsics")), "0 intrinsics"),
    "rewards too few": (
        lambda folder: rewrite(folder, "actions.npz", lambda a: a.update(rewards=a["rewards"][1:])),
        "must hold 2 rewards",
    ),
    "pickled": (
        lambda folder: rewrite(folder, "actions.npz", lambda a: a.update(rewards=np.array([{}, {}], object))),
        "cannot be read as arrays",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", SPOILT)
def test_an_episode_that_does_not_agree_with_itself_is_left_out(copy, tmp_path, caplog, case):
    spoil, says = SPOILT[case]
    rows = copy.finished()
    spoil(copy.folder / rows[0].episode)
    with pytest.raises(ValueError, match=r"were left out \(1\): see"):
        command(copy, tmp_path)
    assert f"{rows[0].episode} is left out" in caplog.text and says in caplog.text
    assert {row["episode_index"] for row in table(tmp_path / "out", "data")} == {0, 1}
    assert info(tmp_path / "out")["total_frames"] == sum(FRAMES[1:])
    assert info(tmp_path / "out")["total_tasks"] == len(parquet.read_table(tmp_path / "out/meta/tasks.parquet"))


def test_where_all_episodes_are_damaged_nothing_is_left(copy, tmp_path):
    for episode in copy.episodes():
        (episode.folder / "trajectory.npz").unlink()
    with pytest.raises(ValueError, match=r"No episode of .* can be exported"):
        list(export_lerobot(copy, tmp_path / "out"))
    assert [path.name for path in tmp_path.iterdir()] == ["native"]


def test_frames_that_are_not_whole_chunks_are_left_out(copy, tmp_path, caplog):
    say(next(copy.episodes()), actions=[[0] * 6] * 7, batch=[[0, 1]] * 7)
    assert len(list(export_lerobot(copy, tmp_path / "out"))) == 2
    assert "not the start and 7 equal chunks" in caplog.text


def test_an_episode_outside_the_dataset_is_refused(copy, tmp_path):
    manifest = copy.shards[0] / "manifest.jsonl"
    manifest.write_text(manifest.read_text().replace("episode-00001", "../../native/shard-0000/episode-00001"))
    with pytest.raises(ValueError, match="is not a folder of its shard"):
        export_lerobot(copy, tmp_path / "out")


def test_an_export_that_is_stopped_leaves_nothing(native, tmp_path):
    rows = export_lerobot(native, tmp_path / "out")
    next(rows)
    assert [path.name for path in tmp_path.iterdir()] == ["out.part"]
    rows.close()
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_export_left_is_replaced(native, whole, tmp_path):
    killed = replacing_folder(tmp_path / "out")
    (killed.__enter__() / "half").touch()
    del killed
    assert [path.name for path in tmp_path.iterdir()] == ["out.part"]
    list(export_lerobot(native, tmp_path / "out"))
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert table(tmp_path / "out", "data") == table(whole, "data")


def test_a_full_disk_is_one_sentence(native, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(lerobot, "_table", full)
    with pytest.raises(OSError, match=r"^cannot write .*out: No space left on device$"):
        list(export_lerobot(native, tmp_path / "out"))
    assert list(tmp_path.iterdir()) == []


def test_an_export_goes_to_a_folder_of_any_name(native, whole, tmp_path):
    out = tmp_path / "12:30 [b] \udcff"
    list(export_lerobot(native, out))
    assert sorted(os.listdir(out)) == sorted(os.listdir(whole)) and sum(1 for _ in out.rglob("*.parquet")) == 3
    assert [path.name for path in tmp_path.iterdir()] == [out.name]


def test_an_export_goes_nowhere_into_what_it_exports(native, tmp_path):
    (tmp_path / "link").symlink_to(native.folder)
    for out in (native.folder / "lerobot", tmp_path / "link" / "shard-0000" / "x", native.folder):
        with pytest.raises(ValueError, match="which is read"):
            export_lerobot(native, out)
        with pytest.raises(ValueError, match="which is read"):
            list(merge([native.folder], out)) if out != native.folder else export_lerobot(native, out)


def test_a_second_export_to_one_place_is_refused(native, tmp_path):
    first = export_lerobot(native, tmp_path / "out")
    next(first)
    with pytest.raises(BlockingIOError, match="another process writes there"):
        next(export_lerobot(native, tmp_path / "out"))
    first.close()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_filled_meanwhile_is_kept(native, tmp_path):
    rows = export_lerobot(native, tmp_path / "out")
    next(rows)
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine").write_text("mine")
    with pytest.raises(OSError):
        list(rows)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out/mine").read_text() == "mine"


def test_without_pyarrow_the_extra_is_named(native, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ImportError, match=re.escape('needs pyarrow: pip install "sanawm-env[data]"')):
        export_lerobot(native, tmp_path / "out")


# ---- the command, and lerobot's own verdict


def command(native, tmp_path, **options):
    DatasetExport(native.folder, tmp_path / "out", **options).run()


def test_the_command_exports(native, whole, tmp_path, capsys):
    command(native, tmp_path)
    assert f"{sum(FRAMES)} frames in {tmp_path / 'out'}" in capsys.readouterr().out
    assert table(tmp_path / "out", "data") == table(whole, "data")


@pytest.mark.parametrize(
    ("options", "says"), [({"id": "a-v0"}, "--id is for Minari"), ({"format": "minari"}, "needs --id")]
)
def test_the_command_says_where_an_id_belongs(native, tmp_path, options, says):
    with pytest.raises(ValueError, match=says):
        command(native, tmp_path, **options)


def test_the_command_stopped_at_its_bar_leaves_nothing(native, tmp_path, monkeypatch):
    def track(progress, rows, total):
        yield next(rows)
        assert (tmp_path / "out.part").is_dir()
        raise KeyboardInterrupt

    monkeypatch.setattr(Progress, "track", track)
    with pytest.raises(KeyboardInterrupt):
        command(native, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_lerobot_has_read_every_column_that_is_written():
    """The recorded verdict of lerobot is of this layout: run benchmarks/lerobot_readback.py again when it changes."""
    report = json.loads(NUMBERS.read_text())
    assert report["codebase_version"] == lerobot.CODEBASE_VERSION
    assert report["features"] == sorted([CAMERA, *COLUMNS])
    assert (
        report["windows_checked"] == report["rows_of_a_dataloader_pass"] == report["frames"] == sum(report["lengths"])
    )
    assert report["largest_difference"]["frame"] == 0
