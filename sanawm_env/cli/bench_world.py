"""Time a world's step on this machine by stage and batch size, and its operations on states."""

import copy
import time
from collections.abc import Callable, Sequence
from datetime import date
from statistics import median
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from sanawm_env.camera.twist import hold
from sanawm_env.cli.machine import machine_name
from sanawm_env.engines.sanawm.config import SanaWorldConfig
from sanawm_env.engines.sanawm.memory import predict_memory
from sanawm_env.envs.env import SanaWMEnv
from sanawm_env.system.terminal import table
from sanawm_env.world.engine import Engine
from sanawm_env.world.folders import world_folder
from sanawm_env.world.images import ImageSource
from sanawm_env.world.state import stack
from sanawm_env.world.threads import with_torch_threads
from sanawm_env.world.world import World

WARM_UP = 3  # chunks until the attention window is full and shapes repeat


def timed(engine: Engine) -> tuple[Engine, dict[str, float]]:
    """A copy of an engine that adds up the seconds of its stages, network and codec; and these. An engine without
    stages counts as network.
    """
    seconds, other = {"network": 0.0, "codec": 0.0}, copy.copy(engine)

    def counted(stage: str, call: Callable) -> Callable:
        def run(*args: Any) -> Any:
            begin = time.perf_counter()
            result = call(*args)
            synchronize(engine.device)
            seconds[stage] += time.perf_counter() - begin
            return result

        return run

    stages = {"imagine": "network", "decode": "codec"} if hasattr(engine, "imagine") else {"advance": "network"}
    for method, stage in stages.items():
        setattr(other, method, counted(stage, getattr(other, method)))
    return other, seconds


def bench_world(
    name: str, threads: int, repeats: int, batches: Sequence[int], device: str, console: Console
) -> dict[str, Any]:
    """Measure, and print two tables.

    Times are medians. On a GPU, the largest allocated memory is measured too, beside the predicted one. A matrix
    product is timed in the same run, as a measure of the machine.

    Args:
        name: name or folder of the world.
        threads: of torch.
        repeats: measurements of which a median is taken.
        batches: batch sizes.
        device: of torch.
        console: where tables are printed.

    Returns:
        The numbers as plain values.
    """
    with with_torch_threads(threads):
        return _measure(name, threads, repeats, batches, device, console)


def _measure(
    name: str, threads: int, repeats: int, batches: Sequence[int], device: str, console: Console
) -> dict[str, Any]:
    loaded = World.load(name, device)
    engine, seconds = timed(loaded.engine)
    world = World(engine, loaded.weights_hash, loaded.starts)
    numbers: dict[str, Any] = {
        "world": name,
        "weights_hash": world.weights_hash,
        "device": str(world.device),
        "machine": machine_name(world.device),
        "torch": torch.__version__,
        "threads": threads,
        "date": str(date.today()),
        "matmul_tflops": _matmul_tflops(world),
        "batch": {},
    }
    title = f"{name}, {threads} threads"
    cuda = world.device.type == "cuda"
    columns = ("batch", "ms/step", "network", "codec", "rest", "steps/s", "frames/s", "GB pred.", *["GB"] * cuda)
    steps = Table(*columns, title=title)
    for batch in batches:
        with console.status(f"batch {batch}"):
            if cuda:
                torch.cuda.reset_peak_memory_stats(world.device)
            row = numbers["batch"][batch] = _steps(world, seconds, batch, repeats)
            cells = [f"{value:.1f}" for value in row.values()]
            if isinstance(world.config, SanaWorldConfig):
                row["predicted_bytes"] = predict_memory(world.config, world_folder(name), batch=batch).peak
            if cuda:
                row["peak_bytes"] = torch.cuda.max_memory_allocated(world.device)
        steps.add_row(str(batch), *cells, *(f"{row[key] / 1e9:.2f}" for key in row if key.endswith("_bytes")))
    numbers |= _operations(world, repeats)
    console.print(steps)
    operations = ("env_step_ms", "snapshot_ms", "restore_ms", "fork_ms")
    costs = [
        *((name.removesuffix("_ms").replace("_", " "), f"{numbers[name]:.3f} ms") for name in operations),
        ("state", f"{numbers['state_bytes'] / 1e6:.2f} MB"),
        ("matrix product, for comparison", f"{numbers['matmul_tflops']:.2f} TFLOP/s"),
        ("snapshot of the next step, on top", f"{numbers['snapshot_added_bytes'] / 1e6:.2f} MB"),
    ]
    console.print(table("operation", "cost", rows=costs))
    return numbers


def _steps(world: World, seconds: dict[str, float], batch: int, repeats: int) -> dict[str, float]:
    """The median step of `batch` episodes, by stage; steps/s and frames/s count all episodes."""
    state = world.begin([world.scene(_start(world))] * batch, seed=0)
    twist = np.array([0, 0, 0.3, 0, 0.1, 0])
    rows = []
    for i in range(WARM_UP + repeats):
        poses = np.stack([hold(slot.c2w, twist) for slot in state.slots])
        seconds.update(dict.fromkeys(seconds, 0.0))
        begin = time.perf_counter()
        state, _ = world.advance(state, poses)
        synchronize(world.device)
        total = time.perf_counter() - begin
        if i >= WARM_UP:
            stages = seconds["network"], seconds["codec"]
            rows.append((total, *stages, total - sum(stages)))
    total, network, codec, rest = (median(column) for column in zip(*rows, strict=True))
    return {
        "ms": total * 1e3,
        "network_ms": network * 1e3,
        "codec_ms": codec * 1e3,
        "rest_ms": rest * 1e3,
        "steps_per_s": batch / total,
        "frames_per_s": batch * world.config.chunk_frames / total,
    }


def _operations(world: World, repeats: int) -> dict[str, float]:
    """The cost of snapshot, restore and a fork into eight, and the size of states."""
    env = SanaWMEnv(world, scenes=[_start(world)], max_episode_chunks=10**9)
    env.reset(seed=0)
    action = np.array([0, 0, 0.4, 0, 0.2, 0], np.float32)
    for _ in range(WARM_UP):
        env.step(action)
    before = env.snapshot()
    steps = []
    for _ in range(repeats):
        env.restore(before)
        steps.append(_time(lambda: env.step(action)))
    after = env.snapshot()
    return {
        "env_step_ms": median(steps) * 1e3,
        "snapshot_ms": median(_time(env.snapshot) for _ in range(repeats)) * 1e3,
        "restore_ms": median(_time(lambda: env.restore(before)) for _ in range(repeats)) * 1e3,
        "fork_ms": median(_time(lambda: stack([before.state] * 8)) for _ in range(repeats)) * 1e3,
        "state_bytes": before.state.nbytes,
        "snapshot_added_bytes": stack([before.state, after.state]).nbytes - before.state.nbytes,
    }


def _matmul_tflops(world: World) -> float:
    """The rate of a square matrix product in the world's dtype on its device."""
    size = 8192 if world.device.type == "cuda" else 1024
    a, b = (
        torch.randn(size, size, device=world.device).to(getattr(torch, getattr(world.config, "dtype", "float32")))
        for _ in range(2)
    )

    def product() -> None:
        a @ b
        synchronize(world.device)

    _time(product)
    return 2 * size**3 / median(_time(product) for _ in range(10)) / 1e12


def _start(world: World) -> ImageSource:
    return world.starts[0] if world.starts else np.zeros((8, 8, 3), np.uint8)


def _time(call: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def synchronize(device: torch.device) -> None:
    """Wait for all work of a device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
