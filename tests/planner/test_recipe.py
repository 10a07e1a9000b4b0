"""What each output tensor is made of, seen from configs and tiny models."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from checkpoints import Tensors, llama_config, llama_tensors, write_model
from weft.errors import CheckpointError, ConfigError
from weft.planner.config import load_config
from weft.planner.memory import Budget
from weft.planner.plan import Options, Plan, make_plan
from weft.planner.recipe import Recipe

Q = "model.layers.{}.self_attn.q_proj.weight"
DOWN = "model.layers.{}.mlp.down_proj.weight"
EMBEDDING, NORM, HEAD = "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which models a, b and c of two layers stand."""
    monkeypatch.chdir(tmp_path)
    for i, name in enumerate("abc"):
        write_model(tmp_path / name, llama_tensors(value=float(i)), llama_config())
    return tmp_path


def plan(text: str, seed: int = 0) -> Plan:
    return make_plan(load_config(text), Options(Budget(1 << 30, 0, 1), seed=seed))


def made(text: str, seed: int = 0) -> dict[str, Recipe]:
    return {recipe.name: recipe for recipe in plan(text, seed).recipes}


def replace(folder: Path, tensors: Tensors, config: Mapping[str, object] | None = None) -> None:
    """Another model in place of one that is there."""
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()
    write_model(folder, tensors, llama_config() if config is None else config)


def weights(recipe: Recipe, name: str = "weight") -> list[float | None]:
    return [values.get(name) for values in recipe.arguments.models]


def sources(recipe: Recipe) -> list[tuple[str, str]]:
    return [(tensor.file.model, tensor.name) for tensor in recipe.leaves()]


LINEAR = """
merge_method: linear
models:
  - {model: a, parameters: {weight: 0.25}}
  - {model: b, parameters: {weight: 0.75}}
"""


# Tensors and layers.


def test_whole_models_tensor_by_tensor(here: Path) -> None:
    recipes = made(LINEAR)
    assert set(recipes) == set(llama_tensors())
    for name, recipe in recipes.items():
        assert sources(recipe) == [("a", name), ("b", name)]
        assert recipe.method == "linear"
        assert weights(recipe) == [0.25, 0.75]
        assert recipe.arguments.shared == {"normalize": 1.0}
        assert recipe.shape == tuple(llama_tensors()[name].shape)


def test_the_output_begins_with_what_comes_before_the_layers_and_ends_with_what_comes_after(here: Path) -> None:
    names = [recipe.name for recipe in plan(LINEAR).recipes]
    assert names[0] == EMBEDDING
    assert set(names[-2:]) == {NORM, HEAD}
    layers = [name.split(".")[2] for name in names[1:-2]]
    assert layers == sorted(layers)


def test_output_layer_k_is_layer_lo_plus_j_of_each_source(here: Path) -> None:
    recipes = made("""
merge_method: passthrough
slices:
  - sources: [{model: a, layer_range: [1, 2]}]
  - sources: [{model: b, layer_range: [0, 2]}]
""")
    found = [sources(recipes[Q.format(layer)]) for layer in range(3)]
    assert found == [[("a", Q.format(1))], [("b", Q.format(0))], [("b", Q.format(1))]]
    assert Q.format(3) not in recipes
    assert sources(recipes[EMBEDDING]) == [("a", EMBEDDING)], "the first slice's source"
    assert sources(recipes[NORM]) == [("b", NORM)], "the last slice's source"


def test_layers_of_different_kinds_keep_their_tensors(here: Path) -> None:
    tensors = llama_tensors()
    tensors["model.layers.1.mixer.weight"] = tensors.pop(Q.format(1))
    for name in "ab":
        replace(here / name, tensors, {**llama_config(), "layer_types": ["attention", "mixer"]})
    recipes = made("""
merge_method: passthrough
slices:
  - sources: [{model: a, layer_range: [1, 2]}]
  - sources: [{model: b, layer_range: [0, 1]}]
""")
    assert sources(recipes["model.layers.0.mixer.weight"]) == [("a", "model.layers.1.mixer.weight")]
    assert sources(recipes[Q.format(1)]) == [("b", Q.format(0))]
    assert Q.format(0) not in recipes


def test_a_base_model_that_is_not_listed_comes_last_and_has_no_parameters(here: Path) -> None:
    recipe = made(LINEAR.replace("linear", "task_arithmetic") + "base_model: c\n")[NORM]
    assert [model for model, _ in sources(recipe)] == ["a", "b", "c"]
    assert weights(recipe) == [0.25, 0.75, None]
    assert recipe.arguments.base == 2
    assert recipe.base_input == 2


@pytest.mark.parametrize(
    "method", ["merge_method: karcher", "merge_method: linear\nparameters: {weight: 2}", "merge_method: linear"]
)
def test_a_base_model_that_is_not_listed_counts_where_it_lacks_no_weight(here: Path, method: str) -> None:
    """That of the whole merge is the base's, too. Slices say themselves what they are made of."""
    whole = "models: [{model: a, parameters: {WEIGHT}}, {model: b, parameters: {WEIGHT}}]"
    piece = "{model: MODEL, layer_range: [0, 2], parameters: {WEIGHT}}"
    sliced = f"slices: [{{sources: [{piece.replace('MODEL', 'a')}, {piece.replace('MODEL', 'b')}]}}]"
    weight = "weight: 1" if "linear" in method else ""
    recipe = made(f"{method}\n{whole}\nbase_model: c\n".replace("WEIGHT", weight))[NORM]
    counts = method != "merge_method: linear"
    assert [model for model, _ in sources(recipe)] == ["a", "b", "c"][: 2 + counts]
    if "weight" in method:
        assert weights(recipe) == [1, 1, 2]
    recipe = made(f"{method}\n{sliced}\nbase_model: c\n".replace("WEIGHT", weight))[NORM]
    assert [model for model, _ in sources(recipe)] == ["a", "b"]


def test_a_linear_base_without_a_weight_lends_its_files_only(here: Path) -> None:
    recipe = made(LINEAR + "  - {model: c}\nbase_model: c\n")[NORM]
    assert [model for model, _ in sources(recipe)] == ["a", "b"]
    with pytest.raises(ConfigError, match=r"linear needs the parameter 'weight' of this model"):
        plan(LINEAR + "  - {model: c}\n")


# Parameters.

LEVELS = """
merge_method: ties
base_model: c
slices:
  - sources:
      - {model: a, layer_range: [0, 2], parameters: {SOURCE}}
      - {model: b, layer_range: [0, 2]}
      - {model: c, layer_range: [0, 2]}
    parameters: {SLICE}
parameters: {weight: 9, GLOBAL}
"""


def density(*, source: str = "", piece: str = "", top: str = "") -> list[float | None]:
    text = LEVELS.replace("SOURCE", source).replace("SLICE", piece).replace("GLOBAL", top)
    return weights(made(text)[Q.format(0)], "density")


@pytest.mark.parametrize(
    ("levels", "expected"),
    [
        ({}, [1.0, 1.0]),
        ({"top": "density: 0.5"}, [0.5, 0.5]),
        ({"top": "density: 0.5", "piece": "density: 0.25"}, [0.25, 0.25]),
        ({"top": "density: 0.5", "piece": "density: 0.25", "source": "density: 0.75"}, [0.75, 0.25]),
        ({"source": "density: [{filter: mlp, value: 0.1}]", "piece": "density: 0.25"}, [0.25, 0.25]),
        ({"source": "density: [{filter: q_proj, value: 0.1}]", "piece": "density: 0.25"}, [0.1, 0.25]),
        ({"piece": "density: [{filter: mlp, value: 0.1}]", "top": "density: 0.5"}, [0.5, 0.5]),
        ({"top": "density: [{filter: mlp, value: 0.1}]"}, [1.0, 1.0]),
    ],
)
def test_precedence_and_falling_through(here: Path, levels: dict[str, str], expected: list[float]) -> None:
    """The source's own parameters, then the slice's, the global ones, the default; what yields nothing falls through."""
    assert density(**levels)[:2] == expected


def test_zero_is_a_value_and_hides_what_stands_above(here: Path) -> None:
    text = LEVELS.replace("SOURCE", "weight: 0").replace("SLICE", "").replace("GLOBAL", "")
    assert weights(made(text)[NORM])[:2] == [0, 9]


def test_a_module_s_parameters_stand_between_slice_and_global(here: Path) -> None:
    text = """
merge_method: linear
modules:
  model:
    MODULE
    slices:
      - sources: [{model: a, layer_range: [0, 2]}]
        SLICE
parameters: {weight: 1}
"""
    module, piece = "parameters: {weight: 2}", "parameters: {weight: 3}"
    for inner, outer, expected in [("", "", 1), ("", module, 2), (piece, module, 3), (piece, "", 3)]:
        recipes = made(text.replace("SLICE", inner).replace("MODULE", outer))
        assert weights(recipes[Q.format(1)]) == [expected]


def test_filters_see_input_names_for_a_model_s_parameters_and_output_names_for_global_ones(here: Path) -> None:
    text = """
merge_method: slerp
base_model: a
slices:
  - sources: [{model: a, layer_range: [1, 2]}, {model: b, layer_range: [1, 2]}]
parameters:
  t: [{filter: layers.0., value: 0.1}, {filter: layers.1., value: 0.9}, {value: 0.5}]
"""
    assert made(text)[Q.format(0)].arguments.shared == {"t": 0.1}
    text = """
merge_method: linear
slices:
  - sources: [{model: a, layer_range: [1, 2]}]
parameters:
  weight: [{filter: layers.0., value: 0.1}, {filter: layers.1., value: 0.9}, {value: 0.5}]
"""
    assert weights(made(text)[Q.format(0)]) == [0.9]


def test_a_gradient_runs_over_the_layers_of_its_slice(here: Path) -> None:
    """From 0 to 1 over each slice; 1 for a slice of one layer; 0 outside the layers."""
    for name in "ab":
        replace(here / name, llama_tensors(3), llama_config(3))
    text = """
merge_method: linear
slices:
  - sources: [{model: a, layer_range: [0, 3]}]
  - sources: [{model: b, layer_range: [0, 1]}]
  - sources: [{model: b, layer_range: [1, 3]}]
parameters: {weight: [10, 20]}
"""
    recipes = made(text)
    assert [weights(recipes[Q.format(layer)])[0] for layer in range(6)] == [10, 15, 20, 20, 10, 20]
    assert [weights(recipes[name])[0] for name in (EMBEDDING, NORM, HEAD)] == [10, 10, 10]


def test_what_is_outside_the_layers_uses_the_nearer_slice_s_parameters(here: Path) -> None:
    recipes = made("""
merge_method: linear
slices:
  - {sources: [{model: a, layer_range: [0, 1]}], parameters: {weight: 3}}
  - {sources: [{model: b, layer_range: [1, 2]}], parameters: {weight: 4}}
""")
    assert [weights(recipes[name]) for name in (EMBEDDING, NORM, HEAD)] == [[3], [4], [4]]


def test_a_required_parameter_that_nothing_sets_names_tensor_and_place(here: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"line 5, models\[1\]: linear needs the parameter 'weight' .*model.embed_tokens.weight"
    ):
        plan(LINEAR.replace(", parameters: {weight: 0.75}", ""))
    text = "merge_method: slerp\nbase_model: a\nmodels: [{model: a}, {model: b}]\nparameters: {t: [{filter: mlp, value: 1}]}"
    with pytest.raises(ConfigError, match="slerp needs the parameter 't' of the merge"):
        plan(text)


# Missing, tied, optional and odd tensors.


def test_a_tied_head_is_read_from_the_embedding(here: Path) -> None:
    replace(here / "b", llama_tensors(head=False), llama_config(tie_word_embeddings=True))
    merge = plan(LINEAR)
    recipe = next(recipe for recipe in merge.recipes if recipe.name == HEAD)
    assert sources(recipe) == [("a", HEAD), ("b", EMBEDDING)]
    assert any("read from the input embedding of b" in note for note in merge.notes)


def test_models_that_do_not_say_are_tied(here: Path) -> None:
    """As transformers' own default has it."""
    replace(here / "b", llama_tensors(head=False), {"num_hidden_layers": 2})
    assert sources(made(LINEAR)[HEAD])[1] == ("b", EMBEDDING)


def test_a_head_that_no_model_has_is_not_made(here: Path) -> None:
    for name in "ab":
        replace(here / name, llama_tensors(head=False), llama_config(tie_word_embeddings=True))
    assert HEAD not in made(LINEAR)


def test_a_head_that_is_missing_though_it_is_not_tied(here: Path) -> None:
    replace(here / "b", llama_tensors(head=False))
    with pytest.raises(CheckpointError, match=r": b: missing weights: it has no 'lm_head.weight', which a has"):
        plan(LINEAR)


def test_a_bias_that_one_model_lacks_altogether_is_copied(here: Path) -> None:
    replace(here / "a", llama_tensors(bias=True))
    merge = plan(LINEAR)
    biases = [recipe for recipe in merge.recipes if recipe.name.endswith("bias")]
    assert len(biases) == 2
    assert all(recipe.method is None and len(recipe.inputs) == 1 for recipe in biases)
    assert any("are optional and missing from b" in note for note in merge.notes)


def test_a_bias_that_other_layers_have_is_missing(here: Path) -> None:
    tensors = llama_tensors(bias=True)
    replace(here / "a", tensors)
    del tensors["model.layers.1.self_attn.q_proj.bias"]
    replace(here / "b", tensors)
    with pytest.raises(CheckpointError, match=r": b: missing weights: it has no 'model.layers.1.self_attn.q_proj.bias'"):
        plan(LINEAR)


@pytest.mark.parametrize("lacking", ["a", "b"])
def test_a_missing_weight_is_an_error_whichever_model_lacks_it(here: Path, lacking: str) -> None:
    tensors = llama_tensors()
    del tensors[DOWN.format(1)]
    replace(here / lacking, tensors)
    with pytest.raises(CheckpointError, match=rf": {lacking}: missing weights: it has no 'model.layers.1.mlp.down_proj.weight'"):
        plan(LINEAR)


def test_a_missing_weight_is_named_as_the_model_would_name_it(here: Path) -> None:
    tensors = llama_tensors()
    del tensors[DOWN.format(1)]
    replace(here / "b", tensors)
    text = """
merge_method: linear
slices:
  - sources: [{model: a, layer_range: [0, 1]}, {model: b, layer_range: [1, 2]}]
parameters: {weight: 1}
"""
    with pytest.raises(CheckpointError, match=r": b: missing weights: it has no 'model.layers.1.mlp"):
        plan(text)


def test_integer_tensors_are_copied_from_the_base_model(here: Path) -> None:
    for name in "ab":
        tensors = llama_tensors() | {"model.positions": torch.arange(4)}
        replace(here / name, tensors)
    recipe = made(LINEAR + "base_model: b\n")["model.positions"]
    assert recipe.method is None
    assert sources(recipe) == [("b", "model.positions")]
    assert recipe.dtype == "I64"


def test_integers_and_floating_point_numbers_do_not_mix(here: Path) -> None:
    replace(here / "b", llama_tensors() | {NORM: torch.ones(4, dtype=torch.int32)})
    with pytest.raises(CheckpointError, match=r"'model.norm.weight' is F32 in a and I32 in b"):
        plan(LINEAR)


def test_shapes_that_differ_are_refused(here: Path) -> None:
    replace(here / "b", llama_tensors() | {NORM: torch.ones(1)})
    with pytest.raises(CheckpointError, match=r"'model.norm.weight' has shape \[4\] in a and \[1\] in b: .*never broadcast"):
        plan(LINEAR)


def test_vocabularies_that_differ_are_refused_by_name(here: Path) -> None:
    replace(here / "b", llama_tensors(vocabulary=7))
    with pytest.raises(CheckpointError, match=r"\[6, 4\] in a and \[7, 4\] in b: their vocabularies differ"):
        plan(LINEAR)


# Element types.


@pytest.mark.parametrize(
    ("asked", "dtype", "cast"),
    [
        ("", "F32", None),
        ("dtype: bfloat16", "BF16", "BF16"),
        ("dtype: float32", "F32", None),
        ("dtype: bfloat16\nout_dtype: float32", "F32", "BF16"),
        ("out_dtype: float16", "F16", None),
    ],
)
def test_the_result_s_type_and_what_inputs_are_rounded_to(here: Path, asked: str, dtype: str, cast: str | None) -> None:
    recipe = made(f"{LINEAR}{asked}\n")[NORM]
    assert (recipe.dtype, recipe.cast) == (dtype, cast)


def test_without_a_type_the_base_model_s_own(here: Path) -> None:
    replace(here / "b", llama_tensors(dtype=torch.float16))
    assert made(LINEAR)[NORM].dtype == "F32", "the first model's"
    assert made(LINEAR + "base_model: b\n")[NORM].dtype == "F16"


# Digests.


def test_a_digest_changes_with_whatever_could_change_the_bytes(here: Path) -> None:
    before = made(LINEAR)
    variants = [
        made(LINEAR.replace("0.25", "0.26")),
        made(LINEAR + "dtype: float16\n"),
        made(LINEAR + "parameters: {normalize: false}\n"),
        made(LINEAR.replace("model: b", "model: c")),
        made(LINEAR.replace("linear", "task_arithmetic") + "base_model: c\n"),
    ]
    for variant in variants:
        assert all(variant[name].digest != before[name].digest for name in before)
    again = made(LINEAR + "# a remark\n")
    assert {name: recipe.digest for name, recipe in again.items()} == {name: recipe.digest for name, recipe in before.items()}


def test_the_digest_of_another_file_is_another(here: Path) -> None:
    before = made(LINEAR)[NORM].digest
    replace(here / "b", llama_tensors(value=7.0))
    assert made(LINEAR)[NORM].digest != before


@pytest.mark.parametrize(("method", "differs"), [("ties", False), ("dare_linear", True)])
def test_the_seed_matters_to_random_methods_only(here: Path, method: str, differs: bool) -> None:
    text = LINEAR.replace("linear", method) + "base_model: c\nparameters: {density: 0.5}\n"
    first, second = made(text, seed=1), made(text, seed=2)
    assert all((first[name].digest != second[name].digest) == differs for name in first)


# Modules.


def test_a_model_of_one_module_calls_it_default(here: Path) -> None:
    module = """
merge_method: linear
modules:
  default:
    slices:
      - sources: [{model: a, layer_range: [1, 2], parameters: {weight: 1}}]
      - sources: [{model: b, layer_range: [0, 2], parameters: {weight: 1}}]
"""
    recipes = made(module)
    assert [sources(recipes[Q.format(i)]) for i in range(3)] == [[("a", Q.format(1))], [("b", Q.format(0))], [("b", Q.format(1))]]
    assert EMBEDDING in recipes and NORM in recipes
    assert plan(module).model_config["num_hidden_layers"] == 3
    with pytest.raises(ConfigError, match="has no module 'default'"):
        plan(module + "  other:\n    models: [{model: a, parameters: {weight: 1}}]\n")


def test_modules_take_their_own_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An encoder and a decoder: layers by their stack, the embedding with the first module."""
    monkeypatch.chdir(tmp_path)
    names = [f"{side}.block.{layer}.layer.0.q.weight" for side in ("encoder", "decoder") for layer in range(2)]
    names += ["shared.weight", "encoder.final_layer_norm.weight", "decoder.final_layer_norm.weight"]
    for model in "ab":
        tensors = {name: torch.ones(2, 2) for name in names}
        write_model(tmp_path / model, tensors, {"num_layers": 2, "num_decoder_layers": 2})
    text = """
merge_method: passthrough
modules:
  encoder: {models: [{model: a}]}
  decoder: {slices: [{sources: [{model: b, layer_range: [1, 2]}]}]}
"""
    recipes = made(text)
    assert plan(text).model_config["num_layers"] == 2, "which of the two it counts is not known"
    found = {name: sources(recipe)[0] for name, recipe in recipes.items()}
    assert found == {
        "shared.weight": ("a", "shared.weight"),
        "encoder.block.0.layer.0.q.weight": ("a", "encoder.block.0.layer.0.q.weight"),
        "encoder.block.1.layer.0.q.weight": ("a", "encoder.block.1.layer.0.q.weight"),
        "encoder.final_layer_norm.weight": ("a", "encoder.final_layer_norm.weight"),
        "decoder.block.0.layer.0.q.weight": ("b", "decoder.block.1.layer.0.q.weight"),
        "decoder.final_layer_norm.weight": ("b", "decoder.final_layer_norm.weight"),
    }


def test_passthrough_with_a_scale_for_some_tensors(here: Path) -> None:
    recipes = made("""
merge_method: passthrough
models: [{model: a, parameters: {scale: [{filter: down_proj, value: 0}]}}]
""")
    assert weights(recipes[DOWN.format(0)], "scale") == [0.0]
    assert weights(recipes[Q.format(0)], "scale") == [None]
