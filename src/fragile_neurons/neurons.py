"""Neurons: the output channels of a network's layers, and the sites where they can be met."""

from __future__ import annotations

import fnmatch
from collections import Counter
from dataclasses import dataclass

import numpy as np
import torch
from torch import fx, nn

from fragile_neurons.classifier import Classifier, evaluating
from fragile_neurons.errors import InputError
from fragile_neurons.seeds import numpy_generator

# what acts on each channel alone; an fx chain of these after a layer leads to its sites
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.InstanceNorm2d)
ACTIVATIONS = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish,
    nn.Sigmoid, nn.Tanh, nn.Softplus, nn.Hardswish, nn.Hardsigmoid, nn.Hardtanh,
)  # fmt: skip
TRANSPARENT = (nn.Identity, nn.Dropout, nn.Dropout2d)


@dataclass(frozen=True)
class Site:
    """Where a neuron is met: the output of a module's n-th call in a pass; of every call if None.

    axis: the channel axis of that output. outputs: how many such outputs a pass has.
    """

    layer: str
    name: str
    module: str
    call: int | None
    axis: int
    outputs: int = 1


@dataclass(frozen=True)
class Layer:
    """A convolution or linear layer that a forward pass executes.

    map_shape: what one channel puts out for one image, () for a single number.
    calls: how often one pass executes it. is_output: whether it yields the logits. per_image: whether
    its first axis is that of the images.
    """

    name: str
    kind: str
    channels: int
    map_shape: tuple[int, ...]
    weight_shape: tuple[int, ...]
    calls: int
    is_output: bool
    sites: tuple[Site, ...]
    per_image: bool = True

    def site(self, name: str) -> Site:
        """The site of this name; an InputError that lists those that exist otherwise."""
        for site in self.sites:
            if site.name == name:
                return site
        raise InputError(
            f"the layer {self.name} has no site {name}",
            given=name,
            allowed=", ".join(site.name for site in self.sites),
            fix="choose one of them with --site; norm and act exist where a module of its own follows alone",
        )


@dataclass(frozen=True)
class Neuron:
    """An output channel of a layer, written layer:channel."""

    layer: str
    channel: int

    def __str__(self) -> str:
        return f"{self.layer}:{self.channel}"


def executed_layers(classifier: Classifier, images: torch.Tensor) -> tuple[Layer, ...]:
    """Every Conv2d and Linear that a pass over these images executes, in order of first execution."""
    outputs: dict[str, tuple[int, ...]] = {}
    calls: Counter[str] = Counter()
    handles = []
    for name, module in classifier.module.named_modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):

            def hook(_: nn.Module, __: object, output: torch.Tensor, name: str = name) -> None:
                outputs.setdefault(name, tuple(output.shape))
                calls[name] += 1

            handles.append(module.register_forward_hook(hook))
    try:
        with evaluating(classifier), torch.no_grad():
            classes = classifier(images).shape[1]
    finally:
        for handle in handles:
            handle.remove()
    with evaluating(classifier):
        chains = _following_modules(classifier.module)
    last = next(reversed(outputs), None)
    layers = []
    for name, shape in outputs.items():
        module = classifier.module.get_submodule(name)
        assert isinstance(module, (nn.Conv2d, nn.Linear))
        axis = 1 if isinstance(module, nn.Conv2d) else len(shape) - 1
        channels = shape[axis]
        sites = [Site(name, "conv", name, None, axis, calls[name])]
        if calls[name] == 1:
            sites += [Site(name, kind, target, call, axis) for kind, target, call in chains.get(name, ())]
        layers.append(
            Layer(
                name=name,
                kind="Conv2d" if isinstance(module, nn.Conv2d) else "Linear",
                channels=channels,
                map_shape=tuple(size for position, size in enumerate(shape) if position not in (0, axis)),
                weight_shape=tuple(module.weight.shape),
                calls=calls[name],
                is_output=name == last and channels == classes,
                per_image=shape[0] == len(images),
                sites=tuple(sites),
            )
        )
    return tuple(layers)


def select_layers(classifier: Classifier, layers: tuple[Layer, ...], pattern: str) -> tuple[Layer, ...]:
    """`first`: the first Conv2d, else Linear; `all`: every Conv2d, else Linear; or a glob of names."""
    targets = [layer for layer in layers if not layer.is_output]
    convolutions = [layer for layer in targets if layer.kind == "Conv2d"] or targets
    if pattern in ("first", "all"):
        chosen = convolutions[:1] if pattern == "first" else convolutions
    else:
        chosen = [layer for layer in targets if fnmatch.fnmatchcase(layer.name, pattern)]
    if not chosen:
        raise InputError(
            _why_no_layer(classifier, layers, pattern),
            given=pattern,
            allowed="first, all, or: " + (", ".join(layer.name for layer in targets) or "(no layer at all)"),
            fix="choose one of them, or a pattern such as 'layer1.*'; see: fragile-neurons layers",
        )
    for layer in chosen:
        if layer.channels < 2:
            raise InputError(
                f"the layer {layer.name} has a single channel",
                given=f"{layer.name}: {layer.kind} with 1 channel",
                allowed="at least 2 channels: with one there is nothing to compare",
                fix="choose another layer",
            )
        if not layer.per_image:
            raise InputError(
                f"the layer {layer.name} does not keep the images apart",
                given=f"{layer.name}: its outputs are not one per image",
                allowed="layers whose first axis is that of the images",
                fix="choose another layer",
            )
    return tuple(chosen)


def select_neurons(layers: tuple[Layer, ...], text: str, seed: int) -> tuple[Neuron, ...]:
    """`all`; a number: that many of each layer, drawn by the seed; or names such as conv1:3,conv1:17."""
    if text == "all":
        return tuple(Neuron(layer.name, channel) for layer in layers for channel in range(layer.channels))
    if text.isdecimal() and int(text) >= 1:
        return tuple(
            Neuron(layer.name, int(channel))
            for layer in layers
            for channel in np.sort(
                numpy_generator(seed, f"neurons of {layer.name}").permutation(layer.channels)[: int(text)]
            )
        )
    known = {layer.name: layer.channels for layer in layers}
    chosen = set()
    for part in text.split(","):
        name, _, channel = part.strip().rpartition(":")
        if name not in known or not channel.isdecimal() or int(channel) >= known[name]:
            raise InputError(
                "there is no such neuron",
                given=part.strip(),
                allowed=", ".join(f"{key}:0 to {key}:{count - 1}" for key, count in known.items()),
                fix="write all, a number, or names such as conv1:3,conv1:17, of layers chosen with --layer",
            )
        chosen.add(Neuron(name, int(channel)))
    order = list(known)
    return tuple(sorted(chosen, key=lambda neuron: (order.index(neuron.layer), neuron.channel)))


def _why_no_layer(classifier: Classifier, layers: tuple[Layer, ...], pattern: str) -> str:
    if pattern in ("first", "all"):
        return "no Conv2d or Linear module is executed besides the one that yields the logits"
    if any(layer.is_output and fnmatch.fnmatchcase(layer.name, pattern) for layer in layers):
        return "the layer yields the logits, so it is never a target"
    if any(fnmatch.fnmatchcase(name, pattern) for name, _ in classifier.module.named_modules() if name):
        return "no Conv2d or Linear module of this name is executed in a forward pass"
    return "there is no such layer"


def _following_modules(module: nn.Module) -> dict[str, list[tuple[str, str, int]]]:
    """Layer name -> (site, module, call) of the last norm and the last activation in its chain."""
    try:
        graph = fx.symbolic_trace(module).graph
    except Exception:  # fx gives up in many ways on control flow; only the layers' own outputs are left
        return {}
    calls: Counter[str] = Counter()
    call_of: dict[fx.Node, int] = {}
    for node in graph.nodes:
        if node.op == "call_module":
            call_of[node] = calls[str(node.target)]
            calls[str(node.target)] += 1
    chains = {}
    for node in call_of:
        if isinstance(module.get_submodule(str(node.target)), (nn.Conv2d, nn.Linear)):
            found: dict[str, tuple[str, str, int]] = {}
            follower = _only_user(node)
            while follower in call_of:
                kind = module.get_submodule(str(follower.target))
                if isinstance(kind, NORMS) and "act" not in found:
                    found["norm"] = ("norm", str(follower.target), call_of[follower])
                elif isinstance(kind, ACTIVATIONS):
                    found["act"] = ("act", str(follower.target), call_of[follower])
                elif not isinstance(kind, TRANSPARENT):
                    break
                follower = _only_user(follower)
            chains[str(node.target)] = list(found.values())
    return chains


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None
