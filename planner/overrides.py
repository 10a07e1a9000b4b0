"""`--set KEY=VALUE`: values put into a config's text, which stays as it is in all other places.

The text is changed, and not what was read from it, so that the result's files keep the config that made them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from ..errors import ConfigError, nearest
from .document import Path, dotted, parse

_STEP = re.compile(r"(?P<key>[^.\[\]]+)|\[(?P<index>\d{1,6})\]")
_KEY = re.compile(r"[^.\[\]]+(\.[^.\[\]]+|\[\d{1,6}\])*")


@dataclass(frozen=True, slots=True)
class Override:
    """A value for the key at `path` of a document: the one with this name, or the one without a name."""

    given: str
    document: str | None
    path: Path
    value: Any

    def error(self, message: str) -> ConfigError:
        """An error that names the option as it was given."""
        return ConfigError(f"--set {self.given}: {message}")


def parse_override(given: str) -> Override:
    """From `KEY=VALUE` or `DOCUMENT:KEY=VALUE`, such as `parameters.t=0.3` or `models[1].parameters.weight=[0, 1]`.

    The value is YAML. Raises ConfigError.
    """
    key, equals, text = given.partition("=")
    name, colon, inner = key.rpartition(":")
    if not equals or not _KEY.fullmatch(inner.strip()):
        raise ConfigError(f"--set {given}: write KEY=VALUE, such as parameters.t=0.3 or models[1].parameters.weight=0.5")
    path = tuple(match["key"] or int(match["index"]) for match in _STEP.finditer(inner.strip()))
    documents = parse(text, f"--set {given}") if text.strip() else []
    if len(documents) > 1:
        raise ConfigError(f"--set {given}: one value, not several")
    return Override(given, name.strip() if colon else None, path, documents[0].value if documents else None)


def override(text: str, source: str, given: Sequence[str]) -> str:
    """A config's text with these values put in. Raises ConfigError where a key has no place in it."""
    for one in map(parse_override, given):
        before = [document.value for document in parse(text, source)]
        number = _document(before, one)
        nodes = [node for node in yaml.compose_all(text, Loader=yaml.SafeLoader) if node is not None]
        text = _put(text, nodes, number, one)
        after = [document.value for document in parse(text, source)]
        before[number] = _with(before[number], one.path, one.value)
        if after != before:
            raise one.error("the value is shared by a YAML alias: write it out where it is used, or edit the config")
    return text


def _document(values: Sequence[Any], one: Override) -> int:
    """Which document is meant."""
    if not values:
        raise one.error("the config is empty")
    names = [value.get("name") if isinstance(value, dict) else None for value in values]
    if len(values) == 1 and one.document is None:
        return 0
    if one.document in names:
        return names.index(one.document)
    known = [str(name) for name in names if name is not None]
    if one.document is None:
        raise one.error(f"the config has several documents: begin with the name of one, such as {known[0]}:{dotted(one.path)}")
    raise one.error(f"no document has the name '{one.document}'{nearest(one.document, known)}")


def _put(text: str, nodes: Sequence[yaml.Node], number: int, one: Override) -> str:
    node = nodes[number]
    for depth, step in enumerate(one.path):
        inner = _child(node, step)
        if inner is None:
            return _insert(text, node, one, depth)
        node = inner
    return _replace(text, node, _flow(one.value))


def _child(node: yaml.Node, step: str | int) -> yaml.Node | None:
    """What stands at a step below a node. Of keys that stand twice the last one counts."""
    if isinstance(node, yaml.MappingNode):
        return next((value for key, value in reversed(node.value) if key.value == step), None)
    if isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value):
        found: yaml.Node = node.value[step]
        return found
    return None


def _insert(text: str, node: yaml.Node, one: Override, depth: int) -> str:
    """The text with the key that is missing at `depth` of the path, in the map that should have it."""
    step = one.path[depth]
    empty = isinstance(node, yaml.ScalarNode) and node.tag.endswith(":null")
    if isinstance(step, int) or not (isinstance(node, yaml.MappingNode) or empty):
        where = dotted(one.path[:depth]) or "the config"
        raise one.error(f"{where} has no item {step}" if isinstance(step, int) else f"{where} is not a map with keys")
    value = _flow(_nested(one, one.path[depth + 1 :]))
    entry = f"{_flow(step)}: {value}"
    if empty or not node.value:
        return _replace(text, node, f"{{{entry}}}")
    first = node.value[0][0].start_mark
    separator = ", " if _in_flow(node) else "\n" + " " * first.column
    return text[: first.index] + entry + separator + text[first.index :]


def _nested(one: Override, path: Path) -> Any:
    """The value under keys of its own."""
    value = one.value
    for step in reversed(path):
        if isinstance(step, int):
            raise one.error(f"there is no list at {dotted(one.path)} yet")
        value = {step: value}
    return value


def _replace(text: str, node: yaml.Node, flow: str) -> str:
    """The text with a value on one line in the place of a node."""
    begin, end = node.start_mark.index, node.end_mark.index
    block = not isinstance(node, yaml.ScalarNode) and not _in_flow(node)
    if block or (isinstance(node, yaml.ScalarNode) and node.style in ("|", ">")):
        # Such a node ends where the next one begins, on a later line.
        indent = text[text.rfind("\n", 0, end) + 1 : end]
        return f"{text[:begin]} {flow}\n{indent if not indent.strip() else ''}{text[end:]}"
    return f"{text[:begin]} {flow}{text[end:]}" if begin == end else text[:begin] + flow + text[end:]


def _in_flow(node: yaml.Node) -> bool:
    """Whether a list or map is written between brackets."""
    return isinstance(node, yaml.CollectionNode) and bool(node.flow_style)


def _flow(value: Any) -> str:
    """A value on one line: JSON, which is YAML, too, but for numbers, of which YAML wants a point before the exponent."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_flow(key)}: {_flow(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_flow, value)) + "]"
    if isinstance(value, float):
        return yaml.safe_dump(value).split("\n")[0]
    return json.dumps(value, ensure_ascii=False)


def _with(value: Any, path: Path, new: Any) -> Any:
    """The value with another one at `path`."""
    if not path:
        return new
    step, rest = path[0], path[1:]
    if isinstance(step, int):
        return [_with(item, rest, new) if i == step else item for i, item in enumerate(value)]
    return {**(value or {}), step: _with((value or {}).get(step), rest, new)}
