"""weft from Python.

    import weft

    plan = weft.plan("slerp.yaml", ram="4GiB")       # headers only
    summary = weft.run(plan, "merged")               # or: write it, of a plan or of the config itself

    for name, tensor in weft.merge("slerp.yaml"):    # or: take the tensors as they are done, without writing
        ...

All raise the errors of `weft.errors`, each one line for a person.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from .engine.allowance import available_memory, default_workers
from .engine.events import Observer, Summary, both, ignore
from .engine.run import run as _run
from .engine.status import Status
from .engine.status import status as _status
from .engine.verify import Verdict
from .engine.verify import verify as _verify
from .errors import ConfigError
from .planner.config import LoadedConfig, load_config, read_config
from .planner.explain import Explanation, find_tensor
from .planner.explain import explain as _explain
from .planner.inspection import Inspection, inspect_model
from .planner.memory import Budget
from .planner.plan import DEFAULT_SHARD, Options, Plan, make_plan
from .planner.reference import parse_reference
from .planner.sizes import parse_size

if TYPE_CHECKING:
    import torch

    from .cli.report import Report
    from .engine.difference import Comparison

Config = str | Path | Mapping[str, Any]
"""A config file's path, its text (of more than one line), or the same as a map."""

MAX_WORKERS = 64


def plan(
    config: Config,
    *,
    ram: str | int | None = None,
    vram: str | int | None = None,
    device: str = "cpu",
    workers: int | None = None,
    shard_size: str | int = DEFAULT_SHARD,
    seed: int = 0,
    copy_tokenizer: bool = True,
    lenient: bool = False,
) -> Plan:
    """Compile a merge from headers alone; sizes are bytes or texts such as "2GiB", as on the command line.

    `lenient` makes notes (`Plan.notes`) of what other tools read over, such as unknown keys, which is an error otherwise.

    Raises ConfigError, also for an option that makes no sense, CheckpointError for what cannot be merged, and BudgetError.
    """
    from .engine.device import choose_device, free_device_memory, processor_name

    _check_whole("workers", workers, 1, MAX_WORKERS)
    _check_whole("seed", seed, None, None)
    chosen = choose_device(device)
    budget = Budget(
        _bytes("ram", ram) if ram is not None else available_memory() // 2,
        _bytes("vram", vram) if vram is not None else free_device_memory(chosen) // 2,
        workers or default_workers(),
        chosen,
        processor_name(chosen),
    )
    return make_plan(_load(config, lenient), Options(budget, _bytes("shard_size", shard_size), seed, copy_tokenizer))


def run(
    config: Config | Plan,
    out: str | Path,
    observer: Observer = ignore,
    *,
    strict: bool = False,
    progress: bool | None = None,
    ram: str | int | None = None,
    vram: str | int | None = None,
    device: str = "cpu",
    workers: int | None = None,
    shard_size: str | int = DEFAULT_SHARD,
    seed: int = 0,
    copy_tokenizer: bool = True,
    lenient: bool = False,
) -> Summary:
    """Write a merge into a folder: of a config, or of a plan, which has its options already.

    The same call continues after a stop. Of another result in the folder, only what changed is computed; where the folder holds
    the complete result, nothing is done and the summary says so (`already_complete`). `strict` refuses a result with NaN or Inf
    (CheckpointError). `progress` shows how far it is; by default it does in a notebook. Raises what `plan` raises, and
    OutputError, DiskError and Interrupted.
    """
    options = _Given(ram, vram, device, workers, shard_size, seed, copy_tokenizer, lenient)
    made = _plan_of(config, options)
    from .cli.progress import in_notebook
    from .cli.progress import progress as shown

    with shown(quiet=not (in_notebook() if progress is None else progress), verbose=False) as display:
        return _run(made, Path(out), both(display, observer), strict=strict)


def merge(
    config: Config | Plan,
    *,
    ram: str | int | None = None,
    vram: str | int | None = None,
    device: str = "cpu",
    workers: int | None = None,
    shard_size: str | int = DEFAULT_SHARD,
    seed: int = 0,
    copy_tokenizer: bool = True,
    lenient: bool = False,
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield (name, tensor) of every output tensor as it is done, under the budget, without writing.

    Options are those of `plan`. Beside the budget there are the tensor that is handed out and one that waits. Closing the
    iterator stops the work.
    """
    from .engine.stream import stream

    return stream(_plan_of(config, _Given(ram, vram, device, workers, shard_size, seed, copy_tokenizer, lenient)))


def explain(config: Config | Plan, tensor: str, *, lenient: bool = False) -> Explanation:
    """Where one tensor of a merge comes from: `tensor` is its name, a part of it, or a pattern with `*` and `?`.

    Raises what `plan` raises, and ConfigError where no tensor, or more than one, has such a name.
    """
    made = _plan_of(config, _Given(lenient=lenient))
    return _explain(made, find_tensor(made, tensor))


def report(config: Config | Plan, out: str | Path | None = None, *, lenient: bool = False) -> Report:
    """The plan as one page to look at: shown by a notebook, written by `report(...).save("plan.html")`.

    With the output folder `out` it says what is there already. Raises what `plan` raises.
    """
    from .cli.report import Report
    from .engine.prospect import prospect
    from .planner.report_data import report_data

    made = _plan_of(config, _Given(lenient=lenient))
    found = prospect(made, Path(out) if out is not None else None)
    return Report(report_data(made, state=found.state, done=found.done))


def inspect(model: str) -> Inspection:
    """What a model is, from headers and small files: a folder, a Hub name, or MODEL+ADAPTER.

    Raises ConfigError for what names no model, and CheckpointError for one that cannot be read.
    """
    try:
        return inspect_model(parse_reference(model))
    except ValueError as error:
        raise ConfigError(str(error)) from None


def diff(first: str, second: str, *, ram: str | int = "256MiB") -> Comparison:
    """How two checkpoints differ, tensor by tensor. Reads all weights, downloading those of Hub models.

    Raises ConfigError, CheckpointError, DiskError, and BudgetError.
    """
    from .engine.difference import compare, fetch, open_stored

    a, b = open_stored(first), open_stored(second)
    for checkpoint in (a, b):
        fetch(checkpoint, quiet=True)
    return compare(a, b, _bytes("ram", ram))


def verify(out: str | Path) -> Verdict:
    """Compare every byte of a finished result with its checksums. Raises OutputError where there is no finished result."""
    return _verify(Path(out))


def status(out: str | Path) -> Status:
    """How far a running or interrupted merge is. Raises OutputError where weft wrote nothing."""
    return _status(Path(out))


@dataclass(frozen=True, slots=True)
class _Given:
    """The options of `plan`, as they were given to another function. The defaults are those of `plan`."""

    ram: str | int | None = None
    vram: str | int | None = None
    device: str = "cpu"
    workers: int | None = None
    shard_size: str | int = DEFAULT_SHARD
    seed: int = 0
    copy_tokenizer: bool = True
    lenient: bool = False


def _plan_of(config: Config | Plan, given: _Given) -> Plan:
    """The plan of a config. Raises ConfigError for options beside a plan, which was made with its own."""
    if not isinstance(config, Plan):
        return plan(config, **asdict(given))
    for field in fields(given):
        if getattr(given, field.name) != field.default:
            raise ConfigError(f"{field.name}: this plan has its options already: give {field.name} to weft.plan")
    return config


def _check_whole(name: str, value: object, low: int | None, high: int | None) -> None:
    if value is None:
        return
    if not isinstance(value, int) or isinstance(value, bool):
        raise ConfigError(f"{name}: expected a whole number, not {value!r}")
    if low is not None and high is not None and not low <= value <= high:
        raise ConfigError(f"{name}: expected {low} to {high}, not {value}")


def _bytes(name: str, size: str | int) -> int:
    if isinstance(size, str):
        return parse_size(size)
    _check_whole(name, size, None, None)
    if size <= 0:
        raise ConfigError(f"{name}: expected a size above zero, not {size}")
    return size


def _load(config: Config, lenient: bool) -> LoadedConfig:
    if isinstance(config, Mapping):
        try:
            return load_config(yaml.safe_dump(dict(config), sort_keys=False), lenient=lenient)
        except yaml.representer.RepresenterError as error:
            raise ConfigError(f"a config holds maps, lists, texts and numbers only, not {error.args[-1]!r}") from None
    if isinstance(config, str) and "\n" in config:
        return load_config(config, lenient=lenient)
    return read_config(Path(config), lenient=lenient)
