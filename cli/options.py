"""Arguments and options that commands share, and flags of pasted command lines with what weft does about each."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .terminal import say

if TYPE_CHECKING:
    from ..planner.plan import Options, Plan

Config = Annotated[str, typer.Argument(help="A merge config (YAML), a saved plan, or MODEL+ADAPTER.")]
Json = Annotated[bool, typer.Option("--json", help="Print everything for programs (docs/commands.md).")]
Ram = Annotated[
    str | None,
    typer.Option(
        help="RAM for the merge beyond what the process itself takes, such as 2GiB. Default: half of what is free.",
        show_default=False,
    ),
]
Vram = Annotated[str | None, typer.Option(help="Device memory for the merge. Default: half of what is free.", show_default=False)]
Device = Annotated[
    str | None,
    typer.Option(help="auto, cpu, cuda or cuda:N. Default: auto, which is cpu: merging waits for the disk.", show_default=False),
]
Workers = Annotated[
    int | None,
    typer.Option(
        "--workers",
        "--num-threads",
        "-j",
        min=1,
        max=64,
        help="Computing threads. Default: one a core, at most 8.",
        show_default=False,
    ),
]
ShardSize = Annotated[
    str | None, typer.Option(help="Largest output file: 5GB (the default), 500M; 1B is a billion bytes.", show_default=False)
]
Seed = Annotated[
    int | None,
    typer.Option("--seed", "--random-seed", help="Seed of methods that drop elements at random. Default: 0.", show_default=False),
]
CopyTokenizer = Annotated[
    bool | None,
    typer.Option(
        "--copy-tokenizer/--no-copy-tokenizer", help="Copy the base model's tokenizer. Default: copy.", show_default=False
    ),
]
Lenient = Annotated[
    bool | None,
    typer.Option(
        "--lenient/--no-lenient",
        help="Make notes, not errors, of what other tools ignore in a config (unknown keys, parameters that change nothing).",
        show_default=False,
    ),
]
Values = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Use this value instead of the config's: parameters.t=0.3, models[1].parameters.weight=0.5. May be repeated.",
        show_default=False,
    ),
]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Say more.")]
Quiet = Annotated[bool, typer.Option("--quiet/--no-quiet", "-q", help="Print errors only.")]


def _pasted(*names: str) -> Any:
    return typer.Option(*names, hidden=True)


Cuda = Annotated[bool, _pasted("--cuda/--no-cuda")]
AllowCrimes = Annotated[bool, _pasted("--allow-crimes/--no-allow-crimes")]
LazyUnpickle = Annotated[bool, _pasted("--lazy-unpickle/--no-lazy-unpickle")]
TrustRemoteCode = Annotated[bool, _pasted("--trust-remote-code/--no-trust-remote-code")]
LowCpuMemory = Annotated[bool, _pasted("--low-cpu-memory/--no-low-cpu-memory")]
ReadToGpu = Annotated[bool, _pasted("--read-to-gpu/--no-read-to-gpu")]
CloneTensors = Annotated[bool, _pasted("--clone-tensors/--no-clone-tensors")]
MultiGpu = Annotated[bool, _pasted("--multi-gpu/--no-multi-gpu")]
AsyncWrite = Annotated[bool, _pasted("--async-write/--no-async-write")]
WriteModelCard = Annotated[bool, _pasted("--write-model-card/--no-write-model-card")]
SafeSerialization = Annotated[bool, _pasted("--safe-serialization/--no-safe-serialization")]
LoraMergeCache = Annotated[str | None, _pasted("--lora-merge-cache")]
LoraMergeDtype = Annotated[str | None, _pasted("--lora-merge-dtype")]
WriteThreads = Annotated[int | None, _pasted("--write-threads")]
GpuRich = Annotated[bool, _pasted("--gpu-rich")]
TruncateEmbeddings = Annotated[bool, _pasted("--unsafe-truncate-embeddings/--no-unsafe-truncate-embeddings")]
TransformersCache = Annotated[str | None, _pasted("--transformers-cache")]

ANSWERS: Mapping[str, str] = {
    "cuda": "--cuda: the same as --device cuda",
    "allow_crimes": "--allow-crimes: not needed; models of equal shapes are merged, others are refused",
    "lazy_unpickle": "--lazy-unpickle: not needed; tensors are always read only when they are needed",
    "trust_remote_code": "--trust-remote-code: not needed; weft runs no code from a model",
    "low_cpu_memory": "--low-cpu-memory: not needed; --ram bounds memory",
    "read_to_gpu": "--read-to-gpu: not needed; tiles are streamed to the device",
    "clone_tensors": "--clone-tensors: not needed; results share no memory with inputs",
    "multi_gpu": "--multi-gpu: one device is used; merging waits for the disk",
    "async_write": "--async-write: not needed; writing always overlaps computing",
    "write_model_card": "--no-write-model-card: a README.md with the config is always written",
    "safe_serialization": "--no-safe-serialization: the result is always safetensors",
    "lora_merge_cache": "--lora-merge-cache: not needed; nothing is merged ahead of time",
    "lora_merge_dtype": "--lora-merge-dtype: not needed; adapters are applied in float32 and rounded once",
    "write_threads": "--write-threads: not needed; writing always overlaps computing",
    "gpu_rich": "--gpu-rich: the same as --device cuda",
    "truncate_embeddings": "--unsafe-truncate-embeddings: not done; tokenizer_source in the config brings vocabularies together",
    "transformers_cache": "--transformers-cache: not used; set HF_HOME to choose where downloads are kept",
}
"""One line for each accepted flag of other tools."""


_ON_BY_DEFAULT = {"write_model_card", "safe_serialization"}


def explain_pasted(given: Mapping[str, object]) -> None:
    """One line on stderr for each flag of pasted command lines in a command's arguments; those on by default count when off."""
    for name, answer in ANSWERS.items():
        if bool(given[name]) is not (name in _ON_BY_DEFAULT):
            say(f"weft: {answer}", error=True)


@dataclass(frozen=True, slots=True)
class Wishes:
    """The common options as given; None where the default is wanted."""

    ram: str | None
    vram: str | None
    device: str | None
    workers: int | None
    shard_size: str | None
    seed: int | None
    copy_tokenizer: bool | None
    lenient: bool | None = None
    values: Sequence[str] = ()


def choose_options(wishes: Wishes, saved: Mapping[str, Any], commits: Mapping[str, str]) -> Options:
    """The planner's options: what was wished, else what a saved plan says, else what suits this machine. Raises ConfigError."""
    from ..engine.allowance import available_memory, default_workers
    from ..planner.memory import Budget
    from ..planner.plan import DEFAULT_SHARD, Options
    from ..planner.sizes import parse_size

    device = wishes.device or saved.get("device", "cpu")
    free, processor = 0, ""
    if device in ("auto", "cpu"):
        device = "cpu"
    else:
        from ..engine.device import choose_device, free_device_memory, processor_name

        device = choose_device(device)
        free, processor = free_device_memory(device), processor_name(device)
    budget = Budget(
        ram=parse_size(wishes.ram) if wishes.ram else saved.get("ram", available_memory() // 2),
        vram=parse_size(wishes.vram) if wishes.vram else saved.get("vram", 0) or free // 2,
        workers=wishes.workers or saved.get("workers", default_workers()),
        device=device,
        processor=processor,
    )
    return Options(
        budget,
        parse_size(wishes.shard_size) if wishes.shard_size else saved.get("shard_size", DEFAULT_SHARD),
        wishes.seed if wishes.seed is not None else saved.get("seed", 0),
        wishes.copy_tokenizer if wishes.copy_tokenizer is not None else saved.get("copy_tokenizer", True),
        commits,
    )


def compile_plan(config: str, wishes: Wishes, out: Path | None = None) -> Plan:
    """The plan of a config file or of a saved plan, to be run into `out`. Raises ConfigError, CheckpointError, BudgetError."""
    from ..errors import ConfigError
    from ..planner.config import load_config, read_text
    from ..planner.overrides import override
    from ..planner.plan import make_plan
    from ..planner.saved import check_unchanged, load_saved_plan

    if "+" in config and not Path(config).exists():
        text = f"merge_method: passthrough\nmodels:\n- model: {json.dumps(config)}\n"  # an adapter into its base, in one word
        return make_plan(load_config(override(text, config, wishes.values), config), choose_options(wishes, {}, {}))
    path = find_config(config, out)
    saved = load_saved_plan(path)
    if saved is None:
        text = override(read_text(path), str(path), wishes.values)
        return make_plan(load_config(text, str(path), lenient=bool(wishes.lenient)), choose_options(wishes, {}, {}))
    if wishes.values:
        raise ConfigError(f"--set {wishes.values[0]}: {path} is a saved plan, which has its config already: save another one")
    lenient = saved.settings["lenient"] if wishes.lenient is None else wishes.lenient
    loaded = load_config(saved.config, saved.source, lenient=lenient)
    plan = make_plan(loaded, choose_options(wishes, saved.settings, saved.commits))
    check_unchanged(saved, plan, path)
    return plan


def find_config(config: str, out: Path | None = None) -> Path:
    """The config's path. Raises ConfigError where there is none."""
    from ..errors import ConfigError

    path = Path(config)
    try:
        if path.is_dir() and out is not None and out.is_file():
            raise ConfigError(f"{config} is a folder and {out} a file: the config comes first, then the folder for the result")
        if path.is_dir():
            raise ConfigError(
                f"{config} is a folder: the first argument is a config file (YAML) or a plan saved by `weft plan --save`"
            )
        if not path.exists():
            raise ConfigError(f"{config}: there is no such file")
    except OSError as error:
        raise ConfigError(f"{config}: {error.strerror or error}") from None
    return path
