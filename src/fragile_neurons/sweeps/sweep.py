"""Every question that is asked of single neurons, on one batch of images, whichever way is taken."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy.typing as npt
import torch

from fragile_neurons.classifier import Classifier
from fragile_neurons.interventions import Replacement, drop, keep, patch
from fragile_neurons.losses import margins
from fragile_neurons.neurons import Site
from fragile_neurons.sweeps.baseline import measure_baseline
from fragile_neurons.sweeps.observed import Dropped, Patched
from fragile_neurons.sweeps.pairs import Pairs
from fragile_neurons.sweeps.way import Walk, Way


class Sweep:
    """One batch, attacked once; sites are asked for in order of execution, each as often as you like."""

    def __init__(
        self,
        way: Way,
        classifier: Classifier,
        sites: Sequence[Site],
        images: torch.Tensor,
        labels: torch.Tensor,
        epsilons: Sequence[Fraction],
    ) -> None:
        self._way, self._images, self._labels, self._epsilons = way, images, labels, epsilons
        self._whole = measure_baseline(classifier, images, labels, epsilons)
        self._clean = way.walk(images, sites)
        self._attacked = [way.walk(attacked, sites) for attacked in self._whole.adversarial]

    def drop(
        self, site: Site, channels: Sequence[int], values: Sequence[float], *, adaptive: bool
    ) -> Dropped:
        """Each of these channels at its value in turn; values: one for each channel of the layer.

        `adaptive` attacks each network anew.
        """
        pairs, replace, count = self._every(channels), drop(values), len(channels)
        walks = (self._clean, *self._attacked)
        clean, *transfer = (_by_channel(walk.logits(site, replace, pairs), count) for walk in walks)
        # compared with the same way's own pass: a dead neuron moves no logit by a rounding
        before = (walk.logits(site, keep, self._every(channels[:1])) for walk in walks)
        clean_move, *moves = (
            (after - whole).abs().amax(-1) for after, whole in zip((clean, *transfer), before, strict=True)
        )
        anew: list[torch.Tensor] = []
        zero_gradient = torch.zeros(count, len(self._labels), dtype=torch.bool)
        if adaptive and self._epsilons:
            found = self._way.attack(site, replace, pairs, self._images, self._labels, self._epsilons)
            anew = [_by_channel(logits, count) for logits in found.adversarial_logits]
            zero_gradient = _by_channel(found.zero_gradient, count)
        return Dropped(
            clean_right=_columns(self._right(clean)),
            clean_margin=_columns(margins(clean, self._labels)),
            clean_move=_columns(clean_move),
            transfer_right=self._stack([self._right(one) for one in transfer], count, torch.bool),
            transfer_margin=self._stack([margins(one, self._labels) for one in transfer], count),
            transfer_move=self._stack(moves, count),
            adv_right=self._stack([self._right(one) for one in anew], count, torch.bool),
            adv_margin=self._stack([margins(one, self._labels) for one in anew], count),
            zero_gradient=_columns(zero_gradient),
        )

    def patch(self, site: Site, channels: Sequence[int]) -> Patched:
        """Each of these channels in turn with its map from the other side of the attack.

        Asked only of the images where it can change the answer: the fooled, and those right clean.
        """
        right = self._right(self._whole.logits)
        clean = self._clean.maps(site)
        rescued, broken = [], []
        for walk, logits in zip(self._attacked, self._whole.adversarial_logits, strict=True):
            fooled = right & ~self._right(logits)
            rescued.append(self._answers(walk, site, patch(clean), channels, fooled))
            still = self._answers(self._clean, site, patch(walk.maps(site)), channels, right)
            broken.append(right & ~still)
        return Patched(
            rescued=self._stack(rescued, len(channels), torch.bool),
            broken=self._stack(broken, len(channels), torch.bool),
        )

    def _answers(
        self, walk: Walk, site: Site, replace: Replacement, channels: Sequence[int], asked: torch.Tensor
    ) -> torch.Tensor:
        """(channels, n): right with the channel replaced, on the images asked; False on the others."""
        images = asked.nonzero().squeeze(1)
        answers = torch.zeros(len(channels), len(asked), dtype=torch.bool, device=asked.device)
        if len(images):
            logits = walk.logits(site, replace, Pairs.of(channels, images))
            answers[:, images] = _by_channel(logits, len(channels)).argmax(-1) == self._labels[images]
        return answers

    def _every(self, channels: Sequence[int]) -> Pairs:
        return Pairs.of(channels, torch.arange(len(self._labels), device=self._labels.device))

    def _right(self, logits: torch.Tensor) -> torch.Tensor:
        return logits.argmax(-1) == self._labels

    def _stack(
        self, by_epsilon: list[torch.Tensor], channels: int, dtype: torch.dtype = torch.float32
    ) -> npt.NDArray[Any]:
        """(epsilons, n, channels) of (channels, n) each."""
        empty = torch.zeros(0, channels, len(self._labels), dtype=dtype)
        return _columns(torch.stack(by_epsilon) if by_epsilon else empty)


def _by_channel(rows: torch.Tensor, channels: int) -> torch.Tensor:
    """(channels, images, ...) of rows for every image of one channel after another."""
    return rows.reshape(channels, -1, *rows.shape[1:])


def _columns(values: torch.Tensor) -> npt.NDArray[Any]:
    """(..., n, channels) of (..., channels, n)."""
    return values.transpose(-1, -2).contiguous().cpu().numpy()
