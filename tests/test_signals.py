"""Being asked to stop: every signal that asks is as Ctrl-C, for every command, and a second one ends at once."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from sanawm_env import cli
from sanawm_env.system import signals
from sanawm_env.system.signals import exit_status, interrupting, on_stop, postponed

ROOT = Path(__file__).parents[1]
ASKS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


@pytest.fixture(autouse=True)
def as_in_a_terminal():
    """Handlers as a process has them that nobody started in the background."""
    before = {number: signal.signal(number, signal.default_int_handler) for number in ASKS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", ASKS)
def test_each_is_an_interrupt_that_says_which(number):
    with pytest.raises(KeyboardInterrupt) as caught, interrupting():
        signal.raise_signal(number)
    assert exit_status(caught.value) == 128 + number
    assert signal.getsignal(number) is signal.default_int_handler  # as before


def test_an_interrupt_without_a_number_is_ctrl_c():
    assert exit_status(KeyboardInterrupt()) == 130


@pytest.mark.parametrize(("later", "ends"), [(0.5, False), (2.0, True)])
def test_a_second_one_ends_at_once_and_an_echo_does_not(monkeypatch, later, ends):
    now, killed, asked = [100.0], [], []
    monkeypatch.setattr(signals.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(signals.os, "kill", lambda pid, number: killed.append((pid, number)))
    with on_stop(asked.append):
        signal.raise_signal(signal.SIGTERM)
        now[0] += later
        signal.raise_signal(signal.SIGTERM)
        assert (signal.getsignal(signal.SIGTERM) is signal.SIG_DFL) == ends
    assert asked == [signal.SIGTERM]
    assert killed == [(os.getpid(), signal.SIGTERM)] * ends


def test_what_is_ignored_stays_so():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # nohup
    with interrupting():
        signal.raise_signal(signal.SIGHUP)


def test_other_threads_change_nothing():
    def run():
        with interrupting(), postponed():
            seen.append(signal.getsignal(signal.SIGTERM))

    seen = []
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [signal.default_int_handler]


def test_what_must_not_be_left_half_done_is_done_first():
    done = []
    with pytest.raises(KeyboardInterrupt) as caught, interrupting():
        with postponed():
            signal.raise_signal(signal.SIGTERM)
            done.append("the rest")
        done.append("too late")
    assert done == ["the rest"] and caught.value.args == (signal.SIGTERM,)


@pytest.mark.parametrize("number", ASKS)
def test_every_command_ends_as_the_shell_expects(monkeypatch, capsys, number):
    monkeypatch.setattr(cli.Doctor, "run", lambda self: signal.raise_signal(number))
    with pytest.raises(SystemExit) as caught:
        cli.main(["doctor"])
    assert caught.value.code == 128 + number
    assert capsys.readouterr().out == "Stopped.\n"


@pytest.mark.parametrize(
    "error",
    [MemoryError(), RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9")],
)
def test_no_memory_is_one_sentence(monkeypatch, capsys, error):
    def run(self):
        raise error

    monkeypatch.setattr(cli.Doctor, "run", run)
    with pytest.raises(SystemExit) as caught:
        cli.main(["doctor"])
    assert caught.value.code == 2
    assert capsys.readouterr().err.startswith("sanawm: the memory of this machine is full (")
    monkeypatch.setattr(cli.Doctor, "run", lambda self: [].append(undefined))  # noqa: F821
    with pytest.raises(NameError):  # faults of ours are not hidden
        cli.main(["doctor"])


@pytest.mark.slow
def test_names_that_are_no_text_are_printed(monkeypatch, tmp_path):
    code = "import sys; from sanawm_env import cli\n"
    code += "cli.Doctor.run = lambda self: cli.console.print('[b]' + sys.argv[1])\ncli.main(['doctor'])"
    name = b"x\xff"
    for encoding in ("utf-8", "ascii"):
        done = subprocess.run(
            [sys.executable, "-c", code, name], capture_output=True, env=os.environ | {"PYTHONIOENCODING": encoding}
        )
        assert (done.returncode, done.stdout) == (0, b"[b]x\\udcff\n"), done.stderr


@pytest.mark.slow
def test_a_rollout_that_is_terminated_leaves_what_it_has(tmp_path):
    command = [sys.executable, "-m", "sanawm_env", "rollout", "--actions", "d-960", "--out", str(tmp_path / "r")]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=env,
        preexec_fn=lambda: signal.signal(signal.SIGTERM, signal.SIG_DFL),
    )
    while not any(file.stat().st_size > 2**10 for file in (tmp_path / "r").rglob("video.mp4")):  # a step is written
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.01)
    process.terminate()
    said, _ = process.communicate()
    assert process.returncode == 143 and said.endswith("Stopped.\n"), said
    from sanawm_env.recording.episode import RecordedEpisode

    episode = RecordedEpisode.open(tmp_path / "r")
    assert episode.meta["interrupted"] and episode.meta["num_frames"] == 1 + 24 * episode.chunks
    assert len(episode.frames()) == episode.meta["num_frames"]
    assert not list((tmp_path / "r").glob("*.part")) and not list((tmp_path / "r").glob("*.lock"))
