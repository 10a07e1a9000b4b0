"""What methods do with the models' weights before any tensor is read."""

from __future__ import annotations

from collections.abc import Sequence

from ..method import MethodError


def shares(weights: Sequence[float], setting: str) -> list[float]:
    """The weights divided by their sum, as the parameter `setting` asks. Raises MethodError where that is 0."""
    total = sum(weights)
    if abs(total) < 1e-8:
        raise MethodError(f"the weights sum to 0, so they cannot be normalised: change a weight or set {setting}: false")
    return [weight / total for weight in weights]
