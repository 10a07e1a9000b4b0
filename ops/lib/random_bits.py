"""Counter-based random numbers: a function of (seed, tensor, model, element index) and of nothing else.

As in Salmon et al. 2011 (Parallel random numbers: as easy as 1, 2, 3) there is no state, so tiles, threads, devices and
interruptions cannot change them. The index is split at 2¹⁶. A cryptographic hash of (seed, tensor, model, high half) turns three
fixed tables of 2¹⁶ random words by three amounts; the low half looks one word up in each, and their XOR is the element's:

    table A   ──────▶ turned by a ┐
    table B   ──────▶ turned by b ├─ XOR ─▶ 2¹⁶ words of a window        (2⁴⁸ different ones for each window)
    table C   ──────▶ turned by c ┘

The tables come from counters through a finaliser with full avalanche (the constants of Wang and Wellons' `lowbias32`). So a word
costs two operations instead of the finaliser's dozen. Every step is integer arithmetic, the same on every device.
"""

from __future__ import annotations

import hashlib
import threading
from functools import cache

import numpy as np
from numpy.typing import NDArray

WORDS = 1 << 16
"""Words of a table, and elements of a window: one hash serves them."""

TABLE_BYTES = 3 * 2 * WORDS * 4
"""Bytes of the tables, which all tensors and workers share."""


_MAKING = threading.Lock()
"""Workers that want the tables at once would each make them."""


def tables() -> NDArray[np.int32]:
    """The three tables, made once."""
    with _MAKING:
        return _made_tables()


@cache
def _made_tables() -> NDArray[np.int32]:
    """Three tables of 2¹⁶ words, each twice in a row, so that one that is turned is a stretch of it: int32 [3, 2¹⁷]."""
    words = np.arange(3 * WORDS, dtype=np.uint32) * np.uint32(0x9E3779B9)
    words ^= words >> np.uint32(16)
    words *= np.uint32(0x7FEB352D)
    words ^= words >> np.uint32(15)
    words *= np.uint32(0x846CA68B)
    words ^= words >> np.uint32(16)
    return np.tile(words.view(np.int32).reshape(3, WORDS), 2)


def turns(stream: str, number: int, first: int, count: int) -> NDArray[np.int32]:
    """By how much each table is turned in the windows that elements `first` to `first` + `count` touch: int32 [windows, 3]."""
    windows = range(first // WORDS, (first + max(count, 1) - 1) // WORDS + 1)
    digests = (hashlib.blake2b(f"{stream}\0{number}\0{window}".encode(), digest_size=6).digest() for window in windows)
    return np.frombuffer(b"".join(digests), dtype="<u2").astype(np.int32).reshape(-1, 3)


def random_words(stream: str, number: int, first: int, count: int) -> NDArray[np.int32]:
    """Uniform int32 words of the elements `first`, `first` + 1, … of a tensor."""
    words = np.empty(count, np.int32)
    a, b, c = tables()
    done = 0
    for turn_a, turn_b, turn_c in turns(stream, number, first, count).tolist() if count else ():
        low = (first + done) % WORDS
        step = min(WORDS - low, count - done)
        here = words[done : done + step]
        np.bitwise_xor(a[low + turn_a :][:step], b[low + turn_b :][:step], out=here)
        here ^= c[low + turn_c :][:step]
        done += step
    return words
