"""Gains written into plain weights: the same network, the same keys, no hooks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.utils import parametrize

from fragile_neurons.classifier import Classifier, evaluating
from fragile_neurons.errors import InputError
from fragile_neurons.interventions import scaling
from fragile_neurons.neurons import NORMS, Site

TOLERANCE = 1e-4  # of the largest logit

Changes = Mapping[Site, tuple[torch.Tensor, torch.Tensor]]
"""Factors and shifts of the channels, (channels,) both, at each site."""


def fold(classifier: Classifier, changes: Changes, images: torch.Tensor) -> Classifier:
    """A copy that says what the classifier says while its maps are scaled, by weights of the same keys.

    A layer's own weight and bias take the factors and shifts, at the site `norm` the normalisation's scale
    and shift do. Raises InputError that names the first layer where that cannot be exact, by what it is, or
    because the logits of these images differ by more than 1e-4 of the largest; the last, if only all of them
    together do.
    """
    for site, (_, shifts) in changes.items():
        refuse_unfoldable(classifier, site, shifted=bool(shifts.any()))
    folded = _folded(classifier, changes)
    if _difference(classifier, folded, changes, images) > TOLERANCE:
        for site, change in changes.items():
            alone = {site: change}
            _refuse(site, _difference(classifier, _folded(classifier, alone), alone, images) > TOLERANCE)
        _refuse(site, True)
    return folded


@contextmanager
def holding(classifier: Classifier, changes: Changes) -> Iterator[None]:
    """Inside the block the network's weights hold factors and shifts; gradients pass to both.

    The same as `scaling`, by the weights instead of the maps, and faster: a batch norm has a scale anyway.
    """
    held = [(classifier.module.get_submodule(site.module), change) for site, change in changes.items()]
    before = [dict(module._parameters) for module, _ in held]
    try:
        for module, (factors, shifts) in held:
            weight, bias = module.weight, module.bias
            assert isinstance(weight, torch.Tensor)
            module._parameters["weight"] = weight * _along(factors, weight)  # type: ignore[assignment]
            if isinstance(bias, torch.Tensor):
                module._parameters["bias"] = bias * factors.to(bias) + shifts.to(bias)  # type: ignore[assignment]
        yield
    finally:
        for (module, _), parameters in zip(held, before, strict=True):
            module._parameters.update(parameters)


def _along(factors: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Factors of a weight's first axis, (channels, 1, ...)."""
    return factors.to(weight).view(-1, *[1] * (weight.ndim - 1))


def refuse_unfoldable(classifier: Classifier, site: Site, *, shifted: bool = False) -> None:
    """Raise an InputError, with the layer's name, where a site's weights cannot hold gains or a shift."""
    module = classifier.module.get_submodule(site.module)
    weight, uses = module._parameters.get("weight"), Counter[int]()
    for one in classifier.module.modules():
        uses.update(id(parameter) for parameter in one._parameters.values() if parameter is not None)
    problem = ""
    if site.name not in ("conv", "norm"):
        problem = f"gains at the site {site.name} are no weights"
    elif parametrize.is_parametrized(module) or "weight" not in module._parameters:
        problem = "its weight is computed from others, as weight_norm and spectral_norm do"
    elif site.name == "norm" and not isinstance(module, NORMS):
        problem = f"{site.module} is a {type(module).__name__}"
    elif type(module).forward not in (nn.Conv2d.forward, nn.Linear.forward, *(one.forward for one in NORMS)):
        problem = f"{site.module} is a {type(module).__name__} with a forward pass of its own"
    elif weight is None:
        problem = f"{site.module} has no scale (affine=False)"
    elif any(uses[id(one)] > 1 for one in module._parameters.values() if one is not None):
        problem = f"{site.module} shares its weights with another module"
    elif shifted and module._parameters.get("bias") is None:
        problem = f"{site.module} has no bias to hold a shift"
    if problem:
        raise InputError(
            f"gains cannot be written into the weights of {site.layer}",
            given=problem,
            allowed="plain Conv2d and Linear layers, and batch norms with a scale, of weights of their own",
            fix="choose other layers with --layer, or the other of --site conv and --site norm",
        )


def _folded(classifier: Classifier, changes: Changes) -> Classifier:
    folded = classifier.duplicate()
    with torch.no_grad():
        for site, (factors, shifts) in changes.items():
            module = folded.module.get_submodule(site.module)
            weight, bias = module.weight, module.bias
            assert isinstance(weight, torch.Tensor)
            weight.copy_(weight.double() * _along(factors, weight.double()))
            if isinstance(bias, torch.Tensor):
                bias.copy_(bias.double() * factors.to(bias.device).double() + shifts.to(bias.device).double())
    return folded


def _difference(classifier: Classifier, folded: Classifier, changes: Changes, images: torch.Tensor) -> float:
    """The largest difference of a logit, of the largest logit."""
    with torch.no_grad(), evaluating(classifier), evaluating(folded):
        with scaling(classifier, changes):
            hooked = classifier(images)
        move = (folded(images) - hooked).abs().max() / hooked.abs().max().clamp(min=1e-30)
    return float("inf") if torch.isnan(move) else float(move)


def _refuse(site: Site, differs: bool) -> None:
    if differs:
        raise InputError(
            f"gains cannot be written into the weights of {site.layer}",
            given=f"the network says something else with {site.module} scaled by weights than by its output",
            allowed="a layer whose output is used as its weights give it",
            fix="choose other layers with --layer",
        )
