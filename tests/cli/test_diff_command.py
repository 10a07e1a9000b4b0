"""`weft diff`: what people and programs see."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from cli.command import weft
from cli.models import tensors, write_model

UP = "model.layers.2.mlp.up_proj.weight"


@pytest.fixture(autouse=True)
def _inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_model(Path("a"), tensors())


def test_identical_models_are_one_line() -> None:
    outcome = weft("diff", "a", "a")
    assert outcome.code == 0 and outcome.out == "identical: 15 tensors, 1,064 elements\n"


def test_one_changed_tensor_is_found() -> None:
    changed = tensors()
    changed[UP] = changed[UP].clone()
    changed[UP][0, 0] += 1
    write_model(Path("b"), changed, shards=2)
    outcome = weft("diff", "a", "b")
    assert outcome.code == 0 and "1 of 15 tensors differ, in 1 of 1,064 elements" in outcome.out
    assert UP in outcome.out and "model.layers.2 " in outcome.out
    found = json.loads(weft("diff", "a", "b", "--json").out)
    assert not found["identical"] and found["total"]["differing"] == 1
    (tensor,) = [tensor for tensor in found["tensors"] if tensor["differing"]]
    delta = (changed[UP].double() - tensors()[UP].double()).norm() / tensors()[UP].double().norm()
    assert tensor["name"] == UP and tensor["relative"] == pytest.approx(float(delta))
    assert [layer["differing"] for layer in found["layers"]] == [0, 0, 0, 1, 0]


def test_remarks() -> None:
    other = tensors(vocabulary=17) | {"new": torch.tensor([torch.nan])}
    write_model(Path("b"), other)
    out = weft("diff", "a", "b").out
    assert "only in b: new" in out
    assert "shapes disagree: 2 tensors, such as" in out and "which is [16, 8] in a and [17, 8] in b" in out
    nan = tensors()
    nan[UP][0, 0] = torch.nan
    write_model(Path("c"), nan)
    assert "c has 1 NaN and 0 Inf values" in weft("diff", "a", "c").out


def test_the_list_is_short_unless_all_are_asked_for() -> None:
    write_model(Path("b"), tensors(seed=1))
    assert "and 5 more: --tensors lists them" in weft("diff", "a", "b").out
    assert "more" not in weft("diff", "a", "b", "--tensors").out


def test_what_cannot_be_compared() -> None:
    assert "write the adapter into its base" in weft("diff", "a", "a+x").line
    assert "there is no such folder" in weft("diff", "a", "nowhere").line
    outcome = weft("diff", "a", "a", "--ram", "1MiB")
    assert outcome.code == 3 and re.search(r"it needs at least --ram \d+MiB", outcome.line)
