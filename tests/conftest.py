"""What all tests share: they compute as the workers do, and may take a folder of models for the Hub."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import huggingface_hub.constants as hub_settings
import huggingface_hub.utils
import pytest
import torch
from hypothesis import settings

settings.register_profile("thorough", max_examples=1000)  # the default has 100; see tests/trials.py


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """One thread inside an operation: more would only wait for each other, in such small tensors and beside other tests."""
    torch.set_num_threads(1)


@pytest.fixture
def use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Points huggingface_hub, which reads its environment once, at an endpoint, with an empty cache."""
    for variable in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(hub_settings, "HF_TOKEN_PATH", str(tmp_path / "home" / "token"))
    monkeypatch.setattr(hub_settings, "HF_STORED_TOKENS_PATH", str(tmp_path / "home" / "stored_tokens"))
    monkeypatch.setattr(hub_settings, "HF_HUB_CACHE", str(tmp_path / "home" / "hub"))
    monkeypatch.setattr(hub_settings, "HF_HUB_OFFLINE", False)

    def configure(endpoint: str, offline: bool = False) -> None:
        monkeypatch.setattr(hub_settings, "ENDPOINT", endpoint)
        monkeypatch.setattr(hub_settings, "HF_HUB_OFFLINE", offline)
        # Versions before 1 keep a copy of the template, and sessions that know from their start whether they are offline.
        for module in ("constants", "file_download"):
            template = f"huggingface_hub.{module}.HUGGINGFACE_CO_URL_TEMPLATE"
            monkeypatch.setattr(template, endpoint + "/{repo_id}/resolve/{revision}/{filename}", raising=False)
        getattr(huggingface_hub.utils, "reset_sessions", lambda: None)()

    return configure
