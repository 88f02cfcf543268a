"""`sanawm encode-prompts`: encode prompts once, so that environments need no text encoder."""

from dataclasses import dataclass
from pathlib import Path

import tyro

from sanawm_env.cli.arguments import WorldOnDevice
from sanawm_env.cli.output import progress, say
from sanawm_env.system.files import check_prompt, explaining, read_text

MOST_BYTES = 64 * 2**20


@dataclass(frozen=True, kw_only=True)
class EncodePrompts(WorldOnDevice):
    """Encode prompts into a world's cache, so that environments need no text encoder. Cached prompts are skipped."""

    file: tyro.conf.Positional[Path]
    """Text file, one prompt per line; blank lines and lines that begin with # are skipped."""
    world: str = "streaming"
    """Name or folder of the world."""
    offload: bool = False
    """Run the encoders block by block from the host's memory, for a GPU that they do not fit."""
    softcap: bool = False
    """Soft-cap the encoder's attention scores, which the official pipeline does not do."""

    def run(self) -> None:
        """Encode the prompts of the file and the empty one; each is saved as soon as it is done.

        Raises:
            FileNotFoundError: for a missing file or text encoder.
            ValueError: for a file that is no list of prompts, or a world without a text encoder.
        """
        from sanawm_env.engines.sanawm.prompts import Prompts
        from sanawm_env.world.folders import find_world

        if not self.file.exists():
            raise FileNotFoundError(f"There is no file of prompts at {self.file}.")
        with explaining(f"{self.file} is not a list of prompts"):
            lines = [line.strip() for line in read_text(self.file, MOST_BYTES).splitlines()]
        prompts = []
        for number, line in enumerate(lines, start=1):
            if line and not line.startswith("#"):
                with explaining(f"Line {number} of {self.file}"):
                    prompts.append(check_prompt(line))
        folder = find_world(self.world)
        if not isinstance(folder, Path):
            raise ValueError(f"The {self.world} world takes no prompts: give the --world of official weights.")
        if not (folder / "text" / "config.json").is_file():
            raise FileNotFoundError(
                f"The {self.world} world has no text encoder in {folder}: run `sanawm fetch {self.world} --parts text`."
            )
        refiner = (folder / "refiner" / "text").exists()
        words = Prompts(
            folder, self.world, softcap=self.softcap, load_encoders=True, refiner=refiner, offload=self.offload
        )
        missing = words.missing(prompts)
        with progress("encoding", "prompts") as bar:
            task = bar.add_task("", total=len(missing))
            words.encode(missing, self.device, lambda: bar.advance(task))
        say(f"{len(missing)} prompts encoded into {folder / 'prompts'}")
