"""`sanawm fetch`: what it will cost and under which terms, then the download."""

import sys
from typing import TYPE_CHECKING

from rich.console import Console
from rich.prompt import Confirm
from rich.table import Table

from sanawm_env.engines.sanawm.checkpoint import open_checkpoint
from sanawm_env.engines.sanawm.fetch import disk_free, fetch, network_size
from sanawm_env.engines.sanawm.official import OFFICIAL, OFFLINE, OWNER, PI3X, PINS, REPORTS
from sanawm_env.world.folders import home

if TYPE_CHECKING:
    from sanawm_env.cli import Fetch

NOTICE = (
    "None of these files belong to this project, and nobody here has seen them. What is said of their terms, by whom "
    "and when, stands above; the sources disagree in places: read the card and the licence of each repository at the "
    "revision you fetch before you use them."
)


def fetch_command(options: "Fetch", console: Console) -> None:
    """Show sizes and licences, ask, fetch. ValueError or OSError in one sentence."""
    parts = tuple(part.strip() for part in options.parts.split(","))
    if unknown := [part for part in parts if part not in OFFICIAL[options.name]]:
        raise ValueError(f"--parts takes some of {', '.join(OFFICIAL[options.name])}, not {', '.join(unknown)}.")
    if options.dit is not None:
        with open_checkpoint(options.dit) as checkpoint:
            network_size(checkpoint)
    parts = tuple(part for part in OFFICIAL[options.name] if part in parts)
    _show(options, parts, console)
    if not options.yes:
        if not sys.stdin.isatty():
            raise ValueError("Fetching needs your consent to these terms: add --yes.")
        if not Confirm.ask("Fetch?", console=console):
            console.print("Nothing was fetched.")
            return
    folder = fetch(
        options.name,
        parts,
        revision=options.revision,
        source=options.source,
        dit=options.dit,
        keep_source=options.keep_source,
        height=options.height,
        width=options.width,
    )
    then = "sanawm render --help" if options.name in OFFLINE else f"sanawm encode-prompts FILE --world {options.name}"
    console.print(f"world {folder} (next: {then})", soft_wrap=True)


def _show(options: "Fetch", parts: tuple[str, ...], console: Console) -> None:
    """The table of parts, what their files take, and the notices."""
    table = Table("part", "from", "GB", "terms (who says so, when)", title=f"the {options.name} world")
    network = OFFICIAL[options.name]["dit"].repository
    download = converted = given_back = 0.0
    for part in parts:
        entry = OFFICIAL[options.name][part]
        revision = (options.revision if entry.repository == network else None) or PINS.get(entry.repository)
        place = f"https://huggingface.co/{OWNER}/{entry.repository}/tree/{revision or 'main'}"
        size = entry.gigabytes
        if part == "dit" and options.dit is not None:
            place, size = str(options.dit), 0.0
        terms = "\n".join(map(str, entry.notices))
        table.add_row(part, place, f"{size:g}", terms, end_section=True)
        download, converted = download + size, converted + entry.converted
        given_back += size if entry.converted and not options.keep_source else 0.0
    console.print(table)
    console.print(NOTICE)
    console.print(f"Further: {PI3X}. Sizes and revisions: {REPORTS}.", highlight=False)
    sentence = f"To download: {download:.1f} GB"
    if converted:
        sentence += f"; converted beside it: {converted:.1f} GB"
    sentence += f"; stays: {download + converted - given_back:.1f} GB"
    if given_back:
        sentence += f" ({given_back:.1f} GB are given back after the conversion; --keep-source keeps them)"
    free = f"Free at {home()}: {disk_free(home()) / 1e9:.1f} GB."
    console.print(f"{sentence}. {free}", soft_wrap=True)
