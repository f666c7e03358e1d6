"""The slow and plain sweep: one neuron after another, a hook, the whole network. The oracle."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy.typing as npt
import torch

from fragile_neurons.classifier import Classifier
from fragile_neurons.interventions import drop, intervening
from fragile_neurons.losses import margins
from fragile_neurons.neurons import Site
from fragile_neurons.sweeps.baseline import Baseline, measure_baseline
from fragile_neurons.sweeps.dropped import Dropped


def sweep(
    classifier: Classifier,
    site: Site,
    channels: Sequence[int],
    replacements: Sequence[float],
    images: torch.Tensor,
    labels: torch.Tensor,
    epsilons: Sequence[Fraction],
    *,
    adaptive: bool,
) -> Dropped:
    """Drop each channel at the site in turn, on one batch; `adaptive` attacks each network anew."""
    whole = measure_baseline(classifier, images, labels, epsilons)
    return Dropped.join_neurons(
        [
            _drop_one(classifier, site, channel, value, images, labels, epsilons, whole, adaptive)
            for channel, value in zip(channels, replacements, strict=True)
        ]
    )


def _drop_one(
    classifier: Classifier,
    site: Site,
    channel: int,
    value: float,
    images: torch.Tensor,
    labels: torch.Tensor,
    epsilons: Sequence[Fraction],
    whole: Baseline,
    adaptive: bool,
) -> Dropped:
    with intervening(classifier, site, channel, drop(value)), torch.no_grad():
        if adaptive and epsilons:
            anew = measure_baseline(classifier, images, labels, epsilons)
            clean, adversarial, zero_gradient = anew.logits, anew.adversarial_logits, anew.zero_gradient
        else:
            clean, adversarial = classifier(images), whole.adversarial_logits[:0]
            zero_gradient = torch.zeros_like(labels, dtype=torch.bool)
        transfer = torch.empty_like(whole.adversarial_logits)
        for row, attacked in enumerate(whole.adversarial):
            transfer[row] = classifier(attacked)
    return Dropped(
        clean_right=_column(clean.argmax(-1) == labels),
        clean_margin=_column(margins(clean, labels)),
        clean_move=_column((clean - whole.logits).abs().amax(-1)),
        transfer_right=_column(transfer.argmax(-1) == labels),
        transfer_margin=_column(margins(transfer, labels)),
        transfer_move=_column((transfer - whole.adversarial_logits).abs().amax(-1)),
        adv_right=_column(adversarial.argmax(-1) == labels),
        adv_margin=_column(margins(adversarial, labels)),
        zero_gradient=_column(zero_gradient),
    )


def _column(values: torch.Tensor) -> npt.NDArray[Any]:
    return values.unsqueeze(-1).cpu().numpy()
