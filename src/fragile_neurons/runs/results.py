"""From the stored arrays of all units to the results of the analyses."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from fragile_neurons.analysis.correlation import Relation, summarise_relation
from fragile_neurons.analysis.disturbance import Disturbances
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
from fragile_neurons.runs.execute import Subject
from fragile_neurons.runs.ledger import Ledger
from fragile_neurons.runs.spec import AnalyzeSpec
from fragile_neurons.sweeps.observed import Dropped, Patched


@dataclass(frozen=True)
class Results:
    """Everything `analyze` has to say."""

    predictions: Predictions
    robust: RobustAccuracy
    dropout: Dropout
    targeting: Targeting
    patching: Patching
    relation: Relation
    checks: tuple[Check, ...]


def collect_results(subject: Subject, ledger: Ledger) -> Results:
    """Join the units' arrays and summarise them."""
    spec, selection, epsilons = subject.spec, subject.selection, parse_epsilons(subject.spec.epsilons)
    assert isinstance(spec, AnalyzeSpec)
    stored: dict[str, list[Arrays]] = defaultdict(list)
    drops: dict[tuple[str, tuple[int, ...]], list[Dropped]] = defaultdict(list)
    patches: dict[tuple[str, tuple[int, ...]], list[Patched]] = defaultdict(list)
    for unit in ledger.units():
        arrays = ledger.result(unit)
        if unit.kind == "drops":
            drops[unit.layer, unit.channels].append(Dropped(**arrays))
        elif unit.kind == "patches":
            patches[unit.layer, unit.channels].append(Patched(**arrays))
        else:
            stored[unit.kind].append(arrays)
    predictions = Predictions.join([Predictions(**arrays) for arrays in stored["predictions"]])
    observed = {
        layer.name: Disturbances.join([_of_layer(arrays, layer.name) for arrays in stored["disturbances"]])
        for layer in selection.layers
    }
    dropped = Dropped.join_neurons([Dropped.join_images(parts) for parts in drops.values()])
    rule = Rule(spec.verdict_rule, spec.tolerance)
    dropout = summarise_dropout(selection, predictions, dropped, epsilons, mode=spec.mode, rule=rule)
    targeting = summarise_targeting(
        subject.classifier, selection, subject.data.classes, predictions, observed, epsilons
    )
    patched = {
        layer.name: Patched.join_neurons(
            [Patched.join_images(parts) for (name, _), parts in patches.items() if name == layer.name]
        )
        for layer in selection.layers
        if any(name == layer.name for name, _ in patches)
    }
    return Results(
        predictions=predictions,
        robust=RobustAccuracy(
            "fgsm", epsilons, predictions.adv_right, predictions.label, subject.data.classes
        ),
        dropout=dropout,
        targeting=targeting,
        patching=summarise_patching(selection, predictions, patched, epsilons),
        relation=summarise_relation(
            selection, predictions, dropped, observed, dropout, targeting, seed=spec.seed
        ),
        checks=selection.checks
        + check_inputs(stored["inputs"][0], stored["gradients"][0], subject.data.classes),
    )


def _of_layer(arrays: Arrays, layer: str) -> Disturbances:
    prefix = f"{layer}/"
    return Disturbances(
        **{name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
    )
