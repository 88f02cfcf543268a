"""The command `sanawm`: roll out, measure and train worlds from the shell.

Every command is a frozen dataclass with a `run` method; tyro makes the options. Heavy imports happen in `run`, so that
`sanawm --help` answers at once. What a user did wrong is said in one sentence, exit status 2.
"""

import ctypes
import json
import logging
import os
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, NoReturn

import tyro

from sanawm_env.world.signals import exit_status, interrupting
from sanawm_env.world.terminal import literal_console, out_of_memory

console = literal_console()
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h


@dataclass(frozen=True, kw_only=True)
class CameraPath:
    """Where the camera goes, given in one of three ways."""

    actions: str | None = None
    """Camera script of held keys, such as "w-48,dw-24,none-24" (keys wasdijkl, frames at 16 per second)."""
    trajectory: Path | None = None
    """Camera path instead: .npy (F, 4, 4) or .npz with c2w, camera-to-world, relative to its first pose."""
    twist: str | None = None
    """Constant velocity instead: vx,vy,vz,wx,wy,wz in m/s and rad/s about the camera's axes (right, down, forward)."""
    chunks: int = 4
    """How many chunks of 24 frames a twist is held."""


@dataclass(frozen=True, kw_only=True)
class Loading:
    """How a world is loaded."""

    text_encoder: bool = False
    """Load the text encoder for prompts that are not in the world's cache."""
    precision: Literal["bf16", "fp8", "nvfp4", "fp8-dynamic", "nvfp4-dynamic"] | None = None
    """Of the network; None as the world is configured."""
    refiner: bool = False
    """Run the second stage on every chunk."""
    refiner_precision: Literal["bf16", "fp8", "nvfp4", "fp8-dynamic", "nvfp4-dynamic"] | None = None
    """Of the second stage; None as it is."""
    offload: bool = False
    """Keep codec, refiner and text encoder in the host's memory while they are not in use."""
    offload_parts: str | None = None
    """Only these instead: some of codec, refiner, text, such as "codec,text"."""
    timesteps: str | None = None
    """Another list of noise levels, such as "1000,967,908,764", for weights that were trained to it."""
    flow_shift: float | None = None
    """Make the list with another shift instead; with --timesteps, which are shifted already, it is noted."""

    @property
    def load_options(self) -> dict[str, object]:
        """The keywords of `World.load` that were given; ValueError for a list that is none."""
        names = ("text_encoder", "precision", "refiner", "refiner_precision", "offload", "flow_shift")
        given = {name: getattr(self, name) for name in names if getattr(self, name) not in (None, False)}
        if self.offload_parts is not None:
            given["offload"] = self.offload_parts
        if self.timesteps is not None:
            given["timesteps"] = _listed(float, self.timesteps, "--timesteps takes numbers such as 1000,967,908,764")
        return given


@dataclass(frozen=True, kw_only=True)
class Rollout(CameraPath, Loading):
    """Imagine what a camera sees that starts at an image, and leave it as an episode: video.mp4, trajectory.npz,
    actions.npz, start.png, meta.json and a contact sheet."""

    image: Path | None = None
    """Start image, any format; None takes the world's first own one."""
    world: str = "nano"
    """Name or folder of the world."""
    seed: int = 0
    intrinsics: Path | None = None
    """.npy with fx, fy, cx, cy or a 3x3 matrix, in pixels of the image; None for the world's own lens."""
    fov_deg: float | None = None
    """Horizontal field of view of the world's picture instead, degrees."""
    prompt: str = ""
    """What the scene is, for worlds with text; encode it first (sanawm encode-prompts) or give --text-encoder."""
    horizon: Literal["stop", "reanchor"] = "stop"
    """For paths longer than the world was validated to: refuse, or go on from the last frame as a new start."""
    device: str = "cpu"
    out: Path = Path("runs/rollout")
    """Folder for the results; made if missing, checked before the work."""

    def run(self) -> None:
        from sanawm_env.cli.rollout import rollout

        rollout(self, console)


@dataclass(frozen=True, kw_only=True)
class Render(CameraPath):
    """Make one whole clip with the bidirectional model, offline, by diffusers' SanaWMPipeline. Leaves video.mp4,
    trajectory.npz, contact_sheet.png and meta.json."""

    image: Path
    """Start image, any format."""
    prompt: str = ""
    """What the scene is."""
    pipeline: Path | None = None
    """Folder in diffusers' layout; None for the one of `sanawm fetch bidirectional`."""
    steps: int = 60
    guidance_scale: float = 5.0
    negative_prompt: str = ""
    seed: int = 0
    intrinsics: Path | None = None
    """.npy with fx, fy, cx, cy or a 3x3 matrix, in pixels of the image; None for 90 degrees across."""
    fov_deg: float | None = None
    """Horizontal field of view of the picture instead, degrees."""
    height: int = 704
    width: int = 1280
    device: str = "cpu"
    offload: bool = False
    """Keep on the GPU only the part that works."""
    out: Path = Path("runs/render")
    """Folder for the results; made if missing, checked before the work."""

    def run(self) -> None:
        from sanawm_env.cli.render import render

        render(self, console)


@dataclass(frozen=True, kw_only=True)
class Play(Loading):
    """Walk through a world in the browser: drive, go back, branch, record."""

    world: str = "nano"
    """Name or folder of the world."""
    image: Path | None = None
    """Start image, any format; None takes the world's first own one."""
    prompt: str = ""
    """What the scene is, for worlds with text; encode it first (sanawm encode-prompts) or give --text-encoder."""
    fov_deg: float | None = None
    """Horizontal field of view of the picture, degrees; None for the world's own lens."""
    seed: int = 0
    session: Path | None = None
    """A saved session to go on with instead of an image."""
    driver: str | None = None
    """Who drives at first: a camera ("orbit:radius=2,degrees=60"), explore, image:NODE, point:X,Z or policy:FOLDER."""
    port: int = 8123
    """0 takes a free one."""
    host: str = "127.0.0.1"
    """Address to listen on; any other than this machine's own lets others drive."""
    allow_host: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Name by which browsers reach the page through a proxy, such as hub.example.org; may be given several times.
    Requests under other names are refused."""
    no_browser: bool = False
    """Open no browser, for remote machines."""
    memory_limit_gb: float = 4.0
    """Of moments on the device; older ones move to the host's memory and then to disk."""
    device: str = "cpu"
    out: Path = Path("runs/play")
    """Folder for recordings and saved sessions; made if missing."""

    def run(self) -> None:
        try:
            from sanawm_env.cli.play import play
        except ModuleNotFoundError as error:
            if error.name != "websockets":
                raise
            raise ImportError('The viewer needs websockets: pip install "sanawm-env[viewer]".') from error

        play(self, console)


@dataclass(frozen=True)
class Evaluate:
    """Measure a nano world against the ray-traced truth, on places and paths drawn from a seed."""

    world: str = "nano"
    scenes: int = 24
    seed: int = 0
    chunks: int = 8
    json: Path | None = None
    """Where to write the numbers."""
    out: Path = Path("runs/evaluate")
    """Folder for truth_vs_dream.png."""
    timesteps: str | None = None
    """Another list of noise levels, such as "1000,700"; None for the world's own."""
    unknown_scenes: int = 0
    """Also measure this many walks in layouts the world does not know, without anchors."""
    role: Literal["evaluate", "validation"] = "evaluate"
    """Which walks: those kept for the record, or those that decisions may look at."""

    def run(self) -> None:
        from sanawm_env.training.evaluate import evaluate, print_table, save_sheet

        sheet = self.out / "truth_vs_dream.png"
        _check_places(sheet, self.json, world=self.world)
        expected = "--timesteps takes numbers such as 1000,700"
        timesteps = _listed(float, self.timesteps, expected) if self.timesteps else None
        report = evaluate(
            self.world, self.scenes, self.seed, self.chunks,
            timesteps=timesteps, unknown_scenes=self.unknown_scenes, role=self.role,
        )  # fmt: skip
        print_table(report, console)
        save_sheet(report, sheet)
        say(f"sheet {sheet}")
        _write_numbers(self.json, report.to_json())


@dataclass(frozen=True)
class Study:
    """Probe a nano world for some minutes: poses from pixels, loops, a long walk, two seeds, numbers of steps."""

    world: str = "nano"
    scenes: int = 16
    seed: int = 0
    chunks: int = 8
    role: Literal["evaluate", "validation"] = "evaluate"
    """Which walks: those kept for the record, or those that decisions may look at."""
    json: Path | None = None
    """Where to write the numbers."""
    out: Path = Path("runs/study")
    """Folder for drift.png."""

    def run(self) -> None:
        from sanawm_env.metrics.figures import figure_class
        from sanawm_env.training.study import plot_drift, print_findings, study

        curves = self.out / "drift.png"
        _check_places(curves, self.json, world=self.world)
        figure_class()  # what the end needs is looked for before the work
        findings = study(self.world, self.scenes, self.seed, self.chunks, self.role)
        print_findings(findings, console)
        plot_drift(findings, curves)
        say(f"curves {curves}")
        _write_numbers(self.json, findings.to_json())


@dataclass(frozen=True)
class Bench:
    """Time a world on this machine: stages of a step, batches, snapshots, state size. Or its kernels: every operator
    and the network's step against plain torch and against floors measured in the same run."""

    what: tyro.conf.Positional[Literal["world", "kernels"]] = "world"
    world: str = "nano"
    """Name or folder of the world; kernels take random weights instead."""
    size: Literal["nano", "full"] | None = None
    """Of the network whose kernels are timed; None: the official one (5 GB, minutes a step on a CPU) on a CUDA device,
    nano elsewhere."""
    threads: int = 2
    """torch threads; nano is small, more than two rarely help."""
    repeats: int = 10
    batches: str = "1,4,16"
    """How many episodes step together, one table row each."""
    device: str = "cpu"
    json: Path | None = None

    def run(self) -> None:
        _check_places(self.json, world=self.world if self.what == "world" else None)
        batches = _listed(int, self.batches, "--batches takes whole numbers such as 1,4")
        options = self.threads, self.repeats, batches, self.device, console
        if self.what == "kernels":
            from sanawm_env.cli.bench_kernels import bench_kernels, sized

            numbers = bench_kernels(sized(self.size, self.device), *options)
        else:
            from sanawm_env.cli.bench import bench

            numbers = bench(self.world, *options)
        _write_numbers(self.json, json.dumps(numbers, indent=1))


@dataclass(frozen=True)
class Train:
    """Make a nano world: codec, clips, network, then a look at it. Goes on where it was stopped, at any kill."""

    out: Path = Path("runs/train")
    """Folder for everything; the finished world is in its folder `world`."""
    config: Path | None = None
    """A recipe, such as the recipe.json that a run leaves; what it leaves out is as shipped."""
    quick: bool = False
    """A tiny world in a few minutes: the same chain, for trying it out."""
    data: Path | None = None
    """Folder of one's own clips (video.mp4 and trajectory.npz each, as rollouts leave them) to learn from instead."""
    steps: int | None = None
    """Length of the training; a run can be made longer later."""
    processes: int = 2
    """Training processes of one thread each, each with a batch of its own."""
    device: str = "cpu"

    def run(self) -> None:
        from sanawm_env.cli.train import train

        train(self, console)


@dataclass(frozen=True)
class Collect:
    """Collect a dataset: scenes x cameras x seeds from a YAML file. Stop it at any moment: the same command goes on."""

    config: tyro.conf.Positional[Path]
    """The collection; see examples/collect.yaml."""
    out: Path | None = None
    """Folder of the dataset; None: runs/ and the name of the file."""
    dry_run: bool = False
    """Show what would be collected and the disk that it takes."""
    part: str | None = None
    """i/n: every n-th episode from the i-th (0 is the first), for many machines that share a disk."""
    ray: bool = False
    """One worker per GPU, or per core, of a Ray cluster; each writes a shard of its own."""
    ray_address: str | None = None
    """Of a running cluster, "auto" for the one of this machine; None starts one here."""
    workers: int | None = None
    """How many; None: as many as there are GPUs, or cores for a world on the CPU."""

    def run(self) -> None:
        from sanawm_env.cli.collect import collect_command

        collect_command(self, console)


@dataclass(frozen=True)
class Replay:
    """Imagine an episode again from what its meta.json says."""

    episode: tyro.conf.Positional[Path]
    """Its folder, of a dataset or a rollout."""
    verify: bool = False
    """Compare every byte to the episode, and keep nothing."""
    out: Path = Path("runs/replay")
    """Folder for the new one."""
    world: str | None = None
    """The world it was recorded in, if that is elsewhere by now."""
    device: str | None = None
    """None: the kind it was recorded on."""

    def run(self) -> None:
        from sanawm_env.cli.collect import replay_command

        replay_command(self, console)


@dataclass(frozen=True)
class DatasetInfo:
    """What is in a dataset."""

    dataset: tyro.conf.Positional[Path]

    def run(self) -> None:
        from sanawm_env.cli.dataset import info

        info(self, console)


@dataclass(frozen=True)
class DatasetValidate:
    """Look at every episode: files, hashes, lengths, videos decoded to the end."""

    dataset: tyro.conf.Positional[Path]
    quick: bool = False
    """Do not decode the videos."""

    def run(self) -> None:
        from sanawm_env.cli.dataset import check

        check(self, console)


@dataclass(frozen=True)
class DatasetMerge:
    """Bring datasets together; an episode that is in several is taken once. Files are linked where the disk can."""

    datasets: tyro.conf.Positional[tuple[Path, ...]]
    out: Path
    """Folder of the new dataset, or of one that grows."""

    def run(self) -> None:
        from sanawm_env.cli.dataset import bring_together

        bring_together(self, console)


@dataclass(frozen=True)
class DatasetPreview:
    """Draw a sheet of some episodes, and all camera paths from above."""

    dataset: tyro.conf.Positional[Path]
    out: Path | None = None
    """Folder for preview.png and trajectories.png; None: the dataset's."""

    def run(self) -> None:
        from sanawm_env.cli.dataset import look

        look(self, console)


@dataclass(frozen=True)
class DatasetExport:
    """Write a dataset in a format of others: LeRobot v3.0, or Minari (a picture and a pose per step)."""

    dataset: tyro.conf.Positional[Path]
    out: Path
    """New folder of the LeRobot dataset; for Minari the folder its datasets lie in (MINARI_DATASETS_PATH)."""
    format: Literal["lerobot", "minari"] = "lerobot"
    id: str | None = None
    """Name of the Minari dataset, such as "sanawm/nano-v0"."""

    def run(self) -> None:
        from sanawm_env.cli.export import export

        export(self, console)


DatasetCommand = (
    Annotated[DatasetInfo, tyro.conf.subcommand("info")]
    | Annotated[DatasetValidate, tyro.conf.subcommand("validate")]
    | Annotated[DatasetMerge, tyro.conf.subcommand("merge")]
    | Annotated[DatasetPreview, tyro.conf.subcommand("preview")]
    | Annotated[DatasetExport, tyro.conf.subcommand("export")]
)


@dataclass(frozen=True)
class Dataset:
    """Datasets: what is in one, whether it is whole, several brought together, pictures, other formats."""

    command: tyro.conf.OmitSubcommandPrefixes[DatasetCommand]

    def run(self) -> None:
        self.command.run()


@dataclass(frozen=True)
class Fetch:
    """Download official weights: worlds that `World.load` takes, converted once, or the bidirectional pipeline."""

    name: tyro.conf.Positional[Literal["streaming", "chunk-causal", "bidirectional"]] = "streaming"
    parts: str = "dit,codec,text"
    """Which of dit, codec, text and, for those that can be stepped, refiner."""
    revision: str | None = None
    """Commit, branch or tag of the network's repository; None for the pinned commit, or the network's own for parts
    that are added."""
    dit: Path | None = None
    """A file with the network's weights instead of the official one: somebody's conversion or training, safetensors or
    .pt, bfloat16 or float32, with any prefix before its names."""
    keep_source: bool = False
    """Keep the training checkpoint after its conversion, instead of giving its disk back."""
    source: Path | None = None
    """A local folder laid out as the hub (owner/repository/...) instead of the hub."""
    height: int = 704
    width: int = 1280
    yes: bool = False
    """Accept the licence notice without being asked."""

    def run(self) -> None:
        from sanawm_env.cli.fetch import fetch_command

        fetch_command(self, console)


@dataclass(frozen=True)
class EncodePrompts:
    """Encode prompts once, so that environments need no text encoder. What is cached already is skipped."""

    file: tyro.conf.Positional[Path]
    """One prompt per line; blank lines and lines that begin with # are skipped."""
    world: str = "streaming"
    device: str = "cpu"
    offload: bool = False
    """Run the encoders block by block from the host's memory, for a GPU that they do not fit."""
    softcap: bool = False
    """Soft-cap the encoder's attention scores, which the official pipeline does not."""

    def run(self) -> None:
        from sanawm_env.cli.encode_prompts import encode_prompts

        encode_prompts(self, console)


@dataclass(frozen=True)
class Doctor:
    """What is installed and downloaded, what this machine has, and which worlds will fit it."""

    memory_gb: float | None = None
    """Memory of the machine to plan for; None for what is free here."""

    def run(self) -> None:
        from sanawm_env.cli.doctor import doctor

        doctor(self, console)


@dataclass(frozen=True)
class Precision:
    """Measure what reduced precision costs a world: PSNR against its own bf16 rollout, and camera following."""

    world: str = "nano"
    scenes: int = 8
    seed: int = 0
    chunks: int = 8
    json: Path | None = None

    def run(self) -> None:
        from sanawm_env.cli.precision import measure

        _check_places(self.json, world=self.world)
        numbers = measure(self.world, self.scenes, self.seed, self.chunks, console)
        _write_numbers(self.json, json.dumps(numbers, indent=1))


Command = (
    Annotated[Rollout, tyro.conf.subcommand("rollout")]
    | Annotated[Render, tyro.conf.subcommand("render")]
    | Annotated[Play, tyro.conf.subcommand("play")]
    | Annotated[Evaluate, tyro.conf.subcommand("evaluate")]
    | Annotated[Study, tyro.conf.subcommand("study")]
    | Annotated[Bench, tyro.conf.subcommand("bench")]
    | Annotated[Collect, tyro.conf.subcommand("collect")]
    | Annotated[Replay, tyro.conf.subcommand("replay")]
    | Annotated[Dataset, tyro.conf.subcommand("dataset")]
    | Annotated[Fetch, tyro.conf.subcommand("fetch")]
    | Annotated[EncodePrompts, tyro.conf.subcommand("encode-prompts")]
    | Annotated[Doctor, tyro.conf.subcommand("doctor")]
    | Annotated[Precision, tyro.conf.subcommand("precision")]
    | Annotated[Train, tyro.conf.subcommand("train")]
)


def main(args: list[str] | None = None) -> None:
    """Entry point of the command `sanawm`. It ends with 2 where the user or the machine has to change something, with
    130 after Ctrl-C and 143 after SIGTERM, which is treated alike: what is done stays."""
    about = "A learned world you can step, fork and put back."
    _quiet_libraries()
    _keep_memory()
    _print_any_name()
    with interrupting():
        command = tyro.cli(Command, prog="sanawm", args=args, description=about)
        try:
            command.run()
        except KeyboardInterrupt as interrupt:
            with suppress(OSError):  # after SIGHUP there is no terminal
                console.print("Stopped.")
            sys.exit(exit_status(interrupt))
        except (ValueError, TypeError, OSError, ImportError) as error:
            _complain(str(error))
        except (MemoryError, RuntimeError) as error:
            if not (reason := out_of_memory(error)):
                raise
            _complain(f"the memory of this machine is full ({reason}): ask for less at once, or free some")


def _complain(sentence: str) -> NoReturn:
    with suppress(OSError):
        literal_console(stderr=True).print(f"sanawm: {sentence}", style="red", soft_wrap=True)
    sys.exit(2)


def _print_any_name() -> None:
    """Names of files that are no text in the terminal's encoding are shown with escapes."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError, ValueError, OSError):  # streams that others have put there
            stream.reconfigure(errors="backslashreplace")


def _quiet_libraries() -> None:
    """No word of what libraries notice about themselves; errors still show."""
    for name in ("torchao", "torch.utils._pytree"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for name in ("DIFFUSERS_VERBOSITY", "TRANSFORMERS_VERBOSITY"):
        os.environ.setdefault(name, "error")


def _keep_memory() -> None:
    """Let glibc keep what tensors leave instead of handing it back to the system page by page and asking again, which
    takes a third of a small network's step. Other C libraries are left alone."""
    if sys.platform == "linux":
        with suppress(AttributeError, OSError):
            mallopt = ctypes.CDLL("libc.so.6").mallopt
            mallopt(M_MMAP_THRESHOLD, 2**25)  # the most it takes
            mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def _check_places(*files: Path | None, world: str | None) -> None:
    """Raises what a file that cannot be written raises, ValueError for one of the world that is read; folders are made
    if missing."""
    from sanawm_env.recording.rollout import check_writable
    from sanawm_env.world.folders import world_folder
    from sanawm_env.world.saving import check_apart

    places = [file for file in files if file is not None]
    if world is not None:
        check_apart(places, world_folder(world).rglob("*"))
    for file in places:
        check_writable(file.parent, (file.name,))


def say(text: object) -> None:
    """Print a line that is not broken: paths stay whole."""
    console.print(text, soft_wrap=True)


def _write_numbers(file: Path | None, text: str) -> None:
    from sanawm_env.world.saving import write_text

    if file is not None:
        write_text(file, text + "\n")
        say(f"numbers {file}")


def _listed(kind: type, text: str, expected: str) -> tuple:
    """Numbers of a kind from a list with commas; ValueError that begins with what was expected."""
    try:
        return tuple(kind(number) for number in text.split(","))
    except ValueError:
        raise ValueError(f"{expected}, got {text!r}.") from None
