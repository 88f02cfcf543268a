"""The command `sanawm`, as a user types it."""

import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sanawm_env.camera.dsl import actions_to_c2w
from sanawm_env.camera.presets import Workspace, pitch_of
from sanawm_env.cli import main
from sanawm_env.recording.episode import RecordedEpisode
from sanawm_env.recording.video import read_video
from sanawm_env.system.terminal import sentence_of
from sanawm_env.world.world import World
from tests.golden_files import benchmark
from tests.worlds import TINY, evaluated_briefly, write_tiny_world

ROOT = Path(__file__).parents[1]
FILES = {"start.png", "video.mp4", "trajectory.npz", "actions.npz", "contact_sheet.png", "meta.json"}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> str:
    return str(write_tiny_world(tmp_path_factory.mktemp("worlds") / "tiny"))


@pytest.fixture
def image(tmp_path) -> str:
    path = tmp_path / "start.jpg"
    Image.new("RGB", (33, 20), (200, 30, 60)).save(path)
    return str(path)


def sanawm(*args: object) -> None:
    main([str(a) for a in args])


def refused(capsys, *args: object) -> str:
    """What the command says when it refuses: one sentence on stderr, exit status 2."""
    with pytest.raises(SystemExit) as stop:
        sanawm(*args)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("sanawm: ")
    assert "Traceback" not in error
    return " ".join(error.split())


@pytest.mark.slow
def test_rollout_leaves_a_video_and_its_trajectory(tiny, image, tmp_path, capsys):
    out = tmp_path / "out"
    sanawm("rollout", "--image", image, "--actions", "w-48,dw-24,none-24", "--world", tiny, "--seed", 3, "--out", out)
    assert {p.name for p in out.iterdir()} == FILES
    path = np.load(out / "trajectory.npz")
    assert path["c2w"].shape == (97, 4, 4)
    assert path["intrinsics"].shape == (97, 3, 3)
    assert path["fps"] == 16
    assert path["num_frames"] == 97
    assert np.allclose(path["c2w"], actions_to_c2w("w-48,dw-24,none-24"), atol=1e-6)
    assert len(read_video(out / "video.mp4")) == 97
    meta = json.loads((out / "meta.json").read_text())
    assert meta["weights_hash"] == World.load(tiny).weights_hash
    assert (meta["world"], meta["seed"], meta["chunks"]) == (tiny, 3, 4)
    assert meta["camera"] == "w-48,dw-24,none-24"
    assert {"sanawm_env", "torch", "numpy", "python"} <= meta["versions"].keys()
    said = capsys.readouterr().out
    assert all(name in said for name in FILES)
    assert "env steps/s" in said
    assert "frames/s" in said


@pytest.mark.slow
def test_the_same_seed_gives_the_same_video(tiny, image, tmp_path):
    videos = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        out = tmp_path / name
        sanawm("rollout", "--image", image, "--actions", "w-24", "--world", tiny, "--seed", seed, "--out", out)
        videos.append(read_video(out / "video.mp4"))
    assert np.array_equal(videos[0], videos[1])
    assert not np.array_equal(videos[0], videos[2])


@pytest.mark.slow
def test_a_rollout_follows_a_trajectory_or_a_twist(tiny, image, tmp_path):
    c2w = actions_to_c2w("wd-30")
    np.save(tmp_path / "poses.npy", np.diag([-1.0, 1, -1, 1]) @ c2w)  # another first pose: only the motion counts
    base = ("rollout", "--image", image, "--world", tiny)
    sanawm(*base, "--trajectory", tmp_path / "poses.npy", "--out", tmp_path / "t")
    path = np.load(tmp_path / "t" / "trajectory.npz")["c2w"]
    assert np.allclose(path[:31], c2w, atol=1e-5)
    assert path.shape == (49, 4, 4)
    assert np.allclose(path[31:], path[30])  # the last pose fills the chunk
    sanawm(*base, "--twist", "0,0,0.4,0,0,0", "--chunks", 2, "--out", tmp_path / "w")
    path = np.load(tmp_path / "w" / "trajectory.npz")["c2w"]
    assert path[-1, 2, 3] == pytest.approx(0.4 * 3)


@pytest.mark.slow
def test_a_rollout_takes_the_lens_of_a_trajectory_along_if_its_pictures_are_like_the_start(
    tiny, image, tmp_path, capsys
):
    width, height = Image.open(image).size
    frames = [{"file_path": f"{i}.png", "transform_matrix": np.eye(4).tolist()} for i in range(25)]
    base = ("rollout", "--image", image, "--world", tiny, "--trajectory", tmp_path / "transforms.json", "--out")
    for name, size, source in (("like", (2 * width, 2 * height), "given"), ("other", (width, 2 * height), "default")):
        lens = {"fl_x": float(size[0]), "w": size[0], "h": size[1]}
        (tmp_path / "transforms.json").write_text(json.dumps({**lens, "frames": frames}))
        sanawm(*base, tmp_path / name)
        assert json.loads((tmp_path / name / "meta.json").read_text())["intrinsics_source"] == source
        said = "those of the first pose" if source == "given" else "for images of other proportions"
        assert said in capsys.readouterr().out
    sanawm(*base, tmp_path / "wide", "--fov-deg", 80)
    assert json.loads((tmp_path / "wide" / "meta.json").read_text())["intrinsics_source"] == "fov"


@pytest.mark.slow
def test_a_rollout_says_what_is_wrong_before_any_work(tiny, image, tmp_path, capsys):
    out = tmp_path / "out"
    base = ("rollout", "--world", tiny, "--out", out)
    script = ("--actions", "w-24")
    assert "Give one of" in refused(capsys, *base, "--image", image)
    assert "Give one of" in refused(capsys, *base, "--image", image, *script, "--twist", "0,0,0,0,0,0")
    assert "unknown key 'x'" in refused(capsys, *base, "--image", image, "--actions", "x-24")
    assert "six numbers" in refused(capsys, *base, "--image", image, "--twist", "fast")
    assert "six finite numbers" in refused(capsys, *base, "--image", image, "--twist", "nan,0,0,0,0,0")
    assert "six finite numbers" in refused(capsys, *base, "--image", image, "--twist", "0,0")
    assert "no file at" in refused(capsys, *base, "--image", image, "--trajectory", tmp_path / "none.npy")
    assert "no start image at" in refused(capsys, *base, "--image", tmp_path / "none.png", *script)
    (tmp_path / "text.png").write_text("hello")
    assert "cannot be read as an image" in refused(capsys, *base, "--image", tmp_path / "text.png", *script)
    assert "known worlds are" in refused(capsys, "rollout", *script, "--world", "atlantis", "--out", out)
    assert "A seed must lie" in refused(capsys, *base, "--image", image, *script, "--seed", -1)
    assert "start images" in refused(capsys, *base, *script)
    assert "cannot be used here" in refused(capsys, *base, "--image", image, *script, "--device", "cuda:99")
    assert "leaves the workspace" in refused(capsys, *base, "--image", image, "--actions", "w-4800")
    (tmp_path / "file").write_text("")
    blocked = ("rollout", "--world", tiny, "--image", image, *script, "--out", tmp_path / "file" / "x")
    assert "cannot write to" in refused(capsys, *blocked)
    assert not out.exists()


def test_a_rollout_never_replaces_what_it_reads(tiny, tmp_path, capsys, monkeypatch):
    """By whatever name: a picture, a path and a lens that bear the names of its own files, links to them, and `.`."""
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (90, 60), (9, 99, 9)).save("start.png")
    np.savez("trajectory.npz", c2w=np.tile(np.eye(4), (25, 1, 1)))
    before = {file: file.read_bytes() for file in Path().iterdir()}
    run = ("rollout", "--world", tiny, "--image", "start.png", "--trajectory", "trajectory.npz", "--out")
    Path("link").symlink_to(".")
    for out in (".", tmp_path, "link"):
        assert "is the input trajectory.npz itself" in refused(capsys, *run, out)
    keys = ("rollout", "--world", tiny, "--image", "start.png", "--actions", "w-24", "--out", ".")
    assert "is the input start.png itself" in refused(capsys, *keys)
    Path("other").mkdir()
    os.link("trajectory.npz", "other/meta.json")
    assert "is the input trajectory.npz itself" in refused(capsys, *run, "other")
    assert {file: file.read_bytes() for file in before} == before
    assert sorted(os.listdir()) == ["link", "other", "start.png", "trajectory.npz"]


def test_numbers_and_worlds_never_replace_what_they_are_made_of(tiny, tmp_path, capsys):
    config = Path(tiny) / "config.json"
    for command in ("evaluate", "study", "bench", "precision"):
        out = ("--out", tmp_path) if command in ("evaluate", "study") else ()
        assert "it is the input" in refused(capsys, command, "--world", tiny, "--json", config, *out)
    clip = tmp_path / "data" / "clips"
    clip.mkdir(parents=True)
    for out, data in ((clip, clip), (clip / "below", clip), (clip.parent, clip)):
        assert "which is read" in refused(capsys, "train", "--data", data, "--out", out)
    assert list(clip.iterdir()) == []


def test_a_trajectorys_plot_and_exports_never_replace_what_is_read(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("walk").mkdir()
    np.savez("walk/trajectory.npz", c2w=np.tile(np.eye(4), (25, 1, 1)), fps=16)
    before = Path("walk/trajectory.npz").read_bytes()
    for given in ("walk", "walk/trajectory.npz"):
        assert "is the input" in refused(capsys, "trajectory", given, "--plot", "walk/trajectory.npz")
    for out in ("walk/trajectory.npz", "walk/colmap"):  # of a folder with both the model would be read
        assert "which is read" in refused(capsys, "trajectory", "walk", "--export", out, "--format", "tum")
    assert Path("walk/trajectory.npz").read_bytes() == before and os.listdir("walk") == ["trajectory.npz"]


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (FileNotFoundError(2, "No such file or directory", "a/[b]"), r"a/\[b\]: No such file or directory"),
        (OSError(36, "File name too long", "x" * 5000), r"'x+\.\.\.x+': File name too long"),
        (OSError(5, "Input/output error"), r"\[Errno 5\] Input/output error"),
        (ValueError("y" * 10**6), r"y{3000}…"),
    ],
)
def test_what_the_system_says_is_a_short_sentence(error, said):
    assert re.fullmatch(said, sentence_of(error)) and len(sentence_of(error)) <= 3001


def test_what_is_of_ones_own_clips_alone_is_not_passed_over(capsys, tmp_path):
    said = refused(capsys, "train", "--out", tmp_path, "--metres-per-unit", 0.01, "--held-out", tmp_path)
    assert "Without --data these options have no effect, --metres-per-unit, --held-out" in said


def test_a_comparison_of_what_is_none_is_refused_before_anything_is_made(capsys, tmp_path):
    for given, says in ((("--scenes", "a/b"), "scenes must be"), (("--seed", -1), "A seed must lie in")):
        assert says in refused(capsys, "compare", "--out", tmp_path / "out", *given)
    assert not list(tmp_path.iterdir())


def test_a_path_too_long_for_an_episode_is_refused_before_it_is_worked_out(tiny, image, tmp_path, capsys):
    run = ("rollout", "--world", tiny, "--image", image, "--out", tmp_path / "out")
    for path in (("--twist", "0,0,0,0,0,0", "--chunks", 10**18), ("--actions", "w-900000")):
        assert re.search(r"has \d+ frames \(.* hours\), an episode holds 150000", refused(capsys, *run, *path))


NAMES = ["12:30 $x$ %03d", "-x", "lr[bold]1[ :bomb:", "a\nb \udcff", "ä" * 120]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_names_are_taken_and_shown_as_they_are(tiny, image, tmp_path, capsys, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    given = Path(f"{name}.png")
    given.write_bytes(Path(image).read_bytes())
    np.save(f"{name}.npy", np.tile(np.eye(4), (25, 1, 1)))
    sanawm("rollout", "--world", tiny, f"--image=./{given}", f"--trajectory=./{name}.npy", f"--out=./{name}")
    shown = name.encode("utf-8", "backslashreplace").decode()
    assert f"{shown}/video.mp4\n" in capsys.readouterr().out
    episode = RecordedEpisode.open(name)
    assert len(episode.frames()) == 25 and episode.meta["source"] == str(given.absolute())


@pytest.mark.slow
def test_the_demo_of_the_makefile_runs(tmp_path, capsys):
    lines = (ROOT / "Makefile").read_text().replace("\\\n", "").splitlines()
    recipe = next(line for line in lines if "sanawm rollout" in line)
    args = shlex.split(recipe)[2:]
    args[args.index("--image") + 1] = str(ROOT / args[args.index("--image") + 1])
    args[args.index("--out") + 1] = str(tmp_path / "demo")
    sanawm("rollout", *args)
    assert {p.name for p in (tmp_path / "demo").iterdir()} == FILES
    sanawm("rollout", "--twist", "0,0,0.4,0,0.2,0", "--chunks", 1, "--out", tmp_path / "own")  # the world's own image
    meta = json.loads((tmp_path / "own" / "meta.json").read_text())
    assert meta["anchor"]["place"] in World.load("nano").config.places


@pytest.mark.slow
def test_a_rollout_keeps_within_the_pitch_limit_of_the_world(tmp_path, image):
    world = write_tiny_world(tmp_path / "world", config=replace(TINY, workspace=Workspace(pitch_limit_deg=20)))
    for name, path in (("keys", ("--actions", "i-48")), ("twist", ("--twist", "0,0,0,0.3,0,0", "--chunks", 2))):
        sanawm("rollout", *path, "--world", world, "--image", image, "--out", tmp_path / name)
        c2w = np.load(tmp_path / name / "trajectory.npz")["c2w"]
        assert np.degrees(pitch_of(c2w)).max() == pytest.approx(20, abs=0.01)


@pytest.mark.slow
def test_bench_prints_and_writes_its_numbers(tiny, tmp_path, capsys):
    threads = torch.get_num_threads()
    sanawm("bench", "--world", tiny, "--threads", threads, "--repeats", 3, "--json", tmp_path / "bench.json")
    numbers = json.loads((tmp_path / "bench.json").read_text())
    assert set(numbers["batch"]) == {"1", "4", "16"}
    for row in numbers["batch"].values():
        assert row["network_ms"] > row["codec_ms"] > 0 and row["network_ms"] + row["codec_ms"] < 1.05 * row["ms"]
    assert numbers["state_bytes"] > 0
    assert numbers["machine"]
    assert "snapshot" in capsys.readouterr().out
    assert "--repeats must be a whole number from 1" in refused(capsys, "bench", "--world", tiny, "--repeats", 0)
    assert "whole numbers" in refused(capsys, "bench", "--world", tiny, "--batches", "1,x")


@pytest.mark.slow
def test_a_world_of_random_weights_can_be_written_and_timed(tmp_path):
    """What benchmarks/full_size.py does at the official sizes, at toy sizes."""
    pytest.importorskip("diffusers")
    script = benchmark("full_size")["main"]
    script(["write", str(tmp_path / "world"), "--quick"])
    if sys.platform == "linux":
        script(["run", str(tmp_path / "world"), "--json", str(tmp_path / "full.json")])
        report = json.loads((tmp_path / "full.json").read_text())
        assert report["finite"] and report["machine"] and len(report["stages"]) == 4
        assert report["state"]["bytes_of_8_forks"] == report["state"]["bytes"] > report["state"]["bytes_without_tails"]
        assert report["measured_peak"] > 0 and report["predicted"]["peak"] > report["state"]["bytes"]
    numbers = tmp_path / "bench.json"
    sanawm("bench", "--world", tmp_path / "world", "--threads", 1, "--batches", "1", "--repeats", 1,
           "--json", numbers)  # fmt: skip
    report = json.loads(numbers.read_text())
    assert list(report["batch"]) == ["1"]
    assert report["batch"]["1"]["predicted_bytes"] > report["state_bytes"] > 0
    assert report["matmul_tflops"] > 0


SMALLEST = {
    "network": {"hidden_size": 64, "num_heads": 1, "depth": 2},
    "codec": {"clips": 2, "channels": 16},
    "clips": {"clips": 2, "chunks": 2, "height": 64, "width": 96},
    "train": {"batch_size": 1, "single_chunk_steps": 1, "max_chunks": 2, "bf16": False},
    "validation_scenes": 1,
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of one step, which nobody writes to: what is measured costs less of a small world."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "recipe.json").write_text(json.dumps(SMALLEST))
    out = folder / "run"
    with pytest.MonkeyPatch.context() as patch:
        evaluated_briefly(patch)
        sanawm("train", "--config", folder / "recipe.json", "--out", out, "--processes", 1, "--steps", 1)
    return out


@pytest.mark.slow
def test_evaluate_prints_a_table_and_writes_numbers_and_a_sheet(trained, tmp_path, capsys):
    numbers = tmp_path / "numbers.json"
    command = ("evaluate", "--world", trained / "world", "--scenes", 2, "--seed", 4, "--chunks", 1)
    sanawm(*command, "--json", numbers, "--out", tmp_path)
    report = json.loads(numbers.read_text())
    assert {"psnr", "psnr_visible", "psnr_unseen", "ssim", "baselines", "codec"} <= report["chunks"][0].keys()
    assert set(report["chunks"][0]["baselines"]) == {"hold", "rotation_homography", "plane_warp"}
    scalars = {"swapped_camera_psnr", "sign_agreement", "retrieval9", "sharpness"}
    assert scalars <= report.keys()
    assert Image.open(tmp_path / "truth_vs_predicted.png").width > 200
    assert "pooled PSNR" in capsys.readouterr().out
    assert "takes numbers" in refused(capsys, "evaluate", "--timesteps", "fast", "--out", tmp_path)
    assert "scenes must be" in refused(capsys, "evaluate", "--scenes", 0, "--out", tmp_path)


@pytest.mark.slow
def test_study_writes_its_numbers_and_curves(trained, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("sanawm_env.training.study.STEPS", (1, 2))
    # a coarse look at the poses: how near they come is test_probes' business
    monkeypatch.setattr("sanawm_env.training.probes.TRACKED", 4)
    monkeypatch.setattr("sanawm_env.training.align.BLURS", (4.0, 1.0))
    numbers = tmp_path / "numbers.json"
    command = ("study", "--world", trained / "world", "--scenes", 1, "--chunks", 2, "--role", "validation")
    sanawm(*command, "--json", numbers, "--out", tmp_path)
    findings = json.loads(numbers.read_text())
    assert [len(step["timesteps"]) for step in findings["steps"]] == [1, 2]
    assert [row["chunk"] for row in findings["drift"]] == list(range(1, 11)) and findings["drift"][-1]["kv_norm"] > 0
    assert findings["camera"]["predicted"]["rot_err_deg"] < 90 and findings["seeds"]["repeatable"]
    printed = capsys.readouterr().out
    assert "same bytes: yes" in printed and f"{findings['closure'][0]['psnr']:.2f}" in printed
    assert Image.open(tmp_path / "drift.png").width > 800
    assert "scenes must be" in refused(capsys, "study", "--scenes", 0, "--out", tmp_path)


@pytest.mark.slow
def test_a_nano_world_is_trained_from_nothing_made_longer_and_resumed(trained, tmp_path, capsys, monkeypatch):
    evaluated_briefly(monkeypatch)
    recipe, run = tmp_path / "recipe.json", tmp_path / "run"
    recipe.write_text(json.dumps(SMALLEST))
    shutil.copytree(trained, run)
    for steps in (1, 2):
        run = run.rename(tmp_path / f"moved {steps}")
        command = ("train", "--config", recipe, "--out", run, "--processes", 1)
        sanawm(*command, "--steps", steps)
        assert torch.load(run / "network" / "checkpoint.pt", weights_only=True)["step"] == steps
    record = json.loads((run / "world" / "training.json").read_text())
    assert record["training_seconds"] >= 0 and record["machine"]
    assert record["recipe"]["clips"]["chunks"] == 2 and len(record["data"]) == 64 and record["validation"]["psnr"] > 5
    assert Image.open(run / "truth_vs_predicted.png").width > 200 and (run / "network" / "loss.png").exists()
    assert World.load(run / "world").starts
    recipe.write_text(json.dumps(SMALLEST | {"clips": SMALLEST["clips"] | {"chunks": 3}}))
    assert "another recipe: clips.chunks is 2 there, 3 here" in refused(capsys, *command)
    recipe.write_text(json.dumps({"colour": "red"}))
    assert "no setting 'colour'" in refused(capsys, *command)
    recipe.write_text(json.dumps({"clips": {"unknown_fraction": 2}}))
    assert "clips.unknown_fraction must be at most 1, got 2" in refused(capsys, *command)
    for option, value, sentence in (
        ("--steps", 0, "steps must be at least 1, got 0"),
        ("--processes", 0, "--processes must be a whole"),
        ("--device", "abacus", "abacus"),
    ):
        assert sentence in refused(capsys, "train", "--out", tmp_path / "x", option, value)
    assert not (tmp_path / "x").exists()
    assert "leave out" in refused(capsys, "train", "--quick", "--config", recipe, "--out", tmp_path / "x")


@pytest.mark.slow
def test_a_nano_world_is_trained_on_footage(tmp_path, capsys):
    clips, recipe, own = tmp_path / "clips", tmp_path / "recipe.json", tmp_path / "own"
    for seed in (0, 1):
        sanawm("rollout", "--actions", "w-48", "--seed", seed, "--out", clips / str(seed))
    sanawm("trajectory", clips / "1", "--export", clips / "second.txt", "--format", "tum")
    shutil.move(clips / "1" / "video.mp4", clips / "second.mp4")
    shutil.rmtree(clips / "1")
    depth = {"depth": {"steps": 1, "batch_size": 2}, "clips": SMALLEST["clips"] | {"pictures": True}}
    recipe.write_text(json.dumps(SMALLEST | depth))
    command = ("train", "--config", recipe, "--steps", 1, "--processes", 1)
    assert "cannot be used, as listed above" in refused(capsys, *command, "--data", clips, "--out", own)
    assert not own.exists()
    capsys.readouterr()
    assert "give another folder" in refused(capsys, *command, "--data", clips, "--held-out", clips / "0", "--out", own)
    shutil.copytree(clips / "0", tmp_path / "held_out" / "0")
    sanawm(*command, "--data", clips, "--fov-deg", 80, "--held-out", tmp_path / "held_out", "--out", own)
    assert "2 clips" in (said := capsys.readouterr().out) and "1 held-out clips" in said
    world = World.load(own / "world")
    assert world.config.name == "own" and world.config.places == {} and len(world.starts) == 2
    assert world.config.horizontal_fov == 80 and world.config.reprojection
    found = json.loads((own / "world" / "training.json").read_text())["validation"]
    assert len(found["chunks"]) == 2 and found["clips"] == 1 and found["chunks"][0]["plane_warp"] > 10
    assert Image.open(own / "truth_vs_predicted.png").width > 400
    sanawm("rollout", "--world", own / "world", "--actions", "w-24", "--out", tmp_path / "back")
    assert "No clips in" in refused(capsys, *command, "--data", tmp_path / "none", "--out", tmp_path / "x")
    assert "Without --data" in refused(capsys, *command, "--held-out", clips, "--out", tmp_path / "x")
    recipe.write_text(json.dumps(SMALLEST | {"clips": SMALLEST["clips"] | {"chunks": 3}}))
    with pytest.raises(SystemExit):
        sanawm("train", "--config", recipe, "--data", clips, "--fov-deg", 80, "--out", tmp_path / "x")
    assert "is shorter than the 4.5 s of 3 chunks" in capsys.readouterr().out


def test_python_m_is_the_command():
    command = [sys.executable, "-m", "sanawm_env", "--help"]
    assert "rollout" in subprocess.run(command, capture_output=True, text=True, check=True).stdout


# test_integrations, test_webdataset, test_clips_read
ELSEWHERE = {"ppo_cleanrl.py", "webdataset.py", "footage_vizdoom.py"}
SHORTER = {"her.py": ("--steps", "120", "--episodes", "8")}
EXAMPLES = {p.name for p in (ROOT / "examples").glob("*.py")} - ELSEWHERE


@pytest.mark.slow
@pytest.mark.parametrize("example", sorted(EXAMPLES))
def test_examples_run(example, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [example, *SHORTER.get(example, ())])
    runpy.run_path(str(ROOT / "examples" / example), run_name="__main__")
    assert capsys.readouterr().out
    assert os.getcwd() == str(tmp_path)
