r"""What a GPU says of the kernels, in one command of some minutes: `python benchmarks/gpu_check.py OUT`.

Tests of the kernels, rounding of the gated delta rule in every precision, every operator and the step against plain
torch and a floor, CUDA graphs, memory over a long walk; then one table, with the targets of kernels.md 3 and 4 where
there are any. OUT/gpu_check.json has all numbers and is written anew after every part. Every part is a process of its
own: a crash, or a GPU that no longer answers, costs that part alone (FAILED, exit status 1). `--quick` is a trial at
toy sizes on any machine, with the Triton kernels where TRITON_INTERPRET=1. Files of tests/ are run by pytest.

A GPU machine without a registry needs these wheels beside torch, triton, numpy, scipy, safetensors, pillow, psutil,
packaging, rich, cloudpickle, einops, transformers, pytest and hypothesis (the last two for the tests against fla):

    pip download --no-deps --dest .whl gymnasium==1.4.0 farama-notifications==0.0.6 \
        tyro==1.0.17 docstring-parser==0.18.0 typeguard==4.6.0 fla-core==0.6.0 flash-linear-attention==0.6.0

and there, in the repository with `.whl` carried along:

    python3 -m pip install -q --no-index --no-deps .whl/*.whl && python3 -m pip install -q --no-index --no-deps \
        --no-build-isolation -e . && python3 benchmarks/gpu_check.py $OUT
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast
from xml.etree import ElementTree

import torch
from harness import ROOT, parser
from rich import box
from rich.console import Console
from rich.table import Table
from sanawm_env.kernels import reference
from sanawm_env.kernels.inputs import GDNState
from torch import Tensor

from sanawm_env.cli import bench_kernels as bench
from sanawm_env.cli.bench_kernels import StepInputs, Subject
from sanawm_env.engines.sanawm.config import SanaWorldConfig
from sanawm_env.engines.sanawm.network.config import SanaWMConfig
from sanawm_env.engines.sanawm.sampler import SamplerConfig
from sanawm_env.system.saving import write_text
from sanawm_env.system.signals import interrupting
from sanawm_env.system.terminal import literal_console
from sanawm_env.world import tree
from sanawm_env.world.world import usable_device

LONGEST = 180  # seconds that one part may take
NO_TESTS = 5  # pytest's exit status where all were skipped
TINY = SanaWorldConfig(
    name="tiny",
    network=SanaWMConfig(
        latent_channels=6,
        hidden_size=16,
        depth=2,
        num_heads=1,
        head_dim=16,
        mlp_ratio=2,
        caption_channels=3,
        text_len=4,
        softmax_every_n=2,
        input_size=1,
    ),
    sampler=SamplerConfig(timesteps=(1000,)),
    height=16,
    width=24,
    spatial_stride=8,
)

# Relative error of the state after 3, 30 and 120 frames: what tests/test_kernels.py holds emulated rounding to.
AS_CALLED = "as called"  # by the network
ROUNDING = {"fp32": (2e-7, 3e-7, 5e-7), "tf32": (3e-4,) * 3, "bf16": (1.5e-3,) * 3, AS_CALLED: (1.5e-3,) * 3}

# kernels.md 3, of the full network: at least so many times faster than plain torch, at most so many times the floor.
FASTER = {"gdn": 8.0, "depthwise_glu": 3.0, "step": 2.5}
OVER_FLOOR = {"gdn": 3.0, "depthwise_glu": 1.4, "step": 1.3}
STEP_MS = {1: 128.0, 4: 485.0}
UPSTREAM = {"gdn": 2.5, "step": 1.3}  # so many times faster than upstream's kernels
GDN_SHARE = 0.03  # of a step, below which there is nothing left to tune
WANTED_CHECKS = {"grown_bytes": 0, "repeats_bit_for_bit": True}


@dataclass(frozen=True)
class Setting:
    """What the parts run on."""

    tiny: bool
    device: torch.device

    @property
    def frames(self) -> tuple[int, ...]:
        """After how many frames rounding is looked at."""
        return (3,) if self.tiny else (3, 30, 120)

    def config(self, size: str) -> SanaWorldConfig:
        return TINY if self.tiny else bench.sized(size, str(self.device))

    def subject(self, config: SanaWorldConfig) -> Subject:
        """On a GPU or in the interpreter with the Triton kernels."""
        interpreted = os.environ.get("TRITON_INTERPRET") == "1"
        backend = "triton" if self.device.type == "cuda" or interpreted else None
        return bench.random_subject(config, self.device, 1 if self.tiny else 5, backend)


@dataclass(frozen=True)
class Check:
    """A row of the last table. verdict: met, missed, or nothing."""

    what: str
    measured: str
    wanted: str = ""
    verdict: str = ""


Result = tuple[list[Check], Any]


def against(what: str, measured: str, value: float, relation: str, bound: float | None) -> Check:
    """A row with what is wanted and whether it was met, where there is a bound."""
    if bound is None:
        return Check(what, measured)
    met = value >= bound if relation == ">=" else value <= bound
    return Check(what, measured, f"{relation} {bound:.3g}", "met" if met else "missed")


# --- parts: each returns rows of the last table and numbers ---


def versions(setting: Setting) -> Result:
    numbers = bench.header(setting.subject(setting.config("nano")))
    numbers |= {"python": sys.version.split()[0], "cuda": torch.version.cuda}
    names = ("machine", "python", "torch", "cuda", "triton", "backend")
    return [Check(name, str(numbers[name])) for name in names], numbers


def rounding(setting: Setting) -> Result:
    """The operator of one GDN block against the float64 reference, each with its own state."""
    config = setting.config("full")
    subject = setting.subject(replace(config, dtype="float32", network=replace(config.network, depth=1)))
    rows, numbers = [], {}
    for mode in ROUNDING if subject.fast.name == "triton" else [AS_CALLED]:
        numbers[mode] = walk_errors(subject, mode, setting.frames)
        for (frames, (state, read)), bound in zip(numbers[mode].items(), ROUNDING[mode], strict=False):
            text = f"state {state:.1e}, read-out {read:.1e}"
            rows.append(against(f"gdn error, {mode}, {frames} frames", text, state, "<=", bound))
    return rows, numbers


@torch.inference_mode()
def walk_errors(subject: Subject, mode: str, frames: Sequence[int]) -> dict[int, tuple[float, float]]:
    """Relative errors of state and read-out after so many frames, which resemble each other. As the network calls the
    operator, projections are in bfloat16 on a GPU, and the reference reads the same rounded ones."""
    options = {} if mode == AS_CALLED else {"precision": mode}
    dtype = torch.bfloat16 if subject.device.type == "cuda" and mode == AS_CALLED else torch.float32
    same, errors = bench.noise_of(subject, 1, 1000), {}
    state = exact = None
    for chunk in range(1, frames[-1] // 3 + 1):
        noise = 0.9 * same + 0.44 * bench.noise_of(subject, 1, chunk)
        inputs, *_ = bench.operands(subject, StepInputs(noise, bench.prepared(subject, 1, chunk), None))["gdn"]
        main, camera = tree.map_tensors(lambda t: t.to(dtype), (inputs.main, inputs.camera))
        inputs = replace(inputs, main=main, camera=camera)
        *reads, state = subject.fast.gdn(inputs, state, True, **options)
        *exact_reads, exact = reference.gdn(tree.map_tensors(_double, inputs), exact, True)
        if 3 * chunk in frames:
            both = cast(tuple[GDNState, GDNState], (state, exact))
            held, exactly = ((s.kv, s.z, s.camera_kv) for s in both)
            errors[3 * chunk] = _error(held, exactly), _error(reads, exact_reads)
    return errors


def _double(t: Tensor) -> Tensor:
    return t.to(torch.complex128 if t.is_complex() else torch.float64)


def _error(got: Sequence[Any], exact: Sequence[Any]) -> float:
    """The largest relative error of several tensors."""
    return max(((g.double() - e).norm() / e.norm()).item() for g, e in zip(got, exact, strict=True))


def ratios(setting: Setting, size: str, batch: int) -> Result:
    """Operators and step against plain torch and floors, beside the targets of the full network."""
    config = setting.config(size)
    subject = setting.subject(config)
    numbers = bench.header(subject) | {"threads": torch.get_num_threads()}
    numbers["batch"] = {batch: bench.against_floors(subject, batch)}
    console().print(bench.ratio_table(numbers))
    measured, full, rows = numbers["batch"][batch]["rows"], size == "full", []
    for name, r in measured.items():
        faster, over = (targets.get(name) if full else None for targets in (FASTER, OVER_FLOOR))
        text = f"{r['reference_ms']:.4g} / {r['fast_ms']:.4g} ms = {r['ratio']:.2f}"
        rows.append(against(f"{name} {batch}, reference / fast", text, r["ratio"], ">=", faster))
        text = f"{r['fast_ms']:.4g} / {r['floor_ms']:.4g} ms = {r['over_floor']:.2f}"
        rows.append(against(f"{name} {batch}, fast / floor ({r['floor']})", text, r["over_floor"], "<=", over))
    if full:
        rows += whole_step(config, batch, measured)
    if peak := numbers["batch"][batch]["peak_bytes"]:
        rows.append(Check(f"most memory at batch {batch}", f"{peak / 1e9:.2f} GB"))
    return rows, numbers


def whole_step(config: SanaWorldConfig, batch: int, measured: dict[str, Any]) -> list[Check]:
    """The full step's own targets; upstream's kernels, which two of them name, are not here to be measured."""
    net, step = config.network, measured["step"]["fast_ms"]
    calls = sum(not net.is_softmax(i) for i in range(net.depth)) * (len(config.sampler.timesteps) + 1)
    share = calls * measured["gdn"]["fast_ms"] / step
    return [
        against(f"step {batch}", f"{step:.4g} ms", step, "<=", STEP_MS.get(batch)),
        against(f"gdn's share of step {batch}", f"{share:.3f}", share, "<=", GDN_SHARE),
        *(Check(f"{name} {batch}, upstream / fast", "not measured", f">= {x}") for name, x in UPSTREAM.items()),
    ]


def device_checks(setting: Setting, size: str) -> Result:
    numbers = bench.device_checks(setting.subject(setting.config(size)), 1)
    rows = []
    for name, value in numbers.items():
        text = f"{value:.4g}" if isinstance(value, float) else str(value)
        wanted = WANTED_CHECKS.get(name)
        verdict = "" if wanted is None else "met" if value == wanted else "missed"
        rows.append(Check(name.replace("_", " "), text, "" if wanted is None else str(wanted), verdict))
    return rows, numbers


def graphs(setting: Setting, size: str) -> Result:
    numbers = bench.graphed(setting.subject(setting.config(size)), 1)
    if not numbers:
        return [Check("step 1 as a CUDA graph", "no CUDA device")], numbers
    launched, graph = numbers.values()
    text = f"{launched:.4g} / {graph:.4g} ms = {launched / graph:.2f}"
    return [Check("step 1, launched / as a CUDA graph", text)], numbers


PARTS: dict[str, tuple[Callable[..., Result], tuple]] = {
    "versions": (versions, ()),
    "rounding": (rounding, ()),
    "full 1": (ratios, ("full", 1)),
    "full 4": (ratios, ("full", 4)),
    "full checks": (device_checks, ("full",)),
    "full graphs": (graphs, ("full",)),
    "nano 1": (ratios, ("nano", 1)),
    "nano 16": (ratios, ("nano", 16)),
    "nano graphs": (graphs, ("nano",)),
}
ORDER = (
    "versions",
    "test_kernels_triton",
    "rounding",
    "full 1",
    "test_world_triton",
    "full checks",
    "full graphs",
    "nano 1",
    "nano graphs",
    "full 4",
    "nano 16",
    "test_kernels_fla",
    "test_ablation",
)
"""What is in PARTS, and files of tests; by what matters most, for time may run out."""
TINY_ORDER = ("versions", "rounding", "full 1", "full checks", "full graphs", "test_files")


# --- running them ---


def check(options: Namespace) -> int:
    """All parts, the file and the table; the exit status."""
    options.out.mkdir(parents=True, exist_ok=True)
    deadline, done = time.monotonic() + 60 * options.minutes, {}
    for name in options.only or (TINY_ORDER if options.quick else ORDER):
        left = min(deadline - time.monotonic(), LONGEST)
        done[name] = run_part(name, options, left) if left > 0 else {"status": "skipped", "seconds": 0, "rows": []}
        write_text(options.out / "gpu_check.json", json.dumps(done, indent=1) + "\n")
    table = Table("part", "what", "measured", "wanted", "verdict", box=box.SIMPLE_HEAD)
    for name, part in done.items():
        table.add_row(name, f"{part['seconds']:.0f} s", "", "", part["status"])
        for row in part["rows"]:
            table.add_row("", *row.values())
    console().print(table)
    return int(any(part["status"] == "FAILED" for part in done.values()))


def run_part(name: str, options: Namespace, limit: float) -> dict[str, Any]:
    """Status, seconds, rows and numbers of a part in a process of its own, which is ended after `limit` seconds."""
    print(f"--- {name}", flush=True)
    begin, tests = time.monotonic(), name not in PARTS
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report"
        if tests:
            command = ["-m", "pytest", "-q", f"--junitxml={report}", str(ROOT / "tests" / f"{name}.py")]
        else:
            command = [__file__, str(report), "--part", name, *["--quick"] * options.quick]
            command += ["--device", options.device] if options.device else []
        try:
            code, rows = subprocess.run([sys.executable, *command], cwd=ROOT, timeout=limit).returncode, []
        except subprocess.TimeoutExpired:
            code, rows = None, [asdict(Check("out of time", f"{limit:.0f} s"))]
        found = {"rows": []}
        if report.exists():
            found = {"rows": read_tests(report)} if tests else json.loads(report.read_text())
    passed = code == 0 or (tests and code == NO_TESTS)
    found["rows"] += rows
    return {"status": "ok" if passed else "FAILED", "seconds": time.monotonic() - begin, **found}


def read_tests(report: Path) -> list[dict[str, str]]:
    """Counts of a file of tests, and the names of those that failed."""
    (suite,) = ElementTree.parse(report).getroot()
    count = {name: int(suite.get(name, "")) for name in ("tests", "failures", "errors", "skipped")}
    failed = count["failures"] + count["errors"]
    text = f"{count['tests'] - failed - count['skipped']} passed, {failed} failed, {count['skipped']} skipped"
    bad = [case.get("name", "") for case in suite if case.find("failure") is not None or case.find("error") is not None]
    rows = [Check("tests", text, "0 failed", "missed" if failed else "met"), *(Check(name, "failed") for name in bad)]
    return [asdict(row) for row in rows]


def report_part(options: Namespace) -> None:
    """One part in this process; its rows and numbers as JSON."""
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    part, arguments = PARTS[options.part]
    rows, numbers = part(Setting(options.quick, usable_device(device)), *arguments)
    write_text(options.out, json.dumps({"rows": [asdict(row) for row in rows], "numbers": numbers}))


def console() -> Console:
    """Wide where nobody watches: its tables go to a log."""
    return literal_console(width=None if sys.stdout.isatty() else 140)


def main() -> None:
    options = parser(__doc__, json=False)
    options.add_argument("out", type=Path, help="folder for gpu_check.json; made if missing")
    options.add_argument("--minutes", type=float, default=8, help="what has not begun after so many is skipped")
    options.add_argument("--device", help="cuda where there is one, else cpu")
    options.add_argument("--only", nargs="+", help=f"these parts alone: {', '.join(PARTS)}, or files of tests")
    options.add_argument("--part", choices=PARTS, help="this part in this process, its report written to OUT (a file)")
    given = options.parse_args()
    for name in given.only or ():
        if name not in PARTS and not (ROOT / "tests" / f"{name}.py").is_file():
            options.error(f"there is no part {name!r}")
    with interrupting():
        sys.exit(report_part(given) if given.part else check(given))


if __name__ == "__main__":
    main()
