"""The exact sweep against the reference: on drawn networks, on the zoo, and what it may not do."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction

import pytest
import torch
import torchvision
from drawn import classifiers
from hypothesis import HealthCheck, Phase, given, settings

import fragile_neurons as fn
from fragile_neurons.attacks.fgsm import fgsm
from fragile_neurons.interventions import drop, patch
from fragile_neurons.losses import margins
from fragile_neurons.models.architectures import resnet20
from fragile_neurons.neurons import Layer, executed_layers
from fragile_neurons.sweeps.exact import Exact
from fragile_neurons.sweeps.pairs import Pairs
from fragile_neurons.sweeps.reference import Reference

IMAGES, CHANNELS = 8, 8
TOLERANCE = 1e-4  # of the largest logit


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """These networks are tiny: two threads would mostly wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def swept_layers(classifier: fn.Classifier, images: torch.Tensor) -> list[Layer]:
    """The first, the middle and the last layer that can be swept."""
    layers = [layer for layer in executed_layers(classifier, images) if not layer.is_output]
    return [layers[place] for place in sorted({0, len(layers) // 2, len(layers) - 1})]


def assert_same(found: torch.Tensor, expected: torch.Tensor, labels: torch.Tensor, what: str) -> None:
    """Equal logits, and equal predictions but for ties."""
    scale = max(float(expected.abs().max()), 1e-6)
    assert float((found - expected).abs().max()) <= TOLERANCE * scale, what
    tied = margins(expected, expected.argmax(-1)).abs() <= TOLERANCE * scale
    assert ((found.argmax(-1) == expected.argmax(-1)) | tied).all(), what


def assert_exact(classifier: fn.Classifier, images: torch.Tensor, seed: int = 0) -> None:
    """Drops, means and patches at every site of three layers, clean and on the same FGSM images."""
    generator = torch.Generator().manual_seed(seed)
    labels = classifier(images).argmax(-1).detach()
    layers = swept_layers(classifier, images)
    attacked = fgsm(classifier, images, labels, [Fraction(1, 20)])[0]
    names = {"conv", "norm", "act"}
    for kind in ("conv", "norm", "act"):
        chosen = [layer for layer in layers if kind in names & {site.name for site in layer.sites}]
        if not chosen:
            continue
        sites = [layer.site(kind) for layer in chosen]
        way, reference = Exact(classifier, images[:4]), Reference(classifier)
        for batch in (images, attacked):
            walk, plain = way.walk(batch, sites), reference.walk(batch, sites)
            for layer, site in zip(chosen, sites, strict=True):
                some = torch.randperm(layer.channels, generator=generator)[:CHANNELS].sort().values.tolist()
                pairs = Pairs.of(some, torch.arange(IMAGES))
                values = torch.rand(layer.channels, generator=generator) - 0.5
                replacements = {"zero": drop(0.0), "values": drop(values.tolist())}
                if site.outputs == 1:
                    own, theirs = walk.maps(site), plain.maps(site)
                    assert torch.allclose(own.reshape(theirs.shape), theirs, atol=1e-4)
                    replacements["patch"] = patch(theirs.flip(0))
                for name, replace in replacements.items():
                    what = f"{layer.name} {kind} {name}"
                    expected = plain.logits(site, replace, pairs)
                    assert_same(walk.logits(site, replace, pairs), expected, labels, what)


@settings(
    max_examples=20,
    deadline=None,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
    derandomize=True,
)
@given(classifiers())
def test_drawn_networks_are_swept_exactly(classifier: fn.Classifier) -> None:
    assert_exact(classifier, torch.rand(IMAGES, 2, 6, 6, generator=torch.Generator().manual_seed(1)))


@pytest.mark.slow
@settings(
    max_examples=180,
    deadline=None,
    database=None,
    phases=[Phase.generate],
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
@given(classifiers())
def test_many_drawn_networks_are_swept_exactly(classifier: fn.Classifier) -> None:
    assert_exact(classifier, torch.rand(IMAGES, 2, 6, 6, generator=torch.Generator().manual_seed(2)))


ZOO = (
    "resnet18", "squeezenet1_1", "shufflenet_v2_x1_0", "mobilenet_v3_small", "mobilenet_v2", "densenet121",
    "vgg11_bn", "alexnet", "googlenet", "mnasnet1_0", "efficientnet_b0", "regnet_y_400mf", "convnext_tiny",
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", ZOO)
def test_the_zoo_is_swept_exactly(name: str) -> None:
    torch.manual_seed(0)
    options = {"init_weights": False, "aux_logits": False} if name == "googlenet" else {}
    classifier = fn.Classifier(torchvision.models.get_model(name, num_classes=10, **options)).eval()

    assert_exact(classifier, torch.rand(IMAGES, 3, 64, 64))


def test_resnet20_is_swept_exactly() -> None:
    torch.manual_seed(0)
    assert_exact(fn.Classifier(resnet20()).eval(), torch.rand(IMAGES, 3, 32, 32))
