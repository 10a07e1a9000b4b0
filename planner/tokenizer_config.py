"""The config keys `tokenizer_source` and `tokenizer`, as data, and with models replaced by their places among the inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field, PlainValidator, WithJsonSchema

from ..errors import ConfigError, nearest
from .config_types import Strict, Whole
from .document import Path, UnknownKey, short
from .reference import ModelReference, parse_reference


class TokenizerError(ConfigError):
    """What a config asks of a tokenizer that its models cannot give; `path` is the key at fault."""

    def __init__(self, path: Path, message: str) -> None:
        super().__init__(message)
        self.path = path


@dataclass(frozen=True, slots=True)
class ModelToken:
    """The row of a model's token, by the token (text) or by its id."""

    model: ModelReference
    token: str | int


@dataclass(frozen=True, slots=True)
class Zero:
    """A row of zeros."""


_KINDS = {"model_token": {"kind", "model", "token", "token_id"}, "zero": {"kind"}}


def _parse_source(value: object) -> ModelReference | str:
    if isinstance(value, str) and value in ("union", "base"):
        return value
    return parse_reference(value.removeprefix("model:") if isinstance(value, str) else value)  # as older recipes write it


def _parse_row(value: object) -> ModelReference | ModelToken | Zero:
    if not isinstance(value, dict) or "kind" not in value:
        return parse_reference(value)
    kind = value["kind"]
    if not isinstance(kind, str) or kind not in _KINDS:
        raise ValueError(f"there is no kind {short(kind)}{nearest(str(kind), _KINDS)}")
    unknown = sorted(str(key) for key in set(value) - _KINDS[kind])
    if unknown:
        raise UnknownKey(f"unknown key '{unknown[0]}'{nearest(unknown[0], _KINDS[kind])}", [(key,) for key in unknown])
    return Zero() if kind == "zero" else _model_token(value)


def _model_token(value: dict[str, Any]) -> ModelToken:
    if "model" not in value:
        raise ValueError("the key 'model' is missing: whose token is meant")
    given = [key for key in ("token", "token_id") if value.get(key) is not None]
    if len(given) != 1:
        raise ValueError(f"give exactly one of 'token' and 'token_id' (here: {' and '.join(given) or 'none'})")
    token = value[given[0]]
    if given[0] == "token" and not isinstance(token, str):
        raise ValueError(f"'token' is text, not {short(token)}: put it in quotes")
    if given[0] == "token_id" and (not isinstance(token, int) or isinstance(token, bool)):
        raise ValueError(f"'token_id' is a whole number, not {short(token)}")
    try:
        return ModelToken(parse_reference(value["model"]), token)
    except UnknownKey as error:
        raise UnknownKey(str(error), [("model", *path) for path in error.paths]) from None


_MODEL = {"description": "folder or Hub name", "type": ["string", "object"]}
_SOURCE_SCHEMA = {"description": "whose tokens the result has", "anyOf": [{"enum": ["union", "base"]}, _MODEL]}
_ROW_SCHEMA = {
    "description": "where a token's row comes from: a model, a token of a model, or zeros",
    "anyOf": [
        {
            "type": "object",
            "properties": {
                "kind": {"const": "model_token"}, "model": _MODEL, "token": {"type": "string"}, "token_id": {"type": "integer"},
            },
            "required": ["kind", "model"],
            "additionalProperties": False,
        },
        {"type": "object", "properties": {"kind": {"const": "zero"}}, "required": ["kind"], "additionalProperties": False},
        _MODEL,
    ],
}  # fmt: skip

TokenizerSource = Annotated[
    ModelReference | Literal["union", "base"], PlainValidator(_parse_source), WithJsonSchema(_SOURCE_SCHEMA)
]
TokenSource = Annotated[ModelReference | ModelToken | Zero, PlainValidator(_parse_row), WithJsonSchema(_ROW_SCHEMA)]


class TokenConfig(Strict):
    """One entry of `tokens`. `force` gives the row to models that have their own, too."""

    source: TokenSource
    force: bool = False


class TokenizerConfig(Strict):
    """The key `tokenizer`."""

    source: TokenizerSource = "union"
    tokens: dict[str, TokenConfig] | None = None
    pad_to_multiple_of: Annotated[Whole, Field(ge=1)] | None = None


Source = Literal["union", "base"] | int
"""Whose tokens the result has; a number is a place among the input models."""


@dataclass(frozen=True, slots=True)
class Override:
    """A row for one token: that of `token` (text or id) in model `model`, or zeros where `model` is None."""

    model: int | None
    token: str | int = ""
    force: bool = False


def resolve_source(
    source: ModelReference | Literal["union", "base"], references: Sequence[ModelReference], path: Path = ("tokenizer_source",)
) -> Source:
    """`source` with a model replaced by its place in `references`. Raises TokenizerError at `path` for one that is not there."""
    return _place(source, references, path) if isinstance(source, ModelReference) else source


def resolve_overrides(
    tokens: Mapping[str, TokenConfig] | None, references: Sequence[ModelReference], path: Path = ("tokenizer", "tokens")
) -> dict[str, Override]:
    """`tokens` with models replaced by their places in `references`. Raises TokenizerError."""
    overrides: dict[str, Override] = {}
    for token, config in (tokens or {}).items():
        at: Path = (*path, token, "source")
        if not token:
            raise TokenizerError(path, "a token cannot be the empty text")
        row = config.source
        if isinstance(row, Zero):
            overrides[token] = Override(None, force=config.force)
        elif isinstance(row, ModelToken):
            overrides[token] = Override(_place(row.model, references, at), row.token, config.force)
        else:
            overrides[token] = Override(_place(row, references, at), token, config.force)
    return overrides


def _place(model: ModelReference, references: Sequence[ModelReference], path: Path) -> int:
    if model not in references:
        names = [str(reference) for reference in references]
        raise TokenizerError(path, f"{model} is not one of the models that are merged{nearest(str(model), names)}")
    return references.index(model)
