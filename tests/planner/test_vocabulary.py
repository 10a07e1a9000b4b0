"""Which rows a new vocabulary takes from where."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from trials import trials
from vocabularies import FLAGS, model, word_tokenizer
from weft.errors import CheckpointError
from weft.planner.catalog import Checkpoint
from weft.planner.reference import ModelReference, parse_reference
from weft.planner.tokenizer_config import (
    ModelToken,
    Override,
    Source,
    TokenizerConfig,
    TokenizerError,
    TokenizerSource,
    Zero,
    resolve_overrides,
    resolve_source,
)
from weft.planner.vocabulary import RowPlan, Run, Vocabulary, plan_vocabulary

Rows = list[list[tuple[int, int]] | None]
"""For each new row the (model, row) pairs whose mean it is; None: padding."""


def words(label: str, tokens: str, rows: int | None = None, added: str = "") -> Checkpoint:
    """A model whose tokens are these words, in order; `added` come behind them."""
    ordinary = {token: number for number, token in enumerate(tokens.split())}
    more = {token: len(ordinary) + number for number, token in enumerate(added.split())}
    count = len(ordinary) + len(more)
    return model(label, {"tokenizer.json": word_tokenizer(ordinary, more)}, count if rows is None else rows)


def expand(plan: RowPlan, place: int) -> Rows:
    """A row plan, row by row."""
    rows: Rows = [None] * plan.size
    for run in plan.own:
        for i in range(run.count):
            assert rows[run.first_new + i] is None
            rows[run.first_new + i] = [(place, run.first_old + i)]
    for row, donors in plan.others.items():
        assert rows[row] is None
        rows[row] = list(donors)
    return rows


def slow(
    models: list[dict[str, int]],
    limits: list[int],
    base: int | None,
    tokens: list[str],
    overrides: dict[str, Override],
    size: int,
) -> list[Rows]:
    """The rules, one row at a time."""
    result = []
    for place, own in enumerate(models):
        rows: Rows = []
        for token in tokens:
            have = [(i, ids[token]) for i, ids in enumerate(models) if ids.get(token, limits[i]) < limits[i]]
            override = overrides.get(token)
            if (place, own.get(token)) in have and not (override and override.force):
                rows.append([(place, own[token])])
            elif override:
                at = override.token if isinstance(override.token, int) else models[override.model or 0].get(override.token, -1)
                rows.append([] if override.model is None else [(override.model, at)])
            elif len(have) <= 1:
                rows.append(have)
            elif base is not None and any(i == base for i, _ in have):
                rows.append([pair for pair in have if pair[0] == base])
            else:
                rows.append(have)
        result.append(rows + [None] * (size - len(tokens)))
    return result


def test_rows_come_from_where_they_are() -> None:
    a, b, c = words("a", "x y"), words("b", "y z w"), words("c", "w x z q")
    plan = plan_vocabulary([a, b, c], 0, "union")
    assert list(plan.tokens) == ["x", "y", "z", "w", "q"] and list(plan.tokens.values()) == [0, 1, 2, 3, 4]
    assert expand(plan.rows[0], 0) == [[(0, 0)], [(0, 1)], [(1, 1), (2, 2)], [(1, 2), (2, 0)], [(2, 3)]]
    assert expand(plan.rows[1], 1) == [[(0, 0)], [(1, 0)], [(1, 1)], [(1, 2)], [(2, 3)]]
    assert expand(plan.rows[2], 2) == [[(2, 1)], [(0, 1)], [(2, 2)], [(2, 0)], [(2, 3)]]
    assert plan.rows[1].own == (Run(1, 0, 3),)


def test_without_a_base_model_no_model_comes_first() -> None:
    models = [words("a", "x y"), words("b", "x z"), words("c", "z")]
    assert plan_vocabulary(models, 0, "base").rows[2].others == {0: ((0, 0),), 1: ((0, 1),)}
    assert plan_vocabulary(models, None, "base").rows[2].others == {0: ((0, 0), (1, 0)), 1: ((0, 1),)}


def test_union_puts_ordinary_tokens_before_added_ones() -> None:
    models = [words("a", "x", added="<1>"), words("b", "x y", added="<2>"), words("c", "z", added="<1> <3>")]
    assert list(plan_vocabulary(models, 0, "union").tokens) == ["x", "<1>", "y", "z", "<2>", "<3>"]
    assert list(plan_vocabulary(models, 2, "union").tokens) == ["z", "<1>", "<3>", "x", "y", "<2>"]
    assert list(plan_vocabulary(models, 2, "base").tokens) == ["z", "<1>", "<3>"]
    assert list(plan_vocabulary(models, 2, 1).tokens) == ["x", "y", "<2>"]


def test_a_token_past_the_embedding_is_none_of_the_model() -> None:
    models = [words("a", "x y z", rows=2), words("b", "x z")]
    plan = plan_vocabulary(models, 0, "base")
    assert list(plan.tokens) == ["x", "y"] and plan.rows[0].identity
    plan = plan_vocabulary(models, 0, "union")
    assert list(plan.tokens) == ["x", "y", "z"] and plan.rows[0].others == {2: ((1, 1),)}


def test_padding_rows_of_a_model_are_no_tokens() -> None:
    plan = plan_vocabulary([words("a", "x y z", rows=8), words("b", "x y z")], 0, "base")
    assert plan.size == plan.real == 3
    assert plan.rows[0].own == plan.rows[1].own == (Run(0, 0, 3),)
    assert not plan.rows[0].identity and plan.rows[1].identity


@pytest.mark.parametrize(("multiple", "size"), [(None, 3), (1, 3), (2, 4), (3, 3), (64, 64)])
def test_padding_is_added(multiple: int | None, size: int) -> None:
    plan = plan_vocabulary([words("a", "x y z")], 0, "base", {}, multiple)
    assert (plan.real, plan.size) == (3, size)
    assert plan.rows[0].identity == (size == 3)


def test_overrides_fill_what_is_missing_and_force_replaces() -> None:
    models = [words("a", "x y"), words("b", "x z")]
    lenient = plan_vocabulary(models, 0, "union", {"z": Override(0, "y"), "y": Override(None), "x": Override(1, 1)})
    assert expand(lenient.rows[0], 0) == [[(0, 0)], [(0, 1)], [(0, 1)]]
    assert expand(lenient.rows[1], 1) == [[(1, 0)], [], [(1, 1)]]
    forced = plan_vocabulary(models, 0, "union", {"x": Override(1, "z", True), "y": Override(None, force=True)})
    assert expand(forced.rows[0], 0) == [[(1, 1)], [], [(1, 1)]]
    assert expand(forced.rows[1], 1) == [[(1, 1)], [], [(1, 1)]]
    own = plan_vocabulary(models, 0, "base", {"x": Override(0, "x", True)})
    assert own.rows[0].identity and own.rows[1].others[0] == ((0, 0),)


def test_tokens_named_in_overrides_are_added() -> None:
    plan = plan_vocabulary([words("a", "x"), words("b", "x y")], 0, "base", {"<new>": Override(None), "<y>": Override(1, "y")})
    assert plan.tokens == {"x": 0, "<new>": 1, "<y>": 2}
    assert plan.rows[0].others == {1: (), 2: ((1, 1),)}
    assert plan.rows[1].others == {1: ()} and plan.rows[1].own == (Run(0, 0, 1), Run(2, 1, 1))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (Override(1, "hallo"), "b has no token 'hallo'; did you mean 'hello'?"),
        (Override(1, "§"), "b has no token '§'"),
        (Override(1, 3), "b has rows 0 to 2, and no token 3"),
        (Override(1, -1), "b has rows 0 to 2, and no token -1"),
        (Override(0, "y"), "a has no token 'y'"),
    ],
)
def test_overrides_name_rows_that_exist(override: Override, message: str) -> None:
    models = [words("a", "x y", rows=1), words("b", "hello world <end>")]
    with pytest.raises(TokenizerError) as error:
        plan_vocabulary(models, 0, "union", {"<t>": override})
    assert str(error.value) == message and error.value.path == ("tokenizer", "tokens", "<t>", "source")


def test_a_padding_row_may_be_named_by_its_id() -> None:
    plan = plan_vocabulary([words("a", "x", rows=4)], 0, "base", {"<t>": Override(0, 3)})
    assert plan.rows[0].own == (Run(0, 0, 1), Run(1, 3, 1)) and not plan.rows[0].others


def test_digest_changes_with_the_rows() -> None:
    models = [words("a", "x y"), words("b", "x z")]
    plans = [plan_vocabulary(models, 0, source).rows[1].digest for source in ("base", "union", "base")]
    assert plans[0] == plans[2] != plans[1]


@st.composite
def merges(draw: st.DrawFn) -> tuple[list[tuple[dict[str, int], int]], int | None, Source, dict[str, Override], int | None]:
    names = "abcdefgh"
    models = []
    for _ in range(draw(st.integers(1, 4))):
        tokens = draw(st.lists(st.sampled_from(names), unique=True, min_size=1))
        ids = draw(st.lists(st.integers(0, 12), unique=True, min_size=len(tokens), max_size=len(tokens)))
        models.append((dict(zip(tokens, ids, strict=True)), draw(st.integers(1, 14))))
    count = len(models)
    source: Source = draw(st.sampled_from(["union", "base", *range(count)]))
    rows = st.builds(Override, st.integers(0, count - 1), st.just(0), st.booleans()) | st.builds(
        Override, st.none(), force=st.booleans()
    )
    overrides = draw(st.dictionaries(st.sampled_from(names + "yz"), rows, max_size=3))
    return models, draw(st.none() | st.integers(0, count - 1)), source, overrides, draw(st.none() | st.integers(1, 6))


@trials(100)
@given(merges())
def test_rows_follow_the_rules(
    case: tuple[list[tuple[dict[str, int], int]], int | None, Source, dict[str, Override], int | None],
) -> None:
    models, base, source, overrides, multiple = case
    checkpoints = [model(f"m{i}", {"tokenizer.json": word_tokenizer(tokens)}, rows) for i, (tokens, rows) in enumerate(models)]
    try:
        plan = plan_vocabulary(checkpoints, base, source, overrides, multiple)
    except CheckpointError as error:
        assert "no token of its tokenizer has an embedding row" in str(error)
        tokens, rows = models[source if isinstance(source, int) else base or 0]
        assert min(tokens.values()) >= rows and not overrides
        return
    check(plan, models, base, source, overrides, multiple or 1)


def check(
    plan: Vocabulary,
    models: list[tuple[dict[str, int], int]],
    base: int | None,
    source: Source,
    overrides: dict[str, Override],
    multiple: int,
) -> None:
    chosen = source if isinstance(source, int) else base or 0
    present = [{t: n for t, n in sorted(ids.items(), key=lambda item: item[1]) if n < rows} for ids, rows in models]
    wanted = list(present[chosen])
    for tokens in (present if source == "union" else []) + [dict.fromkeys(overrides, 0)]:
        wanted += [token for token in tokens if token not in wanted]
    assert list(plan.tokens) == wanted and list(plan.tokens.values()) == list(range(len(wanted)))
    assert plan.real == len(wanted) <= plan.size < plan.real + multiple and plan.size % multiple == 0
    limits = [rows for _, rows in models]
    expected = slow(present, limits, base, wanted, overrides, plan.size)
    for place, rows in enumerate(plan.rows):
        assert expand(rows, place) == expected[place]
        assert all(0 <= old < limits[donor] for donors in rows.others.values() for donor, old in donors)
        assert all(run.first_old + run.count <= limits[place] for run in rows.own)
        for first, second in zip(rows.own, rows.own[1:], strict=False):
            assert (first.first_new + first.count, first.first_old + first.count) != (second.first_new, second.first_old)
        same = [[(place, row)] for row in range(limits[place])] == expected[place]
        assert rows.identity == same


def test_large_vocabularies_take_seconds() -> None:
    shared = [f"s{i}" for i in range(100_000)]
    models = [words(f"m{k}", " ".join([*shared[k:], *(f"m{k}-{i}" for i in range(50_000))])) for k in range(4)]
    start = time.monotonic()
    plan = plan_vocabulary(models, 0, "union", {}, 64)
    assert time.monotonic() - start < 20
    assert plan.real == 300_000 and plan.rows[0].own == (Run(0, 0, 150_000),)


# Reading tokenizers


def test_ids_are_those_that_the_library_gives() -> None:
    """Added tokens outside the vocabulary are numbered on from its size, whatever the file says."""
    document = word_tokenizer({"x": 0, "y": 1}, {"<1>": 7, "y": 1, "<2>": 9})
    settings = {"added_tokens_decoder": {"12": {"content": "<3>", **FLAGS}, "1": {"content": "y"}}, "pad_token": "<pad>"}
    files = {"tokenizer.json": document, "tokenizer_config.json": settings, "added_tokens.json": {"<4>": 20, "<1>": 7}}
    plan = plan_vocabulary([model("a", files, 32)], 0, "base")
    assert plan.tokens == {"x": 0, "y": 1, "<1>": 2, "<2>": 3, "<3>": 4, "<4>": 5, "<pad>": 6}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "m: has no tokenizer, and merging vocabularies needs its tokenizer.json"),
        ({"tokenizer.model": b"x"}, "AutoTokenizer.from_pretrained(...).save_pretrained(...)"),
        (
            {"tokenizer.json": b"version https://git-lfs"},
            "m/tokenizer.json: not valid JSON: a Git LFS pointer in its place: run `git lfs pull`",
        ),
        ({"tokenizer.json": b"[" * 100_000}, "nested too deep"),
        ({"tokenizer.json": []}, "m/tokenizer.json: not a map"),
        ({"tokenizer.json": {}}, "has no 'model'"),
        ({"tokenizer.json": {"model": {"type": "Tekken", "vocab": {}}}}, "a tokenizer of type 'Tekken' cannot be merged"),
        ({"tokenizer.json": {"model": {"type": "BPE", "vocab": {"a": -1}}}}, "not a map from tokens to ids"),
        ({"tokenizer.json": {"model": {"type": "BPE", "vocab": {"a": True}}}}, "not a map from tokens to ids"),
        ({"tokenizer.json": {"model": {"type": "Unigram", "vocab": ["a"]}}}, "not a list of pieces"),
        ({"tokenizer.json": word_tokenizer({}) | {"added_tokens": [1]}}, "'added_tokens' is not a list of maps"),
    ],
)
def test_tokenizers_that_cannot_be_read(files: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError) as error:
        plan_vocabulary([model("m", files, 4)], 0, "base")
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_model_without_embeddings_is_refused() -> None:
    checkpoint = model("m", {"tokenizer.json": word_tokenizer({"x": 0})}, 1)
    bare = Checkpoint("m", checkpoint.store, {}, {}, (), checkpoint.side_files)
    with pytest.raises(CheckpointError, match="m: has no input embedding"):
        plan_vocabulary([bare], 0, "base")


# The config keys

A, B = parse_reference("a"), parse_reference("org/b@v2")
CONFIG = """
source: org/b@v2
tokens:
  <1>: {source: a}
  <2>: {source: {kind: zero}, force: true}
  <3>: {source: {kind: model_token, model: org/b@v2, token: x}}
  <4>: {source: {kind: model_token, model: {model: {path: a}}, token_id: 7}}
pad_to_multiple_of: 8
"""


def test_the_config_is_read() -> None:
    config = TokenizerConfig.model_validate(yaml.safe_load(CONFIG))
    assert config.source == B and config.pad_to_multiple_of == 8 and config.tokens
    sources = [entry.source for entry in config.tokens.values()]
    assert sources == [A, Zero(), ModelToken(B, "x"), ModelToken(A, 7)]
    assert resolve_source(config.source, [A, B]) == 1 and resolve_source("union", [A]) == "union"
    expected = {"<1>": Override(0, "<1>"), "<2>": Override(None, force=True), "<3>": Override(1, "x"), "<4>": Override(0, 7)}
    assert resolve_overrides(config.tokens, [A, B]) == expected
    assert resolve_overrides(None, [A]) == {} and TokenizerConfig().source == "union"
    assert json.dumps(TokenizerConfig.model_json_schema())


def test_models_that_take_no_part_are_errors() -> None:
    config = TokenizerConfig.model_validate({"tokens": {"<1>": {"source": "org/c"}}})
    with pytest.raises(
        TokenizerError, match=r"^org/c is not one of the models that are merged; did you mean 'org/b@v2'\?$"
    ) as error:
        resolve_overrides(config.tokens, [A, B])
    assert error.value.path == ("tokenizer", "tokens", "<1>", "source")
    with pytest.raises(TokenizerError) as error:
        resolve_source(ModelReference(A.model, B.model), [A], ("tokenizer", "source"))
    assert error.value.path == ("tokenizer", "source")
    with pytest.raises(TokenizerError, match="empty"):
        resolve_overrides({"": config.tokens["<1>"]} if config.tokens else None, [A, B])


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"source": 3}, "a model is a folder"),
        ({"sauce": "union"}, "Extra inputs"),
        ({"pad_to_multiple_of": 0}, "greater than or equal to 1"),
        ({"pad_to_multiple_of": "8.5"}, "valid integer"),
        ({"tokens": {"x": {}}}, "required"),
        ({"tokens": {"x": {"source": {"kind": "zeros"}}}}, "there is no kind 'zeros'; did you mean 'zero'?"),
        ({"tokens": {"x": {"source": {"kind": []}}}}, "there is no kind []"),
        ({"tokens": {"x": {"source": {"kind": "zero", "model": "a"}}}}, "unknown key 'model'"),
        ({"tokens": {"x": {"source": {"kind": "model_token", "token": "a"}}}}, "the key 'model' is missing"),
        (
            {"tokens": {"x": {"source": {"kind": "model_token", "model": "a"}}}},
            "exactly one of 'token' and 'token_id' (here: none)",
        ),
        (
            {"tokens": {"x": {"source": {"kind": "model_token", "model": "a", "token": "b", "token_id": 1}}}},
            "(here: token and token_id)",
        ),
        ({"tokens": {"x": {"source": {"kind": "model_token", "model": "a", "token": 1}}}}, "'token' is text, not 1"),
        ({"tokens": {"x": {"source": {"kind": "model_token", "model": "a", "token_id": "1"}}}}, "'token_id' is a whole number"),
        ({"tokens": {"x": {"source": "a@b@c"}}}, "more than one '@'"),
        ({"tokens": {"x": {"source": "a", "force": 1}}}, "valid boolean"),
    ],
)
def test_what_is_no_tokenizer_config(value: object, message: str) -> None:
    with pytest.raises(ValidationError) as error:
        TokenizerConfig.model_validate(value)
    assert message in str(error.value)


def test_tokenizer_source_is_a_type_of_its_own() -> None:
    source = TypeAdapter[object](TokenizerSource)
    assert source.validate_python("base") == "base" and source.validate_python("a") == A
