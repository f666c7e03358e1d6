"""What a run is about: a spec and the network, images, neurons and way that it names, opened."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from fragile_neurons.analysis.dropout import open_sweeps, replacements
from fragile_neurons.analysis.selection import Selection, probed, select
from fragile_neurons.attacks.catalogue import attack_sha256, find_attack, missing_extra
from fragile_neurons.classifier import Classifier
from fragile_neurons.data.catalogue import load_data
from fragile_neurons.data.images import ImageData, stratified_sample
from fragile_neurons.errors import InputError, MissingSplitError
from fragile_neurons.hardening.premises import (
    common_site,
    refuse_any_unfoldable,
    refuse_other_dtypes,
    refuse_overlap,
    refuse_ruined,
    refuse_unlike,
)
from fragile_neurons.hardening.search import CLEAN_SCORES, SCORED_IMAGES, scores_needed
from fragile_neurons.models.loading import load_model
from fragile_neurons.norms import parse_epsilons
from fragile_neurons.runs.spec import (
    AnalyzeSpec,
    EvaluateSpec,
    Found,
    FoundLayer,
    FoundToHarden,
    HardenSpec,
    Spec,
    make_spec,
)
from fragile_neurons.sweeps.choice import choose_way
from fragile_neurons.sweeps.sampling import Design
from fragile_neurons.sweeps.sweep import Sweep
from fragile_neurons.sweeps.way import Way

log = logging.getLogger(__name__)

Stage = Literal["whole", "design", "sample", "refined"]


@dataclass(frozen=True)
class Hardening:
    """What `harden` has besides its report images, and disjoint from them.

    fitting: images that gains and weights are fitted to. choosing: those that strengths are chosen on.
    scoring: the analysis that scores the neurons, on some of these; None if no rule asks for it.
    scratch: a folder for the checkpoints of fits. tell: hears how a fit goes.
    """

    fitting: ImageData
    choosing: ImageData
    scoring: Subject | None
    scratch: Path = Path()
    tell: Callable[[str], None] = lambda note: None


@dataclass(frozen=True)
class Subject:
    """A spec and what it speaks of, opened: and, of `analyze`, the neurons and the way; of `harden` more."""

    spec: Spec
    classifier: Classifier
    data: ImageData
    selection: Selection
    way: Way | None = None
    hardening: Hardening | None = None
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

        stage "sample": asked by the designs, which may be filled in later, before the layer is asked for;
        "refined": only of the images as they are.
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
                    () if stage == "refined" else parse_epsilons(self.spec.epsilons),
                    batch_size=self.spec.batch_size,
                    start=start,
                    stop=stop,
                    designs=self.designs if stage == "sample" else None,
                    seed=self.spec.seed,
                )
            )
        return self._swept[start, stop, stage]


def hardening_parts(subject: Subject) -> tuple[HardenSpec, Hardening]:
    """The spec of a `harden`, and what that has besides."""
    assert isinstance(subject.spec, HardenSpec)
    assert subject.hardening is not None
    return subject.spec, subject.hardening


def open_spec(spec: Spec) -> Subject:
    """Load what a spec names, and hold it against what an earlier probe found."""

    def images(split: str, limit: int | None) -> ImageData:
        return load_data(
            spec.data, split=split, limit=limit, seed=spec.seed, resize=spec.resize, skip_bad=spec.skip_bad
        )

    data = images(spec.split, spec.limit)
    classifier = load_model(
        spec.model,
        data=data,
        weights=spec.weights,
        mean=spec.mean,
        std=spec.std,
        device=spec.device,
    ).as_dtype(spec.dtype)
    if isinstance(spec, HardenSpec):
        if spec.split != "test":
            raise InputError(
                "the report is made on the test images",
                given=f"--split {spec.split}",
                allowed="test: val and train are what gains are chosen and fitted on",
                fix="leave --split out",
            )
        train = None
        try:
            train = images("train", None) if spec.fits else None
        except MissingSplitError as missing:
            log.warning("no train images, so val is divided to fit and to choose: %s", missing)
        return open_to_harden(spec, classifier, val=images("val", None), test=data, train=train)
    return open_subject(spec, classifier, data)


def open_to_harden(
    spec: HardenSpec, classifier: Classifier, *, val: ImageData, test: ImageData, train: ImageData | None
) -> Subject:
    """Probe, choose the site, and divide the images; raises InputError where that cannot be."""
    val, test = val.mixed(spec.seed), test.mixed(spec.seed)
    refuse_other_dtypes(classifier)
    refuse_unlike({"val": val, "train": train}, test)
    refuse_overlap({"val": val, "train": train, "test": test})
    fitting, choosing, fitted_on, chosen_on = train or val, val, "train" if spec.fits else None, "val"
    if spec.fits and train is None:
        rows = stratified_sample(val.labels, len(val) // 2, spec.seed)
        fitting, choosing = val.take(rows), val.take(np.setdiff1d(np.arange(len(val)), rows))
        fitted_on, chosen_on = "one half of val", "the other half of val"
    selection = select(classifier, test, layer=spec.layer, seed=spec.seed)
    site = common_site(classifier, selection) if spec.site == "auto" else spec.site
    selection = replace(selection, site=site)
    refuse_any_unfoldable(classifier, selection)
    refuse_ruined(classifier, choosing, spec.batch_size)
    needed = scores_needed(spec.rule, spec.score)
    scoring = None
    if needed:
        few = choosing.take(np.arange(min(SCORED_IMAGES, len(choosing))))
        epsilons = () if needed <= CLEAN_SCORES else (spec.epsilon,)
        shared = ("model", "data", "layer", "device", "batch_size", "threads", "seed")
        asked = make_spec(
            **{name: getattr(spec, name) for name in shared},
            split="val",
            limit=len(few),
            site=site,
            epsilons=epsilons,
        )
        scoring = open_subject(asked, classifier, few)
    found = FoundToHarden(
        **_found(classifier, test, selection),
        val_sha256=val.sha256,
        train_sha256=None if train is None else train.sha256,
        fitted_on=fitted_on,
        chosen_on=chosen_on,
        site=site,
    )
    _refuse_other(spec, found)
    hardening = Hardening(fitting, choosing, scoring)
    return Subject(spec.model_copy(update={"found": found}), classifier, test, selection, hardening=hardening)


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
        **_found(classifier, data, selection),
        attacks_sha256=_attacks_sha256(spec),
        sweep=choice.name if choice else None,
        sweep_reason=choice.reason if choice else None,
    )
    _refuse_other(spec, found)
    update: dict[str, object] = {"found": found}
    if isinstance(spec, EvaluateSpec) and spec.found is None:
        update["unavailable"] = _unavailable(spec.attacks)
    way = choice.way if choice else None
    return Subject(spec.model_copy(update=update), classifier, data, selection, way)


def _found(classifier: Classifier, data: ImageData, selection: Selection) -> dict[str, Any]:
    """What the probe of every command finds."""
    return {
        "images": len(data),
        "excluded": data.excluded,
        "data_sha256": data.sha256,
        "weights_sha256": classifier.sha256(),
        "layers": tuple(
            FoundLayer(
                name=layer.name,
                kind=layer.kind,
                channels=layer.channels,
                neurons=len(selection.channels(layer)),
                kernel=layer.weight_shape[2:],
            )
            for layer in selection.layers
        ),
    }


def _refuse_other(spec: Spec, found: Found) -> None:
    """Raise an InputError unless this is what an earlier probe found."""
    for name, value in found if spec.found is not None else ():
        planned = getattr(spec.found, name)
        if value != planned:
            raise InputError(
                f"this is not what the run was planned for: {name} differs",
                given=value,
                allowed=planned,
                fix="bring back the same model and data, or start a new run",
            )


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


@contextmanager
def threads(count: int) -> Iterator[None]:
    """So many threads inside the block: sums in another order round differently."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
