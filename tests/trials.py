"""How many examples a property is tried with. `pytest --hypothesis-profile thorough` tries ten times as many."""

from __future__ import annotations

from typing import Any

from hypothesis import settings


def trials(count: int, **more: Any) -> settings:
    """That many, or as many times more as the profile has; each may take as long as it likes."""
    return settings(max_examples=count * settings().max_examples // 100, deadline=None, **more)
