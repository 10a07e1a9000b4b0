"""A router's vectors, made from prompts or random numbers: a small file that the tasks then read like any other input."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from ..errors import CheckpointError
from ..ops.backends.host import draw
from ..ops.lib.noise import normal_numbers, uniform_numbers
from ..planner.memory import Budget
from ..planner.mixture_config import RANDOM_MODES
from ..planner.prompt_tokens import tokenizer_of
from ..planner.router import Router
from .directory import Directory
from .events import Routing
from .reader import Inputs, Reader

Tensor = torch.Tensor

PARALLEL = 5.0
"""Condition number of a layer's vectors from which on they hardly differ."""


def make_router(router: Router, folder: Path, inputs: Inputs, budget: Budget, *, show: bool = False) -> Routing | None:
    """Write the router's file into `folder`, unless it is there; how the prompts are routed, if that is to be shown.

    Hidden states continue after the last layer for which they were written. Raises CheckpointError for what cannot be read.
    """
    target = folder / router.file.name
    if _is_file(target) and target.stat().st_size == router.file.size and not show:
        return None
    ids = _token_ids(router) if router.mode not in RANDOM_MODES or show else {}
    vectors, routing = torch.zeros(router.layers, len(router.prompts), router.hidden), None
    if router.mode in RANDOM_MODES:
        for layer, rows in enumerate(vectors):
            _random(router, layer, rows)
    elif router.mode == "cheap_embed":
        vectors[:] = _of_embeddings(router, inputs, ids)
    if router.runs_base or show:
        routing = _run_base(router, folder, inputs, budget, ids, vectors, show=show)
    _write(target, [vectors.numpy().tobytes(), bytes(4 * router.zeros)])
    _state(router, folder).unlink(missing_ok=True)
    return routing


def parallel_layers(router: Router, folder: Path) -> str | None:
    """A warning where the vectors of some layers are nearly parallel; None if not, or if the file is not there any more."""
    path = folder / router.file.name
    if router.experts < 2 or not _is_file(path):
        return None
    count = router.layers * len(router.prompts) * router.hidden
    vectors = torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.float32, count=count)
    rows = vectors.view(router.layers, len(router.prompts), router.hidden)[:, : router.experts].double()
    singular = torch.linalg.svdvals(rows)
    conditions = (singular[:, 0] / singular[:, -1].clamp(min=1e-300)).tolist()
    narrow = [layer for layer, condition in enumerate(conditions) if condition > PARALLEL]
    if not narrow:
        return None
    worst = max(narrow, key=lambda layer: conditions[layer])
    return (
        f"router vectors are nearly parallel in {len(narrow)} of {router.layers} layers (condition number "
        f"{conditions[worst]:.3g} in layer {worst}): the router hardly tells these experts apart; "
        "give them prompts that differ more"
    )


def _token_ids(router: Router) -> dict[str, list[int]]:
    """Each prompt's tokens by the base model's tokenizer, behind the one that begins a text, if there is such."""
    from transformers import AutoTokenizer

    label = router.base.label
    with tempfile.TemporaryDirectory() as folder:
        for name, data in (router.tokenizer or tokenizer_of(router.base)).items():
            Path(folder, name).write_bytes(data)
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        except Exception as error:  # whatever the library makes of broken files
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise CheckpointError(f"{label}: transformers cannot read its tokenizer: {reason}") from None
    begin = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    found = {}
    for text in router.texts():
        ids = [*begin, *tokenizer(text, add_special_tokens=False).input_ids]
        if not ids:
            raise CheckpointError(f"{label}: its tokenizer makes no tokens of the prompt {text!r}: write another")
        if max(ids) >= router.embedding.shape[0]:
            raise CheckpointError(
                f"{label}: its tokenizer has tokens for which the embedding has no rows: it is of another model"
            )
        found[text] = ids
    return found


def _random(router: Router, layer: int, rows: Tensor) -> None:
    stream = f"{router.seed}\0{router.names[layer]}"
    if router.mode == "random":
        rows.view(-1).copy_(torch.from_numpy(draw(normal_numbers, stream, rows.numel())))
    else:
        bound = router.hidden**-0.5
        rows.view(-1).copy_(torch.from_numpy(draw(uniform_numbers, stream, rows.numel()))).mul_(2 * bound).sub_(bound)


def _of_embeddings(router: Router, inputs: Inputs, ids: Mapping[str, Sequence[int]]) -> Tensor:
    """The vectors of every layer, [experts, hidden]: sums of embedding rows."""
    from .base_layers import read_rows

    reader = Reader(inputs)
    try:
        for tensor in router.reads():
            reader.open(tensor.file)
        sums = {text: read_rows(reader, router.embedding, tokens).double().sum(0) for text, tokens in ids.items()}
    finally:
        reader.close()
    return _unit(torch.stack([_total(sums, p.positive) - _total(sums, p.negative) for p in router.prompts])).float()


def _total(sums: Mapping[str, Tensor], texts: Sequence[str]) -> Tensor:
    """The sum over prompts, at length 1: many prompts on one side weigh no more than few on the other."""
    total = torch.zeros_like(next(iter(sums.values())))
    for text in texts:
        total += sums[text]
    return _unit(total)


def _of_states(router: Router, states: Mapping[str, Tensor]) -> Tensor:
    """A layer's vectors, [experts, hidden]: mean over positive prompts minus mean over negative ones, at length 1."""
    rows = []
    for prompts in router.prompts:
        row = torch.zeros(router.hidden, dtype=torch.float64)
        for sign, texts in ((1.0, prompts.positive), (-1.0, prompts.negative)):
            for text in texts:
                row.add_(states[text], alpha=sign / len(texts))
        rows.append(row)
    return _unit(torch.stack(rows)).float()


def _unit(rows: Tensor) -> Tensor:
    """Rows, or a single vector, at length 1."""
    length: Tensor = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
    return rows / length.clamp(min=1e-8)


def _run_base(
    router: Router,
    folder: Path,
    inputs: Inputs,
    budget: Budget,
    ids: Mapping[str, Sequence[int]],
    vectors: Tensor,
    *,
    show: bool,
) -> Routing | None:
    """Let the prompts pass through the base model's layers; fills `vectors` where they are hidden states."""
    from .base_layers import BaseLayers

    texts = list(ids)
    lengths = [len(ids[text]) for text in texts]
    counts = torch.zeros(len(texts), router.experts, dtype=torch.float64)
    layers = BaseLayers(router, inputs, router.memory(budget, everything=True), torch.device(budget.device))
    try:
        first, states = _resume(router, folder, lengths, vectors) if not show else (0, [])
        states = states or [layers.embed(ids[text]) for text in texts]
        for layer in range(first, router.layers):
            if router.runs_base:
                whole = router.mode == "hidden_avg"
                of = {text: (s.double().mean(0) if whole else s[-1].double()) for text, s in zip(texts, states, strict=True)}
                vectors[layer] = _of_states(router, of)
                if layer == router.layers - 1 and not show:
                    break  # nobody asks for what leaves the last layer
            layers.load(layer)
            inside = layers.run(layer, states)
            if show:
                for row, seen in zip(counts, inside, strict=True):
                    row += _weights(seen @ vectors[layer, : router.experts].T, router.per_token).sum(0)
            else:
                _save_state(router, folder, layer + 1, states, vectors)
    finally:
        layers.close()
    if not show:
        return None
    shares = counts / counts.sum(1, keepdim=True)
    owners = tuple(tuple(e for e, p in enumerate(router.prompts[: router.experts]) if text in p.positive) for text in texts)
    return Routing(tuple(texts), owners, tuple(tuple(row) for row in shares.tolist()))


def _weights(logits: Tensor, chosen: int) -> Tensor:
    """Each token's weights of the experts, [tokens, experts]: a softmax over the chosen ones, as in all families written here."""
    best = logits.topk(chosen)
    return torch.zeros(logits.shape, dtype=torch.float64).scatter(1, best.indices, best.values.double().softmax(1))


def _state(router: Router, folder: Path) -> Path:
    return folder / f"{router.file.name}.state"


def _save_state(router: Router, folder: Path, done: int, states: Sequence[Tensor], vectors: Tensor) -> None:
    """The prompts' states after `done` layers, and the vectors so far."""
    _write(_state(router, folder), [save({"states": torch.cat(list(states)), "vectors": vectors}, {"done": str(done)})])


def _resume(router: Router, folder: Path, lengths: Sequence[int], vectors: Tensor) -> tuple[int, list[Tensor]]:
    """How many layers an earlier run has done, the states after them, and its vectors into `vectors`; else 0 and no states."""
    damaged = (OSError, SafetensorError, ValueError, KeyError, TypeError, RuntimeError)
    if not _is_file(_state(router, folder)):
        return 0, []
    with contextlib.suppress(*damaged), safe_open(_state(router, folder), framework="pt") as file:
        states: Tensor = file.get_tensor("states")
        if states.shape == (sum(lengths), router.hidden):
            vectors.copy_(file.get_tensor("vectors"))
            return int(file.metadata()["done"]), list(torch.split(states, list(lengths)))
    return 0, []


def _is_file(path: Path) -> bool:
    """Whether a file stands there: not a link to one, which weft never makes, nor a pipe, which would be waited for."""
    return path.is_file() and not path.is_symlink()


def _write(path: Path, parts: Sequence[bytes]) -> None:
    """Put a file in place whole: written beside, synced, renamed."""
    with contextlib.closing(Directory.open(path.parent)) as folder:
        folder.write(f"{path.name}.new", parts)
        folder.replace(f"{path.name}.new", folder, path.name)
