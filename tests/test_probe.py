import copy
from collections import OrderedDict
from collections.abc import Callable

import pytest
import torch
from torch import nn

from fragile_neurons import Classifier, ImageData, InputError
from fragile_neurons.probe import TOLERANCE, Check, probe

CLASSES = ("one", "two", "three")


@pytest.fixture
def images(small_data: ImageData) -> torch.Tensor:
    return small_data[:8][0]


@pytest.fixture
def labels(small_data: ImageData) -> torch.Tensor:
    return small_data[:8][1]


class After(nn.Module):
    """A network whose output goes through a function."""

    def __init__(self, network: nn.Module, function: Callable[[torch.Tensor], object]) -> None:
        super().__init__()
        self.network = network
        self.function = function

    def forward(self, images: torch.Tensor) -> object:
        return self.function(self.network(images))


def snapshot(module: nn.Module) -> tuple[dict[str, torch.Tensor], list[bool], list[int], list[bool]]:
    return (
        {key: tensor.clone() for key, tensor in module.state_dict().items()},
        [submodule.training for submodule in module.modules()],
        [len(submodule._forward_hooks) for submodule in module.modules()],
        [parameter.requires_grad for parameter in module.parameters()],
    )


def assert_untouched(module: nn.Module, before: tuple[dict[str, torch.Tensor], *tuple[object, ...]]) -> None:
    after = snapshot(module)
    assert after[1:] == before[1:]
    assert list(after[0]) == list(before[0])
    for key, tensor in after[0].items():
        assert torch.equal(tensor.nan_to_num(), before[0][key].nan_to_num()), key


def refuse(
    module: nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    expected: str,
    classes: tuple[str, ...] = CLASSES,
) -> None:
    """The probe raises an InputError that matches, and leaves the network as it was."""
    before = snapshot(module)
    with pytest.raises(InputError, match=expected):
        probe(Classifier(module, mean=[0.4], std=[0.3]), images, labels, classes)
    assert_untouched(module, before)


def by_name(checks: tuple[Check, ...]) -> dict[str, Check]:
    return {check.name: check for check in checks}


# -- what passes


def test_a_good_network_passes_every_check_and_is_left_as_it_was(
    small_classifier: Classifier, images: torch.Tensor, labels: torch.Tensor
) -> None:
    before, seen = snapshot(small_classifier), images.clone()
    checks = probe(small_classifier, images, labels, CLASSES)
    assert [check.name for check in checks] == [
        "finite weights", "evaluation mode", "repeatable", "batch-mates", "logits",
    ]  # fmt: skip
    assert {check.status for check in checks} == {"pass"}
    assert by_name(checks)["repeatable"].value == 0.0
    assert (by_name(checks)["batch-mates"].value or 0.0) < 1e-6
    assert by_name(checks)["evaluation mode"].value == 0.0
    assert "came in evaluation mode" in by_name(checks)["evaluation mode"].meaning
    assert_untouched(small_classifier, before)
    assert torch.equal(images, seen)


@pytest.mark.parametrize("n", [2, 3, 5])
def test_two_images_are_enough(
    small_classifier: Classifier, images: torch.Tensor, labels: torch.Tensor, n: int
) -> None:
    assert len(probe(small_classifier, images[:n], labels[:n], CLASSES)) == 5


def test_train_mode_is_noted_and_put_back(
    small_classifier: Classifier, images: torch.Tensor, labels: torch.Tensor
) -> None:
    # dropout and batch norm would fail the checks if the network were not analysed in evaluation mode
    module = After(small_classifier.module, nn.Dropout(0.5))
    module.train()
    norm = small_classifier.module.get_submodule("norm1")
    norm.eval()
    before = snapshot(module)
    check = by_name(probe(Classifier(module), images, labels, CLASSES))["evaluation mode"]
    assert (check.status, check.value) == ("pass", 1.0)
    assert "came in train mode" in check.meaning
    assert_untouched(module, before)
    assert module.training
    assert not norm.training


def test_zero_weights_pass(small_classifier: Classifier, images: torch.Tensor, labels: torch.Tensor) -> None:
    module = copy.deepcopy(small_classifier.module)
    module.load_state_dict({key: torch.zeros_like(tensor) for key, tensor in module.state_dict().items()})
    checks = probe(Classifier(module), images, labels, CLASSES)
    assert by_name(checks)["repeatable"].value == by_name(checks)["batch-mates"].value == 0.0


def test_logits_are_not_taken_for_probabilities(
    small_classifier: Classifier, images: torch.Tensor, labels: torch.Tensor
) -> None:
    def positive(logits: torch.Tensor) -> torch.Tensor:
        return logits + 100

    def of_sum_one(logits: torch.Tensor) -> torch.Tensor:
        return 10 * (logits - logits.mean(1, keepdim=True)) + 1 / 3

    assert positive(small_classifier(images)).min() > 0
    assert of_sum_one(small_classifier(images)).min() < 0
    torch.testing.assert_close(of_sum_one(small_classifier(images)).sum(1), torch.ones(8))
    for function in (positive, of_sum_one):
        probe(Classifier(After(small_classifier, function)), images, labels, CLASSES)


# -- weights


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("conv1.weight", float("nan")),
        ("fc.bias", float("inf")),
        ("norm1.running_var", float("nan")),
        ("conv2.bias", -float("inf")),
    ],
)
def test_weights_that_are_not_finite_are_refused_by_name(
    small_classifier: Classifier, images: torch.Tensor, labels: torch.Tensor, key: str, value: float
) -> None:
    module = small_classifier.module
    tensor = module.state_dict()[key]
    tensor.view(-1)[-1] = value
    expected = rf"the weights {key} are not finite\n.*1 NaN or infinite of {tensor.numel()} values\n.*earlier"
    refuse(module, images, labels, expected.replace(r"\n.*earlier", r"\n.*\n.*earlier checkpoint"))


def test_normalisation_by_the_batch_is_refused_by_name(images: torch.Tensor, labels: torch.Tensor) -> None:
    def network(track: bool) -> nn.Module:
        torch.manual_seed(0)
        layers = OrderedDict(
            conv=nn.Conv2d(1, 4, 3),
            norm=nn.BatchNorm2d(4, track_running_stats=track),
            flatten=nn.Flatten(),
            fc=nn.Linear(4 * 36, 3),
        )
        return nn.Sequential(layers)

    expected = r"normalisation norm uses.*\n.*track_running_stats=False\n.*batch-mates\n.*=True"
    refuse(network(track=False), images, labels, expected)
    probe(Classifier(network(track=True)), images, labels, CLASSES)


# -- outputs that depend on more than the image


class AlwaysDropout(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.dropout(x, 0.5, training=True)


def test_a_dropout_that_is_always_on_is_refused(
    small_classifier: Classifier, images: torch.Tensor, labels: torch.Tensor
) -> None:
    expected = (
        r"change between passes\n.*moved by .* of the largest logit\n.*deterministic.*\n.*remove its noise"
    )
    refuse(After(small_classifier.module, AlwaysDropout()), images, labels, expected)


@pytest.mark.parametrize(("size", "passes"), [(10 * TOLERANCE, False), (TOLERANCE / 10, True)])
def test_noise_counts_against_the_largest_logit(
    small_classifier: Classifier, images: torch.Tensor, labels: torch.Tensor, size: float, passes: bool
) -> None:
    def noisy(logits: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return logits + (len(calls) % 2) * size * float(logits.abs().max())

    calls: list[int] = []
    module = After(small_classifier.module, noisy)
    if passes:
        checks = probe(Classifier(module), images, labels, CLASSES)
        assert by_name(checks)["repeatable"].value == pytest.approx(size, rel=0.05)
    else:
        refuse(module, images, labels, "change between passes")


@pytest.mark.parametrize(
    "mix",
    [
        pytest.param(lambda logits: logits - logits.mean(0, keepdim=True), id="batch mean"),
        pytest.param(lambda logits: logits + 0.01 * logits[-1:], id="the last row"),
        pytest.param(lambda logits: logits + 0.01 * logits[:1], id="the first row"),
        pytest.param(lambda logits: logits / logits.abs().max(), id="batch maximum"),
    ],
)
def test_outputs_that_depend_on_batch_mates_are_refused(
    small_classifier: Classifier,
    images: torch.Tensor,
    labels: torch.Tensor,
    mix: Callable[[torch.Tensor], torch.Tensor],
) -> None:
    expected = (
        r"other images in its batch\n.*moved by .* of the largest logit\n.*each image alone.*\n.*running"
    )
    for n in (8, 3, 2):
        refuse(After(small_classifier.module, mix), images[:n], labels[:n], expected)


# -- outputs of the wrong kind


@pytest.mark.parametrize("temperature", [1.0, 20.0])
def test_probabilities_are_refused(
    small_classifier: Classifier, images: torch.Tensor, labels: torch.Tensor, temperature: float
) -> None:
    module = After(small_classifier.module, lambda logits: (logits / temperature).softmax(1))
    expected = r"probabilities, not logits\n.*that sum to 1\n.*before the softmax.*\n.*remove the softmax"
    refuse(module, images, labels, expected)


@pytest.mark.parametrize(
    ("function", "shown"),
    [
        (lambda logits: logits[:, 0], r"\(8,\) torch\.float32"),
        (lambda logits: logits[:, :, None], r"\(8, 3, 1\) torch\.float32"),
        (lambda logits: logits.argmax(1, keepdim=True), r"\(8, 1\) torch\.int64"),
        (lambda logits: logits.double(), r"\(8, 3\) torch\.float64"),
        (lambda logits: logits.bfloat16(), r"\(8, 3\) torch\.bfloat16"),
    ],
)
def test_what_are_no_logits_is_refused(
    small_classifier: Classifier,
    images: torch.Tensor,
    labels: torch.Tensor,
    function: Callable[[torch.Tensor], object],
    shown: str,
) -> None:
    expected = rf"does not return logits\n.*{shown}\n.*\(8, classes\) of torch\.float32\n.*wrap the network"
    refuse(After(small_classifier.module, function), images, labels, expected)


def test_logits_that_are_not_finite_are_refused(
    small_classifier: Classifier, images: torch.Tensor, labels: torch.Tensor
) -> None:
    def spoil(logits: torch.Tensor) -> torch.Tensor:
        logits[5, 2] = torch.inf
        logits[6, 0] = torch.nan
        return logits

    expected = r"logits are not finite\n.*2 NaN or infinite of 24\n.*\n.*normalisation \(mean, std\)"
    refuse(After(small_classifier.module, spoil), images, labels, expected)


@pytest.mark.parametrize("classes", [("one", "two"), ("one", "two", "three", "four"), ("one",)])
def test_the_wrong_number_of_classes_is_refused(
    small_classifier: Classifier, images: torch.Tensor, classes: tuple[str, ...]
) -> None:
    expected = (
        rf"wrong number of classes\n.*\(8, 3\) for 8 images\n.*\(8, {len(classes)}\): one logit per class"
    )
    refuse(small_classifier.module, images, torch.zeros(8, dtype=torch.int64), expected, classes)


def test_a_single_logit_is_refused_even_for_data_of_one_class(
    small_classifier: Classifier, images: torch.Tensor
) -> None:
    module = After(small_classifier.module, lambda logits: logits[:, :1])
    expected = r"wrong number of classes\n.*\(8, 1\).*\n.*at least 2"
    refuse(module, images, torch.zeros(8, dtype=torch.int64), expected, ("one",))


def test_an_output_of_another_number_of_rows_is_refused(
    small_classifier: Classifier, images: torch.Tensor, labels: torch.Tensor
) -> None:
    module = After(small_classifier.module, lambda logits: logits[:4])
    refuse(module, images, labels, r"wrong number of classes\n.*\(4, 3\) for 8 images")


def test_a_label_without_a_logit_is_refused(small_classifier: Classifier, images: torch.Tensor) -> None:
    labels = torch.tensor([0, 1, 2, 3, 0, 0, 0, 0])
    refuse(small_classifier.module, images, labels, r"a label is out of range\n.*3\n.*0 to 2\n.*from 0")


# -- images of the wrong kind


def test_images_of_the_wrong_size_are_refused(
    small_classifier: Classifier, images: torch.Tensor, labels: torch.Tensor
) -> None:
    expected = r"cannot process these images\n.*\(8, 1, 6, 6\): .*mat1 and mat2.*\n.*\n.*data this network"
    refuse(small_classifier.module, images[..., :6, :6], labels, expected)


def test_images_of_the_wrong_number_of_channels_are_refused(
    small_classifier: Classifier, images: torch.Tensor, labels: torch.Tensor
) -> None:
    expected = r"cannot process these images\n.*\(8, 3, 8, 8\): .*expected input.* to have 1 channels.*\n"
    refuse(small_classifier.module, images.repeat(1, 3, 1, 1), labels, expected)


def test_grey_images_are_not_broadcast_to_the_colours_of_a_mean(
    images: torch.Tensor, labels: torch.Tensor
) -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 3))
    classifier = Classifier(module, mean=[0.4, 0.4, 0.4], std=[0.3, 0.3, 0.3])
    assert classifier(images).shape == (8, 3)  # torch would have said nothing
    with pytest.raises(
        InputError, match=r"number of channels\n.*\(8, 1, 8, 8\), mean and std of 3 channels\n.*as many"
    ):
        probe(classifier, images, labels, CLASSES)
    probe(classifier, images.repeat(1, 3, 1, 1), labels, CLASSES)
    one_for_all = Classifier(module, mean=[0.4], std=[0.3])
    probe(one_for_all, images.repeat(1, 3, 1, 1), labels, CLASSES)


@pytest.mark.parametrize("n", [0, 1])
def test_a_single_image_is_too_few(
    small_classifier: Classifier, images: torch.Tensor, labels: torch.Tensor, n: int
) -> None:
    refuse(small_classifier.module, images[:n], labels[:n], rf"too few images.*\n.*{n}\n.*at least 2\n.*more")
