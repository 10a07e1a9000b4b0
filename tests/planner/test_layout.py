"""Layers found in tensor names, for every kind of model the names of which look different."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from weft.errors import CheckpointError
from weft.planner.layout import Layout, find_layout, input_embedding, is_output_embedding, main_layer_count


def found(config: dict[str, Any], *names: str) -> Layout:
    return find_layout("model", config, names)


def stacks(layout: Layout) -> list[tuple[str, int]]:
    return [(stack.prefix, stack.count) for stack in layout.stacks]


def inside(layout: Layout, name: str) -> tuple[str, int, str] | None:
    place = layout.places[name]
    return (place.stack.prefix, place.layer, place.rest) if place.stack else None


def outside(layout: Layout) -> tuple[set[str], set[str]]:
    """The tensors before the layers, and those after."""
    places = [place for place in layout.places.values() if place.stack is None]
    return {p.name for p in places if p.before}, {p.name for p in places if not p.before}


def repeat(pattern: str, count: int) -> list[str]:
    return [pattern.format(layer) for layer in range(count)]


def test_llama() -> None:
    layout = found(
        {"num_hidden_layers": 12},
        "model.embed_tokens.weight",
        *repeat("model.layers.{}.mlp.up_proj.weight", 12),
        "model.norm.weight",
        "lm_head.weight",
    )
    assert stacks(layout) == [("model.layers", 12)]
    assert inside(layout, "model.layers.11.mlp.up_proj.weight") == ("model.layers", 11, "mlp.up_proj.weight")
    assert outside(layout) == ({"model.embed_tokens.weight"}, {"model.norm.weight", "lm_head.weight"})


def test_gpt2_with_and_without_its_prefix() -> None:
    for prefix in ("", "transformer."):
        layout = found(
            {"n_layer": 3, "n_head": 2},
            f"{prefix}wte.weight",
            f"{prefix}wpe.weight",
            *repeat(prefix + "h.{}.attn.c_attn.weight", 3),
            *repeat(prefix + "h.{}.ln_1.bias", 3),
            f"{prefix}ln_f.weight",
        )
        assert stacks(layout) == [(f"{prefix}h", 3)]
        assert outside(layout) == ({f"{prefix}wte.weight", f"{prefix}wpe.weight"}, {f"{prefix}ln_f.weight"})


def test_bert_whose_only_stack_is_an_encoder() -> None:
    layout = found(
        {"num_hidden_layers": 2},
        "bert.embeddings.word_embeddings.weight",
        "bert.embeddings.LayerNorm.weight",
        *repeat("bert.encoder.layer.{}.attention.self.query.weight", 2),
        "bert.pooler.dense.weight",
        "cls.predictions.bias",
    )
    assert stacks(layout) == [("bert.encoder.layer", 2)]
    before, after = outside(layout)
    assert before == {"bert.embeddings.word_embeddings.weight", "bert.embeddings.LayerNorm.weight"}
    assert after == {"bert.pooler.dense.weight", "cls.predictions.bias"}


def test_t5_has_two_stacks_and_numbers_within_its_layers() -> None:
    layout = found(
        {"num_layers": 2, "num_decoder_layers": 2},
        "shared.weight",
        *repeat("encoder.block.{}.layer.0.SelfAttention.q.weight", 2),
        *repeat("encoder.block.{}.layer.1.DenseReluDense.wi.weight", 2),
        *repeat("decoder.block.{}.layer.0.SelfAttention.q.weight", 2),
        *repeat("decoder.block.{}.layer.2.DenseReluDense.wi.weight", 2),
        "encoder.final_layer_norm.weight",
    )
    assert stacks(layout) == [("decoder.block", 2), ("encoder.block", 2)]
    assert inside(layout, "encoder.block.1.layer.0.SelfAttention.q.weight") == (
        "encoder.block",
        1,
        "layer.0.SelfAttention.q.weight",
    )
    assert outside(layout) == ({"shared.weight"}, {"encoder.final_layer_norm.weight"})


def test_t5_of_unequal_depths() -> None:
    layout = found(
        {"num_layers": 3, "num_decoder_layers": 2},
        *repeat("encoder.block.{}.layer.0.q.weight", 3),
        *repeat("decoder.block.{}.layer.0.q.weight", 2),
    )
    assert set(stacks(layout)) == {("encoder.block", 3), ("decoder.block", 2)}


def test_experts_are_numbered_inside_a_layer() -> None:
    names = [f"model.layers.{layer}.block_sparse_moe.experts.{e}.w1.weight" for layer in range(2) for e in range(8)]
    layout = found({"num_hidden_layers": 2, "num_local_experts": 8}, *names)
    assert stacks(layout) == [("model.layers", 2)]
    assert inside(layout, names[-1]) == ("model.layers", 1, "block_sparse_moe.experts.7.w1.weight")


def test_a_vision_model_s_language_stack_is_the_main_one() -> None:
    """Even if the vision stack is the deeper one and has more tensors."""
    layout = found(
        {"text_config": {"num_hidden_layers": 2}, "vision_config": {"num_hidden_layers": 3}},
        *repeat("language_model.model.layers.{}.mlp.weight", 2),
        *repeat("vision_tower.encoder.layers.{}.mlp.weight", 3),
        *repeat("vision_tower.encoder.layers.{}.attn.weight", 3),
        "vision_tower.patch_embedding.weight",
        "multi_modal_projector.0.weight",
        "multi_modal_projector.2.weight",
    )
    assert stacks(layout) == [("language_model.model.layers", 2), ("vision_tower.encoder.layers", 3)]
    assert layout.main == layout.stacks[0]
    before, after = outside(layout)
    assert before == {"vision_tower.patch_embedding.weight"}
    assert after == {"multi_modal_projector.0.weight", "multi_modal_projector.2.weight"}, "numbered, but no layers"


def test_of_two_stacks_of_equal_depth_the_vision_stack_is_not_the_main_one() -> None:
    layout = found(
        {"text_config": {"num_hidden_layers": 2}, "vision_config": {"depth": 2}},
        *repeat("visual.blocks.{}.a.weight", 2),
        *repeat("visual.blocks.{}.b.weight", 2),
        *repeat("model.layers.{}.a.weight", 2),
    )
    assert stacks(layout) == [("model.layers", 2), ("visual.blocks", 2)]


def test_prediction_heads_kept_as_extra_layers_stand_outside() -> None:
    layout = found({"num_hidden_layers": 2}, *repeat("model.layers.{}.mlp.weight", 3), "model.layers.2.eh_proj.weight")
    assert stacks(layout) == [("model.layers", 2)]
    assert inside(layout, "model.layers.2.mlp.weight") is None
    assert outside(layout)[1] == {"model.layers.2.mlp.weight", "model.layers.2.eh_proj.weight"}


def test_layers_of_different_kinds() -> None:
    """Mamba between attention: a layer need not have the tensors of its neighbours."""
    layout = found({"num_hidden_layers": 2}, "backbone.layers.0.mixer.weight", "backbone.layers.1.attention.weight")
    assert stacks(layout) == [("backbone.layers", 2)]


def test_numbers_without_a_prefix() -> None:
    layout = found({"num_hidden_layers": 2}, "0.weight", "1.weight")
    assert stacks(layout) == [("", 2)]
    assert layout.places["1.weight"].at(5) == "5.weight"


def test_a_number_is_a_whole_word() -> None:
    layout = found({}, "conv1.weight", "layer2.norm.weight", "x4.3y.weight")
    assert stacks(layout) == []
    assert layout.main is None


def test_without_a_layer_count_the_names_say_it() -> None:
    assert stacks(found({}, *repeat("model.layers.{}.w.weight", 3), "head.0.weight")) == [("model.layers", 3)]


def test_one_layer() -> None:
    assert stacks(found({"num_hidden_layers": 1}, "model.layers.0.w.weight")) == [("model.layers", 1)]


@pytest.mark.parametrize(("missing", "count"), [(0, 3), (1, 3), (2, 3)])
def test_a_layer_that_is_not_there(missing: int, count: int) -> None:
    names = [f"model.layers.{layer}.w.weight" for layer in range(count) if layer != missing]
    with pytest.raises(CheckpointError, match=rf"^model: missing weights: .* layer {missing} \(model.layers.{missing}"):
        found({"num_hidden_layers": count}, *names)


@pytest.mark.parametrize(
    ("config", "count"),
    [
        ({"num_hidden_layers": 4}, 4),
        ({"n_layer": 4}, 4),
        ({"text_config": {"num_hidden_layers": 4}, "vision_config": {"num_hidden_layers": 9}}, 4),
        ({"thinker_config": {"num_layers": 4}}, 4),
        ({"num_hidden_layers": True, "n_layers": 4}, 4),
        ({"num_hidden_layers": "4"}, None),
        ({"num_hidden_layers": 0}, None),
        ({"text_config": None}, None),
        ({}, None),
    ],
)
def test_the_layer_count_of_a_config(config: dict[str, Any], count: int | None) -> None:
    assert main_layer_count(config) == count


@pytest.mark.parametrize("name", ["lm_head.weight", "embed_out.weight", "model.output.weight", "language_model.lm_head.weight"])
def test_output_projections(name: str) -> None:
    assert is_output_embedding(name)
    assert not found({}, name).places[name].before


@pytest.mark.parametrize("name", ["lm_head.bias", "my_lm_head.weight", "lm_head.weight_scale", "output.dense.weight"])
def test_what_is_no_output_projection(name: str) -> None:
    assert not is_output_embedding(name)


def test_the_input_embedding_if_there_is_just_one() -> None:
    assert input_embedding(["model.norm.weight", "model.embed_tokens.weight"]) == "model.embed_tokens.weight"
    assert input_embedding(["transformer.wte.weight", "transformer.wpe.weight"]) == "transformer.wte.weight"
    assert input_embedding(["a.embed_tokens.weight", "b.embed_tokens.weight"]) is None
    assert input_embedding(["model.layers.61.embed_tokens.weight", "model.embed_tokens.weight"]) == "model.embed_tokens.weight"
    assert input_embedding(["model.norm.weight"]) is None


words = st.sampled_from(["model", "layers", "h", "block", "transformer", "encoder", "x2", "language_model"])
rests = st.lists(st.sampled_from(["a.weight", "b.0.weight", "mlp.experts.7.w1.weight", "norm.bias"]), min_size=1, unique=True)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(prefix=st.lists(words, min_size=1, max_size=3), count=st.integers(2, 14), rest=rests, shuffle=st.integers(0, 99))
def test_any_names_in_any_order(prefix: list[str], count: int, rest: list[str], shuffle: int) -> None:
    """Each tensor is in its layer, and `at` gives its name back."""
    stack = ".".join(prefix)
    names = [f"{stack}.{layer}.{tail}" for layer in range(count) for tail in rest]
    random.Random(shuffle).shuffle(names)
    layout = found({"num_hidden_layers": count}, *names, "final.weight")
    assert stacks(layout) == [(stack, count)]
    assert list(layout.places) == [*names, "final.weight"]
    for name in names:
        place = layout.places[name]
        assert f"{stack}.{place.layer}.{place.rest}" == name
        assert place.at(place.layer) == name
        assert place.rest in rest
    assert layout.places["final.weight"].stack is None


@pytest.mark.parametrize(
    ("config", "prefixes"),
    [
        ({"num_hidden_layers": 16, "num_channels": 3}, ["encoder.blocks"]),
        ({"num_hidden_layers": 12, "audio_config": {"depths": [2, 2]}}, ["audio_model.audio_encoder.layers"]),
        ({"num_hidden_layers": 4}, ["model.H_module.layers", "model.L_module.layers"]),
    ],
    ids=["stages of an image model", "a tower alone", "two stacks together"],
)
def test_a_count_of_something_else_is_no_loss(config: dict[str, object], prefixes: list[str]) -> None:
    names = [f"{prefix}.{layer}.w.weight" for prefix in prefixes for layer in range(2)]
    assert found(config, *names).places.keys() == set(names)
    with pytest.raises(CheckpointError, match="missing weights"):
        found({"num_hidden_layers": 16, **config}, *[name for name in names if ".0." not in name])


def test_numbers_with_gaps_are_no_layers_where_nothing_is_counted() -> None:
    """A row of modules, of which the activations have no weights."""
    names = [f"patch_embed.proj.{number}.weight" for number in (0, 1, 3, 4)]
    assert stacks(found({"model_type": "x"}, *names)) == []


def test_of_two_encoders_the_main_one_is_that_of_the_text() -> None:
    config = {"text_config": {"num_hidden_layers": 2}, "vision_config": {"num_hidden_layers": 2}}
    names = [*repeat("vision_model.encoder.layers.{}.a.weight", 2), *repeat("vision_model.encoder.layers.{}.b.weight", 2)]
    layout = found(config, *names, *repeat("text_model.encoder.layers.{}.a.weight", 2))
    assert layout.main is not None and layout.main.prefix == "text_model.encoder.layers"
