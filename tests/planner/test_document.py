"""YAML with line numbers: plain values alone, whatever the text."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from weft.errors import ConfigError
from weft.planner.document import MAX_BYTES, dotted, parse

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(st.characters(codec="utf-8"), max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text("abcdef", min_size=1, max_size=5), inner, max_size=4),
    max_leaves=20,
)
YAMLISH = st.text("ab1 \n\t-:,[]{}&*!|>'\"#%@?<=~.\\x", max_size=60)


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=60) | YAMLISH)
@example("a: !!int ''")
@example("a: !!float ''")
@example("a: !!bool x")
@example("a: !!binary x")
@example("a: !!set {x}")
@example("a: 2001-99-99")
@example("a: " + "9" * 5000)
@example("<<: {a: 1}")
@example("a: =")
@example("? [a]\n: b")
@example("&a [*a]")
@example("a: &x 1\nb: *x\n--- *x")
@example("[" * 3000)
@example("a: 0x_")
@example("!!python/name:os.system")
@example("\ud800")
def test_any_text_is_values_or_a_config_error(text: str) -> None:
    try:
        documents = parse(text, "merge.yaml")
    except ConfigError as error:
        assert str(error).startswith("merge.yaml")
        return
    for document in documents:
        assert plain(document.value)
        assert all(1 <= line <= text.count("\n") + len(text.splitlines()) + 1 for line in document.lines.values())


def plain(value: object) -> bool:
    if isinstance(value, dict):
        return all(isinstance(key, str) and plain(item) for key, item in value.items())
    if isinstance(value, list):
        return all(plain(item) for item in value)
    return value is None or isinstance(value, bool | int | float | str)


@settings(max_examples=100, deadline=None)
@given(PLAIN)
def test_plain_values_come_back_as_they_were(value: Any) -> None:
    text = yaml.safe_dump(value)
    assert [document.value for document in parse(text, "merge.yaml")] == [value]


def test_lines_and_paths() -> None:
    text = "a: 1\nb:\n  - c: [x,\n    y]\n  - d\ne: {f: 3}\n"
    (document,) = parse(text, "merge.yaml")
    assert document.value == {"a": 1, "b": [{"c": ["x", "y"]}, "d"], "e": {"f": 3}}
    lines = {("a",): 1, ("b",): 2, ("b", 0): 3, ("b", 0, "c"): 3, ("b", 0, "c", 1): 4, ("b", 1): 5, ("e", "f"): 6}
    assert {path: document.line(path) for path in lines} == lines
    assert document.line(("b", 0, "c", 1, "further", 7)) == 4
    assert document.line(("nowhere",)) == 1
    assert str(document.error(("b", 0, "c"), "wrong")) == "merge.yaml, line 3, b[0].c: wrong"
    assert str(document.error((), "wrong")) == "merge.yaml, line 1: wrong"
    assert dotted((0, "a", 1, 2, "b")) == "[0].a[1][2].b"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2001-01-01", "2001-01-01"),  # no date: a model may be called so
        ("yes", True),
        ("1e-5", "1e-5"),  # YAML 1.1; settings read it as a number
        ("1.0e-5", 1e-5),
        ("0o7", "0o7"),
        ("~", None),
        ("'1'", "1"),
        ("!!str 1", "1"),
        ("{1: a, true: b}", {"1": "a", "true": "b"}),
    ],
)
def test_scalars(text: str, value: object) -> None:
    (document,) = parse(text, "merge.yaml")
    assert document.value == value and type(document.value) is type(value)


def test_aliases_are_allowed_where_they_stay_small() -> None:
    (document,) = parse("a: &a {x: 1}\nb: *a\n", "merge.yaml")
    assert document.value == {"a": {"x": 1}, "b": {"x": 1}}


def test_too_much_text() -> None:
    with pytest.raises(ConfigError, match=f"merge.yaml: {MAX_BYTES + 1} characters are too many"):
        parse("#" * (MAX_BYTES + 1), "merge.yaml")
