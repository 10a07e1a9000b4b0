"""Every parser of what strangers write: spoilt files and structured nonsense are read or refused, in bounded time.

What `make fuzz` found is replayed from corpus/.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fuzz.targets import TARGETS, accepts

CORPUS = sorted((Path(__file__).parent / "corpus").glob("*/*"))
JSON = ["index", "config_json", "tokenizer", "tokenizer_settings", "adapter_config"]
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(1 << 70), 1 << 70)
    | st.floats()
    | st.sampled_from(["", "a", "q_proj", "../../x.safetensors", "/etc/passwd", "model.safetensors", "(a+)+$", "\x00", "\ud800"])
    | st.text(max_size=5)
)
NONSENSE = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3), max_leaves=6
)


@pytest.mark.parametrize("name", TARGETS)
def test_valid_input_is_taken(name: str) -> None:
    assert accepts(name, TARGETS[name][1])


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_what_the_fuzzer_found(path: Path) -> None:
    accepts(path.parent.name, path.read_bytes())


@pytest.mark.parametrize("name", TARGETS)
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_spoilt_files(name: str, data: st.DataObject) -> None:
    spoilt = bytearray(TARGETS[name][1])
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, max(len(spoilt) - 1, 0)))
        match data.draw(st.sampled_from(["set", "insert", "remove", "repeat", "cut"])):
            case "set" if spoilt:
                spoilt[at] = data.draw(st.integers(0, 255))
            case "insert":
                spoilt[at:at] = data.draw(st.binary(max_size=6) | st.sampled_from([b"[" * 70, b"9" * 5000, b"NaN", b"\xff"]))
            case "remove":
                del spoilt[at : at + data.draw(st.integers(1, 20))]
            case "repeat":
                spoilt[at:at] = spoilt[at : at + data.draw(st.integers(1, 40))]
            case "cut":
                del spoilt[at:]
    accepts(name, bytes(spoilt))


@pytest.mark.parametrize("name", JSON)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_json_with_nonsense_anywhere(name: str, data: st.DataObject) -> None:
    value = json.loads(TARGETS[name][1])
    places = list(_places(value))
    for _ in range(data.draw(st.integers(1, 3))):
        holder, key = data.draw(st.sampled_from(places))
        if isinstance(holder, dict) or key < len(holder):
            holder[key] = data.draw(NONSENSE)
    accepts(name, json.dumps(value).encode())


def _places(value: Any) -> Any:
    """Every place of a JSON value: what holds it, and its key there."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in list(items):
        yield value, key
        yield from _places(item)
