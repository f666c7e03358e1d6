"""What attacks climb and what analyses read: gradients at the logits, and margins."""

from __future__ import annotations

import torch


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


def margins(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """True logit minus the best other one: (..., n) for logits (..., n, classes) and labels (n,)."""
    true = labels.expand(logits.shape[:-1]).unsqueeze(-1)
    others = logits.scatter(-1, true, -torch.inf)
    return logits.gather(-1, true).squeeze(-1) - others.amax(dim=-1)
