"""YAML as the API server reads it, bounded: plain JSON types, no key twice, nothing that grows when it is read.

Invariant: what comes back was one document of at most ``MAX_FILE_BYTES`` bytes and ``MAX_VALUES`` values, aliases
expanded; so whatever walks it ends soon.
"""

import re
from pathlib import Path
from typing import Any

import yaml

from finetune_api.errors import Fault, SpecError

MAX_FILE_BYTES = 1_572_864
"""etcd's own limit on a request; a larger object could not be stored in a cluster."""
MAX_VALUES = 100_000
"""Keys, items and scalars of one document. Aliases make this more than its bytes can hold ("billion laughs")."""

_STRING = "tag:yaml.org,2002:str"
_MERGE = "tag:yaml.org,2002:merge"
_TIMESTAMP = "tag:yaml.org,2002:timestamp"
_PLAIN = {f"tag:yaml.org,2002:{name}" for name in ("null", "bool", "int", "float", "str", "seq", "map")}
_EXPONENT = re.compile(r"^[-+]?([0-9]+(\.[0-9]*)?|\.[0-9]+)[eE][-+]?[0-9]+$")


class _Loader(yaml.SafeLoader):
    """SafeLoader with JSON's numbers (2e-5 is one, which YAML 1.1 takes for a string) and without timestamps."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != _TIMESTAMP]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _EXPONENT, list("-+.0123456789"))


def read_yaml(path: Path) -> Any:
    """The one document in the file; None if the file is empty.

    Raises:
        SpecError: The file cannot be read, is too large, or is not one YAML document. The faults do not name the file.
    """
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise _error(f"must be at most {MAX_FILE_BYTES:,} bytes, got {path.stat().st_size:,}")
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise _error(f"is not UTF-8 text: byte {error.start} is {error.object[error.start]:#04x}") from error
    except OSError as error:
        raise _error(f"cannot be read: {error.strerror or error}") from error
    return parse_yaml(text)


def parse_yaml(text: str) -> Any:
    """The one document in the text; None if there is none.

    Raises:
        SpecError: It is not one YAML document of plain JSON types.
    """
    try:
        loader = _Loader(text)
        node = _only_document(loader)
        if node is None:
            return None
        _count_values(node, "", {})
        return loader.construct_document(node)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise _error(f"is not YAML: {where}{error.problem}") from error
    except yaml.reader.ReaderError as error:
        raise _error(f"is not YAML: character {error.position + 1} is not allowed: {error.reason}") from error
    except RecursionError as error:
        raise _error("is nested too deeply") from error
    except SpecError:
        raise
    except (ValueError, KeyError) as error:
        raise _error(f"is not YAML: a value is not what its tag says: {error}") from error


def _only_document(loader: _Loader) -> yaml.Node | None:
    """The one document that holds something; a leading or trailing ``---`` makes an empty one."""
    found: yaml.Node | None = None
    while loader.check_node():
        node = loader.get_node()
        if node is None or (isinstance(node, yaml.ScalarNode) and not node.value):
            continue
        if found is not None:
            line = node.start_mark.line + 1
            raise _error(f"holds several documents, the second from line {line}; give each FineTuneJob its own file")
        found = node
    return found


def _count_values(node: yaml.Node, path: str, counted: dict[int, int]) -> int:
    """How many values ``node`` holds, aliases expanded; refuses what JSON cannot say and keys that are given twice.

    ``counted`` remembers every node by its id, 0 while it is being counted, so that an alias costs no second walk.
    """
    if id(node) in counted:
        if not counted[id(node)]:
            raise _error(f"line {node.start_mark.line + 1}: an alias stands inside what it stands for", path)
        return counted[id(node)]
    if node.tag not in _PLAIN:
        raise _error(f"line {node.start_mark.line + 1}: {node.tag} is not a type of JSON; remove the tag", path)
    counted[id(node)] = 0
    total = 1
    for name, child in _children(node, path):
        total += _count_values(child, name, counted)
        if total > MAX_VALUES:
            raise _error(f"must hold at most {MAX_VALUES:,} values, aliases expanded")
    counted[id(node)] = total
    return total


def _children(node: yaml.Node, path: str) -> list[tuple[str, yaml.Node]]:
    """The values inside ``node``, each with its path; makes its keys strings."""
    if isinstance(node, yaml.SequenceNode):
        return [(f"{path}[{position}]", child) for position, child in enumerate(node.value)]
    if not isinstance(node, yaml.MappingNode):
        return []
    children: dict[str, yaml.Node] = {}
    merged: list[tuple[str, yaml.Node]] = []
    for key, child in node.value:
        line = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode):
            raise _error(f"line {line}: a key must be a string", path)
        name = f"{path}.{key.value}" if path else str(key.value)
        if key.tag == _MERGE:
            merged.append((path, child))
        elif name in children:
            raise _error(f"is given twice, again on line {line}; remove one", name)
        else:
            key.tag = _STRING  # JSON has no other keys
            children[name] = child
    return [*children.items(), *merged]


def _error(message: str, path: str = "") -> SpecError:
    return SpecError((Fault(path, message),))
