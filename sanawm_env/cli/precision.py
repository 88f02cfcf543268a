"""`sanawm precision`: what reduced precision of the weights costs a nano world."""

import json
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from sanawm_env.cli.arguments import Measurement
from sanawm_env.cli.output import check_places, console, write_numbers
from sanawm_env.system.terminal import table

if TYPE_CHECKING:
    from sanawm_env.engines.sanawm.engine import SanaEngine
    from sanawm_env.world.world import World

KINDS = (None, "bf16", "fp8", "nvfp4")
MOST_STARTS = 12
TWISTS = ((0, 0, 0.3, 0, 0, 0), (0.2, 0, 0, 0, 0.2, 0), (0, 0, 0.2, 0, -0.2, 0), (-0.2, 0, 0, 0, 0, 0))


@dataclass(frozen=True, kw_only=True)
class Precision(Measurement):
    """Measure what reduced precision costs a nano world: PSNR against its own bf16 rollout, and how it follows the
    camera.
    """

    scenes: int = 8
    """Number of walks."""

    def run(self) -> None:
        """Measure, print a table, and write the numbers."""
        check_places(self.json, world=self.world)
        write_numbers(self.json, json.dumps(self.measure(), indent=1))

    def measure(self) -> dict[str, Any]:
        """Compare a world with itself at each precision, print a table, and return the numbers.

        PSNR is in dB over all frames of a chunk, against the bf16 rollout of the same start, noise and camera: at most
        twelve of the world's own start images, four constant twists. How it follows the camera is measured as by
        `sanawm evaluate`.
        """
        import torch

        from sanawm_env.cli.machine import machine_name
        from sanawm_env.engines.sanawm.network.precision import quantized_layers
        from sanawm_env.metrics.image import psnr
        from sanawm_env.training.evaluate import evaluate
        from sanawm_env.world.world import World

        rollouts, numbers = {}, {}
        for kind in KINDS:
            world = World.load(self.world, precision=kind)
            name = kind or world.config.dtype
            with console.status(f"rolling out {name}"):
                rollouts[name] = _rollouts(world, self.seed, self.chunks)
            report = evaluate(world, self.scenes, self.seed, self.chunks, examples=0)
            engine = cast("SanaEngine", world.engine)
            layers = quantized_layers(engine.network) if kind in ("fp8", "nvfp4") else []
            weights: list[Any] = [engine.network.get_submodule(layer).weight for layer in layers]
            numbers[name] = {
                "layers": len(layers),
                "values": sum(w.numel() for w in weights),
                "bytes_per_value": _bytes(weights) / sum(w.numel() for w in weights) if weights else None,
                "psnr_against_truth": report.psnr,
                "sign_agreement": report.sign_agreement,
                "retrieval9": report.retrieval9,
            }
        rows = []
        for name, row in numbers.items():
            pairs = zip(rollouts[name], rollouts["bf16"], strict=True)
            drift = row["psnr_against_bf16"] = None if name == "bf16" else [psnr(a, b) for a, b in pairs]
            cells = (
                row["bytes_per_value"], drift and drift[0], drift and drift[-1], row["psnr_against_truth"],
                row["sign_agreement"], row["retrieval9"],
            )  # fmt: skip
            rows.append((name, row["layers"], *("" if c is None else f"{c:.2f}" for c in cells)))
        columns = (
            "weights",
            "layers",
            "bytes/value",
            "PSNR to bf16, chunk 1, dB",
            f"chunk {self.chunks}, dB",
            "PSNR to truth, dB",
            "sign agreement",
            "retrieval of 9",
        )
        console.print(table(*columns, rows=rows))
        return {
            "world": self.world,
            "weights_hash": World.load(self.world).weights_hash,
            "scenes": self.scenes,
            "seed": self.seed,
            "chunks": self.chunks,
            "date": str(date.today()),
            "machine": machine_name(torch.device("cpu")),
            "torch": torch.__version__,
            "torchao": version("torchao"),
            "precisions": numbers,
        }


def _rollouts(world: "World", seed: int, chunks: int) -> list[np.ndarray]:
    """For each chunk, the frames of all episodes (start images x twists) stacked in height: (N H, W, 3) uint8."""
    from sanawm_env.camera.twist import hold

    apart = -(-len(world.starts) // MOST_STARTS)
    starts = [(start, twist) for start in world.starts[::apart] for twist in TWISTS]
    state = world.begin([world.scene(start) for start, _ in starts], seed)
    frames = []
    for _ in range(chunks):
        poses = np.stack(
            [hold(slot.c2w, np.array(twist)) for slot, (_, twist) in zip(state.slots, starts, strict=True)]
        )
        state, clip = world.advance(state, poses)
        frames.append(clip.frames.flatten(0, 2).numpy())
    return frames


def _bytes(weights: list[Any]) -> int:
    """Bytes of the tensors inside torchao's."""
    return sum(getattr(w, inner).nbytes for w in weights for inner in w.__tensor_flatten__()[0])
