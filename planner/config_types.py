"""What the maps of the config language have in common."""

from __future__ import annotations

from contextlib import suppress
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, PlainValidator, WithJsonSchema

from .reference import LAYOUTS, ModelReference, parse_reference

_LOCATION = {"type": "object", "properties": {"path": {"type": "string"}, "revision": {"type": "string"}}, "required": ["path"]}
_REFERENCE_SCHEMA = {
    "description": "folder or Hub name: path-or-org/name[@revision]",
    "anyOf": [
        {"type": "string"},
        {
            "type": "object",
            "properties": {
                "model": {"anyOf": [{"type": "string"}, _LOCATION]},
                "lora": {"anyOf": [{"type": "string"}, _LOCATION]},
                "layout": {"enum": list(LAYOUTS)},
                "override_architecture": {"type": "string"},
            },
            "required": ["model"],
        },
    ],
}

Reference = Annotated[ModelReference, PlainValidator(parse_reference), WithJsonSchema(_REFERENCE_SCHEMA)]
_SHORT = {"bf16": "bfloat16", "fp16": "float16", "f16": "float16", "half": "float16", "fp32": "float32", "f32": "float32"}


def _float_type(value: Any) -> Any:
    """torch.bfloat16 and bf16 are bfloat16; what is no such name is left to the check that follows."""
    name = value.removeprefix("torch.") if isinstance(value, str) else value
    return _SHORT.get(name, name) if isinstance(name, str) else value


def _whole(value: Any) -> Any:
    """'32' and 32.0 are 32."""
    if isinstance(value, str) and len(value) < _DIGITS:
        with suppress(ValueError):
            return int(value)
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 1 << 62 else value


def _number(value: Any) -> Any:
    """'0.5' is 0.5; YAML 1.1 reads 1e-3, without a point, as text."""
    if isinstance(value, str) and len(value) < _DIGITS:
        with suppress(ValueError):
            return float(value)
    return value


_DIGITS = 32
"""Texts this long are no numbers of a config."""

FloatType = Annotated[Literal["float16", "bfloat16", "float32"], BeforeValidator(_float_type)]
Whole = Annotated[int, BeforeValidator(_whole)]
Number = Annotated[float, BeforeValidator(_number)]


class Strict(BaseModel):
    """A map with these keys and no others."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, arbitrary_types_allowed=True)
