"""Parts that wait in the host's memory: on the device while they work, one block at a time, and the same numbers.

The device of these tests is torch's meta device: what is there can be seen on any machine.
"""

import pytest
import torch
from torch import nn

from sanawm_env.engines.sanawm.offload import at_hand, blocks_of, check_offload, work_blockwise
from sanawm_env.engines.sanawm.refiner.runner import Refiner, RefinerConfig, without_audio
from tests.standin_hub import REFINER

META = torch.device("meta")


class Net(nn.Module):
    """Tied ends around four blocks that note what is on the device while each of them works."""

    def __init__(self):
        super().__init__()
        self.into, self.out = nn.Linear(8, 8), nn.Linear(8, 8)
        self.out.weight = self.into.weight
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8)) for _ in range(4))
        self.register_buffer("scale", torch.ones(8))
        self.seen: list[list[int]] = []

    def forward(self, x):
        x = self.into(x) * self.scale
        for layer in self.layers:
            handle = layer[1].register_forward_hook(lambda *_: self.seen.append(self.there()))
            x = layer(x)
            handle.remove()
        return self.out(x)

    def there(self):
        """Numbers of the blocks that are on the device, all of them."""
        return [i for i, layer in enumerate(self.layers) if all(p.is_meta for p in layer.parameters())]


def test_one_block_at_a_time_is_on_the_device():
    net = Net().requires_grad_(False)
    weights = {name: p.clone() for name, p in net.layers.named_parameters()}
    objects = [id(p) for p in net.layers.parameters()]
    work_blockwise(net, META)
    assert net.there() == []
    assert net.into.weight.is_meta and net.scale.is_meta
    assert net.out.weight is net.into.weight  # one copy of what has two places
    for _ in range(2):
        assert net(torch.zeros(2, 8, device=META)).is_meta
    assert net.seen == [[0], [1], [2], [3]] * 2
    assert net.there() == []
    assert [id(p) for p in net.layers.parameters()] == objects
    assert all(torch.equal(p, weights[name]) for name, p in net.layers.named_parameters())


def test_a_block_that_fails_is_let_go(monkeypatch):
    net = Net()
    work_blockwise(net, META)
    monkeypatch.setattr(net.layers[2][0], "forward", lambda x: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        net(torch.zeros(2, 8, device=META))
    assert net.there() == []


def test_numbers_are_the_same_where_everything_waits_where_it_works():
    net, x = Net(), torch.randn(2, 8)
    expected = net(x)
    work_blockwise(net, torch.device("cpu"))
    assert torch.equal(net(x), expected)


def test_a_whole_part_is_at_hand_and_then_as_it_was():
    net = Net()
    before = [id(p) for p in net.parameters()]
    with pytest.raises(RuntimeError, match="stop"), at_hand(net, META):
        assert all(p.is_meta for p in net.parameters()) and net.scale.is_meta
        raise RuntimeError("stop")
    assert [id(p) for p in net.parameters()] == before and not net.scale.is_meta


def test_blocks_are_the_items_of_the_outermost_lists():
    net = nn.ModuleDict({"a": Net(), "b": nn.Sequential(nn.ModuleList([nn.ModuleList([nn.Linear(2, 2)])]))})
    assert len(blocks_of(net)) == 5


def test_keys_and_values_are_kept_away_and_brought_layer_by_layer():
    """What a state keeps went through `keep`, what a layer reads through `bring`, and the numbers are the same."""
    pytest.importorskip("diffusers")
    torch.manual_seed(0)
    library = __import__("diffusers").SanaWMLTX2RefinerTransformer3DModel
    refiners = [Refiner(without_audio(library(**REFINER)).float(), RefinerConfig(kv_max_frames=5)) for _ in range(2)]
    refiners[1].transformer.load_state_dict(refiners[0].transformer.state_dict())
    kept, brought = set(), []

    def keep(tensor):
        copy = tensor.clone()
        kept.add(id(copy))
        keep.all.append(copy)  # so that no other tensor gets its number
        return copy

    keep.all = []
    refiners[1].keep = keep
    refiners[1].bring = lambda tensor: brought.append(id(tensor)) or tensor
    generator = torch.Generator().manual_seed(1)
    sink, *blocks = (torch.randn(1, 4, n, 2, 3, generator=generator) for n in (1, 3, 3, 3))
    text, mask = torch.randn(1, 8, 32, generator=generator), torch.ones(1, 8, dtype=torch.int64)
    states = [refiner.start(sink, text, mask) for refiner in refiners]
    for block in blocks:
        brought.clear()
        found = [refiner.refine(block, state, -block) for refiner, state in zip(refiners, states, strict=True)]
        used, states = states[1], [state for _, state in found]
        assert torch.equal(found[0][0], found[1][0])
        now = [id(t) for pair in (*states[1].sink, *states[1].history) for t in pair]
        assert set(now) <= kept
        before = {id(t) for pair in (*used.sink, *used.history) for t in pair}
        assert set(brought) == before  # in each of four passes
        assert len(brought) == 4 * len(before)


@pytest.mark.parametrize(
    ("given", "parts"),
    [
        (True, ("codec", "refiner", "text")),
        (False, ()),
        ("codec,text", ("codec", "text")),
        (["text", "codec"], ("codec", "text")),
        ("", ()),
    ],
)
def test_the_switch_takes_names(given, parts):
    assert check_offload(given) == parts


@pytest.mark.parametrize(
    ("given", "error"), [("vae", ValueError), (["vae"], ValueError), (3, TypeError), ([1], TypeError)]
)
def test_other_names_are_a_sentence(given, error):
    with pytest.raises(error, match="codec, refiner, text"):
        check_offload(given)
