"""What a plan says a run costs, against what the run then does."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import fragile_neurons as fn
from fragile_neurons.runs.forecast import Whole, forecast
from fragile_neurons.runs.ledger import Ledger
from fragile_neurons.runs.spec import make_spec
from fragile_neurons.runs.subject import open_subject


def subject_options(**changes: object) -> dict[str, object]:
    return {
        "model": "small",
        "data": "blobs",
        "limit": 40,
        "epsilons": ["0.05"],
        "batch_size": 20,
        "threads": 1,
    } | changes


@pytest.mark.parametrize("mode", ["adaptive", "transfer"])
def test_passes_are_those_that_a_reference_run_makes(
    small_classifier: fn.Classifier,
    small_data: fn.ImageData,
    tmp_path: Path,
    mode: str,
) -> None:
    """Images through the network and gradients back, counted; inject is asked of the right ones alone."""
    subject = open_subject(make_spec(**subject_options(layer="all", mode=mode)), small_classifier, small_data)
    planned = {one.way: one for one in forecast(subject)}
    assert planned["reference"].passes == planned["exact"].passes
    counted = [0]

    def count(_: nn.Module, inputs: tuple[torch.Tensor, ...], __: object) -> None:
        counted[0] += len(inputs[0]) * (1 + inputs[0].requires_grad)

    handle = small_classifier.module.register_forward_hook(count)
    fn.analyze(
        small_classifier,
        small_data,
        output=tmp_path / "run",
        layer="all",
        epsilons=["0.05"],
        mode=mode,
        sweep="reference",
        batch_size=20,
    )
    handle.remove()
    assert planned["reference"].passes == pytest.approx(counted[0], rel=0.15)


def test_results_are_as_large_as_said(
    small_classifier: fn.Classifier, small_data: fn.ImageData, tmp_path: Path
) -> None:
    subject = open_subject(make_spec(**subject_options(layer="all")), small_classifier, small_data)
    run = fn.analyze(
        small_classifier, small_data, output=tmp_path / "run", layer="all", epsilons=["0.05"], batch_size=20
    )
    with Ledger(run.folder) as ledger:
        stored = sum(
            array.nbytes
            for unit in ledger.units()
            if unit.kind in ("drops", "patches")
            for array in ledger.result(unit).values()
        )
    for one in forecast(subject):
        assert one.results == pytest.approx(stored, rel=0.05)
        assert one.memory > 50e6
        assert one.minutes > 0


def test_a_probe_of_few_images_is_not_filled_up_to_a_batch(
    small_classifier: fn.Classifier, small_data: fn.ImageData
) -> None:
    subject = open_subject(make_spec(**subject_options(batch_size=32)), small_classifier, small_data)
    seen: list[int] = []
    handle = small_classifier.module.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))
    Whole.measure(subject, 8)
    assert set(seen) == {8}
    seen.clear()
    Whole.of(subject)
    assert set(seen) == {32}
    handle.remove()
