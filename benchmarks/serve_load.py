"""What a server costs: environment steps per second, and the seconds of a step, for 1 to 64 clients on this machine;
and what is lost when one is killed.

    python benchmarks/serve_load.py                # some five minutes
    python benchmarks/serve_load.py --threads 2    # of torch, in the server and here

`sanawm serve` runs in a process of its own; the clients are threads here, each with one environment and one connection,
stepping as fast as they are answered. A step is taken apart: how long it waited for its batch, how long the batch took,
and the rest, which is transport (packing, sockets, the observation, and whatever else has the processor). Before and
after each turn of the clients a local batch of 16 steps, and a turn's rate is compared with the mean of those two, so
that whatever else the machine does meets both; the median of all turns is told. Turns go on for `--seconds`; numbers
are written after each round.

Then one client of a server with `--keep` steps, the server is killed and another is started: how long a state takes to
write, how many steps are taken again, and how long the client waits.
"""

import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple
from urllib.request import urlopen

import gymnasium as gym
import numpy as np
import torch
from harness import console, header, numbers_file, parser, show, write

from sanawm_env import SanaWMVectorEnv

LOCAL, LOCAL_STEPS = 16, 2
TURNS = {16: 2, 1: 8, 4: 4, 64: 1}  # clients, and steps of each in a turn
ROUNDS = (16, 1, 16, 4, 16, 64)  # whose turn it is, in a round
MOST_STEPS = 39  # of an environment: nano was found good for forty
SETTINGS = {"world": "nano", "task": "explore", "obs_mode": "rgb", "max_episode_chunks": MOST_STEPS}
ACTION = np.array([0, 0, 0.3, 0, 0.1, 0], np.float32)


@contextmanager
def server(threads: int, *options: str) -> Generator[tuple[str, subprocess.Popen]]:
    """The address of a server in a process of its own, and that."""
    command = [sys.executable, "-m", "sanawm_env", "serve", "--env", "SanaWM/Explore-v0", "--obs-mode", "rgb"]
    command += ["--max-episode-chunks", str(MOST_STEPS), "--sessions", "128", "--threads", str(threads)]
    process = subprocess.Popen([*command, *options], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield process.stdout.readline().split()[0], process
    finally:
        process.terminate()
        process.wait()


def remote(url: str) -> Any:
    return gym.make("SanaWM/Remote-v0", url=url).unwrapped


class Local:
    """A batch here."""

    def __init__(self, threads: int):
        self.envs = SanaWMVectorEnv(LOCAL, **SETTINGS, threads=threads)
        self.left = 0

    def rate(self, steps: int) -> float:
        """Environment steps per second."""
        if self.left < steps:
            self.envs.reset(seed=0)
            self.left = MOST_STEPS - 1
            self._step()  # the first one has a frame more
        begin = time.perf_counter()
        for _ in range(steps):
            self._step()
        self.left -= steps
        return LOCAL * steps / (time.perf_counter() - begin)

    def _step(self) -> None:
        self.envs.step(np.tile(ACTION, (LOCAL, 1)))


class Clients:
    """So many clients of a server, each with an environment."""

    def __init__(self, url: str, count: int):
        self.envs = [remote(url) for _ in range(count)]
        self.left = 0

    def turn(self, steps: int) -> tuple[float, np.ndarray]:
        """Environment steps per second of all, and of each step (N * steps, 4): seconds in all, waited for its batch
        and of the batch, and how many episodes were in it."""
        if self.left < steps:
            for i, env in enumerate(self.envs):
                env.reset(seed=i)
            self._steps(1)
            self.left = MOST_STEPS - 1
        self.left -= steps
        begin = time.perf_counter()
        rows = self._steps(steps)
        return len(rows) / (time.perf_counter() - begin), rows

    def _steps(self, steps: int) -> np.ndarray:
        rows = np.zeros((len(self.envs), steps, 4))

        def walk(i: int) -> None:
            for step in range(steps):
                begin = time.perf_counter()
                self.envs[i].step(ACTION)
                times = self.envs[i].simulator.connection.times
                rows[i, step] = time.perf_counter() - begin, times["waited"], times["took"], times["batch"]

        threads = [threading.Thread(target=walk, args=(i,)) for i in range(len(self.envs))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return rows.reshape(-1, 4)


class Turn(NamedTuple):
    """What came of one: steps per second, over a local batch before and after it, and its steps."""

    rate: float
    over_local: float
    rows: np.ndarray


def summary(clients: int, turns: Sequence[Turn]) -> dict[str, Any]:
    """Of all turns of so many clients."""
    rows = np.concatenate([turn.rows for turn in turns])
    whole, waited, took, batch = rows.T
    parts = {"step": whole, "waited": waited, "batch": took, "transport": whole - waited - took}
    milliseconds = {name: {q: 1e3 * np.percentile(part, int(q[1:])) for q in ("p50", "p99")}
                    for name, part in parts.items()}  # fmt: skip
    return {
        "clients": clients, "steps": len(rows), "steps_per_second": median(turn.rate for turn in turns),
        "over_local": median(turn.over_local for turn in turns), "over_local_turns": [t.over_local for t in turns],
        "episodes_in_batch": float(batch.mean()), "ms": milliseconds,
    }  # fmt: skip


def measure_load(threads: int, rounds: Sequence[Sequence[int]], seconds: float) -> Generator[dict[str, Any]]:
    """Numbers after each round, until there are all or the time is over."""
    until, turns, local_rates = time.monotonic() + seconds, {}, []
    with ExitStack() as stack:
        url, _ = stack.enter_context(server(threads, "--port", "0"))
        here, clients = Local(threads), {}
        before = here.rate(LOCAL_STEPS)
        for i, round in enumerate(rounds, 1):
            for count in round:
                if time.monotonic() > until and turns:
                    break
                console.print(f"round {i} of {len(rounds)}: {count} clients")
                if count not in clients:
                    clients[count] = Clients(url, count)
                rate, rows = clients[count].turn(TURNS.get(count, 2))
                after = here.rate(LOCAL_STEPS)
                turns.setdefault(count, []).append(Turn(rate, 2 * rate / (before + after), rows))
                local_rates.append(after)
                before = after
            rows_ = [summary(count, of_count) for count, of_count in sorted(turns.items())]
            yield {"local_batch": LOCAL, "local_rates": local_rates, "rows": rows_}
        for each in clients.values():
            for env in each.envs:
                env.close()


def measure_kill(threads: int, every: int, steps: int) -> dict[str, Any]:
    """What a server that keeps one of so many steps costs, and what is lost when it is killed. steps: after which that
    is; the last ones are not kept."""
    with tempfile.TemporaryDirectory() as folder:
        keep = ("--keep", folder, "--keep-every", str(every))
        with server(threads, *keep, "--port", "0") as (url, process):
            port = url.rpartition(":")[2]
            env = remote(url)
            env.reset(seed=0)
            transport = []
            for _ in range(steps):
                begin = time.perf_counter()
                env.step(ACTION)
                times = env.simulator.connection.times
                transport.append(time.perf_counter() - begin - times["waited"] - times["took"])
            files = [path.stat().st_size for path in Path(folder).rglob("*.safetensors")]
            process.send_signal(signal.SIGKILL)
            process.wait()
        begin = time.perf_counter()
        with server(threads, *keep, "--port", port) as (url, _):
            started = time.perf_counter() - begin
            env.step(ACTION)
            answered = time.perf_counter() - begin
            page = urlopen(url.replace("ws", "http") + "/metrics").read().decode()
            env.close()
    taken = re.search(r"^sanawm_steps_total (\S+)", page, re.M)
    assert taken is not None
    kept = [seconds for i, seconds in enumerate(transport, 1) if i % every == 0]
    return {
        "every": every, "steps_before": steps, "steps_again": int(float(taken[1])) - 1, "state_mb": max(files) / 1e6,
        "kept_step_transport_ms": 1e3 * median(kept), "start_seconds": started, "answer_seconds": answered - started,
    }  # fmt: skip


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--threads", type=int, default=1, help="of torch, in the server and in the local batch")
    options.add_argument("--seconds", type=float, default=240.0, help="after which no turn begins")
    options = options.parse_args()
    file = numbers_file(options, "serve_load")
    torch.set_num_threads(options.threads)
    rounds = [(1, 3)] if options.quick else [ROUNDS] * 6
    kept = [measure_kill(options.threads, every, steps) for every, steps in ((1, 3), (4, 7))]
    found: dict[str, Any] = {}
    for found in measure_load(options.threads, rounds, options.seconds):
        write(file, header() | found | {"kept": kept})
    cells = []
    for row in found["rows"]:
        whole = [str(row["clients"]), f"{row['steps_per_second']:.1f}", f"{row['over_local']:.0%}"]
        times = [f"{part[q]:.0f}" for part in row["ms"].values() for q in ("p50", "p99")]
        cells.append([*whole, f"{row['episodes_in_batch']:.1f}", *times])
    columns = ["clients", "steps/s", "over local", "in a batch"]
    columns += [f"{name} {q}, ms" for name in found["rows"][0]["ms"] for q in ("p50", "p99")]
    show(f"a local batch of {LOCAL}: {median(found['local_rates']):.1f} steps/s", columns, cells)
    show("after a kill", list(kept[0]), [[f"{value:.3g}" for value in row.values()] for row in kept])


if __name__ == "__main__":
    main()
