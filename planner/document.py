"""A YAML document with its line numbers.

PyYAML composes the node tree; plain values are made from it here, so that every value's line is known, no tag constructs
anything, keys are unique, and aliases cannot grow a small file into a large tree.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml

from ..errors import ConfigError

MAX_BYTES = 1 << 20
MAX_VALUES = 30_000
MAX_DEPTH = 64
MAX_NUMBER = 100
"""Characters of a number; YAML's base-60 numbers take time that grows with the square of their length."""

_YAML = "tag:yaml.org,2002:"
_TAGS = {
    yaml.MappingNode: {f"{_YAML}map"},
    yaml.SequenceNode: {f"{_YAML}seq"},
    yaml.ScalarNode: {f"{_YAML}{kind}" for kind in ("null", "bool", "int", "float", "str", "timestamp")},
}

Path = tuple[str | int, ...]
"""Where a value stands: keys and list positions from the root."""


@dataclass(frozen=True, slots=True)
class Document:
    """Plain values, and the line on which each begins."""

    value: Any
    lines: dict[Path, int]
    source: str

    def line(self, path: Path) -> int:
        """The line of `path`, or of the nearest enclosing value."""
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path, 1)

    def error(self, path: Path, message: str) -> ConfigError:
        """An error at `path`: file, line, key path, message."""
        where = f", {dotted(path)}" if path else ""
        return ConfigError(f"{self.source}, line {self.line(path)}{where}: {message}")


def dotted(path: Path) -> str:
    """`models[1].parameters.weight`"""
    text = ""
    for step in path:
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else step
    return text


def short(value: Any) -> str:
    """A value as it is shown in a message."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


_TOO_LARGE = "too large or too deep for a config (aliases that expand into each other?)"


class _TooLarge(Exception):
    """What a config is not; raised as soon as it is seen, because composing costs a thousand times the text's size."""

    def __init__(self, line: int) -> None:
        super().__init__()
        self.line = line


class _Loader(yaml.SafeLoader):
    """Composes nodes, as many and as deep as a config has."""

    _nodes = 0
    _depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self._nodes += 1
        self._depth += 1
        if self._nodes > 2 * MAX_VALUES or self._depth > MAX_DEPTH + 1:  # keys are nodes, too
            raise _TooLarge(self.line + 1)
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node


def parse(text: str, source: str) -> list[Document]:
    """All documents of a YAML text. Raises ConfigError for what is not plain YAML."""
    if len(text) > MAX_BYTES:
        raise ConfigError(f"{source}: {len(text)} characters are too many for a config")
    try:
        nodes = [node for node in yaml.compose_all(text, Loader=_Loader) if node is not None]
    except _TooLarge as error:
        raise ConfigError(f"{source}, line {error.line}: {_TOO_LARGE}") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        raise ConfigError(f"{source}, line {line}: not valid YAML: {error.problem or error}") from None
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise ConfigError(f"{source}: not valid YAML: {str(error).splitlines()[0]}") from None
    return [_document(node, source) for node in nodes]


def _written(text: str) -> str:
    """The text, if it can be written again. Raises ValueError for one with half of a surrogate pair."""
    text.encode()
    return text


def _document(root: yaml.Node, source: str) -> Document:
    lines: dict[Path, int] = {}
    loader = yaml.SafeLoader("")
    count = 0

    def build(node: yaml.Node, path: Path) -> Any:
        nonlocal count
        count += 1
        line = node.start_mark.line + 1
        where = f"{source}, line {line}{', ' + dotted(path) if path else ''}"
        if count > MAX_VALUES or len(path) > MAX_DEPTH:
            raise ConfigError(f"{source}, line {line}: {_TOO_LARGE}")
        if node.tag not in _TAGS[type(node)]:
            raise ConfigError(f"{where}: the tag {node.tag.replace(_YAML, '!!')} is not allowed in a config")
        lines[path] = line
        if isinstance(node, yaml.MappingNode):
            return dict(entries(node, path, where))
        if isinstance(node, yaml.SequenceNode):
            return [build(item, (*path, i)) for i, item in enumerate(node.value)]
        if node.tag.endswith("timestamp"):
            return node.value
        if node.tag.endswith(("int", "float")) and len(node.value) > MAX_NUMBER:
            raise ConfigError(f"{where}: {short(node.value)} is too long for a number")
        try:
            value = loader.construct_object(node, deep=True)
            return _written(value) if isinstance(value, str) else value
        except (yaml.YAMLError, ValueError, LookupError):
            raise ConfigError(f"{where}: {short(node.value)} is no value of its type") from None

    def entries(node: yaml.MappingNode, path: Path, where: str) -> Iterator[tuple[str, Any]]:
        seen: set[str] = set()
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise ConfigError(f"{where}: a key must be plain text")
            try:
                key = _written(key_node.value)
            except ValueError:
                raise ConfigError(f"{where}: a key must be plain text") from None
            if key in seen:
                raise ConfigError(f"{source}, line {key_node.start_mark.line + 1}: key '{key}' stands twice in the same map")
            seen.add(key)
            yield key, build(value_node, (*path, key))
            lines[(*path, key)] = key_node.start_mark.line + 1

    return Document(build(root, ()), lines, source)
