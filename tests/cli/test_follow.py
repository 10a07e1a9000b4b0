"""A run that is followed by a program, and one that refuses NaN and Inf."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from cli.command import weft
from merges import hashes, linear, recipe, small_tensors, write_config, write_model, write_two


def test_every_event_is_a_line_of_json(tmp_path: Path) -> None:
    config = write_config(tmp_path / "config.yaml", recipe("ties", *write_two(tmp_path)))
    log, out = tmp_path / "log.jsonl", tmp_path / "out"
    assert weft("run", config, out, "-q", "--log-json", log).code == 0
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert (lines[0]["event"], lines[-1]["event"]) == ("plan", "finished")
    assert (lines[0]["tensors"], lines[0]["done_tensors"], lines[0]["version"]) == (9, 0, 1)
    started, ended = ({(x["kind"], x["task"]): x for x in lines if x["event"] == f"task_{end}"} for end in ("start", "end"))
    assert started.keys() == ended.keys() and {kind for kind, _ in started} == {"load", "compute", "save"}
    for key, line in ended.items():
        assert line["seconds"] >= 0 and line["held"] >= 0 and line["time"] >= started[key]["time"]
        assert (line["tensor"], line["bytes"]) == (started[key]["tensor"], started[key]["bytes"])
    manifest = json.loads((out / "weft.json").read_text())
    assert {x["tensor"] for x in lines if x["event"] == "tensor_durable"} == set(manifest["tensors"])
    assert sum(x["bytes"] for x in ended.values() if x["kind"] == "load") == lines[-1]["bytes_read"]
    assert manifest["totals"]["bytes"] == lines[-1]["bytes_written"]
    assert weft("run", config, out, "-q", "--out-shard-size", "3K", "--log-json", log).code == 0
    more = [json.loads(line) for line in log.read_text().splitlines()][len(lines) :]
    assert {x["kind"] for x in more if x["event"] == "task_end"} == {"copy"} and more[-1]["reused"] == 9
    before = len(log.read_text().splitlines())
    assert weft("run", config, out, "-q", "--out-shard-size", "3K", "--log-json", log).code == 0
    (nothing,) = [json.loads(line) for line in log.read_text().splitlines()][before:]
    assert nothing["event"] == "finished" and nothing["already_complete"] and nothing["tensors"] == 9


def test_a_log_that_cannot_be_written(tmp_path: Path) -> None:
    config = write_config(tmp_path / "config.yaml", recipe("ties", *write_two(tmp_path)))
    outcome = weft("run", config, tmp_path / "out", "-q", "--log-json", tmp_path / "no" / "log")
    assert outcome.line.startswith(f"--log-json {tmp_path}/no/log: No such file") and not (tmp_path / "out").exists()


def test_a_strict_run_publishes_no_nan(tmp_path: Path) -> None:
    tensors = small_tensors(2)
    tensors["model.norm.weight"][3] = torch.nan
    tensors["lm_head.weight"][0, 0] = torch.inf
    base, other = write_model(tmp_path / "base", small_tensors(1)), write_model(tmp_path / "other", tensors)
    config, out = write_config(tmp_path / "config.yaml", linear(base, other)), tmp_path / "out"
    outcome = weft("run", config, out, "-q", "--strict")
    assert "has 1 NaN and 1 Inf values in tensor 'lm_head.weight' and 1 more: not published" in outcome.line
    assert not (out / "weft.json").exists() and not list(out.glob("*.safetensors"))
    accepted = weft("run", config, out)
    assert accepted.code == 0 and "(0 computed, 9 reused)" in accepted.out and "NaN or Inf values" in accepted.out
    before = hashes(out)
    assert "has 1 NaN and 1 Inf values" in weft("run", config, out, "-q", "--strict").line
    assert hashes(out) == before


def test_a_strict_run_of_finite_numbers(tmp_path: Path) -> None:
    config = write_config(tmp_path / "config.yaml", linear(*write_two(tmp_path)))
    assert weft("run", config, tmp_path / "out", "-q", "--strict").code == 0
    assert weft("run", config, tmp_path / "out", "--strict").code == 0


def test_a_run_for_a_script(tmp_path: Path) -> None:
    config, out = write_config(tmp_path / "config.yaml", recipe("ties", *write_two(tmp_path))), tmp_path / "out"
    planned = json.loads(weft("run", config, out, "--dry-run", "--json").out)
    assert planned["tensors"] == 9 and not out.exists()
    assert "9; tasks:" in weft("run", config, out, "--dry-run").out and not out.exists()
    first = json.loads(weft("run", config, out, "--json").out)
    again = json.loads(weft("run", config, out, "--json").out)
    assert first.keys() == again.keys() and (first["computed"], again["computed"]) == (9, 0)
    assert (first["already_complete"], again["already_complete"]) == (False, True)
    (line,) = weft("run", config, out, "--log-json", "-").out.splitlines()
    assert json.loads(line)["event"] == "finished"
    assert "choose one" in weft("run", config, out, "--json", "--log-json", "-").line


def test_the_methods_for_a_script() -> None:
    found = json.loads(weft("methods", "--json").out)
    assert found["ties"]["base_model"] == "required" and found["slerp"]["models"] == {"at_least": 2, "at_most": 2}
    assert {parameter["name"] for parameter in found["ties"]["parameters"]} >= {"weight", "density"}
