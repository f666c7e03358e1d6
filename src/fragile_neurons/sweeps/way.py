"""The one interface of all sweeps: a network with one channel replaced, by whichever way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Protocol

import torch

from fragile_neurons.interventions import Replacement
from fragile_neurons.neurons import Site
from fragile_neurons.sweeps.pairs import Pairs


@dataclass(frozen=True, eq=False)
class AttackedPairs:
    """FGSM on the network with the pair's channel replaced.

    zero_gradient: (pairs,) the attack has no direction. adversarial_logits: (epsilons, pairs, classes), on
    images made anew for each pair.
    """

    zero_gradient: torch.Tensor
    adversarial_logits: torch.Tensor

    @classmethod
    def none(cls, logits: torch.Tensor, epsilons: int) -> AttackedPairs:
        """No pairs; logits: any, for the number of classes."""
        nothing = logits[:0]
        return cls(nothing.any(dim=-1), nothing.expand(epsilons, 0, -1))

    @classmethod
    def join(cls, parts: Sequence[AttackedPairs]) -> AttackedPairs:
        """More pairs."""
        return cls(
            torch.cat([part.zero_gradient for part in parts]),
            torch.cat([part.adversarial_logits for part in parts], dim=1),
        )


class Walk(Protocol):
    """One batch on its way through the network: sites are asked for in order of execution."""

    def logits(self, site: Site, replace: Replacement, pairs: Pairs) -> torch.Tensor:
        """(pairs, classes): for each pair the image's logits with the channel replaced."""

    def kept(self, site: Site) -> torch.Tensor:
        """(images, classes) with nothing replaced at the site, rounded as `logits` are: what it does not
        change is equal.
        """

    def first_order(
        self, site: Site, channels: Sequence[int], replace: Replacement, labels: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(channels, images) both: to first order the change of the margin (true logit minus best other),
        by one pass back for all sites; and the norm of the change that this is predicted from, 0 where
        nothing moves.
        """

    def maps(self, site: Site) -> torch.Tensor:
        """(images, channels, *map): what the site puts out in the network as it is."""

    def attack(
        self,
        site: Site,
        replace: Replacement,
        pairs: Pairs,
        labels: torch.Tensor,
        epsilons: Sequence[Fraction],
    ) -> AttackedPairs:
        """FGSM for each pair; replace may not depend on the image."""


class Way(Protocol):
    """A way to sweep a network, in evaluation mode, over single channels."""

    def walk(self, images: torch.Tensor, sites: Sequence[Site]) -> Walk:
        """Begin on a batch; sites: those that will be asked for, in order of execution."""
