"""Compile the Triton kernels for an H100 without having one, at the full model's sizes: JSON of what each one takes.

Run as a program with TRITON_INTERPRET unset: `python -m tests.compile_kernels bfloat16`.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import triton
from sanawm_env.kernels import triton_ffn, triton_gdn, triton_window
from sanawm_env.kernels.inputs import Grid
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from tests.kernel_inputs import random_operands

TYPES = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.int64: "*i64"}
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
GRID = Grid(3, 22, 40)


class Compiled:
    """Stands for a kernel: a launch compiles it for the arguments instead."""

    def __init__(self, kernel, results):
        self.kernel, self.results = kernel, results

    def __getitem__(self, grid):
        return self.compile

    def compile(self, *args, num_warps=4, num_stages=3, **constants):
        given = dict(zip((p.name for p in self.kernel.params), args, strict=False)) | constants
        signature, values, attributes = {}, {}, {}
        for i, parameter in enumerate(self.kernel.params):
            value = given[parameter.name]
            if parameter.is_constexpr or (isinstance(value, int) and value == 1):
                signature[parameter.name], values[(i,)] = "constexpr", value
            elif isinstance(value, float):
                signature[parameter.name] = "fp32"
            else:
                tensor = isinstance(value, torch.Tensor)
                signature[parameter.name] = TYPES[value.dtype] if tensor else "i32"
                if tensor or value % 16 == 0:
                    attributes[(i,)] = [["tt.divisibility", 16]]
        made = triton.compile(
            ASTSource(self.kernel, signature, values, attributes),
            target=GPUTarget("cuda", 90, 32),
            options={"num_warps": num_warps, "num_stages": num_stages},
        )
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(made.asm["cubin"])
            file.flush()
            usage = subprocess.run(
                [TOOLS / "cuobjdump", "-res-usage", file.name], capture_output=True, text=True, check=True
            ).stdout
        registers, stack = (int(n) for n in re.search(r"REG:(\d+) STACK:(\d+)", usage).groups())
        self.results[self.kernel.__name__] = {
            "shared": made.metadata.shared, "registers": registers, "stack": stack,
            "wide_loads": len(re.findall(r"ld\.global\S*\.v[24]", made.asm["ptx"])),
            "matrix_products": len(re.findall(r"wgmma\.mma_async", made.asm["ptx"])),
        }  # fmt: skip


def main(dtype: torch.dtype) -> None:
    results = {}
    for module in (triton_gdn, triton_ffn, triton_window):
        for name in ("_prep", "_gram", "_scan", "_readout", "_depthwise_glu", "_fill_window"):
            if hasattr(module, name):
                setattr(module, name, Compiled(getattr(module, name), results))
    with torch.no_grad():
        triton_gdn.gdn(*random_operands(1, 20, 112, GRID, dtype), save=True)
        x, taps, bias = torch.empty(1, 2640, 13440), torch.empty(13440, 1, 3, 3), torch.empty(13440)
        triton_ffn.depthwise_glu(*(t.to(dtype) for t in (x, taps, bias)), GRID)
        q = torch.zeros(1, 2, 64, 112, dtype=dtype)
        triton_window.attend(q, [(q, q), (q, q)], Grid(1, 8, 8))
    print(json.dumps(results))


if __name__ == "__main__":
    main(getattr(torch, sys.argv[1]))
