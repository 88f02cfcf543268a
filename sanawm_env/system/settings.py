"""Settings from JSON, YAML or keywords as frozen dataclasses. Pydantic checks them against the annotations of the
fields, and errors become one sentence. Ranges are given by annotations and `__post_init__`."""

import dataclasses
import difflib
import json
from collections.abc import Iterable, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar, get_args, get_type_hints

import numpy as np
from pydantic import ConfigDict, PydanticUserError, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from sanawm_env.system.files import brief, explaining, reason

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T", bound="DataclassInstance")

_KINDS = {
    "int": "a whole number", "float": "a number", "bool": "true or false", "string": "text", "list": "a list",
    "tuple": "a list", "sequence": "a list", "Sequence": "a list", "path": "a path", "Path": "a path",
    "dict": "a mapping", "mapping": "a mapping", "dataclass": "a mapping", "none": "null",
    "finite": "a finite number",
}  # fmt: skip
"""By the class that is wanted, or the first word of pydantic's types of errors, such as int_type."""
_BOUNDS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}


def read(kind: type[T], data: Any, *, others: bool = False) -> T:
    """An instance of a dataclass from a mapping of plain values.

    Types are checked as JSON's strict readers do: true is no number, "3" and 3.0 are no whole number, 3 is a number. A
    list is read as a tuple, text as a path, and a mapping as a dataclass, where the field is one. Read files with
    `files.read_json`, which limits their size.

    Args:
        kind: the dataclass.
        data: the mapping.
        others: ignore names that the class does not have.

    Raises:
        ValueError: for unknown or missing names and for values of another type, in words that follow the name of the
            source; and what `__post_init__` raises.
        TypeError: for a class whose fields cannot be read.
    """
    if not isinstance(data, Mapping):
        raise ValueError(f"it must be a mapping, got {brief(data)}")
    if others:
        data = {name: data[name] for name in _fields(kind) if name in data}
    _check_names(kind, data)
    with explaining("it must hold plain values", (TypeError, ValueError, RecursionError)):
        text = json.dumps(data, ensure_ascii=False).encode()
    try:
        return _adapter(kind).validate_json(text, strict=True)
    except ValidationError as error:
        raise ValueError(_sentence(error.errors(include_url=False), data)) from error


def check_fields(settings: "DataclassInstance") -> None:
    """Check the fields of a dataclass, in its `__post_init__`, by their annotations, which may hold ranges:
    `Annotated[int, Field(ge=1)]`. Types are as strict as those of `read`, numbers are finite; NumPy's become Python's.

    Raises:
        ValueError: for the first field that does not fit. It begins with the field's name.
    """
    given = {name: getattr(settings, name) for name in _fields(type(settings))}
    data = {name: value.item() if isinstance(value, np.generic) else value for name, value in given.items()}
    try:
        _values(type(settings)).validate_python(data)
    except ValidationError as error:
        raise ValueError(f"{_sentence(error.errors(include_url=False), data)}.") from error
    for name, value in given.items():
        if isinstance(value, np.generic):
            object.__setattr__(settings, name, data[name])


@cache
def _values(kind: "type[DataclassInstance]") -> TypeAdapter:
    values: Any = TypedDict(kind.__name__, _fields(kind))  # ty: ignore[invalid-argument-type]  made of a class's fields
    values.__pydantic_config__ = ConfigDict(strict=True, allow_inf_nan=False, arbitrary_types_allowed=True)
    return TypeAdapter(values)


def nearest(name: Any, known: Iterable[str]) -> str:
    """ " (did you mean speed?)" where a known name is like the given one, else ""."""
    near = difflib.get_close_matches(str(name)[:100], list(known), 1)
    return f" (did you mean {near[0]}?)" if near else ""


def differences(kept: Mapping[str, Any], given: Mapping[str, Any]) -> str:
    """What differs between the settings in a folder and the given ones, such as "train.seed is 0 there, 1 here"; at
    most three of them."""
    kept, given = _flat(kept), _flat(given)
    found = [
        f"{name} is {brief(kept.get(name))} there, {brief(given.get(name))} here"
        for name in dict.fromkeys([*kept, *given])
        if kept.get(name) != given.get(name)
    ]
    return "; ".join(found[:3]) + (f"; and {len(found) - 3} more" if len(found) > 3 else "")


def _flat(value: Mapping[str, Any], inside: str = "") -> dict[str, Any]:
    flat = {}
    for name, item in value.items():
        flat |= _flat(item, f"{inside}{name}.") if isinstance(item, Mapping) else {f"{inside}{name}": item}
    return flat


@cache
def _adapter(kind: type) -> TypeAdapter:
    try:
        return TypeAdapter(kind)
    except PydanticUserError as error:  # a class of somebody's engine
        raise TypeError(f"{kind.__name__} has a field that no file can hold ({reason(error)})") from error


@cache
def _fields(kind: "type[DataclassInstance]") -> dict[str, Any]:
    """Names and annotations of the fields of a dataclass."""
    hints = get_type_hints(kind, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def _check_names(kind: "type[DataclassInstance]", data: Mapping, inside: str = "") -> None:
    known = _fields(kind)
    for name, value in data.items():
        if name not in known:
            meant = nearest(name, known)
            raise ValueError(f"there is no setting {brief(name)}{inside}{meant}, settings are {', '.join(known)}")
        for part in (known[name], *get_args(known[name])):
            if dataclasses.is_dataclass(part) and isinstance(value, Mapping):
                _check_names(part, value, f" in {name}")


def _sentence(errors: list[Any], data: Any) -> str:
    """What pydantic found wrong with the first field; of several accepted types, the one that came nearest."""
    found = [(*_place(error["loc"], data), error) for error in errors]
    first = [each for each in found if each[0][:1] == found[0][0][:1]]
    path, value, error = max(first, key=lambda each: len(each[0]))
    where = "".join(f"[{part}]" if isinstance(part, int) else f".{reason(part, 80)}" for part in path)[1:]
    kind, about = error["type"], error.get("ctx", {})
    if kind == "value_error":
        return str(about["error"])
    if kind == "json_invalid":
        return f"it cannot be read: {reason(about['error'])}"
    if kind in ("too_long", "too_short") or (kind == "missing" and isinstance(error["loc"][-1], int)):
        return f"{where} has too {'many' if kind == 'too_long' else 'few'} values, got {brief(value)}"
    if kind == "missing":
        return f"{error['loc'][-1]} is missing" + f" in {where}" * bool(where)
    accepted = [_accepted(error) for other, _, error in first if other == path]
    if {_KINDS["float"], _KINDS["finite"]} & set(accepted):
        accepted = [each for each in accepted if each != _KINDS["int"]]
    return f"{where} must be {' or '.join(dict.fromkeys(filter(None, accepted)))}, got {brief(value)}"


def _accepted(error: Mapping[str, Any]) -> str:
    """What a field accepts, from an error of pydantic; "" for objects that no file can hold."""
    if error["type"] == "needs_python_object":
        return ""
    about = error.get("ctx", {})
    for name, words in _BOUNDS.items():
        if (bound := about.get(name)) is not None:
            return f"{words} {int(bound) if float(bound).is_integer() else bound:,}"
    kind = about.get("class", error["type"].split("_")[0])
    return about.get("expected") or _KINDS.get(kind) or about.get("class") or reason(error["msg"])


def _place(loc: tuple[int | str, ...], data: Any) -> tuple[tuple[int | str, ...], Any]:
    """The path of an error, without pydantic's names for the types of a union, and the value there."""
    path = []
    for part in loc:
        if part in (data if isinstance(data, Mapping) else range(len(data) if isinstance(data, list | tuple) else 0)):
            path.append(part)
            data = data[part]
    return tuple(path), data
