"""Tests compute as the workers do: one thread inside an operation."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from merges import big_model


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def big_models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two models of 68 MB each, to be read only."""
    root = tmp_path_factory.mktemp("big")
    return big_model(root / "base", 1), big_model(root / "other", 2)
