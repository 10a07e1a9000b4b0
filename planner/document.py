"""A YAML document with its line numbers.

PyYAML composes the node tree; plain values are made from it here, so that every value's line is known, no tag constructs
anything, keys are unique, and neither aliases nor merge keys can grow a small file into a large tree.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
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

_MERGE = f"{_YAML}merge"
"""The tag of the key `<<`, which takes over the keys of another map. In quotes it is an ordinary key."""

Path = tuple[str | int, ...]
"""Where a value stands: keys and list positions from the root."""


@dataclass(frozen=True, slots=True)
class Oddity:
    """What other tools read over: where it stands, what is wrong, and what a lenient run makes of it.

    It is an error, or in a lenient run a note.
    """

    line: int
    path: Path
    problem: str
    remedy: str


class UnknownKey(ValueError):
    """A map that is part of a value has keys that it should not have; `paths` lead to them from that value."""

    def __init__(self, message: str, paths: Iterable[Path]) -> None:
        super().__init__(message)
        self.paths = tuple(paths)


@dataclass(frozen=True, slots=True)
class Document:
    """Plain values, the line on which each begins, and what is odd about the text itself: keys that stand twice in a map."""

    value: Any
    lines: dict[Path, int]
    source: str
    oddities: tuple[Oddity, ...] = ()

    def line(self, path: Path) -> int:
        """The line of `path`, or of the nearest enclosing value."""
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path, 1)

    def where(self, path: Path) -> str:
        """File, line and key path."""
        return _where(self.source, self.line(path), path)

    def error(self, path: Path, message: str) -> ConfigError:
        """An error at `path`: file, line, key path, message."""
        return ConfigError(f"{self.where(path)}: {message}")

    def odd(self, path: Path, problem: str, remedy: str) -> Oddity:
        """Something at `path` that other tools read over."""
        return Oddity(self.line(path), path, problem, remedy)

    def note(self, oddity: Oddity, *, lenient: bool) -> str:
        """What a lenient run says about it. Any other raises ConfigError."""
        where = _where(self.source, oddity.line, oddity.path)
        if not lenient:
            raise ConfigError(f"{where}: {oddity.problem}; with --lenient {oddity.remedy}")
        return f"{where}: {oddity.problem}: {oddity.remedy}"


def _where(source: str, line: int, path: Path) -> str:
    return f"{source}, line {line}{', ' + dotted(path) if path else ''}"


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
        hint = _ESCAPE if "escape" in str(error.problem) else look_alike(text, line - 2, line)
        raise ConfigError(f"{source}, line {line}: not valid YAML: {error.problem or error}{hint}") from None
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise ConfigError(f"{source}: not valid YAML: {str(error).splitlines()[0]}") from None
    return [_document(node, source) for node in nodes]


_LOOK_ALIKES = {
    "：": ":", "，": ",", "［": "[", "］": "]", "｛": "{", "｝": "}", "＃": "#", "－": "-", "—": "-",
    "“": '"', "”": '"', "‘": "'", "’": "'", "\u00a0": " ", "\u3000": " ", "\u200b": "",
}  # fmt: skip
"""What input methods and web pages put in the place of YAML's signs."""

_ESCAPE = ": in double quotes a backslash begins an escape: use single quotes, or / instead of it"


def look_alike(text: str, first: int, last: int) -> str:
    """For a message about these lines: a sign in them that only looks like one of YAML's; "" where there is none."""
    for number, line in enumerate(text.splitlines()[: max(last, 0)], start=1):
        found = next((sign for sign in line.partition(" #")[0] if sign in _LOOK_ALIKES), None) if number >= first else None
        if found:
            meant = _LOOK_ALIKES[found]
            name = unicodedata.name(found).lower()
            return f"; line {number} has U+{ord(found):04X}, {name}: " + (f"write {meant!r}" if meant else "leave it out")
    return ""


def _written(text: str) -> str:
    """The text, if it can be written again. Raises ValueError for one with half of a surrogate pair."""
    text.encode()
    return text


@dataclass(frozen=True, slots=True)
class _Entry:
    """A key of a map and its value, with the line where they stand."""

    line: int
    value: yaml.Node


def _document(root: yaml.Node, source: str) -> Document:
    builder = _Builder(source)
    return Document(builder.build(root, ()), builder.lines, source, tuple(builder.oddities))


class _Builder:
    """Makes plain values of one document's nodes. The work is bounded by MAX_VALUES, whatever aliases and merge keys say."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.lines: dict[Path, int] = {}
        self.oddities: list[Oddity] = []
        self._scalars = yaml.SafeLoader("")
        self._count = 0
        self._maps: dict[int, dict[str, _Entry]] = {}
        self._open: set[int] = set()

    def build(self, node: yaml.Node, path: Path) -> Any:
        """The value of a node that stands at `path`; notes its line."""
        line = node.start_mark.line + 1
        self._bound(line, path)
        where = _where(self.source, line, path)
        if node.tag not in _TAGS[type(node)]:
            raise ConfigError(f"{where}: the tag {node.tag.replace(_YAML, '!!')} is not allowed in a config")
        self.lines[path] = line
        if isinstance(node, yaml.MappingNode):
            value = {}
            for key, entry in self._entries(node, path).items():
                value[key] = self.build(entry.value, (*path, key))
                self.lines[(*path, key)] = entry.line
            return value
        if isinstance(node, yaml.SequenceNode):
            return [self.build(item, (*path, i)) for i, item in enumerate(node.value)]
        if node.tag.endswith("timestamp"):
            return node.value
        if node.tag.endswith(("int", "float")) and len(node.value) > MAX_NUMBER:
            raise ConfigError(f"{where}: {short(node.value)} is too long for a number")
        try:
            plain = self._scalars.construct_object(node, deep=True)
            return _written(plain) if isinstance(plain, str) else plain
        except (yaml.YAMLError, ValueError, LookupError):
            raise ConfigError(f"{where}: {short(node.value)} is not a value of its type") from None

    def _entries(self, node: yaml.MappingNode, path: Path) -> dict[str, _Entry]:
        """A map's entries, its own over those that it merges. Those of a map that several merge are found once."""
        if id(node) in self._maps:
            return self._maps[id(node)]
        line = node.start_mark.line + 1
        if id(node) in self._open:
            raise ConfigError(f"{_where(self.source, line, path)}: the map merges itself")
        if len(self._open) > MAX_DEPTH:
            raise ConfigError(f"{self.source}, line {line}: {_TOO_LARGE}")
        self._open.add(id(node))
        merged: dict[str, _Entry] = {}
        own: dict[str, _Entry] = {}
        merges = False
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if key_node.tag == _MERGE:
                if merges:
                    self._twice("<<", path, line, "the keys of both are taken, and the last one counts")
                merges = True
                merged |= self._merged(value_node, (*path, "<<"))
                continue
            key = self._key(key_node, path)
            if key in own:
                self._twice(key, path, line, "the last one counts")
            own[key] = _Entry(line, value_node)
        self._open.remove(id(node))
        self._maps[id(node)] = merged | own
        return self._maps[id(node)]

    def _merged(self, node: yaml.Node, path: Path) -> dict[str, _Entry]:
        """What `<<` brings: the keys of a map, or of several, of which the first that has a key decides."""
        maps = node.value if isinstance(node, yaml.SequenceNode) else [node]
        line = node.start_mark.line + 1
        found: dict[str, _Entry] = {}
        for one in maps:
            self._bound(line, path)
            if not isinstance(one, yaml.MappingNode):
                raise ConfigError(f"{_where(self.source, line, path)}: '<<' takes a map or a list of maps, such as *name")
            for key, entry in self._entries(one, path).items():
                self._bound(line, path)
                found.setdefault(key, entry)
        return found

    def _key(self, node: yaml.Node, path: Path) -> str:
        if isinstance(node, yaml.ScalarNode):
            try:
                return _written(node.value)
            except ValueError:
                pass
        raise ConfigError(f"{_where(self.source, node.start_mark.line + 1, path)}: a key must be plain text")

    def _twice(self, key: str, path: Path, line: int, remedy: str) -> None:
        self.oddities.append(Oddity(line, path, f"key '{key}' appears twice in the same map", remedy))

    def _bound(self, line: int, path: Path) -> None:
        self._count += 1
        if self._count > MAX_VALUES or len(path) > MAX_DEPTH:
            raise ConfigError(f"{self.source}, line {line}: {_TOO_LARGE}")
