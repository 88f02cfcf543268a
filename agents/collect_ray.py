"""Collect on a Ray cluster: one actor per GPU, or per core, each with its own batch of episodes and its own shard.

Actors receive jobs and return manifest rows; they write frames to the shared disk themselves. An actor that dies is
replaced: its finished episodes stay, and its unfinished jobs are done again.
"""

import signal
import threading
from collections import Counter, deque
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sanawm_env.agents.collect import Event, work
from sanawm_env.agents.collection import Collection, Job, pending

from sanawm_env.recording.dataset import Dataset, Row, Shard
from sanawm_env.system.packages import needing

with needing("Collecting on Ray needs ray", "ray"):
    import ray
    import ray.exceptions

ROUNDS = 2  # batches that an actor gets at a time: few are lost with it, and it seldom waits
MOST_DEATHS = 3  # of actors under one job: then it is the job


class Collector:
    """The actor: does jobs into its own shard."""

    def __init__(self, collection: Collection, folder: Path):
        self.collection = collection
        self.shard = Shard(Dataset.open(folder)).__enter__()

    def work(self, jobs: Sequence[Job]) -> list[Row]:
        """Do jobs, and return the rows of their episodes."""
        return [event for event in work(self.collection, jobs, self.shard) if isinstance(event, Row)]

    def close(self) -> None:
        """Close the shard."""
        self.shard.__exit__()


@dataclass(frozen=True)
class Cluster:
    """A `collect.Runner` that does jobs on Ray.

    Attributes:
        address: of a running cluster, or "auto"; None starts one on this machine and stops it afterwards.
        workers: number of actors; None for one per GPU, or one per core for a world on the CPU.
    """

    address: str | None = None
    workers: int | None = None

    def __call__(self, collection: Collection, jobs: Sequence[Job], dataset: Dataset) -> Generator[Event, None, None]:
        """Do jobs on the cluster; called by `collect`.

        Raises:
            ValueError: for a number of workers below 1, or a cluster that has no GPU for a world on one.
            ChildProcessError: for a job during which `MOST_DEATHS` actors died.
            Exception: what a job raised.
        """
        if self.workers is not None and self.workers < 1:
            raise ValueError(f"Collecting on Ray needs at least one worker, got {self.workers}.")
        ours = not ray.is_initialized()
        if ours:
            before = signal.getsignal(signal.SIGTERM)
            ray.init(address=self.address, include_dashboard=False, log_to_driver=False, logging_level="warning")  # ty: ignore[invalid-argument-type]  a name or a number
            if callable(before) and threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, before)  # ray's own ends this process where it stands
        try:
            yield from self._run(collection, jobs, dataset)
        finally:
            if ours:
                ray.shutdown()

    def _run(self, collection: Collection, jobs: Sequence[Job], dataset: Dataset) -> Generator[Event, None, None]:
        on_gpu = collection.device != "cpu"
        count = self.workers or int(ray.cluster_resources().get("GPU" if on_gpu else "CPU", 0))
        if not count:
            raise ValueError(f"The Ray cluster has no GPU for the device {collection.device!r}: add a node with one.")
        size = ROUNDS * collection.batch
        units = deque(list(jobs[i : i + size]) for i in range(0, len(jobs), size))
        actor: Any = ray.remote(num_cpus=1, num_gpus=int(on_gpu))(Collector)
        folder = dataset.folder.absolute()
        idle = [actor.remote(collection, folder) for _ in range(min(count, len(units)))]
        busy, deaths, known = {}, Counter(), {row.id for row in dataset.rows()}
        while units or busy:
            while idle and units:
                collector, unit = idle.pop(), units.popleft()
                busy[collector.work.remote(unit)] = collector, unit
            (done,), _ = ray.wait(list(busy))
            collector, unit = busy.pop(done)
            try:
                rows = ray.get(done)
                idle.append(collector)
            except ray.exceptions.RayActorError:
                left = pending(unit, dataset)
                deaths.update(job.id for job in left)
                if left and max(deaths[job.id] for job in left) >= MOST_DEATHS:
                    raise ChildProcessError(
                        f"{MOST_DEATHS} workers died at {left[0].script.name} from {left[0].start.image}: look at "
                        "Ray's logs. Finished episodes stay; the same command continues."
                    ) from None
                units.extendleft([left] if left else [])
                idle.append(actor.remote(collection, folder))
                rows = [row for row in dataset.rows() if row.id in {job.id for job in unit}]
            except ray.exceptions.RayTaskError as error:
                raise error.cause from None
            for row in rows:
                if row.id not in known:
                    known.add(row.id)
                    yield row.chunks
                    yield row
        ray.get([collector.close.remote() for collector in idle])
