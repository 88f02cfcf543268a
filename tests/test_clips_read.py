"""Clips of one's own: brought to 16 frames a second with their poses, or refused before the work, all at once."""

import runpy
import shutil
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from sanawm_env.camera.trajectory import inverse, load_trajectory, relative_to_first
from sanawm_env.cli.arguments import TrajectoryReading
from sanawm_env.cli.footage import find_clips, plan, plan_clip, poses_beside
from sanawm_env.recording.score_clips import find_clips as clips_to_score
from sanawm_env.recording.video import VideoWriter, read_video
from sanawm_env.training.warps import plane_homographies, warp
from tests.datasets import write_wide
from tests.test_trajectories import WRITERS, walk, write_colmap_text, write_kitti, write_nerfstudio, write_tum

ROOT = Path(__file__).parents[1]
SHADE = 50  # grey levels a second


def pictures(seconds, size=(64, 96)):
    """Their brightness grows with time; a white bar lies along the top."""
    shades = np.round(np.asarray(seconds) * SHADE).astype(np.uint8)
    frames = np.broadcast_to(shades[:, None, None, None], (len(shades), *size, 3)).copy()
    frames[:, : size[0] * 3 // 8] = 255
    return frames


def forward(seconds):
    """c2w that go ahead with a metre a second."""
    c2w = np.tile(np.eye(4), (len(seconds), 1, 1))
    c2w[:, 2, 3] = seconds
    return c2w


def clip(folder, fps=16.0, frames=49, says=None, poses=None, lens=True):
    """A rollout's folder: a video and trajectory.npz."""
    folder.mkdir()
    with VideoWriter(folder / "video.mp4", fps=fps, crf=0) as video:
        video.append(pictures(np.arange(frames) / fps))
    c2w = forward(np.arange(poses or frames) / fps)
    lenses = {"intrinsics": np.tile([[80.0, 0, 48], [0, 80, 32], [0, 0, 1]], (len(c2w), 1, 1))} if lens else {}
    np.savez(folder / "trajectory.npz", c2w=c2w, fps=fps if says is None else says, **lenses)
    return folder / "video.mp4"


def film(path, seconds, turn=0, size=(64, 96)):
    """A video whose frames are shown at uneven times, stored turned by `turn` degrees and marked so, as phones do."""
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=30, options={"crf": "0"})
        frames = np.ascontiguousarray(np.rot90(pictures(seconds, size), -turn // 90, (1, 2)))
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt, stream.time_base = "yuv420p", Fraction(1, 90_000)
        stream.codec_context.time_base = Fraction(1, 90_000)
        if turn:
            stream.set_display_rotation(turn)
        for time, frame in zip(seconds, frames, strict=True):
            picture = av.VideoFrame.from_ndarray(frame)
            picture.pts, picture.time_base = round(time * 90_000), Fraction(1, 90_000)
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    return path


def planned(data, fov_deg=None, **reading):
    """The only clip of a folder."""
    (video,) = find_clips(data)
    return plan_clip(video, poses_beside(data, TrajectoryReading(**reading)), fov_deg)


def check_together(found, slack=0.035):
    """Each picture with the pose that is its own, by the time that both tell."""
    footage = found.read()
    shown = footage.frames[:, 48, 48, 0] / SHADE
    np.testing.assert_allclose(shown - shown[0], footage.c2w[:, 2, 3], atol=slack)


@pytest.mark.parametrize("fps", [30, 60, 24])
def test_a_faster_clip_is_brought_to_16_frames_a_second(tmp_path, fps):
    clip(tmp_path / "a", fps, frames=3 * fps + 1)
    found = planned(tmp_path)
    assert len(found.shown) == len(found.c2w) == 49 and not found.warnings
    np.testing.assert_allclose(found.c2w[:, 2, 3], np.arange(49) / 16, atol=0.51 / fps)  # the nearest frame
    check_together(found)


def test_a_fast_turn_is_warned_of_by_its_path_and_not_by_the_frames_that_are_taken(tmp_path):
    seconds = np.arange(35) / 35  # of which every second or third is taken
    film(tmp_path / "a.mp4", seconds)
    for speed, warned in ((36, False), (45, True)):
        c2w = forward(seconds)
        c2w[:, :3, :3] = Rotation.from_rotvec(np.radians(speed) * seconds[:, None] * (0, 1, 0)).as_matrix()
        write_kitti(tmp_path / "a.txt", c2w)
        assert any("degrees a second, faster than" in text for text in planned(tmp_path, 70.0).warnings) is warned


def test_a_clip_of_16_frames_a_second_is_taken_whole(tmp_path):
    clip(tmp_path / "a")
    found = planned(tmp_path)
    assert found.shown.tolist() == list(range(49))
    np.testing.assert_array_equal(found.c2w, forward(np.arange(49) / 16))
    np.testing.assert_allclose(found.intrinsics, (80, 80, 48, 32))


def test_a_clip_is_not_given_the_poses_of_one_with_a_longer_name(tmp_path):
    """walk.2.npz is not of walk.mp4; what macOS leaves beside both, and what a killed writer left, is no clip."""
    folder = tmp_path / "taken.part"  # somebody's own folder, whatever it is called
    folder.mkdir()
    for name in ("walk", "walk.2", "._walk"):
        (folder / f"{name}.mp4").touch()
        np.save(folder / f"{name}.npy", forward(np.arange(len(name)) / 16))
    (folder / "x.mp4.part").mkdir()
    (folder / "x.mp4.part" / "x.mp4").touch()
    videos = find_clips(folder)
    assert [video.name for video in videos] == ["walk.2.mp4", "walk.mp4"]
    poses = poses_beside(folder, TrajectoryReading())
    assert [len(poses(video).c2w) for video in videos] == [6, 4]
    assert [clip.name for clip in clips_to_score(folder)] == ["walk.2", "walk"]


@pytest.mark.parametrize("name", WRITERS)
def test_a_file_of_poses_in_every_format_is_found_beside_its_clip(tmp_path, name):
    film(tmp_path / "walk.MOV", np.arange(40) / 16, size=(48, 64))
    WRITERS[name](tmp_path / {"colmap": "walk", "npy": "walk.npy"}.get(name.split()[0], "walk.txt"), walk())
    lens = name in ("realestate10k", "nerfstudio") or "colmap" in name
    found = planned(tmp_path, None if lens else 70.0)
    np.testing.assert_allclose(found.c2w, relative_to_first(walk()), atol=1e-6)
    np.testing.assert_allclose(found.intrinsics[0], 75 if lens else 68.55, atol=0.01)  # of 96 pixels across


@pytest.mark.parametrize("turn", [90, 180, 270])
def test_a_clip_that_was_filmed_upright_is_learned_from_upright(tmp_path, turn):
    film(tmp_path / "phone.mp4", np.arange(0, 1, 1 / 30), turn=turn, size=(96, 64))
    write_kitti(tmp_path / "phone.txt", forward(np.arange(30) / 30))
    found = planned(tmp_path, fov_deg=60.0)
    shown = found.read().frames
    assert shown.shape == (16, 64, 96, 3)
    assert (
        shown[0, 0].mean() > 150 > shown[0, 20:].mean()
    )  # what is cut out of the middle keeps a part of the bar, above
    np.testing.assert_allclose(found.intrinsics, (83.14, 83.14, 48, 32), atol=0.01)  # of the 64 pixels that are across
    np.savez(tmp_path / "phone.npz", c2w=np.eye(4)[None].repeat(30, 0), intrinsics=np.tile(
        [[80.0, 0, 48], [0, 80, 32], [0, 0, 1]], (30, 1, 1)))  # fmt: skip
    (tmp_path / "phone.txt").unlink()
    if turn != 180:
        with pytest.raises(
            ValueError, match=r"phone.mp4 has upright frames of 64 x 96 pixels, .* for 96 x 64: estimate the poses"
        ):
            planned(tmp_path)


UNEVEN = np.cumsum(np.random.default_rng(0).choice((1 / 60, 1 / 30, 1 / 24), 120))
UNEVEN -= UNEVEN[0]


@pytest.mark.parametrize("poses", ["each frame", "its own rate", "a rate that is given", "a clock of its own"])
def test_the_frames_of_a_variable_rate_are_taken_by_their_time(tmp_path, poses):
    film(tmp_path / "phone.mp4", UNEVEN)
    last, reading = UNEVEN[-1], {}
    if poses == "each frame":
        write_kitti(tmp_path / "phone.txt", forward(UNEVEN))
    elif poses == "its own rate":
        stamps = np.arange(0, last, 1 / 50)
        rows = np.column_stack([stamps, forward(stamps)[:, :3, 3], np.tile((0, 0, 0, 1), (len(stamps), 1))])
        np.savetxt(tmp_path / "phone.txt", rows)
    elif poses == "a clock of its own":
        write_tum(tmp_path / "phone.txt", forward(np.arange(0, last + 0.01, 1 / 50)), fps=50)
    else:
        write_kitti(tmp_path / "phone.txt", forward(np.arange(0, last + 0.1, 1 / 10)))
        reading = {"trajectory_fps": 10.0}
    found = planned(tmp_path, 70.0, **reading)
    assert len(found.shown) == int(last * 16) + 1
    shown = UNEVEN[found.shown]
    np.testing.assert_allclose(shown, np.arange(len(shown)) / 16, atol=1 / 48 + 1e-3)
    np.testing.assert_allclose(found.c2w[:, 2, 3], shown, atol=1e-4)
    check_together(found)


def test_time_stamps_and_numbers_of_pictures_say_where_in_its_clip_a_path_begins(tmp_path):
    film(tmp_path / "late.mp4", np.arange(0, 4, 1 / 30))
    stamps = np.arange(1, 3.001, 1 / 20)  # the first second was lost, and the last
    rows = np.column_stack([stamps, forward(stamps)[:, :3, 3], np.tile((0, 0, 0, 1), (len(stamps), 1))])
    np.savetxt(tmp_path / "late.txt", rows)
    found = planned(tmp_path, 70.0)
    assert found.shown[0] == 30 and found.shown[-1] == 90 and "2.06 of its 3.97 s" in found.warnings[-1]
    np.testing.assert_allclose(found.c2w[:, 2, 3], found.shown / 30 - 1, atol=1e-6)
    (tmp_path / "late.txt").unlink()

    model = tmp_path / "late"
    write_colmap_text(model, forward(np.arange(120) / 30))
    lines = (model / "images.txt").read_text().replace("frame_", "late_0").splitlines()[1:]
    pairs = ["\n".join(pair) for pair in zip(lines[::2], lines[1::2], strict=True)]
    kept = [p for p in pairs if 40 <= int(p.split("late_0")[1].split(".")[0]) < 100]
    (model / "images.txt").write_text("\n".join(kept) + "\n")
    found = planned(tmp_path, 70.0)  # from 40 on; there is no picture 0, so that they count from 1
    assert found.shown[0] == 39 and found.shown[-1] in (98, 97)
    np.testing.assert_allclose(found.c2w[:, 2, 3], (found.shown - 39) / 30, atol=1e-6)
    every = [p for p in kept if int(p.split("late_0")[1].split(".")[0]) % 10 == 0]
    (model / "images.txt").write_text("\n".join(every) + "\n")
    found = planned(tmp_path, 70.0)  # of each tenth frame
    assert found.shown[0] == 39
    np.testing.assert_allclose(found.c2w[:, 2, 3], (found.shown - 39) / 30, atol=1e-6)


@pytest.mark.parametrize("form", ["colmap", "nerfstudio"])
def test_one_model_of_several_clips_is_taken_apart_by_the_names_of_pictures(tmp_path, form):
    seconds = np.arange(30) / 30
    for name in ("a", "a_1"):
        film(tmp_path / f"{name}.mp4", seconds)
    both = np.concatenate((forward(seconds), forward(2 * seconds)))
    if form == "colmap":
        write_colmap_text(tmp_path / "sparse" / "0", both)
        file = tmp_path / "sparse" / "0" / "images.txt"
    else:
        write_nerfstudio(tmp_path / "transforms.json", both)
        file = tmp_path / "transforms.json"
    text = file.read_text()
    for i in range(59, -1, -1):
        text = text.replace(f"frame_{i}.png", f"a/{i:03d}.jpg" if i < 30 else f"a_1/frame_{i - 30:03d}.jpg")
    file.write_text(text)
    assert len(load_trajectory(tmp_path, clip="a").c2w) == 30
    clips, problems = plan(find_clips(tmp_path), poses_beside(tmp_path, TrajectoryReading()), 70.0)
    assert not problems
    for found, speed in zip(clips, (1, 2), strict=True):
        np.testing.assert_allclose(found.c2w[:, 2, 3], speed * found.shown / 30, atol=1e-6)
    film(tmp_path / "b.mp4", seconds)
    _, problems = plan(find_clips(tmp_path), poses_beside(tmp_path, TrajectoryReading()), 70.0)
    assert len(problems) == 1 and "no images of b, whose names would be like b/00001.jpg" in problems[0]


def test_the_options_for_trajectories_are_of_the_files_beside_clips(tmp_path):
    film(tmp_path / "a.mp4", np.arange(30) / 30)
    opengl = forward(np.arange(30) / 30)
    opengl[:, :3, :3] = np.diag((1.0, -1, -1))
    opengl[:, :3, 3] *= 100
    write_kitti(tmp_path / "a.kitti", inverse(opengl))
    found = planned(tmp_path, 70.0, axes="opengl", poses="w2c", metres_per_unit=0.01)
    np.testing.assert_allclose(found.c2w, forward(found.shown / 30), atol=1e-9)
    backwards = planned(tmp_path, 70.0, poses="w2c", metres_per_unit=0.01)
    assert "moves backwards" in backwards.warnings[0]


def test_clips_that_cannot_be_learned_from_are_named_in_a_sentence_each(tmp_path):
    clip(tmp_path / "good")
    clip(tmp_path / "slow", fps=10)
    clip(tmp_path / "apart", says=30)
    clip(tmp_path / "short", poses=40)
    clip(tmp_path / "blind", lens=False)
    clip(tmp_path / "cut").write_bytes(b"no video")
    wide = clip(tmp_path / "wide")
    write_wide(wide, read_video(wide))
    shutil.copy(tmp_path / "good" / "video.mp4", tmp_path / "bare.mp4")
    shutil.copy(tmp_path / "good" / "video.mp4", tmp_path / "two.mp4")
    (tmp_path / "two.txt").write_text("1")
    (tmp_path / "two.json").write_text("1")
    shutil.copy(tmp_path / "good" / "video.mp4", tmp_path / "text.mp4")
    (tmp_path / "text.txt").write_text("no poses")
    shutil.copy(tmp_path / "good" / "video.mp4", tmp_path / "good" / "._video.mp4")  # as macOS leaves them
    videos = find_clips(tmp_path)
    clips, problems = plan(videos, poses_beside(tmp_path, TrajectoryReading()))
    assert [found.video.parent.name for found in clips] == ["good"]
    for name, says in {
        "slow": "has 10 frames per second: record 16 or more",
        "apart": "has 16 frames and 30 poses per second: the rates must be equal",
        "short": "lasts 3 s, and its 40 poses, 16 per second, last 2.438 s",
        "blind": "has poses without intrinsics: give --fov-deg",
        "cut": "cannot be read as a video",
        "wide": "its pixels are not square (4:3): write it anew with `ffmpeg",
        "bare": "has no poses: put a file of them beside it, called bare.txt",
        "two": "has several files of poses beside it, two.json and two.txt: keep one",
        "text": "cannot be read as a trajectory",
    }.items():
        assert len([p for p in problems if f"/{name}" in p and says in p]) == 1, (name, problems)
    assert len(problems) == 9 and len(videos) == 10


def test_doom_is_recorded_with_poses_that_belong_to_its_pictures(tmp_path, monkeypatch):
    pytest.importorskip("vizdoom", reason="no dependency: pip install vizdoom")
    script = str(ROOT / "examples" / "footage_vizdoom.py")
    monkeypatch.setattr("sys.argv", [script, str(tmp_path), "--walks", "1", "--seconds", "4"])
    runpy.run_path(script, run_name="__main__")
    found = planned(tmp_path, 90.0)
    footage = found.read()
    gap = 4  # frames: far enough to tell, near enough for one plane
    path = relative_to_first(found.c2w)
    errors = {}
    for name, poses in {
        "its own": path,
        "of another time": path[::-1],
        "upside down": path @ np.diag([1, -1, -1, 1.0]),
    }.items():
        there = [relative_to_first(poses[[i, i + gap]])[1:] for i in range(0, len(path) - gap, gap)]
        warped = [
            warp(footage.frames[gap * k], plane_homographies(pose, footage.intrinsics))[0]
            for k, pose in enumerate(there)
        ]
        errors[name] = np.mean(
            [
                np.square(picture.astype(float) - footage.frames[gap * (k + 1)]).mean()
                for k, picture in enumerate(warped)
            ]
        )
    assert errors["its own"] < 0.7 * min(errors["of another time"], errors["upside down"])
