"""What any replacement does to the margins, to first order: one pass back predicts every neuron."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fragile_neurons.classifier import Classifier
from fragile_neurons.interventions import Replacement, record_gradients
from fragile_neurons.losses import margin_direction
from fragile_neurons.neurons import Site


class MarginGradients:
    """The slopes of each image's margin, true logit minus best other, at the sites' maps."""

    def __init__(
        self, classifier: Classifier, sites: Sequence[Site], images: torch.Tensor, labels: torch.Tensor
    ) -> None:
        recorded = record_gradients(
            classifier, sites, images, lambda logits: -margin_direction(logits, labels)
        )
        self._recorded = dict(zip(sites, recorded, strict=True))

    def changes(self, site: Site, channels: Sequence[int], replace: Replacement) -> torch.Tensor:
        """(channels, n) the first-order change of the margin."""
        slopes = self._recorded[site][1][:, list(channels)].transpose(0, 1)
        return (slopes * self._moves(site, channels, replace)).sum(dim=2)

    def sizes(self, site: Site, channels: Sequence[int], replace: Replacement) -> torch.Tensor:
        """(channels, n) the norm of what is added to the map."""
        norms: torch.Tensor = torch.linalg.vector_norm(self._moves(site, channels, replace), dim=2)
        return norms

    def _moves(self, site: Site, channels: Sequence[int], replace: Replacement) -> torch.Tensor:
        """(channels, n, values) what is added to the maps."""
        maps = self._recorded[site][0][:, list(channels)].transpose(0, 1)
        images = torch.arange(maps.shape[1], device=maps.device).expand(maps.shape[:2])
        which = torch.tensor(channels, device=maps.device).unsqueeze(1).expand(maps.shape[:2])
        return replace(maps, which, images) - maps
