"""Runs: plans, specs, the files of the contract, the folder; the model is left as it was."""

from __future__ import annotations

import csv
import hashlib
import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from pyarrow import parquet
from small import BATCH, CONTRACT_FILES, EPSILON, IMAGES, NEURONS, UNITS, finish, small_spec
from torch import nn

from fragile_neurons import (
    Classifier,
    ImageData,
    IncompleteError,
    InputError,
    analyze,
    evaluate,
    open_run,
)
from fragile_neurons.analysis.selection import select
from fragile_neurons.runs.export import write_file
from fragile_neurons.runs.ledger import Ledger
from fragile_neurons.runs.plan import make_plan
from fragile_neurons.runs.spec import Spec, make_spec, read_options
from fragile_neurons.runs.subject import Subject, open_subject
from fragile_neurons.workflows import run_subject

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


# --- spec


def test_a_spec_survives_toml_and_json(subject: Subject, tmp_path: Path) -> None:
    spec = subject.spec.model_copy(update={"mean": (0.1, 0.2), "std": (0.3, 0.4), "weights": 'a "b"\\c'})
    (tmp_path / "spec.toml").write_text(spec.to_toml(), encoding="utf-8")
    assert make_spec(**read_options(tmp_path / "spec.toml")[0]) == spec
    assert Spec.from_json(spec.to_json()) == spec
    assert make_spec(**read_options(tmp_path / "spec.toml")[0]).digest == spec.digest


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


@pytest.mark.parametrize("passes", [3, 12, 25, 60])
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
    with pytest.raises((FailingAtError, InputError, IncompleteError)):
        analyze(small_classifier, small_data, output=tmp_path / "run", epsilons=[EPSILON], batch_size=BATCH)
    assert calls >= passes
    assert state_of(small_classifier) == before
    assert torch.get_num_threads() == threads
    handle.remove()


def test_one_thread_asked_for_in_python_is_what_the_run_takes(
    small_classifier: Classifier, small_data: ImageData, tmp_path: Path
) -> None:
    seen = set()
    handle = small_classifier.register_forward_hook(lambda *_: seen.add(torch.get_num_threads()))
    options: dict[str, Any] = {"epsilons": EPSILON, "threads": 1, "batch_size": BATCH}
    run = analyze(small_classifier, small_data, output=tmp_path / "analyze", neurons=2, **options)
    assert (run.spec.threads, run.neurons.num_rows, seen) == (1, 2, {1})
    run = evaluate(small_classifier, small_data, output=tmp_path / "evaluate", attacks="fgsm", **options)
    assert (run.spec.threads, run.summary["spec"]["attacks"], seen) == (1, ["fgsm"], {1})
    handle.remove()
    with pytest.raises(InputError, match="threads"):
        analyze(small_classifier, small_data, epsilons=[], threads=0)


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
