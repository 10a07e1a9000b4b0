"""Which tensors of a model have one row or element a token, and along which dimension: embeddings, heads, biases, tables.

A dimension goes by tokens if it is as long as the vocabulary. Where another size of the model is the same number by chance, so
that a projection could have it too, only tensors do whose name says so. A few families give the embedding rows beyond the
vocabulary (for an image token, say), or the head a few fewer or more: what is beyond stays beyond.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import CheckpointError
from .catalog import Checkpoint
from .layout import main_settings

_INPUT = re.compile(
    r"(^|\.)(embed_tokens|wte|word_embeddings?|embed_in|tok_embeddings|tokens_embed|(text_)?token_embedding|shared|embeddings?|"
    r"input_embedding|embed|w)\.weight(_integer)?$"
)
_OUTPUT = re.compile(r"(^|\.)(lm_head|embed_out|output_projection|joint\.head)\.(weight|bias)$")
_BY_NAME = re.compile(
    _INPUT.pattern
    + r"|(^|\.)(lm_head|embed_out|output|out|head|proj_out|output_projection|vocab_projector|generator_lm_head|lm_loss|decoder|"
    r"mlm_head|mmm_text_head|ctc_head|embedding_decoder|embed_tokens_per_layer|value_embeddings)\.(weight|bias)$"
    r"|(^|\.)(predictions|lm_head|mlm_head|mmm_text_head|head|pred_layer)\.(decoder|proj|out_proj)\.(weight|bias)$"
    r"|(^|\.)predictions\.bias$|(^|\.)final_logits_bias$|\.tid2eid$"
)
_IN_LAYER = re.compile(r"(^|\.)[0-9]+\.")
_NO_SIZE = re.compile(r"vocab|token|_id$|_ids$|_index$|_idx$|^(bos|eos|pad)_")
"""Keys of config.json whose numbers say how many tokens there are, or are tokens, so that they are no other size."""
_FEW = 8
"""Rows that a head may have more or fewer than there are tokens."""


@dataclass(frozen=True, slots=True)
class TokenAxis:
    """Dimension `axis` goes by tokens, with `surplus` rows behind them (below 0: it ends before the last tokens)."""

    axis: int
    surplus: int = 0


@dataclass(frozen=True, slots=True)
class TokenAxes:
    """A model's vocab_size, the rows of its input embedding, and the tensors that go by tokens."""

    size: int
    rows: int
    axes: Mapping[str, TokenAxis]


def token_axes(checkpoint: Checkpoint) -> TokenAxes:
    """Raises CheckpointError where it is not clear which embedding the tokenizer's tokens are rows of."""
    shapes = {name: tensor.shape for name, tensor in checkpoint.tensors.items()}
    size, rows = _sizes(checkpoint.label, checkpoint.config, shapes)
    by_chance = _by_chance(checkpoint.config, shapes, size)
    axes = {}
    for name, shape in shapes.items():
        named = bool(_BY_NAME.search(name)) and (not _IN_LAYER.search(name) or name.endswith(".tid2eid") or not by_chance)
        if size in shape and (named or not by_chance):
            axes[name] = TokenAxis(shape.index(size))
        elif rows != size and shape[:1] == (rows,) and len(shape) == 2 and _INPUT.search(name):
            axes[name] = TokenAxis(0, rows - size)
        elif shape and _OUTPUT.search(name) and abs(shape[0] - size) <= _FEW and 2 * shape[0] > size:
            axes[name] = TokenAxis(0, shape[0] - size)
    return TokenAxes(size, rows, axes)


def _sizes(label: str, config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, int]:
    """vocab_size, and the rows of the input embedding."""
    inputs = {shape[0] for name, shape in shapes.items() if len(shape) == 2 and _INPUT.search(name)}
    outputs = {shape[0] for name, shape in shapes.items() if len(shape) == 2 and _OUTPUT.search(name)}
    said = list(dict.fromkeys(_said(config)))
    for size in said:
        if size in inputs:
            return size, size
    if not inputs:
        for size in said:
            if any(size in shape for name, shape in shapes.items() if not _IN_LAYER.search(name)):
                return size, size
        raise CheckpointError(f"{label}: has no input embedding that weft knows, so its rows cannot follow another tokenizer")
    main = {shape[0] for name, shape in shapes.items() if len(shape) == 2 and _MAIN.search(name)} or inputs
    if len(main) > 1:
        raise CheckpointError(
            f"{label}: has several input embeddings of different sizes, so its rows cannot follow another tokenizer"
        )
    (rows,) = main
    # Families such as Mllama give the embedding rows beyond vocab_size; a head as long as it says that config.json is wrong.
    size = next((size for size in said if size < rows and rows not in outputs), rows)
    return size, rows


_MAIN = re.compile(r"(^|\.)(embed_tokens|wte|word_embeddings|embed_in|tok_embeddings|shared)\.weight$")


def vocabulary_size(config: Mapping[str, Any]) -> int | None:
    """How many tokens config.json says that a model has; None where it does not say."""
    return next(_said(config), None)


def _said(config: Mapping[str, Any]) -> Iterator[int]:
    """What config.json may mean by the vocabulary's size, the likeliest first."""
    parts = [*(part for main in main_settings(config) for part in main_settings(main)), *_inner(config)]
    for key in ("text_vocab_size", "vocab_size"):
        for part in parts:
            value = part.get(key)
            if isinstance(value, int) and not isinstance(value, bool) and value > 0:
                yield value


def _inner(config: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    for part in config.values():
        if isinstance(part, Mapping):
            yield part
            yield from _inner(part)


def _by_chance(config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], size: int) -> bool:
    """Whether something else has the vocabulary's size too."""
    if any(size in shape and _IN_LAYER.search(name) and not _BY_NAME.search(name) for name, shape in shapes.items()):
        return True
    for part in (config, *_inner(config)):
        if any(value == size and type(value) is int and not _NO_SIZE.search(key) for key, value in part.items()):
            return True
    return False
