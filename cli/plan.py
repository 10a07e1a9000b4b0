"""`weft plan`"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from . import options as o
from .terminal import say

if TYPE_CHECKING:
    from ..engine.reuse import Outlook
    from ..planner.plan import Plan


def plan(
    config: o.Config,
    out: Annotated[Path | None, typer.Argument(help="The folder that `weft run` would write.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the plan for programs (docs/plan-json.md).")] = False,
    graph: Annotated[Path | None, typer.Option(help="Write the task graph: a .graphml or .dot file.", show_default=False)] = None,
    save: Annotated[
        Path | None, typer.Option(help="Write the plan to a file for `weft run FILE OUT`.", show_default=False)
    ] = None,
    report: Annotated[
        Path | None, typer.Option(help="Write the plan as a page to look at: an .html file.", show_default=False)
    ] = None,
    ram: o.Ram = None,
    vram: o.Vram = None,
    device: o.Device = None,
    workers: o.Workers = None,
    out_shard_size: o.ShardSize = None,
    seed: o.Seed = None,
    copy_tokenizer: o.CopyTokenizer = None,
    lenient: o.Lenient = None,
    values: o.Values = None,
    verbose: o.Verbose = False,
    quiet: o.Quiet = False,
    cuda: o.Cuda = False,
    allow_crimes: o.AllowCrimes = False,
    lazy_unpickle: o.LazyUnpickle = False,
    trust_remote_code: o.TrustRemoteCode = False,
    low_cpu_memory: o.LowCpuMemory = False,
    read_to_gpu: o.ReadToGpu = False,
    clone_tensors: o.CloneTensors = False,
    multi_gpu: o.MultiGpu = False,
    async_write: o.AsyncWrite = False,
    write_model_card: o.WriteModelCard = True,
    safe_serialization: o.SafeSerialization = True,
    lora_merge_cache: o.LoraMergeCache = None,
    transformers_cache: o.TransformersCache = None,
    lora_merge_dtype: o.LoraMergeDtype = None,
    write_threads: o.WriteThreads = None,
    gpu_rich: o.GpuRich = False,
    truncate_embeddings: o.TruncateEmbeddings = False,
) -> None:
    """Compile a merge from headers alone and show what it will do and cost. Reads no tensor data, downloads no weights."""
    if not quiet:
        o.explain_pasted(locals())
    if report is not None:
        from .report import check_place

        check_place(report, out)
    chosen = "cuda" if (cuda or gpu_rich) and device is None else device
    wishes = o.Wishes(ram, vram, chosen, workers, out_shard_size, seed, copy_tokenizer, lenient, values or ())
    compiled = o.compile_plan(config, wishes, out)
    from ..planner.describe import write_graph
    from ..planner.saved import save_plan

    if graph is not None:
        write_graph(compiled, graph)
    if save is not None:
        save_plan(compiled, save)
    show(compiled, out, report, json=json, verbose=verbose, quiet=quiet)


def show(compiled: Plan, out: Path | None, report: Path | None, *, json: bool, verbose: bool, quiet: bool) -> None:
    """Print a plan, for people or for programs, and draw its report where one is wanted."""
    from ..planner.describe import describe

    if report is not None:
        _report(compiled, out, report)
    if json:
        import json as serializer

        print(serializer.dumps(describe(compiled) | _there(compiled, out), indent=2))
    elif not quiet:
        from .render import show_plan

        show_plan(compiled, out, verbose=verbose)
        if report is not None:
            say(f"drawn in {report}")


def _report(compiled: Plan, out: Path | None, path: Path) -> None:
    from ..engine.prospect import prospect
    from ..planner.report_data import report_data
    from .report import write_report

    found = prospect(compiled, out)
    write_report(report_data(compiled, state=found.state, done=found.done), path)


def _there(plan: Plan, out: Path | None) -> dict[str, object]:
    """What the output folder has to do with it: space, what stands there, what of that is of use."""
    from ..engine.reuse import outlook, state_of
    from ..engine.system import free_disk

    found = outlook(plan, out) if out else None
    return {
        "disk": {"needed": disk_needed(plan, found), "free": free_disk(out or Path.cwd())},
        "out": state_of(plan, out) if out else None,
        "update": describe_update(found, len(plan.recipes)) if found else None,
    }


def disk_needed(plan: Plan, found: Outlook | None) -> int:
    """Bytes of the files that a run writes; shards that stay as they are need none."""
    kept = set(found.kept_shards) if found else set()
    return sum(shard.size for shard in plan.shards if shard.name not in kept) + sum(plan.side_files.values())


def describe_update(found: Outlook, tensors: int) -> dict[str, object]:
    """What a run would reuse and compute, and why, for programs."""
    from ..planner.reasons import summarise

    return {
        "reuse": found.reused,
        "compute": tensors - found.reused,
        "copy_bytes": found.copied_bytes,
        "kept_shards": list(found.kept_shards),
        "reasons": [
            {
                "kind": change.kind,
                "what": change.what,
                "before": change.before,
                "now": change.now,
                "text": change.text(tensors),
                "tensors": list(change.tensors),
            }
            for change in summarise(found.reasons)
        ],
    }
