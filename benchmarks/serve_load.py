"""What a server costs: environment steps per second, and the seconds of a step, for 1 to 64 clients on this machine.

    python benchmarks/serve_load.py             # some five minutes on two cores

`sanawm serve` runs in a process of its own, with nano on one thread; the clients are threads here, each with one
environment and one connection, stepping as fast as they are answered. A step is taken apart: how long it waited for its
batch, how long the batch took, and the rest, which is transport (packing, sockets, the observation, and whatever else
has the processor). The rate of a local batch of 16 is measured in the same run, in turns with the clients, so that
whatever else the machine does meets both. Numbers are written after each of the rounds.
"""

import subprocess
import sys
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from harness import console, header, numbers_file, parser, show, write

from sanawm_env import SanaWMVectorEnv

LOCAL = 16
CLIENTS = {16: 3, 1: 4, 4: 3, 64: 1}  # steps of each client in a round
ROUNDS = 2
SETTINGS = {"world": "nano", "task": "explore", "obs_mode": "rgb", "max_episode_chunks": 20}
ACTION = np.array([0, 0, 0.3, 0, 0.1, 0], np.float32)


@contextmanager
def server() -> Generator[str]:
    """The address of a server in a process of its own."""
    command = [sys.executable, "-m", "sanawm_env", "serve", "--env", "SanaWM/Explore-v0", "--obs-mode", "rgb"]
    command += ["--max-episode-chunks", "20", "--port", "0", "--sessions", "128"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield process.stdout.readline().split()[0]
    finally:
        process.terminate()
        process.wait()


def local(steps: int) -> float:
    """Environment steps per second of a batch here."""
    envs = SanaWMVectorEnv(LOCAL, **SETTINGS)
    envs.reset(seed=0)
    actions = np.tile(ACTION, (LOCAL, 1))
    begin = time.perf_counter()
    for _ in range(steps):
        envs.step(actions)
    return LOCAL * steps / (time.perf_counter() - begin)


def served(url: str, clients: int, steps: int) -> tuple[float, np.ndarray]:
    """Environment steps per second of so many clients, and of each step (clients * steps, 4): seconds in all, waited
    for its batch and of the batch, and how many episodes were in it."""
    envs: list[Any] = [gym.make("SanaWM/Remote-v0", url=url).unwrapped for _ in range(clients)]
    for i, env in enumerate(envs):
        env.reset(seed=i)
    together, rows = threading.Barrier(clients + 1), np.zeros((clients, steps, 4))

    def walk(i: int) -> None:
        together.wait()
        for step in range(steps):
            begin = time.perf_counter()
            envs[i].step(ACTION)
            times = envs[i].simulator.connection.times
            rows[i, step] = time.perf_counter() - begin, times["waited"], times["took"], times["batch"]

    threads = [threading.Thread(target=walk, args=(i,)) for i in range(clients)]
    for thread in threads:
        thread.start()
    together.wait()
    begin = time.perf_counter()
    for thread in threads:
        thread.join()
    took = time.perf_counter() - begin
    for env in envs:
        env.close()
    return clients * steps / took, rows.reshape(-1, 4)


def summary(clients: int, rates: list[float], rows: np.ndarray, local_rate: float) -> dict[str, Any]:
    """Of all rounds with so many clients."""
    whole, waited, took, batch = rows.T
    parts = {"step": whole, "waited": waited, "batch": took, "transport": whole - waited - took}
    milliseconds = {name: {q: 1e3 * np.percentile(part, int(q[1:])) for q in ("p50", "p99")}
                    for name, part in parts.items()}  # fmt: skip
    rate = float(np.mean(rates))
    return {
        "clients": clients, "steps": len(rows), "steps_per_second": rate, "over_local": rate / local_rate,
        "episodes_in_batch": float(batch.mean()), "ms": milliseconds,
    }  # fmt: skip


def main() -> None:
    options = parser(__doc__).parse_args()
    file = numbers_file(options, "serve_load")
    torch.set_num_threads(1)
    counts, rounds = ({1: 2, 3: 2}, 1) if options.quick else (CLIENTS, ROUNDS)
    local_rates: list[float] = []
    rates: dict[int, list[float]] = {clients: [] for clients in counts}
    rows: dict[int, list[np.ndarray]] = {clients: [] for clients in counts}
    with server() as url:
        for turn in range(rounds):
            for clients, steps in counts.items():
                if clients >= LOCAL or options.quick:
                    local_rates.append(local(1 if options.quick else 2))
                console.print(f"round {turn + 1} of {rounds}: {clients} clients")
                rate, of_steps = served(url, clients, steps)
                rates[clients].append(rate)
                rows[clients].append(of_steps)
            found = [summary(n, rates[n], np.concatenate(rows[n]), float(np.mean(local_rates))) for n in sorted(counts)]
            write(file, header() | {"local_batch": LOCAL, "local_rates": local_rates, "rows": found})
    cells = []
    for row in found:
        whole = [str(row["clients"]), f"{row['steps_per_second']:.1f}", f"{row['over_local']:.0%}"]
        times = [f"{part[q]:.0f}" for part in row["ms"].values() for q in ("p50", "p99")]
        cells.append([*whole, f"{row['episodes_in_batch']:.1f}", *times])
    columns = ["clients", "steps/s", "over local", "in a batch"]
    columns += [f"{name} {q}, ms" for name in found[0]["ms"] for q in ("p50", "p99")]
    show(f"a local batch of {LOCAL}: {np.mean(local_rates):.1f} steps/s", columns, cells)


if __name__ == "__main__":
    main()
