"""What pictures are made of, against second derivations: autograd, convolutions by hand, receptive fields."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import nn

from fragile_neurons import Classifier, ImageData
from fragile_neurons.analysis import examples
from fragile_neurons.analysis.examples import MAPPED_IMAGES, SHOWN_IMAGES, Arrays, observe_examples
from fragile_neurons.analysis.selection import select
from fragile_neurons.interventions import record_reach

EPSILONS = (Fraction(1, 20), Fraction(1, 5))


def observed(
    classifier: Classifier, data: ImageData, layer: str = "first", neurons: str = "all", **options: object
) -> Arrays:
    asked = {"attack": "fgsm", "epsilons": EPSILONS, "batch_size": 16, "seed": 0} | options
    selection = select(classifier, data, layer=layer, neurons=neurons)
    return observe_examples(classifier, data, selection, **asked)  # type: ignore[arg-type]


def test_kernels_are_the_weights(small_classifier: Classifier, small_data: ImageData) -> None:
    found = observed(small_classifier, small_data, neurons="conv1:1,conv1:3")
    weight = small_classifier.module.get_parameter("conv1.weight").detach().numpy()[[1, 3]]
    scale = found["kernel_scale/conv1"].reshape(-1, 1, 1, 1)
    assert np.abs(found["kernels/conv1"]).max(axis=(1, 2, 3)).tolist() == [127, 127]
    np.testing.assert_allclose(found["kernels/conv1"] / 127 * scale, weight, atol=scale.max() / 254 + 1e-7)


def test_each_image_is_shown_at_the_smallest_epsilon_that_fools(
    small_classifier: Classifier, small_data: ImageData
) -> None:
    found = observed(small_classifier, small_data)
    assert sorted(found["index"].tolist()) == list(range(40))  # all there are, each once
    for row, index in enumerate(found["index"]):
        images, labels = small_data[index : index + 1]
        assert np.array_equal(found["images"][row], small_data.images[index])
        leaf = images.clone().requires_grad_()
        logits = small_classifier(leaf)
        loss = nn.functional.cross_entropy(logits.double(), labels)
        (gradient,) = torch.autograd.grad(loss, leaf)
        attacked = [(images + float(one) * gradient.sign()).clamp(0, 1) for one in EPSILONS]
        answers = [small_classifier(one).argmax(1).item() for one in attacked]
        place = next((one for one, answer in enumerate(answers) if answer != labels.item()), -1)
        epsilon = float(EPSILONS[place])
        assert found["epsilon"][row] == epsilon
        change = ((attacked[place] - images) / epsilon * 127)[0]
        np.testing.assert_allclose(found["perturbation"][row], change.numpy(), atol=0.51)
        for side, one in (("clean", images), ("adversarial", attacked[place])):
            values, classes = small_classifier(one).softmax(1)[0].sort(descending=True)
            assert found[f"{side}_top"][row].tolist() == classes.tolist()
            np.testing.assert_allclose(found[f"{side}_probability"][row], values.detach(), atol=1e-5)


def test_outcomes_come_by_turns(small_classifier: Classifier, small_data: ImageData) -> None:
    found = observed(small_classifier, small_data)
    right = found["clean_top"][:, 0] == found["label"]
    fooled = right & (found["adversarial_top"][:, 0] != found["label"])
    rank = np.where(fooled, 0, np.where(right, 1, 2))
    waiting = [list(rank).count(one) for one in range(3)]
    assert sum(count > 0 for count in waiting) >= 2
    expected = []
    while sum(waiting):
        for one in range(3):
            if waiting[one]:
                waiting[one] -= 1
                expected.append(one)
    assert rank.tolist() == expected


def test_maps_are_those_of_a_pass(small_classifier: Classifier, small_data: ImageData) -> None:
    found = observed(small_classifier, small_data, layer="all", neurons="conv1:2,conv2:0,conv2:5")
    assert found["maps/conv1"].shape == (MAPPED_IMAGES, 2, 1, 8, 8)
    assert found["maps/conv2"].shape == (MAPPED_IMAGES, 2, 2, 4, 4)
    seen: list[torch.Tensor] = []
    conv2 = small_classifier.module.get_submodule("conv2")
    handle = conv2.register_forward_hook(lambda *given: seen.append(given[2].detach().clone()))
    rows = found["index"][:MAPPED_IMAGES]
    small_classifier(small_data[rows][0])
    handle.remove()
    scale = found["map_scale/conv2"].reshape(1, -1, 1, 1)
    expected = seen[0][:, [0, 5]].numpy()
    np.testing.assert_allclose(found["maps/conv2"][:, 0] / 127 * scale, expected, atol=scale.max() / 200)
    assert not np.array_equal(found["maps/conv2"][:, 0], found["maps/conv2"][:, 1])


def two_channels(images: int = 30) -> tuple[Classifier, ImageData]:
    """conv1 sees two channels, so that its kernels are no pictures; without padding, 3 x 3."""
    torch.manual_seed(1)
    layers = OrderedDict(
        conv1=nn.Conv2d(2, 3, 3), relu=nn.ReLU(), flatten=nn.Flatten(), fc=nn.Linear(3 * 36, 2)
    )
    generator = np.random.default_rng(1)
    pixels = generator.integers(0, 256, (images, 2, 8, 8), dtype=np.uint8)
    data = ImageData(pixels, np.arange(images) % 2, ("a", "b"), name="two")
    return Classifier(nn.Sequential(layers), mean=[0.5, 0.5], std=[0.2, 0.3]).eval(), data


def test_patches_are_where_the_map_is_highest() -> None:
    classifier, data = two_channels()
    found = observed(classifier, data)
    patches = found["patches/conv1"]
    assert "kernels/conv1" not in found
    assert patches.shape == (3, 4, 2, 3, 3)
    conv = classifier.module.get_submodule("conv1")
    with torch.no_grad():
        mean, std = torch.tensor([0.5, 0.5]).view(2, 1, 1), torch.tensor([0.2, 0.3]).view(2, 1, 1)
        every = conv((data[:][0] - mean) / std)
        alone = conv((torch.from_numpy(patches).flatten(0, 1).float() / 255 - mean) / std).view(3, 4, 3)
    for channel in range(3):
        highest = every[:, channel].flatten(1).amax(dim=1).sort(descending=True).values[:4]
        torch.testing.assert_close(alone[channel, :, channel], highest, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("layers", "reach"),
    [
        ([nn.Conv2d(1, 2, 3, padding=1)], 3),
        ([nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.Conv2d(2, 2, 3, padding=1)], 5),
        (
            [
                nn.Conv2d(1, 2, 3, padding=1),
                nn.ReLU(inplace=True),
                nn.AvgPool2d(2),
                nn.Conv2d(2, 2, 3, padding=1),
            ],
            8,
        ),
        ([nn.Conv2d(1, 2, 3, padding=2, dilation=2)], 5),
    ],
)
def test_the_reach_is_the_receptive_field(layers: list[nn.Module], reach: int) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 2))
    data = ImageData(
        np.random.default_rng(0).random((8, 1, 24, 24), np.float32), np.arange(8) % 2, ("a", "b")
    )
    for parameter in module.parameters():  # nothing is dead
        parameter.data.abs_()
    classifier = Classifier(module, name="fields").eval()
    last = select(classifier, data, layer="all").layers[-1]
    seen = record_reach(classifier, last.site("conv"), data[:][0], (last.map_shape[0] // 2,) * 2)
    rows = torch.nonzero(seen.any(dim=1)).flatten()
    assert rows[-1] - rows[0] + 1 == reach


def test_there_are_fewer_where_there_is_less_room(
    small_classifier: Classifier, small_data: ImageData, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = {"images": 5 * 2 * 64, "kernels": 1, "maps": 3 * 2 * (4 * 64 + 6 * 16), "patches": 1}
    monkeypatch.setattr(examples, "ROOM", room)
    found = observed(small_classifier, small_data, layer="all")
    assert len(found["images"]) == 5
    assert len(found["maps/conv1"]) == len(found["maps/conv2"]) == 3
    assert not [name for name in found if name.startswith(("kernels", "patches"))]


def test_the_defaults_stay_below_four_megabytes() -> None:
    assert sum(examples.ROOM.values()) < 4e6
    assert (SHOWN_IMAGES, MAPPED_IMAGES) == (60, 12)


def test_without_an_attack_there_are_kernels_alone(
    small_classifier: Classifier, small_data: ImageData
) -> None:
    assert set(observed(small_classifier, small_data, epsilons=())) == {"kernels/conv1", "kernel_scale/conv1"}


def test_a_sample_of_every_class(small_classifier: Classifier, small_data: ImageData) -> None:
    many = replace(
        small_data,
        images=np.tile(small_data.images[:], (5, 1, 1, 1)),
        labels=np.tile(small_data.labels, 5),
    )
    found = observed(small_classifier, many)
    assert len(found["images"]) == SHOWN_IMAGES
    counts = np.bincount(found["label"])
    assert counts.min() >= SHOWN_IMAGES // 3 - 1
    again = observed(small_classifier, many)
    assert all(np.array_equal(found[name], again[name]) for name in found)
