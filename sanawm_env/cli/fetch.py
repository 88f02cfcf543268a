"""`sanawm fetch`: what it will cost and under which terms, then the download."""

import sys
from typing import TYPE_CHECKING

from rich.console import Console
from rich.prompt import Confirm
from rich.table import Table

from sanawm_env.world.weights import OFFICIAL, OFFLINE, OWNER, fetch

if TYPE_CHECKING:
    from sanawm_env.cli import Fetch

NOTICE = (
    "None of these files belong to this project. Their terms are given as far as we know them and are disputed in "
    "places: read the card and the licence of each repository at the revision you fetch before you use them."
)


def fetch_command(options: "Fetch", console: Console) -> None:
    """Show sizes and licences, ask, fetch. ValueError or OSError in one sentence."""
    parts = tuple(part.strip() for part in options.parts.split(","))
    if unknown := [part for part in parts if part not in OFFICIAL[options.name]]:
        raise ValueError(f"--parts takes some of {', '.join(OFFICIAL[options.name])}, not {', '.join(unknown)}.")
    table = Table("part", "repository", "GB", "terms, as far as known", title=f"the {options.name} world")
    for part in parts:
        entry = OFFICIAL[options.name][part]
        table.add_row(part, f"https://huggingface.co/{OWNER}/{entry.repository}", f"{entry.gigabytes:g}", entry.licence)
    console.print(table)
    console.print(NOTICE)
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
        height=options.height,
        width=options.width,
    )
    then = "sanawm render --help" if options.name in OFFLINE else f"sanawm encode-prompts FILE --world {options.name}"
    console.print(f"world {folder} (next: {then})", soft_wrap=True)
