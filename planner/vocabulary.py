"""Which row of which model stands in each row of the merged model's embeddings.

The tokenizers say which token has which id in which model. A new vocabulary lists tokens; a model that has a token brings its
own row, and where it has none, another model's row or the mean of several takes its place:

    new id   token        A        B        rows of A      rows of B
    0        <s>          0        0        A0             B0            own rows, as runs
    1        the          1        -        A1             A1            one model has it
    2        <|im_end|>   -        1        B1             B1

A run of rows that keep their order is one (first new row, first old row, count), so tables of a hundred thousand rows are a few
runs, and only rows from elsewhere are listed one by one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import CheckpointError
from .catalog import Checkpoint
from .document import Path
from .tokenizer_config import Override, Source, TokenizerError
from .tokenizer_reader import Tokenizer, read_tokenizers

Donors = tuple[tuple[int, int], ...]
"""(model, row) pairs whose mean is a row; none: zeros."""


class Run(NamedTuple):
    """`count` new rows from `first_new` on are the model's own rows from `first_old` on."""

    first_new: int
    first_old: int
    count: int  # type: ignore[assignment]  # the tuple's own method of this name is of no use here


@dataclass(frozen=True, slots=True)
class RowPlan:
    """How one model's rows become `size` rows: `real` ones, padding up to `padded` that is the mean of the real ones, and rows of
    no token behind them.

    Every real row is in a run of `own`, if it is a single row of the model itself, or else a key of `others`. The rows from
    `padded` on are the model's own. `old_rows` is how many rows the model has.
    """

    own: tuple[Run, ...]
    others: Mapping[int, Donors]
    old_rows: int
    real: int
    padded: int
    size: int

    @property
    def identity(self) -> bool:
        """Whether the rows are the model's own, all of them in place, so that nothing has to be moved."""
        return self.own == (Run(0, 0, self.size),) and self.size == self.old_rows

    @property
    def digest(self) -> str:
        """Changes whenever a row does."""
        parts = (self.own, sorted(self.others.items()), self.old_rows, self.real, self.padded, self.size)
        return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """New token to id, in the order of ids, from 0 to `real` - 1; `size` is the new vocab_size, with padding; `rows` are those of
    each model's input embedding, and `tables` has those of other tensors.
    """

    tokens: Mapping[str, int]
    size: int
    rows: tuple[RowPlan, ...]
    tables: _Tables

    @property
    def real(self) -> int:
        """How many rows are tokens."""
        return len(self.tokens)


def plan_vocabulary(
    checkpoints: Sequence[Checkpoint],
    base: int | None,
    source: Source,
    overrides: Mapping[str, Override] | None = None,
    pad_to_multiple_of: int | None = None,
) -> Vocabulary:
    """The new vocabulary and where its rows come from.

    `base` is the base model's place among the checkpoints. None: there is none, so the first model's tokenizer stands for the
    base's, and no model's rows come first where several could. Raises CheckpointError for tokenizers that cannot be read,
    TokenizerError for overrides that name what is not there.
    """
    return plan_rows(read_tokenizers(checkpoints), base, source, overrides or {}, pad_to_multiple_of or 1)


def plan_rows(
    tokenizers: Sequence[Tokenizer], base: int | None, source: Source, overrides: Mapping[str, Override], multiple: int = 1
) -> Vocabulary:
    """The same from tokenizers."""
    given = {token: _row(tokenizers, token, override) for token, override in overrides.items()}
    names, beyond = _new_tokens(tokenizers, base or 0, source, overrides)
    tokens = {token: number for number, token in enumerate(names)}
    template = tokenizers[template_of(base, source)]
    if not tokens:
        raise CheckpointError(f"{template.label}: no token of its tokenizer has an embedding row")
    first = tokenizers[base or 0]
    # What only the rows beyond vocab_size have stays beyond it, as far as it fits there.
    inside = max(len(tokens) - beyond, len(tokens) - max(first.rows - first.size, 0))
    size = -(-inside // multiple) * multiple
    tables = _Tables(
        tokens,
        size,
        tuple(_ids(tokenizer, tokens) for tokenizer in tokenizers),
        tuple(tokenizer.size for tokenizer in tokenizers),
        given,
        frozenset(token for token in given if overrides[token].force),
        base,
    )
    return Vocabulary(tokens, size, tables.plans([tokenizer.rows for tokenizer in tokenizers]), tables)


@dataclass(frozen=True, slots=True)
class _Tables:
    """The new tokens and each model's id of each (-1: none), from which the rows of any tensor follow.

    `given` has the rows that overrides name, `forced` those that hold in every model; `sizes` are the models' vocab_size.
    """

    tokens: Mapping[str, int]
    size: int
    ids: tuple[NDArray[np.int64], ...]
    sizes: tuple[int, ...]
    given: Mapping[str, Donors]
    forced: frozenset[str]
    base: int | None

    def plans(self, rows: Sequence[int]) -> tuple[RowPlan, ...]:
        """How each model's rows of a tensor move, of which it has `rows`: as many as its vocab_size, or a few more or fewer."""
        real = [min(len(self.tokens), self.size + count - old) for count, old in zip(rows, self.sizes, strict=True)]
        ids = [np.where(row < count, row, -1) for row, count in zip(self.ids, rows, strict=True)]
        lacking = np.zeros(len(self.tokens), dtype=bool)
        for row in ids:
            lacking |= row < 0
        for token in self.given:
            lacking[self.tokens[token]] = True
        names = list(self.tokens)
        others: list[dict[int, Donors]] = [{} for _ in ids]
        for new in np.flatnonzero(lacking).tolist():
            token = names[new]
            have = tuple((model, old) for model, row in enumerate(ids) if (old := int(row[new])) >= 0)
            donors = self._given(token, rows) if token in self.given else _donors(have, self.base)
            force = token in self.forced
            single = donors[0] if len(donors) == 1 else (-1, -1)
            for model, row in enumerate(ids):
                if force or row[new] < 0:
                    row[new] = single[1] if single[0] == model else -1
                    if row[new] < 0 and new < real[model]:
                        others[model][new] = donors
        return tuple(
            _row_plan(row[: real[model]], others[model], rows[model], self.sizes[model], self.size)
            for model, row in enumerate(ids)
        )

    def _given(self, token: str, rows: Sequence[int]) -> Donors:
        """The row that an override names, if the tensor has it."""
        return tuple((model, row) for model, row in self.given[token] if row < rows[model])


def _row_plan(ids: NDArray[np.int64], others: Mapping[int, Donors], rows: int, old_size: int, size: int) -> RowPlan:
    """One model's plan; `ids` are its rows for the new tokens that a tensor with its `rows` will have."""
    total = size + rows - old_size
    padded = min(max(size, len(ids)), total)
    behind = np.arange(padded, total, dtype=np.int64) + (old_size - size)
    runs = _runs(np.concatenate([ids, np.full(padded - len(ids), -1), behind]))
    return RowPlan(tuple(runs), others, rows, len(ids), padded, total)


def template_of(base: int | None, source: Source) -> int:
    """The model whose tokenizer files the result's are made from."""
    return source if isinstance(source, int) else base or 0


def _new_tokens(tokenizers: Sequence[Tokenizer], base: int, source: Source, extra: Mapping[str, object]) -> tuple[list[str], int]:
    """The new tokens in their order, and how many of the last ones have only rows beyond vocab_size, in all models."""
    tokens = dict.fromkeys(tokenizers[template_of(base, source)].tokens)
    # The same tokenizer read for several models is one object.
    others = {id(tokenizer): tokenizer for tokenizer in tokenizers}.values()
    if source == "union":
        for tokenizer in others:
            tokens.update(dict.fromkeys(token for token in tokenizer.tokens if token not in tokenizer.added))
        for tokenizer in others:
            tokens.update(dict.fromkeys(token for token in tokenizer.tokens if token in tokenizer.added))
    tokens.update(dict.fromkeys(extra))
    past = [tokenizer for tokenizer in others if tokenizer.rows > tokenizer.size]
    beyond = {token for tokenizer in past for token, number in tokenizer.tokens.items() if number >= tokenizer.size}
    within = {token for token in beyond for tokenizer in others if tokenizer.tokens.get(token, tokenizer.size) < tokenizer.size}
    last = [token for token in tokens if token in beyond - within]
    return [*(token for token in tokens if token not in beyond - within), *last], len(last)


def _ids(tokenizer: Tokenizer, tokens: Mapping[str, int]) -> NDArray[np.int64]:
    """The model's row for each new token, -1 where it has none."""
    return np.fromiter((tokenizer.tokens.get(token, -1) for token in tokens), dtype=np.int64, count=len(tokens))


def _donors(have: Donors, base: int | None) -> Donors:
    """What stands for a row in the models that lack it."""
    return tuple(pair for pair in have if pair[0] == base) or have


def _runs(old: NDArray[np.int64]) -> Iterator[Run]:
    """Maximal runs of rows that follow one another in the old and in the new table."""
    own = np.flatnonzero(old >= 0)
    if not len(own):
        return
    breaks = np.flatnonzero((np.diff(own) != 1) | (np.diff(old[own]) != 1)) + 1
    for first, end in zip([0, *breaks.tolist()], [*breaks.tolist(), len(own)], strict=True):
        yield Run(int(own[first]), int(old[own[first]]), end - first)


def _row(tokenizers: Sequence[Tokenizer], token: str, override: Override) -> Donors:
    """The row that an override names."""
    if override.model is None:
        return ()
    tokenizer, wanted = tokenizers[override.model], override.token
    path: Path = ("tokenizer", "tokens", token, "source")
    if isinstance(wanted, int):
        if not 0 <= wanted < tokenizer.rows:
            raise TokenizerError(path, f"{tokenizer.label} has rows 0 to {tokenizer.rows - 1}, and no token {wanted}")
        return ((override.model, wanted),)
    if wanted not in tokenizer.tokens:
        raise TokenizerError(path, f"{tokenizer.label} has no token '{wanted}'{_nearest(wanted, tokenizer.tokens)}")
    return ((override.model, tokenizer.tokens[wanted]),)


def _nearest(token: str, tokens: Mapping[str, int]) -> str:
    """A clause that names the closest token. There are too many to list, or to compare them all in full."""
    alike = [other for other in tokens if abs(len(other) - len(token)) <= 2 and set(token[:3]) & set(other[:3])]
    close = get_close_matches(token, alike[:20_000], n=1, cutoff=0.6)
    return f"; did you mean '{close[0]}'?" if close else ""
