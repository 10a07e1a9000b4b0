"""Element types, by their names in safetensors headers."""

from __future__ import annotations

ITEM_SIZES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2,
    "I64": 8, "I32": 4, "I16": 2, "I8": 1,
    "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1,
}  # fmt: skip
"""Bytes of one element. Types below one byte and FP8 codes are not here: they are refused by name."""

MERGED = {"F64", "F32", "F16", "BF16"}
"""Types that are merged; the others are copied as they are."""

FROM_CONFIG = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "float64": "F64"}
TO_CONFIG = {code: name for name, code in FROM_CONFIG.items()}
