"""Names of models: `path-or-org/name[@revision][+adapter[@revision]]`."""

from __future__ import annotations

from dataclasses import dataclass

LAYOUTS = ("llama",)
"""Layouts into which a model's tensors can be brought while they are read (`fused`)."""


@dataclass(frozen=True, slots=True)
class Location:
    """A folder or Hub name, and which revision of it."""

    path: str
    revision: str | None = None

    def __str__(self) -> str:
        return f"{self.path}@{self.revision}" if self.revision else self.path


@dataclass(frozen=True, slots=True)
class ModelReference:
    """A model as a config names it. `layout`: read its tensors under the names and shapes of that family."""

    model: Location
    adapter: Location | None = None
    layout: str | None = None

    def __str__(self) -> str:
        return f"{self.model}+{self.adapter}" if self.adapter else str(self.model)


def parse_reference(value: object) -> ModelReference:
    """From text, or from the map `{model: {path, revision}, lora: {path, revision}, layout: llama}`.

    Raises ValueError with a message for the user.
    """
    if isinstance(value, str):
        return _from_text(value)
    if isinstance(value, dict):
        return _from_map(value)
    raise ValueError(f"a model is a folder or a Hub name such as org/name, not {value!r}")


def _from_text(text: str) -> ModelReference:
    parts = text.strip().split("+")
    if len(parts) > 2:
        raise ValueError(f"'{text}' has more than one '+': a model takes one adapter")
    locations = [_location(part) for part in parts]
    return ModelReference(locations[0], locations[1] if len(locations) > 1 else None)


def _location(text: str) -> Location:
    pieces = text.strip().split("@")
    if len(pieces) > 2:
        raise ValueError(f"'{text}' has more than one '@': a model takes one revision")
    if not all(pieces):
        raise ValueError(f"'{text}' is not a model: write a folder or org/name, then perhaps @revision and +adapter")
    return Location(pieces[0], pieces[1] if len(pieces) > 1 else None)


def _from_map(value: dict[object, object]) -> ModelReference:
    unknown = set(value) - {"model", "lora", "layout", "override_architecture"}
    if unknown or "model" not in value:
        raise ValueError("a model written as a map has the key 'model', and perhaps 'lora', 'layout' and 'override_architecture'")
    adapter, layout = value.get("lora"), value.get("layout")
    if layout is not None and layout not in LAYOUTS:
        raise ValueError(f"layout: expected {' or '.join(LAYOUTS)}, not {layout!r}")
    place = _location_from_map(adapter) if adapter is not None else None
    return ModelReference(_location_from_map(value["model"]), place, str(layout) if layout else None)


def _location_from_map(value: object) -> Location:
    if isinstance(value, str):
        return _location(value)
    if isinstance(value, dict) and isinstance(value.get("path"), str) and set(value) <= {"path", "revision"}:
        revision = value.get("revision")
        if revision is None or isinstance(revision, str):
            return Location(value["path"], revision)
    raise ValueError("write {path: folder or org/name, revision: text}")
