"""Embedding rows laid out by a new vocabulary, as recipes: a row moves by an index map, never through a permutation matrix."""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import CheckpointError
from ..ops.rows import RowLayout
from .catalog import Checkpoint, InputTensor
from .layout import input_embedding, is_output_embedding, stands_for
from .recipe import MappedRows, RowRun, Source, rows_recipe
from .vocabulary import Vocabulary


class RowMover:
    """Lays out the vocabulary-sized tensors of the input models."""

    def __init__(self, vocabulary: Vocabulary, checkpoints: Sequence[Checkpoint]) -> None:
        self._vocabulary, self._checkpoints = vocabulary, checkpoints

    def move(self, name: str, checkpoint: Checkpoint, tensor: Source) -> Source:
        """`tensor`, which `checkpoint` holds under `name`, by the new vocabulary; unchanged if its rows are no tokens."""
        model = next(i for i, other in enumerate(self._checkpoints) if other is checkpoint)
        plan = self._vocabulary.rows[model]
        if not _has_token_rows(name) or tensor.shape[0] != plan.old_rows or plan.identity:
            return tensor
        shape = (plan.size, *tensor.shape[1:])
        own = [RowRun(*run) for run in plan.own]
        donors: dict[int, list[RowRun]] = {}
        exceptions: list[tuple[int, list[int]]] = []
        for row, sources in sorted(plan.others.items()):
            if [donor for donor, _ in sources] == [model]:
                own.append(RowRun(row, sources[0][1], 1))
                continue
            exceptions.append((row, []))
            for donor, old in sources:
                donors.setdefault(donor, []).append(RowRun(row, old, 1))
                exceptions[-1][1].append(donor)
        position = {donor: i for i, donor in enumerate(donors, start=1)}
        inputs = [self._mapped(name, model, tensor, shape, own)]
        for donor, runs in donors.items():
            inputs.append(self._mapped(name, donor, self._tensor(name, donor), shape, runs))
        layout = RowLayout(plan.real, tuple((row, tuple(position[d] for d in who)) for row, who in exceptions))
        return rows_recipe(name, inputs, layout)

    def _tensor(self, name: str, model: int) -> Source:
        checkpoint = self._checkpoints[model]
        found = stands_for(name, checkpoint.tensors)
        if found is None:
            raise CheckpointError(f"{checkpoint.label}: rows of '{name}' are wanted for tokens that others lack, and it has none")
        return checkpoint.tensors[found]

    def _mapped(self, name: str, model: int, tensor: Source, shape: tuple[int, ...], runs: Sequence[RowRun]) -> MappedRows:
        if not isinstance(tensor, InputTensor):
            raise CheckpointError(
                f"{self._checkpoints[model].label}: the rows of '{name}' cannot be moved, because an adapter or an earlier stage "
                "computes them: write that model to a folder of its own first"
            )
        return MappedRows(tensor, shape, tuple(_joined(sorted(runs, key=lambda run: run.first_new))))


def _has_token_rows(name: str) -> bool:
    """Whether a tensor's first dimension is the vocabulary, if it is as long."""
    return input_embedding([name]) is not None or is_output_embedding(name) or name.endswith(("lm_head.bias", "predictions.bias"))


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
