"""A served environment is the local one: the same bits, over the wire, for many clients; and what they may not do."""

import asyncio
import copy
import gc
import json
import os
import pickle
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import fields, replace
from itertools import count, repeat
from urllib.error import HTTPError

import gymnasium as gym
import numpy as np
import pytest
import yaml
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env, data_equivalence

pytest.importorskip("fastapi", reason="the extra [serve] is not installed")
pytest.importorskip("msgpack", reason="the extra [serve] is not installed")
pytest.importorskip("prometheus_client", reason="the extra [serve] is not installed")
pytest.importorskip("uvicorn", reason="the extra [serve] is not installed")
pytest.importorskip("websockets", reason="the extra [serve] is not installed")

from hypothesis import given, settings
from hypothesis import strategies as st
from websockets.exceptions import ConnectionClosed
from websockets.frames import Frame, Opcode
from websockets.sync.client import connect

import sanawm_env
from sanawm_env import EnvConfig, SanaWMEnv, SanaWMVectorEnv, Snapshot
from sanawm_env.serving import app, wire
from sanawm_env.serving import keep as keep_module
from sanawm_env.serving import server as server_module
from sanawm_env.serving import service as service_module
from sanawm_env.serving.connection import ServerRefused, SessionLost
from sanawm_env.serving.keep import Keep, Record
from sanawm_env.serving.limits import ServerLimits
from sanawm_env.serving.metrics import REFUSALS
from sanawm_env.serving.remote import RemoteEnv
from sanawm_env.serving.server import Server
from sanawm_env.serving.service import Refused, Service
from sanawm_env.serving.worker import Step, Worker
from tests.golden_files import ROOT
from tests.test_cli import refused
from tests.worlds import picture, with_starts, write_tiny_world

ID = "SanaWM/Remote-v0"
RESET = {
    "scenes": [{"number": 0, "prompt": ""}], "seeds": [1], "task": {}, "max_episode_chunks": 3,
    "rngs": [json.dumps(np.random.default_rng(1).bit_generator.state)],
}  # fmt: skip


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> str:
    return with_starts(write_tiny_world(tmp_path_factory.mktemp("worlds") / "tiny"))


@pytest.fixture(scope="module")
def config(tiny) -> EnvConfig:
    return EnvConfig(world=tiny, task="pointnav", max_episode_chunks=3, obs_size=(12, 16))


@pytest.fixture(scope="module")
def served(config):
    with Server(Service(config)) as server:
        yield server


@pytest.fixture
def remote(served):
    env = gym.make(ID, url=served.url)
    yield env
    env.close()


def local(config, **settings) -> gym.Env:
    return gym.make("SanaWM/PointNav-v0", **config.keywords | settings)


def session_of(server, env):
    return server.service.sessions[env.unwrapped.simulator.connection.session]


def refusals(service, limit) -> float:
    return service.metrics.registry.get_sample_value("sanawm_refused_total", {"limit": limit})


def same(a, b) -> bool:
    return data_equivalence(a, b, exact=True)


# --- messages ---


VALUES = {
    "number": 3, "large": 2**62, "real": 0.1, "no": None, "yes": True, "text": "wäre",
    "list": [1, [2, {"a": np.arange(3, dtype=np.int16)}]], "scalar": np.float32(0.5), "flag": np.bool_(True),
    "point": np.array(2.0), "none": np.zeros((0, 4)), "picture": picture(1), "stacked": np.tile(picture(2), (1, 1, 2)),
    "latents": np.random.default_rng(0).normal(size=(2, 3)).astype(np.float16),
}  # fmt: skip


@pytest.mark.parametrize("encoding", ["raw", "png"])
def test_a_message_arrives_bit_for_bit(encoding):
    again = wire.unpack(wire.pack(VALUES, encoding), images=True)
    assert same(again, VALUES)
    assert all(type(again[name]) is type(value) for name, value in VALUES.items())
    assert again["picture"].flags.writeable


def test_jpeg_keeps_the_shape_and_nearly_the_picture():
    smooth = np.linspace(0, 255, 3 * 40 * 48 * 3).reshape(3, 40, 48, 3).astype(np.uint8)
    message = wire.pack({"frames": smooth}, "jpeg")
    again = wire.unpack(message, images=True)["frames"]
    assert len(message) < smooth.nbytes / 4 and again.shape == smooth.shape
    assert np.abs(again.astype(int) - smooth).mean() < 4


@settings(max_examples=50, deadline=None)
@given(st.binary(max_size=80))
def test_noise_is_no_message(data):
    try:
        wire.unpack(data, images=True)
    except ValueError as error:
        assert str(error).startswith("This is no message")


def array_message(*head, blob=b"\0" * 8) -> bytes:
    import msgpack

    body = msgpack.packb({"a": msgpack.ExtType(1, msgpack.packb(list(head)))})
    return len(body).to_bytes(4, "big") + body + blob


PNG = wire.pack({"a": picture()}, "png")[-200:]


@pytest.mark.parametrize(
    "message",
    [
        wire.pack(VALUES)[:-1],
        wire.pack(VALUES) + b"\0",
        (2**31).to_bytes(4, "big") + b"\0" * 100,
        array_message("<f8", [2], "raw", 8),
        array_message("<f8", [2**30, 2**30], "raw", 8),
        array_message("<f8", [-1], "raw", 8),
        array_message("|O", [1], "raw", 8),
        array_message("<f8", [1], "pickle", 8),
        array_message("<f8", [1], "scalar", 8),
        array_message("|u1", [40, 50, 3], "png", 8),
        array_message("|u1", [2**16, 2**16, 3], "png", 8),
        array_message("|u1", [40, 50, 4], "png", 200, blob=PNG),
        array_message("<f8", [1], "raw", -8),
    ],
)
def test_what_lies_about_itself_is_no_message(message):
    with pytest.raises(ValueError, match=r"^This is no message"):
        wire.unpack(message, images=True)


def test_a_server_reads_no_encoded_images():
    with pytest.raises(ValueError, match="must be raw"):
        wire.unpack(wire.pack({"image": picture()}, "png"))


def test_objects_do_not_travel():
    with pytest.raises(TypeError, match="plain values"):
        wire.pack({"a": object()})


# --- the same environment ---


def test_a_remote_environment_is_the_local_one(remote, config):
    env = local(config)
    assert remote.observation_space == env.observation_space and remote.action_space == env.action_space
    assert remote.spec.max_episode_steps == env.spec.max_episode_steps == 3
    assert remote.unwrapped.config.task == "pointnav"
    assert same(remote.reset(seed=5), env.reset(seed=5))
    rng = np.random.default_rng(0)
    for _ in range(3):
        action = rng.uniform(-0.3, 0.3, 6)
        assert same(remote.step(action), env.step(action))
    for mine, other in zip(remote.unwrapped.clip, env.unwrapped.clip, strict=True):
        assert np.array_equal(mine, other)
    with pytest.raises(ResetNeeded):
        remote.step(action)
    assert same(remote.reset(), env.reset())  # the generators went on alike
    assert remote.unwrapped.np_random.bit_generator.state == env.unwrapped.np_random.bit_generator.state
    scene, other = remote.unwrapped.scene, env.unwrapped.scene
    assert scene.key == other.key and np.array_equal(scene.image, other.image)


@pytest.mark.parametrize("mode", ["NextStep", "SameStep", "Disabled"])
def test_a_remote_batch_is_the_local_one(served, config, mode):
    envs = gym.make_vec(ID, num_envs=3, vectorization_mode="vector_entry_point", url=served.url, autoreset_mode=mode)
    others = SanaWMVectorEnv(3, autoreset_mode=mode, **config.keywords)
    assert envs.observation_space == others.observation_space and envs.metadata == others.metadata
    assert same(envs.reset(seed=1), others.reset(seed=1))
    rng = np.random.default_rng(0)
    for _ in range(5 if mode != "Disabled" else 3):
        action = rng.uniform(-0.5, 0.5, (3, 6)).astype(np.float32)
        assert same(envs.step(action), others.step(action))
    if mode == "Disabled":
        mask = {"reset_mask": np.array([True, False, True])}
        assert same(envs.reset(options=dict(mask)), others.reset(options=dict(mask)))
    envs.close()


def test_a_remote_batch_can_be_invariant(served, config):
    envs = gym.make_vec(ID, 2, "vector_entry_point", url=served.url, batch_invariant=True)
    single = local(config)
    envs.reset(seed=4)
    single.reset(seed=5)
    obs = envs.step(np.full((2, 6), 0.1, np.float32))[0]
    assert same({name: each[1] for name, each in obs.items()}, single.step(np.full(6, 0.1, np.float32))[0])
    envs.close()


@pytest.mark.parametrize(
    ("obs_mode", "encoding"), [("rgb", "png"), ("stack", "png"), ("chunk", "raw"), ("latent", "raw")]
)
def test_a_client_chooses_what_it_observes(served, config, obs_mode, encoding):
    settings = {"obs_mode": obs_mode, "obs_size": (10, 14), "max_episode_chunks": 2}
    remote, env = gym.make(ID, url=served.url, encoding=encoding, **settings), local(config, **settings)
    assert remote.observation_space == env.observation_space
    assert same(remote.reset(seed=0), env.reset(seed=0))
    assert same(remote.step(np.full(6, 0.2)), env.step(np.full(6, 0.2)))
    assert np.array_equal(remote.unwrapped.latents, env.unwrapped.state.slots[0].latents[0].float())
    remote.close()


def test_frames_may_travel_as_jpeg(served, config):
    frames = []
    for encoding in ("raw", "jpeg"):
        env = gym.make(ID, url=served.url, encoding=encoding).unwrapped
        env.reset(seed=0)
        frames.append(env.clip.frames)
        env.close()
    assert frames[0].shape == frames[1].shape and (frames[0] != frames[1]).any()
    assert len(wire.pack({"frames": frames[0]}, "jpeg")) < frames[0].nbytes / 2


def test_any_image_can_be_the_start(remote, config, tmp_path):
    from PIL import Image

    env, path = local(config), tmp_path / "start.png"
    Image.fromarray(picture(9)).save(path)
    for options in ({"scene": picture(7)}, {"scene": str(path), "fov_deg": 60}, {"scene": 1, "seed": 8}):
        assert same(remote.reset(seed=0, options=dict(options)), env.reset(seed=0, options=dict(options)))
    assert same(
        remote.reset(seed=0, options={"task": {"goal": np.ones(3)}}),
        env.reset(seed=0, options={"task": {"goal": np.ones(3)}}),
    )


@pytest.mark.parametrize(
    "options",
    [
        {"scene": 99},
        {"scene": "gone.png"},
        {"wrong": 1},
        {"task": {"wrong": 1}},
        {"task": 3},
        {"fov_deg": 500.5},
        {"fov_deg": 10**400},
        {"fov_deg": "60"},
        {"prompt": "\ud800"},
        {"prompt": 5},
    ],
)
def test_errors_are_those_of_the_local_environment(remote, config, options):
    with pytest.raises((ValueError, TypeError, FileNotFoundError)) as ours:
        local(config).reset(seed=0, options=dict(options))
    with pytest.raises(ours.type) as theirs:
        remote.reset(seed=0, options=dict(options))
    assert str(theirs.value) == str(ours.value)


def test_what_is_no_action_is_refused_and_changes_nothing(served, remote):
    remote.reset(seed=0)
    for wrong in (np.full(6, np.nan), np.zeros(5), "w"):
        with pytest.raises((ValueError, TypeError)):
            remote.unwrapped.step(wrong)
    envs = gym.make_vec(ID, num_envs=2, vectorization_mode="vector_entry_point", url=served.url)
    envs.reset(seed=0)
    with pytest.raises(ValueError, match=r"^Slot 1: "):
        envs.step(np.array([np.zeros(6), np.full(6, np.nan)]))
    envs.close()


@pytest.mark.slow
def test_gymnasium_finds_nothing_wrong(served):
    check_env(gym.make(ID, url=served.url).unwrapped)


def test_frames_are_rendered_here(served, config):
    remote, env = (
        gym.make(ID, url=served.url, render_mode="rgb_array_list"),
        local(config, render_mode="rgb_array_list"),
    )
    for each in (remote, env):
        each.reset(seed=0)
    assert np.array_equal(remote.render(), env.render())
    for each in (remote, env):
        each.step(np.zeros(6))
    assert np.array_equal(remote.render(), env.render())
    remote.close()


# --- time travel ---


def test_a_restored_remote_environment_has_the_same_future(remote):
    env = remote.unwrapped
    env.reset(seed=0)
    here, seen = env.snapshot(), env.observation
    future = [env.step(np.full(6, x)) for x in (0.1, -0.2)]
    assert same(env.restore(here)[0], seen)
    assert same([env.step(np.full(6, x)) for x in (0.1, -0.2)], future)
    env.restore(here, reseed=7)
    assert env.info["seed"] == 7
    assert not same(env.step(np.full(6, 0.1))[0], future[0][0])
    fork = copy.deepcopy(env.restore(here) and env)
    assert same(fork.step(np.full(6, 0.1)), future[0])


def test_a_batch_forks_over_the_wire(served, config):
    envs = gym.make_vec(
        ID, num_envs=3, vectorization_mode="vector_entry_point", url=served.url, autoreset_mode="Disabled"
    )
    others = SanaWMVectorEnv(3, autoreset_mode="Disabled", **config.keywords)
    for each in (envs, others):
        each.reset(seed=0)
    assert same(envs.fork(1, reseed=[5, 6]), others.fork(1, reseed=[5, 6]))
    actions = np.full((3, 6), 0.2, np.float32)
    assert same(envs.step(actions), others.step(actions))
    assert same(envs.restore(envs.snapshot([0]) * 2, [1, 2]), others.restore(others.snapshot([0]) * 2, [1, 2]))
    envs.close()


def test_a_saved_snapshot_goes_there_and_back(remote, config, tmp_path):
    env, other = remote.unwrapped, local(config).unwrapped
    env.reset(seed=0)
    env.step(np.full(6, 0.2))
    env.snapshot().save(tmp_path / "there.safetensors")
    here = Snapshot.load(tmp_path / "there.safetensors", other.world)
    assert same(other.restore(here), env.restore(env.load(tmp_path / "there.safetensors")))
    assert same(other.step(np.full(6, 0.1)), env.step(np.full(6, 0.1)))
    other.snapshot().save(tmp_path / "here.safetensors")
    assert same(env.restore(env.load(tmp_path / "here.safetensors"))[0], other.observation)
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "here.safetensors").read_bytes()[:-9])
    with pytest.raises(ValueError, match=r"^The file that was sent is not a saved state"):
        env.load(tmp_path / "cut.safetensors")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="pipe cannot be sent: it is a pipe, not a file"):
        env.load(tmp_path / "pipe")


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"url": "ws://127.0.0.1:99999"}, "url must be the address of a server"),
        ({"url": "ws://["}, "url must be the address of a server"),
        ({"token": "a\nb"}, "A token must be one line"),
        ({"token": "x" * 5000}, "A token must be one line of at most 4,096 letters"),
        ({"patience": "long"}, "patience must be a finite number from 0 to"),
        ({"patience": np.nan}, "patience must be a finite number from 0 to"),
        ({"obs_size": 5}, "obs_size must be two whole numbers"),
        ({"obs_size": ("a", "b")}, "obs_size .height, width. must be a whole number"),
    ],
)
def test_what_no_server_can_be_asked_for_is_refused_here(given, says):
    with pytest.raises(ValueError, match=says):
        RemoteEnv(**{"url": "ws://127.0.0.1:1"} | given)


@pytest.mark.slow
def test_the_server_keeps_what_is_referred_to_and_no_more(served, remote):
    env, session = remote.unwrapped, session_of(served, remote)
    env.reset(seed=0)
    first = env.snapshot()
    for _ in range(3):
        env.step(np.zeros(6))
    env.restore(first)
    gc.collect()
    env.simulator.ask("drop")
    assert set(session.episodes) == {first.handle.number}
    assert session.bytes == first_bytes(session, first)
    del first
    env.close()
    assert session.id not in served.service.sessions


def first_bytes(session, snapshot) -> int:
    return session.episodes[snapshot.handle.number].nbytes


def test_a_remote_environment_is_neither_pickled_nor_given_other_rules(remote):
    env = remote.unwrapped
    with pytest.raises(TypeError, match="make another with its url"):
        pickle.dumps(env)
    for name in ("task", "reward_fn"):
        with pytest.raises(TypeError, match="the server's"):
            setattr(env, name, None)
    with pytest.raises(TypeError, match="sent with load"):
        env.restore(object())


def test_episodes_of_another_connection_are_refused(served, remote):
    other = gym.make(ID, url=served.url).unwrapped
    other.reset(seed=0)
    with pytest.raises(ValueError, match="another environment's"):
        remote.unwrapped.restore(other.snapshot())
    other.close()


# --- one batch for all ---


def held(worker) -> threading.Event:
    """Keeps the worker busy until it is set."""
    busy, go = threading.Event(), threading.Event()
    worker.call(lambda: busy.set() or go.wait())
    busy.wait()
    return go


@pytest.fixture
def worker(config):
    batches = []
    made = Worker(SanaWMEnv(**config.keywords).simulator, 4, lambda episodes, took: batches.append(episodes))
    made.batches = batches
    yield made
    made.close()


def episodes(worker, count):
    scene = worker.simulator.world.scene(picture())
    return worker.simulator.reset([scene] * count, list(range(count)))


def test_steps_that_wait_share_a_batch(worker):
    now, go = episodes(worker, 6), held(worker)
    futures = [worker.step(Step(i, [episode], [np.full(6, 0.1)])) for i, episode in enumerate(now)]
    go.set()
    after = [future.result().after[0] for future in futures]
    assert worker.batches == [4, 2]
    assert [episode.batch_row for episode in after] == [(0, 4), (1, 4), (2, 4), (3, 4), (0, 2), (1, 2)]
    direct, _ = worker.simulator.step(now[:4], [np.full(6, 0.1)] * 4)
    assert all((a.frames == b.frames).all() for a, b in zip(after, direct, strict=False))


def test_a_batch_of_ones_own_does_not_depend_on_others(worker):
    now, go = episodes(worker, 3), held(worker)
    own = worker.step(Step("a", now[:1], [np.full(6, 0.1)], "own"))
    each = worker.step(Step("b", now[1:], [np.full(6, 0.1)] * 2, "one by one"))
    go.set()
    assert [e.batch_row for e in own.result().after + each.result().after] == [(0, 1)] * 3


def test_a_wrong_action_fails_alone(worker):
    now, go = episodes(worker, 3), held(worker)
    actions = [np.zeros(6), np.full(6, np.inf), np.zeros(6)]
    futures = [worker.step(Step(i, [e], [a])) for i, (e, a) in enumerate(zip(now, actions, strict=True))]
    go.set()
    with pytest.raises(ValueError, match="six finite numbers"):
        futures[1].result()
    assert [futures[i].result().after[0].batch_row for i in (0, 2)] == [(0, 2), (1, 2)]


def test_what_fails_for_no_known_reason_fails_alone(worker, monkeypatch):
    now, go = episodes(worker, 3), held(worker)
    step = type(worker.simulator).step

    def broken(self, episodes, *rest):
        if any(episode is now[1] for episode in episodes):
            raise RuntimeError("this one")
        return step(self, episodes, *rest)

    monkeypatch.setattr(type(worker.simulator), "step", broken)
    futures = [worker.step(Step(i, [e], [np.zeros(6)])) for i, e in enumerate(now)]
    go.set()
    with pytest.raises(RuntimeError, match="this one"):
        futures[1].result()
    assert futures[0].result().batch == futures[2].result().batch == 1


def test_an_action_that_breaks_the_controller_fails_alone(worker, monkeypatch):
    now, go = episodes(worker, 3), held(worker)
    plan = type(worker.simulator).plan

    def broken(self, episode, action):
        if episode is now[1]:
            raise RuntimeError("this one")
        return plan(self, episode, action)

    monkeypatch.setattr(type(worker.simulator), "plan", broken)
    futures = [worker.step(Step(i, [e], [np.zeros(6)])) for i, e in enumerate(now)]
    go.set()
    with pytest.raises(RuntimeError, match="this one"):
        futures[1].result()
    assert futures[0].result().batch == futures[2].result().batch == 2 and worker.alive


def test_a_worker_that_ends_answers_what_waits(config):
    worker = Worker(SanaWMEnv(**config.keywords).simulator)
    now, go = episodes(worker, 1), held(worker)
    waits = worker.step(Step("a", now, [np.zeros(6)]))
    ending = threading.Thread(target=worker.close)
    ending.start()
    with worker._changed:
        worker._changed.wait_for(lambda: worker._closed)
    go.set()
    ending.join()
    with pytest.raises(RuntimeError, match="ending"):
        waits.result()
    with pytest.raises(RuntimeError, match="ending"):
        worker.call(lambda: None)


def test_clients_share_forward_passes(served, config):
    envs = [gym.make(ID, url=served.url).unwrapped for _ in range(3)]
    for env in envs:
        env.reset(seed=0)
    go = held(served.service.worker)
    with ThreadPoolExecutor(3) as pool:
        steps = [pool.submit(env.step, np.full(6, 0.1)) for env in envs]
        worker = served.service.worker
        with worker._changed:
            worker._changed.wait_for(lambda: worker.waiting == 3)
        go.set()
        for step in steps:
            step.result()
    assert sorted(env.batch_row for env in envs) == [(0, 3), (1, 3), (2, 3)]
    for env in envs:
        env.close()


@pytest.mark.slow
def test_sixty_four_clients_go_through_one_forward_pass(served, config):
    def opened(i):
        env = gym.make(ID, url=served.url).unwrapped
        env.reset(seed=i)
        return env

    with ThreadPoolExecutor(64) as pool:
        envs = list(pool.map(opened, range(64)))
        worker = served.service.worker
        go = held(worker)
        steps = [pool.submit(env.step, np.full(6, 0.1)) for env in envs]
        with worker._changed:
            worker._changed.wait_for(lambda: worker.waiting == 64)
        go.set()
        for step in steps:
            step.result()
    assert sorted(env.batch_row for env in envs) == [(i, 64) for i in range(64)]
    alone = local(config).unwrapped
    alone.reset(seed=63)
    alone.step(np.full(6, 0.1))
    assert np.abs(alone.clip.frames.astype(int) - envs[63].clip.frames).max() <= 1
    for env in envs:
        env.close()


# --- cuts ---


def cut_before_the_reply(server, monkeypatch, times=1):
    """The line of the first client that steps is cut when its step is done, and the reply is not sent."""
    answer, done = server.service.answer, []

    async def cutting(session, message):
        reply = await answer(session, message)
        if b"step" in message and len(done) < times:
            done.append(session)
            await session.closing(1011)
        return reply

    monkeypatch.setattr(server.service, "answer", cutting)
    return done


def test_after_a_cut_it_goes_on_and_no_step_is_done_twice(served, remote, config, monkeypatch):
    cut, env = cut_before_the_reply(served, monkeypatch, 2), local(config)
    assert same(remote.reset(seed=0), env.reset(seed=0))
    steps = served.service.metrics.steps._value.get()
    for x in (0.1, 0.2, 0.3):
        assert same(remote.step(np.full(6, x)), env.step(np.full(6, x)))
    assert len(cut) == 2
    assert served.service.metrics.steps._value.get() == steps + 3


def test_a_cut_while_nothing_is_asked_is_not_noticed(served, remote):
    remote.reset(seed=0)
    remote.unwrapped.simulator.connection._socket.socket.shutdown(socket.SHUT_RDWR)
    remote.step(np.zeros(6))


def test_a_client_that_dies_within_a_step_holds_nobody_up(served, remote, config):
    go, worker = held(served.service.worker), served.service.worker
    with connect(served.url + "/ws") as line:
        line.send(hello())
        session = wire.unpack(line.recv(60))["session"]
        line.send(wire.pack({"n": 0, "op": "reset", **RESET}))
        with worker._changed:
            worker._changed.wait_for(lambda: worker.waiting == 1)
        line.socket.shutdown(socket.SHUT_RDWR)
    go.set()
    env = local(config)
    assert same(remote.reset(seed=1), env.reset(seed=1))
    assert same(remote.step(np.full(6, 0.1)), env.step(np.full(6, 0.1)))
    with connect(served.url + "/ws") as line:  # and what it asked for is done
        line.send(hello(session=session))
        line.recv(60)
        line.send(wire.pack({"n": 0, "op": "reset", **RESET}))
        assert wire.unpack(line.recv(60))["episodes"] == [1]


def test_of_two_clients_on_one_session_the_last_one_has_it(served, remote):
    remote.reset(seed=0)
    connection = remote.unwrapped.simulator.connection
    with connect(served.url + "/ws") as thief:
        thief.send(hello(session=connection.session))
        assert wire.unpack(thief.recv(60))["session"] == connection.session
        with pytest.raises(SessionLost, match="Another client"):
            remote.step(np.zeros(6))
        remote.reset(seed=0)  # a session of its own
        remote.step(np.zeros(6))
        thief.send(wire.pack({"n": connection._number, "op": "drop"}))
        assert "error" not in wire.unpack(thief.recv(60))


def test_a_server_that_was_started_anew_has_forgotten(config):
    with Server(Service(config)) as server:
        env = gym.make(ID, url=server.url).unwrapped
        env.reset(seed=0)
        here, port = env.snapshot(), server.port
    with Server(Service(config), port=port):
        with pytest.raises(SessionLost, match="does not know this session"):
            env.step(np.zeros(6))
        with pytest.raises(SessionLost, match="forgotten this episode"):
            env.restore(here) and env.step(np.zeros(6))
        env.reset(seed=0)
        env.step(np.zeros(6))
        env.close()


def test_a_server_that_stays_away_is_named_after_some_time(config):
    with Server(Service(config)) as server:
        env = gym.make(ID, url=server.url, patience=0.0).unwrapped
    with pytest.raises(ConnectionError, match="could not be reached"):
        env.reset(seed=0)
    with pytest.raises(ConnectionError, match="There is no server"):
        gym.make(ID, url=server.url)
    with pytest.raises(ValueError, match="url must be the address"):
        gym.make(ID, url="http://127.0.0.1:1")


def killed(server) -> None:
    """End a server without telling its clients or its disk anything."""
    for session in server.service.sessions.values():
        session.closing = None
    server.service.sessions.clear()
    server.close()


@pytest.mark.slow
@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("within", [False, True], ids=["between steps", "before a reply"])
def test_another_server_goes_on_with_what_a_killed_one_kept(config, tmp_path, every, within, monkeypatch):
    """Bit for bit, be it kept or be it steps that have to be taken again."""
    monkeypatch.setattr(server_module, "END_SECONDS", 0)
    first = Server(Service(config, keep=Keep(tmp_path, every)))
    settings = {"autoreset_mode": "SameStep", "batching": "own", "max_episode_chunks": 4}
    envs = gym.make_vec(ID, 2, vectorization_mode="vector_entry_point", url=first.url, **settings)
    others = SanaWMVectorEnv(2, **config.keywords | {"max_episode_chunks": 4, "autoreset_mode": "SameStep"})
    actions = np.random.default_rng(0).uniform(-0.3, 0.3, (7, 2, 6)).astype(np.float32)
    assert same(envs.reset(seed=0), others.reset(seed=0))
    for action in actions[:3]:
        assert same(envs.step(action), others.step(action))
    here, there = envs.snapshot(), others.snapshot()
    assert same(envs.step(actions[3]), others.step(actions[3]))
    answer, done = first.service.answer, threading.Event()

    async def silent(session, message):
        reply = await answer(session, message)
        if within:
            done.set()
            await asyncio.Event().wait()
        return reply

    monkeypatch.setattr(first.service, "answer", silent)
    with ThreadPoolExecutor(1) as pool:
        if within:
            waiting = pool.submit(envs.step, actions[4])
            done.wait()
        killed(first)
        with Server(Service(config, keep=Keep(tmp_path, every)), port=first.port) as second:
            assert same(waiting.result() if within else envs.step(actions[4]), others.step(actions[4]))
            for action in actions[5:]:
                assert same(envs.step(action), others.step(action))
            assert same(envs.restore(here), others.restore(there))
            assert same(envs.step(actions[0]), others.step(actions[0]))
            assert second.service.metrics.registry.get_sample_value("sanawm_taken_over_total") == 1
            envs.close()
    assert not list(tmp_path.iterdir())


class Killed(BaseException):
    """What a process that is killed does next."""


def killed_at(point):
    def dies(*args, **kwargs):
        raise Killed(point)

    return dies


@pytest.mark.parametrize("point", ["the episode's file", "the record", "what is tidied up"])
def test_a_server_that_is_killed_while_it_saves_has_saved_all_or_nothing(config, tmp_path, monkeypatch, point):
    one, two = (Service(config, keep=Keep(tmp_path)) for _ in range(2))

    async def killed_and_gone_on_with():
        session, _ = await one.welcome(hello())
        begun = wire.unpack(await one.answer(session, wire.pack({"n": 0, "op": "reset", **RESET})))
        step = wire.pack({"n": 1, "op": "step", "episodes": begun["episodes"], "actions": np.full((1, 6), 0.1)})
        with monkeypatch.context() as patch:
            if point == "the episode's file":
                patch.setattr(Snapshot, "save", killed_at(point))
            elif point == "the record":
                patch.setattr(keep_module, "replacing", killed_at(point))
            else:
                patch.setattr(Keep, "_tidy", killed_at(point))
            with pytest.raises(Killed):
                await one.answer(session, step)
        there, _ = await two.welcome(hello(session=session.id))
        assert there.last == (1 if point == "what is tidied up" else 0)
        reply = wire.unpack(await two.answer(there, step))
        onward = wire.pack({"n": 2, "op": "step", "episodes": reply["episodes"], "actions": np.full((1, 6), 0.2)})
        again = wire.unpack(await two.answer(there, onward))
        two.end(there)
        return reply, again

    try:
        reply, again = asyncio.run(killed_and_gone_on_with())
    finally:
        one.close()
        two.close()
    alone = SanaWMVectorEnv(1, **config.keywords)
    alone.reset(seed=1, options={"scene": 0, "seed": 1})
    for said, x in ((reply, 0.1), (again, 0.2)):
        assert np.array_equal(said["obs"]["rgb"], alone.step(np.full((1, 6), x, np.float32))[0]["rgb"])
    assert not list(tmp_path.iterdir())


def test_what_could_not_be_kept_is_not_there(config, tmp_path, monkeypatch):
    service = Service(config, keep=Keep(tmp_path))

    async def full():
        session, _ = await service.welcome(hello())
        await service.answer(session, wire.pack({"n": 0, "op": "reset", **RESET}))
        step = {"op": "step", "episodes": [1], "actions": np.full((1, 6), 0.1)}
        with monkeypatch.context() as patch:
            patch.setattr(Snapshot, "save", lambda self, path: (_ for _ in ()).throw(OSError("No space left")))
            said = wire.unpack(await service.answer(session, wire.pack({"n": 1, **step})))
        assert said["error"] == {"type": "RuntimeError", "says": "The server failed: No space left."}
        assert set(session.episodes) == {1}
        assert "error" not in wire.unpack(await service.answer(session, wire.pack({"n": 2, **step})))

    try:
        asyncio.run(full())
    finally:
        service.close()


def test_what_was_kept_and_cannot_be_read_is_lost_and_the_rest_goes_on(config, tmp_path, caplog):
    one, two = (Service(config, keep=Keep(tmp_path)) for _ in range(2))
    try:

        async def damaged():
            session, _ = await one.welcome(hello())
            for n in range(2):
                await one.answer(session, wire.pack({"n": n, "op": "reset", **RESET}))
            one.keep.file(session.id, 1).write_bytes(b"noise")
            there, _ = await two.welcome(hello(session=session.id))
            assert set(there.episodes) == {2} and "Episode 1 of session" in caplog.text
            other = Record(hello={"of": "another version"}, last=0, made=0, episodes=(), owner="x")
            one.keep.write(session.id, other, b"", {}, take=True)
            with pytest.raises(service_module.SessionLost, match="does not know this session"):
                await two.welcome(hello(session=session.id))

        asyncio.run(damaged())
    finally:
        one.close()
        two.close()


def test_a_session_that_moved_is_not_touched_where_it_was(config, tmp_path):
    one, two = (Service(config, keep=Keep(tmp_path)) for _ in range(2))
    try:
        reset = RESET

        async def move():
            session, _ = await one.welcome(hello())
            first = wire.unpack(await one.answer(session, wire.pack({"n": 0, "op": "reset", **reset})))
            (there, _) = await two.welcome(hello(session=session.id))
            second = wire.unpack(await two.answer(there, wire.pack({"n": 1, "op": "reset", **reset})))
            assert set(there.episodes) == {*first["episodes"], *second["episodes"]}
            await one.answer(session, wire.pack({"n": 1, "op": "reset", **reset}))  # it does not know yet
            assert one.keep.read(session.id)[0].owner == two.keep.owner
            one.end(session)
            back, _ = await one.welcome(hello(session=session.id))
            assert set(back.episodes) == set(there.episodes)
            two.end(there)
            assert one.keep.read(session.id) is not None
            one.end(back)

        asyncio.run(move())
        assert not list(tmp_path.iterdir())
    finally:
        one.close()
        two.close()


def test_no_server_forgets_a_session_that_another_one_has(tmp_path):
    mine, other = Keep(tmp_path), Keep(tmp_path)
    record = Record(hello={}, last=0, made=0, episodes=(), owner=mine.owner)
    for name in ("a" * 22, "b" * 22):
        mine.write(name, record, b"", {})
        os.utime(tmp_path / name / "session", (0, 0))  # 1970
    mine.sweep(3600, {"a" * 22})
    other.sweep(3600, set())
    assert [path.name for path in tmp_path.iterdir()] == ["a" * 22]


def test_folders_of_somebody_else_stay_where_sessions_are_kept(tmp_path):
    """A session is known by its record, not by the name of that file."""
    work = tmp_path / "my-other-work"
    work.mkdir()
    (work / "session").write_text("notes")
    os.utime(work / "session", (0, 0))
    keep = Keep(tmp_path)
    keep.sweep(0, set())
    assert (work / "session").read_text() == "notes"
    (work / "session").write_bytes(wire.pack({"hello": {}}))  # of another version, say
    assert keep.read(work.name) is None
    shutil.rmtree(tmp_path)
    keep.sweep(0, set())  # the next one may find the folder again
    (tmp_path).write_text("a file")
    with pytest.raises(NotADirectoryError, match="a file stands where a folder is needed"):
        Keep(tmp_path)


def test_a_sweep_that_fails_is_not_the_last(monkeypatch, caplog):
    swept = []

    class Failing:
        async def sweep(self):
            swept.append(1)
            raise asyncio.CancelledError if len(swept) > 1 else OSError("disk")

    monkeypatch.setattr(app, "SWEEP_SECONDS", 0)
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(app._sweep(Failing()))
    assert len(swept) == 2 and "could not be looked for" in caplog.text


def test_nothing_but_a_session_is_read_from_where_they_are_kept(config, tmp_path):
    keep = Keep(tmp_path / "kept")
    (tmp_path / "secrets!").mkdir()
    for name in ("../secrets!", "", "." * 20, "a" * 22, "/etc/passwd"):
        assert keep.read(name) is None
    (tmp_path / "kept" / ("a" * 22)).mkdir()
    (tmp_path / "kept" / ("a" * 22) / "session").write_bytes(b"noise")
    assert keep.read("a" * 22) is None


# --- limits, and who means no good ---


def test_requests_do_not_pile_up_behind_one_that_takes_long(config):
    service = Service(config)

    async def piled():
        session, _ = await service.welcome(hello())
        go = held(service.worker)
        asks = [asyncio.ensure_future(service.answer(session, wire.pack({"n": 0, "op": "reset", **RESET})))]
        await asyncio.sleep(0)
        asks.append(asyncio.ensure_future(service.answer(session, wire.pack({"n": 1, "op": "drop"}))))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        with pytest.raises(ValueError, match="A request waits already"):
            await service.answer(session, wire.pack({"n": 2, "op": "drop"}))
        go.set()
        first, second = [wire.unpack(await ask) for ask in asks]
        assert first["episodes"] == [1] and second == {"n": 1}
        assert "error" not in wire.unpack(await service.answer(session, wire.pack({"n": 2, "op": "drop"})))

    try:
        asyncio.run(piled())
    finally:
        service.close()


def test_who_sends_what_takes_long_to_read_has_to_wait_longer(config, monkeypatch):
    """Reading is done in the one thread that all lines share."""
    work, rests = count(), []

    async def noted(seconds):
        rests.append(seconds)

    monkeypatch.setattr(app, "_rest", noted)
    monkeypatch.setattr(service_module, "_worked", lambda: float(next(work)))
    with Server(Service(config)) as server, connect(server.url + "/ws") as line:
        line.send(hello())
        line.recv(60)
        for n in range(3):
            line.send(wire.pack({"n": n, "op": "drop"}))
            line.recv(60)
        line.send(wire.pack({"n": 3, "op": "drop", "drop": [2**31] * 100_000}))  # a head that is too long
        assert "cut off or too long" in wire.unpack(line.recv(60))["error"]["says"]
    assert rests == [app.REST * 2] * 3


def test_a_server_whose_world_has_ended_is_not_healthy(config):
    service = Service(config)
    with Server(service) as server:
        service.worker.close()
        with pytest.raises(HTTPError, match="503"):
            urllib.request.urlopen(server.url.replace("ws", "http") + "/health")


def hello(**fields) -> bytes:
    return wire.pack({"op": "hello", "version": wire.VERSION, **fields})


def welcomed(service, **fields):
    return asyncio.run(service.welcome(hello(**fields)))[0]


@pytest.fixture
def strict(config):
    """A service with room for little, and a clock that stands still until it is turned."""
    limits = ServerLimits(sessions=2, episodes=4, batch=3, state_gb=0.001, message_mb=0.1, idle_minutes=1)
    service = Service(config, limits, clock=lambda: service_clock[0])
    service_clock = [0.0]
    service.turn = lambda seconds: service_clock.__setitem__(0, service_clock[0] + seconds)
    yield service
    service.close()


def test_an_idle_session_is_forgotten(strict):
    session = welcomed(strict)
    asyncio.run(strict.sweep())
    strict.turn(59)
    welcomed(strict, session=session.id)
    strict.turn(59)
    asyncio.run(strict.sweep())
    assert refusals(strict, "idle") == 0
    strict.turn(2)
    asyncio.run(strict.sweep())
    assert refusals(strict, "idle") == 1 and not strict.sessions


def test_sessions_are_counted_and_left_ones_make_room(strict):
    async def closing(code):
        pass

    first, second = (welcomed(strict) for _ in range(2))
    first.closing = second.closing = closing
    with pytest.raises(Refused, match="has 2 sessions, and takes no more"):
        welcomed(strict)
    second.closing = None
    third = welcomed(strict)
    assert set(strict.sessions) == {first.id, third.id}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("limits", "limit", "sentence"),
    [
        ({"episodes": 3}, "episodes", "keeps at most 3 episodes"),
        ({"batch": 1}, "batch", "at most 1 episodes"),
        ({"state_gb": 0.001}, "state", "which is more than an equal share"),
        ({"sessions": 1}, "sessions", "takes no more"),
        ({"goal_chunks": 2}, "goal", "at most 2 steps away here, got 3"),
    ],
)
def test_a_limit_is_a_sentence_and_a_metric(config, limits, limit, sentence):
    with Server(Service(config, ServerLimits(**{"sessions": 20} | limits))) as server:
        first = gym.make(ID, url=server.url).unwrapped
        with pytest.raises(ServerRefused, match=sentence):
            if limit == "sessions":
                gym.make(ID, url=server.url)
            kept = []
            if limit == "goal":
                first.reset(options={"task": {"chunks": 3}})
            if limit == "batch":
                gym.make_vec(ID, 2, vectorization_mode="vector_entry_point", url=server.url).reset(seed=0)
            for seed in range(100):
                first.reset(seed=seed)
                first.step(np.zeros(6))
                kept.append(first.snapshot())
        assert refusals(server.service, limit) == 1
        if limit != "sessions":
            kept.clear()
            gc.collect()
            first.reset(seed=0)  # and goes on, once there is room


def test_a_message_that_is_too_large_is_a_sentence_and_a_metric(config):
    with Server(Service(config, ServerLimits(message_mb=0.1))) as server:
        env = gym.make(ID, url=server.url, patience=0.0).unwrapped
        with pytest.raises(ValueError, match=r"at most 0\.1 MB"):
            env.reset(seed=0, options={"scene": np.zeros((400, 400, 3), np.uint8)})
        env.reset(seed=0)  # and the line is as it was
        for refused_before, most in enumerate((100_000, 2**24)):  # whatever the server beneath allows
            server._server.config.ws_max_size = most
            with connect(server.url + "/ws") as stranger:
                stranger.send(b"\0" * 200_000)
                with pytest.raises(ConnectionClosed) as closed:
                    stranger.recv(60)
            assert closed.value.rcvd.code == 1009
            assert refusals(server.service, "message") == refused_before + 1


def test_a_reply_that_is_kept_counts_as_state(strict):
    session = welcomed(strict, obs_mode="rgb", obs_size=[500, 500])  # 0.75 MB, of 1 MB for all
    strict.limits = replace(strict.limits, sessions=20)

    async def ask():
        for n in range(2):
            reply = await strict.answer(session, wire.pack({"n": n, "op": "reset", **RESET}))
            strict.limits = replace(strict.limits, state_gb=(session.bytes + 500 * 500 * 3) / 1e9)
        return wire.unpack(reply)

    assert "smaller obs_size" in asyncio.run(ask())["error"]["says"]
    assert refusals(strict, "state") == 1


@pytest.mark.slow
def test_replies_have_a_limit_too(strict):
    session = welcomed(strict, obs_mode="rgb", obs_size=[4096, 4096])
    ask = {"op": "reset", "scenes": [], "seeds": [1] * 6, "rngs": [""] * 6, "task": {}, "max_episode_chunks": 1}
    strict.limits = replace(strict.limits, batch=64)
    reply = wire.unpack(asyncio.run(strict.answer(session, wire.pack({"n": 0, **ask}))))
    assert "do not fit into a reply" in reply["error"]["says"]
    assert refusals(strict, "message") == 1


def test_every_limit_is_on_the_page():
    page = (ROOT / "docs" / "serve.md").read_text()
    for each in fields(ServerLimits):
        assert f"| `--{each.name.replace('_', '-')}` | {each.default:g} | " in page


def test_every_limit_has_a_metric(served):
    text = urllib.request.urlopen(served.url.replace("ws", "http") + "/metrics").read().decode()
    for limit in REFUSALS:
        assert f'sanawm_refused_total{{limit="{limit}"}}' in text
    for name in ("sanawm_sessions", "sanawm_state_bytes", "sanawm_steps_total", "sanawm_batch_episodes_bucket"):
        assert f"\n{name}" in text
    health = urllib.request.urlopen(served.url.replace("ws", "http") + "/health").read()
    assert json.loads(health) == {"status": "ok", "world": "tiny"}


def test_without_the_token_nobody_comes_in(config, monkeypatch):
    with Server(Service(config), token="secret") as server:
        for wrong in (None, "wrong", "sécret"):
            with pytest.raises(PermissionError, match="needs its token"):
                gym.make(ID, url=server.url, token=wrong)
        with pytest.raises(HTTPError, match="401"):
            urllib.request.urlopen(server.url.replace("ws", "http") + "/metrics")
        monkeypatch.setenv("SANAWM_TOKEN", "secret")
        gym.make(ID, url=server.url).unwrapped.close()
        assert refusals(server.service, "token") == 4


def bare_line(port, Host="127.0.0.1", **headers) -> socket.socket:
    """A line that asks to become a WebSocket, and does nothing more by itself."""
    line = socket.create_connection(("127.0.0.1", port))
    headers |= {"Host": Host, "Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13"}
    headers |= {"Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA=="}
    lines = ["GET /ws HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items()), "", ""]
    line.sendall("\r\n".join(lines).encode())
    return line


@pytest.mark.parametrize("headers", [{"Origin": "http://evil.example"}, {"Host": "evil.example"}])
def test_web_pages_do_not_reach_a_server_without_a_token(served, headers):
    with bare_line(served.port, **headers) as line:
        assert b" 403 " in line.recv(100)


HOSTILE = {
    "noise": b"\xff" * 1000,
    "nothing": b"",
    "text": "hello",
    "no hello": wire.pack({"op": "step"}),
    "another version": wire.pack({"op": "hello", "version": 99}),
    "an unknown mode": hello(obs_mode="x-rays"),
    "a huge picture": hello(obs_mode="rgb", obs_size=[10**6, 10**6]),
    "a stranger's session": hello(session="guess"),
}


@pytest.mark.parametrize("message", HOSTILE.values(), ids=HOSTILE)
def test_who_says_no_hello_is_told_and_let_go(served, message):
    with connect(served.url + "/ws") as line:
        line.send(message)
        assert "error" in wire.unpack(line.recv(60))
        with pytest.raises(ConnectionClosed):
            line.recv(60)


REQUESTS = {
    "no number": {"op": "drop"},
    "no op": {"n": 1},
}


@pytest.mark.parametrize("request_", [*REQUESTS.values(), b"\xff" * 50], ids=[*REQUESTS, "noise"])
def test_garbage_in_a_session_ends_the_line_and_not_the_session(served, request_):
    with connect(served.url + "/ws") as line:
        line.send(hello())
        session = wire.unpack(line.recv(60))["session"]
        line.send(request_ if isinstance(request_, bytes) else wire.pack(request_))
        assert "error" in wire.unpack(line.recv(60))
        with pytest.raises(ConnectionClosed):
            line.recv(60)
    assert session in served.service.sessions


WRONG = {
    "an unknown op": {"op": "shutdown"},
    "an episode of nobody": {"op": "frames", "episode": 12345},
    "words for numbers": {"op": "frames", "episode": "1"},
    "a path for a scene": {"op": "reset", "scenes": ["/etc/passwd"], "task": {}, "seeds": [1], "rngs": ["{}"]},
    "a field of nobody": {"op": "drop", "self": 1},
    "what cannot be dropped": {"op": "drop", "drop": [[1]]},
    "a generator that is none": {
        "op": "reset", "scenes": [{"number": 0}], "task": {}, "seeds": [1], "max_episode_chunks": 3,
        "rngs": ['{"bit_generator": "os.system"}'],
    },
    "a scene without picture": {
        "op": "reset", "scenes": [{}], "task": {}, "seeds": [1], "max_episode_chunks": 3,
        "rngs": [json.dumps(np.random.default_rng(0).bit_generator.state)],
    },
    "a step of nothing": {"op": "step", "episodes": [], "actions": np.zeros((0, 6))},
    "a file out of order": {"op": "write", "offset": 5, "data": np.zeros(3, np.uint8)},
    "a file that is not there": {"op": "read", "offset": 0},
    "a place before the file": {"op": "read", "offset": -5},
}  # fmt: skip


def test_wrong_requests_are_answered_in_one_sentence(served):
    with connect(served.url + "/ws") as line:
        line.send(hello())
        line.recv(60)
        for n, request in enumerate(WRONG.values()):
            line.send(wire.pack({"n": n, **request}))
            reply = wire.unpack(line.recv(60))
            assert reply["n"] == n and "error" in reply, request
            assert reply["error"]["type"] in ("ValueError", "TypeError", "EpisodeLost")
            assert "\n" not in reply["error"]["says"]


def test_silent_lines_are_hung_up(config, monkeypatch):
    monkeypatch.setattr(server_module, "HTTP_SECONDS", 0.05)
    with Server(Service(config)) as server, socket.create_connection(("127.0.0.1", server.port)) as line:
        line.sendall(b"GET /hea")  # and no more
        line.settimeout(60)
        with pytest.raises(ConnectionResetError):
            line.recv(10) or (_ for _ in ()).throw(ConnectionResetError)


def test_a_client_that_has_vanished_is_noticed(config, monkeypatch):
    meet, ended = app._meet, threading.Event()

    async def watched(service, socket):
        try:
            await meet(service, socket)
        finally:
            ended.set()

    monkeypatch.setattr(app, "_meet", watched)
    with Server(Service(config), ping_seconds=0.05) as server, bare_line(server.port) as line:
        line.sendall(Frame(Opcode.BINARY, hello()).serialize(mask=True))
        assert ended.wait(30)  # nothing is read, so no ping is answered


def test_a_client_that_does_not_read_is_hung_up(config, monkeypatch):
    monkeypatch.setattr(app, "SEND_SECONDS", 0.05)
    monkeypatch.setattr(server_module, "END_SECONDS", 0)
    lost, ended = server_module._WebSocket.connection_lost, threading.Event()
    monkeypatch.setattr(server_module._WebSocket, "connection_lost", lambda self, e: (lost(self, e), ended.set()))
    with Server(Service(config)) as server, bare_line(server.port) as line:
        line.sendall(Frame(Opcode.BINARY, hello()).serialize(mask=True))
        line.sendall(Frame(Opcode.BINARY, wire.pack({"n": 0, "op": "reset", **RESET})).serialize(mask=True))
        for n in range(1, 1000):
            with suppress(OSError):
                ask = wire.pack({"n": n, "op": "frames", "episode": 1})
                line.sendall(Frame(Opcode.BINARY, ask).serialize(mask=True))
        assert ended.wait(60)


def test_more_lines_than_there_is_room_for_are_refused(config, monkeypatch):
    monkeypatch.setattr(server_module, "SPARE_CONNECTIONS", 1)
    with Server(Service(config, ServerLimits(sessions=1))) as server:
        lines = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(3)]
        lines[2].settimeout(60)
        with pytest.raises(ConnectionResetError):
            lines[2].recv(10) or (_ for _ in ()).throw(ConnectionResetError)
        assert refusals(server.service, "connections") == 1
        for line in lines:
            line.close()


@pytest.mark.slow
def test_hostile_clients_hold_nobody_up(served, config):
    """Floods of requests and of pings that nobody reads, while somebody steps: the same bits, and no step missing."""
    flood, pings = (bare_line(served.port) for _ in range(2))
    stop = threading.Event()

    def spam(line, frames):
        with suppress(OSError):
            while not stop.is_set():
                line.sendall(next(frames))

    def requests():
        yield Frame(Opcode.BINARY, hello()).serialize(mask=True)
        for n in count():
            yield Frame(Opcode.BINARY, wire.pack({"n": n, "op": "x"})).serialize(mask=True)

    ping = Frame(Opcode.PING, b"x" * 125).serialize(mask=True) * 50
    floods = [threading.Thread(target=spam, args=each) for each in ((flood, requests()), (pings, repeat(ping)))]
    for each in floods:
        each.start()
    try:
        remote, env = gym.make(ID, url=served.url, batching="own"), local(config)
        assert same(remote.reset(seed=0), env.reset(seed=0))
        for _ in range(3):
            assert same(remote.step(np.full(6, 0.1)), env.step(np.full(6, 0.1)))
        remote.close()
    finally:
        stop.set()
        for line in (flood, pings):
            with suppress(OSError):
                line.shutdown(socket.SHUT_RDWR)
        for each in floods:
            each.join()


# --- learning, and the command ---


def test_rllibs_environment_can_be_remote(served):
    from sanawm_env.integrations import rllib

    envs = rllib.create({"id": ID, "url": served.url, "obs_size": (12, 16), "num_envs": 2})
    obs, _ = envs.reset(seed=0)
    assert obs.dtype == np.float32 and obs.shape == (2, 12, 16, 3) and envs.observation_space.contains(obs)
    assert envs.observation_space.contains(envs.step(envs.action_space.sample())[0])
    envs.close()


def test_the_command_wants_a_token_where_others_can_come(tiny, capsys, monkeypatch, tmp_path):
    monkeypatch.delenv("SANAWM_TOKEN", raising=False)
    assert "give --token-file" in refused(capsys, "serve", "--world", tiny, "--host", "0.0.0.0")
    (tmp_path / "token").write_text("\n")
    assert "holds no token" in refused(capsys, "serve", "--world", tiny, "--token-file", tmp_path / "token")
    assert "--env must be" in refused(capsys, "serve", "--world", tiny, "--env", "CartPole-v1")
    assert "--replicas needs --keep" in refused(capsys, "serve", "--world", tiny, "--replicas", 2)
    assert "sessions must be a whole number from 1" in refused(capsys, "serve", "--world", tiny, "--sessions", 0)
    assert "--port must be" in refused(capsys, "serve", "--world", tiny, "--port", 99999)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert "Cannot listen on" in refused(capsys, "serve", "--world", tiny, "--port", port)


@pytest.mark.slow
def test_the_command_serves_until_it_is_stopped(tiny):
    command = [
        sys.executable,
        "-m",
        "sanawm_env",
        "serve",
        "--world",
        tiny,
        "--env",
        "SanaWM/Explore-v0",
        "--port",
        "0",
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    url = process.stdout.readline().split()[0]
    env = gym.make(ID, url=url, patience=0.0).unwrapped
    env.reset(seed=0)
    env.step(np.zeros(6))
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 128 + signal.SIGTERM
    assert "Stopped." in process.stdout.read()


@pytest.mark.slow
def test_an_agent_that_answers_with_keys_walks_the_same_here_and_through_the_wire(capsys, monkeypatch):
    walk = str(ROOT / "examples" / "vlm_walk.py")
    said = []
    with Server(Service(EnvConfig(world="nano", task="imagenav", action_mode="keys"))) as server:
        for options in ([], ["--url", server.url]):
            monkeypatch.setattr(sys, "argv", [walk, "--steps", "2", *options])
            runpy.run_path(walk, run_name="__main__")
            said.append(capsys.readouterr().out)
    assert said[0] == said[1] and len(said[0].splitlines()) == 3


@pytest.mark.parametrize(
    ("answer", "keys"),
    [("KEYS: wd", "wd"), ("I think.\n**Keys:** W", "w"), ("KEYS: none", ""), ("KEYS: xyz", None), ("w", None)],
)
def test_keys_are_found_in_what_a_language_model_says(answer, keys):
    assert runpy.run_path(str(ROOT / "examples" / "vlm_walk.py"))["keys_in"](answer) == keys


def test_what_openenv_deploys_is_what_there_is():
    folder = ROOT / "examples" / "openenv"
    deployed = yaml.safe_load((folder / "openenv.yaml").read_text())
    docker = (folder / "Dockerfile").read_text()
    module, _, name = deployed["app"].partition(":")
    assert f"\n{name} = create_app(" in (folder / f"{module}.py").read_text()
    assert f"EXPOSE {deployed['port']}\n" in docker and f'"{deployed["app"]}"' in docker
    sent = (folder / "Dockerfile.dockerignore").read_text().splitlines()
    assert all((ROOT / line[1:]).exists() for line in sent if line.startswith("!"))


def test_importing_the_package_registers_it_without_the_extra():
    assert gym.spec(ID).entry_point == "sanawm_env.serving.remote:RemoteEnv" and sanawm_env
