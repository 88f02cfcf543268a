"""Which settings of which worlds fit a machine's memory, predicted from shapes (`memory`, `bidirectional`)."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import cast

from sanawm_env.engines.sanawm.bidirectional import predict_render_memory
from sanawm_env.engines.sanawm.config import SanaWorldConfig
from sanawm_env.engines.sanawm.engine import SanaLoadOptions
from sanawm_env.engines.sanawm.fetch import official_folder, world_config
from sanawm_env.engines.sanawm.memory import MemoryPrediction, predict_memory
from sanawm_env.engines.sanawm.network.config import SanaWMConfig
from sanawm_env.engines.sanawm.official import OFFICIAL, OFFLINE
from sanawm_env.engines.sanawm.offload import OFFLOADABLE
from sanawm_env.world.engine import read_config
from sanawm_env.world.folders import known_worlds, shipped_worlds, world_folder

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


def recommended(free: float, device: str, world: str = "streaming") -> str:
    """The best setting of an official world that fits (the first of `LADDER`), as a sentence with a command.

    Args:
        free: bytes of memory.
        device: of the memory.
        world: name of the world.
    """
    folder, config = _known(world)
    for refiner, bits, parts in LADDER:
        options = load_options(refiner, bits, parts)
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


def candidates() -> Iterator[tuple[str, str, Callable[..., MemoryPrediction]]]:
    """World (with its options), precision, and a function of `offload` that predicts its memory. Worlds that are
    fetched are taken as they are, others at the official sizes."""
    for name in shipped_worlds():
        folder = world_folder(name)
        config = cast(SanaWorldConfig, read_config(folder / "config.json"))
        yield name, config.dtype, partial(_step, config, folder, False, None)
    for name in OFFICIAL:
        if name in OFFLINE:
            yield name, "bf16", partial(_render, name)
            continue
        folder, config = _known(name)
        for refiner in (False, True):
            for precision in ("bf16", "fp8", "nvfp4"):
                yield name + "+refiner" * refiner, precision, partial(_step, config, folder, refiner, precision)


def load_options(refiner: bool, bits: str | None, offload: tuple[str, ...]) -> SanaLoadOptions:
    """Load options of a setting of `LADDER`."""
    return SanaLoadOptions(
        precision=bits, refiner=refiner, refiner_precision=bits if refiner else None, offload=offload
    )


def _known(name: str) -> tuple[Path | None, SanaWorldConfig]:
    """Folder and configuration of an official world; without a folder, the configuration it will have."""
    folder = world_folder(name) if name in known_worlds() else None
    if folder is None:
        return None, world_config(name, SanaWMConfig(), 704, 1280)
    return folder, cast(SanaWorldConfig, read_config(folder / "config.json"))


def _step(
    config: SanaWorldConfig, folder: Path | None, refiner: bool, precision: str | None, offload: bool
) -> MemoryPrediction:
    options = load_options(refiner, precision, OFFLOADABLE if offload else ())
    return predict_memory(config, folder, options)


def _render(name: str, offload: bool) -> MemoryPrediction:
    folder = official_folder(name) / "pipeline"
    return predict_render_memory(folder if (folder / "model_index.json").is_file() else None, offload=offload)


def fit(predict: Callable[..., MemoryPrediction], free: float) -> tuple[str, str, str]:
    """Gigabytes without and with offloading, and what fits. A prediction that fails raises."""
    plain, offloaded = (predict(offload=offload).peak for offload in (False, True))
    short = [need * SLACK + RESERVE - free for need in (plain, offloaded)]
    verdict = "fits" if short[0] <= 0 else "fits with offload" if short[1] <= 0 else f"{short[1] / GB:.1f} GB short"
    return f"{plain / GB:.1f}", f"{offloaded / GB:.1f}", verdict
