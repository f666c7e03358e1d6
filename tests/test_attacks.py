"""Attacks against closed forms and against two other libraries."""

from __future__ import annotations

import inspect
import math
import warnings
from collections import OrderedDict
from collections.abc import Sequence
from fractions import Fraction
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import fragile_neurons as fn
from fragile_neurons.analysis.robustness import observe_attack
from fragile_neurons.attacks import autoattack
from fragile_neurons.attacks.apply import Attack, apply_attack, counting
from fragile_neurons.attacks.autoattack import SEEDS, square, standard_set
from fragile_neurons.attacks.catalogue import ATTACKS, find_attack, missing_extra
from fragile_neurons.attacks.fgsm import fgsm, gradient_sign
from fragile_neurons.attacks.foreign import guarded
from fragile_neurons.attacks.noise import sign_noise, uniform_noise
from fragile_neurons.attacks.pgd import ascend, pgd
from fragile_neurons.errors import InputError
from fragile_neurons.losses import Direction, cross_entropy_direction, margin_direction, margins

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
    images = torch.rand(51, 1, 6, 6) * 0.6 + 0.2  # no bound is met
    with torch.no_grad():
        logits = classifier(images)
    labels = logits.argmax(1)
    weight = classifier.state_dict()["module.1.weight"]
    distance = margins(logits, labels) / (weight[0] - weight[1]).abs().sum()
    epsilon = Fraction(float(distance.median()))  # fools one half of them
    direction = (weight[0] - weight[1]).view(1, 1, 6, 6) * torch.where(labels == 0, 1.0, -1.0).view(
        -1, 1, 1, 1
    )
    optimum = images - float(epsilon) * direction.sign()
    torch.testing.assert_close(fgsm(classifier, images, labels, [epsilon])[0], optimum)
    found = ascend(classifier, images, labels, epsilon, steps=20, generator=torch.Generator())
    torch.testing.assert_close(found, optimum, atol=1e-6, rtol=0)
    # pgd stops at the first image that fools; where the optimum does not fool, it is the worst
    kept = pgd(classifier, images, labels, [epsilon], restarts=1, generator=torch.Generator())[0]
    right = classifier(optimum).argmax(1) == labels
    assert 20 < right.sum() < 30
    assert torch.equal(classifier(kept).argmax(1) == labels, right)
    torch.testing.assert_close(kept[right], optimum[right], atol=1e-6, rtol=0)


def plain_pgd(
    classifier: fn.Classifier,
    images: torch.Tensor,
    labels: torch.Tensor,
    loss: Direction,
    sizes: Sequence[float],
    epsilon: float,
) -> torch.Tensor:
    """PGD from the images themselves without any stopping: all its iterates, (steps + 1, n, c, h, w)."""
    iterates = [images]
    for size in sizes:
        leaves = iterates[-1].clone().requires_grad_(True)
        logits = classifier(leaves)
        (gradient,) = torch.autograd.grad(logits, leaves, loss(logits.detach(), labels))
        moved = iterates[-1] + size * epsilon * gradient.sign()
        iterates.append(moved.clamp(images - epsilon, images + epsilon).clamp(0, 1))
    return torch.stack(iterates)


@pytest.mark.parametrize("loss", [cross_entropy_direction, margin_direction])
@pytest.mark.parametrize("decay", [False, True])
def test_pgd_is_the_first_iterate_that_fools_or_the_one_of_lowest_margin(
    mnist: tuple[fn.Classifier, torch.Tensor, torch.Tensor], loss: Direction, decay: bool
) -> None:
    classifier, images, labels = (mnist[0], *(part[::4] for part in mnist[1:]))
    steps, size, epsilon = 6, 0.5, Fraction(3, 50)
    sizes = [size * ((1 + math.cos(math.pi * k / steps)) / 2 if decay else 1) for k in range(steps)]
    iterates = plain_pgd(classifier, images, labels, loss, sizes, float(epsilon))
    found = pgd(
        classifier, images, labels, [epsilon],
        losses=(loss,), steps=steps, step_size=size, decay=decay, restarts=1, random_start=False,
    )[0]  # fmt: skip
    with torch.no_grad():
        logits = torch.stack([classifier(one) for one in iterates])
    fooled, lowest = logits.argmax(-1) != labels, margins(logits, labels)
    assert 0 < fooled.any(0).sum() < len(images)
    for image in range(len(images)):
        hits = fooled[:, image].nonzero()
        expected = int(hits[0]) if len(hits) else int(lowest[:, image].argmin())
        torch.testing.assert_close(found[image], iterates[expected, image], atol=1e-5, rtol=0)


def test_an_image_that_is_fooled_takes_no_more_passes(small_data: fn.ImageData) -> None:
    images, labels = small_data[:]
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    classifier = fn.Classifier(network)
    with torch.no_grad():
        labels = classifier(images).argmax(1)
        wrong = (labels + 1) % 3
    with counting(classifier) as passes:
        found = pgd(classifier, images, wrong, [Fraction(1, 10)])[0]
    assert torch.equal(found, images)  # wrong from the start: looked at once and left
    assert (passes.forward, passes.backward) == (40, 0)
    with counting(classifier) as passes:
        kept = pgd(
            classifier, images, labels, [Fraction(1, 10**6)], steps=7, restarts=2, generator=torch.Generator()
        )[0]
    held = int((classifier(kept).argmax(1) == labels).sum())
    assert held == 40  # none fooled: a first look, and 2 restarts of 7 steps and a last look
    assert (passes.forward, passes.backward) == (40 * (1 + 2 * 8), 40 * 2 * 7)
    with counting(classifier) as passes:
        pgd(classifier, images, labels, [Fraction(1)], steps=50, restarts=5, generator=torch.Generator())
    assert passes.backward < 40 * 10  # all fooled soon: it stops there


def test_restarts_take_the_losses_by_turns_and_keep_the_worst(
    mnist: tuple[fn.Classifier, torch.Tensor, torch.Tensor],
) -> None:
    classifier, images, labels = (mnist[0], *(part[::4] for part in mnist[1:]))
    asked: list[str] = []

    def first(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        asked.append("first")
        return cross_entropy_direction(logits, labels)

    def second(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        asked.append("second")
        return margin_direction(logits, labels)

    lowest = []
    for restarts in (1, 2, 3):
        asked.clear()
        found = pgd(
            classifier, images, labels, [Fraction(3, 50)],
            losses=(first, second), steps=2, restarts=restarts, generator=torch.Generator().manual_seed(0),
        )[0]  # fmt: skip
        assert asked == ["first", "first", "second", "second", "first", "first"][: 2 * restarts]
        with torch.no_grad():
            lowest.append(margins(classifier(found), labels))
    assert (lowest[1] <= lowest[0] + 1e-5).all()
    assert (lowest[2] <= lowest[1] + 1e-5).all()
    assert (lowest[2] < lowest[0] - 1e-3).any()


def test_noise_has_its_budget_and_is_the_worst_of_its_draws(
    mnist: tuple[fn.Classifier, torch.Tensor, torch.Tensor],
) -> None:
    classifier, images, labels = (mnist[0], *(part[:50] for part in mnist[1:]))
    inner = images * 0.4 + 0.3
    for attack in (sign_noise, uniform_noise):
        found = attack(
            classifier,
            inner,
            labels,
            [Fraction(1, 5)],
            restarts=1,
            generator=torch.Generator().manual_seed(0),
        )[0]
        distance = (found - inner).abs()
        touched = distance.flatten(1).amax(1) > 0  # an image wrong from the start is left alone
        assert touched.any()
        if attack is sign_noise:
            torch.testing.assert_close(distance[touched], torch.full_like(distance[touched], 0.2))
        else:
            assert distance.max() <= 0.2
            assert abs(distance[touched].mean() - 0.1) < 0.005
        right = [
            (
                classifier(
                    attack(
                        classifier, images, labels, [Fraction(1, 5)],
                        restarts=draws, generator=torch.Generator().manual_seed(0),
                    )[0]
                ).argmax(1)
                == labels
            )
            for draws in (1, 20)
        ]  # fmt: skip
        assert not (right[1] & ~right[0]).any()
        assert right[1].sum() < right[0].sum()


@pytest.mark.parametrize("name", [name for name in ATTACKS if name not in ("pgd-strong", "autoattack")])
def test_an_attack_changes_nothing_but_what_it_returns(
    name: str, small_classifier: fn.Classifier, small_data: fn.ImageData
) -> None:
    images, labels = (part[:6] for part in small_data[:])
    kept, truth, checksum = images.clone(), labels.clone(), small_classifier.sha256()
    state = torch.get_rng_state()
    small_classifier.zero_grad()
    method: Attack = partial(square, steps=30) if name == "square" else ATTACKS[name]
    one, other = (
        method(small_classifier, images, labels, GRID, generator=torch.Generator().manual_seed(1))
        for _ in range(2)
    )
    assert torch.equal(one, other)
    assert torch.equal(one[0], images)
    assert one.shape == (3, *images.shape)
    assert torch.equal(images, kept)
    assert torch.equal(labels, truth)
    assert small_classifier.sha256() == checksum
    assert torch.equal(torch.get_rng_state(), state)
    assert not small_classifier._forward_hooks
    assert not small_classifier.training
    assert all(parameter.requires_grad for parameter in small_classifier.parameters())
    assert all(parameter.grad is None for parameter in small_classifier.parameters())
    attacked = apply_attack(method, small_classifier, images, labels, GRID, generator=torch.Generator())
    assert (attacked.overshoot <= 1e-6).all()


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


@pytest.mark.parametrize(
    ("problem", "given"),
    [
        ("the attack returned another shape", "list"),
        ("the attack changed what it was given", "other images or labels"),
        ("the attack failed", "ZeroDivisionError: division by zero"),
    ],
)
def test_apply_refuses_what_is_no_attack(problem: str, given: str) -> None:
    def broken(
        classifier: fn.Classifier,
        images: torch.Tensor,
        labels: torch.Tensor,
        epsilons: Sequence[Fraction],
        *,
        generator: torch.Generator | None = None,
    ) -> torch.Tensor:
        if given == "list":
            return [images]  # type: ignore[return-value]
        if "ZeroDivision" in given:
            raise ZeroDivisionError("division by zero")
        labels += 1
        return torch.stack([images for _ in epsilons])

    images, labels = torch.rand(8, 1, 6, 6), torch.arange(8) % 2
    with pytest.raises(InputError) as refusal:
        apply_attack(guarded(broken), linear_classifier(), images, labels, GRID)
    assert f"{problem}\n  given:   {given}" in str(refusal.value)
    assert "fix:     correct the attack, see docs/attacks.md" in str(refusal.value)
    assert torch.equal(labels, torch.arange(8) % 2)


@pytest.mark.parametrize("lacking", [MemoryError, torch.OutOfMemoryError])
def test_a_lack_of_memory_is_not_the_attacks_fault(lacking: type[Exception]) -> None:
    def greedy(*_: object, **__: object) -> torch.Tensor:
        raise lacking("no room")

    images, labels = torch.rand(8, 1, 6, 6), torch.arange(8) % 2
    with pytest.raises(lacking, match="no room"):
        apply_attack(guarded(greedy), linear_classifier(), images, labels, GRID)


def test_what_the_network_raises_under_an_attack_of_ours_is_not_blamed_on_the_attack() -> None:
    class Small(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        apply_attack(pgd, fn.Classifier(Small()), torch.rand(8, 1, 6, 6), torch.arange(8) % 2, GRID)


def test_apply_says_how_far_an_attack_went_too_far() -> None:
    classifier, images, labels = linear_classifier(), torch.rand(8, 1, 6, 6), torch.arange(8) % 2
    attacked = apply_attack(greedy, classifier, images, labels, GRID)
    expected = [(images + 5 - found).abs().max() for found in attacked.images]
    torch.testing.assert_close(attacked.overshoot, torch.stack(expected))
    assert (attacked.passes.forward, attacked.passes.backward) == (0, 0)
    counted = apply_attack(fgsm, classifier, images, labels, GRID).passes
    assert (counted.forward, counted.backward) == (8, 8)


# --- AutoAttack


def small_network(classes: int) -> fn.Classifier:
    torch.manual_seed(0)
    return fn.Classifier(
        nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(108, classes))
    ).eval()


@pytest.mark.parametrize(
    ("classes", "parts"),
    [
        (2, ["apgd-ce", "fab-t", "square"]),
        (3, ["apgd-ce", "apgd-dlr", "fab-t", "square"]),
        (4, ["apgd-ce", "apgd-t", "fab-t", "square"]),
        (10, ["apgd-ce", "apgd-t", "fab-t", "square"]),
    ],
)
def test_autoattack_takes_what_the_classes_allow(classes: int, parts: list[str]) -> None:
    assert standard_set(classes) == parts
    classifier, images = small_network(classes), torch.rand(8, 1, 8, 8)
    with torch.no_grad():
        labels = classifier(images).argmax(1)
    epsilon = [Fraction(1, 50)]
    strong = apply_attack(ATTACKS["autoattack"], classifier, images, labels, epsilon)
    weak = apply_attack(fgsm, classifier, images, labels, epsilon)
    assert not ((strong.predictions == labels) & (weak.predictions != labels)).any()
    assert strong.passes.backward > 0


def test_autoattack_is_pyautoattacks_standard_version() -> None:
    from pyautoattack import AutoAttack

    classifier, images = small_network(10), torch.rand(8, 1, 8, 8)
    with torch.no_grad():
        labels = classifier(images).argmax(1)
    generator = torch.Generator().manual_seed(5)
    seed = int(torch.randint(SEEDS, (), generator=torch.Generator().manual_seed(5)))
    ours = ATTACKS["autoattack"](classifier, images, labels, [Fraction(1, 100)], generator=generator)[0]
    theirs = AutoAttack(classifier, eps=0.01, seed=seed, device="cpu")
    expected, _ = theirs.run_standard_evaluation(images, labels, batch_size=8)
    torch.testing.assert_close(ours, expected)


def test_without_pyautoattack_it_is_said_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert missing_extra("autoattack") is None
    monkeypatch.setattr(autoattack, "is_installed", lambda: False)
    assert (
        missing_extra("autoattack") == missing_extra("square") == "pip install 'fragile-neurons[autoattack]'"
    )
    assert missing_extra("pgd") is None
    with pytest.raises(InputError, match=r"pip install 'fragile-neurons\[autoattack\]'"):
        ATTACKS["square"](small_network(3), torch.rand(4, 1, 8, 8), torch.zeros(4, dtype=torch.long), GRID)


# --- other libraries and the user's own


@pytest.mark.parametrize("library", ["foolbox", "torchattacks"])
def test_pgd_is_as_strong_as_other_libraries(
    library: str, mnist: tuple[fn.Classifier, torch.Tensor, torch.Tensor]
) -> None:
    classifier, images, labels = mnist
    epsilon, steps = Fraction(1, 20), 20
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they warn of their own dependencies on import
        import foolbox
        import torchattacks
    if library == "foolbox":
        model = foolbox.PyTorchModel(classifier.eval(), bounds=(0, 1), device="cpu")
        attack = foolbox.attacks.LinfPGD(rel_stepsize=2.5 / steps, steps=steps, random_start=False)
        _, theirs, _ = attack(model, images, labels, epsilons=float(epsilon))
    else:
        theirs = torchattacks.PGD(
            classifier.eval(), eps=0.05, alpha=0.05 * 2.5 / steps, steps=steps, random_start=False
        )(images, labels)
    ours = pgd(classifier, images, labels, [epsilon], steps=steps, restarts=1, random_start=False)[0]
    with torch.no_grad():
        fooled, expected = ((classifier(found).argmax(1) != labels).sum().item() for found in (ours, theirs))
    assert 20 < expected < 180
    assert expected <= fooled <= expected + 1  # half a percentage point of 200


def test_the_adapters_of_the_docs_run(tmp_path: Path) -> None:
    text = (Path(__file__).parent.parent / "docs" / "attacks.md").read_text(encoding="utf-8")
    (tmp_path / "my_attacks.py").write_text(text.split("```python\n")[1].split("```")[0])
    classifier = fn.load_model("mnist-cnn").eval()
    images, labels = fn.load_data("mnist", limit=20)[:]
    weak = apply_attack(fgsm, classifier, images, labels, [Fraction(1, 10), Fraction(1, 5)])
    for name in ("foolbox_pgd", "torchattacks_pgd", "art_pgd"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            attack = find_attack(f"{tmp_path / 'my_attacks.py'}:{name}")
            attacked = apply_attack(attack, classifier, images, labels, [Fraction(1, 10), Fraction(1, 5)])
        assert (attacked.overshoot <= 1e-6).all()
        fooled, by_fgsm = ((one.predictions != labels).sum(1) for one in (attacked, weak))
        assert (fooled >= by_fgsm - 1).all()
        assert fooled[1] > 15
        assert attacked.passes.forward > 0
        assert attacked.passes.backward > 0


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("own.py:gone", "has no gone"),
        ("own.py:NUMBER", "NUMBER is a int, not a function"),
        ("broken.py:attack", "cannot be imported: ZeroDivisionError"),
        ("nowhere.py:attack", "there is no file"),
        ("no.such.package:attack", "cannot be imported: ModuleNotFoundError"),
    ],
)
def test_an_own_attack_that_is_none_is_refused(name: str, problem: str, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text("NUMBER = 1")
    (tmp_path / "broken.py").write_text("1 / 0")
    with pytest.raises(InputError, match=problem) as refusal:
        find_attack(str(tmp_path / name) if ".py" in name else name)
    assert "(classifier, images, labels, epsilons, *, generator=None)" in str(refusal.value)


def test_unknown_attack_lists_those_that_exist(
    small_classifier: fn.Classifier, small_data: fn.ImageData
) -> None:
    with pytest.raises(InputError, match=r"fgsm, pgd, pgd-margin.*path/file\.py:function"):
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


def test_an_image_that_only_the_attack_makes_right_is_not_robust(tmp_path: Path) -> None:
    """Class 1 is a pixel far from 0.5; a step of 0.3 takes the first image, wrong at 0.45, beyond it."""
    module = nn.Sequential(
        OrderedDict(conv=nn.Conv2d(1, 2, 1), act=nn.ReLU(), flatten=nn.Flatten(), fc=nn.Linear(2, 2))
    )
    weights = {
        "conv.weight": [[[[1.0]]], [[[-1.0]]]], "conv.bias": [-0.5, 0.5],
        "fc.weight": [[0.0, 0.0], [1.0, 1.0]], "fc.bias": [0.0, -0.1],
    }  # fmt: skip
    module.load_state_dict({name: torch.tensor(values) for name, values in weights.items()})
    pixels = np.array([0.45, 0.95, 0.05, 0.52], np.float32).reshape(4, 1, 1, 1)
    data = fn.ImageData(pixels, np.array([1, 1, 1, 0]), ("near", "far"))
    classifier = fn.Classifier(module)
    attempts = observe_attack(classifier, data, "fgsm", [Fraction(3, 10)], batch_size=4, seed=0)
    assert (attempts.prediction[0] == data.labels).tolist() == [True, True, True, False]
    found = fn.robust_accuracy(classifier, data, epsilons=["0", "0.3"])
    assert found.right.tolist() == [[False, True, True, True], [False, True, True, False]]
    run = fn.analyze(classifier, data, epsilons=["0.3"], output=tmp_path / "run")
    assert [row["value"] for row in run.summary["robust_accuracy"]] == [0.5]


def test_robust_accuracy_of_what_is_no_classifier_of_the_data_is_refused(
    small_classifier: fn.Classifier, small_data: fn.ImageData
) -> None:
    colour = fn.ImageData(
        np.repeat(np.asarray(small_data.images), 3, axis=1), small_data.labels, small_data.classes
    )
    with pytest.raises(InputError, match="the network cannot process these images"):
        fn.robust_accuracy(small_classifier, colour, epsilons=[0.1])
