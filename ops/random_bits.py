"""Counter-based random numbers: a function of (seed, tensor, model, element index) and of nothing else.

As in Salmon et al. 2011 (Parallel random numbers: as easy as 1, 2, 3) a keyed bijection turns a counter into random bits; there
is no state, so tiles, threads, devices and interruptions cannot change them. The element index is split at 2¹⁶: a fixed table
holds a scrambled value for each low half, the high half enters the two keys of its block, and one finaliser with full avalanche
(the constants of Wang and Wellons' `lowbias32`) mixes them. Every step is integer arithmetic, the same on every device.
"""

from __future__ import annotations

import hashlib
from functools import cache
from typing import TYPE_CHECKING

from .declare import BLOCK

if TYPE_CHECKING:
    from torch import Tensor, device


@cache
def _table(on: device) -> Tensor:
    """2¹⁶ different int32 values: the scrambled low halves of an element's index."""
    import torch

    spare = torch.empty(BLOCK, dtype=torch.int32)
    counter = torch.arange(BLOCK, dtype=torch.int32).mul_(_signed(0x9E3779B9))
    return _mix(counter, spare, 0).to(on)


def _signed(word: int) -> int:
    return word - (1 << 32) if word >= 1 << 31 else word


def _xorshift(bits: Tensor, spare: Tensor, places: int) -> None:
    """bits ^= bits >> places, the shift filling with zeros (torch's own copies the sign)."""
    import torch

    torch.bitwise_right_shift(bits, places, out=spare)
    spare.bitwise_and_((1 << (32 - places)) - 1)
    bits.bitwise_xor_(spare)


def _mix(bits: Tensor, spare: Tensor, key: int) -> Tensor:
    _xorshift(bits, spare, 16)
    bits.mul_(0x7FEB352D).add_(key)
    _xorshift(bits, spare, 15)
    bits.mul_(_signed(0x846CA68B))
    _xorshift(bits, spare, 16)
    return bits


def random_bits(stream: str, model: int, start: int, out: Tensor, spare: Tensor) -> Tensor:
    """Uniform int32 values for the elements `start`, `start` + 1, … of a tensor, written over `out`.

    `out` and `spare` are float32 or int32 rows of the same length.
    """
    import torch

    bits, rest = out.view(torch.int32), spare.view(torch.int32)
    low = 0
    while low < len(bits):
        high_half, low_half = divmod(start + low, BLOCK)
        high = min(low + BLOCK - low_half, len(bits))
        digest = hashlib.blake2b(f"{stream}\0{model}\0{high_half}".encode(), digest_size=8).digest()
        first, second = (_signed(int.from_bytes(digest[i : i + 4], "little")) for i in (0, 4))
        piece = bits[low:high]
        torch.bitwise_xor(_table(out.device)[low_half : low_half + high - low], first, out=piece)
        _mix(piece, rest[low:high], second)
        low = high
    return bits


def keep_with_probability(probability: float, bits: Tensor) -> Tensor:
    """A float32 row of ones (kept, with the given probability) and zeros, over the memory of `bits`."""
    import torch

    threshold = round(probability * (1 << 32)) - (1 << 31)
    if threshold > (1 << 31) - 1:
        return bits.view(torch.float32).fill_(1.0)
    return torch.lt(bits, threshold, out=bits.view(torch.float32))
