"""The gradient at the logits against 60-digit arithmetic, margins by hand."""

from __future__ import annotations

from decimal import Decimal, getcontext

import pytest
import torch

from fragile_neurons.losses import cross_entropy_direction, margin_direction, margins


@pytest.mark.parametrize("margin", [0.0, 1.0, 17.0, 30.0, 200.0, 700.0])
def test_direction_is_the_exact_gradient_times_a_power_of_two(margin: float) -> None:
    getcontext().prec = 400
    logits, label = [margin, 0.0, -2.5], 0
    exponentials = [Decimal(logit).exp() for logit in logits]
    exact = [one / sum(exponentials) - (position == label) for position, one in enumerate(exponentials)]
    found = cross_entropy_direction(torch.tensor([logits]), torch.tensor([label]))[0].tolist()
    factor = Decimal(found[0]) / exact[0]
    assert all(
        abs(Decimal(f) / (e * factor) - 1) < Decimal("1e-6") for f, e in zip(found, exact, strict=True)
    )
    # a power of two moves no bit of the mantissa: the factor's binary logarithm is a whole number
    exponent = factor.ln() / Decimal(2).ln()
    assert abs(exponent - round(exponent)) < Decimal("1e-6")
    assert 0.25 <= max(abs(f) for f in found) <= 1


def test_direction_of_a_confident_image_is_not_zero_where_float32_gives_zero() -> None:
    logits, labels = torch.tensor([[30.0, 0.0]]), torch.tensor([0])
    plain = torch.softmax(logits, 1) - torch.eye(2)[:1]
    assert (plain[0, 0] == 0).item()
    assert cross_entropy_direction(logits, labels)[0, 0] < 0


def test_direction_of_a_saturated_image_is_zero() -> None:
    assert cross_entropy_direction(torch.tensor([[5000.0, 0.0]]), torch.tensor([0])).eq(0).all()


def test_margins_by_hand() -> None:
    logits = torch.tensor([[3.0, 1.0, 2.0], [0.0, 5.0, 4.5]])
    assert margins(logits, torch.tensor([0, 2])).tolist() == [1.0, -0.5]
    assert margins(torch.stack([logits, logits + 7]), torch.tensor([1, 1])).tolist() == [[-2.0, 0.5]] * 2


def test_the_margin_direction_is_the_gradient_of_minus_the_margin() -> None:
    torch.manual_seed(0)
    for classes in (2, 5):
        logits = torch.randn(20, classes, requires_grad=True)
        labels = torch.arange(20) % classes
        (gradient,) = torch.autograd.grad(-margins(logits, labels).sum(), logits)
        assert torch.equal(margin_direction(logits.detach(), labels), gradient)
