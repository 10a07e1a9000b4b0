"""docs/methods.md against what the methods declare: every method, every parameter, every default."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from weft.ops.method import Parameter
from weft.ops.registry import methods

PAGE = Path(__file__).parents[1] / "docs" / "methods.md"
TEXT = PAGE.read_text()
SECTIONS = dict(re.findall(r"^### (.+?)\n(.*?)(?=^##|\Z)", TEXT, re.DOTALL | re.MULTILINE))
OURS = {name: method for name, method in methods().items() if method.kernel.__module__.startswith("weft.ops.")}


def default(parameter: Parameter) -> str:
    if parameter.required:
        return "required"
    if parameter.default is None:
        return "none"
    return str(parameter.default).lower() if isinstance(parameter.default, bool) else f"{parameter.default:g}"


def test_every_method_has_a_section_and_no_other_has() -> None:
    assert list(SECTIONS) == list(dict.fromkeys(SECTIONS)) and set(SECTIONS) == set(OURS)


@pytest.mark.parametrize("name", OURS)
def test_parameters_are_documented_as_they_are(name: str) -> None:
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| (.*?) \| .+ \|$", SECTIONS[name], re.MULTILINE)
    places = {"model": "model", "global": "merge"}
    declared = [(p.name, places[p.scope], default(p)) for p in OURS[name].parameters if not p.inert]
    assert sorted(rows) == sorted(declared)


@pytest.mark.parametrize("name", OURS)
def test_a_section_has_a_formula_and_says_when_and_whence(name: str) -> None:
    section = SECTIONS[name]
    assert re.search(r"^    \S", section, re.MULTILINE), "a formula"
    assert "\nWhen: " in section
    assert not OURS[name].source or re.search(r"(Papers?|Source): ", section.replace("\n", " "))
    own = {p.name for p in OURS[name].parameters if not p.inert} - {"weight"}
    formulas_and_notes = re.sub(r"^\|.*\n", "", section, flags=re.MULTILINE)
    rescaled = own - {"nuslerp_flatten", "nuslerp_row_wise", "filter_wise", "normalize_weights", "rescale", "normalize"}
    assert all(parameter in formulas_and_notes for parameter in rescaled), "what the formula depends on is in it"


def test_every_method_can_be_chosen() -> None:
    choice = TEXT.split("## How to choose")[1].split("\n## ")[0] + TEXT.split("## Task vectors")[1].split("\n### ")[0]
    assert [name for name in OURS if not re.search(rf"\b{name}\b", choice)] == []


def test_years_agree_with_the_declared_sources() -> None:
    for name, method in OURS.items():
        for year in re.findall(r"\b(?:19|20)\d\d\b", method.source):
            section = SECTIONS[name]
            while referred := re.search(r"Papers?: as (\w+)", section):
                section = section.replace(referred.group(0), "") + SECTIONS[referred.group(1)]
                for other in re.findall(r"\[(\w+)\]\(#\w+\)", section):
                    section += SECTIONS[other]
            assert year in section, (name, year)
