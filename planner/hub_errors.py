"""What went wrong between here and the Hub, in one line, and whether to ask again."""

from __future__ import annotations

import errno
import socket
import time
from contextlib import suppress
from email.utils import parsedate_to_datetime

from huggingface_hub import constants
from huggingface_hub.errors import (
    DisabledRepoError,
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

FAILURES: tuple[type[Exception], ...] = (OSError, ValueError, RuntimeError, EntryNotFoundError, *HfHubHTTPError.__bases__)
"""What huggingface_hub raises. Its HTTP error's base is that of the HTTP library beneath, which changed between versions."""

_TRANSIENT = frozenset({408, 429, 500, 502, 503, 504})

_OF_THE_NETWORK = frozenset({errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN, errno.EHOSTDOWN})


def reason(error: BaseException, name: str, revision: str) -> str:
    """What failed and what to do, in one line, for whatever huggingface_hub raised about a revision of a model."""
    endpoint = constants.ENDPOINT
    match error:
        case LocalEntryNotFoundError() if error.__cause__ is not None:
            return reason(error.__cause__, name, revision)
        case OfflineModeIsEnabled() | LocalEntryNotFoundError():
            return f"not in the local cache ({constants.HF_HUB_CACHE}), and HF_HUB_OFFLINE forbids fetching it"
        case GatedRepoError():
            return f"gated: accept the terms on its page ({endpoint}/{name}) and set HF_TOKEN to a token of that account"
        case RepositoryNotFoundError():
            return f"{endpoint} has no such model, or it is private: check the name, or set HF_TOKEN"
        case DisabledRepoError():
            return f"{endpoint} has disabled this model"
        case RevisionNotFoundError():
            return f"{endpoint}/{name} has no revision '{revision}'"
        case EntryNotFoundError():
            return "not there"
        case HFValidationError():
            return f"no valid name on the Hub: {_line(error)}"
        case HfHubHTTPError():
            return _refusal(error.response.status_code)
        case OSError(errno=int()) if error.filename is not None:
            return f"cannot be stored in the local cache: {error.strerror}: {error.filename}"
    return f"cannot be fetched from {endpoint}, and is not in the local cache: {_line(error)}"


def _refusal(status: int) -> str:
    if status in (401, 403):
        return f"{constants.ENDPOINT} refuses access ({status}): check HF_TOKEN"
    if status == 429:
        return f"{constants.ENDPOINT} has had too many requests from here (429): try again later, or set HF_TOKEN"
    return f"{constants.ENDPOINT} answered with an error ({status}): try again later"


def unreachable(error: Exception) -> bool:
    """Whether the Hub did not answer, or not as itself, rather than answered that it will not."""
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code in _TRANSIENT
    return not isinstance(error, HFValidationError)


def transient(error: BaseException) -> bool:
    """Whether the same request may succeed a moment later."""
    match error:
        case OfflineModeIsEnabled() | HFValidationError():
            return False
        case LocalEntryNotFoundError():
            return error.__cause__ is not None and transient(error.__cause__)
        case EntryNotFoundError():
            return False
        case HfHubHTTPError():
            return error.response is not None and error.response.status_code in _TRANSIENT
        case ConnectionError() | TimeoutError() | socket.gaierror():
            return True
        case OSError(errno=int()):
            return error.errno in _OF_THE_NETWORK  # else it is the local disk's
    return True


def nobody_there(error: BaseException | None) -> bool:
    """Whether nothing answers at the Hub's address, as on a train: then to ask again soon is in vain."""
    while error is not None:
        if isinstance(error, ConnectionRefusedError | socket.gaierror):
            return True
        if isinstance(error, OSError) and error.errno in _OF_THE_NETWORK:
            return True
        error = error.__cause__ or error.__context__
    return False


def retry_after(error: BaseException) -> float | None:
    """The seconds that the Hub asks to wait before the next request, if it does."""
    response = getattr(error, "response", None)
    if response is None:
        return None if error.__cause__ is None else retry_after(error.__cause__)
    text = str(response.headers.get("Retry-After", "")).strip()
    with suppress(ValueError, OverflowError):
        return float(int(text))
    with suppress(ValueError, TypeError, OverflowError):
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    return None


def _line(error: BaseException) -> str:
    """An error's first line, without the colon that would announce more."""
    lines = str(error).strip().splitlines()
    return lines[0].strip().rstrip(":.") if lines else type(error).__name__
