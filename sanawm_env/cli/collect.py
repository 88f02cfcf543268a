"""`sanawm collect`: collect a dataset that a YAML file describes."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from sanawm_env.cli.output import console, megabytes, say
from sanawm_env.system.files import brief
from sanawm_env.system.terminal import table

if TYPE_CHECKING:
    from sanawm_env.agents.collection import Collection


@dataclass(frozen=True)
class Collect:
    """Collect a dataset: an episode of every scene, camera and seed of a YAML file. The same command continues after an
    interruption.
    """

    config: tyro.conf.Positional[Path]
    """YAML file of the collection, such as examples/collect.yaml."""
    out: Path | None = None
    """Folder of the dataset; None for runs/ and the name of the file."""
    dry_run: bool = False
    """Show what would be collected and its size on disk, and stop."""
    part: str | None = None
    """"i/n" collects every n-th episode from the i-th (from 0), for several machines that share a disk."""
    ray: bool = False
    """Collect on a Ray cluster, with one worker per GPU, or per core for a world on the CPU."""
    ray_address: str | None = None
    """Address of a running Ray cluster, "auto" for the one of this machine; None starts one here."""
    workers: int | None = None
    """Number of Ray workers; None for one per GPU, or per core for a world on the CPU."""

    def run(self) -> None:
        """Collect, or show the plan. Raises as `agents.collect.collect`."""
        from sanawm_env.agents.collect import collect
        from sanawm_env.agents.collection import Collection
        from sanawm_env.recording.dataset import DATASET, Dataset, totals

        collection = Collection.load(self.config)
        out = self.out if self.out is not None else Path("runs") / self.config.stem
        part = _part(self.part)
        if self.dry_run:
            _show_plan(collection, out)
            return
        run = None
        if self.ray:
            from sanawm_env.agents.collect_ray import Cluster

            run = Cluster(self.ray_address, self.workers)
        try:
            dataset = collect(collection, out, console=console, part=part, run=run)
        except KeyboardInterrupt:
            if (out / DATASET).exists():
                finished = len(Dataset.open(out).finished())
                say(f"{finished} episodes in {out} are finished; the same command continues.")
            raise
        sums = totals(dataset.rows())
        rejected = f"; {sums['rejected']} rejected" * bool(sums["rejected"])
        say(f"{sums['episodes']} episodes, {sums['frames']} frames, {megabytes(sums['bytes'])} in {out}{rejected}")


def _part(text: str | None) -> tuple[int, int]:
    """(i, n) of "i/n", counted from 0."""
    if text is None:
        return 0, 1
    index, _, parts = text.partition("/")
    if not (index.isdecimal() and parts.isdecimal() and int(index) < int(parts)):
        raise ValueError(f"--part takes i/n with i from 0 to n - 1, such as 0/4, got {brief(text)}.")
    return int(index), int(parts)


def _show_plan(collection: "Collection", out: Path) -> None:
    from sanawm_env.agents.collection import estimate, plan
    from sanawm_env.recording.dataset import DATASET, Dataset
    from sanawm_env.system.files import disk_usage
    from sanawm_env.system.saving import Scratch

    dataset = Dataset.open(out) if (out / DATASET).exists() else None
    with Scratch("sanawm-plan-") as folder:  # sampled start images are drawn to count them
        planned = plan(collection, folder)
        numbers = estimate(planned, dataset)
    free, unreadable = disk_usage(out).free, planned.unreadable
    facts = [
        ("scenes", len({(job.start.image, job.start.prompt) for job in planned.jobs})),
        *([("images that cannot be read", len(unreadable))] if unreadable else ()),
        ("cameras", len({job.script.key for job in planned.jobs})),
        ("episodes", numbers["episodes"]),
        ("of these finished", numbers["done"]),
        ("chunks", numbers["chunks"]),
        ("frames", f"{numbers['frames']}, {numbers['hours']:.2f} hours at {planned.header['fps']} per second"),
        ("disk space still needed, about", megabytes(numbers["bytes"])),
        ("free disk space", megabytes(free)),
    ]
    console.print(table("what", "amount", rows=facts))
    for why in unreadable.values():
        say(f"will be rejected: {why}", style="red")
    if numbers["bytes"] > free:
        console.print("The disk has too little free space: free some, or give another --out.", style="red")
