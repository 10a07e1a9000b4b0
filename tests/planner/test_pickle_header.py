"""Headers of .bin files: what torch wrote is found where it is, what runs code or lies is refused."""

from __future__ import annotations

import io
import os
import pickle
import tracemalloc
import zipfile
from collections import OrderedDict
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from memory_store import torch_saved
from trials import trials
from weft.errors import CheckpointError
from weft.planner.pickle_header import pickle_header

TENSORS = {
    "a": torch.arange(12.0).reshape(3, 4),
    "b": torch.ones(5, dtype=torch.bfloat16),
    "c": torch.tensor([7, 8]),
    "d": torch.arange(20.0)[4:10],
    "e": torch.ones(2, dtype=torch.float64),
    "f": torch.tensor([True, False]),
}


VALID = torch_saved(TENSORS)
PLACES = {tensor.name: tensor for tensor in pickle_header(io.BytesIO(VALID), "m/x.bin").tensors}


def changed(replacements: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    """The valid file with some members replaced, by the ends of their names."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(VALID)) as old, zipfile.ZipFile(buffer, "w", method) as new:
        for name in old.namelist():
            new.writestr(name, next((data for end, data in replacements.items() if name.endswith(end)), old.read(name)))
    return buffer.getvalue()


def message(data: bytes) -> str:
    with pytest.raises(CheckpointError) as caught:
        pickle_header(io.BytesIO(data), "m/x.bin")
    assert str(caught.value).startswith("m/x.bin")
    return str(caught.value)


def test_tensors_are_where_the_header_says() -> None:
    assert PLACES.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        found = PLACES[name]
        assert found.shape == tuple(tensor.shape) and found.nbytes == tensor.nbytes
        raw = bytearray(VALID[found.offset : found.offset + found.nbytes])
        assert torch.equal(torch.frombuffer(raw, dtype=tensor.dtype).reshape(tensor.shape), tensor)


def test_what_training_writes_is_read() -> None:
    module = torch.nn.Linear(2, 3)
    for value in (
        module.state_dict(),
        OrderedDict(module.named_parameters()),
        {"state_dict": module.state_dict(), "epoch": 3},
        dict(module.state_dict()) | {"note": "text", "step": 5},
    ):
        assert {tensor.name for tensor in pickle_header(io.BytesIO(torch_saved(value)), "m").tensors} == {"weight", "bias"}


class Calls:
    """Pickles into a call."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.function, self.arguments


@pytest.mark.parametrize(
    "call",
    [
        Calls(os.system, "touch pwned"),
        Calls(eval, "open('pwned', 'w')"),
        Calls(getattr, "x", "upper"),
        Calls(__import__, "os"),
        Calls(torch.load, "x"),
        Calls(bytearray, 1 << 40),
    ],
    ids=["system", "eval", "getattr", "import", "torch.load", "bytearray"],
)
@pytest.mark.parametrize("place", ["value", "key", "root"])
def test_no_code_runs(call: Calls, place: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    value = {"value": {"x": call}, "key": {call: 1}, "root": call}[place]
    assert "refused: it is more than tensors: it wants to load" in message(torch_saved(value))
    assert not list(tmp_path.iterdir())


def storage(key: str, dtype: str = "FloatStorage") -> bytes:
    """Opcodes of a persistent id."""
    return b"(" + b"X\x07\x00\x00\x00storage" + f"ctorch\n{dtype}\n".encode() + f"V{key}\n".encode() + b"Vcpu\nI1\nt" + b"Q"


def tensor(offset: int, shape: str, stride: str, key: str = "0") -> bytes:
    """A pickle of {"x": tensor}, by hand."""
    rebuild = b"ctorch._utils\n_rebuild_tensor_v2\n"
    return b"\x80\x02(Vx\n" + rebuild + b"(" + storage(key) + f"I{offset}\n({shape}({stride}".encode() + b"I00\n}tRd."


def test_tensors_that_lie() -> None:
    def lie(*what: Any) -> str:
        return message(changed({"/data.pkl": tensor(*what)}))

    good = changed({"/data.pkl": tensor(0, "I3\nI4\nt", "I4\nI1\nt")})
    assert pickle_header(io.BytesIO(good), "m").tensors[0].shape == (3, 4)
    assert "reaches past its stored data" in lie(1, "I3\nI4\nt", "I4\nI1\nt")
    assert "shape and strides disagree" in lie(-1, "I3\nI4\nt", "I4\nI1\nt")
    assert "reaches past its stored data" in lie(0, "I999999999999\nt", "I1\nt")
    assert "transposed or strided" in lie(0, "I3\nI4\nt", "I1\nI3\nt")
    assert "shape and strides disagree" in lie(0, "I3\nI4\nt", "I1\nt")
    assert "shape and strides disagree" in lie(0, "I-3\nI-4\nt", "I4\nI1\nt")
    assert "shape and strides disagree" in lie(0, "I1\n" * 100 + "t", "I1\n" * 100 + "t")
    assert "its data is missing" in lie(0, "I3\nt", "I1\nt", "99")
    assert "its data is missing" in lie(0, "I3\nt", "I1\nt", "../../0")


def test_archives_that_lie() -> None:
    assert "is compressed" in message(changed({}, zipfile.ZIP_DEFLATED))
    assert "not a PyTorch checkpoint" in message(changed({"/data.pkl": b""}).replace(b"data.pkl", b"data.pkx"))
    assert "refused" in message(changed({"/data.pkl": b""}))
    assert "refused" in message(changed({"/data.pkl": pickle.dumps([TENSORS])}))
    assert "not a state dict" in message(torch_saved([1]))
    assert "not a state dict" in message(torch_saved({1: torch.ones(1)}))
    assert "damaged" in message(VALID.replace(b"PK\x03\x04", b"PK\x03\x05"))


def test_a_directory_that_promises_more_than_the_file_has() -> None:
    data = bytearray(changed({"/data.pkl": tensor(0, "I100000\nt", "I1\nt")}))
    assert "reaches past its stored data" in message(bytes(data))
    place = data.index(b"PK\x01\x02")
    while not data[place + 46 : place + 46 + data[place + 28]].endswith(b"/data/0"):
        place = data.index(b"PK\x01\x02", place + 4)
    data[place + 20 : place + 28] = (1 << 20).to_bytes(4, "little") * 2
    assert "reaches past the file's end" in message(bytes(data))


def test_five_bytes_do_not_take_gigabytes() -> None:
    memo = b"\x80\x02}r\xff\xff\xff\x07."
    tracemalloc.start()
    try:
        assert pickle_header(io.BytesIO(changed({"/data.pkl": memo})), "m").tensors == ()
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("cut", range(0, len(VALID), 97))
def test_no_cut_goes_unseen(cut: int) -> None:
    assert "not a PyTorch zip checkpoint: cut short" in message(VALID[:cut])


@trials(200)
@given(st.data())
def test_spoilt_files_are_read_within_their_bounds_or_refused(data: st.DataObject) -> None:
    spoilt = bytearray(VALID)
    interesting = [i for i in range(len(VALID) - 4) if VALID[i : i + 2] == b"PK"]
    for _ in range(data.draw(st.integers(1, 4))):
        near = data.draw(st.sampled_from(interesting)) + data.draw(st.integers(0, 60))
        at = min(data.draw(st.just(near) | st.integers(0, len(VALID) - 1)), len(spoilt) - 1)
        match data.draw(st.sampled_from(["set", "flip", "insert", "remove"])):
            case "set":
                spoilt[at] = data.draw(st.integers(0, 255))
            case "flip":
                spoilt[at] ^= 1 << data.draw(st.integers(0, 7))
            case "insert":
                spoilt[at:at] = data.draw(st.binary(min_size=1, max_size=4))
            case "remove":
                del spoilt[at : at + data.draw(st.integers(1, 4))]
    within_bounds(bytes(spoilt))


@trials(100)
@given(st.data())
def test_spoilt_pickles_are_read_within_their_bounds_or_refused(data: st.DataObject) -> None:
    with zipfile.ZipFile(io.BytesIO(VALID)) as archive:
        raw = bytearray(next(archive.read(name) for name in archive.namelist() if name.endswith("/data.pkl")))
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    within_bounds(changed({"/data.pkl": bytes(raw)}))


def within_bounds(data: bytes) -> None:
    try:
        header = pickle_header(io.BytesIO(data), "m/x.bin")
    except CheckpointError as error:
        assert str(error).startswith("m/x.bin")
        return
    for found in header.tensors:
        assert found.offset >= 0 and found.nbytes >= 0 and found.offset + found.nbytes <= len(data)
