"""Many files, few of them open at once."""

from __future__ import annotations

import os
import random
import resource
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from merges import hashes, linear, merge, write_two
from weft.engine.directory import Directory
from weft.engine.handles import MOST, Handles, descriptors
from weft.engine.shard_writer import PARTIAL, ShardWriter
from weft.planner.graph import PAGE
from weft.planner.shards import Shard


@contextmanager
def granted(count: int) -> Iterator[None]:
    """This process may have so many descriptors."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def open_files() -> int:
    return len(list(Path("/dev/fd").iterdir()))


def test_a_share_of_what_is_granted() -> None:
    for count, share in ((70, 4), (256, 48), (1024, 240), (4096, MOST)):
        with granted(count):
            assert descriptors() == share


def test_the_longest_unused_is_closed_and_one_in_use_is_not(tmp_path: Path) -> None:
    left: list[int] = []
    files: Handles[str] = Handles(lambda name: os.open(tmp_path / name, os.O_RDWR | os.O_CREAT), leave=left.append, limit=2)
    with files.use("a") as a:
        for name in ("b", "c", "b"):
            with files.use(name) as handle:
                os.write(handle, name.encode())
        os.write(a, b"a")
        assert len(left) == 2 and a not in left
        files.close()
        os.write(a, b"A")  # open until it is given back
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(a)
    with pytest.raises(OSError, match="closed"), files.use("a"):
        pass
    assert (tmp_path / "a").read_bytes() == b"aA"


def test_many_shards_are_written_by_few_descriptors(tmp_path: Path) -> None:
    header = b"h" * PAGE
    shards = [Shard(f"model-{i}.safetensors", header, 3 * PAGE, ()) for i in range(60)]
    writer = ShardWriter(Directory.open(tmp_path), shards, limit=3)
    stretches = [(shard, half) for shard in range(60) for half in (1, 2)]
    random.Random(0).shuffle(stretches)
    before = open_files()
    most = []

    def write(stretch: tuple[int, int]) -> None:
        shard, half = stretch
        writer.write(shard, half * PAGE, memoryview(bytes([shard]) * PAGE))
        most.append(open_files())

    with ThreadPoolExecutor(3) as threads:
        list(threads.map(write, stretches))
    writer.sync(set(range(60)))
    writer.close()
    assert max(most) <= before + 3 + 3 + 3  # the limit, what threads use beyond it, and what looks
    for i in range(60):
        assert (tmp_path / f"model-{i}.safetensors{PARTIAL}").read_bytes() == header + bytes([i]) * 2 * PAGE


def test_a_shard_that_is_replaced_while_it_is_written_is_an_error(tmp_path: Path) -> None:
    shard = Shard("model.safetensors", b"h" * PAGE, 2 * PAGE, ())
    writer = ShardWriter(Directory.open(tmp_path), [shard])
    path = tmp_path / f"model.safetensors{PARTIAL}"
    path.rename(tmp_path / "elsewhere")
    path.write_bytes(b"someone else's")
    with pytest.raises(OSError, match="removed or replaced"):
        writer.write(0, PAGE, memoryview(bytes(PAGE)))
    writer.close()
    assert path.read_bytes() == b"someone else's"


def test_a_merge_of_more_shards_than_descriptors(tmp_path: Path) -> None:
    base, other = write_two(tmp_path)
    many, one = tmp_path / "many", tmp_path / "one"
    merge(linear(base, other), many, shard_size=1)
    merge(linear(many, other), one)
    with granted(open_files() + 24):
        merge(linear(base, other), tmp_path / "written", shard_size=1)
        merge(linear(many, other), tmp_path / "read")
        merge(linear(base, other), tmp_path / "written")  # copied from shard to shard
        merge(linear(base, other), tmp_path / "written", shard_size=1)
    assert hashes(tmp_path / "written") == hashes(many) and hashes(tmp_path / "read") == hashes(one)
