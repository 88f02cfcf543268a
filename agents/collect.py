"""Collect datasets: episodes of every combination of scenes, cameras and seeds, predicted in batches.

    collect(Collection(scenes=["starts"], cameras=["orbit:radius=1.5", "w-48,dw-48"], seeds=2), "runs/orbits")

Each episode is a job. The id of a job is a hash of everything that decides the episode, so the same call continues
after an interruption and does no job twice. While the world predicts the next step, a thread encodes the last one.
"""

import os
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from sanawm_env.agents.collection import GATES, KEYFRAMES, Collection, Job, pending, plan

from sanawm_env.envs.env import SanaWMEnv
from sanawm_env.metrics.lasting import drift, loop_closure
from sanawm_env.recording.dataset import Dataset, Row, Shard, clean
from sanawm_env.recording.episode import EpisodeWriter, Step, begin
from sanawm_env.simulation.simulator import MOST_CHUNKS
from sanawm_env.system.files import reason
from sanawm_env.system.saving import check_target, only_writer
from sanawm_env.system.terminal import literal_console
from sanawm_env.world.threads import with_torch_threads

CLAIM = "collect{}.lock"


def collect(
    collection: Collection | str | os.PathLike,
    out: str | os.PathLike,
    *,
    console: Console | None = None,
    part: tuple[int, int] = (0, 1),
    run: "Runner | None" = None,
) -> Dataset:
    """Make the episodes of a collection that the folder `out` does not have yet.

    Args:
        collection: a `Collection`, or the path of its YAML file.
        out: folder of the dataset; made if missing.
        console: where progress is shown; None for stderr.
        part: (i, n) does every n-th job from the i-th, for several machines that share a disk.
        run: what does the jobs: `here` (this process; the default) or a `collect_ray.Cluster`.

    Returns:
        The dataset in `out`.

    Raises:
        ValueError: for a collection that cannot be made, or a folder that holds a dataset with other settings.
        TypeError: for settings of the wrong type.
        FileNotFoundError: for a YAML file, start image or trajectory that does not exist.
        NotADirectoryError: where `out` is a file.
        BlockingIOError: while another process collects the same part into `out`.
        OSError: for example when the disk is full; finished episodes stay readable.
    """
    if not isinstance(collection, Collection):
        collection = Collection.load(collection)
    console = console or literal_console(stderr=True)
    check_target(out, folder=True)
    planned = plan(collection, out)
    dataset = Dataset.create(out, planned.header)
    index, parts = part
    claim = CLAIM.format("" if parts == 1 else f"-{index}-of-{parts}")
    try:
        with only_writer(dataset.folder, claim):
            clean(dataset)
            mine = planned.jobs[index::parts]
            jobs = pending(mine, dataset)
            try:
                with closing((run or here)(collection, jobs, dataset)) as events:
                    _follow(mine, jobs, events, planned.world.config.chunk_frames, console)
            finally:
                clean(dataset)
    except BlockingIOError:
        raise BlockingIOError(f"Another process collects into {out}: wait for it, or give another folder.") from None
    except OSError as error:
        done = len(dataset.finished())
        raise OSError(f"{error}. {done} episodes in {out} are finished; the same command continues.") from error
    return dataset


Event = Row | int
"""The row of an episode that was finished or rejected, or a number of steps that were taken."""
Runner = Callable[[Collection, Sequence[Job], Dataset], Generator[Event, None, None]]
"""A function that does the jobs of a collection into a dataset, and yields events."""


def here(collection: Collection, jobs: Sequence[Job], dataset: Dataset) -> Generator[Event, None, None]:
    """Do jobs in this process; a `Runner`."""
    if not jobs:
        return
    with with_torch_threads(collection.threads), Shard(dataset) as shard:
        yield from work(collection, jobs, shard)


def work(collection: Collection, jobs: Sequence[Job], shard: Shard) -> Generator[Event, None, None]:
    """Do jobs, and write their episodes into a shard. Episodes that are unfinished when this ends, for any reason, are
    removed.

    Args:
        collection: the collection that the jobs are of.
        jobs: in the order in which they are begun.
        shard: an entered `Shard`.

    Yields:
        `Event`s.

    Raises:
        ValueError: for a script that yields no action, or an action that the environment does not take.
        OSError: for files that cannot be written.
    """
    waiting, running, unfinished = deque(jobs), list[_Run](), list[_Run]()
    background = _Background()
    try:
        while waiting or running:
            while waiting and len(running) < collection.batch:
                job = waiting.popleft()
                try:
                    env = beginning(collection, job)
                except (ValueError, TypeError, OSError) as error:  # of its image: the other jobs have theirs
                    background.submit(_reject, shard, job, reason(error))
                    continue
                running.append(_Run(collection, job, shard, env))
                unfinished.append(running[-1])
            asked = [(run, action) for run in running if (action := next(run.actions, None)) is not None]
            for run, action, reward in stepped(asked):
                background.submit(run.writer.add, Step.of(run.env, action, reward))
            going = [run for run, _ in asked if not any(run.env.ended)]
            for run in [run for run in running if run not in going]:
                background.submit(run.finish, shard, unfinished)
            running = going
            yield len(asked)
            yield from background.rows(2 * collection.batch)
        yield from background.rows(0)
    finally:
        background.stop()
        for run in unfinished:
            run.writer.abandon()


def beginning(collection: Collection, job: Job) -> SanaWMEnv:
    """The environment of a job, reset to its start.

    Raises:
        ValueError: as `SanaWMEnv` and its `reset`.
        TypeError: likewise.
        OSError: for a start image that cannot be read.
    """
    env, start = SanaWMEnv(**replace(collection.config, max_episode_chunks=job.chunks).keywords), job.start
    intrinsics = None if start.intrinsics is None else np.array(start.intrinsics)
    begin(env, start.image, job.seed, prompt=start.prompt, intrinsics=intrinsics, fov_deg=start.fov_deg)
    return env


def stepped(asked: Sequence[tuple["_Run", Any]]) -> Iterator[tuple["_Run", Any, float]]:
    """Step the environments of several jobs in one batch.

    Args:
        asked: pairs of a running job and its action.

    Yields:
        The running job, its action and its reward.
    """
    if not asked:
        return
    simulator, actions = asked[0][0].env.simulator, [action for _, action in asked]
    endless = replace(simulator.limits, max_episode_chunks=MOST_CHUNKS)  # how long it is, is each job's own
    episodes, transition = replace(simulator, limits=endless).step(
        [run.env.episode for run, _ in asked], actions, numbers=range(len(asked))
    )
    for (run, action), episode, reward in zip(asked, episodes, transition.rewards, strict=True):
        run.env.episode = episode
        yield run, action, float(reward)


def _reject(shard: Shard, job: Job, why: str) -> Row:
    """Write the manifest row of a job that could not begin."""
    row = Row(job.id, camera=job.script.name, source=str(job.start.image), seed=job.seed, reason=why)
    shard.note(row)
    return row


class _Run:
    """A job that is being done."""

    def __init__(self, collection: Collection, job: Job, shard: Shard, env: SanaWMEnv):
        self.env = env
        facts = {"id": job.id, "camera": job.script.name, "source": str(job.start.image)}
        self.writer = EpisodeWriter(
            shard.begin(), env, env.config, job.seed, facts, sheet=False, crf=collection.crf, keyframes=KEYFRAMES
        )
        self.actions, self.gates = job.script.actions(self.env, job.chunks, job.draw), collection.gates

    def finish(self, shard: Shard, unfinished: "list[_Run]") -> Row:
        """Close the episode, check it against the gates, and accept or reject it."""
        if not self.writer.chunks:
            raise ValueError(f"The script {self.writer.meta['camera']} yielded no action: it must yield at least one.")
        self.writer.close()
        measures = measure(self.writer)
        reason = judge(measures, self.gates)
        done = shard.reject(self.writer.out_dir, reason) if reason else shard.accept(self.writer.out_dir)
        unfinished.remove(self)
        row = replace(done, measures=measures)
        shard.note(row)
        return row


def measure(writer: EpisodeWriter) -> dict[str, float | None]:
    """The measures that gates bound, on evenly spaced frames of an episode.

    Returns:
        "drift" and "closure" as `metrics.lasting` defines them; None for what cannot be measured in this episode.
    """
    _, frames, c2w = writer.glance()
    return {"drift": drift(frames), "closure": loop_closure(frames, c2w)}


def judge(measures: Mapping[str, float | None], gates: Mapping[str, float]) -> str:
    """Compare measures with gates.

    Args:
        measures: as `measure` returns them.
        gates: bounds by name, see `GATES`.

    Returns:
        Why the episode is rejected; "" if it passes. A measure that is None passes.
    """
    for name, bound in gates.items():
        value = measures[name]
        if value is not None and (value > bound if GATES[name] == "at most" else value < bound):
            return f"{name} is {value:.3g}, it must be {GATES[name]} {bound:g}"
    return ""


class _Background:
    """One thread that runs calls in order."""

    def __init__(self):
        self._pool, self._pending = ThreadPoolExecutor(1), deque[Future]()

    def submit(self, function: Callable, *arguments: Any) -> None:
        """Queue a call."""
        self._pending.append(self._pool.submit(function, *arguments))

    def rows(self, most: int) -> Iterator[Row]:
        """Rows that calls have returned. Waits until at most `most` calls are left, and raises what one of them
        raised."""
        while self._pending and (len(self._pending) > most or self._pending[0].done()):
            if (row := self._pending.popleft().result()) is not None:
                yield row

    def stop(self) -> None:
        """Cancel calls that have not begun, and wait for the one that has."""
        self._pool.shutdown(cancel_futures=True)


def _follow(mine: Sequence[Job], jobs: Sequence[Job], events: Iterator[Event], frames: int, console: Console) -> None:
    """Show progress until the events end. frames: of a step."""
    chunks, before = {job.id: job.chunks for job in jobs}, len(mine) - len(jobs)
    total, steps, kept, rejected, begun = sum(chunks.values()), 0, 0, 0, time.monotonic()
    columns = (
        TextColumn("collecting"), BarColumn(), TextColumn("{task.fields[state]}"), TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("", total=total, state=f"{before}/{len(mine)} episodes", rate="")
        for event in events:
            if isinstance(event, Row):
                kept, rejected = kept + bool(event.episode), rejected + (not event.episode)
                total -= chunks[event.id] - event.chunks  # of what ended early
                if event.reason:
                    said = f"rejected {event.camera} from {Path(event.source).name}: {event.reason}"
                    progress.console.print(said, highlight=False, markup=False, soft_wrap=True)
            else:
                steps += event
            state = f"{before + kept + rejected}/{len(mine)} episodes" + f", {rejected} rejected" * bool(rejected)
            rate = f"{frames * steps / max(1e-9, time.monotonic() - begun):.0f} frames/s"
            progress.update(task, completed=steps, total=total, state=state, rate=rate)
