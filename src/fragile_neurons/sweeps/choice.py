"""Which way a sweep takes, and why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch

from fragile_neurons.attacks.fgsm import loss_gradient
from fragile_neurons.classifier import Classifier, evaluating
from fragile_neurons.errors import FragileNeuronsError, InputError, check_choice
from fragile_neurons.interventions import drop, intervening
from fragile_neurons.neurons import Site
from fragile_neurons.own import describe
from fragile_neurons.sweeps.exact import Exact
from fragile_neurons.sweeps.graph import UntraceableError
from fragile_neurons.sweeps.pairs import Pairs
from fragile_neurons.sweeps.reference import Reference
from fragile_neurons.sweeps.split import Intervention
from fragile_neurons.sweeps.way import Way

SweepName = Literal["auto", "reference", "exact", "sampled"]
SWEEPS = get_args(SweepName)
TOLERANCES = {"float32": 1e-4, "bfloat16": 0.1}  # of the largest logit
GRADIENT_TOLERANCES = {"float32": 0.05, "bfloat16": 0.5}  # of the norm, for half the images
CHECKED_IMAGES = 4


@dataclass(frozen=True, eq=False)
class Choice:
    """A way to sweep, what it is called, and why this one."""

    way: Way
    name: str
    reason: str


def choose_way(classifier: Classifier, sites: Sequence[Site], images: torch.Tensor, asked: str) -> Choice:
    """The way that was asked for; `auto`: exact where the network can be had as a graph, as `sampled` is.

    Raises InputError where exact was asked for and cannot be had.
    """
    check_choice("sweep", asked, SWEEPS)
    name = {"auto": "exact"}.get(asked, asked)
    if asked == "reference":
        return Choice(Reference(classifier), name, "asked for")
    try:
        way = _checked(classifier, sites, images[:CHECKED_IMAGES])
    except UntraceableError as problem:
        if asked == "exact":
            raise InputError(
                "the exact sweep cannot be had for this network",
                given=str(problem),
                allowed="networks that torch.fx can trace",
                fix="use --sweep auto, which takes the slower reference sweep where it must",
            ) from None
        if asked == "sampled":
            said = f"asked for, but by hooks, where a sample saves no time: {problem}"
            return Choice(Reference(classifier), name, said)
        return Choice(Reference(classifier), "reference", str(problem))
    return Choice(way, name, "the network can be had as a graph" if asked == "auto" else "asked for")


def _checked(classifier: Classifier, sites: Sequence[Site], images: torch.Tensor) -> Exact:
    try:
        with evaluating(classifier):
            way = Exact(classifier, images)
            _check(way, classifier, sites, images)
    except (FragileNeuronsError, UntraceableError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # a forward of somebody else's may do what no graph was cut for
        raise UntraceableError(f"the graph cannot be cut: {describe(error)}") from error
    return way


def _check(way: Exact, classifier: Classifier, sites: Sequence[Site], images: torch.Tensor) -> None:
    """Hold the first, the middle and the last site against the reference, and split at all of them."""
    for site in sites:
        way.split(site)
    pairs, replace = Pairs.of([0], torch.arange(len(images), device=images.device)), drop(0.0)
    for site in dict.fromkeys([sites[0], sites[len(sites) // 2], sites[-1]]):
        with intervening(classifier, site, [0], replace), torch.no_grad():
            expected = classifier(images)
        found, labels = way.walk(images, [site]).logits(site, replace, pairs), expected.argmax(dim=1)
        move = float((found - expected).abs().max()) / max(float(expected.abs().max()), 1e-12)
        if not move <= TOLERANCES[classifier.dtype]:
            raise UntraceableError(
                f"as a graph the network says something else: logits differ by {move:.1g} of the largest"
            )
        with intervening(classifier, site, [0], replace):
            _, slopes = loss_gradient(classifier, images, labels)
        _, own = loss_gradient(way.network(site, Intervention(pairs, replace)), images, labels)
        moves = (own - slopes).flatten(1).norm(dim=1) / slopes.flatten(1).norm(dim=1).clamp(min=1e-12)
        if not float(moves.median()) <= GRADIENT_TOLERANCES[classifier.dtype]:
            raise UntraceableError(
                f"as a graph the network has other gradients: they differ by {float(moves.median()):.1g}"
            )
