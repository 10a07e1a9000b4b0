"""The `weft` command from its first moment to its last: whatever ends it is one line on stderr and an exit code.

This module imports next to nothing, so that Ctrl-C is understood before the libraries are loaded, which takes longer than many
commands.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
from contextlib import suppress
from types import FrameType
from typing import Any

STOPPED = "stopped; give the same command again to continue"


class _Stopping:
    """Ctrl-C and the signals with which terminals, batch systems and containers end a process all raise KeyboardInterrupt.

    `number`: the first that came; None so far. Those that the caller let us ignore (`nohup`, jobs of a shell) stay ignored.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self.over = False
        self._before: dict[int, Any] = {}
        for name in ("SIGINT", "SIGTERM", "SIGHUP"):
            number = getattr(signal, name, None)
            with suppress(ValueError):  # not in the main thread, where no signal arrives
                if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._stop)

    def end(self) -> None:
        """Nothing is left that could be stopped: what the caller had is there again, or the process ends and hears no more."""
        self.over = True
        if self.number is None:
            for number, handler in self._before.items():
                signal.signal(number, handler)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        if self.over:
            return
        self.number = self.number or number
        raise KeyboardInterrupt

    @property
    def exit_code(self) -> int:
        """As shells count the ends by signals."""
        return 128 + (self.number or signal.SIGINT)


def main() -> None:
    """Run the command line and end the process."""
    stopping = _Stopping()
    _open_standard_streams()
    try:
        try:
            message, code = _command()
        finally:
            stopping.end()
    except KeyboardInterrupt:
        message, code = STOPPED, stopping.exit_code
    except Exception:
        # A library may make an error of its own of what stopped it: "the package could not be imported".
        if stopping.number is None:
            raise
        message, code = STOPPED, stopping.exit_code
    if stopping.number is not None and code:
        message, code = message if code == _INTERRUPTED else STOPPED, stopping.exit_code
    _end(message, code)


def _open_standard_streams() -> None:
    """Those that the caller closed lead nowhere: a file of ours that got their number would take what libraries print."""
    handle = 0
    while handle <= 2:
        handle = os.open(os.devnull, os.O_RDWR)
    os.close(handle)
    for name, number in (("stdout", 1), ("stderr", 2)):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, "w", closefd=False))


_INTERRUPTED = 130
"""The exit code of what knows that it was interrupted."""


def _command() -> tuple[str, int]:
    """What is to be said of the command's end, and its exit code."""
    from ..errors import WeftError, check_platform

    try:
        check_platform()
        from .app import app
        from .terminal import print_anything

        print_anything()
        app(prog_name="weft")
    except WeftError as error:
        return str(error), error.exit_code
    except BrokenPipeError:
        sys.stderr.close()
        return "", 1
    except OSError as error:
        if error.errno != errno.ENOSPC or error.filename is not None:
            raise
        return f"what is printed could not be written: {error.strerror}", 3
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        return STOPPED if code == _INTERRUPTED else "", code
    return "", 0


def _end(message: str, code: int) -> None:
    from .terminal import say

    try:
        if message:
            say(f"weft: {message}", error=True)
        sys.stdout.flush()
    except (OSError, ValueError):  # the terminal is gone: Python would say so there once more
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        code = code or 1
    sys.exit(code)
