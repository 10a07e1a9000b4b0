"""Where bits depend on what computes, a tensor's digest says so: a result that one device began is not gone on with on another.

The CPU adds up in the same order whatever its budget, so its digests have nothing of it. A GPU's sums depend on its kind, and on
how many blocks it handles at once, which `--vram` decides.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace

from .graph import copies_bytes
from .kernels import kernel_of
from .memory import Budget
from .recipe import Recipe, computed_inputs


def processor(budget: Budget) -> str | None:
    """What computes, as the system calls it; None for the CPU."""
    return None if budget.on_host else budget.processor or budget.device.partition(":")[0]


class Stamp:
    """Marks recipes with what computes them, and their computed inputs too; recipes that only move bytes stay as they are."""

    def __init__(self, budget: Budget, blocks: int) -> None:
        name = processor(budget)
        self._by = name and f"{name}, {blocks} block{'s' if blocks > 1 else ''} at once"
        self._stamped: dict[str, Recipe] = {}

    def all(self, recipes: Sequence[Recipe]) -> tuple[Recipe, ...]:
        """The recipes, with their digests, as they are computed here."""
        if not self._by:
            return tuple(recipes)
        for inner in computed_inputs(recipes):  # inputs before what uses them, so that no walk is deep
            self._one(inner)
        return tuple(map(self._one, recipes))

    def _one(self, recipe: Recipe) -> Recipe:
        if copies_bytes(recipe, kernel_of(recipe)):
            return recipe
        key = f"{recipe.name}\0{recipe.digest}"  # one digest may make tensors of several names
        if key not in self._stamped:
            inputs = tuple(self._one(source) if isinstance(source, Recipe) else source for source in recipe.inputs)
            parts = [recipe.digest, str(self._by), *(source.digest for source in inputs if isinstance(source, Recipe))]
            digest = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]
            self._stamped[key] = replace(recipe, inputs=inputs, digest=digest, computed_by=self._by)
        return self._stamped[key]
