"""The little that NumPy's arrays and torch's tensors call by different names, for maps and passes that work on whole blocks."""

from __future__ import annotations

from typing import Any

import numpy as np


def as_float64(array: Any) -> Any:
    """The same numbers in float64."""
    return array.astype(np.float64) if isinstance(array, np.ndarray) else array.double()


def as_float32(array: Any) -> Any:
    """The same numbers in float32."""
    return array.astype(np.float32) if isinstance(array, np.ndarray) else array.float()
