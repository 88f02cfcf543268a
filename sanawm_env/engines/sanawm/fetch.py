"""Official weights, fetched from the hub and converted once.

A world folder holds `config.json`, `network.safetensors`, the codec (`codec.safetensors` or `codec/`) and, where the
world has them, `text/`, `refiner/`, `prompts/` and `manifest.json` (which parts came from where). Fetched worlds are in
`$SANAWM_HOME`/worlds (by default ~/.cache/sanawm-env/worlds), their downloads in `$SANAWM_HOME`/hub. Files and names:
codec_text_refiner.md section (e), dit.md 1.1, `official`.
"""

import errno
import hashlib
import json
import shutil
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

from sanawm_env.engines.sanawm.checkpoint import (
    Checkpoint,
    check_entries,
    network_config,
    open_checkpoint,
    write_network,
)
from sanawm_env.engines.sanawm.config import SanaWorldConfig
from sanawm_env.engines.sanawm.hub import Listing, cached, download, in_cache, list_files, missing_bytes
from sanawm_env.engines.sanawm.network.config import SanaWMConfig
from sanawm_env.engines.sanawm.official import OFFICIAL, OFFLINE, OWNER, PINS, Part
from sanawm_env.engines.sanawm.sampler import SamplerConfig, shifted_timesteps
from sanawm_env.system.files import brief, disk_usage, explaining, file_sha256, visible
from sanawm_env.system.saving import (
    only_writer,
    replacing_files,
    replacing_folder,
    with_sentence,
    write_text,
)
from sanawm_env.world.engine import read_config
from sanawm_env.world.folders import CONFIG, MANIFEST, home, read_manifest

NETWORK = "network.safetensors"
GB = 1e9
MOST_PIXELS = 4096  # of a side
CHUNK_CAUSAL_SHIFT = 9.8  # inference_flow_shift of its configuration; 9.95 in training
SLACK, SPARE = 1.01, 0.2 * GB  # of a disk, for what is not counted


def official_folder(name: str) -> Path:
    """Folder of an official world once it is fetched."""
    return home() / "worlds" / name


def fetch(
    name: str,
    parts: Sequence[str] = ("dit", "codec", "text"),
    *,
    revision: str | None = None,
    source: Path | None = None,
    dit: Path | None = None,
    keep_source: bool = False,
    height: int = 704,
    width: int = 1280,
) -> Path:
    """Download parts of an official world and make its folder. Parts that are there already are left alone, and the
    disk is checked before anything is downloaded. Nothing incomplete is left: an older network stays until the new one
    is whole, and downloads are kept for the next call.

    Args:
        name: one of `OFFICIAL`.
        parts: some of those it has.
        revision: of the network's repository: a commit, branch or tag; None for the pinned one (`official.PINS`), or
            for the network's own where other parts of its repository are added to it. Other repositories are used at
            their pins.
        source: a folder laid out as the hub (owner/repository/files), instead of the hub.
        dit: a file with the network's weights instead of the official one (`checkpoint.open_checkpoint`).
        keep_source: keep downloads in `home()`/hub after their conversion.
        height, width: of the world's frames, multiples of 32.

    Returns:
        The world's folder.

    Raises:
        ValueError: for an unknown name, part, revision or size, and files that do not fit.
        OSError: where the disk is too small, or a download fails.
    """
    if name not in OFFICIAL:
        raise ValueError(f"There is no official world {brief(name)}: fetch one of {', '.join(OFFICIAL)}.")
    if unknown := [part for part in parts if part not in OFFICIAL[name]]:
        raise ValueError(f"The {name} world has the parts {', '.join(OFFICIAL[name])}, not {', '.join(unknown)}.")
    parts = [part for part in OFFICIAL[name] if part in parts]  # each once, the network first, which gives disk back
    if dit is not None and (name in OFFLINE or "dit" not in parts):
        raise ValueError("A file of weights (dit) needs a world that can be stepped, and dit among the parts.")
    check_picture_size(height, width)
    folder = official_folder(name)
    with ExitStack() as stack:
        given = None if dit is None else stack.enter_context(open_checkpoint(dit))
        if given is not None:
            network_size(given)
        folder.mkdir(parents=True, exist_ok=True)
        stack.enter_context(only_writer(folder))
        manifest = {"parts": {}, **read_manifest(folder)}
        plans = _plans(name, parts, folder, manifest, revision, source, given, keep_source)
        check_disk(name, plans)
        for plan in plans:
            if not plan.here:
                manifest.pop("sha256", None)
            if plan.entry.converted:
                _make_network(name, plan, folder, manifest, height, width)
            elif not plan.here:
                files = plan.get()
                for inside, outside in plan.entry.folders:
                    _link(files / outside, folder / inside)
                manifest["parts"][plan.part] = plan.record
                _write_json(folder / MANIFEST, manifest)
        if "sha256" not in manifest and name not in OFFLINE and {"dit", "codec"} <= set(manifest["parts"]):
            manifest["sha256"] = _sha256(folder)
            _write_json(folder / MANIFEST, manifest)
    return folder


@dataclass(frozen=True)
class PartPlan:
    """What has to be done for one part.

    Attributes:
        part: its name.
        entry: where it comes from.
        record: what the manifest will say.
        command: that does it.
        here: whether nothing is left to do.
        files: folder where its files are or will be.
        listing: what is to be downloaded into it.
        download: bytes of that which are missing.
        given_back: whether the files are deleted after the conversion.
        converted: bytes that the conversion writes.
        given: a file that is converted instead.
    """

    part: str
    entry: Part
    record: dict[str, str | None]
    command: str
    here: bool = False
    files: Path | None = None
    listing: Listing | None = None
    download: int = 0
    given_back: bool = False
    converted: int = 0
    given: Checkpoint | None = None

    def get(self) -> Path:
        """The folder of the files, after downloading what is missing. Raises OSError, with the command that
        continues."""
        files = cast(Path, self.files)  # as `_plans` has found out
        if self.listing is not None:
            try:
                download(self.listing, files)
            except Exception as error:  # the library raises many types for networks and disks
                raise _stopped(error, self) from error
        return files

    def give_back(self) -> None:
        """Delete what was downloaded to be converted."""
        if self.listing is not None and self.files is not None:
            for name in self.listing.sizes:
                (self.files / name).unlink(missing_ok=True)


def disk_need(plans: Iterable[PartPlan]) -> tuple[int, int]:
    """Bytes of disk while parts are fetched one after the other: the most at a time, and those that stay."""
    now = most = 0
    for plan in plans:
        if not plan.here:
            now += plan.download + plan.converted
            most = max(most, now)
            now -= plan.download if plan.given_back else 0
    return most, now


def check_disk(name: str, plans: Sequence[PartPlan]) -> None:
    """Raise OSError where the disk is too small for what will be downloaded and converted."""
    (most, stays), free = disk_need(plans), disk_usage(home()).free
    if free < most * SLACK + SPARE:
        loaded, converted = (sum(getattr(p, what) for p in plans) / GB for what in ("download", "converted"))
        raise with_sentence(
            OSError(errno.ENOSPC, ""),
            f"{home()} has {free / GB:.1f} GB free, fetching the {name} world takes {most / GB:.1f} GB at most "
            f"({loaded:.1f} GB to download, {converted:.1f} GB converted beside; {stays / GB:.1f} GB stay): make room, "
            "fetch fewer --parts, or set SANAWM_HOME to a folder on another disk.",
        )


def check_picture_size(height: int, width: int) -> None:
    """Raise ValueError for a frame size that is not a whole number of latents."""
    if height % 32 or width % 32 or min(height, width) < 32 or max(height, width) > MOST_PIXELS:
        raise ValueError(f"height and width must be multiples of 32 up to {MOST_PIXELS}, got {height} x {width}.")


def world_config(name: str, network: SanaWMConfig, height: int, width: int) -> SanaWorldConfig:
    """Configuration of an official world: frames, intrinsics, sampler, window."""
    sampler = SamplerConfig()
    if name == "chunk-causal":
        # the teacher sees all chunks before, takes the many steps of the official script and is guided (dit.md 13)
        network = replace(network, window=-1)
        steps = shifted_timesteps(60, CHUNK_CAUSAL_SHIFT)
        sampler = SamplerConfig(steps, 5.0, "chunk_flow_euler", CHUNK_CAUSAL_SHIFT)
    return SanaWorldConfig(
        name=name,
        network=network,
        sampler=sampler,
        height=height,
        width=width,
        horizontal_fov=90.0,  # codec_text_refiner.md section (f)
        codec="ltx2_bidirectional" if name == "chunk-causal" else "ltx2",  # its decoder is the bidirectional model's
        dtype="bfloat16",
    )


def network_size(checkpoint: Checkpoint) -> SanaWMConfig:
    """Sizes of the network in a file: the official ones where it is as wide, else those of its shapes.

    Raises:
        ValueError: which names what is missing or unexpected.
    """
    with explaining(str(checkpoint.path)):
        network = network_config(checkpoint.shapes)
        if network.hidden_size == SanaWMConfig().hidden_size:
            network = SanaWMConfig()
        check_entries(checkpoint.shapes, network)
    return network


def _plans(
    name: str,
    parts: Sequence[str],
    folder: Path,
    manifest: dict,
    revision: str | None,
    source: Path | None,
    given: Checkpoint | None,
    keep_source: bool,
) -> list[PartPlan]:
    """What has to be done for every part. Asks the hub for commits and sizes, and downloads nothing."""
    network = OFFICIAL[name]["dit"].repository
    done, plans = manifest["parts"], []
    for part in parts:
        entry = OFFICIAL[name][part]
        command = f"sanawm fetch {name} --parts {part}" + f" --revision {revision}" * (revision is not None)
        record = {"repository": f"{OWNER}/{entry.repository}", "revision": None}
        plan = PartPlan(part, entry, record, command)
        if part == "dit" and given is not None:
            file = str(given.path.absolute())
            converted = min(int(entry.converted * GB), given.path.stat().st_size)
            plan = replace(
                plan, given=given, converted=converted, record={"repository": None, "revision": None, "file": file}
            )
        elif source is not None:
            files = Path(source) / OWNER / entry.repository
            if missing := [pattern for pattern in entry.patterns[:1] if not any(files.glob(pattern))]:
                raise FileNotFoundError(f"{files} has no {missing[0]}, which the {part} of {name} needs.")
            sizes = [path.stat().st_size for pattern in entry.patterns for path in files.glob(pattern)]
            converted = min(int(entry.converted * GB), sum(sizes))
            plan = replace(plan, files=files.resolve(), converted=converted, record={**record, "revision": revision})
        else:
            wanted = PINS.get(entry.repository)
            if entry.repository == network:
                added = done.get("dit", {}).get("revision") if "dit" not in parts else None
                wanted = revision or added or wanted
            here = {**record, "revision": wanted} == done.get(part) and wanted is not None and _is_here(folder, entry)
            plan = replace(plan, here=True, record=done[part]) if here else _ask(plan, wanted, keep_source)
            if plan.record == done.get(part) and _is_here(folder, entry):
                plan = replace(plan, here=True)
        plans.append(plan)
    return plans


def _is_here(folder: Path, entry: Part) -> bool:
    """Whether the files of a part are there."""
    if entry.converted:
        return (folder / NETWORK).is_file() and (folder / CONFIG).is_file()
    return all((folder / inside).is_dir() for inside, _ in entry.folders)


def _ask(plan: PartPlan, revision: str | None, keep_source: bool) -> PartPlan:
    """The plan with the hub's answer: the commit of a revision, the files and their sizes."""
    repository, patterns = f"{OWNER}/{plan.entry.repository}", plan.entry.patterns
    try:
        listing = list_files(repository, revision, patterns)
    except (ValueError, FileNotFoundError, ImportError):
        raise
    except Exception as error:  # the library raises many types for networks
        files = cached(repository, revision, patterns)
        if files is None:
            raise _stopped(error, plan) from error
        size = sum(path.stat().st_size for pattern in patterns for path in files.glob(pattern))
        converted = min(int(plan.entry.converted * GB), size)
        return replace(plan, files=files, converted=converted, record={**plan.record, "revision": files.name})
    record = {"repository": repository, "revision": listing.commit}
    converted = min(int(plan.entry.converted * GB), sum(listing.sizes.values()))
    theirs = in_cache(listing)
    if theirs is not None:  # what others have put there stays
        return replace(plan, files=theirs, converted=converted, record=record)
    files = home() / "hub" / repository / listing.commit
    return replace(
        plan,
        files=files,
        listing=listing,
        record=record,
        download=missing_bytes(listing, files),
        given_back=bool(converted) and not keep_source,
        converted=converted,
    )


def _stopped(error: BaseException, plan: PartPlan) -> OSError:
    """Why a download stopped, as a sentence with the command that continues."""
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    chain: BaseException | None = error
    while chain is not None and getattr(chain, "errno", None) != errno.ENOSPC:
        chain = chain.__cause__ or chain.__context__
    full = chain is not None
    told = OSError(
        f"The {plan.part} could not be downloaded ({'the disk is full: ' * full}{reason}); "
        f"{'make room and ' * full}go on where it stopped with: {plan.command}"
    )
    told.errno = errno.ENOSPC if full else None
    return told


def _make_network(name: str, plan: PartPlan, folder: Path, manifest: dict, height: int, width: int) -> None:
    """Convert what was downloaded. Network, manifest and configuration appear together, and the download is deleted
    then unless it is to be kept. Where the network is here already, only the size of frames is set."""
    if plan.here:
        config = read_config(folder / CONFIG)
        if (config.height, config.width) != (height, width):
            write_text(folder / CONFIG, replace(config, height=height, width=width).to_json() + "\n")
        return
    with ExitStack() as stack:
        checkpoint = plan.given
        if checkpoint is None:
            files, (pattern,) = plan.get(), plan.entry.patterns
            found = sorted(files.glob(pattern))
            if len(found) != 1:
                raise FileNotFoundError(f"{files} holds {len(found)} files {pattern}, expected one: {plan.command}")
            checkpoint = stack.enter_context(open_checkpoint(found[0]))
        network = network_size(checkpoint)
        manifest["parts"]["dit"] = plan.record
        try:
            with replacing_files(folder, (NETWORK, MANIFEST, CONFIG)) as part:
                with open(part / NETWORK, "wb") as file:
                    write_network(checkpoint, network, file)
                (part / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
                (part / CONFIG).write_text(world_config(name, network, height, width).to_json() + "\n")
        except OSError as error:
            said = f"{error}; what was downloaded is kept, make room and go on with: {plan.command}"
            raise with_sentence(error, said) from error
    if plan.given_back:
        plan.give_back()


def _link(target: Path, link: Path) -> None:
    """Link to a folder of the download, or copy it where the file system has no links."""
    if not target.is_dir():
        raise FileNotFoundError(
            f"{target} is not there, though the download is complete: the hub's layout has changed."
        )
    link.parent.mkdir(parents=True, exist_ok=True)
    if link.is_symlink():
        link.unlink()
    elif link.is_dir():
        shutil.rmtree(link)
    try:
        link.symlink_to(target.resolve(), target_is_directory=True)
    except OSError:
        with replacing_folder(link) as part:
            shutil.copytree(target, part, dirs_exist_ok=True)


def _sha256(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in (folder / NETWORK, *visible(folder, "codec/*")):
        if path.is_file():
            digest.update(path.name.encode())
            digest.update(bytes.fromhex(file_sha256(path)))
    return digest.hexdigest()


def _write_json(path: Path, value: dict) -> None:
    write_text(path, json.dumps(value, indent=1) + "\n")
