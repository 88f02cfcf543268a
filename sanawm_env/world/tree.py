"""Trees of frozen dataclasses whose leaves are tensors: map over them, list them, write them as JSON and tensors.

A state is such a tree. Tuples are branches. None, numbers, strings and frozen sets of them are kept as they are. NumPy
arrays are saved as tensors.
"""

import dataclasses
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, get_origin, get_type_hints

import numpy as np
import torch
from torch import Tensor

from sanawm_env.system.files import brief, explaining
from sanawm_env.system.settings import check_fields


def _branches(tree: Any) -> dict[Any, Any] | None:
    """Fields of a dataclass by name, or items of a tuple by number; None for a leaf."""
    if dataclasses.is_dataclass(tree):
        return {field.name: getattr(tree, field.name) for field in dataclasses.fields(tree)}
    return dict(enumerate(tree)) if isinstance(tree, tuple) else None


def leaves(tree: Any) -> Iterator[Tensor]:
    """All tensors of a tree, in the order of its fields."""
    if isinstance(tree, Tensor):
        yield tree
    for branch in (_branches(tree) or {}).values():
        yield from leaves(branch)


def map_tensors(fn: Callable[..., Tensor], tree: Any, *others: Any) -> Any:
    """The tree with every tensor replaced.

    Args:
        fn: called with a tensor, and the tensors in its place in `others`.
        tree: the tree.
        *others: trees of the same structure.
    """
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
    """What must agree between trees of one batch: shapes of tensors, and all other values."""
    if isinstance(tree, Tensor):
        return tree.shape
    branches = _branches(tree)
    return tree if branches is None else tuple(map(layout, branches.values()))


def nbytes(tree: Any) -> int:
    """Bytes of memory that a tree refers to. A storage that several tensors share counts once."""
    return sum({s.data_ptr(): s.nbytes() for s in (t.untyped_storage() for t in leaves(tree))}.values())


def dump(tree: Any, tensors: dict[str, Tensor], path: str = "") -> Any:
    """The tree as JSON values.

    Args:
        tree: the tree.
        tensors: its tensors are added here, and named in the JSON.
        path: prefix of the names.
    """
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


def restore(plain: Any, tensors: Mapping[str, Tensor], types: Mapping[str, type], path: str = "it") -> Any:
    """The tree that `dump` wrote. Only the classes in `types` are made, and their fields must fit their annotations,
    with finite numbers.

    Args:
        plain: the JSON values.
        tensors: by name.
        types: dataclasses by name.
        path: its name in errors.

    Raises:
        ValueError: which says where it does not fit.
    """

    def build(plain: Any, path: str) -> Any:
        if isinstance(plain, list):
            return tuple(build(item, f"{path}.{i}") for i, item in enumerate(plain))
        if not isinstance(plain, dict):
            return plain
        if plain.keys() == {"tensor"} or plain.keys() == {"array"}:
            ((kind, name),) = plain.items()
            if not isinstance(name, str) or name not in tensors:
                raise ValueError(f"{path} names a tensor that the file does not hold")
            with explaining(f"{path} cannot be an array", TypeError):  # NumPy has no bfloat16
                return tensors[name] if kind == "tensor" else tensors[name].numpy()
        if plain.keys() == {"set"} and isinstance(plain["set"], list):
            with explaining(f"{path} must be a set of text and numbers", TypeError):
                return frozenset(plain["set"])
        name, values = plain.get("type"), plain.get("fields")
        if plain.keys() != {"type", "fields"} or not isinstance(name, str) or not isinstance(values, dict):
            raise ValueError(f"{path} must be a saved value, got {brief(plain)}")
        if name not in types:
            raise ValueError(f"{path} is of the unknown type {brief(name)}")
        kind: Any = types[name]  # a dataclass
        known = {field.name: field for field in dataclasses.fields(kind)}
        needed = {n for n, f in known.items() if f.default is f.default_factory is dataclasses.MISSING}
        if wrong := sorted((values.keys() - known.keys()) | (needed - values.keys())):
            raise ValueError(f"{path} is a {name} with a missing or unknown field {brief(wrong[0])}")
        made = {field: build(value, f"{path}.{field}") for field, value in values.items()}
        with explaining(f"{path} is no {name}", (NameError, TypeError, ValueError)):
            lists = [field for field, hint in get_type_hints(kind).items() if list in (hint, get_origin(hint))]
            built = kind(**(made | {field: list(made[field]) for field in lists if field in made}))
            check_fields(built)
        return built

    return build(plain, path)


def check_layout(tree: Any, outline: Any, path: str = "it") -> None:
    """Check that a tree is built like an outline: equal values, and finite tensors of the same shapes and dtypes.

    Args:
        tree: the tree.
        outline: a tree whose tensors may be on the meta device; `...` accepts anything.
        path: its name in errors.

    Raises:
        ValueError: which says where it differs.
    """
    if outline is ...:
        return
    branches = _branches(outline)
    if isinstance(outline, Tensor):
        check_tensor(tree, tuple(outline.shape), (outline.dtype,), path)
    elif branches is not None:
        found = _branches(tree) if type(tree) is type(outline) else None
        if found is None or found.keys() != branches.keys():
            raise ValueError(f"{path} must be a {type(outline).__name__} of {len(branches)} values, got {brief(tree)}")
        for name, branch in branches.items():
            check_layout(found[name], branch, f"{path}.{name}")
    elif type(tree) is not type(outline) or tree != outline:
        raise ValueError(f"{path} must be {brief(outline)}, got {brief(tree)}")


def check_tensor(tensor: Any, shape: tuple[int, ...], dtypes: Collection[torch.dtype], path: str) -> None:
    """Raise ValueError, which names `path`, unless it is a finite tensor of that shape and one of these dtypes."""
    if not isinstance(tensor, Tensor) or tuple(tensor.shape) != shape or tensor.dtype not in dtypes:
        wanted = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        got = f"{tensor.dtype} {tuple(tensor.shape)}" if isinstance(tensor, Tensor) else brief(tensor)
        raise ValueError(f"{path} must be a tensor of {wanted} {shape}, got {got.removeprefix('torch.')}")
    if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
        raise ValueError(f"{path} holds numbers that are not finite")
