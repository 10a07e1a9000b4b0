"""A finished folder and a plan that is a little different: what changed is computed, the rest reused, and why is known."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from merges import hashes, linear, merge, options, plan, recipe, small_tensors, write_model, write_two
from weft.engine.events import Event, TaskStarted, TensorDurable
from weft.engine.folder import OutputFolder
from weft.engine.reuse import Outlook, outlook, state_of
from weft.engine.run import run
from weft.errors import DiskError
from weft.planner.config import load_config
from weft.planner.plan import Plan, make_plan
from weft.planner.reasons import Change, summarise

SHARD = 3000
"""Bytes: six shards of one or two tensors."""


def slerp(base: Path, other: Path, mlp: float = 0.4) -> dict[str, Any]:
    return {**recipe("slerp", base, other), "parameters": {"t": [{"filter": "mlp", "value": mlp}, {"value": 0.4}]}}


def seen(made: Plan, out: Path) -> tuple[Outlook, list[Change]]:
    found = outlook(made, out)
    assert found is not None
    return found, list(summarise(found.reasons))


def same_as_fresh(config: dict[str, Any], out: Path, tmp_path: Path, **more: Any) -> bool:
    fresh = tmp_path / "fresh"
    merge(config, fresh, **more)
    return hashes(out) == hashes(fresh)


def test_only_what_changed_is_computed(tmp_path: Path) -> None:
    base, other = write_two(tmp_path)
    out = tmp_path / "out"
    merge(slerp(base, other), out, shard_size=SHARD)
    untouched = {path.name: path.stat().st_ino for path in out.glob("*.safetensors")}
    found, changes = seen(plan(slerp(base, other, 0.7), shard_size=SHARD), out)
    assert (found.reused, found.copied, len(found.kept_shards)) == (7, 0, 4)
    assert [change.text(9) for change in changes] == ["t changed for mlp.down_proj (2 tensors): 0.4 → 0.7"]
    events: list[Event] = []
    summary = merge(slerp(base, other, 0.7), out, events.append, shard_size=SHARD)
    assert (summary.computed, summary.reused) == (2, 7)
    computed = {event.tensor for event in events if isinstance(event, TaskStarted) and event.kind == "compute"}
    assert computed == {f"model.layers.{i}.mlp.down_proj.weight" for i in range(2)}
    for name in found.kept_shards:
        assert (out / name).stat().st_ino == untouched[name]
    assert same_as_fresh(slerp(base, other, 0.7), out, tmp_path, shard_size=SHARD)


def test_another_shard_size_moves_bytes_only(tmp_path: Path) -> None:
    base, other = write_two(tmp_path)
    out = tmp_path / "out"
    merge(linear(base, other), out, shard_size=SHARD)
    for size in (10**9, 4000, SHARD):
        made = plan(linear(base, other), shard_size=size)
        assert state_of(made, out) == "another"
        found, changes = seen(made, out)
        assert found.reused == 9 and not changes
        events: list[Event] = []
        summary = merge(linear(base, other), out, events.append, shard_size=size)
        assert (summary.computed, summary.reused, summary.bytes_read) == (0, 9, 0)
        assert {event.kind for event in events if isinstance(event, TaskStarted)} <= {"copy"}
    assert same_as_fresh(linear(base, other), out, tmp_path, shard_size=SHARD)


@pytest.mark.parametrize(
    ("method", "computed"), [("dare_ties", 9), ("linear", 0)], ids=["a method that draws lots", "one that does not"]
)
def test_another_seed(tmp_path: Path, method: str, computed: int) -> None:
    config, out = recipe(method, *write_two(tmp_path)), tmp_path / "out"
    merge(config, out)
    made = plan(config, seed=3)
    if computed:
        _, changes = seen(made, out)
        assert [change.text(9) for change in changes] == ["the seed changed for all 9 tensors: 0 → 3"]
        assert merge(config, out, seed=3).computed == computed
        assert same_as_fresh(config, out, tmp_path, seed=3)
    else:
        assert run(made, out).already_complete


def changed_input(base: Path, other: Path) -> tuple[dict[str, Any], str]:
    os.utime(other / "model.safetensors", ns=(1, 1))
    return slerp(base, other), f"{other}/model.safetensors changed for all 9 tensors"


def changed_method(base: Path, other: Path) -> tuple[dict[str, Any], str]:
    return recipe("ties", base, other), "the method changed for all 9 tensors: slerp → ties"


def changed_dtype(base: Path, other: Path) -> tuple[dict[str, Any], str]:
    return {**slerp(base, other), "out_dtype": "float16"}, "dtype changed for all 9 tensors: F32 → F16"


def changed_model(base: Path, other: Path) -> tuple[dict[str, Any], str]:
    third = write_model(other.parent / "third", small_tensors(3))
    return slerp(base, third), "other models are merged for all 9 tensors"


@pytest.mark.parametrize("change", [changed_input, changed_method, changed_dtype, changed_model])
def test_why_all_is_computed(tmp_path: Path, change: Callable[[Path, Path], tuple[dict[str, Any], str]]) -> None:
    base, other = write_two(tmp_path)
    merge(slerp(base, other), tmp_path / "out")
    config, reason = change(base, other)
    found, changes = seen(plan(config), tmp_path / "out")
    assert found.reused == 0 and reason in [item.text(9) for item in changes]
    assert merge(config, tmp_path / "out").computed == 9
    assert same_as_fresh(config, tmp_path / "out", tmp_path)


MODELS = Path(__file__).parents[1] / "golden" / "models"


def test_another_tokenizer_changes_embeddings_only(tmp_path: Path) -> None:
    models = [{"model": str(MODELS / f"llama-{name}"), "parameters": {"weight": 0.5}} for name in ("chatml", "tools")]
    config = {"merge_method": "linear", "models": models, "base_model": str(MODELS / "llama-base")}
    out = tmp_path / "out"
    merge(config | {"tokenizer_source": "union"}, out)
    config["tokenizer_source"] = str(MODELS / "llama-tools")
    found, changes = seen(plan(config), out)
    names = {"model.embed_tokens.weight", "lm_head.weight"}
    assert set(found.reasons) == names and {change.kind for change in changes} <= {"tokens", "shape"}
    assert merge(config, out).computed == len(names)
    assert same_as_fresh(config, out, tmp_path)


def test_a_change_in_an_earlier_stage_is_named(tmp_path: Path) -> None:
    base, other = write_two(tmp_path)

    def stages(weight: float) -> Plan:
        models = f"[{{model: {base}, parameters: {{weight: 1}}}}, {{model: {other}, parameters: {{weight: {weight}}}}}]"
        first = f"name: first\nmerge_method: linear\nmodels: {models}\n"
        second = f"merge_method: slerp\nbase_model: {base}\nmodels: [{{model: first}}]\nparameters: {{t: 0.4}}\n"
        return make_plan(load_config(f"{first}---\n{second}"), options())

    run(stages(0.5), tmp_path / "out")
    found, changes = seen(stages(0.75), tmp_path / "out")
    assert found.reused == 0
    assert [change.text(9) for change in changes] == ["weight changed for all 9 tensors: 0.5 → 0.75"]


def test_layers_that_move_are_found_by_what_made_them(tmp_path: Path) -> None:
    base, _ = write_two(tmp_path)

    def slices(*ranges: tuple[int, int]) -> dict[str, Any]:
        return {
            "merge_method": "passthrough",
            "slices": [{"sources": [{"model": str(base), "layer_range": list(span)}]} for span in ranges],
        }

    out = tmp_path / "out"
    merge(slices((0, 2)), out)
    config = slices((0, 1), (0, 2))
    summary = merge(config, out)
    assert summary.computed == 0 and summary.tensors == 12
    assert same_as_fresh(config, out, tmp_path)


def test_small_files_follow_without_a_tensor(tmp_path: Path) -> None:
    """Without the tokenizer, only files that are no longer wanted go; what a person edited or added stays."""
    base, other = write_two(tmp_path)
    out = tmp_path / "out"
    merge(linear(base, other), out)
    shard = (out / "model.safetensors").stat().st_ino
    (out / "config.json").write_text("{}")
    (out / "notes.txt").write_text("mine")
    summary = merge(linear(base, other), out, copy_tokenizer=False)
    assert (summary.computed, (out / "model.safetensors").stat().st_ino) == (0, shard)
    assert not (out / "tokenizer.json").exists() and (out / "generation_config.json").exists()
    assert (out / "config.json").read_text() == "{}" and (out / "notes.txt").read_text() == "mine"


def test_a_damaged_tensor_is_not_copied(tmp_path: Path) -> None:
    base, other = write_two(tmp_path)
    out = tmp_path / "out"
    merge(linear(base, other), out, shard_size=SHARD)
    path = out / "model-00001-of-00006.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    summary = merge(linear(base, other), out)
    assert (summary.computed, summary.reused) == (1, 8)
    assert same_as_fresh(linear(base, other), out, tmp_path)


def test_the_earlier_result_is_whole_until_the_new_one_is(tmp_path: Path) -> None:
    base, other = write_two(tmp_path)
    out = tmp_path / "out"
    merge(slerp(base, other), out, shard_size=SHARD)
    before = hashes(out)

    class Stop(Exception):
        pass

    def stop(event: Event) -> None:
        if isinstance(event, TensorDurable):
            raise Stop

    made = plan(slerp(base, other, 0.7), shard_size=SHARD)
    with pytest.raises(Stop):
        run(made, out, stop)
    now = {path.name: path.read_bytes() for path in out.iterdir() if path.is_file() and path.suffix != ".partial"}
    assert {name: hashlib.sha256(data).hexdigest() for name, data in now.items()} == before
    assert OutputFolder(out).manifest() is not None and list(out.glob("*.partial"))
    assert run(plan(slerp(base, other), shard_size=SHARD), out).already_complete
    assert hashes(out) == before


def test_an_update_needs_room_beside_the_earlier_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, other = write_two(tmp_path)
    out = tmp_path / "out"
    merge(slerp(base, other), out)
    before = hashes(out)
    monkeypatch.setattr("weft.engine.system.free_disk", lambda folder: 16 << 20)
    with pytest.raises(DiskError, match="are missing") as caught:
        merge(slerp(base, other, 0.7), out)
    assert caught.value.exit_code == 3 and 10_000 < caught.value.missing < 20_000
    assert hashes(out) == before
