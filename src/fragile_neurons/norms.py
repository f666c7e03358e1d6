"""The threat model: L-infinity perturbations of pixels in [0, 1], with exact budgets."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise
from numbers import Real

import torch

from fragile_neurons.errors import InputError

Epsilon = str | float | Fraction
"""A budget in pixel units of [0, 1]: "8/255", "0.1" or 0.1."""

Epsilons = Epsilon | Sequence[Epsilon]
"""A grid of budgets: several, one, or a text with commas."""

SMALLEST = 2.0**-24
LONG_EXPONENT = re.compile(r"[eE][+-]?\d{4}")


def parse_epsilon(value: Epsilon) -> Fraction:
    """The exact budget that a user wrote: "8/255", "0.1" or 0.1, in pixel units of [0, 1]."""
    try:
        if LONG_EXPONENT.search(str(value)):  # Fraction would write all its digits out
            raise ValueError
        epsilon = value if isinstance(value, Fraction) else Fraction(str(value).strip())
    except (ValueError, ZeroDivisionError):
        raise InputError(
            "epsilon is not a number",
            given=value if str(value).strip() else "an empty text",
            allowed='a number in [0, 1] such as "0.1" or "8/255"',
            fix="write epsilons separated by commas: 0.05,0.1,8/255",
        ) from None
    if not 0 <= epsilon <= 1:
        meant = f'; did you mean "{value}/255"?' if 1 < epsilon <= 255 else ""
        raise InputError(
            "epsilon lies outside the pixel range",
            given=value,
            allowed="a number in [0, 1]: pixels are in [0, 1], not 0 to 255",
            fix=f"give the budget in pixel units of [0, 1]{meant}",
        )
    return epsilon


def parse_epsilons(values: Epsilons) -> tuple[Fraction, ...]:
    """A grid of budgets, ascending, from one or several, or a text with commas.

    Raises InputError for what is no number in [0, 1], a budget given twice and one that no pixel can show.
    """
    if isinstance(values, str):
        values = values.split(",") if values.strip() else ()
    elif isinstance(values, float | Fraction | Real):
        values = (values,)
    epsilons = sorted(parse_epsilon(value) for value in values)
    for epsilon in epsilons:
        if 0 < epsilon < SMALLEST:
            raise InputError(
                "epsilon is too small for any pixel to show it",
                given=float(epsilon),
                allowed=f"0, or at least {SMALLEST:.1g}, the spacing of float32 numbers below 1",
                fix="give a larger budget",
            )
    for one, next_one in pairwise(epsilons):
        if one == next_one:
            raise InputError(
                "an epsilon is given twice",
                given=format_epsilon(one),
                allowed="each budget once (0.2 and 51/255 are the same budget)",
                fix="remove the duplicate",
            )
    return tuple(epsilons)


def format_epsilon(epsilon: Fraction) -> str:
    """The shortest exact text of a budget: a decimal if there is one, else n/255, else p/q."""
    decimal = repr(float(epsilon))
    if Fraction(decimal) == epsilon:
        return decimal.removesuffix(".0")
    if 255 % epsilon.denominator == 0:
        return f"{epsilon * 255}/255"
    return str(epsilon)


def perturb(images: torch.Tensor, direction: torch.Tensor, epsilon: Fraction) -> torch.Tensor:
    """clip(images + epsilon * direction, 0, 1); epsilon 0 gives the images back bit for bit."""
    return (images + float(epsilon) * direction).clamp(0.0, 1.0)


def project(candidates: torch.Tensor, images: torch.Tensor, epsilon: Fraction | torch.Tensor) -> torch.Tensor:
    """The nearest images within epsilon of `images` and within [0, 1]."""
    radius = float(epsilon) if isinstance(epsilon, Fraction) else epsilon
    return candidates.clamp(images - radius, images + radius).clamp(0.0, 1.0)
