"""Changing and reading single channels during a pass; a network is as before when the block ends."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import torch
from torch import nn

from fragile_neurons.classifier import Classifier
from fragile_neurons.neurons import Site

Replacement = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""What takes the place of a channel's map: from maps (*rows, *map), the channel and the image of each,
int64 (*rows), to maps of the same shape."""


@dataclass(frozen=True, eq=False)
class Constant:
    """A replacement that is the same for every image: one number for all channels, or one for each."""

    values: torch.Tensor

    def __call__(self, maps: torch.Tensor, channels: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
        here = self.values.to(maps)
        of_rows = here[channels] if here.ndim else here.expand(channels.shape)
        return of_rows.reshape(*channels.shape, *[1] * (maps.ndim - channels.ndim)).expand_as(maps)


def drop(values: float | Sequence[float]) -> Replacement:
    """Nodal dropout: the map becomes a constant, one for all channels or one for each."""
    return Constant(torch.as_tensor(values, dtype=torch.float32))


def patch(others: torch.Tensor) -> Replacement:
    """The map becomes that of another pass over the same images: others (images, channels, ...)."""
    return lambda maps, channels, images: others[images, channels].reshape(maps.shape)


def keep(maps: torch.Tensor, channels: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    """The map stays: a replacement that changes nothing."""
    return maps


@contextmanager
def intervening(
    classifier: Classifier, site: Site, channels: Sequence[int], replace: Replacement
) -> Iterator[None]:
    """Inside the block the channels' maps are replaced on every image of a pass; gradients pass."""

    def change(_: Site, output: torch.Tensor) -> torch.Tensor:
        # autograd may still need the output as it was; without it a copy would cost as much as a layer
        changed = output.clone() if output.requires_grad else output
        images = torch.arange(len(output), device=output.device)
        for channel in channels:
            maps = output.select(site.axis, channel)
            new = replace(maps, torch.full_like(images, channel), images)
            changed.select(site.axis, channel).copy_(new)
        return changed

    with _hooked(classifier, [site], change):
        yield


@contextmanager
def scaling(
    classifier: Classifier, changes: Mapping[Site, tuple[torch.Tensor, torch.Tensor]]
) -> Iterator[None]:
    """Inside the block the maps at each site are multiplied by factors and get shifts, (channels,) both.

    Gradients pass to the images, and to factors and shifts.
    """

    def change(site: Site, output: torch.Tensor) -> torch.Tensor:
        shape = [1] * output.ndim
        shape[site.axis] = -1
        factors, shifts = (values.to(output).view(shape) for values in changes[site])
        return torch.addcmul(shifts, output, factors)

    with _hooked(classifier, list(changes), change):
        yield


def put(
    output: torch.Tensor, axis: int, channels: torch.Tensor, images: torch.Tensor, replace: Replacement
) -> torch.Tensor:
    """A site's output in which each row has its own channel's map replaced."""
    rows = torch.arange(len(output), device=output.device)
    here = torch.zeros(output.shape[0], output.shape[axis], dtype=torch.bool, device=output.device)
    here[rows, channels] = True
    values = replace(output.movedim(axis, 1)[rows, channels], channels, images).to(output.dtype)
    shape = [len(output), *[1] * (output.ndim - 1)]
    shape[axis] = -1
    return torch.where(here.view(shape), values.unsqueeze(1).movedim(1, axis), output)


class _AllSeenError(Exception):
    """Raised inside a pass when everything asked for has been seen."""


def record_maps(classifier: Classifier, sites: Sequence[Site], images: torch.Tensor) -> list[torch.Tensor]:
    """The maps at each site, (n, channels, values), from a pass that stops at the last of them.

    Where a site has several outputs, as in a shared module, they lie side by side in `values`.
    """
    seen: dict[Site, list[torch.Tensor]] = defaultdict(list)

    def keep(site: Site, output: torch.Tensor) -> None:
        # a copy: the layer after this one may work in place
        seen[site].append(_maps(site, output).detach().clone())
        if all(len(seen[one]) == one.outputs for one in sites):
            raise _AllSeenError

    with torch.no_grad(), _hooked(classifier, sites, keep), suppress(_AllSeenError):
        classifier(images)
    return [torch.cat(seen[site], dim=2) for site in sites]


def record_gradients(
    classifier: Classifier,
    sites: Sequence[Site],
    images: torch.Tensor,
    direction: Callable[[torch.Tensor], torch.Tensor],
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """For each site the maps, as record_maps has them, and the gradient there.

    direction: from the logits to the gradient at them. It is zero at a site that they do not depend on.
    """
    seen: dict[Site, list[torch.Tensor]] = defaultdict(list)

    def tap(site: Site, output: torch.Tensor) -> torch.Tensor:
        seen[site].append(output)
        return output.clone()  # the layer after this one may work in place

    with torch.enable_grad(), _hooked(classifier, sites, tap):
        logits = classifier(images.detach().requires_grad_(True))
    outputs = [output for site in sites for output in seen[site]]
    found = iter(torch.autograd.grad(logits, outputs, direction(logits.detach()), allow_unused=True))
    recorded = []
    for site in sites:
        maps = [_maps(site, output.detach()) for output in seen[site]]
        gradients = [torch.zeros_like(one) if (g := next(found)) is None else _maps(site, g) for one in maps]
        recorded.append((torch.cat(maps, dim=2), torch.cat(gradients, dim=2)))
    return recorded


def record_reach(
    classifier: Classifier, site: Site, images: torch.Tensor, position: tuple[int, int]
) -> torch.Tensor:
    """(height, width) bool: the pixels of any of these images that move the maps at this position."""
    seen: list[torch.Tensor] = []
    given = images.detach().requires_grad_(True)

    def tap(_: Site, output: torch.Tensor) -> torch.Tensor:
        seen.append(output)
        return output.clone()  # the layer after this one may work in place

    with torch.enable_grad(), _hooked(classifier, [site], tap):
        classifier(given)
    row, column = position
    (gradient,) = torch.autograd.grad(seen[0][:, :, row, column].sum(), given)
    return (gradient != 0).any(dim=1).any(dim=0)


def _maps(site: Site, output: torch.Tensor) -> torch.Tensor:
    """(n, channels, values) float32 of an output at a site."""
    return (output.movedim(site.axis, 1).flatten(2) if output.ndim > 2 else output.unsqueeze(2)).float()


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
