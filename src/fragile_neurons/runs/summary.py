"""summary.json: what a run found, for programs; accuracies are fractions, nothing is NaN."""

from __future__ import annotations

import math
import platform
from collections import Counter
from importlib import metadata
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy
import torch

from fragile_neurons.analysis.correlation import Pair, Relation
from fragile_neurons.analysis.robustness import Accuracy
from fragile_neurons.analysis.targeting import Targeting
from fragile_neurons.analysis.verdicts import VERDICTS, Drops
from fragile_neurons.norms import format_epsilon
from fragile_neurons.runs.execute import Subject
from fragile_neurons.runs.results import Results

FORMAT_VERSION = 1


def make_summary(subject: Subject, results: Results) -> dict[str, Any]:
    """The contents of summary.json."""
    spec, data, selection = subject.spec, subject.data, subject.selection
    summary = {
        "format_version": FORMAT_VERSION,
        "spec": spec.model_dump(mode="json"),
        "environment": environment(),
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
        "site": spec.site,
        "clean_accuracy": _accuracy(Accuracy(int(results.predictions.right.sum()), len(data))),
        "robust_accuracy": [
            {
                "attack": "fgsm",
                "epsilon": format_epsilon(epsilon),
                **_accuracy(results.robust.at(row)),
                "per_class": _per_class(results, row, data.classes),
            }
            for row, epsilon in enumerate(results.robust.epsilons)
        ],
        "dropout": _dropout(subject, results),
        "targeting": _targeting(subject, results.targeting),
        "correlation": [_pair(pair) for pair in results.relation.pairs],
        "precision": _precision(results.relation),
        "hardening": None,
        "checks": [vars(check) for check in results.checks],
    }
    cleaned: dict[str, Any] = without_nan(summary)
    return cleaned


def environment() -> dict[str, str]:
    """Versions and machine, as far as they can move a last digit."""
    return {
        "fragile_neurons": metadata.version("fragile-neurons"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "scipy": scipy.__version__,
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


def _accuracy(accuracy: Accuracy) -> dict[str, Any]:
    return {"value": accuracy.value, "n": accuracy.n, "ci95": list(accuracy.ci95)}


def _per_class(results: Results, row: int, classes: tuple[str, ...]) -> dict[str, Any]:
    present = np.unique(results.robust.labels)
    return {classes[label]: _accuracy(results.robust.at(row, int(label))) for label in present}


def _dropout(subject: Subject, results: Results) -> list[dict[str, Any]]:
    """Per layer and condition (epsilon None is clean): how many neurons have which verdict."""
    layers = np.array([neuron.layer for neuron in subject.selection.neurons])
    predictions, dropout = results.predictions, results.dropout
    conditions: list[tuple[str | None, Drops, npt.NDArray[np.bool_]]] = [
        (None, dropout.clean, predictions.right)
    ]
    if subject.spec.mode == "adaptive":
        names = [format_epsilon(epsilon) for epsilon in dropout.epsilons]
        conditions += list(zip(names, dropout.adv, predictions.adv_right, strict=True))
    rows = []
    for layer in subject.selection.layers:
        for epsilon, drops, right in conditions:
            here = layers == layer.name
            counts = Counter(drops.verdict[here].tolist())
            rows.append(
                {
                    "layer": layer.name,
                    "epsilon": epsilon,
                    "verdicts": {verdict: counts[verdict] for verdict in VERDICTS},
                    "small": int(np.equal(drops.small[here], True).sum()),
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


def _pair(pair: Pair) -> dict[str, Any]:
    found = vars(pair.correlation).copy()
    interval = [found.pop("low"), found.pop("high")]
    place = {"layer": pair.layer, "epsilon": format_epsilon(pair.epsilon), "headline": pair.headline}
    return {**found, **place, "ci95": interval, "adjusted_p": pair.adjusted_p}


def _precision(relation: Relation) -> list[dict[str, Any]]:
    return [{**vars(one), "epsilon": format_epsilon(one.epsilon)} for one in relation.precisions]
