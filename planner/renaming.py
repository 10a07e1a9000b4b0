"""Which names of one model are which of another, where they differ in what stands before them: `model.layers` and `layers`.

Releases, versions of a library and classes (with a head or without) save one architecture under other prefixes. A rule puts one
prefix in another's place; the best consistent set of rules is found from the names and shapes alone, without a table of families.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from .layout import is_output_embedding

Shape = tuple[int, ...]
Path = tuple[str, ...]

_NUMBER = "."
"""Stands for a number in a path; no part of a name can be that."""
_MOST_KINDS = 10_000
_MOST_RULES = _MOST_PARTNERS = _LONGEST = 32
"""Bounds of what is tried, far beyond any real model: names are strangers' texts."""


@dataclass(frozen=True, slots=True)
class Rule:
    """Names that begin with `theirs` begin with `ours` in the other model; an empty path is the root."""

    theirs: Path
    ours: Path

    def apply(self, path: Path) -> Path | None:
        """The path by the other model's naming; None where it does not begin with `theirs`."""
        return (*self.ours, *path[len(self.theirs) :]) if path[: len(self.theirs)] == self.theirs else None


@dataclass(frozen=True, slots=True)
class Renaming:
    """`names`: the other model's name for every name. `examples`: one pair of names for each rule that changes any."""

    names: Mapping[str, str]
    examples: tuple[tuple[str, str], ...]


class AmbiguousNames(Exception):
    """A name could as well be `first` as `second` of the other model."""

    def __init__(self, name: str, first: str, second: str) -> None:
        super().__init__(name, first, second)
        self.name, self.first, self.second = name, first, second


@dataclass(slots=True)
class _Kind:
    """Names that differ in their numbers only: one tensor of all layers."""

    names: list[str] = field(default_factory=list)
    shapes: set[Shape] = field(default_factory=set)


_Kinds = Mapping[Path, _Kind]


def rename(theirs: Mapping[str, Shape], ours: Mapping[str, Shape]) -> Renaming:
    """The names of `theirs` by the naming of `ours`; no two become one, and what has no counterpart follows its neighbours.

    Raises AmbiguousNames where two rules explain the names equally well.
    """
    if theirs.keys() <= ours.keys():
        return Renaming({name: name for name in theirs}, ())
    a, b = _kinds(ours), _kinds(theirs)
    if b.keys() <= a.keys() or len(a) + len(b) > _MOST_KINDS:
        return Renaming({name: name for name in theirs}, ())
    assigned = _Matcher(a, b).assign()
    moved = {path: _moved(path, rule) for path, rule in assigned.items()}
    used = list(dict.fromkeys(assigned.values()))
    for path in b:
        if path not in moved:
            taken = {target: other for other, target in moved.items()}
            target = _beside(path, used, taken)
            if target in taken:
                raise AmbiguousNames(_numbered(target, b[path].names[0]), b[path].names[0], b[taken[target]].names[0])
            moved[path] = target
    names = {name: _numbered(target, name) for path, target in moved.items() for name in b[path].names}
    examples = {assigned[path]: b[path].names[0] for path in reversed(assigned)}
    shown = tuple((examples[rule], names[examples[rule]]) for rule in used if rule.theirs != rule.ours)
    return Renaming({name: names[name] for name in theirs}, shown)


def _kinds(tensors: Mapping[str, Shape]) -> dict[Path, _Kind]:
    kinds: dict[Path, _Kind] = {}
    for name, shape in tensors.items():
        kind = kinds.setdefault(tuple(_NUMBER if part.isdecimal() else part for part in name.split(".")), _Kind())
        kind.names.append(name)
        kind.shapes.add(shape)
    return kinds


def _moved(path: Path, rule: Rule) -> Path:
    target = rule.apply(path)
    assert target is not None
    return target


def _numbered(path: Path, name: str) -> str:
    """A path with the numbers of the name that it renames: prefixes have none, so they are as many."""
    numbers = iter(part for part in name.split(".") if part.isdecimal())
    return ".".join(next(numbers) if part == _NUMBER else part for part in path)


def _beside(path: Path, used: Iterable[Rule], taken: Collection[Path]) -> Path:
    """What the rule with the longest prefix makes of a path without a counterpart, or the path itself where that is taken.

    The root's rule says nothing about others.
    """
    rules = [rule for rule in used if rule.theirs and path[: len(rule.theirs)] == rule.theirs]
    best = max(rules, key=lambda rule: len(rule.theirs), default=None)
    target = _moved(path, best) if best else path
    return path if target in taken else target


class _Matcher:
    """Assigns rules to the kinds of `theirs`, best first, each kind of `ours` once."""

    def __init__(self, ours: _Kinds, theirs: _Kinds) -> None:
        self.ours, self.theirs = ours, theirs
        self.free_ours, self.free_theirs = dict.fromkeys(ours), dict.fromkeys(theirs)
        self.assigned: dict[Path, Rule] = {}

    def assign(self) -> dict[Path, Rule]:
        rules = self._rules()
        while found := self._best(rules):
            self._take(*found)
        mine, others = ([path for path in free if _is_head(path)] for free in (self.free_theirs, self.free_ours))
        if len(mine) == len(others) == 1 and self.theirs[mine[0]].shapes & self.ours[others[0]].shapes:
            self._take(Rule(mine[0][:-1], others[0][:-1]), {mine[0]: others[0]})  # lm_head and embed_out are one
        return self.assigned

    def _take(self, rule: Rule, pairs: Mapping[Path, Path]) -> None:
        for path, target in pairs.items():
            del self.free_theirs[path], self.free_ours[target]
            self.assigned[path] = rule

    def _best(self, rules: Iterable[Rule]) -> tuple[Rule, Mapping[Path, Path]] | None:
        """The rule that most of what is left speaks for. Raises AmbiguousNames where another says otherwise as loudly."""
        ranked: list[tuple[tuple[int, int, bool], Rule, dict[Path, Path]]] = []
        for rule in rules:
            pairs = self._pairs(rule)
            alike = sum(bool(self.theirs[path].shapes & self.ours[target].shapes) for path, target in pairs.items())
            if alike and self._believed(rule, pairs):
                ranked.append(((alike, len(pairs), rule.theirs == rule.ours), rule, pairs))
        if not ranked:
            return None
        score, best, pairs = max(ranked, key=lambda item: item[0])
        for other, _, others in ranked:
            clash = next((path for path in pairs if others.get(path, pairs[path]) != pairs[path]), None)
            if other == score and clash is not None:
                raise AmbiguousNames(*(self.theirs[clash].names[0], *(self.ours[p[clash]].names[0] for p in (pairs, others))))
            source = {target: path for path, target in others.items()}
            rival = next((path for path, target in pairs.items() if source.get(target, path) != path), None)
            if other == score and rival is not None:
                both = (self.theirs[path].names[0] for path in (rival, source[pairs[rival]]))
                raise AmbiguousNames(self.ours[pairs[rival]].names[0], *both)
        return best, pairs

    def _pairs(self, rule: Rule) -> dict[Path, Path]:
        """What a rule brings together of what is left: kinds of as many dimensions."""
        pairs = {}
        for path in self.free_theirs:
            target = rule.apply(path)
            if target in self.free_ours and _ranks(self.theirs[path]) & _ranks(self.ours[target]):
                pairs[path] = target
        return pairs

    def _believed(self, rule: Rule, pairs: Mapping[Path, Path]) -> bool:
        """Whether a rule explains half of what it speaks of, or all where that is one tensor: two norms of one size make no rule.

        Where one prefix is the other with more parts, that is what stands under the longer one. A prefix in place of quite
        another needs that of both sides, more than one tensor, and layers: the `dense` of two heads makes no rule.
        """
        if rule.theirs == rule.ours:
            return True
        enough = 2 * len(pairs) if len(pairs) > 1 else 1
        most_theirs = enough >= sum(path[: len(rule.theirs)] == rule.theirs for path in self.free_theirs)
        most_ours = enough >= sum(path[: len(rule.ours)] == rule.ours for path in self.free_ours)
        if _within(rule.theirs, rule.ours):
            return most_ours
        if _within(rule.ours, rule.theirs):
            return most_theirs
        layers = any(_NUMBER in path for path in pairs) or set(rule.theirs) == set(rule.ours)
        return most_theirs and most_ours and len(pairs) > 1 and layers

    def _rules(self) -> list[Rule]:
        """What single tensors suggest: those whose names end alike, as far as any of the other model's does."""
        votes = {Rule((), ()): len(self.theirs)}
        endings = _Endings(self.ours)
        for path in self.theirs:
            for other, common in endings.nearest(path):
                if common < min(2, len(path), len(other)):
                    continue
                rule = Rule(path[: len(path) - common], other[: len(other) - common])
                if _NUMBER not in rule.theirs and _NUMBER not in rule.ours:
                    votes[rule] = votes.get(rule, 0) + 1
        return sorted(votes, key=lambda rule: (-votes[rule], rule.theirs, rule.ours))[:_MOST_RULES]


class _Endings:
    """Paths by what they end in."""

    def __init__(self, paths: Iterable[Path]) -> None:
        self._having: dict[Path, list[Path]] = {}
        for path in paths:
            for start in _starts(path):
                self._having.setdefault(path[start:], []).append(path)

    def nearest(self, path: Path) -> list[tuple[Path, int]]:
        """The paths that share the most last parts with `path`, and how many these are; none where those are too many to tell."""
        for start in _starts(path):
            found = self._having.get(path[start:], [])
            if found:
                return [(other, len(path) - start) for other in found] if len(found) <= _MOST_PARTNERS else []
        return []


def _is_head(path: Path) -> bool:
    return _NUMBER not in path and is_output_embedding(".".join(path))


def _starts(path: Path) -> range:
    return range(max(0, len(path) - _LONGEST), len(path))


def _ranks(kind: _Kind) -> set[int]:
    return {len(shape) for shape in kind.shapes}


def _within(short: Path, long: Path) -> bool:
    """Whether `long` is `short` with further parts."""
    parts = iter(long)
    return all(part in parts for part in short)
