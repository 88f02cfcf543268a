"""Read settings from YAML with the core schema of YAML 1.2, where PyYAML follows 1.1: `no`, `on`, `12:30` and dates are
text; only true, false, null and decimal numbers are not.

A name that is given twice is an error, and so are aliases that expand to too many values.
"""

import os
import re
from collections.abc import Mapping
from typing import Any, cast

import yaml

from sanawm_env.system.files import brief, read_text, reason

MAX_BYTES, MAX_NODES = 2**20, 200_000


def read_yaml(path: str | os.PathLike) -> dict[str, Any]:
    """Read the mapping in a YAML file.

    Raises:
        OSError: as `read_text`.
        ValueError: for anything else. The sentence begins with "it", so that the caller names the file.
    """
    text = read_text(path, MAX_BYTES)
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        _check(node, {})
        value = None if node is None else loader.construct_document(node)
    except yaml.MarkedYAMLError as error:
        where = "" if error.problem_mark is None else f" (line {error.problem_mark.line + 1})"
        raise ValueError(f"it is not YAML: {reason(error.problem)}{where}") from error
    except (yaml.YAMLError, RecursionError, TypeError, AttributeError, LookupError, ArithmeticError) as error:
        raise ValueError(f"it is not YAML that can be read ({reason(error)})") from error
    if not isinstance(value, dict):
        raise ValueError('it is not a mapping, lines of "name: value"')
    return value


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: Mapping = {}


for _tag, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("int", r"[-+]?[0-9]{1,300}", "-+0123456789"),  # longer ones are infinite
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", "-+.0123456789"),
    ("float", r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", "-+."),
    ("merge", "<<", "<"),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), list(_first))


_Loader.add_constructor("tag:yaml.org,2002:int", lambda loader, node: int(node.value))  # 010 is ten
_Loader.add_constructor(
    "tag:yaml.org,2002:float", lambda loader, node: float(re.sub(r"\.(?=[a-zA-Z])", "", node.value))
)


def _check(node: yaml.Node | None, sizes: dict[int, int]) -> int:
    """How many values a node expands to, with its aliases. ValueError for too many, for a value that contains itself
    and for a name that is given twice. sizes: of the nodes that have been visited, by their ids; 0 while a visit lasts.
    """
    if node is None or isinstance(node, yaml.ScalarNode):
        return 1
    if id(node) in sizes:
        if not sizes[id(node)]:
            raise ValueError(f"it has a value that contains itself (line {node.start_mark.line + 1})")
        return sizes[id(node)]
    sizes[id(node)] = 0
    if isinstance(node, yaml.MappingNode):
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise ValueError(f"it gives {brief(twice)} twice (line {cast(yaml.Mark, node.start_mark).line + 1})")
        inner = [part for pair in node.value for part in pair]
    else:
        inner = node.value
    size = 1 + sum(_check(part, sizes) for part in inner)
    if size > MAX_NODES:
        raise ValueError(f"it expands to more than {MAX_NODES:,} values")
    sizes[id(node)] = size
    return size
