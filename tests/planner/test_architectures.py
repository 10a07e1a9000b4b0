"""After any `slices` the result's own config.json describes its tensors, whatever the architecture; or weft says why not.

The proof is transformers' own: the model that it builds of the result's config.json has just the tensors that are there, and its
config object says of each layer what the source's says of the layer that it comes from.
"""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import settings

from architectures import CannotBuild, architecture, names
from layer_cuts import Outcome, outcomes, without_lists

REFUSALS = ("config.json", "would have other tensors", "has elements for each layer")
"""A refusal says which key it is about, or which tensor."""

UNKNOWABLE = ("sam2", "sam3")
"""Their mask decoder takes its number of layers for the depth of each layer's MLP too, which nothing in a checkpoint shows."""

EVERY = settings().max_examples > 100
SAMPLE = {
    # stacks of equally many layers, each with its own count
    "t5": 2, "bart": 4, "whisper": 4, "clip": 4, "qwen2_vl": 2,
    # layer kinds that the class alternates, layer numbers, first layers, periods, ranges, lists, cyclic lists, dicts by number
    "qwen3_moe": 2, "mllama": 2, "deepseek_v3": 1, "jamba": 1, "gemma2": 4, "gpt_neo": 2, "ernie4_5_moe": 1, "nemotron_h": 2,
}  # fmt: skip
"""How many of the ways to cut them are no refusal, for some of each kind."""


@pytest.mark.parametrize("name", SAMPLE)
def test_the_result_s_config_describes_its_tensors(name: str) -> None:
    made = architecture(name)
    layers = made.config.get("num_hidden_layers") or 0
    found: list[Outcome] = []
    for config in (made.config, *without_lists(made)):
        found += outcomes(made, config, ways=lambda count: ([(0, count - 1), (1, count)], [(1, count)]))
    assert layers == 0 or found
    assert [outcome for outcome in found if outcome.wrong] == []
    assert sum(outcome.refused is None for outcome in found) >= SAMPLE[name], found
    for outcome in found:
        assert outcome.refused is None or any(reason in outcome.refused for reason in REFUSALS)


@pytest.mark.skipif(not EVERY, reason="all architectures take ten minutes: --hypothesis-profile thorough")
def test_every_architecture() -> None:
    counts: Counter[str] = Counter()
    wrong: list[tuple[str, Outcome]] = []
    for name in names():
        try:
            made = architecture(name)
        except CannotBuild:
            counts["not built"] += 1
            continue
        counts["architectures"] += 1
        for config in (made.config, *without_lists(made)):
            for outcome in outcomes(made, config):
                counts["wrong" if outcome.wrong else "refused" if outcome.refused else "clean"] += 1
                wrong += [(name, outcome)] if outcome.wrong and not name.startswith(UNKNOWABLE) else []
    print(counts)
    assert wrong == []
    assert counts["architectures"] > 400 and counts["clean"] > counts["refused"]
