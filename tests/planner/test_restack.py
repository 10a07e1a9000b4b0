"""config.json for other layers than those it was written for: every form in which a key speaks of layers."""

from __future__ import annotations

import copy
import random
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trials import trials
from weft.planner.layer_counts import layer_counts
from weft.planner.layout import Stack
from weft.planner.restack import LayerSource, RestackError, restack

MAIN = Stack("model.layers", 8)


def restacked(config: dict[str, Any], layers: Sequence[int], *more: Stack, of: Stack = MAIN) -> dict[str, Any]:
    """`config` for these layers of the stack, in the place of its own."""
    before = copy.deepcopy(config)
    new, said = restack(config, (MAIN, *more), {of.prefix: [LayerSource(config, of.count, layer) for layer in layers]})
    assert config == before, "the model's own config.json stays as it was"
    assert len(said[of.prefix].before) == of.count and len(said[of.prefix].after) == len(layers)
    return new


def eight(**keys: Any) -> dict[str, Any]:
    return {"num_hidden_layers": 8, "hidden_size": 8, **keys}


STACKED = [0, 1, 2, 3, 4, 5, 3, 4, 5, 6, 7]


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("layer_types", list("abcdefgh"), list("abcdefdefgh")),
        ("layer_types", list("abcdefghM"), list("abcdefdefghM")),  # and an entry of a prediction head
        ("sliding_windows", [[1, 2]] * 3 + [None] * 5, [[1, 2]] * 3 + [None] * 3 + [None] * 5),
        ("no_rope_layers", [1, 1, 1, 0, 1, 1, 1, 0], [1, 1, 1, 0, 1, 1, 0, 1, 1, 1, 0]),
        ("intermediate_size", [1, 2, 3, 4, 5, 6, 7, 8], [1, 2, 3, 4, 5, 6, 4, 5, 6, 7, 8]),
        ("moe_layer_freq", [0, 1, 1, 1, 1, 1, 1, 1], [0] + [1] * 10),
        ("mlp_only_layers", [0, 4], [0, 4, 7]),
        ("cross_attention_layers", [3, 8, 13], [3, 6]),  # written for more layers than there are
        ("attn_layer_indices", [0, 1, 2, 3, 4, 5, 6, 7], list(range(11))),
        ("global_attn_indexes", [7], [10]),
        ("full_attn_idxs", [2, 5], [2, 5, 8]),
        ("moe_layers_enum", "1,4,5", "1,4,5,7,8"),
        ("first_k_dense_replace", 3, 3),
        ("first_k_dense_replace", 0, 0),
        ("first_k_dense_replace", 8, 11),
        ("max_window_layers", 28, 28),
        ("num_last_full_attention_layers", 2, 2),
        ("moe_layer_start_index", 2, 2),
        ("moe_layer_end_index", 7, 10),
        ("moe_layer_end_index", -1, -1),
        ("attn_layer_period", 3, 3),
        ("decoder_sparse_step", 1, 1),
        ("hybrid_override_pattern", "M-M*E-M*", "M-M*E-*E-M*"),
        ("block_types", ["r", "r", "a"], list("rrarrarrarr")),
        ("sliding_window_pattern", "LLLG", "LLLGLLGLLLG"),
        ("attention_types", [[["g", "l"], 4]], [[list("glglgllglgl"), 1]]),
        ("per_layer_config", {"03": {"a": 1}, "07": {"a": 2}}, {"03": {"a": 1}, "06": {"a": 1}, "10": {"a": 2}}),
        ("out_indices", [-1], [-1]),
        ("num_nextn_predict_layers", 1, 1),
        ("eos_token_id", [1, 2, 3, 4, 5, 6, 7, 8], [1, 2, 3, 4, 5, 6, 7, 8]),
        ("layer_groups", [1, 2], [1, 2]),
        ("num_experts", 8, 8),
    ],
)
def test_a_key_says_of_the_new_layers_what_it_said_of_them_before(key: str, value: Any, expected: Any) -> None:
    assert restacked(eight(**{key: value}), STACKED) == eight(**{key: expected}) | {"num_hidden_layers": 11}
    assert restacked({"text_config": eight(**{key: value})}, STACKED)["text_config"][key] == expected
    assert restacked(eight(ffn_config={key: value}), STACKED)["ffn_config"][key] == expected


@pytest.mark.parametrize(
    ("key", "value", "layers"),
    [
        ("first_k_dense_replace", 3, [0, 1, 2, 3, 4, 2, 3]),
        ("num_kv_shared_layers", 2, [0, 6, 1]),
        ("moe_layer_start_index", 2, [0, 2, 1, 3]),
        ("moe_layer_end_index", 5, [0, 6, 1]),
        ("attn_layer_period", 3, [1, 2, 3]),
        ("global_attn_every_n_layers", 3, [1, 2, 3]),
        ("cross_layer_interval", 2, [0, 2]),
        ("deepstack_layer_indexes", [1, 3], [0, 2, 3]),
        ("insert_layer_id", 3, [1, 2, 3, 4]),
        ("insert_layer_id", 3, [0, 1, 2]),
        ("kv_source_layers", [0, 1, 2, 3, 0, 1, 2, 3], [0, 4, 5]),
        ("depths", [2, 2, 6, 2, 1, 1, 1, 1], [0, 1, 2]),
    ],
)
def test_what_no_value_says_is_refused_with_the_key_s_name(key: str, value: Any, layers: list[int]) -> None:
    with pytest.raises(RestackError, match=f"'{key}'"):
        restacked(eight(**{key: value}), layers)
    with pytest.raises(RestackError, match=f"'text_config.{key}'"):
        restacked({"text_config": eight(**{key: value})}, layers)
    assert restacked(eight(**{key: value}), range(8)) == eight(**{key: value}), "nothing moves, nothing is refused"


def test_a_period_is_said_in_another_key_where_one_can_say_it() -> None:
    moved = restacked(eight(attn_layer_period=4, attn_layer_offset=1), [3, 4, 5, 6])
    assert moved["attn_layer_offset"] == 2, "layer 5 is now layer 2"
    moe = restacked(eight(decoder_sparse_step=2, mlp_only_layers=[3]), [0, 1, 3, 5])
    assert (moe["decoder_sparse_step"], moe["mlp_only_layers"]) == (1, [0, 2])
    listed = eight(sliding_window_pattern=3, layer_types=list("ssfssfss"))
    assert restacked(listed, [0, 2, 5])["layer_types"] == ["s", "f", "f"], "the list decides, and the pattern is not read"


def test_kinds_that_a_class_alternates_are_listed_where_the_layers_no_longer_do() -> None:
    s, f = "sliding_attention", "full_attention"
    gemma = eight(model_type="gemma2")
    assert restacked(gemma, [0, 1, 4, 5]) == gemma | {"num_hidden_layers": 4}, "they still alternate"
    assert restacked(gemma, [0, 1, 1, 2])["layer_types"] == [s, f, f, s]
    assert restacked({"text_config": eight(model_type="gemma3_text", sliding_window_pattern=3)}, [1, 2, 5])["text_config"] == {
        **eight(model_type="gemma3_text", sliding_window_pattern=3, layer_types=[s, f, f]),
        "num_hidden_layers": 3,
    }
    assert restacked(eight(model_type="modernbert", global_attn_every_n_layers=4), [3, 4])["layer_types"] == [s, f]
    assert restacked(eight(model_type="smollm3"), [2, 3, 7])["no_rope_layers"] == [1, 0, 0]
    assert "layer_types" not in restacked(eight(model_type="mistral", sliding_window=4096), [2, 3, 7])


def test_a_class_whose_last_layer_is_of_one_kind() -> None:
    s, f = "sliding_attention", "full_attention"
    gemma = {"text_config": eight(model_type="gemma4_text", layer_types=[s, s, s, f] * 2)}
    assert restacked(gemma, [0, 1, 3])["text_config"]["layer_types"] == [s, s, f]
    with pytest.raises(RestackError, match=r"'text_config\.layer_types' would end with sliding_attention"):
        restacked(gemma, [0, 3, 4])


def test_a_key_that_does_not_say_of_which_stack_it_speaks() -> None:
    decoder, encoder = Stack("decoder.layers", 4), Stack("encoder.layers", 4)
    config = {"encoder_layers": 4, "decoder_layers": 4, "attention_window": [2, 2, 2, 4], "decoder_layer_types": list("abcd")}

    def cut(*layers: int) -> dict[str, Any]:
        sources = [LayerSource(config, 4, layer) for layer in layers]
        return restack(config, (decoder, encoder), {decoder.prefix: sources})[0]

    assert cut(1, 0, 2, 3)["decoder_layer_types"] == list("bacd")
    with pytest.raises(RestackError, match=r"'attention_window' describes single layers, of 'decoder\.layers' or of another"):
        cut(0, 1)


def test_a_layer_of_another_model_is_described_by_its_own_config() -> None:
    base, other, silent = eight(layer_types=list("abcdefgh")), eight(layer_types=list("ABCDEFGH")), eight()
    layers = [LayerSource(base, 8, 0), LayerSource(other, 8, 2), LayerSource(silent, 8, 7)]
    assert restack(base, (MAIN,), {MAIN.prefix: layers})[0]["layer_types"] == ["a", "C", "h"]
    dense, sparse = eight(first_k_dense_replace=1), eight(first_k_dense_replace=3)
    layers = [LayerSource(dense, 8, 0), LayerSource(sparse, 8, 2), LayerSource(dense, 8, 1)]
    assert restack(dense, (MAIN,), {MAIN.prefix: layers})[0]["first_k_dense_replace"] == 2


def test_keys_of_other_stacks_stay() -> None:
    vision = Stack("visual.blocks", 8)
    config = {
        "vision_config": {"depth": 8, "fullatt_block_indexes": [3, 7]},
        "text_config": eight(layer_types=list("abcdefgh")),
        "vision_feature_layer": [3],
    }
    new = restacked(config, [0, 1, 2], vision)
    assert new["text_config"] == {"num_hidden_layers": 3, "hidden_size": 8, "layer_types": ["a", "b", "c"]}
    assert {**new, "text_config": config["text_config"]} == config
    new = restacked(config, [0, 1, 2, 3, 7], vision, of=vision)
    assert new["vision_config"] == {"depth": 5, "fullatt_block_indexes": [3, 4]} and new["text_config"] == config["text_config"]
    with pytest.raises(RestackError, match="'vision_feature_layer'"):
        restacked(config, [1, 2, 3], vision, of=vision)
    connector = {**config, "vision_feature_layer": -2, "adapter_config": {"model_type": "x", "vision_feature_layer": [6]}}
    with pytest.raises(RestackError, match=r"'adapter_config\.vision_feature_layer'"):
        restacked(connector, [0, 1, 2], vision, of=vision)


@pytest.mark.parametrize(
    ("config", "prefixes", "expected"),
    [
        (
            {"num_layers": 4, "num_decoder_layers": 4},
            ("decoder.block", "encoder.block"),
            {"decoder.block": ["num_decoder_layers"], "encoder.block": ["num_layers"]},
        ),
        (
            {"encoder_layers": 4, "decoder_layers": 4, "num_hidden_layers": 4},
            ("model.decoder.layers", "model.encoder.layers"),
            {"model.decoder.layers": ["decoder_layers"], "model.encoder.layers": ["encoder_layers", "num_hidden_layers"]},
        ),
        (
            {"num_encoder_layers": 4, "num_decoder_layers": 4},
            ("prophetnet.decoder.layers", "prophetnet.encoder.layers"),
            {"prophetnet.decoder.layers": ["num_decoder_layers"], "prophetnet.encoder.layers": ["num_encoder_layers"]},
        ),
        (
            {"text_config": {"num_hidden_layers": 4}, "vision_config": {"num_hidden_layers": 4}},
            ("text_model.encoder.layers", "vision_model.encoder.layers"),
            {"text_model.encoder.layers": ["text_config"], "vision_model.encoder.layers": ["vision_config"]},
        ),
        (
            {"text_config": {"num_hidden_layers": 4}, "num_hidden_layers": 4, "audio_config": {"encoder_layers": 4}},
            ("model.layers", "audio_tower.layers"),
            {"model.layers": ["num_hidden_layers", "text_config"], "audio_tower.layers": ["audio_config"]},
        ),
        (
            {"encoder_layers": 4, "decoder_layers": 4, "num_hidden_layers": 4},
            ("decoder.layers",),
            {"decoder.layers": ["decoder_layers"]},
        ),
        ({"num_hidden_layers": 4}, ("bert.encoder.layer",), {"bert.encoder.layer": ["num_hidden_layers"]}),
        (
            {"num_nextn_predict_layers": 4, "num_hidden_layers": 4, "first_k_dense_replace": 4},
            ("model.layers",),
            {"model.layers": ["num_hidden_layers"]},
        ),
    ],
)
def test_the_keys_that_count_a_stack(config: dict[str, Any], prefixes: tuple[str, ...], expected: dict[str, list[str]]) -> None:
    counts = layer_counts(config, [Stack(prefix, 4) for prefix in prefixes])
    assert {prefix: sorted(path[0] for path in paths) for prefix, paths in counts.items()} == expected


def test_stacks_that_nothing_tells_apart_are_refused_by_name() -> None:
    with pytest.raises(RestackError, match=r"'num_hidden_layers'.* 'layers'.*'blocks'"):
        restack({"num_hidden_layers": 2}, (Stack("layers", 2), Stack("blocks", 2)), {"layers": []})
    with pytest.raises(RestackError, match=r"no key .*'model\.layers' \(8\)"):
        restacked({"hidden_size": 8}, [0])
    with pytest.raises(RestackError, match=r"'b\.layers'.*'a\.layers' \(2 layers\).*'b\.layers' \(3 layers\).*modules"):
        restack({"num_hidden_layers": 2}, (Stack("a.layers", 2), Stack("b.layers", 3)), {"b.layers": []})


kinds = st.lists(st.sampled_from("ab"), min_size=2, max_size=9)


@trials(100)
@given(kinds=kinds, seed=st.integers(0, 10**6))
def test_each_form_reads_back_what_was_written(kinds: list[str], seed: int) -> None:
    """One truth in several forms: whatever is accepted says of each new layer what was said of the one it comes from."""
    count, draw = len(kinds), random.Random(seed)
    layers = [draw.randrange(count) for _ in range(draw.randint(1, 2 * count))]
    truth = [kind == "a" for kind in kinds]
    first = next((i for i, item in enumerate(truth) if not item), count)
    config = {
        "num_hidden_layers": count,
        "layer_types": kinds,
        "moe_layers": [i for i, item in enumerate(truth) if item],
        "hybrid_override_pattern": "".join(kinds),
        "attention_types": [[kinds, 1]],
        "per_layer_config": {str(i): {"x": 1} for i, item in enumerate(truth) if item},
    }
    if truth[:first] == truth[: sum(truth)]:
        config["num_dense_layers"] = first
    stack = Stack("layers", count)
    wanted = [truth[layer] for layer in layers]
    try:
        new, _ = restack(config, (stack,), {"layers": [LayerSource(config, count, layer) for layer in layers]})
    except RestackError as error:
        assert "num_dense_layers" in str(error) and sorted(wanted, reverse=True) != wanted
        return
    said = range(len(layers))
    assert [kind == "a" for kind in new["layer_types"]] == wanted
    assert [i in new["moe_layers"] for i in said] == wanted or not config["moe_layers"]
    assert [letter == "a" for letter in new["hybrid_override_pattern"]] == wanted
    assert [kind == "a" for kind in new["attention_types"][0][0]] == wanted
    assert [str(i) in new["per_layer_config"] for i in said] == wanted or not config["per_layer_config"]
    if "num_dense_layers" in new:
        assert [i < new["num_dense_layers"] for i in said] == wanted
