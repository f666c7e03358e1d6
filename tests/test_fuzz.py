"""Damaged files of every kind: a few of the inputs of `python tests/fuzz.py`."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
from fuzz import fuzz, good_files

KINDS = (
    *("safetensors", "state dict (zip)", "state dict (pickle)", "npz", "npz (deflated)", "IDX"),
    *("PNG sheets", "labels in JSON", "spec TOML"),
)


@pytest.mark.parametrize("inputs", [100, pytest.param(500, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_file_is_understood_or_refused(
    kind: str, inputs: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FRAGILE_NEURONS_DATA", str(tmp_path))
    files = good_files(tmp_path)
    assert tuple(files) == KINDS
    whole, read = files[kind]
    with warnings.catch_warnings(action="ignore"):
        if kind != "IDX":  # no small file has the checksum of MNIST's
            read(whole, tmp_path)
        refused, understood = fuzz(whole, read, tmp_path, inputs)
    assert refused + understood == inputs
    assert refused > inputs / 2
