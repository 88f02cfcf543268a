"""`sanawm doctor`: what is installed and downloaded, what this machine has, and which worlds will fit it."""

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import torch
from packaging.requirements import Requirement
from rich.console import Console
from rich.live import Live
from rich.table import Table

from sanawm_env.cli.machine import disk_usage, machine_name
from sanawm_env.engines.sanawm.config import SanaWorldConfig
from sanawm_env.engines.sanawm.engine import SanaLoadOptions
from sanawm_env.engines.sanawm.fetch import official_folder, world_config
from sanawm_env.engines.sanawm.memory import MemoryPrediction, predict_memory
from sanawm_env.engines.sanawm.network.config import SanaWMConfig
from sanawm_env.engines.sanawm.network.precision import CAPABILITY
from sanawm_env.engines.sanawm.official import OFFICIAL, OFFLINE
from sanawm_env.world.engine import read_config
from sanawm_env.world.folders import home, known_worlds, read_manifest, shipped_worlds, world_folder

if TYPE_CHECKING:
    from sanawm_env.cli import Doctor

LIBRARIES = ("torch", "diffusers", "transformers", "torchao", "accelerate", "huggingface_hub")
GB = 1e9
ALL, BLOCKS, BOTH = (), ("refiner",), ("codec", "refiner")
LADDER = (
    *((True, bits, ALL) for bits in (None, "fp8")),
    *((True, bits, parts) for bits in (None, "fp8", "nvfp4") for parts in (ALL, BLOCKS, BOTH)),
    *((False, bits, parts) for bits in (None, "fp8", "nvfp4") for parts in (ALL, ("codec",))),
)
"""Settings from the best on: with the refiner or not, its bits and the network's, the parts that wait. In 8 bits all on
the device comes before blocks that are copied there for every pass, 130 GB a chunk."""
RESERVE, SLACK = 1 * GB, 1.05  # CUDA's context and libraries, and fragmentation: assumed, not measured


def doctor(options: "Doctor", console: Console) -> None:
    """Four tables. ValueError for a memory that is not positive."""
    if options.memory_gb is not None and not options.memory_gb > 0:
        raise ValueError(f"--memory-gb must be positive, got {options.memory_gb}.")
    gpu = torch.cuda.is_available()
    free = torch.cuda.mem_get_info()[0] if gpu else psutil.virtual_memory().available
    if options.memory_gb is not None:
        free = options.memory_gb * GB
    console.print(_libraries(), _machine(gpu), _worlds())
    table = Table("world", "weights", "GB at most", "with offload", f"in {free / GB:.1f} GB", title="what will fit")
    table.caption = "steps are rehearsed in shapes, some seconds a world"
    unknown: dict[str, list[str]] = {}
    with Live(table, console=console), _no_collection():
        for world, precision, predict in _candidates():
            try:
                table.add_row(world, precision, *_fit(predict, free))
            except (ImportError, OSError, ValueError) as error:
                table.add_row(world, precision, "", "", "unknown")
                unknown.setdefault(str(error), []).append(world)
        table.caption = None
    if not console.is_terminal:
        console.line()  # into a file, rich ends its last drawing without one
    for reason, worlds in unknown.items():
        console.print(f"Unknown for {', '.join(dict.fromkeys(worlds))}: {reason}", soft_wrap=True)
    console.print(
        f"Predicted from shapes for one episode (bidirectional: a clip of 161 frames), without snapshots; to fit, a "
        f"prediction leaves {SLACK - 1:.0%} and {RESERVE / GB:g} GB for what is not tensors."
    )
    console.print(recommended(free, "cuda" if gpu or options.memory_gb is not None else "cpu"), soft_wrap=True)
    if not gpu and options.memory_gb is None:
        console.print("Without a GPU this is the host's memory, and an official step (76 TFLOP) takes minutes.")


def recommended(free: float, device: str, world: str = "streaming") -> str:
    """The best setting of an official world that fits so many bytes (the first of `LADDER`), as a sentence that ends in
    a command that can be copied."""
    folder, config = _known(world)
    for refiner, bits, parts in LADDER:
        options = _options(refiner, bits, parts)
        try:
            peak = predict_memory(config, folder, options).peak
        except (ImportError, OSError, ValueError) as error:
            return f"What fits the {world} world is unknown: {error}"
        if peak * SLACK + RESERVE <= free:
            flags = ["--refiner"] * refiner
            flags += [f"--precision {bits}"] * (bits is not None)
            flags += [f"--refiner-precision {bits}"] * (refiner and bits is not None)
            flags += [f"--offload-parts {','.join(parts)}"] * bool(parts)
            command = " ".join(["sanawm play --world", world, "--device", device, *flags])
            return f"Best of {world} for {free / GB:.1f} GB, {peak / GB:.1f} GB predicted at most:\n{command}"
    return f"Every setting of the {world} world takes more than {free / GB:.1f} GB."


@contextmanager
def _no_collection() -> Iterator[None]:
    """Without Python's search for cycles, which takes a tenth of the time while libraries are imported."""
    searched = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if searched:
            gc.enable()


def _libraries() -> Table:
    """What the official worlds need, by the requirements of this package."""
    wanted = {r.name.replace("-", "_"): r for r in map(Requirement, metadata.requires("sanawm-env") or [])}
    table = Table("library", "here", "needed", title='installed (all: pip install "sanawm-env[official]")')
    for name in LIBRARIES:
        range_ = wanted[name].specifier
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            table.add_row(name, "missing", str(range_))
            continue
        fits = range_.contains(version, prereleases=True)
        table.add_row(name, version if fits else f"{version}, which does not fit", str(range_))
    return table


def _machine(gpu: bool) -> Table:
    table = Table(title="this machine", show_header=False)
    memory, disk = psutil.virtual_memory(), disk_usage(home())
    table.add_row("processor", f"{machine_name(torch.device('cpu'))}, {psutil.cpu_count()} threads", "", "")
    table.add_row("memory", "", f"{memory.available / GB:.1f} GB free", f"of {memory.total / GB:.1f}")
    table.add_row("disk", str(home()), f"{disk.free / GB:.1f} GB free", f"of {disk.total / GB:.1f}")
    if not gpu:
        reason = "this torch has no CUDA" if torch.version.cuda is None else "torch finds none"
        table.add_row("GPU", f"none: {reason}", "", "")
        return table
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        have = torch.cuda.get_device_capability(index)
        dynamic = [f"{kind} {'runs' if have >= needed else 'does not run'}" for kind, needed in CAPABILITY.items()]
        name = f"{torch.cuda.get_device_name(index)}, compute capability {have[0]}.{have[1]}: {', '.join(dynamic)}"
        table.add_row(f"GPU {index}", name, f"{free / GB:.1f} GB free", f"of {total / GB:.1f}")
    return table


def _worlds() -> Table:
    table = Table("world", "here", "to get the rest", title="downloaded")
    for name in shipped_worlds():
        table.add_row(name, "shipped", "")
    for name, parts in OFFICIAL.items():
        folder = official_folder(name)
        manifest = read_manifest(folder).get("parts", {})
        commits = {part: str(found.get("revision") or "")[:7] for part, found in manifest.items()}
        here = ", ".join(f"{part} {commit}".strip() for part, commit in commits.items()) or "nothing"
        if prompts := len(list((folder / "prompts").glob("*.safetensors"))):
            here += f", {prompts} encoded prompts"
        missing = [part for part in parts if part not in manifest]
        groups = [[part for part in missing if part != "refiner"], [part for part in missing if part == "refiner"]]
        commands = [
            f"sanawm fetch {name} --parts {','.join(group)} ({sum(parts[part].gigabytes for part in group):g} GB)"
            for group in groups
            if group
        ]
        table.add_row(name, here, "\n".join(commands))
    return table


def _candidates() -> Iterator[tuple[str, str, Callable[..., MemoryPrediction]]]:
    """World (with its options), precision, and what predicts its memory, given `offload`: of what is here as it is
    here, else of the official sizes."""
    for name in shipped_worlds():
        folder = world_folder(name)
        config = read_config(folder / "config.json")
        yield name, config.dtype, partial(_step, config, folder, False, None)
    for name in OFFICIAL:
        if name in OFFLINE:
            yield name, "bf16", partial(_render, name)
            continue
        folder, config = _known(name)
        for refiner in (False, True):
            for precision in ("bf16", "fp8", "nvfp4"):
                yield name + "+refiner" * refiner, precision, partial(_step, config, folder, refiner, precision)


def _options(refiner: bool, bits: str | None, offload: Sequence[str]) -> SanaLoadOptions:
    """Load options of a setting of the `LADDER`."""
    return SanaLoadOptions(
        precision=bits, refiner=refiner, refiner_precision=bits if refiner else None, offload=offload
    )


def _known(name: str) -> tuple[Path | None, SanaWorldConfig]:
    """Folder and configuration of an official world; without one that it will have."""
    folder = world_folder(name) if name in known_worlds() else None
    return folder, read_config(folder / "config.json") if folder else world_config(name, SanaWMConfig(), 704, 1280)


def _step(
    config: SanaWorldConfig, folder: Path | None, refiner: bool, precision: str | None, offload: bool
) -> MemoryPrediction:
    options = _options(refiner, precision, offload)
    return predict_memory(config, folder, options)


def _render(name: str, offload: bool) -> MemoryPrediction:
    from sanawm_env.cli.render import predict_render_memory

    folder = official_folder(name) / "pipeline"
    return predict_render_memory(folder if (folder / "model_index.json").is_file() else None, offload=offload)


def _fit(predict: Callable[..., MemoryPrediction], free: float) -> tuple[str, str, str]:
    """Gigabytes without and with offloading, and what follows. What cannot be predicted raises."""
    plain, offloaded = (predict(offload=offload).peak for offload in (False, True))
    short = [need * SLACK + RESERVE - free for need in (plain, offloaded)]
    verdict = "fits" if short[0] <= 0 else "fits with offload" if short[1] <= 0 else f"{short[1] / GB:.1f} GB short"
    return f"{plain / GB:.1f}", f"{offloaded / GB:.1f}", verdict
