"""What went wrong between here and the Hub, in one line, and whether to ask again."""

from __future__ import annotations

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


def transient(error: Exception) -> bool:
    """Whether the same request may succeed a moment later."""
    return unreachable(error) and not isinstance(error, OfflineModeIsEnabled)


def _line(error: BaseException) -> str:
    """An error's first line, without the colon that would announce more."""
    lines = str(error).strip().splitlines()
    return lines[0].strip().rstrip(":.") if lines else type(error).__name__
