"""A fake for every check: flagged by the check that is named for it, not without it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from torch import nn

import fragile_neurons as fn
from fragile_neurons.attacks import autoattack
from fragile_neurons.attacks.apply import Attack
from fragile_neurons.attacks.fgsm import fgsm
from fragile_neurons.attacks.pgd import ascend, pgd
from fragile_neurons.evidence import (
    GIVEN,
    LABEL,
    UNBOUNDED,
    Arrays,
    conditions,
    observe_condition,
    observe_gradients,
    observe_inputs,
)
from fragile_neurons.honesty import Evidence, check_attacks, check_inputs
from fragile_neurons.probe import Check, probe
from fragile_neurons.questions import QUESTIONS

IMAGES = 32
EPSILON = Fraction(1, 10)
TEN = tuple("0123456789")


@pytest.fixture(scope="module")
def data() -> fn.ImageData:
    return fn.load_data("mnist", limit=64)


@pytest.fixture(scope="module")
def honest() -> nn.Module:
    return fn.load_model("mnist-cnn")


# --- networks that look more robust than they are


class Wrapped(nn.Module):
    """A network behind something that is not quite itself."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def logits(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.network(images)
        return logits


class Scaled(Wrapped):
    """Logits times 1000: the softmax is saturated."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return 1000 * self.logits(images)


class Quantised(Wrapped):
    """Pixels rounded to a few levels: no gradient passes."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.logits((images * 8).round() / 8)


class StraightThrough(Wrapped):
    """The same, with a gradient that pretends that nothing is rounded."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.logits(images + ((images * 8).round() / 8 - images).detach())


class Detached(Wrapped):
    """The network behind a detach, beside a weak branch that does pass a gradient."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__(network)
        self.branch = nn.Linear(784, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        branch: torch.Tensor = self.branch(images.flatten(1))
        return self.logits(images.detach()) + 0.01 * branch


class _Negated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: torch.Tensor) -> torch.Tensor:
        return images.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        return -gradients[0]


class Negated(Wrapped):
    """A gradient of the wrong sign: whoever follows it makes the network surer."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        turned: torch.Tensor = _Negated.apply(images)
        return self.logits(turned)


class OneHot(Wrapped):
    """Decisions instead of scores, scaled; the gradient is the network's own."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits = self.logits(images)
        decided = 10 * nn.functional.one_hot(logits.argmax(1), logits.shape[1]).float()
        return decided + (logits - logits.detach())


class Moody(Wrapped):
    """Answers otherwise after every second pass."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__(network)
        self.count = 0

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.count += 1
        return self.logits(images).roll(self.count // 2 % 2, dims=1)


# --- the checks of a network


def inputs_of(network: nn.Module, data: fn.ImageData) -> dict[str, Check]:
    torch.manual_seed(0)
    classifier = fn.Classifier(network).eval()
    observed = observe_inputs(classifier, data, images=IMAGES)
    gradients = observe_gradients(classifier, data, images=IMAGES)
    return {check.name: check for check in check_inputs(observed, gradients, data.classes)}


def attacks_of(
    network: nn.Module, data: fn.ImageData, names: Sequence[str], **fakes: Attack
) -> dict[str, Check]:
    """The checks that hold these conditions against each other; the others are as clean."""
    classifier = fn.Classifier(network).eval()
    images, labels = data[:IMAGES]
    with torch.no_grad():
        clean = (classifier(images).argmax(1) == labels).numpy()
    attacks = {**conditions(data), "Square": partial(autoattack.square, steps=200), **fakes}
    held = {name: clean[None].copy() for name in attacks}
    for name in names:
        grid = [Fraction(1)] if name == UNBOUNDED else [EPSILON]
        found = observe_condition(attacks[name], classifier, data, grid, images=IMAGES, seed=0)
        held[name] = found["right"]
    evidence = Evidence(
        reported={"fgsm": clean[None]},
        worst=clean[None],
        overshoot={"fgsm": 0.0},
        clean=clean,
        unbounded=held.pop(UNBOUNDED),
        held=held,
        classes=len(data.classes),
    )
    return {check.name: check for check in check_attacks(evidence)}


def test_the_honest_network_passes(honest: nn.Module, data: fn.ImageData) -> None:
    checks = inputs_of(honest, data)
    assert {name: check.status for name, check in checks.items()} == dict.fromkeys(checks, "pass") | {
        "class order": "not applicable"
    }


@pytest.mark.parametrize(
    ("fake", "name"),
    [
        (Quantised, "zero gradient"),
        (Scaled, "zero gradient"),
        (StraightThrough, "gradient"),
        (Detached, "gradient"),
        (Negated, "gradient"),
        (OneHot, "equal logits"),
        (Moody, "epsilon 0"),
    ],
)
def test_a_fake_network_fails_its_check(
    fake: Callable[[nn.Module], nn.Module], name: str, honest: nn.Module, data: fn.ImageData
) -> None:
    torch.manual_seed(0)
    check = inputs_of(fake(honest), data)[name]
    assert check.status == "fail"
    assert check.advice == QUESTIONS[name].advice
    assert QUESTIONS[name].statistic in check.meaning


def test_pixels_that_left_the_range_fail(honest: nn.Module) -> None:
    pixels = np.random.default_rng(0).random((IMAGES, 1, 28, 28), np.float32)
    data = fn.ImageData(pixels, np.arange(IMAGES) % 10, TEN)
    assert inputs_of(honest, data)["pixel range"].value == 0
    pixels[3, 0, 2, 2] = 1.5  # checked when it was handed over, and changed since
    check = inputs_of(honest, data)["pixel range"]
    assert check.status == "fail"
    assert check.value == pytest.approx(0.5)


def test_an_exact_one_hot_output_is_refused(honest: nn.Module, data: fn.ImageData) -> None:
    class Exact(OneHot):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return nn.functional.one_hot(self.logits(images).argmax(1), 10).float()

    with pytest.raises(fn.InputError, match="probabilities, not logits"):
        probe(fn.Classifier(Exact(honest)).eval(), *data[:8], data.classes)


@pytest.mark.slow
def test_an_evaluation_by_fgsm_alone_is_told_that_it_proves_nothing(
    honest: nn.Module, data: fn.ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(autoattack, "is_installed", lambda: False)
    few, statuses = data.take(np.arange(IMAGES)), {}
    for attacks in (["fgsm"], ["pgd-strong"]):
        run = fn.evaluate(
            fn.Classifier(honest), few, attacks=attacks, epsilons=["0.15"], output=tmp_path / attacks[0]
        )
        (check,) = [check for check in run.summary["checks"] if check["name"] == "stronger attack"]
        statuses[attacks[0]] = check["status"]
    assert statuses == {"fgsm": "fail", "pgd-strong": "pass"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "source", "epsilon"),
    [
        ("mnist-cnn", "mnist", "0.1"),
        ("mnist-cnn-robust", "mnist", "0.2"),
        ("cifar10-resnet20", "cifar10", "1/255"),
        ("resnet18", "cifar10", "1/255"),
        ("squeezenet1_1", "cifar10", "1/255"),
        ("mobilenet_v3_small", "cifar10", "1/255"),
    ],
)
def test_no_check_fails_on_a_bundled_or_a_fresh_network(
    model: str, source: str, epsilon: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if source == "cifar10":
        request.getfixturevalue("cifar10")
    torch.manual_seed(0)
    bundled = model.startswith(source)
    images = fn.load_data(source, limit=16)
    classifier = (
        fn.load_model(model)
        if bundled
        else fn.Classifier(getattr(torchvision.models, model)(num_classes=10).eval())
    )
    run = fn.evaluate(
        classifier, images, attacks=["fgsm", "pgd-strong"], epsilons=[epsilon], output=tmp_path / "run"
    )
    checks = {check["name"]: check["status"] for check in run.summary["checks"]}
    assert "fail" not in checks.values(), checks
    assert (checks["noise"] == "pass") == bundled
    assert (checks["noise"] == "not applicable") != bundled


def lazy(size: float) -> Attack:
    """PGD of steps too small to arrive."""
    return partial(pgd, step_size=size, restarts=1, random_start=False)


def last_restart(
    classifier: fn.Classifier,
    images: torch.Tensor,
    labels: torch.Tensor,
    epsilons: Sequence[Fraction],
    *,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """Restarts of which the last counts, not the worst; it happens to be the images themselves."""
    pgd(classifier, images, labels, epsilons, restarts=1, generator=generator)
    return torch.stack([images for _ in epsilons])


def mistaken(
    classifier: fn.Classifier,
    images: torch.Tensor,
    labels: torch.Tensor,
    epsilons: Sequence[Fraction],
    *,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """A PGD that descends where it should climb."""
    turned = fn.Classifier(Negated(classifier))
    return torch.stack([ascend(turned, images, labels, epsilon, steps=5) for epsilon in epsilons])


FAKES: list[tuple[str, Callable[[nn.Module], nn.Module] | None, list[str], dict[str, Attack]]] = [
    ("PGD and FGSM", None, ["PGD", "FGSM"], {"PGD": mistaken}),
    ("unbounded PGD", Quantised, [UNBOUNDED], {UNBOUNDED: partial(pgd, restarts=1, random_start=False)}),
    ("steps", None, ["PGD", "PGD, twice the steps"], {"PGD": lazy(0.02), "PGD, twice the steps": lazy(0.1)}),
    ("restarts", None, ["PGD", "PGD, one restart"], {"PGD": last_restart}),
    ("Square", Negated, ["PGD", "Square"], {}),
    ("transferred", Negated, ["PGD", "transferred"], {}),
    ("noise", Negated, ["PGD", "noise"], {}),
    ("losses", Scaled, ["PGD", "PGD, margin"], {}),
    ("temperature", Scaled, ["PGD", "PGD, tempered"], {}),
]
FAR = Fraction(2, 5)  # where noise and a linear network do fool; every honest PGD fools all


@pytest.mark.parametrize(("name", "fake", "names", "attacks"), FAKES, ids=[name for name, *_ in FAKES])
def test_a_fake_fails_the_comparison_and_the_honest_one_passes(
    name: str,
    fake: Callable[[nn.Module], nn.Module] | None,
    names: list[str],
    attacks: dict[str, Attack],
    honest: nn.Module,
    data: fn.ImageData,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if name in ("noise", "transferred", "Square", "steps"):
        monkeypatch.setattr(f"{__name__}.EPSILON", FAR)
    torch.manual_seed(0)
    flagged = attacks_of(honest if fake is None else fake(honest), data, names, **attacks)[name]
    assert flagged.status == "fail"
    assert flagged.value is not None
    fair = attacks_of(honest, data, names)[name]
    assert fair.status == "pass"
    assert fair.value is not None
    assert fair.value < flagged.value


# --- the statistics, by hand


def gradients(**columns: Any) -> Arrays:
    n = 1000
    nothing = {"overshoot": np.zeros(n), "zero": np.zeros(n, bool), "ratio": np.ones(n)}
    nothing |= {"equal": np.zeros(n, bool), "moved": np.zeros(n, bool)}
    return nothing | columns


def first(share: float) -> Any:
    """The first of a thousand."""
    return np.arange(1000) < round(share * 1000)


def judged(observed: dict[str, Any] | None = None, **columns: Any) -> dict[str, Check]:
    label = np.arange(1000) % 10
    given = {LABEL: label, GIVEN: label, "other": label} | (observed or {})
    return {check.name: check for check in check_inputs(given, gradients(**columns), TEN)}


def held_at(**accuracies: float) -> Evidence:
    """Evidence in which all is well but for these accuracies; one share of a thousand images each."""
    good = {
        "noise": 0.98, "FGSM": 0.7, "PGD": 0.5, "PGD, one restart": 0.52, "PGD, twice the steps": 0.5,
        "PGD, margin": 0.5, "PGD, tempered": 0.5,
        "PGD, strong": 0.5, "transferred": 0.9, "Square": 0.6, UNBOUNDED: 0.0,
    }  # fmt: skip
    held = {name: first(share)[None] for name, share in (good | accuracies).items()}
    return Evidence(
        reported={"a": first(0.8)[None], "b": first(0.5)[None]},
        worst=first(0.5)[None],
        overshoot={"a": 0.0, "b": 0.0},
        clean=first(1.0),
        unbounded=held.pop(UNBOUNDED),
        held=held,
        classes=10,
    )


def attacked(evidence: Evidence) -> dict[str, Check]:
    return {check.name: check for check in check_attacks(evidence)}


def one_restart(lost: float) -> Evidence:
    """All restarts are right on half; one of them fooled some of these."""
    evidence = held_at()
    held = dict(evidence.held)
    held["PGD, one restart"] = (first(0.5) & ~first(lost))[None]
    return replace(evidence, held=held)


def wrong_label(share: float) -> dict[str, Any]:
    """Right on 1 - share of the images, wrong by turns of the other classes."""
    label = np.arange(1000) % 10
    return {GIVEN: np.where(first(share), (label + 1 + np.arange(1000) // 10 % 9) % 10, label)}


def reordered(share: float) -> dict[str, Any]:
    label = np.arange(1000) % 10
    return {GIVEN: np.where(label < 10 * share, (label + 1) % max(round(10 * share), 1), label)}


STATISTICS: dict[str, Callable[[float], Check]] = {
    "pixel range": lambda v: judged(overshoot=np.full(1000, v))["pixel range"],
    "above chance": lambda v: judged(wrong_label(0.8 + v))["above chance"],
    "normalisation": lambda v: judged(wrong_label(v))["normalisation"],
    "class order": lambda v: judged(reordered(v))["class order"],
    "zero gradient": lambda v: judged(zero=first(v))["zero gradient"],
    "gradient": lambda v: judged(ratio=np.where(first(v), 0.49, 1.99))["gradient"],
    "equal logits": lambda v: judged(equal=first(v))["equal logits"],
    "epsilon 0": lambda v: judged(moved=first(v))["epsilon 0"],
    "budget and bounds": lambda v: attacked(replace(held_at(), overshoot={"a": 0.0, "b": v}))[
        "budget and bounds"
    ],
    "worst case": lambda v: attacked(replace(held_at(), worst=first(0.5 + v)[None]))["worst case"],
    "rising accuracy": lambda v: attacked(
        replace(
            held_at(),
            worst=np.stack([first(0.5), first(0.5 + v)]),
            reported={"a": np.stack([first(0.5), first(0.5 + v)])},
        )
    )["rising accuracy"],
    "stronger attack": lambda v: attacked(held_at(**{"PGD, strong": 0.5 - v}))["stronger attack"],
    "PGD and FGSM": lambda v: attacked(held_at(FGSM=0.5 - v))["PGD and FGSM"],
    "unbounded PGD": lambda v: attacked(held_at(**{UNBOUNDED: v}))["unbounded PGD"],
    "steps": lambda v: attacked(held_at(**{"PGD, twice the steps": 0.5 - v}))["steps"],
    "restarts": lambda v: attacked(one_restart(v))["restarts"],
    "Square": lambda v: attacked(held_at(Square=0.5 - v))["Square"],
    "transferred": lambda v: attacked(held_at(transferred=0.5 - v))["transferred"],
    "noise": lambda v: attacked(held_at(noise=0.5 - v))["noise"],
    "losses": lambda v: attacked(held_at(**{"PGD, margin": 0.5 + v}))["losses"],
    "temperature": lambda v: attacked(held_at(**{"PGD, tempered": 0.5 - v}))["temperature"],
}
TENTHS = {"class order"}  # whole classes


def test_every_question_has_its_statistic_tested() -> None:
    assert STATISTICS.keys() == QUESTIONS.keys()
    names = [check.name for check in (*judged().values(), *attacked(held_at()).values())]
    assert names == list(QUESTIONS)
    assert {check.status for check in judged().values()} == {"pass"}


@pytest.mark.parametrize("name", QUESTIONS)
def test_a_check_turns_at_its_thresholds(name: str) -> None:
    question = QUESTIONS[name]
    step = 0.1 if name in TENTHS else 0.001
    if name == "budget and bounds":
        step = question.warn / 10
    below, above = STATISTICS[name](question.warn), STATISTICS[name](question.warn + step)
    assert below.status == "pass"
    assert below.value == pytest.approx(question.warn, abs=1e-9)
    assert above.status == ("fail" if question.fail == question.warn else "warn")
    assert above.value == pytest.approx(question.warn + step, abs=1e-9)
    assert (above.advice, below.advice) == (question.advice, "")
    assert (above.warn, above.fail) == (question.warn, question.fail)
    if question.fail is not None and question.fail > question.warn:
        assert STATISTICS[name](question.fail).status == "warn"
        assert STATISTICS[name](question.fail + step).status == "fail"


@pytest.mark.parametrize(
    "name",
    ["stronger attack", "PGD and FGSM", "unbounded PGD", "steps", "restarts", "Square", "transferred",
     "noise", "losses", "temperature"],
)  # fmt: skip
def test_below_twice_chance_the_comparisons_do_not_apply(name: str) -> None:
    enough, less = (attacked(replace(held_at(), clean=first(share)))[name] for share in (0.2, 0.199))
    assert enough.status == "pass"
    assert (less.status, less.value) == ("not applicable", None)
    assert "clean accuracy is below twice chance" in less.meaning


def test_what_cannot_be_asked_does_not_apply(monkeypatch: pytest.MonkeyPatch) -> None:
    two = {check.name: check for check in check_inputs(
        {LABEL: np.arange(100) % 2, GIVEN: np.arange(100) % 2, "other": np.arange(100) % 2},
        {name: values[:100] for name, values in gradients(equal=np.ones(1000, bool)).items()},
        ("a", "b"),
    )}  # fmt: skip
    assert two["equal logits"].status == "not applicable"
    assert judged(ratio=np.full(1000, np.nan))["gradient"].status == "not applicable"
    evidence = held_at()
    assert attacked(evidence)["rising accuracy"].status == "not applicable"
    alone = attacked(replace(evidence, reported={"a": first(0.5)[None]}))
    assert alone["worst case"].status == "not applicable"
    without = {name: right for name, right in evidence.held.items() if name != "Square"}
    square = attacked(replace(evidence, held=without))["Square"]
    assert square.status == "not applicable"
    assert "pip install 'fragile-neurons[autoattack]'" in square.meaning


# --- the evidence


def test_the_gradient_of_a_linear_network_is_exact() -> None:
    torch.manual_seed(0)
    network = fn.Classifier(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)))
    pixels = np.random.default_rng(0).integers(0, 256, (20, 1, 8, 8), dtype=np.uint8)
    data = fn.ImageData(pixels, np.arange(20) % 3, ("a", "b", "c"))
    found = observe_gradients(network, data, images=20)
    np.testing.assert_allclose(found["ratio"], 1, atol=2e-3)
    assert not found["zero"].any()
    assert {len(values) for values in found.values()} == {20}


def test_all_conditions_get_the_same_random_numbers(honest: nn.Module, data: fn.ImageData) -> None:
    classifier = fn.Classifier(honest)
    attacks = conditions(data)
    one, five = (
        observe_condition(attacks[name], classifier, data, [EPSILON], images=IMAGES, seed=0)["right"]
        for name in ("PGD, one restart", "PGD")
    )
    assert not (five & ~one).any()
    assert one.sum() >= five.sum()
    assert one.shape == (1, IMAGES)


def test_the_linear_surrogate_solves_the_normal_equations(data: fn.ImageData) -> None:
    images, labels = data[:]
    seen: list[nn.Linear] = []
    original = nn.Linear.forward

    def spied(linear: nn.Linear, inputs: torch.Tensor) -> torch.Tensor:
        seen.append(linear)
        return original(linear, inputs)

    class Spy(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            raise AssertionError("the network itself is not asked")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn.Linear, "forward", spied)
        found = conditions(data)["transferred"](fn.Classifier(Spy()), images, labels, [EPSILON])
    pixels = images.flatten(1).double().numpy()
    centred = pixels - pixels.mean(0)
    wanted = np.eye(10)[labels.numpy()]
    ridge = 0.1 * (centred**2).sum() / len(centred)
    weights = np.linalg.solve(
        centred.T @ centred + ridge * np.eye(784), centred.T @ (wanted - wanted.mean(0))
    )
    np.testing.assert_allclose(seen[0].weight.detach().numpy(), weights.T, atol=1e-6)
    expected = fgsm(fn.Classifier(nn.Sequential(nn.Flatten(), seen[0])), images, labels, [EPSILON])
    assert torch.equal(found, expected)


def test_the_network_and_the_random_state_are_as_before(
    small_classifier: fn.Classifier, small_data: fn.ImageData
) -> None:
    small_classifier.train()
    small_classifier.zero_grad()
    checksum, state = small_classifier.sha256(), torch.get_rng_state()
    observe_gradients(small_classifier, small_data, images=40)
    for name, attack in conditions(small_data).items():
        if name != "Square":
            observe_condition(attack, small_classifier, small_data, [EPSILON], images=8, seed=0)
    assert small_classifier.sha256() == checksum
    assert small_classifier.training
    assert not small_classifier._forward_hooks
    assert all(parameter.grad is None for parameter in small_classifier.parameters())
    assert torch.equal(torch.get_rng_state(), state)
