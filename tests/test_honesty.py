"""The flagged checks: real networks that are wrong in one way, and the thresholds by hand."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import nn

import fragile_neurons as fn
from fragile_neurons import Classifier, ImageData
from fragile_neurons.evidence import GIVEN, LABEL, Arrays, observe_gradients, observe_inputs
from fragile_neurons.honesty import check_inputs
from fragile_neurons.probe import Check

CLASSES = ("dark", "grey", "bright")
MEAN, STD = [90 / 255], [41 / 255]
FOUR = ("a", "b", "c", "d")
ABOUT_INPUTS = ("above chance", "normalisation", "class order")


def shades(count: int, seed: int = 0) -> ImageData:
    """Three classes that differ in brightness alone: 40, 90 and 140, give or take 30 a pixel."""
    generator = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    images = generator.integers(-30, 31, (count, 1, 8, 8)) + (40 + 50 * labels)[:, None, None, None]
    return ImageData(images.astype(np.uint8), labels, CLASSES, name="shades")


DATA = shades(240)


class Normalised(nn.Module):
    """A network that normalises by itself."""

    def __init__(self, network: nn.Module, mean: float, std: float) -> None:
        super().__init__()
        self.network, self.mean, self.std = network, mean, std

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.network((images - self.mean) / self.std)
        return logits


def trained(mean: float, std: float, order: tuple[int, int, int] = (0, 1, 2)) -> nn.Module:
    """A small CNN for the shades under this normalisation, its outputs in this order."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
    )
    images, labels = shades(96, seed=1)[:]
    targets = torch.tensor(order)[labels]
    optimizer = torch.optim.Adam(network.parameters(), 0.02)
    for _ in range(300):
        optimizer.zero_grad()
        logits = network((images - mean) / std)
        nn.functional.cross_entropy(logits, targets).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return network.eval()


@pytest.fixture(scope="module")
def network() -> nn.Module:
    """Trained under the data's own mean and standard deviation."""
    return trained(MEAN[0], STD[0])


def checks_of(classifier: Classifier, data: ImageData = DATA) -> dict[str, Check]:
    images = min(256, len(data))
    observed = observe_inputs(classifier, data, images=images)
    gradients = observe_gradients(classifier, data, images=images)
    return by_name(check_inputs(observed, gradients, data.classes))


def judged(observed: Arrays, classes: tuple[str, ...]) -> dict[str, Check]:
    """The same of arrays by hand, where nothing is wrong with the gradients."""
    n = len(observed[LABEL])
    nothing = {"overshoot": np.zeros(n), "zero": np.zeros(n, bool), "ratio": np.ones(n)}
    nothing |= {"equal": np.zeros(n, bool), "moved": np.zeros(n, bool)}
    return by_name(check_inputs(observed, nothing, classes))


def by_name(checks: tuple[Check, ...]) -> dict[str, Check]:
    return {check.name: check for check in checks if check.name in ABOUT_INPUTS}


def value_of(check: Check) -> float:
    assert check.value is not None
    return check.value


def statuses(checks: dict[str, Check]) -> list[str]:
    return [check.status for check in checks.values()]


# -- real networks


def test_a_network_that_is_right_passes(network: nn.Module) -> None:
    for classifier in (
        Classifier(network, mean=MEAN, std=STD),
        Classifier(Normalised(network, MEAN[0], STD[0])),
    ):
        checks = checks_of(classifier)
        assert statuses(checks) == ["pass", "pass", "pass"]
        assert value_of(checks["above chance"]) < 2 / 3 - 0.95
        assert "240 images" in checks["above chance"].meaning


def test_a_normalisation_done_twice_is_found(network: nn.Module) -> None:
    twice = Classifier(Normalised(network, MEAN[0], STD[0]), mean=MEAN, std=STD)
    check = checks_of(twice)["normalisation"]
    assert check.status == "fail"
    assert value_of(check) > 0.3
    assert "without it" in check.meaning
    assert "the network normalises by itself; leave mean and std out" in check.meaning


def test_a_network_for_values_to_255_is_found() -> None:
    network = trained(0.0, 1 / 255)
    check = checks_of(Classifier(network))["normalisation"]
    assert check.status == "fail"
    assert "of values 0 to 255" in check.meaning
    assert "--mean 0 --std 0.00392156862745098" in check.meaning
    assert float(check.meaning.split("--std ")[1].split()[0]) == 1 / 255
    assert statuses(checks_of(Classifier(network, mean=[0.0], std=[1 / 255]))) == ["pass"] * 3


def test_a_normalisation_by_a_half_that_was_not_given_is_found() -> None:
    network = trained(0.5, 0.5)
    check = checks_of(Classifier(network))["normalisation"]
    assert check.status == "fail"
    assert "with mean 0.5 and std 0.5" in check.meaning
    assert "give these as --mean and --std" in check.meaning
    assert statuses(checks_of(Classifier(network, mean=[0.5], std=[0.5]))) == ["pass"] * 3


def test_the_datas_own_normalisation_that_was_not_given_is_found(network: nn.Module) -> None:
    images, _ = DATA[:]
    check = checks_of(Classifier(network))["normalisation"]
    assert check.status == "fail"
    assert f"with mean {float(images.mean()):.4g} and std {float(images.std()):.4g}" in check.meaning


def test_outputs_in_another_order_are_found_and_named() -> None:
    rotated = Classifier(trained(MEAN[0], STD[0], order=(1, 2, 0)), mean=MEAN, std=STD)
    checks = checks_of(rotated)
    assert statuses(checks) == ["warn", "pass", "fail"]
    meaning = checks["class order"].meaning
    assert "output 0 is 'bright', output 1 is 'dark', output 2 is 'grey'" in meaning
    assert "0 %" in meaning
    swapped = Classifier(trained(MEAN[0], STD[0], order=(0, 2, 1)), mean=MEAN, std=STD)
    assert "(output 1 is 'bright', output 2 is 'grey')" in checks_of(swapped)["class order"].meaning


@pytest.mark.parametrize("seed", range(6))
def test_of_a_random_network_only_chance_is_said(seed: int) -> None:
    torch.manual_seed(seed)
    generator = np.random.default_rng(seed)
    noise = ImageData(
        generator.integers(0, 256, (256, 1, 8, 8), dtype=np.uint8),
        np.arange(256) % 10,
        tuple("0123456789"),
    )
    convolutional = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))
    checks = checks_of(Classifier(convolutional), noise)
    assert statuses(checks) == ["warn", "pass", "pass"]
    assert "chance is 10 %" in checks["above chance"].meaning


def test_a_mediocre_network_passes(network: nn.Module) -> None:
    labels = DATA.labels.copy()
    wrong = np.random.default_rng(0).permutation(240)[:60]
    labels[wrong] = (labels[wrong] + np.random.default_rng(1).integers(1, 3, 60)) % 3
    checks = checks_of(
        Classifier(network, mean=MEAN, std=STD), ImageData(np.asarray(DATA.images), labels, CLASSES)
    )
    assert statuses(checks) == ["pass", "pass", "pass"]
    assert 0.7 < 2 / 3 - value_of(checks["above chance"]) < 0.8


def test_only_the_images_asked_for_are_seen_each_once(network: nn.Module) -> None:
    # 70 images are a batch and a bit: the filling of the second does not count
    observed = observe_inputs(Classifier(network, mean=MEAN, std=STD), DATA, images=70)
    assert observed[LABEL].tolist() == DATA.labels[:70].tolist()
    assert {len(values) for values in observed.values()} == {70}
    images, _ = DATA[:70]
    expected = network((images - MEAN[0]) / STD[0]).argmax(1)
    assert observed[GIVEN].tolist() == expected.tolist()
    assert observed["without it"].tolist() == network(images).argmax(1).tolist()
    assert observed["of values 0 to 255"].tolist() == network(images * 255).argmax(1).tolist()


def test_imagenets_normalisation_is_tried_on_colours_only(network: nn.Module) -> None:
    colours = ImageData(np.repeat(np.asarray(DATA.images), 3, axis=1), DATA.labels, CLASSES)
    coloured = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, 3))
    names = set(observe_inputs(Classifier(coloured), colours, images=16))
    assert sum("ImageNet" in name for name in names) == 1
    assert not any("ImageNet" in name for name in observe_inputs(Classifier(network), DATA, images=16))
    assert "without it" not in names  # there is no normalisation to leave out


# -- the classifier afterwards


class Failing(nn.Module):
    """Raises at the n-th pass."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 3)
        self.left = at

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.left -= 1
        if self.left == 0:
            raise RuntimeError("broken")
        logits: torch.Tensor = self.layer(images.flatten(1))
        return logits


@pytest.mark.parametrize("at", [0, 1, 2, 5, 7])
@pytest.mark.parametrize("given", [True, False])
def test_the_normalisation_is_as_before_also_after_an_exception(at: int, given: bool) -> None:
    classifier = Classifier(Failing(at).train(), mean=MEAN if given else None, std=STD if given else None)
    mean, std = classifier.mean, classifier.std
    checksum = classifier.sha256()
    if at == 0:
        observe_inputs(classifier, DATA, images=128)
    else:
        with pytest.raises(RuntimeError, match="broken"):
            observe_inputs(classifier, DATA, images=128)
    assert classifier.mean is mean
    assert classifier.std is std
    assert (mean is not None) == given
    assert classifier.sha256() == checksum
    assert classifier.module.training


# -- thresholds, by hand


def answers(label: npt.NDArray[np.int64], right: int) -> npt.NDArray[np.int64]:
    """Predictions of which the first so many are right, the others the class after."""
    return np.where(np.arange(len(label)) < right, label, (label + 1) % 4)


def hand(given: int, *, n: int = 400, **others: int) -> Arrays:
    """Observed arrays: so many of n right as given, and under other readings."""
    label = np.random.default_rng(0).permutation(np.arange(n) % 4)
    readings = {name: answers(label, right) for name, right in others.items()}
    return {LABEL: label, GIVEN: answers(label, given), **readings}


@pytest.mark.parametrize(
    ("classes", "needed"), [(2, 0.75), (3, 2 / 3), (4, 0.5), (10, 0.2), (100, 0.02), (1000, 0.002)]
)
def test_chance_is_left_behind_at_twice_of_it(classes: int, needed: float) -> None:
    n = 3000
    label = np.arange(n) % classes
    names = tuple(map(str, range(classes)))
    found = []
    for right in (round(needed * n) - 1, round(needed * n)):
        given = np.where(np.arange(n) < right, label, (label + 1) % classes)
        check = judged({LABEL: label, GIVEN: given, "other": given}, names)["above chance"]
        assert check.value == pytest.approx(needed - right / n)
        found.append(check.status)
    assert found == ["warn", "pass"]


@pytest.mark.parametrize(
    ("observed", "status"),
    [
        pytest.param(hand(300, other=319), "pass", id="gain just below 0.05"),
        pytest.param(hand(300, other=321), "fail", id="gain just above 0.05"),
        pytest.param(hand(300, other=280), "pass", id="worse"),
        pytest.param(hand(80, n=100, other=90), "pass", id="one reading, 10 more, p = 2^-9"),
        pytest.param(hand(0, other=199), "pass", id="hardly more than chance"),
        pytest.param(hand(0, other=200), "fail", id="twice chance"),
        pytest.param(hand(80, n=100, other=91), "fail", id="one reading, 11 more, p = 2^-10"),
        pytest.param(hand(80, n=100, a=91, b=80), "pass", id="two readings, p = 2 * 2^-10"),
        pytest.param(hand(80, n=100, a=92, b=80), "fail", id="two readings, p = 2 * 2^-11"),
        pytest.param(hand(80, n=100, a=92, b=80, c=80), "pass", id="three readings, p = 3 * 2^-11"),
        pytest.param(hand(80, n=100, a=93, b=80, c=80), "fail", id="three readings, p = 3 * 2^-12"),
    ],
)
def test_another_normalisation_must_be_better_and_surely_so(observed: Arrays, status: str) -> None:
    check = judged(observed, FOUR)["normalisation"]
    assert check.status == status
    right = {name: float((values == observed[LABEL]).mean()) for name, values in observed.items()}
    best = max(value for name, value in right.items() if name not in (LABEL, GIVEN))
    assert check.value == pytest.approx(best - right[GIVEN], abs=1e-12)


def test_a_gain_that_costs_as_much_elsewhere_is_not_sure() -> None:
    # 24 more right of 400 is a gain of 0.06, but 188 are lost for the 212 gained
    observed = hand(188, other=0)
    label = observed[LABEL]
    observed["other"] = np.where(np.arange(400) >= 188, label, (label + 1) % 4)
    check = judged(observed, FOUR)["normalisation"]
    assert check.status == "pass"
    assert check.value == pytest.approx(0.06)


def shuffled(right: int, *, after: int, n: int = 400) -> Arrays:
    """So many right as given; a swap of the last two of four classes makes `after` right."""
    label = np.repeat(np.arange(4), n // 4)
    swap = np.array([0, 1, 3, 2])
    predicted = label.copy()
    tail = np.flatnonzero(label >= 2)
    # alternating halves: as many of either class, in either half
    order = np.argsort(np.tile(np.arange(n // 4), 2), kind="stable")
    swapped = tail[order][: len(tail) // 2 + (after - right) // 2]
    predicted[swapped] = swap[label[swapped]]
    head = np.flatnonzero(label < 2)
    order = np.argsort(np.tile(np.arange(n // 4), 2), kind="stable")
    spoiled = head[order][: int((predicted == label).sum()) - right]
    predicted[spoiled] = 1 - predicted[spoiled]
    return {LABEL: label, GIVEN: predicted, "other": predicted}


@pytest.mark.parametrize(
    ("right", "after", "status"), [(220, 296, "pass"), (220, 304, "fail"), (240, 316, "pass")]
)
def test_another_order_must_be_much_better(right: int, after: int, status: str) -> None:
    observed = shuffled(right, after=after)
    assert int((observed[GIVEN] == observed[LABEL]).sum()) == right
    assert int((np.array([0, 1, 3, 2])[observed[GIVEN]] == observed[LABEL]).sum()) == after
    check = judged(observed, FOUR)["class order"]
    assert check.status == status
    assert check.value == pytest.approx((after - right) / 400)
    assert ("output 2 is 'd', output 3 is 'c'" in check.meaning) == (status == "fail")


@pytest.mark.parametrize(("n", "applies"), [(19, False), (20, True)])
def test_the_order_is_not_judged_on_a_few_images(n: int, applies: bool) -> None:
    label = np.arange(n) % 4
    given = (label + 1) % 4
    check = judged({LABEL: label, GIVEN: given, "other": given}, FOUR)["class order"]
    assert check.status == ("fail" if applies else "not applicable")
    assert ("does not apply: fewer than 5 images per class" in check.meaning) == (not applies)


@pytest.mark.parametrize(
    "arrange",
    [
        pytest.param(lambda label: label, id="by turns"),
        pytest.param(np.sort, id="class by class"),
        pytest.param(np.random.default_rng(0).permutation, id="random"),
    ],
)
def test_an_order_is_found_however_the_images_come(
    arrange: Callable[[npt.NDArray[np.int64]], npt.NDArray[np.int64]],
) -> None:
    label = arrange(np.arange(200) % 4)
    given = np.array([1, 2, 3, 0])[label]
    check = judged({LABEL: label, GIVEN: given, "other": given}, FOUR)["class order"]
    assert (check.status, check.value) == ("fail", 1.0)
    assert "output 0 is 'd', output 1 is 'a', output 2 is 'b', output 3 is 'c'" in check.meaning
    assert "100 % right instead of 0 %" in check.meaning


def test_a_long_list_of_classes_is_cut_short() -> None:
    label = np.arange(100) % 10
    given = (label + 1) % 10
    observed = {LABEL: label, GIVEN: given, "other": given}
    meaning = judged(observed, tuple("abcdefghij"))["class order"].meaning
    assert "output 3 is 'c', ...)" in meaning
    assert meaning.count("output ") == 4


def test_of_random_predictions_no_order_gains_on_average() -> None:
    generator = np.random.default_rng(0)
    names = tuple(map(str, range(20)))
    gains, in_sample = [], []
    for _ in range(200):
        label = generator.permutation(np.arange(256) % 20)
        given = generator.integers(0, 20, 256)
        check = judged({LABEL: label, GIVEN: given, "other": given}, names)["class order"]
        assert check.status == "pass"
        gains.append(value_of(check))
        # what it would seem to gain, were it judged where it was found: each output its commonest class
        counts = np.zeros((20, 20))
        np.add.at(counts, (given, label), 1)
        in_sample.append(counts.max(axis=1).sum() / 256 - (given == label).mean())
    # a difference of two shares of 1/20 of 256: its standard deviation is at most 0.02, its mean's 0.0014
    assert abs(np.mean(gains)) < 0.005
    assert np.mean(in_sample) > 0.08


def test_an_order_that_makes_little_right_is_no_order() -> None:
    # a network of two or three classes finds some of them by chance, under whatever name
    label = np.arange(300) % 3
    given = np.where(np.arange(300) % 10 < 6, (label + 1) % 3, np.random.default_rng(0).integers(0, 3, 300))
    check = judged({LABEL: label, GIVEN: given, "other": given}, CLASSES)["class order"]
    assert value_of(check) > 0.4
    assert value_of(check) + (given == label).mean() >= 2 / 3
    assert check.status == "fail"
    guess = np.where(np.arange(300) % 10 < 3, (label + 1) % 3, np.random.default_rng(0).integers(0, 3, 300))
    check = judged({LABEL: label, GIVEN: guess, "other": guess}, CLASSES)["class order"]
    assert value_of(check) > 0.2
    assert check.status == "pass"


# -- in a run


def test_a_run_of_a_wrongly_normalised_network_says_so(
    network: nn.Module, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = shades(60)
    with caplog.at_level(logging.WARNING):
        run = fn.analyze(Classifier(network, name="shady"), data, epsilons=[], output=tmp_path / "wrong")
    (check,) = [check for check in run.summary["checks"] if check["name"] == "normalisation"]
    assert check["status"] == "fail"
    assert check["value"] > 0.3
    assert "give these as --mean and --std" in check["meaning"]
    (record,) = [record for record in caplog.records if "normalisation (fail)" in record.getMessage()]
    assert record.levelno == logging.WARNING
    assert check["meaning"] in record.getMessage()
    (row,) = [
        line
        for line in (tmp_path / "wrong" / "summary.md").read_text(encoding="utf-8").splitlines()
        if line.startswith("| normalisation |")
    ]
    assert "| fail |" in row
    assert "give these as --mean and --std" in row

    caplog.clear()
    right = Classifier(network, mean=MEAN, std=STD, name="shady")
    run = fn.analyze(right, data, epsilons=[], output=tmp_path / "right")
    assert {check["status"] for check in run.summary["checks"]} == {"pass"}
    assert not caplog.records
