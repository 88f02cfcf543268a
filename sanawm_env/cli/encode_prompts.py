"""`sanawm encode-prompts`: prompt features made once, so that environments need no text encoder."""

from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import Progress

from sanawm_env.engines.sanawm.prompts import Prompts
from sanawm_env.world.files import check_prompt, read_text
from sanawm_env.world.folders import world_folder

if TYPE_CHECKING:
    from sanawm_env.cli import EncodePrompts

MOST_BYTES = 64 * 2**20


def encode_prompts(options: "EncodePrompts", console: Console) -> None:
    """Encode the prompts of a file into a world's cache, the empty ones too; each is kept as soon as it is done.

    Raises FileNotFoundError or ValueError in one sentence.
    """
    if not options.file.exists():
        raise FileNotFoundError(f"There is no file of prompts at {options.file}.")
    try:
        lines = [line.strip() for line in read_text(options.file, MOST_BYTES).splitlines()]
    except ValueError as error:
        raise ValueError(f"{options.file} is not a list of prompts: {error}.") from error
    prompts = []
    for number, line in enumerate(lines, start=1):
        if line and not line.startswith("#"):
            try:
                prompts.append(check_prompt(line))
            except ValueError as error:
                raise ValueError(f"Line {number} of {options.file}: {error}") from error
    folder = world_folder(options.world)
    if not (folder / "text" / "config.json").is_file():
        raise FileNotFoundError(
            f"The {options.world} world has no text encoder in {folder}: "
            f"run `sanawm fetch {options.world} --parts text`."
        )
    refiner = (folder / "refiner" / "text").exists()
    words = Prompts(
        folder, options.world, softcap=options.softcap, load_encoders=True, refiner=refiner, offload=options.offload
    )
    missing = words.missing(prompts)
    with Progress(console=console) as progress:
        task = progress.add_task("encoding", total=len(missing))
        words.encode(missing, options.device, lambda: progress.advance(task))
    console.print(f"{len(missing)} encoded, {folder / 'prompts'}", soft_wrap=True)
