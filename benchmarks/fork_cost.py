"""What a future costs: forked here, deep-copied or replayed from the start as one must elsewhere.

    python benchmarks/fork_cost.py              # two minutes on one core

From one snapshot, eight steps into an episode, n futures of one step are imagined: by `fork` and one batched step; with
n deep copies of the environment that step one by one; and by resetting n times and taking the eight steps again, one
environment after the other and all n in one batch. Medians over repeats, one thread, on a core that does nothing else.

A replay takes nine steps where a fork takes one, so the ratio is the length of the past plus one, and grows with it.
Deep copies are nearly as fast here because `copy.deepcopy` of this environment is itself a fork: states are values.
"""

import copy

import numpy as np
import torch
from harness import console, header, medians, numbers_file, parser, show, write
from rich.progress import track

from sanawm_env import SanaWMEnv, SanaWMVectorEnv

FUTURES, PAST, REPEATS = (1, 8, 64), 8, 3


def measure(n: int, rng: np.random.Generator, repeats: int) -> dict[str, float]:
    """Futures per second of each way."""
    past, action = rng.uniform(-0.3, 0.3, (PAST, 6)), rng.uniform(-0.3, 0.3, (n, 6)).astype(np.float32)
    settings = {"world": "nano", "obs_mode": "rgb", "max_episode_chunks": 20}
    env = SanaWMEnv(**settings)
    envs = SanaWMVectorEnv(n, autoreset_mode="Disabled", **settings)
    env.reset(seed=0)
    for a in past:
        env.step(a)
    here = env.snapshot()

    def forked():
        envs.restore([here] * n)
        envs.step(action)

    def copied():
        for i in range(n):
            copy.deepcopy(env).step(action[i])

    def replayed():
        for i in range(n):
            other.reset(seed=0)
            for a in (*past, action[i]):
                other.step(a)

    def replayed_in_a_batch():
        envs.reset(seed=[0] * n)
        for a in (*(np.tile(a, (n, 1)) for a in past), action):
            envs.step(a)

    other = SanaWMEnv(**settings)
    ways = {"forked": forked, "deep copies": copied, "replayed": replayed, "replayed in a batch": replayed_in_a_batch}
    forked()
    return {name: n / seconds for name, seconds in medians(ways, 1 if n == 64 else repeats).items()}


def main() -> None:
    options = parser(__doc__).parse_args()
    torch.set_num_threads(1)
    futures, repeats = ((1, 2), 1) if options.quick else (FUTURES, REPEATS)
    rng = np.random.default_rng(0)
    rates = {str(n): measure(n, rng, repeats) for n in track(futures, "imagining", console=console)}
    rows = [
        [n, *(f"{x:.1f}" for x in row.values()), f"{row['forked'] / row['replayed']:.1f}"] for n, row in rates.items()
    ]
    show("futures per second, one step each", ["futures", *rates["1"], "fork over replay"], rows)
    write(numbers_file(options, "fork_cost"), header() | {"past": PAST, "futures_per_second": rates})


if __name__ == "__main__":
    main()
