"""Wrappers: whole episodes as videos, snapshots that carry the wrappers' counters, pixels as floats."""

import itertools

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env, data_equivalence
from gymnasium.wrappers import FrameStackObservation, RecordEpisodeStatistics, TimeLimit

from sanawm_env import SanaWMEnv, SanaWMVectorEnv
from sanawm_env.envs.wrappers import ScalePixels, Snapshottable, VectorScalePixels
from sanawm_env.recording.chunks import RecordChunks
from sanawm_env.recording.video import read_video
from tests.test_env import write_world

ID = "SanaWM/Explore-v0"
TURN, FORWARD = np.array([0, 0, 0.3, 0, 0.8, 0], np.float32), np.array([0, 0, 1, 0, 0, 0], np.float32)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> str:
    return write_world(tmp_path_factory.mktemp("worlds") / "tiny")


def wrapped(tiny, **settings) -> Snapshottable:
    """All that counts something, around one environment."""
    env = RecordEpisodeStatistics(TimeLimit(gym.make(ID, world=tiny, obs_mode="rgb", **settings), 4))
    return Snapshottable(FrameStackObservation(ScalePixels(env), 3))


def without_time(step):
    """A step without the seconds that the episode took."""
    *others, info = step
    if "episode" in info:
        info["episode"].pop("t")
    return (*others, info)


# --- snapshots ---


def test_a_restored_moment_has_the_wrappers_counters(tiny):
    env = wrapped(tiny)
    env.reset(seed=0)
    seen = env.step(TURN)
    here = env.snapshot()
    future = [without_time(env.step(action)) for action in (FORWARD, TURN, FORWARD)]
    assert future[-1][3] and future[-1][4]["episode"]["l"] == 4  # cut by TimeLimit
    for between in (lambda: None, lambda: env.reset(seed=5)):
        between()
        assert data_equivalence(env.restore(here), (seen[0], seen[4]), exact=True)
        again = [without_time(env.step(action)) for action in (FORWARD, TURN, FORWARD)]
        assert data_equivalence(again, future, exact=True)


def test_a_snapshot_goes_into_an_environment_that_was_never_reset(tiny):
    one, other = wrapped(tiny), wrapped(tiny)
    one.reset(seed=0)
    one.step(TURN)
    other.restore(one.snapshot())
    assert data_equivalence(other.step(FORWARD), one.step(FORWARD), exact=True)


def test_another_future_has_another_seed(tiny):
    env = wrapped(tiny)
    env.reset(seed=0)
    here = env.snapshot()
    first, info = env.restore(here, reseed=9)
    assert info["seed"] == env.unwrapped.info["seed"] == 9
    assert np.array_equal(first, env.restore(here)[0])
    assert env.snapshot().seen[1]["seed"] != 9


def test_what_is_returned_can_be_written_into(tiny):
    env = wrapped(tiny)
    obs, _ = env.reset(seed=0)
    kept, here = obs.copy(), env.snapshot()
    obs[...] = 0
    for _ in range(2):
        again, _ = env.restore(here)
        assert np.array_equal(again, kept)
        again[...] = 0


def test_counters_of_ones_own_are_named(tiny):
    class Count(gym.Wrapper):
        count = 0

        def step(self, action):
            self.count += 1
            return self.env.step(action)

    counter = Count(SanaWMEnv(tiny))
    env = Snapshottable(counter, keep={Count: ("count",)})
    env.reset(seed=0)
    env.step(TURN)
    here = env.snapshot()
    env.step(TURN)
    env.restore(here)
    assert counter.count == 1


def test_a_snapshot_of_something_else_is_refused_and_changes_nothing(tiny):
    env, bare = wrapped(tiny), Snapshottable(SanaWMEnv(tiny, obs_mode="rgb"))
    env.reset(seed=0)
    bare.reset(seed=1)
    before = env.unwrapped.snapshot()
    with pytest.raises(ValueError, match="of the wrappers \\[\\], the environment has \\['FrameStackObservation', "):
        env.restore(bare.snapshot())
    with pytest.raises(TypeError, match="WrappedSnapshot, got Snapshot"):
        env.restore(env.unwrapped.snapshot())
    assert env.unwrapped.state is before.state
    with pytest.raises(TypeError, match="Snapshottable takes a wrapped SanaWMEnv, got CartPoleEnv"):
        Snapshottable(gym.make("CartPole-v1"))


# --- videos ---


def test_a_video_holds_every_frame_of_its_episode(tiny, tmp_path):
    env = RecordChunks(gym.make(ID, world=tiny, max_episode_chunks=2), tmp_path / "videos", crf=0)
    for episode in range(2):
        env.reset(seed=episode)
        shown = [env.unwrapped.clip.frames[:1]]
        for action in (TURN, FORWARD):
            env.step(action)
            shown.append(env.unwrapped.clip.frames)
        video = read_video(tmp_path / "videos" / f"episode-{episode:04d}.mp4")
        assert video.shape == (49, 40, 48, 3)
        assert np.abs(video.astype(int) - np.concatenate(shown)).mean() < 25  # colours are halved in size by yuv420p
    assert len(list((tmp_path / "videos").iterdir())) == 2


def test_an_episode_that_is_left_or_closed_has_its_video(tiny, tmp_path):
    env = RecordChunks(SanaWMEnv(tiny), tmp_path, episode_trigger=lambda episode: episode != 1)
    for seed in range(3):
        env.reset(seed=seed)
        env.step(TURN)
    env.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["episode-0000.mp4", "episode-0002.mp4"]
    assert len(read_video(tmp_path / "episode-0002.mp4")) == 25


def test_going_back_goes_on_in_the_video(tiny, tmp_path):
    env = RecordChunks(SanaWMEnv(tiny, max_episode_chunks=2), tmp_path)
    env.reset(seed=0)
    here = env.unwrapped.snapshot()
    env.step(TURN)
    env.unwrapped.restore(here)
    for action in (TURN, FORWARD):
        env.step(action)
    assert len(read_video(tmp_path / "episode-0000.mp4")) == 1 + 3 * 24
    env.unwrapped.restore(here)  # the episode was over, its video is closed
    env.step(TURN)
    env.close()
    assert len(read_video(tmp_path / "episode-0001.mp4")) == 24


def test_recording_that_cannot_be_is_refused_at_once(tiny, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match="a file stands where a folder is needed"):
        RecordChunks(SanaWMEnv(tiny), tmp_path / "file")
    with pytest.raises(ValueError, match="crf"):
        RecordChunks(SanaWMEnv(tiny), tmp_path, crf=99)
    with pytest.raises(TypeError, match="takes a SanaWMEnv or a wrapper"):
        RecordChunks(gym.make("CartPole-v1"), tmp_path)


# --- pixels ---


@pytest.mark.parametrize("obs_mode", ["dict", "rgb", "stack"])
def test_pictures_become_floats_and_nothing_else_does(tiny, obs_mode):
    env, plain = ScalePixels(SanaWMEnv(tiny, obs_mode=obs_mode)), SanaWMEnv(tiny, obs_mode=obs_mode)
    obs, raw = env.reset(seed=0)[0], plain.reset(seed=0)[0]
    assert env.observation_space.contains(obs)
    if obs_mode == "dict":
        assert np.array_equal(obs["pose"], raw["pose"])
        obs, raw = obs["rgb"], raw["rgb"]
    assert obs.dtype == np.float32 and np.array_equal(np.round(obs * 255), raw)


@pytest.mark.parametrize("mode", ["NextStep", "SameStep", "Disabled"])
@pytest.mark.parametrize("obs_mode", ["dict", "rgb"])
def test_a_batch_is_scaled_in_every_autoreset_mode(tiny, mode, obs_mode):
    settings = {"world": tiny, "obs_mode": obs_mode, "autoreset_mode": mode, "max_episode_chunks": 2}
    envs, plain = VectorScalePixels(SanaWMVectorEnv(2, **settings)), SanaWMVectorEnv(2, **settings)
    assert envs.autoreset_mode is plain.autoreset_mode

    def matches(scaled, raw):
        if obs_mode == "dict":
            scaled, raw = scaled["rgb"], raw["rgb"]
        return scaled.dtype == np.float32 and np.array_equal(np.round(scaled * 255), raw)

    actions = np.stack([TURN, FORWARD])
    assert matches(envs.reset(seed=0)[0], plain.reset(seed=0)[0])
    for _ in range(2):
        (obs, *judged, infos), (raw, *judged_, infos_) = envs.step(actions), plain.step(actions)
        assert envs.observation_space.contains(obs)
        assert matches(obs, raw)
        assert all(map(np.array_equal, judged, judged_))
    assert infos.keys() == infos_.keys()
    assert ("final_obs" in infos) == (mode == "SameStep")
    for i in range(2) if mode == "SameStep" else ():
        assert envs.single_observation_space.contains(infos["final_obs"][i])
        assert matches(infos["final_obs"][i], infos_["final_obs"][i])


@pytest.mark.filterwarnings("ignore:.*is different from the unwrapped version")
def test_wrappers_can_be_made_again_from_the_spec(tiny, tmp_path):
    env = Snapshottable(ScalePixels(RecordChunks(gym.make(ID, world=tiny, obs_mode="rgb"), tmp_path)))
    check_env(env, skip_render_check=True)
    twin = gym.make(env.spec)
    kinds = [[type(layer) for layer in itertools.islice(layers(e), 3)] for e in (env, twin)]
    assert kinds[0] == kinds[1] == [Snapshottable, ScalePixels, RecordChunks]


def layers(env):
    while isinstance(env, gym.Wrapper):
        yield env
        env = env.env
