"""How much memory a worker's arithmetic takes, for those who plan it: no array library is imported for these numbers."""

SCRATCH = 2 << 20
"""Bytes in which NumPy's intermediate results stand, as many as are alive at once."""

LIVE = 16
"""Arrays that are alive at once in a program of common size; what needs more takes shorter runs of elements."""
