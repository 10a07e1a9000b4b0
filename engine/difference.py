"""How two checkpoints differ, tensor by tensor, read in pieces through a few buffers that a budget bounds.

Values are compared in float64, block by block, and block sums are added in float64. Pairs in which a value is NaN or infinite are
counted and left out of norms.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..errors import BudgetError, ConfigError
from ..ops.method import BLOCK
from ..planner.catalog import Checkpoint, InputTensor, open_checkpoint
from ..planner.dtypes import ITEM_SIZES
from ..planner.graph import Load, Segment
from ..planner.inspection import natural, pattern_of
from ..planner.layout import find_layout
from ..planner.locate import locate
from ..planner.memory import OVERHEAD
from ..planner.reference import parse_reference
from ..planner.sizes import format_size
from .fetch import check_downloads
from .pool import torch_dtype
from .reader import InputFile, Reader

PIECE = 8 << 20
LEAST_PIECE = 256 << 10
"""Bytes of a tensor that are read at once: as long as the disk likes, as short as a small budget asks."""

_BUFFERS = 4
"""A piece of each checkpoint that is compared, and one of each that is read meanwhile."""

_SCRATCH = 3 * 8 * BLOCK + 8 * BLOCK
"""Three float64 rows of a block, and what torch makes on the way."""


COMPARISON_VERSION = 1


@dataclass(frozen=True, slots=True)
class Sums:
    """What was seen of two runs of elements x and y; sums of squares and products are over pairs that are finite."""

    elements: int = 0
    differing: int = 0
    largest: float = 0.0
    difference_square: float = 0.0
    first_square: float = 0.0
    second_square: float = 0.0
    product: float = 0.0
    nan: tuple[int, int] = (0, 0)
    inf: tuple[int, int] = (0, 0)

    def __add__(self, other: Sums) -> Sums:
        return Sums(
            self.elements + other.elements,
            self.differing + other.differing,
            max(self.largest, other.largest),
            self.difference_square + other.difference_square,
            self.first_square + other.first_square,
            self.second_square + other.second_square,
            self.product + other.product,
            (self.nan[0] + other.nan[0], self.nan[1] + other.nan[1]),
            (self.inf[0] + other.inf[0], self.inf[1] + other.inf[1]),
        )

    @property
    def relative(self) -> float | None:
        """‖x − y‖/‖x‖; None where x is zero and y is not."""
        if self.first_square > 0:
            return math.sqrt(self.difference_square / self.first_square)
        return None if self.difference_square > 0 else 0.0

    @property
    def cosine(self) -> float | None:
        """⟨x, y⟩/(‖x‖‖y‖); None where one of them is zero."""
        norms = math.sqrt(self.first_square) * math.sqrt(self.second_square)
        return max(-1.0, min(1.0, self.product / norms)) if norms > 0 else None


@dataclass(frozen=True, slots=True)
class TensorDifference:
    """One tensor that both checkpoints have in the same shape; `layer` is the one it stands in ("" outside all layers)."""

    name: str
    layer: str
    shape: tuple[int, ...]
    dtypes: tuple[str, str]
    sums: Sums


@dataclass(frozen=True, slots=True)
class Comparison:
    """`tensors` in the order of the first checkpoint's files; `shapes` are those of tensors that disagree on them."""

    labels: tuple[str, str]
    tensors: tuple[TensorDifference, ...]
    shapes: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]
    only_first: tuple[str, ...]
    only_second: tuple[str, ...]

    @property
    def total(self) -> Sums:
        """Of all compared tensors."""
        return sum((tensor.sums for tensor in self.tensors), Sums())

    @property
    def identical(self) -> bool:
        """Whether both have the same tensors, of the same types and values."""
        same = all(not tensor.sums.differing and tensor.dtypes[0] == tensor.dtypes[1] for tensor in self.tensors)
        return same and not (self.shapes or self.only_first or self.only_second)

    def by(self, key: Callable[[TensorDifference], str]) -> dict[str, Sums]:
        """The sums of tensors with the same key, by key, in natural order."""
        found: dict[str, Sums] = {}
        for tensor in self.tensors:
            found[key(tensor)] = found.get(key(tensor), Sums()) + tensor.sums
        return dict(sorted(found.items(), key=lambda item: natural(item[0])))

    def layers(self) -> dict[str, Sums]:
        """The sums of each layer, and under "" of all that stands outside."""
        return self.by(lambda tensor: tensor.layer)

    def kinds(self) -> dict[str, Sums]:
        """The sums of tensors whose names differ in numbers only."""
        return self.by(lambda tensor: pattern_of(tensor.name))

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain data for programs. Keys are stable; new ones may be added."""
        tensors = self.tensors
        return {
            "version": COMPARISON_VERSION,
            "models": list(self.labels),
            "identical": self.identical,
            "total": _plain(self.total),
            "layers": [{"layer": layer or None, **_plain(sums)} for layer, sums in self.layers().items()],
            "kinds": [{"pattern": pattern, **_plain(sums)} for pattern, sums in self.kinds().items()],
            "tensors": [{"name": t.name, "shape": list(t.shape), "dtypes": list(t.dtypes), **_plain(t.sums)} for t in tensors],
            "shapes": {name: [list(shape) for shape in shapes] for name, shapes in self.shapes.items()},
            "only_in_first": list(self.only_first),
            "only_in_second": list(self.only_second),
        }


def compare(first: Checkpoint, second: Checkpoint, ram: int, seen: Callable[[int], None] = lambda nbytes: None) -> Comparison:
    """Compare two checkpoints whose files are on this machine, in at most `ram` bytes beyond what the process takes.

    `seen` is told the bytes that were compared. Raises BudgetError where `ram` is too little, CheckpointError for what cannot be
    read.
    """
    pairs, shapes = _pairs(first, second)
    places = find_layout(first.label, first.config, first.tensors).places
    piece = _piece(ram)
    inputs = {}
    for checkpoint in (first, second):
        for file in checkpoint.files:
            path = checkpoint.store.path(file.name)
            if path is not None:
                inputs[(file.model, file.name)] = InputFile(path, checkpoint.store.state(file.name))
    found = []
    with closing(Reader(inputs)) as reader, _one_thread():
        for file in (*first.files, *second.files):
            reader.open(file)
        for (x, y), sums in _measured(pairs, reader, piece, seen):
            reader.check((x.file, y.file))
            place = places[x.name]
            layer = f"{place.stack.prefix}.{place.layer}".lstrip(".") if place.stack else ""
            found.append(TensorDifference(x.name, layer, x.shape, (x.dtype, y.dtype), sums))
    return Comparison(
        (first.label, second.label),
        tuple(found),
        shapes,
        tuple(name for name in first.tensors if name not in second.tensors),
        tuple(name for name in second.tensors if name not in first.tensors),
    )


@contextmanager
def _one_thread() -> Iterator[None]:
    """Blocks are too small to be shared out: threads inside an operation would only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


Pair = tuple[InputTensor, InputTensor]


def _pairs(first: Checkpoint, second: Checkpoint) -> tuple[list[Pair], dict[str, tuple[tuple[int, ...], tuple[int, ...]]]]:
    """Tensors to compare, in the order of the first's files, and those whose shapes disagree."""
    pairs: list[Pair] = []
    shapes = {}
    for name, x in first.tensors.items():
        y = second.tensors.get(name)
        if y is None:
            continue
        assert isinstance(x, InputTensor) and isinstance(y, InputTensor)
        if x.shape == y.shape:
            pairs.append((x, y))
        else:
            shapes[name] = (x.shape, y.shape)
    return pairs, shapes


def _piece(ram: int) -> int:
    """Bytes of a piece so that all buffers fit the budget."""
    least = OVERHEAD + _SCRATCH + _BUFFERS * LEAST_PIECE
    if ram < least:
        mebibytes = -(-least // (1 << 20))
        raise BudgetError(f"--ram {format_size(ram)} is too little: it needs at least --ram {mebibytes}MiB", mebibytes << 20)
    return min(PIECE, (ram - OVERHEAD - _SCRATCH) // _BUFFERS) // 8 * 8


@dataclass(frozen=True, slots=True)
class _Piece:
    """Elements `start` to `start + count` of a pair."""

    pair: int
    start: int
    count: int


def _pieces(pairs: Sequence[Pair], nbytes: int) -> Iterator[_Piece]:
    for number, (x, y) in enumerate(pairs):
        size, step = math.prod(x.shape), nbytes // max(ITEM_SIZES[x.dtype], ITEM_SIZES[y.dtype])
        for start in range(0, size, step):
            yield _Piece(number, start, min(step, size - start))


def _measured(pairs: Sequence[Pair], reader: Reader, nbytes: int, seen: Callable[[int], None]) -> Iterator[tuple[Pair, Sums]]:
    """Each pair with its sums. One piece is read while the one before is compared."""
    buffers = [(bytearray(nbytes), bytearray(nbytes)) for _ in range(2)]
    scratch = [torch.empty(BLOCK, dtype=torch.float64) for _ in range(3)]
    pieces = _pieces(pairs, nbytes)

    def read(piece: _Piece, turn: int) -> _Piece:
        for tensor, buffer in zip(pairs[piece.pair], buffers[turn], strict=True):
            _read(reader, tensor, piece, buffer)
        return piece

    totals: dict[int, Sums] = {}
    done = 0
    with ThreadPoolExecutor(1) as pool:
        turn = 0
        ahead = _next(pool, read, pieces, turn)
        while ahead is not None:
            piece, now, turn = ahead.result(), turn, 1 - turn
            for number in range(done, piece.pair):
                yield pairs[number], totals.pop(number, Sums())
            done = piece.pair
            ahead = _next(pool, read, pieces, turn)
            x, y = (_view(b, t, piece.count) for b, t in zip(buffers[now], pairs[piece.pair], strict=True))
            totals[piece.pair] = totals.get(piece.pair, Sums()) + sums_of(x, y, scratch)
            seen(x.nbytes + y.nbytes)
    for number in range(done, len(pairs)):
        yield pairs[number], totals.pop(number, Sums())


def _next(
    pool: ThreadPoolExecutor, read: Callable[[_Piece, int], _Piece], pieces: Iterator[_Piece], turn: int
) -> Future[_Piece] | None:
    piece = next(pieces, None)
    return None if piece is None else pool.submit(read, piece, turn)


def _read(reader: Reader, tensor: InputTensor, piece: _Piece, buffer: bytearray) -> None:
    item = ITEM_SIZES[tensor.dtype]
    nbytes = piece.count * item
    load = Load(tensor, (Segment(tensor.offset + piece.start * item, nbytes, 0),), last=True)
    reader.read(load, memoryview(buffer)[:nbytes])


def _view(buffer: bytearray, tensor: InputTensor, count: int) -> Tensor:
    return torch.frombuffer(buffer, dtype=torch_dtype(tensor.dtype), count=count)


def sums_of(x: Tensor, y: Tensor, scratch: Sequence[Tensor]) -> Sums:
    """The sums of two flat tensors, with three float64 rows of a block for scratch."""
    total = Sums()
    for start in range(0, len(x), BLOCK):
        total += _block(x[start : start + BLOCK], y[start : start + BLOCK], scratch)
    return total


def _block(x: Tensor, y: Tensor, scratch: Sequence[Tensor]) -> Sums:
    a, b, d = (row[: len(x)] for row in scratch)
    a.copy_(x)
    b.copy_(y)
    # Where types agree they are compared as they are: float64 does not hold every int64.
    differs = torch.ne(x, y) if x.dtype == y.dtype else torch.ne(a, b)
    sums = Sums(elements=len(x))
    if not (math.isfinite(a.dot(a)) and math.isfinite(b.dot(b))):
        nan, inf = (a.isnan(), b.isnan()), (a.isinf(), b.isinf())
        differs &= ~(nan[0] & nan[1])
        bad = nan[0] | nan[1] | inf[0] | inf[1]
        a.masked_fill_(bad, 0)
        b.masked_fill_(bad, 0)
        sums = replace(sums, nan=(int(nan[0].sum()), int(nan[1].sum())), inf=(int(inf[0].sum()), int(inf[1].sum())))
    torch.sub(a, b, out=d)
    return replace(
        sums,
        differing=int(torch.count_nonzero(differs)),
        difference_square=float(d.dot(d)),
        first_square=float(a.dot(a)),
        second_square=float(b.dot(b)),
        product=float(a.dot(b)),
        largest=float(d.abs_().max()),
    )


def open_stored(name: str) -> Checkpoint:
    """The model that a folder or a Hub name names. Raises ConfigError for what names none, and CheckpointError."""
    try:
        reference = parse_reference(name)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    if reference.adapter is not None:
        raise ConfigError(
            f"{name}: weft diff compares models as they are stored: write the adapter into its base with `weft run`"
        )
    return open_checkpoint(locate(reference))


def fetch(checkpoint: Checkpoint, *, quiet: bool) -> None:
    """Bring a checkpoint's weight files to this machine. Raises CheckpointError and DiskError."""
    missing = [file.name for file in checkpoint.files if checkpoint.store.path(file.name) is None]
    if missing:
        checkpoint.store.download(missing, quiet)
    check_downloads(((checkpoint.store, file.name) for file in checkpoint.files), quiet)


def _plain(sums: Sums) -> dict[str, Any]:
    return {
        "elements": sums.elements,
        "differing": sums.differing,
        "largest": sums.largest,
        "relative": sums.relative,
        "cosine": sums.cosine,
        "nan": list(sums.nan),
        "inf": list(sums.inf),
    }
