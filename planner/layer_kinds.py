"""Whether a result's config.json can know which of its layers has which tensors: a net under what weft knows of keys.

Layers of one stack may differ in their tensors: some have experts, or cross-attention. A reader builds them as config.json
says, or as the model's class has it (the first layer of a T5 alone has a position bias). Keys that weft renumbers may tell the
layers apart; otherwise the rule is not known, and each place must keep the tensors that it had.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from .layout import Stack
from .restack import Said

_BUFFERS = re.compile(r"(^|\.)(inv_freq|masked_bias|position_ids|num_batches_tracked|(attn|attention)\.bias)$")
"""What some versions of a model save and no reader needs."""

Kind = frozenset[tuple[str, tuple[int, ...]]]
"""A layer's tensors: what stands behind its number, and the shapes."""


def kinds(stack: Stack, shapes: Mapping[str, tuple[int, ...]]) -> list[Kind]:
    """The kinds of a stack's layers in order, of a checkpoint with tensors of these shapes."""
    head = f"{stack.prefix}." if stack.prefix else ""
    found: list[set[tuple[str, tuple[int, ...]]]] = [set() for _ in range(stack.count)]
    for name, shape in shapes.items():
        number, _, rest = name.removeprefix(head).partition(".")
        if name.startswith(head) and number.isdecimal() and int(number) < stack.count and not _BUFFERS.search(rest):
            found[int(number)].add((rest, shape))
    return [frozenset(kind) for kind in found]


def out_of_place(before: Sequence[Kind], after: Sequence[Kind], said: Said) -> int | None:
    """The first of the new layers that nothing can tell from others with other tensors; None where all is well.

    `before`, `after`: the layers of the model whose config.json the result has, and the result's; `said`: what keys say of both.
    """
    by_said: dict[str, set[Kind]] = {}
    for kind, item in zip((*before, *after), (*said.before, *said.after), strict=True):
        by_said.setdefault(repr(item), set()).add(kind)
    if all(len(alike) == 1 for alike in by_said.values()):
        return None
    expected = _continued(before, len(after))
    return next((layer for layer, kind in enumerate(after) if kind != expected[layer]), None)


def difference(one: Kind, other: Kind) -> str:
    """The name of a tensor in which two kinds differ."""
    names = sorted(name for name, _ in one ^ other)
    return names[0] if names else ""


def _continued(before: Sequence[Kind], count: int) -> Sequence[Kind | None]:
    """What a class most likely has in `count` layers, where nothing is known but its layers so far.

    Either some first layers are special, or the last one alone; None where it could be anything.
    """
    if count == len(before):
        return before
    last, usual = before[-1], before[-2] if len(before) > 2 else before[-1]
    if last != usual and all(kind == usual for kind in before[:-1]):
        return [*[usual] * (count - 1), last]  # e.g. a last layer without a norm
    special = len(before) - next((i for i, kind in enumerate(reversed(before)) if kind != last), len(before))
    if last != usual or last in before[:special]:
        return [None] * count
    return [*before[:special], *[last] * count][:count]
