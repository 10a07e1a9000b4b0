"""The models of one config under one model's tensor names: the base model's, or without one the first's."""

from __future__ import annotations

from dataclasses import replace

from ..errors import CheckpointError
from .catalog import Checkpoint
from .config import LoadedConfig
from .document import Path
from .layout import find_layout
from .models import Models
from .reference import ModelReference
from .renaming import AmbiguousNames, Renaming, rename
from .sources import Model


class Alignment:
    """Gives a config's models by the names of its `anchor`, which names the result's tensors too.

    Tensors keep the names that their own files have for them, which filters of single models go by. `notes` say what was renamed.
    """

    def __init__(self, config: LoadedConfig, models: Models) -> None:
        self._config, self._models = config, models
        self._anchor: Model | None = None
        self._aligned: dict[ModelReference, Model] = {}
        self.notes: list[str] = []

    def get(self, reference: ModelReference, path: Path) -> Model:
        """The model named at `path`. Raises ConfigError and CheckpointError, also where its names could mean two things."""
        model = self._models.get(self._config, reference, path)
        if self._anchor is None:
            base = self._config.merge.base_model
            self._anchor = self._models.get(self._config, base, ("base_model",)) if base else model
        if reference not in self._aligned:
            self._aligned[reference] = model if model is self._anchor else self._align(model, self._anchor, path)
        return self._aligned[reference]

    def _align(self, model: Model, anchor: Model, path: Path) -> Model:
        try:
            found = rename(_shapes(model.checkpoint), _shapes(anchor.checkpoint))
        except AmbiguousNames as error:
            text = (
                f"{model.reference} and {anchor.reference} have other names for their tensors, and '{error.name}' could be "
                f"'{error.first}' or '{error.second}': save one of them again with the other's class"
            )
            raise CheckpointError(str(self._config.error(path, text))) from None
        if not found.examples:
            return model
        self.notes.append(_note(model, anchor, found))
        checkpoint = replace(
            model.checkpoint, tensors={found.names[name]: tensor for name, tensor in model.checkpoint.tensors.items()}
        )
        return Model(model.reference, checkpoint, find_layout(checkpoint.label, checkpoint.config, checkpoint.tensors))


def _shapes(checkpoint: Checkpoint) -> dict[str, tuple[int, ...]]:
    return {name: tensor.shape for name, tensor in checkpoint.tensors.items()}


def _note(model: Model, anchor: Model, found: Renaming) -> str:
    pairs = ", ".join(f"'{theirs}' is '{ours}'" for theirs, ours in found.examples)
    return f"{model.reference} has other names for the tensors of {anchor.reference}, whose names the result has: {pairs}"
