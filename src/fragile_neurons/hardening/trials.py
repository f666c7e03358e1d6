"""What a judgement asks of which networks: the trials, the controls and the tempered network."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy.typing as npt
import torch

from fragile_neurons.classifier import Classifier, evaluating
from fragile_neurons.data.batches import batches
from fragile_neurons.data.images import ImageData
from fragile_neurons.evidence import Tempered
from fragile_neurons.hardening.choose import CLEAN_IMAGES
from fragile_neurons.hardening.gains import Gains
from fragile_neurons.hardening.observe import APGD, CLEAN, FGSM, NONE, PGD, SHORT_PGD, observe_judged
from fragile_neurons.losses import margins

ORIGINAL, HARDENED, TEMPERED = "original", "hardened", "tempered"
SHUFFLES = 20
FEW = 500  # images for what is slow, and for the controls


@dataclass(frozen=True)
class Trial:
    """A network under an attack at some epsilons, on the first images.

    source: the network that the attack works on: itself if empty, another, or `tempered`, the hardened one
    with logits of the original's scale.
    """

    network: str
    attack: str
    epsilons: tuple[Fraction, ...]
    images: int
    source: str = ""


SHUFFLED = "shuffled"
CONTROLS = (*(f"{SHUFFLED} {draw}" for draw in range(SHUFFLES)), "inverted", "uniform")


def control(name: str, gains: Gains, seed: int) -> Gains:
    """What the gains are held against: on other channels, inverted, or the same for all channels."""
    if name == "inverted":
        return gains.power(-1.0)
    return gains.uniform() if name == "uniform" else gains.shuffled(seed, int(name.split()[1]))


def make_trials(
    images: int,
    epsilon: Fraction,
    epsilons: Sequence[Fraction],
    *,
    alternatives: Iterable[str] = (),
    controls: Iterable[str] = (),
    stronger: bool,
) -> list[Trial]:
    """All that a judgement asks; stronger: APGD as well, which needs AutoAttack."""
    grid, one, few = tuple(sorted({*epsilons, epsilon} - {Fraction(0)})), (epsilon,), min(images, FEW)
    trials = [
        Trial(network, attack, budgets, images)
        for network in (ORIGINAL, HARDENED)
        for attack, budgets in ((CLEAN, NONE), (FGSM, grid), (PGD, grid))
    ]
    trials += [
        Trial(network, attack, budgets, images)
        for network in alternatives
        for attack, budgets in ((CLEAN, NONE), (FGSM, one), (PGD, one))
    ]
    trials += [
        Trial(HARDENED, PGD, one, images, source=ORIGINAL),
        Trial(ORIGINAL, PGD, one, images, source=HARDENED),
        Trial(HARDENED, PGD, one, few, source=TEMPERED),
    ]
    if stronger:
        trials += [Trial(network, APGD, one, few) for network in (ORIGINAL, HARDENED)]
    names = list(controls)
    trials += [Trial(network, SHORT_PGD, one, few) for network in (ORIGINAL, HARDENED, *names) if names]
    return trials


def run_trial(
    trial: Trial,
    networks: Mapping[str, Classifier],
    data: ImageData,
    *,
    batch_size: int,
    seed: int,
    start: int = 0,
    stop: int | None = None,
) -> dict[str, npt.NDArray[Any]]:
    """What observe_judged says of images start to stop."""
    return observe_judged(
        networks[trial.network],
        data,
        trial.attack,
        trial.epsilons,
        batch_size=batch_size,
        seed=seed,
        start=start,
        stop=min(trial.images, trial.images if stop is None else stop),
        source=networks[trial.source] if trial.source else None,
    )


def find_temperature(original: Classifier, hardened: Classifier, val: ImageData, *, batch_size: int) -> float:
    """The median clean margin of the hardened network over the original's.

    Over the validation images that both have right; 1 if there are none.
    """
    before: list[torch.Tensor] = []
    after: list[torch.Tensor] = []
    with evaluating(original), evaluating(hardened), torch.no_grad():
        for batch in batches(val, batch_size, original.device, 0, min(len(val), CLEAN_IMAGES)):
            for network, found in ((original, before), (hardened, after)):
                found.append(margins(network(batch.images), batch.labels)[: batch.count])
    first, second = torch.cat(before), torch.cat(after)
    both = (first > 0) & (second > 0)
    return float(second[both].median() / first[both].median()) if both.any() else 1.0


def temper(hardened: Classifier, temperature: float) -> Classifier:
    """The hardened network with its logits divided by the temperature, for an attack to work on."""
    return Classifier(Tempered(hardened, temperature), name=hardened.name)
