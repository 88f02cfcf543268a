"""`sanawm bench`: time a world, or its kernels."""

import json
from dataclasses import dataclass
from typing import Literal

import tyro

from sanawm_env.cli.arguments import Numbers, WorldOnDevice, listed
from sanawm_env.cli.output import check_places, console, write_numbers
from sanawm_env.system.files import check_count


@dataclass(frozen=True, kw_only=True)
class Bench(Numbers, WorldOnDevice):
    """Time a world on this machine: the stages of a step, batches, snapshots, the size of a state. Or time its kernels:
    every operator and the network's step, against plain torch and against lower bounds measured in the same run.
    """

    what: tyro.conf.Positional[Literal["world", "kernels"]] = "world"
    """world, or kernels."""
    world: str = "nano"
    """Name or folder of the world; kernels have random weights instead."""
    size: Literal["nano", "full"] | None = None
    """Network whose kernels are timed; full is the official one (5 GB, minutes per step on a CPU).
    None for full on a CUDA device, and nano elsewhere."""
    threads: int = 2
    """Threads of torch; nano is small, and more than two rarely help."""
    repeats: int = 10
    """Measurements per number; medians are reported."""
    batches: str = "1,4,16"
    """Batch sizes, comma-separated, one table row each."""

    def run(self) -> None:
        """Measure, print tables, and write the numbers. ValueError for values out of range."""
        check_places(self.json, world=self.world if self.what == "world" else None)
        from sanawm_env.world.threads import MAX_THREADS

        batches = listed(int, self.batches, "--batches takes whole numbers such as 1,4")
        check_count("--threads", self.threads, 1, MAX_THREADS)
        check_count("--repeats", self.repeats, 1, 10**6)
        for batch in batches:
            check_count("--batches", batch, 1, 65_536)
        options = self.threads, self.repeats, batches, self.device, console
        if self.what == "kernels":
            from sanawm_env.cli.bench_kernels import bench_kernels, sized

            numbers = bench_kernels(sized(self.size, self.device), *options)
        else:
            from sanawm_env.cli.bench_world import bench_world

            numbers = bench_world(self.world, *options)
        write_numbers(self.json, json.dumps(numbers, indent=1))
