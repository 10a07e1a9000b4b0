"""Rotary position settings of config.json, which are written in two ways, as one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import CheckpointError

DEFAULT_THETA = 10000.0
"""What the dense families read here take where config.json does not say."""


@dataclass(frozen=True, slots=True)
class Rope:
    """The base of the frequencies, the scaling (None: as trained), and the part of each head that is rotated."""

    theta: float
    scaling: Mapping[str, Any] | None
    partial: float

    @property
    def kind(self) -> str:
        """default, linear, dynamic, yarn, longrope or llama3."""
        return str(self.scaling["rope_type"]) if self.scaling else "default"

    def settings(self) -> dict[str, Any]:
        """Keys of config.json, in the way that every version of the programs which load models reads."""
        return {"rope_theta": self.theta, "rope_scaling": dict(self.scaling) if self.scaling else None}


def read_rope(label: str, config: Mapping[str, Any]) -> Rope:
    """The settings, from `rope_theta` and `rope_scaling` or from `rope_parameters`. Raises CheckpointError."""
    own = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(own, Mapping) or any(isinstance(value, Mapping) for value in own.values()):
        raise CheckpointError(f"{label}/config.json: rotary settings for each kind of layer, which a mixture cannot carry")
    kind = own.get("rope_type") or own.get("type") or "default"
    kind = "longrope" if kind == "su" or (kind == "yarn" and "short_factor" in own) else kind
    theta = own.get("rope_theta", config.get("rope_theta"))
    partial = own.get("partial_rotary_factor", config.get("partial_rotary_factor"))
    rest = {key: value for key, value in own.items() if key not in ("rope_type", "type", "rope_theta", "partial_rotary_factor")}
    scaling = {"rope_type": kind, **rest} if kind != "default" else None
    try:
        return Rope(float(theta if theta is not None else DEFAULT_THETA), scaling, float(partial if partial is not None else 1.0))
    except (TypeError, ValueError):
        raise CheckpointError(f"{label}/config.json: rotary settings that are not numbers") from None
