"""Logarithm and exponential function in plain float64 operations, so that every backend gives the same bits.

Accurate to some 10⁻¹⁵, far below a float32's rounding. As in Muller 2016, Elementary Functions, chapter 11: the argument is
brought near 0 (or 1), a short series does the rest.
"""

from __future__ import annotations

from ..expression import Value, as_int64, bits64, from_bits64, maximum, minimum, where, wide

LN2_HIGH = 6.93147180369123816490e-01
"""The high half of log 2, in 33 bits: whole numbers up to 2²⁰ times it are exact."""

LN2_LOW = 1.90821492927058770002e-10

ROUNDER = 6755399441055744.0
"""Adding and taking away 1.5 · 2⁵² rounds a float64 to a whole number."""


def exponential(value: Value) -> Value:
    """eˣ in float64, for x from -700 to 700; beyond that it stays at what it is there. NaN stays NaN."""
    x = where(value == value, maximum(minimum(wide(value), 700.0), -700.0), wide(value))
    halves = (x * 1.4426950408889634 + ROUNDER) - ROUNDER
    r = (x - halves * LN2_HIGH) - halves * LN2_LOW
    total = r * 0.0 + 1.0 / 6227020800.0
    for denominator in (479001600.0, 39916800.0, 3628800.0, 362880.0, 40320.0, 5040.0, 720.0, 120.0, 24.0, 6.0, 2.0, 1.0, 1.0):
        total = total * r + 1.0 / denominator
    power = from_bits64((as_int64(where(halves == halves, halves, 0.0)) + 1023) << 52)
    return total * power


def logarithm(value: Value) -> Value:
    """log x in float64, of positive normal numbers; NaN stays NaN."""
    x = wide(value)
    pattern = bits64(x)
    # m from √½ to √2, and x = m · 2ᵉ
    shifted = pattern - 0x3FE6A09E667F3BCD
    exponent = shifted >> 52
    m = from_bits64(pattern - (exponent << 52))
    s = (m - 1.0) / (m + 1.0)
    square = s * s
    total = square * 0.0 + 1.0 / 23.0
    for denominator in (21.0, 19.0, 17.0, 15.0, 13.0, 11.0, 9.0, 7.0, 5.0, 3.0):
        total = total * square + 1.0 / denominator
    whole = _as_float(exponent)
    found = whole * LN2_HIGH + (2.0 * s + (2.0 * s * square * total + whole * LN2_LOW))
    return where(x == x, found, x)


def cosine_of_turns(turns: Value) -> Value:
    """cos 2πu in float64, for u from 0 to 1."""
    # Half a turn off, so that the angle lies between -π and π; then a quarter of it, and twice the double angle.
    quarter = (wide(turns) - 0.5) * (6.283185307179586 / 4.0)
    square = quarter * quarter
    total = square * 0.0 + 1.0 / 6402373705728000.0
    sign = -1.0
    for denominator in (20922789888000.0, 87178291200.0, 479001600.0, 3628800.0, 40320.0, 720.0, 24.0, 2.0, 1.0):
        total = total * square * -1.0 + 1.0 / denominator if sign > 0.0 else 1.0 / denominator - total * square
    doubled = 2.0 * total * total - 1.0
    return -(2.0 * doubled * doubled - 1.0)


def _as_float(whole: Value) -> Value:
    """A small whole number as float64: its bits added to those of 1.5 · 2⁵²."""
    return from_bits64(whole + 0x4338000000000000) - ROUNDER
