"""weft from Python.

    import weft

    plan = weft.plan("slerp.yaml", ram="4GiB")       # headers only
    summary = weft.run(plan, "merged")               # or: write it

    for name, tensor in weft.merge("slerp.yaml"):    # or: take the tensors as they are done, without writing
        ...

All raise the errors of `weft.errors`, each one line for a person.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from .engine.allowance import available_memory, default_workers
from .engine.events import Observer, Summary, ignore
from .engine.run import run as _run
from .errors import ConfigError
from .planner.config import LoadedConfig, load_config, read_config
from .planner.memory import Budget
from .planner.plan import DEFAULT_SHARD, Options, Plan, make_plan
from .planner.sizes import parse_size

if TYPE_CHECKING:
    import torch

Config = str | Path | Mapping[str, Any]
"""A config file's path, its text (of more than one line), or the same as a map."""


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
) -> Plan:
    """Compile a merge from headers alone; sizes are bytes or texts such as "2GiB", as on the command line."""
    from .engine.device import choose_device, free_device_memory

    chosen = choose_device(device)
    budget = Budget(
        _bytes(ram) if ram is not None else available_memory() // 2,
        _bytes(vram) if vram is not None else free_device_memory(chosen) // 2,
        workers or default_workers(),
        chosen,
    )
    return make_plan(_load(config), Options(budget, _bytes(shard_size), seed, copy_tokenizer))


def run(plan: Plan, out: str | Path, observer: Observer = ignore, *, strict: bool = False) -> Summary | None:
    """Execute a plan into a folder; None where it holds the complete result already. The same call continues after a stop.

    Of another plan's result there, only what changed is computed. `strict` refuses a result with NaN or Inf (CheckpointError).
    """
    return _run(plan, Path(out), observer, strict=strict)


def merge(config: Config | Plan, **options: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield (name, tensor) of every output tensor as it is done, under the budget, without writing.

    `options` are those of `plan`. Beside the budget there are the tensor that is handed out and one that waits. Closing the
    iterator stops the work.
    """
    from .engine.stream import stream

    return stream(config if isinstance(config, Plan) else plan(config, **options))


def _bytes(size: str | int) -> int:
    return parse_size(size) if isinstance(size, str) else size


def _load(config: Config) -> LoadedConfig:
    if isinstance(config, Mapping):
        try:
            return load_config(yaml.safe_dump(dict(config), sort_keys=False))
        except yaml.representer.RepresenterError as error:
            raise ConfigError(f"a config holds maps, lists, texts and numbers only: {error.args[-1]!r} is none of them") from None
    if isinstance(config, str) and "\n" in config:
        return load_config(config)
    return read_config(Path(config))
