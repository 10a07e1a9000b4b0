"""Model references, as text and as maps."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weft.planner.reference import Location, ModelReference, parse_reference


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("org/name", ModelReference(Location("org/name"))),
        ("  org/name \n", ModelReference(Location("org/name"))),
        ("org/name@v1.2", ModelReference(Location("org/name", "v1.2"))),
        ("../some dir/x.y", ModelReference(Location("../some dir/x.y"))),
        ("a/b+c/d", ModelReference(Location("a/b"), Location("c/d"))),
        ("a/b@r + c/d@s", ModelReference(Location("a/b", "r"), Location("c/d", "s"))),
    ],
)
def test_text(text: str, expected: ModelReference) -> None:
    assert parse_reference(text) == expected


words = st.text(st.characters(codec="ascii", exclude_characters="@+ \t\n\r\x0b\x0c", exclude_categories=["Cc"]), min_size=1)
locations = st.builds(Location, words, st.none() | words)


@given(reference=st.builds(ModelReference, locations, st.none() | locations))
def test_what_is_written_is_read(reference: ModelReference) -> None:
    assert parse_reference(str(reference)) == reference


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a+b+c", "more than one '\\+': a model takes one adapter"),
        ("a@b@c", "more than one '@': a model takes one revision"),
        ("a+b@c@d", "'b@c@d' has more than one '@'"),
        ("", "'' is not a model"),
        ("   ", "is not a model"),
        ("@main", "'@main' is not a model"),
        ("a@", "'a@' is not a model"),
        ("a+", "is not a model"),
        ("+b", "is not a model"),
    ],
)
def test_text_that_is_no_model(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_reference(text)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"model": "a/b@r"}, ModelReference(Location("a/b", "r"))),
        ({"model": {"path": "a/b"}}, ModelReference(Location("a/b"))),
        ({"model": {"path": "a/b", "revision": "r"}, "lora": None}, ModelReference(Location("a/b", "r"))),
        ({"model": {"path": "a/b", "revision": None}}, ModelReference(Location("a/b"))),
        (
            {"model": {"path": "a/b"}, "lora": {"path": "c/d", "revision": "s"}, "override_architecture": "X"},
            ModelReference(Location("a/b"), Location("c/d", "s")),
        ),
        ({"model": "a/b", "lora": "c/d"}, ModelReference(Location("a/b"), Location("c/d"))),
    ],
)
def test_maps(value: dict[str, Any], expected: ModelReference) -> None:
    assert parse_reference(value) == expected


@pytest.mark.parametrize(
    "value",
    [
        {},
        {"lora": "a"},
        {"model": "a", "adapter": "b"},
        {"model": 3},
        {"model": {"path": 3}},
        {"model": {"revision": "r"}},
        {"model": {"path": "a", "revision": 3}},
        {"model": {"path": "a", "branch": "r"}},
        {"model": "a", "lora": ["b"]},
    ],
)
def test_maps_that_are_no_model(value: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"a model written as a map has|write \{path:"):
        parse_reference(value)


@pytest.mark.parametrize("value", [None, 3, True, ["a/b"]])
def test_other_values_are_no_model(value: object) -> None:
    with pytest.raises(ValueError, match="a model is a folder or a Hub name"):
        parse_reference(value)


@pytest.mark.parametrize(
    ("pasted", "name"),
    [
        ("https://huggingface.co/org/name", "org/name"),
        ("https://huggingface.co/org/name/", "org/name"),
        ("https://huggingface.co/org/name/tree/main", "org/name"),
        ("https://hf.co/org/name/tree/v1.0", "org/name@v1.0"),
        ("https://hf-mirror.com/org/name.v2/blob/abc/config.json?x=1", "org/name.v2@abc"),
        ("http://localhost:8090/org/name", "org/name"),
        ("org/name/", "org/name"),
        ("org/name/+org/adapter/", "org/name+org/adapter"),
    ],
)
def test_what_people_paste_for_a_hub_name(pasted: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://localhost:8090/")
    assert str(parse_reference(pasted)) == name
