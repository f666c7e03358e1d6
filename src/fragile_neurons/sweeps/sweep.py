"""Every question that is asked of single neurons, on one batch of images, whichever way is taken."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fragile_neurons.classifier import Classifier
from fragile_neurons.interventions import Replacement, drop, keep, patch
from fragile_neurons.neurons import Site
from fragile_neurons.sweeps.answers import Answer, Before, Weighted, estimate
from fragile_neurons.sweeps.baseline import measure_baseline
from fragile_neurons.sweeps.observed import (
    ADAPTIVE,
    CLEAN,
    INJECT,
    RESCUE,
    TRANSFER,
    Dropped,
    Patched,
    question_names,
)
from fragile_neurons.sweeps.pairs import Pairs
from fragile_neurons.sweeps.sampling import FirstOrder, Sample
from fragile_neurons.sweeps.way import AttackedPairs, Way

Array = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class Asked:
    """A replacement in one pass, 0 clean, 1 on under attack; asked: (n,) bool, of which images."""

    name: str
    turn: int
    replace: Replacement
    asked: torch.Tensor


class Sweep:
    """One batch, attacked once; sites are asked for in order of execution, each as often as you like.

    sample: which pairs of a neuron and an image are asked; None: all of them. whole: what the network as
    it is says of the images.
    """

    def __init__(
        self,
        way: Way,
        classifier: Classifier,
        sites: Sequence[Site],
        images: torch.Tensor,
        labels: torch.Tensor,
        epsilons: Sequence[Fraction],
        sample: Sample | None = None,
    ) -> None:
        self._sample, self._epsilons = sample, epsilons
        self._names = question_names(epsilons)
        self.labels = labels
        whole = self.whole = measure_baseline(classifier, images, labels, epsilons)
        self._turns, self._blind = [images, *whole.adversarial], whole.zero_gradient
        self._before = [Before(one, labels) for one in (whole.logits, *whole.adversarial_logits)]
        self._is_coarse = classifier.dtype != "float32"
        self._anew: dict[Site, AttackedPairs] = {}
        self._walks = [way.walk(one, sites) for one in self._turns]

    def drop(
        self, site: Site, channels: Sequence[int], values: Sequence[float], *, adaptive: bool
    ) -> Dropped:
        """Each of these channels at its value in turn; values: one for each channel of the layer.

        `adaptive` attacks each network anew.
        """
        questions = self._drops(values)
        predicted = [self._sampled(question, site, channels) for question in questions]
        (clean, clean_move), *transfer = (
            self._dropped(question, told, site, channels)
            for question, told in zip(questions, predicted, strict=True)
        )
        anew: list[Answer] = []
        zero_gradient = np.zeros((len(self.labels), len(channels)), dtype=np.bool_)
        if adaptive and self._epsilons:
            told = [one for one in predicted[1:] if one is not None]
            anew, zero_gradient = self._dropped_anew(site, channels, values, told)
        return Dropped(
            clean_right=clean.right,
            clean_margin=clean.margin,
            clean_move=clean_move,
            clean_heaviest=clean.heaviest,
            transfer_right=self._stack([one.right for one, _ in transfer], channels, np.bool_),
            transfer_margin=self._stack([one.margin for one, _ in transfer], channels),
            transfer_move=self._stack([move for _, move in transfer], channels),
            transfer_heaviest=self._stack([one.heaviest for one, _ in transfer], channels),
            adv_right=self._stack([one.right for one in anew], channels, np.bool_),
            adv_margin=self._stack([one.margin for one in anew], channels),
            adv_heaviest=self._stack([one.heaviest for one in anew], channels),
            zero_gradient=zero_gradient,
        )

    def patch(self, site: Site, channels: Sequence[int]) -> Patched:
        """Each of these channels in turn with its map from the other side of the attack.

        Asked only of the images where it can change the answer: the fooled, and those right clean.
        """
        answers = [
            self._answer(question, self._sampled(question, site, channels), site, channels)[0]
            for question in self._patches(site)
        ]
        rescued, broken = answers[: len(self._epsilons)], answers[len(self._epsilons) :]
        return Patched(
            rescued=self._stack([one.flipped for one in rescued], channels, np.bool_),
            rescued_margin=self._stack([one.margin for one in rescued], channels),
            rescued_heaviest=self._stack([one.heaviest for one in rescued], channels),
            broken=self._stack([one.flipped for one in broken], channels, np.bool_),
            broken_margin=self._stack([one.margin for one in broken], channels),
            broken_heaviest=self._stack([one.heaviest for one in broken], channels),
        )

    def first_order(
        self, site: Site, channels: Sequence[int], values: Sequence[float], names: Collection[str]
    ) -> dict[str, FirstOrder]:
        """What is predicted of these questions, by name; values as of `drop`."""
        questions = self._drops(values)
        if any(name in names for name in self._names[RESCUE]):
            questions += self._patches(site)
        found = {question.name: self._first_order(question, site, channels) for question in questions}
        anew = zip(self._names[ADAPTIVE], self._names[TRANSFER], strict=True)
        found |= {name: found[transfer] for name, transfer in anew}
        return {name: found[name] for name in names}

    def _drops(self, values: Sequence[float]) -> list[Asked]:
        everywhere = torch.ones_like(self.labels, dtype=torch.bool)
        return [
            Asked(name, turn, drop(values), everywhere)
            for turn, name in enumerate((CLEAN, *self._names[TRANSFER]))
        ]

    def _patches(self, site: Site) -> list[Asked]:
        """Rescue at each epsilon, then inject."""
        clean, *attacked = (walk.maps(site) for walk in self._walks)
        right, *adv_right = (before.right for before in self._before)
        return [
            *(
                Asked(name, turn, patch(clean), right & ~still)
                for turn, (name, still) in enumerate(zip(self._names[RESCUE], adv_right, strict=True), 1)
            ),
            *(
                Asked(name, 0, patch(maps), right)
                for name, maps in zip(self._names[INJECT], attacked, strict=True)
            ),
        ]

    def _dropped(
        self, question: Asked, predicted: FirstOrder | None, site: Site, channels: Sequence[int]
    ) -> tuple[Answer, Array]:
        """The answer, and how far it moves a logit, (n, channels); of a sample, infinite if the map moves."""
        if predicted is not None:
            answer, _ = self._answer(question, predicted, site, channels)
            return answer, np.where(predicted.sizes.T > 0, np.float32(np.inf), np.float32(0))
        kept = self._walks[question.turn].kept(site)  # first: pairs in which nothing moves need no more
        answer, logits = self._answer(question, None, site, channels)
        move = (torch.unflatten(logits, 0, (len(channels), -1)) - kept).abs().amax(-1)
        return answer, move.T.cpu().numpy()

    def _answer(
        self, question: Asked, predicted: FirstOrder | None, site: Site, channels: Sequence[int]
    ) -> tuple[Answer, torch.Tensor]:
        """One question, and the logits (pairs, classes) of the pairs that were asked."""
        walk, before = self._walks[question.turn], self._before[question.turn]
        asked, sample = question.asked.expand(len(channels), -1), None
        if self._sample is not None and predicted is not None:
            drawn = self._sample.draw(site.layer, channels, {question.name: predicted})
            sample = drawn[question.name]
            asked = torch.from_numpy(sample.drawn).to(asked.device)
        pairs = Pairs.where(channels, asked)
        logits = walk.logits(site, question.replace, pairs) if len(pairs) else before.logits[:0]
        # in bfloat16 a graph rounds to other predictions than the network, of which no neuron is the cause
        kept = Before(walk.kept(site), self.labels) if self._is_coarse else before
        return Answer.of_pairs(logits, before, kept, asked, sample), logits

    def _dropped_anew(
        self, site: Site, channels: Sequence[int], values: Sequence[float], transfer: Sequence[FirstOrder]
    ) -> tuple[list[Answer], Array]:
        """An answer for each epsilon, on images made anew; (n, channels) whether a pair has no gradient.

        transfer: what of a sample is predicted at each epsilon on the whole network's images.
        """
        asked = torch.ones(len(channels), len(self.labels), dtype=torch.bool, device=self.labels.device)
        samples: list[Weighted] = []
        if self._sample is not None:
            predicted = dict(zip(self._names[ADAPTIVE], transfer, strict=True))
            samples = list(self._sample.draw(site.layer, channels, predicted).values())
            asked = torch.from_numpy(samples[0].drawn).to(asked.device)
        pairs = Pairs.where(channels, asked)
        if not len(pairs):
            found = AttackedPairs.none(self._before[0].logits, len(self._epsilons))
        else:
            found = self._walks[0].attack(site, drop(values), pairs, self.labels, self._epsilons)
        kept, blind = self._kept_anew(site, channels)
        answers = [
            Answer.of_pairs(*of_epsilon, asked, samples[row] if samples else None)
            for row, of_epsilon in enumerate(
                zip(found.adversarial_logits, self._before[1:], kept, strict=True)
            )
        ]
        differs = np.zeros((len(self.labels), len(channels)), dtype=np.bool_)
        rows, columns = pairs.images.cpu().numpy(), asked.nonzero()[:, 0].cpu().numpy()
        differs[rows, columns] = (found.zero_gradient != blind[pairs.images]).cpu().numpy()
        before = self._blind[:, None].cpu().numpy()
        return answers, estimate(before, differs, samples[0] if samples else None)

    def _kept_anew(self, site: Site, channels: Sequence[int]) -> tuple[Sequence[Before], torch.Tensor]:
        """For each epsilon the same way's own attack on all images; (n,) whether it has no gradient."""
        if not self._is_coarse:
            return self._before[1:], self._blind
        if site not in self._anew:
            pairs = Pairs.where(channels[:1], torch.ones_like(self.labels, dtype=torch.bool).unsqueeze(0))
            self._anew[site] = self._walks[0].attack(site, keep, pairs, self.labels, self._epsilons)
        found = self._anew[site]
        return [Before(logits, self.labels) for logits in found.adversarial_logits], found.zero_gradient

    def _sampled(self, question: Asked, site: Site, channels: Sequence[int]) -> FirstOrder | None:
        """What a sample is drawn by; None where every pair is asked."""
        return None if self._sample is None else self._first_order(question, site, channels)

    def _first_order(self, question: Asked, site: Site, channels: Sequence[int]) -> FirstOrder:
        walk, before = self._walks[question.turn], self._before[question.turn]
        changes, sizes = walk.first_order(site, channels, question.replace, self.labels)
        return FirstOrder(
            margins=before.margins.double().cpu().numpy(),
            changes=changes.double().cpu().numpy(),
            sizes=sizes.double().cpu().numpy(),
            asked=question.asked.cpu().numpy(),
        )

    def _stack(
        self, by_epsilon: Sequence[Array], channels: Sequence[int], dtype: type[np.generic] = np.float32
    ) -> Array:
        """(epsilons, n, channels) of (n, channels) each."""
        empty = np.zeros((0, len(self.labels), len(channels)), dtype)
        return np.stack(by_epsilon) if by_epsilon else empty
