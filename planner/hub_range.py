"""A byte range of a file on the Hub, over HTTP, asked for again where that may help."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from huggingface_hub import constants
from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

from .hub_errors import FAILURES, transient

_ATTEMPTS = 3


def get_range(url: str, start: int, end: int) -> tuple[int, bytes]:
    """Status and body of the answer to a request for the bytes [start, end). Raises what huggingface_hub raises."""
    headers = {**build_hf_headers(), "Range": f"bytes={start}-{end - 1}", "Accept-Encoding": "identity"}
    for attempt in range(_ATTEMPTS - 1):
        try:
            return _get(url, headers, end - start)
        except FAILURES as error:
            if not transient(error):
                raise
            time.sleep(2**attempt)
    return _get(url, headers, end - start)


def _get(url: str, headers: Mapping[str, str], limit: int) -> tuple[int, bytes]:
    """Status and body of an answer; one that is larger than `limit` is cut off unread, at one byte more than the limit."""
    session: Any = get_session()
    options = {"headers": headers, "timeout": constants.HF_HUB_DOWNLOAD_TIMEOUT}
    # huggingface_hub gives an httpx client, and gave a requests session before its version 1.
    httpx = callable(getattr(session, "stream", None))
    with session.stream("GET", url, **options) if httpx else session.get(url, stream=True, **options) as response:
        hf_raise_for_status(response)
        body = bytearray()
        for chunk in response.iter_bytes(1 << 16) if httpx else response.iter_content(1 << 16):
            body += chunk
            if len(body) > limit:
                break
        return response.status_code, bytes(body[: limit + 1])
