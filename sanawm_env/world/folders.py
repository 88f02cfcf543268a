"""Where worlds are on disk: shipped ones inside this package, fetched ones in `$SANAWM_HOME`/worlds (by default
~/.cache/sanawm-env/worlds), others in folders of their own.

A world's folder holds `config.json`, weights, perhaps `starts/`, and `manifest.json` if it was fetched (which parts
came from where).
"""

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import MISSING, fields
from pathlib import Path
from typing import cast

from sanawm_env.system.files import brief, read_json, visible
from sanawm_env.world.config import WorldConfig
from sanawm_env.world.engine import engine_type, known_engines, read_config

SHIPPED = Path(__file__).parent.parent / "assets"
MANIFEST, CONFIG = "manifest.json", "config.json"


def home() -> Path:
    """Folder of fetched worlds: `$SANAWM_HOME`, by default ~/.cache/sanawm-env.

    Raises:
        OSError: for a user without a home folder.
    """
    if given := os.environ.get("SANAWM_HOME"):
        return Path(given)
    try:
        return Path.home() / ".cache" / "sanawm-env"
    except RuntimeError:
        raise OSError("This user has no home folder to keep worlds in: set SANAWM_HOME to a folder.") from None


def shipped_worlds() -> list[str]:
    """Names of the worlds inside this package."""
    return sorted(folder.parent.name for folder in SHIPPED.glob("*/config.json"))


def world_address(world: str | os.PathLike) -> str:
    """The name of a world, or its folder as an absolute path."""
    return str(world) if world in known_worlds() else os.path.abspath(world)


def known_worlds() -> list[str]:
    """Names that `World.load` takes: shipped and fetched worlds, and engines without files."""
    return sorted({*folder_names(), *(name for name in known_engines() if not engine_type(name).needs_files)})


def folder_names() -> set[str]:
    """Names of shipped and fetched worlds."""
    names = set(shipped_worlds())
    with suppress(OSError):  # without a home folder nothing was fetched
        names |= {folder.parent.name for folder in home().glob("worlds/*/config.json")}
    return names


def world_folder(name: str | os.PathLike) -> Path:
    """The folder of a world.

    Args:
        name: of the world, or its folder.

    Raises:
        ValueError: for an unknown world. The message lists the known ones, or the command that fetches it.
        TypeError: for neither a name nor a path.
    """
    if not isinstance(name, str | os.PathLike):
        raise TypeError(f"world must be a name or a folder, got {brief(name)}.")
    text = str(name)
    if text in shipped_worlds():
        return SHIPPED / text
    if text in folder_names():
        return home() / "worlds" / text
    folder = Path(os.path.expanduser(name))  # left as it is where there is no home
    if (folder / CONFIG).is_file():
        return folder
    elsewhere = {world: advice for engine in known_engines() for world, advice in engine_type(engine).elsewhere.items()}
    if text in elsewhere:
        raise ValueError(f"The {text} world {elsewhere[text]}.")
    raise ValueError(
        f"Unknown world {brief(text)}; the known worlds are {', '.join(known_worlds())}, or give a folder that holds "
        f"config.json and weights. To be fetched: {', '.join(elsewhere)}."
    )


def find_world(name: str | os.PathLike) -> Path | WorldConfig:
    """The folder of a world, or the configuration of an engine without files. Raises as `world_folder`."""
    if isinstance(name, str) and name in known_engines() and name not in folder_names():
        engine = engine_type(name)
        if not engine.needs_files:
            return _without_files(name, engine.config_type)
    return world_folder(name).resolve()


def _without_files(name: str, kind: type[WorldConfig]) -> WorldConfig:
    """The configuration of an engine that has no files. TypeError where it cannot be made of defaults."""
    needs = [each.name for each in fields(kind) if each.default is MISSING and each.default_factory is MISSING]
    if needs:
        raise TypeError(f"The engine {brief(name)} has no files: {', '.join(needs)} of {kind.__name__} need defaults.")
    config = cast(Callable[[], WorldConfig], kind)()
    if config.engine != name:
        raise ValueError(f"The engine {brief(name)} says it is {brief(config.engine)}: register it under that name.")
    return config


def config_of(name: str | os.PathLike) -> WorldConfig:
    """The configuration of a world, without loading it.

    Raises:
        ValueError: as `world_folder`, and for files that are no configuration.
        TypeError: as `world_folder`.
    """
    return config_at(find_world(name))


def config_at(source: Path | WorldConfig) -> WorldConfig:
    """The configuration of what `find_world` returned. Raises ValueError for files that are no configuration."""
    return source if isinstance(source, WorldConfig) else read_config(source / CONFIG)


def files_of(folder: Path) -> tuple[tuple[str, int, int, int], ...]:
    """Path, size, time of change and inode of every file that loading a world reads, to notice a change without
    reading them."""
    inside = ("config.json", MANIFEST, "*.safetensors", "starts/*", "codec/*", "refiner/transformer/*")
    found = []
    for path in sorted(path for pattern in inside for path in visible(folder, pattern)):
        with suppress(OSError):
            now = path.stat()
            found.append((str(path.relative_to(folder)), now.st_size, now.st_mtime_ns, now.st_ino))
    return tuple(found)


def read_manifest(folder: Path) -> dict:
    """The manifest that `fetch` wrote; {} for other worlds, and for a file that is none."""
    with suppress(OSError, ValueError):
        manifest = read_json(folder / MANIFEST, 2**20)
        parts = manifest.get("parts", {})
        if isinstance(parts, dict) and all(isinstance(part, dict) for part in parts.values()):
            return manifest
    return {}
