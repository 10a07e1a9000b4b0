"""Vocabulary-sized tensors as recipes: which rows are read from where, carried out one row at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vocabularies import model, word_tokenizer
from weft.errors import CheckpointError
from weft.ops.lib.rows import RowLayout
from weft.planner.catalog import Checkpoint, InputTensor, WeightFile
from weft.planner.embedding import RowMover
from weft.planner.recipe import LowRankUpdate, MappedRows, Recipe, Source, low_rank_recipe
from weft.planner.tokenizer_config import Override
from weft.planner.tokenizer_config import Source as Wanted
from weft.planner.vocabulary import Vocabulary, plan_vocabulary

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
Row = list[tuple[str, int]] | None
"""The (model, row) pairs whose mean a row is; None: padding."""


def words(label: str, tokens: Sequence[str], rows: int | None = None, head: bool = True) -> Checkpoint:
    """A model whose tokens are these words, in order."""
    vocabulary = {token: number for number, token in enumerate(tokens)}
    checkpoint = model(label, {"tokenizer.json": word_tokenizer(vocabulary)}, rows or len(tokens))
    if not head:
        return checkpoint
    return replace(checkpoint, tensors={**checkpoint.tensors, HEAD: tensor(label, HEAD, (rows or len(tokens), 4))})


def tensor(label: str, name: str, shape: tuple[int, ...]) -> InputTensor:
    return InputTensor(name, "F32", shape, WeightFile(label, "model.safetensors", 0, label), 0, 16 * shape[0])


def moved(checkpoints: list[Checkpoint], vocabulary: Vocabulary, name: str = EMBEDDING) -> list[Source]:
    """Each model's tensor by the new vocabulary, as a merge asks for it."""
    mover = RowMover(vocabulary, checkpoints)
    found = []
    for checkpoint in checkpoints:
        own = checkpoint.tensors.get(name, checkpoint.tensors[EMBEDDING])
        found.append(mover.move(name, checkpoint, own))
    return found


def carried_out(source: Source) -> list[Row]:
    """What stands in each row, by what is read and how it is put together. Reads nothing that no run brings."""
    if isinstance(source, InputTensor):
        return [[(source.file.model, row)] for row in range(source.shape[0])]
    assert isinstance(source, Recipe) and isinstance(source.special, RowLayout) and source.method is None
    held: list[dict[int, tuple[str, int]]] = []
    for mapped in source.inputs:
        assert isinstance(mapped, MappedRows) and mapped.shape == source.shape
        rows: dict[int, tuple[str, int]] = {}
        end = 0
        for run in mapped.runs:
            assert run.first_new >= end and run.count > 0, "runs are in order and do not overlap"
            end = run.first_new + run.count
            assert end <= source.shape[0] and 0 <= run.first_old <= run.first_old + run.count <= mapped.tensor.shape[0]
            rows |= {run.first_new + i: (mapped.tensor.file.model, run.first_old + i) for i in range(run.count)}
        for one, other in zip(mapped.runs, mapped.runs[1:], strict=False):
            assert (one.first_new + one.count, one.first_old + one.count) != (other.first_new, other.first_old), "one run in two"
        held.append(rows)
    layout = source.special
    assert [row for row, _ in layout.exceptions] == sorted({row for row, _ in layout.exceptions})
    exceptions = dict(layout.exceptions)
    result: list[Row] = []
    for row in range(source.shape[0]):
        if row >= layout.real:
            assert row not in exceptions and all(row not in rows for rows in held)
            result.append(None)
        elif row in exceptions:
            assert row not in held[0]
            result.append([held[input][row] for input in exceptions[row]])
        else:
            result.append([held[0][row]])
    return result


def wanted(checkpoints: list[Checkpoint], vocabulary: Vocabulary, place: int) -> list[Row]:
    """The same from the row plan."""
    plan = vocabulary.rows[place]
    rows: list[Row] = [None] * plan.size
    for run in plan.own:
        for i in range(run.count):
            rows[run.first_new + i] = [(checkpoints[place].label, run.first_old + i)]
    for row, donors in plan.others.items():
        rows[row] = [(checkpoints[donor].label, old) for donor, old in donors]
    return rows


def test_rows_follow_their_tokens() -> None:
    models = [words("a", ["x", "y", "z"]), words("b", ["z", "w", "x"])]
    vocabulary = plan_vocabulary(models, None, "union")
    assert list(vocabulary.tokens) == ["x", "y", "z", "w"]
    for name in (EMBEDDING, HEAD):
        a, b = moved(models, vocabulary, name)
        assert carried_out(a) == [[("a", 0)], [("a", 1)], [("a", 2)], [("b", 1)]]
        assert carried_out(b) == [[("b", 2)], [("a", 1)], [("b", 0)], [("b", 1)]]
        assert (a.shape, b.shape, a.dtype) == ((4, 4), (4, 4), "F32")
        assert {leaf.name for source in (a, b) if isinstance(source, Recipe) for leaf in source.leaves()} == {name}


def test_a_mean_of_several() -> None:
    models = [words("a", ["x"]), words("b", ["n", "x"]), words("c", ["x", "n"])]
    vocabulary = plan_vocabulary(models, None, "union")
    found = [carried_out(source) for source in moved(models, vocabulary)]
    assert found[0] == [[("a", 0)], [("b", 0), ("c", 1)]]
    with_base = plan_vocabulary(models, 2, "union")
    row = with_base.tokens["n"]
    assert carried_out(moved(models, with_base)[0])[row] == [("c", 1)], "the base's, where it has one"


def test_overrides() -> None:
    models = [words("a", ["x", "y"]), words("b", ["y", "x"])]
    overrides = {"zero": Override(None), "y": Override(1, "x", force=True), "new": Override(0, 1)}
    vocabulary = plan_vocabulary(models, 0, "base", overrides, 8)
    assert list(vocabulary.tokens) == ["x", "y", "zero", "new"] and vocabulary.size == 8
    a, b = (carried_out(source) for source in moved(models, vocabulary))
    assert a == [[("a", 0)], [("b", 1)], [], [("a", 1)], None, None, None, None]
    assert b == [[("b", 1)], [("b", 1)], [], [("a", 1)], None, None, None, None]


def test_what_does_not_move_is_the_tensor_itself() -> None:
    models = [words("a", ["x", "y"]), words("b", ["x", "y"])]
    vocabulary = plan_vocabulary(models, None, "union")
    mover = RowMover(vocabulary, models)
    for checkpoint in models:
        own = checkpoint.tensors[EMBEDDING]
        assert mover.move(EMBEDDING, checkpoint, own) is own


def test_only_rows_of_tokens_move() -> None:
    models = [words("a", ["x", "y"]), words("b", ["y", "x", "z"])]
    mover = RowMover(plan_vocabulary(models, None, "union"), models)
    for name in ("model.norm.weight", "model.layers.0.mlp.up_proj.weight"):
        same = tensor("a", name, (2, 4))
        assert mover.move(name, models[0], same) is same
    shorter = tensor("a", HEAD, (1, 4))  # a head that classifies, say
    assert mover.move(HEAD, models[0], shorter) is shorter


def test_a_tied_model_lends_its_embedding_to_a_head() -> None:
    models = [words("a", ["x"]), words("b", ["x", "y"], head=False)]
    vocabulary = plan_vocabulary(models, None, "union")
    a, b = moved(models, vocabulary, HEAD)
    assert carried_out(a) == [[("a", 0)], [("b", 1)]]
    assert isinstance(a, Recipe) and [leaf.name for leaf in a.leaves()] == [HEAD, EMBEDDING]
    assert carried_out(b) == [[("b", 0)], [("b", 1)]]


def test_padding_rows_of_a_model_are_no_tokens() -> None:
    models = [words("a", ["x", "y"], rows=64), words("b", ["x", "y"])]
    vocabulary = plan_vocabulary(models, None, "union")
    assert vocabulary.size == 2
    a, b = moved(models, vocabulary)
    assert carried_out(a) == [[("a", 0)], [("a", 1)]] and carried_out(b) == [[("b", 0)], [("b", 1)]]


def test_the_digest_changes_with_the_rows() -> None:
    models = [words("a", ["x", "y", "z"]), words("b", ["z", "w", "x"])]
    digests = set()
    for overrides in ({}, {"y": Override(1, "w", True)}, {"y": Override(None, force=True)}, {"y": Override(1, "z", True)}):
        source = moved(models, plan_vocabulary(models, None, "union", overrides))[0]
        assert isinstance(source, Recipe)
        digests.add(source.digest)
    source = moved(models, plan_vocabulary(models, None, "union", {}, 64))[0]
    assert isinstance(source, Recipe)
    assert len(digests | {source.digest}) == 5


def test_computed_embeddings_cannot_move() -> None:
    models = [words("a", ["x"]), words("b", ["x", "y"])]
    own = models[0].tensors[EMBEDDING]
    assert isinstance(own, InputTensor)
    computed = low_rank_recipe(own, tensor("l", "A", (2, 1)), tensor("l", "B", (4, 2)), LowRankUpdate(1.0, True))
    mover = RowMover(plan_vocabulary(models, None, "union"), models)
    with pytest.raises(CheckpointError, match=r"a: the rows of 'model.embed_tokens.weight' cannot be moved, because an adapter"):
        mover.move(EMBEDDING, models[0], computed)


def test_a_table_for_some_of_the_tokens_cannot_move() -> None:
    """Gemma 3n with another vocab_size_per_layer_input."""
    name = "model.language_model.embed_tokens_per_layer.weight"
    models = [words("a", ["x", "y", "z", "u", "v", "w"]), words("b", ["y", "x", "z", "u", "v", "w"])]
    models = [replace(one, tensors={**one.tensors, name: tensor(one.label, name, (4, 3))}) for one in models]
    mover = RowMover(plan_vocabulary(models, None, "union"), models)
    assert mover.move(name, models[0], models[0].tensors[name]) is models[0].tensors[name], "its tokens keep their numbers"
    with pytest.raises(CheckpointError, match=rf"b: '{name}' has 4 rows for a vocabulary of 6 tokens"):
        mover.move(name, models[1], models[1].tensors[name])


def test_a_donor_without_the_tensor() -> None:
    models = [words("a", ["x"]), words("b", ["x", "y"])]
    bias = tensor("a", "lm_head.bias", (1,))
    models[0] = replace(models[0], tensors={**models[0].tensors, "lm_head.bias": bias})
    mover = RowMover(plan_vocabulary(models, None, "union"), models)
    with pytest.raises(CheckpointError, match=r"b: rows of 'lm_head.bias' are wanted for tokens that others lack"):
        mover.move("lm_head.bias", models[0], bias)


WORDS = [f"w{i}" for i in range(14)]


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_every_row_is_what_the_row_plan_says(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 4))
    tokens = st.lists(st.sampled_from(WORDS), unique=True, min_size=1)
    checkpoints = []
    for label in "abcd"[:count]:
        own = data.draw(tokens)
        checkpoints.append(words(label, own, rows=len(own) + data.draw(st.integers(0, 3))))
    overrides: dict[str, Override] = {}
    for token in data.draw(st.lists(st.sampled_from([*WORDS, "extra"]), unique=True, max_size=4)):
        donor = data.draw(st.none() | st.integers(0, count - 1))
        row = 0 if donor is None else data.draw(st.integers(0, checkpoints[donor].tensors[EMBEDDING].shape[0] - 1))
        overrides[token] = Override(donor, row, force=data.draw(st.booleans()))
    choices: list[Wanted] = ["union", "base", 0, count - 1]
    source = data.draw(st.sampled_from(choices))
    base = data.draw(st.none() | st.integers(0, count - 1))
    vocabulary = plan_vocabulary(checkpoints, base, source, overrides, data.draw(st.sampled_from([1, 8])))
    for place, result in enumerate(moved(checkpoints, vocabulary)):
        rows = carried_out(result)
        assert rows == wanted(checkpoints, vocabulary, place)
        assert len(rows) == vocabulary.size and all(row is not None for row in rows[: vocabulary.real])
