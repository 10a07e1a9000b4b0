"""Models that are too large to be made for each test."""

from __future__ import annotations

from pathlib import Path

import pytest

from merges import big_model


@pytest.fixture(scope="session")
def big_models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two models of 68 MB each, to be read only."""
    root = tmp_path_factory.mktemp("big")
    return big_model(root / "base", 1), big_model(root / "other", 2)
