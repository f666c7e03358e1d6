"""summary.json after `harden`: accuracies before and after, and the verdict."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from fragile_neurons.analysis.robustness import Accuracy, RobustAccuracy
from fragile_neurons.hardening.judge import Judgement
from fragile_neurons.hardening.observe import FGSM, PGD
from fragile_neurons.hardening.trials import ORIGINAL
from fragile_neurons.hardening.verdict import LEFT_OVER, Paired
from fragile_neurons.norms import format_epsilon
from fragile_neurons.runs.hardened import Hardened
from fragile_neurons.runs.spec import HardenSpec
from fragile_neurons.runs.subject import Subject
from fragile_neurons.runs.summary import described, summary_of


def hardening_summary(subject: Subject, found: Hardened) -> dict[str, Any]:
    """The contents of summary.json after `harden`: the accuracies are the original network's."""
    judgement = found.judgement
    curves = [
        RobustAccuracy(trial.attack, trial.epsilons, right, judgement.labels, judgement.classes)
        for trial, right in judgement.right.items()
        if trial.network == ORIGINAL and trial.attack in (FGSM, PGD) and not trial.source
    ]
    return summary_of(
        subject,
        _of(judgement.findings.clean.before),
        curves,
        found.checks,
        {"dropout": [], "targeting": [], "correlation": [], "hardening": _hardening(subject, found)},
    )


def _hardening(subject: Subject, found: Hardened) -> dict[str, Any]:
    spec, judgement = subject.spec, found.judgement
    assert isinstance(spec, HardenSpec)
    assert spec.found is not None
    parameters = sum(parameter.numel() for parameter in subject.classifier.module.parameters())
    factors = np.concatenate(found.gains.factors)
    return {
        "rule": spec.rule,
        "epsilon": spec.epsilon,
        "budget": spec.budget,
        "fitted_on": spec.found.fitted_on,
        "chosen_on": spec.found.chosen_on,
        "verdict": judgement.verdict,
        "reason": judgement.reason,
        "is_identity": found.gains.is_identity,
        "numbers": found.gains.numbers,
        "parameters": parameters,
        "smallest_gain": float(factors.min()),
        "largest_gain": float(factors.max()),
        "accuracies": [
            {
                "network": trial.network,
                "attack": trial.attack,
                "made_on": trial.source or trial.network,
                "epsilon": format_epsilon(epsilon),
                **described(_of(right[row])),
            }
            for trial, right in judgement.right.items()
            for row, epsilon in enumerate(trial.epsilons)
        ],
        "differences": [
            {"attack": attack, "epsilon": format_epsilon(epsilon), **_difference(pair)}
            for attack, epsilon, pair in judgement.differences()
        ],
        "against": [{"network": name, **_difference(pair)} for name, pair in judgement.against().items()],
        "left_over": [
            {"attack": name, "share": LEFT_OVER, **dict(zip(("value", "low", "high"), values, strict=True))}
            for name, values in judgement.left_over().items()
        ],
        "per_class": _per_class_differences(judgement),
        "fits": [vars(fit) for fit in found.fits],
        "chosen": [vars(one) for one in found.chosen],
    }


def _difference(pair: Paired) -> dict[str, Any]:
    return {
        "value": pair.gain,
        "ci95": list(pair.ci95),
        "n": len(pair.before),
        "gained": int((pair.after & ~pair.before).sum()),
        "lost": int((pair.before & ~pair.after).sum()),
    }


def _per_class_differences(judgement: Judgement) -> dict[str, Any]:
    """Under PGD at the epsilon hardened against, before and after, by class."""
    pgd, rows = judgement.findings.pgd, {}
    for label in np.unique(judgement.labels):
        here = judgement.labels == label
        rows[judgement.classes[label]] = {
            "before": described(_of(pgd.before[here])),
            "after": described(_of(pgd.after[here])),
        }
    return rows


def _of(right: npt.NDArray[np.bool_]) -> Accuracy:
    return Accuracy(int(right.sum()), len(right))
