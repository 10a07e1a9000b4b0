"""Checkpoints of codes are refused by the name of their scheme."""

from __future__ import annotations

from typing import Any

import pytest

from weft.errors import CheckpointError
from weft.planner.quantized import refuse_quantized

PLAIN = ["model.embed_tokens.weight", "model.layers.0.mlp.up_proj.weight", "model.layers.0.mlp.up_proj.bias"]


@pytest.mark.parametrize(
    ("suffix", "scheme"),
    [
        ("qweight", "GPTQ or AWQ"),
        ("qzeros", "GPTQ or AWQ"),
        ("g_idx", "GPTQ"),
        ("weight_scale_inv", "FP8"),
        ("weight_scale", "scaled FP8 or INT8"),
        ("input_scale", "scaled FP8"),
        ("weight_packed", "packed"),
        ("SCB", "bitsandbytes 8-bit"),
        ("weight.absmax", "bitsandbytes 4-bit"),
        ("weight.quant_map", "bitsandbytes 4-bit"),
        ("weight.quant_state.bitsandbytes__fp4", "bitsandbytes 4-bit"),
        ("weight.quant_state.bitsandbytes__nf4", "bitsandbytes 4-bit"),
        ("gate_up_proj_blocks", "MXFP4"),
    ],
)
def test_tensor_names(suffix: str, scheme: str) -> None:
    name = f"model.layers.0.mlp.up_proj.{suffix}"
    with pytest.raises(CheckpointError, match=rf"^org/m: tensor '{name}' belongs to {scheme}.*use the model's bfloat16"):
        refuse_quantized("org/m", {}, [*PLAIN, name])


@pytest.mark.parametrize("part", [None, "text_config", "llm_config"])
@pytest.mark.parametrize(
    ("settings", "scheme"), [({"quant_method": "awq"}, "awq"), ({"bits": 4}, "an unnamed method"), ("x", "an unnamed")]
)
def test_config(part: str | None, settings: Any, scheme: str) -> None:
    config: dict[str, Any] = {"quantization_config": settings}
    with pytest.raises(CheckpointError, match=f"^org/m: quantised with {scheme}.*quantization_config"):
        refuse_quantized("org/m", {part: config} if part else config, PLAIN)


@pytest.mark.parametrize("config", [{}, {"quantization_config": None}, {"quantization_config": {}}, {"text_config": "x"}])
def test_plain_models(config: dict[str, Any]) -> None:
    scales = ["model.layers.0.layer_scale", "model.logit_scale", "model.layers.0.mlp.scales_proj.weight", "SCB.weight"]
    refuse_quantized("org/m", config, [*PLAIN, *scales])
