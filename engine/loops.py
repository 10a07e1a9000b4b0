"""Compiled loops of a run: asked for by the parts that could use them, compiled beside the run, and used once they are there."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from ..ops.backends.compiled import Loop, build, cache_folder, compile_now

Compiled = Callable[..., tuple[int, int, int]]


class Loops:
    """Gives loops that are compiled already, and has the others compiled by a thread of its own, one after another.

    Where a loop cannot be compiled it is never given, and the parts go on without; `failure` says why.
    """

    def __init__(self) -> None:
        self.failure: str | None = None
        self._lock = threading.Condition()
        self._made: dict[Loop, Compiled | None] = {}
        self._wanted: list[Loop] = []
        self._closing = False
        self._thread: threading.Thread | None = None

    def __call__(self, loop: Loop) -> Compiled | None:
        """The compiled loop, or None as long as there is none."""
        found = self._made.get(loop)
        if found is not None or loop in self._made:
            return found
        with self._lock:
            if loop not in self._made and not self._closing:
                self._made[loop] = None
                self._wanted.append(loop)
                if self._thread is None:
                    self._thread = threading.Thread(target=self._run, name="weft-compile", daemon=True)
                    self._thread.start()
                self._lock.notify()
        return None

    def close(self) -> None:
        """End the thread, after the loop that it is at."""
        with self._lock:
            self._closing = True
            self._lock.notify()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _run(self) -> None:
        folder = cache_folder()
        while True:
            with self._lock:
                while not self._wanted and not self._closing:
                    self._lock.wait()
                if self._closing:
                    return
                loop = self._wanted.pop(0)
            try:
                function: Any = build(loop, folder)
                compile_now(loop, function)
            except Exception as error:  # whatever a compiler raises: NumPy does the work
                self.failure = f"{type(error).__name__}: {error}".splitlines()[0]
                continue
            self._made[loop] = function
