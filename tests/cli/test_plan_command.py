"""`weft plan`: what it shows, writes and saves, and what it must not do."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import networkx as nx
import pytest

from cli.command import weft
from cli.models import SHARDS, SLICES, write_model

CONFIG = SLICES + "dtype: float16\n"
DOCS = Path(__file__).parents[2] / "docs" / "plan-json.md"


@pytest.fixture(autouse=True)
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A config and its models in the current folder."""
    monkeypatch.chdir(tmp_path)
    write_model(Path("a"))
    write_model(Path("b"), shards=2, seed=1)
    Path("merge.yaml").write_text(CONFIG)


def described(*arguments: str) -> dict[str, Any]:
    outcome = weft("plan", "merge.yaml", *arguments, "--json")
    assert outcome.code == 0, outcome
    value = json.loads(outcome.out)
    assert isinstance(value, dict)
    return value


def keys(value: object, path: str = "") -> Iterator[str]:
    """`models[].commit` and the like; the keys of `side_files` are names of files."""
    if isinstance(value, dict) and path != "side_files":
        for key, item in value.items():
            inner = f"{path}.{key}" if path else str(key)
            yield inner
            yield from keys(item, inner)
    if isinstance(value, list):
        for item in value:
            yield from keys(item, f"{path}[]")


def test_it_shows_what_a_run_will_do_and_cost() -> None:
    outcome = weft("plan", "merge.yaml", "out")
    assert outcome.code == 0 and outcome.err == ""
    shown = outcome.out
    assert shown.splitlines()[0] == "slerp of a, b · 4 layers · 1.06 K parameters · float16"
    about = described("out")
    tasks = about["tasks"]
    for row in (
        rf"tensors +15; tasks: {tasks['load']} load, {tasks['compute']} compute, {tasks['save']} save",
        r"read +\S+ KiB from a \(base\)",
        r"read +\S+ KiB from b",
        r"write +\S+ KiB in 1 file and 2 side files",
        r"RAM +\S+ MiB at most, of \S+ \wiB; the peak is set by model\.embed_tokens\.weight",
        r"VRAM +none: computed on the CPU",
        r"disk +\S+ KiB needed, \S+ \wiB free",
        r"download +nothing",
        r"time +about \S+ s with \d+ workers",
        r"output +out: new",
    ):
        assert re.search(rf"^{row}", shown, re.MULTILINE), (row, shown)
    assert not Path("out").exists()


def test_where_nobody_looks_no_line_is_cut_or_folded() -> None:
    shown = weft("plan", "merge.yaml", "--verbose").out
    rows = [line for line in shown.splitlines() if "self_attn.q_proj.weight" in line]
    assert [re.search(r"layers\.(\d)\.self_attn\.q_proj\.weight +8×8 +F16 +slerp +a, b +t 0\.5", row) for row in rows].count(
        None
    ) == 0
    assert len(rows) == 4


def test_the_state_of_the_output_folder() -> None:
    Path("other").mkdir()
    Path("other/file").touch()
    assert described()["out"] is None
    assert described("out")["out"] == "new"
    assert described("other")["out"] == "foreign"
    assert weft("run", "merge.yaml", "out", "--quiet").code == 0
    assert described("out")["out"] == "complete"
    assert described("out", "--out-shard-size", "1K")["out"] == "another"
    assert "the complete result of this plan: nothing to do" in weft("plan", "merge.yaml", "out").out


def test_the_documented_keys_are_the_real_ones() -> None:
    documented = re.findall(r"^\| `([^`]+)` \|", DOCS.read_text(), re.MULTILINE)
    assert documented == list(dict.fromkeys(keys(described("out"))))


def test_the_documented_example_has_the_real_keys_and_types() -> None:
    match = re.search(r"```json\n(.+?)```", DOCS.read_text(), re.DOTALL)
    assert match
    example, real = json.loads(match[1]), described("out")
    assert list(dict.fromkeys(keys(example))) == list(dict.fromkeys(keys(real)))
    assert {key: type(value) for key, value in example.items()} == {key: type(value) for key, value in real.items()}
    assert sum(shard["tensors"] for shard in example["shards"]) == example["tensors"]
    assert sum(shard["bytes"] for shard in example["shards"]) == example["bytes_written"]
    assert sum(model["bytes_read"] for model in example["models"]) == example["bytes_read"]
    assert example["disk"]["needed"] == example["bytes_written"] + sum(example["side_files"].values())


def test_the_numbers_are_those_of_the_result() -> None:
    about = described("out", "--out-shard-size", "2K", "--seed", "7", "--workers", "3", "--ram", "1GiB")
    assert (about["seed"], about["workers"], about["device"], about["ram"]["budget"]) == (7, 3, "cpu", 1 << 30)
    assert about["ram"]["predicted_peak"] <= about["ram"]["budget"]
    assert weft("run", "merge.yaml", "out", "--quiet", "--out-shard-size", "2K").code == 0
    written = {path.name: path.stat().st_size for path in Path("out").glob("*.safetensors")}
    assert {shard["name"]: shard["bytes"] for shard in about["shards"]} == written
    assert len(written) > 1
    assert {name: Path("out", name).stat().st_size for name in about["side_files"]} == about["side_files"]
    assert about["parameters"] == 2 * 16 * 8 + 4 * (64 + 128 + 8) + 8


def test_the_graph_as_graphml_is_the_graph() -> None:
    assert weft("plan", "merge.yaml", "--graph", "graph.graphml", "--quiet").out == ""
    graph: nx.DiGraph[str] = nx.DiGraph(nx.read_graphml("graph.graphml"))
    tasks = described()["tasks"]
    kinds = [data["kind"] for _, data in graph.nodes(data=True)]
    assert {kind: kinds.count(kind) for kind in tasks} == tasks
    assert nx.is_directed_acyclic_graph(graph)
    loads = [data for _, data in graph.nodes(data=True) if data["kind"] == "load"]
    assert {data["file"] for data in loads} == {"a/model.safetensors", f"b/{SHARDS[0]}", f"b/{SHARDS[1]}"}
    for node, data in graph.nodes(data=True):
        assert (graph.in_degree(node) == 0) == (data["kind"] == "load")
        assert (graph.out_degree(node) == 0) == (data["kind"] == "save")


def test_the_graph_as_dot_has_every_node_and_edge() -> None:
    assert weft("plan", "merge.yaml", "--graph", "graph.graphml", "--quiet").code == 0
    assert weft("plan", "merge.yaml", "--graph", "graph.dot", "--quiet").code == 0
    graph = nx.read_graphml("graph.graphml")
    text = Path("graph.dot").read_text()
    assert text.startswith("digraph weft {") and text.rstrip().endswith("}")
    assert set(re.findall(r'^  "([^"]+)" \[', text, re.MULTILINE)) == set(graph.nodes)
    assert set(re.findall(r'^  "([^"]+)" -> "([^"]+)";', text, re.MULTILINE)) == set(graph.edges)


@pytest.mark.parametrize("ending", ["png", "json", ""])
def test_another_ending_is_no_graph(ending: str) -> None:
    assert weft("plan", "merge.yaml", "--graph", f"graph.{ending}").line.endswith("the ending says the format: .graphml or .dot")
    assert not list(Path().glob("graph*"))


@pytest.mark.parametrize("option", [("--graph", "gone/graph.dot"), ("--graph", "gone/graph.graphml"), ("--save", "gone/plan")])
def test_a_file_that_cannot_be_written(option: tuple[str, str]) -> None:
    assert weft("plan", "merge.yaml", *option).line == f"{' '.join(option)}: No such file or directory"


def save(*arguments: str) -> dict[str, Any]:
    assert weft("plan", "merge.yaml", "--quiet", "--save", "saved.json", *arguments).code == 0
    value = json.loads(Path("saved.json").read_text())
    assert isinstance(value, dict)
    return value


def test_a_saved_plan_gives_what_its_config_gives() -> None:
    save("--ram", "256MiB", "--out-shard-size", "2K", "--no-copy-tokenizer")
    assert weft("run", "merge.yaml", "direct", "--quiet", "--out-shard-size", "2K", "--no-copy-tokenizer").code == 0
    Path("merge.yaml").unlink()
    assert json.loads(weft("plan", "saved.json", "--json").out)["ram"]["budget"] == 256 << 20
    assert weft("run", "saved.json", "out", "--quiet").code == 0
    names = {path.name for path in Path("direct").iterdir()}
    assert {path.name for path in Path("out").iterdir()} == names
    assert len([name for name in names if name.endswith(".safetensors")]) > 1 and "tokenizer.json" not in names
    for name in names - {"weft.json", "README.md"}:
        assert Path("out", name).read_bytes() == Path("direct", name).read_bytes()


def test_options_beside_a_saved_plan_win() -> None:
    save("--ram", "256MiB", "--workers", "3")
    about = json.loads(weft("plan", "saved.json", "--json", "--ram", "512MiB").out)
    assert (about["ram"]["budget"], about["workers"]) == (512 << 20, 3)


@pytest.mark.parametrize("file", ["a/model.safetensors", f"b/{SHARDS[0]}", f"b/{SHARDS[1]}"])
@pytest.mark.parametrize("how", ["touched", "written anew"])
def test_a_saved_plan_is_refused_where_an_input_changed(file: str, how: str) -> None:
    save()
    path, time = Path(file), Path(file).stat().st_mtime_ns
    if how == "touched":
        os.utime(path, ns=(time, time + 1))
    else:
        data = path.read_bytes()
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        os.utime(path, ns=(time, time + 10**9))
    line = weft("run", "saved.json", "out").line
    assert line == f"{file} changed since saved.json was written: make the plan again with `weft plan --save`"
    assert not Path("out").exists()


@pytest.mark.parametrize("file", ["a/model.safetensors", "a/config.json", "a/tokenizer.json", f"b/{SHARDS[0]}"])
def test_a_saved_plan_is_refused_where_a_file_changed_and_its_time_was_set_back(file: str) -> None:
    save()
    path, time = Path(file), Path(file).stat().st_mtime_ns
    path.write_bytes(path.read_bytes())
    os.utime(path, ns=(time, time))
    assert weft("run", "saved.json", "out").line.startswith(f"{file} changed since saved.json was written")
    assert not Path("out").exists()


def test_a_saved_plan_is_refused_where_a_file_is_gone() -> None:
    save()
    Path("b", SHARDS[1]).unlink()
    assert SHARDS[1] in weft("run", "saved.json", "out").line
    assert not Path("out").exists()


def test_damaged_plans() -> None:
    saved = save()
    damaged: list[object] = [
        {key: value for key, value in saved.items() if key != gone} for gone in saved if gone not in ("kind", "version")
    ]
    damaged += [saved | {"settings": saved["settings"] | {name: [value]}} for name, value in saved["settings"].items()]
    damaged += [saved | {"inputs": {"a/model.safetensors": 3}}, saved | {"commits": []}, saved | {"config": 5}]
    for value in damaged:
        Path("damaged.json").write_text(json.dumps(value))
        line = weft("run", "damaged.json", "out").line
        assert line == "damaged.json: a damaged plan: make it again with `weft plan --save`", value
    Path("damaged.json").write_text(json.dumps(saved | {"version": 99}))
    assert "a plan of another version of weft" in weft("run", "damaged.json", "out").line
    Path("damaged.json").write_text(json.dumps(saved)[:-20])
    assert weft("run", "damaged.json", "out").line.startswith("damaged.json, line 1")
    assert not Path("out").exists()


def test_a_config_may_be_json() -> None:
    Path("merge.json").write_text(json.dumps({"models": [{"model": "a", "parameters": {"weight": 1}}], "merge_method": "linear"}))
    assert weft("plan", "merge.json").code == 0


def test_it_reads_headers_only_and_does_not_import_torch() -> None:
    """Files whose data are not there: all holes, 40 GiB of them."""
    script = """
import sys
from unittest.mock import patch
opened = []
sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == "open" else None)
from weft.cli.main import main
with patch.object(sys, "argv", ["weft", "plan", "merge.yaml", "out", "--json"]):
    try:
        main()
    except SystemExit as end:
        assert not end.code, end.code
heavy = [name for name in ("torch", "transformers", "huggingface_hub", "safetensors.torch") if name in sys.modules]
assert not heavy, heavy
"""
    for model in ("a", "b"):
        for path in Path(model).glob("*.safetensors"):
            path.unlink()
        for path in Path(model).glob("*.index.json"):
            path.unlink()
        side = 1 << 16
        shapes = {"model.embed_tokens.weight": side} | {f"model.layers.{n}.mlp.up_proj.weight": side for n in range(4)}
        entries, end = {}, 0
        for name in shapes:
            entries[name] = {"dtype": "BF16", "shape": [side, side], "data_offsets": [end, end + 2 * side * side]}
            end += 2 * side * side
        header = json.dumps(entries).encode()
        with Path(model, "model.safetensors").open("wb") as file:
            file.write(len(header).to_bytes(8, "little") + header)
            file.truncate(8 + len(header) + end)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["bytes_written"] > 5 * 2 * side * side


# a config as it comes


def test_values_in_the_place_of_the_configs() -> None:
    text = Path("merge.yaml").read_text()
    changed = weft("plan", "merge.yaml", "--set", "dtype=float32", "--set", "merge_method=linear", "--json")
    found = json.loads(changed.out)
    assert (found["dtype"], found["method"]) == ("float32", "linear") and Path("merge.yaml").read_text() == text
    assert weft("run", "merge.yaml", "out", "--set", "dtype=float32", "-q").code == 0
    assert "dtype: float32" in json.loads(Path("out/weft.json").read_text())["config"].replace('"', "")
    assert "nothing to do" in weft("plan", "merge.yaml", "out", "--set", "dtype=float32").out
    assert weft("plan", "merge.yaml", "--save", "saved.json", "-q").code == 0
    assert "is a saved plan" in weft("plan", "saved.json", "--set", "dtype=float32").line
    assert "unknown key 'dtyp'" in weft("plan", "merge.yaml", "--set", "dtyp=float32").line


def test_a_config_in_utf_16_is_read_and_one_in_gbk_is_named() -> None:
    text = "# 合并\n" + Path("merge.yaml").read_text()
    Path("wide.yaml").write_bytes(text.encode("utf-16"))
    assert weft("plan", "wide.yaml", "-q").code == 0
    Path("gbk.yaml").write_bytes(text.encode("gbk"))
    assert weft("plan", "gbk.yaml").line == "gbk.yaml, line 1: not in UTF-8 (GBK, it seems): save it as UTF-8"
    Path("nothing.yaml").write_bytes(b"\xff\0\x81")
    assert "not in UTF-8 (UTF-16 without a mark, or no text at all?)" in weft("plan", "nothing.yaml").line


def test_swapped_arguments_are_named() -> None:
    Path("out").mkdir()
    assert "the config comes first" in weft("run", "out", "merge.yaml").line


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("merge_method：slerp\n", "line 1 has U+FF1A, fullwidth colon: write ':'"),
        ("merge_method： slerp\nmodels:\n  - model: a\n", "has U+FF1A, fullwidth colon: write ':'"),
        ("merge_method: linear\nmodels:\n\u00a0\u00a0- model: a\n", "it has U+00A0, no-break space: write ' '"),
        ("merge_method: linear\nmodels: ［a］\n- model: b\n", "has U+FF3B, fullwidth left square bracket"),
        ("merge_method: linear\n\u3000dtype: float16\nmodels: [{model: a}]\n", "has U+3000, ideographic space: write ' '"),
        ('merge_method: linear\nmodels:\n- model: "C:\\Users\\me"\n', "in double quotes a backslash begins an escape"),
        ("merge_method: linear\nmodels:\n- model: 'C:\\Users\\me'\n", "a Windows path: inside WSL it is /mnt/c/Users/me"),
        ("merge_method: linear\nmodels:\n- model: https://example.com/a/b\n", "not the address of a model on the Hub"),
    ],
)
def test_signs_that_only_look_right_are_named(text: str, said: str) -> None:
    Path("odd.yaml").write_text(text, encoding="utf-8")
    assert said in weft("plan", "odd.yaml").line


def test_such_signs_in_texts_are_nobodys_business() -> None:
    Path("odd.yaml").write_text("# 合并：两个\u00a0模型\n" + CONFIG + "chat_template: '{{ “你好：” }}'\n", encoding="utf-8")
    assert weft("plan", "odd.yaml", "-q").code == 0
    Path("odd.yaml").write_text("# 合并：两个模型\n" + CONFIG + "dtyp: float16\n", encoding="utf-8")
    assert "did you mean 'dtype'" in weft("plan", "odd.yaml").line
