"""What a merge method declares about itself.

Every method is at most two steps. *Statistics* stream over a tensor block by block and end in a few numbers; a *map* turns a
block of the inputs and those numbers into a block of the output. A block is a fixed run of elements counted from the tensor's
start, and partial statistics are merged in block order, so a result depends neither on tiles nor on threads.

This module imports no torch: the planner reads declarations alone, and `weft plan` starts at once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from torch import Tensor

BLOCK = 1 << 17
"""Elements of one block: a row of float32 scratch, 512 KiB, is short enough for the caches and long enough for cheap calls."""

PART_BLOCKS = 4
"""Blocks that one worker takes at a time; tiles are whole parts, so no block is ever cut by a tile."""

PART = BLOCK * PART_BLOCKS


def row_block(row: int) -> int:
    """The block of a kernel that looks at whole rows: a power of two of them, as many as fit an ordinary block, at least one.

    With powers of two the parts of different kernels have small common multiples, of which tiles are made.
    """
    return max(row, 1) * _power_of_two(BLOCK // max(row, 1))


def _power_of_two(limit: int) -> int:
    """The largest power of two up to `limit`, at least 1."""
    return 1 << max(limit.bit_length() - 1, 0)


class MethodError(ValueError):
    """Parameters that a method cannot work with, found before any tensor is read."""


class BaseRole(Enum):
    """What `base_model` means to a method."""

    REQUIRED = "required"
    """Task vectors are taken against it; the other inputs are the models."""
    MEMBER = "one of the models"
    """It must be given and is itself one of the models."""
    OPTIONAL = "optional"
    """Where it is given, task vectors are taken against it, and it is none of the models."""
    ORDINARY = "ordinary"
    """A model like any other, also where `models` does not list it: it takes part if it has the parameters that the method asks
    for, and the method takes any number of models."""


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter of a method: `default` None with `required` means that the config must give it."""

    name: str
    kind: Literal["number", "boolean"]
    scope: Literal["model", "global"]
    help: str
    default: float | bool | None = None
    required: bool = False
    low: float | None = None
    high: float | None = None
    inert: str = ""
    """Why the parameter is accepted but changes nothing; empty where it does."""


@dataclass(frozen=True, slots=True)
class Arguments:
    """Everything a kernel is built from: the shape, and each parameter as a plain number.

    `models` has one mapping an input, in input order (empty for a base that has no parameters of its own); `stream` names the
    tensor's stream of random bits.
    """

    shape: tuple[int, ...]
    models: tuple[Mapping[str, float], ...]
    shared: Mapping[str, float] = field(default_factory=dict)
    base: int | None = None
    stream: str = ""

    @property
    def row(self) -> int:
        """Elements of a row, along the last dimension; a vector or a single number is one row."""
        return self.shape[-1] if len(self.shape) > 1 else self.size

    @property
    def size(self) -> int:
        """Number of elements."""
        total = 1
        for side in self.shape:
            total *= side
        return total


class Scratch(Protocol):
    """Reused memory of one worker."""

    def row(self, index: int) -> Tensor:
        """Float32 scratch row `index`, as long as the current block."""

    def double(self, index: int) -> Tensor:
        """The same for float64, 0 <= index < 2; shares no memory with the rows."""


class Statistic(Protocol):
    """One pass over a tensor: partial results of blocks, merged in block order, then finished into numbers."""

    def block(self, x: Sequence[Tensor], start: int, scratch: Scratch, earlier: Sequence[Any]) -> Any:
        """The partial result of the block that begins at element `start`; may overwrite `x`."""

    def merge(self, left: Any, right: Any) -> Any:
        """Join two partial results, `left` standing before `right` in the tensor."""

    def finish(self, total: Any, earlier: Sequence[Any]) -> Any:
        """The statistic of the whole tensor."""


class Sampling:
    """Base of a statistic over a sample: its blocks hold only the elements whose index in the tensor is a multiple of `stride`.

    A statistic is a `Sampling` or a `Fallback` where its class derives from it, and never by the names of its attributes.
    """

    __slots__ = ()

    stride: int
    """At least 1."""


class Fallback(ABC):
    """Base of a statistic that only matters where earlier ones did not find what they looked for; else it is None."""

    __slots__ = ()

    @abstractmethod
    def needed(self, earlier: Sequence[Any]) -> bool:
        """Whether this pass must be made, given the statistics before it."""


class Map(Protocol):
    """The second step: a block of each input, as float32, to a block of the output."""

    def __call__(self, x: Sequence[Tensor], start: int, scratch: Scratch, statistics: Sequence[Any]) -> Tensor:
        """Return the row that holds the result: one of `x` (which may be overwritten) or of the scratch rows."""


@dataclass(frozen=True, slots=True)
class Kernel:
    """A method bound to one tensor's shape and parameters.

    `rows` counts the float32 scratch rows its map and statistics use beyond one an input; `state_bytes` bounds a tensor's
    statistic while it grows, `partial_bytes` that of one part (None: as much), `shared_bytes` tables that are made once for all
    tensors. `copies` marks a kernel whose output is input 0
    unchanged, so that bytes may be moved instead of computed. `block` is the elements of its blocks: a method that looks at whole
    rows of the tensor asks for whole rows. The inputs at the positions `whole` are given to every block whole, as flat tensors in
    their own dtype.
    """

    map: Map
    statistics: tuple[Statistic, ...] = ()
    rows: int = 0
    state_bytes: int = 1024
    partial_bytes: int | None = None
    shared_bytes: int = 0
    copies: bool = False
    block: int = BLOCK
    whole: tuple[int, ...] = ()

    @property
    def passes(self) -> int:
        """Statistics that are always made."""
        return sum(not isinstance(statistic, Fallback) for statistic in self.statistics)

    @property
    def part(self) -> int:
        """Elements that one worker takes at a time: whole blocks."""
        return self.block * _power_of_two(PART // self.block)


@dataclass(frozen=True, slots=True)
class Method:
    """A merge method as the planner sees it.

    `models` bounds the number of inputs beside a required base (None: no upper bound). `version` enters every result's digest:
    raise it when the numbers change. `random` methods draw from the arguments' stream, and so depend on the seed.
    """

    name: str
    summary: str
    source: str
    base: BaseRole
    models: tuple[int, int | None]
    parameters: tuple[Parameter, ...]
    kernel: Callable[[Arguments], Kernel]
    version: int = 1
    random: bool = False

    def parameter(self, name: str) -> Parameter | None:
        """The declaration of parameter `name`, or None."""
        return next((p for p in self.parameters if p.name == name), None)
