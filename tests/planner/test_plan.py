"""Plans: a pure function of config, options and headers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from cli.models import SLERP, entry, safetensors_bytes, tensors, write_model
from weft.errors import BudgetError, CheckpointError, ConfigError
from weft.planner.config import load_config
from weft.planner.memory import Budget
from weft.planner.plan import Options, Plan, make_plan, remaining

GiB = 1 << 30
DARE = "models: [{model: b, parameters: {weight: 1, density: 0.5}}]\nbase_model: a\nmerge_method: dare_linear\n"


@pytest.fixture(autouse=True)
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Models a and b in the current folder."""
    monkeypatch.chdir(tmp_path)
    write_model(Path("a"))
    write_model(Path("b"), seed=1)


def plan(text: str = SLERP, *, ram: int = GiB, workers: int = 2, **options: Any) -> Plan:
    return make_plan(load_config(text, "merge.yaml"), Options(Budget(ram, 0, workers), **options))


def test_the_same_again_is_the_same() -> None:
    one, two = plan(), plan()
    assert one.digest == two.digest and one.recipes == two.recipes and one.schedule == two.schedule


def test_the_digest_is_of_what_decides_the_result() -> None:
    digest = plan().digest
    for same in (plan(ram=GiB // 2), plan(workers=5), plan(copy_tokenizer=False), plan(seed=5), plan(SLERP + "name: x\n")):
        assert same.digest == digest
    for other in (plan(SLERP.replace("0.5", "0.6")), plan(SLERP + "dtype: float16\n"), plan(shard_size=1000)):
        assert other.digest != digest
    assert plan(DARE, seed=1).digest != plan(DARE, seed=2).digest


def test_the_digest_changes_with_an_input() -> None:
    digest = plan().digest
    Path("b/model.safetensors").touch()
    assert plan().digest != digest


def test_each_model_is_opened_once() -> None:
    made = plan(SLERP.replace("model: b", "model: a").replace("slerp", "linear").replace("t:", "weight:"))
    assert [str(model.reference) for model in made.models] == ["a"]


def test_the_memory_is_within_the_budget_or_the_error_says_what_would_do() -> None:
    with pytest.raises(BudgetError) as caught:
        plan(ram=1 << 20)
    needed = caught.value.needed
    made = plan(ram=needed)
    assert made.predicted_ram <= needed
    with pytest.raises(BudgetError):
        plan(ram=needed - (1 << 20))


def test_bytes_are_those_of_the_files() -> None:
    made = plan("models: [{model: a}]\nmerge_method: passthrough\n")
    size = sum(tensor.nbytes for tensor in tensors().values())
    assert made.bytes_read() == {"a": size}
    assert made.bytes_written > size
    assert made.parameters == size // 2
    assert sum(place.nbytes for place in made.places) == size


def test_side_files() -> None:
    assert set(plan().side_files) == {"tokenizer.json", "generation_config.json"}
    assert set(plan(copy_tokenizer=False).side_files) == {"generation_config.json"}


def test_remaining_work_is_planned_alone() -> None:
    made = plan()
    numbers = [3, 7]
    graph, order = remaining(made, numbers)
    saved = {data["task"].recipe for _, data in graph.nodes(data=True) if data["kind"] == "save"}
    assert saved == set(numbers)
    assert len(order.steps) < len(made.schedule.steps)
    assert remaining(made, range(len(made.recipes))) == (made.graph, made.schedule)
    empty, nothing = remaining(made, [])
    assert len(empty) == 0 and not nothing.steps


@pytest.mark.parametrize(
    ("slices", "layers"),
    [("[0, 4]", [0, 1, 2, 3]), ("[1, 3]", [1, 2]), ("[3, 4]", [3])],
)
def test_layers_are_numbered_anew(slices: str, layers: list[int]) -> None:
    made = plan(
        f"slices: [{{sources: [{{model: a, layer_range: {slices}}}]}}, {{sources: [{{model: b, layer_range: [0, 1]}}]}}]\n"
        "merge_method: passthrough\n"
    )
    name = "model.layers.{}.mlp.up_proj.weight"
    inputs = {recipe.name: next(recipe.leaves()) for recipe in made.recipes}
    for out, layer in enumerate(layers):
        assert (inputs[name.format(out)].name, inputs[name.format(out)].file.model) == (name.format(layer), "a")
    last = inputs[name.format(len(layers))]
    assert (last.name, last.file.model) == (name.format(0), "b")
    assert name.format(len(layers) + 1) not in inputs
    assert inputs["model.embed_tokens.weight"].file.model == "a" and inputs["lm_head.weight"].file.model == "b"
    assert made.model_config["num_hidden_layers"] == made.layers == len(layers) + 1


def test_integers_are_copied_from_the_base() -> None:
    for name in ("c", "d"):
        write_model(Path(name), tensors() | {"model.position_ids": torch.arange(1 << 12)})
    made = plan(SLERP.replace("model: a", "model: c").replace("model: b", "model: d") + "dtype: float16\n")
    recipe = next(recipe for recipe in made.recipes if recipe.name == "model.position_ids")
    assert (recipe.method, recipe.dtype, next(recipe.leaves()).file.model) == (None, "I64", "c")
    assert any("are not floating-point numbers and are copied" in note for note in made.notes)


def test_errors_come_before_files_are_opened() -> None:
    Path("b/model.safetensors").write_bytes(b"")
    with pytest.raises(ConfigError, match="there is no method"):
        plan(SLERP.replace("slerp", "slurp"))
    with pytest.raises(ConfigError, match="has no parameter"):
        plan(SLERP.replace("t:", "tee:"))
    with pytest.raises(CheckpointError, match=r"b/model\.safetensors: 0 bytes"):
        plan()


def test_a_vast_model_is_planned_from_its_header() -> None:
    """Two models of 2,000 tensors and 1 TiB, whose files hold no data at all."""
    side = 1 << 14
    entries = {
        f"model.layers.{n}.up.weight": entry("F16", [side, side], 2 * side * side * n, 2 * side * side * (n + 1))
        for n in range(2000)
    }
    for name in ("huge_a", "huge_b"):
        write_model(Path(name), {"x": torch.ones(1)}, config={"num_hidden_layers": 2000})
        header = safetensors_bytes(entries)
        with Path(name, "model.safetensors").open("wb") as file:
            file.write(header)
            file.truncate(len(header) + 2 * side * side * 2000)
    made = plan(SLERP.replace("model: ", "model: huge_"))
    assert made.bytes_written > 2 * side * side * 2000
    assert made.predicted_ram <= GiB
