"""A Hub that fails now and then, answers with nonsense, sends byte by byte, or sends other bytes than it has."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hub_server import HubServer
from merges import linear, plan, small_tensors, write_model
from weft.engine.difference import fetch as fetch_model
from weft.engine.fetch import fetch
from weft.errors import CheckpointError, InputChanged
from weft.planner.catalog import open_checkpoint
from weft.planner.content_digest import has_digest
from weft.planner.hub import HubRepository

BASE, OTHER, WEIGHTS = "org/base", "org/other", "model.safetensors"
Use = Callable[..., None]


@pytest.fixture
def hub(tmp_path: Path, use: Use) -> Iterator[HubServer]:
    models = {BASE: write_model(tmp_path / "base", small_tensors(1)), OTHER: write_model(tmp_path / "other", small_tensors(2))}
    with HubServer(models) as server:
        use(server.url)
        yield server


@pytest.fixture(autouse=True)
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What was waited for between attempts, without the waiting."""
    found: list[float] = []
    monkeypatch.setattr("weft.planner.hub_calls.sleep", found.append)
    return found


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("weft.planner.hub_calls.PATIENCE", 0.4)
    monkeypatch.setattr("weft.planner.hub_calls.DOWNLOAD_PATIENCE", 0.4)


def refused(act: Callable[[], object]) -> str:
    """The message: one line."""
    with pytest.raises(CheckpointError) as caught:
        act()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def opened() -> HubRepository:
    store = HubRepository(BASE, None, None)
    open_checkpoint(store)
    return store


def downloaded() -> HubRepository:
    store = opened()
    store.download(list(store.sizes()), quiet=True)
    assert all(store.path(name) is not None for name in store.sizes())
    return store


@pytest.mark.parametrize(
    ("request_of", "statuses"),
    [
        *(("/api/models", statuses) for statuses in ([500], [429], [None], [503, None, 502])),
        *((path, [status]) for path in ("/resolve/main/config.json", f"/{WEIGHTS}") for status in (500, 429, None)),
    ],
    ids=str,
)
def test_what_fails_now_and_then_is_asked_for_again(hub: HubServer, request_of: str, statuses: list[int | None]) -> None:
    hub.troubles[request_of] = list(statuses)
    downloaded()
    assert not hub.troubles[request_of]


def test_a_download_that_fails_now_and_then(hub: HubServer) -> None:
    store = opened()
    hub.troubles[WEIGHTS] = [500, None]
    store.download([WEIGHTS], quiet=True)
    assert store.path(WEIGHTS) is not None and not hub.troubles[WEIGHTS]


@pytest.mark.parametrize("status", [500, 429, None])
def test_a_hub_that_never_answers_as_it_should(hub: HubServer, status: int | None) -> None:
    hub.troubles["/api/models"] = [status] * 1000
    assert refused(opened).startswith(f"{BASE}: ")
    assert 3 <= len(hub.requests) <= 8


def test_a_refusal_is_final(hub: HubServer, pauses: list[float]) -> None:
    hub.troubles["/api/models"] = [404]
    refused(opened)
    assert pauses == []


@pytest.mark.parametrize(("asked", "waited"), [("3", 3.0), ("0", 0.0), ("86400", 60.0), ("soon", 1.0), (None, 1.0)])
def test_how_long_the_hub_asks_to_wait(hub: HubServer, pauses: list[float], asked: str | None, waited: float) -> None:
    hub.troubles["/api/models"], hub.retry_after = [429], asked
    opened()
    assert pauses == [waited]


def test_nobody_at_the_address_is_not_waited_for(use: Use, pauses: list[float]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        use(f"http://127.0.0.1:{free.getsockname()[1]}")
        refused(opened)
    assert pauses == []


def of_a_file(**more: object) -> Callable[[Any], Any]:
    def change(listing: Any) -> Any:
        files = [file | more if file["rfilename"] == WEIGHTS else file for file in listing["siblings"]]
        return listing | {"siblings": files}

    return change


ODD: dict[str, Callable[[Any], Any]] = {
    "a list": lambda listing: [listing],
    "a text": lambda listing: "Sign in to this network",
    "null": lambda listing: None,
    "a number": lambda listing: 7,
    "no files": lambda listing: {key: value for key, value in listing.items() if key != "siblings"},
    "files null": lambda listing: listing | {"siblings": None},
    "files a map": lambda listing: listing | {"siblings": {"model.safetensors": 3}},
    "files a number": lambda listing: listing | {"siblings": 3},
    "files texts": lambda listing: listing | {"siblings": ["model.safetensors"]},
    "a file null": lambda listing: listing | {"siblings": [None]},
    "no commit": lambda listing: listing | {"sha": None},
    "an odd commit": lambda listing: listing | {"sha": "../../main"},
    "a commit that is no text": lambda listing: listing | {"sha": 40 * [0]},
    "a name that is no text": of_a_file(rfilename=["model.safetensors"]),
    "a name null": of_a_file(rfilename=None),
    "a size null": of_a_file(size=None),
    "a size below zero": of_a_file(size=-1),
    "a size beyond all": of_a_file(size=1 << 70),
    "a size that is a text": of_a_file(size="12"),
    "a size that is a fraction": of_a_file(size=1.5),
    "a size true": of_a_file(size=True),
    "lfs a list": of_a_file(lfs=[1]),
    "lfs without a checksum": of_a_file(lfs={"size": 1}),
}


@pytest.mark.parametrize("change", ODD.values(), ids=list(ODD))
def test_listings_of_odd_types(hub: HubServer, change: Callable[[Any], Any]) -> None:
    hub.listing = change
    assert refused(opened).startswith(BASE)


@pytest.mark.parametrize("digest", [None, 7, ["x"], "", "z" * 64, "a" * 63])
def test_a_checksum_that_is_none_is_as_no_checksum(hub: HubServer, digest: object) -> None:
    hub.listing = of_a_file(lfs={"size": 1, "sha256": digest, "pointerSize": 1})
    assert any("gives no checksum of model.safetensors" in note for note in downloaded().notes())


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("what", ["", "config.json", WEIGHTS])
def test_bytes_that_drip(hub: HubServer, what: str) -> None:
    """Each comes well within a socket's time limit; all of them would take minutes."""
    hub.slow = {what}
    message = refused(opened)
    assert message.startswith(BASE) and "next to nothing, came for 0.4 seconds" in message


@pytest.mark.usefixtures("impatient")
def test_a_download_that_drips(hub: HubServer) -> None:
    store = opened()
    hub.slow = {WEIGHTS}
    assert f"{BASE}/{WEIGHTS}: " in refused(lambda: store.download([WEIGHTS], quiet=True))


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("what", ["", WEIGHTS])
def test_bytes_that_drip_for_a_while(hub: HubServer, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.slow = {what}
    monkeypatch.setattr("weft.planner.hub_calls.sleep", lambda seconds: hub.slow.clear())
    downloaded()


def test_bytes_that_were_changed_on_the_way(hub: HubServer) -> None:
    hub.flipped = {WEIGHTS: -1}
    made = plan(linear(Path(BASE), Path(OTHER)))
    message = refused(lambda: fetch(made, quiet=True))
    path = made.stores[BASE].path(WEIGHTS)
    assert path is not None
    assert message.startswith(f"{BASE}/{WEIGHTS}: its bytes are not those that the Hub has") and str(path.resolve()) in message

    hub.flipped = {}
    for name in (BASE, OTHER):  # as the message says
        blob = plan(linear(Path(BASE), Path(OTHER))).stores[name].path(WEIGHTS)
        assert blob is not None
        blob.resolve().unlink()
    assert len(fetch(plan(linear(Path(BASE), Path(OTHER))), quiet=True)) == 2


@pytest.mark.parametrize("offline", [False, True])
def test_bytes_that_changed_in_the_cache(hub: HubServer, use: Use, offline: bool) -> None:
    """Also where the Hub is away: the cache's names are checksums. And also if an earlier version of the file was compared."""
    fetch(plan(linear(Path(BASE), Path(OTHER))), quiet=True)
    path = HubRepository(OTHER, None, None).path(WEIGHTS)
    assert path is not None
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.resolve().write_bytes(data)
    use(hub.url, offline=offline)
    assert f"{OTHER}/{WEIGHTS}: its bytes" in refused(lambda: fetch(plan(linear(Path(BASE), Path(OTHER))), quiet=True))
    store = HubRepository(OTHER, None, None)
    assert f"{OTHER}/{WEIGHTS}: its bytes" in refused(lambda: fetch_model(open_checkpoint(store), quiet=True))


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_small_files_that_were_changed_on_the_way(hub: HubServer, name: str) -> None:
    hub.flipped = {name: -1}
    assert f"{BASE}/{name}: its bytes are not those" in refused(lambda: opened().read(name))


def test_side_files_that_were_changed_on_the_way(hub: HubServer) -> None:
    hub.flipped = {"generation_config.json": -1}
    made = plan(linear(Path(BASE), Path(OTHER)))
    assert f"{BASE}/generation_config.json: its bytes are not those" in refused(lambda: fetch(made, quiet=True))


def test_a_header_that_was_changed_on_the_way(hub: HubServer, tmp_path: Path) -> None:
    """The file that comes later is right; the plan is not."""
    place = (tmp_path / "other" / WEIGHTS).read_bytes().index(b"model.norm") + len("model.norm.weigh")
    hub.flipped = {WEIGHTS: place}
    made = plan({"merge_method": "passthrough", "models": [{"model": OTHER}]})
    assert "model.norm.weighu" in {recipe.name for recipe in made.recipes}
    hub.flipped = {}
    with pytest.raises(InputChanged, match=r"org/other/model\.safetensors: its header is not the one that weft planned with"):
        fetch(made, quiet=True)


def test_a_file_is_compared_once(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[int] = []

    def counting(file: Any, size: int, *more: Any) -> bool:
        compared.append(size)
        return has_digest(file, size, *more)

    monkeypatch.setattr("weft.planner.hub_check.has_digest", counting)
    for _ in range(2):
        fetch(plan(linear(Path(BASE), Path(OTHER))), quiet=True)
    size = HubRepository(BASE, None, None).sizes()[WEIGHTS]
    assert compared.count(size) == 2, "each of two models once"


def test_a_mirror_that_gives_no_checksums(tmp_path: Path, use: Use) -> None:
    folder = write_model(tmp_path / "base", small_tensors(1))
    with HubServer({BASE: folder}, digests=False) as hub:
        use(hub.url)
        made = plan({"merge_method": "passthrough", "models": [{"model": BASE}]})
        assert f"{BASE}: {hub.url} gives no checksum of {WEIGHTS}: its bytes are used unchecked" in made.notes
        fetch(made, quiet=True)


def test_an_older_version_from_the_cache_is_not_used_in_silence(hub: HubServer, use: Use) -> None:
    commit = downloaded().commit
    hub.troubles["/api/models"] = [503] * 1000
    assert commit is not None
    (note,) = opened().notes()
    assert note.startswith(f"{BASE}: {hub.url} cannot be reached: the version that the local cache has ({commit[:8]}) is used")
    assert not HubRepository(BASE, None, commit).notes(), "a commit is one version only"
    use(hub.url, offline=True)
    assert not opened().notes(), "as it was asked for"


def test_checksums_are_those_of_the_hub(hub: HubServer, tmp_path: Path) -> None:
    """The stand-in's are made as the real Hub's are: for a known file they are known."""
    from hub_server import contents

    (tmp_path / "hello.json").write_bytes(b"hello\n")
    assert contents(tmp_path / "hello.json") == "ce013625030ba8dba906f756967f9e9ca394464a"  # git hash-object
    assert json.loads((tmp_path / "base" / "config.json").read_text())["model_type"] == "llama"
