"""`weft run`"""

from __future__ import annotations

import json as serializer
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import ConfigError, OutputError
from . import options as o
from .terminal import say

if TYPE_CHECKING:
    from ..engine.events import Observer
    from ..planner.plan import Plan


def run(
    config: Annotated[str, typer.Argument(help="A merge config (YAML), a plan saved by `weft plan --save`, or MODEL+ADAPTER.")],
    out: Annotated[Path, typer.Argument(help="The folder for the result: new, empty, or one that weft wrote.")],
    report: Annotated[
        Path | None,
        typer.Option(help="Write the plan and what was measured as a page to look at: an .html file.", show_default=False),
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
    strict: Annotated[bool, typer.Option("--strict", help="Publish no result that has NaN or Inf values (exit code 2).")] = False,
    log_json: Annotated[
        Path | None,
        typer.Option(help="Append what happens to a file, one JSON object a line; - prints it.", show_default=False),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the summary for programs (docs/results.md).")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan and do nothing: the same as weft plan.")] = False,
    show_routing: Annotated[
        bool, typer.Option("--show-routing", help="Of a mixture of experts: show where its router would send each prompt.")
    ] = False,
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
    """Merge. Interrupted at any point, the same command continues; in a finished folder only what changed is computed again."""
    if not quiet:
        o.explain_pasted(locals())
    if report is not None:
        from .report import check_place

        check_place(report, out)
    chosen = "cuda" if (cuda or gpu_rich) and device is None else device
    wishes = o.Wishes(ram, vram, chosen, workers, out_shard_size, seed, copy_tokenizer, lenient, values or ())
    plan = o.compile_plan(config, wishes, out)
    if show_routing and not plan.routers:
        raise ConfigError(f"--show-routing: {config} is not a mixture of experts: leave it out")
    if dry_run:
        from .plan import show

        show(plan, out, report, json=json, verbose=verbose, quiet=quiet)
        return
    printing = log_json is not None and str(log_json) == "-"
    if json and printing:
        raise ConfigError("--json and --log-json - both print for programs: choose one; the log's last line has the summary too")
    silent = quiet or json or printing
    from ..engine.events import both
    from ..engine.log import json_log
    from ..engine.run import run as execute
    from .progress import progress
    from .render import say_plan, show_summary
    from .routing import show_routings

    if not silent:
        say_plan(plan, verbose=verbose)
    with _reported(plan, out, report) as recorder, json_log(log_json) as log, progress(quiet=quiet, verbose=verbose) as shown:
        observer = both(recorder, both(shown, log))
        summary = execute(plan, out, observer, quiet=quiet, strict=strict, show_routing=show_routing)
    if json:
        print(serializer.dumps(summary.to_dict(), indent=2))
    if silent:
        return
    if summary.already_complete:
        say(f"{out} holds the complete result of this merge already: nothing to do")
    else:
        show_summary(summary, out)
        show_routings(summary.routings)
    if report is not None:
        say(f"drawn in {report}")


@contextmanager
def _reported(plan: Plan, out: Path, path: Path | None) -> Iterator[Observer]:
    """An observer whose notes become a report in the end, also where the run stops before its own."""
    from ..engine.events import ignore

    if path is None:
        yield ignore
        return
    from ..engine.prospect import prospect
    from ..engine.recorder import Recorder
    from ..planner.report_data import report_data
    from .report import write_report

    recorder = Recorder()
    found = prospect(plan, out)

    def write() -> None:
        measured = recorder.measured() if recorder.started else None
        write_report(report_data(plan, state=found.state, done=found.done, measured=measured), path)

    try:
        yield recorder
    except BaseException:
        if recorder.started:
            with suppress(OutputError):  # why the run stopped is what the user must hear
                write()
        raise
    write()
