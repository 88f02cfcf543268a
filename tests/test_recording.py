"""What a rollout leaves behind: videos that play, paths that can be read back, sheets, and no half-written file."""

import errno
import json
import os
import struct
import tracemalloc
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from sanawm_env.camera.trajectory import load_trajectory
from sanawm_env.recording import rollout as rollout_module
from sanawm_env.recording.exports import Look
from sanawm_env.recording.rollout import RolloutWriter
from sanawm_env.recording.sheet import contact_sheet, evenly_spaced
from sanawm_env.recording.video import VideoWriter, frame_times, read_video

RESULTS = {"video.mp4", "trajectory.npz", "contact_sheet.png", "meta.json"}
INTRINSICS = np.array([[80.0, 0, 48], [0, 80, 32], [0, 0, 1]])


def clip(count, height=64, width=96, first=0):
    """Smooth frames whose brightness tells their index."""
    y, x = np.mgrid[:height, :width]
    frames = [
        np.stack([x * 100 // width, y * 100 // height, np.full_like(x, 2 * i % 200)], axis=-1)
        for i in range(first, first + count)
    ]
    return np.array(frames, dtype=np.uint8).reshape(count, height, width, 3)


def poses(count, first=0):
    c2w = np.tile(np.eye(4), (count, 1, 1))
    c2w[:, 2, 3] = 0.05 * np.arange(first, first + count)
    return c2w


def record(out_dir, clips=2, **options):
    with RolloutWriter(out_dir, fps=16, **options) as writer:
        writer.append(clip(1), poses(1), INTRINSICS)
        for j in range(clips):
            writer.append(clip(24, first=24 * j + 1), poses(24, 24 * j + 1), INTRINSICS)


# ---- many writers, full disks


def test_a_second_writer_of_a_folder_is_refused_before_its_work(tmp_path):
    with RolloutWriter(tmp_path) as writer:
        with pytest.raises(BlockingIOError, match="another process writes there"), RolloutWriter(tmp_path):
            pytest.fail("refused too late")
        writer.append(clip(1), poses(1), INTRINSICS)
    record(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(RolloutWriter.names)


@pytest.mark.parametrize("step", ["savez_compressed", "append"])
def test_a_disk_that_fills_up_leaves_the_older_rollout_whole(tmp_path, monkeypatch, step):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    record(tmp_path, clips=1)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    monkeypatch.setattr(*((rollout_module.np, step) if step == "savez_compressed" else (VideoWriter, step)), full)
    with pytest.raises(OSError, match=r"^cannot write .*: No space left on device$"):
        record(tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_sheet_is_drawn_whatever_its_title_says(tmp_path):
    record(tmp_path, clips=1, meta={"title": "a\nb \udcff $x$ [b]"})
    assert json.loads((tmp_path / "meta.json").read_text())["title"] == "a\nb \udcff $x$ [b]"


# ---- video


def test_a_video_shows_the_frames_it_was_given(tmp_path):
    frames = clip(30)
    with VideoWriter(tmp_path / "v.mp4", crf=10) as video:
        video.append(frames[:1])
        video.append(frames[1:])
    assert video.num_frames == 30
    seen = read_video(tmp_path / "v.mp4")
    assert seen.shape == frames.shape
    error = np.abs(seen.astype(int) - frames)
    assert error.mean() < 3
    assert error.max() < 30


def test_a_video_is_what_browsers_play(tmp_path):
    with VideoWriter(tmp_path / "v.mp4", fps=16) as video:
        video.append(clip(24))
    with av.open(str(tmp_path / "v.mp4")) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == "h264"
        assert stream.codec_context.pix_fmt == "yuv420p"
        assert stream.average_rate == 16
        assert stream.frames == 24
    data = (tmp_path / "v.mp4").read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")


@pytest.mark.parametrize(("height", "width", "shown"), [(64, 96, (64, 96)), (63, 95, (64, 96)), (1, 1, (2, 2))])
def test_odd_sizes_are_padded_to_even_ones(tmp_path, height, width, shown):
    with VideoWriter(tmp_path / "v.mp4") as video:
        video.append(clip(3, height, width))
    assert read_video(tmp_path / "v.mp4").shape == (3, *shown, 3)


def test_upscaling_repeats_pixels(tmp_path):
    frames = clip(2, 8, 12)
    with VideoWriter(tmp_path / "v.mp4", upscale=4, crf=0) as video:
        video.append(frames)
    seen = read_video(tmp_path / "v.mp4")
    assert seen.shape == (2, 32, 48, 3)
    assert np.abs(seen[:, 2::4, 2::4].astype(int) - frames).max() < 12


def test_the_quality_parameter_decides_the_size(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (8, 64, 96, 3), dtype=np.uint8)
    for crf in (5, 45):
        with VideoWriter(tmp_path / f"{crf}.mp4", crf=crf) as video:
            video.append(noise)
    assert (tmp_path / "5.mp4").stat().st_size > 2 * (tmp_path / "45.mp4").stat().st_size


@pytest.mark.parametrize("stop", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_video_keeps_the_finished_frames(tmp_path, stop):
    with pytest.raises(stop), VideoWriter(tmp_path / "v.mp4") as video:
        video.append(clip(10))
        raise stop
    assert len(read_video(tmp_path / "v.mp4")) == 10
    assert [file.name for file in tmp_path.iterdir()] == ["v.mp4"]


def test_an_unfinished_video_does_not_bear_the_final_name(tmp_path):
    video = VideoWriter(tmp_path / "v.mp4")
    video.append(clip(60))
    assert not (tmp_path / "v.mp4").exists()
    video.close()
    video.close()
    assert len(read_video(tmp_path / "v.mp4")) == 60


def test_a_video_without_frames_leaves_no_file(tmp_path):
    with VideoWriter(tmp_path / "v.mp4"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_no_broken_video(tmp_path, monkeypatch):
    video = VideoWriter(tmp_path / "v.mp4")
    video.append(clip(5))

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(video, "_encode", full)
    with pytest.raises(OSError, match=r"cannot write the video .*No space left"):
        video.append(clip(5))
    video.close()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "frames",
    [
        np.zeros((2, 64, 96, 3)),
        np.zeros((64, 96, 3), np.uint8),
        np.zeros((2, 64, 96, 4), np.uint8),
        np.zeros((2, 0, 96, 3), np.uint8),
    ],
    ids=["float", "one frame", "rgba", "empty"],
)
def test_arrays_that_are_not_frames_are_refused(tmp_path, frames):
    with VideoWriter(tmp_path / "v.mp4") as video, pytest.raises(ValueError, match="frames must be uint8"):
        video.append(frames)


def test_frames_of_another_size_are_refused_and_the_video_stays_good(tmp_path):
    with VideoWriter(tmp_path / "v.mp4") as video:
        video.append(clip(4))
        with pytest.raises(ValueError, match="keep the size"):
            video.append(clip(4, 32, 48))
    assert len(read_video(tmp_path / "v.mp4")) == 4
    with pytest.raises(ValueError, match="closed"):
        video.append(clip(4))


@pytest.mark.parametrize("options", [{"fps": 0}, {"crf": 52}, {"upscale": 0}, {"upscale": 1.5}])
def test_impossible_video_options_are_refused(tmp_path, options):
    with pytest.raises(ValueError, match=next(iter(options))):
        VideoWriter(tmp_path / "v.mp4", **options)


def test_pictures_too_large_for_a_video_are_refused(tmp_path):
    with VideoWriter(tmp_path / "v.mp4", upscale=64) as video, pytest.raises(ValueError, match="too large"):
        video.append(np.zeros((1, 64, 256, 3), np.uint8))
    assert not (tmp_path / "v.mp4").exists()


def stored(path, *changes):
    """A video of 9 frames, bright on the left and brighter above. changes: of its bytes, (box, offset from its name,
    bytes)."""
    frames = np.zeros((9, 64, 96, 3), np.uint8)
    frames[:, :, :48] = 100
    frames[:, :32, :48] = 200
    with VideoWriter(path) as video:
        video.append(frames)
    data = bytearray(path.read_bytes())
    for box, offset, new in changes:
        at = data.index(box) + offset
        data[at : at + len(new)] = new
    path.write_bytes(data)
    return frames


@pytest.mark.parametrize(
    ("matrix", "shown"),
    [
        ((0, 1, -1, 0), lambda f: np.rot90(f, -1, (1, 2))),
        ((-1, 0, 0, -1), lambda f: np.rot90(f, 2, (1, 2))),
        ((0, -1, 1, 0), lambda f: np.rot90(f, 1, (1, 2))),
        ((-1, 0, 0, 1), lambda f: f[:, :, ::-1]),
        ((1, 0, 0, -1), lambda f: f[:, ::-1]),
        ((0, 1, 1, 0), lambda f: f.swapaxes(1, 2)),
        ((1, 0, 0, 1), lambda f: f),
        ((0, 0, 0, 0), lambda f: f),
    ],
)
def test_a_video_is_read_as_it_is_to_be_shown(tmp_path, matrix, shown):
    a, b, c, d = (number << 16 for number in matrix)
    turned = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    frames = stored(tmp_path / "v.mp4", (b"tkhd", 44, turned))
    read = read_video(tmp_path / "v.mp4")
    assert read.shape == shown(frames).shape
    assert np.abs(read.astype(int) - shown(frames)).max() < 40  # what the codec loses at the edges
    assert read.flags.c_contiguous


def test_a_video_turned_askew_is_refused(tmp_path):
    stored(tmp_path / "v.mp4", (b"tkhd", 44, struct.pack(">9i", 1 << 16, 1 << 15, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)))
    with pytest.raises(ValueError, match="not a multiple of 90 degrees"):
        read_video(tmp_path / "v.mp4")


MANY = 6 * 10**7


@pytest.mark.parametrize(
    "changes",
    [
        [(b"stsd", 12, b"zzzz")],
        [(b"stsd", 16, b"zzzz")],
        [(b"stsz", 8, struct.pack(">II", 1, MANY)), (b"stts", 8, struct.pack(">III", 1, MANY, 512))],
        [(b"stsz", 12, struct.pack(">I", 2**32 - 1))],
        [(b"hdlr", 12, b"soun")],
        [(b"moov", 0, b"cmov")],
        [(b"moov", 0, b"free"), (b"stsz", 8, struct.pack(">II", 1, MANY))],
        [(b"moov", 0, b"none")],
    ],
)
def test_a_video_whose_index_lies_is_refused_in_a_sentence(tmp_path, changes):
    path = tmp_path / "v.mp4"
    stored(path, *changes)
    for read in (read_video, Look.of, frame_times):
        with pytest.raises(ValueError, match=r"cannot be read as a video|has no frames") as caught:
            read(path)
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_a_video_cut_off_is_refused(tmp_path):
    stored(tmp_path / "v.mp4")
    whole = (tmp_path / "v.mp4").read_bytes()
    for length in range(0, len(whole) - 400, 150):
        (tmp_path / "v.mp4").write_bytes(whole[:length])
        try:
            assert len(read_video(tmp_path / "v.mp4")) <= 9
        except ValueError as error:
            assert "video" in str(error)


def test_special_files_are_no_videos(tmp_path):
    os.mkfifo(tmp_path / "pipe.mp4")
    (tmp_path / "endless.mp4").symlink_to("/dev/zero")
    for name, says in (("pipe.mp4", "a pipe"), ("endless.mp4", "a device"), (".", "a folder")):
        with pytest.raises(ValueError, match=says):
            read_video(tmp_path / name)


def test_names_that_look_like_protocols_are_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("12:30.mp4", "http:v.mp4", "file:v.mp4", "v%03d.mp4", "a b[1]'.mp4"):
        stored(Path(name))
        assert len(read_video(name)) == 9 and Look.of(Path(name)).width == 96


def test_frames_are_in_memory_once(tmp_path):
    with VideoWriter(tmp_path / "v.mp4") as video:
        video.append(np.zeros((64, 64, 96, 3), np.uint8))
    size = 64 * 64 * 96 * 3
    tracemalloc.start()
    frames = read_video(tmp_path / "v.mp4", most_bytes=size)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert frames.nbytes == size
    assert peak < size + 8 * 64 * 96 * 3  # the frames and a few on their way; two copies would be 64 more
    with pytest.raises(ValueError, match="take more than"):
        read_video(tmp_path / "v.mp4", most_bytes=size - 1)


def test_times_of_frames_are_read_without_decoding(tmp_path):
    stored(tmp_path / "v.mp4")
    np.testing.assert_allclose(frame_times(tmp_path / "v.mp4"), np.arange(9) / 16, atol=1e-4)


def test_reading_what_is_no_video_says_so(tmp_path):
    (tmp_path / "text.mp4").write_text("hello")
    with pytest.raises(ValueError, match="cannot be read as a video"):
        read_video(tmp_path / "text.mp4")
    with pytest.raises(FileNotFoundError, match="no video"):
        read_video(tmp_path / "none.mp4")


# ---- contact sheet


@pytest.mark.parametrize("count", [1, 2, 16, 97])
@pytest.mark.parametrize("with_path", [False, True])
def test_a_contact_sheet_is_a_picture(tmp_path, count, with_path):
    contact_sheet(clip(count), tmp_path / "s.png", c2w=poses(count) if with_path else None, title="a title")
    with Image.open(tmp_path / "s.png") as sheet:
        assert sheet.format == "PNG"
        assert len(sheet.getcolors(1 << 24)) > 100


def test_a_contact_sheet_shows_first_and_last_frame(tmp_path):
    frames = np.zeros((40, 64, 96, 3), np.uint8)
    frames[0, ..., 0] = frames[-1, ..., 1] = 255
    contact_sheet(frames, tmp_path / "s.png")
    colours = {colour for _, colour in Image.open(tmp_path / "s.png").getcolors(1 << 24)}
    assert {(255, 0, 0), (0, 255, 0)} <= colours


@pytest.mark.slow
def test_the_path_from_above_moves_with_the_camera(tmp_path):
    def picture(c2w):
        contact_sheet(clip(25), tmp_path / "s.png", c2w=c2w)
        return np.asarray(Image.open(tmp_path / "s.png")).copy()

    forward, sideways = poses(25), poses(25)
    sideways[:, :3, 3] = sideways[:, [2, 1, 0], 3]
    moved = np.diag([1.0, 1, 1, 1])
    moved[:3, 3] = (5, 1, -3)
    assert not np.array_equal(picture(forward), picture(sideways))
    assert np.array_equal(picture(forward), picture(moved @ forward))  # the world's origin does not matter


def test_evenly_spaced_indices_hold_both_ends():
    assert evenly_spaced(97, 5).tolist() == [0, 24, 48, 72, 96]
    assert evenly_spaced(3, 10).tolist() == [0, 1, 2]
    assert evenly_spaced(50, 1).tolist() == [0]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"frames": np.zeros((0, 4, 4, 3), np.uint8)}, "frames must be"),
        ({"frames": np.zeros((2, 4, 4, 3))}, "frames must be"),
        ({"frames": clip(2), "columns": 0}, "at least one column"),
        ({"frames": clip(2), "labels": ["one"]}, "as many labels"),
        ({"frames": clip(2), "c2w": poses(1)}, "a pose for every index"),
        ({"frames": clip(2), "c2w": poses(2) * np.nan}, "c2w must be finite"),
    ],
)
def test_bad_contact_sheets_are_refused(tmp_path, arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        contact_sheet(path=tmp_path / "s.png", **arguments)
    assert list(tmp_path.iterdir()) == []


# ---- rollout folder


def test_a_rollout_leaves_four_files_that_agree(tmp_path):
    record(tmp_path / "run", clips=2, meta={"world": "nano", "seed": 0, "path": tmp_path, "rate": np.float32(0.5)})
    assert {file.name for file in (tmp_path / "run").iterdir()} == RESULTS
    assert len(read_video(tmp_path / "run/video.mp4")) == 49
    with np.load(tmp_path / "run/trajectory.npz", allow_pickle=False) as file:
        assert set(file.files) == {"c2w", "intrinsics", "fps", "num_frames"}
        assert np.array_equal(file["c2w"], poses(49))
        assert np.array_equal(file["intrinsics"], np.tile(INTRINSICS, (49, 1, 1)))
        assert file["fps"] == 16
        assert file["num_frames"] == 49
    meta = json.loads((tmp_path / "run/meta.json").read_text())
    assert (meta["world"], meta["seed"], meta["rate"], meta["path"]) == ("nano", 0, 0.5, str(tmp_path))
    assert (meta["num_frames"], meta["fps"], meta["interrupted"]) == (49, 16, False)
    assert set(meta["versions"]) == {"sanawm_env", "torch", "numpy", "av", "python"}


def test_meta_can_be_added_to_until_the_end(tmp_path):
    with RolloutWriter(tmp_path, meta={"world": "nano"}) as writer:
        writer.append(clip(1), poses(1), INTRINSICS)
        writer.meta["frames_per_second"] = 80.5
    assert json.loads((tmp_path / "meta.json").read_text())["frames_per_second"] == 80.5


def test_ctrl_c_keeps_the_finished_clips(tmp_path):
    with pytest.raises(KeyboardInterrupt), RolloutWriter(tmp_path) as writer:
        writer.append(clip(1), poses(1), INTRINSICS)
        writer.append(clip(24, first=1), poses(24, 1), INTRINSICS)
        raise KeyboardInterrupt
    assert {file.name for file in tmp_path.iterdir()} == RESULTS
    assert len(read_video(tmp_path / "video.mp4")) == len(load_trajectory(tmp_path / "trajectory.npz").c2w) == 25
    assert json.loads((tmp_path / "meta.json").read_text())["interrupted"] is True


def test_ctrl_c_within_a_clip_keeps_a_pose_per_frame(tmp_path, monkeypatch):
    encode = VideoWriter._encode

    def interrupted(self, frame):
        if self.num_frames == 12:
            raise KeyboardInterrupt
        encode(self, frame)

    monkeypatch.setattr(VideoWriter, "_encode", interrupted)
    with pytest.raises(KeyboardInterrupt):
        record(tmp_path)
    assert len(read_video(tmp_path / "video.mp4")) == len(load_trajectory(tmp_path / "trajectory.npz").c2w) == 12


def test_a_rollout_that_fails_before_the_first_frame_leaves_no_file(tmp_path):
    with pytest.raises(RuntimeError), RolloutWriter(tmp_path):
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_a_new_rollout_replaces_the_old_one(tmp_path):
    record(tmp_path, clips=2)
    record(tmp_path, clips=1)
    assert {file.name for file in tmp_path.iterdir()} == RESULTS
    assert len(read_video(tmp_path / "video.mp4")) == load_trajectory(tmp_path / "trajectory.npz").c2w.shape[0] == 25


@pytest.mark.parametrize(
    "bad",
    [
        {"c2w": poses(23)},
        {"c2w": np.eye(4)},
        {"intrinsics": np.eye(4)},
        {"frames": clip(24).astype(float)},
        {"frames": clip(24, 32, 48)},
    ],
    ids=["too few poses", "one pose", "intrinsics", "float frames", "another size"],
)
def test_a_refused_clip_leaves_the_rollout_good(tmp_path, bad):
    good = {"frames": clip(24), "c2w": poses(24), "intrinsics": INTRINSICS}
    with RolloutWriter(tmp_path) as writer:
        writer.append(**good)
        with pytest.raises(ValueError, match=r"got|size"):
            writer.append(**(good | bad))
        writer.append(**good)
    assert len(read_video(tmp_path / "video.mp4")) == len(load_trajectory(tmp_path / "trajectory.npz").c2w) == 48


def test_an_unwritable_folder_fails_before_the_work(tmp_path):
    (tmp_path / "file").write_text("in the way")
    for folder in (tmp_path / "file", tmp_path / "file/below"):
        with pytest.raises(NotADirectoryError, match="a file stands where a folder is needed"):
            RolloutWriter(folder)


def test_a_forbidden_folder_fails_before_the_work(tmp_path, monkeypatch):
    def forbidden(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(rollout_module.tempfile, "TemporaryFile", forbidden)
    with pytest.raises(PermissionError, match="Permission denied, choose another folder"):
        RolloutWriter(tmp_path)


def test_a_full_disk_fails_before_the_work(tmp_path, monkeypatch):
    usage = rollout_module.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(rollout_module.shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(OSError, match="less than 64 MB are free"):
        RolloutWriter(tmp_path)


def test_a_folder_in_the_place_of_a_result_fails_before_the_work(tmp_path):
    (tmp_path / "meta.json").mkdir()
    with pytest.raises(IsADirectoryError, match=r"meta\.json"):
        RolloutWriter(tmp_path)


def test_a_disk_that_fills_up_on_the_way_leaves_no_broken_file(tmp_path, monkeypatch):
    encode = VideoWriter._encode

    def full(self, frame):
        if self.num_frames == 12:
            raise OSError(errno.ENOSPC, "No space left on device")
        encode(self, frame)

    monkeypatch.setattr(VideoWriter, "_encode", full)
    with pytest.raises(OSError, match=r"cannot write .*video.mp4: No space left"):
        record(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_up_at_the_end_leaves_no_broken_file(tmp_path, monkeypatch):
    def full(file, **_):
        file.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(rollout_module.np, "savez_compressed", full)
    with pytest.raises(OSError, match=r"cannot write .*: No space left"):
        record(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_memory_does_not_grow_with_the_length(tmp_path):
    def held(clips):
        tracemalloc.start()
        with RolloutWriter(tmp_path / str(clips)) as writer:
            for _ in range(clips):
                writer.append(clip(24, 32, 48), poses(24), INTRINSICS)
            held = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        return held

    one_clip = 24 * 32 * 48 * 3
    assert held(30) - held(10) < 3 * one_clip  # 20 clips more: poses and nothing else


def test_the_sheet_of_a_long_rollout_is_evenly_spaced():
    thumbnails = rollout_module._Thumbnails()
    for j in range(100):
        thumbnails.add(24 * j, clip(24, 4, 6, first=24 * j))
    indices, frames = thumbnails.pick(15)
    assert indices[0] == 0
    assert indices[-1] == 2399
    assert np.diff(indices).min() > 0.5 * 2399 / 14
    assert frames[:, 0, 0, 2].tolist() == [2 * i % 200 for i in indices]


# ---- trajectories


def test_a_plain_npy_is_a_trajectory(tmp_path):
    np.save(tmp_path / "poses.npy", poses(49).astype(np.float32))
    trajectory = load_trajectory(tmp_path / "poses.npy")
    assert trajectory.c2w.dtype == np.float64
    assert np.array_equal(trajectory.c2w, poses(49).astype(np.float32))
    assert trajectory.intrinsics is None
    assert trajectory.fps is None


def test_a_recorded_trajectory_reads_back(tmp_path):
    record(tmp_path)
    trajectory = load_trajectory(tmp_path / "trajectory.npz")
    assert np.array_equal(trajectory.c2w, poses(49))
    assert trajectory.intrinsics.shape == (49, 3, 3)
    assert trajectory.fps == 16


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"poses": poses(3)}, "no array named c2w"),
        ({"c2w": np.eye(4)}, "shape"),
        ({"c2w": poses(0)}, "at least one frame"),
        ({"c2w": poses(3) * np.nan}, "not finite"),
        ({"c2w": 2 * poses(3)}, "pose 0"),
        ({"c2w": poses(3), "intrinsics": np.eye(3)}, "intrinsics in"),
        ({"c2w": poses(3), "fps": 0}, "fps in"),
        ({"c2w": np.array(["a", "b"])}, "cannot be read"),
        ({"c2w": np.array([{"pickled": 1}], dtype=object)}, "cannot be read"),
    ],
)
def test_bad_trajectories_are_refused(tmp_path, fields, sentence):
    np.savez(tmp_path / "t.npz", **fields)
    with pytest.raises(ValueError, match=sentence):
        load_trajectory(tmp_path / "t.npz")


def test_files_that_are_no_trajectory_are_refused(tmp_path):
    record(tmp_path, clips=1)
    whole = (tmp_path / "trajectory.npz").read_bytes()
    for content in (b"", b"hello", whole[: len(whole) // 2]):
        (tmp_path / "t.npz").write_bytes(content)
        with pytest.raises(ValueError, match="cannot be read as"):
            load_trajectory(tmp_path / "t.npz")
    (tmp_path / "folder").mkdir()
    with pytest.raises(FileNotFoundError, match="no file"):
        load_trajectory(tmp_path / "none.npy")
    with pytest.raises(ValueError, match="cannot be read"):
        load_trajectory(tmp_path / "folder")
