"""The same bytes whatever the order, the unit size and what surrounds the process."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from small import BATCH, IMAGES, finish, small_spec
from torch import nn

from fragile_neurons import (
    Classifier,
    ImageData,
    open_run,
)
from fragile_neurons.interventions import drop
from fragile_neurons.neurons import executed_layers
from fragile_neurons.runs.environment import environment
from fragile_neurons.runs.execute import execute_unit
from fragile_neurons.runs.ledger import Ledger
from fragile_neurons.runs.plan import Needs, Unit, make_plan
from fragile_neurons.runs.spec import make_spec
from fragile_neurons.runs.subject import Subject, open_subject
from fragile_neurons.sweeps import split
from fragile_neurons.sweeps.exact import Exact
from fragile_neurons.sweeps.pairs import Pairs
from fragile_neurons.workflows import run_spec


def run_planned(
    subject: Subject, folder: Path, units: tuple[Unit, ...], order: list[Unit] | None = None
) -> bytes:
    """Execute these units in this order, then finish the run; the bytes of neurons.csv."""
    folder.mkdir()
    with Ledger.create(folder, subject.spec, units, environment(subject)) as ledger:
        for unit in order or []:
            given = [(one, ledger.result(one)) for one in Needs(units).of(unit)]
            ledger.record(unit, execute_unit(subject, unit, given))
    finish(subject, folder)
    return (folder / "neurons.csv").read_bytes()


@pytest.mark.parametrize("batches_per_unit", [1, 7, 64])
@pytest.mark.parametrize("neurons_per_unit", [1, 7, 64])
def test_unit_sizes_do_not_change_a_byte(
    subject: Subject, finished: Path, tmp_path: Path, batches_per_unit: int, neurons_per_unit: int
) -> None:
    units = make_plan(
        subject.selection,
        IMAGES,
        BATCH,
        batches_per_unit=batches_per_unit,
        neurons_per_unit=neurons_per_unit,
    )
    written = run_planned(subject, tmp_path / "run", units)
    assert written == (finished / "neurons.csv").read_bytes()


@pytest.mark.parametrize("seed", [0, 1])
def test_the_order_of_units_does_not_change_a_byte(
    subject: Subject, finished: Path, tmp_path: Path, seed: int
) -> None:
    units = make_plan(subject.selection, IMAGES, BATCH, batches_per_unit=1, neurons_per_unit=1)
    shuffled = random.Random(seed).sample(units, len(units))
    assert shuffled != list(units)
    shuffled.sort(key=lambda unit: {"orders": 1, "curves": 2}.get(unit.kind, 0))  # what they need comes first
    written = run_planned(subject, tmp_path / "run", units, shuffled)
    assert written == (finished / "neurons.csv").read_bytes()
    for name in (
        "summary.json",
        "neurons.parquet",
        "targeting.parquet",
        "cumulative.parquet",
        "images.parquet",
    ):
        assert (tmp_path / "run" / name).read_bytes() == (finished / name).read_bytes()


NETWORKS = {
    "small maps at the end": lambda: nn.Sequential(
        *(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(128, 3)),
    ),
    "a linear layer that mixes": lambda: nn.Sequential(
        *(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(512, 64), nn.ReLU()),
        nn.Linear(64, 3),
    ),
}


@pytest.mark.parametrize("rows", [16, 64, 128, 2048])
@pytest.mark.parametrize("count", [50, 17])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_neuron_comes_out_the_same_alone_and_among_others(
    monkeypatch: pytest.MonkeyPatch, name: str, rows: int, count: int
) -> None:
    """Bit for bit, however the chunks of pairs fall."""
    torch.manual_seed(0)
    classifier, images = Classifier(NETWORKS[name]()).eval(), torch.rand(count, 1, 8, 8)
    site = executed_layers(classifier, images[:2])[0].site("conv")
    monkeypatch.setattr(split, "_suitable_rows", lambda shapes: rows)
    way = Exact(classifier, images[:2])
    assert way.split(site).rows == rows

    def swept(channels: list[int]) -> torch.Tensor:
        pairs = Pairs.of(channels, torch.arange(count))
        return way.walk(images, [site]).logits(site, drop(0.0), pairs).view(len(channels), count, -1)

    together = swept(list(range(8)))
    for some in ([0], [5], [7], [2, 3, 6]):
        assert torch.equal(swept(some), together[some])


REPEAT = """
import sys
from pathlib import Path
from fragile_neurons.runs.spec import make_spec, read_options
from fragile_neurons.workflows import run_spec
run_spec(make_spec(**read_options(Path(sys.argv[1]))[0]), output=sys.argv[2])
"""


def test_a_spec_repeats_a_run_in_another_environment_byte_for_byte(tmp_path: Path) -> None:
    spec = make_spec(model="mnist-cnn", data="mnist", limit=20, neurons="3", epsilons=["0.1"], threads=1)
    first = run_spec(spec, output=tmp_path / "first").folder
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    environment = os.environ | {
        "OMP_NUM_THREADS": "7",
        "PYTHONHASHSEED": "7",
        "LC_ALL": "tr_TR.UTF-8",
        "TZ": "Asia/Kathmandu",
    }
    arguments = [sys.executable, "-c", REPEAT, str(first / "spec.toml"), str(tmp_path / "second")]
    subprocess.run(arguments, check=True, env=environment, cwd=elsewhere, timeout=300, capture_output=True)
    for name in ("neurons.csv", "spec.toml", "targeting.parquet", "images.parquet"):
        assert (tmp_path / "second" / name).read_bytes() == (first / name).read_bytes(), name
    assert list(elsewhere.iterdir()) == []


@pytest.mark.parametrize(
    ("batch_size", "threads"),
    [(16, 1), (40, 1), *(pytest.param(size, 2, marks=pytest.mark.slow) for size in (8, 16))],
)
def test_batch_sizes_and_threads_change_no_clean_prediction_and_no_fifth_digit(
    small_classifier: Classifier,
    small_data: ImageData,
    finished: Path,
    tmp_path: Path,
    batch_size: int,
    threads: int,
) -> None:
    spec = small_spec(batch_size=batch_size, threads=threads)
    other = finish(open_subject(spec, small_classifier, small_data), tmp_path / "run")
    images, neurons = open_run(finished).images, open_run(finished).neurons
    images_too, neurons_too = other.images, other.neurons
    margin = np.array(images["clean_margin"])
    decided = np.abs(margin) >= 1e-4
    assert decided.sum() >= IMAGES - 2
    same = np.array(images["clean_prediction"]) == np.array(images_too["clean_prediction"])
    assert same[decided].all()
    np.testing.assert_allclose(np.array(images_too["clean_margin"]), margin, rtol=1e-5, atol=1e-5)
    for name in ("clean_drop", "margin_drop", "weight_norm", "activation_energy"):
        np.testing.assert_allclose(
            np.array(neurons_too[name]), np.array(neurons[name]), rtol=1e-5, atol=1e-5, err_msg=name
        )


@pytest.mark.parametrize("images", [24, 25, 26, 27, 31])
def test_what_is_said_of_an_image_does_not_depend_on_how_many_others_there_are(
    small_classifier: Classifier, small_data: ImageData, tmp_path: Path, images: int
) -> None:
    """N mod 8 in 0, 1, 2, 3, 7: the last batch is filled up, so each image is in one of the same size."""
    predictions = []
    for count in (images, IMAGES):
        data = small_data.take(np.arange(count))
        run = finish(open_subject(small_spec(limit=count), small_classifier, data), tmp_path / f"{count}")
        predictions.append(run.images.slice(0, images).drop_columns(["smallest_fooling_epsilon"]))
    assert predictions[0].equals(predictions[1])
