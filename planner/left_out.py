"""What of the input models is not in the result, and what config.json must say then."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

from .belonging import absent_module
from .layout import LAYER_COUNTS, Layout, Place, main_settings
from .sources import Model, Part

_PREDICTION = frozenset({"mtp", "nextn"})
"""Words for multi-token prediction, in names of tensors and of settings."""


def left_out(parts: Sequence[Part], names: Collection[str]) -> Iterator[str]:
    """A line for each part of a model that the result, of tensors `names`, has nothing of."""
    result = Layout((), {name: Place(name) for name in names})
    for part in parts:
        stack = part.stack.prefix if part.stack else None
        for model in _models(part):
            beyond, foreign = 0, dict[str, int]()
            for name, place in model.layout.places.items():
                if not part.holds(place) or (place.stack is not None and place.stack.prefix == stack):
                    continue
                if place.beyond and part.renumbers(model):
                    beyond += 1
                elif name not in result.places:
                    module = absent_module(result, name)
                    foreign[module] = foreign.get(module, 0) + 1
            if beyond:
                yield (
                    f"{beyond} tensors after the last layer of {model.reference} are left out: "
                    "the last layer of the result is another"
                )
            for module, count in foreign.items():
                yield (
                    f"{count} tensors under '{module}' of {model.reference} are left out: "
                    f"{part.anchor.model.reference}, which decides what the result is, has none there"
                )


def _models(part: Part) -> Iterable[Model]:
    models = [*(source.model for run in part.runs for source in run.sources), part.anchor.model]
    return {model.reference: model for model in models}.values()


def count_prediction_layers(
    config: Mapping[str, Any], parts: Sequence[Part], names: Collection[str]
) -> tuple[dict[str, Any], list[str]]:
    """`config` with the number of layers for multi-token prediction that the result has, and a note where that is another.

    Transformers keeps such settings, but neither loads nor saves the layers: 0 where none is there, the number of the model
    that they come from where the config has none.
    """
    changed = copy.deepcopy(dict(config))
    models = {model.reference: model for part in parts for model in _models(part)}.values()
    renumbered = [part.renumbers(model) for part in parts for model in _models(part)]
    owner = next((model for model in models if any(_predicts(model, name, not any(renumbered)) for name in names)), None)
    notes = []
    for settings in main_settings(changed):
        assert isinstance(settings, dict)
        if owner is None:
            for key in [key for key in settings if _counts(key, settings[key])]:
                _cut_lists(settings, settings[key])
                notes.append(f"config.json: {key} is 0 and not {settings[key]}, because there are no such layers")
                settings[key] = 0
        elif any(key in settings for key in LAYER_COUNTS) and not any(_counts(k, v) for k, v in settings.items()):
            for key, value in _prediction_settings(owner):
                settings[key] = copy.deepcopy(value)
                notes.append(f"config.json: {key} is that of {owner.reference}, from which such layers come")
    return changed, notes


def _predicts(model: Model, name: str, beyond: bool) -> bool:
    """Whether a model has the tensor, and it is one for multi-token prediction: by its name, or `beyond` the last layer."""
    place = model.layout.places.get(name)
    return place is not None and (
        (place.beyond and beyond) or any(_PREDICTION & set(step.split("_")) for step in name.split("."))
    )


def _counts(key: str, value: Any) -> bool:
    """Whether a setting says how many layers for multi-token prediction there are, and that there are any."""
    words = set(key.split("_"))
    counted = _PREDICTION & words and {"num", "n"} & words and {"layers", "modules"} & words
    return bool(counted) and isinstance(value, int) and not isinstance(value, bool) and value > 0


def _prediction_settings(owner: Model) -> Iterator[tuple[str, Any]]:
    for settings in main_settings(owner.checkpoint.config):
        if any(_counts(key, value) for key, value in settings.items()):
            yield from ((key, value) for key, value in settings.items() if _PREDICTION & set(key.split("_")))
            return


def _cut_lists(settings: dict[str, Any], more: int) -> None:
    """Lists with an entry for each layer have one for each of those layers too."""
    layers = next((settings[key] for key in LAYER_COUNTS if isinstance(settings.get(key), int)), None)
    for key, value in settings.items():
        if isinstance(value, list) and layers is not None and len(value) == layers + more and "layer" in key:
            settings[key] = value[:layers]
