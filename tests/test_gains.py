"""The proportional rule against numbers worked out by hand; powers, shuffles and means of gains."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import fragile_neurons as fn
from fragile_neurons.hardening.gains import Gains, Strength, keep_energy, proportional
from fragile_neurons.neurons import Site, executed_layers

HALF = Strength(0.5, 0.5)


def sites(*names: str) -> tuple[Site, ...]:
    return tuple(Site(name, "conv", name, None, 1) for name in names)


def test_the_fragile_are_amplified_and_the_robust_compressed_in_proportion() -> None:
    drops = np.array([0.04, 0.02, 0.004, 0.0, -0.003, -0.02])
    # tolerance 1 pp: f = 1, .5, .1, 0, 0, 0; r = 0, 0, .6, 1, .7, 0; at f = r = 0 nothing is compressed
    expected = [1.5, 1.25, 1 - 0.5 * 0.6, 0.5, 1 - 0.5 * 0.7, 1.0]
    np.testing.assert_allclose(proportional(drops, HALF, tolerance=0.01), expected)


def test_other_scores_are_measured_by_their_largest_and_an_empty_one_stays() -> None:
    scores = np.array([2.0, 1.0, np.nan, -0.5])
    # f = 1, .5, -, 0; r = 0, .5, -, .75; f > r does not hold at one half each
    np.testing.assert_allclose(proportional(scores, Strength(0.4, 0.2)), [1.4, 0.9, 1.0, 0.85])
    np.testing.assert_allclose(proportional(scores, Strength(0.4, 0.2, -1)), [0.6, 1.1, 1.0, 1.15])


def test_without_a_positive_drop_nobody_is_amplified() -> None:
    assert (proportional(np.array([-0.1, 0.0, -0.001]), HALF, tolerance=0.01) <= 1).all()
    np.testing.assert_array_equal(proportional(np.full(3, np.nan), HALF), np.ones(3))
    np.testing.assert_allclose(proportional(np.zeros(3), HALF), np.full(3, 0.5))


def test_energy_is_kept() -> None:
    factors, energy = np.array([1.5, 0.5, 1.0]), np.array([4.0, 1.0, 0.0])
    kept = keep_energy(factors, energy)
    assert (kept**2 * energy).sum() == pytest.approx(5.0)
    np.testing.assert_allclose(kept / kept[0], factors / factors[0])


def test_powers_shuffles_and_means() -> None:
    factors, shifts = (
        (np.array([4.0, 1.0, 0.25]), np.array([2.0, 8.0])),
        (np.array([1.0, 2.0, 3.0]), np.zeros(2)),
    )
    gains = Gains(sites("a", "b"), factors, shifts)
    assert gains.numbers == 3 + 3 + 2
    np.testing.assert_allclose(gains.power(0.5).factors[0], [2, 1, 0.5])
    np.testing.assert_allclose(gains.power(0.5).shifts[0], [0.5, 1, 1.5])
    np.testing.assert_allclose(gains.power(-1.0).factors[1], [0.5, 0.125])
    assert gains.power(0.0).is_identity
    assert not gains.is_identity
    np.testing.assert_allclose(gains.uniform().factors[1], [4, 4])
    np.testing.assert_allclose(gains.uniform().shifts[0], [2, 2, 2])
    draws = [gains.shuffled(0, draw) for draw in range(20)]
    for one in draws:
        pairs = set(zip(one.factors[0].tolist(), one.shifts[0].tolist(), strict=True))
        assert pairs == {
            (4.0, 1.0),
            (1.0, 2.0),
            (0.25, 3.0),
        }  # factor and shift stay together, in their layer
    assert len({tuple(one.factors[0]) for one in draws}) > 1
    np.testing.assert_array_equal(gains.shuffled(0, 3).factors[0], draws[3].factors[0])


def test_gains_survive_as_arrays() -> None:
    gains = Gains(sites("a"), (np.array([2.0, 0.5]),), (np.array([0.0, 0.1]),))
    again = Gains.from_arrays(gains.sites, gains.to_arrays())
    np.testing.assert_array_equal(again.factors[0], gains.factors[0])
    np.testing.assert_array_equal(again.shifts[0], gains.shifts[0])
    (change,) = gains.changes.values()
    torch.testing.assert_close(change[0], torch.tensor([2.0, 0.5], dtype=torch.float64))


def test_gains_survive_as_a_table_in_any_order(small_classifier: fn.Classifier) -> None:
    layers = executed_layers(small_classifier, torch.rand(4, 1, 8, 8))
    first, second = layers[0], layers[1]
    draw = np.random.default_rng(0)
    factors = (draw.uniform(0.5, 2, first.channels), draw.uniform(0.5, 2, second.channels))
    shifts = (np.zeros(first.channels), draw.normal(size=second.channels))
    gains = Gains((first.site("conv"), second.site("conv")), factors, shifts)
    table = gains.to_table()
    found = Gains.from_table(layers, table.take(draw.permutation(len(table))))
    assert found.sites == gains.sites
    for side in ("factors", "shifts"):
        for one, other in zip(getattr(found, side), getattr(gains, side), strict=True):
            np.testing.assert_array_equal(one, other)
    for wrong, given in (
        (table.slice(1), f"no ('{first.name}', 0)"),
        (table.drop_columns("shift"), "no shift"),
        (table.set_column(0, "layer", [["elsewhere"] * len(table)]), "rows of elsewhere:0"),
    ):
        with pytest.raises(fn.InputError, match="not the gains of this network") as refusal:
            Gains.from_table(layers, wrong)
        assert f"given:   {given}" in str(refusal.value)


def test_a_shift_that_is_not_finite_is_refused() -> None:
    with pytest.raises(fn.InputError, match="gain of a:1"):
        Gains(sites("a"), (np.ones(2),), (np.array([0.0, np.nan]),))
