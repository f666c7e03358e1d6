"""The fast gradient sign method (Goodfellow, Shlens, Szegedy 2015)."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import torch

from fragile_neurons.classifier import Classifier, Network
from fragile_neurons.errors import InputError
from fragile_neurons.losses import Direction, cross_entropy_direction
from fragile_neurons.norms import perturb


def gradient_sign(
    classifier: Network,
    images: torch.Tensor,
    labels: torch.Tensor,
    loss: Direction = cross_entropy_direction,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The logits, and the sign of the gradient of the loss at the images; sign(0) = 0."""
    logits, gradient = loss_gradient(classifier, images, labels, loss)
    return logits, gradient.sign()


def loss_gradient(
    classifier: Network,
    images: torch.Tensor,
    labels: torch.Tensor,
    loss: Direction = cross_entropy_direction,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The logits, and the gradient of the loss at the images, each image's in a scale of its own."""
    with torch.enable_grad():
        leaves = images.detach().requires_grad_(True)
        logits = differentiable_logits(classifier, leaves)
        direction = loss(logits.detach(), labels)
        (gradient,) = torch.autograd.grad(logits, leaves, grad_outputs=direction)
    finite = torch.isfinite(gradient).flatten(1).all(dim=1)
    if not finite.all():
        raise InputError(
            "the gradient at the images is not finite",
            given=f"NaN or infinite for {int((~finite).sum())} of {len(images)} images of a batch",
            allowed="finite gradients: a NaN would make an image look unattackable",
            fix="look in the network for a square root, logarithm or division at 0",
        )
    return logits.detach(), gradient


def differentiable_logits(classifier: Network, leaves: torch.Tensor) -> torch.Tensor:
    """The logits, of which autograd knows the way back to the leaves; raises InputError if it does not."""
    logits = classifier(leaves)
    if not logits.requires_grad:
        raise InputError(
            "the network passes no gradient from its logits to its images",
            given=classifier.name,
            allowed="a network that autograd can differentiate",
            fix="remove torch.no_grad, detach and inference_mode from its forward",
        )
    return logits


def fgsm(
    classifier: Classifier,
    images: torch.Tensor,
    labels: torch.Tensor,
    epsilons: Sequence[Fraction],
    *,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """Adversarial images (epsilons, n, channels, height, width); one backward pass for the grid."""
    _, sign = gradient_sign(classifier, images, labels)
    return torch.stack([perturb(images, sign, epsilon) for epsilon in epsilons])
