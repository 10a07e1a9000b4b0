"""A mixture of experts as recipes: the base model's tensors, each expert's feed-forward weights, and the router's vectors.

Where nothing changes, a recipe is a copy of an input tensor, so all that merges have (budget, tiles, journal) is there too.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from ..errors import CheckpointError
from ..ops.lib.noise import Noise
from ..ops.method import Arguments, BaseRole, Kernel, Method, MethodError
from .compile import Merge
from .config import LoadedConfig
from .document import Path
from .dtypes import FROM_CONFIG, MERGED, TO_CONFIG
from .experts import check_alike, check_prompts
from .fused import as_llama
from .layout import find_layout, is_output_embedding
from .mixture_config import RANDOM_MODES, MixtureConfig
from .mixture_families import FAMILIES, MLP, Family, named
from .model_config import merged_config
from .models import Models
from .prompt_tokens import tokenizer_of
from .recipe import Recipe, Source, expert_recipe
from .reference import ModelReference
from .router import Prompts, Router
from .side_files import all_side_files
from .sources import Model
from .tokenization import Tokenization, models_of_tokens, plan_tokenization

_COPY = Noise(0.0, 1.0)
_BUFFER = re.compile(r"(^|\.)rotary_emb\.inv_freq$")
_OUTSIDE = re.compile(r"(^|\.)(embed_tokens|norm|lm_head)\.weight$")


def _no_kernel(arguments: Arguments) -> Kernel:
    raise MethodError("a mixture's tensors are copies")


METHOD = Method(
    name="mixture",
    summary="Fine-tunes of one model as the experts of a sparse model, with a router initialised from prompts.",
    source="",
    base=BaseRole.ORDINARY,
    models=(1, None),
    parameters=(),
    kernel=_no_kernel,
)
"""What reports and manifests say of a mixture; it is no merge method that configs could name."""


def compile_mixture(
    config: LoadedConfig, mixture: MixtureConfig, models: Models, seed: int, processor: str | None = None
) -> Merge:
    """Raises ConfigError and CheckpointError for what makes no mixture. `processor`: what computes, see `computed_by`."""
    notes = check_prompts(config, mixture)
    opened: dict[int, Model] = {}

    def get(path: Path, reference: ModelReference) -> Model:
        model = models.get(config, reference, path)
        if id(model) not in opened:
            opened[id(model)] = _dense(config, path, model)
        return opened[id(model)]

    base = get(("base_model",), mixture.base_model)
    experts = [get((*path, "source_model"), expert.source_model) for path, expert in mixture.all_experts()]
    notes += check_alike(config, mixture, base, experts)
    kinds = {str(model.reference): str(model.checkpoint.config.get("model_type", "")) for model in (base, *experts)}
    family = _choose(config, mixture, kinds)
    others = [models.get(config, reference, path) for reference, path in models_of_tokens(config)]
    used = {model.reference: model for model in (*experts, base, *others)}
    tokens = plan_tokenization(config, list(used.values()), base)
    builder = _Builder(config, mixture, family, base, experts, tokens, seed, processor)
    recipes = tuple(builder.recipes())
    dtype = recipes[0].dtype
    settings, said = tokens.settings(merged_config(builder.settings, TO_CONFIG.get(dtype)))
    return Merge(
        method=METHOD,
        base=base,
        recipes=recipes,
        model_config=settings,
        side_files={name: size for name, size in all_side_files(base.checkpoint).items() if not tokens.replaces(name)},
        written_files=tokens.files,
        layers=builder.router.layers,
        notes=(*notes, *builder.notes, *said, *tokens.notes),
        routers=(builder.router,),
    )


def _dense(config: LoadedConfig, path: Path, model: Model) -> Model:
    """The model in the layout in which its feed-forward weights stand side by side: Phi-3's are fused."""
    if model.checkpoint.config.get("model_type") != "phi3":
        return model
    try:
        checkpoint = as_llama(model.checkpoint)
        return Model(model.reference, checkpoint, find_layout(checkpoint.label, checkpoint.config, checkpoint.tensors))
    except CheckpointError as error:
        raise CheckpointError(str(config.error(path, str(error)))) from None


def _choose(config: LoadedConfig, mixture: MixtureConfig, kinds: Mapping[str, str]) -> Family:
    """The first family that fits. Raises ConfigError that says of each why it does not."""
    wanted = list(named(mixture.architecture))
    if not wanted:
        known = ", ".join(family.name for family in FAMILIES)
        raise config.error(("architecture",), f"there is no architecture '{mixture.architecture}'; known: {known}")
    reasons = []
    for family in wanted:
        reason = family.unfit(kinds, mixture)
        if reason is None:
            return family
        reasons.append(f"{family.title} {reason}")
    raise config.error(("architecture",) if mixture.architecture else (), f"no family of mixtures fits: {'; '.join(reasons)}")


class _Builder:
    """Makes the recipes of one mixture, in the order of the output."""

    def __init__(
        self,
        config: LoadedConfig,
        mixture: MixtureConfig,
        family: Family,
        base: Model,
        experts: list[Model],
        tokens: Tokenization,
        seed: int,
        processor: str | None,
    ) -> None:
        self.config, self.mixture, self.family, self.base, self.experts = config, mixture, family, base, experts
        self.tokens, self.seed, self.processor = tokens, seed, processor
        stack = base.layout.main
        if stack is None or not stack.prefix.endswith("layers"):
            raise self._unfit(("base_model",), f"{base.reference}: its layers are not where those of {family.title} are")
        self.prefix, self.layers = stack.prefix, stack.count
        self.notes: list[str] = []
        try:
            self.settings = family.config(base.checkpoint.label, base.checkpoint.config, mixture)
        except CheckpointError as error:
            raise self._unfit(("base_model",), str(error)) from None
        self.router = self._router()

    def recipes(self) -> Iterator[Recipe]:
        """Raises CheckpointError, with the place in the config, for tensors that are missing or have no place."""
        self._check_places()
        places = self.base.layout.places.values()
        outside = [place for place in places if place.stack is None and not _BUFFER.search(place.name)]
        for place in (place for place in outside if place.before):
            yield self._shared(place.name)
        for layer in range(self.layers):
            yield from self._layer(layer)
        for place in (place for place in outside if not place.before):
            yield self._shared(place.name)

    def _layer(self, layer: int) -> Iterator[Recipe]:
        family, tensors = self.family, self.base.checkpoint.tensors
        for rest in (*family.kept, *family.optional):
            name = self._name(layer, rest)
            if name in tensors:
                yield self._shared(name)
            elif rest in family.filled:
                like = tensors[self._name(layer, rest.replace(".bias", ".weight"))]
                zeros = self.router.zero(name, like.shape[0])
                yield expert_recipe(name, self._dtype(like), zeros, _COPY, "", None)
        routed = len(self.mixture.experts)
        yield self._vectors(layer, family.gate, self.router.gate(layer))
        for e in range(routed):
            yield from self._expert(layer, e, {own: pattern.format(e=e) for own, pattern in family.experts.items()})
        if len(self.experts) > routed:
            if family.shared_gate is not None:
                yield self._vectors(layer, family.shared_gate, self.router.shared_gate(layer))
            yield from self._expert(layer, routed, family.shared_expert)

    def _expert(self, layer: int, number: int, names: Mapping[str, str]) -> Iterator[Recipe]:
        (path, expert), model = list(self.mixture.all_experts())[number], self.experts[number]
        stack = model.layout.main
        assert stack is not None
        for own, rest in names.items():
            theirs, ours = f"{stack.prefix}.{layer}.mlp.{own}", self._name(layer, f"mlp.{own}")
            source, like = model.checkpoint.tensors.get(theirs), self.base.checkpoint.tensors[ours]
            if source is None:
                raise self._unfit(path, f"{model.reference}: missing weights: it has no '{theirs}', which every expert needs")
            if source.shape != like.shape:
                raise self._unfit(
                    path,
                    f"{model.reference}: '{theirs}' has shape {list(source.shape)}, and {list(like.shape)} in "
                    f"{self.base.reference}: experts must be fine-tunes of one model",
                )
            factor = expert.residual_scale if own == MLP[-1] and expert.residual_scale is not None else 1.0
            name = self._name(layer, rest)
            change = Noise(expert.noise_scale or 0.0, factor)
            yield expert_recipe(name, self._dtype(like), source, change, f"{self.seed}\0{name}", None)

    def _shared(self, name: str) -> Recipe:
        """A tensor that all experts have in common: the base model's."""
        checkpoint = self.base.checkpoint
        source: Source = checkpoint.tensors[name]
        if self.tokens.mover is not None:
            source = self.tokens.mover.move(name, checkpoint, source)
        return expert_recipe(name, self._dtype(source), source, _COPY, "", 0)

    def _vectors(self, layer: int, rest: str, source: Source) -> Recipe:
        like = self.base.checkpoint.tensors[self._name(layer, f"mlp.{MLP[0]}")]
        return expert_recipe(self._name(layer, rest), self._dtype(like), source, _COPY, "", None)

    def _name(self, layer: int, rest: str) -> str:
        return f"{self.prefix}.{layer}.{rest}"

    def _dtype(self, like: Source) -> str:
        return FROM_CONFIG[self.mixture.dtype] if self.mixture.dtype else like.dtype

    def _check_places(self) -> None:
        """Every tensor of the base and of the experts has a place in the family, and what the family wants is there."""
        family, tensors, path = self.family, self.base.checkpoint.tensors, ("base_model",)
        wanted = (*family.kept, *(f"mlp.{own}" for own in MLP))
        needed = [self._name(layer, rest) for layer in range(self.layers) for rest in wanted]
        tied = bool(self.base.checkpoint.config.get("tie_word_embeddings", False))
        missing = next((name for name in needed if name not in tensors), None)
        if missing is None and not tied and not any(is_output_embedding(name) for name in tensors):
            missing = "lm_head.weight"
        if missing is not None:
            raise self._unfit(path, f"{self.base.reference}: missing weights: it has no '{missing}', which {family.title} needs")
        known = {*wanted, *family.optional}
        for place in self.base.layout.places.values():
            inside = place.stack is not None and place.stack.prefix == self.prefix
            fits = place.rest in known if inside else bool(_OUTSIDE.search(place.name))
            if not fits and not _BUFFER.search(place.name):
                raise self._unfit(path, f"{self.base.reference}: {family.title} has no place for its '{place.name}'")
            if fits and tensors[place.name].dtype not in MERGED:
                raise self._unfit(path, f"{self.base.reference}: '{place.name}' is {tensors[place.name].dtype}: no such weights")
        for (at, _), model in zip(self.mixture.all_experts(), self.experts, strict=True):
            for place in model.layout.places.values():
                if place.rest.startswith("mlp.") and place.rest.removeprefix("mlp.") not in MLP:
                    raise self._unfit(at, f"{model.reference}: {family.title} has no place for its '{place.name}'")

    def _router(self) -> Router:
        mixture, checkpoint = self.mixture, self.base.checkpoint
        gated = self.family.shared_gate is not None
        prompts = [Prompts(tuple(e.positive_prompts), tuple(e.negative_prompts)) for e in mixture.experts]
        prompts += [Prompts(tuple(e.positive_prompts), tuple(e.negative_prompts)) for e in mixture.shared_experts if gated]
        tensors = checkpoint.tensors
        embedding = next((n for n in tensors if n.endswith("embed_tokens.weight")), None)
        if embedding is None:
            raise self._unfit(("base_model",), f"{self.base.reference}: missing weights: it has no 'embed_tokens.weight'")
        weights: list[dict[str, Source]] = [{} for _ in range(self.layers)]
        for place in self.base.layout.places.values():
            if place.stack is not None and place.stack.prefix == self.prefix and not _BUFFER.search(place.name):
                weights[place.layer][place.rest] = tensors[place.name]
        biases = [rest for rest in self.family.filled if self._name(0, rest) not in tensors]
        longest = max((tensors[self._name(0, rest.replace(".bias", ".weight"))].shape[0] for rest in biases), default=0)
        try:
            tokenizer = tokenizer_of(checkpoint) if mixture.gate_mode not in RANDOM_MODES else {}
        except CheckpointError as error:
            raise self._unfit(("base_model",), str(error)) from None
        router = Router(
            mode=mixture.gate_mode,
            seed=self.seed,
            experts=len(mixture.experts),
            per_token=mixture.experts_per_token,
            prompts=tuple(prompts),
            names=tuple(self._name(layer, self.family.gate) for layer in range(self.layers)),
            hidden=int(checkpoint.config["hidden_size"]),
            zeros=longest,
            base=checkpoint,
            embedding=tensors[embedding],
            weights=tuple(weights),
            tokenizer=tokenizer,
            processor=self.processor,
        )
        computed = [] if mixture.gate_mode in RANDOM_MODES else [router.embedding]
        computed += [source for layer in weights for source in layer.values()] if router.runs_base else []
        first = next((source for source in computed if isinstance(source, Recipe)), None)
        if first is not None:
            raise self._unfit(
                ("base_model",),
                f"gate_mode {mixture.gate_mode} reads the base model from files, and an adapter or an earlier stage computes its "
                f"'{first.name}': write the base model to a folder of its own first, or choose gate_mode: random",
            )
        return router

    def _unfit(self, path: Path, message: str) -> CheckpointError:
        return CheckpointError(str(self.config.error(path, message)))
