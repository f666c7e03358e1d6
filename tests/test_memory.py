"""Freed memory stays with the process: a subprocess counts the faults of passes, with and without."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

PASSES = """
import resource, sys, torch
from fragile_neurons.memory import keep_freed_memory
if sys.argv[1] == "kept":
    keep_freed_memory()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def passes():
    before = faults()
    for _ in range(5):
        held = [torch.ones(1 << 22) for _ in range(12)]  # 16 MB each
        del held
    return faults() - before
passes()
print(passes())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_freed_memory_is_not_faulted_in_again() -> None:
    given, kept = (
        int(subprocess.run([sys.executable, "-c", PASSES, how], capture_output=True, check=True).stdout)
        for how in ("given", "kept")
    )
    assert kept * 10 < given
