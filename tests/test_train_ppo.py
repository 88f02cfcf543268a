"""PPO on Stable-Baselines3: a run that was stopped, wherever, ends as one that was not."""

import json
import pickle
import shutil
import sys
import zipfile
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest
from filelock import FileLock
from rich.console import Console

pytest.importorskip("stable_baselines3")
import sanawm_env.agents.train_ppo as training
from sanawm_env.agents.train_ppo import TrainPPO, checkpoints, train_ppo

from tests.test_env import write_world

QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def settings(tmp_path_factory) -> TrainPPO:
    """Four rollouts of two episodes; episodes are longer than rollouts, so that checkpoints fall into them."""
    folder = tmp_path_factory.mktemp("ppo")
    small = {"num_envs": 2, "n_steps": 4, "batch_size": 4, "n_epochs": 1, "max_episode_chunks": 6, "steps": 32}
    world = write_world(folder / "world")
    return TrainPPO(world=world, out=folder / "whole", obs_size=(36, 36), checkpoint_seconds=0, **small)


@pytest.fixture(scope="module")
def whole(settings):
    return train_ppo(settings, QUIET)


@pytest.fixture(scope="module")
def envs(settings):
    return training.VecMonitor(training.make_envs(settings))


def alike(one, other) -> bool:
    return all(p.equal(q) for p, q in zip(one.policy.parameters(), other.policy.parameters(), strict=True))


@pytest.mark.slow
def test_a_run_leaves_its_policy_and_its_progress(settings, whole):
    assert [folder.name for folder in checkpoints(settings.out)] == ["checkpoint_32"]
    history = json.loads((settings.out / "progress.json").read_text())
    assert [entry["steps"] for entry in history] == [16, 24, 32]  # the first episodes end in the second rollout
    assert alike(whole, training.PPO.load(settings.out / "policy.zip"))


@pytest.mark.slow
def test_going_on_is_as_if_it_had_never_stopped(settings, whole, tmp_path):
    run = replace(settings, out=tmp_path)
    train_ppo(replace(run, steps=8), QUIET)
    half = train_ppo(replace(run, steps=16), QUIET)
    assert not alike(half, whole)
    assert alike(train_ppo(run, QUIET), whole)
    for name in ("progress.json", "settings.json"):
        assert (tmp_path / name).read_text() == (settings.out / name).read_text()
    assert train_ppo(run, QUIET).num_timesteps == 32  # nothing is left to do


@pytest.mark.slow
@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_a_run_that_breaks_off_goes_on_from_the_checkpoint_before(settings, whole, tmp_path, monkeypatch, error):
    run, save, calls = replace(settings, out=tmp_path), training.Snapshot.save, []

    def breaks(moment, path):
        calls.append(path)
        if len(calls) == 4:  # half way through the second checkpoint
            raise error
        save(moment, path)

    monkeypatch.setattr(training.Snapshot, "save", breaks)
    with pytest.raises(error):
        train_ppo(run, QUIET)
    assert len(checkpoints(tmp_path)) == 1
    assert alike(train_ppo(run, QUIET), whole)


@pytest.mark.parametrize("task", ["pointnav", "imagenav", "followpath"])
def test_tasks_with_goals_show_them_to_the_policy(settings, tmp_path, task):
    run = replace(settings, task=task, obs_mode=None, goal_chunks=1, steps=8, out=tmp_path)
    assert run.obs_mode == "dict"
    model = train_ppo(run, QUIET)
    seen = set(model.policy.features_extractor.images + model.policy.features_extractor.vectors)
    assert seen == set(model.observation_space) and len(seen) == 3


def test_another_run_is_not_written_over(settings, whole):
    with pytest.raises(ValueError, match="holds a run with other settings: seed is 0 there, 1 here"):
        train_ppo(replace(settings, seed=1), QUIET)


def test_two_processes_do_not_train_in_one_folder(settings, whole):
    with FileLock(settings.out / "lock"), pytest.raises(BlockingIOError, match="another process does"):
        train_ppo(settings, QUIET)


@pytest.mark.parametrize(
    ("error", "status", "says"),
    [
        (KeyboardInterrupt(15), 143, "Stopped. The same command continues"),
        (BlockingIOError("Another process trains in [b]x"), 2, "train_ppo: Another process trains in [b]x"),
        (RuntimeError("can't allocate memory: 9 bytes"), 2, "of this machine is full (can't allocate memory: 9 bytes)"),
    ],
)
def test_the_command_ends_with_a_sentence(monkeypatch, capsys, error, status, says):
    def fails(*_):
        raise error

    monkeypatch.setattr(training, "train_ppo", fails)
    monkeypatch.setattr("sys.argv", ["train_ppo"])
    with pytest.raises(SystemExit) as stop:
        training.main()
    assert stop.value.code == status and says in " ".join(capsys.readouterr().err.split())


def test_what_others_look_at_is_put_back_by_the_next_run(settings, whole):
    """A kill may come after a checkpoint and before the copies of its policy and history."""
    kept = {name: (settings.out / name).read_bytes() for name in ("policy.zip", "progress.json")}
    for name in kept:
        (settings.out / name).write_bytes(b"of before")
    train_ppo(settings, QUIET)
    assert {name: (settings.out / name).read_bytes() for name in kept} == kept
    assert not list(settings.out.glob("*.part"))


def rewrite(name, change):
    def spoil(folder):
        kept = json.loads((folder / "run.json").read_text())
        kept[name] = change
        (folder / "run.json").write_text(json.dumps(kept))

    return spoil


def pickled(folder):
    with zipfile.ZipFile(folder / "policy.zip", "w") as archive:
        archive.writestr("policy.pth", pickle.dumps({"a": Path}))


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda folder: (folder / "run.json").write_text("[" * 9000), "nested too deeply"),
        (lambda folder: (folder / "run.json").unlink(), "No such file"),
        (lambda folder: (folder / "0.safetensors").write_bytes(b"cut"), "0.safetensors"),
        (rewrite("steps", 1.5), "steps must be a whole number, got 1.5"),
        (rewrite("returns", [0.0]), "returns must be 2"),
        (rewrite("lengths", [0, 10**12]), "lengths[1] must be below 2,147,483,648"),
        (rewrite("history", [{"steps": 3}]), "history holds"),
        (rewrite("torch", [0] * 9), "torch's random numbers has 9 bytes"),
        (rewrite("numpy", {"bit_generator": "PCG64"}), "numpy.bit_generator must be 'MT19937', got 'PCG64'"),
        (rewrite("starts", ["yes", "no"]), "starts[0] must be true or false"),
        (pickled, "pickled"),
        (lambda folder: (folder / "policy.zip").write_bytes(b"no archive"), "not a zip file"),
    ],
)
def test_a_damaged_checkpoint_is_one_sentence_and_stays(settings, whole, tmp_path, envs, spoil, says):
    folder = shutil.copytree(checkpoints(settings.out)[0], tmp_path / "checkpoint_32")
    spoil(folder)
    before = sorted(path.name for path in folder.iterdir())
    with pytest.raises(ValueError, match="cannot be loaded") as said:
        training.load(folder, envs, settings)
    assert says in str(said.value) and "\n" not in str(said.value)
    assert "Delete it to train from the beginning, or give another --out" in str(said.value)
    assert sorted(path.name for path in folder.iterdir()) == before


def test_a_checkpoint_is_not_unpickled(settings, whole, tmp_path, envs):
    """Stable-Baselines3's own part of the archive, which it would unpickle, is not looked at."""
    folder = shutil.copytree(checkpoints(settings.out)[0], tmp_path / "checkpoint_32")
    with zipfile.ZipFile(folder / "policy.zip") as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(folder / "policy.zip", "w") as archive:
        for name, data in parts.items():
            archive.writestr(name, b"{" if name == "data" else data)
    assert alike(training.load(folder, envs, settings)[0], whole)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"task": "swim"}, "task must be 'explore', 'pointnav', 'imagenav' or 'followpath', got 'swim'"),
        ({"obs_mode": "latent"}, "obs_mode must be 'rgb', 'stack' or 'dict', got 'latent'"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"num_envs": 10**9}, "num_envs must be at most 4,096, got 1000000000"),
        ({"n_epochs": True}, "n_epochs must be a whole number, got True"),
        ({"learning_rate": float("nan")}, "learning_rate must be a finite number"),
        ({"gamma": "high"}, "gamma must be a number, got 'high'"),
        ({"num_envs": 1, "n_steps": 1}, "num_envs times n_steps"),
        ({"obs_size": (16, 64)}, r"obs_size\[0\] must be at least 36, got 16"),
        ({"obs_size": 64}, "obs_size must be a list, got 64"),
    ],
)
def test_settings_that_cannot_be_are_refused(wrong, says):
    with pytest.raises(ValueError, match=says):
        TrainPPO(**wrong)


def test_the_command_tells_its_settings(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["train_ppo", "--help"])
    with pytest.raises(SystemExit) as stop:
        training.main()
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert "--checkpoint-seconds" in shown and "continues after an interruption" in shown


def test_without_stable_baselines_one_sentence_says_what_to_install(monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "stable_baselines3"]:
        monkeypatch.setitem(sys.modules, name, None)
    for name in ("sanawm_env.integrations.sb3", "sanawm_env.agents.train_ppo"):
        monkeypatch.delitem(sys.modules, name)
        with pytest.raises(ImportError, match=r'^Stable-Baselines3 is missing: pip install "sanawm-env\[rl\]"'):
            import_module(name)
