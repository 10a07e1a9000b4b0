"""Parameter values: gradients by the reference's formula, conditions in order."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weft.planner.setting import Setting, parse_setting

numbers = st.floats(-100, 100, allow_nan=False)
depths = st.floats(0, 1, allow_nan=False)


def reference(values: list[float], t: float) -> float:
    """reference.md, section 1: s = t(n−1), i = ⌊s⌋, f = s − i, (1−f)·v[i] + f·v[min(i+1, n−1)]."""
    s = t * (len(values) - 1)
    i = math.floor(s)
    f = s - i
    return (1 - f) * values[i] + f * values[min(i + 1, len(values) - 1)]


@given(values=st.lists(numbers, min_size=1, max_size=9), t=depths)
def test_a_gradient_follows_the_formula(values: list[float], t: float) -> None:
    assert parse_setting(values).at("any", t) == pytest.approx(reference(values, t), abs=1e-12)


@given(values=st.lists(numbers, min_size=1, max_size=9), t=depths)
def test_a_gradient_begins_and_ends_with_its_ends_and_stays_between(values: list[float], t: float) -> None:
    setting = parse_setting(values)
    assert setting.at("any", 0.0) == values[0]
    assert setting.at("any", 1.0) == values[-1]
    value = setting.at("any", t)
    assert value is not None
    assert min(values) - 1e-9 <= value <= max(values) + 1e-9


def test_the_shape_of_a_known_gradient() -> None:
    setting = parse_setting([0, 0.5, 0.3, 0.7, 1])
    found = [setting.at("any", layer / 8) for layer in range(9)]
    assert found == pytest.approx([0, 0.25, 0.5, 0.4, 0.3, 0.5, 0.7, 0.85, 1])


@pytest.mark.parametrize("t", [0, 0.2, 0.5, 1])
@pytest.mark.parametrize("value", [0, -1.5, True, False])
def test_one_value_is_everywhere(value: float | bool, t: float) -> None:
    assert parse_setting(value).at("any", t) is value or parse_setting(value).at("any", t) == value
    assert isinstance(parse_setting(value).at("any", t), bool) == isinstance(value, bool)


def test_truth_values_step() -> None:
    setting = parse_setting([True, False, True])
    assert [setting.at("any", t) for t in (0, 0.25, 0.49, 0.5, 0.99, 1)] == [True, True, True, False, False, True]


ATTENTION_FIRST = [{"filter": "self_attn", "value": [0, 1]}, {"filter": "mlp", "value": 7}, {"value": 0.5}]


@pytest.mark.parametrize(
    ("name", "expected"),
    [("layers.0.self_attn.q", 0.25), ("layers.0.mlp.up", 7), ("norm", 0.5), ("self_attn.mlp", 0.25)],
)
def test_the_first_condition_that_fits_decides(name: str, expected: float) -> None:
    assert parse_setting(ATTENTION_FIRST).at(name, 0.25) == expected


def test_a_condition_without_a_filter_hides_those_after_it() -> None:
    setting = parse_setting([{"value": 1}, {"filter": "mlp", "value": 2}])
    assert setting.at("mlp", 0) == 1


@pytest.mark.parametrize("everything", [{"value": 3}, {"filter": "*", "value": 3}, {"filter": None, "value": 3}])
def test_a_star_and_no_filter_fit_all_names(everything: dict[str, Any]) -> None:
    assert parse_setting([everything]).at("any.name", 0.5) == 3


def test_no_condition_that_fits_is_no_value() -> None:
    assert parse_setting([{"filter": "mlp", "value": 2}]).at("norm", 0) is None


def test_a_filter_may_hold_any_part_of_a_name() -> None:
    setting = parse_setting([{"filter": ".1.", "value": 2}])
    assert [setting.at(name, 0) for name in ("layers.1.w", "layers.11.w", "layers.0.w")] == [2, None, None]


def test_all_values_are_listed_for_checks() -> None:
    assert list(parse_setting(ATTENTION_FIRST).values()) == [0, 1, 7, 0.5]


@pytest.mark.parametrize(("text", "value"), [("1e-5", 1e-5), ("2", 2.0), ("-3.5E2", -350.0)])
def test_numbers_that_yaml_reads_as_text(text: str, value: float) -> None:
    assert parse_setting(text).at("any", 0) == value
    assert parse_setting([text, 0]).at("any", 0) == value


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("much", "expected a number, a list of numbers or a list of conditions, not 'much'"),
        (None, "not None"),
        ([], "an empty list has no values"),
        ([1, None], "not None"),
        ([[1]], r"not \[1\]"),
        ({"value": 1}, "not {'value': 1}"),
        (math.nan, "nan is not a finite number"),
        ("inf", "inf is not a finite number"),
        ([0.5, math.inf], "inf is not a finite number"),
        ([{"filter": "mlp"}], "each item of a list of conditions is"),
        ([{"value": 1, "fliter": "mlp"}], "each item of a list of conditions is"),
        ([{"value": 1}, 2], "each item of a list of conditions is"),
        ([{"value": 1, "filter": 3}], "a filter is a part of a tensor's name, not 3"),
        ([{"value": []}], "an empty list has no values"),
        ([{"value": [{"value": 1}]}], "expected a number"),
    ],
)
def test_what_is_no_setting_says_so(value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_setting(value)


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["filter", "value", "x"]), inner, max_size=3),
    max_leaves=8,
)


@given(value=anything)
def test_anything_is_a_setting_or_a_message(value: Any) -> None:
    try:
        setting = parse_setting(value)
    except ValueError as error:
        assert str(error)
    else:
        assert isinstance(setting, Setting)
        for number in setting.values():
            assert math.isfinite(number)
        at = setting.at("x", 0.3)
        assert at is None or isinstance(at, int | float)
