"""What the C library does with the memory that torch frees."""

from __future__ import annotations

import ctypes
from functools import cache

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
FREED_BYTES, MAPPED_BYTES = 1 << 30, 1 << 25


@cache
def keep_freed_memory() -> None:
    """Let this process keep up to a gigabyte that it has freed, where glibc is the C library.

    Given back, the memory of a pass has to be cleared and mapped again for the next one, a quarter of the
    time of a deep network's pass back. Blocks of 32 MB and more are given back as ever. Source: mallopt(3).
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library
        return
    mallopt(TRIM_THRESHOLD, FREED_BYTES)
    mallopt(MMAP_THRESHOLD, MAPPED_BYTES)
