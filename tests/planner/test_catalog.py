"""What a folder of model files is, from headers alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from cli.models import INDEX, SHARDS, write_model
from memory_store import Memory, torch_saved
from weft.errors import CheckpointError
from weft.planner.catalog import InputTensor, open_checkpoint
from weft.planner.side_files import is_side_file
from weft.planner.store import Folder

PICKLE_INDEX = "pytorch_model.bin.index.json"
DIFFUSION = [f"diffusion_pytorch_model-0000{i}-of-00002.safetensors" for i in (1, 2)]
ONE = save({"a": torch.ones(2), "b": torch.ones(2, dtype=torch.bfloat16)})
TWO = save({"c": torch.ones(3)})
BIN = torch_saved({"d": torch.ones(4)})
JSON = {"config.json": b"{}"}


def index(**weight_map: object) -> bytes:
    return json.dumps({"weight_map": weight_map}).encode()


def names(files: Mapping[str, bytes]) -> dict[str, str]:
    """The file of each tensor."""
    tensors = open_checkpoint(Memory("org/m", JSON | dict(files))).tensors
    return {name: tensor.file.name for name, tensor in tensors.items() if isinstance(tensor, InputTensor)}


def message(files: Mapping[str, bytes]) -> str:
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(Memory("org/m", files))
    assert str(caught.value).startswith("org/m")
    return str(caught.value)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"model.safetensors": ONE}, ["a", "b"]),
        ({"pytorch_model.bin": BIN}, ["d"]),
        ({"model.safetensors": ONE, "pytorch_model.bin": BIN}, ["a", "b"]),
        ({SHARDS[0]: ONE, SHARDS[1]: TWO}, ["a", "b", "c"]),
        ({SHARDS[0]: ONE, SHARDS[1]: TWO, INDEX: index(a=SHARDS[0], b=SHARDS[0], c=SHARDS[1])}, ["a", "b", "c"]),
        ({"x.safetensors": ONE, "model.safetensors": TWO, INDEX: index(a="x.safetensors")}, ["a", "b"]),
        ({"pytorch_model.bin": TWO, "x.bin": BIN, PICKLE_INDEX: index(d="x.bin")}, ["d"]),
        ({"weights.safetensors": ONE}, ["a", "b"]),
        ({"model.safetensors": ONE, "model.fp16.safetensors": TWO}, ["a", "b"]),
        ({"diffusion_pytorch_model.safetensors": ONE, "diffusion_pytorch_model.fp16.safetensors": TWO}, ["a", "b"]),
        ({"diffusion_pytorch_model.fp16.safetensors": TWO}, ["c"]),
        ({"diffusion_pytorch_model.bin": BIN}, ["d"]),
        ({DIFFUSION[0]: ONE, DIFFUSION[1]: TWO}, ["a", "b", "c"]),
        (
            {"diffusion_pytorch_model.safetensors.index.json": index(a="x.safetensors"), "x.safetensors": ONE, DIFFUSION[0]: TWO},
            ["a", "b"],
        ),
        ({"model.safetensors": ONE, "consolidated.safetensors": TWO, "adapter_model.safetensors": TWO}, ["a", "b"]),
        ({"weights.safetensors": ONE, "consolidated.safetensors": TWO}, ["a", "b"]),
    ],
)
def test_which_files_hold_the_weights(files: dict[str, bytes], expected: list[str]) -> None:
    assert sorted(names(files)) == expected


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({SHARDS[0]: ONE}, "shard 2 of 2 is not there"),
        ({SHARDS[1]: ONE}, "shard 1 of 2 is not there"),
        ({SHARDS[0]: ONE, "model-00002-of-00003.safetensors": TWO}, "are shards of different models"),
        ({"model-1-of-99999999999999.safetensors": ONE}, "shard 2 of 99999999999999 is not there"),
        ({"model.safetensors": ONE, SHARDS[0]: TWO}, "are both there, without an index"),
        ({"model.fp16.safetensors": ONE, "model.fp32.safetensors": ONE}, "are both there, without an index"),
        ({DIFFUSION[0]: ONE}, "shard 2 of 2 is not there"),
        ({"a.safetensors": ONE, "b.safetensors": ONE}, "missing weights"),
        ({"model.safetensors.index.json": b"[]"}, "not a map"),
        ({INDEX: b"\xff"}, "not valid JSON"),
        ({INDEX: b"[" * 10**6}, "nested too deep"),
        ({INDEX: index()}, "has no 'weight_map'"),
        ({INDEX: b'{"weight_map": []}'}, "has no 'weight_map'"),
        ({INDEX: index(a=3)}, "'a' is put into 3"),
        ({INDEX: index(a="..\\x.safetensors")}, "which is not a weight file of this model"),
        ({INDEX: index(a="config.json")}, "'a' is put into 'config.json', which is not a weight file"),
        ({INDEX: index(a=SHARDS[0])}, f"names {SHARDS[0]}, which is not there"),
        ({INDEX: index(a=SHARDS[0], z=SHARDS[0]), SHARDS[0]: ONE}, "the index puts 'z'"),
        ({"model.safetensors": b"version https://git-lfs.github.com/spec/v1\n"}, "a Git LFS pointer"),
        ({"pytorch_model.bin": b"version https://git-lfs.github.com/spec/v1\n"}, "a Git LFS pointer"),
        ({"model.safetensors": save({})}, "there are no tensors in model.safetensors"),
        ({"x.GGUF": b""}, "is GGUF"),
    ],
)
def test_what_is_not_whole(files: dict[str, bytes], says: str) -> None:
    assert says in message(JSON | files)


@pytest.mark.parametrize(
    ("name", "along"),
    [
        ("tokenizer.json", True),
        ("tokenizer.model", True),
        ("tokenizer_config.json", True),
        ("special_tokens_map.json", True),
        ("added_tokens.json", True),
        ("vocab.json", True),
        ("vocab.txt", True),
        ("merges.txt", True),
        ("chat_template.jinja", True),
        ("generation_config.json", True),
        ("preprocessor_config.json", True),
        ("qwen.tiktoken", True),
        ("config.json", False),
        ("README.md", False),
        ("LICENSE", True),
        ("LICENSE.txt", True),
        ("UNLICENSE", True),
        ("Llama-License.py", False),
        ("license.py", False),
        ("NOTICE", True),
        ("COPYING", True),
        ("USE_POLICY.md", True),
        ("noticeable.bin", False),
        ("licensed", False),
        (".gitattributes", False),
        ("model.safetensors", False),
        (INDEX, False),
        (PICKLE_INDEX, False),
        ("training_args.bin", False),
        ("modeling_x.py", False),
        ("weft.json", False),
        ("model.onnx", False),
    ],
)
def test_side_files(name: str, along: bool) -> None:
    assert is_side_file(name) is along


def test_a_header_is_all_that_is_needed_of_a_file() -> None:
    store = Memory("org/m", JSON | {"model.safetensors": ONE, "pytorch_model.bin": BIN, "tokenizer.json": b"{}"})
    checkpoint = open_checkpoint(store)
    assert store.opened == ["config.json", "model.safetensors"]
    assert dict(checkpoint.side_files) == {"tokenizer.json": 2}
    tensor = checkpoint.tensors["b"]
    assert isinstance(tensor, InputTensor)
    assert (tensor.dtype, tensor.shape, tensor.nbytes) == ("BF16", (2,), 4)
    assert ONE[tensor.offset : tensor.offset + 4] == b"\x80\x3f" * 2


def test_the_identity_of_a_file_changes_with_it(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m", shards=2)

    def identities() -> list[str]:
        return [file.identity for file in open_checkpoint(Folder(folder, "m")).files]

    before = identities()
    assert identities() == before
    (folder / SHARDS[1]).touch()
    after = identities()
    assert after[0] == before[0] and after[1] != before[1]


VALUES = st.recursive(
    st.none() | st.integers() | st.floats() | st.sampled_from([*SHARDS, "x.bin", "../x.bin", "", "a", "config.json", INDEX]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["weight_map", "a", "b", "c"]), inner, max_size=3)
    ),
    max_leaves=10,
)


@settings(max_examples=300, deadline=None)
@given(VALUES, st.sampled_from([INDEX, PICKLE_INDEX]), st.booleans())
def test_any_index_is_followed_within_the_model_or_refused(value: Any, name: str, config: bool) -> None:
    content = json.dumps(value).encode()
    files = JSON | {SHARDS[0]: ONE, SHARDS[1]: TWO, "x.bin": BIN, name: content}
    if config:
        files["config.json"] = content
    store = Memory("org/m", files)
    try:
        found = open_checkpoint(store)
    except CheckpointError as error:
        assert str(error).startswith("org/m")
    else:
        assert set(found.tensors) <= {"a", "b", "c", "d"}
    assert set(store.opened) <= set(files)
