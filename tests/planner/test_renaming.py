"""Names of one architecture under other prefixes, brought together by what the names and shapes say alone."""

from __future__ import annotations

from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trials import trials
from weft.planner.renaming import AmbiguousNames, Shape, rename

Names = dict[str, Shape]

TEXT: Names = {"embed_tokens.weight": (64, 8), "norm.weight": (8,)} | {
    f"layers.{i}.{name}.weight": shape
    for i in range(3)
    for name, shape in {"self_attn.q_proj": (8, 8), "mlp.up_proj": (16, 8), "input_layernorm": (8,)}.items()
}
VISION: Names = {"patch_embed.proj.weight": (8, 3, 2, 2), "merger.ln_q.weight": (8,), "norm.weight": (8,)} | {
    f"blocks.{i}.{name}.weight": shape for i in range(4) for name, shape in {"attn.qkv": (24, 8), "norm1": (8,)}.items()
}
AUDIO: Names = {"conv1.weight": (8, 4, 3), "layer_norm.weight": (8,)} | {
    f"layers.{i}.{name}.weight": shape for i in range(2) for name, shape in {"fc1": (32, 8), "final_layer_norm": (8,)}.items()
}
HEAD: Names = {"lm_head.weight": (64, 8)}


def under(prefix: str, names: Names) -> Names:
    return {f"{prefix}{name}": shape for name, shape in names.items()}


NAMINGS: dict[str, Names] = {
    "release": under("model.", TEXT) | under("visual.", VISION) | HEAD,
    "newer": under("model.language_model.", TEXT) | under("model.visual.", VISION) | HEAD,
    "older": under("language_model.model.", TEXT) | under("vision_tower.", VISION) | under("language_model.", HEAD),
    "another": under("llm.", TEXT) | under("model.vision_model.", VISION) | {"llm.embed_out.weight": (64, 8)},
    "text": under("model.", TEXT) | HEAD,
    "headless": TEXT,
    "headless wrapped": under("language_model.", TEXT) | under("visual.", VISION),
}


def tensor(name: str) -> tuple[str, str]:
    """What a tensor of these namings is: its tower, and its name there."""
    if name.endswith(("lm_head.weight", "embed_out.weight")):
        return "head", ""
    for tower, names in (("text", TEXT), ("vision", VISION)):
        vision = "vis" in name
        if vision == (tower == "vision"):
            return tower, next(inner for inner in sorted(names, key=len, reverse=True) if f".{name}".endswith(f".{inner}"))
    raise AssertionError(name)


@pytest.mark.parametrize(("theirs", "ours"), list(permutations(NAMINGS, 2)))
def test_every_naming_of_an_architecture_is_read_as_any_other(theirs: str, ours: str) -> None:
    known = {tensor(name): name for name in NAMINGS[ours]}
    names = rename(NAMINGS[theirs], NAMINGS[ours]).names
    assert list(names) == list(NAMINGS[theirs])
    assert {name: names[name] for name in names if tensor(name) in known} == {
        name: known[tensor(name)] for name in names if tensor(name) in known
    }
    assert not {names[name] for name in names if tensor(name) not in known} & set(NAMINGS[ours])


def test_models_of_other_depths_are_read_alike() -> None:
    deeper = under("model.", TEXT | {f"layers.{i}.mlp.up_proj.weight": (16, 8) for i in range(3, 12)})
    names = rename(deeper, TEXT).names
    assert names["model.layers.11.mlp.up_proj.weight"] == "layers.11.mlp.up_proj.weight"


def test_what_has_no_counterpart_goes_along_with_its_neighbours() -> None:
    theirs = under("language_model.model.", TEXT | {"layers.0.self_attn.q_proj.bias": (8,)}) | {"mtp.fc.weight": (8, 16)}
    names = rename(theirs, under("model.", TEXT)).names
    assert names["language_model.model.layers.0.self_attn.q_proj.bias"] == "model.layers.0.self_attn.q_proj.bias"
    assert names["mtp.fc.weight"] == "mtp.fc.weight"


def test_nothing_is_said_of_names_that_agree() -> None:
    assert rename(TEXT, NAMINGS["text"] | TEXT).examples == ()
    assert rename(NAMINGS["text"], NAMINGS["release"]).examples == ()


def test_one_example_is_given_for_each_prefix() -> None:
    found = rename(NAMINGS["newer"], NAMINGS["release"])
    assert set(found.examples) == {
        ("model.language_model.embed_tokens.weight", "model.embed_tokens.weight"),
        ("model.visual.patch_embed.proj.weight", "visual.patch_embed.proj.weight"),
    }


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ({"mtp.norm.weight": (8,), "mtp.fc.weight": (8, 16)}, under("visual.", VISION)),
        ({"mtp.norm.weight": (8,), "mtp.fc.weight": (8, 16), "mtp.x.weight": (3,)}, {"norm.weight": (8,)}),
        ({"score.weight": (2, 8)}, {"lm_head.weight": (64, 8)}),
        ({"model.norm.bias": (8,)}, {"visual.norm.bias": (8,)}),
    ],
)
def test_tensors_that_are_alike_by_chance_stay_apart(theirs: Names, ours: Names) -> None:
    """A norm is as long as any other: names and sizes of single tensors make no rule."""
    text = under("model.", TEXT)
    names = rename(text | theirs, text | ours).names
    assert all(names[name] == name for name in names)


def test_twins_are_an_error_that_names_both() -> None:
    ours = under("query_encoder.", AUDIO) | under("passage_encoder.", AUDIO)
    with pytest.raises(AmbiguousNames) as caught:
        rename(AUDIO, ours)
    error = caught.value
    assert {error.first, error.second} == {f"query_encoder.{error.name}", f"passage_encoder.{error.name}"}
    with pytest.raises(AmbiguousNames) as caught:
        rename(ours, AUDIO)
    assert {caught.value.first, caught.value.second} == {f"{n}.{caught.value.name}" for n in ("query_encoder", "passage_encoder")}


_STEPS = st.sampled_from(["model", "language_model", "vision", "audio", "tower", "transformer"])
_PREFIXES = st.lists(st.lists(_STEPS, max_size=3, unique=True), min_size=3, max_size=3, unique_by=tuple)


@trials(150)
@given(_PREFIXES, _PREFIXES)
def test_any_prefixes_are_found(theirs: list[list[str]], ours: list[list[str]]) -> None:
    """Three towers without a name in common, each in a module of its own, are found anywhere else."""
    vision = {name: shape for name, shape in VISION.items() if name not in TEXT}

    def build(prefixes: list[list[str]]) -> Names:
        towers = zip(prefixes, (TEXT, vision, AUDIO), strict=True)
        return {".".join([*prefix, name]): shape for prefix, tower in towers for name, shape in tower.items()}

    a, b = build(theirs), build(ours)
    assert list(rename(a, b).names.values()) == list(b)


_NAMES = st.dictionaries(
    st.lists(st.sampled_from(["a", "b", "0", "1", "weight", ".", ""]), min_size=1, max_size=5).map(".".join),
    st.sampled_from([(4,), (4, 4), (2, 4)]),
    max_size=12,
)


@trials(150)
@given(_NAMES, _NAMES)
def test_no_two_names_become_one(theirs: Names, ours: Names) -> None:
    """Whatever strangers call their tensors."""
    try:
        names = rename(theirs, ours).names
    except AmbiguousNames as error:
        assert error.first != error.second
        return
    assert list(names) == list(theirs)
    assert len(set(names.values())) == len(names)


def test_heads_of_two_classes_stay_apart_though_both_have_a_dense() -> None:
    dense: Names = {"dense.weight": (8, 8), "dense.bias": (8,)}
    masked = under("cls.predictions.transform.", dense | {"LayerNorm.weight": (8,), "LayerNorm.bias": (8,)})
    names = rename(under("encoder.", TEXT) | under("pooler.", dense), under("bert.encoder.", TEXT) | masked).names
    assert names["encoder.norm.weight"] == "bert.encoder.norm.weight"
    assert not set(names.values()) & masked.keys()
