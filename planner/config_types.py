"""What the maps of the config language have in common."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, PlainValidator, WithJsonSchema

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
FloatType = Literal["float16", "bfloat16", "float32"]


class Strict(BaseModel):
    """A map with these keys and no others."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, arbitrary_types_allowed=True)
