"""Plans saved to a file: what they were made from, so that a later run makes the same plan and can tell if an input changed."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ConfigError, InputChanged, OutputError
from .files import open_file
from .json_text import loads
from .plan import Options, Plan

SAVED_VERSION = 2
KIND = "weft plan"
MOST = 256 << 20
"""Bytes that are read of a saved plan."""

_NUMBERS: Mapping[str, tuple[int, int]] = {
    "ram": (1, 1 << 60), "vram": (0, 1 << 60), "workers": (1, 64), "shard_size": (1, 1 << 60), "seed": (-(1 << 127), 1 << 127),
}  # fmt: skip
SETTINGS = (*_NUMBERS, "device", "copy_tokenizer")


@dataclass(frozen=True, slots=True)
class SavedPlan:
    """A saved plan's content. By model and file name, `inputs` are the identities of all weight files, and `states` the fields of
    the `FileState` of every file of this machine that was read or will be copied.
    """

    source: str
    config: str
    settings: Mapping[str, Any]
    commits: Mapping[str, str]
    inputs: Mapping[str, str]
    states: Mapping[str, Sequence[int]]
    digest: str


def save_plan(plan: Plan, path: Path) -> None:
    """Write a plan for `weft run`. Raises OutputError where the file cannot be written."""
    options: Options = plan.options
    value = {
        "kind": KIND,
        "version": SAVED_VERSION,
        "digest": plan.digest,
        "source": plan.config.document.source,
        "config": plan.config.text,
        "settings": {
            "ram": options.budget.ram,
            "vram": options.budget.vram,
            "workers": options.budget.workers,
            "device": options.budget.device,
            "shard_size": options.shard_size,
            "seed": options.seed,
            "copy_tokenizer": options.copy_tokenizer,
            "lenient": plan.config.lenient,
        },
        "commits": {label: store.commit for label, store in plan.stores.items() if store.commit},
        "inputs": {f"{file.model}/{file.name}": file.identity for file in plan.files()},
        "states": _states(plan),
    }
    try:
        path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise OutputError(f"--save {path}: {error.strerror or error}") from None


def _states(plan: Plan) -> dict[str, list[int]]:
    """The states of the files of this machine that a plan was made from or has yet to copy."""
    copied = plan.base.checkpoint.store
    found = {f"{copied.label}/{name}": copied.state(name) for name in plan.side_files if copied.commit is None}
    for store in plan.stores.values():
        found |= {f"{store.label}/{name}": state for name, state in store.used().items()}
    return {name: [state.size, state.modified, state.changed] for name, state in found.items()}


def load_saved_plan(path: Path) -> SavedPlan | None:
    """The saved plan in a file, or None where the file is something else. Raises ConfigError for another version's."""
    try:
        with open_file(path) as file:
            if file.read(1) != b"{":
                return None
            value = loads(b"{" + file.read(MOST))
    except (OSError, ValueError):
        return None
    if not isinstance(value, dict) or value.get("kind") != KIND:
        return None
    if value.get("version") != SAVED_VERSION:
        raise ConfigError(f"{path}: a plan of another version of weft: make it again with `weft plan --save`")
    parts: list[Any] = [value.get(key) for key in ("source", "config", "settings", "commits", "inputs", "states", "digest")]
    source, config, settings, commits, inputs, states, digest = parts
    if (
        not all(isinstance(text, str) for text in (source, config, digest))
        or not all(isinstance(part, dict) for part in (settings, commits, inputs, states))
        or not all(is_setting(key, settings.get(key)) for key in (*SETTINGS, "lenient"))
        or not all(isinstance(text, str) for text in (*commits.values(), *inputs.values()))
    ):
        raise ConfigError(f"{path}: a damaged plan: make it again with `weft plan --save`")
    return SavedPlan(source, config, settings, commits, inputs, states, digest)


def is_setting(name: str, value: object) -> bool:
    """Whether that is a value which an option of this name can have: plans and manifests may come from anywhere."""
    if name == "device":
        return isinstance(value, str) and re.fullmatch(r"cpu|cuda(:\d{1,3})?", value) is not None
    if name in ("copy_tokenizer", "lenient"):
        return isinstance(value, bool)
    low, high = _NUMBERS[name]
    return type(value) is int and low <= value <= high


def check_unchanged(saved: SavedPlan, plan: Plan, path: Path) -> None:
    """Raise CheckpointError, naming the file, where `plan`, made anew from `saved`, has other inputs than it had."""
    identities = {f"{file.model}/{file.name}": file.identity for file in plan.files()}
    for known, now in ((saved.inputs, identities), (saved.states, _states(plan))):
        for name, found in now.items():
            if known.get(name) != found:
                raise InputChanged(f"{name} changed since {path} was written: make the plan again with `weft plan --save`")
    if saved.digest != plan.digest:
        raise ConfigError(f"{path}: this weft, or this GPU, plans it differently: make the plan again with `weft plan --save`")
