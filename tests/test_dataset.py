"""Datasets: whole or absent, whatever was killed; brought together, looked at, and closed to what leads elsewhere."""

import json
import os
import shutil

import numpy as np
import pytest
from PIL import Image

from sanawm_env.cli.dataset import DatasetMerge, DatasetPreview
from sanawm_env.recording.dataset import Dataset, Row, Shard, clean, merge, totals, validate
from sanawm_env.recording.episode import FILES
from sanawm_env.recording.preview import preview
from sanawm_env.recording.video import read_video
from tests.datasets import write_wide
from tests.test_episode import image, record, world  # noqa: F401

HEADER = {
    "world": "tiny",
    "weights_hash": "",
    "mode": "tiny",
    "fps": 16,
    "height": 24,
    "width": 32,
    "chunk_frames": 24,
    "action_mode": "twist",
}


@pytest.fixture
def make(world, image, tmp_path):  # noqa: F811
    """Makes a dataset of so many episodes with these ids."""
    from sanawm_env.world.world import World

    header = HEADER | {"weights_hash": World.load(world).weights_hash}
    number = iter(range(100))

    def make(*ids: str, **changes) -> Dataset:
        dataset = Dataset.create(tmp_path / f"d{next(number)}", header | changes)
        with Shard(dataset) as shard:
            for name in ids:
                partial = shard.begin()
                (folder,) = record(tmp_path / "made", world, image, chunks=1, company=1)
                meta = json.loads((folder / "meta.json").read_text()) | {"id": name, "camera": "orbit"}
                (folder / "meta.json").write_text(json.dumps(meta))
                folder.rename(partial)
                shard.note(shard.accept(partial))
        return dataset

    return make


def test_what_was_written_is_there(make):
    dataset = make("a", "b")
    rows = Dataset.open(dataset.folder).rows()
    assert [(row.id, row.episode) for row in rows] == [
        ("a", "shard-0000/episode-00000"),
        ("b", "shard-0000/episode-00001"),
    ]
    assert [episode.meta["id"] for episode in dataset.episodes()] == ["a", "b"]
    assert totals(rows)["frames"] == 50
    assert list(validate(dataset)) == [(row.episode, []) for row in rows]


def test_every_writer_gets_a_shard_and_empty_ones_go_away(make):
    dataset = make("a")
    with Shard(dataset) as one, Shard(dataset) as two:
        assert [one.folder.name, two.folder.name] == ["shard-0001", "shard-0002"]
    assert [path.name for path in dataset.shards] == ["shard-0000"]


def test_what_a_killed_writer_left_is_sorted_out(make):
    dataset = make("a", "b", "c")
    shard = dataset.shards[0]
    lines = (shard / "manifest.jsonl").read_text().splitlines()
    (shard / "manifest.jsonl").write_text("\n".join(lines[:2]) + "\n" + lines[2][:30])  # torn while it was written
    shutil.copytree(shard / "episode-00000", shard / "episode-00003.partial")
    assert [row.id for row in dataset.rows()] == ["a", "b", "c"]
    clean(dataset)
    assert not list(shard.glob("*.partial"))
    assert [row.id for row in dataset.rows()] == ["a", "b", "c"]


def test_a_living_writer_is_left_alone(make):
    dataset = make("a")
    with Shard(dataset) as shard:
        partial = shard.begin()
        partial.mkdir()
        clean(dataset)
        assert partial.exists()
    clean(dataset)
    assert not partial.exists()


def test_cleaning_follows_no_link_and_takes_only_what_a_writer_began(make, tmp_path):
    dataset = make("a")
    shard = dataset.shards[0]
    mine = tmp_path / "elsewhere" / "episode-00007.partial"
    mine.mkdir(parents=True)
    (mine / "text").write_text("three years of work")
    (dataset.folder / "shard-0001").symlink_to(mine.parent)
    (shard / "episode-00008.partial").symlink_to(mine)
    (shard / "thesis.partial").mkdir()
    clean(dataset)
    with Shard(dataset) as writer:
        (writer.begin()).symlink_to(mine)
    assert (mine / "text").read_text() == "three years of work"
    assert (shard / "thesis.partial").is_dir()
    assert [path.name for path in mine.parent.iterdir()] == [mine.name]  # no lock either


def test_a_rejected_episode_leaves_its_reason(make, world, image, tmp_path):  # noqa: F811
    dataset = make("a")
    with Shard(dataset) as shard:
        partial = shard.begin()
        (folder,) = record(tmp_path / "made", world, image, chunks=1, company=1)
        folder.rename(partial)
        shard.note(shard.reject(partial, "drift is 3"))
        assert not partial.exists()
    (row,) = [row for row in dataset.rows() if not row.episode]
    assert (row.reason, row.chunks, row.bytes) == ("drift is 3", 1, 0)
    assert totals(dataset.rows())["rejected"] == 1
    assert [row.id for row in dataset.finished()] == ["a"]


def test_merging_takes_each_episode_once_and_goes_on(make, tmp_path):
    one, two = make("a", "b"), make("b", "c")
    copying = merge([one.folder, two.folder], tmp_path / "all")
    next(copying)
    copying.close()
    assert [row.id for row in Dataset.open(tmp_path / "all").rows()] == ["a"]
    assert [row.id for row in merge([one.folder, two.folder], tmp_path / "all")] == ["b", "c"]
    both = Dataset.open(tmp_path / "all")
    assert [row.id for row in both.rows()] == ["a", "b", "c"]
    assert all(not problems for _, problems in validate(both))
    for row in both.rows():
        assert {path.name for path in (both.folder / row.episode).iterdir()} == set(FILES)
    assert list(merge([one.folder], tmp_path / "all")) == []


def test_datasets_that_do_not_go_together_are_refused(make, tmp_path):
    one, two = make("a"), make("b", fps=8)
    with pytest.raises(ValueError, match="its fps is 8, not 16"):
        list(merge([one.folder, two.folder], tmp_path / "all"))
    assert not (tmp_path / "all").exists()
    with pytest.raises(ValueError, match="which is read"):
        list(merge([one.folder], one.folder))
    with pytest.raises(ValueError, match="at least one"):
        list(merge([], tmp_path / "all"))
    with pytest.raises(FileNotFoundError, match="There is no dataset"):
        list(merge([tmp_path / "none"], tmp_path / "all"))
    list(merge([one.folder], tmp_path / "all"))
    with pytest.raises(ValueError, match="cannot be merged with"):
        list(merge([two.folder], tmp_path / "all"))


def test_another_header_needs_another_folder(make):
    dataset = make("a")
    with pytest.raises(ValueError, match="was collected with other settings: fps is 16 there, 8 here"):
        Dataset.create(dataset.folder, {name: v for name, v in dataset.header.items() if name != "schema"} | {"fps": 8})


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda folder: (folder / "start.png").unlink(), "it has no start.png"),
        (lambda folder: (folder / "video.mp4").write_bytes(b"no"), "video.mp4 has changed"),
        (lambda folder: shutil.rmtree(folder), "no episode in"),
        (lambda folder: np.savez(folder / "actions.npz", actions=np.zeros(9)), "actions.npz has changed"),
    ],
)
def test_damage_is_found(make, damage, says):
    dataset = make("a", "b")
    damage(dataset.folder / "shard-0000" / "episode-00001")
    (good, bad) = validate(dataset)
    assert good[1] == []
    assert any(says in problem for problem in bad[1])


def test_doubles_are_found_and_counted_once(make):
    dataset = make("a", "a", "b")
    assert [len(problems) for _, problems in validate(dataset)] == [0, 1, 0]
    assert [row.id for row in dataset.finished()] == ["a", "b"]


@pytest.mark.parametrize("name", ["../../elsewhere", "/etc", "a/b", "..", "episode-00000/..", "a\\b", "\0"])
def test_a_manifest_cannot_lead_out_of_its_shard(make, name):
    dataset = make("a")
    manifest = dataset.shards[0] / "manifest.jsonl"
    row = json.loads(manifest.read_text()) | {"episode": name}
    manifest.write_text(json.dumps(row) + "\n")
    with pytest.raises(ValueError, match="is not a folder of its shard"):
        dataset.rows()


def test_links_are_not_followed(make, tmp_path, caplog):
    dataset = make("a", "b")
    (tmp_path / "secret").mkdir()
    folder = dataset.shards[0] / "episode-00001"
    shutil.move(folder, tmp_path / "secret" / "e")
    folder.symlink_to(tmp_path / "secret" / "e")
    with pytest.raises(ValueError, match="is not a folder of its shard"):
        dataset.rows()
    folder.unlink()
    shutil.move(tmp_path / "secret" / "e", folder)
    (folder / "video.mp4").unlink()
    (folder / "video.mp4").symlink_to("/etc/hostname")
    assert [row.id for row in merge([dataset.folder], tmp_path / "all")] == ["a"]
    assert "episode-00001 is left out" in caplog.text and "is a link to elsewhere" in caplog.text


@pytest.mark.parametrize("line", ["{", "[]", '{"id": 3}', '{"id": "x", "chunks": "many"}'])
def test_a_manifest_that_is_none_is_refused(make, line):
    dataset = make("a")
    manifest = dataset.shards[0] / "manifest.jsonl"
    manifest.write_text(line + "\n" + manifest.read_text())
    with pytest.raises(ValueError, match="Line 1 of"):
        dataset.rows()


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"schema": 7}', '{"schema": 1, "fps": 16}'])
def test_a_folder_that_is_no_dataset_is_refused(tmp_path, text):
    (tmp_path / "dataset.json").write_text(text)
    with pytest.raises(ValueError, match="does not describe a dataset"):
        Dataset.open(tmp_path)


@pytest.mark.slow
def test_the_preview_shows_frames_and_paths(make):
    dataset = make("a", "b")
    (sheet, paths), damaged = preview(dataset, dataset.folder)
    assert damaged == 0
    assert Image.open(sheet).width > 1000
    picture = np.asarray(Image.open(paths).convert("RGB"))
    assert (picture.std(axis=2) > 20).sum() > 50  # coloured lines
    with pytest.raises(ValueError, match="no finished episodes"):
        preview(make(), dataset.folder)


def test_rows_survive_the_file(make):
    dataset = make("a")
    (row,) = dataset.rows()
    assert isinstance(row, Row)
    assert row.bytes == sum(os.path.getsize(p) for p in (dataset.folder / row.episode).iterdir())


# ---- what strangers may have put there


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("frames", 7, "the manifest says 7"),
        ("chunks", 9, "the manifest says 9"),
        ("bytes", 1, "the manifest says 1"),
        ("seed", 5, "its seed is"),
        ("camera", "x" * 10**5, "its camera is"),
        ("source", "b.png", "its source is"),
        ("scene", "00", "its scene is"),
    ],
)
def test_a_manifest_that_says_something_else_is_found(make, name, value, says):
    dataset = make("a")
    (manifest,) = dataset.folder.glob("*/manifest.jsonl")
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    rows[0][name] = value
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    problems = [problem for _, found in validate(dataset, thorough=False) for problem in found]
    assert len(problems) == 1 and says in problems[0] and len(problems[0]) < 300


@pytest.mark.parametrize(
    "line",
    [
        pytest.param("[" * 100_000, id="deep"),
        '{"id": "a", "frames": -1}',
        '{"id": "a", "frames": 1e300}',
        '{"id": "a", "seed": true}',
        pytest.param("9" * 5000, id="long"),
    ],
)
def test_a_last_row_that_is_whole_but_none_is_refused(make, line):
    dataset = make("a")
    (manifest,) = dataset.folder.glob("*/manifest.jsonl")
    manifest.write_text(manifest.read_text() + line + "\n")
    with pytest.raises(ValueError, match="is not a row"):
        dataset.rows()


@pytest.mark.parametrize(
    "name", ["manifest.jsonl", "dataset.json", "meta.json", "trajectory.npz", "video.mp4", "actions.npz"]
)
@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_special_files_in_a_dataset_are_said_so_at_once(make, name, kind):
    dataset = make("a")
    path = next(dataset.folder.rglob(name))
    path.unlink()
    os.mkfifo(path) if kind == "pipe" else path.symlink_to("/dev/zero")
    said = []
    try:
        opened = Dataset.open(dataset.folder)
        opened.rows()
        said += [problem for _, problems in validate(opened) for problem in problems]
    except ValueError as error:
        said.append(str(error))
    assert any(f"a {kind}" in text or f"has no {name}" in text for text in said)


@pytest.mark.slow
def test_a_damaged_episode_is_left_out_of_the_preview_and_named(make, tmp_path, caplog):
    dataset = make("a", "b", "c")
    (dataset.folder / "shard-0000/episode-00001/video.mp4").write_bytes(b"no video")
    (dataset.folder / "shard-0000/episode-00002/trajectory.npz").write_bytes(b"no path")
    pictures, damaged = preview(dataset, tmp_path)
    assert all(path.exists() for path in pictures) and damaged == 2
    assert caplog.text.count("is left out") == 2
    assert "episode-00001" in caplog.text and "episode-00002" in caplog.text
    for name in ("a", "c"):
        (dataset.folder / f"shard-0000/episode-0000{'ac'.index(name) * 2}/video.mp4").write_bytes(b"no video")
    with pytest.raises(ValueError, match="No episode in"):
        preview(dataset, tmp_path)


@pytest.mark.slow
def test_a_damaged_episode_is_left_out_of_a_merge_and_named(make, tmp_path, caplog):
    dataset = make("a", "b", "c", "d", "e")
    shard = dataset.shards[0]
    (shard / "episode-00004/video.mp4").write_bytes(b"no video")
    (shard / "episode-00000/meta.json").write_text("{")
    (shard / "episode-00002/actions.npz").unlink()
    lines = (shard / "manifest.jsonl").read_text().splitlines(keepends=True)
    (shard / "manifest.jsonl").write_text("".join(lines[1:]))  # a killed writer had not noted the first
    with pytest.raises(ValueError, match=r"were left out \(3\): see"):
        DatasetMerge((dataset.folder,), tmp_path / "all").run()
    assert caplog.text.count("is left out") == 3
    assert "episode-00004 is left out" in caplog.text and "cannot be read as a video" in caplog.text
    assert "episode-00000" in caplog.text and "episode-00002 is left out: it has no actions.npz" in caplog.text
    merged = Dataset.open(tmp_path / "all")
    assert [row.id for row in merged.rows()] == ["b", "d"]
    assert all(not problems for _, problems in validate(merged))
    assert [name for name, problems in validate(dataset) if problems] == [
        "shard-0000/episode-00002",
        "shard-0000/episode-00004",
        "shard-0000/episode-00000",
    ]
    with pytest.raises(ValueError, match=r"were left out \(2\): see"):
        DatasetPreview(dataset.folder, tmp_path).run()


def test_pictures_of_another_size_or_shape_are_found(make, tmp_path):
    dataset = make("a", "b")
    assert all(not problems for _, problems in validate(dataset))
    for number, write in enumerate((lambda path, frames: write_wide(path, frames[:, :20]), write_wide)):
        path = dataset.folder / f"shard-0000/episode-0000{number}/video.mp4"
        write(path, read_video(path))
    (_, small), (_, wide) = validate(dataset)
    assert "its video has 20 x 32 pixels, not 24 x 32" in small
    assert any("its pixels are not square (4:3)" in problem for problem in wide)


@pytest.mark.parametrize("name", ["fps", "height", "width", "chunk_frames"])
@pytest.mark.parametrize("value", [0, -1, 10**9, float("nan"), "24", None, True, []])
def test_numbers_of_a_header_have_limits(tmp_path, name, value):
    (tmp_path / "dataset.json").write_text(json.dumps(HEADER | {"schema": 1, name: value}))
    with pytest.raises(ValueError, match=f"does not describe a dataset: {name} must be"):
        Dataset.open(tmp_path)
