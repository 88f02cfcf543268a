"""The shipped nano world does what its README says it learned: measured on walks that training never saw."""

import pytest

from sanawm_env.training.evaluate import evaluate


@pytest.fixture(scope="module")
def report():
    return evaluate("nano", scenes=6, seed=77, chunks=2, stride=12)


def test_it_is_better_than_turning_the_first_frame(report):
    for chunk in report.chunks:
        assert chunk.psnr > chunk.baselines["rotation_homography"].psnr + 1


def test_it_follows_the_camera(report):
    assert report.swapped_camera_psnr < report.psnr - 2
    assert report.sign_agreement > 0.9
    assert report.retrieval9 > 0.6
