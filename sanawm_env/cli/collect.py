"""`sanawm collect` and `sanawm replay`: datasets from a YAML file, and an episode of one imagined again."""

from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from sanawm_env.agents.collect import collect
from sanawm_env.agents.collection import Collection, estimate, plan
from sanawm_env.cli.machine import disk_usage
from sanawm_env.cli.show import megabytes
from sanawm_env.recording.dataset import DATASET, Dataset, totals
from sanawm_env.recording.episode import FILES, Episode, EpisodeWriter, differences
from sanawm_env.world.saving import Scratch, check_apart

if TYPE_CHECKING:
    from sanawm_env.cli import Collect, Replay


def collect_command(options: "Collect", console: Console) -> None:
    """Collect what a YAML file describes, or say what that would be. Raises as `agents.collect.collect`."""
    collection = Collection.load(options.config)
    out = options.out if options.out is not None else Path("runs") / options.config.stem
    part = _part(options.part)
    if options.dry_run:
        _show_plan(collection, out, console)
        return
    run = None
    if options.ray:
        from sanawm_env.agents.collect_ray import Cluster

        run = Cluster(options.ray_address, options.workers)
    try:
        dataset = collect(collection, out, console=console, part=part, run=run)
    except KeyboardInterrupt:
        if not (out / DATASET).exists():
            raise
        done = len(Dataset.open(out).finished())
        console.print(f"The same command goes on: {done} episodes in {out}.", soft_wrap=True)
        raise
    sums = totals(dataset.rows())
    console.print(
        f"{sums['episodes']} episodes, {sums['frames']} frames, {megabytes(sums['bytes'])} in {out}"
        + f"; {sums['rejected']} rejected" * bool(sums["rejected"]),
        soft_wrap=True,
    )  # fmt: skip


def _part(text: str | None) -> tuple[int, int]:
    """(i, n) of "i/n", counted from 0."""
    if text is None:
        return 0, 1
    index, _, parts = text.partition("/")
    if not (index.isdecimal() and parts.isdecimal() and int(index) < int(parts)):
        raise ValueError(f'--part takes i/n with i from 0 to n - 1, such as 0/4, got "{text}".')
    return int(index), int(parts)


def _show_plan(collection: Collection, out: Path, console: Console) -> None:
    dataset = Dataset.open(out) if (out / DATASET).exists() else None
    with Scratch("sanawm-plan-") as folder:  # sampled start images are drawn to count them
        planned = plan(collection, folder)
        numbers = estimate(planned, dataset)
    table = Table("what", "how much")
    table.add_row("scenes", str(len({(job.start.image, job.start.prompt) for job in planned.jobs})))
    if planned.unreadable:
        table.add_row("images that cannot be read", str(len(planned.unreadable)))
    table.add_row("cameras", str(len({job.script.key for job in planned.jobs})))
    table.add_row("episodes", str(numbers["episodes"]))
    table.add_row("of these done", str(numbers["done"]))
    table.add_row("chunks", str(numbers["chunks"]))
    table.add_row("frames", f"{numbers['frames']}, {numbers['hours']:.2f} hours at {planned.header['fps']} a second")
    table.add_row("disk still needed, about", megabytes(numbers["bytes"]))
    free = disk_usage(out).free
    table.add_row("disk that is free", megabytes(free))
    console.print(table)
    for why in planned.unreadable.values():
        console.print(f"will be rejected: {why}", style="red", markup=False, highlight=False, soft_wrap=True)
    if numbers["bytes"] > free:
        console.print("The disk will be full before it is done.", style="red")


def replay_command(options: "Replay", console: Console) -> None:
    """Imagine an episode again and write it, or compare it to what it was. Raises ValueError where it has changed."""
    episode = Episode.open(options.episode)
    if not options.verify:
        read = [episode.folder / name for name in FILES]
        source = episode.meta.get("source")
        check_apart([options.out / name for name in EpisodeWriter.names], [*read, source and str(source)])
        _replay(episode, options.out, options, console)
        console.print(f"episode {options.out}", soft_wrap=True)
        return
    with Scratch("sanawm-replay-") as folder:
        _replay(episode, folder, options, console)
        found = differences(episode, Episode.open(folder))
    if found:
        raise ValueError(f"{options.episode} comes out otherwise: {'; '.join(found)}.")
    console.print(f"{options.episode} comes out the same: every file, byte for byte.", soft_wrap=True)


def _replay(episode: Episode, out: Path, options: "Replay", console: Console) -> None:
    columns = (TextColumn("imagining"), BarColumn(), MofNCompleteColumn(), TextColumn("chunks"), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        steps = episode.replay(out, options.world, options.device)
        for _ in progress.track(steps, total=episode.chunks):
            pass
