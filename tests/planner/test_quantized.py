"""Checkpoints of codes are refused by the name of their scheme."""

from __future__ import annotations

from typing import Any

import pytest

from weft.errors import CheckpointError
from weft.planner.quantized import named_quantization, quantization, refuse_quantized, without_quantization

PLAIN = {
    "model.embed_tokens.weight": "BF16", "model.layers.0.mlp.up_proj.weight": "BF16", "model.layers.0.mlp.up_proj.bias": "F32",
}  # fmt: skip


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
        refuse_quantized("org/m", {}, PLAIN | {name: "U8"})


CODES = "model.layers.0.mlp.up_proj.weight"
WHERE = [None, "text_config", "llm_config", "vision_config"]
SCHEMES = [({"quant_method": "awq"}, "awq"), ({"bits": 4}, "an unnamed method"), ("x", "an unnamed method")]


@pytest.mark.parametrize("part", WHERE)
@pytest.mark.parametrize(("settings", "scheme"), SCHEMES)
@pytest.mark.parametrize("dtype", ["I8", "U8", "I32"])
def test_a_config_with_codes(part: str | None, settings: Any, scheme: str, dtype: str) -> None:
    named: dict[str, Any] = {"quantization_config": settings}
    config = {part: named} if part else named
    tensors = PLAIN | {CODES: dtype}
    with pytest.raises(CheckpointError, match=f"^org/m: quantised with {scheme} .*quantization_config.*'{CODES}' is {dtype}"):
        refuse_quantized("org/m", config, tensors)
    assert quantization(config, tensors) == scheme


@pytest.mark.parametrize("part", WHERE)
@pytest.mark.parametrize(("settings", "scheme"), SCHEMES)
def test_a_config_left_over_beside_plain_weights(part: str | None, settings: Any, scheme: str) -> None:
    named: dict[str, Any] = {"quantization_config": settings, "compression_config": {}, "hidden_size": 8}
    config = {"model_type": "m", part: named} if part else named
    buffers = {"model.position_ids": "I64", "model.mask": "BOOL"}
    refuse_quantized("org/m", config, PLAIN | buffers)
    assert quantization(config, PLAIN | buffers) is None
    assert named_quantization(config) == scheme
    kept = without_quantization(config)
    assert kept == ({"model_type": "m", part: {"hidden_size": 8}} if part else {"hidden_size": 8})


@pytest.mark.parametrize("config", [{}, {"quantization_config": None}, {"quantization_config": {}}, {"text_config": "x"}])
def test_plain_models(config: dict[str, Any]) -> None:
    scales = ["model.layers.0.layer_scale", "model.logit_scale", "model.layers.0.mlp.scales_proj.weight", "SCB.weight"]
    refuse_quantized("org/m", config, PLAIN | dict.fromkeys(scales, "BF16"))
    assert named_quantization(config) is None
