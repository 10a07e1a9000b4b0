"""YAML merge keys (`<<`), against a plain model of what they mean and against what PyYAML makes of them."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from trials import trials
from weft.errors import ConfigError
from weft.planner.config import load_config
from weft.planner.document import parse


class Map(NamedTuple):
    """A map with its own keys, and the numbers of the maps before it that it merges: one by itself, or several in a list."""

    own: dict[str, int]
    merges: list[int]
    first: bool
    """Whether `<<` stands before the map's own keys."""


@st.composite
def maps(draw: st.DrawFn) -> list[Map]:
    found: list[Map] = []
    for number in range(draw(st.integers(1, 6))):
        own = draw(st.dictionaries(st.sampled_from("abcdefg"), st.integers(0, 99), max_size=4))
        merges = draw(st.lists(st.integers(0, number - 1), max_size=3)) if number else []
        found.append(Map(own, merges, draw(st.booleans())))
    return found


def written(every: list[Map]) -> str:
    """A line a map, `m0: &m0 {...}`."""
    lines = []
    for number, one in enumerate(every):
        own = [f"{key}: {value}" for key, value in one.own.items()]
        aliases = [f"*m{other}" for other in one.merges]
        merge = [f"<<: {aliases[0]} "] if len(aliases) == 1 else [f"<<: [{', '.join(aliases)}]"] if aliases else []
        lines.append(f"m{number}: &m{number} {{{', '.join([*merge, *own] if one.first else [*own, *merge])}}}\n")
    return "".join(lines)


def meaning(every: list[Map], number: int) -> dict[str, tuple[int, int]]:
    """Of each key the value and the line it comes from: the map's own, else the first merged map's that has the key."""
    found = {key: (value, number + 1) for key, value in every[number].own.items()}
    for other in every[number].merges:
        for key, item in meaning(every, other).items():
            found.setdefault(key, item)
    return found


@trials(60)
@given(maps())
def test_merge_keys_mean_what_yaml_says(every: list[Map]) -> None:
    text = written(every)
    (document,) = parse(text, "merge.yaml")
    for number in range(len(every)):
        expected = meaning(every, number)
        assert document.value[f"m{number}"] == {key: value for key, (value, _) in expected.items()}
        assert {key: document.line((f"m{number}", key)) for key in expected} == {key: line for key, (_, line) in expected.items()}
    assert document.value == yaml.safe_load(text)


@pytest.mark.parametrize(
    "text",
    [
        "a: &a {x: {y: 1}}\nb: {<<: *a, x: {z: 2}}\n",  # maps within are replaced, not merged
        "a: &a {x: 1}\nb: {<<: {<<: *a, y: 2}, z: 3}\n",
        "- &a {x: 1}\n- <<: *a\n- {<<: [*a, {x: 2, y: 3}]}\n",
        "a: {'<<': {x: 1}}\n",  # in quotes it is a key like any other
        "a: {<<: [], x: 1}\n",
        "x: &x\n  a: 1\ny:\n  b: 2\n  <<: *x\n",
    ],
)
def test_what_pyyaml_reads(text: str) -> None:
    (document,) = parse(text, "merge.yaml")
    assert document.value == yaml.safe_load(text)


def test_an_error_in_a_merged_value_is_where_the_value_is_written() -> None:
    text = (
        "models:\n  - model: a\n    parameters: &shared\n      weight: 0.5\n      density: much\n"
        "  - model: b\n    parameters:\n      <<: *shared\n      density: 1\n  - model: c\n    parameters:\n      <<: *shared\n"
        "merge_method: ties\n"
    )
    with pytest.raises(ConfigError, match=r"^merge\.yaml, line 5, models\[0\]\.parameters\.density: expected a number"):
        load_config(text, "merge.yaml")
    loaded = load_config(text.replace("much", "0.25"), "merge.yaml")
    assert loaded.merge.models is not None
    found = [entry.parameters["density"].at("x", 0) for entry in loaded.merge.models if entry.parameters]
    assert found == [0.25, 1, 0.25]
    assert loaded.document.line(("models", 2, "parameters", "density")) == 5


@pytest.mark.parametrize("value", ["1", "text", "[1]", "[[{a: 1}]]", "null"])
def test_only_maps_are_merged(value: str) -> None:
    with pytest.raises(ConfigError, match=r"^merge\.yaml, line 2, a\.<<: '<<' takes a map or a list of maps"):
        parse(f"a:\n  <<: {value}\n", "merge.yaml")


CHAIN = "m0: &m0 {k: 1}\n" + "".join(f"m{n}: &m{n} {{<<: [{', '.join([f'*m{n - 1}'] * 9)}]}}\n" for n in range(1, 60))
WIDE = f"m: &m {{{', '.join(f'k{i}: 1' for i in range(200))}}}\nn: {{<<: [{', '.join(['*m'] * 200)}]}}\n"
DEEP = "m0: &m0 {k: 1}\n" + "".join(f"m{n}: &m{n} {{<<: *m{n - 1}}}\n" for n in range(1, 500))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: &a {<<: *a}\n", "the map merges itself"),
        ("a: &a {b: &b {<<: *a}, <<: *b}\n", "the map merges itself"),
        (WIDE, "too large or too deep"),
        (f"{DEEP}n: {{<<: *m499}}\n", None),
        (CHAIN, None),
    ],
    ids=["itself", "in a circle", "wide", "long", "bomb"],
)
def test_merge_keys_cost_no_more_than_their_text(text: str, says: str | None) -> None:
    if says is None:
        (document,) = parse(text, "merge.yaml")
        assert all(value == {"k": 1} for value in document.value.values())
    else:
        with pytest.raises(ConfigError, match=says):
            parse(text, "merge.yaml")


def test_a_chain_from_its_end_is_no_deeper_than_maps_may_be() -> None:
    chain = "".join("{<<: " for _ in range(70)) + "{a: 1}" + "}" * 70
    with pytest.raises(ConfigError, match="too large or too deep"):
        parse(f"x: {chain}\n", "merge.yaml")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a: 1\nb: 2\na: 3\n", {"a": 3, "b": 2}),
        ("x: &x {a: 1}\ny: &y {a: 2}\nz: {<<: *x, <<: *y}\n", {"x": {"a": 1}, "y": {"a": 2}, "z": {"a": 2}}),
    ],
)
def test_a_key_that_stands_twice_is_kept_as_its_last(text: str, value: Any) -> None:
    (document,) = parse(text, "merge.yaml")
    assert document.value == value == yaml.safe_load(text)
    (oddity,) = document.oddities
    assert oddity.line == 3 and "appears twice in the same map" in oddity.problem
    with pytest.raises(ConfigError, match=r"line 3.*appears twice.*; with --lenient .*the last one counts$"):
        document.note(oddity, lenient=False)
    assert document.note(oddity, lenient=True).endswith("the last one counts")
