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


_CURE = "its weights are codes, not numbers to merge; use the model's bfloat16 or float16 release"


def refuse_quantized(label: str, config: Mapping[str, Any], tensors: Iterable[str]) -> None:
    """Raise CheckpointError, naming the scheme, if a model is quantised. FP8 dtypes are refused where headers are read."""
    if method := _by_config(config):
        raise CheckpointError(f"{label}: quantised with {method} (config.json, quantization_config): {_CURE}")
    if found := _by_tensors(tensors):
        raise CheckpointError(f"{label}: tensor '{found[0]}' belongs to {found[1]} quantisation: {_CURE}")


def quantization(config: Mapping[str, Any], tensors: Mapping[str, str]) -> str | None:
    """How a model is quantised, if it is, by its config.json, and names and dtypes of its `tensors`."""
    if method := _by_config(config):
        return method
    if found := _by_tensors(tensors):
        return found[1]
    codes = sorted({dtype for dtype in tensors.values() if dtype.startswith(("F8", "F6", "F4"))})
    return f"tensors of {', '.join(codes)}" if codes else None


def _by_config(config: Mapping[str, Any]) -> str | None:
    for settings in (config, config.get("text_config"), config.get("llm_config")):
        found = settings.get("quantization_config") if isinstance(settings, Mapping) else None
        if found:
            method = found.get("quant_method") if isinstance(found, Mapping) else None
            return str(method or "an unnamed method")
    return None


def _by_tensors(tensors: Iterable[str]) -> tuple[str, str] | None:
    """The first tensor that only quantised checkpoints have, and its scheme."""
    for name in tensors:
        parts = name.split(".")
        scheme = _MARKS.get(parts[-1]) or ("bitsandbytes 4-bit" if "quant_state" in parts else None)
        if scheme:
            return name, scheme
    return None
