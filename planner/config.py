"""The config language, as data. Every error names the file, the line, the key, what was expected, and the nearest valid name."""

from __future__ import annotations

from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path as FilePath
from typing import Annotated, Any

from pydantic import BaseModel, Field, PlainValidator, TypeAdapter, ValidationError, WithJsonSchema, model_validator

from ..errors import ConfigError, nearest
from ..ops.registry import methods
from .chat_templates import ChatTemplate
from .config_types import FloatType, Reference, Strict, Whole
from .document import MAX_BYTES, Document, Oddity, Path, UnknownKey, look_alike, parse, short
from .files import open_file
from .mixture_config import Expert, MixtureConfig
from .reference import parse_reference
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
    layer_range: Annotated[list[Whole], Field(min_length=2, max_length=2)] | None = None
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
    """A config with its text and line numbers; `error` points into the text. `stages` are the other documents, by name, each
    behind those that it uses.

    A `mixture` of experts is a config of its own; then `merge` says what it has in common with a merge: models, tokenizer, dtype.
    `lenient`: what other tools read over is no error; `notes` say what was read over so far.
    """

    def __init__(
        self,
        merge: MergeConfig,
        document: Document,
        text: str,
        mixture: MixtureConfig | None = None,
        *,
        lenient: bool = False,
        notes: tuple[str, ...] = (),
    ) -> None:
        self.merge, self.document, self.text, self.mixture = merge, document, text, mixture
        self.lenient, self.notes = lenient, notes
        self.stages: Mapping[str, LoadedConfig] = {}

    def error(self, path: Path, message: str) -> ConfigError:
        """An error at key `path`."""
        return self.document.error(path, message)

    def odd(self, path: Path, problem: str, remedy: str) -> str:
        """What a lenient run says about something at `path` that other tools read over. Any other raises ConfigError."""
        return self.document.note(self.document.odd(path, problem, remedy), lenient=self.lenient)


def read_config(path: FilePath, *, lenient: bool = False) -> LoadedConfig:
    """Read and check the config in file `path`; `lenient` as for load_config. Raises ConfigError."""
    return load_config(read_text(path), str(path), lenient=lenient)


def read_text(path: FilePath) -> str:
    """The text of a config file, in UTF-8, or in UTF-16 with its mark in front. Raises ConfigError."""
    try:
        with open_file(path) as file:
            data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise ConfigError(f"{path}: more than {MAX_BYTES} bytes are too many for a config")
        return data.decode("utf-16" if data.startswith((BOM_UTF16_LE, BOM_UTF16_BE)) else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise ConfigError(f"{path}, line {line}: not in UTF-8{_other_encoding(data)}: save it as UTF-8") from None
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from None


def _other_encoding(data: bytes) -> str:
    """What bytes that are no UTF-8 are probably written in."""
    if b"\0" in data:
        return " (UTF-16 without a mark, or no text at all?)"
    with suppress(UnicodeDecodeError):
        if any("\u4e00" <= character <= "\u9fff" for character in data.decode("gb18030")):
            return " (GBK, it seems)"
    return ""


def load_config(text: str, source: str = "config", *, lenient: bool = False) -> LoadedConfig:
    """Check a config's text; `source` names it in messages.

    `lenient` reads over what other tools read over (unknown keys, keys that stand twice, parameters that a method does not have)
    and makes notes of it. Raises ConfigError.
    """
    documents = parse(text, source)
    if not documents:
        raise ConfigError(f"{source}: the config is empty")
    loaded = [_load(document, text, lenient) for document in documents]
    return loaded[0] if len(loaded) == 1 else _with_stages(loaded)


def _load(document: Document, text: str, lenient: bool) -> LoadedConfig:
    notes = [document.note(oddity, lenient=lenient) for oddity in document.oddities]
    value = document.value
    if not isinstance(value, Mapping):
        hint = look_alike(text, 1, MAX_BYTES)
        raise document.error((), f"a config is a map with the key 'merge_method', not {type(value).__name__}{hint}")
    kind = MixtureConfig if "experts" in value else MergeConfig
    while True:
        try:
            checked = kind.model_validate(value)
            break
        except ValidationError as error:
            unknown = list(_unknown_keys(error, document, kind))
            notes += [document.note(oddity, lenient=lenient) for oddity in unknown]
            before = value
            for oddity in unknown:
                value = _without(value, oddity.path)
            if value == before:
                raise _explain(error, document) from None
    if isinstance(checked, MixtureConfig):
        return LoadedConfig(_in_common(checked), document, text, checked, lenient=lenient, notes=tuple(notes))
    assert isinstance(checked, MergeConfig)
    return LoadedConfig(checked, document, text, lenient=lenient, notes=tuple(notes))


def _without(value: Any, path: Path) -> Any:
    """The value without the key at `path`."""
    step, rest = path[0], path[1:]
    if isinstance(value, list):
        return [_without(item, rest) if i == step else item for i, item in enumerate(value)]
    if not rest:
        return {key: item for key, item in value.items() if key != step}
    return {key: _without(item, rest) if key == step else item for key, item in value.items()}


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
    used = {name for config in loaded for name, _ in _model_paths(config.document.value)}
    results = [config for config in loaded if config.merge.name not in used]
    if not results:
        raise loaded[0].error(("name",), "the stages go in a circle: every document is used by another one")
    if len(results) > 1:
        raise results[0].error(
            (),
            f"{len(results)} documents are used by no other, and only one can be the result: use this one, or remove it",
        )
    result = results[0]
    order = _order(result, stages)
    lost = [name for name in stages if name not in order and name != result.merge.name]
    if lost:
        raise stages[lost[0]].error(("name",), f"the result does not use the document '{lost[0]}', which goes in a circle")
    result.stages = {name: stages[name] for name in order}
    return result


def _order(result: LoadedConfig, stages: Mapping[str, LoadedConfig]) -> dict[str, None]:
    """The names of the documents that a result is made of, each behind those that it uses."""
    found: dict[str, None] = {}
    waiting = [(result, _model_paths(result.document.value))]  # not by recursion: they may follow one another in any number
    while waiting:
        config, used = waiting[-1]
        name, path = next(((name, path) for name, path in used if name in stages and name not in found), (None, ()))
        if name is None:
            waiting.pop()
            if waiting:
                assert config.merge.name is not None, "only the result may have no name"
                found[config.merge.name] = None
            continue
        open_now = [other.merge.name for other, _ in waiting]
        if name in open_now:
            circle = [*open_now[open_now.index(name) :], name]
            raise config.error(path, f"the stages go in a circle: {' → '.join(map(str, circle))}")
        waiting.append((stages[name], _model_paths(stages[name].document.value)))
    return found


def _model_paths(value: Any, at: Path = ()) -> Iterator[tuple[str, Path]]:
    """Every model that a document names, without revision and adapter, and the key where it does."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            if key in ("model", "base_model", "source_model", "path") and isinstance(item, str):
                with suppress(ValueError):
                    yield parse_reference(item).model.path, (*at, key)
            else:
                yield from _model_paths(item, (*at, key))
    elif isinstance(value, list):
        for i, item in enumerate(value):
            yield from _model_paths(item, (*at, i))


_EXPECTED = {
    "list_type": "a list", "dict_type": "a map", "model_type": "a map", "model_attributes_type": "a map",
    "string_type": "text", "int_type": "a whole number", "int_from_float": "a whole number",
    "float_type": "a number", "finite_number": "a finite number",
}  # fmt: skip
"""What pydantic's kinds of errors mean in a config."""


def _unknown_keys(error: ValidationError, document: Document, kind: type[BaseModel]) -> Iterator[Oddity]:
    """The keys among pydantic's errors that a config does not have."""
    for found in error.errors(include_url=False):
        path = _path(found["loc"])
        cause = found.get("ctx", {}).get("error")
        if found["type"] == "extra_forbidden":
            yield document.odd(path, f"unknown key '{path[-1]}'{_hint(path, kind)}", _LEFT_OUT)
        elif isinstance(cause, UnknownKey):
            yield from (document.odd((*path, *inner), str(cause), _LEFT_OUT) for inner in cause.paths)


_LEFT_OUT = "it is left out"
_OPTIONS = {"seed": "--seed", "random_seed": "--seed", "out_shard_size": "--out-shard-size", "device": "--device"}
"""Keys that stand for what weft is told on its command line."""


def _hint(path: Path, kind: type[BaseModel]) -> str:
    """What was meant by an unknown key."""
    key, known = str(path[-1]), _keys_at(path[:-1], kind)
    if sign := look_alike(key, 1, 1):
        return sign.replace("line 1", "it", 1)
    if key in _OPTIONS and len(path) == 1:
        return f"; it is an option of the command: {_OPTIONS[key]}"
    if "parameters" in known and any(method.parameter(key) for method in methods().values()):
        return "; it is a parameter: write it under 'parameters'"
    return nearest(key, known)


def _path(location: tuple[int | str, ...]) -> Path:
    return tuple(step for step in location if isinstance(step, int | str))


def _explain(error: ValidationError, document: Document) -> ConfigError:
    """The first of pydantic's errors."""
    first = error.errors(include_url=False)[0]
    path = _path(first["loc"])
    message = str(first.get("ctx", {}).get("error") or first["msg"])
    if first["type"] == "missing":
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
