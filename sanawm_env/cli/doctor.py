"""`sanawm doctor`: what is installed and downloaded, what this machine has, and which worlds fit its memory."""

from dataclasses import dataclass
from importlib import metadata

from rich.table import Table

from sanawm_env.cli.output import console, say
from sanawm_env.system.files import check_number

LIBRARIES = ("torch", "diffusers", "transformers", "torchao", "accelerate", "huggingface_hub")
GB = 1e9


@dataclass(frozen=True)
class Doctor:
    """Show what is installed and downloaded, what this machine has, and which worlds fit its memory."""

    memory_gb: float | None = None
    """Memory in GB to plan for; None for what is free on this machine's GPU or, without one, its host."""

    def run(self) -> None:
        """Print four tables. ValueError for a memory that is not above zero."""
        import psutil
        import torch
        from rich.live import Live

        from sanawm_env.engines.sanawm import fitting

        if self.memory_gb is not None:
            check_number("--memory-gb", self.memory_gb, 1e-6, 1e6)
        gpu = torch.cuda.is_available()
        free = torch.cuda.mem_get_info()[0] if gpu else psutil.virtual_memory().available
        if self.memory_gb is not None:
            free = self.memory_gb * GB
        console.print(_libraries(), _machine(gpu), _worlds())
        table = Table("world", "weights", "GB at most", "with offload", f"in {free / GB:.1f} GB", title="what will fit")
        table.caption = "predicting the memory of a step, some seconds per world"
        unknown: dict[str, list[str]] = {}
        with Live(table, console=console):
            for world, precision, predict in fitting.candidates():
                try:
                    table.add_row(world, precision, *fitting.fit(predict, free))
                except (ImportError, OSError, ValueError) as error:
                    table.add_row(world, precision, "", "", "unknown")
                    unknown.setdefault(str(error), []).append(world)
            table.caption = None
        if not console.is_terminal:
            console.line()  # into a file, rich ends its last drawing without one
        for reason, worlds in unknown.items():
            say(f"Unknown for {', '.join(dict.fromkeys(worlds))}: {reason}")
        console.print(
            "Predicted from shapes for one episode (bidirectional: a clip of 161 frames), without snapshots. To "
            f"fit, a prediction must leave {fitting.SLACK - 1:.0%} and {fitting.RESERVE / GB:g} GB for other memory."
        )
        say(fitting.recommended(free, "cuda" if gpu or self.memory_gb is not None else "cpu"))
        if not gpu and self.memory_gb is None:
            console.print("Without a GPU this is the host's memory, and an official step (76 TFLOP) takes minutes.")


def _libraries() -> Table:
    """The libraries that official worlds need, beside this package's requirements."""
    from packaging.requirements import Requirement

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
    import psutil
    import torch

    from sanawm_env.cli.machine import machine_name
    from sanawm_env.engines.sanawm.network.precision import CAPABILITY
    from sanawm_env.system.files import disk_usage
    from sanawm_env.world.folders import home

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
    from sanawm_env.engines.sanawm.fetch import official_folder
    from sanawm_env.engines.sanawm.official import OFFICIAL
    from sanawm_env.world.folders import read_manifest, shipped_worlds

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
