"""An attack of somebody else: its random numbers are seeded, the network stays, epsilon 0 is not asked."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction

import numpy as np
import torch

from fragile_neurons.attacks.apply import Attack, unusable
from fragile_neurons.classifier import Classifier
from fragile_neurons.errors import FragileNeuronsError, InputError
from fragile_neurons.own import describe


def guarded(attack: Attack) -> Attack:
    """The same attack, which gives the same images again and cannot do harm unnoticed.

    What it raises becomes an InputError, but for a lack of memory.
    """

    def guard(
        classifier: Classifier,
        images: torch.Tensor,
        labels: torch.Tensor,
        epsilons: Sequence[Fraction],
        *,
        generator: torch.Generator | None = None,
    ) -> torch.Tensor:
        asked = [epsilon for epsilon in epsilons if epsilon]
        if not asked:
            return images.expand(len(epsilons), *images.shape).clone()
        with _seeded(generator), _unchanged(classifier):
            try:
                found = attack(classifier, images, labels, asked, generator=generator)
            except (FragileNeuronsError, MemoryError, torch.OutOfMemoryError):
                raise
            except (Exception, SystemExit) as error:
                raise unusable("the attack failed", describe(error), "one that returns images") from error
        if len(asked) == len(epsilons) or not isinstance(found, torch.Tensor) or len(found) != len(asked):
            return found
        rest = iter(found)
        return torch.stack([next(rest) if epsilon else images.to(found) for epsilon in epsilons])

    return guard


@contextmanager
def _seeded(generator: torch.Generator | None) -> Iterator[None]:
    """The global random numbers follow from the generator's seed, and go on as before afterwards."""
    seed = 0 if generator is None else generator.initial_seed() % 2**32
    python, of_numpy = random.getstate(), np.random.get_state()
    dtype = torch.get_default_dtype()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        np.random.seed(seed)
        random.seed(seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(of_numpy)
            torch.set_default_dtype(dtype)


@contextmanager
def _unchanged(classifier: Classifier) -> Iterator[None]:
    """Raise an InputError where weights change inside the block; they have their values back in any case."""
    before = {name: tensor.clone() for name, tensor in classifier.module.state_dict().items()}
    changed: list[str] = []
    try:
        yield
    finally:
        for name, tensor in classifier.module.state_dict().items():
            if not torch.equal(tensor, before[name]):
                changed.append(name)
                tensor.copy_(before[name])
    if changed:
        raise InputError(
            "the attack changed the network",
            given=f"other values in {', '.join(changed[:4])}",
            allowed="an attack that leaves the network as it is",
            fix="let it work on a copy, see docs/attacks.md",
        )
