import hashlib
import json
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from fragile_neurons import Classifier, InputError, load_model
from fragile_neurons.classifier import evaluating
from fragile_neurons.models import loading
from fragile_neurons.models.architectures import mnist_cnn
from fragile_neurons.models.loading import MODELS, Model, build, default_data

# -- the classifier


def linear(weight: float = 2.0) -> nn.Module:
    """(n, 3, 1, 1) -> (n, 3): each channel times the weight."""
    layer = nn.Linear(3, 3)
    layer.load_state_dict({"weight": torch.eye(3) * weight, "bias": torch.zeros(3)})
    return nn.Sequential(nn.Flatten(), layer)


def test_the_normalisation_is_inside_one_value_per_channel() -> None:
    classifier = Classifier(linear(), mean=[0.1, 0.2, 0.4], std=[0.5, 0.25, 0.2])
    logits = classifier(torch.tensor([0.6, 0.7, 0.5]).view(1, 3, 1, 1))
    # by hand: 2 * (0.5 / 0.5), 2 * (0.5 / 0.25), 2 * (0.1 / 0.2)
    torch.testing.assert_close(logits, torch.tensor([[2.0, 4.0, 1.0]]))


def test_without_a_normalisation_the_module_sees_the_images_themselves() -> None:
    images = torch.rand(4, 3, 1, 1)
    assert torch.equal(Classifier(linear())(images), linear()(images))


def test_layers_keep_their_names_and_weights_are_shared() -> None:
    module = linear()
    classifier = Classifier(module, mean=[0.0] * 3, std=[1.0] * 3)
    assert classifier.module is module
    assert set(classifier.state_dict()) == {"module.1.weight", "module.1.bias"}
    assert set(classifier.module.state_dict()) == {"1.weight", "1.bias"}
    assert classifier.name == "Sequential"
    assert Classifier(module, name="mine").name == "mine"


def test_one_number_normalises_one_channel() -> None:
    images = torch.rand(2, 1, 1, 1)
    module = nn.Flatten()
    assert torch.equal(Classifier(module, mean=0.1, std=0.3)(images), ((images - 0.1) / 0.3).flatten(1))


@pytest.mark.parametrize("copied", [Classifier.duplicate, lambda one: one.as_dtype("bfloat16")])
def test_a_copy_has_hooks_and_buffers_of_its_own(copied: Callable[[Classifier], Classifier]) -> None:
    classifier, seen = Classifier(linear(), mean=[0.1, 0.2, 0.4], std=[0.5, 0.25, 0.2]), []
    other = copied(classifier)
    other.mean = None
    other.register_forward_hook(lambda *_: seen.append(1))
    assert classifier.mean is not None
    classifier(torch.rand(2, 3, 1, 1))
    assert not seen


def test_a_module_without_weights_is_on_the_cpu() -> None:
    assert Classifier(nn.Flatten()).device == torch.device("cpu")
    assert Classifier(nn.Linear(2, 2)).device == torch.device("cpu")


@pytest.mark.parametrize(
    ("mean", "std", "expected"),
    [
        ([0.1], None, r"mean=\[0\.1\], std=None\n.*both or neither.*\n.*give both"),
        (None, [0.1], r"mean=None, std=\[0\.1\]"),
        ([0.1, 0.2], [0.1], r"mean=\[0\.1, 0\.2\], std=\[0\.1\]\n.*one value per channel"),
        ([float("nan")], [0.1], r"mean is not finite\n.*\[nan\]"),
        ([0.1], [float("inf")], r"std is not positive\n.*\[inf\]"),
        ([0.1], [0.0], r"std is not positive\n.*\[0\.0\]\n.*above 0\n.*order of mean and std"),
        ([0.1, 0.1], [0.2, -0.2], r"std is not positive\n.*\[0\.2, -0\.2\]"),
        ([0.1], [float("nan")], r"std is not positive\n.*\[nan\]"),
    ],
)
def test_mean_and_std_that_do_not_go_together_are_refused(
    mean: list[float] | None, std: list[float] | None, expected: str
) -> None:
    with pytest.raises(InputError, match=expected):
        Classifier(linear(), mean=mean, std=std)


def test_what_is_no_module_is_refused() -> None:
    with pytest.raises(InputError, match=r"given: +function\n.*torch\.nn\.Module.*\n.*wrap the function"):
        Classifier(lambda images: images)  # type: ignore[arg-type]


def test_the_checksum_of_one_weight_is_that_of_its_name_type_shape_and_bytes() -> None:
    module = nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        module.weight.copy_(torch.tensor([[1.0, -2.5]]))
    spelled = b"weight torch.float32 (1, 2)\n" + np.array([1.0, -2.5], "<f4").tobytes()
    assert Classifier(module).sha256() == hashlib.sha256(spelled).hexdigest()


def test_the_checksum_sees_every_value_and_nothing_else() -> None:
    module = nn.Sequential(OrderedDict(conv=nn.Conv2d(1, 2, 3), norm=nn.BatchNorm2d(2), fc=nn.Linear(2, 2)))
    classifier = Classifier(module, mean=[0.1], std=[0.3])
    plain = classifier.sha256()
    checksums = {plain}
    # what leaves the values alone leaves the checksum alone
    module.train()
    module.to(memory_format=torch.channels_last)
    module.requires_grad_(False)
    assert Classifier(module, mean=[0.1], std=[0.3], name="other").sha256() == plain
    for key, tensor in module.state_dict().items():
        before = tensor.clone()
        flat = tensor.view(-1) if tensor.is_contiguous() else tensor.permute(0, 2, 3, 1).reshape(-1)
        if tensor.is_floating_point():  # the last bit of the last value
            tensor[(-1,) * tensor.ndim] = torch.nextafter(flat[-1], torch.tensor(torch.inf))
        else:
            tensor += 1
        checksums.add(classifier.sha256())
        tensor.copy_(before)
        assert classifier.sha256() == plain, key
    checksums.add(Classifier(module, mean=[0.2], std=[0.3]).sha256())
    checksums.add(Classifier(module, mean=[0.1], std=[0.4]).sha256())
    checksums.add(Classifier(module).sha256())
    assert len(checksums) == 1 + len(module.state_dict()) + 3


def test_evaluating_gives_every_submodule_its_own_flag_back() -> None:
    norm = nn.BatchNorm1d(2)
    module = nn.Sequential(nn.Dropout(), nn.Sequential(norm, nn.Linear(2, 2)))
    module.train()
    norm.eval()  # frozen statistics: mixed flags must survive
    flags = [submodule.training for submodule in module.modules()]
    assert True in flags
    assert False in flags

    def fail() -> None:
        with evaluating(module):
            assert not any(submodule.training for submodule in module.modules())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert [submodule.training for submodule in module.modules()] == flags


# -- models by name


def test_the_mnist_network_is_the_one_described() -> None:
    module = mnist_cnn()
    shapes = {key: tuple(value.shape) for key, value in module.state_dict().items()}
    assert shapes == {
        "conv1.weight": (32, 1, 3, 3),
        "conv1.bias": (32,),
        "conv2.weight": (64, 32, 3, 3),
        "conv2.bias": (64,),
        "fc1.weight": (128, 3136),
        "fc1.bias": (128,),
        "fc2.weight": (10, 128),
        "fc2.bias": (10,),
    }
    assert sum(parameter.numel() for parameter in module.parameters()) == 421_642


def test_the_mnist_network_computes_what_its_description_says() -> None:
    torch.manual_seed(0)
    module = mnist_cnn().eval()
    images = torch.rand(3, 1, 28, 28)
    weights = module.state_dict()
    x = images
    for name in ("conv1", "conv2"):
        x = nn.functional.conv2d(x, weights[f"{name}.weight"], weights[f"{name}.bias"], padding=1)
        x = nn.functional.max_pool2d(x.clamp(min=0), 2)
    x = (x.flatten(1) @ weights["fc1.weight"].T + weights["fc1.bias"]).clamp(min=0)
    x = x @ weights["fc2.weight"].T + weights["fc2.bias"]
    torch.testing.assert_close(module(images), x, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("refuse", [load_model, lambda name: build(name, None)], ids=["load_model", "build"])
def test_an_unknown_model_is_refused_with_those_there_are(refuse: Callable[[str], object]) -> None:
    with pytest.raises(
        InputError,
        match=r"no such model\n +given: +vgg\n.*mnist-cnn, mnist-cnn-robust, cifar10-resnet20, resnet20, .*"
        r"resnet18:small, timm:NAME, package\.module:factory, path/file\.py:factory\n.*neurons models",
    ):
        refuse("vgg")


# the training images' own, to four decimals, as everybody uses them
MNIST_PIXELS = ((0.1307,), (0.3081,))
CIFAR10_PIXELS = ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
PIXELS = {"mnist": MNIST_PIXELS, "cifar10": CIFAR10_PIXELS}


@pytest.mark.parametrize("name", sorted(MODELS))
def test_models_know_their_data_and_its_normalisation(name: str, tmp_path: Path) -> None:
    data = "cifar10" if name.startswith("cifar10") else "mnist"
    assert default_data(name) == MODELS[name].data == data
    assert MODELS[name].name == name
    save_file(build(name, None).state_dict(), tmp_path / "w.safetensors")
    classifier = load_model(name, weights=tmp_path / "w.safetensors")
    assert classifier.name == name
    assert not classifier.training
    assert classifier.mean is not None
    assert classifier.std is not None
    assert classifier.mean.shape == (1, len(PIXELS[data][0]), 1, 1)
    assert classifier.mean.flatten().tolist() == pytest.approx(PIXELS[data][0])
    assert classifier.std.flatten().tolist() == pytest.approx(PIXELS[data][1])


@pytest.mark.parametrize("name", ["resnet20", "resnet18", "net.py:make", "timm:resnet18"])
def test_which_images_another_model_is_for_must_be_said(name: str) -> None:
    with pytest.raises(InputError, match=rf"not known which images {name} is for\n.*no --data\n.*\n.*--data"):
        default_data(name)


def test_what_is_built_has_fresh_weights() -> None:
    one, other = (build("mnist-cnn", None).state_dict() for _ in range(2))
    assert not torch.equal(one["conv1.weight"], other["conv1.weight"])


def save_weights(path: Path, seed: int = 0) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    weights = {key: tensor.clone() for key, tensor in mnist_cnn().state_dict().items()}
    save_file(weights, path)
    return weights


def test_weights_of_a_file_are_loaded_as_they_are(tmp_path: Path) -> None:
    weights = save_weights(tmp_path / "w.safetensors")
    for path in (tmp_path / "w.safetensors", str(tmp_path / "w.safetensors")):
        classifier = load_model("mnist-cnn", weights=path)
        loaded = classifier.module.state_dict()
        assert set(loaded) == set(weights)
        assert all(torch.equal(loaded[key], weights[key]) for key in weights)
    reference = Classifier(mnist_cnn(), mean=[0.1307], std=[0.3081])
    reference.module.load_state_dict(weights)
    images = torch.rand(5, 1, 28, 28)
    torch.testing.assert_close(classifier(images), reference(images), rtol=1e-4, atol=1e-5)
    assert classifier.sha256() == reference.sha256()
    layout = classifier.module.get_parameter("conv2.weight")
    assert layout.is_contiguous(memory_format=torch.channels_last)


def test_a_normalisation_given_takes_the_place_of_the_models_own(tmp_path: Path) -> None:
    save_weights(tmp_path / "w.safetensors")
    classifier = load_model("mnist-cnn", weights=tmp_path / "w.safetensors", mean=[0.5], std=[0.25])
    assert classifier.mean is not None
    assert classifier.std is not None
    assert (classifier.mean.item(), classifier.std.item()) == (0.5, 0.25)
    with pytest.raises(InputError, match=r"mean=\[0\.5\], std=None"):
        load_model("mnist-cnn", weights=tmp_path / "w.safetensors", mean=[0.5])


def test_the_bundled_weights_are_loaded_when_no_file_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "BUNDLED", tmp_path)
    weights = {}
    for name in MODELS:
        weights[name] = {key: tensor.clone() for key, tensor in build(name, None).state_dict().items()}
        save_file(weights[name], tmp_path / f"{name}.safetensors")
    (tmp_path / "mnist-cnn.json").write_text(json.dumps({"clean_accuracy": {"value": 0.5}}))
    for name in MODELS:
        loaded = load_model(name).module.state_dict()
        assert all(torch.equal(loaded[key], tensor) for key, tensor in weights[name].items()), name
    assert MODELS["mnist-cnn"].card() == {"clean_accuracy": {"value": 0.5}}


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(None, id="no file"),
        pytest.param(b"", id="empty"),
        pytest.param(b"<!DOCTYPE html><html></html>", id="a web page"),
        pytest.param((10**15).to_bytes(8, "little") + b"{}", id="a header larger than the file"),
        pytest.param(b"PK\x03\x04" + bytes(100), id="the beginning of a torch.save file"),
    ],
)
def test_what_is_no_file_of_weights_is_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "w.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(
        InputError, match=r"weights cannot be read\n.*\n.*safetensors or torch\.save.*\n.*save the state dict"
    ) as error:
        load_model("mnist-cnn", weights=path)
    assert f"given:   {path}: " in str(error.value)


def test_a_folder_and_a_truncated_file_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_weights(path)
    path.write_bytes(path.read_bytes()[:-4])
    for wrong in (path, tmp_path):
        with pytest.raises(InputError, match="the weights cannot be read"):
            load_model("mnist-cnn", weights=wrong)


def test_weights_of_another_network_are_refused_naming_the_difference(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    weights = save_weights(path)
    cases = {
        r"conv2\.weight: \(64, 32, 5, 5\); 0 more differ\n.*\(64, 32, 3, 3\)\n.*the model, and the data": {
            **weights,
            "conv2.weight": torch.zeros(64, 32, 5, 5),
        },
        r"fc2\.weight: missing; 1 more differ\n.*allowed: +fc2\.weight: \(10, 128\)\n": {
            key: tensor for key, tensor in weights.items() if not key.startswith("fc2")
        },
        r"fc3\.bias: \(7,\); 0 more differ\n.*fc3\.bias: not in this network": {
            **weights,
            "fc3.bias": torch.zeros(7),
        },
    }
    for expected, wrong in cases.items():
        save_file(wrong, path)
        with pytest.raises(InputError, match=expected):
            load_model("mnist-cnn", weights=path)


@pytest.mark.parametrize("count", [None, torch.tensor(7), torch.zeros(1), torch.zeros(2, 2)])
def test_the_count_of_batches_may_be_missing_or_odd_since_evaluation_never_reads_it(
    count: torch.Tensor | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Model("norm", lambda: nn.BatchNorm2d(2), "mnist", mean=(0.0,), std=(1.0,))
    monkeypatch.setitem(MODELS, "norm", model)
    weights = {key: tensor + 1 for key, tensor in nn.BatchNorm2d(2).state_dict().items()}
    del weights["num_batches_tracked"]
    counted = {} if count is None else {"num_batches_tracked": count}
    save_file({**weights, **counted}, tmp_path / "w.safetensors")
    loaded = load_model("norm", weights=tmp_path / "w.safetensors").module.state_dict()
    assert all(torch.equal(loaded[key], tensor) for key, tensor in weights.items())
    assert loaded["num_batches_tracked"].shape == ()


def test_weights_without_dimensions_are_named_by_what_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(1.0))  # of shape (), easily taken for nothing

    monkeypatch.setitem(MODELS, "scaled", Model("scaled", Scaled, "mnist", mean=(0.0,), std=(1.0,)))
    save_file({"scale": torch.zeros(1)}, tmp_path / "w.safetensors")
    with pytest.raises(InputError, match=r"scale: \(1,\); 0 more.*\n.*scale: \(\)\n"):
        load_model("scaled", weights=tmp_path / "w.safetensors")
