"""`evaluate`: attacks, worst case and smallest epsilons against closed forms and plain recounts."""

from __future__ import annotations

import json
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import fragile_neurons as fn
from fragile_neurons.analysis.robustness import RobustAccuracy, observe_attack, observe_smallest, worst_case
from fragile_neurons.attacks import autoattack
from fragile_neurons.attacks.smallest import HALVINGS, smallest_fooling_epsilons
from fragile_neurons.runs.execute import execute_unit
from fragile_neurons.runs.ledger import Ledger
from fragile_neurons.runs.plan import Unit
from fragile_neurons.runs.remaining import silent
from fragile_neurons.runs.spec import EvaluateSpec, make_spec
from fragile_neurons.runs.subject import Subject, open_subject
from fragile_neurons.workflows import run_subject

ATTACKS = ("fgsm", "pgd-margin", "sign-noise")
EPSILONS = ("0.02", "0.06")
RUN_FILES = {
    "spec.toml",
    "summary.json",
    "summary.md",
    "report.html",
    "images.parquet",
    "examples.npz",
    "run.db",
}


@pytest.fixture(autouse=True)
def no_square(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without AutoAttack: its Square takes long, and has tests of its own."""
    monkeypatch.setattr(autoattack, "is_installed", lambda: False)


def spec_of(data: fn.ImageData, **changes: object) -> EvaluateSpec:
    options: dict[str, object] = {
        "command": "evaluate",
        "model": "small",
        "data": data.name,
        "limit": len(data),
        "epsilons": EPSILONS,
        "attacks": ATTACKS,
        "batch_size": 16,
        "threads": 1,
    }
    spec = make_spec(**options | changes)
    assert isinstance(spec, EvaluateSpec)
    return spec


@pytest.fixture
def subject(small_classifier: fn.Classifier, small_data: fn.ImageData) -> Subject:
    return open_subject(spec_of(small_data), small_classifier, small_data)


@pytest.fixture(scope="module")
def kept() -> dict[str, Path]:
    return {}


@pytest.fixture
def finished(subject: Subject, kept: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> fn.Run:
    """A finished run; computed once, so tests must not change it."""
    if "run" not in kept:
        kept["run"] = tmp_path_factory.mktemp("finished") / "run"
        run_subject(subject, output=kept["run"], force=False, progress=silent)
    return fn.open_run(kept["run"])


# --- what a run says


def test_a_run_leaves_its_files_and_every_key_of_the_contract(finished: fn.Run) -> None:
    assert {path.name for path in finished.folder.iterdir()} == RUN_FILES
    summary = json.loads((finished.folder / "summary.json").read_text(encoding="utf-8"))
    assert summary.keys() >= {
        "format_version", "spec", "environment", "model", "data", "layers", "site", "clean_accuracy",
        "robust_accuracy", "dropout", "targeting", "correlation", "hardening", "checks",
    }  # fmt: skip
    assert (summary["spec"]["command"], summary["site"], summary["layers"]) == ("evaluate", None, [])


def test_the_summary_is_a_recount_of_the_images(finished: fn.Run, small_data: fn.ImageData) -> None:
    rows = finished.images.to_pylist()
    assert len(rows) == len(ATTACKS) * len(EPSILONS) * len(small_data)
    right: dict[tuple[str, float], list[bool]] = {}
    for row in rows:
        hit = row["adversarial_prediction"] == row["label"]
        assert (row["adversarial_margin"] > 0) == hit
        right.setdefault((row["attack"], row["epsilon"]), []).append(hit)
        right.setdefault((row["index"], row["epsilon"]), []).append(hit)
    for found in finished.summary["robust_accuracy"]:
        epsilon = float(found["epsilon"])
        if found["attack"] == "worst case":
            expected = np.mean([all(right[index, epsilon]) for index in small_data.indices])
        else:
            expected = np.mean(right[found["attack"], epsilon])
        assert found["value"] == pytest.approx(expected, abs=1e-12)
        assert found["n"] == len(small_data)
        assert found["ci95"][0] <= found["value"] <= found["ci95"][1]
        per_class = found["per_class"].values()
        assert sum(one["n"] for one in per_class) == len(small_data)
        assert sum(one["value"] * one["n"] for one in per_class) / len(small_data) == pytest.approx(expected)


def test_the_smallest_epsilon_is_below_every_epsilon_that_fooled(finished: fn.Run) -> None:
    rows = [row for row in finished.images.to_pylist() if row["clean_prediction"] == row["label"]]
    fooled = [row for row in rows if row["adversarial_prediction"] != row["label"]]
    assert fooled
    assert all(row["smallest_fooling_epsilon"] <= row["epsilon"] for row in fooled)
    smallest = {row["index"]: row["smallest_fooling_epsilon"] for row in rows}
    found = finished.summary["smallest_fooling_epsilon"]
    values = [np.inf if value is None else value for value in smallest.values()]
    assert found["n"] == len(values)
    assert found["not_fooled"] == sum(np.isinf(values))
    median = float(np.median(values))
    assert found["median"] == (pytest.approx(median) if np.isfinite(median) else None)


def test_the_cost_is_what_a_hook_counts(
    finished: fn.Run, small_classifier: fn.Classifier, small_data: fn.ImageData
) -> None:
    cost = {one["attack"]: one for one in finished.summary["cost"]}
    assert cost["fgsm"] == {"attack": "fgsm", "forward": 1.0, "backward": 1.0}
    assert cost["sign-noise"]["backward"] == 0
    assert 1 < cost["pgd-margin"]["backward"] <= cost["pgd-margin"]["forward"]


def test_all_checks_are_in_the_summary_and_in_the_report(finished: fn.Run) -> None:
    checks = finished.summary["checks"]
    names = [check["name"] for check in checks]
    assert len(set(names)) == len(names) == 26
    square = next(check for check in checks if check["name"] == "Square")
    assert square["status"] == "not applicable"
    assert "pip install 'fragile-neurons[autoattack]'" in square["meaning"]
    report = (finished.folder / "summary.md").read_text(encoding="utf-8")
    assert all(f"| {name} |" in report for name in names)
    assert "| worst case |" in report


def test_the_command_equals_the_library(
    finished: fn.Run, small_classifier: fn.Classifier, small_data: fn.ImageData, tmp_path: Path
) -> None:
    again = fn.evaluate(
        small_classifier,
        small_data,
        output=tmp_path / "again",
        attacks=ATTACKS,
        epsilons=EPSILONS,
        batch_size=16,
    )
    assert again.summary["robust_accuracy"] == finished.summary["robust_accuracy"]


# --- a killed run


@pytest.mark.parametrize("done", [0, 1, 3, 7, 13, 17])
def test_a_killed_run_resumes_to_the_same_bytes(
    subject: Subject, finished: fn.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, done: int
) -> None:
    computed: list[str] = []

    def watched(one: Subject, unit: Unit, *given: Any) -> dict[str, Any]:
        if len(computed) == done:
            raise KeyboardInterrupt
        computed.append(unit.id)
        return execute_unit(one, unit, *given)

    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr("fragile_neurons.runs.engines.local.execute_unit", watched)
        with pytest.raises(KeyboardInterrupt):
            run_subject(subject, output=folder, force=False, progress=silent)
    with Ledger(folder) as ledger:
        assert len(ledger.units()) - len(ledger.pending()) == done
        assert len(ledger.units()) > done
    run_subject(subject, output=folder, force=False, progress=silent)
    for name in ("summary.json", "images.parquet", "summary.md", "spec.toml"):
        assert (folder / name).read_bytes() == (finished.folder / name).read_bytes(), name


# --- worst case and smallest epsilon


def test_the_worst_case_is_of_each_image(small_data: fn.ImageData) -> None:
    right = [np.array([[True, True, False]]), np.array([[False, True, True]])]
    labels, grid = np.array([0, 1, 2]), (Fraction(1, 10),)
    curves = [
        RobustAccuracy(name, grid, one, labels, small_data.classes)
        for name, one in zip(("a", "b"), right, strict=True)
    ]
    assert worst_case(curves).right.tolist() == [[False, True, False]]
    assert worst_case(curves).at(0).value == pytest.approx(1 / 3)


def test_bisection_finds_the_closed_form_of_a_linear_network() -> None:
    torch.manual_seed(1)
    classifier = fn.Classifier(nn.Sequential(nn.Flatten(), nn.Linear(36, 2)))
    images = torch.rand(40, 1, 6, 6) * 0.4 + 0.3  # no bound within 0.3
    with torch.no_grad():
        logits = classifier(images)
    labels = logits.argmax(1)
    labels[:5] = 1 - labels[:5]  # wrong from the start
    weight = classifier.state_dict()["module.1.weight"]
    margin = (logits[:, 0] - logits[:, 1]).abs()
    exact = margin / (weight[0] - weight[1]).abs().sum()
    exact[:5] = 0
    largest = 0.2 * float(exact.max()) + 0.8 * float(exact.median())  # some resist it
    found = smallest_fooling_epsilons(
        classifier, images, labels, largest, generator=torch.Generator().manual_seed(0)
    )
    resists = exact > largest
    assert resists.any()
    assert found[resists].isnan().all()
    assert (found[~resists] >= exact[~resists] * (1 - 1e-5)).all()
    assert (found[~resists] <= exact[~resists] + largest / 2**HALVINGS + 1e-6).all()


def test_the_smallest_epsilons_do_not_depend_on_the_span(
    small_classifier: fn.Classifier, small_data: fn.ImageData
) -> None:
    options = {"batch_size": 8, "seed": 3}
    whole = observe_smallest(small_classifier, small_data, Fraction(1, 10), **options)
    parts = [
        observe_smallest(
            small_classifier, small_data, Fraction(1, 10), start=start, stop=start + 8, **options
        )
        for start in range(0, 40, 8)
    ]
    np.testing.assert_array_equal(whole, np.concatenate(parts))


# --- bad input


def refused(message: str, **changes: object) -> Callable[[fn.Classifier, fn.ImageData], None]:
    def check(classifier: fn.Classifier, data: fn.ImageData) -> None:
        with pytest.raises(fn.InputError, match=message):
            open_subject(spec_of(data, **changes), classifier, data)

    return check


@pytest.mark.parametrize(
    "check",
    [
        pytest.param(refused("no such attack(.|\n)*fgsm, pgd", attacks=["fgsm", "cw"]), id="unknown"),
        pytest.param(refused("each attack once", attacks=["fgsm", "fgsm"]), id="twice"),
        pytest.param(refused("the option attacks is not usable", attacks=[]), id="none"),
        pytest.param(refused("epsilon above 0", epsilons=[]), id="no epsilon"),
        pytest.param(refused("epsilon above 0", epsilons=["0"]), id="only epsilon 0"),
        pytest.param(refused("too small for any pixel", epsilons=["1e-9"]), id="invisible"),
        pytest.param(
            refused(r"none of the attacks is installed(.|\n)*pip install", attacks=["autoattack"]), id="extra"
        ),
        pytest.param(refused("there is no file", attacks=["gone.py:attack"]), id="file"),
    ],
)
def test_what_cannot_be_evaluated_is_refused_before_any_work(
    check: Callable[[fn.Classifier, fn.ImageData], None],
    small_classifier: fn.Classifier,
    small_data: fn.ImageData,
) -> None:
    check(small_classifier, small_data)


def test_an_attack_that_is_not_installed_has_a_row_that_says_how(
    small_classifier: fn.Classifier, small_data: fn.ImageData, tmp_path: Path
) -> None:
    run = fn.evaluate(
        small_classifier,
        small_data,
        output=tmp_path / "run",
        attacks=["fgsm", "autoattack"],
        epsilons=["0.05"],
    )
    assert run.summary["unavailable"] == [
        {"attack": "autoattack", "install": "pip install 'fragile-neurons[autoattack]'"}
    ]
    assert {row["attack"] for row in run.summary["robust_accuracy"]} == {"fgsm", "worst case"}
    report = (run.folder / "summary.md").read_text(encoding="utf-8")
    assert "| autoattack | not installed: pip install 'fragile-neurons\\[autoattack\\]' |" in report


OWN = """
import torch

def far(classifier, images, labels, epsilons, *, generator=None):
    return torch.stack([images + 5 for _ in epsilons])

def greedy(classifier, images, labels, epsilons, *, generator=None):
    images.zero_()
    return torch.stack([images for _ in epsilons])
"""


def test_an_own_attack_is_projected_and_told_of(
    small_classifier: fn.Classifier, small_data: fn.ImageData, tmp_path: Path
) -> None:
    (tmp_path / "own.py").write_text(OWN)
    name = f"{tmp_path / 'own.py'}:far"
    run = fn.evaluate(
        small_classifier, small_data, output=tmp_path / "run", attacks=[name], epsilons=["0.05"]
    )
    check = next(check for check in run.summary["checks"] if check["name"] == "budget and bounds")
    assert (check["status"], check["value"]) == ("fail", pytest.approx(4.95, abs=0.5))
    assert name in check["meaning"]
    images, labels = small_data[:]
    with torch.no_grad():
        expected = small_classifier((images + 0.05).clamp(0, 1)).argmax(1) == labels
    assert run.summary["robust_accuracy"][0]["value"] == pytest.approx(expected.float().mean().item())
    with pytest.raises(fn.InputError, match="changed what it was given"):
        observe_attack(
            small_classifier,
            small_data,
            f"{tmp_path / 'own.py'}:greedy",
            [Fraction(1, 10)],
            batch_size=8,
            seed=0,
        )


ROGUES = """
import random
import numpy as np
import torch

def drawing(classifier, images, labels, epsilons, *, generator=None):
    shift = torch.rand(()) + np.random.rand() + random.random()
    return torch.stack([images + float(one) * float(shift) / 3 for one in epsilons])

def damaging(classifier, images, labels, epsilons, *, generator=None):
    with torch.no_grad():
        next(classifier.parameters()).zero_()
    return torch.stack([images for _ in epsilons])

def leaving(classifier, images, labels, epsilons, *, generator=None):
    raise SystemExit(0)

def positive(classifier, images, labels, epsilons, *, generator=None):
    assert all(epsilons)
    return torch.stack([images.clone() for _ in epsilons])

def helping(classifier, images, labels, epsilons, *, generator=None):
    from fragile_neurons.attacks.fgsm import gradient_sign
    _, sign = gradient_sign(classifier, images, labels)
    return torch.stack([images - float(one) * sign for one in epsilons])
"""


@pytest.fixture
def rogues(tmp_path: Path) -> Path:
    (tmp_path / "rogues.py").write_text(ROGUES)
    return tmp_path / "rogues.py"


def observe(
    classifier: fn.Classifier, data: fn.ImageData, attack: str, epsilons: tuple[str, ...] = ("0.1",)
) -> Any:
    grid = [Fraction(one) for one in epsilons]
    return observe_attack(classifier, data, attack, grid, batch_size=16, seed=3)


def test_global_random_numbers_of_an_own_attack_follow_the_seed(
    small_classifier: fn.Classifier, small_data: fn.ImageData, rogues: Path
) -> None:
    before = torch.random.get_rng_state()
    first = observe(small_classifier, small_data, f"{rogues}:drawing")
    assert torch.equal(torch.random.get_rng_state(), before)
    np.random.seed(7)
    torch.rand(5)
    np.testing.assert_array_equal(
        first.margin, observe(small_classifier, small_data, f"{rogues}:drawing").margin
    )


def test_an_own_attack_may_neither_change_the_network_nor_end_the_process(
    small_classifier: fn.Classifier, small_data: fn.ImageData, rogues: Path
) -> None:
    before = small_classifier.sha256()
    with pytest.raises(fn.InputError, match="changed the network"):
        observe(small_classifier, small_data, f"{rogues}:damaging")
    assert small_classifier.sha256() == before
    with pytest.raises(fn.InputError, match="the attack failed"):
        observe(small_classifier, small_data, f"{rogues}:leaving")


def test_an_own_attack_is_not_asked_for_epsilon_0(
    small_classifier: fn.Classifier, small_data: fn.ImageData, rogues: Path
) -> None:
    found = observe(small_classifier, small_data, f"{rogues}:positive", ("0", "0.1"))
    with torch.no_grad():
        clean = small_classifier(small_data[:][0]).argmax(1).numpy()
    np.testing.assert_array_equal(found.prediction, np.stack([clean, clean]))


def test_what_is_wrong_without_attack_is_never_robust(
    small_classifier: fn.Classifier, small_data: fn.ImageData, rogues: Path, tmp_path: Path
) -> None:
    labels = small_data.labels.copy()
    labels[:10] = (labels[:10] + 1) % 3
    wrong = fn.ImageData(small_data.images, labels, small_data.classes)
    options: dict[str, Any] = {"attack": f"{rogues}:helping", "batch_size": 16}
    attempts = observe_attack(small_classifier, wrong, epsilons=[Fraction(9, 10)], seed=0, **options)
    plain = fn.robust_accuracy(small_classifier, wrong, epsilons=["0.9"], **options)
    run = fn.evaluate(
        small_classifier,
        wrong,
        output=tmp_path / "run",
        attacks=[f"{rogues}:helping"],
        epsilons=["0.9"],
        batch_size=16,
    )
    clean = run.summary["clean_accuracy"]["value"]
    assert (attempts.prediction[0] == labels).mean() > clean  # the attack helps, so the test can fail
    assert plain.at(0).value <= clean
    assert all(row["value"] <= clean for row in run.summary["robust_accuracy"])


def test_an_own_attack_that_was_edited_is_another_run(
    small_classifier: fn.Classifier, small_data: fn.ImageData, rogues: Path
) -> None:
    spec = spec_of(small_data, attacks=[f"{rogues}:positive"])
    planned = open_subject(spec, small_classifier, small_data).spec
    open_subject(planned, small_classifier, small_data)
    rogues.write_text(ROGUES + "\n# edited\n")
    with pytest.raises(fn.InputError, match="attacks_sha256 differs"):
        open_subject(planned, small_classifier, small_data)


def test_logits_that_are_not_finite_under_attack_are_refused(small_data: fn.ImageData) -> None:
    class Broken(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images.flatten(1)[:, :3].log()

    bright = fn.ImageData(
        np.maximum(np.asarray(small_data.images), 50), small_data.labels, small_data.classes
    )
    with pytest.raises(fn.InputError, match="logits are not finite"):
        observe(fn.Classifier(Broken()), bright, "sign-noise", ("0.9",))


def test_two_classes_are_enough(tmp_path: Path) -> None:
    torch.manual_seed(0)
    data = fn.ImageData(
        np.random.default_rng(0).integers(0, 256, (20, 1, 6, 6), dtype=np.uint8),
        np.arange(20) % 2,
        ("a", "b"),
    )
    network = fn.Classifier(nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 2)))
    run = fn.evaluate(network, data, output=tmp_path / "run", attacks=["pgd", "pgd-margin"], epsilons=["0.1"])
    checks = {check["name"]: check for check in run.summary["checks"]}
    assert checks["equal logits"]["status"] == "not applicable"
    assert checks["PGD and FGSM"]["status"] == "not applicable"
    assert "chance" in checks["PGD and FGSM"]["meaning"]
