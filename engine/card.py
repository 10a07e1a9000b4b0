"""The result's README.md: a model card, as the Hub reads it.

A result is often uploaded as it is, so the card never shows where on somebody's machine a model lay.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import PurePath

import yaml

from .. import __version__
from ..errors import CheckpointError
from ..planner.plan import Plan
from ..planner.shards import STEMS, weights_stem
from ..planner.sizes import format_count
from ..planner.store import Store

CARD = "README.md"

_FRONT = re.compile(r"\A---\s*\n(.*?)^---\s*$", re.DOTALL | re.MULTILINE)
_MOST_FRONT = 64 << 10
"""Bytes of a model's own card that are looked at."""


def model_card(plan: Plan) -> str:
    """Which models, which method, the config itself; in front of it what the Hub wants to know."""
    hub = sorted({str(model.reference.model.path) for model in plan.models if model.checkpoint.store.commit})
    names = shown_names(label for label, store in plan.stores.items() if store.commit is None)
    licences = {label: licence for label, store in plan.stores.items() if (licence := licence_of(store))}
    config = with_names(plan.config.text, names).rstrip()
    # A fence longer than any run of backquotes in the config cannot be closed by it.
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", config)), default=0))
    title = plan.config.merge.name or "Merged model"
    models = "\n".join(f"- {_link(store, names)}" + _licensed(licences.get(label)) for label, store in plan.stores.items())
    base = plan.stores.get(plan.base.checkpoint.store.label, plan.base.checkpoint.store)
    dtype = plan.model_config.get("torch_dtype") or plan.model_config.get("dtype")
    return (
        _front(plan, hub, licences)
        + f"\n# {title}\n\nMade with weft {__version__} by the method **{plan.method.name}**: {plan.method.summary}\n\n"
        + f"{format_count(plan.parameters)} parameters in {plan.layers} layers, {dtype}.\n\n"
        + f"## Models\n\n{models}\n\nBase model: {_link(base, names)}\n\n"
        + _notes(plan, names)
        + f"## Config\n\n{fence}yaml\n{config}\n{fence}\n\n"
        + "## Upload\n\nIn this folder, with a name of your own:\n\n```\nhf auth login\nhf upload ORG/NAME . .\n```\n"
    )


def _front(plan: Plan, hub: Iterable[str], licences: Mapping[str, str]) -> str:
    """The card's front matter. A licence stands in it only where all models have the same."""
    library = "transformers" if weights_stem(plan.model_config) == STEMS[0] else "diffusers"
    value: dict[str, object] = {"library_name": library, "tags": ["merge", "weft"]}
    if models := list(hub):
        value = {"base_model": models, "base_model_relation": "merge", **value}
    if len(licences) == len(plan.stores) and len(set(licences.values())) == 1:
        value["license"] = next(iter(licences.values()))
    return f"---\n{yaml.safe_dump(value, sort_keys=False, allow_unicode=True)}---\n"


def licence_of(store: Store) -> str | None:
    """The licence that a model's own card names in its front matter; None where there is no card, or it does not say."""
    try:
        if CARD not in store.sizes():
            return None
        with store.open(CARD) as file:
            front = _FRONT.match(file.read(_MOST_FRONT).decode(errors="replace"))
        value = yaml.safe_load(front[1]) if front else None
    except (CheckpointError, OSError, yaml.YAMLError, RecursionError, ValueError):
        return None
    licence = value.get("license") if isinstance(value, dict) else None
    return licence if isinstance(licence, str) and re.fullmatch(r"[\w.+-]{1,60}", licence) else None


def shown_names(paths: Iterable[str]) -> dict[str, str]:
    """For each folder the last part of its path, or as many parts as tell it from the others."""
    parts = {path: PurePath(path.rstrip("/")).parts for path in paths}
    names = {}
    for path, own in parts.items():
        for count in range(1, len(own) + 1):
            if sum(other[-count:] == own[-count:] for other in set(parts.values())) == 1:
                break
        names[path] = "/".join(own[-count:]).lstrip("/") or path
    return names


def with_names(text: str, names: Mapping[str, str]) -> str:
    """A config's text with names in the place of paths, of which one may begin with another."""
    for path in sorted(names, key=len, reverse=True):
        if "/" in path:
            text = re.sub(rf"(?<![\w./~-]){re.escape(path)}/?(?![\w.-]|/\w)", lambda _, path=path: names[path], text)  # type: ignore[misc]
    return text


def _notes(plan: Plan, names: Mapping[str, str]) -> str:
    """What weft had to say about the merge."""
    lines = [f"- {with_names(note, names)}" for note in plan.notes]
    return "## Notes\n\n" + "\n".join(lines) + "\n\n" if lines else ""


def _licensed(licence: str | None) -> str:
    return f" ({licence})" if licence else ""


def _link(store: Store, names: Mapping[str, str]) -> str:
    """A model's name, as a link where it is on the Hub."""
    if store.commit is None:
        return names.get(store.label, store.label)
    name = store.label.split("@")[0]
    return f"[{name}](https://huggingface.co/{name})"
