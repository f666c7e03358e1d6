"""Freed memory stays with the process: what the C library says of itself, with and without."""

from __future__ import annotations

import ctypes
import platform
import subprocess
import sys

import pytest

FREED = """
import ctypes, sys, torch
from fragile_neurons.memory import keep_freed_memory

class Mallinfo2(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in (
        "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()
    )]

counts = ctypes.CDLL(None).mallinfo2
counts.restype = Mallinfo2
if sys.argv[1] == "kept":
    keep_freed_memory()
held = [torch.ones(1 << 22) for _ in range(12)]  # 16 MB each
del held
print(counts().fordblks)
"""


def freed_bytes(how: str) -> int:
    """Bytes that are free, but the process's still, after a dozen tensors of 16 MB."""
    return int(subprocess.run([sys.executable, "-c", FREED, how], capture_output=True, check=True).stdout)


@pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc" or not hasattr(ctypes.CDLL(None), "mallinfo2"),
    reason="a C library that does not say what is free",
)
def test_freed_memory_stays_with_the_process() -> None:
    assert freed_bytes("given") < 16 << 20
    assert freed_bytes("kept") >= 12 * (16 << 20)
