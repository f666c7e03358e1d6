"""summary.json: what a run found, for programs; accuracies are fractions, nothing is NaN."""

from __future__ import annotations

import math
import platform
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fragile_neurons.analysis.correlation import Pair, Relation
from fragile_neurons.analysis.cumulative import Cumulative, Curve
from fragile_neurons.analysis.patching import Patching
from fragile_neurons.analysis.predictions import Predictions
from fragile_neurons.analysis.robustness import Accuracy, RobustAccuracy
from fragile_neurons.analysis.targeting import Targeting
from fragile_neurons.analysis.verdicts import VERDICTS, Drops
from fragile_neurons.attacks.catalogue import missing_extra
from fragile_neurons.norms import format_epsilon
from fragile_neurons.probe import Check
from fragile_neurons.runs.analyzed import Analysis
from fragile_neurons.runs.environment import versions
from fragile_neurons.runs.evaluated import Evaluation
from fragile_neurons.runs.spec import AnalyzeSpec, EvaluateSpec
from fragile_neurons.runs.subject import Subject

FORMAT_VERSION = 1


def analysis_summary(subject: Subject, results: Analysis) -> dict[str, Any]:
    """The contents of summary.json after `analyze`."""
    return summary_of(
        subject,
        _clean(results.predictions),
        [results.robust],
        results.checks,
        {
            "dropout": _dropout(subject, results),
            "targeting": _targeting(subject, results.targeting),
            "patching": _patching(subject, results.patching),
            "cumulative": _cumulative(results.cumulative),
            "correlation": [_pair(pair) for pair in results.relation.pairs],
            "precision": _precision(results.relation),
        },
    )


def evaluation_summary(subject: Subject, found: Evaluation) -> dict[str, Any]:
    """The contents of summary.json after `evaluate`: no neurons, the worst case last of the attacks."""
    spec = subject.spec
    assert isinstance(spec, EvaluateSpec)
    right, grid = found.predictions.right, [float(epsilon) for epsilon in found.worst.epsilons]
    return summary_of(
        subject,
        _clean(found.predictions),
        [*found.curves, found.worst],
        found.checks,
        {
            "dropout": [],
            "targeting": [],
            "correlation": [],
            "unavailable": [
                {"attack": name, "install": missing_extra(name) or ""} for name in spec.unavailable
            ],
            "cost": [vars(cost) for cost in found.costs],
            "smallest_fooling_epsilon": {
                "median": found.median,
                "n": int(right.sum()),
                "not_fooled": int(np.isnan(found.smallest[right]).sum()),
                "of_grid": int(np.isin(found.smallest[right], grid).sum()),
                "largest": spec.epsilons[-1],
            },
        },
    )


def _clean(predictions: Predictions) -> Accuracy:
    return Accuracy(int(predictions.right.sum()), len(predictions.right))


def summary_of(
    subject: Subject,
    clean: Accuracy,
    curves: Sequence[RobustAccuracy],
    checks: Sequence[Check],
    findings: dict[str, Any],
) -> dict[str, Any]:
    """What the summaries of all commands have, and these findings; clean, curves: of the run's network."""
    spec, data, selection = subject.spec, subject.data, subject.selection
    summary = {
        "format_version": FORMAT_VERSION,
        "spec": spec.model_dump(mode="json"),
        "environment": _environment(),
        "model": {
            "name": subject.classifier.name,
            "weights_sha256": subject.classifier.sha256(),
            "parameters": sum(parameter.numel() for parameter in subject.classifier.parameters()),
        },
        "data": {
            "name": data.name,
            "split": data.split,
            "n": len(data),
            "sha256": data.sha256,
            "excluded": list(data.excluded),
            "classes": list(data.classes),
        },
        "layers": [
            {
                "name": layer.name,
                "kind": layer.kind,
                "channels": layer.channels,
                "neurons": len(selection.channels(layer)),
            }
            for layer in selection.layers
        ],
        "site": selection.site or None,
        "clean_accuracy": described(clean),
        "robust_accuracy": [
            {
                "attack": curve.attack,
                "epsilon": format_epsilon(epsilon),
                **described(curve.at(row)),
                "per_class": _per_class(curve, row),
            }
            for curve in curves
            for row, epsilon in enumerate(curve.epsilons)
        ],
        "hardening": None,
        **findings,
        "checks": [vars(check) for check in checks],
    }
    cleaned: dict[str, Any] = without_nan(summary)
    return cleaned


def _environment() -> dict[str, str]:
    """Versions and machine, for people."""
    return {
        **{name.replace("-", "_"): version for name, version in versions().items()},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
    }


def without_nan(value: Any) -> Any:
    """The same structure with None where a float is not finite: JSON has no NaN."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def described(accuracy: Accuracy) -> dict[str, Any]:
    """An accuracy with its denominator and interval."""
    return {"value": accuracy.value, "n": accuracy.n, "ci95": list(accuracy.ci95)}


def _per_class(curve: RobustAccuracy, row: int) -> dict[str, Any]:
    present = np.unique(curve.labels)
    return {curve.classes[label]: described(curve.at(row, int(label))) for label in present}


def _dropout(subject: Subject, results: Analysis) -> list[dict[str, Any]]:
    """Per layer and condition (epsilon None is clean): how many neurons have which verdict."""
    layers = np.array([neuron.layer for neuron in subject.selection.neurons])
    predictions, dropout = results.predictions, results.dropout
    conditions: list[tuple[str | None, Drops, npt.NDArray[np.bool_]]] = [
        (None, dropout.clean, predictions.right)
    ]
    assert isinstance(subject.spec, AnalyzeSpec)
    if subject.spec.mode == "adaptive":
        names = [format_epsilon(epsilon) for epsilon in dropout.epsilons]
        conditions += list(zip(names, dropout.adv, predictions.adv_right, strict=True))
    rows = []
    for layer in subject.selection.layers:
        for epsilon, drops, right in conditions:
            here = layers == layer.name
            counts = Counter(drops.verdict[here].tolist())
            errors = drops.sampling_se[here & np.isfinite(drops.sampling_se)]
            rows.append(
                {
                    "layer": layer.name,
                    "epsilon": epsilon,
                    "verdicts": {verdict: counts[verdict] for verdict in VERDICTS},
                    "small": int(np.equal(drops.small[here], True).sum()),
                    "largest_sampling_se": errors.max(initial=0.0) if errors.size else None,
                    "right": int(right.sum()),
                    "wrong": int((~right).sum()),
                }
            )
    return rows


def _targeting(subject: Subject, aim: Targeting) -> list[dict[str, Any]]:
    """Per layer and epsilon above 0: the images counted, and the three most targeted neurons."""
    rows = []
    layers = np.array([neuron.layer for neuron in aim.neurons])
    for layer in subject.selection.layers:
        here = np.flatnonzero(layers == layer.name)
        for row, epsilon in enumerate(aim.epsilons):
            if epsilon > 0:
                top = here[np.argsort(-aim.share[row][here], kind="stable")[:3]]
                rows.append(
                    {
                        "layer": layer.name,
                        "epsilon": format_epsilon(epsilon),
                        "images": int(aim.images[row][here[0]]),
                        "undisturbed": int(aim.undisturbed[row][here[0]]),
                        "most_targeted": [
                            {
                                "channel": aim.neurons[column].channel,
                                "share": float(aim.share[row][column]),
                                "excess": float(aim.excess[row][column]),
                            }
                            for column in top
                        ],
                    }
                )
    return rows


def _patching(subject: Subject, found: Patching) -> list[dict[str, Any]]:
    """Per layer and epsilon above 0: the images asked, and the neuron that rescues most of them."""
    rows = []
    layers = np.array([neuron.layer for neuron in found.neurons])
    for layer in subject.selection.layers:
        here = np.flatnonzero(layers == layer.name)
        for row, epsilon in enumerate(found.epsilons):
            if epsilon > 0:
                rescue, best = found.rescue[row, here], None
                if np.isfinite(rescue).any():
                    top = here[int(np.nanargmax(rescue))]
                    best = {
                        "channel": found.neurons[top].channel,
                        "rescue": float(found.rescue[row, top]),
                        "ci95": [float(found.rescue_low[row, top]), float(found.rescue_high[row, top])],
                    }
                rows.append(
                    {
                        "layer": layer.name,
                        "epsilon": format_epsilon(epsilon),
                        "fooled": int(found.fooled[row]),
                        "right": int(found.right[row]),
                        "most_rescuing": best,
                    }
                )
    return rows


def _cumulative(found: Cumulative) -> list[dict[str, Any]]:
    """Per layer, condition (epsilon None is clean) and step: the accuracy by each order."""
    rows = []
    layers: dict[str, list[Curve]] = defaultdict(list)
    for curve in found.curves:
        layers[curve.layer].append(curve)
    for layer, curves in layers.items():
        for condition, epsilon in enumerate((None, *map(format_epsilon, found.epsilons))):
            for place, step in enumerate(curves[0].steps):
                by_order: dict[str, list[float]] = defaultdict(list)
                row: dict[str, Any] = {"layer": layer, "epsilon": epsilon, "step": step}
                for curve in curves:
                    right = curve.right[condition, place]
                    by_order[curve.order].append(float(right.mean()))
                    row[curve.order] = described(Accuracy(int(right.sum()), len(right)))
                chance = by_order["random"]
                row["random"] = {
                    "value": float(np.mean(chance)),
                    "draws": len(chance),
                    "lowest": min(chance),
                    "highest": max(chance),
                }
                rows.append(row)
    return rows


def _pair(pair: Pair) -> dict[str, Any]:
    found = vars(pair.correlation).copy()
    interval = [found.pop("low"), found.pop("high")]
    place = {"layer": pair.layer, "epsilon": format_epsilon(pair.epsilon), "headline": pair.headline}
    return {**found, **place, "ci95": interval, "adjusted_p": pair.adjusted_p}


def _precision(relation: Relation) -> list[dict[str, Any]]:
    return [{**vars(one), "epsilon": format_epsilon(one.epsilon)} for one in relation.precisions]
