"""Datasets as Minari datasets, read back with Minari: a picture and a pose per step, and what the environment paid."""

import json
import re
import shutil
import sys
import warnings
from pathlib import Path

import gymnasium
import minari
import numpy as np
import pytest
from PIL import Image

from sanawm_env.cli.dataset import DatasetExport
from sanawm_env.envs.config import EnvConfig
from sanawm_env.envs.env import SanaWMEnv
from sanawm_env.recording.dataset import Dataset
from sanawm_env.recording.episode import begin
from sanawm_env.recording.minari import action_space, export_minari
from sanawm_env.recording.video import VideoWriter
from sanawm_env.simulation.tasks import make_task
from tests.datasets import collect, rewards, say, small_world
from tests.worlds import picture

ID = "sanawm/tiny-v0"
CHUNKS = (2, 1, 3)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return small_world(tmp_path_factory.mktemp("minari") / "world")


@pytest.fixture(scope="module")
def native(world, tmp_path_factory):
    folder = tmp_path_factory.mktemp("native")
    return collect(folder / "native", world, CHUNKS)


@pytest.fixture(scope="module")
def home(native, tmp_path_factory):
    """The folder that an export was written under."""
    out = tmp_path_factory.mktemp("datasets")
    assert [row.id for row in export_minari(native, ID, out)] == [row.id for row in native.finished()]
    return out


@pytest.fixture
def loaded(home, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(home))
    return minari.load_dataset(ID)


@pytest.fixture
def copy(native, tmp_path):
    """The native dataset, for tests that spoil it."""
    shutil.copytree(native.folder, tmp_path / "native")
    return Dataset.open(tmp_path / "native")


def read(out, name=ID):
    return minari.MinariDataset(out / name / "data")


@pytest.mark.slow
def test_minari_finds_it_by_its_id(loaded, home):
    assert (loaded.total_episodes, loaded.total_steps) == (len(CHUNKS), sum(CHUNKS))
    assert list(minari.list_local_datasets()) == [ID]
    assert loaded.spec.dataset_id == ID


def test_episodes_hold_what_the_environment_gave_and_took(native, loaded):
    for number, (episode, native_episode) in enumerate(zip(loaded.iterate_episodes(), native.episodes(), strict=True)):
        arrays = native_episode.arrays()
        assert len(episode) == CHUNKS[number]
        np.testing.assert_array_equal(episode.observations["rgb"], native_episode.frames()[::24])
        np.testing.assert_array_equal(episode.actions, arrays["actions"])
        np.testing.assert_array_equal(episode.rewards, rewards(number, CHUNKS[number]))
        np.testing.assert_array_equal(episode.terminations, arrays["terminated"])
        np.testing.assert_array_equal(episode.truncations, arrays["truncated"])
        assert episode.truncations[-1] == (CHUNKS[number] == 3)
    facts = list(loaded.storage.get_episode_metadata(range(len(CHUNKS))))
    assert [fact["seed"] for fact in facts] == [0, 1, 2]
    assert [fact["sanawm_id"] for fact in facts] == ["job-0", "job-1", "job-2"]


def test_observations_and_actions_lie_in_their_spaces(loaded):
    for episode in loaded.iterate_episodes():
        for step in range(len(episode) + 1):
            observation = {name: values[step] for name, values in episode.observations.items()}
            assert loaded.observation_space.contains(observation)
        assert all(loaded.action_space.contains(action) for action in episode.actions)


def test_poses_are_the_environments_own(native, world, loaded):
    episode = loaded[0]
    env = SanaWMEnv(world, max_episode_chunks=3)
    begin(env, picture(0), seed=0)
    seen = [env.observation["pose"], *(env.step(action)[0]["pose"] for action in episode.actions)]
    np.testing.assert_allclose(episode.observations["pose"], seen, atol=1e-6)
    assert np.ptp(seen, axis=0)[3:6].max() > 0.01


def test_episodes_can_be_sampled_and_printed(loaded):
    loaded.set_seed(0)
    (episode,) = loaded.sample_episodes(1)
    assert episode.observations["rgb"].shape == (len(episode) + 1, 32, 48, 3)
    assert "total_steps" in repr(episode)


def test_pictures_as_jpeg_are_about_the_same(native, loaded, tmp_path):
    list(export_minari(native, ID, tmp_path, jpeg=True))
    kept, lossy = loaded[0].observations["rgb"].astype(int), read(tmp_path)[0].observations["rgb"].astype(int)
    assert 0 < np.abs(kept - lossy).mean() < 30


def test_the_environment_can_be_made_again(native, loaded):
    made = EnvConfig(world=native.header["world"], max_episode_chunks=3, obs_size=(32, 48))
    assert EnvConfig.from_plain(loaded.env_spec.kwargs) == made
    assert loaded.env_spec.entry_point == "sanawm_env.envs.env:SanaWMEnv"


@pytest.mark.parametrize(("task", "name"), [("none", "Walk"), ("explore", "Explore")])
def test_the_environment_is_recovered(world, tmp_path, task, name):
    """With the spaces of the dataset, under an id that has its task, or none where there was none."""
    given = {} if task == "none" else {"task": task}
    settings = {"action_mode": "discrete", "obs_mode": "rgb", "workspace": {"hard_distance": 30.0}}
    dataset = collect(tmp_path / "native", world, (1,), **settings, **given)
    list(export_minari(dataset, ID, tmp_path / "out"))
    written = read(tmp_path / "out")
    made = written.recover_environment()
    assert written.env_spec.id == made.spec.id == f"SanaWM/{name}-v0"
    assert gymnasium.spec(made.spec.id).kwargs == {"task": task}
    assert type(made.unwrapped.task) is type(make_task(task))
    assert made.action_space == written.action_space and made.observation_space == written.observation_space
    assert made.unwrapped.world.weights_hash == dataset.header["weights_hash"]


def test_a_world_of_another_machine_leaves_poses_unbounded(copy, tmp_path):
    for episode in copy.episodes():
        say(episode, world=str(tmp_path / "elsewhere"))
    list(export_minari(copy, ID, tmp_path / "out"))
    assert np.isinf(read(tmp_path / "out").observation_space["pose"].high[:3]).all()


def test_minaris_own_collector_records_the_environment(world, tmp_path, monkeypatch):
    """Infos included; an option of its own, minari_autoseed, which it hands on to the environment."""
    pytest.importorskip("jax", reason="NOT TESTED HERE: minari's collector needs jax, which is not installed")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    Image.fromarray(picture(0)).save(tmp_path / "start.png")
    settings = {"world": str(world), "scenes": str(tmp_path / "start.png"), "max_episode_chunks": 2}
    env = minari.DataCollector(gymnasium.make("SanaWM/PointNav-v0", **settings), record_infos=True)
    for options in (None, {"minari_autoseed": False}):
        env.reset(options=options)
        done = False
        while not done:
            *_, terminated, truncated, _ = env.step(env.action_space.sample())
            done = terminated or truncated
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of facts that nobody gave: author, code
        dataset = env.create_dataset("sanawm/walks-v0")
    assert dataset.total_episodes == 2
    assert len(dataset[0].infos["distance"]) == len(dataset[0]) + 1
    made = minari.load_dataset("sanawm/walks-v0").recover_environment()
    assert made.observation_space == env.observation_space and made.spec.id == "SanaWM/PointNav-v0"


@pytest.mark.parametrize(("changed", "length"), [({"max_episode_chunks": 9}, 9), ({"speed": "brisk"}, None)])
def test_an_environment_is_named_if_all_episodes_are_of_one(copy, tmp_path, changed, length):
    """Collectors fit its length to each camera's path; that alone does not make it another."""
    episode = next(copy.episodes())
    say(episode, env=episode.meta["env"] | changed)
    list(export_minari(copy, ID, tmp_path / "out"))
    spec = read(tmp_path / "out").env_spec
    assert length == (spec and spec.kwargs["max_episode_chunks"])


@pytest.mark.parametrize("mode", ["twist", "keys", "discrete", "poses"])
def test_actions_of_every_mode_are_kept(world, tmp_path, mode):
    dataset = collect(tmp_path / "native", world, (2,), action_mode=mode)
    env = SanaWMEnv(world, action_mode=mode)
    space = action_space(dataset)
    assert (space.shape, space.dtype) == (env.action_space.shape, env.action_space.dtype)
    if mode != "poses":  # whose own space holds rigid transforms only
        assert space == env.action_space
    list(export_minari(dataset, ID, tmp_path / "out"))
    (episode,) = dataset.episodes()
    np.testing.assert_array_equal(read(tmp_path / "out")[0].actions, episode.arrays()["actions"])


def test_twists_are_cut_as_the_environment_cuts_them(copy, tmp_path):
    episode = next(copy.episodes())
    arrays = episode.arrays()
    arrays["actions"] = arrays["actions"].astype(np.float64) * 3
    np.savez(episode.folder / "actions.npz", **arrays)
    list(export_minari(copy, ID, tmp_path / "out"))
    actions = read(tmp_path / "out")[0].actions
    assert np.abs(arrays["actions"]).max() > 1
    np.testing.assert_array_equal(actions, arrays["actions"].clip(-1, 1).astype(np.float32))


# ---- where it is written, and what is refused


def test_nothing_is_written_elsewhere(native, tmp_path, monkeypatch):
    monkeypatch.delenv("MINARI_DATASETS_PATH", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    list(export_minari(native, "plain-v1", tmp_path / "out"))
    files = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert files == {"out/plain-v1/data/main_data.hdf5", "out/plain-v1/data/metadata.json"}


@pytest.mark.slow
def test_a_second_dataset_stands_beside_the_first(native, tmp_path, monkeypatch):
    about = tmp_path / "sanawm" / "namespace_metadata.json"
    for name in (ID, "sanawm/other-v0"):
        list(export_minari(native, name, tmp_path))
        assert json.loads(about.read_text()) == ({} if name == ID else {"description": "mine"})
        about.write_text('{"description": "mine"}')
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    assert set(minari.list_local_datasets()) == {ID, "sanawm/other-v0"}


@pytest.mark.parametrize("name", ["", "walk", "../walk-v0", "/walk-v0", "a b-v0", "walk-vx", "x/../../walk-v0"])
def test_ids_that_are_none_are_refused(native, tmp_path, name):
    with pytest.raises(ValueError, match="The id of a Minari dataset must be like"):
        export_minari(native, name, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_is_not_written_over(native, home):
    with pytest.raises(FileExistsError, match="exists already"):
        export_minari(native, ID, home)


def test_an_unknown_action_mode_is_refused(copy, tmp_path):
    copy.header["action_mode"] = "thought"
    with pytest.raises(ValueError, match="must be one of twist, keys, discrete, poses, got 'thought'"):
        list(export_minari(copy, ID, tmp_path / "out"))


def test_an_export_that_is_stopped_leaves_nothing(copy, tmp_path):
    rows = export_minari(copy, ID, tmp_path / "out")
    next(rows)
    rows.close()
    assert [path for path in (tmp_path / "out").rglob("*") if path.is_file()] == []


def test_damaged_episodes_are_left_out_and_named(copy, tmp_path, caplog):
    first, second = copy.finished()[:2]
    (copy.folder / first.episode / "meta.json").unlink()
    rows = export_minari(copy, ID, tmp_path / "out")
    (copy.folder / second.episode / "actions.npz").unlink()
    assert list(rows) == copy.finished()[2:]
    assert all(f"{row.episode} is left out" in caplog.text for row in (first, second))
    assert read(tmp_path / "out").total_steps == sum(CHUNKS[2:])


def test_actions_of_another_shape_are_left_out(copy, tmp_path, caplog):
    episode = next(copy.episodes())
    arrays = episode.arrays()
    np.savez(episode.folder / "actions.npz", **arrays | {"actions": arrays["actions"][:, :5]})
    assert list(export_minari(copy, ID, tmp_path / "out")) == copy.finished()[1:]
    assert "actions of shape (5,), its space has (6,)" in caplog.text


def test_a_video_that_ends_before_the_last_step_is_left_out(copy, tmp_path, caplog):
    episode = next(copy.episodes())
    frames = episode.frames()
    with VideoWriter(episode.folder / "video.mp4") as video:
        video.append(frames[:-1])
    assert list(export_minari(copy, ID, tmp_path / "out")) == copy.finished()[1:]
    assert "shows the end of 1 of 2 steps" in caplog.text


def test_a_full_disk_is_one_sentence(native, tmp_path, monkeypatch):
    rows = export_minari(native, ID, tmp_path / "out")
    next(rows)
    free = shutil.disk_usage(tmp_path)._replace(free=2**20)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: free)
    with pytest.raises(OSError, match=r"^cannot write .*tiny-v0: No space left on device$"):
        next(rows)
    assert not (tmp_path / "out" / ID).exists()


@pytest.mark.parametrize("missing", ["minari", "h5py"])
def test_without_minari_the_extra_is_named(native, tmp_path, monkeypatch, missing):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ImportError, match=re.escape('pip install "sanawm-env[data]"')):
        export_minari(native, ID, tmp_path / "out")


def test_the_command_exports_and_says_how_to_load(native, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    DatasetExport(native.folder, Path("out"), "minari", ID).run()
    assert f'MINARI_DATASETS_PATH=out, then minari.load_dataset("{ID}")' in capsys.readouterr().out
    assert read(tmp_path / "out").total_steps == sum(CHUNKS)
