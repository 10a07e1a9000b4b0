"""Whether the tensors that sources have for one output tensor can be merged: the same shape, the same kind, none missing."""

from __future__ import annotations

from ..errors import CheckpointError
from .config import LoadedConfig
from .dtypes import MERGED
from .layout import Stack, input_embedding, is_output_embedding
from .sites import Site, Use
from .sources import SourceUse


def lacking(config: LoadedConfig, site: Site) -> list[SourceUse]:
    """The sources without the tensor, which is optional: a bias or a buffer. Raises CheckpointError where it is a weight."""
    have = {id(use.source) for use in site.uses}
    without = []
    for source, local in zip(site.run.sources, site.names, strict=True):
        if id(source) in have:
            continue
        if site.name.endswith("weight") or _elsewhere(source, local):
            raise _unfit(
                config,
                source,
                f"{source.model.reference}: missing weights: it has no '{local}', "
                f"which {site.uses[0].source.model.reference} has; "
                "fetch it again, or merge models of one architecture",
            )
        without.append(source)
    return without


def check_alike(config: LoadedConfig, name: str, first: Use, other: Use) -> None:
    """Raises CheckpointError where two sources' tensors differ in shape, or only one of them holds floating-point numbers."""
    a, b = first.tensor, other.tensor
    if a.shape != b.shape:
        vocabulary = len(a.shape) == 2 and a.shape[1:] == b.shape[1:] and (is_output_embedding(name) or input_embedding([name]))
        hint = (
            "their vocabularies differ: set 'tokenizer_source: union' (or base, or a model) to bring their tokens together"
            if vocabulary
            else "only models of one architecture and size can be merged; shapes are never broadcast"
        )
        raise _unfit(
            config,
            other.source,
            f"tensor '{name}' has shape {list(a.shape)} in {first.source.model.reference} "
            f"and {list(b.shape)} in {other.source.model.reference}: {hint}",
        )
    if (a.dtype in MERGED) != (b.dtype in MERGED):
        raise _unfit(
            config,
            other.source,
            f"tensor '{name}' is {a.dtype} in {first.source.model.reference} "
            f"and {b.dtype} in {other.source.model.reference}: "
            "integers and floating-point numbers cannot be merged",
        )


def _unfit(config: LoadedConfig, source: SourceUse, message: str) -> CheckpointError:
    """A checkpoint that does not fit the others, with the place in the config that names it."""
    return CheckpointError(str(config.error(source.path, message)))


def _elsewhere(source: SourceUse, name: str) -> bool:
    """Whether other layers of the same model have the tensor that this one lacks."""
    for place in source.model.layout.places.values():
        if place.stack is not None and place.at(0) == _at_zero(name, place.stack):
            return True
    return False


def _at_zero(name: str, stack: Stack) -> str | None:
    head = f"{stack.prefix}." if stack.prefix else ""
    number, _, rest = name.removeprefix(head).partition(".")
    return f"{head}0.{rest}" if name.startswith(head) and number.isdigit() else None
