"""Which way a sweep takes, and why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch

from fragile_neurons.attacks.fgsm import differentiable_logits, loss_gradient
from fragile_neurons.classifier import Classifier, evaluating
from fragile_neurons.errors import InputError, check_choice
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

    Raises InputError where exact was asked for and cannot be had, and of a network that nobody could attack.
    """
    check_choice("sweep", asked, SWEEPS)
    with evaluating(classifier), torch.enable_grad():
        differentiable_logits(classifier, images[:CHECKED_IMAGES].detach().requires_grad_(True))
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
    """The graph, split at all sites; the first, the middle and the last one are held against hooks."""
    with evaluating(classifier):
        some = dict.fromkeys([sites[0], sites[len(sites) // 2], sites[-1]])
        by_hooks = {site: _ask_by_hooks(classifier, site, images) for site in some}
        try:
            way = Exact(classifier, images)
            for site in sites:
                way.split(site)
            for site, expected in by_hooks.items():
                _compare(way, site, images, *expected)
        except (UntraceableError, MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # a forward of somebody else's may do what no graph was cut for
            raise UntraceableError(f"the graph cannot be cut: {describe(error)}") from error
    return way


def _ask_by_hooks(
    classifier: Classifier, site: Site, images: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """With the first channel dropped the logits, and the gradient at the images for the labels they say.

    None where there is no gradient: whoever attacks will say so.
    """
    with intervening(classifier, site, [0], drop(0.0)):
        with torch.no_grad():
            logits = classifier(images)
        try:
            return logits, loss_gradient(classifier, images, logits.argmax(dim=1))[1]
        except InputError:
            return logits, None


def _compare(
    way: Exact, site: Site, images: torch.Tensor, logits: torch.Tensor, slopes: torch.Tensor | None
) -> None:
    """Raise UntraceableError where the graph says otherwise than hooks did."""
    pairs, dtype = Pairs.of([0], torch.arange(len(images), device=images.device)), way.classifier.dtype
    found = way.walk(images, [site]).logits(site, drop(0.0), pairs)
    move = float((found - logits).abs().max()) / max(float(logits.abs().max()), 1e-12)
    if not move <= TOLERANCES[dtype]:
        raise UntraceableError(
            f"as a graph the network says something else: logits differ by {move:.1g} of the largest"
        )
    if slopes is None:
        return
    network = way.network(site, Intervention(pairs, drop(0.0)))
    _, own = loss_gradient(network, images, logits.argmax(dim=1))
    moves = (own - slopes).flatten(1).norm(dim=1) / slopes.flatten(1).norm(dim=1).clamp(min=1e-12)
    if not float(moves.median()) <= GRADIENT_TOLERANCES[dtype]:
        raise UntraceableError(
            f"as a graph the network has other gradients: they differ by {float(moves.median()):.1g} in norm"
        )
