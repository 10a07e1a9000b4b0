"""Shards written past the page cache and through it: the same bytes, wherever a stretch begins and ends."""

from __future__ import annotations

import errno
import os
import random
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from weft.engine import shard_writer
from weft.engine.directory import Directory
from weft.engine.shard_writer import BOUNCE, PARTIAL, ShardWriter
from weft.engine.system import anonymous_memory
from weft.planner.graph import PAGE
from weft.planner.shards import Shard

SIZE = 3 * BOUNCE + 5 * PAGE + 17
HEADER = b"h" * PAGE


def shard() -> Shard:
    return Shard("model.safetensors", HEADER, PAGE + SIZE, ())


def filled(seed: int) -> memoryview:
    memory = memoryview(anonymous_memory(SIZE))
    memory[:SIZE] = random.Random(seed).randbytes(SIZE)
    return memory[:SIZE]


WAYS = ["as it is", "no direct handle", "a direct handle that refuses"]


def prepare(patch: pytest.MonkeyPatch, way: str) -> None:
    if way == "no direct handle":
        patch.delattr(os, "O_DIRECT", raising=False)
    if way == "a direct handle that refuses":

        def refuse(writer: ShardWriter, handle: int, offset: int, pages: memoryview) -> None:
            raise OSError(errno.EINVAL, "no")

        patch.setattr(ShardWriter, "_write_pages", refuse)


@pytest.mark.parametrize("way", WAYS)
@settings(max_examples=12, deadline=None)
@given(cuts=st.lists(st.integers(0, SIZE), max_size=6), seed=st.integers(0, 99))
def test_stretches_in_any_order_from_several_threads(
    tmp_path_factory: pytest.TempPathFactory, way: str, cuts: list[int], seed: int
) -> None:
    folder, data = tmp_path_factory.mktemp("out"), filled(seed)
    ends = sorted({0, *cuts, SIZE})
    stretches = list(pairwise(ends))
    random.Random(seed).shuffle(stretches)
    with pytest.MonkeyPatch.context() as patch:
        prepare(patch, way)
        writer = ShardWriter(Directory.open(folder), [shard()])
        with ThreadPoolExecutor(3) as threads:
            list(threads.map(lambda s: writer.write(0, PAGE + s[0], data[s[0] : s[1]]), stretches))
        writer.sync({0})
        writer.close()
    assert (folder / f"model.safetensors{PARTIAL}").read_bytes() == HEADER + data.tobytes()


def test_other_errors_of_a_direct_handle_are_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file: int, offset: int, data: memoryview) -> None:
        raise OSError(errno.ENOSPC, "full")

    writer = ShardWriter(Directory.open(tmp_path), [shard()])
    monkeypatch.setattr(shard_writer, "write_at", full)
    with pytest.raises(OSError, match="full"):
        writer.write(0, PAGE, filled(0))
    writer.close()
