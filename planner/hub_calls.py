"""Calls to the Hub: made again where that may help, after a pause, and given up where nothing comes of them any more."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from time import monotonic, sleep
from typing import Any, TypeVar

import huggingface_hub.utils

from .hub_errors import FAILURES, retry_after, transient

T = TypeVar("T")

ATTEMPTS = 4

LONGEST_PAUSE = 60.0
"""Seconds that are waited at most between two attempts, whatever the Hub asks for."""

PATIENCE = 60.0
"""Seconds without progress after which a call is given up. A byte now and then is no progress; a slow line is."""

DOWNLOAD_PATIENCE = 300.0
"""The same for a download, which huggingface_hub writes in pieces of 10 MB."""

_LEAVE = 15.0
"""Seconds that a call has to end once its connections are closed."""


class Stalled(TimeoutError):
    """A call of which nothing came for too long. `ended`: it holds nothing any more, so it may be made again."""

    def __init__(self, seconds: float, ended: bool) -> None:
        super().__init__(f"nothing, or next to nothing, came for {seconds:g} seconds")
        self.ended = ended


def ask(
    call: Callable[[], T],
    *,
    again: Callable[[Exception], bool] = transient,
    progress: Callable[[], object] = lambda: None,
    patience: float | None = None,
    locks: bool = False,
) -> T:
    """What a call returns, which is made up to ATTEMPTS times while it ends in an error after which `again` says yes.

    `progress` is something that changes while the call gets on. Of a call that `locks` something, another attempt would wait for
    one that has not ended. Raises what the last attempt raises, or Stalled.
    """
    for attempt in range(ATTEMPTS - 1):
        try:
            return _watched(call, progress, PATIENCE if patience is None else patience)
        except FAILURES as error:
            if not again(error) or (locks and isinstance(error, Stalled) and not error.ended):
                raise
            wanted = retry_after(error)
            sleep(min(LONGEST_PAUSE, 2.0**attempt if wanted is None else wanted))
    return _watched(call, progress, PATIENCE if patience is None else patience)


def _watched(call: Callable[[], T], progress: Callable[[], object], patience: float) -> T:
    """A call in a thread of its own, because huggingface_hub gives up only where no byte at all comes."""
    outcome: Future[T] = Future()

    def work() -> None:
        try:
            outcome.set_result(call())
        except BaseException as error:  # raised again where it is waited for
            outcome.set_exception(error)

    thread = threading.Thread(target=work, name="weft-hub", daemon=True)
    thread.start()
    seen, since = progress(), monotonic()
    try:
        while thread.is_alive():
            thread.join(min(1.0, patience / 4))
            now = monotonic()
            if (latest := progress()) != seen:
                seen, since = latest, now
            if thread.is_alive() and now - since > patience:
                break
        else:
            return outcome.result()
    except KeyboardInterrupt:  # nobody waits for it any more
        _close_connections()
        raise
    _close_connections()
    thread.join(min(_LEAVE, patience))
    raise Stalled(patience, ended=not thread.is_alive())


def _close_connections() -> None:
    """End what the library's shared client is waiting for; it makes another one when it is asked again."""
    utils: Any = huggingface_hub.utils
    close = getattr(utils, "close_session", None) or getattr(utils, "reset_sessions", None)  # after and before version 1
    if close is not None:
        close()
