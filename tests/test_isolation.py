"""An episode is a function of start image, seed and actions: whatever else the program has set in torch, from however
many threads it calls, and in forked processes."""

import json
import multiprocessing
import os
import random
import shutil
import threading
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch

from sanawm_env.world.isolation import run_isolated
from sanawm_env.world.state import WorldState
from sanawm_env.world.threads import THREADS, Lock, with_torch_threads, world_threads
from sanawm_env.world.world import World
from tests.worlds import TINY, drive, picture, write_tiny_world

MOVES = (0, 0, 0.4, 0, 0.2, 0), (0.1, 0, 0, 0, 0, 0)
FORKS = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")


def episode(world, image, seed=3):
    """All bytes of an episode of two chunks whose scene is encoded anew."""
    with world._lock.held():
        world._scenes.clear()
    _, clips = drive(world, world.begin([world.scene(image), world.scene(picture(9))], seed), *MOVES)
    return [t.numpy().tobytes() for clip in clips for t in (clip.frames, clip.latents)]


@pytest.fixture(scope="module")
def nano():
    return World.load("nano")


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return World.load(write_tiny_world(tmp_path_factory.mktemp("worlds") / "small"))


@pytest.fixture(scope="module")
def plain(small):
    return episode(small, picture())


@contextmanager
def changed(write, value, before):
    write(value)
    try:
        yield
    finally:
        write(before)


def default_device():
    return changed(torch.set_default_device, "meta", None)


def flags(function, *values, **settings):
    return lambda: changed(lambda v: function(v, **settings), *values)


SETTINGS = {
    "float64": flags(torch.set_default_dtype, torch.float64, torch.float32),
    "float16": flags(torch.set_default_dtype, torch.float16, torch.float32),
    "bfloat16": flags(torch.set_default_dtype, torch.bfloat16, torch.float32),
    "device": default_device,
    "with device": lambda: torch.device("meta"),
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "inference mode": torch.inference_mode,
    "no_grad": torch.no_grad,
    "anomaly": lambda: torch.autograd.set_detect_anomaly(True),
    "deterministic": flags(torch.use_deterministic_algorithms, True, False),
    "mkldnn": flags(torch._C._set_mkldnn_enabled, False, True),
    "medium": flags(torch.set_float32_matmul_precision, "medium", "highest"),
    "sdpa": flags(torch.backends.cuda.enable_flash_sdp, False, True),
    "denormals": flags(torch.set_flush_denormal, True, False),
    "three threads": flags(torch.set_num_threads, 3, torch.get_num_threads()),
}


def settings():
    """What the tests below change, as it is."""
    return (
        torch.get_default_dtype(), torch.get_default_device(), torch.is_autocast_enabled("cpu"),
        torch.is_inference_mode_enabled(), torch.is_grad_enabled(), torch.are_deterministic_algorithms_enabled(),
        torch._C._get_mkldnn_enabled(), torch.get_float32_matmul_precision(), torch.get_num_threads(),
        torch.backends.cuda.flash_sdp_enabled(), torch._C._len_torch_function_stack(),
    )  # fmt: skip


SLOW = "deterministic"  # torch loads more for it


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n == SLOW else n for n in SETTINGS])
def test_an_episode_is_the_same_whatever_is_set_in_torch(small, plain, name):
    with SETTINGS[name]():
        before = settings()
        got = episode(small, picture())
        assert settings() == before
    assert got == plain


TOGETHER = "float64", "autocast", "device", "inference mode", "medium", "three threads"


@pytest.mark.slow
def test_an_episode_of_nano_is_the_same_with_much_of_it_set_at_once(nano):
    expected = episode(nano, nano.starts[0])
    with ExitStack() as stack:
        for name in TOGETHER:
            stack.enter_context(SETTINGS[name]())
        assert episode(nano, nano.starts[0]) == expected


@pytest.mark.parametrize("name", ["float64", "device", "autocast", "inference mode", "medium"])
def test_a_world_loads_the_same_whatever_is_set_in_torch(tiny, name, tmp_path):
    def run(seen):
        world = World.load(tiny)
        state, _ = drive(world, world.begin(world.scene(picture())), MOVES[0])
        state.save(tmp_path / f"{seen}.state")
        after, clips = drive(world, WorldState.load(tmp_path / f"{seen}.state", world), MOVES[1])
        return clips[0].latents.numpy().tobytes(), after

    forget_worlds()
    expected, _ = run("plain")
    forget_worlds()
    with SETTINGS[name]():
        got, state = run("changed")
    assert got == expected
    state.slots[0].frame.add_(1)  # no tensor of inference mode


def forget_worlds():
    from sanawm_env.world import world

    world._kept.clear()
    world._worlds.clear()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return write_tiny_world(tmp_path_factory.mktemp("tiny") / "tiny")


@pytest.fixture
def tiny(made, tmp_path):
    return Path(shutil.copytree(made, tmp_path / "tiny"))


def test_settings_come_back_after_an_error():
    def fail():
        assert torch.get_default_dtype() == torch.float32 and not torch.is_autocast_enabled("cpu")
        raise LookupError

    with ExitStack() as stack:
        for name in ("float64", "autocast", "device", "medium", "three threads"):
            stack.enter_context(SETTINGS[name]())
        before = settings()
        with pytest.raises(LookupError):
            run_isolated(fail)
        assert settings() == before


def test_what_comes_out_are_plain_tensors(nano):
    with torch.inference_mode():
        state, (clip,) = drive(nano, nano.begin(nano.scene(picture(77))), MOVES[0])
    for tensor in (clip.frames, clip.latents, state.slots[0].frame, state.slots[0].scene.conditions.image_latent):
        assert not tensor.is_inference() and not tensor.requires_grad
    weight = torch.ones((), requires_grad=True)
    (clip.latents * weight).sum().backward()
    assert weight.grad is not None


def test_no_generator_of_the_program_is_read_or_moved(small, plain):
    torch.manual_seed(5), np.random.seed(5), random.seed(5)
    before = torch.get_rng_state(), np.random.get_state()[1].tobytes(), random.getstate()
    assert episode(small, picture()) == plain
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1].tobytes(), random.getstate()) == before[1:]


def test_a_call_that_changes_the_process_runs_alone():
    inside, go, seen = threading.Event(), threading.Event(), []

    def first():
        run_isolated(lambda: (inside.set(), go.wait(), seen.append(("first", torch.get_default_dtype()))))

    def second():
        run_isolated(lambda: seen.append(("second", torch.get_default_dtype())))

    with SETTINGS["float64"]():
        threads = [threading.Thread(target=first)]
        threads[0].start()
        assert inside.wait(60)
        threads.append(threading.Thread(target=second))
        threads[1].start()
        go.set()
        for thread in threads:
            thread.join(60)
        assert torch.get_default_dtype() == torch.float64
    assert seen == [("first", torch.float32), ("second", torch.float32)]


def test_threads_are_the_worlds_own(nano):
    assert world_threads() == run_isolated(torch.get_num_threads) == THREADS
    assert run_isolated(torch.get_num_threads, 3) == 3
    with with_torch_threads(1):
        assert world_threads(3) == torch.get_num_threads() == run_isolated(torch.get_num_threads, 3) == 1
    for wrong in (0, -1, True, 1.5, 10**6, "2"):
        with pytest.raises(ValueError, match="threads must be"):
            World.load("nano", threads=wrong)


# --- forked processes ---


def _go_on(world, state):
    return drive(world, state, MOVES[1])[1][0].frames.numpy().tobytes(), threading.get_ident()


@pytest.fixture
def openmp():
    """OpenMP's threads exist, however few the tests are run with."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    torch.randn(300, 300) @ torch.randn(300, 300)
    yield
    torch.set_num_threads(before)


@pytest.mark.slow
@FORKS
@pytest.mark.parametrize("threads", [None, 2])
def test_a_forked_process_goes_on_with_the_world_it_was_given(openmp, threads):
    nano = World.load("nano", threads=threads)
    state, _ = drive(nano, nano.begin(nano.scene(nano.starts[0]), 1), MOVES[0])
    expected, _ = _go_on(nano, state)
    process = multiprocessing.get_context("fork").Process
    queue = multiprocessing.get_context("fork").Queue()
    child = process(target=lambda: queue.put(_go_on(nano, state)[0] == expected))
    child.start()
    assert queue.get(timeout=120)
    child.join(60)
    assert child.exitcode == 0


@pytest.mark.slow
@FORKS
def test_forked_environments_step(openmp):
    env = gymnasium.make_vec("SanaWM/Explore-v0", num_envs=2, vectorization_mode="async")
    try:
        env.reset(seed=0)
        assert env.step(env.action_space.sample())[0]
    finally:
        env.close()


@FORKS
def test_locks_are_open_in_a_forked_process():
    lock, held, let_go = Lock(), threading.Event(), threading.Event()

    def hold():
        with lock.held():
            held.set()
            let_go.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    try:
        held.wait()
        pid = os.fork()
        if not pid:
            with lock.held():
                os._exit(7)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
    finally:
        let_go.set()
        thread.join()


def test_cuda_in_a_forked_process_is_refused_in_a_sentence(monkeypatch):
    from sanawm_env.world.world import _check_process

    monkeypatch.setattr(torch.cuda, "_is_in_bad_fork", lambda: True)
    _check_process(torch.device("cpu"))
    with pytest.raises(RuntimeError, match='start processes with "spawn"'):
        _check_process(torch.device("cuda", 0))


# --- threads ---


def together(*calls):
    """Results of calls made at once, each in a thread; the first error is raised."""
    barrier, results = threading.Barrier(len(calls)), [None] * len(calls)

    def run(i):
        try:
            barrier.wait()
            results[i] = calls[i]()
        except BaseException as error:
            results[i] = error

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results


def test_loading_a_world_draws_nothing_from_the_programs_generator(tiny):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    World.load(tiny, threads=3)  # a load of its own
    assert torch.equal(torch.get_rng_state(), before)


def test_a_world_is_loaded_once_whoever_asks(tiny, monkeypatch):
    other = tiny.parent / "other name"
    other.symlink_to(tiny)
    monkeypatch.chdir(tiny.parent)
    monkeypatch.setenv("HOME", str(tiny.parent))
    names = tiny, str(tiny), "tiny", "./tiny", other, "~/tiny"
    worlds = together(*(lambda name=name: World.load(name) for name in names))
    assert len({id(world) for world in worlds}) == 1
    assert World.load(tiny, threads=1) is not worlds[0]


def test_a_retrained_world_is_not_served_stale(tiny):
    before = World.load(tiny)
    (tiny / "config.json").write_text(replace(TINY, fps=8).to_json())
    after = World.load(tiny)
    assert after.weights_hash != before.weights_hash and World.load(tiny) is after


def test_a_failed_load_is_not_kept(tiny):
    weights = (tiny / "network.safetensors").read_bytes()
    (tiny / "network.safetensors").unlink()
    with pytest.raises(FileNotFoundError):
        World.load(tiny)
    (tiny / "network.safetensors").write_bytes(weights)
    World.load(tiny)


@pytest.mark.slow
def test_threads_on_one_world_get_what_one_alone_gets(nano):
    images = nano.starts[0], picture(1)
    alone = [episode(nano, image) for image in images]
    assert together(*(lambda image=image: episode(nano, image) for image in images)) == alone


def test_scenes_are_made_by_many_threads(tiny):
    world = World.load(tiny)

    def many(seed):
        return [world.scene(picture(1000 * seed + i)).key for i in range(100)]

    assert len({key for keys in together(*(lambda s=s: many(s) for s in range(4))) for key in keys}) == 400
    assert len(world._scenes) == 64
    first, again = together(lambda: world.scene(picture(5)), lambda: world.scene(picture(5)))
    assert first is again


# --- worlds that cannot be ---

CANNOT_BE = [
    ("network", "num_heads", 0), ("network", "depth", 10**9), ("network", "depth", 1.0), ("network", "mlp_ratio", 0),
    ("network", "mlp_ratio", 1.5), ("network", "softmax_every_n", 0), ("network", "text_len", 0),
    ("network", "window", 0), ("network", "hidden_size", True), ("network", "head_dim", "16"),
    ("sampler", "timesteps", [float("nan")]), ("sampler", "guidance_scale", "1"), ("sampler", "timesteps", ["a"]),
    ("workspace", "soft_distance", float("nan")), (None, "spatial_stride", 0), (None, "temporal_stride", 0),
    (None, "temporal_stride", 4),
    (None, "latents_per_chunk", 0), (None, "fps", 0), (None, "fps", float("nan")), (None, "height", 10**9),
    (None, "width", 31), (None, "horizon_chunks", 0), (None, "horizontal_fov", 180), (None, "speed", "fast"),
    (None, "places", {"a": [0, 0, 0, 1e9, 1, 1]}), (None, "name", "x" * 10**5), (None, "network", None),
]  # fmt: skip


@pytest.mark.parametrize(("part", "name", "value"), CANNOT_BE)
def test_a_world_that_cannot_be_is_refused_in_a_line(tiny, part, name, value):
    config = json.loads((tiny / "config.json").read_text())
    (config[part] if part else config)[name] = value
    (tiny / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError) as refused:
        World.load(tiny)
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 500
