"""From the stored arrays of `analyze` to what it has to say."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fragile_neurons.analysis.correlation import Relation, summarise_relation
from fragile_neurons.analysis.cumulative import (
    Cumulative,
    Curve,
    chains_from_arrays,
    halves,
    summarise_chains,
)
from fragile_neurons.analysis.dropout import Dropout, summarise_dropout
from fragile_neurons.analysis.patching import Patching, summarise_patching
from fragile_neurons.analysis.predictions import Predictions
from fragile_neurons.analysis.robustness import RobustAccuracy
from fragile_neurons.analysis.targeting import Targeting, summarise_targeting
from fragile_neurons.analysis.verdicts import Rule
from fragile_neurons.evidence import Arrays
from fragile_neurons.honesty import check_inputs
from fragile_neurons.norms import parse_epsilons
from fragile_neurons.probe import Check
from fragile_neurons.runs.joining import join_disturbances, join_drops, join_patches, join_predictions
from fragile_neurons.runs.ledger import Ledger
from fragile_neurons.runs.plan import Unit
from fragile_neurons.runs.spec import AnalyzeSpec
from fragile_neurons.runs.subject import Subject
from fragile_neurons.sweeps.observed import Dropped


@dataclass(frozen=True)
class Analysis:
    """Everything `analyze` has to say."""

    predictions: Predictions
    robust: RobustAccuracy
    dropout: Dropout
    targeting: Targeting
    patching: Patching
    relation: Relation
    cumulative: Cumulative
    checks: tuple[Check, ...]


def collect_analysis(subject: Subject, ledger: Ledger) -> Analysis:
    """Join the units' arrays and summarise them."""
    spec, selection, epsilons = subject.spec, subject.selection, parse_epsilons(subject.spec.epsilons)
    assert isinstance(spec, AnalyzeSpec)
    results = [(unit, ledger.result(unit)) for unit in ledger.units()]
    stored: dict[str, list[Arrays]] = defaultdict(list)
    for unit, arrays in results:
        stored[unit.kind].append(arrays)
    predictions = join_predictions(results)
    observed = {layer.name: join_disturbances(results, layer.name) for layer in selection.layers}
    dropped = _dropped(results)
    rule = Rule(spec.verdict_rule, spec.tolerance)
    dropout = summarise_dropout(selection, predictions, dropped, epsilons, mode=spec.mode, rule=rule)
    targeting = summarise_targeting(
        subject.classifier, selection, subject.data.classes, predictions, observed, epsilons
    )
    return Analysis(
        predictions=predictions,
        robust=RobustAccuracy(
            "fgsm",
            epsilons,
            predictions.adv_right & predictions.right,
            predictions.label,
            subject.data.classes,
        ),
        dropout=dropout,
        targeting=targeting,
        patching=summarise_patching(selection, predictions, join_patches(results), epsilons),
        relation=summarise_relation(
            selection, predictions, dropped, observed, dropout, targeting, seed=spec.seed
        ),
        cumulative=_curves(subject, results),
        checks=selection.checks
        + check_inputs(stored["inputs"][0], stored["gradients"][0], subject.data.classes),
    )


def _dropped(results: Sequence[tuple[Unit, Arrays]]) -> Dropped:
    """What became of every pair, by the exact clean answers where a sampled sweep asked for them again."""
    found = join_drops(results)
    for _, top in (result for result in results if result[0].kind == "top"):
        if len(top["places"]):
            refined = [Dropped(**arrays) for unit, arrays in results if unit.kind == "refined"]
            found = found.refined(top["places"], Dropped.join_images(refined))
    return found


def _curves(subject: Subject, results: Sequence[tuple[Unit, Arrays]]) -> Cumulative:
    """The cumulative curves of every layer."""
    spec = subject.spec
    assert isinstance(spec, AnalyzeSpec)
    half = halves(len(subject.data), spec.seed)
    curves: list[Curve] = []
    for layer in subject.selection.layers:
        here = [(unit, arrays) for unit, arrays in results if unit.layer == layer.name]
        (orders,) = (arrays for unit, arrays in here if unit.kind == "orders")
        right = np.concatenate([arrays["right"] for unit, arrays in here if unit.kind == "curves"], axis=-1)
        curves += summarise_chains(layer, chains_from_arrays(orders), right, half[: right.shape[-1]])
    return Cumulative(parse_epsilons(spec.epsilons), spec.mode, tuple(curves))
