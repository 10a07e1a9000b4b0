"""The manifest of a finished result, weft.json: what it was made of, and the checksums of what was written."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import xxhash

from .. import __version__
from ..planner.files import read_file
from ..planner.ingredients import Ingredients, Tables, decode, ingredients_of
from ..planner.json_text import loads
from ..planner.plan import Plan
from ..planner.saved import is_setting
from ..planner.store import inner_path
from .events import Summary
from .journal import Facts, Record

MANIFEST = "weft.json"
MANIFEST_VERSION = 2
MOST = 1 << 30
"""Bytes that are read of a manifest, and values in it: more than a million tensors of fifty models have."""

_SETTINGS = ("seed", "device", "shard_size", "copy_tokenizer")


@dataclass(frozen=True, slots=True)
class FinishedShard:
    """A shard as it was written: its bytes, and the xxh3-128 of its header."""

    nbytes: int
    header: str


@dataclass(frozen=True, slots=True)
class FinishedTensor:
    """A tensor as it was written. `base` is the input that its facts compare it with; `entry` says what made it."""

    digest: str
    checksum: str
    facts: Facts
    base: int | None
    entry: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Manifest:
    """What weft.json says. `settings` are what was chosen beside the config, `commits` the Hub models' revisions."""

    plan: str
    config: str
    settings: Mapping[str, Any]
    commits: Mapping[str, str]
    shards: Mapping[str, FinishedShard]
    files: Mapping[str, str]
    totals: Mapping[str, Any]
    tables: Mapping[str, Any]
    tensors: Mapping[str, FinishedTensor]

    def ingredients(self, name: str) -> Ingredients | None:
        """What made a tensor; None where there is no such tensor or the manifest does not say."""
        if name not in self.tensors:
            return None
        try:
            return decode(self.tables, self.tensors[name].entry)
        except (KeyError, IndexError, TypeError, ValueError, AttributeError, RecursionError):
            return None


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest in a folder, or None where there is none of this version that could be weft's."""
    try:
        return _manifest(loads(read_file(folder / MANIFEST, MOST), values=MOST))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, MemoryError):
        return None


def _manifest(value: Any) -> Manifest | None:
    if value["format"] != MANIFEST_VERSION or not isinstance(value["plan"], str) or not isinstance(value["config"], str):
        return None
    shards = {
        plain_name(name): FinishedShard(_count(shard["bytes"]), str(shard["header"])) for name, shard in value["shards"].items()
    }
    return Manifest(
        plan=value["plan"],
        config=value["config"],
        settings={name: _setting(name, value[name]) for name in _SETTINGS},
        commits={str(item["model"]): str(item["commit"]) for item in value["inputs"] if item["commit"]},
        shards=shards,
        files={file_name(name): str(checksum) for name, checksum in value["files"].items()},
        totals={str(name): _count(total) for name, total in value["totals"].items()},
        tables=dict(value["recipes"]),
        tensors={str(name): _tensor(tensor) for name, tensor in value["tensors"].items()},
    )


def _tensor(value: Any) -> FinishedTensor:
    facts = Facts(*(_count(number) for number in value.get("facts", ())))
    base = value.get("base")
    return FinishedTensor(str(value["digest"]), str(value["xxh3_128"]), facts, None if base is None else _count(base), value)


def _count(value: Any) -> int:
    """A number of things or bytes, as no file can hold more. Raises ValueError for anything else."""
    if type(value) is not int or not 0 <= value < 1 << 63:
        raise ValueError(value)
    return value


def _setting(name: str, value: Any) -> Any:
    if not is_setting(name, value):
        raise ValueError(value)
    return value


def plain_name(name: str) -> str:
    """A file's name that leads nowhere else. Raises ValueError: the manifest of a download is a stranger's."""
    if name in ("", ".", "..") or set(name) & set("/\\\0:"):
        raise ValueError(name)
    return name


def file_name(name: str) -> str:
    """The name of a file beside the shards, which may stand in a folder. Raises ValueError as `plain_name` does."""
    if "/" in name and inner_path(name):
        return name
    return plain_name(name)


def checksum(data: bytes) -> str:
    """The xxh3-128 of some bytes, as the manifest has it."""
    return xxhash.xxh3_128_hexdigest(data)


def checksum_of(pieces: Iterable[bytes]) -> str:
    """The same of bytes that come one piece after the other."""
    seen = xxhash.xxh3_128()
    for piece in pieces:
        seen.update(piece)
    return seen.hexdigest()


def manifest(plan: Plan, records: Mapping[str, Record], summary: Summary, files: Mapping[str, str]) -> bytes:
    """The manifest's text; `files` are the checksums of the small files by name."""
    tables = Tables()
    tensors: dict[str, dict[str, Any]] = {}
    for recipe in plan.recipes:
        record = records[recipe.name]
        tensors[recipe.name] = {"digest": recipe.digest, "xxh3_128": record.checksum}
        if record.facts != Facts():
            facts = record.facts
            tensors[recipe.name]["facts"] = [facts.compared, facts.differing, facts.nan, facts.inf]
        if recipe.base_input is not None:
            tensors[recipe.name]["base"] = recipe.base_input
        tensors[recipe.name] |= tables.entry(ingredients_of(recipe))
    value = {
        "format": MANIFEST_VERSION,
        "weft": __version__,
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in ("torch", "safetensors")}},
        "plan": plan.digest,
        "config": plan.config.text,
        "method": plan.method.name,
        "method_version": plan.method.version,
        "seed": plan.options.seed,
        "device": plan.options.budget.device,
        "shard_size": plan.options.shard_size,
        "copy_tokenizer": plan.options.copy_tokenizer,
        "inputs": [
            {
                "model": label,
                "commit": store.commit,
                "files": {f.name: {"size": f.size, "identity": f.identity} for f in plan.files() if f.model == label},
            }
            for label, store in plan.stores.items()
        ],
        "shards": {shard.name: {"bytes": shard.size, "header": checksum(shard.header)} for shard in plan.shards},
        "files": dict(files),
        "totals": {
            "tensors": summary.tensors,
            "parameters": summary.parameters,
            "bytes": summary.bytes_written,
            "differing_tensors": summary.differing_tensors,
            "differing_elements": summary.differing_elements,
            "compared_elements": summary.compared_elements,
            "nan": summary.nan,
            "inf": summary.inf,
        },
        "notes": list(plan.notes),
        "recipes": tables.plain(),
        "tensors": tensors,
    }
    return _text(value).encode()


def _text(value: Mapping[str, Any]) -> str:
    """JSON for people: an item of a long table takes one line."""
    parts = []
    for key, item in value.items():
        if key == "tensors":
            lines = [f"    {_line(name)}: {_line(tensor)}" for name, tensor in item.items()]
            parts.append(f"  {_line(key)}: {{\n" + ",\n".join(lines) + "\n  }")
        elif key == "recipes":
            tables = []
            for name, rows in item.items():
                text = ",\n".join(f"      {_line(row)}" for row in rows)
                tables.append(f"    {_line(name)}: [\n{text}\n    ]" if rows else f"    {_line(name)}: []")
            parts.append(f"  {_line(key)}: {{\n" + ",\n".join(tables) + "\n  }")
        else:
            text = json.dumps(item, indent=2, ensure_ascii=False).replace("\n", "\n  ")
            parts.append(f"  {_line(key)}: {text}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def _line(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"
