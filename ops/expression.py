"""Element-wise arithmetic, written once: a function of plain operations is traced into a program that any backend can run.

A function is called once with symbols in place of numbers. What it does with them, `base + t * (model - base)`, is recorded
operation by operation. The program is then run by NumPy block by block, by a compiled loop element by element, or by torch on a
device: the same operations in the same order, each rounded to its own type, so that all on one processor give the same bits.

Loops, helper functions and comprehensions work as in any Python, for they run while the function is traced. What depends on an
element's value is chosen by `where`, since one program serves all elements.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import NoReturn, TypeAlias


class Kind(Enum):
    """The type of a value."""

    F32 = "float32"
    F64 = "float64"
    I32 = "int32"
    I64 = "int64"
    BOOL = "bool"


@dataclass(frozen=True, slots=True)
class Node:
    """One operation of a program: its arguments are the numbers of earlier nodes; `detail` is what else identifies it."""

    operation: str
    kind: Kind
    arguments: tuple[int, ...] = ()
    detail: int | float | str | None = None


@dataclass(frozen=True, slots=True)
class Program:
    """What a traced function does with one element: nodes in an order in which they can be computed, and which are returned.

    `numbers` names the scalars in the order in which a backend takes them. `cuts` are the selections it tests membership of:
    where the scalars of each stand, and the node whose magnitude is compared. `by_row`: some node looks at whole rows.
    """

    nodes: tuple[Node, ...]
    results: tuple[int, ...]
    numbers: tuple[Node, ...]
    cuts: tuple[tuple[str, int], ...] = ()
    by_row: bool = False


class _Recorder:
    """The program under construction; equal operations on equal arguments are one node."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self._known: dict[tuple[object, ...], int] = {}
        self.cuts: dict[str, int] = {}

    def add(self, operation: str, kind: Kind, arguments: tuple[int, ...] = (), detail: int | float | str | None = None) -> Value:
        # repr tells 0.0 from -0.0, which are equal
        key = operation, kind, arguments, repr(detail)
        if key not in self._known:
            self._known[key] = len(self.nodes)
            self.nodes.append(Node(operation, kind, arguments, detail))
        return Value(self, self._known[key], kind)


@dataclass(frozen=True, slots=True, eq=False)
class Value:
    """A symbol for one element's value, or for a number that is the same for all."""

    recorder: _Recorder
    number: int
    kind: Kind

    def __add__(self, other: Operand) -> Value:
        return _arithmetic("add", self, other)

    def __radd__(self, other: Operand) -> Value:
        if isinstance(other, int | float) and other == 0:  # what `sum` begins with
            return self
        return _arithmetic("add", other, self)

    def __sub__(self, other: Operand) -> Value:
        return _arithmetic("sub", self, other)

    def __rsub__(self, other: Operand) -> Value:
        return _arithmetic("sub", other, self)

    def __mul__(self, other: Operand) -> Value:
        return _arithmetic("mul", self, other)

    def __rmul__(self, other: Operand) -> Value:
        return _arithmetic("mul", other, self)

    def __truediv__(self, other: Operand) -> Value:
        return _arithmetic("div", self, other)

    def __rtruediv__(self, other: Operand) -> Value:
        return _arithmetic("div", other, self)

    def __neg__(self) -> Value:
        return self.recorder.add("neg", self.kind, (self.number,))

    def __abs__(self) -> Value:
        return self.recorder.add("abs", self.kind, (self.number,))

    def __lt__(self, other: Operand) -> Value:
        return _comparison("lt", self, other)

    def __le__(self, other: Operand) -> Value:
        return _comparison("le", self, other)

    def __gt__(self, other: Operand) -> Value:
        return _comparison("gt", self, other)

    def __ge__(self, other: Operand) -> Value:
        return _comparison("ge", self, other)

    def __eq__(self, other: Operand) -> Value:  # type: ignore[override]
        return _comparison("eq", self, other)

    def __ne__(self, other: Operand) -> Value:  # type: ignore[override]
        return _comparison("ne", self, other)

    __hash__ = None  # type: ignore[assignment]

    def __and__(self, other: Operand) -> Value:
        return _bitwise("and", self, other)

    def __or__(self, other: Operand) -> Value:
        return _bitwise("or", self, other)

    def __xor__(self, other: Operand) -> Value:
        return _bitwise("xor", self, other)

    def __invert__(self) -> Value:
        return self.recorder.add("not", self.kind, (self.number,))

    def __rshift__(self, places: int) -> Value:
        return self.recorder.add("shr", self.kind, (self.number, _constant(self.recorder, places, self.kind).number))

    def __lshift__(self, places: int) -> Value:
        return self.recorder.add("shl", self.kind, (self.number, _constant(self.recorder, places, self.kind).number))

    def __bool__(self) -> NoReturn:
        raise TypeError("an element's value is not known while the function is traced: choose with where(condition, a, b)")


Operand: TypeAlias = Value | float | int | bool


@dataclass(frozen=True, slots=True)
class CutSymbol:
    """A symbol for a selection of the k largest magnitudes (`lib/selection.py`)."""

    name: str
    bits: Value
    limit: Value


def _constant(recorder: _Recorder, value: float | int | bool, kind: Kind) -> Value:
    return recorder.add("constant", kind, (), float(value) if kind in (Kind.F32, Kind.F64) else int(value))


def _recorder(*operands: Operand) -> _Recorder:
    return next(operand.recorder for operand in operands if isinstance(operand, Value))


def _same(*operands: Operand) -> tuple[Kind, list[Value]]:
    """Operands as values of one kind. Plain numbers take the kind of the symbols, which must agree."""
    kinds = {operand.kind for operand in operands if isinstance(operand, Value)}
    if len(kinds) != 1:
        names = " and ".join(sorted(kind.value for kind in kinds))
        raise TypeError(f"{names} do not mix: convert with wide() or narrow()")
    kind, recorder = kinds.pop(), _recorder(*operands)
    return kind, [v if isinstance(v, Value) else _constant(recorder, v, kind) for v in operands]


def _arithmetic(operation: str, left: Operand, right: Operand) -> Value:
    kind, (a, b) = _same(left, right)
    if kind is Kind.BOOL:
        raise TypeError("a truth value is no number: where(condition, 1.0, 0.0)")
    return a.recorder.add(operation, kind, (a.number, b.number))


def _comparison(operation: str, left: Operand, right: Operand) -> Value:
    _, (a, b) = _same(left, right)
    return a.recorder.add(operation, Kind.BOOL, (a.number, b.number))


def _bitwise(operation: str, left: Operand, right: Operand) -> Value:
    kind, (a, b) = _same(left, right)
    if kind in (Kind.F32, Kind.F64):
        raise TypeError(f"{operation} is for truth values and bit patterns")
    return a.recorder.add(operation, kind, (a.number, b.number))


def where(condition: Value, yes: Operand, no: Operand) -> Value:
    """`yes` where the condition holds, else `no`. Of two plain numbers: float32."""
    recorder = condition.recorder
    if not isinstance(yes, Value) and not isinstance(no, Value):
        yes = _constant(recorder, yes, Kind.F32)
    kind, (a, b) = _same(yes, no)
    return recorder.add("where", kind, (condition.number, a.number, b.number))


def minimum(left: Operand, right: Operand) -> Value:
    """The smaller of two numbers; the right one where the left is NaN."""
    _, (a, b) = _same(left, right)
    return where(a < b, a, b)


def maximum(left: Operand, right: Operand) -> Value:
    """The larger of two numbers; the right one where the left is NaN."""
    _, (a, b) = _same(left, right)
    return where(a > b, a, b)


def clamp(value: Value, low: Operand, high: Operand) -> Value:
    """The number, or the end of the range that it leaves; NaN stays NaN."""
    return where(value < low, low, where(value > high, high, value))


def sqrt(value: Value) -> Value:
    """The square root, correctly rounded."""
    return value.recorder.add("sqrt", value.kind, (value.number,))


def acos(value: Value) -> Value:
    """The arc cosine of a float64; made for a few numbers a row, not for every element."""
    return value.recorder.add("acos", Kind.F64, (value.number,))


def sin(value: Value) -> Value:
    """The sine of a float64; likewise."""
    return value.recorder.add("sin", Kind.F64, (value.number,))


def wide(value: Value) -> Value:
    """As float64."""
    return value if value.kind is Kind.F64 else value.recorder.add("f64", Kind.F64, (value.number,))


def narrow(value: Value) -> Value:
    """As float32, rounded to nearest even."""
    return value if value.kind is Kind.F32 else value.recorder.add("f32", Kind.F32, (value.number,))


def bits(value: Value) -> Value:
    """A float32's bit pattern as int32."""
    return value.recorder.add("bits", Kind.I32, (value.number,))


def from_bits(value: Value) -> Value:
    """The float32 of a bit pattern."""
    return value.recorder.add("from_bits", Kind.F32, (value.number,))


def bits64(value: Value) -> Value:
    """A float64's bit pattern as int64."""
    return value.recorder.add("bits64", Kind.I64, (value.number,))


def from_bits64(value: Value) -> Value:
    """The float64 of a bit pattern."""
    return value.recorder.add("from_bits64", Kind.F64, (value.number,))


def as_int64(value: Value) -> Value:
    """A float64 that is a whole number, or an int32, as int64."""
    return value.recorder.add("i64", Kind.I64, (value.number,))


def magnitude_bits(value: Value) -> Value:
    """The bit pattern of |value|: magnitudes have the order of these integers, and NaN stands above all."""
    return bits(value) & 0x7FFFFFFF


def is_nan(value: Value) -> Value:
    """Whether it is not a number."""
    return value != value


def random_word(like: Value, number: int) -> Value:
    """A uniform int32 of stream `number` of the tensor, of this element alone (`lib/random_bits.py`); `like`: any value of it."""
    return like.recorder.add("random", Kind.I32, (), number)


def selected(value: Value, cut: CutSymbol) -> Value:
    """Whether an element belongs to the largest magnitudes of its tensor that `cut` selects: exactly so many do."""
    known = value.recorder.cuts.setdefault(cut.name, value.number)
    if known != value.number:
        raise TypeError(f"the selection '{cut.name}' is of another value")
    magnitude = magnitude_bits(value)
    index = value.recorder.add("index", Kind.I64)
    return (magnitude > cut.bits) | ((magnitude == cut.bits) & (index < cut.limit))


def row_sum(value: Value) -> Value:
    """The sum over the element's row, in float64."""
    return value.recorder.add("row_sum", Kind.F64, (wide(value).number,))


def row_max(value: Value) -> Value:
    """The largest float32 of the element's row; NaN where there is one."""
    return value.recorder.add("row_max", Kind.F32, (value.number,))


def row_rank(value: Value) -> Value:
    """The place of a float32 among the magnitudes of its row, from 0 for the smallest; equal ones rank by index. As int32."""
    return value.recorder.add("row_rank", Kind.I32, (magnitude_bits(value).number,))


ROW_OPERATIONS = frozenset({"row_sum", "row_max", "row_rank"})


@dataclass(frozen=True, slots=True)
class ByColumn:
    """A number for each column of the tensor: float32 values, one an element of a row."""

    values: object


@dataclass(frozen=True, slots=True)
class ByRow:
    """A number for each row of the tensor, a row being as long as the kernel's width: float32 values."""

    values: object


@dataclass(frozen=True, slots=True)
class Structure:
    """What a number looks like to a trace: a float, an integer, a truth value (`count` 1 or 0), none, a cut, one a column, one
    a row, or a list of `inner` ones.
    """

    form: str
    count: int = 0
    inner: tuple[Structure, ...] = ()


def trace(
    function: object,
    inputs: int,
    base: int | None,
    structures: Mapping[str, Structure],
) -> Program:
    """The program of `function(base=…, models=…, **numbers)`, which names what it wants of these; see `method.Map`.

    `base` is the position of the input that is the base, if it is apart from the models. Raises TypeError for what cannot be
    traced.
    """
    recorder = _Recorder()
    rows = [recorder.add("input", Kind.F32, (), number) for number in range(inputs)]
    given: dict[str, object] = {
        "base": rows[base] if base is not None else None,
        "models": [row for number, row in enumerate(rows) if number != base],
    }
    given |= {name: _symbol(recorder, name, structure) for name, structure in structures.items()}
    wanted = _wanted(function, given)
    missing = [name for name in wanted if name not in given]
    if missing:
        raise TypeError(f"{getattr(function, '__name__', function)} asks for '{missing[0]}', which the method does not give it")
    found = function(**{name: given[name] for name in wanted})  # type: ignore[operator]
    together: Sequence[object] = found if isinstance(found, list | tuple) else [found]
    results = []
    for result in together:
        if not isinstance(result, Value):
            result = _constant(recorder, result, Kind.F32)  # type: ignore[arg-type]
        results.append(result.number)
    return _pruned(recorder, results)


def _wanted(function: object, given: Mapping[str, object]) -> tuple[str, ...]:
    """The names that a function takes; one that takes any gets all there are."""
    code = function.__code__  # type: ignore[attr-defined]
    if code.co_flags & inspect.CO_VARKEYWORDS:
        return tuple(given)
    names: tuple[str, ...] = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    return names


def _symbol(recorder: _Recorder, name: str, structure: Structure) -> object:
    match structure.form:
        case "number":
            return recorder.add("number", Kind.F32, (), name)
        case "integer":
            return recorder.add("number", Kind.I32, (), name)
        case "column":
            return recorder.add("column", Kind.F32, (), name)
        case "row":
            return recorder.add("row", Kind.F32, (), name)
        case "flag":
            return bool(structure.count)
        case "none":
            return None
        case "cut":
            limit = recorder.add("number", Kind.I64, (), f"{name}.limit")
            return CutSymbol(name, recorder.add("number", Kind.I32, (), f"{name}.bits"), limit)
        case _:
            return [_symbol(recorder, f"{name}.{i}", inner) for i, inner in enumerate(structure.inner)]


def _pruned(recorder: _Recorder, results: list[int]) -> Program:
    """Only what results need, renumbered in the order of recording."""
    needed: set[int] = set()
    waiting = [*results, *recorder.cuts.values()]
    while waiting:
        number = waiting.pop()
        if number not in needed:
            needed.add(number)
            waiting.extend(recorder.nodes[number].arguments)
    order = sorted(needed)
    place = {old: new for new, old in enumerate(order)}
    nodes = tuple(
        Node(node.operation, node.kind, tuple(place[a] for a in node.arguments), node.detail)
        for node in (recorder.nodes[old] for old in order)
    )
    numbers = tuple(node for node in nodes if node.operation == "number")
    cuts = tuple((name, place[number]) for name, number in recorder.cuts.items())
    by_row = any(node.operation in ROW_OPERATIONS or node.operation == "column" for node in nodes)
    return Program(nodes, tuple(place[number] for number in results), numbers, cuts, by_row)
