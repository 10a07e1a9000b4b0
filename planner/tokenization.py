"""What a config's tokenizer keys ask for: rows moved, tokenizer files and token ids made anew, a chat template set."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import CheckpointError
from .catalog import Checkpoint
from .chat_templates import choose_template
from .config import LoadedConfig
from .document import Path
from .embedding import RowMover
from .json_text import loads
from .reference import ModelReference
from .sources import Model
from .token_ids import LostToken, token_ids
from .tokenizer_config import ModelToken, TokenizerConfig, TokenizerError, resolve_overrides, resolve_source
from .tokenizer_files import is_tokenizer_file, tokenizer_files, with_chat_template
from .vocabulary import plan_vocabulary

CONFIG, GENERATION = "config.json", "generation_config.json"
_SETTINGS = re.compile(r"generation_config\.json|\w*processor_config\.json")
"""Side files that may name tokens by their ids."""


@dataclass(frozen=True, slots=True)
class Tokenization:
    """`files` are written instead of what `replaces` names among the base model's; `settings` puts config.json right, with notes
    about it, and `notes` are about the files.
    """

    mover: RowMover | None
    files: Mapping[str, bytes]
    replaces: Callable[[str], bool]
    settings: Callable[[Mapping[str, Any]], tuple[Mapping[str, Any], tuple[str, ...]]]
    notes: tuple[str, ...] = ()


def plan_tokenization(config: LoadedConfig, models: Sequence[Model], base: Model) -> Tokenization:
    """Raises ConfigError and CheckpointError for tokenizers that cannot be brought together.

    `models` are the inputs in the order of the config, the base model among them, then others that the tokenizer keys name.
    """
    merge = config.merge
    checkpoints = [model.checkpoint for model in models]
    template = _chat_template(config, checkpoints)
    if merge.tokenizer_source is None and merge.tokenizer is None:
        return _only_template(base.checkpoint, template)
    wanted = merge.tokenizer or TokenizerConfig()
    place = [model.reference for model in models].index(base.reference)
    named_base = place if merge.base_model is not None else None
    references = [model.reference for model in models]
    try:
        source = resolve_source(merge.tokenizer_source or wanted.source, references, _source_path(config))
        overrides = resolve_overrides(wanted.tokens, references)
        vocabulary = plan_vocabulary(checkpoints, named_base, source, overrides, wanted.pad_to_multiple_of)
    except TokenizerError as error:
        raise config.error(error.path, str(error)) from None
    files = tokenizer_files(checkpoints, named_base, vocabulary, source, template)
    ids = token_ids(checkpoints, named_base, vocabulary, source)
    notes: list[str] = []

    def settled(settings: Mapping[str, Any], name: str = CONFIG) -> tuple[Mapping[str, Any], tuple[str, ...]]:
        try:
            return ids.config(settings) if name == CONFIG else ids.settings(settings, name)
        except LostToken as error:
            raise config.error(_source_path(config), str(error)) from None

    for name in filter(_SETTINGS.fullmatch, base.checkpoint.side_files):
        if (old := _map(base.checkpoint, name)) is not None:
            new, said = settled(old, name)
            notes += said
            if new != old or name == GENERATION:
                files[name] = (json.dumps(new, indent=2, ensure_ascii=False) + "\n").encode()
    return Tokenization(RowMover(vocabulary, checkpoints), files, is_tokenizer_file, settled, tuple(notes))


def models_of_tokens(config: LoadedConfig) -> Iterator[tuple[ModelReference, Path]]:
    """The models that the tokenizer keys name, which need not be among those that are merged."""
    merge = config.merge
    if isinstance(merge.tokenizer_source, ModelReference):
        yield merge.tokenizer_source, ("tokenizer_source",)
    if merge.tokenizer is None:
        return
    if isinstance(merge.tokenizer.source, ModelReference):
        yield merge.tokenizer.source, ("tokenizer", "source")
    for token, wanted in (merge.tokenizer.tokens or {}).items():
        model = wanted.source.model if isinstance(wanted.source, ModelToken) else wanted.source
        if isinstance(model, ModelReference):
            yield model, ("tokenizer", "tokens", token, "source")


def _source_path(config: LoadedConfig) -> Path:
    return ("tokenizer", "source") if config.merge.tokenizer is not None else ("tokenizer_source",)


def _chat_template(config: LoadedConfig, checkpoints: Sequence[Checkpoint]) -> str | None:
    if config.merge.chat_template is None:
        return None
    return choose_template(config.merge.chat_template, checkpoints)


def _only_template(base: Checkpoint, template: str | None) -> Tokenization:
    """No vocabulary changes; perhaps the base's tokenizer files with another chat template."""
    files: dict[str, bytes] = {}
    if template is not None:
        own = {name: base.store.read(name) for name in base.side_files if is_tokenizer_file(name)}
        files = {name: data for name, data in with_chat_template(base.label, own, template).items() if own.get(name) != data}
    return Tokenization(None, files, lambda name: False, lambda settings: (settings, ()))


def _map(checkpoint: Checkpoint, name: str) -> dict[str, Any] | None:
    """A JSON file that holds a map; None for a processor's that holds none, which is copied as it is. Raises CheckpointError."""
    try:
        value = loads(checkpoint.store.read(name))
    except ValueError as error:
        if name == GENERATION:
            raise CheckpointError(f"{checkpoint.label}/{name}: {error}") from None
        return None
    if name == GENERATION and not isinstance(value, dict):
        raise CheckpointError(f"{checkpoint.label}/{name}: not a map")
    return value if isinstance(value, dict) else None
