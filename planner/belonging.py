"""Whether a model is whole without a tensor that another has: a part that it has nothing of, or a loss.

Models of one architecture come with and without whole parts: heads for multi-token prediction, a vision tower, an output
projection. A part is a module of which a model has no tensor at all. A tensor missing from a layer or a module that is there, or
the only one of a norm or an embedding, is no part: without it the model is broken.
"""

from __future__ import annotations

from itertools import takewhile

from .layout import Layout, Place, is_output_embedding
from .sources import Model


def absent_module(layout: Layout, name: str) -> str:
    """The outermost module around a tensor of which there is nothing; the tensor's own name where its module is there."""
    steps = name.split(".")
    for length in range(1, len(steps)):
        module = ".".join(steps[:length])
        if module not in layout.modules:
            return module
    return name


def may_lack(model: Model, name: str, owner: Model, place: Place) -> bool:
    """Whether `model` is whole without tensor `name`, which stands at `place` in `owner`."""
    module = absent_module(model.layout, name)
    outer, _, last = module.rpartition(".")
    if place.stack is not None and len(module) > len(place.stack.prefix):
        return False
    if any(step.isdecimal() for step in outer.split(".")):
        return False
    if last.isdecimal():
        return place.beyond
    if _holds_the_embedding(owner.layout, module):
        return False
    if "." in name[len(module) + 1 :]:
        return True
    return of_another_class(model, owner) and (is_output_embedding(name) or not _in_language_model(owner, name))


def of_another_class(model: Model, other: Model) -> bool:
    """Whether two models say that they are of other classes, or one of them is saved as another's part: without a head."""
    mine, theirs = model.checkpoint.config, other.checkpoint.config
    for key in ("architectures", "model_type"):
        if mine.get(key) and theirs.get(key) and mine[key] != theirs[key]:
            return True
    return _is_inside(model, other) or _is_inside(other, model)


def _is_inside(model: Model, other: Model) -> bool:
    """Whether what the one names `layers.0` is `model.layers.0` in the other."""
    for name, place in model.layout.places.items():
        if place.stack is not None and place.stack == model.layout.main and name in other.checkpoint.tensors:
            return other.checkpoint.tensors[name].name.endswith(f".{model.checkpoint.tensors[name].name}")
    return False


def _holds_the_embedding(layout: Layout, module: str) -> bool:
    """Whether a module holds the input embedding of a language model whose layers stand elsewhere."""
    inside = f"{module}."
    return (
        layout.embedding is not None
        and layout.embedding.startswith(inside)
        and not (layout.main and layout.main.prefix.startswith(inside))
    )


def _in_language_model(model: Model, name: str) -> bool:
    """Whether a tensor stands in the module that holds the main layers and the input embedding, by the model's own names."""
    own = {key: tensor.name for key, tensor in model.checkpoint.tensors.items()}
    places = model.layout.places.values()
    layer = next((own[p.name].split(".") for p in places if p.stack is not None and p.stack == model.layout.main), [])
    first = next((i for i, step in enumerate(layer) if step.isdecimal()), 0)
    around = layer[: max(first - 1, 0)]
    embedding = own[model.layout.embedding].split(".") if model.layout.embedding else layer
    core = [step for step, other in takewhile(lambda pair: pair[0] == pair[1], zip(around, embedding, strict=False))]
    return own[name].split(".")[: len(core)] == core
