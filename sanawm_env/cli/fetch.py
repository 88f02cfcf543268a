"""`sanawm fetch`: show sizes and licences, then download official weights."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro
from rich.table import Table

from sanawm_env.cli.output import console, say
from sanawm_env.engines.sanawm.official import OFFICIAL, OFFLINE, OWNER, PI3X, PINS, REPORTS
from sanawm_env.system.files import brief

NOTICE = (
    "None of these files belong to this project, and this project has never downloaded them. The table shows who "
    "states which terms, and when; the sources disagree in places. Read the card and the licence of each repository "
    "at the revision that you fetch before you use it."
)


@dataclass(frozen=True)
class Fetch:
    """Download official weights and convert them once: worlds for World.load, or the offline bidirectional pipeline."""

    name: tyro.conf.Positional[Literal["streaming", "chunk-causal", "bidirectional"]] = "streaming"
    """World to download; bidirectional is the pipeline of sanawm render."""
    parts: str = "dit,codec,text"
    """Comma-separated list of dit (the network), codec, text and, except for bidirectional, refiner."""
    revision: str | None = None
    """Commit, branch or tag of the network's repository; None for the pinned commit.
    Parts that are added to a network take its commit by default."""
    dit: Path | None = None
    """File with other weights of the network, such as a fine-tuned checkpoint.
    It is safetensors or .pt, bfloat16 or float32; its names may have any prefix."""
    keep_source: bool = False
    """Keep the downloaded checkpoint after its conversion; otherwise it is deleted."""
    source: Path | None = None
    """Local folder with the hub's layout (owner/repository/...) to copy from instead of the hub."""
    height: int = 704
    """Height of frames in pixels, 704 in the official setting."""
    width: int = 1280
    """Width of frames in pixels, 1280 in the official setting."""
    yes: bool = False
    """Accept the licence terms without a question."""

    def run(self) -> None:
        """Show sizes and licences, ask, download and convert. ValueError or OSError for what cannot be fetched."""
        from rich.prompt import Confirm

        from sanawm_env.engines.sanawm.checkpoint import open_checkpoint
        from sanawm_env.engines.sanawm.fetch import fetch, network_size

        parts = tuple(part.strip() for part in self.parts.split(","))
        if unknown := [part for part in parts if part not in OFFICIAL[self.name]]:
            raise ValueError(
                f"--parts takes some of {', '.join(OFFICIAL[self.name])}, not {brief(', '.join(unknown))}."
            )
        if self.dit is not None:
            with open_checkpoint(self.dit) as checkpoint:
                network_size(checkpoint)
        parts = tuple(part for part in OFFICIAL[self.name] if part in parts)
        self.show(parts)
        if not self.yes:
            if not sys.stdin.isatty():
                raise ValueError("Fetching needs your consent to these terms: add --yes.")
            if not Confirm.ask("Fetch?", console=console):
                console.print("Nothing was fetched.")
                return
        folder = fetch(
            self.name,
            parts,
            revision=self.revision,
            source=self.source,
            dit=self.dit,
            keep_source=self.keep_source,
            height=self.height,
            width=self.width,
        )
        then = "sanawm render --help" if self.name in OFFLINE else f"sanawm encode-prompts FILE --world {self.name}"
        say(f"world {folder} (next: {then})")

    def show(self, parts: tuple[str, ...]) -> None:
        """Print a table of parts and their sizes, and the notices."""
        from sanawm_env.system.files import disk_usage
        from sanawm_env.world.folders import home

        table = Table("part", "from", "GB", "terms (who says so, when)", title=f"the {self.name} world")
        network = OFFICIAL[self.name]["dit"].repository
        download = converted = given_back = 0.0
        for part in parts:
            entry = OFFICIAL[self.name][part]
            revision = (self.revision if entry.repository == network else None) or PINS.get(entry.repository)
            place = f"https://huggingface.co/{OWNER}/{entry.repository}/tree/{revision or 'main'}"
            size = entry.gigabytes
            if part == "dit" and self.dit is not None:
                place, size = str(self.dit), 0.0
            terms = "\n".join(map(str, entry.notices))
            table.add_row(part, place, f"{size:g}", terms, end_section=True)
            download, converted = download + size, converted + entry.converted
            given_back += size if entry.converted and not self.keep_source else 0.0
        console.print(table)
        console.print(NOTICE)
        console.print(f"Further: {PI3X}. Sizes and revisions: {REPORTS}.")
        sentence = f"To download: {download:.1f} GB"
        if converted:
            sentence += f"; converted weights: {converted:.1f} GB"
        sentence += f"; kept: {download + converted - given_back:.1f} GB"
        if given_back:
            sentence += f" ({given_back:.1f} GB are deleted after the conversion; --keep-source keeps them)"
        free = f"Free at {home()}: {disk_usage(home()).free / 1e9:.1f} GB."
        say(f"{sentence}. {free}")
