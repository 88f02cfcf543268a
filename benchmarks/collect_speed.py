"""How much collecting costs: frames a second of `collect` over those of the bare environment, at equal batch.

    python benchmarks/collect_speed.py

Both do the same jobs, in the same batches, one after the other, several times in turn; the ratio is of the medians. The
bare environment throws its frames away.
"""

import shutil
import tempfile
from pathlib import Path

from harness import console, header, medians, numbers_file, parser, show, write
from rich.progress import track
from sanawm_env.agents.collect import collect, here
from sanawm_env.agents.collection import Collection, plan

from sanawm_env.envs.env import SanaWMEnv
from sanawm_env.recording.dataset import Dataset, totals
from sanawm_env.recording.episode import begin
from sanawm_env.system.terminal import literal_console
from sanawm_env.world.threads import with_torch_threads

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


def measure(threads: int, batch: int, episodes: int, chunks: int) -> dict[str, float]:
    collection = Collection(
        scenes=[{"sample": episodes}],
        cameras=["random-walk"],
        chunks=chunks,
        action_mode="twist",
        batch=batch,
        threads=threads,
    )
    with tempfile.TemporaryDirectory() as folder:
        planned, out = plan(collection, folder), Path(folder) / "out"

        def collected() -> None:
            shutil.rmtree(out, ignore_errors=True)
            collect(collection, out, console=literal_console(quiet=True), run=here)

        bare(planned)  # warm
        seconds = medians({"bare": lambda: bare(planned), "collect": collected}, ROUNDS)
        sums = totals(Dataset.open(out).rows())
    frames = episodes * chunks * planned.world.config.chunk_frames
    assert sums["episodes"] == episodes and sums["frames"] == frames + episodes
    return {
        "threads": threads,
        "batch": batch,
        **{f"{name}_fps": frames / passed for name, passed in seconds.items()},
        "ratio": seconds["bare"] / seconds["collect"],
        "bytes_per_frame": sums["bytes"] / sums["frames"],
    }


def main() -> None:
    options = parser(__doc__).parse_args()
    cases, episodes, chunks = (CASES[:2], 4, 2) if options.quick else (CASES, EPISODES, CHUNKS)
    rows = [measure(*case, episodes, chunks) for case in track(cases, "collecting", console=console)]
    cells = [
        [str(r["threads"]), str(r["batch"]), f"{r['bare_fps']:.0f}", f"{r['collect_fps']:.0f}", f"{r['ratio']:.0%}"]
        for r in rows
    ]
    show("frames per second", ["threads", "batch", "bare", "collected", "collected over bare"], cells)
    numbers = {"episodes": episodes, "chunks": chunks, "rounds": ROUNDS, "rows": rows}
    write(numbers_file(options, "collect_speed"), header() | numbers)


if __name__ == "__main__":
    main()
