"""Opens the models that configs name: folders and Hub repositories, with adapters applied, and the results of earlier stages."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path as FilePath

from ..errors import CheckpointError, nearest
from .adapter import open_adapter
from .catalog import Checkpoint, InputTensor, open_checkpoint
from .config import LoadedConfig
from .document import Path
from .fused import as_llama
from .layout import find_layout
from .locate import locate
from .quantized import named_quantization, without_quantization
from .recipe import LowRankUpdate, Recipe, low_rank_recipe
from .reference import Location, ModelReference
from .sources import Model
from .store import Store

CompileStage = Callable[[LoadedConfig], Checkpoint]


class Models:
    """Opens each model once. `commits` pins Hub repositories by name; `compile_stage` makes a checkpoint of a stage's config."""

    def __init__(self, commits: Mapping[str, str], stages: Mapping[str, LoadedConfig], compile_stage: CompileStage) -> None:
        self._commits, self._stages, self._compile = commits, stages, compile_stage
        self._opened: dict[ModelReference, Model] = {}
        self._named: dict[ModelReference, None] = {}
        self._compiling: list[str] = []
        self._compiled: dict[str, Checkpoint] = {}
        self.stores: dict[str, Store] = {}
        self.notes: list[str] = []

    def get(self, config: LoadedConfig, reference: ModelReference, path: Path) -> Model:
        """The model named at `path` of a config. Raises ConfigError for stages that go in a circle, else CheckpointError."""
        self._named[reference] = None
        return self._open(config, reference, path)

    def compile_stages(self) -> None:
        """Compile the stages one after the other, so that none has to wait within another: they may be many."""
        for name in self._stages:
            self._compile_stage(name)

    def _open(self, config: LoadedConfig, reference: ModelReference, path: Path) -> Model:
        if reference not in self._opened:
            # What these two raise says already where in the config it is.
            base = self._open(config, ModelReference(reference.model), path) if reference.adapter else None
            stage = self._stage(config, reference.model, path) if reference.model.path in self._stages and not base else None
            try:
                if base is not None and reference.adapter is not None:
                    checkpoint = self._adapted(str(reference), base.checkpoint, reference.adapter)
                else:
                    checkpoint = stage or open_checkpoint(self._store(reference))
                if base is None and (method := named_quantization(checkpoint.config)):
                    self.notes.append(
                        f"{reference}: its config.json names {method} quantisation, but its weights are plain numbers: "
                        "they are used as they are, and the result's config.json does not mention quantisation"
                    )
                    checkpoint = replace(checkpoint, config=without_quantization(checkpoint.config))
                if reference.layout == "llama":
                    checkpoint = as_llama(checkpoint)
                layout = find_layout(checkpoint.label, checkpoint.config, checkpoint.tensors)
            except CheckpointError as error:
                raise CheckpointError(str(config.error(path, str(error)))) from None
            self._opened[reference] = Model(reference, checkpoint, layout)
        return self._opened[reference]

    def read_from(self) -> tuple[Model, ...]:
        """The models that configs name and that are files, not stages."""
        return tuple(self._opened[name] for name in self._named if self._opened[name].checkpoint.files)

    def _store(self, reference: ModelReference) -> Store:
        name = reference.model.path
        if self._stages and "/" not in name and not FilePath(name).exists():
            hint = nearest(name, self._stages)
            raise CheckpointError(f"{name}: no document has this name, there is no such folder, and it is not a Hub name{hint}")
        store = locate(reference, self._commits.get(str(reference)))
        self.stores[store.label] = store
        return store

    def _stage(self, config: LoadedConfig, location: Location, path: Path) -> Checkpoint:
        name = location.path
        if location.revision:
            raise config.error(path, f"{name} is a stage, which has no revisions: leave out '@{location.revision}'")
        if name in self._compiling:
            circle = " → ".join([*self._compiling[self._compiling.index(name) :], name])
            raise config.error(path, f"the stages go in a circle: {circle}")
        return self._compile_stage(name)

    def _compile_stage(self, name: str) -> Checkpoint:
        if name not in self._compiled:
            self._compiling.append(name)
            try:
                self._compiled[name] = self._compile(self._stages[name])
            finally:
                self._compiling.pop()
        return self._compiled[name]

    def _adapted(self, label: str, base: Checkpoint, location: Location) -> Checkpoint:
        """A checkpoint in which the tensors that the adapter changes are computed."""
        adapter = open_adapter(self._store(ModelReference(location)), base)
        self.notes += adapter.notes
        tensors: dict[str, InputTensor | Recipe] = dict(base.tensors)
        for name, patch in adapter.patches.items():
            update = LowRankUpdate(patch.scale, patch.transposed)
            tensors[name] = low_rank_recipe(base.tensors[name], patch.a, patch.b, update)
        for name, tensor in adapter.replaced.items():
            if name in base.tensors and tensor.shape != base.tensors[name].shape:
                raise CheckpointError(
                    f"{label}: the adapter's '{name}' has shape {list(tensor.shape)}, not {list(base.tensors[name].shape)}"
                )
            tensors[name] = replace(tensor, name=name)
        return Checkpoint(label, base.store, base.config, tensors, (*base.files, *adapter.files), base.side_files)
