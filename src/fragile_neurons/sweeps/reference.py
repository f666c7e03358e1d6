"""The slow and plain way: one neuron after another, a hook, the whole network. The oracle."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import torch

from fragile_neurons.classifier import Classifier
from fragile_neurons.interventions import Replacement, intervening, keep, record_maps
from fragile_neurons.neurons import Site
from fragile_neurons.sweeps.baseline import measure_baseline
from fragile_neurons.sweeps.margin_gradients import MarginGradients
from fragile_neurons.sweeps.pairs import Pairs
from fragile_neurons.sweeps.way import AttackedPairs


class Reference:
    """Sweeps of one network by hooks."""

    def __init__(self, classifier: Classifier) -> None:
        self.classifier = classifier

    def walk(self, images: torch.Tensor, sites: Sequence[Site]) -> ReferenceWalk:
        return ReferenceWalk(self.classifier, images, sites)


class ReferenceWalk:
    """One batch; nothing is shared between neurons."""

    def __init__(self, classifier: Classifier, images: torch.Tensor, sites: Sequence[Site]) -> None:
        self.classifier, self.images, self._sites = classifier, images, sites
        self._gradients: MarginGradients | None = None
        self._kept: tuple[Site, torch.Tensor] | None = None

    def logits(self, site: Site, replace: Replacement, pairs: Pairs) -> torch.Tensor:
        found = []
        with torch.no_grad():
            for channel, run in pairs.runs():
                images = pairs.images[run]
                # the whole batch, whatever is wanted of it: other sizes take other kernels
                with intervening(self.classifier, site, [channel], replace):
                    found.append(self.classifier(self.images)[images])
        return torch.cat(found)

    def kept(self, site: Site) -> torch.Tensor:
        if self._kept is None or self._kept[0] != site:
            everyone = torch.arange(len(self.images), device=self.images.device)
            self._kept = site, self.logits(site, keep, Pairs.of([0], everyone))
        return self._kept[1]

    def first_order(
        self, site: Site, channels: Sequence[int], replace: Replacement, labels: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if self._gradients is None:
            self._gradients = MarginGradients(self.classifier, self._sites, self.images, labels)
        found = self._gradients
        return found.changes(site, channels, replace), found.sizes(site, channels, replace)

    def maps(self, site: Site) -> torch.Tensor:
        (maps,) = record_maps(self.classifier, [site], self.images)
        return maps

    def attack(
        self,
        site: Site,
        replace: Replacement,
        pairs: Pairs,
        labels: torch.Tensor,
        epsilons: Sequence[Fraction],
    ) -> AttackedPairs:
        found = []
        for channel, run in pairs.runs():
            rows = pairs.images[run]
            with intervening(self.classifier, site, [channel], replace):
                anew = measure_baseline(self.classifier, self.images[rows], labels[rows], epsilons)
            found.append(AttackedPairs(anew.zero_gradient, anew.adversarial_logits))
        return AttackedPairs.join(found)
