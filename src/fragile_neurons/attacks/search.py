"""The worst image met so far, for each image: what restarts, steps and draws have in common."""

from __future__ import annotations

import torch

from fragile_neurons.classifier import Classifier
from fragile_neurons.losses import margins


class Search:
    """Keeps, within one call of an attack, the image of lowest margin; one that fools ends the search for it.

    The images themselves are met first: a network that is wrong on one needs no attack there.
    """

    def __init__(self, classifier: Classifier, images: torch.Tensor, labels: torch.Tensor) -> None:
        self.worst = images.clone()
        with torch.no_grad():
            logits = classifier(images)
        self._lowest = margins(logits, labels)
        self._right = logits.argmax(dim=1) == labels

    @property
    def rows(self) -> torch.Tensor:
        """(k,) positions of the images that nothing has fooled yet."""
        rows: torch.Tensor = self._right.nonzero().squeeze(1)
        return rows

    def meet(
        self, rows: torch.Tensor, candidates: torch.Tensor, logits: torch.Tensor, labels: torch.Tensor
    ) -> torch.Tensor:
        """Keep what is worse of candidates for these rows; (k,) bool, which of them are not fooled."""
        right, margin = logits.argmax(dim=1) == labels, margins(logits, labels)
        worse = (margin < self._lowest[rows]) | ~right
        self.worst[rows[worse]] = candidates[worse]
        self._lowest[rows[worse]] = margin[worse]
        self._right[rows] = right
        return right
