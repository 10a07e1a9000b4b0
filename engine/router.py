"""The routers of a plan's mixtures, made before its tasks. What makes them is imported where there are some."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from ..errors import ConfigError
from ..planner.catalog import InputTensor
from ..planner.file_state import FileState
from ..planner.mixture_config import RANDOM_MODES
from ..planner.plan import Plan
from ..planner.router import ROUTER, Router, check_routers
from .device import own_threads
from .events import Routing
from .reader import InputFile, Inputs


def check_can_route(plan: Plan, *, show: bool) -> None:
    """Raise ConfigError or BudgetError now, and not after hours, where routers cannot be made: what is installed, the budget.

    Libraries count as part of the program, so they are loaded before its memory is measured.
    """
    check_routers(plan.routers, plan.options.budget, everything=show)
    for router in plan.routers:
        if show:
            _check_can_show(router)
        from . import router_vectors  # noqa: F401

        try:
            if router.mode not in RANDOM_MODES or show:
                from transformers import AutoTokenizer  # noqa: F401
            if router.runs_base or show:
                from .base_layers import layer_modules

                layer_modules(router)
        except ImportError as error:
            name = error.name or "transformers"
            raise ConfigError(f"a router made from prompts needs the package {name}: pip install {name}") from None


def _check_can_show(router: Router) -> None:
    if not router.texts():
        raise ConfigError("--show-routing: there are no prompts in the config to route")
    sources = (router.embedding, *(source for weights in router.weights for source in weights.values()))
    if not all(isinstance(source, InputTensor) for source in sources):
        raise ConfigError(
            f"--show-routing: {router.base.label} is computed by an adapter or an earlier stage: write it to a folder first"
        )


def prepare_routers(
    plan: Plan, folder: Path, inputs: dict[tuple[str, str], InputFile], *, show: bool = False
) -> Sequence[Routing]:
    """Make a plan's router files in `folder` and add them to `inputs`; how the prompts are routed, if that is to be shown."""
    routings = []
    for router in plan.routers:
        from .router_vectors import make_router

        _drop_older(router, folder, inputs)
        with own_threads():
            routing = make_router(router, folder, inputs, plan.options.budget, show=show)
        path = folder / router.file.name
        inputs[(ROUTER, router.file.name)] = InputFile(path, FileState.of(path.stat()))
        routings += [routing] if routing else []
    return routings


def _drop_older(router: Router, folder: Path, inputs: Inputs) -> None:
    """Remove vectors, and what is needed to go on making them, that are older than a file that they are made of.

    Their name has the files' sizes and times, but those can be set back.
    """
    newest = max((inputs[(tensor.file.model, tensor.file.name)].state.changed for tensor in router.reads()), default=0)
    for path in (folder / router.file.name, folder / f"{router.file.name}.state"):
        with suppress(FileNotFoundError):
            if FileState.of(path.stat()).changed <= newest:
                path.unlink()


def router_warnings(plan: Plan, folder: Path) -> Sequence[str]:
    """What the user should know of the routers in `folder`."""
    found = []
    for router in plan.routers:
        from .router_vectors import parallel_layers

        warning = parallel_layers(router, folder)
        found += [warning] if warning else []
    return found
