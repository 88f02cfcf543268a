"""Clips of one's own: brought to 16 frames a second with their poses, or refused before the work, all at once."""

import logging

import numpy as np
import pytest

from sanawm_env.cli.footage import check_clips, read_clip
from sanawm_env.recording.video import VideoWriter, read_video
from tests.datasets import write_wide


def clip(folder, fps=16.0, frames=49, says=None, poses=None, lens=True):
    """A clip whose brightness and place grow with time."""
    folder.mkdir()
    shades = np.round(np.arange(frames) / fps * 60).astype(np.uint8)
    with VideoWriter(folder / "video.mp4", fps=fps, crf=0) as video:
        video.append(np.broadcast_to(shades[:, None, None, None], (frames, 64, 96, 3)))
    c2w = np.tile(np.eye(4), (poses or frames, 1, 1))
    c2w[:, 2, 3] = np.arange(len(c2w)) / fps
    lenses = {"intrinsics": np.tile([[80.0, 0, 48], [0, 80, 32], [0, 0, 1]], (len(c2w), 1, 1))} if lens else {}
    np.savez(folder / "trajectory.npz", c2w=c2w, fps=fps if says is None else says, **lenses)
    return folder


@pytest.mark.parametrize("fps", [30, 60, 24])
def test_a_faster_clip_is_brought_to_16_frames_a_second(tmp_path, caplog, fps):
    with caplog.at_level(logging.WARNING):
        footage = read_clip(clip(tmp_path / "a", fps, frames=3 * fps + 1))
    assert "are taken, 16 a second" in caplog.text
    assert len(footage.frames) == len(footage.c2w) == 49
    seconds = np.arange(49) / 16
    np.testing.assert_allclose(footage.c2w[:, 2, 3], seconds, atol=0.51 / fps)  # the nearest frame
    shown = footage.frames[:, 32, 48, 0] / 60
    np.testing.assert_allclose(shown, footage.c2w[:, 2, 3], atol=0.05)  # each with the pose that is its own


def test_a_clip_of_16_frames_a_second_is_taken_whole(tmp_path, caplog):
    footage = read_clip(clip(tmp_path / "a"))
    assert len(footage.frames) == 49 and not caplog.records


def test_clips_that_cannot_be_learned_from_are_named_together(tmp_path):
    folders = [
        clip(tmp_path / "good"),
        clip(tmp_path / "slow", fps=10),
        clip(tmp_path / "apart", says=30),
        clip(tmp_path / "short", poses=40),
        clip(tmp_path / "blind", lens=False),
        clip(tmp_path / "cut"),
    ]
    (tmp_path / "cut" / "video.mp4").write_bytes(b"no video")
    says = r"5 of 6 clips .*slow has 10 frames.*apart has 16 frames and 30 poses.*as many.*\.\.\."
    with pytest.raises(ValueError, match=says):
        check_clips(folders)
    check_clips(folders[:1])


def test_a_clip_whose_pixels_are_not_square_is_named(tmp_path):
    folder = clip(tmp_path / "wide")
    frames = read_video(folder / "video.mp4")
    write_wide(folder / "video.mp4", frames)
    with pytest.raises(ValueError, match=r"its pixels are not square \(4:3\): write it anew with `ffmpeg"):
        check_clips([folder])
