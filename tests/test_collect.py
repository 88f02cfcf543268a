"""Collecting: every job once, whatever happens; nothing half; nothing elsewhere."""

import errno
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import threading
import time
import tracemalloc
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import psutil
import pytest
import torch
import yaml
from PIL import Image
from rich.console import Console
from sanawm_env.agents import collect as collecting
from sanawm_env.agents.cameras import Orbit
from sanawm_env.agents.collect import collect, here, judge
from sanawm_env.agents.collection import Collection, estimate, plan
from sanawm_env.agents.scripts import Given, Policy, read_script

from sanawm_env.cli import main
from sanawm_env.metrics.lasting import drift, loop_closure
from sanawm_env.recording.dataset import Dataset, validate
from sanawm_env.recording.episode import RecordedEpisode, differences
from sanawm_env.recording.video import VideoWriter
from sanawm_env.simulation.simulator import Simulator
from sanawm_env.world.threads import world_threads
from tests.test_cli import refused
from tests.test_episode import world  # noqa: F401
from tests.worlds import picture

ROOT = Path(__file__).parents[1]
QUIET = Console(quiet=True)


@pytest.fixture
def small(world):  # noqa: F811
    """Makes a collection of 3 scenes x 2 cameras in the tiny world."""

    def small(**changes) -> Collection:
        return Collection(**{"world": world, "cameras": ["orbit", "w-30"], "chunks": 2, "batch": 2} | changes)

    return small


def whole(folder) -> list[str]:
    """The ids of a dataset, once it has been found whole, with nothing left over."""
    dataset = Dataset.open(folder)
    assert all(not problems for _, problems in validate(dataset))
    assert not list(dataset.folder.rglob("*.partial*"))
    ids = [row.id for row in dataset.rows()]
    assert len(set(ids)) == len(ids)
    return ids


@pytest.mark.slow
def test_every_scene_with_every_camera_and_every_seed(small, tmp_path):
    dataset = collect(small(seeds=[3, 4]), tmp_path / "d", console=QUIET)
    assert len(whole(tmp_path / "d")) == 12
    rows = dataset.rows()
    assert {row.camera for row in rows} == {"orbit", "w-30"}
    assert {row.seed for row in rows} == {3, 4}
    assert len({row.source for row in rows}) == 3
    assert {row.frames for row in rows} == {49}
    episode = next(dataset.episodes())
    assert episode.meta["env"]["max_episode_chunks"] == 2
    np.testing.assert_allclose(episode.trajectory().c2w, Orbit().poses(49), atol=1e-12)
    assert episode.arrays()["truncated"].tolist() == [False, True]


@pytest.mark.slow
def test_threads_are_kept_and_readers_can_jump_to_any_frame(small, tmp_path):
    before = torch.get_num_threads()
    episode = next(collect(small(cameras=["orbit"]), tmp_path / "d", console=QUIET).episodes())
    assert episode.meta["threads"] == world_threads()
    own = next(collect(small(cameras=["orbit"], threads=before + 1), tmp_path / "own", console=QUIET).episodes())
    assert own.meta["threads"] == before + 1
    assert torch.get_num_threads() == before
    with av.open(str(episode.folder / "video.mp4")) as container:
        keys = [packet.is_keyframe for packet in container.demux(video=0) if packet.size]
    assert len(keys) == 49 and keys[0]
    assert all(a or b for a, b in pairwise(keys))  # x264 adds some where a picture is all new


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["poses", "twist"])
def test_an_episode_of_a_dataset_comes_out_the_same_alone(small, tmp_path, mode):
    collection = small(cameras=["orbit", "w-60", "walk"], chunks=None, batch=4, action_mode=mode)
    dataset = collect(collection, tmp_path / "d", console=QUIET)
    lanes = set()
    for i, episode in enumerate(dataset.episodes()):
        list(episode.replay(tmp_path / "again" / str(i)))
        assert differences(episode, RecordedEpisode.open(tmp_path / "again" / str(i))) == []
        lanes |= {tuple(lane) for lane in episode.meta["batch"]}
    assert len(lanes) > 4  # episodes of several lengths: they changed company on the way


@pytest.mark.slow
def test_the_same_call_does_nothing_twice(small, tmp_path):
    first = [row.episode for row in collect(small(), tmp_path / "d", console=QUIET).rows()]
    assert [row.episode for row in collect(small(), tmp_path / "d", console=QUIET).rows()] == first
    more = collect(small(cameras=["orbit", "w-30", "dolly"]), tmp_path / "d", console=QUIET).rows()
    assert len(more) == 9 and [row.episode for row in more][:6] == first


def test_jobs_are_told_apart_by_all_that_decides_them(small, tmp_path):
    def ids(**changes):
        return {job.id for job in plan(small(**{"cameras": ["orbit", "dolly"]} | changes), tmp_path).jobs}

    base = ids()
    assert len(base) == 6
    assert ids(batch=5, crf=30, gates={"drift": 1}) == base
    for changes in ({"chunks": 3}, {"seeds": [1]}, {"action_mode": "twist"}, {"env": {"task": "explore"}}):
        assert not ids(**changes) & base
    assert len(ids(cameras=["orbit", "orbit"])) == 3


@pytest.mark.slow
def test_a_stop_by_hand_keeps_what_is_finished(small, tmp_path, monkeypatch):
    seen = []
    original = collecting._Run.finish

    def finish(self, *arguments):
        original(self, *arguments)
        seen.append(self.writer.out_dir)

    def step(*arguments, **keywords):
        if len(seen) >= 2:
            raise KeyboardInterrupt
        time.sleep(0.01)
        return stepped(*arguments, **keywords)

    stepped = Simulator.step
    monkeypatch.setattr(collecting._Run, "finish", finish)
    monkeypatch.setattr(Simulator, "step", step)
    with pytest.raises(KeyboardInterrupt):
        collect(small(seeds=5), tmp_path / "d", console=QUIET)
    done = whole(tmp_path / "d")
    assert 2 <= len(done) < 30
    monkeypatch.undo()
    collect(small(seeds=5), tmp_path / "d", console=QUIET)
    assert len(whole(tmp_path / "d")) == 30


@pytest.mark.slow
def test_killed_at_any_moment_it_goes_on(small, world, tmp_path):  # noqa: F811
    config = tmp_path / "c.yaml"
    given = {"world": world, "cameras": ["orbit", "w-30"], "chunks": 2, "batch": 3, "seeds": 6}
    config.write_text(yaml.safe_dump(given))
    command = ["collect", str(config), "--out", str(tmp_path / "d")]
    for least in (1, 9):
        process = multiprocessing.get_context("fork").Process(target=main, args=(command,))
        process.start()
        while sum(1 for _ in (tmp_path / "d").glob("shard-*/episode-?????")) < least:
            assert process.is_alive(), "it ended before it was killed"
            time.sleep(0.005)
        process.kill()
        process.join()
    at_kill = {row.id for row in Dataset.open(tmp_path / "d").rows()}
    assert 9 <= len(at_kill) < 36
    main(command)
    ids = whole(tmp_path / "d")
    assert len(ids) == 36 and at_kill <= set(ids)


def test_a_dataset_is_not_collected_into_its_folder_of_scenes(small, tmp_path):
    (tmp_path / "scenes").mkdir()
    Image.new("RGB", (9, 9)).save(tmp_path / "scenes" / "a.png")
    with pytest.raises(ValueError, match="is the folder of the scenes"):
        collect(small(scenes=[str(tmp_path / "scenes")]), tmp_path / "scenes", console=QUIET)
    assert [path.name for path in (tmp_path / "scenes").iterdir()] == ["a.png"]


@pytest.mark.slow
def test_two_processes_do_not_collect_the_same(small, tmp_path):
    seen = []

    def other(collection, jobs, dataset):
        with pytest.raises(BlockingIOError, match="Another process collects"):
            collect(small(), tmp_path / "d", console=QUIET)
        seen.append(True)
        yield from here(collection, jobs, dataset)

    collect(small(), tmp_path / "d", console=QUIET, run=other)
    assert seen and len(whole(tmp_path / "d")) == 6


@pytest.mark.slow
def test_parts_come_to_the_whole(small, tmp_path):
    threads = [
        threading.Thread(target=collect, args=(small(), tmp_path / "d"), kwargs={"console": QUIET, "part": (i, 2)})
        for i in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(whole(tmp_path / "d")) == 6
    assert len(Dataset.open(tmp_path / "d").shards) == 2


@pytest.mark.slow
def test_a_full_disk_is_one_sentence_and_leaves_the_finished(small, tmp_path, monkeypatch):
    count = iter(range(1000))
    append = VideoWriter.append

    def full(self, frames):
        if next(count) > 20:
            raise OSError(errno.ENOSPC, "No space left on device")
        append(self, frames)

    monkeypatch.setattr(VideoWriter, "append", full)
    with pytest.raises(OSError, match=r"No space left on device. \d+ episodes in .* are finished"):
        collect(small(seeds=5), tmp_path / "d", console=QUIET)
    done = whole(tmp_path / "d")
    assert 0 < len(done) < 10
    monkeypatch.undo()
    collect(small(seeds=5), tmp_path / "d", console=QUIET)
    assert len(whole(tmp_path / "d")) == 30


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0 or sys.platform != "linux", reason="mounts a small disk, as root")
def test_a_disk_that_is_really_full(small, tmp_path, monkeypatch):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("no small disk can be mounted here")
    try:
        monkeypatch.setattr("sanawm_env.recording.rollout._MIN_FREE_BYTES", 0)
        with pytest.raises(OSError, match=r"(?i)no space.*episodes in .* are finished"):
            collect(small(seeds=20), disk / "d", console=QUIET)
        assert 0 < len(whole(disk / "d")) < 120
    finally:
        subprocess.run(["umount", disk], check=True)


@pytest.mark.slow
def test_gates_throw_out_what_is_out_of_bounds_and_say_why(small, tmp_path):
    rows = collect(small(), tmp_path / "all", console=QUIET).rows()
    bound = sorted(row.measures["drift"] for row in rows)[2]
    dataset = collect(small(gates={"drift": bound}), tmp_path / "d", console=QUIET)
    kept = [row for row in dataset.rows() if row.episode]
    out = [row for row in dataset.rows() if not row.episode]
    assert (len(kept), len(out)) == (3, 3)
    assert all(row.measures["drift"] <= bound for row in kept)
    assert all("drift is" in row.reason and "at most" in row.reason for row in out)
    assert len(list(dataset.shards[0].glob("episode-*"))) == 3
    assert len(collect(small(gates={"drift": bound}), tmp_path / "d", console=QUIET).rows()) == 6  # not done again


def test_drift_and_closure_measure_what_they_say():
    rng = np.random.default_rng(0)
    scene = rng.integers(0, 256, (40, 60, 3), dtype=np.uint8)
    still = np.stack([scene] * 8)
    assert drift(still) == 0
    grey = np.stack([scene] * 4 + [np.full_like(scene, 128)] * 4)
    assert drift(grey) > 4
    dark = np.stack([scene] * 4 + [scene // 4] * 4)
    assert 1.5 < drift(dark) < 2.5
    there, back = np.tile(np.eye(4), (5, 1, 1)), np.tile(np.eye(4), (5, 1, 1))
    there[:, 2, 3], back[:, 2, 3] = np.linspace(0, 1, 5), np.linspace(1, 0, 5)
    path = np.concatenate((there, back))
    frames = np.stack([np.roll(scene, int(p[2, 3] * 20), 1) for p in path])
    assert loop_closure(frames, path) == 100
    frames[-1] = 255 - scene
    assert loop_closure(frames, path) < 75  # the last of three
    assert loop_closure(frames[:5], there) is None


def test_a_gate_does_not_hold_against_what_it_cannot_measure():
    assert judge({"drift": 1.0, "closure": None}, {"closure": 20, "drift": 2}) == ""
    assert judge({"drift": 1.0, "closure": 19.0}, {"closure": 20}) == "closure is 19, it must be at least 20"


def test_functions_of_ones_own_drive_too(small, tmp_path):
    def around(env, rng):
        while env.state.slots[0].chunk < 2:  # it sees where its last action has led
            yield np.array([0, 0, 0, 0, rng.uniform(-1, 1), 0], np.float32)

    collection = small(cameras=[Policy("around", around)], action_mode="twist", chunks=5)
    dataset = collect(collection, tmp_path / "d", console=QUIET)
    assert {row.chunks for row in dataset.rows()} == {2}
    assert len({tuple(e.arrays()["actions"][0]) for e in dataset.episodes()}) == 3  # every scene draws its own
    lazy = small(cameras=[Policy("lazy", lambda env, rng: iter(()))], action_mode="twist")
    with pytest.raises(ValueError, match="lazy yielded no action"):
        collect(lazy, tmp_path / "e", console=QUIET)


def test_tasks_reward_and_end_episodes(small, tmp_path):
    env = {"task": "pointnav", "task_options": {"radius": 60.0}}
    dataset = collect(small(cameras=["walk"], action_mode="twist", env=env), tmp_path / "d", console=QUIET)
    assert all(e.meta["terminated"] and e.chunks == 1 and e.meta["return"] > 0.5 for e in dataset.episodes())


@pytest.mark.slow
def test_scenes_of_every_kind(world, tmp_path):  # noqa: F811
    (tmp_path / "photos").mkdir()
    for i in range(2):
        Image.fromarray(picture(10 + i)).save(tmp_path / "photos" / f"{i}.jpg")
    Image.fromarray(picture(20)).save(tmp_path / "one.png")
    scenes = ["starts", "photos", "one.png", {"image": "one.png", "fov_deg": 80}]
    collection = Collection(world=world, scenes=scenes, folder=tmp_path)
    assert len(plan(collection, tmp_path / "d").jobs) == 3 + 2 + 1 + 1
    nano = Collection(scenes=[{"sample": 2, "seed": 5}], chunks=1)
    first, second = (plan(nano, tmp_path / name) for name in "ab")
    assert [job.id for job in first.jobs] == [job.id for job in second.jobs]
    assert first.jobs[0].start.image == tmp_path / "a" / "starts" / "sample-5-00000.png"
    (episode,) = collect(Collection(scenes=[{"sample": 1}], chunks=1), tmp_path / "n", console=QUIET).episodes()
    assert episode.meta["anchor"]["place"]
    list(episode.replay(tmp_path / "again"))
    assert differences(episode, RecordedEpisode.open(tmp_path / "again")) == []


POSES = "benchmark_v2_smooth_60s/sanawm_export_v2/game_001.npz"


def write_bench(root, image_path="images/game_001.png", camera_path=POSES):
    """SANA-WM-Bench with one scene (camera.md 7.1), at a tenth of the length."""
    (root / "images").mkdir(parents=True)
    Image.fromarray(picture(1)).save(root / "images" / "game_001.png")
    split = root / "benchmark_v2_smooth_60s"
    (split / "sanawm_export_v2").mkdir(parents=True)
    c2w = np.tile(np.eye(4), (97, 1, 1))
    c2w[:, 2, 3] = np.linspace(3, 4, 97)
    lens = np.tile(np.array([[45.0, 0, 25], [0, 45, 20], [0, 0, 1]]), (97, 1, 1))
    np.savez(split / "sanawm_export_v2" / "game_001.npz", c2w=c2w, intrinsics=lens, fps=16, num_frames=97)
    row = {"id": "game_001", "prompt": "", "image_path": image_path, "camera_path": camera_path}
    (split / "run_manifest.jsonl").write_text(json.dumps(row) + "\n")


def test_the_benchmark_is_a_source_of_scenes_and_cameras(world, tmp_path):  # noqa: F811
    write_bench(tmp_path / "bench")
    bench = {"root": "bench", "split": "simple_60s"}
    collection = Collection(world=world, bench=bench, folder=tmp_path)
    (episode,) = collect(collection, tmp_path / "d", console=QUIET).episodes()
    assert episode.meta["num_frames"] == 97
    np.testing.assert_allclose(episode.trajectory().c2w[[0, -1], 2, 3], [0, 1], atol=1e-12)
    assert episode.meta["camera"].endswith("game_001.npz")
    assert episode.meta["intrinsics"][0] == pytest.approx(45 * 32 / 50, abs=0.5)
    with pytest.raises(FileNotFoundError, match="run_manifest"):
        plan(Collection(world=world, bench=bench | {"split": "hard_60s"}, folder=tmp_path), tmp_path)
    with pytest.raises(ValueError, match="bench takes root"):
        plan(Collection(world=world, bench={"root": "bench", "split": "easy"}, folder=tmp_path), tmp_path)


@pytest.mark.parametrize("leads", [{"image_path": "../../secret.png"}, {"camera_path": "/etc/passwd"}])
def test_a_benchmark_cannot_lead_out_of_its_folder(world, tmp_path, leads):  # noqa: F811
    write_bench(tmp_path / "bench", **leads)
    collection = Collection(world=world, bench={"root": "bench", "split": "simple_60s"}, folder=tmp_path)
    with pytest.raises(ValueError, match="leads out of"):
        plan(collection, tmp_path)


@pytest.mark.slow
def test_the_example_is_a_collection(tmp_path):
    assert len(plan(Collection.load(ROOT / "examples" / "collect.yaml"), tmp_path).jobs) == 64


def test_scripts_are_read_from_text(tmp_path):
    c2w = np.tile(np.eye(4), (25, 1, 1))
    np.save(tmp_path / "p.npy", c2w)
    assert isinstance(read_script("p.npy", tmp_path, 60), Given)
    walk = read_script("random-walk", tmp_path, 60)
    config = Collection().config and plan(Collection(chunks=1), tmp_path).world.config
    assert not np.allclose(walk.path(2, 1, config), walk.path(2, 2, config))
    fixed = read_script("random-walk:seed=4", tmp_path, 60)
    assert np.array_equal(fixed.path(2, 1, config), fixed.path(2, 2, config))
    keys = read_script("w-30", tmp_path, 60)
    assert keys.length(None, config) == 2 and keys.length(1, config) == 1
    assert keys.path(2, 0, config).shape == (49, 4, 4)
    with pytest.raises(ValueError, match="no camera 'orbitt'"):
        read_script("orbitt", tmp_path, 60)
    with pytest.raises(FileNotFoundError, match="no file at"):
        read_script("none.npz", tmp_path, 60)


LEVELS = "abcdefghijkl"
BOMB = "a: &a [x]\n" + "".join(f"{b}: &{b} [{','.join([f'*{a}'] * 9)}]\n" for a, b in pairwise(LEVELS))
MERGED = "a: &a {x: 1}\n" + "".join(f"{b}: &{b} {{<<: [{','.join([f'*{a}'] * 9)}]}}\n" for a, b in pairwise(LEVELS))


def test_settings_mean_what_they_say(tmp_path):
    """As YAML 1.2 and people read them: PyYAML makes of these False, 750, a date and 8."""
    text = "\ufeffcameras: [&c orbit, *c]\r\nscenes: [{image: no, prompt: 2026-01-01}]\r\n"
    text += "gates: {drift: 1e-1}\nbatch: 010"
    (tmp_path / "c.yaml").write_bytes(text.encode())
    read = Collection.load(tmp_path / "c.yaml")
    assert read.scenes == [{"image": "no", "prompt": "2026-01-01"}]
    assert (read.cameras, read.gates, read.batch) == (["orbit", "orbit"], {"drift": 0.1}, 10)


def test_special_files_are_no_collections(tmp_path, capsys):
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "endless.yaml").symlink_to("/dev/zero")
    for name, says in (("pipe.yaml", "it is a pipe"), ("endless.yaml", "it is a device"), (".", "it is a folder")):
        assert says in refused(capsys, "collect", tmp_path / name, "--out", tmp_path / "d")


@pytest.fixture
def photos(tmp_path):
    """A folder with a picture that was cut off between two good ones."""
    (tmp_path / "photos").mkdir()
    for name in "abc":
        Image.fromarray(picture(ord(name))).save(tmp_path / "photos" / f"{name}.jpg")
    cut = tmp_path / "photos" / "b.jpg"
    cut.write_bytes(cut.read_bytes()[:400])
    return tmp_path / "photos"


@pytest.mark.parametrize("late", [False, True])
def test_an_image_that_cannot_be_read_is_a_rejected_row(small, photos, tmp_path, monkeypatch, late):
    if late:  # as if it broke only after it had been looked at
        monkeypatch.setattr("sanawm_env.agents.collection._unreadable", lambda starts, world: {})
    collection = small(scenes=[photos], cameras=["orbit"], chunks=1, batch=2)
    planned = plan(collection, tmp_path / "d")
    assert [path.name for path in planned.unreadable] == [] if late else ["b.jpg"]
    for _ in range(2):  # nothing is done twice
        rows = collect(collection, tmp_path / "d", console=QUIET).rows()
        assert sorted((Path(row.source).name, bool(row.episode)) for row in rows) == [
            ("a.jpg", True), ("b.jpg", False), ("c.jpg", True)
        ]  # fmt: skip
    (rejected,) = [row for row in rows if row.reason]
    assert "cannot be read as an image" in rejected.reason and rejected.camera == "orbit"
    Image.fromarray(picture(9)).save(photos / "b.jpg")  # another picture is another job
    assert len(collect(collection, tmp_path / "d", console=QUIET).finished()) == 3


def test_a_plan_shows_which_images_cannot_be_read(world, photos, tmp_path, capsys):  # noqa: F811
    (tmp_path / "c.yaml").write_text(f"world: {world}\nscenes: [photos]\ncameras: [orbit]\nchunks: 1\n")
    main(["collect", str(tmp_path / "c.yaml"), "--out", str(tmp_path / "d"), "--dry-run"])
    shown = capsys.readouterr().out
    assert "will be rejected" in shown and "b.jpg cannot be read as an image" in shown
    (tmp_path / "c.yaml").write_text(f"world: {world}\nscenes: [photos/b.jpg]\ncameras: [orbit]\nchunks: 1\n")
    assert "No start image can be read" in refused(capsys, "collect", tmp_path / "c.yaml", "--out", tmp_path / "d")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "not a mapping"),
        ("[1, 2]", "not a mapping"),
        ("scene: [starts]", "there is no setting 'scene'"),
        ("batch: 0", "batch must be at least 1, got 0"),
        ("chunks: many", "chunks must be a whole number"),
        ("seeds: [a]", "seeds[0] must be a whole number"),
        ("seeds: -1", "seeds must be at least 0 or a list, got -1"),
        ("seeds: 0", "nothing to collect"),
        ("scenes: starts", "scenes must be a list"),
        ("crf: 90", "crf must be at most 51, got 90"),
        ("gates: {blur: 1}", "gates are drift and closure"),
        ("env: {world: other}", "world must not be in env"),
        ("world: !!python/object/apply:os.system [ls]", "could not determine a constructor"),
        ("a: &a [*a", "does not describe a collection"),
        ("folder: /", "there is no setting 'folder'"),
        ("cameras: [orbit, flight]", "no camera 'flight'"),
        ("cameras: ['orbit:radius=fast']", "must be a number"),
        ("cameras: ['w-3000']\nenv: {horizon: reanchor}", "leaves the workspace"),
        ("chunks: 50\ncameras: [look-around]", "is validated to"),
        ("scenes: [none.png]", "no start image"),
        ("scenes: [{picture: a.png}]", "A scene is a mapping"),
        ("scenes: [{sample: x}]", "sample, the number of sampled scenes, must be"),
        ("action_mode: keys", 'action_mode "poses" or "twist"'),
        ("env: {task: fly}", "task must be one of"),
        ("world: elsewhere", "elsewhere"),
        ("seeds: 1000000000000000000", "seeds must be at most 1,000,000 or a list"),
        ("seeds: 12:30", "seeds must be a whole number or a list, got '12:30'"),
        (f"seeds: {'9' * 5000}", "seeds must be a whole number or a list, got inf"),
        ("scenes: [{sample: 1000000000}]", "from 0 to 10,000"),
        ("chunks: 1000000000\nenv: {horizon: reanchor}", "chunks must be at most 4,096"),
        ("threads: 100000", "threads must be at most 512"),
        ("batch: 1000000", "batch must be at most 256"),
        ("batch: yes", "got 'yes'"),
        ("batch: 2.0", "got 2.0"),
        ("seeds: 1\nseeds: 2", "gives 'seeds' twice"),
        ("gates: {drift: 1, drift: 2}", "gives 'drift' twice"),
        ("gates: {drift: .nan}", "got nan"),
        ("gates: {closure: -1}", "got -1"),
        ("gates: {closure: '20'}", "got '20'"),
        ("scenes:\n\t- starts", "found character '\\t' that cannot start any token (line 2)"),
        ("x: !!timestamp soon", "not YAML that can be read"),
        ("scenes: [12]", "got 12"),
        ("scenes: [{image: a.png, intrinsics: [1, 2]}]", "intrinsics has too few values, got [1, 2]"),
        ("scenes: [{image: a.png, fov_deg: wide}]", "got 'wide'"),
        ("device: [cpu]", "device must be text"),
        (BOMB, "expands to more than 200,000 values"),
        (MERGED, "expands to more than 200,000 values"),
    ],
)
def test_a_bad_config_is_refused_before_anything_is_written(text, says, tmp_path, capsys):
    (tmp_path / "c.yaml").write_text(text)
    assert says in refused(capsys, "collect", tmp_path / "c.yaml", "--out", tmp_path / "d")
    assert not (tmp_path / "d").exists()


def test_a_missing_config_and_a_bad_part_are_refused(tmp_path, capsys):
    assert "There is no file" in refused(capsys, "collect", tmp_path / "none.yaml")
    (tmp_path / "c.yaml").write_text("chunks: 1")
    for part in ("2/2", "1", "a/b", "-1/2"):
        assert "--part takes i/n" in refused(capsys, "collect", tmp_path / "c.yaml", f"--part={part}")


def test_a_config_too_large_is_not_read(tmp_path, capsys):
    (tmp_path / "c.yaml").write_text("#" * (2**20 + 1))
    assert "larger than" in refused(capsys, "collect", tmp_path / "c.yaml")


def test_the_plan_is_shown_and_nothing_is_written(world, tmp_path, capsys):  # noqa: F811
    (tmp_path / "c.yaml").write_text(yaml.safe_dump({"world": world, "chunks": 2, "seeds": 2}))
    main(["collect", str(tmp_path / "c.yaml"), "--out", str(tmp_path / "d"), "--dry-run"])
    shown = capsys.readouterr().out
    assert "episodes" in shown and "MB" in shown
    assert [path.name for path in tmp_path.iterdir()] == ["c.yaml"]


def test_the_estimate_is_near_what_it_takes(small, tmp_path):
    planned = plan(small(), tmp_path)
    expected = estimate(planned, None)["bytes"]
    dataset = collect(small(), tmp_path / "d", console=QUIET)
    taken = sum(row.bytes for row in dataset.rows())
    assert taken / 3 < expected < 3 * taken
    assert estimate(planned, dataset) | {"hours": 0} == {
        "episodes": 6, "done": 6, "chunks": 12, "frames": 294, "hours": 0, "bytes": 0
    }  # fmt: skip


@pytest.mark.slow
def test_memory_does_not_grow_with_the_list(small, tmp_path):
    """A stand-in for hours: twice the list takes no more."""
    tracemalloc.start()
    peaks, process = [], psutil.Process()
    resident = []
    for seeds in (range(1), range(200, 203), range(300, 306)):
        collect(small(cameras=["orbit"], chunks=1, seeds=list(seeds)), tmp_path / f"d{seeds.start}", console=QUIET)
        peaks.append(tracemalloc.get_traced_memory()[1])
        resident.append(process.memory_info().rss)
        tracemalloc.reset_peak()
    tracemalloc.stop()
    assert peaks[2] < 1.3 * peaks[1] + 500_000  # twice the list
    assert resident[2] - resident[1] < 40e6


@pytest.mark.slow
def test_the_chain_closes(tmp_path, capsys):
    """A dataset from the nano world trains a nano world, which can be rolled out."""
    given = {"scenes": [{"sample": 3}], "cameras": ["random-walk"], "chunks": 3, "batch": 3, "action_mode": "twist"}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(given))
    main(["collect", str(tmp_path / "c.yaml"), "--out", str(tmp_path / "d")])
    recipe = {
        "network": {"hidden_size": 64, "num_heads": 1, "depth": 2}, "codec": {"clips": 2, "channels": 16},
        "clips": {"chunks": 3, "height": 64, "width": 96}, "validation_scenes": 1,
        "train": {"steps": 2, "batch_size": 2, "single_chunk_steps": 1, "max_chunks": 2, "bf16": False},
    }  # fmt: skip
    (tmp_path / "r.json").write_text(json.dumps(recipe))
    unfinished = tmp_path / "d" / "shard-0000" / "episode-00009.partial"
    shutil.copytree(tmp_path / "d" / "shard-0000" / "episode-00000", unfinished)
    (unfinished / "video.mp4").write_bytes(b"unfinished")
    main(["train", "--data", str(tmp_path / "d"), "--config", str(tmp_path / "r.json"), "--out", str(tmp_path / "t"),
          "--processes", "1"])  # fmt: skip
    main(["rollout", "--world", str(tmp_path / "t" / "world"), "--image", str(ROOT / "docs" / "contact_sheet.png"),
          "--actions", "w-24", "--out", str(tmp_path / "back")])  # fmt: skip
    assert RecordedEpisode.open(tmp_path / "back").chunks == 1


@pytest.mark.slow
def test_the_commands_for_datasets(world, small, tmp_path, capsys):  # noqa: F811
    collect(small(), tmp_path / "d", console=QUIET)
    episode = tmp_path / "d" / "shard-0000" / "episode-00002"
    main(["dataset", "info", str(tmp_path / "d")])
    assert "orbit: 3" in capsys.readouterr().out
    main(["dataset", "validate", str(tmp_path / "d")])
    assert "6 episodes are good" in capsys.readouterr().out
    main(["dataset", "merge", str(tmp_path / "d"), "--out", str(tmp_path / "m")])
    assert "6 episodes were added to" in capsys.readouterr().out
    main(["dataset", "preview", str(tmp_path / "d"), "--out", str(tmp_path / "p")])
    assert {path.name for path in (tmp_path / "p").iterdir()} == {"preview.png", "trajectories.png"}
    main(["replay", str(episode), "--verify"])
    assert "byte for byte" in capsys.readouterr().out
    main(["replay", str(episode), "--out", str(tmp_path / "r")])
    assert (tmp_path / "r" / "video.mp4").read_bytes() == (episode / "video.mp4").read_bytes()
    (episode / "start.png").unlink()
    assert "have problems, listed above" in refused(capsys, "dataset", "validate", tmp_path / "d")
    meta = json.loads((episode / "meta.json").read_text())
    meta["seed"] += 1
    (episode / "meta.json").write_text(json.dumps(meta))
    shutil.copy(tmp_path / "m" / "shard-0000" / "episode-00002" / "start.png", episode)
    assert "is not the same when predicted again" in refused(capsys, "replay", episode, "--verify")
    for command in (("info",), ("validate",), ("preview",)):
        assert "There is no dataset" in refused(capsys, "dataset", *command, tmp_path / "none")
    assert "There is no dataset" in refused(capsys, "dataset", "merge", tmp_path / "none", "--out", tmp_path / "x")
    assert "There is no episode" in refused(capsys, "replay", tmp_path)


def test_a_file_in_the_place_of_the_folder_is_named_before_the_work(tmp_path, small):
    place = tmp_path / "photo.jpg"
    place.write_bytes(b"a photo")
    with pytest.raises(NotADirectoryError, match=r"cannot write .*photo\.jpg: a file stands where a folder is needed"):
        collect(small(scenes=[{"sample": 1}]), place, console=QUIET)
    assert place.read_bytes() == b"a photo"
