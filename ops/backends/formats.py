"""Stored number formats in NumPy: how raw bits become float32 and float32 becomes raw bits, by safetensors dtype.

Arrays of stored elements are unsigned integers of their size, whatever they hold, for NumPy has no bfloat16. Roundings are to
nearest even. The compiled loops (`compiled.py`) do the same bit by bit.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Raw: TypeAlias = NDArray[Any]
"""Stored elements as unsigned integers."""

Floats: TypeAlias = NDArray[np.float32]

RAW = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}

INFINITY = {"BF16": 0x7F80, "F16": 0x7C00, "F32": 0x7F800000, "F64": 0x7FF0000000000000}
"""Bit pattern of +Inf: without the sign, larger patterns are NaN and smaller ones numbers."""

NUMPY = {
    "F64": np.float64, "F32": np.float32, "F16": np.float16,
    "I64": np.int64, "I32": np.int32, "I16": np.int16, "I8": np.int8,
    "U64": np.uint64, "U32": np.uint32, "U16": np.uint16, "U8": np.uint8, "BOOL": np.bool_,
}  # fmt: skip
"""NumPy's own types; bfloat16 is not among them."""


def widen(raw: Raw, dtype: str) -> Floats:
    """Stored elements as float32, in new memory unless they are float32."""
    if dtype == "BF16":
        return np.left_shift(raw, np.uint32(16), dtype=np.uint32).view(np.float32)
    own: NDArray[Any] = raw.view(NUMPY[dtype])
    with np.errstate(over="ignore", invalid="ignore"):
        return own if dtype == "F32" else own.astype(np.float32)


def narrow(values: Floats, dtype: str) -> Raw:
    """Float32 rounded to a stored format, as raw bits."""
    if dtype == "BF16":
        bits = np.ascontiguousarray(values).view(np.uint32)
        rounded = ((bits + (((bits >> np.uint32(16)) & np.uint32(1)) + np.uint32(0x7FFF))) >> np.uint32(16)).astype(np.uint16)
        nan = (bits & np.uint32(0x7FFFFFFF)) > np.uint32(INFINITY["F32"])
        if nan.any():
            rounded[nan] = 0x7FC0
        return rounded
    if dtype == "F32":
        return np.ascontiguousarray(values).view(np.uint32)
    with np.errstate(over="ignore", invalid="ignore"):  # what overflows is Inf, and is counted
        stored: NDArray[Any] = values.astype(NUMPY[dtype])
    raw = stored.view(RAW[stored.itemsize])
    if dtype == "F16":
        nan = np.isnan(values)
        if nan.any():
            raw[nan] = (raw[nan] & 0x8000) | 0x7E00
    return raw


def rounded(values: Floats, dtype: str) -> Floats:
    """Float32 values rounded to a stored format and back."""
    return values if dtype in ("F32", "F64") else widen(narrow(values, dtype), dtype)
