"""The judge on pairs of networks whose verdict is known."""

from __future__ import annotations

import copy
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import nn

import fragile_neurons as fn
from fragile_neurons.attacks.fgsm import fgsm
from fragile_neurons.folding import fold
from fragile_neurons.hardening.gains import Gains
from fragile_neurons.hardening.judge import _refuse_other_gains, judge, shrunk
from fragile_neurons.hardening.observe import ATTACKS
from fragile_neurons.hardening.trials import HARDENED, ORIGINAL, TEMPERED, Trial, find_temperature
from fragile_neurons.losses import margins
from fragile_neurons.neurons import executed_layers
from fragile_neurons.seeds import torch_generator


@pytest.fixture(scope="module")
def mnist() -> tuple[fn.Classifier, fn.ImageData, fn.ImageData]:
    """The bundled network, validation and test images."""
    return (
        fn.load_model("mnist-cnn"),
        fn.load_data("mnist", split="val", limit=100),
        fn.load_data("mnist", split="test", limit=60),
    )


@pytest.fixture(autouse=True)
def without_apgd(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """APGD takes long; a slow test has it."""
    if "slow" not in request.keywords:
        monkeypatch.setattr("fragile_neurons.hardening.judge.is_installed", lambda: False)


class Scaled(nn.Module):
    """A network with larger logits, which a softmax in float32 saturates."""

    def __init__(self, module: nn.Module, factor: float) -> None:
        super().__init__()
        self.module, self.factor = module, factor

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.factor * self.module(images)
        return logits


def test_logits_scaled_up_vanish_under_a_stronger_attack(
    mnist: tuple[fn.Classifier, fn.ImageData, fn.ImageData],
) -> None:
    original, val, test = mnist
    louder = fn.Classifier(Scaled(original.module, 1e4), mean=[0.1307], std=[0.3081]).eval()
    found = judge(original, louder, val=val, test=test, epsilon=0.1)
    assert found.findings.fgsm.gain > 0.1  # it looks robust
    assert found.verdict == "vanishes under stronger attack"
    assert find_temperature(original, louder, val, batch_size=256) == pytest.approx(1e4, rel=1e-3)


def test_identity_gains_change_nothing_bit_for_bit(
    mnist: tuple[fn.Classifier, fn.ImageData, fn.ImageData],
) -> None:
    original, val, test = mnist
    site = executed_layers(original, test[:8][0])[0].site("conv")
    gains = Gains.of_factors([site], [np.ones(32)])
    same = fold(original, gains.changes, test[:8][0])
    for key, tensor in original.module.state_dict().items():
        assert torch.equal(tensor, same.module.state_dict()[key])
    found = judge(original, same, val=val, test=test, epsilon=0.1, gains=gains.to_table())
    assert found.verdict == "changes nothing"
    for attack in ("clean", "fgsm", "pgd"):
        before, after = (_only(found.right, network, attack) for network in (ORIGINAL, HARDENED))
        np.testing.assert_array_equal(before, after)


def test_a_ruined_network_costs_more_than_it_brings(
    mnist: tuple[fn.Classifier, fn.ImageData, fn.ImageData],
) -> None:
    original, val, test = mnist
    site = executed_layers(original, test[:8][0])[1].site("conv")
    factors = np.where(np.arange(64) % 2, 1e3, 1e-3)
    gains = Gains.of_factors([site], [factors])
    ruined = fold(original, gains.changes, test[:8][0])
    found = judge(original, ruined, val=val, test=test, epsilon=0.1)
    assert found.verdict == "costs more than it brings"


class Exchangeable(nn.Module):
    """Two pixels: one tells the class surely, one by little; eight equal channels read the second one.

    An attack of 0.1 turns the second pixel, whose channels together outvote the first; made weaker, which
    of them does not matter, they do not.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 8, (1, 2))
        self.conv.weight.data[:], self.conv.bias.data[:] = torch.tensor([0.0, 1.0]), -0.5  # type: ignore[union-attr]

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        sure = images[:, :, :, 0].flatten(1) - 0.5
        little = self.conv(images).flatten(1).sum(dim=1, keepdim=True)
        score = sure + little
        return torch.cat([-score, score], dim=1)


def test_gains_on_exchangeable_channels_are_no_better_than_shuffled() -> None:
    generator = np.random.default_rng(0)

    def draw(n: int) -> fn.ImageData:
        labels = generator.integers(0, 2, n)
        sign = 2 * labels - 1
        pixels = np.stack([0.5 + 0.3 * sign, 0.5 + generator.uniform(0.02, 0.08, n) * sign], axis=1)
        return fn.ImageData(pixels.astype(np.float32).reshape(n, 1, 1, 2), labels, ("down", "up"))

    val, test = draw(200), draw(300)
    original = fn.Classifier(Exchangeable()).eval()
    site = executed_layers(original, test[:8][0])[0].site("conv")
    gains = Gains.of_factors([site], [np.array([0.01, 0.5, 0.01, 0.01, 0.5, 0.01, 0.01, 0.01])])
    hardened = fold(original, gains.changes, test[:8][0])
    found = judge(original, hardened, val=val, test=test, epsilon=0.1, gains=gains.to_table())
    assert found.findings.pgd.gain > 0.3  # it is more robust indeed
    assert found.findings.clean.gain == 0
    assert found.verdict == "no better than shuffled gains"


def test_accuracies_are_those_of_a_plain_loop(
    mnist: tuple[fn.Classifier, fn.ImageData, fn.ImageData],
) -> None:
    original, val, test = mnist
    site = executed_layers(original, test[:8][0])[0].site("conv")
    gains = Gains.of_factors([site], [np.linspace(0.5, 1.5, 32)])
    hardened = fold(original, gains.changes, test[:8][0])
    found = judge(original, hardened, val=val, test=test, epsilon="0.1", epsilons=["0.05"])
    images, labels = test[:]
    grid = [Fraction(1, 20), Fraction(1, 10)]
    for name, network in ((ORIGINAL, original), (HARDENED, hardened)):
        with torch.no_grad():
            clean = network(images).argmax(1) == labels
            attacked = fgsm(network, images, labels, grid)
            right = torch.stack([network(one).argmax(1) == labels for one in attacked]) & clean
        np.testing.assert_array_equal(_only(found.right, name, "fgsm"), right.numpy())
        np.testing.assert_array_equal(_only(found.right, name, "clean")[0], clean.numpy())
    table = found.to_table().to_pylist()
    row = next(
        row for row in table if (row["network"], row["attack"], row["epsilon"]) == (HARDENED, "fgsm", 0.1)
    )
    assert row["value"] == _only(found.right, HARDENED, "fgsm")[1].mean()
    assert row["n"] == 60


def test_transfer_goes_from_the_source_to_the_judged(
    mnist: tuple[fn.Classifier, fn.ImageData, fn.ImageData],
) -> None:
    original, val, test = mnist
    robust = fn.load_model("mnist-cnn-robust")
    found = judge(original, robust, val=val, test=test, epsilon="0.1")
    images, labels = test[:]
    generator = torch_generator(0, "judging by pgd", 0)
    made = ATTACKS["pgd"](original, images, labels, [Fraction(1, 10)], generator=generator)[0]
    with torch.no_grad():
        right = (robust(made).argmax(1) == labels) & (robust(images).argmax(1) == labels)
    (onto,) = (
        one for trial, one in found.right.items() if (trial.network, trial.source) == (HARDENED, ORIGINAL)
    )
    np.testing.assert_array_equal(onto[0], right.numpy())
    assert onto.mean() > 0.9  # what fools the plain network hardly fools the robust one
    assert found.verdict == "holds"


@pytest.mark.slow
def test_apgd_is_asked_where_it_is_installed(
    mnist: tuple[fn.Classifier, fn.ImageData, fn.ImageData],
) -> None:
    original, val, test = mnist
    found = judge(original, fn.load_model("mnist-cnn-robust"), val=val, test=test, epsilon="0.1")
    assert "apgd" in found.findings.stronger
    assert found.findings.stronger["apgd"].before.mean() <= found.findings.pgd.before.mean() + 0.05
    assert found.verdict == "holds"


def test_what_cannot_be_judged_is_refused(mnist: tuple[fn.Classifier, fn.ImageData, fn.ImageData]) -> None:
    original, val, test = mnist
    with pytest.raises(fn.InputError, match="nothing to judge by"):
        judge(original, original, val=val, test=test, epsilon=0)
    with pytest.raises(fn.InputError, match="nothing to judge by"):
        judge(original, original, val=val, test=test, epsilon=0.1, budget=1.0)
    with pytest.raises(fn.InputError, match="val and test share images"):
        judge(original, original, val=test, test=test, epsilon=0.1)
    site = executed_layers(original, test[:8][0])[0].site("conv")
    gains = Gains.of_factors([site], [np.full(32, 0.5)])
    with pytest.raises(fn.InputError, match="not the gains of the hardened network"):
        judge(original, original, val=val, test=test, epsilon=0.1, gains=gains.to_table())


def test_the_gains_of_a_network_left_in_training_mode_are_recognised(small_data: fn.ImageData) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(), nn.Flatten(), nn.Linear(4 * 36, 3)
    )
    original, images = fn.Classifier(module).eval(), small_data[:8][0]
    site = executed_layers(original, images)[0].site("conv")
    gains = Gains.of_factors([site], [np.array([0.5, 1.0, 2.0, 1.0])])
    hardened = fold(original, gains.changes, images)
    _refuse_other_gains(original.train(), hardened.train(), gains, images)
    with pytest.raises(fn.InputError, match="not the gains"):
        _refuse_other_gains(original, original.duplicate(), gains, images)


def test_a_control_is_as_weak_as_the_budget_asks(
    mnist: tuple[fn.Classifier, fn.ImageData, fn.ImageData],
) -> None:
    original, val, test = mnist
    site = executed_layers(original, test[:8][0])[0].site("conv")
    gains = Gains.of_factors([site], [np.where(np.arange(32) % 8 == 3, 100.0, 0.01)])
    images, labels = val[:]
    with torch.no_grad():
        clean = (original(images).argmax(1) == labels).float().mean()
        loss = {
            t: float(
                clean
                - (fold(original, gains.power(t).changes, images)(images).argmax(1) == labels).float().mean()
            )
            for t in (1.0, 0.5, 0.25)
        }
    assert loss[1.0] > 0.18 > loss[0.5] > 0.05 > loss[0.25] > 0.001  # or this test shows nothing
    for budget, expected in ((0.99, 1.0), (0.18, 0.5), (0.05, 0.25), (0.001, 0.25)):
        found = shrunk(original, gains, val, budget=budget, batch_size=256, seed=0)
        wanted = fold(original, gains.power(expected).changes, images)
        torch.testing.assert_close(found(images), wanted(images))


def test_the_tempered_network_has_the_margins_of_the_original(
    mnist: tuple[fn.Classifier, fn.ImageData, fn.ImageData],
) -> None:
    original, val, _ = mnist
    images, labels = val[:]
    changed = copy.deepcopy(original)
    with torch.no_grad():
        changed.module.fc2.weight.mul_(3)  # type: ignore[union-attr, operator]
        first, second = margins(original(images), labels), margins(changed(images), labels)
    both = (first > 0) & (second > 0)
    expected = float(second[both].median() / first[both].median())
    assert find_temperature(original, changed, val, batch_size=64) == pytest.approx(expected, rel=1e-5)


def _only(right: dict[Trial, np.ndarray], network: str, attack: str) -> np.ndarray:
    (found,) = [
        found
        for trial, found in right.items()
        if (trial.network, trial.attack) == (network, attack)
        and trial.source != TEMPERED
        and not trial.source
    ]
    return found
