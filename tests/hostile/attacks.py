"""Crafted models, adapters and configs, each with one line on what it would do to a naive reader.

An attack spoils the folder it is called in, which holds the good models `a` and `b`, the adapter `x` for them, and `merge.yaml`,
a merge of `a` and `b`; `../secret/key.json` is somebody's file that no model has a right to. It returns weft's arguments, if they
are not `plan merge.yaml`. Where `harmless` says so, weft may also go through with it.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import struct
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from checkpoints import llama_config, llama_tensors, write_model
from cli.models import entry, safetensors_bytes
from fuzz.targets import ADAPTER, DATA_PKL, FACTORS, PICKLE, SETTINGS, TOKENIZER

B = Path("b")
WEIGHTS, CONFIG, INDEX = B / "model.safetensors", B / "config.json", B / "model.safetensors.index.json"
LINEAR = "merge_method: linear\nmodels:\n- {model: a, parameters: {weight: 1}}\n- {model: b, parameters: {weight: 1}}\n"
UNION = LINEAR + "tokenizer_source: union\n"
SECRET = "../secret/key.json"


@dataclass(frozen=True, slots=True)
class Attack:
    """`spoil` makes the files; `why` is what they would do. `inspect`: whether `weft inspect b` is tried, too."""

    why: str
    spoil: Callable[[], Sequence[str] | None]
    harmless: bool = False
    inspect: bool = True


def good() -> None:
    """The files that attacks spoil."""
    for name in ("a", "b"):
        tokens = {"tokenizer": TOKENIZER.decode(), "tokenizer_config": SETTINGS.decode()}
        write_model(Path(name), llama_tensors(), llama_config(), **tokens)
    Path("x").mkdir()
    Path("x/adapter_config.json").write_bytes(ADAPTER)
    Path("x/adapter_model.safetensors").write_bytes(FACTORS)
    Path("merge.yaml").write_text(LINEAR)


def _header(value: object, data: bytes = b"", length: int | None = None) -> Callable[[], None]:
    return lambda: _write(WEIGHTS, safetensors_bytes(value, data, length))


def _write(path: Path, data: bytes | str) -> None:
    path.unlink(missing_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)


def _named(name: str, escaped: str | None = None) -> Callable[[], None]:
    text = json.dumps({name: entry("F32", [1], 0, 4)})
    return _header((text if escaped is None else text.replace(name, escaped)).encode(), bytes(4))


def _text(path: Path, data: bytes | str) -> Callable[[], None]:
    return lambda: _write(path, data)


def _spec(**changes: object) -> Callable[[], None]:
    return _header({"x": {**entry("F32", [2, 2], 0, 16), **changes}}, bytes(16))


def _sparse() -> None:
    header = json.dumps({"x": entry("F32", [1 << 41], 0, 1 << 43)}).encode()
    _write(WEIGHTS, struct.pack("<Q", len(header)) + header)
    os.truncate(WEIGHTS, 8 + len(header) + (1 << 43))


HEADERS = {
    "empty file": Attack("read eight bytes that are not there", _text(WEIGHTS, b"")),
    "length beyond the file": Attack("allocate and read past the end", _header({"x": 1}, length=1 << 30)),
    "length 2^64 - 1": Attack("overflow 8 + length", _header({"x": 1}, length=(1 << 64) - 1)),
    "header of a hundred megabytes": Attack("read 100 MB for nothing", _header(b" ", length=100_000_001)),
    "millions of lists": Attack("turn 12 MB of text into gigabytes of lists", _header(b"[" + b"[]," * 4_000_000 + b"0]")),
    "deep JSON": Attack("overflow the parser's stack", _header(b'{"x":' + b"[" * 200_000 + b"]" * 200_000 + b"}")),
    "deep metadata": Attack("overflow a recursive walk after parsing", _header(b'{"__metadata__":' + b"[" * 400 + b"]" * 400 + b"}")),
    "not UTF-8": Attack("raise UnicodeDecodeError", _header(b'{"\xff\xfe": 1}')),
    "UTF-16": Attack("be read by a parser that guesses encodings", _header('{"x": 1}'.encode("utf-16"))),
    "no map": Attack("index a list by names", _header([1, 2])),
    "no tensors": Attack("merge nothing and call it a model", _header({})),
    "name twice": Attack(
        "be one tensor to one reader and another to the next",
        _header(b'{"x": {"dtype":"F32","shape":[1],"data_offsets":[0,4]}, "x": {"dtype":"F32","shape":[1],"data_offsets":[4,8]}}', bytes(8)),
    ),
    "key twice": Attack(
        "have one shape here and another there",
        _header(b'{"x": {"dtype":"F32","shape":[1],"shape":[9],"data_offsets":[0,4]}}', bytes(4)),
    ),
    "overlapping": Attack("leak one tensor's bytes into another", _header({"x": entry("F32", [2], 0, 8), "y": entry("F32", [2], 4, 12)}, bytes(12))),
    "all at one place": Attack("unpack megabytes into terabytes", _header({f"t{i}": entry("F32", [4], 0, 16) for i in range(99)}, bytes(16))),
    "hole": Attack("carry bytes that nobody checks", _header({"x": entry("F32", [1], 0, 4), "y": entry("F32", [1], 8, 12)}, bytes(12))),
    "trailing bytes": Attack("be a zip archive as well (polyglot)", _header({"x": entry("F32", [1], 0, 4)}, bytes(64))),
    "cut short": Attack("read past the end of a mapping: SIGBUS", _header({"x": entry("F32", [9], 0, 36)}, bytes(8))),
    "offsets backwards": Attack("take a negative length", _spec(data_offsets=[16, 0])),
    "negative offset": Attack("read the header as tensor data", _spec(data_offsets=[-16, 0])),
    "offset 2^70": Attack("overflow 64 bits", _spec(data_offsets=[1 << 70, (1 << 70) + 16])),
    "offsets of floats": Attack("compute offsets that are no bytes", _spec(data_offsets=[0.0, 16.0])),
    "three offsets": Attack("unpack two values from three", _spec(data_offsets=[0, 8, 16])),
    "offsets of text": Attack("subtract texts", _spec(data_offsets=["0", "16"])),
    "size that disagrees": Attack("view 16 bytes as 36", _spec(shape=[3, 3])),
    "shape that overflows": Attack("multiply to 16 modulo 2^64", _spec(shape=[1 << 62, 1 << 62, 1 << 4])),
    "shape of 2^61 sides": Attack("multiply for minutes", _spec(shape=[1 << 61] * 5000)),
    "negative shape": Attack("multiply two negatives to a size that fits", _spec(shape=[-2, -2])),
    "shape of truth values": Attack("take true for 1", _spec(shape=[True, 4])),
    "shape of NaN": Attack("compare with NaN", _header(b'{"x": {"dtype":"F32","shape":[NaN],"data_offsets":[0,4]}}', bytes(4))),
    "shape of Infinity": Attack("overflow an int", _header(b'{"x": {"dtype":"F32","shape":[1e999],"data_offsets":[0,4]}}', bytes(4))),
    "a number of 10000 digits": Attack("convert in quadratic time", _header(b'{"x": {"dtype":"F32","shape":[' + b"9" * 10_000 + b'],"data_offsets":[0,4]}}', bytes(4))),
    "shape no list": Attack("iterate over a number", _spec(shape=4)),
    "nothing beside an empty side": Attack("make blocks of 2^61 elements", _header({"x": entry("F32", [0, 1 << 61], 0, 0)}), harmless=True),
    "dtype unknown": Attack("look up a size that is not there", _spec(dtype="Q7")),
    "dtype no text": Attack("look up a list in a map", _spec(dtype=["F32"])),
    "tensor no map": Attack("call get on a number", _header({"x": 7})),
    "no name": Attack("write a tensor nobody can name", _named("")),
    "name of control characters": Attack("clear the terminal", _named("\x1b[2J\x1b]0;owned\x07")),
    "name with NUL": Attack("end a C string early", _named("x\x00y")),
    "name of half a character": Attack("raise UnicodeEncodeError when it is written", _named("NAME", "\\ud800")),
    "name of a megabyte": Attack("flood the terminal, the journal and every regular expression", _named("x." * 500_000)),
    "layer 10^30": Attack("count the layers up to there", _named("model.layers." + "9" * 30 + ".w"), harmless=True),
    "layer 007": Attack("look for layer 7 and not find it", _named("model.layers.007.w"), harmless=True),
    "layer in other digits": Attack("take ٣ for 3", _named("model.layers.٣.w"), harmless=True),
    "a file that is all hole": Attack("plan two hundred thousand tiles of a disk that does not exist", _sparse),
}  # fmt: skip


def _index(value: object) -> Callable[[], None]:
    def spoil() -> None:
        (B / "model-00001-of-00001.safetensors").write_bytes(WEIGHTS.read_bytes())
        WEIGHTS.unlink()
        INDEX.write_bytes(value if isinstance(value, bytes) else json.dumps(value).encode())

    return spoil


def _map(shard: object) -> Callable[[], None]:
    return _index({"weight_map": dict.fromkeys(llama_tensors(), shard)})


def _instead(path: Path, make: Callable[[Path], object]) -> Callable[[], None]:
    def spoil() -> None:
        path.unlink()
        make(path)

    return spoil


def _link(path: Path, target: str) -> Callable[[], None]:
    return _instead(path, lambda path: path.symlink_to(target))


def _outside() -> None:
    """Whole weights that stand in another folder."""
    shutil.copy(WEIGHTS, "../secret/model.safetensors")


def _index_above() -> None:
    _outside()
    _map("../../secret/model.safetensors")()


def _linked_weights() -> None:
    _outside()
    _link(WEIGHTS, "../../secret/model.safetensors")()


def _linked_side_file() -> None:
    (B / "notes.json").symlink_to("../" + SECRET)
    Path("merge.yaml").write_text(LINEAR + "base_model: b\n")


FOLDERS = {
    "index into ..": Attack("read somebody else's weights", _index_above),
    "index to /": Attack("read any file", _map("/etc/passwd.safetensors")),
    "index to a drive": Attack("read any file on Windows", _map("C:\\secret\\model.safetensors")),
    "index to a URL": Attack("fetch from anywhere", _map("https://example.com/model.safetensors")),
    "index to a pickle beside": Attack("load what is no weight", _map("training_args.bin")),
    "index to config.json": Attack("parse JSON as weights", _map("config.json")),
    "index to code": Attack("import it", _map("modeling.py")),
    "index with NUL": Attack("open a file whose name ends early", _map("model\x00.safetensors")),
    "index to nothing": Attack("merge with weights missing", _map("model-00002-of-00002.safetensors")),
    "index to numbers": Attack("call endswith on 7", _map(7)),
    "index to lists": Attack("hash a list", _map(["model.safetensors"])),
    "index that is a list": Attack("call get on a list", _index([1])),
    "index without a map": Attack("iterate over nothing", _index({"weight_map": {}})),
    "index of other tensors": Attack("leave tensors out", _index({"weight_map": {"y": "model-00001-of-00001.safetensors"}})),
    "deep index": Attack("overflow the stack", _index(b'{"weight_map":' * 5000)),
    "weights that are a folder": Attack("read a folder", _instead(WEIGHTS, Path.mkdir)),
    "config that is a folder": Attack("read a folder", _instead(CONFIG, Path.mkdir)),
    "weights that are a pipe": Attack("wait for ever", _instead(WEIGHTS, os.mkfifo)),
    "config that is a pipe": Attack("wait for ever", _instead(CONFIG, os.mkfifo)),
    "tokenizer that is a pipe": Attack("wait for ever", _instead(B / "tokenizer.json", os.mkfifo), harmless=True),
    "config that is /dev/zero": Attack("read for ever", _link(CONFIG, "/dev/zero")),
    "weights linked outside": Attack("read somebody else's weights", _linked_weights),
    "config linked outside": Attack("show somebody's file in an error", _link(CONFIG, "../" + SECRET)),
    "side file linked outside": Attack("publish somebody's key with the merged model", _linked_side_file),
    "a link to itself": Attack("follow it for ever", _link(WEIGHTS, "model.safetensors")),
}


def _pickle(data: bytes, **members: bytes) -> Callable[[], None]:
    """Model b as a .bin file with this data.pkl."""

    def spoil() -> None:
        buffer = io.BytesIO()
        with zipfile.ZipFile(io.BytesIO(PICKLE)) as old, zipfile.ZipFile(buffer, "w") as new:
            for name in old.namelist():
                new.writestr(name, data if name.endswith("/data.pkl") else old.read(name))
        _bin(buffer.getvalue())

    return spoil


def _bin(data: bytes) -> None:
    WEIGHTS.unlink()
    (B / "pytorch_model.bin").write_bytes(data)


class _Call:
    def __init__(self, function: Any, *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.function, self.arguments


REBUILD = b"ctorch._utils\n_rebuild_tensor_v2\n"
DICT = b"\x80\x02}q\x00"
# A tuple of twice the last tuple, sixty times: sixty objects whose hash or text takes 2^60 steps.
TREE = b"X\x01\x00\x00\x00xq\x01" + b"0h\x01h\x01\x86q\x01" * 60
STORAGE = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x01tQ"
ONE = REBUILD + b"(" + STORAGE + b"K\x00K\x01\x85K\x01\x85\x89}tR"


def _text_op(text: str) -> bytes:
    return b"X" + struct.pack("<I", len(text)) + text.encode()


def _bomb() -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as new:
        new.writestr("archive/data.pkl", b"\x80\x02" + b"]" * (30 << 20))
    _bin(buffer.getvalue())


def _long_directory() -> None:
    record = struct.pack("<4s4B4HL2L5H2L", b"PK\x01\x02", 20, 3, 20, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0) + b"x"
    count = (20 << 20) // len(record)
    _bin(record * count + struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 0xFFFF, 0xFFFF, len(record) * count, 0, 0))


def _same_bytes() -> None:
    big = torch.zeros(4096)
    buffer = io.BytesIO()
    torch.save({f"t{i}": big for i in range(500)}, buffer)
    _bin(buffer.getvalue())


PICKLES = {
    "os.system": Attack("run a command", _pickle(pickle.dumps({"x": _Call(os.system, "touch ../owned")}, 2))),
    "eval": Attack("run Python", _pickle(pickle.dumps({"x": _Call(eval, "open('../owned', 'w')")}, 2))),
    "call of a method by name": Attack("reach os.system through getattr", _pickle(b"\x80\x02cbuiltins\ngetattr\n(cos\nX\x06\x00\x00\x00systemtR.")),
    "state for a function": Attack("change weft's own functions", _pickle(b"\x80\x02" + REBUILD + b"N}X\x0c\x00\x00\x00__defaults__N\x85s\x86b.")),
    "an object by NEWOBJ": Attack("make an object without its constructor", _pickle(b"\x80\x02ctorch\nFloatStorage\n)\x81.")),
    "an extension": Attack("call what a registry names", _pickle(b"\x80\x02\x82\x01.")),
    "a key that takes for ever": Attack("hash 2^60 tuples", _pickle(DICT + TREE + b"K\x01s.")),
    "a set that takes for ever": Attack("hash 2^60 tuples", _pickle(b"\x80\x04\x8f(" + TREE + b"\x90.")),
    "a storage that takes for ever": Attack("write out 2^60 tuples", _pickle(DICT + b"X\x01\x00\x00\x00a(X\x07\x00\x00\x00storagectorch\nFloatStorage\n" + TREE + b"tQs.")),
    "a shape that takes for ever": Attack("convert a long tuple again and again", _pickle(
        DICT + b"(" + b"K\x01" * 100_000 + b"tq\x02" + b"".join(_text_op(f"k{i}") + REBUILD + b"(" + STORAGE + b"K\x00h\x02h\x02\x89}tRs" for i in range(1000)) + b"."
    )),
    "an endless integer": Attack("read a number of four gigabytes", _pickle(b"\x80\x02\x8b\xff\xff\xff\x7f.")),
    "a memo of gigabytes": Attack("allocate a table up to index 2^32", _pickle(b"\x80\x02Nr\xff\xff\xff\xff.")),
    "a million lists": Attack("turn a megabyte into a hundred", _pickle(b"\x80\x02" + b"]" * 1_000_500 + b"."), inspect=False),
    "deep lists": Attack("overflow the stack when they are freed", _pickle(b"\x80\x02" + b"]" * 200_000 + b"a" * 199_999 + b".")),
    "names of a megabyte": Attack("flood the terminal", _pickle(b"\x80\x02c" + b"m" * 1_000_000 + b"\nf\n.")),
    "frames": Attack("hide opcodes from who counts them", _pickle(b"\x80\x04\x95" + struct.pack("<Q", 1_000_501) + b"]" * 1_000_500 + b"."), inspect=False),
    "a storage above": Attack("read another file of the archive", _pickle(DATA_PKL.replace(b"X\x01\x00\x00\x000", b"X\x06\x00\x00\x00../../", 1))),
    "no state dict": Attack("be iterated over", _pickle(pickle.dumps([1, 2], 2))),
    "a pickle that ends early": Attack("pop from an empty stack", _pickle(DATA_PKL[: len(DATA_PKL) // 2])),
    "a zip bomb": Attack("unpack 30 KB into 30 MB, and those into gigabytes", _bomb),
    "a long directory": Attack("turn 20 MB of entries into 300 MB of objects", _long_directory),
    "one storage, many tensors": Attack("unpack 16 KB into terabytes of output", _same_bytes),
    "no archive": Attack("be read by the loader of old formats", lambda: _bin(pickle.dumps({"x": _Call(os.system, "touch ../owned")}))),
}  # fmt: skip


def _yaml(text: str | bytes) -> Callable[[], None]:
    return _text(Path("merge.yaml"), text)


def _with_model(name: str) -> Callable[[], None]:
    return _yaml(f"merge_method: linear\nmodels: [{{model: {json.dumps(name)}, parameters: {{weight: 1}}}}]\n")


LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12)
)

YAMLS = {
    "a tag that calls": Attack("run a command", _yaml("!!python/object/apply:os.system ['touch ../owned']")),
    "a tag deep inside": Attack("run a command", _yaml(LINEAR + "dtype: !!python/object/new:os.system ['touch ../owned']\n")),
    "a tag that names": Attack("hand out a function", _yaml(LINEAR + "dtype: !!python/name:os.system\n")),
    "a tag of one's own": Attack("construct whatever a library registered", _yaml(LINEAR + "dtype: !env HOME\n")),
    "a billion laughs": Attack("grow a kilobyte into gigabytes", _yaml(LAUGHS)),
    "an alias of itself": Attack("walk in a circle", _yaml("a: &a [*a]\n")),
    "deep nesting": Attack("overflow the stack", _yaml("a: " + "[" * 50_000)),
    "nesting below the parser's limit": Attack("overflow a later walk", _yaml("a: " + "[" * 200 + "]" * 200)),
    "a text of two megabytes": Attack("be copied through every layer", _yaml(LINEAR + f"name: {'x' * (2 << 20)}\n")),
    "thirty-five thousand keys": Attack("make a gigabyte of nodes", _yaml("".join(f"k{i}: 1\n" for i in range(35_000)))),
    "many documents": Attack("be compared pairwise", _yaml("--- {name: x}\n" * 4_000)),
    "a huge number": Attack("raise when it is shown", _yaml(f"merge_method: linear\nmodels: [{{model: a, parameters: {{weight: 0x{'f' * 9000}}}}}]\n")),
    "a number to base 60": Attack("convert in quadratic time", _yaml(f"a: 1{':59' * 200_000}\n")),
    "a merge key of an unknown map": Attack("set keys that nobody reads", _yaml("d: &d {merge_method: linear}\n<<: *d\nmodels: [{model: a}]\n")),
    "a billion merge keys": Attack("visit one key over and over", _yaml("k0: &k0 {a: 1}\n" + "".join(f"k{i}: &k{i} {{<<: [{', '.join([f'*k{i - 1}'] * 9)}]}}\n" for i in range(1, 60)))),
    "a merge key of itself": Attack("walk in a circle", _yaml("a: &a {<<: *a}\n")),
    "a key that is a list": Attack("hash a list", _yaml("? [a, b]\n: c\n")),
    "keys that are no text": Attack("compare texts and numbers", _yaml("1: a\nnull: b\ntrue: c\n2.5: d\n")),
    "NUL": Attack("end a C string", _yaml(b"merge_method: lin\0ear\n")),
    "byte order mark": Attack("make another key of the first", _yaml(b"\xef\xbb\xbf" + LINEAR.encode()), harmless=True),
    "UTF-16": Attack("make another key of the first", _yaml(LINEAR.encode("utf-16")), harmless=True),
    "UTF-16 without a mark": Attack("be read by who guesses", _yaml(LINEAR.encode("utf-16-le"))),
    "half a character": Attack("raise when it is written", _yaml(LINEAR + 'name: "\\ud800"\n')),
    "name that steers the terminal": Attack("rename the window", _with_model("\x1b]0;owned\x07/x")),
    "model with NUL": Attack("raise ValueError from stat", _with_model("a\0b")),
    "model of a long name": Attack("raise OSError from stat", _with_model("x" * 5000)),
    "model of an unknown user": Attack("raise RuntimeError from expanduser", _with_model("~nobody-here-by-this-name/m")),
    "model that is a device": Attack("read it", _with_model("/dev/zero")),
    "infinite weight": Attack("fill the model with NaN", _yaml("merge_method: linear\nmodels: [{model: a, parameters: {weight: .inf}}]\n")),
}  # fmt: skip


def _adapter_text(text: str) -> Callable[[], Sequence[str]]:
    def spoil() -> Sequence[str]:
        _write(Path("x/adapter_config.json"), text)
        return "plan", "a+x"

    return spoil


def _adapter(**changes: object) -> Callable[[], Sequence[str]]:
    return _adapter_text(json.dumps({**json.loads(ADAPTER), **changes}))


def _factors(data: bytes) -> Callable[[], Sequence[str]]:
    def spoil() -> Sequence[str]:
        _write(Path("x/adapter_model.safetensors"), data)
        return "plan", "a+x"

    return spoil


EVIL = "(a|aa|a?|.?.?.?.?.?)+(.*.*.*.*)+(x+x+)+y"

ADAPTERS = {
    "a pattern that takes for ever": Attack("backtrack for years", _adapter(rank_pattern={"((((.+)+)+)+)+#": 2}), harmless=True),
    "another such pattern": Attack("backtrack for years", _adapter(alpha_pattern={EVIL: 2}), harmless=True),
    "a pattern that is none": Attack("raise re.error", _adapter(rank_pattern={"(": 2})),
    "a pattern of megabytes": Attack("compile for minutes", _adapter(rank_pattern={"(a{9}){9}" * 100_000: 2})),
    "patterns without end": Attack("try each on each module", _adapter(rank_pattern={f"m{i}": 2 for i in range(20_000)})),
    "rank of NaN": Attack("scale by NaN", _adapter(lora_alpha=float("nan"))),
    "rank as text": Attack("divide by text", _adapter(lora_alpha="16")),
    "rank of lists": Attack("compare a list", _adapter(r=[2], rank_pattern={})),
    "alpha 10^400": Attack("overflow a float", _adapter(lora_alpha=10**400)),
    "patterns as a list": Attack("call items on a list", _adapter(rank_pattern=[1])),
    "type as a number": Attack("call upper on 7", _adapter(peft_type=7)),
    "modules to save as a number": Attack("iterate over 7", _adapter(modules_to_save=7), harmless=True),
    "no map": Attack("call get on a list", _adapter_text("[]")),
    "deep": Attack("overflow the stack", _adapter_text('{"a":' * 9999)),
    "no factors": Attack("change nothing and say it did", _factors(safetensors_bytes({}))),
    "factors that lie": Attack("read past the end", _factors(FACTORS[:-4])),
    "factors of rank 2^61": Attack("multiply for ever", _factors(safetensors_bytes({
        "m.lora_A.weight": entry("F32", [1 << 61, 0], 0, 0), "m.lora_B.weight": entry("F32", [0, 1 << 61], 0, 0)
    }))),
}  # fmt: skip


def _tokenizer(data: bytes | str, name: str = "tokenizer.json") -> Callable[[], None]:
    def spoil() -> None:
        _write(B / name, data)
        Path("merge.yaml").write_text(UNION)

    return spoil


def _tokens(**changes: object) -> Callable[[], None]:
    return _tokenizer(json.dumps({**json.loads(TOKENIZER), **changes}))


def _bpe(**changes: object) -> Callable[[], None]:
    return _tokens(model={"type": "BPE", "vocab": {"a": 0}, "merges": [], **changes})


def _steps(depth: int) -> Any:
    step: Any = {"type": "Sequence", "processors": []}
    for _ in range(depth):
        step = {"type": "Sequence", "processors": [step]}
    return step


def _templates() -> None:
    templates = [{"name": ["default"], "template": 7}, 7, None]
    _tokenizer(json.dumps({"chat_template": templates}), "tokenizer_config.json")()
    Path("merge.yaml").write_text(LINEAR + "chat_template: auto\n")


TOKENIZERS = {
    "deep post-processors": Attack("overflow the stack", _tokens(post_processor=_steps(300))),
    "millions of tokens": Attack("make gigabytes of tokens", _tokenizer(b"[" + b"0," * 7_000_000 + b"0]")),
    "vocabulary as a number": Attack("iterate over 7", _bpe(vocab=7)),
    "ids of text": Attack("sort texts and numbers", _bpe(vocab={"a": "0", "b": 1})),
    "ids below nothing": Attack("index from the end", _bpe(vocab={"a": -1})),
    "ids beyond everything": Attack("allocate 2^60 rows", _bpe(vocab={"a": 1 << 60, "b": 0}), harmless=True),
    "ids twice": Attack("give two tokens one row", _bpe(vocab={"a": 0, "c": 0}), harmless=True),
    "pieces of lists": Attack("hash a list", _tokens(model={"type": "Unigram", "vocab": [[["a"], 0.0]]})),
    "merges as a number": Attack("iterate over 7", _bpe(merges=7), harmless=True),
    "merges of numbers": Attack("split 7", _bpe(merges=[7, [1, 2], None]), harmless=True),
    "type as a list": Attack("look up a list", _bpe(type=["BPE"])),
    "added tokens as a map": Attack("call get on text", _tokens(added_tokens={"a": 1})),
    "added tokens of lists": Attack("hash a list", _tokens(added_tokens=[{"content": ["x"], "id": 1}]), harmless=True),
    "decoder of numbers of 5000 digits": Attack(
        "raise ValueError from int", _tokenizer(json.dumps({"added_tokens_decoder": {"9" * 5000: {"content": "z"}}}), "tokenizer_config.json"), harmless=True
    ),
    "settings as a list": Attack("call get on a list", _tokenizer("[]", "tokenizer_config.json")),
    "a template of templates": Attack("look up a list", _templates, harmless=True),
}  # fmt: skip


WRONG: Sequence[Any] = (None, True, 1 << 70, "x", [1, "a", None], {"a": [1]})
KEYS = (
    "num_hidden_layers", "n_layer", "num_layers", "layer_types", "torch_dtype", "dtype", "architectures", "model_type", "vocab_size",
    "tie_word_embeddings", "quantization_config", "text_config", "llm_config", "eos_token_id", "bos_token_id", "max_position_embeddings",
)  # fmt: skip


def _configured(key: str, value: object) -> Callable[[], None]:
    def spoil() -> None:
        for name in ("a", "b"):
            _write(Path(name) / "config.json", json.dumps({**llama_config(), key: value}))
        Path("merge.yaml").write_text(UNION)

    return spoil


CONFIGS = {
    "no map": Attack("call get on a list", _text(CONFIG, "[1]")),
    "no JSON": Attack("raise JSONDecodeError", _text(CONFIG, b"\x89PNG")),
    "deep": Attack("overflow the stack", _text(CONFIG, '{"a":' * 9999)),
    "deep below the parser's limit": Attack(
        "overflow the stack of copy.deepcopy", _text(CONFIG, '{"a":' * 500 + "1" + "}" * 500)
    ),
    "millions of lists": Attack("turn 20 MB into gigabytes", _text(CONFIG, b'{"a": [' + b"[]," * 7_000_000 + b"0]}")),
    "a number of 10000 digits": Attack("convert in quadratic time", _text(CONFIG, '{"num_hidden_layers": ' + "9" * 10_000 + "}")),
    "half a character": Attack("raise UnicodeEncodeError at the very end of a merge", _text(CONFIG, '{"model_type": "\\ud800"}')),
    "layers without end": Attack("count to 10^18", _text(CONFIG, json.dumps(llama_config(10**18)))),
    **{
        f"{key} is {json.dumps(value)}": Attack(
            "have another type than every reader expects", _configured(key, value), harmless=True
        )
        for key in KEYS
        for value in WRONG
    },
}

ATTACKS = {
    f"{kind}: {name}": attack
    for kind, attacks in (
        ("header", HEADERS), ("folder", FOLDERS), ("pickle", PICKLES), ("yaml", YAMLS), ("adapter", ADAPTERS),
        ("tokenizer", TOKENIZERS), ("config", CONFIGS),
    )
    for name, attack in attacks.items()
}  # fmt: skip
