"""The bars of the nano world say the right thing of worlds that are known."""

import json

import numpy as np
import pytest

from sanawm_env.training import bars
from sanawm_env.training.bars import BARS, judge, measure, told_apart
from sanawm_env.training.nano import NANO_SMALL
from sanawm_env.training.truth import shrink
from sanawm_env.world.world import World
from tests.known_worlds import HoldEngine, TruthEngine, lossless_codec


def known(engine):
    return World(type(engine.__name__, (engine,), {"config": NANO_SMALL})(lossless_codec()), engine.__name__)


@pytest.mark.slow
def test_the_renderer_itself_meets_the_bars_and_what_is_measured_is_not_measured_again(tmp_path, monkeypatch):
    numbers = measure(known(TruthEngine), tmp_path, 2, 5, 2, role="validation", parts=("known",))
    found = numbers["known"]
    assert min(found["small"]["psnr"]) > 45 and found["small"]["psnr"] == found["full"]["psnr"]
    assert min(found["small"]["over_plane"]) > 10 and found["full"]["sharpness"] == pytest.approx(1, abs=0.01)
    met = {bar["bar"]: bar["met"] for bar in numbers["bars"]}
    assert met["known places, chunk 1, 64 x 96"] and met["known places, sharpness, at most"]
    assert met["known places, chunk 4, 64 x 96"] is None and met["unknown rooms, sharpness"] is None
    assert json.loads((tmp_path / "bars.json").read_text()) == json.loads(json.dumps(numbers))

    def again(*_):
        raise AssertionError("rolled again")

    monkeypatch.setattr(bars, "roll", again)
    assert measure(known(TruthEngine), tmp_path, 2, 5, 2, role="validation", parts=("known",)) == numbers
    with pytest.raises(AssertionError, match="rolled again"):
        measure(known(TruthEngine), tmp_path, 2, 6, 2, role="validation", parts=("known",))


@pytest.mark.slow
def test_a_world_that_never_moves_comes_back_and_has_one_future(tmp_path):
    numbers = measure(known(HoldEngine), tmp_path, 2, 5, 2, role="validation", parts=("unknown", "closure", "seeds"))
    assert numbers["closure"] == {"way_back": 100.0, "last_to_first": 100.0}
    assert numbers["seeds"] == {"visible": 100.0, "unseen": 100.0, "other_steps": {}}
    met = {bar["bar"]: bar["met"] for bar in numbers["bars"]}
    assert met["two seeds, unseen"] is False and met["unknown rooms, chunk 1, over the plane"] is False


def test_a_bar_is_met_from_its_bound_on():
    numbers = {"known": {"small": {"psnr": [25.0, None]}}, "cost": {"state_mb": 10.01}}
    judged = {bar["bar"]: bar for bar in judge(numbers)}
    assert len(judged) == len(BARS)
    assert judged["known places, chunk 1, 64 x 96"]["met"] is True
    assert judged["state, MB"]["met"] is False
    assert judged["known places, chunk 8, 64 x 96"]["met"] is None


@pytest.mark.slow
def test_noise_is_told_from_pictures_and_pictures_are_not_told_from_themselves(monkeypatch):
    monkeypatch.setattr(bars, "LEARNING_STEPS", bars.LEARNING_STEPS // 3)
    rng = np.random.default_rng(0)
    smooth = rng.integers(0, 256, (8, 4, 4, 6, 3)).repeat(8, 2).repeat(8, 3)
    pictures = smooth.astype(np.uint8)
    noisy = np.clip(smooth + rng.normal(0, 30, smooth.shape), 0, 255).astype(np.uint8)
    assert told_apart(pictures, noisy) > 0.9
    assert told_apart(pictures, pictures) == pytest.approx(0.5, abs=0.1)


def test_shrinking_takes_means():
    frames = np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3)
    assert shrink(frames, 2).shape == (2, 2, 2, 3)
    assert shrink(frames, 2)[0, 0, 0, 0] == round(frames[0, :2, :2, 0].mean())
    assert np.array_equal(shrink(frames, 1), frames)


def test_a_part_that_does_not_exist_is_refused(tmp_path):
    with pytest.raises(ValueError, match="is no part"):
        measure("nano", tmp_path, parts=("colour",))
    with pytest.raises(ValueError, match="scenes"):
        measure("nano", tmp_path, scenes=1)
    assert not list(tmp_path.iterdir())
