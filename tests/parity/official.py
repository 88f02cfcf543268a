"""Reads the official vectors into the project's types: files, configuration, cache slots."""

import json
from collections.abc import Callable
from functools import cache

from safetensors.torch import load_file
from torch import Tensor

from sanawm_env.engines.sanawm.network.config import SanaWMConfig
from sanawm_env.engines.sanawm.network.model import SanaWM
from sanawm_env.engines.sanawm.network.state import BlockState, GDNState, NetworkState, Page, WindowState
from tests.golden_files import golden

MODEL_TOLERANCE = 1e-4
SAMPLER_TOLERANCE = 2e-4
OPERATOR_TOLERANCE = 1e-5
BACKEND = "reference"


def vectors(name: str) -> dict[str, Tensor]:
    """One file of golden/dit."""
    return load_file(golden("dit") / f"{name}.safetensors")


def sizes() -> dict:
    return json.loads((golden("dit") / "config.json").read_text())


def model(window: int = 2, sink: bool = True) -> SanaWM:
    """The tiny network of the vectors, in eval mode, with the operators in the form `BACKEND`."""
    net = _model(window, sink)
    net.backend = BACKEND
    return net


@cache
def _model(window: int, sink: bool) -> SanaWM:
    c = sizes()
    net = SanaWM(
        SanaWMConfig(
            latent_channels=c["latent_channels"],
            hidden_size=c["hidden_size"],
            depth=c["depth"],
            num_heads=c["num_heads"],
            head_dim=c["linear_head_dim"],
            mlp_ratio=c["mlp_ratio"],
            caption_channels=c["caption_channels"],
            text_len=c["text_len"],
            softmax_every_n=c["softmax_every_n"],
            conv_kernel_size=c["conv_kernel_size"],
            input_size=c["input_size"],
            window=window,
            sink=sink,
        )
    )
    net.load_weights(vectors("model_state"))
    return net.eval().requires_grad_(False)


def numbered(tensors: dict[str, Tensor], prefix: str) -> list[int]:
    """The numbers n for which some key starts with f"{prefix}{n}.": at least one, or a loop would compare nothing."""
    found = {name.split(".")[0] for name in recorded(tensors, prefix)}
    numbers = sorted(int(n) for n in found if n.isdigit())
    assert numbers, f"the file holds no {prefix}N"
    return numbers


def unfold_tail(slot: Tensor, batch: int) -> Tensor:
    """(B*S, K-1, C) as recorded to (B, K-1, S, C)."""
    return slot.unflatten(0, (batch, -1)).transpose(1, 2)


def fold_tail(tail: Tensor) -> Tensor:
    return tail.transpose(1, 2).flatten(0, 1)


def state_from_slots(tensors: dict[str, Tensor], prefix: str, batch: int) -> NetworkState:
    """The recorded cache as one state; the window of a softmax block comes as a single page."""
    blocks = []
    for i in numbered(tensors, f"{prefix}.block"):
        slot = {n: tensors[key] for n in range(10) if (key := f"{prefix}.block{i}.slot{n}") in tensors}
        if model().config.is_softmax(i):
            mixer = WindowState((Page(slot[0], slot[1], slot[2], slot[3]),))
        else:
            mixer = GDNState(
                kv=slot[0].mT,
                z=slot[1],
                key_tail=unfold_tail(slot[4], batch),
                camera_kv=slot[2],
                camera_key_tail=unfold_tail(slot[3], batch),
            )
        blocks.append(BlockState(mixer, ffn_tail=slot[9][:, :, 0].mT))
    return NetworkState(tuple(blocks))


def slots_from_state(state: NetworkState) -> dict[str, Tensor]:
    """A state as `blockN.slotK` tensors; softmax blocks give the newest page alone."""
    out = {}
    for i, block in enumerate(state.blocks):
        m = block.mixer
        if isinstance(m, WindowState):
            page = m.pages[-1]
            named = {0: page.k, 1: page.v, 2: page.camera_k, 3: page.camera_v}
        else:
            named = {
                0: m.kv.mT, 1: m.z, 2: m.camera_kv, 3: fold_tail(m.camera_key_tail), 4: fold_tail(m.key_tail)
            }  # fmt: skip
        named[9] = block.ffn_tail.mT[:, :, None]
        out |= {f"block{i}.slot{n}": t for n, t in named.items()}
    return out


def worst(actual: Tensor, expected: Tensor) -> float:
    """Largest absolute difference; shapes must agree."""
    assert actual.shape == expected.shape, (tuple(actual.shape), tuple(expected.shape))
    return (actual.double() - expected.double()).abs().max().item()


def recorded(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """What a file holds under a prefix, by the rest of its name."""
    return {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}


def check_inner(
    got: dict[str, Tensor], expected: dict[str, Tensor], check: Callable[[Tensor, Tensor, str], None]
) -> None:
    """Check every inner value that a file recorded against ours of that name: files may hold any number of them. One
    that we do not compute is an error, for it would not be compared."""
    assert expected.keys() <= got.keys(), f"not computed here: {sorted(expected.keys() - got.keys())}"
    for name, tensor in expected.items():
        check(got[name], tensor, name)


def within(tolerance: float) -> Callable[[Tensor, Tensor, str], None]:
    """A check for `check_inner`: the largest absolute difference is below a tolerance that is meant for values up to
    5, as outputs are; larger ones have it scaled with them."""

    def check(got: Tensor, expected: Tensor, name: str) -> None:
        scale = max(1.0, expected.abs().max().item() / 5)
        assert worst(got.reshape(expected.shape), expected) < tolerance * scale, name

    return check


def same_rows(tensor: Tensor, batch: int) -> Tensor:
    """One-sample conditions repeated where the vectors hold a larger batch."""
    return tensor.expand(batch, *tensor.shape[1:]) if tensor.shape[0] == 1 else tensor


def grid_of(latents: Tensor) -> tuple[int, int, int]:
    return tuple(latents.shape[2:])
