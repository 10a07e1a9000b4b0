"""Counter-based random numbers: a function of (seed, tensor, model, element index) and of nothing else.

As in Salmon et al. 2011 (Parallel random numbers: as easy as 1, 2, 3) there is no state, so tiles, threads, devices and
interruptions cannot change them. The index is split at 2¹⁶. A cryptographic hash of (seed, tensor, model, high half) turns three
fixed tables of 2¹⁶ random words by three amounts; the low half looks one word up in each, and their XOR is the element's:

    table A   ──────▶ turned by a ┐
    table B   ──────▶ turned by b ├─ XOR ─▶ 2¹⁶ words of a block         (2⁴⁸ different ones for each block)
    table C   ──────▶ turned by c ┘

The tables come from counters through a finaliser with full avalanche (the constants of Wang and Wellons' `lowbias32`). So a word
costs two operations instead of the finaliser's dozen. Every step is integer arithmetic, the same on every device.
"""

from __future__ import annotations

import hashlib
import threading
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor, device

WORDS = 1 << 16
"""Words of a table, and elements that one hash serves."""


TABLE_BYTES = 3 * 2 * WORDS * 4
"""Bytes of the tables, which all tensors and workers share."""

_MAKING = threading.Lock()
"""Workers that want the tables at once would each make them."""


def _tables(on: device) -> tuple[Tensor, Tensor, Tensor]:
    with _MAKING:
        return _made_tables(on)


@cache
def _made_tables(on: device) -> tuple[Tensor, Tensor, Tensor]:
    """Three tables of 2¹⁶ int32 words, each twice in a row, so that one that is turned is a stretch of it."""
    import torch

    tables = torch.empty(3, 2 * WORDS, dtype=torch.int32)
    for number, table in enumerate(tables):
        words, second = table.view(2, WORDS)
        torch.arange(number * WORDS, (number + 1) * WORDS, dtype=torch.int32, out=words)
        second.copy_(_mix(words.mul_(_signed(0x9E3779B9)), second))  # the room of the second serves to make the first
    a, b, c = tables.to(on)
    return a, b, c


def _signed(word: int) -> int:
    return word - (1 << 32) if word >= 1 << 31 else word


def _xorshift(bits: Tensor, spare: Tensor, places: int) -> None:
    """bits ^= bits >> places, the shift filling with zeros (torch's own copies the sign)."""
    import torch

    torch.bitwise_right_shift(bits, places, out=spare)
    spare.bitwise_and_((1 << (32 - places)) - 1)
    bits.bitwise_xor_(spare)


def _mix(bits: Tensor, spare: Tensor) -> Tensor:
    _xorshift(bits, spare, 16)
    bits.mul_(0x7FEB352D)
    _xorshift(bits, spare, 15)
    bits.mul_(_signed(0x846CA68B))
    _xorshift(bits, spare, 16)
    return bits


def random_bits(stream: str, model: int, start: int, out: Tensor) -> Tensor:
    """Uniform int32 values for the elements `start`, `start` + 1, … of a tensor, over a float32 or int32 row."""
    import torch

    bits = out.view(torch.int32)
    tables = _tables(out.device)
    low = 0
    while low < len(bits):
        high_half, low_half = divmod(start + low, WORDS)
        count = min(WORDS - low_half, len(bits) - low)
        digest = hashlib.blake2b(f"{stream}\0{model}\0{high_half}".encode(), digest_size=6).digest()
        begin = [low_half + int.from_bytes(digest[i : i + 2], "little") for i in (0, 2, 4)]
        a, b, c = (table[first : first + count] for table, first in zip(tables, begin, strict=True))
        torch.bitwise_xor(a, b, out=bits[low : low + count]).bitwise_xor_(c)
        low += count
    return bits


def keep_with_probability(probability: float, bits: Tensor) -> Tensor:
    """Marks for `keep_marked`, over `bits`: 1 for what is kept, with the given probability, 0 for what is not."""
    threshold = round(probability * (1 << 32)) - (1 << 31)
    return bits.fill_(1) if threshold > (1 << 31) - 1 else bits.lt_(threshold)


def keep_marked(row: Tensor, marks: Tensor) -> Tensor:
    """Zero, in place, what is not marked in a float32 row; multiplied as integers, what is kept stays bit for bit."""
    import torch

    row.view(torch.int32).mul_(marks)
    return row
