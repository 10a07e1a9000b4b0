"""`--set`: any value, at any place of any config, and nothing else changes."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from trials import trials
from weft.errors import ConfigError
from weft.planner.document import parse
from weft.planner.overrides import override

CONFIG = """\
# a comment
merge_method: slerp   # another
models:
- model: a
  parameters: &shared {weight: 0.5}
- model: b
slices:
  - sources:
    - model: "c"
parameters:
  t:
  - filter: mlp
    value: [0, 1]
  - value: 0.5
  empty:
base_model: a
tokenizer: {}
chat_template: |
  text
  more
"""


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("merge_method", "ties"),
        ("dtype", "bfloat16"),
        ("models[0].parameters.weight", 0.25),
        ("models[0].parameters.density", [0, 1]),
        ("models[1].parameters.weight", True),
        ("models[1]", {"model": "other"}),
        ("slices[0].sources[0].model", "d"),
        ("parameters.t", 0.3),
        ("parameters.t[0].value", 0.1),
        ("parameters.t[1].filter", "attn"),
        ("parameters.empty", 1),
        ("parameters.empty.x", 1),
        ("parameters.new.deep", None),
        ("tokenizer.source", "union"),
        ("chat_template", "chatml"),
        ("base_model", "b: #not a comment"),
        ("parameters", {"t": 0.5}),
        ("slices", None),
    ],
)
def test_only_what_was_asked_for_changes(key: str, value: Any) -> None:
    text = override(CONFIG, "merge.yaml", [f"{key}={json.dumps(value)}"])
    was, now = yaml.safe_load(CONFIG), yaml.safe_load(text)
    place: Any = was
    steps = [int(step) if step.isdigit() else step for step in key.replace("[", ".").replace("]", "").split(".")]
    for step in steps[:-1]:
        if isinstance(place, dict) and place.get(step) is None:
            place[step] = {}
        place = place[step]
    place[steps[-1]] = value
    assert now == was
    assert "# a comment" in text


def test_several_and_plain_words() -> None:
    text = override(CONFIG, "merge.yaml", ["dtype=bfloat16", "parameters.t=[0, 0.5, 1]", "dtype=float16", "base_model="])
    found = yaml.safe_load(text)
    small = override(CONFIG, "merge.yaml", ["parameters.t=[1.0e-7, -2.5e+30, .inf]"])
    assert yaml.safe_load(small)["parameters"]["t"] == [1e-7, -2.5e30, float("inf")]
    assert (found["dtype"], found["parameters"]["t"], found["base_model"]) == ("float16", [0, 0.5, 1], None)


def test_documents_by_name() -> None:
    text = "name: one\nparameters: {t: 1}\n---\nparameters: {t: 2}\n"
    changed = override(text, "merge.yaml", ["one:parameters.t=3"])
    assert [document["parameters"]["t"] for document in yaml.safe_load_all(changed)] == [3, 2]
    assert override("a: 1", "merge.yaml", ["a=2"]) == "a: 2"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("parameters.t", "write KEY=VALUE"),
        ("=1", "write KEY=VALUE"),
        ("a..b=1", "write KEY=VALUE"),
        ("models[2].model=x", r"--set models\[2\]\.model=x: models has no item 2"),
        ("merge_method.x=1", "merge_method is not a map with keys"),
        ("new[0]=1", "there is no list"),
        ("dtype=[1", "not valid YAML"),
        ("dtype=!!python/object:os.system 1", "tag"),
        ("two:dtype=x", "no document has the name 'two'"),
    ],
)
def test_what_has_no_place(given: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        override(CONFIG, "merge.yaml", [given])


def test_a_value_that_others_share_is_left_alone() -> None:
    text = "a: &x {w: 1}\nb: *x\n"
    with pytest.raises(ConfigError, match="shared by a YAML alias"):
        override(text, "merge.yaml", ["a.w=2"])
    merged = override("a: &x {w: 1}\nb:\n  <<: *x\n  v: 1\n", "merge.yaml", ["b.w=2"])
    assert parse(merged, "merge.yaml")[0].value == {"a": {"w": 1}, "b": {"w": 2, "v": 1}}


KEYS = st.sampled_from(["a", "b", "c d", "model", "x-y", "1", "true", "ü"])
LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(-9, 9), st.text("ab: #'\"\n-", max_size=6), st.floats(-1, 1).map(lambda x: round(x, 3))
)
VALUES = st.recursive(LEAVES, lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(KEYS, inner, max_size=3)))


STYLES = st.sampled_from([None, True, False])


@given(st.dictionaries(KEYS, VALUES, min_size=1, max_size=4), VALUES, st.data(), STYLES, st.booleans())
@trials(100)
def test_any_value_in_any_config(
    config: dict[str, Any], value: Any, data: st.DataObject, flow: bool | None, indented: bool
) -> None:
    class Dumper(yaml.SafeDumper):
        def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
            super().increase_indent(flow, indentless and not indented)

    text = yaml.dump(config, Dumper=Dumper, default_flow_style=flow, allow_unicode=True)
    place: Any = config
    key = ""
    while isinstance(place, dict | list) and place and (not key or data.draw(st.booleans())):
        at = data.draw(st.sampled_from(range(len(place)) if isinstance(place, list) else sorted(place)))
        key += f"[{at}]" if isinstance(at, int) else f".{at}"
        outer, place = place, place[at]
    changed = override(text, "merge.yaml", [f"{key.removeprefix('.')}={json.dumps(value)}"])
    outer[at] = value
    assert parse(changed, "merge.yaml")[0].value == config


def test_an_empty_config_has_no_place_for_a_value() -> None:
    with pytest.raises(ConfigError, match="the config is empty"):
        override("# nothing\n", "merge.yaml", ["a=1"])
