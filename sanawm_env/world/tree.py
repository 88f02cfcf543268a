"""Trees of frozen dataclasses whose leaves are tensors: map over them, list them, write them to JSON and tensors.

A state is such a tree. Tuples are branches; None, numbers, strings and frozen sets of them are kept as they are; NumPy
arrays travel as tensors.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor


def leaves(tree: Any) -> Iterator[Tensor]:
    """All tensors of a tree, in the order of its fields."""
    if isinstance(tree, Tensor):
        yield tree
    elif dataclasses.is_dataclass(tree):
        for field in dataclasses.fields(tree):
            yield from leaves(getattr(tree, field.name))
    elif isinstance(tree, tuple):
        for item in tree:
            yield from leaves(item)


def map_tensors(fn: Callable[..., Tensor], tree: Any, *others: Any) -> Any:
    """The tree with fn(tensor, tensors at the same place in `others`...) for every tensor; the rest as in `tree`."""
    if isinstance(tree, Tensor):
        return fn(tree, *others)
    if dataclasses.is_dataclass(tree):
        changed = {
            field.name: map_tensors(fn, *(getattr(t, field.name) for t in (tree, *others)))
            for field in dataclasses.fields(tree)
        }
        return dataclasses.replace(tree, **changed)
    if isinstance(tree, tuple):
        return tuple(map_tensors(fn, *items) for items in zip(tree, *others, strict=True))
    return tree


def layout(tree: Any) -> Any:
    """What must agree between trees that share a batch: shapes of tensors, every other value as it is."""
    if isinstance(tree, Tensor):
        return tree.shape
    if dataclasses.is_dataclass(tree):
        return tuple(layout(getattr(tree, field.name)) for field in dataclasses.fields(tree))
    if isinstance(tree, tuple):
        return tuple(layout(item) for item in tree)
    return tree


def nbytes(tree: Any) -> int:
    """Bytes of memory that the tree keeps alive: storages shared by several tensors count once."""
    return sum({s.data_ptr(): s.nbytes() for s in (t.untyped_storage() for t in leaves(tree))}.values())


def dump(tree: Any, tensors: dict[str, Tensor], path: str = "") -> Any:
    """The tree as plain JSON values; its tensors are added to `tensors` and stand in the JSON by their names."""
    if isinstance(tree, np.ndarray):
        tensors[path] = torch.tensor(tree)
        return {"array": path}
    if isinstance(tree, Tensor):
        # a copy of its own: safetensors refuses tensors that share memory
        tensors[path] = tree.detach().cpu().clone(memory_format=torch.contiguous_format)
        return {"tensor": path}
    if dataclasses.is_dataclass(tree):
        values = {f.name: dump(getattr(tree, f.name), tensors, f"{path}.{f.name}") for f in dataclasses.fields(tree)}
        return {"type": type(tree).__name__, "fields": values}
    if isinstance(tree, tuple):
        return [dump(item, tensors, f"{path}.{i}") for i, item in enumerate(tree)]
    if isinstance(tree, frozenset):
        return {"set": sorted(tree)}
    return tree


def restore(plain: Any, tensors: Mapping[str, Tensor], types: Mapping[str, type]) -> Any:
    """The tree that `dump` wrote. Only the classes in `types` are made; KeyError or TypeError where it does not fit."""
    if isinstance(plain, dict):
        if "tensor" in plain:
            return tensors[plain["tensor"]]
        if "array" in plain:
            return tensors[plain["array"]].numpy()
        if "set" in plain:
            return frozenset(plain["set"])
        return types[plain["type"]](**{k: restore(v, tensors, types) for k, v in plain["fields"].items()})
    if isinstance(plain, list):
        return tuple(restore(item, tensors, types) for item in plain)
    return plain
