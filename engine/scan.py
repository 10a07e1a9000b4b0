"""What is noted of every tensor while its bytes are at hand: NaN, Inf, and how much of it is not the base model's.

Looks at bit patterns with NumPy, in pieces that stay in a core's cache: the same for tensors that are copied, for which nothing
else is computed and torch is not even loaded, and for those that come from another device.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..planner.dtypes import ITEM_SIZES

PIECE = 1 << 18
"""Bytes that are looked at in one go."""

_BITS = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}

_INFINITY = {"BF16": 0x7F80, "F16": 0x7C00, "F32": 0x7F800000, "F64": 0x7FF0000000000000}
"""Bit pattern of +Inf: without the sign, larger patterns are NaN and smaller ones numbers."""


class Scanner:
    """One worker's scratch for looking at bytes."""

    def __init__(self) -> None:
        self._spare = np.empty(PIECE, dtype=np.uint8)

    def nonfinite(self, data: memoryview, dtype: str) -> tuple[int, int]:
        """How many NaN and how many Inf there are among elements of a safetensors dtype; none in integers."""
        infinity = _INFINITY.get(dtype)
        if infinity is None:
            return 0, 0
        nan = inf = 0
        bits = np.frombuffer(data, dtype=_BITS[ITEM_SIZES[dtype]])
        for piece, spare in self._pieces(bits):
            magnitude = np.bitwise_and(piece, (1 << (8 * bits.itemsize - 1)) - 1, out=spare)
            if int(magnitude.max()) >= infinity:
                inf += int(np.count_nonzero(magnitude == infinity))
                nan += int(np.count_nonzero(magnitude > infinity))
        return nan, inf

    def differing(self, data: memoryview, other: memoryview, dtype: str) -> int:
        """How many elements are not the same in both, bit for bit."""
        kind = _BITS[ITEM_SIZES[dtype]]
        a, b = np.frombuffer(data, dtype=kind), np.frombuffer(other, dtype=kind)
        count, low = 0, 0
        for piece, spare in self._pieces(a):
            unequal = spare.view(np.bool_)[: len(piece)]
            count += int(np.count_nonzero(np.not_equal(piece, b[low : low + len(piece)], out=unequal)))
            low += len(piece)
        return count

    def _pieces(self, bits: NDArray[Any]) -> list[tuple[NDArray[Any], NDArray[Any]]]:
        """Pieces of an array, each with scratch of its kind and length."""
        spare = self._spare.view(bits.dtype)
        step = len(spare)
        return [(bits[low : low + step], spare[: min(step, len(bits) - low)]) for low in range(0, len(bits), step)]
