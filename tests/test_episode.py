"""An episode on disk: it says how it came about, and comes about again, byte for byte."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image
from scipy.spatial.transform import RigidTransform

from sanawm_env.envs.env import SanaWMEnv
from sanawm_env.recording.episode import FILES, EpisodeWriter, RecordedEpisode, Step, begin, body_twists, differences
from sanawm_env.recording.video import read_video
from tests.worlds import picture, with_starts, write_tiny_world


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> str:
    return with_starts(write_tiny_world(tmp_path_factory.mktemp("worlds") / "tiny"))


@pytest.fixture
def image(tmp_path) -> str:
    path = tmp_path / "photo.png"
    Image.fromarray(picture(5)).save(path)
    return str(path)


def record(out, world, image, chunks=3, company=2, **settings):
    """Episodes of several environments that step together; the folders."""
    settings = {"world": world, "action_mode": "twist", "max_episode_chunks": chunks} | settings
    envs = [SanaWMEnv(**settings) for _ in range(company)]
    for i, env in enumerate(envs):
        begin(env, image, i)
    writers = [
        EpisodeWriter(out / str(i), env, env.config, i, {"source": image}, sheet=False, keyframes=2)
        for i, env in enumerate(envs)
    ]
    rng = np.random.default_rng(0)
    for _ in range(chunks):
        actions = [env.controller.sample_walk_actions(rng, 1)[0] for env in envs]
        episodes, transition = envs[0].simulator.step([env.episode for env in envs], actions)
        for writer, env, episode, action, reward in zip(
            writers, envs, episodes, actions, transition.rewards, strict=True
        ):
            env.episode = episode
            writer.add(Step.of(env, action, reward))
    for writer in writers:
        writer.close()
    return [writer.out_dir for writer in writers]


def test_an_episode_holds_what_happened(world, image, tmp_path):
    folder = record(tmp_path, world, image, task="explore")[1]
    assert {path.name for path in folder.iterdir()} == set(FILES)
    episode = RecordedEpisode.open(folder)
    arrays, trajectory = episode.arrays(), episode.trajectory()
    assert episode.frames().shape == (73, 24, 32, 3)
    assert trajectory.c2w.shape == (73, 4, 4)
    assert trajectory.intrinsics.shape == (73, 3, 3)
    assert arrays["actions"].shape == (3, 6)
    assert arrays["actions"].dtype == np.float32
    assert arrays["truncated"].tolist() == [False, False, True]
    assert arrays["rewards"].sum() == episode.meta["return"] > 0
    assert episode.meta["batch"] == [[1, 2]] * 3
    assert np.array_equal(np.array(episode.meta["actions"], np.float32), arrays["actions"])


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["twist", "poses", "keys", "discrete"])
def test_an_episode_of_a_batch_comes_out_the_same_alone(world, image, tmp_path, mode):
    folders = record(tmp_path / "made", world, image, company=3, action_mode=mode)
    for i, folder in enumerate(folders):
        steps = list(RecordedEpisode.open(folder).replay(tmp_path / "again" / str(i)))
        assert len(steps) == 3
        again = RecordedEpisode.open(tmp_path / "again" / str(i))
        assert differences(RecordedEpisode.open(folder), again) == []
        assert differences(again, RecordedEpisode.open(folder)) == []


@pytest.mark.slow
def test_tasks_with_hidden_goals_come_out_the_same(world, image, tmp_path):
    folder = record(tmp_path / "made", world, image, task="imagenav", chunks=4)[0]
    rewards = [step.reward for step in RecordedEpisode.open(folder).replay()]
    assert rewards == RecordedEpisode.open(folder).arrays()["rewards"].tolist()


def test_meta_alone_is_enough_while_the_image_is_where_it_was(world, image, tmp_path):
    (folder,) = record(tmp_path / "made", world, image, company=1)
    bare = tmp_path / "bare"
    bare.mkdir()
    shutil.copy(folder / "meta.json", bare)
    list(RecordedEpisode.open(bare).replay(tmp_path / "again"))
    for name in FILES:
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes()


@pytest.mark.slow
def test_a_changed_action_is_noticed(world, image, tmp_path):
    (folder,) = record(tmp_path / "made", world, image, company=1)
    meta = json.loads((folder / "meta.json").read_text())
    meta["actions"][1][2] += 0.25
    meta["versions"]["av"] = "0.1"
    (folder / "meta.json").write_text(json.dumps(meta))
    list(RecordedEpisode.open(folder).replay(tmp_path / "again"))
    found = " ".join(differences(RecordedEpisode.open(folder), RecordedEpisode.open(tmp_path / "again")))
    assert "video.mp4, trajectory.npz, actions.npz, meta.json differ" in found
    assert "frames differ" in found and "av was 0.1" in found


@pytest.mark.slow
def test_other_weights_and_another_image_are_refused(world, image, tmp_path):
    (folder,) = record(tmp_path / "made", world, image, company=1)
    other = write_tiny_world(tmp_path / "other", seed=1)
    with pytest.raises(ValueError, match="predicted by other weights"):
        RecordedEpisode.open(folder).environment(world=str(other))
    Image.fromarray(picture(6)[:24, :32]).save(folder / "start.png")
    with pytest.raises(ValueError, match="is not the one that"):
        RecordedEpisode.open(folder).environment()
    (folder / "start.png").unlink()
    RecordedEpisode.open(folder).environment()
    Image.fromarray(picture(7)).save(image)
    with pytest.raises(ValueError, match="is not the one that"):
        RecordedEpisode.open(folder).environment()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda meta: meta.pop("seed"), "seed is missing"),
        (lambda meta: meta.update(schema=9), "schema 9"),
        (lambda meta: meta.update(actions="none"), "a list of actions"),
        (lambda meta: meta.update(batch=[[0, 1]] * 2), "as many pairs of row and size in batch"),
        (lambda meta: meta.update(batch=[[2, 2]]), "batch must be of rows below sizes, got .2, 2."),
        (lambda meta: meta.update(batch=[[0, 10**9]]), r"batch\[0\]\[1\] must be at most 4,096"),
        (lambda meta: meta.update(batch=[[0, 1.0]]), r"batch\[0\]\[1\] must be a whole number, got 1.0"),
        (lambda meta: meta.update(threads=100_000), "threads must be"),
        (lambda meta: meta.update(seed=-1), "seed must be"),
        (lambda meta: meta.update(fps=0), "fps must be"),
        (lambda meta: meta.update(num_frames=10**12), "num_frames must be"),
        (lambda meta: meta.update(action_dtype="S1000000000"), "action_dtype"),
        (lambda meta: meta.update(video=[1]), "video must be a mapping"),
    ],
)
def test_a_meta_that_describes_no_episode_is_refused(world, image, tmp_path, change, says):
    (folder,) = record(tmp_path, world, image, chunks=1, company=1)
    meta = json.loads((folder / "meta.json").read_text())
    change(meta)
    (folder / "meta.json").write_text(json.dumps(meta))
    with pytest.raises(ValueError, match=says):
        RecordedEpisode.open(folder)


@pytest.mark.parametrize("text", ["", "[1]", "{", "[" * 100_000])
def test_a_meta_that_is_no_json_object_is_refused(tmp_path, text):
    (tmp_path / "meta.json").write_text(text)
    with pytest.raises(ValueError, match="does not describe an episode"):
        RecordedEpisode.open(tmp_path)
    with pytest.raises(FileNotFoundError, match="There is no episode"):
        RecordedEpisode.open(tmp_path / "none")


def test_a_meta_too_large_is_not_read(tmp_path, monkeypatch):
    (tmp_path / "meta.json").write_text("{}")
    monkeypatch.setattr("sanawm_env.recording.episode.MAX_META_BYTES", 1)
    with pytest.raises(ValueError, match="larger than"):
        RecordedEpisode.open(tmp_path)


def test_arrays_of_other_lengths_are_refused(world, image, tmp_path):
    (folder,) = record(tmp_path, world, image, chunks=2, company=1)
    arrays = RecordedEpisode.open(folder).arrays()
    np.savez(folder / "actions.npz", **arrays | {"rewards": np.zeros(3)})
    with pytest.raises(ValueError, match="must hold 2 rewards"):
        RecordedEpisode.open(folder).arrays()
    np.savez(folder / "actions.npz", **arrays | {"rewards": np.array([None, 1])})
    with pytest.raises(ValueError, match="cannot be read as arrays"):
        RecordedEpisode.open(folder).arrays()


@pytest.mark.slow
def test_an_interrupted_episode_keeps_its_whole_steps(world, image, tmp_path):
    settings = {"world": world, "action_mode": "twist", "max_episode_chunks": 3}
    env = SanaWMEnv(**settings)
    begin(env, image, 0)
    with pytest.raises(KeyboardInterrupt), EpisodeWriter(tmp_path / "e", env, env.config, 0) as writer:
        for action in np.zeros((2, 6), np.float32):
            _, reward, *_ = env.step(action)
            writer.add(Step.of(env, action, reward))
        raise KeyboardInterrupt
    episode = RecordedEpisode.open(tmp_path / "e")
    assert episode.meta["interrupted"] and episode.chunks == 2 and len(episode.frames()) == 49
    assert len(list(episode.replay())) == 2


def test_an_abandoned_episode_leaves_nothing(world, image, tmp_path):
    settings = {"world": world, "action_mode": "twist"}
    env = SanaWMEnv(**settings)
    begin(env, image, 0)
    writer = EpisodeWriter(tmp_path / "e", env, env.config, 0)
    _, reward, *_ = env.step(np.zeros(6))
    writer.add(Step.of(env, np.zeros(6), reward))
    writer.abandon()
    assert not (tmp_path / "e").exists()


def test_twists_lead_from_pose_to_pose():
    rng = np.random.default_rng(0)
    steps = RigidTransform.from_exp_coords(rng.uniform(-0.1, 0.1, (9, 6)))
    c2w = [np.eye(4)]
    for step in steps.as_matrix():
        c2w.append(c2w[-1] @ step)
    twists = body_twists(np.stack(c2w), 16)
    assert twists.shape == (10, 6) and twists.dtype == np.float32 and not twists[-1].any()
    moved = RigidTransform.from_exp_coords(np.roll(twists[:-1].astype(float), 3, axis=-1) / 16)
    np.testing.assert_allclose(moved.as_matrix(), steps.as_matrix(), atol=1e-6)


def test_a_video_larger_than_allowed_is_refused(world, image, tmp_path):
    (folder,) = record(tmp_path, world, image, chunks=1, company=1)
    with pytest.raises(ValueError, match="take more than"):
        read_video(folder / "video.mp4", most_bytes=24 * 32 * 3 * 10)


def test_pictures_larger_than_images_may_be_are_not_decoded(world, image, tmp_path, monkeypatch):
    (folder,) = record(tmp_path, world, image, chunks=1, company=1)
    monkeypatch.setattr("sanawm_env.recording.video.MAX_PIXELS", 24 * 32 - 1)
    with pytest.raises(ValueError, match="32 x 24 pixels"):
        read_video(folder / "video.mp4")


def test_arrays_larger_than_allowed_are_refused_before_they_are_unpacked(tmp_path, monkeypatch):
    np.savez_compressed(tmp_path / "bomb.npz", c2w=np.zeros((1000, 4, 4)))
    monkeypatch.setattr("sanawm_env.system.arrays.MAX_ARRAY_BYTES", 100_000)
    assert (tmp_path / "bomb.npz").stat().st_size < 2_000
    from sanawm_env.camera.trajectory import load_trajectory

    with pytest.raises(ValueError, match="of which at most"):
        load_trajectory(tmp_path / "bomb.npz")
