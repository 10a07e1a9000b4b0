"""What happens during a run, told to observers. The engine prints nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from ..planner.plan import Plan


@dataclass(frozen=True, slots=True)
class RunStarted:
    """The plan is about to be executed; `reused` tensors are on disk already, of `reused_bytes`."""

    plan: Plan
    reused: int
    reused_bytes: int


@dataclass(frozen=True, slots=True)
class PhaseStarted:
    """The run does `what` now, in words for people: what comes before its tasks, or behind them."""

    what: str


@dataclass(frozen=True, slots=True)
class TaskStarted:
    """A task was given to the threads: "load", "compute", "save" or "copy", known by `kind` and `task`, for a tensor."""

    task: int
    kind: str
    tensor: str
    nbytes: int


@dataclass(frozen=True, slots=True)
class TaskEnded:
    """A task is done."""

    task: int
    kind: str


@dataclass(frozen=True, slots=True)
class BytesRead:
    """A load is done."""

    nbytes: int


@dataclass(frozen=True, slots=True)
class TensorWritten:
    """All tiles of a tensor are written, not yet durable."""

    name: str
    nbytes: int


@dataclass(frozen=True, slots=True)
class TensorDurable:
    """A tensor is on the disk and in the journal."""

    name: str


@dataclass(frozen=True, slots=True)
class MemoryHeld:
    """Bytes of the pool that steps in flight hold now."""

    nbytes: int


@dataclass(frozen=True, slots=True)
class Routing:
    """For each prompt of a mixture the weight that each expert has for its tokens, the mean over tokens and layers.

    `owners` are the experts that a prompt is a positive one of.
    """

    prompts: tuple[str, ...]
    owners: tuple[tuple[int, ...], ...]
    shares: tuple[tuple[float, ...], ...]


@dataclass(frozen=True, slots=True)
class RunFinished:
    """The result is complete."""

    summary: Summary


@dataclass(frozen=True, slots=True)
class Summary:
    """What a run did, and what it checked before it said so. Sizes are bytes.

    `already_complete`: the folder held the whole result before, so nothing was done, and nothing was measured.
    """

    tensors: int
    parameters: int
    bytes_written: int
    bytes_read: int
    computed: int
    reused: int
    seconds: float
    differing_tensors: int
    differing_elements: int
    compared_elements: int
    foreign_tensors: int
    nan: int
    inf: int
    nonfinite_tensors: Sequence[str]
    predicted_ram: int
    measured_ram: int
    predicted_vram: int
    measured_vram: int
    warnings: Sequence[str] = ()
    routings: Sequence[Routing] = ()
    already_complete: bool = False
    kept_tensors: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain data for programs. Keys are stable; new ones may be added."""
        return asdict(self)


Event = PhaseStarted | RunStarted | TaskStarted | TaskEnded | BytesRead | TensorWritten | TensorDurable | MemoryHeld | RunFinished


class Observer(Protocol):
    """Called for every event, from the thread that runs the plan."""

    def __call__(self, event: Event, /) -> None:
        """Take note; must not block."""


def both(first: Observer, second: Observer) -> Observer:
    """An observer that hands every event on to two."""

    def tell(event: Event) -> None:
        first(event)
        second(event)

    return tell


def ignore(event: Event) -> None:
    """The observer that watches nothing."""
