"""The kernel that computes a recipe."""

from __future__ import annotations

from ..ops.lib.lora import lora_kernel
from ..ops.lib.noise import Noise, noise_kernel
from ..ops.lib.rows import RowLayout, rows_kernel
from ..ops.method import Arguments, Kernel
from ..ops.registry import methods
from .recipe import LowRankUpdate, Recipe


def kernel_of(recipe: Recipe) -> Kernel:
    """The method's kernel; for what is no method its own; a recipe without either is a copy."""
    match recipe.special:
        case RowLayout():
            return rows_kernel(recipe.shape, recipe.special)
        case LowRankUpdate(scale, transposed):
            _, a, b = recipe.inputs
            return lora_kernel(recipe.shape, a.shape, b.shape, scale, transposed)
        case Noise():
            return noise_kernel(recipe.special, recipe.arguments.stream)
    if recipe.method is None:
        return methods()["passthrough"].kernel(Arguments(recipe.shape, ({},)))
    return methods()[recipe.method].kernel(recipe.arguments)
