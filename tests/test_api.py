"""weft from Python: plans, runs, and tensors handed out one by one."""

from __future__ import annotations

import gc
import re
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

import weft
from merges import METHODS, MIB, big_model, environment, linear, recipe, small_tensors, write_config, write_model, write_two
from weft.engine.events import Event, MemoryHeld, PhaseStarted, RunFinished, RunStarted, TensorDurable, TensorWritten
from weft.errors import BudgetError, CheckpointError, ConfigError, OutputError, WeftError

ROOT = Path(__file__).parents[1]


@pytest.fixture
def two(tmp_path: Path) -> tuple[Path, Path]:
    return write_two(tmp_path)


def stages(base: Path, other: Path) -> str:
    last = {**recipe("slerp", base, other), "base_model": "mean", "models": [{"model": "mean"}, {"model": str(base)}]}
    return yaml.safe_dump(linear(base, other, name="mean")) + "---\n" + yaml.safe_dump(last)


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("weft")]


# Plans.


def test_a_plan_from_a_path_a_text_or_a_map(tmp_path: Path, two: tuple[Path, Path]) -> None:
    config = recipe("ties", *two)
    path = write_config(tmp_path / "merge.yaml", config)
    plans = [weft.plan(given, ram="256MiB", workers=1) for given in (path, str(path), path.read_text(), config)]
    assert len({made.digest for made in plans}) == 1
    assert isinstance(plans[0], weft.Plan)
    assert plans[0].config.document.source == str(path)


def test_several_documents_in_a_text(two: tuple[Path, Path]) -> None:
    assert weft.plan(stages(*two), ram="256MiB").inner


@pytest.mark.parametrize("size", ["256MiB", 256 * MIB, "268435456"])
def test_sizes_are_texts_or_bytes(two: tuple[Path, Path], size: str | int) -> None:
    made = weft.plan(linear(*two), ram=size, workers=3, shard_size="6K", seed=5, copy_tokenizer=False)
    assert made.options.budget.ram == 256 * MIB and made.options.budget.workers == 3
    assert made.options.shard_size == 6000 and made.options.seed == 5 and len(made.shards) > 1
    assert "tokenizer.json" not in made.side_files


def test_sizes_by_default(two: tuple[Path, Path]) -> None:
    options = weft.plan(linear(*two)).options
    assert options.budget.ram > 0 and options.budget.workers >= 1 and options.budget.device == "cpu" and options.seed == 0


def test_errors_of_plans(tmp_path: Path, two: tuple[Path, Path]) -> None:
    config = linear(*two)
    cases: list[tuple[type[WeftError], str, Any, dict[str, Any]]] = [
        (ConfigError, r"nowhere\.yaml: No such file", tmp_path / "nowhere.yaml", {}),
        (
            ConfigError,
            r"merge_method: there is no method 'linaer'; did you mean 'linear'\?",
            {**config, "merge_method": "linaer"},
            {},
        ),
        (ConfigError, "unknown key 'modles'", {"modles": [], "merge_method": "linear"}, {}),
        (ConfigError, "texts and numbers only, not", {**config, "base_model": two[0]}, {}),
        (ConfigError, "lots", config, {"ram": "lots"}),
        (BudgetError, r"it needs at least --ram \d+MiB", config, {"ram": "1MiB"}),
        (CheckpointError, "there is no such folder", linear(tmp_path / "gone", two[1]), {}),
    ]
    for kind, message, given, options in cases:
        with pytest.raises(kind, match=message) as caught:
            weft.plan(given, **options)
        assert "\n" not in str(caught.value)


def test_the_budget_that_would_do(two: tuple[Path, Path]) -> None:
    with pytest.raises(BudgetError) as caught:
        weft.plan(linear(*two), ram="1MiB")
    assert weft.plan(linear(*two), ram=caught.value.needed).predicted_ram <= caught.value.needed


# Runs.


def test_a_run(tmp_path: Path, two: tuple[Path, Path]) -> None:
    made = weft.plan(recipe("ties", *two), ram="256MiB", workers=1)
    events: list[Event] = []
    summary = weft.run(made, str(tmp_path / "out"), events.append)
    assert isinstance(summary, weft.Summary)
    assert summary.tensors == len(made.recipes) == summary.computed and summary.measured_ram <= summary.predicted_ram
    assert type(next(e for e in events if not isinstance(e, PhaseStarted))) is RunStarted and type(events[-1]) is RunFinished
    for kind in (TensorWritten, TensorDurable):
        assert {event.name for event in events if isinstance(event, kind)} == {recipe.name for recipe in made.recipes}
    assert any(isinstance(event, MemoryHeld) for event in events)
    assert weft.run(made, tmp_path / "out").already_complete
    summary = weft.run(weft.plan(linear(*two), ram="256MiB"), tmp_path / "out")
    assert summary is not None and summary.computed == summary.tensors
    with pytest.raises(OutputError):
        weft.run(made, two[0])
    assert threads() == []


# Tensors one by one.


@pytest.mark.parametrize("method", METHODS)
def test_every_tensor_once_with_the_bytes_of_a_run(tmp_path: Path, two: tuple[Path, Path], method: str) -> None:
    config = {**recipe(method, *two), "dtype": "bfloat16"}
    made = weft.plan(config, ram="256MiB", workers=2)
    weft.run(made, tmp_path / "out")
    expected = load_file(tmp_path / "out" / "model.safetensors")
    got = list(weft.merge(config, ram="256MiB", workers=2))
    assert sorted(name for name, _ in got) == sorted(expected)
    for name, tensor in got:
        assert tensor.dtype == expected[name].dtype == torch.bfloat16
        assert torch.equal(tensor, expected[name]), name
        tensor += 1  # it is the caller's own


def test_stages_one_by_one(tmp_path: Path, two: tuple[Path, Path]) -> None:
    weft.run(weft.plan(stages(*two), ram="256MiB"), tmp_path / "out")
    expected = load_file(tmp_path / "out" / "model.safetensors")
    got = dict(weft.merge(stages(*two), ram="256MiB"))
    assert got.keys() == expected.keys() and all(torch.equal(got[name], expected[name]) for name in got)


def test_tensors_of_several_shards_empty_ones_and_integers(tmp_path: Path) -> None:
    extra = {"model.empty": torch.empty((0, 3)), "model.positions": torch.arange(7), "model.alone": torch.tensor(2.5)}
    folder = write_model(tmp_path / "model", {**small_tensors(1), **extra})
    config = {"merge_method": "passthrough", "models": [{"model": str(folder), "parameters": {"scale": 2}}]}
    got = dict(weft.merge(config, ram="256MiB", shard_size="3K"))
    for name, tensor in {**small_tensors(1), **extra}.items():
        assert torch.equal(got[name], tensor if name == "model.positions" else tensor * 2), name
    assert len(got) == len(small_tensors(1)) + 3


def test_tiles_in_the_least_memory(tmp_path: Path) -> None:
    chance = torch.Generator().manual_seed(3)
    large = {"model.embed_tokens.weight": torch.randn((90_001, 16), generator=chance)}
    base, other = (write_model(tmp_path / name, small_tensors(seed) | large) for seed, name in enumerate(("base", "other")))
    config = recipe("ties", base, other)
    with pytest.raises(BudgetError) as caught:
        weft.merge(config, ram="1MiB", workers=1)
    tiled = weft.plan(config, ram=caught.value.needed, workers=1)
    assert len(tiled.schedule.steps) > len(tiled.recipes)
    whole = dict(weft.merge(config, ram="1GiB"))
    assert all(torch.equal(tensor, whole[name]) for name, tensor in weft.merge(tiled))


def test_a_slow_receiver_and_one_that_closes_early(two: tuple[Path, Path]) -> None:
    for wanted in (0, 1, 4):
        given = weft.merge(linear(*two), ram="256MiB")
        for number, _ in enumerate(given):
            time.sleep(0.01)
            if number == wanted:
                break
        assert threads()
        given.close()  # type: ignore[attr-defined]
        assert threads() == []


def test_one_that_is_forgotten(two: tuple[Path, Path]) -> None:
    given = weft.merge(linear(*two), ram="256MiB")
    next(given)
    del given
    gc.collect()
    assert threads() == []
    weft.merge(linear(*two), ram="256MiB")
    assert threads() == [], "nothing begins before it is asked for"


def test_an_error_of_the_receiver(two: tuple[Path, Path]) -> None:
    def receive() -> None:
        for _ in weft.merge(linear(*two), ram="256MiB"):
            raise ArithmeticError

    with pytest.raises(ArithmeticError):
        receive()
    gc.collect()
    assert threads() == []


def test_threads_of_torch_are_as_before(two: tuple[Path, Path]) -> None:
    torch.set_num_threads(2)
    list(weft.merge(linear(*two), ram="256MiB"))
    assert torch.get_num_threads() == 2


def test_a_file_that_goes_after_the_plan(two: tuple[Path, Path]) -> None:
    made = weft.plan(linear(*two), ram="256MiB")
    (two[1] / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=re.escape(f"{two[1]}/model.safetensors")):
        list(weft.merge(made))
    assert threads() == []


def test_a_file_that_becomes_shorter(two: tuple[Path, Path]) -> None:
    made = weft.plan(linear(*two), ram="256MiB")
    with (two[1] / "model.safetensors").open("r+b") as file:
        file.truncate(file.seek(0, 2) - 100)
    with pytest.raises(CheckpointError, match=r"model\.safetensors: changed since weft planned with it"):
        list(weft.merge(made))
    assert threads() == []


@pytest.mark.parametrize("taken", [False, True])
def test_an_error_while_tensors_wait(two: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, taken: bool) -> None:
    """Whether the receiver goes on or not, nothing hangs."""
    from weft.engine.system import read_into

    reads, go = 0, threading.Event()

    def failing(*arguments: Any, **more: Any) -> None:
        nonlocal reads
        reads += 1
        if reads == 9:
            go.wait(10)
            raise EOFError("ends too early")
        read_into(*arguments, **more)

    monkeypatch.setattr("weft.engine.reader.read_into", failing)
    given = weft.merge(linear(*two), ram="256MiB", workers=1)
    next(given)
    go.set()
    time.sleep(0.2)  # by now a tensor waits that nobody took, and the error behind it
    if taken:
        with pytest.raises(CheckpointError, match="ends too early"):
            list(given)
    else:
        given.close()  # type: ignore[attr-defined]
    assert threads() == []


CHILD = """
import sys, time
from pathlib import Path
import torch, weft, weft.api, weft.engine.stream
from weft.engine.system import peak_memory, reset_peak_memory, resident_memory

plan = weft.plan(Path(sys.argv[1]), ram="64MiB", workers=2)
torch.set_num_threads(1)
before = resident_memory()
reset_peak_memory()
count = 0
for name, tensor in weft.merge(plan):
    count += 1
    time.sleep(float(sys.argv[2]))
sizes = sorted(place.nbytes for place in plan.places)
print(count, len(sizes), peak_memory() - before, plan.predicted_ram, sum(sizes[-2:]))
"""
"""Merges, at the speed asked for, and tells by how much memory grew."""


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("large")
    return big_model(root / "base", 1), big_model(root / "other", 2)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(("method", "pause"), [("linear", "0"), ("ties", "0"), ("passthrough", "0.03")])
def test_memory_keeps_to_the_budget_and_two_tensors(tmp_path: Path, large: tuple[Path, Path], method: str, pause: str) -> None:
    config = write_config(tmp_path / "config.yaml", recipe(method, *large))
    command = [sys.executable, "-c", CHILD, str(config), pause]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True, env=environment())
    count, tensors, grown, predicted, two_largest = map(int, done.stdout.split())
    assert count == tensors and predicted <= 64 * MIB
    assert grown <= predicted + two_largest, f"{grown / MIB:.1f} MiB, {predicted / MIB:.1f} + {two_largest / MIB:.1f} MiB"
    assert grown > two_largest / 2, "or it is not measured"


# What a person meets in a notebook.


def test_a_run_takes_a_config_and_a_repeat_has_a_summary(tmp_path: Path, two: tuple[Path, Path]) -> None:
    config, out = linear(*two), tmp_path / "out"
    path = write_config(tmp_path / "merge.yaml", config)
    events: list[Event] = []
    first = weft.run(path, out, ram="256MiB", workers=1)
    again = weft.run(config, str(out), events.append, ram="64MiB")
    assert not first.already_complete and again.already_complete and events == [RunFinished(again)]
    assert (again.computed, again.reused, again.bytes_written) == (0, first.tensors, 0)
    for name in (
        "tensors",
        "parameters",
        "differing_tensors",
        "differing_elements",
        "compared_elements",
        "foreign_tensors",
        "nan",
    ):
        assert getattr(again, name) == getattr(first, name), name
    assert again.to_dict().keys() == first.to_dict().keys()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"workers": 0}, "workers: expected 1 to 64, not 0"),
        ({"workers": 2.5}, "workers: expected a whole number, not 2.5"),
        ({"seed": "x"}, "seed: expected a whole number, not 'x'"),
        ({"ram": -1}, "ram: expected a size above zero, not -1"),
        ({"shard_size": 0}, "shard_size: expected a size above zero, not 0"),
        ({"device": "tpu"}, "choose auto, cpu, cuda"),
    ],
)
def test_options_that_make_no_sense(two: tuple[Path, Path], options: dict[str, Any], message: str) -> None:
    for call in (weft.plan, weft.merge):
        with pytest.raises(ConfigError, match=message):
            call(linear(*two), **options)
    with pytest.raises(TypeError, match="wokers"):
        weft.plan(linear(*two), wokers=1)  # type: ignore[call-arg]


def test_a_plan_has_its_options_already(tmp_path: Path, two: tuple[Path, Path]) -> None:
    made = weft.plan(linear(*two))
    with pytest.raises(ConfigError, match=r"seed: this plan has its options already: give seed to weft\.plan"):
        weft.run(made, tmp_path / "out", seed=1)
    assert not (tmp_path / "out").exists()


def test_plans_and_reports_show_themselves(tmp_path: Path, two: tuple[Path, Path]) -> None:
    named = write_model(tmp_path / "<b>bold & brave", small_tensors(3))
    made = weft.plan(linear(two[0], named))
    assert repr(made).startswith("<weft plan: linear of ") and "\n" not in repr(made) and len(repr(made)) < 500
    shown = made._repr_html_()
    assert "&lt;b&gt;bold &amp; brave" in shown and "<b>" not in shown and "<th>RAM</th>" in shown
    page = weft.report(made)
    assert page._repr_html_().startswith("<iframe srcdoc=") and page._repr_html_().count("<") == 2
    assert page.to_dict()["about"]["digest"] == made.digest
    page.save(tmp_path / "plan.html")
    assert (tmp_path / "plan.html").read_text() == page.html


def test_progress_is_shown_where_it_is_wanted(
    tmp_path: Path, two: tuple[Path, Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    weft.run(linear(*two), tmp_path / "out")
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr("weft.cli.progress.EVERY", 0)
    weft.run(linear(*two), tmp_path / "shown", progress=True)
    assert "9 tensors" in capsys.readouterr().err


def test_the_other_commands_from_python(tmp_path: Path, two: tuple[Path, Path]) -> None:
    out = tmp_path / "out"
    weft.run(linear(*two), out)
    assert weft.inspect(str(out)).to_dict()["parameters"] == weft.inspect(str(two[0])).parameters
    found = weft.diff(str(two[0]), str(out))
    assert not found.identical and found.to_dict()["total"]["differing"] == found.total.differing
    assert weft.diff(str(out), str(out)).identical
    assert weft.verify(out).to_dict() == {**weft.verify(out).to_dict(), "whole": True, "damage": []}
    assert weft.status(out).to_dict()["state"] == "finished"
    assert weft.explain(linear(*two), "*layers.0.self_attn.q_proj*").to_dict()["made"]["method"] == "linear"
    with pytest.raises(ConfigError, match="more than one"):
        weft.inspect("a@b@c")


# Imports.


def test_the_import_is_light() -> None:
    code = "import sys, weft; print(*sorted({'torch', 'pydantic', 'numpy', 'networkx', 'yaml', 'rich'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment())
    assert done.stdout.strip() == ""
    assert dir(weft) == sorted([*weft.__all__, "errors"]), "nothing but what is public"
    for name in weft.__all__:
        assert getattr(weft, name) is not None
    with pytest.raises(AttributeError, match="nothing_like_it"):
        _ = weft.nothing_like_it
