"""Changing and reading single channels during a pass; a network is as before when the block ends."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

import torch
from torch import nn

from fragile_neurons.classifier import Classifier
from fragile_neurons.neurons import Site

ChannelMap = Callable[[torch.Tensor], torch.Tensor]


@contextmanager
def intervening(classifier: Classifier, site: Site, channel: int, replace: ChannelMap) -> Iterator[None]:
    """Inside the block the channel's map (n, *map) is `replace(map)` instead; gradients pass."""

    def change(_: Site, output: torch.Tensor) -> torch.Tensor:
        # autograd may still need the output as it was; without it a copy would cost as much as a layer
        changed = output.clone() if output.requires_grad else output
        changed.select(site.axis, channel).copy_(replace(output.select(site.axis, channel)))
        return changed

    with _hooked(classifier, [site], change):
        yield


def drop(value: float) -> ChannelMap:
    """Nodal dropout: the map becomes a constant, 0 or the channel's mean over the data."""
    return lambda before: torch.full_like(before, value)


class _AllSeenError(Exception):
    """Raised inside a pass when everything asked for has been seen."""


def record_maps(classifier: Classifier, sites: Sequence[Site], images: torch.Tensor) -> list[torch.Tensor]:
    """The maps at each site, (n, channels, values), from a pass that stops at the last of them.

    Where a site has several outputs, as in a shared module, they lie side by side in `values`.
    """
    seen: dict[Site, list[torch.Tensor]] = defaultdict(list)

    def keep(site: Site, output: torch.Tensor) -> None:
        maps = output.movedim(site.axis, 1).flatten(2) if output.ndim > 2 else output.unsqueeze(2)
        # a copy: the layer after this one may work in place
        seen[site].append(maps.detach().clone())
        if all(len(seen[one]) == one.outputs for one in sites):
            raise _AllSeenError

    with torch.no_grad(), _hooked(classifier, sites, keep), suppress(_AllSeenError):
        classifier(images)
    return [torch.cat(seen[site], dim=2) for site in sites]


@contextmanager
def _hooked(
    classifier: Classifier, sites: Sequence[Site], act: Callable[[Site, torch.Tensor], torch.Tensor | None]
) -> Iterator[None]:
    """Call `act` on every output at these sites; what it returns, if anything, takes its place."""
    counts: Counter[Site] = Counter()
    handles = []

    def start(*_: object) -> None:
        counts.clear()

    for site in sites:

        def hook(_: nn.Module, __: object, output: torch.Tensor, site: Site = site) -> torch.Tensor | None:
            call = counts[site]
            counts[site] += 1
            return act(site, output) if site.call in (None, call) else None

        handles.append(classifier.module.get_submodule(site.module).register_forward_hook(hook))
    handles.append(classifier.register_forward_pre_hook(start))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
