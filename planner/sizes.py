"""Sizes as people write them: 2GiB, 500MB, 5GB, 1B."""

from __future__ import annotations

import re

from ..errors import ConfigError

_UNITS = {
    "": 1,
    "K": 10**3,
    "M": 10**6,
    "B": 10**9,
    "G": 10**9,
    "T": 10**12,
    "KI": 1 << 10,
    "MI": 1 << 20,
    "GI": 1 << 30,
    "TI": 1 << 40,
}
_SIZE = re.compile(r"(?P<number>\d{1,18}(\.\d{1,18})?)\s*(?P<unit>[KMGT]I?|B)?B?", re.IGNORECASE)


def parse_size(text: str) -> int:
    """Bytes of "2GiB" (powers of 1024) or "500MB", "5G", "1B" (powers of ten; a lone B is a billion). Raises ConfigError."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ConfigError(f"'{text}' is not a size: write a number and a unit, such as 2GiB, 500MB or 5GB")
    size = int(float(match["number"]) * _UNITS[(match["unit"] or "").upper()])
    if size <= 0:
        raise ConfigError(f"'{text}' is not a size: it must be more than 0")
    return size


def format_count(number: int) -> str:
    """8030261248 as people say it: "8.03 B"."""
    for size, unit in ((10**9, "B"), (10**6, "M"), (10**3, "K")):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return str(number)


def format_size(nbytes: float) -> str:
    """Bytes for reading: "1.50 GiB"."""
    value, unit = float(nbytes), "B"
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(value) < 1024 or unit == "TiB":
            break
        value /= 1024
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.2f} {unit}"


def format_duration(seconds: float) -> str:
    """`12.3 s`, `4 min 5 s` or `2 h 10 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
