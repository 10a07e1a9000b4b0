"""Runs every attack against weft's commands in this process, which may take little memory and time, and reports as JSON lines.

An audit hook notes what no checkpoint may bring about: programs, connections, and reading files that are not its own.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

MEMORY = 1 << 30
"""Bytes of address space beyond what the process has before the first attack."""

SECONDS = 60

_FORBIDDEN = ("os.system", "subprocess.Popen", "os.exec", "os.posix_spawn", "os.fork", "socket.connect", "socket.getaddrinfo")
_seen: list[str] = []


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    if event in _FORBIDDEN:
        _seen.append(f"{event} {arguments!r:.100}")
    elif event == "open" and isinstance(arguments[0], str | bytes):
        path = os.path.realpath(os.fsdecode(arguments[0]))
        if "/secret/" in path or path in ("/dev/zero", "/etc/passwd"):
            _seen.append(f"open {path}")


def _too_long(*_: object) -> None:
    raise TimeoutError(f"more than {SECONDS} seconds")


def main(root: Path) -> None:
    """Attack after attack, each in a folder of its own."""
    import torch  # noqa: F401

    from cli.command import weft
    from hostile.attacks import ATTACKS, SECRET, good
    from weft.ops.registry import methods

    methods()
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, resource.RLIM_INFINITY))
    signal.signal(signal.SIGALRM, _too_long)
    models = root / "good"
    models.mkdir()
    os.chdir(models)
    good()
    (root / "secret").mkdir()
    sys.addaudithook(_watch)
    for name, attack in ATTACKS.items():
        place = root / "place"
        shutil.copytree(models, place)
        os.chdir(place)
        Path(SECRET).write_text('{"key": "hunter2"}')
        _seen.clear()
        report: dict[str, Any] = {"name": name}
        try:
            arguments = attack.spoil() or ("plan", "merge.yaml")
            _seen.clear()
            begin = time.monotonic()
            signal.alarm(SECONDS)
            outcome = weft(*arguments)
            inspected = weft("inspect", "b") if attack.inspect else outcome
            signal.alarm(0)
            report |= {
                "seconds": time.monotonic() - begin,
                "code": outcome.code,
                "err": outcome.err,
                "inspected": (inspected.code, inspected.err),
                "secret": "hunter2" in outcome.out + outcome.err + inspected.out + inspected.err,
            }
        except BaseException:
            signal.alarm(0)
            report["traceback"] = traceback.format_exc()[-3000:]
        report["seen"] = list(_seen)
        report["owned"] = (root / "owned").exists() or (place / "owned").exists()
        print(json.dumps(report), flush=True)
        os.chdir(root)
        shutil.rmtree(place)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
