"""Scores of clips: errors of a camera that is found in pictures, beside what the estimator gets wrong in true ones."""

import csv
import json
import os
import shutil
import sys

import numpy as np
import pytest
from PIL import Image

from sanawm_env.camera.reconstruction import MISSING, estimate_trajectory, reconstruct
from sanawm_env.camera.trajectory import load_trajectory, relative_to_first
from sanawm_env.camera.twist import hold
from sanawm_env.cli import main
from sanawm_env.cli.footage import plan_clip
from sanawm_env.cli.poses import poses_by_colmap
from sanawm_env.metrics.figures import literal
from sanawm_env.metrics.pose import pose_errors
from sanawm_env.recording.rollout import TRAJECTORY, VIDEO, RolloutWriter
from sanawm_env.recording.score_clips import BENCH, TRUTH, Clip, find_clips
from sanawm_env.recording.scores import Report, Score, Settings, _inputs, find_estimator, score
from sanawm_env.recording.trajectories import export_trajectory
from sanawm_env.recording.video import VideoWriter
from sanawm_env.world.world import World
from tests.datasets import collect, small_world

LENS = np.array([[40.0, 0, 24], [0, 40, 16], [0, 0, 1]])
PATH = np.concatenate((np.eye(4)[None], hold(np.eye(4), (0.3, 0, 0.5, 0, 0.3, 0), 24)))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("score")
    return collect(folder / "data", small_world(folder / "world"), (1, 1))


@pytest.fixture(autouse=True)
def undrawn(monkeypatch, request):
    """Drawing takes longer than all the rest: one test looks at the picture."""
    if "picture" not in request.node.name:
        monkeypatch.setattr("sanawm_env.recording.scores.draw", lambda report, path: None)


def pictures(count=25, height=32, width=48):
    rng = np.random.default_rng(0)
    return rng.integers(0, 255, (count, height, width, 3), np.uint8)


def write_clip(folder, c2w=PATH, frames=None):
    with RolloutWriter(folder, sheet=False) as writer:
        writer.append(pictures(len(c2w)) if frames is None else frames, c2w, LENS)


def exact(frames, intrinsics, anchor):
    return PATH[::4]


def standing(frames, intrinsics, anchor):
    return np.repeat(np.eye(4)[None], len(frames), axis=0)


def blind(frames, intrinsics, anchor):
    return np.full((len(frames), 4, 4), np.nan)


def test_an_estimate_in_another_unit_and_frame_has_no_error(tmp_path):
    write_clip(tmp_path / "clip")
    there = hold(np.eye(4), (1, 2, 3, 0.3, 0.2, 0.1), 1)[-1]

    def find(frames, intrinsics, anchor):
        found = there @ PATH[::4]
        found[:, :3, 3] *= 7
        return found

    found = score(tmp_path / "clip", tmp_path / "out", estimator=find, rendered=0).scores[0]
    assert (found.frames, found.sampled, found.clip.placed) == (25, 7, 1)
    assert found.clip.rot_err_deg < 1e-4 and found.clip.trans_err < 1e-9
    assert found.still.rot_err_deg > 5 and found.still.trans_err > 0.1


@pytest.mark.slow
def test_what_the_estimator_gets_wrong_in_true_pictures_stands_beside(dataset, tmp_path):
    seen = []

    def find(frames, intrinsics, anchor):
        seen.append((frames.shape, intrinsics.shape, anchor))
        return standing(frames, intrinsics, anchor)

    report = score(dataset.folder, tmp_path, estimator=find, rendered=1)
    one, two = report.scores
    assert one.rendered_in.startswith("test/") and one.rendered.rot_err_deg > 0 and two.rendered is None
    assert len(seen) == 3 and len({(frames, intrinsics) for frames, intrinsics, _ in seen}) == 1
    assert seen[0][2] is None and seen[1][2].place == one.rendered_in
    means = report.splits()["no place"]
    assert (means["clips"], means["clip"]["of"], means["rendered"]["of"]) == (2, 2, 1)
    assert one.psnr is None  # it was rendered in another place than it shows
    assert len(report.warnings()) == 1 and "say little" in report.warnings()[0]  # this one is no better than standing


@pytest.mark.slow
def test_clips_of_a_place_that_can_be_rendered_are_compared_with_it(tmp_path):
    world = World.load("rooms", height=32, width=48)
    start = next(path for path in world.starts if "gallery" in path.name)
    main(["rollout", "--world", "rooms", "--image", str(start), "--actions", "w-24", "--out", str(tmp_path / "clip")])
    found = score(tmp_path, tmp_path / "out", estimator="none").scores[0]
    assert (found.split, found.rendered_in) == ("gallery", "gallery")
    assert found.psnr > 30 and found.ssim > 0.9  # all but what the video loses
    assert found.clip.drift == pytest.approx(found.rendered.drift, abs=0.1)


def test_truth_beside_a_video_is_compared_with_it(tmp_path):
    frames = pictures()
    write_clip(tmp_path / "clip", frames=frames)
    with VideoWriter(tmp_path / "clip" / TRUTH) as video:
        video.append(frames)
    found = score(tmp_path, tmp_path / "out", estimator="none", rendered=0).scores
    assert len(found) == 1 and found[0].psnr == 100 and found[0].ssim == pytest.approx(1)


def test_a_camera_that_is_not_found_has_no_error_and_counts_as_such(tmp_path):
    write_clip(tmp_path / "a")
    write_clip(tmp_path / "b")
    report = score(tmp_path, tmp_path / "out", estimator=blind, rendered=0)
    assert report.scores[0].clip.rot_err_deg is None and "0%" in report.scores[0].note
    assert (report.splits()["all"]["clip"]["of"], report.splits()["all"]["clip"]["followed"]) == (2, 0)


def test_unreadable_clips_are_rejected_with_a_reason_and_the_others_scored(tmp_path, capsys):
    for name in ("a", "b", "c", "d"):
        write_clip(tmp_path / name)
    np.savez(tmp_path / "b" / TRAJECTORY, c2w=PATH[:9], fps=16)
    (tmp_path / "c" / VIDEO).write_bytes(b"no video")
    with pytest.raises(SystemExit):
        main(["score", str(tmp_path), "--out", str(tmp_path / "out"), "--estimator", "none", "--rendered", "0"])
    said = capsys.readouterr()
    assert "2 of 4 clips were rejected" in said.err and "25 frames and 9 poses" in said.out
    rows = list(csv.DictReader((tmp_path / "out" / "scores.csv").open()))
    assert [bool(row["reason"]) for row in rows] == [False, True, True, False]


@pytest.mark.slow
def test_a_picture_shows_errors_and_paths(tmp_path):
    write_clip(tmp_path / "clip")
    score(tmp_path, tmp_path / "out", estimator=exact, rendered=1)
    with Image.open(tmp_path / "out" / "scores.png") as picture:
        assert picture.width > 600 and len(picture.convert("L").getcolors()) > 20


def test_a_stopped_score_keeps_what_is_done_and_goes_on(tmp_path):
    for name in ("a", "b", "c"):
        write_clip(tmp_path / name)

    def stop(made, count, total):
        if count == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        score(tmp_path, tmp_path / "out", estimator=exact, rendered=0, progress=stop)
    assert len(json.loads((tmp_path / "out" / "scores.json").read_text())["clips"]) == 2
    assert len((tmp_path / "out" / "scores.csv").read_text().splitlines()) == 3
    asked = []

    def counting(*given):
        asked.append(1)
        return exact(*given)

    counting.__module__, counting.__qualname__ = exact.__module__, exact.__qualname__
    report = score(tmp_path, tmp_path / "out", estimator=counting, rendered=0)
    assert len(report.scores) == 3 and len(asked) == 1
    assert json.loads((tmp_path / "out" / "scores.json").read_text())["clips"][0] == json.loads(
        json.dumps(vars(report.scores[0]), default=vars)
    )
    write_clip(tmp_path / "a", frames=pictures()[::-1])  # another video is another clip
    score(tmp_path, tmp_path / "out", estimator=counting, rendered=0)
    assert len(asked) == 2


def test_a_score_that_is_begun_again_and_ended_loses_nothing(tmp_path):
    for name in ("b", "c"):
        write_clip(tmp_path / name)
    score(tmp_path, tmp_path / "out", estimator="none", rendered=0)
    write_clip(tmp_path / "a")

    def killed(made, count, total):
        raise SystemExit

    with pytest.raises(SystemExit):
        score(tmp_path, tmp_path / "out", estimator="none", rendered=0, progress=killed)
    kept = json.loads((tmp_path / "out" / "scores.json").read_text())["clips"]
    assert [each["name"] for each in kept] == ["a", "b", "c"]


def test_what_lies_beside_a_video_is_read_again_where_it_has_changed(tmp_path):
    write_clip(tmp_path / "clip")
    (tmp_path / "model").mkdir()
    of_poses, of_truth = Clip("m", "all", tmp_path / "clip" / VIDEO, tmp_path / "model"), find_clips(tmp_path)[0]
    before = _inputs(of_poses), _inputs(of_truth)
    (tmp_path / "model" / "images.txt").write_text("# poses")
    shutil.copy(tmp_path / "clip" / VIDEO, tmp_path / "clip" / TRUTH)
    assert _inputs(of_poses) != before[0] and _inputs(of_truth) != before[1]


def test_an_estimator_that_fails_on_a_clip_rejects_that_one(tmp_path):
    for name in ("a", "b"):
        write_clip(tmp_path / name)
    asked = []

    def failing(*given):
        asked.append(1)
        return exact(*given) if len(asked) > 1 else {}["pose"]

    first, second = score(tmp_path, tmp_path / "out", estimator=failing, rendered=0).scores
    assert first.reason == "the estimator failed: KeyError 'pose'" and not second.reason


def test_names_that_are_no_text_and_names_like_formulas_are_written_as_they_are():
    name = os.fsdecode(b"caf\xe9 $\\frac{$")
    report = Report(Settings("none"), (Score(name, name, found=((0, 0),), asked=((0, 0),)),))
    assert "caf\\udce9 $\\frac{$" in report.to_csv() and "udce9" in report.bench_table()
    report.to_csv().encode(), report.bench_table().encode()
    assert literal(name) == r"caf\udce9 \$\frac{\$" and literal("a" * 99, 5) == "…aaaa"


def test_two_do_not_score_into_one_folder(tmp_path):
    write_clip(tmp_path / "a")

    def second(*_):
        score(tmp_path, tmp_path / "out", estimator="none", rendered=0)

    with pytest.raises(BlockingIOError, match="another process does"):
        score(tmp_path, tmp_path / "out", estimator="none", rendered=0, progress=second)
    assert not list((tmp_path / "out").glob("*.lock"))


def test_scores_of_other_settings_are_not_written_over(tmp_path):
    write_clip(tmp_path / "a")
    score(tmp_path, tmp_path / "out", estimator="none", rendered=0)
    before = (tmp_path / "out" / "scores.json").read_bytes()
    with pytest.raises(ValueError, match=r"other settings \(interval is 4 there, 2 here\): use another folder"):
        score(tmp_path, tmp_path / "out", estimator="none", rendered=0, interval=2)
    assert (tmp_path / "out" / "scores.json").read_bytes() == before
    assert score(tmp_path, tmp_path / "other", estimator="none", rendered=0, interval=2).scores[0].sampled == 13


def test_videos_are_found_with_the_trajectories_beside_them(dataset, tmp_path):
    (tmp_path / "walks").mkdir()
    for name in ("one", "without"):
        with VideoWriter(tmp_path / "walks" / f"{name}.mp4") as video:
            video.append(pictures())
    np.savez(tmp_path / "walks" / "one.npz", c2w=PATH)
    write_clip(tmp_path / "rollouts" / "two")
    assert [(clip.name, clip.split) for clip in find_clips(tmp_path)] == [
        ("rollouts/two", "rollouts"), ("walks/one", "walks")
    ]  # fmt: skip
    assert [clip.split for clip in find_clips(dataset.folder)] == ["no place"] * 2
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="No clips"):
        find_clips(
            tmp_path / "walks" / "nothing" if (tmp_path / "walks" / "nothing").mkdir() else tmp_path / "walks/nothing"
        )


def test_the_layout_of_sana_wm_bench_goes_in_and_its_table_comes_out(tmp_path):
    split, folder = next(iter(BENCH.items()))
    (tmp_path / "method" / split).mkdir(parents=True)
    for name in ("indoor_001", "indoor_002"):
        poses = tmp_path / "bench" / folder / "sanawm_export_v2"
        poses.mkdir(parents=True, exist_ok=True)
        np.savez(poses / f"{name}.npz", c2w=np.concatenate([PATH, PATH[-1:]]), fps=16, num_frames=26)
        with VideoWriter(tmp_path / "method" / split / f"{name}.mp4") as video:
            video.append(pictures())
    pair = {"frame_a": 0, "frame_b": 8, "quality_score": 0.1, "distance_m": 0, "angle_diff_deg": 0}
    scenes = [{"scene_id": "indoor_001", "evaluation_pairs": [pair]}]
    (tmp_path / "bench" / folder / "scene_trajectories_v2.json").write_text(json.dumps({"scenes": scenes}))
    report = score(tmp_path / "method", tmp_path / "out", estimator=exact, rendered=0, bench=tmp_path / "bench")
    one, two = report.scores
    assert (one.name, one.split, one.clip.rot_err_deg < 1e-4) == (f"{split}/indoor_001", split, True)
    assert one.revisit[2] == 1 and two.revisit is None
    table = (tmp_path / "out" / "sana_wm_bench.md").read_text()
    assert f"| {split} | 2 of 2 | 0.00 | 0.000 | 0.000 | {one.revisit[0]:.2f} |" in table
    (tmp_path / "method" / "method_info.json").write_text(json.dumps({"refiner": "yes"}))
    first = find_clips(tmp_path / "method", tmp_path / "bench")[0]
    assert first.skip_first and len(first.read(4).frames) == 6


def test_estimators_are_named_or_given_and_a_wrong_one_is_a_sentence(tmp_path):
    assert find_estimator("tests.test_score:exact") == (exact, "tests.test_score:exact")
    assert find_estimator("none") == (None, "none")
    for wrong in ("pi3", ":standing", ".tests:standing", "../tests:standing"):
        with pytest.raises(ValueError, match="module:function"):
            find_estimator(wrong)
    with pytest.raises(TypeError, match="a name or a function, got 5"):
        find_estimator(5)
    with pytest.raises(ValueError, match="no function 'nothing'"):
        find_estimator("tests.test_score:nothing")
    write_clip(tmp_path / "a")
    found = score(tmp_path, tmp_path / "out", estimator=lambda *_: np.eye(4), rendered=0).scores[0]
    assert "must return poses of shape (7, 4, 4)" in found.reason


def test_without_pycolmap_one_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setattr("sanawm_env.camera.reconstruction.find_spec", lambda name: None)
    monkeypatch.setitem(sys.modules, "pycolmap", None)  # an import of it would say something else
    for call in (lambda: reconstruct(pictures(3)), lambda: find_estimator("colmap")):
        with pytest.raises(ImportError) as error:
            call()
        assert str(error.value) == MISSING


# --- COLMAP itself ---


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A clip of a true room, exported for COLMAP with its frames: sideways past furniture, turning."""
    pytest.importorskip("pycolmap")
    folder = tmp_path_factory.mktemp("rooms")
    world = World.load("rooms", height=240, width=320)
    scene = world.scene(next(path for path in world.starts if "court" in path.name))
    state = world.begin(scene)
    poses = hold(np.eye(4), (0.7, 0, 0.3, 0, -0.2, 0), 24)
    state, clip = world.advance(state, poses)
    fx, fy, cx, cy = scene.intrinsics
    intrinsics = np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])
    with RolloutWriter(folder / "clip", sheet=False) as writer:
        writer.append(scene.image[None], np.eye(4)[None], intrinsics)
        writer.append(clip.frames[0].numpy(), clip.c2w[0], intrinsics)
    export_trajectory(
        load_trajectory(folder / "clip" / TRAJECTORY), folder / "colmap", "colmap", folder / "clip" / VIDEO
    )
    return folder


@pytest.mark.slow
def test_a_clip_of_the_true_rooms_is_reconstructed_where_its_export_says(exported):
    said = load_trajectory(exported / "colmap")
    frames = [np.asarray(Image.open(path)) for path in sorted((exported / "colmap" / "images").glob("*.png"))]
    found = reconstruct(frames[::2], said.intrinsics[0])
    assert found.placed.mean() > 0.8 and found.points > 50
    c2w = relative_to_first(said.c2w[::2][found.placed])
    errors = pose_errors(c2w, relative_to_first(found.c2w[found.placed]))
    length = np.linalg.norm(np.diff(c2w[:, :3, 3], axis=0), axis=1).sum()
    assert errors.rot_err_deg < 1 and errors.trans_err < 0.05 * length and errors.scale > 0


@pytest.mark.slow
def test_clips_without_poses_get_them_from_colmap_once_at_the_speed_they_are_said_to_have(
    exported, tmp_path, monkeypatch, capsys
):
    video, said = exported / "clip" / VIDEO, load_trajectory(exported / "clip" / TRAJECTORY)
    one = plan_clip(video, poses_by_colmap(tmp_path / "poses"))
    assert "cannot tell the scale" in capsys.readouterr().out and len(one.shown) >= 20
    assert one.intrinsics[0] == pytest.approx(said.intrinsics[0, 0, 0] * 96 / 320, rel=0.5)  # found, for nano's picture
    monkeypatch.setattr("sanawm_env.cli.poses.estimate_trajectory", None)
    two = plan_clip(video, poses_by_colmap(tmp_path / "poses", metres_per_unit=0.7))
    assert np.allclose(two.c2w[:, :3, 3], 0.7 * one.c2w[:, :3, 3]) and (two.shown == one.shown).all()
    for clip, speed in ((one, 1.0), (two, 0.7)):
        metres = np.linalg.norm(np.diff(clip.c2w[:, :3, 3], axis=0), axis=1).sum()
        assert metres / (len(clip.shown) - 1) * 16 == pytest.approx(speed, rel=0.1)


def test_poses_of_clips_are_asked_from_colmap_by_train(tmp_path, monkeypatch, capsys):
    write_clip(tmp_path / "data" / "clip")
    asked = []

    def blank(frames, intrinsics, *, fps, every):
        asked.append((len(list(frames)), round(intrinsics[0, 0]), round(fps), every))
        raise ValueError("COLMAP placed 0 of 9 images")

    monkeypatch.setattr("sanawm_env.cli.poses.estimate_trajectory", blank)
    monkeypatch.setattr("sanawm_env.cli.poses.check_installed", lambda: None)
    command = ["train", "--data", str(tmp_path / "data"), "--out", str(tmp_path / "out"), "--poses-from", "colmap"]
    with pytest.raises(SystemExit):
        main([*command, "--fov-deg", "90"])
    assert asked == [(25, 24, 16, 3)]
    said = capsys.readouterr()
    assert "placed 0 of 9" in said.out and "1 of 1 clips" in said.err
    with pytest.raises(SystemExit):
        main(["train", "--poses-from", "colmap"])
    assert "give --data" in capsys.readouterr().err


@pytest.mark.slow
def test_pictures_without_texture_are_refused_in_a_sentence():
    pytest.importorskip("pycolmap")
    with pytest.raises(ValueError, match="COLMAP placed 0 of 3 images"):
        estimate_trajectory(np.full((9, 64, 96, 3), 128, np.uint8))
