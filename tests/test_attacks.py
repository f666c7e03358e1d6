"""Attacks against closed forms and against two other libraries."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import nn

import fragile_neurons as fn
from fragile_neurons.attacks.apply import apply_attack
from fragile_neurons.attacks.catalogue import ATTACKS
from fragile_neurons.attacks.fgsm import fgsm, gradient_sign
from fragile_neurons.attacks.pgd import pgd
from fragile_neurons.errors import InputError
from fragile_neurons.losses import margins

GRID = [Fraction(0), Fraction(8, 255), Fraction(1, 10)]


@pytest.fixture
def mnist() -> tuple[fn.Classifier, torch.Tensor, torch.Tensor]:
    """The 200 of 2,000 images about which the network is least confident: float32 tells them apart."""
    classifier = fn.load_model("mnist-cnn")
    images, labels = fn.load_data("mnist", limit=2_000)[:]
    with torch.no_grad():
        hardest = margins(classifier(images), labels).argsort()[:200]
    return classifier, images[hardest], labels[hardest]


@pytest.mark.parametrize("name", ATTACKS)
def test_every_attack_speaks_the_same_vocabulary(name: str) -> None:
    parameters = inspect.signature(ATTACKS[name]).parameters
    assert list(parameters)[:4] == ["classifier", "images", "labels", "epsilons"]
    order = ["losses", "steps", "step_size", "decay", "restarts", "random_start", "targets", "generator"]
    options = list(parameters)[4:]
    assert options == [word for word in order if word in options]
    assert all(parameters[word].kind is inspect.Parameter.KEYWORD_ONLY for word in options)


@pytest.mark.parametrize("library", ["foolbox", "torchattacks"])
def test_fgsm_equals_other_libraries(
    library: str, mnist: tuple[fn.Classifier, torch.Tensor, torch.Tensor]
) -> None:
    classifier, images, labels = mnist
    epsilon = Fraction(1, 10)
    if library == "foolbox":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # foolbox warns of its own dependencies on import
            import foolbox
        model = foolbox.PyTorchModel(classifier.eval(), bounds=(0, 1), device="cpu")
        attack = foolbox.attacks.LinfFastGradientAttack(random_start=False)
        _, theirs, _ = attack(model, images, labels, epsilons=float(epsilon))
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # so does torchattacks
            import torchattacks
        theirs = torchattacks.FGSM(classifier.eval(), eps=float(epsilon))(images, labels)
    ours = fgsm(classifier, images, labels, [epsilon])[0]
    # how far each pixel's gradient is from zero, from a float64 gradient at the logits
    leaves = images.clone().requires_grad_(True)
    logits = classifier(leaves)
    wrong = torch.softmax(logits.detach().double(), 1).scatter(1, labels[:, None], 0.0)
    doubt = wrong.sum(1, keepdim=True)
    at_logits = (wrong / doubt).scatter(1, labels[:, None], -1.0).float()
    (gradient,) = torch.autograd.grad(logits, leaves, at_logits)
    relative = gradient.abs() / gradient.abs().amax(dim=(1, 2, 3), keepdim=True)
    # theirs is in float32, where 1 - p has an error of about 6e-8, so it may turn signs this close to zero
    uncertain = (1e-4 + 4 * 6e-8 / doubt).view(-1, 1, 1, 1).expand_as(relative)
    differing = (ours - theirs).abs() > 1e-6
    assert (relative[differing] <= uncertain[differing]).all()
    clear = (uncertain < 0.01).float().mean()
    assert clear > 0.5
    assert differing[uncertain < 0.01].float().mean() < 0.01
    assert (ours - images).abs().max() > 0.09


def test_one_backward_pass_serves_the_grid(
    mnist: tuple[fn.Classifier, torch.Tensor, torch.Tensor],
) -> None:
    classifier, images, labels = mnist
    passes = []
    handle = classifier.register_forward_hook(lambda *_: passes.append(1))
    grid = fgsm(classifier, images, labels, GRID)
    handle.remove()
    assert len(passes) == 1
    assert torch.equal(grid[0], images)
    for found, epsilon in zip(grid[1:], GRID[1:], strict=True):
        assert torch.equal(found, fgsm(classifier, images, labels, [epsilon])[0])


def linear_classifier() -> fn.Classifier:
    """Two logits, margin of label 0 = w . x + b: the worst image within epsilon is known."""
    torch.manual_seed(1)
    return fn.Classifier(nn.Sequential(nn.Flatten(), nn.Linear(36, 2)))


def test_fgsm_and_pgd_find_the_optimum_of_a_linear_network() -> None:
    classifier = linear_classifier()
    images = torch.rand(50, 1, 6, 6) * 0.6 + 0.2  # epsilon 0.1 meets no bound
    labels = torch.arange(50) % 2
    weight = classifier.state_dict()["module.1.weight"]
    direction = (weight[0] - weight[1]).view(1, 1, 6, 6) * torch.where(labels == 0, 1.0, -1.0).view(
        -1, 1, 1, 1
    )
    optimum = images - 0.1 * direction.sign()
    epsilon = [Fraction(1, 10)]
    torch.testing.assert_close(fgsm(classifier, images, labels, epsilon)[0], optimum)
    found = pgd(classifier, images, labels, epsilon, steps=20, restarts=1, generator=torch.Generator())[0]
    torch.testing.assert_close(found, optimum, atol=1e-6, rtol=0)


def test_pgd_is_stronger_than_fgsm_and_more_restarts_never_hurt(
    small_classifier: fn.Classifier, small_data: fn.ImageData
) -> None:
    images, labels = small_data[:]
    right = []
    for method, options in ((fgsm, {}), (pgd, {"restarts": 1}), (pgd, {"restarts": 5})):
        found = method(
            small_classifier,
            images,
            labels,
            [Fraction(1, 20)],
            generator=torch.Generator().manual_seed(0),
            **options,
        )[0]
        right.append((small_classifier(found).argmax(1) == labels).sum().item())
    assert right == sorted(right, reverse=True)


def test_zero_gradient_moves_nothing() -> None:
    class Flat(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images.flatten(1)[:, :2] * 0.0

    images, labels = torch.rand(3, 1, 2, 2), torch.tensor([0, 1, 0])
    _, sign = gradient_sign(fn.Classifier(Flat()), images, labels)
    assert sign.eq(0).all()
    assert torch.equal(fgsm(fn.Classifier(Flat()), images, labels, [Fraction(1, 2)])[0], images)


def test_a_network_without_gradient_is_refused() -> None:
    class Detached(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images.flatten(1)[:, :2].detach()

    with pytest.raises(InputError, match="passes no gradient"):
        gradient_sign(fn.Classifier(Detached()), torch.rand(2, 1, 2, 2), torch.tensor([0, 1]))


def greedy(
    classifier: fn.Classifier,
    images: torch.Tensor,
    labels: torch.Tensor,
    epsilons: Sequence[Fraction],
    *,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """An attack that ignores its budget and the pixel range."""
    return torch.stack([images + 5.0 for _ in epsilons])


def test_apply_projects_whatever_an_attack_returns() -> None:
    classifier, images, labels = linear_classifier(), torch.rand(8, 1, 6, 6), torch.arange(8) % 2
    attacked = apply_attack(greedy, classifier, images, labels, GRID)
    for found, epsilon in zip(attacked.images, GRID, strict=True):
        assert (found - images).abs().max() <= float(epsilon) + 1e-6
        assert found.min() >= 0
        assert found.max() <= 1
    assert torch.equal(attacked.images[0], images)
    assert torch.equal(attacked.predictions[2], classifier(attacked.images[2]).argmax(1))


@pytest.mark.parametrize("wrong", [torch.zeros(1, 8, 1, 6, 5), torch.full((1, 8, 1, 6, 6), torch.nan)])
def test_apply_refuses_other_shapes_and_nan(wrong: torch.Tensor) -> None:
    def broken(*_: object, **__: object) -> torch.Tensor:
        return wrong

    with pytest.raises(InputError, match=r"another shape|not finite"):
        apply_attack(broken, linear_classifier(), torch.rand(8, 1, 6, 6), torch.arange(8) % 2, GRID[1:2])


def test_unknown_attack_lists_those_that_exist(
    small_classifier: fn.Classifier, small_data: fn.ImageData
) -> None:
    with pytest.raises(InputError, match="fgsm, pgd"):
        fn.robust_accuracy(small_classifier, small_data, attack="cw", epsilons=[0.1])


def test_accuracy_has_n_and_interval(small_classifier: fn.Classifier, small_data: fn.ImageData) -> None:
    result = fn.robust_accuracy(small_classifier, small_data, epsilons=["0", "0.05"])
    rows = result.to_table().to_pylist()
    assert [row["group"] for row in rows[:4]] == ["all", "class:one", "class:two", "class:three"]
    assert rows[0]["value"] == 1.0
    assert sum(row["n"] for row in rows[1:4]) == rows[0]["n"] == 40
    counted = np.mean(
        small_classifier(fgsm(small_classifier, *small_data[:], [Fraction(1, 20)])[0]).argmax(1).numpy()
        == small_data.labels
    )
    assert rows[4]["value"] == counted
    assert rows[4]["low"] < rows[4]["value"] < rows[4]["high"]
