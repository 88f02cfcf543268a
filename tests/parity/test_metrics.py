"""The metrics room against vectors of the published evaluation, and its promises on made-up cases."""

import json
import math

import numpy as np
import pytest

from sanawm_env.metrics.benchmark import (
    remap_frame,
    revisit,
    rotation_errors_deg,
    temporal_windows,
    vbench_score,
)
from sanawm_env.metrics.image import psnr, ssim
from sanawm_env.metrics.pose import align, evaluate, pose_errors
from tests.golden_files import golden

METRICS = json.loads((golden("camera") / "metrics.json").read_text())
POSES = np.load(golden("camera") / "metric_poses.npz")


def assert_errors(got, case):
    assert got.rot_err_deg == pytest.approx(case["RotErr_deg"], abs=0.02)
    assert got.trans_err == pytest.approx(case["TransErr"], abs=1e-4)
    assert got.cam_mc == pytest.approx(case["CamMC"], abs=1e-4)


@pytest.mark.parametrize("case", METRICS["pairs"], ids=lambda case: case["name"])
def test_pose_errors_and_alignment_are_the_published_ones(case):
    truth, estimate = (POSES[f"{case['name']}__{which}"] for which in ("gt", "est"))
    got = pose_errors(truth, estimate)
    assert_errors(got, case)
    assert got.frames == case["n"]
    alignment = align(truth.astype(np.float64), estimate.astype(np.float64))
    assert np.allclose(alignment.rotation, case["align_R"], rtol=0, atol=1e-4)
    assert np.linalg.det(alignment.rotation) == pytest.approx(case["align_R_det"], abs=1e-4)
    assert got.scale == alignment.scale == pytest.approx(case["align_s"], abs=1e-4)
    assert np.allclose(alignment.translation, case["align_t"], rtol=0, atol=1e-4)


@pytest.mark.parametrize("case", METRICS["evaluator"], ids=str)
def test_evaluation_of_a_video_is_the_published_one(case):
    estimate = POSES[f"eval__est_interval{case['interval']}"]
    estimate = estimate[: len(estimate) - case["drop_tail"]]
    got = evaluate(POSES["eval__gt"], estimate, case["interval"], case["skip_first_frame"])
    assert got.frames == case["n_frames"]
    assert_errors(got, case)


def test_a_frozen_estimate_has_scale_zero_and_the_spread_of_the_truth():
    truth = np.tile(np.eye(4), (5, 1, 1))
    truth[:, 2, 3] = np.arange(5)
    got = pose_errors(truth, np.tile(np.eye(4), (5, 1, 1)))
    assert got.scale == 0 and got.trans_err == pytest.approx(np.mean([2, 1, 0, 1, 2]))


def test_trajectories_of_different_shape_are_refused():
    with pytest.raises(ValueError, match="one shape"):
        pose_errors(np.tile(np.eye(4), (3, 1, 1)), np.tile(np.eye(4), (2, 1, 1)))
    with pytest.raises(ValueError, match="no frame is left"):
        evaluate(np.eye(4)[None], np.eye(4)[None], skip_first_frame=True)


@pytest.mark.parametrize("case", METRICS["vbench"], ids=lambda case: str(case["out"]["quality_score"]))
def test_vbench_scores_are_the_published_ones(case):
    score, want = vbench_score(case["raw"]), case["out"]
    assert score.normalized == pytest.approx(want["normalized_per_dim"], abs=1e-4)
    assert score.quality == pytest.approx(want["quality_score"], abs=1e-4)
    assert score.semantic == pytest.approx(want["semantic_score"], abs=1e-4)
    assert score.total == pytest.approx(want["total_score"], abs=1e-4)


def test_an_unknown_dimension_is_refused():
    with pytest.raises(ValueError, match="unknown VBench dimensions"):
        vbench_score({"beauty": 1.0})


@pytest.mark.parametrize("case", METRICS["revisit"], ids=lambda case: str(case["idx"]))
def test_image_likeness_is_the_published_one(case):
    images = np.load(golden("camera") / "revisit_images.npz")
    a, b = (images[f"{which}{case['idx']}"] for which in "ab")
    assert psnr(a, b) == pytest.approx(case["psnr"], abs=1e-6)
    assert ssim(a, b) == pytest.approx(case["ssim"], abs=1e-6)


def test_images_of_different_shape_are_refused():
    with pytest.raises(ValueError, match="one shape"):
        psnr(np.zeros((4, 4, 3)), np.zeros((4, 5, 3)))


def test_revisit_takes_the_best_pairs_and_skips_equal_frames():
    video = np.zeros((4, 12, 12, 3), np.uint8)
    video[3] = 255
    pairs = [
        {"frame_a": 0, "frame_b": 3, "quality_score": 0.9},
        {"frame_a": 1, "frame_b": 2, "quality_score": 0.1},
        {"frame_a": 3, "frame_b": 99, "quality_score": 0.2},
    ]
    assert revisit(video, pairs, most=2).pairs == 1
    assert revisit(video, pairs, most=2).psnr == 100
    assert revisit(video, pairs).psnr == pytest.approx((100 + psnr(video[0], video[3])) / 2)
    assert math.isnan(revisit(video, []).psnr)


@pytest.mark.parametrize("case", METRICS["frame_remap"], ids=lambda case: f"{case['frame']}@{case['video_fps']}")
def test_frames_are_remapped_as_published(case):
    assert remap_frame(case["frame"], case["ref_fps"], case["video_fps"], case["n_video_frames"]) == case["out"]


@pytest.mark.parametrize("case", METRICS["roterr_units"], ids=lambda case: "".join(case["rows"]))
def test_rotation_errors_in_radians_are_found_as_published(case):
    assert rotation_errors_deg(case["rows"]) == pytest.approx(case["out"])


@pytest.mark.parametrize("case", METRICS["temporal_windows_10s_16fps"], ids=lambda case: str(case["n_frames"]))
def test_windows_are_the_published_ones(case):
    assert [list(window) for window in temporal_windows(case["n_frames"], 10, 16)] == case["windows"]
