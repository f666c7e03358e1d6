"""AutoAttack and its Square (Croce and Hein 2020), through the package pyautoattack."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from importlib.util import find_spec
from typing import Any

import torch

from fragile_neurons.classifier import Classifier
from fragile_neurons.errors import InputError

INSTALL = "pip install 'fragile-neurons[autoattack]'"
TARGETS = 9  # the most that AutoAttack's targeted attacks try
SEEDS = 2**31


def is_installed() -> bool:
    """Whether pyautoattack can be imported."""
    return find_spec("pyautoattack") is not None


def autoattack(
    classifier: Classifier,
    images: torch.Tensor,
    labels: torch.Tensor,
    epsilons: Sequence[Fraction],
    *,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """The standard set, (epsilons, n, channels, height, width): APGD-CE, targeted APGD and FAB, Square.

    The targeted loss of APGD needs four classes: of three, APGD is untargeted; of two, left out.
    """
    return _run(classifier, images, labels, epsilons, generator, standard_set)


def apgd(
    classifier: Classifier,
    images: torch.Tensor,
    labels: torch.Tensor,
    epsilons: Sequence[Fraction],
    *,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """The first two of the set, (epsilons, n, channels, height, width): APGD-CE and targeted APGD."""
    return _run(classifier, images, labels, epsilons, generator, lambda classes: standard_set(classes)[:-2])


def square(
    classifier: Classifier,
    images: torch.Tensor,
    labels: torch.Tensor,
    epsilons: Sequence[Fraction],
    *,
    steps: int = 5_000,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """Random search without gradients, (epsilons, n, channels, height, width); steps: queries per image."""
    return _run(classifier, images, labels, epsilons, generator, lambda _: ["square"], steps)


def standard_set(classes: int) -> list[str]:
    """The parts of AutoAttack that so many classes allow."""
    second = {2: [], 3: ["apgd-dlr"]}.get(classes, ["apgd-t"])
    return ["apgd-ce", *second, "fab-t", "square"]


def _run(
    classifier: Classifier,
    images: torch.Tensor,
    labels: torch.Tensor,
    epsilons: Sequence[Fraction],
    generator: torch.Generator | None,
    parts: Callable[[int], list[str]],
    queries: int = 5_000,
) -> torch.Tensor:
    """parts: those of AutoAttack, for so many classes."""
    if not is_installed():
        raise InputError(
            "AutoAttack is not installed",
            given="no pyautoattack",
            allowed="the extra autoattack",
            fix=INSTALL,
        )
    with torch.no_grad():
        classes = classifier(images[:4]).shape[1]
    grid = []
    for epsilon in epsilons:
        seed = int(torch.randint(SEEDS, (), generator=generator))
        # it seeds torch's own generators, which are somebody else's
        with torch.random.fork_rng([images.device] if images.is_cuda else []):
            grid.append(
                _standard(classifier, classes, float(epsilon), seed, parts(classes), queries, images.device)
                .run_standard_evaluation(images, labels, batch_size=len(images))[0]
                .detach()
                if epsilon
                else images.clone()
            )
    return torch.stack(grid)


def _standard(
    classifier: Classifier,
    classes: int,
    epsilon: float,
    seed: int,
    parts: list[str],
    queries: int,
    device: torch.device,
) -> Any:
    from pyautoattack import AutoAttack

    attack = AutoAttack(
        classifier,
        attacks=parts,
        device=device,
        eps=epsilon,
        seed=seed,
        version="custom",
    )
    # what version="standard" sets, which allows no choice of attacks
    attack.apgd.n_restarts = attack.fab.n_restarts = attack.apgd_targeted.n_restarts = 1
    attack.apgd_targeted.n_target_classes = attack.fab.n_target_classes = min(TARGETS, classes - 1)
    attack.square.n_queries = queries
    return attack
