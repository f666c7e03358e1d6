"""One unit of work: pure, so that any engine on any machine gets the same arrays."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

from fragile_neurons.analysis.cumulative import (
    chains,
    chains_from_arrays,
    chains_to_arrays,
    observe_chains,
)
from fragile_neurons.analysis.disturbance import observe_disturbances
from fragile_neurons.analysis.examples import observe_examples
from fragile_neurons.analysis.predictions import observe_predictions
from fragile_neurons.analysis.robustness import observe_attack, observe_smallest
from fragile_neurons.analysis.staging import learn_design, top_neurons
from fragile_neurons.classifier import Classifier, evaluating
from fragile_neurons.data.batches import batches
from fragile_neurons.evidence import (
    UNBOUNDED,
    Arrays,
    conditions,
    observe_condition,
    observe_gradients,
    observe_inputs,
)
from fragile_neurons.norms import parse_epsilons
from fragile_neurons.runs.hardening import execute_hardening, network_of
from fragile_neurons.runs.joining import join_disturbances, join_drops, join_patches, join_predictions
from fragile_neurons.runs.plan import SCORED, Unit
from fragile_neurons.runs.spec import AnalyzeSpec, EvaluateSpec, HardenSpec
from fragile_neurons.runs.subject import Subject, threads
from fragile_neurons.sweeps.observed import Dropped, Patched
from fragile_neurons.sweeps.sampling import Design
from fragile_neurons.sweeps.sweep import Sweep

CHECKED = ("inputs", "gradients", "condition", "examples")


def execute_unit(subject: Subject, unit: Unit, given: Sequence[tuple[Unit, Arrays]] = ()) -> Arrays:
    """The arrays of one unit, by name; given: the results of the units that it needs."""
    if unit.kind in SCORED and subject.hardening is not None:
        assert subject.hardening.scoring is not None
        subject = subject.hardening.scoring
    spec, epsilons = subject.spec, parse_epsilons(subject.spec.epsilons)
    span = {"batch_size": spec.batch_size, "start": unit.start, "stop": unit.stop}
    with threads(spec.threads):
        if unit.kind in CHECKED:
            network = network_of(subject, unit.network, given) if unit.network else subject.classifier
            return _execute_check(subject, unit, network)
        if isinstance(spec, EvaluateSpec):
            return _execute_evaluation(subject, unit, epsilons, span)
        if isinstance(spec, HardenSpec):
            return execute_hardening(subject, unit, given)
        assert isinstance(spec, AnalyzeSpec)
        if unit.kind == "predictions":
            return vars(observe_predictions(subject.classifier, subject.data, epsilons, **span))
        if unit.kind == "disturbances":
            observed = observe_disturbances(
                subject.classifier,
                subject.data,
                subject.selection.layers,
                spec.site,
                epsilons,
                seed=spec.seed,
                **span,
            )
            return {
                f"{layer}/{name}": array
                for layer, one in observed.items()
                for name, array in vars(one).items()
            }
        with evaluating(subject.classifier):
            if unit.kind == "design":
                return _execute_design(subject, unit, given)
            if unit.kind == "top":
                return {"places": top_neurons(join_predictions(given), join_drops(given))}
            if unit.kind == "refined":
                return _execute_refined(subject, unit, given)
            if unit.kind == "orders":
                return _execute_orders(subject, unit, given)
            if unit.kind == "curves":
                return _execute_curves(subject, unit, given)
            return _execute_sweep(subject, unit, given)


def _execute_sweep(subject: Subject, unit: Unit, given: Sequence[tuple[Unit, Arrays]]) -> Arrays:
    """Drops or patches; by the design of the layer, if one is given."""
    spec = subject.spec
    assert isinstance(spec, AnalyzeSpec)
    for design, arrays in given:
        subject.designs.setdefault(design.layer, Design.from_arrays(arrays))
    sweeps = subject.sweeps(unit.start, unit.stop, "sample" if given else "whole")
    if unit.kind == "drops":
        return vars(_drop(subject, sweeps, unit.layer, unit.channels))
    site = subject.selection.layer(unit.layer).site(spec.site)
    parts = [batch.patch(site, unit.channels).first_images(count) for batch, count in sweeps]
    return vars(Patched.join_images(parts))


def _drop(
    subject: Subject, sweeps: Sequence[tuple[Sweep, int]], layer: str, channels: Sequence[int]
) -> Dropped:
    assert isinstance(subject.spec, AnalyzeSpec)
    site, values = subject.selection.layer(layer).site(subject.spec.site), subject.replacements[layer]
    adaptive = subject.spec.mode == "adaptive"
    parts = [
        batch.drop(site, channels, values, adaptive=adaptive).first_images(count) for batch, count in sweeps
    ]
    return Dropped.join_images(parts)


def _execute_design(subject: Subject, unit: Unit, given: Sequence[tuple[Unit, Arrays]]) -> Arrays:
    """What the pilot teaches of a layer."""
    spec = subject.spec
    assert isinstance(spec, AnalyzeSpec)
    layer = subject.selection.layer(unit.layer)
    design = learn_design(
        subject.sweeps(unit.start, unit.stop, "design"),
        layer.site(spec.site),
        subject.selection.channels(layer),
        subject.replacements[layer.name],
        [join_drops(given), *join_patches(given).values()],
        parse_epsilons(spec.epsilons),
        images=len(subject.data),
        standard_error=spec.standard_error,
    )
    return design.to_arrays()


def _execute_refined(subject: Subject, unit: Unit, given: Sequence[tuple[Unit, Arrays]]) -> Arrays:
    """Every image as it is asked of the neurons at the places given, if any."""
    ((_, arrays),) = given
    if not len(arrays["places"]):
        return {}
    top = subject.selection.of_neurons(arrays["places"])
    sweeps = subject.sweeps(unit.start, unit.stop, "refined")
    found = [_drop(subject, sweeps, layer.name, top.channels(layer)) for layer in top.layers]
    return vars(Dropped.join_neurons(found))


def _execute_orders(subject: Subject, unit: Unit, given: Sequence[tuple[Unit, Arrays]]) -> Arrays:
    """The orders in which a layer's neurons are dropped one after another."""
    layer = subject.selection.layer(unit.layer)
    tried = chains(
        layer,
        subject.selection.channels(layer),
        join_predictions(given),
        join_drops(given),
        join_disturbances(given, unit.layer),
        seed=subject.spec.seed,
    )
    return chains_to_arrays(tried)


def _execute_curves(subject: Subject, unit: Unit, given: Sequence[tuple[Unit, Arrays]]) -> Arrays:
    """What becomes of a batch along those orders."""
    assert isinstance(subject.spec, AnalyzeSpec)
    spec, ((_, orders),) = subject.spec, given
    (batch,) = batches(subject.data, spec.batch_size, subject.classifier.device, unit.start, unit.stop)
    right = observe_chains(
        subject.classifier,
        batch,
        subject.selection.layer(unit.layer).site(spec.site),
        chains_from_arrays(orders),
        subject.replacements[unit.layer],
        parse_epsilons(spec.epsilons),
        mode=spec.mode,
    )
    return {"right": right}


def _execute_evaluation(
    subject: Subject, unit: Unit, epsilons: tuple[Fraction, ...], span: dict[str, int]
) -> Arrays:
    classifier, data, seed = subject.classifier, subject.data, subject.spec.seed
    if unit.kind == "predictions":
        return vars(observe_predictions(classifier, data, (), **span))
    if unit.kind == "attack":
        return vars(observe_attack(classifier, data, unit.attack, epsilons, seed=seed, **span))
    assert unit.kind == "smallest"
    return {"smallest": observe_smallest(classifier, data, epsilons[-1], seed=seed, **span)}


def _execute_check(subject: Subject, unit: Unit, network: Classifier) -> Arrays:
    """What tells whether this network can be judged: its inputs, its gradients, conditions; and examples."""
    spec, data = subject.spec, subject.data
    if unit.kind == "inputs":
        return observe_inputs(network.as_dtype("float32"), data, images=unit.stop)
    if unit.kind == "gradients":
        return observe_gradients(network.as_dtype("float32"), data, images=unit.stop)
    if unit.kind == "condition":
        grid = [Fraction(1)] if unit.attack == UNBOUNDED else spec.attacked
        attack = conditions(data)[unit.attack]
        return observe_condition(attack, network, data, grid, images=unit.stop, seed=spec.seed)
    return observe_examples(
        network,
        data,
        subject.selection,
        spec.shown_attack,
        spec.attacked,
        batch_size=spec.batch_size,
        seed=spec.seed,
    )
