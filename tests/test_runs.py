"""Runs: the same files whatever the order, the unit size, the interruption; no damage goes unseen."""

from __future__ import annotations

import csv
import hashlib
import json
import math
import os
import random
import resource
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from pyarrow import parquet
from torch import nn

from fragile_neurons import (
    Classifier,
    ImageData,
    IncompleteError,
    InputError,
    IntegrityError,
    Run,
    analyze,
    open_run,
)
from fragile_neurons.analysis.selection import select
from fragile_neurons.runs.engines import local
from fragile_neurons.runs.execute import execute_unit
from fragile_neurons.runs.export import write_file
from fragile_neurons.runs.ledger import PARTIAL, Ledger
from fragile_neurons.runs.plan import Unit, make_plan, needed
from fragile_neurons.runs.spec import Spec, make_spec, read_spec
from fragile_neurons.runs.subject import Subject, open_subject
from fragile_neurons.workflows import run_spec, run_subject, silent

CONTRACT_FILES = {
    "spec.toml",
    "run.db",
    "summary.json",
    "neurons.csv",
    "neurons.parquet",
    "targeting.parquet",
    "cumulative.parquet",
    "images.parquet",
    "summary.md",
    "report.html",
    "examples.npz",
}
CONTRACT_COLUMNS = {
    "neurons": [
        "layer", "channel", "site", "mode", "epsilon", "clean_drop", "clean_low", "clean_high", "clean_lost",
        "clean_gained", "clean_q", "clean_verdict", "adv_drop", "adv_low", "adv_high", "adv_lost",
        "adv_gained", "adv_q", "adv_verdict", "transfer_drop", "gap_drop", "margin_drop", "adv_margin_drop",
        "disturbance", "relative", "share", "wins", "noise_share", "swap_share", "noise_excess", "excess",
        "rescue", "inject", "weight_norm", "activation_energy", "clean_small", "adv_small", "sampling_se",
    ],
    "targeting": ["layer", "channel", "epsilon", "group", "share", "wins"],
    "cumulative": ["layer", "epsilon", "order", "draw", "step", "accuracy", "n", "low", "high"],
    "images": [
        "index", "label", "attack", "epsilon", "clean_prediction", "clean_margin", "adversarial_prediction",
        "adversarial_margin", "smallest_fooling_epsilon",
    ],
}  # fmt: skip
CONTRACT_SUMMARY = {
    "format_version",
    "spec",
    "environment",
    "model",
    "data",
    "layers",
    "site",
    "clean_accuracy",
    "robust_accuracy",
    "dropout",
    "targeting",
    "correlation",
    "hardening",
    "checks",
}
NEURONS, IMAGES, EPSILON = 4, 40, "0.05"
BATCH = 8  # 40 images are five batches
UNITS = 23
"""2 cheap checks, predictions and disturbances of 2 spans, drops, patches, curves of 5, orders, examples."""


def small_spec(**changes: object) -> Spec:
    options: dict[str, object] = {
        "model": "small",
        "data": "blobs",
        "limit": IMAGES,
        "epsilons": [EPSILON],
        "batch_size": BATCH,
        "threads": 1,
    }
    return make_spec(**options | changes)


@pytest.fixture
def subject(small_classifier: Classifier, small_data: ImageData) -> Subject:
    return open_subject(small_spec(), small_classifier, small_data)


@pytest.fixture(scope="module")
def kept() -> dict[str, Path]:
    return {}


@pytest.fixture
def finished(subject: Subject, kept: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of the small subject; computed once, so tests must not change it."""
    if "run" not in kept:
        folder = tmp_path_factory.mktemp("finished") / "run"
        run_subject(subject, output=folder, force=False, progress=silent)
        kept["run"] = folder
    return kept["run"]


@pytest.fixture
def own(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run that a test may damage."""
    return Path(shutil.copytree(finished, tmp_path / "own"))


def finish(subject: Subject, folder: Path, *, force: bool = False) -> Run:
    return run_subject(subject, output=folder, force=force, progress=silent)


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Watch the engine: a list of the ids of computed units; raise `error` when `stop_at` are computed."""

    def watch(stop_at: int | None = None, error: type[BaseException] = KeyboardInterrupt) -> list[str]:
        computed: list[str] = []

        def watched(subject: Subject, unit: Unit, *given: Any) -> dict[str, Any]:
            if len(computed) == stop_at:
                raise error
            computed.append(unit.id)
            return execute_unit(subject, unit, *given)

        monkeypatch.setattr(local, "execute_unit", watched)
        return computed

    return watch


# --- plan


@pytest.mark.parametrize("batches_per_unit", [1, 2, 7])
@pytest.mark.parametrize("neurons_per_unit", [1, 3, 64])
@pytest.mark.parametrize("batch_size", [4, 7, 64])
def test_a_plan_covers_every_neuron_and_image_exactly_once(
    small_classifier: Classifier,
    small_data: ImageData,
    batches_per_unit: int,
    neurons_per_unit: int,
    batch_size: int,
) -> None:
    selection = select(small_classifier, small_data, layer="all", neurons="conv1:0,conv1:3,conv2:1")
    plan = make_plan(
        selection,
        IMAGES,
        batch_size,
        batches_per_unit=batches_per_unit,
        neurons_per_unit=neurons_per_unit,
    )
    pairs = [
        (unit.layer, channel, image)
        for unit in plan
        if unit.kind == "drops"
        for channel in unit.channels
        for image in range(unit.start, unit.stop)
    ]
    wanted = [("conv1", 0), ("conv1", 3), ("conv2", 1)]
    assert sorted(pairs) == [(*neuron, image) for neuron in wanted for image in range(IMAGES)]
    for kind in ("predictions", "disturbances"):
        images = [i for unit in plan if unit.kind == kind for i in range(unit.start, unit.stop)]
        assert sorted(images) == list(range(IMAGES))
    assert all(unit.start % batch_size == 0 for unit in plan)
    assert len({unit.id for unit in plan}) == len(plan)


def test_a_plan_is_always_the_same(small_classifier: Classifier, small_data: ImageData) -> None:
    plans = [make_plan(select(small_classifier, small_data, neurons="3"), IMAGES, BATCH) for _ in range(2)]
    assert plans[0] == plans[1]


# --- the same bytes whatever happens


def run_planned(
    subject: Subject, folder: Path, units: tuple[Unit, ...], order: list[Unit] | None = None
) -> bytes:
    """Execute these units in this order, then finish the run; the bytes of neurons.csv."""
    folder.mkdir()
    with Ledger.create(folder, subject.spec, units) as ledger:
        for unit in order or []:
            given = [(one, ledger.result(one)) for one in needed(unit, units)]
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


@pytest.mark.parametrize("done", range(0, 23, 3))
def test_a_kill_at_any_unit_boundary_and_a_resume_do_not_change_a_byte(
    subject: Subject, finished: Path, tmp_path: Path, engine: Callable[..., list[str]], done: int
) -> None:
    with Ledger(finished) as ledger:
        every = [unit.id for unit in ledger.units()]
    assert len(every) == UNITS
    before = engine(stop_at=done)
    folder = tmp_path / "run"
    if done < len(every):
        with pytest.raises(KeyboardInterrupt) as stop:
            finish(subject, folder)
        assert f"fragile-neurons resume {folder}" in "".join(stop.value.__notes__)
        with pytest.raises(IncompleteError, match=f"{len(every) - done} of {len(every)} units are left"):
            open_run(folder)
    else:
        finish(subject, folder)
    after = engine()
    finish(subject, folder)
    assert before + after == every
    assert (folder / "neurons.csv").read_bytes() == (finished / "neurons.csv").read_bytes()


def test_a_kill_between_the_last_unit_and_the_files_is_made_good(
    subject: Subject, finished: Path, tmp_path: Path, engine: Callable[..., list[str]]
) -> None:
    units = make_plan(subject.selection, IMAGES, BATCH)
    folder = tmp_path / "run"
    folder.mkdir()
    with Ledger.create(folder, subject.spec, units) as ledger:
        for unit in units:
            given = [(one, ledger.result(one)) for one in needed(unit, units)]
            ledger.record(unit, execute_unit(subject, unit, given))
    (folder / ".neurons.csv.partial").write_text("half a line")
    with pytest.raises(IncompleteError, match=f"0 of {UNITS} units are left"):
        open_run(folder)
    computed = engine()
    finish(subject, folder)
    assert computed == []
    assert (folder / "neurons.csv").read_bytes() == (finished / "neurons.csv").read_bytes()
    assert {path.name for path in folder.iterdir()} == CONTRACT_FILES


def test_a_kill_in_the_first_moment_leaves_a_folder_that_can_be_used(
    subject: Subject, finished: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / PARTIAL).write_bytes(b"SQLite format 3\0 and no more")
    (folder / f"{PARTIAL}-journal").write_bytes(b"\0" * 512)
    finish(subject, folder)
    assert (folder / "neurons.csv").read_bytes() == (finished / "neurons.csv").read_bytes()
    assert {path.name for path in folder.iterdir()} == CONTRACT_FILES


def test_a_second_run_of_a_finished_one_computes_and_writes_nothing(
    subject: Subject, own: Path, engine: Callable[..., list[str]]
) -> None:
    computed = engine()
    before = {path.name: path.stat().st_mtime_ns for path in own.iterdir() if path.suffix != ".db"}
    finish(subject, own)
    assert computed == []
    assert before == {path.name: path.stat().st_mtime_ns for path in own.iterdir() if path.suffix != ".db"}


REPEAT = """
import sys
from pathlib import Path
from fragile_neurons.runs.spec import read_spec
from fragile_neurons.workflows import run_spec
run_spec(read_spec(Path(sys.argv[1])), output=sys.argv[2])
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


# --- spec


def test_a_spec_survives_toml_and_json(subject: Subject, tmp_path: Path) -> None:
    spec = subject.spec.model_copy(update={"mean": (0.1, 0.2), "std": (0.3, 0.4), "weights": 'a "b"\\c'})
    (tmp_path / "spec.toml").write_text(spec.to_toml(), encoding="utf-8")
    assert read_spec(tmp_path / "spec.toml") == spec
    assert Spec.from_json(spec.to_json()) == spec
    assert read_spec(tmp_path / "spec.toml").digest == spec.digest


def test_a_digest_is_the_hash_of_canonical_json() -> None:
    spec = small_spec()
    fields = {
        "format_version": 1, "command": "analyze", "model": "small", "weights": None, "mean": None,
        "std": None, "data": "blobs", "split": "test", "limit": 40, "resize": None,
        "skip_bad": False, "layer": "first", "neurons": "all",
        "site": "conv", "replace": "zero", "epsilons": ["0.05"], "mode": "adaptive", "sweep": "auto",
        "standard_error": 0.001, "verdict_rule": "tested",
        "tolerance": 0.01, "device": "cpu", "dtype": "float32",
        "batch_size": 8, "threads": 1, "seed": 0, "found": None,
    }  # fmt: skip
    text = json.dumps(fields, sort_keys=True, separators=(",", ":"))
    assert spec.digest == hashlib.sha256(text.encode()).hexdigest()
    assert spec.run_name == f"small-blobs-{spec.digest[:8]}"


@pytest.mark.parametrize(
    "change", [{"seed": 1}, {"epsilons": ["0.1"]}, {"threads": 2}, {"tolerance": 0.02}, {"neurons": "4"}]
)
def test_a_digest_follows_every_option(change: dict[str, object]) -> None:
    assert small_spec(**change).digest != small_spec().digest


def test_a_run_name_is_one_plain_folder_name() -> None:
    name = small_spec(model="../x y/é:*", data="a\\b").run_name
    assert not set(name) & set('/\\:* ?"<>|')
    assert Path(name).name == name


def test_a_spec_writes_each_budget_once_exactly_and_sorted() -> None:
    assert small_spec(epsilons=["0.20", "8/255", "0"]).epsilons == ("0", "8/255", "0.2")


@pytest.mark.parametrize(
    ("change", "in_message"),
    [
        ({"sites": "conv"}, ["sites", "Extra inputs are not permitted"]),
        ({"site": "pool"}, ["site", "pool", "'conv', 'norm' or 'act'"]),
        ({"tolerance": 1.0}, ["tolerance", "1.0", "less than 1"]),
        ({"tolerance": math.nan}, ["tolerance", "nan"]),
        ({"batch_size": 3}, ["batch_size", "3", "4"]),
        ({"threads": 0}, ["threads", "0", "1"]),
        ({"seed": -1}, ["seed", "-1", "0"]),
        ({"format_version": 2}, ["format_version", "2", "1"]),
        ({"limit": "many"}, ["limit", "many", "integer"]),
        ({"epsilons": ["8"]}, ["8", "8/255"]),
        ({"epsilons": ["0.2", "51/255"]}, ["twice", "0.2"]),
    ],
)
def test_an_option_that_cannot_be_is_refused_by_name(
    change: dict[str, object], in_message: list[str]
) -> None:
    with pytest.raises(InputError) as error:
        small_spec(**change)
    for part in in_message:
        assert part in str(error.value)


def test_a_run_is_refused_when_the_model_or_the_data_is_not_the_one_planned_for(
    subject: Subject, small_classifier: Classifier, small_data: ImageData
) -> None:
    with pytest.raises(InputError, match="data_sha256 differs"):
        open_subject(subject.spec, small_classifier, small_data.take(np.arange(IMAGES)[::-1]))
    with torch.no_grad():
        next(small_classifier.parameters()).add_(1.0)
    with pytest.raises(InputError, match="weights_sha256 differs"):
        open_subject(subject.spec, small_classifier, small_data)


# --- files


def test_a_run_leaves_every_file_of_the_contract_and_no_other(finished: Path) -> None:
    open_run(finished)  # reading leaves nothing behind either
    assert {path.name for path in finished.iterdir()} == CONTRACT_FILES


@pytest.mark.parametrize("name", CONTRACT_COLUMNS)
def test_a_table_has_every_column_of_the_contract(finished: Path, name: str) -> None:
    names = parquet.read_table(finished / f"{name}.parquet").column_names
    assert [column for column in names if column in CONTRACT_COLUMNS[name]] == CONTRACT_COLUMNS[name]


def test_neurons_csv_has_the_columns_of_the_contract_in_order(finished: Path) -> None:
    with (finished / "neurons.csv").open(newline="") as file:
        header = next(csv.reader(file))
    assert header[: len(CONTRACT_COLUMNS["neurons"])] == CONTRACT_COLUMNS["neurons"]


def test_a_row_per_neuron_and_epsilon_and_the_later_columns_are_empty(finished: Path) -> None:
    run = open_run(finished)
    rows = run.neurons.to_pylist()
    assert [(row["layer"], row["channel"], row["epsilon"]) for row in rows] == [
        ("conv1", channel, 0.05) for channel in range(NEURONS)
    ]
    assert run.neurons["sampling_se"].null_count == NEURONS
    for name in set(CONTRACT_COLUMNS["neurons"]) - {"rescue", "inject", "sampling_se", "excess"}:
        may_be_empty = {"clean_q", "adv_q", "noise_excess"}
        assert name in may_be_empty or run.neurons[name].null_count == 0, name
    # two conditions, fragility, targeting and 20 random orders, 0, 1 and 2 of 4 neurons dropped
    assert parquet.read_table(finished / "cumulative.parquet").num_rows == 2 * 22 * 3
    assert run.images.num_rows == IMAGES
    groups = ["all", "fooled", "resisted", "class:one", "class:two", "class:three"]
    assert run.targeting["group"].unique().to_pylist() == groups
    assert run.targeting.num_rows == len(groups) * NEURONS


def parse(text: str, kind: pa.DataType) -> object:
    if text == "":
        return None
    if pa.types.is_floating(kind):
        return float(text)
    if pa.types.is_integer(kind):
        return int(text)
    return {"true": True, "false": False}[text] if pa.types.is_boolean(kind) else text


def test_csv_and_parquet_agree_to_the_last_digit(finished: Path) -> None:
    table = parquet.read_table(finished / "neurons.parquet")
    with (finished / "neurons.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [
        {field.name: parse(row[field.name], field.type) for field in table.schema} for row in rows
    ] == table.to_pylist()


def refuse_constant(name: str) -> None:
    raise AssertionError(f"{name} in JSON")


def test_summary_json_has_every_key_and_no_nan(finished: Path, subject: Subject) -> None:
    text = (finished / "summary.json").read_text(encoding="utf-8")
    summary = json.loads(text, parse_constant=refuse_constant)
    assert set(summary) >= CONTRACT_SUMMARY
    assert summary["data"] == {
        "name": "blobs",
        "split": "test",
        "n": IMAGES,
        "sha256": subject.data.sha256,
        "excluded": [],
        "classes": list(subject.data.classes),
    }
    assert set(summary["clean_accuracy"]) == {"value", "n", "ci95"}
    assert {"attack", "epsilon", "value", "n", "ci95"} <= set(summary["robust_accuracy"][0])
    pair_keys = {
        "x", "y", "layer", "epsilon", "spearman", "kendall", "p", "ci95", "n", "partial_spearman",
        "partial_p", "headline",
    }  # fmt: skip
    assert all(pair_keys <= set(pair) for pair in summary["correlation"])
    assert [(pair["x"], pair["y"]) for pair in summary["correlation"] if pair["headline"]] == [
        ("clean_drop", "share"),
        ("margin_drop", "excess"),
    ]
    keys = {"name", "status", "value", "meaning", "advice", "warn", "fail"}
    assert all(keys == set(check) for check in summary["checks"])
    assert summary["hardening"] is None


def test_what_the_files_say_is_what_the_network_does(
    finished: Path, small_classifier: Classifier, small_data: ImageData
) -> None:
    """Accuracies, margins and drops once more, by a copy of the network with a channel zeroed."""
    run = open_run(finished)
    images, labels = small_data[:]
    with torch.no_grad():
        logits = small_classifier(images)
    right = (logits.argmax(1) == labels).numpy()
    true = logits.gather(1, labels[:, None])[:, 0]
    other = logits.scatter(1, labels[:, None], -math.inf).amax(1)
    assert run.summary["clean_accuracy"]["value"] == right.mean()
    assert run.images["label"].to_pylist() == small_data.labels.tolist()
    assert run.images["clean_prediction"].to_pylist() == logits.argmax(1).tolist()
    np.testing.assert_allclose(np.array(run.images["clean_margin"]), (true - other).numpy(), atol=1e-5)
    for row in run.neurons.to_pylist():
        layer = small_classifier.module.get_submodule("conv1")
        assert isinstance(layer, nn.Conv2d)
        assert layer.bias is not None
        kept = layer.weight.detach().clone(), layer.bias.detach().clone()
        with torch.no_grad():
            layer.weight[row["channel"]] = 0
            layer.bias[row["channel"]] = 0
            without = (small_classifier(images).argmax(1) == labels).numpy()
            layer.weight.copy_(kept[0])
            layer.bias.copy_(kept[1])
        assert row["clean_lost"] == (right & ~without).sum()
        assert row["clean_gained"] == (~right & without).sum()
        assert row["clean_drop"] == pytest.approx(right.mean() - without.mean(), abs=1e-12)


def test_without_epsilons_there_is_one_row_per_neuron_and_nothing_on_attacks(
    small_classifier: Classifier, small_data: ImageData, finished: Path, tmp_path: Path
) -> None:
    run = analyze(small_classifier, small_data, output=tmp_path / "run", epsilons=[], batch_size=BATCH)
    assert {path.name for path in run.folder.iterdir()} == CONTRACT_FILES
    rows = run.neurons.to_pylist()
    assert [row["channel"] for row in rows] == list(range(NEURONS))
    for name in CONTRACT_COLUMNS["neurons"]:
        of_attacks = name.startswith(("adv_", "transfer_", "gap_", "noise_", "swap_")) or name in (
            "epsilon", "disturbance", "relative", "share", "wins", "excess", "rescue", "inject", "sampling_se"
        )  # fmt: skip
        if of_attacks:
            assert run.neurons[name].null_count == NEURONS, name
        else:
            assert name == "clean_q" or run.neurons[name].null_count == 0, name
    full = open_run(finished).neurons
    for name in ("clean_drop", "clean_low", "clean_high", "clean_verdict", "margin_drop", "weight_norm"):
        assert run.neurons[name].to_pylist() == full[name].to_pylist()
    assert run.summary["robust_accuracy"] == []
    assert run.summary["correlation"] == []
    assert run.images.num_rows == IMAGES
    assert run.images["epsilon"].null_count == IMAGES


def test_epsilon_zero_is_the_clean_run_and_has_no_targeting(
    small_classifier: Classifier, small_data: ImageData, tmp_path: Path
) -> None:
    run = analyze(small_classifier, small_data, output=tmp_path / "run", epsilons=["0"], batch_size=BATCH)
    for row in run.neurons.to_pylist():
        assert (row["adv_lost"], row["adv_gained"]) == (row["clean_lost"], row["clean_gained"])
        assert row["adv_margin_drop"] == pytest.approx(row["margin_drop"], abs=1e-6)
        assert row["share"] is None
    assert run.images["adversarial_prediction"].to_pylist() == run.images["clean_prediction"].to_pylist()
    margins = run.images["adversarial_margin"].to_pylist()
    assert margins == pytest.approx(run.images["clean_margin"].to_pylist(), abs=1e-5)
    assert run.images["smallest_fooling_epsilon"].null_count == IMAGES


def test_the_smallest_fooling_epsilon_is_the_first_of_the_grid_that_fools(
    small_classifier: Classifier, small_data: ImageData, tmp_path: Path
) -> None:
    grid = ["0.05", "0.1"]
    run = analyze(small_classifier, small_data, output=tmp_path / "run", epsilons=grid, neurons="1")
    rows = run.images.to_pylist()
    assert len(rows) == 2 * IMAGES
    outcomes = set()
    for one, two in zip(rows[:IMAGES], rows[IMAGES:], strict=True):
        assert (one["index"], one["epsilon"], two["epsilon"]) == (two["index"], 0.05, 0.1)
        first = next(
            (
                row["epsilon"]
                for row in (one, two)
                if row["clean_prediction"] == row["label"] != row["adversarial_prediction"]
            ),
            None,
        )
        assert one["smallest_fooling_epsilon"] == two["smallest_fooling_epsilon"] == first
        outcomes.add(first)
    assert outcomes == {0.05, 0.1, None}


def test_a_network_that_is_always_wrong_gives_undefined_not_nan(
    small_classifier: Classifier, small_data: ImageData, tmp_path: Path
) -> None:
    with torch.no_grad():
        predictions = small_classifier(small_data[:][0]).argmax(1).numpy()
    wrong = ImageData(small_data.images, (predictions + 1) % 3, small_data.classes, name="wrong")
    run = analyze(small_classifier, wrong, output=tmp_path / "run", epsilons=[EPSILON], batch_size=BATCH)
    assert run.summary["clean_accuracy"]["value"] == 0
    assert run.neurons["share"].null_count == NEURONS
    assert all(pair["spearman"] is None for pair in run.summary["correlation"] if pair["y"] == "share")
    json.loads((run.folder / "summary.json").read_text(), parse_constant=refuse_constant)
    assert ": undefined" in (run.folder / "summary.md").read_text()


def test_a_baseline_of_zero_at_an_epsilon_is_reported_and_judged_undecided(
    small_classifier: Classifier, small_data: ImageData, tmp_path: Path
) -> None:
    run = analyze(small_classifier, small_data, output=tmp_path / "run", epsilons=["1"], batch_size=BATCH)
    (attacked,) = run.summary["robust_accuracy"]
    assert attacked["value"] < 0.5
    assert run.neurons["adv_verdict"].to_pylist() == ["undecided"] * NEURONS


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    write_file(path, lambda place: place.write_text("old"))

    def fail_half_way(place: Path) -> None:
        place.write_text("ne")
        assert path.read_text() == "old"
        raise OSError("no more")

    with pytest.raises(OSError, match="no more"):
        write_file(path, fail_half_way)
    assert [(found.name, found.read_text()) for found in tmp_path.iterdir()] == [("summary.json", "old")]


# --- damage


def test_a_finished_run_is_whole(finished: Path) -> None:
    with Ledger(finished) as ledger:
        assert ledger.damage() == []


def flip_in_result(folder: Path, unit: str, position: int) -> None:
    with closing(sqlite3.connect(folder / "run.db")) as connection, connection:
        ((content,),) = connection.execute("SELECT arrays FROM results WHERE unit = ?", (unit,)).fetchall()
        damaged = bytearray(content)
        damaged[position % len(damaged)] ^= 1 << (position % 8)
        connection.execute("UPDATE results SET arrays = ? WHERE unit = ?", (bytes(damaged), unit))


def flip_in_file(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position % len(content)] ^= 1 << (position % 8)
    path.write_bytes(content)


@pytest.mark.parametrize("position", [0, 7_001, -1])
def test_a_flipped_bit_in_any_stored_result_is_found_and_made_good(
    subject: Subject, own: Path, finished: Path, position: int, engine: Callable[..., list[str]]
) -> None:
    with Ledger(own) as ledger:
        units = [unit.id for unit in ledger.units()]
    for unit in units:
        flip_in_result(own, unit, position)
        with Ledger(own) as ledger:
            assert ledger.damage() == [f"unit {unit}"]
        flip_in_result(own, unit, position)  # back again
    damaged = units[-1]
    flip_in_result(own, damaged, position)
    computed = engine()
    finish(subject, own)
    assert computed == [damaged]
    with Ledger(own) as ledger:
        assert ledger.damage() == []
    assert (own / "neurons.csv").read_bytes() == (finished / "neurons.csv").read_bytes()


@pytest.mark.parametrize("name", sorted(CONTRACT_FILES - {"run.db"}))
@pytest.mark.parametrize("position", [0, 1_003, -1])
def test_a_flipped_bit_in_any_file_is_found(own: Path, name: str, position: int) -> None:
    flip_in_file(own / name, position)
    with Ledger(own) as ledger:
        assert ledger.damage() == [f"file {name}"]


def test_a_removed_file_is_found_and_written_again_without_computing(
    subject: Subject, own: Path, finished: Path, engine: Callable[..., list[str]]
) -> None:
    (own / "neurons.csv").unlink()
    with Ledger(own) as ledger:
        assert ledger.damage() == ["file neurons.csv"]
    computed = engine()
    finish(subject, own)
    assert computed == []
    assert (own / "neurons.csv").read_bytes() == (finished / "neurons.csv").read_bytes()


def contents(database: Path) -> list[str] | None:
    try:
        with closing(sqlite3.connect(database)) as connection:
            return list(connection.iterdump())
    except (sqlite3.DatabaseError, UnicodeDecodeError):
        return None


def test_a_flipped_bit_anywhere_in_the_database_is_found_if_it_changes_anything(own: Path) -> None:
    whole = (own / "run.db").read_bytes()
    before = contents(own / "run.db")
    positions = random.Random(0).sample([i for i, byte in enumerate(whole) if byte], 60)
    found = 0
    for position in positions:
        damaged = bytearray(whole)
        damaged[position] ^= 1 << (position % 8)
        (own / "run.db").write_bytes(damaged)
        try:
            with Ledger(own) as ledger:
                seen = bool(ledger.damage())
        except IntegrityError:
            seen = True
        (own / "run.db").write_bytes(damaged)
        assert seen or contents(own / "run.db") == before, position
        found += seen
    assert found > 40


@pytest.mark.parametrize(
    "change",
    [
        """UPDATE run SET spec = replace(spec, '"seed":0', '"seed":5')""",
        """UPDATE run SET spec = replace(spec, '"seed":0', '"seed":')""",
        """UPDATE run SET spec = replace(spec, '"0.05"', '"8.05"')""",
        """UPDATE units SET unit = replace(unit, '[0, 1, 2, 3]', '[0, 1, 1, 3]')""",
        "DELETE FROM units WHERE position = 0",
        "DROP TABLE run",
    ],
)
def test_a_spec_or_plan_that_is_not_what_was_stored_is_an_integrity_error(own: Path, change: str) -> None:
    with closing(sqlite3.connect(own / "run.db")) as connection, connection:
        assert connection.execute(change).rowcount != 0
    with pytest.raises(IntegrityError, match=r"run\.db cannot be read"):
        open_run(own)


def test_a_truncated_database_is_an_integrity_error_whatever_is_asked(subject: Subject, own: Path) -> None:
    whole = (own / "run.db").read_bytes()
    lengths = [0, 1, 15, 100, 4096, len(whole) // 2, len(whole) - 4096, len(whole) - 1]
    for length in lengths:
        for ask in (
            lambda: Ledger(own).damage(),
            lambda: open_run(own),
            lambda: finish(subject, own),
        ):
            (own / "run.db").write_bytes(whole[:length])
            try:
                answer = ask()
            except IntegrityError as error:
                assert "run.db" in str(error)  # noqa: PT017  (some lengths leave enough to go on)
            else:
                # what is left was enough to name the damage, or to be made good
                assert length > 4096
                assert answer
    (own / "run.db").write_bytes(whole[:4096])
    with pytest.raises(IntegrityError):
        open_run(own)


def test_a_missing_or_broken_file_is_an_integrity_error(own: Path) -> None:
    run = open_run(own)
    (own / "summary.json").write_text("{")
    (own / "neurons.parquet").write_bytes(b"PAR1")
    (own / "targeting.parquet").unlink()
    for read in (lambda: run.summary, lambda: run.neurons, lambda: run.targeting):
        with pytest.raises(IntegrityError, match="cannot be read"):
            read()


# --- the output folder


def test_an_empty_folder_is_used(subject: Subject, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    finish(subject, tmp_path / "run")
    assert {path.name for path in (tmp_path / "run").iterdir()} == CONTRACT_FILES


def test_another_run_is_refused_with_the_names_of_what_differs(
    small_classifier: Classifier, small_data: ImageData, own: Path
) -> None:
    before = {path.name: path.read_bytes() for path in own.iterdir()}
    other = open_subject(small_spec(seed=1, tolerance=0.02), small_classifier, small_data)
    with pytest.raises(InputError, match="differs in: seed, tolerance\n"):
        finish(other, own)
    assert before == {path.name: path.read_bytes() for path in own.iterdir()}


def test_force_replaces_a_run_and_keeps_a_strangers_file(
    small_classifier: Classifier, small_data: ImageData, own: Path
) -> None:
    (own / "notes.txt").write_text("mine")
    (own / "neurons.csv.bak").write_text("mine too")
    other = open_subject(small_spec(neurons="2"), small_classifier, small_data)
    run = finish(other, own, force=True)
    assert run.neurons.num_rows == 2
    assert (own / "notes.txt").read_text() == "mine"
    assert (own / "neurons.csv.bak").read_text() == "mine too"
    with Ledger(own) as ledger:
        assert ledger.spec == other.spec
        assert ledger.damage() == []


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("kind", ["folder", "file"])
def test_what_is_not_a_run_is_never_touched(subject: Subject, tmp_path: Path, force: bool, kind: str) -> None:
    place = tmp_path / "thesis"
    if kind == "folder":
        place.mkdir()
        (place / "neurons.csv").write_text("mine")
    else:
        place.write_text("mine")
    with pytest.raises(InputError, match="not a run folder"):
        finish(subject, place, force=force)
    mine = place / "neurons.csv" if kind == "folder" else place
    assert mine.read_text() == "mine"
    assert sorted(path.name for path in tmp_path.rglob("*")) in (["neurons.csv", "thesis"], ["thesis"])


def test_a_refusal_comes_before_any_folder(
    small_classifier: Classifier, small_data: ImageData, tmp_path: Path
) -> None:
    refused: list[dict[str, Any]] = [
        *({"layer": "nope"}, {"site": "norm", "layer": "conv2"}, {"neurons": "conv1:4"}),
        *({"epsilons": grid} for grid in (["8"], ["-0.1"], ["nan"], ["0.1", "0.10"])),
        *({"mode": "x"}, {"replace": "x"}, {"verdict_rule": "x"}, {"tolerance": 1.0}, {"batch_size": 3}),
    ]
    for options in refused:
        asked: dict[str, Any] = {"output": tmp_path / "run", "epsilons": [EPSILON]}
        with pytest.raises(InputError):
            analyze(small_classifier, small_data, **{**asked, **options})
    assert list(tmp_path.iterdir()) == []


# --- disks


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """No file of this process may grow beyond so many bytes: writes fail as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def kept_units(folder: Path) -> int:
    if not (folder / "run.db").exists():
        return 0
    with Ledger(folder) as ledger:
        assert ledger.damage() == []
        return len(ledger.units()) - len(ledger.pending())


@pytest.mark.parametrize("kilobytes", [0, 1, 8, 24, 48, 64])
def test_a_disk_that_takes_no_more_is_one_message_and_finished_units_are_kept(
    subject: Subject, finished: Path, tmp_path: Path, kilobytes: int, engine: Callable[..., list[str]]
) -> None:
    folder = tmp_path / "run"
    before = engine()
    with (
        file_size_limit(1024 * kilobytes),
        pytest.raises(InputError, match="the run folder cannot be written"),
    ):
        finish(subject, folder)
    kept = kept_units(folder)
    assert kept in (len(before), len(before) - 1)
    assert not [path.name for path in folder.iterdir() if path.name.endswith(".partial")]
    after = engine()
    finish(subject, folder)
    assert len(after) == UNITS - kept
    assert (folder / "neurons.csv").read_bytes() == (finished / "neurons.csv").read_bytes()


HOLDING = """
import sys, time
from pathlib import Path
from fragile_neurons.runs.folder import alone
with alone(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_second_process_is_refused_and_a_killed_one_leaves_no_lock(
    subject: Subject, finished: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    with subprocess.Popen(
        [sys.executable, "-c", HOLDING, str(folder)], stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(InputError, match="another process is at work"):
            run_subject(subject, output=folder, force=True, progress=silent)
        assert list(folder.iterdir()) == []
        other.kill()
    finish(subject, folder)
    assert (folder / "neurons.csv").read_bytes() == (finished / "neurons.csv").read_bytes()


DISK = 3072  # kB


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 3 MB; only root can mount one."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK}k", "tmpfs", str(place)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only root can mount a small file system")
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk_is_one_message_and_the_run_goes_on_when_there_is_room(
    subject: Subject, finished: Path, small_disk: Path, engine: Callable[..., list[str]]
) -> None:
    folder = small_disk / "run"
    kept = []
    ballast = small_disk / "ballast"
    for free in (0, 20, 40, 60, 100, 140):
        ballast.write_bytes(b"\0" * 1024 * (DISK - free) if free else b"")
        if free == 0:
            with pytest.raises(OSError, match="No space left"):
                ballast.write_bytes(b"\0" * 1024 * 2 * DISK)
        engine()
        with pytest.raises(InputError) as error:
            finish(subject, folder)
        assert "the run folder cannot be written" in str(error.value)
        assert "full" in str(error.value)
        ballast.write_bytes(b"")
        kept.append(kept_units(folder))
    assert kept == sorted(kept)
    after = engine()
    finish(subject, folder)
    assert len(after) == UNITS - kept[-1]
    assert (folder / "neurons.csv").read_bytes() == (finished / "neurons.csv").read_bytes()


def test_a_read_only_disk_is_one_message_for_reading_and_for_writing(
    subject: Subject, finished: Path, small_disk: Path
) -> None:
    remount = ["mount", "-o", "remount,{}", str(small_disk)]
    shutil.copytree(finished, small_disk / "run")
    subprocess.run([part.format("ro") for part in remount], check=True)
    with pytest.raises(InputError, match=r"cannot be written\n.*Read-only file system"):
        finish(subject, small_disk / "new")
    with pytest.raises(InputError, match="cannot be written"):
        open_run(small_disk / "run")
    subprocess.run([part.format("rw") for part in remount], check=True)
    assert open_run(small_disk / "run").neurons.num_rows == NEURONS


def test_a_folder_that_cannot_be_made_is_one_message(subject: Subject, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for folder in (tmp_path / "file" / "run", Path("/proc/run")):
        with pytest.raises(InputError) as error:
            finish(subject, folder)
        assert str(folder) in str(error.value)
        assert "choose another --output" in str(error.value)
    assert (tmp_path / "file").read_text() == "mine"


# --- the model


def state_of(classifier: Classifier) -> dict[str, object]:
    """Everything of a model that an analysis could change, to the bit."""
    modules = dict(classifier.named_modules())
    hooks = (
        "_forward_hooks",
        "_forward_pre_hooks",
        "_backward_hooks",
        "_backward_pre_hooks",
    )
    tensors = {**dict(classifier.named_parameters()), **dict(classifier.named_buffers())}
    return {
        "tensors": {name: tensor.detach().numpy().tobytes() for name, tensor in tensors.items()},
        "requires_grad": {name: tensor.requires_grad for name, tensor in tensors.items()},
        "gradients": {name: tensor.grad is None for name, tensor in tensors.items()},
        "training": {name: module.training for name, module in modules.items()},
        "hooks": {name: [len(getattr(module, kind)) for kind in hooks] for name, module in modules.items()},
        "keys": list(classifier.state_dict()),
    }


def prepare(classifier: Classifier) -> None:
    """A model as a user may hand it over: partly frozen, partly in train mode."""
    classifier.zero_grad(set_to_none=True)
    classifier.module.get_submodule("conv2").requires_grad_(False)
    classifier.module.train()
    classifier.module.get_submodule("norm1").eval()


def test_the_model_is_bit_identical_after_a_run(
    small_classifier: Classifier, small_data: ImageData, tmp_path: Path
) -> None:
    prepare(small_classifier)
    threads = torch.get_num_threads()
    before = state_of(small_classifier)
    analyze(
        small_classifier,
        small_data,
        output=tmp_path / "run",
        layer="all",
        neurons="2",
        replace="mean",
        epsilons=[EPSILON],
    )
    assert state_of(small_classifier) == before
    assert torch.get_num_threads() == threads


class FailingAtError(Exception):
    pass


@pytest.mark.parametrize("passes", [3, 10, 25, 60])
def test_the_model_is_bit_identical_after_an_exception_in_the_middle(
    small_classifier: Classifier, small_data: ImageData, tmp_path: Path, passes: int
) -> None:
    """The network's own forward fails at some pass: in the probe, in a sweep, in a recording."""
    prepare(small_classifier)
    calls = 0

    def fail(*_: object) -> None:
        nonlocal calls
        calls += 1
        if calls == passes:
            raise FailingAtError

    handle = small_classifier.module.get_submodule("pool").register_forward_hook(fail)
    before = state_of(small_classifier)
    threads = torch.get_num_threads()
    with pytest.raises((FailingAtError, InputError)):
        analyze(small_classifier, small_data, output=tmp_path / "run", epsilons=[EPSILON], batch_size=BATCH)
    assert calls == passes
    assert state_of(small_classifier) == before
    assert torch.get_num_threads() == threads
    handle.remove()


def test_the_arguments_are_left_alone(
    small_classifier: Classifier, small_data: ImageData, tmp_path: Path
) -> None:
    grid: list[str | float | Fraction] = ["0.1", 0, Fraction(8, 255)]
    pixels, labels = np.array(small_data.images), small_data.labels.copy()
    analyze(small_classifier, small_data, output=tmp_path / "run", epsilons=grid, neurons="1")
    assert grid == ["0.1", 0, Fraction(8, 255)]
    assert np.array_equal(np.asarray(small_data.images), pixels)
    assert np.array_equal(small_data.labels, labels)


def test_progress_hears_every_unit_and_the_end(subject: Subject, tmp_path: Path) -> None:
    heard: list[tuple[int, str]] = []

    @contextmanager
    def listen(title: str, total: int) -> Iterator[Callable[[int, str], None]]:
        heard.append((total, title))
        yield lambda done, note: heard.append((done, note))

    run_subject(subject, output=tmp_path / "run", force=False, progress=listen)
    assert heard[:2] == [(UNITS, "units"), (0, "")]
    assert [done for done, _ in heard[2:]] == list(range(1, UNITS + 1))
    assert heard[2][1] == "inputs images 0-39"
    assert [note for _, note in heard[3:5]] == ["gradients images 0-39", "predictions images 0-31"]
