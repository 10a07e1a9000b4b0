"""The Hub store, with the real huggingface_hub client against a server on this machine."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path

import huggingface_hub.constants as hub_settings
import pytest
import torch
from safetensors.torch import save_file

from hub_server import HubServer
from merges import MODULES
from weft.errors import CheckpointError, DiskError
from weft.planner.catalog import InputTensor, open_checkpoint
from weft.planner.hub import HubRepository
from weft.planner.locate import locate
from weft.planner.reference import parse_reference
from weft.planner.remote_file import remote_file
from weft.planner.side_files import all_side_files

NAME = "org/tiny"
Use = Callable[..., None]
"""Points the client at an endpoint (see tests/conftest.py)."""


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("weft.planner.hub_calls.sleep", lambda seconds: None)


def tensors(layer: int) -> dict[str, torch.Tensor]:
    return {
        f"layers.{layer}.weight": torch.full((1200, 1200), float(layer)),
        f"layers.{layer}.bias": torch.ones(1200, dtype=torch.bfloat16),
    }


def model(folder: Path, note: str = "") -> Path:
    """Two shards of 5.5 MiB, with an index, a tokenizer, and a folder that is not the model's."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "note": note}))
    (folder / "tokenizer.json").write_text("{}")
    (folder / "original").mkdir()
    (folder / "original" / "params.json").write_text("{}")
    weight_map: dict[str, str] = {}
    for layer in (0, 1):
        shard = f"model-0000{layer + 1}-of-00002.safetensors"
        save_file(tensors(layer), folder / shard)
        weight_map |= dict.fromkeys(tensors(layer), shard)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def pickled_model(folder: Path) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    torch.save(tensors(0) | tensors(1), folder / "pytorch_model.bin")
    return folder


def unused_endpoint() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


def message(name: str = NAME, revision: str | None = None, commit: str | None = None) -> str:
    """Of the error that opening a model ends in: one line."""
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(HubRepository(name, revision, commit))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("storage", [False, True], ids=["direct", "redirected to storage"])
def test_headers_of_shards_cost_kilobytes(tmp_path: Path, use: Use, storage: bool) -> None:
    with HubServer({NAME: model(tmp_path / "m")}, storage=storage) as hub:
        use(hub.url)
        checkpoint = open_checkpoint(HubRepository(NAME, None, None))

    assert set(checkpoint.tensors) == set(tensors(0) | tensors(1))
    assert checkpoint.tensors["layers.1.weight"].shape == (1200, 1200)
    assert set(checkpoint.side_files) == {"tokenizer.json"}
    for shard in checkpoint.files:
        assert 0 < hub.sent(shard.name) <= 256 << 10
        assert [request.status for request in hub.requests if request.path.endswith(shard.name) and request.sent] == [206]


def test_header_of_a_bin_file_costs_kilobytes(tmp_path: Path, use: Use) -> None:
    folder = pickled_model(tmp_path / "m")
    with HubServer({NAME: folder}) as hub:
        use(hub.url)
        checkpoint = open_checkpoint(HubRepository(NAME, None, None))

    raw = (folder / "pytorch_model.bin").read_bytes()
    for name, expected in (tensors(0) | tensors(1)).items():
        found = checkpoint.tensors[name]
        assert isinstance(found, InputTensor)
        data = torch.frombuffer(bytearray(raw[found.offset : found.offset + found.nbytes]), dtype=expected.dtype)
        assert torch.equal(data.reshape(expected.shape), expected)
    assert 0 < hub.sent("pytorch_model.bin") <= 600 << 10


def test_a_store_stays_at_its_commit(tmp_path: Path, use: Use) -> None:
    with HubServer({NAME: model(tmp_path / "old", "old")}) as hub:
        use(hub.url)
        store = HubRepository(NAME, "main", None)
        new = hub.publish(NAME, model(tmp_path / "new", "new"))
        later = HubRepository(NAME, "main", None)
        resumed = HubRepository(NAME, "main", store.commit)

        assert later.commit == new != store.commit == resumed.commit
        assert json.loads(store.read("config.json"))["note"] == json.loads(resumed.read("config.json"))["note"] == "old"
        assert json.loads(later.read("config.json"))["note"] == "new"
    assert store.label == "org/tiny@main"
    assert store.identity("config.json") == f"org/tiny@{store.commit}/config.json"


def test_a_revision_with_a_slash(tmp_path: Path, use: Use) -> None:
    with HubServer({NAME: model(tmp_path / "m")}) as hub:
        other = hub.publish(NAME, model(tmp_path / "pr", "pr"), "refs/pr/1")
        use(hub.url)
        assert HubRepository(NAME, "refs/pr/1", None).commit == other
        use(unused_endpoint(), offline=True)
        assert HubRepository(NAME, "refs/pr/1", None).commit == other


@pytest.mark.parametrize("offline", [True, False], ids=["HF_HUB_OFFLINE", "unreachable"])
def test_what_is_downloaded_is_there_offline(tmp_path: Path, use: Use, offline: bool) -> None:
    folder = model(tmp_path / "m")
    with HubServer({NAME: folder}) as hub:
        use(hub.url)
        store = HubRepository(NAME, None, None)
        names = [name for name in store.sizes() if name != "tokenizer.json"]
        assert store.path("model-00001-of-00002.safetensors") is None
        store.download(names, quiet=True)
        before = len(hub.requests)
        store.download(names, quiet=True)
        assert len(hub.requests) == before

    use(unused_endpoint(), offline=offline)
    for cached in (HubRepository(NAME, None, None), HubRepository(NAME, "main", None), HubRepository(NAME, None, store.commit)):
        checkpoint = open_checkpoint(cached)
        assert cached.commit == store.commit
        assert sorted(cached.sizes()) == sorted(names)
        for file in checkpoint.files:
            path = cached.path(file.name)
            assert path is not None and path.read_bytes() == (folder / file.name).read_bytes()
            assert file.identity.startswith(store.identity(file.name))


def test_files_in_folders(tmp_path: Path, use: Use) -> None:
    folder = model(tmp_path / "m")
    for name, data in {**MODULES, "onnx/model.json": b"", "1_Pooling/.hidden/x": b""}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    wanted = {"tokenizer.json", *MODULES}
    with HubServer({NAME: folder}) as hub:
        use(hub.url)
        store = HubRepository(NAME, None, None)
        assert not any("/" in name for name in store.sizes())
        checkpoint = open_checkpoint(store)
        found = all_side_files(checkpoint)
        assert set(found) == wanted and found["1_Pooling/config.json"] == len(MODULES["1_Pooling/config.json"])
        store.download([*wanted, *(file.name for file in checkpoint.files)], quiet=True)
    use(unused_endpoint(), offline=True)
    cached = HubRepository(NAME, None, None)
    assert set(all_side_files(open_checkpoint(cached))) == wanted
    assert {name: cached.read(name) for name in MODULES} == MODULES


def test_a_stopped_download_goes_on_with_what_is_missing(tmp_path: Path, use: Use) -> None:
    first, second = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
    with HubServer({NAME: model(tmp_path / "m")}) as hub:
        use(hub.url)
        HubRepository(NAME, None, None).download([first], quiet=True)
        sent = hub.sent(first)
        HubRepository(NAME, None, None).download([first, second], quiet=True)
        assert hub.sent(first) == sent
        assert hub.sent(second) == sent


def test_no_room_is_told_before_anything_is_fetched(tmp_path: Path, use: Use, monkeypatch: pytest.MonkeyPatch) -> None:
    shard = "model-00001-of-00002.safetensors"
    folder = model(tmp_path / "m")
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("weft.planner.hub.shutil.disk_usage", lambda path: usage(10**6, 0, 10**6))
    with HubServer({NAME: folder}) as hub:
        use(hub.url)
        with pytest.raises(
            DiskError, match=r"too little disk to download 5\.50 MiB: 4\.54 MiB are missing in .*HF_HOME"
        ) as caught:
            HubRepository(NAME, None, None).download([shard], quiet=True)
        assert caught.value.missing == (folder / shard).stat().st_size - 10**6
        assert hub.sent(shard) == 0


def test_no_such_model(tmp_path: Path, use: Use, monkeypatch: pytest.MonkeyPatch) -> None:
    with HubServer({NAME: model(tmp_path / "m")}) as hub:
        use(hub.url)
        assert (
            message("org/tinny") == f"org/tinny: {hub.url} has no such model, or it is private: check the name, or set HF_TOKEN"
        )
        assert "no valid name on the Hub" in message("org/ti..ny")
        monkeypatch.setenv("HF_TOKEN", "hf_wrong")
        assert message() == f"org/tiny: {hub.url} refuses access (401): check HF_TOKEN"


def test_no_such_revision(tmp_path: Path, use: Use) -> None:
    with HubServer({NAME: model(tmp_path / "m")}) as hub:
        use(hub.url)
        assert message(revision="v9") == f"org/tiny@v9: {hub.url}/org/tiny has no revision 'v9'"
        gone = "0" * 40
        assert message(commit=gone) == f"org/tiny: {hub.url}/org/tiny has no revision '{gone}'"


def test_gated_and_private_models_want_a_token(tmp_path: Path, use: Use, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = model(tmp_path / "m")
    with HubServer(
        {"org/gated": folder, "org/private": folder}, gated={"org/gated"}, private={"org/private"}, storage=True
    ) as hub:
        use(hub.url)
        assert f"gated: accept the terms on its page ({hub.url}/org/gated) and set HF_TOKEN" in message("org/gated")
        assert "or it is private: check the name, or set HF_TOKEN" in message("org/private")
        monkeypatch.setenv("HF_TOKEN", "hf_right")
        for name in ("org/gated", "org/private"):
            open_checkpoint(HubRepository(name, None, None))
        assert not any(request.authorized for request in hub.requests if request.path.startswith("/stored"))


def test_a_file_that_is_not_there(tmp_path: Path, use: Use) -> None:
    with HubServer({NAME: model(tmp_path / "m")}) as hub:
        use(hub.url)
        store = HubRepository(NAME, None, None)
        for attempt in (store.read, store.open, lambda name: store.download([name])):
            with pytest.raises(CheckpointError, match=r"org/tiny/model\.bin: not there"):
                attempt("model.bin")


def test_a_large_file_is_not_small(tmp_path: Path, use: Use, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("weft.planner.hub.MAX_SMALL_FILE", 1 << 20)
    shard = "model-00001-of-00002.safetensors"
    with HubServer({NAME: model(tmp_path / "m")}) as hub:
        use(hub.url)
        with pytest.raises(CheckpointError, match="too large for such a file"):
            HubRepository(NAME, None, None).read(shard)
        assert hub.sent(shard) == 0


def test_offline_and_not_in_the_cache(use: Use) -> None:
    use(unused_endpoint(), offline=True)
    assert message() == (
        f"org/tiny: not in the local cache ({hub_settings.HF_HUB_CACHE}), and HF_HUB_OFFLINE forbids fetching it"
    )


def test_unreachable_and_not_in_the_cache(use: Use) -> None:
    endpoint = unused_endpoint()
    use(endpoint)
    assert message().startswith(f"org/tiny: cannot be fetched from {endpoint}, and is not in the local cache: ")


def test_a_hub_that_fails_between_two_reads(tmp_path: Path, use: Use) -> None:
    with HubServer({NAME: model(tmp_path / "m")}) as hub:
        use(hub.url)
        store = HubRepository(NAME, None, None)
        file = store.open("model-00001-of-00002.safetensors")
        use(unused_endpoint())
        with pytest.raises(CheckpointError, match=r"org/tiny/model-00001-of-00002\.safetensors: cannot be fetched from"):
            file.read(8)


def test_a_server_without_ranges_is_not_read_to_the_end(tmp_path: Path, use: Use) -> None:
    folder = tmp_path / "m"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    with (folder / "model.safetensors").open("wb") as file:
        file.truncate(64 << 20)
    with HubServer({NAME: folder}, ranges=False) as hub:
        use(hub.url)
        assert "does not serve parts of files" in message()
    assert hub.sent("model.safetensors") < 32 << 20


def test_a_server_without_ranges_can_serve_small_files(tmp_path: Path, use: Use) -> None:
    folder = tmp_path / "m"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    save_file({"w": torch.ones(10)}, folder / "model.safetensors")
    with HubServer({NAME: folder}, ranges=False) as hub:
        use(hub.url)
        assert set(open_checkpoint(HubRepository(NAME, None, None)).tensors) == {"w"}


def test_the_environment_is_honoured(tmp_path: Path) -> None:
    """In a process of its own: HF_ENDPOINT, HF_HOME, HF_TOKEN and HF_HUB_OFFLINE as a user sets them."""
    script = (
        "import sys; from weft.planner.locate import locate; from weft.planner.reference import parse_reference\n"
        "assert 'huggingface_hub' not in sys.modules, 'a model in a folder needs no Hub'\n"
        "store = locate(parse_reference('org/tiny@main'))\n"
        "store.download(['config.json', 'tokenizer.json'], quiet=True)\n"
        "print(store.commit, store.path('tokenizer.json'))"
    )
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
    with HubServer({NAME: model(tmp_path / "m")}, private={NAME}) as hub:
        settings = kept | {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_TOKEN": hub.token}

        def run(**more: str) -> str:
            command = [sys.executable, "-c", script]
            return subprocess.run(command, env=settings | more, cwd=tmp_path, check=True, capture_output=True, text=True).stdout

        online = run()
        seen = len(hub.requests)
        assert seen and str(tmp_path / "home") in online
        assert run(HF_HUB_OFFLINE="1") == online
        assert len(hub.requests) == seen


def test_a_name_leads_here(tmp_path: Path, use: Use, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with HubServer({NAME: model(tmp_path / "m")}) as hub:
        use(hub.url)
        store = locate(parse_reference(NAME))
    assert isinstance(store, HubRepository) and store.label == NAME


def test_a_remote_file_reads_as_a_file_does() -> None:
    data = bytes(range(256)) * 8000
    asked: list[tuple[int, int]] = []

    def fetch(start: int, end: int) -> bytes:
        asked.append((start, end))
        return data[start:end]

    file = remote_file(len(data), fetch)
    for start, length in (
        (0, 8),
        (8, 100),
        (1_000_000, 30),
        (1_000_010, 5000),
        (900_000, 400_000),
        (len(data) - 5, 50),
        (10**7, 5),
    ):
        file.seek(start)
        assert file.read(length) == data[start : start + length]
    file.seek(-22, os.SEEK_END)
    assert file.read() == data[-22:]
    file.seek(-10, os.SEEK_CUR)
    assert file.read(3) == data[-10:-7]
    assert len(asked) == 5
    assert asked[0] == (0, 256 << 10)
    assert asked[1][1] - asked[1][0] == 4 << 10
    with pytest.raises(OSError, match="before the file's start"):
        file.seek(-1)


def test_an_empty_remote_file() -> None:
    assert remote_file(0, lambda start, end: b"").read(8) == b""
