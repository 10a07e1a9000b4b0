"""What a merge method declares about itself.

Every method is at most two steps. *Statistics* pass over a tensor and end in a few numbers; a *map* makes each element of the
result from the same element of the inputs and those numbers. Both are functions of plain operations, traced once into programs
(`expression.py`). Statistics are made block by block, a block being a fixed run of elements counted from the tensor's start, and
joined in block order: so a result depends neither on tiles nor on threads.

This module imports no torch and no numba: the planner reads declarations alone, and `weft plan` starts at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Literal, Protocol, TypeAlias

BLOCK = 1 << 17
"""Elements of one block."""

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

    `models` has one mapping an input, in input order (empty for a base that has no parameters of its own); `base` is the position
    of the base among the inputs; `stream` names the tensor's stream of random words.
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
        return math.prod(self.shape)

    @property
    def apart(self) -> list[Mapping[str, float]]:
        """The parameters of the inputs beside the base."""
        return [model for i, model in enumerate(self.models) if i != self.base]

    def each(self, name: str) -> list[float]:
        """A parameter's value for each input beside the base."""
        return [float(model[name]) for model in self.apart]


Found: TypeAlias = Sequence[Any]
"""What the passes that were made so far ended in."""

Numbers: TypeAlias = Callable[[Found], Mapping[str, object]]
"""The numbers that a function takes by name, given what was found: floats, truth values, cuts, lists of these, or `ByColumn`."""


def no_numbers(found: Found) -> Mapping[str, object]:
    """A function that takes none."""
    return {}


@dataclass(frozen=True, slots=True)
class Step:
    """A function of one element, and the numbers that it takes.

    The function names what it wants: `base`, the base's element; `models`, a list of the others' (of all, where the base is one
    of them); and any of `numbers`. It must stand at a module's top level, for its program is traced once for all tensors.
    """

    function: Callable[..., object]
    numbers: Numbers = no_numbers

    def __post_init__(self) -> None:
        if getattr(self.function, "__closure__", None):
            raise TypeError(f"{self.function.__qualname__} uses names of the function around it: give them as numbers")


class Pass(Protocol):
    """One reading of a tensor: partial results of its parts, joined in their order, then finished into what was found."""

    def merge(self, left: Any, right: Any) -> Any:
        """Join two partial results, `left` standing before `right` in the tensor."""

    def finish(self, total: Any, found: Found) -> Any:
        """What the whole tensor's is."""


class Fallback:
    """Base of a pass that only matters where earlier ones did not find what they looked for; else what it finds is None."""

    __slots__ = ()

    def needed(self, found: Found) -> bool:
        """Whether this pass must be made, given what earlier ones found."""
        raise NotImplementedError


def as_found(total: Any, found: Found) -> Any:
    """The totals themselves."""
    return total


@dataclass(frozen=True, slots=True)
class Sum:
    """The sums of a function's results over the tensor, in float64; `finish` turns the list of them into what is found."""

    step: Step
    conclude: Callable[[Any, Found], Any] = as_found

    def merge(self, left: list[float], right: list[float]) -> list[float]:
        """Sum by sum."""
        return [a + b for a, b in zip(left, right, strict=True)]

    def finish(self, total: list[float], found: Found) -> Any:
        """What `conclude` makes of the sums; there are none of an empty tensor."""
        return self.conclude(total or [], found)


@dataclass(frozen=True, slots=True)
class Count(Sum):
    """The same for truth values: of how many elements they hold."""


class Direct(Protocol):
    """A map that no function of one element describes, such as a product of matrices; works on whole blocks.

    `x` are the inputs' elements as float32 arrays, of NumPy or of torch alike; those that the kernel names `whole` are
    `WholeInput`s. `start` is the block's first element. The result is a flat array of the block.
    """

    def __call__(self, x: Sequence[Any], start: int, found: Found) -> Any:
        """The result's block; may be one of `x`, overwritten."""


class WholeInput(Protocol):
    """An input that a block may read anywhere."""

    def __getitem__(self, where: tuple[slice, ...]) -> Any:
        """A part of it as float32, in new memory."""


class DirectPass(Pass, Protocol):
    """A pass in the same manner."""

    def block(self, x: Sequence[Any], start: int) -> Any:
        """The partial result of one block."""


@dataclass(frozen=True, slots=True)
class Kernel:
    """A method bound to one tensor's shape and parameters.

    `base` is the position of the input that is apart from the models, if any. `width`: elements of a row, for functions that look
    at rows. `random`: the tensor's stream of random words. `state_bytes` bounds what a tensor's pass holds while it grows,
    `partial_bytes` that of one part (None: as much), `shared_bytes` tables that are made once for all tensors. `copies` marks a
    kernel whose output is input 0 unchanged, so that bytes may be moved instead of computed. `block` is the elements of a block:
    a method that looks at rows asks for whole ones. `scratch_bytes`: what a direct map holds beside its inputs (None: a few
    blocks). The inputs at the positions `whole`, of `whole_shapes`, are given to a direct map whole.
    """

    map: Step | Direct
    statistics: tuple[Pass, ...] = ()
    base: int | None = None
    width: int = 1
    random: str = ""
    state_bytes: int = 1024
    partial_bytes: int | None = None
    shared_bytes: int = 0
    copies: bool = False
    block: int = BLOCK
    scratch_bytes: int | None = None
    whole: tuple[int, ...] = ()
    whole_shapes: tuple[tuple[int, ...], ...] = ()

    @property
    def passes(self) -> int:
        """Statistics that are always made."""
        return sum(not isinstance(each, Fallback) for each in self.statistics)

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


def base_apart(role: BaseRole, arguments: Arguments) -> int | None:
    """The position of the base where it is no model itself."""
    return arguments.base if role in (BaseRole.REQUIRED, BaseRole.OPTIONAL) else None


def parameter_numbers(parameters: Sequence[Parameter], role: BaseRole, arguments: Arguments) -> dict[str, object]:
    """The arguments by the names of the parameters: one number, or one each model; `lambda`, a word of Python's, as `lambda_`."""
    base = base_apart(role, arguments)
    found: dict[str, object] = {}
    for parameter in parameters:
        if parameter.inert:
            continue
        as_given = bool if parameter.kind == "boolean" else float
        name = f"{parameter.name}_" if parameter.name == "lambda" else parameter.name
        if parameter.scope == "global":
            found[name] = as_given(arguments.shared[parameter.name])
        else:
            # A base model without parameters of its own only lends its config and tokenizer.
            own = [model for i, model in enumerate(arguments.models) if i != base]
            found[name] = [as_given(model.get(parameter.name, 0.0)) for model in own]
    return found


def elementwise(
    *,
    name: str,
    summary: str,
    source: str,
    base: BaseRole,
    models: tuple[int, int | None],
    parameters: tuple[Parameter, ...],
    numbers: Callable[[Arguments], Mapping[str, object]] | None = None,
    version: int = 1,
) -> Callable[[Callable[..., object]], Method]:
    """Makes a method of a function of one element, which takes the parameters by their names.

    `numbers` replaces what the parameters give by what is made of them once a tensor; it may raise MethodError.
    """

    def declare(function: Callable[..., object]) -> Method:
        def kernel(arguments: Arguments) -> Kernel:
            given = parameter_numbers(parameters, base, arguments)
            if numbers is not None:
                given |= numbers(arguments)
            return Kernel(Step(function, lambda found: given), base=base_apart(base, arguments), random=arguments.stream)

        return Method(name, summary, source, base, models, parameters, kernel, version)

    return declare
