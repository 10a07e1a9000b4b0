"""Models of which one has parts or names that another does not have: what is merged, kept, left out, and refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from checkpoints import Tensors, llama_config, llama_tensors, write_model
from vocabularies import word_tokenizer
from weft.errors import CheckpointError
from weft.planner.config import load_config
from weft.planner.explain import Stored, explain, find_tensor
from weft.planner.memory import Budget
from weft.planner.plan import Options, Plan, make_plan
from weft.planner.recipe import Recipe

UP = "model.layers.{}.mlp.down_proj.weight"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def plan(text: str) -> Plan:
    return make_plan(load_config(text), Options(Budget(1 << 30, 0, 1)))


def merge(*models: str, method: str = "linear", base: str | None = None) -> Plan:
    """A merge of models of weight 0.5 each."""
    each = "".join(f"  - {{model: {model}, parameters: {{weight: 0.5}}}}\n" for model in models)
    return plan(f"merge_method: {method}\n{f'base_model: {base}' if base else ''}\nmodels:\n{each}")


def sources(found: Plan, name: str) -> list[str]:
    return [tensor.file.model for tensor in recipe(found, name).leaves()]


def recipe(found: Plan, name: str) -> Recipe:
    return next(recipe for recipe in found.recipes if recipe.name == name)


def names(found: Plan) -> set[str]:
    return {recipe.name for recipe in found.recipes}


def ones(*shape: int) -> torch.Tensor:
    return torch.ones(shape)


def under(prefix: str, tensors: Tensors) -> Tensors:
    return {f"{prefix}{name}": tensor for name, tensor in tensors.items()}


HEADS: dict[str, Tensors] = {
    "mtp": {"mtp.fc.weight": ones(4, 8), "mtp.norm.weight": ones(4)},
    "mtp in the model": {"model.mtp.layers.0.eh_proj.weight": ones(4, 8), "model.mtp.embed_tokens.weight": ones(6, 4)},
    "modules of their own": {"model.mtp_block.0.fc.weight": ones(4, 8), "model.mtp_emb_norm.0.weight": ones(4)},
    "a layer behind the last": {"model.layers.2.eh_proj.weight": ones(4, 8), "model.layers.2.embed_tokens.weight": ones(6, 4)},
    "two layers behind": {f"model.layers.{i}.{n}.weight": ones(4, 8) for i in (2, 3) for n in ("eh_proj", "mlp.down_proj")},
    "another head": {"medusa_head.0.0.linear.weight": ones(4, 4), "medusa_head.0.0.linear.bias": ones(4)},
}


@pytest.fixture(params=HEADS)
def head(request: pytest.FixtureRequest, here: Path) -> Tensors:
    """A release with tensors that its fine-tunes a and b lack; configs speak of them, as transformers saves them."""
    config = llama_config(num_nextn_predict_layers=1)
    write_model(here / "release", llama_tensors() | HEADS[request.param], config)
    for name in "ab":
        write_model(here / name, llama_tensors(), config)
    return HEADS[request.param]


@pytest.mark.parametrize(
    ("method", "models", "base"),
    [
        ("linear", ("release", "a", "b"), None),
        ("linear", ("a", "b", "release"), None),
        ("linear", ("a", "b"), "release"),
        ("task_arithmetic", ("a",), "release"),
        ("ties", ("a", "b"), "release"),
        ("ties", ("b", "release"), "a"),
        ("karcher", ("a", "b", "release"), None),
        ("model_stock", ("a", "b"), "release"),
        ("arcee_fusion", ("a",), "release"),
        ("sce", ("a", "b"), "release"),
    ],
)
def test_what_one_model_has_of_heads_is_kept_with_any_method(
    head: Tensors, method: str, models: tuple[str, ...], base: str | None
) -> None:
    found = merge(*models, method=method, base=base)
    assert names(found) == {*llama_tensors(), *head}
    for name in head:
        assert recipe(found, name).method is None
        assert sources(found, name) == ["release"]
    assert found.kept == len(head)
    kept = [note for note in found.notes if "kept from release: " in note]
    assert kept and all(" has none of them" in note or " have none of them" in note for note in kept)
    assert found.model_config["num_nextn_predict_layers"] == ("medusa_head.0.0.linear.weight" not in head)


def test_nothing_is_said_where_all_models_have_a_head(head: Tensors, here: Path) -> None:
    write_model(here / "again", llama_tensors() | head, llama_config(num_nextn_predict_layers=1))
    found = merge("release", "again")
    assert not [note for note in found.notes if "config.json" not in note] and not found.kept
    assert all(sources(found, name) == ["release", "again"] for name in head)


def test_config_counts_the_heads_that_are_there(head: Tensors, here: Path) -> None:
    """Transformers keeps the number though it dropped the layers."""
    found = merge("a", "b")
    assert found.model_config["num_nextn_predict_layers"] == 0
    assert any("num_nextn_predict_layers is 0 and not 1" in note for note in found.notes)


@pytest.mark.parametrize("nested", [False, True])
def test_config_counts_the_heads_that_come_from_another_model(here: Path, nested: bool) -> None:
    def config(**changes: Any) -> dict[str, Any]:
        inner = llama_config(**changes)
        return {"model_type": "vlm", "text_config": inner} if nested else inner

    write_model(here / "a", llama_tensors(), config(mtp_num_hidden_layers=0))
    write_model(here / "release", llama_tensors() | HEADS["mtp"], config(mtp_num_hidden_layers=1, mtp_use_embeddings=False))
    found = merge("a", "release").model_config
    settings = found["text_config"] if nested else found
    assert (settings["mtp_num_hidden_layers"], settings["mtp_use_embeddings"]) == (1, False)


def test_lists_lose_the_entries_of_heads_that_are_not_there(here: Path) -> None:
    config = llama_config(num_nextn_predict_layers=1, layer_types=["x", "y", "z"])
    write_model(here / "a", llama_tensors(), config)
    assert merge("a", "a").model_config["layer_types"] == ["x", "y"]


STACKED = """
merge_method: passthrough
slices:
  - sources: [{model: release, layer_range: [0, 2]}]
  - sources: [{model: release, layer_range: [1, 2]}]
"""


def test_layers_behind_the_last_are_left_out_where_that_is_another(here: Path) -> None:
    head = HEADS["two layers behind"]
    write_model(here / "release", llama_tensors() | head, llama_config(num_nextn_predict_layers=2))
    found = plan(STACKED)
    assert names(found) == set(llama_tensors(layers=3))
    assert (found.model_config["num_hidden_layers"], found.model_config["num_nextn_predict_layers"]) == (3, 0)
    assert any("4 tensors after the last layer of release are left out" in note for note in found.notes)


def test_layers_behind_the_last_stay_where_slices_keep_the_depth(here: Path) -> None:
    head = HEADS["two layers behind"]
    write_model(here / "release", llama_tensors() | head, llama_config(num_nextn_predict_layers=2))
    found = plan(STACKED.replace("[0, 2]", "[0, 1]"))
    assert names(found) == {*llama_tensors(), *head}
    assert found.model_config["num_nextn_predict_layers"] == 2


def test_heads_with_names_of_their_own_stay_in_a_stack(here: Path) -> None:
    write_model(here / "release", llama_tensors() | HEADS["mtp"], llama_config(num_nextn_predict_layers=1))
    found = plan(STACKED)
    assert names(found) == {*llama_tensors(layers=3), *HEADS["mtp"]}
    assert found.model_config["num_nextn_predict_layers"] == 1


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(("base", "other"), [("release", "tuned"), ("tuned", "release")])
def test_token_rows_of_a_head_that_one_model_has(here: Path, base: str, other: str, tied: bool) -> None:
    """A layer behind the last has an embedding and a head of its own: neither stands for the model's, and both grow with it."""
    words = ["<unk>", *"abcdefghijkl"]
    for name, tokens in (("release", words), ("tuned", [*words, "x"])):
        rows = len(tokens)
        own = {f"model.layers.2.{n}.weight": torch.ones(rows, 4) for n in ("embed_tokens", "shared_head.head")}
        config = llama_config(vocab_size=rows, tie_word_embeddings=tied and name == "release")
        head = not config["tie_word_embeddings"]
        tokenizer = json.dumps(word_tokenizer({token: i for i, token in enumerate(tokens)}))
        tensors = llama_tensors(vocabulary=rows, head=head) | (own if name == "release" else {})
        write_model(here / name, tensors, config, tokenizer=tokenizer)
    found = plan(f"""
merge_method: task_arithmetic
base_model: {base}
tokenizer_source: union
models: [{{model: {other}, parameters: {{weight: 1}}}}]
""")
    sizes = {recipe.shape[0] for recipe in found.recipes if "embed" in recipe.name or "head" in recipe.name}
    assert sizes == {found.model_config["vocab_size"]} == {14}
    assert found.kept == 2


# What is really missing.


def _without(*gone: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {name: tensor for name, tensor in tensors.items() if name not in gone}


TOWER: Tensors = {f"visual.blocks.{i}.attn.{n}.weight": ones(4, 4) for i in range(4) for n in ("proj", "qkv")}
TOWER |= {"visual.norm.weight": ones(4), "visual.norm.bias": ones(4), "visual.patch.proj.weight": ones(4, 3)}

LOSSES = {
    "a weight of a layer": (UP.format(1),),
    "a norm": ("model.norm.weight",),
    "the embedding": ("model.embed_tokens.weight",),
    "the head": ("lm_head.weight",),
    "a weight of a layer behind the last": ("model.layers.2.eh_proj.weight",),
    "a layer of another stack": tuple(name for name in TOWER if ".blocks.3." in name),
    "a weight of another stack": ("visual.blocks.2.attn.qkv.weight",),
    "a weight beside its bias": ("visual.norm.weight",),
}


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("gone", LOSSES.values(), ids=LOSSES)
def test_a_model_that_lost_tensors_is_refused(here: Path, gone: tuple[str, ...], first: bool) -> None:
    whole = llama_tensors() | TOWER | HEADS["a layer behind the last"]
    config = llama_config(vision_config={"depth": 4})
    write_model(here / "whole", whole, config)
    write_model(here / "broken", _without(*gone)(whole), config)
    with pytest.raises(CheckpointError, match=rf"broken: missing weights: it has no '{gone[0]}', which whole has; fetch"):
        merge(*(("broken", "whole") if first else ("whole", "broken")))


def test_other_architectures_are_not_said_to_be_incomplete(here: Path) -> None:
    other = {name.replace("mlp.down_proj", "moe.w2"): tensor for name, tensor in llama_tensors().items()}
    write_model(here / "a", llama_tensors(), llama_config())
    write_model(here / "b", other, llama_config())
    with pytest.raises(CheckpointError) as caught:
        merge("a", "b")
    assert "fetch it again" not in str(caught.value)
    for name in (UP.format(0), "model.layers.0.moe.w2.weight"):
        assert name in str(caught.value)


def test_a_module_of_embeddings_is_no_part(here: Path) -> None:
    layers = {f"encoder.layer.{i}.dense.weight": ones(4, 4) for i in range(2)}
    more = {"embeddings.word_embeddings.weight": ones(6, 4), "embeddings.norm.weight": ones(4)}
    write_model(here / "a", layers | more, {"num_hidden_layers": 2})
    write_model(here / "b", layers, {"num_hidden_layers": 2})
    with pytest.raises(
        CheckpointError, match=r"b: missing weights: it has no 'embeddings\.\w+\.weight', which a has; fetch it again"
    ):
        merge("a", "b")


@pytest.mark.parametrize("models", [("a", "b"), ("b", "a")])
def test_weights_that_no_layer_has_are_another_architecture(here: Path, models: tuple[str, str]) -> None:
    norms = {f"model.layers.{i}.self_attn.q_norm.weight": ones(4) for i in range(2)}
    write_model(here / "a", llama_tensors() | norms, llama_config())
    write_model(here / "b", llama_tensors(), llama_config())
    with pytest.raises(CheckpointError, match=r"b and a are of different .*: no layer of b has a 'self_attn.q_norm.weight'"):
        merge(*models)


def test_fused_matrices_that_have_no_weight_in_their_names_are_no_optional_ones(here: Path) -> None:
    for name, fused in (("a", "gate_up_proj"), ("b", "w13")):
        experts = {f"model.layers.{i}.experts.{fused}": ones(2, 4, 4) for i in range(2)}
        write_model(here / name, llama_tensors() | experts, llama_config())
    with pytest.raises(CheckpointError, match=r"of different architectures: only a has .*gate_up_proj', and only b has .*w13'"):
        merge("a", "b")


# One architecture under other names.


@pytest.fixture
def renamed(here: Path) -> dict[str, str]:
    """Models `old` and `new` of one architecture; the names in `new` by those in `old`."""
    old = llama_tensors() | TOWER
    new = {
        name: f"model.language_model.{name[6:]}" if name.startswith("model.") else f"model.{name}" if name in TOWER else name
        for name in old
    }
    write_model(here / "old", old, llama_config())
    write_model(here / "new", {new[name]: tensor for name, tensor in old.items()}, llama_config())
    return new


def test_names_are_those_of_the_first_model(renamed: dict[str, str]) -> None:
    for models, written in (("old", "new"), set(renamed)), (("new", "old"), set(renamed.values())):
        found = merge(*models)
        assert names(found) == written
        assert all(len(recipe.inputs) == 2 for recipe in found.recipes)
        assert any(f"{models[1]} has other names for the tensors of {models[0]}" in note for note in found.notes)
    found = merge("old", "new")
    assert [tensor.name for name in renamed for tensor in recipe(found, name).leaves()] == [n for p in renamed.items() for n in p]


def test_names_are_those_of_the_base_model(renamed: dict[str, str]) -> None:
    assert names(merge("old", method="ties", base="new")) == set(renamed.values())
    assert names(merge("old", "new", base="new")) == set(renamed.values())


def test_filters_of_a_model_go_by_its_own_names_and_others_by_those_of_the_result(renamed: dict[str, str]) -> None:
    found = plan("""
merge_method: task_arithmetic
base_model: old
models:
  - model: new
    parameters:
      weight: [{filter: model.language_model, value: 2}, {value: 3}]
parameters:
  lambda: [{filter: model.language_model, value: 5}, {filter: model.layers, value: 7}, {value: 11}]
""")
    values = {name: recipe(found, name).arguments for name in (UP.format(0), "visual.norm.weight")}
    assert [(v.models[0]["weight"], v.shared["lambda"]) for v in values.values()] == [(2.0, 7.0), (3.0, 11.0)]
    made = explain(found, find_tensor(found, UP.format(0))).made
    assert isinstance(made.inputs[0], Stored) and made.inputs[0].tensor == renamed[UP.format(0)]
    assert made.inputs[0].parameters[0].filter == "model.language_model"
    assert [origin.filter for origin in made.shared if origin.parameter == "lambda"] == ["model.layers"]


def test_layers_of_models_with_other_names_are_stacked(renamed: dict[str, str]) -> None:
    found = plan("""
merge_method: passthrough
slices:
  - sources: [{model: old, layer_range: [0, 2]}]
  - sources: [{model: new, layer_range: [1, 2]}]
""")
    assert names(found) == {*llama_tensors(layers=3), *TOWER}
    assert [tensor.name for tensor in recipe(found, UP.format(2)).leaves()] == [renamed[UP.format(1)]]


def test_names_that_could_mean_two_things_are_refused_with_both(here: Path) -> None:
    twin = {f"layers.{i}.fc.weight": ones(4, 4) for i in range(2)}
    write_model(
        here / "a", under("query.", twin) | under("passage.", {name: t + 1 for name, t in twin.items()}), {"num_hidden_layers": 2}
    )
    write_model(here / "b", twin, {"num_hidden_layers": 2})
    with pytest.raises(CheckpointError, match=r"line 5, models\[1\].model: b and a have other names .*'(query|passage).* or '"):
        merge("a", "b")


# Models with a head or a tower, and models without.

TEXT: dict[str, Any] = {"architectures": ["LlamaForCausalLM"]}
VISION: dict[str, Any] = {"architectures": ["VlmForConditionalGeneration"], "model_type": "vlm", "tie_word_embeddings": False}


@pytest.fixture
def towers(here: Path) -> Path:
    """Text models t and u; models v and w of text and images, which hold such a text model, and a part in a single tensor."""
    for i, name in enumerate("tu"):
        write_model(here / name, llama_tensors(value=float(i)), llama_config(**TEXT))
    for name in "vw":
        tensors = {n.replace("model.", "model.language_model."): t for n, t in llama_tensors().items()}
        more = under("model.", TOWER) | {"model.projector.weight": ones(4, 4)}
        write_model(here / name, tensors | more, {**VISION, "text_config": llama_config(), "vision_config": {"depth": 4}})
    return here


def test_a_text_model_is_merged_into_the_text_part(towers: Path) -> None:
    found = merge("t", "v")
    assert found.base_name == "t" and names(found) == set(llama_tensors())
    found = merge("v", "t")
    language = {name.replace("model.", "model.language_model.") for name in llama_tensors()}
    assert all(sources(found, name) == ["v", "t"] for name in language)
    assert all(sources(found, name) == ["v"] for name in names(found) - language)
    assert found.kept == len(TOWER) + 1 == len(names(found)) - len(language)


def test_task_vectors_of_a_tower_are_those_of_the_models_that_have_one(towers: Path) -> None:
    """To such a sum a model without the part gives nothing; a mean would be another, and the part is kept."""
    found = merge("t", "w", method="task_arithmetic", base="v")
    assert sources(found, "model.visual.norm.weight") == ["w", "v"] and not found.kept
    assert any("are merged from w, v alone: t has none of them" in note for note in found.notes)
    assert sources(merge("t", "w", "v"), "model.norm.weight") == ["t", "w", "v"]
    assert sources(merge("v", "w", "t"), "model.visual.norm.weight") == ["v"]


@pytest.mark.parametrize("base", [None, "t"])
def test_the_base_model_decides_whether_there_is_a_tower(towers: Path, base: str | None) -> None:
    found = merge("t", "v", base=base) if base is None else merge("u", "v", method="ties", base=base)
    assert names(found) == set(llama_tensors())
    assert found.model_config["architectures"] == TEXT["architectures"]
    assert any(f"{len(TOWER)} tensors under 'model.visual' of v are left out: t, which decides" in note for note in found.notes)


def test_a_text_model_takes_the_place_of_the_base_models_own(towers: Path) -> None:
    """What the models do not have comes from the base model, also where a method takes no base."""
    found = plan("merge_method: passthrough\nbase_model: v\nmodels: [{model: t}]")
    assert sources(found, "model.language_model.norm.weight") == ["t"]
    assert sources(found, "model.visual.norm.weight") == ["v"]


def test_a_tower_comes_from_one_model_where_slices_of_others_lack_it(towers: Path) -> None:
    found = plan("""
merge_method: passthrough
base_model: v
slices:
  - sources: [{model: t, layer_range: [0, 2]}]
  - sources: [{model: w, layer_range: [1, 2]}]
""")
    assert {source for name in TOWER for source in sources(found, f"model.{name}")} == {"v"}
    assert found.model_config["text_config"]["num_hidden_layers"] == 3


@pytest.mark.parametrize("config", [{}, TEXT, {"architectures": ["LlamaModel"]}])
def test_a_model_saved_without_its_head(here: Path, config: dict[str, Any]) -> None:
    """As AutoModel saves it: the names lack their first part, whatever config.json says."""
    bare = {name.removeprefix("model."): tensor for name, tensor in llama_tensors(head=False).items()}
    write_model(here / "whole", llama_tensors(), llama_config(**TEXT))
    write_model(here / "bare", bare, llama_config(**config))
    found = merge("whole", "bare")
    assert names(found) == set(llama_tensors())
    assert sources(found, "lm_head.weight") == ["whole"] and found.kept == 1
    found = merge("bare", "whole")
    assert names(found) == set(bare)
    assert any("1 tensors under 'lm_head' of whole are left out" in note for note in found.notes)


def test_a_head_of_a_class_of_its_own(here: Path) -> None:
    """A classifier takes the rest of a language model; its own head stays."""
    score = {"score.weight": ones(2, 4)}
    write_model(here / "a", llama_tensors(head=False) | score, llama_config(architectures=["LlamaForSequenceClassification"]))
    write_model(here / "b", llama_tensors(), llama_config(**TEXT))
    assert names(merge("a", "b")) == {*llama_tensors(head=False), *score}
    assert names(merge("b", "a")) == set(llama_tensors())
