"""What the documentation says, tried: its configs load, its links lead somewhere, its commands exist."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from cli.command import weft
from weft.ops.registry import methods
from weft.planner.config import MergeConfig, load_config
from weft.planner.mixture_config import Expert, MixtureConfig
from weft.planner.parameters import check_parameters

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
FIRST_METHODS = ("linear", "slerp", "passthrough", "task_arithmetic", "ties", "dare_linear", "dare_ties")


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path, language: str) -> list[str]:
    """Fenced blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """The names that headings get on a Git host."""
    titles = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


YAML = [(page, text) for page in PAGES for text in blocks(page, "yaml")]


@pytest.mark.parametrize(("page", "text"), YAML, ids=[f"{name(page)}-{i}" for i, (page, _) in enumerate(YAML)])
def test_configs_load(page: Path, text: str) -> None:
    value = yaml.safe_load(text)
    assert isinstance(value, dict)
    if "experts" in value:
        assert load_config(text).mixture is not None
    elif set(value) <= set(MergeConfig.model_fields):
        if "merge_method" not in value:
            text += "merge_method: ties\nbase_model: org/base\n"
        config = load_config(text)
        check_parameters(config, methods()[config.merge.merge_method], methods())
    else:  # parameters alone
        body = "".join(f"  {line}\n" for line in text.splitlines())
        config = load_config(f"models: [{{model: a}}]\nmerge_method: linear\nparameters:\n{body}")
        assert set(config.merge.parameters or {}) == set(value)


def test_there_are_configs_to_load() -> None:
    pages = [name(page) for page, _ in YAML]
    assert pages.count("docs/config.md") >= 8 and pages.count("README.md") >= 1


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        found = (page.parent / path).resolve() if path else page
        assert found.exists(), f"{name(page)}: {target}"
        if anchor:
            assert anchor in anchors(found), f"{name(page)}: {target}"


def commands(page: Path) -> Iterator[list[str]]:
    """The words of each `weft ...` that is quoted, without what is said about it."""
    text = page.read_text()
    lines = [line for block in blocks(page, "[a-z]*") for line in block.splitlines()]
    for line in [*lines, *re.findall(r"`(weft [^`]+)`", text.replace("\n", " "))]:
        words = (
            shlex.split(line, comments=True) if re.match(r"\s*weft (?![\d.])", line) else []
        )  # not what `weft --version` prints
        if words:
            yield words[1 : words.index(">") if ">" in words else None]


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_commands_exist(page: Path) -> None:
    for words in commands(page):
        if words[0].startswith("-"):
            assert words[0] in ("--help", "--version", "--install-completion"), words
            continue
        assert f"Usage: weft {words[0]}" in weft(words[0], "--help").out, words
        for option in (word for word in words if word.startswith("-")):
            # A value is read where one is wanted; the help ends the command before anything else is looked at.
            outcome = weft(words[0], "--no-such-option", option) if option == "" else weft(words[0], option, "1", "--help")
            assert "No such option" not in outcome.err, words


def test_commands_that_do_not_exist_are_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("`weft frobnicate x`\n\n```\nweft run a b --frobnicate 3 # why not\n```\n")
    assert list(commands(page)) == [["run", "a", "b", "--frobnicate", "3"], ["frobnicate", "x"]]
    assert weft("frobnicate", "--help").out == ""
    assert "No such option" in weft("run", "--frobnicate", "1", "--help").err


@pytest.mark.parametrize("method", FIRST_METHODS)
def test_parameters_are_documented_as_they_are(method: str) -> None:
    text = (ROOT / "docs" / "config.md").read_text()
    sections = {title: body for title, body in re.findall(r"^### (.+?)\n(.*?)(?=^##)", text, re.DOTALL | re.MULTILINE)}
    body = next(body for title, body in sections.items() if method in title.split(" and "))
    documented = {row[0]: row[1:] for row in re.findall(r"^\| `(\w+)` \| (\w*) \| (.*?) \| ", body, re.MULTILINE)}
    declared = methods()[method].parameters
    assert set(documented) == {parameter.name for parameter in declared if not parameter.inert} | (
        set(documented) & {"int8_mask"}
    )
    for parameter in declared:
        if not parameter.inert:
            default = (
                "required" if parameter.required else "none" if parameter.default is None else str(parameter.default).lower()
            )
            scope = "model" if parameter.scope == "model" else "merge"
            assert documented[parameter.name] == (scope, re.sub(r"\.0$", "", default))


def test_keys_are_documented_as_they_are() -> None:
    text = (ROOT / "docs" / "config.md").read_text()
    table = text.split("## Keys")[1].split("\n## ")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)) == set(MergeConfig.model_fields)


def test_keys_of_mixtures_are_documented_as_they_are() -> None:
    text = (ROOT / "docs" / "moe.md").read_text()
    mixture, expert = (part.split("\n\n|")[1] for part in text.split("## Keys")[1].split("\nAn expert has these:"))
    for table, kind in ((mixture, MixtureConfig), (expert, Expert)):
        keys = [
            re.findall(r"`(\w+)`", row.split("|")[1 if row.startswith("|") else 0]) for row in table.split("\n\n")[0].splitlines()
        ]
        assert {key for row in keys for key in row} == set(kind.model_fields)


# Translations.


def outline(page: str) -> dict[str, object]:
    """What a page and its translation have in common: levels of headings, commands, rows of tables, blocks of code."""
    text = (ROOT / page).read_text(encoding="utf-8")
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    commands = [line.split("  #")[0].rstrip() for language, block in blocks if not language for line in block.splitlines()]
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
    return {
        "headings": [len(level) for level in re.findall(r"^(#+) ", prose, re.MULTILINE)],
        "blocks": [language for language, _ in blocks],
        "commands": commands,
    }


@pytest.mark.parametrize(("page", "translation"), [("README.md", "README.zh-CN.md"), ("docs/guide.md", "docs/guide.zh-CN.md")])
def test_translations_keep_up(page: str, translation: str) -> None:
    assert outline(translation) == outline(page)


def test_the_translated_guide_explains_the_same_lines_and_errors() -> None:
    keys = [
        re.findall(r"^\| (`[^|]*?`)", (ROOT / f"docs/guide{end}.md").read_text("utf-8"), re.MULTILINE) for end in ("", ".zh-CN")
    ]
    assert keys[0] == keys[1] and len(keys[0]) > 15
