"""What stands beside the weights in a finished folder: index, config, side files, model card, manifest."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from .. import __version__
from ..errors import OutputError
from ..planner.dtypes import ITEM_SIZES
from ..planner.plan import Plan
from ..planner.sources import Model
from .events import Summary
from .folder import MANIFEST, OutputFolder
from .journal import Record
from .shard_writer import PARTIAL

MANIFEST_VERSION = 1


def check_shards(plan: Plan, folder: OutputFolder) -> None:
    """Read the shards back with the safetensors library, which did not write them: names, shapes, dtypes, sizes.

    Raises OutputError for the first thing that is not as planned.
    """
    for shard in plan.shards:
        path = folder.root / (shard.name + PARTIAL)
        if path.stat().st_size != shard.size:
            raise OutputError(f"{path}: {path.stat().st_size} bytes, planned {shard.size}: something else wrote to it")
        try:
            with safe_open(path, framework="numpy") as file:
                names = list(file.keys())
                found = {name: (file.get_slice(name).get_dtype(), tuple(file.get_slice(name).get_shape())) for name in names}
        except SafetensorError as error:
            raise OutputError(f"{path}: not readable as safetensors: {error}") from None
        wanted = {plan.recipes[n].name: (plan.recipes[n].dtype, plan.recipes[n].shape) for n in shard.recipes}
        if found != wanted:
            name = next(iter(sorted(set(found) ^ set(wanted)) or [n for n in wanted if found[n] != wanted[n]]))
            raise OutputError(f"{path}: tensor '{name}' is {found.get(name)}, planned {wanted.get(name)}")


def write_companions(plan: Plan, folder: OutputFolder, records: Mapping[str, Record], summary: Summary) -> None:
    """Everything but the shards, the manifest last: where it exists, the result is complete."""
    if len(plan.shards) > 1:
        folder.write("model.safetensors.index.json", _json(_index(plan)))
    folder.write("config.json", _json(plan.model_config))
    for name in plan.side_files:
        folder.write(name, plan.base.checkpoint.store.read(name))
    for name, data in plan.written_files.items():
        folder.write(name, data)
    folder.write("README.md", model_card(plan).encode())
    folder.write(MANIFEST, _json(_manifest(plan, records, summary)))


def _json(value: object) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


def _index(plan: Plan) -> dict[str, Any]:
    weight_map = {plan.recipes[n].name: shard.name for shard in plan.shards for n in shard.recipes}
    total = sum(ITEM_SIZES[recipe.dtype] * recipe.arguments.size for recipe in plan.recipes)
    return {
        "metadata": {"total_size": total, "total_parameters": plan.parameters},
        "weight_map": dict(sorted(weight_map.items())),
    }


def _manifest(plan: Plan, records: Mapping[str, Record], summary: Summary) -> dict[str, Any]:
    return {
        "format": MANIFEST_VERSION,
        "weft": __version__,
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in ("torch", "safetensors")}},
        "plan": plan.digest,
        "config": plan.config.text,
        "method": plan.method.name,
        "method_version": plan.method.version,
        "seed": plan.options.seed,
        "device": plan.options.budget.device,
        "inputs": [
            {
                "model": label,
                "commit": store.commit,
                "files": {f.name: {"size": f.size, "identity": f.identity} for f in plan.files() if f.model == label},
            }
            for label, store in plan.stores.items()
        ],
        "shards": {shard.name: shard.size for shard in plan.shards},
        "totals": {
            "tensors": summary.tensors,
            "parameters": summary.parameters,
            "bytes": summary.bytes_written,
            "differing_tensors": summary.differing_tensors,
            "nan": summary.nan,
            "inf": summary.inf,
        },
        "notes": list(plan.notes),
        "tensors": {recipe.name: {"digest": recipe.digest, "xxh3_128": records[recipe.name].checksum} for recipe in plan.recipes},
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"


def model_card(plan: Plan) -> str:
    """The README.md of the result: which models, which method, the config itself."""
    hub = [str(model.reference.model.path) for model in plan.models if model.checkpoint.store.commit]
    front = ["---", *_yaml_list("base_model", hub), "library_name: transformers", "tags:", "- merge", "- weft", "---"]
    names = "\n".join(f"- {_link(model)}" for model in plan.models)
    # A fence longer than any run of backquotes in the config cannot be closed by it.
    fence = "`" * max(3, 1 + max((len(run) for run in plan.config.text.split() if set(run) == {"`"}), default=0))
    title = plan.config.merge.name or "Merged model"
    return (
        "\n".join(front)
        + f"\n# {title}\n\nMade with weft {__version__} by the method **{plan.method.name}**: {plan.method.summary}\n\n"
        + f"## Models\n\n{names}\n\nBase model: {_link(plan.base)}\n\n"
        + f"## Config\n\n{fence}yaml\n{plan.config.text.rstrip()}\n{fence}\n"
    )


def _yaml_list(key: str, items: Sequence[str]) -> list[str]:
    return [f"{key}:", *(f"- {item}" for item in items)] if items else []


def _link(model: Model) -> str:
    """A model's name; of a folder only the last part, since the path before it means nothing to a reader."""
    store, adapter = model.checkpoint.store, model.reference.adapter
    name = store.label.split("@")[0] if store.commit else store.label
    link = f"[{name}](https://huggingface.co/{name})" if store.commit else Path(name).name
    return f"{link} with the adapter {Path(adapter.path).name}" if adapter else link
