"""The data of a report: nothing that it says of a plan differs from the plan."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import networkx as nx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from checkpoints import llama_config, llama_tensors, write_model
from cli.models import entry, safetensors_bytes
from merges import options, plan
from weft.errors import BudgetError
from weft.planner.config import load_config
from weft.planner.plan import Plan, make_plan
from weft.planner.report_data import COLUMNS, report_data
from weft.planner.report_memory import thinned, usage
from weft.planner.report_parameters import settings as settings_of
from weft.planner.schedule import schedule

MIB = 1 << 20


def headers_only(folder: Path, layers: int = 32, hidden: int = 4096, inner: int = 14336, vocabulary: int = 128256) -> str:
    """A model of 8 B parameters without any data."""
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocabulary, hidden)}
    for layer in range(layers):
        head = f"model.layers.{layer}"
        shapes |= {f"{head}.self_attn.{name}_proj.weight": (hidden, hidden) for name in "qo"}
        shapes |= {f"{head}.self_attn.{name}_proj.weight": (hidden // 4, hidden) for name in "kv"}
        shapes |= {f"{head}.mlp.{name}_proj.weight": (inner, hidden) for name in ("up", "gate")}
        shapes |= {f"{head}.mlp.down_proj.weight": (hidden, inner), f"{head}.input_layernorm.weight": (hidden,)}
        shapes |= {f"{head}.post_attention_layernorm.weight": (hidden,)}
    shapes |= {"model.norm.weight": (hidden,), "lm_head.weight": (vocabulary, hidden)}
    header, end = {}, 0
    for name, shape in shapes.items():
        begin, end = end, end + 2 * math.prod(shape)
        header[name] = entry("BF16", shape, begin, end)
    folder.mkdir()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(safetensors_bytes(header))
        file.truncate(file.tell() + end)
    (folder / "config.json").write_text(json.dumps(llama_config(layers, torch_dtype="bfloat16")))
    return str(folder)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("large")
    return {name: headers_only(root / name) for name in "abc"}


@pytest.fixture(scope="module")
def tiled(large: dict[str, str]) -> Plan:
    """A merge in so little memory that most tensors come in tiles."""
    return ties(large, 256 * MIB)


def slerp(large: Mapping[str, str], t: Any) -> dict[str, Any]:
    models = [{"model": large["a"]}, {"model": large["b"]}]
    return {"merge_method": "slerp", "base_model": large["a"], "models": models, "parameters": {"t": t}}


def average(*models: str) -> dict[str, Any]:
    return {"merge_method": "linear", "models": [{"model": model, "parameters": {"weight": 0.5}} for model in models]}


def ties(large: Mapping[str, str], ram: int) -> Plan:
    models = [{"model": large["b"], "parameters": {"weight": [0, 1], "density": 0.5}}]
    models += [{"model": large["c"], "parameters": {"weight": 0.3, "density": [{"filter": "mlp", "value": 0.2}, {"value": 1}]}}]
    return plan({"merge_method": "ties", "base_model": large["a"], "models": models}, ram=ram)


def tensors(data: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The output tensors as the page reads them."""
    table = data["tensors"]
    assert table["columns"] == list(COLUMNS)
    found = []
    for item in table["items"]:
        row = dict(zip(COLUMNS, item, strict=True))
        for column in ("rest", "shape", "dtype", "method", "parameters", "pattern", "read"):
            row[column] = table[column][row[column]]
        found.append(row | {"name": data["rows"][row["row"]]["prefix"] + row["rest"]})
    return found


# Parameters.


def test_a_gradient_is_shown_as_what_it_comes_to_in_each_layer(large: dict[str, str]) -> None:
    t = [
        {"filter": "self_attn", "value": [0, 0.5, 0.3, 0.7, 1]},
        {"filter": "mlp", "value": [1, 0.5, 0.7, 0.3, 0]},
        {"value": 0.5},
    ]
    (shown,) = report_data(plan(slerp(large, t)))["parameters"]
    assert (shown["merge"], shown["method"], shown["name"], shown["boolean"]) == ("", "slerp", "t", False)
    (whole,) = shown["models"]
    assert whole["model"] is None and whole["constant"] is None
    series = {item["label"]: item["values"] for item in whole["series"]}
    assert set(series) == {"self_attn", "mlp", "input_layernorm, post_attention_layernorm"}
    for label, knots in (("self_attn", [0, 0.5, 0.3, 0.7, 1]), ("mlp", [1, 0.5, 0.7, 0.3, 0])):
        expected = [
            knots[i] + (s - i) * (knots[min(i + 1, 4)] - knots[i])
            for s in (layer / 31 * 4 for layer in range(32))
            for i in [min(math.floor(s), 4)]
        ]
        assert series[label] == pytest.approx(expected)
    assert set(series["input_layernorm, post_attention_layernorm"]) == {0.5}
    assert whole["outside"] == [[name, 0.5] for name in ("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight")]
    kinds = [kind for item in whole["series"] for kind in item["kinds"]]
    assert len(kinds) == len(set(kinds)) == 9


def test_parameters_of_models_are_shown_for_each_but_the_base(large: dict[str, str]) -> None:
    shown = {item["name"]: item for item in report_data(ties(large, 512 * MIB))["parameters"]}
    assert {name for name, item in shown.items() if item["boolean"]} == {"normalize", "rescale"}
    weights = {item["model"]: item for item in shown["weight"]["models"]}
    assert set(weights) == {large["b"], large["c"]}
    assert weights[large["c"]] == {"model": large["c"], "constant": 0.3, "series": [], "outside": []}
    (curve,) = weights[large["b"]]["series"]
    assert curve["values"][0] == 0 and curve["values"][-1] == 1
    density = {item["model"]: item for item in shown["density"]["models"]}
    assert density[large["b"]]["constant"] == 0.5
    assert {item["label"]: item["values"][0] for item in density[large["c"]]["series"]}["mlp"] == 0.2


def test_a_model_that_stands_twice_has_two_curves(tmp_path: Path) -> None:
    write_model(tmp_path / "a", llama_tensors(), llama_config())
    models = [{"model": str(tmp_path / "a"), "parameters": {"weight": weight}} for weight in (0.25, 0.75)]
    shown = report_data(plan({"merge_method": "linear", "models": models}))["parameters"]
    weights = next(item["models"] for item in shown if item["name"] == "weight")
    assert [(item["model"], item["constant"]) for item in weights] == [
        (str(tmp_path / "a"), 0.25),
        (f"{tmp_path / 'a'} (2)", 0.75),
    ]


def test_a_recipe_that_names_no_models_has_their_files_names(large: dict[str, str]) -> None:
    recipe = plan(average(large["a"], large["b"])).recipes[0]
    assert list(settings_of(recipe)) == [(None, "normalize", 1.0), (large["a"], "weight", 0.5), (large["b"], "weight", 0.5)]
    assert list(settings_of(replace(recipe, sources=()))) == list(settings_of(recipe))


def test_stages_show_their_own_parameters(large: dict[str, str]) -> None:
    models = [{"model": model, "parameters": {"weight": 0.5}} for model in ("chat", large["c"])]
    stages = [{"name": "chat", **slerp(large, [0.2, 0.8])}, {"merge_method": "linear", "models": models}]
    made = make_plan(load_config("\n---\n".join(map(json.dumps, stages))), options(4096 * MIB))
    data = report_data(made)
    shown = {(item["merge"], item["name"]): item["models"] for item in data["parameters"]}
    assert set(shown) == {("", "weight"), ("", "normalize"), ("chat", "t")}
    assert [item["model"] for item in shown["", "weight"]] == ["chat", large["c"]]
    (t,) = shown["chat", "t"]
    assert t["series"][0]["values"][0] == 0.2 and t["series"][0]["values"][-1] == 0.8
    works = {tuple(group[1]) for item in tensors(data) for group in item["pattern"][1] if group[0] == "compute"}
    assert {("chat: slerp", "passes and map"), ("linear", "map")} <= works


# Memory.


def some_graph(loads: list[int], computes: list[tuple[list[int], list[int], int]]) -> nx.DiGraph[int]:
    """`computes`: which of the loads, which of the earlier computes (modulo how many there are), bytes of the result."""
    graph: nx.DiGraph[int] = nx.DiGraph()
    for n, nbytes in enumerate(loads):
        graph.add_node(n, kind="load", bytes=nbytes, position=n)
    nodes: list[int] = []
    for wanted, inputs, nbytes in computes:
        node = graph.number_of_nodes()
        graph.add_node(node, kind="compute", bytes=nbytes, position=node)
        graph.add_edges_from((n % len(loads), node) for n in wanted)
        graph.add_edges_from((nodes[n % len(nodes)], node) for n in inputs if nodes)
        nodes.append(node)
    for node in nodes:
        if not any(graph.nodes[n]["kind"] == "compute" for n in graph.successors(node)):
            save = graph.number_of_nodes()
            graph.add_node(save, kind="save", bytes=0, position=save)
            graph.add_edge(node, save)
    return graph


few = st.lists(st.integers(0, 9), max_size=3)
sizes = st.sampled_from([0, 1, 1, 2, 5, 13])
graphs = st.builds(
    some_graph, st.lists(sizes, min_size=1, max_size=8), st.lists(st.tuples(few, st.one_of(st.just([]), few), sizes), max_size=10)
)


@given(graphs, st.integers(4, 60), st.integers(0, 30))
@settings(max_examples=100, deadline=None)
def test_what_is_held_never_exceeds_the_pool(graph: nx.DiGraph[int], capacity: int, pipeline: int) -> None:
    try:
        made = schedule(graph, capacity, pipeline)
    except BudgetError:
        return
    found = usage(made)
    held = [sum(parts) for parts in zip(found.kept, found.own, found.ahead, strict=True)]
    assert len(held) == len(made.steps) and all(0 <= n <= made.arena for n in held)
    for i, step in enumerate(made.steps):  # at least what the step itself touches
        buffers = {b.task: b.nbytes for b in (*step.loads, *step.resident, *([step.output] if step.output else []))}
        assert found.kept[i] + found.own[i] >= sum(buffers.values())
    few, numbers = thinned(found, 3)
    assert list(numbers) == sorted(set(numbers)) and len(numbers) == min(3, len(held))
    if held:
        assert max(a + b + c for a, b, c in zip(few.kept, few.own, few.ahead, strict=True)) == max(held)


def test_the_schedule_of_a_merge_uses_the_pool_that_was_promised(tiled: Plan) -> None:
    made = tiled
    memory = report_data(made)["memory"]
    held = [sum(parts) for parts in zip(memory["kept"], memory["own"], memory["ahead"], strict=True)]
    assert memory["pool"] // 2 < max(held) <= memory["pool"] == made.schedule.arena
    assert sum(memory["fixed"].values()) + memory["pool"] == made.predicted_ram
    assert memory["steps"] == len(made.schedule.steps) > len(memory["at"])
    assert all(0 <= number < len(made.recipes) for number in memory["tensor"])


# Tensors and tasks.


@pytest.mark.parametrize("in_tiles", [True, False])
def test_tensors_are_those_of_the_plan(large: dict[str, str], tiled: Plan, in_tiles: bool) -> None:
    made = tiled if in_tiles else ties(large, 4096 * MIB)
    data = report_data(made)
    found = tensors(data)
    assert [(item["name"], tuple(item["shape"])) for item in found] == [(r.name, r.shape) for r in made.recipes]
    read = [sum(item["read"][i] for item in found) for i in range(len(made.stores))]
    assert read == list(made.bytes_read().values())
    counts = {"load": 0, "compute": 0, "save": 0}
    for item in found:
        leaves, groups, edges = item["pattern"]
        assert [leaf[4] for leaf in leaves] == [None] * 3 and not any(leaf[3] for leaf in leaves)
        assert all(groups[a][0] != "save" or groups[b][0] == "save" for a, b in edges)
        for kind, what, tasks, _ in groups:
            counts[kind] += tasks
            if kind == "save":
                assert what == item["shard"]
    assert counts == data["about"]["tasks"]


def test_the_page_of_a_large_model_is_small(tiled: Plan) -> None:
    assert tiled.graph.number_of_nodes() > 12_000
    assert len(json.dumps(report_data(tiled))) < 300_000


def test_layers_that_moved_are_found_where_they_came_from(large: dict[str, str]) -> None:
    slices = [
        {"sources": [{"model": large["a"], "layer_range": [0, 24]}]},
        {"sources": [{"model": large["a"], "layer_range": [8, 32]}]},
    ]
    data = report_data(plan({"merge_method": "passthrough", "slices": slices}))
    assert [row["label"] for row in data["rows"]] == ["before the layers", *(f"layer {n}" for n in range(48)), "after the layers"]
    item = next(item for item in tensors(data) if item["name"] == "model.layers.30.mlp.up_proj.weight")
    assert item["pattern"][0] == [[0, "model.safetensors", "BF16", -16, None]]
    assert data["parameters"] == []


def test_a_tensor_read_for_two_names_both(tmp_path: Path) -> None:
    config = llama_config(tie_word_embeddings=True)
    write_model(tmp_path / "tied", llama_tensors(head=False), config)
    write_model(tmp_path / "untied", llama_tensors(value=2.0), llama_config())
    models = [{"model": str(tmp_path / name), "parameters": {"weight": 1}} for name in ("untied", "tied")]
    data = report_data(plan({"merge_method": "linear", "models": models}))
    names = [item["name"] for item in tensors(data)]
    head = names.index("lm_head.weight")
    embedding = names.index("model.embed_tokens.weight")
    leaf = tensors(data)[head]["pattern"][0][1]
    assert leaf[0] == 1 and leaf[4] == "model.embed_tokens.weight"
    assert data["tensors"]["neighbours"] == {str(head): [embedding], str(embedding): [head]}


def test_several_stacks_have_rows_of_their_own(tmp_path: Path) -> None:
    names = [f"{stack}.layers.{n}.fc.weight" for stack in ("encoder", "decoder") for n in range(2)]
    content = {name: torch.ones(2, 2) for name in ("shared.weight", *names)}
    for model in "ab":
        write_model(tmp_path / model, content, {"num_layers": 2, "encoder_layers": 2, "decoder_layers": 2})
    models = [{"model": str(tmp_path / model), "parameters": {"weight": [0.2, 1]}} for model in "ab"]
    config = {"merge_method": "linear", "modules": {"encoder": {"models": models}, "decoder": {"models": models}}}
    data = report_data(plan(config))
    labels = {row["label"] for row in data["rows"]}
    assert {"encoder.layers 0", "encoder.layers 1", "decoder.layers 0", "decoder.layers 1"} <= labels
    weight = next(item for item in data["parameters"] if item["name"] == "weight")
    assert {series["stack"] for series in weight["models"][0]["series"]} == {"encoder.layers", "decoder.layers"}


def test_what_is_done_and_measured_is_passed_on(large: dict[str, str]) -> None:
    data = report_data(plan(slerp(large, 0.5)), state="unfinished", done={3, 1}, measured={"seconds": 1.5})
    assert data["reuse"] == {"state": "unfinished", "done": [1, 3]}
    assert data["measured"] == {"seconds": 1.5}
    assert json.loads(json.dumps(data)) == data
