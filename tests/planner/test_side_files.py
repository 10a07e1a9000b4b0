"""What goes along with a model: known by name, or named by its own settings, which a stranger wrote."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save

from memory_store import Memory
from merges import MODULES
from weft.errors import CheckpointError
from weft.planner.catalog import open_checkpoint
from weft.planner.side_files import all_side_files, notes
from weft.planner.store import Folder, inner_path

MODEL = {"config.json": b"{}", "model.safetensors": save({"a": torch.ones(2)})}


def along(files: Mapping[str, bytes]) -> set[str]:
    return set(all_side_files(open_checkpoint(Memory("org/m", MODEL | dict(files)))))


def said(files: Mapping[str, bytes]) -> list[str]:
    checkpoint = open_checkpoint(Memory("org/m", MODEL | dict(files)))
    return list(notes("org/m", checkpoint.store.sizes(), all_side_files(checkpoint)))


def modules(*paths: object) -> dict[str, bytes]:
    return {"modules.json": json.dumps([{"path": path, "type": "sentence_transformers.models.X"} for path in paths]).encode()}


def on_disk(folder: Path, files: Mapping[str, bytes]) -> Path:
    for name, data in (MODEL | dict(files)).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def test_folders_that_modules_json_names() -> None:
    others = {"onnx/model.onnx": b"", "0_Old/config.json": b"{}", "1_Pooling/__pycache__/a.pyc": b"", "2_Dense.json": b""}
    assert along(MODULES | others) == {*MODULES, "2_Dense.json"}
    assert along({name: data for name, data in MODULES.items() if name != "modules.json"}) == set()
    assert said(MODULES) == ["org/m: the weights in 2_Dense/ are copied as they are, not merged"]


@pytest.mark.parametrize("path", ["1_P", "./1_P", "1_P/", "1_P/x"])
def test_ways_to_write_a_modules_folder(path: str) -> None:
    assert along(modules("", path) | {"1_P/x/config.json": b"{}"}) == {"modules.json", "1_P/x/config.json"}


OUTSIDE = ["..", "../x", "1_P/../../x", "/etc", "a//b", "a\\b", "C:x", 3, None]
HIDDEN = [".weft", ".git/hooks", "1_P/.git"]
TAKEN = ["weft.json", "README.md", "model.safetensors", "model-00001-of-00002.safetensors", "x.partial", "tokenizer.json"]
ODD = ["a\x1b[2J", "a" * 300, "\u202eabc"]


@pytest.mark.parametrize("path", [*OUTSIDE, *HIDDEN, *TAKEN, *ODD])
def test_folders_that_are_none_of_a_models(path: object) -> None:
    with pytest.raises(CheckpointError, match=r"org/m/modules.json: a module is in .*, which is not a folder of a model"):
        along(modules("", path))


@pytest.mark.parametrize("data", [b"", b"{}", b"[3]", b"\xff", b"[" * 10**5])
def test_a_broken_modules_json(data: bytes) -> None:
    with pytest.raises(CheckpointError, match=r"org/m/modules\.json: "):
        along({"modules.json": data})


def test_templates_with_names_and_licences() -> None:
    files = {"additional_chat_templates/tool.jinja": b"", "LICENSE": b"", "NOTICE.txt": b"", "custom_generate/generate.py": b""}
    assert along(files) == set(files)
    assert along({"templates/tool.jinja": b""}) == set()


CODE = {
    "config.json": json.dumps({"auto_map": {"AutoModel": "modeling_a.A", "AutoX": "org/other--far.A"}}).encode(),
    "tokenizer_config.json": b'{"auto_map": {"AutoTokenizer": ["slow.T", null]}}',
    "processor_config.json": b'{"deep": {"auto_map": {"AutoProcessor": "processing.P"}}}',
    "modeling_a.py": b"raise SystemExit\nfrom .first import A\n  from .second import (\n",
    "first.py": b"from . import third, fourth\n"
    b"from .first import B\nfrom .missing import C\nfrom .. import outer\nimport setup\n",
    "second.py": b"from . import (fifth,\n  sixth as s)\n",
    "slow.py": b"\xff\xfe",
    "processing.py": b"",
    **{f"{name}.py": b"" for name in ("third", "fourth", "fifth", "sixth", "setup", "far", "outer", "as")},
}


def test_code_that_auto_map_names_goes_along_and_is_not_run() -> None:
    before = set(sys.modules)
    names = ("modeling_a", "first", "second", "third", "fourth", "fifth", "sixth", "as", "slow", "processing")
    found = along(CODE)
    assert {name for name in found if name.endswith(".py")} == {f"{name}.py" for name in names}
    assert not {"modeling_a", "first"} & (set(sys.modules) - before)
    copied, left = said(CODE)
    assert copied.startswith("org/m brings code of its own (as.py, fifth.py,") and copied.endswith("neither run nor checked")
    assert left == "org/m brings code of its own (far.py, outer.py, setup.py), which is neither run nor copied"


def test_code_of_a_module_of_ones_own() -> None:
    files = {"modules.json": b'[{"path": "", "type": "custom_st.Transformer"}]', "custom_st.py": b"", "other.py": b""}
    assert along(files) == {"modules.json", "custom_st.py"}


def test_long_code_is_searched_in_no_time() -> None:
    files = {**CODE, "modeling_a.py": b"\n \t" * 300_000 + b"from .first import A\n" + b"from . import (" + b"a, " * 300_000}
    assert "first.py" in along(files)


NAMES = st.lists(st.sampled_from(["a", "..", ".", "", ".weft", "b.json", "c" * 60, "\x1b", "é"]), min_size=1, max_size=5)


@given(NAMES)
def test_paths_that_are_followed_lead_into_the_folder(parts: list[str]) -> None:
    path = "/".join(parts)
    if inner_path(path):
        assert Path("/model", path).resolve().is_relative_to("/model") and ".weft/" not in path and len(path) < 200


def test_links_out_of_the_folder(tmp_path: Path) -> None:
    outside = on_disk(tmp_path / "outside", {"1_P/config.json": b"secret"})
    one = on_disk(tmp_path / "one", modules("1_P"))
    (one / "1_P").symlink_to(outside / "1_P")
    with pytest.raises(CheckpointError, match="a link out of the model's folder"):
        all_side_files(open_checkpoint(Folder(one, "one")))
    two = on_disk(tmp_path / "two", {**modules("1_P"), "1_P/a.json": b"{}"})
    (two / "1_P" / "config.json").symlink_to(outside / "1_P" / "config.json")
    with pytest.raises(CheckpointError, match=r"two/config.json|two/1_P/config.json"):
        all_side_files(open_checkpoint(Folder(two, "two")))
    three = on_disk(tmp_path / "three", {**modules("1_P"), "1_P/a.json": b"{}"})
    (three / "1_P" / "deeper").symlink_to(outside)
    assert set(all_side_files(open_checkpoint(Folder(three, "three")))) == {"modules.json", "1_P/a.json"}


def test_a_folder_in_which_too_much_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("weft.planner.store.MOST_FILES", 5)
    folder = on_disk(tmp_path / "m", modules("1_P"))
    (folder / "1_P").mkdir()
    for number in range(6):
        (folder / "1_P" / f"{number}.txt").touch()
    with pytest.raises(CheckpointError, match=r"m: 1_P holds more than 5 files"):
        all_side_files(open_checkpoint(Folder(folder, "m")))


def test_a_name_that_cannot_be_copied(tmp_path: Path) -> None:
    odd = {"a:b.json": b"", "a\nb.txt": b"", "é.json": b""}
    assert along(odd) == {"é.json"}
    assert said(odd) == ["org/m: not copied, for their names are too long or odd: a\nb.txt, a:b.json"]
    folder = on_disk(tmp_path / "m", {**modules("1_P"), "1_P/a\nb.json": b"{}"})
    with pytest.raises(CheckpointError, match="too long or odd to be copied"):
        all_side_files(open_checkpoint(Folder(folder, "m")))
    hidden = on_disk(tmp_path / "h", {**modules("1_P"), "1_P/.DS_Store": b"", "1_P/.git/x": b"", "1_P/a.json": b""})
    assert set(all_side_files(open_checkpoint(Folder(hidden, "h")))) == {"modules.json", "1_P/a.json"}
