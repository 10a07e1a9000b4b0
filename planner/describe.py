"""A plan as plain data for programs (docs/plan-json.md), and its graph as GraphML or DOT."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from html import escape
from pathlib import Path
from typing import Any

import networkx as nx

from ..errors import ConfigError, OutputError
from .estimate import estimate_seconds
from .graph import Compute, Load, Save
from .plan import Plan
from .sizes import format_count, format_duration, format_size

DESCRIPTION_VERSION = 1


def describe(plan: Plan) -> dict[str, Any]:
    """Everything that `weft plan` shows. Keys are stable; new ones may be added."""
    kinds = {"load": 0, "compute": 0, "save": 0}
    for _, data in plan.graph.nodes(data=True):
        kinds[data["kind"]] += 1
    read, fetched = plan.bytes_read(), downloads(plan)
    layers = {model.checkpoint.store.label: model.layout.main.count for model in plan.models if model.layout.main}
    budget = plan.options.budget
    return {
        "version": DESCRIPTION_VERSION,
        "digest": plan.digest,
        "method": plan.method.name,
        "base_model": plan.base_name,
        "dtype": _dtype(plan),
        "layers": plan.layers,
        "seed": plan.options.seed,
        "models": [
            {
                "model": label,
                "commit": store.commit,
                "layers": layers.get(label, 0),
                "bytes_read": read[label],
                "bytes_to_download": fetched[label],
            }
            for label, store in plan.stores.items()
        ],
        "tensors": len(plan.recipes),
        "parameters": plan.parameters,
        "tasks": kinds,
        "tiled_tensors": len(
            {t.recipe for t in _tasks(plan) if isinstance(t, Compute) and t.tiles > 1 and t.recipe < len(plan.recipes)}
        ),
        "bytes_read": sum(read.values()),
        "bytes_written": plan.bytes_written,
        "bytes_to_download": sum(fetched.values()),
        "shards": [{"name": shard.name, "bytes": shard.size, "tensors": len(shard.recipes)} for shard in plan.shards],
        "side_files": dict(plan.side_files) | {name: len(data) for name, data in plan.written_files.items()},
        "ram": {"budget": budget.ram, "predicted_peak": plan.predicted_ram, "pool": plan.schedule.arena},
        "vram": {"budget": budget.vram, "predicted_peak": plan.predicted_vram},
        "peak_tensor": peak_tensor(plan),
        "device": budget.device,
        "workers": budget.workers,
        "seconds": round(estimate_seconds(plan), 1),
        "kept_tensors": plan.kept,
        "notes": list(plan.notes),
    }


def headline(plan: Plan) -> str:
    """The merge in one line: method, models, layers, parameters, dtype."""
    models = ", ".join(str(model.reference) for model in plan.models)
    size = f"{plan.layers} layers · {format_count(plan.parameters)} parameters · {_dtype(plan)}"
    return f"{plan.method.name} of {models} · {size}"


def plan_rows(plan: Plan) -> Iterator[tuple[str, str]]:
    """What a plan will do and cost, for people: pairs of a label and a text."""
    about = describe(plan)
    tasks, budget = about["tasks"], plan.options.budget
    tiled = f", {about['tiled_tensors']} of them in tiles" if about["tiled_tensors"] else ""
    yield "tensors", f"{about['tensors']}{tiled}; tasks: {tasks['load']} load, {tasks['compute']} compute, {tasks['save']} save"
    for model in about["models"]:
        role = " (base)" if model["model"] == about["base_model"] else ""
        yield "read", f"{format_size(model['bytes_read'])} from {model['model']}{role}"
    shards, beside = len(plan.shards), len(plan.side_files) + len(plan.written_files)
    yield "write", f"{format_size(plan.bytes_written)} in {shards} file{'s' if shards > 1 else ''} and {beside} side files"
    peak = about["peak_tensor"]
    yield "RAM", f"{format_size(plan.predicted_ram)} at most, of {format_size(budget.ram)}; the peak is set by {peak}"
    if budget.on_host:
        yield "VRAM", "none: computed on the CPU"
    else:
        yield "VRAM", f"{format_size(plan.predicted_vram)} at most, of {format_size(budget.vram)}"
    fetch = {name: size for name, size in downloads(plan).items() if size}
    yield "download", ", ".join(f"{format_size(size)} of {name}" for name, size in fetch.items()) or "nothing"
    beside_download = ", beside the download" if fetch else ""
    yield "time", f"about {format_duration(about['seconds'])} with {budget.workers} workers{beside_download}"


def _dtype(plan: Plan) -> Any:
    """The result's element type, as config.json names it."""
    return plan.model_config.get("torch_dtype") or plan.model_config.get("dtype")


def plan_as_html(plan: Plan) -> str:
    """A plan as a table, for notebooks. Names are strangers' texts, and are escaped."""
    rows = "".join(f"<tr><th>{escape(label)}</th><td>{escape(text)}</td></tr>" for label, text in plan_rows(plan))
    notes = "".join(f"<tr><th>note</th><td>{escape(note)}</td></tr>" for note in plan.notes)
    return f"<table><caption>{escape(headline(plan))}</caption>{rows}{notes}</table>"


def downloads(plan: Plan) -> dict[str, int]:
    """Bytes that a run would download, by model and adapter."""
    found = dict.fromkeys(plan.stores, 0)
    for file in plan.downloaded_files():
        if plan.stores[file.model].path(file.name) is None:
            found[file.model] += file.size
    base = plan.base.checkpoint.store
    if base.label in found:
        found[base.label] += sum(size for name, size in plan.side_files.items() if base.path(name) is None)
    return found


def peak_tensor(plan: Plan) -> str | None:
    """The tensor that needs the most memory at once, or "the router" of a mixture."""
    if plan.predicted_ram > plan.division.fixed + plan.schedule.arena:
        return "the router"
    if plan.schedule.peak is None:
        return None
    task: Compute = plan.graph.nodes[plan.schedule.peak]["task"]
    return plan.all_recipes[task.recipe].name


def write_graph(plan: Plan, path: Path) -> None:
    """Write the task graph, in the format that the file's ending names.

    Raises ConfigError for another ending, OutputError where the file cannot be written.
    """
    if path.suffix not in (".graphml", ".dot", ".gv"):
        raise ConfigError(f"--graph {path}: the ending says the format: .graphml or .dot")
    try:
        if path.suffix == ".graphml":
            nx.write_graphml(_labelled(plan), path)
        else:
            path.write_text(_dot(_labelled(plan)), encoding="utf-8")
    except OSError as error:
        raise OutputError(f"--graph {path}: {error.strerror or error}") from None


def _tasks(plan: Plan) -> list[Load | Compute | Save]:
    return [data["task"] for _, data in plan.graph.nodes(data=True)]


def _labelled(plan: Plan) -> nx.DiGraph[str]:
    """The graph with readable names and plain attributes."""
    names: dict[int, str] = {}
    graph: nx.DiGraph[str] = nx.DiGraph()
    for node, data in plan.graph.nodes(data=True):
        label, attributes = _label(plan, data["task"])
        names[node] = f"{data['kind']} {node}: {label}"
        graph.add_node(names[node], kind=data["kind"], bytes=data["bytes"], **attributes)
    graph.add_edges_from((names[a], names[b]) for a, b in plan.graph.edges)
    return graph


def _label(plan: Plan, task: Load | Compute | Save) -> tuple[str, Mapping[str, str | int]]:
    match task:
        case Load():
            tensor = task.tensor
            return f"{tensor.file.model} {tensor.name}", {
                "tensor": tensor.name,
                "file": f"{tensor.file.model}/{tensor.file.name}",
                "offset": task.segments[0].offset if task.segments else 0,
            }
        case Compute():
            recipe = plan.all_recipes[task.recipe]
            what = "map" if task.maps else f"pass {task.passes[0]}"
            method = recipe.method or "copy"
            return f"{method} {what} {recipe.name}", {
                "tensor": recipe.name,
                "method": method,
                "tile": task.tile,
                "tiles": task.tiles,
            }
        case Save():
            name = plan.recipes[task.recipe].name
            return name, {"tensor": name, "shard": plan.shards[plan.places[task.recipe].shard].name}


def _dot(graph: nx.DiGraph[str]) -> str:
    shapes = {"load": "ellipse", "compute": "box", "save": "cylinder"}
    lines = ["digraph weft {", "  rankdir=LR;"]
    lines += [f"  {_quoted(name)} [shape={shapes[data['kind']]}];" for name, data in graph.nodes(data=True)]
    lines += [f"  {_quoted(a)} -> {_quoted(b)};" for a, b in graph.edges]
    return "\n".join([*lines, "}", ""])


def _quoted(text: str) -> str:
    return '"' + re.sub(r'(["\\])', r"\\\1", text) + '"'
