"""Brings input files to this machine, and compares what came from the Hub with what the Hub has."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ..errors import CheckpointError, InputChanged
from ..planner.catalog import WeightFile, read_header
from ..planner.plan import Plan
from ..planner.store import Store
from .reader import InputFile

if TYPE_CHECKING:
    from ..planner.hub_check import CachedFile

THREADS = 4
"""Files that are compared at once: a core makes a SHA-256 of one to two gigabytes a second where it has instructions for that."""


def fetch(plan: Plan, quiet: bool) -> dict[tuple[str, str], InputFile]:
    """Download what is not here yet, at the pinned commits; where every input file is, and the state it must stay in.

    Raises CheckpointError also for a file whose bytes are not those that the Hub lists.
    """
    read = plan.input_files(everything=True)
    remote = [file for file in read if plan.stores[file.model].path(file.name) is None]
    wanted: dict[str, list[str]] = {}
    for file in plan.downloaded_files():
        wanted.setdefault(file.model, []).append(file.name)
    for label, names in wanted.items():
        _download(plan.stores[label], names, quiet)
    _download(plan.base.checkpoint.store, list(plan.side_files), quiet)
    inputs = {}
    for file in read:
        store = plan.stores[file.model]
        path = store.path(file.name)
        if path is None:
            raise CheckpointError(f"{file.model}/{file.name}: could not be fetched")
        inputs[(file.model, file.name)] = InputFile(path, store.state(file.name))
    base = plan.base.checkpoint.store
    files = [(plan.stores[file.model], file.name) for file in read] + [(base, name) for name in plan.side_files]
    check_downloads(files, quiet)
    for file in remote:
        _check_header(plan.stores[file.model], file)
    return inputs


def check_downloads(files: Iterable[tuple[Store, str]], quiet: bool) -> None:
    """Compare files of the Hub's cache with what the Hub has; those that were compared before are not read again."""
    cached = [store.cached(name) for store, name in files]
    todo = {file.path: file for file in cached if file is not None and not file.known()}
    if not todo:
        return
    stopping = threading.Event()
    with _bar(sum(file.state.size for file in todo.values()), quiet) as bar:

        def seen(nbytes: int) -> None:
            bar.update(nbytes)
            if stopping.is_set():
                raise InterruptedError

        def check(file: CachedFile) -> None:
            file.check(seen)

        with ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1), "weft-check") as pool:
            try:
                for _ in pool.map(check, todo.values()):
                    pass
            except BaseException:
                stopping.set()
                pool.shutdown(wait=False, cancel_futures=True)
                raise


@contextmanager
def _bar(nbytes: int, quiet: bool) -> Iterator[Any]:
    """The library's progress bar."""
    from huggingface_hub.utils import tqdm

    bar: Any = tqdm
    with bar(total=nbytes, unit="B", unit_scale=True, desc="Checking downloads", disable=quiet or None) as shown:
        yield shown


def _check_header(store: Store, file: WeightFile) -> None:
    """A header that was read from afar is that of the file that came later."""
    label = f"{file.model}/{file.name}"
    if not file.identity.endswith(f":{read_header(store, file.name, file.size, label).digest}"):
        raise InputChanged(f"{label}: its header is not the one that weft planned with: give the command again")


def _download(store: Store, names: Sequence[str], quiet: bool) -> None:
    missing = [name for name in names if store.path(name) is None]
    if missing:
        store.download(missing, quiet=quiet)
