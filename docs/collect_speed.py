"""How much collecting costs: frames a second of `collect` over those of the bare environment, at equal batch.

    python docs/collect_speed.py            # docs/benchmarks/collect_speed.json

Both do the same jobs, in the same batches, one after the other, several times in turn; the ratio is of the medians. The
bare environment throws its frames away.
"""

import json
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import torch
from rich.console import Console
from sanawm_env.agents.collect import collect, here
from sanawm_env.agents.collection import Collection, plan

from sanawm_env.cli.machine import machine_name
from sanawm_env.envs.env import SanaWMEnv
from sanawm_env.recording.dataset import totals
from sanawm_env.recording.episode import begin
from sanawm_env.world.threads import with_torch_threads

OUT = Path(__file__).parent / "benchmarks" / "collect_speed.json"
CASES = ((1, 1), (1, 4), (1, 16), (2, 1), (2, 4))  # torch threads, batch
ROUNDS = 3
EPISODES, CHUNKS = 16, 8


def bare(planned) -> None:
    """Walk all jobs of a plan without keeping anything."""
    batch, jobs = planned.collection.batch, planned.jobs
    for first in range(0, len(jobs), batch):
        group = jobs[first : first + batch]
        envs = [SanaWMEnv(**planned.collection.config.keywords | {"max_episode_chunks": job.chunks}) for job in group]
        for env, job in zip(envs, group, strict=True):
            begin(env, job.start.image, job.seed)
        scripts = [job.script.actions(env, job.chunks, job.draw) for env, job in zip(envs, group, strict=True)]
        with with_torch_threads(planned.collection.threads):
            for actions in zip(*scripts, strict=True):
                episodes, _ = envs[0].simulator.step([env.episode for env in envs], actions)
                for env, episode in zip(envs, episodes, strict=True):
                    env.episode = episode


def main() -> None:
    rows = []
    quiet = Console(quiet=True)
    for threads, batch in CASES:
        collection = Collection(
            scenes=[{"sample": EPISODES}], cameras=["random-walk"], chunks=CHUNKS, action_mode="twist", batch=batch,
            threads=threads,
        )  # fmt: skip
        seconds = {"bare": [], "collect": []}
        with tempfile.TemporaryDirectory() as folder:
            planned = plan(collection, folder)
            bare(planned)  # warm
            for _ in range(ROUNDS):
                begun = time.perf_counter()
                bare(planned)
                seconds["bare"].append(time.perf_counter() - begun)
                out = Path(folder) / "out"
                begun = time.perf_counter()
                dataset = collect(collection, out, console=quiet, run=here)
                seconds["collect"].append(time.perf_counter() - begun)
                sums = totals(dataset.rows())
                shutil.rmtree(out)
        frames = EPISODES * CHUNKS * planned.world.config.chunk_frames
        assert sums["episodes"] == EPISODES and sums["frames"] == frames + EPISODES
        rates = {name: frames / statistics.median(times) for name, times in seconds.items()}
        row = {"threads": threads, "batch": batch, **{f"{name}_fps": rate for name, rate in rates.items()}}
        row |= {"ratio": rates["collect"] / rates["bare"], "bytes_per_frame": sums["bytes"] / sums["frames"]}
        rows.append(row)
        print(json.dumps(row))
    numbers = {"machine": machine_name(torch.device("cpu")), "torch": torch.__version__, "episodes": EPISODES}
    OUT.write_text(json.dumps(numbers | {"chunks": CHUNKS, "rounds": ROUNDS, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
