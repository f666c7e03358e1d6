"""Correlation of fragility with targeting: the same numbers as the analyses, and a planted relation."""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

import fragile_neurons as fn
from fragile_neurons.analysis import correlation
from fragile_neurons.analysis.correlation import HEADLINES, Relation, correlate, summarise_relation
from fragile_neurons.analysis.disturbance import Disturbances, observe_disturbances
from fragile_neurons.analysis.dropout import Dropout, observe_drops, summarise_dropout
from fragile_neurons.analysis.predictions import Predictions
from fragile_neurons.analysis.selection import Selection, select
from fragile_neurons.analysis.targeting import Targeting, summarise_targeting
from fragile_neurons.analysis.verdicts import Rule
from fragile_neurons.stats import holm
from fragile_neurons.sweeps.observed import Dropped

GRID = (Fraction(1, 50), Fraction(1, 20))


@pytest.fixture
def relation(small_classifier: fn.Classifier, small_data: fn.ImageData) -> Relation:
    return correlate(small_classifier, small_data, layer="conv2", epsilons=GRID)


def test_measures_with_equal_weights_are_the_analyses_own_numbers(
    small_classifier: fn.Classifier, small_data: fn.ImageData
) -> None:
    options: dict[str, Any] = {"layer": "conv2", "neurons": "conv2:0,conv2:2,conv2:5"}
    drop = fn.dropout(small_classifier, small_data, epsilons=GRID, **options)
    aim = fn.targeting(small_classifier, small_data, epsilons=GRID, **options)
    selection = select(small_classifier, small_data, **options)
    observed = observe_disturbances(
        small_classifier, small_data, selection.layers, "conv", GRID, batch_size=256, seed=0
    )["conv2"]
    predictions, dropped = observe_drops(
        small_classifier,
        small_data,
        selection,
        sweep="auto",
        replace="zero",
        epsilons=GRID,
        mode="adaptive",
        batch_size=256,
    )
    equal = np.ones((1, len(small_data)))
    for row in range(len(GRID)):
        columns = np.array([True] * 3)
        fragility = correlation._fragility_measures(predictions, dropped, columns, row, "adaptive")
        aims = correlation._aim_measures(predictions.right, observed, [0, 2, 5], row)
        expected = {
            "clean_drop": drop.clean.drop,
            "margin_drop": drop.margin_drop,
            "adv_drop": drop.adv[row].drop,
            "adv_margin_drop": drop.adv_margin_drop[row],
            "share": aim.share[row],
            "excess": aim.excess[row],
            "noise_excess": aim.noise_excess[row],
            "disturbance": aim.disturbance[row],
        }
        assert {*fragility, *aims} == {*expected}
        for name, measure in (fragility | aims).items():
            np.testing.assert_allclose(measure(equal)[0], expected[name], rtol=1e-6, atol=1e-9, err_msg=name)


def test_two_headlines_at_each_epsilon_holm_adjusted_together(relation: Relation) -> None:
    headlines = relation.headlines
    assert [(pair.correlation.x, pair.correlation.y) for pair in headlines] == [*HEADLINES, *HEADLINES]
    assert [pair.epsilon for pair in headlines] == [GRID[0], GRID[0], GRID[1], GRID[1]]
    p = np.array([pair.correlation.p for pair in headlines])
    defined = np.isfinite(p)
    asked = holm(np.where(defined, p, 1.0))  # an undefined headline was asked all the same
    np.testing.assert_allclose([pair.adjusted_p for pair in headlines], np.where(defined, asked, np.nan))


def test_every_other_pair_is_exploratory(relation: Relation) -> None:
    others = [pair for pair in relation.pairs if not pair.headline]
    assert len(others) == 2 * (4 * 4 - 2)
    assert all(pair.correlation.n == 6 for pair in relation.pairs)


def test_transfer_mode_correlates_clean_fragility_only(
    small_classifier: fn.Classifier, small_data: fn.ImageData
) -> None:
    relation = correlate(small_classifier, small_data, epsilons=GRID[1:], mode="transfer")
    assert {pair.correlation.x for pair in relation.pairs} == {"clean_drop", "margin_drop"}


@dataclass(frozen=True)
class Observed:
    """Everything that was measured on the second layer, and what makes summaries of it."""

    classifier: fn.Classifier
    data: fn.ImageData
    selection: Selection
    predictions: Predictions
    disturbances: dict[str, Disturbances]
    dropped: Dropped
    fragility: Dropout

    def aim(self, disturbances: dict[str, Disturbances]) -> Targeting:
        return summarise_targeting(
            self.classifier, self.selection, self.data.classes, self.predictions, disturbances, GRID[1:]
        )

    def relation(self, disturbances: dict[str, Disturbances], fragility: Dropout) -> Relation:
        aim = self.aim(disturbances)
        return summarise_relation(
            self.selection, self.predictions, self.dropped, disturbances, fragility, aim, seed=0
        )


@pytest.fixture
def observed(small_classifier: fn.Classifier, small_data: fn.ImageData) -> Observed:
    grid, selection = GRID[1:], select(small_classifier, small_data, layer="conv2")
    disturbances = observe_disturbances(
        small_classifier, small_data, selection.layers, "conv", grid, batch_size=256, seed=0
    )
    options: dict[str, Any] = {"sweep": "auto", "replace": "zero", "epsilons": grid}
    options |= {"mode": "adaptive", "batch_size": 256}
    predictions, dropped = observe_drops(small_classifier, small_data, selection, **options)
    fragility = summarise_dropout(selection, predictions, dropped, grid, mode="adaptive", rule=Rule())
    return Observed(small_classifier, small_data, selection, predictions, disturbances, dropped, fragility)


def test_a_planted_relation_is_found_and_its_reverse_too(observed: Observed) -> None:
    """Disturbances are overwritten so that the share grows, or falls, with the margin drop."""
    measured = observed.disturbances["conv2"]
    rank = np.argsort(np.argsort(observed.fragility.margin_drop))
    for direction in (1, -1):
        weight = np.exp(0.3 * direction * rank).astype(np.float32)
        planted = replace(
            measured,
            disturbance=np.broadcast_to(weight, measured.disturbance.shape).copy(),
            swap_share=np.full_like(measured.swap_share, 1 / 6),
        )
        controlled = observed.relation({"conv2": planted}, observed.fragility).headlines[1].correlation
        assert (controlled.x, controlled.y) == ("margin_drop", "excess")
        assert direction * controlled.spearman > 0.9
        assert controlled.p < 0.05
        assert controlled.low <= controlled.spearman <= controlled.high


def test_the_table_has_a_row_per_pair_and_no_nan(relation: Relation) -> None:
    table = relation.to_table()
    assert table.num_rows == len(relation.pairs)
    for column in table.columns:
        assert not any(isinstance(value, float) and np.isnan(value) for value in column.to_pylist())


@pytest.mark.parametrize(
    ("chosen", "precision", "p"), [([0, 5], 0.5, 9 / 15), ([0, 1], 1.0, 1 / 15), ([4, 5], 0.0, 1.0)]
)
def test_precision_counts_the_fragile_among_the_most_targeted(
    observed: Observed, chosen: list[int], precision: float, p: float
) -> None:
    """Two of six neurons are declared fragile, by their rank among the targeted."""
    order = np.argsort(-observed.aim(observed.disturbances).share[0])
    verdict = np.full(6, "robust", dtype="U11")
    verdict[order[chosen]] = "fragile"
    declared = replace(observed.fragility, clean=replace(observed.fragility.clean, verdict=verdict))
    found = observed.relation(observed.disturbances, declared).precisions[0]
    assert (found.fragile, found.precision) == (2, precision)
    np.testing.assert_allclose(found.p, p)


def test_correlate_refuses_the_options_that_dropout_refuses(
    small_classifier: fn.Classifier, small_data: fn.ImageData
) -> None:
    wrongs: list[dict[str, Any]] = [{"mode": "adaptve"}, {"replace": "noise"}]
    for wrong in wrongs:
        for function in (fn.dropout, fn.correlate, fn.cumulative):
            with pytest.raises(fn.InputError, match=f"there is no such {next(iter(wrong))}"):
                function(small_classifier, small_data, epsilons=["0.1"], **wrong)


def test_of_a_handful_of_images_nothing_is_correlated(
    small_classifier: fn.Classifier, small_data: fn.ImageData
) -> None:
    few = small_data.take(np.arange(3))
    relation = fn.correlate(small_classifier, few, epsilons=["0.05"])
    assert all(np.isnan(pair.correlation.spearman) for pair in relation.pairs)
