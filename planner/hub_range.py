"""A byte range of a file on the Hub, over HTTP, asked for again where that may help."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from huggingface_hub import constants
from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

from .hub_calls import ask

_CHUNK = 1 << 16


def get_range(url: str, start: int, end: int) -> tuple[int, bytes]:
    """Status and body of the answer to a request for the bytes [start, end). Raises what huggingface_hub raises, or Stalled."""
    headers = {**build_hf_headers(), "Range": f"bytes={start}-{end - 1}", "Accept-Encoding": "identity"}
    body = bytearray()

    def get() -> tuple[int, bytes]:
        nonlocal body
        body = bytearray()
        return _get(url, headers, end - start, body)

    return ask(get, progress=lambda: len(body) // _CHUNK)


def _get(url: str, headers: Mapping[str, str], limit: int, body: bytearray) -> tuple[int, bytes]:
    """Status and body of an answer; one that is larger than `limit` is cut off unread, at one byte more than the limit.

    `body` grows meanwhile.
    """
    session: Any = get_session()
    options = {"headers": headers, "timeout": constants.HF_HUB_DOWNLOAD_TIMEOUT}
    # huggingface_hub gives an httpx client, and gave a requests session before its version 1.
    httpx = callable(getattr(session, "stream", None))
    with session.stream("GET", url, **options) if httpx else session.get(url, stream=True, **options) as response:
        hf_raise_for_status(response)
        for chunk in response.iter_bytes(_CHUNK) if httpx else response.iter_content(_CHUNK):
            body += chunk
            if len(body) > limit:
                break
        if len(body) < limit:
            raise ConnectionError(f"{len(body)} bytes came, {limit} were asked for")
        return response.status_code, bytes(body[: limit + 1])
