"""`sanawm bench kernels`: its numbers hang together. No time is asserted."""

import json

import pytest
import torch

from sanawm_env.cli.bench_kernels import graphed, least_work, random_subject, sized, step_floor
from tests.test_cli import refused, sanawm


@pytest.mark.slow
def test_the_numbers_hang_together(tmp_path, capsys):
    threads, path = torch.get_num_threads(), tmp_path / "kernels.json"
    sanawm("bench", "kernels", "--size", "nano", "--batches", 1, "--repeats", 1, "--threads", threads, "--json", path)
    report = json.loads(path.read_text())
    assert {"machine", "torch", "triton", "threads", "date", "backend", "dtype"} <= report.keys()
    assert report["size"] == "nano" and report["backend"] == "cpu" and list(report["batch"]) == ["1"]
    rows = report["batch"]["1"]["rows"]
    assert list(rows) == ["gdn", "depthwise_glu", "attend", "step"]
    for row in rows.values():
        assert min(row["reference_ms"], row["fast_ms"], row["floor_ms"]) > 0
        assert row["ratio"] == pytest.approx(row["reference_ms"] / row["fast_ms"])
        assert row["over_floor"] == pytest.approx(row["fast_ms"] / row["floor_ms"])
        assert row["difference"] < 1e-4
    assert report["batch"]["1"]["copy_gb_per_s"] > 0 and min(report["batch"]["1"]["products_tflops"].values()) > 0
    printed = capsys.readouterr().out
    assert "depthwise_glu" in printed and "GB/s" in printed


def test_floors_of_the_full_network_are_those_of_the_reference():
    """kernels.md 3 at 790 TFLOP/s and 4.3 TB/s, without the ray conditions' projection, which a context holds, and
    with what the clean pass leaves out."""
    config, tflops = sized("full", "cpu"), 790.0
    work = least_work(config, 1)
    assert work["gdn"].bytes == pytest.approx(94.6e6, rel=1e-3) and work["gdn"].flops == pytest.approx(9.8e9, rel=0.01)
    assert work["depthwise_glu"].bytes == pytest.approx(106e6, rel=0.01)
    assert 2 * work["attend"].flops == pytest.approx(0.416e12, rel=0.01)
    assert work["norms"].bytes == pytest.approx(142e6, rel=0.01)
    floors = {name: max(w.bytes / 4.3e9, w.flops / tflops / 1e9) for name, w in work.items()}
    assert 0.97 * (101 - 3.4) < step_floor(config, 1, floors, tflops) < 1.03 * (101 - 3.4)


def test_work_grows_with_the_batch_and_the_size_suits_the_device():
    config = sized(None, "cpu")
    assert config.name == "nano" and sized(None, "cuda:1").name == "full"
    one, four = (least_work(config, batch) for batch in (1, 4))
    assert all(four[name].flops == 4 * one[name].flops for name in one)


def test_every_weight_is_set_and_there_is_no_graph_on_a_cpu():
    subject = random_subject(sized("nano", "cpu"), torch.device("cpu"), repeats=1)
    again = random_subject(sized("nano", "cpu"), torch.device("cpu"), repeats=1).network.state_dict()
    assert all(t.isfinite().all() and torch.equal(t, again[name]) for name, t in subject.network.state_dict().items())
    assert graphed(subject, 1) == {}


def test_bad_input_is_one_sentence(capsys):
    assert "a whole number from 1 to" in refused(capsys, "bench", "kernels", "--batches", "0,1")
    assert "whole numbers" in refused(capsys, "bench", "kernels", "--batches", "one")
    assert "a whole number from 1 to" in refused(capsys, "bench", "kernels", "--repeats", 0)
    assert "cannot be used" in refused(capsys, "bench", "kernels", "--device", "cuda:99")


def test_a_network_too_large_for_the_memory_is_refused(capsys, monkeypatch):
    monkeypatch.setattr("sanawm_env.cli.bench_kernels.MEMORY_FACTOR", 1e6)
    assert "--size nano" in refused(capsys, "bench", "kernels", "--size", "full", "--batches", 1)
