"""What can go wrong, as a tree:

    WeftError                 one line for a person; its exit code
    ├── InputError        2   a config or checkpoint that cannot be used
    │   ├── ConfigError       where in the YAML: file, line, key path
    │   ├── CheckpointError   which model, file, tensor
    │   │   └── InputChanged  a file that is no longer what was planned with
    │   └── OutputError       an output folder that is not ours to write
    ├── ResourceError     3   too little memory or disk
    │   ├── BudgetError       what it needs
    │   └── DiskError         how much is missing
    ├── PlatformError     2   an operating system on which it does not run
    └── Interrupted     130   stopped; the same command continues (of the command line: 143 by SIGTERM, 129 by SIGHUP)

Anything else that is raised is a bug, and prints a traceback.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from difflib import get_close_matches


class WeftError(Exception):
    """Base of all errors that are meant for the user: one line that says what is wrong, where, and what to do."""

    exit_code = 1


class InputError(WeftError):
    """A config, checkpoint or folder that cannot be used."""

    exit_code = 2


class ConfigError(InputError):
    """A config that does not say what to do."""


class CheckpointError(InputError):
    """A model that cannot be read or merged."""


class InputChanged(CheckpointError):
    """A model's file that is no longer what was planned with."""


class OutputError(InputError):
    """An output folder that must not be written to."""


class ResourceError(WeftError):
    """Too little of something that the machine has."""

    exit_code = 3


class BudgetError(ResourceError):
    """A memory budget in which the merge cannot run; it needs at least `needed` bytes."""

    def __init__(self, message: str, needed: int) -> None:
        super().__init__(message)
        self.needed = needed


class DiskError(ResourceError):
    """Too little disk; `missing` bytes are wanted."""

    def __init__(self, message: str, missing: int) -> None:
        super().__init__(message)
        self.missing = missing


class Interrupted(WeftError):
    """Stopped before the end; the same command continues."""

    exit_code = 130


class PlatformError(WeftError):
    """An operating system on which nothing of this works."""

    exit_code = 2


def check_platform() -> None:
    """Raise PlatformError where weft cannot run."""
    if sys.platform == "win32":
        raise PlatformError("Windows is not supported: use WSL")


def nearest(name: str, known: Iterable[str]) -> str:
    """A clause that names the closest of `known`, or lists them where none is close: "; did you mean 'ties'?"."""
    names = sorted(set(known))
    close = get_close_matches(name, names, n=1, cutoff=0.6)
    if close:
        return f"; did you mean '{close[0]}'?"
    return f"; known: {', '.join(names)}" if names else ""
