"""A few of the kills and flips of `make torture`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_kills_lose_nothing_and_every_flip_is_found() -> None:
    script = Path(__file__).with_name("torture.py")
    done = subprocess.run(
        [sys.executable, str(script), "--kills", "8", "--flips", "12", "--seed", "1"],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["kills_equal"], found["recomputed"]) == (8, 0)
    assert found["in_flight"] <= 1
    assert found["interrupted"] >= 1
    assert (found["result_found"], found["result_equal"]) == (6, 6)
    assert (found["file_found"], found["file_equal"]) == (6, 6)
