"""On the path of one command of docs/session.md: the process gets a real SIGINT at a write of the merge, always the same one."""

from __future__ import annotations

import os
import signal
from itertools import count
from typing import Any

WRITE = 30
_write, _writes = os.pwrite, count(1)


def _pwrite(*arguments: Any) -> int:
    if next(_writes) == WRITE:
        os.kill(os.getpid(), signal.SIGINT)
    return _write(*arguments)


os.pwrite = _pwrite
