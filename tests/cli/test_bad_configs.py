"""Configs that cannot be used: one line that says where and why, exit code 2, and nothing on the disk that looks finished."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest

from cli.command import finished_looking, weft
from cli.models import LINEAR, SLERP, SLICES, write_model

TIES = """\
models:
  - model: b
    parameters: {weight: 1, density: 0.5}
base_model: a
merge_method: ties
"""


class Bad(NamedTuple):
    """A config, the place that its error names after the file, and parts of the message."""

    text: str
    where: str
    says: tuple[str, ...]


def change(text: str, *replacements: tuple[str, str]) -> str:
    """The text with the first occurrence of each replaced."""
    for old, new in replacements:
        assert old in text
        text = text.replace(old, new, 1)
    return text


def first_range(new: str) -> str:
    return change(SLICES, ("[0, 4]", new))


def weight(new: str) -> str:
    return change(LINEAR, ("weight: 1", f"weight: {new}"))


BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 9))

CASES = {
    # unknown names
    "unknown key": Bad(LINEAR + "merge_methd: ties\n", "line 7, merge_methd", ("unknown key", "did you mean 'merge_method'?")),
    "unknown key of a model": Bad(
        change(LINEAR, ("parameters", "paramters")), "line 3, models[0].paramters", ("did you mean 'parameters'?",)
    ),
    "unknown key of a slice": Bad(
        change(SLICES, ("- sources", "- parameter: {t: 1}\n    sources")), "line 2, slices[0].parameter", ("'parameters'?",)
    ),
    "unknown key of a source": Bad(
        change(SLICES, ("layer_range", "layer_rang")), "line 4, slices[0].sources[0].layer_rang", ("'layer_range'?",)
    ),
    "unknown key of a module": Bad(
        "modules:\n  x:\n    model: [a]\nmerge_method: linear\n", "line 3, modules.x.model", ("did you mean 'models'?",)
    ),
    "key with a line break": Bad(LINEAR + '"x\\ny": 1\n', "line 7, x\\ny", ("unknown key 'x\\ny'",)),
    "unknown method": Bad(change(LINEAR, ("linear", "linaer")), "line 6, merge_method", ("did you mean 'linear'?",)),
    "method with a dash": Bad(change(LINEAR, ("linear", "dare-ties")), "line 6, merge_method", ("did you mean 'dare_ties'?",)),
    "unknown parameter": Bad(
        change(TIES, ("density", "densty")), "line 3, models[0].parameters.densty", ("ties has no", "did you mean 'density'?")
    ),
    "unknown dtype": Bad(LINEAR + "dtype: float64\n", "line 7, dtype", ("'bfloat16'", "not 'float64'")),
    # wrong types
    "text for a number": Bad(weight("heavy"), "line 3, models[0].parameters.weight", ("expected a number", "not 'heavy'")),
    "nothing for a number": Bad(weight(""), "line 3, models[0].parameters.weight", ("expected a number", "not None")),
    "map for a number": Bad(weight("{a: 1}"), "line 3, models[0].parameters.weight", ("expected a number",)),
    "empty list": Bad(weight("[]"), "line 3, models[0].parameters.weight", ("an empty list has no values",)),
    "condition without value": Bad(weight("[{filter: mlp}]"), "line 3, models[0].parameters.weight", ("{filter: text, value:",)),
    "filter that is no text": Bad(weight("[{filter: 3, value: 1}]"), "line 3, models[0].parameters.weight", ("not 3",)),
    "boolean for a number": Bad(weight("true"), "line 3, models[0].parameters.weight", ("is a number, not true",)),
    "number for a boolean": Bad(
        LINEAR + "parameters:\n  normalize: 0.5\n", "line 8, parameters.normalize", ("is true or false, not 0.5",)
    ),
    "infinite": Bad(weight(".inf"), "line 3, models[0].parameters.weight", ("not a finite number",)),
    "list for parameters": Bad(change(LINEAR, ("{weight: 1}", "[1]")), "line 3, models[0].parameters", ("expected a map",)),
    "text for models": Bad("models: a\nmerge_method: linear\n", "line 1, models", ("expected a list, not 'a'",)),
    "text for an entry": Bad("models: [a]\nmerge_method: linear\n", "line 1, models[0]", ("expected a map, not 'a'",)),
    "no entry": Bad("models: []\nmerge_method: linear\n", "line 1, models", ("expected at least 1 item",)),
    "number for a model": Bad(change(LINEAR, ("model: a", "model: 5")), "line 2, models[0].model", ("org/name, not 5",)),
    "two revisions": Bad(change(LINEAR, ("model: b", "model: b@x@y")), "line 4, models[1].model", ("more than one '@'",)),
    "two adapters": Bad(change(LINEAR, ("model: b", "model: b+x+y")), "line 4, models[1].model", ("more than one '+'",)),
    "list for a method": Bad(change(LINEAR, ("linear", "[linear]")), "line 6, merge_method", ("expected text",)),
    "text for a range": Bad(first_range("all"), "line 4, slices[0].sources[0].layer_range", ("expected a list",)),
    "range of one number": Bad(first_range("[4]"), "line 4, slices[0].sources[0].layer_range", ("at least 2 items",)),
    "range of three": Bad(first_range("[0, 2, 4]"), "line 4, slices[0].sources[0].layer_range", ("at most 2 items",)),
    "broken layer": Bad(first_range("[0, 3.5]"), "line 4, slices[0].sources[0].layer_range[1]", ("a whole number, not 3.5",)),
    # wrong places and ranges
    "t under a model": Bad(
        change(SLERP, ("{model: a}", "{model: a, parameters: {t: 0.5}}")),
        "line 1, models[0].parameters.t",
        ("belongs to the whole merge", "move it to 'parameters' at the top"),
    ),
    "normalize under a model": Bad(
        weight("1, normalize: true"), "line 3, models[0].parameters.normalize", ("belongs to the whole merge",)
    ),
    "below the range": Bad(
        change(TIES, ("0.5", "-0.1")), "line 3, models[0].parameters.density", ("is at least 0, not -0.1",)
    ),
    "below the range in a gradient": Bad(
        change(TIES, ("0.5", "[1, -0.1]")), "line 3, models[0].parameters.density", ("is at least 0, not -0.1",)
    ),
    "density that keeps nothing": Bad(
        change(TIES, ("0.5", "0.001")), "line 1, models", ("density 0.001 keeps none", "raise the density")
    ),
    "weights that cancel": Bad(
        change(LINEAR, ("weight: 1", "weight: -1")), "line 1, models", ("weights sum to 0", "normalize: false")
    ),
    # which models
    "models and slices": Bad(LINEAR + change(SLICES, ("merge_method: slerp\n", "")), "line 1", ("here: 'models' and 'slices'",)),
    "neither": Bad("merge_method: linear\n", "line 1", ("exactly one of 'models', 'slices', 'modules'",)),
    "models without models": Bad("models:\nmerge_method: linear\n", "line 1", ("exactly one of", "here: none")),
    "no method": Bad(change(LINEAR, ("merge_method: linear\n", "")), "line 1", ("the key 'merge_method' is missing",)),
    "no base": Bad(change(TIES, ("base_model: a\n", "")), "line 1", ("ties needs the key 'base_model'",)),
    "three for slerp": Bad(
        change(SLERP, ("{model: b}", "{model: b}, {model: c}")), "line 1, models", ("slerp takes 2 models", "3 are given")
    ),
    "one for slerp": Bad(change(SLERP, (", {model: b}", "")), "line 1, models", ("slerp takes 2 models", "1 is given")),
    "slerp with a base that is no model": Bad(change(SLERP, ("base_model: a", "base_model: c")), "line 1, models", ("slerp",)),
    "two for passthrough": Bad(
        change(SLICES, ("slerp", "passthrough"), ("{t: 0.5}", "{}")), "line 2, slices[0]", ("passthrough takes 1 model",)
    ),
    "base not among the sources": Bad(
        change(SLICES, ("base_model: a", "base_model: c"), ("[0, 4]", "[0, 2]"), ("[0, 4]", "[2, 4]")),
        "line 2, slices[0]",
        ("the base model c among the slice's sources",),
    ),
    "adapter": Bad(change(LINEAR, ("model: b", "model: b+c")), "line 4, models[1].model", ("c: not an adapter",)),
    # layers
    "empty range": Bad(
        first_range("[2, 2]"), "line 4, slices[0].sources[0].layer_range", ("holds no layer", "exclusive", "is [2, 3]")
    ),
    "reversed range": Bad(first_range("[3, 1]"), "line 4, slices[0].sources[0].layer_range", ("holds no layer",)),
    "range outside": Bad(
        first_range("[0, 5]"), "line 4, slices[0].sources[0].layer_range", ("outside a", "layers 0 to 3")
    ),
    "negative range": Bad(first_range("[-1, 3]"), "line 4, slices[0].sources[0].layer_range", ("layers 0 to 3",)),
    "unequal lengths": Bad(
        first_range("[0, 3]"), "line 6, slices[0].sources[1].layer_range", ("4 layers", "first source has 3")
    ),
    # required parameters
    "no weight": Bad(change(LINEAR, ("    parameters: {weight: 1}\n", "")), "line 2, models[0]", ("the parameter 'weight'",)),
    "no weight in slices": Bad(
        change(SLICES, ("slerp", "linear"), ("parameters: {t: 0.5}\n", ""), ("base_model: a\n", "")),
        "line 3, slices[0].sources[0]",
        ("linear needs the parameter 'weight'",),
    ),
    "no t": Bad(change(SLERP, ("parameters: {t: 0.5}\n", "")), "line 1, parameters", ("slerp needs the parameter 't'",)),
    "t for some tensors only": Bad(
        change(SLERP, ("0.5", "[{filter: mlp, value: 1}]")), "line 4, parameters", ("for tensor 'model.embed_tokens.weight'",)
    ),
    # YAML
    "unclosed list": Bad("models: [a\nmerge_method: linear\n", "line 2", ("not valid YAML",)),
    "two colons": Bad("models: a: b\n", "line 1", ("not valid YAML",)),
    "tabs": Bad("models:\n\t- model: a\nmerge_method: linear\n", "line 2", ("not valid YAML", "'\\t'")),
    "key twice": Bad(LINEAR + "merge_method: ties\n", "line 7", ("key 'merge_method' appears twice",)),
    "tag": Bad(
        LINEAR + "name: !!python/object/apply:os.system ['touch pwned']\n",
        "line 7, name",
        ("the tag !!python/object/apply:os.system is not allowed",),
    ),
    "tag at the root": Bad("!!python/object/apply:os.system ['touch pwned']\n", "line 1", ("is not allowed",)),
    "tag that does not fit": Bad(LINEAR + "name: !!int ''\n", "line 7, name", ("'' is not a value of its type",)),
    "alias bomb": Bad(BOMB, "line 1", ("too large or too deep",)),
    "alias of itself": Bad("a: &a [*a]\n", "line 1", ("too large or too deep",)),
    "two documents": Bad(f"{LINEAR}---\n{LINEAR}", "line 1", ("2 documents are used by no other",)),
    "a list": Bad("- model: a\n", "line 1", ("a config is a map", "not list")),
    "a text": Bad("hello\n", "line 1", ("a config is a map", "not str")),
    # tokenizers
    "no such chat template": Bad(LINEAR + "chat_template: chatlm\n", "line 7, chat_template", ("did you mean 'chatml'?",)),
    "two ways to say whose tokens": Bad(LINEAR + "tokenizer_source: union\ntokenizer: {}\n", "line 1", ("not both",)),
    # mixtures of experts
    "no experts": Bad("base_model: a\nexperts: []\n", "line 2, experts", ("expected at least 1 item",)),
    "a mixture without a base": Bad("experts: [{source_model: b}]\n", "line 1", ("the key 'base_model' is missing",)),
    "misspelt prompts": Bad(
        "base_model: a\nexperts:\n- source_model: b\n  positive_promts: [x]\n", "line 4, experts[0].positive_promts",
        ("did you mean 'positive_prompts'?",),
    ),
    "prompts that are no text": Bad(
        "base_model: a\nexperts: [{source_model: b, positive_prompts: [1]}]\n", "line 2, experts[0].positive_prompts[0]",
        ("expected text, not 1",),
    ),
    "no such gate": Bad(
        "base_model: a\ngate_mode: hiden\nexperts: [{source_model: b}]\n", "line 2, gate_mode", ("'hidden'", "not 'hiden'")
    ),
    "negative noise": Bad(
        "base_model: a\nexperts: [{source_model: b, noise_scale: -1}]\n", "line 2, experts[0].noise_scale", ("at least 0",)
    ),
    "a mixture by a method": Bad(
        "merge_method: linear\nbase_model: a\nexperts: [{source_model: b}]\n", "line 1, merge_method",
        ("unknown key 'merge_method'",),
    ),
}  # fmt: skip


@pytest.fixture(autouse=True)
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Models a, b and c of four layers in the current folder."""
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate("abc"):
        write_model(Path(name), seed=seed)


def refused(text: str) -> str:
    """The line that refuses a config, after a look at what is left on the disk."""
    Path("merge.yaml").write_text(text)
    line = weft("run", "merge.yaml", "out").line
    assert finished_looking(Path("out")) == []
    assert weft("plan", "merge.yaml").line == line
    return line


@pytest.mark.parametrize("name", CASES)
def test_one_line_says_where_and_why(name: str) -> None:
    text, where, says = CASES[name]
    line = refused(text)
    assert line.startswith(f"merge.yaml, {where}: "), line
    assert [part for part in says if part not in line] == [], line
    assert not Path("pwned").exists()


@pytest.mark.parametrize("text", [LINEAR, TIES, SLERP, SLICES])
def test_what_the_cases_are_made_from_works(text: str) -> None:
    Path("merge.yaml").write_text(text)
    assert weft("plan", "merge.yaml").code == 0


@pytest.mark.parametrize("text", ["", "# nothing but a comment\n", "---\n"])
def test_an_empty_config(text: str) -> None:
    assert refused(text).startswith("merge.yaml")
    assert weft("plan", "merge.yaml").code == 2


def test_an_empty_file_is_called_empty() -> None:
    assert refused("") == "merge.yaml: the config is empty"


def test_nesting_without_end() -> None:
    assert "merge.yaml" in refused("a: " + "[" * 5000)


def test_what_is_no_text() -> None:
    Path("merge.yaml").write_bytes(b"\xff\xfe\x00")
    assert weft("run", "merge.yaml", "out").line.startswith("merge.yaml, line 1: not in UTF-8 (UTF-16 without a mark")
    assert "special characters are not allowed" in refused("a: \x07\n")


def test_a_large_file_is_not_read() -> None:
    with Path("merge.yaml").open("wb") as file:
        file.truncate(1 << 40)
    assert weft("run", "merge.yaml", "out").line == f"merge.yaml: more than {1 << 20} bytes are too many for a config"


def test_no_file_and_a_folder() -> None:
    assert weft("run", "merge.yml", "out").line == "merge.yml: there is no such file"
    assert weft("run", "a", "out").line.startswith("a is a folder: the first argument is a config file")
    assert not Path("out").exists()
