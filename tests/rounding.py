"""What rounding the operands of its matrix products does to the state over many frames (kernels.md 4), without a GPU.

Tensor cores multiply bfloat16 or tf32 operands exactly and add in float32. Here the operands are rounded likewise and
multiplied in float32, at the full model's size, along frames that resemble each other. Run as a program
(`python -m tests.rounding FILE`) it writes the numbers that docs/kernels.md shows.
"""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

TOKENS, SIZE, FRAMES = 880, 112, 120
DECAY = torch.tensor(0.993).item()  # at initialisation: a memory of some 150 frames
LOW_BITS = {"bf16": 16, "tf32": 13, "fp32": 0}  # of a float32's 23 in the mantissa


def rounded(x: Tensor, kind: str) -> Tensor:
    """To nearest, ties to even."""
    bits = LOW_BITS[kind]
    if x.dtype == torch.float64 or not bits:
        return x
    words = x.contiguous().view(torch.int32)
    odd = (words >> bits) & 1
    return ((words + (1 << (bits - 1)) - 1 + odd) >> bits << bits).view(torch.float32)


def walk(frames: int, tokens: int, size: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Keys (S, D), values and write gates of frames that turn slowly from one picture to another, float32. Keys are as
    the model's: normed, rectified, times (D S)^-1/2."""
    g = torch.Generator().manual_seed(0)
    k, v, b = (torch.randn(2, tokens, n, generator=g, dtype=torch.float64) for n in (size, size, 1))
    for i in range(frames):
        angle = torch.tensor(0.03 * i, dtype=torch.float64)
        key, value, gate = (angle.cos() * x[0] + angle.sin() * x[1] for x in (k, v, b))
        key = key / key.square().mean(-1, keepdim=True).sqrt()
        yield (key.relu() * (size * tokens) ** -0.5).float(), value.float(), gate.sigmoid().float()


def as_the_kernels(gram: str, scan: str) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """One frame as the Triton kernels take it: P and A from `gram` operands, M <- g (M - P M) + A from `scan` ones."""

    def update(m: Tensor, k: Tensor, v: Tensor, b: Tensor) -> Tensor:
        weighted = rounded(b * k, gram).mT
        p, a = weighted @ rounded(k, gram), weighted @ rounded(v, gram)
        kept = DECAY * m
        return kept - rounded(p, scan) @ rounded(kept, scan) + a

    return update


def as_stored_identity(m: Tensor, k: Tensor, v: Tensor, b: Tensor) -> Tensor:
    """What the kernels avoid: I - P rounded to bfloat16, whose identity is off by up to 2^-9 in every frame."""
    p, a = (b * k).mT @ k, (b * k).mT @ v
    contraction = torch.eye(len(p)) - p
    return rounded(contraction, "bf16") @ rounded(DECAY * m, "bf16") + a


SCHEMES = {
    "fp32": as_the_kernels("fp32", "fp32"),
    "tf32": as_the_kernels("tf32", "tf32"),
    "bf16": as_the_kernels("bf16", "tf32"),
    "bf16, I - P stored": as_stored_identity,
}


def growth(update: Callable, frames: int = FRAMES, tokens: int = TOKENS, size: int = SIZE) -> list[float]:
    """Relative error of the state in the Frobenius norm after each frame, against the same in float64."""
    exact, errors = as_the_kernels("fp32", "fp32"), []
    m, true = torch.zeros(size, size), torch.zeros(size, size, dtype=torch.float64)
    for k, v, b in walk(frames, tokens, size):
        m, true = update(m, k, v, b), exact(true, k.double(), v.double(), b.double())
        errors.append(((m.double() - true).norm() / true.norm()).item())
    return errors


def main(path: Path) -> None:
    errors = {name: growth(update) for name, update in SCHEMES.items()}
    table = {name: {str(n): e[n - 1] for n in (3, 30, 120)} for name, e in errors.items()}
    numbers = {"tokens": TOKENS, "size": SIZE, "decay": DECAY, "error_after_frames": table}
    path.write_text(json.dumps(numbers, indent=1) + "\n")
    print(json.dumps(table, indent=1))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
