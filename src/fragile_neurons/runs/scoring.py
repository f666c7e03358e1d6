"""Neurons scored on validation images, and the proportional rule's gains from their scores."""

from __future__ import annotations

from collections.abc import Sequence

from fragile_neurons.analysis.dropout import Dropout, summarise_dropout
from fragile_neurons.analysis.patching import Patching, summarise_patching
from fragile_neurons.analysis.targeting import Targeting, summarise_targeting
from fragile_neurons.analysis.verdicts import Rule
from fragile_neurons.hardening import search
from fragile_neurons.hardening.gains import FloatArray, Gains, Strength, keep_energy, proportional
from fragile_neurons.norms import parse_epsilons
from fragile_neurons.runs.joining import Given, join_disturbances, join_drops, join_patches, join_predictions
from fragile_neurons.runs.plan import Unit, make_plan
from fragile_neurons.runs.subject import Subject, hardening_parts


def scoring_units(subject: Subject) -> list[Unit]:
    """What scores the neurons: those units of an analysis of validation images that the rule asks for."""
    spec, hardening = hardening_parts(subject)
    if hardening.scoring is None:
        return []
    scores = search.scores_needed(spec.rule, spec.score)
    kinds = {"predictions", "drops"}
    if scores & {"share", "excess"} or spec.keep_energy:
        kinds.add("disturbances")
    if "rescue" in scores:
        kinds.add("patches")
    units = make_plan(hardening.scoring.selection, len(hardening.scoring.data), spec.batch_size)
    return [unit for unit in units if unit.kind in kinds]


def rule_gains(subject: Subject, given: Given, score: str, strengths: Sequence[Strength]) -> list[Gains]:
    """The rule's gains by one score, of each strength."""
    spec = hardening_parts(subject)[0]
    scores, found = _scores(subject, given, score), []
    tolerance = spec.tolerance if score == "clean" else None
    energies = _energies(subject, given) if spec.keep_energy else []
    for strength in strengths:
        factors = [proportional(one, strength, tolerance=tolerance) for one in scores]
        if spec.keep_energy:
            factors = [keep_energy(*pair) for pair in zip(factors, energies, strict=True)]
        found.append(Gains.of_factors(subject.selection.sites, factors))
    return found


def _scores(subject: Subject, given: Given, score: str) -> list[FloatArray]:
    """What each layer's neurons are scored by."""
    scoring = hardening_parts(subject)[1].scoring
    assert scoring is not None
    selection, epsilons = scoring.selection, parse_epsilons(scoring.spec.epsilons)
    predictions = join_predictions(given)
    found: Dropout | Patching | Targeting
    if score in ("share", "excess"):
        found = _targeting(scoring, given)
    elif score == "rescue":
        found = summarise_patching(selection, predictions, join_patches(given), epsilons)
    else:
        dropped = join_drops(given)
        found = summarise_dropout(selection, predictions, dropped, epsilons, mode="adaptive", rule=Rule())
    values = found.to_table()[search.SCORES[score]].to_numpy(zero_copy_only=False)
    return [values[selection.places(layer)] for layer in selection.layers]


def _energies(subject: Subject, given: Given) -> list[FloatArray]:
    """The activation energy of each layer's neurons."""
    scoring = hardening_parts(subject)[1].scoring
    assert scoring is not None
    energy = _targeting(scoring, given).activation_energy
    return [energy[scoring.selection.places(layer)] for layer in scoring.selection.layers]


def _targeting(scoring: Subject, given: Given) -> Targeting:
    observed = {layer.name: join_disturbances(given, layer.name) for layer in scoring.selection.layers}
    return summarise_targeting(
        scoring.classifier,
        scoring.selection,
        scoring.data.classes,
        join_predictions(given),
        observed,
        parse_epsilons(scoring.spec.epsilons),
    )
