"""Parsers of what strangers write, each as a function of bytes that returns or raises WeftError; anything else is a finding.

Used by hypothesis (test_fuzz.py) and by a coverage-guided fuzzer (run.py).
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import zipfile
from collections.abc import Callable, Mapping
from typing import Any

import torch
from safetensors.torch import save

from checkpoints import llama_config, llama_tensors
from memory_store import Memory, torch_saved
from weft.errors import WeftError
from weft.planner.adapter import open_adapter
from weft.planner.catalog import Checkpoint, open_checkpoint
from weft.planner.config import load_config
from weft.planner.headers import safetensors_header
from weft.planner.layout import find_layout
from weft.planner.model_config import merged_config
from weft.planner.pickle_header import pickle_header
from weft.planner.restack import LayerSource, RestackError, restack
from weft.planner.token_ids import token_ids
from weft.planner.tokenizer_files import tokenizer_files
from weft.planner.vocabulary import plan_vocabulary

Q = "base_model.model.model.layers.0.self_attn.q_proj"

WEIGHTS = save(llama_tensors())
CONFIG = json.dumps(llama_config()).encode()
PICKLE = torch_saved(llama_tensors(1))
TOKENIZER = json.dumps(
    {
        "version": "1.0",
        "added_tokens": [{"id": 3, "content": "<s>", "special": True}],
        "post_processor": {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>"}}], "special_tokens": {}},
        "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]], "unk_token": None},
    }
).encode()
SETTINGS = json.dumps({"bos_token": {"content": "<s>"}, "added_tokens_decoder": {"3": {"content": "<s>"}}}).encode()
ADAPTER = json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 4, "rank_pattern": {r".*q\w+": 2}}).encode()
FACTORS = save({f"{Q}.lora_A.weight": torch.ones(2, 4), f"{Q}.lora_B.weight": torch.ones(4, 2)})
YAML = b"""\
merge_method: slerp
base_model: a
slices:
- sources: [{model: a, layer_range: [0, 4]}, {model: b@main+c, layer_range: [0, 4], parameters: {weight: 1e-3}}]
parameters:
  t: [{filter: mlp, value: [0, 0.5, 1]}, {value: &x 0.5}]
dtype: bfloat16
tokenizer: {source: union, tokens: {x: {source: {kind: zero}, force: true}}}
"""


def model(**files: bytes) -> Checkpoint:
    """A model with some files other than usual; `tokenizer_json` is tokenizer.json."""
    named = {name.replace("_json", ".json"): data for name, data in files.items()}
    return open_checkpoint(Memory("m", {"config.json": CONFIG, "model.safetensors": WEIGHTS, **named}))


def header(data: bytes) -> None:
    def read(offset: int, length: int) -> bytes:
        assert offset >= 0 and length >= 0 and offset + length <= len(data)
        return data[offset : offset + length]

    end = 8 + int.from_bytes(data[:8], "little")
    for tensor in safetensors_header(read, len(data), "m").tensors:
        assert tensor.offset == end and tensor.nbytes >= 0
        end += tensor.nbytes
    assert end == len(data)


def archive(data: bytes) -> None:
    for tensor in pickle_header(io.BytesIO(data), "m").tensors:
        assert 0 <= tensor.offset <= tensor.offset + tensor.nbytes <= len(data)


@functools.cache
def _members() -> Mapping[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(PICKLE)) as old:
        return {name: old.read(name) for name in old.namelist()}


DATA_PKL = next(data for name, data in _members().items() if name.endswith("/data.pkl"))


def pickled(data: bytes) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as new:
        for name, old in _members().items():
            new.writestr(name, data if name.endswith("/data.pkl") else old)
    archive(buffer.getvalue())


def index(data: bytes) -> None:
    checkpoint = model(**{"model.safetensors.index_json": data})
    find_layout("m", checkpoint.config, checkpoint.tensors)


def config_json(data: bytes) -> None:
    checkpoint = model(config_json=data)
    stacks = find_layout("m", checkpoint.config, checkpoint.tensors).stacks
    json.dumps(merged_config(checkpoint.config, "bfloat16"), ensure_ascii=False).encode()
    for stack in stacks:
        layers = [LayerSource(checkpoint.config, stack.count, layer) for layer in (0, stack.count - 1, 0)]
        with contextlib.suppress(RestackError):
            json.dumps(restack(checkpoint.config, stacks, {stack.prefix: layers})[0], ensure_ascii=False).encode()


def _tokenizers(**files: bytes) -> None:
    checkpoints = [model(**files), model(tokenizer_json=TOKENIZER, tokenizer_config_json=SETTINGS)]
    for base in (0, 1):
        vocabulary = plan_vocabulary(checkpoints, base, "union")
        tokenizer_files(checkpoints, base, vocabulary, "union")
        json.dumps(token_ids(checkpoints, base, vocabulary, "union").config(checkpoints[base].config))


def tokenizer(data: bytes) -> None:
    _tokenizers(tokenizer_json=data, tokenizer_config_json=SETTINGS)


def tokenizer_settings(data: bytes) -> None:
    _tokenizers(tokenizer_json=TOKENIZER, tokenizer_config_json=data)


def adapter_config(data: bytes) -> None:
    open_adapter(Memory("x", {"adapter_config.json": data, "adapter_model.safetensors": FACTORS}), model())


def adapter_weights(data: bytes) -> None:
    open_adapter(Memory("x", {"adapter_config.json": ADAPTER, "adapter_model.safetensors": data}), model())


def merge_config(data: bytes) -> None:
    load_config(data.decode("utf-8", "surrogateescape"), "merge.yaml")


Target = Callable[[bytes], None]
TARGETS: Mapping[str, tuple[Target, bytes]] = {
    "header": (header, WEIGHTS),
    "archive": (archive, PICKLE),
    "pickled": (pickled, DATA_PKL),
    "index": (index, json.dumps({"weight_map": dict.fromkeys(llama_tensors(), "model.safetensors")}).encode()),
    "config_json": (config_json, CONFIG),
    "tokenizer": (tokenizer, TOKENIZER),
    "tokenizer_settings": (tokenizer_settings, SETTINGS),
    "adapter_config": (adapter_config, ADAPTER),
    "adapter_weights": (adapter_weights, FACTORS),
    "merge_config": (merge_config, YAML),
}
"""Each parser, and a valid input to start from."""


def accepts(name: str, data: bytes) -> bool:
    """Whether a target takes these bytes; its refusal must be one short sentence. Raises whatever else it raises."""
    target: Any = TARGETS[name][0]
    try:
        target(data)
    except WeftError as error:
        assert error.exit_code == 2 and str(error)
        return False
    return True
