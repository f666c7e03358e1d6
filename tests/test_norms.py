"""Budgets: exact fractions, in and out of text; perturbations bit for bit."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fragile_neurons import InputError
from fragile_neurons.norms import Epsilons, format_epsilon, parse_epsilon, parse_epsilons, perturb, project

FLOAT32_STEP = 2.0**-24  # half the gap between float32 numbers just below 1


@pytest.mark.parametrize(
    ("text", "numerator", "denominator"),
    [
        ("0", 0, 1),
        ("1", 1, 1),
        ("0.1", 1, 10),
        (" 8/255 ", 8, 255),
        ("1e-12", 1, 10**12),
        (0.1, 1, 10),
        (0, 0, 1),
        (Fraction(2, 7), 2, 7),
        (np.float32(0.25), 1, 4),
    ],
)
def test_a_budget_is_read_exactly(text: str | float | Fraction, numerator: int, denominator: int) -> None:
    epsilon = parse_epsilon(text)
    assert (epsilon.numerator, epsilon.denominator) == (numerator, denominator)


def test_eight_of_255_is_not_rounded_to_a_float() -> None:
    epsilon = parse_epsilon("8/255")
    assert epsilon * 255 == 8
    assert epsilon != Fraction(8 / 255)


@pytest.mark.parametrize(
    ("value", "problem", "given_as", "hint"),
    [
        ("-0.1", "outside the pixel range", "-0.1", "a number in [0, 1]"),
        (8, "outside the pixel range", "8", 'did you mean "8/255"?'),
        ("255", "outside the pixel range", "255", 'did you mean "255/255"?'),
        ("1.0000001", "outside the pixel range", "1.0000001", "a number in [0, 1]"),
        (float("nan"), "not a number", "nan", '"8/255"'),
        ("inf", "not a number", "inf", '"8/255"'),
        ("0.1.2", "not a number", "0.1.2", '"8/255"'),
        ("1/0", "not a number", "1/0", '"8/255"'),
        ("1e9999999999", "not a number", "1e9999999999", '"8/255"'),
        ("8/255/2", "not a number", "8/255/2", '"8/255"'),
        ("", "not a number", "an empty text", '"8/255"'),
    ],
)
def test_an_impossible_budget_is_refused_with_the_value_and_a_hint(
    value: str | float, problem: str, given_as: str, hint: str
) -> None:
    with pytest.raises(InputError) as error:
        parse_epsilon(value)
    lines = str(error.value).splitlines()
    assert problem in lines[0]
    assert lines[1].split("given:")[1].strip() == given_as
    assert hint in str(error.value)


def test_only_a_value_that_may_be_in_255ths_gets_that_hint() -> None:
    with pytest.raises(InputError) as error:
        parse_epsilon(256)
    assert "did you mean" not in str(error.value)


def test_a_grid_is_sorted() -> None:
    assert parse_epsilons(["0.2", 0, "8/255"]) == (Fraction(0), Fraction(8, 255), Fraction(1, 5))


@pytest.mark.parametrize("given", ["0.1", 0.1, Fraction(1, 10), np.float64(0.1), ["0.1"], (0.1,)])
def test_a_grid_may_be_one_budget(given: Epsilons) -> None:
    assert parse_epsilons(given) == (Fraction(1, 10),)


def test_a_text_with_commas_is_a_grid() -> None:
    assert parse_epsilons("0.2, 8/255") == (Fraction(8, 255), Fraction(1, 5))
    with pytest.raises(InputError, match="an empty text"):
        parse_epsilons("0.2,,0.3")


def test_an_empty_grid_is_a_clean_run() -> None:
    assert parse_epsilons([]) == ()


@pytest.mark.parametrize("values", [("0.2", "51/255"), ("0", "0.0"), (0.1, "0.1", "1/10")])
def test_the_same_budget_in_two_writings_is_refused(values: tuple[str | float, ...]) -> None:
    with pytest.raises(InputError, match="given twice"):
        parse_epsilons(values)


@pytest.mark.parametrize(
    ("text", "shortest"),
    [
        ("0", "0"),
        ("1", "1"),
        ("0.10", "0.1"),
        ("51/255", "0.2"),
        ("8/255", "8/255"),
        ("2/3", "170/255"),
        ("1/7", "1/7"),
        ("1e-12", "1e-12"),
    ],
)
def test_a_budget_is_written_as_people_write_it(text: str, shortest: str) -> None:
    assert format_epsilon(parse_epsilon(text)) == shortest


@given(st.fractions(min_value=0, max_value=1, max_denominator=10**9))
def test_writing_and_reading_a_budget_loses_nothing(epsilon: Fraction) -> None:
    assert parse_epsilon(format_epsilon(epsilon)) == epsilon


@given(st.floats(min_value=0, max_value=1))
def test_a_float_budget_survives_its_own_text(value: float) -> None:
    assert float(parse_epsilon(format_epsilon(parse_epsilon(value)))) == value


def _images_and_direction() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(3, 2, 5, 5, generator=generator)
    images[0, 0, 0, :2] = torch.tensor([0.0, 1.0])
    direction = torch.randint(-1, 2, images.shape, generator=generator).float()
    return images, direction


def test_epsilon_zero_gives_the_images_back_bit_for_bit() -> None:
    images, direction = _images_and_direction()
    assert perturb(images, direction, Fraction(0)).numpy().tobytes() == images.numpy().tobytes()


@pytest.mark.parametrize("epsilon", [Fraction(1, 10), Fraction(8, 255), Fraction(1)])
def test_a_perturbation_is_the_clipped_sum_of_exact_arithmetic(epsilon: Fraction) -> None:
    images, direction = _images_and_direction()
    moved = perturb(images, direction, epsilon)
    for value, sign, result in zip(*(t.flatten().tolist() for t in (images, direction, moved)), strict=True):
        exact = min(max(Fraction(value) + epsilon * int(sign), Fraction(0)), Fraction(1))
        assert abs(result - exact) <= 3 * FLOAT32_STEP


def test_a_perturbation_leaves_its_arguments_alone() -> None:
    images, direction = _images_and_direction()
    before = images.clone(), direction.clone()
    perturb(images, direction, Fraction(1, 10))
    project(images + 1, images, Fraction(1, 10))
    assert torch.equal(images, before[0])
    assert torch.equal(direction, before[1])


def test_projection_is_the_nearest_point_of_ball_and_box() -> None:
    images = torch.tensor([0.05, 0.5, 0.5, 0.5, 0.95])
    candidates = torch.tensor([-0.7, 0.9, 0.1, 0.55, 3.0])
    projected = project(candidates, images, Fraction(1, 10))
    torch.testing.assert_close(projected, torch.tensor([0.0, 0.6, 0.4, 0.55, 1.0]))


def test_projection_keeps_what_is_inside_and_repeats_itself() -> None:
    images, direction = _images_and_direction()
    inside = perturb(images, direction, Fraction(1, 20))
    assert torch.equal(project(inside, images, Fraction(1, 10)), inside)
    outside = project(images + 3 * direction, images, Fraction(1, 10))
    assert torch.equal(project(outside, images, Fraction(1, 10)), outside)
    assert outside.min() >= 0
    assert outside.max() <= 1


def test_projection_to_epsilon_zero_is_the_image() -> None:
    images, direction = _images_and_direction()
    assert torch.equal(project(images + direction, images, Fraction(0)), images)


@pytest.mark.parametrize("value", ["1e-9", "1/100000000", 2.0**-25])
def test_a_budget_that_no_pixel_can_show_is_refused(value: str | float) -> None:
    with pytest.raises(InputError, match=r"too small for any pixel to show it(.|\n)*at least 6e-08"):
        parse_epsilons(["0.1", value])


def test_the_smallest_budget_moves_a_pixel_and_0_is_one_too() -> None:
    none, smallest = parse_epsilons([2.0**-24, 0])
    below_one = torch.tensor([0.75])
    assert torch.equal(perturb(below_one, torch.ones(1), none), below_one)
    assert not torch.equal(perturb(below_one, torch.ones(1), smallest), below_one)


def test_a_projection_has_a_radius_for_each_image() -> None:
    images, far = torch.full((2, 1, 1, 2), 0.5), torch.full((2, 1, 1, 2), 3.0)
    radii = torch.tensor([0.1, 0.75]).view(2, 1, 1, 1)
    found = project(far, images, radii)
    torch.testing.assert_close(found.flatten(1), torch.tensor([[0.6, 0.6], [1.0, 1.0]]))
