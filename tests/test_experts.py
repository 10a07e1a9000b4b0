"""The experts of examples/experts, merged: a mistake in the mathematics shows up as lost skill.

The models are asked as table.py asks them, which README.md's table comes from, only less often.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import weft
from weft.planner.config import read_config

ROOT = Path(__file__).parents[1]
HERE = ROOT / "examples" / "experts"
SKILLS = ("sort", "flip", "plus")
PROMPTS = 40


@pytest.fixture(scope="module")
def example() -> Iterator[Any]:
    """The example's scripts, which are no package."""
    names = ("skills", "evaluate", "table")
    sys.path.insert(0, str(HERE))
    try:
        import evaluate
        import skills
        import table

        yield type("Example", (), {"skills": skills, "evaluate": evaluate, "table": table})
    finally:
        sys.path.remove(str(HERE))
        for name in names:
            sys.modules.pop(name, None)


@pytest.fixture(autouse=True)
def in_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def merged(example: Any, name: str) -> dict[str, float]:
    """Scores of a merge, which is not written: its tensors go into the base's model."""
    model, tokenizer = example.evaluate.load(HERE / "models" / "base")
    model.load_state_dict({name: tensor.float() for name, tensor in weft.merge(HERE / "configs" / f"{name}.yaml", ram="64MiB")})
    return dict(example.evaluate.evaluate(model, tokenizer, PROMPTS).exact)


@pytest.fixture(scope="module")
def alone(example: Any) -> dict[str, dict[str, float]]:
    load, evaluate = example.evaluate.load, example.evaluate.evaluate
    return {name: dict(evaluate(*load(HERE / "models" / name), PROMPTS).exact) for name in ("base", *SKILLS)}


def test_an_expert_has_its_skill_and_no_other(alone: dict[str, dict[str, float]]) -> None:
    for skill in SKILLS:
        assert alone[skill][skill] > 0.9, alone
        for other in set(alone) - {skill}:
            assert alone[other][skill] < 0.5 * alone[skill][skill], alone


@pytest.mark.parametrize("name", ["task_arithmetic", "ties"])
def test_a_merge_keeps_every_skill(example: Any, name: str, alone: dict[str, dict[str, float]]) -> None:
    scores = merged(example, name)
    for skill in SKILLS:
        assert scores[skill] > 0.8 * alone[skill][skill], scores


def test_differences_taken_away_are_skills_lost(example: Any) -> None:
    """The thresholds mean something: one wrong sign in the formula, and no skill is left."""
    model, tokenizer = example.evaluate.load(HERE / "models" / "base")
    content = dict(weft.merge(HERE / "configs" / "task_arithmetic.yaml"))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            base = parameter.clone()
            parameter.copy_(base - (content[name].float() - base))
    scores = example.evaluate.evaluate(model, tokenizer, PROMPTS).exact
    assert max(scores.values()) < 0.5, scores


def test_a_mixture_sends_tokens_to_the_expert_that_knows_them(
    example: Any, tmp_path: Path, alone: dict[str, dict[str, float]]
) -> None:
    weft.run(weft.plan(HERE / "configs" / "moe_hidden.yaml", ram="512MiB"), tmp_path / "mixture")
    model, tokenizer = example.evaluate.load(tmp_path / "mixture")
    scores = example.evaluate.evaluate(model, tokenizer, PROMPTS).exact
    routes = example.evaluate.routes(model, tokenizer)
    for number, skill in enumerate(SKILLS):
        assert scores[skill] > 0.7 * alone[skill][skill], scores
        assert routes[skill][number] > 0.5, routes


def test_pages_show_one_table(example: Any) -> None:
    """README.md and docs/merging-works.md have the table that `make experts` writes, with a row for every model and merge."""
    begin, end = re.escape(example.table.BEGIN), re.escape(example.table.END)
    tables = [re.findall(f"{begin}\n\n(.*?)\n{end}", (ROOT / page).read_text(), re.DOTALL) for page in example.table.PAGES]
    assert tables[0] == tables[1] and len(tables[0]) == 1
    rows = re.findall(r"^\| (?:expert: )?`?(\w+)`? \|", tables[0][0].split("\n\n")[0], re.MULTILINE)
    assert rows == ["model", *example.table.MODELS, *example.table.MERGES]


def test_every_config_has_a_row(example: Any) -> None:
    assert {path.stem for path in (HERE / "configs").glob("*.yaml")} == set(example.table.MERGES)
    assert all(read_config(HERE / "configs" / f"{name}.yaml") for name in example.table.MERGES)
