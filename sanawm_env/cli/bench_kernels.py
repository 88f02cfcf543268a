"""Time every operator and the whole network step against plain torch, and against a lower bound.

Three things are timed in turns on one machine: the reference, the backend that `kernels.dispatch` chooses there, and
what bounds it: copies, and matrix products of the network's shapes. Work is counted from shapes alone (`least_work`,
after kernels.md 3). The network has random weights and a full attention window.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import date
from functools import partial
from importlib import metadata
from importlib.util import find_spec
from statistics import median
from typing import Any, cast

import psutil
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor

from sanawm_env.cli.bench_world import synchronize
from sanawm_env.cli.machine import machine_name
from sanawm_env.engines.sanawm.config import SanaWorldConfig
from sanawm_env.engines.sanawm.fetch import world_config
from sanawm_env.engines.sanawm.graphs import CudaRecorder, Graphs
from sanawm_env.engines.sanawm.network.config import SanaWMConfig
from sanawm_env.engines.sanawm.network.context import Context
from sanawm_env.engines.sanawm.network.model import SanaWM
from sanawm_env.engines.sanawm.network.state import NetworkState
from sanawm_env.engines.sanawm.sampler import sample_chunk
from sanawm_env.kernels import reference
from sanawm_env.kernels.dispatch import Kernels, choose
from sanawm_env.kernels.inputs import Grid
from sanawm_env.system.terminal import table
from sanawm_env.world import tree
from sanawm_env.world.engine import read_config
from sanawm_env.world.folders import world_folder
from sanawm_env.world.world import usable_device

OPERATORS = ("gdn", "depthwise_glu", "attend")
FULL_AFTER = 2  # chunks until the attention window holds the first chunk and the one before
CHUNKS = 40  # of the walk that must not let memory grow
READING = 0.01  # seconds that one reading of the clock covers at least
LARGE_COPY = 2**28  # bytes that no GPU's cache holds
MEMORY_FACTOR = 1.5  # the full network's memory on a CPU over that of its weights


@dataclass(frozen=True, eq=False)
class Subject:
    """What is measured.

    Attributes:
        config: of the world.
        network: with random weights.
        fast: the operators that are compared with the reference.
        repeats: measurements of which a median is taken.
    """

    config: SanaWorldConfig
    network: SanaWM
    fast: Kernels
    repeats: int

    @property
    def device(self) -> torch.device:
        """The device of the network."""
        return self.network.final_layer.linear.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the network."""
        return getattr(torch, self.config.dtype)

    def grid(self, chunk: int) -> Grid:
        """The latent grid of a chunk; chunk 0 has one frame more."""
        config = self.config
        return Grid(config.latents_per_chunk + (chunk == 0), config.latent_height, config.latent_width)


@dataclass(frozen=True, eq=False)
class StepInputs:
    """The inputs of a step.

    Attributes:
        noise: (B, c, T, h, w).
        context: of the chunk.
        state: of the network, before the step.
    """

    noise: Tensor
    context: Context
    state: NetworkState | None


def bench_kernels(
    config: SanaWorldConfig, threads: int, repeats: int, batches: Sequence[int], device: str, console: Console
) -> dict[str, Any]:
    """Measure, and print the tables.

    Args:
        config: of the world.
        threads: of torch.
        repeats: measurements of which a median is taken.
        batches: batch sizes.
        device: of torch.
        console: where tables are printed.

    Returns:
        The numbers as plain values.

    Raises:
        ValueError: for a device that cannot be used, or a network that does not fit into memory.
    """
    torch.set_num_threads(threads)
    with console.status("making weights"):
        subject = random_subject(config, usable_device(device), repeats)
    numbers: dict[str, Any] = header(subject) | {"threads": threads, "batch": {}}
    for batch in batches:
        with console.status(f"batch {batch}"):
            numbers["batch"][batch] = against_floors(subject, batch)
    console.print(ratio_table(numbers))
    if subject.device.type == "cuda":
        numbers["device_checks"] = device_checks(subject, min(batches)) | graphed(subject, min(batches))
        console.print(flat_table("on this device", numbers["device_checks"]))
    return numbers


def sized(size: str | None, device: str) -> SanaWorldConfig:
    """The config of the shipped nano world or, for "full", of the official model at 704 x 1280. None is "full" on CUDA
    devices, and "nano" elsewhere.
    """
    if size is None:
        size = "full" if device.startswith("cuda") else "nano"
    if size == "full":
        return world_config("full", SanaWMConfig(), 704, 1280)
    return cast(SanaWorldConfig, read_config(world_folder("nano") / "config.json"))


def random_subject(config: SanaWorldConfig, device: torch.device, repeats: int, backend: str | None = None) -> Subject:
    """A subject with random weights. backend: of the fast operators; None for the one that is chosen on the device.

    Raises:
        ValueError: as `random_network`.
    """
    dtype = getattr(torch, config.dtype)
    network = random_network(config.network, device, dtype)
    with torch.inference_mode():
        return Subject(config, network, choose(device, dtype, backend), repeats)


def random_network(config: SanaWMConfig, device: torch.device, dtype: torch.dtype) -> SanaWM:
    """A network with random weights: matrices scaled by fan-in, norms of one, GDN blocks with a memory of about 150
    frames, and everything else zero.

    Raises:
        ValueError: for a CPU without enough free memory.
    """
    with torch.device("meta"):
        network = SanaWM(config).to(dtype)
    needed = MEMORY_FACTOR * sum(p.nbytes for p in network.parameters())
    free = psutil.virtual_memory().available
    if device.type == "cpu" and needed > free:
        raise ValueError(f"This network takes {needed / 1e9:.1f} GB, {free / 1e9:.1f} are free: use --size nano.")
    network = network.to_empty(device=device).eval().requires_grad_(False)
    generator = torch.Generator(device).manual_seed(0)
    for tensor in network.buffers():
        tensor.zero_()
    for name, parameter in network.named_parameters():
        if parameter.ndim > 1 and "table" not in name:
            parameter.normal_(std=parameter[0].numel() ** -0.5, generator=generator)
        elif name.endswith(("norm.weight", "norm_cam.weight")):
            parameter.fill_(1)
        else:
            parameter.fill_(-5 if name.endswith("dt_bias") else 0)
    return network


# --- what the network is given ---


def prepared(subject: Subject, batch: int, chunk: int) -> Context:
    """The context of a chunk of a walk straight ahead."""
    net, device, grid = subject.config.network, subject.device, subject.grid(chunk)
    first = subject.config.latents_per_chunk * chunk + (chunk > 0)
    c2w = torch.eye(4, device=device).repeat(batch, grid.frames, 1, 1)
    c2w[..., 2, 3] = 0.2 * torch.arange(first, first + grid.frames, device=device)
    intrinsics = torch.tensor([0.7 * grid.width, 0.7 * grid.width, grid.width / 2, grid.height / 2], device=device)
    normal = partial(_normal, chunk, device)
    return subject.network.prepare(
        grid,
        torch.full((batch,), first, device=device),
        text=normal(batch, net.text_len, net.caption_channels),
        text_mask=torch.ones(batch, net.text_len, device=device) if net.text_len > 1 else None,
        camera=torch.cat((c2w.flatten(2), intrinsics.expand(batch, grid.frames, 4)), dim=-1),
        plucker=normal(batch, net.plucker_channels, *grid.shape),
    )


def noise_of(subject: Subject, batch: int, chunk: int) -> Tensor:
    """The noise of a chunk, (B, c, T, h, w)."""
    channels = subject.config.network.latent_channels
    return _normal(chunk, subject.device, batch, channels, *subject.grid(chunk).shape).to(subject.dtype)


def _normal(seed: int, device: torch.device, *shape: int) -> Tensor:
    return torch.randn(*shape, device=device, generator=torch.Generator(device).manual_seed(seed))


def settled(subject: Subject, batch: int, backend: str) -> StepInputs:
    """The inputs of the first step with a full attention window, by the operators of a backend."""
    subject.network.backend = backend
    clean, state = torch.zeros(batch, device=subject.device), None
    for chunk in range(FULL_AFTER + 1):
        inputs = StepInputs(noise_of(subject, batch, chunk), prepared(subject, batch, chunk), state)
        if chunk < FULL_AFTER:
            _, state = subject.network(inputs.noise, clean, inputs.context, state, save=True)
    return inputs


def operands(subject: Subject, inputs: StepInputs) -> dict[str, tuple]:
    """The arguments with which a denoising pass first calls each operator."""
    given: dict[str, tuple] = {}

    def noted(name: str, *args: Any) -> Any:
        given.setdefault(name, args)
        return getattr(reference, name)(*args)

    noting = replace(inputs.context.kernels, **{name: partial(noted, name) for name in OPERATORS})
    level = torch.full((inputs.noise.shape[0],), 500.0, device=subject.device)
    subject.network(inputs.noise, level, replace(inputs.context, kernels=noting), inputs.state)
    return given


def step(subject: Subject, inputs: StepInputs) -> tuple[Tensor, NetworkState]:
    """All passes over a chunk, the clean one included."""
    return sample_chunk(subject.network, inputs.noise, inputs.context, inputs.state, subject.config.sampler)


# --- floors ---


@dataclass(frozen=True)
class Work:
    """The least work of an operation.

    Attributes:
        bytes: to move.
        flops: additions and multiplications in matrix products.
    """

    bytes: int
    flops: int


def least_work(config: SanaWorldConfig, batch: int) -> dict[str, Work]:
    """The least work of one call of each operator, and of a block's norms, modulations and residuals.

    Tokens n = T S of width c = h d; f channels behind the gate; e bytes per element; k keys in the window: the first
    chunk (T + 1 frames), the previous and the current one.

    gdn: reads six projections and writes two results, 8 b n c e. Per frame and head, five Gram matrices (key x key and
        key x value of both branches, key x key of the normaliser) and two products with queries, of 2 S d^2; per head,
            two
        branches of T updates forward and T - 1 backward, of 2 d^3.
    depthwise_glu: reads 2 f channels and writes f, 3 b n f e; no matrix product.
    attend (one branch): queries, result, keys and values, 2 b (n + k) c e; scores and their use, 4 b n k c.
    norms: everything read and written six times, 12 b n c e.
    """
    net, frames = config.network, config.latents_per_chunk
    tokens = config.latent_height * config.latent_width
    b, n, c, d = batch, frames * tokens, net.hidden_size, net.head_dim
    f, e, k = int(c * net.mlp_ratio), getattr(torch, config.dtype).itemsize, (3 * frames + 1) * tokens
    updates = 4 * (2 * frames - 1) * b * (c // d) * d**3
    return {
        "gdn": Work(8 * b * n * c * e, 14 * b * n * c * d + updates),
        "depthwise_glu": Work(3 * b * n * f * e, 0),
        "attend": Work(2 * b * (n + k) * c * e, 4 * b * n * k * c),
        "norms": Work(12 * b * n * c * e, 0),
    }


def step_floor(config: SanaWorldConfig, batch: int, floors: dict[str, float], tflops: float) -> float:
    """The lower bound of a step in milliseconds: the sum over passes and blocks.

    A block's products in units of 2 b n c^2, where r is the FFN's ratio: k and v of both branches 4; their q, output
    gate and projections 5; FFN 3 r; its temporal convolution 3; cross-attention 2 with more than one text token. What a
    prepared context holds is not counted. Of the clean pass's last block (softmax) only what the state needs counts:
    keys and values, and the last frame's tokens up to the temporal convolution.

    Args:
        config: of the world.
        batch: size.
        floors: lower bounds of one call of each operator, in milliseconds.
        tflops: rate of matrix products.
    """
    net = config.network
    passes, cross = len(config.sampler.timesteps) + 1, net.text_len > 1
    whole, last = passes * net.depth - 1, 1 / config.latents_per_chunk
    softmax = sum(net.is_softmax(i) for i in range(net.depth))
    b, c = batch, net.hidden_size
    n = config.latents_per_chunk * config.latent_height * config.latent_width
    for_output = 5 + 3 * net.mlp_ratio + 2 * cross
    units = whole * (4 + for_output + 3) + 4 + last * for_output + (2 * passes - 1) * net.latent_channels / c
    flops = units * 2 * b * n * c**2 + cross * (whole + last) * 4 * b * n * net.text_len * c
    return (
        flops / tflops / 1e9
        + passes * (net.depth - softmax) * floors["gdn"]
        + 2 * (passes * softmax - 1 + last) * floors["attend"]
        + (whole + last) * (floors["depthwise_glu"] + floors["norms"])
    )


def product_rates(subject: Subject, batch: int) -> dict[str, float]:
    """TFLOP/s of linear layers of the network's shapes ("tokens x in x out"), by the fast operators. Launches are
    included: most of the time for the nano network on a GPU.
    """
    net, grid = subject.config.network, subject.grid(1)
    n, c, f = batch * grid.frames * grid.tokens, net.hidden_size, int(net.hidden_size * net.mlp_ratio)
    shapes = ((n, c, c), (n, c, 3 * c), (n, 3 * c, c), (n, c, 2 * f), (n, f, c))
    rates = {}
    for rows, fan_in, fan_out in dict.fromkeys(shapes):
        x, w = (_normal(0, subject.device, *shape).to(subject.dtype) for shape in ((rows, fan_in), (fan_out, fan_in)))
        (seconds,) = in_turns([partial(subject.fast.linear, x, w)], subject.repeats, subject.device)
        rates[f"{rows}x{fan_in}x{fan_out}"] = 2 * rows * fan_in * fan_out / seconds / 1e12
    return rates


def copy_rate(subject: Subject, moved: int) -> float:
    """GB/s, read and written, of a copy: on a CPU of `moved` bytes, which may be in its caches; on a GPU of a large
    one, so that its launch does not count.
    """
    size = max(moved, LARGE_COPY if subject.device.type == "cuda" else 2) // 2
    source = torch.randint(256, (size,), dtype=torch.uint8, device=subject.device)
    (seconds,) = in_turns([partial(torch.empty_like(source).copy_, source)], subject.repeats, subject.device)
    return 2 * size / seconds / 1e9


# --- measurements ---


@torch.inference_mode()
def against_floors(subject: Subject, batch: int) -> dict[str, Any]:
    """The rows of operators and step at one batch size, and the rates behind their lower bounds."""
    fast = settled(subject, batch, subject.fast.name)
    peak = peak_bytes(subject, partial(step, subject, fast))
    plain = settled(subject, batch, "reference")
    work, products = least_work(subject.config, batch), product_rates(subject, batch)
    copies, tflops = copy_rate(subject, work["gdn"].bytes), max(products.values())
    limits = {name: {"copy": w.bytes / copies / 1e6, "GEMM": w.flops / tflops / 1e9} for name, w in work.items()}
    floors = {name: max(limit.values()) for name, limit in limits.items()}
    given, rows = operands(subject, plain), {}
    for name in OPERATORS:
        calls = [partial(getattr(form, name), *given[name]) for form in (reference, subject.fast)]
        rows[name] = row(subject, calls, floors[name], max(limits[name], key=limits[name].__getitem__))
    calls = [partial(step, subject, inputs) for inputs in (plain, fast)]
    rows["step"] = row(subject, calls, step_floor(subject.config, batch, floors, tflops), "sum")
    return {
        "rows": rows,
        "products_tflops": products,
        "copy_gb_per_s": copies,
        "peak_bytes": peak,
    }


def row(subject: Subject, calls: Sequence[Callable[[], Any]], floor: float, kind: str) -> dict[str, Any]:
    """Times of the reference and the fast form, their ratio, the ratio to the lower bound, and the relative difference
    of their first results.

    Args:
        subject: of the measurement.
        calls: the reference and the fast form.
        floor: lower bound in milliseconds.
        kind: what bounds it.
    """
    plain, fast = (_first(call()).double() for call in calls)
    difference = ((plain - fast).norm() / plain.norm()).item()
    del plain, fast
    reference_ms, fast_ms = (1e3 * seconds for seconds in in_turns(calls, subject.repeats, subject.device))
    return {
        "reference_ms": reference_ms,
        "fast_ms": fast_ms,
        "ratio": reference_ms / fast_ms,
        "floor_ms": floor,
        "floor": kind,
        "over_floor": fast_ms / floor,
        "difference": difference,
    }


@torch.inference_mode()
def device_checks(subject: Subject, batch: int) -> dict[str, Any]:
    """Facts about a GPU: torch's attention at the network's head width, and padded to a power of two; its channels-last
    depthwise convolution; bytes that stay allocated after a walk of `CHUNKS`; the size of a snapshot, and the time of a
    copy; whether a repeated step gives the same bits.
    """
    inputs = settled(subject, batch, subject.fast.name)
    given = operands(subject, inputs)
    q, pages, _ = given["attend"]
    k, v = (torch.cat(part, dim=2) for part in zip(*pages, strict=True))
    width = q.shape[-1]
    padded = [F.pad(t, (0, (1 << (width - 1).bit_length()) - width)) for t in (q, k, v)]
    x, weight, bias, grid = given["depthwise_glu"]
    image = x.unflatten(1, grid.shape).flatten(0, 1).permute(0, 3, 1, 2)
    calls = {
        f"attention_{width}_ms": partial(F.scaled_dot_product_attention, q, k, v),
        f"attention_{padded[0].shape[-1]}_padded_ms": partial(
            F.scaled_dot_product_attention, *padded, scale=width**-0.5
        ),
        "depthwise_conv_ms": partial(F.conv2d, image, weight, bias, padding=1, groups=x.shape[-1]),
        "state_copy_ms": partial(tree.map_tensors, torch.clone, inputs.state),
    }
    seconds = in_turns(list(calls.values()), subject.repeats, subject.device)
    (latents, state), (again, _) = step(subject, inputs), step(subject, inputs)
    held = tree.nbytes(inputs.state)
    return {
        "batch": batch,
        **{name: 1e3 * s for name, s in zip(calls, seconds, strict=True)},
        "state_bytes": held,
        "next_state_adds_bytes": tree.nbytes((inputs.state, state)) - held,
        "repeats_bit_for_bit": torch.equal(latents, again),
        "grown_bytes": grown_bytes(subject, inputs),
    }


def grown_bytes(subject: Subject, inputs: StepInputs) -> int:
    """Growth of allocated device memory from the third chunk of a walk of `CHUNKS` to its end; 0 on a CPU, without a
    walk.
    """
    if subject.device.type != "cuda":
        return 0
    allocated = []
    for _ in range(CHUNKS):
        inputs = replace(inputs, state=step(subject, inputs)[1])
        synchronize(subject.device)
        allocated.append(torch.cuda.memory_allocated(subject.device))
    return allocated[-1] - allocated[2]


@torch.inference_mode()
def graphed(subject: Subject, batch: int) -> dict[str, float]:
    """Milliseconds of the step with its launches one by one, and replayed as a CUDA graph that copies the state in and
    out; nothing on a CPU.
    """
    if subject.device.type != "cuda":
        return {}
    inputs = settled(subject, batch, subject.fast.name)
    record = CudaRecorder(subject.device)
    graph = Graphs(lambda _, noise, state: step(subject, replace(inputs, noise=noise, state=state)), record)
    calls = [partial(step, subject, inputs), partial(graph, None, inputs.noise, inputs.state)]
    launched, replayed = in_turns(calls, subject.repeats, subject.device)
    return {"step_launched_ms": 1e3 * launched, "step_graph_ms": 1e3 * replayed}


def peak_bytes(subject: Subject, call: Callable) -> int | None:
    """The largest device memory that was allocated during a call; None on a CPU."""
    if subject.device.type != "cuda":
        return None
    torch.cuda.reset_peak_memory_stats(subject.device)
    call()
    return torch.cuda.max_memory_allocated(subject.device)


def in_turns(calls: Sequence[Callable], repeats: int, device: torch.device) -> list[float]:
    """Median seconds of each call. Calls take turns, so that other load on the machine affects all of them; short ones
    are repeated until the clock resolves them.
    """

    def seconds(call: Callable, count: int) -> float:
        synchronize(device)
        begin = time.perf_counter()
        for _ in range(count):
            call()
        synchronize(device)
        return (time.perf_counter() - begin) / count

    for call in calls:
        call()  # kernels compile, caches fill
    counts = [max(1, round(READING / seconds(call, 1))) for call in calls]
    rounds = [[seconds(*pair) for pair in zip(calls, counts, strict=True)] for _ in range(repeats)]
    return [median(column) for column in zip(*rounds, strict=True)]


def _first(result: Any) -> Tensor:
    return result if isinstance(result, Tensor) else result[0]


# --- tables ---


def header(subject: Subject) -> dict[str, Any]:
    """What was measured, on which machine, with which versions."""
    return {
        "size": subject.config.name,
        "dtype": subject.config.dtype,
        "backend": subject.fast.name,
        "why": subject.fast.why,
        "device": str(subject.device),
        "machine": machine_name(subject.device),
        "torch": torch.__version__,
        "triton": metadata.version("triton") if find_spec("triton") else None,
        "repeats": subject.repeats,
        "date": str(date.today()),
    }


def ratio_table(numbers: dict[str, Any]) -> Table:
    """A table of times in milliseconds, one row per batch and operator."""
    title = f"{numbers['size']}, {numbers['dtype']}, {numbers['machine']}, {numbers['threads']} threads; times in ms"
    columns = ("batch", "what", "ref.", numbers["backend"], "faster", "floor", "by", "/ floor")
    rows, rates = [], []
    for batch, measured in numbers["batch"].items():
        for name, r in measured["rows"].items():
            cells = (f"{r['reference_ms']:.4g}", f"{r['fast_ms']:.4g}", f"{r['ratio']:.2f}", f"{r['floor_ms']:.4g}")
            rows.append((batch, name, *cells, r["floor"], f"{r['over_floor']:.2f}"))
        best, copies = max(measured["products_tflops"].values()), measured["copy_gb_per_s"]
        rates.append(f"batch {batch}: matrix products {best:.3g} TFLOP/s, copies {copies:.0f} GB/s")
    return table(*columns, rows=rows, title=title, caption="\n".join(rates), caption_justify="left")


def flat_table(title: str, numbers: dict[str, Any]) -> Table:
    """A table of names and numbers."""
    said = ((name.replace("_", " "), f"{x:.3f}" if isinstance(x, float) else x) for name, x in numbers.items())
    return table("what", "value", rows=said, title=title)
