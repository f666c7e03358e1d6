"""What attacks climb and what analyses read: gradients at the logits, and margins."""

from __future__ import annotations

from collections.abc import Callable

import torch

Direction = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""From logits (n, classes) and labels (n,) to a loss's gradient at the logits, up to a factor per row."""


def cross_entropy_direction(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The gradient of the cross-entropy at the logits, (n, classes), each row times a power of two.

    In float64, the true class as minus the sum of the others: in float32 a margin above about 17
    rounds the whole row to zero and a confident image looks robust. The power of two brings the
    largest entry of a row to about 1 so that the way back to the pixels, in float32, does not
    underflow; it changes no sign.
    """
    gradient = torch.softmax(logits.double(), dim=1)
    true = labels.unsqueeze(1)
    gradient = gradient.scatter(1, true, 0.0)
    gradient = gradient.scatter(1, true, -gradient.sum(dim=1, keepdim=True))
    exponent = torch.frexp(gradient.abs().amax(dim=1, keepdim=True)).exponent
    return torch.ldexp(gradient, -exponent).to(logits.dtype)


def margin_direction(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The gradient of minus the margin at the logits: -1 at the true class, 1 at the best other one.

    Where only signs count, as in PGD, this is also the difference of logits ratio without its scale
    (Croce and Hein 2020), and serves two classes as well.
    """
    true = labels.unsqueeze(1)
    best = logits.scatter(1, true, -torch.inf).argmax(dim=1, keepdim=True)
    return torch.zeros_like(logits).scatter(1, best, 1.0).scatter(1, true, -1.0)


def margins(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """True logit minus the best other one: (..., n) for logits (..., n, classes) and labels (n,)."""
    true = labels.expand(logits.shape[:-1]).unsqueeze(-1)
    others = logits.scatter(-1, true, -torch.inf)
    return logits.gather(-1, true).squeeze(-1) - others.amax(dim=-1)
