"""What the whole network says of each image, clean and under FGSM."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from fractions import Fraction

import numpy as np
import numpy.typing as npt
import torch

from fragile_neurons.classifier import Classifier, evaluating
from fragile_neurons.data.batches import batches
from fragile_neurons.data.images import ImageData
from fragile_neurons.losses import margins
from fragile_neurons.sweeps.baseline import Baseline, measure_baseline


@dataclass(frozen=True, eq=False)
class Predictions:
    """What the whole network says of each image, clean and under FGSM at each epsilon.

    label, prediction: (n,) classes. margin: (n,) true logit minus best other. largest_logit: (n,)
    in magnitude. zero_gradient: (n,) the attack has no direction. adv_*: (epsilons, n).
    """

    label: npt.NDArray[np.int64]
    prediction: npt.NDArray[np.int64]
    margin: npt.NDArray[np.float32]
    largest_logit: npt.NDArray[np.float32]
    zero_gradient: npt.NDArray[np.bool_]
    adv_prediction: npt.NDArray[np.int64]
    adv_margin: npt.NDArray[np.float32]

    @property
    def right(self) -> npt.NDArray[np.bool_]:
        """(n,) classified right clean."""
        return np.equal(self.prediction, self.label)

    @property
    def adv_right(self) -> npt.NDArray[np.bool_]:
        """(epsilons, n) classified right under attack."""
        return np.equal(self.adv_prediction, self.label)

    @classmethod
    def of(cls, measured: Baseline, labels: torch.Tensor, count: int) -> Predictions:
        """Of a batch's first images."""
        columns = {
            "label": labels,
            "prediction": measured.logits.argmax(-1),
            "margin": margins(measured.logits, labels),
            "largest_logit": measured.logits.abs().amax(-1),
            "zero_gradient": measured.zero_gradient,
            "adv_prediction": measured.adversarial_logits.argmax(-1),
            "adv_margin": margins(measured.adversarial_logits, labels),
        }
        return cls(**{key: value[..., :count].cpu().numpy() for key, value in columns.items()})

    @classmethod
    def join(cls, parts: Sequence[Predictions]) -> Predictions:
        """More images."""
        names = [field.name for field in fields(cls)]
        return cls(**{name: np.concatenate([getattr(part, name) for part in parts], -1) for name in names})


def observe_predictions(
    classifier: Classifier,
    data: ImageData,
    epsilons: Sequence[Fraction],
    *,
    batch_size: int,
    start: int = 0,
    stop: int | None = None,
) -> Predictions:
    """Predictions on images start to stop."""
    parts = []
    with evaluating(classifier):
        for batch in batches(data, batch_size, classifier.device, start, stop):
            measured = measure_baseline(classifier, batch.images, batch.labels, epsilons)
            parts.append(Predictions.of(measured, batch.labels, batch.count))
    return Predictions.join(parts)
