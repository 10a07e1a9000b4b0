"""A Hugging Face Hub on this machine, enough of it for the real client: model info, and files with ETags and byte ranges.

with HubServer({"org/name": folder}) as hub:
    ...  # point huggingface_hub at hub.url
    hub.sent("model.safetensors")  # bytes of it that went out
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import cache, partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Literal
from urllib.parse import unquote, urlsplit

_INFO = re.compile(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?")
_FILE = re.compile(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)")
_STORED = re.compile(r"/stored/([0-9a-f]{40})/(.+)")
_RANGE = re.compile(r"bytes=(\d+)-(\d*)")
_CHUNK = 1 << 16


@dataclass(frozen=True, slots=True)
class Request:
    """One request, as answered: `sent` counts the body's bytes."""

    method: str
    path: str
    range: str | None
    status: int
    sent: int
    authorized: bool


@dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes | Path = b""
    start: int = 0
    length: int = 0
    drip: float = 0


class HubServer:
    """Serves model folders; what they hold when they are published must not change later.

    `gated` models show their info but no file without the token. With `private`, nothing is shown without it. `ranges=False`
    answers every request for a part with the whole. `storage=True` sends weights from another origin, as the real Hub does.
    `digests=False` lists files as some mirrors do, without checksums.

    It can misbehave. Of `flipped` files the byte at a position goes out changed. The next requests whose paths hold a text are
    answered with the statuses, or lost (None), that `troubles` has for it. `listing` changes what a listing says. `drip` seconds
    pass before each byte of the files, and of the listings (""), that `slow` names.
    """

    def __init__(
        self,
        models: Mapping[str, Path],
        *,
        gated: Collection[str] = (),
        private: Collection[str] = (),
        token: str = "hf_right",
        ranges: bool = True,
        storage: bool = False,
        digests: bool = True,
    ) -> None:
        self.gated, self.private, self.token = frozenset(gated), frozenset(private), token
        self.ranges = ranges
        self.digests = digests
        self.flipped: dict[str, int] = {}
        self.troubles: dict[str, list[int | None]] = {}
        self.retry_after: str | None = None
        self.listing: Callable[[Any], Any] = lambda listing: listing
        self.slow: set[str] = set()
        self.drip = 0.05
        self.stopped = threading.Event()
        self.requests: list[Request] = []
        self._commits: dict[str, Path] = {}
        self._revisions: dict[tuple[str, str], str] = {}
        self._servers = [ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, self)) for _ in range(2 if storage else 1)]
        for name, folder in models.items():
            self.publish(name, folder)

    @property
    def url(self) -> str:
        """The endpoint."""
        return f"http://127.0.0.1:{self._servers[0].server_port}"

    def publish(self, name: str, folder: Path, revision: str = "main") -> str:
        """Make a revision of a model point to what a folder holds; its commit."""
        digest = hashlib.sha1(name.encode())
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            digest.update(path.relative_to(folder).as_posix().encode() + _hash(path).encode())
        commit = digest.hexdigest()
        self._commits[commit] = folder
        self._revisions[name, revision] = self._revisions[name, commit] = commit
        return commit

    def sent(self, name: str) -> int:
        """How many bytes of files of this name went out."""
        return sum(request.sent for request in self.requests if request.path.endswith(f"/{name}"))

    def __enter__(self) -> HubServer:
        for server in self._servers:
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stopped.set()
        for server in self._servers:
            server.shutdown()
            server.server_close()

    def answer(self, path: str, byte_range: str | None, token: str | None) -> _Answer:
        """What a request gets."""
        if match := _INFO.fullmatch(path):
            return self._info(match[1], unquote(match[2] or "main"), token)
        if match := _FILE.fullmatch(path):
            return self._file(match[1], unquote(match[2]), unquote(match[3]), byte_range, token)
        if len(self._servers) > 1 and (match := _STORED.fullmatch(path)):
            return self._bytes(self._commits[match[1]] / unquote(match[2]), {}, byte_range)
        return _refusal(404, "", "Not Found")

    def _info(self, name: str, revision: str, token: str | None) -> _Answer:
        refusal = self._refuse(name, revision, token)
        if refusal:
            return refusal
        commit = self._revisions[name, revision]
        folder = self._commits[commit]
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        siblings = [_sibling(path, path.relative_to(folder).as_posix(), self.digests) for path in files]
        body = json.dumps(self.listing({"id": name, "modelId": name, "sha": commit, "siblings": siblings})).encode()
        return _Answer(200, {"Content-Type": "application/json"}, body, 0, len(body), self.drip if "" in self.slow else 0)

    def _file(self, name: str, revision: str, file: str, byte_range: str | None, token: str | None) -> _Answer:
        refusal = self._refuse(name, revision, token)
        if refusal:
            return refusal
        if name in self.gated and token != self.token:
            return _refusal(403 if token else 401, "GatedRepo", f"Access to model {name} is restricted.")
        commit = self._revisions[name, revision]
        path = self._commits[commit] / file
        headers = {"X-Repo-Commit": commit}
        if not path.is_file():
            return _refusal(404, "EntryNotFound", "Entry not found", headers)
        if len(self._servers) > 1 and path.suffix in (".safetensors", ".bin"):
            elsewhere = f"http://127.0.0.1:{self._servers[1].server_port}/stored/{commit}/{file}"
            linked = {"X-Linked-Etag": f'"{self._etag(path)}"', "X-Linked-Size": str(path.stat().st_size)}
            return _Answer(302, headers | linked | {"Location": elsewhere})
        return self._bytes(path, headers, byte_range)

    def _bytes(self, path: Path, headers: Mapping[str, str], byte_range: str | None) -> _Answer:
        size = path.stat().st_size
        headers = {**headers, "ETag": f'"{self._etag(path)}"', "Content-Type": "application/octet-stream"}
        match = _RANGE.fullmatch(byte_range) if byte_range and self.ranges else None
        if match is None:
            return _Answer(200, headers, self._body(path), 0, size, self._pause(path))
        start, end = int(match[1]), min(int(match[2] or size), size - 1)
        if start > end:
            return _refusal(416, "", "Range not satisfiable", {"Content-Range": f"bytes */{size}"})
        return _Answer(
            206,
            headers | {"Content-Range": f"bytes {start}-{end}/{size}"},
            self._body(path),
            start,
            end + 1 - start,
            self._pause(path),
        )

    def _etag(self, path: Path) -> str:
        return contents(path) if self.digests else f"mirror-{contents(path)[:12]}"

    def _body(self, path: Path) -> bytes | Path:
        if path.name not in self.flipped:
            return path
        data = bytearray(path.read_bytes())
        data[self.flipped[path.name]] ^= 1
        return bytes(data)

    def _pause(self, path: Path) -> float:
        return self.drip if path.name in self.slow else 0

    def trouble(self, path: str) -> int | Literal[False] | None:
        """The status with which a request fails, None where its connection is lost, or False where nothing is wrong."""
        for text, statuses in self.troubles.items():
            if text in path and statuses:
                return statuses.pop(0)
        return False

    def _refuse(self, name: str, revision: str, token: str | None) -> _Answer | None:
        if token not in (None, self.token):
            return _refusal(401, "", "Invalid credentials in Authorization header")
        if (name, "main") not in self._revisions or (name in self.private and token is None):
            # The Hub does not tell strangers whether a model exists.
            return _refusal(404 if token else 401, "RepoNotFound", "Repository not found")
        if (name, revision) not in self._revisions:
            return _refusal(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return None


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, hub: HubServer, *args: object) -> None:
        self.hub = hub
        super().__init__(*args)  # type: ignore[arg-type]

    def do_GET(self) -> None:
        self._respond()

    def do_HEAD(self) -> None:
        self._respond()

    def log_message(self, format: str, *args: object) -> None:
        """Tests read `requests` instead."""

    def _respond(self) -> None:
        path = urlsplit(self.path).path
        byte_range = self.headers.get("Range")
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None
        trouble = self.hub.trouble(path)
        if trouble is None:
            self.hub.requests.append(Request(self.command, path, byte_range, 0, 0, token is not None))
            self.close_connection = True
            return
        answer = self.hub.answer(path, byte_range, token)
        if trouble:
            wait = {"Retry-After": self.hub.retry_after} if self.hub.retry_after else {}
            answer = _refusal(trouble, "", "out of order", wait)
        sent = 0
        try:
            self.send_response(answer.status)
            for key, value in answer.headers.items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(answer.length))
            self.end_headers()
            if self.command == "GET":
                sent = self._send(answer)
        except ConnectionError:
            self.close_connection = True
        self.hub.requests.append(Request(self.command, path, byte_range, answer.status, sent, token is not None))

    def _send(self, answer: _Answer) -> int:
        """Bytes that went out before the client had enough."""
        if answer.drip:
            data = answer.body if isinstance(answer.body, bytes) else answer.body.read_bytes()
            for number, byte in enumerate(data[answer.start :][: answer.length]):
                self.wfile.write(bytes([byte]))
                self.hub.stopped.wait(answer.drip)
                if self.hub.stopped.is_set():
                    self.close_connection = True
                    return number
            return answer.length
        if isinstance(answer.body, bytes):
            self.wfile.write(answer.body[answer.start :][: answer.length])
            return answer.length
        sent = 0
        with answer.body.open("rb") as file:
            file.seek(answer.start)
            while sent < answer.length:
                try:
                    sent += self.wfile.write(file.read(min(_CHUNK, answer.length - sent)))
                except ConnectionError:
                    self.close_connection = True
                    break
        return sent


def _refusal(status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> _Answer:
    body = json.dumps({"error": message}).encode()
    named = {"X-Error-Code": code} if code else {}
    return _Answer(status, {**(headers or {}), **named, "X-Error-Message": message}, body, 0, len(body))


def _sibling(path: Path, name: str, digests: bool) -> dict[str, object]:
    size = path.stat().st_size
    if not digests:
        return {"rfilename": name, "size": size}
    sibling: dict[str, object] = {"rfilename": name, "size": size, "blobId": _git(path)}
    if path.suffix in (".safetensors", ".bin"):
        sibling["lfs"] = {"sha256": contents(path), "size": size, "pointerSize": 134}
    return sibling


def contents(path: Path) -> str:
    """What the Hub calls a file's contents: large ones by their SHA-256, small ones as git does."""
    return _hash(path, "sha256") if path.suffix in (".safetensors", ".bin") else _git(path)


@cache
def _git(path: Path) -> str:
    data = path.read_bytes()
    return hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()


@cache
def _hash(path: Path, kind: str = "sha1") -> str:
    return hashlib.new(kind, path.read_bytes()).hexdigest()
