"""The official architecture at its full size, 704 x 1280, with random weights: does it run, and in the memory that
`sanawm doctor` predicts?

    python benchmarks/full_size.py write runs/full_size            # 8 GB on disk, a tensor at a time
    python benchmarks/full_size.py run runs/full_size              # on a CPU: 45 TFLOP, some minutes
    python benchmarks/full_size.py run runs/full_size --device cuda

`run` loads the world, encodes a start image, takes one denoising step and the clean pass for a first chunk, decodes it,
and keeps, forks and saves the state it leaves. Every stage is measured by itself: seconds, and the most memory of the
process besides what it took before the world was loaded (on CUDA, of torch's allocator), beside the prediction. Stages
that are done are written to the JSON file at once; a run that is stopped begins anew. Pictures of random weights are
noise. `--quick` is toy sizes, for a trial on any machine. On a GPU, `sanawm bench --world runs/full_size
--device cuda` goes on from there.
"""

import math
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from harness import console, header, numbers_file, parser, seconds, write
from harness import show as show_table
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from sanawm_env import SanaWMEnv
from sanawm_env.camera.twist import hold
from sanawm_env.engines.sanawm.checkpoint import Checkpoint, write_network
from sanawm_env.engines.sanawm.codec.ltx2 import LTX2Codec
from sanawm_env.engines.sanawm.config import SanaWorldConfig
from sanawm_env.engines.sanawm.engine import SanaEngine
from sanawm_env.engines.sanawm.fetch import world_config
from sanawm_env.engines.sanawm.memory import predict_memory
from sanawm_env.engines.sanawm.network.config import SanaWMConfig
from sanawm_env.engines.sanawm.network.model import SanaWM
from sanawm_env.engines.sanawm.prompts import Prompts
from sanawm_env.world.engine import read_config
from sanawm_env.world.state import WorldState, stack
from sanawm_env.world.world import World

TINY = SanaWMConfig(latent_channels=8, hidden_size=64, num_heads=4, head_dim=16, depth=4, caption_channels=32)
TINY_CODEC = {
    "latent_channels": 8,
    "block_out_channels": (8, 16, 32, 64),
    "decoder_block_out_channels": (8, 16, 32),
    "layers_per_block": (1, 1, 1, 1, 1),
    "decoder_layers_per_block": (1, 1, 1, 1),
}
GB = 1e9
LOAD, ENCODE, IMAGINE, DECODE = "load", "encode the start image", "one denoising step and the clean pass", "decode"
FORKS = 8


def write_world(folder: Path, tiny: bool) -> None:
    """A streaming world in a folder: network, codec, one prompt and config.json."""
    from diffusers import AutoencoderKLLTX2Video

    network, size = (TINY, (64, 96)) if tiny else (SanaWMConfig(), (704, 1280))
    folder.mkdir(parents=True, exist_ok=True)
    with torch.device("meta"):
        shapes = {name: tuple(t.shape) for name, t in SanaWM(network).state_dict().items() if name != "pos_embed"}
    with open(folder / "network.safetensors", "wb") as file:
        write_network(Checkpoint(folder, shapes, lambda name: random_weight(name, shapes[name])), network, file)
    vae: Any = AutoencoderKLLTX2Video(**(TINY_CODEC if tiny else {}), encoder_causal=True, decoder_causal=True)
    torch.nn.Module.to(vae, torch.bfloat16).save_pretrained(folder / "codec")
    features = torch.randn(1, network.text_len, network.caption_channels, dtype=torch.bfloat16)
    Prompts(folder, "streaming").cache.put(features, torch.ones(1, network.text_len), "")
    config = world_config("streaming", network, *size)
    if tiny:  # CPUs that do not know bfloat16 take many times as long
        config = replace(config, dtype="float32")
    (folder / "config.json").write_text(config.to_json() + "\n")


def random_weight(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Scaled by fan-in, so that numbers stay of ordinary size; norms are ones, biases zeros."""
    if len(shape) == 1:
        return torch.ones(shape) if name.endswith("weight") else torch.zeros(shape)
    return torch.randn(shape, dtype=torch.bfloat16) * math.prod(shape[1:]) ** -0.5


class Meter:
    """The most memory that was taken, besides what was when this was made."""

    def __init__(self, device: torch.device):
        self.device = device
        self.begin()
        self.before = self.most()

    def begin(self) -> None:
        """Forget what was."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            Path("/proc/self/clear_refs").write_text("5")  # Linux: the mark is set to what is taken now

    def most(self) -> int:
        """Bytes at most since `begin`, all that the process takes."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            return torch.cuda.max_memory_allocated(self.device)
        status = Path("/proc/self/status").read_text()
        return 1024 * int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))


@contextmanager
def progress(world: World, passes: int) -> Generator[None]:
    """A bar of the network's blocks and the codec's latents, for as long as this is entered."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    engine = cast(SanaEngine, world.engine)
    codec = cast(LTX2Codec, engine.codec).vae.decoder
    with Progress(*columns, console=console) as bars:
        blocks = bars.add_task("blocks", total=passes * len(engine.network.blocks))
        latents = bars.add_task("latents decoded", total=1 + world.config.latents_per_chunk)
        hooks = [b.register_forward_hook(lambda *_: bars.advance(blocks)) for b in engine.network.blocks]
        hooks.append(codec.register_forward_hook(lambda *_: bars.advance(latents)))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


def run(folder: Path, device: str, numbers: Path) -> dict[str, Any]:
    """All stages; what was measured, which is also in the JSON file `numbers`."""
    config = cast(SanaWorldConfig, read_config(folder / "config.json"))
    prediction = predict_memory(config, folder)  # first, so that libraries are there before memory is measured
    meter = Meter(torch.device(device))
    found: dict[str, Any] = header(device) | {
        "height": config.height,
        "width": config.width,
        "predicted": {
            "weights": prediction.weights,
            "working": prediction.working,
            "between": prediction.between,
            "peak": prediction.peak,
        },
        "stages": {},
    }

    def stage(name: str, work: Callable[[], Any]) -> Any:
        meter.begin()
        begin = time.perf_counter()
        result = work()
        passed, memory = time.perf_counter() - begin, meter.most() - meter.before
        found["stages"][name] = {"seconds": passed, "most_bytes": memory}
        console.print(f"{name}: {passed:.1f} s, {memory / GB:.2f} GB at most")
        write(numbers, found)
        return result

    world = stage(LOAD, lambda: World.load(folder, device, timesteps=[1000], threads=torch.get_num_threads()))
    engine = world.engine
    found["parameters"] = sum(p.numel() for p in engine.network.parameters())
    image = np.random.default_rng(0).integers(0, 256, (config.height, config.width, 3), dtype=np.uint8)
    state = world.begin(stage(ENCODE, lambda: world.scene(image)), 0)
    imagine, decode = engine.imagine, engine.decode
    engine.imagine = lambda *given: stage(IMAGINE, lambda: imagine(*given))
    engine.decode = lambda *given: stage(DECODE, lambda: decode(*given))
    with progress(world, passes=2):
        state, clip = world.advance(state, hold(np.eye(4), [0, 0, 0.4, 0, 0.1, 0]))
    del engine.imagine, engine.decode
    found["finite"] = bool(clip.latents.isfinite().all())
    found["measured_peak"] = max(s["most_bytes"] for n, s in found["stages"].items() if n != LOAD)
    found["measured_over_predicted"] = found["measured_peak"] / prediction.peak
    found["state"] = measure_state(world, state, folder)
    found["clip_bytes"] = clip.frames.nbytes
    write(numbers, found)
    return found


def measure_state(world: World, state: WorldState, folder: Path) -> dict[str, Any]:
    """What a state takes, and what it costs to fork, keep, restore and save it."""
    file = folder / "state.safetensors"
    env = SanaWMEnv(world, scenes=[state.slots[0].scene.image])
    env.reset(seed=0)

    try:
        return {
            "bytes": state.nbytes,
            "bytes_without_tails": world.without_caches(state).nbytes,
            f"bytes_of_{FORKS}_forks": stack([state] * FORKS).nbytes,
            "fork_seconds": seconds(lambda: stack([state] * FORKS)),
            "snapshot_seconds": seconds(env.snapshot),
            "restore_seconds": seconds(lambda: env.restore(env.snapshot())),
            "save_seconds": seconds(lambda: state.save(file)),
            "load_seconds": seconds(lambda: WorldState.load(file, world)),
            "file_bytes": file.stat().st_size,
        }
    finally:
        file.unlink(missing_ok=True)


def show(found: dict[str, Any]) -> None:
    weights, working = sum(found["predicted"]["weights"].values()), found["predicted"]["working"]
    predicted = {IMAGINE: working["network"], DECODE: working["codec"]}  # of any chunk; the first takes least
    rows = []
    for name, stage in found["stages"].items():
        guess = f"{(weights + predicted[name]) / GB:.2f}" if name in predicted else ""
        rows.append([name, f"{stage['seconds']:.1f}", f"{stage['most_bytes'] / GB:.2f}", guess])
    title = f"{found['width']} x {found['height']}"
    show_table(title, ["stage", "seconds", "GB at most", "GB predicted"], rows)
    state, ratio = found["state"], found["measured_over_predicted"]
    console.print(
        f"peak {found['measured_peak'] / GB:.2f} GB, predicted {found['predicted']['peak'] / GB:.2f} GB ({ratio:.2f}); "
        f"a state {state['bytes'] / GB:.2f} GB ({state['bytes_without_tails'] / GB:.2f} without tails), {FORKS} forks "
        f"{state[f'bytes_of_{FORKS}_forks'] / GB:.2f} GB in {1e3 * state['fork_seconds']:.2f} ms",
        soft_wrap=True,
    )


def main(args: list[str] | None = None) -> None:
    options = parser(__doc__)
    options.add_argument("what", choices=("write", "run"))
    options.add_argument("folder", type=Path)
    options.add_argument("--device", default="cpu")
    options = options.parse_args(args)
    if options.what == "write":
        write_world(options.folder, options.quick)
        console.print(str(options.folder), soft_wrap=True)
    else:
        show(run(options.folder, options.device, numbers_file(options, "full_size")))


if __name__ == "__main__":
    main()
