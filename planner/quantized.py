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


def refuse_quantized(label: str, config: Mapping[str, Any], tensors: Iterable[str]) -> None:
    """Raise CheckpointError, naming the scheme, if a model is quantised. FP8 dtypes are refused where headers are read."""
    for settings in (config, config.get("text_config"), config.get("llm_config")):
        quantization = settings.get("quantization_config") if isinstance(settings, Mapping) else None
        if quantization:
            method = quantization.get("quant_method") if isinstance(quantization, Mapping) else None
            raise CheckpointError(
                f"{label}: quantised with {method or 'an unnamed method'} (config.json, quantization_config): "
                "its weights are codes, not numbers to merge; use the model's bfloat16 or float16 release"
            )
    for name in tensors:
        parts = name.split(".")
        scheme = _MARKS.get(parts[-1]) or ("bitsandbytes 4-bit" if "quant_state" in parts else None)
        if scheme:
            raise CheckpointError(
                f"{label}: tensor '{name}' belongs to {scheme} quantisation: "
                "its weights are codes, not numbers to merge; use the model's bfloat16 or float16 release"
            )
