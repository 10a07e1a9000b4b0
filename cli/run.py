"""`weft run`"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import options as o


def run(
    config: Annotated[str, typer.Argument(help="A merge config (YAML), a plan saved by `weft plan --save`, or MODEL+ADAPTER.")],
    out: Annotated[Path, typer.Argument(help="The folder for the result: new, empty, or one that this command began.")],
    ram: o.Ram = None,
    vram: o.Vram = None,
    device: o.Device = None,
    workers: o.Workers = None,
    out_shard_size: o.ShardSize = None,
    seed: o.Seed = None,
    copy_tokenizer: o.CopyTokenizer = None,
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
) -> None:
    """Merge. Interrupted at any point, the same command continues where it stopped."""
    if not quiet:
        o.explain_pasted(locals())
    wishes = o.Wishes(ram, vram, "cuda" if cuda and device is None else device, workers, out_shard_size, seed, copy_tokenizer)
    plan = o.compile_plan(config, wishes)
    from ..engine.run import run as execute
    from .progress import progress
    from .render import say_plan, show_summary

    if not quiet:
        say_plan(plan, verbose=verbose)
    with progress(quiet=quiet, verbose=verbose) as observer:
        summary = execute(plan, out, observer, quiet=quiet)
    if quiet:
        return
    if summary is None:
        print(f"{out} holds the complete result of this merge already: nothing to do")
    else:
        show_summary(summary, out)
