"""Sizes as people write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weft.errors import ConfigError
from weft.planner.sizes import format_size, parse_size


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [
        ("1", 1),
        ("4096", 4096),
        ("1B", 10**9),
        ("1b", 10**9),
        ("500M", 500 * 10**6),
        ("500MB", 500 * 10**6),
        ("5GB", 5 * 10**9),
        ("5 gb", 5 * 10**9),
        ("2GiB", 2 << 30),
        ("2Gi", 2 << 30),
        (" 64mib ", 64 << 20),
        ("1.5GiB", 3 << 29),
        ("1K", 1000),
        ("1KiB", 1024),
        ("1T", 10**12),
        ("1TiB", 1 << 40),
        ("0.5B", 5 * 10**8),
    ],
)
def test_sizes(text: str, nbytes: int) -> None:
    assert parse_size(text) == nbytes


@pytest.mark.parametrize(
    "text", ["", "GiB", "-1GB", "1.GB", ".5GB", "1e9", "1XB", "1 G B", "1GiBi", "one", "0", "0GB", "0.1", "nan", "inf", "1,5GB"]
)
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ConfigError, match=f"'{text}' is not a size"):
        parse_size(text)


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.00 KiB"),
        (3 << 29, "1.50 GiB"),
        (1 << 40, "1.00 TiB"),
        (5 << 50, "5120.00 TiB"),
        (-2048, "-2.00 KiB"),
    ],
)
def test_for_reading(nbytes: int, text: str) -> None:
    assert format_size(nbytes) == text


@given(st.integers(1, 1 << 60))
def test_what_is_shown_can_be_given_back(nbytes: int) -> None:
    shown = format_size(nbytes)
    if shown.endswith(" B"):  # written by itself, a B is a billion
        shown = shown.removesuffix(" B")
    assert parse_size(shown) == pytest.approx(nbytes, rel=0.006)
