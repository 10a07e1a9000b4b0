"""Compiles programs into loops with numba: read stored elements, compute, round, write, and count, in one go and without the GIL.

A program becomes the text of one function, with every operation on scalars of the type that NumPy would use, so that results are
the same bit for bit. The text is its own name: it is kept in a folder of the user's cache, where numba keeps the machine code
beside it, so that each loop is compiled once a machine.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..expression import ROW_OPERATIONS, Kind, Node, Program
from .eager import LANES, STRIP
from .formats import INFINITY, RAW

Reduction = Literal["map", "sum", "count", "high", "low"]

_KINDS = {Kind.F32: "float32", Kind.F64: "float64", Kind.I32: "int32", Kind.I64: "int64", Kind.BOOL: "bool_"}

_BINARY = {
    "add": "+", "sub": "-", "mul": "*", "div": "/", "lt": "<", "le": "<=", "gt": ">", "ge": ">=", "eq": "==", "ne": "!=",
    "and": "&", "or": "|", "xor": "^", "shr": ">>", "shl": "<<",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Loop:
    """What tells one compiled loop from another.

    `dtypes` are the stored types of the inputs, `cast` what they are rounded to first. A map stores `out` and compares with the
    base at input `base`. The other reductions have no output.
    """

    program: Program
    reduction: Reduction
    dtypes: tuple[str, ...]
    cast: str | None = None
    out: str | None = None
    base: int | None = None


HEADER = '''
import math

import numba as nb
import numpy as np

_jit = nb.njit(nogil=True, cache=True, boundscheck=False, error_model="numpy", inline="never")
_inline = nb.njit(nogil=True, boundscheck=False, error_model="numpy")


@_inline
def widen_BF16(u):
    return np.uint32(np.uint32(u) << np.uint32(16)).view(np.float32)


@_inline
def widen_F16(u):
    # A float32 with the same digits is 2**112 too small; so it is for the smallest numbers.
    magnitude = np.uint32((np.uint32(u) & np.uint32(0x7FFF)) << np.uint32(13))
    sign = np.uint32((np.uint32(u) & np.uint32(0x8000)) << np.uint32(16))
    scaled = np.float32(magnitude.view(np.float32) * np.float32(2.0**112)).view(np.uint32)
    special = np.uint32(magnitude | np.uint32(0x7F800000))
    return np.uint32((special if magnitude >= np.uint32(0x0F800000) else scaled) | sign).view(np.float32)


@_inline
def widen_F32(u):
    return np.uint32(u).view(np.float32)


@_inline
def widen_F64(u):
    return np.float32(np.uint64(u).view(np.float64))


@_inline
def narrow_BF16(v):
    u = np.float32(v).view(np.uint32)
    rounded = np.uint16((u + np.uint32(0x7FFF) + ((u >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16))
    return np.uint16(0x7FC0) if (u & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000) else rounded


@_inline
def narrow_F16(v):
    u = np.float32(v).view(np.uint32)
    sign = np.uint32((u >> np.uint32(16)) & np.uint32(0x8000))
    a = np.uint32(u & np.uint32(0x7FFFFFFF))
    # Adding a half moves the last digit of a small number to the last of a float32.
    small = np.uint32(np.float32(a.view(np.float32) + np.float32(0.5)).view(np.uint32) - np.uint32(0x3F000000))
    normal = np.uint32((a + np.uint32(0x0FFF) + ((a >> np.uint32(13)) & np.uint32(1)) - np.uint32(112 << 23)) >> np.uint32(13))
    large = np.uint32(0x7E00) if a > np.uint32(0x7F800000) else np.uint32(0x7C00)
    magnitude = small if a < np.uint32(0x38800000) else normal
    return np.uint16((large if a >= np.uint32(0x47800000) else magnitude) | sign)


@_inline
def narrow_F32(v):
    return np.float32(v).view(np.uint32)


@_inline
def narrow_F64(v):
    return np.float64(v).view(np.uint64)


@_inline
def fold_lanes(lanes):
    half = np.int64(LANES // 2)
    while half:
        for i in range(half):
            lanes[i] = lanes[i] + lanes[half + i]
        half //= 2
    return lanes[0]


@_inline
def ranks(keys, order, spare, out):
    """The place of each key in ascending order, equal ones by index: four passes of eight digits (Knuth, section 5.2.5)."""
    n = keys.size
    for i in range(n):
        order[i] = i
    counts = np.empty(256, np.int64)
    source, target = order, spare
    for shift in (0, 8, 16, 24):
        counts[:] = 0
        for i in range(n):
            counts[(keys[i] >> shift) & 255] += 1
        total = np.int64(0)
        for d in range(256):
            c = counts[d]
            counts[d] = total
            total += c
        for i in range(n):
            j = source[i]
            d = (keys[j] >> shift) & 255
            target[counts[d]] = j
            counts[d] += 1
        source, target = target, source
    for i in range(n):
        out[source[i]] = i

'''.replace("LANES", str(LANES))


class _Text:
    """Lines of the function under construction."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.indent = 1

    def add(self, *lines: str) -> None:
        self.lines += ["    " * self.indent + line for line in lines]


def source(loop: Loop) -> str:
    """The text of a module whose function `run` is the loop. See `parameters` for what it takes."""
    program = loop.program
    text = _Text()
    _hoist(text, program)
    if loop.reduction == "map":
        text.add("nan = np.int64(0)", "inf = np.int64(0)", "changed = np.int64(0)")
    elif loop.reduction == "sum":
        text.add(f"lanes = np.zeros(({len(program.results)}, {LANES}))")
    if program.by_row:
        _by_rows(text, loop)
    else:
        _flat(text, loop)
    if loop.reduction == "map":
        text.add("return nan, inf, changed")
    else:
        text.add("return 0, 0, 0")
    return HEADER + f"\n@_jit\ndef run({', '.join(parameters(loop))}):\n" + "\n".join(text.lines) + "\n"


def parameters(loop: Loop) -> list[str]:
    """Names of what a loop takes: `first` index of the first element, `count` of elements, `width` of a row, `block` of a block,
    raw inputs, the output (of a map: raw; of sums and counts: [blocks, results]; of histograms: as the eager ones), numbers,
    and where random words are used the tables and how they are turned.
    """
    given = ["first", "count", "width", "block", *(f"x{i}" for i in range(len(loop.dtypes))), "out"]
    given += ["floats", "integers"]
    given += [f"col{i}" for i in range(_count(loop.program, "column"))]
    given += [f"rows{i}" for i in range(_count(loop.program, "row"))]
    if _count(loop.program, "random"):
        given += ["tables", "turns"]
    if loop.reduction == "low":
        given += ["buckets", "counters", "block_counts"]
    return given


def _count(program: Program, operation: str) -> int:
    return sum(node.operation == operation for node in program.nodes)


def _hoist(text: _Text, program: Program) -> None:
    """Constants and numbers, which are the same for all elements."""
    floats = integers = columns = 0
    for number, node in enumerate(program.nodes):
        if node.operation == "constant":
            value = repr(node.detail).replace("inf", "np.inf").replace("nan", "np.nan")
            text.add(f"v{number} = np.{_KINDS[node.kind]}({value})")
        elif node.operation == "number" and node.kind is Kind.F32:
            text.add(f"v{number} = floats[{floats}]")
            floats += 1
        elif node.operation == "number":
            text.add(f"v{number} = np.{_KINDS[node.kind]}(integers[{integers}])")
            integers += 1
        elif node.operation == "column":
            columns += 1


def _flat(text: _Text, loop: Loop) -> None:
    """All elements one after another; in segments where random words, sums or blocks ask for them."""
    random = _count(loop.program, "random")
    segments = {"map": 1 << 62, "high": 1 << 62, "sum": STRIP, "count": 1 << 62, "low": 1 << 62}[loop.reduction]
    # Blocks, within blocks windows of random words, within these strips of sums: the ends of each are found on the way.
    text.add("done = np.int64(0)", "while done < count:")
    text.indent += 1
    text.add("end = count")
    if loop.reduction in ("sum", "count", "low"):
        text.add("b = done // block", "end = min(end, (b + 1) * block)")
    if loop.reduction == "sum":
        text.add(f"end = min(end, b * block + ((done - b * block) // {segments} + 1) * {segments})")
    if random and loop.reduction != "sum":
        text.add("window = (first + done) // 65536", "end = min(end, (window + 1) * 65536 - first)")
    rows = [number for number, node in enumerate(loop.program.nodes) if node.operation == "row"]
    if rows:
        text.add("r = (first + done) // width", "end = min(end, (r + 1) * width - first)")
        text.add(*(f"v{number} = rows{i}[r]" for i, number in enumerate(rows)))
    _random_start(text, loop.program)
    if loop.reduction == "sum":
        text.add(
            f"for step in range(done, end, {LANES}):",
            f"    for i in range(step, min(step + {LANES}, end)):",
        )
        text.indent += 2
    else:
        if loop.reduction == "count":
            text.add(*(f"n{k} = np.int64(0)" for k in range(len(loop.program.results))))
        text.add("for i in range(done, end):")
        text.indent += 1
    for line in _body(loop.program, loop, range(len(loop.program.nodes)), "i"):
        text.add(line)
    _consume(text, loop, "i")
    text.indent -= 2 if loop.reduction == "sum" else 1
    _after_segment(text, loop)
    text.add("done = end")
    text.indent -= 1


def _after_segment(text: _Text, loop: Loop) -> None:
    if loop.reduction == "sum":
        for k in range(len(loop.program.results)):
            text.add(f"out[b, {k}] += fold_lanes(lanes[{k}])")
        text.add("lanes[:] = 0.0")
    elif loop.reduction == "count":
        text.add(*(f"out[b, {k}] += n{k}" for k in range(len(loop.program.results))))
    elif loop.reduction == "low":
        # What each bucket's counters hold of this block, in ascending order, and the counters as they were.
        text.add("if end == count or end == (b + 1) * block:")
        text.add("    for k in range(buckets.shape[0]):")
        text.add("        used = np.int64(0)")
        text.add("        for low in range(65536):")
        text.add("            if counters[k, low]:")
        text.add("                if used < block_counts.shape[2]:")
        text.add("                    block_counts[b, k, used, 0] = low")
        text.add("                    block_counts[b, k, used, 1] = counters[k, low]")
        text.add("                used += 1")
        text.add("                out[k, low] += counters[k, low]")
        text.add("                counters[k, low] = 0")
        text.add("        block_counts[b, k, block_counts.shape[2] - 1, 0] = used")


def _random_start(text: _Text, program: Program) -> None:
    """Each table from where the words of the current segment begin."""
    seen = 0
    for number, node in enumerate(program.nodes):
        if node.operation == "random":
            text.add("w = (first + done) // 65536 - first // 65536")
            for t, name in enumerate("abc"):
                text.add(f"{name}{number} = tables[{t}, turns[{seen}, w, {t}] + (first + done) % 65536 :]")
            seen += 1


def _consume(text: _Text, loop: Loop, index: str) -> None:
    """What is done with an element's results."""
    results = loop.program.results
    match loop.reduction:
        case "map":
            assert loop.out is not None
            _store(text, loop, f"v{results[0]}", index)
        case "sum":
            text.add(*(f"lanes[{k}, {index} - step] += np.float64(v{r})" for k, r in enumerate(results)))
        case "count":
            text.add(*(f"n{k} += np.int64(v{r})" for k, r in enumerate(results)))
        case "high":
            text.add(*(f"out[{k}, (np.float32(v{r}).view(np.int32) & 0x7FFFFFFF) >> 16] += 1" for k, r in enumerate(results)))
        case "low":
            for r in results:
                text.add(f"m{r} = np.float32(v{r}).view(np.int32) & 0x7FFFFFFF")
            text.add("for k in range(buckets.shape[0]):")
            for number, r in enumerate(results):
                text.add(
                    f"    {'if' if number == 0 else 'elif'} buckets[k, 0] == {number}:",
                    f"        if (m{r} >> 16) == buckets[k, 1]:",
                    f"            counters[k, m{r} & 0xFFFF] += 1",
                )


def _store(text: _Text, loop: Loop, value: str, index: str) -> None:
    out = loop.out
    assert out is not None
    text.add(f"q = narrow_{out}({value})", f"out[{index}] = q")
    width = {"BF16": "16", "F16": "16", "F32": "32", "F64": "64"}[out]
    mask = hex((1 << (int(width) - 1)) - 1)
    infinity = hex(INFINITY[out])
    text.add(
        f"m = np.uint{width}(q & np.uint{width}({mask}))",
        f"nan += np.int64(m > np.uint{width}({infinity}))",
        f"inf += np.int64(m == np.uint{width}({infinity}))",
    )
    if loop.base is not None:
        own = loop.dtypes[loop.base]
        base = f"x{loop.base}[{index}]"
        if own != out:
            base = f"np.float64(np.uint64({base}).view(np.float64))" if own == "F64" and out == "F64" else f"widen_{own}({base})"
            base = f"narrow_{out}({base})"
        text.add(f"changed += np.int64(q != {base})")


def _body(program: Program, loop: Loop, numbers: Sequence[int] | range, index: str) -> list[str]:
    """One line for each of these nodes; what is the same for all elements is known already."""
    lines = []
    columns = [n for n, node in enumerate(program.nodes) if node.operation == "column"]
    for number in numbers:
        node = program.nodes[number]
        match node.operation:
            case "constant" | "number" | "row" | "row_sum" | "row_max":
                continue
            case "row_rank":
                line = f"rank{number}[{index} - row]"
            case "input":
                line = _load(loop, int(node.detail or 0), index)
            case "column":
                line = f"col{columns.index(number)}[{index} - row]"
            case "index":
                line = f"first + {index}"
            case "random":
                a, b, c = (f"{name}{number}[np.uint64({index} - done)]" for name in "abc")
                line = f"np.int32({a} ^ {b} ^ {c})"
            case _:
                line = _operation(node)
        lines.append(f"v{number} = {line}")
    return lines


def _load(loop: Loop, number: int, index: str) -> str:
    own = loop.dtypes[number]
    value = f"widen_{own}(x{number}[{index}])"
    if loop.cast is not None and loop.cast != own and loop.cast in ("BF16", "F16"):
        value = f"widen_{loop.cast}(narrow_{loop.cast}({value}))"
    return value


def _operation(node: Node) -> str:
    arguments = [f"v{a}" for a in node.arguments]
    if node.operation in _BINARY:
        line = f"{arguments[0]} {_BINARY[node.operation]} {arguments[1]}"
        return f"np.{_KINDS[node.kind]}({line})" if node.kind in (Kind.I32, Kind.I64) else line
    match node.operation:
        case "neg":
            return f"-{arguments[0]}"
        case "abs":
            return f"abs({arguments[0]})"
        case "sqrt":
            return f"np.sqrt({arguments[0]})"
        case "acos" | "sin":
            return f"math.{node.operation}({arguments[0]})"
        case "not":
            return f"not {arguments[0]}" if node.kind is Kind.BOOL else f"np.{_KINDS[node.kind]}(~{arguments[0]})"
        case "where":
            return f"{arguments[1]} if {arguments[0]} else {arguments[2]}"
        case "f64" | "f32" | "i64":
            return f"np.{_KINDS[node.kind]}({arguments[0]})"
        case "bits" | "bits64" | "from_bits" | "from_bits64":
            stored = {"bits": "float32", "bits64": "float64", "from_bits": "int32", "from_bits64": "int64"}[node.operation]
            return f"np.{stored}({arguments[0]}).view(np.{_KINDS[node.kind]})"
    raise AssertionError(f"no loop for {node.operation}")


def _by_rows(text: _Text, loop: Loop) -> None:
    """Row by row: a loop for what each operation on whole rows needs, and then one for the results."""
    program = loop.program
    barriers = [n for n, node in enumerate(program.nodes) if node.operation in ROW_OPERATIONS]
    ranked = [n for n in barriers if program.nodes[n].operation == "row_rank"]
    if ranked:
        text.add(*(f"{name} = np.empty(width, np.int32)" for name in ("keys", "order", "spare")))
        text.add(*(f"rank{n} = np.empty(width, np.int32)" for n in ranked))
    if any(program.nodes[n].operation == "row_sum" for n in barriers):
        text.add(f"row_lanes = np.empty({LANES})")
    text.add("for row in range(0, count, width):")
    text.indent += 1
    text.add("end = row + width")
    if loop.reduction in ("sum", "count"):
        text.add("b = row // block")
    scalars: list[int] = []
    for barrier in barriers:
        _row_operation(text, loop, barrier)
        scalars.append(barrier)
    if _count(program, "random"):
        # A row may reach over windows: each is a loop of its own.
        text.add("done = row", "while done < end:")
        text.indent += 1
        text.add("stop = min(end, ((first + done) // 65536 + 1) * 65536 - first)")
        _random_start(text, program)
        text.add("for i in range(done, stop):")
    else:
        text.add("for i in range(row, end):")
    text.indent += 1
    needed = _needed(program, program.results)
    for line in _body(program, loop, needed, "i"):
        text.add(line)
    _consume(text, loop, "i")
    text.indent -= 1
    if _count(program, "random"):
        text.add("done = stop")
        text.indent -= 1
    text.indent -= 1


def _needed(program: Program, roots: Sequence[int]) -> list[int]:
    """The nodes to compute an element's `roots` from, in order, without those that belong to a row's own loops."""
    found: set[int] = set()
    waiting = list(roots)
    while waiting:
        number = waiting.pop()
        if number in found:
            continue
        found.add(number)
        if program.nodes[number].operation not in ROW_OPERATIONS:
            waiting.extend(program.nodes[number].arguments)
    return sorted(found)


def _row_operation(text: _Text, loop: Loop, number: int) -> None:
    program, node = loop.program, loop.program.nodes[number]
    argument = node.arguments[0]
    body = _body(program, loop, _needed(program, [argument]), "i")
    match node.operation:
        case "row_sum":
            text.add(
                "row_lanes[:] = 0.0",
                f"for step in range(row, end, {LANES}):",
                f"    for i in range(step, min(step + {LANES}, end)):",
                *(f"        {line}" for line in body),
                f"        row_lanes[i - step] += v{argument}",
                f"v{number} = fold_lanes(row_lanes)",
            )
        case "row_max":
            text.add(
                f"v{number} = np.float32(-np.inf)",
                "for i in range(row, end):",
                *(f"    {line}" for line in body),
                f"    if v{argument} > v{number} or v{argument} != v{argument}:",
                f"        v{number} = v{argument}",
            )
        case "row_rank":
            text.add(
                "for i in range(row, end):",
                *(f"    {line}" for line in body),
                f"    keys[i - row] = v{argument}",
                f"ranks(keys, order, spare, rank{number})",
            )


def available() -> bool:
    """Whether numba is installed; it is not imported."""
    return importlib.util.find_spec("numba") is not None


def start() -> None:
    """Import numba and let it compile something: what that takes of memory, it takes once a process.

    Loops read and write more arrays than LLVM would compare by itself to see whether they overlap; it is told to compare them.
    """
    import llvmlite
    import llvmlite.binding
    import numba

    if _VECTORISES not in _said and tuple(map(int, llvmlite.__version__.split(".")[:2])) < (0, 60):
        llvmlite.binding.set_option("weft", _VECTORISES)
        _said.add(_VECTORISES)
    numba.njit("float32(float32)", nogil=True)(_half)(1.0)


_VECTORISES = "--runtime-memory-check-threshold=512"

_said: set[str] = set()
"""Options that LLVM was given: it takes each once a process."""


def _half(value: float) -> float:
    return value / 2.0


def cache_folder() -> Path:
    """Where compiled loops are kept: the user's cache, or a folder of this process where that cannot be written."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = home / "weft" / "loops"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if os.access(folder, os.W_OK):
            return folder
    except OSError:
        pass
    return Path(tempfile.mkdtemp(prefix="weft-loops-"))


def build(loop: Loop, folder: Path) -> Callable[..., tuple[int, int, int]]:
    """The loop's function, from the text that is written into `folder`; numba compiles it when it is first called."""
    text = source(loop)
    name = "loop_" + hashlib.sha256(text.encode()).hexdigest()[:32]
    path = folder / f"{name}.py"
    if not path.exists() or path.read_text() != text:
        fresh = folder / f"{name}.{os.getpid()}.tmp"
        fresh.write_text(text)
        fresh.replace(path)
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # numba finds the module again by its name when it loads machine code
    spec.loader.exec_module(module)
    run: Callable[..., tuple[int, int, int]] = module.run
    return run


def compile_now(loop: Loop, run: Any) -> None:
    """Compile a loop for the types that it is called with, by calling it for no elements; afterwards it takes no others."""
    program = loop.program
    floats = sum(node.operation == "number" and node.kind is Kind.F32 for node in program.nodes)
    integers = len(program.numbers) - floats
    given: list[Any] = [0, 0, 1, 1, *(np.zeros(0, RAW[_ITEMS[dtype]]) for dtype in loop.dtypes)]
    results = len(program.results)
    match loop.reduction:
        case "map":
            assert loop.out is not None
            given.append(np.zeros(0, RAW[_ITEMS[loop.out]]))
        case "sum":
            given.append(np.zeros((1, results)))
        case "low":
            given.append(np.zeros((1, 1), np.int32))
        case _:
            given.append(np.zeros((1, results), np.int64))
    given += [np.zeros(floats, np.float32), np.zeros(integers, np.int64)]
    given += [np.zeros(1, np.float32) for _ in range(_count(program, "column") + _count(program, "row"))]
    if _count(program, "random"):
        given += [np.zeros((3, 1), np.int32), np.zeros((_count(program, "random"), 1, 3), np.int32)]
    if loop.reduction == "low":
        given += [np.zeros((0, 2), np.int64), np.zeros((0, 1), np.int32), np.zeros((0, 0, 1, 2), np.int32)]
    run(*given)
    run.disable_compile()


_ITEMS = {"BF16": 2, "F16": 2, "F32": 4, "F64": 8}
