"""Embedding rows laid out by a new vocabulary, as recipes: a row moves by an index map, never through a permutation matrix."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from ..errors import CheckpointError
from ..ops.lib.rows import RowLayout
from .catalog import Checkpoint, InputTensor
from .layout import stands_for
from .recipe import MappedRows, RowRun, Source, rows_recipe
from .token_axes import token_axes
from .vocabulary import RowPlan, Vocabulary

_BY_OTHER_TOKENS = re.compile(r"(^|\.)embed_tokens_per_layer\.weight$")
"""A table with a row for some of the tokens (Gemma 3n, where vocab_size_per_layer_input is another number than vocab_size)."""


class RowMover:
    """Lays out the tensors of the input models that have a row or an element a token."""

    def __init__(self, vocabulary: Vocabulary, checkpoints: Sequence[Checkpoint]) -> None:
        self._vocabulary, self._checkpoints = vocabulary, checkpoints
        self._axes = [token_axes(checkpoint) for checkpoint in checkpoints]
        self._plans: dict[tuple[int, ...], tuple[RowPlan, ...]] = {}

    def move(self, name: str, checkpoint: Checkpoint, tensor: Source) -> Source:
        """`tensor`, which `checkpoint` holds under `name`, by the new vocabulary; unchanged if it does not go by tokens.

        Raises CheckpointError, naming the tensor, where it cannot be moved.
        """
        model = next(i for i, other in enumerate(self._checkpoints) if other is checkpoint)
        found = stands_for(name, checkpoint.tensors)
        at = self._axes[model].axes.get(found) if found else None
        if found and at is None and _BY_OTHER_TOKENS.search(found) and not self._stays(model):
            raise CheckpointError(
                f"{checkpoint.label}: '{found}' has {tensor.shape[0]} rows for a vocabulary of {self._axes[model].size} tokens: "
                "which token each belongs to is not known, so it cannot follow another vocabulary; leave the tokenizer keys out"
            )
        if at is None or tensor.shape != checkpoint.tensors[found or ""].shape:
            return tensor
        plan = self._plan(name, found or name)[model]
        if plan.identity:
            return tensor
        shape = (*tensor.shape[: at.axis], plan.size, *tensor.shape[at.axis + 1 :])
        outer, width = math.prod(shape[: at.axis]), math.prod(shape[at.axis + 1 :])
        own = [RowRun(*run) for run in plan.own]
        donors: dict[int, list[RowRun]] = {}
        exceptions: list[tuple[int, list[int]]] = []
        lending = {number for number in range(len(self._checkpoints)) if self._lends(name, number)}
        for row, every_source in sorted(plan.others.items()):
            sources = [source for source in every_source if source[0] in lending]
            if [donor for donor, _ in sources] == [model]:
                own.append(RowRun(row, sources[0][1], 1))
                continue
            exceptions.append((row, []))
            for donor, old in sources:
                donors.setdefault(donor, []).append(RowRun(row, old, 1))
                exceptions[-1][1].append(donor)
        position = {donor: i for i, donor in enumerate(donors, start=1)}
        inputs = [self._mapped(name, model, tensor, shape, own, at.axis)]
        for donor, runs in donors.items():
            inputs.append(self._mapped(name, donor, self._tensor(name, donor), shape, runs, at.axis))
        listed = [(row, tuple(position[d] for d in who)) for row, who in exceptions]
        if at.axis == 0:
            return rows_recipe(
                name, inputs, RowLayout(plan.real, tuple(listed), plan.padded if plan.padded < plan.size else None)
            )
        if outer > 1:  # a mean for each of them would be another statistic
            listed += [(row, ()) for row in range(plan.real, plan.padded)]
        every = tuple((o * plan.size + row, who) for o in range(outer) for row, who in sorted(listed))
        real = plan.real if outer == 1 else outer * plan.size
        return rows_recipe(name, inputs, RowLayout(real, every, plan.padded if outer == 1 else None, width))

    def _stays(self, model: int) -> bool:
        """Whether a model's tokens keep their numbers."""
        return self._vocabulary.tables.plans([axes.rows for axes in self._axes])[model].identity

    def _plan(self, name: str, found: str) -> tuple[RowPlan, ...]:
        """The plans of all models for the tensor of this name."""
        rows = []
        for checkpoint, axes in zip(self._checkpoints, self._axes, strict=True):
            own = stands_for(name, checkpoint.tensors) or found
            at = axes.axes.get(own)
            rows.append(axes.rows if at is None else checkpoint.tensors[own].shape[at.axis])
        if tuple(rows) not in self._plans:
            self._plans[tuple(rows)] = self._vocabulary.tables.plans(rows)
        return self._plans[tuple(rows)]

    def _lends(self, name: str, model: int) -> bool:
        """Whether a model has the tensor or should: one without the part that the tensor belongs to has no rows to lend."""
        tensors, module = self._checkpoints[model].tensors, f"{name.rpartition('.')[0]}."
        return stands_for(name, tensors) is not None or any(other.startswith(module) for other in tensors)

    def _tensor(self, name: str, model: int) -> Source:
        checkpoint = self._checkpoints[model]
        found = stands_for(name, checkpoint.tensors)
        if found is None:
            raise CheckpointError(f"{checkpoint.label}: rows of '{name}' are wanted for tokens that others lack, and it has none")
        return checkpoint.tensors[found]

    def _mapped(
        self, name: str, model: int, tensor: Source, shape: tuple[int, ...], runs: Sequence[RowRun], axis: int
    ) -> MappedRows:
        label = self._checkpoints[model].label
        if not isinstance(tensor, InputTensor):
            raise CheckpointError(
                f"{label}: the rows of '{name}' cannot be moved, because an adapter or an earlier stage computes them: "
                "write that model to a folder of its own first"
            )
        if (*tensor.shape[:axis], *tensor.shape[axis + 1 :]) != (*shape[:axis], *shape[axis + 1 :]):
            raise CheckpointError(
                f"{label}: '{name}' goes by tokens and cannot be moved: its shape {list(tensor.shape)} differs from the other "
                "models' in more than the vocabulary"
            )
        new, old = shape[axis], tensor.shape[axis]
        outer = range(math.prod(shape[:axis]))
        every = [RowRun(o * new + run.first_new, o * old + run.first_old, run.count) for o in outer for run in runs]
        width = math.prod(shape[axis + 1 :]) if axis else None
        return MappedRows(tensor, shape, tuple(_joined(sorted(every, key=lambda run: run.first_new))), width)


def _joined(runs: Sequence[RowRun]) -> list[RowRun]:
    """Runs that follow each other in both orders become one."""
    joined: list[RowRun] = []
    for run in runs:
        last = joined[-1] if joined else None
        if last and (last.first_new + last.count, last.first_old + last.count) == (run.first_new, run.first_old):
            joined[-1] = RowRun(last.first_new, last.first_old, last.count + run.count)
        else:
            joined.append(run)
    return joined
