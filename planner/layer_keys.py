"""What keys of a config.json say of single layers, in every form that config classes know, and how to say it of other layers.

A form reads what a value says of one layer (`says`), and writes a value that says the same of the layers of a result (`write`),
or None where no value does. It is known by the key's name and the value together: `mlp_only_layers` [0, 2] are layer numbers,
`no_rope_layers` [1, 1, 0] an entry a layer.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Said = Sequence[Any]
"""What was said of the layer that each of the result's layers comes from, in their order."""


@dataclass(frozen=True, slots=True)
class Form:
    """`says(value, count, layer)`: what a value says of a layer, where there are `count`.

    `write(value, said, count)`: a value that says so of the result's layers, or None. `advice`: of what results there is one.
    """

    says: Callable[[Any, int, int], Any]
    write: Callable[[Any, Said, int], Any]
    advice: str


_SKIP = re.compile(r"token|vocab|label|architect|auto_map|mtp|nextn|rescale|norm|proj_layers|dropout|drop_|_rate|prob|delay")
_TAP = re.compile(
    r"out_(ind|layer)|feature|extract|intermediate_(layer|hidden)|deepstack|select|target_layer|hidden_state|insert|merge_(ind|layer)"
    r"|accept|conditional_layer|look_|layer_map|cat_hidden"
)
_LAYERS = re.compile(
    r"layer|block|attn|attention|sparse|moe|expert|rope|window|mlp|global|cross|full|topk|local|mamba|hybrid|dense"
)
_PERIOD = re.compile(r"period|interval|every|freq(uency)?s?$|step$|pattern$|group_size$")
_FIRST = re.compile(r"first_k|first_n|num_first|(num|n)_dense_layers|num_hash_layers|dense_mlp_idx|max_window_layers")
_LAST = re.compile(r"num_last_|kv_shared_layers")
_START = re.compile(r"layer\w*_start|start_layer|first_layer")
_END = re.compile(r"layer\w*_end|end_layer|last_layer")
_NUMBERS = re.compile(r"(layers?(_enum|_ids?|_idxs?|_list)?|_ids|ind(ex|ic)e?s|_idxs?|blocks?)$")
_EACH = re.compile(r"layer|pattern|window|block|types$")
_LONGER = re.compile(r"layer|pattern|types$")
_CYCLE = re.compile(r"pattern|block_types|layer_types")
_STAGES = re.compile(r"depths?$|hidden_sizes$|embed_dims?$|_per_stage$|num_block_repeats$")
_NOT_EACH = re.compile(
    r"section|mean$|std$|mask|axes|channel|kernel|stride|conv|dilat|tdnn|resol|grid|image|patch|shape|loss|feat|stage|_ids?$"
    r"|languages|factor|scales?$|_sizes$|repeats$"
)


def form_of(key: str, value: Any, count: int) -> Form | None:
    """The form in which a key speaks of `count` layers; None where it does not speak of single layers."""
    if _SKIP.search(key) or value is None or isinstance(value, (bool, float)):
        return None
    if isinstance(value, int):
        return _number(key, value)
    if isinstance(value, str):
        return _text(key, value, count)
    if isinstance(value, list) and value:
        return _list(key, value, count)
    if isinstance(value, Mapping) and value and _EACH.search(key):
        if _TAP.search(key):
            return TAPS
        if all(re.fullmatch(r"[0-9]{1,6}", number) for number in value):
            return BY_NUMBER
    return None


def _number(key: str, value: int) -> Form | None:
    if "add_layers" in key:  # so many among all, at equal distances
        return STAGES
    if "_size" in key and "group" not in key:
        return None
    if _FIRST.search(key):
        return FIRST
    if _LAST.search(key):
        return LAST
    if _START.search(key):
        return START
    if _END.search(key):
        return END
    if _PERIOD.search(key) and _LAYERS.search(key):
        return PERIOD
    return TAPS if _TAP.search(key) and ("layer" in key or "index" in key) and value >= 0 else None


def _text(key: str, value: str, count: int) -> Form | None:
    if re.fullmatch(r"\d+(,\d+)*", value) and _NUMBERS.search(key) and _LAYERS.search(key):
        return NUMBERS_TEXT
    if not re.search(r"pattern|layer_types|block_types", key) or not value:
        return None
    return EACH_LETTER if len(value) >= count else CYCLE_LETTER


def _list(key: str, value: list[Any], count: int) -> Form | None:
    whole = all(isinstance(item, int) and not isinstance(item, bool) for item in value)
    if _TAP.search(key):
        return TAPS if re.search(r"layer|ind|block", key) else None
    if all(isinstance(item, list) and len(item) == 2 and isinstance(item[0], list) for item in value):
        return RUNS if sum(len(kinds) * times for kinds, times in value if isinstance(times, int)) == count else None
    if whole and "source_layer" in key and len(value) == count:
        return SOURCES
    if whole and "no_rope" not in key and len(set(value)) == len(value) and _NUMBERS.search(key) and _LAYERS.search(key):
        return NUMBERS
    if _STAGES.search(key):
        return STAGES if len(value) == count else None
    if "layer" not in key and _NOT_EACH.search(key):
        return None
    if len(value) == count or (len(value) > count and _LONGER.search(key)):
        return EACH
    return CYCLE if _CYCLE.search(key) and all(isinstance(item, str) for item in value) else None


def _each(value: Any, count: int, layer: int) -> Any:
    return value[layer] if layer < len(value) else None


def _write_letters(value: str, said: Said, count: int) -> str | None:
    return "".join(said) + value[count:] if all(isinstance(letter, str) for letter in said) else None


def _leading(said: Said) -> int | None:
    """How many of the first are true, if no later one is."""
    count = sum(map(bool, said))
    return count if all(said[:count]) else None


def _write_first(value: int, said: Said, count: int) -> int | None:
    first = _leading(said)
    return max(value, first) if first == len(said) else first


def _write_start(value: int, said: Said, count: int) -> int | None:
    return _leading([not item for item in said])


def _write_end(value: int, said: Said, count: int) -> int | None:
    first = _leading(said)
    return None if first is None else -1 if value == -1 and first == len(said) else first - 1


def _phase(value: int, count: int, layer: int) -> tuple[int, int]:
    return value, layer % value if value > 0 else 0


def _write_period(value: int, said: Said, count: int) -> int | None:
    return value if all(item == _phase(value, len(said), layer) for layer, item in enumerate(said)) else None


def _numbers(value: Any) -> list[int]:
    """All whole numbers in a value, however deep."""
    if isinstance(value, Mapping):
        return [n for pair in value.items() for item in pair for n in _numbers(item)]
    if isinstance(value, (list, tuple)):
        return [n for item in value for n in _numbers(item)]
    if isinstance(value, str):
        return [int(value)] if re.fullmatch(r"-?[0-9]{1,6}", value) else []
    return [value] if isinstance(value, int) and not isinstance(value, bool) else []


def _write_taps(value: Any, said: Said, count: int) -> Any:
    """The value as it is, if the layers up to the last one that it names are in their places."""
    last = max(_numbers(value), default=-1)
    return value if last < len(said) and all(layer == item for layer, item in enumerate(said[: last + 1])) else None


def _write_by_number(value: Mapping[str, Any], said: Said, count: int) -> dict[str, Any]:
    width = max(len(str(number)) for number in value)
    padded = any(str(number).startswith("0") and len(str(number)) > 1 for number in value)
    return {str(layer).zfill(width if padded else 1): item for layer, item in enumerate(said) if item is not None}


def _by_number(value: Any, count: int, layer: int) -> Any:
    return next((item for number, item in value.items() if int(number) == layer), None)


def _in_runs(value: Any, count: int, layer: int) -> Any:
    for kinds, times in value:
        if layer < len(kinds) * times:
            return kinds[layer % len(kinds)]
        layer -= len(kinds) * times
    return None


def _write_sources(value: list[int], said: Said, count: int) -> list[int] | None:
    if not any(said):
        return list(range(len(said)))
    return value if [item + layer for layer, item in enumerate(said)] == value else None


ANY = "any layers"
EACH = Form(_each, lambda value, said, count: [*said, *value[count:]], ANY)
EACH_LETTER = Form(_each, _write_letters, ANY)
CYCLE = Form(lambda value, count, layer: value[layer % len(value)], lambda value, said, count: list(said), ANY)
CYCLE_LETTER = Form(lambda value, count, layer: value[layer % len(value)], _write_letters, ANY)
NUMBERS = Form(
    lambda value, count, layer: layer in value or layer - count in value,
    lambda value, said, count: [layer for layer, item in enumerate(said) if item],
    ANY,
)
NUMBERS_TEXT = Form(
    lambda value, count, layer: layer in _numbers(value.split(",")),
    lambda value, said, count: ",".join(str(layer) for layer, item in enumerate(said) if item),
    ANY,
)
RUNS = Form(_in_runs, lambda value, said, count: [[list(said), 1]], ANY)
BY_NUMBER = Form(_by_number, _write_by_number, ANY)
SOURCES = Form(
    lambda value, count, layer: value[layer] - layer if layer < len(value) else 0, _write_sources, "layers of their own"
)
FIRST = Form(
    lambda value, count, layer: layer < value, _write_first, "the first layers: take them first, and no such layer later"
)
LAST = Form(
    lambda value, count, layer: layer >= count - value,
    lambda value, said, count: _leading(said[::-1]),
    "the last layers: take them last, and no such layer earlier",
)
START = Form(lambda value, count, layer: layer >= value, _write_start, "all layers from one on: keep their order")
END = Form(lambda value, count, layer: value == -1 or layer <= value, _write_end, "all layers up to one: keep their order")
PERIOD = Form(
    _phase,
    _write_period,
    "layers that move by a multiple of it: choose layer ranges that do",
)
STAGES = Form(
    lambda value, count, layer: (count, layer),
    lambda value, said, count: value if all(item == (len(said), layer) for layer, item in enumerate(said)) else None,
    "all layers in their places, which cannot be cut or repeated",
)
TAPS = Form(lambda value, count, layer: layer, _write_taps, "layers in their places: keep those up to the last one named")
