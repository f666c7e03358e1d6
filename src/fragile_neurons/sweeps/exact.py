"""The fast way: what comes before a neuron once per image, what follows once per pair of both."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fractions import Fraction
from functools import cached_property
from typing import Any

import torch
from torch import fx
from torch.utils._pytree import tree_map_only

from fragile_neurons.classifier import Classifier, Network
from fragile_neurons.foreign import logits_of
from fragile_neurons.interventions import Constant, Replacement, keep
from fragile_neurons.losses import margin_direction
from fragile_neurons.memory import keep_freed_memory
from fragile_neurons.neurons import Site
from fragile_neurons.sweeps.baseline import measure_baseline
from fragile_neurons.sweeps.channelwise import Place
from fragile_neurons.sweeps.graph import evaluate, trace
from fragile_neurons.sweeps.mixing import Mixing
from fragile_neurons.sweeps.pairs import Pairs, in_a_row, tail_rows, whole_runs
from fragile_neurons.sweeps.quick import HalvedMaps
from fragile_neurons.sweeps.split import Intervention, Split, Unsplit, leave_whole, record, split
from fragile_neurons.sweeps.way import AttackedPairs

Front = tuple[dict[fx.Node, torch.Tensor], dict[fx.Node, torch.Tensor]]


class Exact:
    """Sweeps of one network as a graph, split at each site when that is first met.

    images: a few, for the shapes. Raises UntraceableError, at once or at a site, where the graph
    cannot be had.
    """

    def __init__(self, classifier: Classifier, images: torch.Tensor) -> None:
        keep_freed_memory()
        self.classifier = classifier
        self.traced = trace(classifier.module, classifier.normalise(images))
        self._splits: dict[Site, Split] = {}
        self._whole: dict[Site, Unsplit] = {}

    def split(self, site: Site) -> Split:
        """The graph split at a site."""
        if site not in self._splits:
            with self.classifier.computing():
                self._splits[site] = split(self.traced, site)
        return self._splits[site]

    def walk(self, images: torch.Tensor, sites: Sequence[Site]) -> ExactWalk:
        return ExactWalk(self, images, sites)

    def whole(self, site: Site) -> Unsplit:
        """The graph not split at a site."""
        if site not in self._whole:
            with self.classifier.computing():
                self._whole[site] = leave_whole(self.traced, site)
        return self._whole[site]

    @cached_property
    def recorded(self) -> fx.GraphModule:
        """From inputs to all values of the graph, by name."""
        with self.classifier.computing():
            return record(self.traced)

    def network(self, site: Site, intervention: Intervention) -> Network:
        """From images, one for each pair, to logits with the channel replaced; differentiable."""
        return Intervened(self.classifier, self.whole(site), intervention)


class Intervened:
    """What `Exact.network` makes."""

    def __init__(self, classifier: Classifier, whole: Unsplit, intervention: Intervention) -> None:
        self.name, self._classifier = classifier.name, classifier
        self._whole, self._intervention = whole, intervention

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        # a copy: the graph may overwrite it, and of one channel it must be said which way it lies
        inputs = self._classifier.normalise(images).clone(memory_format=torch.channels_last)
        with self._classifier.computing():
            return logits_of(self._whole(inputs, self._intervention)).float()


class ExactWalk:
    """One batch; `values` holds what the sites that are left need of the whole network's pass."""

    def __init__(self, way: Exact, images: torch.Tensor, sites: Sequence[Site]) -> None:
        self._way, self._images, self._sites = way, images, list(sites)
        self._inputs = way.classifier.normalise(images).contiguous(memory_format=torch.channels_last)
        self._values: dict[str, Any] = {}
        self._done: set[str] = set()
        self._slopes: dict[str, torch.Tensor] | None = None
        self._kept: tuple[Site, torch.Tensor] | None = None
        self._fronted: tuple[Split, Replacement, Front] | None = None

    def logits(self, site: Site, replace: Replacement, pairs: Pairs) -> torch.Tensor:
        with torch.no_grad(), self._way.classifier.computing():
            moved = self._moved(site, replace, pairs)
            if (~moved).sum() < len(self._images):  # few: they do not pay for a pass over all images
                return self._pass(site, replace, pairs)
            found = self.kept(site)[pairs.images]
            if moved.any():
                found[moved] = self._pass(site, replace, Pairs(pairs.channels[moved], pairs.images[moved]))
            return found

    def kept(self, site: Site) -> torch.Tensor:
        if self._kept is None or self._kept[0] != site:
            everyone = torch.arange(len(self._images), device=self._images.device)
            with torch.no_grad(), self._way.classifier.computing():
                self._kept = site, self._pass(site, keep, Pairs.of([0], everyone))
        return self._kept[1]

    def _moved(self, site: Site, replace: Replacement, pairs: Pairs) -> torch.Tensor:
        """(pairs,) whether anything changes that comes out of the front: if not, no logit will."""
        one = self._advance(site)
        _, moves = self._front(one, replace)
        moved = torch.full_like(pairs.images, one.again, dtype=torch.bool)
        for node, move in moves.items():
            moved |= _by_channel(one.places[node], move.abs())[pairs.images, pairs.channels] != 0
        return moved

    def _pass(self, site: Site, replace: Replacement, pairs: Pairs) -> torch.Tensor:
        """What `logits` answers, a row of the rest for each pair."""
        one = self._advance(site)
        after, moves = self._front(one, replace)
        mixing = {}
        for node, layer in one.mixing.items():
            (source,) = node.all_input_nodes
            if source in moves:  # else its output is the network's own
                output, halved = self._values[node.name], node in one.halved
                mixing[node] = Mixing(layer, one.places[source], moves[source], output, halved=halved)
        found = []
        for own, part in self._chunks(pairs, one.rows, replace):
            inputs: list[object] = []
            for node in one.boundary:
                if node in mixing:
                    inputs.append(mixing[node].rows(own, len(part)))
                elif node in one.places:
                    before = self._values[one.name(node)]
                    inputs.append(_with_channels(one.places[node], before, after[node], part))
                elif node.name in self._values:
                    value = _gather(self._values[node.name], part.images)
                    inputs.append(HalvedMaps()(value) if node in one.halved else value)
                else:
                    inputs.append(Intervention(part, replace))
            found.append(logits_of(one.rest(*inputs)).float()[: len(own)].clone())
        return torch.cat(found)

    def _chunks(self, pairs: Pairs, rows: int, replace: Replacement) -> Iterator[tuple[Pairs, Pairs]]:
        """About so many pairs at a time, and these with the last again where others had more."""
        images = len(self._images)
        rows = images if replace is keep else whole_runs(rows, images)
        for start in range(0, len(pairs), rows):
            own = pairs.chunk(start, rows)
            # of a sample only: else a neuron would be rounded otherwise alone than among others
            yield own, own.padded(rows if self._slopes is None else tail_rows(len(own), rows))

    def attack(
        self,
        site: Site,
        replace: Replacement,
        pairs: Pairs,
        labels: torch.Tensor,
        epsilons: Sequence[Fraction],
    ) -> AttackedPairs:
        found = []
        for own, part in self._chunks(pairs, self._way.whole(site).rows, replace):
            network = self._way.network(site, Intervention(part, replace))
            anew = measure_baseline(network, self._images[part.images], labels[part.images], epsilons)
            some = slice(len(own))
            found.append(AttackedPairs(anew.zero_gradient[some], anew.adversarial_logits[:, some]))
        return AttackedPairs.join(found)

    def first_order(
        self, site: Site, channels: Sequence[int], replace: Replacement, labels: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """To first order where the front ends: norms and activations on the way there are exact."""
        if self._slopes is None:
            self._sites = self._sites[self._sites.index(site) :]
            self._slopes = self._gradients(labels)
        with torch.no_grad(), self._way.classifier.computing():
            one = self._advance(site)
            _, moves = self._front(one, replace)
        changes, squares = [], []
        for node, move in moves.items():
            place, move_ = one.places[node], move.float()
            changes.append(_by_channel(place, move_ * self._slopes[one.name(node)]))
            squares.append(_by_channel(place, move_.square()))
        sizes = torch.stack(squares).sum(dim=0).sqrt()
        return torch.stack(changes).sum(dim=0)[:, list(channels)].T, sizes[:, list(channels)].T

    def _gradients(self, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        """Of each image's margin, at the ends of the fronts of all sites that are left, by name."""
        splits = [self._way.split(site) for site in self._sites]
        names = sorted({one.name(node) for one in splits for node in one.ends})
        with torch.enable_grad(), self._way.classifier.computing():
            # a copy: the graph may overwrite it
            values = self._way.recorded(self._inputs.detach().requires_grad_(True).clone())
            logits = logits_of(values["output"]).float()
            found = torch.autograd.grad(
                logits,
                [values[name] for name in names],
                -margin_direction(logits.detach(), labels),
                allow_unused=True,
            )
        # the pass that this took need not be made again
        self._values = tree_map_only(torch.Tensor, torch.Tensor.detach, values)
        self._done = set(values)
        self._forget()
        return {
            name: torch.zeros_like(values[name]) if slope is None else slope.float()
            for name, slope in zip(names, found, strict=True)
        }

    def maps(self, site: Site) -> torch.Tensor:
        with torch.no_grad(), self._way.classifier.computing():
            one = self._advance(site)
        (start,) = one.starts.values()
        maps: torch.Tensor = self._values[start]
        return maps.movedim(site.axis, 1)

    def _advance(self, site: Site) -> Split:
        """Go on to a site, and forget what no site from here on needs."""
        one = self._way.split(site)
        if site != self._sites[0] or not self._done:
            self._sites = self._sites[self._sites.index(site) :]
            fresh = [node for node in one.needed if node.name not in self._done]
            self._values = evaluate(self._way.traced.graph, fresh, self._inputs, self._values)
            self._done |= {node.name for node in fresh}
            self._forget()
        return one

    def _forget(self) -> None:
        """Keep the values alone that the sites that are left need."""
        kept: set[str] = set()
        for one in map(self._way.split, self._sites):
            kept |= one.wanted
            for node in one.needed:
                if node.name not in self._done:
                    kept |= {source.name for source in node.all_input_nodes}
        self._values = {name: value for name, value in self._values.items() if name in kept}

    def _front(self, one: Split, replace: Replacement) -> Front:
        """The ends of the front with every channel replaced, and how they change; those asked last are kept.

        The former have one row where a constant replaces channels and nothing else depends on the image.
        """
        if self._fronted is None or self._fronted[:2] != (one, replace):
            values = dict(self._values)
            if replace is not keep:
                for node, name in one.starts.items():
                    rows = values[name][:1] if isinstance(replace, Constant) else values[name]
                    values[name] = _all_replaced(rows, one.places[node].axis, replace)
                values = evaluate(self._way.traced.graph, one.front, self._inputs, values)
            after = {node: values[one.name(node)] for node in one.ends}
            moving = () if replace is keep else one.ends
            moves = {node: after[node] - self._values[one.name(node)] for node in moving}
            self._fronted = one, replace, (after, moves)
        return self._fronted[2]


def _by_channel(place: Place, values: torch.Tensor) -> torch.Tensor:
    """(images, channels) sums of values over all that belongs to a channel."""
    return torch.unflatten(values.movedim(place.axis, 1), 1, (-1, place.width)).flatten(2).sum(dim=2)


def _all_replaced(output: torch.Tensor, axis: int, replace: Replacement) -> torch.Tensor:
    maps = output.movedim(axis, 1)
    images = torch.arange(len(maps), device=maps.device).unsqueeze(1).expand(maps.shape[:2])
    channels = torch.arange(maps.shape[1], device=maps.device).expand(maps.shape[:2])
    return replace(maps, channels, images).movedim(1, axis)


def _with_channels(place: Place, before: torch.Tensor, after: torch.Tensor, pairs: Pairs) -> torch.Tensor:
    """A row for each pair: the image as it is, its channel as it is after the replacement."""
    found = _gather(before, pairs.images)
    rows = torch.arange(len(found), device=found.device)
    channels, changed = (
        torch.unflatten(side.movedim(place.axis, 1), 1, (-1, place.width)) for side in (found, after)
    )
    images = pairs.images if len(changed) > 1 else torch.zeros_like(pairs.images)
    channels[rows, pairs.channels] = changed[images, pairs.channels]
    return found


def _gather(value: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    """Copied rows of a tensor, in its memory format."""
    rows = in_a_row(images)
    if isinstance(rows, slice):
        return value[rows].clone(memory_format=torch.preserve_format)
    if value.ndim != 4:
        return value.index_select(0, rows)
    return value.movedim(1, -1).index_select(0, rows).movedim(-1, 1)
