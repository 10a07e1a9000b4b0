"""Configs of several documents: one graph, the bytes of running them one by one, and nothing on the disk between them."""

from __future__ import annotations

import hashlib
import json
import math
import random
import re
import struct
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

import weft
from cli.command import weft as cli
from merges import CONFIG, MIB, environment, hashes, options, small_tensors, write_model
from weft.engine.events import Event, Observer, Summary, TensorDurable, ignore
from weft.engine.run import run
from weft.errors import BudgetError, CheckpointError, ConfigError, Interrupted
from weft.planner.config import load_config
from weft.planner.estimate import START_UP, estimate_seconds
from weft.planner.explain import explain
from weft.planner.graph import Compute
from weft.planner.ingredients import Tables, decode, ingredients_of
from weft.planner.plan import Plan, make_plan
from weft.planner.reasons import Reason, differences

ROOT = Path(__file__).parents[1]
Document = dict[str, Any]


def tensors(seed: int) -> dict[str, Tensor]:
    """The small model with an embedding of two parts, so that it may be cut into tiles."""
    chance = torch.Generator().manual_seed(100 + seed)
    return small_tensors(seed) | {"model.embed_tokens.weight": torch.randn((50_001, 16), generator=chance)}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Four models, to be read only."""
    root = tmp_path_factory.mktemp("models")
    config = {**CONFIG, "vocab_size": 50_001}
    return {name: str(write_model(root / name, tensors(seed), config)) for seed, name in enumerate("abcd", 1)}


def weighted(*names: str, **parameters: float) -> list[Document]:
    return [{"model": name, "parameters": {"weight": 0.3 + 0.2 * i, **parameters}} for i, name in enumerate(names)]


def layers(model: str, low: int, high: int) -> Document:
    return {"sources": [{"model": model, "layer_range": [low, high]}]}


def slerp(one: str, two: str, **more: Any) -> Document:
    models = [{"model": one}, {"model": two}]
    return {"merge_method": "slerp", "base_model": one, "models": models, "parameters": {"t": [0.2, 0.7]}, **more}


def linear(*names: str, **more: Any) -> Document:
    return {"merge_method": "linear", "models": weighted(*names), **more}


def tuned(method: str, base: str, *names: str, density: float = 0.4, **more: Any) -> Document:
    return {"merge_method": method, "base_model": base, "models": weighted(*names, density=density), **more}


CHAINS: dict[str, list[Document]] = {
    "three methods": [
        linear("a", "b", name="one"),
        slerp("one", "c", name="two"),
        tuned("ties", "a", "two", "d", name="three"),
    ],
    "statistics of statistics": [
        tuned("ties", "a", "b", "c", name="one"),
        slerp("one", "d", name="two"),
        slerp("two", "one", name="three"),
    ],
    "random": [
        tuned("dare_ties", "a", "b", "c", name="one"),
        tuned("dare_linear", "a", "one", "d", density=0.5, name="two"),
        tuned("dare_ties", "one", "two", "b", name="three"),
    ],
    "slices": [
        {"merge_method": "passthrough", "slices": [layers("a", 0, 2), layers("b", 1, 2)], "name": "one"},
        {"merge_method": "passthrough", "slices": [layers("c", 0, 1), layers("d", 0, 2)], "name": "two"},
        slerp("one", "two", name="three"),
    ],
    "slices of stages": [
        linear("a", "b", name="one"),
        tuned("dare_ties", "a", "c", name="two"),
        {"merge_method": "passthrough", "slices": [layers("one", 0, 2), layers("two", 1, 2), layers("one", 1, 2)]},
    ],
    "dtypes": [
        linear("a", "b", dtype="bfloat16", name="one"),
        slerp("one", "c", dtype="float32", name="two"),
        tuned("ties", "one", "two", "d", dtype="float32", out_dtype="float16", name="three"),
    ],
    "used twice": [
        linear("a", "b", name="one"),
        tuned("task_arithmetic", "one", "c", density=1, name="two"),
        tuned("ties", "one", "two", "d", name="three"),
    ],
    "moved": [
        {"merge_method": "passthrough", "models": [{"model": "a"}], "name": "one"},
        {"merge_method": "passthrough", "models": [{"model": "one", "parameters": {"scale": 0.5}}], "name": "two"},
        {"merge_method": "passthrough", "models": [{"model": "two"}], "dtype": "bfloat16", "name": "three"},
    ],
}
for _documents in CHAINS.values():  # parameters that a method does not have are left out
    for _document in _documents:
        if _document["merge_method"] == "task_arithmetic":
            for _model in _document["models"]:
                del _model["parameters"]["density"]


def named(value: Any, places: Mapping[str, str]) -> Any:
    """A document in which models have other names."""
    if isinstance(value, dict):
        return {
            key: places.get(item, item) if key in ("model", "base_model") and isinstance(item, str) else named(item, places)
            for key, item in value.items()
        }
    return [named(item, places) for item in value] if isinstance(value, list) else value


def text_of(documents: Sequence[Document], places: Mapping[str, str]) -> str:
    return "---\n".join(yaml.safe_dump(named(document, places), sort_keys=False) for document in documents)


def plan(text: str, ram: int = 512 * MIB, **more: Any) -> Plan:
    return make_plan(load_config(text), options(ram, **{"workers": 1, **more}))


def merge(text: str, out: Path, observer: Observer = ignore, **more: Any) -> Summary:
    summary = run(plan(text, **more), out, observer)
    assert summary is not None
    return summary


def smallest(text: str, **more: Any) -> int:
    """The least budget, as the error says."""
    with pytest.raises(BudgetError) as caught:
        plan(text, ram=MIB, **more)
    return caught.value.needed


def one_by_one(documents: Sequence[Document], places: Mapping[str, str], root: Path, **more: Any) -> Path:
    """The result of each stage in a folder, from which the next ones read."""
    folders, out = dict(places), root
    for number, document in enumerate(documents):
        out = root / f"stage-{number}"
        merge(text_of([document], folders), out, **more)
        folders[document.get("name", "")] = str(out)
    return out


def contents(out: Path) -> dict[str, str]:
    """Everything but what tells how the result was made."""
    return {name: digest for name, digest in hashes(out).items() if name not in ("README.md", "weft.json")}


def tiles(made: Plan) -> int:
    return max(task.tiles for _, data in made.graph.nodes(data=True) if isinstance(task := data["task"], Compute))


@pytest.mark.parametrize("chain", CHAINS)
def test_the_same_as_one_by_one(tmp_path: Path, models: dict[str, str], chain: str) -> None:
    documents = CHAINS[chain]
    expected = contents(one_by_one(documents, models, tmp_path, seed=7))
    text = text_of(documents, models)
    least = smallest(text)
    made = plan(text, ram=least, seed=7)
    assert tiles(made) > 1
    assert made.predicted_ram <= least
    for ram, workers in ((512 * MIB, 2), (least, 1)):
        out = tmp_path / f"out-{ram}"
        summary = merge(text, out, ram=ram, workers=workers, seed=7)
        assert contents(out) == expected, f"--ram {ram}"
        assert summary.measured_ram <= summary.predicted_ram <= ram


def test_another_seed_another_result(models: dict[str, str]) -> None:
    text = text_of(CHAINS["random"], models)
    assert plan(text, seed=1).digest != plan(text, seed=2).digest
    assert plan(text, seed=1).digest == plan(text, seed=1, ram=smallest(text)).digest


def test_any_order_of_the_documents(models: dict[str, str]) -> None:
    documents = list(CHAINS["three methods"])
    chance = random.Random(1)
    digests = set()
    for _ in range(6):
        chance.shuffle(documents)
        digests.add(plan(text_of(documents, models)).digest)
    assert len(digests) == 1


def test_the_result_needs_no_name(models: dict[str, str]) -> None:
    documents = CHAINS["three methods"]
    unnamed = [*documents[:-1], {key: value for key, value in documents[-1].items() if key != "name"}]
    assert plan(text_of(unnamed, models)).digest == plan(text_of(documents, models)).digest


def test_a_stage_wins_over_a_folder(tmp_path: Path, models: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    text = text_of([linear("a", "b", name="one"), slerp("one", "c")], models)
    digest = plan(text).digest
    write_model(tmp_path / "one", small_tensors(9))
    monkeypatch.chdir(tmp_path)
    assert plan(text).digest == digest


WATCHER = """
import json, os, sys
from pathlib import Path
import torch, numpy, safetensors, weft, weft.api, weft.engine.finish

out, config, ram = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
written, seen, most = set(), set(), 0

def audit(event, arguments):
    if event == "open" and isinstance(arguments[0], str) and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
        if os.path.isabs(arguments[0]):  # others go by a folder's descriptor, or would be seen below
            written.add(arguments[0])

def look(event):
    global most
    files = [path for path in out.rglob("*") if path.is_file()]
    seen.update(str(path.relative_to(out)) for path in files)
    most = max(most, sum(path.stat().st_size for path in files))
    for folder in (os.environ["TMPDIR"], "."):
        seen.update(f"{folder}/{path}" for path in Path(folder).rglob("*"))

plan = weft.plan(config, ram=ram, workers=1)
sys.addaudithook(audit)
weft.run(plan, out, look)
print(json.dumps([sorted(written), sorted(seen), most, plan.bytes_written]))
"""
"""Runs a config and tells what was opened for writing, and which files there were at every moment."""


def test_no_intermediate_file(tmp_path: Path, models: dict[str, str]) -> None:
    text = text_of(CHAINS["statistics of statistics"], models)
    config, out = tmp_path / "config.yaml", tmp_path / "out"
    config.write_text(text)
    for name in ("temporary", "here"):
        (tmp_path / name).mkdir()
    done = subprocess.run(
        [sys.executable, "-c", WATCHER, str(out), str(config), str(smallest(text))],
        env={**environment(), "TMPDIR": str(tmp_path / "temporary")},
        cwd=tmp_path / "here",
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    written, seen, most, nbytes = json.loads(done.stdout)
    # What holds tensors is the result's one shard, and there is nothing beside its folder.
    assert [path for path in written if not path.startswith((str(out), "/proc/self/"))] == []
    assert [name for name in seen if "safetensors" in name] and {name for name in seen if "safetensors" in name} <= {
        "model.safetensors.partial",
        "model.safetensors",
    }
    assert [name for name in seen if name.startswith(("/", "./"))] == []
    assert nbytes <= most < nbytes + MIB, "the folder never holds more than the result"


# How much memory.


def headers_only(folder: Path, count: int, hidden: int = 2048, inner: int = 5632, vocabulary: int = 32_000) -> str:
    """A large model of which there are only the headers: its data is a hole in the file."""
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocabulary, hidden)}
    for layer in range(count):
        head = f"model.layers.{layer}"
        shapes |= {f"{head}.self_attn.{name}_proj.weight": (hidden, hidden) for name in "qo"}
        shapes |= {f"{head}.mlp.{name}_proj.weight": (inner, hidden) for name in ("up", "gate")}
        shapes |= {f"{head}.mlp.down_proj.weight": (hidden, inner), f"{head}.input_layernorm.weight": (hidden,)}
    shapes |= {"model.norm.weight": (hidden,), "lm_head.weight": (vocabulary, hidden)}
    header, end = {}, 0
    for name, shape in shapes.items():
        begin, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [begin, end]}
    data = json.dumps(header).encode()
    data += b" " * (-len(data) % 8)
    folder.mkdir(parents=True)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(data)) + data)
        file.truncate(8 + len(data) + end)
    config = {**CONFIG, "num_hidden_layers": count, "hidden_size": hidden, "vocab_size": vocabulary, "torch_dtype": "bfloat16"}
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Six models of 0.6 GB, headers only."""
    root = tmp_path_factory.mktemp("large")
    return {name: headers_only(root / name, 3) for name in "abcdef"}


LARGE: dict[str, list[Document]] = {
    "linear": [linear("a", "b", name="one"), linear("one", "c", name="two"), linear("two", "d")],
    "linear and slerp": [linear("a", "b", name="one"), slerp("one", "c", name="two"), linear("two", "d")],
    "two into one": [slerp("a", "b", name="one"), slerp("c", "d", name="two"), slerp("one", "two")],
    "ties into slerp": [tuned("ties", "a", "b", "c", name="one"), tuned("ties", "a", "c", "d", name="two"), slerp("one", "two")],
    "slerp into ties": [slerp("a", "b", name="one"), slerp("c", "d", name="two"), tuned("ties", "a", "one", "two")],
}

MEMORY = [(chain, ram) for chain in LARGE for ram in (80, 256, 1024, 4096)]


@pytest.mark.parametrize(("chain", "mebibytes"), MEMORY)
def test_the_peak_is_no_higher_than_the_largest_stages(large: dict[str, str], chain: str, mebibytes: int) -> None:
    alone = []
    for document in LARGE[chain]:
        places = {**large, "one": large["e"], "two": large["f"]}  # in place of a stage, a model of its shapes
        alone.append(plan(text_of([document], places), ram=mebibytes * MIB, workers=2).predicted_ram)
    together = plan(text_of(LARGE[chain], large), ram=mebibytes * MIB, workers=2).predicted_ram
    assert together <= max(alone) <= mebibytes * MIB, f"{together / MIB:.1f} MiB, alone {[n / MIB for n in alone]}"


SMALL = {"small": (1, 256, 512, 1_000), "of one tensor mostly": (1, 256, 512, 90_000)}


@pytest.mark.parametrize("shape", SMALL)
@pytest.mark.parametrize("chain", LARGE)
def test_the_peak_is_no_higher_where_a_stage_is_held_whole(tmp_path: Path, chain: str, shape: str) -> None:
    models = {name: headers_only(tmp_path / name, *SMALL[shape]) for name in "abcdef"}
    for mebibytes in (128, 512, 2048):
        alone = []
        for document in LARGE[chain]:
            places = {**models, "one": models["e"], "two": models["f"]}
            alone.append(plan(text_of([document], places), ram=mebibytes * MIB, workers=2).predicted_ram)
        together = plan(text_of(LARGE[chain], models), ram=mebibytes * MIB, workers=2)
        assert together.predicted_ram <= max(alone), f"{together.predicted_ram / MIB:.1f} MiB, alone {[n / MIB for n in alone]}"


# Interruptions.


@pytest.mark.parametrize("chain", ["random", "slices of stages"])
def test_continues_after_an_interruption(tmp_path: Path, models: dict[str, str], chain: str) -> None:
    text, out = text_of(CHAINS[chain], models), tmp_path / "out"
    ram = smallest(text)
    merge(text, tmp_path / "undisturbed", ram=ram)
    durable = 0

    def stop(event: Event) -> None:
        nonlocal durable
        durable += isinstance(event, TensorDurable)
        if durable == 3:
            raise KeyboardInterrupt

    with pytest.raises(Interrupted):
        merge(text, out, stop, ram=ram)
    assert not (out / "model.safetensors").exists()
    summary = merge(text, out, ram=512 * MIB, workers=2)
    assert summary.reused >= 3  # perhaps all: what was written when the run was stopped became durable
    assert hashes(out) == hashes(tmp_path / "undisturbed")
    assert run(plan(text), out).already_complete, "there is nothing left to do"


def test_a_changed_stage_is_computed_again(tmp_path: Path, models: dict[str, str]) -> None:
    documents, out = CHAINS["three methods"], tmp_path / "out"

    def stop(event: Event) -> None:
        if isinstance(event, TensorDurable):
            raise KeyboardInterrupt

    with pytest.raises(Interrupted):
        merge(text_of(documents, models), out, stop)
    changed = [linear("a", "d", name="one"), *documents[1:]]
    assert merge(text_of(changed, models), out).reused == 0
    merge(text_of(changed, models), tmp_path / "new")
    assert hashes(out) == hashes(tmp_path / "new")


# What cannot be.

PASS = "merge_method: passthrough\nmodels:\n- model: "


def refused(text: str, models: Mapping[str, str], kind: type[Exception] = ConfigError) -> str:
    for name, path in models.items():
        text = text.replace(f"<{name}>", path)
    with pytest.raises(kind) as caught:
        plan(text)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_circle(models: dict[str, str]) -> None:
    text = f"name: one\n{PASS}two\n---\nname: two\n{PASS}one\n"
    assert "the stages go in a circle" in refused(text, models)
    with_end = f"{text}---\n{PASS}one\n"
    assert refused(with_end, models) == "config, line 9, models[0].model: the stages go in a circle: one → two → one"


def test_a_circle_of_one(models: dict[str, str]) -> None:
    text = f"name: one\n{PASS}one\n---\n{PASS}one\n"
    assert refused(text, models) == "config, line 4, models[0].model: the stages go in a circle: one → one"


@pytest.mark.parametrize(
    "text",
    [
        f"name: one\n{PASS}two\n---\nname: two\n{PASS}one\n---\nname: end\n{PASS}<a>\n",
        f"name: one\n{PASS}<a>\n---\nname: two\n{PASS}two\n",
    ],
    ids=["a circle beside the result", "the last one uses itself"],
)
def test_documents_that_the_result_does_not_use(models: dict[str, str], text: str) -> None:
    assert "circle" in refused(text, models)


def test_an_unknown_name(models: dict[str, str]) -> None:
    text = f"name: one\n{PASS}<a>\n---\nname: end\nmerge_method: linear\nmodels:\n"
    text += "- {model: one, parameters: {weight: 1}}\n- {model: onne, parameters: {weight: 1}}\n"
    message = refused(text, models, CheckpointError)
    assert message == (
        "config, line 10, models[1].model: onne: no document has this name, there is no such folder, and it is not a Hub name; "
        "did you mean 'one'?"
    )


def test_a_stage_has_no_revisions(models: dict[str, str]) -> None:
    message = refused(f"name: one\n{PASS}<a>\n---\n{PASS}one@main\n", models)
    assert message == "config, line 8, models[0].model: one is a stage, which has no revisions: leave out '@main'"


def test_two_results(models: dict[str, str]) -> None:
    message = refused(f"name: one\n{PASS}<a>\n---\nname: two\n{PASS}<b>\n", models)
    assert message.startswith("config, line 1: 2 documents are used by no other, and only one can be the result")


def test_a_stage_without_a_name(models: dict[str, str]) -> None:
    message = refused(f"name: one\n{PASS}<a>\n---\n{PASS}<b>\n---\n{PASS}one\n", models)
    assert message.startswith("config, line 6: 2 documents are used by no other"), message


def test_the_same_name_twice(models: dict[str, str]) -> None:
    message = refused(f"name: one\n{PASS}<a>\n---\nname: one\n{PASS}<b>\n---\n{PASS}one\n", models)
    assert message == "config, line 6, name: two documents have the name 'one'"


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        (
            "name: one\nmerge_method: linaer\nmodels: [{model: <a>}]\n",
            "config, line 2, merge_method: there is no method 'linaer'",
        ),
        (f"name: one\n{PASS}<a>x\n", "config, line 4, models[0].model: "),
        (f"name: one\ndtyp: float32\n{PASS}<a>\n", "config, line 2, dtyp: unknown key 'dtyp'; did you mean 'dtype'?"),
    ],
    ids=["method", "folder", "key"],
)
def test_errors_in_a_stage_name_its_line(models: dict[str, str], stage: str, message: str) -> None:
    assert refused(f"{stage}---\n{PASS}one\n", models, Exception).startswith(message)


# What is shown and written down.


def test_the_commands(tmp_path: Path, models: dict[str, str]) -> None:
    text = text_of(CHAINS["three methods"], models)
    config = tmp_path / "stages.yaml"
    config.write_text(text)
    shown = cli("plan", config, "--ram", "256MiB")
    assert shown.code == 0 and "ties" in shown.out
    about = json.loads(cli("plan", config, "--json", "--ram", "256MiB").out)
    assert [model["model"] for model in about["models"]] == [models[name] for name in ("d", "c", "a", "b")] or {
        model["model"] for model in about["models"]
    } == set(models.values())
    names = {recipe.name for recipe in plan(text).recipes}
    assert about["tensors"] == len(names) and about["tasks"]["compute"] == 3 * len(names)
    assert about["tasks"]["save"] == len(names) and about["peak_tensor"] in names
    for ending in ("graphml", "dot"):
        assert cli("plan", config, "-q", "--ram", "256MiB", "--graph", tmp_path / f"graph.{ending}").code == 0
        graph = (tmp_path / f"graph.{ending}").read_text()
        assert all(f"{method} map model.norm.weight" in graph for method in ("linear", "slerp", "ties"))
    assert cli("plan", config, "-q", "--ram", "256MiB", "--save", tmp_path / "saved.plan").code == 0
    assert cli("run", tmp_path / "saved.plan", tmp_path / "out", "-q").code == 0
    merge(text, tmp_path / "direct")
    assert contents(tmp_path / "out") == contents(tmp_path / "direct")


def test_only_real_models_are_listed(tmp_path: Path, models: dict[str, str]) -> None:
    text = text_of(CHAINS["three methods"], models)
    made = plan(text)
    assert {str(model.reference) for model in made.models} == set(made.stores) == set(made.bytes_read()) == set(models.values())
    merge(text, tmp_path / "out")
    manifest = json.loads((tmp_path / "out" / "weft.json").read_text())
    assert {item["model"] for item in manifest["inputs"]} == set(models.values())
    assert all("model.safetensors" in item["files"] for item in manifest["inputs"])
    assert manifest["config"] == text and manifest["method"] == "ties"
    card = (tmp_path / "out" / "README.md").read_text()
    assert sorted(re.search(r"## Models\n\n(.*?)\n\n", card, re.DOTALL)[1].splitlines()) == ["- a", "- b", "- c", "- d"]  # type: ignore[index]
    shown = text
    for path in models.values():
        shown = shown.replace(path, Path(path).name)
    assert shown.strip() in card


def test_the_base_model_that_is_named_is_a_real_one(tmp_path: Path, models: dict[str, str]) -> None:
    merge(text_of([linear("a", "b", name="one"), slerp("one", "c")], models), tmp_path / "out")
    assert "Base model: one\n" not in (tmp_path / "out" / "README.md").read_text()


def test_the_documented_example(tmp_path: Path, models: dict[str, str]) -> None:
    """docs/stages.md: its configs, with small models under the names that it uses."""
    text = (ROOT / "docs" / "stages.md").read_text()
    configs = re.findall(r"^```yml\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    assert len(configs) >= 2
    digests = []
    for config in configs:
        names = dict.fromkeys(re.findall(r"\borg/[\w-]+", config))
        for name, path in zip(names, models.values(), strict=False):
            config = re.sub(rf"{name}(?![\w-])", path, config)
        made = plan(config)
        assert made.inner
        digests.append(made.digest)
    merge(config, tmp_path / "out")
    assert hashlib.sha256((tmp_path / "out" / "config.json").read_bytes()).hexdigest()
    assert [name for name, _ in weft.merge(made)] and len(set(digests)) == len(digests)


# Many stages.


def doubled(count: int, method: str = "linear") -> list[Document]:
    """So many stages, of which each uses the one before twice: 2 ** `count` ways lead from the result to the model."""
    names = ["a", *(f"s{i}" for i in range(1, count))]
    parameters = {"density": 0.5} if method == "ties" else {}
    base = {"base_model": "a"} if method == "ties" else {}
    stages = [{"merge_method": method, "models": weighted(name, name, **parameters), **base} for name in names]
    return [*({**stage, "name": name} for stage, name in zip(stages, names[1:], strict=False)), stages[-1]]


def test_what_is_used_twice_is_computed_once(models: dict[str, str], tmp_path: Path) -> None:
    made = plan(text_of(doubled(40), models))
    assert len(made.inner) == 39 * len(made.recipes)
    run(made, tmp_path / "out", ignore)
    edited = plan(text_of([*doubled(40)[:-1], linear("s39", "s39", name="end")], models))
    entries = {recipe.name: ingredients_of(recipe) for recipe in edited.recipes}
    before = {recipe.name: ingredients_of(recipe) for recipe in made.recipes}
    assert all(differences(before[name], now) for name, now in entries.items())
    explained = json.dumps(asdict(explain(made, 0)))
    assert explained.count("as above") == 39 and "model.embed_tokens.weight" in explained


def test_hundreds_of_stages_in_a_row(models: dict[str, str]) -> None:
    made = plan(text_of(doubled(300), models), ram=4096 * MIB)
    assert len(made.inner) == 299 * len(made.recipes) and len(list(made.recipes[0].leaves())) == 2
    assert decode_all(made) == 299 * len({recipe.digest for recipe in made.recipes})
    assert "further stages" in json.dumps(asdict(explain(made, 0)))


def decode_all(made: Plan) -> int:
    """How many computed inputs the manifest has, after it was read back."""
    tables = Tables()
    entries = [tables.entry(ingredients_of(recipe)) for recipe in made.recipes]
    stored = json.loads(json.dumps([tables.plain(), entries]))
    for entry, recipe in zip(entries, made.recipes, strict=True):
        assert differences(decode(stored[0], entry), ingredients_of(recipe)) == (Reason("recipe"),), "nothing differs"
    return len(stored[0]["computed"])


def test_the_time_counts_what_is_computed_again(models: dict[str, str]) -> None:
    """In tiles, each pass of a stage's statistics computes the stages before it once more."""
    text = text_of(doubled(8, "ties"), models)
    at_once, in_tiles = (plan(text, ram=ram) for ram in (4096 * MIB, smallest(text)))
    many = [sum(isinstance(task, Compute) for _, task in made.graph.nodes(data="task")) for made in (at_once, in_tiles)]
    assert many[1] > 4 * many[0]
    assert estimate_seconds(in_tiles) - START_UP > 4 * (estimate_seconds(at_once) - START_UP)
