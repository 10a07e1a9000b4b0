"""Headers of safetensors files: believed only where they fit the file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save

from cli.models import entry, safetensors_bytes
from weft.errors import CheckpointError
from weft.planner.dtypes import ITEM_SIZES
from weft.planner.headers import FileHeader, safetensors_header

TENSORS = {
    "b": torch.arange(12.0).reshape(3, 4),
    "a": torch.ones(5, dtype=torch.bfloat16),
    "c": torch.tensor(7),
    "d": torch.ones(0, 3),
}
VALID = save(TENSORS, {"format": "pt"})


def header(data: bytes, size: int | None = None) -> FileHeader:
    """Of a file with these bytes; reading outside it fails the test."""
    size = len(data) if size is None else size

    def read(offset: int, length: int) -> bytes:
        assert offset >= 0 and length >= 0 and offset + length <= size
        return data[offset : offset + length]

    return safetensors_header(read, size, "m/model.safetensors")


def test_what_the_library_wrote() -> None:
    found = {tensor.name: tensor for tensor in header(VALID).tensors}
    assert found.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert found[name].shape == tuple(tensor.shape) and found[name].nbytes == tensor.nbytes
        raw = VALID[found[name].offset : found[name].offset + found[name].nbytes]
        assert raw == tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()


def test_the_digest_is_of_the_header() -> None:
    other = bytearray(VALID)
    other[-1] ^= 1
    assert header(bytes(other)).digest == header(VALID).digest
    assert header(save(TENSORS, {"format": "np"})).digest != header(VALID).digest


@st.composite
def spoilt(draw: st.DrawFn, valid: bytes = VALID) -> bytes:
    """A valid file with a few bytes changed, inserted or cut."""
    data = bytearray(valid)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(len(data) - 1, 0)))
        match draw(st.sampled_from(["flip", "insert", "cut", "remove", "digit"])):
            case "flip" if data:
                data[at] ^= 1 << draw(st.integers(0, 7))
            case "insert":
                data[at:at] = draw(st.binary(min_size=1, max_size=8))
            case "cut":
                del data[at:]
            case "remove":
                del data[at : at + draw(st.integers(1, 8))]
            case "digit":
                digits = [i for i, byte in enumerate(data[:400]) if chr(byte).isdigit()]
                if digits:
                    data[draw(st.sampled_from(digits))] = draw(st.sampled_from(b"0123456789-.e"))
    return bytes(data)


@settings(max_examples=500, deadline=None)
@given(spoilt() | st.binary(max_size=64))
@example(safetensors_bytes({"x": entry("BF16", [1 << 61] * 300, 0, 8)}, bytes(8)))
@example(safetensors_bytes(b"[" * 5000))
@example(safetensors_bytes(b'{"x": ' + b"9" * 5000 + b"}"))
@example(safetensors_bytes(b'{"x": {"dtype": "F32", "shape": [NaN], "data_offsets": [0, 4]}}', bytes(4)))
def test_spoilt_files_are_read_rightly_or_refused(data: bytes) -> None:
    try:
        found = header(data)
    except CheckpointError as error:
        assert str(error).startswith("m/model.safetensors")
        return
    end = 8 + int.from_bytes(data[:8], "little")
    for tensor in found.tensors:
        assert tensor.offset == end
        end += tensor.nbytes
    assert end == len(data)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 1 << 63) | st.floats() | st.sampled_from(["F32", "BF16", "F8_E4M3", "x"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["dtype", "shape", "data_offsets", "__metadata__", "x"]), inner, max_size=3)
    ),
    max_leaves=10,
)


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(st.text(max_size=5), VALUES, max_size=4) | VALUES, st.integers(0, 64))
def test_any_header_is_read_or_refused(value: object, length: int) -> None:
    try:
        header(safetensors_bytes(value, bytes(length)))
    except CheckpointError as error:
        assert str(error).startswith("m/model.safetensors")


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(sorted(ITEM_SIZES)), st.lists(st.integers(0, 3), max_size=3)), min_size=1, max_size=5),
    st.randoms(),
)
def test_the_order_of_entries_means_nothing(specs: list[tuple[str, list[int]]], random: object) -> None:
    entries, end = {}, 0
    for number, (dtype, shape) in enumerate(specs):
        size = ITEM_SIZES[dtype]
        for side in shape:
            size *= side
        entries[f"t{number}"] = entry(dtype, shape, end, end + size)
        end += size
    shuffled = list(entries.items())
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    for order in (list(entries.items()), shuffled):
        data = safetensors_bytes(dict(order), bytes(end))
        assert {tensor.name: (tensor.dtype, list(tensor.shape)) for tensor in header(data).tensors} == {
            f"t{number}": spec for number, spec in enumerate(specs)
        }


@pytest.mark.parametrize("cut", range(0, len(VALID), 7))
def test_no_cut_goes_unseen(cut: int) -> None:
    with pytest.raises(CheckpointError, match=r"^m/model\.safetensors: (cut short|\d bytes are not a safetensors file)"):
        header(VALID[:cut])


def test_what_the_library_refuses_is_refused(tmp_path: Path) -> None:
    for value, data in (
        ({"x": entry("F32", [2], 0, 8), "y": entry("F32", [2], 4, 12)}, bytes(12)),
        ({"x": entry("F32", [2], 4, 12)}, bytes(12)),
        ({"x": entry("F32", [3], 0, 8)}, bytes(8)),
        ({"x": entry("F32", [2], 0, 8)}, bytes(9)),
        ({"x": entry("F32", [2], 0, 8)}, bytes(7)),
    ):
        path = tmp_path / "x.safetensors"
        path.write_bytes(safetensors_bytes(value, data))
        with pytest.raises(Exception, match="Error while deserializing header"), safe_open(path, "pt"):
            pass
        with pytest.raises(CheckpointError):
            header(path.read_bytes())


@pytest.mark.parametrize("dtype", ["F8_E4M3", "F8_E5M2", "F4", "F6_E2M3", "C64", "U128"])
def test_types_that_are_refused_by_name(dtype: str) -> None:
    kind = "quantised codes" if dtype.startswith("F") else "a type unknown to weft"
    with pytest.raises(CheckpointError, match=f"tensor 'x' has dtype {dtype}, {kind}.*: use the model's bfloat16"):
        header(safetensors_bytes({"x": entry(dtype, [1], 0, 1)}, bytes(1)))


def test_a_large_header_is_not_read() -> None:
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        header(json.dumps({}).encode().rjust(8, b"\xff"), size=1 << 41)
    with pytest.raises(CheckpointError, match="more than any file of weights has"):
        header(VALID, size=1 << 62)
