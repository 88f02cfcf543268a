"""Libraries find their own habits. RLlib trains in test_ray.py, here and through a server."""

import runpy
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
import torch

from sanawm_env import SanaWMEnv, SanaWMVectorEnv
from sanawm_env.envs.wrappers import ScalePixels, VectorScalePixels
from sanawm_env.integrations import lerobot, rllib
from sanawm_env.simulation.tasks import Task, Verdict
from tests.test_env import write_world

pytest.importorskip("stable_baselines3")
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.env_checker import check_env
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack, VecMonitor, VecNormalize, VecTransposeImage

from sanawm_env.integrations.sb3 import SB3VecEnv

FORWARD, STAY = np.array([0, 0, 1, 0, 0, 0], np.float32), np.zeros(6, np.float32)


@dataclass(frozen=True)
class Leave(Task):
    """Ends two metres from the start; pays the step's number."""

    def evaluate(self, transition):
        gone = np.array([np.linalg.norm(moment.slot.c2w[:3, 3]) > 2 for moment in transition.after])
        states = [moment.task_state for moment in transition.before]
        return Verdict(np.array([float(moment.slot.chunk) for moment in transition.after]), gone, states)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> str:
    return write_world(tmp_path_factory.mktemp("worlds") / "tiny")


def leaving(tiny, **settings):
    return {"world": tiny, "task": Leave(), "max_episode_chunks": 3} | settings


def batched(tiny, n=2, **settings) -> SB3VecEnv:
    return SB3VecEnv(SanaWMVectorEnv(n, autoreset_mode="SameStep", **leaving(tiny, **settings)))


def alike(one, other) -> bool:
    """Equal values, whatever scalar or array type holds them."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(alike(one[name], other[name]) for name in one)
    return np.array_equal(one, other)


# --- Stable-Baselines3 ---


@pytest.mark.slow
@pytest.mark.parametrize("obs_mode", ["dict", "rgb"])
def test_the_batch_behaves_as_stable_baselines_own_environment(tiny, obs_mode):
    ours = batched(tiny, 3, obs_mode=obs_mode, batch_invariant=True)
    theirs = DummyVecEnv([lambda: SanaWMEnv(obs_mode=obs_mode, **leaving(tiny))] * 3)
    assert ours.seed(5) == theirs.seed(5) == [5, 6, 7]
    assert alike(ours.reset(), theirs.reset())
    assert all(map(alike, ours.reset_infos, theirs.reset_infos))
    cut = []
    for _ in range(7):  # the first leaves in its second step, the second never, the third in its last
        actions = np.stack([FORWARD, STAY, 0.7 * FORWARD])
        (obs, rewards, done, infos), (obs_, rewards_, done_, infos_) = ours.step(actions), theirs.step(actions)
        assert alike(obs, obs_)
        assert np.array_equal(rewards, rewards_) and rewards.dtype == rewards_.dtype
        assert np.array_equal(done, done_) and done.dtype == done_.dtype
        assert all(map(alike, infos, infos_))
        assert all(map(alike, ours.reset_infos, theirs.reset_infos))
        cut.append([info["TimeLimit.truncated"] for info in infos])
    assert [any(slot) for slot in zip(*cut, strict=True)] == [False, True, False]


def test_the_end_of_an_episode_is_that_of_the_single_environment(tiny):
    envs, single = batched(tiny, batch_invariant=True), SanaWMEnv(**leaving(tiny))
    envs.seed(3)
    envs.reset()
    single.reset(seed=3)
    for _ in range(2):
        seen = envs.step(np.stack([FORWARD, STAY]))
        last = single.step(FORWARD)
    obs, _, done, infos = seen
    assert last[2] and done.tolist() == [True, False]
    assert alike(infos[0].pop("terminal_observation"), last[0])
    assert not infos[0].pop("TimeLimit.truncated")
    assert alike(infos[0], last[4])
    again = single.reset()
    assert alike({name: part[0] for name, part in obs.items()}, again[0])
    assert alike(envs.reset_infos[0], again[1])
    assert "terminal_observation" not in infos[1]


@pytest.mark.slow
@pytest.mark.parametrize(("obs_mode", "policy"), [("dict", "MultiInputPolicy"), ("rgb", "CnnPolicy")])
@pytest.mark.parametrize("task", ["Explore", "ImageNav"])
def test_ppo_trains(tiny, task, obs_mode, policy):
    envs = VecMonitor(SB3VecEnv(f"SanaWM/{task}-v0", 2, world=tiny, obs_mode=obs_mode, max_episode_chunks=3))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = PPO(policy, envs, n_steps=4, batch_size=8, n_epochs=1, device="cpu", seed=0)
        before = [p.clone() for p in model.policy.parameters()]
        model.learn(24)
    assert [episode["l"] for episode in model.ep_info_buffer] == [3] * 8
    assert not all(p.equal(q) for p, q in zip(before, model.policy.parameters(), strict=True))


def test_methods_and_attributes_reach_the_single_environments(tiny):
    envs = batched(tiny)
    envs.seed(0)
    envs.reset()
    (here,) = envs.env_method("snapshot", indices=0)
    first = envs.step(np.stack([FORWARD, FORWARD]))[0]["rgb"][0]
    envs.env_method("restore", here, indices=[0])
    assert envs.get_attr("info")[0]["chunk"] == 0 and envs.get_attr("info", [1])[0]["chunk"] == 1
    assert np.abs(envs.step(np.stack([FORWARD, STAY]))[0]["rgb"][0].astype(int) - first).max() <= 1
    envs.set_attr("max_episode_chunks", 9, indices=[1])
    assert envs.get_attr("max_episode_chunks") == [3, 9]
    assert envs.has_attr("task") and not envs.has_attr("tusk")
    assert envs.env_is_wrapped(gym.wrappers.TimeLimit) == [False, False]
    envs.close()


def test_options_are_for_the_next_reset_alone(tiny):
    envs = batched(tiny)
    envs.set_options({"scene": 2, "seed": 8})
    envs.reset()
    assert [info["seed"] for info in envs.reset_infos] == [8, 9]
    envs.reset()
    assert 8 not in [info["seed"] for info in envs.reset_infos]


def test_every_slot_may_have_its_own_options(tiny):
    each = [{"scene": 2, "seed": 8, "task": {"chunks": 1}}, {"scene": 0, "seed": 8}, {}]
    settings = {"world": tiny, "batch_invariant": True, "max_episode_chunks": 3}
    envs = SB3VecEnv("SanaWM/PointNav-v0", 3, **settings)
    theirs = DummyVecEnv([lambda: gym.make("SanaWM/PointNav-v0", world=tiny, max_episode_chunks=3)] * 3)
    for venv in (envs, theirs):
        venv.seed(4)
        venv.set_options(each)
    assert alike(envs.reset(), theirs.reset())
    assert all(map(alike, envs.reset_infos, theirs.reset_infos))
    assert [info["seed"] for info in envs.reset_infos][:2] == [8, 8]
    with pytest.raises(ValueError, match="one for each of the 3 slots, got 2"):
        envs.set_options([{"scene": 0}, {"scene": 1}])
    before = envs.env_method("snapshot")
    envs.set_options([{"scene": 1}, {"scene": 1}, {"weather": "rain"}])
    with pytest.raises(ValueError, match="not weather"):
        envs.reset()
    assert [now.slot.scene.key for now in envs.env_method("snapshot")] == [now.slot.scene.key for now in before]


def test_images_are_rendered_and_tiled(tiny):
    envs = batched(tiny, render_mode="rgb_array")
    envs.reset()
    assert [image.shape for image in envs.get_images()] == [(40, 48, 3)] * 2
    assert envs.render().shape == (80, 48, 3)
    with pytest.warns(UserWarning, match="render_mode"):
        assert batched(tiny).get_images() == [None, None]


def test_only_a_batch_is_wrapped(tiny):
    """`make_vec_env(id, vec_env_cls=SB3VecEnv)` hands over functions."""
    with pytest.raises(TypeError, match=r"VecMonitor\(SB3VecEnv\(id, num_envs=4\)\)"):
        make_vec_env("SanaWM/Explore-v0", n_envs=2, env_kwargs={"world": tiny}, vec_env_cls=SB3VecEnv)
    with pytest.raises(TypeError, match="it is called num_envs"):
        SB3VecEnv("SanaWM/Explore-v0", n_envs=2, world=tiny)
    with pytest.raises(ValueError, match=r"num_envs must be a whole number from 1 to .*, got 0"):
        SB3VecEnv("SanaWM/Explore-v0", 0, world=tiny)


def test_its_own_maker_makes_what_an_id_names(tiny, tmp_path):
    made = make_vec_env("SanaWM/PointNav-v0", 2, seed=3, env_kwargs={"world": tiny}, monitor_dir=str(tmp_path))
    assert isinstance(made, DummyVecEnv) and made.reset()["rgb"].shape == (2, 40, 48, 3)
    assert made.get_images()[0].shape == (40, 48, 3)
    made.close()
    assert '"env_id": "SanaWM/PointNav-v0"' in (tmp_path / "0.monitor.csv").read_text()


def test_monitor_files_say_which_environment_it_was(tiny, tmp_path):
    envs = VecMonitor(SB3VecEnv("SanaWM/PointNav-v0", 2, world=tiny), str(tmp_path / "walks"))
    envs.close()
    assert '"env_id": "SanaWM/PointNav-v0"' in (tmp_path / "walks.monitor.csv").read_text()
    assert batched(tiny).spec is None


@pytest.mark.parametrize("obs_mode", ["chunk", "latent"])
def test_chunks_and_latents_are_no_pictures(tiny, obs_mode):
    envs = SB3VecEnv("SanaWM/Explore-v0", 2, world=tiny, obs_mode=obs_mode, max_episode_chunks=2)
    assert not is_image_space(envs.observation_space)
    model = PPO("MlpPolicy", envs, n_steps=2, batch_size=4, n_epochs=1, device="cpu", policy_kwargs={"net_arch": [4]})
    assert model.learn(4).num_timesteps == 4
    with pytest.raises(AssertionError, match="only with images"):
        PPO("CnnPolicy", envs, device="cpu")


@pytest.mark.parametrize("obs_mode", ["rgb", "stack", "dict"])
def test_what_stable_baselines_wraps_around_pictures(tiny, obs_mode, tmp_path):
    envs = SB3VecEnv("SanaWM/PointNav-v0", 2, world=tiny, obs_mode=obs_mode, max_episode_chunks=2)
    stacked = VecTransposeImage(VecFrameStack(VecMonitor(envs), 3))
    pictures = stacked.reset()["rgb"] if obs_mode == "dict" else stacked.reset()
    assert pictures.shape == (2, 36 if obs_mode == "stack" else 9, 40, 48) and pictures.dtype == np.uint8
    normal = VecNormalize(envs, norm_obs=obs_mode == "dict", norm_obs_keys=["pose"] if obs_mode == "dict" else None)
    normal.reset()
    rewards = [normal.step(np.stack([FORWARD, STAY]))[1] for _ in range(3)][-1]
    assert np.isfinite(rewards).all()
    normal.save(tmp_path / "normal.pkl")
    assert VecNormalize.load(tmp_path / "normal.pkl", envs).training


def test_success_reaches_the_logs(tiny, tmp_path):
    """`info["is_success"]`: rollout/success_rate of training, eval/success_rate of an evaluation."""
    settings, small = {"world": tiny, "obs_mode": "latent", "max_episode_chunks": 2}, {"net_arch": [2]}
    never, always = (
        SB3VecEnv("SanaWM/PointNav-v0", 2, task_options={"radius": radius}, **settings) for radius in (1e-6, 50.0)
    )
    model = PPO("MlpPolicy", VecMonitor(never), n_steps=2, batch_size=4, n_epochs=1, device="cpu", policy_kwargs=small)
    asked = EvalCallback(always, None, None, 2, 2, best_model_save_path=str(tmp_path), verbose=0, warn=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the one is monitored, the other is not
        model.learn(4, callback=asked)
    assert list(model.ep_success_buffer) == [False, False]
    assert asked._is_success_buffer == [True, True]
    again = PPO.load(tmp_path / "best_model", env=never)
    assert evaluate_policy(again, never, n_eval_episodes=2, warn=False)[0] < 2


def test_another_autoreset_mode_is_refused(tiny):
    with pytest.raises(ValueError, match="autoreset_mode=\"SameStep\", not 'NextStep'"):
        SB3VecEnv(SanaWMVectorEnv(2, world=tiny))
    with pytest.raises(TypeError, match="are for an environment given by its id"):
        SB3VecEnv(SanaWMVectorEnv(2, world=tiny, autoreset_mode="SameStep"), num_envs=2)


# What its checker warns of: these modes are for readers with their own networks.
EXPECTED = {
    ("chunk", "twist"): ["unconventional shape"],  # a video (24, h, w, 3)
    ("latent", "twist"): ["unconventional shape"],  # latents (c, 3, h', w')
    ("dict", "poses"): ["symmetric and normalized Box action space"],  # metres and matrices are not in [-1, 1]
}
MODES = [(obs, "twist") for obs in ("dict", "rgb", "stack", "chunk", "latent")]
MODES += [("dict", action) for action in ("keys", "discrete", "poses")]


@pytest.mark.parametrize(("obs_mode", "action_mode"), MODES)
def test_its_checker_finds_nothing_unexpected(tiny, obs_mode, action_mode):
    env = gym.make("SanaWM/Explore-v0", world=tiny, obs_mode=obs_mode, action_mode=action_mode)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        check_env(env.unwrapped)
    expected = EXPECTED.get((obs_mode, action_mode), [])
    assert len(caught) == len(expected), [str(w.message) for w in caught]
    for warning, text in zip(caught, expected, strict=True):
        assert text in str(warning.message)


# --- RLlib ---


def test_rllib_gets_float_pictures_alone_or_in_a_batch(tiny):
    single, envs = (rllib.create({"world": tiny} | more) for more in ({}, {"num_envs": 2}))
    assert isinstance(single, ScalePixels) and isinstance(envs, VectorScalePixels)
    assert single.observation_space == envs.single_observation_space == gym.spaces.Box(0, 1, (84, 84, 3), np.float32)
    assert envs.metadata["autoreset_mode"] is gym.vector.AutoresetMode.NEXT_STEP
    assert rllib.create({"id": "SanaWM/PointNav-v0", "world": tiny}).unwrapped.spec.id == "SanaWM/PointNav-v0"


def test_without_ray_one_sentence_says_what_to_install(monkeypatch):
    for name in {"ray", *(name for name in sys.modules if name.startswith("ray."))}:  # others may have imported it
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=r'^RLlib is missing: pip install "ray\[rllib\]" gymnasium==1.2.2'):
        rllib.register()


# --- LeRobot ---


def rolled_out(envs, seeds) -> dict[str, np.ndarray]:
    """What lerobot's rollout asks of an environment, call by call: 0.6.1 where versions differ, and 0.4.4's envs."""
    obs, infos = envs.reset(seed=seeds, options={"lerobot_new_rollout": True})
    done, got = np.zeros(envs.num_envs, bool), {"reward": [], "success": [], "done": []}
    longest = envs.call("_max_episode_steps")[0]
    assert all(isinstance(text, str) for text in (*envs.get_attr("task"), *envs.get_attr("task_description")))
    assert envs.envs[0].task_description == envs.call("task_description")[0]
    for step in range(longest):
        pixels = obs["pixels"] if isinstance(obs["pixels"], dict) else {"": obs["pixels"]}
        for picture in map(torch.from_numpy, pixels.values()):
            n, h, w, c = picture.shape
            assert n == envs.num_envs and c < h and c < w and picture.dtype == torch.uint8
        for name in ("environment_state", "agent_pos"):
            assert torch.from_numpy(obs[name]).float().ndim == 2
        assert len(list(envs.call("task_description"))) == envs.num_envs
        action = torch.tensor([[0, 0, 0.5, 0, 0.3, 0]] * envs.num_envs).to("cpu").numpy()
        obs, reward, terminated, truncated, infos = envs.step(action)
        successes = (infos["final_info"]["is_success"] if "final_info" in infos else infos["is_success"]).tolist()
        assert np.stack(envs.call("render")[:2]).shape == (2, 40, 48, 3)
        done = terminated | truncated | done | (step + 1 == longest)
        for name, values in (("reward", reward), ("success", successes), ("done", done)):
            got[name].append(torch.as_tensor(values))
        if done.all():
            break
    assert envs.unwrapped.metadata["render_fps"] == 16
    return {name: torch.stack(values, 1).numpy() for name, values in got.items()}


def test_lerobots_rollout_reads_the_batch(tiny):
    never = {"radius": 1e-6}
    envs = lerobot.make_env(2, use_async_envs=True, world=tiny, max_episode_chunks=3, task_options=never)
    assert isinstance(envs, gym.vector.VectorEnv) and envs.spec.id == "SanaWM/PointNav-v0"
    got = rolled_out(envs, [3, 4])
    assert got["done"][:, -1].all() and not got["success"].any()
    obs, _ = envs.reset(seed=3)
    assert obs in envs.observation_space
    assert np.array_equal(obs["environment_state"][:, :7], obs["agent_pos"])
    single, _ = gym.make("SanaWM/PointNav-v0", world=tiny).reset(seed=3)
    assert np.array_equal(obs["pixels"][0], single["rgb"]) and np.array_equal(obs["agent_pos"][0], single["pose"])
    assert np.array_equal(obs["environment_state"][0, 7:], single["goal"])
    envs.close()


def test_lerobot_hears_of_success_once_and_sums_one_episode(tiny):
    envs = lerobot.make_env(n_envs=2, world=tiny, task_options={"radius": 50.0}, max_episode_chunks=3)
    got = rolled_out(envs, None)
    assert got["success"].tolist() == got["done"].tolist() == [[True]] * 2
    _, reward, *_, infos = envs.step(np.zeros((2, 6), np.float32))  # lerobot sums the step after the end, a reset
    assert reward.tolist() == [0, 0] and "final_info" not in infos


@pytest.mark.parametrize(
    ("task", "pictures", "numbers"),
    [("Explore", None, 7), ("ImageNav", {"camera", "goal"}, 7), ("FollowPath", None, 19)],
)
def test_every_task_speaks_lerobots_words(tiny, task, pictures, numbers):
    envs = lerobot.make_env(2, cfg=SimpleNamespace(task=f"{task}-v0"), world=tiny)
    obs, infos = envs.reset(seed=0)
    assert obs in envs.observation_space and obs["environment_state"].shape == (2, numbers)
    assert pictures == (set(obs["pixels"]) if isinstance(obs["pixels"], dict) else None)
    assert envs.call("task") == (task.lower(),) * 2 and envs.call("task_description")[0].endswith(".")
    assert infos["is_success"].tolist() == [False, False]


def test_lerobots_words_may_be_ones_own(tiny):
    envs = lerobot.make_env(id="SanaWM/Explore-v0", world=tiny, camera="camera", task_description="Look for the door.")
    assert set(envs.reset()[0]["pixels"]) == {"camera"}  # observation.images.camera, as export_lerobot calls it
    assert envs.call("task_description") == ("Look for the door.",)
    with pytest.warns(UserWarning, match="weather"):
        _, infos = envs.reset(options={"weather": "rain", "seed": 7})
    assert infos["seed"].tolist() == [7]


def test_what_lerobot_cannot_read_is_one_sentence(tiny):
    with pytest.raises(ValueError, match="act by vectors"):
        lerobot.make_env(world=tiny, action_mode="discrete")
    with pytest.raises(ValueError, match='obs_mode="dict"'):
        lerobot.LeRobotVectorEnv(SanaWMVectorEnv(2, world=tiny, obs_mode="rgb"))
    with pytest.raises(ValueError, match='autoreset_mode="NextStep"'):
        lerobot.LeRobotVectorEnv(SanaWMVectorEnv(2, world=tiny, autoreset_mode="SameStep"))


def test_the_one_file_of_an_envhub_makes_it():
    hub = runpy.run_path(str(Path(__file__).parents[1] / "examples" / "lerobot_envhub" / "env.py"))
    envs = hub["make_env"](n_envs=2, use_async_envs=False)
    assert envs.num_envs == 2 and envs.call("_max_episode_steps") == (10, 10)


def test_options_with_which_others_mark_a_reset_make_no_difference(tiny):
    """LeRobot and Minari hand them on to single environments too. Any other unknown one is refused."""
    env = gym.make("SanaWM/Walk-v0", world=tiny, max_episode_chunks=4)
    assert env.get_wrapper_attr("_max_episode_steps") == 4
    marked = env.reset(seed=1, options={"lerobot_new_rollout": True, "minari_autoseed": False})
    assert alike(marked[0], env.reset(seed=1)[0])
    with pytest.raises(ValueError, match="not lerobot_old_rollout"):
        env.reset(options={"lerobot_old_rollout": True})


# --- TorchRL ---


@pytest.fixture(scope="module")
def torchrl():
    return pytest.importorskip("torchrl.envs", reason="torchrl is not installed")


@pytest.mark.slow
@pytest.mark.parametrize("obs_mode", ["dict", "rgb"])
@pytest.mark.parametrize("task", ["Explore", "ImageNav"])
def test_torchrl_finds_its_specs_kept(torchrl, tiny, task, obs_mode):
    from torchrl.envs.utils import check_env_specs

    env = torchrl.GymWrapper(gym.make(f"SanaWM/{task}-v0", world=tiny, obs_mode=obs_mode, max_episode_chunks=3))
    check_env_specs(env)
    assert env.rollout(5).batch_size == (3,)


def test_torchrl_makes_it_of_nothing_but_an_id(torchrl, tiny):
    """It tries a keyword of Atari's first, and goes on without when it is called unexpected in Python's own words."""
    env = torchrl.GymEnv("SanaWM/ExplorePixels-v0", world=tiny, max_episode_chunks=2)
    assert env.rollout(3).batch_size == (2,)
    several = torchrl.SerialEnv(2, lambda: torchrl.GymEnv("SanaWM/Explore-v0", world=tiny, max_episode_chunks=2))
    assert several.rollout(3).batch_size == (2, 2)


def test_torchrl_resets_the_slots_of_a_batch_itself(torchrl, tiny):
    """The mode that it prefers."""
    from torchrl.envs.utils import check_env_specs

    envs = gym.make_vec("SanaWM/Explore-v0", 2, world=tiny, autoreset_mode="Disabled", max_episode_chunks=3)
    env = torchrl.GymWrapper(envs)
    check_env_specs(env)
    walk = env.rollout(8, break_when_any_done=False)
    assert walk["next", "truncated"][..., 0].int().tolist() == [[0, 0, 1, 0, 0, 1, 0, 0]] * 2


def test_torchrl_reads_a_batch_that_resets_itself(torchrl, tiny):
    envs = gym.make_vec("SanaWM/PointNav-v0", 2, world=tiny, autoreset_mode="SameStep", max_episode_chunks=3)
    env = torchrl.GymWrapper(envs)
    walk = env.rollout(5, break_when_any_done=False)
    assert walk.batch_size == (2, 5) and bool(walk["next", "done"].any())


# --- CleanRL ---


@pytest.mark.slow
def test_the_single_file_learns(tiny, capsys):
    example = runpy.run_path(str(Path(__file__).parents[1] / "examples" / "ppo_cleanrl.py"))
    args = example["Args"](world=tiny, num_envs=2, updates=2, num_steps=6, max_episode_chunks=3, obs_size=(36, 36))
    returns = example["train"](args)
    assert np.isfinite(returns).all() and len(returns) == 2
    assert returns == example["train"](args)
    assert "update 2 of 2: mean return" in capsys.readouterr().out
