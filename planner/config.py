"""The config language, as data. Every error names the file, the line, the key, what was expected, and the nearest valid name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path as FilePath
from typing import Annotated, Any

from pydantic import BaseModel, Field, PlainValidator, TypeAdapter, ValidationError, WithJsonSchema, model_validator

from ..errors import ConfigError, nearest
from .chat_templates import ChatTemplate
from .config_types import FloatType, Reference, Strict
from .document import MAX_BYTES, Document, Path, parse, short
from .mixture_config import Expert, MixtureConfig
from .setting import Setting, parse_setting
from .tokenizer_config import TokenConfig, TokenizerConfig, TokenizerSource

_NUMBERS = {"anyOf": [{"type": "number"}, {"type": "boolean"}, {"type": "array", "items": {"type": ["number", "boolean"]}}]}
_SETTING_SCHEMA = {
    "description": "a value; a list of values spread over the layers; or conditions on tensor names, the first that fits decides",
    "anyOf": [
        *_NUMBERS["anyOf"],
        {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"filter": {"type": "string"}, "value": _NUMBERS},
                "required": ["value"],
                "additionalProperties": False,
            },
        },
    ],
}
Value = Annotated[Setting, PlainValidator(parse_setting), WithJsonSchema(_SETTING_SCHEMA)]
Parameters = dict[str, Value]


class InputModel(Strict):
    """One entry of `models`: a whole model."""

    model: Reference
    parameters: Parameters | None = None


class Source(Strict):
    """One entry of a slice's `sources`: layers lo to hi - 1 of a model."""

    model: Reference
    layer_range: Annotated[list[int], Field(min_length=2, max_length=2)] | None = None
    parameters: Parameters | None = None


class Slice(Strict):
    """Output layers that come from one run of layers of each source."""

    sources: Annotated[list[Source], Field(min_length=1)]
    parameters: Parameters | None = None
    base_model: Reference | None = None


class _Body(Strict):
    @model_validator(mode="after")
    def _one_body(self) -> _Body:
        given = [key for key in ("models", "slices", "modules") if getattr(self, key, None) is not None]
        if len(given) != 1:
            names = " and ".join(f"'{key}'" for key in given) or "none"
            raise ValueError(f"give exactly one of 'models', 'slices', 'modules' (here: {names})")
        return self


class Module(_Body):
    """One entry of `modules`: a part of a model that has several, such as an encoder."""

    models: Annotated[list[InputModel], Field(min_length=1)] | None = None
    slices: Annotated[list[Slice], Field(min_length=1)] | None = None
    parameters: Parameters | None = None


class MergeConfig(_Body):
    """A merge: which method, of which models, with which parameters."""

    merge_method: str
    models: Annotated[list[InputModel], Field(min_length=1)] | None = None
    slices: Annotated[list[Slice], Field(min_length=1)] | None = None
    modules: Annotated[dict[str, Module], Field(min_length=1)] | None = None
    base_model: Reference | None = None
    parameters: Parameters | None = None
    dtype: FloatType | None = None
    out_dtype: FloatType | None = None
    tokenizer_source: TokenizerSource | None = None
    tokenizer: TokenizerConfig | None = None
    chat_template: ChatTemplate | None = None
    name: str | None = None

    @model_validator(mode="after")
    def _one_tokenizer(self) -> MergeConfig:
        if self.tokenizer_source is not None and self.tokenizer is not None:
            raise ValueError("give 'tokenizer_source' or 'tokenizer', not both")
        return self


class LoadedConfig:
    """A config with its text and line numbers; `error` points into the text. `stages` are the other documents, by name.

    A `mixture` of experts is a config of its own; then `merge` says what it has in common with a merge: models, tokenizer, dtype.
    """

    def __init__(self, merge: MergeConfig, document: Document, text: str, mixture: MixtureConfig | None = None) -> None:
        self.merge, self.document, self.text, self.mixture = merge, document, text, mixture
        self.stages: Mapping[str, LoadedConfig] = {}

    def error(self, path: Path, message: str) -> ConfigError:
        """An error at key `path`."""
        return self.document.error(path, message)


def read_config(path: FilePath) -> LoadedConfig:
    """Read and check the config in file `path`. Raises ConfigError."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise ConfigError(f"{path}: more than {MAX_BYTES} bytes are too many for a config")
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not a text file in UTF-8") from None
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from None
    return load_config(text, str(path))


def load_config(text: str, source: str = "config") -> LoadedConfig:
    """Check a config's text; `source` names it in messages. Raises ConfigError."""
    documents = parse(text, source)
    if not documents:
        raise ConfigError(f"{source}: the config is empty")
    loaded = [_load(document, text) for document in documents]
    return loaded[0] if len(loaded) == 1 else _with_stages(loaded)


def _load(document: Document, text: str) -> LoadedConfig:
    if not isinstance(document.value, Mapping):
        raise document.error((), f"a config is a map with the key 'merge_method', not {type(document.value).__name__}")
    kind = MixtureConfig if "experts" in document.value else MergeConfig
    try:
        checked = kind.model_validate(document.value)
    except ValidationError as error:
        raise _explain(error, document, kind) from None
    if isinstance(checked, MixtureConfig):
        return LoadedConfig(_in_common(checked), document, text, checked)
    assert isinstance(checked, MergeConfig)
    return LoadedConfig(checked, document, text)


def _in_common(mixture: MixtureConfig) -> MergeConfig:
    """A mixture as the merge of its models that it is to everything but its recipes."""
    return MergeConfig.model_construct(
        merge_method="mixture",
        models=[InputModel.model_construct(model=expert.source_model) for _, expert in mixture.all_experts()],
        base_model=mixture.base_model,
        dtype=mixture.dtype,
        tokenizer_source=mixture.tokenizer_source,
        tokenizer=mixture.tokenizer,
        chat_template=mixture.chat_template,
        name=mixture.name,
    )


def _with_stages(loaded: list[LoadedConfig]) -> LoadedConfig:
    """The document that no other uses, with the others as its stages."""
    stages: dict[str, LoadedConfig] = {}
    for config in loaded:
        name = config.merge.name
        if name in stages:
            raise config.error(("name",), f"two documents have the name '{name}'")
        if name is not None:
            stages[name] = config
    used = {path for config in loaded for path in _model_paths(config.document.value)}
    results = [config for config in loaded if config.merge.name not in used]
    if not results:
        raise loaded[0].error(("name",), "the stages go in a circle: every document is used by another one")
    if len(results) > 1:
        raise results[0].error(
            (),
            f"{len(results)} documents are used by no other, and only one can be the result: use this one, or remove it",
        )
    lost = set(stages) - _reached(results[0], stages) - {results[0].merge.name}
    if lost:
        first = min(lost, key=list(stages).index)
        raise stages[first].error(("name",), f"the result does not use the document '{first}', which goes in a circle")
    results[0].stages = {name: config for name, config in stages.items() if config is not results[0]}
    return results[0]


def _reached(result: LoadedConfig, stages: Mapping[str, LoadedConfig]) -> set[str]:
    """The names of the documents that a result is made of."""
    found: set[str] = set()
    waiting = [result]
    while waiting:
        for path in _model_paths(waiting.pop().document.value):
            if path in stages and path not in found:
                found.add(path)
                waiting.append(stages[path])
    return found


def _model_paths(value: Any) -> Iterator[str]:
    """Every model that a document names, without revision and adapter."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            if key in ("model", "base_model", "source_model", "path") and isinstance(item, str):
                yield item.split("+")[0].split("@")[0]
            else:
                yield from _model_paths(item)
    elif isinstance(value, list):
        for item in value:
            yield from _model_paths(item)


_EXPECTED = {
    "list_type": "a list", "dict_type": "a map", "model_type": "a map", "model_attributes_type": "a map",
    "string_type": "text", "int_type": "a whole number", "int_from_float": "a whole number",
    "float_type": "a number", "finite_number": "a finite number",
}  # fmt: skip
"""What pydantic's kinds of errors mean in a config."""


def _explain(error: ValidationError, document: Document, kind: type[BaseModel]) -> ConfigError:
    """The first of pydantic's errors, unknown keys before what they leave missing."""
    errors = sorted(error.errors(include_url=False), key=lambda e: e["type"] != "extra_forbidden")
    first = errors[0]
    path: Path = tuple(step for step in first["loc"] if isinstance(step, int | str))
    message = str(first.get("ctx", {}).get("error") or first["msg"])
    if first["type"] == "extra_forbidden":
        message = f"unknown key '{path[-1]}'{nearest(str(path[-1]), _keys_at(path[:-1], kind))}"
    elif first["type"] == "missing":
        message = f"the key '{path[-1]}' is missing"
        path = path[:-1]
    elif first["type"] in ("too_short", "too_long"):
        least, most = first["ctx"].get("min_length"), first["ctx"].get("max_length")
        wanted = f"at least {least}" if first["type"] == "too_short" else f"at most {most}"
        message = f"expected {wanted} item{'' if wanted.endswith(' 1') else 's'}, not {short(first['input'])}"
    elif first["type"] in _EXPECTED:
        message = f"expected {_EXPECTED[first['type']]}, not {short(first['input'])}"
    elif first["type"] == "greater_than_equal":
        message = f"expected at least {first['ctx']['ge']}, not {short(first['input'])}"
    elif first["type"] == "literal_error":
        message = f"expected {first['ctx']['expected']}, not {short(first['input'])}"
    return document.error(path, message)


def _keys_at(path: Path, kind: type[BaseModel]) -> list[str]:
    """The valid keys of the map at `path` of a config of this kind."""
    inside: dict[str, type[BaseModel]] = {
        "models": InputModel,
        "slices": Slice,
        "sources": Source,
        "modules": Module,
        "tokenizer": TokenizerConfig,
        "tokens": TokenConfig,
        "experts": Expert,
        "shared_experts": Expert,
    }
    for step in path:
        kind = inside.get(str(step), kind)
    return list(kind.model_fields)


def json_schema(method_names: list[str]) -> dict[str, Any]:
    """The JSON Schema of a config, a merge or a mixture of experts, for editors."""
    schema = TypeAdapter(MergeConfig | MixtureConfig).json_schema()
    schema["title"] = "weft merge config"
    method = {"enum": method_names, "description": "how tensors are merged: see `weft methods`"}
    schema["$defs"]["MergeConfig"]["properties"]["merge_method"] = method
    return schema
