"""From the stored arrays of `harden` to what it has to say."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace

import numpy as np

from fragile_neurons.classifier import Classifier
from fragile_neurons.evidence import UNBOUNDED, Arrays
from fragile_neurons.hardening.gains import Gains
from fragile_neurons.hardening.judge import Judgement, conclude
from fragile_neurons.hardening.observe import FGSM, PGD
from fragile_neurons.hardening.trials import HARDENED, Trial
from fragile_neurons.hardening.verdict import BoolArray
from fragile_neurons.honesty import Evidence, check_attacks, check_inputs
from fragile_neurons.norms import parse_epsilon
from fragile_neurons.probe import FLAGGED, Check
from fragile_neurons.runs.hardening import fitted, gains_of, network_of, trials_of
from fragile_neurons.runs.ledger import Ledger
from fragile_neurons.runs.spec import HardenSpec
from fragile_neurons.runs.subject import Subject


@dataclass(frozen=True)
class Fit:
    """How a network was fitted: so many numbers, in so many steps and seconds (nan if it was interrupted).

    diverged: it came to numbers that are not finite, and the original's stand for it.
    """

    network: str
    numbers: int
    steps: int
    seconds: float
    diverged: bool


@dataclass(frozen=True)
class Chosen:
    """What was taken of several strengths or candidates, and what each reached on validation images.

    taken: the place of the one taken; None where the original stayed. strengths: of a fit or a control, that
    were tried; empty for the candidates of a search.
    clean: accuracy of the original and of each that was tried. robust: of the original and of those that
    were attacked, by their places in `attacked`; empty if none was.
    """

    network: str
    kept: bool
    taken: int | None
    strengths: tuple[float, ...]
    clean: tuple[float, ...]
    robust: tuple[float, ...]
    attacked: tuple[int, ...]


@dataclass(frozen=True)
class Hardened:
    """Everything `harden` has to say."""

    gains: Gains
    hardened: Classifier
    judgement: Judgement
    fits: tuple[Fit, ...]
    chosen: tuple[Chosen, ...]
    checks: tuple[Check, ...]


def collect_hardening(subject: Subject, ledger: Ledger) -> Hardened:
    """Join the units' arrays and judge them.

    The checks are of the hardened network; of the original only those of its inputs that are flagged.
    """
    spec = subject.spec
    assert isinstance(spec, HardenSpec)
    epsilon = parse_epsilon(spec.epsilon)
    results = [(unit, ledger.result(unit)) for unit in ledger.units()]
    judged: dict[tuple[str, str, str], list[Arrays]] = defaultdict(list)
    chosen, fits, checks = {}, {}, {}
    for unit, arrays in results:
        if unit.kind == "judged":
            judged[unit.network, unit.attack, unit.source].append(arrays)
        elif unit.kind == "chosen":
            chosen[unit.network] = arrays
        elif unit.kind == "fit":
            fits[unit.network] = arrays
        elif unit.kind == "condition":
            checks[unit.attack] = arrays["right"]
    trials = {(trial.network, trial.attack, trial.source): trial for trial in trials_of(subject)}
    right: dict[Trial, BoolArray] = {
        trials[key]: np.concatenate([part["right"] for part in parts], axis=1)
        for key, parts in judged.items()
    }
    judgement = conclude(right, subject.data.labels, subject.data.classes, epsilon, spec.budget)
    unbounded = checks.pop(UNBOUNDED)
    reported = {"fgsm": judgement.findings.fgsm.after[None], "pgd": judgement.findings.pgd.after[None]}
    evidence = Evidence(
        reported=reported,
        worst=reported["fgsm"] & reported["pgd"],
        overshoot={
            name: max(float(part["overshoot"].max()) for part in judged[HARDENED, attack, ""])
            for name, attack in (("fgsm", FGSM), ("pgd", PGD))
        },
        clean=judgement.findings.clean.after[: unbounded.shape[1]],
        held=checks,
        unbounded=unbounded,
        classes=len(subject.data.classes),
    )
    cheap = {(unit.network, unit.kind): arrays for unit, arrays in results}
    classes = subject.data.classes
    before, after = (
        check_inputs(cheap[network, "inputs"], cheap[network, "gradients"], classes)
        for network in ("", HARDENED)
    )
    return Hardened(
        gains=gains_of(subject, chosen[HARDENED]),
        hardened=network_of(subject, HARDENED, results),
        judgement=judgement,
        fits=tuple(_fit(name, fits[name]) for name in fitted(subject)),
        chosen=tuple(_chosen(name, arrays) for name, arrays in chosen.items() if "kept" in arrays),
        checks=(
            *subject.selection.checks,
            *(replace(one, name=f"original, {one.name}") for one in before if one.status in FLAGGED),
            *after,
            *check_attacks(evidence),
        ),
    )


def _fit(network: str, arrays: Arrays) -> Fit:
    numbers = sum(array.size for name, array in arrays.items() if "/" in name)
    if network == HARDENED:  # shifts that no weight holds were not fitted
        shifts = [array for name, array in arrays.items() if name.endswith("/shifts")]
        numbers -= sum(array.size for array in shifts if not array.any())
    return Fit(network, numbers, arrays["steps"].item(), arrays["seconds"].item(), arrays["diverged"].item())


def _chosen(network: str, arrays: Arrays) -> Chosen:
    taken, attacked = arrays["taken"].item(), arrays["tried attacked"]
    return Chosen(
        network,
        kept=arrays["kept"].item(),
        taken=None if taken < 0 else taken,
        strengths=tuple(arrays["strengths"].tolist()),
        clean=tuple(arrays["tried clean"].mean(axis=1).tolist()),
        robust=tuple(attacked.mean(axis=1).tolist()) if len(attacked) else (),
        attacked=tuple(arrays["which attacked"].tolist()),
    )
