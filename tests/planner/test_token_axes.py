"""Which tensors go by tokens, and that a merged vocabulary leaves a model that config.json describes, for any architecture."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

import pytest
import torch
import transformers
from hypothesis import settings
from transformers.models.auto import modeling_auto

from memory_store import Memory
from vocabularies import word_tokenizer
from weft.errors import CheckpointError
from weft.planner.catalog import Checkpoint, InputTensor, WeightFile
from weft.planner.embedding import RowMover
from weft.planner.token_axes import TokenAxis, token_axes
from weft.planner.token_ids import token_ids
from weft.planner.vocabulary import plan_vocabulary

SAMPLE = [
    "BartForConditionalGeneration",  # a bias of [1, tokens]
    "MambaForCausalLM",  # an unusual name
    "MllamaForCausalLM",  # rows beyond vocab_size
    "MobileBertForMaskedLM",  # columns that go by tokens
    "ModernBertForMaskedLM",  # a bias whose name says nothing
]
Shapes = dict[str, tuple[int, ...]]

_IDS = re.compile(r"\w*(token_id|_index|_idx)")


def with_size(config: Mapping[str, Any], old: int, new: int) -> dict[str, Any]:
    """A config.json with another vocab_size, and no token beyond it."""
    made: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict):
            made[key] = with_size(value, old, new)
        elif value == old and re.fullmatch(r"(\w+_)?vocab_size(_per_layer_input)?", key):
            made[key] = new
        else:
            made[key] = 3 if _IDS.fullmatch(key) and type(value) is int and value >= 290 else value
    return made


def checkpoint(label: str, config: Mapping[str, Any], shapes: Shapes, words: list[str] | None = None) -> Checkpoint:
    file = WeightFile(label, "model.safetensors", 0, label)
    tensors = {name: InputTensor(name, "F32", shape, file, 0, 0) for name, shape in shapes.items()}
    tokenizer = word_tokenizer({word: i for i, word in enumerate(words or [])})
    files = {"tokenizer.json": json.dumps(tokenizer).encode()}
    return Checkpoint(label, Memory(label, files), config, tensors, (), {name: len(data) for name, data in files.items()})


def shapes_of(model_class: Any, config: Mapping[str, Any]) -> Shapes:
    """The tensors that a model of this config.json has, without those that are tied to others."""
    with torch.device("meta"):
        model = model_class(model_class.config_class.from_dict(dict(config)))
    state = dict(model.state_dict())
    for name in model.all_tied_weights_keys:
        state.pop(name, None)
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def check_architecture(model_class: Any, default: Mapping[str, Any]) -> bool:
    """Two models of one architecture and two vocabularies; whether it has one that a tokenizer.json could describe."""
    try:
        old = token_axes(checkpoint("m", default, shapes_of(model_class, default))).size
    except CheckpointError:
        return False
    models = []
    for label, count in (("a", 293), ("b", 311)):
        config = with_size(default, old, count)
        words = [f"w{i + count}" if i > 280 else f"w{i}" for i in range(count)]
        models.append(checkpoint(label, config, shapes_of(model_class, config), words))
    vocabulary = plan_vocabulary(models, 0, "union")
    mover = RowMover(vocabulary, models)
    config, _ = token_ids(models, 0, vocabulary, "union").config(models[0].config)
    wanted = shapes_of(model_class, config)
    for model in models:
        assert {key: mover.move(key, model, tensor).shape for key, tensor in model.tensors.items()} == wanted
    assert any(tensor.shape != wanted[key] for key, tensor in models[0].tensors.items()), "something goes by tokens"
    return True


def default_config(config_class: Any) -> dict[str, Any]:
    made: dict[str, Any] = json.loads(config_class().to_json_string(use_diff=False))
    return made


@pytest.mark.parametrize("name", SAMPLE)
def test_a_merged_vocabulary_fits_the_architecture(name: str) -> None:
    model_class = getattr(transformers, name)
    assert check_architecture(model_class, default_config(model_class.config_class))


def test_a_merged_vocabulary_fits_every_architecture() -> None:
    if settings().max_examples <= 100:
        pytest.skip("takes minutes: `pytest --hypothesis-profile thorough`")
    heads = ("CAUSAL_LM", "MASKED_LM", "SEQ_TO_SEQ_CAUSAL_LM", "IMAGE_TEXT_TO_TEXT", "SPEECH_SEQ_2_SEQ", "PRETRAINING")
    found = {name for head in heads for name in getattr(modeling_auto, f"MODEL_FOR_{head}_MAPPING_NAMES").values()}
    checked, wrong = 0, []
    for name in sorted(name for name in found if isinstance(name, str)):
        model_class = getattr(transformers, name)
        try:
            default = default_config(model_class.config_class)
            shapes_of(model_class, default)
        except Exception:  # a config that is no model by itself, or a library that is not there
            continue
        try:
            checked += check_architecture(model_class, default)
        except Exception as error:
            wrong.append(f"{name}: {type(error).__name__}: {str(error)[:300]}")
    assert not wrong, "\n".join(wrong)
    assert checked > 150


def axes(shapes: Shapes, **config: Any) -> Mapping[str, TokenAxis]:
    return token_axes(checkpoint("m", config, shapes)).axes


EMBEDDING = "model.embed_tokens.weight"


def test_a_size_that_is_the_vocabularys_by_chance() -> None:
    """Where a projection is as wide as the vocabulary is long, only names decide."""
    shapes: Shapes = {
        EMBEDDING: (64, 64), "lm_head.weight": (64, 64), "lm_head.bias": (64,), "final_logits_bias": (1, 64),
        "model.layers.0.mlp.up_proj.weight": (64, 64), "model.norm.weight": (64,), "projector.weight": (64, 64),
    }  # fmt: skip
    found = axes(shapes, vocab_size=64, hidden_size=64)
    assert found.keys() == {EMBEDDING, "lm_head.weight", "lm_head.bias", "final_logits_bias"}
    assert found["final_logits_bias"] == TokenAxis(1) and found[EMBEDDING] == TokenAxis(0)
    positions: Shapes = {"wte.weight": (64, 8), "wpe.weight": (64, 8), "h.0.mlp.weight": (32, 8), "strange_bias": (64,)}
    assert axes(positions, vocab_size=64, n_positions=64).keys() == {"wte.weight"}
    assert axes(positions, vocab_size=64, n_positions=32).keys() == {"wte.weight", "wpe.weight", "strange_bias"}


@pytest.mark.parametrize("head", [(64, 8), (62, 8), (65, 8)])
def test_each_tensor_keeps_its_own_surplus(head: tuple[int, int]) -> None:
    found = axes({EMBEDDING: (72, 8), "lm_head.weight": head}, vocab_size=64)
    assert found == {EMBEDDING: TokenAxis(0, 8), "lm_head.weight": TokenAxis(0, head[0] - 64)}


def test_a_head_as_long_as_the_embedding_corrects_config_json() -> None:
    shapes: Shapes = {EMBEDDING: (72, 8), "lm_head.weight": (72, 8)}
    assert token_axes(checkpoint("m", {"vocab_size": 64}, shapes)).size == 72
    assert token_axes(checkpoint("m", {}, shapes)).size == 72
