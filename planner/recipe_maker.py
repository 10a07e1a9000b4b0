"""The recipes of a config's output tensors."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from ..errors import CheckpointError
from ..ops.method import BaseRole, Method, MethodError
from .arguments import evaluate, taking_part
from .catalog import InputTensor
from .compatible import Lack, check_alike, lacking
from .config import LoadedConfig
from .dtypes import FROM_CONFIG, MERGED
from .recipe import Recipe, Source, copy_recipe, method_recipe
from .sites import Site, Use
from .unused import Unused


@dataclass(frozen=True, slots=True)
class Recipes:
    """All recipes in the order of the output, what the user should know about them, and how many are kept from one model.

    Those are of parts of which other models have nothing.
    """

    recipes: tuple[Recipe, ...]
    notes: tuple[str, ...]
    kept: int


class RecipeMaker:
    """Makes the recipes of a config's output tensors; holds what is the same for all of them."""

    def __init__(self, config: LoadedConfig, method: Method, base_label: str, seed: int) -> None:
        self.config, self.method, self.base_label, self.seed = config, method, base_label, seed
        self._notes: dict[str, list[str]] = {}
        self._unused = Unused(config, method)
        self._kept = 0

    def make(self, sites: Iterable[Site]) -> Recipes:
        """Raises ConfigError and CheckpointError, naming the tensor."""
        recipes = [self._recipe(site) for site in sites]
        seen: set[str] = set()
        for recipe in recipes:
            if recipe.name in seen:
                raise CheckpointError(f"tensor '{recipe.name}' would be written by two modules: name modules as the tensors do")
            seen.add(recipe.name)
        notes = tuple(f"{len(names)} tensors {what} (such as {names[0]})" for what, names in self._notes.items())
        return Recipes(tuple(recipes), (*notes, *self._unused.notes()), self._kept)

    def _recipe(self, site: Site) -> Recipe:
        name, config, merge = site.name, self.config, self.config.merge
        absent = self._absent(site)
        uses = taking_part(self.method, site)
        for use in uses[1:]:
            check_alike(config, name, uses[0], use)
        self._unused.see(site, uses, taken=False)
        first = uses[0].tensor
        base = next((use for use in uses if use.source.is_base), uses[0])
        if first.dtype not in MERGED:
            self._note("are not floating-point numbers and are copied", name)
            return self._copy(name, base, base.tensor.dtype)
        chosen = merge.out_dtype or merge.dtype
        dtype = FROM_CONFIG[chosen] if chosen else base.tensor.dtype
        if absent and not self._enough(uses):
            self._kept += 1
            self._note(f"under '{absent[0].module}' are kept from {_named([base])}: {_without(absent)}", name)
            return self._copy(name, base, dtype)
        if absent:
            self._note(f"under '{absent[0].module}' are merged from {_named(uses)} alone: {_without(absent)}", name)
        if (len(uses) == 1 and len(site.run.sources) > 1) or 0 in first.shape:
            return self._copy(name, uses[0], dtype)
        self._unused.see(site, uses, taken=True)
        arguments = evaluate(config, self.method, self.seed, site, uses)
        inputs = tuple(use.tensor for use in uses)
        try:
            kernel = self.method.kernel(arguments)
        except MethodError as error:
            raise config.error(site.run.path, f"tensor '{name}': {error}") from None
        if kernel.copies and isinstance(first, Recipe) and first.dtype == dtype:
            return replace(first, name=name)  # what is computed is the result: nothing is left to do to it
        cast = _cast(FROM_CONFIG[merge.dtype] if merge.dtype else None, inputs)
        base_input = self._base_input(uses)
        sources = _sources(uses)
        return method_recipe(name, dtype, self.method, inputs, arguments, cast=cast, base_input=base_input, sources=sources)

    def _copy(self, name: str, use: Use, dtype: str) -> Recipe:
        return copy_recipe(name, dtype, use.tensor, self._base_input([use]), _sources([use]))

    def _base_input(self, uses: Sequence[Use]) -> int | None:
        for i, use in enumerate(uses):
            tensor = use.tensor
            # A tensor that an adapter brings along is not the base model's, though it stands in its place.
            brought = isinstance(tensor, InputTensor) and tensor.file.model == str(use.source.model.reference.adapter)
            if use.source.model.checkpoint.label == self.base_label and not brought:
                return i
        return None

    def _absent(self, site: Site) -> list[Lack]:
        """The sources that have nothing of the part that the tensor belongs to; what else is unusual becomes a note."""
        for model in (use.source.model.reference for use in site.uses if use.tied):
            self._note(f"are read from the input embedding of {model}, to which they are tied", site.name)
        found = lacking(self.config, site, self.base_label)
        for lack in (lack for lack in found if lack.module is None):
            self._note(f"are optional and missing from {lack.source.model.reference}", site.name)
        return [lack for lack in found if lack.module is not None]

    def _enough(self, uses: Sequence[Use]) -> bool:
        """Whether the method can do without the sources that have nothing of a tensor's part.

        It can where it adds up what models changed in the base model, of which theirs is nothing. A sum or a mean would change.
        """
        compares = self.method.base in (BaseRole.REQUIRED, BaseRole.OPTIONAL) and any(use.source.is_base for use in uses)
        return compares and len(uses) - 1 >= max(self.method.models[0], 1)

    def _note(self, what: str, name: str) -> None:
        names = self._notes.setdefault(what, [])
        if name not in names[-1:]:
            names.append(name)


def _named(uses: Iterable[Use]) -> str:
    return ", ".join(dict.fromkeys(str(use.source.model.reference) for use in uses))


def _without(absent: Iterable[Lack]) -> str:
    names = list(dict.fromkeys(str(lack.source.model.reference) for lack in absent))
    return f"{', '.join(names)} {'has' if len(names) == 1 else 'have'} none of them"


def _sources(uses: Iterable[Use]) -> tuple[str, ...]:
    return tuple(str(use.source.model.reference) for use in uses)


def _cast(dtype: str | None, inputs: Sequence[Source]) -> str | None:
    """The 16-bit type to which inputs must be rounded; widening changes nothing."""
    return dtype if dtype in ("F16", "BF16") and any(tensor.dtype != dtype for tensor in inputs) else None
