"""Weights of a network in a foreign file, read tensor by tensor: the official training checkpoint (dit.md 1.1), or
conversions by others.

The official file is six times as large as the network in it. It is memory-mapped and written out again one tensor at a
time, so conversion takes the memory of the largest tensor besides the mapped pages.
"""

import json
import math
import pickle
from collections.abc import Callable, Generator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sanawm_env.engines.sanawm.network.config import SanaWMConfig
from sanawm_env.engines.sanawm.network.model import SanaWM
from sanawm_env.system.files import check_file, explaining

INERT = ("recall_gate", "y_embedder.y_embedding", "raymap_embedder.")
"""Entries of the network that nothing reads; a checkpoint may lack them (dit.md 1.1)."""
UNUSED = "pos_embed"  # in official files, never read
ENTRY = "x_embedder.proj.weight"  # by which a network is found in a file, whatever stands before its names
WRAPPERS = ("generator", "state_dict", "model", "module")
"""What training scripts put a network's weights under; the first that is there is opened."""
DTYPES = {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32", torch.float64: "F64"}
NAMES_TOLD = 6

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Checkpoint:
    """The network in a file.

    Attributes:
        path: of the file.
        shapes: of its entries, by their own names.
        read: returns an entry, in the file's dtype.
    """

    path: Path
    shapes: Mapping[str, Shape]
    read: Callable[[str], Tensor]


@contextmanager
def open_checkpoint(path: Path) -> Generator[Checkpoint]:
    """Open a .safetensors file, or one of torch.save's, to read its network within a block. Nothing is read before.

    A pickle is read with `weights_only=True`, memory-mapped: no code in it is run. Names may begin with any prefix
    ("model.", "generator."). Of several networks in a file the generator is taken.

    Args:
        path: of the file.

    Raises:
        FileNotFoundError, PermissionError: as the system says.
        ValueError: for a file that is damaged, holds more than tensors, has none of this network's entries, or has them
            in a dtype that is not a plain float.
    """
    path = Path(path)
    with explaining(f"{path} cannot be read"):
        check_file(path)
    with ExitStack() as stack:
        try:
            if path.suffix == ".safetensors":
                file = stack.enter_context(safe_open(path, "pt"))
                slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
                shapes = {name: tuple(s.get_shape()) for name, s in slices.items()}
                dtypes = {name: s.get_dtype() for name, s in slices.items()}
                read: Callable[[str], Tensor] = file.get_tensor
            else:
                tensors = _unwrapped(torch.load(path, map_location="cpu", mmap=True, weights_only=True))
                shapes = {name: tuple(t.shape) for name, t in tensors.items()}
                dtypes = {name: DTYPES.get(t.dtype, str(t.dtype)) for name, t in tensors.items()}
                read = tensors.__getitem__
        except (FileNotFoundError, PermissionError, IsADirectoryError):
            raise
        except (pickle.UnpicklingError, RuntimeError, SafetensorError, OSError, EOFError, AttributeError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(
                f"{path} is damaged, or holds more than tensors, which is never loaded: download it again ({reason})."
            ) from error
        names = _own_names(path, shapes)
        for name, full in names.items():
            if dtypes[full] not in DTYPES.values():
                raise ValueError(
                    f"{path} holds {name} as {dtypes[full]}: convert it to bfloat16, float16 or float32 first."
                )
        yield Checkpoint(path, {name: shapes[full] for name, full in names.items()}, lambda name: read(names[name]))


def network_config(shapes: Mapping[str, Shape]) -> SanaWMConfig:
    """Sizes of the network whose entries have these shapes.

    Raises:
        ValueError: which names the missing entry.
    """
    try:
        hidden, latent = shapes[ENTRY][:2]
        blocks = {int(name.split(".")[1]) for name in shapes if name.startswith("blocks.")}
        depth = len(blocks)
        if gaps := sorted(set(range(depth)) - blocks):
            raise KeyError(f"blocks.{gaps[0]}")
        softmax = [i for i in range(depth) if f"blocks.{i}.attn.conv_k.weight" not in shapes]
        heads = shapes["blocks.0.attn.beta_proj.weight"][0]
        embedding = shapes.get("y_embedder.y_embedding")
        return SanaWMConfig(
            latent_channels=latent,
            hidden_size=hidden,
            depth=depth,
            num_heads=heads,
            head_dim=hidden // heads,
            mlp_ratio=shapes["blocks.0.mlp.point_conv.conv.weight"][1] / hidden,
            caption_channels=shapes["y_embedder.y_proj.fc1.weight"][1],
            text_len=SanaWMConfig.text_len if embedding is None else embedding[0],
            plucker_channels=shapes["plucker_embedder.proj.weight"][1],
            softmax_every_n=softmax[0] + 1 if softmax else depth + 1,
            conv_kernel_size=shapes["blocks.0.attn.conv_k.weight"][-1],
        )
    except (KeyError, ValueError, IndexError, ZeroDivisionError) as error:
        what = error.args[0] if isinstance(error, KeyError) else "an entry"
        raise ValueError(f"These are not the weights of a SANA-WM network: {what} is missing or misshapen.") from error


def check_entries(shapes: Mapping[str, Shape], config: SanaWMConfig) -> dict[str, Shape]:
    """Entries of a network of this size and their shapes, which the given ones must have. Inert entries may be missing.

    Raises:
        ValueError: which names what is missing, unexpected or has another shape.
    """
    with torch.device("meta"):
        expected = {name: tuple(t.shape) for name, t in SanaWM(config).state_dict().items() if name != UNUSED}
    inert = {name for name in expected if any(part in name for part in INERT)}
    wrong = {
        "missing": sorted(set(expected) - inert - set(shapes)),
        "unexpected": sorted(set(shapes) - set(expected)),
        "of another shape": sorted(n for n in expected if n in shapes and tuple(shapes[n]) != expected[n]),
    }
    if any(wrong.values()):
        told = "; ".join(f"{len(names)} {what}: {_some(names)}" for what, names in wrong.items() if names)
        raise ValueError(f"The weights do not fit the network: {told}.")
    return expected


def write_network(checkpoint: Checkpoint, config: SanaWMConfig, file: BinaryIO) -> None:
    """Write a network in bfloat16 as safetensors (the length of a header, the header, the tensors), with one tensor in
    memory at a time. Missing inert entries become zeros.

    Args:
        checkpoint: to read.
        config: of the network.
        file: to write.

    Raises:
        ValueError: as `check_entries`, before anything is written.
    """
    expected = check_entries(checkpoint.shapes, config)
    header: dict[str, Any] = {}
    end = 0
    for name, shape in expected.items():
        start, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    for name, shape in expected.items():
        if name in checkpoint.shapes:
            tensor = checkpoint.read(name).detach().to(torch.bfloat16)
        else:
            tensor = torch.zeros(shape, dtype=torch.bfloat16)
        file.write(tensor.contiguous().flatten().view(torch.uint8).numpy().data)


def _unwrapped(content: Any) -> dict[str, Tensor]:
    """The tensors in what torch.save wrote."""
    while isinstance(content, Mapping):
        inner = next((content[name] for name in WRAPPERS if isinstance(content.get(name), Mapping)), None)
        if inner is None:
            return {str(name): t for name, t in content.items() if isinstance(t, Tensor)}
        content = inner
    return {}


def _own_names(path: Path, shapes: Mapping[str, Shape]) -> dict[str, str]:
    """The network's own names -> those of the file, which may have a prefix."""
    prefixes = [name.removesuffix(ENTRY) for name in shapes if name.endswith(ENTRY)]
    generators = [prefix for prefix in prefixes if "generator" in prefix.split(".")]
    if not prefixes:
        held = _some(sorted(shapes)) or "no tensors"
        raise ValueError(f"{path} holds no SANA-WM network, which has an entry {ENTRY}; it holds {held}.")
    if len(prefixes) > 1 and len(generators) != 1:
        raise ValueError(f"{path} holds several networks ({_some(sorted(prefixes))}): take the one you want out of it.")
    prefix = generators[0] if generators else prefixes[0]
    names = {name.removeprefix(prefix): name for name in shapes if name.startswith(prefix)}
    names.pop(UNUSED, None)
    return names


def _some(names: list[str]) -> str:
    """Names for a message, not all of many."""
    told = ", ".join(name[:80] for name in names[:NAMES_TOLD])
    return told + f" and {len(names) - NAMES_TOLD} more" * (len(names) > NAMES_TOLD)
