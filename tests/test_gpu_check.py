"""The command that a GPU is lent for, tried at toy sizes: everything runs, is written down, and fails alone."""

import importlib.util
import json
import subprocess
import sys

import pytest

from tests.golden_files import ROOT, benchmark

pytestmark = pytest.mark.slow
SCRIPT = benchmark("gpu_check")
ORDER, PARTS, TINY_ORDER = SCRIPT["ORDER"], SCRIPT["PARTS"], SCRIPT["TINY_ORDER"]


@pytest.fixture
def gpu_check(monkeypatch, capfd):
    """Runs the command in this process, and its parts too unless they are to have `processes`: exit status, what was
    printed, and gpu_check.json. interpreted: with the Triton kernels, in their interpreter unless there is a GPU."""
    main, run = SCRIPT["main"], subprocess.run

    def call(*arguments):
        with monkeypatch.context() as patch, pytest.raises(SystemExit) as stop:
            patch.setattr(sys, "argv", list(map(str, arguments)))
            main()
        return stop.value.code or 0

    def part_here(command, **options):
        if "--part" not in command:
            return run(command, **options)
        return subprocess.CompletedProcess(command, call(*command[1:]))

    def gpu_check(out, *options, interpreted=False, processes=False):
        if not interpreted:
            monkeypatch.delenv("TRITON_INTERPRET", raising=False)
        if not processes:
            monkeypatch.setattr(subprocess, "run", part_here)
        status = call("gpu_check.py", out, "--quick", *options)
        return status, "".join(capfd.readouterr()), json.loads((out / "gpu_check.json").read_text())

    return gpu_check


def test_every_part_runs_at_toy_sizes(gpu_check, tmp_path):
    status, printed, done = gpu_check(tmp_path / "new" / "out")
    assert status == 0, printed
    assert tuple(done) == TINY_ORDER
    assert {part["status"] for part in done.values()} == {"ok"}
    assert done["versions"]["numbers"]["machine"] in printed
    for errors in done["rounding"]["numbers"].values():
        assert all(0 < error < 1e-2 for pair in errors.values() for error in pair)
    (measured,) = done["full 1"]["numbers"]["batch"].values()
    assert all(row["difference"] < 1e-2 and row["floor_ms"] > 0 for row in measured["rows"].values())
    assert {row["wanted"] for row in done["full 1"]["rows"]} >= {">= 8", "<= 1.3"}
    assert done["full checks"]["numbers"]["repeats_bit_for_bit"]
    assert "passed, 0 failed" in done["test_files"]["rows"][0]["measured"]


def test_rounding_is_looked_at_in_every_precision(gpu_check, tmp_path):
    if importlib.util.find_spec("triton") is None:
        pytest.skip("no triton here: there is one precision alone")
    status, printed, done = gpu_check(tmp_path, "--only", "rounding", interpreted=True)
    assert status == 0, printed
    numbers = done["rounding"]["numbers"]
    assert set(numbers) == set(SCRIPT["ROUNDING"])
    assert all(0 < error < 1e-2 for errors in numbers.values() for pair in errors.values() for error in pair)
    assert all(row["verdict"] == "met" for row in done["rounding"]["rows"])


def test_a_part_that_fails_costs_itself_alone(gpu_check, tmp_path):
    status, printed, done = gpu_check(
        tmp_path, "--device", "cuda:99", "--only", "versions", "test_files", processes=True
    )
    assert status == 1
    assert "Traceback" in printed and "cannot be used" in printed
    assert {name: part["status"] for name, part in done.items()} == {"versions": "FAILED", "test_files": "ok"}


def test_what_there_is_no_time_for_is_skipped(gpu_check, tmp_path):
    status, printed, done = gpu_check(tmp_path, "--minutes", 0)
    assert status == 0
    assert {part["status"] for part in done.values()} == {"skipped"}
    assert printed.count("skipped") == len(TINY_ORDER)


def test_what_a_gpu_runs_is_there():
    assert set(PARTS) <= set(ORDER)
    assert all((ROOT / "tests" / f"{name}.py").is_file() for name in ORDER if name not in PARTS)


def test_failed_tests_are_named(tmp_path):
    (tmp_path / "test_x.py").write_text("def test_right(): pass\ndef test_wrong(): assert False\n")
    command = [sys.executable, "-m", "pytest", "-q", "--junitxml=report", "test_x.py"]
    assert subprocess.run(command, cwd=tmp_path, capture_output=True).returncode == 1
    counts, failed = SCRIPT["read_tests"](tmp_path / "report")
    assert (counts["measured"], counts["verdict"]) == ("1 passed, 1 failed, 0 skipped", "missed")
    assert failed["what"] == "test_wrong"
