"""From the logits of some pairs to an answer for every pair: as it is, or as an unbiased estimate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fragile_neurons.losses import margins

Array = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class Before:
    """The predictions before a replacement: logits (n, classes) and labels (n,)."""

    logits: torch.Tensor
    labels: torch.Tensor

    @property
    def right(self) -> torch.Tensor:
        """(n,) bool."""
        return self.logits.argmax(-1) == self.labels

    @property
    def margins(self) -> torch.Tensor:
        """(n,) true logit minus best other."""
        return margins(self.logits, self.labels)


@dataclass(frozen=True, eq=False)
class Weighted:
    """A sample of pairs, (channels, n) each.

    drawn: bool. weights: one over the probability with which a pair is. expected: margins predicted.
    """

    drawn: Array
    weights: Array
    expected: Array


@dataclass(frozen=True, eq=False)
class Answer:
    """What a replacement does, (n, channels) each.

    right: classified right; margin: true logit minus best other; both estimates of a sample: their means
    over images are unbiased. flipped: right before and not after, or the reverse; the weight of the pair
    in a sample. heaviest: (1, channels) the largest weight that a pair can have; 1 if all were asked.
    """

    right: Array
    margin: Array
    flipped: Array
    heaviest: Array

    @classmethod
    def of_pairs(
        cls,
        logits: torch.Tensor,
        before: Before,
        kept: Before,
        asked: torch.Tensor,
        sample: Weighted | None,
    ) -> Answer:
        """logits: (pairs, classes) of the pairs asked, channel by channel. asked: (channels, n) bool.

        before: the network's. kept: the same way's own pass, rounded as the pairs are: a prediction in which
        these two differ is no flip where the pair agrees with either.
        """
        images = asked.nonzero()[:, 1]
        right, after = before.right, torch.zeros(asked.shape, device=asked.device)
        flipped = torch.zeros_like(asked)
        now = logits.argmax(-1) == before.labels[images]
        flipped[asked] = (now != right[images]) & (now != kept.right[images])
        after[asked] = margins(logits, before.labels[images])
        flips, margin, was = flipped.T.cpu().numpy(), after.T.cpu().numpy(), right.cpu().numpy()[:, None]
        if sample is None:
            return cls(estimate(was, flips, None), margin, flips, np.ones((1, len(asked)), np.float32))
        weights, expected = (side.T.astype(np.float32) for side in (sample.weights, sample.expected))
        # where a pair is sure to be asked, its own margin and no rounding of another sum
        weighted = np.where(weights == 1, margin, expected + weights * (margin - expected))
        return cls(
            right=estimate(was, flips, sample),
            margin=np.where(sample.drawn.T, weighted, expected),
            flipped=flips * weights,
            heaviest=weights.max(axis=0, keepdims=True),
        )


def estimate(before: Array, differs: Array, sample: Weighted | None) -> Array:
    """What is so afterwards, bool (n, channels); of a sample numbers whose means are unbiased.

    before: (n, 1) bool. differs: (n, channels) bool, in the pairs that were asked.
    """
    if sample is None:
        return np.asarray(before != differs)
    change = differs * sample.weights.T.astype(np.float32)
    return np.where(before, 1 - change, change)
