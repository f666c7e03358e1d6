"""One unit of work: pure, so that any engine on any machine gets the same arrays."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from typing import Literal

import torch

from fragile_neurons.analysis.cumulative import (
    chains,
    chains_from_arrays,
    chains_to_arrays,
    observe_chains,
)
from fragile_neurons.analysis.disturbance import observe_disturbances
from fragile_neurons.analysis.dropout import open_sweeps, replacements
from fragile_neurons.analysis.predictions import observe_predictions
from fragile_neurons.analysis.robustness import observe_attack, observe_smallest
from fragile_neurons.analysis.selection import Selection, probed, select
from fragile_neurons.analysis.staging import learn_design, top_neurons
from fragile_neurons.attacks.catalogue import attack_sha256, find_attack, missing_extra
from fragile_neurons.classifier import Classifier, evaluating
from fragile_neurons.data.batches import batches
from fragile_neurons.data.catalogue import load_data
from fragile_neurons.data.images import ImageData
from fragile_neurons.errors import InputError
from fragile_neurons.evidence import (
    UNBOUNDED,
    Arrays,
    conditions,
    observe_condition,
    observe_gradients,
    observe_inputs,
)
from fragile_neurons.models.loading import load_model
from fragile_neurons.norms import parse_epsilons
from fragile_neurons.runs.joining import join_disturbances, join_drops, join_patches, join_predictions
from fragile_neurons.runs.plan import Unit
from fragile_neurons.runs.spec import AnalyzeSpec, EvaluateSpec, Found, FoundLayer, Spec
from fragile_neurons.sweeps.choice import choose_way
from fragile_neurons.sweeps.observed import Dropped, Patched
from fragile_neurons.sweeps.sampling import Design
from fragile_neurons.sweeps.sweep import Sweep
from fragile_neurons.sweeps.way import Way

Stage = Literal["whole", "design", "sample", "refined"]


@dataclass(frozen=True)
class Subject:
    """A spec and what it speaks of, opened: and, of `analyze`, the neurons and the way."""

    spec: Spec
    classifier: Classifier
    data: ImageData
    selection: Selection
    way: Way | None = None
    designs: dict[str, Design] = field(default_factory=dict, compare=False)
    _swept: dict[tuple[int, int, Stage], list[tuple[Sweep, int]]] = field(default_factory=dict, compare=False)

    @cached_property
    def replacements(self) -> dict[str, list[float]]:
        """What each channel of each layer becomes when it is dropped."""
        assert isinstance(self.spec, AnalyzeSpec)
        spec = self.spec
        return {
            layer.name: replacements(
                self.classifier,
                self.data,
                layer,
                site=spec.site,
                replace=spec.replace,
                batch_size=spec.batch_size,
            )
            for layer in self.selection.layers
        }

    def sweeps(self, start: int, stop: int, stage: Stage = "whole") -> list[tuple[Sweep, int]]:
        """The batches of images start to stop; kept, since the next unit most likely asks for the same.

        stage "sample": asked by the designs, which may be filled in later, before the layer is asked for.
        """
        if (start, stop, stage) not in self._swept:
            assert self.way is not None
            self._swept.clear()
            self._swept[start, stop, stage] = list(
                open_sweeps(
                    self.way,
                    self.classifier,
                    self.data,
                    self.selection.sites,
                    parse_epsilons(self.spec.epsilons),
                    batch_size=self.spec.batch_size,
                    start=start,
                    stop=stop,
                    designs=self.designs if stage == "sample" else None,
                    seed=self.spec.seed,
                )
            )
        return self._swept[start, stop, stage]


def open_spec(spec: Spec) -> Subject:
    """Load what a spec names, and hold it against what an earlier probe found."""
    data = load_data(
        spec.data,
        split=spec.split,
        limit=spec.limit,
        seed=spec.seed,
        resize=spec.resize,
        skip_bad=spec.skip_bad,
    )
    classifier = load_model(
        spec.model,
        data=data,
        weights=spec.weights,
        mean=spec.mean,
        std=spec.std,
        device=spec.device,
    )
    return open_subject(spec, classifier.as_dtype(spec.dtype), data)


def open_subject(spec: Spec, classifier: Classifier, data: ImageData) -> Subject:
    """Probe and choose; the spec of the result says what was found."""
    choice = None
    with threads(spec.threads):
        if isinstance(spec, AnalyzeSpec):
            selection = select(
                classifier, data, layer=spec.layer, neurons=spec.neurons, site=spec.site, seed=spec.seed
            )
            choice = choose_way(classifier, selection.sites, selection.images, spec.sweep)
        else:
            batch, checks = probed(classifier, data)
            selection = Selection((), (), "", batch.images, checks)
    found = Found(
        images=len(data),
        excluded=data.excluded,
        data_sha256=data.sha256,
        weights_sha256=classifier.sha256(),
        layers=tuple(
            FoundLayer(
                name=layer.name,
                kind=layer.kind,
                channels=layer.channels,
                neurons=len(selection.channels(layer)),
                kernel=layer.weight_shape[2:],
            )
            for layer in selection.layers
        ),
        attacks_sha256=_attacks_sha256(spec),
        sweep=choice.name if choice else None,
        sweep_reason=choice.reason if choice else None,
    )
    for name, value in found if spec.found is not None else ():
        planned = getattr(spec.found, name)
        if value != planned:
            raise InputError(
                f"this is not what the run was planned for: {name} differs",
                given=value,
                allowed=planned,
                fix="bring back the same model and data, or start a new run",
            )
    update: dict[str, object] = {"found": found}
    if isinstance(spec, EvaluateSpec) and spec.found is None:
        update["unavailable"] = _unavailable(spec.attacks)
    way = choice.way if choice else None
    return Subject(spec.model_copy(update=update), classifier, data, selection, way)


def _attacks_sha256(spec: Spec) -> dict[str, str]:
    """The checksum of the file of each attack of the user's own."""
    names = spec.attacks if isinstance(spec, EvaluateSpec) else ()
    return {name: attack_sha256(name) for name in names if ":" in name}


def _unavailable(attacks: Sequence[str]) -> tuple[str, ...]:
    """Attacks whose extra is not installed; raises InputError if all are, or one does not exist."""
    for name in attacks:
        find_attack(name)
    missing = tuple(name for name in attacks if missing_extra(name))
    if len(missing) == len(attacks):
        raise InputError(
            "none of the attacks is installed",
            given=", ".join(attacks),
            allowed="at least one that is",
            fix=str(missing_extra(missing[0])),
        )
    return missing


def execute_unit(subject: Subject, unit: Unit, given: Sequence[tuple[Unit, Arrays]] = ()) -> Arrays:
    """The arrays of one unit, by name; given: the results of the units that it needs."""
    spec, epsilons = subject.spec, parse_epsilons(subject.spec.epsilons)
    span = {"batch_size": spec.batch_size, "start": unit.start, "stop": unit.stop}
    with threads(spec.threads):
        if unit.kind == "inputs":
            return observe_inputs(subject.classifier.as_dtype("float32"), subject.data, images=unit.stop)
        if unit.kind == "gradients":
            return observe_gradients(subject.classifier.as_dtype("float32"), subject.data, images=unit.stop)
        if isinstance(spec, EvaluateSpec):
            return _execute_evaluation(subject, unit, epsilons, span)
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
    """Every image asked of the neurons at the places given."""
    ((_, arrays),) = given
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
    if unit.kind == "smallest":
        return {"smallest": observe_smallest(classifier, data, epsilons[-1], seed=seed, **span)}
    grid = [epsilon for epsilon in epsilons if epsilon]
    if unit.attack == UNBOUNDED:
        grid = [Fraction(1)]
    held = conditions(data)[unit.attack]
    return observe_condition(held, classifier, data, grid, images=unit.stop, seed=seed)


@contextmanager
def threads(count: int) -> Iterator[None]:
    """So many threads inside the block: sums in another order round differently."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
