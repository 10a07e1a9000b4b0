"""Refuses checkpoints whose stored numbers are codes: merging them without their scales gives silent nonsense."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ..errors import CheckpointError

_MARKS = {
    "qweight": "GPTQ or AWQ", "qzeros": "GPTQ or AWQ", "g_idx": "GPTQ",
    "weight_scale_inv": "FP8 with block scales", "weight_scale": "scaled FP8 or INT8", "input_scale": "scaled FP8",
    "scale_weight": "scaled FP8", "weight_packed": "packed low-bit codes",
    "SCB": "bitsandbytes 8-bit", "absmax": "bitsandbytes 4-bit", "quant_map": "bitsandbytes 4-bit",
    "gate_up_proj_blocks": "MXFP4", "down_proj_blocks": "MXFP4",
}  # fmt: skip
"""Last parts of tensor names that only quantised checkpoints have."""


_CODES = {"I8", "U8", "I16", "U16", "I32", "U32"}
"""Types of codes, in models whose config.json speaks of quantisation. Ids and masks are I64 and BOOL."""

_KEYS = ("quantization_config", "compression_config")

_CURE = "its weights are codes, not numbers to merge; use the model's bfloat16 or float16 release"


def refuse_quantized(label: str, config: Mapping[str, Any], tensors: Mapping[str, str]) -> None:
    """Raise CheckpointError, naming the scheme, if a model of these tensors (name to dtype) is quantised.

    The weights decide: config.json alone may be left over from a quantised release. FP8 is refused where headers are read.
    """
    if found := _by_tensors(tensors):
        raise CheckpointError(f"{label}: tensor '{found[0]}' belongs to {found[1]} quantisation: {_CURE}")
    if (method := named_quantization(config)) and (name := _coded(tensors)):
        raise CheckpointError(
            f"{label}: quantised with {method} (config.json, quantization_config; tensor '{name}' is {tensors[name]}): {_CURE}"
        )


def quantization(config: Mapping[str, Any], tensors: Mapping[str, str]) -> str | None:
    """How a model is quantised, if it is, by names and dtypes of its `tensors`, and by its config.json if those agree."""
    method, found = named_quantization(config), _by_tensors(tensors)
    codes = sorted({dtype for dtype in tensors.values() if dtype.startswith(("F8", "F6", "F4"))})
    if method and (found or codes or _coded(tensors)):
        return method
    return found[1] if found else f"tensors of {', '.join(codes)}" if codes else None


def named_quantization(config: Mapping[str, Any]) -> str | None:
    """The method that config.json names, at its top or in a part of it, true or not."""
    for key, value in config.items():
        if key in _KEYS and value:
            method = value.get("quant_method") if isinstance(value, Mapping) else None
            return str(method or "an unnamed method")
    parts = (named_quantization(part) for part in config.values() if isinstance(part, Mapping))
    return next((method for method in parts if method), None)


def without_quantization(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config.json that says nothing of quantisation, in none of its parts."""
    return {
        key: without_quantization(value) if isinstance(value, Mapping) else value
        for key, value in config.items()
        if key not in _KEYS
    }


def _coded(tensors: Mapping[str, str]) -> str | None:
    """The first tensor whose type is that of codes."""
    return next((name for name, dtype in tensors.items() if dtype in _CODES), None)


def _by_tensors(tensors: Iterable[str]) -> tuple[str, str] | None:
    """The first tensor that only quantised checkpoints have, and its scheme."""
    for name in tensors:
        parts = name.split(".")
        scheme = _MARKS.get(parts[-1]) or ("bitsandbytes 4-bit" if "quant_state" in parts else None)
        if scheme:
            return name, scheme
    return None
