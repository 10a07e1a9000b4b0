"""Every architecture that transformers knows, in little and without weights: names and shapes of its checkpoint, as saved.

Models are built on the meta device, so nothing is computed; a config is the class's default with few layers.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from transformers.core_model_loading import revert_weight_conversion
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

Shapes = dict[str, tuple[int, ...]]

LAYERS = 8
_COUNT = re.compile(r"(\w+_)?(n|num)_(\w+_)?layers?|(\w+_)?layers|(\w+_)?depth")
_SMALLER = {
    "num_experts": 4, "n_routed_experts": 8, "num_local_experts": 4, "moe_num_experts": 4, "num_experts_per_tok": 2,
}  # fmt: skip
_DEEPER = {"zamba": 18, "zamba2": 18}
"""Layers of those that need more to have all kinds: several hybrid layers, of which the first holds what all share."""
_LACKING = {"head_dim": 64, "num_key_value_heads": 2, "prediction_length": 8, "is_decoder": True, "pad_token_id": 0}
_HEADS = (
    "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING", "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING", "MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING",
    "MODEL_FOR_CAUSAL_LM_MAPPING", "MODEL_FOR_MASKED_LM_MAPPING", "MODEL_FOR_PRETRAINING_MAPPING", "MODEL_MAPPING",
)  # fmt: skip


@dataclass(frozen=True)
class Architecture:
    """A model type's class, its config.json in little, and the shapes of its checkpoint's tensors."""

    name: str
    model_class: Any
    config: dict[str, Any]
    shapes: Shapes

    def rebuilt_config(self, config: Mapping[str, Any]) -> Any:
        """The config object that transformers makes of a config.json."""
        with quiet():
            return self.model_class.config_class.from_dict(_with_floats(config))

    def rebuilt(self, config: Mapping[str, Any]) -> tuple[Any, Shapes]:
        """The config object that transformers makes of a config.json, and the shapes that its model then has."""
        made = self.rebuilt_config(config)
        with quiet():
            return made, saved_shapes(self.model_class, made)


class CannotBuild(Exception):
    """Why there is no small model of an architecture."""


def names() -> list[str]:
    """Every model type that has a class to load it with."""
    return sorted(name for name in list(CONFIG_MAPPING.keys()) if _model_class(name) is not None)


def architecture(name: str) -> Architecture:
    """Raises CannotBuild."""
    model_class = _model_class(name)
    assert model_class is not None
    errors = []
    for small in _tries(model_class.config_class):
        try:
            with quiet():
                made = small()
                shapes = saved_shapes(model_class, made)
                config = json.loads(made.to_json_string(use_diff=False))
            break
        except Exception as error:  # transformers raises whatever it likes
            errors.append(error)
    else:
        raise CannotBuild(f"{type(errors[0]).__name__}: {errors[0]}")
    config = {key: value for key, value in config.items() if key not in ("transformers_version",)}
    found = Architecture(name, model_class, {**config, "architectures": [model_class.__name__]}, shapes)
    try:
        again = found.rebuilt(found.config)[1]
    except Exception as error:  # as above
        raise CannotBuild(f"its own config.json: {error}") from None
    if again != shapes:
        raise CannotBuild("its own config.json makes another model of it")
    return found


def saved_shapes(model_class: Any, config: Any) -> Shapes:
    """Names and shapes of what `save_pretrained` would write for a model of this config."""
    with torch.device("meta"):
        model = model_class(config)
    state = dict(model.state_dict())
    for name in {*model.all_tied_weights_keys, *(model._keys_to_ignore_on_save or ())}:
        state.pop(name, None)
    return {name: tuple(tensor.shape) for name, tensor in revert_weight_conversion(model, state).items()}


def _with_floats(value: Any) -> Any:
    """A config.json's values as transformers reads them, infinities among them."""
    if isinstance(value, Mapping):
        return float(value["__float__"]) if value.keys() == {"__float__"} else {k: _with_floats(v) for k, v in value.items()}
    return [_with_floats(item) for item in value] if isinstance(value, list) else value


def _model_class(name: str) -> Any:
    config_class = CONFIG_MAPPING[name]
    for mapping in _HEADS:
        with contextlib.suppress(Exception):
            found = getattr(modeling_auto, mapping).get(config_class, None)
            if found is not None:
                found = found[0] if isinstance(found, (tuple, list)) else found
                return found if found.config_class is config_class else None
    return None


def _tries(config_class: Any) -> Iterator[Callable[[], Any]]:
    """The class's default with few layers; with what some classes lack in theirs; as it is."""
    yield lambda: config_class(**_fewer(config_class, config_class()))
    yield lambda: config_class(**_fewer(config_class, config_class()), **_LACKING)
    yield config_class


def _fewer(config_class: Any, default: Any) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    parts = getattr(config_class, "sub_configs", {})
    for key, value in default.to_dict().items():
        if isinstance(value, bool):
            continue
        if isinstance(value, int) and _COUNT.fullmatch(key) and value > LAYERS:
            settings[key] = _DEEPER.get(default.model_type, LAYERS)
        elif key in _SMALLER and isinstance(value, int) and value > _SMALLER[key]:
            settings[key] = _SMALLER[key]
    for key in parts:
        inner = getattr(default, key, None)
        if inner is not None:
            settings[key] = {**_fewer(type(inner), inner), "model_type": inner.model_type}
    return settings


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without what transformers prints about strange configs."""
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity(60)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        transformers.logging.set_verbosity(verbosity)
